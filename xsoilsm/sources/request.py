"""Step 3 of 7 (load): what is to be loaded, checked once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal

from odc.geo.geobox import GeoBox

from xsoilsm import grid
from xsoilsm.catalog import Catalog, open_catalog
from xsoilsm.sources.access.search import Bounds, lonlat_bounds
from xsoilsm.sources.availability import Asof, Moment, moment_of
from xsoilsm.sources.pixels.graph import Chunks, spatial_chunks
from xsoilsm.timespan import Time, days_of

__all__ = ["OnError", "Request", "make_request", "nothing_found"]

_CHUNK = {"9km": 16, "1km": 64, "500m": 64, "100m": 256}  # cells along a side

OnError = Literal["flag", "raise"]


@dataclass(frozen=True)
class Request:
    """What is to be loaded; `moment` is given where only what had come by then counts."""

    catalog: Catalog
    geobox: GeoBox
    bounds: Bounds
    chunks: Chunks
    start: date
    end: date
    on_error: OnError
    mask_ndvi: bool
    cache: bool
    moment: Moment | None = None


def make_request(
    geobox: GeoBox,
    time: Time,
    catalog: str | os.PathLike[str] | Catalog,
    *,
    chunks: int | tuple[int, int] | Mapping[str, int] | None = None,
    on_error: OnError = "flag",
    mask_ndvi: bool = False,
    cache: bool = True,
    asof: Asof | None = None,
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
        moment=None if asof is None else moment_of(asof),
    )


def nothing_found(request: Request, group: str, days: str) -> str:
    """Say that a group of sources has nothing for a region and days. Lazy: reads nothing."""
    west, south, east, north = request.bounds
    return (
        f"no {group} for {days} over ({west:.4f}, {south:.4f}, {east:.4f}, {north:.4f}) in the "
        f"catalog '{request.catalog.name}', which takes it from "
        f"{request.catalog.describe(group)}; name a further source in the catalog, or choose "
        "another time or region"
    )


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
