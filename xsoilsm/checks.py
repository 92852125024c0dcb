"""Step 3 of 7 (load): checks that a Dataset is a cube, and what to do where it is not.

Every departure from the schema is found at once and told as what was found, what was
expected and what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xsoilsm import grid, periods
from xsoilsm.cube import (
    SIGMA0_FORMS,
    VARIABLES,
    CubeError,
    Variable,
    cube_geobox,
    is_sample_form,
)
from xsoilsm.quality import missing_inputs
from xsoilsm.remarks import Violation, explain_result, violation_table

__all__ = [
    "Violation",
    "assumptions",
    "check_cube",
    "find_violations",
    "sigma0_forms",
    "violation_table",
]

_SPELLINGS: dict[str, tuple[str, ...]] = {
    "dB": ("dB", "db", "decibel"),
    "degree": ("degree", "degrees", "deg"),
    "1": ("1", "", "dimensionless"),
    "degC": ("degC", "deg_C", "celsius", "Celsius", "degree_Celsius", "degrees_Celsius", "°C"),
    "m": ("m", "metre", "meter", "metres", "meters"),
    "percent": ("percent", "%"),
    "g cm-3": ("g cm-3", "g/cm3", "g cm**-3", "g/cm^3", "g cm^-3"),
}


def check_cube(cube: xr.Dataset, *, averaging: str = "dB") -> None:
    """Refuse a Dataset that is not a cube, naming everything that is wrong at once.

    Lazy: attributes, dims and coordinates are always checked; values only of variables that
    are in memory already.

    Parameters
    ----------
    cube : Dataset
        Map form or sample form.
    averaging : {"dB", "power"}, default "dB"
        How the ensemble wants backscatter to have been averaged over a cell.

    Raises
    ------
    CubeError
        With one line per violation: what was found, what was expected, what to do.
    """
    found = find_violations(cube, averaging=averaging)
    if found:
        lines = "\n".join(f"  {number}. {v}" for number, v in enumerate(found, start=1))
        msg = f"the Dataset is not a valid cube, {len(found)} violation(s):\n{lines}"
        raise CubeError(msg)


def find_violations(cube: xr.Dataset, *, averaging: str = "dB") -> list[Violation]:
    """List every departure of a Dataset from the schema; empty for a valid cube.

    The result of a retrieval has no schema to break: its flags are explained instead, see
    `xsoilsm.remarks.explain_result`. Lazy: as for `check_cube`, which raises what this returns.

    Parameters
    ----------
    cube : Dataset
    averaging : {"dB", "power"}, default "dB"

    Returns
    -------
    list of Violation
    """
    if not isinstance(cube, xr.Dataset):
        return [
            Violation(
                "cube",
                f"is a {type(cube).__name__}",
                "an xarray.Dataset",
                "make one with xsoilsm.load_cube",
            )
        ]
    if "quality_flag" in cube and "sigma0_vv" not in cube:
        return explain_result(cube)
    sample = is_sample_form(cube)
    violations: list[Violation] = []
    for variable in VARIABLES.values():
        if variable.name in cube:
            violations += _variable_violations(cube, variable, sample, averaging)
        elif variable.required:
            violations.append(_missing(cube, variable, sample))
    violations += _sample_violations(cube) if sample else _map_violations(cube)
    return violations


def assumptions(cube: xr.Dataset) -> list[str]:
    """Say what is taken for granted, or left out, because a cube is silent on it.

    Lazy: reads nothing.

    Parameters
    ----------
    cube : Dataset

    Returns
    -------
    list of str
        Empty where `sigma0_from` and `averaging` are given and the optional variables are there
        from which the quality flags are evaluated.
    """
    idle = missing_inputs({str(name) for name in cube.data_vars})
    silent = [
        f"the quality flag '{flag}' is not evaluated, because the cube has no {inputs}"
        for flag, inputs in idle.items()
    ]
    taken = {"sigma0_from": "'given', sigma nought on the ellipsoid", "averaging": "dB"}
    return [
        f"`{name}` has no attribute '{attribute}'; it is taken as {value}"
        for name in ("sigma0_vv", "sigma0_vh")
        if name in cube
        for attribute, value in taken.items()
        if attribute not in cube[name].attrs
    ] + silent


def sigma0_forms(cube: xr.Dataset) -> set[str]:
    """Ways in which a cube says that its sigma nought was obtained. Lazy: reads no variable."""
    return _forms(cube["sigma0_vv"])


def _forms(data: xr.DataArray) -> set[str]:
    form = str(data.attrs.get("sigma0_from", "given"))
    forms = set(form.split()) or {form}
    if "sigma0_from" in data.coords:
        forms |= set(np.unique(data["sigma0_from"].values).astype(str).tolist())
    return forms


def _missing(cube: xr.Dataset, variable: Variable, sample: bool) -> Violation:
    dims = variable.sample_dims if sample else variable.dims
    remedy = "load it with xsoilsm.load_cube or add it"
    if variable.name.startswith("sigma0_"):
        pol = variable.name.removeprefix("sigma0_")
        for name in (f"gamma0_{pol}", f"gamma_{pol}", pol, pol.upper()):
            if name in cube:
                remedy = (
                    f"`{name}` looks like the source: convert it to sigma nought in dB "
                    f"and name it `{variable.name}`"
                )
                break
    return Violation(variable.name, "is missing", f"dims {dims} in {variable.units}", remedy)


def _variable_violations(
    cube: xr.Dataset, variable: Variable, sample: bool, averaging: str
) -> Iterator[Violation]:
    data = cube[variable.name]
    dims = variable.sample_dims if sample else variable.dims
    if set(data.dims) != set(dims):
        yield Violation(
            variable.name, f"has dims {data.dims}", f"{dims}", "rename, add or drop dimensions"
        )
    if not np.issubdtype(data.dtype, np.number) and data.dtype != bool:
        yield Violation(
            variable.name, f"has dtype {data.dtype}", "numbers", "convert it with .astype(float)"
        )
        return
    unit_trouble = _unit_violation(data, variable)
    if unit_trouble is not None:
        yield unit_trouble
    else:
        yield from _value_violations(data, variable)
    if variable.name.startswith("sigma0_"):
        yield from _sigma0_violations(data, variable, averaging)
    if variable.name == "precipitation" and "mean" in str(data.attrs.get("cell_methods", "")):
        yield Violation(
            variable.name,
            f"has cell_methods {data.attrs['cell_methods']!r}, a mean",
            "the total of 8 days in m",
            "multiply daily means by 8",
        )


_UNIT_REMEDIES = {
    ("sigma0", "1"): "it is linear power: convert with xsoilsm.cube.to_db",
    ("air_temperature", "K"): "subtract 273.15",
    ("precipitation", "mm"): "divide by 1000",
    ("precipitation", "kg m-2"): "divide by 1000",
    ("precipitation", "m d-1"): "it is a daily mean: multiply by 8",
    ("precipitation", "m day-1"): "it is a daily mean: multiply by 8",
    ("precipitation", "m/day"): "it is a daily mean: multiply by 8",
    ("precipitation", "mm d-1"): "it is a daily mean: multiply by 8 and divide by 1000",
    ("precipitation", "mm/day"): "it is a daily mean: multiply by 8 and divide by 1000",
    ("sand", "g kg-1"): "divide by 10",
    ("clay", "g kg-1"): "divide by 10",
    ("bulk_density", "kg m-3"): "divide by 1000",
    ("bulk_density", "cg cm-3"): "divide by 100",
}


def _unit_violation(data: xr.DataArray, variable: Variable) -> Violation | None:
    if "units" not in data.attrs:
        if variable.required:
            return Violation(
                variable.name,
                "has no attribute 'units'",
                f"units '{variable.units}'",
                f"make sure of it and set .attrs['units'] = '{variable.units}'",
            )
        return None
    units = str(data.attrs["units"])
    if units in _SPELLINGS[variable.units]:
        return None
    key = "sigma0" if variable.name.startswith("sigma0_") else variable.name
    spelled = {"": "1", "kelvin": "K", "Kelvin": "K"}.get(units, units)
    remedy = _UNIT_REMEDIES.get((key, spelled), f"convert it to {variable.units}")
    return Violation(variable.name, f"has units '{units}'", f"'{variable.units}'", remedy)


Rule = tuple[str, Callable[[npt.NDArray[Any]], bool], str, str]

_VALUE_RULES: tuple[Rule, ...] = (
    (
        "sigma0",
        lambda v: bool(v.min() >= 0 and np.median(v) < 2),
        "has values that look like linear power",
        "convert with xsoilsm.cube.to_db",
    ),
    (
        "ndvi",
        lambda v: bool(np.abs(v).max() > 2),
        "has values that look like raw integers",
        "multiply by 0.0001 and turn fill values into NaN",
    ),
    (
        "air_temperature",
        lambda v: bool(np.median(v) > 150),
        "has values that look like kelvin",
        "subtract 273.15",
    ),
    (
        "precipitation",
        lambda v: bool(v.max() > 3),
        "has values that look like millimetres",
        "divide by 1000",
    ),
    (
        "precipitation",
        lambda v: bool(v.min() < -1e-6),
        "has negative values",
        "set them to 0 (tiny ones come from packing)",
    ),
    ("sand", lambda v: bool(v.max() > 100), "has values above 100", "divide g/kg by 10"),
    ("clay", lambda v: bool(v.max() > 100), "has values above 100", "divide g/kg by 10"),
    (
        "bulk_density",
        lambda v: bool(np.median(v) > 10),
        "has values that look like kg m-3 or cg cm-3",
        "divide by 1000 or 100",
    ),
    (
        "incidence_angle",
        lambda v: bool(np.median(np.abs(v)) < 2),
        "has values that look like radians",
        "convert with numpy.rad2deg",
    ),
)


def _value_violations(data: xr.DataArray, variable: Variable) -> Iterator[Violation]:
    if variable.name == "ndvi" and np.issubdtype(data.dtype, np.integer):
        yield Violation(
            "ndvi",
            f"holds raw integers ({data.dtype})",
            "values from -0.2 to 1",
            "multiply by 0.0001 and turn fill values into NaN",
        )
        return
    if data.chunks is not None:
        return  # lazy input stays unread
    values = np.asarray(data.values, dtype=np.float64).ravel()
    values = values[:: max(values.size // 100_000, 1)]
    values = values[np.isfinite(values)]
    if not values.size:
        return
    key = "sigma0" if variable.name.startswith("sigma0_") else variable.name
    for name, broken, found, remedy in _VALUE_RULES:
        if name == key and broken(values):
            span = f"{values.min():.4g} to {values.max():.4g}"
            yield Violation(variable.name, f"{found} ({span})", f"units '{variable.units}'", remedy)


def _sigma0_violations(
    data: xr.DataArray, variable: Variable, averaging: str
) -> Iterator[Violation]:
    forms = _forms(data)
    named_gamma = "gamma" in str(data.attrs.get("long_name", "")).lower()
    if not forms <= set(SIGMA0_FORMS) or named_gamma:
        found = " ".join(sorted(forms))
        yield Violation(
            variable.name,
            f"has sigma0_from {found!r} and long_name {data.attrs.get('long_name')!r}",
            f"sigma nought obtained in one of the ways {SIGMA0_FORMS}",
            "gamma nought must be converted: on flat ground sigma0 = gamma0 * cos(incidence)",
        )
    way = str(data.attrs.get("averaging", averaging))
    if way.lower() != averaging.lower():
        yield Violation(
            variable.name,
            f"was averaged as {way}",
            f"cells averaged in {averaging}",
            "average the native pixels again, xsoilsm.regrid.area_mean(..., transform='db')",
        )


def _map_violations(cube: xr.Dataset) -> Iterator[Violation]:
    for name in ("time", "period", "y", "x"):
        if name not in cube.coords or name not in cube.dims:
            yield Violation(
                name, "is missing", "a coordinate with its dimension", "add it to the Dataset"
            )
    if "x" in cube.coords and "y" in cube.coords:
        yield from _grid_violations(cube)
    if "time" in cube.coords and "period" in cube.coords:
        yield from _period_violations(cube)


def _grid_violations(cube: xr.Dataset) -> Iterator[Violation]:
    if "spatial_ref" not in cube.coords:
        yield Violation(
            "spatial_ref",
            "is missing",
            f"the CRS {grid.CRS}",
            "assign it with xsoilsm.cube.spatial_coords(geobox) or ds.odc.assign_crs",
        )
    else:
        yield from _crs_violations(cube)
    try:
        cube_geobox(cube)
    except ValueError as error:
        yield Violation("x", "is off the grid", "cell centres of EASE-Grid 2.0", str(error))


def _crs_violations(cube: xr.Dataset) -> Iterator[Violation]:
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    attrs = cube["spatial_ref"].attrs
    text = attrs.get("crs_wkt") or attrs.get("spatial_ref")
    try:
        found = CRS.from_user_input(text) if text else None
    except CRSError:
        found = None
    if found is None or found != CRS.from_user_input(grid.CRS):
        name = found.name if found is not None else "no readable CRS"
        yield Violation(
            "spatial_ref",
            f"says {name}",
            grid.CRS,
            "regrid with xsoilsm.regrid.area_mean onto xsoilsm.ease2_geobox(...)",
        )


def _period_violations(cube: xr.Dataset) -> Iterator[Violation]:
    starts = np.atleast_1d(cube["period"].values)
    times = np.atleast_1d(cube["time"].values)
    for name, values in (("period", starts), ("time", times)):
        if not np.issubdtype(values.dtype, np.datetime64):
            yield Violation(name, f"has dtype {values.dtype}", "datetime64", "convert to UTC")
            return
    if times.size and (np.diff(times) < np.timedelta64(0)).any():
        yield Violation("time", "is not ascending", "ascending", "sort with .sortby('time')")
    whole = periods.period_starts(starts[0], starts[-1]) if starts.size else starts
    if not starts.size or not np.array_equal(whole, starts.astype("datetime64[D]")):
        yield Violation(
            "period",
            f"holds {starts.size} starts that are not consecutive periods",
            "every 8-day start (day of year 1, 9, ..., 361) without gaps, ascending",
            "load the series with xsoilsm.load_cube or reindex it",
        )
        return
    if times.size:
        ends = periods.window_end(starts, times)
        short = int(ends.min())
        stale = times.astype("datetime64[D]") >= whole[-1] + periods.period_length(whole[-1])
        if short < periods.PERIODS_PER_YEAR - 1:
            yield Violation(
                "period",
                f"gives the first acquisition only {max(short + 1, 0)} periods",
                f"{periods.PERIODS_PER_YEAR} up to the period of each acquisition",
                "extend the series by a year before the first acquisition",
            )
        if stale.any():
            yield Violation(
                "period",
                f"ends with {whole[-1]}, before the acquisition {times[stale][0]}",
                "series that reach the period of each acquisition",
                "extend the series to the last acquisition",
            )


def _sample_violations(cube: xr.Dataset) -> Iterator[Violation]:
    for name in ("lat", "lon", "time"):
        if name not in cube.coords or cube[name].dims != ("sample",):
            yield Violation(
                name, "is missing", "a coordinate along 'sample'", "add it to the Dataset"
            )
    steps = cube.sizes.get("step")
    if steps is not None and steps != periods.PERIODS_PER_YEAR:
        yield Violation(
            "step",
            f"has {steps} steps",
            f"the {periods.PERIODS_PER_YEAR} periods up to each acquisition",
            "take the 46 latest periods, oldest first",
        )
    if "lat" in cube.coords:
        lat = np.asarray(cube["lat"].values)
        if lat.size and np.nanmax(np.abs(lat)) > grid.LATITUDE_LIMIT:
            yield Violation(
                "lat",
                f"reaches {np.nanmax(np.abs(lat)):.2f} degrees",
                f"at most {grid.LATITUDE_LIMIT}",
                "drop samples outside of EASE-Grid 2.0",
            )
