"""Step 6 of 7 (retrieve and explain): cube and ensemble become soil moisture, spread and flags.

Each Dask block is one call, which encodes its pixels, drops those with a missing input, runs
the engine and explains every value in ``quality_flag``. The ensemble's card travels in the
graph, its weights never do: each process loads them once.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xsoilsm import grid
from xsoilsm.calibration import Calibration, uncertainty
from xsoilsm.checks import assumptions, check_cube
from xsoilsm.cube import InputFlag, SourceFlag, aggregate, cube_geobox, is_sample_form
from xsoilsm.domain import distance, statistics_of
from xsoilsm.features import Block, Encoded, block_inputs
from xsoilsm.periods import PERIODS_PER_YEAR
from xsoilsm.quality import (
    FLAG_DTYPE,
    VALID_RANGE,
    Condition,
    QualityFlag,
    Thresholds,
    conditions_for,
    evaluate,
    flag_names,
    mark,
    missing_inputs,
)
from xsoilsm.result import describe_result, not_evaluated
from xsoilsm.thresholds import Mask, get_thresholds, mask_bits

if TYPE_CHECKING:
    from xsoilsm.engine import Engine
    from xsoilsm.ensemble import Ensemble

__all__ = ["MaskWarning", "ResolutionWarning", "retrieve"]

PIXELS_AT_ONCE = 16_384
"""Pixels whose features are held in memory at a time, whatever the size of a block."""

_log = logging.getLogger(__name__)
_AFTER_FAILURE = 2  # value of ``ndvi_filled`` after a failed read
_FAILED_STEP = 128  # bit of the count of filled steps: one of them after a failed read


class MaskWarning(UserWarning):
    """A mask names a flag that cannot be evaluated from the cube."""


class ResolutionWarning(UserWarning):
    """An ensemble is used on cells finer than those it was trained on."""


def retrieve(
    cube: xr.Dataset,
    model: str | Path | Ensemble = "DenseSM-E",
    res: str | None = None,
    *,
    device: str = "auto",
    mask: Mask = "default",
    keep_invalid: bool = False,
    thresholds: Thresholds | Mapping[str, float | None] | None = None,
    domain: bool = False,
) -> xr.Dataset:
    """Retrieve near-surface soil moisture (0-5 cm) from a cube.

    Lazy on Dask-backed cubes: reads nothing and loads no weights.

    Parameters
    ----------
    cube : Dataset
        Map form (time, period, y, x) or sample form (sample, step), see `xsoilsm.cube`.
    model : str, Path or Ensemble, default "DenseSM-E"
        Name of an ensemble or of a family, path of a card, or an ensemble.
    res : {"9km", "1km", "500m", "100m"}, optional
        Grid of the result. A coarser one than the cube's averages the inputs first; None keeps
        the cube's. For samples it only states the size of their cells.
    device : {"auto", "cpu", "cuda"}, default "auto"
    mask : str, iterable of str, or None, default "default"
        Quality flags whose cells become NaN: names of flags, ``"default"`` (``out_of_range``
        alone, as published) or ``"strict"``, for instance ``["default", "frozen_ground"]``. None
        blanks nothing. Flags mark, whatever is blanked.
    keep_invalid : bool, default False
        Keep values outside 0 to 0.6 m3 m-3 whatever `mask` says.
    thresholds : mapping of str to float, or Thresholds, optional
        Replaces thresholds of the flags, see ``catalogs/quality/thresholds.yaml``; None as a
        value switches a condition off, and its input is then not read.
    domain : bool, default False
        Add ``domain_distance`` and ``clipped_inputs``.

    Returns
    -------
    Dataset
        ``soil_moisture`` and ``soil_moisture_std`` in m3 m-3 with dims (time, y, x) or
        (sample), float32, and ``quality_flag`` (CF flag masks), whose attributes say which flags
        were evaluated from what. ``soil_moisture_std`` is the spread of the members, not an
        error; ``soil_moisture_uncertainty`` is there only where the ensemble's card carries a
        calibration for this grid. NaN in any input gives NaN and a flag.

    Raises
    ------
    CubeError
        When the Dataset is not a cube.
    ValueError
        For an unknown `model`, `res`, flag or threshold, or a `res` finer than the cube's.
    WeightsError
        When the weights are not at hand; the message says how to get them. Lazy cubes raise
        it here too, before anything is computed.

    Warns
    -----
    MaskWarning
        When `mask` names a flag that cannot be evaluated from the cube.
    ResolutionWarning
        When the ensemble's own grid is coarser than the result's.

    Notes
    -----
    Method: Zhu et al. (2024), Remote Sensing of Environment 301, 113944.
    """
    from xsoilsm.ensemble import get_ensemble

    if res is not None:
        grid.get_grid(res)
    if isinstance(model, str | Path):
        own = res if res is not None or is_sample_form(cube) else _own_grid(cube)
        ensemble = get_ensemble(model, res=own)
    else:
        ensemble = model
    limits, blanked = get_thresholds(thresholds), mask_bits(mask)
    if keep_invalid:
        blanked &= ~QualityFlag.OUT_OF_RANGE
    contract = ensemble.contract
    check_cube(cube, averaging=contract.averaging)
    for assumption in assumptions(cube):
        _say_once(assumption)
    ensemble.require_weights()
    _warn_of_mask(cube, limits, blanked)
    sample = is_sample_form(cube)
    if res is not None and not sample:
        cube = aggregate(cube, res)
    cells = res if sample else _own_grid(cube)
    plan = _Plan(ensemble, device, limits, blanked, domain, _calibration(ensemble, cells))
    inputs = block_inputs(cube, contract, extras=_extras(cube, limits))
    result = _run(inputs, "n" if sample else "tyx", plan)
    data = describe_result(
        cube, result, ensemble, limits=limits, blanked=blanked, calibration=plan.calibration
    )
    if cells is not None:
        data.attrs["resolution"] = cells
        note = _resolution_note(ensemble, cells)
        if note:
            data.attrs["resolution_note"] = note
            warnings.warn(note, ResolutionWarning, stacklevel=_level_of_caller())
    return data


def _warn_of_mask(cube: xr.Dataset, limits: Thresholds, blanked: QualityFlag) -> None:
    """Say which flags are to be blanked that can never be set."""
    idle = [name for name in not_evaluated(cube, limits) if name in flag_names(blanked)]
    if idle:
        note = (
            f"the mask names {', '.join(idle)}, which cannot be evaluated from this cube; its "
            f"cells are not blanked for that; add {_wanted(cube, idle)} to the cube, or leave "
            "them out of the mask"
        )
        warnings.warn(note, MaskWarning, stacklevel=_level_of_caller())


def _wanted(cube: xr.Dataset, names: list[str]) -> str:
    missing = missing_inputs({str(name) for name in cube.data_vars})
    known = dict.fromkeys(missing[name] for name in names if name in missing)
    return ", ".join(known) or "what their thresholds need"


def _calibration(ensemble: Ensemble, cells: str | None) -> Calibration | None:
    """Calibration of an ensemble's card, where it holds for these cells."""
    calibration: Calibration | None = getattr(ensemble.card, "calibration", None)
    return calibration if calibration and calibration.resolution == cells else None


def _extras(cube: xr.Dataset, limits: Thresholds) -> list[str]:
    """Variables that only the flags need."""
    known = {str(name) for name in cube.data_vars}
    needed = [name for c in conditions_for(known, limits) for name in c.inputs]
    return list(dict.fromkeys(["source_flags", "inputs_failed", *needed]))


@lru_cache
def _say_once(message: str) -> None:
    _log.info(message)


def _own_grid(cube: xr.Dataset) -> str | None:
    """Name of a cube's grid, or None where the check that follows will say what is wrong."""
    try:
        return grid.grid_of(cube_geobox(cube))[0].name
    except (ValueError, AttributeError):
        return None


# --------------------------------------------------------------------------- blocks


@dataclass(frozen=True)
class _Plan:
    """What is done in each block, as it travels in a graph."""

    ensemble: Ensemble
    device: str
    limits: Thresholds
    blanked: QualityFlag
    domain: bool
    calibration: Calibration | None

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
            *(self.device, int(self.blanked), self.domain, calibration),
        )


def _run(inputs: dict[str, tuple[Any, str]], core: str, plan: _Plan) -> Any:
    import dask.array as da

    _count_filled(inputs)
    if not any(isinstance(data, da.Array) for data, _ in inputs.values()):
        arrays = (data for data, _ in inputs.values())
        return _retrieve_block(*arrays, names=list(inputs), plan=plan, threads=None)
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
        threads=1,  # Dask runs blocks side by side
        concatenate=None,
        dtype=plan.dtype,
        meta=np.empty((0,) * len(core), plan.dtype),
    )


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
def _engine(ensemble: Ensemble, device: str, threads: int | None) -> Engine:
    """Engine of this process; ensembles are equal when their digests are."""
    from xsoilsm.engine import Engine

    return Engine(ensemble, device=device, threads=threads)


def _retrieve_block(
    *arrays: npt.NDArray[Any], names: list[str], plan: _Plan, threads: int | None
) -> npt.NDArray[Any]:
    block = Block.of(plan.ensemble.contract, dict(zip(names, arrays, strict=True)))
    engine = _engine(plan.ensemble, plan.device, threads)
    result = np.empty((block.ends.size, block.pixels), plan.dtype)
    for start in range(0, block.pixels, PIXELS_AT_ONCE):
        part = slice(start, start + PIXELS_AT_ONCE)
        surface = _surface_flags(plan, block, part)
        for index, encoded in enumerate(block.encode(part)):
            out = result[index, part]
            missing = _any_nan(encoded.series) | _any_nan(encoded.snapshot)
            out["mean"], out["std"] = _predict(engine, encoded.snapshot, encoded.series, ~missing)
            flags = surface.copy()
            _mark_acquisition(flags, plan, block, index, part)
            _mark_inputs(flags, plan, encoded, missing, out)
            _mark_range(flags, out)
            out["flags"] = flags
            _finish(plan, out)
    return result.reshape(block.shape)


def _surface_flags(plan: _Plan, block: Block, part: slice) -> npt.NDArray[np.uint32]:
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


def _conditions(plan: _Plan, block: Block, *, static: bool) -> list[Condition]:
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
    flags: npt.NDArray[np.uint32], plan: _Plan, block: Block, index: int, part: slice
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
    plan: _Plan,
    encoded: Encoded,
    missing: npt.NDArray[np.bool_],
    out: npt.NDArray[Any],
) -> None:
    """Mark what the inputs are as a whole: missing, clipped, far from those of training."""
    mark(flags, missing, QualityFlag.NAN_INPUT)
    mark(flags, (encoded.clipped > 0) & ~missing, QualityFlag.INPUTS_CLIPPED)
    limit = plan.limits.domain_distance
    if limit is not None or plan.domain:
        apart = distance(statistics_of(plan.ensemble), encoded.snapshot)
        apart[missing] = np.nan
        if limit is not None:
            mark(flags, apart > limit, QualityFlag.OUT_OF_DOMAIN)
        if plan.domain:
            out["distance"], out["clipped"] = apart, encoded.clipped


def _mark_range(flags: npt.NDArray[np.uint32], out: npt.NDArray[Any]) -> None:
    """Mark retrievals that are no soil moisture."""
    low, high = VALID_RANGE
    mark(flags, (out["mean"] < low) | (out["mean"] > high), QualityFlag.OUT_OF_RANGE)


def _finish(plan: _Plan, out: npt.NDArray[Any]) -> None:
    """Blank what is masked, and turn spread into uncertainty where that is known."""
    blanked = (out["flags"] & FLAG_DTYPE(plan.blanked)) != 0
    out["mean"][blanked] = np.nan
    out["std"][blanked] = np.nan
    if plan.calibration is not None:
        out["uncertainty"] = uncertainty(plan.calibration, out["std"])


def _any_nan(values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Pixels (last axis) with a NaN anywhere."""
    missing: npt.NDArray[np.bool_] = np.logical_or.reduce(
        np.isnan(values).reshape(-1, values.shape[-1]), axis=0
    )
    return missing


def _predict(
    engine: Engine,
    snapshot: npt.NDArray[np.float32],
    series: npt.NDArray[np.float32],
    valid: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Run the engine on the valid pixels only; the others become NaN."""
    if valid.all():
        return engine.predict(snapshot, series)
    mean, std = np.full((2, valid.size), np.nan, np.float32)
    if valid.any():
        mean[valid], std[valid] = engine.predict(snapshot[:, valid], series[:, :, valid])
    return mean, std


def _whole(blocks: list[Any]) -> npt.NDArray[Any]:
    """Pass on the only block along periods or steps, with that axis, as part of a task."""
    (block,) = blocks
    whole: npt.NDArray[Any] = block
    return whole


# --------------------------------------------------------------------------- resolution


DIRECT_USE_RMSE = {"1km": 0.105, "500m": 0.106, "100m": 0.111}
"""RMSE in m3 m-3 against stations of the 9 km ensemble used directly (Zhu et al. 2024)."""


def _resolution_note(ensemble: Ensemble, cells: str) -> str | None:
    """Say what it means to run an ensemble on finer cells than it was trained on."""
    trained, used = grid.get_grid(ensemble.resolution), grid.get_grid(cells)
    if trained.factor >= used.factor:
        return None
    figure = (
        f" Zhu et al. (2024) report RMSE {DIRECT_USE_RMSE[cells]} m3 m-3 and R of 0.47 or less "
        f"against stations for a 9 km ensemble used directly at {cells}."
        if trained.name == "9km" and cells in DIRECT_USE_RMSE
        else ""
    )
    return (
        f"The ensemble {ensemble.name!r} was trained at {trained.name} and is used at {cells} "
        f"without transfer.{figure} Fine-tune it with station samples for this grid, or read "
        "patterns and changes rather than absolute values."
    )


def _level_of_caller() -> int:
    """Stack level of the line outside of this package that asked for the retrieval."""
    package = str(Path(__file__).parent)
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    return level
