"""Outside the seven steps (samples): cells and acquisitions of a cube into sample form.

What was loaded as a map is taken apart into samples, each with the window of the series that
its date sees; those that networks cannot learn from are left out and told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from xsoilsm import grid, periods
from xsoilsm.cube import VARIABLES, SourceFlag
from xsoilsm.samples.form import IDENTITY
from xsoilsm.truth.table import Remarks, Subject

__all__ = ["NAMES", "named", "no_samples", "take_samples", "usable_samples"]

NAMES = ("network", "station", "land_cover", "climate")
"""Columns of truth that samples take over."""

_ALONG_TIME = ("relative_orbit", "orbit_state", "platform", "sigma0_from")


def take_samples(
    cube: xr.Dataset, cells: list[tuple[int, int]], labels: npt.NDArray[np.float64]
) -> xr.Dataset:
    """Bring cells and acquisitions that have a label into sample form.

    Computes: the cube must be in memory.

    Parameters
    ----------
    cube : Dataset
        Map form, one rectangle of cells.
    cells : list of (row, column)
        Of the cube's cells, row by row.
    labels : (time, cell) ndarray
        Soil moisture in m3 m-3; NaN where there is none.

    Returns
    -------
    Dataset
        Sample form in physical units, with ``soil_moisture``, and ``row`` and ``column`` of the
        cells; samples in order of time, then cells.
    """
    when, where = np.nonzero(np.isfinite(labels))
    width = cube.sizes["x"]
    i, j = where // width, where % width
    steps = np.arange(periods.PERIODS_PER_YEAR)
    ends = periods.window_end(cube["period"].values, cube["time"].values)
    windows = ends[when, None] - (periods.PERIODS_PER_YEAR - 1) + steps
    data: dict[str, Any] = {}
    for name, variable in VARIABLES.items():
        if name not in cube or (variable.dims[0] == "period" and not variable.required):
            continue
        values = cube[name].transpose(*variable.dims).values
        if variable.dims[0] == "time":
            taken = values[when, i, j]
        elif variable.dims[0] == "period":
            taken = values[windows, i[:, None], j[:, None]]
        else:
            taken = values[i, j]
        attributes = {
            key: value
            for key, value in cube[name].attrs.items()
            if key in ("units", "long_name", "standard_name", "averaging", "sigma0_from")
        }
        data[name] = (variable.sample_dims, taken, attributes)
    data["soil_moisture"] = ("sample", labels[when, where], {"units": "m3 m-3"})
    place = np.array(cells, dtype=np.int64)[where]
    x, y = cube["x"].values[j], cube["y"].values[i]
    lon, lat = grid.xy_to_lonlat(x, y)
    coords: dict[str, Any] = {
        "row": ("sample", place[:, 0]),
        "column": ("sample", place[:, 1]),
        "lat": ("sample", lat),
        "lon": ("sample", lon),
        "time": ("sample", cube["time"].values[when]),
    }
    for name in _ALONG_TIME:
        if name in cube.coords:
            coords[name] = ("sample", cube[name].values[when])
    return xr.Dataset(data, coords)


def named(
    known: Mapping[tuple[int, int], pd.DataFrame], samples: xr.Dataset
) -> dict[str, tuple[str, npt.NDArray[np.object_]]]:
    """Coordinates with the names of the places of samples. Computes."""
    pairs = list(
        zip(samples["row"].values.tolist(), samples["column"].values.tolist(), strict=True)
    )
    return {
        name: ("sample", np.array([str(known[p][name].iloc[0]) for p in pairs], dtype=object))
        for name in NAMES
    }


def usable_samples(
    samples: xr.Dataset, min_coverage: float, subject: Subject, remarks: Remarks
) -> xr.Dataset:
    """Keep the samples that networks can learn from; the others become remarks. Computes."""
    size = samples.sizes["sample"]
    finite = np.ones(size, dtype=np.bool_)
    for name, variable in VARIABLES.items():
        if variable.required:
            valid = np.isfinite(samples[name].values)
            finite &= valid.all(axis=1) if valid.ndim == 2 else valid
    covered = np.ones(size, dtype=np.bool_)
    if "coverage" in samples:
        covered = np.nan_to_num(samples["coverage"].values) >= min_coverage
    failed = np.zeros(size, dtype=np.bool_)
    if "source_flags" in samples:
        flags = samples["source_flags"].values.astype(np.int64)
        failed = (flags & SourceFlag.READ_FAILED) != 0
    for lost, reason in (
        (failed, "radar could not be read"),
        (~failed & ~covered, f"valid radar pixels cover less than {min_coverage:g} of the cell"),
        (~failed & covered & ~finite, "an input is missing"),
    ):
        if lost.any():
            remarks.add(reason, subject, values=int(lost.sum()))
    kept = finite & covered & ~failed
    return samples.isel(sample=np.flatnonzero(kept))


def no_samples() -> xr.Dataset:
    """No sample, in the right form. Lazy: reads nothing."""
    sizes = {"sample": 0, "step": periods.PERIODS_PER_YEAR}
    data = {
        name: (v.sample_dims, np.empty([sizes[d] for d in v.sample_dims], np.float32), v.attributes)
        for name, v in VARIABLES.items()
        if v.required
    }
    coords = {name: ("sample", np.empty(0, dtype=kind)) for name, kind in IDENTITY.items()}
    truth = {"soil_moisture": ("sample", np.empty(0), {"units": "m3 m-3"})}
    return xr.Dataset({**data, **truth}, coords)
