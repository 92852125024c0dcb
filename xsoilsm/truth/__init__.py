"""Outside the seven steps (truth): soil moisture that retrievals are trained with and measured by.

Readers bring archives of the International Soil Moisture Network, tables of one's own stations
and SMAP granules into one form, a `Truth`: a table with one row for each place and day, and a
report of what was left out and why. `table` holds the form and the checks that all readers
share; `ismn`, `stations` and `smap` read.
"""

from __future__ import annotations

from xsoilsm.truth.ismn import read_ismn
from xsoilsm.truth.smap import download_smap, read_smap
from xsoilsm.truth.stations import read_stations
from xsoilsm.truth.table import CELL_COLUMNS, REPORT_COLUMNS, STATION_COLUMNS, Truth

__all__ = [
    "CELL_COLUMNS",
    "REPORT_COLUMNS",
    "STATION_COLUMNS",
    "Truth",
    "download_smap",
    "read_ismn",
    "read_smap",
    "read_stations",
]
