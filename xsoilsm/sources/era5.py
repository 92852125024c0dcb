"""Step 3 of 7 (load): 8-day weather from hourly reanalysis in Zarr stores.

Temperature is the mean of the hours 00 to 23 UTC of the days of a period. Precipitation is the
8-day total: hourly amounts are summed over the UTC day in which they fell. A stamp names the
end of its hour (ECMWF, conversion table for accumulated variables), so the total of day D is
that of the stamps 01 UTC of D to 00 UTC of D + 1. Only days with all 24 hours count; a period
with n of them is scaled by 8 / n. The value at a grid point stands for the cell around it, and
cells are averaged by area.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox

from xsoilsm import periods
from xsoilsm.catalog import Catalog, CatalogError, Segment
from xsoilsm.facts import Era5Source, WeatherVariable
from xsoilsm.sources.reading import CellSums, Patch
from xsoilsm.sources.search import (
    Access,
    Bounds,
    access_of,
    find_items,
    item_span,
    readable_href,
    with_retries,
)

if TYPE_CHECKING:
    import pystac
    import xarray as xr

__all__ = [
    "BANDS",
    "DailySums",
    "NativeWeather",
    "WeatherStore",
    "combine",
    "find_stores",
    "read_store",
    "regrid_weather",
]

BANDS = ("air_temperature", "precipitation")
"""Order of the bands that :func:`regrid_weather` gives."""

HOURS = 24

_BUDGET = 64_000_000  # values that are read from a store at once
_BATCH = 46  # periods that are brought to a GeoBox at once

Floats = npt.NDArray[np.float32]
Days = npt.NDArray[np.datetime64]


@dataclass(frozen=True)
class WeatherStore:
    """One Zarr store, as it travels in a graph.

    Parameters
    ----------
    id : str
        Of the item.
    name : str
        One of :data:`BANDS`.
    href : str
        Unsigned link.
    access : Access
    fields : str
        The asset's further fields as JSON, for instance ``xarray:open_kwargs``.
    variable : WeatherVariable
    last : datetime64[s]
        Last instant that the item claims.
    """

    id: str
    name: str
    href: str
    access: Access
    fields: str
    variable: WeatherVariable
    last: np.datetime64


@dataclass(frozen=True)
class DailySums:
    """Sums over the hours of each UTC day, on the native grid.

    Parameters
    ----------
    days : (day,) ndarray of datetime64[D]
    total : (day, y, x) ndarray of float64
    hours : (day,) ndarray of int64
        Hours that were summed.
    lat : (y,) ndarray of float64
        Descending.
    lon : (x,) ndarray of float64
        Ascending, without a break at the antimeridian.
    origin : (int, int)
        Row and column of the first value in the store.
    """

    days: Days
    total: npt.NDArray[np.float64]
    hours: npt.NDArray[np.int64]
    lat: npt.NDArray[np.float64]
    lon: npt.NDArray[np.float64]
    origin: tuple[int, int]


@dataclass(frozen=True)
class NativeWeather:
    """Weather of all periods on the native grid.

    Parameters
    ----------
    values : tuple of (period, y, x) ndarray of float32
        In the order of :data:`BANDS`.
    patches : tuple of Patch or None
        Where each lies; None where not a single store could be read.
    """

    values: tuple[Floats, ...]
    patches: tuple[Patch | None, ...]


def find_stores(
    catalog: Catalog, segment: Segment, bounds: Bounds, last_needed: date
) -> list[WeatherStore]:
    """Search the stores of some days. Asks the service; reads no data.

    Parameters
    ----------
    catalog : Catalog
    segment : Segment
        A source of weather and its days.
    bounds : (west, south, east, north)
        In degrees.
    last_needed : date
        Days up to this one have to be there; later ones are used where they are.

    Returns
    -------
    list of WeatherStore

    Raises
    ------
    CatalogError
        When days are missing; the message names them and what the catalog has.
    """
    source = segment.source
    if not isinstance(source, Era5Source):
        msg = f"source of kind '{source.kind}' is not weather"
        raise CatalogError(msg)
    service = catalog.service_of(source)
    # The last hour of a day carries the stamp of the next.
    items = find_items(
        service, source.collection, bounds, segment.start, segment.end + timedelta(1)
    )
    stores = []
    for name in BANDS:
        variable: WeatherVariable = getattr(source, name)
        chosen = [item for item in items if _holds(item, variable, source)]
        _require_days(name, chosen, segment, last_needed, catalog)
        stores += [_store(item, name, variable, access_of(service)) for item in chosen]
    return stores


def _holds(item: pystac.Item, variable: WeatherVariable, source: Era5Source) -> bool:
    kind = item.properties.get(source.kind_property)
    return variable.asset in item.assets and variable.item_kind in ("", kind)


def _require_days(
    name: str, items: Sequence[pystac.Item], segment: Segment, last_needed: date, catalog: Catalog
) -> None:
    spans = sorted((a.date(), b.date()) for a, b in map(item_span, items))
    day = segment.start
    for first, last in spans:
        if first > day:
            break
        day = max(day, last + timedelta(1))
    if day <= min(last_needed, segment.end):
        held = f"{spans[0][0]} to {max(b for _, b in spans)}" if spans else "nothing"
        msg = (
            f"{name}: '{segment.source.collection}' lacks {day}, and {segment.start} to "
            f"{last_needed} are needed; the service holds {held} there; sources of weather in "
            f"the catalog '{catalog.name}': {catalog.describe('weather')}; name a further source "
            "or choose another time"
        )
        raise CatalogError(msg)


def _store(item: pystac.Item, name: str, variable: WeatherVariable, access: Access) -> WeatherStore:
    asset = item.assets[variable.asset]
    last = item_span(item)[1].replace(tzinfo=None)
    return WeatherStore(
        id=item.id,
        name=name,
        href=asset.get_absolute_href() or asset.href,
        access=access,
        fields=json.dumps(asset.extra_fields, sort_keys=True),
        variable=variable,
        last=np.datetime64(last, "s"),
    )


def read_store(
    store: WeatherStore, bounds: Bounds, first: date, last: date, on_error: str = "flag"
) -> DailySums | None:
    """Sum the hours of a store by day, on its own grid. Computes: reads a window of the store.

    Parameters
    ----------
    store : WeatherStore
    bounds : (west, south, east, north)
        Region in degrees; a rim of one cell is read with it.
    first, last : date
        Days that are wanted.
    on_error : {"flag", "raise"}
        Where a store cannot be read, None, or an error.

    Returns
    -------
    DailySums or None

    Raises
    ------
    OSError
        When the store ends before the last instant that its item claims, has other units than
        the catalog says, or cannot be read and `on_error` is ``"raise"``.
    """
    try:
        data = with_retries(
            lambda _: _open(store),
            f"opening {store.href}",
            passing=lambda error: _is_passing(error, store),
            access=store.access,
        )
    except OSError:
        if on_error == "raise":
            raise
        return None
    with data:
        array = data[store.variable.variable or store.variable.asset]
        _check_units(array, store)
        lat_name, lon_name = (_name_of(array, names) for names in (_LATITUDE, _LONGITUDE))
        time_name = next(str(d) for d in array.dims if d not in (lat_name, lon_name))
        stamps = array[time_name].values.astype("datetime64[ns]")
        _check_stamps(stamps, store)
        day = _utc_day(stamps, store.variable)
        wanted = (day >= np.datetime64(first, "D")) & (day <= np.datetime64(last, "D"))
        rows = _rows(array[lat_name].values, bounds)
        columns = _columns(array[lon_name].values, bounds)
        lat = array[lat_name].values[rows].astype(np.float64)
        lon = _near(array[lon_name].values[columns].astype(np.float64), bounds)
        array = array.transpose(time_name, lat_name, lon_name)
        steps = np.flatnonzero(wanted)
        days, begins = np.unique(day[steps], return_index=True)
        total = np.empty((days.size, rows.size, columns.size))
        height = max(_BUDGET // max(steps.size * columns.size, 1), 1)
        if steps.size:
            span = slice(int(steps[0]), int(steps[-1]) + 1)
            for top in range(0, rows.size, height):
                try:
                    hourly = _window(array[span], rows[top : top + height], columns, store)
                except OSError:
                    if on_error == "raise":
                        raise
                    return None
                total[:, top : top + height] = np.add.reduceat(hourly, begins, axis=0)
    hours = np.diff(np.append(begins, steps.size))
    origin = int(rows.min()), int(columns[0])
    return DailySums(days, total, hours, lat, lon, origin)


def _is_passing(error: Exception, store: WeatherStore) -> bool:
    """Libraries of remote storage have exceptions of their own; leave out those that last."""
    lasting = ImportError | ValueError | TypeError | KeyError | FileNotFoundError
    return "://" in store.href and not isinstance(error, lasting)


_LATITUDE, _LONGITUDE = ("lat", "latitude"), ("lon", "longitude")


def _open(store: WeatherStore) -> xr.Dataset:
    import pystac
    import xarray as xr

    fields = json.loads(store.fields)
    href = store.href
    if store.access.signing == "planetary-computer" and "://" in href:
        import planetary_computer

        asset = planetary_computer.sign(pystac.Asset(href, extra_fields=fields))
        href, fields = asset.href, asset.extra_fields
    link = readable_href(href, Access(rewrite=store.access.rewrite))
    options: dict[str, Any] = dict(fields.get("xarray:open_kwargs", {}))
    if "xarray:storage_options" in fields:
        options.setdefault("storage_options", fields["xarray:storage_options"])
    if link.partition("://")[0] != href.partition("://")[0] or "://" not in link:
        options.pop("storage_options", None)  # they belong to the provider's own storage
    options.setdefault("engine", "zarr")
    options["chunks"] = None  # this runs inside a task: read at once, window by window
    dataset: xr.Dataset = xr.open_dataset(link, **options)
    return dataset


def _check_units(array: xr.DataArray, store: WeatherStore) -> None:
    units = array.attrs.get("units")
    if store.variable.stored_units and units is not None and units != store.variable.stored_units:
        msg = (
            f"{store.href}: '{array.name}' has units '{units}', the catalog says "
            f"'{store.variable.stored_units}'; correct the catalog"
        )
        raise OSError(msg)


def _check_stamps(stamps: npt.NDArray[np.datetime64], store: WeatherStore) -> None:
    """Refuse a store that ends early: its last days would be taken for dry ones."""
    if not stamps.size or (np.diff(stamps) <= np.timedelta64(0, "ns")).any():
        msg = f"{store.href}: the time axis is empty or not ascending"
        raise OSError(msg)
    if stamps[-1] + np.timedelta64(1, "h") <= store.last:
        msg = (
            f"{store.href} ends at {stamps[-1].astype('datetime64[s]')}, but item '{store.id}' "
            f"claims {store.last}: the archive is frozen or incomplete; take weather from "
            "another source"
        )
        raise OSError(msg)


def _name_of(array: xr.DataArray, names: tuple[str, ...]) -> str:
    for name in names:
        if name in array.dims:
            return name
    msg = f"'{array.name}' has dimensions {array.dims}, expected one of {', '.join(names)}"
    raise OSError(msg)


def _utc_day(stamps: npt.NDArray[np.datetime64], variable: WeatherVariable) -> Days:
    if variable.accumulation == "hour-ending":
        stamps = stamps - np.timedelta64(1, "ns")
    return stamps.astype("datetime64[D]")


def _rows(lat: npt.NDArray[Any], bounds: Bounds) -> npt.NDArray[np.int64]:
    """Rows around the bounds with a rim of one cell, from north to south."""
    step = abs(float(lat[1] - lat[0]))
    near = np.flatnonzero((lat >= bounds[1] - step) & (lat <= bounds[3] + step))
    return near[np.argsort(-lat[near])]


def _columns(lon: npt.NDArray[Any], bounds: Bounds) -> npt.NDArray[np.int64]:
    """Columns around the bounds with a rim of one cell, from west to east."""
    step = abs(float(lon[1] - lon[0]))
    around = _near(np.asarray(lon, dtype=np.float64), bounds)
    near = np.flatnonzero((around >= bounds[0] - step) & (around <= bounds[2] + step))
    return near[np.argsort(around[near])]


def _near(lon: npt.NDArray[np.float64], bounds: Bounds) -> npt.NDArray[np.float64]:
    """Longitudes within half a turn of the middle of the bounds."""
    middle = (bounds[0] + bounds[2]) / 2
    return (lon - middle + 180.0) % 360.0 - 180.0 + middle


def _window(
    array: xr.DataArray,
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    store: WeatherStore,
) -> npt.NDArray[np.float64]:
    """Hourly values of a window in physical units."""
    top, bottom = int(rows.min()), int(rows.max()) + 1

    def read(_: int) -> npt.NDArray[np.float64]:
        parts = [array[:, top:bottom, run].values for run in _runs(columns)]
        return np.concatenate(parts, axis=2, dtype=np.float64)

    values = with_retries(
        read, f"reading {store.href}", passing=lambda error: _is_passing(error, store)
    )[:, rows - top]
    values = values * store.variable.scale + store.variable.offset
    # Packing leaves tiny negative amounts.
    return values if store.variable.accumulation == "instant" else np.maximum(values, 0)


def _runs(index: npt.NDArray[np.int64]) -> Iterator[slice]:
    """Unbroken ascending runs, so that a store is read in slices."""
    for run in np.split(index, np.flatnonzero(np.diff(index) != 1) + 1):
        yield slice(int(run[0]), int(run[-1]) + 1)


def combine(
    temperature: Sequence[DailySums | None],
    precipitation: Sequence[DailySums | None],
    starts: Days,
) -> NativeWeather:
    """Put stores together and average or sum the days of each period. Computes.

    Parameters
    ----------
    temperature, precipitation : sequence of DailySums or None
        Of one region and grid each; None stands for a store that could not be read.
    starts : (period,) ndarray of datetime64[D]

    Returns
    -------
    NativeWeather
        Mean temperature, and total of 8 days: the sum over the n whole days of a period times
        8 / n. NaN where a period has no whole day.

    Raises
    ------
    OSError
        When grids differ.
    """
    values: list[Floats] = []
    patches: list[Patch | None] = []
    for name, sums in zip(BANDS, (temperature, precipitation), strict=True):
        known = [part for part in sums if part is not None]
        if not known:
            values.append(np.full((starts.size, 1, 1), np.nan, dtype=np.float32))
            patches.append(None)
            continue
        head = known[0]
        if any(not _same_grid(part, head) for part in known):
            msg = f"the stores of {name} lie on different grids; expected one"
            raise OSError(msg)
        values.append(_by_period(known, starts, daily_mean=name == "air_temperature"))
        step_x, step_y = head.lon[1] - head.lon[0], head.lat[0] - head.lat[1]
        affine = Affine(step_x, 0, head.lon[0] - step_x / 2, 0, -step_y, head.lat[0] + step_y / 2)
        geobox = GeoBox((head.lat.size, head.lon.size), affine, "EPSG:4326")
        patches.append(Patch(*head.origin, geobox))
    return NativeWeather(tuple(values), tuple(patches))


def _same_grid(a: DailySums, b: DailySums) -> bool:
    return np.array_equal(a.lat, b.lat) and np.array_equal(a.lon, b.lon)


def _by_period(parts: Sequence[DailySums], starts: Days, *, daily_mean: bool) -> Floats:
    first = starts[0].astype("datetime64[D]")
    ends = starts + periods.period_length(starts).astype("timedelta64[D]")
    count = int((ends[-1] - first).astype(np.int64))
    total = np.zeros((count, *parts[0].total.shape[1:]))
    hours = np.zeros(count, dtype=np.int64)
    for part in parts:
        index = (part.days - first).astype(np.int64)
        inside = (index >= 0) & (index < count)
        np.add.at(total, index[inside], part.total[inside])
        np.add.at(hours, index[inside], part.hours[inside])
    whole = hours == HOURS
    result = np.full((starts.size, *total.shape[1:]), np.nan, dtype=np.float32)
    for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
        span = slice(int((start - first).astype(np.int64)), int((end - first).astype(np.int64)))
        days = total[span][whole[span]]
        if len(days):
            scale = 1 / HOURS if daily_mean else float(periods.DAYS_PER_PERIOD)
            result[k] = days.mean(axis=0) * scale
    return result


def regrid_weather(native: NativeWeather, target: GeoBox) -> Floats:
    """Bring the weather of all periods to a GeoBox by area. Computes.

    Parameters
    ----------
    native : NativeWeather
    target : GeoBox
        A chunk of the cube.

    Returns
    -------
    (2, period, y, x) ndarray of float32
        The bands of :data:`BANDS`: degrees Celsius, m in 8 days.
    """
    count = native.values[0].shape[0]
    result = np.full((len(BANDS), count, *target.shape), np.nan, dtype=np.float32)
    for band, (values, patch) in enumerate(zip(native.values, native.patches, strict=True)):
        if patch is None:
            continue
        for first in range(0, count, _BATCH):
            part = values[first : first + _BATCH]
            sums = CellSums(len(part), target)
            sums.add(part, patch)
            result[band, first : first + _BATCH] = sums.finish()[0]
    return result
