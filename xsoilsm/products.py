"""Step 7 of 7 (write): the files of a result, one per variable and acquisition.

A file's name says what is in it: variable, grid, time, platform, orbit, ensemble and version.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xsoilsm.cog import write_cogs

__all__ = ["file_name", "write_products"]

PRODUCTS = ("soil_moisture", "soil_moisture_std", "quality_flag")


def file_name(result: xr.Dataset, variable: str) -> str:
    """Name of the file of one variable of one acquisition.

    Lazy: reads nothing.

    Parameters
    ----------
    result : Dataset
        Of `xsoilsm.retrieve`, with a scalar ``time`` or none.
    variable : str

    Returns
    -------
    str
        For instance
        ``soil_moisture_1km_20200405T062004_S1A_D052_densesm-e-coarse_v0.1.0.tif``; parts that
        the result does not know are left out. Only letters, digits, ``.``, ``_`` and ``-``.
    """
    parts = [variable, str(result.attrs.get("resolution", ""))]
    if "time" in result.coords:
        parts.append(_second(result).replace("-", "").replace(":", ""))
    platform = _coordinate(result, "platform").upper()
    parts.append(re.sub(r"^SENTINEL-?1", "S1", platform))
    orbit, state = _coordinate(result, "relative_orbit"), _coordinate(result, "orbit_state")
    if orbit:
        parts.append(f"{state[:1].upper()}{int(float(orbit)):03d}")
    parts.append(str(result.attrs.get("ensemble", "")))
    found = re.search(r"xsoilsm (\S+?),", str(result.attrs.get("source", "")))
    parts.append(f"v{found.group(1)}" if found else "")
    clean = [re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip(".-") for part in parts]
    return "_".join(part for part in clean if part) + ".tif"


def _second(result: xr.Dataset) -> str:
    """Time in ISO form, cut to whole seconds."""
    return str(np.asarray(result["time"].values).astype("datetime64[s]"))


def _coordinate(result: xr.Dataset, name: str) -> str:
    if name not in result.coords or result[name].ndim:
        return ""
    return str(result[name].values)


def write_products(
    result: xr.Dataset, folder: str | os.PathLike[str], *, overwrite: bool = False
) -> list[Path]:
    """Write a result as Cloud-Optimized GeoTIFFs, one per variable and acquisition.

    Computes everything in one pass, so that chunks are loaded and retrieved once; memory is
    bounded by the chunks.

    Parameters
    ----------
    result : Dataset
        Of `xsoilsm.retrieve` in map form; variables with dims (y, x) or (time, y, x).
    folder : path
        Is made where it is missing.
    overwrite : bool, default False
        Replace files of the same names.

    Returns
    -------
    list of Path
        The files, complete and verified.

    Raises
    ------
    FileExistsError
        When a file exists and `overwrite` is false; nothing is computed.
    OSError
        When the folder cannot be written or the disk is full; nothing is left behind.
    ValueError
        When the result holds no map, or two maps would get one name.
    """
    maps = {n: v for n, v in result.data_vars.items() if {"y", "x"} <= set(v.dims)}
    if not maps:
        msg = (
            f"no variable with dims (y, x) among {list(result.data_vars)}; expected a result in "
            "map form, write samples with .to_dataframe().to_parquet(...)"
        )
        raise ValueError(msg)
    files: dict[Path, xr.DataArray] = {}
    for name, data in maps.items():
        parts = [result]
        if "time" in data.dims:
            parts = [result.isel(time=index) for index in range(result.sizes["time"])]
        for part in parts:
            path = Path(folder) / file_name(part, str(name))
            if path in files:
                msg = f"two maps would be called {path.name}; select one acquisition per second"
                raise ValueError(msg)
            files[path] = _layer(part, name)
    return write_cogs(files, overwrite=overwrite)


def _layer(part: xr.Dataset, name: Hashable) -> xr.DataArray:
    """One map with the attributes that its file is to carry."""
    layer = part[name]
    about: dict[str, Any] = {k: v for k, v in part.attrs.items() if isinstance(v, str)}
    if "time" in part.coords:
        about["time_utc"] = _second(part)
    return layer.assign_attrs(about | layer.attrs)
