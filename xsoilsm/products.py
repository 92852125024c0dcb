"""Step 7 of 7 (write): the files of a result, one per variable and acquisition.

A file's name says what is in it: variable, grid, time, platform, orbit, tile, ensemble and
version. Whatever the attributes hold, a name stays a name and never becomes a path.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xsoilsm.cog import write_cogs

__all__ = ["PRODUCTS", "Naming", "file_name", "safe_name", "version_of", "write_products"]

PRODUCTS = ("soil_moisture", "soil_moisture_std", "quality_flag")
"""Variables of a result, in the order in which files are listed."""


def safe_name(text: object, limit: int = 40) -> str:
    """Turn any text into a part of a file name that cannot lead elsewhere.

    Lazy: reads nothing.

    Parameters
    ----------
    text : object
    limit : int, default 40
        Greatest length; what is longer is cut and ends in a checksum of the whole.

    Returns
    -------
    str
        Only ASCII letters, digits, ``.``, ``_`` and ``-``, without ``..``, and neither beginning
        nor ending with a dot, a hyphen or a low line; empty where nothing is left.

    Examples
    --------
    >>> safe_name("../../etc/passwd")
    'etc-passwd'
    """
    whole = str(text)
    clean = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", whole)).strip("._-")
    if len(clean) <= limit:
        return clean
    checksum = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{clean[: limit - 9].rstrip('._-')}-{checksum}"


@dataclass(frozen=True)
class Naming:
    """What the name of a file tells; parts that are not known stay empty.

    Parameters
    ----------
    product : str
        Variable.
    resolution : str
        Grid, for instance ``"1km"``.
    time : str
        Second in ISO form in UTC; of a composite the day on which it starts.
    period : str
        Length of a composite as an ISO 8601 duration: ``"P1D"``, ``"P8D"``, ``"P1M"``.
    platform, orbit_state : str
    relative_orbit : str
    tile : str
        Name of a tile, for instance ``"r0132c0374"``; empty for a mosaic.
    model : str
        Name of the ensemble.
    version : str
        Of xsoilsm.
    """

    product: str
    resolution: str = ""
    time: str = ""
    period: str = ""
    platform: str = ""
    orbit_state: str = ""
    relative_orbit: str = ""
    tile: str = ""
    model: str = ""
    version: str = ""

    @property
    def stem(self) -> str:
        """Name without an ending, at most 250 characters. Lazy: reads nothing.

        Its parts stand in the order of the parameters, joined by low lines.
        """
        time = self.time.replace("-", "").replace(":", "")
        parts = (
            self.product,
            self.resolution,
            time[:8] + self.period if self.period else time,
            re.sub(r"^SENTINEL-?1", "S1", self.platform.upper()),
            _orbit(self.orbit_state, self.relative_orbit),
            self.tile,
            self.model,
            f"v{self.version}" if self.version else "",
        )
        stem = "_".join(part for part in map(safe_name, parts) if part) or "unnamed"
        return safe_name(stem, 250)


def _orbit(state: str, orbit: str) -> str:
    """Letter of the direction and three digits, for instance ``"D052"``."""
    try:
        number = f"{int(float(orbit)):03d}"
    except (ValueError, OverflowError):
        number = orbit
    return state[:1].upper() + number if number else ""


def version_of(attributes: Mapping[Any, Any]) -> str:
    """Version of xsoilsm that a result's attribute ``source`` names; empty where it does not."""
    found = re.search(r"xsoilsm (\S+?),", str(attributes.get("source", "")))
    return found.group(1) if found else ""


def file_name(result: xr.Dataset, variable: str, tile: str = "") -> str:
    """Name of the file of one variable of one acquisition.

    Lazy: reads nothing.

    Parameters
    ----------
    result : Dataset
        Of `xsoilsm.retrieve`, with a scalar ``time`` or none.
    variable : str
    tile : str
        Name of the tile, where the map is one of several.

    Returns
    -------
    str
        For instance
        ``soil_moisture_1km_20200405T062004_S1A_D052_densesm-e-coarse_v0.1.0.tif``; parts that
        the result does not know are left out. Only letters, digits, ``.``, ``_`` and ``-``.
    """
    naming = Naming(
        product=variable,
        resolution=str(result.attrs.get("resolution", "")),
        time=_second(result) if "time" in result.coords else "",
        platform=_coordinate(result, "platform"),
        orbit_state=_coordinate(result, "orbit_state"),
        relative_orbit=_coordinate(result, "relative_orbit"),
        tile=tile,
        model=str(result.attrs.get("ensemble", "")),
        version=version_of(result.attrs),
    )
    return f"{naming.stem}.tif"


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
