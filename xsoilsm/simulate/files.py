"""Outside the seven steps (simulate): files of the landscape, the same bytes in every run.

Cloud-Optimized GeoTIFFs and Zarr stores in the forms in which the providers serve them. No file
holds a time of writing. Writes; reads nothing.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy.typing as npt
import rasterio
import rasterio.shutil
import xarray as xr
from affine import Affine
from rasterio.io import MemoryFile

__all__ = ["checksum", "write_cog", "write_json", "write_text", "write_zarr"]


def write_cog(
    path: Path,
    data: npt.NDArray[Any],
    transform: Affine,
    crs: str,
    *,
    nodata: float | None = None,
    predictor: str = "NO",
    level: int = 6,
) -> None:
    """Write one band as a Cloud-Optimized GeoTIFF.

    Overviews take the nearest pixel, as in many archives: averages of them have few looks.

    Parameters
    ----------
    path : Path
        Its folder is made.
    data : (y, x) ndarray
    transform : Affine
        From columns and rows to coordinates.
    crs : str
        Anything that GDAL understands, WKT included.
    nodata : float, optional
        None declares none.
    predictor : {"NO", "STANDARD", "FLOATING_POINT"}
    level : int, default 6
        Of deflate, 1 (fast) to 9 (small).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = data.shape
    options = {
        "COMPRESS": "DEFLATE",
        "LEVEL": str(level),
        "PREDICTOR": predictor,
        "BLOCKSIZE": "512",
        "OVERVIEW_RESAMPLING": "NEAREST",
        "NUM_THREADS": "1",
    }
    with rasterio.Env(GDAL_NUM_THREADS="1"), MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            height=height,
            width=width,
            count=1,
            dtype=data.dtype.name,
            crs=_crs(crs),
            transform=transform,
            nodata=nodata,
        ) as target:
            target.write(data, 1)
        with memory.open() as source:
            rasterio.shutil.copy(source, str(path), driver="COG", **options)


@lru_cache(maxsize=16)
def _crs(crs: str) -> rasterio.CRS:
    """Parse a coordinate reference system once."""
    return rasterio.CRS.from_user_input(crs)


def write_zarr(path: Path, dataset: xr.Dataset) -> None:
    """Write a dataset as one consolidated Zarr store, version 2 as `era5-pds`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.to_zarr(path, mode="w-", zarr_format=2, consolidated=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON that holds no NaN."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text with plain line ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="\n")


def checksum(path: Path) -> str:
    """MD5 of a file as hexadecimal digits, as the `sentinel-1-rtc` items give it."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
