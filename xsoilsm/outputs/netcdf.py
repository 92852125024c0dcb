"""Step 7 of 7 (write): a NetCDF file after the CF conventions, for tools that read no GeoTIFF.

One file holds all acquisitions it is given. It is written window by window under a temporary
name, read back, compared, and only then named.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from xsoilsm.outputs.dataset import TIME_ENCODING, Layout
from xsoilsm.outputs.mosaic import Numbers
from xsoilsm.outputs.pieces import Piece
from xsoilsm.outputs.wording import naming

__all__ = ["netcdf_name", "write_netcdf"]

CHUNK = 256
"""Side in cells of the chunks of a file."""

_CACHE = 1 << 20  # bytes; chunks are written and read whole, once and in order
_WINDOW = (CHUNK, 16 * CHUNK)  # rows and columns that are held in memory


def write_netcdf(
    pieces: Iterable[Piece],
    path: str | os.PathLike[str],
    *,
    geobox: GeoBox | None = None,
    numbers: Numbers = "float32",
    attributes: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write tiles as one NetCDF-4 file after CF-1.11.

    Computes: streams the tiles; memory holds one window of 256 x 4096 cells.

    Parameters
    ----------
    pieces : iterable of Piece
        Tiles of one or more acquisitions, or of composites.
    path : path
        Name of the file. Missing folders are made.
    geobox : GeoBox, optional
        Cells of the file. By default the smallest block that holds all pieces.
    numbers : {"float32", "int16"}, default "float32"
        ``"int16"`` packs soil moisture and its spread in steps of 0.0001 m3 m-3
        (``scale_factor``).
    attributes : mapping of str to str, optional
        Attributes of the result, further ones such as ``institution`` included; by default what
        all tiles say in common.
    overwrite : bool, default False
        Replace an existing file, at the very end and in one step.

    Returns
    -------
    Path
        The file, complete and compared with what was written.

    Raises
    ------
    FileExistsError
        When `path` exists and `overwrite` is false.
    OSError
        When a tile is missing or damaged, the folder cannot be written, or what was read back
        differs. Nothing is left behind.
    ValueError
        When tiles do not fit together, or two acquisitions have one time.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        msg = f"{target} exists; choose another name or pass overwrite=True"
        raise FileExistsError(errno.EEXIST, msg)
    layout = Layout.of(pieces, geobox, numbers, attributes)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        made = folder / "file.nc"
        sums = _write(layout, made)
        _compare(layout, made, sums, target)
        with open(made, "rb") as file:
            os.fsync(file.fileno())
        os.replace(made, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def netcdf_name(pieces: Iterable[Piece], attributes: Mapping[str, str] | None = None) -> str:
    """Name for the file of one acquisition or composite, like those of its mosaics.

    Reads the heads of the tiles.

    Parameters
    ----------
    pieces : iterable of Piece
    attributes : mapping of str to str, optional
        Of the result; by default what all tiles say in common.

    Raises
    ------
    ValueError
        When there is more than one acquisition.
    """
    layout = Layout.of(pieces, attributes=attributes)
    if len(layout.acquisitions) != 1:
        msg = f"{len(layout.acquisitions)} acquisitions have no name in common; choose one"
        raise ValueError(msg)
    parts = naming(
        layout.acquisitions[0], "soil_moisture", layout.place.resolution, layout.attributes
    )
    return f"{parts.stem}.nc"


def _windows(layout: Layout) -> Iterator[tuple[int, slice, slice]]:
    """Places of what is held in memory at a time: one acquisition, rows, columns."""
    spans = [
        [slice(start, min(start + size, length)) for start in range(0, length, size)]
        for length, size in zip(layout.shape[1:], _WINDOW, strict=True)
    ]
    yield from product(range(layout.shape[0]), *spans)


def _write(layout: Layout, path: Path) -> dict[str, list[int]]:
    """Write everything; gives the checksums of all windows by variable."""
    import netCDF4

    sums: dict[str, list[int]] = {name: [] for name in layout.mosaics}
    with netCDF4.Dataset(path, "w", format="NETCDF4") as file:
        file.set_fill_off()
        for dim, size in zip(("time", "y", "x"), layout.shape, strict=True):
            file.createDimension(dim, size)
        file.setncatts(dict(sorted(layout.attributes.items())))
        auxiliary = _write_coords(layout, file)
        for name in layout.mosaics:
            variable = _create(layout, file, name)
            variable.setncattr("grid_mapping", "spatial_ref")
            variable.setncattr("coordinates", " ".join(auxiliary))
            for window in _windows(layout):
                pixels = _pixels(layout, name, window)
                variable[window] = pixels
                sums[name].append(zlib.crc32(pixels.data))
    return sums


def _write_coords(layout: Layout, file: Any) -> list[str]:
    """Write coordinates; gives the names of the auxiliary ones."""
    coords = layout.coords()
    bounds = layout.time_bounds()
    if bounds is not None:
        file.createDimension("bounds", 2)
        coords["time"].attrs["bounds"] = "time_bounds"
        coords["time_bounds"] = bounds
    for name, variable in coords.items():
        values, attributes = _encoded(name, variable)
        kind = str if values.dtype == object else values.dtype
        made = file.createVariable(name, kind, variable.dims)
        made.setncatts(attributes)
        if name == "spatial_ref":
            made[...] = values
        else:
            made[:] = values
    own = ("time", "y", "x", "spatial_ref", "time_bounds")
    return [name for name in coords if name not in own]


def _encoded(name: str, variable: xr.Variable) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """Values and attributes as a file holds them."""
    attributes = {str(k): v for k, v in variable.attrs.items()}
    if variable.dtype.kind != "M":
        return np.asarray(variable.values), attributes
    seconds = (variable.values - np.datetime64(0, "s")) / np.timedelta64(1, "s")
    if name == "time":
        attributes |= TIME_ENCODING | {"units_metadata": "leap_seconds: none"}
    return seconds, attributes


def _create(layout: Layout, file: Any, name: str) -> Any:
    packing = layout.packing(name)
    chunks = (1, min(CHUNK, layout.shape[1]), min(CHUNK, layout.shape[2]))
    variable = file.createVariable(
        name,
        packing.dtype,
        ("time", "y", "x"),
        zlib=True,
        complevel=4,
        shuffle=True,
        fletcher32=True,
        chunksizes=chunks,
        fill_value=packing.dtype.type(packing.fill) if packing.masked else None,
    )
    variable.set_auto_maskandscale(False)
    variable.set_var_chunk_cache(size=_CACHE)
    if "scale_factor" in packing.attributes:
        # Its type is that of the unpacked values.
        variable.setncattr("scale_factor", np.float32(packing.scale))
    variable.setncatts(layout.variable_attributes(name))
    return variable


def _pixels(layout: Layout, name: str, window: tuple[int, slice, slice]) -> npt.NDArray[Any]:
    index, rows, columns = window
    mosaic = layout.mosaics[name][index]
    if mosaic is None:
        packing = layout.packing(name)
        shape = rows.stop - rows.start, columns.stop - columns.start
        return np.full(shape, packing.fill, packing.dtype)
    return mosaic.read((rows.start, rows.stop), (columns.start, columns.stop))


def _compare(layout: Layout, path: Path, sums: Mapping[str, list[int]], target: Path) -> None:
    """Read all pixels back and make sure that they are those that were written."""
    import netCDF4

    with netCDF4.Dataset(path) as file:
        file.set_auto_maskandscale(False)
        for name, expected in sums.items():
            variable = file[name]
            variable.set_var_chunk_cache(size=_CACHE)
            for window, checksum in zip(_windows(layout), expected, strict=True):
                found = np.ascontiguousarray(variable[window])
                if zlib.crc32(found.data) != checksum:
                    msg = (
                        f"cannot write {target}: {name} reads back differently at {window}; "
                        "check the disk"
                    )
                    raise OSError(errno.EIO, msg)
