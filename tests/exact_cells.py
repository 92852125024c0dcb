"""Area-weighted means by exactextract: the judge of the regridding."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from exactextract import exact_extract
from exactextract.feature import JSONFeatureSource
from exactextract.raster import NumPyRasterSource
from odc.geo.geobox import GeoBox
from pyproj import Transformer

Floats = npt.NDArray[np.float64]


def cell_outlines(source: GeoBox, target: GeoBox, pieces: int = 32) -> Floats:
    """Outlines (cell, point, xy) of a target's cells in the source's coordinates.

    Every side is divided into `pieces`, because a straight side is a curve in another
    projection. The inverse of EASE-Grid 2.0 in PROJ (a series) misses its own forward formula
    by up to 1.7 mm, which is 2e-5 of a 100 m cell: one correction removes that.
    """
    share = np.arange(pieces) / pieces
    zero, one = np.zeros(pieces), np.ones(pieces)
    across = np.concatenate([share, one, 1 - share, zero])
    down = np.concatenate([zero, share, one, 1 - share])
    height, width = target.shape
    u = np.arange(width)[None, :, None] + across
    v = np.arange(height)[:, None, None] + down
    u, v = np.broadcast_arrays(u, v)
    a = target.affine
    x, y = a.a * u + a.b * v + a.c, a.d * u + a.e * v + a.f
    forward = Transformer.from_crs(str(source.crs), str(target.crs), always_xy=True)
    inverse = Transformer.from_crs(str(target.crs), str(source.crs), always_xy=True)
    there_x, there_y = forward.transform(*inverse.transform(x, y))
    points = inverse.transform(2 * x - there_x, 2 * y - there_y)
    return np.stack(points, axis=-1).reshape(height * width, -1, 2)


def exact_cells(
    values: npt.NDArray[np.generic], source: GeoBox, target: GeoBox, pieces: int = 32
) -> tuple[Floats, Floats]:
    """Mean and coverage (Y, X) of the target's cells, in float64; NaN where nothing lies.

    Pixels in degrees weigh with their area on the sphere.
    """
    a = source.affine
    height, width = values.shape
    outlines = cell_outlines(source, target, pieces)
    features = [
        {
            "type": "Feature",
            "id": k,
            "properties": {},
            "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]][::-1]]},
        }
        for k, ring in enumerate(outlines.tolist())
    ]
    raster = NumPyRasterSource(
        np.asarray(values, dtype=np.float64), a.c, a.f + a.e * height, a.c + a.a * width, a.f
    )
    weights = "area_spherical_m2" if source.crs.geographic else "fraction"
    wanted = [f"mean=mean(coverage_weight={weights})", "count"]
    found = exact_extract(raster, JSONFeatureSource(features), wanted)
    mean = [f["properties"]["mean"] for f in found]
    count = np.array([f["properties"]["count"] for f in found], dtype=np.float64)
    x, y = np.moveaxis(outlines - outlines.mean(axis=1, keepdims=True), 2, 0)
    area = np.abs(np.sum(x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1), axis=1)) / 2
    coverage = count * abs(a.a * a.e) / area
    return (
        np.array([np.nan if m is None else m for m in mean]).reshape(target.shape),
        coverage.reshape(target.shape),
    )
