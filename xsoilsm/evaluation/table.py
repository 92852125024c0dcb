"""Outside the seven steps (evaluation): the table of samples that everything is computed from.

One row for each retrieval that has a truth. `tabulate` brings Datasets in sample form and
DataFrames to the same columns and checks them; nothing after it asks where they came from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

__all__ = ["COLUMNS", "is_simulated", "match_days", "site_keys", "tabulate"]

COLUMNS = {
    "truth": "true daily mean in m3 m-3",
    "predicted": "retrieved, m3 m-3; NaN where the retrieval failed",
    "spread": "standard deviation of the members, m3 m-3",
    "cell": "name of the cell; the site",
    "network": "name of the network",
    "station": "name of the station or stations in the cell",
    "land_cover": "class of land cover",
    "climate": "class of climate (Koeppen-Geiger)",
    "time": "acquisition in UTC",
    "lat": "latitude in degrees",
    "lon": "longitude in degrees",
}
"""Columns of a table of samples; those from `network` on may be absent."""

_NAMES = ("cell", "network", "station", "land_cover", "climate")
_SPELLINGS = {"date": "time", "soil_moisture_std": "spread", "std": "spread"}
_ORIGINS = ("source", "inputs", "title")
_PERCENT_SHARE = 0.01  # a larger share of values above 1 says that the unit is not m3 m-3


def tabulate(
    samples: pd.DataFrame | xr.Dataset,
    *,
    truth: str = "soil_moisture",
    predicted: str = "predicted",
) -> pd.DataFrame:
    """Bring samples to the columns of `COLUMNS`, and check them.

    Computes.

    Parameters
    ----------
    samples : DataFrame or Dataset (sample)
    truth : str, default "soil_moisture"
        Name of the column or variable with the truth.
    predicted : str, default "predicted"
        Name of the column or variable with the retrieval.

    Returns
    -------
    DataFrame
        In the order of `samples`, without those that have no truth. Without a column ``cell``
        the site is `row` and `column`, or network and station, or latitude and longitude.

    Raises
    ------
    ValueError
        When a column is missing, values are not in m3 m-3, no sample has a truth, or nothing
        tells the sites apart.
    """
    frame = _frame(samples)
    for name, role in ((truth, "truth"), (predicted, "predicted")):
        if name not in frame:
            msg = (
                f"the samples have no column {name!r} for the {role}; they have "
                f"{', '.join(map(str, frame.columns))}. Pass its name as {role}=..."
            )
            raise ValueError(msg)
    if truth == predicted:
        msg = f"truth and prediction are the same column, {truth!r}"
        raise ValueError(msg)
    frame = frame.rename(columns={k: v for k, v in _SPELLINGS.items() if v not in frame})
    table = pd.DataFrame(
        {"truth": frame[truth].to_numpy(float), "predicted": frame[predicted].to_numpy(float)}
    )
    _check_unit(table["truth"].to_numpy(), truth)
    _check_unit(table["predicted"].to_numpy(), predicted)
    for name in ("spread", "lat", "lon"):
        if name in frame:
            table[name] = frame[name].to_numpy(float)
    if "time" in frame:
        table["time"] = _utc(frame["time"])
    table["cell"] = _cells(frame)
    for name in _NAMES[1:]:
        if name in frame:
            table[name] = _text(frame[name])
    known = np.isfinite(table["truth"].to_numpy())
    if not known.any():
        msg = f"no sample has a truth: all {len(table)} values of {truth!r} are missing"
        raise ValueError(msg)
    table = table[known].reset_index(drop=True)
    result: pd.DataFrame = table
    result.attrs = {"without_truth": int((~known).sum()), "simulated": is_simulated(samples)}
    return result


def is_simulated(samples: pd.DataFrame | xr.Dataset) -> bool:
    """Tell whether samples say that they are simulated.

    They do by an attribute or column ``simulated``, or by the word in ``source``, ``inputs`` or
    ``title``, where cubes and retrievals of the virtual landscape have it.
    """
    said = samples.attrs.get("simulated", False)
    if any("simulated" in str(samples.attrs.get(n, "")).lower() for n in _ORIGINS):
        return True
    if "simulated" in samples:
        said = said or bool(np.any(np.asarray(samples["simulated"])))
    return bool(said) and str(said).lower() not in ("false", "0", "no")


def site_keys(table: pd.DataFrame) -> dict[str, npt.NDArray[Any]]:
    """Give codes to what training and validation of different sites must not share.

    Parameters
    ----------
    table : DataFrame
        With ``cell``, and any of network, station, lat, lon.

    Returns
    -------
    dict of str to (sample,) ndarray of int
        ``cell``; ``station`` (with its network); ``place``. -1 stands for unknown.
    """
    keys = {"cell": pd.factorize(table["cell"])[0]}
    if "station" in table:
        network = table["network"] if "network" in table else pd.Series("", index=table.index)
        both = network.astype(str) + " / " + table["station"].astype(str)
        keys["station"] = pd.factorize(both.where(table["station"].astype(str) != "", None))[0]
    if "lat" in table and "lon" in table:
        place = table["lat"].round(5).astype(str) + " " + table["lon"].round(5).astype(str)
        keys["place"] = pd.factorize(place.where(table["lat"].notna(), None))[0]
    return keys


def match_days(result: xr.Dataset, truth: pd.DataFrame) -> pd.DataFrame:
    """Pair retrievals of a map with the truth of the same cell and UTC day.

    Computes: reads only the cells that hold truth.

    Parameters
    ----------
    result : Dataset (time, y, x)
        Of `xsoilsm.retrieve`.
    truth : DataFrame
        `xsoilsm.truth.CELL_COLUMNS` on the same grid, as `Truth.on_cells` gives it.

    Returns
    -------
    DataFrame
        Columns of `COLUMNS`, one row for each acquisition and cell with a truth of that day.

    Raises
    ------
    ValueError
        When no truth lies in the region and time of the result.
    """
    from xsoilsm import grid
    from xsoilsm.cube import cube_geobox

    cells, (top, bottom), (left, right) = grid.grid_of(cube_geobox(result))
    inside = truth["row"].between(top, bottom - 1) & truth["column"].between(left, right - 1)
    here = truth[inside]
    days = result["time"].to_numpy().astype("datetime64[D]").astype("datetime64[ns]")
    acquisitions = pd.DataFrame({"date": days, "index": np.arange(days.size)})
    dates = here.assign(date=here["date"].to_numpy().astype("datetime64[ns]"))
    pairs = dates.merge(acquisitions, on="date", how="inner")
    if pairs.empty:
        msg = (
            f"none of {len(truth)} daily values of truth lies in the region and on a day of the "
            f"result: {int(inside.sum())} lie in its {bottom - top} x {right - left} cells, and "
            f"its acquisitions are of {_period(days)}"
        )
        raise ValueError(msg)
    at = {
        "time": xr.DataArray(pairs["index"].to_numpy(), dims="sample"),
        "y": xr.DataArray(pairs["row"].to_numpy() - top, dims="sample"),
        "x": xr.DataArray(pairs["column"].to_numpy() - left, dims="sample"),
    }
    wanted = [n for n in ("soil_moisture", "soil_moisture_std") if n in result]
    found = result[wanted].isel(at).compute()
    table = pairs.rename(columns={"soil_moisture": "truth"}).assign(
        predicted=found["soil_moisture"].to_numpy(),
        time=result["time"].to_numpy()[pairs["index"].to_numpy()],
        cell=[
            f"{cells.name} {row} {column}"
            for row, column in zip(pairs["row"], pairs["column"], strict=True)
        ],
    )
    if "soil_moisture_std" in found:
        table["spread"] = found["soil_moisture_std"].to_numpy()
    kept = table[[name for name in COLUMNS if name in table]].reset_index(drop=True)
    kept.attrs = {"simulated": is_simulated(result)}
    return kept


def _period(days: npt.NDArray[np.datetime64]) -> str:
    first, last = days.min().astype("datetime64[D]"), days.max().astype("datetime64[D]")
    return str(first) if first == last else f"{first} to {last}"


# --------------------------------------------------------------------------- columns


def _frame(samples: pd.DataFrame | xr.Dataset) -> pd.DataFrame:
    if isinstance(samples, pd.DataFrame):
        return samples
    if "sample" not in samples.dims:
        msg = (
            f"samples have one dim, 'sample'; found {', '.join(map(str, samples.dims))}. A map is "
            "compared with stations by xsoilsm.evaluation.evaluate_dataset"
        )
        raise ValueError(msg)
    names = [str(n) for n, v in samples.variables.items() if v.dims == ("sample",)]
    return pd.DataFrame({n: samples[n].to_numpy() for n in names if n != "sample"})


def _check_unit(values: npt.NDArray[np.float64], name: str) -> None:
    known = values[np.isfinite(values)]
    high = int((known > 1).sum())
    if high > _PERCENT_SHARE * known.size:
        msg = (
            f"{high} of {known.size} values of {name!r} lie above 1 (median "
            f"{np.median(known):.3g}), so they are not in m3 m-3; divide percent by 100"
        )
        raise ValueError(msg)


def _utc(time: pd.Series) -> pd.Series:
    parsed = pd.to_datetime(time, utc=True).dt.tz_localize(None)
    return pd.Series(parsed.to_numpy().astype("datetime64[ns]"))


def _text(values: pd.Series) -> npt.NDArray[Any]:
    known = values.notna()
    return np.where(known, values.astype(str).str.strip(), "").astype(object)


def _cells(frame: pd.DataFrame) -> npt.NDArray[Any]:
    for names in (("cell",), ("row", "column"), ("network", "station"), ("station",)):
        if all(name in frame for name in names):
            break
    else:
        if "lat" not in frame or "lon" not in frame:
            msg = (
                "nothing tells the sites of the samples apart; add a column 'cell', or 'row' and "
                "'column', or 'station'"
            )
            raise ValueError(msg)
        rounded = frame["lat"].round(5).astype(str) + " " + frame["lon"].round(5).astype(str)
        return rounded.to_numpy(object)
    parts = [_text(frame[name]) for name in names]
    if any((part == "").any() for part in parts):
        msg = f"the column {names[-1]!r} tells the sites apart, but is empty for some samples"
        raise ValueError(msg)
    return np.array([" ".join(row) for row in zip(*parts, strict=True)], dtype=object)
