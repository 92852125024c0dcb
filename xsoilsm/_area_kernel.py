"""Step 3 of 7 (load): compiled loops of the exact area-weighted mean.

One job: given, for every tile of source pixels, two polynomials that say where the tile lies on
the target grid, add ``area * value`` and ``area`` of every pixel to the target cells it touches.
Where the polynomials come from is another module's affair; nothing here knows of projections.

Coordinates are in target cells: ``u`` counts columns, ``v`` rows, from the upper left corner of
the target. A pixel is the quadrilateral of its four corners. Its area inside a cell follows from
Green's theorem: the part of a polygon with ``u < k`` has the area of the line integral of
``min(u - k, 0) dv`` around the whole polygon, so no part needs to be built to be measured.

Three kinds of pixels, row by row of a tile: runs inside one cell are summed in vector registers,
pixels across one line between cells are divided in closed form, the others (at corners of cells,
or larger than a cell) are cut to one row of cells after the other.
"""
# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of what it compiles; annotations would only repeat "array")

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numba.extending
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import types

__all__ = ["TILE_QUADS", "add_tiles"]

TILE_QUADS = 256
"""Largest number of quadrilaterals along one side of a tile."""

_CACHE_LINE = 64  # bytes
_ROWS_AHEAD = 3
_BLOCK = 16  # pixels that are looked at together for one in several cells
_ROW = 2.0**26  # number of a cell: row times this plus column, exact in a float64
_SLIVER = 1e-8  # part of a pixel (or of a cell, if smaller) below which an overlap is rounding
_LN_TO_DECIBEL = 10.0 / np.log(10.0)
_LN_2 = np.log(2.0)
_SQRT_2 = np.sqrt(2.0)
_SMALLEST_NORMAL = 2.2250738585072014e-308
# parts of a float64
_EXPONENT_OF_ONE = np.int64(1023)
_FRACTION_BITS = np.int64(52)
_FRACTION = np.int64(0x000FFFFFFFFFFFFF)
_ONE = np.int64(0x3FF0000000000000)
# the same of a float32, and numbers that keep arithmetic in it
_MIDDLE_32, _BITS_32 = np.int32(127), np.int32(23)
_FRACTION_32, _UNIT_32 = np.int32(0x007FFFFF), np.int32(0x3F800000)
_SMALLEST_NORMAL_32 = np.float32(2.0**-126)
_OCTAVES_32, _SCALE_32 = np.float32(32), np.float32(2.0**32)
_NONE_32, _HALF_32, _ONE_32 = np.float32(0), np.float32(0.5), np.float32(1)
_SQRT_2_32 = np.float32(np.sqrt(2.0))
_OCTAVE = 10.0 * np.log10(2.0)  # in dB
# polynomial P with log2(1 + t) = t P(t)
_LOG2 = tuple(
    np.float32(c)
    for c in (
        1.442694902420044,
        -0.7213471531867981,
        0.48092252016067505,
        -0.3607212007045746,
        0.28765666484832764,
        -0.23851950466632843,
        0.21737946569919586,
        -0.21030297875404358,
        0.12541186809539795,
    )
)

_Function = TypeVar("_Function", bound=Callable[..., Any])
_intrinsic: Any = numba.extending.intrinsic


def _compiled(*fastmath: str) -> Callable[[_Function], _Function]:
    """Compile without the interpreter's lock, cached on disk where a folder is writable.

    Nothing is allocated inside, so arrays need no reference counts (``_nrt``): these cost more
    than the arithmetic.
    """

    def compile_function(function: _Function) -> _Function:
        settings: dict[str, Any] = {
            "nogil": True,
            "error_model": "numpy",
            "fastmath": {"contract", *fastmath},
        }
        if hasattr(numba.core.options.DefaultOptions, "_nrt"):
            settings["_nrt"] = False
        try:
            return cast(_Function, numba.njit(cache=True, **settings)(function))
        except RuntimeError:  # numba found no writable cache folder
            return cast(_Function, numba.njit(**settings)(function))

    return compile_function


def _inlined(function: _Function) -> _Function:
    """Make a function a part of its compiled callers."""
    return cast(_Function, numba.njit(inline="always")(function))


@_intrinsic
def _fetch_ahead(typing, array, at):
    """Ask for the line of the cache around a byte of an array, without waiting for it."""

    def emit(context, builder, signature, values):
        made = context.make_array(signature.args[0])(context, builder, values[0])
        byte = ir.IntType(8).as_pointer()
        place = builder.gep(builder.bitcast(made.data, byte), [values[1]])
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        name = "llvm.prefetch.p0"
        known = builder.module.globals.get(name)
        function = known or ir.Function(builder.module, kind, name)
        builder.call(function, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), emit


@_compiled()
def _fetch_row(values, b, row, first, count):
    """Ask for a part of a row that is read later: rows of a tile lie far apart in memory."""
    at = ((b * values.shape[1] + row) * values.shape[2] + first) * values.itemsize
    for k in range((count * values.itemsize) // _CACHE_LINE + 1):
        _fetch_ahead(values, at + k * _CACHE_LINE)


@_compiled()
def _read_row(values, b, row, shift, first, count, limits, value, valid):
    """Fill band b of `value` and `valid` (1 or 0) from a row; both are 0 where not valid.

    Without subdivision (`shift` 0) quadrilateral j is pixel ``first + j``, else pixel
    ``(first + j) >> shift``. Unsigned indices cannot count from the end, and `limits` (0, 1,
    largest finite number, nodata) have the type of the values: so loops run in vector registers.
    """
    zero, one, largest, nodata = limits[0], limits[1], limits[2], limits[3]
    start = np.uint64(first)
    if shift == 0:
        for j in range(np.uint64(count)):
            x = values[b, row, start + j]
            good = (abs(x) <= largest) & (x != nodata)
            value[b, j] = x if good else zero
            valid[b, j] = one if good else zero
    else:
        for j in range(np.uint64(count)):
            x = values[b, row, (start + j) >> np.uint64(shift)]
            good = (abs(x) <= largest) & (x != nodata)
            value[b, j] = x if good else zero
            valid[b, j] = one if good else zero


@_compiled()
def _count_valid(b, count, valid):
    """Count the pixels of band b that are valid."""
    found = np.int32(0)
    for j in range(np.uint64(count)):
        found += np.int32(valid[b, j] != 0)
    return int(found)


@_compiled()
def _to_decibel(b, count, value, valid):
    """Replace values by 10 log10 of them; those not above zero become invalid.

    ln m = 2 (s + s^3/3 + s^5/5 + ...) with s = (m - 1)/(m + 1) and m the fraction of the
    floating-point number, between sqrt(1/2) and sqrt(2): |s| < 0.172, error below 1e-13.
    """
    for j in range(count):
        good = value[b, j] >= _SMALLEST_NORMAL
        word = np.float64(value[b, j]).view(np.int64) if good else _ONE
        power = np.float64((word >> _FRACTION_BITS) - _EXPONENT_OF_ONE)
        m = np.int64((word & _FRACTION) | _ONE).view(np.float64)
        high = m > _SQRT_2
        m = 0.5 * m if high else m
        power = power + 1.0 if high else power
        s = (m - 1.0) / (m + 1.0)
        z = s * s
        series = 1.0 / 17.0
        series = series * z + 1.0 / 15.0
        series = series * z + 1.0 / 13.0
        series = series * z + 1.0 / 11.0
        series = series * z + 1.0 / 9.0
        series = series * z + 1.0 / 7.0
        series = series * z + 1.0 / 5.0
        series = series * z + 1.0 / 3.0
        series = series * z + 1.0
        result = _LN_TO_DECIBEL * (2.0 * s * series + power * _LN_2)
        value[b, j] = result if good else 0.0
        valid[b, j] = valid[b, j] if good else 0.0


@_compiled()
def _to_octaves(b, count, value, valid):
    """Replace float32 by their log2; those not above zero become invalid.

    log2(1 + t) is t times a polynomial fitted for the least largest error, 7e-9 between
    sqrt(1/2) and sqrt(2); the logarithm is then as good as a float32 can be. The factor to
    decibels would round once more, always the same way: it is left to the sums.
    """
    for j in range(count):
        x = value[b, j]
        good = x > _NONE_32
        tiny = x < _SMALLEST_NORMAL_32
        y = x * _SCALE_32 if tiny else x
        y = y if good else _ONE_32
        word = np.float32(y).view(np.int32)
        power = np.float32(np.int32(np.int32(word >> _BITS_32) - _MIDDLE_32))
        power = power - _OCTAVES_32 if tiny else power
        m = np.int32((word & _FRACTION_32) | _UNIT_32).view(np.float32)
        high = m > _SQRT_2_32
        m = _HALF_32 * m if high else m
        power = power + _ONE_32 if high else power
        t = m - _ONE_32
        series = _LOG2[8]
        series = series * t + _LOG2[7]
        series = series * t + _LOG2[6]
        series = series * t + _LOG2[5]
        series = series * t + _LOG2[4]
        series = series * t + _LOG2[3]
        series = series * t + _LOG2[2]
        series = series * t + _LOG2[1]
        series = series * t + _LOG2[0]
        value[b, j] = series * t + power if good else _NONE_32
        valid[b, j] = valid[b, j] if good else _NONE_32


@_compiled()
def _corner_row(poly, t, y, first, count, per_tile, corner, side):
    """Target coordinates, and a number for the cell, of one row of pixel corners of a tile.

    ``corner[side]`` is (3, n): u, v, cell. Corner j lies at ``(first + j) * per_tile`` across
    the tile and at `y` down the tile, both from 0 to 1.
    """
    for k in range(2):
        c0 = poly[t, k, 0, 0] + y * (poly[t, k, 1, 0] + y * poly[t, k, 2, 0])
        c1 = poly[t, k, 0, 1] + y * (poly[t, k, 1, 1] + y * poly[t, k, 2, 1])
        c2 = poly[t, k, 0, 2] + y * (poly[t, k, 1, 2] + y * poly[t, k, 2, 2])
        for j in range(count):
            x = (first + j) * per_tile
            corner[side, k, j] = c0 + x * (c1 + x * c2)
    for j in range(count):
        cell = np.floor(corner[side, 1, j]) * _ROW + np.floor(corner[side, 0, j])
        corner[side, 2, j] = cell


@_compiled()
def _areas(corner, top, sign, count, area):
    """Area of each pixel between two rows of corners: half the product of its diagonals."""
    bottom = 1 - top
    half = 0.5 * sign
    for j in range(count):
        du = corner[bottom, 0, j + 1] - corner[top, 0, j]
        dv = corner[bottom, 1, j + 1] - corner[top, 1, j]
        eu = corner[bottom, 0, j] - corner[top, 0, j + 1]
        ev = corner[bottom, 1, j] - corner[top, 1, j + 1]
        area[j] = half * (du * ev - dv * eu)


@_compiled()
def _find_splits(corner, top, count, split, found):
    """List the pixels whose corners lie in more than one cell; return how many."""
    bottom = 1 - top
    for j in range(count):
        cell = corner[top, 2, j]
        split[j] = (
            abs(corner[top, 2, j + 1] - cell)
            + abs(corner[bottom, 2, j] - cell)
            + abs(corner[bottom, 2, j + 1] - cell)
        )
    n = 0
    for block in range(count // _BLOCK):
        start = block * _BLOCK
        some = 0
        for j in range(_BLOCK):
            some += split[start + j] > 0.0
        if some > 0:
            for j in range(start, start + _BLOCK):
                found[n] = j
                n += split[j] > 0.0
    for j in range(count // _BLOCK * _BLOCK, count):
        found[n] = j
        n += split[j] > 0.0
    return n


@_inlined
def _below(a, b):
    """Mean of min(x, 0) for x running from a to b, without a branch to guess wrong."""
    low_a = min(a, 0.0)
    low_b = min(b, 0.0)
    length = b - a
    whole = (length == 0.0) | (max(a, b) <= 0.0)
    share = 1.0 if whole else (low_b - low_a) / length
    return 0.5 * (low_a + low_b) * share


@_inlined
def _quad_below(p0, p1, p2, p3, q0, q1, q2, q3):
    """Signed area of the part with p < 0 of a quadrilateral with corners (p, q)."""
    e0 = (q1 - q0) * _below(p0, p1)
    e1 = (q2 - q1) * _below(p1, p2)
    e2 = (q3 - q2) * _below(p2, p3)
    e3 = (q0 - q3) * _below(p3, p0)
    return e0 + e1 + e2 + e3


@_inlined
def _cut(edge, k, u0, v0, u1, v1, top, bottom):
    """Cut edge k to the strip between two lines: u at its start and at its end, height."""
    start = min(max(v0, top), bottom)
    stop = min(max(v1, top), bottom)
    slope = (u1 - u0) / (v1 - v0) if stop != start else 0.0
    edge[0, k] = u0 + (start - v0) * slope
    edge[1, k] = u0 + (stop - v0) * slope
    edge[2, k] = stop - start


@_inlined
def _strip_below(edge, line):
    """Signed area left of a line that four cut edges enclose."""
    area = 0.0
    for k in range(4):
        area += edge[2, k] * _below(edge[0, k] - line, edge[1, k] - line)
    return area


@_inlined
def _add(total, weight, row, column, area, unit, value, valid, j):
    """Add pixel j of every band to one target cell, if the target has it."""
    if 0 <= row < total.shape[1] and 0 <= column < total.shape[2]:
        for b in range(total.shape[0]):
            total[b, row, column] += area * unit * value[b, j]
            weight[b, row, column] += area * valid[b, j]


@_inlined
def _add_split(corner, top, j, sign, area, unit, total, weight, value, valid, edge):
    """Add pixel j, which is not inside one cell, to the cells it touches."""
    i = j + 1
    u0, v0 = corner[top, 0, j], corner[top, 1, j]
    u1, v1 = corner[top, 0, i], corner[top, 1, i]
    u2, v2 = corner[1 - top, 0, i], corner[1 - top, 1, i]
    u3, v3 = corner[1 - top, 0, j], corner[1 - top, 1, j]
    left = int(np.floor(min(min(u0, u1), min(u2, u3))))
    right = int(np.floor(max(max(u0, u1), max(u2, u3))))
    above = int(np.floor(min(min(v0, v1), min(v2, v3))))
    below = int(np.floor(max(max(v0, v1), max(v2, v3))))
    least = _SLIVER * min(area, 1.0)
    if not (
        area > 0.0
        and right >= 0
        and left < total.shape[2]
        and below >= 0
        and above < total.shape[1]
    ):
        pass
    elif right - left + below - above == 1:
        line = float(right)
        if right > left:
            part = _quad_below(u0 - line, u1 - line, u2 - line, u3 - line, v0, v1, v2, v3)
        else:
            line = float(below)
            part = -_quad_below(v0 - line, v1 - line, v2 - line, v3 - line, u0, u1, u2, u3)
        part *= sign
        if part > least:
            _add(total, weight, above, left, part, unit, value, valid, j)
        if area - part > least:
            _add(total, weight, below, right, area - part, unit, value, valid, j)
    else:
        for row in range(max(above, 0), min(below + 1, total.shape[1])):
            strip, strip_end = float(row), row + 1.0
            _cut(edge, 0, u0, v0, u1, v1, strip, strip_end)
            _cut(edge, 1, u1, v1, u2, v2, strip, strip_end)
            _cut(edge, 2, u2, v2, u3, v3, strip, strip_end)
            _cut(edge, 3, u3, v3, u0, v0, strip, strip_end)
            first = max(left, 0)
            before = sign * _strip_below(edge, float(first)) if first > left else 0.0
            for column in range(first, min(right + 1, total.shape[2])):
                upto = sign * _strip_below(edge, column + 1.0)
                if upto - before > least:
                    _add(total, weight, row, column, upto - before, unit, value, valid, j)
                before = upto


@_inlined
def _orientation(poly, t):
    """Sign of the Jacobian in a tile's middle: -1 where the map mirrors."""
    ux = poly[t, 0, 0, 1] + 0.5 * poly[t, 0, 1, 1] + poly[t, 0, 0, 2]
    uy = poly[t, 0, 1, 0] + 0.5 * poly[t, 0, 1, 1] + poly[t, 0, 2, 0]
    vx = poly[t, 1, 0, 1] + 0.5 * poly[t, 1, 1, 1] + poly[t, 1, 0, 2]
    vy = poly[t, 1, 1, 0] + 0.5 * poly[t, 1, 1, 1] + poly[t, 1, 2, 0]
    return 1.0 if ux * vy - vx * uy > 0.0 else -1.0


@_compiled("reassoc", "nsz")  # lets sums run in vector registers; NaN keeps its meaning
def _add_runs(corner, top, count, found, breaks, area, unit, whole, value, valid, total, weight):
    """Add the pixels of a row between those in `breaks`, which lie inside one cell each."""
    begin = 0
    for k in range(found + 1):
        end = breaks[k] if k < found else count
        row = int(np.floor(corner[top, 1, begin]))
        column = int(np.floor(corner[top, 0, begin]))
        if end > begin and 0 <= row < total.shape[1] and 0 <= column < total.shape[2]:
            share = 0.0
            if whole:  # every pixel is valid
                for j in range(np.uint64(begin), np.uint64(end)):
                    share += area[j]
            for b in range(total.shape[0]):
                part = 0.0
                for j in range(np.uint64(begin), np.uint64(end)):
                    part += area[j] * value[b, j]
                if not whole:
                    share = 0.0
                    for j in range(np.uint64(begin), np.uint64(end)):
                        share += area[j] * valid[b, j]
                total[b, row, column] += unit * part
                weight[b, row, column] += share
        begin = end + 1


@_compiled()
def _add_tiles(values, poly, place, quads, decibel, octaves, limits, total, weight, scratch):
    corner, area, split, breaks, value, valid, edge = scratch
    bands, height, width = values.shape
    unit = _OCTAVE if octaves else 1.0
    for t in range(poly.shape[0]):
        n = quads[t]
        row0, column0, size = place[t, 0], place[t, 1], place[t, 2]
        step = size / n
        shift = 0
        while step * (1 << shift) < 1.0:
            shift += 1
        # the part of the tile inside the window, in quadrilaterals
        first_row = int(max(0.0, -row0) / step)
        stop_row = int(min(float(n), (height - row0) / step))
        first = int(max(0.0, -column0) / step)
        count = int(min(float(n), (width - column0) / step)) - first
        if count <= 0:
            continue
        start = int(column0 / step) + first
        sign = _orientation(poly, t)
        top = 0
        _corner_row(poly, t, first_row / n, first, count + 1, 1.0 / n, corner, top)
        for i in range(first_row, stop_row):
            _corner_row(poly, t, (i + 1) / n, first, count + 1, 1.0 / n, corner, 1 - top)
            pixel_row = int(np.floor(row0 + (i + 0.5) * step))
            good = 0
            for b in range(bands):
                ahead = pixel_row + _ROWS_AHEAD
                if ahead < height:
                    _fetch_row(values, b, ahead, start >> shift, count >> shift)
                _read_row(values, b, pixel_row, shift, start, count, limits, value, valid)
                if octaves:
                    _to_octaves(b, count, value, valid)
                elif decibel:
                    _to_decibel(b, count, value, valid)
                good += _count_valid(b, count, valid)
            if good > 0:
                whole = good == bands * count
                _areas(corner, top, sign, count, area)
                found = _find_splits(corner, top, count, split, breaks)
                _add_runs(
                    corner, top, count, found, breaks, area, unit, whole, value, valid,
                    total, weight,
                )  # fmt: skip
                for k in range(found):
                    j = breaks[k]
                    _add_split(
                        corner, top, j, sign, area[j], unit, total, weight, value, valid, edge
                    )
            top = 1 - top


def add_tiles(
    values: npt.NDArray[np.floating[Any]],
    poly: npt.NDArray[np.float64],
    place: npt.NDArray[np.float64],
    quads: npt.NDArray[np.int64],
    decibel: bool,
    nodata: float,
    total: npt.NDArray[np.float64],
    weight: npt.NDArray[np.float64],
) -> None:
    """Add every tile of a window of source pixels to the sums of the target cells.

    Computes, without holding the interpreter's lock. Shapes are not checked.

    Parameters
    ----------
    values : (band, height, width) ndarray of float32 or float64, contiguous
        The window.
    poly : (tile, 2, 3, 3) ndarray of float64
        Target column u and row v of a point at (x, y) in a tile, both from 0 to 1:
        ``sum(poly[tile, k, i, j] * y**i * x**j)``.
    place : (tile, 3) ndarray of float64
        Row and column, in pixels of the window, of the tile's upper left corner, and its side
        in pixels: a power of two. A tile smaller than a pixel lies inside one.
    quads : (tile,) ndarray of int64
        Quadrilaterals along one side of the tile: at least one per pixel, a power of two, at
        most `TILE_QUADS`.
    decibel : bool
        Average 10 log10 of the values; those not above zero do not count.
    nodata : float
        Value that does not count, NaN for none. Values that are not finite never count.
    total, weight : (band, Y, X) ndarray of float64, contiguous
        Sums of area * value and of area, in target cells; added to in place.
    """
    bands, kind = values.shape[0], values.dtype
    octaves = decibel and kind == np.float32
    scratch = (
        np.empty((2, 3, TILE_QUADS + 1)),
        np.empty(TILE_QUADS),
        np.empty(TILE_QUADS),
        np.empty(TILE_QUADS + 1, dtype=np.int64),
        np.empty((bands, TILE_QUADS), dtype=kind),
        np.empty((bands, TILE_QUADS), dtype=kind),
        np.empty((3, 4)),
    )
    limits = np.array([0, 1, np.finfo(kind).max, nodata], dtype=kind)
    _add_tiles(
        values, poly, place, quads, decibel and not octaves, octaves, limits, total, weight, scratch
    )
