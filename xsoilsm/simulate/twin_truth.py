"""Outside the seven steps (simulate): what stations and SMAP report of the twin's true moisture.

Stations become archives in the format of the International Soil Moisture Network, one a network;
SMAP becomes one granule a day in the form of SPL3SMP_E. Both hold errors of known size, and
values that their flags take out again. Reads the daily truth of the regions; writes files, each
whole or not at all.

Assumptions, with the order of magnitude that the literature gives: a station represents its 1 km
cell to 0.02 m3 m-3, half of the variance lasting and half changing over weeks; capacitance
sensors of networks are calibrated to some 0.015 m3 m-3; the enhanced product has a contributing
domain of 33 km (Chan et al. 2018, Remote Sensing of Environment 204, 931-941) and an error of
0.035 m3 m-3, of which a part stays with the place, within the 0.04 m3 m-3 that the mission
requires; neither retrieves frozen ground.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from xsoilsm.grid import get_grid, xy_to_lonlat
from xsoilsm.simulate.noise import generator
from xsoilsm.simulate.smap import HalfDay, granule_name, write_granule
from xsoilsm.simulate.stations import Sensor, write_ismn
from xsoilsm.simulate.twin_plan import NETWORKS, Network, Size
from xsoilsm.simulate.twin_region import STATION_FILE, TRUTH_9KM, TRUTH_STATIONS

__all__ = [
    "FOOTPRINT_KM",
    "LOWEST",
    "REPRESENTATIVENESS",
    "SENSOR_OFFSET",
    "SMAP_ERROR",
    "footprint_weights",
    "write_archives",
    "write_granules",
]

Dates = npt.NDArray[np.datetime64]
Floats = npt.NDArray[np.float64]

REPRESENTATIVENESS = 0.02
"""Standard deviation in m3 m-3 of a station's difference to its 1 km cell."""

SENSOR_OFFSET, SENSOR_GAIN, SENSOR_NOISE = 0.015, 0.04, 0.006
"""Standard deviations of a sensor's offset in m3 m-3, its gain and the noise of a reading."""

SMAP_ERROR, SMAP_LASTING = 0.035, 0.018
"""Standard deviations in m3 m-3 of the error of a retrieval, and of its part that lasts."""

FOOTPRINT_KM = 33.0
"""Width of the radiometer's weight at half its height: its contributing domain."""

LOWEST = 0.02
"""Lowest soil moisture that is reported, in m3 m-3."""

_MEMORY = 0.95  # of the changing part of representativeness, from day to day
_DAILY_COURSE = 0.002  # m3 m-3, a sensor's response to the warmth of the day
_LATE_SHARE, _GAP_SHARE = 0.3, 0.06  # stations that begin later; days lost in gaps
_DOUBT, _SPIKES = 0.01, 0.004  # shares of readings with a flag without a reason, and of spikes
_AM, _PM = (0, 3, 5), (1, 3, 6)  # of the eight days after which SMAP's passes repeat
_PM_BIAS, _PM_DAILY = 0.003, 0.004  # m3 m-3: mean and spread of the days' biases
_ELSEWHERE = np.stack(np.meshgrid(np.arange(870, 890), np.arange(1270, 1300)), -1).reshape(-1, 2)
"""Cells elsewhere that both passes of every day see: real granules hold many thousand of them, and
the difference between the passes is known from them."""
_DOUBTFUL = 0.02  # share of retrievals that are not recommended


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """Folder to write in, whose file of the target's name is then put in its place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}-", suffix=".partial", dir=target.parent, ignore_cleanup_errors=True
    ) as scratch:
        yield Path(scratch)
        os.replace(Path(scratch) / target.name, target)


# --------------------------------------------------------------------------- stations


def write_archives(
    folder: Path,
    regions: Mapping[str, Path],
    seed: int,
    progress: Callable[[float], object] = lambda _: None,
) -> list[Path]:
    """Write one archive for each network; those that are there are kept.

    Parameters
    ----------
    folder : Path
    regions : mapping of str to Path
        Folders of the regions by name.
    seed : int
    progress : callable, optional
        Told the share of work that is done.

    Returns
    -------
    list of Path
    """
    stations = pd.concat(
        [pd.read_csv(path / STATION_FILE).assign(region=name) for name, path in regions.items()],
        ignore_index=True,
    )
    names = sorted(stations["network"].unique())
    targets = [folder / f"{name}.zip" for name in names]
    truths: dict[str, pd.DataFrame] = {}
    for number, (name, target) in enumerate(zip(names, targets, strict=True)):
        progress(number / len(names))
        if target.exists():
            continue
        members = stations[stations["network"] == name]
        for region in members["region"].unique():
            if region not in truths:
                truths[region] = pd.read_parquet(regions[region] / TRUTH_STATIONS)
        sensors = [
            sensor
            for station in members.itertuples()
            for sensor in _sensors(station, truths[str(station.region)], NETWORKS[name], seed)
        ]
        layout = NETWORKS[name].layout
        with _whole(target) as scratch:
            write_ismn(scratch / target.name, sensors, layout=layout)  # type: ignore[arg-type]
    progress(1.0)
    return targets


def _sensors(station: Any, truth: pd.DataFrame, network: Network, seed: int) -> Iterator[Sensor]:
    """Draw a station's readings: what its cell holds, with its own errors."""
    cell = truth[(truth["row"] == station.row) & (truth["column"] == station.column)]
    days = cell["date"].to_numpy().astype("datetime64[D]")
    air = cell["air_temperature"].to_numpy(dtype=np.float64)
    number = _number(station.station)
    rng = generator(seed, "station", number)
    local = cell["soil_moisture"].to_numpy(dtype=np.float64) + _representativeness(rng, days.size)
    measured = _measured_days(rng, days.size)
    depths = [(0.05, 0.05)] + ([(0.10, 0.10)] if network.deep else [])
    for depth in depths:
        deeper = depth[0] > 0.05
        level = _smoothed(local, 6) + 0.01 if deeper else local
        time, values, flags = _readings(rng, days, level, air, network.hours)
        taken = np.repeat(measured, 24 // network.hours)
        yield Sensor(
            network=network.name,
            station=str(station.station),
            lat=float(station.lat),
            lon=float(station.lon),
            time=time[taken],
            values=values[taken],
            flags=flags[taken].tolist(),
            depth=depth,
            instrument="Simulated-Probe-A",
            elevation=float(station.elevation),
            land_cover=int(station.land_cover),
            climate=str(station.climate),
        )


def _number(name: str) -> int:
    """Turn a name into a number for seeds."""
    return zlib.crc32(name.encode())


def _representativeness(rng: np.random.Generator, days: int) -> Floats:
    """Difference in m3 m-3 of a place to its cell: a lasting part and one of some weeks."""
    part = REPRESENTATIVENESS / np.sqrt(2)
    shocks = rng.standard_normal(days) * np.sqrt(1 - _MEMORY**2)
    changing = np.empty(days)
    state = rng.standard_normal()
    for day in range(days):
        changing[day] = state
        state = _MEMORY * state + shocks[day]
    return np.asarray(part * (rng.standard_normal() + changing))


def _measured_days(rng: np.random.Generator, days: int) -> npt.NDArray[np.bool_]:
    """Days on which a station works."""
    measured = np.ones(days, dtype=bool)
    if rng.random() < _LATE_SHARE:
        measured[: int(rng.uniform(0, 0.5) * days)] = False
    lost = 0
    while lost < _GAP_SHARE * days * rng.uniform(0.3, 1.7):
        length = int(rng.integers(3, 40))
        start = int(rng.integers(0, days))
        measured[start : start + length] = False
        lost += length
    if not measured.any():
        measured[-1] = True
    return measured


def _smoothed(values: Floats, days: int) -> Floats:
    """Mean over the days before, as deeper soil has it."""
    weights = np.exp(-np.arange(4 * days) / days)
    padded = np.concatenate([np.full(weights.size - 1, values[0]), values])
    return np.convolve(padded, weights / weights.sum(), mode="valid")


def _readings(
    rng: np.random.Generator, days: Dates, level: Floats, air: Floats, hours: int
) -> tuple[npt.NDArray[np.datetime64], Floats, npt.NDArray[np.object_]]:
    """Draw times, values and flags of the readings of a sensor."""
    each = 24 // hours
    clock = np.arange(each) * hours
    time = (days[:, None].astype("datetime64[h]") + clock.astype("timedelta64[h]")).ravel()
    course = _DAILY_COURSE * np.sin(2 * np.pi * (clock - 9) / 24)
    offset = SENSOR_OFFSET * rng.standard_normal()
    gain = 1 + SENSOR_GAIN * rng.standard_normal()
    read = np.repeat(level, each) * gain + offset + np.tile(course - course.mean(), days.size)
    read = read + SENSOR_NOISE * rng.standard_normal(read.size)
    values = np.clip(read, LOWEST, 0.6)
    flags = np.full(values.size, "G", dtype=object)
    flags[rng.random(values.size) < _DOUBT] = "D10"
    spiked = rng.random(values.size) < _SPIKES
    values = np.where(spiked, rng.uniform(0.45, 0.6, values.size), values)
    flags[spiked] = "D06"
    frozen = np.repeat(air < 0, each)
    flags[frozen] = "D01,D02"
    return time.astype("datetime64[ns]"), values, flags


# --------------------------------------------------------------------------- SMAP


def write_granules(
    folder: Path,
    regions: Mapping[str, Path],
    size: Size,
    seed: int,
    progress: Callable[[float], object] = lambda _: None,
) -> list[Path]:
    """Write one granule for each day that the size asks for; those that are there are kept.

    Parameters
    ----------
    folder : Path
    regions : mapping of str to Path
        Folders of the regions by name.
    size : Size
    seed : int
    progress : callable, optional
        Told the share of work that is done.

    Returns
    -------
    list of Path
    """
    fields = [_Field(name, path, seed) for name, path in regions.items()]
    days = size.days[:: size.smap_every]
    targets = [folder / granule_name(day) for day in days]
    for number, (day, target) in enumerate(zip(days, targets, strict=True)):
        if number % 32 == 0:
            progress(number / len(days))
        if target.exists():
            continue
        rest = 0.2 + 0.05 * generator(seed, "SMAP elsewhere", _number(str(day))).standard_normal(
            len(_ELSEWHERE)
        )
        halves = {
            half: _half(
                [*(field.seen(day, half, seed) for field in fields), _rest(rest, day, half, seed)]
            )
            for half in ("AM", "PM")
        }
        with _whole(target) as scratch:
            write_granule(scratch, day, halves["AM"], halves["PM"])
    progress(1.0)
    return targets


_Seen = tuple[npt.NDArray[np.int64], Floats, npt.NDArray[np.int64]]


class _Field:
    """Soil moisture of a region as the radiometer sees it, day by day."""

    def __init__(self, name: str, path: Path, seed: int) -> None:
        table = pd.read_parquet(path / TRUTH_9KM)
        dates = table["date"].to_numpy().astype("datetime64[D]")
        self._first = dates[0]
        count = int((dates == self._first).sum())
        self.cells = table[["row", "column"]].to_numpy(dtype=np.int64)[:count]
        true = table["soil_moisture"].to_numpy(dtype=np.float64).reshape(-1, count)
        self._frozen = table["air_temperature"].to_numpy().reshape(-1, count)[:, 0] < 0
        weights = footprint_weights(self.cells)
        rng = generator(seed, "SMAP", _number(name))
        self._phase = int(rng.integers(0, 8))
        # Neighbouring cells share most of what the antenna sees, errors included.
        self._shared = weights / np.sqrt(np.square(weights).sum(axis=1, keepdims=True))
        lasting = self._shared @ rng.standard_normal(count)
        self._level = true @ weights.T + SMAP_LASTING * lasting
        self._name = _number(name)

    def seen(self, day: np.datetime64, half: str, seed: int) -> _Seen:
        """Cells, values and quality of the passes of one half of a day; none where none passed."""
        index = int((day - self._first).astype(np.int64))
        turn = (int((day - np.datetime64("2015-04-01", "D")).astype(np.int64)) + self._phase) % 8
        if turn not in (_AM if half == "AM" else _PM):
            return np.empty((0, 2), np.int64), np.empty(0), np.empty(0, np.int64)
        rng = generator(seed, f"SMAP {half}", self._name, _number(str(day)))
        spread = np.sqrt(SMAP_ERROR**2 - SMAP_LASTING**2)
        noise = self._shared @ rng.standard_normal(len(self.cells))
        values = self._level[index] + spread * noise
        values = values + _bias(day, half, seed)
        bad = (rng.random(values.size) < _DOUBTFUL) | self._frozen[index]
        return self.cells, np.clip(values, LOWEST, 0.6), bad.astype(np.int64)


def _bias(day: np.datetime64, half: str, seed: int) -> float:
    """Bias in m3 m-3 of the passes of one half of a day."""
    if half == "AM":
        return 0.0
    drawn = generator(seed, "SMAP bias", _number(str(day))).standard_normal()
    return float(_PM_BIAS + _PM_DAILY * drawn)


def _rest(true: Floats, day: np.datetime64, half: str, seed: int) -> _Seen:
    """Cells elsewhere, values and quality of the passes of one half of a day."""
    rng = generator(seed, f"SMAP {half} elsewhere", _number(str(day)))
    values = true + SMAP_ERROR * rng.standard_normal(true.size) + _bias(day, half, seed)
    return _ELSEWHERE, np.clip(values, LOWEST, 0.6), np.zeros(true.size, np.int64)


def footprint_weights(cells: npt.NDArray[np.int64]) -> Floats:
    """Weights of cells in what the radiometer reports of each; rows add up to 1.

    A Gaussian of 33 km at half its height, over the distances on the ground. What lies beyond
    the cells has no weight.
    """
    lon, lat = xy_to_lonlat(*get_grid("9km").centre(cells[:, 0], cells[:, 1]))
    degree = np.deg2rad(1.0) * 6371.0088
    east = (lon[:, None] - lon[None, :]) * degree * np.cos(np.deg2rad(lat.mean()))
    north = (lat[:, None] - lat[None, :]) * degree
    weights = np.exp(-4 * np.log(2) * (east**2 + north**2) / FOOTPRINT_KM**2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _half(parts: list[_Seen]) -> HalfDay:
    cells, values, quality = (np.concatenate(column) for column in zip(*parts, strict=True))
    return HalfDay(cells[:, 0], cells[:, 1], values, quality)
