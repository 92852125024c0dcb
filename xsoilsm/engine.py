"""Step 5 of 7 (networks): run a whole ensemble over many pixels at once.

There are three ways, from fast to slow, and all give the same numbers: a kernel compiled for the
processor (`xsoilsm.kernel`, CPU only), matrix products of PyTorch (`xsoilsm.timemajor` on a CPU,
`xsoilsm.grouped` fed by `xsoilsm.streams` on a GPU), and the networks themselves
(`xsoilsm.plain`). A way is taken when it works here: its first use in a process begins with a
test of known outcome. ``XSOILSM_ENGINE`` forces one.
"""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from xsoilsm import selftest
from xsoilsm.folding import fold

if TYPE_CHECKING:
    from xsoilsm.ensemble import Ensemble

__all__ = [
    "PRECISIONS",
    "WAYS",
    "Engine",
    "EngineWarning",
    "build",
    "check_precision",
    "default_threads",
    "fault_of",
    "has_gpu",
    "way_for",
    "ways_on",
]

WAYS = ("kernel", "torch", "plain")
"""Ways to run the networks, fastest first; values of ``XSOILSM_ENGINE``."""

PRECISIONS = ("float32", "tf32", "bf16", "split-tf32")
"""Ways to multiply matrices on a GPU, see `xsoilsm.precision`."""

SNAPSHOT, CHANNELS, STEPS = 18, 3, 46

_log = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
States = Sequence[Mapping[str, npt.NDArray[Any]]]


class EngineWarning(UserWarning):
    """A fast way to run the networks does not work here, and a slower one is taken."""


class Engine:
    """All members of an ensemble, ready to predict.

    Threads may call one engine at the same time.

    Parameters
    ----------
    ensemble : Ensemble
        With its weights at hand.
    device : {"auto", "cpu", "cuda", "cuda:1", ...}, default "auto"
        "auto" takes a GPU where there is one, the first of several.
    threads : int, optional
        Threads that share the pixels of a call on a CPU. By default a call from the main thread
        of a program takes all processors that the process may use (affinity and the quota of a
        container count), and any other call one: who started that thread or process, such as
        Dask, divides the work already.
    precision : str, default "float32"
        Of products on a GPU, one of `PRECISIONS`. The others give other numbers, by as much as
        the documentation on performance states. float32 stays float32 whatever a process has
        allowed PyTorch elsewhere.

    Attributes
    ----------
    way : str
        One of `WAYS`.
    device, precision : str

    Raises
    ------
    ValueError
        For an unknown or absent device, a precision that is unknown or not for the device or
        the way, fewer than one thread, an ensemble without members, or an unknown
        ``XSOILSM_ENGINE``.
    RuntimeError
        When no way works, or not the one that ``XSOILSM_ENGINE`` forces.

    Warns
    -----
    EngineWarning
        When a slower way than usual is taken.

    Examples
    --------
    >>> engine = Engine(xsoilsm.get_ensemble("DenseSM-E"))  # doctest: +SKIP
    >>> mean, spread = engine.predict(snapshot, series)  # doctest: +SKIP
    """

    def __init__(
        self,
        ensemble: Ensemble,
        device: str = "auto",
        threads: int | None = None,
        precision: str = "float32",
    ) -> None:
        check_precision(precision, device)
        self.precision = precision
        self.device = _device(device)
        if threads is not None and threads < 1:
            msg = f"threads is {threads}; expected at least 1, or None for all processors"
            raise ValueError(msg)
        self.threads = threads
        self.way = way_for(self.device)
        if precision != "float32" and self.way != "torch":
            msg = (
                f"precision {precision!r} is one of the way 'torch', and the way here is "
                f"{self.way!r}; leave precision at 'float32'"
            )
            raise ValueError(msg)
        states = ensemble.state_dicts()
        if not states:
            msg = "the ensemble has no members; expected at least one"
            raise ValueError(msg)
        self._runner = build(self.way, states, self.device, precision)
        self._origin = ensemble, device, threads, precision
        self._token = str(getattr(ensemble, "digest", "")) or uuid4().hex

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
        snapshot, series = _array(snapshot), _array(series)
        n = snapshot.shape[-1] if snapshot.ndim else 0
        if snapshot.shape != (SNAPSHOT, n) or series.shape != (CHANNELS, STEPS, n):
            msg = (
                f"snapshot has shape {snapshot.shape} and series {series.shape}; expected "
                f"({SNAPSHOT}, n) and ({CHANNELS}, {STEPS}, n), pixels last"
            )
            raise ValueError(msg)
        mean, std = self.predict_many(snapshot[None], series)
        return mean[0], std[0]

    def predict_many(
        self,
        snapshots: Float32,
        series: Float32,
        ends: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None,
        *,
        valid: Bool | None = None,
    ) -> tuple[Float32, Float32]:
        """Mean and spread for several acquisitions over the same pixels.

        Computes. What the networks make of the series is computed once for all acquisitions
        that see the same window of it; what they make of the weather, once for neighbours
        with the same; pixels that are not valid or hold a NaN cost nothing. The numbers are
        those of `predict` in all cases.

        Parameters
        ----------
        snapshots : (t, 18, n) ndarray of float32
            Normalised features of each acquisition.
        series : (3, p, n) ndarray of float32
            Normalised series of p periods, oldest first.
        ends : (t,) sequence of int, optional
            Index of the latest period that each acquisition sees, from 45 to p - 1; by default
            the last period, of 46.
        valid : (n,) or (t, n) ndarray of bool, optional
            False leaves a pixel out: its result is NaN.

        Returns
        -------
        mean, std : (t, n) ndarray of float32
            As of `predict`.

        Raises
        ------
        ValueError
            When a shape or a type is not as expected or a window leaves the series.
        """
        snapshots, series = _array(snapshots), _array(series)
        t, n = (snapshots.shape[0], snapshots.shape[-1]) if snapshots.ndim == 3 else (0, 0)
        periods = series.shape[1] if series.ndim == 3 else 0
        if snapshots.shape != (t, SNAPSHOT, n) or series.shape != (CHANNELS, periods, n):
            msg = (
                f"snapshots has shape {snapshots.shape} and series {series.shape}; expected "
                f"(t, {SNAPSHOT}, n) and ({CHANNELS}, periods, n), pixels last"
            )
            raise ValueError(msg)
        windows = _windows(ends, t, periods)
        if valid is not None:
            valid = np.asarray(valid)
            if valid.shape not in ((n,), (t, n)) or valid.dtype != np.bool_:
                msg = (
                    f"valid has shape {valid.shape} and type {valid.dtype}; expected ({n},) or "
                    f"({t}, {n}) of bool"
                )
                raise ValueError(msg)
            valid = np.broadcast_to(valid, (t, n))
        threads = self.threads or default_threads()
        return self._runner.predict_many(snapshots, series, windows, valid, threads)

    def __reduce__(self) -> tuple[type[Engine], tuple[Any, ...]]:
        return Engine, self._origin

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return ("xsoilsm.Engine", self._token, self.device, self.way, self.precision)

    def __repr__(self) -> str:
        how = f"{self.threads or 'default'} threads" if self.device == "cpu" else self.precision
        return f"<Engine: {self.way} on {self.device}, {how}>"


def _array(values: Any) -> Float32:
    return np.require(values, np.float32, ["ALIGNED"])


def _windows(
    ends: Sequence[int] | npt.NDArray[np.integer[Any]] | None, acquisitions: int, periods: int
) -> Int64:
    """Check the windows' ends and what they need of the series."""
    if ends is None:
        if periods != STEPS:
            msg = f"the series has {periods} periods; expected {STEPS}, or say where windows end"
            raise ValueError(msg)
        return np.full(acquisitions, STEPS - 1, np.int64)
    windows = np.asarray(ends) if len(ends) else np.zeros(0, np.int64)
    if windows.shape != (acquisitions,) or windows.dtype.kind not in "iu":
        msg = (
            f"ends has shape {windows.shape} and type {windows.dtype}; expected "
            f"({acquisitions},) integers"
        )
        raise ValueError(msg)
    if acquisitions and not (STEPS - 1 <= windows.min() and windows.max() < periods):
        msg = (
            f"windows end at periods {windows.min()} to {windows.max()}; each needs {STEPS} of "
            f"the {periods} periods, so expected {STEPS - 1} to {periods - 1}"
        )
        raise ValueError(msg)
    return windows.astype(np.int64)


# --------------------------------------------------------------------------- ways


def build(way: str, states: States, device: str, precision: str = "float32") -> selftest.Runner:
    """Prepare networks for a way of running them, which is not tested here.

    Parameters
    ----------
    way : str
        One of `WAYS`.
    states : sequence of mapping of str to ndarray
    device : {"cpu", "cuda", "cuda:1", ...}
    precision : str, default "float32"
        One of `PRECISIONS`, for the way "torch" on a GPU.
    """
    if way == "plain":
        from xsoilsm.plain import Plain

        return Plain(states, device)
    members = [fold(state) for state in states]
    if way == "torch" and device != "cpu":
        from xsoilsm.grouped import Grouped
        from xsoilsm.streams import Streamed

        return Streamed(Grouped(members, device, precision))
    if way == "torch":
        from xsoilsm.timemajor import TimeMajor

        return TimeMajor(members)
    from xsoilsm.kernel import Kernel

    return Kernel(members)


def way_for(device: str) -> str:
    """Fastest way that works on a device here, or the one that is forced.

    Computes: tests each way at its first use in a process, with known numbers.

    Parameters
    ----------
    device : {"cpu", "cuda", "cuda:1", ...}

    Raises
    ------
    ValueError
        For an unknown ``XSOILSM_ENGINE``, or one that the device does not know.
    RuntimeError
        When no way works, or not the one that is forced.
    """
    forced = os.environ.get("XSOILSM_ENGINE", "")
    if forced not in ("", *WAYS):
        msg = f"XSOILSM_ENGINE is {forced!r}; expected one of {', '.join(WAYS)}, or nothing"
        raise ValueError(msg)
    if forced and forced not in ways_on(device):
        msg = f"XSOILSM_ENGINE is {forced!r}, which runs on a CPU only; ask for device='cpu'"
        raise ValueError(msg)
    faults: list[str] = []
    for way in (forced,) if forced else ways_on(device):
        fault = fault_of(way, device)
        if fault is None:
            if faults:
                _warn_once(f"{'; '.join(faults)}. The way {way!r} is taken, which is slower")
            return way
        faults.append(f"the way {way!r} of running networks does not work here: {fault}")
    raise RuntimeError("; ".join(faults))


def ways_on(device: str) -> tuple[str, ...]:
    """Ways to run the networks on a device, fastest first."""
    return WAYS if device == "cpu" else WAYS[1:]


@lru_cache
def fault_of(way: str, device: str = "cpu") -> str | None:
    """Say what is wrong with a way on a device of this machine; None when it works.

    Computes: tested once in a process.
    """
    try:
        try:
            selftest.check(build(way, selftest.states(), device))
        except selftest.SelfTestError as error:
            if way != "kernel":
                raise
            _compile_anew(error)
    except Exception as error:  # whatever a compiler brings about, there is a slower way
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def _compile_anew(error: Exception) -> None:
    """Do without the compiled code on the disk, which may be damaged, and test again."""
    from xsoilsm.kernel import Kernel

    _log.warning("the compiled kernel is wrong and is compiled again: %s", error)
    Kernel.edition = 1
    selftest.check(build("kernel", selftest.states(), "cpu"))


@lru_cache
def _warn_once(message: str) -> None:
    warnings.warn(message, EngineWarning, stacklevel=4)


# --------------------------------------------------------------------------- machine

_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def _device(name: str) -> str:
    kind = name.split(":")[0]
    if kind not in ("auto", "cpu", "cuda"):
        msg = f"unknown device {name!r}; expected 'auto', 'cpu' or 'cuda'"
        raise ValueError(msg)
    if kind == "auto":
        return "cuda" if has_gpu() else "cpu"
    if kind == "cuda" and not has_gpu():
        msg = "device 'cuda' was asked for, but torch finds no GPU; use 'auto' or 'cpu'"
        raise ValueError(msg)
    if kind == "cuda" and name != "cuda":
        import torch

        number = name.removeprefix("cuda:")
        if not (number.isdecimal() and int(number) < torch.cuda.device_count()):
            msg = (
                f"unknown device {name!r}; this process sees {torch.cuda.device_count()} GPUs, "
                "numbered from 'cuda:0' on"
            )
            raise ValueError(msg)
    return name if kind == "cuda" else "cpu"


def check_precision(precision: str, device: str | None = None) -> None:
    """Refuse a precision that is unknown, or not for a device.

    Parameters
    ----------
    precision : str
    device : {"auto", "cpu", "cuda", "cuda:1", ...}, optional
        Of this machine; None where the networks may run on another one.

    Raises
    ------
    ValueError
    """
    if precision not in PRECISIONS:
        msg = f"unknown precision {precision!r}; expected one of {', '.join(PRECISIONS)}"
        raise ValueError(msg)
    if precision != "float32" and device is not None and _device(device) == "cpu":
        msg = (
            f"precision {precision!r} is for a GPU, and the networks would run on the CPU here, "
            "always in float32; leave precision at 'float32', or use a machine with a GPU"
        )
        raise ValueError(msg)


def has_gpu() -> bool:
    """Tell whether torch finds a GPU; torch is not imported where there can be none."""
    possible = os.name == "nt" or any(Path(name).exists() for name in _GPU_FILES)
    if not (possible or "torch" in sys.modules) or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def default_threads() -> int:
    """Threads of a call that nobody gave a number.

    All processors that this process may use for the main thread of a program, one for any other
    thread or a process started by `multiprocessing`.
    """
    divided = threading.current_thread() is not threading.main_thread()
    if divided or multiprocessing.parent_process() is not None:
        return 1
    from dask.system import CPU_COUNT

    return int(CPU_COUNT)
