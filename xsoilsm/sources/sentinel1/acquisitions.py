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
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from xsoilsm.catalog import Catalog, CatalogError, Segment
from xsoilsm.facts import Band, Sentinel1GrdSource, Sentinel1RtcSource, Service
from xsoilsm.sources.access.links import Access, access_of
from xsoilsm.sources.access.search import (
    Bounds,
    find_item,
    find_items,
    footprint_of,
    item_span,
    utc_naive,
)
from xsoilsm.sources.pixels.reading import Raster
from xsoilsm.sources.sentinel1.annotation import annotation_href

if TYPE_CHECKING:
    import pystac

__all__ = [
    "Acquisition",
    "Excluded",
    "Layer",
    "Slice",
    "complete",
    "find_acquisitions",
    "passes_of",
    "reason_to_exclude",
]

SAME_PASS = timedelta(minutes=15)
"""Longest time between slices of one pass, where no absolute orbit tells."""

_EVER = date(1950, 1, 1), date(2100, 1, 1)


@dataclass(frozen=True)
class Layer:
    """A raster beside the backscatter, on the same pixels.

    Parameters
    ----------
    raster : Raster
    band : Band
    """

    raster: Raster
    band: Band


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
        Unsigned link of the annotation's XML; empty where `incidence` makes it needless.
    annotation_access : Access
    footprint : bytes
        WKB in lon/lat.
    area, incidence, mask : Layer or None
        Area factor, incidence angle in degrees, layover and shadow.
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
    excluded: list[Excluded] = []
    kept: list[pystac.Item] = []
    items = find_items(service, source.collection, bounds, segment.start, segment.end)
    complete(items, source)
    for item in items:
        reason = reason_to_exclude(item, source)
        if reason:
            excluded.append(Excluded(item.id, reason))
        else:
            kept.append(item)
    if not kept:
        return [], excluded
    companions = _Companions(catalog, source, bounds, (segment.start, segment.end))
    acquisitions = [_acquisition(slices, source, service, companions) for slices in passes_of(kept)]
    return sorted(acquisitions, key=lambda a: (a.time, a.absolute_orbit)), excluded


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
            when = _middle(item)
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


def _number(item: pystac.Item, name: str) -> int:
    """Orbit number of an item; 0 where it tells none."""
    try:
        return int(item.properties[name])
    except (KeyError, TypeError, ValueError):
        return 0


def _orbit_state(item: pystac.Item) -> str:
    return str(item.properties.get("sat:orbit_state") or "").lower()


def passes_of(items: Sequence[pystac.Item]) -> list[list[pystac.Item]]:
    """Group items by pass; an absolute orbit has an ascending and a descending half."""
    groups: dict[tuple[str, int, int, str], list[list[pystac.Item]]] = {}
    for item in sorted(items, key=lambda item: (_middle(item), item.id)):
        absolute = _number(item, "sat:absolute_orbit")
        relative = _number(item, "sat:relative_orbit")
        if not _orbit_state(item) or not (absolute or relative):
            msg = (
                f"item '{item.id}' has no sat:absolute_orbit and sat:orbit_state; they are needed "
                "to merge the slices of a pass"
            )
            raise CatalogError(msg)
        platform = str(item.properties.get("platform", ""))
        known = groups.setdefault((platform, absolute, relative, _orbit_state(item)), [])
        if known and (absolute or _middle(item) - _middle(known[-1][-1]) < SAME_PASS):
            known[-1].append(item)
        else:
            known.append([item])
    return [slices for group in groups.values() for slices in group]


def _acquisition(
    items: list[pystac.Item],
    source: Sentinel1RtcSource,
    service: Service,
    companions: _Companions,
) -> Acquisition:
    first = items[0]
    relative = _number(first, "sat:relative_orbit")
    if not relative:
        msg = f"item '{first.id}' has no sat:relative_orbit"
        raise CatalogError(msg)
    middles = [_middle(item).timestamp() for item in items]
    when = datetime.fromtimestamp(sum(middles) / len(middles), tz=_middle(first).tzinfo)
    access = access_of(service)
    slices = []
    for item in items:
        annotation, annotation_access = companions.annotation(item)
        layers = companions.layers(item)
        slices.append(
            Slice(
                id=item.id,
                vv=Raster(_href(item, source.vv.asset), access),
                vh=Raster(_href(item, source.vh.asset), access),
                nodata=source.vv.nodata,
                annotation=annotation,
                annotation_access=annotation_access,
                footprint=footprint_of(item),
                **layers,
            )
        )
    clean = source.border_before is not None and when.date() >= source.border_before
    return Acquisition(
        time=utc_naive(when),
        platform=str(first.properties.get("platform", "")),
        relative_orbit=relative,
        orbit_state=_orbit_state(first),
        absolute_orbit=_number(first, "sat:absolute_orbit"),
        sigma0_from=source.sigma0_from,
        slices=tuple(slices),
        mask_valid=source.mask_valid,
        border_pixels=0 if clean else source.border_pixels,
    )


def _middle(item: pystac.Item) -> datetime:
    begin, finish = item_span(item)
    return begin + (finish - begin) / 2


def _href(item: pystac.Item, asset: str) -> str:
    return item.assets[asset].get_absolute_href() or item.assets[asset].href


class _Companions:
    """Items beside those of the backscatter: GRD items with annotations, and static layers."""

    def __init__(
        self,
        catalog: Catalog,
        source: Sentinel1RtcSource,
        bounds: Bounds,
        days: tuple[date, date],
    ) -> None:
        self._source = source
        self._service = catalog.service_of(source)
        self._access = access_of(self._service)
        self._originals: dict[str, pystac.Item] = {}
        self._static: dict[str, pystac.Item] = {}
        self._needs_annotation = source.incidence is None or source.sigma0_from == "rtc-slope"
        if self._needs_annotation:
            self._grd = catalog.services[source.grd_service or source.service]
            self._originals = {
                item.id: item
                for item in find_items(self._grd, source.grd_collection, bounds, *days)
            }
        if source.static_collection:
            # Of several editions the last one counts: identifiers end with the version.
            for item in find_items(self._service, source.static_collection, bounds, *_EVER):
                self._static[self._key(item)] = max(
                    item, self._static.get(self._key(item), item), key=lambda item: item.id
                )

    def _key(self, item: pystac.Item) -> str:
        found = re.search(self._source.static_key, item.id)
        return found.group(1) if found else item.id

    def annotation(self, item: pystac.Item) -> tuple[str, Access]:
        """Link of the annotation of the GRD item that an item was made from, and its access."""
        if not self._needs_annotation:
            return "", self._access
        source = self._source
        link = item.get_single_link("derived_from")
        name = "" if link is None else str(link.target).rstrip("/").split("/")[-1]
        original = self._originals.get(name.removesuffix(".json"))
        if original is None:
            original = find_item(self._grd, source.grd_collection, item, "derived_from")
        if original is None:
            original = self._taken_together(item)
        if original is None or source.grd_asset not in original.assets:
            where = f"'derived_from' leads to {name!r}" if name else "it has no link 'derived_from'"
            msg = (
                f"item '{item.id}' has no matching item in '{source.grd_collection}' with the "
                f"asset '{source.grd_asset}', whose annotation holds the incidence angle "
                f"({where}); leave its date out of the time range, or exclude it in the catalog"
            )
            raise CatalogError(msg)
        try:
            href = annotation_href(_href(original, source.grd_asset))
        except ValueError as error:
            msg = f"item '{original.id}': {error}"
            raise CatalogError(msg) from None
        return href, access_of(self._grd)

    def _taken_together(self, item: pystac.Item) -> pystac.Item | None:
        """GRD item of the same pass that shares most of the item's time."""
        begin, finish = item_span(item)
        best: tuple[float, pystac.Item] | None = None
        for other in self._originals.values():
            first, last = item_span(other)
            shared = (min(finish, last) - max(begin, first)).total_seconds()
            same = _orbit_state(other) == _orbit_state(item) and all(
                0 in (_number(item, orbit), _number(other, orbit))
                or _number(item, orbit) == _number(other, orbit)
                for orbit in ("sat:absolute_orbit", "sat:relative_orbit")
            )
            if same and shared >= 0 and (best is None or shared > best[0]):
                best = shared, other
        return None if best is None else best[1]

    def layers(self, item: pystac.Item) -> dict[str, Layer]:
        """Rasters beside the backscatter, by their role."""
        source = self._source
        wanted = {"area": source.area, "incidence": source.incidence, "mask": source.mask}
        if source.sigma0_from != "rtc-area":
            wanted["area"] = None
        bands = {role: band for role, band in wanted.items() if band is not None}
        if not bands:
            return {}
        holder: pystac.Item | None = item
        if source.static_collection:
            holder = self._static.get(self._key(item))
        absent = [b.asset for b in bands.values() if holder is None or b.asset not in holder.assets]
        if holder is None or absent:
            where = f"'{source.static_collection}'" if source.static_collection else "itself"
            msg = (
                f"item '{item.id}' finds no {', '.join(absent)} in {where}; leave its date out of "
                "the time range, or take another form of sigma0_from in the catalog"
            )
            raise CatalogError(msg)
        return {
            role: Layer(Raster(_href(holder, band.asset), self._access), band)
            for role, band in bands.items()
        }
