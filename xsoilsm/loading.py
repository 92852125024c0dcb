"""Step 3 of 7 (load): from a region and a time to a cube, through a catalog.

The catalog's services are searched at once, so that errors come early and only the items that
touch the region enter the graph; pixels are read when the cube is computed, one task per chunk
and acquisition for radar and one task per chunk for everything else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from typing import Any, Literal

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from xsoilsm import grid, periods
from xsoilsm.catalog import Catalog, CatalogError, Segment, open_catalog
from xsoilsm.cube import VARIABLES, SourceFlag, spatial_coords
from xsoilsm.facts import Source
from xsoilsm.sources import era5, modis, sentinel1, soil, terrain
from xsoilsm.sources.graph import Chunks, band, from_blocks, single_task, spatial_chunks
from xsoilsm.sources.search import Bounds, find_items, item_span, joined, lonlat_bounds
from xsoilsm.sources.timespan import Time, days_of

__all__ = ["load_cube"]

STEEP = 5.0
"""Slope in degrees above which the flat-ground form of sigma nought is only approximate."""

_CHUNK = {"9km": 16, "1km": 64, "500m": 64, "100m": 256}  # cells along a side

OnError = Literal["flag", "raise"]


@dataclass(frozen=True)
class _Request:
    """What is to be loaded."""

    catalog: Catalog
    geobox: GeoBox
    bounds: Bounds
    chunks: Chunks
    start: date
    end: date
    on_error: OnError


def load_cube(
    region: tuple[float, float, float, float] | GeoBox,
    time: Time,
    res: str = "1km",
    catalog: str | os.PathLike[str] | Catalog = "planetary-computer",
    *,
    chunks: int | tuple[int, int] | Mapping[str, int] | None = None,
    on_error: OnError = "flag",
) -> xr.Dataset:
    """Load the inputs of a retrieval as one lazy cube.

    Lazy: searches the catalog's services, reads no pixel.

    Parameters
    ----------
    region : (west, south, east, north) or GeoBox
        Degrees, snapped outward to whole cells; or a block of cells, which then decides the
        grid and `res` is not used.
    time : str, (start, end) or slice
        Days in UTC, both ends included: ``"2020"``, ``"2020-04"``, ``"2020-04-15"``,
        ``"2020-04-01/2020-05-15"``, or two dates.
    res : {"9km", "1km", "500m", "100m"}, default "1km"
    catalog : str, path or Catalog, default "planetary-computer"
        See :func:`xsoilsm.open_catalog`.
    chunks : int, (y, x) or mapping, optional
        Cells along the sides of a chunk. Time has one acquisition a chunk, periods are whole.
    on_error : {"flag", "raise"}, default "flag"
        What a file does that cannot be read for good: its cells become NaN and get the bit
        "read failed" in ``source_flags``, or computing raises an OSError.

    Returns
    -------
    Dataset
        The cube in map form: radar (time, y, x), series (period, y, x), terrain and soil
        (y, x), with ``coverage``, ``source_flags`` and ``ndvi_filled``. Periods begin 45 before
        that of the first acquisition, so that each sees 46.

    Raises
    ------
    CatalogError
        When no acquisition lies in the time and region, a source has nothing for them, or an
        item lacks what is needed.
    ValueError
        When the region or the time cannot be understood, or is empty.

    Examples
    --------
    >>> from xsoilsm import load_cube
    >>> cube = load_cube((4.0, 43.0, 4.3, 43.2), "2020-06", catalog="demo")  # doctest: +SKIP
    """
    if on_error not in ("flag", "raise"):
        msg = f"on_error {on_error!r} is unknown; expected 'flag' or 'raise'"
        raise ValueError(msg)
    geobox = region if isinstance(region, GeoBox) else grid.ease2_geobox(region, res)
    cells, _, _ = grid.grid_of(geobox)
    start, end = days_of(time)
    opened = catalog if isinstance(catalog, Catalog) else open_catalog(catalog)
    request = _Request(
        catalog=opened,
        geobox=geobox,
        bounds=lonlat_bounds(geobox),
        chunks=_chunks(chunks, geobox, cells.name),
        start=start,
        end=end,
        on_error=on_error,
    )
    acquisitions, excluded, radar = _find_radar(request)
    first, last = (acquisitions[k].time.astype("datetime64[D]") for k in (0, -1))
    starts = periods.period_starts(
        periods.preceding_period(first, periods.PERIODS_PER_YEAR - 1), last
    )
    ground, ground_used = _terrain(request)
    scene, sky, earth = (
        _radar(request, acquisitions, ground["slope"]),
        _series(request, starts, last),
        _soil(request),
    )
    data = {**scene, **sky.data, **earth.data, **ground}
    items = {**sky.items, **earth.items, **ground_used.items}
    items |= {
        name: [piece.id for acquisition in acquisitions for piece in acquisition.slices]
        for name in scene
    }
    used = [*radar, *sky.sources, *earth.sources, *ground_used.sources]
    coords: dict[str, Any] = dict(spatial_coords(geobox))
    coords["time"] = xr.Variable(
        "time",
        np.array([a.time for a in acquisitions], dtype="datetime64[ns]"),
        {"standard_name": "time", "long_name": "time of the overpass, UTC"},
    )
    coords["relative_orbit"] = ("time", np.array([a.relative_orbit for a in acquisitions]))
    coords["orbit_state"] = ("time", np.array([a.orbit_state for a in acquisitions]))
    coords["platform"] = ("time", np.array([a.platform for a in acquisitions]))
    coords["period"] = xr.Variable(
        "period", starts.astype("datetime64[ns]"), {"long_name": "first day of an 8-day period"}
    )
    variables = {
        name: xr.Variable(
            VARIABLES[name].dims,
            data[name],
            _attributes(name, items.get(name, ()), acquisitions[0].sigma0_from),
        )
        for name in VARIABLES
        if name in data
    }
    return xr.Dataset(variables, coords, _provenance(request, used, excluded))


@dataclass
class _Part:
    """Variables of a group with the items and sources behind them."""

    data: dict[str, da.Array]
    items: dict[str, list[str]]
    sources: list[Source]


def _find_radar(
    request: _Request,
) -> tuple[list[sentinel1.Acquisition], list[sentinel1.Excluded], list[Source]]:
    catalog, found, excluded = request.catalog, [], []
    segments = catalog.segments("radar", request.start, request.end)
    for segment in segments:
        some, left_out = sentinel1.find_acquisitions(catalog, segment, request.bounds)
        found += some
        excluded += left_out
    if not found:
        raise CatalogError(_nothing_found(request, segments, excluded))
    forms = {a.sigma0_from for a in found}
    if len(forms) > 1:
        msg = f"the sources of radar give sigma0 in different forms ({', '.join(sorted(forms))})"
        raise CatalogError(msg)
    found.sort(key=lambda a: (a.time, a.absolute_orbit))
    return found, excluded, [segment.source for segment in segments]


def _nothing_found(
    request: _Request, segments: Iterable[Segment], excluded: list[sentinel1.Excluded]
) -> str:
    """Say what was searched, and what exists near."""
    west, south, east, north = request.bounds
    text = (
        f"no acquisition with VV and VH in {request.start} to {request.end} over "
        f"({west:.4f}, {south:.4f}, {east:.4f}, {north:.4f}) in the catalog "
        f"'{request.catalog.name}': {request.catalog.describe('radar')}"
    )
    if excluded:
        text += f"; {len(excluded)} item(s) were left out, for instance {excluded[0].id}: "
        text += excluded[0].reason
    # A year on either side is cheap to ask for and tells a wrong date from a wrong place.
    around = request.catalog.segments(
        "radar", request.start - timedelta(366), request.end + timedelta(366)
    )
    days = sorted(
        item_span(item)[0].date()
        for segment in around
        for item in find_items(
            request.catalog.service_of(segment.source),
            segment.source.collection,
            request.bounds,
            segment.start,
            segment.end,
        )
    )
    if not days:
        return f"{text}; none within a year of that either: choose another region or catalog"
    before = [day for day in days if day < request.start]
    after = [day for day in days if day > request.end]
    near = [str(day) for day in (*before[-1:], *after[:1])]
    return f"{text}; the nearest are of {' and '.join(near)}: choose another time"


def _radar(
    request: _Request, acquisitions: list[sentinel1.Acquisition], slope: da.Array
) -> dict[str, da.Array]:
    reader = partial(_read_acquisition, on_error=request.on_error)
    stack = from_blocks(
        reader,
        request.geobox,
        request.chunks,
        bands=len(sentinel1.BANDS),
        along=acquisitions,
        label="sentinel1",
    )
    data = {name: band(stack, k) for k, name in enumerate(sentinel1.BANDS[:-1])}
    data["source_flags"] = da.blockwise(
        _flags,
        "tyx",
        stack,
        "btyx",
        slope,
        "yx",
        flat=acquisitions[0].sigma0_from == "rtc-flat",
        concatenate=None,
        dtype=np.uint8,
        meta=np.empty((0, 0, 0), dtype=np.uint8),
    )
    return data


def _read_acquisition(
    acquisition: sentinel1.Acquisition, target: GeoBox, on_error: OnError
) -> npt.NDArray[np.float32]:
    return sentinel1.read_acquisition(acquisition, target, on_error)


def _flags(
    blocks: list[npt.NDArray[np.float32]], slope: npt.NDArray[np.float32], flat: bool
) -> npt.NDArray[np.uint8]:
    """Take the flags of the source; add where the ground is too steep for the flat form."""
    (stack,) = blocks
    flags: npt.NDArray[np.uint8] = stack[sentinel1.BANDS.index("source_flags")].astype(np.uint8)
    if flat:
        seen = stack[sentinel1.BANDS.index("coverage")] > 0
        flags[seen & (slope > STEEP)] |= np.uint8(SourceFlag.APPROXIMATE_SIGMA0)
    return flags


def _series(
    request: _Request, starts: npt.NDArray[np.datetime64], last_needed: np.datetime64
) -> _Part:
    final = starts[-1] + np.timedelta64(int(periods.period_length(starts[-1])) - 1, "D")
    first, last, needed = (
        date.fromisoformat(str(day.astype("datetime64[D]")))
        for day in (starts[0], final, last_needed)
    )
    part = _Part({}, {}, [])
    _add_ndvi(part, request, starts, first, last)
    _add_weather(part, request, starts, (first, last, needed))
    return part


def _add_ndvi(
    part: _Part, request: _Request, starts: npt.NDArray[np.datetime64], first: date, last: date
) -> None:
    segments = request.catalog.segments("ndvi", first, last)
    composites = tuple(
        composite
        for segment in segments
        for composite in modis.find_composites(request.catalog, segment, request.bounds, starts)
    )
    if not composites:
        raise CatalogError(_no_items(request, "ndvi", f"{first} to {last}"))
    stack = from_blocks(
        partial(_read_ndvi, composites, starts, on_error=request.on_error),
        request.geobox,
        request.chunks,
        bands=2,
        along=starts.size,
        label="modis",
    )
    part.data["ndvi"] = band(stack, 0)
    part.data["ndvi_filled"] = band(stack, 1, np.uint8)
    names = [composite.id for composite in composites]
    part.items |= {"ndvi": names, "ndvi_filled": names}
    part.sources += [segment.source for segment in segments]


def _read_ndvi(
    composites: tuple[modis.Composite, ...],
    starts: npt.NDArray[np.datetime64],
    target: GeoBox,
    on_error: OnError,
) -> npt.NDArray[np.float32]:
    return modis.read_ndvi(composites, starts, target, on_error)


def _add_weather(
    part: _Part,
    request: _Request,
    starts: npt.NDArray[np.datetime64],
    days: tuple[date, date, date],
) -> None:
    first, last, last_needed = days
    segments = request.catalog.segments("weather", first, last)
    stores = [
        store
        for segment in segments
        for store in era5.find_stores(request.catalog, segment, request.bounds, last_needed)
    ]
    covered = segments[-1].end if segments else first - timedelta(1)
    if not stores or segments[0].start > first or covered < last_needed:
        raise CatalogError(_no_items(request, "weather", f"{first} to {last_needed}"))
    source = single_task(
        partial(_combine, starts, sum(store.name == era5.BANDS[0] for store in stores)),
        [
            (era5.read_store, (store, request.bounds, first, last, request.on_error))
            for store in sorted(stores, key=lambda store: era5.BANDS.index(store.name))
        ],
        label="era5-native",
    )
    stack = from_blocks(
        era5.regrid_weather,
        request.geobox,
        request.chunks,
        bands=len(era5.BANDS),
        along=starts.size,
        source=source,
        label="era5",
    )
    for k, name in enumerate(era5.BANDS):
        part.data[name] = band(stack, k)
        part.items[name] = [store.id for store in stores if store.name == name]
    part.sources += [segment.source for segment in segments]


def _combine(
    starts: npt.NDArray[np.datetime64], count: int, sums: list[era5.DailySums | None]
) -> era5.NativeWeather:
    return era5.combine(sums[:count], sums[count:], starts)


def _terrain(request: _Request) -> tuple[dict[str, da.Array], _Part]:
    for source in request.catalog.sources["terrain"]:
        tiles = tuple(terrain.find_dem(request.catalog, _always(source), request.bounds))
        if tiles:
            break
    else:
        raise CatalogError(_no_items(request, "terrain", "any time"))
    stack = from_blocks(
        partial(_read_static, terrain.read_terrain, tiles, on_error=request.on_error),
        request.geobox,
        request.chunks,
        bands=len(terrain.BANDS),
        label="terrain",
    )
    names = [tile.id for tile in tiles]
    data = {name: band(stack, k) for k, name in enumerate(terrain.BANDS)}
    return data, _Part(data, dict.fromkeys(data, names), [source])


def _soil(request: _Request) -> _Part:
    for source in request.catalog.sources["soil"]:
        layers = tuple(soil.find_soil(request.catalog, _always(source), request.bounds))
        if layers:
            break
    else:
        raise CatalogError(_no_items(request, "soil", "any time"))
    stack = from_blocks(
        partial(_read_static, soil.read_soil, layers, on_error=request.on_error),
        request.geobox,
        request.chunks,
        bands=len(soil.BANDS),
        label="soil",
    )
    data = {name: band(stack, k) for k, name in enumerate(soil.BANDS)}
    names = {name: [x.id for x in layers if x.variable == name] for name in data}
    return _Part(data, names, [source])


def _read_static(
    reader: Any, records: tuple[Any, ...], target: GeoBox, on_error: OnError
) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = reader(records, target, on_error)
    return values


def _always(source: Source) -> Segment:
    """All days, for what does not change."""
    return Segment(source=source, start=date(1950, 1, 1), end=date(2100, 1, 1))


def _no_items(request: _Request, group: str, days: str) -> str:
    west, south, east, north = request.bounds
    return (
        f"no {group} for {days} over ({west:.4f}, {south:.4f}, {east:.4f}, {north:.4f}) in the "
        f"catalog '{request.catalog.name}', which takes it from "
        f"{request.catalog.describe(group)}; name a further source in the catalog, or choose "
        "another time or region"
    )


def _attributes(name: str, items: Iterable[str], sigma0_from: str) -> dict[str, Any]:
    attributes: dict[str, Any] = dict(VARIABLES[name].attributes)
    attributes["grid_mapping"] = "spatial_ref"
    attributes["items"] = " ".join(dict.fromkeys(items))
    if name.startswith("sigma0_"):
        attributes |= {"sigma0_from": sigma0_from, "averaging": "dB"}
    if name == "source_flags":
        bits = {k.lower(): v for k, v in vars(SourceFlag).items() if k.isupper()}
        attributes["flag_masks"] = np.array(list(bits.values()), dtype=np.uint8)
        attributes["flag_meanings"] = " ".join(bits)
    if name == "ndvi_filled":
        attributes["flag_values"] = np.array(
            [0, modis.FILLED, modis.FILLED_AFTER_FAILURE], dtype=np.uint8
        )
        attributes["flag_meanings"] = "observed filled_in_time filled_after_failed_read"
    return attributes


def _provenance(
    request: _Request, sources: list[Source], excluded: list[sentinel1.Excluded]
) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "Conventions": "CF-1.11",
        "title": "Inputs of a soil moisture retrieval",
        "source": f"catalog '{request.catalog.name}' ({request.catalog.title})",
        "licence": joined([f"{s.collection}: {s.licence}" for s in sources]),
        "citation": joined([s.citation for s in sources]),
    }
    if excluded:
        attributes["excluded_items"] = joined([f"{x.id} ({x.reason})" for x in excluded])
    return attributes


def _chunks(
    chunks: int | tuple[int, int] | Mapping[str, int] | None, geobox: GeoBox, res: str
) -> Chunks:
    shape = geobox.height, geobox.width
    # Chunks of much the same size, rather than a sliver at the end.
    counts = (-(-length // _CHUNK[res]) for length in shape)
    rows, columns = (-(-length // count) for length, count in zip(shape, counts, strict=True))
    if chunks is None:
        size = rows, columns
    elif isinstance(chunks, Mapping):
        unknown = sorted(set(chunks) - {"y", "x"})
        if unknown:
            msg = (
                f"chunks name {', '.join(unknown)}; only y and x can be chosen, time has one "
                "acquisition a chunk and periods are whole"
            )
            raise ValueError(msg)
        size = int(chunks.get("y", rows)), int(chunks.get("x", columns))
    elif isinstance(chunks, tuple):
        size = int(chunks[0]), int(chunks[1])
    else:
        size = int(chunks), int(chunks)
    if min(size) < 1:
        msg = f"chunks {chunks!r} are not positive"
        raise ValueError(msg)
    return spatial_chunks(shape, size)
