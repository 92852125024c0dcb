"""What the quality flags and the domain of applicability cost, and what thresholds rest on.

Costs are those of one block in memory with every optional variable, without Dask, per retrieved
value and against the networks alone. The rest needs the published weights, the golden samples that
lie beside the checkout, and the landscape of ``xsoilsm simulate``; rows without them are left out.
"""

from __future__ import annotations

import tracemalloc
import warnings
from dataclasses import fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import xsoilsm
import xsoilsm.thresholds
from benchmarks.timing import interleave, keep_memory
from xsoilsm import grid, periods
from xsoilsm.catalog import CatalogError
from xsoilsm.cube import VARIABLES, spatial_coords
from xsoilsm.domain import distance, domain_table, statistics_of
from xsoilsm.engine import Engine
from xsoilsm.ensemble import Ensemble, WeightsError, get_ensemble
from xsoilsm.quality import Thresholds

SHARED = Path(__file__).parents[2] / "shared"
GOLDEN = SHARED / "golden/published_coarse.npz"
CHIP = SHARED / "data/sar/Sen1Floods11_Spain_7370579_S1Hand.tif"
TERRAIN = SHARED / "data/dem/Rome-30m-DEM.tif"
SPANS = {
    "sigma0_vv": (-18, -6), "sigma0_vh": (-26, -12), "incidence_angle": (30, 45),
    "ndvi": (0.1, 0.9), "air_temperature": (-5, 30), "precipitation": (0, 0.1),
    "sand": (10, 80), "clay": (5, 50), "bulk_density": (1.05, 1.7), "elevation": (10, 3000),
    "slope": (0, 25), "aspect_sin": (-0.5, 0.5), "aspect_cos": (-0.5, 0.5), "coverage": (0, 1),
    "source_flags": (0, 1), "ndvi_filled": (0, 2), "water_fraction": (0, 0.2),
    "built_fraction": (0, 0.5), "tree_fraction": (0, 1), "snow_ice_fraction": (0, 0.1),
    "soil_temperature": (-5, 20), "snow_cover": (0, 0.2),
}  # fmt: skip
TRAINING_NETWORKS = {
    "OzNet": (-34.7, 146.0), "TAHMO": (5.5, 0.0), "AMMA-CATCH": (13.6, 2.5),
    "Tibet-Obs": (34.0, 102.0), "SD_DEM": (13.3, 30.5), "SCAN, Hawaii": (19.8, -155.5),
    "SNOTEL, Alaska": (64.0, -148.0), "REMEDHUS": (41.3, -5.4), "RISMA": (50.0, -105.0),
}  # fmt: skip
BINS = (0.0, 1.25, 1.5, 2.0, 2.5, np.inf)


def run(full: bool) -> list[dict[str, object]]:
    ensemble = get_ensemble("DenseSM-E")
    try:
        ensemble.require_weights()
    except WeightsError as error:
        return [{"what": "nothing", "case": str(error)}]
    warnings.simplefilter("ignore")
    keep_memory()
    rows = _costs(ensemble, 300 if full else 100)
    rows += _networks(ensemble)
    if CHIP.is_file() and TERRAIN.is_file():
        rows += _real(ensemble)
    if GOLDEN.is_file():
        with np.load(GOLDEN, allow_pickle=False) as file:
            golden = {name: file[name] for name in file.files}
        rows += _spread_by_distance(ensemble, golden)
        rows += _filled(ensemble, golden)
        rows += _response(ensemble, golden)
    return rows + _landscape(ensemble) + _as_of()


def cube_of(side: int, dates: int = 2) -> xr.Dataset:
    """Cube at 1 km with all variables, `side` x `side` cells."""
    rng = np.random.default_rng(0)
    time = np.datetime64("2020-06-01", "ns") + np.arange(dates) * np.timedelta64(12, "D")
    starts = periods.period_starts(periods.preceding_period(time[0], 45), time[-1])
    geobox = grid.get_grid("1km").geobox((3000, 3000 + side), (17000, 17000 + side))
    sizes = {"time": dates, "period": starts.size, "y": side, "x": side}
    data = {
        name: (v.dims, rng.uniform(*SPANS[name], [sizes[d] for d in v.dims]), v.attributes)
        for name, v in VARIABLES.items()
        if name in SPANS
    }
    cube = xr.Dataset(data).astype("f4", keep_attrs=True)
    for name in ("source_flags", "ndvi_filled"):
        cube[name] = cube[name].astype("u1")
    coords = {"time": time, "period": starts.astype("datetime64[ns]"), **spatial_coords(geobox)}
    return cube.assign_coords(coords)


def _costs(ensemble: Ensemble, side: int) -> list[dict[str, object]]:
    cube = cube_of(side)
    values = cube.sizes["time"] * side**2
    off = dict.fromkeys(field.name for field in fields(Thresholds))
    engine = Engine(ensemble, "cpu", 1)
    features = xsoilsm.compute_features(cube.isel(time=[0]))
    snapshot = np.ascontiguousarray(features["snapshot"].values.reshape(side**2, -1).T)
    series = np.moveaxis(features["series"].values.reshape(side**2, 3, 46), 0, -1).copy()
    statistics = statistics_of(ensemble)
    options: dict[str, dict[str, Any]] = {
        "retrieval, all conditions off": {"thresholds": off},
        "retrieval, flags without the domain": {"thresholds": {"domain_distance": None}},
        "retrieval, all flags (default)": {},
        "retrieval, all flags and layers": {"domain": True},
    }
    contestants = {name: partial(_retrieved, cube, **given) for name, given in options.items()}
    seconds = interleave(
        {
            "networks alone": lambda: engine.predict(snapshot, series),
            "distance alone": lambda: distance(statistics, snapshot),
            **contestants,
        },
        rounds=7,
    )
    of = {name: side**2 if name.endswith("alone") else values for name in seconds}
    peaks = {name: _peak(job) for name, job in contestants.items()}
    kernel = seconds["networks alone"] / side**2
    base = seconds["retrieval, all conditions off"] / values
    return [
        {
            "what": "cost",
            "case": f"{name}, way {engine.way}",
            "us per value": 1e6 * s / of[name],
            "share of networks": s / of[name] / kernel,
            "more than conditions off": ""
            if name.endswith("alone")
            else (s / values - base) / kernel,
            "peak bytes per cell": peaks[name] / side**2 if name in peaks else "",
        }
        for name, s in seconds.items()
    ]


def _retrieved(cube: xr.Dataset, **options: Any) -> xr.Dataset:
    # A block of Dask has one thread: so has this.
    from xsoilsm import retrieval

    return retrieval.retrieve(cube, device="cpu", **options)


def _peak(job: Any) -> int:
    tracemalloc.start()
    try:
        job()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _networks(ensemble: Ensemble) -> list[dict[str, object]]:
    """Distance of the training networks if nothing but their place were unusual."""
    cells = grid.get_grid("9km")
    rows: list[dict[str, object]] = []
    for name, (latitude, longitude) in TRAINING_NETWORKS.items():
        row, column = cells.index(*grid.lonlat_to_xy(np.array([longitude]), np.array([latitude])))
        angle = 2 * np.pi * column[0] / 3856
        place = {
            "row_9km": row[0] / 1624,
            "column_9km_sin": (np.sin(angle) + 1) / 2,
            "column_9km_cos": (np.cos(angle) + 1) / 2,
        }
        rows.append(
            {
                "what": "distance of a training network",
                "case": name,
                "distance": _apart(ensemble, place),
            }
        )
    return rows


def _apart(ensemble: Ensemble, known: dict[str, Any]) -> Any:
    """Distance with these normalised inputs, all others one standard deviation away."""
    statistics = statistics_of(ensemble)
    squares: Any = 0.0
    for place in statistics.distinct:
        value = known.get(statistics.features[place])
        mean, std = statistics.mean[place], statistics.std[place]
        squares = squares + (1.0 if value is None else ((np.clip(value, 0, 1) - mean) / std) ** 2)
    return np.sqrt(squares / len(statistics.distinct))


def _block_means(values: Any, side: int) -> Any:
    rows, columns = (size // side for size in values.shape)
    cut = values[: rows * side, : columns * side]
    return cut.reshape(rows, side, columns, side).mean(axis=(1, 3)).ravel()


def _real(ensemble: Ensemble) -> list[dict[str, object]]:
    """Distance of real backscatter (a flood in Spain) and of real terrain (north of Rome)."""
    import rasterio

    with rasterio.open(CHIP) as file:
        vv, vh = (_block_means(band.astype(np.float64), 10) for band in file.read())
    cases = {"backscatter, Spain, cells of 100 m": {"sigma0_vv": (vv + 30) / 35}}
    cases["backscatter, Spain, cells of 100 m"]["sigma0_vh"] = (vh + 35) / 35
    with rasterio.open(TERRAIN) as file:
        height, transform = file.read(1).astype(np.float64), file.transform
        latitude = np.deg2rad((file.bounds.top + file.bounds.bottom) / 2)
    north, east = np.gradient(
        height, -transform.e * 111_320, transform.a * 111_320 * np.cos(latitude)
    )
    aspect = np.arctan2(-east, north)
    for cells, side in (("100 m", 3), ("1 km", 33)):
        cases[f"terrain, Rome, cells of {cells}"] = {
            "aspect_sin": (_block_means(np.sin(aspect), side) + 1) / 2,
            "aspect_cos": (_block_means(np.cos(aspect), side) + 1) / 2,
            "slope": _block_means(np.degrees(np.arctan(np.hypot(north, east))), side) / 40,
            "elevation": _block_means(height, side) / 5500,
        }
    limit = xsoilsm.thresholds.get_thresholds().domain_distance
    rows: list[dict[str, object]] = []
    for case, known in cases.items():
        found = _apart(ensemble, known)
        found = found[np.isfinite(found)]
        row: dict[str, object] = {"what": "real, all else usual", "case": case}
        row |= {"samples": found.size, "distance": float(np.median(found))}
        row |= {"99 %": float(np.quantile(found, 0.99)), "beyond": float(np.mean(found > limit))}
        rows.append(row)
    return rows


def _spread_by_distance(ensemble: Ensemble, golden: Any) -> list[dict[str, object]]:
    found = distance(statistics_of(ensemble), golden["snapshot"].T)
    rows = []
    for low, high in pairwise(BINS):
        inside = (found >= low) & (found < high)
        rows.append(
            {
                "what": "spread of 256 artificial samples",
                "case": f"distance {low:g} to {high:g}",
                "samples": int(inside.sum()),
                "m3/m3": float(np.median(golden["std"][inside])),
            }
        )
    return rows


def _filled(ensemble: Ensemble, golden: Any) -> list[dict[str, object]]:
    """Change of the retrieval when steps of NDVI are filled linearly, or held at the end."""
    engine = Engine(ensemble, "cpu", 1)
    snapshot, series = golden["snapshot"].T.copy(), np.moveaxis(golden["series"], 0, -1).copy()
    before = engine.predict(snapshot, series)[0]
    mean = ensemble.contract.features.index("ndvi_mean")
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for count in (4, 8, 12, 16):
        for where, firsts in (("latest", [46 - count]), ("amid", rng.integers(1, 46 - count, 10))):
            changes = []
            for first in firsts:
                changed, inputs = series.copy(), snapshot.copy()
                left = changed[0, first - 1]
                right = left if where == "latest" else changed[0, first + count]
                weight = (np.arange(1, count + 1) / (count + 1))[:, None]
                changed[0, first : first + count] = left * (1 - weight) + right * weight
                inputs[mean] = changed[0].mean(axis=0)
                changes.append(engine.predict(inputs, changed)[0] - before)
            rows.append(
                {
                    "what": "change by filled steps, rms",
                    "case": f"{count} steps, {where}",
                    "m3/m3": float(np.sqrt(np.mean(np.square(changes)))),
                }
            )
    return rows


def _response(ensemble: Ensemble, golden: Any) -> list[dict[str, object]]:
    """Change of the retrieval when VV and VH rise by 1 dB, by NDVI."""
    engine = Engine(ensemble, "cpu", 1)
    snapshot, series = golden["snapshot"].T.copy(), np.moveaxis(golden["series"], 0, -1).copy()
    risen = snapshot.copy()
    risen[:2] += 1 / 35
    change = engine.predict(risen, series)[0] - engine.predict(snapshot, series)[0]
    ndvi = golden["in_ndvi"][:, -1]
    return [
        {
            "what": "response to 1 dB",
            "case": f"NDVI {low:g} to {high:g}",
            "samples": int(((ndvi >= low) & (ndvi < high)).sum()),
            "m3/m3": float(change[(ndvi >= low) & (ndvi < high)].mean()),
        }
        for low, high in ((-0.2, 0.4), (0.4, 0.7), (0.7, 1.0))
    ]


def _landscape(ensemble: Ensemble) -> list[dict[str, object]]:
    """Distances and flags on the virtual landscape; simulated, no statement on the real world."""
    rows: list[dict[str, object]] = []
    limit = xsoilsm.thresholds.get_thresholds().domain_distance
    for res in ("9km", "1km", "500m", "100m"):
        try:
            cube = xsoilsm.load_cube((-5.47, 41.25, -5.33, 41.35), "2020-04", res, "demo")
        except CatalogError as error:
            return [{"what": "landscape", "case": str(error)[:60]}]
        result = _retrieved(cube.isel(time=slice(0, 1)), domain=True).compute()
        found = result["domain_distance"].values
        found = found[np.isfinite(found)]
        row: dict[str, object] = {"what": "landscape (simulated)", "case": res}
        row |= {"samples": found.size, "distance": float(np.median(found))}
        row |= {"99 %": float(np.quantile(found, 0.99)), "beyond": float(np.mean(found > limit))}
        worst = domain_table(cube.isel(time=slice(0, 1)), ensemble).iloc[0]
        rows.append(row | {"most unusual": f"{worst['input']} ({worst['distance']:.1f})"})
    return rows


def _as_of(delay: int = 2) -> list[dict[str, object]]:
    """Compare retrievals some days after each acquisition with those of the archive."""
    box, res = (-5.47, 41.25, -5.33, 41.35), "1km"
    try:
        archive = xsoilsm.load_cube(box, "2020-04", res, "demo")
    except CatalogError:
        return []
    whole = _retrieved(archive).compute()
    changes = []
    for index, time in enumerate(archive["time"].values):
        then = time + np.timedelta64(delay, "D") + np.timedelta64(1, "m")
        day = str(time.astype("datetime64[D]"))
        cube = xsoilsm.load_cube(box, day, res, "demo", asof=then.astype("datetime64[s]"))
        found = _retrieved(cube)["soil_moisture"].isel(time=0).values
        changes.append(found - whole["soil_moisture"].isel(time=index).values)
    return [
        {
            "what": "change as of a moment, rms",
            "case": f"{delay} days after each acquisition, landscape (simulated)",
            "samples": int(np.isfinite(changes).sum()),
            "m3/m3": float(np.sqrt(np.nanmean(np.square(changes)))),
        }
    ]
