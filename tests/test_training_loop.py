"""Training: repeatable, resumable, refusing what it should, and learning something."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from synthetic import sample_cube
from training_data import plain_networks, samples, varied_states

from xsoilsm.contract import get_contract
from xsoilsm.cube import CubeError
from xsoilsm.features import compute_features
from xsoilsm.samples import encode_samples, write_samples
from xsoilsm.training import (
    Recipe,
    Samples,
    Trained,
    TrainingError,
    TrainingWarning,
    predict_members,
    train_members,
)
from xsoilsm.training.loop import _Training
from xsoilsm.training.start import random_states

SHAPES = [(1, 4), (2, 4), (1, 8)]
SHORT = {"epochs": 4, "averaged_epochs": 2, "batch": 32}

pytestmark = pytest.mark.filterwarnings("ignore::xsoilsm.training.TrainingWarning")


def trained(recipe: Recipe | None = None, data: Samples | None = None, **changes: Any) -> Trained:
    return train_members(
        data or samples(), SHAPES, recipe or Recipe.benchmark(**SHORT), threads=1, **changes
    )


def assert_same(one: Trained, other: Trained) -> None:
    """Bit for bit."""
    for a, b in zip(one.states, other.states, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].tobytes() == b[name].tobytes(), name


def differ(one: Trained, other: Trained) -> bool:
    return one.states[0]["out.weight"].tobytes() != other.states[0]["out.weight"].tobytes()


def test_recipes_and_samples_need_no_torch() -> None:
    code = "import sys, xsoilsm.training as t; t.Recipe.coarse(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What comes out


def test_training_learns_and_says_how_well() -> None:
    data = samples(160)
    recipe = Recipe.benchmark(epochs=30, batch=32)
    result = trained(recipe, data)
    constant = float(np.std(data.labels))
    predictions = predict_members(result.states, data, threads=1)
    rmse = np.sqrt(np.mean((predictions - data.labels) ** 2, axis=1))
    np.testing.assert_allclose(result.rmse, rmse, rtol=1e-4)
    assert (rmse < 0.7 * constant).all()
    assert result.history.shape == (30, 3, 5)
    assert (result.history[-1, :, 1] < result.history[0, :, 1]).all()
    assert np.isnan(result.validation_rmse).all()


def test_predictions_are_those_of_the_modules() -> None:
    data, states = samples(33), varied_states(SHAPES)
    found = predict_members(states, data, threads=1)
    for row, network in zip(found, plain_networks(states, SHAPES), strict=True):
        network.eval().conv_block.dropout = torch.nn.Identity()
        with torch.no_grad():
            plain = network(torch.from_numpy(data.snapshot), torch.from_numpy(data.series))
        np.testing.assert_allclose(row, plain, rtol=0, atol=2e-6)


def test_result_is_the_mean_of_the_last_epochs() -> None:
    ends = [
        trained(Recipe.benchmark(epochs=epochs, averaged_epochs=1, batch=32)) for epochs in (3, 4)
    ]
    mean = trained(Recipe.benchmark(epochs=4, averaged_epochs=2, batch=32))
    for i, state in enumerate(mean.states):
        for name, array in state.items():
            expected = (ends[0].states[i][name] + ends[1].states[i][name]) / 2
            np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    counters = {n: float(a) for n, a in mean.states[0].items() if "num_batches" in n}
    assert set(counters.values()) == {(9 + 12) / 2}  # 96 samples are 3 batches


def test_seed_decides_about_everything() -> None:
    first, again = trained(), trained()
    assert_same(first, again)
    np.testing.assert_array_equal(first.history[..., :4], again.history[..., :4])
    assert differ(first, trained(Recipe.benchmark(**SHORT, seed=1)))


def test_threads_and_companions_do_not_change_a_network() -> None:
    wide = [*SHAPES, (2, 8), (1, 16)]
    alone = train_members(samples(), wide, Recipe.benchmark(**SHORT), threads=1)
    shared = train_members(samples(), wide, Recipe.benchmark(**SHORT), threads=2)
    assert_same(alone, shared)
    few = train_members(samples(), wide[:1], Recipe.benchmark(**SHORT), threads=1)
    for name, array in few.states[0].items():
        np.testing.assert_allclose(array, alone.states[0][name], atol=2e-2, err_msg=name)


def test_batches_hold_every_sample_once_and_never_a_single_one() -> None:
    for count in (64, 65, 66, 95):
        training = _Training(
            samples(count), SHAPES, Recipe.benchmark(**SHORT), None, None, None, "cpu", 1
        )
        orders = [np.concatenate([b[0] for b in training.batches(e)]) for e in (0, 1)]
        assert all(len(b[0]) >= 2 for b in training.batches(0))
        assert all(sorted(order) == list(range(count)) for order in orders)
        assert not np.array_equal(*orders)


def test_balanced_drawing_gives_sites_equal_weight() -> None:
    sites = np.repeat([0, 1], [90, 10])
    recipe = Recipe.benchmark(**SHORT, balance="site")
    data = samples(100, sites=sites)
    training = _Training(data, SHAPES, recipe, None, None, None, "cpu", 1)
    drawn = np.concatenate([b[0] for epoch in range(20) for b in training.batches(epoch)])
    assert abs(np.mean(sites[drawn] == 1) - 0.5) < 0.05


def test_coarse_training_holds_back_a_tenth() -> None:
    result = trained(Recipe.coarse(**SHORT), samples(100, "9km"))
    assert result.samples == 90
    assert len(set(result.validation_index)) == 10
    assert np.isfinite(result.history[:, :, 2]).all()
    part = samples(100, "9km").take(result.validation_index)
    error = predict_members(result.states, part, threads=1) - part.labels
    np.testing.assert_allclose(result.validation_rmse, np.sqrt(np.mean(error**2, 1)), rtol=1e-4)


# Interruption


def test_resumed_training_ends_bit_for_bit_in_the_same_weights(tmp_path: Path) -> None:
    whole = trained(checkpoint=None)
    path = tmp_path / "state.safetensors"

    def stop(state: float | str) -> None:
        if state == 0.75:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(checkpoint=path, checkpoint_seconds=0, progress=stop, log=tmp_path / "log.csv")
    assert path.is_file()
    resumed = trained(checkpoint=path, checkpoint_seconds=0, log=tmp_path / "log.csv")
    assert_same(whole, resumed)
    np.testing.assert_array_equal(whole.history[..., :4], resumed.history[..., :4])
    log = pd.read_csv(tmp_path / "log.csv")
    assert list(log["epoch"]) == list(np.repeat([1, 2, 3, 4], 3))
    assert list(log["member"][:3]) == ["1-4", "2-4", "1-8"]
    assert_same(whole, trained(checkpoint=path))  # nothing is left to do
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["log.csv", "state.safetensors"]


CHILD = """
import sys
from pathlib import Path
from training_data import samples
from xsoilsm.training import Recipe, train_members
recipe = Recipe.benchmark(epochs=60, averaged_epochs=50, batch=32)
train_members(samples(), [(1, 4)], recipe, threads=1, checkpoint=sys.argv[1], checkpoint_seconds=0)
"""


def test_training_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], env=environment)
    try:
        deadline = time.monotonic() + 120
        while not path.exists():
            assert child.poll() is None, "the child ended by itself"
            assert time.monotonic() < deadline, "no checkpoint within two minutes"
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL, "the child was too fast to be killed"
    recipe = Recipe.benchmark(epochs=60, averaged_epochs=50, batch=32)
    starts: list[float | str] = []
    resumed = train_members(
        samples(), [(1, 4)], recipe, threads=1, checkpoint=path, progress=starts.append
    )
    assert 0 < len(starts) < 2 * 60, "the training began anew"
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    assert_same(resumed, train_members(samples(), [(1, 4)], recipe, threads=1))


def test_checkpoints_of_other_trainings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    trained(checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="differs in recipe"):
        trained(Recipe.benchmark(**SHORT, seed=5), checkpoint=path)
    with pytest.raises(ValueError, match="differs in samples"):
        trained(data=samples(97), checkpoint=path)
    assert path.read_bytes() == before
    path.write_bytes(before[: len(before) // 2])
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        trained(checkpoint=path)
    assert len(path.read_bytes()) == len(before) // 2


def test_checkpoints_of_other_stacks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    trained(checkpoint=path)
    with pytest.raises(ValueError, match="stacked in another way"):
        train_members(samples(), SHAPES, Recipe.benchmark(**SHORT), threads=3, checkpoint=path)


# Transfer, adaptation and switches


@pytest.fixture(scope="module")
def base() -> list[dict[str, np.ndarray]]:
    return random_states(SHAPES, 7)


FINE = {"epochs": 2, "batch": 32, "learning_rate": 1e-3}


def test_transfer_starts_from_the_base(base: list[Any]) -> None:
    still = trained(Recipe.transfer(**FINE | {"learning_rate": 0.0}), initial=base)
    moved = trained(Recipe.transfer(**FINE), initial=base)
    for i, state in enumerate(still.states):
        for name, array in state.items():
            if "running" not in name and "num_batches" not in name:
                np.testing.assert_array_equal(array, base[i][name], err_msg=name)
    assert differ(still, moved)


def test_coarse_samples_are_mixed_in(base: list[Any]) -> None:
    coarse = samples(200, "9km", seed=1)
    recipe = Recipe.transfer(**FINE, coarse_share=1.0)
    assert trained(recipe, initial=base, coarse=coarse).samples == 2 * 96


def test_frozen_batch_norm_keeps_its_statistics(base: list[Any]) -> None:
    result = trained(Recipe.transfer(**FINE, batch_norm="frozen"), initial=base)
    for state, start in zip(result.states, base, strict=True):
        for name, array in state.items():
            if "running" in name:
                np.testing.assert_allclose(array, start[name], atol=1e-6, err_msg=name)


def test_target_statistics_are_those_of_the_target(base: list[Any]) -> None:
    target = samples(96, seed=5, labels=None)
    recipe = Recipe.transfer(**FINE, batch_norm="target")
    result = trained(recipe, initial=base, target=target)
    found = result.states[0]["norm.running_mean"][:18]
    np.testing.assert_allclose(found, target.snapshot.mean(axis=0), atol=1e-5)


def test_target_statistics_span_sites_whose_samples_lie_together(base: list[Any]) -> None:
    few = samples(8, seed=5, labels=None)
    target = few.take(np.repeat(np.arange(8), 48))  # eight sites where nothing ever changes
    result = trained(Recipe.transfer(**FINE, batch_norm="target"), initial=base, target=target)
    found = result.states[0]["norm.running_var"][:18]
    np.testing.assert_allclose(found, few.snapshot.var(axis=0), rtol=0.1)


def test_bias_correction_leaves_no_bias(base: list[Any]) -> None:
    data = samples()
    for correct, limit in ((True, 1e-6), (False, None)):
        recipe = Recipe.transfer(**FINE, correct_bias=correct)
        result = trained(recipe, data, initial=base)
        bias = np.abs((predict_members(result.states, data, threads=1) - data.labels).mean(axis=1))
        assert (bias < limit).all() if limit else (bias > 1e-3).all()


@pytest.mark.parametrize("distance", ["coral", "mmd"])
def test_adaptation_brings_features_together(base: list[Any], distance: str) -> None:
    data, coarse = samples(), samples(96, "9km", seed=2)
    target = samples(96, seed=3, labels=None)
    object.__setattr__(target, "snapshot", (target.snapshot**3).astype(np.float32))
    found = []
    for weight in (0.0, 50.0):
        recipe = Recipe.adaptation(epochs=8, batch=32, distance=distance, beta=weight, loss="rmse")
        training = _Training(data, SHAPES, recipe, base, coarse, target, "cpu", 1)
        beta = training._automatic_beta(training.target)  # grows as the distance shrinks
        assert (beta > 0).all()
        result = trained(recipe, data, initial=base, coarse=coarse, target=target)
        again = _Training(data, SHAPES, recipe, result.states, coarse, target, "cpu", 1)
        loss = np.sqrt(np.mean((predict_members(result.states, data) - data.labels) ** 2, axis=1))
        found.append(loss / again._automatic_beta(again.target))
    assert (found[1] < found[0]).all()


def test_automatic_beta_and_coarse_term_join_the_loss(base: list[Any]) -> None:
    data, coarse = samples(), samples(96, "9km", seed=2)
    target = samples(96, seed=3, labels=None)
    result = trained(
        Recipe.adaptation(epochs=2, batch=32), data, initial=base, coarse=coarse, target=target
    )
    assert np.isfinite(result.history[..., 0]).all()
    assert differ(
        result,
        trained(
            Recipe.adaptation(epochs=2, batch=32, alpha=0.9),
            data,
            initial=base,
            coarse=coarse,
            target=target,
        ),
    )


# Refusals


def test_divergence_is_an_error_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    states = random_states(SHAPES, 0)
    states[1]["out.weight"][:] = np.float32(3e38)
    path = tmp_path / "state.safetensors"
    with pytest.raises(TrainingError, match=r"1 of 3 networks diverged in epoch 1 \(2-4\)"):
        trained(Recipe.transfer(**FINE), initial=states, checkpoint=path, checkpoint_seconds=0)
    assert not path.exists()


@pytest.mark.filterwarnings("default::xsoilsm.training.TrainingWarning")
def test_invalid_predictions_are_reported() -> None:
    states = random_states(SHAPES, 0)
    states[2]["out.bias"][:] = 3
    with pytest.warns(TrainingWarning, match="100% of the predictions of network 1-8"):
        trained(Recipe.transfer(epochs=2, batch=32), initial=states)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.where(np.arange(96) == 5, np.nan, 0.2), "1 of 96 labels are not numbers.*sample 5"),
        (np.linspace(2, 45, 96), "reach 45.*percent: divide them by 100"),
        (np.linspace(-9999, 0.3, 96), "negative"),
        (np.full(96, 0.25), "all 96 labels are 0.25"),
        (np.zeros(95), "shape"),
        (["wet"] * 96, "not numbers"),
    ],
)
def test_labels_that_no_training_should_see_are_named(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        samples(labels=labels)


def test_inputs_that_do_not_fit_are_named(base: list[Any]) -> None:
    fine = Recipe.transfer(**FINE)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("20 training samples are fewer than one batch of 32", {"data": samples(20)}),
        ("no labels", {"data": samples(labels=None)}),
        ("starts from nothing", {"initial": base}),
        ("needs an ensemble to start from", {"recipe": fine}),
        ("not one of a DenseSM-1-4", {"recipe": fine, "initial": base[::-1]}),
        ("coarse training needs samples at 9km", {"recipe": Recipe.coarse(**SHORT)}),
        (
            "needs coarse samples",
            {"recipe": Recipe.transfer(**FINE, coarse_share=1.0), "initial": base},
        ),
        (
            "coarse samples are at 1km",
            {"recipe": fine, "initial": base, "coarse": samples()},
        ),
        (
            "under the contract 'published-coarse'",
            {
                "recipe": fine,
                "initial": base,
                "coarse": samples(res="9km", contract="published-coarse"),
            },
        ),
        (
            "needs target samples",
            {"recipe": Recipe.transfer(**FINE, batch_norm="target"), "initial": base},
        ),
        (
            "needs the site",
            {"recipe": Recipe.benchmark(**SHORT, balance="site"), "data": samples(sites=None)},
        ),
        ("unknown device", {"device": "tpu"}),
    ]
    for message, case in cases:
        with pytest.raises(ValueError, match=message):
            trained(**case)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch": 1}, "batch is 1"),
        ({"learning_rate": -1}, "learning_rate is -1"),
        ({"epochs": 2.5}, "whole number"),
        ({"loss": "mse"}, "loss is 'mse'"),
        ({"beta": -1.0}, "beta is -1"),
        ({"batch_norm": "frozen"}, "no statistics"),
        ({"epoch": 5}, "has no epoch"),
    ],
)
def test_recipes_refuse_what_makes_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.benchmark(**changes)


def test_recipes_are_those_of_the_paper() -> None:
    coarse, transfer, plain = Recipe.coarse(), Recipe.transfer(), Recipe.benchmark()
    assert (coarse.epochs, coarse.learning_rate, coarse.validation) == (100, 0.01, 0.1)
    assert (transfer.epochs, transfer.learning_rate, transfer.validation) == (1000, 1e-5, 0)
    assert (plain.epochs, plain.learning_rate) == (100, 0.01)
    for recipe in (coarse, transfer, plain):
        assert (recipe.batch, recipe.averaged_epochs, recipe.loss) == (128, 10, "rmse")
        assert (recipe.betas, recipe.epsilon) == ((0.9, 0.999), 1e-8)
        switches = (recipe.distance, recipe.balance, recipe.correct_bias, recipe.match_quantiles)
        assert switches == (None, None, False, False)


# Samples from cubes


def labelled_cube(n: int = 12) -> xr.Dataset:
    cube = sample_cube(n)
    truth = np.linspace(0.05, 0.4, n, dtype=np.float32)
    cube["soil_moisture"] = ("sample", truth, {"units": "m3 m-3"})
    return cube.assign_coords(station=("sample", np.arange(n) // 3))


def test_samples_come_from_cubes_and_from_features() -> None:
    cube = labelled_cube()
    found = Samples.of_cube(cube, "paper")
    features = compute_features(cube.drop_vars("soil_moisture"), "paper")
    same = Samples.of_arrays(features, cube["soil_moisture"], sites=cube["station"])
    assert found.digest == same.digest
    assert found.digest != Samples.of_cube(cube, "published-coarse").digest
    assert (found.resolution, found.contract.digest) == ("1km", get_contract("paper").digest)
    assert len(Samples.of_cube(cube, "paper", label=None)) == 12


def test_samples_are_read_from_files(tmp_path: Path) -> None:
    cube = labelled_cube()
    cube.to_zarr(tmp_path / "samples.zarr", zarr_format=2)
    found = Samples.read(tmp_path / "samples.zarr", "paper")
    assert found.digest == Samples.of_cube(cube, "paper").digest
    with pytest.raises(CubeError, match="cannot read a cube"):
        Samples.read(tmp_path / "nothing.zarr", "paper")


def test_samples_are_read_from_tables(tmp_path: Path) -> None:
    cube = labelled_cube()
    table = encode_samples(cube, "paper").assign_attrs(resolution="500m")
    names = {name: ("sample", ["a"] * 12) for name in ("network", "land_cover", "climate")}
    cells = {"row": ("sample", np.arange(12) // 4), "column": ("sample", np.arange(12) // 2)}
    table = table.assign_coords(names | cells)
    path = write_samples(table, tmp_path / "samples.parquet")
    found = Samples.read(path)
    assert (len(found), found.resolution, found.contract.name) == (12, "500m", "paper")
    assert found.sites is not None
    assert len(set(found.sites)) == 6
    np.testing.assert_array_equal(found.snapshot, Samples.of_cube(cube, "paper").snapshot)
    with pytest.raises(ValueError, match="is not that of 'published-coarse'"):
        Samples.read(path, "published-coarse")


def test_cubes_that_hold_no_samples_are_named() -> None:
    cube = labelled_cube()
    percent = cube.assign(soil_moisture=cube["soil_moisture"].assign_attrs(units="%"))
    with pytest.raises(CubeError, match="divide it by 100"):
        Samples.of_cube(percent, "paper")
    with pytest.raises(CubeError, match="no variable 'soil_moisture'"):
        Samples.of_cube(cube.drop_vars("soil_moisture"), "paper")
    with pytest.raises(CubeError, match="no variable 'network'"):
        Samples.of_cube(cube, "paper", site="network")
    features = compute_features(cube.drop_vars("soil_moisture"), "published-coarse")
    with pytest.raises(ValueError, match="is not that of 'paper'"):
        Samples.of_arrays(features, cube["soil_moisture"], contract="paper")
    gap = cube.assign(sand=cube["sand"].where(cube["station"] > 0))
    with pytest.raises(ValueError, match="3 of 12 samples lack an input"):
        Samples.of_cube(gap, "paper")
