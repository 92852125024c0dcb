"""Sigma nought from terrain-flattened gamma nought: three forms, and what tells them apart."""

from __future__ import annotations

import pickle
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer
from sources_world import BBOX, ORIGIN, UTM, World, cell_polygons, incidence, write_tiff

from xsoilsm.catalog import CatalogError, Segment, open_catalog
from xsoilsm.cube import SourceFlag
from xsoilsm.grid import ease2_geobox
from xsoilsm.loading import load_cube
from xsoilsm.simulate.land import Place
from xsoilsm.simulate.orbit import Overpass, overpasses
from xsoilsm.simulate.scene import GEOID
from xsoilsm.sources.access.links import Access
from xsoilsm.sources.access.search import cell_lonlat
from xsoilsm.sources.ground import terrain
from xsoilsm.sources.sentinel1 import rtc
from xsoilsm.sources.sentinel1.acquisitions import Acquisition, find_acquisitions
from xsoilsm.sources.sentinel1.annotation import IncidenceSurface, read_incidence, read_look
from xsoilsm.sources.sentinel1.flattening import LIMITS, slope_factor

GEOBOX = ease2_geobox(BBOX, "1km")
METRE = 180 / np.pi / terrain.EARTH_RADIUS  # degrees of latitude in a metre
CENTRE = (-5.4, 41.3)


# --- the formula --------------------------------------------------------------------------------


@given(theta=st.floats(29.0, 46.0), slope=st.floats(-30.0, 18.0))
def test_factor_is_that_of_the_range_slope(theta: float, slope: float) -> None:
    rise = np.tan(np.deg2rad(slope))
    factor, beyond = slope_factor(np.array([theta]), np.array([rise]))
    expected = np.cos(np.deg2rad(theta)) * (
        np.tan(np.deg2rad(90 - theta + slope)) / np.tan(np.deg2rad(90 - theta))
    )
    assert factor[0] == pytest.approx(expected, rel=1e-9)
    assert not beyond[0]


def test_level_ground_gives_the_cosine_and_cliffs_are_held_at_the_limits() -> None:
    theta = np.full(4, 40.0)
    rise = np.tan(np.deg2rad([0.0, 35.0, 60.0, -60.0]))
    factor, beyond = slope_factor(theta, rise)
    assert factor[0] == pytest.approx(np.cos(np.deg2rad(40)))
    assert beyond.tolist() == [False, True, True, True]
    sine = np.sin(np.deg2rad(40))
    assert factor[1] == factor[2] == pytest.approx(sine / np.tan(np.deg2rad(LIMITS[0])))
    assert factor[3] == pytest.approx(sine / np.tan(np.deg2rad(LIMITS[1])))


def ratio_by_geometry(
    one: Overpass, lon: Any, lat: Any, heights: Any
) -> tuple[Any, dict[str, Any]]:
    """Area facing the radar over area in the image, relative to level ground.

    Worked out from the places of the corners of quadrilaterals in space and in the image, with
    nothing but range and zero Doppler; gamma nought times this and the level ground's factor is
    beta nought.
    """
    to_earth = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
    mesh = np.meshgrid(lon, lat)

    def areas(height: Any) -> tuple[Any, Any]:
        seen = one.geometry.locate(*mesh, height + GEOID)
        point = np.stack(to_earth.transform(*mesh, height + GEOID), axis=-1)
        satellite, _, _ = one.geometry.state(seen.time)
        look = satellite - point
        look = middle(look / np.linalg.norm(look, axis=-1, keepdims=True))
        surface = 0.5 * np.cross(point[1:, 1:] - point[:-1, :-1], point[:-1, 1:] - point[1:, :-1])
        image = np.stack([seen.time * 6800.0, seen.slant_range], axis=-1)
        first, second = image[1:, 1:] - image[:-1, :-1], image[:-1, 1:] - image[1:, :-1]
        flat = 0.5 * (first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0])
        return np.abs((surface * look).sum(axis=-1)), flat

    facing, image = areas(heights)
    facing_level, image_level = areas(np.full_like(heights, heights.mean()))
    seen = one.geometry.locate(*mesh, heights + GEOID)
    angles = {"theta": middle(seen.incidence), "to_radar": middle(seen.azimuth)}
    return (facing / image) / (facing_level / image_level), angles


def middle(corners: Any) -> Any:
    return (corners[1:, 1:] + corners[:-1, :-1] + corners[:-1, 1:] + corners[1:, :-1]) / 4


@pytest.mark.parametrize("number", [0, 1])
def test_slope_form_is_the_area_factor_of_simulated_terrain(number: int) -> None:
    """Against the areas themselves, on slopes up to 20 degrees, from both sides."""
    one = overpasses(CENTRE, np.datetime64("2020-04-01"), 2, 10.0)[number]
    step, count = 1 / 7200, 120
    lat = CENTRE[1] + step * (count / 2 - np.arange(count))
    lon = CENTRE[0] + step * (np.arange(count) - count / 2)
    heights = 3.0 * Place(CENTRE, 3.0, 7).elevation(lat, lon, 5).astype(float)
    truth, angles = ratio_by_geometry(one, lon, lat, heights)
    dy = terrain.EARTH_RADIUS * np.deg2rad(step)
    dx = dy * np.cos(np.deg2rad(lat[:-1] - step / 2))[:, None]
    east = middle_difference(heights, axis=1) / dx
    north = -middle_difference(heights, axis=0) / dy
    assert np.rad2deg(np.arctan(np.hypot(east, north))).max() > 20
    look = np.deg2rad(angles["to_radar"] + 180)
    factor, _ = slope_factor(angles["theta"], np.sin(look) * east + np.cos(look) * north)
    error = 10 * np.log10(factor / np.cos(np.deg2rad(angles["theta"])) / truth)
    assert np.abs(error).max() < 0.03
    # What the flat form would leave, and what the wrong side would make of it.
    assert np.abs(10 * np.log10(truth)).max() > 2.5
    wrong, _ = slope_factor(angles["theta"], -np.sin(look) * east - np.cos(look) * north)
    wrong = 10 * np.log10(wrong / np.cos(np.deg2rad(angles["theta"])) / truth)
    assert np.abs(wrong).max() > 5


def middle_difference(heights: Any, axis: int) -> Any:
    """Difference along an axis, in the middle of quadrilaterals."""
    across = heights if axis == 1 else heights.T
    difference = np.diff(across, axis=1)
    both = (difference[:-1] + difference[1:]) / 2
    return both if axis == 1 else both.T


# --- the direction of look ----------------------------------------------------------------------


def test_look_of_the_real_annotation_is_that_of_its_orbit(shared: Path) -> None:
    """Against the direction from the satellite to each point, from the state vectors.

    The heading of the platform would be off by 3 to 6 degrees: meridians converge on the way
    from below the satellite to the swath.
    """
    from xml.etree import ElementTree as ET

    from test_simulate import annotation_points, orbit_at

    (file,) = (shared / "data" / "s1_annotation").glob("*.SAFE/annotation/s1a-iw-grd-vv*.xml")
    grid = annotation_points(file)
    satellite, _ = orbit_at(file, grid["azimuthTime"])
    to_earth = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
    lon, lat = grid["longitude"], grid["latitude"]
    line = np.stack(to_earth.transform(lon, lat, grid["height"]), axis=-1) - satellite
    lam, phi = np.deg2rad(lon), np.deg2rad(lat)
    x, y, z = line.T
    east = -np.sin(lam) * x + np.cos(lam) * y
    north = np.cos(phi) * z - np.sin(phi) * (np.cos(lam) * x + np.sin(lam) * y)
    expected = np.rad2deg(np.arctan2(east, north))
    look = read_look(str(file), Access())(lon, lat)
    assert np.abs(look - expected).max() < 0.3
    heading = float(str(ET.parse(file).getroot().findtext(".//platformHeading")))
    assert np.abs(heading + 90 - expected).max() > 3


def test_look_leads_away_from_the_satellite() -> None:
    from xsoilsm.simulate.annotation import Slice, annotation_xml

    for one in overpasses(CENTRE, np.datetime64("2020-04-01"), 2, 50.0):
        begin = one.geometry.centre_time - 12.5
        part = Slice(one, begin, begin + 25.0, 5, 12, lambda lon, _: 0 * lon)
        steps = np.linspace(-0.3, 0.3, 5)
        lon, lat = np.meshgrid(CENTRE[0] + steps, CENTRE[1] + steps)
        expected = one.geometry.locate(lon, lat, 0.0).azimuth + 180
        found = surface_of(annotation_xml(part, "vv"))(lon, lat)
        off = (found - expected + 180) % 360 - 180
        assert np.abs(off).max() < 0.3
        assert (np.sin(np.deg2rad(found)) > 0).all() == (one.orbit_state == "ascending")


def surface_of(text: str) -> IncidenceSurface:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".xml") as file:
        file.write(text)
        file.flush()
        return read_look(file.name, Access())


# --- reading ------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def constant(vv: Any, vh: Any) -> None:
    vv[:], vh[:] = 0.1, 0.02


def tilted(slope: float) -> Any:
    """Plane that rises to the west by `slope` degrees; the world's radar looks to the west."""
    rise = np.tan(np.deg2rad(slope))
    scale = np.cos(np.deg2rad(43.5)) / METRE
    return lambda lon, lat: 500 - rise * (lon - 5.0) * scale + 0 * lat


def read(world: World, **changes: Any) -> tuple[Acquisition, dict[str, Any]]:
    world.write()
    catalog = open_catalog(world.catalog_file())
    source = catalog.sources["radar"][0].model_copy(update=changes)
    catalog = catalog.model_copy(update={"sources": {**catalog.sources, "radar": (source,)}})
    days = {"start": date(2015, 1, 1), "end": date(2022, 1, 1)}
    segment = Segment(source=source, **days)
    (acquisition,), _ = find_acquisitions(catalog, segment, BBOX)
    always = Segment(source=catalog.sources["terrain"][0], **days | {"start": date(1990, 1, 1)})
    tiles = tuple(terrain.find_dem(catalog, always, BBOX))
    acquisition = pickle.loads(pickle.dumps(acquisition))
    stack = rtc.read_acquisition(acquisition, GEOBOX, "raise", tiles)
    return acquisition, dict(zip(rtc.BANDS, stack[:, 0], strict=True))


@pytest.mark.parametrize("slope", [0.0, 15.0, -15.0])
def test_a_plane_is_converted_with_its_slope(world: World, slope: float) -> None:
    world.radar("2020-06-03T17:40:00", 33000, edit=constant)
    world.dem(tilted(slope))
    acquisition, result = read(world, sigma0_from="rtc-slope")
    assert acquisition.sigma0_from == "rtc-slope"
    lon, lat = np.meshgrid(*cell_lonlat(GEOBOX))
    theta = incidence(lon, lat)
    expected = -10 + 10 * np.log10(np.sin(np.deg2rad(theta)) / np.tan(np.deg2rad(theta - slope)))
    whole = result["coverage"] > 0.999
    assert whole.sum() >= 6
    np.testing.assert_allclose(result["sigma0_vv"][whole], expected[whole], atol=0.02)
    np.testing.assert_allclose(result["incidence_angle"][whole], theta[whole], atol=0.01)
    level = -10 + 10 * np.log10(np.cos(np.deg2rad(theta)))
    side = np.sign((result["sigma0_vv"] - level)[whole].mean().round(2))
    assert side == np.sign(slope)  # ground that faces the radar is brighter


def test_gamma0_of_known_sigma0_comes_back_pixel_by_pixel(world: World) -> None:
    """Hills whose ratio is worked out here, with speckle, against exactextract's mean of dB."""
    from exactextract import exact_extract
    from exactextract.raster import NumPyRasterSource

    def hills(lon: Any, lat: Any) -> Any:
        return 400 + 12 * np.sin(lon * 1500) + 12 * np.cos(lat * 1300)

    kept: dict[str, Any] = {}

    def flattened(vv: Any, vh: Any) -> None:
        x = ORIGIN[0] + 10 * (np.arange(vv.shape[1]) + 0.5)
        y = ORIGIN[1] - 10 * (np.arange(vv.shape[0]) + 0.5)
        to_lonlat = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
        lon, lat = to_lonlat.transform(*np.meshgrid(x, y))
        # The world's radar looks to the west everywhere.
        west = -12 * 1500 * np.cos(lon * 1500) * METRE / np.cos(np.deg2rad(lat))
        theta = np.deg2rad(incidence(lon, lat))
        factor = np.sin(theta) / np.tan(theta - np.arctan(west))
        kept["sigma0"] = vv.astype(float)
        kept["flat"] = vv / factor * np.cos(theta)
        vv /= factor
        vh /= factor

    world.radar("2020-06-03T17:40:00", 33000, edit=flattened)
    world.dem(hills)
    _, sloped = read(world, sigma0_from="rtc-slope")
    _, flat = read(world, sigma0_from="rtc-flat")
    rows, columns = kept["sigma0"].shape
    extent = {
        "xmin": ORIGIN[0],
        "ymin": ORIGIN[1] - 10 * rows,
        "xmax": ORIGIN[0] + 10 * columns,
        "ymax": ORIGIN[1],
    }

    def mean(power: Any) -> Any:
        source = NumPyRasterSource(10 * np.log10(power), **extent)
        found = exact_extract(source, cell_polygons(GEOBOX), ["mean"])
        values = [f["properties"]["mean"] for f in found]
        return np.array(values, float).reshape(GEOBOX.shape)

    whole = sloped["coverage"] > 0.999
    expected = mean(kept["sigma0"])
    # What is left is the sampling of the hills at posts of 30 m.
    assert np.abs(sloped["sigma0_vv"] - expected)[whole].max() < 0.02
    np.testing.assert_allclose(flat["sigma0_vv"][whole], mean(kept["flat"])[whole], atol=2e-3)
    assert np.abs(flat["sigma0_vv"] - expected)[whole].mean() > 0.05


def test_slopes_depend_little_on_chunks(world: World) -> None:
    world.radar("2020-06-03T17:40:00", 33000)
    world.dem(lambda lon, lat: 400 + 12 * np.sin(lon * 1500) + 12 * np.cos(lat * 1300))
    acquisition, whole = read(world, sigma0_from="rtc-slope")
    catalog = open_catalog(world.catalog_file())
    model = Segment(
        source=catalog.sources["terrain"][0], start=date(1990, 1, 1), end=date(2022, 1, 1)
    )
    tiles = tuple(terrain.find_dem(catalog, model, BBOX))
    parts = [
        rtc.read_acquisition(acquisition, GEOBOX[rows], "raise", tiles)[:, 0]
        for rows in (np.s_[:1, :], np.s_[1:, :])
    ]
    joined = dict(zip(rtc.BANDS, np.concatenate(parts, axis=1), strict=True))
    for name in ("sigma0_vv", "sigma0_vh"):
        np.testing.assert_allclose(joined[name], whole[name], rtol=0, atol=2e-5)


def test_a_cliff_is_held_and_marked(world: World) -> None:
    world.radar("2020-06-03T17:40:00", 33000, edit=constant)
    lon, _ = cell_lonlat(GEOBOX)
    world.dem(lambda x, y: np.where(x < lon[1], 80000 * (lon[1] - x), 0) + 0 * y)
    _, result = read(world, sigma0_from="rtc-slope")
    marked = (result["source_flags"].astype(int) & SourceFlag.LAYOVER_SHADOW) > 0
    whole = result["coverage"] > 0.999
    assert np.isfinite(result["sigma0_vv"][whole]).all()
    assert marked[whole & (np.arange(GEOBOX.shape[1]) == 0)].all()
    assert not marked[:, 2].any()


def test_without_an_elevation_model_there_is_no_slope_form(world: World) -> None:
    world.radar("2020-06-03T17:40:00", 33000)
    with pytest.raises(CatalogError, match="nasadem"):
        read(world, sigma0_from="rtc-slope")
    acquisition = Acquisition(np.datetime64(0, "ns"), "", 1, "", 1, "rtc-slope", ())
    with pytest.raises(ValueError, match="needs tiles of an elevation model"):
        rtc.read_acquisition(acquisition, GEOBOX)


def test_terrain_that_cannot_be_read_leaves_no_sigma0(world: World) -> None:
    world.radar("2020-06-03T17:40:00", 33000, edit=constant)
    world.dem(tilted(10.0))
    world.write()
    catalog = open_catalog(world.catalog_file())
    source = catalog.sources["radar"][0].model_copy(update={"sigma0_from": "rtc-slope"})
    days = {"start": date(1990, 1, 1), "end": date(2022, 1, 1)}
    (acquisition,), _ = find_acquisitions(catalog, Segment(source=source, **days), BBOX)
    model = Segment(source=catalog.sources["terrain"][0], **days)
    tiles = tuple(terrain.find_dem(catalog, model, BBOX))
    file = world.folder / "data" / "dem_0.tif"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(OSError, match="dem_0"):
        rtc.read_acquisition(acquisition, GEOBOX, "raise", tiles)
    bands = rtc.read_acquisition(acquisition, GEOBOX, "flag", tiles)[:, 0]
    seen = dict(zip(rtc.BANDS, bands, strict=True))
    assert np.isnan(seen["sigma0_vv"]).all()
    assert ((seen["source_flags"].astype(int) & SourceFlag.READ_FAILED) > 0).all()
    # Another model in its place is as good.
    world.dem(tilted(10.0), collection="cop-dem-glo-30", asset="elevation")
    world.write()
    behind = model.source.model_copy(update={"collection": "cop-dem-glo-30"})
    tiles += tuple(terrain.find_dem(catalog, Segment(source=behind, **days), BBOX, 1))
    bands = rtc.read_acquisition(acquisition, GEOBOX, "flag", tiles)[:, 0]
    assert np.isfinite(bands[0]).any()
    assert not (bands[-1].astype(int) & SourceFlag.READ_FAILED).any()


def with_layers(world: World, factor: Any, mask: Any, angle: Any = None) -> None:
    """Give the only scene an area factor and a mask, as Digital Earth Africa does."""
    (item,) = world.items["sentinel-1-rtc"]
    shape = 500, 600
    transform = Affine(10, 0, ORIGIN[0], 0, -10, ORIGIN[1])
    layers = {"area": (factor, "f4"), "mask": (mask, "u1"), "incidence": (angle, "f4")}
    for key, (value, kind) in layers.items():
        if value is None:
            continue
        data = np.broadcast_to(np.asarray(value, dtype=kind), shape).copy()
        file = write_tiff(world.folder / "data" / f"{key}.tif", data, transform, UTM)
        item["assets"][key] = {"href": str(file)}


AREA = {
    "sigma0_from": "rtc-area",
    "area": {"asset": "area", "units": "1", "nodata": 0},
    "mask": {"asset": "mask", "units": "1", "nodata": 0},
    "mask_valid": [1],
}


def read_area(world: World, **changes: Any) -> tuple[Acquisition, dict[str, Any]]:
    """Read with a catalog file, so that its facts are checked as a user's are."""
    world.dem(lambda lon, lat: 0 * lon * lat)
    world.write()
    file = world.catalog_file()
    content = yaml.safe_load(file.read_text())
    content["sources"]["radar"][0] |= AREA | changes
    file.write_text(yaml.safe_dump(content))
    catalog = open_catalog(file)
    segment = Segment(
        source=catalog.sources["radar"][0], start=date(2015, 1, 1), end=date(2022, 1, 1)
    )
    (acquisition,), _ = find_acquisitions(catalog, segment, BBOX)
    stack = rtc.read_acquisition(pickle.loads(pickle.dumps(acquisition)), GEOBOX, "raise")
    return acquisition, dict(zip(rtc.BANDS, stack[:, 0], strict=True))


def test_an_area_factor_gives_sigma0_exactly(world: World) -> None:
    world.radar("2020-06-03T17:40:00", 33000, edit=constant)
    factor = np.exp(0.5 * np.sin(np.arange(600) / 30))[None, :] * np.ones((500, 1))
    factor[:, :3] = 0  # no data
    with_layers(world, factor, 1)
    acquisition, result = read_area(world)
    assert acquisition.sigma0_from == "rtc-area"
    lon, lat = np.meshgrid(*cell_lonlat(GEOBOX))
    sine = 10 * np.log10(np.sin(np.deg2rad(incidence(lon, lat))))
    whole = result["coverage"] > 0.999
    difference = (result["sigma0_vv"] + 10 - sine)[whole]
    # The mean of the factor's decibels over 100 columns of a sine of 190 columns.
    assert 0.5 < np.abs(difference).max() < 10 * np.log10(np.exp(0.5))
    both = result["sigma0_vv"] - result["sigma0_vh"]
    np.testing.assert_allclose(both[whole], 10 * np.log10(5), atol=1e-4)
    world.items["nasadem"].clear()
    with_layers(world, 1.7, 1)
    _, plain = read_area(world)
    np.testing.assert_allclose(
        plain["sigma0_vv"][whole], (-10 + 10 * np.log10(1.7) + sine)[whole], atol=2e-3
    )


def test_layover_and_shadow_are_marked_and_nothing_is_taken_away(world: World) -> None:
    world.radar("2020-06-03T17:40:00", 33000, edit=constant)
    mask = np.ones((500, 600))
    mask[:, :300] = 2
    mask[::40, 300:] = 2  # a fortieth, below the limit
    with_layers(world, 1.0, mask)
    _, result = read_area(world)
    marked = (result["source_flags"].astype(int) & SourceFlag.LAYOVER_SHADOW) > 0
    whole = result["coverage"] > 0.999
    assert marked.any()
    assert not marked.all()
    assert np.isfinite(result["sigma0_vv"][whole]).all()
    lon, _ = cell_lonlat(GEOBOX)
    assert marked[whole][np.argmin(np.broadcast_to(lon, GEOBOX.shape)[whole])]


def test_an_area_factor_in_degrees(world: World) -> None:
    """Pixels of 0.0002 degrees, as those of Digital Earth Africa."""
    world.radar("2020-06-03T17:40:00", 33000)
    (item,) = world.items["sentinel-1-rtc"]
    transform = Affine(0.0002, 0, 4.98, 0, -0.0002, 43.53)
    shape = 250, 300
    for key, value in (("vv", 0.1), ("vh", 0.02), ("area", 1.4)):
        file = world.folder / "data" / f"degrees_{key}.tif"
        data = np.full(shape, value, np.float32)
        item["assets"][key] = {"href": str(write_tiff(file, data, transform, "EPSG:4326"))}
    _, result = read_area(world, mask=None)
    lon, lat = np.meshgrid(*cell_lonlat(GEOBOX))
    sine = np.sin(np.deg2rad(incidence(lon, lat)))
    whole = result["coverage"] > 0.999
    assert whole.all()
    np.testing.assert_allclose(
        result["sigma0_vv"], 10 * np.log10(0.1 * 1.4 * sine), rtol=0, atol=2e-3
    )


def opera(world: World) -> None:
    """Move the layers into a static collection whose items are named like bursts."""
    (item,) = world.items["sentinel-1-rtc"]
    assets = item["assets"]
    for edition in ("v0.9", "v1.0"):
        static = {key: dict(assets[key]) for key in ("area", "incidence", "mask")}
        if edition == "v0.9":
            static["area"]["href"] = "/nowhere.tif"
        name = f"OPERA_L2_RTC-S1-STATIC_T069-147170-IW1_20140403_S1A_30_{edition}"
        where = tuple(item["bbox"])
        world.add("static", name, where, {"datetime": "2014-04-03T00:00:00Z"}, static)
    for key in ("area", "incidence", "mask"):
        del assets[key]
    item["id"] = "OPERA_L2_RTC-S1_T069-147170-IW1_20200603T174000Z_20200604T000000Z_S1A_30_v1.0"
    item["links"] = []
    del item["properties"]["sar:polarizations"]


OPERA = {
    "static_collection": "static",
    "static_key": r"_(T\d{3}-\d{6}-IW\d)_",
    "incidence": {"asset": "incidence", "units": "degree"},
    "mask": {"asset": "mask", "units": "1", "nodata": 255},
    "mask_valid": [0],
    "grd_collection": "",
}


def test_static_layers_of_a_burst_are_found_by_its_name(world: World) -> None:
    world.radar("2020-06-03T17:40:00", 33000, edit=constant)
    with_layers(world, 1.3, np.where(np.arange(600) < 5, 255, 0)[None, :], 41.0)
    opera(world)
    acquisition, result = read_area(world, **OPERA)
    assert acquisition.slices[0].annotation == ""
    whole = result["coverage"] > 0.999
    np.testing.assert_allclose(result["incidence_angle"][whole], 41.0, rtol=1e-6)
    expected = -10 + 10 * np.log10(1.3 * np.sin(np.deg2rad(41)))
    np.testing.assert_allclose(result["sigma0_vv"][whole], expected, atol=1e-4)
    assert not result["source_flags"][whole].any()
    for item in world.items["static"]:
        item["id"] = item["id"].replace("147170", "147171")
    with pytest.raises(CatalogError, match=r"finds no area, incidence, mask in 'static'"):
        read_area(world, **OPERA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma0_from": "rtc-area", "area": None}, "needs `area`"),
        ({"grd_collection": ""}, "names no `grd_collection`"),
        ({"static_collection": "x", "static_key": "(a"}, "`static_key` with one group"),
        ({"sigma0_from": "rtc-magic"}, "rtc-slope"),
        ({"grd_service": "elsewhere"}, "service 'elsewhere' is not defined"),
    ],
)
def test_facts_that_lead_nowhere_are_refused(
    world: World, changes: dict[str, Any], message: str
) -> None:
    world.write()
    file = world.catalog_file()
    content = yaml.safe_load(file.read_text())
    content["sources"]["radar"][0] |= changes
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(CatalogError, match=message):
        open_catalog(file)


# --- in a cube ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["rtc-flat", "rtc-slope", "rtc-area"])
def test_cells_beyond_the_validity_of_a_form_are_flagged(
    tmp_path: Path, filled: World, form: str
) -> None:
    world = World(tmp_path)
    world.items = {name: list(items) for name, items in filled.items.items()}
    del world.items["nasadem"]
    world.radar("2020-06-09T05:40:00", 33080, state="descending")
    with_layers(world, 1.0, 1)
    lon, _ = cell_lonlat(GEOBOX)
    slopes = np.tan(np.deg2rad([2.0, 12.0, 25.0])) * np.cos(np.deg2rad(43.5)) / METRE
    edges = np.concatenate([lon - np.diff(lon)[0] / 2, [lon[-1] + np.diff(lon)[0] / 2]])
    width = np.diff(edges)

    def steps(x: Any, y: Any) -> Any:
        into = [np.clip(x - edges[k], 0, width[k]) for k in range(3)]
        return 100 + sum(s * d for s, d in zip(slopes, into, strict=True)) + 0 * y

    world.dem(steps)
    world.write()
    file = world.catalog_file()
    content = yaml.safe_load(file.read_text())
    content["sources"]["radar"][0] |= AREA | {"sigma0_from": form}
    file.write_text(yaml.safe_dump(content))
    cube = load_cube(BBOX, "2020-06-09", "1km", file).compute()
    assert cube.sigma0_from.values.tolist() == [form]
    assert cube.sigma0_vv.attrs["sigma0_from"] == form
    flags = cube.source_flags.values[0].astype(int)
    approximate = (flags & SourceFlag.APPROXIMATE_SIGMA0) > 0
    unreliable = (flags & SourceFlag.UNRELIABLE_SIGMA0) > 0
    seen = cube.coverage.values[0] > 0
    depends = seen & (form != "rtc-area")
    np.testing.assert_array_equal(approximate, (cube.slope.values > 5) & depends)
    np.testing.assert_array_equal(unreliable, (cube.slope.values > 20) & depends)
    if form != "rtc-area":
        assert approximate[:, 1:].any()
        assert unreliable.any()
        assert not approximate[:, 0].any()
        assert not unreliable[:, 1].any()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("filled"))
    made.fill()
    return made


def test_forms_may_differ_from_one_acquisition_to_the_next(tmp_path: Path, filled: World) -> None:
    from xsoilsm.checks import check_cube

    world = World(tmp_path)
    world.items = {name: list(items) for name, items in filled.items.items()}
    world.radar("2020-06-03T17:40:00", 33000)
    world.radar("2020-06-09T05:40:00", 33080, state="descending")
    world.write()
    file = world.catalog_file()
    content = yaml.safe_load(file.read_text())
    first = content["sources"]["radar"][0]
    content["sources"]["radar"] = [
        first | {"end": date(2020, 6, 5)},
        first | {"sigma0_from": "rtc-slope"},
    ]
    file.write_text(yaml.safe_dump(content))
    cube = load_cube(BBOX, "2020-06", "1km", file)
    assert cube.sigma0_from.values.tolist() == ["rtc-flat", "rtc-slope"]
    assert cube.sigma0_vh.attrs["sigma0_from"] == "rtc-flat rtc-slope"
    check_cube(cube)
    wrong = cube.assign_coords(sigma0_from=("time", ["rtc-flat", "gamma0"]))
    with pytest.raises(ValueError, match="gamma0"):
        check_cube(wrong)


def test_simulated_relief_is_undone(tmp_path: Path) -> None:
    """What the slope form adds on the virtual landscape is what the areas of its terrain say."""
    from xsoilsm.simulate.ground import write_terrain
    from xsoilsm.simulate.items import Catalogue
    from xsoilsm.simulate.land import make_land
    from xsoilsm.simulate.radar import write_pass
    from xsoilsm.simulate.scene import Surface

    place = Place(CENTRE, 3.0, 3)
    passes = overpasses(CENTRE, np.datetime64("2020-04-01"), 2, 20.0)
    catalogue = Catalogue(tmp_path)
    write_terrain(catalogue, place)
    shape = make_land(place, *place.axes).cover.shape
    level = np.full(shape, 0.3, np.float32)
    bare = Surface({"vv": level, "vh": level}, 0 * level, 0 * level + 1)
    for number, one in enumerate(passes):
        write_pass(catalogue, place, one, bare, number=number)
    root = catalogue.finish("test", {})
    file = Path(__file__).parents[1] / "catalogs" / "demo.yaml"
    catalog = open_catalog(file, endpoints={"landscape": str(root)})
    box = CENTRE[0] - 0.011, CENTRE[1] - 0.008, CENTRE[0] + 0.011, CENTRE[1] + 0.008
    geobox = ease2_geobox(box, "100m")
    always = {"start": date(1990, 1, 1), "end": date(2100, 1, 1)}
    tiles = tuple(
        terrain.find_dem(catalog, Segment(source=catalog.sources["terrain"][0], **always), box)
    )
    read_in: dict[str, list[Any]] = {}
    for form in ("rtc-flat", "rtc-slope"):
        source = catalog.sources["radar"][0].model_copy(update={"sigma0_from": form})
        segment = Segment(source=source, **always)
        found, _ = find_acquisitions(catalog, segment, box)
        read_in[form] = [rtc.read_acquisition(a, geobox, "raise", tiles)[0, 0] for a in found]
    lon, lat = cell_lonlat(geobox)

    def quarters(axis: Any) -> Any:
        half = (axis[1] - axis[0]) / 2
        return np.linspace(axis[0] - half, axis[-1] + half, 4 * axis.size + 1)

    fine = quarters(lon), quarters(lat)
    heights = place.elevation(fine[1], fine[0]).astype(float)
    added = [s - f for s, f in zip(read_in["rtc-slope"], read_in["rtc-flat"], strict=True)]
    for k, one in enumerate(passes):
        truth, _ = ratio_by_geometry(one, *fine, heights)
        cells = 10 * np.log10(truth).reshape(lat.size, 4, lon.size, 4).mean(axis=(1, 3))
        assert cells.std() > 0.15
        error = added[k] - cells
        # The landscape's elevation model holds whole metres at posts of 30 m.
        assert np.corrcoef(added[k].ravel(), cells.ravel())[0, 1] > 0.95
        assert error.std() < 0.3 * cells.std()
        assert abs(error.mean()) < 0.03
    assert np.corrcoef(added[0].ravel(), added[1].ravel())[0, 1] < 0  # from opposite sides


def test_incidence_and_look_come_from_one_file(world: World) -> None:
    world.radar("2020-06-03T17:40:00", 33000)
    (file,) = world.folder.glob("data/*/grd/annotation/iw-vv.xml")
    lon, lat = np.array([5.0, 5.02]), np.array([43.5, 43.49])
    np.testing.assert_allclose(
        read_incidence(str(file), Access())(lon, lat), incidence(lon, lat), atol=1e-6
    )
    np.testing.assert_allclose(read_look(str(file), Access())(lon, lat), -90, atol=1e-6)
