"""Step 1 of 7 (where and when): EASE-Grid 2.0 global grids that nest exactly.

Cells are counted as integer rows (from the north) and columns (from the west) on one exact
origin; coordinates follow from the integers, never the other way round. Finer grids divide the
9 km cell: 1 km = 9 km / 9, 500 m = 9 km / 18, 100 m = 9 km / 90. No input or output.

Source of the constants: Brodzik et al. (2012, 2014), EASE-Grid 2.0, EPSG:6933.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox

if TYPE_CHECKING:
    from pyproj import Transformer

__all__ = [
    "CRS",
    "GRIDS",
    "LATITUDE_LIMIT",
    "Ease2Grid",
    "Tile",
    "cells_of",
    "ease2_geobox",
    "get_grid",
    "grid_of",
    "lonlat_to_xy",
    "tiles",
    "xy_to_lonlat",
]

CRS = "EPSG:6933"
"""Coordinate reference system of every cube: WGS 84 / NSIDC EASE-Grid 2.0 Global."""

X_WEST = -17367530.445161
Y_NORTH = 7314540.830639
CELL_9KM = 9008.055210146
ROWS_9KM, COLUMNS_9KM = 1624, 3856
LATITUDE_LIMIT = 85.0445664
"""Latitude in degrees of the grid's northern and southern edge."""

_EDGE = 1e-6  # share of a cell within which a coordinate counts as lying on the cell's edge


@dataclass(frozen=True)
class Ease2Grid:
    """One global EASE-Grid 2.0 grid, a division of the 9 km grid.

    Parameters
    ----------
    name : str
        Resolution as users write it, for instance ``"1km"``.
    factor : int
        Number of cells along one side of a 9 km cell.
    """

    name: str
    factor: int

    @property
    def shape(self) -> tuple[int, int]:
        """Global number of rows and columns."""
        return ROWS_9KM * self.factor, COLUMNS_9KM * self.factor

    @property
    def cell(self) -> float:
        """Side of a cell in m."""
        return CELL_9KM / self.factor

    def left(self, column: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Projected x in m of the western edge of each column."""
        return X_WEST + np.asarray(column, dtype=np.float64) * CELL_9KM / self.factor

    def top(self, row: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Projected y in m of the northern edge of each row."""
        return Y_NORTH - np.asarray(row, dtype=np.float64) * CELL_9KM / self.factor

    def centre(
        self, row: npt.ArrayLike, column: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Projected x and y in m of cell centres."""
        half = 0.5
        return self.left(np.asarray(column) + half), self.top(np.asarray(row) + half)

    def index(
        self, x: npt.ArrayLike, y: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Row and column of the cells that hold projected points.

        Parameters
        ----------
        x, y : array_like
            Coordinates in m, EPSG:6933.

        Returns
        -------
        row, column : ndarray of int64
            Points outside the grid get numbers outside its shape.
        """
        column = np.floor((np.asarray(x, dtype=np.float64) - X_WEST) * self.factor / CELL_9KM)
        row = np.floor((Y_NORTH - np.asarray(y, dtype=np.float64)) * self.factor / CELL_9KM)
        return row.astype(np.int64), column.astype(np.int64)

    def geobox(self, rows: tuple[int, int], columns: tuple[int, int]) -> GeoBox:
        """Make the GeoBox of a block of cells.

        Parameters
        ----------
        rows, columns : (start, stop)
            Half-open ranges of cell numbers.

        Returns
        -------
        GeoBox
            In EPSG:6933, north up.

        Raises
        ------
        ValueError
            When a range is empty or leaves the grid.
        """
        for what, (start, stop), size in zip(
            ("rows", "columns"), (rows, columns), self.shape, strict=True
        ):
            if not 0 <= start < stop <= size:
                msg = (
                    f"{what} {start}:{stop} are not a part of the {self.name} grid; "
                    f"expected 0 <= start < stop <= {size}"
                )
                raise ValueError(msg)
        cell = self.cell
        affine = Affine(cell, 0, float(self.left(columns[0])), 0, -cell, float(self.top(rows[0])))
        return GeoBox((rows[1] - rows[0], columns[1] - columns[0]), affine, CRS)


GRIDS = {
    grid.name: grid
    for grid in (
        Ease2Grid("9km", 1),
        Ease2Grid("1km", 9),
        Ease2Grid("500m", 18),
        Ease2Grid("100m", 90),
    )
}
"""The grids by name, coarse to fine."""


def get_grid(res: str | Ease2Grid) -> Ease2Grid:
    """Look up a grid by its resolution.

    Parameters
    ----------
    res : {"9km", "1km", "500m", "100m"}

    Returns
    -------
    Ease2Grid

    Raises
    ------
    ValueError
        When `res` names no grid; the message lists the known ones.
    """
    if isinstance(res, Ease2Grid):
        return res
    try:
        return GRIDS[res]
    except (KeyError, TypeError):
        msg = f"unknown resolution {res!r}; expected one of {', '.join(GRIDS)}"
        raise ValueError(msg) from None


@lru_cache(maxsize=1)
def _transformer() -> Transformer:
    from pyproj import Transformer

    return Transformer.from_crs("EPSG:4326", CRS, always_xy=True)


def lonlat_to_xy(
    lon: npt.ArrayLike, lat: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Project longitude and latitude (degrees, WGS 84) to EASE-Grid 2.0 x and y in m."""
    x, y = _transformer().transform(np.asarray(lon, float), np.asarray(lat, float))
    return np.asarray(x), np.asarray(y)


def xy_to_lonlat(
    x: npt.ArrayLike, y: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Longitude and latitude (degrees, WGS 84) of EASE-Grid 2.0 x and y in m."""
    lon, lat = _transformer().transform(
        np.asarray(x, float), np.asarray(y, float), direction="INVERSE"
    )
    return np.asarray(lon), np.asarray(lat)


def ease2_geobox(bbox: tuple[float, float, float, float], res: str = "1km") -> GeoBox:
    """Smallest block of whole EASE-Grid 2.0 cells that covers a bounding box.

    Lazy: reads nothing.

    Parameters
    ----------
    bbox : (west, south, east, north)
        Degrees, WGS 84.
    res : {"9km", "1km", "500m", "100m"}, default "1km"

    Returns
    -------
    GeoBox
        In EPSG:6933, snapped outward to whole cells.

    Raises
    ------
    ValueError
        When the box is empty, crosses the antimeridian, is not finite, leaves the grid's
        latitudes, or `res` is unknown.

    Examples
    --------
    >>> ease2_geobox((-5.6, 41.1, -5.2, 41.5), "1km").shape
    Shape2d(x=39, y=39)
    """
    grid = get_grid(res)
    try:
        west, south, east, north = (float(edge) for edge in bbox)
    except (TypeError, ValueError):
        msg = f"bbox {bbox!r} is not four numbers; expected (west, south, east, north) in degrees"
        raise ValueError(msg) from None
    if not np.isfinite([west, south, east, north]).all():
        msg = f"bbox {bbox} holds a number that is not finite"
        raise ValueError(msg)
    if not (-180 <= west <= 180 and -180 <= east <= 180):
        msg = f"bbox {bbox} has longitudes outside -180 to 180; order is west, south, east, north"
        raise ValueError(msg)
    if west > east:
        msg = (
            f"bbox {bbox} has west > east and so crosses the antimeridian (or its corners are "
            "swapped); split it at 180 degrees and map the two parts"
        )
        raise ValueError(msg)
    if west == east or south >= north:
        msg = f"bbox {bbox} is empty; expected west < east and south < north"
        raise ValueError(msg)
    if south < -LATITUDE_LIMIT or north > LATITUDE_LIMIT:
        msg = (
            f"bbox {bbox} leaves the EASE-Grid 2.0 global grid, which ends at "
            f"{LATITUDE_LIMIT} degrees north and south; crop it"
        )
        raise ValueError(msg)
    (x0, x1), (y0, y1) = lonlat_to_xy([west, east], [south, north])
    rows, columns = grid.shape
    first_column = max(int(np.floor((x0 - X_WEST) / grid.cell + _EDGE)), 0)
    last_column = min(int(np.ceil((x1 - X_WEST) / grid.cell - _EDGE)), columns)
    first_row = max(int(np.floor((Y_NORTH - y1) / grid.cell + _EDGE)), 0)
    last_row = min(int(np.ceil((Y_NORTH - y0) / grid.cell - _EDGE)), rows)
    return grid.geobox(
        (first_row, max(last_row, first_row + 1)),
        (first_column, max(last_column, first_column + 1)),
    )


def cells_of(
    x: npt.ArrayLike, y: npt.ArrayLike
) -> tuple[Ease2Grid, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Grid, rows and columns of axes of cell centres.

    Parameters
    ----------
    x : (x,) array_like
        Ascending cell centres in m, EPSG:6933.
    y : (y,) array_like
        Descending cell centres in m, EPSG:6933.

    Returns
    -------
    grid : Ease2Grid
    row : (y,) ndarray of int64
    column : (x,) ndarray of int64

    Raises
    ------
    ValueError
        When no grid has its cell centres there, within a thousandth of a cell.

    Notes
    -----
    Two neighbouring centres fix the grid by their spacing. A single cell belongs to the
    coarsest grid that has a centre there.
    """
    xs = np.atleast_1d(np.asarray(x, dtype=np.float64))
    ys = np.atleast_1d(np.asarray(y, dtype=np.float64))
    for grid in GRIDS.values():
        row, column = grid.index(xs, ys)
        if xs.size > 1 and not np.array_equal(np.diff(column), np.ones(xs.size - 1)):
            continue
        if ys.size > 1 and not np.array_equal(np.diff(row), np.ones(ys.size - 1)):
            continue
        cx, cy = grid.centre(row, column)
        tolerance = 1e-3 * grid.cell
        if np.abs(cx - xs).max() <= tolerance and np.abs(cy - ys).max() <= tolerance:
            return grid, row, column
    step = f"{np.diff(xs)[0]:.6g} m" if xs.size > 1 else "a single cell"
    msg = (
        f"x starts at {xs[0]:.3f} m with spacing {step}, y at {ys[0]:.3f} m: these are not cell "
        f"centres of an EASE-Grid 2.0 grid ({', '.join(GRIDS)}) with x ascending and y "
        "descending; regrid with xsoilsm.regrid.area_mean onto xsoilsm.ease2_geobox(...)"
    )
    raise ValueError(msg)


def grid_of(geobox: GeoBox) -> tuple[Ease2Grid, tuple[int, int], tuple[int, int]]:
    """Grid, row range and column range of a GeoBox.

    Parameters
    ----------
    geobox : GeoBox
        In EPSG:6933.

    Returns
    -------
    grid : Ease2Grid
    rows, columns : (start, stop)

    Raises
    ------
    ValueError
        When the GeoBox is in another CRS or off every grid.
    """
    if geobox.crs is None or geobox.crs.epsg != 6933:
        msg = (
            f"the GeoBox is in {geobox.crs}, expected {CRS}; make it with xsoilsm.ease2_geobox(...)"
        )
        raise ValueError(msg)
    affine = geobox.affine
    height, width = geobox.shape
    for grid in GRIDS.values():
        if (
            abs(affine.a - grid.cell) > 1e-6 * grid.cell
            or abs(affine.e + grid.cell) > 1e-6 * grid.cell
        ):
            continue
        row, column = grid.index(affine.c + grid.cell / 2, affine.f - grid.cell / 2)
        on_grid = (
            abs(float(grid.left(column)) - affine.c) < 1e-3 * grid.cell
            and abs(float(grid.top(row)) - affine.f) < 1e-3 * grid.cell
        )
        if on_grid:
            r, c = int(row), int(column)
            return grid, (r, r + height), (c, c + width)
    msg = (
        f"the GeoBox has cells of {affine.a:.6g} x {-affine.e:.6g} m from ({affine.c:.3f}, "
        f"{affine.f:.3f}), which is not on an EASE-Grid 2.0 grid ({', '.join(GRIDS)}); "
        "make one with xsoilsm.ease2_geobox(...)"
    )
    raise ValueError(msg)


@dataclass(frozen=True)
class Tile:
    """A block of cells with a name that depends only on its place on the globe.

    Parameters
    ----------
    row, column : int
        Number of the tile counted from the grid's upper left corner.
    geobox : GeoBox
        Its cells, cropped to the region that was tiled.
    """

    row: int
    column: int
    geobox: GeoBox

    @property
    def name(self) -> str:
        """Name for files, for instance ``"r0132c0374"``."""
        return f"r{self.row:04d}c{self.column:04d}"


def tiles(geobox: GeoBox, size: int) -> Iterator[Tile]:
    """Cut a GeoBox along the global lattice of tiles of `size` x `size` cells.

    Lazy: reads nothing.

    Parameters
    ----------
    geobox : GeoBox
        On an EASE-Grid 2.0 grid.
    size : int
        Side of a tile in cells.

    Yields
    ------
    Tile
        Row by row; every cell of `geobox` lies in exactly one.

    Raises
    ------
    ValueError
        When `size` is not positive or the GeoBox is off the grids.
    """
    if size < 1:
        msg = f"tile size {size} is not positive"
        raise ValueError(msg)
    grid, (r0, r1), (c0, c1) = grid_of(geobox)
    for tile_row in range(r0 // size, (r1 - 1) // size + 1):
        rows = max(tile_row * size, r0), min((tile_row + 1) * size, r1)
        for tile_column in range(c0 // size, (c1 - 1) // size + 1):
            columns = max(tile_column * size, c0), min((tile_column + 1) * size, c1)
            yield Tile(tile_row, tile_column, grid.geobox(rows, columns))
