"""Outside the seven steps (scenarios): which trainings a scenario consists of, and what they are.

Here is also what a study and a trainer agree on: `Trainer`, `Task`, `Predictor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from xsoilsm.scenarios.splits import NETWORKS, SIZES, Scenario

__all__ = ["ARMS", "Arm", "Predictor", "Run", "Task", "Trainer", "plan"]

Arm = Literal["transfer", "benchmark", "coarse"]
ARMS: tuple[Arm, ...] = ("transfer", "benchmark", "coarse")
"""Fine-tuned from 9 km; trained on the fine samples alone; 9 km networks as they are."""

SEEDS = 10
"""Repetitions of each training (Zhu et al. 2024)."""

Floats = npt.NDArray[np.floating[Any]]


class Predictor(Protocol):
    """What a training gives.

    A predictor may also have ``members(samples) -> (member, sample) ndarray``, the retrievals of
    the single networks; their measures are then kept beside those of the mean.
    """

    def __call__(self, samples: Any) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the members for each sample, m3 m-3."""
        ...


@dataclass(frozen=True)
class Task:
    """What a trainer is asked to do.

    Parameters
    ----------
    arm : {"transfer", "benchmark", "coarse"}
        ``coarse`` trains nothing: the 9 km networks as they are.
    scenario : {"dependent", "on-site", "off-site"}
        Off-site transfer mixes 9 km samples in (Zhu et al. 2024).
    scratch : Path
        Folder of this run for checkpoints. It is there again after an interruption, and
        removed when the run is complete.
    """

    arm: Arm
    scenario: Scenario
    scratch: Path


class Trainer(Protocol):
    """A function that trains; the same samples, task and seed give the same predictor."""

    def __call__(self, samples: Any, task: Task, seed: int) -> Predictor:
        """Train on `samples`, which are of the type that the study was given."""
        ...


@dataclass(frozen=True)
class Run:
    """One training.

    Parameters
    ----------
    scenario : {"dependent", "on-site", "off-site"}
    network : str
        Of the off-site scenario; else empty.
    size : float
        As in `xsoilsm.scenarios.splits.SIZES`.
    seed : int
    arm : {"transfer", "benchmark", "coarse"}
    """

    scenario: Scenario
    network: str
    size: float
    seed: int
    arm: Arm

    @property
    def order(self) -> tuple[str, str, float, int, int]:
        """Place among others: by scenario, network, size, seed, and arm as in `ARMS`."""
        return self.scenario, self.network, self.size, self.seed, ARMS.index(self.arm)

    @property
    def key(self) -> str:
        """Name of the run, of its file and of its folder."""
        parts = [self.scenario, self.network, f"{self.size:g}", f"seed{self.seed}", self.arm]
        kept = ["".join(c if c.isalnum() or c in "-." else "_" for c in p) for p in parts if p]
        return "_".join(kept)


def plan(
    scenario: Scenario,
    *,
    sizes: Sequence[float] | None = None,
    seeds: int | Sequence[int] = SEEDS,
    arms: Sequence[Arm] = ARMS,
    networks: Sequence[str] = NETWORKS,
) -> list[Run]:
    """List the runs of a scenario; by default those of Zhu et al. (2024).

    Parameters
    ----------
    scenario : {"dependent", "on-site", "off-site"}
    sizes : sequence of float, optional
    seeds : int or sequence of int, default 10
        A number stands for 0, 1, ...
    arms : sequence of str, default transfer, benchmark and coarse
    networks : sequence of str, default SCAN and SNOTEL
        Of the off-site scenario.

    Returns
    -------
    list of Run
        First the whole range of sizes with one seed, then with the next: what is there when a
        study is stopped early is a smaller study, not half of one.

    Raises
    ------
    ValueError
        For an unknown scenario or arm.

    Examples
    --------
    >>> len(plan("dependent")), plan("on-site", sizes=[3], seeds=1)[0].key
    (270, 'on-site_3_seed0_transfer')
    """
    if scenario not in SIZES or not set(arms) <= set(ARMS):
        msg = (
            f"unknown scenario or arm; scenarios are {', '.join(SIZES)}, arms {', '.join(ARMS)}; "
            f"found {scenario!r} with {list(arms)}"
        )
        raise ValueError(msg)
    chosen = SIZES[scenario] if sizes is None else tuple(sizes)
    numbers = range(seeds) if isinstance(seeds, int) else seeds
    of = tuple(networks) if scenario == "off-site" else ("",)
    return [
        Run(scenario, network, float(size), int(seed), arm)
        for seed in numbers
        for network in of
        for size in chosen
        for arm in arms
    ]
