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
from xsoilsm.catalog import Segment, open_catalog
from xsoilsm.grid import ease2_geobox
from xsoilsm.sources import modis

GEOBOX = ease2_geobox(BBOX, "1km")
STARTS = periods.period_starts("2019-11-17", "2020-01-20")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def find(world: World, starts: Any = STARTS) -> tuple[modis.Composite, ...]:
    world.write()
    catalog = open_catalog(world.catalog_file())
    (source,) = catalog.sources["ndvi"]
    segment = Segment(source=source, start=starts[0].item(), end=starts[-1].item())
    return tuple(modis.find_composites(catalog, segment, BBOX, starts))


def read(world: World, on_error: str = "raise", starts: Any = STARTS) -> tuple[Any, Any]:
    ndvi, filled = modis.read_ndvi(find(world, starts), starts, GEOBOX, on_error)
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
