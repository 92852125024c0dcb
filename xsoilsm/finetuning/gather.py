"""Step 5 of 7 (networks): samples of the cells of a cube that hold stations.

A lazy cube is read chunk by chunk: of each chunk that holds truth the acquisitions of days that
have it, of all others nothing. Each chunk becomes one file when its samples are complete.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from xsoilsm import grid, periods
from xsoilsm.contract import Contract
from xsoilsm.cube import VARIABLES, cube_geobox
from xsoilsm.samples.cells import SIDES
from xsoilsm.samples.form import encode_samples, read_metadata, read_samples, write_samples
from xsoilsm.samples.taking import named, no_samples, take_samples, usable_samples
from xsoilsm.truth import Truth, read_ismn, read_stations
from xsoilsm.truth.smap import interpolate_days
from xsoilsm.truth.table import REPORT_COLUMNS, Remarks, Subject, judge_values

__all__ = ["Stations", "cube_digest", "place_truth", "read_truth", "take_cube", "truth_digest"]

Stations = Truth | pd.DataFrame | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""Truth, a table of stations or its file, or archives of the ISMN."""

_TABLES = (".csv", ".csv.gz", ".csv.xz", ".csv.bz2", ".csv.zip", ".parquet", ".pq")
Cell = tuple[int, int]
Floats = npt.NDArray[np.float64]


def read_truth(stations: Stations) -> Truth:
    """Read stations, whatever holds them.

    Computes.

    Parameters
    ----------
    stations : Truth, DataFrame, path or sequence of paths
        A table or its file (CSV or Parquet) as for `xsoilsm.truth.read_stations`; all other
        paths are archives or folders for `xsoilsm.truth.read_ismn`.

    Returns
    -------
    Truth

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When nothing can be used; units are named where they are the reason.
    """
    if isinstance(stations, Truth):
        return stations
    if isinstance(stations, pd.DataFrame):
        return read_stations(stations)
    if isinstance(stations, (str, os.PathLike)):
        if str(stations).lower().endswith(_TABLES):
            return read_stations(stations)
        return read_ismn(stations)
    return read_ismn([Path(one) for one in stations])


def truth_digest(truth: Truth) -> str:
    """SHA-256 of places, days and values, in whatever order. Computes."""
    keys = ["row", "column"] if truth.resolution else ["network", "station"]
    kept = truth.table[[*keys, "date", "soil_moisture", "lat", "lon"]].sort_values([*keys, "date"])
    hashes = pd.util.hash_pandas_object(kept, index=False).to_numpy().astype("<u8")
    return hashlib.sha256(
        f"{truth.resolution} {truth.max_gap}".encode() + hashes.tobytes()
    ).hexdigest()


def cube_digest(cube: xr.Dataset) -> str:
    """SHA-256 of what tells a cube from another without reading it.

    Lazy: coordinates, names and types; values only of variables that are in memory.
    """
    held = hashlib.sha256()
    for name in ("time", "period", "y", "x"):
        held.update(np.ascontiguousarray(cube[name].values).tobytes())
    for name in sorted(map(str, cube.data_vars)):
        data = cube[name]
        held.update(f"{name} {data.dtype} {data.attrs.get('sigma0_from')}".encode())
        if data.chunks is None and name in VARIABLES:
            held.update(np.ascontiguousarray(data.values).tobytes())
    return held.hexdigest()


# --------------------------------------------------------------------------- truth on the cube


def place_truth(cube: xr.Dataset, truth: Truth) -> Truth:
    """Bring truth onto the cells of a cube, and refuse what does not fit.

    Lazy: of the cube it looks at coordinates.

    Parameters
    ----------
    cube : Dataset
        Map form.
    truth : Truth
        Of stations, or of cells of the same grid.

    Returns
    -------
    Truth
        One row for each cell of the cube and day; its report names what was left out.

    Raises
    ------
    ValueError
        When values are not in m3 m-3, no station lies in the cube, or no day is one of its
        acquisitions.
    """
    cells, rows, columns = grid.grid_of(cube_geobox(cube))
    remarks = Remarks()
    verdict = judge_values(truth.table["soil_moisture"].to_numpy(np.float64))
    if verdict.refused:
        msg = f"the truth cannot be used: {verdict.refused}"
        raise ValueError(msg)
    for reason, number in verdict.dropped:
        remarks.add(reason, Subject("truth"), values=number)
    usable = replace(truth, table=truth.table[verdict.keep].reset_index(drop=True))
    if usable.table.empty:
        msg = f"none of {len(truth.table)} values of truth can be used: {verdict.dropped}"
        raise ValueError(msg)
    placed = usable.on_cells(cells.name)
    table = placed.table
    inside = table["row"].between(rows[0], rows[1] - 1)
    inside &= table["column"].between(columns[0], columns[1] - 1)
    if not inside.any():
        msg = (
            f"none of {len(usable.sites)} stations lies in the cube, which reaches from "
            f"{_extent(cube)}; the stations lie between lat {usable.table['lat'].min():.2f} and "
            f"{usable.table['lat'].max():.2f}, lon {usable.table['lon'].min():.2f} and "
            f"{usable.table['lon'].max():.2f}"
        )
        raise ValueError(msg)
    for name, lost in table[~inside].groupby(["network", "station"]):
        subject = Subject("truth", *map(str, name))
        remarks.add("lies outside of the cube", subject, values=len(lost))
    table = table[inside].reset_index(drop=True)
    days = cube["time"].values.astype("datetime64[D]")
    dates = table["date"].to_numpy().astype("datetime64[D]")
    if not days.size or not np.isfinite(_labels(_by_cell(table), days, placed.max_gap)).any():
        lasts = f"{days.min()} to {days.max()}" if days.size else "no day"
        msg = (
            f"no day of the truth, {dates.min()} to {dates.max()}, is that of one of the cube's "
            f"{days.size} acquisitions, {lasts}; load a cube of the time of the stations"
        )
        raise ValueError(msg)
    report = [placed.report, remarks.table()]
    filled = [one for one in report if len(one)]
    told = pd.concat(filled, ignore_index=True) if filled else placed.report
    return replace(placed, table=table, report=told)


def _extent(cube: xr.Dataset) -> str:
    x, y = cube["x"].values[[0, -1]], cube["y"].values[[0, -1]]
    lon, lat = grid.xy_to_lonlat(x, y)
    return (
        f"lat {lat.min():.2f} to {lat.max():.2f}, lon {lon.min():.2f} to {lon.max():.2f} "
        "(centres of its cells)"
    )


def _by_cell(table: pd.DataFrame) -> dict[Cell, pd.DataFrame]:
    """Rows of each cell, by date."""
    ordered = table.sort_values(["row", "column", "date"], ignore_index=True)
    groups = ordered.groupby(["row", "column"], sort=False)
    cells = ordered[["row", "column"]].drop_duplicates().to_numpy(np.int64).tolist()
    return {(row, column): groups.get_group((row, column)) for row, column in cells}


def _labels(
    known: Mapping[Cell, pd.DataFrame], time: npt.NDArray[np.datetime64], max_gap: int
) -> Floats:
    """Truth of each acquisition and cell, (time, cell); NaN where there is none."""
    labels = np.full((time.size, len(known)), np.nan)
    for k, rows in enumerate(known.values()):
        days, values = rows["date"].to_numpy(), rows["soil_moisture"].to_numpy()
        labels[:, k] = interpolate_days(days, values, time, max_gap)
    return labels


# --------------------------------------------------------------------------- samples


@dataclass(frozen=True)
class _Chunk:
    """Cells with truth of one chunk of a cube; rows and columns of the grid."""

    name: str
    cells: list[Cell]

    @property
    def rows(self) -> list[int]:
        return sorted({row for row, _ in self.cells})

    @property
    def columns(self) -> list[int]:
        return sorted({column for _, column in self.cells})


def take_cube(
    cube: xr.Dataset,
    truth: Truth,
    contract: Contract,
    folder: Path,
    *,
    min_coverage: float = 0.5,
    progress: Callable[[float | str], None] | None = None,
) -> tuple[xr.Dataset, pd.DataFrame]:
    """Take samples of the cells and acquisitions of a cube that have truth.

    Computes: reads the chunks that hold truth, one after another. Chunks whose file lies in the
    folder are not read again.

    Parameters
    ----------
    cube : Dataset
        Map form, lazy or not.
    truth : Truth
        Of `place_truth`.
    contract : Contract
    folder : Path
        Of this cube and truth alone.
    min_coverage : float, default 0.5
        Share of the cell that valid radar pixels must cover.
    progress : callable, optional

    Returns
    -------
    samples : Dataset
        See `xsoilsm.samples.read_samples`, without the physical inputs; in order of time, then
        cells.
    report : DataFrame
        What was left out, that of the truth included.

    Raises
    ------
    ValueError
        When no sample is left; the reasons are named.
    """
    known = _by_cell(truth.table)
    chunks = _chunks(cube, list(known))
    files = []
    for number, chunk in enumerate(chunks):
        file = folder / f"part-{chunk.name}.parquet"
        if not _is_whole(file):
            remarks = Remarks()
            samples = _take(cube, chunk, known, truth.max_gap, min_coverage, remarks)
            _write(samples, file, contract, truth.resolution, remarks)
        files.append(file)
        if progress is not None:
            progress((number + 1) / len(chunks))
    rows = [row for file in files for row in read_metadata(file)["notes"]["report"]]
    told = pd.DataFrame([*truth.report.to_numpy().tolist(), *rows], columns=list(REPORT_COLUMNS))
    samples = read_samples(files)
    if not samples.sizes["sample"]:
        reasons = "; ".join(pd.unique(told["reason"])[:4])
        msg = f"no sample is left of {len(known)} cells that hold stations: {reasons}"
        raise ValueError(msg)
    # One order, whatever the chunks: batches, and so the networks, depend on it.
    order = np.lexsort([samples[name].values for name in ("column", "row", "time")])
    return samples.isel(sample=order), told


def _chunks(cube: xr.Dataset, cells: list[Cell]) -> list[_Chunk]:
    """Cells by the chunk that they lie in; blocks of 18 km where the cube is in memory."""
    found, rows, columns = grid.grid_of(cube_geobox(cube))
    sizes = cube["sigma0_vv"].chunksizes
    side = SIDES[found.name]
    starts = []
    for dim, first in (("y", rows[0]), ("x", columns[0])):
        count = cube.sizes[dim]
        widths = sizes[dim] if dim in sizes else [side] * (count // side + 1)
        starts.append(first + np.r_[0, np.cumsum(widths)[:-1]])
    held: dict[tuple[int, int], list[Cell]] = {}
    for row, column in sorted(cells):
        at = (
            int(np.searchsorted(starts[0], row, side="right")) - 1,
            int(np.searchsorted(starts[1], column, side="right")) - 1,
        )
        held.setdefault(at, []).append((row, column))
    return [_Chunk(f"y{at[0]:04d}x{at[1]:04d}", here) for at, here in sorted(held.items())]


def _take(
    cube: xr.Dataset,
    chunk: _Chunk,
    known: Mapping[Cell, pd.DataFrame],
    max_gap: int,
    min_coverage: float,
    remarks: Remarks,
) -> xr.Dataset:
    """Take the samples of one chunk, in physical units."""
    _, (top, _), (left, _) = grid.grid_of(cube_geobox(cube))
    here = {cell: known[cell] for cell in chunk.cells}
    labels = _labels(here, cube["time"].values, max_gap)
    wanted = np.flatnonzero(np.isfinite(labels).any(axis=1))
    subject = Subject(f"cube, chunk {chunk.name}")
    if not wanted.size:
        remarks.add("no acquisition is of a day with truth", subject)
        return no_samples()
    ends = periods.window_end(cube["period"].values, cube["time"].values[wanted])
    first = max(int(ends.min()) - (periods.PERIODS_PER_YEAR - 1), 0)
    part = cube.isel(
        time=wanted,
        period=slice(first, int(ends.max()) + 1),
        y=np.array(chunk.rows) - top,
        x=np.array(chunk.columns) - left,
    )
    # What samples do not take is not read either.
    loaded = part[[name for name in part.data_vars if name in VARIABLES]].compute()
    product = [(row, column) for row in chunk.rows for column in chunk.columns]
    whole = np.full((wanted.size, len(product)), np.nan)
    whole[:, [product.index(cell) for cell in here]] = labels[wanted]
    samples = take_samples(loaded, product, whole)
    samples = samples.assign_coords(named(here, samples))
    return usable_samples(samples, min_coverage, subject, remarks)


def _write(
    samples: xr.Dataset, file: Path, contract: Contract, res: str | None, remarks: Remarks
) -> None:
    averaging = str(samples["sigma0_vv"].attrs.get("averaging", contract.averaging))
    encoded = encode_samples(samples, contract)
    inputs = [n for n, v in VARIABLES.items() if v.required and n in encoded]
    encoded = encoded.drop_vars(inputs).assign_attrs(resolution=str(res), averaging=averaging)
    write_samples(encoded, file, report=remarks.table().to_numpy().tolist())


def _is_whole(file: Path) -> bool:
    if not file.exists():
        return False
    try:
        return "report" in read_metadata(file)["notes"]
    except ValueError:
        return False
