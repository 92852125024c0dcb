"""Step 5 of 7 (networks): how fast the networks run on this machine, and which way they go.

The rate of `xsoilsm.engine` beside the fastest that the machine's processors multiply matrices,
measured one after the other. On a GPU numbers come from the host's memory and go back there, and
each precision is run. Without an ensemble, networks of the published sizes with made-up numbers
are run: the arithmetic is the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from xsoilsm import selftest
from xsoilsm.engine import PRECISIONS, Engine, default_threads, fault_of, has_gpu, ways_on
from xsoilsm.folding import fold

if TYPE_CHECKING:
    from xsoilsm.ensemble import Ensemble

__all__ = ["NO_GPU", "PUBLISHED", "MadeUp", "Precise", "Report", "gpu_peak", "operations", "report"]

NO_GPU = "no GPU on this machine: not measured"

PUBLISHED = tuple((depth, width) for depth in range(1, 6) for width in (8, 16, 32, 64, 128))
"""Depth and width of the 25 published networks."""

PIXELS = 1920
"""Pixels of a call for each thread."""

GPU_PIXELS = 262_144
"""Pixels of a call on a GPU."""

COMPARED = 4096
"""Pixels whose numbers on a GPU are compared with those on the CPU."""

SECONDS = 1.0
"""Time for which the networks run, at least."""

_PEAK = """
import time
import numpy as np
a = np.random.default_rng(0).random((1024, 1024), np.float32)
c = np.empty_like(a)
best = float("inf")
for _ in range(12):
    start = time.process_time()
    np.matmul(a, a, out=c)
    best = min(best, time.process_time() - start)
print(2 * 1024**3 / best)
"""


class MadeUp:
    """Networks with made-up numbers in place of an ensemble.

    Parameters
    ----------
    shapes : sequence of (int, int)
        Depth and width of each, by default the published ones.
    """

    name = "made-up"

    def __init__(self, shapes: Sequence[tuple[int, int]] = PUBLISHED) -> None:
        self.shapes = shapes

    def state_dicts(self) -> list[dict[str, npt.NDArray[Any]]]:
        """Parameters of all members.

        Computes.
        """
        return [dict(state) for state in selftest.states(self.shapes)]


@dataclass(frozen=True)
class Precise:
    """Rates in one precision of a GPU; as text, a line.

    Parameters
    ----------
    name : str
        One of `xsoilsm.engine.PRECISIONS`.
    rate : float
        Pixels per second, one acquisition.
    two_rate : float
        Values per second, two acquisitions that see the same window.
    error : float
        Largest difference of a mean or a spread from the CPU, in m3 m-3.
    peak : float
        Floating-point operations per second of a product of matrices in this precision.
    share : float
        Of that peak, one acquisition.
    """

    name: str
    rate: float
    two_rate: float
    error: float
    peak: float
    share: float

    def __str__(self) -> str:
        return (
            f"{self.name:<10} {self.rate:,.0f} pixels/s, two dates {self.two_rate:,.0f} values/s, "
            f"off by {self.error:.1e} m3 m-3, {self.share:.2f} of {self.peak / 1e12:.0f} TFLOP/s"
        )


@dataclass(frozen=True)
class Report:
    """What `report` found; as text, lines for a terminal.

    Parameters
    ----------
    way, device : str
        As of `xsoilsm.engine.Engine`.
    threads : int
    faults : tuple of str
        Why each faster way was not taken.
    code : str
        What the kernel was compiled for; empty for other ways.
    first_call : float
        Seconds until the engine was ready: imports, compiling or loading, the self-test.
    rate : float
        Pixels per second of a clock on the wall, all members, one acquisition.
    core_rate : float
        Pixels per second that a processor worked for it, whatever else the machine does; on a
        GPU the rate.
    operations : int
        Floating-point operations that the networks amount to for one pixel.
    peak : float
        Floating-point operations per second of a product of matrices, on one processor or the
        GPU.
    precisions : tuple of Precise
        On a GPU, in the way "torch".
    gpu : bool
        Whether there is one.
    """

    way: str
    device: str
    threads: int
    faults: tuple[str, ...]
    code: str
    first_call: float
    rate: float
    core_rate: float
    operations: int
    peak: float
    precisions: tuple[Precise, ...] = ()
    gpu: bool = False

    @property
    def share(self) -> float:
        """Share of the peak; more than 1 where the kernel does with fewer operations."""
        return self.core_rate * self.operations / self.peak

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        lines = [
            f"way      {self.way} on {self.device}{threads if self.device == 'cpu' else ''}",
            *(f"         {fault}" for fault in self.faults),
            f"ready    after {self.first_call:.1f} s",
            f"rate     {self.rate:,.0f} pixels/s",
            f"each     {self.core_rate:,.0f} pixels/s, "
            f"{self.core_rate * self.operations / 1e9:.0f} GFLOP/s, of a processor's time",
            f"peak     {self.peak / 1e9:.0f} GFLOP/s in products of matrices, float32",
            f"share    {self.share:.2f}",
        ]
        if self.code:
            lines.insert(1, f"code     {self.code}")
        lines += [f"gpu      {precise}" for precise in self.precisions]
        if not self.gpu:
            lines.append(f"gpu      {NO_GPU}")
        return "\n".join(lines)


def report(
    ensemble: Ensemble | None = None, *, device: str = "auto", threads: int | None = None
) -> Report:
    """Measure how fast an ensemble runs here.

    Computes, for a few seconds.

    Parameters
    ----------
    ensemble : Ensemble, optional
        By default networks of the published sizes, for which no weights are needed.
    device, threads
        As of `xsoilsm.engine.Engine`.

    Raises
    ------
    ValueError, RuntimeError
        As of `xsoilsm.engine.Engine`.

    Warns
    -----
    EngineWarning
        When a slower way than usual is taken.
    """
    networks = cast("Ensemble", MadeUp()) if ensemble is None else ensemble
    start = time.perf_counter()
    engine = Engine(networks, device, threads)
    engine.predict(*_pixels(1))
    first_call = time.perf_counter() - start
    used = (threads or default_threads()) if engine.device == "cpu" else 1
    forced = os.environ.get("XSOILSM_ENGINE")
    rate, core_rate = _rates(engine, used)
    ways = ways_on(engine.device)
    faster = () if forced else ways[: ways.index(engine.way)]
    on_gpu = engine.device != "cpu"
    return Report(
        way=engine.way,
        device=engine.device,
        threads=used,
        faults=tuple(f"{way} does not work here: {fault_of(way, engine.device)}" for way in faster),
        code=_code() if engine.way == "kernel" else "",
        first_call=first_call,
        rate=rate,
        core_rate=rate if on_gpu else core_rate,
        operations=_operations(networks),
        peak=gpu_peak(engine.device) if on_gpu else _processor_peak(),
        precisions=_precisions(networks, engine.device) if engine.way == "torch" and on_gpu else (),
        gpu=has_gpu(),
    )


def operations(depth: int, width: int) -> int:
    """Floating-point operations of a network for one pixel, a product and a sum being two.

    Parameters
    ----------
    depth, width : int
    """
    # positions that a pooling drops are not counted
    convolutions = 46 * 32 * 15 + 22 * 16 * 160 + 11 * 4 * 80
    blocks = sum((30 + block * width) * width + 2 * width**2 for block in range(depth))
    return 2 * (convolutions + blocks + (30 + depth * width) * 32 + 32)


def _operations(networks: Ensemble) -> int:
    return sum(operations(*_shape(state)) for state in networks.state_dicts())


def _shape(state: Any) -> tuple[int, int]:
    folded = fold(state)
    return folded.depth, folded.width


def _pixels(n: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return rng.random((18, n), np.float32), rng.random((3, 46, n), np.float32)


def _rates(engine: Engine, threads: int) -> tuple[float, float]:
    """Pixels per second of the wall clock and of the processors' time, each the best."""
    n = GPU_PIXELS if engine.device != "cpu" else PIXELS * threads
    snapshot, series = _pixels(n)
    engine.predict(snapshot, series)
    wall, worked, end = float("inf"), float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start, start_worked = time.perf_counter(), time.process_time()
        engine.predict(snapshot, series)
        worked = min(worked, time.process_time() - start_worked)
        wall = min(wall, time.perf_counter() - start)
    return n / wall, n / max(worked, 1e-9)


def _code() -> str:
    from xsoilsm._layers import MACHINE, PROCESSOR

    return f"{PROCESSOR}, {MACHINE.lanes} pixels in a vector"


def _processor_peak() -> float:
    """Products of NumPy, in a process that keeps to one thread."""
    names = ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "VECLIB_MAXIMUM")
    limits = {f"{name}_THREADS": "1" for name in names}
    done = subprocess.run(
        [sys.executable, "-c", _PEAK],
        env=os.environ | limits,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def gpu_peak(device: str, precision: str = "float32") -> float:
    """Floating-point operations per second of PyTorch's product of matrices on a GPU.

    Computes, for a fraction of a second.
    """
    import torch

    from xsoilsm.precision import KNOWN, tensor_cores

    side, chosen = 8192, KNOWN[precision]
    matrix = torch.rand((side, side), device=device, dtype=chosen.dtype)
    best = float("inf")
    with tensor_cores(chosen.tf32):
        for _ in range(6):
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _precisions(networks: Ensemble, device: str) -> tuple[Precise, ...]:
    """Measure each precision of a GPU against the networks on the CPU."""
    snapshot, series = _pixels(GPU_PIXELS)
    two = np.stack([snapshot, snapshot[::-1]])
    few = two[..., :COMPARED], series[..., :COMPARED]
    true = Engine(networks, "cpu").predict_many(*few)
    rows = []
    for name in PRECISIONS:
        engine = Engine(networks, device, precision=name)
        found = engine.predict_many(*few)
        pairs = zip(found, true, strict=True)
        error = max(float(np.abs(values - expected).max()) for values, expected in pairs)
        rate = _repeated(engine, two[:1], series)
        peak = gpu_peak(device, name)
        rows.append(
            Precise(
                name,
                rate=rate,
                two_rate=_repeated(engine, two, series),
                error=error,
                peak=peak,
                share=rate * _operations(networks) / peak,
            )
        )
    return tuple(rows)


def _repeated(
    engine: Engine, snapshots: npt.NDArray[np.float32], series: npt.NDArray[np.float32]
) -> float:
    """Values per second of a clock on the wall, at best."""
    engine.predict_many(snapshots, series)
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        engine.predict_many(snapshots, series)
        best = min(best, time.perf_counter() - start)
    return float(snapshots.shape[0] * snapshots.shape[2] / best)
