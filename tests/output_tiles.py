"""Tiles of a small map, for the tests of what is made of them."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from xsoilsm.cog import write_cog
from xsoilsm.cube import spatial_coords
from xsoilsm.grid import get_grid, tiles
from xsoilsm.outputs.pieces import Acquisition, InputItem, Piece
from xsoilsm.quality import flag_attributes

ABOUT = {
    "title": "Soil moisture from Sentinel-1",
    "source": "xsoilsm 0.1.0, ensemble densesm-e-coarse",
    "ensemble": "densesm-e-coarse",
    "ensemble_digest": "d" * 64,
    "resolution": "1km",
    "references": "Zhu et al. (2024)",
    "licence": "sentinel-1-rtc: CC-BY-4.0; modis-13Q1-061: none",
}
MOISTURE = {
    "units": "m3 m-3",
    "standard_name": "volume_fraction_of_condensed_water_in_soil",
    "long_name": "volumetric soil moisture of the top 5 cm, daily mean",
    "ancillary_variables": "soil_moisture_std quality_flag",
}
SPREAD = {"units": "m3 m-3", "long_name": "spread of the members"}

DESCENDING = Acquisition(
    "S1A_20200405T062004_D052",
    np.datetime64("2020-04-05T06:20:04"),
    platform="sentinel-1a",
    orbit_state="descending",
    relative_orbit=52,
    items=(
        InputItem("S1A_scene", "https://stac.example/collections/s1/items/S1A_scene", "s1"),
        InputItem("MOD13Q1_a"),
    ),
)
ASCENDING = Acquisition(
    "S1B_20200406T181002_A074",
    np.datetime64("2020-04-06T18:10:02"),
    platform="sentinel-1b",
    orbit_state="ascending",
    relative_orbit=74,
)
WEEK = Acquisition(
    "composite-20200401-P8D",
    np.datetime64("2020-04-01"),
    end=np.datetime64("2020-04-09"),
    period="P8D",
)


def region(shape: tuple[int, int] = (70, 90), res: str = "1km") -> GeoBox:
    """Block of cells that cuts through tiles on all sides."""
    return get_grid(res).geobox((3005, 3005 + shape[0]), (17010, 17010 + shape[1]))


def truth(acquisition: Acquisition, geobox: GeoBox) -> dict[str, np.ndarray]:
    """Whole maps of an acquisition; a tenth of the moisture is missing."""
    rng = np.random.default_rng(int(acquisition.start.astype("datetime64[s]").astype(np.int64)))
    moisture = rng.uniform(0, 0.6, geobox.shape).astype(np.float32)
    missing = rng.random(geobox.shape) < 0.1
    moisture[missing] = np.nan
    spread = rng.uniform(0, 0.05, geobox.shape).astype(np.float32)
    spread[missing] = np.nan
    flags = rng.choice(np.array([0, 8, 32, 40], np.uint32), geobox.shape)
    flags[missing] = 4
    return {"soil_moisture": moisture, "soil_moisture_std": spread, "quality_flag": flags}


@cache
def pieces_of_two() -> tuple[Piece, ...]:
    """Tiles of two acquisitions, written once for all tests; they change none of them."""
    return tuple(write_tiles(Path(tempfile.mkdtemp(prefix="tiles-", dir=os.environ["HOME"]))))


def write_tiles(
    folder: Path,
    acquisitions: tuple[Acquisition, ...] = (DESCENDING, ASCENDING),
    geobox: GeoBox | None = None,
    size: int = 40,
) -> list[Piece]:
    """Write all tiles of a map as OUT/tiles/ACQUISITION/TILE/VARIABLE.tif."""
    geobox = region() if geobox is None else geobox
    pieces = []
    for acquisition in acquisitions:
        whole = truth(acquisition, geobox)
        for tile in tiles(geobox, size):
            top = round((geobox.affine.f - tile.geobox.affine.f) / geobox.affine.a)
            left = round((tile.geobox.affine.c - geobox.affine.c) / geobox.affine.a)
            rows = slice(top, top + tile.geobox.shape[0])
            columns = slice(left, left + tile.geobox.shape[1])
            for name, about in (
                ("soil_moisture", MOISTURE),
                ("soil_moisture_std", SPREAD),
                ("quality_flag", flag_attributes()),
            ):
                told = {
                    "time_utc": str(acquisition.start),
                    "period": acquisition.period,
                    "tile": tile.name,
                    "input_items": f"S1_{tile.row} common",
                }
                orbit = {
                    "platform": acquisition.platform,
                    "orbit_state": acquisition.orbit_state,
                    "relative_orbit": str(acquisition.relative_orbit or ""),
                }
                layer = xr.DataArray(
                    whole[name][rows, columns],
                    spatial_coords(tile.geobox) | {k: ((), v) for k, v in orbit.items()},
                    ("y", "x"),
                    name,
                    ABOUT | told | about,
                )
                path = folder / "tiles" / acquisition.id / tile.name / f"{name}.tif"
                write_cog(layer, path)
                pieces.append(Piece(path, tile.geobox, name, acquisition))
    return pieces
