"""Step 6 of 7 (retrieve and explain): one block of a cube, and blocks as tasks of Dask.

A task takes the inputs of one chunk of cells and of the acquisitions that see the same periods;
it encodes them, runs the networks once, and sets all flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xsoilsm import periods
from xsoilsm.calibration import Calibration, uncertainty
from xsoilsm.cube import InputFlag, SourceFlag
from xsoilsm.domain import distance, statistics_of
from xsoilsm.features import Block, Encoded
from xsoilsm.periods import PERIODS_PER_YEAR
from xsoilsm.quality import (
    FLAG_DTYPE,
    VALID_RANGE,
    Condition,
    QualityFlag,
    Thresholds,
    conditions_for,
    evaluate,
    mark,
)

if TYPE_CHECKING:
    from xsoilsm.engine import Engine
    from xsoilsm.ensemble import Ensemble

__all__ = ["Plan", "pack_together", "run"]

PIXELS_AT_ONCE = 16_384
"""Pixels whose features are held in memory at a time, whatever the size of a block."""

_AFTER_FAILURE = 2  # value of ``ndvi_filled`` after a failed read
_FAILED_STEP = 128  # bit of the count of filled steps: one of them after a failed read


@dataclass(frozen=True)
class Plan:
    """What is done in each block, as it travels in a graph."""

    ensemble: Ensemble
    device: str
    limits: Thresholds
    blanked: QualityFlag
    domain: bool
    calibration: Calibration | None
    precision: str = "float32"

    @property
    def dtype(self) -> np.dtype[Any]:
        """One field for each variable of the result."""
        return np.dtype(
            [("mean", np.float32), ("std", np.float32), ("flags", FLAG_DTYPE)]
            + [("distance", np.float32), ("clipped", np.uint8)] * self.domain
            + [("uncertainty", np.float32)] * (self.calibration is not None)
        )

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        calibration = self.calibration and self.calibration.model_dump_json()
        return (
            "xsoilsm.Plan",
            *self.ensemble.__dask_tokenize__(),
            *self.limits.__dask_tokenize__(),
            *(self.device, self.precision, int(self.blanked), self.domain, calibration),
        )


def run(
    inputs: dict[str, tuple[Any, str]],
    core: str,
    plan: Plan,
    packed: Sequence[tuple[str, np.dtype[Any]]],
) -> Any:
    """Run a plan over the inputs of a cube.

    Lazy on Dask arrays.

    Parameters
    ----------
    inputs : dict of str to (array, letters)
        Of `xsoilsm.features.block_inputs`.
    core : {"tyx", "n"}
    plan : Plan
    packed : sequence of (str, dtype)
        Of `pack_together`.

    Returns
    -------
    array of structures
        With the fields of ``plan.dtype``.
    """
    import dask.array as da

    _count_filled(inputs)
    if not any(isinstance(data, da.Array) for data, _ in inputs.values()):
        arrays = (data for data, _ in inputs.values())
        return _retrieve_block(*arrays, names=list(inputs), plan=plan, packed=(), threads=None)
    pairs: list[Any] = []
    for data, letters in inputs.values():
        kept = "".join(letter for letter in letters if letter in core)
        if kept != letters:
            # Dask fuses a layer with those below it only where it contracts nothing itself, so
            # periods and steps, which are one chunk, are hidden one layer below.
            data = da.blockwise(
                _whole, kept, data, letters, concatenate=None, dtype=data.dtype, meta=data._meta
            )
        pairs += [data, kept]
    return da.blockwise(
        _retrieve_block,
        core,
        *pairs,
        names=list(inputs),
        plan=plan,
        packed=packed,
        threads=1,  # Dask runs blocks side by side
        concatenate=None,
        dtype=plan.dtype,
        meta=np.empty((0,) * len(core), plan.dtype),
    )


MOST_TOGETHER = 8
"""Acquisitions over the same series in one task, at most; the kernel shares work among so many."""


def pack_together(
    cube: xr.Dataset, inputs: dict[str, tuple[Any, str]]
) -> tuple[tuple[str, np.dtype[Any]], ...]:
    """Put what lies along time into chunks of acquisitions that see the same periods, in place.

    All variables travel as one array, so that a chunk of an acquisition is one task more.

    Parameters
    ----------
    cube : Dataset
        Map form.
    inputs : dict of str to (array, letters)
        Of `xsoilsm.features.block_inputs`; changed.

    Returns
    -------
    tuple of (str, dtype)
        What was packed, in order; empty where chunks stay as they are.
    """
    import dask.array as da

    ends = periods.window_end(cube["period"].values, cube["time"].values)
    starts = [0]
    for index in range(1, ends.size):
        if ends[index] != ends[index - 1] or index - starts[-1] == MOST_TOGETHER:
            starts.append(index)
    sizes = tuple(np.diff([*starts, ends.size]).tolist())
    names = [n for n, (_, letters) in inputs.items() if letters == "tyx"]
    lazy = all(isinstance(inputs[n][0], da.Array) for n in names)
    if not lazy or max(sizes) == 1 or any(max(inputs[n][0].chunks[0]) > 1 for n in names):
        return ()
    packed = tuple((n, inputs[n][0].dtype) for n in names)
    pairs = [part for n in names for part in inputs.pop(n)]
    whole = da.blockwise(
        _stack, "vtyx", *pairs, new_axes={"v": len(names)}, concatenate=None, dtype=np.float32
    )
    inputs[_PACKED] = whole.rechunk({1: sizes}), "vtyx"
    for name, (data, letters) in inputs.items():
        if letters == "t":
            inputs[name] = data.rechunk({0: sizes}), letters
    return packed


_PACKED = "packed"


def _stack(*arrays: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Stack variables; small integers are exact in float32."""
    return np.stack([array.astype(np.float32, copy=False) for array in arrays])


def _unpack(
    arrays: dict[str, npt.NDArray[Any]], packed: Sequence[tuple[str, np.dtype[Any]]]
) -> None:
    """Undo `_stack`, in place."""
    if packed:
        layers = arrays.pop(_PACKED)
        for layer, (name, dtype) in zip(layers, packed, strict=True):
            arrays[name] = layer.astype(dtype, copy=False)


def _count_filled(inputs: dict[str, tuple[Any, str]]) -> None:
    """Put the count of filled steps of each acquisition in place of the marks of all periods."""
    import dask.array as da

    if "ndvi_filled" not in inputs:
        return
    filled, letters = inputs.pop("ndvi_filled")
    pairs: list[Any] = [filled, letters]
    if "window_end" in inputs:
        pairs += inputs["window_end"]
    out = letters.replace("p", "t").replace("s", "")
    if isinstance(filled, da.Array):
        counted = da.blockwise(
            _filled_steps,
            out,
            *pairs,
            concatenate=None,
            dtype=np.uint8,
            meta=np.empty((0,) * len(out), np.uint8),
        )
    else:
        counted = _filled_steps(*pairs[::2])
    inputs["filled_steps"] = counted, out


def _filled_steps(filled: Any, ends: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.uint8]:
    """Count the filled steps that each acquisition sees; a bit says that a read had failed."""
    marks: npt.NDArray[Any] = filled[0] if isinstance(filled, list) else filled
    if ends is None:
        windows = [marks.T]
    else:
        windows = [marks[max(end + 1 - PERIODS_PER_YEAR, 0) : end + 1] for end in ends]
    counts = np.stack([(window > 0).sum(axis=0, dtype=np.uint8) for window in windows])
    for count, window in zip(counts, windows, strict=True):
        count[(window >= _AFTER_FAILURE).any(axis=0)] |= np.uint8(_FAILED_STEP)
    return counts[0] if ends is None else counts


@lru_cache(maxsize=4)
def _engine(ensemble: Ensemble, device: str, threads: int | None, precision: str) -> Engine:
    """Engine of this process; ensembles are equal when their digests are."""
    from xsoilsm.engine import Engine

    return Engine(ensemble, device=device, threads=threads, precision=precision)


def _retrieve_block(
    *arrays: npt.NDArray[Any],
    names: list[str],
    plan: Plan,
    packed: Sequence[tuple[str, np.dtype[Any]]],
    threads: int | None,
) -> npt.NDArray[Any]:
    values = dict(zip(names, arrays, strict=True))
    _unpack(values, packed)
    block = Block.of(plan.ensemble.contract, values)
    engine = _engine(plan.ensemble, plan.device, threads, plan.precision)
    result = np.empty((block.ends.size, block.pixels), plan.dtype)
    for start in range(0, block.pixels, PIXELS_AT_ONCE):
        part = slice(start, start + PIXELS_AT_ONCE)
        surface = _surface_flags(plan, block, part)
        encoded = block.encode(part)
        mean, std = engine.predict_many(
            encoded.snapshots, encoded.series, block.ends, valid=~encoded.missing
        )
        for index in range(block.ends.size):
            out = result[index, part]
            out["mean"], out["std"] = mean[index], std[index]
            flags = surface.copy()
            _mark_acquisition(flags, plan, block, index, part)
            _mark_inputs(flags, plan, encoded, index, out)
            _mark_range(flags, out)
            out["flags"] = flags
            _finish(plan, out)
    return result.reshape(block.shape)


def _surface_flags(plan: Plan, block: Block, part: slice) -> npt.NDArray[np.uint32]:
    """Evaluate the flags that hold for all acquisitions."""
    values = {name: values[part] for name, values in block.values.items() if values.ndim == 1}
    flags = np.zeros(block.values["row_9km"][part].size, FLAG_DTYPE)
    evaluate(_conditions(plan, block, static=True), plan.limits, values, flags)
    if "inputs_failed" in values:
        # Which composites an acquisition sees, the marks of filled steps tell better.
        known = InputFlag.NDVI if "filled_steps" in block.values else 0
        failed = (values["inputs_failed"].astype(FLAG_DTYPE) & ~FLAG_DTYPE(known)) != 0
        mark(flags, failed, QualityFlag.READ_FAILED)
    return flags


def _conditions(plan: Plan, block: Block, *, static: bool) -> list[Condition]:
    """Conditions that can be evaluated in a block, of the surface or of its acquisitions."""
    known = {"ndvi_filled" if name == "filled_steps" else name for name in block.values}
    return [c for c in conditions_for(known, plan.limits) if c.is_static == static]


_ALONG_TIME = ("coverage", "source_flags", "soil_temperature", "snow_cover", "filled_steps")
_ALONG_PERIODS = ("ndvi", "air_temperature")
_SOURCE_BITS = {
    SourceFlag.NO_SCENE: QualityFlag.NO_SCENE,
    SourceFlag.READ_FAILED: QualityFlag.READ_FAILED,
    SourceFlag.APPROXIMATE_SIGMA0: QualityFlag.APPROXIMATE_SIGMA0,
    SourceFlag.UNRELIABLE_SIGMA0: QualityFlag.STEEP_SLOPE,
    SourceFlag.LAYOVER_SHADOW: QualityFlag.LAYOVER_SHADOW,
}


def _mark_acquisition(
    flags: npt.NDArray[np.uint32], plan: Plan, block: Block, index: int, part: slice
) -> None:
    """Mark what the loader said of the radar, and the state of the surface at that time."""
    values: dict[str, npt.NDArray[Any]] = {}
    for name in _ALONG_TIME:
        if name in block.values:
            # Samples have one acquisition each.
            values[name] = np.atleast_2d(block.values[name])[index, part]
    for name in _ALONG_PERIODS:
        values[name] = block.values[name][block.ends[index], part]
    if "source_flags" in values:
        source = values["source_flags"].astype(FLAG_DTYPE)
        for bit, flag in _SOURCE_BITS.items():
            mark(flags, (source & FLAG_DTYPE(bit)) != 0, flag)
    if "filled_steps" in values:
        steps = values["filled_steps"]
        mark(flags, steps >= _FAILED_STEP, QualityFlag.READ_FAILED)
        values["filled_steps"] = steps & np.uint8(_FAILED_STEP - 1)
    evaluate(_conditions(plan, block, static=False), plan.limits, values, flags)


def _mark_inputs(
    flags: npt.NDArray[np.uint32],
    plan: Plan,
    encoded: Encoded,
    index: int,
    out: npt.NDArray[Any],
) -> None:
    """Mark what the inputs are as a whole: missing, clipped, far from those of training."""
    missing, clipped = encoded.missing[index], encoded.clipped[index]
    mark(flags, missing, QualityFlag.NAN_INPUT)
    mark(flags, (clipped > 0) & ~missing, QualityFlag.INPUTS_CLIPPED)
    limit = plan.limits.domain_distance
    if limit is not None or plan.domain:
        apart = distance(statistics_of(plan.ensemble), encoded.snapshots[index])
        apart[missing] = np.nan
        if limit is not None:
            mark(flags, apart > limit, QualityFlag.OUT_OF_DOMAIN)
        if plan.domain:
            out["distance"], out["clipped"] = apart, clipped


def _mark_range(flags: npt.NDArray[np.uint32], out: npt.NDArray[Any]) -> None:
    """Mark retrievals that are no soil moisture."""
    low, high = VALID_RANGE
    mark(flags, (out["mean"] < low) | (out["mean"] > high), QualityFlag.OUT_OF_RANGE)


def _finish(plan: Plan, out: npt.NDArray[Any]) -> None:
    """Blank what is masked, and turn spread into uncertainty where that is known."""
    blanked = (out["flags"] & FLAG_DTYPE(plan.blanked)) != 0
    out["mean"][blanked] = np.nan
    out["std"][blanked] = np.nan
    if plan.calibration is not None:
        out["uncertainty"] = uncertainty(plan.calibration, out["std"])


def _whole(blocks: list[Any]) -> npt.NDArray[Any]:
    """Pass on the only block along periods or steps, with that axis, as part of a task."""
    (block,) = blocks
    whole: npt.NDArray[Any] = block
    return whole
