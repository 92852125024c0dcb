"""Step 5 of 7 (networks): how well sites held out are retrieved, and calibration."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd

from xsoilsm.calibration import FEWEST, Calibration, fit_calibration, share_within, uncertainty
from xsoilsm.evaluation import Evaluation, Independence, compare, evaluate
from xsoilsm.finetuning.folds import Fleet, HeldOut
from xsoilsm.finetuning.settings import Start
from xsoilsm.metrics import valid
from xsoilsm.training import Samples

__all__ = ["FinetuningWarning", "annotated", "calibrate", "calibrated", "measured"]


class FinetuningWarning(UserWarning):
    """The ensemble is made, but less can be said of it, or it can do less, than one may think."""


def measured(
    table: pd.DataFrame,
    samples: Samples,
    held: HeldOut,
    fleet: Fleet,
    start: Start,
    name: str,
) -> tuple[Evaluation, Evaluation, pd.DataFrame]:
    """Evaluate the sites held out, and the untouched base on the same samples."""
    from xsoilsm.training import predict_members

    each = predict_members(fleet.initial, samples, device=fleet.device, threads=fleet.threads)
    mean, spread = each.mean(axis=0), each.std(axis=0)
    apart: Independence = "sites" if start.base.resolution == "9km" else "not stated"
    simulated = bool(table.attrs["simulated"])
    tuned = evaluate(
        table.assign(predicted=held.predicted, spread=held.spread),
        truth="truth",
        name=f"{name}, sites held out",
        independence="sites",
        simulated=simulated,
    )
    before = evaluate(
        table.assign(predicted=mean, spread=spread),
        truth="truth",
        name=f"{start.base.name}, untouched",
        independence=apart,
        simulated=simulated,
    )
    return tuned, before, compare(table, held.predicted, mean)


def calibrate(
    table: pd.DataFrame, held: HeldOut, resolution: str, digest: str, folds: int
) -> Calibration | None:
    """Fit the spread to the errors at sites held out, and count on folds left out of the fit."""
    spread = held.spread.astype(np.float64)
    error = np.where(valid(held.predicted), held.predicted - table["truth"].to_numpy(), np.nan)
    known = np.isfinite(error)
    groups = [held.fold == number for number in range(folds)]
    fewest = min(np.count_nonzero(known & ~group) for group in groups)
    if fewest < FEWEST:
        told = (
            f"{fewest} retrievals of held-out sites remain without one fold; the spread is "
            f"calibrated from {FEWEST} on, so there will be no soil_moisture_uncertainty"
        )
        warnings.warn(told, FinetuningWarning, stacklevel=4)
        return None

    def fitted(inside: np.ndarray) -> Calibration:
        floor, factor = fit_calibration(spread[inside], error[inside])
        return Calibration(
            floor=floor,
            factor=factor,
            resolution=resolution,
            truth=f"stations in {table['cell'].nunique()} cells, each held out of training",
            truth_sha256=digest,
            samples=int(np.count_nonzero(inside)),
            within=0.0,
        )

    widths = np.full(error.shape, np.nan)
    for group in groups:
        widths[group] = uncertainty(fitted(known & ~group), spread[group])
    within = share_within(error, widths)
    return fitted(known).model_copy(update={"within": round(within, 4)})


def calibrated(calibration: Calibration) -> str:
    """Say a calibration in words."""
    return (
        f"uncertainty = sqrt({calibration.floor:.4f}^2 + ({calibration.factor:.3f} * spread)^2) "
        f"m3 m-3, from {calibration.samples} retrievals of sites held out; "
        f"{calibration.within:.0%} of truths lay within one, at sites left out of the fit (68 % "
        "should)"
    )


def annotated(
    tuned: Evaluation,
    gain: pd.DataFrame,
    calibration: Calibration | None,
    start: Start,
    folds: int,
    block: str | None,
) -> Evaluation:
    """Say in the evaluation, and so in the report, how it came about."""
    kept = f"sites in one {block} cell stay together" if block else "a site is a cell of the grid"
    notes = [f"Cross-validation in {folds} folds; {kept}."]
    for measure, words in (("rmse", "RMSE"), ("r", "R")):
        row = gain.loc[measure]
        interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if np.isfinite(row["low"]) else ""
        notes.append(
            f"{words} at sites held out minus that of the untouched {start.base.name}: "
            f"{row['difference']:+.3f}{interval}."
        )
    said = "The spread is not calibrated: there are too few sites or retrievals."
    if calibration is not None:
        said = f"Calibrated {calibrated(calibration)}."
    notes.append(said)
    notes.append("The ensemble itself is trained on all sites, the networks measured here are not.")
    return replace(tuned, notes=(*tuned.notes, *notes))
