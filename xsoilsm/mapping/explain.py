"""Step 7 of 7 (write): why a pixel is empty or flagged.

The answer comes from what the job knows, nearest cause first: the region and days of the job, the
acquisitions that were found, the ledger, and the files. Only which input of the networks is
missing or outside the range of training is looked up anew, for the one cell.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
import xarray as xr
from rasterio.errors import RasterioError
from rasterio.windows import Window

from xsoilsm import grid, periods
from xsoilsm.contract import Channel, Input
from xsoilsm.cube import REQUIRED
from xsoilsm.loading import load_cube
from xsoilsm.mapping.acquisitions import Acquisition
from xsoilsm.mapping.inputs import narrowed, select
from xsoilsm.mapping.job import Job, JobError, open_job
from xsoilsm.mapping.ledger import Row, read_rows
from xsoilsm.mapping.plan import Plan, Product
from xsoilsm.mapping.region import cells_of
from xsoilsm.mapping.tile import folder_of
from xsoilsm.quality import QualityFlag, describe, name_of
from xsoilsm.sources.access.search import lonlat_bounds
from xsoilsm.thresholds import mask_bits

__all__ = ["REPEAT", "Explanation", "explain", "explain_text"]

REPEAT = 12
"""Days after which one Sentinel-1 satellite is on the same track again."""

_RANGE_BITS = QualityFlag.INPUTS_CLIPPED | QualityFlag.OUT_OF_DOMAIN


@dataclass(frozen=True)
class Explanation:
    """What there is to say of one cell of one product.

    Parameters
    ----------
    product : str
        Empty where no product has the cell on that day.
    reason : str
        ``"valid"``, or why there is no value: ``"outside"`` (of the job), ``"not_acquired"``,
        ``"missing_in_catalog"``, ``"left_out"``, ``"pending"``, ``"failed"``, ``"damaged"``,
        ``"no_scene"``, ``"read_failed"``, ``"masked"``, ``"out_of_range"``, ``"nan_input"``.
    text : str
        The same in words, with all flags.
    value : float
        Soil moisture in m3 m-3, or NaN.
    """

    product: str
    reason: str
    text: str
    value: float = float("nan")

    def __str__(self) -> str:
        """Tell people."""
        return f"{self.product}: {self.text}" if self.product else self.text


def explain(
    job: Job | str | os.PathLike[str],
    lon: float,
    lat: float,
    day: str | date,
    *,
    look: bool = True,
) -> list[Explanation]:
    """Explain a cell on a day.

    Computes: reads the ledger and the pixel of each file; where an input is missing or out of
    range, also the inputs of the cell.

    Parameters
    ----------
    job : Job or path
        Or its folder.
    lon, lat : float
        Degrees, WGS 84.
    day : str or date
        UTC, ISO form; a time of day is passed over. A composite is that of the day.
    look : bool, default True
        Look up which inputs are missing or out of range.

    Returns
    -------
    list of Explanation
        One for each product that has the cell on that day, or one that says why none does.

    Raises
    ------
    JobError
        When there is no job or no ledger.
    ValueError
        When the day cannot be understood.
    """
    chosen = job if isinstance(job, Job) else open_job(job)
    try:
        when = date.fromisoformat(str(day)[:10])
    except ValueError:
        msg = f"cannot tell a day from {day!r}; expected for instance 2020-04-15"
        raise ValueError(msg) from None
    plan = Plan(chosen)
    configuration = chosen.configuration
    place = shapely.Point(lon, lat)
    cells = grid.get_grid(configuration.res)
    x, y = grid.lonlat_to_xy(lon, lat)
    row, column = (int(index) for index in cells.index(x, y))
    size = configuration.tile_size
    name = grid.Tile(row // size, column // size, configuration.geobox).name
    inside = name in plan.tiles and _inside(plan.tiles[name], row, column)
    if inside:
        alone = cells.geobox((row, row + 1), (column, column + 1))
        inside = bool(cells_of(configuration.polygon, alone).all())
    if not inside:
        west, south, east, north = configuration.polygon.bounds
        text = (
            f"the cell lies outside of the region of the job, which spans {west:.4f} to "
            f"{east:.4f} E and {south:.4f} to {north:.4f} N"
        )
        return [Explanation("", "outside", text)]
    products = [
        product
        for product in plan.products_of(plan.tiles[name])
        if _holds(product, when) and any(a.items_over(place) for a in product.acquisitions)
    ]
    if not products:
        return [_without_product(chosen, place, when)]
    cell = _Cell(chosen, plan.tiles[name], row, column, look)
    rows = _rows_of(chosen, name, {p.id for p in products})
    return [cell.explain(product, rows.get(product.id)) for product in products]


def _inside(tile: grid.Tile, row: int, column: int) -> bool:
    _, rows, columns = grid.grid_of(tile.geobox)
    return rows[0] <= row < rows[1] and columns[0] <= column < columns[1]


def _holds(product: Product, when: date) -> bool:
    """Whether a product stands for a day."""
    start = date.fromisoformat(product.time[:10])
    if product.period == "P8D":
        return bool(periods.period_start(str(when)) == np.datetime64(start))
    if product.period == "P1M":
        return (start.year, start.month) == (when.year, when.month)
    return start == when


def _rows_of(job: Job, tile: str, products: set[str]) -> dict[str, Row]:
    with read_rows(job.ledger, tile) as (_, rows):
        return {row.product: row for row in rows if row.product in products}


# --------------------------------------------------------------------------- no product


def _without_product(job: Job, place: Any, when: date) -> Explanation:
    """Say why no product has the cell on a day."""
    configuration = job.configuration
    first, last = configuration.days
    if configuration.composite == "none" and not first <= when <= last:
        text = f"{when} lies outside of the days of the job, {first} to {last}"
        return Explanation("", "outside", text)
    left_out = list(_left_out(job, place, when))
    if left_out:
        return Explanation("", "left_out", f"an acquisition was left out: {'; '.join(left_out)}")
    over = [a for a in job.acquisitions if a.items_over(place)]
    due = sorted(
        {_track(a): a for a in over if (_day(a) - when).days % REPEAT == 0}.items(),
        key=lambda entry: entry[0],
    )
    if configuration.composite == "none" and due:
        tracks = [
            f"{track} passes here every {REPEAT} days and was found on {_near(over, track, when)}"
            for track, _ in due
        ]
        text = f"missing in the catalog on {when}: {'; '.join(tracks)}"
        return Explanation("", "missing_in_catalog", text)
    near = sorted(over, key=lambda a: abs((_day(a) - when).days))[:2]
    found = " and ".join(sorted(a.time[:16].replace("T", " ") for a in near)) or "none"
    text = f"not acquired on {when}: no pass over the cell was found; the nearest are: {found}"
    return Explanation("", "not_acquired", text)


def _left_out(job: Job, place: Any, when: date) -> Iterator[str]:
    reasons = dict(job.excluded)
    for entry in job.entries:
        near = entry.role == "radar" and shapely.box(*entry.bounds).intersects(place)
        if near and entry.id in reasons and entry.start <= str(when) <= entry.end:
            yield f"{entry.id} ({reasons.pop(entry.id)})"


def _day(one: Acquisition) -> date:
    return date.fromisoformat(one.time[:10])


def _track(one: Acquisition) -> str:
    return f"{one.platform} on orbit {one.relative_orbit} {one.orbit_state}"


def _near(over: list[Acquisition], track: str, when: date) -> str:
    days = sorted({_day(a) for a in over if _track(a) == track}, key=lambda d: abs(d - when))
    return " and ".join(str(day) for day in sorted(days[:2]))


# --------------------------------------------------------------------------- a product


class _Cell:
    """One cell of a tile, and what can be said of it."""

    def __init__(self, job: Job, tile: grid.Tile, row: int, column: int, look: bool) -> None:
        self._job = job
        self._tile = tile
        cells, rows, columns = grid.grid_of(tile.geobox)
        self._pixel = row - rows[0], column - columns[0]
        self._geobox = cells.geobox((row, row + 1), (column, column + 1))
        self._look = look

    def explain(self, product: Product, row: Row | None) -> Explanation:
        """Explain the cell in one product, by what the ledger and the files say."""
        state = "pending" if row is None else row.state
        error = "" if row is None else row.error
        if state in ("pending", "damaged"):
            text = f"the tile {self._tile.name} is {state}; run the job again" + _because(error)
            return Explanation(product.id, state, text)
        if state == "failed":
            text = f"the tile {self._tile.name} failed; run the job again{_because(error)}"
            return Explanation(product.id, state, text)
        try:
            value = float(self._read(product, "soil_moisture"))
            flags = QualityFlag(int(self._read(product, "quality_flag")))
        except OSError as fault:
            text = f"the files of the tile {self._tile.name} cannot be read: {fault}"
            return Explanation(product.id, "damaged", text)
        said = describe(int(flags))
        if flags & QualityFlag.READ_FAILED:
            said.append(f"failed reads{_because(error)}")
        if self._look and flags & (QualityFlag.NAN_INPUT | _RANGE_BITS):
            said += self._inputs(product, flags)
        reason = "valid" if np.isfinite(value) else self._reason(flags)
        head = f"soil moisture {value:.3f} m3 m-3" if np.isfinite(value) else _HEADS[reason]
        if reason == "masked":
            head += (
                f" {', '.join(name_of(bit) for bit in QualityFlag if bit & self._masks & flags)}"
            )
        return Explanation(product.id, reason, "; ".join([head, *said]), value)

    @property
    def _masks(self) -> QualityFlag:
        return mask_bits(self._job.configuration.retrieve.get("mask", "default"))

    def _reason(self, flags: QualityFlag) -> str:
        """Find the nearest cause of a missing value."""
        for bit, reason in _CAUSES.items():
            if flags & bit:
                return reason
        return "masked" if flags & self._masks else "nan_input"

    def _read(self, product: Product, variable: str) -> Any:
        path = folder_of(self._job.folder, product.id, self._tile.name) / f"{variable}.tif"
        row, column = self._pixel
        try:
            with rasterio.open(path) as file:
                window = Window(column, row, 1, 1)
                return file.read(1, window=window)[0, 0]
        except RasterioError as error:
            raise OSError(str(error)) from error

    def _inputs(self, product: Product, flags: QualityFlag) -> list[str]:
        """Say which inputs are missing or out of range, acquisition by acquisition."""
        said: list[str] = []
        for one in product.acquisitions:
            with suppress(OSError, ValueError, KeyError):
                cube = self._cube(one)
                prefix = f"{one.id}: " if product.period else ""
                missing = [name for name in REQUIRED if bool(cube[name].isnull().any())]
                if flags & QualityFlag.NAN_INPUT and missing:
                    said.append(f"{prefix}NaN in {', '.join(missing)}")
                if flags & _RANGE_BITS:
                    said += [f"{prefix}{text}" for text in self._out_of_range(cube)]
        return said or ["its inputs cannot be read now"]

    def _cube(self, one: Acquisition) -> xr.Dataset:
        """Cube of the cell for one acquisition, with the periods that it sees."""
        # A pass across midnight may have the other day's date here.
        days = _day(one) - timedelta(1), _day(one) + timedelta(1)
        items = select(self._job.entries, lonlat_bounds(self._geobox), *days)
        options = self._job.configuration.load
        with narrowed(Path(self._job.inputs), items) as catalog:
            cube = load_cube(self._geobox, tuple(map(str, days)), catalog=catalog, **options)
            away = np.abs(cube["time"].values - np.datetime64(one.time, "ns"))
            cube = cube.isel(time=[int(np.argmin(away))]).compute(scheduler="synchronous")
        end = int(periods.window_end(cube["period"].values, cube["time"].values)[0])
        return cube.isel(period=slice(end - periods.PERIODS_PER_YEAR + 1, end + 1))

    def _out_of_range(self, cube: xr.Dataset) -> Iterator[str]:
        contract = self._job.ensemble().contract
        entries: list[Channel | Input] = [*contract.series.channels, *contract.snapshot]
        for entry in entries:
            bounds = entry.range
            if bounds is None or entry.source not in cube:
                continue
            values = cube[entry.source].values * entry.scale
            low, high = float(np.nanmin(values)), float(np.nanmax(values))
            if low < bounds[0] or high > bounds[1]:
                found = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
                training = f"training had {bounds[0]:g} to {bounds[1]:g}"
                yield f"{entry.name} is {found} {entry.units}, {training}"


_CAUSES = {
    QualityFlag.READ_FAILED: "read_failed",
    QualityFlag.NO_SCENE: "no_scene",
    QualityFlag.NAN_INPUT: "nan_input",
    QualityFlag.OUT_OF_RANGE: "out_of_range",
}

_HEADS = {
    "read_failed": "no value: a source could not be read",
    "no_scene": "no value: the acquisition has no valid pixel in the cell",
    "nan_input": "no value: an input of the networks is missing",
    "out_of_range": "no value: the retrieval left 0 to 0.6 m3 m-3",
    "masked": "no value: masked by",
}


def _because(error: str) -> str:
    return f" ({error.splitlines()[0]})" if error else ""


def explain_text(job: Job | str | os.PathLike[str], lon: float, lat: float, day: str) -> str:
    """Explain a cell on a day in lines of text; what cannot be answered is said, not raised.

    Computes, see `explain`.
    """
    try:
        return "\n".join(map(str, explain(job, lon, lat, day)))
    except (JobError, ValueError, OSError) as error:
        return str(error)
