"""Step 5 of 7 (networks): losses, distances between two sets of features, matching of quantiles.

All functions work on several networks at once; the member is the first axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["DISTANCES", "LOSSES", "coral", "mape", "match_quantiles", "mmd", "rmse"]

Tensor = torch.Tensor
SMALLEST_LABEL = 0.02
"""m3 m-3; relative errors of drier samples are taken relative to it."""

_TINY = 1e-12


def rmse(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Root mean square difference of each network, and its derivative.

    Parameters
    ----------
    predictions : (member, n) tensor
    labels : (n,) tensor

    Returns
    -------
    loss : (member,) tensor
    derivative : (member, n) tensor
        By the predictions; zero where the loss is zero.
    """
    difference = predictions - labels
    loss = difference.square().mean(dim=1).sqrt()
    count = predictions.shape[1]
    return loss, difference / (count * loss.clamp_min(_TINY))[:, None]


def mape(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute difference relative to the label, and its derivative.

    Labels below `SMALLEST_LABEL` count as that, or one dry sample would outweigh all others.

    Parameters
    ----------
    predictions : (member, n) tensor
    labels : (n,) tensor

    Returns
    -------
    loss : (member,) tensor
    derivative : (member, n) tensor
    """
    difference = predictions - labels
    scale = labels.clamp_min(SMALLEST_LABEL)
    loss = (difference.abs() / scale).mean(dim=1)
    return loss, difference.sign() / (scale * predictions.shape[1])


LOSSES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {"rmse": rmse, "mape": mape}


def coral(source: Tensor, target: Tensor) -> Tensor:
    """Distance of the covariances of two sets of features, per network.

    ||C_s - C_t||_F / (2 f), the root of the loss of Sun and Saenko (2016), Deep CORAL,
    arXiv:1607.01719, equation 1; the root keeps it in the units of a covariance.

    Parameters
    ----------
    source, target : (member, f, n) tensor
        Features; the two may differ in n.

    Returns
    -------
    (member,) tensor
    """
    difference = _covariance(source) - _covariance(target)
    squares = difference.square().sum(dim=(1, 2))
    return (squares + _TINY).sqrt() / (2 * source.shape[1])


def _covariance(features: Tensor) -> Tensor:
    centred = features - features.mean(dim=2, keepdim=True)
    return centred @ centred.transpose(1, 2) / (features.shape[2] - 1)


def mmd(source: Tensor, target: Tensor, kernels: int = 5, spread: float = 2.0) -> Tensor:
    """Maximum mean discrepancy of two sets of features, per network.

    The squared discrepancy, biased estimate, of Gretton et al. (2012), Journal of Machine
    Learning Research 13, 723-773, equation 5, with a sum of Gaussian kernels as in Long et al.
    (2015), arXiv:1502.02791: their bandwidths are the mean squared distance between all samples
    times powers of `spread` around 1.

    Parameters
    ----------
    source, target : (member, f, n) tensor
    kernels : int, default 5
    spread : float, default 2

    Returns
    -------
    (member,) tensor
    """
    both = torch.cat((source, target), dim=2).transpose(1, 2)
    squares = both.square().sum(dim=2)
    distances = squares[:, :, None] + squares[:, None] - 2 * both @ both.transpose(1, 2)
    distances = distances.clamp_min(0)
    count = both.shape[1]
    bandwidth = distances.detach().sum(dim=(1, 2)) / (count * (count - 1))
    exponents = [number - kernels // 2 for number in range(kernels)]
    similar = torch.zeros_like(distances)
    for exponent in exponents:
        similar = similar + torch.exp(
            -distances / (bandwidth * spread**exponent + _TINY)[:, None, None]
        )
    n = source.shape[2]
    within = similar[:, :n, :n].mean(dim=(1, 2)) + similar[:, n:, n:].mean(dim=(1, 2))
    return within - 2 * similar[:, :n, n:].mean(dim=(1, 2))


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"coral": coral, "mmd": mmd}


def match_quantiles(
    labels: npt.NDArray[Any], reference: npt.NDArray[Any], quantiles: int = 101
) -> npt.NDArray[np.float32]:
    """Map labels onto the distribution of reference values, rank by rank.

    Piecewise linear between equally spaced quantiles: Reichle and Koster (2004), Geophysical
    Research Letters 31, L19501.

    Parameters
    ----------
    labels, reference : (n,), (k,) ndarray
        m3 m-3.
    quantiles : int, default 101

    Returns
    -------
    (n,) ndarray of float32

    Examples
    --------
    >>> match_quantiles(np.array([0.1, 0.2, 0.3]), np.array([0.25, 0.5, 0.75])).tolist()
    [0.25, 0.5, 0.75]
    """
    at = np.linspace(0, 1, min(quantiles, labels.size, reference.size))
    own, first = np.unique(np.quantile(labels, at), return_index=True)
    matched = np.interp(labels, own, np.quantile(reference, at)[first])
    return np.asarray(matched, np.float32)
