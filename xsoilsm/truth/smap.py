"""Outside the seven steps (truth): soil moisture of SMAP on the 9 km grid.

Granules of SPL3SMP_E hold the retrievals of a UTC day: of descending passes at about 6 h in one
group, of ascending ones at about 18 h in another. Day by day the mean difference between the two
is taken from the ascending ones, where both exist the two are averaged, and dates of
acquisitions between two days are bridged by a straight line.

Source: Zhu et al. (2024, doi 10.1016/j.rse.2023.113944) for the way to a daily mean; NSIDC's
description of SPL3SMP_E for groups, fill values and quality bits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from xsoilsm import grid
from xsoilsm.timespan import Time, days_of
from xsoilsm.truth.table import CELL_COLUMNS, Remarks, Subject, Truth, judge_values

__all__ = ["MAX_GAP", "QUALITY_BITS", "download_smap", "interpolate_days", "read_smap"]

MAX_GAP = 8
"""Days between two retrievals that are bridged. The source sets no limit, but the statistics that
the published networks keep of their training set show gaps in the cold season, when SMAP does
not retrieve."""

QUALITY_BITS = {"recommended": 0b0001, "attempted": 0b0110}
"""Bits of ``retrieval_qual_flag`` that must be clear: bit 0 is clear where a retrieval is
recommended, bits 1 and 2 where one was attempted and succeeded."""

_NAME = re.compile(r"^SMAP_L3_SM_P_E_(\d{8})_R(\d+)_(\d+)\.h5$", re.IGNORECASE)
_HALVES = {"descending": ("AM", ""), "ascending": ("PM", "_pm")}
_FILL, _FLAG_FILL = -9999.0, 65534
_ROUNDING = 1e-6  # of numbers in single precision
LOWEST = 0.02
"""m3 m-3, the least value of ``soil_moisture`` in the product's description; a granule that states
another in ``valid_min`` is believed. The retrieval ends there, so what lies below is none."""

_UNITS = {"cm**3/cm**3", "cm3/cm3", "m3/m3", "m**3/m**3", "m3 m-3", "cm3 cm-3", ""}

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Granule:
    path: Path
    day: np.datetime64
    version: tuple[int, int]


def read_smap(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    cells: pd.DataFrame | npt.ArrayLike,
    *,
    time: Time | None = None,
    quality: Literal["recommended", "attempted"] = "recommended",
    min_overlap: int = 25,
    max_gap: int = MAX_GAP,
) -> Truth:
    """Read SMAP granules at some cells.

    Computes: reads the whole fields of each granule, because the difference between the passes
    is taken over all cells that both saw.

    Parameters
    ----------
    paths : path or iterable of paths
        Granules of SPL3SMP_E, or a folder that holds them. Of several versions of one day the
        newest counts.
    cells : DataFrame with columns row and column, or (n, 2) array_like
        Cells of the 9 km grid, for instance ``stations.on_cells("9km").sites``. Names of
        networks, stations, land cover and climate are taken over.
    time : str, (start, end) or slice, optional
        Days to keep, see `xsoilsm.load_cube`.
    quality : {"recommended", "attempted"}, default "recommended"
        Which retrievals count, see `QUALITY_BITS`.
    min_overlap : int, default 25
        Cells that both passes of a day must have seen for their difference to be known; the
        ascending passes of other days are left out.
    max_gap : int, default 8
        Days between two values that may be bridged to the date of an acquisition.

    Returns
    -------
    Truth
        On the 9 km grid; `n_stations` is 0 and `n_sensors` counts passes. The report names
        granules, fields and values that were left out, those below `LOWEST` among them.

    Raises
    ------
    FileNotFoundError
        When a path does not exist or a folder holds no granule.
    ValueError
        When no granule can be used, or a cell is not on the grid.
    ImportError
        When ``h5py`` is not installed.
    """
    places = _cells(cells)
    remarks = Remarks()
    granules = _granules(paths, remarks)
    if time is not None:
        start, end = (np.datetime64(day) for day in days_of(time))
        granules = [g for g in granules if start <= g.day <= end]
    parts = []
    width = grid.get_grid("9km").shape[1]
    wanted = places["row"].to_numpy() * width + places["column"].to_numpy()
    for granule in granules:
        halves = _halves(granule, quality, remarks)
        if halves is None:
            continue
        values, passes = _daily(granule, halves, wanted, min_overlap, remarks)
        seen = passes > 0
        if seen.any():
            part = places[seen].assign(
                date=granule.day.astype("datetime64[ns]"),
                soil_moisture=values[seen],
                n_sensors=passes[seen],
            )
            parts.append(part)
    if not parts:
        reasons = "; ".join(remarks.table()["reason"].value_counts().index[:3])
        msg = f"{len(granules)} granule(s) of SMAP hold no value that can be used at the cells"
        raise ValueError(f"{msg}: {reasons}" if reasons else f"{msg}; look at time and cells")
    table = pd.concat(parts, ignore_index=True)
    table = table.assign(resolution="9km", n_stations=0, depth_from=0.0, depth_to=0.05)
    table = table.sort_values(["row", "column", "date"], ignore_index=True)
    return Truth(table[list(CELL_COLUMNS)], remarks.table(), max_gap)


def _cells(cells: pd.DataFrame | npt.ArrayLike) -> pd.DataFrame:
    if isinstance(cells, pd.DataFrame):
        lacking = [name for name in ("row", "column") if name not in cells.columns]
        if lacking:
            msg = f"the table of cells lacks {', '.join(lacking)}; put stations on the 9 km grid"
            raise ValueError(msg)
        places = cells.reset_index(drop=True)
    else:
        pairs = np.asarray(cells, dtype=np.int64)
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            msg = f"cells have the shape {pairs.shape}, expected (n, 2): row and column"
            raise ValueError(msg)
        places = pd.DataFrame(pairs, columns=["row", "column"])
    nine = grid.get_grid("9km")
    off = ~(places["row"].between(0, nine.shape[0] - 1))
    off |= ~(places["column"].between(0, nine.shape[1] - 1))
    if off.any():
        first = places[off].iloc[0]
        msg = (
            f"row {first['row']}, column {first['column']} is no cell of the 9 km grid of "
            f"{nine.shape[0]} x {nine.shape[1]}; are these cells of a finer grid?"
        )
        raise ValueError(msg)
    lon, lat = grid.xy_to_lonlat(*nine.centre(places["row"], places["column"]))
    named = {
        name: places[name].to_numpy() if name in places.columns else default
        for name, default in (
            ("network", "SMAP"),
            ("station", ""),
            ("land_cover", ""),
            ("climate", ""),
        )
    }
    kept = pd.DataFrame({"row": places["row"], "column": places["column"], "lat": lat, "lon": lon})
    return kept.assign(**named).drop_duplicates(["row", "column"], ignore_index=True)


# --------------------------------------------------------------------------- granules


def _granules(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], remarks: Remarks
) -> list[_Granule]:
    """Granules in the order of days, one a day."""
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    files: list[Path] = []
    for path in map(Path, given):
        if not path.exists():
            msg = f"{path} does not exist; expected granules SMAP_L3_SM_P_E_*.h5 or their folder"
            raise FileNotFoundError(msg)
        files += sorted(path.rglob("*.h5")) if path.is_dir() else [path]
    if not files:
        msg = f"{', '.join(map(str, given))} holds no file *.h5; expected SMAP_L3_SM_P_E_*.h5"
        raise FileNotFoundError(msg)
    newest: dict[np.datetime64, _Granule] = {}
    for file in files:
        match = _NAME.match(file.name)
        if match is None:
            remarks.add(
                "is not named SMAP_L3_SM_P_E_<day>_R<release>_<version>.h5, so its day and "
                "product are not known",
                Subject(str(file)),
            )
            continue
        digits = match[1]
        try:
            day = np.datetime64(f"{digits[:4]}-{digits[4:6]}-{digits[6:]}", "D")
        except ValueError:
            remarks.add(
                f"has a name with the day {digits}, which does not exist", Subject(str(file))
            )
            continue
        found = _Granule(file, day, (int(match[2]), int(match[3])))
        other = newest.get(day)
        if other is not None:
            older = min(found, other, key=lambda granule: granule.version)
            remarks.add("a newer version of this day is there", Subject(str(older.path)))
            found = max(found, other, key=lambda granule: granule.version)
        newest[day] = found
    return [newest[day] for day in sorted(newest)]


class _Half(NamedTuple):
    """Good retrievals of one half of a day: flat cell numbers, ascending, and values."""

    cells: npt.NDArray[np.int64]
    values: Floats

    def at(self, wanted: npt.NDArray[np.int64]) -> Floats:
        """Values at some cells, NaN where there is none."""
        found = np.full(wanted.shape, np.nan)
        if self.cells.size:
            place = np.minimum(np.searchsorted(self.cells, wanted), self.cells.size - 1)
            held = self.cells[place] == wanted
            found[held] = self.values[place[held]]
        return found


def _halves(
    granule: _Granule, quality: Literal["recommended", "attempted"], remarks: Remarks
) -> dict[str, _Half] | None:
    """Good retrievals of both halves of a day; None for a granule that cannot be used."""
    try:
        import h5py
    except ImportError as error:
        msg = "reading SMAP needs the package 'h5py'; install: pip install 'xsoilsm[train]'"
        raise ImportError(msg) from error

    subject = Subject(str(granule.path))
    halves: dict[str, _Half] = {}
    try:
        with h5py.File(granule.path, "r") as file:
            for name, (group, suffix) in _HALVES.items():
                key = f"Soil_Moisture_Retrieval_Data_{group}"
                if key not in file:
                    remarks.add(f"has no group {key}", subject, left_out=name == "descending")
                    continue
                half = _half(file[key], suffix, QUALITY_BITS[quality], subject, remarks)
                if half is not None:
                    halves[name] = half
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        told = " ".join(str(error).split())
        remarks.add(f"cannot be read as HDF5: {told}", subject)
        return None
    if "descending" not in halves:
        if "ascending" in halves:
            remarks.add("ascending passes without descending ones to refer to", subject)
        return None
    return halves


def _half(group: Any, suffix: str, bits: int, subject: Subject, remarks: Remarks) -> _Half | None:
    """Good retrievals of one group; None, with a remark, where the group cannot be used."""
    name, flag = f"soil_moisture{suffix}", f"retrieval_qual_flag{suffix}"
    lacking = [n for n in (name, flag) if n not in group]
    if lacking:
        remarks.add(f"{group.name} has no {', '.join(lacking)}", subject)
        return None
    data = group[name]
    expected = grid.get_grid("9km").shape
    if data.shape != expected or group[flag].shape != expected:
        hint = "; this is the 36 km product" if data.shape == (406, 964) else ""
        remarks.add(
            f"{name} has the shape {data.shape}, expected {expected} of SPL3SMP_E{hint}", subject
        )
        return None
    units = data.attrs.get("units", b"")
    unit = units.decode("ascii", "replace") if isinstance(units, bytes) else str(units)
    if unit.strip() not in _UNITS:
        remarks.add(f"{name} has the units {unit!r}, expected 'cm**3/cm**3'", subject)
        return None
    flags = group[flag][()].ravel()
    # Bit 0 of the flags' own fill value is clear, so it must be told apart.
    good = np.flatnonzero(((flags & flags.dtype.type(bits)) == 0) & (flags != _FLAG_FILL))
    values = data[()].ravel()[good].astype(np.float64)
    fill = float(np.ravel(data.attrs.get("_FillValue", _FILL))[0])
    held = (values != fill) & (values != _FILL) & ~np.isnan(values)
    good, values = good[held], values[held]
    lowest = float(np.ravel(data.attrs.get("valid_min", LOWEST))[0])
    low = values < lowest - _ROUNDING
    if low.any():
        remarks.add(
            f"{name}: below {lowest:g} m3 m-3, the least value of the product",
            subject,
            values=int(low.sum()),
        )
        good, values = good[~low], values[~low]
    verdict = judge_values(values)
    if verdict.refused:
        remarks.add(f"{name}: {verdict.refused}", subject, values=good.size)
        return None
    for reason, number in verdict.dropped:
        remarks.add(f"{name}: {reason}", subject, values=number)
    return _Half(good[verdict.keep], values[verdict.keep])


def _daily(
    granule: _Granule,
    halves: dict[str, _Half],
    wanted: npt.NDArray[np.int64],
    min_overlap: int,
    remarks: Remarks,
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Daily means at some cells, and the number of passes in each."""
    descending, ascending = halves["descending"], halves.get("ascending")
    morning = descending.at(wanted)
    seen = np.isfinite(morning)
    if ascending is None or not ascending.cells.size:
        return morning, seen.astype(np.int64)
    _, early, late = np.intersect1d(
        descending.cells, ascending.cells, assume_unique=True, return_indices=True
    )
    if early.size < max(min_overlap, 1):
        remarks.add(
            f"ascending passes share {early.size} cells with descending ones, fewer than "
            f"{min_overlap}, so that their difference is not known",
            Subject(str(granule.path)),
            values=ascending.cells.size,
        )
        return morning, seen.astype(np.int64)
    difference = float(np.mean(ascending.values[late] - descending.values[early]))
    evening = ascending.at(wanted) - difference
    also = np.isfinite(evening)
    mean = np.where(seen & also, (morning + evening) / 2, np.where(seen, morning, evening))
    passes = seen.astype(np.int64) + also
    # The difference is one number for all cells: taken from dry ones, it can leave less than none.
    negative = mean < 0
    if negative.any():
        remarks.add(
            f"negative daily means, once the ascending passes' difference of {difference:+.3f} is "
            "taken away",
            Subject(str(granule.path)),
            values=int(negative.sum()),
        )
    return np.where(negative, np.nan, mean), np.where(negative, 0, passes)


# --------------------------------------------------------------------------- dates between


def interpolate_days(
    days: npt.NDArray[np.datetime64],
    values: npt.ArrayLike,
    wanted: npt.NDArray[np.datetime64],
    max_gap: int,
) -> Floats:
    """Values on other days, along straight lines between the days that have one.

    Computes.

    Parameters
    ----------
    days : (day,) ndarray of datetime64
        Ascending.
    values : (day,) array_like
    wanted : (date,) ndarray of datetime64
    max_gap : int
        Longest stretch in days between two values that is bridged; 0 for none.

    Returns
    -------
    (date,) ndarray of float64
        NaN before the first day, after the last, and where the stretch is longer.
    """
    known = days.astype("datetime64[D]").astype(np.int64)
    asked = wanted.astype("datetime64[D]").astype(np.int64)
    found = np.asarray(values, dtype=np.float64)
    if known.size == 0:
        return np.full(asked.shape, np.nan)
    after = np.searchsorted(known, asked, side="left")
    exact = (after < known.size) & (known[np.minimum(after, known.size - 1)] == asked)
    between = ~exact & (after > 0) & (after < known.size)
    right = np.clip(after, 1, max(known.size - 1, 1))
    right = np.minimum(right, known.size - 1)
    left = np.maximum(right - 1, 0)
    between &= known[right] - known[left] <= max_gap
    result = np.full(asked.shape, np.nan)
    result[exact] = found[np.minimum(after, known.size - 1)][exact]
    result[between] = np.interp(asked[between], known, found)
    return result


def download_smap(
    time: Time,
    folder: str | os.PathLike[str],
    *,
    short_name: str = "SPL3SMP_E",
    version: str | None = None,
) -> Sequence[Path]:
    """Fetch granules from NASA Earthdata with the package ``earthaccess``.

    Reads over the network; needs an account at Earthdata Login, which ``earthaccess`` takes from
    the environment or from ``~/.netrc``. Files that are there already are not fetched again.

    Parameters
    ----------
    time : str, (start, end) or slice
        Days, see `xsoilsm.load_cube`.
    folder : path
        Where granules go; it is made.
    short_name : str, default "SPL3SMP_E"
    version : str, optional
        Version of the product, for instance ``"006"``; any where it is left out.

    Returns
    -------
    sequence of Path
        The granules.

    Raises
    ------
    ImportError
        When ``earthaccess`` is not installed.
    FileNotFoundError
        When no granule lies in the time.
    """
    try:
        import earthaccess
    except ImportError as error:
        msg = (
            "fetching SMAP needs the package 'earthaccess'; install it with "
            "pip install earthaccess, or fetch the granules of SPL3SMP_E yourself and "
            "give their folder to read_smap"
        )
        raise ImportError(msg) from error
    start, end = days_of(time)
    earthaccess.login()
    query: dict[str, Any] = {"short_name": short_name, "temporal": (str(start), str(end))}
    if version is not None:
        query["version"] = version
    granules = earthaccess.search_data(**query)
    if not granules:
        msg = f"NASA Earthdata has no granule of {short_name} from {start} to {end}"
        raise FileNotFoundError(msg)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    return [Path(file) for file in earthaccess.download(granules, str(target))]
