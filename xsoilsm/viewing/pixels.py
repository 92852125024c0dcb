"""Outside the seven steps (look): one place through time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import rasterio
from rasterio.warp import transform
from rasterio.windows import Window

from xsoilsm.quality import describe
from xsoilsm.viewing.layers import Layer

__all__ = ["series_at"]


def series_at(layers: Sequence[Layer], lon: float, lat: float, res: str) -> list[dict[str, Any]]:
    """Read the cell at a place from every map of one grid. Reads one block a file.

    Parameters
    ----------
    layers : sequence of Layer
    lon, lat : float
        Degrees, WGS 84.
    res : str

    Returns
    -------
    list of dict
        By time: ``time``, ``about``, ``soil_moisture`` and ``soil_moisture_std`` in m3 m-3 or
        None, ``flags`` (int) and ``reasons`` in words. Times whose maps do not reach the place
        are left out.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for layer in layers:
        if layer.res != res:
            continue
        value = _value(layer, lon, lat)
        if value is None:
            continue
        row = rows.setdefault(
            (layer.time, layer.about), {"time": layer.time, "about": layer.about, "reasons": []}
        )
        if layer.variable == "quality_flag":
            row |= {"flags": int(value), "reasons": describe(int(value))}
        else:
            row[layer.variable] = value if math.isfinite(value) else None
    return [rows[key] for key in sorted(rows)]


def _value(layer: Layer, lon: float, lat: float) -> float | None:
    """Value of the cell in physical units, NaN where it is missing; None beyond the map."""
    with rasterio.open(layer.path) as source:
        (x,), (y,) = transform("EPSG:4326", source.crs, [lon], [lat])
        row, column = source.index(x, y)
        if not (0 <= row < source.height and 0 <= column < source.width):
            return None
        stored = source.read(1, window=Window(column, row, 1, 1))[0, 0]
        if source.nodata is not None and stored == source.nodata:
            return math.nan
        return float(stored * source.scales[0] + source.offsets[0])
