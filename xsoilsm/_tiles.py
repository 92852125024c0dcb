"""Step 5 of 7 (networks): the compiled loop over tiles of pixels, members and acquisitions.

One job: run every member over some pixels in one pass. Pixels are taken in tiles whose features
fit a core's cache; per tile the series are packed once, and every member convolves them once and
runs its dense layers for each acquisition that sees this window of the series. Mean and spread
are carried along in float64.

Compiled code is kept on disk where numba finds a folder. Its key covers the processor and its
features, and by `FINGERPRINT` what numba does not see or judges by a file's date: the code.
"""
# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of what it compiles; annotations would only repeat "array")

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import llvmlite
import numba
import numpy as np
from numba.core import types

from xsoilsm import _emit, _layers
from xsoilsm._layers import (
    CHANNELS,
    FILTERS,
    HEAD,
    LANES,
    MACHINE,
    OUTPUTS,
    PAD,
    PADDED,
    PANEL,
    POOLED,
    ROW_BYTES,
    SERIES,
    SETTINGS,
    SNAPSHOT,
    STEPS,
    VECTOR_BYTES,
    VECTORS,
    WEATHER,
    WORK,
    address,
    convolution,
    copy_vector,
    dense_layers,
    inlined,
    ndvi_part,
    replicate_edges,
    second_convolution,
    third_convolution,
    weather_part,
)

__all__ = ["FINGERPRINT", "TILE", "buffer_shapes", "compile_loops"]

_log = logging.getLogger(__name__)

PANELS = 10
TILE = PANELS * PANEL
GROUPS = PANELS * VECTORS
"""Vectors of pixels in a tile."""


def _fingerprint() -> int:
    files = (__file__, _emit.__file__, _layers.__file__)
    parts = [repr((MACHINE, llvmlite.__version__)).encode()]
    parts += [Path(str(file)).read_bytes() for file in files]
    return int.from_bytes(hashlib.sha256(b"".join(parts)).digest()[:7], "big")


FINGERPRINT = _fingerprint()


@inlined
def _pack(series, first, rows, groups):
    """Put the series of `groups` vectors of pixels into (group, channel, position, lane)."""
    source_row = 4 * series.shape[2]
    source = address(series) + 4 * first
    for g in range(groups):
        for channel in range(CHANNELS):
            row = (channel + WEATHER) % CHANNELS  # NDVI, which is first, comes last
            target = address(rows) + ((g * CHANNELS + row) * PADDED[0] + PAD) * VECTOR_BYTES
            for step in range(STEPS):
                copy_vector(
                    LANES, source + (channel * STEPS + step) * source_row + g * VECTOR_BYTES,
                    target + step * VECTOR_BYTES,
                )  # fmt: skip
        replicate_edges(rows[g])


@inlined
def _join(snapshots, first, pooled, places, features, panels):
    """Put the snapshot and the features of the convolutions of some pixels side by side."""
    for p in range(panels):
        for feature in range(SNAPSHOT):
            source = address(snapshots[feature]) + 4 * (first + p * PANEL)
            target = address(features[p]) + feature * ROW_BYTES
            for vector in range(VECTORS):
                at = vector * VECTOR_BYTES
                copy_vector(LANES, source + at, target + at)
        for feature in range(SERIES):
            for i in range(PANEL):
                place = places[first + p * PANEL + i]
                features[p, SNAPSHOT + feature, i] = pooled[feature, place]


def _loops(fingerprint):
    def run(
        weights, members, series, owners, representatives, snapshots, places, counts,
        mean, std, buffers,
    ):  # fmt: skip
        rows, common, part, first, work, second = buffers[:6]
        pooled, features, hidden, moisture, moments = buffers[6:]
        acquisitions, tiles = counts.shape
        groups = owners.size
        for tile in range(tiles):
            begin = tile * GROUPS
            end = min(begin + GROUPS, groups)
            _pack(series, begin * LANES, rows, end - begin)
            _pack(representatives, tile * LANES, common, 1)
            shared = 0
            for g in range(begin, end):
                shared += owners[g] >= 0
            moments[:] = 0.0
            for m in range(members.shape[0]):
                start = address(weights) + 4 * members[m, 2]
                after = start
                if shared:
                    weather_part(start, common, part)
                for g in range(end - begin):
                    target, row = address(first) + PAD * VECTOR_BYTES, PADDED[1] * VECTOR_BYTES
                    owner = owners[begin + g]
                    if owner >= 0:
                        given = address(part) + 4 * owner
                        after = ndvi_part(start, address(rows[g]), given, target, row)
                    else:
                        after = convolution(
                            start, address(rows[g]), np.int64(PADDED[0] * VECTOR_BYTES),
                            np.int64(CHANNELS), np.int64(FILTERS[0]), np.int64(POOLED[0]),
                            target, np.int64(row),
                        )  # fmt: skip
                    replicate_edges(first)
                    after = second_convolution(
                        after, address(first), address(second) + PAD * VECTOR_BYTES, work
                    )
                    replicate_edges(second)
                    target = address(pooled) + g * VECTOR_BYTES
                    after = third_convolution(after, address(second), target, 4 * TILE)
                for a in range(acquisitions):
                    panels = (counts[a, tile] + PANEL - 1) // PANEL
                    _join(snapshots[a], tile * TILE, pooled, places[a], features, panels)
                    dense_layers(
                        after, members[m, 0], members[m, 1], features, hidden, moisture, panels
                    )
                    for i in range(counts[a, tile]):
                        deviation = np.float64(moisture[i]) - moments[a, 0, i]
                        moments[a, 0, i] += deviation / (m + 1)
                        moments[a, 1, i] += deviation * (moisture[i] - moments[a, 0, i])
            for a in range(acquisitions):
                for i in range(counts[a, tile]):
                    mean[a, tile * TILE + i] = moments[a, 0, i]
                    std[a, tile * TILE + i] = np.sqrt(moments[a, 1, i] / members.shape[0])
        return fingerprint

    return run


def buffer_shapes(acquisitions: int, rows: int, width: int) -> list[tuple[tuple[int, ...], Any]]:
    """Shapes and types of the buffers that the loops work in.

    Parameters
    ----------
    acquisitions : int
        Acquisitions that share a window and are taken together, at most.
    rows : int
        Features of the member that has most.
    width : int
        Units of its widest layer.
    """
    rows, width = rows + OUTPUTS, max(width, HEAD) + OUTPUTS
    return [
        ((GROUPS, CHANNELS, PADDED[0], LANES), np.float32),
        ((1, CHANNELS, PADDED[0], LANES), np.float32),
        ((FILTERS[0], STEPS, LANES), np.float32),
        ((FILTERS[0], PADDED[1], LANES), np.float32),
        ((WORK, LANES), np.float32),
        ((FILTERS[1], PADDED[2], LANES), np.float32),
        ((SERIES, TILE), np.float32),
        ((PANELS, rows, PANEL), np.float32),
        ((2, PANELS, width, PANEL), np.float32),
        ((TILE,), np.float32),
        ((acquisitions, 2, TILE), np.float64),
    ]


def _signature() -> Any:
    def array(dtype: Any, ndim: int, readonly: bool = True) -> Any:
        return types.Array(numba.from_dtype(np.dtype(dtype)), ndim, "C", readonly=readonly)

    buffers = [array(dtype, len(shape), False) for shape, dtype in buffer_shapes(1, 1, 1)]
    return types.int64(
        array(np.float32, 1),  # weights
        array(np.int64, 2),  # members
        array(np.float32, 3),  # series
        array(np.int64, 1),  # owners
        array(np.float32, 3),  # representatives
        array(np.float32, 3),  # snapshots
        array(np.int64, 2),  # places
        array(np.int64, 2),  # counts
        array(np.float32, 2, readonly=False),  # mean
        array(np.float32, 2, readonly=False),  # std
        types.Tuple(buffers),
    )


def compile_loops(edition: int = 0) -> Callable[..., int]:
    """Compile, or load what was compiled before on this machine.

    Parameters
    ----------
    edition : int, default 0
        Editions are compiled and kept apart: another one does without what lies on the disk.

    Returns
    -------
    callable
        ``run(weights, members, series, owners, representatives, snapshots, places, counts,
        mean, std, buffers)``, all arrays contiguous and nothing checked:

        * weights and members as of `xsoilsm.kernel`;
        * series (3, 46, pixel), whole vectors of pixels;
        * owners (vector): the lane of the representatives that has the weather of all pixels
          of a vector, or -1;
        * representatives (3, 46, tile times lanes): series whose weather counts;
        * snapshots (acquisition, 18, tile times `TILE`), of each tile the valid pixels first;
        * places (acquisition, tile times `TILE`): where in its tile each of these pixels is;
        * counts (acquisition, tile): how many they are;
        * mean, std (acquisition, tile times `TILE`), written in the order of the snapshots.

        Returns the sum of `FINGERPRINT` and the edition.
    """
    run, signature = _loops(FINGERPRINT + edition), _signature()
    try:
        return cast("Callable[..., int]", numba.njit(signature, cache=True, **SETTINGS)(run))
    except Exception as error:  # no folder is writable, it is full, what lies there is damaged
        _log.info("compiling without a cache: %s: %s", type(error).__name__, error)
        return cast("Callable[..., int]", numba.njit(signature, **SETTINGS)(run))
