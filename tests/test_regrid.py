"""Exact area-weighted mean: against exactextract, its invariants, and the lazy form."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from affine import Affine
from exact_cells import cell_outlines, exact_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from pyproj import Transformer

from xsoilsm import _area_kernel
from xsoilsm.grid import CRS, ease2_geobox, get_grid
from xsoilsm.regrid import accumulate, area_mean, finish, source_window, source_windows

SINUSOIDAL = "+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m"
HOMOLOSINE = "ESRI:54052"
MODIS_PIXEL = 231.656358264


def box_at(crs, pixel, lon, lat, rows, columns=None):
    """GeoBox of rows x columns pixels around a place."""
    columns = rows if columns is None else columns
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    left = round(x / pixel) * pixel - columns // 2 * pixel
    top = round(y / pixel) * pixel + rows // 2 * pixel
    return GeoBox((rows, columns), Affine(pixel, 0, left, 0, -pixel, top), crs)


def target_of(source, res):
    """EASE-Grid 2.0 cells under a source, those it covers in part included."""
    columns, rows = np.meshgrid(*(np.linspace(0, n, 40) for n in source.shape[::-1]))
    a = source.affine
    x, y = a.a * columns + a.b * rows + a.c, a.d * columns + a.e * rows + a.f
    lon, lat = Transformer.from_crs(str(source.crs), "EPSG:4326", always_xy=True).transform(x, y)
    return ease2_geobox((lon.min(), lat.min(), lon.max(), lat.max()), res)


def speckle(shape, seed=0):
    """Power of 4.4 looks over fields of different brightness."""
    rng = np.random.default_rng(seed)
    field = 0.05 * np.exp(np.sin(np.arange(shape[-2]) / 37.0))[:, None]
    return (rng.standard_gamma(4.4, shape) / 4.4 * field).astype(np.float32)


def mean_of(values, source, target, **options):
    values = values if values.ndim == 3 else values[None]
    total = np.zeros((len(values), *target.shape))
    weight = np.zeros_like(total)
    accumulate(values, source, target, total, weight, **options)
    return total, weight


def relative(found, expected):
    """Relative difference where both have a value; they must have one in the same cells."""
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    known = np.isfinite(expected)
    return (found[known] - expected[known]) / expected[known]


def judge(values, source, target, transform=None):
    """Relative rms and largest error of coverage against exactextract, on >= 500 cells."""
    judged = 10 * np.log10(values.astype(np.float64)) if transform else values
    mean, coverage = exact_cells(judged, source, target)
    total, weight = mean_of(values, source, target, transform=transform)
    found, share = (a[0] for a in finish(total, weight))
    some = (coverage > 1e-6) | (share > 1e-6)
    mean, found = np.where(some, mean, np.nan), np.where(some, found, np.nan)
    error = relative(found, mean)
    part = coverage[some] < 0.999
    assert error.size >= 500
    assert part.sum() >= 50
    assert (~part).sum() >= 100
    rms = np.sqrt((error**2).mean()), np.sqrt((error[part] ** 2).mean())
    return max(rms), np.abs(share - coverage)[some].max()


# The promise is 1e-5 at 1 km and 1e-4 at 100 m, full and partial cells; the kernel holds 1e-6
# (float32 results round at 3e-8).


SCENES = [
    pytest.param(lat, lon, res, pixels, transform, id=f"{lat} {where} {res} {transform}")
    for k, lat in enumerate((2, 45, 60, 70))
    for m, (lon, where) in enumerate(((3.0, "central"), (5.95, "edge")))
    for n, (res, pixels) in enumerate((("1km", 2240), ("100m", 230)))
    for transform in ((None, "db")[(k + m + n) % 2],)
]


@pytest.mark.parametrize(("lat", "lon", "res", "pixels", "transform"), SCENES)
def test_sentinel_1_scene_agrees_with_exactextract(lat, lon, res, pixels, transform):
    source = box_at("EPSG:32631", 10.0, lon, lat, pixels)
    rms, coverage = judge(speckle((pixels, pixels)), source, target_of(source, res), transform)
    assert rms < 1e-6
    assert coverage < 1e-5


@pytest.mark.parametrize(
    ("crs", "pixel", "lon", "lat", "pixels", "res"),
    [
        pytest.param(SINUSOIDAL, MODIS_PIXEL, 10, 2, 130, "1km", id="sinusoidal 1km"),
        pytest.param(SINUSOIDAL, MODIS_PIXEL, -150, 60, 9, "100m", id="sinusoidal, oblique, 100m"),
        pytest.param(HOMOLOSINE, 250.0, 10, 45, 120, "1km", id="homolosine 1km"),
        pytest.param(
            HOMOLOSINE, 250.0, 10, 40.7366, 11, "100m", id="homolosine, on its kink, 100m"
        ),
        pytest.param("EPSG:4326", 1 / 3600, 10, 45, 1000, "1km", id="30 m lat/lon 1km"),
        pytest.param("EPSG:4326", 1 / 3600, 10, 60, 100, "100m", id="30 m lat/lon 100m"),
        pytest.param("EPSG:3035", 5000.0, 25, 60, 2, "100m", id="5 km LAEA, bent edges, 100m"),
    ],
)
def test_other_sources_agree_with_exactextract(crs, pixel, lon, lat, pixels, res):
    source = box_at(crs, pixel, lon, lat, pixels)
    target = target_of(source, res)
    if pixel == 5000.0:  # cells of two pixels and their neighbours are enough
        target = target[:60, :60]
    rms, coverage = judge(speckle((pixels, pixels)), source, target)
    assert rms < 5e-6
    # exactextract's coverage is a share in degrees; the next test judges it without that
    assert coverage < (5e-5 if crs == "EPSG:4326" else 1e-5)


def along_meridians(values, source, target):
    """Mean and coverage where both grids follow meridians and parallels: products of overlaps."""
    a, t = source.affine, target.affine
    rows, columns = source.shape
    project = Transformer.from_crs("EPSG:4326", CRS, always_xy=True).transform
    lon = a.c + a.a * np.arange(columns + 1)
    lat = np.clip(a.f + a.e * np.arange(rows + 1), -90, 90)
    turn = 2 * project(180.0, 0.0)[0] / t.a
    u = np.unwrap((project(lon, np.zeros_like(lon))[0] - t.c) / t.a, period=turn)
    v = (project(np.zeros_like(lat), lat)[1] - t.f) / t.e

    def overlap(edges, n):
        low, high = np.minimum(edges[:-1], edges[1:]), np.maximum(edges[:-1], edges[1:])
        cell = np.arange(n)[:, None]
        return np.clip(np.minimum(high, cell + 1) - np.maximum(low, cell), 0, None)

    across = sum(overlap(u + k * turn, target.shape[1]) for k in (-2, -1, 0, 1, 2))
    down = overlap(v, target.shape[0])
    weight = down @ np.ones(source.shape) @ across.T
    with np.errstate(invalid="ignore"):
        return down @ values.astype(np.float64) @ across.T / weight, weight


@pytest.mark.parametrize("res", ["1km", "100m"])
@pytest.mark.parametrize("step", [0.25, 0.1, -0.1, 1 / 3600])
@pytest.mark.parametrize("lat", [-33.0, 2.0, 70.0])
def test_latitude_longitude_source_agrees_with_products_of_overlaps(lat, step, res):
    pixels = 400 if abs(step) < 0.01 else 8
    source = GeoBox(
        (pixels, pixels),
        Affine(abs(step), 0, 10.123, 0, -step, lat if step > 0 else lat - pixels * 0.1),
        "EPSG:4326",
    )
    size = min(0.5 if res == "1km" else 0.05, 0.12 if abs(step) < 0.01 else 1)
    target = ease2_geobox((10.1, lat - size, 10.1 + size, lat + 0.01), res)
    values = speckle((pixels, pixels))
    mean, coverage = along_meridians(values, source, target)
    found, share = (a[0] for a in finish(*mean_of(values, source, target)))
    error = relative(found, mean)
    assert (coverage[np.isfinite(mean)] < 0.999).any()
    assert np.sqrt((error**2).mean()) < 1e-7
    assert np.abs(share - coverage).max() < 1e-6


@pytest.mark.parametrize("first", [-0.125, -180.125])
@pytest.mark.parametrize(
    "bbox",
    [(-1, 50, 1, 50.5), (179, -20, 180, -19.5), (-180, 60, -179.5, 60.4), (10, 84.5, 12, 85.04)],
    ids=["Greenwich", "180 E", "180 W", "north"],
)
def test_source_around_the_globe(first, bbox):
    source = GeoBox((721, 1440), Affine(0.25, 0, first, 0, -0.25, 90.125), "EPSG:4326")
    values = speckle(source.shape)
    target = ease2_geobox(bbox, "1km")
    mean, _ = along_meridians(values, source, target)
    total, weight = np.zeros((2, 1, *target.shape))
    windows = source_windows(source, target)
    for window in windows:
        rows, columns = window
        assert columns.stop - columns.start < 30
        anchor = rows.start, columns.start
        accumulate(values[window][None], source[window], target, total, weight, anchor=anchor)
    found, coverage = finish(total, weight)
    assert np.abs(relative(found[0], mean)).max() < 1e-6
    assert coverage.min() > 1 - 1e-6
    across_seam = bbox[0] < 0 < bbox[2] if first == -0.125 else abs(bbox[0]) > 178.9
    assert len(windows) == 1 + across_seam
    whole = source_window(source, target)
    assert (whole[1] == slice(0, 1440)) == across_seam


def test_cells_on_the_seam_of_the_globe_are_whole():
    source = GeoBox((181, 360), Affine(1.0, 0, 0.0, 0, -1.0, 90.5), "EPSG:4326")
    for columns in ((3852, 3856), (0, 4)):
        edge = get_grid("9km").geobox((0, 400), columns)
        _, weight = mean_of(np.ones(source.shape), source, edge)
        assert np.abs(weight - 1).max() < 1e-6


def test_scene_across_180_degrees_lands_on_both_sides():
    source = box_at("EPSG:32601", 100.0, -179.96, 60.0, 100)
    total, west = mean_of(np.ones(source.shape), source, ease2_geobox((-180, 59, -179, 61), "1km"))
    _, east = mean_of(np.ones(source.shape), source, ease2_geobox((179, 59, 180, 61), "1km"))
    assert west[:, :, 0].max() == pytest.approx(1, abs=1e-6)
    assert east[:, :, -1].max() == pytest.approx(1, abs=1e-6)
    # both grids are true to area
    cell = get_grid("1km").cell
    assert (west.sum() + east.sum()) * cell**2 == pytest.approx(1e4 * 100**2, rel=2e-3)
    assert total.sum() == pytest.approx(west.sum())


def test_pixels_beyond_the_rim_of_the_globe_do_not_count():
    source = box_at(SINUSOIDAL, 20e3, 0, 0, 900, 1800)
    target = get_grid("9km").geobox((300, 330), (0, 40))
    _, weight = mean_of(np.ones(source.shape), source, target)
    assert weight.max() < 1 + 1e-6
    assert weight[:, :, 1:].min() > 1 - 1e-6
    assert 0.3 < weight[:, :, 0].min() < 0.99


POINTS = st.tuples(st.floats(-170, 170), st.floats(-72, 72))


@settings(max_examples=25, deadline=None)
@given(POINTS, st.sampled_from(["1km", "500m", "100m"]), st.floats(-40, 40), st.data())
def test_constant_stays_constant_and_coverage_sums_to_the_footprint(place, res, value, data):
    lon, lat = place
    zone = f"EPSG:{32600 + int((lon + 180) // 6) + 1}"
    pixel = get_grid(res).cell * data.draw(st.sampled_from([0.013, 0.1, 0.7, 2.3, 11.0]))
    most = min(70, int(50e3 / pixel))
    rows, columns = data.draw(st.tuples(st.integers(1, most), st.integers(1, most)))
    source = box_at(zone, pixel, lon, lat, rows, columns)
    target = target_of(source, res)
    total, weight = mean_of(np.full(source.shape, value), source, target)
    found, coverage = finish(total, weight)
    assert weight.max() < 1 + 1e-6
    assert np.allclose(found[weight > 0], value, rtol=1e-6, atol=0)
    # the footprint's area in the target's plane, from its outline
    outline = np.concatenate(cell_outlines(target, GeoBox((1, 1), outer(source), zone), 4000))
    a = target.affine
    u, v = (outline[:, 0] - a.c) / a.a, (outline[:, 1] - a.f) / a.e
    u, v = u - u.mean(), v - v.mean()
    area = abs(np.sum(u * np.roll(v, -1) - v * np.roll(u, -1))) / 2
    assert np.isclose(weight.sum(), area, rtol=2e-5)
    assert coverage.max() <= 1


def outer(source):
    """Affine of one pixel as large as a whole GeoBox."""
    return source.affine @ Affine.scale(source.shape[1], source.shape[0])


def test_covered_cells_have_coverage_one():
    source = box_at("EPSG:32633", 10.0, 13.0, 52.0, 600)
    target = target_of(source, "1km")[2:-2, 2:-2]
    _, weight = mean_of(speckle(source.shape), source, target)
    assert np.abs(weight - 1).max() < 1e-6


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 299), max_size=4), st.lists(st.integers(1, 349), max_size=4), POINTS)
def test_windows_of_a_file_give_what_the_file_gives(row_cuts, column_cuts, place):
    source = box_at(SINUSOIDAL, MODIS_PIXEL, place[0] / 2, place[1], 300, 350)
    target = target_of(source, "9km")
    values = speckle((2, *source.shape))
    whole = mean_of(values, source, target, transform="db")
    total, weight = np.zeros((2, 2, *target.shape))
    rows = sorted({0, 300, *row_cuts})
    columns = sorted({0, 350, *column_cuts})
    for r0, r1 in pairwise(rows):
        for c0, c1 in pairwise(columns):
            accumulate(
                values[:, r0:r1, c0:c1],
                source[r0:r1, c0:c1],
                target,
                total,
                weight,
                transform="db",
                anchor=(r0, c0),
            )
    assert np.allclose(weight, whole[1], rtol=1e-11, atol=1e-13)
    assert np.allclose(total, whole[0], rtol=1e-11, atol=1e-11)


def test_windows_without_anchor_differ_by_less_than_the_promise():
    source = box_at("EPSG:32633", 10.0, 17.9, 60.0, 900)
    target = target_of(source, "100m")[20:60, 20:60]
    values = speckle(source.shape)
    whole, _ = finish(*mean_of(values, source, target))
    cut, _ = finish(*mean_of(values[37:, 51:], source[37:, 51:], target))
    assert np.abs(relative(cut, whole)).max() < 3e-7


def test_sums_are_linear_in_the_values():
    source = box_at("EPSG:32633", 10.0, 13.0, 52.0, 300)
    target = target_of(source, "1km")
    one, other = speckle(source.shape, 1), speckle(source.shape, 2)
    total, weight = mean_of(np.stack([one, other]).astype(np.float64), source, target)
    mixed, _ = mean_of(3.0 * one.astype(np.float64) - 2.0 * other, source, target)
    assert np.allclose(mixed[0], 3 * total[0] - 2 * total[1], rtol=1e-9, atol=1e-12)
    assert np.array_equal(weight[0], weight[1])


def test_orientation_of_the_source_does_not_matter():
    source = box_at("EPSG:32633", 10.0, 13.0, 52.0, 200, 300)
    target = target_of(source, "1km")
    values = speckle(source.shape)
    expected, _ = finish(*mean_of(values, source, target))
    turned = source.affine @ Affine.translation(300, 0) @ Affine.rotation(90)
    for changed, affine in (
        (values[::-1], source.affine @ Affine.translation(0, 200) @ Affine.scale(1, -1)),
        (values[:, ::-1], source.affine @ Affine.translation(300, 0) @ Affine.scale(-1, 1)),
        (np.rot90(values), turned),
    ):
        found, _ = finish(*mean_of(changed, GeoBox(changed.shape, affine, source.crs), target))
        assert np.abs(relative(found, expected)).max() < 3e-7


def test_grids_that_nest_give_the_mean_of_blocks_and_leave_neighbours_alone():
    fine = get_grid("100m").geobox((50000, 50040), (180000, 180060))
    coarse = get_grid("1km").geobox((4999, 5005), (17999, 18007))
    values = speckle(fine.shape)
    found, coverage = (a[0] for a in finish(*mean_of(values, fine, coarse)))
    blocks = values.reshape(4, 10, 6, 10).mean(axis=(1, 3), dtype=np.float64)
    assert np.allclose(found[1:5, 1:7], blocks, rtol=1e-6)
    assert np.abs(coverage[1:5, 1:7] - 1).max() < 1e-6
    assert np.isnan(found).sum() == found.size - 24
    assert coverage.sum() == pytest.approx(24, rel=1e-6)


def test_the_same_grid_gives_the_values_in_decibels():
    box = get_grid("1km").geobox((100, 120), (50, 90))
    values = np.geomspace(1e-12, 1e12, 800).reshape(box.shape)
    found, _ = finish(*mean_of(values, box, box, transform="db"))
    assert np.allclose(found[0], 10 * np.log10(values), rtol=1e-7, atol=1e-6)


def test_mean_of_decibels_lies_below_decibels_of_the_mean():
    source = box_at("EPSG:32633", 10.0, 13.0, 52.0, 500)
    target = target_of(source, "1km")[1:-1, 1:-1]
    values = np.random.default_rng(0).standard_gamma(4.4, source.shape) / 4.4
    total, weight = mean_of(values, source, target)
    of_decibels, _ = finish(*mean_of(values, source, target, transform="db"))
    bias = of_decibels - 10 * np.log10(total / weight)
    # 10 / ln 10 * (digamma(4.4) - ln 4.4)
    assert bias.mean() == pytest.approx(-0.512, abs=0.01)


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("float32", None), ("float64", -9999.9), ("float32", -3.4028234663852886e38), ("int16", -3000),
     ("uint16", 0), ("uint8", 255), ("int32", -(2**31) + 1), ("bool", None)],
)  # fmt: skip
def test_pixels_without_value_have_no_weight(dtype, nodata):
    source = box_at("EPSG:32633", 50.0, 13.0, 52.0, 300)
    target = target_of(source, "1km")
    values = np.random.default_rng(0).integers(1, 200, (2, *source.shape)).astype(dtype)
    gone = np.zeros(values.shape, dtype=bool)
    gone[0, 40:190, 100:] = True
    clean = np.where(gone, np.nan, values.astype(np.float64))
    expected = mean_of(clean, source, target)
    if dtype.startswith("float"):
        values[gone] = np.nan
        values[0, 50:60] = np.where(gone[0, 50:60], np.inf, values[0, 50:60])
    if nodata is not None:
        values[gone] = nodata
    if dtype == "bool":
        expected = mean_of(values.astype(np.float64), source, target)
    found = mean_of(values, source, target, nodata=nodata)
    assert np.allclose(found, expected, rtol=1e-12)
    if dtype != "bool":
        assert found[1][0].sum() < 0.9 * found[1][1].sum()
        assert np.isnan(finish(*found)[0][0]).any()


def test_power_not_above_zero_has_no_weight_in_decibels():
    source = box_at("EPSG:32633", 10.0, 13.0, 52.0, 200)
    target = target_of(source, "1km")
    values = speckle(source.shape).astype(np.float64)
    logs = 10 * np.log10(values)
    for k, bad in enumerate((0.0, -1.0, np.nan, np.inf, -np.inf, -32768.0)):
        values[20 * k : 20 * k + 10] = bad
        logs[20 * k : 20 * k + 10] = np.nan
    found = mean_of(values, source, target, transform="db")
    assert np.allclose(found, mean_of(logs, source, target), rtol=1e-12)


POLAR = "EPSG:3413"
PAIRS = [
    pytest.param(
        box_at("EPSG:32633", 400.0, 15.0, 52.0, 280),
        ease2_geobox((15.4, 51.8, 15.8, 52.1), "1km"),
        id="UTM to EASE",
    ),
    pytest.param(
        box_at("EPSG:32633", 400.0, 15.0, 52.0, 280),
        get_grid("9km").geobox((0, 1624), (0, 3856)),
        id="UTM to the globe",
    ),
    pytest.param(
        box_at(SINUSOIDAL, 20e3, 0, 0, 900, 1800),
        ease2_geobox((-150, 50, -144, 55), "9km"),
        id="sinusoidal globe",
    ),
    pytest.param(
        box_at(HOMOLOSINE, 20e3, 0, 0, 800, 2000),
        ease2_geobox((-43, 20, -37, 25), "9km"),
        id="between lobes",
    ),
    pytest.param(
        box_at(HOMOLOSINE, 20e3, 0, 0, 800, 2000),
        ease2_geobox((15, -2, 25, 3), "9km"),
        id="at the equator between lobes",
    ),
    pytest.param(
        box_at(POLAR, 25e3, 0, 90, 400),
        ease2_geobox((-180, 80, -170, 84), "9km"),
        id="polar",
    ),
    pytest.param(
        GeoBox((90, 180), Affine(2, 0, 0, 0, 2, -90), "EPSG:4326"),
        box_at(POLAR, 25e3, 0, 90, 20),
        id="target over the pole",
    ),
    pytest.param(
        get_grid("9km").geobox((50, 400), (0, 3856)),
        box_at("EPSG:32601", 5000.0, -179.5, 52.0, 30),
        id="EASE to UTM at 180 degrees",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_window_holds_every_pixel_that_counts(source, target):
    values = np.random.default_rng(0).random((1, *source.shape))
    total, weight = mean_of(values, source, target)
    assert weight.max() > 0.9
    part, part_weight = np.zeros((2, 1, *target.shape))
    read = 0
    for rows, columns in source_windows(source, target):
        read += (rows.stop - rows.start) * (columns.stop - columns.start)
        window = values[:, rows, columns]
        anchor = rows.start, columns.start
        accumulate(window, source[rows, columns], target, part, part_weight, anchor=anchor)
    assert np.allclose(part_weight, weight, rtol=1e-9, atol=1e-9)
    assert np.allclose(part, total, rtol=1e-9, atol=1e-9)
    assert 0 < read <= values.size


def test_window_is_no_larger_than_needed():
    source = box_at("EPSG:32633", 10.0, 15.0, 52.0, 10980)
    target = ease2_geobox((15.1, 52.0, 15.12, 52.02), "1km")
    rows, columns = source_window(source, target, margin=0)
    outline = cell_outlines(source, target)
    x, y = outline[..., 0], outline[..., 1]
    a = source.affine
    assert 0 <= (x.min() - a.c) / 10 - columns.start < 3
    assert 0 <= columns.stop - (x.max() - a.c) / 10 < 3
    assert 0 <= (a.f - y.max()) / 10 - rows.start < 3
    assert 0 <= rows.stop - (a.f - y.min()) / 10 < 3


@pytest.mark.parametrize(
    "source",
    [
        box_at("EPSG:32633", 10.0, 15.0, 52.0, 1000),
        box_at("EPSG:32733", 10.0, 15.0, -30.0, 1000),
        box_at("EPSG:32601", 10.0, -177.0, 52.0, 1000),
        box_at(SINUSOIDAL, MODIS_PIXEL, -100, 40, 4800),
        box_at(POLAR, 1000.0, 0, 90, 1000),
    ],
)
def test_sources_that_do_not_touch_need_nothing(source):
    target = ease2_geobox((-70, -10, -69, -9), "1km")
    assert source_windows(source, target) == []
    assert source_window(source, target) is None
    _, weight = mean_of(np.ones(source.shape, np.float32), source, target)
    assert weight.max() == 0


def test_zones_fuse_by_weight():
    one = box_at("EPSG:32632", 10.0, 12.0, 52.0, 300)
    other = box_at("EPSG:32633", 10.0, 12.02, 52.0, 300)
    bounds = ease2_geobox((11.95, 51.96, 12.08, 52.04), "1km")
    arrays = [labelled(speckle((300, 300), k), box) for k, box in enumerate((one, other))]
    mean, coverage = area_mean(arrays, bounds)
    m1, w1 = mean_of(arrays[0].values, one, bounds)
    m2, w2 = mean_of(arrays[1].values, other, bounds)
    expected, share = finish(m1 + m2, w1 + w2)
    assert np.array_equal(mean, expected[0], equal_nan=True)
    assert np.array_equal(coverage, share[0])
    assert ((w1 > 0) & (w2 > 0)).any()


def test_threads_agree():
    cases = []
    for k in range(12):
        source = box_at(f"EPSG:{32630 + k % 4}", 10.0, -3.0 + 6 * (k % 4), 40.0 + k, 200)
        cases.append((speckle(source.shape, k), source, target_of(source, "1km")))
    alone = [mean_of(*case) for case in cases]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda case: mean_of(*case), cases * 4))
    for k, found in enumerate(together):
        assert np.array_equal(found, alone[k % 12])


def test_kernel_runs_where_nothing_can_be_cached():
    names = {}
    exec("def twice(x):\n    return 2 * x\n", names)  # a function without a file
    assert _area_kernel._compiled()(names["twice"])(21) == 42


# ---- labelled arrays


def labelled(values, box, dims=("y", "x"), **attrs):
    coords = xr_coords(box, dims=("y", "x"))
    return xr.DataArray(values, coords, dims, "backscatter", attrs)


@pytest.fixture(scope="module")
def scene():
    """Three dates and two bands over 500 x 600 pixels, with gaps."""
    box = box_at("EPSG:32633", 20.0, 15.0, 52.0, 500, 600)
    values = speckle((3, 2, 500, 600))
    values[0, 0, 100:300] = np.nan
    values[1, 1, :, 200:400] = -32768.0
    array = labelled(values, box, ("time", "band", "y", "x"), nodata=-32768.0, units="1")
    return array.assign_coords(
        time=np.array(["2020-01-01", "2020-01-13", "2020-01-25"], "M8[ns]"),
        band=["vv", "vh"],
        orbit=("time", [7, 7, 9]),
        platform="S1A",
    )


@pytest.fixture(scope="module")
def target(scene):
    return target_of(scene.odc.geobox, "1km")


def test_labels_of_the_result(scene, target):
    mean, coverage = area_mean(scene, target, transform="db")
    assert mean.dims == coverage.dims == ("time", "band", "y", "x")
    assert mean.shape == (3, 2, *target.shape)
    assert mean.dtype == coverage.dtype == np.float32
    assert mean.odc.geobox == target
    for name in ("time", "band", "orbit", "platform"):
        for found in (mean, coverage):
            assert found[name].variable.identical(scene[name].variable)
    assert mean.attrs == {"units": "dB"}
    assert mean.name == "backscatter"
    assert coverage.name == "coverage"
    assert coverage.attrs["units"] == "1"
    assert area_mean(scene, target)[0].attrs == {"units": "1"}


def test_order_of_dims_and_their_names_do_not_matter(scene, target):
    mean, coverage = area_mean(scene, target)
    other = scene.transpose("x", "band", "y", "time")
    mean2, coverage2 = area_mean(other, target)
    assert mean2.transpose(*mean.dims).equals(mean)
    assert coverage2.transpose(*mean.dims).equals(coverage)


@pytest.mark.parametrize("chunks", [None, 7, (3, 100), ((5, 10**6), (1, 2, 10**6))])
@pytest.mark.parametrize("cut", [{"y": 130, "x": 170}, {"time": 1, "y": 499, "x": 64}, {"band": 1}])
def test_chunks_do_not_change_the_result(scene, target, cut, chunks):
    if isinstance(chunks, tuple) and isinstance(chunks[0], tuple):
        rows, columns = target.shape
        chunks = (5, rows - 5), (1, 2, columns - 3)
    expected = area_mean(scene, target, transform="db")
    found = area_mean(scene.chunk(cut), target, transform="db", chunks=chunks)
    assert all(f.chunks is not None for f in found)
    for one, other in zip(dask.compute(*found), expected, strict=True):
        xr.testing.assert_allclose(one, other, rtol=3e-7)
        assert one.attrs == other.attrs


def test_lazy_result_reads_only_the_chunks_under_it(scene):
    read = []

    def load(block, block_info):
        read.append(tuple(block_info[0]["chunk-location"]))
        return block

    chunked = scene.isel(time=0).chunk({"band": 1, "y": 100, "x": 100})
    recorded = chunked.copy(
        data=da.map_blocks(load, chunked.data, dtype=np.float32, meta=np.empty((0,) * 3, "f4"))
    )
    target = target_of(scene.odc.geobox, "1km")
    mean, coverage = area_mean(recorded, target, chunks=2)
    assert read == []
    rows, columns = target.shape
    mean.isel(band=0, y=slice(0, 2), x=slice(0, 2)).compute(scheduler="sync")
    assert len(read) == len(set(read))
    assert set(read) <= {(0, i, j) for i in range(2) for j in range(2)}
    assert (0, 0, 0) in read
    read.clear()
    dask.compute(mean, coverage, scheduler="sync")
    assert sorted(read) == [(b, i, j) for b in range(2) for i in range(5) for j in range(6)]
    # one task for a chunk, and one to take the mean out of it
    own = len(mean.__dask_graph__()) - len(recorded.__dask_graph__())
    assert own == 2 * 2 * -(-rows // 2) * -(-columns // 2)


def test_lazy_source_far_larger_than_the_target_stays_a_small_graph():
    source = GeoBox((43200, 86400), Affine(1 / 240, 0, -180, 0, -1 / 240, 90), "EPSG:4326")
    values = da.zeros(tuple(source.shape), chunks=1200, dtype=np.int16)
    array = labelled(values, source)
    target = ease2_geobox((10.0, 45.0, 10.5, 45.5), "1km")
    mean, coverage = area_mean(array, target)
    (small,) = dask.optimize(mean)
    assert len(small.__dask_graph__()) < 20
    assert float(mean.max()) == 0
    assert float(coverage.min()) == pytest.approx(1, abs=1e-6)


def test_tiles_fuse_to_the_whole(scene, target):
    expected = area_mean(scene, target)
    tiles = [
        scene.isel(y=slice(0, 220)),
        scene.isel(y=slice(220, None), x=slice(0, 333)),
        scene.isel(y=slice(220, None), x=slice(333, None)).chunk({"y": 90}),
    ]
    for found in (area_mean([*tiles[:2], tiles[2].compute()], target), area_mean(tiles, target)):
        for one, other in zip(dask.compute(*found), expected, strict=True):
            xr.testing.assert_allclose(one, other, rtol=3e-7, atol=3e-7)


def test_fill_value_is_found_where_it_is_declared():
    box = box_at("EPSG:32633", 250.0, 15.0, 52.0, 40)
    target = target_of(box, "1km")
    values = np.random.default_rng(0).integers(0, 9000, (40, 40)).astype(np.int16)
    values[10:20] = -3000
    expected, _ = finish(*mean_of(np.where(values == -3000, np.nan, values * 1.0), box, target))
    for name in ("_FillValue", "nodata", "missing_value"):
        mean, _ = area_mean(labelled(values, box, **{name: -3000}), target)
        assert np.array_equal(mean, expected[0], equal_nan=True)
        assert name not in mean.attrs
    encoded = labelled(values, box)
    encoded.encoding["_FillValue"] = -3000
    assert np.array_equal(area_mean(encoded, target)[0], expected[0], equal_nan=True)


def test_geographic_target_and_source_without_projection_step():
    fine = GeoBox((60, 90), Affine(0.01, 0, 5, 0, -0.01, 50), "EPSG:4326")
    coarse = GeoBox((6, 9), Affine(0.1, 0, 5, 0, -0.1, 50), "EPSG:4326")
    values = speckle(fine.shape)
    mean, coverage = area_mean(labelled(values, fine), coarse)
    assert mean.dims == ("latitude", "longitude")
    assert np.allclose(mean, values.reshape(6, 10, 9, 10).mean(axis=(1, 3)), rtol=1e-6)
    assert np.allclose(coverage, 1, atol=1e-6)


# ---- bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a.to_dataset(), TypeError, "got Dataset; pass one variable"),
        (lambda a: a.values, TypeError, "DataArrays"),
        (lambda a: [], ValueError, "no source"),
        (
            lambda a: a.drop_vars(["spatial_ref", "x", "y"]),
            ValueError,
            "no coordinate reference system",
        ),
        (lambda a: a.isel(x=[0, 1, 5, 20]), ValueError, "not on a regular grid"),
        (lambda a: a.astype(complex), TypeError, "complex"),
        (lambda a: [a, a.isel(time=[0, 1])], ValueError, "sources differ before y and x"),
        (lambda a: [a, a.assign_coords(band=["hh", "hv"])], ValueError, "coordinate 'band'"),
        (lambda a: [a, a.assign_attrs(units="dB")], ValueError, "units '1' and 'dB'"),
        (lambda a: a.rename(y="row", x="column").drop_vars(["row", "column"]), ValueError, "dims"),
    ],
)
def test_bad_data_are_named(scene, target, change, error, message):
    with pytest.raises(error, match=message):
        area_mean(change(scene.drop_attrs(deep=False).assign_attrs(units="1")), target)


def test_bad_target_and_transform_are_named(scene, target):
    with pytest.raises(TypeError, match=r"target is str, expected an odc\.geo GeoBox"):
        area_mean(scene, "1km")
    with pytest.raises(ValueError, match="transform 'log' is unknown; expected None or 'db'"):
        area_mean(scene, target, transform="log")
    with pytest.raises(ValueError, match="no coordinate reference system"):
        area_mean(scene, GeoBox(target.shape, target.affine, None))


def test_bad_arrays_are_named(target):
    source = box_at("EPSG:32633", 10.0, 15.0, 52.0, 20)
    values = np.ones((1, 20, 20))
    sums = np.zeros((2, 1, *target.shape))
    with pytest.raises(ValueError, match="do not fit the source of 20 x 20 pixels"):
        accumulate(values[:, 1:], source, target, *sums)
    with pytest.raises(ValueError, match="total is float32"):
        accumulate(values, source, target, sums[0].astype("f4"), sums[1])
    with pytest.raises(ValueError, match="weight is float64 of shape"):
        accumulate(values, source, target, sums[0], sums[1][:, 1:])
    with pytest.raises(ValueError, match="transform"):
        accumulate(values, source, target, *sums, transform="dB")
    with pytest.raises(TypeError, match="complex128"):
        accumulate(values.astype(complex), source, target, *sums)
