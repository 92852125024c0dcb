"""Step 3 of 7 (load): which Sentinel-1 acquisitions see a region, as small records.

Items of one absolute orbit and one direction are slices of one acquisition, and never of two;
the ascending and the descending half of an orbit are two passes. Where a source gives no absolute
orbit, items of one relative orbit and direction belong together while they follow one another
within minutes. Items with one polarisation, and those that the catalog names as wrong, are left
out with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from xsoilsm.catalog import Catalog, CatalogError, Segment
from xsoilsm.facts import Sentinel1GrdSource, Sentinel1RtcSource, Service
from xsoilsm.sources.access.links import Access, access_of
from xsoilsm.sources.access.search import (
    Bounds,
    find_items,
    footprint_of,
    item_span,
    utc_naive,
)
from xsoilsm.sources.pixels.reading import Raster
from xsoilsm.sources.sentinel1.annotation import (
    IncidenceSurface,
    read_incidence,
    read_look,
)
from xsoilsm.sources.sentinel1.companions import (
    Companions,
    Layer,
    href_of,
    middle_of,
    number_of,
    orbit_state_of,
)
from xsoilsm.sources.sentinel1.tracks import Track

if TYPE_CHECKING:
    import pystac

__all__ = [
    "Acquisition",
    "Excluded",
    "Slice",
    "complete",
    "find_acquisitions",
    "overpass_of",
    "passes_of",
    "reason_to_exclude",
    "sift",
]

SAME_PASS = timedelta(minutes=15)
"""Longest time between slices of one pass, where no absolute orbit tells."""


@dataclass(frozen=True)
class Slice:
    """One item of an acquisition, as it travels in a graph.

    Parameters
    ----------
    id : str
    vv, vh : Raster
    nodata : float or None
        Stored number of no data, from the catalog.
    annotation : str
        Unsigned link of the annotation's XML; empty where `incidence` makes it needless, or
        `track` stands for it.
    annotation_access : Access
    footprint : bytes
        WKB in lon/lat.
    area, incidence, mask : Layer or None
        Area factor, incidence angle in degrees, layover and shadow.
    track : Track or None
        Where the angle comes from if the slice's own annotation is not to be had.
    """

    id: str
    vv: Raster
    vh: Raster
    nodata: float | None
    annotation: str
    annotation_access: Access
    footprint: bytes
    area: Layer | None = None
    incidence: Layer | None = None
    mask: Layer | None = None
    track: Track | None = None

    @property
    def has_angles(self) -> bool:
        """Whether the angle is known without a layer on the pixels."""
        return bool(self.annotation) or self.track is not None

    def read_incidence(self) -> IncidenceSurface:
        """Incidence angle in degrees. Computes: reads the annotation; OSError where it fails."""
        if self.track is not None:
            return self.track.incidence()
        return read_incidence(self.annotation, self.annotation_access)

    def read_look(self) -> IncidenceSurface:
        """Azimuth of the look in degrees; as `read_incidence` in all else."""
        if self.track is not None:
            return self.track.look()
        return read_look(self.annotation, self.annotation_access)


@dataclass(frozen=True)
class Acquisition:
    """One pass over the region.

    Parameters
    ----------
    time : datetime64[ns]
        Overpass in UTC: the mean of the middle times of the slices over the region, within
        some seconds of the pass at any of its cells.
    platform : str
    relative_orbit : int
    orbit_state : str
        ``"ascending"`` or ``"descending"``.
    absolute_orbit : int
        0 where the source does not tell it.
    sigma0_from : str
        How sigma nought is obtained.
    slices : tuple of Slice
    mask_valid : tuple of int
        Classes of the slices' masks that are neither layover nor shadow.
    border_pixels : int
        Width in pixels by which the outer border is eroded.
    """

    time: np.datetime64
    platform: str
    relative_orbit: int
    orbit_state: str
    absolute_orbit: int
    sigma0_from: str
    slices: tuple[Slice, ...]
    mask_valid: tuple[int, ...] = (0,)
    border_pixels: int = 0

    @property
    def incidence_from(self) -> str:
        """Where the incidence angle comes from: ``"layer"``, ``"annotation"`` or ``"track"``.

        A layer on the pixels, the annotation of the same product, or other passes of the track
        for one slice at least.
        """
        if all(piece.incidence is not None for piece in self.slices):
            return "layer"
        return "track" if any(piece.track is not None for piece in self.slices) else "annotation"


@dataclass(frozen=True)
class Excluded:
    """An item that was left out, and why."""

    id: str
    reason: str


def find_acquisitions(
    catalog: Catalog, segment: Segment, bounds: Bounds
) -> tuple[list[Acquisition], list[Excluded]]:
    """Search the acquisitions of a region. Asks the services; reads no pixel.

    Parameters
    ----------
    catalog : Catalog
    segment : Segment
        A source of radar and its days.
    bounds : (west, south, east, north)
        In degrees.

    Returns
    -------
    acquisitions : list of Acquisition
        By time.
    excluded : list of Excluded
        Items that were left out: single polarisation, or known to be wrong.

    Raises
    ------
    CatalogError
        When an item lacks what is needed, for instance a GRD item with its annotation.
    """
    source = segment.source
    if not isinstance(source, Sentinel1RtcSource):
        msg = f"source of kind '{source.kind}' is not Sentinel-1"
        raise CatalogError(msg)
    service = catalog.service_of(source)
    items = find_items(service, source.collection, bounds, segment.start, segment.end)
    complete(items, source)
    kept, excluded = sift(items, source)
    if not kept:
        return [], excluded
    companions = Companions(catalog, source, bounds, (segment.start, segment.end))
    acquisitions = [_acquisition(slices, source, service, companions) for slices in passes_of(kept)]
    return sorted(acquisitions, key=lambda a: (a.time, a.absolute_orbit)), excluded


def sift(
    items: Sequence[pystac.Item], source: Sentinel1RtcSource | Sentinel1GrdSource
) -> tuple[list[pystac.Item], list[Excluded]]:
    """Divide items into those that count and those that are left out. Lazy: reads nothing."""
    kept, excluded = [], []
    for item in items:
        reason = reason_to_exclude(item, source)
        if reason:
            excluded.append(Excluded(item.id, reason))
        else:
            kept.append(item)
    return kept, excluded


def overpass_of(items: Sequence[pystac.Item]) -> datetime:
    """Mean of the middle times of slices, UTC."""
    middles = [middle_of(item).timestamp() for item in items]
    return datetime.fromtimestamp(sum(middles) / len(middles), tz=middle_of(items[0]).tzinfo)


def complete(items: Sequence[pystac.Item], source: Sentinel1RtcSource) -> None:
    """Give items the orbit and platform that their names tell, where they state none, in place.

    The direction follows from the local solar time: the orbit is dawn-dusk, its ascending half
    passes near 18 h and its descending half near 6 h (ESA, Sentinel-1 orbit description).
    """
    import shapely

    if not source.relative_orbit_key:
        return
    for item in items:
        stated = item.properties
        for name, key in (
            ("sat:relative_orbit", source.relative_orbit_key),
            ("platform", source.platform_key),
        ):
            found = re.search(key, item.id) if key and not stated.get(name) else None
            if found:
                stated[name] = int(found[1]) if name == "sat:relative_orbit" else found[1]
        if not stated.get("sat:orbit_state"):
            when = middle_of(item)
            longitude = shapely.from_wkb(footprint_of(item)).centroid.x
            hour = (when.hour + when.minute / 60 + longitude / 15) % 24
            stated["sat:orbit_state"] = "ascending" if hour >= 12 else "descending"


def reason_to_exclude(item: pystac.Item, source: Sentinel1RtcSource | Sentinel1GrdSource) -> str:
    """Say why an item is left out; empty where it is not. Lazy: reads nothing."""
    polarisations = {str(p).upper() for p in item.properties.get("sar:polarizations") or ()}
    if polarisations and not {"VV", "VH"} <= polarisations:
        return f"polarisations {', '.join(sorted(polarisations))}, not VV and VH"
    absent = [key for key in (source.vv.asset, source.vh.asset) if key not in item.assets]
    if absent:
        return f"no asset {', '.join(absent)}"
    day = item_span(item)[0].date()
    platform = str(item.properties.get("platform", ""))
    return next((rule.reason for rule in source.exclude if rule.matches(day, platform)), "")


def passes_of(items: Sequence[pystac.Item]) -> list[list[pystac.Item]]:
    """Group items by pass; an absolute orbit has an ascending and a descending half."""
    groups: dict[tuple[str, int, int, str], list[list[pystac.Item]]] = {}
    for item in sorted(items, key=lambda item: (middle_of(item), item.id)):
        absolute = number_of(item, "sat:absolute_orbit")
        relative = number_of(item, "sat:relative_orbit")
        if not orbit_state_of(item) or not (absolute or relative):
            msg = (
                f"item '{item.id}' has no sat:absolute_orbit and sat:orbit_state; they are needed "
                "to merge the slices of a pass"
            )
            raise CatalogError(msg)
        platform = str(item.properties.get("platform", ""))
        known = groups.setdefault((platform, absolute, relative, orbit_state_of(item)), [])
        if known and (absolute or middle_of(item) - middle_of(known[-1][-1]) < SAME_PASS):
            known[-1].append(item)
        else:
            known.append([item])
    return [slices for group in groups.values() for slices in group]


def _acquisition(
    items: list[pystac.Item],
    source: Sentinel1RtcSource,
    service: Service,
    companions: Companions,
) -> Acquisition:
    first = items[0]
    relative = number_of(first, "sat:relative_orbit")
    if not relative:
        msg = f"item '{first.id}' has no sat:relative_orbit"
        raise CatalogError(msg)
    when = overpass_of(items)
    access = access_of(service)
    slices = []
    for item in items:
        annotation, annotation_access, track = companions.angles(item)
        layers = companions.layers(item)
        slices.append(
            Slice(
                id=item.id,
                vv=Raster(href_of(item, source.vv.asset), access),
                vh=Raster(href_of(item, source.vh.asset), access),
                nodata=source.vv.nodata,
                annotation=annotation,
                annotation_access=annotation_access,
                footprint=footprint_of(item),
                track=track,
                **layers,
            )
        )
    clean = source.border_before is not None and when.date() >= source.border_before
    return Acquisition(
        time=utc_naive(when),
        platform=str(first.properties.get("platform", "")),
        relative_orbit=relative,
        orbit_state=orbit_state_of(first),
        absolute_orbit=number_of(first, "sat:absolute_orbit"),
        sigma0_from=source.sigma0_from,
        slices=tuple(slices),
        mask_valid=source.mask_valid,
        border_pixels=0 if clean else source.border_pixels,
    )
