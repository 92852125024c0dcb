"""Step 5 of 7 (networks): compiled loops over one layer of a folded member.

They cut a layer into the tiles whose vector code `xsoilsm._emit` writes. Convolutions work on one
vector of pixels with all its steps, which stay in the first-level cache; dense layers work on
panels of a few vectors, in which the features of a member follow one another, new ones appended.
Addresses are int64, in bytes; weights lie in the order of use, see `xsoilsm.kernel`.

How long a vector is, and how many sums fit the registers, is known from the features of the
processor that numba compiles for, when this module is imported.
"""
# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of what it compiles; annotations would only repeat "array")

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from xsoilsm._emit import (
    KERNEL,
    PRODUCTS,
    Convolution,
    Dense,
    Pairs,
    emit_convolution,
    emit_copy,
    emit_dense,
    emit_pairs,
)

__all__ = [
    "MACHINE",
    "PROCESSOR",
    "Machine",
    "address",
    "compiled",
    "convolution",
    "copy_vector",
    "dense_layers",
    "inlined",
    "ndvi_part",
    "replicate_edges",
    "second_convolution",
    "third_convolution",
    "weather_part",
]

SNAPSHOT, CHANNELS, STEPS = 18, 3, 46
FILTERS = (32, 16, 4)
POOLED = (23, 11, 3)  # positions after each pooling
PAD = 2
PADDED = (STEPS + 2 * PAD, POOLED[0] + 2 * PAD, POOLED[1] + 2 * PAD)
SERIES = FILTERS[2] * POOLED[2]
HEAD = 32
WEATHER = 2
"""Channels of the weather; in packed series and weights they come first, NDVI last."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Machine(NamedTuple):
    """Sizes that suit a processor.

    Parameters
    ----------
    lanes : int
        Numbers in a vector register.
    positions : int
        Positions of a tile of the convolutions, beside 4 filters.
    vectors, outputs : int
        Tile of the dense layers.
    """

    lanes: int
    positions: int
    vectors: int
    outputs: int

    @classmethod
    def of(cls, triple: str, features: Collection[str]) -> Machine:
        """Sizes for a target of LLVM, whose features are such as "+avx2"."""
        if "+avx512f" in features:  # 32 registers of 16
            return cls(16, 6, 3, 8)
        if triple.startswith(("aarch64", "arm64")):  # 32 registers of 4
            return cls(4, 4, 3, 8)
        lanes = 8 if "+avx" in features else 4  # 16 registers
        return cls(lanes, 2, 3 if "+fma" in features else 2, 4)  # else products need one


_TRIPLE, PROCESSOR, _FEATURES = cpu_target.target_context.codegen().magic_tuple()
MACHINE = Machine.of(_TRIPLE, _FEATURES.split(","))
LANES, POSITIONS, VECTORS, OUTPUTS = MACHINE
FILTER_TILE = 4
TAIL = STEPS % POSITIONS  # the same remainder as that of twice 11 positions
PAIRS_TAIL = POOLED[1] % POSITIONS
WORK = 2 * FILTERS[1] * POSITIONS + 2 * FILTERS[0] * (POSITIONS + 1)
"""Vectors that the second convolution needs beside its input and output."""

# positions of the third convolution taken at once: of the four in a window, of the last three
FOUR = 4 if POSITIONS >= 4 else 2
FOUR_REST = 4 - FOUR
THREE = min(FOUR, 3)
THREE_REST = 3 - THREE
PANEL = LANES * VECTORS
VECTOR_BYTES = 4 * LANES
ROW_BYTES = 4 * PANEL


# --------------------------------------------------------------------------- vector code


def _fixed(values: tuple[Any, ...]) -> Any:
    """Numbers that are known when the code is written, in a list; None if some are not."""
    if not all(isinstance(value, types.IntegerLiteral) for value in values):
        return None
    return [value.literal_value for value in values]


def _vector_code(function: Callable[..., Any]) -> Any:
    """Make what writes code callable from compiled loops; numbers given there are known to it."""
    return intrinsic(prefer_literal=True)(function)


@_vector_code
def _convolve(
    typingctx, lanes, filters, positions, window, given, more,
    weights, start, source, channels, channel_step, target, filter_step,
):  # fmt: skip
    """See `xsoilsm._emit.emit_convolution`."""
    literals = (lanes, filters, positions, window, given, more)
    fixed = _fixed(literals)
    if fixed is None:
        return None
    tile = Convolution(*fixed)

    def codegen(context, builder, signature, args):
        emit_convolution(builder, tile, args[len(literals) :])
        return context.get_dummy_value()

    return types.void(*literals, *[types.int64] * 7), codegen


@_vector_code
def _convolve_pairs(
    typingctx, lanes, filters, pairs, line, compute,
    weights, bias, differences, source, channels, channel_step, kept, other, target, filter_step,
):  # fmt: skip
    """See `xsoilsm._emit.emit_pairs`."""
    literals = (lanes, filters, pairs, line, compute)
    fixed = _fixed(literals)
    if fixed is None:
        return None

    def codegen(context, builder, signature, args):
        emit_pairs(builder, Pairs(*fixed[:3]), fixed[3], bool(fixed[4]), args[len(literals) :])
        return context.get_dummy_value()

    return types.void(*literals, *[types.int64] * 10), codegen


@_vector_code
def _multiply(
    typingctx, lanes, vectors, outputs, relu, weights, bias, source, inputs, target
):  # fmt: skip
    """See `xsoilsm._emit.emit_dense`."""
    literals = (lanes, vectors, outputs, relu)
    fixed = _fixed(literals)
    if fixed is None:
        return None
    tile = Dense(*fixed)

    def codegen(context, builder, signature, args):
        emit_dense(builder, tile, args[len(literals) :])
        return context.get_dummy_value()

    return types.void(*literals, *[types.int64] * 5), codegen


@_vector_code
def copy_vector(typingctx, lanes, source, target):
    """See `xsoilsm._emit.emit_copy`."""
    fixed = _fixed((lanes,))
    if fixed is None:
        return None

    def codegen(context, builder, signature, args):
        emit_copy(builder, fixed[0], args[1:])
        return context.get_dummy_value()

    return types.void(lanes, types.int64, types.int64), codegen


@_vector_code
def address(typingctx, array):
    """Address of an array's first number, signed as all arithmetic with addresses here is."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), codegen


SETTINGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
if hasattr(numba.core.options.DefaultOptions, "_nrt"):
    SETTINGS["_nrt"] = False  # nothing is allocated, so arrays need no reference counts


def compiled(function: _Function) -> _Function:
    """Compile as a part of what calls it, not to be called from Python."""
    inner = SETTINGS | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(_Function, numba.njit(**inner)(function))


def inlined(function: _Function) -> _Function:
    """Make a function a part of the only one that calls it; it costs less to compile."""
    return cast(_Function, numba.njit(inline="always")(function))


# --------------------------------------------------------------------------- convolutions


@compiled
def replicate_edges(rows):
    """Copy the outermost vectors of (row, position, lane) into the padding of two."""
    row, last = address(rows), (rows.shape[1] - 1) * VECTOR_BYTES
    for _ in range(rows.shape[0]):
        copy_vector(LANES, row + 2 * VECTOR_BYTES, row)
        copy_vector(LANES, row + 2 * VECTOR_BYTES, row + VECTOR_BYTES)
        row += last
        copy_vector(LANES, row - 2 * VECTOR_BYTES, row - VECTOR_BYTES)
        copy_vector(LANES, row - 2 * VECTOR_BYTES, row)
        row += VECTOR_BYTES


@compiled
def convolution(weights, source, source_row, channels, filters, pooled, target, target_row):
    """Convolution, ReLU and sums of pairs, for one vector of pixels.

    Returns where the next weights lie.
    """
    step = 4 * KERNEL * FILTER_TILE * channels
    bias = weights + filters // FILTER_TILE * step
    whole = 2 * pooled - TAIL
    for p in range(0, whole, POSITIONS):
        for f in range(0, filters, FILTER_TILE):
            _convolve(
                LANES, FILTER_TILE, POSITIONS, 2, 0, 0,
                weights + f // FILTER_TILE * step, bias + 4 * f,
                source + p * VECTOR_BYTES, channels, source_row,
                target + f * target_row + p // 2 * VECTOR_BYTES, target_row,
            )  # fmt: skip
    for f in range(0, filters, FILTER_TILE):
        _convolve(
            LANES, FILTER_TILE, TAIL, 2, 0, 0,
            weights + f // FILTER_TILE * step, bias + 4 * f,
            source + whole * VECTOR_BYTES, channels, source_row,
            target + f * target_row + whole // 2 * VECTOR_BYTES, target_row,
        )  # fmt: skip
    return bias + 4 * filters


def _line(line, products, pairs):
    """One line of `xsoilsm._emit.emit_pairs` for all filters."""
    size = 4 * products * FILTERS[0] * FILTER_TILE  # bytes of the weights of a tile
    tile = FILTER_TILE * pairs * VECTOR_BYTES
    tiles = FILTERS[1] // FILTER_TILE

    @inlined
    def run(weights, bias, source, target, work):
        channels, row = np.int64(FILTERS[0]), np.int64(PADDED[1] * VECTOR_BYTES)
        filter_step, other = np.int64(PADDED[2] * VECTOR_BYTES), np.int64(tiles * tile)
        differences = work + 2 * tiles * tile
        _convolve_pairs(
            LANES, FILTER_TILE, pairs, line, 1, weights, bias, differences, source,
            channels, row, work, other, target, filter_step,
        )  # fmt: skip
        for f in range(1, tiles):
            _convolve_pairs(
                LANES, FILTER_TILE, pairs, line, 0,
                weights + f * size, bias + 4 * FILTER_TILE * f, differences, source,
                channels, row, work + f * tile, other,
                target + FILTER_TILE * f * filter_step, filter_step,
            )  # fmt: skip
        return weights + tiles * size

    return run


def _lines(pairs):
    """Second convolution, ReLU and sums of pairs for one vector of pixels and some positions."""
    both, apart, first, second = (_line(i, n, pairs) for i, n in enumerate((2, 1, 2, 2)))

    @inlined
    def run(weights, bias, source, target, work):
        weights = both(weights, bias, source, target, work)
        weights = apart(weights, bias, source, target, work)
        weights = first(weights, bias, source, target, work)
        second(weights, bias, source, target, work)

    return run


_whole_pairs, _last_pairs = _lines(POSITIONS), _lines(PAIRS_TAIL)


@compiled
def second_convolution(weights, source, target, work):
    """Second convolution, ReLU and sums of pairs, for one vector of pixels.

    Returns where the next weights lie.
    """
    bias = weights + 4 * PRODUCTS * FILTERS[0] * FILTERS[1]
    last = POOLED[1] - PAIRS_TAIL
    for p in range(0, last, POSITIONS):
        _whole_pairs(
            weights, bias, source + 2 * p * VECTOR_BYTES, target + p * VECTOR_BYTES, address(work)
        )
    _last_pairs(
        weights, bias, source + 2 * last * VECTOR_BYTES, target + last * VECTOR_BYTES,
        address(work),
    )  # fmt: skip
    return bias + 4 * FILTERS[1]


@inlined
def weather_part(weights, weather, part):
    """First convolution of the weather alone, (channel, position, lane), without ReLU.

    Each lane holds a different series; `part` is (filter, step, lane).
    """
    step = 4 * KERNEL * FILTER_TILE * CHANNELS
    bias = weights + FILTERS[0] // FILTER_TILE * step
    whole = STEPS - TAIL
    for f in range(0, FILTERS[0], FILTER_TILE):
        for p in range(0, whole, POSITIONS):
            _convolve(
                LANES, FILTER_TILE, POSITIONS, 0, 0, 0,
                weights + f // FILTER_TILE * step, bias + 4 * f,
                address(weather) + p * VECTOR_BYTES, WEATHER, PADDED[0] * VECTOR_BYTES,
                address(part) + (f * STEPS + p) * VECTOR_BYTES, STEPS * VECTOR_BYTES,
            )  # fmt: skip
        _convolve(
            LANES, FILTER_TILE, TAIL, 0, 0, 0,
            weights + f // FILTER_TILE * step, bias + 4 * f,
            address(weather) + whole * VECTOR_BYTES, WEATHER, PADDED[0] * VECTOR_BYTES,
            address(part) + (f * STEPS + whole) * VECTOR_BYTES, STEPS * VECTOR_BYTES,
        )  # fmt: skip


@inlined
def ndvi_part(weights, source, part, target, target_row):
    """First convolution as `convolution`, going on from one lane of the weather's part."""
    step = 4 * KERNEL * FILTER_TILE * CHANNELS
    ndvi = weights + 4 * KERNEL * FILTER_TILE * WEATHER
    source += WEATHER * PADDED[0] * VECTOR_BYTES
    whole = STEPS - TAIL
    for p in range(0, whole, POSITIONS):
        for f in range(0, FILTERS[0], FILTER_TILE):
            _convolve(
                LANES, FILTER_TILE, POSITIONS, 2, STEPS, 0,
                ndvi + f // FILTER_TILE * step, part + (f * STEPS + p) * VECTOR_BYTES,
                source + p * VECTOR_BYTES, 1, 0,
                target + f * target_row + p // 2 * VECTOR_BYTES, target_row,
            )  # fmt: skip
    for f in range(0, FILTERS[0], FILTER_TILE):
        _convolve(
            LANES, FILTER_TILE, TAIL, 2, STEPS, 0,
            ndvi + f // FILTER_TILE * step, part + (f * STEPS + whole) * VECTOR_BYTES,
            source + whole * VECTOR_BYTES, 1, 0,
            target + f * target_row + whole // 2 * VECTOR_BYTES, target_row,
        )  # fmt: skip
    return weights + FILTERS[0] // FILTER_TILE * step + 4 * FILTERS[0]


@inlined
def third_convolution(weights, source, target, target_row):
    """Third convolution, ReLU and sums over 4, 4 and 3 positions; feature rows of a tile."""
    bias = weights + 4 * KERNEL * FILTERS[1] * FILTERS[2]
    row = PADDED[2] * VECTOR_BYTES
    for window in range(2):
        start, end = source + 4 * window * VECTOR_BYTES, target + window * target_row
        _convolve(
            LANES, FILTER_TILE, FOUR, FOUR, 0, 0,
            weights, bias, start, FILTERS[1], row, end, POOLED[2] * target_row,
        )  # fmt: skip
        _convolve(
            LANES, FILTER_TILE, FOUR_REST, FOUR_REST, 0, 1, weights, bias,
            start + FOUR * VECTOR_BYTES, FILTERS[1], row, end, POOLED[2] * target_row,
        )  # fmt: skip
    start, end = source + 8 * VECTOR_BYTES, target + 2 * target_row
    _convolve(
        LANES, FILTER_TILE, THREE, THREE, 0, 0,
        weights, bias, start, FILTERS[1], row, end, POOLED[2] * target_row,
    )  # fmt: skip
    _convolve(
        LANES, FILTER_TILE, THREE_REST, THREE_REST, 0, 1, weights, bias,
        start + THREE * VECTOR_BYTES, FILTERS[1], row, end, POOLED[2] * target_row,
    )  # fmt: skip
    return bias + 4 * FILTERS[2]


# --------------------------------------------------------------------------- dense layers


@compiled
def _dense(weights, source, source_panel, inputs, target, target_panel, outputs, panels):
    """One layer with ReLU. Outputs are rounded up: what comes after them is overwritten.

    Returns where the next weights lie.
    """
    tiles = (outputs + OUTPUTS - 1) // OUTPUTS
    step = 4 * inputs * OUTPUTS
    bias = weights + tiles * step
    for t in range(tiles):
        for p in range(panels):
            _multiply(
                LANES, VECTORS, OUTPUTS, 1, weights + t * step, bias + 4 * t * OUTPUTS,
                source + p * source_panel, inputs,
                target + p * target_panel + t * OUTPUTS * ROW_BYTES,
            )  # fmt: skip
    return bias + 4 * tiles * OUTPUTS


@inlined
def dense_layers(weights, depth, width, features, hidden, moisture, panels):
    """From (panel, feature, pixel) to soil moisture (pixel)."""
    source, source_panel = address(features), features.shape[1] * ROW_BYTES
    one, two, panel = address(hidden[0]), address(hidden[1]), hidden.shape[2] * ROW_BYTES
    known = np.int64(SNAPSHOT + SERIES)
    for _ in range(depth):
        new = source + known * ROW_BYTES
        weights = _dense(weights, source, source_panel, known, one, panel, width, panels)
        weights = _dense(weights, one, panel, width, two, panel, width, panels)
        weights = _dense(weights, two, panel, width, new, source_panel, width, panels)
        known += width
    head = np.int64(HEAD)
    weights = _dense(weights, source, source_panel, known, one, panel, head, panels)
    for p in range(panels):
        _multiply(
            LANES, VECTORS, 1, 0, weights, weights + 4 * HEAD,
            one + p * panel, HEAD, address(moisture) + p * ROW_BYTES,
        )  # fmt: skip
