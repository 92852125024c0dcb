"""Step 3 of 7 (load): the cube, one Dataset on an EASE-Grid 2.0 GeoBox.

The map form has dims (time, y, x) for radar, (period, y, x) for vegetation and weather and
(y, x) for what does not change. The sample form has one dim ``sample`` in place of all three,
and series as (sample, step). Both carry physical units; nothing is normalised here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from xsoilsm import grid

__all__ = [
    "OPTIONAL",
    "REQUIRED",
    "SIGMA0_FORMS",
    "VARIABLES",
    "CubeError",
    "InputFlag",
    "SourceFlag",
    "Variable",
    "aggregate",
    "cube_geobox",
    "is_sample_form",
    "spatial_coords",
    "to_db",
]


class CubeError(ValueError):
    """A Dataset is not a cube that the networks can be fed with."""


@dataclass(frozen=True)
class Variable:
    """What the schema says of one variable.

    Parameters
    ----------
    name : str
    dims : tuple of str
        Dimensions in map form.
    units : str
    long_name : str
    standard_name : str or None
        CF standard name, where one exists.
    required : bool
    """

    name: str
    dims: tuple[str, ...]
    units: str
    long_name: str
    standard_name: str | None = None
    required: bool = True

    @property
    def sample_dims(self) -> tuple[str, ...]:
        """Dimensions in sample form."""
        return ("sample", "step") if "period" in self.dims else ("sample",)

    @property
    def attributes(self) -> dict[str, str]:
        """CF attributes of the variable."""
        names = {"long_name": self.long_name, "units": self.units}
        return names | ({"standard_name": self.standard_name} if self.standard_name else {})


_TIME, _PERIOD, _STATIC = ("time", "y", "x"), ("period", "y", "x"), ("y", "x")
_SIGMA0 = "surface_backwards_scattering_coefficient_of_radar_wave"

VARIABLES: dict[str, Variable] = {
    v.name: v
    for v in (
        Variable("sigma0_vv", _TIME, "dB", "sigma nought, VV polarisation", _SIGMA0),
        Variable("sigma0_vh", _TIME, "dB", "sigma nought, VH polarisation", _SIGMA0),
        Variable(
            "incidence_angle",
            _TIME,
            "degree",
            "incidence angle on the ellipsoid",
            "angle_of_incidence",
        ),
        Variable("ndvi", _PERIOD, "1", "NDVI", "normalized_difference_vegetation_index"),
        Variable("air_temperature", _PERIOD, "degC", "mean 2 m air temperature", "air_temperature"),
        Variable(
            "precipitation",
            _PERIOD,
            "m",
            "total precipitation of 8 days",
            "lwe_thickness_of_precipitation_amount",
        ),
        Variable("sand", _STATIC, "percent", "sand content of the fine earth, 0-5 cm"),
        Variable("clay", _STATIC, "percent", "clay content of the fine earth, 0-5 cm"),
        Variable("bulk_density", _STATIC, "g cm-3", "bulk density of the fine earth, 0-5 cm"),
        Variable("elevation", _STATIC, "m", "elevation", "surface_altitude"),
        Variable("slope", _STATIC, "degree", "slope of the terrain", "ground_slope_angle"),
        Variable("aspect_sin", _STATIC, "1", "mean sine of the aspect"),
        Variable("aspect_cos", _STATIC, "1", "mean cosine of the aspect"),
        Variable("coverage", _TIME, "1", "share of the cell with valid radar pixels", None, False),
        Variable("source_flags", _TIME, "1", "state of the radar source", None, False),
        Variable("inputs_failed", _STATIC, "1", "inputs that could not be read", None, False),
        Variable("ndvi_filled", _PERIOD, "1", "NDVI was filled in time", None, False),
        Variable(
            "weather_filled",
            _STATIC,
            "1",
            "share of the cell with the weather of the nearest land",
            None,
            False,
        ),
        Variable(
            "elevation_filled",
            _STATIC,
            "1",
            "share of the cell with elevations of a fall-back model",
            None,
            False,
        ),
        Variable(
            "water_fraction", _STATIC, "1", "share of open water", "water_area_fraction", False
        ),
        Variable("built_fraction", _STATIC, "1", "share of built-up area", None, False),
        Variable("tree_fraction", _STATIC, "1", "share of tree cover", None, False),
        Variable("snow_ice_fraction", _STATIC, "1", "share of snow and ice", None, False),
        Variable("soil_temperature", _TIME, "degC", "soil temperature", "soil_temperature", False),
        Variable("snow_cover", _TIME, "1", "snow cover", "surface_snow_area_fraction", False),
    )
}
"""Every variable that a cube may hold, by name."""

REQUIRED = tuple(v.name for v in VARIABLES.values() if v.required)
OPTIONAL = tuple(v.name for v in VARIABLES.values() if not v.required)

SIGMA0_FORMS = ("grd", "rtc-flat", "rtc-slope", "rtc-area", "given")
"""Values of ``sigma0_from``: how sigma nought was obtained.

The coordinate of that name says it for each acquisition; the attribute of the variables holds
the one form, or all forms that occur, separated by spaces.
"""


class SourceFlag:
    """Bits of ``source_flags``: what happened to the radar source of a cell."""

    NO_SCENE = 1
    READ_FAILED = 2
    ZERO_FILLED = 4
    APPROXIMATE_SIGMA0 = 8
    BORDER = 16
    UNRELIABLE_SIGMA0 = 32
    LAYOVER_SHADOW = 64


class InputFlag:
    """Bits of ``inputs_failed``: groups of inputs of which a file could not be read."""

    NDVI = 1
    WEATHER = 2
    TERRAIN = 4
    SOIL = 8
    LANDCOVER = 16


def is_sample_form(cube: xr.Dataset) -> bool:
    """Tell whether a cube is in sample form. Lazy: reads nothing."""
    return "sample" in cube.dims


def to_db(power: xr.DataArray) -> xr.DataArray:
    """Convert backscatter from linear power to decibels; values not above zero become NaN.

    Lazy: reads nothing of a Dask-backed array.

    Parameters
    ----------
    power : DataArray
        Linear power, any dims.

    Returns
    -------
    DataArray
        10 log10(power) in dB. The attribute ``averaging`` becomes ``"power"``, because cells
        that were averaged before the conversion hold dB of a mean, not a mean of dB.
    """
    valid = power.where(power > 0)
    decibels = valid.copy(data=10.0 * np.log10(valid.data))
    return decibels.assign_attrs({**power.attrs, "units": "dB", "averaging": "power"})


def spatial_coords(geobox: GeoBox) -> dict[str, xr.Variable]:
    """Coordinates y, x and ``spatial_ref`` of a GeoBox on an EASE-Grid 2.0 grid.

    Lazy: reads nothing.

    Parameters
    ----------
    geobox : GeoBox

    Returns
    -------
    dict of str to Variable
        Cell centres in m, and the CRS as CF grid mapping with ``GeoTransform``.

    Raises
    ------
    ValueError
        When the GeoBox is off the grids.
    """
    from pyproj import CRS

    cells, rows, columns = grid.grid_of(geobox)
    x = cells.centre(0, np.arange(*columns))[0]
    y = cells.centre(np.arange(*rows), 0)[1]
    mapping = CRS.from_user_input(grid.CRS).to_cf()
    affine = geobox.affine
    mapping["spatial_ref"] = mapping["crs_wkt"]
    mapping["GeoTransform"] = " ".join(
        repr(float(v)) for v in (affine.c, affine.a, affine.b, affine.f, affine.d, affine.e)
    )
    axis = {"units": "m", "crs": grid.CRS}
    return {
        "y": xr.Variable("y", y, axis | {"standard_name": "projection_y_coordinate"}),
        "x": xr.Variable("x", x, axis | {"standard_name": "projection_x_coordinate"}),
        "spatial_ref": xr.Variable((), np.int32(6933), mapping),
    }


def cube_geobox(cube: xr.Dataset) -> GeoBox:
    """GeoBox of a cube in map form. Lazy: reads nothing.

    Raises
    ------
    CubeError
        When x or y is missing or the cells are off the grids.
    """
    if "x" not in cube.coords or "y" not in cube.coords:
        msg = "the cube has no coordinates x and y; expected cell centres in m, EPSG:6933"
        raise CubeError(msg)
    try:
        cells, row, column = grid.cells_of(cube["x"].values, cube["y"].values)
    except ValueError as error:
        raise CubeError(str(error)) from None
    # A single cell has no spacing: the stored transform decides which grid it is on.
    stored = _stored_cell(cube)
    if stored is not None and cube.sizes["x"] == 1 and cube.sizes["y"] == 1:
        for candidate in grid.GRIDS.values():
            if abs(candidate.cell - stored) < 1e-6 * stored:
                row, column = candidate.index(cube["x"].values, cube["y"].values)
                cells = candidate
    return cells.geobox((int(row[0]), int(row[-1]) + 1), (int(column[0]), int(column[-1]) + 1))


def _stored_cell(cube: xr.Dataset) -> float | None:
    transform = cube["spatial_ref"].attrs.get("GeoTransform") if "spatial_ref" in cube else None
    return float(str(transform).split()[1]) if transform else None


def aggregate(cube: xr.Dataset, res: str) -> xr.Dataset:
    """Average a cube in map form onto a coarser EASE-Grid 2.0 grid.

    Grids nest, so the mean is exact; radar cells weigh by their coverage. Cells at the rim
    that are covered in part keep their mean, and ``coverage`` says how much they hold. Lazy on
    Dask-backed cubes.

    Parameters
    ----------
    cube : Dataset
        Map form.
    res : {"9km", "1km", "500m", "100m"}
        The cube's own grid (returned unchanged) or a coarser one that it nests in.

    Returns
    -------
    Dataset
        The same variables and ``coverage`` (share of the cell with valid radar pixels).

    Raises
    ------
    CubeError
        For the sample form.
    ValueError
        When `res` is finer than the cube or does not nest.
    """
    target = grid.get_grid(res)
    if is_sample_form(cube):
        msg = "a cube in sample form cannot be aggregated to a grid; leave res=None"
        raise CubeError(msg)
    source, rows, columns = grid.grid_of(cube_geobox(cube))
    if target == source:
        return cube
    factor, rest = divmod(source.factor, target.factor)
    if target.factor > source.factor or rest:
        nested = [g.name for g in grid.GRIDS.values() if source.factor % g.factor == 0]
        msg = (
            f"a cube at {source.name} cannot be aggregated to {target.name}; "
            f"expected one of {', '.join(nested)}; load the cube at {target.name} instead"
        )
        raise ValueError(msg)
    blocks = _Blocks(factor, rows, columns)
    weight = _coverage(cube)
    radar = {"sigma0_vv", "sigma0_vh", "incidence_angle"}
    data: dict[Hashable, Any] = {}
    for name, values in cube.data_vars.items():
        if not {"y", "x"} <= set(values.dims):
            data[name] = values
        elif name == "source_flags":
            data[name] = blocks.merge_flags(values)
        elif name == "inputs_failed":
            data[name] = blocks.reduce(values, np.bitwise_or.reduce, fill=0)
        elif name == "ndvi_filled":
            data[name] = blocks.reduce(values, np.max, fill=0)
        elif name != "coverage":
            data[name] = blocks.mean(values, weight if name in radar else None)
    data["coverage"] = (blocks.reduce(weight, np.sum, fill=0) / np.float32(factor**2)).assign_attrs(
        VARIABLES["coverage"].attributes
    )
    geobox = target.geobox(blocks.out(rows), blocks.out(columns))
    coords = {n: c for n, c in cube.coords.items() if not {"y", "x"} & set(c.dims)}
    coords.pop("spatial_ref", None)
    result = xr.Dataset(data, attrs=cube.attrs).assign_coords(coords)
    return result.assign_coords(spatial_coords(geobox))


def _coverage(cube: xr.Dataset) -> xr.DataArray:
    valid = cube["sigma0_vv"].notnull() & cube["sigma0_vh"].notnull()
    if "coverage" in cube:
        return cube["coverage"].where(valid, 0).astype(np.float32)
    return valid.astype(np.float32)


@dataclass(frozen=True)
class _Blocks:
    """Blocks of `factor` x `factor` cells, aligned to the coarse grid."""

    factor: int
    rows: tuple[int, int]
    columns: tuple[int, int]

    def out(self, cells: tuple[int, int]) -> tuple[int, int]:
        """Range of coarse cells that a range of fine cells touches."""
        return cells[0] // self.factor, -(-cells[1] // self.factor)

    def reduce(self, data: xr.DataArray, function: Callable[..., Any], fill: float) -> xr.DataArray:
        """Reduce each block; cells that a block lacks at the rim hold `fill`."""
        from dask.array import chunk, coarsen
        from dask.array import pad as dask_pad

        axes = {data.get_axis_num("y"): self.factor, data.get_axis_num("x"): self.factor}
        width = [(0, 0)] * data.ndim
        for axis, cells in zip(axes, (self.rows, self.columns), strict=True):
            start, stop = self.out(cells)
            width[axis] = (cells[0] - start * self.factor, stop * self.factor - cells[1])
        lazy = data.chunks is not None
        pad: Callable[..., Any] = dask_pad if lazy else np.pad
        coarsened: Callable[..., Any] = coarsen if lazy else chunk.coarsen
        values = coarsened(function, pad(data.data, width, constant_values=fill), axes)
        coords = {n: c for n, c in data.coords.items() if not {"y", "x"} & set(c.dims)}
        return xr.DataArray(values, dims=data.dims, coords=coords, attrs=data.attrs)

    def mean(self, data: xr.DataArray, weight: xr.DataArray | None) -> xr.DataArray:
        """Mean of the valid cells of each block, weighted where `weight` is given."""
        valid = data.notnull()
        share = valid.astype(np.float32) if weight is None else weight.where(valid, 0)
        total = self.reduce((data.where(valid, 0) * share).transpose(*data.dims), np.sum, fill=0)
        amount = self.reduce(share.transpose(*data.dims), np.sum, fill=0)
        mean = (total / amount.where(amount > 0)).astype(data.dtype)
        return mean.assign_attrs(data.attrs)

    def merge_flags(self, data: xr.DataArray) -> xr.DataArray:
        """Unite bits of each block; "no scene" holds only where no cell has one."""
        missing = data.dtype.type(SourceFlag.NO_SCENE)
        some = self.reduce(data, np.bitwise_or.reduce, fill=0)
        every = self.reduce(data, np.bitwise_and.reduce, fill=int(missing))
        merged: xr.DataArray = (some & ~missing) | (every & missing)
        return merged.assign_attrs(data.attrs)
