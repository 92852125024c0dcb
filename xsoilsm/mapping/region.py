"""Step 7 of 7 (write): the region of a job, from whatever users have it in.

A region is one polygon (or several) in degrees. Boxes, GeoJSON and shapely geometries need
nothing further; GeoPackage, GeoParquet and the other formats of GDAL are read with geopandas.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.geobox import GeoBox
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from xsoilsm import grid
from xsoilsm.grid import LATITUDE_LIMIT, ease2_geobox

__all__ = ["Region", "cells_of", "cropped", "is_box", "read_region", "region_text"]

Region: TypeAlias = (
    tuple[float, float, float, float] | str | os.PathLike[str] | Mapping[str, Any] | BaseGeometry
)
"""(west, south, east, north), the path of a file, a GeoJSON mapping or a shapely geometry."""

_PLACES = 9
"""Decimals of a degree that count: a tenth of a millimetre."""


def read_region(region: Region) -> BaseGeometry:
    """Read a region as one polygon or multipolygon in degrees, WGS 84.

    Computes: reads the file, where a path is given.

    Parameters
    ----------
    region : (west, south, east, north), path, mapping or geometry
        Files are GeoJSON, or whatever geopandas reads: GeoPackage, GeoParquet, Shapefile,
        FlatGeobuf, in any CRS. All their polygons together are the region. A mapping is a
        GeoJSON geometry, feature or collection of features. Regions across the antimeridian
        have parts on either side of it, as GeoJSON demands (RFC 7946, section 3.1.9).

    Returns
    -------
    Polygon or MultiPolygon
        Valid and in canonical order.

    Raises
    ------
    ValueError
        When there is no polygon, or it leaves the grid.
    FileNotFoundError
        When the file does not exist.
    ImportError
        When the file needs geopandas, which is not installed.
    """
    what, found = _geometry(region)
    parts = shapely.get_parts(shapely.make_valid(found), return_index=False)
    polygons = [p for p in parts if p.geom_type in ("Polygon", "MultiPolygon") and not p.is_empty]
    if not polygons:
        msg = f"{what} holds no polygon (found {found.geom_type}); expected an area to map"
        raise ValueError(msg)
    whole = shapely.normalize(shapely.union_all(polygons))
    west, south, east, north = whole.bounds
    if not (-180 <= west <= east <= 180 and -LATITUDE_LIMIT <= south <= north <= LATITUDE_LIMIT):
        msg = (
            f"{what} reaches from {west:.4f} to {east:.4f} E and {south:.4f} to {north:.4f} N; "
            f"expected degrees within 180 W-180 E and {LATITUDE_LIMIT} S-N, longitude first"
        )
        raise ValueError(msg)
    return whole


def region_text(region: BaseGeometry) -> str:
    """Write a region as WKT that is the same for the same polygon. Lazy: reads nothing."""
    return str(shapely.to_wkt(shapely.normalize(region), rounding_precision=_PLACES))


def is_box(region: BaseGeometry) -> bool:
    """Whether a region is the box of its bounds, so that all cells around it are its own."""
    return bool(shapely.box(*region.bounds).equals(region))


def cropped(region: BaseGeometry, geobox: GeoBox) -> GeoBox:
    """Rows and columns of a block of cells that a region reaches. Lazy: reads nothing.

    Parameters
    ----------
    region : shapely geometry
        In degrees.
    geobox : GeoBox
        Cells that touch the region.
    """
    part = shapely.intersection(region, shapely.box(*_degrees(geobox)))
    if part.area == 0:  # a corner or an edge
        return geobox
    cells, rows, columns = grid.grid_of(geobox)
    _, near_rows, near_columns = grid.grid_of(ease2_geobox(part.bounds, cells.name))
    return cells.geobox(
        (max(rows[0], near_rows[0]), min(rows[1], near_rows[1])),
        (max(columns[0], near_columns[0]), min(columns[1], near_columns[1])),
    )


def cells_of(region: BaseGeometry, geobox: GeoBox) -> npt.NDArray[np.bool_]:
    """Tell which cells touch a region. Computes.

    Parameters
    ----------
    region : shapely geometry
        In degrees; of a box all cells are its own.
    geobox : GeoBox

    Returns
    -------
    (y, x) ndarray of bool
    """
    shapely.prepare(region)
    height, width = geobox.shape
    if is_box(region) or shapely.contains_properly(region, shapely.box(*_degrees(geobox))):
        return np.ones((height, width), bool)
    affine = geobox.affine
    lon, _ = grid.xy_to_lonlat(affine.c + affine.a * np.arange(width + 1), np.zeros(width + 1))
    _, lat = grid.xy_to_lonlat(np.zeros(height + 1), affine.f + affine.e * np.arange(height + 1))
    boxes = shapely.box(lon[None, :-1], lat[1:, None], lon[None, 1:], lat[:-1, None])
    touching: npt.NDArray[np.bool_] = shapely.intersects(region, boxes)
    return touching


def _degrees(geobox: GeoBox) -> tuple[float, float, float, float]:
    box = geobox.boundingbox
    lon, lat = grid.xy_to_lonlat([box.left, box.right], [box.bottom, box.top])
    return float(lon[0]), float(lat[0]), float(lon[1]), float(lat[1])


def _geometry(region: Region) -> tuple[str, BaseGeometry]:
    """Name of a region for messages, and its geometry."""
    if isinstance(region, BaseGeometry):
        return "the region", region
    if isinstance(region, str | os.PathLike):
        return _from_file(Path(region))
    if isinstance(region, Mapping):
        return "the region", _from_geojson("the region", region)
    if isinstance(region, tuple | list) and len(region) == 4:
        west, south, east, north = region
        return f"bbox {region}", _box((west, south, east, north))
    msg = (
        f"cannot tell a region from {type(region).__name__}; expected (west, south, east, north), "
        "a path, a GeoJSON mapping or a shapely geometry"
    )
    raise ValueError(msg)


def _box(bbox: tuple[float, float, float, float]) -> BaseGeometry:
    ease2_geobox(bbox)  # says what is wrong with it
    return shapely.box(*map(float, bbox))


def _from_file(path: Path) -> tuple[str, BaseGeometry]:
    if not path.is_file():
        msg = f"there is no file {path}, which should hold the region"
        raise FileNotFoundError(msg)
    if path.suffix.lower() in (".geojson", ".json"):
        try:
            content = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            msg = f"{path} is no JSON: {error}"
            raise ValueError(msg) from None
        return str(path), _from_geojson(str(path), content)
    try:
        import geopandas
    except ImportError:
        msg = (
            f"reading {path} needs geopandas: pip install 'xsoilsm[regions]', or give the region "
            "as GeoJSON"
        )
        raise ImportError(msg) from None
    is_parquet = path.suffix.lower() in (".parquet", ".geoparquet", ".pq")
    try:
        table = geopandas.read_parquet(path) if is_parquet else geopandas.read_file(path)
    except (ValueError, OSError, RuntimeError) as error:
        msg = f"{path} cannot be read as a region: {error}"
        raise ValueError(msg) from error
    if table.crs is None:
        msg = f"{path} names no CRS; write one into the file, for instance EPSG:4326"
        raise ValueError(msg)
    degrees = table.geometry.to_crs("EPSG:4326").dropna()
    return str(path), shapely.GeometryCollection(list(degrees))


def _from_geojson(what: str, content: Any) -> BaseGeometry:
    kind = content.get("type") if isinstance(content, Mapping) else None
    named = (content.get("crs") or {}).get("properties", {}).get("name", "") if kind else ""
    if named and not named.endswith(("CRS84", "EPSG::4326", "EPSG:4326")):
        msg = f"{what} is GeoJSON in {named}; expected degrees, WGS 84 (RFC 7946); reproject it"
        raise ValueError(msg)
    try:
        if kind == "FeatureCollection":
            geometries = [f["geometry"] for f in content["features"] if f.get("geometry")]
            return shapely.GeometryCollection([shape(g) for g in geometries])
        return shape(content["geometry"] if kind == "Feature" else content)
    except (KeyError, TypeError, AttributeError, ValueError, shapely.errors.ShapelyError) as error:
        msg = f"{what} is no GeoJSON with an area: {error!r}"
        raise ValueError(msg) from None
