"""Outside the seven steps (simulate): vegetation composites as files and items.

Forms follow `modis-13Q1-061` of the Planetary Computer: windows of the sinusoidal tiles, Terra and
Aqua by turns, no declared nodata, no platform, no EPSG code. Writes; reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox

from xsoilsm.simulate.binning import Binning, outline
from xsoilsm.simulate.climate import Dates, day_of_year
from xsoilsm.simulate.files import write_cog
from xsoilsm.simulate.items import COG, Catalogue, Json, polygon, projection
from xsoilsm.simulate.land import Land, Place, ndvi
from xsoilsm.simulate.noise import Fractal, generator

__all__ = ["NDVI_FILL", "NDVI_SCALE", "SINUSOIDAL", "write_vegetation"]

Float32 = npt.NDArray[np.float32]

SINUSOIDAL = (
    'PROJCS["unnamed",GEOGCS["Unknown datum based upon the custom spheroid",'
    'DATUM["Not specified (based on custom spheroid)",'
    'SPHEROID["Custom spheroid",6371007.181,0]],PRIMEM["Greenwich",0],'
    'UNIT["degree",0.0174532925199433,AUTHORITY["EPSG","9122"]]],PROJECTION["Sinusoidal"],'
    'PARAMETER["longitude_of_center",0],PARAMETER["false_easting",0],'
    'PARAMETER["false_northing",0],UNIT["Meter",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
)
"""Projection of the MODIS grid, in the words of the real items' ``proj:wkt2``."""

_TILE, _TILE_PIXELS = 1111950.519667, 4800
_MODIS_WEST, _MODIS_NORTH = -20015109.354, 10007554.677
NDVI_FILL, NDVI_SCALE = -3000, 1e-4


@dataclass(frozen=True)
class _Window:
    """The part of one tile of the MODIS grid that lies in the landscape.

    Parameters
    ----------
    h, v : int
        Horizontal and vertical number of the tile.
    rows, columns : slice
        Its place in the block of pixels that covers the land.
    geobox : GeoBox
    geometry : dict
        Outline in degrees.
    """

    h: int
    v: int
    rows: slice
    columns: slice
    geobox: GeoBox
    geometry: Json


def _modis_windows(binning: Binning) -> list[_Window]:
    """Windows of the tiles that a block of pixels touches, on the exact tile grid."""
    (row, column), (height, width) = binning.first, binning.shape
    size = _TILE / _TILE_PIXELS
    result = []
    for v in range(row // _TILE_PIXELS, (row + height - 1) // _TILE_PIXELS + 1):
        for h in range(column // _TILE_PIXELS, (column + width - 1) // _TILE_PIXELS + 1):
            top, left = max(v * _TILE_PIXELS, row), max(h * _TILE_PIXELS, column)
            bottom = min((v + 1) * _TILE_PIXELS, row + height)
            right = min((h + 1) * _TILE_PIXELS, column + width)
            west = _MODIS_WEST + h * _TILE + (left - h * _TILE_PIXELS) * size
            north = _MODIS_NORTH - v * _TILE - (top - v * _TILE_PIXELS) * size
            transform = Affine(size, 0, west, 0, -size, north)
            geobox = GeoBox((bottom - top, right - left), transform, SINUSOIDAL)
            result.append(
                _Window(
                    h,
                    v,
                    slice(top - row, bottom - row),
                    slice(left - column, right - column),
                    geobox,
                    outline(geobox, SINUSOIDAL, 4),
                )
            )
    return result


def write_vegetation(
    catalogue: Catalogue,
    place: Place,
    land: Land,
    starts: Dates,
    *,
    greenness: Callable[[np.datetime64], Float32] | None = None,
    threads: int = 1,
) -> None:
    """Write `modis-13Q1-061`: 16-day composites of Terra and Aqua by turns, every eight days.

    Parameters
    ----------
    catalogue : Catalogue
    place : Place
    land : Land
    starts : ndarray of datetime64[D]
        First days of composites.
    greenness : callable, optional
        NDVI (y, x) of a date; that of the land's mean year where it is left out.
    threads : int, default 1
        The files do not depend on it.
    """
    origin = (_MODIS_WEST, _MODIS_NORTH)
    binning = Binning(place, SINUSOIDAL, _TILE / _TILE_PIXELS, origin)
    windows = _modis_windows(binning)
    frame = place.frame(*place.axes)
    seen = greenness or (lambda date: ndvi(land, date))
    jobs = []

    def compose(start: np.datetime64) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int8]]:
        number = int((start - np.datetime64("1900-01-01")).astype(np.int64))
        rng = generator(place.seed, "composite", number)
        green = binning.mean(seen(start + 8))
        clouds = Fractal(place.seed, "clouds", 8000, 4, 0.6, (number,)).on_axes(*frame)
        cloudy = binning.mean(clouds)
        green = green + rng.normal(0, 0.008, green.shape)
        reliability = np.zeros(green.shape, np.int8)
        reliability[cloudy > 1.4] = 1
        reliability[cloudy > 2.2] = 3
        green = green * np.select([reliability == 3, reliability == 1], [0.75, 0.96], 1.0)
        fill = np.isnan(green)
        inside = np.flatnonzero(~fill)
        fill.flat[rng.choice(inside, max(1, inside.size // 5000), replace=False)] = True
        scaled = np.rint(np.clip(green, -0.2, 1.0) / NDVI_SCALE)
        reliability[fill] = -1
        return np.where(fill, NDVI_FILL, scaled).astype(np.int16), reliability

    def write(start: np.datetime64) -> list[tuple[_Window, str, dict[str, Path]]]:
        data, reliability = compose(start)
        written = []
        for window in windows:
            part = window.rows, window.columns
            if (data[part] == NDVI_FILL).all():
                continue
            name, folder = _composite_name(start, window)
            files = {}
            for key, layer in (("NDVI", data), ("pixel_reliability", reliability)):
                files[key] = catalogue.root / folder / f"{name}_250m_16_days_{key}.tif"
                affine = window.geobox.affine
                write_cog(files[key], layer[part], affine, SINUSOIDAL, predictor="STANDARD")
            written.append((window, name, files))
        return written

    with ThreadPoolExecutor(threads) as pool:
        jobs = list(pool.map(write, starts))
    for start, written in zip(starts, jobs, strict=True):
        for window, name, files in written:
            _composite_item(catalogue, start, window, name, files)


def _year_day(date: np.datetime64) -> str:
    """Write a date as year and day of year, seven digits."""
    return f"{str(date)[:4]}{day_of_year(np.array([date]))[0]:03d}"


def _composite_name(start: np.datetime64, window: _Window) -> tuple[str, str]:
    """Name a composite, and its folder as in the provider's archive."""
    product = "MOD13Q1" if day_of_year(np.array([start]))[0] % 16 == 1 else "MYD13Q1"
    tile = f"h{window.h:02d}v{window.v:02d}"
    name = f"{product}.A{_year_day(start)}.{tile}.061.{_year_day(start + 22)}120000"
    folder = f"data/modis-061-cogs/{product}/{window.h:02d}/{window.v:02d}/{_year_day(start)}"
    return name, folder


def _composite_item(
    catalogue: Catalogue, start: np.datetime64, window: _Window, name: str, files: dict[str, Path]
) -> None:
    grid = projection(window.geobox, full=False)
    left, bottom, right, top = grid["proj:bbox"]
    ring = [(right, bottom), (right, top), (left, top), (left, bottom), (right, bottom)]
    green = {"unit": "NDVI", "scale": 0.0001, "data_type": "int16", "spatial_resolution": 250}
    rank = {"unit": "Rank", "data_type": "int8", "spatial_resolution": 250}
    titles = {
        "NDVI": ("16 day NDVI", green),
        "pixel_reliability": ("Quality reliability of VI pixel", rank),
    }
    assets: Json = {
        f"250m_16_days_{key}": {
            "href": catalogue.href(path),
            "type": COG,
            "roles": ["data"],
            "title": titles[key][0],
            "raster:bands": [titles[key][1]],
        }
        for key, path in files.items()
    }
    assets["250m_16_days_pixel_reliability"]["classification:classes"] = [
        {"value": value, "description": text}
        for value, text in enumerate(("Good", "Marginal", "Snow or ice", "Cloudy"))
    ]
    made = start + 22
    catalogue.add(
        "modis-13Q1-061",
        name,
        geometry=window.geometry,
        properties={
            "created": f"{made}T12:00:00Z",
            "updated": f"{made}T12:00:00.000000Z",
            "datetime": None,
            "platform": "",
            "proj:epsg": None,
            "proj:wkt2": SINUSOIDAL,
            "proj:shape": grid["proj:shape"],
            "instruments": [],
            "end_datetime": f"{start + 15}T23:59:59Z",
            "modis:tile-id": f"51{window.h:03d}{window.v:03d}",
            "proj:geometry": polygon(ring),
            "proj:transform": grid["proj:transform"],
            "start_datetime": f"{start}T00:00:00Z",
            "modis:vertical-tile": window.v,
            "modis:horizontal-tile": window.h,
        },
        assets=assets,
        extensions=("projection", "raster", "classification"),
    )
