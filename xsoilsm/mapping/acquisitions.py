"""Step 7 of 7 (write): the passes over a region, by name and with one time for all tiles.

A tile knows only the slices that touch it, and would give a pass the mean time of those. For a
job a pass has the mean time of all its slices over the region, and a name made of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shapely

from xsoilsm.mapping.inputs import Entry, narrowed
from xsoilsm.sources.access.search import lonlat_bounds
from xsoilsm.sources.availability import moment_of
from xsoilsm.sources.sentinel1.passes import Pass, find_radar

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

__all__ = ["Acquisition", "find_acquisitions"]


@dataclass(frozen=True)
class Acquisition:
    """One pass over the region.

    Parameters
    ----------
    id : str
        For instance ``"20200405T062633_S1B_D154"``.
    time : str
        Second of the overpass in UTC, ISO form, the same in all tiles.
    platform : str
    relative_orbit : int
    orbit_state : str
    items : tuple of (str, str)
        Identifiers of the slices, with their footprints in degrees as WKT.
    """

    id: str
    time: str
    platform: str
    relative_orbit: int
    orbit_state: str
    items: tuple[tuple[str, str], ...]

    @cached_property
    def footprints(self) -> Any:
        """Footprints of the slices as an array of shapely geometries."""
        return shapely.from_wkt([text for _, text in self.items])

    def items_over(self, place: Any) -> tuple[str, ...]:
        """Name the slices that touch a shapely geometry in degrees."""
        touching = shapely.intersects(self.footprints, place)
        return tuple(name for (name, _), yes in zip(self.items, touching, strict=True) if yes)


def find_acquisitions(
    inputs: Path,
    entries: Sequence[Entry],
    geobox: GeoBox,
    days: tuple[date, date],
    region: Any,
    asof: str | None = None,
) -> tuple[list[Acquisition], list[tuple[str, str]]]:
    """Find the passes over a region, each with one time for all tiles.

    Computes: reads the items that were kept, and annotations where these tell the place.

    Parameters
    ----------
    inputs : Path
        Folder of the items.
    entries : sequence of Entry
    geobox : GeoBox
        Whole cells around the region.
    days : (date, date)
        First and last day, UTC.
    region : shapely geometry
        In degrees.
    asof : str, optional
        Leave out what had not come by then.

    Returns
    -------
    acquisitions : list of Acquisition
        By time.
    excluded : list of (str, str)
        Items that were left out, with the reason.

    Raises
    ------
    CatalogError
        When there is none.
    """
    items = [(e.service, e.collection, e.file) for e in entries]
    bounds = lonlat_bounds(geobox)
    with narrowed(inputs, items) as catalog:
        passes, excluded, _ = find_radar(catalog, bounds, *days)
        late: dict[str, str] = {}
        if asof is not None:
            moment = moment_of(asof)
            whole = _slices(passes)
            passes, excluded, _ = find_radar(catalog, bounds, *days, moment)
            absent = sorted(whole - _slices(passes))
            late = dict.fromkeys(absent, f"had not come by {moment.text}")
    found: list[Acquisition] = []
    for one in passes:
        second = str(one.time.astype("datetime64[s]"))
        platform = re.sub(r"[^A-Z0-9]", "", re.sub("^SENTINEL-?", "S", one.platform.upper()))
        stamp = second.replace("-", "").replace(":", "")
        name = f"{stamp}_{platform}_{one.orbit_state[:1].upper()}{one.relative_orbit:03d}"
        shapes = [(s.id, shapely.to_wkt(shapely.from_wkb(s.footprint))) for s in one.slices]
        found.append(
            Acquisition(
                id=name,
                time=second,
                platform=one.platform,
                relative_orbit=int(one.relative_orbit),
                orbit_state=one.orbit_state,
                items=tuple(shapes),
            )
        )
    over = [a for a in found if a.items_over(region)]
    return over, [*((x.id, x.reason) for x in excluded), *late.items()]


def _slices(passes: Sequence[Pass]) -> set[str]:
    return {piece.id for one in passes for piece in one.slices}
