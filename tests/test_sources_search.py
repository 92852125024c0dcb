from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import Loopback, serve
from sources_world import BBOX, World

from xsoilsm.catalog import Catalog, CatalogError, Segment, open_catalog
from xsoilsm.facts import Service
from xsoilsm.grid import ease2_geobox
from xsoilsm.sources.access import search
from xsoilsm.sources.access.links import Access, read_bytes
from xsoilsm.sources.sentinel1 import rtc
from xsoilsm.sources.sentinel1.acquisitions import find_acquisitions
from xsoilsm.timespan import days_of

GEOBOX = ease2_geobox(BBOX, "1km")
HERE = Access()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    monkeypatch.setenv("XSOILSM_HTTP_WAIT", "0.01")
    with serve(tmp_path) as running:
        yield running


def static(world: World) -> Service:
    return Service(kind="stac-static", href=str(world.write()), source="test")


def test_static_catalogs_are_searched_by_place_and_time(world: World) -> None:
    for name, west, day in (("a", 4.9, 1), ("b", 4.9, 5), ("c", 8.0, 1), ("d", 4.9, 9)):
        stamp = {"datetime": f"2020-06-{day:02d}T23:59:59Z"}
        world.add("x", name, (west, 43.4, west + 0.2, 43.6), stamp, {})
    world.add("y", "e", (4.9, 43.4, 5.1, 43.6), {"datetime": "2020-06-01T00:00:00Z"}, {})
    service = static(world)
    found = search.find_items(service, "x", BBOX, date(2020, 6, 1), date(2020, 6, 5))
    assert [item.id for item in found] == ["a", "b"]
    with pytest.raises(CatalogError, match=r"has no collection 'z'; it has x, y"):
        search.find_items(service, "z", BBOX, date(2020, 6, 1), date(2020, 6, 5))


def test_items_of_a_span_are_found_by_any_of_their_days(world: World) -> None:
    stated = {
        "datetime": None,
        "start_datetime": "2020-06-01T00:00:00Z",
        "end_datetime": "2020-06-16T23:59:59Z",
    }
    world.add("x", "a", (4.9, 43.4, 5.1, 43.6), stated, {})
    service = static(world)
    for day, count in ((16, 1), (17, 0)):
        found = search.find_items(service, "x", BBOX, date(2020, 6, day), date(2020, 6, 20))
        assert len(found) == count


def test_relative_links_of_assets_are_resolved(world: World) -> None:
    world.add(
        "x",
        "a",
        (4.9, 43.4, 5.1, 43.6),
        {"datetime": "2020-06-01T00:00:00Z"},
        {"vv": {"href": "../data/vv.tif"}},
    )
    (item,) = search.find_items(static(world), "x", BBOX, date(2020, 6, 1), date(2020, 6, 1))
    href = item.assets["vv"].href
    assert Path(href).resolve() == (world.folder / "data" / "vv.tif").resolve()


def test_a_service_that_does_not_answer(tmp_path: Path) -> None:
    service = Service(kind="stac-api", href="http://127.0.0.1:9/stac", source="test")
    with pytest.raises(CatalogError, match=r"127\.0\.0\.1:9/stac: search for 'x' failed"):
        search.find_items(service, "x", BBOX, date(2020, 6, 1), date(2020, 6, 1))
    broken = tmp_path / "catalog.json"
    broken.write_text("{}")
    service = Service(kind="stac-static", href=str(broken), source="test")
    with pytest.raises(CatalogError, match="search for 'x' failed"):
        search.find_items(service, "x", BBOX, date(2020, 6, 1), date(2020, 6, 1))


def over_http(world: World, server: Loopback) -> tuple[Catalog, Segment]:
    """Put the same world behind a STAC API and its files behind a server."""
    world.write()
    for items in world.items.values():
        for item in items:
            text = json.dumps(item).replace(str(world.folder), f"{server.url}/files")
            server.items.append(json.loads(text))
    content = open_catalog(world.catalog_file()).model_dump(mode="json", exclude={"path"})
    content["services"]["landscape"] |= {"kind": "stac-api", "href": "https://example.org/stac"}
    path = world.folder / "api.yaml"
    path.write_text(json.dumps(content))
    catalog = open_catalog(path, endpoints={"landscape": f"{server.url}/stac"})
    (source,) = catalog.sources["radar"]
    return catalog, Segment(source=source, start=date(2020, 6, 1), end=date(2020, 6, 30))


def test_an_api_gives_what_the_static_catalog_gives(world: World, server: Loopback) -> None:
    world.radar("2020-06-03T17:40:00", 33000)
    world.radar("2020-07-03T17:40:00", 33400)
    world.write()
    here = open_catalog(world.catalog_file())
    catalog, segment = over_http(world, server)
    (remote,), _ = find_acquisitions(catalog, segment, BBOX)
    (local,), _ = find_acquisitions(here, segment, BBOX)
    assert server.searches[0]["collections"] == ["sentinel-1-rtc"]
    assert server.searches[0]["bbox"] == list(BBOX)
    assert remote.time == local.time
    assert not any(path.startswith("/files") for path in server.asked)
    one = rtc.read_acquisition(local, GEOBOX, "raise")
    two = rtc.read_acquisition(remote, GEOBOX, "raise")
    np.testing.assert_array_equal(two, one)
    assert any(path.endswith("annotation/iw-vv.xml") for path in server.asked)


def test_an_original_beyond_the_region_is_followed(world: World, server: Loopback) -> None:
    world.radar("2020-06-03T17:40:00", 33000)
    catalog, segment = over_http(world, server)
    (grd,) = [item for item in server.items if item["collection"] == "sentinel-1-grd"]
    grd["bbox"] = [50.0, 0.0, 51.0, 1.0]  # a search of the region does not find it
    rtc = next(item for item in server.items if item["collection"] == "sentinel-1-rtc")
    rtc["links"][0]["href"] = f"https://elsewhere.org/collections/sentinel-1-grd/items/{grd['id']}"
    (found,), _ = find_acquisitions(catalog, segment, BBOX)
    assert found.slices[0].annotation.endswith("/annotation/iw-vv.xml")
    assert f"/stac/collections/sentinel-1-grd/items/{grd['id']}" in server.asked


@pytest.mark.parametrize("fault", [[503], [429, 503], [403], [0], [500, 500, 500]])
def test_passing_faults_end_in_the_same_numbers(
    world: World, server: Loopback, fault: list[int]
) -> None:
    world.radar("2020-06-03T17:40:00", 40404)
    catalog, segment = over_http(world, server)
    (found,), _ = find_acquisitions(catalog, segment, BBOX)
    expected = rtc.read_acquisition(found, GEOBOX, "raise")
    # The orbit is in every link, and its digits are no status.
    assert "404" in found.slices[0].vh.href
    # A copy under another name, so that nothing is remembered from before.
    copy = world.folder / "copy_404.tif"
    local = found.slices[0].vv.href.replace(f"{server.url}/files", str(world.folder))
    copy.write_bytes(Path(local).read_bytes())
    from dataclasses import replace

    vv = replace(found.slices[0].vv, href=f"{server.url}/files/copy_404.tif")
    again = replace(found, slices=(replace(found.slices[0], vv=vv),))
    server.faults["/files/copy_404.tif"] = list(fault)
    result = rtc.read_acquisition(again, GEOBOX, "raise")
    assert not server.faults["/files/copy_404.tif"]
    np.testing.assert_array_equal(result, expected)


def test_lasting_faults_are_not_repeated(world: World, server: Loopback) -> None:
    world.radar("2020-06-03T17:40:00", 40404)
    catalog, segment = over_http(world, server)
    (found,), _ = find_acquisitions(catalog, segment, BBOX)
    path = found.slices[0].vh.href.removeprefix(server.url)
    Path(str(world.folder) + path.removeprefix("/files")).unlink()
    with pytest.raises(OSError, match=r"failed after 1 attempt\(s\)"):
        rtc.read_acquisition(found, GEOBOX, "raise")


def test_small_files_are_read_with_patience(server: Loopback, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<a/>")
    href = f"{server.url}/files/a.xml"
    server.faults["/files/a.xml"] = [503, 0]
    assert read_bytes(href, HERE) == b"<a/>"
    assert read_bytes(str(tmp_path / "a.xml"), HERE) == b"<a/>"
    assert read_bytes((tmp_path / "a.xml").as_uri(), HERE) == b"<a/>"
    server.asked.clear()
    with pytest.raises(OSError, match=r"failed after 1 attempt\(s\).*404"):
        read_bytes(f"{server.url}/files/b.xml", HERE)
    assert len(server.asked) == 1
    server.faults["/files/a.xml"] = [503] * 9
    with pytest.raises(OSError, match=r"failed after 4 attempt\(s\)"):
        read_bytes(href, HERE)
    with pytest.raises(OSError, match="cannot read ftp:// links"):
        read_bytes("ftp://host/a.xml", HERE)


def test_bounds_and_centres_of_a_geobox() -> None:
    west, south, east, north = search.lonlat_bounds(GEOBOX)
    assert west <= BBOX[0]
    assert south <= BBOX[1]
    assert east >= BBOX[2]
    assert north >= BBOX[3]
    lon, lat = search.cell_lonlat(GEOBOX)
    assert lon.shape == (GEOBOX.shape[1],)
    assert lat.shape == (GEOBOX.shape[0],)
    assert west < lon[0] < lon[-1] < east
    assert south < lat[-1] < lat[0] < north


@pytest.mark.parametrize(
    ("time", "start", "end"),
    [
        ("2020", date(2020, 1, 1), date(2020, 12, 31)),
        ("2020-02", date(2020, 2, 1), date(2020, 2, 29)),
        ("2020-04-15", date(2020, 4, 15), date(2020, 4, 15)),
        ("2020-04/2020-05", date(2020, 4, 1), date(2020, 5, 31)),
        ("2020-04-01/2020-04-30", date(2020, 4, 1), date(2020, 4, 30)),
        (("2020-04-02", "2020-04-03"), date(2020, 4, 2), date(2020, 4, 3)),
        ((date(2020, 4, 2), np.datetime64("2020-04-03")), date(2020, 4, 2), date(2020, 4, 3)),
        (slice("2020-04", "2020-05"), date(2020, 4, 1), date(2020, 5, 31)),
        (datetime(2020, 4, 2, 23, 0), date(2020, 4, 2), date(2020, 4, 2)),
        (np.datetime64("2020-04-02T05:00"), date(2020, 4, 2), date(2020, 4, 2)),
    ],
)
def test_ways_to_write_a_time(time: Any, start: date, end: date) -> None:
    assert days_of(time) == (start, end)


@pytest.mark.parametrize("time", ["yesterday", "2020-13", "2020-02-30", 7.5, None, "", "/", ()])
def test_times_that_cannot_be_understood(time: Any) -> None:
    with pytest.raises(ValueError, match="cannot tell a day from"):
        days_of(time)


@given(days=st.tuples(st.dates(date(2015, 1, 1)), st.dates(date(2015, 1, 1))))
def test_empty_times_are_refused(days: tuple[date, date]) -> None:
    first, last = days
    if first <= last:
        assert days_of(f"{first}/{last}") == (first, last)
    else:
        with pytest.raises(ValueError, match="is empty: it ends on"):
            days_of(days)
