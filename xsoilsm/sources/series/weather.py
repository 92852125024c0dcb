"""Step 3 of 7 (load): days of weather become 8-day values of the cells of a GeoBox.

Temperature is the mean over the days of a period and precipitation its total. Only days with all
24 hours count, and a total of n of them is scaled by 8 / n. The value at a grid point stands for
the cell around it, and cells are averaged by area. Points over the sea, which ERA5-Land leaves
empty, take the values of the nearest land within a distance that the catalog states.

Sources on several grids may share a period: each is averaged over its own days and weighs by
their number, which is the mean over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox

from xsoilsm import periods
from xsoilsm.sources.availability import complete_latest
from xsoilsm.sources.pixels.reading import CellSums, Patch
from xsoilsm.sources.series.era5 import BANDS
from xsoilsm.sources.series.stores import EARTH_RADIUS, HOURS, DailySums

__all__ = [
    "NativePart",
    "NativeWeather",
    "combine",
    "mark_failed",
    "regrid_filled",
    "regrid_weather",
]

_BATCH = 46  # periods that are brought to a GeoBox at once

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class NativePart:
    """Weather of all periods on one native grid.

    Parameters
    ----------
    values : (period, y, x) ndarray of float32
        Degrees Celsius, or m in 8 days. NaN without data.
    days : (period,) ndarray of int64
        Whole days behind each.
    filled : (y, x) ndarray of bool
        Where the values are those of the nearest land.
    patch : Patch
        Where the grid lies.
    """

    values: Floats
    days: npt.NDArray[np.int64]
    filled: Flags
    patch: Patch


@dataclass(frozen=True)
class NativeWeather:
    """Weather of all periods on the grids of its sources.

    Parameters
    ----------
    count : int
        Number of periods.
    parts : tuple of tuple of NativePart
        For each of :data:`~xsoilsm.sources.series.era5.BANDS` one part a grid; none where not a
        single store could be read.
    failed : bool
        Whether a store could not be read: periods are missing, or of fewer days.
    starts : (period,) ndarray of datetime64[D], optional
        Given where something has to stand in for the days that had not come at the end.
    """

    count: int
    parts: tuple[tuple[NativePart, ...], ...]
    failed: bool = False
    starts: npt.NDArray[np.datetime64] | None = None


def combine(
    temperature: Sequence[DailySums | None],
    precipitation: Sequence[DailySums | None],
    starts: npt.NDArray[np.datetime64],
    *,
    complete: bool = False,
) -> NativeWeather:
    """Put stores together and average or sum the days of each period. Computes.

    Parameters
    ----------
    temperature, precipitation : sequence of DailySums or None
        Of one region each; None stands for a store that could not be read.
    starts : (period,) ndarray of datetime64[D]
    complete : bool, default False
        Whether something is to stand in for days that had not come at the end.

    Returns
    -------
    NativeWeather
        Mean temperature, and total of 8 days: the sum over the n whole days of a period times
        8 / n. NaN where a period has no whole day.
    """
    parts = tuple(
        tuple(_part(group, starts, daily_mean=name == "air_temperature") for group in _grids(sums))
        for name, sums in zip(BANDS, (temperature, precipitation), strict=True)
    )
    failed = any(part is None for part in (*temperature, *precipitation))
    return NativeWeather(starts.size, parts, failed, starts if complete else None)


def _grids(sums: Sequence[DailySums | None]) -> list[list[DailySums]]:
    """Group stores by their grid."""
    groups: dict[tuple[bytes, bytes], list[DailySums]] = {}
    for part in sums:
        if part is not None:
            groups.setdefault((part.lat.tobytes(), part.lon.tobytes()), []).append(part)
    return list(groups.values())


def _part(
    group: Sequence[DailySums], starts: npt.NDArray[np.datetime64], *, daily_mean: bool
) -> NativePart:
    head = group[0]
    values, days = _by_period(group, starts)
    values *= 1 / HOURS if daily_mean else float(periods.DAYS_PER_PERIOD)
    within = max(part.fill_within for part in group)
    filled = _fill(values, head.lat, head.lon, within)
    # Stored coordinates are often rounded: their ends tell the step best.
    step_x = (head.lon[-1] - head.lon[0]) / (head.lon.size - 1)
    step_y = (head.lat[0] - head.lat[-1]) / (head.lat.size - 1)
    affine = Affine(step_x, 0, head.lon[0] - step_x / 2, 0, -step_y, head.lat[0] + step_y / 2)
    geobox = GeoBox((head.lat.size, head.lon.size), affine, "EPSG:4326")
    return NativePart(values, days, filled, Patch(*head.origin, geobox))


def _by_period(
    group: Sequence[DailySums], starts: npt.NDArray[np.datetime64]
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Mean over the whole days of each period, and their number."""
    shape = group[0].total.shape[1:]
    result = np.full((starts.size, *shape), np.nan, dtype=np.float32)
    number = np.zeros(starts.size, dtype=np.int64)
    ends = starts + periods.period_length(starts).astype("timedelta64[D]")
    places: dict[date, list[tuple[DailySums, int]]] = {}
    for part in group:
        for at, date_ in enumerate(part.days.tolist()):
            places.setdefault(date_, []).append((part, at))
    for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
        total, count = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        for day in _whole_days(places, start, end):
            valid = ~np.isnan(day)
            np.add(total, day, out=total, where=valid)
            count += valid
            number[k] += 1
        np.divide(total, count, out=result[k], where=count > 0, casting="same_kind")
    return result, number


def _whole_days(
    places: Mapping[date, list[tuple[DailySums, int]]], start: np.datetime64, end: np.datetime64
) -> Iterator[Floats]:
    """Days that have all their hours, of which two stores may hold a part each."""
    for day in np.arange(start, end, dtype="datetime64[D]").tolist():
        pieces = places.get(day, [])
        if sum(int(part.hours[k]) for part, k in pieces) == HOURS:
            total = pieces[0][0].total[pieces[0][1]]
            for part, k in pieces[1:]:
                total = total + part.total[k]
            yield total


def _fill(
    values: Floats, lat: npt.NDArray[np.float64], lon: npt.NDArray[np.float64], within: float
) -> Flags:
    """Give empty points the values of the nearest one that has any, in place.

    Parameters
    ----------
    values : (period, y, x) ndarray of float32
    lat, lon : (y,) and (x,) ndarray of float64
    within : float
        Longest distance in km along the surface.

    Returns
    -------
    (y, x) ndarray of bool
        Which points were filled.
    """
    held = ~np.isnan(values).all(axis=0)
    filled = np.zeros_like(held)
    if within <= 0 or held.all() or not held.any():
        return filled
    from scipy.spatial import KDTree

    phi, lam = np.meshgrid(np.deg2rad(lat), np.deg2rad(lon), indexing="ij")
    points = np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1)
    chord = 2 * np.sin(within / EARTH_RADIUS / 2)
    distance, nearest = KDTree(points[held]).query(points[~held], distance_upper_bound=chord)
    reached = np.isfinite(distance)
    rows, columns = (index[reached] for index in np.nonzero(~held))
    from_rows, from_columns = (index[nearest[reached]] for index in np.nonzero(held))
    values[:, rows, columns] = values[:, from_rows, from_columns]
    filled[rows, columns] = True
    return filled


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
        The bands of :data:`~xsoilsm.sources.series.era5.BANDS`: degrees Celsius, m in 8 days.
    """
    result = np.full((len(BANDS), native.count, *target.shape), np.nan, dtype=np.float32)
    for band, parts in enumerate(native.parts):
        weight = np.zeros(result[band].shape if len(parts) > 1 else (native.count, 1, 1), "f4")
        for part in parts:
            for first in range(0, native.count, _BATCH):
                span = slice(first, first + _BATCH)
                sums = CellSums(len(part.days[span]), target)
                sums.add(part.values[span], part.patch)
                mean = sums.finish()[0]
                if len(parts) == 1:
                    result[band, span] = mean
                else:
                    _blend(result[band, span], weight[span], mean, part.days[span])
        if native.starts is not None and parts:
            days = np.sum([part.days for part in parts], axis=0)
            complete_latest(result[band], days, native.starts, total=BANDS[band] == "precipitation")
    return result


def _blend(result: Floats, weight: Floats, fresh: Floats, days: npt.NDArray[np.int64]) -> None:
    """Take a mean over some days into one over others, in place; NaN has no weight."""
    valid = ~np.isnan(fresh)
    share = days.astype(np.float32)[:, None, None] * valid
    weight += share
    step = np.where(weight > share, fresh - result, 0) * share / np.where(valid, weight, 1)
    np.copyto(result, fresh, where=valid & (weight == share))
    np.add(result, step, out=result, where=valid & (weight > share))


def mark_failed(native: NativeWeather, target: GeoBox) -> Floats:
    """Say whether a store could not be read, which concerns all cells alike.

    Returns
    -------
    (1, y, x) ndarray of float32
        0 or 1.
    """
    return np.full((1, *target.shape), np.float32(native.failed))


def regrid_filled(native: NativeWeather, target: GeoBox) -> Floats:
    """Tell how much of each cell has the weather of the nearest land. Computes.

    Parameters
    ----------
    native : NativeWeather
    target : GeoBox
        A chunk of the cube.

    Returns
    -------
    (1, y, x) ndarray of float32
        Share of the cell, the largest of all sources and variables.
    """
    result = np.zeros((1, *target.shape), dtype=np.float32)
    for part in (part for parts in native.parts for part in parts):
        if part.filled.any():
            sums = CellSums(1, target)
            sums.add(part.filled[None].astype(np.float32), part.patch)
            np.fmax(result, sums.finish()[0], out=result)
    return result
