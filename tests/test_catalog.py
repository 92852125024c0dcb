from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import date, timedelta
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


def test_shipped_catalogs_are_whole() -> None:
    assert {"demo", "planetary-computer"} <= set(list_catalogs())
    catalog = open_catalog("planetary-computer")
    assert catalog.sources["radar"][0].collection == "sentinel-1-rtc"
    assert catalog.service_of(catalog.sources["radar"][0]).signing == "planetary-computer"
    for sources in catalog.sources.values():
        for source in sources:
            assert source.licence
            assert source.citation
            assert source.source


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
            r"service 'elsewhere' is not defined; the file defines planetary-computer, soilgrids",
        ),
        (
            lambda c: c["sources"].update(ndvi=c["sources"]["soil"]),
            r"kind 'soilgrids' does not give ndvi; expected modis-ndvi",
        ),
        (lambda c: c["sources"]["radar"][0].pop("licence"), r"sources\.radar\.0\.licence"),
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
