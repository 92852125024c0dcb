"""Step 3 of 7 (load): sigma nought from terrain-flattened gamma nought, in three forms.

The networks take sigma nought on the ellipsoid, ``beta0 sin(theta)``, as radar products without
terrain flattening hold it. Flattening divides the echo by the area that the terrain shows in the
plane perpendicular to the look (Small 2011, doi 10.1109/TGRS.2011.2120616); these forms put it
back.

``rtc-flat``
    ``sigma0 = gamma0 cos(theta)``: exact on level ground.
``rtc-slope``
    ``sigma0 = gamma0 cos(theta) tan(90 - theta + a) / tan(90 - theta)``, with the slope `a` of the
    terrain in the direction of look, positive where it faces the radar. It is what the area
    factor becomes on a plane: Over a piece of ground ``dx dy`` on the map, x along the look and y
    along the track, with height ``h(x, y)``, slant range changes by ``ds = (sin(theta) -
    h_x cos(theta)) dx - h_y cos(theta) dy``, so the piece covers ``(sin(theta) - h_x cos(theta))
    dx dy`` of the image; perpendicular to the look it shows ``(cos(theta) + h_x sin(theta))
    dx dy``. Their ratio is ``cot(theta - a)`` with ``tan(a) = h_x``: the slope along the track
    cancels, and ``beta0 = gamma0 cot(theta - a)``. (The same factor, for volumes, is in Vollrath
    et al. 2020, doi 10.3390/rs12111867.) It is exact on planes larger than the resolution, and
    approximate on rough terrain, where pieces of ground share a pixel of the image.
``rtc-area``
    ``sigma0 = gamma0 area sin(theta)``, with the area factor ``beta0 / gamma0`` that the producer
    used: exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xsoilsm.sources.access.search import cell_lonlat, lonlat_bounds
from xsoilsm.sources.ground.elevation import Elevations, Lattice
from xsoilsm.sources.ground.terrain import anchored, repeat_edges, rise, spacing, widths
from xsoilsm.sources.pixels.mesh import MESH, compiled, mesh_lonlat, spread, to_plane
from xsoilsm.sources.pixels.reading import CellSums, Patch
from xsoilsm.sources.sentinel1.annotation import IncidenceSurface

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

__all__ = ["BLOCK", "LIMITS", "Slopes", "flat_decibels", "slope_factor"]

LIMITS = (10.0, 80.0)
"""Degrees between which ``theta - a`` is taken: less is near layover, more near shadow."""

BLOCK = 1024
"""Longest side in pixels of a window of the elevation model."""

Floats = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def flat_decibels(theta: npt.NDArray[np.floating]) -> Float64:
    """Decibels from gamma nought to sigma nought on level ground; `theta` in degrees."""
    return np.asarray(10.0 * np.log10(np.cos(np.deg2rad(theta, dtype=np.float64))))


def slope_factor(
    theta: npt.NDArray[np.floating], rise: npt.NDArray[np.floating]
) -> tuple[Float64, npt.NDArray[np.bool_]]:
    """Ratio of sigma nought to terrain-flattened gamma nought on a slope.

    Parameters
    ----------
    theta : ndarray
        Incidence angle on the ellipsoid in degrees.
    rise : ndarray
        Rise of the terrain per m in the direction of look (away from the radar): the tangent of
        the slope in range direction, positive where it faces the radar.

    Returns
    -------
    factor : ndarray of float64
        ``sin(theta) cot(theta - a)``.
    beyond : ndarray of bool
        Whether ``theta - a`` lies outside of :data:`LIMITS`; the factor is that of the limit.

    Examples
    --------
    >>> factor, beyond = slope_factor(np.array([40.0, 40.0]), np.tan(np.deg2rad([0.0, 10.0])))
    >>> factor.round(3).tolist(), beyond.tolist()
    ([0.766, 1.113], [False, False])
    """
    local = np.asarray(theta, dtype=np.float64) - np.rad2deg(np.arctan(rise))
    low, high = LIMITS
    beyond = (local < low) | (local > high)
    steep = np.tan(np.deg2rad(np.clip(local, low, high)))
    return np.sin(np.deg2rad(theta, dtype=np.float64)) / steep, beyond


@dataclass(frozen=True)
class Slopes:
    """Slopes in the direction of look of one slice.

    Parameters
    ----------
    models : Elevations
    theta : IncidenceSurface
        Incidence angle in degrees.
    look : IncidenceSurface
        Azimuth of the look in degrees.
    """

    models: Elevations
    theta: IncidenceSurface
    look: IncidenceSurface

    def factors(self, patch: Patch) -> tuple[Floats, npt.NDArray[np.bool_] | None]:
        """Ratio of sigma nought to gamma nought at the pixels of a window. Computes.

        Reads the elevations around the window. Slopes follow at the model's own resolution
        (Horn 1981) and their factor is interpolated linearly. Where no model has a value, as on
        the sea, the ground counts as level.

        Parameters
        ----------
        patch : Patch

        Returns
        -------
        factor : (y, x) ndarray of float32
        beyond : (y, x) ndarray of bool or None
            Pixels in or near layover or shadow, see :data:`LIMITS`; None where there are none.

        Raises
        ------
        OSError
            When a tile cannot be read and no other model fills its place.
        """
        lon, lat = mesh_lonlat(patch)
        lattice = self._lattice()
        if lattice is None:
            return spread(np.cos(np.deg2rad(self.theta(lon, lat))), patch), None
        x, y = to_plane("EPSG:4326", str(lattice.first.crs)).transform(lon, lat)
        row, column = lattice.place(np.asarray(x), np.asarray(y))
        top, left = int(np.floor(row.min())) - 1, int(np.floor(column.min())) - 1
        shape = int(np.ceil(row.max())) - top + 2, int(np.ceil(column.max())) - left + 2
        factor, beyond = self._at_posts(lattice, top, left, shape)
        places = row - top, column - left
        found = _bilinear(factor, *places, patch)
        if not beyond.any():
            return found, None
        return found, _bilinear(beyond.astype(np.float32), *places, patch) >= 0.5

    def cells(self, target: GeoBox) -> tuple[Floats, Floats]:
        """Mean of the decibels over the cells of a GeoBox. Computes.

        For backscatter that was averaged in decibels already: the mean of a sum is the sum of
        the means, where a cell is covered wholly.

        Parameters
        ----------
        target : GeoBox

        Returns
        -------
        decibels : (y, x) ndarray of float32
        beyond : (y, x) ndarray of float32
            Share of the cell in or near layover or shadow.

        Raises
        ------
        OSError
            When a tile cannot be read and no other model fills its place.
        """
        sums = CellSums(2, target)
        west, south, east, north = lonlat_bounds(target)
        lattice = self._lattice()
        if lattice is None:
            lon, lat = np.meshgrid(*cell_lonlat(target))
            flat = flat_decibels(self.theta(lon, lat)).astype(np.float32)
            return flat, np.zeros_like(flat)
        across = to_plane("EPSG:4326", str(lattice.first.crs))
        left, bottom, right, top = across.transform_bounds(west, south, east, north)
        row, column = lattice.place(np.array([left, right]), np.array([top, bottom]))
        first_row, first_column = int(np.floor(row[0])) - 1, int(np.floor(column[0])) - 1
        rows, columns = int(np.ceil(row[1])) + 2, int(np.ceil(column[1])) + 2
        for at_row in range(first_row, rows, BLOCK):
            for at_column in range(first_column, columns, BLOCK):
                shape = min(BLOCK, rows - at_row), min(BLOCK, columns - at_column)
                factor, beyond = self._at_posts(lattice, at_row, at_column, shape)
                patch = anchored(lattice.geobox(at_row, at_column, shape))
                sums.add(factor[None], patch, slice(0, 1), transform="db")
                sums.add(beyond[None].astype(np.float32), patch, slice(1, 2))
        mean, _ = sums.finish()
        return mean[0], mean[1]

    def _lattice(self) -> Lattice | None:
        """Choose the posts at which slopes are taken: those of the preferred model."""
        return next((x for rank in self.models.ranks for x in self.models.lattices(rank)), None)

    def _at_posts(
        self, lattice: Lattice, top: int, left: int, shape: tuple[int, int]
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Factor at the posts of an elevation model, and where it is beyond the limits."""
        window = anchored(lattice.geobox(top, left, shape))
        lon, lat = mesh_lonlat(window)
        theta, look = np.deg2rad(self.theta(lon, lat)), np.deg2rad(self.look(lon, lat))
        nodes = np.stack([np.sin(theta), np.tan(theta), np.sin(look), np.cos(look)])
        around = shape[0] + 2, shape[1] + 2
        heights, _ = self.models.heights(lattice, top - 1, left - 1, around)
        if self.models.failed and np.isnan(heights).any():
            msg = "a tile of the elevation model could not be read; slopes are unknown there"
            raise OSError(msg)
        dx, dy = spacing(window.geobox)
        factor, beyond = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.bool_)
        first = window.row % MESH, window.column % MESH
        _post_factors(repeat_edges(heights), widths(dx, shape[0]), dy, nodes, first, factor, beyond)
        return factor, beyond


_LOW, _HIGH = (float(np.tan(np.deg2rad(limit))) for limit in LIMITS)


@compiled
def _post_factors(
    heights: Any,
    dx: Any,
    dy: float,
    nodes: Any,
    first: tuple[int, int],
    factor: Any,
    beyond: Any,
) -> None:
    """Take :func:`slope_factor` at posts, by ``tan(theta - a) = (t - r) / (1 + r t)``.

    `nodes` holds sine and tangent of theta, and sine and cosine of the look, on the mesh.
    """
    height, width = factor.shape
    left, step = np.empty(4), np.empty(4)
    for i in range(height):
        node = (first[0] + i) // MESH
        share = ((first[0] + i) % MESH) / MESH
        begin = 0
        for k in range(nodes.shape[2] - 1):
            end = min((k + 1) * MESH - first[1], width)
            for n in range(4):
                a = nodes[n, node, k] * (1 - share) + nodes[n, node + 1, k] * share
                b = nodes[n, node, k + 1] * (1 - share) + nodes[n, node + 1, k + 1] * share
                step[n] = (b - a) / MESH
                left[n] = a - step[n] * (k * MESH - first[1])
            for j in range(begin, end):
                east, north = rise(heights, i, j, dx[i], dy)
                r = (left[2] + step[2] * j) * east + (left[3] + step[3] * j) * north
                if np.isnan(r):
                    r = 0.0
                t = left[1] + step[1] * j
                # Sine and cosine of the local angle but for a common factor above zero.
                up, along = t - r, 1.0 + r * t
                low, high = up < _LOW * along, up > _HIGH * along
                if along <= 0.0:
                    low, high = False, True
                local = _LOW if low else (_HIGH if high else up / along)
                factor[i, j] = (left[0] + step[0] * j) / local
                beyond[i, j] = low or high
            begin = end


def _bilinear(field: Floats, rows: Float64, columns: Float64, patch: Patch) -> Floats:
    """Interpolate a field linearly at the pixels of a window; beyond its edge the edge holds.

    `rows` and `columns` are places in the field at the points of the window's mesh.
    """
    result = np.empty(patch.geobox.shape, dtype=np.float32)
    _interpolate(
        np.ascontiguousarray(field, dtype=np.float32),
        rows.astype(np.float32),
        columns.astype(np.float32),
        patch.row % MESH,
        patch.column % MESH,
        result,
    )
    return result


@compiled
def _interpolate(
    field: Floats, rows: Floats, columns: Floats, first_row: int, first_column: int, result: Floats
) -> None:
    height, width = result.shape
    last_row, last_column = np.float32(field.shape[0] - 1), np.float32(field.shape[1] - 1)
    rim_row, rim_column = np.int32(field.shape[0] - 2), np.int32(field.shape[1] - 2)
    zero, size, one = np.float32(0), np.float32(MESH), np.uint64(1)
    at_row, at_column = np.empty(width, np.int32), np.empty(width, np.int32)
    down, right = np.empty(width, np.float32), np.empty(width, np.float32)
    for i in range(height):
        node = (first_row + i) // MESH
        share = np.float32((first_row + i) % MESH) / size
        begin = 0
        for k in range(rows.shape[1] - 1):
            end = min((k + 1) * MESH - first_column, width)
            row0 = rows[node, k] + share * (rows[node + 1, k] - rows[node, k])
            row1 = rows[node, k + 1] + share * (rows[node + 1, k + 1] - rows[node, k + 1])
            column0 = columns[node, k] + share * (columns[node + 1, k] - columns[node, k])
            column1 = columns[node, k + 1] + share * (
                columns[node + 1, k + 1] - columns[node, k + 1]
            )
            row1, column1 = row1 - row0, column1 - column0
            for j in range(begin, end):
                along = np.float32(j + first_column - k * MESH) / size
                row = min(max(row0 + along * row1, zero), last_row)
                column = min(max(column0 + along * column1, zero), last_column)
                north, west = min(np.int32(row), rim_row), min(np.int32(column), rim_column)
                at_row[j], at_column[j] = north, west
                down[j], right[j] = row - np.float32(north), column - np.float32(west)
            for j in range(np.uint64(begin), np.uint64(end)):
                # Unsigned indices cannot count from the end: no test of each is needed.
                top, left = np.uint64(at_row[j]), np.uint64(at_column[j])
                a, b = field[top, left], field[top, left + one]
                c, d = field[top + one, left], field[top + one, left + one]
                upper = a + right[j] * (b - a)
                lower = c + right[j] * (d - c)
                result[i, j] = upper + down[j] * (lower - upper)
            begin = end
