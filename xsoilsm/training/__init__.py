"""Step 5 of 7 (networks): training, from samples with their truth to an ensemble of one's own.

`Samples` are inputs and truth, checked. A `Recipe` holds every setting: coarse training, transfer,
benchmark, domain adaptation. `train_ensemble` trains all members at once and saves an ensemble
that `xsoilsm.get_ensemble` finds; `train_members` is the same without files, for experiments.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xsoilsm.training.labelled import Samples
from xsoilsm.training.recipe import Recipe

if TYPE_CHECKING:
    from xsoilsm.training.loop import (
        Trained,
        TrainingError,
        TrainingWarning,
        predict_members,
        train_members,
    )
    from xsoilsm.training.record import DEFAULT_SHAPES, train_ensemble

__all__ = [
    "DEFAULT_SHAPES",
    "Recipe",
    "Samples",
    "Trained",
    "TrainingError",
    "TrainingWarning",
    "predict_members",
    "train_ensemble",
    "train_members",
]

_RECORD = ("DEFAULT_SHAPES", "train_ensemble")


def __getattr__(name: str) -> Any:
    """Import what needs PyTorch at first use."""
    if name in __all__:
        module = "record" if name in _RECORD else "loop"
        return getattr(import_module(f"xsoilsm.training.{module}"), name)
    msg = f"module 'xsoilsm.training' has no attribute {name!r}"
    raise AttributeError(msg)
