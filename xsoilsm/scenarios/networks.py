"""Outside the seven steps (scenarios): the trainer of a study that trains the networks themselves.

It is the only part of the scenarios that knows `xsoilsm.training`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xsoilsm.scenarios.plan import Predictor, Task
from xsoilsm.training import Recipe, Samples

if TYPE_CHECKING:
    from xsoilsm.ensemble import Ensemble
    from xsoilsm.state import State

__all__ = ["NetworkTrainer"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class NetworkTrainer:
    """A `Trainer` for samples of `xsoilsm.samples`: all members of an ensemble at once.

    Parameters
    ----------
    shapes : sequence of (int, int)
        Depth and width of each network.
    initial : sequence of state dicts
        The coarse networks, in the order of `shapes`.
    coarse : Samples, optional
        Labelled 9 km samples, needed for the off-site scenario, in which as many of them as
        there are fine samples join the training (Zhu et al. 2024).
    transfer, benchmark : Recipe
        By default those of Zhu et al. (2024). Their seed is that of each run; the batch is
        smaller where there are fewer samples, as for a single cell.
    device : {"auto", "cpu", "cuda"}
    threads : int, optional
    """

    shapes: Sequence[tuple[int, int]]
    initial: Sequence[State]
    coarse: Samples | None = None
    transfer: Recipe = field(default_factory=Recipe.transfer)
    benchmark: Recipe = field(default_factory=Recipe.benchmark)
    device: str = "auto"
    threads: int | None = None

    @classmethod
    def of_ensemble(
        cls,
        ensemble: str | Path | Ensemble,
        shapes: Sequence[tuple[int, int]] | None = None,
        **options: Any,
    ) -> NetworkTrainer:
        """Start from an ensemble at 9 km.

        Computes: reads the weights.

        Parameters
        ----------
        ensemble : str, Path or Ensemble
        shapes : sequence of (int, int), optional
            Members to take, by default all.
        **options
            Of `NetworkTrainer`.

        Raises
        ------
        ValueError
            When the ensemble has no such member.
        WeightsError
            When its weights are not at hand.
        """
        from xsoilsm.ensemble import get_ensemble

        base = get_ensemble(ensemble)
        members = {(m.depth, m.width): i for i, m in enumerate(base.card.members)}
        chosen = list(members) if shapes is None else list(shapes)
        lacking = [f"{depth}-{width}" for depth, width in chosen if (depth, width) not in members]
        if lacking:
            msg = f"the ensemble {base.name!r} has no member {', '.join(lacking)}"
            raise ValueError(msg)
        states = base.state_dicts()
        return cls(chosen, [states[members[shape]] for shape in chosen], **options)

    @property
    def label(self) -> str:
        """Name of the trainer for `Study.create`: every setting, and a digest of what it holds."""
        held = hashlib.blake2b(digest_size=8)
        for state in self.initial:
            for name in sorted(state):
                held.update(name.encode() + np.ascontiguousarray(state[name]).tobytes())
        if self.coarse is not None:
            held.update(self.coarse.digest.encode())
        recipes = {r.kind: r.settings() for r in (self.transfer, self.benchmark)}
        for recipe in recipes.values():
            del recipe["seed"]
        members = " ".join(f"{depth}-{width}" for depth, width in self.shapes)
        return f"DenseSM {members}, {json.dumps(recipes, sort_keys=True)}, {held.hexdigest()}"

    def __call__(self, samples: xr.Dataset, task: Task, seed: int) -> Predictor:
        """Train, see `Trainer`.

        Computes. Resumes from a checkpoint in the folder of the task.

        Raises
        ------
        ValueError
            When samples, recipe and networks do not fit together.
        TrainingError
            When a loss is not finite.
        """
        if task.arm == "coarse":
            return _Networks(self.initial, self.device, self.threads)
        from xsoilsm.training import train_members

        transfers = task.arm == "transfer"
        recipe = replace(self.transfer if transfers else self.benchmark, seed=seed)
        if transfers and task.scenario == "off-site" and not recipe.coarse_share:
            recipe = replace(recipe, coarse_share=1.0)
        fine = _labelled(samples)
        if len(fine) < recipe.batch:
            recipe = replace(recipe, batch=max(2, len(fine)))
        trained = train_members(
            fine,
            self.shapes,
            recipe,
            initial=self.initial if transfers else None,
            coarse=self.coarse if recipe.needs_coarse else None,
            device=self.device,
            threads=self.threads,
            checkpoint=task.scratch / "checkpoint",
        )
        return _Networks(trained.states, self.device, self.threads)


@dataclass(frozen=True, eq=False)
class _Networks:
    """Trained networks as a `Predictor`."""

    states: Sequence[State]
    device: str
    threads: int | None

    def members(self, samples: xr.Dataset) -> Floats:
        """Soil moisture by each network, (member, sample), m3 m-3."""
        from xsoilsm.training import predict_members

        held = _labelled(samples, labels=False)
        return predict_members(self.states, held, device=self.device, threads=self.threads)

    def __call__(self, samples: xr.Dataset) -> tuple[Floats, Floats]:
        """Mean and population standard deviation of the networks."""
        each = self.members(samples)
        return each.mean(axis=0), each.std(axis=0)


def _labelled(samples: xr.Dataset, *, labels: bool = True) -> Samples:
    truth: Any = samples["soil_moisture"].values if labels else None
    return Samples.of_arrays(samples, truth, resolution=str(samples.attrs.get("resolution", "1km")))
