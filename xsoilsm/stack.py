"""Step 3 of 7 (load): a cube from backscatter that the user has loaded already.

Users load Sentinel-1 with `odc.stac.load` or `stackstac.stack`, filter or mask it their own way,
and go on from there: one call brings their pixels to the cells of the cube, as sigma nought in dB,
and adds all other inputs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from xsoilsm import grid, periods
from xsoilsm.catalog import Catalog, CatalogError, open_catalog
from xsoilsm.cube import VARIABLES, CubeError, SourceFlag
from xsoilsm.loading import (
    Scene,
    along_time,
    assemble,
    find_ground,
    static_arrays,
)
from xsoilsm.sources.availability import Asof, Moment, latency_of, moment_of
from xsoilsm.sources.pixels.stacks import (
    SAME_PASS,
    Passes,
    Pixel,
    Scale,
    Stack,
    group_passes,
    place,
    read_stack,
    side,
)
from xsoilsm.sources.request import OnError, Request, make_request

if TYPE_CHECKING:
    from xsoilsm.sources.sentinel1.passes import Pass

__all__ = ["cube_from_stack"]

NATIVE = 60.0
"""Side of a pixel in m up to which pixels count as native, and not as means already."""

Quantity = Literal["gamma0", "sigma0"]
Form = Literal["rtc-flat", "rtc-slope"]


def cube_from_stack(
    radar: Stack | Sequence[Stack],
    region: tuple[float, float, float, float] | GeoBox | None = None,
    res: str = "1km",
    catalog: str | os.PathLike[str] | Catalog = "planetary-computer",
    *,
    quantity: Quantity,
    scale: Scale,
    sigma0_from: Form = "rtc-flat",
    incidence_angle: xr.DataArray | float | None = None,
    bands: tuple[str, str] = ("vv", "vh"),
    pixel: Pixel = "auto",
    inputs: xr.Dataset | None = None,
    chunks: int | tuple[int, int] | Mapping[str, int] | None = None,
    on_error: OnError = "flag",
    cache: bool = True,
    asof: Asof | None = None,
) -> xr.Dataset:
    """Make a cube of Sentinel-1 pixels that were loaded with odc-stac, stackstac or alike.

    Lazy: searches the catalog's services for what is missing, reads no pixel.

    Parameters
    ----------
    radar : Dataset, DataArray, or sequence of them
        Native pixels of both polarisations, dims (time, y, x): a Dataset of two variables, or a
        DataArray with a dim ``band``. Any coordinate reference system, found in ``spatial_ref``
        (odc-stac, rioxarray) or ``epsg`` (stackstac); dims may be called latitude and longitude.
        Several stacks, for instance of two UTM zones, are fused by area. Times are UTC; those
        within minutes are slices of one acquisition.
    region : (west, south, east, north) or GeoBox, optional
        As for `xsoilsm.load_cube`; by default all that the stacks cover.
    res : {"9km", "1km", "500m", "100m"}, default "1km"
    catalog : str, path or Catalog, default "planetary-computer"
        Where all other inputs come from, and the annotations with the incidence angle.
    quantity : {"gamma0", "sigma0"}
        What the numbers are: terrain-flattened gamma nought, or sigma nought on the ellipsoid.
    scale : {"linear", "dB"}
        Whether they are power or decibels.
    sigma0_from : {"rtc-flat", "rtc-slope"}, default "rtc-flat"
        How gamma nought becomes sigma nought: as on level ground, or with the slope of the
        terrain, see :mod:`xsoilsm.sources.sentinel1.flattening`.
    incidence_angle : DataArray or float, optional
        In degrees on the ellipsoid: dims (y, x) or (time, y, x) on pixels or cells, or one number.
        By default that of the annotations of the same passes, which the catalog finds.
    bands : (str, str), default ("vv", "vh")
        Names of VV and VH.
    pixel : {"auto", "centre", "corner"}, default "auto"
        What coordinates of pixels mean. stackstac gives upper left corners unless it is told
        otherwise; with ``"auto"`` the attribute ``transform`` decides.
    inputs : Dataset, optional
        Other variables of the cube that are there already, on the same cells. Groups that are
        given whole are not searched: ``ndvi``; ``air_temperature`` and ``precipitation``;
        terrain; soil.
    chunks : int, (y, x) or mapping, optional
        Cells along the sides of a chunk.
    on_error : {"flag", "raise"}, default "flag"
        As for `xsoilsm.load_cube`, for everything but the stacks.
    cache : bool, default True
        As for `xsoilsm.load_cube`.
    asof : str, date, datetime or datetime64, optional
        Use only what had come by then, as for `xsoilsm.load_cube`. Acquisitions of the stacks come
        with the latency of the catalog's radar of their day, or at once where it has none.

    Returns
    -------
    Dataset
        The cube, ready for ``cube.sm.retrieve()``.

    Raises
    ------
    CubeError
        When the stacks or inputs are not what is described above.
    CatalogError
        When the catalog has no pass at a time of the stack, lacks another input, or nothing of
        the stacks had come by `asof`.
    ValueError
        When `asof` cannot be understood.

    Notes
    -----
    The dB of each pixel are averaged, as in training; so load native pixels, without overviews.
    Pixels larger than 60 m hold means of power already, and the cube says so. The correction
    from gamma to sigma nought is taken for cells, not for pixels: where a cell is covered wholly
    the two agree within 0.003 dB.

    Examples
    --------
    >>> import odc.stac
    >>> from xsoilsm import cube_from_stack
    >>> stack = odc.stac.load(items, bands=["vv", "vh"], chunks={})  # doctest: +SKIP
    >>> cube = cube_from_stack(stack, quantity="gamma0", scale="linear")  # doctest: +SKIP
    """
    _check_choice("quantity", quantity, ("gamma0", "sigma0"))
    _check_choice("scale", scale, ("linear", "dB"))
    _check_choice("sigma0_from", sigma0_from, ("rtc-flat", "rtc-slope"))
    _check_choice("pixel", pixel, ("auto", "centre", "corner"))
    several = [radar] if isinstance(radar, xr.Dataset | xr.DataArray) else list(radar)
    if not several:
        msg = "there is no stack; expected a Dataset or DataArray with VV and VH"
        raise CubeError(msg)
    pixels = [read_stack(stack, bands, pixel, scale) for stack in several]
    geobox = _region(region, res, pixels)
    opened = catalog if isinstance(catalog, Catalog) else open_catalog(catalog)
    if asof is not None:
        pixels = _come_by(pixels, moment_of(asof), opened)
    passes = group_passes(pixels)
    days = passes.time[0], passes.time[-1]
    request = make_request(
        geobox, days, opened, chunks=chunks, on_error=on_error, cache=cache, asof=asof
    )
    given = _given(inputs, geobox, passes.time)
    ground = find_ground(request, frozenset(given))
    static = static_arrays(request, ground)
    known = None
    if incidence_angle is None or (quantity == "gamma0" and sigma0_from == "rtc-slope"):
        known = _passes_of_catalog(request, passes.time)
    backscatter, coverage = _to_cells(pixels, passes, request, scale)
    theta, decibels, beyond = _angles(
        request, passes, known, incidence_angle, ground, sloped=sigma0_from == "rtc-slope"
    )
    slope = given["slope"].data if "slope" in given else static["slope"]
    if quantity == "gamma0":
        backscatter = backscatter + decibels
    flags = _flags(coverage, slope, beyond, by_slope=quantity == "gamma0")
    data = {
        "sigma0_vv": backscatter[0].astype(np.float32),
        "sigma0_vh": backscatter[1].astype(np.float32),
        "incidence_angle": theta.astype(np.float32),
        "coverage": coverage,
        "source_flags": flags,
    }
    form = sigma0_from if quantity == "gamma0" else "given"
    coords = _coords(passes, known, form, given_angle=incidence_angle is not None)
    scene = Scene(coords, data, passes.items, [])
    cube = assemble(request, scene, ground, static, given)
    if max(side(p) for p in pixels) > NATIVE:
        for name in ("sigma0_vv", "sigma0_vh"):
            cube[name].attrs["averaging"] = "power"
    return cube


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        msg = f"{name} {value!r} is unknown; expected one of {', '.join(map(repr, allowed))}"
        raise ValueError(msg)


def _come_by(pixels: list[xr.DataArray], moment: Moment, catalog: Catalog) -> list[xr.DataArray]:
    """Leave out steps of stacks of passes that had not come."""
    passes = group_passes(pixels)
    there: dict[int, list[int]] = {}
    for time, members in zip(passes.time, passes.members, strict=True):
        day = date.fromisoformat(str(time.astype("datetime64[D]")))
        segments = catalog.segments("radar", day, day)
        latency = latency_of(segments[0].source) if segments else 0.0
        if moment.has(time, latency):
            for number, step in members:
                there.setdefault(number, []).append(step)
    if not there:
        msg = (
            f"none of the {passes.time.size} acquisitions of the stack had come by {moment.text}; "
            "load earlier ones, or choose a later asof"
        )
        raise CatalogError(msg)
    return [pixels[number].isel(time=sorted(steps)) for number, steps in sorted(there.items())]


def _region(
    region: tuple[float, float, float, float] | GeoBox | None, res: str, pixels: list[xr.DataArray]
) -> GeoBox:
    """Cells that are asked for, or that the pixels touch."""
    if isinstance(region, GeoBox):
        return region
    if region is None:
        boxes = [p.odc.geobox.footprint("EPSG:4326").boundingbox for p in pixels]
        region = (
            min(box.left for box in boxes),
            min(box.bottom for box in boxes),
            max(box.right for box in boxes),
            max(box.top for box in boxes),
        )
    return grid.ease2_geobox(region, res)


def _passes_of_catalog(request: Request, times: npt.NDArray[np.datetime64]) -> list[Pass]:
    """Acquisitions that the catalog knows at the times of the stack."""
    from xsoilsm.sources.sentinel1.passes import find_radar

    found, _, _ = find_radar(request.catalog, request.bounds, request.start, request.end)
    known = np.array([a.time for a in found])
    nearest = [int(np.argmin(np.abs(known - time))) for time in times]
    for time, k in zip(times, nearest, strict=True):
        if abs(known[k] - time) > SAME_PASS:
            msg = (
                f"the catalog '{request.catalog.name}' has no acquisition at {time}, the nearest "
                f"is at {known[k]}; pass incidence_angle, or the catalog that the stack is from"
            )
            raise CatalogError(msg)
    return [found[k] for k in nearest]


def _coords(
    passes: Passes, known: list[Pass] | None, form: str, *, given_angle: bool
) -> dict[str, xr.Variable]:
    """Coordinates along time: those that the catalog knows, else those of the stacks."""
    if known is not None:
        coords = along_time(known)
    else:
        attributes = {"standard_name": "time", "long_name": "time of the overpass, UTC"}
        coords = {name: xr.Variable("time", values) for name, values in passes.along.items()}
        coords["time"] = xr.Variable("time", passes.time, attributes)
    coords["time"] = coords["time"].copy(data=passes.time)
    coords["sigma0_from"] = xr.Variable("time", np.full(passes.time.size, form))
    if given_angle:
        coords["incidence_from"] = xr.Variable("time", np.full(passes.time.size, "given"))
    return coords


# --------------------------------------------------------------------------- cells


def _to_cells(
    pixels: list[xr.DataArray], passes: Passes, request: Request, scale: Scale
) -> tuple[Any, Any]:
    """Mean of dB (polarisation, pass, y, x) and coverage (pass, y, x), as Dask arrays."""
    import dask.array as da

    from xsoilsm.regrid import area_mean

    transform = "db" if scale == "linear" else None
    parts: list[list[Any]] = [[] for _ in passes.members]
    for number, stack in enumerate(pixels):
        steps = [[k for n, k in members if n == number] for members in passes.members]
        held = [k for k, some in enumerate(steps) if some]
        merged = xr.concat([_first(stack, steps[k]) for k in held], "time")
        y, x = stack.odc.spatial_dims
        sizes = {y: 2048, x: 2048} if stack.chunks is None else {}
        merged = merged.transpose("polarisation", "time", y, x)
        lazy = merged.chunk({"polarisation": -1, "time": 1, **sizes})
        mean, share = area_mean(lazy, request.geobox, transform=transform, chunks=request.chunks)
        for step, k in enumerate(held):
            parts[k] += [mean.data[:, step], share.data[:, step]]
    fused = [
        da.map_blocks(
            _fuse,
            *some,
            chunks=((3,), *some[0].chunks[1:]),
            dtype=np.float32,
            meta=np.empty((0, 0, 0), dtype=np.float32),
        )
        for some in parts
    ]
    whole = da.stack(fused, axis=1)
    return whole[:2], whole[2]


def _first(stack: xr.DataArray, steps: list[int]) -> xr.DataArray:
    """Take the first valid value of several steps, pixel by pixel."""
    merged = stack.isel(time=steps[0], drop=True)
    for step in steps[1:]:
        merged = merged.fillna(stack.isel(time=step, drop=True))
    return merged


def _fuse(*parts: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Fuse stacks by area: VV, VH and coverage, (3, y, x)."""
    total = np.zeros(parts[0].shape, dtype=np.float64)
    weight = np.zeros_like(total)
    for mean, share in zip(parts[::2], parts[1::2], strict=True):
        total += np.where(share > 0, mean * share.astype(np.float64), 0)
        weight += share
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(weight > 0, total / weight, np.nan)
    return np.concatenate([mean, np.minimum(weight[:1], 1)]).astype(np.float32)


def _angles(
    request: Request,
    passes: Passes,
    known: list[Pass] | None,
    incidence_angle: xr.DataArray | float | None,
    ground: Mapping[str, Any],
    *,
    sloped: bool,
) -> tuple[Any, Any, Any]:
    """Angle, decibels from gamma to sigma nought, and share in layover or shadow."""
    import dask.array as da

    from xsoilsm.sources.pixels.graph import band, from_blocks

    shape = passes.time.size, *request.geobox.shape
    theta = None if incidence_angle is None else _given_angle(incidence_angle, request, passes)
    if known is None and theta is not None:
        return theta, 10 * da.log10(da.cos(da.deg2rad(theta))), da.zeros(shape, chunks=theta.chunks)
    from xsoilsm.sources.sentinel1.angles import BANDS, angles_of, read_angles

    if sloped and "terrain" not in ground:
        msg = "sigma0_from='rtc-slope' reads the terrain; leave it out of inputs"
        raise CubeError(msg)
    known = known or []
    for acquisition in known:
        angles_of(acquisition)  # tells at once what is missing
    reader = partial(
        _read_angles,
        reader=read_angles,
        sloped=sloped,
        dem=ground["terrain"].records if sloped else (),
        on_error=request.on_error,
    )
    stack = from_blocks(
        reader, request.geobox, request.chunks, bands=len(BANDS), along=known, label="angles"
    )
    read, decibels, beyond = (band(stack, k) for k in range(len(BANDS)))
    return read if theta is None else theta, decibels, beyond


def _read_angles(
    acquisition: Pass, target: GeoBox, reader: Any, sloped: bool, dem: Any, on_error: str
) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = reader(acquisition, target, sloped, dem, on_error)
    return values


def _given_angle(angle: xr.DataArray | float, request: Request, passes: Passes) -> Any:
    """Angle that the user gives, on the cells, (time, y, x)."""
    import dask.array as da

    from xsoilsm.regrid import area_mean

    shape = passes.time.size, *request.geobox.shape
    chunks = (1, *request.chunks)
    if not isinstance(angle, xr.DataArray):
        return da.full(shape, np.float32(angle), chunks=chunks, dtype=np.float32)
    if angle.chunks is None:
        angle = angle.chunk()
    mean, _ = area_mean(place(angle, "auto"), request.geobox, chunks=request.chunks)
    if "time" not in mean.dims:
        return da.broadcast_to(mean.data, shape, chunks=((1,) * shape[0], *request.chunks))
    near = mean.sel(time=passes.time, method="nearest", tolerance=SAME_PASS)
    return near.data.rechunk({0: 1})


def _flags(coverage: Any, slope: Any, beyond: Any, *, by_slope: bool) -> Any:
    """Bits of the source flags, lazily."""
    import dask.array as da

    steepness = da.asarray(slope)[None]
    return da.map_blocks(_bits, coverage, steepness, beyond, by_slope=by_slope, dtype=np.uint8)


def _bits(
    coverage: npt.NDArray[np.float32],
    slope: npt.NDArray[np.float32],
    beyond: npt.NDArray[np.float32],
    by_slope: bool,
) -> npt.NDArray[np.uint8]:
    from xsoilsm.sources.sentinel1.passes import mark_steep
    from xsoilsm.sources.sentinel1.rtc import MASKED

    flags = np.zeros(coverage.shape, dtype=np.uint8)
    flags[coverage == 0] |= np.uint8(SourceFlag.NO_SCENE)
    flags[np.isnan(beyond)] |= np.uint8(SourceFlag.READ_FAILED)
    flags[(coverage > 0) & (coverage < 0.999)] |= np.uint8(SourceFlag.BORDER)
    if by_slope:
        mark_steep(flags, coverage > 0, np.broadcast_to(slope, coverage.shape))
        flags[(coverage > 0) & (beyond > MASKED)] |= np.uint8(SourceFlag.LAYOVER_SHADOW)
    return flags


def _given(
    inputs: xr.Dataset | None, geobox: GeoBox, times: npt.NDArray[np.datetime64]
) -> dict[str, xr.Variable]:
    """Variables that the user has already, on the cells and periods of the cube."""
    from xsoilsm.cube import spatial_coords

    if inputs is None:
        return {}
    unknown = [str(n) for n in inputs.data_vars if n not in VARIABLES or "time" in inputs[n].dims]
    if unknown:
        msg = (
            f"inputs hold {', '.join(unknown)}, which are no variables of a cube along (period, "
            "y, x) or (y, x); drop or rename them"
        )
        raise CubeError(msg)
    cells = spatial_coords(geobox)
    for axis in ("y", "x"):
        same = axis in inputs.coords and inputs[axis].size == cells[axis].size
        if not same or np.abs(inputs[axis].values - cells[axis].values).max() > 1:
            msg = (
                f"inputs are on other cells than the cube along {axis}; bring them there with "
                "xsoilsm.regrid.area_mean(data, geobox)"
            )
            raise CubeError(msg)
    if "period" in inputs.dims:
        first, last = (times[k].astype("datetime64[D]") for k in (0, -1))
        begin = periods.preceding_period(first, periods.PERIODS_PER_YEAR - 1)
        starts = periods.period_starts(begin, last).astype("datetime64[ns]")
        absent = ~np.isin(starts, inputs["period"].values)
        if absent.any():
            msg = (
                f"inputs lack {int(absent.sum())} of the periods from {starts[0]} to {starts[-1]}, "
                f"for instance {starts[absent][0]}"
            )
            raise CubeError(msg)
        inputs = inputs.sel(period=starts)
    found = {}
    for name, data in inputs.data_vars.items():
        variable = VARIABLES[str(name)]
        if set(data.dims) != set(variable.dims):
            msg = f"inputs: `{name}` has dims {data.dims}, expected {variable.dims}"
            raise CubeError(msg)
        found[str(name)] = data.transpose(*variable.dims).variable
    return found
