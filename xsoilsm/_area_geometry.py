"""Step 3 of 7 (load): where the pixels of one GeoBox lie on another.

One job: turn projections into numbers. `place_tiles` gives polynomials that map tiles of source
pixels to target cells, for the compiled loops; `find_windows` gives the part of a source that a
block of target cells needs. No pixel values here.

Places come from the way source to target alone: the opposite way is a series in PROJ for
EASE-Grid 2.0 and misses its own forward formula by up to 1.7 mm, 2e-5 of a 100 m cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError

from xsoilsm._area_kernel import TILE_QUADS

__all__ = ["Window", "find_windows", "pixels_per_cell", "place_tiles"]

Window: TypeAlias = tuple[slice, slice]
_Floats: TypeAlias = npt.NDArray[np.float64]

_LARGEST_TILE = 128  # side in pixels; control points lie 64 pixels apart
_TILE_METRES = 400e3  # side above which one polynomial is not even tried
_SURE_METRES = 100e3  # side below which a tile's control points tell where it lies
_TOLERANCE = 1e-6  # of a target cell: interpolated corners, straightness of pixel edges
_SMALLEST = 1 / 64  # side in pixels of the last refinement
_SMALLEST_BROKEN = 1 / 8  # the same at a projection's edge, where points have no image
_ENOUGH = 0.25  # target cells: a tile of this size is refined no further

# Control points of a tile, and two points between them where the third-order error of a
# quadratic interpolation is largest; at one of the two, errors along x and y add up.
_THREE = np.array([0.0, 0.5, 1.0])
_WORST = 0.5 - np.sqrt(1 / 12)
_AT_X = np.array([*np.tile(_THREE, 3), _WORST, 1 - _WORST])
_AT_Y = np.array([*np.repeat(_THREE, 3), _WORST, _WORST])
_TO_POWERS = np.array([[1.0, 0.0, 0.0], [-3.0, 4.0, -1.0], [2.0, -4.0, 2.0]])
_CHECK_X, _CHECK_Y = _AT_X[9:] ** np.arange(3)[:, None], _AT_Y[9:] ** np.arange(3)[:, None]
_LATTICE = 9  # points along each side of a block of target cells when its window is sought


@lru_cache(maxsize=64)
def _plane_crs(text: str) -> CRS:
    """Horizontal part of a coordinate reference system."""
    crs = CRS.from_user_input(text)
    while crs.is_bound and crs.source_crs is not None:
        crs = crs.source_crs
    return crs.sub_crs_list[0] if crs.is_compound else crs.to_2d()


@lru_cache(maxsize=256)
def _transformer(source: str, target: str) -> Transformer | None:
    """Way between two systems, None where they are one. pyproj keeps one per thread inside."""
    a, b = _plane_crs(source), _plane_crs(target)
    return None if a == b else Transformer.from_crs(a, b, always_xy=True)


@lru_cache(maxsize=64)
def _world_width(text: str) -> float | None:
    """Length of 360 degrees along x where x is longitude up to scale and shift, else None."""
    crs = _plane_crs(text)
    if crs.is_geographic:
        return 2 * np.pi / float(crs.axis_info[0].unit_conversion_factor)
    if crs.geodetic_crs is None:
        return None
    degrees = 180 / np.pi * float(crs.geodetic_crs.axis_info[0].unit_conversion_factor)
    lon, lat = np.meshgrid(np.arange(-180.0, 181.0, 45.0), [-50.0, 0.0, 20.0])
    try:
        x, _ = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform(
            lon / degrees, lat / degrees
        )
    except ProjError:
        return None
    steps = np.diff(x, axis=1)
    width = 8 * float(np.median(steps))
    if not np.isfinite(x).all() or width == 0:
        return None
    # one step may jump back from one edge of the world to the other
    left_over = np.abs(np.remainder(steps / width + 0.5, 1.0) - 0.625).max()
    same = np.abs(x - x[:1]).max() / abs(width)
    return abs(width) if left_over < 1e-9 and same < 1e-9 else None


@lru_cache(maxsize=64)
def _answers_beyond_rim(text: str) -> bool:
    """Whether PROJ may give points off the map an image (sinusoidal, conic), for all we know."""
    operation = _plane_crs(text).coordinate_operation
    method = "" if operation is None else operation.method_name
    honest = ("Transverse Mercator", "Stereographic", "Azimuthal")
    return _world_width(text) is None and not any(name in method for name in honest)


@lru_cache(maxsize=64)
def _metres_per_unit(text: str) -> float:
    crs = _plane_crs(text)
    factor = float(crs.axis_info[0].unit_conversion_factor) if crs.axis_info else 1.0
    return factor * 6371000.0 if crs.is_geographic else factor


def _apply(a: Affine, x: _Floats, y: _Floats) -> tuple[_Floats, _Floats]:
    with np.errstate(invalid="ignore"):  # inf stands for points without image
        return a.a * x + a.b * y + a.c, a.d * x + a.e * y + a.f


@dataclass(frozen=True)
class _Bridge:
    """Way from pixels of one GeoBox to pixels of another."""

    forward: Affine
    transformer: Transformer | None
    backward: Affine
    width: float | None
    """Length of 360 degrees along x of the other system, None where x is not longitude."""
    pole: float | None
    """Latitude of the pole in units of a geographic first system: pixels end there."""
    doubt: float | None
    """Distance in units of the first system by which a point may miss itself on its way there
    and back. A projection with a curved rim (sinusoidal) answers for points beyond it, too."""

    @classmethod
    def between(cls, first: GeoBox, second: GeoBox) -> _Bridge:
        for geobox in (first, second):
            if geobox.crs is None:
                msg = "a GeoBox has no coordinate reference system; give it one"
                raise ValueError(msg)
        a, b = str(first.crs), str(second.crs)
        transformer = _transformer(a, b)
        crs = _plane_crs(a)
        pole = doubt = None
        if crs.is_geographic:
            pole = 0.5 * np.pi / float(crs.axis_info[0].unit_conversion_factor)
        elif transformer is not None and _answers_beyond_rim(a):
            doubt = 0.1 * _pixel_side(first)
        return cls(first.affine, transformer, ~second.affine, _world_width(b), pole, doubt)

    def project(self, column: _Floats, row: _Floats) -> tuple[_Floats, _Floats]:
        """Coordinates in the second system of pixels of the first; inf where there are none."""
        x, y = _apply(self.forward, column, row)
        if self.pole is not None:
            y = np.clip(y, -self.pole, self.pole)
        if self.transformer is None:
            return x, y
        there_x, there_y = self.transformer.transform(x, y)
        if self.doubt is not None:
            back_x, back_y = self.transformer.transform(there_x, there_y, direction="INVERSE")
            with np.errstate(invalid="ignore"):
                lost = ~(np.abs(back_x - x) + np.abs(back_y - y) <= self.doubt)
            there_x[lost] = np.inf
        return there_x, there_y

    def pixels(self, x: _Floats, y: _Floats) -> tuple[_Floats, _Floats]:
        """Column and row in the second GeoBox of its coordinates."""
        return _apply(self.backward, x, y)

    def turns(self, most: int = 1) -> list[_Floats]:
        """Shifts in columns and rows of the second GeoBox by up to `most` turns of the globe."""
        if self.width is None:
            return [np.zeros(2)]
        turn = self.width * np.array([self.backward.a, self.backward.d])
        return [k * turn for k in range(-most, most + 1)]


def _pixel_side(geobox: GeoBox) -> float:
    """Longer side of a pixel in units of its system."""
    a = geobox.affine
    return float(max(np.hypot(a.a, a.d), np.hypot(a.b, a.e)))


def _pixel_metres(geobox: GeoBox) -> float:
    """Longer side of a pixel in m, roughly."""
    return _pixel_side(geobox) * _metres_per_unit(str(geobox.crs))


def pixels_per_cell(source: GeoBox, target: GeoBox) -> float | None:
    """Side of a target cell in source pixels, roughly; None where it cannot be told."""
    height, width = source.shape
    bridge = _Bridge.between(source, target)
    column = width / 2 + np.array([0.0, 1.0, 0.0])
    row = height / 2 + np.array([0.0, 0.0, 1.0])
    u, v = bridge.pixels(*bridge.project(column, row))
    area = abs((u[1] - u[0]) * (v[2] - v[0]) - (u[2] - u[0]) * (v[1] - v[0]))
    return float(area**-0.5) if np.isfinite(area) and area > 0 else None


def _quads_needed(nodes: _Floats) -> _Floats:
    """Straight pieces along a tile's side that follow its curved lines closely enough.

    `nodes` are (tile, 2, 3, 3) control points. A line with second derivative c leaves its chord
    over a share h of the tile by c h^2 / 8; only the part across the line matters.
    """
    needed = np.ones(len(nodes))
    for lines in (nodes, nodes.swapaxes(2, 3)):
        along = lines[..., 2] - lines[..., 0]
        bend = 4 * np.diff(lines, 2)[..., 0]
        length = np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-300)
        across = np.abs(bend[:, 0] * along[:, 1] - bend[:, 1] * along[:, 0]) / length
        needed = np.maximum(needed, np.sqrt(across.max(axis=1) / (8 * _TOLERANCE)))
    return needed


def place_tiles(
    source: GeoBox, target: GeoBox, anchor: tuple[int, int] = (0, 0)
) -> tuple[_Floats, _Floats, npt.NDArray[np.int64]]:
    """Polynomials that map tiles of source pixels to target cells.

    Tiles begin at multiples of their side counted from the native file's origin, so the same
    pixel gets the same corners whatever the window. A tile is halved until quadratic
    interpolation between its 3 x 3 control points is exact to 1e-6 of a target cell.

    Parameters
    ----------
    source : GeoBox
        Of the window of pixels.
    target : GeoBox
    anchor : (row, column)
        Of the window's first pixel in its file.

    Returns
    -------
    poly : (tile, 2, 3, 3) ndarray of float64
    place : (tile, 3) ndarray of float64
    quads : (tile,) ndarray of int64
        As `xsoilsm._area_kernel.add_tiles` takes them; tiles off the target are left out.
    """
    bridge = _Bridge.between(source, target)
    metres = _pixel_metres(source)
    size = float(_LARGEST_TILE)
    while size > 1 and size * metres > _TILE_METRES:
        size /= 2
    height, width = source.shape
    rows = np.arange(-(anchor[0] % size), height, size)
    columns = np.arange(-(anchor[1] % size), width, size)
    row, column = (a.ravel() for a in np.meshgrid(rows, columns, indexing="ij"))
    found: list[tuple[_Floats, _Floats, npt.NDArray[np.int64]]] = []
    while row.size:
        x, y = bridge.project(column[:, None] + size * _AT_X, row[:, None] + size * _AT_Y)
        if bridge.width is not None:  # no tile is torn by the seam of the globe
            some = np.argmax(np.isfinite(x), axis=1)[:, None]
            with np.errstate(invalid="ignore"):
                turns = np.round((x - np.take_along_axis(x, some, axis=1)) / bridge.width)
                x = x - bridge.width * turns
        points = np.stack(bridge.pixels(x, y), axis=1)
        images = np.asarray(np.isfinite(points).all(axis=1))
        finite = np.asarray(images.all(axis=1))
        held = np.where(finite[:, None, None], points, 0.0)
        nodes = held[:, :, :9].reshape(-1, 2, 3, 3)
        poly = _TO_POWERS @ nodes @ _TO_POWERS.T
        guess = np.einsum("tkij,ip,jp->tkp", poly, _CHECK_Y, _CHECK_X)
        error = np.abs(guess - held[:, :, 9:]).max(axis=(1, 2))
        low = np.where(images[:, None], points, np.inf).min(axis=2)
        high = np.where(images[:, None], points, -np.inf).max(axis=2)
        extent = (high - low).max(axis=1)
        quads = np.maximum(size, np.exp2(np.ceil(np.log2(_quads_needed(nodes)))))
        exact = (error <= _TOLERANCE) & (quads <= TILE_QUADS)
        small = (size < 1) & (extent <= _ENOUGH)
        ready = finite & (exact | small)
        if size <= _SMALLEST:  # a pole that the target's projection cannot show is left out
            finite &= error <= _ENOUGH
            ready = finite
        # how far a tile reaches beyond its control points: known where it is a polynomial
        bulge = sum(np.abs(np.diff(nodes, 2, axis)).max(axis=(1, 2, 3)) for axis in (2, 3)) / 8
        far = np.where(finite, extent / 2, 4 * size * metres / _pixel_metres(target)) + 1
        room = np.where(ready, bulge + _TOLERANCE, far)[:, None]
        near = np.zeros(len(row), dtype=bool)
        for turn in bridge.turns():
            touches = _touches(low + turn - room, high + turn + room, target)
            near |= touches
            take = ready & touches
            poly_here = poly[take]
            poly_here[:, :, 0, 0] += turn
            place = np.stack([row[take], column[take], np.full(take.sum(), size)], axis=1)
            count = np.clip(quads[take], 1, TILE_QUADS).astype(np.int64)
            found.append((poly_here, place, count))
        unsure = size * metres > _SURE_METRES
        again = ~ready & (near | unsure)
        if size <= _SMALLEST:
            break
        if size <= _SMALLEST_BROKEN:
            again &= finite
        size /= 2
        row = (row[again, None] + size * np.array([0.0, 0.0, 1.0, 1.0])).ravel()
        column = (column[again, None] + size * np.array([0.0, 1.0, 0.0, 1.0])).ravel()
        inside = (row < height) & (column < width) & (row + size > 0) & (column + size > 0)
        row, column = row[inside], column[inside]
    polys, places, counts = zip(*found, strict=True)
    return np.concatenate(polys), np.concatenate(places), np.concatenate(counts)


def _touches(low: _Floats, high: _Floats, geobox: GeoBox) -> npt.NDArray[np.bool_]:
    """Whether boxes, (n, 2) lowest and highest column and row, touch a GeoBox."""
    height, width = geobox.shape
    return np.asarray(((low < (width, height)) & (high > 0)).all(axis=1))


def find_windows(
    source: GeoBox,
    target: GeoBox,
    boxes: npt.ArrayLike | None = None,
    margin: int = 1,
) -> list[list[Window]]:
    """Parts of a source that blocks of target cells need.

    Parameters
    ----------
    source, target : GeoBox
    boxes : (n, 4) array_like, optional
        First and last-plus-one row, first and last-plus-one column of blocks of the target;
        the whole target by default.
    margin : int, default 1
        Pixels added on every side.

    Returns
    -------
    list of list of (row slice, column slice)
        For each block the windows of pixels that can touch it: none, one, or two where the
        block lies on the seam of a source that goes around the globe.
    """
    height, width = source.shape
    whole = [[0, target.shape[0], 0, target.shape[1]]]
    block = np.asarray(whole if boxes is None else boxes, dtype=np.float64).reshape(-1, 4)
    bridge = _Bridge.between(target, source)
    share = np.linspace(0, 1, _LATTICE)
    v = block[:, 0, None] + (block[:, 1] - block[:, 0])[:, None] * share
    u = block[:, 2, None] + (block[:, 3] - block[:, 2])[:, None] * share
    v, u = (np.ascontiguousarray(a) for a in np.broadcast_arrays(v[:, :, None], u[:, None, :]))
    x, y = bridge.project(u, v)
    known = np.asarray((np.isfinite(x) & np.isfinite(y)).all(axis=(1, 2)))
    x, y = (np.where(known[:, None, None], a, 0.0) for a in (x, y))
    if bridge.width is not None:
        middle = np.unwrap(x[:, :, _LATTICE // 2], axis=1, period=bridge.width)
        x = np.unwrap(x, axis=2, period=bridge.width)
        x += (middle - x[:, :, _LATTICE // 2])[:, :, None]
    points = np.stack(bridge.pixels(x, y), axis=1)
    # a smooth line leaves the lattice by an eighth of its second difference: twice that
    bulge = sum(np.abs(np.diff(points, 2, axis)).max(axis=(2, 3)) for axis in (2, 3)) / 4
    low = points.min(axis=(2, 3)) - bulge - margin
    high = points.max(axis=(2, 3)) + bulge + margin
    # where a block has points without image, or a pole inside, the whole source is searched
    lost = (~known & _may_touch(source, target, block)) | _holds_pole(source, target, block)
    low[lost], high[lost] = 0, (width, height)
    known |= lost
    windows: list[list[Window]] = [[] for _ in block]
    for turn in bridge.turns(2):
        start = np.maximum(np.floor(low + turn), 0).astype(np.int64)
        stop = np.minimum(np.ceil(high + turn), (width, height)).astype(np.int64)
        for k in np.flatnonzero(known & (start < stop).all(axis=1)):
            (c0, r0), (c1, r1) = start[k].tolist(), stop[k].tolist()
            _join(windows[k], (slice(r0, r1), slice(c0, c1)))
    return windows


def _join(windows: list[Window], new: Window) -> None:
    """Add a window, merged with those whose columns it meets."""
    rows, columns = new
    for old in [w for w in windows if w[1].start <= columns.stop and columns.start <= w[1].stop]:
        windows.remove(old)
        rows = slice(min(rows.start, old[0].start), max(rows.stop, old[0].stop))
        columns = slice(min(columns.start, old[1].start), max(columns.stop, old[1].stop))
    windows.append((rows, columns))


def _may_touch(source: GeoBox, target: GeoBox, block: _Floats) -> npt.NDArray[np.bool_]:
    """Whether blocks of the target are near any point of the source."""
    height, width = source.shape
    bridge = _Bridge.between(source, target)
    share = np.linspace(0, 1, 4 * _LATTICE)
    column, row = np.meshgrid(width * share, height * share)
    points = np.stack(bridge.pixels(*bridge.project(column, row)), axis=0)
    near = np.zeros(len(block), dtype=bool)
    images = np.isfinite(points).all(axis=0)
    if not images.any():
        return near
    with np.errstate(invalid="ignore"):
        steps = [np.abs(np.diff(points, 1, axis)) for axis in (1, 2)]
    room = np.max([np.where(np.isfinite(s), s, 0.0).max(axis=(1, 2)) for s in steps], axis=0)
    low, high = points[:, images].min(axis=1) - room, points[:, images].max(axis=1) + room
    for turn in bridge.turns():
        left, top = low + turn
        right, bottom = high + turn
        near |= (
            (left < block[:, 3])
            & (right > block[:, 2])
            & (top < block[:, 1])
            & (bottom > block[:, 0])
        )
    return near


def _holds_pole(source: GeoBox, target: GeoBox, block: _Floats) -> npt.NDArray[np.bool_]:
    """Whether blocks of the target hold a pole, around which a source's x turns once."""
    held = np.zeros(len(block), dtype=bool)
    if _world_width(str(source.crs)) is None or _world_width(str(target.crs)) is not None:
        return held
    crs = _plane_crs(str(target.crs))
    if crs.geodetic_crs is None:
        return held
    quarter = 0.5 * np.pi / float(crs.geodetic_crs.axis_info[0].unit_conversion_factor)
    poles = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
    x, y = poles.transform(np.zeros(2), np.array([-quarter, quarter]))
    column, row = _apply(~target.affine, np.asarray(x), np.asarray(y))
    room = 0.1 * np.stack([block[:, 1] - block[:, 0], block[:, 3] - block[:, 2]])
    for c, r in zip(column, row, strict=True):
        held |= (
            (block[:, 0] - room[0] <= r)
            & (r <= block[:, 1] + room[0])
            & (block[:, 2] - room[1] <= c)
            & (c <= block[:, 3] + room[1])
        )
    return held
