"""Step 3 of 7 (load): hourly values of Zarr stores, summed over the days of UTC.

The hours 00 to 23 UTC make the temperature of a day. Amounts of precipitation belong to the day
in which they fell: a stamp names the end of its hour (ECMWF, conversion table for accumulated
variables), so the total of day D is that of the stamps 01 UTC of D to 00 UTC of D + 1. Where
amounts accumulate from 00 UTC on (ECMWF, ERA5-Land data documentation), the stamp 00 UTC of
D + 1 alone holds that total.

Stores are opened inside the tasks that need them. Nothing that authorises a request is kept:
links are signed and the netrc file is read when a request is made, and errors lose the request
that they carry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from xsoilsm.facts import WeatherVariable
from xsoilsm.sources.access.links import Access, readable_href, renew_access
from xsoilsm.sources.access.search import Bounds
from xsoilsm.sources.access.transport import ReadFailed, with_retries
from xsoilsm.sources.series.shared import keep, shared_bounds

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "HOURS",
    "DailySums",
    "Refused",
    "WeatherStore",
    "account_of",
    "open_store",
    "read_store",
    "stamps_of",
    "variable_of",
]

HOURS = 24
"""Hours of a day that counts as whole."""

EARTH_RADIUS = 6371.0088
"""Mean radius of the Earth in km (IUGG)."""

_SHORT = 62
"""Days of a store that is kept whole where cubes share it."""

_BUDGET = 32_000_000  # values that are read from a store at once

Floats = npt.NDArray[np.float32]
Days = npt.NDArray[np.datetime64]
_T = TypeVar("_T")


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
    first, last : datetime64[s]
        First and last instant that the item claims, or that the store holds.
    days : (date, date)
        First and last day that are taken from it.
    fill_within : float
        See :class:`~xsoilsm.facts.Era5Source`; in km.
    otherwise : str
        What to do where it ends early.
    """

    id: str
    name: str
    href: str
    access: Access
    fields: str
    variable: WeatherVariable
    first: np.datetime64
    last: np.datetime64
    days: tuple[date, date]
    fill_within: float = 0.0
    otherwise: str = ""


@dataclass(frozen=True)
class DailySums:
    """Sums over the hours of each UTC day, on the native grid.

    Parameters
    ----------
    days : (day,) ndarray of datetime64[D]
    total : (day, y, x) ndarray of float32
        In physical units; NaN over the sea.
    hours : (day,) ndarray of int64
        Hours that were summed.
    lat : (y,) ndarray of float64
        Descending.
    lon : (x,) ndarray of float64
        Ascending, without a break at the antimeridian.
    origin : (int, int)
        Row and column of the first value in the store.
    fill_within : float
        Distance in km over which the sea takes the values of the nearest land.
    """

    days: Days
    total: Floats
    hours: npt.NDArray[np.int64]
    lat: npt.NDArray[np.float64]
    lon: npt.NDArray[np.float64]
    origin: tuple[int, int]
    fill_within: float = 0.0


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
    first, last = max(first, store.days[0]), min(last, store.days[1])
    around = shared_bounds(bounds)
    try:
        if around is None:
            part = _read(store, bounds, first, last)
        else:
            # Of what covers a month or so all days are kept: the next cube may want others of them.
            short = store.last - store.first <= np.timedelta64(_SHORT, "D")
            days = (date.min, date.max) if short else (first, last)
            key = (_identity(store), around, days)
            part = keep(key, lambda: _read(store, around, *days), _Part.size)
    except _Unreadable:
        if on_error == "raise":
            raise
        return None
    return part.cut(bounds, first, last, store.fill_within)


@dataclass(frozen=True)
class _Part:
    """Daily sums of a window, with the axes of the whole store."""

    lat: npt.NDArray[np.float64]
    lon: npt.NDArray[np.float64]
    window: _Window
    days: Days
    total: Floats
    hours: npt.NDArray[np.int64]

    def size(self) -> int:
        """Bytes."""
        return self.total.nbytes + self.lat.nbytes + self.lon.nbytes

    def cut(self, bounds: Bounds, first: date, last: date, fill_within: float) -> DailySums:
        """Give what lies around bounds, of some days."""
        window = _Window.around(self.lat, self.lon, bounds, fill_within)
        rows, columns = (
            np.flatnonzero(np.isin(mine, theirs))
            for mine, theirs in (
                (self.window.rows, window.rows),
                (self.window.columns, window.columns),
            )
        )
        chosen = (self.days >= np.datetime64(first)) & (self.days <= np.datetime64(last))
        return DailySums(
            days=self.days[chosen],
            total=self.total[np.ix_(chosen, rows, columns)],
            hours=self.hours[chosen],
            lat=self.lat[window.rows],
            lon=_near(self.lon[window.columns], bounds),
            origin=(int(window.rows.min()), int(window.columns[0])),
            fill_within=fill_within,
        )


def _read(store: WeatherStore, bounds: Bounds, first: date, last: date) -> _Part:
    with open_store(store) as data:
        array = variable_of(data, store)
        lat_name, lon_name = (_name_of(array, names) for names in (_LATITUDE, _LONGITUDE))
        stamps = stamps_of(array, store)
        _check_stamps(stamps, store)
        lat, lon = (array[n].values.astype(np.float64) for n in (lat_name, lon_name))
        window = _Window.around(lat, lon, bounds, store.fill_within)
        steps, day, hours = _steps(stamps, first, last, store.variable)
        days, total = _sum_days(array, steps, day, window, store)
        _, begins = np.unique(day, return_index=True)
    sums = np.add.reduceat(hours, begins) if begins.size else np.zeros(0, dtype=np.int64)
    return _Part(lat, lon, window, days, total, sums)


def _identity(store: WeatherStore) -> tuple[str, ...]:
    """Tell what decides the content of a store, without the days that are asked of it."""
    said = (store.id, store.name, store.href, store.fields, store.variable.model_dump_json())
    return (*said, str(store.first), str(store.last), repr(store.fill_within))


class _Unreadable(OSError):
    """A store that cannot be read for good; what it says would not be wrong."""


class Refused(OSError):
    """Answer of a server, without the request and its secrets.

    Parameters
    ----------
    text : str
    status : int
        HTTP status; 0 where there is none.
    """

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


_LASTING_ANSWERS = (400, 401, 404, 405, 410, 416)


def _attempt(action: Callable[[], _T], what: str, store: WeatherStore) -> _T:
    """Do something with a store, and try again after faults that may pass."""

    def act(_: int) -> _T:
        try:
            return action()
        except Exception as error:
            refused = _without_request(error)
            if refused is None:
                raise
        raise refused  # outside of the handler, so that it carries nothing of the original

    try:
        return with_retries(
            act,
            what,
            passing=lambda error: _is_passing(error, store),
            before=lambda: renew_access(store.access),
        )
    except OSError as error:
        cause = error.__cause__
        if isinstance(cause, ImportError):
            raise  # of this machine's software, not of the data
        if isinstance(error, ReadFailed) and error.status:
            cause = Refused(str(error), error.status)
        raise _Unreadable(str(error)) from cause


def _without_request(error: BaseException) -> Refused | None:
    """Answer of a server; what HTTP libraries raise holds the whole request with its token."""
    link: BaseException | None = error
    while link is not None:
        if any(hasattr(link, name) for name in ("request_info", "request", "response")):
            status = getattr(link, "status", None) or getattr(link, "status_code", None)
            return Refused(str(link), status if isinstance(status, int) else 0)
        link = link.__cause__ or link.__context__
    return None


def _is_passing(error: Exception, store: WeatherStore) -> bool:
    """Libraries of remote storage have exceptions of their own; leave out those that last."""
    if isinstance(error, Refused):
        return error.status not in _LASTING_ANSWERS
    lasting = ImportError | ValueError | TypeError | KeyError | FileNotFoundError
    return "://" in store.href and not isinstance(error, lasting)


_LATITUDE, _LONGITUDE = ("lat", "latitude"), ("lon", "longitude")


def open_store(store: WeatherStore) -> xr.Dataset:
    """Open a store lazily. Computes: reads its metadata and coordinates.

    Parameters
    ----------
    store : WeatherStore

    Returns
    -------
    Dataset

    Raises
    ------
    OSError
        When it cannot be opened for good.
    """
    return _attempt(lambda: _open(store), f"opening {store.href}", store)


def _open(store: WeatherStore) -> xr.Dataset:
    import xarray as xr

    fields = json.loads(store.fields)
    options: dict[str, Any] = dict(fields.get("xarray:open_kwargs", {}))
    if "xarray:storage_options" in fields:
        options.setdefault("storage_options", fields["xarray:storage_options"])
    options.setdefault("engine", "zarr")
    options["chunks"] = None  # this runs inside a task: read at once, window by window
    link: Any = readable_href(store.href, store.access)
    address = _web_address(store)
    if address:
        from xsoilsm.sources.access.webzarr import WebStore

        link = WebStore(address, store.access)
    if address or link.partition("://")[0] != store.href.partition("://")[0]:
        options.pop("storage_options", None)  # they belong to the provider's own storage
    dataset: xr.Dataset = xr.open_dataset(link, **options)
    return dataset


def _web_address(store: WeatherStore) -> str:
    """Address at which a store is read over HTTP; empty where it is not."""
    if "://" not in store.href:
        return ""
    from xsoilsm.sources.access.webzarr import web_address

    return web_address(store.href, store.access, account_of(store))


def account_of(store: WeatherStore) -> str:
    """Azure storage account that the item of a store names; empty where it names none."""
    fields = json.loads(store.fields)
    places = (
        fields.get("xarray:storage_options"),
        fields.get("xarray:open_kwargs", {}).get("storage_options"),
    )
    return next((str(p["account_name"]) for p in places if p and "account_name" in p), "")


def variable_of(data: xr.Dataset, store: WeatherStore) -> xr.DataArray:
    """Variable of a store, in the units of the catalog and without dimensions of length 1."""
    name = store.variable.variable or store.variable.asset
    if name not in data:
        msg = f"{store.href} has no variable '{name}'; it has {', '.join(map(str, data))}"
        raise OSError(msg)
    array = data[name]
    _check_units(array, store)
    kept = {*_LATITUDE, *_LONGITUDE}
    array = array.squeeze([d for d in array.dims if array.sizes[d] == 1 and d not in kept])
    if array.ndim != 3:
        msg = f"{store.href}: '{name}' has dimensions {array.dims}; expected time, y and x"
        raise OSError(msg)
    return array


def stamps_of(array: xr.DataArray, store: WeatherStore) -> npt.NDArray[np.datetime64]:
    """Time stamps, checked to ascend."""
    stamps = array[_time_of(array)].values.astype("datetime64[ns]")
    if not stamps.size or (np.diff(stamps) <= np.timedelta64(0, "ns")).any():
        msg = f"{store.href}: the time axis is empty or not ascending"
        raise OSError(msg)
    return stamps


def _time_of(array: xr.DataArray) -> str:
    return next(str(d) for d in array.dims if d not in (*_LATITUDE, *_LONGITUDE))


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
    if stamps[-1] + np.timedelta64(1, "h") <= store.last:
        msg = (
            f"{store.href} ends at {stamps[-1].astype('datetime64[s]')}, but '{store.id}' "
            f"claims {store.last}: the archive is frozen or incomplete; {store.otherwise}"
        )
        raise OSError(msg)


def _name_of(array: xr.DataArray, names: tuple[str, ...]) -> str:
    for name in names:
        if name in array.dims:
            return name
    msg = f"'{array.name}' has dimensions {array.dims}, expected one of {', '.join(names)}"
    raise OSError(msg)


def _steps(
    stamps: npt.NDArray[np.datetime64], first: date, last: date, variable: WeatherVariable
) -> tuple[npt.NDArray[np.int64], Days, npt.NDArray[np.int64]]:
    """Time steps of some days, the day of each, and the hours that it stands for."""
    hours = np.ones(stamps.size, dtype=np.int64)
    if variable.accumulation != "instant":
        stamps = stamps - np.timedelta64(1, "ns")
    day = stamps.astype("datetime64[D]")
    wanted = (day >= np.datetime64(first, "D")) & (day <= np.datetime64(last, "D"))
    if variable.accumulation == "since-midnight":
        # What the end of a day holds is the sum of its hours.
        wanted &= day != (stamps + np.timedelta64(1, "ns")).astype("datetime64[D]")
        hours *= HOURS
    steps = np.flatnonzero(wanted)
    return steps, day[steps], hours[steps]


@dataclass(frozen=True)
class _Window:
    """Rows from north to south and columns from west to east of a store."""

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]

    @classmethod
    def around(
        cls,
        lat: npt.NDArray[np.float64],
        lon: npt.NDArray[np.float64],
        bounds: Bounds,
        reach: float,
    ) -> _Window:
        """Window around bounds with a rim of one cell, or of `reach` in km where that is more."""
        degrees = float(np.rad2deg(reach / EARTH_RADIUS))
        poleward = min(max(abs(bounds[1]), abs(bounds[3])) + degrees, 89.0)
        step = abs(float(lat[1] - lat[0]))
        rim = max(step, degrees + step * (degrees > 0))
        near = np.flatnonzero((lat >= bounds[1] - rim) & (lat <= bounds[3] + rim))
        rows = near[np.argsort(-lat[near])]
        step = abs(float(lon[1] - lon[0]))
        degrees = min(degrees / float(np.cos(np.deg2rad(poleward))), 90.0)
        rim = max(step, degrees + step * (degrees > 0))
        around = _near(lon, bounds)
        near = np.flatnonzero((around >= bounds[0] - rim) & (around <= bounds[2] + rim))
        columns = near[np.argsort(around[near])]
        if rows.size < 2 or columns.size < 2:
            msg = f"a store of weather does not reach the region {bounds}"
            raise OSError(msg)
        return cls(rows, columns)


def _near(lon: npt.NDArray[np.float64], bounds: Bounds) -> npt.NDArray[np.float64]:
    """Longitudes within half a turn of the middle of the bounds."""
    middle = (bounds[0] + bounds[2]) / 2
    return (lon - middle + 180.0) % 360.0 - 180.0 + middle


def _sum_days(
    array: xr.DataArray,
    steps: npt.NDArray[np.int64],
    day: Days,
    window: _Window,
    store: WeatherStore,
) -> tuple[Days, Floats]:
    """Sum the time steps of each day, block by block along the store's own chunks."""
    lat_name, lon_name = (_name_of(array, names) for names in (_LATITUDE, _LONGITUDE))
    array = array.transpose(_time_of(array), lat_name, lon_name)
    days = np.unique(day)
    variable = store.variable
    total = np.zeros((days.size, window.rows.size, window.columns.size), dtype=np.float32)
    chunk = int(array.encoding.get("preferred_chunks", {}).get(array.dims[0], HOURS))
    per_step = window.columns.size * window.rows.size
    length = max(_BUDGET // per_step // chunk, 1) * chunk
    height = max(_BUDGET // (length * window.columns.size), 1)
    blocks = np.flatnonzero(np.diff(steps // length)) + 1
    for chosen, of_day in zip(np.split(steps, blocks), np.split(day, blocks), strict=True):
        if not chosen.size:
            continue
        found, begins, count = np.unique(of_day, return_index=True, return_counts=True)
        place = np.searchsorted(days, found)
        for top in range(0, window.rows.size, height):
            rows = window.rows[top : top + height]
            values = _values(array, chosen, rows, window.columns, store)
            if variable.accumulation != "instant":
                np.maximum(values, 0, out=values)  # packing leaves tiny negative amounts
            sums = np.add.reduceat(values, begins, axis=0, dtype=np.float64)
            sums *= variable.scale
            sums += variable.offset * count[:, None, None]
            total[place, top : top + height] += sums.astype(np.float32)
    return days, total


def _values(
    array: xr.DataArray,
    steps: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    store: WeatherStore,
) -> Floats:
    """Read stored values of a window."""
    top, bottom = int(rows.min()), int(rows.max()) + 1
    stride = int(steps[1] - steps[0]) if steps.size > 1 else 1
    regular = (np.diff(steps) == stride).all()
    time = slice(int(steps[0]), int(steps[-1]) + 1, stride) if regular else steps

    def read() -> Floats:
        parts = [array[time, top:bottom, run].values for run in _runs(columns)]
        return np.concatenate(parts, axis=2, dtype=np.float32)

    return _attempt(read, f"reading {store.href}", store)[:, rows - top]


def _runs(index: npt.NDArray[np.int64]) -> Iterator[slice]:
    """Unbroken ascending runs, so that a store is read in slices."""
    for run in np.split(index, np.flatnonzero(np.diff(index) != 1) + 1):
        yield slice(int(run[0]), int(run[-1]) + 1)
