"""Step 3 of 7 (load): elevations of one or several models, without seams and voids.

Tiles whose pixels lie on one endless grid are put together on it. Where the preferred model has
a void or no tile, the next one is taken, interpolated linearly onto the same grid; so slopes
follow across the seam. Models differ in what they call zero (NASADEM counts from the geoid EGM96,
Copernicus from EGM2008); the two geoids lie within about a metre of each other over most land,
less than the models' own errors, and no correction is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox

from xsoilsm.catalog import Catalog, CatalogError, Segment
from xsoilsm.facts import Band, DemSource
from xsoilsm.sources.access.links import access_of
from xsoilsm.sources.access.search import Bounds, find_items, footprint_of, overlaps
from xsoilsm.sources.pixels.mesh import to_plane
from xsoilsm.sources.pixels.reading import NativeReader, Patch, Raster, to_physical

__all__ = ["RIM", "DemTile", "Elevations", "Lattice", "find_dem"]

RIM = 0.01
"""Degrees by which a search reaches over the region, for the rim of gradients."""

Floats = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class DemTile:
    """One tile, as it travels in a graph.

    Parameters
    ----------
    id : str
    raster : Raster
    band : Band
    footprint : bytes
        WKB in lon/lat.
    rank : int
        Place of the model in the order of preference, from 0.
    """

    id: str
    raster: Raster
    band: Band
    footprint: bytes
    rank: int = 0


def find_dem(catalog: Catalog, segment: Segment, bounds: Bounds, rank: int = 0) -> list[DemTile]:
    """Search the tiles of a region and of its rim. Asks the service; reads no pixel.

    Parameters
    ----------
    catalog : Catalog
    segment : Segment
        A source of terrain; its days are those of the search.
    bounds : (west, south, east, north)
        In degrees.
    rank : int, default 0
        Place of the source in the order of preference.

    Returns
    -------
    list of DemTile
    """
    source = segment.source
    if not isinstance(source, DemSource):
        msg = f"source of kind '{source.kind}' is not terrain"
        raise CatalogError(msg)
    service = catalog.service_of(source)
    access = access_of(service)
    west, south, east, north = bounds
    around = west - RIM, south - RIM, east + RIM, north + RIM
    tiles = []
    for item in find_items(service, source.collection, around, segment.start, segment.end):
        if source.elevation.asset in item.assets:
            asset = item.assets[source.elevation.asset]
            raster = Raster(asset.get_absolute_href() or asset.href, access)
            tiles.append(DemTile(item.id, raster, source.elevation, footprint_of(item), rank))
    return tiles


@dataclass
class Lattice:
    """Tiles of one model whose pixels lie on one endless grid.

    Parameters
    ----------
    first : GeoBox
        Its first pixel is row 0, column 0.
    rank : int
    tiles : list of (DemTile, GeoBox, row, column)
        With the place of each tile's first pixel.
    """

    first: GeoBox
    rank: int
    tiles: list[tuple[DemTile, GeoBox, int, int]] = field(default_factory=list)

    def offset(self, geobox: GeoBox) -> tuple[int, int] | None:
        """Row and column of a tile's first pixel; None where it is not on the lattice."""
        a, b = self.first.affine, geobox.affine
        if geobox.crs != self.first.crs or max(abs(a.a - b.a), abs(a.e - b.e)) > 1e-9 * abs(a.a):
            return None
        column, row = (b.c - a.c) / a.a, (b.f - a.f) / a.e
        if max(abs(column - round(column)), abs(row - round(row))) > 0.01:
            return None
        return round(row), round(column)

    def geobox(self, row: int, column: int, shape: tuple[int, int]) -> GeoBox:
        """Grid of a window."""
        a = self.first.affine
        corner = Affine(a.a, 0, a.c + column * a.a, 0, a.e, a.f + row * a.e)
        return GeoBox(shape, corner, self.first.crs)

    @property
    def extent(self) -> tuple[int, int, int, int]:
        """First row and column, and rows and columns, of all tiles together."""
        top = min(row for _, _, row, _ in self.tiles)
        left = min(column for _, _, _, column in self.tiles)
        bottom = max(row + box.shape[0] for _, box, row, _ in self.tiles)
        right = max(column + box.shape[1] for _, box, _, column in self.tiles)
        return top, left, bottom - top, right - left

    def centres(self, row: int, column: int, shape: tuple[int, int]) -> tuple[Float64, Float64]:
        """Coordinates x (x,) and y (y,) of the pixel centres of a window."""
        a = self.first.affine
        x = a.c + a.a * (column + np.arange(shape[1]) + 0.5)
        y = a.f + a.e * (row + np.arange(shape[0]) + 0.5)
        return np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)

    def place(self, x: Float64, y: Float64) -> tuple[Float64, Float64]:
        """Row and column, with fractions, of points in the lattice's own coordinates."""
        a = self.first.affine
        return (y - a.f) / a.e - 0.5, (x - a.c) / a.a - 0.5

    def covers(self, x: Float64, y: Float64) -> Bools:
        """Whether points of one shape lie in a tile, voids included."""
        row, column = self.place(x, y)
        inside = np.zeros(np.broadcast_shapes(row.shape, column.shape), dtype=bool)
        for _, box, top, left in self.tiles:
            height, width = box.shape
            inside |= ((row >= top - 0.5) & (row < top + height - 0.5)) & (
                (column >= left - 0.5) & (column < left + width - 0.5)
            )
        return inside

    def read(
        self, row: int, column: int, shape: tuple[int, int], failed: Callable[[OSError], None]
    ) -> Floats:
        """Elevations of a window in m, NaN in voids and outside of all tiles. Computes.

        `failed` gets the error of a tile that cannot be read, and raises it or lets it pass.
        """
        height, width = shape
        mosaic = np.full(shape, np.nan, dtype=np.float32)
        for tile, geobox, top, left in self.tiles:
            rows = max(top, row), min(top + geobox.shape[0], row + height)
            columns = max(left, column), min(left + geobox.shape[1], column + width)
            if rows[0] >= rows[1] or columns[0] >= columns[1]:
                continue
            part = geobox[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]
            try:
                with NativeReader((tile.raster,)) as reader:
                    (stored,) = reader.read(Patch(rows[0] - top, columns[0] - left, part))
                    values = to_physical(stored, tile.band, reader.nodata[0])
            except OSError as error:
                failed(error)
                continue
            place = mosaic[rows[0] - row : rows[1] - row, columns[0] - column : columns[1] - column]
            np.copyto(place, values, where=np.isnan(place))
        return mosaic

    def sample(self, x: Float64, y: Float64, failed: Callable[[OSError], None]) -> Floats:
        """Elevations at points, linear between pixels; NaN where most neighbours are none."""
        row, column = self.place(x, y)
        values = np.full(row.shape, np.nan, dtype=np.float32)
        near = self.covers(x, y)
        if not near.any():
            return values
        row, column = row[near], column[near]
        top, left = int(np.floor(row.min())), int(np.floor(column.min()))
        shape = int(np.floor(row.max())) - top + 2, int(np.floor(column.max())) - left + 2
        values[near] = _bilinear(self.read(top, left, shape, failed), row - top, column - left)
        return values


def _bilinear(field: Floats, row: Float64, column: Float64) -> Floats:
    """Interpolate linearly; neighbours that are NaN do not count."""
    top = np.minimum(np.floor(row).astype(np.int64), field.shape[0] - 2)
    left = np.minimum(np.floor(column).astype(np.int64), field.shape[1] - 2)
    down, right = row - top, column - left
    total, weight = np.zeros(row.shape), np.zeros(row.shape)
    for i, share_of_row in ((0, 1 - down), (1, down)):
        for j, share_of_column in ((0, 1 - right), (1, right)):
            value = field[top + i, left + j]
            share = np.where(np.isnan(value), 0.0, share_of_row * share_of_column)
            total += share * np.nan_to_num(value)
            weight += share
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight > 0.49, total / weight, np.nan).astype(np.float32)


class Elevations:
    """Elevation models around a region, in order of preference.

    A model is opened when it is needed: where those before it leave a void, or cover too little.

    Parameters
    ----------
    tiles : tuple of DemTile
    bounds : (west, south, east, north)
        In degrees.
    on_error : {"flag", "raise"}
        Tiles that cannot be read are left out, or an OSError is raised.

    Attributes
    ----------
    failed : bool
        Whether a tile was left out.
    """

    def __init__(self, tiles: tuple[DemTile, ...], bounds: Bounds, on_error: str = "flag") -> None:
        self._on_error = on_error
        self.failed = False
        self._tiles: dict[int, list[DemTile]] = {}
        self._lattices: dict[int, list[Lattice]] = {}
        for tile in sorted(tiles, key=lambda tile: tile.rank):
            if overlaps(tile.footprint, bounds, margin=RIM):
                self._tiles.setdefault(tile.rank, []).append(tile)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Models with tiles around the region, in order of preference."""
        return tuple(self._tiles)

    def _fail(self, error: OSError) -> None:
        """Raise the error of a tile, or go on without it."""
        if self._on_error == "raise":
            raise error
        self.failed = True

    def lattices(self, rank: int) -> list[Lattice]:
        """Lattices of one model. Opens its tiles for their grids, once; reads no pixel.

        Raises
        ------
        OSError
            When a tile cannot be opened and the object was made with ``"raise"``.
        """
        if rank in self._lattices:
            return self._lattices[rank]
        found: list[Lattice] = []
        for tile in self._tiles[rank]:
            try:
                with NativeReader((tile.raster,)) as reader:
                    geobox = reader.geobox
            except OSError as error:
                self._fail(error)
                continue
            home = next((lattice for lattice in found if lattice.offset(geobox)), None)
            if home is None:
                home = Lattice(geobox, rank)
                found.append(home)
            row, column = home.offset(geobox) or (0, 0)
            home.tiles.append((tile, geobox, row, column))
        self._lattices[rank] = found
        return found

    def heights(
        self, lattice: Lattice, row: int, column: int, shape: tuple[int, int]
    ) -> tuple[Floats, Bools]:
        """Read a window of a lattice, with voids filled from the other models. Computes.

        Parameters
        ----------
        lattice : Lattice
            One of those of :meth:`lattices`.
        row, column : int
            First pixel of the window on the lattice.
        shape : (int, int)

        Returns
        -------
        heights : (y, x) ndarray of float32
            In m; NaN where no model has a value.
        filled : (y, x) ndarray of bool
            Whether the value is of another model than the preferred one.

        Raises
        ------
        OSError
            When a tile cannot be read, where the object was made with ``"raise"``.
        """
        heights = lattice.read(row, column, shape, self._fail)
        filled = np.full(shape, lattice.rank > 0)
        for rank in self.ranks:
            if not np.isnan(heights).any():
                break
            for other in self.lattices(rank):
                missing = np.isnan(heights)
                if other is lattice or not missing.any():
                    continue
                x, y = self._centres(lattice, row, column, shape, other)
                heights[missing] = other.sample(x[missing], y[missing], self._fail)
                filled[missing] = rank > 0
        return heights, filled

    def owned(self, lattice: Lattice, row: int, column: int, shape: tuple[int, int]) -> Bools:
        """Pixels of a window that lie in no tile of a lattice before this one.

        Where lattices overlap, each place on the ground belongs to the first of them.
        """
        own = np.ones(shape, dtype=bool)
        for rank in self.ranks:
            for other in self.lattices(rank):
                if other is lattice:
                    return own
                own &= ~other.covers(*self._centres(lattice, row, column, shape, other))
        return own

    @staticmethod
    def _centres(
        lattice: Lattice, row: int, column: int, shape: tuple[int, int], other: Lattice
    ) -> tuple[Float64, Float64]:
        """Pixel centres of a window, in the coordinates of another lattice."""
        x, y = np.meshgrid(*lattice.centres(row, column, shape))
        if lattice.first.crs != other.first.crs:
            x, y = to_plane(str(lattice.first.crs), str(other.first.crs)).transform(x, y)
        return np.asarray(x), np.asarray(y)
