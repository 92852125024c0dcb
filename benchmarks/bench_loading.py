"""`load_cube` from end to end: CPU time over reading the same pixels, and tasks in the graph.

A terrain-corrected scene of 10 m pixels and two polarisations, each in a file of its own with
deflate, is loaded as a user would load it, on one thread: search, graph, reading, conversion to
sigma nought in dB, area means, flags, for which the slope of the terrain is read as well. The
ratio is to reading both files alone, window by window.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import rasterio
import xarray as xr
from affine import Affine
from dask.array.optimization import optimize
from dask.core import flatten
from pyproj import Transformer
from rasterio.windows import Window

from benchmarks.timing import interleave
from tests.sources_world import UTM, World, annotation, height_of, ndvi_of, rain_of, temperature_of
from xsoilsm import load_cube, periods
from xsoilsm.sources.pixels import edges

BLOCK = 2048
FORMS = ("rtc-flat", "rtc-slope")
CENTRE = (5.0, 43.5)
RADAR = ("sigma0_vv", "sigma0_vh", "incidence_angle", "coverage", "source_flags")
STATIC = ("sand", "clay", "bulk_density", "elevation", "slope", "aspect_sin", "aspect_cos")
GOAL = {"1km": 1.6}


def run(full: bool, pixels: int = 10_000, rounds: int | None = None) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        files, catalogs, region = _write(Path(folder), pixels)
        rows = [
            row
            for res in ("1km", "100m")
            for row in _speed(files, catalogs, region, res, rounds or (5 if full else 2))
        ]
        return rows + [_tasks(catalogs["rtc-slope"], region, res) for res in ("1km", "100m")]


def _write(
    folder: Path, pixels: int
) -> tuple[tuple[Path, Path], dict[str, Path], tuple[float, float, float, float]]:
    """Write a scene and everything else that a cube needs around it."""
    x, y = Transformer.from_crs("EPSG:4326", UTM, always_xy=True).transform(*CENTRE)
    west, north = round(x / 10 - pixels / 2) * 10, round(y / 10 + pixels / 2) * 10
    corner = Affine(10, 0, west, 0, -10, north)
    back = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
    bounds = back.transform_bounds(west, north - 10 * pixels, west + 10 * pixels, north)
    world = World(folder)
    files = folder / "vv.tif", folder / "vh.tif"
    for seed, file in enumerate(files):
        _write_band(file, pixels, corner, seed)
    product = folder / "grd" / "annotation" / "iw-vv.xml"
    product.parent.mkdir(parents=True)
    lon = np.linspace(bounds[0] - 0.5, bounds[2] + 0.5, 21)
    lat = np.linspace(bounds[1] - 0.1, bounds[3] + 0.1, 10)
    product.write_text(annotation(lon, lat))
    stated = {
        "datetime": "2020-06-03T17:40:00Z",
        "platform": "SENTINEL-1A",
        "sat:absolute_orbit": 33000,
        "sat:relative_orbit": 59,
        "sat:orbit_state": "ascending",
        "sar:polarizations": ["VV", "VH"],
    }
    assets = {name: {"href": str(file)} for name, file in zip(("vv", "vh"), files, strict=True)}
    link = {"rel": "derived_from", "href": "../sentinel-1-grd/scene.json"}
    world.add("sentinel-1-rtc", "scene_rtc", bounds, stated, assets, [link])
    grd = {"vv": {"href": str(folder / "grd" / "measurement" / "iw-vv.tiff")}}
    world.add("sentinel-1-grd", "scene", bounds, stated, grd)
    for start in periods.period_starts("2019-06-01", "2020-06-30").tolist():
        world.ndvi(start, ndvi_of(start))
    for month in np.arange("2019-06", "2020-07", dtype="datetime64[M]"):
        world.weather(str(month), temperature_of, rain_of)
    around = (bounds[0] - 0.05, bounds[1] - 0.05, bounds[2] + 0.05, bounds[3] + 0.05)
    world.dem(height_of, tuple(round(v * 3600) / 3600 for v in around))
    world.soil()
    world.write()
    catalogs = {}
    for form in FORMS:
        content = world.catalog_file().read_text()
        catalogs[form] = folder / f"{form}.yaml"
        catalogs[form].write_text(content.replace("rtc-flat", form))
    return files, catalogs, bounds


def _write_band(path: Path, pixels: int, corner: Affine, seed: int) -> None:
    profile = {
        "driver": "GTiff",
        "count": 1,
        "height": pixels,
        "width": pixels,
        "dtype": "float32",
        "crs": UTM,
        "transform": corner,
        "nodata": -32768.0,
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
    }
    rng = np.random.default_rng(seed)
    piece = (rng.standard_gamma(4.4, (BLOCK, BLOCK)) * 0.02).astype(np.float32)
    with rasterio.open(path, "w", **profile) as file:
        for window in _windows(pixels):
            file.write(piece[: window.height, : window.width], 1, window=window)


def _windows(pixels: int) -> list[Window]:
    starts = range(0, pixels, BLOCK)
    return [
        Window(c, r, min(BLOCK, pixels - c), min(BLOCK, pixels - r)) for r in starts for c in starts
    ]


def _read(files: tuple[Path, Path], pixels: int) -> None:
    with rasterio.open(files[0]) as vv, rasterio.open(files[1]) as vh:
        for window in _windows(pixels):
            vv.read(1, window=window)
            vh.read(1, window=window)


def _load(catalog: Path, region: Any, res: str, names: tuple[str, ...] = RADAR) -> xr.Dataset:
    edges.forget()
    cube = load_cube(region, "2020-06-03", res, catalog)
    with dask.config.set(scheduler="synchronous"):
        return cube[list(names)].compute()


def _speed(
    files: tuple[Path, Path], catalogs: dict[str, Path], region: Any, res: str, rounds: int
) -> list[dict[str, object]]:
    with rasterio.open(files[0]) as file:
        pixels = file.width
    contestants: dict[str, Callable[[], object]] = {
        "read alone": partial(_read, files, pixels),
        **{f"load_cube, {form}": partial(_load, catalogs[form], region, res) for form in FORMS},
        "of it the terrain": partial(_load, catalogs["rtc-flat"], region, res, ("slope",)),
    }
    seconds = interleave(contestants, rounds)
    base = seconds["read alone"]
    return [
        {
            "case": f"{name}, {pixels} x {pixels} x 2",
            "res": res,
            "CPU s": s,
            "to read": s / base,
            "goal": GOAL.get(res, "") if name == "load_cube, rtc-flat" else "",
            "beyond read, ns/pixel/band": (s - base) / (2 * pixels**2) * 1e9,
        }
        for name, s in seconds.items()
    ]


def _tasks(catalog: Path, region: Any, res: str) -> dict[str, object]:
    """Tasks that a function of all variables needs, for each chunk and acquisition."""
    cube = load_cube(region, "2020-06-03", res, catalog)
    pairs: list[Any] = []
    for name in RADAR:
        pairs += [cube[name].data, "tyx"]
    for name in STATIC:
        pairs += [cube[name].data, "yx"]
    result = da.blockwise(
        lambda *blocks: blocks[0], "tyx", *pairs, dtype=np.float32, meta=np.empty((0, 0, 0), "f4")
    )
    graph = dict(optimize(result.__dask_graph__(), list(flatten(result.__dask_keys__()))))
    chunks = cube.sigma0_vv.data.npartitions
    kinds = Counter(str(key[0]).split("-")[0] for key in graph)
    radar = kinds["sentinel1"] + kinds["lambda"]
    return {
        "case": f"tasks, {chunks} chunks of one acquisition",
        "res": res,
        "tasks per chunk": len(graph) / chunks,
        "of them per acquisition": radar / chunks,
    }
