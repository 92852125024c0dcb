"""Step 3 of 7 (load): the acquisitions of a region and time as lazy arrays."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta
from functools import partial
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from xsoilsm.catalog import Catalog, CatalogError, Segment
from xsoilsm.cube import SourceFlag
from xsoilsm.facts import Sentinel1GrdSource, Source
from xsoilsm.sources.access.search import Bounds, find_items, item_span
from xsoilsm.sources.availability import Moment, acquired_by, latency_of
from xsoilsm.sources.ground.elevation import DemTile
from xsoilsm.sources.pixels.graph import Chunks, band, from_blocks
from xsoilsm.sources.sentinel1 import rtc
from xsoilsm.sources.sentinel1.acquisitions import Acquisition, Excluded, find_acquisitions
from xsoilsm.sources.sentinel1.grd import GrdAcquisition, read_grd_acquisition
from xsoilsm.sources.sentinel1.grd_items import find_grd_acquisitions

__all__ = ["STEEP", "TOO_STEEP", "Pass", "find_radar", "mark_steep", "radar_arrays"]

Pass: TypeAlias = Acquisition | GrdAcquisition
"""An acquisition of either kind of source."""

STEEP = 5.0
"""Slope in degrees above which sigma nought without an area factor is only approximate."""

TOO_STEEP = 20.0
"""Slope in degrees above which it is unreliable."""

_BY_SLOPE = 128
"""Bit of the flags on their way to `_flags`: the form of sigma nought fails on steep ground."""


def find_radar(
    catalog: Catalog, bounds: Bounds, start: date, end: date, moment: Moment | None = None
) -> tuple[list[Pass], list[Excluded], list[Source]]:
    """Search the acquisitions of all sources of radar. Asks the services; reads no pixel.

    Parameters
    ----------
    catalog : Catalog
    bounds : (west, south, east, north)
        In degrees.
    start, end : date
        First and last day, UTC.
    moment : Moment, optional
        Only what had come by then.

    Returns
    -------
    acquisitions : list of Acquisition or GrdAcquisition
        By time; at least one.
    excluded : list of Excluded
    sources : list of Source

    Raises
    ------
    CatalogError
        When there is none; the message tells what exists near.
    """
    found: list[Pass] = []
    excluded: list[Excluded] = []
    late = 0
    segments = catalog.segments("radar", start, end)
    for segment in segments:
        in_radar_geometry = isinstance(segment.source, Sentinel1GrdSource)
        find = find_grd_acquisitions if in_radar_geometry else find_acquisitions
        some, left_out = find(catalog, segment, bounds)
        there: list[Pass] = list(some)
        if moment is not None:
            there = acquired_by(there, latency_of(segment.source), moment)
        late += len(some) - len(there)
        found += there
        excluded += left_out
    if not found and late and moment is not None:
        msg = (
            f"none of the {late} acquisitions in {start} to {end} had come by {moment.text}; "
            "choose earlier days, or a later asof"
        )
        raise CatalogError(msg)
    if not found:
        raise CatalogError(_nothing_found(catalog, bounds, (start, end), segments, excluded))
    found.sort(key=lambda a: (a.time, a.absolute_orbit))
    return found, excluded, [segment.source for segment in segments]


def _nothing_found(
    catalog: Catalog,
    bounds: Bounds,
    days: tuple[date, date],
    segments: Iterable[Segment],
    excluded: list[Excluded],
) -> str:
    """Say what was searched, and what exists near."""
    west, south, east, north = bounds
    start, end = days
    text = (
        f"no acquisition with VV and VH in {start} to {end} over "
        f"({west:.4f}, {south:.4f}, {east:.4f}, {north:.4f}) in the catalog "
        f"'{catalog.name}': {catalog.describe('radar')}"
    )
    if excluded:
        text += f"; {len(excluded)} item(s) were left out, for instance {excluded[0].id}: "
        text += excluded[0].reason
    # A year on either side is cheap to ask for and tells a wrong date from a wrong place.
    around = catalog.segments("radar", start - timedelta(366), end + timedelta(366))
    known = sorted(
        item_span(item)[0].date()
        for segment in around
        for item in find_items(
            catalog.service_of(segment.source),
            segment.source.collection,
            bounds,
            segment.start,
            segment.end,
        )
    )
    if not known:
        return f"{text}; none within a year of that either: choose another region or catalog"
    before = [day for day in known if day < start]
    after = [day for day in known if day > end]
    near = [str(day) for day in (*before[-1:], *after[:1])]
    return f"{text}; the nearest are of {' and '.join(near)}: choose another time"


def radar_arrays(
    acquisitions: list[Pass],
    geobox: GeoBox,
    chunks: Chunks,
    *,
    slope: da.Array,
    dem: tuple[DemTile, ...] = (),
    on_error: str = "flag",
) -> dict[str, da.Array]:
    """Backscatter, angle, coverage and flags, one task per chunk and acquisition.

    Lazy: reads nothing.

    Parameters
    ----------
    acquisitions : list of Acquisition or GrdAcquisition
    geobox : GeoBox
    chunks : (y chunks, x chunks)
    slope : (y, x) dask Array
        Degrees, in these chunks; steep cells are flagged where their form needs it.
    dem : tuple of DemTile
        Elevation models, for the form ``rtc-slope``.
    on_error : {"flag", "raise"}

    Returns
    -------
    dict of str to (time, y, x) dask Array
    """
    sloped = any(acquisition.sigma0_from == "rtc-slope" for acquisition in acquisitions)
    stack = from_blocks(
        partial(_read, on_error=on_error, dem=dem if sloped else ()),
        geobox,
        chunks,
        bands=len(rtc.BANDS),
        along=acquisitions,
        label="sentinel1",
    )
    data = {name: band(stack, k) for k, name in enumerate(rtc.BANDS[:-1])}
    data["source_flags"] = da.blockwise(
        _flags,
        "tyx",
        stack,
        "btyx",
        slope,
        "yx",
        concatenate=None,
        dtype=np.uint8,
        meta=np.empty((0, 0, 0), dtype=np.uint8),
    )
    return data


def _read(
    acquisition: Pass, target: GeoBox, on_error: str, dem: tuple[Any, ...]
) -> npt.NDArray[np.float32]:
    if isinstance(acquisition, GrdAcquisition):
        return read_grd_acquisition(acquisition, target, on_error)
    values = rtc.read_acquisition(acquisition, target, on_error, dem)
    if acquisition.sigma0_from in ("rtc-flat", "rtc-slope"):
        seen = values[rtc.BANDS.index("coverage")] > 0
        values[rtc.BANDS.index("source_flags")][seen] += _BY_SLOPE
    return values


def _flags(
    blocks: list[npt.NDArray[np.float32]], slope: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """Take the flags of the source; add where the ground is too steep for its form."""
    (stack,) = blocks
    flags: npt.NDArray[np.uint8] = stack[rtc.BANDS.index("source_flags")].astype(np.uint8)
    by_slope = (flags & np.uint8(_BY_SLOPE)) > 0
    return mark_steep(flags & np.uint8(255 - _BY_SLOPE), by_slope, slope)


def mark_steep(
    flags: npt.NDArray[np.uint8], seen: npt.NDArray[np.bool_], slope: npt.NDArray[np.floating]
) -> npt.NDArray[np.uint8]:
    """Add the bits of steep ground, above :data:`STEEP` and :data:`TOO_STEEP`, in place.

    Parameters
    ----------
    flags : (time, y, x) ndarray of uint8
    seen : (time, y, x) ndarray of bool
        Cells whose sigma nought depends on the slope.
    slope : (y, x) ndarray
        Degrees.

    Returns
    -------
    (time, y, x) ndarray of uint8
        `flags`.
    """
    flags[seen & (slope > STEEP)] |= np.uint8(SourceFlag.APPROXIMATE_SIGMA0)
    flags[seen & (slope > TOO_STEEP)] |= np.uint8(SourceFlag.UNRELIABLE_SIGMA0)
    return flags
