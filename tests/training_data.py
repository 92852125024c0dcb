"""Small samples that a network can learn something from, and networks with given dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from xsoilsm.network import DenseSM
from xsoilsm.training import Samples
from xsoilsm.training.start import random_states


def samples(n: int = 96, res: str = "1km", seed: int = 0, **changes: Any) -> Samples:
    """Make samples whose truth follows from two of their inputs."""
    rng = np.random.default_rng(seed)
    snapshot = rng.random((n, 18), np.float32)
    series = rng.random((n, 3, 46), np.float32)
    labels = (0.05 + 0.3 * snapshot[:, 0] + 0.1 * series[:, 0].mean(axis=1)).astype(np.float32)
    options = {"contract": "paper", "resolution": res, "sites": np.arange(n) // 7} | changes
    labels = options.pop("labels", labels)
    return Samples.of_arrays((snapshot, series), labels, **options)


def varied_states(shapes: list[tuple[int, int]], seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Random networks whose batch norms do something, as after a training."""
    rng = np.random.default_rng(seed)
    states = []
    for state in random_states(shapes, seed):
        changed = dict(state)
        for name, array in state.items():
            if "bn" in name or name.startswith("norm"):
                if name.endswith(("weight", "running_var")):
                    changed[name] = rng.uniform(0.5, 1.5, array.shape).astype(np.float32)
                elif name.endswith(("bias", "running_mean")):
                    changed[name] = rng.uniform(-0.3, 0.3, array.shape).astype(np.float32)
        states.append(changed)
    return states


class GivenDropout(nn.Module):
    """Dropout with masks that are given for each of the three convolutions in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x * self.masks.pop(0)


def plain_networks(states: list[dict[str, np.ndarray]], shapes: list[tuple[int, int]]) -> list[Any]:
    """Modules as the package runs them one by one, in training mode."""
    networks = []
    for state, (depth, width) in zip(states, shapes, strict=True):
        network = DenseSM(depth, width)
        network.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
        network.conv_block.dropout = GivenDropout()
        networks.append(network.train())
    return networks
