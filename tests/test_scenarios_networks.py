"""A scenario with real networks, small ones and few steps: from samples to a report."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from training_data import samples as coarse_samples
from training_data import varied_states

from xsoilsm.contract import get_contract
from xsoilsm.scenarios import Study, plan, run_scenario
from xsoilsm.scenarios.networks import NetworkTrainer
from xsoilsm.training import Recipe, train_members

SHAPES = [(1, 8), (2, 8)]
OPTIONS = {
    "transfer": Recipe.transfer(epochs=5, learning_rate=1e-4, batch=32),
    "benchmark": Recipe.benchmark(epochs=30, batch=16),
    "threads": 1,
    "device": "cpu",
}


def _samples(n=240, cells=8):
    rng = np.random.default_rng(5)
    contract = get_contract("paper")
    snapshot = rng.random((n, 18), np.float32)
    series = rng.random((n, 3, 46), np.float32)
    truth = 0.05 + 0.3 * snapshot[:, 0] + 0.1 * series[:, 0].mean(axis=1)
    cell = np.arange(n) % cells
    days = np.datetime64("2016-01-01", "ns") + np.arange(n) * np.timedelta64(9, "D")
    return xr.Dataset(
        {
            "snapshot": (("sample", "feature"), snapshot),
            "series": (("sample", "channel", "step"), series),
            "soil_moisture": ("sample", truth.astype(np.float32)),
        },
        coords={
            "row": ("sample", 100 + cell),
            "column": ("sample", 200 + cell),
            "lat": ("sample", 40 + cell / 10),
            "lon": ("sample", -100 + cell / 10),
            "time": ("sample", days),
            "network": ("sample", np.full(n, "SCAN", dtype=object)),
            "station": ("sample", np.array([f"s{c}" for c in cell], dtype=object)),
        },
        attrs={
            "contract": contract.name,
            "contract_digest": contract.digest,
            "resolution": "1km",
            "simulated": 1,
        },
    )


@pytest.fixture(scope="module")
def trainer():
    coarse = coarse_samples(192, "9km")
    recipe = Recipe.coarse(epochs=30, batch=16)
    states = train_members(coarse, SHAPES, recipe, device="cpu", threads=1).states
    return NetworkTrainer(SHAPES, states, coarse, **OPTIONS)


def test_a_scenario_with_networks_ends_in_a_report(trainer, tmp_path):
    samples = _samples()
    path = run_scenario(
        "off-site",
        samples,
        trainer,
        tmp_path,
        trainer=trainer.label,
        sizes={"off-site": [3]},
        seeds=2,
        networks=["SCAN"],
    )
    assert "SIMULATED DATA" in path.read_text(encoding="utf-8")
    scores = Study.open(tmp_path).scores().set_index(["arm", "seed"])
    assert len(scores) == 6
    assert (scores["sites_trained"] == 3).all()
    assert scores.loc["coarse", "split"].nunique() == 2
    assert scores.loc[("transfer", 0), "rmse"] != scores.loc[("coarse", 0), "rmse"]
    # The same run again, elsewhere, gives the same.
    other = Study.create(tmp_path / "other", samples, trainer=trainer.label)
    runs = plan("off-site", sizes=[3], seeds=1, networks=["SCAN"], arms=["transfer"])
    other.run(runs, samples, trainer)
    first, second = (s.result(runs[0]) for s in (Study.open(tmp_path), other))
    np.testing.assert_array_equal(first.predicted, second.predicted)
    assert (first.spread > 0).all()
    assert len(first.record["member_r"]) == len(SHAPES)


def test_the_label_names_what_decides_the_results(trainer):
    same = NetworkTrainer(SHAPES, trainer.initial, coarse_samples(192, "9km"), **OPTIONS)
    assert same.label == trainer.label
    changes = (
        {"initial": varied_states(SHAPES, seed=1)},
        {"coarse": coarse_samples(64, "9km", seed=1)},
        {"transfer": Recipe.transfer(epochs=4)},
        {"benchmark": Recipe.benchmark(epochs=4)},
    )
    held = {"initial": trainer.initial, "coarse": trainer.coarse, **OPTIONS}
    labels = {NetworkTrainer(SHAPES, **(held | change)).label for change in changes}
    assert len(labels | {trainer.label}) == 5


def test_transfer_off_site_needs_coarse_samples(trainer, tmp_path):
    bare = NetworkTrainer(SHAPES, trainer.initial, **OPTIONS)
    study = Study.create(tmp_path, _samples(), trainer=bare.label)
    runs = plan("off-site", sizes=[3], seeds=1, networks=["SCAN"], arms=["transfer"])
    with pytest.raises(ValueError, match=r"9 ?km|coarse"):
        study.run(runs, _samples(), bare)
    runs = plan("dependent", sizes=[30], seeds=1, arms=["transfer"])
    assert study.run(runs, _samples(), bare) == 1


def test_members_are_taken_by_their_shape(monkeypatch, weights_dir):
    monkeypatch.setenv("XSOILSM_WEIGHTS_DIR", str(weights_dir))
    trainer = NetworkTrainer.of_ensemble("DenseSM-E", [(3, 32), (1, 8)], **OPTIONS)
    assert trainer.initial[0]["out.weight"].shape == (1, 32)
    assert "dense_layers.2.linear3.weight" in trainer.initial[0]
    assert "dense_layers.1.linear1.weight" not in trainer.initial[1]
    with pytest.raises(ValueError, match="no member 7-7"):
        NetworkTrainer.of_ensemble("DenseSM-E", [(7, 7)])
