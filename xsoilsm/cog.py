"""Step 7 of 7 (write): Cloud-Optimized GeoTIFFs, streamed, verified, never half a file.

Pixels go chunk by chunk into a tiled scratch file in the same folder, from which GDAL makes a
Cloud-Optimized GeoTIFF (COG). Each step is proved against the one before it with CRC-32 sums:
chunks in memory, scratch file, COG. Only then the COG takes its final name, so a file under
that name is whole, whatever interrupts the writing. The sums stay in the file, where
`verify_cog` finds them later.

Format: OGC 21-026, Cloud Optimized GeoTIFF; GDAL's driver ``COG``.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Literal

import rasterio
import rasterio.shutil
import xarray as xr
from rio_cogeo.cogeo import cog_validate

from xsoilsm.raster import Raster, raster_of
from xsoilsm.staging import BLOCK, CHECKSUM, Stage, checksums, explained, fill, gdal, reason, tiles

__all__ = ["verify_cog", "write_cog", "write_cogs"]

Overviews = Literal["average", "mode", "nearest"]


def write_cog(
    data: xr.DataArray | xr.Dataset,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    overviews: Overviews | None = None,
) -> Path:
    """Write a raster as one Cloud-Optimized GeoTIFF.

    Computes, chunk by chunk: memory is bounded by the chunks that Dask holds at a time, not by
    the size of the raster. The folder of `path` needs room for the uncompressed pixels once,
    beside the result.

    Parameters
    ----------
    data : DataArray (y, x), DataArray (band, y, x) or Dataset of variables (y, x)
        Eager or Dask-backed. A Dataset becomes one band per variable, and all must have one
        data type: write ``quality_flag`` to a file of its own. Attributes and coordinates
        without dims become tags of the file, the attributes of each variable tags of its band;
        ``units`` become the band's units.
        The place comes from a CRS coordinate such as ``spatial_ref``, or from x and y where
        these are cell centres of an EASE-Grid 2.0 grid.
    path : path
        Usually ends in ``.tif``. Missing folders are made.
    overwrite : bool, default False
        Replace an existing file, at the very end and in one step.
    overviews : {"average", "mode", "nearest"}, optional
        How the coarser levels are made. By default floats are averaged over valid pixels, and
        integers (flags, classes) take the most frequent value.

    Returns
    -------
    Path
        The file, complete and verified.

    Raises
    ------
    FileExistsError
        When `path` exists and `overwrite` is false.
    OSError
        When the folder cannot be written, the disk is full, or what was read back differs from
        what was computed. Nothing is left behind, and an older file stays as it was.
    TypeError, ValueError
        When `data` is no raster of one data type with a known place.

    Notes
    -----
    Missing values: NaN in floats; in integers the attribute ``_FillValue`` if there is one. The
    same pixels and attributes give the same bytes, whatever the chunks and whenever. A process
    that is killed leaves a folder ``.NAME-...`` beside the place of the file; delete it.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import xsoilsm
    >>> box = xsoilsm.ease2_geobox((-5.6, 41.1, -5.2, 41.5), "1km")
    >>> y, x = (axis.values for axis in box.coords.values())
    >>> field = xr.DataArray(np.zeros(box.shape), {"y": y, "x": x}, name="soil_moisture")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_cog(field, f"{folder}/map.tif").name
    'map.tif'
    """
    return write_cogs({Path(path): data}, overwrite=overwrite, overviews=overviews)[0]


def write_cogs(
    files: Mapping[Path, xr.DataArray | xr.Dataset],
    *,
    overwrite: bool = False,
    overviews: Overviews | None = None,
) -> list[Path]:
    """Write several rasters as Cloud-Optimized GeoTIFFs that share one computation.

    Computes everything together, so that what the files have in common is loaded and computed
    once. The folders need room for the uncompressed pixels of all files. Each file takes its
    name when it is complete; an interrupt leaves those that were.

    Parameters
    ----------
    files : mapping of Path to DataArray or Dataset
        What `write_cog` takes, by the name of its file.
    overwrite : bool, default False
        Replace existing files.
    overviews : {"average", "mode", "nearest"}, optional
        For all files, see `write_cog`.

    Returns
    -------
    list of Path
        The files, complete and verified, in the order of `files`.

    Raises
    ------
    FileExistsError
        When one of the files exists and `overwrite` is false; nothing is computed.
    OSError, TypeError, ValueError
        As `write_cog`.
    """
    rasters = {Path(target): raster_of(data) for target, data in files.items()}
    for target in rasters:
        _check_name(target, overwrite)
    with ExitStack() as scratch:
        stages: list[Stage] = []
        for target, raster in rasters.items():
            with explained(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                _check_room(target.parent, rasters)
                folder = scratch.enter_context(
                    tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent)
                )
            stages.append(Stage(raster, Path(folder, "stage.tif"), target))
        fill(stages)
        for stage in stages:
            _finish(stage, overwrite, overviews)
    return list(rasters)


def verify_cog(path: str | os.PathLike[str]) -> None:
    """Read a whole Cloud-Optimized GeoTIFF and make sure that nothing in it is damaged.

    Computes: reads every tile of every level, one at a time.

    Parameters
    ----------
    path : path

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    OSError
        When the file is truncated or damaged, is no Cloud-Optimized GeoTIFF, or its pixels
        differ from the checksum that `write_cog` left in it. A file without checksum is also
        refused when all its pixels are zero, which is what a failed writer leaves.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"there is no file {path}"
        raise FileNotFoundError(errno.ENOENT, msg)
    try:
        with gdal():
            valid, faults, _ = cog_validate(path, quiet=True)
            faults = [] if valid else ["no Cloud-Optimized GeoTIFF: " + "; ".join(faults)]
            faults += _faulty_pixels(path)
    except Exception as error:  # readers fail in many ways on a damaged file
        faults = [f"damaged or no GeoTIFF: {reason(error)}"]
        cause: Exception | None = error
    else:
        cause = None
    if faults:
        msg = f"{path} is not whole ({'; '.join(faults)}); delete it and write it again"
        raise OSError(errno.EIO, msg) from cause


def _finish(stage: Stage, overwrite: bool, overviews: Overviews | None) -> None:
    """Make the file from its scratch file, prove it, and give it its name."""
    cog = stage.path.with_name("cog.tif")
    default = "average" if stage.raster.dtype.kind == "f" else "mode"
    with explained(stage.target), gdal():
        _make_cog(stage.path, cog, overviews or default)
        _compare(stage.path, cog)
        _sync(cog)
    _check_name(stage.target, overwrite)
    os.replace(cog, stage.target)
    stage.path.unlink()
    for sidecar in (".aux.xml", ".ovr"):  # these described the older file
        stage.target.with_name(stage.target.name + sidecar).unlink(missing_ok=True)
    _sync(stage.target.parent)


def _check_name(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        msg = f"{target} is a folder; expected the name of a file"
        raise IsADirectoryError(errno.EISDIR, msg)
    if target.exists() and not overwrite:
        msg = f"{target} exists; choose another name or pass overwrite=True"
        raise FileExistsError(errno.EEXIST, msg)


def _check_room(folder: Path, rasters: Mapping[Path, Raster]) -> None:
    """Refuse at once what cannot end well; a full disk can still come up later."""
    needed = sum(
        raster.dtype.itemsize * len(raster.bands) * prod(raster.geobox.shape)
        for target, raster in rasters.items()
        if target.parent == folder
    )
    free = shutil.disk_usage(folder).free
    if free < needed:
        msg = f"{needed / 1e6:.0f} MB are needed there, {free / 1e6:.0f} MB are free"
        raise OSError(errno.ENOSPC, msg)


def _make_cog(stage: Path, cog: Path, overviews: str) -> None:
    try:
        rasterio.shutil.copy(
            stage,
            cog,
            driver="COG",
            BLOCKSIZE=BLOCK,
            COMPRESS="DEFLATE",
            LEVEL=3,  # 1.6 times as fast as the usual 6 and under 1 % larger
            PREDICTOR="YES",
            OVERVIEWS="IGNORE_EXISTING",
            OVERVIEW_RESAMPLING=overviews.upper(),
            BIGTIFF="IF_SAFER",
            NUM_THREADS="ALL_CPUS",
        )
    except Exception as error:  # GDAL's own classes or SystemError, by where it fails
        raise OSError(errno.EIO, reason(error)) from error


def _compare(stage: Path, cog: Path) -> None:
    """Make sure that the finished file says what the scratch file says."""
    verify_cog(cog)
    same = ("shape", "count", "dtypes", "crs", "transform", "nodatavals", "descriptions", "units")
    with rasterio.open(stage) as one, rasterio.open(cog) as other:
        differences = [
            f"{what} {getattr(other, what)} instead of {getattr(one, what)}"
            for what in (*same, "scales", "offsets")
            if repr(getattr(one, what)) != repr(getattr(other, what))
        ]
        for index in range(one.count + 1):
            differences += map(str, one.tags(index).items() - other.tags(index).items())
    if differences:
        msg = f"read back with {'; '.join(differences)}"
        raise OSError(errno.EIO, msg)


def _faulty_pixels(path: Path) -> list[str]:
    """Read all tiles of all levels; say which bands are not what was written."""
    with rasterio.open(path) as file:
        sums, empty = checksums(file)
        stored = [file.tags(band + 1).get(CHECKSUM) for band in range(file.count)]
        levels = len(file.overviews(1))
    for level in range(levels):
        with rasterio.open(path, overview_level=level) as file:
            for window in tiles(file):
                file.read(window=window)
    if empty and None in stored:
        return ["nothing but zeros and no checksum, as a failed writer leaves them"]
    return [
        f"band {band} has the checksum {found}, expected {expected}"
        for band, (found, expected) in enumerate(zip(sums, stored, strict=True), start=1)
        if expected not in (None, found)
    ]


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, has reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
