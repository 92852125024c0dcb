"""Step 5 of 7 (networks): run a whole ensemble over many pixels at once.

The networks are folded (`xsoilsm.folding`) and evaluated in time-major layout: with rows ordered
(step, channel) and pixels along the columns, the five steps that a convolution sees are
consecutive rows, so each convolution is a batched matrix product on a view of its input. Pixels
are taken in batches of one fixed size, the last one padded, so that memory does not depend on
the size of a map and the result does not depend on how it is cut.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from xsoilsm.folding import FoldedMember, fold

if TYPE_CHECKING:
    from xsoilsm.ensemble import Ensemble

__all__ = ["Engine"]

SNAPSHOT, CHANNELS, STEPS = 18, 3, 46
KERNEL, PAD = 5, 2
BATCH = {"cpu": 256, "cuda": 32768}
"""Pixels per batch: what fits the second-level cache of a core, or fills a GPU."""

Float32 = npt.NDArray[np.float32]


class Engine:
    """All members of an ensemble, ready to predict.

    Parameters
    ----------
    ensemble : Ensemble
        With its weights at hand.
    device : {"auto", "cpu", "cuda"}, default "auto"
        "auto" takes a GPU where there is one.
    threads : int, optional
        Threads that share the batches on a CPU; by default all processors that this process may
        use. Inside Dask one thread per call is right, as Dask runs calls side by side.

    Raises
    ------
    ValueError
        For an unknown or absent device, or fewer than one thread.

    Examples
    --------
    >>> engine = Engine(xsoilsm.get_ensemble("DenseSM-E"))  # doctest: +SKIP
    >>> mean, spread = engine.predict(snapshot, series)  # doctest: +SKIP
    """

    def __init__(
        self, ensemble: Ensemble, device: str = "auto", threads: int | None = None
    ) -> None:
        self.device = _device(device)
        if threads is not None and threads < 1:
            msg = f"threads is {threads}; expected at least 1, or None for all processors"
            raise ValueError(msg)
        self.threads = (threads or _processors()) if self.device.type == "cpu" else 1
        self.batch = BATCH[self.device.type]
        self._members = [_Member.load(fold(s), self.device) for s in ensemble.state_dicts()]
        self._local = threading.local()

    def predict(self, snapshot: Float32, series: Float32) -> tuple[Float32, Float32]:
        """Mean and spread of the members' soil moisture.

        Computes.

        Parameters
        ----------
        snapshot : (18, n) ndarray of float32
            Normalised features in the order of the ensemble's contract.
        series : (3, 46, n) ndarray of float32
            Normalised series (channel, step), oldest step first.

        Returns
        -------
        mean, std : (n,) ndarray of float32
            Mean and population standard deviation over the members in m3 m-3. A pixel with a
            NaN among its inputs gets NaN.

        Raises
        ------
        ValueError
            When a shape is not as expected.
        """
        snapshot, series = np.asarray(snapshot, np.float32), np.asarray(series, np.float32)
        n = snapshot.shape[-1] if snapshot.ndim else 0
        if snapshot.shape != (SNAPSHOT, n) or series.shape != (CHANNELS, STEPS, n):
            msg = (
                f"snapshot has shape {snapshot.shape} and series {series.shape}; expected "
                f"({SNAPSHOT}, n) and ({CHANNELS}, {STEPS}, n), pixels last"
            )
            raise ValueError(msg)
        mean, std = np.empty(n, np.float32), np.empty(n, np.float32)
        starts = range(0, n, self.batch)

        def run(start: int) -> None:
            part = slice(start, min(start + self.batch, n))
            mean[part], std[part] = self._predict_batch(snapshot[:, part], series[:, :, part])

        with _one_torch_thread(self.device), torch.inference_mode():
            if self.threads == 1 or len(starts) < 2:
                for start in starts:
                    run(start)
            else:
                with ThreadPoolExecutor(self.threads, "xsoilsm-engine") as pool:
                    list(pool.map(torch.inference_mode()(run), starts))
        return mean, std

    def _predict_batch(self, snapshot: Float32, series: Float32) -> tuple[Float32, Float32]:
        work = getattr(self._local, "work", None)
        if work is None:
            widest = max(m.features for m in self._members)
            work = self._local.work = _Workspace(self.batch, widest, self.device)
        work.load(snapshot, series)
        outputs = torch.stack([member.forward(work) for member in self._members])
        std, mean = torch.std_mean(outputs, dim=0, correction=0)
        n = snapshot.shape[1]
        return mean[:n].cpu().numpy(), std[:n].cpu().numpy()


class _Workspace:
    """Buffers of one thread, reused from batch to batch and from member to member."""

    def __init__(self, batch: int, features: int, device: torch.device) -> None:
        self.steps = torch.zeros((STEPS + 2 * PAD, CHANNELS, batch), device=device)
        self.dense = torch.zeros((features, batch), device=device)
        self.padded: dict[int, torch.Tensor] = {}
        for steps, channels in ((23, 32), (11, 16)):
            self.padded[steps] = torch.empty((steps + 2 * PAD, channels, batch), device=device)
        # A GPU is fed from pinned memory; on a CPU the batch is written where it is used.
        self.host = [self.steps, self.dense[:SNAPSHOT]]
        if device.type != "cpu":
            self.host = [torch.zeros(t.shape, pin_memory=True) for t in self.host]

    def load(self, snapshot: Float32, series: Float32) -> None:
        """Copy a batch in, padding it with zeros to full size."""
        n = snapshot.shape[1]
        steps, dense = (tensor.numpy() for tensor in self.host)
        steps[PAD:-PAD, :, :n] = series.transpose(1, 0, 2)
        steps[PAD:-PAD, :, n:] = 0
        steps[:PAD], steps[-PAD:] = steps[PAD], steps[-PAD - 1]
        dense[:, :n] = snapshot
        dense[:, n:] = 0
        if self.steps.device.type != "cpu":
            self.steps.copy_(self.host[0], non_blocking=True)
            self.dense[:SNAPSHOT].copy_(self.host[1], non_blocking=True)
            torch.cuda.current_stream().synchronize()  # before the next batch is written


@dataclass(frozen=True)
class _Member:
    """Folded weights on a device; convolution weights are repeated for every position."""

    convolutions: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    blocks: tuple[tuple[tuple[torch.Tensor, torch.Tensor], ...], ...]
    head: tuple[torch.Tensor, torch.Tensor]
    out: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def load(cls, folded: FoldedMember, device: torch.device) -> _Member:
        """Put a folded member on a device."""

        def put(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
            weight = torch.from_numpy(layer.weight).to(device)
            return weight, torch.from_numpy(layer.bias).to(device)[:, None]

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

    def forward(self, work: _Workspace) -> torch.Tensor:
        """Soil moisture (batch,) of the batch in `work`."""
        x = work.steps
        for weight, bias in self.convolutions[:2]:
            y = _convolve(x, weight, bias)
            x = work.padded[y.shape[0] // 2]
            torch.add(y[0::2], y[1::2], out=x[PAD:-PAD])
            _replicate_edges(x)
        y = _convolve(x, *self.convolutions[2])
        dense = work.dense
        pooled = dense[SNAPSHOT : SNAPSHOT + 12].view(4, 3, -1)  # filter by filter
        for position in range(3):
            torch.sum(y[4 * position : 4 * position + 4], dim=0, out=pooled[:, position])
        known = SNAPSHOT + 12
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


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.split(":")[0] not in BATCH:
        msg = f"unknown device {name!r}; expected 'auto', 'cpu' or 'cuda'"
        raise ValueError(msg)
    if name.startswith("cuda") and not torch.cuda.is_available():
        msg = "device 'cuda' was asked for, but torch finds no GPU; use 'auto' or 'cpu'"
        raise ValueError(msg)
    return torch.device(name)


def _processors() -> int:
    import os

    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


_inside = 0
_before = 1
_lock = threading.Lock()


@contextmanager
def _one_torch_thread(device: torch.device) -> Iterator[None]:
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
