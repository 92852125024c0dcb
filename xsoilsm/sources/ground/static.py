"""Step 3 of 7 (load): terrain, soil and land cover as lazy arrays; what no date changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from xsoilsm.catalog import Catalog, Segment
from xsoilsm.facts import DemSource, Source
from xsoilsm.sources.access.search import Bounds
from xsoilsm.sources.ground import landcover, soil, terrain
from xsoilsm.sources.ground.layers import read_layers
from xsoilsm.sources.pixels.graph import Chunks, band, from_blocks

__all__ = ["StaticGroup", "find_static"]


@dataclass(frozen=True)
class StaticGroup:
    """One group of variables that do not change.

    Parameters
    ----------
    name : {"terrain", "soil", "landcover"}
    bands : tuple of str
        Variables of the cube.
    reader : callable
        Reads the records on a GeoBox.
    records : tuple
        Items, as they travel in a graph.
    sources : tuple of Source
        Those that the items are of.
    items : dict of str to list of str
        Identifiers by variable.
    notes : dict of str to dict
        Further attributes by variable.
    """

    name: str
    bands: tuple[str, ...]
    reader: Callable[..., npt.NDArray[np.float32]]
    records: tuple[Any, ...]
    sources: tuple[Source, ...]
    items: dict[str, list[str]]
    notes: dict[str, dict[str, str]] = field(default_factory=dict)

    def arrays(
        self, geobox: GeoBox, chunks: Chunks, on_error: str, cache: bool
    ) -> dict[str, da.Array]:
        """Variables of the cube as arrays (y, x). Lazy: reads nothing.

        Parameters
        ----------
        geobox : GeoBox
        chunks : (y chunks, x chunks)
        on_error : {"flag", "raise"}
        cache : bool
            Keep what was read, see :mod:`xsoilsm.sources.ground.layers`.

        Returns
        -------
        dict of str to dask Array of float32
            With one more, ``<name>_failed``: above zero where a file could not be read and a
            variable is missing.
        """
        stack = from_blocks(
            partial(_read, self.reader, self.records, on_error=on_error, cache=cache),
            geobox,
            chunks,
            bands=len(self.bands) + 1,
            label=self.name,
        )
        return {name: band(stack, k) for k, name in enumerate((*self.bands, f"{self.name}_failed"))}


def _read(
    reader: Any, records: tuple[Any, ...], target: GeoBox, on_error: str, cache: bool
) -> npt.NDArray[np.float32]:
    """Read the bands of a group, and one more: cells that miss one because a read failed."""
    try:
        values = read_layers(reader, records, target, "raise", cache=cache)
        failed = np.zeros(values.shape[1:], dtype=bool)
    except OSError:
        if on_error == "raise":
            raise
        values = reader(records, target, on_error)
        failed = np.isnan(values).any(axis=0)
    return np.concatenate([values, failed[None].astype(np.float32)])


def find_static(catalog: Catalog, group: str, bounds: Bounds) -> StaticGroup | None:
    """Search a group that does not change. Asks the services; reads no pixel.

    Parameters
    ----------
    catalog : Catalog
    group : {"terrain", "soil", "landcover"}
    bounds : (west, south, east, north)
        In degrees.

    Returns
    -------
    StaticGroup or None
        None where no source has anything there. Terrain takes all sources, in order of
        preference; the other groups take the first that has the region.
    """
    sources = catalog.sources.get(group, ())
    if group == "terrain":
        return _find_terrain(catalog, sources, bounds)
    for source in sources:
        segment = _always(source)
        if group == "soil":
            layers = tuple(soil.find_soil(catalog, segment, bounds))
            names = {n: [x.id for x in layers if x.variable == n] for n in soil.BANDS}
            if layers:
                return StaticGroup(group, soil.BANDS, soil.read_soil, layers, (source,), names)
        else:
            tiles = tuple(landcover.find_landcover(catalog, segment, bounds))
            names = {name: [tile.id for tile in tiles] for name in landcover.BANDS}
            reader = landcover.read_landcover
            if tiles:
                return StaticGroup(group, landcover.BANDS, reader, tiles, (source,), names)
    return None


def _find_terrain(
    catalog: Catalog, sources: tuple[Source, ...], bounds: Bounds
) -> StaticGroup | None:
    found = [
        (source, terrain.find_dem(catalog, _always(source), bounds, rank))
        for rank, source in enumerate(sources)
    ]
    used = tuple(source for source, tiles in found if tiles)
    tiles = tuple(tile for _, some in found for tile in some)
    if not tiles:
        return None
    datums = [f"{s.collection}: {s.datum}" for s in used if isinstance(s, DemSource) and s.datum]
    notes = {
        "elevation": {
            "models": " > ".join(source.collection for source in used),
            **({"vertical_datum": "; ".join(datums)} if datums else {}),
        }
    }
    names = {name: [tile.id for tile in tiles] for name in terrain.BANDS}
    return StaticGroup("terrain", terrain.BANDS, terrain.read_terrain, tiles, used, names, notes)


def _always(source: Source) -> Segment:
    """All days, for what does not change."""
    return Segment(source=source, start=date(1950, 1, 1), end=date(2100, 1, 1))
