"""Step 3 of 7 (load): sand, clay and bulk density of the topmost 5 cm.

SoilGrids 2.0 stores integers: sand and clay in g/kg (a tenth is percent), bulk density in
cg/cm3 (a hundredth is g/cm3), on an interrupted Homolosine grid (Poggio et al. 2021,
doi 10.5194/soil-7-217-2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from xsoilsm.catalog import Catalog, CatalogError, Segment
from xsoilsm.facts import Band, SoilSource
from xsoilsm.sources.access.links import access_of
from xsoilsm.sources.access.search import Bounds, find_items, footprint_of, lonlat_bounds, overlaps
from xsoilsm.sources.pixels.reading import (
    CellSums,
    NativeReader,
    Raster,
    native_windows,
    to_physical,
)

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

__all__ = ["BANDS", "SoilLayer", "find_soil", "read_soil"]

BANDS = ("sand", "clay", "bulk_density")
"""Order of the bands that :func:`read_soil` gives."""

BLOCK = 1024
"""Longest side in native pixels of a window that is read at once."""


@dataclass(frozen=True)
class SoilLayer:
    """One layer of one item, as it travels in a graph.

    Parameters
    ----------
    id : str
    variable : str
        One of :data:`BANDS`.
    raster : Raster
    band : Band
    footprint : bytes
        WKB in lon/lat.
    """

    id: str
    variable: str
    raster: Raster
    band: Band
    footprint: bytes


def find_soil(catalog: Catalog, segment: Segment, bounds: Bounds) -> list[SoilLayer]:
    """Search the soil layers of a region. Asks the service; reads no pixel.

    Parameters
    ----------
    catalog : Catalog
    segment : Segment
        A source of soil; its days are those of the search.
    bounds : (west, south, east, north)
        In degrees.

    Returns
    -------
    list of SoilLayer
        A variable may lie in an item of its own.
    """
    source = segment.source
    if not isinstance(source, SoilSource):
        msg = f"source of kind '{source.kind}' is not soil"
        raise CatalogError(msg)
    service = catalog.service_of(source)
    access = access_of(service)
    bands = {"sand": source.sand, "clay": source.clay, "bulk_density": source.bulk_density}
    layers = []
    for item in find_items(service, source.collection, bounds, segment.start, segment.end):
        for variable, band in bands.items():
            if band.asset in item.assets:
                asset = item.assets[band.asset]
                raster = Raster(asset.get_absolute_href() or asset.href, access)
                layers.append(SoilLayer(item.id, variable, raster, band, footprint_of(item)))
    absent = [
        band.asset for name, band in bands.items() if name not in {x.variable for x in layers}
    ]
    if layers and absent:
        msg = (
            f"'{source.collection}' has no asset {', '.join(absent)} in the region; found "
            f"{', '.join(layer.band.asset for layer in layers)}"
        )
        raise CatalogError(msg)
    return layers


def read_soil(
    layers: tuple[SoilLayer, ...], target: GeoBox, on_error: str = "flag"
) -> npt.NDArray[np.float32]:
    """Read the soil of a GeoBox. Computes: reads the pixels that it needs.

    Parameters
    ----------
    layers : tuple of SoilLayer
    target : GeoBox
        A chunk of the cube.
    on_error : {"flag", "raise"}
        Where a file cannot be read, its variable is NaN, or an error is raised.

    Returns
    -------
    (3, y, x) ndarray of float32
        The bands of :data:`BANDS`: percent, percent, g/cm3.

    Raises
    ------
    OSError
        When a file cannot be read and `on_error` is ``"raise"``.
    """
    bounds = lonlat_bounds(target)
    sums = CellSums(len(BANDS), target)
    failed = np.zeros(len(BANDS), dtype=bool)
    for layer in layers:
        if not overlaps(layer.footprint, bounds, margin=0.01):
            continue
        index = BANDS.index(layer.variable)
        try:
            with NativeReader((layer.raster,)) as reader:
                for patch in native_windows(reader.geobox, target, BLOCK):
                    (stored,) = reader.read(patch)
                    values = to_physical(stored, layer.band, reader.nodata[0])
                    sums.add(values[None], patch, slice(index, index + 1))
        except OSError:
            if on_error == "raise":
                raise
            failed[index] = True
    mean, _ = sums.finish()
    mean[failed] = np.nan
    return mean
