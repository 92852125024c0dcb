"""Step 7 of 7 (write): the pieces of a map: one variable of one acquisition on one tile.

The outputs know nothing of how the tiles came about. A list of pieces says which file holds
which part of which acquisition, and what is to be said of a part that has no file.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from xsoilsm import grid
from xsoilsm.products import PRODUCTS
from xsoilsm.quality import QualityFlag
from xsoilsm.staging import CHECKSUM, checksums, reason

__all__ = ["Acquisition", "InputItem", "Piece", "Place", "by_acquisition", "region_of"]


@dataclass(frozen=True, order=True)
class InputItem:
    """An item that went into a result.

    Parameters
    ----------
    id : str
    href : str
        Address of the item's JSON document, where it has one.
    collection : str
    """

    id: str
    href: str = ""
    collection: str = ""


@dataclass(frozen=True)
class Acquisition:
    """One acquisition, or one composite of several.

    Parameters
    ----------
    id : str
        Unique within a map.
    start : datetime64
        Time of the acquisition, or first instant of the composite, UTC.
    end : datetime64, optional
        First instant after the composite; None for an acquisition.
    period : str
        Length of the composite as an ISO 8601 duration (``"P1D"``, ``"P8D"``, ``"P1M"``).
    platform, orbit_state : str
        As in a cube, for instance ``"sentinel-1a"`` and ``"descending"``; empty where unknown.
    relative_orbit : int, optional
    items : tuple of InputItem
        What it was made of.

    Raises
    ------
    ValueError
        When there is no identifier, or a composite ends before it starts or lacks its period.
    """

    id: str
    start: np.datetime64
    end: np.datetime64 | None = None
    period: str = ""
    platform: str = ""
    orbit_state: str = ""
    relative_orbit: int | None = None
    items: tuple[InputItem, ...] = ()

    def __post_init__(self) -> None:
        if not self.id or np.isnat(self.start):
            msg = f"an acquisition needs an id and a start, found {self.id!r} and {self.start}"
            raise ValueError(msg)
        if (self.end is None) != (not self.period):
            msg = f"{self.id}: `end` and `period` are given together, for a composite, or not"
            raise ValueError(msg)
        if self.end is not None and not self.end > self.start:
            msg = f"{self.id} ends at {self.end}, which is not after its start {self.start}"
            raise ValueError(msg)


@dataclass(frozen=True)
class Piece:
    """One variable of one acquisition on one tile.

    Parameters
    ----------
    path : Path, optional
        GeoTIFF of one band, written by `xsoilsm.write_cog`. None for a tile that could not be
        made: its cells are missing values, and `flag` is their quality flag.
    geobox : GeoBox
        Cells of the tile, on an EASE-Grid 2.0 grid.
    variable : str
    acquisition : Acquisition
    flag : int, default QualityFlag.READ_FAILED
        Quality flag of all cells of a tile without a file.
    """

    path: Path | None
    geobox: GeoBox
    variable: str
    acquisition: Acquisition
    flag: int = int(QualityFlag.READ_FAILED)


@dataclass(frozen=True, order=True)
class Place:
    """A block of cells, by numbers on the global grid.

    Parameters
    ----------
    resolution : str
    top, bottom, left, right : int
        Half-open ranges of rows and of columns.
    """

    resolution: str
    top: int
    bottom: int
    left: int
    right: int

    @classmethod
    def of(cls, geobox: GeoBox) -> Place:
        """Place of a GeoBox.

        Raises
        ------
        ValueError
            When it is off the grids.
        """
        cells, rows, columns = grid.grid_of(geobox)
        return cls(cells.name, *rows, *columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return self.bottom - self.top, self.right - self.left

    @property
    def geobox(self) -> GeoBox:
        """The cells with their exact coordinates."""
        return grid.get_grid(self.resolution).geobox(
            (self.top, self.bottom), (self.left, self.right)
        )


def by_acquisition(pieces: Iterable[Piece]) -> dict[Acquisition, dict[str, list[Piece]]]:
    """Sort pieces by acquisition (in time), variable and place.

    Lazy: reads nothing.

    Parameters
    ----------
    pieces : iterable of Piece
        In any order.

    Returns
    -------
    dict of Acquisition to dict of str to list of Piece

    Raises
    ------
    ValueError
        When there are none, or two acquisitions share an identifier.
    """
    groups: dict[str, dict[str, list[Piece]]] = {}
    known: dict[str, Acquisition] = {}
    for piece in pieces:
        one = piece.acquisition
        # Comparing by identity first spares reading long lists of items for every piece.
        if known.setdefault(one.id, one) is not one and known[one.id] != one:
            msg = (
                f"the tiles of {one.id} say different things of their acquisition; give all of "
                "them one Acquisition"
            )
            raise ValueError(msg)
        groups.setdefault(one.id, {}).setdefault(piece.variable, []).append(piece)
    if not groups:
        msg = "no tiles were given; expected at least one"
        raise ValueError(msg)
    ordered = sorted(known.values(), key=lambda acquisition: (acquisition.start, acquisition.id))
    return {
        acquisition: {
            variable: sorted(group[variable], key=lambda piece: Place.of(piece.geobox))
            for variable in sorted(group, key=_rank)
        }
        for acquisition, group in ((one, groups[one.id]) for one in ordered)
    }


def _rank(variable: str) -> tuple[int, str]:
    """Known variables first, in their order."""
    known = PRODUCTS.index(variable) if variable in PRODUCTS else len(PRODUCTS)
    return known, variable


def region_of(pieces: Iterable[Piece], geobox: GeoBox | None = None) -> Place:
    """Block of cells that an output covers.

    Lazy: reads nothing.

    Parameters
    ----------
    pieces : iterable of Piece
    geobox : GeoBox, optional
        The block; by default the smallest one that holds all pieces.

    Returns
    -------
    Place

    Raises
    ------
    ValueError
        When the pieces are on different grids.
    """
    places = {Place.of(piece.geobox) for piece in pieces}
    whole = {Place.of(geobox)} if geobox is not None else places
    resolutions = sorted({place.resolution for place in places | whole})
    if len(resolutions) != 1:
        msg = f"the tiles are on the grids {', '.join(resolutions)}; expected one grid"
        raise ValueError(msg)
    return Place(
        resolutions[0],
        min(place.top for place in whole),
        max(place.bottom for place in whole),
        min(place.left for place in whole),
        max(place.right for place in whole),
    )


def check_apart(pieces: Sequence[Piece]) -> None:
    """Make sure that no cell lies in two pieces of one variable and acquisition.

    Raises
    ------
    ValueError
        When two pieces overlap.
    """
    places = [Place.of(piece.geobox) for piece in pieces]
    rows = np.unique([edge for place in places for edge in (place.top, place.bottom)])
    columns = np.unique([edge for place in places for edge in (place.left, place.right)])
    count = np.zeros((rows.size, columns.size), np.uint16)
    for piece, place in zip(pieces, places, strict=True):
        top, bottom = np.searchsorted(rows, (place.top, place.bottom))
        left, right = np.searchsorted(columns, (place.left, place.right))
        block = count[top:bottom, left:right]
        if block.any():
            msg = (
                f"the tile {piece.path} of {piece.acquisition.id} overlaps another one of "
                f"{piece.variable}; expected every cell in one tile at most"
            )
            raise ValueError(msg)
        block += 1


@dataclass(frozen=True)
class Header:
    """What the head of a tile's file says.

    Parameters
    ----------
    dtype : str
    checksum : str
        CRC-32 of its pixels.
    tags : tuple of (str, str)
        Of the file.
    band_tags : tuple of (str, str)
        Of its only band, with its units.
    """

    dtype: str
    checksum: str
    tags: tuple[tuple[str, str], ...]
    band_tags: tuple[tuple[str, str], ...]


@contextmanager
def _opened(path: Path) -> Iterator[rasterio.DatasetReader]:
    """Open a tile and say of errors in reading what they mean.

    Raises
    ------
    OSError
        When the file is damaged.
    """
    try:
        with warnings.catch_warnings():
            # A cut file may have lost its place, which the comparison that follows finds.
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            file = rasterio.open(path)
        with file:
            yield file
    except RasterioError as error:
        msg = f"the tile {path} is damaged: {reason(error)}; map it again"
        raise OSError(errno.EIO, msg) from error


def read_header(piece: Piece) -> Header:
    """Read the head of a piece's file and compare it with what the piece says.

    Reads no pixel, but for a file that `xsoilsm.write_cog` did not write.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    OSError
        When the file is damaged, or is not the tile that it should be.
    ValueError
        When its numbers are scaled.
    """
    if piece.path is None:
        msg = f"a tile of {piece.acquisition.id} has no file"
        raise ValueError(msg)
    if not piece.path.is_file():
        msg = f"there is no tile {piece.path}; map it again, or give it without a path"
        raise FileNotFoundError(errno.ENOENT, msg)
    with _opened(piece.path) as file:
        expected = piece.geobox.affine
        found = file.transform
        cell = expected.a
        off = max(abs(a - b) for a, b in zip(found[:6], expected[:6], strict=True)) / cell
        if file.count != 1 or file.shape != tuple(piece.geobox.shape) or off > 1e-3:
            msg = (
                f"{piece.path} has {file.count} bands of {file.shape} cells from "
                f"({found.c:.3f}, {found.f:.3f}), expected 1 of {tuple(piece.geobox.shape)} from "
                f"({expected.c:.3f}, {expected.f:.3f}); map this tile again"
            )
            raise OSError(errno.EIO, msg)
        if (file.scales[0], file.offsets[0]) != (1.0, 0.0):
            msg = (
                f"{piece.path} is scaled by {file.scales[0]:g}; expected a tile of physical "
                "values, float32"
            )
            raise ValueError(msg)
        band = dict(file.tags(1))
        checksum = band.pop(CHECKSUM, None) or checksums(file)[0][0]
        if file.units[0]:
            band["units"] = file.units[0]
        tags = tuple(sorted(file.tags().items()))
        return Header(file.dtypes[0], checksum, tags, tuple(sorted(band.items())))


def read_pixels(piece: Piece, rows: tuple[int, int], columns: tuple[int, int]) -> npt.NDArray[Any]:
    """Read cells of a piece, by their numbers within it.

    Raises
    ------
    OSError
        When the file is damaged.
    """
    if piece.path is None:
        msg = f"a tile of {piece.acquisition.id} has no file"
        raise ValueError(msg)
    with _opened(piece.path) as file:
        window = Window(columns[0], rows[0], columns[1] - columns[0], rows[1] - rows[0])
        pixels: npt.NDArray[Any] = file.read(1, window=window)
    return pixels
