"""A training ends in an ensemble that is found, retrieves, and describes itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
from synthetic import map_cube, sample_cube
from training_data import samples

from xsoilsm import ensemble as ensemble_module
from xsoilsm import get_ensemble, list_ensembles, retrieve
from xsoilsm.card import read_card
from xsoilsm.catalog import CatalogError
from xsoilsm.ensemble import Ensemble
from xsoilsm.training import (
    DEFAULT_SHAPES,
    Recipe,
    Samples,
    predict_members,
    train_ensemble,
)
from xsoilsm.training.command import describe_ensemble, train_files
from xsoilsm.training.mlm import ensemble_item, write_item

SHAPES = [(1, 4), (2, 4)]
pytestmark = pytest.mark.filterwarnings("ignore::xsoilsm.training.TrainingWarning")


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XSOILSM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(ensemble_module, "_loaded", {})


def coarse(name: str = "mine-9km", **changes: Any) -> Ensemble:
    options = {"truth": "simulated SMAP", "simulated": True, "shapes": SHAPES} | changes
    recipe = Recipe.coarse(epochs=3, averaged_epochs=2, batch=32)
    return train_ensemble(samples(80, "9km"), name, recipe, threads=1, **options)


def fine(base: Any, name: str = "mine-1km", **changes: Any) -> Ensemble:
    options = {"recipe": Recipe.transfer(epochs=2, batch=32), "data": samples()} | changes
    return train_ensemble(
        options.pop("data"), name, options.pop("recipe"), base=base, threads=1, **options
    )


def test_what_was_tuned_from_simulated_networks_is_not_taken_silently() -> None:
    coarse()
    tuned = fine("mine-9km")
    assert tuned.card.simulated
    assert get_ensemble("DenseSM-E", "1km") != tuned


def test_the_place_is_told_where_it_was_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="xsoilsm")
    coarse("staged", folder=tmp_path / "staged.unfinished")
    assert "unfinished" not in caplog.text
    made = coarse("mine-9km")
    assert f"saved in {made.folder}" in caplog.text


def test_members_are_those_of_the_paper_by_default() -> None:
    assert len(set(DEFAULT_SHAPES)) == 25
    assert {d for d, _ in DEFAULT_SHAPES} == {1, 2, 3, 4, 5}


def test_coarse_and_transfer_end_in_ensembles_that_retrieve(tmp_path: Path) -> None:
    first = coarse(simulated=False)
    second = fine("mine-9km", licence="CC-BY-4.0", truth="stations", period="2021")
    assert get_ensemble("mine-1km") == second == get_ensemble(tmp_path / "data/ensembles/mine-1km")
    assert get_ensemble("DenseSM-E", "1km") == second  # not simulated: stands for its family
    table = list_ensembles().set_index("name")
    assert table.loc["mine-1km", "weights"] == 2
    result = retrieve(map_cube((2, 2)), "mine-1km", device="cpu").compute()
    assert np.isfinite(result["soil_moisture_std"]).all()
    data = samples(20, seed=9)
    members = predict_members(second.state_dicts(), data, threads=1)
    for row, module in zip(members, second.modules(), strict=True):
        import torch

        with torch.no_grad():
            plain = module(torch.from_numpy(data.snapshot), torch.from_numpy(data.series))
        np.testing.assert_allclose(row, plain, atol=2e-6)
    assert second.card.training.base == first.digest
    assert not (tmp_path / "data/training/mine-1km.safetensors").exists()
    assert (tmp_path / "data/training/mine-1km.csv").read_text().startswith("epoch,member,loss")


def test_the_card_says_how_the_ensemble_was_made() -> None:
    ensemble = coarse(note="a test")
    assert ensemble.folder is not None
    card = read_card(ensemble.folder / "card.yaml")
    training = card.training
    assert (training.kind, training.truth, training.samples) == ("coarse", "simulated SMAP", 72)
    assert training.settings["learning_rate"] == 0.01
    assert training.settings["averaged_epochs"] == 2
    assert training.settings["optimiser"] == "Adam (0.9, 0.999, 1e-08)"
    assert training.data == {"samples": samples(80, "9km").digest}
    assert set(training.metrics) == {
        "rmse_training_members",
        "rmse_held_back_members",
        "rmse_held_back",
    }
    assert "does not say what to expect elsewhere" in training.validation
    assert all(member.rmse is not None and member.rmse > 0 for member in card.members)
    assert card.get_contract().digest == samples().contract.digest
    assert card.simulated
    assert card.licence.statement == "The maker of this ensemble states no terms."
    assert "It was tuned from mine-9km" in fine(ensemble).card.licence.statement


def test_a_training_that_could_not_be_saved_does_not_start() -> None:
    coarse()

    def never(_: float | str) -> None:
        pytest.fail("the training started")

    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (FileExistsError, "pass overwrite=True", {}),
        (CatalogError, "cannot be described by a card", {"name": "With Blanks"}),
        (ValueError, "starts from nothing", {"base": "mine-9km", "name": "other"}),
        (CatalogError, "unknown ensemble", {"base": "nobody", "name": "other"}),
    ]
    for error, message, changes in cases:
        with pytest.raises(error, match=message):
            coarse(progress=never, **changes)


def test_bases_that_do_not_fit_are_named() -> None:
    coarse()
    fine("mine-9km", "mine-100m", data=samples(res="100m"))
    with pytest.raises(ValueError, match="tuned at 100m, the samples are at 1km"):
        fine("mine-100m")
    with pytest.raises(ValueError, match="reads 'paper'; compute the features under its contract"):
        fine("mine-9km", data=samples(contract="published-coarse"))
    with pytest.raises(ValueError, match="no member 5-128; expected of 1-4, 2-4"):
        fine("mine-9km", shapes=[(5, 128)])
    some = fine("mine-9km", shapes=[(2, 4)])
    assert [member.label for member in some.card.members] == ["2-4"]


def test_an_interrupted_training_goes_on_and_replaces_only_at_its_end() -> None:
    before = coarse()
    whole = coarse("twin", note="uninterrupted")

    def stop(state: float | str) -> None:
        if isinstance(state, float) and state > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        coarse(overwrite=True, progress=stop, checkpoint_seconds=0)
    assert get_ensemble("mine-9km") == before
    assert before.state_dicts()
    after = coarse(overwrite=True)
    for one, other in zip(after.state_dicts(), whole.state_dicts(), strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_an_ensemble_is_a_valid_stac_item(tmp_path: Path) -> None:
    ensemble = fine(coarse(simulated=False), licence="CC-BY-4.0")
    path = write_item(ensemble)
    assert path == tmp_path / "data/ensembles/mine-1km/item.json"
    item = pystac.Item.from_file(str(path))
    properties = item.properties
    assert item.stac_extensions[0] == "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
    required = ("name", "architecture", "tasks", "input", "output")
    assert all(f"mlm:{key}" in properties for key in required)
    assert properties["license"] == "CC-BY-4.0"
    assert properties["mlm:tasks"] == ["regression"]
    assert properties["mlm:total_parameters"] == sum(
        sum(p.numel() for p in module.parameters()) for module in ensemble.modules()
    )
    snapshot, series = properties["mlm:input"]
    assert snapshot["input"] == {
        "shape": [-1, 18],
        "dim_order": ["batch", "feature"],
        "data_type": "float32",
    }
    assert len(snapshot["variables"]) == len(snapshot["value_scaling"]) == 18
    assert series["input"]["shape"] == [-1, 3, 46]
    assert {"type": "min-max", "minimum": -30.0, "maximum": 5.0} in snapshot["value_scaling"]
    weights = [a for a in item.assets.values() if "mlm:model" in (a.roles or [])]
    assert len(weights) == 2
    for asset in weights:
        file = path.parent / asset.href
        assert file.is_file()
        assert asset.extra_fields["mlm:artifact_type"] == "safetensors"
    assert json.loads(path.read_text())["properties"]["xsoilsm:simulated"] is False
    mlm = pytest.importorskip("pystac.extensions.mlm", reason="pystac without its extension MLM")
    extension = mlm.MLMExtension.ext(item)
    assert extension.mlm_name == "mine-1km"
    assert [entry.name for entry in extension.input] == ["snapshot", "series"]
    assert extension.output[0].result.shape == [-1]
    assert extension.hyperparameters is not None


def test_the_published_ensemble_has_an_item_too(tmp_path: Path) -> None:
    item = ensemble_item(get_ensemble("DenseSM-E"))
    assert len(item.assets) == 26
    assert item.assets["coarse_5_128"].href.startswith("https://")
    assert item.properties["license"] == "other"
    with pytest.raises(ValueError, match="pass the path of the item"):
        write_item(get_ensemble("DenseSM-E"))
    assert write_item(get_ensemble("DenseSM-E"), tmp_path / "item.json").is_file()


def test_the_published_networks_can_be_tuned(
    weights_dir: Path, golden: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSOILSM_WEIGHTS_DIR", str(weights_dir))
    base = get_ensemble("DenseSM-E")
    arrays = golden["snapshot"], golden["series"]
    truth = np.clip(golden["mean"] + 0.05, 0, 0.6)
    data = Samples.of_arrays(arrays, truth, contract="published-coarse")
    before = predict_members(base.state_dicts(), data, threads=1)
    np.testing.assert_allclose(before, golden["members"], rtol=0, atol=1e-5)
    shapes = [(1, 8), (3, 16), (5, 8)]
    recipe = Recipe.transfer(epochs=6, averaged_epochs=2, learning_rate=1e-3)
    tuned = train_ensemble(
        data, "tuned", recipe, base="DenseSM-E", shapes=shapes, threads=1, device="cpu"
    )
    after = predict_members(tuned.state_dicts(), data, threads=1)
    rows = [m.label in ("1-8", "3-16", "5-8") for m in base.card.members]
    errors = [np.sqrt(np.mean((p - truth) ** 2)) for p in (before[rows], after)]
    assert errors[1] < errors[0]
    counters = [float(s["norm.num_batches_tracked"]) for s in tuned.state_dicts()]
    first = [
        float(s["norm.num_batches_tracked"])
        for s, r in zip(base.state_dicts(), rows, strict=True)
        if r
    ]
    np.testing.assert_allclose(counters, np.array(first) + 11, rtol=1e-6)  # 2 steps, epochs 5, 6


def test_files_of_samples_become_an_ensemble(tmp_path: Path) -> None:
    coarse()
    cube = sample_cube(40)
    truth = np.linspace(0.05, 0.4, 40, dtype=np.float32)
    cube["soil_moisture"] = ("sample", truth, {"units": "m3 m-3"})
    path = tmp_path / "samples.zarr"
    cube.to_zarr(path, zarr_format=2)
    settings = ["epochs=2", "batch=20", "learning_rate=1e-4", "balance=none"]
    ensemble = train_files(path, "of-files", base="mine-9km", settings=settings, threads=1)
    assert ensemble.card.training.settings["learning_rate"] == 1e-4
    assert ensemble.card.training.samples == 40
    assert "of-files: 2 networks for 1km, transfer on 40 samples" in describe_ensemble(ensemble)
    one = train_files(
        path, "one", kind="benchmark", contract="paper", members=["1-4"], settings=settings
    )
    assert [member.label for member in one.card.members] == ["1-4"]
    for changes, message in (
        ({"kind": "fine"}, "kind is 'fine'"),
        ({"settings": ["epochs"]}, "expected NAME=VALUE"),
        ({"members": ["big"], "base": "mine-9km"}, "expected DEPTH-WIDTH"),
    ):
        with pytest.raises(ValueError, match=message):
            train_files(path, "none", **changes)
