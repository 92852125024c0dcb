"""Step 5 of 7 (networks): one call from stations to a local ensemble that is validated.

Samples of the cells that hold stations; cross-validation by site beside the untouched base; a
calibration of the spread from the sites held out; the training on all samples; card and report.
What is done lies in a folder of the data folder until the ensemble is saved, so that an
interrupted call goes on when it is made again.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from xsoilsm.calibration import Calibration
from xsoilsm.checks import check_cube
from xsoilsm.cube import CubeError, aggregate, is_sample_form
from xsoilsm.evaluation import (
    Evaluation,
    is_simulated,
    tabulate,
    write_report,
)
from xsoilsm.finetuning.folds import Fleet, cross_validate, deal, portion
from xsoilsm.finetuning.gather import (
    Stations,
    cube_digest,
    place_truth,
    read_truth,
    take_cube,
    truth_digest,
)
from xsoilsm.finetuning.measure import (
    FinetuningWarning,
    annotated,
    calibrate,
    calibrated,
    measured,
)
from xsoilsm.finetuning.settings import Settings, Start, agree, workplace
from xsoilsm.samples.form import check_contract
from xsoilsm.scenarios.splits import Split
from xsoilsm.training import Samples
from xsoilsm.wholefile import whole_file

if TYPE_CHECKING:
    from xsoilsm.card import EnsembleCard
    from xsoilsm.ensemble import Ensemble

__all__ = ["Finetuned", "FinetuningWarning", "finetune", "tune"]

SITES = 5
"""Fewest sites that can stand for others; fewer are validated, but calibrate nothing."""

TRAINING = 32
"""Fewest samples that networks are tuned on, in every fold."""


@dataclass(frozen=True, eq=False)
class Finetuned:
    """What a fine-tuning made.

    Parameters
    ----------
    ensemble : Ensemble
    evaluation : Evaluation, optional
        Of every site by networks that were not trained on it; None without validation.
    base : Evaluation, optional
        Of the untouched base on the same samples.
    gain : DataFrame, optional
        Tuned minus base with intervals, see `xsoilsm.evaluation.compare`.
    calibration : Calibration, optional
        None where there are too few sites or samples.
    samples : Dataset
    left_out : DataFrame
        What of the truth and the cube was left out, and why.
    report : Path, optional
    """

    ensemble: Ensemble
    evaluation: Evaluation | None
    base: Evaluation | None
    gain: pd.DataFrame | None
    calibration: Calibration | None
    samples: xr.Dataset
    left_out: pd.DataFrame
    report: Path | None

    def __str__(self) -> str:
        card = self.ensemble.card
        lines = [
            f"{card.name}: {len(card.members)} networks for {card.resolution}, tuned on "
            f"{self.samples.sizes['sample']} samples, in {self.ensemble.folder}"
        ]
        if card.simulated:
            lines.append("made with SIMULATED data")
        if self.evaluation is None or self.base is None:
            lines.append("NOT VALIDATED: nothing is known of its errors")
        else:
            lines += [str(self.evaluation), str(self.base)]
        if self.calibration is not None:
            lines.append(calibrated(self.calibration))
        if len(self.left_out):
            counts = self.left_out["reason"].value_counts()
            lines.append("left out or remarked: " + "; ".join(map(str, counts.index[:4])))
        if self.report is not None:
            lines.append(f"report: {self.report}")
        return "\n".join(lines)


def finetune(
    cube: xr.Dataset,
    stations: Stations | None,
    name: str,
    *,
    res: str | None = None,
    min_coverage: float = 0.5,
    restart: bool = False,
    progress: Callable[[float | str], None] | None = None,
    **options: object,
) -> Finetuned:
    """Tune an ensemble on stations, and say how well it does at sites that it never saw.

    Computes. Reads the chunks of the cube that hold stations. Unless told otherwise, the
    networks are first tuned once for each fold of sites and retrieve the sites left out; only
    then are they tuned on all samples. An interrupted call goes on when it is made again.

    Parameters
    ----------
    cube : Dataset
        Map form, lazy or not, of the days of the stations; or samples of `xsoilsm.samples` with
        `stations` None.
    stations : Truth, DataFrame, path or sequence of paths
        See `read_truth`.
    name : str
        Of the new ensemble, in lower case.
    res : {"9km", "1km", "500m", "100m"}, optional
        Grid to average the cube onto; its own by default.
    min_coverage : float, default 0.5
        Share of a cell that valid radar pixels must cover.
    restart : bool, default False
        Throw away what an interrupted call of this name left.
    progress : callable, optional
        Gets the share that is done and texts.
    **options
        See `xsoilsm.finetuning.settings.Settings`: ``base``, ``recipe``, ``epochs``, ``shapes``,
        ``validation``, ``folds``, ``block`` and more.

    Returns
    -------
    Finetuned

    Raises
    ------
    CubeError
        When the cube is not one.
    ValueError
        When truth, cube, samples and settings do not fit together, or a random split is to be
        called validation; each fault is named.
    WeightsError
        When the weights of the base are not at hand.
    FileExistsError
        When an ensemble or report of this name exists.
    TrainingError
        When a network diverges.

    Warns
    -----
    FinetuningWarning
        When there are fewer than five sites, few samples, or sites of one class only.

    Examples
    --------
    >>> from xsoilsm.finetuning import finetune
    >>> made = finetune(cube, "stations.csv", "my-region")  # doctest: +SKIP
    >>> print(made)  # doctest: +SKIP
    """
    settings = Settings(name, **options)  # type: ignore[arg-type]
    start = settings.prepare()
    if is_sample_form(cube):
        if stations is not None:
            msg = "samples hold their truth in 'soil_moisture'; pass stations=None with them"
            raise CubeError(msg)
        with workplace(name, restart) as folder:
            return tune(cube, _nothing_left_out(), settings, start, folder, progress=progress)
    if stations is None:
        msg = "a cube in map form needs stations: a table, its file, or an archive of the ISMN"
        raise ValueError(msg)
    check_cube(cube, averaging=start.base.contract.averaging)
    if res is not None:
        cube = aggregate(cube, res)
    truth = place_truth(cube, read_truth(stations))
    digest = truth_digest(truth)
    told = settings.simulated if settings.simulated is not None else is_simulated(cube)
    settings = replace(settings, simulated=told)
    with workplace(name, restart) as folder:
        identity = {
            "cube": cube_digest(cube),
            "truth": digest,
            "contract": start.base.contract.digest,
            "min_coverage": min_coverage,
        }
        agree(folder, identity)
        samples, left_out = take_cube(
            cube,
            truth,
            start.base.contract,
            folder,
            min_coverage=min_coverage,
            progress=portion(progress, 0.0, 0.2, "samples"),
        )
        rest = portion(progress, 0.2, 1.0)
        return tune(samples, left_out, settings, start, folder, digest=digest, progress=rest)


def _nothing_left_out() -> pd.DataFrame:
    from xsoilsm.truth.table import Remarks

    return Remarks().table()


def tune(
    samples: xr.Dataset,
    left_out: pd.DataFrame,
    settings: Settings,
    start: Start,
    folder: Path,
    *,
    digest: str | None = None,
    progress: Callable[[float | str], None] | None = None,
) -> Finetuned:
    """Validate, calibrate, train and save; what `finetune` does once there are samples.

    Computes. Parameters as there; `folder` is that of `workplace`, `digest` that of the truth.
    """
    check_contract(samples, start.base.contract)
    labelled = Samples.of_cube(samples)
    start.check(labelled)
    count = len(labelled)
    table = tabulate(samples.assign(predicted=("sample", np.full(count, np.nan))))
    table.attrs = {"simulated": _simulated(samples, settings)}
    splits: list[Split] = []
    sites = 0
    if settings.validation is not None:
        splits, sites = deal(table, settings.folds, settings.block, start.recipe.seed)
    smallest = min([count, *(split.train.size for split in splits)])
    start = _with_batch(start, smallest, count)
    fleet = start.fleet(settings)
    share = len(splits) / (len(splits) + 1)
    asked = {"folds": len(splits), "block": settings.block, **fleet.identity(labelled)}
    agree(folder, asked, "training.json")
    _warn_of_classes(table)
    digest = digest or labelled.digest
    tuned = before = gain = calibration = None
    if splits:
        _warn_of_few(sites)
        held = cross_validate(labelled, splits, fleet, folder, portion(progress, 0.0, share))
        tuned, before, gain = measured(table, labelled, held, fleet, start, settings.name)
        if sites >= SITES:
            calibration = calibrate(table, held, labelled.resolution, digest, len(splits))
        tuned = annotated(tuned, gain, calibration, start, len(splits), settings.block)
    page = None
    if tuned is not None and before is not None:
        page = folder / "report.html"
        title = f"{settings.name}: cross-validation by site"
        write_report([tuned, before], page, title=title, overwrite=True)
    card, states = _trained(
        labelled, table, settings, start, fleet, folder, portion(progress, share, 1.0, "all sites")
    )
    card = _told(card, tuned, before, calibration, digest, len(splits))
    from xsoilsm.ensemble import save_ensemble

    replaced = settings.overwrite or start.is_saved(card)
    ensemble = save_ensemble(card, states, settings.folder, overwrite=replaced)
    report = None
    if page is not None:
        report = settings.report_path
        with whole_file(report, overwrite=True) as scratch:
            shutil.copyfile(page, scratch)
    shutil.rmtree(folder, ignore_errors=True)
    return Finetuned(ensemble, tuned, before, gain, calibration, samples, left_out, report)


def _simulated(samples: xr.Dataset, settings: Settings) -> bool:
    return is_simulated(samples) if settings.simulated is None else settings.simulated


# --------------------------------------------------------------------------- what there is


def _with_batch(start: Start, smallest: int, count: int) -> Start:
    """Take a smaller batch where there are few samples; refuse where there are too few."""
    if smallest < TRAINING:
        msg = (
            f"{count} samples leave {smallest} for the smallest training; at least {TRAINING} are "
            "needed, and networks start to learn something from some hundreds. Load a cube of "
            "more acquisitions, or add stations"
        )
        raise ValueError(msg)
    if smallest >= start.recipe.batch:
        return start
    told = (
        f"the smallest training has {smallest} samples, fewer than a batch of "
        f"{start.recipe.batch}; the batch is {smallest} instead"
    )
    warnings.warn(told, FinetuningWarning, stacklevel=4)
    return replace(start, recipe=replace(start.recipe, batch=smallest))


def _warn_of_few(sites: int) -> None:
    if sites < SITES:
        told = (
            f"{sites} sites cannot stand for others: intervals speak of other days at these "
            f"sites, and the spread is not calibrated; that takes {SITES} sites"
        )
        warnings.warn(told, FinetuningWarning, stacklevel=4)


def _warn_of_classes(table: pd.DataFrame) -> None:
    """Warn where all sites are of one known class: nothing is said of others."""
    for column, words in (("land_cover", "land cover"), ("climate", "climate")):
        found = sorted(set(table[column]) - {""}) if column in table else []
        if len(found) == 1 and (table[column] != "").all():
            told = f"all sites have the {words} {found[0]!r}; nothing is known of others"
            warnings.warn(told, FinetuningWarning, stacklevel=4)


# --------------------------------------------------------------------------- what is saved


def _trained(
    samples: Samples,
    table: pd.DataFrame,
    settings: Settings,
    start: Start,
    fleet: Fleet,
    folder: Path,
    progress: Callable[[float | str], None] | None,
) -> tuple[EnsembleCard, list[dict[str, np.ndarray]]]:
    """Train on all samples; read what is there where that is done."""
    from xsoilsm.ensemble import CARD, get_ensemble
    from xsoilsm.training import train_ensemble

    staged = folder / "ensemble"
    if (staged / CARD).is_file():
        made = get_ensemble(staged)
        same = made.card.training.data.get("samples") == samples.digest
        if same and made.card.training.settings == start.recipe.settings():
            return made.card, made.state_dicts()
    days = table["time"].dt.strftime("%Y-%m-%d") if "time" in table else pd.Series(dtype=str)
    networks = sorted(set(table["network"]) - {""}) if "network" in table else []
    made = train_ensemble(
        samples,
        settings.name,
        start.recipe,
        base=start.base,
        shapes=fleet.shapes,
        coarse=fleet.coarse,
        target=fleet.target,
        family=start.base.card.family,
        title=settings.title or f"{start.base.card.family}, tuned at {samples.resolution}",
        truth=f"stations in {table['cell'].nunique()} cells; networks: {', '.join(networks)}",
        period=f"{days.min()}/{days.max()}" if len(days) else "",
        licence=settings.licence,
        statement=settings.statement,
        note=settings.note,
        simulated=bool(table.attrs["simulated"]) or start.base.card.simulated,
        folder=staged,
        overwrite=True,
        checkpoint=folder / "all.safetensors",
        checkpoint_seconds=settings.checkpoint_seconds,
        log=settings.report_folder / f"{settings.name}.csv",
        device=settings.device,
        threads=settings.threads,
        progress=progress,
    )
    return made.card, made.state_dicts()


def _told(
    card: EnsembleCard,
    tuned: Evaluation | None,
    before: Evaluation | None,
    calibration: Calibration | None,
    digest: str,
    folds: int,
) -> EnsembleCard:
    """Write into the card what was found at sites held out."""
    metrics = dict(card.training.metrics)
    validation = "Not validated: no site was held back, so nothing is known of its errors."
    if tuned is not None and before is not None:
        parts = []
        for found, key, words in (
            (tuned, "sites_held_out", "at sites held out"),
            (before, "base", "of the untouched base"),
        ):
            row = found.overall.iloc[0]
            for measure in ("bias", "rmse", "ubrmse"):
                for part in ("", "_low", "_high"):
                    value = float(row[measure + part])
                    if np.isfinite(value):
                        metrics[f"{measure}_{key}{part}"] = round(value, 6)
            parts.append(
                f"{words} R {row['r']:.3f}, RMSE {row['rmse']:.3f} m3 m-3, valid "
                f"{row['inversion_rate']:.0%}"
            )
        row = tuned.overall.iloc[0]
        validation = (
            f"Cross-validation by site in {folds} folds, {row['sites']} cells, {row['samples']} "
            f"samples: {'; '.join(parts)}."
        )
    training = card.training.model_copy(
        update={
            "validation": validation,
            "metrics": metrics,
            "data": {**card.training.data, "truth": digest},
        }
    )
    return card.model_copy(update={"training": training, "calibration": calibration})
