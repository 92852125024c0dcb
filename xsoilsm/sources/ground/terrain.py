"""Step 3 of 7 (load): elevation, slope and aspect from digital elevation models.

Tiles are put together on their common lattice with a rim of one pixel, slope and aspect follow
at native resolution, and only then are elevation, slope and the two components of the aspect
averaged. Gradients are Horn's (1981, doi 10.1109/PROC.1981.11918) with distances in metres:
on a grid of degrees ``dx = R cos(lat) dlon`` and ``dy = R dlat``. The aspect is the direction of
steepest descent, 0 at north, clockwise; level ground has aspect 0, so sine 0 and cosine 1.

Of several models the first that has a value counts, see :mod:`xsoilsm.sources.ground.elevation`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from xsoilsm.sources.access.search import lonlat_bounds
from xsoilsm.sources.ground.elevation import RIM, DemTile, Elevations, Lattice, find_dem
from xsoilsm.sources.pixels.mesh import compiled
from xsoilsm.sources.pixels.reading import BLOCK, CellSums, Patch, native_windows

__all__ = [
    "BANDS",
    "EARTH_RADIUS",
    "RIM",
    "DemTile",
    "anchored",
    "find_dem",
    "horn",
    "read_terrain",
    "repeat_edges",
    "rise",
    "spacing",
    "widths",
]

BANDS = ("elevation", "slope", "aspect_sin", "aspect_cos", "elevation_filled")
"""Order of the bands that :func:`read_terrain` gives."""

EARTH_RADIUS = 6371008.8
"""Mean radius of the Earth in m (IUGG, WGS 84)."""

Floats = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@compiled
def rise(z: Any, i: int, j: int, dx: float, dy: float) -> tuple[float, float]:
    """Rise per metre to the east and to the north (Horn 1981, weights 1 2 1).

    Parameters
    ----------
    z : (y + 2, x + 2) ndarray of float
        Elevations in m, north up, with a rim of one pixel.
    i, j : int
        Row and column, without the rim.
    dx, dy : float
        Distance of columns and rows in m.

    Returns
    -------
    east, north : float
        NaN where a neighbour is NaN.
    """
    a, b, c = np.float64(z[i, j]), np.float64(z[i, j + 1]), np.float64(z[i, j + 2])
    d, f = np.float64(z[i + 1, j]), np.float64(z[i + 1, j + 2])
    g, h, k = np.float64(z[i + 2, j]), np.float64(z[i + 2, j + 1]), np.float64(z[i + 2, j + 2])
    east = ((c + 2 * f + k) - (a + 2 * d + g)) / (8 * dx)
    north = ((a + 2 * b + c) - (g + 2 * h + k)) / (8 * dy)
    return east, north


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
    height, width = elevation.shape
    result = np.empty((3, height - 2, width - 2), dtype=np.float32)
    _horn(elevation, widths(dx, height - 2), dy, result)
    return result


def widths(dx: npt.NDArray[Any] | float, rows: int) -> Float64:
    """Distance of columns in m, one number for each row."""
    return np.ascontiguousarray(
        np.broadcast_to(np.asarray(dx, dtype=np.float64).reshape(-1), (rows,))
    )


@compiled
def _horn(z: Any, dx: Any, dy: float, result: Any) -> None:
    for i in range(result.shape[1]):
        for j in range(result.shape[2]):
            east, up = rise(z, i, j, dx[i], dy)
            steepness = np.sqrt(east * east + up * up)
            result[0, i, j] = np.rad2deg(np.arctan(steepness))
            # Water runs against the gradient.
            if steepness == 0.0:
                result[1, i, j], result[2, i, j] = 0.0, 1.0
            else:
                result[1, i, j], result[2, i, j] = -east / steepness, -up / steepness


def read_terrain(tiles: tuple[DemTile, ...], target: GeoBox, on_error: str = "flag") -> Floats:
    """Read the terrain of a GeoBox. Computes: reads the pixels that it needs and their rim.

    Parameters
    ----------
    tiles : tuple of DemTile
        Of one or several models; their ranks give the order of preference.
    target : GeoBox
        A chunk of the cube.
    on_error : {"flag", "raise"}
        Where a tile cannot be read, its cells are of the next model or NaN, or an error is
        raised.

    Returns
    -------
    (5, y, x) ndarray of float32
        The bands of :data:`BANDS`: m, degree, 1, 1, and the share of the cell whose elevation
        is of another model than the preferred one.

    Raises
    ------
    OSError
        When a tile cannot be read and `on_error` is ``"raise"``.
    """
    sums = CellSums(len(BANDS), target)
    models = Elevations(tiles, lonlat_bounds(target), on_error)
    for rank in models.ranks:
        for lattice in models.lattices(rank):
            top, left, rows, columns = lattice.extent
            whole = lattice.geobox(top, left, (rows, columns))
            for patch in native_windows(whole, target, BLOCK):
                _add_window(sums, models, lattice, patch, (top + patch.row, left + patch.column))
        if sums.finish()[1][0].min() > _WHOLE:
            break
    mean, shares = sums.finish()
    if models.failed:
        # A mean over the part of a cell that could be read would pass for the whole.
        mean[:, shares[0] < _WHOLE] = np.nan
    return mean


_WHOLE = 0.9999  # covered share of a cell from which no further model is asked


def _add_window(
    sums: CellSums, models: Elevations, lattice: Lattice, patch: Patch, corner: tuple[int, int]
) -> None:
    """Add the terrain of a window of a lattice whose first pixel is `corner`."""
    height, width = patch.geobox.shape
    own = models.owned(lattice, *corner, (height, width))
    if not own.any():
        return
    rim = corner[0] - 1, corner[1] - 1
    heights, filled = models.heights(lattice, *rim, (height + 2, width + 2))
    if np.isnan(heights).all():
        return
    heights = repeat_edges(heights)
    values = np.empty((len(BANDS), height, width), dtype=np.float32)
    values[0] = heights[1:-1, 1:-1]
    values[1:4] = horn(heights, *spacing(patch.geobox))
    values[4] = np.where(np.isnan(values[0]), np.float32(np.nan), filled[1:-1, 1:-1])
    if not own.all():
        values[:, ~own] = np.nan
    sums.add(values, anchored(patch.geobox))


def repeat_edges(heights: Floats) -> Floats:
    """Give a rim that lies outside all tiles the elevations beside it, in place."""
    for view in (heights, heights[::-1], heights.T, heights.T[::-1]):
        if np.isnan(view[0]).all():
            view[0] = view[1]
    return heights


def anchored(geobox: GeoBox) -> Patch:
    """Count rows and columns from one point of the Earth, whatever tiles a chunk needs."""
    affine, crs = geobox.affine, geobox.crs
    north, west = (90.0, -180.0) if crs is not None and crs.geographic else (0.0, 0.0)
    row, column = round((affine.f - north) / affine.e), round((affine.c - west) / affine.a)
    return Patch(row % _LATTICE, column % _LATTICE, geobox)


_LATTICE = 1 << 20  # keeps the numbers of pixels above zero; regridding looks at their low bits


def spacing(geobox: GeoBox) -> tuple[Float64 | float, float]:
    """Distance of columns (one number a row) and of rows in m."""
    affine = geobox.affine
    if geobox.crs is None or not geobox.crs.geographic:
        return float(affine.a), float(-affine.e)
    latitude = affine.f + affine.e * (np.arange(geobox.shape[0]) + 0.5)
    dy = EARTH_RADIUS * np.deg2rad(-affine.e)
    dx = EARTH_RADIUS * np.cos(np.deg2rad(latitude)) * np.deg2rad(affine.a)
    return dx[:, None], float(dy)
