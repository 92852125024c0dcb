"""Step 7 of 7 (write): mosaics of tiles, one file per variable and acquisition or composite.

A mosaic is read window by window from its tiles and streamed into a Cloud-Optimized GeoTIFF, so
that memory holds a window of 512 x 4096 cells and never a map. Its bytes depend on the tiles
alone: not on their order, not on the time of writing.

Cells without a tile are missing values, flagged ``no_scene``. Cells of a tile that could not be
made are missing values with the flag that its piece names, ``read_failed`` by default.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox
from xarray.backends import BackendArray
from xarray.core import indexing

from xsoilsm.cog import verify_cog, write_cogs
from xsoilsm.cube import spatial_coords
from xsoilsm.outputs.pieces import (
    Acquisition,
    Piece,
    Place,
    by_acquisition,
    check_apart,
    read_header,
    read_pixels,
    region_of,
)
from xsoilsm.outputs.wording import about_tiles, naming, strings, tags, variable_attributes
from xsoilsm.quality import FLAG_DTYPE, QualityFlag

__all__ = ["Mosaic", "MosaicFile", "Packing", "write_mosaics"]

Numbers = Literal["float32", "int16"]

STEP = {"soil_moisture": 1e-4, "soil_moisture_std": 1e-4}
"""Step in m3 m-3 in which a variable is stored as int16. Rounding to the nearest step is off by
0.00005 m3 m-3 at most, a hundredth of a good retrieval's error."""

NODATA = -32768
"""Missing value of int16."""

TILES = "TILES_SHA256"
"""Tag of each mosaic: SHA-256 of everything that decides its bytes."""

_FORMAT = 1  # raise it when the same tiles are to give other files


@dataclass(frozen=True)
class Packing:
    """How the numbers of a variable are stored.

    Parameters
    ----------
    dtype : dtype
    scale : float
        Physical value = stored number * scale.
    fill : float or int
        Stored number of cells without a tile; of physical variables the missing value.
    masked : bool
        Whether `fill` stands for a missing value.
    """

    dtype: np.dtype[Any]
    scale: float
    fill: float | int
    masked: bool

    @classmethod
    def of(cls, variable: str, dtype: str, numbers: Numbers) -> Packing:
        """Choose how to store a variable whose tiles have the type `dtype`.

        Raises
        ------
        ValueError
            For unknown `numbers`.
        """
        if numbers not in ("float32", "int16"):
            msg = f"cannot store numbers as {numbers!r}; expected 'float32' or 'int16'"
            raise ValueError(msg)
        own = np.dtype(dtype)
        if own.kind != "f":
            no_tile = int(QualityFlag.NO_SCENE) if variable == "quality_flag" else 0
            return cls(own, 1.0, no_tile, masked=False)
        if numbers == "int16" and variable in STEP:
            return cls(np.dtype(np.int16), STEP[variable], NODATA, masked=True)
        return cls(own, 1.0, np.nan, masked=True)

    @property
    def attributes(self) -> dict[str, Any]:
        """CF attributes of the packing, and the error that it brings."""
        if self.dtype.kind == "f" or not self.masked:
            return {}
        return {
            "scale_factor": self.scale,
            "_FillValue": np.int16(NODATA),
            "quantization_comment": (
                f"rounded to the nearest multiple of {self.scale:g}, off by {self.scale / 2:g} at "
                "most"
            ),
        }

    def pack(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Store physical values.

        Raises
        ------
        ValueError
            When one of them is out of the range that the stored numbers have.
        """
        if values.dtype == self.dtype:
            return values
        steps = np.rint(values.astype(np.float64) / self.scale)
        missing = np.isnan(steps)
        steps[missing] = NODATA
        if (np.abs(steps[~missing]) > -NODATA - 1).any():
            low, high = np.nanmin(values), np.nanmax(values)
            msg = (
                f"values from {low:g} to {high:g} do not fit into int16 with steps of "
                f"{self.scale:g}; store them as 'float32'"
            )
            raise ValueError(msg)
        return steps.astype(self.dtype)


class Mosaic:
    """One variable of one acquisition over a block of cells, read from its tiles on demand.

    Reads the heads of all tiles, no pixel.

    Parameters
    ----------
    pieces : sequence of Piece
        Of one variable and acquisition.
    place : Place
        Block of cells that the mosaic covers; tiles may reach beyond it.
    numbers : {"float32", "int16"}
        How soil moisture and its spread are stored; other variables keep their type.

    Raises
    ------
    ValueError
        When tiles overlap or have several data types.
    OSError
        When a tile is missing or damaged.
    """

    def __init__(self, pieces: Sequence[Piece], place: Place, numbers: Numbers = "float32") -> None:
        check_apart(pieces)
        self.variable = pieces[0].variable
        self.acquisition = pieces[0].acquisition
        self.place = place
        self.pieces = sorted(pieces, key=lambda piece: Place.of(piece.geobox))
        self.places = [Place.of(piece.geobox) for piece in self.pieces]
        headers = [None if p.path is None else read_header(p) for p in self.pieces]
        self.about, self.told = about_tiles(headers)
        found = sorted({header.dtype for header in headers if header is not None})
        if len(found) > 1:
            msg = (
                f"tiles of {self.variable} of {self.acquisition.id} are {' and '.join(found)}; "
                "expected one data type"
            )
            raise ValueError(msg)
        default = FLAG_DTYPE.__name__ if self.variable == "quality_flag" else "float32"
        self.packing = Packing.of(self.variable, found[0] if found else default, numbers)
        self.sums = [
            f"flag {piece.flag}" if header is None else header.checksum
            for piece, header in zip(self.pieces, headers, strict=True)
        ]

    def read(self, rows: tuple[int, int], columns: tuple[int, int]) -> npt.NDArray[Any]:
        """Read a window as stored numbers.

        Computes: reads the parts of the tiles that lie in it.

        Parameters
        ----------
        rows, columns : (start, stop)
            Counted from the upper left cell of the mosaic.

        Returns
        -------
        (rows, columns) ndarray

        Raises
        ------
        OSError
            When a tile is damaged.
        ValueError
            When a value does not fit into the stored numbers.
        """
        top, left = self.place.top + rows[0], self.place.left + columns[0]
        bottom, right = self.place.top + rows[1], self.place.left + columns[1]
        shape = bottom - top, right - left
        out = np.full(shape, self.packing.fill, self.packing.dtype)
        for piece, place in zip(self.pieces, self.places, strict=True):
            r0, r1 = max(top, place.top), min(bottom, place.bottom)
            c0, c1 = max(left, place.left), min(right, place.right)
            if r0 >= r1 or c0 >= c1:
                continue
            part = out[r0 - top : r1 - top, c0 - left : c1 - left]
            if piece.path is not None:
                pixels = read_pixels(
                    piece,
                    (r0 - place.top, r1 - place.top),
                    (c0 - place.left, c1 - place.left),
                )
                part[:] = self.packing.pack(pixels)
            elif self.variable == "quality_flag":
                part[:] = piece.flag
        return out

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the pixels: tiles, their places, how numbers are stored."""
        content = [
            _FORMAT,
            [str(self.packing.dtype), self.packing.scale],
            [self.variable, self.acquisition.id],
            list(vars(self.place).values()),
            [[list(vars(p).values()), s] for p, s in zip(self.places, self.sums, strict=True)],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_array(self) -> xr.DataArray:
        """Lay the stored numbers on their cells.

        Lazy: reads nothing; pixels are read from the tiles where they are asked for.

        Returns
        -------
        DataArray (y, x)
            Of stored numbers, with the attributes of the variable and of the packing.
        """
        lazy = indexing.LazilyIndexedArray(Windows([self]))
        layer = xr.Variable(("time", "y", "x"), lazy).isel(time=0)
        attributes = variable_attributes(self.variable, self.told) | self.packing.attributes
        place = spatial_coords(self.place.geobox)
        return xr.DataArray(layer, place, ("y", "x"), self.variable, attributes)


def about_all(mosaics: Iterable[Mosaic | None]) -> dict[str, str]:
    """Collect what mosaics say of the result; of several, the first one that knows is heard."""
    about: dict[str, str] = {}
    for mosaic in mosaics:
        about = about if mosaic is None else mosaic.about | about
    return about


class Windows(BackendArray):
    """Mosaics of one variable as a lazy array (time, y, x) for xarray.

    Parameters
    ----------
    mosaics : sequence of Mosaic or None
        None where an acquisition lacks the variable.
    """

    def __init__(self, mosaics: Sequence[Mosaic | None]) -> None:
        first = next(mosaic for mosaic in mosaics if mosaic is not None)
        self.mosaics = mosaics
        self.packing = first.packing
        self.shape = (len(mosaics), *first.place.shape)
        self.dtype = first.packing.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._read
        )

    def _read(self, key: tuple[int | slice, ...]) -> Any:
        """Read the window around the wanted cells, then take them out of it."""
        spans: list[range] = []
        inner: list[int | slice] = []
        for wanted, length in zip(key, self.shape, strict=True):
            chosen = (
                range(length)[wanted]
                if isinstance(wanted, slice)
                else range(length)[wanted : wanted + 1 or None]
            )
            low, high = (min(chosen), max(chosen) + 1) if len(chosen) else (0, 0)
            spans.append(range(low, high))
            if isinstance(wanted, slice):
                inner.append(slice(None, None, chosen.step if len(chosen) else None))
            else:
                inner.append(0)
        out = np.full([len(span) for span in spans], self.packing.fill, self.dtype)
        if out.size:
            rows, columns = ((span.start, span.stop) for span in spans[1:])
            for layer, index in zip(out, spans[0], strict=True):
                mosaic = self.mosaics[index]
                if mosaic is not None:
                    layer[:] = mosaic.read(rows, columns)
        return out[tuple(inner)]


class MosaicFile(NamedTuple):
    """A mosaic on the disk.

    Parameters
    ----------
    path : Path
    variable : str
    acquisition : Acquisition
    geobox : GeoBox
    """

    path: Path
    variable: str
    acquisition: Acquisition
    geobox: GeoBox


def write_mosaics(
    pieces: Iterable[Piece],
    folder: str | os.PathLike[str],
    *,
    geobox: GeoBox | None = None,
    numbers: Numbers = "float32",
    attributes: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> list[MosaicFile]:
    """Write one Cloud-Optimized GeoTIFF per variable and acquisition or composite.

    Computes: streams the tiles, one window of 512 x 4096 cells at a time. A mosaic that is there
    already, whole and made of the same tiles, is kept; so an interrupted call goes on where it
    was.

    Parameters
    ----------
    pieces : iterable of Piece
        Tiles of any number of acquisitions and variables, in any order.
    folder : path
        Is made where it is missing.
    geobox : GeoBox, optional
        Cells of all mosaics. By default the smallest block that holds all pieces.
    numbers : {"float32", "int16"}, default "float32"
        ``"int16"`` stores soil moisture and its spread in steps of 0.0001 m3 m-3.
    attributes : mapping of str to str, optional
        Attributes of the result (``xsoilsm.retrieve(...).attrs``), for names and tags. By default
        what the files of all tiles of a mosaic say in common.
    overwrite : bool, default False
        Replace a mosaic of the same name that is made of other tiles.

    Returns
    -------
    list of MosaicFile
        Complete and verified, by time and variable.

    Raises
    ------
    FileExistsError
        When a mosaic of other tiles exists and `overwrite` is false; nothing is written.
    OSError
        When a tile is missing or damaged, or the folder cannot be written.
    ValueError
        When tiles overlap, differ in grid or data type, or two mosaics would get one name.

    Notes
    -----
    Overviews average soil moisture over valid cells; flags take the most frequent value.
    """
    groups = by_acquisition(pieces)
    place = region_of((p for g in groups.values() for ps in g.values() for p in ps), geobox)
    plans: dict[Path, _Plan] = {}
    for variables in groups.values():
        mosaics = [Mosaic(parts, place, numbers) for parts in variables.values()]
        about = about_all(mosaics) if attributes is None else strings(attributes)
        for mosaic in mosaics:
            plan = _Plan(mosaic, about)
            path = Path(folder, plan.name)
            if path in plans:
                msg = (
                    f"two mosaics would be called {path.name}; write one of the acquisitions "
                    f"{plans[path].mosaic.acquisition.id} and {mosaic.acquisition.id} to another "
                    "folder"
                )
                raise ValueError(msg)
            plans[path] = plan
    kept = {path for path, plan in plans.items() if _is_made(path, plan.digest)}
    for path in plans:
        if path.exists() and path not in kept and not overwrite:
            msg = (
                f"{path} exists, and is damaged or made of other tiles; pass overwrite=True or "
                "choose another folder"
            )
            raise FileExistsError(msg)
    for path, plan in plans.items():
        if path not in kept:
            overviews: Literal["average", "mode"] = (
                "average" if plan.mosaic.packing.masked else "mode"
            )
            write_cogs({path: plan.layer()}, overwrite=True, overviews=overviews)
    return [
        MosaicFile(path, plan.mosaic.variable, plan.mosaic.acquisition, place.geobox)
        for path, plan in plans.items()
    ]


@dataclass(frozen=True)
class _Plan:
    """A mosaic and what its file is to say."""

    mosaic: Mosaic
    about: dict[str, str]

    @property
    def name(self) -> str:
        """Name of the file."""
        mosaic = self.mosaic
        parts = naming(mosaic.acquisition, mosaic.variable, mosaic.place.resolution, self.about)
        return f"{parts.stem}.tif"

    @property
    def tags(self) -> dict[str, Any]:
        """Tags of the file without its digest."""
        mosaic = self.mosaic
        own = variable_attributes(mosaic.variable, mosaic.told) | mosaic.packing.attributes
        return tags(mosaic.acquisition, self.about) | own

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides the bytes of the file."""
        content = [self.mosaic.digest, {name: str(text) for name, text in self.tags.items()}]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def layer(self) -> xr.DataArray:
        """Give the mosaic the tags of its file. Lazy: reads nothing."""
        return self.mosaic.to_array().assign_attrs(self.tags | {TILES: self.digest})


def _is_made(path: Path, digest: str) -> bool:
    """Whether a mosaic is there already, whole and made of the same tiles."""
    if not path.is_file():
        return False
    try:
        with rasterio.open(path) as file:
            same = bool(file.tags().get(TILES) == digest)
        if same:
            verify_cog(path)
    except (OSError, rasterio.errors.RasterioError):
        return False
    return same
