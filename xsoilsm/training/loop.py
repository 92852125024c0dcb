"""Step 5 of 7 (networks): the training itself, all networks at once, repeatable and resumable.

Networks are trained in stacks (`xsoilsm.training.stacked`), stacks are spread over threads, and
each stack goes through an epoch on its own. All networks see the same batches, each with dropout
of its own. Whatever is random follows from the seed and the number of the epoch or step, so that
there is no state to lose: a training that was interrupted ends in the same numbers.
"""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from xsoilsm.state import State, tensors_digest
from xsoilsm.timemajor import one_torch_thread
from xsoilsm.training import adaptation
from xsoilsm.training.checkpoint import (
    COLUMNS,
    Checkpoint,
    Log,
    read_checkpoint,
    write_checkpoint,
)
from xsoilsm.training.fleet import Fleet, Pool
from xsoilsm.training.labelled import Samples
from xsoilsm.training.recipe import Recipe
from xsoilsm.training.stacked import Stack
from xsoilsm.training.start import (
    chances,
    check_start,
    mixed_in,
    random_states,
    split,
    truth,
)

__all__ = ["Trained", "TrainingError", "TrainingWarning", "predict_members", "train_members"]

VALID = (0.0, 0.6)  # m3 m-3, the range of valid retrievals
WARM_UP = 5
"""Epochs after which predictions are expected to be valid."""

_log = logging.getLogger(__name__)


class TrainingError(ValueError):
    """A network diverged: the learning rate or the labels are not fit for training."""


class TrainingWarning(UserWarning):
    """A training goes on, but something about it is suspicious."""


@dataclass(frozen=True, eq=False)
class Trained:
    """Result of a training.

    Parameters
    ----------
    shapes : list of (int, int)
        Depth and width of each network.
    states : list of dict of str to ndarray
        Their state dicts, means over the last epochs.
    history : (epoch, member, column) ndarray
        See `xsoilsm.training.checkpoint.COLUMNS`.
    rmse : (member,) ndarray
        Of the result, without dropout, on the training samples, m3 m-3.
    validation_rmse : (member,) ndarray
        The same on the samples held back; NaN where there are none.
    validation_index : (k,) ndarray of int
        Which samples were held back.
    samples : int
        How many samples trained, mixed-in ones included.
    seconds : float
        Since the start, or since the training was resumed.
    """

    shapes: list[tuple[int, int]]
    states: list[dict[str, npt.NDArray[Any]]]
    history: npt.NDArray[np.float64]
    rmse: npt.NDArray[np.float64]
    validation_rmse: npt.NDArray[np.float64]
    validation_index: npt.NDArray[np.int64]
    samples: int
    seconds: float


def train_members(
    samples: Samples,
    shapes: Sequence[tuple[int, int]],
    recipe: Recipe,
    *,
    initial: Sequence[State] | None = None,
    coarse: Samples | None = None,
    target: Samples | None = None,
    device: str = "auto",
    threads: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    log: str | Path | None = None,
    progress: Callable[[float | str], None] | None = None,
) -> Trained:
    """Train networks side by side.

    Computes.

    Parameters
    ----------
    samples : Samples
        With labels.
    shapes : sequence of (int, int)
        Depth and width of each network.
    recipe : Recipe
    initial : sequence of state dicts, optional
        What to start from, in the order of `shapes`; needed where the recipe starts from a base.
    coarse : Samples, optional
        At 9 km, with labels; needed where the recipe mixes them in or has a coarse term.
    target : Samples, optional
        Unlabelled, on the grid of `samples`; labels, if any, are not looked at.
    device : {"auto", "cpu", "cuda"}
    threads : int, optional
        Default: one per processor of this process.
    checkpoint : path, optional
        File to resume from where it exists, and to write to while training.
    checkpoint_seconds : float, default 60
        Least time between checkpoints; 0 writes one after each epoch.
    log : path, optional
        CSV table of the losses.
    progress : callable, optional
        Gets the share that is done and texts with the losses.

    Returns
    -------
    Trained

    Raises
    ------
    ValueError
        When samples, recipe and the rest do not fit together; nothing is written then.
    TrainingError
        When a loss is not finite. The last checkpoint stays.
    """
    started = time.monotonic()
    training = _Training(samples, list(shapes), recipe, initial, coarse, target, device, threads)
    with ExitStack() as exits:
        exits.enter_context(one_torch_thread(training.fleet.device))
        exits.enter_context(training.fleet)
        path = None if checkpoint is None else Path(checkpoint).expanduser()
        done = training.resume(path)
        if not done:
            training.weigh_distance()
        table = Log(None if log is None else Path(log), training.labels, training.history[:done])
        saved = time.monotonic()
        for epoch in range(done, recipe.epochs):
            training.run_epoch(epoch, started)
            table.add(epoch + 1, training.history[epoch])
            training.inspect(epoch)
            last = epoch + 1 == recipe.epochs
            if path is not None and (last or time.monotonic() - saved >= checkpoint_seconds):
                write_checkpoint(path, training.state(epoch + 1), training.identity)
                saved = time.monotonic()
            if progress is not None:
                progress(training.describe(epoch))
                progress((epoch + 1) / recipe.epochs)
        return training.finish(time.monotonic() - started)


def predict_members(
    states: Sequence[State], samples: Samples, *, device: str = "auto", threads: int | None = None
) -> npt.NDArray[np.float32]:
    """Soil moisture by each network, without dropout.

    Computes.

    Parameters
    ----------
    states : sequence of state dicts
    samples : Samples
    device : {"auto", "cpu", "cuda"}
    threads : int, optional

    Returns
    -------
    (member, n) ndarray of float32
        m3 m-3, also outside the valid range.
    """
    shapes = [_shape(state) for state in states]
    fleet = Fleet(shapes, states, 0, device, threads)
    with one_torch_thread(fleet.device), fleet:
        return fleet.predict(Pool.of(samples, fleet.device))


def _shape(state: State) -> tuple[int, int]:
    depth = len({name.split(".")[1] for name in state if name.startswith("dense_layers.")})
    return depth, int(state["dense_layers.0.linear1.weight"].shape[0])


# --------------------------------------------------------------------------- one training


class _Training:
    """What `train_members` keeps from epoch to epoch."""

    def __init__(
        self,
        samples: Samples,
        shapes: list[tuple[int, int]],
        recipe: Recipe,
        initial: Sequence[State] | None,
        coarse: Samples | None,
        target: Samples | None,
        device: str,
        threads: int | None,
    ) -> None:
        check_start(samples, shapes, recipe, initial, coarse, target)
        self.recipe, self.shapes = recipe, shapes
        self.labels = [f"{depth}-{width}" for depth, width in shapes]
        states = random_states(shapes, recipe.seed) if initial is None else list(initial)
        self.identity = {
            "recipe": recipe.settings() | {"kind": recipe.kind},
            "members": self.labels,
            "samples": samples.digest,
            "coarse samples": None if coarse is None else coarse.digest,
            "target samples": None if target is None else target.digest,
            "start": hashlib.sha256(
                "".join(tensors_digest(state) for state in states).encode()
            ).hexdigest(),
        }
        if recipe.match_quantiles and coarse is not None:
            matched = adaptation.match_quantiles(truth(samples), truth(coarse))
            samples = Samples(
                samples.snapshot,
                samples.series,
                matched,
                samples.contract,
                samples.resolution,
                samples.sites,
            )
        train, self.held_back = split(len(samples), recipe)
        pools = [samples.take(train)]
        if recipe.coarse_share and coarse is not None:
            pools.append(mixed_in(coarse, len(train), recipe))
        self.fleet = Fleet(shapes, states, recipe.seed, device, threads)
        self.pool = Pool.join(pools, self.fleet.device)
        where = self.fleet.device
        self.validation = (
            Pool.of(samples.take(self.held_back), where) if len(self.held_back) else None
        )
        self.coarse = Pool.of(coarse, where) if recipe.alpha < 1 and coarse is not None else None
        self.target = Pool.of(target, where) if recipe.needs_target and target is not None else None
        self.chances = chances(pools, recipe)
        self.fleet.prepare(recipe)
        self.step = 0
        self.history = np.full((recipe.epochs, len(shapes), len(COLUMNS)), np.nan)
        self._warned: set[str] = set()
        self.beta = np.zeros(len(shapes))

    def weigh_distance(self) -> None:
        """Settle the weight of the distance between features, once, before the first step."""
        if self.recipe.distance is None or self.target is None:
            return
        if self.recipe.beta == "auto":
            self.beta = self._automatic_beta(self.target)
        else:
            self.beta[:] = self.recipe.beta

    # ----------------------------------------------------------------------- epochs

    def batches(self, epoch: int) -> list[tuple[npt.NDArray[np.int64], ...]]:
        """Draw indices of labelled, coarse and target samples of each step."""
        rng = np.random.default_rng([self.recipe.seed, 1, epoch])
        count = len(self.pool)
        if self.chances is None:
            order = rng.permutation(count)
        else:
            order = rng.choice(count, count, p=self.chances)
        size = self.recipe.batch
        starts = list(range(0, count, size))
        if len(starts) > 1 and count - starts[-1] == 1:  # batch norm needs two samples
            starts.pop()
        parts = np.split(order, starts[1:])
        streams = [
            np.resize(rng.permutation(len(pool)), count) if pool is not None else None
            for pool in (self.coarse, self.target if self.recipe.distance else None)
        ]
        none = np.empty(0, np.int64)
        result = []
        for part, start in zip(parts, starts, strict=True):
            beside = slice(start, start + len(part))
            extra = (none if stream is None else stream[beside] for stream in streams)
            result.append((part, *extra))
        return result

    def run_epoch(self, epoch: int, started: float) -> None:
        """Train all networks for an epoch and note how it went."""
        batches = self.batches(epoch)
        pools = (self.pool, self.coarse, self.target)
        sums = self.fleet.train(pools, batches, self.step, self._differentiate)
        self.step += len(batches)
        count = len(self.pool)
        row = self.history[epoch]
        row[:, 0] = sums[:, 0] / len(batches)
        row[:, 1] = np.sqrt(sums[:, 1] / count)
        row[:, 3] = sums[:, 2] / count
        if self.validation is not None:
            row[:, 2] = self._rmse(self.validation)
        row[:, 4] = time.monotonic() - started
        if epoch >= self.recipe.epochs - self.recipe.averaged_epochs:
            self.fleet.remember(self.step)

    def _differentiate(
        self, stack: Stack, sizes: Sequence[int], labels: torch.Tensor, step: int, batch: Any
    ) -> torch.Tensor:
        """One step of a stack: forward, loss, backward; sums of loss, squares and outside."""
        recipe, frozen = self.recipe, self.recipe.batch_norm == "frozen"
        outputs = stack.forward(batch, step, frozen=frozen)
        predictions, n, coarse = outputs.predictions, sizes[0], sizes[1]
        function = adaptation.LOSSES[recipe.loss]
        loss, derivative = function(predictions[:, :n], labels[:n])
        by_hidden = None
        if recipe.distance is not None or coarse:
            whole = torch.zeros_like(predictions)
            whole[:, :n] = derivative * recipe.alpha
            loss = loss * recipe.alpha
            if coarse:
                part = slice(n, n + coarse)
                term, derivative = function(predictions[:, part], labels[part])
                whole[:, part] = derivative * (1 - recipe.alpha)
                loss = loss + term * (1 - recipe.alpha)
            derivative = whole
            if recipe.distance is not None:
                distance = adaptation.DISTANCES[recipe.distance]
                beta = self.fleet.spread(self.beta, stack)
                with torch.enable_grad():
                    hidden = outputs.hidden.detach().clone().requires_grad_()
                    term = distance(hidden[..., :n], hidden[..., n + coarse :]) * beta
                    (by_hidden,) = torch.autograd.grad(term.sum(), hidden)
                loss = loss + term.detach()
        stack.backward(batch, derivative, by_hidden, frozen=frozen)
        squares = (predictions[:, :n] - labels[:n]).square().sum(dim=1)
        outside = ((predictions[:, :n] < VALID[0]) | (predictions[:, :n] > VALID[1])).sum(dim=1)
        return torch.stack((loss, squares, outside.to(loss.dtype)), dim=1)

    def _automatic_beta(self, target: Pool) -> npt.NDArray[np.float64]:
        """Weight that makes distance and labelled term equally large at the start.

        Zhu et al. (2025), Journal of Hydrology 657, 133073: beta = alpha * loss / distance, both
        without dropout and before the first step, the distance as a mean over 50 random parts of
        labelled and target samples that are as large as a batch.
        """
        rng = np.random.default_rng([self.recipe.seed, 2])
        function = adaptation.DISTANCES[str(self.recipe.distance)]
        draws, size = 50, min(self.recipe.batch, len(self.pool), len(target))
        total = np.zeros(len(self.shapes))
        for _ in range(draws):
            hidden = [
                self.fleet.hidden(pool, rng.permutation(len(pool))[:size])
                for pool in (self.pool, target)
            ]
            total += np.array(
                [
                    float(function(torch.tensor(a)[None], torch.tensor(b)[None])[0])
                    for a, b in zip(*hidden, strict=True)
                ]
            )
        predictions = torch.tensor(self.fleet.predict(self.pool))
        loss = adaptation.LOSSES[self.recipe.loss](predictions, self.pool.labels.cpu())[0].numpy()
        beta: npt.NDArray[np.float64] = self.recipe.alpha * loss / np.maximum(total / draws, 1e-9)
        return beta

    # ----------------------------------------------------------------------- reports

    def inspect(self, epoch: int) -> None:
        """Stop at losses that are not finite, and warn of invalid predictions."""
        table = self.history[epoch]
        bad = ~np.isfinite(table[:, :2]).all(axis=1)
        if bad.any():
            names = ", ".join(np.array(self.labels)[bad])
            msg = (
                f"{bad.sum()} of {len(self.labels)} networks diverged in epoch {epoch + 1} "
                f"({names}): their loss is not finite; take a lower learning_rate than "
                f"{self.recipe.learning_rate:g} and check inputs and labels"
            )
            raise TrainingError(msg)
        if epoch + 1 < min(WARM_UP, self.recipe.epochs):
            return
        for label, outside in zip(self.labels, table[:, 3], strict=True):
            if outside > 0.2 and label not in self._warned:
                self._warned.add(label)
                msg = (
                    f"{outside:.0%} of the predictions of network {label} lie outside "
                    f"{VALID[0]:g} to {VALID[1]:g} m3 m-3 in epoch {epoch + 1}; check the labels "
                    "and the contract of the features"
                )
                warnings.warn(msg, TrainingWarning, stacklevel=3)

    def describe(self, epoch: int) -> str:
        """Say how far the training is."""
        table = self.history[epoch]
        text = f"epoch {epoch + 1}: RMSE {np.mean(table[:, 1]):.4f}"
        if self.validation is not None:
            text += f", held back {np.mean(table[:, 2]):.4f}"
        return text

    def _rmse(self, pool: Pool) -> npt.NDArray[np.float64]:
        difference = self.fleet.predict(pool) - pool.labels.cpu().numpy()
        squares: npt.NDArray[np.float64] = np.sqrt(
            np.mean(difference.astype(np.float64) ** 2, axis=1)
        )
        return squares

    # ----------------------------------------------------------------------- end and resume

    def state(self, epoch: int) -> Checkpoint:
        """All that the rest of the training depends on."""
        numbers = {"step": self.step, "steps": self.fleet.steps, "beta": self.beta.tolist()}
        tensors = self.fleet.tensors()
        tensors["history"] = torch.from_numpy(self.history[:epoch].copy())
        return Checkpoint(tensors, epoch, numbers)

    def resume(self, path: Path | None) -> int:
        """Go back to a checkpoint, if there is one; the number of epochs that are done."""
        found = None if path is None else read_checkpoint(path, self.identity)
        if found is None:
            return 0
        self.history[: found.epoch] = found.tensors.pop("history").numpy()
        self.step, self.beta = found.numbers["step"], np.array(found.numbers["beta"])
        self.fleet.restore(found.tensors, found.numbers["steps"])
        _log.info("resumed from %s after epoch %d", path, found.epoch)
        return found.epoch

    def finish(self, seconds: float) -> Trained:
        """Average the last epochs, do what the recipe wants at the end, and measure."""
        self.fleet.average()
        if self.recipe.batch_norm == "target" and self.target is not None:
            self.fleet.estimate_statistics(self.target, self.recipe.batch, self.recipe.seed)
        if self.recipe.correct_bias:
            error = self.pool.labels.cpu().numpy() - self.fleet.predict(self.pool)
            self.fleet.shift(error.mean(axis=1, dtype=np.float64))
        none = np.full(len(self.shapes), np.nan)
        return Trained(
            self.shapes,
            self.fleet.export(),
            self.history,
            self._rmse(self.pool),
            none if self.validation is None else self._rmse(self.validation),
            self.held_back,
            len(self.pool),
            seconds,
        )
