"""Step 6 of 7 (explain): domain of applicability, how far inputs are from those of training.

Every network keeps the mean and the variance that each of its inputs had over the training set,
in the batch norm that these inputs pass first (``norm.running_mean``, ``norm.running_var``). The
distance of a cell is the root mean square of its standard scores,

    d = sqrt(1/n sum_i ((x_i - m_i) / s_i)^2),

over the n distinct inputs of the snapshot, the means of the series among them: Mahalanobis'
distance (1936) with the variances alone, over sqrt(n). Whatever the shape of the distributions
and their correlations, d squared is 1 on average over the training set, so by Markov's inequality
at most one in k squared of its samples lies beyond k. What the statistics cannot tell: inputs that
are usual one by one and unusual together, and the course of the series about their means.

Inputs are taken as the networks see them, normalised and clipped to their range; how many were
clipped is counted beside.

Source of the statistics: Ioffe and Szegedy (2015), Batch Normalization, algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xsoilsm.contract import Contract, Input
from xsoilsm.ensemble import Ensemble, get_ensemble
from xsoilsm.features import compute_features

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__all__ = ["TrainingStatistics", "distance", "domain_table", "standard_scores", "statistics_of"]

SMALLEST_STD = 1e-3
"""Least standard deviation of an input that is reckoned with, as a share of its range."""

FAR = 3.0
"""Standard scores beyond which `domain_table` counts a value as far."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TrainingStatistics:
    """Mean and spread of each input over the training set of an ensemble, normalised.

    Parameters
    ----------
    features : tuple of str
        All inputs of the snapshot, in order.
    mean, std : (feature,) ndarray of float32
    distinct : tuple of int
        Those that count for the distance; an input that stands there twice counts once.
    """

    features: tuple[str, ...]
    mean: Float32
    std: Float32
    distinct: tuple[int, ...]


@lru_cache(maxsize=16)
def statistics_of(ensemble: Ensemble) -> TrainingStatistics:
    """Statistics of the inputs over the training set, pooled over the members.

    Computes: reads the weights at the first call in a process.

    Parameters
    ----------
    ensemble : Ensemble

    Returns
    -------
    TrainingStatistics
        The mean of the members' means, and the root of the mean of their variances plus the
        variance of their means (law of total variance).

    Raises
    ------
    WeightsError
        When weights are missing or damaged.
    """
    contract = ensemble.contract
    count = len(contract.snapshot)
    states = ensemble.state_dicts()
    means, variances = (
        np.array([state[f"norm.running_{name}"][:count] for state in states], np.float64)
        for name in ("mean", "var")
    )
    std = np.sqrt(variances.mean(axis=0) + means.var(axis=0))
    return TrainingStatistics(
        contract.features,
        means.mean(axis=0).astype(np.float32),
        np.maximum(std, SMALLEST_STD).astype(np.float32),
        _distinct(contract),
    )


def _distinct(contract: Contract) -> tuple[int, ...]:
    """Positions of inputs that no earlier one equals."""
    seen: set[str] = set()
    kept = []
    for place, entry in enumerate(contract.snapshot):
        content = entry.model_copy(update={"name": "", "note": ""}).model_dump_json()
        if content not in seen:
            kept.append(place)
        seen.add(content)
    return tuple(kept)


def standard_scores(statistics: TrainingStatistics, snapshot: Float32) -> Float32:
    """Distance of each input from its mean over the training set, in standard deviations.

    Parameters
    ----------
    statistics : TrainingStatistics
    snapshot : (feature, pixel) ndarray of float32

    Returns
    -------
    (feature, pixel) ndarray of float32
    """
    mean, std = statistics.mean[:, None], statistics.std[:, None]
    scores: Float32 = (snapshot - mean) / std
    return scores


def distance(statistics: TrainingStatistics, snapshot: Float32) -> Float32:
    """Root mean square of the standard scores of the distinct inputs.

    Computes. Pixels do not depend on each other, so the result does not depend on blocks.

    Parameters
    ----------
    statistics : TrainingStatistics
    snapshot : (feature, pixel) ndarray of float32
        Normalised inputs, as the networks see them.

    Returns
    -------
    (pixel,) ndarray of float32
        NaN where an input is missing.
    """
    total = np.zeros(snapshot.shape[1], np.float32)
    score = np.empty_like(total)
    for place in statistics.distinct:
        np.subtract(snapshot[place], statistics.mean[place], out=score)
        np.divide(score, statistics.std[place], out=score)
        np.multiply(score, score, out=score)
        np.add(total, score, out=total)
    np.divide(total, np.float32(len(statistics.distinct)), out=total)
    return np.sqrt(total, out=total)


def domain_table(
    cube: xr.Dataset, model: str | Path | Ensemble = "DenseSM-E", res: str | None = None
) -> pd.DataFrame:
    """Compare the inputs of a cube with those that an ensemble was trained on, one by one.

    Computes the features of the whole cube; select a part of a large one first.

    Parameters
    ----------
    cube : Dataset
        Map or sample form.
    model : str, Path or Ensemble, default "DenseSM-E"
    res : {"9km", "1km", "500m", "100m"}, optional
        Which ensemble of a family is meant.

    Returns
    -------
    DataFrame
        One row for each distinct input, the most unusual first: ``input``, ``units``,
        ``trained_mean`` and ``trained_std``, ``cube_mean``, ``cube_min`` and ``cube_max`` (all
        in `units`; of cyclic inputs the normalised cosine or sine), ``distance`` (root mean
        square of the standard scores) and ``far`` (share of cells beyond 3 standard deviations).

    Raises
    ------
    CubeError
        When the Dataset is not a cube.
    WeightsError
        When the weights are not at hand.
    """
    import pandas as pd

    ensemble = get_ensemble(model, res)
    statistics = statistics_of(ensemble)
    snapshot = compute_features(cube, ensemble.contract)["snapshot"].values
    snapshot = snapshot.reshape(-1, len(statistics.features))
    snapshot = snapshot[np.isfinite(snapshot).all(axis=1)].T
    if not snapshot.size:
        msg = "no cell of the cube has all inputs; nothing can be compared with the training"
        raise ValueError(msg)
    scores = standard_scores(statistics, snapshot)
    rows = [
        _row(ensemble.contract.snapshot[place], ensemble.contract, statistics, place)
        | _cube_row(ensemble.contract, place, snapshot[place])
        | {
            "distance": float(np.sqrt(np.mean(scores[place].astype(np.float64) ** 2))),
            "far": float(np.mean(np.abs(scores[place]) > FAR)),
        }
        for place in statistics.distinct
    ]
    table = pd.DataFrame(rows)
    return table.sort_values("distance", ascending=False, kind="stable", ignore_index=True)


def _row(
    entry: Input, contract: Contract, statistics: TrainingStatistics, place: int
) -> dict[str, Any]:
    low, width, units = _physical(entry, contract)
    return {
        "input": entry.name,
        "units": units,
        "trained_mean": low + width * float(statistics.mean[place]),
        "trained_std": width * float(statistics.std[place]),
    }


def _cube_row(contract: Contract, place: int, values: Float32) -> dict[str, float]:
    low, width, _ = _physical(contract.snapshot[place], contract)
    return {
        "cube_mean": low + width * float(values.mean(dtype=np.float64)),
        "cube_min": low + width * float(values.min()),
        "cube_max": low + width * float(values.max()),
    }


def _physical(entry: Input, contract: Contract) -> tuple[float, float, str]:
    """Lower bound and width of an input's range, and its units."""
    bounds = entry.range
    if entry.summary is not None:
        channels = {channel.source: channel for channel in contract.series.channels}
        bounds = channels[entry.source].range
    if bounds is None:
        return 0.0, 1.0, "1"
    return bounds[0], bounds[1] - bounds[0], entry.units
