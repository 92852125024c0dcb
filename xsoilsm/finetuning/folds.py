"""Step 5 of 7 (networks): retrievals of every site by networks that never saw it.

Sites are dealt into folds; for each fold the networks are trained on all other sites and retrieve
those of the fold. A fold is one file when it is done, and a checkpoint until then.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from xsoilsm import grid
from xsoilsm.scenarios.splits import Split, site_folds
from xsoilsm.training import Recipe, Samples
from xsoilsm.wholefile import whole_file

if TYPE_CHECKING:
    from xsoilsm.state import State

__all__ = ["Fleet", "HeldOut", "cross_validate", "deal", "portion"]

Floats = npt.NDArray[np.float32]
Progress = Callable[[float | str], None] | None


@dataclass(frozen=True, eq=False)
class Fleet:
    """What every fold trains, and with what.

    Parameters
    ----------
    shapes : list of (int, int)
        Depth and width of each network.
    initial : list of state dicts
        Members of the base, in that order.
    start : str
        Digest of the base.
    recipe : Recipe
    coarse, target : Samples, optional
    device : {"auto", "cpu", "cuda"}
    threads : int, optional
    checkpoint_seconds : float
    """

    shapes: Sequence[tuple[int, int]]
    initial: Sequence[State]
    start: str
    recipe: Recipe
    coarse: Samples | None = None
    target: Samples | None = None
    device: str = "auto"
    threads: int | None = None
    checkpoint_seconds: float = 60.0

    def identity(self, samples: Samples) -> dict[str, Any]:
        """Say what decides the result of a training on these samples."""
        return {
            "samples": samples.digest,
            "members": [f"{depth}-{width}" for depth, width in self.shapes],
            "base": self.start,
            "recipe": self.recipe.settings() | {"kind": self.recipe.kind},
            "coarse": None if self.coarse is None else self.coarse.digest,
            "target": None if self.target is None else self.target.digest,
        }


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Retrievals of all samples, each by networks that were not trained on its site.

    Parameters
    ----------
    predicted, spread : (sample,) ndarray of float32
        Mean and standard deviation of the members, m3 m-3.
    fold : (sample,) ndarray of int
    """

    predicted: Floats
    spread: Floats
    fold: npt.NDArray[np.int64]


def deal(
    table: pd.DataFrame, folds: int, block: str | None, seed: int = 0
) -> tuple[list[Split], int]:
    """Deal sites into folds.

    Computes.

    Parameters
    ----------
    table : DataFrame
        See `xsoilsm.evaluation.tabulate`.
    folds : int
        At most one for each site.
    block : {"9km", "1km", "500m"}, optional
        Sites that lie in one cell of this grid stay together.
    seed : int, default 0

    Returns
    -------
    splits : list of Split
    sites : int
        Number of sites, or of cells of `block` that hold some.

    Raises
    ------
    ValueError
        When there are fewer than two sites.
    """
    if block is not None:
        cells = grid.get_grid(block)
        at = cells.index(*grid.lonlat_to_xy(table["lon"].to_numpy(), table["lat"].to_numpy()))
        names = [f"{row} {column}" for row, column in zip(*map(np.ndarray.tolist, at), strict=True)]
        table = table.assign(cell=names)
    sites = int(table["cell"].nunique())
    if sites < 2:
        where = "site" if block is None else f"cell of {block}"
        msg = (
            f"all {len(table)} samples are of one {where}, so nothing can be said of others: "
            "cross-validation by site needs two at least, and five to speak of other sites. Add "
            "stations, or pass validation=None for an ensemble of which nothing is known"
        )
        raise ValueError(msg)
    return list(site_folds(table, min(folds, sites), seed)), sites


def cross_validate(
    samples: Samples, splits: Sequence[Split], fleet: Fleet, folder: Path, progress: Progress = None
) -> HeldOut:
    """Train once for each fold, and retrieve the sites that were left out.

    Computes. Folds that are done are read from their files.

    Parameters
    ----------
    samples : Samples
    splits : sequence of Split
        Of `deal`.
    fleet : Fleet
    folder : Path
    progress : callable, optional

    Returns
    -------
    HeldOut

    Raises
    ------
    ValueError
        When a fold cannot be trained.
    TrainingError
        When a network diverges.
    """
    count = len(samples)
    predicted, spread = np.full((2, count), np.nan, np.float32)
    fold = np.full(count, -1, np.int64)
    for number, split in enumerate(splits):
        told = portion(
            progress,
            number / len(splits),
            (number + 1) / len(splits),
            f"fold {number + 1} of {len(splits)}",
        )
        part = folder / f"fold-{number:02d}.npz"
        name = _digest(fleet.identity(samples), split)
        found = _read(part, name, split)
        if found is None:
            found = _fold(samples, split, fleet, part.with_suffix(".safetensors"), told)
            with whole_file(part, overwrite=True) as scratch:
                np.savez(scratch, name=name, predicted=found[0], spread=found[1])
            part.with_suffix(".safetensors").unlink(missing_ok=True)
        predicted[split.test], spread[split.test] = found
        fold[split.test] = number
        if told is not None:
            told(1.0)
    return HeldOut(predicted, spread, fold)


def _fold(
    samples: Samples, split: Split, fleet: Fleet, checkpoint: Path, progress: Progress
) -> tuple[Floats, Floats]:
    from xsoilsm.training import predict_members, train_members

    trained = train_members(
        samples.take(split.train),
        fleet.shapes,
        fleet.recipe,
        initial=fleet.initial,
        coarse=fleet.coarse,
        target=fleet.target,
        device=fleet.device,
        threads=fleet.threads,
        checkpoint=checkpoint,
        checkpoint_seconds=fleet.checkpoint_seconds,
        progress=progress,
    )
    each = predict_members(
        trained.states, samples.take(split.test), device=fleet.device, threads=fleet.threads
    )
    return each.mean(axis=0), each.std(axis=0)


def _digest(identity: dict[str, Any], split: Split) -> str:
    held = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    held.update(split.train.astype("<i8").tobytes() + split.test.astype("<i8").tobytes())
    return held.hexdigest()


def _read(path: Path, name: str, split: Split) -> tuple[Floats, Floats] | None:
    """Read the retrievals of a fold that is done; None where it is not, or its file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            held, predicted, spread = str(file["name"]), file["predicted"], file["spread"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if held != name or predicted.shape != split.test.shape:
        return None
    return predicted, spread


def portion(progress: Progress, start: float, end: float, label: str = "") -> Progress:
    """Progress of a part of the work, as a share of the whole."""
    if progress is None:
        return None

    def report(state: float | str) -> None:
        if isinstance(state, str):
            progress(f"{label} {state}".strip())
        else:
            progress(start + (end - start) * state)

    return report
