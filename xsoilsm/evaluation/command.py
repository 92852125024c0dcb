"""Outside the seven steps (evaluation): from a file of samples to measures, report and QA4SM file.

What ``xsoilsm evaluate`` calls.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from xsoilsm.evaluation.qa4sm import write_qa4sm
from xsoilsm.evaluation.report import require_independent, write_report
from xsoilsm.evaluation.scores import Evaluation, Independence, evaluate

__all__ = ["evaluate_file", "read_samples"]


def read_samples(path: str | os.PathLike[str]) -> pd.DataFrame | xr.Dataset:
    """Read samples: Parquet, CSV (also compressed) or NetCDF in sample form.

    Computes.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When its kind is unknown, or it cannot be read.
    """
    source = Path(path)
    if not source.is_file():
        msg = f"there is no file {source}"
        raise FileNotFoundError(msg)
    name = source.name.lower()
    try:
        if name.endswith((".parquet", ".pq")):
            return pd.read_parquet(source)
        if name.endswith((".nc", ".nc4")):
            return xr.load_dataset(source)
        if name.endswith((".csv", ".csv.gz", ".csv.zip", ".csv.xz")):
            return pd.read_csv(source)
    except (OSError, ValueError) as error:
        msg = f"{source} cannot be read: {error}"
        raise ValueError(msg) from error
    msg = f"{source} is none of .parquet, .csv (.gz, .zip, .xz) and .nc"
    raise ValueError(msg)


def evaluate_file(
    path: str | os.PathLike[str],
    *,
    report: str | os.PathLike[str] | None = None,
    qa4sm: str | os.PathLike[str] | None = None,
    truth: str = "soil_moisture",
    predicted: str = "predicted",
    name: str = "",
    independence: Independence = "not stated",
    simulated: bool | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Evaluation:
    """Evaluate a file of samples.

    Computes.

    Parameters
    ----------
    path : path
        See `read_samples`.
    report : path, optional
        HTML file to write.
    qa4sm : path, optional
        NetCDF file to write.
    truth, predicted, name, independence, simulated
        See `xsoilsm.evaluation.evaluate`; the name is the file's by default.
    overwrite : bool, default False
    **options
        Of `xsoilsm.evaluation.evaluate`.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        See `evaluate`; also when a report of a random split is asked for.
    """
    found = evaluate(
        read_samples(path),
        truth=truth,
        predicted=predicted,
        name=name or Path(path).stem,
        independence=independence,
        simulated=simulated,
        **options,
    )
    if report is not None:
        require_independent([found])
    if qa4sm is not None:
        write_qa4sm(found, qa4sm, overwrite=overwrite)
    if report is not None:
        write_report(found, report, overwrite=overwrite)
    return found
