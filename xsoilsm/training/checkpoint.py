"""Step 5 of 7 (networks): what a training leaves on the disk while it runs.

A checkpoint is one safetensors file that appears under its name when it is complete. It holds
everything that the rest of the training depends on, and the identity of the training: recipe,
data, members and start. The log is a CSV table with one row per epoch and network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xsoilsm.state import one_line
from xsoilsm.weights import write_file
from xsoilsm.wholefile import write_whole

if TYPE_CHECKING:
    import torch

__all__ = ["COLUMNS", "Checkpoint", "Log", "read_checkpoint", "write_checkpoint"]

COLUMNS = ("loss", "train_rmse", "validation_rmse", "outside", "seconds")
"""What the history says of each epoch and network.

The loss as the optimiser sees it, RMSE in m3 m-3 on the training samples (with dropout) and on
those held back (without; NaN where there are none), share of the training predictions outside 0 to
0.6 m3 m-3, seconds since the start.
"""


class Checkpoint(NamedTuple):
    """State of a training after a whole epoch."""

    tensors: dict[str, torch.Tensor]
    epoch: int
    numbers: dict[str, Any]


def write_checkpoint(path: Path, checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Write a checkpoint under a temporary name and rename it.

    Parameters
    ----------
    path : Path
    checkpoint : Checkpoint
    identity : mapping
        What the training is.
    """
    from safetensors.torch import save

    facts = {"epoch": checkpoint.epoch, "identity": identity, "numbers": checkpoint.numbers}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    content = save(tensors, metadata={"xsoilsm": json.dumps(facts)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def read_checkpoint(path: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """Read a checkpoint of the same training.

    Parameters
    ----------
    path : Path
    identity : mapping

    Returns
    -------
    Checkpoint or None
        None where there is no file.

    Raises
    ------
    ValueError
        When the file belongs to another training or cannot be read; it is left as it is.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["xsoilsm"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        msg = (
            f"{path} cannot be read as a checkpoint ({one_line(error)}); move it away to start "
            "from the beginning"
        )
        raise ValueError(msg) from error
    found = facts["identity"]
    other = [key for key in identity if found.get(key) != json.loads(json.dumps(identity[key]))]
    if other:
        msg = (
            f"{path} belongs to another training, which differs in {', '.join(other)}; name "
            "another file, or move this one away"
        )
        raise ValueError(msg)
    return Checkpoint(tensors, int(facts["epoch"]), facts["numbers"])


class Log:
    """CSV table of a training, which grows by one epoch at a time.

    Parameters
    ----------
    path : Path, optional
        None: nothing is written.
    labels : sequence of str
        Names of the networks, ``"depth-width"``.
    history : (epoch, member, column) ndarray
        What is known already, after a resume; the file is written anew up to there.
    """

    def __init__(
        self, path: Path | None, labels: Sequence[str], history: npt.NDArray[np.float64]
    ) -> None:
        self.path, self.labels = path, labels
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = ",".join(("epoch", "member", *COLUMNS)) + "\n"
            text += "".join(self._rows(epoch, table) for epoch, table in enumerate(history, 1))
            write_file(path, text.encode())

    def add(self, epoch: int, table: npt.NDArray[np.float64]) -> None:
        """Append the rows of an epoch, counted from 1."""
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self._rows(epoch, table))

    def _rows(self, epoch: int, table: npt.NDArray[np.float64]) -> str:
        return "".join(
            f"{epoch},{label},{','.join(f'{value:.6g}' for value in row)}\n"
            for label, row in zip(self.labels, table, strict=True)
        )
