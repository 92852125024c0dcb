"""Step 3 of 7 (load): exact area-weighted mean of native pixels in the cells of a GeoBox.

A source pixel weighs with the fraction of the target cell that it covers, whatever the two
projections, and whether the source is finer or coarser than the target. Sums of weights and of
weight times value are kept apart until the end, so zones, tiles and slices fuse by weight.

`area_mean` works on labelled arrays and is lazy on Dask-backed ones; `source_windows`,
`accumulate` and `finish` are the same on plain arrays, for use inside one task.

Exactness: corners of pixels are placed to 1e-6 of a target cell and joined by straight lines,
finely divided where lines bend; areas are measured in the target's plane, which is the true
area where that plane is equal-area, as EASE-Grid 2.0 is. Where a projection itself has a kink
or an edge (Goode Homolosine at 40.7 degrees, between its lobes), the pixels on it are placed to
an eighth of a pixel.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.gcp import GCPGeoBox
from odc.geo.geobox import GeoBox

from xsoilsm._area_geometry import Window, find_windows, pixels_per_cell, place_tiles
from xsoilsm._area_kernel import add_tiles

if TYPE_CHECKING:
    import dask.array as da

__all__ = ["Window", "accumulate", "area_mean", "finish", "source_window", "source_windows"]

_Sums: TypeAlias = npt.NDArray[np.float64]
_Chunks: TypeAlias = int | tuple[int | tuple[int, ...], int | tuple[int, ...]]

_TRANSFORMS = (None, "db")
_FILL_NAMES = ("_FillValue", "nodata", "missing_value")
_GRID_NAMES = ("grid_mapping", "crs", "transform", "res", "nodatavals", "AREA_OR_POINT")
_CHUNK_PIXELS = 2048  # side of the source that a chunk of the target should cover, in pixels
_CHUNK_BYTES = 64e6  # of the sums of one chunk
_CHUNK_CELLS = (16, 1024)  # least and largest side of a chunk


def _check_transform(transform: str | None) -> None:
    if transform not in _TRANSFORMS:
        msg = f"transform {transform!r} is unknown; expected None or 'db'"
        raise ValueError(msg)


def source_windows(source: GeoBox, target: GeoBox, *, margin: int = 1) -> list[Window]:
    """Parts of a source that a target needs: read these and nothing else.

    Lazy: reads nothing.

    Parameters
    ----------
    source : GeoBox
        Of the file, in any coordinate reference system.
    target : GeoBox
    margin : int, default 1
        Pixels added on every side.

    Returns
    -------
    list of (row slice, column slice)
        Empty where the two do not touch. Two windows where the target lies across the seam of
        a source around the globe (longitudes 0 to 360 and a target at Greenwich). A window may
        be somewhat large or, far from the projection's home, touch nothing after all; it never
        misses a pixel.

    Raises
    ------
    ValueError
        When a GeoBox has no coordinate reference system.
    """
    return find_windows(source, target, margin=margin)[0]


def source_window(source: GeoBox, target: GeoBox, *, margin: int = 1) -> Window | None:
    """One window that holds all `source_windows`, None where the two do not touch.

    Lazy: reads nothing. Parameters and errors as for `source_windows`.
    """
    windows = source_windows(source, target, margin=margin)
    if not windows:
        return None
    rows, columns = zip(*windows, strict=True)
    return (
        slice(min(r.start for r in rows), max(r.stop for r in rows)),
        slice(min(c.start for c in columns), max(c.stop for c in columns)),
    )


def accumulate(
    values: npt.NDArray[Any],
    source: GeoBox,
    target: GeoBox,
    total: _Sums,
    weight: _Sums,
    *,
    transform: str | None = None,
    nodata: float | None = None,
    anchor: tuple[int, int] = (0, 0),
) -> None:
    """Add a window of pixels to the sums of the target's cells, in place.

    Computes, mostly without holding the interpreter's lock. Called once per window, tile, slice
    or zone, in any order; `finish` divides.

    Parameters
    ----------
    values : (band, height, width) ndarray
        Real numbers. NaN, infinity and `nodata` do not count, band by band.
    source : GeoBox
        Of exactly this window.
    target : GeoBox
    total, weight : (band, Y, X) ndarray of float64, contiguous
        Sums of weight * value and of weight; weights are fractions of the target cell. Start
        with zeros.
    transform : {None, "db"}
        ``"db"`` averages 10 log10 of the values; those not above zero do not count.
    nodata : float, optional
        Value that stands for nothing.
    anchor : (row, column), default (0, 0)
        Of the window's first pixel in its file. With it the result does not depend on how the
        file was cut into windows, to the last digits.

    Raises
    ------
    ValueError
        When shapes disagree, the sums are not contiguous float64, a GeoBox has no coordinate
        reference system, or `transform` is unknown.
    TypeError
        When `values` are not real numbers.
    """
    _check_transform(transform)
    if values.ndim != 3 or values.shape[1:] != tuple(source.shape):
        msg = (
            f"values of shape {values.shape} do not fit the source of "
            f"{source.shape[0]} x {source.shape[1]} pixels; expected (band, height, width)"
        )
        raise ValueError(msg)
    expected = (values.shape[0], *target.shape)
    for name, sums in (("total", total), ("weight", weight)):
        if sums.shape != expected or sums.dtype != np.float64 or not sums.flags.c_contiguous:
            msg = (
                f"{name} is {sums.dtype} of shape {sums.shape}, expected contiguous float64 of "
                f"shape {expected}; make it with numpy.zeros"
            )
            raise ValueError(msg)
    if values.dtype.kind not in "fiub":
        msg = f"values are {values.dtype}, expected real numbers"
        raise TypeError(msg)
    # two types are compiled; 16 bits fit into float32 without loss
    kind = np.float32 if np.can_cast(values.dtype, np.float32) else np.float64
    pixels: npt.NDArray[np.floating[Any]] = np.ascontiguousarray(values, dtype=kind)
    with np.errstate(over="ignore"):
        fill = float(kind(np.nan if nodata is None else nodata))
    poly, place, quads = place_tiles(source, target, anchor)
    add_tiles(pixels, poly, place, quads, transform == "db", fill, total, weight)


def finish(total: _Sums, weight: _Sums) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and coverage from sums.

    Computes.

    Parameters
    ----------
    total, weight : (..., Y, X) ndarray of float64
        As `accumulate` filled them.

    Returns
    -------
    mean : (..., Y, X) ndarray of float32
        In units of the values, or dB; NaN where nothing counts.
    coverage : (..., Y, X) ndarray of float32
        Fraction of the cell under pixels that count, 0 to 1; overlaps of sources count once
        they would pass 1.
    """
    mean = np.full(total.shape, np.nan, dtype=np.float32)
    np.divide(total, weight, out=mean, where=weight > 0, casting="same_kind")
    return mean, np.minimum(weight, 1.0).astype(np.float32)


@dataclass(frozen=True)
class _Source:
    """A labelled array taken apart."""

    array: Any
    """(lead ..., height, width), NumPy or Dask."""
    lead: tuple[Hashable, ...]
    geobox: GeoBox
    nodata: float | None


@dataclass(frozen=True)
class _Part:
    """A window of one chunk of one source."""

    rows: slice
    columns: slice
    geobox: GeoBox
    anchor: tuple[int, int]
    nodata: float | None


@dataclass(frozen=True)
class _Block:
    """What one chunk of the result needs besides the pixels."""

    target: GeoBox
    parts: tuple[_Part, ...]
    lead: tuple[int, ...]
    transform: str | None


def _on_grid(data: xr.DataArray, geobox: GeoBox) -> bool:
    """Whether the coordinates that there are lie within a tenth of a pixel of the GeoBox's."""
    if not geobox.axis_aligned:
        return True
    for dim, axis in zip(data.odc.spatial_dims, geobox.coordinates.values(), strict=True):
        if dim in data.coords and data[dim].dtype.kind in "fiu":
            off = np.abs(np.asarray(data[dim].values, dtype=np.float64) - axis.values)
            if not off.max() <= 0.1 * abs(axis.resolution):
                return False
    return True


def _source(data: xr.DataArray) -> _Source:
    import odc.geo.xr  # noqa: F401  (registers .odc)

    if not isinstance(data, xr.DataArray):
        msg = f"area_mean takes DataArrays, got {type(data).__name__}; pass one variable"
        raise TypeError(msg)
    name = f"{data.name!r}" if data.name is not None else "the array"
    if data.odc.spatial_dims is None:
        msg = f"{name} has dims {data.dims}, in which no y and x were recognised"
        raise ValueError(msg)
    if data.odc.crs is None:
        msg = (
            f"{name} has no coordinate reference system; give it one with "
            "data.odc.assign_crs('EPSG:...')"
        )
        raise ValueError(msg)
    geobox = data.odc.geobox
    if isinstance(geobox, GCPGeoBox):
        msg = f"{name} is placed by ground control points; geocode it to a regular grid first"
        raise ValueError(msg)
    if geobox is None or not _on_grid(data, geobox):
        msg = (
            f"{name} is not on a regular grid: its coordinates are missing, unevenly spaced, a "
            "single one, or not those of the GeoTransform in spatial_ref; expected evenly spaced "
            "y and x"
        )
        raise ValueError(msg)
    if data.dtype.kind not in "fiub":
        msg = f"{name} holds {data.dtype}, expected real numbers"
        raise TypeError(msg)
    lead = tuple(dim for dim in data.dims if dim not in data.odc.spatial_dims)
    places = data.attrs if data.dtype.kind == "f" else {**data.encoding, **data.attrs}
    fills = [places[key] for key in _FILL_NAMES if places.get(key) is not None]
    nodata = float(fills[0]) if fills else None
    array = data.transpose(*lead, *data.odc.spatial_dims).variable.data
    return _Source(array, lead, geobox, nodata)


def _same(one: Any, other: Any) -> bool:
    """Whether two coordinates hold the same values."""
    return bool(one.variable.equals(other.variable))


def _check_alike(data: Sequence[xr.DataArray], sources: Sequence[_Source]) -> None:
    """Raise when sources cannot be one result."""
    first = sources[0]
    for other, source in zip(data, sources, strict=True):
        shape, expected = source.array.shape[:-2], first.array.shape[:-2]
        if source.lead != first.lead or shape != expected:
            msg = (
                f"sources differ before y and x: {dict(zip(first.lead, expected, strict=True))} "
                f"and {dict(zip(source.lead, shape, strict=True))}; align them first"
            )
            raise ValueError(msg)
        for dim in first.lead:
            if dim in data[0].coords and dim in other.coords:
                if not _same(other[dim], data[0][dim]):
                    msg = f"sources differ in their coordinate {dim!r}; align them first"
                    raise ValueError(msg)
        units = data[0].attrs.get("units"), other.attrs.get("units")
        if None not in units and units[0] != units[1]:
            msg = f"sources have units {units[0]!r} and {units[1]!r}; convert them first"
            raise ValueError(msg)


def _block_mean(block: _Block, arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """Mean and coverage, (2, lead ..., Y, X), of one chunk; runs as a task."""
    bands = int(np.prod(block.lead, dtype=np.int64))
    total = np.zeros((bands, *block.target.shape))
    weight = np.zeros_like(total)
    for part, array in zip(block.parts, arrays, strict=True):
        window = array[..., part.rows, part.columns]
        accumulate(
            window.reshape(bands, *window.shape[-2:]),
            part.geobox,
            block.target,
            total,
            weight,
            transform=block.transform,
            nodata=part.nodata,
            anchor=part.anchor,
        )
    return np.stack(finish(total, weight)).reshape(2, *block.lead, *block.target.shape)


def _eager(sources: Sequence[_Source], geobox: GeoBox, transform: str | None) -> Any:
    parts = []
    arrays = []
    for source in sources:
        for rows, columns in source_windows(source.geobox, geobox):
            anchor = rows.start, columns.start
            parts.append(_Part(rows, columns, source.geobox[rows, columns], anchor, source.nodata))
            arrays.append(source.array)
    lead = sources[0].array.shape[:-2]
    return _block_mean(_Block(geobox, tuple(parts), lead, transform), arrays)


def _default_chunks(sources: Sequence[_Source], geobox: GeoBox) -> tuple[int, int]:
    """Rows and columns of a chunk of the target that needs about one chunk of a source."""
    least, largest = _CHUNK_CELLS
    side = largest
    for source in sources:
        scale = pixels_per_cell(source.geobox, geobox)
        if scale is not None:
            pixels = max(_CHUNK_PIXELS, *(max(c) for c in source.array.chunks[-2:]))
            side = min(side, int(pixels / scale))
    lead = max(int(np.prod([max(c) for c in s.array.chunks[:-2]], dtype=int)) for s in sources)
    side = max(min(side, int(np.sqrt(_CHUNK_BYTES / 16 / max(lead, 1)))), least)
    rows, columns = (-(-n // -(-n // side)) for n in geobox.shape)  # of nearly equal size
    return rows, columns


def _pieces(windows: Sequence[Window], chunks: Any) -> Iterator[tuple[int, int, Window, Window]]:
    """Chunk numbers, slices in the chunk and slices in the whole of windows of chunked pixels."""
    edges = [np.concatenate([[0], np.cumsum(c)]) for c in chunks[-2:]]
    for window in windows:
        cuts: list[list[tuple[int, slice, slice]]] = [[], []]
        for axis, (part, edge) in enumerate(zip(window, edges, strict=True)):
            first = int(np.searchsorted(edge, part.start, side="right")) - 1
            last = int(np.searchsorted(edge, part.stop, side="left"))
            for k in range(first, last):
                start, stop = max(part.start, int(edge[k])), min(part.stop, int(edge[k + 1]))
                inside = slice(start - int(edge[k]), stop - int(edge[k]))
                cuts[axis].append((k, inside, slice(start, stop)))
        for (i, rows, all_rows), (j, columns, all_columns) in product(*cuts):
            yield i, j, (rows, columns), (all_rows, all_columns)


def _lazy(
    sources: Sequence[_Source], geobox: GeoBox, transform: str | None, chunks: _Chunks | None
) -> da.Array:
    import dask.array as da
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph

    arrays = [da.asarray(source.array) for source in sources]
    lead_chunks = arrays[0].chunks[:-2]
    arrays = [a.rechunk({k: c for k, c in enumerate(lead_chunks)}) for a in arrays]
    sources = [replace(s, array=a) for s, a in zip(sources, arrays, strict=True)]
    size = _default_chunks(sources, geobox) if chunks is None else chunks
    y_chunks, x_chunks = da.core.normalize_chunks(size, shape=tuple(geobox.shape))
    y, x = (np.concatenate([[0], np.cumsum(c)]).astype(int) for c in (y_chunks, x_chunks))
    boxes = [
        (y[i], y[i + 1], x[j], x[j + 1])
        for i, j in product(range(len(y_chunks)), range(len(x_chunks)))
    ]
    needs: list[list[tuple[_Part, da.Array, tuple[int, int]]]] = [[] for _ in boxes]
    for source in sources:
        touched = find_windows(geobox, source.geobox)[0]
        some = [
            k
            for k, (r0, r1, c0, c1) in enumerate(boxes)
            if any(
                r0 < rows.stop and rows.start < r1 and c0 < columns.stop and columns.start < c1
                for rows, columns in touched
            )
        ]
        found = find_windows(source.geobox, geobox, [boxes[k] for k in some])
        for k, windows in zip(some, found, strict=True):
            for i, j, (rows, columns), place in _pieces(windows, source.array.chunks):
                anchor = place[0].start, place[1].start
                part = _Part(rows, columns, source.geobox[place], anchor, source.nodata)
                needs[k].append((part, source.array, (i, j)))
    name = "area-mean-" + tokenize([a.name for a in arrays], geobox, transform, y_chunks, x_chunks)
    tasks: dict[Any, Any] = {}
    for k, (r0, r1, c0, c1) in enumerate(boxes):
        parts = tuple(part for part, _, _ in needs[k])
        block = _Block(geobox[r0:r1, c0:c1], parts, (), transform)
        place_of = divmod(k, len(x_chunks))
        for index in product(*(range(len(c)) for c in lead_chunks)):
            lead = tuple(c[n] for c, n in zip(lead_chunks, index, strict=True))
            keys = [(array.name, *index, *chunk) for _, array, chunk in needs[k]]
            tasks[(name, 0, *index, *place_of)] = (_block_mean, replace(block, lead=lead), keys)
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=arrays)
    shape_chunks = ((2,), *lead_chunks, y_chunks, x_chunks)
    return da.Array(graph, name, shape_chunks, dtype=np.float32)


def area_mean(
    data: xr.DataArray | Sequence[xr.DataArray],
    geobox: GeoBox,
    *,
    transform: str | None = None,
    chunks: _Chunks | None = None,
) -> tuple[xr.DataArray, xr.DataArray]:
    """Exact area-weighted mean of native pixels in the cells of a GeoBox.

    Lazy on Dask-backed input: reads nothing. Each chunk of the result is one task, which needs
    only the chunks of the sources under it. Computes on NumPy input.

    Parameters
    ----------
    data : DataArray or sequence of DataArray
        Dims y and x (by any name that ``data.odc`` knows) and any others before or after them,
        such as time or band. Any coordinate reference system and size of pixels. Several
        sources (zones, tiles, slices) are fused by weight. NaN, infinity and the value named
        ``_FillValue``, ``nodata`` or ``missing_value`` do not count.
    geobox : GeoBox
        Target, for instance of `xsoilsm.ease2_geobox`.
    transform : {None, "db"}
        ``"db"`` averages 10 log10 of power, pixel by pixel, which is not the same as 10 log10
        of the average; values not above zero do not count.
    chunks : int or (y, x), optional
        Chunks of the result along y and x, in cells, for Dask-backed input. By default a chunk
        needs about one chunk of the source and at most 64 MB of sums.

    Returns
    -------
    mean : DataArray of float32
        Dims (others ..., y, x), in units of `data`, or dB. NaN where nothing counts.
    coverage : DataArray of float32
        Same dims: fraction of the cell under pixels that count, 0 to 1.

    Raises
    ------
    TypeError
        When `data` are not DataArrays of real numbers, or `geobox` is no GeoBox.
    ValueError
        When there is no source, a source has no coordinate reference system or no regular grid,
        sources differ in other dims or units, or `transform` is unknown.

    Notes
    -----
    The result does not depend on chunks beyond the rounding of float32.
    """
    from odc.geo.xr import xr_coords

    _check_transform(transform)
    if not isinstance(geobox, GeoBox):
        msg = (
            f"the target is {type(geobox).__name__}, expected an odc.geo GeoBox; make one with "
            "xsoilsm.ease2_geobox(bbox, res)"
        )
        raise TypeError(msg)
    several = [data] if isinstance(data, (xr.DataArray, xr.Dataset)) else list(data)
    if not several:
        msg = "there is no source to average; expected at least one DataArray"
        raise ValueError(msg)
    sources = [_source(item) for item in several]
    _check_alike(several, sources)
    if any(item.chunks is not None for item in several):
        both = _lazy(sources, geobox, transform, chunks)
    else:
        both = _eager(sources, geobox, transform)
    first = several[0]
    lead = sources[0].lead
    coords: dict[Hashable, Any] = {
        key: value.variable
        for key, value in first.coords.items()
        if set(value.dims) <= set(lead)
        and key != first.odc.grid_mapping
        and all(key in item.coords and _same(item[key], value) for item in several)
    }
    coords.update(xr_coords(geobox))
    dims = (*lead, *geobox.dimensions)
    dropped = {*_FILL_NAMES, *_GRID_NAMES}
    attrs = {key: value for key, value in first.attrs.items() if key not in dropped}
    if transform == "db":
        attrs["units"] = "dB"
    mean = xr.DataArray(both[0], coords, dims, first.name, attrs)
    coverage = xr.DataArray(
        both[1],
        coords,
        dims,
        "coverage",
        {"long_name": "fraction of the cell under valid pixels", "units": "1"},
    )
    for result in (mean, coverage):
        result.encoding["grid_mapping"] = "spatial_ref"
    return mean, coverage
