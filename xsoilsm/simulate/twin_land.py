"""Outside the seven steps (simulate): how the land of the twin differs from what is told of it.

Vegetation and the roughness of fields change from year to year, and with them what the radar
sees. Soil maps and reanalysed weather, which networks take as inputs, are not the soil and the
weather that make soil moisture. Nothing is read.

Sizes of errors are assumptions. Those of the soil map follow the order of the errors that
SoilGrids reports of itself (Poggio et al. 2021, SOIL 7, 217-240: about half of the variance of
texture is explained); the rest are round numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from xsoilsm.grid import grid_of
from xsoilsm.simulate.climate import Weather, day_of_year
from xsoilsm.simulate.land import CROP, Land, Place, ndvi
from xsoilsm.simulate.noise import Fractal, Patches, generator, uniform

__all__ = ["Seasons", "map_soil", "report_weather"]

Float32 = npt.NDArray[np.float32]

_MAP_BLUR_KM = 1.5  # the soil map is smoother than the soil
_MAP_ERRORS = {"sand": 9.0, "clay": 6.0, "bulk_density": 0.08}
"""Standard deviations of the soil map's errors: percent, percent, g cm-3."""

_MAP_LIMITS = {"sand": (3.0, 95.0), "clay": (1.0, 70.0), "bulk_density": (0.9, 1.75)}
_RAIN_ERROR = 0.5  # of the logarithm of a day's precipitation
_RAIN_LOCAL = 0.25  # the same, varying from place to place
_TEMPERATURE_ERROR = 0.8  # K, of a day
_YEAR_GROWTH = 0.12  # of the factor on a year's growth
_FIELD_GROWTH = 0.15
_FIELD_SHIFT = 8.0  # days
_TILLAGE = 0.25  # of the logarithm of a field's roughness in half a year


def map_soil(place: Place, land: Land) -> Land:
    """Soil as a map tells it: smoother than it is, and wrong by some.

    Parameters
    ----------
    place : Place
    land : Land
        The true one.

    Returns
    -------
    Land
        With other sand, clay and bulk density.
    """
    frame = place.frame(*place.axes)
    width = _MAP_BLUR_KM * 1000 / grid_of(place.geobox)[0].cell
    fields = {}
    for name, deviation in _MAP_ERRORS.items():
        error = Fractal(place.seed, f"soil map {name}", 8000, 3, 0.7).on_axes(*frame)
        blurred = gaussian_filter(getattr(land, name), width, mode="nearest")
        told = blurred + np.float32(deviation) * error
        fields[name] = np.clip(told, *_MAP_LIMITS[name]).astype(np.float32)
    fields["clay"] = np.minimum(fields["clay"], 97 - fields["sand"])
    return replace(land, **fields)


def report_weather(weather: Weather, seed: int) -> Weather:
    """Weather as a reanalysis tells it: with errors of each day.

    Parameters
    ----------
    weather : Weather
        The true one.
    seed : int

    Returns
    -------
    Weather
        Precipitation with a factor of mean 1 on every wet day, temperature with an addend.
    """
    rng = generator(seed, "reanalysis")
    days, nodes = weather.dates.size, weather.height.shape
    amount = _RAIN_ERROR * rng.standard_normal((days, 1, 1))
    amount = amount + _RAIN_LOCAL * rng.standard_normal((days, *nodes))
    factor = np.exp(amount - (_RAIN_ERROR**2 + _RAIN_LOCAL**2) / 2)
    shift = _TEMPERATURE_ERROR * rng.standard_normal((days, 1, 1))
    return replace(
        weather,
        precipitation=weather.precipitation * factor,
        temperature=weather.temperature + shift,
    )


@dataclass(frozen=True)
class Seasons:
    """Vegetation and roughness of a place in each year.

    Parameters
    ----------
    place : Place
    land : Land
        In its mean year.
    """

    place: Place
    land: Land

    @cached_property
    def _fields(self) -> npt.NDArray[np.uint64]:
        return Patches(self.place.seed, "fields", 450).on_axes(*self.place.frame(*self.place.axes))

    def _normal(self, number: int) -> Float32:
        """Numbers of mean 0 and variance 1, the same within a field; within -1.73 and 1.73."""
        return np.asarray((uniform(self._fields, number) - 0.5) * np.sqrt(12), dtype=np.float32)

    def greenness(self, date: np.datetime64) -> Float32:
        """NDVI (y, x) of one day."""
        year = int(str(date)[:4])
        growth = 1 + _YEAR_GROWTH * generator(self.place.seed, "growth", year).standard_normal()
        lowest, rise, peak, season = self.land.greenness
        rise = (
            rise
            * np.float32(np.clip(growth, 0.6, 1.4))
            * (1 + np.float32(_FIELD_GROWTH) * self._normal(10 * year))
        )
        peak = peak + np.float32(_FIELD_SHIFT) * self._normal(10 * year + 1)
        return ndvi(replace(self.land, greenness=np.stack([lowest, rise, peak, season])), date)

    def roughness(self, date: np.datetime64) -> Float32:
        """Roughness (y, x) of the ground on one day: tillage changes it twice a year."""
        year = int(str(date)[:4])
        half = int(day_of_year(np.array([date]))[0] > 182)
        tilled = np.exp(np.float32(_TILLAGE) * self._normal(10 * year + 2 + half))
        return np.where(self.land.cover == CROP, self.land.roughness * tilled, self.land.roughness)
