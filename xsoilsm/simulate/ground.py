"""Outside the seven steps (simulate): terrain, soil, land cover and truth as files and items.

Forms follow `nasadem` and `esa-worldcover` of the Planetary Computer and the SoilGrids 2.0
layers; files hold windows of the real tiles, and their items say which. Writes; reads nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS

from xsoilsm.grid import grid_of, lonlat_to_xy
from xsoilsm.simulate.binning import Binning, outline
from xsoilsm.simulate.files import write_cog
from xsoilsm.simulate.items import COG, Catalogue, Json, projection
from xsoilsm.simulate.land import BUILT, WATER, Land, Place

__all__ = ["HOMOLOSINE", "write_cover", "write_soil", "write_terrain", "write_truth"]

Float32 = npt.NDArray[np.float32]

_POSTS = 3600  # per degree
HOMOLOSINE = "ESRI:54052"
"""Projection of SoilGrids."""


def write_terrain(catalogue: Catalogue, place: Place) -> None:
    """Write `nasadem`: whole metres at posts of one arc second, one window per degree tile."""
    pad = 0.02
    west, south, east, north = place.box(margin_km=2.0)
    for lat in range(int(np.floor(south - pad)), int(np.floor(north + pad)) + 1):
        for lon in range(int(np.floor(west - pad)), int(np.floor(east + pad)) + 1):
            top = min(int(np.ceil((north + pad) * _POSTS)), (lat + 1) * _POSTS)
            bottom = max(int(np.floor((south - pad) * _POSTS)), lat * _POSTS)
            left = max(int(np.floor((west - pad) * _POSTS)), lon * _POSTS)
            right = min(int(np.ceil((east + pad) * _POSTS)), (lon + 1) * _POSTS)
            height = np.empty((top - bottom + 1, right - left + 1), np.int16)
            lons = np.arange(left, right + 1) / _POSTS
            for first in range(0, height.shape[0], 1024):
                block = slice(first, min(first + 1024, height.shape[0]))
                lats = (top - np.arange(block.start, block.stop)) / _POSTS
                height[block] = np.rint(place.elevation(lats, lons))
            _write_terrain_tile(catalogue, (lat, lon), (top, left), height)


def _write_terrain_tile(
    catalogue: Catalogue,
    tile: tuple[int, int],
    corner: tuple[int, int],
    height: npt.NDArray[np.int16],
) -> None:
    lat, lon = tile
    north, east = "n" if lat >= 0 else "s", "e" if lon >= 0 else "w"
    name = f"NASADEM_HGT_{north}{abs(lat):02d}{east}{abs(lon):03d}"
    top, left = ((corner[0] + 0.5) / _POSTS, (corner[1] - 0.5) / _POSTS)
    transform = Affine(1 / _POSTS, 0, left, 0, -1 / _POSTS, top)
    geobox = GeoBox(height.shape, transform, "EPSG:4326")
    path = catalogue.root / "data" / "nasadem-cog" / "v001" / f"{name}.tif"
    write_cog(path, height, transform, "EPSG:4326", predictor="STANDARD")
    catalogue.add(
        "nasadem",
        name,
        geometry=outline(geobox, "EPSG:4326", 8),
        properties={
            "datetime": "2000-02-20T00:00:00Z",
            **projection(geobox),
            "proj:epsg": 4326,
        },
        assets={
            "elevation": {
                "href": catalogue.href(path),
                "type": COG,
                "roles": ["data"],
                "title": "Elevation",
            }
        },
        extensions=("projection-1.0",),
    )


def write_soil(catalogue: Catalogue, place: Place, land: Land) -> None:
    """Write SoilGrids 2.0 layers: g/kg and cg/cm3 on 250 m of the Homolosine projection.

    Pixels without soil (water, buildings) hold the nodata value.
    """
    size = 250.0
    binning = Binning(place, HOMOLOSINE, size, (0.0, 0.0))
    soil = (land.cover != WATER) & (land.cover != BUILT)
    row, column = binning.first
    transform = Affine(size, 0, column * size, 0, -size, -row * size)
    geobox = GeoBox(binning.shape, transform, HOMOLOSINE)
    values = {
        "sand": (land.sand * 10, "g/kg"),
        "clay": (land.clay * 10, "g/kg"),
        "bdod": (land.bulk_density * 100, "cg/cm3"),
    }
    assets: Json = {}
    for key, (field, unit) in values.items():
        mean = binning.mean(field, soil)
        data = np.where(np.isnan(mean), -32768, np.rint(mean)).astype(np.int16)
        path = catalogue.root / "data" / "soilgrids" / f"{key}_0-5cm_mean.tif"
        write_cog(path, data, transform, HOMOLOSINE, nodata=-32768, predictor="STANDARD")
        assets[key] = {
            "href": catalogue.href(path),
            "type": COG,
            "roles": ["data"],
            "title": f"{key}_0-5cm_mean",
            "raster:bands": [
                {"nodata": -32768, "data_type": "int16", "unit": unit, "spatial_resolution": 250}
            ],
        }
    catalogue.add(
        "soilgrids-2.0",
        "soilgrids-2.0-0-5cm-mean",
        geometry=outline(geobox, HOMOLOSINE, 6),
        properties={
            "datetime": "2020-01-01T00:00:00Z",
            **projection(geobox),
            "proj:epsg": None,
            "proj:wkt2": str(CRS.from_user_input(HOMOLOSINE).to_wkt()),
        },
        assets=assets,
        extensions=("projection", "raster"),
    )


_COVER_PIXELS = 4000  # per degree: 28 m; the real map has 12000
_COVER_TILE = 3  # degrees
_CLASSES = {
    10: "Tree cover",
    20: "Shrubland",
    30: "Grassland",
    40: "Cropland",
    50: "Built-up",
    60: "Bare / sparse vegetation",
    70: "Snow and ice",
    80: "Permanent water bodies",
    90: "Herbaceous wetland",
    95: "Mangroves",
    100: "Moss and lichen",
}


def write_cover(catalogue: Catalogue, place: Place, land: Land) -> None:
    """Write `esa-worldcover`: classes in degrees, one window per tile of three degrees."""
    grid, rows, columns = grid_of(place.geobox)
    west, south, east, north = place.box(margin_km=1.0)
    for lat in range(int(south // _COVER_TILE) * 3, int(np.ceil(north)), _COVER_TILE):
        for lon in range(int(west // _COVER_TILE) * 3, int(np.ceil(east)), _COVER_TILE):
            top = min(int(np.ceil(north * _COVER_PIXELS)), (lat + 3) * _COVER_PIXELS)
            bottom = max(int(np.floor(south * _COVER_PIXELS)), lat * _COVER_PIXELS)
            left = max(int(np.floor(west * _COVER_PIXELS)), lon * _COVER_PIXELS)
            right = min(int(np.ceil(east * _COVER_PIXELS)), (lon + 3) * _COVER_PIXELS)
            if top <= bottom or right <= left:
                continue
            lats = (top - np.arange(top - bottom) - 0.5) / _COVER_PIXELS
            lons = (left + np.arange(right - left) + 0.5) / _COVER_PIXELS
            x, _ = lonlat_to_xy(lons, np.zeros_like(lons))
            _, y = lonlat_to_xy(np.zeros_like(lats), lats)
            row, column = grid.index(np.full(y.shape, x[0]), y)[0], grid.index(x, y[:1])[1]
            data = land.cover[np.ix_(row - rows[0], column - columns[0])]
            _write_cover_tile(catalogue, (lat, lon), (top, left), data)


def _write_cover_tile(
    catalogue: Catalogue,
    tile: tuple[int, int],
    corner: tuple[int, int],
    data: npt.NDArray[np.uint8],
) -> None:
    lat, lon = tile
    place = f"{'N' if lat >= 0 else 'S'}{abs(lat):02d}{'E' if lon >= 0 else 'W'}{abs(lon):03d}"
    name = f"ESA_WorldCover_10m_2021_v200_{place}"
    top, left = corner[0] / _COVER_PIXELS, corner[1] / _COVER_PIXELS
    transform = Affine(1 / _COVER_PIXELS, 0, left, 0, -1 / _COVER_PIXELS, top)
    geobox = GeoBox(data.shape, transform, "EPSG:4326")
    path = catalogue.root / "data" / "esa-worldcover" / "v200" / "2021" / f"{name}_Map.tif"
    write_cog(path, data, transform, "EPSG:4326", nodata=0)
    grid = projection(geobox, full=False)
    catalogue.add(
        "esa-worldcover",
        name,
        geometry=outline(geobox, "EPSG:4326", 8),
        properties={
            "esa_worldcover:product_version": "2.0.0",
            "esa_worldcover:product_tile": place,
            "start_datetime": "2021-01-01T00:00:00Z",
            "end_datetime": "2021-12-31T23:59:59Z",
            "mission": "sentinel-1, sentinel-2",
            "platform": "sentinel-1a, sentinel-1b, sentinel-2a, sentinel-2b",
            "instruments": ["c-sar", "msi"],
            "proj:epsg": 4326,
            "grid:code": f"ESAWORLDCOVER-{place}",
            "datetime": None,
        },
        assets={
            "map": {
                "href": catalogue.href(path),
                "type": COG,
                "title": "Land Cover Classes",
                "description": "Classes of land cover; pixels are larger than those of the map.",
                "raster:bands": [
                    {
                        "name": "Band1",
                        "description": "Classification values",
                        "nodata": 0,
                        "sampling": "area",
                        "data_type": "uint8",
                        "spatial_resolution": 28,
                    }
                ],
                "classification:classes": [
                    {"value": value, "description": text} for value, text in _CLASSES.items()
                ],
                "proj:transform": grid["proj:transform"],
                "proj:shape": grid["proj:shape"],
                "roles": ["data"],
            }
        },
        extensions=("projection", "grid", "raster", "classification"),
    )


def write_truth(catalogue: Catalogue, place: Place, moisture: Float32, time: np.datetime64) -> None:
    """Write `simulated-truth`: daily mean soil moisture on the region's cells.

    Parameters
    ----------
    catalogue : Catalogue
    place : Place
    moisture : (y, x) ndarray
        m3 m-3 on `Place.geobox`; NaN on open water.
    time : datetime64
        Instant (UTC) of the acquisition whose date it is.
    """
    geobox = place.truth_geobox
    _, rows, columns = grid_of(geobox)
    _, all_rows, all_columns = grid_of(place.geobox)
    window = (
        slice(rows[0] - all_rows[0], rows[1] - all_rows[0]),
        slice(columns[0] - all_columns[0], columns[1] - all_columns[0]),
    )
    stamp = str(time.astype("datetime64[s]")).replace("-", "").replace(":", "")
    path = catalogue.root / "truth" / f"soil_moisture_{stamp}.tif"
    data = np.ascontiguousarray(moisture[window], dtype=np.float32)
    write_cog(path, data, geobox.affine, "EPSG:6933", nodata=np.nan, predictor="FLOATING_POINT")
    date = time.astype("datetime64[D]")
    catalogue.add(
        "simulated-truth",
        f"soil_moisture_{stamp}",
        geometry=outline(geobox, "EPSG:6933", 6),
        properties={
            "datetime": str(time.astype("datetime64[s]")) + "Z",
            "start_datetime": f"{date}T00:00:00Z",
            "end_datetime": f"{date}T23:59:59Z",
            **projection(geobox),
            "proj:epsg": 6933,
        },
        assets={
            "soil_moisture": {
                "href": catalogue.href(path),
                "type": COG,
                "roles": ["data"],
                "title": "Daily mean volumetric soil moisture of the top 5 cm",
                "raster:bands": [
                    {
                        "nodata": "nan",
                        "data_type": "float32",
                        "unit": "m3 m-3",
                        "spatial_resolution": int(round(abs(geobox.affine.a), -1)),
                    }
                ],
            }
        },
        extensions=("projection", "raster"),
    )
