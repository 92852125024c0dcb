"""Cubes of plausible random numbers, for tests that need a cube but no landscape."""

from __future__ import annotations

import numpy as np
import xarray as xr
from hypothesis import strategies as st

from xsoilsm import ease2_geobox, grid, periods
from xsoilsm.cube import VARIABLES, spatial_coords

RANGES = {
    "sigma0_vv": (-18, -6),
    "sigma0_vh": (-26, -12),
    "incidence_angle": (30, 45),
    "ndvi": (0.1, 0.9),
    "air_temperature": (-5, 30),
    "precipitation": (0, 0.1),
    "sand": (10, 80),
    "clay": (5, 50),
    "bulk_density": (1.05, 1.7),
    "elevation": (10, 3000),
    "slope": (0, 20),
    "aspect_sin": (-0.5, 0.5),
    "aspect_cos": (-0.5, 0.5),
}
BBOX = (-5.6, 41.1, -5.2, 41.5)


def map_cube(
    shape: tuple[int, int] = (6, 5),
    times: tuple[str, ...] = ("2020-04-02T06:20", "2020-04-03T18:10", "2020-04-14T06:20"),
    res: str = "1km",
    seed: int = 0,
) -> xr.Dataset:
    """Cube in map form, `shape` cells from the upper left corner of `BBOX`."""
    rng = np.random.default_rng(seed)
    full = ease2_geobox(BBOX, res)
    cells, (row, _), (column, _) = grid.grid_of(full)
    geobox = cells.geobox((row, row + shape[0]), (column, column + shape[1]))
    time = np.array(times, "datetime64[ns]")
    period = periods.period_starts(periods.preceding_period(time[0], 46), time[-1])
    sizes = {"time": time.size, "period": period.size, "y": shape[0], "x": shape[1]}
    data = {
        name: (
            VARIABLES[name].dims,
            rng.uniform(*span, [sizes[d] for d in VARIABLES[name].dims]).astype(np.float32),
            VARIABLES[name].attributes,
        )
        for name, span in RANGES.items()
    }
    coords = {"time": time, "period": period.astype("datetime64[ns]"), **spatial_coords(geobox)}
    return xr.Dataset(data, coords=coords)


def sample_cube(n: int = 7, seed: int = 0) -> xr.Dataset:
    """Cube in sample form with `n` samples all over the world."""
    rng = np.random.default_rng(seed)
    sizes = {"sample": n, "step": 46}
    data = {
        name: (
            VARIABLES[name].sample_dims,
            rng.uniform(*span, [sizes[d] for d in VARIABLES[name].sample_dims]),
            VARIABLES[name].attributes,
        )
        for name, span in RANGES.items()
    }
    days = rng.integers(0, 2000, n)
    coords = {
        "lat": ("sample", rng.uniform(-60, 75, n)),
        "lon": ("sample", rng.uniform(-180, 180, n)),
        "time": ("sample", np.datetime64("2016-01-01", "ns") + days * np.timedelta64(1, "D")),
    }
    return xr.Dataset(data, coords=coords)


def as_samples(cube: xr.Dataset) -> xr.Dataset:
    """Cells and acquisitions of a map cube, each as one sample with its own window."""
    parts = []
    ends = periods.window_end(cube.period.values, cube.time.values)
    for index, end in enumerate(ends):
        part = cube.isel(time=index, period=slice(end - 45, end + 1))
        part = part.drop_vars(["spatial_ref", "period"]).rename(period="step")
        flat = part.stack(sample=("y", "x"))
        lon, lat = grid.xy_to_lonlat(flat.x.values, flat.y.values)
        flat = flat.drop_vars(["sample", "y", "x", "time"])
        flat = flat.assign_coords(
            lat=("sample", lat),
            lon=("sample", lon),
            time=("sample", np.full(lat.size, cube.time.values[index])),
        )
        parts.append(flat.transpose("sample", "step"))
    return xr.concat(parts, "sample", data_vars="all")


def golden_cube(golden: dict[str, np.ndarray]) -> xr.Dataset:
    """Put the golden samples into sample form, in physical units."""
    stored = {
        "sigma0_vv": "vv",
        "sigma0_vh": "vh",
        "air_temperature": "t2m",
        "precipitation": "tp",
    }
    data = {
        name: (v.sample_dims, golden[f"in_{stored.get(name, name)}"], v.attributes)
        for name, v in VARIABLES.items()
        if v.required
    }
    coords = {
        "lat": ("sample", golden["in_lat"]),
        "lon": ("sample", golden["in_lon"]),
        "time": ("sample", golden["in_date"].astype("datetime64[ns]")),
    }
    return xr.Dataset(data, coords=coords)


resolutions = st.sampled_from(list(grid.GRIDS))
dates = st.dates(
    min_value=np.datetime64("1999-06-01").item(), max_value=np.datetime64("2031-12-31").item()
)
