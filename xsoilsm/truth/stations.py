"""Outside the seven steps (truth): tables of one's own stations, CSV or Parquet.

A table has one row for each value of each sensor. It needs five columns: ``station``, ``lat``,
``lon``, ``time`` and ``soil_moisture``; further ones are used where they are there (`OPTIONAL`).
The checks are those that archives of the International Soil Moisture Network go through.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from xsoilsm.timespan import Time, days_of
from xsoilsm.truth.table import (
    MAX_DEPTH,
    STATION_COLUMNS,
    Remarks,
    Subject,
    Truth,
    combine_sensors,
    daily_means,
    drop_ambiguous,
    judge_places,
    judge_values,
)

__all__ = ["MINIMUM", "OPTIONAL", "read_stations"]

MINIMUM = {
    "station": "name of the place",
    "lat": "latitude in degrees, WGS 84",
    "lon": "longitude in degrees, WGS 84",
    "time": "instant or day; with an offset, or in UTC",
    "soil_moisture": "volumetric soil moisture in m3 m-3",
}
"""Columns that a table must have."""

OPTIONAL = {
    "network": "name of the network; the file's name where it is absent",
    "sensor": "name of the sensor, where a station has several",
    "flag": "quality flag; only rows with G or an empty flag count",
    "depth_from": "upper end of the sensor in m",
    "depth_to": "lower end of the sensor in m; the top 5 cm are assumed where it is absent",
    "land_cover": "class of land cover",
    "climate": "class of climate",
}
"""Columns that are used where a table has them; all others are passed over."""

_SPELLINGS = {"latitude": "lat", "longitude": "lon", "date": "time", "datetime": "time"}
_CENTIMETRES = 1.0  # m: a table in which no sensor lies above this is not in metres


def read_stations(
    source: str | os.PathLike[str] | pd.DataFrame,
    *,
    network: str | None = None,
    time: Time | None = None,
    max_depth: float = MAX_DEPTH,
    min_values: int = 1,
) -> Truth:
    """Read a table of stations.

    Computes.

    Parameters
    ----------
    source : path or DataFrame
        CSV (also compressed) or Parquet, with the columns of `MINIMUM` and any of `OPTIONAL`;
        latitude, longitude, date and datetime are understood as well.
    network : str, optional
        Name of the network, for tables without that column.
    time : str, (start, end) or slice, optional
        Days to keep, see `xsoilsm.load_cube`.
    max_depth : float, default 0.05
        Lower end in m of the deepest sensor that counts.
    min_values : int, default 1
        Values that a sensor must have on a day.

    Returns
    -------
    Truth
        Daily means of each station over its sensors, by UTC day, with a report of what was
        left out.

    Raises
    ------
    FileNotFoundError
        When the file does not exist.
    ValueError
        When the file cannot be read, columns are missing, times cannot be understood, depths
        are not in m, or nothing can be used; units are named where they are the reason.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame(
    ...     {
    ...         "station": "North field",
    ...         "lat": 41.3,
    ...         "lon": -5.4,
    ...         "time": ["2020-04-01T06:00Z", "2020-04-01T18:00Z"],
    ...         "soil_moisture": [0.21, 0.19],
    ...     }
    ... )
    >>> read_stations(table, network="mine").table[["date", "soil_moisture", "n_values"]]
            date  soil_moisture  n_values
    0 2020-04-01            0.2         2
    """
    name, table = _load(source)
    table = table.rename(columns={k: v for k, v in _SPELLINGS.items() if v not in table.columns})
    missing = [column for column in MINIMUM if column not in table.columns]
    if missing:
        wanted = "; ".join(f"{column} ({MINIMUM[column]})" for column in missing)
        msg = f"{name} lacks {wanted}; it has the columns {', '.join(map(str, table.columns))}"
        raise ValueError(msg)
    if table.empty:
        msg = f"{name} holds no row"
        raise ValueError(msg)
    remarks = Remarks()
    rows = _prepared(name, table, network)
    rows = _in_depth(name, rows, max_depth, remarks)
    if time is not None:
        start, end = days_of(time)
        stamps = rows["time"].to_numpy().astype("datetime64[D]")
        rows = rows[(stamps >= np.datetime64(start)) & (stamps <= np.datetime64(end))]
    tables, refusals = [], []
    for key, part in rows.groupby(["network", "station"], sort=True):
        subject = Subject(name, *map(str, key))
        found, refused = _station(part, remarks, subject, min_values)
        refusals += refused
        if found is not None:
            tables.append(found)
    if not tables:
        reasons = "; ".join(dict.fromkeys(refusals)) or "; ".join(
            remarks.table()["reason"].value_counts().index[:3]
        )
        msg = f"{name} holds nothing that can be used: {reasons or 'no row lies in the time'}"
        raise ValueError(msg)
    return Truth(pd.concat(tables, ignore_index=True), remarks.table())


def _load(source: str | os.PathLike[str] | pd.DataFrame) -> tuple[str, pd.DataFrame]:
    if isinstance(source, pd.DataFrame):
        return "the table", source
    path = Path(source)
    if not path.is_file():
        msg = f"{path} is not a file; expected a table of stations, CSV or Parquet"
        raise FileNotFoundError(msg)
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return path.name, pd.read_parquet(path)
        return path.name, pd.read_csv(path, low_memory=False)
    except (ValueError, OSError, EOFError) as error:
        told = " ".join(str(error).split())
        msg = f"{path} cannot be read as a table: {told}; expected CSV with a header or Parquet"
        raise ValueError(msg) from error


def _prepared(name: str, table: pd.DataFrame, network: str | None) -> pd.DataFrame:
    """Columns of the right types, optional ones with what their absence means."""
    rows = pd.DataFrame(index=table.index)
    rows["time"] = _utc(name, table["time"])
    for column in ("lat", "lon", "soil_moisture", "depth_from", "depth_to"):
        if column in table.columns:
            rows[column] = _numbers(name, table[column])
    own = network or (name.split(".")[0] if name != "the table" else "")
    for column, absent in (
        ("network", own),
        ("station", ""),
        ("sensor", ""),
        ("flag", "G"),
        ("land_cover", ""),
        ("climate", ""),
    ):
        if column in table.columns:
            texts = table[column].astype(object).where(table[column].notna(), absent)
            rows[column] = texts.astype(str).str.strip()
        else:
            rows[column] = absent
    return rows


def _utc(name: str, column: pd.Series) -> pd.Series:
    """Instants as datetime64[ns] in UTC; those without an offset are taken as UTC."""
    if pd.api.types.is_numeric_dtype(column):
        msg = (
            f"{name}: `time` holds numbers ({column.iloc[0]}); expected instants or days such as "
            "2020-04-15T06:00Z"
        )
        raise ValueError(msg)
    try:
        if pd.api.types.is_datetime64_any_dtype(column):
            stamps = pd.to_datetime(column, utc=True)
        else:
            stamps = pd.to_datetime(column, utc=True, format="ISO8601")
    except (ValueError, TypeError) as error:
        told = " ".join(str(error).split())[:160]
        msg = (
            f"{name}: `time` cannot be understood ({told}); expected ISO 8601, as 2020-04-15T06:00Z"
        )
        raise ValueError(msg) from error
    plain: pd.Series = stamps.dt.tz_localize(None).astype("datetime64[ns]")
    return plain


def _numbers(name: str, column: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    odd = numbers.isna() & column.notna()
    if odd.any():
        msg = (
            f"{name}: `{column.name}` holds {column[odd].iloc[0]!r}, expected numbers; "
            f"{int(odd.sum())} row(s) are like that"
        )
        raise ValueError(msg)
    return numbers


def _in_depth(name: str, rows: pd.DataFrame, max_depth: float, remarks: Remarks) -> pd.DataFrame:
    if "depth_to" not in rows.columns and "depth_from" not in rows.columns:
        return rows.assign(depth_from=0.0, depth_to=max_depth)
    if "depth_to" not in rows.columns:
        rows = rows.assign(depth_to=rows["depth_from"])
    if "depth_from" not in rows.columns:
        rows = rows.assign(depth_from=rows["depth_to"])
    bottom, top = rows["depth_to"], rows["depth_from"]
    if bottom.min() >= _CENTIMETRES:
        msg = (
            f"{name}: `depth_to` runs from {bottom.min():g} to {bottom.max():g}, expected metres; "
            "where it is in cm, divide it by 100"
        )
        raise ValueError(msg)
    wrong = bottom.isna() | top.isna() | (bottom < 0) | (top > bottom)
    deep = ~wrong & (bottom > max_depth + 1e-6)
    for lost, reason in (
        (wrong, "depths are missing, negative or upside down"),
        (deep, f"deeper than {max_depth:g} m"),
    ):
        for key, part in rows[lost].groupby(["network", "station"]):
            hint = reason
            if lost is deep and part["depth_to"].min() >= _CENTIMETRES:
                hint += f" (from {part['depth_to'].min():g} m on; in m and not in cm?)"
            remarks.add(hint, Subject(name, *map(str, key)), values=len(part))
    kept = rows[~(wrong | deep)]
    if kept.empty:
        msg = f"{name} has no sensor at {max_depth:g} m or above"
        raise ValueError(msg)
    return kept


def _station(
    part: pd.DataFrame, remarks: Remarks, subject: Subject, min_values: int
) -> tuple[pd.DataFrame | None, list[str]]:
    """Daily means of one station, and why sensors were refused as a whole."""
    places = part[["lat", "lon"]].drop_duplicates()
    wrong = judge_places(places["lat"], places["lon"])
    if wrong:
        remarks.add(wrong, subject)
        return None, [wrong]
    refused, sensors = [], []
    for _, rows in part.groupby(["sensor", "depth_from", "depth_to"], sort=True):
        good = rows["flag"].isin(["G", ""]).to_numpy()
        if not good.all():
            remarks.add("other flags than G", subject, values=int((~good).sum()))
        stamped = rows["time"].notna().to_numpy()
        if (good & ~stamped).any():
            remarks.add("no time", subject, values=int((good & ~stamped).sum()))
        usable = rows[good & stamped]
        values = usable["soil_moisture"].to_numpy()
        verdict = judge_values(values)
        if verdict.refused:
            remarks.add(verdict.refused, subject, values=len(usable))
            refused.append(verdict.refused)
            continue
        stamps = usable["time"].to_numpy()[verdict.keep]
        clear, doubled = drop_ambiguous(stamps, values[verdict.keep])
        for reason, number in [*verdict.dropped, *doubled]:
            remarks.add(reason, subject, values=number)
        days = daily_means(stamps[clear], values[verdict.keep][clear], min_values)
        if len(days):
            depths = {c: float(rows[c].iloc[0]) for c in ("depth_from", "depth_to")}
            sensors.append(days.assign(**depths))
    if not sensors:
        return None, refused
    table = combine_sensors(sensors).assign(
        network=subject.network,
        station=subject.station,
        lat=float(part["lat"].median()),
        lon=float(part["lon"].median()),
        land_cover=str(part["land_cover"].iloc[0]),
        climate=str(part["climate"].iloc[0]),
    )
    return table[list(STATION_COLUMNS)], refused
