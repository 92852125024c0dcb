"""Step 3 of 7 (load): NDVI and weather as lazy arrays, one task per chunk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from xsoilsm import periods
from xsoilsm.catalog import CatalogError, Segment
from xsoilsm.facts import Source
from xsoilsm.sources.availability import composed_by, latency_of, until
from xsoilsm.sources.pixels.graph import band, from_blocks, single_task
from xsoilsm.sources.request import OnError, Request, nothing_found
from xsoilsm.sources.series import era5, modis, stores, weather

__all__ = ["Series", "find_series"]


@dataclass
class Series:
    """NDVI and weather as arrays (period, y, x), with the items and sources behind them.

    ``weather_failed`` (y, x) is above zero where a store could not be read.
    """

    data: dict[str, da.Array]
    items: dict[str, list[str]]
    sources: list[Source]
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)


def find_series(
    request: Request,
    starts: npt.NDArray[np.datetime64],
    last_needed: np.datetime64,
    given: frozenset[str],
) -> Series:
    """Search NDVI and weather, unless given. Asks the services; reads no pixel.

    Parameters
    ----------
    request : Request
    starts : (period,) array of datetime64
        First days of the periods.
    last_needed : datetime64
        Last day on which weather must exist: that of the last acquisition.
    given : frozenset of str
        Variables that are there already.

    Raises
    ------
    CatalogError
        When no source has the region and time.
    """
    final = starts[-1] + np.timedelta64(int(periods.period_length(starts[-1])) - 1, "D")
    first, last, needed = (
        date.fromisoformat(str(day.astype("datetime64[D]")))
        for day in (starts[0], final, last_needed)
    )
    part = Series({}, {}, [])
    if "ndvi" not in given:
        _add_ndvi(part, request, starts, first, last)
    if not given.issuperset(era5.BANDS):
        _add_weather(part, request, starts, (first, last, needed))
    return part


def _add_ndvi(
    part: Series, request: Request, starts: npt.NDArray[np.datetime64], first: date, last: date
) -> None:
    segments = request.catalog.segments("ndvi", first, last)
    composites: tuple[modis.Composite, ...] = ()
    for segment in segments:
        found = modis.find_composites(
            request.catalog, segment, request.bounds, starts, mask=request.mask_ndvi
        )
        if request.moment is not None:
            found = composed_by(found, latency_of(segment.source), request.moment)
        composites += tuple(found)
    if not composites:
        raise CatalogError(nothing_found(request, "ndvi", f"{first} to {last}"))
    stack = from_blocks(
        partial(_read_ndvi, composites, starts, on_error=request.on_error),
        request.geobox,
        request.chunks,
        bands=2,
        along=starts.size,
        label="modis",
    )
    part.data["ndvi"] = band(stack, 0)
    part.data["ndvi_filled"] = band(stack, 1, np.uint8)
    names = [composite.id for composite in composites]
    part.items |= {"ndvi": names, "ndvi_filled": names}
    held = {composite.start for composite in composites}
    kept = " or ".join(str(k) for k in composites[0].keep)
    part.attributes["ndvi"] = {
        "quality_mask": f"pixel reliability {kept}" if request.mask_ndvi else "none",
        "periods_without_composite": " ".join(str(s) for s in starts if s not in held),
    }
    part.sources += [segment.source for segment in segments]


def _read_ndvi(
    composites: tuple[modis.Composite, ...],
    starts: npt.NDArray[np.datetime64],
    target: GeoBox,
    on_error: OnError,
) -> npt.NDArray[np.float32]:
    return modis.read_ndvi(composites, starts, target, on_error)


def _add_weather(
    part: Series,
    request: Request,
    starts: npt.NDArray[np.datetime64],
    days: tuple[date, date, date],
) -> None:
    first, last, last_needed = days
    segments = request.catalog.segments("weather", first, last)
    if request.moment is not None:
        segments = tuple(until(segments, request.moment))
        last_needed = min([last_needed, *(segment.end for segment in segments[-1:])])
    found = [
        store
        for segment in segments
        for store in era5.find_stores(request.catalog, segment, request.bounds, last_needed)
    ]
    if not found or _days_without_source(segments, first, last_needed):
        raise CatalogError(nothing_found(request, "weather", f"{first} to {last_needed}"))
    source = single_task(
        partial(
            _combine,
            starts,
            sum(store.name == era5.BANDS[0] for store in found),
            request.moment is not None,
        ),
        [
            (stores.read_store, (store, request.bounds, first, last, request.on_error))
            for store in sorted(found, key=lambda store: era5.BANDS.index(store.name))
        ],
        label="era5-native",
    )
    stack = from_blocks(
        weather.regrid_weather,
        request.geobox,
        request.chunks,
        bands=len(era5.BANDS),
        along=starts.size,
        source=source,
        label="era5",
    )
    for k, name in enumerate(era5.BANDS):
        part.data[name] = band(stack, k)
        part.items[name] = [store.id for store in found if store.name == name]
    failed = from_blocks(
        weather.mark_failed,
        request.geobox,
        request.chunks,
        bands=1,
        source=source,
        label="era5-failed",
    )
    part.data["weather_failed"] = band(failed, 0)
    if any(store.fill_within for store in found):
        filled = from_blocks(
            weather.regrid_filled,
            request.geobox,
            request.chunks,
            bands=1,
            source=source,
            label="era5-filled",
        )
        part.data["weather_filled"] = band(filled, 0)
        part.items["weather_filled"] = [store.id for store in found if store.fill_within]
    part.sources += [segment.source for segment in segments]


def _days_without_source(segments: Iterable[Segment], first: date, last: date) -> bool:
    """Whether the sources leave days out that are needed."""
    for segment in segments:
        if segment.start > first:
            break
        first = segment.end + timedelta(1)
    return first <= last


def _combine(
    starts: npt.NDArray[np.datetime64],
    count: int,
    complete: bool,
    sums: list[stores.DailySums | None],
) -> weather.NativeWeather:
    return weather.combine(sums[:count], sums[count:], starts, complete=complete)
