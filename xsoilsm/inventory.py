"""Step 2 of 7 (find): what a catalog has for a region and a time, before a pixel is read.

The catalog's services are asked for items, and stores of weather that the catalog names itself
for their time axis. What cannot be asked is a row with the reason, so that one provider that
does not answer hides nothing of the others. Series are looked at over the days that a cube
needs: from 45 periods before the first acquisition to the last one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from xsoilsm import grid, periods
from xsoilsm.catalog import Catalog, CatalogError, Segment, open_catalog
from xsoilsm.facts import GROUPS, OPTIONAL_GROUPS, Sentinel1GrdSource, Sentinel1RtcSource
from xsoilsm.sources.access.search import (
    Bounds,
    find_items,
    footprint_of,
    item_span,
    lonlat_bounds,
    utc_naive,
)
from xsoilsm.sources.sentinel1.acquisitions import complete, passes_of, reason_to_exclude
from xsoilsm.sources.series.era5 import BANDS, find_stores, missing_days
from xsoilsm.sources.series.modis import Composite, find_composites
from xsoilsm.timespan import Time, days_of

if TYPE_CHECKING:
    import pandas as pd
    import pystac

__all__ = ["describe", "search"]

REPEAT = 12
"""Days after which one Sentinel-1 satellite is on the same track again."""

_NEVER = np.datetime64("NaT", "s")
_EVER = date(1950, 1, 1), date(2100, 1, 1)

Stretch = tuple[date, date]


@dataclass
class _Row:
    """One row of the table; the fields are its columns."""

    group: str
    source: str
    platform: str = ""
    orbit: str = ""
    variable: str = ""
    items: int = 0
    first: np.datetime64 = _NEVER
    last: np.datetime64 = _NEVER
    covered: float = np.nan
    gaps: tuple[str, ...] = ()
    dates: tuple[np.datetime64, ...] = ()


def search(
    region: tuple[float, float, float, float] | GeoBox,
    time: Time,
    catalog: str | os.PathLike[str] | Catalog = "planetary-computer",
) -> pd.DataFrame:
    """Tell what a catalog has for a region and a time.

    Computes: searches the catalog's services, reads no pixel.

    Parameters
    ----------
    region : (west, south, east, north) or GeoBox
        Degrees; or a block of cells.
    time : str, (start, end) or slice
        Days of acquisitions in UTC, as for :func:`xsoilsm.load_cube`.
    catalog : str, path or Catalog, default "planetary-computer"
        See :func:`xsoilsm.open_catalog`.

    Returns
    -------
    DataFrame
        One row a source and track, platform or variable: ``group``, ``source``, ``platform``,
        ``orbit`` (relative orbit and direction), ``variable``, ``items``, ``first`` and
        ``last`` (UTC), ``covered`` (share of the region within the footprints, of passes the
        mean), ``gaps`` (tuple of str, with the items that are left out and why) and ``dates``
        (tuple: passes, starts of composites).

    Raises
    ------
    CatalogError
        When there is no such catalog.
    ValueError
        When the region or the time cannot be understood, or is empty.

    Examples
    --------
    >>> from xsoilsm import search
    >>> table = search((4.0, 43.0, 4.3, 43.2), "2020-06", "demo")  # doctest: +SKIP
    """
    import pandas as pd

    geobox = region if isinstance(region, GeoBox) else grid.ease2_geobox(region, "1km")
    bounds = lonlat_bounds(geobox)
    start, end = days_of(time)
    opened = catalog if isinstance(catalog, Catalog) else open_catalog(catalog)
    rows = list(_radar(opened, bounds, start, end))
    passes = sorted(instant for row in rows for instant in row.dates)
    first, last = (passes[0], passes[-1]) if passes else map(np.datetime64, (start, end))
    starts = periods.period_starts(
        periods.preceding_period(first, periods.PERIODS_PER_YEAR - 1), last
    )
    rows += _ndvi(opened, bounds, starts)
    rows += _weather(opened, bounds, _day(starts[0]), _day(last))
    for group in (*GROUPS, *OPTIONAL_GROUPS):
        if group in opened.sources and group not in ("radar", "ndvi", "weather"):
            rows += _static(opened, group, bounds)
    table = pd.DataFrame([vars(row) for row in rows])
    for column in ("first", "last"):
        table[column] = pd.to_datetime(table[column])
    return table


def describe(table: pd.DataFrame) -> str:
    """Write the table of :func:`search` as text, with all dates of passes and all gaps.

    Parameters
    ----------
    table : DataFrame

    Returns
    -------
    str
    """
    import textwrap

    brief = table.drop(columns=["gaps", "dates"])
    for column in ("first", "last"):
        brief[column] = table[column].dt.strftime("%Y-%m-%d").fillna("")
    brief["covered"] = [
        "" if np.isnan(share) else f"{share:.0%}" for share in table["covered"].tolist()
    ]
    brief["gaps"] = [str(len(gaps)) if gaps else "" for gaps in table["gaps"]]
    lines = [brief.to_string(index=False)]
    for title, column in (("passes (UTC)", "dates"), ("gaps", "gaps")):
        for row in table.to_dict("records"):
            if not row[column] or (column == "dates" and row["group"] != "radar"):
                continue
            names = (row[c] for c in ("source", "platform", "orbit", "variable"))
            lines += ["", f"{title}: {row['group']} {' '.join(n for n in names if n)}"]
            if column == "dates":
                text = ", ".join(str(d)[:16].replace("T", " ") for d in row[column])
                lines += textwrap.wrap(text, 98, initial_indent="  ", subsequent_indent="  ")
            else:
                lines += [f"  {gap}" for gap in row[column]]
    return "\n".join(lines)


def _day(instant: np.datetime64) -> date:
    return date.fromisoformat(str(instant.astype("datetime64[D]")))


def _segments(catalog: Catalog, group: str, start: date, end: date) -> Iterator[Segment | _Row]:
    """Yield the sources of some days, and rows for the days without any."""
    day = start
    for segment in catalog.segments(group, start, end):
        if segment.start > day:
            yield _without_source(group, (day, segment.start - timedelta(1)))
        yield segment
        day = segment.end + timedelta(1)
    if day <= end:
        yield _without_source(group, (day, end))


def _without_source(group: str, stretch: Stretch) -> _Row:
    return _Row(group, "(none)", gaps=(f"{_text(stretch)}: no source in the catalog",))


def _text(stretch: Stretch) -> str:
    """Days in words; whole months as months."""
    first, last = stretch
    if first.day == 1 and (last + timedelta(1)).day == 1:
        ends = [f"{day:%Y-%m}" for day in stretch]
    else:
        ends = [str(day) for day in stretch]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


# --------------------------------------------------------------------------- radar


def _radar(catalog: Catalog, bounds: Bounds, start: date, end: date) -> Iterator[_Row]:
    for segment in _segments(catalog, "radar", start, end):
        if isinstance(segment, _Row):
            yield segment
            continue
        source = segment.source
        try:
            items = find_items(
                catalog.service_of(source), source.collection, bounds, segment.start, segment.end
            )
            yield from _tracks(items, segment, bounds)
        except CatalogError as error:
            yield _Row("radar", source.collection, gaps=(str(error),))


def _tracks(items: Sequence[pystac.Item], segment: Segment, bounds: Bounds) -> Iterator[_Row]:
    source = segment.source
    if not isinstance(source, Sentinel1RtcSource | Sentinel1GrdSource):
        msg = f"source of kind '{source.kind}' is not Sentinel-1"
        raise CatalogError(msg)
    if isinstance(source, Sentinel1RtcSource):
        complete(items, source)
    tracks: dict[tuple[str, str], list[pystac.Item]] = {}
    for item in items:
        tracks.setdefault(_track_of(item), []).append(item)
    if not tracks:
        days = _text((segment.start, segment.end))
        yield _Row("radar", source.collection, gaps=(f"{days}: no acquisitions",))
    for (platform, orbit), found in sorted(tracks.items()):
        reasons = {item.id: reason_to_exclude(item, source) for item in found}
        passes = passes_of([item for item in found if not reasons[item.id]])
        passes.sort(key=lambda slices: item_span(slices[0])[0])
        times = [utc_naive(item_span(slices[0])[0]).astype("datetime64[s]") for slices in passes]
        edges = [segment.start - timedelta(1), *map(_day, times), segment.end + timedelta(1)]
        pauses = [
            f"{_text((before + timedelta(1), after - timedelta(1)))}: no pass on this track"
            for before, after in pairwise(edges)
            if (after - before).days > REPEAT
        ]
        left_out = [
            f"{item_span(item)[0].date()}: {item.id} is left out, {reasons[item.id]}"
            for item in found
            if reasons[item.id]
        ]
        yield _Row(
            "radar",
            source.collection,
            platform,
            orbit,
            items=sum(map(len, passes)),
            first=min(times, default=_NEVER),
            last=max(times, default=_NEVER),
            covered=float(np.mean([_share(p, bounds) for p in passes])) if passes else 0.0,
            gaps=(*pauses, *left_out),
            dates=tuple(times),
        )


def _track_of(item: pystac.Item) -> tuple[str, str]:
    properties = item.properties
    orbit = f"{properties.get('sat:relative_orbit', '?')} {properties.get('sat:orbit_state', '')}"
    return str(properties.get("platform", "")), orbit.strip()


def _share(items: Iterable[pystac.Item], bounds: Bounds) -> float:
    return _covered([footprint_of(item) for item in items], bounds)


def _covered(footprints: Sequence[bytes], bounds: Bounds) -> float:
    """Share of the bounds, in square degrees, that footprints cover."""
    import shapely

    box = shapely.box(*bounds)
    whole = shapely.union_all(shapely.from_wkb(list(footprints)))
    return float(min(shapely.area(shapely.intersection(box, whole)) / shapely.area(box), 1.0))


# --------------------------------------------------------------------------- series


def _ndvi(catalog: Catalog, bounds: Bounds, starts: npt.NDArray[np.datetime64]) -> Iterator[_Row]:
    for segment in _segments(catalog, "ndvi", _day(starts[0]), _day(starts[-1])):
        if isinstance(segment, _Row):
            yield segment
            continue
        source = segment.source
        inside = (starts >= np.datetime64(segment.start)) & (starts <= np.datetime64(segment.end))
        wanted = starts[inside]
        try:
            found = find_composites(catalog, segment, bounds, wanted)
        except CatalogError as error:
            yield _Row("ndvi", source.collection, gaps=(str(error),))
            continue
        # Terra begins on days 1, 17, ... of a year and Aqua on those between.
        of_terra = (wanted - wanted.astype("datetime64[Y]")).astype(int) % 16 == 0
        for platform, own in (("terra", wanted[of_terra]), ("aqua", wanted[~of_terra])):
            chosen = [c for c in found if c.start in own]
            dates = tuple(sorted({c.start.astype("datetime64[s]") for c in chosen}))
            yield _Row(
                "ndvi",
                source.collection,
                platform,
                items=len(chosen),
                first=min(dates, default=_NEVER),
                last=max(dates, default=_NEVER),
                covered=_covered([c.footprint for c in chosen], bounds) if chosen else 0.0,
                gaps=tuple(_missing_periods(chosen, found, own)),
                dates=dates,
            )


def _missing_periods(
    chosen: Sequence[Composite], found: Sequence[Composite], own: npt.NDArray[np.datetime64]
) -> Iterator[str]:
    """Name the runs of periods of one platform that a tile lacks."""
    tiles = sorted({composite.tile for composite in found}) or [""]
    for tile in tiles:
        held = {composite.start for composite in chosen if composite.tile == tile}
        missing = np.array([start not in held for start in own], dtype=bool)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], missing, [False]])))
        for first, after in zip(edges[::2], edges[1::2], strict=True):
            count = int(after - first)
            days = str(own[first]) if count == 1 else f"{own[first]} to {own[after - 1]}"
            where = f" of tile {tile}" if len(tiles) > 1 else ""
            yield f"{days}: {count} composite{'s' * (count > 1)}{where} missing"


def _weather(catalog: Catalog, bounds: Bounds, first: date, last: date) -> Iterator[_Row]:
    for segment in _segments(catalog, "weather", first, last):
        if isinstance(segment, _Row):
            yield segment
            continue
        name = segment.source.collection
        try:
            found = find_stores(catalog, segment, bounds, None)
        except CatalogError as error:
            yield _Row("weather", name, gaps=(str(error),))
            continue
        for variable in BANDS:
            own = [store for store in found if store.name == variable]
            gaps = missing_days(own, segment.start, segment.end)
            yield _Row(
                "weather",
                name,
                variable=variable,
                items=len({store.id for store in own}),
                first=min((store.first for store in own), default=_NEVER),
                last=max((store.last for store in own), default=_NEVER),
                gaps=tuple(f"{_text(gap)}: missing" for gap in gaps),
            )


# --------------------------------------------------------------------------- ground


def _static(catalog: Catalog, group: str, bounds: Bounds) -> Iterator[_Row]:
    for source in catalog.sources[group]:
        try:
            items = find_items(catalog.service_of(source), source.collection, bounds, *_EVER)
        except CatalogError as error:
            yield _Row(group, source.collection, gaps=(str(error),))
            continue
        covered = _share(items, bounds) if items else 0.0
        missing: tuple[str, ...] = ()
        if covered < 0.9999:
            missing = (f"{1 - covered:.0%} of the region lies outside of the items",)
        yield _Row(group, source.collection, items=len(items), covered=covered, gaps=missing)
