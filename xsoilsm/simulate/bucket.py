"""Outside the seven steps (simulate): two connected buckets of soil water, stepped by days.

The upper bucket is the soil that the radar sees, 0-5 cm, the lower one the root zone below.
Rain fills, evaporation and transpiration draw, gravity drains above field capacity, suction
exchanges water between the two; every step conserves water. Nothing is read.

Sources: bucket after Manabe (1969), evaporation limited by relative wetness; fraction of green
cover linear in NDVI (Gutman and Ignatov 1998).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xsoilsm.periods import is_period_start
from xsoilsm.simulate.climate import LAPSE_RATE, Weather, potential_evaporation
from xsoilsm.simulate.land import WATER, Land, Place, ndvi
from xsoilsm.simulate.noise import Fractal

__all__ = [
    "DRIEST",
    "LOWER_MM",
    "UPPER_MM",
    "Fluxes",
    "Soil",
    "daily_soil_moisture",
    "green_cover",
    "step_days",
]

Dates = npt.NDArray[np.datetime64]
Float32 = npt.NDArray[np.float32]

UPPER_MM, LOWER_MM = 50.0, 450.0
"""Depths of the two layers in mm."""

DRIEST = 0.03
"""Water content in m3 m-3 below which nothing leaves the soil."""

BLOCK_CELLS = 50_000
"""About so many cells are stepped at a time: they fit the processor's cache."""


def green_cover(greenness: Float32) -> Float32:
    """Fraction of ground under green leaves, (NDVI - 0.1) / 0.75 within 0 and 1."""
    return np.asarray(np.clip((greenness - 0.1) / 0.75, 0, 1), dtype=np.float32)


@dataclass(frozen=True)
class Fluxes:
    """Water that left the soil in one day, each of dims (y, x) in mm."""

    evaporation: Float32
    runoff: Float32
    drainage: Float32


class Soil:
    """Water in two layers, with the properties that govern it.

    Parameters
    ----------
    land : Land
        Gives porosity, field capacity, wilting point, clay and hollows.

    Attributes
    ----------
    upper, lower : (y, x) ndarray
        Volumetric water content in m3 m-3; both begin at field capacity.
    """

    def __init__(self, land: Land) -> None:
        self.porosity = land.porosity
        self.capacity = np.minimum(land.field_capacity, 0.92 * land.porosity)
        self.wilting = np.minimum(land.wilting_point, self.capacity - np.float32(0.03))
        self.upper = self.capacity.copy()
        self.lower = self.capacity.copy()
        slow = 1 + land.hollow * np.float32(0.6)  # hollows drain slowly
        self._drained_upper = 1 - np.exp(-1 / ((0.8 + 0.03 * land.clay) * slow))
        self._drained_lower = 1 - np.exp(-1 / ((3.0 + 0.10 * land.clay) * slow))
        self._span = 1 / np.maximum(self.capacity - np.float32(DRIEST), np.float32(0.02))
        self._root_span = 1 / np.maximum(self.capacity - self.wilting, np.float32(0.02))

    def step(self, rain: Float32, potential: Float32, cover: Float32) -> Fluxes:
        """Move on by one day.

        Parameters
        ----------
        rain : (y, x) ndarray
            mm.
        potential : (y, x) ndarray
            Potential evaporation in mm.
        cover : (y, x) ndarray
            Fraction of ground under green leaves.

        Returns
        -------
        Fluxes
            Rain equals these three and the change of ``50 upper + 450 lower``.
        """
        enters = np.minimum(rain, (self.porosity - self.upper) * UPPER_MM)
        passes = np.minimum(rain - enters, (self.porosity - self.lower) * LOWER_MM)
        runoff = rain - enters - passes
        self.upper += enters / UPPER_MM
        self.lower += passes / LOWER_MM

        seeps = np.maximum(self.upper - self.capacity, 0) * UPPER_MM * self._drained_upper
        seeps = np.minimum(seeps, (self.porosity - self.lower) * LOWER_MM)
        drainage = np.maximum(self.lower - self.capacity, 0) * LOWER_MM * self._drained_lower
        self.upper -= seeps / UPPER_MM
        self.lower += (seeps - drainage) / LOWER_MM

        wetness = np.clip((self.upper - DRIEST) * self._span, 0, 1)
        bare = potential * (1 - cover) * wetness
        top_roots = 0.3 * potential * cover
        top_roots *= np.clip((self.upper - self.wilting) * self._root_span, 0, 1)
        deep_roots = 0.7 * potential * cover
        deep_roots *= np.clip((self.lower - self.wilting) * self._root_span, 0, 1)
        top = np.minimum(bare + top_roots, 0.8 * (self.upper - DRIEST) * UPPER_MM)
        top = np.maximum(top, 0)
        self.upper -= top / UPPER_MM
        self.lower -= deep_roots / LOWER_MM

        rises = 0.06 * UPPER_MM * (self.lower - self.upper)
        rises = np.minimum(rises, (self.porosity - self.upper) * UPPER_MM)
        rises = np.maximum(rises, -(self.porosity - self.lower) * LOWER_MM)
        self.upper += rises / UPPER_MM
        self.lower -= rises / LOWER_MM
        return Fluxes(top + deep_roots, runoff, drainage)


def _between(axis: npt.NDArray[np.float64], at: npt.NDArray[np.float64]) -> tuple[
    npt.NDArray[np.int64], Float32
]:  # fmt: skip
    """Lower neighbour and fraction of each point on a regular axis, clamped to its ends."""
    place = np.clip((at - axis[0]) / (axis[1] - axis[0]), 0, axis.size - 1)
    low = np.minimum(np.floor(place).astype(np.int64), axis.size - 2)
    return low, (place - low).astype(np.float32)


class LocalWeather:
    """Daily weather brought from the 0.25 degree nodes to the cells of a block.

    Temperature is interpolated at sea level and lowered with height; precipitation is
    interpolated and varied by showers a few km wide.

    Parameters
    ----------
    place : Place
    weather : Weather
    lat, lon : (y,), (x,) ndarray
        Degrees of rows and columns.
    elevation : (y, x) ndarray
        m.
    """

    def __init__(
        self,
        place: Place,
        weather: Weather,
        lat: npt.NDArray[np.float64],
        lon: npt.NDArray[np.float64],
        elevation: Float32,
    ) -> None:
        self._place, self._weather = place, weather
        self._lat, self._lon = lat, lon
        self._cooling = np.float32(LAPSE_RATE) * elevation
        self._rows = _between(weather.lat, lat)
        self._columns = _between(weather.lon, lon)

    def _bilinear(self, nodes: npt.NDArray[np.float64]) -> Float32:
        (row, down), (column, right) = self._rows, self._columns
        values = nodes.astype(np.float32)
        lines = values[row] * (1 - down[:, None]) + values[row + 1] * down[:, None]
        return np.asarray(lines[:, column] * (1 - right) + lines[:, column + 1] * right)

    def temperature(self, date: np.datetime64) -> Float32:
        """Daily mean temperature in degC, dims (y, x)."""
        day = self._weather.index(date)
        sea_level = self._weather.temperature[day] + LAPSE_RATE * self._weather.height
        return self._bilinear(sea_level) - self._cooling

    def precipitation(self, date: np.datetime64) -> Float32:
        """Daily total in mm, dims (y, x)."""
        nodes = self._weather.precipitation[self._weather.index(date)]
        if not nodes.any():
            return np.zeros_like(self._cooling)
        number = int((date - np.datetime64("1900-01-01")).astype(np.int64))
        showers = Fractal(self._place.seed, "showers", 2500, 3, numbers=(number,))
        pattern = showers.on_axes(*self._place.frame(self._lat, self._lon))
        showery = np.exp(np.float32(0.45) * pattern - np.float32(0.10125))
        return np.asarray(self._bilinear(nodes) * showery, dtype=np.float32)

    def potential(self, date: np.datetime64) -> Float32:
        """Potential evaporation in mm per day, dims (y, x)."""
        day_range = float(self._weather.diurnal_range[self._weather.index(date)])
        return potential_evaporation(self.temperature(date), day_range, self._lat, date)


def step_days(
    place: Place,
    land: Land,
    weather: Weather,
    lat: npt.NDArray[np.float64],
    greenness: Callable[[np.datetime64], Float32] | None = None,
) -> Iterator[tuple[np.datetime64, Float32]]:
    """Step a block of rows day after day.

    Parameters
    ----------
    place : Place
    land : Land
        Of the block.
    weather : Weather
    lat : (y,) ndarray
        Latitudes of the block's rows in degrees.
    greenness : callable, optional
        NDVI (y, x) of a date; that of the land's mean year where it is left out.

    Yields
    ------
    date : datetime64[D]
    moisture : (y, x) ndarray of float32
        Daily mean soil moisture in m3 m-3, of the ground under water too.
    """
    seen = greenness or (lambda date: ndvi(land, date))
    local = LocalWeather(place, weather, lat, place.axes[1], land.elevation)
    soil = Soil(land)
    cover = green_cover(seen(weather.dates[0]))
    for date, is_start in zip(weather.dates, is_period_start(weather.dates), strict=True):
        if is_start:
            cover = green_cover(seen(date))
        before = soil.upper.copy()
        soil.step(local.precipitation(date), local.potential(date), cover)
        yield date, (before + soil.upper) / 2


def daily_soil_moisture(
    place: Place,
    land: Land,
    weather: Weather,
    dates: Collection[np.datetime64],
    *,
    threads: int = 1,
    progress: Callable[[float], object] | None = None,
) -> dict[np.datetime64, Float32]:
    """Daily mean soil moisture of the top 5 cm on some dates.

    Parameters
    ----------
    place : Place
    land : Land
        On `Place.geobox`.
    weather : Weather
        From a few months before the first date, for the soil to forget its beginning.
    dates : collection of datetime64[D]
    threads : int, default 1
        Blocks of rows stepped at once; the result does not depend on it.
    progress : callable, optional
        Told the share of work that is done.

    Returns
    -------
    dict of datetime64[D] to (y, x) ndarray of float32
        m3 m-3, the mean of a day's beginning and end; NaN on open water.
    """
    wanted = set(dates)
    last = max(wanted)
    lat, lon = place.axes
    result = {date: np.full((lat.size, lon.size), np.nan, np.float32) for date in sorted(wanted)}
    step = max(BLOCK_CELLS // lon.size, 1)
    blocks = [slice(start, min(start + step, lat.size)) for start in range(0, lat.size, step)]

    def run(block: slice) -> None:
        part = land.rows(block)
        for date, moisture in step_days(place, part, weather, lat[block]):
            if date in wanted:
                result[date][block] = np.where(part.cover == WATER, np.nan, moisture)
            if date >= last:
                return

    with ThreadPoolExecutor(threads) as pool:
        for done, _ in enumerate(pool.map(run, blocks), 1):
            if progress is not None:
                progress(done / len(blocks))
    return result
