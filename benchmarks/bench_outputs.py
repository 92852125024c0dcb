"""Outputs of a map: peak memory and time for one area and for 16 times as much.

Each writer runs in a process of its own, whose high-water mark is the figure; the ratio is to the
smaller area. Tiles of 512 x 512 cells at 100 m hold smooth fields with noise.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

from xsoilsm.cog import write_cog
from xsoilsm.cube import spatial_coords
from xsoilsm.grid import Tile, get_grid, tiles
from xsoilsm.outputs.pieces import Acquisition, Piece
from xsoilsm.quality import flag_attributes

SIZE = 512
ROW, COLUMN = 58 * SIZE, 332 * SIZE

_CHILD = """
import json, sys, time
from pathlib import Path
from benchmarks.bench_outputs import pieces_in
folder, kind, numbers = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
from xsoilsm.outputs.mosaic import write_mosaics
from xsoilsm.outputs.netcdf import write_netcdf
from xsoilsm.outputs.store import write_zarr
pieces = pieces_in(folder / "tiles")
start = time.perf_counter()
if kind == "mosaic":
    write_mosaics(pieces, folder / "mosaics", numbers=numbers)
elif kind == "netcdf":
    write_netcdf(pieces, folder / "map.nc", numbers=numbers)
else:
    write_zarr(pieces, folder / "map.zarr", numbers=numbers)
seconds = time.perf_counter() - start
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([seconds, int(status["VmHWM"].split()[0]) / 1024]))
"""


def run(full: bool) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    side = 2400 if full else 1200
    with tempfile.TemporaryDirectory() as place:
        for factor in (1, 4):
            _write_tiles(Path(place, f"{factor}"), side * factor)
        for kind, numbers in (
            ("mosaic", "float32"),
            ("mosaic", "int16"),
            ("zarr", "float32"),
            ("netcdf", "float32"),
        ):
            found = {f: _measure(Path(place, f"{f}"), kind, numbers) for f in (1, 4)}
            for factor, (seconds, megabytes) in found.items():
                rows.append(
                    {
                        "output": f"{kind} {numbers}",
                        "area": f"{factor**2}x",
                        "cells": (side * factor) ** 2,
                        "s": seconds,
                        "peak MB": megabytes,
                        "ratio": megabytes / found[1][1],
                    }
                )
    return rows


def pieces_in(folder: Path) -> list[Piece]:
    """All tiles below a folder, by their names."""
    acquisition = Acquisition("one", np.datetime64("2020-04-05T06:20:04"))
    pieces = []
    for path in sorted(folder.glob("*/*.tif")):
        r0, r1, c0, c1 = (int(n) for n in path.parent.name.split("-"))
        box = get_grid("100m").geobox((r0, r1), (c0, c1))
        pieces.append(Piece(path, box, path.stem, acquisition))
    return pieces


def _write_tiles(folder: Path, side: int) -> None:
    grid = get_grid("100m")
    for tile in tiles(grid.geobox((ROW, ROW + side), (COLUMN, COLUMN + side)), SIZE):
        for name, data in _fields(tile).items():
            place = spatial_coords(tile.geobox)
            about = flag_attributes() if data.dtype == np.uint32 else {"units": "m3 m-3"}
            layer = xr.DataArray(data, place, ("y", "x"), name, about)
            r0 = round((grid.top(0) - tile.geobox.affine.f) / grid.cell)
            c0 = round((tile.geobox.affine.c - grid.left(0)) / grid.cell)
            rows, columns = tile.geobox.shape
            where = f"{r0}-{r0 + rows}-{c0}-{c0 + columns}"
            write_cog(layer, folder / "tiles" / where / f"{name}.tif")


def _fields(tile: Tile) -> dict[str, np.ndarray]:
    rng = np.random.default_rng((tile.row, tile.column))
    y, x = np.indices(tile.geobox.shape, np.float32) / 100
    smooth = 0.25 + 0.1 * np.sin(y) * np.cos(x)
    noise = 0.01 * rng.standard_normal(tile.geobox.shape, np.float32)
    flags = np.where(smooth > 0.3, np.uint32(32), np.uint32(0))
    return {"soil_moisture": (smooth + noise).astype(np.float32), "quality_flag": flags}


def _measure(folder: Path, kind: str, numbers: str) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder), kind, numbers],
        check=True,
        capture_output=True,
        text=True,
    )
    for made in ("mosaics", "map.zarr"):
        shutil.rmtree(folder / made, ignore_errors=True)
    (folder / "map.nc").unlink(missing_ok=True)
    seconds, megabytes = (float(v) for v in done.stdout.strip().strip("[]").split(","))
    return seconds, megabytes
