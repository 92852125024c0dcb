"""Step 3 of 7 (load): readers as Dask arrays, one task per chunk and acquisition.

A reader gives several bands at once; they form one array whose first axis is the band, and
:func:`band` takes one out of it. Both are Blockwise layers, so that Dask fuses the second into
whatever uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.base import tokenize
from dask.blockwise import BlockwiseDepDict, blockwise
from dask.highlevelgraph import HighLevelGraph
from odc.geo.geobox import GeoBox

__all__ = ["band", "from_blocks", "single_task", "spatial_chunks"]

Chunks = tuple[tuple[int, ...], tuple[int, ...]]


def spatial_chunks(shape: tuple[int, int], size: tuple[int, int]) -> Chunks:
    """Lengths of chunks along y and x.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns.
    size : (int, int)
        Of a whole chunk.

    Returns
    -------
    (y chunks, x chunks)
    """
    rows, columns = (
        tuple(min(step, length - start) for start in range(0, length, step))
        for length, step in zip(shape, size, strict=True)
    )
    return rows, columns


def from_blocks(
    reader: Callable[..., npt.NDArray[Any]],
    geobox: GeoBox,
    chunks: Chunks,
    *,
    bands: int,
    label: str,
    along: Sequence[Any] | int | None = None,
    source: tuple[str, HighLevelGraph] | None = None,
) -> da.Array:
    """Make an array whose blocks a reader gives.

    Lazy: reads nothing.

    Parameters
    ----------
    reader : callable
        Gets, in this order: the value of the task named by `source` (where given), the record
        of the block (where `along` is a sequence), and the GeoBox of the block. It gives
        (band, [record or step,] y, x) of float32.
    geobox : GeoBox
        Of the whole array.
    chunks : (y chunks, x chunks)
    bands : int
        Length of the first axis, one chunk.
    label : str
        Beginning of the tasks' names.
    along : sequence or int, optional
        Records of the second axis, one chunk each; or the length of a second axis of one chunk;
        without it there is no such axis.
    source : (name, HighLevelGraph), optional
        A task that all blocks share, from :func:`single_task`.

    Returns
    -------
    dask Array of float32
    """
    rows, columns = chunks
    token = tokenize(reader, geobox, chunks, bands, along, source and source[0])
    name = f"{label}-{token}"
    places = BlockwiseDepDict(
        {
            (i, j): geobox[top : top + height, left : left + width]
            for i, (top, height) in enumerate(_begins(rows))
            for j, (left, width) in enumerate(_begins(columns))
        },
        numblocks=(len(rows), len(columns)),
    )
    index, new_axes = "byx", {"b": bands}
    shape: list[tuple[int, ...]] = [(bands,)]
    pairs: list[Any] = []
    layers: dict[str, Any] = {}
    numblocks: dict[str, tuple[int, ...]] = {}
    if source is not None:
        pairs += [source[0], ""]
        numblocks[source[0]] = ()
        layers |= source[1].layers
    if isinstance(along, int):
        index, new_axes["t"] = "btyx", along
        shape.append((along,))
    elif along is not None:
        index = "btyx"
        shape.append((1,) * len(along))
        records = BlockwiseDepDict(
            {(k,): record for k, record in enumerate(along)}, numblocks=(len(along),)
        )
        pairs += [records, "t"]
    pairs += [places, "yx"]
    layer = blockwise(reader, name, index, *pairs, numblocks=numblocks, new_axes=new_axes)
    links: dict[str, set[str]] = {**{key: set() for key in layers}, name: set(layers)}
    return da.Array(
        HighLevelGraph({**layers, name: layer}, links),
        name,
        chunks=(*shape, rows, columns),
        dtype=np.float32,
        meta=np.empty((0,) * len(index), dtype=np.float32),
    )


def _begins(lengths: tuple[int, ...]) -> list[tuple[int, int]]:
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    return list(zip(starts, lengths, strict=True))


def single_task(
    function: Callable[..., Any],
    parts: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]],
    *,
    label: str,
) -> tuple[str, HighLevelGraph]:
    """Make a task that takes the results of others, one task each.

    Lazy: calls nothing.

    Parameters
    ----------
    function : callable
        Gets the list of results.
    parts : sequence of (callable, arguments)
    label : str
        Beginning of the tasks' names.

    Returns
    -------
    name : str
        Of the layer; the task's key is ``(name,)``.
    graph : HighLevelGraph
    """
    name = f"{label}-{tokenize(function, *parts)}"
    keys = [f"{name}-part-{k}" for k in range(len(parts))]
    tasks: dict[Any, Any] = {
        key: (_Call(part, arguments),) for key, (part, arguments) in zip(keys, parts, strict=True)
    }
    tasks[(name,)] = (function, keys)
    return name, HighLevelGraph({name: tasks}, {name: set()})


class _Call:
    """A call with its arguments bound; Dask would look for keys inside them."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments

    def __call__(self) -> Any:
        return self.function(*self.arguments)


def band(stack: da.Array, number: int, dtype: npt.DTypeLike = np.float32) -> da.Array:
    """Take one band out of an array whose first axis is the band. Lazy: reads nothing.

    Parameters
    ----------
    stack : (band, ...) dask Array
        The first axis is one chunk.
    number : int
    dtype : dtype

    Returns
    -------
    (...) dask Array
    """
    index = tuple(range(stack.ndim))
    # Without `concatenate` Dask can fuse the layer with what uses it, and copies nothing.
    taken: da.Array = da.blockwise(
        _Band(number, np.dtype(dtype).name),
        index[1:],
        stack,
        index,
        concatenate=None,
        dtype=dtype,
        meta=np.empty((0,) * (stack.ndim - 1), dtype=dtype),
    )
    return taken


@dataclass(frozen=True)
class _Band:
    """Takes a band out of the only block along the first axis."""

    number: int
    dtype: str

    def __call__(self, blocks: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        (block,) = blocks
        taken: npt.NDArray[Any] = block[self.number].astype(self.dtype, copy=False)
        return taken
