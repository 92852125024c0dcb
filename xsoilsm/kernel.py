"""Step 5 of 7 (networks): all members of an ensemble in one compiled pass over the pixels.

The fast way of `xsoilsm.engine` on a CPU. This module packs the weights of folded members into
the order in which `xsoilsm._tiles` reads them, divides the pixels into blocks that threads take
in turn, leaves out pixels with a missing input, and puts those with equal weather side by side.
What a pixel gets does not depend on its neighbours, nor on how the work is divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xsoilsm._emit import KERNEL
from xsoilsm._layers import (
    CHANNELS,
    FILTER_TILE,
    FILTERS,
    HEAD,
    LANES,
    MACHINE,
    PANEL,
    SNAPSHOT,
    STEPS,
    WEATHER,
)
from xsoilsm._tiles import GROUPS, TILE, buffer_shapes, compile_loops
from xsoilsm.folding import JOINED, FoldedMember, Layer

__all__ = ["Kernel"]

BLOCK = 8 * TILE
"""Pixels that a thread takes at a time, at most."""

SHARE = 2
"""A block is at most the remaining pixels by this and by the threads, so that blocks become
smaller towards the end and all threads end at about the same time."""

ACQUISITIONS = 8
"""Acquisitions with the same window that are taken at once, at most."""

SHARING_PAYS = 2
"""Vectors with common weather from which it pays to compute its part of a tile apart."""

ALIGNMENT = 64  # bytes; of the longest vectors and of a line of the cache

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Buffers = tuple[npt.NDArray[Any], ...]


class Kernel:
    """Folded members, packed for the compiled loops.

    Any number of threads may call one kernel at the same time.

    Parameters
    ----------
    members : sequence of FoldedMember

    Attributes
    ----------
    edition : int
        Of the compiled loops, for all kernels to come, see `xsoilsm._tiles.compile_loops`.

    Raises
    ------
    ValueError
        When a layer does not have the shape that the member's depth and width ask for.
    """

    edition = 0

    def __init__(self, members: Sequence[FoldedMember]) -> None:
        self._run = _compiled_loops(Kernel.edition)
        self._weights, self._members = _pack(members)
        self._shapes = buffer_shapes(
            ACQUISITIONS,
            max(JOINED + member.depth * member.width for member in members),
            max(member.width for member in members),
        )
        self._spare: list[Buffers] = []

    def predict_many(
        self,
        snapshots: Float32,
        series: Float32,
        ends: Int64,
        valid: Bool | None = None,
        threads: int = 1,
    ) -> tuple[Float32, Float32]:
        """See `xsoilsm.engine.Engine.predict_many`; the inputs must have been checked."""
        shape = (snapshots.shape[0], snapshots.shape[2])
        mean, std = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
        parts = _divide(shape[1], threads)

        def block(part: slice) -> None:
            given = None if valid is None else valid[:, part]
            self._predict_block(
                snapshots[..., part], series[..., part], ends, given, mean[:, part], std[:, part]
            )

        threads = min(threads, len(parts))
        if threads < 2:
            for part in parts:
                block(part)
        else:
            with ThreadPoolExecutor(threads, "xsoilsm-kernel") as pool:
                list(pool.map(block, parts))
        return mean, std

    def _predict_block(
        self,
        snapshots: Float32,
        series: Float32,
        ends: Int64,
        given: Bool | None,
        mean: Float32,
        std: Float32,
    ) -> None:
        valid: Bool = np.logical_not(np.isnan(snapshots).any(axis=1))
        if given is not None:
            valid &= given
        whole_steps: Bool = np.logical_not(np.isnan(series).any(axis=0))
        try:
            buffers = self._spare.pop()
        except IndexError:
            buffers = _allocate(self._shapes)
        for end in np.unique(ends):
            window = slice(int(end) + 1 - STEPS, int(end) + 1)
            whole = whole_steps[window].all(axis=0)
            same = np.flatnonzero(ends == end)
            for start in range(0, same.size, ACQUISITIONS):
                chosen = same[start : start + ACQUISITIONS]
                pixels = np.flatnonzero(whole & valid[chosen].any(axis=0))
                if pixels.size == 0:
                    continue
                pixels, shared = _by_weather(series[1:, window], pixels)
                packed = _Series.pack(series[:, window], pixels, shared)
                parts = [_Snapshot.pack(snapshots[t], pixels, valid[t]) for t in chosen]
                found = np.empty((2, chosen.size, parts[0].places.size), np.float32)
                self._run(
                    self._weights,
                    self._members,
                    *packed,
                    np.stack([part.values for part in parts]),
                    np.stack([part.places for part in parts]),
                    np.stack([part.counts for part in parts]),
                    *found,
                    buffers,
                )
                for t, part, mean_t, std_t in zip(chosen, parts, *found, strict=True):
                    mean[t, part.pixels] = mean_t[part.at]
                    std[t, part.pixels] = std_t[part.at]
        self._spare.append(buffers)


@lru_cache
def _compiled_loops(edition: int) -> Callable[..., int]:
    return compile_loops(edition)


# --------------------------------------------------------------------------- pixels


def _divide(pixels: int, threads: int) -> list[slice]:
    """Blocks of whole panels: equal for one thread, smaller towards the end for several."""
    parts = []
    start = 0
    while start < pixels:
        size = BLOCK
        if threads > 1:
            left = pixels - start
            size = min(BLOCK, max(TILE, left // (threads * SHARE)), math.ceil(left / threads))
        stop = min(start + math.ceil(size / PANEL) * PANEL, pixels)
        parts.append(slice(start, stop))
        start = stop
    return parts


def _by_weather(weather: Float32, pixels: Int64) -> tuple[Int64, bool]:
    """Order pixels so that those with equal weather are neighbours, if that helps many.

    Looks at two numbers of each series only: whole series are compared later.
    """
    first, last = (
        np.ascontiguousarray(weather[0, step, pixels]).view(np.uint32) for step in (0, -1)
    )
    keys = (first.astype(np.uint64) << np.uint64(32)) | last
    order = np.argsort(keys, kind="stable")
    helps = np.count_nonzero(np.diff(keys[order])) * LANES < pixels.size
    return (pixels[order], True) if helps else (pixels, False)


class _Series(NamedTuple):
    """Series of a block's pixels and what they share, see `xsoilsm._tiles.compile_loops`."""

    series: Float32
    owners: Int64
    representatives: Float32

    @classmethod
    def pack(cls, series: Float32, pixels: Int64, shared: bool) -> _Series:
        """Take (3, 46, pixel) of some pixels, filled up to whole vectors with the last one."""
        n, vectors = pixels.size, math.ceil(pixels.size / LANES)
        taken = np.empty((CHANNELS, STEPS, vectors * LANES), np.float32)
        in_one_piece = not shared and pixels[-1] - pixels[0] == n - 1
        columns: Any = slice(pixels[0], pixels[-1] + 1) if in_one_piece else pixels
        taken[..., :n] = series[..., columns]
        taken[..., n:] = taken[..., n - 1 : n]
        owners = np.full(vectors, -1)
        tiles = math.ceil(vectors / GROUPS)
        chosen = np.zeros((tiles, LANES), np.int64)
        if shared:
            equal = (taken[1:, :, 1:] == taken[1:, :, :-1]).all(axis=(0, 1))
            number = np.append(0, np.cumsum(~equal)).reshape(vectors, LANES)
            common = number[:, 0] == number[:, -1]
            for tile in range(tiles):
                part = slice(tile * GROUPS, (tile + 1) * GROUPS)
                alike = np.flatnonzero(common[part]) + part.start
                _, first, lane = np.unique(number[alike, 0], return_index=True, return_inverse=True)
                fits = lane < LANES
                if np.count_nonzero(fits) >= SHARING_PAYS:
                    owners[alike[fits]] = lane[fits]
                    chosen[tile, : first.size] = alike[first[:LANES]] * LANES
        return cls(taken, owners, np.ascontiguousarray(taken[:, :, chosen.ravel()]))


class _Snapshot(NamedTuple):
    """Valid pixels of one acquisition, those of a tile of the series in a tile of their own.

    Parameters
    ----------
    values : (18, place) ndarray of float32
    places : (place,) ndarray of int64
        Where in its tile of the series the pixel is.
    counts : (tile,) ndarray of int64
    pixels, at : (n,) ndarray of int64
        Pixels of the block, and their places.
    """

    values: Float32
    places: Int64
    counts: Int64
    pixels: Int64
    at: Int64

    @classmethod
    def pack(cls, snapshot: Float32, pixels: Int64, valid: Bool) -> _Snapshot:
        """Take those of `pixels` that are valid."""
        tiles = math.ceil(pixels.size / TILE)
        found = np.flatnonzero(valid[pixels])
        counts = np.bincount(found // TILE, minlength=tiles)
        before = np.cumsum(counts) - counts
        at = np.arange(found.size) + np.repeat(np.arange(tiles) * TILE - before, counts)
        values = np.zeros((SNAPSHOT, tiles * TILE), np.float32)
        values[:, at] = snapshot[:, pixels[found]]
        places = np.zeros(tiles * TILE, np.int64)
        places[at] = found % TILE
        return cls(values, places, counts, pixels[found], at)


# --------------------------------------------------------------------------- memory


def _allocate(shapes: Sequence[tuple[tuple[int, ...], Any]]) -> Buffers:
    """Zeros of these shapes, each aligned, in one piece of memory."""
    sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes]
    padded = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
    memory = np.zeros(sum(padded) + ALIGNMENT, np.uint8)
    at = -memory.ctypes.data % ALIGNMENT
    buffers = []
    for (shape, dtype), size, step in zip(shapes, sizes, padded, strict=True):
        buffers.append(memory[at : at + size].view(dtype).reshape(shape))
        at += step
    return tuple(buffers)


def _pack(members: Sequence[FoldedMember]) -> tuple[Float32, Int64]:
    """All numbers of all members in the order of use, and (depth, width, start) of each."""
    pieces: list[Float32] = []
    table = []
    for member in members:
        _check(member)
        table.append((member.depth, member.width, sum(piece.size for piece in pieces)))
        weather_first = np.roll(np.arange(CHANNELS), WEATHER - CHANNELS)
        for number, layer in enumerate(member.convolutions):
            kernels = layer.weight.reshape(layer.bias.size, KERNEL, -1)
            if number == 0:
                kernels = kernels[:, :, weather_first]
            if number == 1:
                pieces += [*_pack_pairs(kernels), layer.bias]
                continue
            tiles = kernels.reshape(-1, FILTER_TILE, *kernels.shape[1:])
            pieces += [tiles.transpose(0, 3, 2, 1).ravel(), layer.bias]
        for layer in (*(layer for block in member.blocks for layer in block), member.head):
            pieces += _pack_dense(layer, MACHINE.outputs)
        pieces += _pack_dense(member.out, 1)
    return np.concatenate(pieces), np.array(table, np.int64)


def _pack_pairs(kernels: Float32) -> Iterator[Float32]:
    """Combine the weights (filter, step, channel) as `xsoilsm._emit.emit_pairs` takes them."""
    g = kernels.astype(np.float64).transpose(1, 0, 2)
    lines = (
        ((g[0] + g[1] + g[2]) / 2, g[3] + g[4]),
        ((g[0] - g[1] + g[2]) / 2,),
        (g[0], -g[3]),
        (g[2], g[4]),
    )
    for line in lines:
        for f in range(0, g.shape[1], FILTER_TILE):
            products = np.stack([weights[f : f + FILTER_TILE] for weights in line])
            yield products.transpose(2, 0, 1).astype(np.float32).ravel()


def _check(member: FoldedMember) -> None:
    """Refuse a member whose layers do not fit together: the loops would read beyond them."""
    depth, width = member.depth, member.width
    channels = (CHANNELS, *FILTERS)
    expected = [(out, KERNEL * into) for into, out in pairwise(channels)]
    for block in range(depth):
        expected += [(width, JOINED + block * width), (width, width), (width, width)]
    expected += [(HEAD, JOINED + depth * width), (1, HEAD)]
    blocks = (layer for block in member.blocks for layer in block)
    layers = [*member.convolutions, *blocks, member.head, member.out]
    found = [layer.weight.shape for layer in layers]
    if found != expected or any(layer.bias.shape != layer.weight.shape[:1] for layer in layers):
        msg = f"the layers of a network are {found}; expected {expected} (outputs, inputs)"
        raise ValueError(msg)


def _pack_dense(layer: Layer, tile: int) -> list[Float32]:
    outputs, inputs = layer.weight.shape
    tiles = -(-outputs // tile)
    weight = np.zeros((tiles * tile, inputs), np.float32)
    bias = np.zeros(tiles * tile, np.float32)
    weight[:outputs], bias[:outputs] = layer.weight, layer.bias
    return [weight.reshape(tiles, tile, inputs).transpose(0, 2, 1).ravel(), bias]
