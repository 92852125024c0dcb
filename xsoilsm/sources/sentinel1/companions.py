"""Step 3 of 7 (load): items beside those of the backscatter, which make sigma nought of it.

The incidence angle comes from the annotation of the GRD item that an item was made from. Where
that item is missing, another pass of the same track gives it, or what is kept of the track. Area
factors and masks lie in the item itself or in one of a static collection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from xsoilsm.catalog import Catalog, CatalogError
from xsoilsm.facts import Band, Sentinel1RtcSource
from xsoilsm.sources.access.links import Access, access_of
from xsoilsm.sources.access.search import (
    Bounds,
    find_item,
    find_items,
    footprint_of,
    item_span,
)
from xsoilsm.sources.pixels.reading import Raster
from xsoilsm.sources.sentinel1.annotation import annotation_href
from xsoilsm.sources.sentinel1.tracks import Track, is_known, near, read_track

if TYPE_CHECKING:
    import pystac

__all__ = ["AROUND", "Companions", "Layer", "href_of", "middle_of", "number_of", "orbit_state_of"]

AROUND = timedelta(24)
"""How long before and after a search other passes of a track are looked for: two cycles."""

_EVER = date(1950, 1, 1), date(2100, 1, 1)
_UNCOVERED = 0.02  # share of a place that the footprints of other passes may leave out


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


def number_of(item: pystac.Item, name: str) -> int:
    """Orbit number of an item; 0 where it tells none."""
    try:
        return int(item.properties[name])
    except (KeyError, TypeError, ValueError):
        return 0


def orbit_state_of(item: pystac.Item) -> str:
    """Direction of an item; empty where it tells none."""
    return str(item.properties.get("sat:orbit_state") or "").lower()


def middle_of(item: pystac.Item) -> datetime:
    """Middle of the time of an item, UTC."""
    begin, finish = item_span(item)
    return begin + (finish - begin) / 2


def href_of(item: pystac.Item, asset: str) -> str:
    """Unsigned link of an asset."""
    return item.assets[asset].get_absolute_href() or item.assets[asset].href


class Companions:
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
        self._bounds = bounds
        self._days = days
        self._originals: dict[str, pystac.Item] = {}
        self._later: list[pystac.Item] | None = None
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

    def angles(self, item: pystac.Item) -> tuple[str, Access, Track | None]:
        """Link of the annotation that holds an item's angle, and its access; else its track."""
        if not self._needs_annotation:
            return "", self._access, None
        source = self._source
        link = item.get_single_link("derived_from")
        name = "" if link is None else str(link.target).rstrip("/").split("/")[-1]
        original = self._originals.get(name.removesuffix(".json"))
        if original is None:
            original = find_item(self._grd, source.grd_collection, item, "derived_from")
        if original is None:
            original = self._taken_together(item)
        if original is None or source.grd_asset not in original.assets:
            track = self._track(item)
            if track is not None:
                return "", access_of(self._grd), track
            where = f"'derived_from' leads to {name!r}" if name else "it has no link 'derived_from'"
            msg = (
                f"item '{item.id}' has no matching item in '{source.grd_collection}' with the "
                f"asset '{source.grd_asset}', whose annotation holds the incidence angle "
                f"({where}), and no other pass of its track is there within {AROUND.days} days; "
                "leave its date out of the time range, or exclude it in the catalog"
            )
            raise CatalogError(msg)
        try:
            href = annotation_href(href_of(original, source.grd_asset))
        except ValueError as error:
            msg = f"item '{original.id}': {error}"
            raise CatalogError(msg) from None
        return href, access_of(self._grd), None

    def _track(self, item: pystac.Item) -> Track | None:
        """Other passes of an item's track that see the same place, or what is kept of it."""
        relative, state = number_of(item, "sat:relative_orbit"), orbit_state_of(item)
        if not relative:
            return None
        access, footprint = access_of(self._grd), footprint_of(item)
        track = Track(relative, state, self._bounds, footprint, access=access)
        donors = self._donors(item, self._originals.values())
        if not donors:
            if self._later is None:
                first, last = self._days
                self._later = find_items(
                    self._grd,
                    self._source.grd_collection,
                    self._bounds,
                    first - AROUND,
                    last + AROUND,
                )
            donors = self._donors(item, self._later)
        if donors:
            return replace(track, donors=donors)
        known = read_track(relative, state)
        if is_known(known, self._bounds, footprint):
            return replace(track, surfaces=near(known, self._bounds))
        return None

    def _donors(self, item: pystac.Item, others: Iterable[pystac.Item]) -> tuple[str, ...]:
        """Annotations of one track that together see an item's place; none where they do not."""
        import shapely

        place = shapely.intersection(
            shapely.from_wkb(footprint_of(item)), shapely.box(*self._bounds)
        )
        orbit = number_of(item, "sat:relative_orbit"), orbit_state_of(item)
        middle = middle_of(item)
        rest, links = place, []
        for other in sorted(others, key=lambda other: abs(middle_of(other) - middle)):
            same = (number_of(other, "sat:relative_orbit"), orbit_state_of(other)) == orbit
            if not same or self._source.grd_asset not in other.assets:
                continue
            left = shapely.difference(rest, shapely.from_wkb(footprint_of(other)))
            if left.equals(rest):
                continue
            with suppress(ValueError):
                links.append(annotation_href(href_of(other, self._source.grd_asset)))
                rest = left
            if rest.area <= _UNCOVERED * place.area:
                return tuple(links)
        return ()

    def _taken_together(self, item: pystac.Item) -> pystac.Item | None:
        """GRD item of the same pass that shares most of the item's time."""
        begin, finish = item_span(item)
        best: tuple[float, pystac.Item] | None = None
        for other in self._originals.values():
            first, last = item_span(other)
            shared = (min(finish, last) - max(begin, first)).total_seconds()
            same = orbit_state_of(other) == orbit_state_of(item) and all(
                0 in (number_of(item, orbit), number_of(other, orbit))
                or number_of(item, orbit) == number_of(other, orbit)
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
            role: Layer(Raster(href_of(holder, band.asset), self._access), band)
            for role, band in bands.items()
        }
