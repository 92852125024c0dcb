"""Step 3 of 7 (load): radar images sampled on a lattice inside every target cell.

Cells of the EASE-Grid 2.0 have equal areas, so the mean over samples on a regular lattice inside
a cell is the area mean. Samples lie at most a pixel apart on the ground, at places that depend
on the cell alone, so results do not depend on chunks. Each sample is located in the image with
its own height, takes the power there, becomes dB, and only then is averaged.

Between pixels power is interpolated bilinearly, as in the images of Earth Engine, which the
networks were trained with: in a real one, neighbours are equal no more often than its export
copies pixels (0.3 % from north to south; copies of native pixels would add 1 %), and nothing
lies below its floor, as it would after interpolation of higher order. It softens speckle, so
means of dB are higher than those of native pixels: by 0.35 dB where pixels are independent, by
about half of that with the correlation of real ones. "nearest" takes native pixels as they are.
"""
# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of what it compiles; annotations would only repeat "array")

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from xsoilsm import grid
from xsoilsm.sources.sentinel1.geocode import RadarImage

__all__ = ["Lattice", "Samples", "add_samples", "lattices_of", "spacing_of"]

_SPACING = {"bilinear": (7.2, 10.0), "nearest": (2.5, 5.0)}
_LARGE_CELL = 400.0  # m, from which the second of them holds
_NODE_M = 1000.0  # distance in the grid's plane of nodes between which geometry is interpolated
_HEIGHT_STEP = 3  # samples between heights
_RANGE_STEP = 100.0  # m of slant range between entries of the table of pixels
_BANDS = (0.0, 20.0, 35.0, 45.0, 52.0, 58.0, 63.0, 67.0, 71.0, 75.0, 79.0, 82.0, 90.0)
"""Latitudes in degrees at which the number of samples in a cell changes."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    """Compile without the interpreter's lock, cached on disk where a folder is writable."""
    settings: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return cast(_Function, numba.njit(cache=True, **settings)(function))
    except RuntimeError:  # numba found no writable cache folder
        return cast(_Function, numba.njit(**settings)(function))


@dataclass(frozen=True)
class Lattice:
    """Samples in a block of cells of one grid.

    Parameters
    ----------
    cells : Ease2Grid
    rows, columns : (int, int)
        First and last-plus-one cell.
    down, across : int
        Samples along each side of a cell.
    """

    cells: grid.Ease2Grid
    rows: tuple[int, int]
    columns: tuple[int, int]
    down: int
    across: int

    def points(self, step_down: int, step_across: int) -> tuple[Any, Any, tuple[int, int]]:
        """Points at every so many samples, counted from the grid's corner, around the block.

        Parameters
        ----------
        step_down, step_across : int

        Returns
        -------
        lon, lat : (ny, nx) ndarray
            Degrees.
        offset : (int, int)
            Row and column of the block's first sample, counted from the first point.
        """
        axes = []
        offset = []
        for (first, stop), count, step in (
            (self.rows, self.down, step_down),
            (self.columns, self.across, step_across),
        ):
            begin = first * count // step
            end = -(-(stop * count) // step)
            axes.append(np.arange(begin, end + 1) * step / count)
            offset.append(first * count - begin * step)
        y = grid.Y_NORTH - axes[0] * self.cells.cell
        x = grid.X_WEST + axes[1] * self.cells.cell
        lon, _ = grid.xy_to_lonlat(x, np.zeros_like(x))
        _, lat = grid.xy_to_lonlat(np.zeros_like(y), np.clip(y, -grid.Y_NORTH, grid.Y_NORTH))
        lon, lat = np.meshgrid(lon, lat)
        return lon, lat, (offset[0], offset[1])

    @property
    def node_steps(self) -> tuple[int, int]:
        """Samples between nodes of the geometry, down and across."""
        share = _NODE_M / self.cells.cell
        return max(int(share * self.down), 1), max(int(share * self.across), 1)

    @property
    def height_steps(self) -> tuple[int, int]:
        """Samples between heights, down and across."""
        return _HEIGHT_STEP, _HEIGHT_STEP


def spacing_of(cells: grid.Ease2Grid, resampling: str) -> float:
    """Largest distance in m of samples on the ground.

    On speckle, means over cells then lie within 0.013 dB rms at 100 m and 0.002 dB at 1 km of
    those over samples 1 m apart (0.013 and 0.004 dB for native pixels, whose edges need more
    samples).

    Parameters
    ----------
    cells : Ease2Grid
    resampling : {"bilinear", "nearest"}
    """
    fine, coarse = _SPACING[resampling]
    return coarse if cells.cell > _LARGE_CELL else fine


def lattices_of(
    cells: grid.Ease2Grid,
    rows: tuple[int, int],
    columns: tuple[int, int],
    spacing: float,
) -> list[Lattice]:
    """Place samples in a block of cells: several lattices where their number per cell changes.

    Lazy: reads nothing.

    Parameters
    ----------
    cells : Ease2Grid
    rows, columns : (int, int)
        First and last-plus-one cell.
    spacing : float
        Largest distance of samples on the ground in m.

    Returns
    -------
    list of Lattice
        From north to south. The samples of a cell depend on the cell alone.
    """
    _, y = cells.centre(np.arange(rows[0], rows[1]), columns[0])
    middle = np.abs(grid.xy_to_lonlat(np.zeros_like(y), y)[1])
    band = np.searchsorted(_BANDS, middle, side="right") - 1
    edges = [0, *(np.flatnonzero(np.diff(band)) + 1).tolist(), len(band)]
    found = []
    for first, stop in pairwise(edges):
        # A cell's width on the ground is its side times this, its height the side over this.
        widest, narrowest = (
            np.cos(np.deg2rad(latitude)) / np.cos(np.deg2rad(30.0))
            for latitude in (_BANDS[band[first]], min(_BANDS[band[first] + 1], 85.0))
        )
        across = int(np.ceil(cells.cell * widest / spacing))
        down = int(np.ceil(cells.cell / narrowest / spacing))
        found.append(Lattice(cells, (rows[0] + first, rows[0] + stop), columns, down, across))
    return found


@_compiled
def _blend(field, y, step, into):
    """Row of a field between two of its rows."""
    at = y / step
    upper = min(int(at), field.shape[0] - 2)
    share = at - upper
    for j in range(field.shape[1]):
        into[j] = field[upper, j] * (1 - share) + field[upper + 1, j] * share


@_compiled
def _between(values, b, p, q, fy, fx):
    """Power between four pixels; those without a value do not count."""
    p0, p1 = max(p, 0), min(p + 1, values.shape[1] - 1)
    q0, q1 = max(q, 0), min(q + 1, values.shape[2] - 1)
    v00, v01, v10, v11 = values[b, p0, q0], values[b, p0, q1], values[b, p1, q0], values[b, p1, q1]
    w00, w01, w10, w11 = (1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx
    power = v00 * w00 + v01 * w01 + v10 * w10 + v11 * w11
    if power > 0:
        return power
    power, weight = 0.0, 0.0
    for value, share in ((v00, w00), (v01, w01), (v10, w10), (v11, w11)):
        if value > 0:
            power += value * share
            weight += share
    return power / weight


@_compiled
def _add(
    nodes, node_step, node_offset, heights, height_step, height_offset, at_column,
    updates, table, table_first, table_step,
    values, first, shape, bilinear, samples, total, count, empty, scratch,
):  # fmt: skip
    line_row, far_row, cosine_row, height_row = scratch
    node_at, node_share, height_at, height_share = at_column
    down, across = samples
    lines, pixels = shape
    bands, window_lines, window_pixels = values.shape
    last_update = updates.size - 2
    per_step = 1.0 / table_step
    entries = table.shape[1] - 1
    product = np.ones(bands)
    k = 0
    for i in range(total.shape[1] * down):
        row = i // down
        y = i + 0.5
        _blend(nodes[0], y + node_offset, node_step, line_row)
        _blend(nodes[1], y + node_offset, node_step, far_row)
        _blend(nodes[2], y + node_offset, node_step, cosine_row)
        _blend(heights, y + height_offset, height_step, height_row)
        for column in range(total.shape[2]):
            waiting = 0
            for j in range(column * across, (column + 1) * across):
                n, x = node_at[j], node_share[j]
                line = line_row[n] + x * (line_row[n + 1] - line_row[n])
                if not (line >= -0.5 and line < lines - 0.5):  # NaN: far from the slice
                    continue
                far = far_row[n] + x * (far_row[n + 1] - far_row[n])
                cosine = cosine_row[n] + x * (cosine_row[n + 1] - cosine_row[n])
                n, x = height_at[j], height_share[j]
                height = height_row[n] + x * (height_row[n + 1] - height_row[n])
                slant = np.sqrt(far * far + height * (height - 2 * far * cosine))
                while k < last_update and line >= updates[k + 1]:
                    k += 1
                while k > 0 and line < updates[k]:
                    k -= 1
                share = (line - updates[k]) / (updates[k + 1] - updates[k])
                share = min(max(share, 0.0), 1.0)
                at = (slant - table_first) * per_step
                if not (at >= 0 and at < entries):
                    continue
                t = int(at)
                at -= t
                before = table[k, t] + at * (table[k, t + 1] - table[k, t])
                after = table[k + 1, t] + at * (table[k + 1, t + 1] - table[k + 1, t])
                pixel = before + share * (after - before)
                if not (pixel >= -0.5 and pixel < pixels - 0.5):
                    continue
                p, q = int(line + 0.5) - first[0], int(pixel + 0.5) - first[1]
                if p < 0 or q < 0 or p >= window_lines or q >= window_pixels:
                    continue
                good = True
                for b in range(bands):
                    good = good and values[b, p, q] > -np.inf
                if not good:
                    empty[row, column] += 1
                    continue
                count[row, column] += 1
                if not bilinear:
                    for b in range(bands):
                        total[b, row, column] += values[b, p, q]
                    continue
                fy, fx = line - first[0], pixel - first[1]
                p, q = int(np.floor(fy)), int(np.floor(fx))
                fy, fx = fy - p, fx - q
                for b in range(bands):
                    product[b] *= _between(values, b, p, q, fy, fx)
                # the sum of logarithms is that of the product, which costs less
                waiting += 1
                if waiting == 16:
                    for b in range(bands):
                        total[b, row, column] += 10.0 * np.log10(product[b])
                        product[b] = 1.0
                    waiting = 0
            if waiting > 0:
                for b in range(bands):
                    total[b, row, column] += 10.0 * np.log10(product[b])
                    product[b] = 1.0


@dataclass(frozen=True)
class Samples:
    """Sums over samples on a block of cells.

    Parameters
    ----------
    total : (band, y, x) ndarray of float64
        Sum of dB.
    count : (y, x) ndarray of int64
        Samples with a value.
    empty : (y, x) ndarray of int64
        Samples inside the image without one.
    """

    total: npt.NDArray[np.float64]
    count: npt.NDArray[np.int64]
    empty: npt.NDArray[np.int64]

    @classmethod
    def zeros(cls, bands: int, shape: tuple[int, int]) -> Samples:
        """Begin with sums of nothing."""
        return cls(
            np.zeros((bands, *shape)),
            np.zeros(shape, dtype=np.int64),
            np.zeros(shape, dtype=np.int64),
        )

    def part(self, rows: slice, columns: slice) -> Samples:
        """Give views of a block."""
        return Samples(
            self.total[:, rows, columns], self.count[rows, columns], self.empty[rows, columns]
        )


def _places(
    count: int, offset: int, step: int, points: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Point before each sample along an axis, and the share of the next."""
    at = (np.arange(count) + 0.5 + offset) / step
    before = np.minimum(at.astype(np.int64), points - 2)
    return before, np.asarray(at - before, dtype=np.float64)


def add_samples(
    lattice: Lattice,
    nodes: tuple[npt.NDArray[np.float64], tuple[int, int]],
    heights: tuple[npt.NDArray[np.float32], tuple[int, int]],
    image: RadarImage,
    values: npt.NDArray[np.float32],
    first: tuple[int, int],
    *,
    bilinear: bool,
    sums: Samples,
) -> None:
    """Sample a window of an image and add to the sums of cells, in place.

    Computes, without holding the interpreter's lock.

    Parameters
    ----------
    lattice : Lattice
    nodes : (3, ny, nx) ndarray of float64, and offset
        Line, slant range and cosine of `RadarImage.reference` at the points of
        ``lattice.points(*lattice.node_steps)``, and the offset that it gives.
    heights : (ny, nx) ndarray of float32, and offset
        m above the ellipsoid, at the points of ``lattice.points(*lattice.height_steps)``.
    image : RadarImage
    values : (band, line, pixel) ndarray of float32
        Power of a window of the image where `bilinear`, else dB; NaN where any band has none.
    first : (int, int)
        Line and pixel of the window's first pixel.
    bilinear : bool
        Interpolate power between pixels, or take the nearest pixel's dB.
    sums : Samples
        Of the lattice's cells.
    """
    places, node_offset = nodes
    ground, height_offset = heights
    slant = places[1][np.isfinite(places[1])]
    if slant.size == 0:
        return
    reach = 2.0 * float(np.abs(ground).max()) + 2 * _RANGE_STEP
    # Counted from the satellite, so that the table's entries are the same for every block.
    begin = _RANGE_STEP * np.floor((float(slant.min()) - reach) / _RANGE_STEP)
    steps = int((float(slant.max()) + reach - begin) / _RANGE_STEP)
    ranges = np.asarray(begin + _RANGE_STEP * np.arange(steps), dtype=np.float64)
    updates = image.ground_range.time / image.line_interval
    table = image.ground_range.at_updates(ranges)
    if updates.size == 1:
        updates, table = np.array([updates[0], updates[0] + 1]), np.repeat(table, 2, axis=0)
    count = (lattice.columns[1] - lattice.columns[0]) * lattice.across
    at_column = (
        *_places(count, node_offset[1], lattice.node_steps[1], places.shape[2]),
        *_places(count, height_offset[1], lattice.height_steps[1], ground.shape[1]),
    )
    scratch = (*(np.empty(places.shape[2]) for _ in range(3)), np.empty(ground.shape[1]))
    _add(
        places, lattice.node_steps[0], node_offset[0],
        ground, lattice.height_steps[0], height_offset[0], at_column,
        updates, table, begin, _RANGE_STEP, values, first, image.shape, bilinear,
        (lattice.down, lattice.across), sums.total, sums.count, sums.empty, scratch,
    )  # fmt: skip
