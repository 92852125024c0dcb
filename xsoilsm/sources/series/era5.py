"""Step 3 of 7 (load): find the stores of hourly reanalysis, ERA5 and ERA5-Land.

Stores are described by STAC items or named by the catalog. Of the latter the time axis is read
when a cube is set up: an archive that is no longer updated is an error, not dry weather. The
error names the source of the catalog that could take over.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from xsoilsm.catalog import Catalog, CatalogError, Segment
from xsoilsm.facts import Era5Source, WeatherVariable
from xsoilsm.sources.access.links import Access, access_of, readable_href
from xsoilsm.sources.access.search import Bounds, find_items, item_span
from xsoilsm.sources.series.stores import (
    Refused,
    WeatherStore,
    account_of,
    open_store,
    stamps_of,
    variable_of,
)

if TYPE_CHECKING:
    import pystac

__all__ = ["BANDS", "find_stores", "missing_days"]

BANDS = ("air_temperature", "precipitation")
"""Variables of the weather, in the order in which they are kept everywhere."""


def find_stores(
    catalog: Catalog, segment: Segment, bounds: Bounds, last_needed: date | None
) -> list[WeatherStore]:
    """Search the stores of some days. Asks the service; of a named store reads the time axis.

    Parameters
    ----------
    catalog : Catalog
    segment : Segment
        A source of weather and its days.
    bounds : (west, south, east, north)
        In degrees.
    last_needed : date or None
        Days up to this one have to be there; later ones are used where they are. None asks for
        what there is.

    Returns
    -------
    list of WeatherStore

    Raises
    ------
    CatalogError
        When days are missing, or a store cannot be opened here; the message names them, what
        the catalog has and what to do.
    """
    source = segment.source
    if not isinstance(source, Era5Source):
        msg = f"source of kind '{source.kind}' is not weather"
        raise CatalogError(msg)
    service = catalog.service_of(source)
    if service.kind == "zarr":
        stores = _named_stores(catalog, segment, source)
    else:
        stores = _described_stores(catalog, segment, source, bounds)
    for store in stores[:1]:
        _require_library(store)
    if last_needed is not None:
        for name in BANDS:
            chosen = [store for store in stores if store.name == name]
            _require_days(name, chosen, segment, last_needed, catalog)
    return stores


def _described_stores(
    catalog: Catalog, segment: Segment, source: Era5Source, bounds: Bounds
) -> list[WeatherStore]:
    """Find stores that items describe."""
    service = catalog.service_of(source)
    # The last hour of a day carries the stamp of the next.
    items = find_items(
        service, source.collection, bounds, segment.start, segment.end + timedelta(1)
    )
    stores = []
    for name in BANDS:
        variable: WeatherVariable = getattr(source, name)
        for item in items:
            if not _holds(item, variable, source):
                continue
            asset = item.assets[variable.asset]
            first, last = (instant.replace(tzinfo=None) for instant in item_span(item))
            stores.append(
                WeatherStore(
                    id=item.id,
                    name=name,
                    href=asset.get_absolute_href() or asset.href,
                    access=access_of(service),
                    fields=json.dumps(asset.extra_fields, sort_keys=True),
                    variable=variable,
                    first=np.datetime64(first, "s"),
                    last=np.datetime64(last, "s"),
                    days=(segment.start, segment.end),
                    fill_within=source.fill_within,
                    otherwise=_otherwise(catalog, segment, last.date()),
                )
            )
    return stores


def _holds(item: pystac.Item, variable: WeatherVariable, source: Era5Source) -> bool:
    kind = item.properties.get(source.kind_property)
    return variable.asset in item.assets and variable.item_kind in ("", kind)


def _named_stores(catalog: Catalog, segment: Segment, source: Era5Source) -> list[WeatherStore]:
    """Look into the store that the catalog names, for its time axis."""
    service = catalog.service_of(source)
    instant = np.datetime64(segment.start, "s")
    wholes = [
        WeatherStore(
            id=source.collection,
            name=name,
            href=f"{service.href.rstrip('/')}/{source.collection}",
            access=access_of(service),
            fields=json.dumps({"xarray:open_kwargs": source.options}, sort_keys=True),
            variable=getattr(source, name),
            first=instant,
            last=instant,
            days=(segment.start, segment.end),
            fill_within=source.fill_within,
        )
        for name in BANDS
    ]
    _require_library(wholes[0])
    try:
        with open_store(wholes[0]) as data:
            axes = [stamps_of(variable_of(data, whole), whole) for whole in wholes]
    except OSError as error:
        text = str(error)
        if isinstance(error.__cause__, Refused) and error.__cause__.status in (401, 403):
            host = wholes[0].href.partition("://")[2].partition("/")[0]
            text += f"; the netrc file (~/.netrc or $NETRC) needs a valid token for {host}"
        raise CatalogError(text) from None
    stores: list[WeatherStore] = []
    for whole, stamps in zip(wholes, axes, strict=True):
        stores += _by_year(whole, stamps, _otherwise(catalog, segment, _day_of(stamps[-1])))
    return stores


def _by_year(
    whole: WeatherStore, stamps: npt.NDArray[np.datetime64], otherwise: str
) -> Iterator[WeatherStore]:
    """One record a year, so that years are read side by side."""
    first, last = stamps[0].astype("datetime64[s]"), stamps[-1].astype("datetime64[s]")
    final = min(whole.days[1], _day_of(last))
    begin = min(max(whole.days[0], _day_of(first)), final)
    while begin <= final:
        end = min(date(begin.year, 12, 31), final)
        yield replace(
            whole,
            first=max(first, np.datetime64(begin, "s")),
            last=min(last, np.datetime64(end, "s") + np.timedelta64(86399, "s")),
            days=(begin, end),
            otherwise=otherwise,
        )
        begin = end + timedelta(1)


def _day_of(instant: np.datetime64) -> date:
    return date.fromisoformat(str(instant.astype("datetime64[D]")))


def _otherwise(catalog: Catalog, segment: Segment, last: date) -> str:
    """Say which source of the catalog could take over after a day."""
    day = last + timedelta(1)
    others = [s for s in catalog.sources["weather"] if s is not segment.source and s.covers(day)]
    own = f"'{segment.source.collection}'"
    if not others:
        return (
            f"the catalog '{catalog.name}' names no other source of weather for {day}; add one "
            "after it, or choose another time"
        )
    return (
        f"the catalog '{catalog.name}' has '{others[0].collection}' ({others[0].span}) to fall "
        f"back on: give {own} the line `end: {last}`, or choose another time"
    )


_LIBRARIES = {
    "abfs": ("adlfs", "xsoilsm[azure]"),
    "abfss": ("adlfs", "xsoilsm[azure]"),
    "az": ("adlfs", "xsoilsm[azure]"),
    "s3": ("s3fs", "s3fs"),
    "gs": ("gcsfs", "gcsfs"),
    "gcs": ("gcsfs", "gcsfs"),
}
"""Libraries behind the addresses of stores, and what to install for them."""


def _require_library(store: WeatherStore) -> None:
    """Say at once what is missing to read a store, instead of cells without weather later."""
    link = readable_href(store.href, Access(rewrite=store.access.rewrite))
    scheme = link.partition("://")[0] if "://" in link else ""
    library, package = _LIBRARIES.get(scheme, ("", ""))
    if library == "adlfs" and account_of(store):
        return  # read over HTTPS
    if library:
        try:
            importlib.import_module(library)
        except ImportError:
            msg = (
                f"{store.href} is read with the library {library}, which is not installed: "
                f"pip install '{package}'; or take weather from another source"
            )
            raise CatalogError(msg) from None


def missing_days(
    stores: Sequence[WeatherStore], first: date, last: date
) -> list[tuple[date, date]]:
    """Stretches of days that no store of one variable claims. Lazy: reads nothing.

    Parameters
    ----------
    stores : sequence of WeatherStore
        Of one variable.
    first, last : date
        Days that are wanted.

    Returns
    -------
    list of (date, date)
        First and last day of each stretch.
    """
    gaps = []
    day = first
    for begin, end in sorted((_day_of(s.first), _day_of(s.last)) for s in stores):
        if begin > last:
            break
        if begin > day:
            gaps.append((day, begin - timedelta(1)))
        day = max(day, end + timedelta(1))
    return [*gaps, (day, last)] if day <= last else gaps


def _require_days(
    name: str,
    stores: Sequence[WeatherStore],
    segment: Segment,
    last_needed: date,
    catalog: Catalog,
) -> None:
    gaps = missing_days(stores, segment.start, min(last_needed, segment.end))
    if not gaps:
        return
    held = (
        f"{min(s.first for s in stores)} to {max(s.last for s in stores)}" if stores else "nothing"
    )
    end = gaps[-1][0] - timedelta(1)
    hint = (
        f"the archive is frozen or lags behind; {_otherwise(catalog, segment, end)}"
        if stores and end >= _day_of(max(s.last for s in stores))
        else f"sources of weather in the catalog '{catalog.name}': {catalog.describe('weather')}; "
        "name a further source or choose another time"
    )
    msg = (
        f"{name}: '{segment.source.collection}' lacks {gaps[0][0]}, and {segment.start} to "
        f"{last_needed} are needed; the service holds {held} there; {hint}"
    )
    raise CatalogError(msg)
