"""Outside the seven steps (simulate): one region of the twin as a landscape with daily truth.

A region is a static STAC catalog like that of any landscape, with large radar pixels and the
weather in yearly stores, for the sake of fewer files. Truth is kept for every day: of all 9 km
cells and of the 1 km cells with stations. Writes; reads nothing.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml

from xsoilsm.catalog import catalogs_dir
from xsoilsm.grid import get_grid, grid_of, xy_to_lonlat
from xsoilsm.periods import PERIODS_PER_YEAR, period_starts, preceding_period
from xsoilsm.simulate.bucket import step_days
from xsoilsm.simulate.climate import LAPSE_RATE, Weather, make_weather
from xsoilsm.simulate.composites import write_vegetation
from xsoilsm.simulate.files import write_text
from xsoilsm.simulate.ground import write_cover, write_soil, write_terrain
from xsoilsm.simulate.items import Catalogue, Json
from xsoilsm.simulate.land import BUILT, CROP, FOREST, GRASS, WATER, Land, make_land
from xsoilsm.simulate.noise import generator
from xsoilsm.simulate.orbit import Overpass, overpasses
from xsoilsm.simulate.reanalysis import write_weather
from xsoilsm.simulate.scene import make_surface
from xsoilsm.simulate.twin_land import Seasons, map_soil, report_weather
from xsoilsm.simulate.twin_plan import NETWORKS, Block, Region, Size, make_place
from xsoilsm.simulate.twin_radar import Track, write_coarse_pass

__all__ = ["CATALOG_FILE", "STATION_FILE", "TRUTH_9KM", "TRUTH_STATIONS", "write_region"]

Floats = npt.NDArray[np.float32]

CATALOG_FILE = "catalog.yaml"
"""Catalog of a region for `xsoilsm.open_catalog`."""

STATION_FILE, TRUTH_9KM, TRUTH_STATIONS = "stations.csv", "truth_9km.parquet", "truth_1km.parquet"
"""Where stations stand, and true daily soil moisture in m3 m-3."""

_STALE_S = 3600.0
_SPIN_UP = np.timedelta64(120, "D")
_AFTER = np.timedelta64(16, "D")
_COVER = {FOREST: 90, GRASS: 130, CROP: 10, BUILT: 190, WATER: 210}
"""Classes of ESA CCI for those of the land."""


def write_region(
    folder: Path,
    region: Region,
    size: Size,
    seed: int,
    progress: Callable[[float], object] = lambda _: None,
) -> None:
    """Simulate a region, whole or not at all.

    Parameters
    ----------
    folder : Path
        It appears when the region is complete; nothing is done where it is there.
    region : Region
    size : Size
    seed : int
        Of the twin.
    progress : callable, optional
        Told the share of work that is done.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}-*.partial"):
        if time.time() - left.stat().st_mtime > _STALE_S:  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent, ignore_cleanup_errors=True
    ) as scratch:
        whole = Path(scratch) / "region"
        whole.mkdir()
        _Writer(whole, region, size, make_place(region, size, seed)).write(progress)
        try:
            whole.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was quicker: the same bytes
                raise
            shutil.rmtree(whole, ignore_errors=True)


@dataclass(frozen=True)
class _Writer:
    root: Path
    region: Region
    size: Size
    place: Block

    def write(self, progress: Callable[[float], object]) -> None:
        place, size = self.place, self.size
        days = size.days
        begin = _before(days[0], PERIODS_PER_YEAR - 1)
        catalogue = Catalogue(self.root)
        land = make_land(place, *place.axes)
        seasons = Seasons(place, land)
        write_terrain(catalogue, place)
        write_cover(catalogue, place, land)
        write_soil(catalogue, place, map_soil(place, land))
        weather = self._weather(begin - _SPIN_UP, days[-1] + _AFTER)
        told = report_weather(weather, place.seed)
        write_weather(catalogue, told, begin, days[-1] + _AFTER, yearly=True)
        progress(0.1)
        starts = period_starts(begin, days[-1])
        write_vegetation(catalogue, place, land, starts, greenness=seasons.greenness)
        progress(0.3)
        stations = self._stations(land)
        cells = stations[["row", "column"]].drop_duplicates().sort_values(["row", "column"])
        means = _Means(place, land, cells.to_numpy())
        passes = {one.time.astype("datetime64[D]"): one for one in self._passes()}
        tracks: dict[int, Track] = {}
        coarse, fine, air = [], [], []
        frozen = _DailyTemperature(weather, place, float(land.elevation.mean()))
        for date, moisture in step_days(
            place, land, weather, place.axes[0], greenness=seasons.greenness
        ):
            if not days[0] <= date <= days[-1]:
                continue
            coarse.append(means.nine(moisture))
            fine.append(means.one(moisture))
            air.append(frozen(date))
            one = passes.get(date)
            if one is not None:
                track = tracks.setdefault(one.relative_orbit, Track(place, land, one))
                rough = _with_roughness(land, seasons.roughness(date))
                surface = make_surface(rough, moisture, seasons.greenness(date))
                number = int((date - np.datetime64("1900-01-01")).astype(np.int64))
                write_coarse_pass(catalogue, track, one, surface, number=number)
                progress(0.3 + 0.7 * float((date - days[0]) / (days[-1] - days[0] + 1)))
        self._truth(days, means.cells, np.stack(coarse), np.array(air), TRUTH_9KM)
        self._truth(days, cells.to_numpy(), np.stack(fine), np.array(air), TRUTH_STATIONS)
        stations.to_csv(self.root / STATION_FILE, index=False, float_format="%.6f")
        self._catalogs(catalogue)

    def _weather(self, first: np.datetime64, last: np.datetime64) -> Weather:
        place = self.place
        west, south, east, north = place.box(margin_km=4.0)
        step = 0.25
        lat = np.arange(np.ceil(north / step) + 1, np.floor(south / step) - 2, -1) * step
        lon = np.arange(np.floor(west / step) - 1, np.ceil(east / step) + 2) * step
        none = np.array([], dtype="datetime64[D]")
        return make_weather(
            place.climate,
            np.arange(first, last + 1),
            lat,
            lon,
            place.elevation(lat, lon, 4).astype(np.float64),
            place.frame(lat, lon),
            seed=place.seed,
            base_elevation=place.character.base_elevation,
            dry=none,
            storms=none,
        )

    def _passes(self) -> list[Overpass]:
        """Choose passes by turns on both tracks, far enough apart."""
        days, gap = self.size.days, np.timedelta64(self.size.every, "D")
        # The most that both satellites can make; fewer were in service at first.
        known: list[Overpass] = []
        count = days.size // 2
        while not known:
            try:
                known = overpasses(self.place.centre, days[0], count, self.size.spacing)
            except ValueError:
                if count < 2:
                    raise
                count = count * 9 // 10
        chosen: list[Overpass] = []
        for one in known:
            date = one.time.astype("datetime64[D]")
            if date > days[-1]:
                break
            last = chosen[-1] if chosen else None
            if last is None or (
                date - last.time.astype("datetime64[D]") >= gap
                and one.orbit_state != last.orbit_state
            ):
                chosen.append(one)
        return chosen

    # ----------------------------------------------------------------------- stations

    def _stations(self, land: Land) -> pd.DataFrame:
        """Draw where stations stand: one a cell of 1 km, never where water is."""
        place = self.place
        dry = _blocks(land.cover != WATER, place, "1km").all(axis=(1, 3))
        geobox = place.cells("1km")
        grid, rows, columns = grid_of(geobox)
        inside = np.zeros(geobox.shape, dtype=bool)
        area = place.station_area
        inside[
            area[0].start - rows[0] : area[0].stop - rows[0],
            area[1].start - columns[0] : area[1].stop - columns[0],
        ] = True
        free = dry & inside
        rng = generator(place.seed, "stations")
        kinds = _blocks(land.cover, place, "1km")
        heights = _blocks(land.elevation, place, "1km").mean(axis=(1, 3))
        records: list[dict[str, object]] = []
        for name, usual in sorted(self.region.stations.items()):
            reach = NETWORKS[name].spread_km
            candidates = np.argwhere(free)
            if reach:
                middle = candidates[rng.integers(len(candidates))]
                near = np.hypot(*(candidates - middle).T) <= reach
                candidates = candidates[near]
            count = min(self.size.count(usual), len(candidates))
            for i, j in candidates[rng.choice(len(candidates), count, replace=False)]:
                free[i, j] = False
                x, y = grid.centre(np.array([rows[0] + i]), np.array([columns[0] + j]))
                lon, lat = xy_to_lonlat(
                    *(v + rng.uniform(-0.3, 0.3, 1) * grid.cell for v in (x, y))
                )
                classes, number = np.unique(kinds[i, :, j, :], return_counts=True)
                records.append(
                    {
                        "network": name,
                        "station": f"{self.region.name}-{len(records) + 1:02d}",
                        "row": rows[0] + int(i),
                        "column": columns[0] + int(j),
                        "lat": float(lat[0]),
                        "lon": float(lon[0]),
                        "elevation": float(heights[i, j]),
                        "land_cover": _COVER[int(classes[np.argmax(number)])],
                        "climate": self.region.koppen,
                    }
                )
        return pd.DataFrame(records)

    # ----------------------------------------------------------------------- files

    def _truth(
        self,
        days: npt.NDArray[np.datetime64],
        cells: npt.NDArray[np.int64],
        values: Floats,
        air: Floats,
        name: str,
    ) -> None:
        """Write daily truth: one row for each day and cell."""
        table = pd.DataFrame(
            {
                "date": np.repeat(days.astype("datetime64[ms]"), len(cells)),
                "row": np.tile(cells[:, 0], days.size).astype(np.int32),
                "column": np.tile(cells[:, 1], days.size).astype(np.int32),
                "soil_moisture": values.ravel(),
                "air_temperature": np.repeat(air, len(cells)).astype(np.float32),
            }
        )
        table.to_parquet(self.root / name, index=False)

    def _catalogs(self, catalogue: Catalogue) -> None:
        size, place = self.size, self.place
        configuration: Json = {
            "region": self.region.name,
            "size": asdict(size),
            "seed": place.seed,
            "block": list(place.block),
            "climate": asdict(place.climate),
            "character": asdict(place.character),
        }
        title = f"Twin experiment, {self.region.name} (simulated)"
        catalogue.finish(title, configuration)
        write_text(self.root / CATALOG_FILE, _facts(title, "catalog.json"))


def _before(date: np.datetime64, number: int) -> np.datetime64:
    """First day of the period that lies some periods before that of a date."""
    return np.datetime64(np.asarray(preceding_period(date, number)).item(), "D")


def _with_roughness(land: Land, roughness: Floats) -> Land:
    return replace(land, roughness=roughness.astype(np.float32))


def _blocks(field: npt.NDArray[Any], place: Block, res: str) -> npt.NDArray[Any]:
    """Values of the land's cells within those of a coarser grid: (row, part, column, part)."""
    fine, rows, columns = grid_of(place.truth_geobox)
    _, all_rows, all_columns = grid_of(place.geobox)
    within = field[
        rows[0] - all_rows[0] : rows[1] - all_rows[0],
        columns[0] - all_columns[0] : columns[1] - all_columns[0],
    ]
    parts = round(get_grid(res).cell / fine.cell)
    height, width = within.shape
    return within.reshape(height // parts, parts, width // parts, parts)


class _Means:
    """Means of soil moisture over cells of 9 km and some of 1 km, open water left out."""

    def __init__(self, place: Block, land: Land, fine: npt.NDArray[np.int64]) -> None:
        self._place = place
        dry = land.cover != WATER
        self._dry = dry.astype(np.float32)
        self._weights = {
            res: np.maximum(_blocks(self._dry, place, res).sum(axis=(1, 3)), 1)
            for res in ("9km", "1km")
        }
        row, column, count = place.block
        rows, columns = np.meshgrid(
            np.arange(row, row + count), np.arange(column, column + count), indexing="ij"
        )
        self.cells = np.stack([rows.ravel(), columns.ravel()], axis=1)
        _, first, left = grid_of(place.cells("1km"))
        self._at = fine[:, 0] - first[0], fine[:, 1] - left[0]

    def _mean(self, moisture: Floats, res: str) -> Floats:
        total = _blocks(moisture * self._dry, self._place, res).sum(axis=(1, 3))
        return np.asarray(total / self._weights[res], dtype=np.float32)

    def nine(self, moisture: Floats) -> Floats:
        """Of the 9 km cells in the order of `cells`."""
        return self._mean(moisture, "9km").ravel()

    def one(self, moisture: Floats) -> Floats:
        """Of the 1 km cells that were asked for."""
        return self._mean(moisture, "1km")[self._at]


class _DailyTemperature:
    """Daily mean air temperature in degC of a region at its mean height."""

    def __init__(self, weather: Weather, place: Block, height: float) -> None:
        lon, lat = place.centre
        self._weather = weather
        self._node = (
            int(np.abs(weather.lat - lat).argmin()),
            int(np.abs(weather.lon - lon).argmin()),
        )
        self._shift = LAPSE_RATE * (float(weather.height[self._node]) - height)

    def __call__(self, date: np.datetime64) -> float:
        day = self._weather.index(date)
        return float(self._weather.temperature[day][self._node]) + self._shift


# --------------------------------------------------------------------------- catalogs


def _facts(title: str, href: str) -> str:
    """Catalog file of a region: that of the virtual landscape, elsewhere and with angles."""
    content = yaml.safe_load((catalogs_dir() / "demo.yaml").read_text(encoding="utf-8"))
    content |= {"name": "twin", "title": title}
    content["services"]["landscape"] |= {
        "href": href,
        "missing": "make it with `xsoilsm simulate --twin`",
    }
    for radar in content["sources"]["radar"]:
        for key in ("grd_collection", "grd_asset"):
            radar.pop(key, None)
        radar |= {"sigma0_from": "rtc-flat", "incidence": {"asset": "angle", "units": "degree"}}
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text
