from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from xsoilsm.catalog import (
    Catalog,
    CatalogError,
    cache_dir,
    catalogs_dir,
    list_catalogs,
    open_catalog,
)

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[Edit], Path]:
    """Write the catalog of the Planetary Computer with a change."""

    def write(edit: Edit) -> Path:
        content = yaml.safe_load((catalogs_dir() / "planetary-computer.yaml").read_text())
        content["services"]["soilgrids"]["href"] = str(
            catalogs_dir() / "soilgrids-2.0" / "catalog.json"
        )
        edit(content)
        path = tmp_path / "edited.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


REMOTE = (
    "digital-earth-africa",
    "earth-data-hub",
    "earth-search",
    "opera",
    "planetary-computer",
    "planetary-computer-grd",
)


def test_all_catalogs_are_listed() -> None:
    assert list_catalogs() == sorted([*REMOTE, "demo"])


@pytest.mark.parametrize("name", REMOTE)
def test_shipped_catalogs_are_whole(name: str) -> None:
    catalog = open_catalog(name)
    assert catalog.name == name
    for service in catalog.services.values():
        assert len(service.source) > 10
    for group, sources in catalog.sources.items():
        for source in sources:
            assert source.licence, group
            assert source.citation, group
            # Where it was learnt, and how sure it is.
            assert len(source.source) > 10, group
            assert "doi" in source.citation or "Sentinel" in source.citation
    # No day since the satellites fly is without a source.
    for group in ("radar", "ndvi", "weather"):
        span = catalog.segments(group, date(2018, 1, 1), date(2030, 1, 1))
        assert (span[0].start, span[-1].end) == (date(2018, 1, 1), date(2030, 1, 1))
        for before, after in pairwise(span):
            assert after.start == before.end + timedelta(1)


def test_weather_of_the_planetary_computer_goes_on_elsewhere() -> None:
    catalog = open_catalog("planetary-computer")
    before, after = catalog.segments("weather", date(2020, 12, 1), date(2021, 2, 1))
    assert (before.source.collection, str(before.end)) == ("era5-pds", "2020-12-31")
    assert (after.source.collection, str(after.start)) == ("era5-land-v0.zarr", "2021-01-01")
    assert catalog.service_of(before.source).signing == "planetary-computer"
    assert catalog.service_of(after.source).signing == "netrc"
    assert catalog.service_of(after.source).kind == "zarr"
    radar = catalog.sources["radar"]
    assert [s.kind for s in radar] == ["sentinel1-rtc", "sentinel1-grd"]


def test_opera_names_tell_what_items_do_not_state() -> None:
    import re

    source: Any = open_catalog("opera").sources["radar"][0]
    name = "OPERA_L2_RTC-S1_T035-073251-IW2_20240113T020816Z_20240113T113128Z_S1A_30_v1.0"
    static = "OPERA_L2_RTC-S1-STATIC_T035-073251-IW2_20140403_S1A_30_v1.0"
    found = {key: re.search(key, name) for key in (source.relative_orbit_key, source.platform_key)}
    assert [m and m[1] for m in found.values()] == ["035", "S1A"]
    burst = {m and m[1] for m in (re.search(source.static_key, n) for n in (name, static))}
    assert burst == {"T035-073251-IW2"}


# -- catalogs that take sources from others ----------------------------------------------


def write(path: Path, **changes: Any) -> Path:
    """Write a catalog that takes everything from the Planetary Computer's, but for changes."""
    groups = ("radar", "ndvi", "weather", "terrain", "soil")
    sources: dict[str, Any] = {group: {"catalog": "planetary-computer"} for group in groups}
    content = {
        "version": 1,
        "name": path.stem,
        "title": "test",
        "services": changes.pop("services", {}),
        "sources": {**sources, **changes},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_groups_are_taken_from_other_catalogs(tmp_path: Path) -> None:
    mine = open_catalog(
        write(
            tmp_path / "mine.yaml",
            weather=[{"catalog": "earth-data-hub", "start": date(2018, 1, 1)}],
            radar=[
                {"catalog": "opera", "end": date(2020, 6, 30)},
                {"catalog": "planetary-computer", "start": date(2020, 7, 1)},
            ],
        )
    )
    other = open_catalog("planetary-computer")
    for group in ("ndvi", "terrain", "soil"):
        assert mine.sources[group] == other.sources[group]
    (weather,) = mine.sources["weather"]
    assert (str(weather.start), weather.end) == ("2018-01-01", None)
    assert [(s.collection, str(s.start), str(s.end)) for s in mine.sources["radar"]] == [
        ("OPERA_L2_RTC-S1_V1_1", "2016-04-14", "2020-06-30"),
        ("sentinel-1-rtc", "2020-07-01", "None"),
        ("sentinel-1-grd", "2020-07-01", "None"),
    ]
    assert set(mine.services) == {"planetary-computer", "soilgrids", "earth-data-hub", "asf"}
    assert mine.service_of(mine.sources["soil"][0]).is_local
    assert Path(mine.services["soilgrids"].href).is_file()
    here = "http://127.0.0.1:8082"
    moved = open_catalog(tmp_path / "mine.yaml", endpoints={"earth-data-hub": here})
    assert moved.service_of(moved.sources["weather"][0]).href == here


def test_days_outside_of_the_limits_are_left_out(tmp_path: Path) -> None:
    limits = {"catalog": "planetary-computer", "end": date(2015, 1, 1)}
    catalog = open_catalog(write(tmp_path / "early.yaml", weather=limits))
    assert [s.collection for s in catalog.sources["weather"]] == ["era5-pds"]  # Land begins later


def test_paths_are_taken_from_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "base.yaml", ndvi={"catalog": "planetary-computer"})
    content = yaml.safe_load((catalogs_dir() / "planetary-computer.yaml").read_text())
    soil = content["sources"]["soil"][0] | {"service": "planetary-computer"}
    service = {"kind": "stac-static", "href": "here/catalog.json", "source": "mine"}
    write(tmp_path / "deep" / "base.yaml", soil=[soil], services={"planetary-computer": service})
    path = write(tmp_path / "top.yaml", soil={"catalog": "deep/base.yaml"})
    with pytest.raises(CatalogError, match=r"deep/here/catalog\.json does not exist"):
        open_catalog(path)
    (tmp_path / "deep" / "here").mkdir()
    (tmp_path / "deep" / "here" / "catalog.json").write_text("{}")
    catalog = open_catalog(path)
    # Two services of one name are told apart by their catalog.
    used = catalog.sources["soil"][0].service
    assert used == "base/planetary-computer"
    assert catalog.services[used].href == str(tmp_path / "deep" / "here" / "catalog.json")
    assert catalog.service_of(catalog.sources["radar"][0]).kind == "stac-api"


def test_every_service_of_a_borrowed_source_comes_along(tmp_path: Path) -> None:
    # Its annotations lie at another provider, which that catalog takes from a third.
    borrowed = write(tmp_path / "mine.yaml", radar={"catalog": "digital-earth-africa"})
    content = yaml.safe_load(borrowed.read_text())
    own = open_catalog("earth-search")
    for group in ("ndvi", "weather", "terrain", "soil"):
        content["sources"][group] = {"catalog": "earth-search"}
    content["sources"].pop("landcover", None)
    content["services"] = {}
    borrowed.write_text(yaml.safe_dump(content))
    catalog = open_catalog(borrowed)
    radar: Any = catalog.sources["radar"][0]
    assert (radar.service, radar.grd_service) == ("digital-earth-africa", "planetary-computer")
    theirs = open_catalog("planetary-computer").services["planetary-computer"]
    assert catalog.services["planetary-computer"] == theirs
    # Where the name is taken, both the service and what names it change.
    service = own.services["earth-search"].model_dump()
    content["services"] = {"planetary-computer": service | {"href": "https://mine.example.org"}}
    for group in ("ndvi", "weather", "terrain", "soil"):
        content["sources"][group] = {"catalog": "planetary-computer"}
    borrowed.write_text(yaml.safe_dump(content))
    radar = open_catalog(borrowed).sources["radar"][0]
    assert radar.grd_service == "digital-earth-africa/planetary-computer"
    assert open_catalog(borrowed).services[radar.grd_service] == theirs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ndvi": {"catalog": "nowhere"}}, r"no catalog is named 'nowhere'; known catalogs: demo"),
        (
            {"ndvi": [{"catalog": "planetary-computer", "colour": 1}]},
            r"mine\.yaml: sources\.ndvi\.0\.colour: unknown key",
        ),
        (
            {"ndvi": {"catalog": "planetary-computer", "start": "June"}},
            r"mine\.yaml: sources\.ndvi\.0\.start",
        ),
        ({"ndvi": {"catalog": "mine.yaml"}}, r"sources\.ndvi: the catalogs refer .* circle"),
        (
            {"weather": {"catalog": "earth-data-hub", "end": date(1940, 1, 1)}},
            r"sources: expected the groups .* missing: weather",
        ),
    ],
)
def test_bad_references_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        open_catalog(write(tmp_path / "mine.yaml", **changes))


def test_a_borrowed_file_is_checked_too(tmp_path: Path) -> None:
    other = write(tmp_path / "other.yaml")
    with pytest.raises(CatalogError, match=r"other\.yaml has no sources of landcover to take"):
        open_catalog(write(tmp_path / "mine.yaml", landcover={"catalog": "other.yaml"}))
    other.write_text(other.read_text().replace("version: 1", "version: 9"))
    with pytest.raises(CatalogError, match=r"other\.yaml: version: found 9"):
        open_catalog(write(tmp_path / "mine.yaml", ndvi={"catalog": "other.yaml"}))


def test_real_items_have_the_assets_that_the_catalog_names(shared: Path) -> None:
    import json

    catalog = open_catalog("planetary-computer")

    def item(collection: str) -> dict[str, Any]:
        return json.loads((shared / "data" / "stac" / f"pc_{collection}_item.json").read_text())

    for group, fields in (
        ("radar", ("vv", "vh")),
        ("ndvi", ("ndvi",)),
        ("terrain", ("elevation",)),
    ):
        for source in catalog.sources[group]:
            assets = item(source.collection)["assets"]
            for field in fields:
                band = getattr(source, field)
                described = (assets[band.asset].get("raster:bands") or [{}])[0]
                assert band.nodata == described.get("nodata", band.nodata)
                assert band.scale == described.get("scale", 1.0)
    weather: Any = catalog.sources["weather"][0]
    rain = item("era5-pds")
    assert weather.precipitation.asset in rain["assets"]
    assert rain["properties"][weather.kind_property] == weather.precipitation.item_kind
    assert str(weather.end) == rain["properties"]["end_datetime"][:10]
    stored = rain["properties"]["cube:variables"][weather.precipitation.asset]["unit"]
    assert stored == weather.precipitation.stored_units


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, importlib.util as u\n"
        "import xsoilsm.catalog as c; c.open_catalog('planetary-computer')\n"
        "bad = {'rasterio', 'pystac', 'pystac_client', 'torch', 'numba'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(version=2), r"edited\.yaml: version: found 2.*reads version 1"),
        (lambda c: c.pop("version"), r"edited\.yaml: version: found None"),
        (lambda c: c.update(colour="red"), r"edited\.yaml: colour: unknown key"),
        (
            lambda c: c["sources"]["radar"][0].update(colour="red"),
            r"edited\.yaml: sources\.radar\.0\.colour: unknown key",
        ),
        (
            lambda c: c["sources"]["radar"][0]["vv"].update(scales=2),
            r"sources\.radar\.0\.vv\.scales: unknown key",
        ),
        (
            lambda c: c["services"]["planetary-computer"].update(kind="ftp"),
            r"services\.planetary-computer\.kind",
        ),
        (lambda c: c["sources"].pop("soil"), r"missing: soil"),
        (lambda c: c["sources"].update(snow=c["sources"]["soil"]), r"unknown: snow"),
        (
            lambda c: c["sources"]["ndvi"][0].update(service="elsewhere"),
            r"service 'elsewhere' is not defined.*defines planetary-computer, soilgrids",
        ),
        (
            lambda c: c["sources"].update(ndvi=c["sources"]["soil"]),
            r"kind 'soilgrids' does not give ndvi; expected modis-ndvi",
        ),
        (lambda c: c["sources"]["radar"][0].pop("licence"), r"sources\.radar\.0\.licence"),
        (
            lambda c: c["services"]["planetary-computer"].update(href="https://me:pw@host/stac"),
            r"services\.planetary-computer: an address holds a name or password",
        ),
        (
            lambda c: c["services"]["planetary-computer"].update(kind="zarr"),
            r"kind '.*' needs a STAC service, not Zarr stores",
        ),
        (
            lambda c: c["sources"]["weather"][0]["precipitation"].pop("asset"),
            r"sources\.weather\.0\.precipitation: names neither an asset nor a variable",
        ),
        (
            lambda c: c["sources"]["weather"][0]["precipitation"].update(asset="", variable="tp"),
            r"from a service of kind 'stac-api' names the assets of items",
        ),
        (
            lambda c: c["sources"]["weather"][0].update(fill_within=-1),
            r"sources\.weather\.0\.fill_within",
        ),
        (
            lambda c: c["sources"]["radar"][0].update(kind="radar2"),
            r"sources\.radar\.0.*sentinel1-rtc",
        ),
    ],
)
def test_bad_files_name_file_and_key(
    edited: Callable[[Edit], Path], edit: Edit, message: str
) -> None:
    with pytest.raises(CatalogError, match=message):
        open_catalog(edited(edit))


def test_not_yaml(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1, 2")
    with pytest.raises(CatalogError, match=r"broken\.yaml: cannot be read as YAML"):
        open_catalog(path)
    path.write_text("- just\n- a list\n")
    with pytest.raises(CatalogError, match="holds list"):
        open_catalog(path)


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"'demi'; known catalogs: demo.*planetary-computer"):
        open_catalog("demi")
    with pytest.raises(CatalogError, match=r"no catalog file .*absent\.yaml"):
        open_catalog(tmp_path / "absent.yaml")


def test_missing_landscape_says_how_to_make_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XSOILSM_CACHE_DIR", str(tmp_path))
    with pytest.raises(CatalogError, match=r"demo\.yaml: services\.landscape.*`xsoilsm simulate`"):
        open_catalog("demo")
    root = tmp_path / "landscapes" / "demo" / "catalog.json"
    root.parent.mkdir(parents=True)
    root.write_text("{}")
    assert open_catalog("demo").services["landscape"].href == str(root)


def test_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XSOILSM_CACHE_DIR", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    assert not cache_dir().exists()
    monkeypatch.delenv("XSOILSM_CACHE_DIR")
    assert cache_dir().name == "xsoilsm"


def test_endpoints_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    here = "http://127.0.0.1:8082"
    moved = open_catalog("planetary-computer", endpoints={"planetary-computer": here})
    assert moved.services["planetary-computer"].href == here
    monkeypatch.setenv("XSOILSM_ENDPOINT_PLANETARY_COMPUTER", here)
    assert open_catalog("planetary-computer") == moved
    assert moved.services["soilgrids"].is_local
    blob = "https://sentinel1euwestrtc.blob.core.windows.net"
    mirrored = open_catalog("planetary-computer", endpoints={blob: "http://127.0.0.1:8083"})
    assert mirrored.services["planetary-computer"].rewrite == {blob: "http://127.0.0.1:8083"}
    with pytest.raises(CatalogError, match="'nowhere'; the catalog has planetary-computer"):
        open_catalog("planetary-computer", endpoints={"nowhere": here})


def test_catalogs_are_frozen() -> None:
    from pydantic import ValidationError

    catalog = open_catalog("planetary-computer")
    with pytest.raises(ValidationError):
        catalog.name = "other"  # type: ignore[misc]


def test_equal_catalogs_have_equal_tokens() -> None:
    from dask.base import tokenize

    first, second = open_catalog("planetary-computer"), open_catalog("planetary-computer")
    assert tokenize(first) == tokenize(second)
    assert tokenize(first) != tokenize(first.model_copy(update={"title": "other"}))


_DAYS = st.dates(date(2019, 1, 1), date(2019, 3, 1))


@given(
    ranges=st.lists(st.tuples(st.none() | _DAYS, st.none() | _DAYS), min_size=1, max_size=3),
    ends=st.tuples(_DAYS, _DAYS),
)
def test_each_day_has_the_first_source_that_covers_it(
    ranges: list[tuple[date | None, date | None]], ends: tuple[date, date]
) -> None:
    catalog = open_catalog("planetary-computer")
    model = catalog.sources["weather"][0]
    sources = tuple(
        model.model_copy(update={"start": a, "end": b, "collection": f"c{k}"})
        for k, (a, b) in enumerate(ranges)
    )
    changed: Catalog = catalog.model_copy(
        update={"sources": {**catalog.sources, "weather": sources}}
    )
    start, end = sorted(ends)
    served = {}
    for segment in changed.segments("weather", start, end):
        day = segment.start
        while day <= segment.end:
            assert day not in served
            served[day] = segment.source.collection
            day += timedelta(1)
    day = start
    while day <= end:
        expected = next((s.collection for s in sources if s.covers(day)), None)
        assert served.pop(day, None) == expected
        day += timedelta(1)
    assert not served
