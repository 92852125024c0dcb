"""Measures of agreement between retrieved and true soil moisture: functions of arrays.

Definitions as in Entekhabi et al. (2010), Journal of Hydrometeorology 11, 832-840.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Agreement", "agreement"]


class Agreement(NamedTuple):
    """How well retrievals agree with the truth.

    Parameters
    ----------
    n : int
        Number of pairs in which both values are finite.
    bias : float
        Mean of retrieved minus true, m3 m-3.
    r : float
        Pearson correlation; NaN for fewer than two pairs or a constant.
    rmse : float
        Root mean square difference, m3 m-3.
    ubrmse : float
        The same after the bias is removed, m3 m-3.
    """

    n: int
    bias: float
    r: float
    rmse: float
    ubrmse: float


def agreement(retrieved: npt.ArrayLike, true: npt.ArrayLike) -> Agreement:
    """Compare retrievals with the truth, pair by pair.

    Computes.

    Parameters
    ----------
    retrieved, true : array_like
        Same shape, m3 m-3. Pairs with a NaN do not count.

    Returns
    -------
    Agreement

    Raises
    ------
    ValueError
        When the shapes differ.

    Examples
    --------
    >>> agreement([0.1, 0.2, 0.3], [0.1, 0.2, 0.4]).n
    3
    """
    x, y = np.asarray(retrieved, np.float64), np.asarray(true, np.float64)
    if x.shape != y.shape:
        msg = f"retrieved has shape {x.shape} and true {y.shape}; expected the same"
        raise ValueError(msg)
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    if not x.size:
        return Agreement(0, np.nan, np.nan, np.nan, np.nan)
    difference = x - y
    bias = float(difference.mean())
    varies = x.size > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
    r = float(np.corrcoef(x, y)[0, 1]) if varies else np.nan
    rmse = float(np.sqrt(np.mean(difference**2)))
    return Agreement(int(x.size), bias, r, rmse, float(np.std(difference)))
