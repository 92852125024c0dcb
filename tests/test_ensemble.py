"""Ensembles: cards, names, digests, saving, and refusing what is not on the card."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from dask.base import tokenize
from hypothesis import given, settings
from hypothesis import strategies as st

from xsoilsm import ensemble as module_under_test
from xsoilsm.card import EnsembleCard, read_card
from xsoilsm.catalog import CatalogError, catalogs_dir
from xsoilsm.contract import get_contract
from xsoilsm.ensemble import (
    Ensemble,
    WeightsError,
    get_ensemble,
    install_ensemble,
    list_ensembles,
    save_ensemble,
)
from xsoilsm.network import DenseSM

PUBLISHED = "densesm-e-coarse"
SHIPPED = "twin-demo"


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own cache and data folder, and a process that has loaded nothing."""
    monkeypatch.setenv("XSOILSM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XSOILSM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(module_under_test, "_loaded", {})


def content(**changes: Any) -> dict[str, Any]:
    """Card of a small ensemble of one's own, as plain data."""
    card = {
        "schema_version": 1,
        "name": "mine",
        "family": "DenseSM-E",
        "resolution": "1km",
        "contract": "paper",
        "members": [
            {"depth": 1, "width": 8, "file": "1_8.safetensors", "rmse": 0.05},
            {"depth": 2, "width": 4, "file": "2_4.safetensors"},
        ],
        "licence": {"spdx": "CC-BY-4.0", "statement": "Attribution."},
        "citation": {"text": "A report."},
        "training": {"kind": "transfer", "settings": {"epochs": 2, "learning_rate": 1e-5}},
    }
    return card | changes


def draft(**changes: Any) -> EnsembleCard:
    return EnsembleCard.model_validate(content(**changes))


def states(card: EnsembleCard, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    return [DenseSM(m.depth, m.width).state_dict() for m in card.members]


def saved(folder: Path | None = None, seed: int = 0, **changes: Any) -> Ensemble:
    card = draft(**changes)
    return save_ensemble(card, states(card, seed), folder)


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


# The published card


def test_published_card_holds_hashes_and_addresses(shared: Path) -> None:
    card = read_card(catalogs_dir() / "ensembles" / f"{PUBLISHED}.yaml")
    sums = (shared / "weights" / "SHA256SUMS").read_text().split()
    expected = dict(zip(sums[1::2], sums[::2], strict=True))
    assert {m.file: m.sha256 for m in card.members} == expected
    assert [(m.depth, m.width) for m in card.members] == [
        (d, w) for d in range(1, 6) for w in (8, 16, 32, 64, 128)
    ]
    assert card.source is not None
    assert card.source.address("coarse_5_128.pt") == (
        "https://raw.githubusercontent.com/EOV-Solutions/Transfer-DenseSM-E_pack/"
        "c9638d9471681359c1fc242b46fafb918569281b/pretrained_models/DenseSM_9km/coarse_5_128.pt"
    )
    assert card.licence.spdx is None
    assert "states a licence" in card.licence.statement
    assert card.citation.doi == "10.1016/j.rse.2023.113944"
    rmse = [m.rmse for m in card.members]
    assert (rmse[0], rmse[4], rmse[20], rmse[-1]) == (0.0412, 0.0335, 0.0377, 0.0322)
    assert (card.resolution, card.training.samples) == ("9km", 383_596)


def test_published_ensemble_gives_the_golden_mean_and_spread(
    weights_dir: Path, golden: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSOILSM_WEIGHTS_DIR", str(weights_dir))
    snapshot, series = torch.tensor(golden["snapshot"]), torch.tensor(golden["series"])
    modules = get_ensemble("DenseSM-E").modules()
    assert not any(m.training for m in modules)
    with torch.no_grad():
        members = np.stack([m(snapshot, series).numpy() for m in modules])
    np.testing.assert_allclose(members, golden["members"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(members.mean(axis=0), golden["mean"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(members.std(axis=0), golden["std"], rtol=0, atol=1e-5)


def test_first_use_without_weights_says_what_to_run() -> None:
    ensemble = get_ensemble("DenseSM-E")
    for use in (ensemble.require_weights, ensemble.state_dicts, ensemble.modules):
        with pytest.raises(WeightsError) as caught:
            use()
        message = str(caught.value)
        assert f"`xsoilsm weights fetch {PUBLISHED}`" in message
        assert f"`xsoilsm weights import PATH {PUBLISHED}`" in message
        assert "\n" not in message


# Cards


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licens": "MIT"}, "licens: Extra inputs are not permitted"),
        ({"schema_version": 2}, "schema_version"),
        ({"resolution": "10m"}, "unknown resolution '10m'"),
        ({"name": "../mine"}, "name"),
        ({"members": []}, "members"),
        ({"members": [{"depth": 0, "width": 8, "file": "a.safetensors"}]}, "members.0.depth"),
        ({"members": [{"depth": 1, "width": "8", "file": "a.safetensors"}]}, "members.0.width"),
        ({"members": [{"depth": 1, "width": 8, "file": "../a.pt"}]}, "members.0.file"),
        ({"members": [{"depth": 1, "width": 8, "file": "a.pkl"}]}, "members.0.file"),
        (
            {"members": [{"depth": 1, "width": 8, "file": "a.pt", "sha256": "abc"}]},
            "members.0.sha256",
        ),
        (
            {
                "members": [
                    {"depth": 1, "width": 8, "file": "a.pt"},
                    {"depth": 1, "width": 8, "file": "a.safetensors"},
                ]
            },
            "share a name: a",
        ),
        (
            {
                "source": {
                    "repository": "a/b",
                    "commit": "0" * 40,
                    "folder": "c",
                    "url": "https://example.org/{file}",
                }
            },
            "these members need `sha256`: 1_8.safetensors, 2_4.safetensors",
        ),
        (
            {
                "source": {
                    "repository": "a/b",
                    "commit": "0" * 40,
                    "folder": "c",
                    "url": "https://example.org/{branch}/{file}",
                }
            },
            "source.url",
        ),
    ],
)
def test_faulty_cards_name_the_fault(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(content(**changes)))
    with pytest.raises(CatalogError, match="not a valid ensemble card") as caught:
        get_ensemble(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "\x00"])
def test_files_that_are_no_cards_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(text)
    with pytest.raises(CatalogError, match=r"card\.yaml"):
        get_ensemble(path)


def test_unknown_contract_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    rewrite(tmp_path / "a", contract="guess")
    with pytest.raises(CatalogError, match="unknown feature contract 'guess'"):
        get_ensemble(tmp_path / "a")


def test_contract_of_another_size_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    contract = get_contract("paper").to_dict()
    rewrite(tmp_path / "a", contract=contract | {"snapshot": contract["snapshot"][:-1]})
    with pytest.raises(WeightsError, match="gives 17 features"):
        get_ensemble(tmp_path / "a")


def test_digest_follows_what_decides_a_number() -> None:
    members = [{"depth": 1, "width": 8, "file": "a.safetensors", "sha256": "0" * 64}]
    base = draft(members=members)
    same = [draft(members=members, title="x", created="2024-01-01")]
    other = [
        draft(members=members, name="b"),
        draft(members=members, resolution="100m"),
        draft(members=members, contract="published-coarse"),
        draft(members=[members[0] | {"sha256": "1" * 64}]),
        draft(members=[members[0] | {"width": 16}]),
    ]
    assert {card.digest for card in same} == {base.digest}
    digests = {card.digest for card in other}
    assert len(digests | {base.digest}) == 1 + len(other)


def test_named_and_embedded_contract_are_one() -> None:
    members = [{"depth": 1, "width": 8, "file": "a.safetensors", "sha256": "0" * 64}]
    embedded = draft(members=members, contract=get_contract("paper").to_dict())
    assert embedded.digest == draft(members=members).digest


# The object


def test_ensemble_is_light_and_keeps_its_token(tmp_path: Path) -> None:
    ensemble = get_ensemble("DenseSM-E")
    text = pickle.dumps(ensemble)
    assert len(text) < 50_000
    back = pickle.loads(text)
    assert back == ensemble
    assert hash(back) == hash(ensemble)
    assert tokenize(back) == tokenize(ensemble)
    other = saved(tmp_path / "a")
    assert other != ensemble
    assert tokenize(other) != tokenize(ensemble)


def test_token_is_the_same_in_another_process() -> None:
    code = (
        "from dask.base import tokenize; from xsoilsm.ensemble import get_ensemble; import sys;"
        "print(tokenize(get_ensemble('DenseSM-E')));"
        "print([m for m in ('torch', 'rasterio', 'numba') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    token, heavy = run.stdout.splitlines()
    assert token == tokenize(get_ensemble("DenseSM-E"))
    assert heavy == "[]"


def test_arrays_are_read_once_and_cannot_be_written(tmp_path: Path) -> None:
    ensemble = saved(tmp_path / "a")
    first = ensemble.state_dicts()
    for file in (tmp_path / "a").iterdir():
        file.unlink()
    again = ensemble.state_dicts()
    assert first[0]["out.bias"] is again[0]["out.bias"]
    with pytest.raises(ValueError, match="read-only"):
        first[0]["out.bias"][:] = 0
    first[0].clear()
    assert ensemble.state_dicts()[0]


def test_modules_belong_to_the_caller(tmp_path: Path) -> None:
    ensemble = saved(tmp_path / "a")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = ensemble.modules()[0]
    assert torch.equal(torch.rand(3), expected), "loading has drawn random numbers"
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    two = ensemble.modules()[0]
    assert all(p.requires_grad for p in two.parameters())
    assert two.conv_block.conv1.weight.abs().sum() > 0


# Saving


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6)), min_size=1, max_size=3))
def test_saved_ensemble_comes_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]]
) -> None:
    members = [
        {"depth": d, "width": w, "file": f"{i}.safetensors"} for i, (d, w) in enumerate(sizes)
    ]
    card = draft(members=members)
    given_states = states(card)
    folder = tmp_path_factory.mktemp("saved") / "a"
    written = save_ensemble(card, given_states, folder)
    back = get_ensemble(folder)
    assert back == written
    assert back.contract == get_contract("paper")
    for found, expected in zip(back.state_dicts(), given_states, strict=True):
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name].numpy()) for name in expected)
    names = {path.name for path in folder.parent.iterdir()}
    assert names == {"a"}, "something was left behind"


def test_saving_keeps_the_facts_and_embeds_the_contract(tmp_path: Path) -> None:
    saved(tmp_path / "a", title="Größe", simulated=True)
    card = read_card(tmp_path / "a" / "card.yaml")
    assert card.contract == get_contract("paper").to_dict()
    assert card.title == "Größe"
    assert card.simulated
    assert card.members[0].rmse == 0.05
    assert card.training.settings == {"epochs": 2, "learning_rate": 1e-5}


def test_an_ensemble_is_replaced_only_on_request(tmp_path: Path) -> None:
    first = saved(tmp_path / "a")
    card = draft()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_ensemble(card, states(card, 1), tmp_path / "a")
    assert get_ensemble(tmp_path / "a") == first
    second = save_ensemble(card, states(card, 1), tmp_path / "a", overwrite=True)
    assert get_ensemble(tmp_path / "a") == second != first
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["a"]


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "diary.txt").write_text("dear diary")
    card = draft()
    with pytest.raises(FileExistsError, match="holds no ensemble"):
        save_ensemble(card, states(card), tmp_path / "a", overwrite=True)
    assert (tmp_path / "a" / "diary.txt").read_text() == "dear diary"


def test_an_interrupt_leaves_the_old_ensemble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = saved(tmp_path / "a")
    write, written = module_under_test.write_file, []

    def interrupted(path: Path, data: bytes) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, data)

    monkeypatch.setattr(module_under_test, "write_file", interrupted)
    card = draft()
    with pytest.raises(KeyboardInterrupt):
        save_ensemble(card, states(card, 1), tmp_path / "a", overwrite=True)
    assert written
    assert get_ensemble(tmp_path / "a") == first
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_states_that_do_not_fit_are_not_saved(tmp_path: Path) -> None:
    card = draft()
    good = states(card)
    lacking = {name: t for name, t in good[0].items() if name != "norm.num_batches_tracked"}
    wrong = {
        "1 state dicts given for the 2": good[:1],
        "norm.num_batches_tracked is missing": [lacking, good[1]],
        "has shape": good[::-1],
        "extra is unknown": [good[0] | {"extra": torch.zeros(1)}, good[1]],
        "not finite": [good[0] | {"out.bias": torch.tensor([torch.nan])}, good[1]],
        "type float64": [good[0] | {"out.bias": torch.zeros(1).double()}, good[1]],
        "negative variances": [good[0] | {"norm.running_var": -torch.ones(30)}, good[1]],
    }
    for message, given_states in wrong.items():
        with pytest.raises(WeightsError, match=message):
            save_ensemble(card, given_states, tmp_path / "a")
    assert not list(tmp_path.iterdir())


# Files beside a card


def refused(folder: Path, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        get_ensemble(folder).state_dicts()


def test_changed_files_beside_a_card_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    file = tmp_path / "a" / "1_8.safetensors"
    original = file.read_bytes()
    flipped = bytearray(original)
    flipped[-3] ^= 1
    for data in (bytes(flipped), original[:-10], b""):
        file.write_bytes(data)
        refused(tmp_path / "a", "sha256")
    file.unlink()
    refused(tmp_path / "a", "missing")
    file.write_bytes(original)
    assert get_ensemble(tmp_path / "a").state_dicts()


def unhashed(folder: Path, file: str) -> None:
    """Card of one member 1-8 without a hash."""
    folder.mkdir()
    text = yaml.safe_dump(content(members=[{"depth": 1, "width": 8, "file": file}]))
    (folder / "card.yaml").write_text(text)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_pickles_with_code_are_refused_without_a_hash(tmp_path: Path) -> None:
    unhashed(tmp_path / "a", "m.pt")
    mark = tmp_path / "executed"
    state: dict[str, Any] = dict(DenseSM(1, 8).state_dict())
    torch.save(state | {"bomb": Bomb(mark)}, tmp_path / "a" / "m.pt")
    refused(tmp_path / "a", "not a plain state dict")
    (tmp_path / "a" / "m.pt").write_bytes(pickle.dumps(Bomb(mark)))
    refused(tmp_path / "a", "not a plain state dict")
    assert not mark.exists()
    pickle.loads((tmp_path / "a" / "m.pt").read_bytes())
    assert mark.exists(), "the file would not have done harm anyway"


def test_other_files_without_a_hash_are_refused(tmp_path: Path) -> None:
    unhashed(tmp_path / "a", "m.pt")
    file = tmp_path / "a" / "m.pt"
    torch.save(DenseSM(1, 8), file)
    refused(tmp_path / "a", "not a plain state dict")
    torch.save([1, 2], file)
    refused(tmp_path / "a", "not a plain state dict")
    torch.save(DenseSM(1, 16).state_dict(), file)
    refused(tmp_path / "a", "does not hold a DenseSM-1-8.*has shape")
    torch.save(DenseSM(1, 8).state_dict(), file)
    file.write_bytes(file.read_bytes()[:-2000])
    refused(tmp_path / "a", "not a plain state dict")
    unhashed(tmp_path / "b", "m.safetensors")
    (tmp_path / "b" / "m.safetensors").write_bytes(b"\xff" * 100)
    refused(tmp_path / "b", "not a valid safetensors file")


def test_files_without_a_hash_still_decide_the_digest(tmp_path: Path) -> None:
    unhashed(tmp_path / "a", "m.pt")
    torch.manual_seed(0)
    module = DenseSM(1, 8)
    torch.save(module.state_dict(), tmp_path / "a" / "m.pt")
    first = get_ensemble(tmp_path / "a")
    assert np.array_equal(first.state_dicts()[0]["out.weight"], module.out.weight.detach().numpy())
    torch.save(DenseSM(1, 8).state_dict(), tmp_path / "a" / "m.pt")
    assert get_ensemble(tmp_path / "a") != first


# Names


def test_names_families_and_paths(tmp_path: Path) -> None:
    coarse = get_ensemble("DenseSM-E")
    assert (coarse.name, coarse.resolution) == (PUBLISHED, "9km")
    assert get_ensemble("densesm-e") == get_ensemble(PUBLISHED.upper()) == coarse
    assert get_ensemble("DenseSM-E", "100m") == coarse
    assert get_ensemble(coarse, "1km") is coarse
    mine = saved(tmp_path / "a")
    for path in (tmp_path / "a", str(tmp_path / "a"), tmp_path / "a" / "card.yaml"):
        assert get_ensemble(path) == mine


def test_unknown_names_list_the_known() -> None:
    saved(name="mine")
    with pytest.raises(CatalogError, match=f"'other'.*DenseSM-E, {PUBLISHED}, mine"):
        get_ensemble("other")
    with pytest.raises(ValueError, match="unknown resolution '2km'"):
        get_ensemble("DenseSM-E", "2km")


def test_a_tuned_ensemble_is_preferred_at_its_grid_as_soon_as_installed(tmp_path: Path) -> None:
    made = saved(tmp_path / "a", created="2024-05-01")
    assert get_ensemble("DenseSM-E", "1km").name == PUBLISHED
    installed = install_ensemble(tmp_path / "a")
    assert get_ensemble("DenseSM-E", "1km") == installed == made
    assert get_ensemble("mine") == installed
    assert get_ensemble("DenseSM-E", "100m").name == PUBLISHED
    assert get_ensemble("DenseSM-E").name == PUBLISHED
    saved(name="newer", created="2024-06-01", seed=1)
    assert get_ensemble("DenseSM-E", "1km").name == "newer"
    with pytest.raises(FileExistsError):
        install_ensemble(tmp_path / "a")


def test_ensembles_trained_on_simulated_data_must_be_asked_for() -> None:
    saved(name="pretend", simulated=True)
    assert get_ensemble("DenseSM-E", "1km").name == PUBLISHED
    assert get_ensemble("pretend", "1km").name == "pretend"
    saved(name="pretend-too", family="Dream", simulated=True)
    with pytest.raises(CatalogError, match=r"only .* simulated data.*pretend-too"):
        get_ensemble("Dream", "1km")


def test_broken_installed_cards_are_left_out_aloud(tmp_path: Path) -> None:
    saved(name="mine")
    rewrite(tmp_path / "data" / "ensembles" / "mine", colour="blue")
    with pytest.warns(UserWarning, match="left out.*colour"):
        assert list(list_ensembles()["name"]) == [PUBLISHED, SHIPPED]
    with pytest.warns(UserWarning, match="left out"):
        assert get_ensemble("DenseSM-E", "1km").name == PUBLISHED


def test_a_name_of_the_package_cannot_be_taken(tmp_path: Path) -> None:
    card = draft(name=PUBLISHED)
    with pytest.raises(CatalogError, match="comes with the package"):
        save_ensemble(card, states(card))
    saved(name="mine")
    rewrite(tmp_path / "data" / "ensembles" / "mine", name=PUBLISHED)
    with pytest.warns(UserWarning, match="exists already"):
        assert get_ensemble(PUBLISHED).card.source is not None


def test_table_of_ensembles() -> None:
    saved(name="mine")
    table = list_ensembles().set_index("name")
    assert list(table.index) == [PUBLISHED, SHIPPED, "mine"]
    assert table.loc["mine", ["members", "weights", "licence"]].tolist() == [2, 2, "CC-BY-4.0"]
    assert table.loc[PUBLISHED, ["members", "weights"]].tolist() == [25, 0]
    assert table.loc[PUBLISHED, "licence"] == "none stated"
    assert table["resolution"].tolist() == ["9km", "9km", "1km"]
    assert all(Path(path).is_file() for path in table["path"])
