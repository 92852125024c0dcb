from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sources_world import BBOX, World, cell_polygons

from xsoilsm.catalog import Segment, open_catalog
from xsoilsm.grid import ease2_geobox
from xsoilsm.sources.access.search import cell_lonlat
from xsoilsm.sources.ground import terrain

GEOBOX = ease2_geobox(BBOX, "1km")
METRE = 180 / np.pi / terrain.EARTH_RADIUS  # degrees of latitude in a metre


def read(world: World, geobox: Any = GEOBOX, on_error: str = "raise") -> dict[str, Any]:
    world.write()
    catalog = open_catalog(world.catalog_file())
    (source,) = catalog.sources["terrain"]
    segment = Segment(source=source, start=date(1950, 1, 1), end=date(2100, 1, 1))
    tiles = tuple(terrain.find_dem(catalog, segment, BBOX))
    bands = terrain.read_terrain(tiles, geobox, on_error)
    assert bands.dtype == np.float32
    return dict(zip(terrain.BANDS, bands, strict=True))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@given(
    slope=st.floats(0.1, 60.0),
    aspect=st.floats(0, 359.9),
    lat=st.floats(-84, 84),
)
def test_horn_on_a_plane_in_metres(slope: float, aspect: float, lat: float) -> None:
    """A plane whose slope and aspect are known, sampled on degrees anywhere."""
    step = 1 / 3600
    row, column = np.mgrid[0:5, 0:6].astype(float)
    dx = terrain.EARTH_RADIUS * np.cos(np.deg2rad(lat)) * np.deg2rad(step)
    dy = terrain.EARTH_RADIUS * np.deg2rad(step)
    east, north = column * dx, -row * dy
    direction = np.deg2rad(aspect)
    downhill = east * np.sin(direction) + north * np.cos(direction)
    elevation = 1000 - np.tan(np.deg2rad(slope)) * downhill
    found = terrain.horn(elevation, dx, dy)
    assert found.shape == (3, 3, 4)
    np.testing.assert_allclose(found[0], slope, rtol=1e-4)
    np.testing.assert_allclose(found[1], np.sin(direction), atol=1e-4)
    np.testing.assert_allclose(found[2], np.cos(direction), atol=1e-4)


def test_horn_weighs_like_horn() -> None:
    elevation = np.array([[1.0, 2, 4], [3, 9, 8], [7, 5, 6]])
    east = ((4 + 2 * 8 + 6) - (1 + 2 * 3 + 7)) / 80
    north = ((1 + 2 * 2 + 4) - (7 + 2 * 5 + 6)) / 80
    found = terrain.horn(elevation, 10.0, 10.0)[:, 0, 0]
    np.testing.assert_allclose(found[0], np.degrees(np.arctan(np.hypot(east, north))), rtol=1e-6)
    aspect = np.degrees(np.arctan2(found[1], found[2])) % 360
    np.testing.assert_allclose(aspect, np.degrees(np.arctan2(-east, -north)) % 360, rtol=1e-5)


def test_level_ground_faces_north() -> None:
    slope, sine, cosine = terrain.horn(np.full((4, 4), 7.0), 30.0, 30.0)
    np.testing.assert_array_equal(slope, 0)
    np.testing.assert_array_equal(sine, 0)
    np.testing.assert_array_equal(cosine, 1)


def test_cells_of_a_plane(world: World) -> None:
    """Downhill to the south-west at 10 degrees, in metres at the middle latitude."""
    rise = np.tan(np.deg2rad(10.0)) * np.sqrt(0.5)
    scale = np.cos(np.deg2rad(43.5)) / METRE
    world.dem(lambda lon, lat: rise * ((lon - 5.0) * scale + (lat - 43.5) / METRE) + 500)
    result = read(world)
    np.testing.assert_allclose(result["slope"], 10.0, atol=5e-3)
    np.testing.assert_allclose(result["aspect_sin"], -np.sqrt(0.5), atol=5e-4)
    np.testing.assert_allclose(result["aspect_cos"], -np.sqrt(0.5), atol=5e-4)
    lon, lat = np.meshgrid(*cell_lonlat(GEOBOX))
    expected = rise * ((lon - 5.0) * scale + (lat - 43.5) / METRE) + 500
    np.testing.assert_allclose(result["elevation"], expected, atol=0.1)


def test_components_of_the_aspect_are_averaged(world: World) -> None:
    """A ridge: the sine of east and west slopes cancels, their angle would not."""
    lon, _ = cell_lonlat(GEOBOX)
    world.dem(lambda x, y: 900 - 20000 * abs(x - lon[1]) + 0 * y)
    result = read(world)
    np.testing.assert_allclose(result["aspect_sin"][:, 1], 0, atol=0.05)
    np.testing.assert_allclose(result["aspect_sin"][:, 0], -1, atol=1e-3)
    np.testing.assert_allclose(result["aspect_sin"][:, 2], 1, atol=1e-3)
    assert (result["slope"][:, 1] > 10).all()


@pytest.mark.parametrize("shared_line", [True, False])
def test_no_seam_between_tiles(world: World, tmp_path: Path, shared_line: bool) -> None:
    """Tiles that share a line of pixels (NASADEM) and such that do not (Copernicus)."""

    def hills(lon: Any, lat: Any) -> Any:
        return 300 + 80 * np.sin(lon * 900) * np.cos(lat * 1100)

    step = 1 / 3600
    middle = 5.005
    gap = 0 if shared_line else step
    world.dem(hills, (4.9, 43.4, middle, 43.6))
    world.dem(hills, (middle + gap, 43.4, 5.1, 43.6))
    whole = World(tmp_path / "whole")
    whole.dem(hills, (4.9, 43.4, 5.1, 43.6))
    one, two = read(whole), read(world)
    for name in terrain.BANDS:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5, atol=1e-5)


def test_chunks_do_not_matter(world: World) -> None:
    world.dem(lambda lon, lat: 300 + 80 * np.sin(lon * 900) * np.cos(lat * 1100))
    whole = read(world)
    parts = [read(world, GEOBOX[rows]) for rows in (np.s_[:1, :], np.s_[1:, :])]
    for name in terrain.BANDS:
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(joined, whole[name], rtol=1e-6, atol=1e-7)


def test_voids_do_not_count(world: World) -> None:
    def voids(lon: Any, lat: Any) -> Any:
        height = 250.0 + 0 * lon + 0 * lat
        height[::3, ::3] = -32768
        return height

    world.dem(voids)
    result = read(world)
    np.testing.assert_allclose(result["elevation"], 250.0, rtol=1e-6)


def test_unreadable_tiles_leave_their_cells_empty(world: World) -> None:
    world.dem(lambda lon, lat: 100.0 + 0 * lon + 0 * lat, (4.9, 43.4, 5.001, 43.6))
    world.dem(lambda lon, lat: 100.0 + 0 * lon + 0 * lat, (5.001, 43.4, 5.1, 43.6))
    (world.folder / "data" / "dem_1.tif").unlink()
    with pytest.raises(OSError, match="dem_1"):
        read(world)
    elevation = read(world, on_error="flag")["elevation"]
    assert np.isfinite(elevation[:, 0]).all()
    assert np.isnan(elevation[:, -1]).all()


def test_a_real_elevation_model(shared: Path, world: World) -> None:
    """Elevation against exactextract, slope against a plain loop in local metres."""
    import rasterio
    from exactextract import exact_extract
    from exactextract.raster import NumPyRasterSource

    file = shared / "data" / "dem" / "Rome-30m-DEM.tif"
    with rasterio.open(file) as image:
        height, transform = image.read(1).astype(float), image.transform
        west, south, east, north = image.bounds
    bounds = (west + 0.02, south + 0.02, west + 0.06, south + 0.06)
    geobox = ease2_geobox(bounds, "1km")
    world.dem(lambda lon, lat: 0 * lon * lat)
    item = world.items["nasadem"][0]
    item["assets"]["elevation"]["href"] = str(file)
    item["geometry"], item["bbox"] = None, [west, south, east, north]
    world.write()
    catalog = open_catalog(world.catalog_file())
    (source,) = catalog.sources["terrain"]
    segment = Segment(source=source, start=date(1950, 1, 1), end=date(2100, 1, 1))
    tiles = tuple(terrain.find_dem(catalog, segment, bounds))
    result = terrain.read_terrain(tiles, geobox, "raise")
    polygons = cell_polygons(geobox, "EPSG:4326")

    def means(values: Any) -> Any:
        raster = NumPyRasterSource(values, xmin=west, ymin=south, xmax=east, ymax=north)
        found = exact_extract(raster, polygons, ["mean"])
        return np.array([f["properties"]["mean"] for f in found], float).reshape(geobox.shape)

    np.testing.assert_allclose(result[0], means(height), rtol=1e-4, atol=0.01)
    lat = transform.f + transform.e * (np.arange(height.shape[0]) + 0.5)
    dx = terrain.EARTH_RADIUS * np.cos(np.deg2rad(lat)) * np.deg2rad(transform.a)
    dy = terrain.EARTH_RADIUS * np.deg2rad(-transform.e)
    padded = np.pad(height, 1, mode="edge")
    gx = np.zeros_like(height)
    gy = np.zeros_like(height)
    for di, weight in ((0, 1), (1, 2), (2, 1)):
        rows = slice(di, di + height.shape[0])
        gx += weight * (padded[rows, 2:] - padded[rows, :-2])
        columns = slice(di, di + height.shape[1])
        gy += weight * (padded[:-2, columns] - padded[2:, columns])
    slope = np.degrees(np.arctan(np.hypot(gx / (8 * dx[:, None]), gy / (8 * dy))))
    np.testing.assert_allclose(result[1], means(slope), rtol=1e-4, atol=1e-3)


# --- several models -----------------------------------------------------------------------------

COPERNICUS = {"collection": "cop-dem-glo-30", "asset": "data"}


def plane(lon: Any, lat: Any) -> Any:
    return 700 + 4000 * (lon - 5.0) - 2500 * (lat - 43.5)


def read_both(world: World, geobox: Any = GEOBOX, on_error: str = "raise") -> dict[str, Any]:
    """Read with Copernicus behind NASADEM, as in the catalog of the Planetary Computer."""
    world.write()
    catalog = open_catalog(world.catalog_file())
    (source,) = catalog.sources["terrain"]
    band = source.elevation.model_copy(update={"asset": "data", "nodata": None})
    other = source.model_copy(update={"collection": "cop-dem-glo-30", "elevation": band})
    tiles = tuple(
        tile
        for rank, model in enumerate((source, other))
        for tile in terrain.find_dem(
            catalog, Segment(source=model, start=date(1950, 1, 1), end=date(2100, 1, 1)), BBOX, rank
        )
    )
    return dict(zip(terrain.BANDS, terrain.read_terrain(tiles, geobox, on_error), strict=True))


def expected_plane(world: World) -> dict[str, Any]:
    whole = World(world.folder / "whole")
    whole.dem(plane)
    return read(whole)


def assert_plane(result: dict[str, Any], world: World) -> None:
    expected = expected_plane(world)
    for name in ("elevation", "slope", "aspect_sin", "aspect_cos"):
        np.testing.assert_allclose(result[name], expected[name], rtol=2e-4, atol=2e-3)


@pytest.mark.parametrize("width", [1.0, 1.5])
def test_voids_are_filled_from_the_next_model_without_a_seam(world: World, width: float) -> None:
    """Also where its pixels are wider, as those of Copernicus are north of 50 degrees."""
    lon, lat = cell_lonlat(GEOBOX)

    def with_void(x: Any, y: Any) -> Any:
        return np.where((x > lon[1]) & (y < lat[1]) & (x < lon[2]), -32768, plane(x, y))

    world.dem(with_void)
    world.dem(plane, width=width, **COPERNICUS)
    result = read_both(world)
    assert_plane(result, world)
    filled = result["elevation_filled"]
    assert filled[-1, 1] == pytest.approx(0.5, abs=0.05)
    assert filled[1, 1] == pytest.approx(0.25, abs=0.05)
    np.testing.assert_array_equal(filled[:, 0], 0)
    np.testing.assert_array_equal(filled[0], 0)


@pytest.mark.parametrize("width", [1.0, 1.5, 2.0])
def test_where_one_model_ends_the_next_goes_on(world: World, width: float) -> None:
    """As at 60 degrees north, where NASADEM ends."""
    _, lat = cell_lonlat(GEOBOX)
    edge = np.floor(lat[1] * 3600) / 3600
    world.dem(plane, (4.9, 43.4, 5.1, edge))
    world.dem(plane, (4.9, 43.4, 5.1, edge), width=width, **COPERNICUS)
    world.dem(plane, (4.9, edge + 1 / 3600, 5.1, 43.6), width=width, **COPERNICUS)
    result = read_both(world)
    assert_plane(result, world)
    filled = result["elevation_filled"]
    np.testing.assert_allclose(filled[0], 1, atol=1e-6)
    np.testing.assert_allclose(filled[1], 0.5, atol=0.05)
    np.testing.assert_allclose(filled[2:], 0, atol=1e-6)


def test_a_model_that_is_not_needed_is_not_opened(world: World) -> None:
    world.dem(plane)
    world.dem(plane, **COPERNICUS)
    (world.folder / "data" / "cop-dem-glo-30_dem_0.tif").unlink()
    result = read_both(world)
    np.testing.assert_array_equal(result["elevation_filled"], 0)


def test_an_unreadable_model_is_replaced_and_marked(world: World) -> None:
    world.dem(plane)
    world.dem(plane, **COPERNICUS)
    file = world.folder / "data" / "dem_0.tif"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(OSError, match="dem_0"):
        read_both(world)
    result = read_both(world, on_error="flag")
    np.testing.assert_allclose(result["elevation"], expected_plane(world)["elevation"], rtol=1e-5)
    np.testing.assert_allclose(result["elevation_filled"], 1)


def test_chunks_do_not_matter_with_several_models(world: World) -> None:
    lon, lat = cell_lonlat(GEOBOX)

    def holes(x: Any, y: Any) -> Any:
        height = 300 + 80 * np.sin(x * 900) * np.cos(y * 1100)
        return np.where(np.hypot(x - lon[1], y - lat[1]) < 0.004, -32768, height)

    world.dem(holes)
    world.dem(lambda x, y: 310 + 80 * np.sin(x * 900) * np.cos(y * 1100), width=1.5, **COPERNICUS)
    whole = read_both(world)
    parts = [read_both(world, GEOBOX[rows]) for rows in (np.s_[:1, :], np.s_[1:, :])]
    for name in terrain.BANDS:
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(joined, whole[name], rtol=1e-5, atol=1e-6)


def test_a_cube_tells_which_models_it_took(world: World) -> None:
    import yaml

    from xsoilsm.sources.ground.static import find_static

    world.dem(plane)
    world.dem(plane, **COPERNICUS)
    world.write()
    file = world.catalog_file()
    content = yaml.safe_load(file.read_text())
    (first,) = content["sources"]["terrain"]
    elevation = {"asset": "data", "units": "m"}
    second = first | {"collection": "cop-dem-glo-30", "elevation": elevation, "datum": "EGM2008"}
    content["sources"]["terrain"] = [first | {"datum": "EGM96"}, second]
    file.write_text(yaml.safe_dump(content))
    found = find_static(open_catalog(file), "terrain", BBOX)
    assert found is not None
    assert found.notes["elevation"] == {
        "models": "nasadem > cop-dem-glo-30",
        "vertical_datum": "nasadem: EGM96; cop-dem-glo-30: EGM2008",
    }
    assert [tile.rank for tile in found.records] == [0, 1]
    assert [source.collection for source in found.sources] == ["nasadem", "cop-dem-glo-30"]
