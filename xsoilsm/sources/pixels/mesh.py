"""Step 3 of 7 (load): smooth quantities at the pixels of a window, from a mesh of points.

Angles and places change slowly from pixel to pixel. They are computed at pixels whose row and
column are multiples of :data:`MESH` in the file, whatever the window, and interpolated linearly
between them; so they do not depend on how a file was cut.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from pyproj import CRS, Transformer

from xsoilsm.sources.pixels.reading import Patch

__all__ = ["MESH", "compiled", "mesh_lonlat", "scale", "scale_by_mesh", "spread", "to_plane"]

MESH = 64
"""Distance in native pixels of the points of the mesh."""

Floats = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile without the interpreter's lock, cached on disk where a folder is writable."""
    settings: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return cast(_Function, numba.njit(cache=True, **settings)(function))
    except RuntimeError:  # numba found no writable cache folder
        return cast(_Function, numba.njit(**settings)(function))


def mesh_lonlat(patch: Patch) -> tuple[Float64, Float64]:
    """Longitude and latitude in degrees of the mesh points around a window.

    Parameters
    ----------
    patch : Patch

    Returns
    -------
    lon, lat : (mesh y, mesh x) ndarray of float64
    """
    height, width = patch.geobox.shape
    rows = _lines(patch.row, height) - patch.row
    columns = _lines(patch.column, width) - patch.column
    column, row = np.meshgrid(columns + 0.5, rows + 0.5)
    affine = patch.geobox.affine
    x = affine.a * column + affine.b * row + affine.c
    y = affine.d * column + affine.e * row + affine.f
    lon, lat = to_plane(str(patch.geobox.crs), "EPSG:4326").transform(x, y)
    return np.asarray(lon), np.asarray(lat)


@lru_cache(maxsize=64)
def to_plane(source: str, target: str) -> Transformer:
    """Make the transformation between two coordinate reference systems, x before y, once."""
    return Transformer.from_crs(_horizontal(source), _horizontal(target), always_xy=True)


def _horizontal(crs: str) -> CRS:
    """Plane part of a reference system; heights are another matter."""
    found = CRS.from_user_input(crs)
    return found.sub_crs_list[0] if found.is_compound else found.to_2d()


def spread(mesh: npt.NDArray[np.floating], patch: Patch) -> Floats:
    """Interpolate linearly from the mesh to the pixels of a window.

    Parameters
    ----------
    mesh : (mesh y, mesh x) ndarray of float
        At the points of :func:`mesh_lonlat`.
    patch : Patch

    Returns
    -------
    (y, x) ndarray of float32
    """
    height, width = patch.geobox.shape
    rows = _weights(patch.row, height)
    columns = _weights(patch.column, width)
    # Float32 keeps 4e-6 degrees of an angle of 46, at half the cost.
    spread_out: Floats = rows @ mesh.astype(np.float32) @ columns.T
    return spread_out


def scale_by_mesh(
    band: npt.NDArray[np.floating],
    valid: npt.NDArray[np.bool_],
    mesh: npt.NDArray[np.floating],
    patch: Patch,
    result: Floats,
) -> None:
    """Multiply the pixels of a window by a smooth quantity, in one pass over memory.

    Parameters
    ----------
    band : (y, x) ndarray of float
    valid : (y, x) ndarray of bool
    mesh : (mesh y, mesh x) ndarray of float
        At the points of :func:`mesh_lonlat`; linear between them.
    patch : Patch
    result : (y, x) ndarray of float32
        Filled with the products, and with 0 where not valid.
    """
    nodes = np.ascontiguousarray(mesh, dtype=np.float32)
    _scale(band, valid, nodes, patch.row % MESH, patch.column % MESH, result)


@compiled
def _scale(
    band: Any, valid: Any, nodes: Any, first_row: int, first_column: int, result: Any
) -> None:
    height, width = result.shape
    for i in range(height):
        row = (first_row + i) // MESH
        down = np.float32((first_row + i) % MESH) / np.float32(MESH)
        begin = 0
        for k in range(nodes.shape[1] - 1):
            end = min((k + 1) * MESH - first_column, width)
            left = nodes[row, k] + down * (nodes[row + 1, k] - nodes[row, k])
            right = nodes[row, k + 1] + down * (nodes[row + 1, k + 1] - nodes[row, k + 1])
            step = (right - left) / np.float32(MESH)
            start = left + step * np.float32(begin + first_column - k * MESH)
            values, good, line = band[i, begin:end], valid[i, begin:end], result[i, begin:end]
            for j in range(np.uint64(end - begin)):  # unsigned: runs in vector registers
                factor = start + step * np.float32(np.int32(j))
                line[j] = values[j] * factor if good[j] else np.float32(0)
            begin = end


def scale(
    band: npt.NDArray[np.floating],
    valid: npt.NDArray[np.bool_],
    factor: npt.NDArray[np.floating],
    result: Floats,
) -> None:
    """Multiply the pixels of a window by a factor of each, in one pass over memory.

    Parameters
    ----------
    band : (y, x) ndarray of float
    valid : (y, x) ndarray of bool
    factor : (y, x) ndarray of float
    result : (y, x) ndarray of float32
        Filled with the products, and with 0 where not valid.
    """
    _scale_pixels(band, valid, factor, result)


@compiled
def _scale_pixels(band: Any, valid: Any, factor: Any, result: Any) -> None:
    height, width = result.shape
    for i in range(height):
        for j in range(np.uint64(width)):
            result[i, j] = band[i, j] * factor[i, j] if valid[i, j] else np.float32(0)


def _lines(first: int, count: int) -> npt.NDArray[np.int64]:
    """Pixels at multiples of :data:`MESH` that enclose those of a window."""
    return np.arange(first // MESH, (first + count - 1) // MESH + 2) * MESH


def _weights(first: int, count: int) -> Floats:
    """(count, mesh) matrix of linear interpolation along one axis."""
    pixel = first + np.arange(count)
    lines = _lines(first, count)
    index = pixel // MESH - lines[0] // MESH
    share = pixel / MESH - pixel // MESH
    matrix = np.zeros((count, lines.size), dtype=np.float32)
    matrix[np.arange(count), index] = 1 - share
    matrix[np.arange(count), index + 1] += share
    return matrix
