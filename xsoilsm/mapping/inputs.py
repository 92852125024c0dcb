"""Step 7 of 7 (write): the items of a job, searched once and kept beside it.

A job must see the same inputs in every tile and after every interruption, while providers add
and replace items. So the services are asked once, for the whole region and time, and what they
answer is kept as STAC items under ``inputs/``. A tile is loaded through a static catalog of just
those of them that lie near it, by the same `xsoilsm.load_cube` as any cube.

Weather from stores without items (services of kind ``zarr``) is still looked up by each tile.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xsoilsm.catalog import Catalog
from xsoilsm.facts import Sentinel1GrdSource, Sentinel1RtcSource, Source
from xsoilsm.sources.access.search import (
    Bounds,
    find_item,
    find_items,
    footprint_of,
    holding,
    item_span,
)

if TYPE_CHECKING:
    import pystac

__all__ = ["Entry", "narrowed", "read_catalog", "read_entries", "record_inputs", "select"]

_BEFORE, _AFTER = timedelta(430), timedelta(40)
"""How far series reach beyond the days of acquisitions: 46 periods and one composite."""

_EVER = date(1950, 1, 1), date(2100, 1, 1)
_MARGIN = 0.05  # degrees around a tile within which items count


@dataclass(frozen=True)
class Entry:
    """One item that was found.

    Parameters
    ----------
    service, collection : str
        Where.
    id : str
    file : str
        Name of its JSON file in the folder of inputs.
    bounds : (west, south, east, north)
        Of its footprint, degrees.
    start, end : str
        First and last day, ISO form; empty where its time is no matter.
    role : {"radar", "heights", ""}
        Heights are needed under the whole of the radar's images where these are in radar
        geometry; everything else only near the tile.
    """

    service: str
    collection: str
    id: str
    file: str
    bounds: Bounds
    start: str
    end: str
    role: str = ""


def record_inputs(
    catalog: Catalog, bounds: Bounds, start: date, end: date, folder: Path
) -> list[Entry]:
    """Search everything that a job may need, and keep the items in a folder.

    Computes: asks the catalog's services, reads no pixel.

    Parameters
    ----------
    catalog : Catalog
    bounds : (west, south, east, north)
        Of the region, degrees.
    start, end : date
        First and last day of acquisitions.
    folder : Path
        Exists and is empty. Gets ``catalog.json``, ``index.json`` and a file for each item.

    Returns
    -------
    list of Entry

    Raises
    ------
    CatalogError
        When a service does not answer.
    OSError
        When the folder cannot be written.
    """
    entries: dict[tuple[str, str, str], Entry] = {}

    def keep(service: str, collection: str, item: pystac.Item, timely: bool, role: str) -> None:
        text = json.dumps(_plain(item), sort_keys=True, separators=(",", ":"))
        key = service, collection, item.id
        name = f"{hashlib.sha256('/'.join(key).encode()).hexdigest()[:20]}.json"
        Path(folder, name).write_text(text, "utf-8")
        days = ("", "")
        if timely:
            begin, finish = item_span(item)
            days = str(begin.date()), str(finish.date())
        entries[key] = Entry(*key, name, _bounds_of(item), *days, role)

    images: dict[tuple[str, str], list[pystac.Item]] = {}
    for service, collection, (first, last), role in _searches(catalog, start, end):
        around = bounds
        if role == "heights":
            around = _union([bounds, *(e.bounds for e in entries.values() if e.role == "radar")])
        for item in find_items(catalog.services[service], collection, around, first, last):
            keep(service, collection, item, (first, last) != _EVER, role)
            if role == "radar":
                images.setdefault((service, collection), []).append(item)
    for source in catalog.sources["radar"]:
        if not isinstance(source, Sentinel1RtcSource) or not source.grd_collection:
            continue
        # What an image was made of may end a little earlier than the image, outside the region.
        where, originals = source.grd_service or source.service, source.grd_collection
        for item in images.get((source.service, source.collection), ()):
            link = item.get_single_link("derived_from")
            name = "" if link is None else str(link.target).rstrip("/").split("/")[-1]
            if (where, originals, name.removesuffix(".json")) not in entries:
                other = find_item(catalog.services[where], originals, item, "derived_from")
                if other is not None:
                    keep(where, originals, other, True, "radar")
    found = sorted(entries.values(), key=lambda e: (e.service, e.collection, e.start, e.id))
    kept = catalog.model_dump(mode="json")
    Path(folder, "catalog.json").write_text(json.dumps(kept, sort_keys=True), "utf-8")
    rows = [list(vars(entry).values()) for entry in found]
    Path(folder, "index.json").write_text(json.dumps(rows, separators=(",", ":")), "utf-8")
    return found


def _searches(
    catalog: Catalog, start: date, end: date
) -> Iterator[tuple[str, str, tuple[date, date], str]]:
    """Service, collection, days and role of every search that loading makes, each once."""
    series = start - _BEFORE, end + _AFTER
    days = {"radar": (start, end), "ndvi": series, "weather": series}
    in_radar_geometry = any(isinstance(s, Sentinel1GrdSource) for s in catalog.sources["radar"])
    roles = {"radar": "radar", "terrain": "heights" if in_radar_geometry else ""}
    seen = set()
    for group in sorted(catalog.sources, key=lambda group: group != "radar"):
        for source in catalog.sources[group]:
            for field, service, collection in _collections(source):
                span = _EVER if field == "static_collection" else days.get(group, _EVER)
                key = service, collection, span, roles.get(group, "")
                if catalog.services[service].kind != "zarr" and key not in seen:
                    seen.add(key)
                    yield key


def _union(bounds: Sequence[Bounds]) -> Bounds:
    west, south, east, north = zip(*bounds, strict=True)
    return min(west), min(south), max(east), max(north)


def _collections(source: Source) -> Iterator[tuple[str, str, str]]:
    """Fields of a source that name collections, with the service of each."""
    for field in type(source).model_fields:
        if field == "collection" or field.endswith("_collection"):
            collection = getattr(source, field)
            service = getattr(source, field.replace("collection", "service"), "")
            if collection:
                yield field, service or source.service, collection


def _plain(item: pystac.Item) -> dict[str, Any]:
    """Item as JSON with links that hold wherever the file lies."""
    content = item.to_dict(include_self_link=False, transform_hrefs=False)
    for key, asset in item.assets.items():
        content["assets"][key]["href"] = asset.get_absolute_href() or asset.href
    content["links"] = [
        {"rel": link.rel, "href": link.get_absolute_href()}
        for link in item.get_links("derived_from")
        if link.get_absolute_href()
    ]
    return content


def _bounds_of(item: pystac.Item) -> Bounds:
    import shapely

    west, south, east, north = shapely.from_wkb(footprint_of(item)).bounds
    return west, south, east, north


def read_entries(folder: Path) -> tuple[Entry, ...]:
    """Items that were found, as `record_inputs` kept them. Computes: reads one file, once."""
    return _read_entries(folder, Path(folder, "index.json").stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read_entries(folder: Path, _: int) -> tuple[Entry, ...]:
    rows = json.loads(Path(folder, "index.json").read_text("utf-8"))
    found = []
    for service, collection, name, file, (west, south, east, north), *rest in rows:
        found.append(Entry(service, collection, name, file, (west, south, east, north), *rest))
    return tuple(found)


def read_catalog(folder: Path) -> Catalog:
    """Catalog of a job as it was when the job was made. Computes: reads one file, once."""
    return _read_catalog(folder, Path(folder, "catalog.json").stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read_catalog(folder: Path, _: int) -> Catalog:
    return Catalog.model_validate_json(Path(folder, "catalog.json").read_text("utf-8"))


def select(
    entries: Iterable[Entry], bounds: Bounds, start: date, end: date
) -> tuple[tuple[str, str, str], ...]:
    """Items that a tile may need. Lazy: reads nothing.

    Parameters
    ----------
    entries : iterable of Entry
    bounds : (west, south, east, north)
        Of the tile, degrees.
    start, end : date
        First and last day of its acquisitions.

    Returns
    -------
    tuple of (service, collection, file)
    """
    series = str(start - _BEFORE), str(end + _AFTER)
    spans = {"radar": (str(start), str(end))}
    timely = [
        e
        for e in entries
        for first, last in (spans.get(e.role, series),)
        if not e.start or (e.start <= last and e.end >= first)
    ]
    images = [e.bounds for e in timely if e.role == "radar" and _near(e.bounds, bounds)]
    around = {"heights": _union([bounds, *images])}
    return tuple(
        (e.service, e.collection, e.file)
        for e in timely
        if _near(e.bounds, around.get(e.role, bounds))
    )


def _near(one: Bounds, other: Bounds) -> bool:
    """Whether two boxes touch, within a margin."""
    return (
        one[0] <= other[2] + _MARGIN
        and one[2] >= other[0] - _MARGIN
        and one[1] <= other[3] + _MARGIN
        and one[3] >= other[1] - _MARGIN
    )


@contextmanager
def narrowed(folder: Path, items: Sequence[tuple[str, str, str]]) -> Iterator[Catalog]:
    """Catalog whose services are static and hold some of a job's items.

    Computes: reads items that were not read lately. The services are of this process, and end
    with the block.

    Parameters
    ----------
    folder : Path
        Of the job's inputs.
    items : sequence of (service, collection, file)

    Yields
    ------
    Catalog
    """
    catalog = read_catalog(folder)
    with ExitStack() as stack:
        services = {}
        for name, service in catalog.services.items():
            if service.kind == "zarr":
                services[name] = service
                continue
            found: dict[str, list[pystac.Item]] = {c: [] for c in _known_collections(catalog, name)}
            for where, collection, file in items:
                if where == name:
                    found[collection].append(_item(Path(folder, file)))
            href = stack.enter_context(holding(found))
            services[name] = service.model_copy(update={"kind": "stac-static", "href": href})
        yield catalog.model_copy(update={"services": services})


def _item(path: Path) -> pystac.Item:
    """Item of a job; neighbouring tiles share theirs."""
    return _read_item(os.fspath(path.resolve()), path.stat().st_mtime_ns)


@lru_cache(maxsize=1000)
def _read_item(path: str, _: int) -> pystac.Item:
    import pystac

    item = pystac.Item.from_file(path)
    item.make_asset_hrefs_absolute()
    return item


def _known_collections(catalog: Catalog, service: str) -> list[str]:
    return sorted(
        {
            collection
            for sources in catalog.sources.values()
            for source in sources
            for _, where, collection in _collections(source)
            if where == service
        }
    )
