"""Step 3 of 7 (load): weather that neighbouring cubes have in common, read once in a process.

A cell of weather is larger than many tiles of a map, and a chunk of its store larger than many
regions, so that each tile would read the same again. Inside `sharing`, daily sums are read for a
block of 5 x 5 degrees, as far as it lies in the region that is mapped, and kept in memory, up to
64 MB. Blocks depend on the place alone: what a cube gets does not depend on what was read before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from xsoilsm.sources.access.kept import Kept
from xsoilsm.sources.access.search import Bounds

__all__ = ["keep", "shared_bounds", "sharing"]

SIDE = 5.0
"""Degrees along the side of a block."""

LIMIT = 64_000_000
"""Bytes that are kept."""

_T = TypeVar("_T")

_region: ContextVar[Bounds | None] = ContextVar("xsoilsm_shared_region", default=None)
_kept = Kept(LIMIT)


@contextmanager
def sharing(region: Bounds) -> Iterator[None]:
    """Let cubes that are computed in this thread meanwhile share their weather.

    Parameters
    ----------
    region : (west, south, east, north)
        In degrees; nothing is read beyond it that no cube asks for.
    """
    token = _region.set(region)
    try:
        yield
    finally:
        _region.reset(token)


def shared_bounds(bounds: Bounds) -> Bounds | None:
    """Bounds that are read for a cube with others; None where it is on its own.

    Lazy: reads nothing.

    Parameters
    ----------
    bounds : (west, south, east, north)
        Of the cube, in degrees.
    """
    region = _region.get()
    if region is None:
        return None
    west, south = (math.floor(bounds[k] / SIDE) * SIDE for k in (0, 1))
    east, north = (math.ceil(bounds[k] / SIDE) * SIDE for k in (2, 3))
    return (
        min(max(west, region[0]), bounds[0]),
        min(max(south, region[1]), bounds[1]),
        max(min(east, region[2]), bounds[2]),
        max(min(north, region[3]), bounds[3]),
    )


def keep(key: Any, read: Callable[[], _T], size: Callable[[_T], int]) -> _T:
    """Give what is kept under a key, or read and keep it; what was used least recently goes.

    Parameters
    ----------
    key : hashable
    read : callable
        Errors are not kept.
    size : callable
        Tells the bytes of what was read.
    """
    found: _T | None = _kept.get(key)
    if found is None:
        found = read()
        _kept.put(key, found, size(found))
    return found
