from __future__ import annotations

import json
import pickle
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from grd_scene import (
    ACCESS,
    FILLED,
    LEVEL,
    POLARISATIONS,
    GrdScene,
    field,
    relief,
    write_dem,
)
from scipy.interpolate import LinearNDInterpolator

from xsoilsm import grid
from xsoilsm.cube import SourceFlag
from xsoilsm.grid import ease2_geobox
from xsoilsm.sources.access.search import cell_lonlat, lonlat_bounds
from xsoilsm.sources.sentinel1.fringe import REACH, fringe
from xsoilsm.sources.sentinel1.grd import calibration_hrefs, read_grd_acquisition, read_product
from xsoilsm.sources.sentinel1.heights import HeightSource
from xsoilsm.sources.sentinel1.rtc import BANDS
from xsoilsm.sources.sentinel1.sampling import lattices_of


@pytest.fixture(scope="module")
def known(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> GrdScene:
    """Make a product without speckle."""
    scene = GrdScene(shared, tmp_path_factory.mktemp("known"))
    scene.write_known()
    return scene


@pytest.fixture(scope="module")
def speckled(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> GrdScene:
    """Make a product with speckle of 4.4 looks."""
    scene = GrdScene(shared, tmp_path_factory.mktemp("speckled"))
    rng = np.random.default_rng(3)
    numbers = {}
    for polarisation in POLARISATIONS:
        looks = rng.gamma(4.4, 1 / 4.4, FILLED)
        power = scene.power(polarisation) * looks
        numbers[polarisation] = np.sqrt(power).round().clip(1, None).astype(np.uint16)
    scene.write(numbers)
    return scene


def cells_around(scene: GrdScene, res: str, reach: float) -> Any:
    lon, lat = scene.middle
    return ease2_geobox((lon - reach, lat - reach, lon + reach, lat + reach), res)


def read(acquisition: Any, geobox: Any, on_error: str = "raise") -> dict[str, Any]:
    # Over a graph the records travel pickled.
    stack = read_grd_acquisition(pickle.loads(pickle.dumps(acquisition)), geobox, on_error)
    assert stack.shape == (5, 1, *geobox.shape)
    assert stack.dtype == np.float32
    return dict(zip(BANDS, stack[:, 0], strict=True))


def true_means(geobox: Any, count: int = 30) -> Any:
    """Means of the known pattern over cells, in dB."""
    cells, rows, columns = grid.grid_of(geobox)
    y, x = (
        (np.arange(first * count, stop * count) + 0.5) / count * cells.cell
        for first, stop in (rows, columns)
    )
    lon, _ = grid.xy_to_lonlat(grid.X_WEST + x, np.zeros_like(x))
    _, lat = grid.xy_to_lonlat(np.zeros_like(y), grid.Y_NORTH - y)
    values = field(*np.meshgrid(lon, lat))
    return values.reshape(geobox.height, count, geobox.width, count).mean(axis=(1, 3))


@pytest.mark.parametrize(("res", "bound"), [("100m", 0.01), ("1km", 0.005)])
def test_the_known_backscatter_comes_back(known: GrdScene, res: str, bound: float) -> None:
    geobox = cells_around(known, res, 0.02)
    result = read(known.acquisition(), geobox)
    whole = result["coverage"] > 0.999
    assert whole.sum() > 15
    expected = true_means(geobox)
    for polarisation, level in LEVEL.items():
        error = (result[f"sigma0_{polarisation}"] - level - expected)[whole]
        # The pattern changes by 0.1 dB on a pixel: this is a tenth of a pixel.
        assert np.sqrt(np.mean(error**2)) < bound
        assert np.abs(error).max() < 5 * bound
        # Noise and calibration leave no offset.
        assert abs(error.mean()) < 0.003
    assert not result["source_flags"][whole].any()


def test_the_angle_is_the_annotations(known: GrdScene) -> None:
    geobox = cells_around(known, "1km", 0.02)
    result = read(known.acquisition(), geobox)
    lon, lat = np.meshgrid(*cell_lonlat(geobox))
    # The annotation's own heights are smoother than the relief here: 0.04 degrees a km.
    _, _, angle = known.geometry.locate(lon, lat, 700.0)
    np.testing.assert_allclose(result["incidence_angle"], angle, rtol=0, atol=0.05)


def test_heights_matter(known: GrdScene, tmp_path: Path) -> None:
    flat = write_dem(tmp_path / "flat.tif", known.bounds, lambda lon, lat: 0 * lon + 700)
    geobox = cells_around(known, "100m", 0.02)
    result = read(known.acquisition(heights=HeightSource((flat,), "ellipsoid", "constant")), geobox)
    error = result["sigma0_vv"] - LEVEL["vv"] - true_means(geobox)
    assert np.nanstd(error) > 0.5


def test_native_pixels_are_averaged_in_decibels(speckled: GrdScene) -> None:
    geobox = cells_around(speckled, "1km", 0.02)
    result = read(speckled.acquisition(resampling="nearest"), geobox)
    whole = result["coverage"] > 0.999
    # Every native pixel whose centre lies in the cell, weighed with its area on the ground.
    cells, rows, columns = grid.grid_of(geobox)
    row, column = cells.index(*grid.lonlat_to_xy(speckled.lon, speckled.lat))
    inside = (row >= rows[0]) & (row < rows[1]) & (column >= columns[0]) & (column < columns[1])
    index = ((row - rows[0]) * geobox.width + column - columns[0])[inside]
    (lon_down, lon_across), (lat_down, lat_across) = (
        np.gradient(v) for v in (speckled.lon, speckled.lat)
    )
    area = np.abs(lon_down * lat_across - lon_across * lat_down)[inside]
    product = read_product(
        *(str(speckled.folder / "measurement" / f"iw-{p}.tiff") for p in POLARISATIONS), ACCESS
    )
    import rasterio
    from rasterio.windows import Window

    from xsoilsm.sources.sentinel1.calibration import calibrate, to_decibel

    for k, polarisation in enumerate(POLARISATIONS):
        path = speckled.folder / "measurement" / f"iw-{polarisation}.tiff"
        with rasterio.open(path) as file:
            numbers = file.read(1, window=Window(*speckled.corner[::-1], *FILLED[::-1]))
        decibel = to_decibel(*calibrate(numbers, product.calibrations[k], *speckled.corner))
        size = geobox.height * geobox.width
        total = np.bincount(index, area * decibel[inside], minlength=size)
        mean = (total / np.bincount(index, area, minlength=size)).reshape(geobox.shape)
        error = (result[f"sigma0_{polarisation}"] - mean)[whole]
        # Pixels across the edge of a cell count whole here and in part there.
        assert np.abs(error).max() < 0.06
        assert abs(error.mean()) < 0.02
        # An average of power would be higher by this much.
        level = result[f"sigma0_{polarisation}"] - LEVEL[polarisation] - true_means(geobox)
        assert -1.6 < level[whole].mean() < -0.5


def test_power_is_interpolated_between_pixels(speckled: GrdScene) -> None:
    geobox = cells_around(speckled, "1km", 0.02)
    nearest, bilinear = (
        read(speckled.acquisition(resampling=how), geobox) for how in ("nearest", "bilinear")
    )
    whole = nearest["coverage"] > 0.999
    lift = (bilinear["sigma0_vv"] - nearest["sigma0_vv"])[whole]
    # Independent pixels: the variance of speckle falls to 4/9, its bias in dB from 0.53 to 0.24.
    assert 0.25 < lift.mean() < 0.40
    assert lift.std() < 0.03


def test_results_do_not_depend_on_chunks(speckled: GrdScene) -> None:
    geobox = cells_around(speckled, "100m", 0.012)
    acquisition = speckled.acquisition()
    whole = read(acquisition, geobox)
    cuts = np.s_[:7, :11], np.s_[:7, 11:], np.s_[7:, :11], np.s_[7:, 11:]
    for cut in cuts:
        part = read(acquisition, geobox[cut])
        for name in BANDS:
            np.testing.assert_allclose(part[name], whole[name][cut], rtol=1e-6, atol=0)


def test_the_geoid_comes_from_the_scene(known: GrdScene, tmp_path: Path) -> None:
    geobox = cells_around(known, "100m", 0.01)
    # Under the whole slice a coarse model of the annotation's own heights, which are above the
    # ellipsoid; under the window a fine one of the relief.
    annotation = ET.parse(known.folder / "annotation" / "iw-vv.xml").getroot()
    points = np.array(
        [
            [float(str(p.findtext(n))) for n in ("longitude", "latitude", "height")]
            for p in annotation.iter("geolocationGridPoint")
        ]
    )
    surface = LinearNDInterpolator(points[:, :2], points[:, 2])

    def coarse(lon: Any, lat: Any) -> Any:
        return np.nan_to_num(surface(lon, lat), nan=400.0)

    wide = write_dem(tmp_path / "wide.tif", (1.4, 44.4, 5.3, 46.6), coarse, 0.01, geoid=49.0)
    fine = write_dem(tmp_path / "fine.tif", known.bounds, relief, geoid=49.0)
    from dataclasses import replace

    source = HeightSource((fine, replace(wide, rank=1)), "EGM96", "scene")
    product = read_product(
        *(str(known.folder / "measurement" / f"iw-{p}.tiff") for p in POLARISATIONS), ACCESS
    )
    assert source.offset(product.image.grid) == pytest.approx(49.0, abs=2.0)
    found = read(known.acquisition(heights=source), geobox)
    expected = true_means(geobox)
    error = found["sigma0_vv"] - LEVEL["vv"] - expected
    assert np.sqrt(np.mean(error**2)) < 0.03
    # Without it everything would lie seven pixels too far.
    ignored = HeightSource((fine,), "ellipsoid", "constant")
    error = read(known.acquisition(heights=ignored), geobox)["sigma0_vv"] - LEVEL["vv"] - expected
    assert np.sqrt(np.mean(error**2)) > 0.3


def test_empty_cells_tell_why(known: GrdScene) -> None:
    lon, lat = known.middle
    # Half of it inside the image and not filled, half beyond the far edge of the swath.
    acquisition = known.acquisition()
    beyond = ease2_geobox((1.2, 45.0, 1.25, 45.04), "1km")
    result = read(acquisition, beyond)
    assert np.isnan(result["sigma0_vv"]).all()
    assert (result["source_flags"] == SourceFlag.NO_SCENE).all()
    assert (result["coverage"] == 0).all()
    zeros = ease2_geobox((lon + 0.3, lat, lon + 0.33, lat + 0.02), "1km")
    result = read(acquisition, zeros)
    assert np.isnan(result["sigma0_vv"]).all()
    assert (result["source_flags"] == SourceFlag.ZERO_FILLED).all()
    edge = read(acquisition, cells_around(known, "1km", 0.06))
    partial = (edge["coverage"] > 0.05) & (edge["coverage"] < 0.95)
    assert partial.any()
    flags = edge["source_flags"][partial].astype(int)
    assert (flags & SourceFlag.BORDER > 0).all()
    assert (flags & SourceFlag.ZERO_FILLED > 0).all()
    assert np.isfinite(edge["sigma0_vv"][partial]).all()


@pytest.mark.parametrize("fault", ["measurement", "shape", "noise", "annotation", "model"])
def test_a_failed_read_is_flagged(shared: Path, tmp_path: Path, fault: str) -> None:
    scene = GrdScene(shared, tmp_path, filled=(128, 128))
    scene.write_known()
    acquisition = scene.acquisition()
    geobox = cells_around(scene, "1km", 0.01)
    folder = scene.folder
    if fault == "measurement":
        (folder / "measurement" / "iw-vh.tiff").unlink()
    elif fault == "shape":
        annotation = folder / "annotation" / "iw-vv.xml"
        text = annotation.read_text()
        annotation.write_text(text.replace("<numberOfLines>16676<", "<numberOfLines>16000<"))
    elif fault == "noise":
        (folder / "annotation" / "calibration" / "noise-iw-vh.xml").write_text("<noise/>")
    elif fault == "annotation":
        (folder / "annotation" / "iw-vv.xml").write_text("<html>busy")
    else:
        Path(acquisition.heights.tiles[0].raster.href).unlink()
    with pytest.raises(OSError, match=r"iw-|around|EPSG"):
        read(acquisition, geobox)
    result = read(acquisition, geobox, on_error="flag")
    flags = result["source_flags"].astype(int)
    assert ((flags & SourceFlag.READ_FAILED) > 0).all()
    assert np.isnan(result["sigma0_vv"]).all()
    assert (result["coverage"] == 0).all()


def test_slices_of_a_pass_are_one(known: GrdScene, shared: Path, tmp_path: Path) -> None:
    other = GrdScene(shared, tmp_path / "other")
    rows = FILLED[0] // 2
    numbers = {p: np.sqrt(known.power(p)).round().astype(np.uint16) for p in POLARISATIONS}
    upper = {p: np.where(np.arange(FILLED[0])[:, None] < rows, v, 0) for p, v in numbers.items()}
    lower = {p: v - upper[p] for p, v in numbers.items()}
    first = GrdScene(shared, tmp_path / "first")
    first.write({p: v.astype(np.uint16) for p, v in upper.items()})
    other.write({p: v.astype(np.uint16) for p, v in lower.items()})
    from dataclasses import replace

    single = known.acquisition()
    both = replace(single, slices=(*first.acquisition().slices, *other.acquisition().slices))
    geobox = cells_around(known, "100m", 0.02)
    one, two = read(single, geobox), read(both, geobox)
    np.testing.assert_allclose(two["coverage"], one["coverage"], atol=1e-6)
    np.testing.assert_allclose(two["incidence_angle"], one["incidence_angle"], atol=1e-5)
    # At the cut each slice interpolates with its own pixels only.
    assert np.abs(two["sigma0_vv"] - one["sigma0_vv"]).max() < 0.05
    assert not two["source_flags"].any()


def test_noise_is_not_removed_twice(shared: Path, tmp_path: Path) -> None:
    scene = GrdScene(shared, tmp_path, filled=(256, 256))
    scene.write_known()
    acquisition = scene.acquisition()
    geobox = cells_around(scene, "1km", 0.006)
    before = read(acquisition, geobox)["sigma0_vh"]
    path = scene.folder / "annotation" / "iw-vv.xml"
    mark = "thermalNoiseCorrectionPerformed>"
    path.write_text(path.read_text().replace(f"{mark}false", f"{mark}true"))
    read_product.cache_clear()
    after = read(acquisition, geobox)["sigma0_vh"]
    # Noise of -25 dB stays in -17 dB.
    assert 0.3 < np.nanmean(after - before) < 2.5


# -- border --------------------------------------------------------------------------------------


def test_the_fringe_of_old_images_does_not_count(shared: Path, tmp_path: Path) -> None:
    scene = GrdScene(shared, tmp_path, corner=(8400, 0), filled=(512, 512))
    numbers = {p: np.sqrt(scene.power(p)) for p in POLARISATIONS}
    edge = 60 + 20 * np.sin(np.arange(512) / 40.0)
    column = np.arange(512)
    rng = np.random.default_rng(0)
    for values in numbers.values():
        noise = rng.integers(0, 6, values.shape)
        values[:] = np.where(column < edge[:, None], noise, values)
    scene.write({p: v.round().astype(np.uint16) for p, v in numbers.items()})
    geobox = ease2_geobox(
        (scene.lon.min(), scene.lat.min(), scene.lon.max(), scene.lat.max()), "100m"
    )
    expected = true_means(geobox)
    old, new = (read(scene.acquisition(has_fringe=has), geobox) for has in (True, False))
    seen = old["coverage"] > 0.3
    assert np.abs((old["sigma0_vv"] - LEVEL["vv"] - expected)[seen]).max() < 1.0
    fringed = (new["coverage"] > 0.3) & (old["coverage"] == 0)
    assert fringed.sum() > 40  # cells that hold nothing but fringe
    assert np.median((new["sigma0_vv"] - LEVEL["vv"] - expected)[fringed]) < -15
    # Elsewhere nothing is lost.
    inner = (old["coverage"] == 1) & (new["coverage"] == 1)
    assert inner.sum() > 1000
    np.testing.assert_allclose(old["sigma0_vh"][inner], new["sigma0_vh"][inner], atol=1e-3)


def test_a_fringe_is_found_on_every_side() -> None:
    rng = np.random.default_rng(1)
    image = (700, 900)
    numbers = rng.gamma(4.4, 200 / 4.4, image).round().clip(1).astype(np.uint16)
    fringed = np.zeros(image, dtype=bool)
    for side in (np.s_[:30], np.s_[-40:], np.s_[:, :50], np.s_[:, -60:]):
        numbers[side] = rng.integers(0, 8, image)[side]
        fringed[side] = True
    noise = np.full(image, 400, np.float32)
    found = fringe(numbers, noise, (0, 0), image)
    assert found[fringed].all()
    inner = found[~fringed]
    assert inner.mean() < 0.12  # some pixels more on every side
    assert not found[60:-70, 80:-90].any()
    # A dark lake in the middle is no border, and neither is a lake at 600 pixels.
    numbers[300:350, 300:350] = 3
    assert not fringe(numbers, noise, (0, 0), image)[290:360, 290:360].any()


def test_clean_images_lose_little() -> None:
    rng = np.random.default_rng(2)
    power = 1300 * rng.gamma(4.4, 1 / 4.4, (300, 300))  # nothing but noise: calm water
    numbers = np.sqrt(power).round().astype(np.uint16)
    noise = np.full((300, 300), 1300, np.float32)
    assert fringe(numbers, noise, (0, 0), (300, 300)).mean() < 0.02


def test_windows_near_an_edge_have_to_reach_it() -> None:
    numbers, noise = np.ones((50, 50), np.uint16), np.ones((50, 50), np.float32)
    assert not fringe(numbers, noise, (REACH, REACH), (5000, 5000)).any()
    with pytest.raises(ValueError, match="10 pixels from the edge"):
        fringe(numbers, noise, (REACH, 10), (5000, 5000))


# -- samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("latitude", [0.0, 19.9, 45.0, 60.0, 70.0, 82.0])
@pytest.mark.parametrize("res", ["100m", "1km", "9km"])
def test_samples_are_close_enough_everywhere(latitude: float, res: str) -> None:
    cells = grid.get_grid(res)
    geobox = ease2_geobox((10.0, latitude, 10.2, latitude + 0.2), res)
    _, rows, columns = grid.grid_of(geobox)
    lattices = lattices_of(cells, rows, columns, 7.2)
    assert lattices[0].rows[0] == rows[0]
    assert lattices[-1].rows[1] == rows[1]
    for lattice in lattices:
        lon, lat, offset = lattice.points(*lattice.node_steps)
        assert offset[0] >= 0
        assert offset[1] >= 0
        west, south, east, north = lonlat_bounds(cells.geobox(lattice.rows, lattice.columns))
        assert lon.min() <= west + 1e-9
        assert lon.max() >= east - 1e-9
        assert lat.min() <= south + 1e-9
        assert lat.max() >= north - 1e-9
        height, width = (b - a for a, b in (lattice.rows, lattice.columns))
        metres = 111.7e3  # of a degree, at most
        assert (north - south) * metres / (height * lattice.down) < 7.4
        across = (east - west) * metres * np.cos(np.deg2rad(south))
        assert across / (width * lattice.across) < 7.4


# -- items ---------------------------------------------------------------------------------------


def test_addresses_follow_from_the_measurement() -> None:
    href = "https://host/GRD/S1A_X/measurement/iw-vh.tiff"
    folder = "https://host/GRD/S1A_X/annotation/calibration"
    assert calibration_hrefs(href) == (
        f"{folder}/calibration-iw-vh.xml",
        f"{folder}/noise-iw-vh.xml",
    )


def test_real_items_become_acquisitions(shared: Path, tmp_path: Path) -> None:
    import yaml
    from sources_world import World

    from xsoilsm.catalog import CatalogError, Segment, open_catalog
    from xsoilsm.sources.sentinel1.grd_items import find_grd_acquisitions

    item = json.loads((shared / "data" / "stac" / "pc_sentinel-1-grd_item.json").read_text())
    world = World(tmp_path)
    for name, lon in (("inside", 9.0), ("beside", 10.0), ("far", 30.0)):
        bounds = (lon, 33.0, lon + 1, 34.0)
        dem = {"elevation": {"href": str(tmp_path / f"{name}.tif")}}
        when = {"datetime": "2000-02-20T00:00:00Z"}
        world.add("nasadem", name, bounds, when, dem)
    world.items["sentinel-1-grd"] = [{**item, "links": []}]
    world.write()
    file = world.catalog_file()
    content = yaml.safe_load(file.read_text())
    content["sources"]["radar"] = [
        {
            "kind": "sentinel1-grd",
            "service": "landscape",
            "collection": "sentinel-1-grd",
            "vv": {"asset": "vv", "units": "1"},
            "vh": {"asset": "vh", "units": "1"},
            "border_before": "2018-03-13",
            "licence": "x",
            "citation": "x",
            "source": "x",
        }
    ]
    del content["sources"]["terrain"][0]["geoid_height"]
    file.write_text(yaml.safe_dump(content))
    catalog = open_catalog(file)
    (source,) = catalog.sources["radar"]
    segment = Segment(source=source, start=date(2025, 3, 1), end=date(2025, 3, 31))
    region = (9.5, 33.5, 9.6, 33.6)
    (found,), excluded = find_grd_acquisitions(catalog, segment, region)
    assert not excluded
    assert (found.relative_orbit, found.orbit_state) == (95, "descending")
    assert found.time.astype("datetime64[s]") == np.datetime64("2025-03-12T05:22:49")
    assert found.sigma0_from == "grd"
    (piece,) = found.slices
    assert not piece.has_fringe
    hrefs = calibration_hrefs(piece.vv.href)
    named = {key: asset["href"] for key, asset in item["assets"].items()}
    assert hrefs == (named["schema-calibration-vv"], named["schema-noise-vv"])
    # Tiles under the whole slice, because the scene has to give the geoid.
    assert [tile.id for tile in found.heights.tiles] == ["beside", "inside"]
    assert found.heights.geoid == "scene"
    assert len(pickle.dumps(found)) < 6000
    (terrain,) = catalog.sources["terrain"]
    stated = terrain.model_copy(update={"geoid_height": 31.5})
    known = catalog.model_copy(update={"sources": {**catalog.sources, "terrain": (stated,)}})
    (found,), _ = find_grd_acquisitions(known, segment, region)
    assert (found.heights.geoid, found.heights.constant) == ("constant", 31.5)
    assert [tile.id for tile in found.heights.tiles] == ["inside"]
    bare = catalog.model_copy(update={"sources": {**catalog.sources, "terrain": ()}})
    with pytest.raises(CatalogError, match="names no elevation model"):
        find_grd_acquisitions(bare, segment, region)
    old = source.model_copy(update={"border_before": None})
    (found,), _ = find_grd_acquisitions(catalog, segment.model_copy(update={"source": old}), region)
    assert found.slices[0].has_fringe


# -- from end to end -----------------------------------------------------------------------------


def test_a_landscape_gives_the_same_cube_from_both_collections(tmp_path: Path) -> None:
    import yaml

    from xsoilsm import load_cube
    from xsoilsm.simulate import simulate_landscape

    root = simulate_landscape(
        tmp_path / "land", size_km=5, acquisitions=1, spacing=20, seed=4, grd_pixels=True
    )
    folder = Path(__file__).parents[1] / "catalogs"
    content = yaml.safe_load((folder / "demo.yaml").read_text())
    content["services"]["landscape"]["href"] = str(root)
    (flattened,) = content["sources"]["radar"]
    kept = {key: flattened[key] for key in ("service", "licence", "citation", "source")}
    images = {key: {"asset": key, "units": "1"} for key in POLARISATIONS}
    radar = {"kind": "sentinel1-grd", "collection": "sentinel-1-grd", **images, **kept}
    cubes = []
    for name, source in (("rtc", flattened), ("grd", radar | {"border_before": "2018-03-13"})):
        file = tmp_path / f"{name}.yaml"
        sources = content["sources"] | {"radar": [source]}
        file.write_text(yaml.safe_dump(content | {"name": name, "sources": sources}))
        cube = load_cube((-5.42, 41.285, -5.38, 41.315), "2020-04", "100m", catalog=file)
        cubes.append(cube[list(BANDS)].compute(scheduler="synchronous"))
    rtc, grd = cubes
    assert set(grd["sigma0_from"].values.astype(str)) == {"grd"}
    assert "geoid 50 m" in grd.attrs["radar_located_with"]
    assert "radar_located_with" not in rtc.attrs
    assert grd.sizes == rtc.sizes
    assert (grd["coverage"] > 0.999).all()
    assert not grd["source_flags"].any()
    np.testing.assert_allclose(grd["incidence_angle"], rtc["incidence_angle"], atol=0.01)
    # The terrain-corrected images keep the noise, which the others lose; and the flattening of
    # slopes, put back by the slope's angle, is where the two went different ways.
    for polarisation, low, high in (("vv", -0.3, 0.3), ("vh", -2.5, -0.5)):
        one, other = (cube[f"sigma0_{polarisation}"].values for cube in (rtc, grd))
        assert low < np.mean(other - one) < high
    pattern = [cube["sigma0_vv"].values.ravel() for cube in cubes]
    assert np.corrcoef(*pattern)[0, 1] > 0.98
