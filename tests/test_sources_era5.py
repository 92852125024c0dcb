from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from sources_world import BBOX, World, rain_of, temperature_of

from xsoilsm import periods
from xsoilsm.catalog import CatalogError, Segment, open_catalog
from xsoilsm.grid import ease2_geobox
from xsoilsm.sources.access.links import Access
from xsoilsm.sources.series import era5, stores, weather

GEOBOX = ease2_geobox(BBOX, "1km")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def find(world: World, first: date, last: date, needed: date | None = None) -> Any:
    world.write()
    catalog = open_catalog(world.catalog_file())
    (source,) = catalog.sources["weather"]
    segment = Segment(source=source, start=first, end=last)
    return era5.find_stores(catalog, segment, BBOX, needed or last)


def read(
    world: World,
    starts: Any,
    needed: date | None = None,
    on_error: str = "raise",
    geobox: Any = GEOBOX,
) -> tuple[Any, Any]:
    end = starts[-1] + np.timedelta64(int(periods.period_length(starts[-1])) - 1, "D")
    first, last = starts[0].item(), end.item()
    found = find(world, first, last, needed)
    sums = {
        name: [
            stores.read_store(store, BBOX, first, last, on_error)
            for store in found
            if store.name == name
        ]
        for name in era5.BANDS
    }
    native = weather.combine(sums["air_temperature"], sums["precipitation"], starts)
    temperature, rain = weather.regrid_weather(native, geobox)
    assert temperature.shape == rain.shape == (starts.size, *geobox.shape)
    return temperature, rain


def test_means_and_totals_of_whole_periods(world: World) -> None:
    for month in ("2020-05", "2020-06"):
        world.weather(month, temperature_of, rain_of)
    starts = periods.period_starts("2020-05-10", "2020-06-12")
    temperature, rain = read(world, starts)
    # The mean of a day has no diurnal part; cells lie in the row of 43.5 N.
    np.testing.assert_allclose(temperature, 12.0, atol=2e-4)
    np.testing.assert_allclose(rain, 8e-3, rtol=1e-5)


def test_the_hour_that_ends_at_midnight_belongs_to_the_day_before(world: World) -> None:
    def one_shower(stamp: Any, lat: Any, lon: Any) -> Any:
        wet = stamp == np.datetime64("2020-06-01T00:00", "ns")
        return np.where(wet, 5e-3, 0.0) + 0 * lat + 0 * lon

    for month in ("2020-05", "2020-06"):
        world.weather(month, temperature_of, one_shower)
    starts = periods.period_starts("2020-05-20", "2020-06-12")
    assert [str(s) for s in starts] == ["2020-05-16", "2020-05-24", "2020-06-01", "2020-06-09"]
    _, rain = read(world, starts)
    np.testing.assert_allclose(rain[1], 5e-3, rtol=1e-5)
    np.testing.assert_array_equal(rain[2:], 0)


def test_short_and_incomplete_periods_are_scaled(world: World) -> None:
    for month in ("2019-12", "2020-01"):
        world.weather(month, temperature_of, rain_of)
    starts = periods.period_starts("2019-12-27", "2020-01-31")
    assert str(starts[0]) == "2019-12-27"
    assert str(starts[-1]) == "2020-01-25"
    _, rain = read(world, starts, needed=date(2020, 1, 30))
    # Five days, and seven whole ones: the rain of 31 January is stamped 1 February.
    np.testing.assert_allclose(rain, 8e-3, rtol=1e-5)


def test_a_gap_leaves_the_days_that_are_whole(world: World) -> None:
    def early_rain(stamp: Any, lat: Any, lon: Any) -> Any:
        day = stamp.astype("datetime64[D]").astype(int) - np.datetime64("2020-06-09").astype(int)
        return np.where(day < 2, 1e-4, 0.0) + 0 * lat + 0 * lon

    world.weather("2020-06", temperature_of, early_rain)
    starts = periods.period_starts("2020-06-09", "2020-06-09")
    (full,) = read(world, starts)[1]
    np.testing.assert_allclose(full, 1e-4 * (23 + 24), rtol=1e-4)
    world.weather("2020-05", temperature_of, early_rain)
    starts = periods.period_starts("2020-05-24", "2020-06-09")
    temperature, rain = read(world, starts)
    assert np.isfinite(temperature).all()
    np.testing.assert_allclose(rain[-1], full, rtol=1e-6)


def test_cells_are_the_area_means_of_the_grid(world: World) -> None:
    from exactextract import exact_extract
    from exactextract.raster import NumPyRasterSource
    from sources_world import cell_polygons

    rng = np.random.default_rng(3)
    field = rng.uniform(270, 300, (9, 9))

    def noise(stamp: Any, lat: Any, lon: Any) -> Any:
        return field[None] + 0 * stamp.astype(int)

    world.weather("2020-06", noise, rain_of)
    starts = periods.period_starts("2020-06-09", "2020-06-09")
    geobox = ease2_geobox((4.8, 43.3, 5.2, 43.7), "9km")
    found = find(world, date(2020, 6, 9), date(2020, 6, 16))
    box = (4.8, 43.3, 5.2, 43.7)
    sums = [stores.read_store(s, box, date(2020, 6, 9), date(2020, 6, 16)) for s in found]
    native = weather.combine(sums[:1], sums[1:], starts)
    (temperature,) = weather.regrid_weather(native, geobox)[0]
    source = NumPyRasterSource(field, xmin=3.875, ymin=42.375, xmax=6.125, ymax=44.625)
    cells = exact_extract(source, cell_polygons(geobox, "EPSG:4326"), ["mean"])
    expected = np.array([f["properties"]["mean"] for f in cells]).reshape(geobox.shape) - 273.15
    # The library weighs by square degrees; over a cell of 9 km they change by 0.2 %.
    np.testing.assert_allclose(temperature, expected, atol=8e-3)


@pytest.fixture
def globe(tmp_path: Path) -> Callable[..., stores.WeatherStore]:
    """Write a store of the whole globe at 5 degrees, whose value is the longitude."""

    def write(units: str = "K", ascending: bool = False, first: float = 0.0) -> stores.WeatherStore:
        lat = np.arange(90, -91, -5.0)
        lon = first + np.arange(0, 360, 5.0)
        stamps = np.arange("2020-06-01", "2020-06-03", dtype="datetime64[h]").astype("M8[ns]")
        lat = lat[::-1] if ascending else lat
        values = np.zeros((stamps.size, lat.size, lon.size), np.float32)
        values += ((lon + 180) % 360 - 180)[None, None, :] + 1000 * lat[None, :, None]
        data = xr.Dataset(
            {"t": (("time", "lat", "lon"), values, {"units": units})},
            {"time": stamps, "lat": lat, "lon": lon},
        )
        data.to_zarr(tmp_path / "globe.zarr", consolidated=True, zarr_format=2, mode="w")
        variable = open_catalog("planetary-computer").sources["weather"][0].air_temperature
        return stores.WeatherStore(
            id="globe",
            name="air_temperature",
            href=str(tmp_path / "globe.zarr"),
            access=Access(),
            fields=json.dumps({"xarray:open_kwargs": {"engine": "zarr", "consolidated": True}}),
            variable=variable.model_copy(update={"variable": "t", "offset": 0.0}),
            first=np.datetime64("2020-06-01T00:00:00", "s"),
            last=np.datetime64("2020-06-02T23:00:00", "s"),
            days=(date(2020, 6, 1), date(2020, 6, 2)),
        )

    return write


@pytest.mark.parametrize(("ascending", "first"), [(False, 0.0), (True, 0.0), (False, -180.0)])
@pytest.mark.parametrize(
    ("west", "east"), [(-3.0, 4.0), (-122.0, -118.0), (172.0, 178.0), (-179.0, -171.0), (1.0, 2.0)]
)
def test_longitudes_from_0_or_from_180_west_and_either_order_of_latitudes(
    globe: Callable[..., stores.WeatherStore],
    west: float,
    east: float,
    ascending: bool,
    first: float,
) -> None:
    store = globe(ascending=ascending, first=first)
    bounds = (west, 43.0, east, 52.0)
    sums = stores.read_store(store, bounds, date(2020, 6, 1), date(2020, 6, 2))
    assert sums is not None
    assert (np.diff(sums.lon) == 5).all()
    assert (np.diff(sums.lat) == -5).all()
    assert sums.lon[0] - 2.5 <= west
    assert sums.lon[-1] + 2.5 >= east
    assert sums.lat[-1] - 2.5 <= 43.0
    assert sums.lat[0] + 2.5 >= 52.0
    expected = (sums.lon + 180) % 360 - 180 + 1000 * sums.lat[:, None]
    np.testing.assert_allclose(sums.total[0] / 24, expected, rtol=1e-5)
    np.testing.assert_array_equal(sums.hours, [24, 24])


def test_units_of_the_store_are_checked(globe: Callable[..., stores.WeatherStore]) -> None:
    store = globe(units="degC")
    with pytest.raises(OSError, match=r"'t' has units 'degC', the catalog says 'K'"):
        stores.read_store(store, (0, 43, 4, 52), date(2020, 6, 1), date(2020, 6, 2))


def test_a_frozen_store_is_an_error(world: World) -> None:
    world.weather("2020-06", temperature_of, rain_of, hours=400)
    starts = periods.period_starts("2020-06-09", "2020-06-20")
    with pytest.raises(
        OSError, match=r"ends at 2020-06-17T15:00:00.*2020-06-30T23:00:00.*frozen.*no other source"
    ):
        read(world, starts, on_error="flag")


def test_missing_months_are_named(world: World) -> None:
    world.weather("2020-04", temperature_of, rain_of)
    world.weather("2020-06", temperature_of, rain_of)
    with pytest.raises(CatalogError, match=r"air_temperature: 'era5-pds' lacks 2020-05-01, and"):
        find(world, date(2020, 4, 20), date(2020, 6, 10))
    with pytest.raises(CatalogError, match=r"lacks 2020-07-01.*names no other source"):
        find(world, date(2020, 6, 20), date(2020, 7, 10))
    # Days after the last acquisition need not be there.
    assert len(find(world, date(2020, 6, 20), date(2020, 7, 10), date(2020, 6, 30))) == 2


def test_an_unreadable_store_leaves_its_days_out(world: World) -> None:
    import shutil

    for month in ("2020-05", "2020-06"):
        world.weather(month, temperature_of, rain_of)
    starts = periods.period_starts("2020-05-10", "2020-06-12")
    world.write()
    shutil.rmtree(world.folder / "data" / "era5" / "2020-05")
    with pytest.raises(OSError, match="2020-05"):
        read(world, starts)
    temperature, rain = read(world, starts, on_error="flag")
    june = starts >= np.datetime64("2020-06-01")
    assert np.isnan(temperature[~june]).all()
    assert np.isfinite(temperature[june]).all()
    assert np.isfinite(rain[june]).all()


def test_a_damaged_store_leaves_its_days_out(world: World) -> None:
    for month in ("2020-05", "2020-06"):
        world.weather(month, temperature_of, rain_of)
    folder = world.folder / "data" / "era5" / "2020-05" / "air_temperature_at_2_metres.zarr"
    (chunk,) = (p for p in (folder / "air_temperature_at_2_metres").iterdir() if p.name[0] != ".")
    chunk.write_bytes(chunk.read_bytes()[:100])
    starts = periods.period_starts("2020-05-10", "2020-06-12")
    with pytest.raises(OSError, match=r"reading .*2020-05"):
        read(world, starts)
    temperature, rain = read(world, starts, on_error="flag")
    assert np.isnan(temperature[0]).all()
    assert np.isfinite(temperature[-1]).all()
    assert np.isfinite(rain).all()


def test_tiny_negative_amounts_become_zero(world: World) -> None:
    world.weather("2020-06", temperature_of, lambda s, lat, lon: -1e-9 + 0 * lat + 0 * lon)
    starts = periods.period_starts("2020-06-09", "2020-06-09")
    np.testing.assert_array_equal(read(world, starts)[1], 0)


@given(
    missing=st.sets(st.integers(0, 20)),
    amounts=st.lists(st.integers(0, 9), min_size=21, max_size=21),
)
def test_totals_are_scaled_by_the_days_that_are_whole(
    missing: set[int], amounts: list[int]
) -> None:
    """Against plain loops, over the end of a leap year's last period."""
    starts = periods.period_starts("2020-12-18", "2021-01-01")
    days = np.arange("2020-12-18", "2021-01-08", dtype="datetime64[D]")
    lengths = [8, 6, 8]
    hours = np.array([23 if k in missing else 24 for k in range(21)])
    total = np.array(amounts, float)[:, None, None] * np.ones((1, 2, 2))
    lat, lon = np.array([44.0, 43.75]), np.array([5.0, 5.25])
    sums = stores.DailySums(days, total, hours, lat, lon, (0, 0))
    native = weather.combine([sums], [sums], starts)
    begin = 0
    for k, length in enumerate(lengths):
        span = range(begin, min(begin + length, 21))
        whole = [amounts[d] for d in span if d not in missing]
        begin += length
        mean, rain = (part.values[k, 0, 0] for (part,) in native.parts)
        if not whole:
            assert np.isnan(mean)
            assert np.isnan(rain)
            continue
        np.testing.assert_allclose(rain, sum(whole) * 8 / len(whole), rtol=1e-6)
        np.testing.assert_allclose(mean, np.mean(whole) / 24, rtol=1e-6)


def test_no_store_at_all_leaves_a_variable_empty() -> None:
    starts = periods.period_starts("2020-06-09", "2020-06-09")
    days = np.arange("2020-06-09", "2020-06-17", dtype="M8[D]")
    lat, lon = np.array([43.75, 43.5, 43.25]), np.array([4.75, 5.0, 5.25])
    one = stores.DailySums(days, np.ones((8, 3, 3)), np.full(8, 24), lat, lon, (0, 0))
    native = weather.combine([one], [None], starts)
    temperature, rain = weather.regrid_weather(native, GEOBOX)
    np.testing.assert_allclose(temperature, 1 / 24, rtol=1e-6)
    assert np.isnan(rain).all()
