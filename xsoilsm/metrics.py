"""Measures of agreement between retrieved and true soil moisture: functions of arrays.

Definitions as in Entekhabi et al. (2010), Journal of Hydrometeorology 11, 832-840, and as in
pytesmo and QA4SM, whose names are R, RMSD, urmsd (ubRMSD) and BIAS. The bias here is retrieved
minus true.

Two kinds of confidence intervals:

* `analytic_intervals` take the pairs as independent draws. They are those of pytesmo and QA4SM.
* `bootstrap_intervals` resample *units*: whole sites, or stretches of time of one site. Samples
  of one site share its soil, its vegetation and the errors of its sensor, and neighbouring days
  share the weather, so intervals that take them as independent are far too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xsoilsm.quality import VALID_RANGE

__all__ = [
    "MEASURES",
    "Agreement",
    "agreement",
    "analytic_intervals",
    "as_row",
    "bootstrap_intervals",
    "fisher_interval",
    "inversion_rate",
    "measures",
    "unit_sums",
    "valid",
]

MEASURES = ("bias", "r", "rmse", "ubrmse", "inversion_rate")
"""Names of the measures, in the order of all tables."""

_ORIGIN = 0.25
"""Subtracted before squares are summed; near the middle of the data, so that digits are kept."""

_UNDEFINED = 0.05
"""An interval is given up where a larger share of draws has no value."""

Floats = npt.NDArray[np.float64]


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
    x, y = _pairs(retrieved, true)
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


def _pairs(retrieved: npt.ArrayLike, true: npt.ArrayLike) -> tuple[Floats, Floats]:
    x, y = np.asarray(retrieved, np.float64), np.asarray(true, np.float64)
    if x.shape != y.shape:
        msg = f"retrieved has shape {x.shape} and true {y.shape}; expected the same"
        raise ValueError(msg)
    return x, y


def valid(retrieved: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Tell which retrievals are finite and within 0 to 0.6 m3 m-3 (Zhu et al. 2024)."""
    x = np.asarray(retrieved, np.float64)
    low, high = VALID_RANGE
    with np.errstate(invalid="ignore"):
        inside: npt.NDArray[np.bool_] = (x >= low) & (x <= high)
    return inside


def inversion_rate(retrieved: npt.ArrayLike) -> float:
    """Share of retrievals that are valid, see `valid`; NaN where there are none.

    Computes.

    Parameters
    ----------
    retrieved : array_like
        m3 m-3. NaN counts as a retrieval that failed, because `xsoilsm.retrieve` turns values
        outside the valid range into NaN.

    Examples
    --------
    >>> inversion_rate([0.1, 0.3, 0.7, float("nan")])
    0.5
    """
    inside = valid(retrieved)
    return float(inside.mean()) if inside.size else np.nan


# --------------------------------------------------------------------------- independent pairs


def fisher_interval(r: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a correlation of independent pairs, by Fisher's z.

    Source: Bonett and Wright (2000), Psychometrika 65, 23-28; pytesmo's ``pearson_r_ci``.

    Parameters
    ----------
    r : float
        Pearson correlation.
    n : int
        Number of pairs; fewer than four have no interval.
    level : float, default 0.95

    Returns
    -------
    low, high : float
    """
    if n < 4 or not np.isfinite(r):
        return np.nan, np.nan
    if abs(r) >= 1:
        return float(np.sign(r)), float(np.sign(r))
    from statistics import NormalDist

    half = NormalDist().inv_cdf((1 + level) / 2) / np.sqrt(n - 3)
    z = np.arctanh(r)
    return float(np.tanh(z - half)), float(np.tanh(z + half))


def analytic_intervals(found: Agreement, level: float = 0.95) -> dict[str, tuple[float, float]]:
    """Confidence intervals of pairs that are independent draws, as pytesmo and QA4SM give them.

    Computes.

    Parameters
    ----------
    found : Agreement
    level : float, default 0.95

    Returns
    -------
    dict of str to (low, high)
        ``bias`` by Student's t, ``r`` by Fisher's z, ``ubrmse`` by chi square; NaN for fewer
        than four pairs.
    """
    n = found.n
    if n < 4:
        return dict.fromkeys(("bias", "r", "ubrmse"), (np.nan, np.nan))
    from scipy.special import chdtri, stdtrit

    half = found.ubrmse / np.sqrt(n - 1) * stdtrit(n - 1, (1 + level) / 2)
    tail = (1 - level) / 2
    spread = found.ubrmse * np.sqrt(n / np.array([chdtri(n - 1, tail), chdtri(n - 1, 1 - tail)]))
    return {
        "bias": (found.bias - float(half), found.bias + float(half)),
        "r": fisher_interval(found.r, n, level),
        "ubrmse": (float(spread[0]), float(spread[1])),
    }


# --------------------------------------------------------------------------- units


def unit_sums(
    retrieved: npt.ArrayLike, true: npt.ArrayLike, unit: npt.ArrayLike, units: int | None = None
) -> Floats:
    """Add up each unit; the measures of any union of units follow from these sums.

    Computes.

    Parameters
    ----------
    retrieved, true : (sample,) array_like
        m3 m-3. Samples without truth do not count; invalid retrievals (`valid`) count for the
        inversion rate alone.
    unit : (sample,) array_like of int
        Number of the unit of each sample, from 0.
    units : int, optional
        Number of units.

    Returns
    -------
    (unit, 7) ndarray
        Samples with truth, valid pairs, and the sums of x, y, x^2, y^2, xy over the latter,
        x and y counted from 0.25 m3 m-3.
    """
    x, y = _pairs(retrieved, true)
    codes = np.asarray(unit)
    known = np.isfinite(y)
    x, y, codes = x[known] - _ORIGIN, y[known] - _ORIGIN, codes[known]
    inside = valid(x + _ORIGIN)
    x, y = np.where(inside, x, 0.0), np.where(inside, y, 0.0)
    size = units if units is not None else int(codes.max(initial=-1)) + 1
    columns = (None, inside, x, y, x * x, y * y, x * y)
    return np.stack([np.bincount(codes, w, minlength=size).astype(float) for w in columns], axis=-1)


def measures(sums: Floats) -> dict[str, Floats]:
    """Compute the measures from sums of units, see `unit_sums`.

    Computes.

    Parameters
    ----------
    sums : (..., 7) ndarray

    Returns
    -------
    dict of str to (...) ndarray
        `MEASURES`; NaN where a measure is not defined.
    """
    samples, n, sx, sy, sxx, syy, sxy = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x, mean_y = sx / n, sy / n
        var_x = np.maximum(sxx / n - mean_x**2, 0)
        var_y = np.maximum(syy / n - mean_y**2, 0)
        cov = sxy / n - mean_x * mean_y
        bias = mean_x - mean_y
        ubrmse = np.sqrt(np.maximum(var_x + var_y - 2 * cov, 0))
        smallest = 1e-14  # what rounding leaves of the variance of a constant
        varies = (n > 1) & (var_x > smallest) & (var_y > smallest)
        r = np.where(varies, np.clip(cov / np.sqrt(var_x * var_y), -1, 1), np.nan)
        return {
            "bias": bias,
            "r": r,
            "rmse": np.sqrt(bias**2 + ubrmse**2),
            "ubrmse": ubrmse,
            "inversion_rate": n / samples,
        }


def bootstrap_intervals(
    sums: Floats,
    level: float = 0.95,
    *,
    draws: int = 1000,
    seed: int = 0,
    minus: Floats | None = None,
) -> dict[str, tuple[float, float]]:
    """Confidence intervals by drawing units with replacement.

    Computes. The same input gives the same intervals.

    Parameters
    ----------
    sums : (unit, 7) ndarray
        Of `unit_sums`: the units are what is independent, for instance sites.
    level : float, default 0.95
    draws : int, default 1000
    seed : int, default 0
    minus : (unit, 7) ndarray, optional
        Of another retrieval of the same units: gives intervals of the differences of the
        measures, `sums` minus `minus`, from the same draws.

    Returns
    -------
    dict of str to (low, high)
        NaN for fewer than two units, or where a measure is undefined in many draws.

    Notes
    -----
    Percentiles of the draws, at levels expanded after Hesterberg (2015), The American
    Statistician 69, 371-386, which makes up for the narrowness of the bootstrap with few units.
    """
    units = len(sums)
    if units < 2:
        return dict.fromkeys(MEASURES, (np.nan, np.nan))
    from scipy.special import ndtr, stdtrit

    rng = np.random.default_rng(seed)
    parts: list[dict[str, Floats]] = []
    at_once = max(1, 4_000_000 // units)
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        times = rng.multinomial(units, np.full(units, 1 / units), size=size).astype(np.float64)
        drawn = measures(times @ sums)
        if minus is not None:
            other = measures(times @ minus)
            drawn = {name: drawn[name] - other[name] for name in MEASURES}
        parts.append(drawn)
    tail = float(ndtr(np.sqrt(units / (units - 1)) * stdtrit(units - 1, (1 - level) / 2)))
    return {
        name: _percentiles(np.concatenate([part[name] for part in parts]), tail)
        for name in MEASURES
    }


def _percentiles(drawn: Floats, tail: float) -> tuple[float, float]:
    defined = drawn[np.isfinite(drawn)]
    if defined.size < (1 - _UNDEFINED) * drawn.size:
        return np.nan, np.nan
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def as_row(sums: Floats, intervals: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Make one row of a table: counts, measures, and intervals as ``*_low`` and ``*_high``."""
    total = np.asarray(sums).sum(axis=0)
    found = measures(total)
    row: dict[str, Any] = {"samples": int(total[0]), "n": int(total[1])}
    for name in MEASURES:
        row[name] = float(found[name])
        row[f"{name}_low"], row[f"{name}_high"] = intervals.get(name, (np.nan, np.nan))
    return row
