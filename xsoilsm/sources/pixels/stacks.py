"""Step 3 of 7 (load): pixels as users load them, in one form.

odc-stac gives a Dataset of one variable a band, centres of pixels and ``spatial_ref``; stackstac
a DataArray with a dim ``band``, upper left corners of pixels and ``epsg``, and the orbit of each
item along time. Here they become (polarisation, time, y, x) with centres and a reference system.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from xsoilsm.cube import CubeError

__all__ = [
    "SAME_PASS",
    "Passes",
    "Pixel",
    "Scale",
    "Stack",
    "group_passes",
    "place",
    "read_stack",
    "side",
]

SAME_PASS = np.timedelta64(15, "m")
"""Longest time between slices of one pass."""

Scale = Literal["linear", "dB"]
Pixel = Literal["auto", "centre", "corner"]
Stack = xr.Dataset | xr.DataArray


def read_stack(stack: Stack, bands: tuple[str, str], pixel: Pixel, scale: Scale) -> xr.DataArray:
    """Bring pixels into one form. Lazy on Dask-backed stacks.

    Parameters
    ----------
    stack : Dataset or DataArray
    bands : (str, str)
        Names of VV and VH.
    pixel : {"auto", "centre", "corner"}
        What the coordinates are.
    scale : {"linear", "dB"}
        Power counts where it is above zero.

    Returns
    -------
    DataArray
        Dims (polarisation, time, y, x); NaN where one of the two is not valid.

    Raises
    ------
    CubeError
        When a band, the times, the places or the reference system are missing.
    """
    import odc.geo.xr  # noqa: F401  (registers .odc)

    if isinstance(stack, xr.DataArray):
        if "band" not in stack.dims:
            msg = f"the DataArray has dims {stack.dims}; expected a dim 'band' with {bands}"
            raise CubeError(msg)
        names = [str(name) for name in stack["band"].values]
        pair = [stack.isel(band=names.index(b), drop=True) if b in names else None for b in bands]
    else:
        names = [str(name) for name in stack.data_vars]
        pair = [stack[b] if b in names else None for b in bands]
    if pair[0] is None or pair[1] is None:
        msg = f"the stack has {', '.join(names) or 'nothing'}; expected {' and '.join(bands)}"
        raise CubeError(msg)
    if "time" not in pair[0].coords:
        msg = "the stack has no coordinate 'time'; expected the times of the passes, UTC"
        raise CubeError(msg)
    nodata = [p.attrs.get("nodata", p.attrs.get("_FillValue")) for p in pair if p is not None]
    attributes = dict(pair[0].attrs)
    both = xr.concat(
        [p.expand_dims("time") if "time" not in p.dims else p for p in pair if p is not None],
        "polarisation",
        coords="minimal",
        compat="override",
        join="override",
        combine_attrs="drop",
    )
    both.attrs = attributes
    both = place(both, pixel)
    valid = both.notnull() if scale == "dB" else both > 0
    for value in nodata:
        if value is not None and not np.isnan(value):
            valid &= both != value
    masked: xr.DataArray = both.where(valid.all("polarisation"))
    y, x = both.odc.spatial_dims
    masked.attrs = {}
    return masked.transpose("polarisation", "time", y, x)


def place(data: xr.DataArray, pixel: Pixel) -> xr.DataArray:
    """Give pixels coordinates of their centres and a reference system.

    Lazy: reads nothing. Parameters and errors as for `read_stack`.
    """
    import odc.geo.xr  # noqa: F401  (registers .odc)

    data = _without_stale_mapping(data)
    crs = data.odc.crs
    if crs is None and "epsg" in data.coords and data["epsg"].ndim == 0:
        crs = f"EPSG:{int(data['epsg'])}"
    if crs is None:
        msg = (
            "the stack has no coordinate reference system, neither spatial_ref nor epsg; give it "
            "one with stack.odc.assign_crs('EPSG:...')"
        )
        raise CubeError(msg)
    if data.odc.spatial_dims is None:
        msg = f"the stack has dims {data.dims}, in which no y and x were recognised"
        raise CubeError(msg)
    y, x = data.odc.spatial_dims
    transform = data.attrs.get("transform")
    if y not in data.coords or x not in data.coords:
        if transform is None:
            msg = f"the stack has no coordinates {y} and {x} and no attribute 'transform'"
            raise CubeError(msg)
        rows, columns = np.arange(data.sizes[y]) + 0.5, np.arange(data.sizes[x]) + 0.5
        data = data.assign_coords(
            {x: transform[2] + transform[0] * columns, y: transform[5] + transform[4] * rows}
        )
    elif pixel != "auto" or "epsg" in data.coords:
        shift = _shift(data, (y, x), transform, pixel)
        steps = {name: float(data[name][1] - data[name][0]) for name in (y, x)}
        data = data.assign_coords({k: data[k].values + shift * step for k, step in steps.items()})
    kept = {"time", y, x, *(k for k in data.coords if k in _KEPT)}
    bare = _without_stale_mapping(data.drop_vars([k for k in data.coords if k not in kept]))
    placed: xr.DataArray = bare.odc.assign_crs(crs)
    return placed


def _without_stale_mapping(data: xr.DataArray) -> xr.DataArray:
    """Drop the name of a reference system that is not there."""
    bare = data.copy(deep=False)
    for place_of in (bare.attrs, bare.encoding):
        if place_of.get("grid_mapping", "spatial_ref") not in bare.coords:
            place_of.pop("grid_mapping", None)
    return bare


_KEPT = ("id", "platform", "sat:relative_orbit", "sat:orbit_state", "sat:absolute_orbit")


def _shift(data: xr.DataArray, dims: tuple[str, str], transform: Any, pixel: Pixel) -> float:
    """Part of a pixel to add to coordinates: 0 where they are centres already."""
    if min(data.sizes[name] for name in dims) < 2:
        msg = f"the stack has {dict(data.sizes)}: pixels along {dims} need to be two at least"
        raise CubeError(msg)
    if pixel != "auto":
        return 0.0 if pixel == "centre" else 0.5
    if transform is None:
        msg = (
            "the stack looks like one of stackstac and has lost its attribute 'transform', so "
            "whether coordinates are centres or corners of pixels cannot be told; pass "
            "pixel='corner' (the default of stackstac) or pixel='centre'"
        )
        raise CubeError(msg)
    y, x = dims
    parts = [
        ((float(data[x][0]) - transform[2]) / transform[0]) % 1,
        ((float(data[y][0]) - transform[5]) / transform[4]) % 1,
    ]
    for within, shift in ((0.0, 0.5), (0.5, 0.0)):
        if all(min(abs(p - within), 1 - abs(p - within)) < 0.01 for p in parts):
            return shift
    msg = (
        f"coordinates of the stack lie at {parts[0]:.3f} and {parts[1]:.3f} of a pixel of its "
        "attribute 'transform'; expected corners or centres: pass pixel='corner' or 'centre'"
    )
    raise CubeError(msg)


def side(pixels: xr.DataArray) -> float:
    """Side of a pixel in m."""
    box = pixels.odc.geobox
    side = float(abs(box.affine.e))
    return side * 111_195.0 if box.crs is not None and box.crs.geographic else side


@dataclass(frozen=True)
class Passes:
    """Times of acquisitions, and which steps of which stack belong to each.

    Parameters
    ----------
    time : (pass,) ndarray of datetime64[ns]
    members : list of list of (int, int)
        Number of the stack and of its step.
    along : dict of str to ndarray
        Orbit coordinates that the stacks tell.
    items : list of str
    """

    time: npt.NDArray[np.datetime64]
    members: list[list[tuple[int, int]]]
    along: dict[str, npt.NDArray[Any]]
    items: list[str]


def group_passes(pixels: list[xr.DataArray]) -> Passes:
    """Group steps that follow one another within minutes, on one orbit where that is told.

    Lazy: reads nothing.

    Parameters
    ----------
    pixels : list of DataArray
        From `read_stack`.

    Returns
    -------
    Passes
        By time.
    """
    steps = [
        (np.datetime64(time, "ns"), number, k, _orbit(stack, k))
        for number, stack in enumerate(pixels)
        for k, time in enumerate(stack["time"].values)
    ]
    steps.sort(key=lambda step: step[0])
    groups: list[list[tuple[np.datetime64, int, int, str]]] = []
    for step in steps:
        last = groups[-1][-1] if groups else None
        if last is not None and step[0] - last[0] <= SAME_PASS and step[3] == last[3]:
            groups[-1].append(step)
        else:
            groups.append([step])
    times = []
    for group in groups:
        since = [(step[0] - group[0][0]).astype("timedelta64[ns]").astype(float) for step in group]
        times.append(group[0][0] + np.timedelta64(round(float(np.mean(since))), "ns"))
    members = [[(number, k) for _, number, k, _ in group] for group in groups]
    along = {}
    for name, key in (
        ("relative_orbit", "sat:relative_orbit"),
        ("orbit_state", "sat:orbit_state"),
        ("platform", "platform"),
    ):
        if all(key in stack.coords for stack in pixels):
            along[name] = np.array([_at(pixels[m[0][0]], key, m[0][1]) for m in members])
    items = [
        str(_at(pixels[number], "id", k))
        for group in members
        for number, k in group
        if "id" in pixels[number].coords
    ]
    return Passes(np.array(times, dtype="datetime64[ns]"), members, along, items)


def _at(stack: xr.DataArray, name: str, step: int) -> Any:
    """Value of a coordinate along time, or of all of it."""
    values = np.broadcast_to(stack[name].values, (stack.sizes["time"],))
    return values[step]


def _orbit(stack: xr.DataArray, step: int) -> str:
    keys = ("sat:absolute_orbit", "sat:orbit_state")
    return " ".join(str(_at(stack, key, step)) for key in keys if key in stack.coords)
