"""The exact area mean: errors against exactextract, CPU time against GDAL's average.

Every contestant decodes the same file, 10 m UTM pixels of two polarisations with deflate; the
ratio is to reading alone. Turns are interleaved within one run.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from itertools import product
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from benchmarks.timing import interleave
from tests.exact_cells import exact_cells
from xsoilsm.grid import ease2_geobox
from xsoilsm.regrid import accumulate, area_mean, finish, source_window

BLOCK = 2048
ENVIRONMENT = {"GDAL_CACHEMAX": 128, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
ZONE = "EPSG:32631"


def run(full: bool) -> list[dict[str, object]]:
    rows = [_exactness(lat, lon, res) for lat, lon, res in _cases()]
    pixels = 10_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        source = _box(45.0, 4.5, pixels)
        _write_scene(path, source)
        for res in ("1km", "100m"):
            rows += _speed(path, source, res, rounds=5 if full else 2)
    return rows


def _cases() -> list[tuple[float, float, str]]:
    return list(product((2.0, 45.0, 60.0, 70.0), (3.0, 5.95), ("1km", "100m")))


def _box(lat: float, lon: float, pixels: int) -> GeoBox:
    x, y = Transformer.from_crs("EPSG:4326", ZONE, always_xy=True).transform(lon, lat)
    left, top = round(x / 10 - pixels / 2) * 10, round(y / 10 + pixels / 2) * 10
    return GeoBox((pixels, pixels), Affine(10, 0, left, 0, -10, top), ZONE)


def _target(source: GeoBox, res: str) -> GeoBox:
    bounds = source.extent.to_crs("EPSG:4326").boundingbox
    return ease2_geobox((bounds.left, bounds.bottom, bounds.right, bounds.top), res)


def _speckle(pixels: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_gamma(4.4, (pixels, pixels)) * 0.02).astype(np.float32)


def _mean(values: np.ndarray, source: GeoBox, target: GeoBox) -> np.ndarray:
    total, weight = np.zeros((2, len(values), *target.shape))
    accumulate(values, source, target, total, weight)
    return finish(total, weight)[0]


def _exactness(lat: float, lon: float, res: str) -> dict[str, object]:
    source = _box(lat, lon, 2240 if res == "1km" else 230)
    target = _target(source, res)
    values = _speckle(source.shape[0], 0)
    expected, coverage = exact_cells(values, source, target)
    error = (_mean(values[None], source, target)[0] / expected - 1)[coverage > 1e-6]
    gdal = (_gdal_average(values, source, target) / expected - 1)[coverage > 0.999]
    return {
        "case": f"{lat:g} N, {abs(lon - 3):.3g} deg from the central meridian",
        "res": res,
        "cells": error.size,
        "relative rms": float(np.sqrt(np.mean(error**2))),
        "worst": float(np.abs(error).max()),
        "rms of GDAL, full cells": float(np.sqrt(np.nanmean(gdal**2))),
    }


def _gdal_average(values: np.ndarray, source: GeoBox, target: GeoBox) -> np.ndarray:
    found = np.full(target.shape, np.nan, dtype=np.float32)
    rasterio.warp.reproject(
        values,
        found,
        src_transform=source.affine,
        src_crs=ZONE,
        src_nodata=np.nan,
        dst_transform=target.affine,
        dst_crs="EPSG:6933",
        dst_nodata=np.nan,
        resampling=Resampling.average,
    )
    return found


def _write_scene(path: Path, source: GeoBox) -> None:
    profile = {
        "driver": "GTiff",
        "count": 2,
        "height": source.shape[0],
        "width": source.shape[1],
        "dtype": "float32",
        "crs": ZONE,
        "transform": source.affine,
        "nodata": np.nan,
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "interleave": "band",
    }
    piece = np.stack([_speckle(BLOCK, 0), _speckle(BLOCK, 1)])
    with rasterio.Env(**ENVIRONMENT), rasterio.open(path, "w", **profile) as file:
        for k, window in enumerate(_windows(source)):
            brightness = np.float32(1 + 0.1 * (k % 7))
            file.write(piece[:, : window.height, : window.width] * brightness, window=window)


def _windows(source: GeoBox) -> list[Window]:
    rows, columns = source.shape
    return [
        Window(c, r, min(BLOCK, columns - c), min(BLOCK, rows - r))
        for r in range(0, rows, BLOCK)
        for c in range(0, columns, BLOCK)
    ]


def _read(path: Path, row: int, column: int, height: int, width: int) -> np.ndarray:
    with rasterio.Env(**ENVIRONMENT), rasterio.open(path) as file:
        return file.read(window=Window(column, row, width, height))


def _lazy_scene(path: Path, source: GeoBox) -> xr.DataArray:
    def load(block_info: dict) -> np.ndarray:
        place = block_info[None]["array-location"]
        (r0, r1), (c0, c1) = place[1:]
        return _read(path, r0, c0, r1 - r0, c1 - c0)

    chunks = da.core.normalize_chunks((2, BLOCK, BLOCK), (2, *source.shape))
    data = da.map_blocks(load, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0, 0), "f4"))
    return xr.DataArray(data, xr_coords(source), ("band", "y", "x"))


def _speed(path: Path, source: GeoBox, res: str, rounds: int) -> list[dict[str, object]]:
    target = _target(source, res)
    rows, columns = source_window(source, target)
    assert (rows, columns) == (slice(0, source.shape[0]), slice(0, source.shape[1]))

    def read() -> None:
        for window in _windows(source):
            _read(path, window.row_off, window.col_off, window.height, window.width)

    def gdal() -> None:
        options = {
            "crs": "EPSG:6933",
            "transform": target.affine,
            "height": target.shape[0],
            "width": target.shape[1],
            "resampling": Resampling.average,
        }
        with (
            rasterio.Env(**ENVIRONMENT),
            rasterio.open(path) as file,
            WarpedVRT(file, **options) as warped,
        ):
            warped.read()

    def ours(transform: str | None = None) -> None:
        total, weight = np.zeros((2, 2, *target.shape))
        for w in _windows(source):
            values = _read(path, w.row_off, w.col_off, w.height, w.width)
            place = slice(w.row_off, w.row_off + w.height), slice(w.col_off, w.col_off + w.width)
            accumulate(
                values,
                source[place],
                target,
                total,
                weight,
                transform=transform,
                anchor=(w.row_off, w.col_off),
            )
        finish(total, weight)

    def lazy() -> None:
        dask.compute(*area_mean(_lazy_scene(path, source), target), num_workers=2)

    contestants = {
        "read alone": read,
        "GDAL average (WarpedVRT)": gdal,
        "exact, window by window": ours,
        "exact, mean of decibels": lambda: ours("db"),
        "exact, lazy area_mean": lazy,
    }
    seconds = interleave(contestants, rounds)
    extra = {}
    if sys.platform == "linux":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            extra["peak MB"] = pool.apply(_peak, (path, source, target))
    pixels = 2 * source.shape[0] * source.shape[1]
    base = seconds["read alone"]
    return [
        {
            "case": f"{name}, {source.shape[0]} x {source.shape[1]} x 2",
            "res": res,
            "CPU s": s,
            "to read": s / base,
            "to GDAL": s / seconds["GDAL average (WarpedVRT)"],
            "beyond read, ns/pixel/band": (s - base) / pixels * 1e9,
            **(extra if name.endswith("area_mean") else {}),
        }
        for name, s in seconds.items()
    ]


def _peak(path: Path, source: GeoBox, target: GeoBox) -> float:
    """Growth of the largest resident memory of a fresh process, kernel included, in MB."""

    def high_water() -> float:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

    mean, coverage = area_mean(_lazy_scene(path, source), target)
    before = high_water()
    dask.compute(mean, coverage, num_workers=2)
    return high_water() - before
