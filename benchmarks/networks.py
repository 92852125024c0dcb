"""Networks and pixels to measure with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xsoilsm import speed
from xsoilsm.ensemble import Ensemble, WeightsError, get_ensemble
from xsoilsm.state import State, state_shapes


class RandomEnsemble:
    """Networks with random parameters, by default of the published shapes.

    The arithmetic is that of the published ones.
    """

    name = "random"

    def __init__(self, shapes: Sequence[tuple[int, int]] = speed.PUBLISHED) -> None:
        self.shapes = shapes

    def state_dicts(self) -> list[State]:
        rng = np.random.default_rng(0)
        states: list[State] = []
        for depth, width in self.shapes:
            state = {}
            for name, shape in state_shapes(depth, width).items():
                values = rng.uniform(-1, 1, shape)
                if len(shape) > 1:
                    values *= np.sqrt(3 / np.prod(shape[1:]))
                elif name.endswith(("weight", "running_var")):
                    values = 1 + values / 2
                state[name] = np.asarray(values, np.float32)
            states.append(state)
        return states


def bring_weights(cache: Path) -> None:
    """Copy the published weights, where they are at hand, into another cache."""
    own = Path(os.environ.get("XSOILSM_CACHE_DIR") or Path.home() / ".cache" / "xsoilsm")
    if "XSOILSM_WEIGHTS_DIR" not in os.environ and (own / "weights").is_dir():
        shutil.copytree(own / "weights", cache / "weights")


def random_networks(folder: Path) -> None:
    """Save two small networks with random parameters."""
    from xsoilsm.card import EnsembleCard
    from xsoilsm.ensemble import save_ensemble

    content = {
        "schema_version": 1,
        "name": "random",
        "family": "random",
        "resolution": "1km",
        "contract": "published-coarse",
        "simulated": True,
        "members": [{"depth": d, "width": 16, "file": f"{d}_16.safetensors"} for d in (1, 2)],
        "licence": {"spdx": "Apache-2.0", "statement": "Random numbers."},
        "citation": {"text": "None."},
        "training": {"kind": "transfer", "settings": {}},
    }
    card = EnsembleCard.model_validate(content)
    rng = np.random.default_rng(0)
    states = [
        {
            name: np.asarray(abs(rng.normal(0, 0.1, shape)), np.float32)
            for name, shape in state_shapes(member.depth, member.width).items()
        }
        for member in card.members
    ]
    save_ensemble(card, states, folder)


def ensemble() -> Ensemble | RandomEnsemble:
    """Return the published networks where they are at hand, else random ones."""
    try:
        published = get_ensemble("DenseSM-E")
        published.require_weights()
    except WeightsError:
        return RandomEnsemble()
    return published


def pixels(n: int, run: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Random snapshot (18, n) and series (3, 46, n); `run` neighbours have the same weather."""
    rng = np.random.default_rng(0)
    snapshot, series = rng.random((18, n), np.float32), rng.random((3, 46, n), np.float32)
    series[1:] = series[1:][:, :, np.arange(n) // run * run]
    return snapshot, series
