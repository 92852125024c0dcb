"""Step 3 of 7 (load): smooth quantities at the pixels of a window, from a mesh of points.

Angles and places change slowly from pixel to pixel. They are computed at pixels whose row and
column are multiples of :data:`MESH` in the file, whatever the window, and interpolated linearly
between them; so they do not depend on how a file was cut.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from pyproj import CRS, Transformer

from xsoilsm.sources.pixels.reading import Patch

__all__ = ["MESH", "mesh_lonlat", "spread", "to_plane"]

MESH = 64
"""Distance in native pixels of the points of the mesh."""

Floats = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


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
