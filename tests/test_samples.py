"""Samples from truth and a small world on disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sources_world import BBOX, World

import xsoilsm
from xsoilsm import grid
from xsoilsm.samples import (
    build,
    build_samples,
    check_contract,
    encode_samples,
    read_samples,
    write_samples,
)
from xsoilsm.samples.cells import bounding_rectangles, rectangles
from xsoilsm.simulate.smap import HalfDay, write_granule
from xsoilsm.simulate.stations import Sensor, write_ismn
from xsoilsm.truth import Truth, read_ismn, read_smap, read_stations

DAYS = np.arange("2020-05-20", "2020-06-16", dtype="datetime64[D]")
GEOBOX = xsoilsm.ease2_geobox(BBOX, "1km")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("world"))
    made.fill()
    made.radar("2020-06-03T17:40:00", 33000)
    made.radar("2020-06-09T05:40:00", 33080, state="descending", relative=139)
    made.radar("2020-06-15T17:40:00", 33175)
    made.write()
    return made


@pytest.fixture(scope="module")
def catalog(world: World) -> Path:
    return world.catalog_file()


def centre(i: int, j: int) -> tuple[float, float]:
    """Latitude and longitude of a cell of the world, counted from its upper left corner."""
    cells, rows, columns = grid.grid_of(GEOBOX)
    lon, lat = grid.xy_to_lonlat(*cells.centre(rows[0] + i, columns[0] + j))
    return float(lat), float(lon)


def station(i: int, j: int, days: Any = DAYS, level: float = 0.1) -> Sensor:
    lat, lon = centre(i, j)
    time = np.asarray(days, dtype="datetime64[D]").astype("datetime64[h]") + 6
    number = (np.asarray(days, dtype="datetime64[D]") - DAYS[0]).astype(int)
    return Sensor("net", f"s{i}{j}", lat, lon, time, np.round(level + 0.005 * number, 3))


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    """Two cells side by side, one beyond them, with gaps: 5 of 9 pairs have truth."""
    sensors = [
        station(0, 0),
        station(0, 1, DAYS[:20]),
        station(2, 2, DAYS[DAYS == np.datetime64("2020-06-09")], level=0.2),
    ]
    return read_ismn(write_ismn(tmp_path_factory.mktemp("ismn") / "a.zip", sensors))


@pytest.fixture(scope="module")
def samples(truth: Truth, catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    folder = tmp_path_factory.mktemp("samples") / "s"
    built = build_samples(truth, folder, catalog=catalog)
    assert built.samples == 5
    return read_samples(built.path)


def pairs(samples: xr.Dataset) -> set[tuple[str, str]]:
    days = samples.time.values.astype("datetime64[D]").astype(str)
    return set(zip(samples.station.values.tolist(), days.tolist(), strict=True))


def test_every_pair_of_truth_and_acquisition(samples: xr.Dataset, truth: Truth) -> None:
    assert pairs(samples) == {
        ("s00", "2020-06-03"),
        ("s00", "2020-06-09"),
        ("s00", "2020-06-15"),
        ("s01", "2020-06-03"),
        ("s22", "2020-06-09"),
    }
    table = truth.table.set_index(["station", "date"])["soil_moisture"]
    for k in range(samples.sizes["sample"]):
        day = pd.Timestamp(samples.time.values[k]).normalize()
        expected = table[samples.station.values[k], day]
        assert samples.soil_moisture.values[k] == pytest.approx(expected)


def test_features_are_those_of_maps(samples: xr.Dataset, catalog: Path) -> None:
    cube = xsoilsm.load_cube(GEOBOX, "2020-06", catalog=catalog).compute()
    mapped = xsoilsm.compute_features(cube)
    _, rows, columns = grid.grid_of(GEOBOX)
    for k in range(samples.sizes["sample"]):
        one = samples.isel(sample=k)
        place = {"y": int(one.row) - rows[0], "x": int(one.column) - columns[0]}
        there = mapped.sel(time=one.time).isel(place)
        np.testing.assert_allclose(one.snapshot, there.snapshot, rtol=0, atol=1e-6)
        np.testing.assert_allclose(one.series, there.series, rtol=0, atol=1e-6)
        assert one.sigma0_vv == pytest.approx(float(cube.sigma0_vv.sel(time=one.time).isel(place)))
        assert one.orbit_state.item() in ("ascending", "descending")
    assert samples.snapshot.dtype == samples.series.dtype == np.float32
    assert samples.attrs["contract_digest"] == mapped.attrs["contract_digest"]
    assert samples.feature.values.tolist() == mapped.feature.values.tolist()
    assert samples.attrs["resolution"] == "1km"


def test_only_cells_and_days_with_truth_are_read(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The day between two with truth, and the cell between two with truth, are not touched."""
    gap = DAYS[DAYS != np.datetime64("2020-06-09")]
    sensors = [station(0, 0, gap), station(0, 1, gap), station(2, 2, DAYS[15:])]
    truth = read_ismn(write_ismn(tmp_path / "ismn", sensors))
    from xsoilsm.sources.pixels import graph

    read: Counter[Any] = Counter()
    original = graph.from_blocks

    def spy(reader: Any, geobox: Any, chunks: Any, **options: Any) -> Any:
        label = options["label"]

        def watched(*arguments: Any, **more: Any) -> Any:
            target = next(a for a in arguments if isinstance(a, type(geobox)))
            record = arguments[0] if isinstance(options.get("along"), (list, tuple)) else None
            when = str(getattr(record, "time", ""))[:10]
            cells = grid.grid_of(target)
            read[label, cells[1], cells[2], when] += 1
            return reader(*arguments, **more)

        return original(watched, geobox, chunks, **options)

    for name, module in list(sys.modules.items()):
        if name.startswith("xsoilsm.") and getattr(module, "from_blocks", None) is original:
            monkeypatch.setattr(module, "from_blocks", spy)
    build_samples(truth, tmp_path / "s", catalog=world.catalog_file(), cache=False)
    _, (top, _), (left, _) = grid.grid_of(GEOBOX)
    radar = {key: n for key, n in read.items() if key[3]}
    expected = {
        ((top, top + 1), (left, left + 2), "2020-06-03"),
        ((top, top + 1), (left, left + 2), "2020-06-15"),
        ((top + 2, top + 3), (left + 2, left + 3), "2020-06-09"),
        ((top + 2, top + 3), (left + 2, left + 3), "2020-06-15"),
    }
    assert radar
    assert {key[1:] for key in radar} == expected
    assert set(radar.values()) == {1}
    assert {key[1:3] for key in read} == {key[:2] for key in expected}
    assert set(read.values()) == {1}


def test_physical_inputs_allow_another_contract(
    samples: xr.Dataset, truth: Truth, catalog: Path, tmp_path: Path
) -> None:
    paper = encode_samples(samples, "paper")
    direct = build_samples(truth, tmp_path / "s", catalog=catalog, contract="paper", inputs=False)
    stored = read_samples(direct.path)
    np.testing.assert_array_equal(paper.snapshot, stored.snapshot)
    np.testing.assert_array_equal(paper.series, stored.series)
    assert "sigma0_vv" not in stored
    assert "coverage" in stored
    check_contract(paper, "paper")
    with pytest.raises(
        ValueError, match=r"under the contract 'paper'.*expected 'published-coarse'"
    ):
        check_contract(paper, "published-coarse")
    with pytest.raises(ValueError, match="inputs=True"):
        encode_samples(stored, "published-coarse")


def test_parquet_says_what_it_holds(samples: xr.Dataset, tmp_path: Path) -> None:
    path = write_samples(samples, tmp_path / "mine.parquet")
    table = pq.read_table(path)
    wanted = {"row", "column", "network", "station", "land_cover", "climate", "date", "contract"}
    assert wanted <= set(table.column_names)
    assert set(table["contract"].to_pylist()) == {samples.attrs["contract_digest"]}
    assert table["date"].to_pylist()[0].isoformat() == str(samples.time.values[0])[:10]
    assert len(table["snapshot"][0]) == 18
    xr.testing.assert_identical(read_samples(path), samples)
    assert "ndvi" not in read_samples(path, inputs=False)
    twice = read_samples([path, path])
    assert twice.sizes["sample"] == 2 * samples.sizes["sample"]
    other = write_samples(encode_samples(samples, "paper"), tmp_path / "paper.parquet")
    with pytest.raises(ValueError, match="different contract_digest"):
        read_samples([path, other])


def test_files_that_are_no_samples(samples: xr.Dataset, tmp_path: Path) -> None:
    path = write_samples(samples, tmp_path / "mine.parquet")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(path.read_bytes()[:-50])
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    for name, told in (("cut", "cannot be read as Parquet"), ("other", "not one of samples")):
        with pytest.raises(ValueError, match=told):
            read_samples(tmp_path / f"{name}.parquet")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_samples(tmp_path / "none")
    with pytest.raises(ValueError, match="lack snapshot"):
        write_samples(samples.drop_vars("snapshot"), tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()


class Stopped(Exception):
    """Raised by the tests between two parts."""


def test_a_stopped_run_goes_on(
    truth: Truth, catalog: Path, samples: xr.Dataset, tmp_path: Path, monkeypatch: Any
) -> None:
    folder = tmp_path / "s"

    def stop(done: int, total: int) -> None:
        if done == 1:
            raise Stopped

    with pytest.raises(Stopped):
        build_samples(truth, folder, catalog=catalog, progress=stop)
    assert len(list(folder.glob("part-*.parquet"))) == 1
    (folder / ".part-x.parquet.1.tmp").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="1 of 2 parts"):
        read_samples(folder)
    assert 0 < read_samples(folder, partial=True).sizes["sample"] < 5
    loads = []
    original = build.load_cube
    monkeypatch.setattr(build, "load_cube", lambda *a, **k: loads.append(a[0]) or original(*a, **k))
    built = build_samples(truth, folder, catalog=catalog)
    assert len(loads) == 1
    assert built.samples == 5
    xr.testing.assert_identical(read_samples(folder), samples)
    build_samples(truth, folder, catalog=catalog)
    assert len(loads) == 1


KILLED = """
import os, signal, sys
from xsoilsm.samples import build_samples
from xsoilsm.truth import read_ismn

def kill(done, total):
    if done == 1:
        os.kill(os.getpid(), signal.SIGKILL)

build_samples(read_ismn(sys.argv[1]), sys.argv[2], catalog=sys.argv[3], progress=kill)
"""


def test_a_killed_run_goes_on(catalog: Path, samples: xr.Dataset, tmp_path: Path) -> None:
    sensors = [
        station(0, 0),
        station(0, 1, DAYS[:20]),
        station(2, 2, DAYS[DAYS == np.datetime64("2020-06-09")], level=0.2),
    ]
    archive = write_ismn(tmp_path / "a", sensors)
    arguments = [str(archive), str(tmp_path / "s"), str(catalog)]
    run = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], env=os.environ, timeout=200, check=False
    )
    assert run.returncode == -signal.SIGKILL
    built = build_samples(read_ismn(archive), tmp_path / "s", catalog=catalog)
    assert built.samples == 5
    xr.testing.assert_identical(read_samples(built.path), samples)


def test_a_folder_keeps_to_one_truth(truth: Truth, catalog: Path, tmp_path: Path) -> None:
    build_samples(truth, tmp_path / "s", catalog=catalog, time="2020-06-01/2020-06-05")
    for changed in (
        {"contract": "paper"},
        {"time": "2020-06-01/2020-06-10"},
        {"min_coverage": 0.9},
    ):
        with pytest.raises(ValueError, match="other truth or settings"):
            build_samples(truth, tmp_path / "s", catalog=catalog, **changed)
    moved = replace(truth, table=truth.table.assign(soil_moisture=truth.table.soil_moisture + 0.01))
    with pytest.raises(ValueError, match="other truth or settings"):
        build_samples(moved, tmp_path / "s", catalog=catalog, time="2020-06-01/2020-06-05")


def test_what_gives_no_sample_is_told(catalog: Path, tmp_path: Path) -> None:
    far = replace(station(0, 0), station="far", lat=43.9, lon=5.9)
    other_days = replace(station(2, 0, DAYS[:5]), station="early")
    truth = read_ismn(write_ismn(tmp_path / "a", [station(0, 0), far, other_days]))
    built = build_samples(truth, tmp_path / "s", catalog=catalog)
    assert built.samples == 3
    assert read_samples(built.path).relative_orbit.sizes == {"sample": 3}
    assert len(built.report) == 2
    assert built.report["reason"].str.contains("no acquisition|nothing|no item", case=False).any()
    alone = read_ismn(write_ismn(tmp_path / "b", [other_days]))
    with pytest.raises(ValueError, match=r"none of 1 part\(s\) gave a sample"):
        build_samples(alone, tmp_path / "t", catalog=catalog)
    with pytest.raises(ValueError, match="no day of it lies in"):
        build_samples(alone, tmp_path / "u", catalog=catalog, time="2019")
    with pytest.raises(TypeError, match="unknown option"):
        build_samples(alone, tmp_path / "v", catalog=catalog, chunk=3)


def test_unreadable_files_are_tried_again(world: World, truth: Truth, tmp_path: Path) -> None:
    catalog = world.catalog_file()
    (image,) = (world.folder / "data" / "S1_033080_1").glob("*vv*.tiff")
    kept = tmp_path / "kept.tiff"
    shutil.move(image, kept)
    try:
        first = build_samples(truth, tmp_path / "s", catalog=catalog)
    finally:
        shutil.move(kept, image)
    assert first.samples == 3
    reasons = first.report["reason"]
    assert reasons.tolist().count("radar could not be read") == 2
    assert reasons.str.contains("1 of 4 samples are lost").any()
    again = build_samples(truth, tmp_path / "s", catalog=catalog)
    assert again.samples == 5
    assert again.report.empty


def test_smap_is_interpolated_to_acquisitions(world: World, tmp_path: Path) -> None:
    cells = grid.get_grid("9km")
    lat, lon = centre(1, 1)
    row, column = (int(a) for a in cells.index(*grid.lonlat_to_xy(lon, lat)))
    for day, value in (("2020-06-01", 0.10), ("2020-06-05", 0.30), ("2020-06-15", 0.20)):
        place = np.array([row]), np.array([column])
        write_granule(tmp_path / "smap", day, HalfDay(*place, np.array([value])), None)
    truth = read_smap(tmp_path / "smap", [(row, column)])
    built = build_samples(truth, tmp_path / "s", catalog=world.catalog_file(), min_coverage=0.0)
    samples = read_samples(built.path)
    found = dict(
        zip(
            samples.time.values.astype("M8[D]").astype(str),
            samples.soil_moisture.values,
            strict=True,
        )
    )
    assert found == pytest.approx({"2020-06-03": 0.20, "2020-06-15": 0.20})
    assert set(samples.network.values) == {"SMAP"}
    assert samples.attrs["resolution"] == "9km"


def test_reading_together_makes_the_same_samples(
    truth: Truth, catalog: Path, samples: xr.Dataset, tmp_path: Path
) -> None:
    built = build_samples(truth, tmp_path / "s", catalog=catalog, together=True)
    found = read_samples(built.path)
    assert len(list(built.path.glob("part-*.parquet"))) < 3
    order = np.lexsort([found.column, found.row, found.time])
    expected = samples.isel(sample=np.lexsort([samples.column, samples.row, samples.time]))
    xr.testing.assert_allclose(found.isel(sample=order), expected, rtol=1e-6)


def test_a_table_of_ones_own_stations_does_too(catalog: Path, tmp_path: Path) -> None:
    lat, lon = centre(1, 1)
    table = pd.DataFrame(
        {"station": "mine", "lat": lat, "lon": lon, "date": ["2020-06-03"], "soil_moisture": 0.2}
    )
    built = build_samples(read_stations(table), tmp_path / "s", catalog=catalog)
    assert built.samples == 1


cells = st.sets(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=60)


@settings(max_examples=80)
@given(cells, st.integers(1, 7))
def test_rectangles_cover_each_cell_once(held: set[tuple[int, int]], side: int) -> None:
    found = rectangles(held, side)
    covered = [cell for part in found for cell in part.cells]
    assert sorted(covered) == sorted(held)
    assert found == sorted(found)
    for part in found:
        assert part.row // side == (part.row + part.height - 1) // side
        assert part.column // side == (part.column + part.width - 1) // side


@settings(max_examples=80)
@given(cells, st.integers(1, 7))
def test_bounding_rectangles_hold_each_cell_once(held: set[tuple[int, int]], side: int) -> None:
    found = bounding_rectangles(held, side)
    covered = [cell for part in found for cell in part.cells]
    assert len(set(covered)) == len(covered)
    assert set(held) <= set(covered)
    assert len({(part.row // side, part.column // side) for part in found}) == len(found)


def test_a_full_block_is_one_rectangle() -> None:
    full = {(i, j) for i in range(16, 32) for j in range(32, 48)}
    assert [tuple(part) for part in rectangles(full, 16)] == [(16, 32, 16, 16)]
    with pytest.raises(ValueError, match="not positive"):
        rectangles(full, 0)
