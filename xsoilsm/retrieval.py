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
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from xsoilsm import grid
from xsoilsm.blocks import Plan, pack_together, run
from xsoilsm.calibration import Calibration
from xsoilsm.checks import assumptions, check_cube
from xsoilsm.cube import aggregate, cube_geobox, is_sample_form
from xsoilsm.features import block_inputs
from xsoilsm.quality import (
    QualityFlag,
    Thresholds,
    conditions_for,
    flag_names,
    missing_inputs,
)
from xsoilsm.result import describe_result, is_simulated, not_evaluated
from xsoilsm.thresholds import Mask, get_thresholds, mask_bits

if TYPE_CHECKING:
    from xsoilsm.ensemble import Ensemble

__all__ = ["MaskWarning", "ResolutionWarning", "SimulationWarning", "retrieve"]


_log = logging.getLogger(__name__)


class MaskWarning(UserWarning):
    """A mask names a flag that cannot be evaluated from the cube."""


class ResolutionWarning(UserWarning):
    """An ensemble is used on cells finer than those it was trained on."""


class SimulationWarning(UserWarning):
    """An ensemble trained on simulated data is used on inputs that may be real."""


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
    together: bool = True,
    precision: str = "float32",
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
    device : {"auto", "cpu", "cuda", "cuda:1", ...}, default "auto"
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
    together : bool, default True
        Compute the acquisitions that see the same 46 periods in one task where the cube has one
        acquisition a chunk: what the networks make of the series is then computed once. Numbers
        do not depend on it. False suits who computes single acquisitions of a longer cube.
    precision : {"float32", "tf32", "bf16", "split-tf32"}, default "float32"
        Of products of matrices on a GPU, see `xsoilsm.engine.Engine`; on a CPU float32 alone.

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
    SimulationWarning
        When the ensemble was trained on simulated data, ``"twin-demo"`` for instance, and the
        cube does not say that it is simulated too. The title of the result says it as well.

    Notes
    -----
    Method: Zhu et al. (2024), Remote Sensing of Environment 301, 113944.
    """
    from xsoilsm.engine import check_precision
    from xsoilsm.ensemble import get_ensemble

    check_precision(precision)
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
    calibration = _calibration(ensemble, cells)
    plan = Plan(ensemble, device, limits, blanked, domain, calibration, precision)
    inputs = block_inputs(cube, contract, extras=_extras(cube, limits))
    packed = pack_together(cube, inputs) if together and not sample else ()
    result = run(inputs, "n" if sample else "tyx", plan, packed)
    data = describe_result(
        cube, result, ensemble, limits=limits, blanked=blanked, calibration=plan.calibration
    )
    if ensemble.card.simulated and not is_simulated(cube):
        warnings.warn(
            data.attrs["simulation_note"], SimulationWarning, stacklevel=_level_of_caller()
        )
    if precision != "float32":
        data.attrs["precision"] = precision
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
    calibration = ensemble.card.calibration
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
