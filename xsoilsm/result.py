"""Step 6 of 7 (explain): what a result says of itself, in attributes of the CF conventions."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import xarray as xr

from xsoilsm.checks import sigma0_forms
from xsoilsm.cube import cube_geobox, is_sample_form, spatial_coords
from xsoilsm.quality import (
    QualityFlag,
    Thresholds,
    evaluation_attributes,
    flag_attributes,
    flag_names,
)

if TYPE_CHECKING:
    from xsoilsm.calibration import Calibration
    from xsoilsm.ensemble import Ensemble

__all__ = ["NAMES", "describe_result", "is_simulated", "not_evaluated", "simulation_note"]

NAMES = {
    "mean": "soil_moisture",
    "std": "soil_moisture_std",
    "flags": "quality_flag",
    "distance": "domain_distance",
    "clipped": "clipped_inputs",
    "uncertainty": "soil_moisture_uncertainty",
}
"""Variable that each field of a block becomes."""


def describe_result(
    cube: xr.Dataset,
    fields: Any,
    ensemble: Ensemble,
    *,
    limits: Thresholds,
    blanked: QualityFlag,
    calibration: Calibration | None = None,
) -> xr.Dataset:
    """Put the fields of a retrieval into a Dataset that explains itself.

    Lazy: reads nothing.

    Parameters
    ----------
    cube : Dataset
        What was retrieved from.
    fields : structured array
        With some of the fields in `NAMES`; (time, y, x) or (sample).
    ensemble : Ensemble
    limits : Thresholds
    blanked : QualityFlag
        Flags whose cells are NaN.
    calibration : Calibration, optional

    Returns
    -------
    Dataset
    """
    sample = is_sample_form(cube)
    dims = ("sample",) if sample else ("time", "y", "x")
    coords: dict[Any, Any] = {n: c for n, c in cube.coords.items() if set(c.dims) <= set(dims)}
    if not sample:
        coords |= spatial_coords(cube_geobox(cube))
    about = _attributes(cube, limits, calibration)
    kept = [part for part in fields.dtype.names if part in NAMES]
    others = " ".join(NAMES[part] for part in kept if part != "mean")
    about["mean"]["ancillary_variables"] = others
    data = xr.Dataset(
        {NAMES[part]: (dims, fields[part], about[part]) for part in kept},
        coords=coords,
        attrs={
            **{k: v for k, v in cube.attrs.items() if k not in ("title", "Conventions", "source")},
            **_inputs(cube),
            "Conventions": "CF-1.11",
            "title": _title(cube, ensemble),
            "source": f"xsoilsm {version('xsoilsm')}, ensemble {ensemble.name}",
            "ensemble": ensemble.name,
            "ensemble_digest": ensemble.digest,
            "ensemble_resolution": ensemble.resolution,
            "feature_contract": ensemble.contract.name,
            "feature_contract_digest": ensemble.contract.digest,
            "references": ensemble.card.citation.text,
            "masked_flags": " ".join(flag_names(blanked)),
        },
    )
    note = simulation_note(cube, ensemble)
    if note:
        data.attrs["simulation_note"] = note
    if not sample:
        for variable in data.data_vars.values():
            variable.encoding["grid_mapping"] = "spatial_ref"
    return data


def is_simulated(cube: xr.Dataset) -> bool:
    """Tell whether a cube says that it is simulated. Lazy: reads nothing."""
    said = str(cube.attrs.get("simulated", "0")).lower() not in ("0", "false", "no", "")
    return said or "simulated" in f"{cube.attrs.get('source')} {cube.attrs.get('title')}".lower()


def simulation_note(cube: xr.Dataset, ensemble: Ensemble) -> str:
    """Say what networks of simulated data mean for a result; empty for all others.

    Lazy: reads nothing.
    """
    if not ensemble.card.simulated:
        return ""
    networks = f"The networks of {ensemble.name!r} were trained on simulated data"
    if is_simulated(cube):
        return f"{networks}, and the inputs are simulated: this says nothing of the Earth."
    return (
        f"{networks}, but nothing says that the inputs are simulated: on observations they are "
        "for trying things out only, and the values say nothing of the soil. Take another ensemble."
    )


def _title(cube: xr.Dataset, ensemble: Ensemble) -> str:
    """Title of a result; what is simulated stands in it."""
    title = "Soil moisture from Sentinel-1"
    if not ensemble.card.simulated:
        return title
    inputs = "simulated landscape, " if is_simulated(cube) else ""
    return f"{title} ({inputs}demonstration networks trained on simulated data)"


def not_evaluated(cube: xr.Dataset, limits: Thresholds) -> list[str]:
    """Names of flags that cannot be set, for lack of an input or a threshold."""
    return _evaluation(cube, limits)["flags_not_evaluated"].split()


def _evaluation(cube: xr.Dataset, limits: Thresholds) -> dict[str, str]:
    return evaluation_attributes({str(n) for n in cube.data_vars}, limits, sigma0_forms(cube))


def _inputs(cube: xr.Dataset) -> dict[str, str]:
    """Where the cube came from and which items it was made of, as far as it says."""
    items = [str(v.attrs["items"]).split() for v in cube.variables.values() if "items" in v.attrs]
    said = {
        "inputs": str(cube.attrs.get("source", "")),
        "input_items": " ".join(dict.fromkeys(item for group in items for item in group)),
    }
    return {name: text for name, text in said.items() if text}


def _attributes(
    cube: xr.Dataset, limits: Thresholds, calibration: Calibration | None
) -> dict[str, dict[str, Any]]:
    """Attributes of the variable that each field becomes."""
    about: dict[str, dict[str, Any]] = {
        "mean": {
            "units": "m3 m-3",
            "standard_name": "volume_fraction_of_condensed_water_in_soil",
            "long_name": "volumetric soil moisture of the top 5 cm, daily mean",
        },
        "std": {
            "units": "m3 m-3",
            "long_name": "spread (population standard deviation) of the members",
            "comment": "the spread of the networks is not an error estimate",
        },
        "flags": flag_attributes() | _evaluation(cube, limits),
        "distance": {
            "units": "1",
            "long_name": "distance of the inputs from those of training",
            "comment": (
                "root mean square of the standard scores of the networks' inputs; 1 is usual, "
                "and it is no error estimate"
            ),
        },
        "clipped": {
            "units": "1",
            "long_name": "number of input values outside their range, clipped",
        },
    }
    if calibration is not None:
        about["uncertainty"] = {
            "units": "m3 m-3",
            "long_name": "standard uncertainty of soil_moisture",
            "comment": (
                f"from {calibration.samples} comparisons with {calibration.truth} at "
                f"{calibration.resolution}; {calibration.within:.0%} of truths lay within one "
                "uncertainty, of which 68 % should"
            ),
        }
    return about
