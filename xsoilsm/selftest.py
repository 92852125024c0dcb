"""Step 5 of 7 (networks): test a way of running the networks against a known outcome.

Two small networks and their inputs are made of whole numbers by a fixed rule, the same on every
machine; what comes out was computed once in float64. The inputs exercise what the fast ways do
differently: several tiles, a tail, common weather, two acquisitions in one window, NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from xsoilsm.state import State, state_shapes

__all__ = ["KNOWN", "Runner", "SelfTestError", "check", "inputs", "states", "summary"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

MEMBERS = ((2, 12), (1, 9))
PIXELS, PERIODS = 601, 47
TOLERANCE = 1e-5
"""In m3 m-3: a hundred times the rounding of float32, far below what a wrong lane does."""

KNOWN = (
    (-5.94505080054866, 0.37090775171695173),
    (-5.9334702023840835, 0.3698596616006202),
    (-5.95307002178034, 0.3641828104990665),
)
"""`summary` of the true mean and spread, computed in float64 by the networks themselves."""


class SelfTestError(RuntimeError):
    """A way of running the networks gives wrong numbers on this machine."""


class Runner(Protocol):
    """What runs all members of an ensemble, see `xsoilsm.engine.Engine.predict_many`."""

    def predict_many(
        self,
        snapshots: Float32,
        series: Float32,
        ends: Int64,
        valid: Bool | None = None,
        threads: int = 1,
    ) -> tuple[Float32, Float32]:
        """Mean and spread of the members."""


def states(shapes: Sequence[tuple[int, int]] = MEMBERS) -> list[State]:
    """State dicts of networks with made-up numbers, by default those of the test.

    Computes.

    Parameters
    ----------
    shapes : sequence of (int, int)
        Depth and width of each network.
    """
    result: list[State] = []
    for number, (depth, width) in enumerate(shapes):
        state: dict[str, npt.NDArray[Any]] = {}
        for index, (name, shape) in enumerate(state_shapes(depth, width).items()):
            values = _numbers(100 * number + index, shape)
            if name.endswith("running_var"):
                values = 1 + values / 2
            elif len(shape) > 1:
                values *= np.sqrt(3 / np.prod(shape[1:]))
            elif name.endswith("weight"):
                values = 1 + values / 4
            state[name] = values.astype(np.float32)
        result.append(state)
    return result


def inputs() -> tuple[Float32, Float32, Int64]:
    """Snapshots (3, 18, pixel), series (3, 47, pixel) and windows' ends of the test.

    Computes.
    """
    snapshots = (1 + _numbers(1000, (3, 18, PIXELS))) / 2
    series = (1 + _numbers(1001, (3, PERIODS, PIXELS))) / 2
    series[1:, :, 100:400] = series[1:, :, 100:101]
    snapshots[0, 3, 7] = snapshots[2, 17, 500] = np.nan
    series[2, 0, 11] = series[0, 46, 600] = np.nan  # outside one window, inside the other
    ends = np.array([46, 45, 46])
    return snapshots.astype(np.float32), series.astype(np.float32), ends


def summary(mean: npt.NDArray[Any], std: npt.NDArray[Any]) -> Float64:
    """Weighted means (acquisition, 2) of mean and spread over the pixels that are not NaN."""
    weights = 1.0 + np.arange(PIXELS) % 7
    pairs = zip(mean, std, strict=True)
    return np.array([[np.nansum(weights * x) / PIXELS for x in pair] for pair in pairs])


def check(runner: Runner) -> None:
    """Compare a runner of the test's networks with what is known.

    Computes, within milliseconds.

    Raises
    ------
    SelfTestError
        When the numbers differ, or NaN is elsewhere than it should be.
    """
    snapshots, series, ends = inputs()
    mean, std = runner.predict_many(snapshots, series, ends)
    for t, end in enumerate(ends):
        window = series[:, end - 45 : end + 1]
        missing = np.isnan(snapshots[t]).any(axis=0) | np.isnan(window).any(axis=(0, 1))
        for values in (mean[t], std[t]):
            if not np.array_equal(np.isnan(values), missing):
                msg = f"NaN for {np.isnan(values).sum()} pixels instead of {missing.sum()}"
                raise SelfTestError(msg)
    error = float(np.abs(summary(mean, std) - np.array(KNOWN)).max())
    if not error < TOLERANCE:
        msg = f"results are off by {error:.2g} m3 m-3 on average"
        raise SelfTestError(msg)


def _numbers(stream: int, shape: tuple[int, ...]) -> Float64:
    """Numbers from -1 to 1 that are the same everywhere (a finaliser of hash functions)."""
    count = int(np.prod(shape))
    x = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(stream << 32)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(12)).astype(np.float64).reshape(shape) / 2.0**51 - 1
