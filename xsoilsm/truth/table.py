"""Outside the seven steps (truth): the form of truth, and the checks that all readers share.

Truth is a table of daily means of volumetric soil moisture in m3 m-3: one row for each station
and UTC day, and after `Truth.on_cells` one row for each cell of a grid and UTC day. What a
reader could not use stands in a report beside it; nothing that is in doubt enters a mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from xsoilsm import grid

__all__ = [
    "CELL_COLUMNS",
    "MAX_DEPTH",
    "REPORT_COLUMNS",
    "STATION_COLUMNS",
    "Remarks",
    "Subject",
    "Truth",
    "Verdict",
    "combine_sensors",
    "daily_means",
    "drop_ambiguous",
    "judge_values",
    "utc_days",
]

STATION_COLUMNS = (
    "network",
    "station",
    "lat",
    "lon",
    "date",
    "soil_moisture",
    "n_values",
    "n_sensors",
    "depth_from",
    "depth_to",
    "land_cover",
    "climate",
)
"""Columns of a table of stations: degrees, m3 m-3, m; `date` is midnight UTC of the day."""

CELL_COLUMNS = (
    "resolution",
    "row",
    "column",
    "lat",
    "lon",
    "date",
    "soil_moisture",
    "n_stations",
    "n_sensors",
    "depth_from",
    "depth_to",
    "network",
    "station",
    "land_cover",
    "climate",
)
"""Columns of a table of cells; lat and lon are those of the centre of the cell."""

REPORT_COLUMNS = ("source", "network", "station", "reason", "values", "left_out")
"""Columns of a report. `values` counts what a remark is about, 0 for a whole file; `left_out`
is false where something was kept all the same."""

MAX_DEPTH = 0.05
"""Lower end in m of the deepest sensor that counts (Zhu et al. 2024: the top 5 cm)."""

_PERCENT_SHARE = 0.01  # a larger share of values above 1 says that the unit is not m3 m-3
_SAME_PLACE = 0.01  # degrees: sensors of one station that lie farther apart are in doubt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Subject(NamedTuple):
    """What a remark is about: a file, a network, a station."""

    source: str = ""
    network: str = ""
    station: str = ""


class Remarks:
    """What a reader has to say: an ever longer list that becomes a report."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str, str, int, bool]] = []

    def add(self, reason: str, subject: Subject, *, values: int = 0, left_out: bool = True) -> None:
        """Note what happened to a file (`values` = 0) or to some of its values."""
        self._rows.append((*subject, reason, int(values), left_out))

    def table(self) -> pd.DataFrame:
        """Table of all remarks, in their order."""
        return pd.DataFrame(self._rows, columns=list(REPORT_COLUMNS))


@dataclass(frozen=True)
class Truth:
    """Daily soil moisture of stations or cells.

    Parameters
    ----------
    table : DataFrame
        `STATION_COLUMNS`, or `CELL_COLUMNS` once it is on a grid.
    report : DataFrame
        `REPORT_COLUMNS`: what was left out, and why.
    max_gap : int, default 0
        Days between two values that may be bridged by a straight line to the date of an
        acquisition; 0 where only values of the same day count.
    """

    table: pd.DataFrame
    report: pd.DataFrame = field(default_factory=lambda: Remarks().table())
    max_gap: int = 0

    def __post_init__(self) -> None:
        for columns in (CELL_COLUMNS, STATION_COLUMNS):
            if set(columns) <= set(self.table.columns):
                return
        lacking = [c for c in STATION_COLUMNS if c not in self.table.columns]
        msg = (
            f"a table of truth lacks {', '.join(lacking)}; read it with "
            "xsoilsm.truth.read_stations, which also checks it"
        )
        raise ValueError(msg)

    @property
    def resolution(self) -> str | None:
        """Name of the grid, or None for stations."""
        if "resolution" not in self.table.columns:
            return None
        names = self.table["resolution"].unique()
        if len(names) != 1:
            msg = f"a table of cells must be on one grid; found {sorted(map(str, names))}"
            raise ValueError(msg)
        return str(names[0])

    @property
    def sites(self) -> pd.DataFrame:
        """One row for each station or cell: its place, names and number of days."""
        keys = ["network", "station"] if self.resolution is None else ["row", "column"]
        rest = [c for c in ("lat", "lon", "network", "station", "land_cover", "climate")]
        named = {c: (c, "first") for c in rest if c not in keys}
        sites = self.table.groupby(keys, sort=True).agg(days=("date", "size"), **named)
        return sites.reset_index()

    def on_cells(self, res: str) -> Truth:
        """Average stations of one cell, day by day.

        Computes.

        Parameters
        ----------
        res : {"9km", "1km", "500m", "100m"}

        Returns
        -------
        Truth
            One row for each cell and day. Stations count alike, however many sensors they
            have. `network` and `station` name all that ever count in the cell, joined by "+".

        Raises
        ------
        ValueError
            When the truth is on another grid already.
        """
        cells = grid.get_grid(res)
        if self.resolution is not None:
            if self.resolution != cells.name:
                msg = (
                    f"the truth is on the {self.resolution} grid, not {cells.name}; read the "
                    "stations again and put them on that grid"
                )
                raise ValueError(msg)
            return self
        table, remarks = self.table, Remarks()
        x, y = grid.lonlat_to_xy(table["lon"].to_numpy(), table["lat"].to_numpy())
        row, column = cells.index(x, y)
        inside = (row >= 0) & (row < cells.shape[0]) & (column >= 0) & (column < cells.shape[1])
        for name, lost in table[~inside].groupby(["network", "station"]):
            network, station = map(str, name)
            remarks.add(
                f"lies outside of EASE-Grid 2.0, which ends at {grid.LATITUDE_LIMIT} degrees",
                Subject("", network, station),
                values=len(lost),
            )
        placed = table.assign(row=row, column=column)[inside]
        if placed.empty:
            data = pd.DataFrame(columns=list(CELL_COLUMNS))
        else:
            days = placed.groupby(["row", "column", "date"], sort=True).agg(
                soil_moisture=("soil_moisture", "mean"),
                n_stations=("soil_moisture", "size"),
                n_sensors=("n_sensors", "sum"),
                depth_from=("depth_from", "min"),
                depth_to=("depth_to", "max"),
            )
            names = placed.groupby(["row", "column"], sort=True).agg(
                network=("network", _joined),
                station=("station", _joined),
                land_cover=("land_cover", _commonest),
                climate=("climate", _commonest),
            )
            data = days.reset_index().merge(
                names.reset_index(), on=["row", "column"], how="left", validate="many_to_one"
            )
            centre = cells.centre(data["row"].to_numpy(), data["column"].to_numpy())
            lon, lat = grid.xy_to_lonlat(*centre)
            data = data.assign(resolution=cells.name, lat=lat, lon=lon)[list(CELL_COLUMNS)]
        report = _stacked([self.report, remarks.table()])
        return replace(self, table=data, report=report)

    def between(self, start: Any, end: Any) -> Truth:
        """Keep the days from `start` to `end`, both included. Computes."""
        dates = self.table["date"].to_numpy()
        kept = (dates >= np.datetime64(start, "D")) & (dates <= np.datetime64(end, "D"))
        return replace(self, table=self.table[kept].reset_index(drop=True))

    @staticmethod
    def joined(parts: Sequence[Truth]) -> Truth:
        """Put truths of several sources together.

        Raises
        ------
        ValueError
            When there are none, they are of different form, or two hold the same station or
            cell on the same day.
        """
        if not parts:
            msg = "there is no truth to put together"
            raise ValueError(msg)
        if len({part.resolution for part in parts}) > 1 or len({p.max_gap for p in parts}) > 1:
            msg = "truth of stations and of cells, or of different grids, cannot be put together"
            raise ValueError(msg)
        table = _stacked([part.table for part in parts])
        keys = ["network", "station"] if parts[0].resolution is None else ["row", "column"]
        twice = table.duplicated([*keys, "date"])
        if twice.any():
            first = table[twice].iloc[0]
            msg = (
                f"{int(twice.sum())} days are held twice, for instance that of "
                f"{' '.join(str(first[k]) for k in keys)} on {first['date']:%Y-%m-%d}; read "
                "overlapping files with one call, which tells equal values from contradictions"
            )
            raise ValueError(msg)
        report = _stacked([part.report for part in parts])
        return Truth(table, report, parts[0].max_gap)


def _stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables below each other; empty ones are left away, for they have no types."""
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else tables[0].reset_index(drop=True)


def _joined(names: pd.Series) -> str:
    return "+".join(sorted({str(name) for name in names.unique() if name}))


def _commonest(names: pd.Series) -> str:
    known = names[names != ""]
    return str(known.mode().iloc[0]) if len(known) else ""


# --------------------------------------------------------------------------- checks


class Verdict(NamedTuple):
    """What the checks say of a series of values.

    Parameters
    ----------
    keep : (value,) ndarray of bool
    dropped : list of (reason, number of values)
    refused : str
        Why the whole series cannot be used; empty where it can.
    """

    keep: Flags
    dropped: list[tuple[str, int]]
    refused: str


def judge_values(values: npt.ArrayLike) -> Verdict:
    """Tell soil moisture in m3 m-3 from fill values, percent and nonsense.

    Computes.

    Parameters
    ----------
    values : (value,) array_like

    Returns
    -------
    Verdict
        Values that are missing, negative or above 1 are dropped. More than one in a hundred
        above 1 says that the unit is another one: then the whole series is refused, because
        those below 1 are in that unit too.
    """
    found = np.asarray(values, dtype=np.float64)
    missing = ~np.isfinite(found)
    negative = ~missing & (found < 0)
    high = ~missing & (found > 1)
    usable = ~(missing | negative)
    dropped = []
    if missing.any():
        dropped.append(("missing value", int(missing.sum())))
    if negative.any():
        lowest = f"{found[negative].min():g}"
        dropped.append((f"negative, for instance a fill value ({lowest})", int(negative.sum())))
    refused = ""
    if usable.any() and high.sum() > _PERCENT_SHARE * usable.sum():
        refused = (
            f"{high.sum()} of {usable.sum()} values lie above 1 (median "
            f"{np.median(found[usable]):.3g}), so they are not in m3 m-3; where they are percent, "
            "divide them by 100"
        )
    elif high.any():
        dropped.append((f"above 1 m3 m-3 ({found[high].max():g})", int(high.sum())))
    return Verdict(usable & ~high, dropped, refused)


def judge_place(lat: float, lon: float) -> str:
    """Say what is wrong with a position; empty where nothing is."""
    if not (np.isfinite(lat) and np.isfinite(lon)):
        return "has no position"
    if lat == 0 and lon == 0:
        return "has the position 0, 0, which stands for an unknown one"
    if not (-90 <= lat <= 90 and -180 <= lon <= 180):
        return f"has the position lat {lat:g}, lon {lon:g}; are the two swapped?"
    return ""


def judge_places(lat: npt.ArrayLike, lon: npt.ArrayLike) -> str:
    """Say what is wrong with the positions of the sensors of one station."""
    lats, lons = np.asarray(lat, dtype=np.float64), np.asarray(lon, dtype=np.float64)
    for one in zip(lats.tolist(), lons.tolist(), strict=True):
        wrong = judge_place(*one)
        if wrong:
            return wrong
    if max(np.ptp(lats), np.ptp(lons)) > _SAME_PLACE:
        return (
            f"has sensors {max(np.ptp(lats), np.ptp(lons)):.3g} degrees apart; give the places "
            "names of their own"
        )
    return ""


def drop_ambiguous(
    time: npt.NDArray[np.datetime64], values: Floats
) -> tuple[Flags, list[tuple[str, int]]]:
    """Tell which values to keep where a time stamp occurs more than once.

    Computes.

    Parameters
    ----------
    time : (value,) ndarray of datetime64
    values : (value,) ndarray

    Returns
    -------
    keep : (value,) ndarray of bool
        Of equal values the first is kept, of contradicting ones none.
    dropped : list of (reason, number of values)
    """
    keep = np.ones(time.size, dtype=np.bool_)
    series = pd.Series(time)
    if not series.duplicated().any():
        return keep, []
    frame = pd.DataFrame({"time": time, "value": values})
    spread = frame.groupby("time")["value"].transform(lambda v: v.max() - v.min()).to_numpy()
    contradicting = spread > 1e-9
    repeated = series.duplicated().to_numpy() & ~contradicting
    keep = ~(contradicting | repeated)
    reasons = [
        ("time stamp held more than once with contradicting values", int(contradicting.sum())),
        ("time stamp held more than once with the same value", int(repeated.sum())),
    ]
    return keep, [(reason, number) for reason, number in reasons if number]


# --------------------------------------------------------------------------- means


def utc_days(time: npt.NDArray[np.datetime64]) -> npt.NDArray[np.datetime64]:
    """UTC day of each instant as datetime64[ns], midnight."""
    return time.astype("datetime64[D]").astype("datetime64[ns]")


def daily_means(
    time: npt.NDArray[np.datetime64], values: Floats, min_values: int = 1
) -> pd.DataFrame:
    """Average the values of each UTC day.

    Computes.

    Parameters
    ----------
    time : (value,) ndarray of datetime64
        UTC.
    values : (value,) ndarray
    min_values : int, default 1
        Values that a day must have.

    Returns
    -------
    DataFrame
        Columns date, soil_moisture, n_values.
    """
    frame = pd.DataFrame({"date": utc_days(time), "value": values})
    days = frame.groupby("date", sort=True)["value"].agg(["mean", "size"]).reset_index()
    days.columns = pd.Index(["date", "soil_moisture", "n_values"])
    return days[days["n_values"] >= min_values].reset_index(drop=True)


def combine_sensors(sensors: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Average the sensors of one station, day by day.

    Computes.

    Parameters
    ----------
    sensors : iterable of DataFrame
        From `daily_means`, with columns depth_from and depth_to in m.

    Returns
    -------
    DataFrame
        Columns date, soil_moisture, n_values, n_sensors, depth_from, depth_to. Sensors count
        alike, however many values they have.
    """
    together = _stacked(list(sensors))
    days = together.groupby("date", sort=True).agg(
        soil_moisture=("soil_moisture", "mean"),
        n_values=("n_values", "sum"),
        n_sensors=("soil_moisture", "size"),
        depth_from=("depth_from", "min"),
        depth_to=("depth_to", "max"),
    )
    return days.reset_index()
