"""Step 3 of 7 (load): from a region and a time to a cube, through a catalog.

The catalog's services are searched at once, so that errors come early and only the items that
touch the region enter the graph; pixels are read when the cube is computed, one task per chunk
and acquisition for radar and one task per chunk for everything else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from xsoilsm import grid, periods
from xsoilsm.catalog import Catalog, CatalogError
from xsoilsm.cube import VARIABLES, InputFlag, SourceFlag, spatial_coords
from xsoilsm.facts import OPTIONAL_GROUPS, Source
from xsoilsm.sources.access.search import joined
from xsoilsm.sources.availability import Asof
from xsoilsm.sources.ground.static import StaticGroup, find_static
from xsoilsm.sources.request import OnError, Request, make_request, nothing_found
from xsoilsm.sources.sentinel1.acquisitions import Excluded
from xsoilsm.sources.sentinel1.grd import GrdAcquisition
from xsoilsm.sources.sentinel1.passes import Pass, find_radar, radar_arrays
from xsoilsm.sources.series import era5, modis
from xsoilsm.sources.series.arrays import find_series
from xsoilsm.timespan import Time

__all__ = ["load_cube"]


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
    asof: Asof | None = None,
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
        "read failed" in ``source_flags`` (radar) or the bit of their group in ``inputs_failed``
        (all else), or computing raises an OSError.
    mask_ndvi : bool, default False
        Leave out pixels of NDVI that their producer calls snow or cloud, and fill in time what
        that leaves empty. The networks were trained without a mask.
    cache : bool, default True
        Keep terrain, soil and land cover of each chunk on disk, in the folder ``layers`` of
        `xsoilsm.catalog.cache_dir`, and look there first: for cubes of the same region and
        chunks at other times. Only what was read over the network is kept, up to 2 GB (or
        ``$XSOILSM_LAYERS_MB``); `xsoilsm.sources.ground.layers.clear_layers` removes it.

    asof : str, date, datetime or datetime64, optional
        Use only what had come by then, as an operator would have had it: ``"2020-05-01T06:00"``
        in UTC, or a day, which stands for its end. Of each source that is what its latency in
        the catalog allows, see `xsoilsm.sources.availability`. By default everything counts that
        the archives hold now, as in training.

    Returns
    -------
    Dataset
        The cube in map form: radar (time, y, x), series (period, y, x), terrain, soil and land
        cover (y, x), with ``coverage``, ``source_flags``, ``ndvi_filled`` and ``inputs_failed``.
        Periods begin 45 before that of the first acquisition, so that each sees 46. The coordinate
        ``sigma0_from`` tells for each acquisition how sigma nought was obtained, and
        ``incidence_from`` where the incidence angle comes from: the annotation of the product,
        a layer on its pixels, or other passes of the track.

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
        asof=asof,
    )
    acquisitions, excluded, sources = find_radar(
        request.catalog, request.bounds, request.start, request.end, request.moment
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
    excluded: list[Excluded] = field(default_factory=list)


def along_time(acquisitions: Iterable[Pass]) -> dict[str, xr.Variable]:
    """Coordinates of acquisitions. Lazy: reads nothing."""
    known = list(acquisitions)
    when = np.array([a.time for a in known], dtype="datetime64[ns]")
    names = "relative_orbit", "orbit_state", "platform", "sigma0_from", "incidence_from"
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
    sky = find_series(request, starts, last, frozenset(given))
    data: dict[str, Any] = {**scene.data, **sky.data, **static}
    if set(data) & set(_FAILURES):
        data["inputs_failed"] = _inputs_failed(data)
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


_FAILURES = {
    "ndvi_filled": InputFlag.NDVI,
    "weather_failed": InputFlag.WEATHER,
    "terrain_failed": InputFlag.TERRAIN,
    "soil_failed": InputFlag.SOIL,
    "landcover_failed": InputFlag.LANDCOVER,
}
"""Arrays that tell failed reads, and the bits for them."""


def _inputs_failed(data: Mapping[str, da.Array]) -> da.Array:
    """Bits of the groups of which a file could not be read. Lazy: reads nothing."""
    known = [name for name in _FAILURES if name in data]
    pairs: list[Any] = []
    for name in known:
        pairs += [data[name], "pyx" if name == "ndvi_filled" else "yx"]
    bits: da.Array = da.blockwise(
        _failed_bits,
        "yx",
        *pairs,
        names=known,
        concatenate=True,
        dtype=np.uint8,
        meta=np.empty((0, 0), dtype=np.uint8),
    )
    return bits


def _failed_bits(*blocks: npt.NDArray[Any], names: list[str]) -> npt.NDArray[np.uint8]:
    flags = np.zeros(blocks[0].shape[-2:], dtype=np.uint8)
    for name, block in zip(names, blocks, strict=True):
        at = (block == modis.FILLED_AFTER_FAILURE).any(0) if name == "ndvi_filled" else block > 0
        flags[at] |= np.uint8(_FAILURES[name])
    return flags


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
            raise CatalogError(nothing_found(request, group, "any time"))
    return found


def static_arrays(request: Request, ground: Mapping[str, StaticGroup]) -> dict[str, da.Array]:
    """Variables (y, x) of groups that do not change. Lazy: reads nothing."""
    arrays: dict[str, da.Array] = {}
    for group in ground.values():
        arrays |= group.arrays(request.geobox, request.chunks, request.on_error, request.cache)
    return arrays


def _attributes(name: str, items: Iterable[str], sigma0_from: str) -> dict[str, Any]:
    attributes: dict[str, Any] = dict(VARIABLES[name].attributes)
    attributes["grid_mapping"] = "spatial_ref"
    attributes["items"] = " ".join(dict.fromkeys(items))
    if name.startswith("sigma0_"):
        attributes |= {"sigma0_from": sigma0_from, "averaging": "dB"}
    if name in ("source_flags", "inputs_failed"):
        flags = SourceFlag if name == "source_flags" else InputFlag
        bits = {k.lower(): v for k, v in vars(flags).items() if k.isupper()}
        attributes["flag_masks"] = np.array(list(bits.values()), dtype=np.uint8)
        attributes["flag_meanings"] = " ".join(bits)
    if name == "ndvi_filled":
        attributes["flag_values"] = np.array(
            [0, modis.FILLED, modis.FILLED_AFTER_FAILURE], dtype=np.uint8
        )
        attributes["flag_meanings"] = "observed filled_in_time filled_after_failed_read"
    return attributes


def _provenance(
    request: Request, sources: list[Source], excluded: list[Excluded]
) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "Conventions": "CF-1.11",
        "title": "Inputs of a soil moisture retrieval",
        "source": f"catalog '{request.catalog.name}' ({request.catalog.title})",
        "licence": joined([f"{s.collection}: {s.licence}" for s in sources]),
        "citation": joined([s.citation for s in sources]),
    }
    attributes["availability"] = "archive: all that the sources hold, as in training"
    if request.moment is not None:
        latencies = [f"{s.collection} {s.latency:g} d" for s in sources if s.latency is not None]
        attributes["asof"] = request.moment.text
        attributes["availability"] = f"as of {attributes['asof']}, latencies: {joined(latencies)}"
    if excluded:
        attributes["excluded_items"] = joined([f"{x.id} ({x.reason})" for x in excluded])
    return attributes
