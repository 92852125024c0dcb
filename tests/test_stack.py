"""Cubes from stacks that users loaded with odc-stac and stackstac, against load_cube."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import odc.stac
import pystac
import pytest
import stackstac
import xarray as xr

import xsoilsm
from xsoilsm.catalog import Catalog, CatalogError, open_catalog
from xsoilsm.checks import check_cube
from xsoilsm.cube import CubeError, SourceFlag
from xsoilsm.loading import load_cube
from xsoilsm.simulate import simulate_landscape

CENTRE = (-5.4, 41.3)
BBOX = (-5.412, 41.292, -5.388, 41.308)
GEOBOX = xsoilsm.ease2_geobox(BBOX, "100m")
ZONES = (32629, 32630)
"""The two passes of the landscape lie in two UTM zones."""

pytestmark = pytest.mark.filterwarnings(
    # stackstac 0.5 is no longer maintained.
    "ignore::DeprecationWarning:stackstac",
    "ignore::FutureWarning:stackstac",
)


@pytest.fixture(scope="module")
def landscape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stack") / "world"
    simulate_landscape(folder, centre=CENTRE, size_km=3, acquisitions=2, spacing=20, seed=3)
    return folder


def catalog_with(landscape: Path, **changes: Any) -> Catalog:
    path = Path(__file__).parents[1] / "catalogs" / "demo.yaml"
    catalog = open_catalog(path, endpoints={"landscape": str(landscape / "catalog.json")})
    source = catalog.sources["radar"][0].model_copy(update=changes)
    return catalog.model_copy(update={"sources": {**catalog.sources, "radar": (source,)}})


@pytest.fixture(scope="module")
def flat(landscape: Path) -> Catalog:
    return catalog_with(landscape, sigma0_from="rtc-flat")


@pytest.fixture(scope="module")
def expected(flat: Catalog) -> xr.Dataset:
    return load_cube(GEOBOX, "2020-04", catalog=flat).compute()


def odc_stacks(landscape: Path, **options: Any) -> list[xr.Dataset]:
    """One stack for each zone, as odc-stac gives it."""
    collection = pystac.Catalog.from_file(str(landscape / "catalog.json")).get_child(
        "sentinel-1-rtc"
    )
    assert collection is not None
    items = list(collection.get_items())
    zones = [[i for i in items if i.ext.proj.code == f"EPSG:{zone}"] for zone in ZONES]
    options = {"bands": ["vv", "vh"], "chunks": {"x": 128, "y": 128}, **options}
    return [odc.stac.load(some, **options) for some in zones]


def stackstac_stacks(landscape: Path, **options: Any) -> list[xr.DataArray]:
    """One stack for each zone, as stackstac gives it of plain items."""
    items = []
    for file in sorted((landscape / "stac" / "sentinel-1-rtc").glob("S1*.json")):
        item = json.loads(file.read_text())
        for asset in item["assets"].values():
            asset["href"] = str((file.parent / asset["href"]).resolve())
        items.append(item)
    zones = [[i for i in items if i["properties"]["proj:epsg"] == zone] for zone in ZONES]
    options = {"assets": ["vv", "vh"], "chunksize": 128, **options}
    return [stackstac.stack(some, **options) for some in zones]


def assert_same_cube(cube: xr.Dataset, expected: xr.Dataset, atol: float = 0.003) -> None:
    """Compare cell by cell; the correction of cells in place of pixels stays below 0.003 dB.

    Within a cell the angle changes by 0.007 degrees at 100 m, which is 0.0006 dB where a cell is
    half covered; the angle is linear over a cell to far less.
    """
    check_cube(cube)
    whole = expected.coverage.values > 0.999
    assert whole.all()
    np.testing.assert_array_equal(cube.x, expected.x)
    np.testing.assert_array_equal(cube.y, expected.y)
    for name in ("sigma0_vv", "sigma0_vh"):
        np.testing.assert_allclose(cube[name], expected[name], rtol=0, atol=atol)
        assert cube[name].attrs["averaging"] == "dB"
    np.testing.assert_allclose(cube.incidence_angle, expected.incidence_angle, atol=2e-3)
    np.testing.assert_allclose(cube.coverage, expected.coverage, atol=1e-5)
    np.testing.assert_array_equal(cube.time, expected.time)
    for name in ("orbit_state", "relative_orbit", "platform"):
        assert cube[name].values.tolist() == expected[name].values.tolist()
    for name in set(expected.data_vars) - {"sigma0_vv", "sigma0_vh", "incidence_angle", "coverage"}:
        np.testing.assert_array_equal(cube[name], expected[name], err_msg=str(name))


# --- the two loaders ----------------------------------------------------------------------------


def test_a_stack_of_odc_is_the_cube_of_load_cube(
    landscape: Path, flat: Catalog, expected: xr.Dataset
) -> None:
    stacks = odc_stacks(landscape)
    cube = xsoilsm.cube_from_stack(stacks, GEOBOX, catalog=flat, quantity="gamma0", scale="linear")
    assert all(data.chunks is not None for data in cube.data_vars.values())
    assert cube.sigma0_vv.attrs["sigma0_from"] == "rtc-flat"
    assert cube.sigma0_from.values.tolist() == ["rtc-flat", "rtc-flat"]
    assert_same_cube(cube.compute(), expected)


@pytest.mark.parametrize("xy", ["topleft", "center"])
def test_a_stack_of_stackstac_is_the_cube_of_load_cube(
    landscape: Path, flat: Catalog, expected: xr.Dataset, xy: str
) -> None:
    stacks = stackstac_stacks(landscape, xy_coords=xy)
    cube = xsoilsm.cube_from_stack(stacks, GEOBOX, catalog=flat, quantity="gamma0", scale="linear")
    assert_same_cube(cube.compute(), expected)
    assert "S1B_IW_GRDH" in cube.sigma0_vv.attrs["items"]


def test_half_a_pixel_would_show(landscape: Path, flat: Catalog, expected: xr.Dataset) -> None:
    """What taking the corners of stackstac for centres would do."""
    stacks = [s.assign_attrs(transform=None) for s in stackstac_stacks(landscape)]
    with pytest.raises(CubeError, match="pass pixel='corner'"):
        xsoilsm.cube_from_stack(stacks, GEOBOX, catalog=flat, quantity="gamma0", scale="linear")
    cubes = {
        pixel: xsoilsm.cube_from_stack(
            stacks, GEOBOX, catalog=flat, quantity="gamma0", scale="linear", pixel=pixel
        ).compute()
        for pixel in ("corner", "centre")
    }
    assert_same_cube(cubes["corner"], expected)
    off = np.abs(cubes["centre"].sigma0_vv - expected.sigma0_vv)
    assert float(off.mean()) > 0.05


def test_slopes_are_taken_as_load_cube_takes_them(landscape: Path) -> None:
    catalog = catalog_with(landscape, sigma0_from="rtc-slope")
    expected = load_cube(GEOBOX, "2020-04", catalog=catalog).compute()
    cube = xsoilsm.cube_from_stack(
        odc_stacks(landscape),
        GEOBOX,
        catalog=catalog,
        quantity="gamma0",
        scale="linear",
        sigma0_from="rtc-slope",
    ).compute()
    # The mean over posts of 30 m in place of pixels of 20 m, in cells of 100 m.
    assert_same_cube(cube, expected, atol=0.03)
    assert cube.sigma0_vv.attrs["sigma0_from"] == "rtc-slope"


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # of stackstac
def test_degrees_are_as_good_as_metres(landscape: Path, flat: Catalog) -> None:
    """Dims latitude and longitude; resampled pixels are no longer those of the file."""
    (west, south, east, north), step = BBOX, 0.0002
    options = {"crs": "EPSG:4326", "resolution": step}
    box = {"lon": (west - 0.004, east + 0.004), "lat": (south - 0.004, north + 0.004)}
    stacks = odc_stacks(landscape, **options, **box)
    assert stacks[0].vv.dims == ("time", "latitude", "longitude")
    cube = xsoilsm.cube_from_stack(stacks, BBOX, "1km", flat, quantity="gamma0", scale="linear")
    reference = load_cube(BBOX, "2020-04", "1km", flat)[["sigma0_vv", "coverage"]].compute()
    # The stack ends within the outermost cells.
    whole = (reference.coverage.values > 0.999) & (cube.coverage.values > 0.999)
    assert whole.sum() >= 4
    np.testing.assert_allclose(
        cube.sigma0_vv.values[whole], reference.sigma0_vv.values[whole], atol=0.05
    )
    other = xsoilsm.cube_from_stack(
        stackstac_stacks(
            landscape,
            epsg=4326,
            resolution=step,
            bounds_latlon=(west - 0.004, south - 0.004, east + 0.004, north + 0.004),
        ),
        BBOX,
        "1km",
        flat,
        quantity="gamma0",
        scale="linear",
    )
    np.testing.assert_allclose(
        other.sigma0_vv.values[whole], reference.sigma0_vv.values[whole], atol=0.05
    )


# --- what the numbers are -----------------------------------------------------------------------


def test_decibels_and_sigma0_are_taken_as_told(
    landscape: Path, flat: Catalog, expected: xr.Dataset
) -> None:
    stacks = odc_stacks(landscape)
    # From gamma nought to sigma nought by hand, at one angle for each pass.
    angle = expected.incidence_angle.mean(("y", "x"))
    stacks = [s.load() for s in stacks]
    by_hand = []
    for stack in stacks:
        cosine = np.cos(np.deg2rad(angle.sel(time=stack.time, method="nearest").values))
        power = stack.where(stack > 0) * cosine[:, None, None]
        by_hand.append((10 * np.log10(power)).assign_coords(stack.coords))
    cube = xsoilsm.cube_from_stack(
        by_hand, GEOBOX, catalog=flat, quantity="sigma0", scale="dB"
    ).compute()
    check_cube(cube)
    assert cube.sigma0_vv.attrs["sigma0_from"] == "given"
    np.testing.assert_allclose(cube.sigma0_vv, expected.sigma0_vv, atol=0.02)
    assert not (cube.source_flags & SourceFlag.APPROXIMATE_SIGMA0).any()
    linear = [10 ** (s / 10) for s in by_hand]
    again = xsoilsm.cube_from_stack(
        linear, GEOBOX, catalog=flat, quantity="sigma0", scale="linear"
    ).compute()
    np.testing.assert_allclose(again.sigma0_vv, cube.sigma0_vv, atol=1e-3)


def test_an_angle_may_be_given(landscape: Path, flat: Catalog, expected: xr.Dataset) -> None:
    stacks = odc_stacks(landscape)
    cube = xsoilsm.cube_from_stack(
        stacks,
        GEOBOX,
        catalog=flat,
        quantity="gamma0",
        scale="linear",
        incidence_angle=expected.incidence_angle,
    ).compute()
    np.testing.assert_allclose(cube.sigma0_vv, expected.sigma0_vv, atol=0.003)
    assert "orbit_state" not in cube.coords  # nobody told
    level = xsoilsm.cube_from_stack(
        stackstac_stacks(landscape),
        GEOBOX,
        catalog=flat,
        quantity="gamma0",
        scale="linear",
        incidence_angle=60.0,
    ).compute()
    np.testing.assert_allclose(level.incidence_angle, 60.0)
    cosine = 10 * np.log10(np.cos(np.deg2rad(expected.incidence_angle)))
    np.testing.assert_allclose(
        level.sigma0_vv, expected.sigma0_vv - cosine + 10 * np.log10(0.5), atol=0.003
    )
    assert sorted(level.orbit_state.values.tolist()) == ["ascending", "descending"]


def test_masked_pixels_do_not_count(landscape: Path, flat: Catalog) -> None:
    stacks = [s.where(np.arange(s.sizes["x"]) % 2 == 0) for s in odc_stacks(landscape)]
    cube = xsoilsm.cube_from_stack(
        stacks, GEOBOX, catalog=flat, quantity="gamma0", scale="linear"
    ).compute()
    np.testing.assert_allclose(cube.coverage, 0.5, atol=0.12)
    assert ((cube.source_flags & SourceFlag.BORDER) > 0).all()
    stacks = [s.assign(vh=s.vh.where(False)) for s in odc_stacks(landscape)]
    cube = xsoilsm.cube_from_stack(
        stacks, GEOBOX, catalog=flat, quantity="gamma0", scale="linear"
    ).compute()
    assert np.isnan(cube.sigma0_vv).all()
    assert ((cube.source_flags & SourceFlag.NO_SCENE) > 0).all()


def test_coarse_pixels_are_means_of_power_and_say_so(landscape: Path, flat: Catalog) -> None:
    stacks = odc_stacks(landscape, resolution=100, resampling="average")
    cube = xsoilsm.cube_from_stack(stacks, BBOX, "1km", flat, quantity="gamma0", scale="linear")
    assert cube.sigma0_vv.attrs["averaging"] == "power"
    with pytest.raises(ValueError, match="was averaged as power"):
        check_cube(cube)


# --- acquisitions, region, other inputs ---------------------------------------------------------


def test_slices_are_fused_and_the_region_follows_from_the_stack(
    landscape: Path, flat: Catalog
) -> None:
    stacks = odc_stacks(landscape)
    assert sorted(stack.sizes["time"] for stack in stacks) == [1, 2]
    cube = xsoilsm.cube_from_stack(
        stacks, res="1km", catalog=flat, quantity="gamma0", scale="linear"
    )
    assert cube.sizes["time"] == 2
    reference = load_cube((-5.42, 41.28, -5.38, 41.32), "2020-04", "1km", flat)
    assert cube.sizes["x"] >= reference.sizes["x"]
    inner = cube.sel(x=reference.x, y=reference.y)
    near = reference.coverage.values > 0.999
    off = np.abs(inner.sigma0_vv.values - reference.sigma0_vv.values)[near]
    # Where slices overlap load_cube counts what both hold twice; here it counts once.
    assert off.max() < 0.07
    assert np.median(off) < 0.001


def test_inputs_that_are_there_are_not_searched(
    landscape: Path, flat: Catalog, expected: xr.Dataset
) -> None:
    names = ["ndvi", "air_temperature", "precipitation", "elevation", "slope", "aspect_sin"]
    names += ["aspect_cos", "sand", "clay", "bulk_density"]
    empty = flat.model_copy(
        update={
            "sources": {
                **flat.sources,
                **{
                    group: tuple(
                        s.model_copy(update={"collection": "nowhere"}) for s in flat.sources[group]
                    )
                    for group in ("ndvi", "weather", "terrain", "soil", "landcover")
                },
            }
        }
    )
    stacks = odc_stacks(landscape)
    given = expected[names].assign(ndvi=expected.ndvi * 0 + 0.5)
    cube = xsoilsm.cube_from_stack(
        stacks, GEOBOX, catalog=empty, quantity="gamma0", scale="linear", inputs=given
    ).compute()
    check_cube(cube)
    assert (cube.ndvi == 0.5).all()
    np.testing.assert_allclose(cube.sigma0_vv, expected.sigma0_vv, atol=0.003)
    with pytest.raises(CatalogError, match="nowhere"):
        xsoilsm.cube_from_stack(
            stacks,
            GEOBOX,
            catalog=empty,
            quantity="gamma0",
            scale="linear",
            inputs=given.drop_vars("slope"),
        )
    for wrong, message in (
        (given.isel(x=slice(1, None)), "other cells than the cube along x"),
        (given.isel(period=slice(3, None)), "inputs lack 3 of the periods"),
        (given.rename(sand="Sand"), "inputs hold Sand"),
    ):
        with pytest.raises(CubeError, match=message):
            xsoilsm.cube_from_stack(
                stacks, GEOBOX, catalog=flat, quantity="gamma0", scale="linear", inputs=wrong
            )


def test_the_accessor_accepts_it(landscape: Path, flat: Catalog) -> None:
    cube = xsoilsm.cube_from_stack(
        odc_stacks(landscape), BBOX, "1km", flat, quantity="gamma0", scale="linear"
    )
    assert cube.sm.check().empty
    features = cube.sm.features().compute()
    reference = load_cube(BBOX, "2020-04", "1km", flat).sm.features().compute()
    for name in reference.data_vars:
        # 0.1 dB of the 35 dB that make the unit of backscatter, where slices overlap.
        np.testing.assert_allclose(features[name], reference[name], atol=3e-3)


# --- what is refused ----------------------------------------------------------------------------


def small(**coords: Any) -> xr.Dataset:
    x, y = 300000.0 + 20 * np.arange(8), 4570000.0 - 20 * np.arange(8)
    data = np.full((1, 8, 8), 0.1, np.float32)
    dims = ("time", "y", "x")
    time = np.array(["2020-04-05T06:26"], "M8[ns]")
    stack = xr.Dataset(
        {"vv": (dims, data), "vh": (dims, data)}, {"time": time, "y": y, "x": x} | coords
    )
    return stack


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: [], "there is no stack"),
        (lambda s: s.drop_vars("vh"), "the stack has vv; expected vv and vh"),
        (lambda s: s.vv, "expected a dim 'band'"),
        (lambda s: s.drop_vars("time"), "no coordinate 'time'"),
        (lambda s: s.drop_vars("spatial_ref"), "no coordinate reference system"),
        (lambda s: s.drop_vars("x"), "no coordinates y and x"),
        (
            lambda s: s.assign_coords(epsg=32630).assign(
                vv=s.vv.assign_attrs(transform=(20, 0, 300006.0, 0, -20, 4570000.0))
            ),
            "lie at 0.700 and 0.000 of a pixel",
        ),
    ],
)
def test_what_cannot_be_understood_is_told(flat: Catalog, change: Any, message: str) -> None:
    stack = change(small().odc.assign_crs("EPSG:32630"))
    with pytest.raises(CubeError, match=message):
        xsoilsm.cube_from_stack(stack, catalog=flat, quantity="gamma0", scale="linear")


def test_choices_and_times_are_checked(flat: Catalog) -> None:
    stack = small().odc.assign_crs("EPSG:32630")
    for wrong in ({"quantity": "beta0"}, {"scale": "db"}, {"sigma0_from": "grd"}, {"pixel": "mid"}):
        options = {"quantity": "gamma0", "scale": "linear", **wrong}
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))} '.*' is unknown"):
            xsoilsm.cube_from_stack(stack, catalog=flat, **options)
    late = stack.assign_coords(time=stack.time + np.timedelta64(3, "h"))
    with pytest.raises(CatalogError, match=r"has no acquisition at 2020-04-05T09:26.*nearest"):
        xsoilsm.cube_from_stack(late, BBOX, catalog=flat, quantity="gamma0", scale="linear")


def test_a_stack_as_of_a_moment_is_the_cube_of_load_cube(landscape: Path, flat: Catalog) -> None:
    asof = "2020-04-10"
    expected = load_cube(GEOBOX, "2020-04", catalog=flat, asof=asof).compute()
    cube = xsoilsm.cube_from_stack(
        odc_stacks(landscape),
        GEOBOX,
        catalog=flat,
        quantity="gamma0",
        scale="linear",
        asof=asof,
    ).compute()
    assert cube.sizes["time"] == 1
    assert_same_cube(cube, expected)
    assert cube.attrs["asof"] == expected.attrs["asof"] == "2020-04-11T00:00:00Z"
    with pytest.raises(CatalogError, match="none of the 2 acquisitions of the stack had come"):
        xsoilsm.cube_from_stack(
            odc_stacks(landscape),
            GEOBOX,
            catalog=flat,
            quantity="gamma0",
            scale="linear",
            asof="2020-04-05T12:00",
        )


def test_graphs_are_the_same_every_time(landscape: Path, flat: Catalog) -> None:
    first, second = (
        xsoilsm.cube_from_stack(
            odc_stacks(landscape), GEOBOX, catalog=flat, quantity="gamma0", scale="linear"
        )
        for _ in range(2)
    )
    for name in ("sigma0_vv", "source_flags", "incidence_angle", "slope"):
        assert first[name].data.name == second[name].data.name
