"""Step 7 of 7 (write): pixels, chunk by chunk, into scratch GeoTIFFs that prove themselves.

Computes lazy data of several files at once, so that what they share is computed once, and
holds no more of it than the chunks that are under way. A CRC-32 sum of each chunk is taken in
memory and compared with what the scratch file holds.
"""

from __future__ import annotations

import errno
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import numpy.typing as npt
import rasterio
import xarray as xr
from dask.base import compute
from dask.utils import get_scheduler_lock
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.windows import Window

from xsoilsm.raster import Raster

__all__ = [
    "BLOCK",
    "CHECKSUM",
    "Stage",
    "checksums",
    "explained",
    "fill",
    "gdal",
    "reason",
    "tiles",
]

BLOCK = 512
"""Side in pixels of the tiles of all files."""

CHECKSUM = "PIXELS_CRC32"
"""Tag of each band: CRC-32 of its pixels as little-endian bytes, tile after tile of 512 x 512
pixels (cropped at the edges), row by row, from the upper left."""

_CACHE_MB = 64
_STRIP = (BLOCK, 8 * BLOCK)  # rows and columns that are held at a time where no chunks are

Lock = AbstractContextManager[Any]


@dataclass(frozen=True)
class Stage:
    """A scratch file on its way to a final one.

    Parameters
    ----------
    raster : Raster
        What it will hold.
    path : Path
        The scratch file.
    target : Path
        The final file, for messages.
    """

    raster: Raster
    path: Path
    target: Path


class _Written(NamedTuple):
    """What went into a scratch file: a window of a band with the checksum of its pixels."""

    band: int
    window: Window
    crc: int


def fill(stages: Sequence[Stage]) -> None:
    """Make scratch files, compute all their pixels, and prove that they arrived.

    Computes.

    Parameters
    ----------
    stages : sequence of Stage

    Raises
    ------
    OSError
        When a file cannot be written, or holds other pixels than were computed. Errors of the
        computation itself pass unchanged.
    """
    for stage in stages:
        with explained(stage.target), gdal():
            _create(stage.path, stage.raster)
    for stage, written in zip(stages, _store(stages), strict=True):
        with explained(stage.target), gdal():
            _sign(stage.path, written)


def gdal() -> Lock:
    """GDAL with a small cache that neither looks for nor leaves files beside the file."""
    env: Lock = rasterio.Env(
        GDAL_CACHEMAX=_CACHE_MB,
        GDAL_PAM_ENABLED="NO",
        GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",
    )
    return env


@contextmanager
def explained(target: Path) -> Iterator[None]:
    """Say of errors in writing what they mean for `target`.

    Raises
    ------
    OSError
        Its class follows from the number of the cause, for instance ``PermissionError``.
    """
    try:
        yield
    except (RasterioError, OSError) as error:
        number = getattr(error, "errno", None) or errno.EIO
        msg = (
            f"cannot write {target}: {reason(error)}. Nothing was left behind; check that its "
            "folder may be written and that its disk has room, or choose another"
        )
        raise OSError(number, msg) from error


def reason(error: BaseException) -> str:
    """Text of an error, or of the one behind it where it only refers to that."""
    text = getattr(error, "strerror", None) or str(error)
    if "previous exception" in text and error.__cause__ is not None:
        return reason(error.__cause__)
    return str(text)


def checksums(file: rasterio.DatasetReader) -> tuple[list[str], bool]:
    """Checksum of each band as 8 hexadecimal digits, and whether all pixels are zero.

    Computes: reads the whole file, one tile at a time.
    """
    sums, empty = [0] * file.count, True
    for window in tiles(file):
        pixels = file.read(window=window)
        empty = empty and not pixels.any()
        sums = [_crc(band, crc) for band, crc in zip(pixels, sums, strict=True)]
    return [f"{crc:08x}" for crc in sums], empty


def tiles(file: rasterio.DatasetReader) -> Iterator[Window]:
    """Windows of the file's tiles, row by row."""
    for top, left in product(range(0, file.height, BLOCK), range(0, file.width, BLOCK)):
        yield Window(left, top, min(BLOCK, file.width - left), min(BLOCK, file.height - top))


def _create(path: Path, raster: Raster) -> None:
    """Make a scratch file with everything but the pixels."""
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=raster.geobox.shape[0],
        width=raster.geobox.shape[1],
        count=len(raster.bands),
        dtype=raster.dtype.name,
        crs=CRS.from_user_input(str(raster.geobox.crs)),
        transform=raster.geobox.affine,
        nodata=raster.nodata,
        tiled=True,
        blockxsize=BLOCK,
        blockysize=BLOCK,
        interleave="band",
        sparse_ok=True,
        bigtiff="IF_SAFER",
    ) as file:
        file.update_tags(TIFFTAG_SOFTWARE=f"xsoilsm {version('xsoilsm')}", **raster.tags)
        file.descriptions = [band.name for band in raster.bands]
        file.units = [band.units for band in raster.bands]
        file.scales = [band.scale for band in raster.bands]
        file.offsets = [band.offset for band in raster.bands]
        for index, band in enumerate(raster.bands, start=1):
            file.update_tags(index, **band.tags)


def _store(stages: Sequence[Stage]) -> list[list[_Written]]:
    """Compute all pixels and write them; all lazy bands share one computation."""
    written: list[list[_Written]] = [[] for _ in stages]
    lazy: list[da.Array] = []
    places: list[tuple[int, int, list[int], list[int]]] = []
    lock: Lock | None = None
    for number, stage in enumerate(stages):
        for index, band in enumerate(stage.raster.bands, start=1):
            save = partial(
                _save,
                path=str(stage.path),  # plain words only: this goes into the graph
                target=str(stage.target),
                band=index,
                dtype=stage.raster.dtype,
            )
            if band.pixels.chunks is None:
                written[number] += _save_strips(band.pixels, index, save)
                continue
            pixels = band.pixels.data
            if np.isnan(pixels.chunks[0] + pixels.chunks[1]).any():
                msg = f"{band.name} has chunks of unknown size; call .compute_chunk_sizes() first"
                raise ValueError(msg)
            lock = lock or get_scheduler_lock(pixels)
            rows, columns = (np.cumsum((0, *sizes)).tolist() for sizes in pixels.chunks)
            sums = da.map_blocks(
                _save_chunk,
                pixels,
                save=partial(save, lock=lock),
                rows=rows,
                columns=columns,
                chunks=tuple((1,) * len(sizes) for sizes in pixels.chunks),
                meta=np.empty((0, 0), np.uint32),
            )
            lazy.append(sums)
            places.append((number, index, rows, columns))
    for (number, index, rows, columns), sums in zip(places, compute(*lazy), strict=True):
        written[number] += [
            _Written(index, _window(rows, columns, place), int(crc))
            for place, crc in np.ndenumerate(sums)
        ]
    return written


def _save_strips(pixels: xr.DataArray, band: int, save: Callable[..., int]) -> list[_Written]:
    """Write pixels that are in memory, or that xarray reads from files on demand."""
    written = []
    for top, left in product(*(range(0, n, s) for n, s in zip(pixels.shape, _STRIP, strict=True))):
        strip = pixels[top : top + _STRIP[0], left : left + _STRIP[1]].to_numpy()
        window = Window(left, top, strip.shape[1], strip.shape[0])
        written.append(_Written(band, window, save(strip, window=window, lock=nullcontext())))
    return written


def _window(rows: list[int], columns: list[int], place: tuple[int, ...]) -> Window:
    i, j = place
    return Window(columns[j], rows[i], columns[j + 1] - columns[j], rows[i + 1] - rows[i])


def _save_chunk(
    pixels: npt.NDArray[Any],
    *,
    save: Callable[..., int],
    rows: list[int],
    columns: list[int],
    block_id: tuple[int, ...] = (0, 0),  # Dask sees the name and gives the chunk's place
) -> npt.NDArray[np.uint32]:
    """Write one chunk where it belongs; gives its checksum as an array (1, 1)."""
    return np.array([[save(pixels, window=_window(rows, columns, block_id))]], dtype=np.uint32)


def _save(
    pixels: npt.NDArray[Any],
    *,
    window: Window,
    lock: Lock,
    path: str,
    target: str,
    band: int,
    dtype: np.dtype[Any],
) -> int:
    """Write a window of one band of a scratch file; gives the checksum of its pixels."""
    pixels = np.ascontiguousarray(pixels, dtype=dtype)
    if dtype.kind == "f":  # NaN has many bit patterns, which depend on how it was computed
        pixels = np.where(np.isnan(pixels), dtype.type(np.nan), pixels)
    # Not with gdal(): the size of the cache is one for the process, and these are threads.
    with explained(Path(target)), lock, rasterio.Env(GDAL_PAM_ENABLED="NO"):
        with rasterio.open(path, "r+") as file:
            file.write(pixels, band, window=window)
    return _crc(pixels)


def _sign(path: Path, written: list[_Written]) -> None:
    """Compare a scratch file with what was computed, and leave the checksums in it."""
    with rasterio.open(path, "r+") as file:
        for band, window, crc in written:
            if _crc(file.read(band, window=window)) != crc:
                msg = f"band {band} differs from what was computed, at {window}"
                raise OSError(errno.EIO, msg)
        for band, checksum in enumerate(checksums(file)[0], start=1):
            file.update_tags(band, **{CHECKSUM: checksum})


def _crc(pixels: npt.NDArray[Any], start: int = 0) -> int:
    little_endian = pixels.astype(pixels.dtype.newbyteorder("<"), order="C", copy=False)
    return zlib.crc32(little_endian.data, start)
