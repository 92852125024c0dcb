"""The ensemble that comes with the package: its card, what it retrieves, how it is made."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from synthetic import map_cube, sample_cube

import xsoilsm
from xsoilsm.catalog import CatalogError, catalogs_dir
from xsoilsm.contract import get_contract
from xsoilsm.demo import DEMO_SHAPES, train_demo_networks
from xsoilsm.ensemble import save_ensemble
from xsoilsm.result import is_simulated
from xsoilsm.retrieval import ResolutionWarning, SimulationWarning
from xsoilsm.training import DEFAULT_SHAPES
from xsoilsm.viewing.pictures import explore, plot_map

NAME = "twin-demo"
FOLDER = catalogs_dir() / "ensembles" / NAME


def test_files_are_those_of_the_card() -> None:
    card = xsoilsm.get_ensemble(NAME).card
    files = {file.name for file in FOLDER.iterdir()}
    assert files == {"card.yaml", *(member.file for member in card.members)}
    for member in card.members:
        content = (FOLDER / member.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == member.sha256
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 2.5e6
    assert [(m.depth, m.width) for m in card.members] == list(DEMO_SHAPES)
    assert set(DEMO_SHAPES) == {shape for shape in DEFAULT_SHAPES if shape[1] <= 64}


def test_card_says_what_it_is_and_how_it_was_made() -> None:
    ensemble = xsoilsm.get_ensemble(NAME)
    card = ensemble.card
    assert card.simulated
    assert card.title.startswith("SIMULATED, for demonstration only")
    assert "demonstration" in card.training.note
    assert "size 'small' with seed 0" in card.training.note
    assert card.licence.spdx == "Apache-2.0"
    assert card.training.settings["epochs"] == 30
    assert len(card.training.data["samples"]) == 64
    assert ensemble.resolution == "9km"
    assert ensemble.contract.digest == get_contract("paper").digest
    # Wider and deeper networks fit better, as the published ones do.
    assert card.members[0].rmse > card.members[-1].rmse


def test_it_stands_for_nothing_but_its_name() -> None:
    assert xsoilsm.get_ensemble("DenseSM-E").name != NAME
    assert xsoilsm.get_ensemble("DenseSM-E", "1km").name != NAME
    row = xsoilsm.list_ensembles().set_index("name").loc[NAME]
    assert row["simulated"]
    assert row["weights"] == row["members"] == 20
    ensemble = xsoilsm.get_ensemble(NAME)
    with pytest.raises(CatalogError, match="comes with the package"):
        save_ensemble(ensemble.card, ensemble.state_dicts())


GOLDEN = {
    "mean": [-0.00695, 0.085804, 0.349728, 0.228219, 0.008711, 0.2048],
    "std": [0.031155, 0.010739, 0.038277, 0.036899, 0.0342, 0.03434],
}


def test_retrievals_are_stable() -> None:
    cube = sample_cube(6, seed=3).assign_attrs(simulated=1)
    found = cube.sm.retrieve(NAME, mask=None)
    np.testing.assert_allclose(found["soil_moisture"], GOLDEN["mean"], atol=1e-5)
    np.testing.assert_allclose(found["soil_moisture_std"], GOLDEN["std"], atol=1e-5)
    again = cube.sm.retrieve(NAME, mask=None)
    assert found.identical(again)


def test_real_inputs_are_warned_of_and_the_result_says_so() -> None:
    cube = sample_cube(3)
    with pytest.warns(SimulationWarning, match="say nothing of the soil"):
        found = cube.sm.retrieve(NAME)
    assert "nothing says that the inputs are simulated" in found.attrs["simulation_note"]
    assert "trained on simulated data" in found.attrs["title"]
    assert "simulated landscape" not in found.attrs["title"]
    # Nothing that is measured with it counts as a statement about the Earth.
    assert is_simulated(found)


@pytest.mark.parametrize(
    "said",
    [{"simulated": 1}, {"simulated": "True"}, {"source": "Virtual landscape (simulated)"}],
)
def test_simulated_inputs_are_not_warned_of(said: dict[str, object]) -> None:
    cube = map_cube((2, 2), times=("2020-04-02T06:20",)).assign_attrs(said)
    with pytest.warns(ResolutionWarning):  # alone: others are errors
        found = cube.sm.retrieve(NAME)
    assert "the inputs are simulated" in found.attrs["simulation_note"]
    assert "(simulated landscape, demonstration networks" in found.attrs["title"]


def test_pictures_say_it() -> None:
    cube = map_cube((2, 2), times=("2020-04-02T06:20",)).assign_attrs(simulated=1)
    with pytest.warns(ResolutionWarning):
        found = cube.sm.retrieve(NAME).compute()
    title = plot_map(found).get_title()
    assert "demonstration networks trained on simulated data" in title
    pytest.importorskip("folium")
    page = explore(found, tiles=None).get_root().render()
    assert "demonstration networks trained on simulated data" in page


@pytest.mark.filterwarnings("ignore::xsoilsm.training.TrainingWarning")  # two epochs are few
def test_the_command_makes_the_same_networks_again(tmp_path: Path) -> None:
    small = {"size": "tiny", "epochs": 2, "batch": 16, "threads": 1, "workers": 1}
    one = train_demo_networks(tmp_path / "twin", tmp_path / "one", **small)
    other = train_demo_networks(tmp_path / "twin", tmp_path / "other", **small)
    assert one.digest == other.digest
    shipped = xsoilsm.get_ensemble(NAME).card
    for fact in ("name", "family", "title", "contract", "licence", "citation", "simulated"):
        assert getattr(one.card, fact) == getattr(shipped, fact), fact
    assert set(one.card.training.settings) == set(shipped.training.settings)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "one", "one.csv", "other", "other.csv", "twin",
    ]  # fmt: skip
