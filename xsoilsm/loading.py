"""Step 3 of 7 (load): from a region and a time to a cube, through a catalog.

The catalog's services are searched at once, so that errors come early and only the items that
touch the region enter the graph; pixels are read when the cube is computed, one task per chunk
and acquisition for radar and one task per chunk for everything else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
from xsoilsm.facts import OPTIONAL_GROUPS, Source
from xsoilsm.sources import era5, modis, sentinel1, stores, weather
from xsoilsm.sources.graph import Chunks, band, from_blocks, single_task, spatial_chunks
from xsoilsm.sources.grd import GrdAcquisition
from xsoilsm.sources.radar import Pass, find_radar, radar_arrays
from xsoilsm.sources.search import Bounds, joined, lonlat_bounds
from xsoilsm.sources.static import StaticGroup, find_static
from xsoilsm.sources.timespan import Time, days_of

__all__ = ["load_cube"]

_CHUNK = {"9km": 16, "1km": 64, "500m": 64, "100m": 256}  # cells along a side

OnError = Literal["flag", "raise"]


@dataclass(frozen=True)
class Request:
    """What is to be loaded."""

    catalog: Catalog
    geobox: GeoBox
    bounds: Bounds
    chunks: Chunks
    start: date
    end: date
    on_error: OnError
    mask_ndvi: bool
    cache: bool


def load_cube(
    region: tuple[float, float, float, float] | GeoBox,
    time: Time,
    res: str = "1km",
    catalog: str | os.PathLike[str] | Catalog = "planetary-computer",
    *,
    chunks: int | tuple[int, int] | Mapping[str, int] | None = None,
    on_error: OnError = "flag",
    mask_ndvi: bool = False,
    cache: bool = True,
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
    mask_ndvi : bool, default False
        Leave out pixels of NDVI that their producer calls snow or cloud, and fill in time what
        that leaves empty. The networks were trained without a mask.
    cache : bool, default True
        Keep terrain, soil and land cover of each chunk on disk, in the folder ``layers`` of
        `xsoilsm.catalog.cache_dir`, and look there first: for cubes of the same region and
        chunks at other times. Only what was read over the network is kept, up to 2 GB (or
        ``$XSOILSM_LAYERS_MB``); `xsoilsm.sources.layers.clear_layers` removes it.

    Returns
    -------
    Dataset
        The cube in map form: radar (time, y, x), series (period, y, x), terrain, soil and land
        cover (y, x), with ``coverage``, ``source_flags`` and ``ndvi_filled``. Periods begin 45
        before that of the first acquisition, so that each sees 46. The coordinate
        ``sigma0_from`` tells for each acquisition how sigma nought was obtained.

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
    request = make_request(
        geobox,
        time,
        catalog,
        chunks=chunks,
        on_error=on_error,
        mask_ndvi=mask_ndvi,
        cache=cache,
    )
    acquisitions, excluded, sources = find_radar(
        request.catalog, request.bounds, request.start, request.end
    )
    ground = find_ground(request)
    static = static_arrays(request, ground)
    data = radar_arrays(
        acquisitions,
        geobox,
        request.chunks,
        slope=static["slope"],
        dem=ground["terrain"].records,
        on_error=on_error,
    )
    items = [piece.id for acquisition in acquisitions for piece in acquisition.slices]
    scene = Scene(along_time(acquisitions), data, items, sources, excluded)
    cube = assemble(request, scene, ground, static)
    located = joined([a.heights.record for a in acquisitions if isinstance(a, GrdAcquisition)])
    return cube.assign_attrs({"radar_located_with": located}) if located else cube


def make_request(
    geobox: GeoBox,
    time: Time,
    catalog: str | os.PathLike[str] | Catalog,
    *,
    chunks: int | tuple[int, int] | Mapping[str, int] | None = None,
    on_error: OnError = "flag",
    mask_ndvi: bool = False,
    cache: bool = True,
) -> Request:
    """Check what is to be loaded; parameters as for `load_cube`. Lazy: reads the catalog only."""
    cells, _, _ = grid.grid_of(geobox)
    start, end = days_of(time)
    return Request(
        catalog=catalog if isinstance(catalog, Catalog) else open_catalog(catalog),
        geobox=geobox,
        bounds=lonlat_bounds(geobox),
        chunks=_chunks(chunks, geobox, cells.name),
        start=start,
        end=end,
        on_error=on_error,
        mask_ndvi=mask_ndvi,
        cache=cache,
    )


@dataclass(frozen=True)
class Scene:
    """The radar's part of a cube.

    Parameters
    ----------
    coords : dict of str to Variable
        ``time`` and what lies along it, with ``sigma0_from``.
    data : dict of str to array
        Variables (time, y, x).
    items : list of str
    sources : list of Source
    excluded : list of Excluded
    """

    coords: dict[str, xr.Variable]
    data: dict[str, Any]
    items: list[str]
    sources: list[Source]
    excluded: list[sentinel1.Excluded] = field(default_factory=list)


def along_time(acquisitions: Iterable[Pass]) -> dict[str, xr.Variable]:
    """Coordinates of acquisitions. Lazy: reads nothing."""
    known = list(acquisitions)
    when = np.array([a.time for a in known], dtype="datetime64[ns]")
    names = "relative_orbit", "orbit_state", "platform", "sigma0_from"
    attributes = {"standard_name": "time", "long_name": "time of the overpass, UTC"}
    return {
        "time": xr.Variable("time", when, attributes),
        **{n: xr.Variable("time", np.array([getattr(a, n) for a in known])) for n in names},
    }


def assemble(
    request: Request,
    scene: Scene,
    ground: Mapping[str, StaticGroup],
    static: Mapping[str, da.Array],
    given: Mapping[str, xr.Variable] | None = None,
) -> xr.Dataset:
    """Put the radar and everything else together to a cube.

    Lazy: searches the catalog's services, reads no pixel.

    Parameters
    ----------
    request : Request
    scene : Scene
    ground : mapping of str to StaticGroup
        From `find_ground`.
    static : mapping of str to (y, x) array
        From `static_arrays`.
    given : mapping of str to Variable, optional
        Variables that are there already; groups of which nothing is missing are not searched.

    Returns
    -------
    Dataset
    """
    given = given or {}
    times = scene.coords["time"].values
    first, last = (times[k].astype("datetime64[D]") for k in (0, -1))
    starts = periods.period_starts(
        periods.preceding_period(first, periods.PERIODS_PER_YEAR - 1), last
    )
    sky = _series(request, starts, last, frozenset(given))
    data: dict[str, Any] = {**scene.data, **sky.data, **static}
    items = {**sky.items, **{name: scene.items for name in scene.data}}
    notes = dict(sky.attributes)
    used = [*scene.sources, *sky.sources]
    for group in ground.values():
        items |= group.items
        notes |= group.notes
        used += group.sources
    forms = " ".join(sorted(set(scene.coords["sigma0_from"].values.astype(str).tolist())))
    variables = {
        name: xr.Variable(
            VARIABLES[name].dims,
            data[name],
            _attributes(name, items.get(name, ()), forms) | notes.get(name, {}),
        )
        for name in VARIABLES
        if name in data and name not in given
    }
    coords: dict[str, Any] = {**spatial_coords(request.geobox), **scene.coords}
    coords["period"] = xr.Variable(
        "period", starts.astype("datetime64[ns]"), {"long_name": "first day of an 8-day period"}
    )
    attributes = _provenance(request, used, scene.excluded)
    return xr.Dataset({**variables, **given}, coords, attributes)


_WHOLE_GROUPS = {
    "ndvi": frozenset({"ndvi"}),
    "weather": frozenset(era5.BANDS),
    "terrain": frozenset({"elevation", "slope", "aspect_sin", "aspect_cos"}),
    "soil": frozenset({"sand", "clay", "bulk_density"}),
}
"""Variables that a cube must have, by group."""


def find_ground(request: Request, given: frozenset[str] = frozenset()) -> dict[str, StaticGroup]:
    """Search what does not change and is not given. Asks the services; reads no pixel.

    Raises
    ------
    CatalogError
        When no source has the region.
    """
    found = {}
    needed = [g for g in ("terrain", "soil") if not _WHOLE_GROUPS[g] <= given]
    # What is optional is looked for where something else is.
    for group in (*needed, *OPTIONAL_GROUPS) if needed else ():
        some = find_static(request.catalog, group, request.bounds)
        if some is not None:
            found[group] = some
        elif group in _WHOLE_GROUPS:
            raise CatalogError(_no_items(request, group, "any time"))
    return found


def static_arrays(request: Request, ground: Mapping[str, StaticGroup]) -> dict[str, da.Array]:
    """Variables (y, x) of groups that do not change. Lazy: reads nothing."""
    arrays: dict[str, da.Array] = {}
    for group in ground.values():
        arrays |= group.arrays(request.geobox, request.chunks, request.on_error, request.cache)
    return arrays


@dataclass
class _Part:
    """Variables of a group with the items and sources behind them."""

    data: dict[str, da.Array]
    items: dict[str, list[str]]
    sources: list[Source]
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)


def _series(
    request: Request,
    starts: npt.NDArray[np.datetime64],
    last_needed: np.datetime64,
    given: frozenset[str],
) -> _Part:
    final = starts[-1] + np.timedelta64(int(periods.period_length(starts[-1])) - 1, "D")
    first, last, needed = (
        date.fromisoformat(str(day.astype("datetime64[D]")))
        for day in (starts[0], final, last_needed)
    )
    part = _Part({}, {}, [])
    if not _WHOLE_GROUPS["ndvi"] <= given:
        _add_ndvi(part, request, starts, first, last)
    if not _WHOLE_GROUPS["weather"] <= given:
        _add_weather(part, request, starts, (first, last, needed))
    return part


def _add_ndvi(
    part: _Part, request: Request, starts: npt.NDArray[np.datetime64], first: date, last: date
) -> None:
    segments = request.catalog.segments("ndvi", first, last)
    composites = tuple(
        composite
        for segment in segments
        for composite in modis.find_composites(
            request.catalog, segment, request.bounds, starts, mask=request.mask_ndvi
        )
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
    held = {composite.start for composite in composites}
    kept = " or ".join(str(k) for k in composites[0].keep)
    part.attributes["ndvi"] = {
        "quality_mask": f"pixel reliability {kept}" if request.mask_ndvi else "none",
        "periods_without_composite": " ".join(str(s) for s in starts if s not in held),
    }
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
    request: Request,
    starts: npt.NDArray[np.datetime64],
    days: tuple[date, date, date],
) -> None:
    first, last, last_needed = days
    segments = request.catalog.segments("weather", first, last)
    found = [
        store
        for segment in segments
        for store in era5.find_stores(request.catalog, segment, request.bounds, last_needed)
    ]
    if not found or _days_without_source(segments, first, last_needed):
        raise CatalogError(_no_items(request, "weather", f"{first} to {last_needed}"))
    source = single_task(
        partial(_combine, starts, sum(store.name == era5.BANDS[0] for store in found)),
        [
            (stores.read_store, (store, request.bounds, first, last, request.on_error))
            for store in sorted(found, key=lambda store: era5.BANDS.index(store.name))
        ],
        label="era5-native",
    )
    stack = from_blocks(
        weather.regrid_weather,
        request.geobox,
        request.chunks,
        bands=len(era5.BANDS),
        along=starts.size,
        source=source,
        label="era5",
    )
    for k, name in enumerate(era5.BANDS):
        part.data[name] = band(stack, k)
        part.items[name] = [store.id for store in found if store.name == name]
    if any(store.fill_within for store in found):
        filled = from_blocks(
            weather.regrid_filled,
            request.geobox,
            request.chunks,
            bands=1,
            source=source,
            label="era5-filled",
        )
        part.data["weather_filled"] = band(filled, 0)
        part.items["weather_filled"] = [store.id for store in found if store.fill_within]
    part.sources += [segment.source for segment in segments]


def _days_without_source(segments: Iterable[Segment], first: date, last: date) -> bool:
    """Whether the sources leave days out that are needed."""
    for segment in segments:
        if segment.start > first:
            break
        first = segment.end + timedelta(1)
    return first <= last


def _combine(
    starts: npt.NDArray[np.datetime64], count: int, sums: list[stores.DailySums | None]
) -> weather.NativeWeather:
    return weather.combine(sums[:count], sums[count:], starts)


def _no_items(request: Request, group: str, days: str) -> str:
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
    request: Request, sources: list[Source], excluded: list[sentinel1.Excluded]
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
