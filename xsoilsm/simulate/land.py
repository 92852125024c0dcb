"""Outside the seven steps (simulate): the place, its terrain, soils, land cover and seasons.

Everything is a function of place under one seed. Terrain holds valleys on a fractal relief;
sand, clay and bulk density are correlated fields; land cover is a mosaic of fields, grass, forest,
lakes and villages. Nothing is read.

Sources: pedotransfer functions of Cosby et al. (1984), Water Resources Research 20, with the
retention curve of Clapp and Hornberger (1978); porosity from bulk density and the density of
quartz; seasons of vegetation as double logistic curves (Zhang et al. 2003).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from xsoilsm.grid import ease2_geobox, get_grid, grid_of, xy_to_lonlat
from xsoilsm.simulate.climate import MEDITERRANEAN, Climate, day_of_year
from xsoilsm.simulate.noise import Fractal, Patches, uniform

__all__ = [
    "BUILT",
    "CROP",
    "FOREST",
    "GRASS",
    "WATER",
    "Character",
    "Land",
    "Place",
    "make_land",
    "ndvi",
]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

FOREST, GRASS, CROP, BUILT, WATER = 10, 30, 40, 50, 80
"""Land cover, numbered as in ESA WorldCover."""

BASE_ELEVATION = 900.0
"""Height in m around which the terrain rises and falls."""

EARTH_RADIUS = 6371008.8
MARGIN_KM = 2.0
"""Width of the strip around the region for which the land is simulated too."""


@dataclass(frozen=True)
class Character:
    """What tells the land of one place from that of another.

    Parameters
    ----------
    base_elevation : float
        Height in m around which the terrain rises and falls.
    relief : float
        Standard deviation in m of the heights without valleys, which deepen with it.
    forest : float
        Raises the share of forest; in standard deviations of the field that decides.
    grass : float
        The same for grass among what is no forest.
    green : float
        Factor on the NDVI of all vegetation.
    sand, clay : float
        Means in percent.
    regional : float
        Standard deviations of soil texture that vary over some ten km, for one within some km.
    """

    base_elevation: float = BASE_ELEVATION
    relief: float = 95.0
    forest: float = 0.0
    grass: float = 0.0
    green: float = 1.0
    sand: float = 45.0
    clay: float = 22.0
    regional: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where a landscape lies and what it is drawn from.

    Parameters
    ----------
    centre : (float, float)
        Longitude and latitude in degrees.
    size_km : float
        Side of the square region.
    seed : int
    climate : Climate
    character : Character
    res : {"100m", "500m", "1km"}, default "100m"
        Grid of the cells on which the land is simulated.
    """

    centre: tuple[float, float]
    size_km: float
    seed: int
    climate: Climate = MEDITERRANEAN
    character: Character = field(default_factory=Character)
    res: str = "100m"

    def frame(self, lat: npt.ArrayLike, lon: npt.ArrayLike) -> tuple[Float64, Float64]:
        """Northing and easting in m of latitudes and longitudes, for the random fields."""
        metre = np.deg2rad(1.0) * EARTH_RADIUS
        v = np.asarray(lat, float) * metre
        u = np.asarray(lon, float) * (metre * np.cos(np.deg2rad(self.centre[1])))
        return v, u

    def box(self, margin_km: float = 0.0) -> tuple[float, float, float, float]:
        """West, south, east and north of the region in degrees, widened by a margin."""
        lon, lat = self.centre
        half = (self.size_km / 2 + margin_km) * 1000 / EARTH_RADIUS
        high = float(np.rad2deg(half))
        wide = float(np.rad2deg(half / np.cos(np.deg2rad(lat))))
        return lon - wide, lat - high, lon + wide, lat + high

    @cached_property
    def truth_geobox(self) -> GeoBox:
        """The region's cells of the EASE-Grid 2.0."""
        return ease2_geobox(self.box(), self.res)

    @cached_property
    def geobox(self) -> GeoBox:
        """The simulated land: the region's cells and a margin around them."""
        cells, rows, columns = grid_of(self.truth_geobox)
        pad = round(MARGIN_KM * 1000 / cells.cell)
        return get_grid(self.res).geobox(
            (rows[0] - pad, rows[1] + pad), (columns[0] - pad, columns[1] + pad)
        )

    @cached_property
    def axes(self) -> tuple[Float64, Float64]:
        """Latitudes of the rows and longitudes of the columns of `geobox`."""
        grid, rows, columns = grid_of(self.geobox)
        x, y = grid.centre(np.arange(*rows), np.arange(*columns))
        lon, _ = xy_to_lonlat(x, np.full(x.shape, y[0]))
        _, lat = xy_to_lonlat(np.full(y.shape, x[0]), y)
        return lat, lon

    def _relief(self) -> tuple[Fractal, Fractal]:
        return (
            Fractal(self.seed, "relief", 9000, 9),
            Fractal(self.seed, "valleys", 6000, 6),
        )

    def _raise(self, relief: Float32, valleys: Float32) -> Float32:
        """Height in m from the two fields: valleys follow the zero line of the second."""
        valley = np.exp(-np.square(valleys / np.float32(0.3)))
        high = np.float32(self.character.relief)
        deep = np.float32(self.character.relief * 70 / 95)
        height = self.character.base_elevation + high * relief - deep * valley
        return np.asarray(height, dtype=np.float32)

    def elevation(self, lat: Float64, lon: Float64, octaves: int | None = None) -> Float32:
        """Orthometric height on a grid of latitudes and longitudes.

        Parameters
        ----------
        lat, lon : (y,), (x,) ndarray
            Degrees.
        octaves : int, optional
            Only the coarsest octaves: smoothed terrain.

        Returns
        -------
        (y, x) ndarray of float32
            m.
        """
        v, u = self.frame(lat, lon)
        relief, valleys = self._relief()
        return self._raise(relief.on_axes(v, u, octaves), valleys.on_axes(v, u, octaves))

    def elevation_at(self, lat: Float64, lon: Float64, octaves: int | None = None) -> Float32:
        """Orthometric height in m of scattered points; parameters as in `elevation`."""
        v, u = self.frame(lat, lon)
        relief, valleys = self._relief()
        return self._raise(relief.at(v, u, octaves), valleys.at(v, u, octaves))


@dataclass(frozen=True)
class Land:
    """Fields that do not change with time, all of dims (y, x).

    Parameters
    ----------
    cover : ndarray of uint8
        `FOREST`, `GRASS`, `CROP`, `BUILT` or `WATER`.
    elevation : ndarray of float32
        m.
    hollow : ndarray of float32
        -1 on crests to 1 in hollows, which drain more slowly.
    sand, clay : ndarray of float32
        Percent.
    bulk_density : ndarray of float32
        g cm-3.
    roughness : ndarray of float32
        Wave number times the standard deviation of heights at 5.405 GHz, 1.
    greenness : (4, y, x) ndarray of float32
        Lowest NDVI, its rise, day of its peak and days of its season.
    """

    cover: npt.NDArray[np.uint8]
    elevation: Float32
    hollow: Float32
    sand: Float32
    clay: Float32
    bulk_density: Float32
    roughness: Float32
    greenness: Float32

    def rows(self, block: slice) -> Land:
        """Take a block of rows of all fields."""
        return Land(
            self.cover[block],
            self.elevation[block],
            self.hollow[block],
            self.sand[block],
            self.clay[block],
            self.bulk_density[block],
            self.roughness[block],
            self.greenness[:, block],
        )

    @cached_property
    def porosity(self) -> Float32:
        """Share of pores in m3 m-3: 1 - bulk density / 2.65."""
        return np.asarray(np.clip(1 - self.bulk_density / 2.65, 0.35, 0.58), dtype=np.float32)

    def retention(self, head_mm: float) -> Float32:
        """Water content in m3 m-3 held against a suction head in mm (Cosby et al. 1984)."""
        saturated = 10.0 * 10 ** (1.88 - 0.0131 * self.sand)
        slope = 2.91 + 0.159 * self.clay
        held = self.porosity * np.minimum((saturated / head_mm) ** (1 / slope), 1)
        return held.astype(np.float32)

    @cached_property
    def field_capacity(self) -> Float32:
        """Water content at -33 kPa, m3 m-3."""
        return self.retention(3365.0)

    @cached_property
    def wilting_point(self) -> Float32:
        """Water content at -1500 kPa, m3 m-3."""
        return self.retention(152957.0)


def _cover(place: Place, v: Float64, u: Float64, hollow: Float32, height: Float32) -> npt.NDArray[
    np.uint8
]:  # fmt: skip
    """Land cover of dims (y, x)."""
    seed = place.seed
    cover = np.full(height.shape, CROP, dtype=np.uint8)
    character = place.character
    grass = Fractal(seed, "grass", 2500, 5, 0.6).on_axes(v, u)
    cover[grass > 0.55 - character.grass] = GRASS
    upland = (height - np.float32(character.base_elevation)) / np.float32(character.relief)
    forest = Fractal(seed, "forest", 3500, 6, 0.6).on_axes(v, u)
    cover[forest + 0.5 * upland > 1.0 - character.forest] = FOREST
    cover[Fractal(seed, "built", 1800, 4, 0.6).on_axes(v, u) > 2.1] = BUILT
    cover[Fractal(seed, "water", 2000, 4, 0.5).on_axes(v, u) + 0.6 * hollow > 2.1] = WATER
    return cover


def make_land(place: Place, lat: Float64, lon: Float64) -> Land:
    """Draw the land on a grid of latitudes and longitudes.

    Parameters
    ----------
    place : Place
    lat, lon : (y,), (x,) ndarray
        Degrees; usually `Place.axes`.

    Returns
    -------
    Land
    """
    seed, climate, character = place.seed, place.climate, place.character
    v, u = place.frame(lat, lon)
    height = place.elevation(lat, lon)
    depth = np.float32(character.relief * 12 / 95)
    hollow = np.clip((place.elevation(lat, lon, 4) - height) / depth, -1, 1)
    cover = _cover(place, v, u, hollow, height)
    patch = Patches(seed, "fields", 450).on_axes(v, u)

    coarse = Fractal(seed, "texture", 4000, 6, 0.6).on_axes(v, u)
    other = Fractal(seed, "clay", 4000, 6, 0.6).on_axes(v, u)
    dense = Fractal(seed, "density", 3000, 5, 0.6).on_axes(v, u)
    if character.regional:
        wide = np.float32(character.regional)
        coarse = coarse + wide * Fractal(seed, "regional texture", 15000).on_axes(v, u)
        other = other + wide * Fractal(seed, "regional clay", 15000).on_axes(v, u)
    sand = np.clip(character.sand + 13 * coarse - 3 * hollow, 8, 88)
    clay = np.clip(character.clay - 5 * coarse + 6 * other + 2 * hollow, 3, 55)
    clay = np.minimum(clay, 96 - sand)
    density = 1.36 + 0.003 * (sand - 45) + 0.06 * dense - 0.15 * (cover == FOREST)
    density = np.clip(density, 0.95, 1.7)

    first, second, third = (uniform(patch, number) for number in range(3))
    spread = np.select(
        [cover == CROP, cover == GRASS, cover == FOREST], [0.9, 0.3, 0.5], 0.3
    )  # of roughness between patches
    lowest = np.select([cover == CROP, cover == GRASS, cover == FOREST], [0.5, 0.6, 0.9], 0.6)
    roughness = lowest + spread * third

    summer, fallow = (first > 0.7) & (first <= 0.82), first > 0.82
    crop_rise = np.where(fallow, 0.12, 0.24 + 0.22 * second)
    crop_peak = np.where(summer, climate.warmest_day - 10, climate.crop_peak) + 24 * (third - 0.5)
    fine = 0.03 * Fractal(seed, "greenness", 600, 3, 0.7).on_axes(v, u)
    kinds = [cover == CROP, cover == GRASS, cover == FOREST, cover == BUILT]
    lowest_green = np.select(kinds, [0.15, 0.21 + 0.06 * second, 0.46 + 0.1 * second, 0.14], -0.1)
    rise = np.select(kinds, [crop_rise, 0.24 + 0.08 * second, np.full_like(second, 0.13), 0.1], 0)
    peak = np.select(
        kinds,
        [crop_peak, climate.grass_peak + 16 * (second - 0.5), climate.grass_peak + 20, 140],
        0,
    )
    if character.green != 1:
        lowest_green = np.where(cover == WATER, lowest_green, lowest_green * character.green)
        rise = rise * character.green
    season = np.select(kinds, [np.where(summer, 100.0, 125.0), 150.0, 190.0, 170.0], 150.0)
    lowest_green = lowest_green + np.where(cover == WATER, 0, fine)
    greenness = np.stack(
        [np.broadcast_to(f, height.shape) for f in (lowest_green, rise, peak, season)]
    )
    return Land(
        cover=cover,
        elevation=height,
        hollow=hollow.astype(np.float32),
        sand=sand.astype(np.float32),
        clay=clay.astype(np.float32),
        bulk_density=density.astype(np.float32),
        roughness=roughness.astype(np.float32),
        greenness=greenness.astype(np.float32),
    )


def ndvi(land: Land, date: np.datetime64) -> Float32:
    """NDVI of one day.

    Parameters
    ----------
    land : Land
    date : datetime64[D]

    Returns
    -------
    (y, x) ndarray of float32
        -0.2 to 1: a rise and a fall, both logistic, around the greenest day of the year.
    """
    lowest, rise, peak, season = land.greenness
    day = np.float32(day_of_year(np.array([date]))[0])
    half = np.float32(182.625)
    since = np.mod(day - peak + half, 2 * half) - half
    steep = np.float32(1 / 12)
    up = 1 / (1 + np.exp(-(since + season / 2) * steep))
    down = 1 / (1 + np.exp(-(since - season / 2) * steep))
    return np.asarray(np.clip(lowest + rise * (up - down), -0.2, 1), dtype=np.float32)
