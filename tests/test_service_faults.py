"""What goes wrong on the way from a provider, each for real, and what comes of it.

Faults that pass end in the same bytes as a quiet day; those that last end in flags, or in an
error for those who ask for one. Nothing takes longer than its limit, and no signature is told.
"""

from __future__ import annotations

import itertools
import logging
import time
import traceback
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pystac_client
import pytest
import xarray as xr
from loopback import serve
from services import provider as forms
from services.fixtures import GOOD, REGION, RTC, SPLIT, STALE, TIME, UNPROJECTED, ZEROED, Services
from sources_world import BBOX, World

from xsoilsm import load_cube, open_catalog, retrieve
from xsoilsm.catalog import CatalogError
from xsoilsm.cube import InputFlag, SourceFlag
from xsoilsm.facts import Service
from xsoilsm.products import write_products
from xsoilsm.retrieval import ResolutionWarning
from xsoilsm.sources.access import search
from xsoilsm.sources.access.links import Access, read_bytes
from xsoilsm.sources.access.transport import ReadFailed, patience
from xsoilsm.sources.access.webzarr import WebStore
from xsoilsm.sources.series import modis

FILES = {
    "sigma0_vv": r"/sentinel1-grd-rtc/.*/iw-vv\.rtc\.tiff$",
    "incidence_angle": r"/s1-grd/.*/annotation/iw-vv\.xml$",
    "ndvi": r"/modis-061-cogs/.*A2020049.*NDVI",
    "air_temperature": r"/era5/.*/2020/02/.*/air_temperature_at_2_metres/[\d.]+$",
    "elevation": r"/nasadem-cog/",
}
"""A variable of each source, and the files that it is read from."""

PASSING: dict[str, dict[str, Any]] = {
    "403": {"kind": 403, "count": 1},
    "429": {"kind": 429, "count": 2},
    "503": {"kind": 503, "count": 2},
    "504": {"kind": 504, "count": 1},
    "reset": {"kind": "reset", "count": 2},
    "reset midway": {"kind": "reset-midway", "count": 1, "skip": 1},
    "half": {"kind": "half", "count": 1},
    "half of the second": {"kind": "half", "count": 1, "skip": 1},
    "whole": {"kind": "whole", "count": 1},
    "slow": {"kind": "slow-start", "count": 1, "pause": 3.0},
}
"""Faults that are gone after some requests."""


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for no answer longer than a second."""
    monkeypatch.setenv("XSOILSM_HTTP_TIMEOUT", "1")


def values(cube: xr.Dataset, name: str, number: int = GOOD) -> Any:
    """Compute a variable, of one acquisition."""
    array = cube[name]
    if "time" in array.dims:
        array = array.isel(time=number)
    return array.compute().values


# -- faults that pass --------------------------------------------------------------------


SINGLE = {"incidence_angle", "air_temperature"}
"""Read by one request a file, so that a fault of the second one never happens."""


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (name, fault)
        for name in FILES
        for fault, details in PASSING.items()
        if name not in SINGLE or "skip" not in details
    ],
)
def test_what_passes_ends_in_the_same_bytes(
    provider: Services, lazy: xr.Dataset, expected: xr.Dataset, hurry: None, name: str, fault: str
) -> None:
    provider.storage.fail(FILES[name], **PASSING[fault])
    np.testing.assert_array_equal(values(lazy, name), values(expected, name))
    hit = [r for r in provider.storage.requests(FILES[name]) if r["fault"] is not None]
    assert len(hit) == PASSING[fault]["count"]


def test_a_file_without_signature_is_read_with_the_same_patience(
    provider: Services, expected: xr.Dataset
) -> None:
    endpoints = provider.endpoints
    endpoints[f"{forms.SOIL}/"] = f"{provider.storage.url}/~passing/soilgrids/"
    catalog = open_catalog("planetary-computer", endpoints=endpoints)
    cube = load_cube(REGION, TIME, catalog=catalog, cache=False)
    provider.storage.fail(r"/sand.*\.vrt$", 503, count=1)
    provider.storage.fail(r"/sand.*\.tif$", "reset", count=2, skip=1)
    np.testing.assert_array_equal(values(cube, "sand"), values(expected, "sand"))
    assert len([r for r in provider.storage.requests("sand") if r["fault"]]) == 3


def test_signatures_that_expire_before_the_read(
    provider: Services, lazy: xr.Dataset, expected: xr.Dataset
) -> None:
    for name in FILES:
        values(lazy, name)
    before = len(provider.storage.requests("^/api/sas/"))
    provider.storage.advance(2 * 3600)  # the client still takes its tokens for good
    for name in FILES:
        np.testing.assert_array_equal(
            values(lazy, name, SPLIT), values(expected, name, SPLIT), err_msg=name
        )
    refused = [r for r in provider.storage.requests() if r.get("refusal") == "expired"]
    assert {r["path"].split("/")[2] for r in refused} >= {"sentinel1-grd-rtc", "s1-grd", "era5"}
    assert len(provider.storage.requests("^/api/sas/")) > before


def test_a_signature_that_expires_between_two_windows(
    provider: Services, lazy: xr.Dataset, expected: xr.Dataset
) -> None:
    provider.storage.fail(FILES["sigma0_vv"], 403, count=1, skip=2)  # after GDAL has opened it
    np.testing.assert_array_equal(values(lazy, "sigma0_vv"), values(expected, "sigma0_vv"))
    assert [r for r in provider.storage.requests("vv.rtc") if r["fault"]]


def test_short_lived_signatures(provider: Services, lazy: xr.Dataset, expected: xr.Dataset) -> None:
    provider.storage.lifetime(20)  # below the margin at which a token counts as expired
    np.testing.assert_array_equal(values(lazy, "sigma0_vv"), values(expected, "sigma0_vv"))


@pytest.mark.parametrize("name", ["incidence_angle", "air_temperature", "sigma0_vv"])
def test_the_pause_that_a_server_asks_for_is_kept(
    provider: Services, lazy: xr.Dataset, expected: xr.Dataset, name: str
) -> None:
    provider.storage.fail(FILES[name], 429, count=3, retry_after=1)
    np.testing.assert_array_equal(values(lazy, name), values(expected, name))
    pauses = 0
    by_path: dict[str, list[dict[str, Any]]] = {}
    for request in provider.storage.requests(FILES[name]):
        by_path.setdefault(request["path"], []).append(request)
    for requests in by_path.values():
        for one, following in itertools.pairwise(requests):
            # What a server tells GDAL stays with GDAL: the request after that tells it again.
            told = name != "sigma0_vv" or one["range"] == "bytes=0-0"
            if one["status"] == 429 and told:
                assert following["time"] - one["time"] > 0.98
                pauses += 1
    assert pauses >= 2


def test_a_pause_beyond_the_limit_is_not_waited_for(
    provider: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.storage.fail("sand", 429, retry_after=3600)
    begin = time.monotonic()
    with pytest.raises(ReadFailed, match=r"429.*limit of 300 s"):
        read_bytes(f"{provider.storage.url}/soilgrids/sand/sand_0-5cm_mean.vrt", Access())
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize("kind", [503, 429, 403, "reset", "half", "slow-start"])
def test_a_token_that_comes_at_the_second_asking(
    provider: Services, lazy: xr.Dataset, expected: xr.Dataset, hurry: None, kind: int | str
) -> None:
    provider.storage.fail("^/api/sas/", kind, count=1, pause=3.0)
    np.testing.assert_array_equal(values(lazy, "sigma0_vv"), values(expected, "sigma0_vv"))


@pytest.mark.parametrize("fault", [[503], [429], [403], [0, 502]])
def test_a_search_that_succeeds_at_the_second_try(
    provider: Services, tmp_path: Path, fault: list[int]
) -> None:
    world = World(tmp_path)
    world.radar("2020-06-03T17:40:00", 33000)
    with serve(tmp_path) as server:
        server.items += world.items[RTC]
        service = Service(kind="stac-api", href=f"{server.url}/stac", source="test")
        days = np.datetime64("2020-06-01").item(), np.datetime64("2020-06-30").item()
        server.faults["/stac/search"] = [code for code in fault if code]
        if 0 in fault:
            server.faults["/stac"] = [0]
        found = search.find_items(service, RTC, BBOX, *days)
        assert len(found) == 1
        assert not any(server.faults.values())
        server.faults["/stac/search"] = [503] * 9
        with pytest.raises(CatalogError, match="failed"):
            search.find_items(service, RTC, BBOX, *days)
        assert len(server.faults["/stac/search"]) == 9 - patience().tries


# -- faults that last --------------------------------------------------------------------

LASTING: dict[str, dict[str, Any]] = {
    "missing": {"kind": 404},
    "refused": {"kind": 403},
    "busy": {"kind": 503},
    "reset": {"kind": "reset"},
    "half": {"kind": "half"},
    "broken upload": {"kind": "short-file"},
    "slow": {"kind": "slow", "pause": 0.05},
}


@pytest.mark.parametrize("fault", LASTING)
@pytest.mark.parametrize("polarisation", ["vv", "vh"])
def test_a_scene_that_cannot_be_read_is_flagged(
    provider: Services,
    lazy: xr.Dataset,
    expected: xr.Dataset,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    polarisation: str,
) -> None:
    monkeypatch.setenv("XSOILSM_HTTP_TRIES", "2")
    monkeypatch.setenv("XSOILSM_HTTP_TIMEOUT", "1")
    day = f"_{str(expected.time.values[GOOD])[:10].replace('-', '')}T"
    provider.storage.fail(f"{day}.*{polarisation}.rtc.tiff", **LASTING[fault])
    begin = time.monotonic()
    got = lazy[["sigma0_vv", "sigma0_vh", "source_flags", "coverage"]]
    got = got.isel(time=[GOOD, SPLIT]).compute()
    assert time.monotonic() - begin < 15
    flags = got.source_flags.isel(time=0).values
    assert (flags & SourceFlag.READ_FAILED).all()
    assert not (flags & SourceFlag.NO_SCENE).any()
    assert np.isnan(got.sigma0_vv.isel(time=0)).all()
    assert np.isnan(got.sigma0_vh.isel(time=0)).all()
    assert (got.coverage.isel(time=0) == 0).all()
    for name in got.data_vars:
        wanted = expected[name].isel(time=SPLIT).values
        np.testing.assert_array_equal(got[name].isel(time=1).values, wanted)
    asked = provider.storage.requests(f"{day}.*{polarisation}.rtc.tiff")
    if fault == "missing":
        assert len(asked) == 1  # what is not there will not be there in a second
    else:
        assert len(asked) > 1


def test_no_scene_and_a_failed_read_are_told_apart(provider: Services) -> None:
    west, south, east, north = REGION
    wide = west, south, east + 0.08, north
    cube = load_cube(wide, "2020-04-05", catalog=provider.catalog(), cache=False)
    provider.storage.fail("vv.rtc.tiff", 404)
    flags = cube.source_flags.isel(time=0).compute().values
    failed, nothing = flags & SourceFlag.READ_FAILED != 0, flags & SourceFlag.NO_SCENE != 0
    assert failed[:, 0].all()
    assert nothing[:, -1].all()
    assert (failed ^ nothing).all()


@pytest.mark.parametrize("name", FILES)
def test_who_asks_for_an_error_gets_one(
    provider: Services, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("XSOILSM_HTTP_TRIES", "2")
    cube = load_cube(REGION, TIME, catalog=provider.catalog(), on_error="raise", cache=False)
    provider.storage.fail(FILES[name], 503)
    with pytest.raises(OSError, match=r"failed after 2 attempt\(s\).*503") as raised:
        values(cube, name)
    assert "sig=" not in str(raised.value)


def test_an_annotation_that_cannot_be_read(
    provider: Services, lazy: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSOILSM_HTTP_TRIES", "1")
    provider.storage.fail(FILES["incidence_angle"], 503)
    flags = values(lazy, "source_flags")
    assert (flags & SourceFlag.READ_FAILED).all()


def test_a_composite_that_cannot_be_read_is_filled_and_marked(
    provider: Services, lazy: xr.Dataset, expected: xr.Dataset
) -> None:
    provider.storage.fail(FILES["ndvi"], 404)
    got = lazy[["ndvi", "ndvi_filled"]].compute()
    hit = got.period.values == np.datetime64("2020-02-18")
    assert hit.sum() == 1
    assert (got.ndvi_filled.values[hit] == modis.FILLED_AFTER_FAILURE).all()
    np.testing.assert_array_equal(got.ndvi.values[~hit], expected.ndvi.values[~hit])
    neighbours = expected.ndvi.values[np.flatnonzero(hit)[0] + np.array([-1, 1])].mean(axis=0)
    np.testing.assert_allclose(got.ndvi.values[hit][0], neighbours, rtol=1e-5)


@pytest.mark.parametrize("name", ["air_temperature", "elevation"])
def test_without_weather_or_terrain_there_is_no_soil_moisture(
    provider: Services,
    lazy: xr.Dataset,
    weights_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setenv("XSOILSM_WEIGHTS_DIR", str(weights_dir))
    monkeypatch.setenv("XSOILSM_HTTP_TRIES", "1")
    provider.storage.fail(FILES[name], "half")
    with pytest.warns(ResolutionWarning):
        soil = retrieve(lazy.isel(time=[GOOD]), "DenseSM-E").compute()
    assert np.isnan(soil.soil_moisture).all()
    assert (soil.quality_flag != 0).all()
    group = {"air_temperature": InputFlag.WEATHER, "elevation": InputFlag.TERRAIN}[name]
    failed = lazy.inputs_failed.compute()
    assert (failed == group).all()
    assert failed.attrs["flag_masks"].sum() == 31


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
def test_an_absent_chunk_is_never_taken_for_numbers(
    provider: Services, lazy: xr.Dataset, tmp_path: Path
) -> None:
    provider.storage.fail(FILES["air_temperature"], 404)
    temperature = lazy.air_temperature.compute()
    assert np.isnan(temperature.sel(period="2020-02-10")).all()
    assert np.isfinite(temperature.sel(period="2020-01-09")).all()
    rain = np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3)
    for number, (form, encoding, masked) in enumerate(
        [
            (2, {"_FillValue": np.nan}, True),
            (2, {"_FillValue": None}, False),  # zeros come out of it
            (3, {"_FillValue": np.nan}, True),
            (3, {"_FillValue": None, "fill_value": 0.0}, False),
        ]
    ):
        data = xr.Dataset({"rain": (("y", "x"), rain)})
        data.rain.encoding = {"chunks": (2, 3), **encoding}
        folder = tmp_path / f"{number}.zarr"
        data.to_zarr(folder, zarr_format=form, consolidated=True)
        (folder / "rain" / ("1.0" if form == 2 else "c/1/0")).unlink()
        with serve(tmp_path) as server:
            store = WebStore(f"{server.url}/files/{folder.name}", Access())
            with xr.open_dataset(store, engine="zarr", chunks=None) as found:
                np.testing.assert_array_equal(found.rain[:2].values, rain[:2])
                if masked:
                    assert np.isnan(found.rain.values[2:]).all()
                else:
                    with pytest.raises(ReadFailed, match="404"):
                        found.rain.load()


def test_nothing_hangs(
    provider: Services, lazy: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers that drip, that fall silent, and that do not give tokens."""
    monkeypatch.setenv("XSOILSM_HTTP_TRIES", "2")
    monkeypatch.setenv("XSOILSM_HTTP_TIMEOUT", "0.3")
    for name, pattern in FILES.items():
        for fault in ({"kind": "slow", "pause": 0.1}, {"kind": "slow-start", "pause": 5.0}):
            provider.start_anew()
            provider.storage.fail(pattern, **fault)
            begin = time.monotonic()
            values(lazy, name)
            assert time.monotonic() - begin < 6, (name, fault)
    provider.start_anew()
    provider.storage.fail("^/api/sas/", "slow-start", pause=5.0)
    begin = time.monotonic()
    flags = values(lazy, "source_flags")
    assert time.monotonic() - begin < 6
    assert (flags & SourceFlag.READ_FAILED).all()


@pytest.mark.parametrize("text", ["0", "-1", "soon"])
def test_patience_that_cannot_be_understood(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("XSOILSM_HTTP_WAIT", text)
    with pytest.raises(ValueError, match=f"XSOILSM_HTTP_WAIT is '{text}', expected a number"):
        patience()


# -- items and scenes --------------------------------------------------------------------


def test_an_item_without_a_projection(
    provider: Services, lazy: xr.Dataset, expected: xr.Dataset
) -> None:
    (item,) = _items(provider, expected, UNPROJECTED)[:1]
    assert not [key for key in item["properties"] if key.startswith("proj:")]
    for name in ("sigma0_vv", "sigma0_vh", "incidence_angle", "source_flags"):
        np.testing.assert_array_equal(
            values(lazy, name, UNPROJECTED), values(expected, name, UNPROJECTED)
        )


def test_an_item_whose_transform_is_stale(
    provider: Services, lazy: xr.Dataset, expected: xr.Dataset
) -> None:
    (item,) = _items(provider, expected, STALE)
    assert item["properties"]["proj:transform"][2] - item["properties"]["proj:bbox"][0] == 20_000
    for name in ("sigma0_vv", "sigma0_vh", "incidence_angle", "source_flags"):
        np.testing.assert_array_equal(values(lazy, name, STALE), values(expected, name, STALE))


def test_a_scene_filled_with_zeros(
    provider: Services, lazy: xr.Dataset, expected: xr.Dataset
) -> None:
    got = lazy[["sigma0_vv", "source_flags", "coverage"]].isel(time=ZEROED).compute()
    wanted = expected.isel(time=ZEROED)
    zero = got.source_flags.values & SourceFlag.ZERO_FILLED != 0
    assert zero[0].all()
    assert not zero[-1].any()
    empty = got.coverage.values == 0
    assert empty[0].all()
    assert (zero | ~empty).all()
    assert np.isnan(got.sigma0_vv.values[empty]).all()
    assert not (got.source_flags.values & (SourceFlag.NO_SCENE | SourceFlag.READ_FAILED)).any()
    np.testing.assert_array_equal(got.sigma0_vv.values[~zero], wanted.sigma0_vv.values[~zero])


def _items(provider: Services, expected: xr.Dataset, number: int) -> list[dict[str, Any]]:
    """Items of an acquisition, as the API serves them."""
    day = str(expected.time.values[number])[:10]
    client = pystac_client.Client.open(provider.api)
    found = client.search(collections=[RTC], bbox=REGION, datetime=day)
    return sorted(found.items_as_dicts(), key=lambda item: str(item["id"]))


# -- signatures --------------------------------------------------------------------------


def test_signatures_are_told_to_nobody(
    provider: Services,
    weights_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("XSOILSM_WEIGHTS_DIR", str(weights_dir))
    monkeypatch.setenv("XSOILSM_HTTP_TRIES", "2")
    caplog.set_level(logging.DEBUG)
    for library in ("rasterio", "urllib3", "matplotlib", "numba"):
        logging.getLogger(library).setLevel(
            logging.DEBUG if library in ("rasterio", "urllib3") else logging.WARNING
        )
    said: list[str] = []
    cubes = [
        load_cube(REGION, "2020-04-05", catalog=provider.catalog(), on_error=on_error, cache=False)
        for on_error in ("flag", "raise")
    ]
    said += [cloudpickle.dumps(cube).decode("latin1") for cube in cubes]
    provider.storage.fail("vv.rtc.tiff", 503, count=1, skip=1)
    with pytest.warns(ResolutionWarning):
        soil = retrieve(cubes[0], "DenseSM-E")
    write_products(soil.compute(), tmp_path / "out")
    said += [cloudpickle.dumps(cube).decode("latin1") for cube in cubes]
    for fault in (503, 404, "half", "short-file", "reset"):
        for name, pattern in FILES.items():
            provider.start_anew()
            provider.storage.fail(pattern, fault)
            if (fault, name) == (404, "air_temperature"):
                continue  # an absent chunk is no error to Zarr, see below
            with pytest.raises(OSError, match=r"failed|not a Sentinel-1 annotation") as raised:
                values(cubes[1], name)
            said += [*traceback.format_exception(raised.value), _chain(raised.value)]
    said.append(caplog.text)
    said += [file.read_bytes().decode("latin1") for file in tmp_path.rglob("*") if file.is_file()]
    assert any("vv.rtc.tiff" in text for text in said)
    assert "rasterio" in caplog.text
    for text in said:
        assert "sig=" not in text
        assert "&se=" not in text


def _chain(error: BaseException) -> str:
    """Texts of an exception and of all those behind it."""
    texts = []
    link: BaseException | None = error
    while link is not None:
        texts.append(repr(link))
        link = link.__cause__ or link.__context__
    return "\n".join(texts)
