"""One call from stations to a validated ensemble, on a small invented cube."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.testing import CliRunner
from synthetic import map_cube
from training_data import samples as coarse_samples

from xsoilsm import ensemble as ensemble_module
from xsoilsm import get_ensemble, grid, retrieve
from xsoilsm.card import read_card
from xsoilsm.catalog import CatalogError
from xsoilsm.cli import main
from xsoilsm.cube import CubeError, cube_geobox
from xsoilsm.ensemble import Ensemble
from xsoilsm.finetuning import (
    Finetuned,
    FinetuningWarning,
    command,
    finetune,
    finetune_files,
    folds,
    local,
)
from xsoilsm.finetuning.folds import deal
from xsoilsm.samples.build import Built
from xsoilsm.samples.form import write_samples
from xsoilsm.simulate.stations import Sensor, write_ismn
from xsoilsm.training import Recipe, train_ensemble
from xsoilsm.truth import Truth, read_stations

pytestmark = pytest.mark.filterwarnings("ignore::xsoilsm.training.TrainingWarning")

SHAPES = [(1, 8), (2, 8)]
CELLS = [(0, 0), (0, 7), (3, 3), (3, 4), (7, 0), (7, 7)]
DAYS = 32
RECIPE = Recipe.transfer(epochs=2, learning_rate=0.01, batch=32)


def invented() -> xr.Dataset:
    days = np.datetime64("2020-04-02T06:20") + 6 * np.arange(DAYS) * np.timedelta64(1, "D")
    cube = map_cube((8, 8), tuple(map(str, days)))
    cube.attrs["source"] = "simulated numbers"
    return cube


def centre(cube: xr.Dataset, i: int, j: int) -> tuple[float, float]:
    lon, lat = grid.xy_to_lonlat(cube.x.values[j], cube.y.values[i])
    return float(lat), float(lon)


def stations(cube: xr.Dataset, cells: Any = CELLS) -> pd.DataFrame:
    """Stations whose truth follows from the backscatter of their cell."""
    rows = []
    for number, (i, j) in enumerate(cells):
        lat, lon = centre(cube, i, j)
        wet = 0.25 + 0.02 * (cube.sigma0_vv.values[:, i, j] + 12)
        rows += [
            {
                "network": "net",
                "station": f"s{number}",
                "lat": lat,
                "lon": lon,
                "time": str(when)[:10],
                "soil_moisture": round(float(value), 4),
                "land_cover": ("crop", "grass")[number % 2],
            }
            for when, value in zip(cube.time.values, wet, strict=True)
        ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    return invented()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    """Train some epochs at 9 km, under the contract of cubes."""
    folder = tmp_path_factory.mktemp("base")
    data = coarse_samples(64, "9km", contract="published-coarse")
    recipe = Recipe.coarse(epochs=2, batch=32)
    return train_ensemble(
        data,
        "base-9km",
        recipe,
        shapes=SHAPES,
        folder=folder / "base",
        checkpoint=folder / "c",
        log=folder / "log.csv",
        threads=1,
    )


@pytest.fixture(autouse=True)
def own_folders(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give each test a data folder of its own; figures are drawn where they are looked at."""
    monkeypatch.setenv("XSOILSM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(ensemble_module, "_loaded", {})
    if "uncertainty" not in request.node.name:
        monkeypatch.setattr(local, "write_report", lambda found, path, **_: path.write_text("-"))


@pytest.fixture(scope="module")
def whole(
    cube: xr.Dataset, base: Ensemble, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Finetuned]:
    """Tune without an interruption."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XSOILSM_DATA_DIR", str(tmp_path_factory.mktemp("whole")))
        patched.setattr(local, "write_report", lambda found, path, **_: path.write_text("-"))
        made = tuned(cube, stations(cube), base, name="whole")
        made.ensemble.state_dicts()
        yield made


def tuned(cube: xr.Dataset, truth: Any, base: Ensemble, **changes: Any) -> Finetuned:
    options = {"name": "mine", "recipe": RECIPE, "folds": 3, "threads": 1} | changes
    return finetune(cube, truth, base=base, **options)


def lazy(cube: xr.Dataset) -> xr.Dataset:
    return cube.chunk(time=1, y=4, x=4, period=-1)


def test_from_a_table_to_maps_with_their_uncertainty(
    cube: xr.Dataset, base: Ensemble, tmp_path: Path
) -> None:
    file = tmp_path / "mine.csv"
    stations(cube).to_csv(file, index=False)
    seen: list[float | str] = []
    made = tuned(lazy(cube), file, base, licence="CC-BY-4.0", progress=seen.append)
    ensemble = get_ensemble("mine")
    assert ensemble == made.ensemble
    shares = [one for one in seen if isinstance(one, float)]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)

    assert made.evaluation is not None
    assert made.base is not None
    assert made.calibration is not None
    assert made.evaluation.independence == made.base.independence == "sites"
    assert made.evaluation.simulated
    row = made.evaluation.overall.iloc[0]
    assert (row["samples"], row["sites"], row["interval"]) == (6 * DAYS, 6, "sites")
    assert row["rmse_low"] < row["rmse"] < row["rmse_high"]
    assert made.calibration.samples == row["n"]
    assert 0 < made.calibration.within <= 1

    assert ensemble.folder is not None
    card = read_card(ensemble.folder / "card.yaml")
    assert card.calibration == made.calibration
    assert card.simulated
    assert card.training.samples == 6 * DAYS
    assert set(card.training.data) == {"samples", "truth"}
    assert card.calibration is not None
    assert card.calibration.truth_sha256 == card.training.data["truth"]
    assert card.training.metrics["rmse_sites_held_out"] == pytest.approx(row["rmse"], abs=1e-6)
    assert (
        f"Cross-validation by site in 3 folds, 6 cells, {6 * DAYS} samples"
        in card.training.validation
    )
    assert card.training.base == base.digest

    soil = retrieve(cube.isel(time=[3]), "mine", device="cpu")
    expected = np.hypot(
        card.calibration.floor, card.calibration.factor * soil.soil_moisture_std.values
    )
    np.testing.assert_allclose(soil.soil_moisture_uncertainty, expected, rtol=1e-5)
    assert soil.attrs["ensemble"] == "mine"

    assert made.report is not None
    page = made.report.read_text()
    assert "SIMULATED DATA" in page
    for part in ("mine, sites held out", "base-9km, untouched", "Calibrated uncertainty"):
        assert part in page
        assert part.split(",")[0] in str(made) or part in str(made).capitalize()
    assert not (tmp_path / "data/training/mine.unfinished").exists()


def test_only_chunks_with_stations_are_read(cube: xr.Dataset, base: Ensemble) -> None:
    """Two stations in one quarter, with truth of two of the days."""
    import dask.array as da

    read: list[tuple[int, int, int]] = []

    def block(values: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info:
            read.append(tuple(block_info[0]["chunk-location"]))
        return values

    spied = lazy(cube)
    spied["sigma0_vv"] = spied.sigma0_vv.copy(
        data=da.map_blocks(block, spied.sigma0_vv.data, dtype=np.float32)
    )
    truth = stations(cube, [(0, 0), (2, 3)])
    from xsoilsm.contract import get_contract
    from xsoilsm.finetuning.gather import place_truth, read_truth, take_cube

    truth = truth[truth.time.isin(["2020-04-08", "2020-04-20"])]
    placed = place_truth(spied, read_truth(truth))
    folder = Path(os.environ["XSOILSM_DATA_DIR"])
    contract = get_contract("published-coarse")
    with dask.config.set(scheduler="synchronous"):
        taken, _ = take_cube(spied, placed, contract, folder)
        assert sorted(read) == [(1, 0, 0), (3, 0, 0)]
        again, _ = take_cube(spied, placed, contract, folder)
    assert len(read) == 2
    xr.testing.assert_identical(taken, again)
    assert taken.sizes["sample"] == 4


def test_samples_are_what_maps_see(cube: xr.Dataset, base: Ensemble, whole: Finetuned) -> None:
    features = cube.sm.features(base.contract.name)
    _, rows, columns = grid.grid_of(cube_geobox(cube))
    for k in range(0, 6 * DAYS, 17):
        one = whole.samples.isel(sample=k)
        at = {"y": int(one.row) - rows[0], "x": int(one.column) - columns[0]}
        there = features.sel(time=one.time).isel(at)
        np.testing.assert_allclose(one.snapshot, there.snapshot, atol=1e-6)
        np.testing.assert_allclose(one.series, there.series, atol=1e-6)
        wet = 0.25 + 0.02 * (float(cube.sigma0_vv.sel(time=one.time).isel(at)) + 12)
        assert float(one.soil_moisture) == pytest.approx(wet, abs=1e-4)


def test_no_site_is_retrieved_by_networks_that_saw_it(
    cube: xr.Dataset, base: Ensemble, whole: Finetuned
) -> None:
    """Spoil the labels of one site: what is retrieved there must not change."""
    spoiled = stations(cube)
    here = spoiled.station == "s2"
    spoiled.loc[here, "soil_moisture"] = spoiled.loc[here, "soil_moisture"].to_numpy()[::-1]
    other = tuned(cube, spoiled, base, name="other")
    assert whole.evaluation is not None
    assert other.evaluation is not None
    tables = [m.evaluation.samples.sort_values(["cell", "time"]) for m in (whole, other)]
    one, two = (t[t.station == "s2"].predicted.to_numpy() for t in tables)
    np.testing.assert_array_equal(one, two)
    one, two = (t[t.station != "s2"].predicted.to_numpy() for t in tables)
    assert not np.array_equal(one, two)


def test_stations_of_a_cell_and_cells_of_a_block_stay_together(cube: xr.Dataset) -> None:
    table = read_stations(stations(cube)).on_cells("1km").table
    table = table.assign(cell=table.row.astype(str) + " " + table.column.astype(str))
    splits, sites = deal(table, 3, None)
    assert (len(splits), sites) == (3, 6)
    for split in splits:
        ours, others = (set(table.cell.iloc[rows]) for rows in (split.test, split.train))
        assert not ours & others
    assert sorted(np.concatenate([s.test for s in splits])) == list(range(len(table)))
    coarse = grid.get_grid("9km")
    splits, blocks = deal(table, 9, "9km")
    at = coarse.index(*grid.lonlat_to_xy(table.lon, table.lat))
    names = np.array([f"{row} {column}" for row, column in zip(*at, strict=True)])
    assert len(splits) == blocks == len(set(names)) < 6
    for split in splits:
        assert not set(names[split.test]) & set(names[split.train])
    assert len(deal(table, 50, None)[0]) == 6


class Stop(Exception):
    pass


def _stopping(after: float) -> Any:
    def progress(state: float | str) -> None:
        if isinstance(state, float) and state >= after:
            raise Stop

    return progress


@pytest.mark.parametrize("after", [0.1, 0.5, 0.9])
def test_an_interrupted_call_goes_on_and_ends_alike(
    cube: xr.Dataset,
    base: Ensemble,
    whole: Finetuned,
    after: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"checkpoint_seconds": 0}
    with pytest.raises(Stop):
        tuned(lazy(cube), stations(cube), base, progress=_stopping(after), **options)
    trained = []
    original = folds._fold

    def counted(*args: Any) -> Any:
        trained.append(1)
        return original(*args)

    monkeypatch.setattr(folds, "_fold", counted)
    made = tuned(lazy(cube), stations(cube), base, **options)
    assert len(trained) == {0.1: 3, 0.5: 2, 0.9: 0}[after]
    assert made.calibration == whole.calibration
    assert made.evaluation is not None
    assert whole.evaluation is not None
    pd.testing.assert_frame_equal(made.evaluation.samples, whole.evaluation.samples)
    for one, two in zip(made.ensemble.state_dicts(), whole.ensemble.state_dicts(), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def test_work_on_other_data_or_settings_is_not_mixed_up(cube: xr.Dataset, base: Ensemble) -> None:
    with pytest.raises(Stop):
        tuned(cube, stations(cube), base, progress=_stopping(0.5))
    with pytest.raises(ValueError, match=r"begun with another recipe.*restart=True"):
        tuned(cube, stations(cube), base, recipe=replace(RECIPE, seed=1))
    other = stations(cube).iloc[:-1]
    with pytest.raises(ValueError, match="begun with another truth"):
        tuned(cube, other, base)
    with pytest.raises(ValueError, match="begun with another cube"):
        tuned(cube.assign(sand=cube.sand + 1), stations(cube), base)
    made = tuned(cube, other, base, restart=True, validation=None)
    assert made.samples.sizes["sample"] == 6 * DAYS - 1


def test_an_interruption_while_saving_is_no_obstacle(
    cube: xr.Dataset, base: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise Stop

    with monkeypatch.context() as patched:
        patched.setattr("shutil.copyfile", stop)
        with pytest.raises(Stop):
            tuned(cube, stations(cube), base)
    made = tuned(cube, stations(cube), base)
    assert made.report is not None
    assert made.report.exists()


def test_an_ensemble_that_exists_is_kept(cube: xr.Dataset, base: Ensemble) -> None:
    first = tuned(cube, stations(cube), base, validation=None)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        tuned(cube, stations(cube), base)
    options = {"overwrite": True, "validation": None, "recipe": replace(RECIPE, seed=1)}
    second = tuned(cube, stations(cube), base, **options)
    assert get_ensemble("mine") == second.ensemble != first.ensemble


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"validation": "random"}, ValueError, "A random split is no validation"),
        ({"recipe": replace(RECIPE, validation=0.2)}, ValueError, "20% of the samples at random"),
        ({"recipe": Recipe.benchmark()}, ValueError, "starts from nothing"),
        ({"recipe": replace(RECIPE, coarse_share=1.0)}, ValueError, "pass coarse="),
        ({"epochs": 3}, ValueError, "set it in the recipe"),
        ({"folds": 1}, ValueError, "expected 2 or more"),
        ({"name": "My Region"}, CatalogError, "no name for an ensemble"),
        ({"name": "densesm-e-coarse"}, CatalogError, "comes with the package"),
        ({"shapes": [(5, 128)]}, ValueError, "no member 5-128; expected of 1-8, 2-8"),
        ({"block": "2km"}, ValueError, "2km"),
    ],
)
def test_settings_that_cannot_end_well_stop_before_anything_is_read(
    cube: xr.Dataset, base: Ensemble, changes: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        tuned(cube, "no-such-file.csv", base, **changes)


def test_truth_that_does_not_fit_is_named(cube: xr.Dataset, base: Ensemble) -> None:
    good = stations(cube)
    cases: list[tuple[pd.DataFrame, str]] = [
        (good.assign(soil_moisture=good.soil_moisture * 100), "divide them by 100"),
        (good.assign(soil_moisture=np.nan), "missing value"),
        (good.assign(lat=good.lat + 10), "none of 6 stations lies in the cube"),
        (
            good.assign(time=good.time.str.replace("2020", "2012")),
            "is that of one of the cube's 32 acquisitions",
        ),
        (good.assign(soil_moisture=0.2), "learns nothing from a constant"),
        (good[good.station == "s0"], "samples are of one site"),
        (good[good.time < "2020-04-21"], "leave 16 for the smallest training"),
    ]
    for number, (truth, message) in enumerate(cases):
        with pytest.raises(ValueError, match=message):
            tuned(cube, truth, base, name=f"mine-{number}")
    percent = read_stations(good)
    percent.table["soil_moisture"] *= 100
    with pytest.raises(ValueError, match="not in m3 m-3"):
        tuned(cube, percent, base)
    with pytest.raises(CubeError, match="sigma0_vv"):
        tuned(cube.drop_vars("sigma0_vv"), good, base)
    with pytest.raises(ValueError, match="needs stations"):
        tuned(cube, None, base)


def test_values_in_doubt_are_left_out_and_told(cube: xr.Dataset, base: Ensemble) -> None:
    truth = stations(cube)
    truth.loc[truth.station == "s5", "soil_moisture"] *= 100
    truth.loc[3, "soil_moisture"] = np.nan
    hole = cube.copy(deep=True)
    hole.sigma0_vh[5, 0, 7] = np.nan
    made = tuned(hole, truth, base, validation=None)
    assert made.samples.sizes["sample"] == 5 * DAYS - 2
    reasons = " ".join(made.left_out["reason"])
    for part in ("divide them by 100", "missing value", "an input is missing"):
        assert part in reasons


def test_what_little_can_say_is_said(cube: xr.Dataset, base: Ensemble) -> None:
    with pytest.warns(FinetuningWarning) as told:
        made = tuned(
            cube,
            stations(cube, CELLS[:3]).assign(land_cover="crop"),
            base,
            recipe=Recipe.transfer(epochs=2),
        )
    messages = " | ".join(str(one.message) for one in told)
    assert "3 sites cannot stand for others" in messages
    assert "all sites have the land cover 'crop'" in messages
    assert "the batch is 64 instead" in messages
    assert made.calibration is None
    assert made.evaluation is not None
    assert made.evaluation.overall["interval"].iloc[0] == "days"
    assert made.ensemble.card.training.settings["batch"] == 64
    soil = retrieve(cube.isel(time=[0]), "mine", device="cpu")
    assert "soil_moisture_uncertainty" not in soil


def test_without_validation_nothing_is_claimed(cube: xr.Dataset, base: Ensemble) -> None:
    made = tuned(cube, stations(cube), base, validation=None)
    assert (made.evaluation, made.calibration, made.report) == (None, None, None)
    assert made.ensemble.card.training.validation.startswith("Not validated")
    assert set(made.ensemble.card.training.metrics) == {"rmse_training_members"}
    assert "NOT VALIDATED" in str(made)


@pytest.fixture
def archive(cube: xr.Dataset, tmp_path: Path) -> Path:
    sensors = []
    for name, rows in stations(cube).groupby("station"):
        when = rows.time.to_numpy().astype("datetime64[h]") + 6
        place = rows.lat.iloc[0], rows.lon.iloc[0]
        sensors.append(Sensor("net", str(name), *place, when, rows.soil_moisture.to_numpy()))
    return write_ismn(tmp_path / "ismn.zip", sensors)


@pytest.mark.filterwarnings("ignore:all sites have the:xsoilsm.finetuning.FinetuningWarning")
def test_an_archive_and_a_cube_on_disk(
    cube: xr.Dataset, base: Ensemble, archive: Path, tmp_path: Path
) -> None:
    lazy(cube).to_zarr(tmp_path / "cube.zarr", consolidated=False)
    made = finetune_files(
        archive,
        "mine",
        cube=tmp_path / "cube.zarr",
        base=base,
        folds=6,
        time="2020-04-02/2020-07-31",
        members=["2-8"],
        settings=["epochs=2", "batch=16", "learning_rate=0.01"],
        threads=1,
    )
    assert [m.label for m in made.ensemble.card.members] == ["2-8"]
    assert made.evaluation is not None
    assert made.evaluation.simulated
    assert made.samples.sizes["sample"] == 6 * 21
    with pytest.raises(CubeError, match=r"expected a name that ends in \.zarr"):
        finetune_files(archive, "other", cube=archive, base=base)


def test_a_catalog_instead_of_a_cube(
    cube: xr.Dataset,
    base: Ensemble,
    whole: Finetuned,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Samples as `build_samples` leaves them; what it reads of catalogs has tests of its own."""
    asked: dict[str, Any] = {}

    def built(truth: Truth, path: Path, **options: Any) -> Built:
        asked.update(options)
        options["progress"](1, 1)
        write_samples(whole.samples, path / "part-1.parquet")
        return Built(path, whole.samples.sizes["sample"], truth.report)

    monkeypatch.setattr(command, "build_samples", built)
    seen: list[float | str] = []
    made = finetune_files(
        stations(cube),
        "mine",
        catalog="planetary-computer",
        simulated=True,
        base=base,
        res="1km",
        folds=3,
        settings=["epochs=2", "batch=32", "learning_rate=0.01"],
        threads=1,
        progress=seen.append,
    )
    assert asked["contract"] == base.contract
    assert (asked["catalog"], asked["res"], asked["inputs"]) == (
        "planetary-computer",
        "1km",
        False,
    )
    assert seen[0] == 0.5
    assert seen[-1] == pytest.approx(1)
    assert made.ensemble.card.simulated
    for one, two in zip(whole.ensemble.state_dicts(), made.ensemble.state_dicts(), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def test_accessor_and_command_reach_it(cube: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="A random split is no validation"):
        cube.sm.finetune(None, "mine", validation="random")
    stations(cube).to_csv(tmp_path / "mine.csv")
    words = ["finetune", str(tmp_path / "mine.csv"), "My Name", "--quiet"]
    found = CliRunner().invoke(main, words)
    assert found.exit_code == 1
    assert "'My Name' is no name for an ensemble" in found.output


def test_samples_instead_of_a_cube(cube: xr.Dataset, base: Ensemble, whole: Finetuned) -> None:
    made = tuned(whole.samples, None, base, simulated=True)
    for one, two in zip(whole.ensemble.state_dicts(), made.ensemble.state_dicts(), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    with pytest.raises(CubeError, match="stations=None"):
        tuned(whole.samples, stations(cube), base, name="third")
