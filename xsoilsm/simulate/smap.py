"""Outside the seven steps (simulate): granules in the form of SMAP's enhanced 9 km product.

Writes files with the groups, datasets, types, fill values and attributes of SPL3SMP_E, one a
day. Values are given; nothing is drawn here. As in the product, the coordinates that a file
stores hold fill where nothing was retrieved.

Source of the form: the product specification of L3_SM_P_E (JPL D-56292).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xsoilsm import grid

__all__ = ["HalfDay", "granule_name", "write_granule"]

_FILL, _FLAG_FILL = -9999.0, 65534
_CHUNK = (203, 241)


@dataclass(frozen=True)
class HalfDay:
    """Retrievals of the passes of one half of a day.

    Parameters
    ----------
    rows, columns : (n,) array of int
        Cells of the 9 km grid.
    soil_moisture : (n,) array
        m3 m-3.
    quality : int or (n,) array of int, default 0
        ``retrieval_qual_flag``; bit 0 is set where retrievals are not recommended.
    """

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    soil_moisture: npt.NDArray[Any]
    quality: int | npt.NDArray[np.int64] = 0


def granule_name(day: str | np.datetime64, release: str = "R18290", counter: int = 1) -> str:
    """Name of the file of a day."""
    date = str(day)[:10].replace("-", "")
    return f"SMAP_L3_SM_P_E_{date}_{release}_{counter:03d}.h5"


def write_granule(
    folder: str | os.PathLike[str],
    day: str | np.datetime64,
    descending: HalfDay | None,
    ascending: HalfDay | None,
    *,
    release: str = "R18290",
    counter: int = 1,
    units: str = "cm**3/cm**3",
    attributes: Mapping[str, Any] | None = None,
) -> Path:
    """Write one granule.

    Parameters
    ----------
    folder : path
    day : str or datetime64
        UTC day.
    descending, ascending : HalfDay or None
        Passes at about 6 h (group ``..._AM``) and 18 h (``..._PM``); None leaves the group out.
    release : str
    counter : int
        They tell versions of one day apart.
    units : str
        Attribute of soil moisture.
    attributes : mapping, optional
        Further attributes of the file.

    Returns
    -------
    Path
        The file.
    """
    import h5py

    path = Path(folder) / granule_name(day, release, counter)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", track_order=False) as file:
        file.attrs.update(dict(attributes or {}))
        for half, suffix, passes in (("AM", "", descending), ("PM", "_pm", ascending)):
            if passes is not None:
                group = file.create_group(f"Soil_Moisture_Retrieval_Data_{half}")
                _write_half(group, suffix, passes, units)
    return path


def _write_half(group: Any, suffix: str, half: HalfDay, units: str) -> None:
    cells = grid.get_grid("9km")
    rows, columns = (np.asarray(a, dtype=np.int64) for a in (half.rows, half.columns))
    lon, lat = grid.xy_to_lonlat(*cells.centre(rows, columns))
    quality = np.broadcast_to(np.asarray(half.quality), rows.shape)
    fields: dict[str, tuple[Any, str, Any, str]] = {
        "soil_moisture": (half.soil_moisture, "f4", _FILL, units),
        "retrieval_qual_flag": (quality, "u2", _FLAG_FILL, "1"),
        "latitude": (lat, "f4", _FILL, "degrees_north"),
        "longitude": (lon, "f4", _FILL, "degrees_east"),
    }
    for name, (values, kind, fill, unit) in fields.items():
        data = group.create_dataset(
            name + suffix,
            shape=cells.shape,
            dtype=kind,
            chunks=_CHUNK,
            compression="gzip",
            compression_opts=1,
            fillvalue=fill,
            track_times=False,
        )
        data.attrs["_FillValue"] = np.array(fill, dtype=kind)
        data.attrs["units"] = np.bytes_(unit)
        if name == "soil_moisture":
            data.attrs["valid_min"] = np.float32(0.02)
            data.attrs["valid_max"] = np.float32(0.9)
        _write_cells(data, rows, columns, np.asarray(values, dtype=kind), fill)


def _write_cells(data: Any, rows: Any, columns: Any, values: Any, fill: float) -> None:
    """Write chunk by chunk: those without a cell are not stored and read as fill."""
    if rows.size == 0:
        return
    height, width = _CHUNK
    chunk = rows // height * (-(-data.shape[1] // width)) + columns // width
    for number in np.unique(chunk):
        inside = chunk == number
        top = int(rows[inside][0] // height * height)
        left = int(columns[inside][0] // width * width)
        bottom = min(top + height, data.shape[0])
        right = min(left + width, data.shape[1])
        block = np.full((bottom - top, right - left), fill, dtype=values.dtype)
        block[rows[inside] - top, columns[inside] - left] = values[inside]
        data[top:bottom, left:right] = block
