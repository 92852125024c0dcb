"""Stacked training equals training one network after another, forward, backward and in steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_data import plain_networks, samples, varied_states

from xsoilsm.training.fleet import Fleet, plan_stacks
from xsoilsm.training.layout import StackLayout
from xsoilsm.training.recipe import Recipe
from xsoilsm.training.stacked import Batch, Stack
from xsoilsm.training.start import random_states

SHAPES = [(1, 8), (3, 8), (2, 8)]
MIXED = [(1, 4), (3, 8), (2, 6)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stack_of(
    shapes: list[tuple[int, int]], seed: int = 0, at_once: bool = False
) -> tuple[Stack, list[Any]]:
    states = varied_states(shapes, seed)
    layout = StackLayout(shapes)
    seeds = list(range(len(shapes)))
    cpu = torch.device("cpu")
    return Stack(layout, *layout.load(states), cpu, seeds, at_once=at_once), states


def tensors(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    data = samples(n, seed=seed)
    return tuple(torch.from_numpy(a) for a in (data.snapshot, data.series, data.labels))  # type: ignore[return-value]


def give_masks(network: Any, stack: Stack, row: int, n: int, step: int) -> None:
    """Let a plain network drop what the stack drops."""
    first, second, third = (mask[row].to(network.out.weight.dtype) for mask in stack.kept(n, step))
    dropped = second[:1]  # stands for the 23rd position, which pooling leaves out
    network.conv_block.dropout.masks = [
        first.permute(2, 0, 1),
        torch.cat([second, dropped]).permute(2, 1, 0),
        third.permute(2, 1, 0),
    ]


def before_norm(name: str) -> bool:
    """Biases that a batch norm subtracts again: their gradients are zero but for rounding."""
    return (
        name.endswith("bias")
        and (".conv" in name or name.startswith("dense_layers"))
        and ("bn" not in name)
    )


@pytest.mark.parametrize("shapes", [SHAPES, MIXED, [(2, 16)]])
def test_state_dicts_survive_the_layout(shapes: list[tuple[int, int]]) -> None:
    states = random_states(shapes, 3)
    rng = np.random.default_rng(0)
    for state in states:
        for name in state:
            state[name] = rng.random(state[name].shape).astype(np.float32)
    layout = StackLayout(shapes)
    back = layout.export(*layout.load(states), states)
    for one, other in zip(states, back, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(other[name], one[name], rtol=0, atol=2e-7, err_msg=name)


@pytest.mark.parametrize("n", [16, 37])
@pytest.mark.parametrize("shapes", [SHAPES, MIXED])
@pytest.mark.parametrize("step", [None, 5])
def test_outputs_gradients_and_statistics_equal_those_of_modules(
    shapes: list[tuple[int, int]], n: int, step: int | None
) -> None:
    stack, states = stack_of(shapes)
    snapshot, series, labels = tensors(n)
    batch = Batch.of(snapshot, series.transpose(1, 2))
    with torch.no_grad():
        predictions = stack.forward(batch, step).predictions.clone()
        stack.backward(batch, 2 * (predictions - labels) / n)
    nothing = [{k: np.zeros_like(v) for k, v in state.items()} for state in states]
    layout = stack.layout
    gradients = layout.export(stack.gradient, torch.zeros_like(stack.running), nothing)
    running = layout.export(stack.trained, stack.running, states)
    for row, i in enumerate(layout.order):
        # In double precision: a rounded value that crosses the corner of a ReLU moves a gradient.
        network = plain_networks([states[i]], [shapes[i]])[0].double()
        if step is None:
            network.conv_block.dropout = torch.nn.Identity()
        else:
            give_masks(network, stack, row, n, step)
        output = network(snapshot.double(), series.double())
        np.testing.assert_allclose(predictions[row], output.detach(), rtol=0, atol=3e-6)
        ((output - labels) ** 2).mean().backward()
        for name, parameter in network.named_parameters():
            if before_norm(name):
                assert parameter.grad.abs().max() < 1e-12
                continue
            expected = parameter.grad.numpy()
            error = gradients[i][name] - expected
            assert np.linalg.norm(error) < 0.02 * np.linalg.norm(expected), name
            assert np.median(np.abs(error)) < 2e-5 * np.abs(expected).max(), name
        for name, buffer in network.named_buffers():
            if "running" in name:
                np.testing.assert_allclose(running[i][name], buffer, atol=1e-6, err_msg=name)


def test_padding_to_a_common_width_stays_zero() -> None:
    stack, _ = stack_of(MIXED)
    snapshot, series, labels = tensors(24)
    batch = Batch.of(snapshot, series.transpose(1, 2))
    own = StackLayout(MIXED)
    used = sum(int(np.prod(v.shape)) for s in random_states(MIXED, 0) for v in s.values())
    assert int((stack.trained != 0).sum()) < used < own.trained.size + own.running.size
    zero = stack.trained == 0
    stack.trained.grad = stack.gradient
    optimiser = torch.optim.Adam([stack.trained], lr=0.01, fused=True)
    with torch.no_grad():
        for step in range(3):
            predictions = stack.forward(batch, step).predictions
            stack.backward(batch, predictions - labels)
            optimiser.step()
    changed = stack.layout.trained.views((stack.trained != 0) & zero)
    assert not any(view.any() for name, view in changed.items() if name.endswith("weight"))
    for row, (_, width) in enumerate(own.shapes):
        for block in range(own.shapes[row][0]):
            assert not changed[f"block{block}.1.beta"][row, width:].any()


def test_several_steps_give_the_losses_and_weights_of_plain_training() -> None:
    data, n, rate, steps = samples(64), 32, 1e-3, 6
    shapes = [*SHAPES, (1, 16), (2, 16)]
    states = varied_states(shapes, 1)
    fleet = Fleet(shapes, states, 1, "cpu", 1)
    fleet.prepare(Recipe.transfer(learning_rate=rate))
    networks = plain_networks(states, shapes)
    optimisers = []
    for network in networks:
        # Rounding would move the biases before batch norms, without any effect on predictions.
        kept = [p for name, p in network.named_parameters() if not before_norm(name)]
        optimisers.append(torch.optim.Adam(kept, lr=rate))
    snapshot, series, labels = tensors(64)
    assert np.array_equal(series.numpy(), data.series)
    rng = np.random.default_rng(0)
    for step in range(steps):
        index = torch.from_numpy(rng.permutation(64)[:n])
        batch = Batch.of(snapshot[index], series[index].transpose(1, 2))
        for stack, members, optimiser in zip(
            fleet.stacks, fleet.members, fleet.optimisers, strict=True
        ):
            with torch.no_grad():
                predictions = stack.forward(batch, step).predictions
                difference = predictions - labels[index]
                loss = difference.square().mean(dim=1).sqrt()
                stack.backward(batch, difference / (n * loss[:, None]))
                optimiser.step()
            for row, i in enumerate(members):
                give_masks(networks[i], stack, row, n, step)
                output = networks[i](snapshot[index], series[index])
                plain = torch.sqrt(torch.mean((output - labels[index]) ** 2))
                optimisers[i].zero_grad()
                plain.backward()
                optimisers[i].step()
                torch.testing.assert_close(loss[row], plain.detach(), rtol=2e-5, atol=1e-6)
    for state, network in zip(fleet.export(), networks, strict=True):
        for name, tensor in network.state_dict().items():
            if "num_batches" in name:
                continue
            # Adam divides by the size of a gradient, so rounding counts where it is tiny.
            error = np.abs(state[name] - tensor.numpy())
            assert np.quantile(error, 0.95) < 0.02 * rate, name
            assert error.max() < 2 * rate * steps, name


@pytest.mark.parametrize("step", [None, 3])
def test_members_in_one_call_equal_members_one_by_one(step: int | None) -> None:
    snapshot, series, labels = tensors(24)
    batch = Batch.of(snapshot, series.transpose(1, 2))
    found = []
    for at_once in (False, True):
        stack, _ = stack_of(MIXED, at_once=at_once)
        with torch.no_grad():
            predictions = stack.forward(batch, step).predictions.clone()
            stack.backward(batch, predictions - labels)
        found.append((predictions, stack.gradient, stack.running))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from([8, 16, 32])), min_size=1, max_size=12),
    st.integers(1, 9),
)
def test_stacks_hold_every_network_once(shapes: list[tuple[int, int]], workers: int) -> None:
    groups = plan_stacks(shapes, workers, "cpu")
    assert sorted(i for group in groups for i in group) == list(range(len(shapes)))
    assert all(len({shapes[i][1] for i in group}) == 1 for group in groups)
    assert len(groups) >= min(workers, len(shapes))
    assert len(plan_stacks(shapes, workers, "cuda")) == 1


def test_dropout_keeps_half_and_differs_between_members_and_steps() -> None:
    stack, _ = stack_of(SHAPES)
    masks = torch.cat([mask.flatten(1) for mask in stack.kept(32, 0)], dim=1)
    assert torch.all((masks.float().mean(dim=1) - 0.5).abs() < 0.01)
    again = torch.cat([mask.flatten(1) for mask in stack.kept(32, 0)], dim=1)
    other = torch.cat([mask.flatten(1) for mask in stack.kept(32, 1)], dim=1)
    assert torch.equal(masks, again)
    for one, two in ((masks[0], masks[1]), (masks[0], other[0])):
        assert abs(float((one == two).float().mean()) - 0.5) < 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU on this machine")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    states = varied_states(MIXED, 0)
    snapshot, series, labels = tensors(32)
    layout, found = StackLayout(MIXED), {}
    for device in ("cpu", "cuda"):
        stack = Stack(layout, *layout.load(states), torch.device(device), [0, 1, 2])
        batch = Batch.of(snapshot.to(device), series.transpose(1, 2).to(device))
        with torch.no_grad():
            predictions = stack.forward(batch).predictions
            stack.backward(batch, predictions - labels.to(device))
        found[device] = predictions.cpu(), stack.gradient.cpu()
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
