"""Step 5 of 7 (networks): feed a GPU batch by batch, so that it computes while data travel.

Each batch of pixels passes through a slot: numbers in pinned memory, copied to the GPU, computed
with, copied back. Copies in, computation and copies out run in streams of their own and wait for
each other on the GPU only, so that while one batch is computed the next one is gathered and sent
and the last one returned. Batches have one of two sizes, whatever the size of a map; their
operations are recorded once as CUDA graphs and repeated. Threads may share all of it.

On a CPU, where the tests run it, streams and graphs are stand-ins that do things in order.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from queue import Empty, LifoQueue
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from xsoilsm.grouped import CHANNELS, SNAPSHOT, STEPS, Grouped
from xsoilsm.precision import tensor_cores

__all__ = ["BATCH", "SLOTS", "Streamed", "batch_for", "bytes_per_pixel", "pieces"]

BATCH = {"cpu": 256, "cuda": 16384}
"""Pixels per batch, at most: what `xsoilsm.blocks` hands over at a time."""

LEAST = 256
"""Pixels per batch, at least, however little memory is free."""

SMALL = 8
"""Part of a batch that a small batch is, for what is left at the end."""

SHARE = 0.5
"""Share of the free memory that a batch may take."""

SLOTS = 3
"""Batches on their way: one sent, one computed, one returned."""

DATES = 8
"""Acquisitions of a batch, at most; more make a batch of their own."""

_log = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


class Streamed:
    """Networks on a device, fed with batches of pixels.

    Parameters
    ----------
    networks : Grouped
    batch : int, optional
        Pixels per batch; by default by the free memory, see `batch_for`.
    graphs : bool, default True
        Record operations once and repeat them, where that works.
    """

    def __init__(self, networks: Grouped, batch: int | None = None, *, graphs: bool = True) -> None:
        self.networks = networks
        self.batch = batch
        self.graphs = graphs
        self._line: _Line | None = None
        self._lock = threading.Lock()

    def predict_many(
        self,
        snapshots: Float32,
        series: Float32,
        ends: Int64,
        valid: Bool | None = None,
        threads: int = 1,
    ) -> tuple[Float32, Float32]:
        """See `xsoilsm.engine.Engine.predict_many`; the inputs must have been checked.

        `threads` is not used: a GPU needs one thread to feed it, and serves many.
        """
        while True:
            line: _Line | None = None
            try:
                line = self._ready()
                return line.predict_many(snapshots, series, ends, valid)
            except torch.cuda.OutOfMemoryError:
                if not self._shrink(line):
                    raise
            line = None  # its memory is free before the next one takes some
            if self.networks.device.type == "cuda":
                torch.cuda.empty_cache()

    def _ready(self) -> _Line:
        with self._lock:
            if self._line is None:
                if self.batch is None:
                    self.batch = batch_for(self.networks)
                self._line = _Line(self.networks, self.batch, graphs=self.graphs)
            return self._line

    def _shrink(self, failed: _Line | None) -> bool:
        """Halve the batch after a lack of memory; False where it cannot be smaller."""
        with self._lock:
            if failed is not self._line:  # another thread has done it
                return True
            if self.batch is None or self.batch <= LEAST:
                return False
            self.batch //= 2
            self._line = None
            _log.warning("the GPU lacks memory; batches now have %d pixels", self.batch)
            return True


def bytes_per_pixel(networks: Grouped) -> int:
    """Memory on the device for each pixel of a batch, weights left out.

    Computes. Buffers of the networks, an eighth more for the small batch, and the slots.
    """
    slot = CHANNELS * STEPS + DATES * (SNAPSHOT + 2)
    return networks.bytes_per_pixel * (SMALL + 1) // SMALL + SLOTS * slot * 4


def batch_for(networks: Grouped, free: int | None = None) -> int:
    """Pixels per batch: `BATCH`, halved until it takes less than `SHARE` of the free memory.

    Computes.

    Parameters
    ----------
    networks : Grouped
    free : int, optional
        Bytes; by default what is free on the device.
    """
    batch = BATCH[networks.device.type]
    if free is None:
        if networks.device.type != "cuda":
            return batch
        free, _ = torch.cuda.mem_get_info(networks.device)
    needed = bytes_per_pixel(networks)
    while batch > LEAST and batch * needed > SHARE * free:
        batch //= 2
    return batch


def pieces(count: int, batch: int) -> Iterator[tuple[int, int, int]]:
    """Cut pixels into batches (start, stop, size); the last ones are small where that is less.

    A batch is as large as it is computed, whatever is in it.
    """
    small = max(batch // SMALL, 1)
    start = 0
    while start < count:
        size = batch if count - start > batch // 2 else small
        stop = min(start + size, count)
        yield start, stop, size
        start = stop


# --------------------------------------------------------------------------- one device


class _Line:
    """Slots, streams and recorded operations for one size of batches."""

    def __init__(self, networks: Grouped, batch: int, *, graphs: bool) -> None:
        self.networks, self.batch = networks, batch
        cuda = networks.device.type == "cuda"
        self.lanes: _Lanes = _Cuda(networks.device, graphs=graphs) if cuda else _Host()
        self.launch = threading.Lock()
        self.stages: dict[int, _Stage] = {}
        # The last slot used is the first one taken, so that few calls touch little memory.
        self.free: LifoQueue[_Slot] = LifoQueue()
        with self.lanes.made():
            for _ in range(SLOTS):
                self.free.put(_Slot(batch, networks.device, self.lanes))

    def predict_many(
        self, snapshots: Float32, series: Float32, ends: Int64, valid: Bool | None
    ) -> tuple[Float32, Float32]:
        """See `Streamed.predict_many`."""
        shape = (snapshots.shape[0], snapshots.shape[2])
        mean, std = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
        pixels: Int64 = np.arange(shape[1])
        if valid is not None:
            pixels = np.flatnonzero(valid.any(axis=0))
        flights: deque[_Flight] = deque()
        try:
            for end in np.unique(ends):
                seen = np.flatnonzero(ends == end)
                window = series[:, end + 1 - STEPS : end + 1]
                for start, stop, size in pieces(pixels.size, self.batch):
                    columns = pixels[start:stop]
                    for first in range(0, seen.size, DATES):
                        dates = seen[first : first + DATES]
                        slot = self._slot(flights, mean, std)
                        flights.append(_Flight(slot, dates, columns, size))
                        self._send(flights[-1], snapshots, window)
            while flights:
                self._land(flights, mean, std)
        finally:
            if flights:  # something went wrong: nothing may use their slots any more
                with suppress(RuntimeError):
                    self.lanes.settle()
            for flight in flights:
                self.free.put(flight.slot)
        if valid is not None:
            mean[~valid] = std[~valid] = np.nan
        return mean, std

    def _slot(self, flights: deque[_Flight], mean: Float32, std: Float32) -> _Slot:
        """Take a free slot. A call waits for another's only while it holds none itself."""
        while True:
            try:
                return self.free.get(block=not flights)
            except Empty:
                self._land(flights, mean, std)

    def _send(self, flight: _Flight, snapshots: Float32, window: Float32) -> None:
        """Gather the numbers of a batch, send them, and have them computed and returned."""
        slot, size, dates = flight.slot, flight.size, flight.dates
        flat, host_series, host_snapshots, _ = slot.views(slot.host, slot.host_result, flight)
        _gather(window, flight.columns, host_series)
        for target, date in zip(host_snapshots, dates, strict=True):
            _gather(snapshots[date], flight.columns, target)
        sent, sent_series, sent_snapshots, result = slot.views(slot.device, slot.result, flight)
        lanes = self.lanes
        with torch.inference_mode(), lanes.on("in"):
            sent.copy_(flat, non_blocking=True)
            slot.there.record()
        with torch.inference_mode(), self.launch, lanes.on("compute"):
            with tensor_cores(self.networks.precision.tf32) if lanes.real else nullcontext():
                if size not in self.stages:
                    self.stages[size] = _Stage(self.networks, size, lanes)
                stage = self.stages[size]
                slot.there.wait()
                stage.work.series.copy_(sent_series)
                stage.convolve()
                for snapshot, target in zip(sent_snapshots, result, strict=True):
                    stage.work.snapshot.copy_(snapshot)
                    stage.dense()
                    target.copy_(stage.work.result)
                slot.done.record()
        with torch.inference_mode(), lanes.on("out"):
            slot.done.wait()
            slot.views(slot.host, slot.host_result, flight)[3].copy_(result, non_blocking=True)
            slot.back.record()

    def _land(self, flights: deque[_Flight], mean: Float32, std: Float32) -> None:
        """Wait for the oldest batch and put its results in place."""
        flight = flights[0]
        slot = flight.slot
        slot.back.synchronize()
        result = slot.views(slot.host, slot.host_result, flight)[3].numpy()
        result = result[..., : flight.columns.size]
        at = flight.dates[:, None], flight.columns
        mean[at], std[at] = result[:, 0], result[:, 1]
        flights.popleft()
        self.free.put(slot)


@dataclass(frozen=True)
class _Flight:
    """A batch on its way: its slot, which acquisitions and pixels, and its size."""

    slot: _Slot
    dates: Int64
    columns: Int64
    size: int


class _Slot:
    """Memory of one batch on its way, on both sides, and what says how far it is."""

    def __init__(self, batch: int, device: torch.device, lanes: _Lanes) -> None:
        self.host = lanes.pinned((CHANNELS * STEPS + DATES * SNAPSHOT) * batch)
        self.host_result = lanes.pinned(DATES * 2 * batch)
        self.device = torch.zeros(self.host.shape, device=device)
        self.result = torch.zeros(self.host_result.shape, device=device)
        self.there, self.done, self.back = (lanes.event() for _ in range(3))

    def views(
        self, numbers: torch.Tensor, result: torch.Tensor, flight: _Flight
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Parts of one side for a flight, without gaps.

        Returns
        -------
        all, series, snapshots, result : Tensor
            One after another; (3, 46, size); (dates, 18, size); (dates, 2, size).
        """
        size, dates = flight.size, flight.dates.size
        first = CHANNELS * STEPS * size
        last = first + dates * SNAPSHOT * size
        return (
            numbers[:last],
            numbers[:first].view(CHANNELS, STEPS, size),
            numbers[first:last].view(dates, SNAPSHOT, size),
            result[: dates * 2 * size].view(dates, 2, size),
        )


class _Stage:
    """Buffers of one size of batches, and the operations on them."""

    def __init__(self, networks: Grouped, size: int, lanes: _Lanes) -> None:
        self.work = work = networks.work(size)
        self.convolve = lanes.recorded(lambda: networks.convolve(work))
        self.dense = lanes.recorded(lambda: networks.dense(work))


def _gather(source: Float32, columns: Int64, target: torch.Tensor) -> None:
    """Copy columns of numbers; what lies behind them keeps its values, which nobody reads."""
    values = target.numpy()[..., : columns.size]
    if columns[-1] - columns[0] == columns.size - 1:
        values[...] = source[..., columns[0] : columns[-1] + 1]
    else:
        values[...] = source[..., columns]


# --------------------------------------------------------------------------- streams


class _Event(Protocol):
    """A mark in a stream."""

    def record(self) -> None:
        """Set it behind what the current stream has been given."""

    def wait(self) -> None:
        """Have the current stream wait for it."""

    def synchronize(self) -> None:
        """Wait for it."""


class _Lanes(Protocol):
    """What a device does side by side."""

    real: bool

    def on(self, lane: str) -> AbstractContextManager[Any]:
        """Give what follows to a lane: "in", "compute" or "out"."""

    def made(self) -> AbstractContextManager[Any]:
        """Make memory here that all lanes use afterwards."""

    def pinned(self, count: int) -> torch.Tensor:
        """Numbers on the host that a device can fetch by itself."""

    def event(self) -> _Event:
        """Make a mark."""

    def recorded(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record operations, to be called again at once."""

    def settle(self) -> None:
        """Wait for everything."""


class _Host:
    """One thing after another, on a CPU."""

    real = False

    def on(self, lane: str) -> AbstractContextManager[Any]:
        return nullcontext()

    def made(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def pinned(self, count: int) -> torch.Tensor:
        return torch.zeros(count)

    def event(self) -> _Event:
        return _Past()

    def recorded(self, function: Callable[[], None]) -> Callable[[], None]:
        return function

    def settle(self) -> None:
        pass


class _Past:
    """A mark of what has been done already."""

    def record(self) -> None:
        pass

    def wait(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _Cuda:
    """Streams and graphs of a GPU."""

    real = True

    def __init__(self, device: torch.device, *, graphs: bool) -> None:
        self.device, self.graphs = device, graphs
        self.streams = {
            lane: torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            for lane in ("in", "compute", "out")
        }

    def on(self, lane: str) -> AbstractContextManager[Any]:
        stream: AbstractContextManager[Any] = torch.cuda.stream(self.streams[lane])
        return stream  # also makes the stream's device the current one

    @contextmanager
    def made(self) -> Iterator[None]:
        with torch.cuda.device(self.device):
            yield
            torch.cuda.current_stream().synchronize()  # zeros are written in this stream

    def pinned(self, count: int) -> torch.Tensor:
        return torch.zeros(count, pin_memory=True)

    def event(self) -> _Event:
        # Who waits leaves the processor to others.
        event: _Event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        return event

    def recorded(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record a graph in the stream in which it will run, the current one.

        Where that fails, the operations are given one by one, which costs a GPU its time
        between them.
        """
        stream = self.streams["compute"]
        for _ in range(2):  # libraries make their handles and choose algorithms
            function()
        stream.synchronize()
        if not self.graphs:
            return function
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer context puts the stream back also where the end of the recording fails.
            with _recording, torch.cuda.stream(stream):
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    function()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.graphs = False
            _log.warning("operations are not recorded as a CUDA graph: %s", str(error)[:300])
            return function
        replay: Callable[[], None] = graph.replay
        return replay

    def settle(self) -> None:
        for stream in self.streams.values():
            stream.synchronize()


_recording = threading.Lock()
"""Only one graph of a process may be recorded at a time."""
