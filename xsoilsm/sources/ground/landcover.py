"""Step 3 of 7 (load): shares of open water, buildings, trees, and snow and ice in a cell.

A map of classes (ESA WorldCover, 10 m, 2020 and 2021) is counted by area: the share of a class is
the area of its pixels within the cell over the area of all pixels with a class. Of several
editions of a tile the latest counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xsoilsm.catalog import Catalog, CatalogError, Segment
from xsoilsm.facts import LandcoverSource
from xsoilsm.sources.access.links import access_of
from xsoilsm.sources.access.search import (
    Bounds,
    find_items,
    footprint_of,
    item_span,
    lonlat_bounds,
    overlaps,
)
from xsoilsm.sources.pixels.reading import CellSums, NativeReader, Raster, native_windows

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

__all__ = ["BANDS", "CoverTile", "find_landcover", "read_landcover"]

BANDS = ("water_fraction", "built_fraction", "tree_fraction", "snow_ice_fraction")
"""Order of the bands that :func:`read_landcover` gives."""

BLOCK = 1024
"""Longest side in native pixels of a window that is read at once."""


@dataclass(frozen=True)
class CoverTile:
    """One tile, as it travels in a graph.

    Parameters
    ----------
    id : str
    raster : Raster
    classes : tuple of tuple of int
        Those of each of :data:`BANDS`.
    nodata : float or None
        Number that stands for no class, besides what the file declares.
    footprint : bytes
        WKB in lon/lat.
    """

    id: str
    raster: Raster
    classes: tuple[tuple[int, ...], ...]
    nodata: float | None
    footprint: bytes


def find_landcover(catalog: Catalog, segment: Segment, bounds: Bounds) -> list[CoverTile]:
    """Search the tiles of a region. Asks the service; reads no pixel.

    Parameters
    ----------
    catalog : Catalog
    segment : Segment
        A source of land cover; its days are those of the search.
    bounds : (west, south, east, north)
        In degrees.

    Returns
    -------
    list of CoverTile
        Of each place the latest edition.
    """
    source = segment.source
    if not isinstance(source, LandcoverSource):
        msg = f"source of kind '{source.kind}' is not land cover"
        raise CatalogError(msg)
    service = catalog.service_of(source)
    access = access_of(service)
    classes = source.water, source.built, source.tree, source.snow_ice
    latest: dict[tuple[float, ...], tuple[datetime, CoverTile]] = {}
    for item in find_items(service, source.collection, bounds, segment.start, segment.end):
        if source.cover.asset not in item.assets:
            continue
        asset = item.assets[source.cover.asset]
        raster = Raster(asset.get_absolute_href() or asset.href, access)
        tile = CoverTile(item.id, raster, classes, source.cover.nodata, footprint_of(item))
        # Editions of a tile have one place; their bounds may differ in the last digits.
        place = tuple(round(float(v), 3) for v in item.bbox or ())
        begin = item_span(item)[0]
        if place not in latest or latest[place][0] <= begin:
            latest[place] = begin, tile
    return [tile for _, tile in latest.values()]


def read_landcover(
    tiles: tuple[CoverTile, ...], target: GeoBox, on_error: str = "flag"
) -> npt.NDArray[np.float32]:
    """Read the land cover of a GeoBox. Computes: reads the pixels that it needs.

    Parameters
    ----------
    tiles : tuple of CoverTile
    target : GeoBox
        A chunk of the cube.
    on_error : {"flag", "raise"}
        Where a tile cannot be read, all cells are NaN, or an error is raised.

    Returns
    -------
    (4, y, x) ndarray of float32
        The bands of :data:`BANDS`, from 0 to 1; NaN where no pixel has a class.

    Raises
    ------
    OSError
        When a tile cannot be read and `on_error` is ``"raise"``.
    """
    bounds = lonlat_bounds(target)
    sums = CellSums(len(BANDS), target)
    failed = False
    for tile in tiles:
        if not overlaps(tile.footprint, bounds):
            continue
        try:
            with NativeReader((tile.raster,)) as reader:
                fills = [x for x in (tile.nodata, *reader.nodata) if x is not None]
                for patch in native_windows(reader.geobox, target, BLOCK):
                    (cover,) = reader.read(patch)
                    sums.add(_indicators(cover, tile.classes, fills), patch)
        except OSError:
            if on_error == "raise":
                raise
            failed = True
    shares, _ = sums.finish()
    if failed:
        # Shares of the part that could be read would pass for the whole.
        shares[:] = np.nan
    return shares


def _indicators(
    cover: npt.NDArray[Any], classes: tuple[tuple[int, ...], ...], fills: list[float]
) -> npt.NDArray[np.float32]:
    """One where a pixel is of the classes of a band, zero where not, NaN where it has none."""
    values = np.empty((len(classes), *cover.shape), dtype=np.float32)
    for band, members in enumerate(classes):
        values[band] = np.isin(cover, members)
    values[:, np.isin(cover, fills)] = np.nan
    return values
