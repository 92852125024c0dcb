"""Step 3 of 7 (load): which Sentinel-1 GRD acquisitions see a region, as small records.

Items of one pass are slices of one acquisition, as for terrain-corrected items. Each acquisition
brings the tiles of the elevation models around its slices, because images in radar geometry are
located with heights; where the geoid has to come from the scene, tiles under the whole slices
are needed, not only those of the region.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING

from xsoilsm.catalog import Catalog, CatalogError, Segment
from xsoilsm.facts import DemSource, Sentinel1GrdSource
from xsoilsm.sources.access.links import Access, access_of
from xsoilsm.sources.access.search import (
    Bounds,
    find_items,
    footprint_of,
    overlaps,
    utc_naive,
)
from xsoilsm.sources.ground.elevation import DemTile, find_dem
from xsoilsm.sources.pixels.reading import Raster
from xsoilsm.sources.sentinel1.acquisitions import Excluded, overpass_of, passes_of, sift
from xsoilsm.sources.sentinel1.grd import GrdAcquisition, GrdSlice, calibration_hrefs
from xsoilsm.sources.sentinel1.heights import HeightSource, height_source

if TYPE_CHECKING:
    import pystac

__all__ = ["find_grd_acquisitions"]

_EVER = date(1950, 1, 1), date(2100, 1, 1)
_MARGIN = 0.05  # degrees around footprints, whose outlines are no more exact than that


def find_grd_acquisitions(
    catalog: Catalog, segment: Segment, bounds: Bounds
) -> tuple[list[GrdAcquisition], list[Excluded]]:
    """Search the acquisitions of a region. Asks the services; reads no pixel.

    Parameters
    ----------
    catalog : Catalog
        Its sources of terrain give the heights.
    segment : Segment
        A source of radar and its days.
    bounds : (west, south, east, north)
        In degrees.

    Returns
    -------
    acquisitions : list of GrdAcquisition
        By time.
    excluded : list of Excluded
        Items that were left out: single polarisation, or known to be wrong.

    Raises
    ------
    CatalogError
        When an item lacks what is needed, or no elevation model covers the region.
    """
    source = segment.source
    if not isinstance(source, Sentinel1GrdSource):
        msg = f"source of kind '{source.kind}' is not Sentinel-1 GRD"
        raise CatalogError(msg)
    service = catalog.service_of(source)
    items = find_items(service, source.collection, bounds, segment.start, segment.end)
    kept, excluded = sift(items, source)
    if not kept:
        return [], excluded
    heights = _heights(catalog, bounds, [footprint_of(item) for item in kept])
    access = access_of(service)
    found = [_acquisition(items, source, access, heights) for items in passes_of(kept)]
    return sorted(found, key=lambda a: (a.time, a.absolute_orbit)), excluded


def _heights(catalog: Catalog, bounds: Bounds, footprints: list[bytes]) -> HeightSource:
    """Elevation models under the region, or under all slices where the scene gives the geoid."""
    import shapely

    models = [s for s in catalog.sources.get("terrain", ()) if isinstance(s, DemSource)]
    if not models:
        msg = (
            f"the catalog '{catalog.name}' names no elevation model; images in radar geometry "
            "are located with heights: add a source of terrain"
        )
        raise CatalogError(msg)
    bare = height_source((), models[0].datum, models[0].geoid_height)
    if bare.geoid == "scene":
        west, south, east, north = shapely.total_bounds(shapely.from_wkb(footprints)).tolist()
        bounds = west - _MARGIN, south - _MARGIN, east + _MARGIN, north + _MARGIN
    tiles: list[DemTile] = []
    for rank, model in enumerate(models):
        always = Segment(source=model, start=_EVER[0], end=_EVER[1])
        tiles += find_dem(catalog, always, bounds, rank)
    if not tiles:
        names = ", ".join(model.collection for model in models)
        msg = f"no elevation model ({names}) covers {bounds}; name a further source of terrain"
        raise CatalogError(msg)
    return replace(bare, tiles=tuple(tiles))


def _acquisition(
    items: list[pystac.Item], source: Sentinel1GrdSource, access: Access, heights: HeightSource
) -> GrdAcquisition:
    import shapely

    first = items[0]
    when = overpass_of(items)
    relative = first.properties.get("sat:relative_orbit")
    if relative is None:
        msg = f"item '{first.id}' has no sat:relative_orbit"
        raise CatalogError(msg)
    clean = source.border_before is not None and when.date() >= source.border_before
    slices = tuple(_slice(item, source, access, not clean) for item in items)
    outlines = shapely.from_wkb([piece.footprint for piece in slices])
    west, south, east, north = shapely.total_bounds(outlines).tolist()
    around = west - _MARGIN, south - _MARGIN, east + _MARGIN, north + _MARGIN
    near = tuple(tile for tile in heights.tiles if overlaps(tile.footprint, around))
    return GrdAcquisition(
        time=utc_naive(when),
        platform=str(first.properties.get("platform", "")),
        relative_orbit=int(relative),
        orbit_state=str(first.properties["sat:orbit_state"]).lower(),
        absolute_orbit=int(first.properties.get("sat:absolute_orbit") or 0),
        slices=slices,
        heights=replace(heights, tiles=near),
        resampling=source.resampling,
    )


def _slice(
    item: pystac.Item, source: Sentinel1GrdSource, access: Access, has_fringe: bool
) -> GrdSlice:
    hrefs = []
    for band in (source.vv, source.vh):
        asset = item.assets[band.asset]
        hrefs.append(asset.get_absolute_href() or asset.href)
    try:
        for href in hrefs:
            calibration_hrefs(href)
    except ValueError as error:
        msg = f"item '{item.id}': {error}"
        raise CatalogError(msg) from None
    vv, vh = (Raster(href, access) for href in hrefs)
    return GrdSlice(item.id, vv, vh, footprint_of(item), has_fringe)
