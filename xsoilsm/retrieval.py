"""Step 6 of 7 (retrieve and explain): cube and ensemble become soil moisture, spread and flags.

Each Dask block is one call, which encodes its pixels, drops those with a missing input, runs
the engine and explains every value in ``quality_flag``. The ensemble's card travels in the
graph, its weights never do: each process loads them once.
"""

from __future__ import annotations

import logging
import sys
import warnings
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xsoilsm import grid
from xsoilsm.checks import assumptions, check_cube
from xsoilsm.cube import SourceFlag, aggregate, cube_geobox, is_sample_form, spatial_coords
from xsoilsm.features import Block, block_inputs
from xsoilsm.quality import FLAG_DTYPE, VALID_RANGE, QualityFlag, flag_attributes, mark

if TYPE_CHECKING:
    from xsoilsm.engine import Engine
    from xsoilsm.ensemble import Ensemble

__all__ = ["MIN_COVERAGE", "ResolutionWarning", "retrieve"]

MIN_COVERAGE = 0.5
"""Cells with a smaller share of valid radar pixels are flagged ``low_coverage``."""

PIXELS_AT_ONCE = 16_384
"""Pixels whose features are held in memory at a time, whatever the size of a block."""

_log = logging.getLogger(__name__)
_RESULT = np.dtype([("mean", np.float32), ("std", np.float32), ("flags", FLAG_DTYPE)])
_EXTRAS = ("coverage", "source_flags")


class ResolutionWarning(UserWarning):
    """An ensemble is used on cells finer than those it was trained on."""


def retrieve(
    cube: xr.Dataset,
    model: str | Path | Ensemble = "DenseSM-E",
    res: str | None = None,
    *,
    device: str = "auto",
    keep_invalid: bool = False,
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
    keep_invalid : bool, default False
        Keep values outside 0 to 0.6 m3 m-3, which are flagged as invalid, instead of NaN.

    Returns
    -------
    Dataset
        ``soil_moisture`` and ``soil_moisture_std`` in m3 m-3 with dims (time, y, x) or
        (sample), float32, and ``quality_flag`` (CF flag masks). ``soil_moisture_std`` is the
        spread of the members, not an error. NaN in any input gives NaN and a flag.

    Raises
    ------
    CubeError
        When the Dataset is not a cube.
    ValueError
        For an unknown `model` or `res`, or a `res` finer than the cube's.
    WeightsError
        When the weights are not at hand; the message says how to get them. Lazy cubes raise
        it here too, before anything is computed.

    Warns
    -----
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
    contract = ensemble.contract
    check_cube(cube, averaging=contract.averaging)
    for assumption in assumptions(cube):
        _say_once(assumption)
    ensemble.require_weights()
    sample = is_sample_form(cube)
    if res is not None and not sample:
        cube = aggregate(cube, res)
    inputs = block_inputs(cube, contract, extras=_EXTRAS)
    result = _run(inputs, "n" if sample else "tyx", ensemble, device, keep_invalid)
    return _describe(cube, result, ensemble, res)


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


def _run(
    inputs: dict[str, tuple[Any, str]],
    core: str,
    ensemble: Ensemble,
    device: str,
    keep_invalid: bool,
) -> Any:
    import dask.array as da

    options: dict[str, Any] = {
        "names": list(inputs),
        "ensemble": ensemble,
        "device": device,
        "keep_invalid": keep_invalid,
    }
    if not any(isinstance(data, da.Array) for data, _ in inputs.values()):
        return _retrieve_block(*(data for data, _ in inputs.values()), **options, threads=None)
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
        **options,
        threads=1,  # Dask runs blocks side by side
        concatenate=None,
        dtype=_RESULT,
        meta=np.empty((0,) * len(core), _RESULT),
    )


@lru_cache(maxsize=4)
def _engine(ensemble: Ensemble, device: str, threads: int | None) -> Engine:
    """Engine of this process; ensembles are equal when their digests are."""
    from xsoilsm.engine import Engine

    return Engine(ensemble, device=device, threads=threads)


def _retrieve_block(
    *arrays: npt.NDArray[Any],
    names: list[str],
    ensemble: Ensemble,
    device: str,
    keep_invalid: bool,
    threads: int | None,
) -> npt.NDArray[Any]:
    block = Block.of(ensemble.contract, dict(zip(names, arrays, strict=True)))
    engine = _engine(ensemble, device, threads)
    result = np.empty((block.ends.size, block.pixels), _RESULT)
    for start in range(0, block.pixels, PIXELS_AT_ONCE):
        part = slice(start, start + PIXELS_AT_ONCE)
        for index, encoded in enumerate(block.encode(part)):
            out = result[index, part]
            flags = np.zeros(out.size, FLAG_DTYPE)
            missing = _any_nan(encoded.series) | _any_nan(encoded.snapshot)
            out["mean"], out["std"] = _predict(engine, encoded.snapshot, encoded.series, ~missing)
            low, high = VALID_RANGE
            invalid = (out["mean"] < low) | (out["mean"] > high)
            mark(flags, missing, QualityFlag.NAN_INPUT)
            mark(flags, invalid, QualityFlag.OUT_OF_RANGE)
            mark(flags, (encoded.clipped > 0) & ~missing, QualityFlag.INPUTS_CLIPPED)
            _mark_source(flags, block, index, part)
            if not keep_invalid:
                out["mean"][invalid] = np.nan
                out["std"][invalid] = np.nan
            out["flags"] = flags
    return result.reshape(block.shape)


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


_SOURCE_BITS = {
    SourceFlag.NO_SCENE: QualityFlag.NO_SCENE,
    SourceFlag.READ_FAILED: QualityFlag.READ_FAILED,
    SourceFlag.APPROXIMATE_SIGMA0: QualityFlag.APPROXIMATE_SIGMA0,
    SourceFlag.UNRELIABLE_SIGMA0: QualityFlag.STEEP_SLOPE,
    SourceFlag.LAYOVER_SHADOW: QualityFlag.LAYOVER_SHADOW,
}


def _mark_source(flags: npt.NDArray[np.uint32], block: Block, index: int, part: slice) -> None:
    """Carry what the loader said of the radar source into the flags."""
    if "coverage" in block.values:
        coverage = block.values["coverage"][index, part]
        mark(flags, (coverage > 0) & (coverage < MIN_COVERAGE), QualityFlag.LOW_COVERAGE)
    if "source_flags" in block.values:
        source = block.values["source_flags"][index, part].astype(FLAG_DTYPE)
        for bit, flag in _SOURCE_BITS.items():
            mark(flags, (source & FLAG_DTYPE(bit)) != 0, flag)


# --------------------------------------------------------------------------- the result


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


def _inputs(cube: xr.Dataset) -> dict[str, str]:
    """Where the cube came from and which items it was made of, as far as it says."""
    items = [str(v.attrs["items"]).split() for v in cube.variables.values() if "items" in v.attrs]
    said = {
        "inputs": str(cube.attrs.get("source", "")),
        "input_items": " ".join(dict.fromkeys(item for group in items for item in group)),
    }
    return {name: text for name, text in said.items() if text}


def _level_of_caller() -> int:
    """Stack level of the line outside of this package that asked for the retrieval."""
    package = str(Path(__file__).parent)
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    return level


def _describe(cube: xr.Dataset, result: Any, ensemble: Ensemble, res: str | None) -> xr.Dataset:
    sample = is_sample_form(cube)
    dims = ("sample",) if sample else ("time", "y", "x")
    coords: dict[Any, Any] = {n: c for n, c in cube.coords.items() if set(c.dims) <= set(dims)}
    if not sample:
        coords |= spatial_coords(cube_geobox(cube))
    cells = res if sample else _own_grid(cube)
    moisture = {
        "units": "m3 m-3",
        "standard_name": "volume_fraction_of_condensed_water_in_soil",
        "ancillary_variables": "soil_moisture_std quality_flag",
    }
    data = xr.Dataset(
        {
            "soil_moisture": (
                dims,
                result["mean"],
                moisture | {"long_name": "volumetric soil moisture of the top 5 cm, daily mean"},
            ),
            "soil_moisture_std": (
                dims,
                result["std"],
                {
                    "units": "m3 m-3",
                    "long_name": "spread (population standard deviation) of the members",
                    "comment": "the spread of the networks is not an error estimate",
                },
            ),
            "quality_flag": (dims, result["flags"], flag_attributes()),
        },
        coords=coords,
        attrs={
            **{k: v for k, v in cube.attrs.items() if k not in ("title", "Conventions", "source")},
            **_inputs(cube),
            "Conventions": "CF-1.11",
            "title": "Soil moisture from Sentinel-1",
            "source": f"xsoilsm {version('xsoilsm')}, ensemble {ensemble.name}",
            "ensemble": ensemble.name,
            "ensemble_digest": ensemble.digest,
            "ensemble_resolution": ensemble.resolution,
            "feature_contract": ensemble.contract.name,
            "feature_contract_digest": ensemble.contract.digest,
            "references": ensemble.card.citation.text,
        },
    )
    if not sample:
        for variable in data.data_vars.values():
            variable.encoding["grid_mapping"] = "spatial_ref"
    if cells is not None:
        data.attrs["resolution"] = cells
        note = _resolution_note(ensemble, cells)
        if note:
            data.attrs["resolution_note"] = note
            warnings.warn(note, ResolutionWarning, stacklevel=_level_of_caller())
    return data
