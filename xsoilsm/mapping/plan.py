"""Step 7 of 7 (write): the products and tiles of a job, and the units in which they are made.

A *product* is one map of the region: an acquisition, or a composite of all acquisitions of a
period. A *tile* is a block of cells with a name that depends on its place alone. What the ledger
counts is a tile of a product. What is worked on at once is a *unit*: one tile and several of its
products in order of time, which share what they read of vegetation, weather and terrain. Units
follow from the configuration and the found items alone, never from what is done already, so a
tile has the same bytes whether its unit was made in one go or after many interruptions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import shapely
from odc.geo.geobox import GeoBox

from xsoilsm import grid, periods
from xsoilsm.mapping.acquisitions import Acquisition
from xsoilsm.mapping.inputs import select
from xsoilsm.mapping.job import COMPOSITES, Configuration, Job
from xsoilsm.mapping.region import cropped, is_box
from xsoilsm.sources.access.search import lonlat_bounds

if TYPE_CHECKING:
    from xsoilsm.ensemble import Ensemble

__all__ = ["UNIT_ACQUISITIONS", "UNIT_DAYS", "Plan", "Product", "Unit"]

UNIT_ACQUISITIONS = 32
"""Acquisitions that one unit may have; more only where a single product has more."""

UNIT_DAYS = 366
"""Days that one unit may span; they bound the memory that its series take."""


@dataclass(frozen=True)
class Product:
    """One map of the region.

    Parameters
    ----------
    id : str
        Name of its folder: that of the acquisition, or first day and length of the period, for
        instance ``"20200401P8D"``.
    time : str
        Second of the overpass in UTC, or first day of the period, ISO form.
    period : str
        Length of the period as an ISO 8601 duration; empty for an acquisition.
    acquisitions : tuple of Acquisition
        By time.
    """

    id: str
    time: str
    period: str
    acquisitions: tuple[Acquisition, ...]

    @property
    def days(self) -> tuple[date, date]:
        """Days of the first and the last acquisition."""
        first, last = self.acquisitions[0].time, self.acquisitions[-1].time
        return date.fromisoformat(first[:10]), date.fromisoformat(last[:10])


@dataclass(frozen=True)
class Unit:
    """One tile and several of its products: everything that a worker needs to make them.

    Parameters
    ----------
    folder : str
        Of the job.
    job_hash : str
    configuration : Configuration
    ensemble : Ensemble
    tile : str
        Name of the tile.
    geobox : GeoBox
    products : tuple of Product
        All that belong to the unit, with the acquisitions over the tile.
    wanted : tuple of str
        Identifiers of those that are to be made.
    items : tuple of (service, collection, file)
        Inputs of the job that lie near.
    """

    folder: str
    job_hash: str
    configuration: Configuration
    ensemble: Ensemble
    tile: str
    geobox: GeoBox
    products: tuple[Product, ...]
    wanted: tuple[str, ...]
    items: tuple[tuple[str, str, str], ...]

    @property
    def days(self) -> tuple[date, date]:
        """Days in which the slices of the acquisitions lie, whatever is wanted of them."""
        return _days_of(self.products)


class Plan:
    """Products, tiles and units of a job. Lazy: what it tells follows from the job's files.

    Parameters
    ----------
    job : Job
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        configuration = job.configuration
        self.products = tuple(_products(job.acquisitions, configuration.composite))

    @cached_property
    def tiles(self) -> dict[str, grid.Tile]:
        """Tiles that touch the region, with the rows and columns that it reaches, by name."""
        configuration = self.job.configuration
        region = configuration.polygon
        shapely.prepare(region)
        whole = is_box(region)
        cut = grid.tiles(configuration.geobox, configuration.tile_size)
        return {
            t.name: t if whole else replace(t, geobox=cropped(region, t.geobox))
            for t in cut
            if region.intersects(_box(t.geobox))
        }

    def products_of(self, tile: grid.Tile) -> list[Product]:
        """Products with an acquisition over a tile, and of these the acquisitions over it."""
        place = _box(tile.geobox)
        touching = shapely.intersects(self._footprints, place)
        over = {id(a) for a in np.asarray(self._owners, dtype=object)[touching]}
        found = []
        for product in self.products:
            seen = tuple(a for a in product.acquisitions if id(a) in over)
            if seen:
                found.append(Product(product.id, product.time, product.period, seen))
        return found

    @cached_property
    def _owners(self) -> list[Acquisition]:
        return [a for p in self.products for a in p.acquisitions for _ in a.items]

    @cached_property
    def _footprints(self) -> object:
        shapes = [a.footprints for p in self.products for a in p.acquisitions]
        return np.concatenate(shapes) if shapes else np.empty(0, dtype=object)

    def rows(self) -> Iterator[tuple[str, str]]:
        """Product and tile of everything that the job is to make."""
        for tile in self.tiles.values():
            for product in self.products_of(tile):
                yield product.id, tile.name

    def units(
        self, wanted: Callable[[str, str], bool], ensemble: Ensemble, abreast: int = 1
    ) -> Iterator[Unit]:
        """Cut the job into units, and leave out those of which nothing is wanted.

        Parameters
        ----------
        wanted : callable
            Tells of the names of a product and a tile whether they are to be made.
        ensemble : Ensemble
        abreast : int, default 1
            Rows of tiles that are gone along side by side, one for each process: what a process
            has read for a tile, the next tile of the row needs again.

        Yields
        ------
        Unit
            Tile by tile, and of each by time.
        """
        job = self.job
        for tile in sorted(
            self.tiles.values(), key=lambda tile: (tile.row // abreast, tile.column, tile.row)
        ):
            bounds = lonlat_bounds(tile.geobox)
            for members in _members(self.products_of(tile)):
                chosen = tuple(p.id for p in members if wanted(p.id, tile.name))
                if not chosen:
                    continue
                yield Unit(
                    folder=str(job.folder.resolve()),
                    job_hash=job.hash,
                    configuration=job.configuration,
                    ensemble=ensemble,
                    tile=tile.name,
                    geobox=tile.geobox,
                    products=tuple(members),
                    wanted=chosen,
                    items=select(job.entries, bounds, *_days_of(members)),
                )


def _days_of(products: Sequence[Product]) -> tuple[date, date]:
    """First and last day of slices; a pass across midnight may have the other day's date."""
    return products[0].days[0] - timedelta(1), products[-1].days[1] + timedelta(1)


def _box(geobox: GeoBox) -> shapely.Geometry:
    return shapely.box(*lonlat_bounds(geobox))


def _members(products: list[Product]) -> Iterator[list[Product]]:
    """Put products together to units."""
    unit: list[Product] = []
    for product in products:
        count = sum(len(p.acquisitions) for p in unit) + len(product.acquisitions)
        span = product.days[1] - unit[0].days[0] if unit else timedelta(0)
        if unit and (count > UNIT_ACQUISITIONS or span.days >= UNIT_DAYS):
            yield unit
            unit = []
        unit.append(product)
    if unit:
        yield unit


def _products(acquisitions: tuple[Acquisition, ...], composite: str) -> Iterator[Product]:
    if composite == "none":
        for one in acquisitions:
            yield Product(one.id, one.time, "", (one,))
        return
    duration = COMPOSITES[composite]
    groups: dict[str, list[Acquisition]] = {}
    for one in acquisitions:
        groups.setdefault(_period_of(one.time[:10], composite), []).append(one)
    for start, members in sorted(groups.items()):
        yield Product(f"{start.replace('-', '')}{duration}", start, duration, tuple(members))


def _period_of(day: str, composite: str) -> str:
    """First day of the period in which a day lies."""
    if composite == "daily":
        return day
    if composite == "monthly":
        return f"{day[:7]}-01"
    return str(periods.period_start(day))
