"""Step 5 of 7 (networks): all members of an ensemble as the modules of `xsoilsm.network`.

The slowest way of `xsoilsm.engine`, in which nothing is folded or rearranged: what the others
are compared with, and the last resort.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from xsoilsm.folding import fold
from xsoilsm.network import DenseSM
from xsoilsm.timemajor import in_batches

__all__ = ["Plain"]

BATCH = 1024
"""Pixels per batch, at which a loop over modules is fastest on a CPU."""

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


class Plain:
    """Networks on a device.

    Parameters
    ----------
    states : sequence of mapping of str to ndarray
        State dicts.
    device : {"cpu", "cuda"}
    """

    def __init__(self, states: Sequence[Mapping[str, npt.NDArray[Any]]], device: str) -> None:
        self.device = torch.device(device)
        self.modules = [_module(state).to(self.device) for state in states]

    def predict_many(
        self,
        snapshots: Float32,
        series: Float32,
        ends: Int64,
        valid: Bool | None = None,
        threads: int = 1,
    ) -> tuple[Float32, Float32]:
        """See `xsoilsm.engine.Engine.predict_many`; the inputs must have been checked."""
        return in_batches(
            self._predict_batch, BATCH, self.device, snapshots, series, ends, valid, threads
        )

    def _predict_batch(self, snapshots: Float32, series: Float32) -> tuple[Float32, Float32]:
        mean, std = np.empty((2, *snapshots[:, 0].shape), np.float32)
        year = self._put(series)
        for date, snapshot in enumerate(snapshots):
            inputs = self._put(snapshot), year
            outputs = torch.stack([module(*inputs) for module in self.modules])
            spread, middle = torch.std_mean(outputs, dim=0, correction=0)
            mean[date], std[date] = middle.cpu().numpy(), spread.cpu().numpy()
        return mean, std

    def _put(self, values: Float32) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0))).to(self.device)


def _module(state: Mapping[str, npt.NDArray[Any]]) -> DenseSM:
    folded = fold(state)
    with torch.device("meta"):  # leaves the random numbers alone
        module = DenseSM(folded.depth, folded.width)
    module.load_state_dict({n: torch.tensor(a) for n, a in state.items()}, assign=True)
    return module.eval()
