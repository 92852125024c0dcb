"""Step 3 of 7 (load): blocks of files at the edges of windows, kept for the windows beside them.

Files are compressed block by block. A window that ends inside a block needs it fetched and
decoded whole, and so does the window on the other side: of a neighbouring chunk, of another tile
of a map. What was decoded is kept in memory, up to 64 MB in a process.

A kept block is known by the file and by where in the file it lies compressed. A file on this
machine is another one when its time, its size or its number differ.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.windows import Window

from xsoilsm.sources.access.kept import Kept

__all__ = ["forget", "identity", "read_window"]

LIMIT = 64_000_000
"""Bytes that are kept."""

_LEAST = 64  # pixels along a block; strips of a whole row are no blocks that windows share
_OVERLAP = 256  # pixels by which windows of chunks overlap that lie askew, at most
_kept = Kept(LIMIT)

Array = npt.NDArray[Any]


def forget() -> None:
    """Drop all blocks that this process keeps."""
    _kept.clear()


def identity(href: str, link: str) -> Hashable:
    """Tell what a file is, so that what was read of it may be used again.

    Parameters
    ----------
    href : str
        As the item has it.
    link : str
        Address or path that is opened; a signature after a question mark does not count.

    Returns
    -------
    hashable
        None where it cannot be told.
    """
    if "://" in link:
        return None if link.startswith("file://") else (href, link.partition("?")[0])
    try:
        state = Path(link).stat()
    except OSError:
        return None
    return os.path.realpath(link), state.st_ino, state.st_mtime_ns, state.st_size


def read_window(file: Any, known: Hashable, window: Window) -> Array:
    """Read a window of the first band. Computes.

    Parameters
    ----------
    file : rasterio.DatasetReader
    known : hashable
        What `identity` told of it when it was opened; None keeps nothing.
    window : Window

    Returns
    -------
    (y, x) ndarray
        Stored numbers.

    Raises
    ------
    rasterio.errors.RasterioIOError
        When reading failed.
    """
    height, width = file.block_shapes[0]
    if known is None or min(height, width) < _LEAST or file.compression is None:
        values: Array = file.read(1, window=window)
        return values
    rows = _spans(window.row_off, window.height, height, file.height)
    columns = _spans(window.col_off, window.width, width, file.width)
    edges = {
        (row, column): _key(file, known, row.index, column.index)
        for row in rows
        for column in columns
        if row.shared or column.shared
    }
    kept = {place: _kept.get(key) for place, key in edges.items()}
    result = np.empty((window.height, window.width), dtype=file.dtypes[0])
    corner = window.row_off, window.col_off
    missing = [(r, c) for r in rows for c in columns if kept.get((r, c)) is None]
    if missing:
        # All that is missing in one go, and over a network in few requests.
        down = slice(min(r.start for r, _ in missing), max(r.stop for r, _ in missing))
        across = slice(min(c.start for _, c in missing), max(c.stop for _, c in missing))
        part = _part(result, corner, down, across)
        file.read(1, window=Window.from_slices(down, across), out=part)
    for (row, column), key in edges.items():
        block = kept[row, column]
        part = _part(result, corner, row, column)
        if block is not None:
            part[:] = _part(block, (row.index * height, column.index * width), row, column)
            continue
        if row.whole and column.whole:
            block = part.copy()
        else:  # GDAL still has it decoded
            block = file.read(1, window=file.block_window(1, row.index, column.index))
        _kept.put(key, block, block.nbytes)
    return result


@dataclass(frozen=True)
class _Span:
    """What a window has of a row or column of blocks.

    Parameters
    ----------
    index : int
        Of the row or column of blocks.
    start, stop : int
        Pixels of the file.
    whole : bool
        The window has all pixels.
    shared : bool
        A window beside this one needs it, too.
    """

    index: int
    start: int
    stop: int
    whole: bool
    shared: bool


def _spans(start: int, length: int, block: int, end: int) -> list[_Span]:
    stop = start + length
    # What lies between is this window's alone.
    inner = (
        start + _OVERLAP * (start % block > 0),
        stop - _OVERLAP * (stop % block > 0 and stop < end),
    )
    spans = []
    for index in range(start // block, (stop - 1) // block + 1):
        top, bottom = index * block, min((index + 1) * block, end)
        whole = start <= top and bottom <= stop
        shared = top < inner[0] or bottom > inner[1]
        spans.append(_Span(index, max(top, start), min(bottom, stop), whole, shared))
    return spans


def _part(
    values: Array, corner: tuple[int, int], rows: slice | _Span, columns: slice | _Span
) -> Array:
    """View of some rows and columns of the file in values that begin at a corner."""
    top, left = corner
    return values[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def _key(file: Any, known: Hashable, row: int, column: int) -> Hashable:
    """Name a block; in a GeoTIFF by its place and its length, which change when it does."""
    tags = f"BLOCK_OFFSET_{column}_{row}", f"BLOCK_SIZE_{column}_{row}"
    return known, row, column, *(file.get_tag_item(tag, "TIFF", bidx=1) for tag in tags)
