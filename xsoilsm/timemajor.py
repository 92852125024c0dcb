"""Step 5 of 7 (networks): all members of an ensemble as matrix products of PyTorch.

The way of `xsoilsm.engine` on a CPU for which no kernel can be compiled. With rows ordered
(step, channel) and pixels along the columns, the five steps that a convolution sees are
consecutive rows, so each convolution is a batched matrix product on a view of its input. Pixels
are taken in batches of one fixed size, the last one padded, so that memory does not depend on
the size of a map and the result does not depend on how it is cut. Acquisitions that see the same
window of the series share its convolutions. Members are taken one by one, whose numbers stay in
the cache of a core; `xsoilsm.grouped` is for a GPU, which wants them all at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from xsoilsm.folding import FoldedMember

__all__ = ["TimeMajor", "in_batches"]

SNAPSHOT, CHANNELS, STEPS = 18, 3, 46
KERNEL, PAD = 5, 2
BATCH = 256
"""Pixels per batch: what fits the second-level cache of a core."""

_CPU = torch.device("cpu")

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


class TimeMajor:
    """Folded members on a CPU.

    Parameters
    ----------
    members : sequence of FoldedMember
    """

    def __init__(self, members: Sequence[FoldedMember]) -> None:
        self._members = [_Member.load(member) for member in members]
        self._spare: list[_Workspace] = []

    def predict_many(
        self,
        snapshots: Float32,
        series: Float32,
        ends: Int64,
        valid: Bool | None = None,
        threads: int = 1,
    ) -> tuple[Float32, Float32]:
        """See `xsoilsm.engine.Engine.predict_many`; the inputs must have been checked."""
        return in_batches(self._predict_batch, BATCH, _CPU, snapshots, series, ends, valid, threads)

    def _predict_batch(self, snapshots: Float32, series: Float32) -> tuple[Float32, Float32]:
        try:
            work = self._spare.pop()
        except IndexError:
            widest = max(member.features for member in self._members)
            work = _Workspace(BATCH, widest)
        work.load_series(series)
        pooled = [member.convolve(work) for member in self._members]
        mean, std = np.empty((2, *snapshots[:, 0].shape), np.float32)
        for date, snapshot in enumerate(snapshots):
            work.load_snapshot(snapshot)
            pairs = zip(self._members, pooled, strict=True)
            outputs = torch.stack([member.dense(work, known) for member, known in pairs])
            spread, middle = torch.std_mean(outputs, dim=0, correction=0)
            n = snapshot.shape[1]
            mean[date], std[date] = middle[:n].numpy(), spread[:n].numpy()
        self._spare.append(work)
        return mean, std


def in_batches(
    predict: Callable[[Float32, Float32], tuple[Float32, Float32]],
    batch: int,
    device: torch.device,
    snapshots: Float32,
    series: Float32,
    ends: Int64,
    valid: Bool | None,
    threads: int,
) -> tuple[Float32, Float32]:
    """Cut a call into batches of pixels that see the same window of their series.

    Parameters
    ----------
    predict : callable
        From snapshots (t, 18, n) and series (3, 46, n) to mean and spread (t, n).
    batch : int
        Pixels in a batch, at most.
    device : torch.device
    snapshots, series, ends, valid, threads
        As of `xsoilsm.engine.Engine.predict_many`. Threads share the batches on a CPU.
    """
    shape = (snapshots.shape[0], snapshots.shape[2])
    mean, std = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    pixels: npt.NDArray[Any] = np.arange(shape[1])
    if valid is not None:
        pixels = np.flatnonzero(valid.any(axis=0))
    work = [
        (np.flatnonzero(ends == end), start)
        for end in np.unique(ends)
        for start in range(0, pixels.size, batch)
    ]

    def run(at: tuple[Int64, int]) -> None:
        dates, start = at
        columns = pixels[start : start + batch]
        part: Any = columns
        if columns[-1] - columns[0] == columns.size - 1:  # needs no copy
            part = slice(columns[0], columns[-1] + 1)
        end = int(ends[dates[0]]) + 1
        middle, spread = predict(snapshots[dates][..., part], series[:, end - STEPS : end, part])
        mean[dates[:, None], columns], std[dates[:, None], columns] = middle, spread

    threads = min(threads, len(work)) if device.type == "cpu" else 1
    with one_torch_thread(device), torch.inference_mode():
        if threads < 2:
            for at in work:
                run(at)
        else:
            with ThreadPoolExecutor(threads, "xsoilsm-torch") as pool:
                list(pool.map(torch.inference_mode()(run), work))
    if valid is not None:
        mean[~valid] = std[~valid] = np.nan
    return mean, std


class _Workspace:
    """Buffers of one thread, reused from batch to batch and from member to member."""

    def __init__(self, batch: int, features: int) -> None:
        self.steps = torch.zeros((STEPS + 2 * PAD, CHANNELS, batch))
        self.dense = torch.zeros((features, batch))
        self.padded: dict[int, torch.Tensor] = {}
        for steps, channels in ((23, 32), (11, 16)):
            self.padded[steps] = torch.empty((steps + 2 * PAD, channels, batch))

    def load_series(self, series: Float32) -> None:
        """Copy the series of a batch in, padding them with zeros to full size."""
        n = series.shape[2]
        steps = self.steps.numpy()
        steps[PAD:-PAD, :, :n] = series.transpose(1, 0, 2)
        steps[PAD:-PAD, :, n:] = 0
        steps[:PAD], steps[-PAD:] = steps[PAD], steps[-PAD - 1]

    def load_snapshot(self, snapshot: Float32) -> None:
        """Copy the snapshot of a batch in, padding it with zeros to full size."""
        n = snapshot.shape[1]
        dense = self.dense[:SNAPSHOT].numpy()
        dense[:, :n] = snapshot
        dense[:, n:] = 0


@dataclass(frozen=True)
class _Member:
    """Folded weights; convolution weights are repeated for every position."""

    convolutions: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    blocks: tuple[tuple[tuple[torch.Tensor, torch.Tensor], ...], ...]
    head: tuple[torch.Tensor, torch.Tensor]
    out: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def load(cls, folded: FoldedMember) -> _Member:
        """Arrange a folded member."""

        def put(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.from_numpy(layer.weight), torch.from_numpy(layer.bias)[:, None]

        # The last position of the second convolution is dropped by the pooling that follows.
        positions = (46, 22, 11)
        convolutions = tuple(
            (weight.expand(n, -1, -1).contiguous(), bias)
            for n, (weight, bias) in zip(positions, map(put, folded.convolutions), strict=True)
        )
        blocks = tuple(tuple(put(layer) for layer in block) for block in folded.blocks)
        return cls(convolutions, blocks, put(folded.head), put(folded.out))

    @property
    def features(self) -> int:
        """Rows of the dense buffer that this member fills."""
        return int(self.head[0].shape[1])

    def convolve(self, work: _Workspace) -> torch.Tensor:
        """Return the sums (12, batch) that the convolutions make of the series in `work`."""
        x = work.steps
        for weight, bias in self.convolutions[:2]:
            y = _convolve(x, weight, bias)
            x = work.padded[y.shape[0] // 2]
            torch.add(y[0::2], y[1::2], out=x[PAD:-PAD])
            _replicate_edges(x)
        y = _convolve(x, *self.convolutions[2])
        sums = [y[4 * position : 4 * position + 4].sum(dim=0) for position in range(3)]
        return torch.stack(sums, dim=1).flatten(0, 1)  # filter by filter

    def dense(self, work: _Workspace, pooled: torch.Tensor) -> torch.Tensor:
        """Soil moisture (batch,) of the snapshot in `work` and the sums of its series."""
        dense = work.dense
        known = SNAPSHOT + pooled.shape[0]
        dense[SNAPSHOT:known] = pooled
        for block in self.blocks:
            new = dense[:known]
            for weight, bias in block[:2]:
                new = torch.addmm(bias, weight, new).relu_()
            weight, bias = block[2]
            target = dense[known : known + weight.shape[0]]
            torch.addmm(bias, weight, new, out=target).relu_()
            known += weight.shape[0]
        weight, bias = self.head
        hidden = torch.addmm(bias, weight, dense[:known]).relu_()
        weight, bias = self.out
        return torch.addmm(bias, weight, hidden)[0]


def _convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolve the padded (step + 4, channel, batch) with kernels of 5, then ReLU."""
    steps, channels, batch = weight.shape[0], x.shape[1], x.shape[2]
    windows = x.as_strided((steps, KERNEL * channels, batch), (channels * batch, batch, 1))
    return torch.baddbmm(bias, weight, windows).relu_()


def _replicate_edges(x: torch.Tensor) -> None:
    x[:PAD] = x[PAD]
    x[-PAD:] = x[-PAD - 1]


_inside = 0
_before = 1
_lock = threading.Lock()


@contextmanager
def one_torch_thread(device: torch.device) -> Iterator[None]:
    """Keep torch from starting threads of its own: batches run side by side instead.

    Threads inside a product stall each other where processors are shared. The setting belongs
    to the process: the first call in sets it and the last one out puts it back.
    """
    global _inside, _before
    if device.type != "cpu":
        yield
        return
    with _lock:
        if _inside == 0:
            _before = torch.get_num_threads()
            torch.set_num_threads(1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch.set_num_threads(_before)
