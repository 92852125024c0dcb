"""Step 5 of 7 (networks): from samples to a saved ensemble, with the record of its training."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from xsoilsm.card import Citation, EnsembleCard, Licence, Member, Training
from xsoilsm.catalog import CatalogError
from xsoilsm.ensemble import CARD, Ensemble, data_dir, get_ensemble, save_ensemble
from xsoilsm.training.labelled import Samples
from xsoilsm.training.loop import Trained, predict_members, train_members
from xsoilsm.training.recipe import Recipe

__all__ = ["DEFAULT_SHAPES", "train_ensemble"]

DEFAULT_SHAPES = tuple((depth, width) for depth in range(1, 6) for width in (8, 16, 32, 64, 128))
"""Depth and width of the 25 networks of DenseSM-E."""

CITATION = Citation(
    text=(
        "Zhu, Dai, Liu, Yuan, Qin, Walker (2024). A cross-resolution transfer learning approach "
        "for soil moisture retrieval from Sentinel-1 using limited training samples. Remote "
        "Sensing of Environment 301, 113944."
    ),
    doi="10.1016/j.rse.2023.113944",
)

_log = logging.getLogger(__name__)


def train_ensemble(
    samples: Samples,
    name: str,
    recipe: Recipe,
    *,
    base: str | Path | Ensemble | None = None,
    shapes: Sequence[tuple[int, int]] | None = None,
    coarse: Samples | None = None,
    target: Samples | None = None,
    family: str = "DenseSM-E",
    title: str = "",
    truth: str = "",
    period: str = "",
    licence: str | None = None,
    statement: str = "",
    note: str = "",
    simulated: bool = False,
    folder: str | Path | None = None,
    overwrite: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    log: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: Callable[[float | str], None] | None = None,
) -> Ensemble:
    """Train all members of an ensemble and save it.

    Computes. An interrupted training goes on where it was when the same call is made again, and
    ends in the same parameters. Nothing that exists is touched before the training is done.

    Parameters
    ----------
    samples : Samples
        With labels.
    name : str
        Of the new ensemble, in lower case; `xsoilsm.get_ensemble` finds it under this name.
    recipe : Recipe
    base : str, Path or Ensemble, optional
        What a transfer or an adaptation starts from; ``"DenseSM-E"`` is the published ensemble.
    shapes : sequence of (int, int), optional
        Depth and width of each network. Default: those of the base, else the 25 of DenseSM-E.
        With a base, members of it.
    coarse, target : Samples, optional
        See `xsoilsm.training.train_members`.
    family, title, truth, period, note : str
        For the card: `truth` and `period` say what the labels are and when they were measured.
    licence : str, optional
        SPDX name of the terms.
    statement : str
        The terms in words. Default: that there are none, and those of the base.
    simulated : bool, default False
        The samples are simulated; such an ensemble never stands for its family, nor does one
        that was tuned from it.
    folder : path, optional
        Default: the data folder.
    overwrite : bool, default False
        Replace an ensemble of this name when the training is done.
    checkpoint, log : path, optional
        Default: ``training/NAME.safetensors`` and ``training/NAME.csv`` in the data folder. The
        checkpoint is removed when the ensemble is saved.
    checkpoint_seconds : float, default 60
        Least time between checkpoints.
    device : {"auto", "cpu", "cuda"}
    threads : int, optional
    progress : callable, optional
        Gets the share that is done and texts with the losses.

    Returns
    -------
    Ensemble

    Raises
    ------
    ValueError
        When samples, recipe and base do not fit together.
    CatalogError
        When the name or another fact for the card is not valid.
    WeightsError
        When the weights of the base are missing.
    FileExistsError
        When an ensemble of this name exists.
    TrainingError
        When a network diverges.
    """
    start = None if base is None else get_ensemble(base)
    if start is not None:
        _check_base(start, samples, recipe)
        simulated = simulated or start.card.simulated
    shapes, initial = _start(start, shapes)
    # Draw up the card first: a name that cannot be used must not cost hours.
    card = _draft(
        samples, name, recipe, start, shapes, family, title, truth, period, note, simulated
    )
    card = card.model_copy(update={"licence": _licence(licence, statement, start)})
    place = Path(folder).expanduser() if folder else data_dir() / "ensembles" / name
    if not overwrite and place.exists() and any(place.iterdir()):
        msg = f"{place} exists; choose another name or pass overwrite=True"
        raise FileExistsError(msg)
    if place.exists() and any(place.iterdir()) and not (place / CARD).is_file():
        msg = f"{place} holds no ensemble and is not replaced; choose another folder"
        raise FileExistsError(msg)
    workshop = data_dir() / "training"
    checkpoint = Path(checkpoint or workshop / f"{name}.safetensors").expanduser()
    trained = train_members(
        samples,
        shapes,
        recipe,
        initial=initial,
        coarse=coarse,
        target=target,
        device=device,
        threads=threads,
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        log=Path(log or workshop / f"{name}.csv").expanduser(),
        progress=progress,
    )
    card = _with_results(card, samples, trained, coarse, target, device, threads)
    ensemble = save_ensemble(card, trained.states, folder, overwrite=overwrite)
    checkpoint.unlink(missing_ok=True)
    # Who names a folder may do more with it, as fine-tuning does, and says so itself.
    level = logging.INFO if folder is None else logging.DEBUG
    _log.log(level, "%s: saved in %s", ensemble.name, ensemble.folder)
    return ensemble


def _check_base(base: Ensemble, samples: Samples, recipe: Recipe) -> None:
    if not recipe.from_base:
        msg = f"a training of kind {recipe.kind!r} starts from nothing; leave base out"
        raise ValueError(msg)
    if base.contract.digest != samples.contract.digest:
        msg = (
            f"the samples were computed under the contract {samples.contract.name!r}, the ensemble "
            f"{base.name!r} reads {base.contract.name!r}; compute the features under its contract"
        )
        raise ValueError(msg)
    if base.resolution not in ("9km", samples.resolution):
        msg = (
            f"the ensemble {base.name!r} was tuned at {base.resolution}, the samples are at "
            f"{samples.resolution}; start from an ensemble for 9km or for {samples.resolution}"
        )
        raise ValueError(msg)


def _start(
    base: Ensemble | None, shapes: Sequence[tuple[int, int]] | None
) -> tuple[list[tuple[int, int]], list[dict[str, np.ndarray]] | None]:
    """Shapes of the networks, and the members of the base that have them."""
    if base is None:
        return list(DEFAULT_SHAPES if shapes is None else shapes), None
    members = {(m.depth, m.width): i for i, m in enumerate(base.card.members)}
    wanted = list(members if shapes is None else shapes)
    missing = [f"{depth}-{width}" for depth, width in wanted if (depth, width) not in members]
    if missing:
        known = ", ".join(m.label for m in base.card.members)
        msg = f"{base.name!r} has no member {', '.join(missing)}; expected of {known}"
        raise ValueError(msg)
    states = base.state_dicts()
    return wanted, [states[members[shape]] for shape in wanted]


def _licence(spdx: str | None, statement: str, base: Ensemble | None) -> Licence:
    if not statement:
        statement = "The maker of this ensemble states no terms." if spdx is None else spdx
        if base is not None:
            statement += f" It was tuned from {base.name}: {base.card.licence.statement}"
    return Licence(spdx=spdx, statement=statement)


def _draft(
    samples: Samples,
    name: str,
    recipe: Recipe,
    base: Ensemble | None,
    shapes: Sequence[tuple[int, int]],
    family: str,
    title: str,
    truth: str,
    period: str,
    note: str,
    simulated: bool,
) -> EnsembleCard:
    twins = [sum(s == shape for s in shapes[:i]) for i, shape in enumerate(shapes)]
    members = tuple(
        Member(
            depth=depth,
            width=width,
            file=f"{depth}_{width}{f'_{twin + 1}' if twin else ''}.safetensors",
        )
        for (depth, width), twin in zip(shapes, twins, strict=True)
    )
    validation = "No samples were held back."
    if recipe.validation:
        validation = (
            f"A random {recipe.validation:.0%} of the samples, from the cells and years of the "
            "training samples: it does not say what to expect elsewhere."
        )
    if recipe.kind == "coarse" and samples.resolution != "9km":
        msg = f"coarse training needs samples at 9km; these are at {samples.resolution}"
        raise ValueError(msg)
    try:
        return EnsembleCard(
            schema_version=1,
            name=name,
            family=family,
            title=title or f"{family}, {recipe.kind} at {samples.resolution}",
            resolution=samples.resolution,
            contract=samples.contract.to_dict(),
            members=members,
            licence=Licence(statement="-"),
            citation=CITATION,
            training=Training(
                kind=recipe.kind,
                truth=truth,
                period=period,
                base=None if base is None else base.digest,
                validation=validation,
                settings=recipe.settings(),
                note=note,
            ),
            simulated=simulated,
            created=datetime.datetime.now(datetime.UTC).date().isoformat(),
        )
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        msg = f"the ensemble {name!r} cannot be described by a card: {faults}"
        raise CatalogError(msg) from None


def _with_results(
    card: EnsembleCard,
    samples: Samples,
    trained: Trained,
    coarse: Samples | None,
    target: Samples | None,
    device: str,
    threads: int | None,
) -> EnsembleCard:
    """Fill in what is known after the training."""
    sets = {"samples": samples, "coarse": coarse, "target": target}
    data = {key: each.digest for key, each in sets.items() if each is not None}
    metrics = {"rmse_training_members": float(np.mean(trained.rmse))}
    held = trained.validation_index
    members = card.members
    if held.size:
        metrics["rmse_held_back_members"] = float(np.mean(trained.validation_rmse))
        part = samples.take(held)
        mean = predict_members(trained.states, part, device=device, threads=threads).mean(axis=0)
        if part.labels is not None:
            error = mean.astype(np.float64) - part.labels
            metrics["rmse_held_back"] = float(np.sqrt(np.mean(error**2)))
        members = tuple(
            member.model_copy(update={"rmse": round(float(rmse), 6)})
            for member, rmse in zip(members, trained.validation_rmse, strict=True)
        )
    training = card.training.model_copy(
        update={
            "samples": trained.samples,
            "data": data,
            "metrics": {key: round(value, 6) for key, value in metrics.items()},
        }
    )
    return card.model_copy(update={"training": training, "members": members})
