"""Losses with their derivatives, distances between features, matching of quantiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xsoilsm.training.adaptation import LOSSES, coral, match_quantiles, mmd


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_derivatives_are_those_of_automatic_differentiation(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    predictions = torch.rand((3, 20), generator=generator, dtype=torch.float64)
    labels = 0.4 * torch.rand(20, generator=generator, dtype=torch.float64)
    predictions.requires_grad_()
    loss, derivative = LOSSES[name](predictions, labels)
    (expected,) = torch.autograd.grad(loss.sum(), predictions)
    torch.testing.assert_close(derivative.detach(), expected)
    assert loss.shape == (3,)


def test_a_perfect_prediction_has_no_derivative() -> None:
    labels = torch.tensor([0.1, 0.2])
    for function in LOSSES.values():
        loss, derivative = function(labels[None], labels)
        assert loss.item() == 0
        assert not derivative.any()


def test_coral_is_the_distance_of_covariances() -> None:
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(2, 5, 40)), rng.normal(size=(2, 5, 30)) * 2
    found = coral(torch.tensor(source), torch.tensor(target))
    for i in range(2):
        difference = np.cov(source[i]) - np.cov(target[i])
        assert found[i].item() == pytest.approx(np.linalg.norm(difference) / 10, rel=1e-6)
    assert coral(torch.tensor(source), torch.tensor(source + 3)).max() < 1e-5


def test_mmd_agrees_with_its_definition() -> None:
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(4, 12)), rng.normal(size=(4, 9)) + 0.5
    both = np.concatenate([source, target], axis=1).T
    distances = ((both[:, None] - both[None]) ** 2).sum(axis=-1)
    width = distances.sum() / (21 * 20)
    kernel = sum(np.exp(-distances / (width * 2.0**e)) for e in (-2, -1, 0, 1, 2))
    expected = kernel[:12, :12].mean() + kernel[12:, 12:].mean() - 2 * kernel[:12, 12:].mean()
    found = mmd(torch.tensor(source)[None], torch.tensor(target)[None])
    assert found.item() == pytest.approx(expected, rel=1e-6)


@settings(max_examples=20)
@given(st.floats(0.5, 3), st.integers(0, 100))
def test_distances_vanish_for_equal_sets_and_grow_with_a_change(scale: float, seed: int) -> None:
    source = torch.tensor(np.random.default_rng(seed).normal(size=(1, 6, 25)))
    for distance in (coral, mmd):
        assert abs(distance(source, source.clone()).item()) < 1e-6
        near, far = (distance(source, source * (1 + change * scale)) for change in (0.2, 1.0))
        assert 0 < near.item() < far.item()


@settings(max_examples=40)
@given(
    hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 0.6)),
    hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 0.6)),
)
def test_matched_quantiles_keep_order_and_range(labels: np.ndarray, reference: np.ndarray) -> None:
    matched = match_quantiles(labels, reference)
    assert matched.shape == labels.shape
    assert matched.min() >= reference.min() - 1e-6
    assert matched.max() <= reference.max() + 1e-6
    order = np.argsort(labels, kind="stable")
    assert (np.diff(matched[order]) >= -1e-6).all()


def test_matched_labels_have_the_distribution_of_the_reference() -> None:
    rng = np.random.default_rng(0)
    labels, reference = rng.beta(2, 5, 4000) * 0.6, rng.beta(5, 2, 4000) * 0.5
    matched = match_quantiles(labels, reference)
    at = [0.05, 0.25, 0.5, 0.75, 0.95]
    np.testing.assert_allclose(np.quantile(matched, at), np.quantile(reference, at), atol=3e-3)
