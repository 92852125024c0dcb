from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from sources_world import BBOX, World, cell_polygons

from xsoilsm import periods
from xsoilsm.catalog import CatalogError, Segment, open_catalog
from xsoilsm.facts import ModisSource
from xsoilsm.grid import ease2_geobox
from xsoilsm.sources.series import modis

GEOBOX = ease2_geobox(BBOX, "1km")
STARTS = periods.period_starts("2019-11-17", "2020-01-20")
RELIABILITY = open_catalog("planetary-computer").sources["ndvi"][0].reliability


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def find(
    world: World, starts: Any = STARTS, mask: bool = False, reliability: Any = RELIABILITY
) -> tuple[modis.Composite, ...]:
    world.write()
    catalog = open_catalog(world.catalog_file())
    (source,) = catalog.sources["ndvi"]
    assert isinstance(source, ModisSource)
    source = source.model_copy(update={"reliability": reliability})
    segment = Segment(source=source, start=starts[0].item(), end=starts[-1].item())
    return tuple(modis.find_composites(catalog, segment, BBOX, starts, mask=mask))


def read(
    world: World, on_error: str = "raise", starts: Any = STARTS, mask: bool = False
) -> tuple[Any, Any]:
    ndvi, filled = modis.read_ndvi(find(world, starts, mask), starts, GEOBOX, on_error)
    assert ndvi.shape == filled.shape == (starts.size, *GEOBOX.shape)
    return ndvi, filled


def test_integers_become_ndvi_on_the_fixed_periods(world: World) -> None:
    for k, start in enumerate(STARTS.tolist()):
        world.ndvi(start, 1000 + 500 * k)
    ndvi, filled = read(world)
    expected = 0.1 + 0.05 * np.arange(STARTS.size)
    np.testing.assert_allclose(
        ndvi, np.broadcast_to(expected[:, None, None], ndvi.shape), rtol=1e-6
    )
    assert not filled.any()


def test_platform_comes_from_the_name_where_the_field_is_empty(world: World) -> None:
    for start in STARTS[:2].tolist():
        world.ndvi(start, 1000)
    assert [c.platform for c in find(world)] == ["terra", "aqua"]
    assert {c.tile for c in find(world)} == {"h18v04"}


def test_fill_and_impossible_values_do_not_count(world: World) -> None:
    start = STARTS[0].item()
    values = np.full((40, 40), 4000)
    values[::2] = -3000  # fill, which no item and no file declares
    values[1::4, ::2] = -2500  # below the valid range
    world.ndvi(start, values)
    ndvi, filled = read(world)
    np.testing.assert_allclose(ndvi[0], 0.4, rtol=1e-6)
    assert not filled[0].any()
    world.ndvi(STARTS[1].item(), -3000)
    ndvi, filled = read(world)
    assert (filled[1] == modis.FILLED).all()
    np.testing.assert_allclose(ndvi[1], 0.4, rtol=1e-6)


def test_lowest_valid_value_counts(world: World) -> None:
    world.ndvi(STARTS[0].item(), -2000)
    ndvi, _ = read(world)
    np.testing.assert_allclose(ndvi[0], -0.2, rtol=1e-6)


def test_missing_periods_are_filled_linearly_over_days(world: World) -> None:
    # 2019-12-19 and 2019-12-27 are missing; the last period of 2019 has five days.
    assert [str(s) for s in STARTS[4:8]] == ["2019-12-19", "2019-12-27", "2020-01-01", "2020-01-09"]
    for start, value in ((date(2019, 12, 11), 2000), (date(2020, 1, 1), 4100)):
        world.ndvi(start, value)
    ndvi, filled = read(world)
    index = {str(start): k for k, start in enumerate(STARTS)}
    for day, expected in (
        ("2019-12-19", 0.2 + 0.21 * 8 / 21),
        ("2019-12-27", 0.2 + 0.21 * 16 / 21),
        ("2019-11-17", 0.2),  # before the first: the nearest holds
        ("2020-01-17", 0.41),
    ):
        np.testing.assert_allclose(ndvi[index[day]], expected, rtol=1e-5)
        assert (filled[index[day]] == modis.FILLED).all()
    assert not filled[index["2019-12-11"]].any()


@pytest.mark.parametrize(
    ("last", "length", "fit"),
    [("2019-12-27", 5, 0.2 + 0.13 * 8 / 13), ("2020-12-26", 6, 0.2 + 0.14 * 8 / 14)],
)
def test_the_last_period_of_a_year_is_short(
    world: World, last: str, length: int, fit: float
) -> None:
    """Day 361 begins it, and days count where a gap is filled."""
    starts = periods.period_starts(np.datetime64(last) - 8, np.datetime64(last) + 8)
    before, middle, after = starts.tolist()
    assert (middle.timetuple().tm_yday, (after - middle).days) == (361, length)
    world.ndvi(before, 2000)
    world.ndvi(after, 2000 + 100 * (8 + length))
    ndvi, filled = read(world, starts=starts)
    np.testing.assert_allclose(ndvi[1], fit, rtol=1e-5)
    np.testing.assert_array_equal(filled[:, 0, 0], [0, modis.FILLED, 0])
    world.ndvi(middle, 9000)
    ndvi, filled = read(world, starts=starts)
    np.testing.assert_allclose(ndvi[1], 0.9, rtol=1e-5)
    assert not filled.any()


def test_filled_slots_are_kept_for_each_cell(world: World) -> None:
    """A hole of half a year for all cells, and one more period for those in the west."""
    starts = periods.period_starts("2025-04-01", "2026-03-22")
    assert starts.size == 46
    hole = np.datetime64("2025-06-26"), np.datetime64("2025-12-27")
    for start in starts:
        if not hole[0] <= start < hole[1]:
            values = np.full((40, 40), 4000)
            if str(start) == "2025-05-01":
                values[:, :20] = -3000
            world.ndvi(start.item(), values)
    ndvi, filled = read(world, starts=starts)
    in_hole = int(((starts >= hole[0]) & (starts < hole[1])).sum())
    assert in_hole == 23
    count = (filled > 0).sum(axis=0)
    np.testing.assert_array_equal(count[:, 0], in_hole + 1)
    np.testing.assert_array_equal(count[:, -1], in_hole)
    np.testing.assert_allclose(ndvi, 0.4, rtol=1e-6)


def test_a_file_without_a_projection_has_that_of_the_catalog(world: World, tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(0, 9000, (40, 40))
    world.ndvi(STARTS[0].item(), values, crs="")
    known = World(tmp_path / "known")
    known.ndvi(STARTS[0].item(), values)
    np.testing.assert_allclose(read(world)[0], read(known)[0], rtol=1e-6)


def test_composites_of_other_days_are_left_to_other_sources(world: World) -> None:
    """A composite spans 16 days and so reaches into those of the source that follows."""
    for start in STARTS.tolist():
        world.ndvi(start, 1000)
    world.write()
    catalog = open_catalog(world.catalog_file())
    (source,) = catalog.sources["ndvi"]
    days = date(2019, 11, 30), date(2019, 12, 20)
    segment = Segment(source=source, start=days[0], end=days[1])
    found = modis.find_composites(catalog, segment, BBOX, STARTS)
    assert [str(c.start) for c in found] == ["2019-12-03", "2019-12-11", "2019-12-19"]


# -- the optional mask -------------------------------------------------------------------


def test_no_mask_is_applied_unless_it_is_asked_for(world: World) -> None:
    classes = np.repeat(np.array([0, 1, 2, 3, -1], np.int8), 8)[:, None]
    values = np.repeat(np.array([6000, 4000, 100, 200, 300]), 8)[:, None] * np.ones((1, 40), int)
    world.ndvi(STARTS[0].item(), values, reliability=classes)
    world.ndvi(STARTS[1].item(), 5000, reliability=3)
    free, free_filled = read(world)
    assert not free_filled[:2].any()
    masked, filled = read(world, mask=True)
    # Good and marginal pixels count; snow, cloud and fill do not.
    assert np.nanmin(free[0]) < 0.05
    known = ~filled[0].astype(bool)
    assert known.any()
    assert masked[0][known].min() >= 0.4 - 1e-6
    assert masked[0][known].max() <= 0.6 + 1e-6
    assert (filled[1] == modis.FILLED).all()
    np.testing.assert_allclose(free[1], 0.5, rtol=1e-6)


def test_a_mask_needs_its_layer(world: World) -> None:
    world.ndvi(STARTS[0].item(), 5000)
    with pytest.raises(CatalogError, match=r"has no asset '250m_16_days_pixel_reliability'"):
        find(world, mask=True)
    with pytest.raises(CatalogError, match=r"no `reliability` in the catalog.*without the mask"):
        find(world, mask=True, reliability=None)


def test_an_unreadable_mask_is_a_failed_read(world: World) -> None:
    for start in STARTS[:2].tolist():
        world.ndvi(start, 5000, reliability=0)
    broken = find(world, mask=True)[1]
    assert broken.reliability is not None
    Path(broken.reliability.href).unlink()
    with pytest.raises(OSError, match="reliability"):
        read(world, mask=True)
    _, filled = read(world, on_error="flag", mask=True)
    assert (filled[1] == modis.FILLED_AFTER_FAILURE).all()
    assert not filled[0].any()


def test_the_latest_version_of_a_composite_counts(world: World) -> None:
    start = STARTS[0].item()
    world.ndvi(start, 1000, version=2020001000000)
    world.ndvi(start, 3000, version=2021001000000)
    world.ndvi(start, 2000, version=2019365000000)
    (composite,) = find(world)
    assert composite.id.endswith("2021001000000")


def test_tiles_are_fused_without_a_seam(world: World, tmp_path: Path) -> None:
    values = np.random.default_rng(6).integers(0, 9000, (40, 40))
    for start in STARTS[:2].tolist():
        world.ndvi(start, values, columns=(0, 21))
        world.ndvi(start, values, tile=19, columns=(21, 40))
    world.items["modis-13Q1-061"].pop()  # one tile lacks its second composite
    whole = World(tmp_path / "whole")
    whole.ndvi(STARTS[0].item(), values)
    ndvi, filled = read(world)
    np.testing.assert_allclose(ndvi[0], read(whole)[0][0], rtol=1e-5)
    assert not filled[0].any()
    assert not filled[1, :, 0].any()
    assert (filled[1, :, -1] == modis.FILLED).all()


def test_a_failed_read_is_told_from_a_missing_composite(world: World) -> None:
    for start in STARTS.tolist():
        world.ndvi(start, 2000)
    composites = find(world)
    Path(composites[3].raster.href).unlink()
    with pytest.raises(OSError, match=composites[3].id):
        read(world)
    ndvi, filled = read(world, on_error="flag")
    assert (filled[3] == modis.FILLED_AFTER_FAILURE).all()
    assert not filled[[0, 1, 2, 4]].any()
    np.testing.assert_allclose(ndvi, 0.2, rtol=1e-6)


def test_real_item(shared: Path, tmp_path: Path) -> None:
    import json

    world = World(tmp_path)
    item = json.loads((shared / "data" / "stac" / "pc_modis-13Q1-061_item.json").read_text())
    world.items["modis-13Q1-061"] = [{**item, "links": []}]
    world.write()
    catalog = open_catalog(world.catalog_file())
    (source,) = catalog.sources["ndvi"]
    starts = periods.period_starts("2025-02-10", "2025-03-01")
    segment = Segment(source=source, start=starts[0].item(), end=starts[-1].item())
    (found,) = modis.find_composites(catalog, segment, (175.0, -15.0, 176.0, -14.0), starts)
    assert (str(found.start), found.platform, found.tile) == ("2025-02-18", "terra", "h35v10")
    assert found.raster.href.endswith("_250m_16_days_NDVI.tif")


def test_means_of_a_real_image(shared: Path, tmp_path: Path) -> None:
    """Against exactextract, on cells of 1 km in Brazil."""
    import rasterio
    from exactextract import exact_extract
    from exactextract.raster import NumPyRasterSource
    from pyproj import Transformer

    file = shared / "data" / "modis" / "TERRA_MODIS_012010_NDVI_2013-09-14.jp2"
    with rasterio.open(file) as image:
        stored, transform, crs = image.read(1), image.transform, image.crs.to_wkt()
    to_lonlat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    x = transform.c + transform.a * image.width / 2
    y = transform.f + transform.e * image.height / 2
    lon, lat = to_lonlat.transform(x, y)
    geobox = ease2_geobox((lon - 0.03, lat - 0.03, lon + 0.03, lat + 0.03), "1km")
    world = World(tmp_path)
    world.ndvi(date(2013, 9, 14), 0)
    item = world.items["modis-13Q1-061"][0]
    item["assets"]["250m_16_days_NDVI"]["href"] = str(file)
    item["geometry"], item["bbox"] = None, [lon - 1, lat - 1, lon + 1, lat + 1]
    starts = periods.period_starts("2013-09-14", "2013-09-14")
    world.write()
    catalog = open_catalog(world.catalog_file())
    (source,) = catalog.sources["ndvi"]
    segment = Segment(source=source, start=starts[0].item(), end=starts[0].item())
    bounds = (lon - 0.03, lat - 0.03, lon + 0.03, lat + 0.03)
    composites = tuple(modis.find_composites(catalog, segment, bounds, starts))
    ndvi, _ = modis.read_ndvi(composites, starts, geobox, "raise")
    values = np.where(stored < -2000, np.nan, stored * 1e-4)
    source_raster = NumPyRasterSource(
        values,
        xmin=transform.c,
        ymin=transform.f + transform.e * image.height,
        xmax=transform.c + transform.a * image.width,
        ymax=transform.f,
        nodata=np.nan,
    )
    found = exact_extract(source_raster, cell_polygons(geobox, crs), ["mean"])
    expected = np.array([f["properties"]["mean"] for f in found], float).reshape(geobox.shape)
    np.testing.assert_allclose(ndvi[0], expected, rtol=0, atol=2e-5)


def test_a_long_hole_is_costly_on_real_cropland(shared: Path) -> None:
    """Images 32 days apart, each left out in turn: filling knows little of sowing and harvest."""
    import rasterio

    files = sorted((shared / "data" / "modis").glob("*.jp2"))
    dates = np.array([file.stem[-10:] for file in files], "datetime64[D]")
    images = []
    for file in files:
        with rasterio.open(file) as image:
            stored = image.read(1).astype(np.float32)
        stored[stored < -2000] = np.nan
        height, width = (n // 4 * 4 for n in stored.shape)
        blocks = stored[:height, :width].reshape(height // 4, 4, width // 4, 4)
        images.append(np.nanmean(blocks, axis=(1, 3)) * 1e-4)  # about 1 km
    values = np.array(images, np.float32)
    errors = []
    for k in range(1, len(values) - 1):
        left_out = values.copy()
        left_out[k] = np.nan
        errors.append(modis.fill_in_time(left_out, dates)[k] - values[k])
    rms = float(np.sqrt(np.mean(np.square(errors))))
    seasons = float(np.sqrt(np.mean((values - values.mean(axis=0)) ** 2)))
    assert rms == pytest.approx(0.176, abs=0.002)
    assert seasons == pytest.approx(0.164, abs=0.002)


@given(
    values=nps.arrays(
        np.float32, (6, 2, 2), elements=st.sampled_from([np.nan, -0.2, 0.0, 0.25, 0.5, 1.0])
    )
)
def test_filling_is_linear_interpolation_of_each_cell(values: Any) -> None:
    starts = periods.period_starts("2019-12-11", "2020-01-20")[:6]
    day = (starts - starts[0]).astype(float)
    filled = modis.fill_in_time(values.copy(), starts)
    for i in range(2):
        for j in range(2):
            series = values[:, i, j]
            known = ~np.isnan(series)
            if not known.any():
                assert np.isnan(filled[:, i, j]).all()
                continue
            expected = np.interp(day, day[known], series[known])
            np.testing.assert_allclose(filled[:, i, j], expected, atol=1e-6)
            np.testing.assert_array_equal(filled[known, i, j], series[known])
