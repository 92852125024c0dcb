"""Step 3 of 7 (load): find items by place and time, in STAC APIs and in static catalogs.

Items are searched when a cube is set up; only small frozen records of them enter the graph.
How their links are read is the matter of :mod:`xsoilsm.sources.access.links`.
"""

from __future__ import annotations

import urllib.parse
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xsoilsm import grid
from xsoilsm.catalog import CatalogError
from xsoilsm.facts import Service
from xsoilsm.sources.access.links import (
    Access,
    read_bytes,
)
from xsoilsm.sources.access.transport import patience, redacted, with_retries

if TYPE_CHECKING:
    import pystac
    from odc.geo.geobox import GeoBox

__all__ = [
    "Bounds",
    "cell_lonlat",
    "find_item",
    "find_items",
    "footprint_of",
    "holding",
    "item_span",
    "joined",
    "lonlat_bounds",
    "overlaps",
    "utc_naive",
]

Bounds = tuple[float, float, float, float]
"""West, south, east, north in degrees."""


def find_items(
    service: Service, collection: str, bounds: Bounds, start: date, end: date
) -> list[pystac.Item]:
    """Search a service for the items of a collection.

    Asks the service, or reads the JSON files of a static catalog; reads no pixel.

    Parameters
    ----------
    service : Service
    collection : str
    bounds : (west, south, east, north)
        In degrees.
    start, end : date
        First and last day, UTC, inclusive.

    Returns
    -------
    list of Item
        Whose footprint touches the bounds and whose time touches the days, by time and id.

    Raises
    ------
    CatalogError
        When the service does not answer or has no such collection.
    """
    import pystac

    try:
        if service.kind == "stac-api":
            found = list(_search_api(service, collection, bounds, start, end))
        else:
            found = list(_search_static(service, collection, bounds, start, end))
    except CatalogError:
        raise
    except (OSError, ValueError, KeyError, pystac.STACError, pystac.STACTypeError) as error:
        msg = f"{service.href}: search for '{collection}' failed: {redacted(str(error))}"
        raise CatalogError(msg) from error
    return sorted(found, key=lambda item: (item_span(item)[0], item.id))


def _search_api(
    service: Service, collection: str, bounds: Bounds, start: date, end: date
) -> Iterator[pystac.Item]:
    import pystac_client
    from pystac_client.exceptions import APIError

    try:
        client = pystac_client.Client.open(service.href, stac_io=_patient_io())
        search = client.search(
            collections=[collection],
            bbox=list(bounds),
            datetime=f"{start.isoformat()}T00:00:00Z/{end.isoformat()}T23:59:59.999999Z",
            limit=250,
        )
        yield from search.items()
    except APIError as error:
        msg = f"{service.href}: search for '{collection}' failed: {error}"
        raise CatalogError(msg) from error


def _patient_io() -> Any:
    """Ways of pystac-client to a STAC API that ask again, whatever befell the answer."""
    from pystac_client.stac_api_io import StacApiIO
    from requests.exceptions import ChunkedEncodingError

    class Patient(StacApiIO):
        """The session repeats what is refused; an answer that breaks off is asked for anew."""

        def request(self, href: str, *args: Any, **options: Any) -> str:
            ask = super().request
            return with_retries(
                lambda _: ask(href, *args, **options),
                f"asking {href}",
                passing=lambda error: isinstance(error.__context__, ChunkedEncodingError),
            )

    return Patient(timeout=patience().timeout, max_retries=_retries())


def _retries() -> Any:
    """Rules by which requests to a STAC API are repeated: those of all other reads."""
    from urllib3 import BaseHTTPResponse, Retry

    chosen = patience()

    class Patient(Retry):
        """Obeys a pause that the server asks for, within the limit."""

        def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
            asked: float | None = super().get_retry_after(response)
            return None if asked is None else min(asked, chosen.limit)

    return Patient(
        total=chosen.tries - 1,
        backoff_factor=chosen.wait,
        status_forcelist=(403, 408, 425, 429, 500, 502, 503, 504),
        allowed_methods=None,  # a search is a POST, and as safe to repeat as a GET
        raise_on_status=False,  # the answer says more
    )


def _search_static(
    service: Service, collection: str, bounds: Bounds, start: date, end: date
) -> Iterator[pystac.Item]:
    import pystac
    import shapely

    held = _HELD.get(service.href)
    if held is not None:
        items: Iterable[pystac.Item] = held.get(collection, ())
    else:
        root = pystac.Catalog.from_file(service.href)
        parent = root.get_child(collection, recursive=True)
        if parent is None:
            known = ", ".join(child.id for child in root.get_children())
            msg = f"{service.href} has no collection '{collection}'; it has {known or 'none'}"
            raise CatalogError(msg)
        items = parent.get_items(recursive=True)
    first = datetime(start.year, start.month, start.day, tzinfo=UTC)
    last = datetime(end.year, end.month, end.day, 23, 59, 59, 999999, tzinfo=UTC)
    box = shapely.box(*bounds)
    for item in items:
        begin, finish = item_span(item)
        if (
            begin <= last
            and finish >= first
            and shapely.from_wkb(footprint_of(item)).intersects(box)
        ):
            item.make_asset_hrefs_absolute()
            yield item


_HELD: dict[str, Mapping[str, Iterable[pystac.Item]]] = {}
"""Items in memory that are searched like those of a static catalog, by its address."""


@contextmanager
def holding(collections: Mapping[str, Iterable[pystac.Item]]) -> Iterator[str]:
    """Let items in memory be searched like those of a static catalog. Lazy: reads nothing.

    Parameters
    ----------
    collections : mapping of str to iterable of Item
        By the name of their collection.

    Yields
    ------
    str
        Address for a service of kind ``"stac-static"`` of this process, until the block ends.
    """
    address = f"memory:{uuid.uuid4()}"
    _HELD[address] = collections
    try:
        yield address
    finally:
        del _HELD[address]


def find_item(
    service: Service, collection: str, item: pystac.Item, link: str
) -> pystac.Item | None:
    """Follow a link of an item to another item of the same service.

    Parameters
    ----------
    service : Service
    collection : str
        Collection of the other item.
    item : Item
    link : str
        Relation of the link, for instance ``"derived_from"``.

    Returns
    -------
    Item or None
        None where there is no such link or it leads nowhere.
    """
    import pystac

    target = item.get_single_link(link)
    if target is None:
        return None
    href = target.get_absolute_href()
    if href is None:
        return None
    name = urllib.parse.unquote(urllib.parse.urlsplit(href).path.rstrip("/").split("/")[-1])
    for known in _HELD.get(service.href, {}).get(collection, ()):
        if known.id == name.removesuffix(".json"):
            return known
    if service.kind == "stac-api":
        # The link names the provider's own address, and the service may be a mirror.
        href = f"{service.href.rstrip('/')}/collections/{collection}/items/{name}"
    try:
        content = read_bytes(href, Access())
    except OSError:
        return None
    import json

    other = pystac.Item.from_dict(json.loads(content), href=href)
    other.make_asset_hrefs_absolute()
    return other


def item_span(item: pystac.Item) -> tuple[datetime, datetime]:
    """First and last instant of an item, in UTC.

    Raises
    ------
    CatalogError
        When the item tells no time.
    """
    common = item.common_metadata
    begin = common.start_datetime or item.datetime
    finish = common.end_datetime or item.datetime
    if begin is None or finish is None:
        msg = f"item '{item.id}' has neither datetime nor start_datetime and end_datetime"
        raise CatalogError(msg)
    return _in_utc(begin), _in_utc(finish)


def _in_utc(instant: datetime) -> datetime:
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def footprint_of(item: pystac.Item) -> bytes:
    """Footprint of an item in lon/lat as WKB; the bounding box where no geometry is given.

    Raises
    ------
    CatalogError
        When the item tells no place.
    """
    import shapely
    from shapely.geometry import shape

    if item.geometry is not None:
        return bytes(shapely.to_wkb(shape(item.geometry)))
    if item.bbox is not None:
        west, south, east, north = item.bbox if len(item.bbox) == 4 else _flat(item.bbox)
        return bytes(shapely.to_wkb(shapely.box(west, south, east, north)))
    msg = f"item '{item.id}' has neither geometry nor bbox"
    raise CatalogError(msg)


def _flat(bbox: list[float]) -> Bounds:
    return bbox[0], bbox[1], bbox[3], bbox[4]


def overlaps(footprint: bytes, bounds: Bounds, margin: float = 0.0) -> bool:
    """Whether a footprint touches bounds that are widened by `margin` degrees."""
    import shapely

    west, south, east, north = bounds
    box = shapely.box(west - margin, south - margin, east + margin, north + margin)
    return bool(shapely.from_wkb(footprint).intersects(box))


def lonlat_bounds(geobox: GeoBox) -> Bounds:
    """Bounds of an EASE-Grid 2.0 GeoBox in degrees. Lazy: reads nothing.

    Parameters
    ----------
    geobox : GeoBox
        In EPSG:6933, where parallels and meridians are straight.

    Returns
    -------
    (west, south, east, north)
    """
    box = geobox.boundingbox
    lon, lat = grid.xy_to_lonlat([box.left, box.right], [box.bottom, box.top])
    return float(lon[0]), float(lat[0]), float(lon[1]), float(lat[1])


def cell_lonlat(geobox: GeoBox) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Longitude (x,) and latitude (y,) in degrees of the cell centres of a GeoBox."""
    affine = geobox.affine
    height, width = geobox.shape
    x = affine.c + affine.a * (np.arange(width) + 0.5)
    y = affine.f + affine.e * (np.arange(height) + 0.5)
    lon, _ = grid.xy_to_lonlat(x, np.zeros_like(x))
    _, lat = grid.xy_to_lonlat(np.zeros_like(y), y)
    return lon, lat


def utc_naive(instant: datetime) -> np.datetime64:
    """Turn an instant into datetime64[ns], UTC without time zone."""
    return np.datetime64(_in_utc(instant).replace(tzinfo=None), "ns")


def joined(texts: list[str] | tuple[str, ...]) -> str:
    """Texts in order, each once, joined by a semicolon, for attributes."""
    return "; ".join(dict.fromkeys(text for text in texts if text))
