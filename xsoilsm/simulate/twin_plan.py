"""Outside the seven steps (simulate): the regions, networks and sizes of the twin experiment.

Regions lie where such climates are found, and their cells are those of the global grid there; but
terrain, soils and weather are drawn, so nothing is said of the real places. Nothing is read.

Climates are those of stations that the networks of Zhu et al. (2024, doi
10.1016/j.rse.2023.113944) hold most of: temperate, continental and semi-arid plains, Mediterranean
and tropical seasonal country, and cold mountains. Annual means and seasons are round numbers of
such climates, not fits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from xsoilsm.grid import get_grid, lonlat_to_xy, xy_to_lonlat
from xsoilsm.samples.cells import SIDES
from xsoilsm.simulate.climate import CONTINENTAL, MEDITERRANEAN, SEMIARID, TEMPERATE, Climate
from xsoilsm.simulate.land import Character, Place
from xsoilsm.simulate.noise import child_seed

__all__ = ["NETWORKS", "REGIONS", "SIZES", "Block", "Network", "Region", "Size", "make_place"]

_FINE = 9  # 1 km cells along a side of a 9 km cell


@dataclass(frozen=True)
class Network:
    """A network of stations.

    Parameters
    ----------
    name : str
    spread_km : float
        Distance from the network's middle within which stations of a region lie; 0 for anywhere.
    hours : int
        Between readings.
    layout : {"header", "ceop"}
        Format of its files.
    deep : bool
        Has a second sensor at 10 cm too, which is none of the top 5 cm.
    """

    name: str
    spread_km: float = 0.0
    hours: int = 6
    layout: str = "header"
    deep: bool = False


NETWORKS = {
    one.name: one
    for one in (
        Network("TWIN-WIDE"),
        Network("TWIN-SNOW"),
        Network("TWIN-NATION", hours=12, layout="ceop"),
        Network("TWIN-BASIN", spread_km=9.0, deep=True),
        Network("TWIN-FARM", spread_km=7.0),
    )
}
"""Networks by name: one sparse across the lowlands, one in the mountains, a national one, and
two dense ones."""

_LOW = {"TWIN-WIDE": 5}
_HIGH = {"TWIN-SNOW": 18}

_COLD = replace(
    CONTINENTAL, name="mountain", mean_temperature=3.0, seasonal_amplitude=11.0,
    diurnal_range=14.0, wet_share=0.3, wet_seasonality=0.1, wettest_day=30.0, wet_depth=5.5,
    crop_peak=185.0, grass_peak=190.0,
)  # fmt: skip
_SUBTROPICAL = replace(
    TEMPERATE, name="subtropical", mean_temperature=16.5, seasonal_amplitude=10.0,
    diurnal_range=11.0, wet_share=0.32, wet_seasonality=0.05, wettest_day=60.0, wet_depth=11.0,
    crop_peak=150.0, grass_peak=170.0,
)  # fmt: skip
_SAVANNA = Climate(
    "savanna", 26.5, 2.5, warmest_day=85.0, synoptic_deviation=1.2, diurnal_range=11.0,
    wet_share=0.3, wet_seasonality=0.3, wettest_day=225.0, wet_depth=10.0, persistence=0.25,
    crop_peak=250.0, grass_peak=245.0,
)  # fmt: skip
_SAHEL = replace(
    _SAVANNA, name="sahel", mean_temperature=28.5, seasonal_amplitude=4.5, diurnal_range=14.0,
    wet_share=0.11, wet_seasonality=0.11, wet_depth=12.0,
)  # fmt: skip
_STEPPE = replace(
    SEMIARID, name="steppe", mean_temperature=10.5, seasonal_amplitude=12.5, wet_share=0.18,
    wet_seasonality=0.08, wettest_day=170.0, wet_depth=6.5, crop_peak=140.0, grass_peak=165.0,
)  # fmt: skip
_SOUTHERN = replace(
    _STEPPE, name="southern steppe", mean_temperature=17.0, seasonal_amplitude=8.0,
    warmest_day=22.0, wet_seasonality=0.04, wettest_day=200.0, crop_peak=265.0, grass_peak=260.0,
)  # fmt: skip
_HIGHLAND = replace(
    _COLD, name="highland", mean_temperature=1.5, seasonal_amplitude=9.5, wet_share=0.25,
    wet_seasonality=0.23, wettest_day=210.0, wet_depth=6.0, crop_peak=215.0, grass_peak=220.0,
)  # fmt: skip


@dataclass(frozen=True)
class Region:
    """A region of the twin.

    Parameters
    ----------
    name : str
    koppen : str
        Class of Koeppen and Geiger.
    lon, lat : float
        Degrees; the region's cells lie near there.
    climate : Climate
    character : Character
    stations : dict of str to int
        Stations by network.
    """

    name: str
    koppen: str
    lon: float
    lat: float
    climate: Climate
    character: Character
    stations: dict[str, int]


def _flat(height: float, **more: float) -> Character:
    # Lowlands are flat, so that nothing lies below the sea.
    return Character(base_elevation=height, relief=min(95.0, 0.3 * height), regional=0.7, **more)


def _steep(height: float, **more: float) -> Character:
    return Character(base_elevation=height, relief=260.0, regional=0.7, **more)


REGIONS = (
    Region("mediterranean-1", "Csa", -5.4, 41.3, MEDITERRANEAN,
           _flat(800, sand=52, clay=18), {**_LOW, "TWIN-BASIN": 18}),
    Region("mountain-1", "Dfc", -111.1, 44.4, _COLD,
           _steep(2300, forest=0.9, grass=0.5, sand=48, clay=17), _HIGH),
    Region("continental-1", "Dfb", -97.3, 46.5, CONTINENTAL,
           _flat(400, forest=-0.5, sand=34, clay=29), {**_LOW, "TWIN-NATION": 10}),
    Region("oceanic-1", "Cfb", 1.6, 47.4, replace(TEMPERATE, mean_temperature=11.0),
           _flat(150, forest=0.2, sand=35, clay=24), {**_LOW, "TWIN-NATION": 10}),
    Region("steppe-1", "BSk", -103.2, 37.2, _STEPPE,
           _flat(1300, forest=-1.0, grass=0.8, green=0.65, sand=50, clay=22),
           {**_LOW, "TWIN-FARM": 14}),
    Region("subtropical-1", "Cfa", -88.1, 33.6, _SUBTROPICAL,
           _flat(120, forest=0.6, green=1.1, sand=45, clay=23), {**_LOW, "TWIN-NATION": 10}),
    Region("mountain-2", "Dfc", -106.2, 38.6, replace(_COLD, wet_share=0.24),
           _steep(2900, forest=0.6, grass=0.6, sand=52, clay=16), _HIGH),
    Region("savanna-1", "Aw", 2.7, 9.4, _SAVANNA,
           _flat(350, forest=0.2, grass=0.7, sand=60, clay=17), {**_LOW, "TWIN-BASIN": 12}),
    Region("steppe-south", "BSk", 146.1, -34.7, _SOUTHERN,
           _flat(140, forest=-0.8, grass=0.5, green=0.75, sand=46, clay=30),
           {**_LOW, "TWIN-FARM": 14}),
    Region("oceanic-2", "Cfb", 9.2, 56.1, replace(TEMPERATE, mean_temperature=8.3),
           _flat(60, sand=66, clay=8), {**_LOW, "TWIN-BASIN": 14}),
    Region("continental-2", "Dfa", -93.4, 41.9, replace(CONTINENTAL, mean_temperature=9.5),
           _flat(320, forest=-0.6, sand=28, clay=31), {**_LOW, "TWIN-FARM": 14}),
    Region("sahel-1", "BSh", -1.7, 15.4, _SAHEL,
           _flat(300, forest=-1.5, grass=1.0, green=0.5, sand=76, clay=9),
           {**_LOW, "TWIN-BASIN": 12}),
    Region("mountain-3", "Dsb", -119.5, 38.4, replace(_COLD, wet_seasonality=0.22),
           _steep(2400, forest=0.7, grass=0.3, sand=58, clay=12), _HIGH),
    Region("mediterranean-2", "Csa", 12.4, 43.2, replace(MEDITERRANEAN, wet_share=0.3),
           _flat(350, forest=0.5, sand=32, clay=31), {**_LOW, "TWIN-NATION": 12}),
    Region("highland-1", "Dwc", 91.9, 31.4, _HIGHLAND,
           Character(4500.0, 180.0, -2.0, 1.5, 0.6, 60.0, 13.0, 0.7), {"TWIN-BASIN": 18}),
    Region("subtropical-2", "Cfa", 114.4, 32.4, replace(_SUBTROPICAL, wettest_day=190.0),
           _flat(80, forest=0.2, sand=32, clay=28), {**_LOW, "TWIN-NATION": 12}),
    Region("steppe-2", "BSk", -116.4, 42.8, replace(_STEPPE, wettest_day=60.0),
           _flat(1400, forest=-0.8, grass=0.9, green=0.7, sand=42, clay=20),
           {**_LOW, "TWIN-FARM": 14}),
    Region("continental-3", "Dfb", 26.2, 45.1, replace(CONTINENTAL, mean_temperature=10.0),
           _flat(150, sand=30, clay=30), {**_LOW, "TWIN-NATION": 12}),
    Region("mountain-4", "Dfc", -113.4, 46.8, replace(_COLD, mean_temperature=4.0),
           _steep(1900, forest=1.1, grass=0.3, sand=46, clay=17), _HIGH),
    Region("savanna-2", "Aw", 33.2, -12.6, replace(
               _SAVANNA, warmest_day=300.0, wettest_day=25.0, crop_peak=50.0, grass_peak=55.0),
           _flat(1100, forest=0.6, grass=0.3, sand=55, clay=24), {**_LOW, "TWIN-BASIN": 12}),
)  # fmt: skip
"""Regions in the order in which sizes take them."""


@dataclass(frozen=True)
class Size:
    """How large a twin is.

    Parameters
    ----------
    name : str
    regions : int
        So many of `REGIONS`.
    cells : int
        9 km cells along the side of a region; even.
    first, last : str
        Days of acquisitions and truth, as year-month-day.
    every : int
        Shortest distance in days of acquisitions of a region, on two tracks by turns.
    spacing : float
        Side of a radar pixel in m.
    stations : float
        Factor on the number of stations.
    smap_every : int
        Days from one granule of SMAP to the next.
    """

    name: str
    regions: int
    cells: int
    first: str
    last: str
    every: int
    spacing: float = 250.0
    stations: float = 1.0
    smap_every: int = 2

    @property
    def days(self) -> npt.NDArray[np.datetime64]:
        """Every day from the first to the last."""
        return np.arange(np.datetime64(self.first, "D"), np.datetime64(self.last, "D") + 1)

    def count(self, stations: int) -> int:
        """Scale a number of stations."""
        return max(round(stations * self.stations), 1)


SIZES: dict[str, Size] = {
    size.name: size
    for size in (
        Size("tiny", 2, 2, "2020-11-01", "2021-06-30", 9, 500.0, 0.3, smap_every=4),
        Size("small", 12, 4, "2016-01-01", "2021-12-31", 9, 250.0, 1.2),
        Size("full", 20, 4, "2016-01-01", "2021-12-31", 4, 250.0, 1.5),
    )
}
"""Sizes by name."""


@dataclass(frozen=True)
class Block(Place):
    """A place whose region is a block of 9 km cells.

    Parameters
    ----------
    block : (int, int, int)
        Row and column of the upper left 9 km cell, and the number of cells along a side.
    """

    block: tuple[int, int, int] = (0, 0, 2)

    @cached_property
    def truth_geobox(self) -> GeoBox:
        """The block's cells of the land's grid."""
        return self.cells(self.res)

    def cells(self, res: str) -> GeoBox:
        """Take the block's cells of a grid."""
        row, column, count = self.block
        fine = round(get_grid("9km").cell / get_grid(res).cell)
        return get_grid(res).geobox(
            (row * fine, (row + count) * fine), (column * fine, (column + count) * fine)
        )

    def box(self, margin_km: float = 0.0) -> tuple[float, float, float, float]:
        """West, south, east and north of the block in degrees, widened by a margin."""
        edge = self.cells("9km").boundingbox
        lon, lat = xy_to_lonlat([edge.left, edge.right], [edge.bottom, edge.top])
        high = float(np.rad2deg(margin_km / 6371.0088))
        wide = high / float(np.cos(np.deg2rad(self.centre[1])))
        return (
            float(lon[0]) - wide,
            float(lat[0]) - high,
            float(lon[1]) + wide,
            float(lat[1]) + high,
        )

    @property
    def station_area(self) -> tuple[range, range]:
        """Rows and columns of the 1 km cells in which stations may stand.

        Samples of dense stations are read in squares of a global lattice; stations keep to
        whole squares, so that fewer files are opened.
        """
        side = SIDES["1km"]
        found = []
        for start in self.block[:2]:
            first = -(-start * _FINE // side) * side
            last = (start + self.block[2]) * _FINE // side * side
            found.append(range(first, last))
        return found[0], found[1]


def make_place(region: Region, size: Size, seed: int) -> Block:
    """Put a region on the grid.

    Parameters
    ----------
    region : Region
    size : Size
    seed : int
        Of the twin.

    Returns
    -------
    Block
        Near the region's longitude and latitude, so that squares in which samples are read lie
        whole inside.
    """
    nine = get_grid("9km")
    x, y = lonlat_to_xy(region.lon, region.lat)
    row, column = (int(v) for v in nine.index(x, y))
    row, column = (_aligned(start - size.cells // 2, size.cells) for start in (row, column))
    lon, lat = xy_to_lonlat(*(float(v) for v in _middle(row, column, size.cells)))
    own = int(child_seed(seed, f"region {region.name}").generate_state(1, np.uint32)[0])
    return Block(
        (float(lon), float(lat)),
        size.cells * nine.cell / 1000,
        own,
        region.climate,
        region.character,
        "500m",
        (row, column, size.cells),
    )


def _middle(row: int, column: int, count: int) -> tuple[float, float]:
    edge = get_grid("9km").geobox((row, row + count), (column, column + count)).boundingbox
    return (edge.left + edge.right) / 2, (edge.bottom + edge.top) / 2


def _aligned(start: int, count: int) -> int:
    """Nearest start at or after one, so that few squares of the 9 km and 1 km lattices are cut."""
    side, coarse = SIDES["1km"], SIDES["9km"]
    spare = count * _FINE % side
    while start % coarse or -start * _FINE % side > spare:
        start += 1
    return start
