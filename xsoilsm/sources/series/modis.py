"""Step 3 of 7 (load): NDVI of Terra and Aqua on the 46 fixed periods of a year.

Composites of Terra start on days 1, 17, ..., 353 of a year and those of Aqua on days 9, 25,
..., 361, so together they give one value for each eight-day period. Stored integers become
NDVI, the area mean follows, and periods without a valid composite are filled linearly in time;
at either end the nearest value holds. No quality mask is applied, as in training, unless the
user asks for one: then only pixels whose reliability is of the classes that the catalog names
count (0 good, 1 marginal, 2 snow or ice, 3 cloudy, -1 fill).

Source: MOD13 user guide, collection 6.1 (Didan and Munoz 2019), scale 0.0001, fill -3000.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xsoilsm.catalog import Catalog, CatalogError, Segment
from xsoilsm.facts import Band, ModisSource
from xsoilsm.sources.access.links import Access, access_of
from xsoilsm.sources.access.search import (
    Bounds,
    find_items,
    footprint_of,
    item_span,
    lonlat_bounds,
    overlaps,
)
from xsoilsm.sources.pixels.reading import (
    CellSums,
    NativeReader,
    Patch,
    Raster,
    native_windows,
    to_physical,
)

if TYPE_CHECKING:
    import pystac
    from odc.geo.geobox import GeoBox

__all__ = [
    "FILLED",
    "FILLED_AFTER_FAILURE",
    "Composite",
    "fill_in_time",
    "find_composites",
    "read_ndvi",
]

FILLED = 1
"""Value of ``ndvi_filled`` where a period had no valid composite."""

FILLED_AFTER_FAILURE = 2
"""Value of ``ndvi_filled`` where the composite of a period could not be read."""

BLOCK = 512
"""Longest side in native pixels of a window."""

READERS = 4
"""Composites of a chunk that are read at once over a network."""

BATCH = 16_000_000
"""Pixels that are held before they are brought to the target."""

Floats = npt.NDArray[np.float32]

_PLATFORMS = {"MOD13Q1": "terra", "MYD13Q1": "aqua"}


@dataclass(frozen=True)
class Composite:
    """NDVI of one tile and period, as it travels in a graph.

    Parameters
    ----------
    id : str
    start : datetime64[D]
        First day of the period.
    platform : str
        ``"terra"`` or ``"aqua"``.
    tile : str
        Composites of one tile share their grid.
    raster : Raster
    band : Band
    footprint : bytes
        WKB in lon/lat.
    reliability : Raster, optional
        Classes of the pixels, where they are to be masked.
    keep : tuple of int
        Classes that count.
    """

    id: str
    start: np.datetime64
    platform: str
    tile: str
    raster: Raster
    band: Band
    footprint: bytes
    reliability: Raster | None = None
    keep: tuple[int, ...] = ()

    @property
    def rasters(self) -> tuple[Raster, ...]:
        """Files that are read."""
        return (self.raster,) if self.reliability is None else (self.raster, self.reliability)


def find_composites(
    catalog: Catalog,
    segment: Segment,
    bounds: Bounds,
    starts: npt.NDArray[np.datetime64],
    *,
    mask: bool = False,
) -> list[Composite]:
    """Search the composites of a region. Asks the service; reads no pixel.

    Parameters
    ----------
    catalog : Catalog
    segment : Segment
        A source of NDVI and its days.
    bounds : (west, south, east, north)
        In degrees.
    starts : (period,) ndarray of datetime64[D]
        Periods that are wanted.
    mask : bool, default False
        Whether only reliable pixels are to count.

    Returns
    -------
    list of Composite
        By time and tile; of several versions of a composite the latest.

    Raises
    ------
    CatalogError
        When a mask is asked for and the catalog or an item has no reliability.
    """
    source = segment.source
    if not isinstance(source, ModisSource):
        msg = f"source of kind '{source.kind}' is not MODIS"
        raise CatalogError(msg)
    service = catalog.service_of(source)
    access = access_of(service)
    wanted = set(starts.astype("datetime64[D]").tolist())
    latest: dict[tuple[date, str], Composite] = {}
    for item in find_items(service, source.collection, bounds, segment.start, segment.end):
        start = _start_of(item)
        # A composite that began before the days of this source belongs to the one before.
        served = segment.start <= start <= segment.end
        if start not in wanted or not served or source.ndvi.asset not in item.assets:
            continue
        composite = Composite(
            id=item.id,
            start=np.datetime64(start, "D"),
            platform=_platform_of(item),
            tile=_tile_of(item),
            raster=_raster(item, source.ndvi.asset, access, source),
            band=source.ndvi,
            footprint=footprint_of(item),
        )
        if mask:
            composite = _with_mask(composite, item, access, source)
        key = start, composite.tile
        # Identifiers end with the time of production.
        if key not in latest or latest[key].id < composite.id:
            latest[key] = composite
    return [latest[key] for key in sorted(latest)]


def _raster(item: pystac.Item, key: str, access: Access, source: ModisSource) -> Raster:
    asset = item.assets[key]
    return Raster(asset.get_absolute_href() or asset.href, access, source.crs)


def _with_mask(
    composite: Composite, item: pystac.Item, access: Access, source: ModisSource
) -> Composite:
    if source.reliability is None or source.reliability.asset not in item.assets:
        missing = (
            f"'{source.collection}' has no `reliability` in the catalog"
            if source.reliability is None
            else f"item '{item.id}' has no asset '{source.reliability.asset}'"
        )
        msg = f"unreliable NDVI cannot be masked: {missing}; load without the mask"
        raise CatalogError(msg)
    raster = _raster(item, source.reliability.asset, access, source)
    return replace(composite, reliability=raster, keep=source.reliability.keep)


def _start_of(item: pystac.Item) -> date:
    """First day of a composite: the day in its name, else the item's first instant."""
    for part in item.id.split("."):
        if len(part) == 8 and part[0] == "A" and part[1:].isdigit():
            return date(int(part[1:5]), 1, 1) + timedelta(int(part[5:]) - 1)
    return item_span(item)[0].date()


def _platform_of(item: pystac.Item) -> str:
    stated = str(item.properties.get("platform") or "").lower()
    return stated or _PLATFORMS.get(item.id.split(".")[0], "")


def _tile_of(item: pystac.Item) -> str:
    properties = item.properties
    if "modis:horizontal-tile" in properties and "modis:vertical-tile" in properties:
        return f"h{properties['modis:horizontal-tile']:02d}v{properties['modis:vertical-tile']:02d}"
    parts = item.id.split(".")
    return parts[2] if len(parts) > 2 else item.id


def read_ndvi(
    composites: tuple[Composite, ...],
    starts: npt.NDArray[np.datetime64],
    target: GeoBox,
    on_error: str = "flag",
) -> Floats:
    """Read NDVI of all periods on a GeoBox. Computes: reads the pixels that it needs.

    Parameters
    ----------
    composites : tuple of Composite
    starts : (period,) ndarray of datetime64[D]
    target : GeoBox
        A chunk of the cube.
    on_error : {"flag", "raise"}
        What to do where a file cannot be read.

    Returns
    -------
    (2, period, y, x) ndarray of float32
        NDVI, and 0, :data:`FILLED` or :data:`FILLED_AFTER_FAILURE`.

    Raises
    ------
    OSError
        When a file cannot be read and `on_error` is ``"raise"``.
    """
    sums = CellSums(starts.size, target)
    failed = np.zeros(starts.size, dtype=bool)
    bounds = lonlat_bounds(target)
    near = [c for c in composites if overlaps(c.footprint, bounds, margin=0.01)]
    for tile in sorted({composite.tile for composite in near}):
        batch = _Batch(sums)
        for composite, read in _side_by_side([c for c in near if c.tile == tile], target):
            index = int(np.searchsorted(starts, composite.start))
            try:
                batch.add(*read(), index)
            except OSError:
                if on_error == "raise":
                    raise
                failed[index] = True
        batch.flush()
    mean, _ = sums.finish()
    filled = np.where(np.isnan(mean), np.float32(FILLED), np.float32(0))
    filled[failed] *= FILLED_AFTER_FAILURE
    return np.stack([fill_in_time(mean, starts), filled])


def _values(composite: Composite, stored: list[npt.NDArray[Any]], declared: float | None) -> Floats:
    """NDVI of a window, NaN where it has none or is masked."""
    values = to_physical(stored[0], composite.band, declared)
    if composite.reliability is not None:
        values[~np.isin(stored[1], composite.keep)] = np.nan
    return values


_Windows = tuple["GeoBox", list[Patch], list[Floats]]
"""Grid of a composite, and its windows with their values."""


def _read(composite: Composite, target: GeoBox) -> _Windows:
    """Read the windows of a composite that a GeoBox needs."""
    with NativeReader(composite.rasters) as reader:
        patches = list(native_windows(reader.geobox, target, BLOCK))
        values = [_values(composite, reader.read(p), reader.nodata[0]) for p in patches]
        return reader.geobox, patches, values


def _side_by_side(
    composites: list[Composite], target: GeoBox
) -> Iterator[tuple[Composite, Callable[[], _Windows]]]:
    """Read composites, several at once where they come over a network.

    Requests take much longer than pixels there, and a year is 46 files. Yields in order; the
    function gives what was read, or raises.
    """
    if not any("://" in c.raster.href for c in composites):
        for composite in composites:
            yield composite, partial(_read, composite, target)
        return
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="xsoilsm-ndvi")
    waiting: deque[tuple[Composite, Future[_Windows]]] = deque()
    try:
        for composite in composites:
            waiting.append((composite, pool.submit(_read, composite, target)))
            if len(waiting) >= READERS:
                first, future = waiting.popleft()
                yield first, future.result
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an error does not wait for the others


class _Batch:
    """Composites of one tile that are read first and brought to the target together.

    They share their grid, and finding which pixel lies in which cell costs more than summing.
    """

    def __init__(self, sums: CellSums) -> None:
        self._sums = sums
        self._geobox: GeoBox | None = None
        self._windows: list[tuple[Patch, dict[int, Floats]]] = []

    def add(self, geobox: GeoBox, patches: list[Patch], fresh: list[Floats], index: int) -> None:
        """Add a composite as period `index`; bring the batch to the target when it is full."""
        if geobox != self._geobox:
            self.flush()
            self._geobox = geobox
            self._windows = [(patch, {}) for patch in patches]
        for (_, rows), values in zip(self._windows, fresh, strict=True):
            rows[index] = values
        if sum(v.size for _, rows in self._windows for v in rows.values()) > BATCH:
            self.flush()

    def flush(self) -> None:
        """Bring what was read to the target."""
        for patch, rows in self._windows:
            if rows:
                first, last = min(rows), max(rows)
                values = np.full((last - first + 1, *patch.geobox.shape), np.nan, np.float32)
                for index, row in rows.items():
                    values[index - first] = row
                self._sums.add(values, patch, slice(first, last + 1))
                rows.clear()


def fill_in_time(values: Floats, starts: npt.NDArray[np.datetime64]) -> Floats:
    """Fill gaps along time linearly; at either end the nearest value holds.

    Parameters
    ----------
    values : (period, y, x) ndarray of float32
        NaN in gaps.
    starts : (period,) ndarray of datetime64[D]
        The last period of a year is shorter than the others, so days count, not periods.

    Returns
    -------
    (period, y, x) ndarray of float32
        NaN only where a cell has no value at all.
    """
    known = ~np.isnan(values)
    if known.all():
        return values
    day = (starts - starts[0]).astype("timedelta64[D]").astype(np.float64)
    number = np.arange(starts.size)[:, None, None]
    before = np.maximum.accumulate(np.where(known, number, -1), axis=0)
    after = np.minimum.accumulate(np.where(known, number, starts.size)[::-1], axis=0)[::-1]
    before, after = (
        np.where(before < 0, after, before),
        np.where(after == starts.size, before, after),
    )
    # A cell without any value points past the end; its own NaN comes back.
    before, after = np.minimum(before, starts.size - 1), np.clip(after, 0, starts.size - 1)
    left = np.take_along_axis(values, before, axis=0)
    right = np.take_along_axis(values, after, axis=0)
    span = day[after] - day[before]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(span > 0, (day[:, None, None] - day[before]) / span, 0.0)
    return np.where(known, values, left + (right - left) * share).astype(np.float32)
