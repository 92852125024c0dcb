"""Outside the seven steps (samples): from truth and a catalog to samples in Parquet.

The work is cut into parts: one rectangle of cells and one year each. Of a part only the cells
that hold truth and the acquisitions of days that have it are read. Each part becomes one file
when it is complete, so a run that was stopped goes on where it was. Which parts there are
follows from truth and settings alone, and both stand in the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from xsoilsm.catalog import Catalog, CatalogError, open_catalog
from xsoilsm.contract import Contract, get_contract
from xsoilsm.cube import VARIABLES
from xsoilsm.loading import load_cube
from xsoilsm.samples.cells import SIDES, Rectangle, bounding_rectangles, rectangles
from xsoilsm.samples.form import (
    FORM,
    PLAN,
    encode_samples,
    read_metadata,
    write_samples,
)
from xsoilsm.samples.taking import NAMES, named, no_samples, take_samples, usable_samples
from xsoilsm.timespan import Time, days_of
from xsoilsm.truth.smap import interpolate_days
from xsoilsm.truth.table import REPORT_COLUMNS, Remarks, Subject, Truth
from xsoilsm.wholefile import write_whole

__all__ = ["Built", "build_samples"]

Progress = Callable[[int, int], None]
Days = npt.NDArray[np.datetime64]


class Built(NamedTuple):
    """What `build_samples` made.

    Parameters
    ----------
    path : Path
        Folder for `xsoilsm.samples.read_samples`.
    samples : int
    report : DataFrame
        What was left out, and why; columns as those of a report of truth.
    """

    path: Path
    samples: int
    report: pd.DataFrame


@dataclass(frozen=True)
class _Part:
    """One rectangle in one year."""

    resolution: str
    rectangle: Rectangle
    year: int

    @property
    def file(self) -> str:
        return f"part-{self.rectangle.name}-{self.year}.parquet"

    @property
    def subject(self) -> Subject:
        place = f"row {self.rectangle.row}, column {self.rectangle.column}"
        return Subject(f"{self.resolution} {place}, {self.year}")


@dataclass(frozen=True)
class _Settings:
    """What decides the content of the parts, beside truth."""

    resolution: str
    catalog: Catalog
    contract: Contract
    start: date
    end: date
    min_coverage: float
    inputs: bool
    together: bool
    options: Mapping[str, Any]

    def written(self, truth: Truth) -> dict[str, Any]:
        """Plain data to compare with those of an earlier run."""
        return {
            "form": FORM,
            "resolution": self.resolution,
            "catalog": self.catalog.name,
            "contract": self.contract.digest,
            "time": f"{self.start}/{self.end}",
            "min_coverage": self.min_coverage,
            "inputs": self.inputs,
            "together": self.together,
            "options": {k: repr(v) for k, v in sorted(self.options.items())},
            "truth": _digest(truth.table),
            "max_gap": truth.max_gap,
        }


def build_samples(
    truth: Truth,
    path: str | os.PathLike[str],
    *,
    res: str | None = None,
    time: Time | None = None,
    catalog: str | os.PathLike[str] | Catalog = "planetary-computer",
    contract: str | Mapping[str, Any] | Contract = "published-coarse",
    min_coverage: float = 0.5,
    inputs: bool = True,
    together: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Built:
    """Make samples of truth and all acquisitions that go with it.

    Computes: searches the catalog's services once for each part, reads the cells that hold
    truth on the days that have it. Run again with the same arguments, it goes on where it was
    stopped; parts with files that could not be read, or that the catalog had nothing for, are
    tried again.

    Parameters
    ----------
    truth : Truth
        Of stations or cells.
    path : path
        Folder for the samples; it is made.
    res : {"9km", "1km", "500m", "100m"}, optional
        Grid; that of the truth, and ``"1km"`` for stations.
    time : str, (start, end) or slice, optional
        Days, see `xsoilsm.load_cube`; all days that have truth where it is left out.
    catalog : str, path or Catalog, default "planetary-computer"
    contract : str, mapping or Contract, default "published-coarse"
    min_coverage : float, default 0.5
        Share of the cell that valid radar pixels must cover.
    inputs : bool, default True
        Keep the physical inputs beside the features, so that another contract can be put upon
        them without reading anything again.
    together : bool, default False
        Read all cells between those with truth, in squares of 18 km at most, too. It reads more
        and makes the same samples; quicker where a square holds more than some cells with truth.
    progress : callable, optional
        Called with the number of parts that are done and that of all, before each part.
    **options
        For `xsoilsm.load_cube`: ``mask_ndvi``, ``cache``.

    Returns
    -------
    Built
        The folder, the number of samples, and the report.

    Raises
    ------
    ValueError
        When the folder holds samples of other truth or settings, the truth has no day in the
        time, or no part gave a sample.
    CatalogError
        When the catalog or contract is unknown.

    Examples
    --------
    >>> from xsoilsm.samples import build_samples, read_samples
    >>> from xsoilsm.truth import read_stations
    >>> built = build_samples(read_stations("mine.csv"), "samples")  # doctest: +SKIP
    >>> samples = read_samples(built.path)  # doctest: +SKIP
    """
    unknown = sorted(set(options) - {"mask_ndvi", "cache"})
    if unknown:
        msg = f"unknown option {', '.join(unknown)}; expected mask_ndvi or cache"
        raise TypeError(msg)
    placed = truth.on_cells(res or truth.resolution or "1km")
    if placed.table.empty:
        msg = "the truth holds no day on the grid; its report says what was left out"
        raise ValueError(msg)
    resolution = str(placed.resolution)
    first, last = placed.table["date"].min().date(), placed.table["date"].max().date()
    start, end = (first, last) if time is None else days_of(time)
    start, end = max(start, first), min(end, last)
    if start > end:
        msg = f"the truth lasts from {first} to {last}, no day of it lies in {time!r}"
        raise ValueError(msg)
    settings = _Settings(
        resolution,
        catalog if isinstance(catalog, Catalog) else open_catalog(catalog),
        get_contract(contract),
        start,
        end,
        float(min_coverage),
        bool(inputs),
        bool(together),
        options,
    )
    cells = _by_cell(placed.table)
    parts = list(_parts(settings, cells))
    folder = Path(path)
    _agree(folder, settings.written(placed), [part.file for part in parts])
    for number, part in enumerate(parts):
        if progress is not None:
            progress(number, len(parts))
        file = folder / part.file
        if not _is_done(file):
            samples, remarks, complete = _part(part, settings, cells, placed.max_gap)
            report = remarks.table().to_numpy().tolist()
            write_samples(samples, file, complete=complete, report=report)
    if progress is not None:
        progress(len(parts), len(parts))
    return _built(folder, parts, placed.report)


def _by_cell(table: pd.DataFrame) -> dict[tuple[int, int], pd.DataFrame]:
    """Rows of each cell, by date."""
    ordered = table.sort_values(["row", "column", "date"], ignore_index=True)
    rows, columns = ordered["row"].to_numpy(), ordered["column"].to_numpy()
    begins = np.flatnonzero(np.r_[True, (np.diff(rows) != 0) | (np.diff(columns) != 0)])
    ends = [*begins[1:].tolist(), len(ordered)]
    return {
        (int(rows[begin]), int(columns[begin])): ordered.iloc[begin:end]
        for begin, end in zip(begins.tolist(), ends, strict=True)
    }


def _built(folder: Path, parts: list[_Part], report: pd.DataFrame) -> Built:
    import pyarrow.parquet as pq

    rows = [row for p in parts for row in read_metadata(folder / p.file)["notes"]["report"]]
    whole = pd.DataFrame([*report.to_numpy().tolist(), *rows], columns=list(REPORT_COLUMNS))
    number = sum(pq.read_metadata(folder / part.file).num_rows for part in parts)
    if not number:
        reasons = "; ".join(pd.unique(whole["reason"])[:3]) or "no acquisition on a day with truth"
        msg = f"none of {len(parts)} part(s) gave a sample: {reasons}"
        raise ValueError(msg)
    return Built(folder, number, whole)


# --------------------------------------------------------------------------- the plan


def _parts(settings: _Settings, cells: Mapping[tuple[int, int], pd.DataFrame]) -> Iterator[_Part]:
    """Rectangles and years that hold truth."""
    cover = bounding_rectangles if settings.together else rectangles
    for rectangle in cover(cells, SIDES[settings.resolution]):
        held = [cells[cell] for cell in rectangle.cells if cell in cells]
        dates = np.concatenate([rows["date"].to_numpy() for rows in held])
        days = dates.astype("datetime64[D]")
        inside = (days >= np.datetime64(settings.start)) & (days <= np.datetime64(settings.end))
        for year in np.unique(days[inside].astype("datetime64[Y]")):
            yield _Part(settings.resolution, rectangle, int(str(year)))


def _agree(folder: Path, written: dict[str, Any], parts: list[str]) -> None:
    """Begin a folder, or go on in one that was begun with the same settings."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / PLAN
    if plan.exists():
        earlier = json.loads(plan.read_text(encoding="utf-8"))["settings"]
        other = [key for key in written if earlier.get(key) != written[key]]
        if other:
            told = "; ".join(f"{key}: {earlier.get(key)!r}, now {written[key]!r}" for key in other)
            msg = f"{folder} holds samples of other truth or settings ({told}); give another folder"
            raise ValueError(msg)
    elif any(folder.glob("part-*.parquet")):
        msg = f"{folder} holds samples, but no {PLAN} that says of what; give another folder"
        raise ValueError(msg)
    else:
        text = json.dumps({"settings": written, "parts": parts}, indent=1)
        write_whole(plan, text)


def _is_done(file: Path) -> bool:
    if not file.exists():
        return False
    try:
        return bool(read_metadata(file)["notes"].get("complete"))
    except ValueError:
        return False


def _digest(table: pd.DataFrame) -> str:
    """SHA-256 of the truth that enters samples."""
    kept = table[["row", "column", "date", "soil_moisture", *NAMES]]
    kept = kept.sort_values(["row", "column", "date"])
    digest = hashlib.sha256()
    for name in kept.columns:
        values = kept[name].to_numpy()
        if values.dtype == object:
            digest.update("\n".join(map(str, values)).encode())
        else:
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------- one part


def _part(
    part: _Part,
    settings: _Settings,
    cells: Mapping[tuple[int, int], pd.DataFrame],
    max_gap: int,
) -> tuple[xr.Dataset, Remarks, bool]:
    """Make the samples of a part, with remarks, and tell whether the part is done for good."""
    remarks = Remarks()
    known = {cell: cells[cell] for cell in part.rectangle.cells if cell in cells}
    dates = [table["date"].to_numpy().astype("datetime64[D]") for table in known.values()]
    lowest = max(min(d[0] for d in dates), np.datetime64(settings.start), _day(part.year, 1, 1))
    highest = min(max(d[-1] for d in dates), np.datetime64(settings.end), _day(part.year, 12, 31))
    geobox = part.rectangle.geobox(part.resolution)
    load = partial(
        load_cube,
        geobox,
        (str(lowest), str(highest)),
        part.resolution,
        settings.catalog,
        chunks=(geobox.shape[0], geobox.shape[1]),
        **settings.options,
    )
    try:
        cube = load(on_error="raise")
    except CatalogError as error:
        remarks.add(" ".join(str(error).split()), part.subject)
        return _encoded(no_samples(), settings), remarks, False
    labels = _labels(part.rectangle, known, cube["time"].values, max_gap)
    wanted = np.flatnonzero(np.isfinite(labels).any(axis=1))
    if not wanted.size:
        reason = f"none of {cube.sizes['time']} acquisitions is of a day with truth"
        remarks.add(reason, part.subject)
        return _encoded(no_samples(), settings), remarks, True
    complete = True
    try:
        loaded = cube.isel(time=wanted).compute()
    except OSError:
        # What can be read is of use now; a later run tries the rest again.
        complete = False
        loaded = load(on_error="flag").isel(time=wanted).compute()
    samples = take_samples(loaded, part.rectangle.cells, labels[wanted])
    samples = samples.assign_coords(named(known, samples))
    kept = usable_samples(samples, settings.min_coverage, part.subject, remarks)
    if not complete:
        lost = samples.sizes["sample"] - kept.sizes["sample"]
        reason = f"a file could not be read; {lost} of {samples.sizes['sample']} samples are lost"
        remarks.add(f"{reason}; run again to try it again", part.subject)
    return _encoded(kept, settings), remarks, complete


def _day(year: int, month: int, day: int) -> np.datetime64:
    return np.datetime64(f"{year:04d}-{month:02d}-{day:02d}", "D")


def _labels(
    rectangle: Rectangle,
    known: Mapping[tuple[int, int], pd.DataFrame],
    time: Days,
    max_gap: int,
) -> npt.NDArray[np.float64]:
    """Truth of each acquisition and cell, (time, cell); NaN where there is none."""
    labels = np.full((time.size, len(rectangle.cells)), np.nan)
    for k, cell in enumerate(rectangle.cells):
        if cell in known:
            rows = known[cell]
            days, values = rows["date"].to_numpy(), rows["soil_moisture"].to_numpy()
            labels[:, k] = interpolate_days(days, values, time, max_gap)
    return labels


def _encoded(samples: xr.Dataset, settings: _Settings) -> xr.Dataset:
    averaging = str(samples["sigma0_vv"].attrs.get("averaging", settings.contract.averaging))
    encoded = encode_samples(samples, settings.contract)
    if not settings.inputs:
        encoded = encoded.drop_vars(
            [n for n, v in VARIABLES.items() if v.required and n in encoded]
        )
    return encoded.assign_attrs(resolution=settings.resolution, averaging=averaging)
