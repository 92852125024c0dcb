"""Step 3 of 7 (load): find items, make their links readable, try again after passing faults.

Items are searched when a cube is set up; only small frozen records of them enter the graph.
Links are signed when they are read, never before, because signatures expire within the hour.
"""

from __future__ import annotations

import logging
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from xsoilsm import grid
from xsoilsm.catalog import CatalogError
from xsoilsm.facts import Service

if TYPE_CHECKING:
    import pystac
    from odc.geo.geobox import GeoBox

__all__ = [
    "Access",
    "Bounds",
    "access_of",
    "cell_lonlat",
    "find_item",
    "find_items",
    "footprint_of",
    "item_span",
    "joined",
    "lonlat_bounds",
    "overlaps",
    "read_bytes",
    "readable_href",
    "renew_access",
    "utc_naive",
    "with_retries",
]

logger = logging.getLogger(__name__)

Bounds = tuple[float, float, float, float]
"""West, south, east, north in degrees."""

TRIES = 4
"""Attempts at one request before it counts as failed."""

FIRST_WAIT = 0.5
"""Pause in s before the second attempt; it doubles from one to the next."""

TIME_LIMIT = 60.0
"""Longest wait in s for one answer of a service."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Access:
    """How the links of one service are made readable.

    Parameters
    ----------
    signing : {"none", "planetary-computer"}
    rewrite : tuple of (str, str)
        Beginnings of links and what replaces them, after signing.
    """

    signing: str = "none"
    rewrite: tuple[tuple[str, str], ...] = ()


def access_of(service: Service) -> Access:
    """Access to the assets of a service. Lazy: reads nothing."""
    return Access(service.signing, tuple(sorted(service.rewrite.items())))


def readable_href(href: str, access: Access) -> str:
    """Sign a link and put mirrors in place.

    May ask the signing service for a token; tokens are kept until they are about to expire.

    Parameters
    ----------
    href : str
    access : Access

    Returns
    -------
    str
    """
    if access.signing == "planetary-computer":
        import planetary_computer

        href = str(planetary_computer.sign_url(href))
    for old, new in access.rewrite:
        if href.startswith(old):
            return new + href[len(old) :]
    return href


def renew_access(access: Access) -> None:
    """Forget tokens, so that the next link is signed anew (after a refusal)."""
    if access.signing == "planetary-computer":
        from planetary_computer import sas

        sas.TOKEN_CACHE.clear()


def with_retries(
    action: Callable[[int], _T],
    what: str,
    *,
    passing: Callable[[Exception], bool],
    access: Access | None = None,
) -> _T:
    """Do something, and try again after faults that may pass.

    Parameters
    ----------
    action : callable
        Gets the number of the attempt, from 0.
    what : str
        What is being done, for messages.
    passing : callable
        Tells whether an exception may be gone the next time.
    access : Access, optional
        Its tokens are renewed before a second attempt.

    Returns
    -------
    object
        What `action` returns.

    Raises
    ------
    OSError
        When the last attempt failed, or at once for a fault that lasts. The cause is chained.
    """
    for attempt in range(TRIES):
        try:
            return action(attempt)
        except Exception as error:
            last = attempt == TRIES - 1
            if last or not passing(error):
                msg = f"{what} failed after {attempt + 1} attempt(s): {error}"
                raise OSError(msg) from error
            logger.info("%s: attempt %d failed: %s", what, attempt + 1, error)
            if access is not None:
                renew_access(access)
            # Spread over half to the whole pause, so that tasks do not return all at once.
            time.sleep(FIRST_WAIT * 2**attempt * random.uniform(0.5, 1.0))
    raise AssertionError  # the loop returns or raises


def read_bytes(href: str, access: Access) -> bytes:
    """Read a small file whole, for instance an annotation. Computes: reads the file.

    Parameters
    ----------
    href : str
        Path, or ``file:``, ``http:`` or ``https:`` link.
    access : Access

    Returns
    -------
    bytes

    Raises
    ------
    OSError
        When it cannot be read.
    """

    def read(_: int) -> bytes:
        link = readable_href(href, access)
        if "://" not in link:
            return Path(link).read_bytes()
        scheme = urllib.parse.urlsplit(link).scheme
        if scheme not in ("file", "http", "https"):
            msg = f"cannot read {scheme}:// links"
            raise ValueError(msg)
        with urllib.request.urlopen(link, timeout=TIME_LIMIT) as answer:
            return bytes(answer.read())

    return with_retries(read, f"reading {href}", passing=_is_passing_http, access=access)


def _is_passing_http(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (403, 408, 429) or error.code >= 500
    if isinstance(error, urllib.error.URLError):
        return not isinstance(error.reason, FileNotFoundError)
    return isinstance(error, ConnectionError | TimeoutError)


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
        msg = f"{service.href}: search for '{collection}' failed: {error}"
        raise CatalogError(msg) from error
    return sorted(found, key=lambda item: (item_span(item)[0], item.id))


def _search_api(
    service: Service, collection: str, bounds: Bounds, start: date, end: date
) -> Iterator[pystac.Item]:
    import pystac_client
    from pystac_client.exceptions import APIError
    from pystac_client.stac_api_io import StacApiIO

    try:
        client = pystac_client.Client.open(
            service.href, stac_io=StacApiIO(timeout=TIME_LIMIT, max_retries=TRIES)
        )
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


def _search_static(
    service: Service, collection: str, bounds: Bounds, start: date, end: date
) -> Iterator[pystac.Item]:
    import pystac
    import shapely

    root = pystac.Catalog.from_file(service.href)
    parent = root.get_child(collection, recursive=True)
    if parent is None:
        known = ", ".join(child.id for child in root.get_children())
        msg = f"{service.href} has no collection '{collection}'; it has {known or 'none'}"
        raise CatalogError(msg)
    first = datetime(start.year, start.month, start.day, tzinfo=UTC)
    last = datetime(end.year, end.month, end.day, 23, 59, 59, 999999, tzinfo=UTC)
    box = shapely.box(*bounds)
    for item in parent.get_items(recursive=True):
        begin, finish = item_span(item)
        if (
            begin <= last
            and finish >= first
            and shapely.from_wkb(footprint_of(item)).intersects(box)
        ):
            item.make_asset_hrefs_absolute()
            yield item


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
    if service.kind == "stac-api":
        # The link names the provider's own address, and the service may be a mirror.
        name = urllib.parse.unquote(urllib.parse.urlsplit(href).path.rstrip("/").split("/")[-1])
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
