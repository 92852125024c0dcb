"""Step 5 of 7 (networks): from files of samples to an ensemble; what ``xsoilsm train`` calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xsoilsm.training.labelled import Samples
from xsoilsm.training.recipe import Recipe

if TYPE_CHECKING:
    from xsoilsm.ensemble import Ensemble

__all__ = ["KINDS", "describe_ensemble", "read_settings", "read_shape", "train_files"]

KINDS = ("coarse", "transfer", "benchmark", "adaptation")


def read_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Read settings of a recipe as a user writes them.

    Parameters
    ----------
    texts : sequence of str
        ``"name=value"``; whole numbers, numbers, ``true``, ``false`` and ``none`` are understood.

    Returns
    -------
    dict of str to value

    Raises
    ------
    ValueError
        For a text without ``=``.

    Examples
    --------
    >>> read_settings(["learning_rate=1e-4", "balance=site", "correct_bias=true"])
    {'learning_rate': 0.0001, 'balance': 'site', 'correct_bias': True}
    """
    words = {"true": True, "false": False, "none": None}
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            msg = f"{text!r} is not a setting; expected NAME=VALUE, for instance epochs=200"
            raise ValueError(msg)
        settings[name.strip()] = words.get(value.lower(), _number(value))
    return settings


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def train_files(
    samples: str | Path,
    name: str,
    *,
    kind: str = "transfer",
    base: str | None = None,
    coarse: str | Path | None = None,
    target: str | Path | None = None,
    contract: str | None = None,
    members: Sequence[str] = (),
    settings: Sequence[str] = (),
    progress: Callable[[float | str], None] | None = None,
    **options: Any,
) -> Ensemble:
    """Train an ensemble from files of samples.

    Computes.

    Parameters
    ----------
    samples, coarse, target : path
        See `Samples.read`.
    name : str
    kind : {"transfer", "coarse", "benchmark", "adaptation"}
    base : str, optional
        Default: the published ensemble, where the kind starts from one.
    contract : str, optional
        Default: that of the files, else that of the base.
    members : sequence of str
        ``"depth-width"``; default all.
    settings : sequence of str
        See `read_settings`.
    progress : callable, optional
    **options
        Of `xsoilsm.training.train_ensemble`.

    Returns
    -------
    Ensemble

    Raises
    ------
    ValueError
        For whatever does not fit together.
    """
    from xsoilsm.ensemble import get_ensemble
    from xsoilsm.training.record import train_ensemble

    if kind not in KINDS:
        msg = f"kind is {kind!r}; expected one of {', '.join(KINDS)}"
        raise ValueError(msg)
    recipe: Recipe = getattr(Recipe, kind)(**read_settings(settings))
    start = get_ensemble(base or "DenseSM-E", "9km") if recipe.from_base or base else None
    if start is not None:
        start.require_weights()
    labelled = Samples.read(samples, contract or _named(samples, start))
    others: dict[str, Any] = {
        key: None if path is None else Samples.read(path, labelled.contract, label=label)
        for key, path, label in (("coarse", coarse, "soil_moisture"), ("target", target, None))
    }
    shapes = [read_shape(label) for label in members] or None
    return train_ensemble(
        labelled, name, recipe, base=start, shapes=shapes, progress=progress, **others, **options
    )


def _named(path: str | Path, base: Ensemble | None) -> Any:
    """Contract of a cube in physical units: that of the base. Tables bring their own."""
    physical = Path(path).suffix in (".zarr", ".nc")
    return base.contract if physical and base is not None else None


def read_shape(label: str) -> tuple[int, int]:
    """Depth and width of a network that is written as DEPTH-WIDTH."""
    depth, _, width = label.partition("-")
    if not (depth.isdigit() and width.isdigit()):
        msg = f"{label!r} is not a network; expected DEPTH-WIDTH, for instance 3-64"
        raise ValueError(msg)
    return int(depth), int(width)


def describe_ensemble(ensemble: Ensemble) -> str:
    """Say in a few lines what was trained."""
    training = ensemble.card.training
    lines = [
        f"{ensemble.name}: {len(ensemble.card.members)} networks for {ensemble.resolution}, "
        f"{training.kind} on {training.samples} samples, in {ensemble.folder}"
    ]
    lines += [f"  {key} {value:.4f} m3 m-3" for key, value in training.metrics.items()]
    if ensemble.card.simulated:
        lines.append("  trained on SIMULATED data")
    return "\n".join(lines)
