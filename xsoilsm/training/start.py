"""Step 5 of 7 (networks): what a training starts from, checked before it starts."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from xsoilsm.state import State, state_shapes
from xsoilsm.training.labelled import Samples
from xsoilsm.training.recipe import Recipe

__all__ = ["chances", "check_start", "mixed_in", "random_states", "split", "truth"]

_log = logging.getLogger(__name__)


def random_states(shapes: Sequence[tuple[int, int]], seed: int) -> list[State]:
    """State dicts of new networks, initialised as PyTorch does.

    Parameters
    ----------
    shapes : sequence of (int, int)
    seed : int

    Returns
    -------
    list of dict of str to ndarray
    """
    from xsoilsm.network import DenseSM

    states: list[State] = []
    with torch.random.fork_rng(devices=[]):
        for number, (depth, width) in enumerate(shapes):
            sequence = np.random.SeedSequence(
                [seed, depth, width, shapes[:number].count((depth, width))]
            )
            torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
            module = DenseSM(depth, width)
            states.append({n: t.detach().numpy().copy() for n, t in module.state_dict().items()})
    return states


def truth(samples: Samples) -> npt.NDArray[np.float32]:
    """Return the labels, or say that there are none.

    Raises
    ------
    ValueError
        When the samples are unlabelled.
    """
    if samples.labels is None:
        msg = "the samples have no labels; expected soil moisture in m3 m-3"
        raise ValueError(msg)
    return samples.labels


def check_start(
    samples: Samples,
    shapes: Sequence[tuple[int, int]],
    recipe: Recipe,
    initial: Sequence[State] | None,
    coarse: Samples | None,
    target: Samples | None,
) -> None:
    """Refuse what does not fit together, before anything is trained."""
    truth(samples)
    if not shapes:
        msg = "no networks to train; expected at least one pair of depth and width"
        raise ValueError(msg)
    if recipe.from_base != (initial is not None):
        needs = "needs an ensemble to start from" if recipe.from_base else "starts from nothing"
        msg = f"a training of kind {recipe.kind!r} {needs}; pass another recipe or another base"
        raise ValueError(msg)
    for state, (depth, width) in zip(initial or (), shapes, strict=initial is not None):
        if {n: np.shape(a) for n, a in state.items()} != state_shapes(depth, width):
            msg = f"a state dict to start from is not one of a DenseSM-{depth}-{width}"
            raise ValueError(msg)
    count = len(samples) - int(len(samples) * recipe.validation)
    if count < recipe.batch:
        msg = (
            f"{count} training samples are fewer than one batch of {recipe.batch}; add samples or "
            f"take a recipe with batch={max(2, min(count, 32))} or less"
        )
        raise ValueError(msg)
    if recipe.kind == "coarse" and samples.resolution != "9km":
        msg = f"coarse training needs samples at 9km; these are at {samples.resolution}"
        raise ValueError(msg)
    for name, other, needed in (
        ("coarse", coarse, recipe.needs_coarse),
        ("target", target, recipe.needs_target),
    ):
        if other is None:
            if needed:
                msg = f"the recipe needs {name} samples; pass {name}="
                raise ValueError(msg)
            continue
        grid = "9km" if name == "coarse" else samples.resolution
        if other.resolution != grid:
            msg = f"the {name} samples are at {other.resolution}; expected {grid}"
            raise ValueError(msg)
        if other.contract.digest != samples.contract.digest:
            msg = (
                f"the {name} samples were computed under the contract {other.contract.name!r}, the "
                f"others under {samples.contract.name!r}; compute both under one"
            )
            raise ValueError(msg)
    if coarse is not None and recipe.needs_coarse:
        truth(coarse)
    if recipe.balance == "site" and samples.sites is None:
        msg = "drawing by site needs the site of each sample; pass sites="
        raise ValueError(msg)


def split(count: int, recipe: Recipe) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Draw indices of training and of held back samples, both ascending."""
    held = int(count * recipe.validation)
    order = np.random.default_rng([recipe.seed, 0]).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def mixed_in(coarse: Samples, count: int, recipe: Recipe) -> Samples:
    """Draw the 9 km samples that join `count` fine ones."""
    wanted = round(count * recipe.coarse_share)
    if wanted > len(coarse):
        _log.warning("only %d coarse samples to mix in, %d were wanted", len(coarse), wanted)
    rng = np.random.default_rng([recipe.seed, 3])
    return coarse.take(np.sort(rng.permutation(len(coarse))[:wanted]))


def chances(pools: Sequence[Samples], recipe: Recipe) -> npt.NDArray[np.float64] | None:
    """Probability of each sample, or None where each is taken once."""
    if recipe.balance is None:
        return None
    parts = []
    for pool in pools:
        sites = np.arange(len(pool)) if pool.sites is None else pool.sites
        _, which, counts = np.unique(sites, return_inverse=True, return_counts=True)
        weight = 1 / counts[which]
        parts.append(weight * (len(pool) / weight.sum()))
    joined = np.concatenate(parts)
    shares: npt.NDArray[np.float64] = joined / joined.sum()
    return shares
