"""Step 3 of 7 (load): elevation, slope and aspect from a digital elevation model.

Tiles are put together on their common lattice with a rim of one pixel, slope and aspect follow
at native resolution, and only then are elevation, slope and the two components of the aspect
averaged. Gradients are Horn's (1981, doi 10.1109/PROC.1981.11918) with distances in metres:
on a grid of degrees ``dx = R cos(lat) dlon`` and ``dy = R dlat``. The aspect is the direction of
steepest descent, 0 at north, clockwise; level ground has aspect 0, so sine 0 and cosine 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox

from xsoilsm.catalog import Catalog, CatalogError, Segment
from xsoilsm.facts import Band, DemSource
from xsoilsm.sources.reading import (
    BLOCK,
    CellSums,
    NativeReader,
    Patch,
    Raster,
    native_windows,
    to_physical,
)
from xsoilsm.sources.search import (
    Bounds,
    access_of,
    find_items,
    footprint_of,
    lonlat_bounds,
    overlaps,
)

__all__ = ["BANDS", "EARTH_RADIUS", "DemTile", "find_dem", "horn", "read_terrain"]

BANDS = ("elevation", "slope", "aspect_sin", "aspect_cos")
"""Order of the bands that :func:`read_terrain` gives."""

EARTH_RADIUS = 6371008.8
"""Mean radius of the Earth in m (IUGG, WGS 84)."""

Floats = npt.NDArray[np.float32]


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
    """

    id: str
    raster: Raster
    band: Band
    footprint: bytes


def find_dem(catalog: Catalog, segment: Segment, bounds: Bounds) -> list[DemTile]:
    """Search the tiles of a region and of its rim. Asks the service; reads no pixel.

    Parameters
    ----------
    catalog : Catalog
    segment : Segment
        A source of terrain; its days are those of the search.
    bounds : (west, south, east, north)
        In degrees.

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
            tiles.append(DemTile(item.id, raster, source.elevation, footprint_of(item)))
    return tiles


RIM = 0.01
"""Degrees by which the search reaches over the region, for the rim of gradients."""


def horn(elevation: npt.NDArray[Any], dx: npt.NDArray[Any] | float, dy: float) -> Floats:
    """Slope and aspect from a window of elevations with a rim of one pixel.

    Parameters
    ----------
    elevation : (y + 2, x + 2) ndarray of float
        In m, north up.
    dx : float or (y, 1) ndarray
        Distance of columns in m, eastward.
    dy : float
        Distance of rows in m.

    Returns
    -------
    (3, y, x) ndarray of float32
        Slope in degrees, sine and cosine of the aspect. NaN where a neighbour is NaN.
    """
    z = np.asarray(elevation, dtype=np.float64)
    north, middle, south = z[:-2], z[1:-1], z[2:]
    # Gradient eastward and northward (Horn 1981, weights 1 2 1).
    east = (
        (north[:, 2:] + 2 * middle[:, 2:] + south[:, 2:])
        - (north[:, :-2] + 2 * middle[:, :-2] + south[:, :-2])
    ) / (8 * dx)
    up = (
        (north[:, :-2] + 2 * north[:, 1:-1] + north[:, 2:])
        - (south[:, :-2] + 2 * south[:, 1:-1] + south[:, 2:])
    ) / (8 * dy)
    gradient = np.hypot(east, up)
    level = gradient == 0
    length = np.where(level, 1.0, gradient)
    result = np.empty((3, *gradient.shape), dtype=np.float32)
    result[0] = np.rad2deg(np.arctan(gradient))
    # Water runs against the gradient.
    result[1] = -east / length
    result[2] = np.where(level, 1.0, -up / length)
    return result


def read_terrain(tiles: tuple[DemTile, ...], target: GeoBox, on_error: str = "flag") -> Floats:
    """Read the terrain of a GeoBox. Computes: reads the pixels that it needs and their rim.

    Parameters
    ----------
    tiles : tuple of DemTile
    target : GeoBox
        A chunk of the cube.
    on_error : {"flag", "raise"}
        Where a tile cannot be read, its cells are NaN, or an error is raised.

    Returns
    -------
    (4, y, x) ndarray of float32
        The bands of :data:`BANDS`: m, degree, 1, 1.

    Raises
    ------
    OSError
        When a tile cannot be read and `on_error` is ``"raise"``.
    """
    sums = CellSums(len(BANDS), target)
    bounds = lonlat_bounds(target)
    lattices: list[_Lattice] = []
    for tile in tiles:
        if not overlaps(tile.footprint, bounds, margin=RIM):
            continue
        try:
            with NativeReader((tile.raster,)) as reader:
                geobox = reader.geobox
        except OSError:
            if on_error == "raise":
                raise
            continue
        home = next((lattice for lattice in lattices if lattice.offset(geobox) is not None), None)
        if home is None:
            home = _Lattice(geobox)
            lattices.append(home)
        home.tiles.append((tile, geobox))
    for lattice in lattices:
        lattice.add_to(sums, on_error)
    return sums.finish()[0]


class _Lattice:
    """Tiles whose pixels lie on one endless grid.

    Parameters
    ----------
    first : GeoBox
        Its first pixel is row 0, column 0.
    """

    def __init__(self, first: GeoBox) -> None:
        self.first = first
        self.tiles: list[tuple[DemTile, GeoBox]] = []

    def offset(self, geobox: GeoBox) -> tuple[int, int] | None:
        """Row and column of a tile's first pixel; None where it is not on the lattice."""
        a, b = self.first.affine, geobox.affine
        if geobox.crs != self.first.crs or max(abs(a.a - b.a), abs(a.e - b.e)) > 1e-9 * abs(a.a):
            return None
        column, row = (b.c - a.c) / a.a, (b.f - a.f) / a.e
        if max(abs(column - round(column)), abs(row - round(row))) > 0.01:
            return None
        return round(row), round(column)

    def add_to(self, sums: CellSums, on_error: str) -> None:
        """Add terrain of all tiles, in windows with a rim of one pixel."""
        places = [(tile, geobox, self.offset(geobox)) for tile, geobox in self.tiles]
        placed = [(t, g, p) for t, g, p in places if p is not None]
        top = min(row for _, _, (row, _) in placed)
        left = min(column for _, _, (_, column) in placed)
        bottom = max(row + g.shape[0] for _, g, (row, _) in placed)
        right = max(column + g.shape[1] for _, g, (_, column) in placed)
        a = self.first.affine
        affine = Affine(a.a, 0, a.c + left * a.a, 0, a.e, a.f + top * a.e)
        whole = GeoBox((bottom - top, right - left), affine, self.first.crs)
        for patch in native_windows(whole, sums.target, BLOCK):
            mosaic = self._mosaic(patch, placed, (top, left), on_error)
            if np.isnan(mosaic).all():
                continue
            values = np.empty((len(BANDS), *patch.geobox.shape), dtype=np.float32)
            values[0] = mosaic[1:-1, 1:-1]
            values[1:] = horn(mosaic, *_distances(patch.geobox))
            sums.add(values, _anchored(patch))

    def _mosaic(
        self,
        patch: Patch,
        placed: list[tuple[DemTile, GeoBox, tuple[int, int]]],
        origin: tuple[int, int],
        on_error: str,
    ) -> Floats:
        """Elevations of a window and its rim; outside all tiles the edge is repeated."""
        height, width = patch.geobox.shape
        mosaic = np.full((height + 2, width + 2), np.nan, dtype=np.float32)
        first_row, first_column = patch.row - 1 + origin[0], patch.column - 1 + origin[1]
        for tile, geobox, (row, column) in placed:
            rows = max(row, first_row), min(row + geobox.shape[0], first_row + height + 2)
            columns = (
                max(column, first_column),
                min(column + geobox.shape[1], first_column + width + 2),
            )
            if rows[0] >= rows[1] or columns[0] >= columns[1]:
                continue
            part = geobox[rows[0] - row : rows[1] - row, columns[0] - column : columns[1] - column]
            try:
                with NativeReader((tile.raster,)) as reader:
                    (stored,) = reader.read(Patch(rows[0] - row, columns[0] - column, part))
                    values = to_physical(stored, tile.band, reader.nodata[0])
            except OSError:
                if on_error == "raise":
                    raise
                continue
            place = mosaic[
                rows[0] - first_row : rows[1] - first_row,
                columns[0] - first_column : columns[1] - first_column,
            ]
            np.copyto(place, values, where=np.isnan(place))
        return _repeat_edges(mosaic)


def _anchored(patch: Patch) -> Patch:
    """Count rows and columns from one point of the Earth, whatever tiles a chunk needs."""
    affine, crs = patch.geobox.affine, patch.geobox.crs
    north, west = (90.0, -180.0) if crs is not None and crs.geographic else (0.0, 0.0)
    row, column = round((affine.f - north) / affine.e), round((affine.c - west) / affine.a)
    return Patch(row % _LATTICE, column % _LATTICE, patch.geobox)


_LATTICE = 1 << 20  # keeps the numbers of pixels above zero; regridding looks at their low bits


def _repeat_edges(mosaic: Floats) -> Floats:
    """Give a rim that lies outside all tiles the elevations beside it."""
    for view in (mosaic, mosaic[::-1], mosaic.T, mosaic.T[::-1]):
        if np.isnan(view[0]).all():
            view[0] = view[1]
    return mosaic


def _distances(geobox: GeoBox) -> tuple[npt.NDArray[np.float64] | float, float]:
    """Distance of columns (one number a row) and of rows in m."""
    affine = geobox.affine
    if geobox.crs is None or not geobox.crs.geographic:
        return float(affine.a), float(-affine.e)
    latitude = affine.f + affine.e * (np.arange(geobox.shape[0]) + 0.5)
    dy = EARTH_RADIUS * np.deg2rad(-affine.e)
    dx = EARTH_RADIUS * np.cos(np.deg2rad(latitude)) * np.deg2rad(affine.a)
    return dx[:, None], float(dy)
