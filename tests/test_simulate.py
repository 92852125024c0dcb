"""The virtual landscape: what it writes, whether it has the providers' forms, and its physics."""

from __future__ import annotations

import hashlib
import itertools
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import odc.stac
import pystac
import pytest
import rasterio
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rio_cogeo import cog_validate
from scipy.special import polygamma

from xsoilsm import periods
from xsoilsm.grid import ease2_geobox, grid_of
from xsoilsm.simulate import CLIMATES, MEDITERRANEAN, bucket, simulate_landscape
from xsoilsm.simulate.backscatter import (
    bare_soil,
    local_incidence,
    speckle,
    terrain_flattened,
    water_cloud,
)
from xsoilsm.simulate.build import draw_weather
from xsoilsm.simulate.land import CROP, WATER, Place, make_land, ndvi
from xsoilsm.simulate.noise import Fractal, Patches, generator, uniform
from xsoilsm.simulate.orbit import (
    Geometry,
    find_tracks,
    node_longitude,
    node_time,
    overpasses,
    relative_orbit,
)
from xsoilsm.simulate.scene import Surface, image_geobox, render

CENTRE = (-5.4, 41.3)
SMALL = {"centre": CENTRE, "size_km": 3.0, "spacing": 50.0, "acquisitions": 2, "seed": 7}
SAID = {"description", "xsoilsm:simulated"}
"""What a simulated item says beyond a real one."""


@pytest.fixture(scope="module")
def landscape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small landscape, two passes."""
    return simulate_landscape(tmp_path_factory.mktemp("world") / "small", **SMALL).parent


@pytest.fixture(scope="module")
def catalog(landscape: Path) -> pystac.Catalog:
    return pystac.Catalog.from_file(str(landscape / "catalog.json"))


@pytest.fixture(scope="module")
def place() -> Place:
    return Place(CENTRE, SMALL["size_km"], SMALL["seed"])


def items_of(catalog: pystac.Catalog, collection: str) -> list[pystac.Item]:
    child = catalog.get_child(collection)
    assert child is not None
    return sorted(child.get_items(), key=lambda item: item.id)


def raw_items(landscape: Path, collection: str) -> list[dict[str, Any]]:
    paths = sorted((landscape / "stac" / collection).glob("*.json"))
    return [json.loads(p.read_text()) for p in paths if p.name != "collection.json"]


def href(item: pystac.Item, asset: str) -> str:
    found = item.assets[asset].get_absolute_href()
    assert found is not None
    return found


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- the folder ---------------------------------------------------------------------------------


def test_the_same_parameters_give_the_same_bytes(landscape: Path, tmp_path: Path) -> None:
    again = simulate_landscape(tmp_path / "another name", **SMALL).parent
    assert digests(again) == digests(landscape)


def test_a_finished_landscape_is_returned_at_once(landscape: Path) -> None:
    told: list[object] = []
    before = (landscape / "catalog.json").stat().st_mtime_ns
    assert (
        simulate_landscape(landscape, **SMALL, progress=told.append) == landscape / "catalog.json"
    )
    assert not told
    assert (landscape / "catalog.json").stat().st_mtime_ns == before


def test_another_landscape_in_the_way_is_refused_with_what_differs(landscape: Path) -> None:
    with pytest.raises(FileExistsError, match=r"differs in seed.*overwrite=True"):
        simulate_landscape(landscape, **{**SMALL, "seed": 8})


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_landscape_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not a virtual landscape"):
        simulate_landscape(tmp_path, **SMALL, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


class Stop(Exception):
    """Somebody interrupts."""


def test_an_interrupt_leaves_nothing_and_overwrite_keeps_the_old_one(tmp_path: Path) -> None:
    old = {"format": 0}
    target = tmp_path / "world"
    target.mkdir()
    (target / "catalog.json").write_text(json.dumps({"xsoilsm:configuration": old}))
    told: list[object] = []

    def interrupt(state: object) -> None:
        told.append(state)
        if state == "weather":
            raise Stop

    for folder, overwrite in ((tmp_path / "new", False), (target, True)):
        with pytest.raises(Stop):
            simulate_landscape(folder, **SMALL, progress=interrupt, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["world"]
    assert json.loads((target / "catalog.json").read_text())["xsoilsm:configuration"] == old
    shares = [one for one in told if isinstance(one, float)]
    assert shares
    assert all(0 <= share <= 1 for share in shares)


def test_overwrite_replaces_a_landscape(tmp_path: Path) -> None:
    target = tmp_path / "world"
    target.mkdir()
    (target / "catalog.json").write_text(json.dumps({"xsoilsm:configuration": {"format": 0}}))
    (target / "stale.tif").write_text("old")
    tiny = {**SMALL, "size_km": 1.0, "acquisitions": 1, "start": "2019-01-02"}
    written = simulate_landscape(target, **tiny, overwrite=True)
    assert json.loads(written.read_text())["xsoilsm:configuration"]["size_km"] == 1.0
    assert not (target / "stale.tif").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["world"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"centre": (41.3, -75.4)}, "longitude, latitude"),
        ({"centre": (179.9, 10.0)}, "longitude, latitude"),
        ({"size_km": 0.0}, "size_km"),
        ({"size_km": float("nan")}, "size_km"),
        ({"acquisitions": 0}, "acquisitions"),
        ({"spacing": 0.0}, "spacing"),
        ({"seed": -1}, "seed"),
        ({"start": "spring"}, "year-month-day"),
        ({"start": "2012-01-01"}, "in service"),
        ({"start": "2020-12-20"}, r"era5-pds ends on 2020-12-31"),
        ({"climate": "lunar"}, "mediterranean"),
        ({"land": "36km"}, "100m, 500m, 1km"),
    ],
)
def test_wrong_parameters_are_explained(
    tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        simulate_landscape(tmp_path / "never", **{**SMALL, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_coarser_land_is_the_same_world_under_the_same_pixels(tmp_path: Path) -> None:
    worlds = {
        land: simulate_landscape(tmp_path / land, **{**SMALL, "size_km": 8.0}, land=land).parent
        for land in ("100m", "500m")
    }
    relative = [path.relative_to(worlds["100m"]) for path in worlds["100m"].rglob("*.t*f*")]
    assert relative
    for name in relative:
        assert (worlds["500m"] / name).exists(), name
    names = {"nasadem": 0, "era5": 0}
    for name, content in digests(worlds["100m"]).items():
        if name.startswith("data/") and (kind := name.split("/")[1].partition("-")[0]) in names:
            assert digests(worlds["500m"])[name] == content, name
            names[kind] += 1
    assert all(names.values())

    truths = {}
    for land, size in (("100m", 100.0895), ("500m", 500.4475)):
        (path, *_) = sorted((worlds[land] / "truth").glob("*.tif"))
        with rasterio.open(path) as file:
            assert file.res == pytest.approx((size, size), abs=1e-3)
            truths[land] = float(np.nanmean(file.read(1)))
        (item, *_) = raw_items(worlds[land], "simulated-truth")
        band = item["assets"]["soil_moisture"]["raster:bands"][0]
        assert f"{band['spatial_resolution']}m" == land
        assert f"on the {land[:-1]} m EASE-Grid" in (worlds[land] / "README.md").read_text()
    assert truths["500m"] == pytest.approx(truths["100m"], abs=0.01)

    images = []
    for world in worlds.values():
        (path, *_) = sorted((world / "data" / "sentinel1-grd-rtc").rglob("iw-vv*"))
        with rasterio.open(path) as file:
            data = file.read(1, masked=True)
            images.append((data.mask, float(10 * np.log10(data[data > 0].mean()))))
    assert images[0][0].shape == images[1][0].shape
    assert images[1][1] == pytest.approx(images[0][1], abs=0.3)


# --- the catalog and its forms ------------------------------------------------------------------


def test_every_link_and_every_promised_file_exists(
    landscape: Path, catalog: pystac.Catalog
) -> None:
    seen = 0
    for item in catalog.get_items(recursive=True):
        seen += 1
        for rel in ("root", "parent", "collection"):
            assert Path(item.get_single_link(rel).get_absolute_href()).is_file()
        for key, asset in item.assets.items():
            promised = item.collection_id != "sentinel-1-grd" or key.startswith("schema-product")
            assert Path(asset.get_absolute_href()).exists() is promised, (item.id, key)
        assert item.properties["xsoilsm:simulated"] is True
        assert "Simulated" in item.properties["description"]
    assert seen == sum(len(raw_items(landscape, c.id)) for c in catalog.get_children())
    for text in landscape.rglob("*.json"):
        assert str(landscape.parent) not in text.read_text()
    assert "Simulated" in (landscape / "README.md").read_text()
    for collection in catalog.get_children():
        assert "Simulated" in collection.description
        assert collection.extent.temporal.intervals[0][0] is not None


REAL = {
    "sentinel-1-rtc": ({"vv", "vh"}, {"tilejson", "rendered_preview"}),
    "sentinel-1-grd": (None, {"thumbnail", "safe-manifest", "tilejson", "rendered_preview"}),
    "modis-13Q1-061": ({"250m_16_days_NDVI", "250m_16_days_pixel_reliability"}, None),
    "nasadem": ({"elevation"}, None),
    "era5-pds": ({"precipitation_amount_1hour_Accumulation"}, None),
}
"""By collection: assets of a simulated item, or what it leaves out of the real one."""


def kind_of(value: object) -> object:
    """Type of a JSON value; numbers are one type, lists go by their first value."""
    if isinstance(value, bool) or value is None:
        return type(value)
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, list):
        return ["list", kind_of(value[0])] if value else ["list"]
    return type(value)


@pytest.mark.parametrize("collection", sorted(REAL))
def test_items_have_the_fields_of_the_real_ones(
    landscape: Path, shared: Path, collection: str
) -> None:
    path = shared / "data" / "stac" / f"pc_{collection}_item.json"
    real = json.loads(path.read_text(encoding="utf-8"))
    for item in raw_items(landscape, collection):
        if item["properties"].get("era5:kind") == "an":
            continue
        kept, left = REAL[collection]
        expected = kept if kept is not None else set(real["assets"]) - (left or set())
        assert set(item["assets"]) == expected
        assert set(item["properties"]) == set(real["properties"]) | SAID
        assert item["stac_extensions"] == real["stac_extensions"]
        assert item["stac_version"] == real["stac_version"]
        assert item["collection"] == collection
        for key in set(real["properties"]) - {"cube:variables", "cube:dimensions"}:
            mine, theirs = item["properties"][key], real["properties"][key]
            assert kind_of(mine) == kind_of(theirs), key
            if isinstance(theirs, str) and key.endswith("datetime"):
                pattern = ["d" if c.isdigit() else c for c in theirs]
                assert ["d" if c.isdigit() else c for c in mine] == pattern, key
        for key, asset in item["assets"].items():
            model = real["assets"][key]
            assert set(asset) == set(model), key
            assert asset["type"] == model["type"]
            assert asset["roles"] == model["roles"]
            for mine, theirs in zip(
                asset.get("raster:bands", []), model.get("raster:bands", []), strict=True
            ):
                same = set(theirs) - {"spatial_resolution"}
                assert {k: mine[k] for k in same} == {k: theirs[k] for k in same}
                assert set(mine) == set(theirs)


def test_weather_items_describe_the_real_variables(landscape: Path, shared: Path) -> None:
    folder = shared / "data" / "stac"
    collection = json.loads((folder / "pc_era5-pds_collection.json").read_text(encoding="utf-8"))
    model = json.loads((folder / "pc_era5-pds_item.json").read_text(encoding="utf-8"))
    for item in raw_items(landscape, "era5-pds"):
        properties = item["properties"]
        for name, described in properties["cube:variables"].items():
            real = collection["cube:variables"][name]
            assert set(described) == set(real)
            assert described["attrs"] == real["attrs"]
            assert described["dimensions"] == real["dimensions"]
        for name, axis in properties["cube:dimensions"].items():
            real = model["properties"]["cube:dimensions"][name]
            assert {k: v for k, v in axis.items() if k != "extent"} == {
                k: v for k, v in real.items() if k != "extent"
            }
        for asset in item["assets"].values():
            options = dict(next(iter(model["assets"].values()))["xarray:open_kwargs"])
            options.pop("storage_options")
            assert asset["xarray:open_kwargs"] == options


RASTERS = [
    ("sentinel-1-rtc", "vv", "float32", -32768.0),
    ("sentinel-1-rtc", "vh", "float32", -32768.0),
    ("modis-13Q1-061", "250m_16_days_NDVI", "int16", None),
    ("modis-13Q1-061", "250m_16_days_pixel_reliability", "int8", None),
    ("nasadem", "elevation", "int16", None),
    ("soilgrids-2.0", "sand", "int16", -32768.0),
    ("soilgrids-2.0", "bdod", "int16", -32768.0),
    ("simulated-truth", "soil_moisture", "float32", np.nan),
]


@pytest.mark.parametrize(("collection", "asset", "dtype", "nodata"), RASTERS)
def test_files_are_valid_cogs_on_the_grid_that_the_item_says(
    catalog: pystac.Catalog, collection: str, asset: str, dtype: str, nodata: float | None
) -> None:
    for item in items_of(catalog, collection)[:3]:
        path = href(item, asset)
        assert cog_validate(path, quiet=True)[0]
        (geobox,) = odc.stac.parse_item(item).geoboxes(bands=[asset])
        with rasterio.open(path) as file:
            assert file.dtypes == (dtype,)
            assert file.shape == tuple(item.properties["proj:shape"]) == tuple(geobox.shape)
            given_transform = item.properties["proj:transform"][:6]
            assert np.allclose(list(file.transform)[:6], given_transform, rtol=1e-12)
            assert file.crs == rasterio.CRS.from_user_input(str(geobox.crs))
            if nodata is None or np.isnan(nodata):
                assert (file.nodata is None) == (nodata is None)
            else:
                assert file.nodata == nodata
            assert file.profile["compress"] == "deflate"


def test_checksums_of_radar_files_hold(catalog: pystac.Catalog) -> None:
    for item in items_of(catalog, "sentinel-1-rtc"):
        for key in ("vv", "vh"):
            content = Path(href(item, key)).read_bytes()
            fields = item.assets[key].extra_fields
            assert fields["file:size"] == len(content)
            assert fields["file:checksum"] == hashlib.md5(content).hexdigest()


# odc-geo 0.5 calls a function that shapely 2.2 announces to give up.
@pytest.mark.filterwarnings(r"ignore:The 'shapely.ops.transform\(\)':DeprecationWarning")
def test_odc_stac_loads_every_collection_on_a_cube_grid(catalog: pystac.Catalog) -> None:
    geobox = ease2_geobox((-5.414, 41.29, -5.386, 41.31), "100m")
    expected = {
        "sentinel-1-rtc": (["vv", "vh"], 1e-4, 30.0),
        "modis-13Q1-061": (["250m_16_days_NDVI"], -3000, 10000),
        "nasadem": (["elevation"], 400, 1400),
        "soilgrids-2.0": (["sand", "clay", "bdod"], 10, 900),
        "simulated-truth": (["soil_moisture"], 0.03, 0.58),
    }
    for collection, (bands, low, high) in expected.items():
        items = items_of(catalog, collection)[:2]
        data = odc.stac.load(items, bands=bands, geobox=geobox, resampling="average")
        for band in bands:
            values = data[band].values.astype(float)
            values = values[np.isfinite(values) & (values != -32768)]
            assert values.size > 0.5 * geobox.shape[0] * geobox.shape[1]
            assert low <= values.min() <= values.max() <= high, (collection, band)


# --- radar products -----------------------------------------------------------------------------


def test_one_pass_is_whole_and_the_next_comes_in_two_overlapping_slices(
    landscape: Path, catalog: pystac.Catalog
) -> None:
    items = items_of(catalog, "sentinel-1-rtc")
    passes: dict[int, list[pystac.Item]] = {}
    for item in items:
        passes.setdefault(item.properties["sat:absolute_orbit"], []).append(item)
    assert sorted(len(slices) for slices in passes.values()) == [1, 2]
    states = {item.properties["sat:orbit_state"] for item in items}
    orbits = {item.properties["sat:relative_orbit"] for item in items}
    assert states == {"ascending", "descending"}
    assert len(orbits) == 2
    for item in items:
        source = item.get_single_link("derived_from").get_absolute_href()
        assert pystac.Item.from_file(source).id == item.id.removesuffix("_rtc")
        hour = item.datetime.hour + item.datetime.minute / 60 + CENTRE[0] / 15
        expected = 18 if item.properties["sat:orbit_state"] == "ascending" else 6
        assert abs(hour - expected) < 1

    first, second = next(slices for slices in passes.values() if len(slices) == 2)
    assert len({item.properties["s1:slice_number"] for item in (first, second)}) == 2
    images = []
    for item in (first, second):
        with rasterio.open(href(item, "vv")) as file:
            images.append((file.read(1), file.transform, file.crs))
    (one, here, crs), (two, there, other) = images
    assert crs == other
    shift = round((here.f - there.f) / 50), round((there.c - here.c) / 50)
    rows = slice(max(shift[0], 0), min(one.shape[0], two.shape[0] + shift[0]))
    columns = slice(max(shift[1], 0), min(one.shape[1], two.shape[1] + shift[1]))
    a = one[rows, columns]
    b = two[
        rows.start - shift[0] : rows.stop - shift[0],
        columns.start - shift[1] : columns.stop - shift[1],
    ]
    both = (a > 0) & (b > 0)
    assert both.sum() > 1000
    assert np.array_equal(a[both], b[both])
    height = both.any(axis=1).sum() * 50
    assert height >= 3000  # both hold the overlap of 3.4 km, or all of the region


def test_slices_end_in_zeros_and_then_nodata(tmp_path: Path) -> None:
    place = Place(CENTRE, 12.0, 3)
    from xsoilsm.simulate.radar import make_slices
    from xsoilsm.simulate.scene import cut_slice

    (_, one) = overpasses(CENTRE, np.datetime64("2020-04-01"), 2, 100.0)
    geobox = image_geobox(place, one, 100.0)
    image = render(place, one, geobox, flat_surface(place), number=0)
    slices = make_slices(place, one, geobox, cut=True)
    assert len(slices) == 2
    seen = np.zeros(geobox.shape, dtype=int)
    for part in slices:
        window, data = cut_slice(image, part)
        values = data["vv"]
        fringe, beyond, valid = (values == 0), (values == -32768), (values > 0)
        assert (fringe | beyond | valid).all()
        assert 0.3 < valid.mean() < 1
        assert 0.005 < fringe.mean() < 0.1
        top = round((geobox.affine.f - window.affine.f) / 100)
        left = round((window.affine.c - geobox.affine.c) / 100)
        seen[top : top + values.shape[0], left : left + values.shape[1]] += valid
    assert (seen > 0).mean() > 0.9
    assert 0.1 < (seen == 2).mean() < 0.5


def test_flat_ground_follows_gamma0_is_sigma0_over_cosine() -> None:
    incidence = np.array([30.0, 38.0, 45.0], np.float32)
    cosine = np.cos(np.deg2rad(incidence))
    level = np.zeros(3, np.float32)
    local = local_incidence(cosine, np.sqrt(1 - cosine**2), (level, level + 1), level, level)
    assert np.allclose(local, cosine, atol=1e-6)
    sigma0 = bare_soil(level + 0.2, level + 1, incidence, "vv")
    assert np.allclose(terrain_flattened(sigma0, local) * cosine, sigma0, rtol=1e-6)


def test_a_slope_towards_the_radar_is_seen_more_steeply() -> None:
    cosine, sine = (np.full(4, f(np.deg2rad(40)), np.float32) for f in (np.cos, np.sin))
    east_look = np.ones(4, np.float32), np.zeros(4, np.float32)  # the satellite is in the east
    rise = np.array([-0.2, 0.2, 0.0, 0.0], np.float32)  # falls to the east: faces the satellite
    north = np.array([0, 0, 0.2, -0.2], np.float32)
    angle = np.rad2deg(np.arccos(local_incidence(cosine, sine, east_look, rise, north)))
    tilt = np.rad2deg(np.arctan(0.2))
    assert np.allclose(angle[:2], [40 - tilt, 40 + tilt], atol=1e-3)
    assert angle[2] == pytest.approx(angle[3])


def flat_surface(place: Place) -> Surface:
    """Cover everything with the same bare soil."""
    shape = tuple(place.geobox.shape)
    soil = {key: np.full(shape, level, np.float32) for key, level in (("vv", 0.3), ("vh", 0.1))}
    return Surface(soil, np.zeros(shape, np.float32), np.ones(shape, np.float32))


def test_a_homogeneous_surface_has_speckle_of_4_4_looks() -> None:
    place = Place(CENTRE, 4.0, 1)
    one = overpasses(CENTRE, np.datetime64("2020-04-01"), 1, 20.0)[0]
    geobox = image_geobox(place, one, 20.0)
    first, second = (
        render(place, one, geobox, flat_surface(place), number=number) for number in (0, 1)
    )
    # Terrain cancels in the ratio; the variance of the log of gamma speckle is the trigamma.
    ratio = np.log(first.gamma0["vv"] / second.gamma0["vv"])
    assert np.nanvar(ratio) / 2 == pytest.approx(float(polygamma(1, 4.4)), rel=0.02)
    other = np.log(first.gamma0["vv"] / first.gamma0["vh"])
    assert abs(np.corrcoef(ratio[:, 1:].ravel(), ratio[:, :-1].ravel())[0, 1]) < 0.03
    assert np.nanvar(other) > 0.4


def test_images_do_not_depend_on_threads() -> None:
    place = Place(CENTRE, 6.0, 1)
    one = overpasses(CENTRE, np.datetime64("2020-04-01"), 1, 20.0)[0]
    geobox = image_geobox(place, one, 20.0)
    assert geobox.shape[0] > 256
    alone, together = (
        render(place, one, geobox, flat_surface(place), number=0, threads=threads)
        for threads in (1, 3)
    )
    assert np.array_equal(alone.gamma0["vh"], together.gamma0["vh"], equal_nan=True)


def test_incidence_of_the_image_is_that_of_the_annotation(
    landscape: Path, catalog: pystac.Catalog, place: Place
) -> None:
    for one, state in zip(
        overpasses(CENTRE, np.datetime64("2020-04-01"), 2, 50.0),
        ("descending", "ascending"),
        strict=True,
    ):
        assert one.orbit_state == state
        image = render(place, one, image_geobox(place, one, 50.0), flat_surface(place), number=0)
        item = next(
            i
            for i in items_of(catalog, "sentinel-1-grd")
            if i.properties["sat:orbit_state"] == state
        )
        grid = annotation_points(annotation_path(item))
        design = np.stack(
            [
                grid["longitude"] ** i * grid["latitude"] ** j
                for i in range(4)
                for j in range(4 - i)
            ],
            axis=-1,
        )
        fit = np.linalg.lstsq(design, grid["incidenceAngle"], rcond=None)[0]
        x, y = image.geobox.affine.c + 2500, image.geobox.affine.f - 2500
        to_lonlat = Transformer.from_crs(str(image.geobox.crs), "EPSG:4326", always_xy=True)
        lon, lat = to_lonlat.transform(x, y)
        value = sum(
            c * lon**i * lat**j
            for c, (i, j) in zip(fit, [(i, j) for i in range(4) for j in range(4 - i)], strict=True)
        )
        assert float(image.incidence[50, 50]) == pytest.approx(value, abs=0.03)


# --- annotation and geometry --------------------------------------------------------------------


def annotation_path(item: pystac.Item, key: str = "vv") -> Path:
    """Derive the product annotation from the measurement's path."""
    return Path(href(item, key).replace("/measurement/", "/annotation/")).with_suffix(".xml")


def annotation_points(path: Path) -> dict[str, np.ndarray]:
    points = list(ET.parse(path).getroot().iter("geolocationGridPoint"))
    names = [child.tag for child in points[0] if child.tag != "azimuthTime"]
    values = {n: np.array([float(p.findtext(n)) for p in points]) for n in names}
    values["azimuthTime"] = np.array(
        [np.datetime64(p.findtext("azimuthTime"), "ns") for p in points]
    )
    return values


def orbit_at(path: Path, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position and velocity (point, 3) from an annotation's own state vectors."""
    from scipy.interpolate import CubicHermiteSpline

    states = list(ET.parse(path).getroot().iter("orbit"))
    when = np.array([np.datetime64(s.findtext("time"), "ns") for s in states])
    begin = when[0]
    position, velocity = (
        np.array([[float(s.findtext(f"{what}/{axis}")) for axis in "xyz"] for s in states])
        for what in ("position", "velocity")
    )
    seconds = (when - begin) / np.timedelta64(1, "s")
    spline = CubicHermiteSpline(seconds, position, velocity)
    at = (time - begin) / np.timedelta64(1, "s")
    return spline(at), spline.derivative()(at)


def assert_consistent(path: Path) -> dict[str, np.ndarray]:
    """Check a geolocation grid against range, zero Doppler and the triangle of radii."""
    grid = annotation_points(path)
    position, velocity = orbit_at(path, grid["azimuthTime"])
    to_earth = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
    point = np.stack(
        to_earth.transform(grid["longitude"], grid["latitude"], grid["height"]), axis=-1
    )
    line = point - position
    distance = np.linalg.norm(line, axis=1)
    slant = grid["slantRangeTime"] * 299792458.0 / 2
    assert np.abs(distance - slant).max() < 0.1
    speed = np.linalg.norm(velocity, axis=1)
    assert np.abs((line * velocity).sum(axis=1) / distance / speed).max() < 1e-5
    orbit, ground = np.linalg.norm(position, axis=1), np.linalg.norm(point, axis=1)
    cosine = (orbit**2 - distance**2 - ground**2) / (2 * distance * ground)
    assert np.abs(np.rad2deg(np.arccos(cosine)) - grid["incidenceAngle"]).max() < 0.01
    right = np.einsum("ij,ij->i", line, np.cross(velocity, position))
    assert (right > 0).all()
    return grid


def test_annotation_is_consistent_and_spans_the_swath(catalog: pystac.Catalog) -> None:
    for item in items_of(catalog, "sentinel-1-grd"):
        grid = assert_consistent(annotation_path(item))
        assert grid["incidenceAngle"].min() > 29.1
        assert 44 < grid["incidenceAngle"].max() < 46
        assert (np.diff(grid["incidenceAngle"].reshape(-1, 21), axis=1) > 0).all()
        assert 20 < grid["height"].std() < 300  # on the terrain
        assert len(grid["line"]) == 210


def test_the_real_annotation_passes_the_same_check(shared: Path) -> None:
    (path,) = (shared / "data" / "s1_annotation").glob("*/annotation/*-vv-*.xml")
    assert_consistent(path)


def test_annotation_has_the_structure_of_the_real_one(
    catalog: pystac.Catalog, shared: Path
) -> None:
    (path,) = (shared / "data" / "s1_annotation").glob("*/annotation/*-vv-*.xml")

    def paths(root: ET.Element) -> set[str]:
        found: set[str] = set()

        def walk(node: ET.Element, above: str) -> None:
            if isinstance(node.tag, str):
                found.add(f"{above}/{node.tag}")
                for child in node:
                    walk(child, f"{above}/{node.tag}")

        walk(root, "")
        return found

    real = ET.parse(path).getroot()
    for key in ("vv", "vh"):
        mine = ET.parse(annotation_path(items_of(catalog, "sentinel-1-grd")[0], key)).getroot()
        assert paths(mine) <= paths(real)
        for part in ("geolocationGrid", "coordinateConversion", "adsHeader", "swathMerging"):
            assert paths(mine.find(part)) == paths(real.find(part))
        assert mine.findtext("adsHeader/polarisation") == key.upper()


def test_ground_range_polynomials_agree_with_the_geolocation_grid(catalog: pystac.Catalog) -> None:
    path = annotation_path(items_of(catalog, "sentinel-1-grd")[0])
    grid, root = annotation_points(path), ET.parse(path).getroot()
    conversion = root.find(".//coordinateConversionList/coordinateConversion")
    srgr, grsr = (
        np.array(conversion.findtext(f"{name}Coefficients").split(), float)
        for name in ("srgr", "grsr")
    )
    spacing = float(root.findtext(".//rangePixelSpacing"))
    slant = grid["slantRangeTime"] * 299792458.0 / 2
    ground = np.polynomial.polynomial.polyval(slant - float(conversion.findtext("sr0")), srgr)
    assert np.abs(ground / spacing - grid["pixel"]).max() < 0.1
    back = np.polynomial.polynomial.polyval(grid["pixel"] * spacing, grsr)
    assert np.abs(back - slant).max() < 1


def test_the_product_asset_leads_to_the_interference_annotation(catalog: pystac.Catalog) -> None:
    item = items_of(catalog, "sentinel-1-grd")[0]
    assert item.assets["schema-product-vv"].href.endswith("/annotation/rfi/rfi-iw-vv.xml")
    trap = ET.parse(href(item, "schema-product-vv")).getroot()
    assert trap.find(".//geolocationGridPoint") is None
    assert len(annotation_points(annotation_path(item))["line"]) > 0


@settings(max_examples=25)
@given(
    lon=st.floats(-170, 170),
    lat=st.floats(-50, 58),
    share=st.floats(0.01, 0.99),
    later=st.floats(-12, 12),
    height=st.floats(0, 3000),
)
def test_finding_a_ground_point_undoes_placing_it(
    lon: float, lat: float, share: float, later: float, height: float
) -> None:
    for _, geometry in find_tracks((lon, lat), 10.0).values():
        time, pixel = geometry.centre_time + later, share * geometry.samples
        found = geometry.locate(*geometry.ground(time, pixel, height), height)
        assert float(found.time) == pytest.approx(time, abs=1e-6)
        assert float(found.pixel) == pytest.approx(pixel, abs=1e-3)
        assert 28 < float(found.incidence) < 47


def test_orbits_are_those_of_the_real_satellites(shared: Path) -> None:
    folder = shared / "data" / "stac"
    real = json.loads((folder / "sentinel-1-rtc-pc.json").read_text(encoding="utf-8"))
    real += [
        json.loads((folder / f"pc_sentinel-1-{kind}_item.json").read_text(encoding="utf-8"))
        for kind in ("rtc", "grd")
    ]
    for item in real:
        properties = item["properties"]
        absolute = properties["sat:absolute_orbit"]
        assert relative_orbit("A", absolute) == properties["sat:relative_orbit"]
        ring = np.array(item["geometry"]["coordinates"][0])
        lon, lat = (ring.min(axis=0) + ring.max(axis=0)) / 2
        begin = node_time("A", absolute)
        seconds = float(
            (np.datetime64(properties["datetime"][:-1]) - begin) / np.timedelta64(1, "s")
        )
        orbit = properties["sat:relative_orbit"]
        geometry = Geometry(node_longitude(orbit), seconds, 6_372_000.0, 10.0)
        found = geometry.locate(lon, lat, 0.0)
        assert float(found.time) == pytest.approx(seconds, abs=10)
        assert 38 < float(found.incidence) < 40  # the middle of the swath


def test_passes_alternate_and_return_after_twelve_days() -> None:
    passes = overpasses(CENTRE, np.datetime64("2020-04-01"), 5, 10.0)
    states = [one.orbit_state for one in passes]
    assert all(a != b for a, b in itertools.pairwise(states))
    gaps = np.diff([one.time for one in passes]) / np.timedelta64(1, "D")
    assert gaps.min() >= 2
    assert passes[0].time >= np.datetime64("2020-04-01")
    by_track: dict[int, list[np.datetime64]] = {}
    for one in passes:
        by_track.setdefault(one.relative_orbit, []).append(one.time)
        assert relative_orbit(one.platform, one.absolute_orbit) == one.relative_orbit
    for times in by_track.values():
        days = np.diff(times) / np.timedelta64(1, "D")
        assert np.allclose(days % 6, 0, atol=1e-6) or np.allclose(days % 6, 6, atol=1e-6)


# --- backscatter --------------------------------------------------------------------------------


@given(
    moisture=st.floats(0.03, 0.5),
    more=st.floats(0.01, 0.2),
    rough=st.floats(0.2, 3.0),
    angle=st.floats(20, 50),
    green=st.floats(0, 0.8),
    polarisation=st.sampled_from(["vv", "vh"]),
)
def test_backscatter_rises_with_moisture_and_falls_with_the_angle(
    moisture: float, more: float, rough: float, angle: float, green: float, polarisation: Any
) -> None:
    def sigma0(m: float, a: float, v: float) -> float:
        inputs = (np.array([x], np.float64) for x in (m, rough, a))
        soil = bare_soil(*inputs, polarisation)
        return float(water_cloud(soil, np.array([v]), np.array([a]), polarisation)[0])

    assert sigma0(moisture + more, angle, green) > sigma0(moisture, angle, green)
    assert sigma0(moisture, angle + 3, 0.0) < sigma0(moisture, angle, 0.0)
    assert -45 < 10 * np.log10(sigma0(moisture, angle, green)) < 5
    dry, wet = sigma0(0.1, angle, green), sigma0(0.3, angle, green)
    bare = sigma0(0.3, angle, 0.0) / sigma0(0.1, angle, 0.0)
    assert wet / dry <= bare * (1 + 1e-6)  # vegetation hides the soil


def test_bare_soil_equals_the_published_formula() -> None:
    # Oh (2004) written out for one case: 0.2 m3 m-3, ks 1, 40 degrees.
    theta = np.deg2rad(40.0)
    vh = 0.11 * 0.2**0.7 * np.cos(theta) ** 2.2 * (1 - np.exp(-0.32))
    q = 0.095 * (0.13 + np.sin(1.5 * theta)) ** 1.4 * (1 - np.exp(-1.3))
    args = (np.array([0.2]), np.array([1.0]), np.array([40.0]))
    assert bare_soil(*args, "vh")[0] == pytest.approx(vh, rel=1e-6)
    assert bare_soil(*args, "vv")[0] == pytest.approx(vh / q, rel=1e-6)
    assert 10 * np.log10(vh / q) == pytest.approx(-11, abs=1)


def test_speckle_has_mean_one_and_the_stated_looks() -> None:
    values = speckle(generator(1, "test"), (400, 400)).astype(np.float64)
    assert values.mean() == pytest.approx(1, abs=0.01)
    assert values.mean() ** 2 / values.var() == pytest.approx(4.4, rel=0.03)


# --- land, water, weather -----------------------------------------------------------------------


def test_fields_do_not_depend_on_the_window() -> None:
    field = Fractal(5, "test", 800.0, 4)
    v, u = np.arange(-3000.0, 3000, 70), np.arange(10000.0, 16000, 90)
    whole = field.on_axes(v, u)
    assert np.array_equal(field.on_axes(v[20:50], u[10:40]), whole[20:50, 10:40])
    assert np.allclose(field.at(v[:, None], u[None, :]), whole, atol=1e-5)
    assert not np.allclose(Fractal(6, "test", 800.0, 4).on_axes(v, u), whole)
    assert not np.allclose(Fractal(5, "other", 800.0, 4).on_axes(v, u), whole)
    patches = Patches(5, "test", 500.0)
    cells = patches.on_axes(v, u)
    assert np.array_equal(patches.on_axes(v[20:50], u[10:40]), cells[20:50, 10:40])
    assert 50 < np.unique(cells).size < 400
    assert 0 < uniform(cells, 0).min() < uniform(cells, 0).max() < 1


def test_fields_have_mean_zero_and_variance_one() -> None:
    axis = np.arange(0, 400_000.0, 500)
    values = Fractal(1, "moments", 2000.0, 3).on_axes(axis, axis)
    assert abs(values.mean()) < 0.05
    assert values.var() == pytest.approx(1, abs=0.08)


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), wet=st.floats(0, 60), potential=st.floats(0, 9))
def test_the_bucket_conserves_water_and_stays_within_its_bounds(
    seed: int, wet: float, potential: float
) -> None:
    place = Place(CENTRE, 1.0, seed)
    lat, lon = place.axes
    land = make_land(place, lat[:8], lon[:8])
    soil = bucket.Soil(land)
    for name in ("porosity", "capacity", "wilting", "upper", "lower"):
        setattr(soil, name, getattr(soil, name).astype(np.float64))
    rng = np.random.default_rng(seed)
    for _ in range(60):
        rain = wet * rng.random(soil.upper.shape) * (rng.random() < 0.4)
        demand = np.full(soil.upper.shape, potential)
        cover = rng.random(soil.upper.shape)
        before = bucket.UPPER_MM * soil.upper + bucket.LOWER_MM * soil.lower
        lost = soil.step(rain, demand, cover)
        after = bucket.UPPER_MM * soil.upper + bucket.LOWER_MM * soil.lower
        budget = rain - lost.evaporation - lost.runoff - lost.drainage
        assert np.allclose(after - before, budget, atol=1e-9)
        for flux in (lost.evaporation, lost.runoff, lost.drainage):
            assert flux.min() >= 0
        assert (lost.evaporation <= demand + 1e-9).all()
        for layer in (soil.upper, soil.lower):
            assert layer.min() >= bucket.DRIEST - 1e-9
            assert (layer <= soil.porosity + 1e-9).all()


def test_more_rain_and_less_sun_leave_wetter_soil() -> None:
    place = Place(CENTRE, 1.0, 2)
    land = make_land(place, *place.axes)
    states = {}
    for rain, potential in ((0.0, 5.0), (2.0, 5.0), (2.0, 1.0)):
        soil = bucket.Soil(land)
        fields = [np.full(soil.upper.shape, x, np.float32) for x in (rain, potential, 0.4)]
        for _ in range(40):
            soil.step(*fields)
        states[rain, potential] = soil.upper
    assert (states[0.0, 5.0] < states[2.0, 5.0]).all()
    assert (states[2.0, 5.0] < states[2.0, 1.0]).all()


@pytest.mark.parametrize("climate", sorted(CLIMATES))
def test_vegetation_and_soils_keep_to_nature(climate: str) -> None:
    place = Place(CENTRE, 8.0, 4, CLIMATES[climate])
    land = make_land(place, *place.axes)
    days = np.arange("2019-01-01", "2020-01-01", 20, dtype="datetime64[D]")
    green = np.stack([ndvi(land, day) for day in days])
    assert green.min() >= -0.2
    assert green.max() <= 1
    crops = green[:, land.cover == CROP]
    assert np.ptp(crops.mean(axis=1)) > 0.1  # there are seasons
    assert crops.min() > 0
    assert (land.sand + land.clay <= 100).all()
    assert land.sand.min() >= 0
    assert (land.wilting_point < land.field_capacity).all()
    assert (land.field_capacity < land.porosity).all()
    assert 0.9 <= land.bulk_density.min() <= land.bulk_density.max() <= 1.75


def test_soil_moisture_does_not_depend_on_blocks_or_threads(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = overpasses(CENTRE, np.datetime64("2020-04-01"), 1, 50.0)
    date = passes[0].time.astype("datetime64[D]")
    weather = draw_weather(place, passes, date)
    land = make_land(place, *place.axes)
    whole = bucket.daily_soil_moisture(place, land, weather, [date])[date]
    monkeypatch.setattr(bucket, "BLOCK_CELLS", 1000)
    parts = bucket.daily_soil_moisture(place, land, weather, [date], threads=2)[date]
    assert np.array_equal(whole, parts, equal_nan=True)


def test_truth_is_on_the_grid_varies_and_answers_the_rain(
    catalog: pystac.Catalog, place: Place
) -> None:
    fields = []
    for item in items_of(catalog, "simulated-truth"):
        (geobox,) = odc.stac.parse_item(item).geoboxes()
        assert geobox == ease2_geobox(place.box(), "100m")
        assert grid_of(geobox)[0].name == "100m"
        with rasterio.open(href(item, "soil_moisture")) as file:
            fields.append(file.read(1))
    dry, wet = fields
    land = make_land(place, *place.axes)
    pad = (land.cover.shape[0] - dry.shape[0]) // 2
    water = land.cover[pad:-pad, pad:-pad] == WATER
    assert np.array_equal(np.isnan(dry), water)
    for field in fields:
        assert 0.03 <= np.nanmin(field) < np.nanmax(field) <= 0.58
        assert np.nanstd(field) > 0.02
    assert np.nanmean(wet) - np.nanmean(dry) > 0.03


def test_backscatter_of_the_landscape_answers_soil_moisture(place: Place) -> None:
    from xsoilsm.simulate.scene import make_surface

    land = make_land(place, *place.axes)
    one = overpasses(CENTRE, np.datetime64("2020-04-01"), 1, 50.0)[0]
    geobox = image_geobox(place, one, 50.0)
    green = ndvi(land, one.time.astype("datetime64[D]"))
    levels = []
    for moisture in (0.08, 0.16, 0.32):
        surface = make_surface(land, np.full(green.shape, moisture, np.float32), green)
        image = render(place, one, geobox, surface, number=0)
        levels.append(10 * np.log10(np.nanmedian(image.gamma0["vv"])))
    steps = np.diff(levels)
    assert (steps > 0.4).all()
    assert (steps < 2.2).all()  # bare soil: 7 dB per decade


# --- vegetation and weather as served -----------------------------------------------------------


def test_composites_come_every_eight_days_from_two_satellites(
    landscape: Path, catalog: pystac.Catalog
) -> None:
    items = raw_items(landscape, "modis-13Q1-061")
    starts = sorted(item["properties"]["start_datetime"][:10] for item in items)
    last_pass = max(item.datetime for item in items_of(catalog, "sentinel-1-rtc"))
    end = np.datetime64(last_pass.replace(tzinfo=None), "D") + 16
    assert starts == periods.period_starts("2019-01-01", end).astype(str).tolist()
    for item in items:
        properties = item["properties"]
        start = np.datetime64(properties["start_datetime"][:10])
        day = int((start - start.astype("datetime64[Y]")).astype(int)) + 1
        assert item["id"].startswith("MOD13Q1." if day % 16 == 1 else "MYD13Q1.")
        assert f".A{str(start)[:4]}{day:03d}.h17v04.061." in item["id"]
        assert properties["platform"] == ""
        assert properties["datetime"] is None
        # The window begins on a whole pixel of the tile's grid.
        a, _, left, _, _, top = properties["proj:transform"]
        size = 1111950.519667 / 4800
        assert a == pytest.approx(size, rel=1e-9)
        for value, origin in ((left, -20015109.354), (10007554.677, top)):
            steps = (value - origin) / size
            assert steps == pytest.approx(round(steps), abs=1e-4)


def test_composites_hold_ndvi_with_fill_and_reliability(
    catalog: pystac.Catalog, place: Place
) -> None:
    land = make_land(place, *place.axes)
    item = items_of(catalog, "modis-13Q1-061")[12]
    with rasterio.open(href(item, "250m_16_days_NDVI")) as file:
        green = file.read(1)
    with rasterio.open(href(item, "250m_16_days_pixel_reliability")) as file:
        rank = file.read(1)
    filled = green == -3000
    assert 0 < filled.sum()
    assert np.array_equal(filled, rank == -1)
    assert set(np.unique(rank)) <= {-1, 0, 1, 3}
    good = green[rank == 0] * 1e-4
    assert -0.2 <= good.min() < good.max() <= 1
    start = np.datetime64(item.properties["start_datetime"][:10])
    assert good.mean() == pytest.approx(float(ndvi(land, start + 8).mean()), abs=0.06)


def test_soil_layers_are_scaled_integers_of_the_land(catalog: pystac.Catalog, place: Place) -> None:
    land = make_land(place, *place.axes)
    (item,) = items_of(catalog, "soilgrids-2.0")
    for key, field, factor in (
        ("sand", land.sand, 10),
        ("clay", land.clay, 10),
        ("bdod", land.bulk_density, 100),
    ):
        with rasterio.open(href(item, key)) as file:
            values = file.read(1).astype(float)
            assert file.res == (250, 250)
        values = values[values != -32768]
        assert values.mean() / factor == pytest.approx(float(field.mean()), rel=0.03)


def test_terrain_is_whole_metres_at_whole_seconds(catalog: pystac.Catalog, place: Place) -> None:
    (item,) = items_of(catalog, "nasadem")
    assert item.id == "NASADEM_HGT_n41w006"
    with rasterio.open(href(item, "elevation")) as file:
        height, transform = file.read(1), file.transform
    lat = transform.f + transform.e * (np.arange(height.shape[0]) + 0.5)
    lon = transform.c + transform.a * (np.arange(height.shape[1]) + 0.5)
    assert np.abs(lat * 3600 - np.rint(lat * 3600)).max() < 1e-6
    assert np.abs(height - place.elevation(lat, lon)).max() <= 0.501
    west, south, east, north = place.box()
    assert lon[0] < west < east < lon[-1]
    assert lat[-1] < south < north < lat[0]


@pytest.fixture(scope="module")
def hourly(catalog: pystac.Catalog) -> xr.Dataset:
    """Temperature and precipitation of all months."""
    parts: dict[str, list[xr.Dataset]] = {"an": [], "fc": []}
    for item in items_of(catalog, "era5-pds"):
        (asset,) = item.assets.values()
        options = asset.extra_fields["xarray:open_kwargs"]
        opened = xr.open_dataset(asset.get_absolute_href(), **options)
        parts[item.properties["era5:kind"]].append(opened.load())
        opened.close()
    return xr.merge(
        [xr.concat(kind, "time", data_vars="minimal") for kind in parts.values()],
        join="exact",
        compat="no_conflicts",
    )


def test_weather_served_is_the_weather_of_the_land(hourly: xr.Dataset, place: Place) -> None:
    passes = overpasses(CENTRE, np.datetime64("2020-04-01"), 2, 50.0)
    truth = draw_weather(place, passes, passes[-1].time.astype("datetime64[D]") + 16)
    east = np.mod(truth.lon, 360)
    assert np.array_equal(hourly.lon, east)
    assert np.array_equal(hourly.lat, truth.lat)
    assert (np.diff(hourly.lat) == -0.25).all()
    assert (np.diff(hourly.time) == np.timedelta64(1, "h")).all()
    first = int(np.flatnonzero(truth.dates == np.datetime64("2019-01-01"))[0])
    hours = hourly["air_temperature_at_2_metres"].values
    daily = hours.reshape(-1, 24, *hours.shape[1:]).mean(axis=1) - 273.15
    count = daily.shape[0]
    assert np.allclose(daily, truth.temperature[first : first + count], atol=1e-3)
    rain = hourly["precipitation_amount_1hour_Accumulation"].values
    fell = rain[1:-23].reshape(-1, 24, *rain.shape[1:]).sum(axis=1)  # 01 UTC to 00 UTC
    expected = truth.precipitation[first : first + count - 1] / 1000
    assert np.allclose(fell, expected, atol=1e-7)
    assert rain.min() >= 0
    bounds = hourly["time1_bounds"].values
    assert (bounds[:, 1] == hourly.time.values).all()
    assert (bounds[:, 1] - bounds[:, 0] == np.timedelta64(1, "h")).all()
    warmest = hours[:, 2, 2].reshape(-1, 24).mean(axis=0).argmax()
    assert warmest == 15  # local time is UTC - 0.4 h


def test_weather_is_dry_before_the_first_pass_and_rains_before_the_second(place: Place) -> None:
    passes = overpasses(CENTRE, np.datetime64("2020-04-01"), 2, 50.0)
    weather = draw_weather(place, passes, np.datetime64("2020-05-01"))
    first, second = (one.time.astype("datetime64[D]") for one in passes)
    daily = weather.precipitation.mean(axis=(1, 2))
    at = weather.index
    assert daily[at(first - 4) : at(first) + 1].max() == 0
    assert daily[at(first) + 1 : at(second) + 1].sum() > 10
    assert weather.dates[0] <= np.datetime64("2018-10-01")
    with pytest.raises(ValueError, match="weather runs from"):
        weather.index(np.datetime64("2030-01-01"))


def test_climates_differ_as_named() -> None:
    annual = {}
    for name, climate in CLIMATES.items():
        place = Place(CENTRE, 3.0, 11, climate)
        passes = overpasses(CENTRE, np.datetime64("2020-04-01"), 1, 50.0)
        weather = draw_weather(place, passes, np.datetime64("2020-12-31"))
        years = weather.dates.size / 365.25
        temperature = weather.temperature[-730:]
        annual[name] = (
            weather.precipitation.mean(axis=(1, 2)).sum() / years,
            np.ptp(temperature.reshape(73, 10, -1).mean(axis=(1, 2))),
        )
    rain = {name: value[0] for name, value in annual.items()}
    assert rain["semiarid"] < 350 < rain["mediterranean"] < rain["temperate"] < 1100
    assert annual["continental"][1] > annual["temperate"][1]
    assert MEDITERRANEAN is CLIMATES["mediterranean"]


def test_places_on_seams_of_tiles_are_served_in_parts(tmp_path: Path) -> None:
    # The Greenwich meridian: a seam of terrain tiles, MODIS tiles and longitudes 0 to 360.
    centre = (0.01, 48.0)
    path = simulate_landscape(
        tmp_path / "seam",
        centre=centre,
        size_km=2.0,
        spacing=100.0,
        acquisitions=1,
        climate="temperate",
    )
    catalog = pystac.Catalog.from_file(str(path))
    tiles = {item.id[-7:] for item in items_of(catalog, "nasadem")}
    assert tiles == {"n47w001", "n47e000", "n48w001", "n48e000"}
    windows = {item.id.split(".")[2] for item in items_of(catalog, "modis-13Q1-061")}
    assert windows == {"h17v04", "h18v04"}
    item = items_of(catalog, "era5-pds")[0]
    (asset,) = item.assets.values()
    with xr.open_dataset(
        asset.get_absolute_href(), **asset.extra_fields["xarray:open_kwargs"]
    ) as data:
        assert (np.diff(data.lon) > 0).all()
        assert data.lon.values[0] == 0.0
        assert data.lon.values[-1] == 359.75
    columns = []
    for item in items_of(catalog, "nasadem"):
        if item.id.endswith(("n48w001", "n48e000")):
            with rasterio.open(href(item, "elevation")) as file:
                columns.append(file.read(1))
    east, west = columns
    assert np.array_equal(east[:, 0], west[:, -1])  # tiles share the posts of their edge
