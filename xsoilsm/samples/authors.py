"""Outside the seven steps (samples): the sample tables that the method's authors pass around.

A table holds 153 normalised columns, named 0 to 152: 15 values of the snapshot, then 46 steps
each of NDVI, temperature and precipitation, oldest first; beside them the truth (``gt``, or
``SMAP`` at 9 km), ``network``, ``station``, row and column of the 9 km cell (``r``, ``c``) and
the date as a spreadsheet counts days (``edate``).

Two orders of the snapshot are in circulation, and tables do not say which is theirs. The
published networks keep mean and spread of every input over their training set; an order fits
where the columns have such means and what must hold exactly does: sine and cosine are of one
angle, row and column are the cell's, the day of year is that of the date. Where neither order
fits the table is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from xsoilsm import grid
from xsoilsm.contract import Contract, Input, get_contract
from xsoilsm.samples.form import IDENTITY
from xsoilsm.truth.table import Remarks, Subject, judge_values

__all__ = ["ORDERS", "STATISTICS", "Order", "Statistics", "read_author_samples"]

Array = npt.NDArray[np.float64]

_SOURCES = (
    "sigma0_vv",
    "sigma0_vh",
    "incidence_angle",
    "sand",
    "clay",
    "bulk_density",
    "elevation",
    "slope",
    "aspect_sin",
    "aspect_cos",
    "row_9km",
    "column_9km_sin",
    "column_9km_cos",
    "day_of_year_cos",
)
"""Normalised values by the names of the contract ``published-coarse``."""

_SERIES = ("ndvi", "air_temperature", "precipitation")
_STEPS = 46
_COLUMNS = [str(k) for k in range(15 + 3 * _STEPS)]


@dataclass(frozen=True)
class Statistics:
    """Means and standard deviations of normalised inputs over a training set.

    Parameters
    ----------
    means, deviations : tuple of float
        In the order of `_SOURCES`.
    """

    means: tuple[float, ...]
    deviations: tuple[float, ...]

    def distance(self, found: Array) -> float:
        """Root mean square of the differences of means, in standard deviations."""
        z = (found - np.array(self.means)) / np.array(self.deviations)
        return float(np.sqrt(np.mean(np.square(z))))


STATISTICS = Statistics(
    means=(
        0.516,
        0.443,
        0.542,
        0.436,
        0.203,
        0.280,
        0.244,
        0.204,
        0.500,
        0.517,
        0.180,
        0.743,
        0.498,
        0.451,
    ),
    deviations=(
        0.067,
        0.098,
        0.248,
        0.188,
        0.087,
        0.182,
        0.223,
        0.159,
        0.062,
        0.065,
        0.077,
        0.319,
        0.298,
        0.338,
    ),
)
"""What the published coarse networks keep in the batch norm over their inputs (mean of all 25)."""


@dataclass(frozen=True)
class Order:
    """One order of the snapshot's columns.

    Parameters
    ----------
    name : str
    columns : tuple of int
        Columns of `_SOURCES`.
    sine : int or None
        Column of the sine of the day of year, where the order has one.
    row_from_minus_one : bool
        The row was normalised from -1 to 1, so that a share v became (v + 1) / 2.
    precipitation : float
        Factor to totals of 8 days: 8 where the columns hold daily means.
    """

    name: str
    columns: tuple[int, ...]
    sine: int | None
    row_from_minus_one: bool
    precipitation: float


ORDERS = (
    Order("training", (*range(13), 13), None, False, 1.0),
    Order("script", (0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 4), 3, True, 8.0),
)
"""``training``: that of the published networks. ``script``: that of the script published beside
them, which puts the day of year before soil, scales the row by another range and averages
precipitation where the networks saw totals."""

_FITS = 2.5  # standard deviations, root mean square over inputs
_CIRCLE = 0.02  # tolerance of sine^2 + cosine^2
_CELLS = 1.6  # rows or columns by which tables and columns may differ: their origins do by one
_DAYS = 0.02  # tolerance of the cosine of the day of year
_EXCEL = np.datetime64("1899-12-30", "D")
_PLAUSIBLE = (0.02, 8.0)  # m of precipitation a year


def read_author_samples(
    source: str | os.PathLike[str] | pd.DataFrame,
    *,
    contract: str | Mapping[str, Any] | Contract = "published-coarse",
    order: Literal["auto", "training", "script"] = "auto",
    resolution: str | None = None,
    statistics: Statistics = STATISTICS,
) -> tuple[xr.Dataset, pd.DataFrame]:
    """Import a table of samples in the authors' form.

    Computes.

    Parameters
    ----------
    source : path or DataFrame
        CSV (also compressed) or Parquet.
    contract : str, mapping or Contract, default "published-coarse"
        Contract to put the samples under; its ranges must be those of ``published-coarse``.
    order : {"auto", "training", "script"}, default "auto"
        Order of the columns; ``"auto"`` tells it by `statistics`. What must hold exactly is
        checked of a given order too.
    resolution : {"9km", "1km", "500m", "100m"}, optional
        Grid of the samples, which tables do not name; ``"9km"`` where the truth is SMAP.
    statistics : Statistics, optional
        Of the training set to compare with.

    Returns
    -------
    samples : Dataset
        As of `xsoilsm.samples.read_samples`. There are no physical inputs; `row` and `column`
        are those of the 9 km cell and `lat`, `lon` its centre, for a table knows no better. The
        attribute ``column_order`` names the order.
    report : DataFrame
        What was left out, and why.

    Raises
    ------
    FileNotFoundError
        When the file does not exist.
    ValueError
        When columns are missing or not normalised, no order fits, the grid is not known, or no
        sample is left.
    """
    name, table = _load(source)
    label = _check_columns(name, table)
    if resolution is None:
        if label != "SMAP":
            msg = f"{name} does not say of which grid it is; give resolution='1km' or another"
            raise ValueError(msg)
        resolution = "9km"
    grid.get_grid(resolution)
    remarks = Remarks()
    table = _without_gaps(name, table, label, remarks)
    values = table[_COLUMNS].to_numpy(dtype=np.float64)
    _check_normalised(name, values)
    time = _dates(name, table["edate"])
    found = _tell_order(name, values, table, time, order, statistics)
    inputs = _inputs(values, found, time)
    wanted = get_contract(contract)
    snapshot, series = _assemble(inputs, wanted)
    row, column = (table[k].to_numpy(dtype=np.int64) for k in ("r", "c"))
    lon, lat = grid.xy_to_lonlat(*grid.get_grid("9km").centre(row, column))
    coords: dict[str, Any] = {
        "row": row,
        "column": column,
        "lat": lat,
        "lon": lon,
        "time": time,
        "network": _texts(table, ("network",), "SMAP" if label == "SMAP" else ""),
        "station": _texts(table, ("station",), ""),
        "land_cover": _texts(table, ("lc", "land_cover"), ""),
        "climate": _texts(table, ("climate", "kg"), ""),
    }
    truth = table[label].to_numpy(dtype=np.float64)
    samples = xr.Dataset(
        {
            "snapshot": (("sample", "feature"), snapshot, {"units": "1"}),
            "series": (("sample", "channel", "step"), series, {"units": "1"}),
            "soil_moisture": ("sample", truth, {"units": "m3 m-3"}),
        },
        {
            **{k: ("sample", np.asarray(coords[k], dtype=IDENTITY[k])) for k in IDENTITY},
            "feature": list(wanted.features),
            "channel": list(wanted.channels),
        },
        {
            "contract": wanted.name,
            "contract_digest": wanted.digest,
            "resolution": resolution,
            "averaging": wanted.averaging,
            "column_order": found.name,
        },
    )
    return samples, remarks.table()


# --------------------------------------------------------------------------- the table


def _load(source: str | os.PathLike[str] | pd.DataFrame) -> tuple[str, pd.DataFrame]:
    if isinstance(source, pd.DataFrame):
        return "the table", source.rename(columns=str)
    path = Path(source)
    if not path.is_file():
        msg = f"{path} is not a file; expected a table of samples, CSV or Parquet"
        raise FileNotFoundError(msg)
    try:
        whole = (
            pd.read_parquet(path)
            if path.suffix.lower() in (".parquet", ".pq")
            else pd.read_csv(path, low_memory=False)
        )
    except (ValueError, OSError, EOFError) as error:
        told = " ".join(str(error).split())
        msg = f"{path} cannot be read as a table: {told}"
        raise ValueError(msg) from error
    return path.name, whole.rename(columns=str)


def _check_columns(name: str, table: pd.DataFrame) -> str:
    """Name of the column of truth."""
    label = next((c for c in ("gt", "SMAP") if c in table.columns), None)
    lacking = [c for c in (*_COLUMNS, "r", "c", "edate") if c not in table.columns]
    if label is None:
        lacking.append("gt or SMAP")
    if lacking:
        more = f" and {len(lacking) - 6} more" if len(lacking) > 6 else ""
        msg = (
            f"{name} lacks the columns {', '.join(lacking[:6])}{more}; expected 0 to 152, gt (or "
            "SMAP), r, c, edate, and network and station"
        )
        raise ValueError(msg)
    if table.empty:
        msg = f"{name} holds no row"
        raise ValueError(msg)
    return str(label)


def _without_gaps(name: str, table: pd.DataFrame, label: str, remarks: Remarks) -> pd.DataFrame:
    """Rows of which nothing is missing and whose truth is soil moisture in m3 m-3."""
    subject = Subject(name)
    numbers = table[[*_COLUMNS, "r", "c", "edate", label]].apply(pd.to_numeric, errors="coerce")
    whole = np.isfinite(numbers.to_numpy(dtype=np.float64)).all(axis=1)
    if not whole.all():
        remarks.add("a value is missing or no number", subject, values=int((~whole).sum()))
    kept = pd.concat([numbers, table.drop(columns=numbers.columns)], axis=1)[whole]
    verdict = judge_values(kept[label])
    if verdict.refused:
        msg = f"{name}: `{label}`: {verdict.refused}"
        raise ValueError(msg)
    for reason, number in verdict.dropped:
        remarks.add(f"{label}: {reason}", subject, values=number)
    if not verdict.keep.any():
        msg = f"{name} holds no complete row"
        raise ValueError(msg)
    return pd.DataFrame(kept[verdict.keep]).reset_index(drop=True)


def _check_normalised(name: str, values: Array) -> None:
    lowest, highest = values.min(axis=0), values.max(axis=0)
    outside = np.flatnonzero((lowest < -1e-6) | (highest > 1 + 1e-6))
    if outside.size:
        k = int(outside[0])
        msg = (
            f"{name}: column {k} runs from {lowest[k]:.4g} to {highest[k]:.4g}, expected 0 to 1; "
            f"{outside.size} column(s) are not normalised. Tables in physical units cannot be "
            "imported: their units are not known"
        )
        raise ValueError(msg)


# --------------------------------------------------------------------------- the order


def _snapshot(values: Array, order: Order) -> Array:
    """Columns of `_SOURCES`, (sample, source), scaled as the networks' inputs."""
    taken: Array = values[:, list(order.columns)].copy()
    if order.row_from_minus_one:
        row = _SOURCES.index("row_9km")
        taken[:, row] = 2 * taken[:, row] - 1
    return taken


def _tell_order(
    name: str,
    values: Array,
    table: pd.DataFrame,
    time: npt.NDArray[np.datetime64],
    order: str,
    statistics: Statistics,
) -> Order:
    """Order whose columns have the means of training, and in which exact relations hold."""
    known = {candidate.name: candidate for candidate in ORDERS}
    if order != "auto" and order not in known:
        msg = f"order {order!r} is unknown; expected 'auto', {', '.join(map(repr, known))}"
        raise ValueError(msg)
    findings, fitting = [], []
    for candidate in ORDERS if order == "auto" else (known[order],):
        distance = statistics.distance(_snapshot(values, candidate).mean(axis=0))
        faults = _faults(_inputs(values, candidate, time), table, time)
        if order == "auto" and distance > _FITS:
            faults.insert(0, f"means lie {distance:.2f} standard deviations from those of training")
        findings.append(f"in the order {candidate.name!r}, {', '.join(faults)}")
        if not faults:
            fitting.append((distance, candidate))
    if not fitting:
        msg = (
            f"{name}: its columns fit no known order: {'; '.join(findings)}. Of a place unlike "
            "those of training (means only), name the order with order="
        )
        raise ValueError(msg)
    return min(fitting, key=lambda pair: pair[0])[1]


def _dates(name: str, column: pd.Series) -> npt.NDArray[np.datetime64]:
    days = column.to_numpy(dtype=np.float64)
    low, high = 41640, 73050  # 2014 to 2099
    if days.min() < low or days.max() > high:
        msg = (
            f"{name}: `edate` runs from {days.min():g} to {days.max():g}, expected days since "
            f"1899-12-30 as spreadsheets count them ({low} is 2014-01-01)"
        )
        raise ValueError(msg)
    seconds = np.round(days * 86400).astype("timedelta64[s]")
    time: npt.NDArray[np.datetime64] = _EXCEL.astype("datetime64[s]") + seconds
    return time.astype("datetime64[ns]")


def _angle_of_day(time: npt.NDArray[np.datetime64]) -> Array:
    day = (time.astype("datetime64[D]") - time.astype("datetime64[Y]")).astype(np.int64) + 1
    return np.asarray(2 * np.pi * day / 365)


def _inputs(values: Array, order: Order, time: npt.NDArray[np.datetime64]) -> dict[str, Array]:
    """Normalised inputs by name: (sample,), and (sample, step) for series."""
    inputs = dict(zip(_SOURCES, _snapshot(values, order).T, strict=True))
    # The networks' own order lost the sine; the date has it.
    sine = (np.sin(_angle_of_day(time)) + 1) / 2 if order.sine is None else values[:, order.sine]
    inputs["day_of_year_sin"] = sine
    for k, channel in enumerate(_SERIES):
        inputs[channel] = values[:, 15 + k * _STEPS : 15 + (k + 1) * _STEPS]
    inputs["precipitation"] = np.clip(inputs["precipitation"] * order.precipitation, 0, 1)
    return inputs


def _faults(
    inputs: dict[str, Array], table: pd.DataFrame, time: npt.NDArray[np.datetime64]
) -> list[str]:
    """Name what must hold exactly and does not, under an order."""
    faults = []
    circle = np.hypot(2 * inputs["column_9km_sin"] - 1, 2 * inputs["column_9km_cos"] - 1)
    if _share(np.abs(circle - 1) > _CIRCLE):
        faults.append("sine and cosine of the column are not of one angle")
    columns = grid.get_grid("9km").shape[1]
    angle = np.arctan2(2 * inputs["column_9km_sin"] - 1, 2 * inputs["column_9km_cos"] - 1)
    apart = np.abs(
        (angle / (2 * np.pi) * columns - table["c"] + columns / 2) % columns - columns / 2
    )
    if _share(apart > _CELLS):
        faults.append("sine and cosine of the column are not those of `c`")
    rows = grid.get_grid("9km").shape[0]
    if _share(np.abs(inputs["row_9km"] * rows - table["r"]) > _CELLS):
        faults.append("the row is not that of `r`")
    cosine = (np.cos(_angle_of_day(time)) + 1) / 2
    if _share(np.abs(cosine - inputs["day_of_year_cos"]) > _DAYS):
        faults.append("the cosine of the day of year is not that of `edate`")
    yearly = float(inputs["precipitation"].mean()) * 0.3 * _STEPS
    if not _PLAUSIBLE[0] <= yearly <= _PLAUSIBLE[1]:
        faults.append(f"precipitation comes to {yearly:.3g} m a year")
    return faults


def _share(wrong: Any) -> bool:
    """Tell whether more than one in a hundred is wrong."""
    return bool(np.mean(wrong) > 0.01)


# --------------------------------------------------------------------------- the contract


def _assemble(
    inputs: dict[str, Array], contract: Contract
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Snapshot (sample, feature) and series (sample, channel, step) under a contract."""
    published = get_contract("published-coarse")
    channels: dict[str, Array] = {}
    reference = {channel.source: channel for channel in published.series.channels}
    for channel in contract.series.channels:
        known = reference.get(channel.source)
        if known is None or known.range != channel.range:
            raise ValueError(_foreign(channel.name, contract))
        scaled = inputs[channel.source] * (channel.scale / known.scale)
        channels[channel.source] = np.clip(scaled, 0, 1) if known.range[0] == 0 else scaled
        if known.range[0] != 0 and channel.scale != known.scale:
            raise ValueError(_foreign(channel.name, contract))
    columns = []
    for item in contract.snapshot:
        if item.summary == "mean":
            columns.append(channels[item.source].mean(axis=1))
        elif item.summary == "last":
            columns.append(channels[item.source][:, -1])
        else:
            columns.append(_value(inputs, item, published, contract))
    series = np.stack([channels[c.source] for c in contract.series.channels], axis=1)
    return np.stack(columns, axis=1).astype(np.float32), series.astype(np.float32)


def _value(inputs: dict[str, Array], item: Input, published: Contract, contract: Contract) -> Array:
    if item.encoding is not None:
        same = [i for i in published.snapshot if i.source == item.source]
        name = f"{item.source}_{item.encoding}"
        if name not in inputs or any(i.cycle != item.cycle for i in same):
            raise ValueError(_foreign(item.name, contract))
        return inputs[name]
    for known in published.snapshot:
        if known.source == item.source and known.range == item.range and known.scale == item.scale:
            return inputs[item.source]
    raise ValueError(_foreign(item.name, contract))


def _foreign(name: str, contract: Contract) -> str:
    return (
        f"the contract {contract.name!r} has {name!r} with another range or source than the "
        "tables; import under 'published-coarse' or 'paper'"
    )


def _texts(table: pd.DataFrame, names: tuple[str, ...], absent: str) -> npt.NDArray[np.object_]:
    for name in names:
        if name in table.columns:
            texts = table[name].astype(object).where(table[name].notna(), absent)
            return texts.astype(str).to_numpy(dtype=object)
    return np.full(len(table), absent, dtype=object)
