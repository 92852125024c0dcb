"""Outside the seven steps (simulate): files of soil moisture stations in the network's formats.

Writes what the International Soil Moisture Network serves, in both of its formats: one file a
sensor with a header and values, or one file a sensor with CEOP records; beside them the static
variables of each station. Also tables of one's own stations. Values are given; nothing is drawn
here.

Source of the formats: the readme files of the network's downloads (Dorigo et al. 2021,
Hydrology and Earth System Sciences 25, 5749-5804).
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

__all__ = ["Sensor", "write_ismn", "write_station_table"]

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of writing of the members of an archive, so that its bytes are always the same."""

_STATIC = (
    "quantity_name;unit;depth_from[m];depth_to[m];value;description;quantity_source_name;"
    "quantity_source_description;quantity_source_provider;quantity_source_version;"
    "quantity_source_resolution;quantity_source_timerange;quantity_source_url;"
)


@dataclass(frozen=True)
class Sensor:
    """Values of one sensor.

    Parameters
    ----------
    network, station : str
    lat, lon : float
        Degrees.
    time : (n,) array of datetime64
        UTC.
    values : (n,) array
        Soil moisture in m3 m-3, or what is to be written in its place.
    flags : str or sequence of str, default "G"
        Quality flags of the network; several at once are joined by commas.
    depth : (float, float), default (0.0, 0.05)
        Upper and lower end in m.
    instrument : str
    elevation : float
        m.
    land_cover : int
        Class of ESA CCI land cover, 0 for none.
    climate : str
        Class of Koeppen and Geiger, empty for none.
    variable : str, default "sm"
        Short name in the file's name.
    provider_flags : str, default "M"
        Flags of the provider; they may hold spaces and commas.
    """

    network: str
    station: str
    lat: float
    lon: float
    time: npt.NDArray[np.datetime64]
    values: npt.NDArray[Any]
    flags: str | Sequence[str] = "G"
    depth: tuple[float, float] = (0.0, 0.05)
    instrument: str = "Probe-A"
    elevation: float = 100.0
    land_cover: int = 130
    climate: str = "Cfa"
    variable: str = "sm"
    provider_flags: str = "M"

    @property
    def all_flags(self) -> list[str]:
        """One flag a value."""
        single = isinstance(self.flags, str)
        return [str(self.flags)] * len(self.values) if single else list(self.flags)

    def file(self, first: str, last: str) -> str:
        """Name of its file."""
        network, station = _hyphenated(self)
        return (
            f"{network}_{network}_{station}_{self.variable}_{self.depth[0]:.6f}_"
            f"{self.depth[1]:.6f}_{self.instrument}_{first}_{last}.stm"
        )


def _hyphenated(sensor: Sensor) -> tuple[str, str]:
    """Network and station as files write them: parts are set apart by underscores and blanks."""
    table = str.maketrans("_ ", "--")
    return sensor.network.translate(table), sensor.station.translate(table)


def write_ismn(
    path: str | os.PathLike[str],
    sensors: Iterable[Sensor],
    *,
    layout: Literal["header", "ceop"] = "header",
) -> Path:
    """Write an archive as the International Soil Moisture Network serves it.

    Parameters
    ----------
    path : path
        A zip archive where it ends in ``.zip``, else a folder.
    sensors : iterable of Sensor
    layout : {"header", "ceop"}, default "header"

    Returns
    -------
    Path
        `path`.
    """
    target = Path(path)
    if layout not in ("header", "ceop"):
        msg = f"layout {layout!r} is unknown; expected 'header' or 'ceop'"
        raise ValueError(msg)
    files: dict[str, str] = {}
    for sensor in sensors:
        folder = f"{sensor.network}/{sensor.station}"
        days = np.asarray(sensor.time, dtype="datetime64[D]")
        first, last = (str(d).replace("-", "") for d in (days.min(), days.max()))
        text = _header_values(sensor) if layout == "header" else _ceop(sensor)
        files[f"{folder}/{sensor.file(first, last)}"] = text
        network, station = _hyphenated(sensor)
        name = f"{folder}/{network}_{network}_{station}_static_variables.csv"
        files[name] = _static(sensor)
    if target.suffix == ".zip":
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(files):
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), files[name])
        return target
    for name, text in files.items():
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return target


def _stamps(sensor: Sensor) -> list[str]:
    stamps = pd.DatetimeIndex(sensor.time).strftime("%Y/%m/%d %H:%M")
    return [str(stamp) for stamp in stamps]


def _header_values(sensor: Sensor) -> str:
    network, station = _hyphenated(sensor)
    lines = [
        f"{network} {network} {station} {sensor.lat:.5f} {sensor.lon:.5f} {sensor.elevation:.1f} "
        f"{sensor.depth[0]:.4f} {sensor.depth[1]:.4f} '{sensor.instrument}'"
    ]
    lines += [
        f"{stamp} {value:.4g} {flag} {sensor.provider_flags}"
        for stamp, value, flag in zip(
            _stamps(sensor), sensor.values.tolist(), sensor.all_flags, strict=True
        )
    ]
    return "\n".join(lines) + "\n"


def _ceop(sensor: Sensor) -> str:
    network, station = _hyphenated(sensor)
    place = (
        f"{network:<10} {network:<10} {station:<15} {sensor.lat:10.5f} {sensor.lon:10.5f} "
        f"{sensor.elevation:7.2f} {sensor.depth[0]:7.2f} {sensor.depth[1]:7.2f}"
    )
    lines = [
        f"{stamp} {stamp} {place} {value:8.4f} {flag} {sensor.provider_flags}"
        for stamp, value, flag in zip(
            _stamps(sensor), sensor.values.tolist(), sensor.all_flags, strict=True
        )
    ]
    return "\n".join(lines) + "\n"


def _static(sensor: Sensor) -> str:
    lines = [
        _STATIC,
        "saturation;m^3*m^-3;0.00;0.30;0.45;;HWSD;simulated;;;;;;",
        "clay fraction;% weight;0.00;0.30;21.00;;HWSD;simulated;;;;;;",
        "sand fraction;% weight;0.00;0.30;40.00;;HWSD;simulated;;;;;;",
        "silt fraction;% weight;0.00;0.30;39.00;;HWSD;simulated;;;;;;",
        "organic carbon;% weight;0.00;0.30;1.20;;HWSD;simulated;;;;;;",
    ]
    if sensor.land_cover:
        lines += [
            f"land cover classification;;;;{sensor.land_cover};;CCI_landcover_{year};"
            "simulated;;;;;;"
            for year in (2000, 2005, 2010)
        ]
    if sensor.climate:
        lines.append(
            f"climate classification;;;;{sensor.climate};;koeppen_geiger_2007;simulated;;;;;;"
        )
    return "\n".join(lines) + "\n"


def write_station_table(path: str | os.PathLike[str], sensors: Iterable[Sensor]) -> Path:
    """Write a table of one's own stations, CSV or Parquet by the ending of its name.

    Parameters
    ----------
    path : path
        Ends in ``.csv``, ``.csv.gz`` or ``.parquet``.
    sensors : iterable of Sensor

    Returns
    -------
    Path
        `path`.
    """
    target = Path(path)
    parts = [
        pd.DataFrame(
            {
                "network": sensor.network,
                "station": sensor.station,
                "sensor": sensor.instrument,
                "lat": sensor.lat,
                "lon": sensor.lon,
                "time": pd.DatetimeIndex(sensor.time),
                "soil_moisture": np.asarray(sensor.values, dtype=np.float64),
                "flag": sensor.all_flags,
                "depth_from": sensor.depth[0],
                "depth_to": sensor.depth[1],
                "climate": sensor.climate,
            }
        )
        for sensor in sensors
    ]
    table = pd.concat(parts, ignore_index=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".parquet":
        table.to_parquet(target, index=False)
    else:
        table.to_csv(target, index=False, date_format="%Y-%m-%dT%H:%M:%SZ")
    return target
