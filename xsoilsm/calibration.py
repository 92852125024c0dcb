"""Step 6 of 7 (explain): an uncertainty, where truth has told how wrong an ensemble is.

The spread of the members says where they disagree, not how wrong they are together. Only a
comparison with a truth table on cells that took no part in training can tell that, so an
uncertainty exists only where an ensemble's card carries a `Calibration`:

    u = sqrt(floor^2 + (factor * spread)^2),

the standard deviation of a normal distribution of retrieval minus truth, with `floor` and
`factor` of greatest likelihood. It holds for the grid and the kind of truth that it was found
with, and includes what stations fail to represent of a cell.

Source of the form: Gneiting et al. (2005), Calibrated Probabilistic Forecasting Using Ensemble
Model Output Statistics, doi 10.1175/MWR2904.1, whose variance is ``c + d S^2``.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, field_validator

from xsoilsm.grid import get_grid

__all__ = ["Calibration", "fit_calibration", "share_within", "uncertainty"]

Float = npt.NDArray[np.floating]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

FEWEST = 100
"""Fewest pairs of retrieval and truth from which a calibration is fitted."""


class Calibration(BaseModel):
    """How spread becomes uncertainty; a part of an ensemble's card.

    Parameters
    ----------
    floor : float
        In m3 m-3.
    factor : float
    resolution : {"9km", "1km", "500m", "100m"}
        Grid of the retrievals that were compared; it does not hold for another.
    truth : str
        What was compared with, in words.
    truth_sha256 : str
        SHA-256 of the truth table.
    samples : int
    within : float
        Share of truths within one uncertainty, on samples that took no part in the fit; 0.68 if
        all is well.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    form: Literal["floor-and-factor"] = "floor-and-factor"
    floor: NotNegative
    factor: NotNegative
    resolution: str
    truth: str = Field(min_length=1)
    truth_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    samples: int = Field(ge=FEWEST)
    within: float = Field(ge=0, le=1)

    @field_validator("resolution")
    @classmethod
    def _known_grid(cls, resolution: str) -> str:
        return get_grid(resolution).name


def uncertainty(calibration: Calibration, spread: Float) -> npt.NDArray[np.float32]:
    """Turn the spread of the members into a standard uncertainty.

    Parameters
    ----------
    calibration : Calibration
    spread : ndarray
        In m3 m-3.

    Returns
    -------
    ndarray of float32
        In m3 m-3.
    """
    scaled = np.float32(calibration.factor) * np.asarray(spread, np.float32)
    found: npt.NDArray[np.float32] = np.hypot(np.float32(calibration.floor), scaled)
    return found


def fit_calibration(spread: Float, error: Float) -> tuple[float, float]:
    """Find the floor and the factor of greatest likelihood.

    Computes.

    Parameters
    ----------
    spread, error : (n,) ndarray
        Spread of the members, and retrieval minus truth, in m3 m-3, of retrievals whose truth
        took no part in training. Pairs with a NaN are left out.

    Returns
    -------
    floor, factor : float

    Raises
    ------
    ValueError
        For fewer than 100 pairs.
    """
    from scipy.optimize import minimize

    spread, error = np.asarray(spread, np.float64), np.asarray(error, np.float64)
    known = np.isfinite(spread) & np.isfinite(error)
    if np.count_nonzero(known) < FEWEST:
        msg = (
            f"{np.count_nonzero(known)} pairs of retrieval and truth; expected at least {FEWEST} "
            "for a calibration"
        )
        raise ValueError(msg)
    squares, errors = spread[known] ** 2, error[known] ** 2
    # In units of the mean square error both numbers are near 1.
    unit = max(float(errors.mean()), np.finfo(np.float64).tiny)
    squares, errors = squares / unit, errors / unit

    def loss(parameters: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        variance = parameters[0] + parameters[1] * squares
        slope = (1 - errors / variance) / variance
        value = np.mean(np.log(variance) + errors / variance)
        return float(value), np.array([slope.mean(), (slope * squares).mean()])

    start = np.array([0.5, 0.5 / max(float(squares.mean()), 1e-9)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(1e-6, None), (0.0, None)])
    return float(np.sqrt(found.x[0] * unit)), float(np.sqrt(found.x[1]))


def share_within(error: Float, uncertainties: Float) -> float:
    """Share of errors within one standard uncertainty; 0.68 for a calibrated normal error."""
    known = np.isfinite(error) & np.isfinite(uncertainties)
    if not known.any():
        msg = "no error with an uncertainty; nothing can be counted"
        raise ValueError(msg)
    return float(np.mean(np.abs(error[known]) <= uncertainties[known]))
