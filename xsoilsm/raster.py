"""Step 7 of 7 (write): what a raster file says: bands, place, missing values, tags.

Turns xarray objects into the plain description that a file writer needs. Lazy: no pixel is
read or computed here.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import odc.geo.xr  # noqa: F401  (registers .odc)
import xarray as xr
from odc.geo.geobox import GeoBox

from xsoilsm.grid import CRS, cells_of

__all__ = ["Band", "Raster", "raster_of"]

_NOT_TAGS = {"_FillValue", "add_offset", "grid_mapping", "nodata", "scale_factor", "units"}


@dataclass(frozen=True)
class Band:
    """One band of a file.

    Parameters
    ----------
    name : str
    pixels : DataArray (y, x)
        North up, eager or lazy.
    units : str
    scale, offset : float
        Physical value = number in the file * scale + offset.
    tags : dict of str
    """

    name: str
    pixels: xr.DataArray
    units: str
    scale: float
    offset: float
    tags: dict[str, str]


@dataclass(frozen=True)
class Raster:
    """Everything that one file holds.

    Parameters
    ----------
    bands : tuple of Band
    dtype : dtype
        Of all bands.
    geobox : GeoBox
        Place of all bands, north up.
    nodata : float or int or None
        Number that stands for a missing value.
    tags : dict of str
    """

    bands: tuple[Band, ...]
    dtype: np.dtype[Any]
    geobox: GeoBox
    nodata: float | None
    tags: dict[str, str]


def raster_of(data: xr.DataArray | xr.Dataset) -> Raster:
    """Describe xarray data as one raster file.

    Lazy: reads nothing.

    Parameters
    ----------
    data : DataArray (y, x), DataArray (band, y, x) or Dataset of variables (y, x)
        Variables without y and x, such as ``spatial_ref``, are passed over.

    Returns
    -------
    Raster

    Raises
    ------
    TypeError
        When `data` is no xarray object, or has a data type that GeoTIFF lacks.
    ValueError
        When there is no raster in it, more dims than a file has, more than one data type, or
        no known place.
    """
    arrays, attrs = _arrays(data)
    dtype = _common_dtype(arrays)
    first = next(iter(arrays.values()))
    geobox, south_up = _place(first)
    nodata: float | None = np.nan
    if dtype.kind != "f":
        nodata = first.attrs.get("_FillValue", first.encoding.get("_FillValue"))
    bands = tuple(
        Band(
            name=name,
            pixels=array[::-1] if south_up else array,
            units=str(array.attrs.get("units", "")),
            scale=float(array.attrs.get("scale_factor", 1)),
            offset=float(array.attrs.get("add_offset", 0)),
            tags=_tags(array.attrs),
        )
        for name, array in arrays.items()
    )
    return Raster(bands, dtype, geobox, nodata, _tags(attrs))


def _arrays(
    data: xr.DataArray | xr.Dataset,
) -> tuple[dict[str, xr.DataArray], dict[Hashable, Any]]:
    """Find the bands (y, x) by their names, and what describes all of them."""
    if isinstance(data, xr.Dataset):
        found = [array for array in data.data_vars.values() if {"y", "x"} <= set(array.dims)]
        attrs = dict(data.attrs)
    elif isinstance(data, xr.DataArray):
        found, attrs = [data], dict(data.attrs)
    else:
        msg = f"cannot write {type(data).__name__}; expected an xarray DataArray or Dataset"
        raise TypeError(msg)
    if not found or not {"y", "x"} <= set(found[0].dims):
        msg = f"no variable with the dims y and x; found the dims {tuple(map(str, data.dims))}"
        raise ValueError(msg)
    for name, coordinate in data.coords.items():
        if not coordinate.dims and "crs_wkt" not in coordinate.attrs and name != "spatial_ref":
            attrs.setdefault(name, coordinate.values[()])
    arrays: dict[str, xr.DataArray] = {}
    for array in found:
        name = "" if array.name is None else str(array.name)
        extra = [dim for dim in array.dims if dim not in ("y", "x")]
        if not all(array.shape):
            msg = f"nothing to write: {name or 'the array'} has the sizes {dict(array.sizes)}"
            raise ValueError(msg)
        if not extra:
            arrays[name] = array.transpose("y", "x")
        elif len(found) > 1 or len(extra) > 1:
            msg = (
                f"{name or 'the array'} has the dims {array.dims}, expected (y, x); select one "
                f"{extra[0]}, for instance with .isel({extra[0]}=0), or write one variable with "
                "the dims (band, y, x) at a time"
            )
            raise ValueError(msg)
        else:
            for index, layer in enumerate(array.transpose(extra[0], "y", "x")):
                arrays[_label(name, layer, extra[0], index)] = layer
            if len(arrays) < array.sizes[extra[0]]:
                msg = f"the coordinate {extra[0]} of {name or 'the array'} holds a value twice"
                raise ValueError(msg)
    return arrays, attrs


def _label(name: str, layer: xr.DataArray, dim: Hashable, index: int) -> str:
    """Name of a layer of an array (band, y, x)."""
    if dim not in layer.coords:
        return f"{name} {index + 1}".strip()
    value = layer.coords[dim].values[()]
    return str(value) if isinstance(value, str) else f"{name} {_text(value)}".strip()


def _common_dtype(arrays: Mapping[str, xr.DataArray]) -> np.dtype[Any]:
    """Find the one data type of all bands, in the machine's byte order."""
    dtypes = {
        name: np.dtype(np.uint8) if array.dtype.kind == "b" else array.dtype.newbyteorder("=")
        for name, array in arrays.items()
    }
    if len(set(dtypes.values())) > 1:
        listing = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        msg = (
            f"a GeoTIFF has one data type, found {listing}; write one file per type, for "
            'instance write_cog(ds[["soil_moisture"]], ...) and write_cog(ds[["quality_flag"]], '
            "...)"
        )
        raise ValueError(msg)
    (dtype,) = set(dtypes.values())
    if dtype.name not in ("float32", "float64") and dtype.kind not in "iu":
        msg = f"a GeoTIFF cannot hold {dtype}; expected float32, float64 or integers: use .astype"
        raise TypeError(msg)
    return dtype


def _place(pixels: xr.DataArray) -> tuple[GeoBox, bool]:
    """Place of the pixels, north up, and whether their rows count from the south.

    Cells of an EASE-Grid 2.0 grid get its exact GeoBox, whatever the rounding of x and y.
    """
    geobox = pixels.odc.geobox
    crs = None if geobox is None else geobox.crs
    if {"y", "x"} <= set(pixels.coords) and (crs is None or crs.epsg == 6933):
        x, y = pixels["x"].values, pixels["y"].values
        south_up = bool(y[-1] > y[0])
        try:
            grid, rows, columns = cells_of(x, y[::-1] if south_up else y)
        except ValueError:
            pass  # not on these grids
        else:
            first, last = (int(rows[0]), int(columns[0])), (int(rows[-1]), int(columns[-1]))
            exact = grid.geobox((first[0], last[0] + 1), (first[1], last[1] + 1))
            return exact, south_up
    if not isinstance(geobox, GeoBox) or crs is None:
        found = "no CRS" if isinstance(geobox, GeoBox) else "no regular x and y coordinates"
        msg = (
            f"the place of the pixels is unknown: {found}, and no cell centres of an EASE-Grid "
            f"2.0 grid; say the CRS with data.odc.assign_crs({CRS!r})"
        )
        raise ValueError(msg)
    south_up = geobox.affine.e > 0
    return (geobox.flipy() if south_up else geobox), south_up


def _tags(attrs: Mapping[Hashable, Any]) -> dict[str, str]:
    return {
        str(name): _text(value)
        for name, value in attrs.items()
        if value is not None and name not in _NOT_TAGS
    }


def _text(value: Any) -> str:
    """Attribute as text, the same for equal values: ``flag_masks`` becomes ``1 2 4``."""
    if isinstance(value, np.datetime64):
        return str(np.datetime_as_string(value, unit="s"))
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple, np.ndarray)):
        array = np.asarray(value)
        if array.dtype.kind in "biufM":
            return " ".join(_text(item) for item in array.ravel())
        value = array.tolist()
    if isinstance(value, (list, dict)):
        return json.dumps(value, sort_keys=True, default=str)
    return str(value)
