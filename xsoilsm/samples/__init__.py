"""Outside the seven steps (samples): pairs of what a network sees and what is true.

`build_samples` brings truth and acquisitions together through the same `load_cube` and
`compute_features` as maps, and writes Parquet; `read_samples` reads it. `cells` groups the cells
to be read, `taking` takes samples out of a cube, `form` is their table and its files, `build`
makes it, `authors` imports the tables that the method's authors pass around.
"""

from __future__ import annotations

from xsoilsm.samples.authors import read_author_samples
from xsoilsm.samples.build import build_samples
from xsoilsm.samples.form import check_contract, encode_samples, read_samples, write_samples

__all__ = [
    "build_samples",
    "check_contract",
    "encode_samples",
    "read_author_samples",
    "read_samples",
    "write_samples",
]
