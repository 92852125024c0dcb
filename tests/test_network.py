"""DenseSM is the published network: names, sizes and outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xsoilsm.network import DenseSM
from xsoilsm.state import state_shapes

DEPTHS, WIDTHS = (1, 2, 3, 4, 5), (8, 16, 32, 64, 128)

depths = st.integers(1, 4)
widths = st.integers(1, 12)


def published(folder: Path, depth: int, width: int) -> dict[str, torch.Tensor]:
    file = folder / f"coarse_{depth}_{width}.pt"
    return torch.load(file, map_location="cpu", weights_only=True)


def inputs(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((n, 18), generator=generator), torch.rand((n, 3, 46), generator=generator)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_published_members_give_the_golden_outputs(
    weights_dir: Path, golden: dict[str, np.ndarray]
) -> None:
    snapshot, series = torch.tensor(golden["snapshot"]), torch.tensor(golden["series"])
    outputs = []
    for depth in DEPTHS:
        for width in WIDTHS:
            module = DenseSM(depth, width).eval()
            module.load_state_dict(published(weights_dir, depth, width))
            with torch.no_grad():
                outputs.append(module(snapshot, series).numpy())
    members = np.stack(outputs)
    np.testing.assert_allclose(members, golden["members"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(members.mean(axis=0), golden["mean"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(members.std(axis=0), golden["std"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("depth", "width"), [(1, 8), (3, 32), (5, 128)])
def test_published_state_dict_survives_unchanged(weights_dir: Path, depth: int, width: int) -> None:
    expected = published(weights_dir, depth, width)
    module = DenseSM(depth, width)
    module.load_state_dict(expected)
    found = module.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_numbers_of_trainable_parameters() -> None:
    assert count(DenseSM(1, 8)) == 5_361
    assert count(DenseSM(5, 128)) == 377_785
    assert sum(count(DenseSM(d, w)) for d in DEPTHS for w in WIDTHS) == 1_471_945


@given(depths, widths)
def test_names_and_shapes_need_no_torch(depth: int, width: int) -> None:
    state = DenseSM(depth, width).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert state_shapes(depth, width) == shapes


@given(depths, widths, st.integers(1, 6))
def test_any_depth_and_width_treats_samples_alone(depth: int, width: int, n: int) -> None:
    module = DenseSM(depth, width).eval()
    snapshot, series = inputs(n)
    with torch.no_grad():
        together = module(snapshot, series)
        alone = torch.cat([module(snapshot[i : i + 1], series[i : i + 1]) for i in range(n)])
        backwards = module(snapshot.flip(0), series.flip(0)).flip(0)
    assert together.shape == (n,)
    assert torch.isfinite(together).all()
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    torch.testing.assert_close(backwards, together, rtol=0, atol=1e-5)


def test_convolutions_follow_the_definition_step_by_step() -> None:
    """Plain loops in float64: replicated edges, means over 2, 2 and 4, 4, 3 values."""
    torch.manual_seed(1)
    block = DenseSM(1, 1).conv_block.double().eval()
    series = torch.rand((1, 3, 46), dtype=torch.float64)
    x = series[0].numpy()
    state = {name: tensor.numpy() for name, tensor in block.state_dict().items()}
    windows = {
        1: [(2 * i, 2 * i + 2) for i in range(23)],
        2: [(2 * i, 2 * i + 2) for i in range(11)],
        3: [(0, 4), (4, 8), (8, 11)],
    }
    for number, spans in windows.items():
        weight, bias = state[f"conv{number}.weight"], state[f"conv{number}.bias"]
        steps = x.shape[1]
        y = np.empty((len(bias), steps))
        for step in range(steps):
            near = np.clip(np.arange(step - 2, step + 3), 0, steps - 1)
            y[:, step] = bias + np.einsum("fck,ck->f", weight, x[:, near])
        y = np.maximum(y / np.sqrt(1 + 1e-5), 0)
        x = np.stack([y[:, a:b].mean(axis=1) for a, b in spans], axis=1)
    with torch.no_grad():
        found = block(series)[0].numpy()
    np.testing.assert_allclose(found, x.ravel(), rtol=1e-12)


def test_dropout_acts_in_training_only() -> None:
    module = DenseSM(2, 8)
    snapshot, series = inputs(16)
    with torch.no_grad():
        assert not torch.equal(module(snapshot, series), module(snapshot, series))
        module.eval()
        assert torch.equal(module(snapshot, series), module(snapshot, series))


def test_training_reaches_every_parameter_and_counts_batches() -> None:
    torch.manual_seed(0)
    module = DenseSM(2, 8)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for seed in range(3):
        optimiser.zero_grad()
        module(*inputs(32, seed)).square().mean().backward()
        optimiser.step()
    for name, parameter in module.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    assert module.norm.num_batches_tracked == 3


def test_nan_stays_with_its_sample() -> None:
    module = DenseSM(2, 8).eval()
    snapshot, series = inputs(4)
    snapshot[1, 3] = series[2, 0, 10] = torch.nan
    with torch.no_grad():
        found = module(snapshot, series)
    assert torch.isnan(found).tolist() == [False, True, True, False]


@pytest.mark.parametrize(("depth", "width"), [(0, 8), (1, 0), (-1, 8), (1.5, 8), ("1", 8)])
def test_impossible_sizes_are_refused(depth: object, width: object) -> None:
    with pytest.raises(ValueError, match="whole number of at least 1"):
        DenseSM(depth, width)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("snapshot", "series"),
    [((4, 15), (4, 3, 46)), ((4, 18), (4, 46, 3)), ((4, 18), (5, 3, 46)), ((4, 18), (4, 3, 45))],
)
def test_other_shapes_are_refused(snapshot: tuple[int, ...], series: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(n, 18\) and \(n, 3, 46\)"):
        DenseSM(1, 8)(torch.zeros(snapshot), torch.zeros(series))


def test_state_dicts_load_strictly() -> None:
    state = DenseSM(2, 8).state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        DenseSM(1, 8).load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        DenseSM(3, 8).load_state_dict(state)
