"""The twin experiment: from nothing to files, and through the readers to samples."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from xsoilsm import load_cube, open_catalog
from xsoilsm.grid import get_grid
from xsoilsm.simulate.twin import simulate_twin, twin_samples, twin_settings
from xsoilsm.simulate.twin_plan import REGIONS, SIZES, make_place
from xsoilsm.simulate.twin_region import (
    CATALOG_FILE,
    STATION_FILE,
    TRUTH_9KM,
    TRUTH_STATIONS,
    write_region,
)
from xsoilsm.simulate.twin_truth import footprint_weights
from xsoilsm.truth import read_ismn, read_smap

TINY = SIZES["tiny"]
NAMES = [region.name for region in REGIONS[: TINY.regions]]


class Stopped(Exception):
    """Stands for whatever ends a process."""


def digest(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a twin, stopped after its first region, and gone on with."""
    folder = tmp_path_factory.mktemp("experiment") / "twin"

    def stop(state: float | str) -> None:
        if isinstance(state, float) and state > 0.1:
            raise Stopped

    with pytest.raises(Stopped):
        simulate_twin(folder, "tiny", seed=3, workers=1, progress=stop)
    finished = list((folder / "regions").iterdir())
    assert [path.name for path in finished] == NAMES[:1]
    with pytest.raises(FileNotFoundError, match="unfinished twin"):
        twin_samples(folder)
    before = {file: file.stat().st_mtime_ns for file in finished[0].rglob("*")}
    told: list[float | str] = []
    assert simulate_twin(folder, "tiny", seed=3, workers=1, progress=told.append) == folder
    assert told[-1] == 1.0
    assert {file: file.stat().st_mtime_ns for file in finished[0].rglob("*")} == before
    return folder


@pytest.fixture(scope="module")
def samples(twin: Path) -> tuple[xr.Dataset, xr.Dataset]:
    return twin_samples(twin, workers=1)


def test_a_complete_twin_is_left_as_it_is(twin: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in twin.rglob("*")}
    simulate_twin(twin, "tiny", seed=3)
    assert {file: file.stat().st_mtime_ns for file in twin.rglob("*")} == before
    assert twin_settings(twin) == (TINY, 3)
    assert not list(twin.rglob("*.partial"))


def test_the_same_seed_gives_the_same_bytes(twin: Path, tmp_path: Path) -> None:
    write_region(tmp_path / "again", REGIONS[0], TINY, 3)
    assert digest(tmp_path / "again") == digest(twin / "regions" / NAMES[0])


def test_other_content_is_refused(twin: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="another seed: 'tiny', seed 3"):
        simulate_twin(twin, "tiny", seed=4)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is no twin"):
        simulate_twin(tmp_path, "tiny")
    with pytest.raises(ValueError, match="'huge' is unknown; expected one of 'tiny'"):
        simulate_twin(tmp_path / "new", "huge")
    with pytest.raises(ValueError, match="seed is -1"):
        simulate_twin(tmp_path / "new", "tiny", seed=-1)
    with pytest.raises(FileNotFoundError, match="no twin"):
        twin_samples(tmp_path)


def test_a_region_is_a_catalog_like_any_other(twin: Path) -> None:
    home = twin / "regions" / NAMES[0]
    place = make_place(REGIONS[0], TINY, 3)
    catalog = open_catalog(home / CATALOG_FILE)
    cube = load_cube(place.cells("9km"), "2021-05", catalog=catalog, on_error="raise").compute()
    assert cube.sizes["x"] == cube.sizes["y"] == 2
    assert (cube["coverage"] > 0.999).all()
    assert set(cube["sigma0_from"].values) == {"rtc-flat"}
    assert set(cube["incidence_from"].values) == {"layer"}
    for name in ("sigma0_vv", "ndvi", "precipitation", "air_temperature", "sand", "elevation"):
        assert np.isfinite(cube[name].values).all(), name
    assert cube["incidence_angle"].values.min() > 29
    assert float(cube["sigma0_vv"].mean() - cube["sigma0_vh"].mean()) > 4


def test_stations_differ_from_their_cells_by_what_is_stated(twin: Path) -> None:
    truth = read_ismn(sorted((twin / "ismn").glob("*.zip")))
    assert set(truth.table["network"]) == {"TWIN-BASIN", "TWIN-WIDE", "TWIN-SNOW"}
    assert set(truth.table["climate"].str[:3]) == {"Csa", "Dfc"}
    assert (truth.table["land_cover"] != "").all()
    assert truth.table["depth_to"].max() == pytest.approx(0.05)
    errors, frozen = [], []
    for name in NAMES:
        home = twin / "regions" / name
        places = pd.read_csv(home / STATION_FILE)
        cells = truth.on_cells("1km").table
        true = pd.read_parquet(home / TRUTH_STATIONS)
        true["date"] = true["date"].astype("datetime64[ns]")
        both = cells.merge(true, on=["row", "column", "date"], suffixes=("", "_true"))
        assert set(both["station"]) <= set(places["station"])
        errors.append(both["soil_moisture"] - both["soil_moisture_true"])
        frozen.append((both["air_temperature"] < 0).any())
    error = pd.concat(errors)
    assert len(error) == len(truth.table)  # every station stands in a cell of which truth is kept
    assert 0.014 < error.std() < 0.045
    assert error.abs().max() < 0.15  # no spike came through
    assert not any(frozen)


def test_smap_differs_from_what_it_sees_by_what_is_stated(twin: Path) -> None:
    parts = []
    for name in NAMES:
        true = pd.read_parquet(twin / "regions" / name / TRUTH_9KM)
        cells = true[["row", "column"]].drop_duplicates().to_numpy(dtype=np.int64)
        level = true["soil_moisture"].to_numpy().reshape(-1, len(cells))
        parts.append(true.assign(seen=(level @ footprint_weights(cells).T).ravel()))
    known = pd.concat(parts)
    known["date"] = known["date"].astype("datetime64[ns]")
    found = read_smap(twin / "smap", known[["row", "column"]].drop_duplicates())
    assert found.report.empty or not found.report["reason"].str.contains("difference").any()
    assert found.table["soil_moisture"].min() >= 0
    assert (found.table.groupby(["row", "column"]).size() > 10).all()
    both = found.table.merge(known, on=["row", "column", "date"], suffixes=("", "_true"))
    assert len(both) == len(found.table)
    assert (both["air_temperature"] >= 0).all()
    error = both["soil_moisture"] - both["seen"]
    assert 0.02 < error.std() < 0.05
    assert abs(error.mean()) < 0.04


def test_samples_of_both_grids(twin: Path, samples: tuple[xr.Dataset, xr.Dataset]) -> None:
    coarse, fine = samples
    assert (coarse.attrs["resolution"], fine.attrs["resolution"]) == ("9km", "1km")
    assert coarse.attrs["contract"] == fine.attrs["contract"] == "paper"
    assert coarse.attrs["simulated"] == 1
    assert set(coarse["station"].values) == set(NAMES)
    assert coarse.sizes["sample"] > 40
    assert fine.sizes["sample"] > 60
    for found in samples:
        assert np.isfinite(found["snapshot"].values).all()
        assert np.isfinite(found["series"].values).all()
        assert found["soil_moisture"].values.min() > 0
        assert {"ascending", "descending"} == set(found["orbit_state"].values)
    # Networks know where they are by the 9 km cell alone.
    assert set(np.unique(fine["row"].values // 9)) <= set(np.unique(coarse["row"].values))
    left_out = pd.read_csv(twin / "samples" / "paper" / "left_out.csv")
    assert left_out["reason"].str.contains("D01,D02").any()


def test_samples_are_taken_once(twin: Path, samples: tuple[xr.Dataset, xr.Dataset]) -> None:
    """The second call needs neither archives nor granules nor regions."""
    hidden = [(twin / name, twin / f"hidden {name}") for name in ("ismn", "smap", "regions")]
    for path, other in hidden:
        path.rename(other)
    try:
        again = twin_samples(twin)
    finally:
        for path, other in hidden:
            other.rename(path)
    for before, after in zip(samples, again, strict=True):
        xr.testing.assert_identical(before, after)


# --------------------------------------------------------------------------- the plan


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_regions_lie_on_whole_squares_of_the_lattices(size: object) -> None:
    chosen = SIZES[size.name]  # type: ignore[attr-defined]
    regions = REGIONS[: chosen.regions]
    assert len({region.name for region in regions}) == chosen.regions
    blocks = []
    for region in regions:
        place = make_place(region, chosen, 0)
        row, column, count = place.block
        assert row % 2 == column % 2 == count % 2 == 0
        rows, columns = place.station_area
        assert len(rows) == len(columns) == count * 9 // 16 * 16
        assert row * 9 <= rows.start
        assert rows.stop <= (row + count) * 9
        assert column * 9 <= columns.start
        assert columns.stop <= (column + count) * 9
        west, south, east, north = place.box()
        assert -55 < south < north < 60
        assert place.truth_geobox.shape == (count * 18, count * 18)
        assert abs((west + east) / 2 - region.lon) < 2
        assert abs((south + north) / 2 - region.lat) < 2.5
        blocks.append((row, column))
    assert len(set(blocks)) == len(blocks)


def test_seeds_make_other_places() -> None:
    one, other = (make_place(REGIONS[0], TINY, seed) for seed in (0, 1))
    assert one.seed != other.seed
    assert one.block == other.block
    assert make_place(replace(REGIONS[0], name="x"), TINY, 0).seed != one.seed
    assert get_grid("9km").shape[0] > one.block[0]
