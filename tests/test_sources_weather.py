from __future__ import annotations

import base64
import logging
import pickle
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sources_world import BBOX, World, rain_of, temperature_of

from xsoilsm import check_cube, load_cube, periods
from xsoilsm.catalog import CatalogError, Segment, catalogs_dir, open_catalog
from xsoilsm.grid import ease2_geobox
from xsoilsm.sources.pixels.reading import Patch
from xsoilsm.sources.series import era5, stores, weather

GEOBOX = ease2_geobox(BBOX, "1km")
LAND = yaml.safe_load((catalogs_dir() / "earth-data-hub.yaml").read_text())["sources"]["weather"][0]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def catalog_with(world: World, *weather: dict[str, Any], **service: Any) -> Path:
    """Write a catalog whose weather comes from stores that it names."""
    world.write()
    content = yaml.safe_load(world.catalog_file().read_text())
    content["services"]["stores"] = {
        "kind": "zarr",
        "href": str(world.folder / "data"),
        "source": "test",
    } | service
    described = content["sources"]["weather"][0]
    named = LAND | {"service": "stores", "options": {}}
    content["sources"]["weather"] = [
        (described if "era5-pds" in w.get("collection", "") else named) | w for w in weather
    ]
    path = world.folder / "stores.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def read(path: Path, starts: Any, needed: date | None = None, number: int = 0) -> Any:
    """Weather of the cells of a source of a catalog: temperature and rain."""
    catalog = open_catalog(path)
    source = catalog.sources["weather"][number]
    end = starts[-1] + np.timedelta64(int(periods.period_length(starts[-1])) - 1, "D")
    first, last = starts[0].item(), end.item()
    segment = Segment(source=source, start=first, end=last)
    found = era5.find_stores(catalog, segment, BBOX, needed or last)
    sums = {
        name: [stores.read_store(s, BBOX, first, last, "raise") for s in found if s.name == name]
        for name in era5.BANDS
    }
    native = weather.combine(sums["air_temperature"], sums["precipitation"], starts)
    return *weather.regrid_weather(native, GEOBOX), weather.regrid_filled(native, GEOBOX)[0]


# -- accumulation ------------------------------------------------------------------------


def test_amounts_since_midnight_equal_hourly_ones(world: World) -> None:
    """The same showers, stored hour by hour and as they accumulate from 00 UTC on."""
    rng = np.random.default_rng(5)
    begin = np.datetime64("2019-12-20", "h")
    showers = rng.gamma(0.1, 2e-3, 24 * 43)

    def shower(stamp: Any, lat: Any, lon: Any) -> Any:
        index = (stamp.astype("datetime64[h]") - begin).astype(int)
        return showers[np.minimum(index, showers.size - 1)] + 0 * lat + 0 * lon

    for month in ("2019-12", "2020-01"):
        world.weather(month, temperature_of, shower)
    world.land_weather(date(2019, 12, 20), date(2020, 1, 31), temperature_of, shower)
    path = catalog_with(world, {"collection": "era5-pds"}, {})
    starts = periods.period_starts("2019-12-27", "2020-01-17")
    temperature, hourly = read(path, starts)[:2]
    land_temperature, accumulated = read(path, starts, number=1)[:2]
    day = (begin.astype("M8[D]") + (np.arange(showers.size) - 1) // 24).astype("M8[D]")
    lengths = periods.period_length(starts)
    for k, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        inside = (day >= start) & (day < start + length)
        assert inside.sum() == 24 * length
        expected = showers[inside].sum() * 8 / length
        np.testing.assert_allclose(hourly[k], expected, rtol=2e-6)
        np.testing.assert_allclose(accumulated[k], expected, rtol=2e-6)
    np.testing.assert_allclose(land_temperature, temperature, atol=0.08)  # another grid


def test_the_last_day_needs_the_stamp_that_follows_it(world: World) -> None:
    world.land_weather(date(2020, 6, 1), date(2020, 6, 16), temperature_of, rain_of)
    path = catalog_with(world, {})
    starts = periods.period_starts("2020-06-09", "2020-06-09")
    temperature, rain, _ = read(path, starts)
    # Rain of 16 June would be stamped 17 June: seven days are scaled to eight.
    np.testing.assert_allclose(rain, 8e-3, rtol=1e-6)
    np.testing.assert_allclose(temperature, 12.0, atol=0.02)


# -- stores that the catalog names -------------------------------------------------------


def test_a_named_store_is_read_by_the_year(world: World) -> None:
    world.land_weather(date(2019, 12, 1), date(2020, 1, 31), temperature_of, rain_of)
    catalog = open_catalog(catalog_with(world, {}))
    segment = Segment(
        source=catalog.sources["weather"][0], start=date(2019, 12, 5), end=date(2020, 1, 20)
    )
    found = era5.find_stores(catalog, segment, BBOX, date(2020, 1, 20))
    assert [(s.name, s.days) for s in found] == [
        (name, days)
        for name in era5.BANDS
        for days in (
            (date(2019, 12, 5), date(2019, 12, 31)),
            (date(2020, 1, 1), date(2020, 1, 20)),
        )
    ]
    rain = [stores.read_store(s, BBOX, segment.start, segment.end) for s in found[2:]]
    for part in rain:
        assert part is not None
        np.testing.assert_array_equal(part.hours, 24)
        np.testing.assert_allclose(part.total, 1e-3, rtol=1e-6)
    assert rain[0].days[-1] + 1 == rain[1].days[0]  # type: ignore[union-attr]


def test_a_frozen_archive_names_the_fall_back(world: World) -> None:
    world.land_weather(date(2020, 5, 1), date(2020, 6, 2), temperature_of, rain_of)
    path = catalog_with(world, {}, {"collection": "later.zarr"})
    starts = periods.period_starts("2020-05-08", "2020-06-09")
    message = (
        r"lacks 2020-06-03.*holds 2020-05-08T00:00:00 to 2020-06-02T23:00:00.*frozen or lags "
        r"behind.*'later\.zarr'.*to fall back on: give 'era5-land-v0\.zarr' the line "
        r"`end: 2020-06-02`"
    )
    with pytest.raises(CatalogError, match=message):
        read(path, starts)
    # Wholly after its end, and without anything to fall back on.
    path = catalog_with(world, {})
    with pytest.raises(CatalogError, match=r"lacks 2020-06-17.*frozen.*no other source of weather"):
        read(path, periods.period_starts("2020-06-17", "2020-06-17"))


def test_a_store_that_shrank_since_is_an_error(world: World) -> None:
    path = world.land_weather(date(2020, 6, 1), date(2020, 6, 30), temperature_of, rain_of)
    catalog = open_catalog(catalog_with(world, {}))
    days = date(2020, 6, 9), date(2020, 6, 16)
    segment = Segment(source=catalog.sources["weather"][0], start=days[0], end=days[1])
    found = era5.find_stores(catalog, segment, BBOX, days[1])
    import shutil

    shutil.rmtree(path)
    world.land_weather(date(2020, 6, 1), date(2020, 6, 12), temperature_of, rain_of)
    with pytest.raises(OSError, match=r"ends at 2020-06-12T23:00:00, but.*claims 2020-06-16T23"):
        stores.read_store(found[0], BBOX, *days)


def test_missing_stores_and_variables_are_named(world: World) -> None:
    starts = periods.period_starts("2020-06-09", "2020-06-09")
    (world.folder / "data").mkdir()
    with pytest.raises(CatalogError, match=r"opening .*era5-land-v0\.zarr failed"):
        read(catalog_with(world, {}), starts)
    world.land_weather(date(2020, 6, 1), date(2020, 6, 30), temperature_of, rain_of)
    variable = LAND["precipitation"] | {"variable": "rain"}
    with pytest.raises(CatalogError, match=r"no variable 'rain'; it has t2m, tp"):
        read(catalog_with(world, {"precipitation": variable}), starts)


# -- several grids -----------------------------------------------------------------------


def constant(value: float) -> Callable[..., Any]:
    return lambda stamp, lat, lon: value + 0 * lat + 0 * lon


def test_fall_backs_by_date_mix_grids_in_one_cube(world: World) -> None:
    """ERA5 to 11 June, ERA5-Land from the 12th on, inside of one period."""
    world.fill(date(2019, 6, 1), date(2020, 6, 30))
    world.radar("2020-06-20T17:00:00", 30001)
    day_rain = [rate * np.float64(24) for rate in (1e-4, 3e-4)]
    for item in [*world.items["era5-pds"]]:
        if item["properties"]["start_datetime"] >= "2020-06":
            world.items["era5-pds"].remove(item)
    import shutil

    shutil.rmtree(world.folder / "data" / "era5" / "2020-06")
    world.weather("2020-06", constant(283.15), constant(1e-4))
    world.land_weather(date(2020, 6, 8), date(2020, 6, 30), constant(291.15), constant(3e-4))
    path = catalog_with(
        world, {"collection": "era5-pds", "end": date(2020, 6, 11)}, {"start": date(2020, 6, 12)}
    )
    cube = load_cube(BBOX, "2020-06-20", catalog=path)
    assert set(cube.precipitation.attrs["items"].split()) >= {
        "era5-pds-2020-06-fc",
        "era5-land-v0.zarr",
    }
    assert "era5-land-v0.zarr: " in cube.attrs["licence"]
    assert "era5-pds: " in cube.attrs["licence"]
    assert "ERA5-Land" in cube.attrs["citation"]
    june = cube.sel(period=["2020-06-09", "2020-06-17"])[["air_temperature", "precipitation"]]
    june = june.compute(scheduler="sync")
    np.testing.assert_allclose(june.air_temperature[0], (3 * 10 + 5 * 18) / 8, rtol=1e-6)
    np.testing.assert_allclose(june.air_temperature[1], 18, rtol=1e-6)
    np.testing.assert_allclose(june.precipitation[0], 3 * day_rain[0] + 5 * day_rain[1], rtol=1e-6)
    np.testing.assert_allclose(june.precipitation[1], 8 * day_rain[1], rtol=1e-6)


@given(
    values=st.lists(
        st.tuples(st.none() | st.floats(-40, 40), st.integers(1, 8)), min_size=2, max_size=4
    )
)
def test_grids_weigh_by_their_days(values: list[tuple[float | None, int]]) -> None:
    """Parts of any number, of which some have nothing at a cell."""
    parts = tuple(
        weather.NativePart(
            values=np.full((1, *GEOBOX.shape), np.nan if v is None else v, np.float32),
            days=np.array([days]),
            filled=np.zeros(GEOBOX.shape, dtype=bool),
            patch=Patch(0, 0, GEOBOX),
        )
        for v, days in values
    )
    native = weather.NativeWeather(1, (parts, ()))
    temperature, rain = weather.regrid_weather(native, GEOBOX)
    known = [(v, days) for v, days in values if v is not None]
    assert np.isnan(rain).all()
    if not known:
        assert np.isnan(temperature).all()
        return
    expected = sum(v * d for v, d in known) / sum(d for _, d in known)
    np.testing.assert_allclose(temperature, expected, rtol=1e-5, atol=1e-4)


# -- the sea -----------------------------------------------------------------------------


def test_the_sea_takes_the_weather_of_the_nearest_land_within_reach() -> None:
    """Against every distance on the sphere, worked out one by one."""
    rng = np.random.default_rng(8)
    lat, lon = 60.0 - 0.1 * np.arange(9), 4.0 + 0.1 * np.arange(12)
    land = rng.random((9, 12)) < 0.15
    values = np.where(land, np.arange(108.0).reshape(9, 12), np.nan).astype(np.float32)
    filled = values[None].copy()
    marks = weather._fill(filled, lat, lon, 25.0)
    phi, lam = (np.deg2rad(a) for a in np.meshgrid(lat, lon, indexing="ij"))
    for i, j in np.argwhere(~land):
        angle = np.sin((phi - phi[i, j]) / 2) ** 2
        angle += np.cos(phi) * np.cos(phi[i, j]) * np.sin((lam - lam[i, j]) / 2) ** 2
        distance = np.where(land, 2 * 6371.0088 * np.arcsin(np.sqrt(angle)), np.inf)
        assert marks[i, j] == (distance.min() <= 25.0)
        if marks[i, j]:
            nearest = values[np.isclose(distance, distance.min(), rtol=1e-9)]
            assert filled[0, i, j] in nearest
        else:
            assert np.isnan(filled[0, i, j])
    np.testing.assert_array_equal(filled[0][land], values[land])
    assert 0 < marks.sum() < (~land).sum()


@pytest.mark.parametrize(
    ("coast", "within", "reached"),
    [(4.95, 0, False), (4.95, 12, True), (4.95, 4, False), (4.75, 30, True), (4.75, 20, False)],
)
def test_cells_at_sea_are_filled_and_marked(
    world: World, coast: float, within: float, reached: bool
) -> None:
    """The last points on land lie 8 or 24 km west of the point of the region."""
    world.land_weather(
        date(2020, 6, 1), date(2020, 6, 30), temperature_of, rain_of,
        sea=lambda lat, lon: (lon > coast) & (lat > 0),
    )  # fmt: skip
    path = catalog_with(world, {"fill_within": within})
    starts = periods.period_starts("2020-06-09", "2020-06-09")
    temperature, rain, filled = read(path, starts)
    assert np.isfinite(temperature).all() == reached
    assert np.isfinite(rain).all() == reached
    np.testing.assert_allclose(filled, 1.0 if reached else 0.0, atol=1e-6)
    if reached:
        np.testing.assert_allclose(temperature, 12.0, atol=0.02)


def test_the_cube_tells_where_weather_was_filled(world: World) -> None:
    world.fill(date(2020, 4, 1), date(2020, 4, 30))  # all but the weather
    world.ndvi(date(2019, 6, 10), 3000)
    world.radar("2020-06-20T17:00:00", 30001)
    world.land_weather(
        date(2019, 6, 1), date(2020, 6, 30), temperature_of, rain_of,
        sea=lambda lat, lon: (lon > 5.04) & (lat > 0),
    )  # fmt: skip
    cube = load_cube(BBOX, "2020-06-20", catalog=catalog_with(world, {"fill_within": 30}))
    filled = cube.weather_filled.compute(scheduler="sync")
    assert filled.dims == ("y", "x")
    assert filled.attrs["units"] == "1"
    assert (filled[:, 0] == 0).all()  # points stand for the 0.1 degrees around them: to 5.05
    check_cube(cube)
    assert cube.ndvi.attrs["quality_mask"] == "none"
    missing = cube.ndvi.attrs["periods_without_composite"].split()
    assert len(missing) == cube.sizes["period"] - 5
    assert "2020-06-17" in missing
    assert "2020-04-22" not in missing
    dry = catalog_with(world, {"fill_within": 0})
    with pytest.raises(CatalogError, match="unreliable NDVI cannot be masked"):
        load_cube(BBOX, "2020-06-20", catalog=dry, mask_ndvi=True)
    assert "weather_filled" not in load_cube(BBOX, "2020-06-20", catalog=dry)


# -- over HTTP, with a token -------------------------------------------------------------

TOKEN = "edh_pat_0123456789abcdef"  # not a real one


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve ``data`` to those who bring the token; tells what was asked and refused."""
    refused: list[str] = []
    expected = "Basic " + base64.b64encode(f"edh:{TOKEN}".encode()).decode()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def send_head(self) -> Any:
            if self.headers.get("Authorization") != expected:
                refused.append(self.path)
                self.send_error(401)
                return None
            return super().send_head()

    folder = tmp_path / "data"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", refused
    server.shutdown()
    server.server_close()
    thread.join(5)


def test_the_token_of_the_netrc_file_opens_a_store_and_stays_there(
    world: World,
    guarded: tuple[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url, refused = guarded
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    secrets = TOKEN, base64.b64encode(f"edh:{TOKEN}".encode()).decode().rstrip("=")
    wrong = "edh_pat_of_somebody_else"
    world.land_weather(date(2020, 6, 1), date(2020, 6, 30), temperature_of, rain_of)
    path = catalog_with(world, {}, href=url, signing="netrc")
    starts = periods.period_starts("2020-06-09", "2020-06-09")
    days = date(2020, 6, 9), date(2020, 6, 16)
    caplog.set_level(logging.DEBUG)

    netrc.write_text(f"machine 127.0.0.1 login edh password {wrong}\n")
    netrc.chmod(0o600)
    with pytest.raises(CatalogError, match=r"401.*netrc.*needs a valid token for 127\.0\.0\.1:"):
        read(path, starts)
    assert len(refused) < 10  # a refusal is not tried again and again

    netrc.write_text(f"machine 127.0.0.1 login edh password {TOKEN}\n")
    temperature, rain, _ = read(path, starts)
    np.testing.assert_allclose(rain, 8e-3, rtol=1e-6)
    np.testing.assert_allclose(temperature, 12.0, atol=0.02)

    catalog = open_catalog(path)
    segment = Segment(source=catalog.sources["weather"][0], start=days[0], end=days[1])
    found = era5.find_stores(catalog, segment, BBOX, days[1])
    netrc.write_text(f"machine 127.0.0.1 login edh password {wrong}\n")
    assert stores.read_store(found[0], BBOX, *days, "flag") is None
    with pytest.raises(OSError, match="401") as raised:
        stores.read_store(found[0], BBOX, *days, "raise")
    chain: list[BaseException] = [raised.value]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)  # type: ignore[arg-type]
    assert len(chain) > 1
    said = [str(vars(error)) + repr(error) for error in chain]
    said += traceback.format_exception(raised.value)
    said += [pickle.dumps(found, 0).decode("latin1"), catalog.model_dump_json(), caplog.text]
    said += [
        file.read_bytes().decode("latin1")
        for file in tmp_path.rglob("*")
        if file.is_file() and file != netrc
    ]
    for text in said:
        for secret in (*secrets, wrong):
            assert secret not in text


def test_catalogs_with_a_password_are_refused(world: World) -> None:
    path = catalog_with(world, {}, href=f"https://edh:{TOKEN}@example.invalid/era5")
    with pytest.raises(CatalogError, match=r"services\.stores.*put it into ~/\.netrc") as raised:
        open_catalog(path)
    assert TOKEN not in str(raised.value)


def test_what_is_missing_for_azure_is_said_before_anything_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "adlfs", None)
    world.weather("2020-06", temperature_of, rain_of)
    for item in world.items["era5-pds"]:
        (asset,) = item["assets"].values()
        asset["href"] = f"abfs://era5/2020/06/{Path(asset['href']).name}"
    path = catalog_with(world, {"collection": "era5-pds"})
    with pytest.raises(CatalogError, match=r"adlfs.*pip install 'xsoilsm\[azure\]'"):
        read(path, periods.period_starts("2020-06-09", "2020-06-09"))


# -- real data ---------------------------------------------------------------------------


def test_real_temperatures_of_era5_land(shared: Path, world: World) -> None:
    """Four real hours a day, held for six hours each, against the GRIB file that they came in."""
    import tarfile

    import rasterio
    from exactextract import exact_extract
    from exactextract.raster import NumPyRasterSource
    from sources_world import cell_polygons

    folder = shared / "data" / "era5"
    with tarfile.open(folder / "openhexa_sample_2m_temperature.zarr.tar.gz") as archive:
        archive.extractall(world.folder, filter="data")
    real = xr.open_dataset(
        world.folder / "2m_temperature.zarr", engine="zarr", consolidated=False, chunks=None
    )
    flat = real.t2m.stack(valid=("time", "step")).transpose("valid", ...)
    stamps = real.valid_time.values.ravel()
    hours = (stamps[:, None] + np.arange(-1, 5).astype("timedelta64[h]")).ravel()
    dims = ("valid_time", "latitude", "longitude")
    data = xr.Dataset(
        {"t2m": (dims, np.repeat(flat.values, 6, axis=0), {"units": real.t2m.units})},
        {"valid_time": hours, "latitude": real.latitude, "longitude": real.longitude},
    )
    data["tp"] = xr.zeros_like(data.t2m).assign_attrs(units="m")
    path = world.folder / "data" / "real.zarr"
    data.drop_encoding().to_zarr(path, zarr_format=3, consolidated=False)
    options = {"consolidated": False}
    catalog = open_catalog(catalog_with(world, {"collection": "real.zarr", "options": options}))
    box = (-0.31, 8.52, 0.22, 9.03)  # on both sides of Greenwich, Ghana and Togo
    geobox = ease2_geobox(box, "9km")
    starts = periods.period_starts("2025-03-30", "2025-03-30")
    assert str(starts[0]) == "2025-03-30"
    days = date(2025, 3, 30), date(2025, 4, 5)
    segment = Segment(source=catalog.sources["weather"][0], start=days[0], end=days[1])
    found = era5.find_stores(catalog, segment, box, days[1])
    sums = [stores.read_store(s, box, *days) for s in found]
    native = weather.combine(sums[:1], sums[1:], starts)
    (temperature,) = weather.regrid_weather(native, geobox)[0]

    bands = []
    with rasterio.Env(GRIB_NORMALIZE_UNITS="NO"):
        for month in ("202503", "202504"):
            with rasterio.open(folder / f"openhexa_sample_{month}.grib") as file:
                bands += [
                    file.read(band)
                    for band in range(1, file.count + 1)
                    if int(file.tags(band)["GRIB_VALID_TIME"]) >= 1743292800  # 30 March, 00 UTC
                ]
    assert len(bands) == 7 * 4
    field = np.mean(bands, axis=0) - 273.15
    raster = NumPyRasterSource(field, xmin=-1.05, ymin=7.95, xmax=1.05, ymax=10.05)
    cells = exact_extract(raster, cell_polygons(geobox, "EPSG:4326"), ["mean"])
    expected = np.array([f["properties"]["mean"] for f in cells]).reshape(geobox.shape)
    np.testing.assert_allclose(temperature, expected, atol=1e-4)
    assert np.ptp(temperature) > 1
