"""Step 5 of 7 (networks): stacks of networks on a device, spread over threads.

Every stack has an optimiser and a running sum of snapshots of its own. Threads never touch the same
stack, and torch starts no threads of its own, so results do not depend on their number as long as
the stacks are the same.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from xsoilsm.state import State
from xsoilsm.training.buffers import Arena
from xsoilsm.training.labelled import Samples
from xsoilsm.training.layout import StackLayout
from xsoilsm.training.recipe import Recipe
from xsoilsm.training.stacked import MOMENTUM, Batch, Stack

__all__ = ["Fleet", "Pool", "Step"]

CHUNK = {"cpu": 512, "cuda": 4096}
"""Samples per forward pass without training."""

Index = npt.NDArray[np.int64]
Step = Callable[[Stack, Sequence[int], torch.Tensor, int, Batch], torch.Tensor]
"""Stack, number of samples of each kind, labels, number of the step, batch -> (member, 3) sums."""


@dataclass(frozen=True)
class Pool:
    """Samples on a device, sample first, steps before channels."""

    snapshot: torch.Tensor
    series: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return int(self.snapshot.shape[0])

    @classmethod
    def of(cls, samples: Samples, device: torch.device) -> Pool:
        """Put samples on a device; labels that are missing are zero."""
        return cls.join([samples], device)

    @classmethod
    def join(cls, samples: Sequence[Samples], device: torch.device) -> Pool:
        """Put several sets of samples on a device, one after another."""
        snapshot = np.concatenate([s.snapshot for s in samples])
        series = np.concatenate([s.series.transpose(0, 2, 1) for s in samples])
        labels = np.concatenate(
            [np.zeros(len(s), np.float32) if s.labels is None else s.labels for s in samples]
        )
        arrays = (np.ascontiguousarray(a, np.float32) for a in (snapshot, series, labels))
        return cls(*(torch.from_numpy(a).to(device) for a in arrays))


class Fleet:
    """Networks in stacks.

    Parameters
    ----------
    shapes : sequence of (int, int)
        Depth and width of each network.
    states : sequence of state dicts
        In the order of `shapes`.
    seed : int
    device : {"auto", "cpu", "cuda"}
    threads : int, optional
        Default: one per processor of this process; a GPU is fed by one.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        states: Sequence[State],
        seed: int,
        device: str,
        threads: int | None,
    ) -> None:
        self.device = _device(device)
        workers = 1 if self.device.type != "cpu" else threads or _processors()
        self._templates = [dict(state) for state in states]
        groups = plan_stacks(shapes, workers, self.device.type)
        self.members: list[list[int]] = []
        self.stacks: list[Stack] = []
        self._crews: list[list[int]] = []
        seeds = _seeds(shapes, seed)
        for crew in _share(groups, shapes, workers):
            arena: Arena = {}
            self._crews.append([])
            for group in crew:
                layout = StackLayout([shapes[i] for i in group])
                flat = layout.load([states[i] for i in group])
                members = [group[i] for i in layout.order]
                own = [seeds[i] for i in members]
                self._crews[-1].append(len(self.stacks))
                self.stacks.append(Stack(layout, *flat, self.device, own, arena))
                self.members.append(members)
        self.optimisers: list[torch.optim.Adam] = []
        self._sums: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.steps: list[int] = []
        """Number of steps at each snapshot that was taken."""
        self._pool: ThreadPoolExecutor | None = None
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        if len(self._crews) > 1:
            self._pool = ThreadPoolExecutor(len(self._crews), "xsoilsm-train")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _each_crew(self, work: Callable[[list[int]], None]) -> None:
        quiet = torch.no_grad()(work)
        if self._pool is None:
            for crew in self._crews:
                quiet(crew)
        else:
            for _ in self._pool.map(quiet, self._crews):
                pass

    # ----------------------------------------------------------------------- training

    def prepare(self, recipe: Recipe) -> None:
        """Give each stack an optimiser and a place for the sum of snapshots."""
        for stack in self.stacks:
            stack.trained.grad = stack.gradient
            self.optimisers.append(
                torch.optim.Adam(
                    [stack.trained],
                    lr=recipe.learning_rate,
                    betas=recipe.betas,
                    eps=recipe.epsilon,
                    fused=True,
                )
            )
            self._sums.append(
                (
                    torch.zeros_like(stack.trained, dtype=torch.float64),
                    torch.zeros_like(stack.running, dtype=torch.float64),
                )
            )

    def train(
        self,
        pools: Sequence[Pool | None],
        batches: Sequence[tuple[Index, ...]],
        first: int,
        step: Step,
    ) -> npt.NDArray[np.float64]:
        """Take a step per batch.

        Parameters
        ----------
        pools : sequence of Pool, optional
            Where the indices of each part of a batch lead.
        batches : sequence of tuple of (n,) ndarray of int
        first : int
            Number of the first step.
        step : callable
            Writes the gradients, see `Step`.

        Returns
        -------
        (member, 3) ndarray
            Sums over the batches of what `step` gives.
        """
        result = np.zeros((sum(map(len, self.members)), 3))

        def work(crew: list[int]) -> None:
            sums = [
                torch.zeros((self.stacks[i].members, 3), dtype=torch.float64, device=self.device)
                for i in crew
            ]
            for number, indices in enumerate(batches, start=first):
                if self._stop.is_set():
                    return
                batch, labels = self._batch(pools, indices)
                sizes = [len(index) for index in indices]
                for total, i in zip(sums, crew, strict=True):
                    total += step(self.stacks[i], sizes, labels, number, batch)
                    self.optimisers[i].step()
            for total, i in zip(sums, crew, strict=True):
                result[self.members[i]] = total.cpu().numpy()

        try:
            self._each_crew(work)
        except BaseException:
            self._stop.set()
            raise
        return result

    def _batch(
        self, pools: Sequence[Pool | None], indices: Sequence[Index]
    ) -> tuple[Batch, torch.Tensor]:
        parts = [
            (pool, torch.from_numpy(index).to(self.device))
            for pool, index in zip(pools, indices, strict=True)
            if pool is not None and len(index)
        ]
        snapshot, series, labels = (
            torch.cat([getattr(pool, name)[index] for pool, index in parts])
            for name in ("snapshot", "series", "labels")
        )
        return Batch.of(snapshot, series), labels

    def remember(self, step: int) -> None:
        """Add a snapshot of parameters and statistics to the sums."""
        self.steps.append(step)
        for stack, (trained, running) in zip(self.stacks, self._sums, strict=True):
            trained += stack.trained
            running += stack.running

    def average(self) -> None:
        """Replace parameters and statistics by the means of the snapshots."""
        for stack, (trained, running) in zip(self.stacks, self._sums, strict=True):
            stack.trained.copy_(trained / len(self.steps))
            stack.running.copy_(running / len(self.steps))

    def estimate_statistics(self, pool: Pool, size: int, seed: int) -> None:
        """Estimate the running statistics again, as means over batches without dropout.

        Batches are drawn at random: samples lie site by site, and within one site most inputs do
        not vary. Li et al. (2016), Revisiting batch normalization for practical domain
        adaptation, arXiv:1603.04779.
        """
        count = len(pool)
        order = np.random.default_rng([seed, 4]).permutation(count)
        parts = np.array_split(order, max(1, count // size))

        def work(crew: list[int]) -> None:
            for number, index in enumerate(parts):
                batch, _ = self._batch([pool], [index])
                for i in crew:
                    self.stacks[i].momentum = 1 / (number + 1)
                    self.stacks[i].forward(batch)
            for i in crew:
                self.stacks[i].momentum = MOMENTUM

        self._each_crew(work)

    def shift(self, amount: npt.NDArray[np.float64]) -> None:
        """Add to the last bias of each network."""
        for stack, members in zip(self.stacks, self.members, strict=True):
            stack.add_bias(torch.tensor(amount[members], dtype=torch.float32, device=self.device))

    # ----------------------------------------------------------------------- use

    def predict(self, pool: Pool) -> npt.NDArray[np.float32]:
        """Soil moisture (member, n) without dropout, by the running statistics."""
        result = np.empty((sum(map(len, self.members)), len(pool)), np.float32)
        size = CHUNK[self.device.type]

        def work(crew: list[int]) -> None:
            for start in range(0, len(pool), size):
                index = np.arange(start, min(start + size, len(pool)))
                batch, _ = self._batch([pool], [np.resize(index, size)])
                for i in crew:
                    outputs = self.stacks[i].forward(batch, frozen=True)
                    rows = outputs.predictions[:, : len(index)].cpu().numpy()
                    result[self.members[i], start : start + len(index)] = rows

        self._each_crew(work)
        return result

    def hidden(self, pool: Pool, index: Index) -> npt.NDArray[np.float32]:
        """Last features (member, 32, n) of some samples, without dropout."""
        result = np.empty((sum(map(len, self.members)), 32, len(index)), np.float32)

        def work(crew: list[int]) -> None:
            batch, _ = self._batch([pool], [index])
            for i in crew:
                outputs = self.stacks[i].forward(batch, frozen=True)
                result[self.members[i]] = outputs.hidden.cpu().numpy()

        self._each_crew(work)
        return result

    def spread(self, values: npt.NDArray[np.float64], stack: Stack) -> torch.Tensor:
        """One number per network, for the members of a stack."""
        members = self.members[self.stacks.index(stack)]
        return torch.tensor(values[members], dtype=torch.float32, device=self.device)

    def export(self) -> list[dict[str, npt.NDArray[Any]]]:
        """State dicts in the order of the networks."""
        states: list[dict[str, npt.NDArray[Any]]] = [{} for _ in self._templates]
        for stack, members in zip(self.stacks, self.members, strict=True):
            group = [0] * len(members)
            for member, position in zip(members, stack.layout.order, strict=True):
                group[position] = member
            templates = [self._templates[i] for i in group]
            exported = stack.layout.export(stack.trained, stack.running, templates)
            for i, state in zip(group, exported, strict=True):
                states[i] = state
        average = float(np.mean(self.steps)) if self.steps else 0.0
        for state in states:
            for name in state:
                if name.endswith("num_batches_tracked"):
                    state[name] = np.asarray(state[name] + average, np.float32)
        return states

    # ----------------------------------------------------------------------- checkpoints

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that the rest of a training depends on."""
        tensors: dict[str, torch.Tensor] = {}
        for i, (stack, (trained, running)) in enumerate(zip(self.stacks, self._sums, strict=True)):
            name = _name(stack.layout)
            tensors |= {
                f"{name}.trained": stack.trained,
                f"{name}.running": stack.running,
                f"{name}.trained_sum": trained,
                f"{name}.running_sum": running,
            }
            state = self.optimisers[i].state[stack.trained]
            tensors |= {f"{name}.{key}": value for key, value in state.items()}
        return tensors

    def restore(self, tensors: dict[str, torch.Tensor], steps: Sequence[int]) -> None:
        """Go back to what `tensors` gave.

        Raises
        ------
        ValueError
            When the networks were stacked in another way, for more or fewer threads.
        """
        names = {f"{_name(stack.layout)}.trained" for stack in self.stacks}
        if not names <= tensors.keys():
            msg = (
                "the checkpoint was written with the networks stacked in another way; resume it on "
                "the same kind of device and with the same number of threads"
            )
            raise ValueError(msg)
        self.steps = list(steps)
        for i, (stack, (trained, running)) in enumerate(zip(self.stacks, self._sums, strict=True)):
            name = _name(stack.layout)
            stack.trained.copy_(tensors[f"{name}.trained"])
            stack.running.copy_(tensors[f"{name}.running"])
            trained.copy_(tensors[f"{name}.trained_sum"])
            running.copy_(tensors[f"{name}.running_sum"])
            state = self.optimisers[i].state[stack.trained]
            for key in ("step", "exp_avg", "exp_avg_sq"):
                state[key] = tensors[f"{name}.{key}"].to(self.device)


def _name(layout: StackLayout) -> str:
    return "+".join(f"{depth}-{width}" for depth, width in layout.shapes)


# --------------------------------------------------------------------------- plan


def plan_stacks(shapes: Sequence[tuple[int, int]], workers: int, device: str) -> list[list[int]]:
    """Group networks into stacks.

    On a CPU networks of one width form a stack, so that no number is padded; where there are more
    threads than stacks, the largest ones are halved. On a GPU, where the number of calls counts and
    not that of operations, all networks are one stack.

    Parameters
    ----------
    shapes : sequence of (int, int)
    workers : int
    device : {"cpu", "cuda"}

    Returns
    -------
    list of list of int
        Positions in `shapes`.
    """
    if device != "cpu":
        return [list(range(len(shapes)))]
    by_width: dict[int, list[int]] = {}
    for i, (_, width) in enumerate(shapes):
        by_width.setdefault(width, []).append(i)
    groups = list(by_width.values())
    while len(groups) < workers:
        largest = max(groups, key=lambda group: (len(group) > 1, _cost(group, shapes)))
        if len(largest) == 1:
            break
        groups.remove(largest)
        deepest_first = sorted(largest, key=lambda i: (-shapes[i][0], i))
        groups += [sorted(deepest_first[0::2]), sorted(deepest_first[1::2])]
    return groups


def _cost(group: Sequence[int], shapes: Sequence[tuple[int, int]]) -> float:
    """Time of a step of a stack, in arbitrary units: convolutions, layers, products."""
    total = 0.0
    for depth, width in (shapes[i] for i in group):
        products = sum((30 + block * width) * width + 2 * width**2 for block in range(depth))
        total += 2.2e5 + 1e4 * depth + products
    return total


def _share(
    groups: list[list[int]], shapes: Sequence[tuple[int, int]], workers: int
) -> list[list[list[int]]]:
    """Give each thread stacks of about the same cost, the costliest first."""
    crews: list[list[list[int]]] = [[] for _ in range(min(workers, len(groups)))]
    loads = [0.0] * len(crews)
    for group in sorted(groups, key=lambda group: -_cost(group, shapes)):
        lightest = loads.index(min(loads))
        crews[lightest].append(group)
        loads[lightest] += _cost(group, shapes)
    return crews


def _seeds(shapes: Sequence[tuple[int, int]], seed: int) -> list[int]:
    """Seed of the dropout of each network, whatever other networks are trained."""
    seeds = []
    for i, (depth, width) in enumerate(shapes):
        twin = list(shapes[:i]).count((depth, width))
        sequence = np.random.SeedSequence([seed, 4, depth, width, twin])
        seeds.append(int(sequence.generate_state(1, np.uint64)[0]))
    return seeds


def _device(name: str) -> torch.device:
    kind = name.split(":")[0]
    if kind not in ("auto", "cpu", "cuda"):
        msg = f"unknown device {name!r}; expected 'auto', 'cpu' or 'cuda'"
        raise ValueError(msg)
    available = torch.cuda.is_available()
    if kind == "cuda" and not available:
        msg = "device 'cuda' was asked for, but torch finds no GPU; use 'auto' or 'cpu'"
        raise ValueError(msg)
    if kind == "auto":
        return torch.device("cuda" if available else "cpu")
    return torch.device(name)


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
