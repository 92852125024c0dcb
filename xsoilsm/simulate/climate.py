"""Outside the seven steps (simulate): climates and daily weather, and its hourly course.

Weather is defined at the nodes of the 0.25 degree grid of ERA5; everything finer is derived from
there, so the weather archive that the landscape serves is the truth of the landscape. Nothing is
read.

Sources: two-state Markov chain of wet and dry days and autoregressive temperature (Richardson
1981, Water Resources Research 17); extraterrestrial radiation and potential evaporation
(Hargreaves and Samani 1985; FAO Irrigation and Drainage Paper 56, equations 21 and 52).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xsoilsm.simulate.noise import Fractal, generator

__all__ = [
    "CLIMATES",
    "CONTINENTAL",
    "LAPSE_RATE",
    "MEDITERRANEAN",
    "SEMIARID",
    "TEMPERATE",
    "Climate",
    "Weather",
    "day_of_year",
    "make_weather",
    "potential_evaporation",
]

Dates = npt.NDArray[np.datetime64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

LAPSE_RATE = 0.0065
"""Fall of air temperature with height in K m-1 (standard atmosphere)."""

_YEAR = 365.25


@dataclass(frozen=True)
class Climate:
    """What weather and growing seasons are like.

    Parameters
    ----------
    name : str
    mean_temperature : float
        Annual mean 2 m temperature in degC at the landscape's base elevation.
    seasonal_amplitude : float
        Half the difference in K of the warmest and coldest day of the mean year.
    warmest_day : float
        Day of year.
    synoptic_deviation : float
        Standard deviation in K of the day-to-day weather around the mean year.
    diurnal_range : float
        Difference in K of the highest and lowest hour of a dry day.
    wet_share : float
        Share of wet days in the mean year.
    wet_seasonality : float
        Amplitude of that share over the year.
    wettest_day : float
        Day of year.
    wet_depth : float
        Mean precipitation of a wet day in mm.
    persistence : float
        How much likelier a wet day is after a wet day: P(wet|wet) - P(wet|dry).
    crop_peak, grass_peak : float
        Day of year of the greenest winter crop and grass.
    """

    name: str
    mean_temperature: float
    seasonal_amplitude: float
    warmest_day: float = 205.0
    synoptic_deviation: float = 3.0
    diurnal_range: float = 12.0
    wet_share: float = 0.25
    wet_seasonality: float = 0.1
    wettest_day: float = 350.0
    wet_depth: float = 6.0
    persistence: float = 0.35
    crop_peak: float = 120.0
    grass_peak: float = 125.0


MEDITERRANEAN = Climate("mediterranean", 12.0, 9.0)
TEMPERATE = Climate(
    "temperate", 10.0, 8.0, diurnal_range=8.0, wet_share=0.45, wet_seasonality=0.05,
    wet_depth=4.5, crop_peak=155.0, grass_peak=165.0,
)  # fmt: skip
CONTINENTAL = Climate(
    "continental", 8.0, 14.0, synoptic_deviation=4.5, diurnal_range=13.0, wet_share=0.27,
    wet_seasonality=0.07, wettest_day=170.0, wet_depth=7.0, crop_peak=160.0, grass_peak=170.0,
)  # fmt: skip
SEMIARID = Climate(
    "semiarid", 17.0, 10.0, diurnal_range=15.0, wet_share=0.1, wet_seasonality=0.06,
    wettest_day=220.0, wet_depth=6.5, crop_peak=90.0, grass_peak=240.0,
)  # fmt: skip

CLIMATES = {climate.name: climate for climate in (MEDITERRANEAN, TEMPERATE, CONTINENTAL, SEMIARID)}
"""Ready climates by name."""


def day_of_year(dates: Dates) -> npt.NDArray[np.int64]:
    """Day of year, 1 to 366, of each date."""
    days = dates.astype("datetime64[D]")
    since = days - days.astype("datetime64[Y]").astype("datetime64[D]")
    return np.asarray(since.astype(np.int64) + 1)


def _day_number(date: np.datetime64) -> int:
    """Non-negative number of a date, for seeds."""
    return int((date - np.datetime64("1900-01-01")).astype(np.int64))


@dataclass(frozen=True)
class Weather:
    """Daily weather at the nodes of the 0.25 degree grid, and its hourly course.

    Parameters
    ----------
    dates : (day,) ndarray of datetime64[D]
        Every calendar day (UTC) in order.
    lat : (lat,) ndarray
        Degrees north, descending.
    lon : (lon,) ndarray
        Degrees east, -180 to 180, ascending.
    height : (lat, lon) ndarray
        Surface height of the nodes in m.
    temperature : (day, lat, lon) ndarray
        Daily mean 2 m temperature in degC.
    precipitation : (day, lat, lon) ndarray
        Daily total in mm.
    diurnal_range : (day,) ndarray
        Range of the hourly temperatures in K.
    storm : (day, 24) ndarray
        Share of a day's precipitation that falls in each hour from 0-1 to 23-24 UTC.
    """

    dates: Dates
    lat: Float64
    lon: Float64
    height: Float64
    temperature: Float64
    precipitation: Float64
    diurnal_range: Float64
    storm: Float64

    def index(self, date: np.datetime64) -> int:
        """Place of a date in `dates`.

        Raises
        ------
        ValueError
            When the weather does not hold it.
        """
        place = int((date.astype("datetime64[D]") - self.dates[0]).astype(np.int64))
        if not 0 <= place < self.dates.size:
            msg = f"weather runs from {self.dates[0]} to {self.dates[-1]}, not to {date}"
            raise ValueError(msg)
        return place

    def hourly_temperature(self, date: np.datetime64) -> Float32:
        """Temperature of the hours of one day.

        Returns
        -------
        (24, lat, lon) ndarray of float32
            K, at 00 to 23 UTC; their mean is the daily mean. The warmest hour is 15 local time.
        """
        day = self.index(date)
        hour = np.arange(24)[:, None] + self.lon[None, :] / 15
        course = self.diurnal_range[day] / 2 * np.cos(2 * np.pi * (hour - 15) / 24)
        return np.asarray(self.temperature[day] + course[:, None, :] + 273.15, dtype=np.float32)

    def hourly_precipitation(self, date: np.datetime64) -> Float32:
        """Precipitation of the hours that end at 00 to 23 UTC of one day.

        Returns
        -------
        (24, lat, lon) ndarray of float32
            m; the value at 00 UTC fell in the last hour of the day before.
        """
        day = self.index(date)
        ending = np.empty((24, self.lat.size, self.lon.size))
        ending[0] = self.storm[day - 1, 23] * self.precipitation[day - 1] if day else 0.0
        ending[1:] = self.storm[day, :23, None, None] * self.precipitation[day]
        return (ending / 1000).astype(np.float32)


def _wet_depths(
    climate: Climate, dates: Dates, seed: int, dry: Dates, storms: Dates
) -> npt.NDArray[np.float64]:
    """Regional precipitation in mm of each day; `dry` and `storms` are dates laid down."""
    rng = generator(seed, "precipitation")
    phase = np.cos(2 * np.pi * (day_of_year(dates) - climate.wettest_day) / _YEAR)
    share = np.clip(climate.wet_share + climate.wet_seasonality * phase, 0.01, 0.95)
    after_dry = share * (1 - climate.persistence)
    chance, size = rng.random(dates.size), rng.gamma(0.75, climate.wet_depth / 0.75, dates.size)
    depth = np.zeros(dates.size)
    wet = False
    for day in range(dates.size):
        wet = bool(chance[day] < after_dry[day] + (climate.persistence if wet else 0.0))
        depth[day] = size[day] if wet else 0.0
    depth[np.isin(dates, dry)] = 0.0
    laid = np.isin(dates, storms)
    depth[laid] = np.maximum(depth[laid], 25.0)
    return depth


def make_weather(
    climate: Climate,
    dates: Dates,
    lat: Float64,
    lon: Float64,
    height: Float64,
    frame: tuple[Float64, Float64],
    *,
    seed: int,
    base_elevation: float,
    dry: Dates,
    storms: Dates,
) -> Weather:
    """Draw daily weather at the nodes of the 0.25 degree grid.

    Parameters
    ----------
    climate : Climate
    dates : (day,) ndarray of datetime64[D]
    lat, lon : (lat,), (lon,) ndarray
        Nodes in degrees.
    height : (lat, lon) ndarray
        Their surface height in m.
    frame : (v, u)
        Their northing and easting in m, for the random fields.
    seed : int
    base_elevation : float
        Height in m for which the climate's temperature holds.
    dry, storms : ndarray of datetime64[D]
        Days without rain, and days with at least 25 mm on average, whatever the chance.

    Returns
    -------
    Weather
    """
    phase = np.cos(2 * np.pi * (day_of_year(dates) - climate.warmest_day) / _YEAR)
    normal = climate.mean_temperature + climate.seasonal_amplitude * phase
    rng = generator(seed, "temperature")
    shock = rng.standard_normal(dates.size)
    memory = 0.75
    synoptic = np.zeros(dates.size)
    for day in range(1, dates.size):
        synoptic[day] = memory * synoptic[day - 1] + np.sqrt(1 - memory**2) * shock[day]
    depth = _wet_depths(climate, dates, seed, dry, storms)
    wet = depth > 0
    regional = normal + climate.synoptic_deviation * synoptic - 1.5 * wet
    v, u = frame
    temperature = np.empty((dates.size, lat.size, lon.size))
    precipitation = np.zeros_like(temperature)
    for day, date in enumerate(dates):
        number = (_day_number(date),)
        anomaly = Fractal(seed, "temperature", 300e3, numbers=number).on_axes(v, u)
        temperature[day] = regional[day] + 0.5 * anomaly - LAPSE_RATE * (height - base_elevation)
        if wet[day]:
            pattern = Fractal(seed, "precipitation", 60e3, numbers=number).on_axes(v, u)
            precipitation[day] = depth[day] * np.exp(0.4 * pattern - 0.08)
    return Weather(
        dates=dates,
        lat=lat,
        lon=lon,
        height=height,
        temperature=temperature,
        precipitation=precipitation,
        diurnal_range=climate.diurnal_range * np.where(wet, 0.55, 1.0),
        storm=np.stack([_storm(seed, date) for date in dates]),
    )


def _storm(seed: int, date: np.datetime64) -> Float64:
    """Shares of a day's precipitation by hour: one storm of random start, length and bursts."""
    rng = generator(seed, "storm", _day_number(date))
    length = int(rng.integers(3, 15))
    start = int(rng.integers(0, 25 - length))
    burst = rng.gamma(0.8, 1.0, length) + 1e-3
    share = np.zeros(24)
    share[start : start + length] = burst / burst.sum()
    return share


def potential_evaporation(
    temperature: Float32, diurnal_range: float, latitude: Float64, date: np.datetime64
) -> Float32:
    """Potential evaporation of one day.

    Parameters
    ----------
    temperature : (y, x) ndarray
        Daily mean in degC.
    diurnal_range : float
        K.
    latitude : (y,) ndarray
        Degrees north.
    date : datetime64[D]

    Returns
    -------
    (y, x) ndarray of float32
        mm per day: 0.0023 Ra (T + 17.8) sqrt(range), never negative (FAO 56, equation 52).
    """
    day = float(day_of_year(np.array([date]))[0])
    angle = 2 * np.pi * day / 365
    distance = 1 + 0.033 * np.cos(angle)
    declination = 0.409 * np.sin(angle - 1.39)
    phi = np.deg2rad(latitude)
    sunset = np.arccos(np.clip(-np.tan(phi) * np.tan(declination), -1, 1))
    energy = (
        24 * 60 / np.pi * 0.0820 * distance
        * (sunset * np.sin(phi) * np.sin(declination)
           + np.cos(phi) * np.cos(declination) * np.sin(sunset))
    )  # fmt: skip
    water = (0.408 * 0.0023 * np.sqrt(diurnal_range) * energy).astype(np.float32)
    return np.asarray(np.maximum(water[:, None] * (temperature + 17.8), 0), dtype=np.float32)
