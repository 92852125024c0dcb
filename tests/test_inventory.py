from __future__ import annotations

import shutil
from datetime import date
from typing import Any

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from sources_world import BBOX, World, ndvi_of, rain_of, temperature_of

import xsoilsm
from xsoilsm import periods
from xsoilsm.cli import main

WEST = (BBOX[0], BBOX[1], 5.005, BBOX[3])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """All sources around June 2020, with holes; the pixels themselves are gone."""
    world = World(tmp_path_factory.mktemp("inventory"))
    for when, orbit, state, relative in (
        ("2020-06-02T17:25:00", 32001, "ascending", 59),
        ("2020-06-14T17:25:00", 32176, "ascending", 59),
        ("2020-06-05T05:50:00", 32036, "descending", 37),
    ):
        world.radar(when, orbit, state=state, relative=relative, rows=(0, 300))
        world.radar(when, orbit, state=state, relative=relative, rows=(300, 500), part=2)
    world.radar("2020-06-20T17:25:00", 22001, platform="SENTINEL-1B", relative=59)
    for item in world.items["sentinel-1-rtc"]:
        if item["properties"]["platform"] == "SENTINEL-1B":
            item["properties"]["sar:polarizations"] = ["VV"]
    for start in periods.period_starts("2019-06-01", "2020-06-30").tolist():
        if start not in (date(2019, 9, 14), date(2020, 1, 9), date(2020, 1, 25)):
            world.ndvi(start, ndvi_of(start))
    for month in ("2019-06", "2019-07", "2019-10", "2020-01"):
        world.weather(month, temperature_of, rain_of)
    world.dem(lambda lon, lat: 100 + 0 * lon + 0 * lat)
    world.soil()
    world.write()
    shutil.rmtree(world.folder / "data")
    return world


def only(table: Any, **wanted: str) -> Any:
    for column, value in wanted.items():
        table = table[table[column] == value]
    (row,) = table.to_dict("records")
    return row


def test_tracks_dates_and_what_is_left_out(world: World) -> None:
    table = xsoilsm.search(BBOX, "2020-06", world.catalog_file())
    track = only(table, group="radar", orbit="59 ascending", platform="SENTINEL-1A")
    assert (track["platform"], track["items"]) == ("SENTINEL-1A", 4)
    assert [str(d)[:13] for d in track["dates"]] == ["2020-06-02T17", "2020-06-14T17"]
    assert track["covered"] == pytest.approx(1)
    assert track["gaps"] == ("2020-06-15 to 2020-06-30: no pass on this track",)
    left_out = only(table, group="radar", platform="SENTINEL-1B")
    assert (left_out["items"], left_out["covered"]) == (0, 0)
    assert left_out["gaps"][-1].startswith("2020-06-20: S1_022001_1_rtc is left out, polarisat")
    other = only(table, group="radar", orbit="37 descending")
    assert other["items"] == 2
    assert other["gaps"] == ("2020-06-06 to 2020-06-30: no pass on this track",)


def test_missing_composites_are_named_by_platform(world: World) -> None:
    table = xsoilsm.search(BBOX, "2020-06", world.catalog_file())
    terra, aqua = (only(table, group="ndvi", platform=name) for name in ("terra", "aqua"))
    # From 45 periods before that of 2 June 2020 to that of 14 June.
    assert str(min(terra["first"], aqua["first"]))[:10] == "2019-06-10"
    assert str(max(terra["last"], aqua["last"]))[:10] == "2020-06-09"
    assert terra["items"] + aqua["items"] == 47 - 3
    assert terra["gaps"] == ("2019-09-14: 1 composite missing",)
    # Aqua begins on 9 and 25 January; nothing of it lies between.
    assert aqua["gaps"] == ("2020-01-09 to 2020-01-25: 2 composites missing",)


def test_missing_months_of_weather_are_named(world: World) -> None:
    table = xsoilsm.search(BBOX, "2020-06", world.catalog_file())
    for variable in ("air_temperature", "precipitation"):
        row = only(table, group="weather", variable=variable)
        assert row["items"] == 4
        assert row["gaps"] == (
            "2019-08 to 2019-09: missing",
            "2019-11 to 2019-12: missing",
            "2020-02-01 to 2020-06-14: missing",
        )


def test_no_acquisition_is_a_row_and_no_error(world: World) -> None:
    table = xsoilsm.search(BBOX, "2020-07-01/2020-07-20", world.catalog_file())
    row = only(table, group="radar")
    assert row["items"] == 0
    assert row["gaps"] == ("2020-07-01 to 2020-07-20: no acquisitions",)
    assert pd.isna(row["first"])
    # The series are those of a cube of that time.
    assert str(only(table, group="ndvi", platform="terra")["last"])[:7] == "2020-06"


def test_days_without_a_source_and_providers_that_do_not_answer(world: World) -> None:
    path = world.catalog_file()
    content = yaml.safe_load(path.read_text())
    content["services"]["gone"] = {"kind": "zarr", "href": "no/such/folder", "source": "test"}
    weather = content["sources"]["weather"][0] | {"end": date(2020, 1, 31)}
    land = weather | {"service": "gone", "start": date(2020, 3, 1), "end": None}
    for name in ("air_temperature", "precipitation"):
        land[name] = {k: v for k, v in weather[name].items() if k not in ("asset", "item_kind")}
        land[name]["variable"] = name
    content["sources"]["weather"] = [weather, land]
    file = world.folder / "broken.yaml"
    file.write_text(yaml.safe_dump(content))
    table = xsoilsm.search(BBOX, "2020-06", file)
    assert only(table, source="(none)")["gaps"] == ("2020-02: no source in the catalog",)
    (gap,) = table[table["group"] == "weather"].iloc[-1]["gaps"]
    assert "no/such/folder/era5-pds failed" in gap
    assert len(table[table["group"] == "radar"]) == 3


def test_part_of_a_region(world: World) -> None:
    wide = (4.97, 43.49, 5.13, 43.51)
    table = xsoilsm.search(wide, "2020-06", world.catalog_file())
    terrain = only(table, group="terrain")
    assert terrain["items"] == 1
    assert 0.75 < terrain["covered"] < 0.85
    (gap,) = terrain["gaps"]
    assert gap.endswith("% of the region lies outside of the items")
    assert only(table, group="soil")["gaps"] == ()


def test_the_command_prints_tables_dates_and_gaps(world: World) -> None:
    bbox = [str(v) for v in BBOX]
    path = str(world.catalog_file())
    done = CliRunner().invoke(
        main, ["search", "--bbox", *bbox, "--time", "2020-06", "--catalog", path]
    )
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].split()[:3] == ["group", "source", "platform"]
    assert "passes (UTC): radar sentinel-1-rtc SENTINEL-1A 59 ascending" in lines
    assert "  2020-06-02 17:24, 2020-06-14 17:24" in lines
    assert "gaps: weather era5-pds precipitation" in lines
    assert "  2019-08 to 2019-09: missing" in lines
    assert max(map(len, lines)) < 200
    bad = CliRunner().invoke(main, ["search", "--bbox", *bbox, "--time", "June", "--catalog", path])
    assert bad.exit_code == 1
    assert "cannot tell a day from 'June'" in bad.output


def test_a_geobox_is_a_region_too(world: World) -> None:
    geobox = xsoilsm.ease2_geobox(WEST, "100m")
    table = xsoilsm.search(geobox, "2020-06-02", xsoilsm.open_catalog(world.catalog_file()))
    assert only(table, group="radar")["items"] == 2
