"""Outside the seven steps (evaluation): results as a NetCDF file that QA4SM's tools read.

The names are those of QA4SM's result files and its reader (qa4sm-reader 0.12):
``{metric}_between_{id}-{reference}_and_{id}-{other}``, ``{metric}_ci_{bound}_between_...``,
dims ``loc`` and ``tsw`` (temporal sub-window, here only "bulk"), and global attributes
``val_dc_*`` that say what the datasets are. As in pytesmo, BIAS is **reference minus other**,
so its sign is the opposite of ``bias`` elsewhere in this package.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xsoilsm.evaluation.scores import IN_WORDS, Evaluation
from xsoilsm.metrics import agreement, analytic_intervals, valid
from xsoilsm.wholefile import whole_file

__all__ = ["STATUS", "qa4sm_dataset", "write_qa4sm"]

MIN_OBS = 10
"""Sites with fewer pairs get no measures (pytesmo's default)."""

STATUS = {0: "Success", 1: "Not enough data"}
"""Values of ``status_between_*`` that occur, as QA4SM numbers them."""

_UNIT = "m³/m³"
_METADATA = {"network": "network", "station": "station", "climate_KG": "climate"}
_PAIRWISE = {
    "R": "Pearson's r",
    "p_R": "Pearson's r p-value",
    "RMSD": "Root-mean-square deviation",
    "BIAS": "Bias (difference of means), reference minus other",
    "urmsd": "Unbiased root-mean-square deviation",
    "mse": "Mean square error",
    "RSS": "Residual sum of squares",
    "status": "Validation errors",
}


def qa4sm_dataset(
    evaluation: Evaluation,
    *,
    name: str = "xsoilsm",
    version_name: str = "",
    reference: str = "ISMN",
    reference_version: str = "",
) -> xr.Dataset:
    """Put an evaluation under QA4SM's names: one location for each site.

    Computes.

    Parameters
    ----------
    evaluation : Evaluation
        Its samples need ``lat`` and ``lon``.
    name, version_name : str
        Short name and version of the retrieval. A name holds no "_and_" and no "-".
    reference, reference_version : str
        Of the truth.

    Returns
    -------
    Dataset (loc, tsw)
        Confidence intervals are the analytic ones of pytesmo at 95 %, which take samples as
        independent, because the names stand for those.

    Raises
    ------
    ValueError
        When the samples have no places, or a name does not fit into those of variables.
    """
    for text in (name, reference):
        if not text or "-" in text or "_and_" in text or "_between_" in text or " " in text:
            msg = f"{text!r} cannot be part of a variable's name in QA4SM; take letters and digits"
            raise ValueError(msg)
    table = evaluation.samples
    if "lat" not in table or "lon" not in table:
        msg = "QA4SM's files hold places; add the columns 'lat' and 'lon' to the samples"
        raise ValueError(msg)
    pair = f"_between_0-{reference}_and_1-{name}"
    rows = []
    for _, group in table.groupby("cell", sort=True):
        rows.append(_location(group, pair))
    frame = pd.DataFrame(rows)
    data: dict[str, Any] = {}
    for column in frame:
        if column in ("lat", "lon"):
            continue
        values = frame[column].to_numpy()
        if column in _METADATA:
            data[column] = ("loc", values.astype(object), {})
            continue
        metric = str(column).split("_between_")[0]
        data[str(column)] = (("loc", "tsw"), values[:, None], _attributes(metric))
    coords = {
        "lat": ("loc", frame["lat"].to_numpy(np.float32), _place("latitude", "degrees_north", "Y")),
        "lon": ("loc", frame["lon"].to_numpy(np.float32), _place("longitude", "degrees_east", "X")),
        "gpi": ("loc", np.arange(len(frame), dtype=np.int64), {"long_name": "grid point index"}),
        "tsw": (
            "tsw",
            np.array(["bulk"], dtype=object),
            {
                "long_name": "temporal sub-window",
                "temporal_sub_window_type": "No temporal sub-windows used",
                "overlap": "No temporal sub-windows used",
                "intra_annual_window_definition": "No temporal sub-windows used",
            },
        ),
    }
    names = {"name": name, "version": version_name or version("xsoilsm")}
    names |= {"reference": reference, "reference_version": reference_version or "not stated"}
    return xr.Dataset(data, coords=coords, attrs=_global(evaluation, names))


def write_qa4sm(
    evaluation: Evaluation,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    **names: str,
) -> Path:
    """Write `qa4sm_dataset` as NetCDF-4. The file appears when it is complete and read back.

    Computes.

    Parameters
    ----------
    evaluation : Evaluation
    path : path
    overwrite : bool, default False
    **names
        Of `qa4sm_dataset`.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        See `qa4sm_dataset`.
    FileExistsError
        When `path` exists and `overwrite` is false.
    OSError
        When what was read back differs from what was written.
    """
    made = qa4sm_dataset(evaluation, **names)
    packed = {n: {"zlib": True} for n, v in made.data_vars.items() if v.dtype.kind == "f"}
    with whole_file(path, overwrite=overwrite) as scratch:
        made.to_netcdf(scratch, engine="netcdf4", encoding=packed)
        with xr.open_dataset(scratch, engine="netcdf4", mask_and_scale=False) as back:
            same = all(
                np.array_equal(back[n].values, made[n].values) or _near(back, made, n)
                for n in made.variables
            )
        if not same:
            msg = f"{path} does not hold what was written to it; is its disk sound and not full?"
            raise OSError(msg)
    return Path(path)


def _near(back: xr.Dataset, made: xr.Dataset, name: Any) -> bool:
    return made[name].dtype.kind == "f" and np.array_equal(
        back[name].values, made[name].values, equal_nan=True
    )


def _location(group: pd.DataFrame, pair: str) -> dict[str, Any]:
    first = group.iloc[0]
    truth, retrieved = group["truth"].to_numpy(), group["predicted"].to_numpy()
    usable = np.where(valid(retrieved), retrieved, np.nan)
    found = agreement(usable, truth)
    enough = found.n >= MIN_OBS
    row: dict[str, Any] = {"lat": first["lat"], "lon": first["lon"]}
    row["n_obs"] = np.float32(found.n)
    values: dict[str, float] = dict.fromkeys(_PAIRWISE, np.nan)
    bounds: dict[str, tuple[float, float]] = dict.fromkeys(("R", "BIAS", "urmsd"), (np.nan,) * 2)
    if enough:
        mse = found.rmse**2
        values |= {"R": found.r, "p_R": _p_value(found.r, found.n), "RMSD": found.rmse}
        values |= {"BIAS": -found.bias, "urmsd": found.ubrmse, "mse": mse, "RSS": mse * found.n}
        spans = analytic_intervals(found)
        low, high = spans["bias"]
        bounds = {"R": spans["r"], "BIAS": (-high, -low), "urmsd": spans["ubrmse"]}
    values["status"] = 0 if enough else 1
    row |= {f"{metric}{pair}": np.float32(value) for metric, value in values.items()}
    for metric, (low, high) in bounds.items():
        row[f"{metric}_ci_lower{pair}"] = np.float32(low)
        row[f"{metric}_ci_upper{pair}"] = np.float32(high)
    for target, source in _METADATA.items():
        if source in group:
            row[target] = str(first[source])
    return row


def _p_value(r: float, n: int) -> float:
    """Two-sided p-value of a correlation of independent pairs (Student's t)."""
    from scipy.special import stdtr

    if not np.isfinite(r) or n < 3:
        return np.nan
    if abs(r) >= 1:
        return 0.0
    return float(2 * stdtr(n - 2, -abs(r) * np.sqrt((n - 2) / (1 - r * r))))


def _attributes(metric: str) -> dict[str, Any]:
    base = metric.removesuffix("_ci_lower").removesuffix("_ci_upper")
    said: dict[str, Any] = {"long_name": _PAIRWISE.get(base, "# observations")}
    if base != metric:
        said["long_name"] = f"Confidence interval ({metric[-5:]}) of {said['long_name']}"
        said["comment"] = "analytic, 95 %, samples taken as independent"
    if base in ("RMSD", "BIAS", "urmsd"):
        said["units"] = _UNIT
    if base == "status":
        said["flag_values"] = np.array(list(STATUS), np.int32)
        said["flag_meanings"] = " ".join(text.lower().replace(" ", "_") for text in STATUS.values())
    return said


def _place(name: str, units: str, axis: str) -> dict[str, str]:
    return {"standard_name": name, "long_name": name, "units": units, "axis": axis}


def _global(evaluation: Evaluation, names: dict[str, str]) -> dict[str, Any]:
    table = evaluation.samples
    attributes: dict[str, Any] = {
        "Conventions": "CF-1.11",
        "title": f"Validation of {names['name']} against {names['reference']}",
        "source": f"xsoilsm {version('xsoilsm')}",
        "val_ref": "val_dc_dataset0",
        "val_scaling_method": "none",
        "val_temporal_matching": "same UTC day",
        "val_training": IN_WORDS[evaluation.independence],
    }
    if evaluation.simulated:
        attributes["title"] = f"SIMULATED: {attributes['title']}"
        attributes["comment"] = "simulated data: no statement about accuracy in the real world"
    if "time" in table:
        first, last = table["time"].min(), table["time"].max()
        attributes |= {
            "val_interval_from": f"{first:%Y-%m-%d %H:%M:%S}",
            "val_interval_to": f"{last:%Y-%m-%d %H:%M:%S}",
        }
    for number, (short, edition) in enumerate(
        ((names["reference"], names["reference_version"]), (names["name"], names["version"]))
    ):
        attributes |= {
            f"val_dc_dataset{number}": short,
            f"val_dc_dataset_pretty_name{number}": short,
            f"val_dc_version{number}": edition.replace(" ", "_"),
            f"val_dc_version_pretty_name{number}": edition,
            f"val_dc_variable{number}": "soil_moisture",
            f"val_dc_variable_pretty_name{number}": "soil moisture",
            f"val_dc_unit{number}": _UNIT,
        }
    return attributes
