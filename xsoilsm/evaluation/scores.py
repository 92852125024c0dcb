"""Outside the seven steps (evaluation): measures with confidence intervals, overall and by group.

What is drawn for an interval depends on what is independent:

* Five or more sites: whole sites are drawn. The interval then speaks of other sites of the kind.
* Fewer: stretches of 60 days of each site are drawn, longer than the moisture of the top 5 cm
  remembers. The interval speaks of other times at these sites.
* Neither: no interval.

The column ``interval`` of each row says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from xsoilsm.evaluation.table import is_simulated, match_days, tabulate
from xsoilsm.metrics import MEASURES, as_row, bootstrap_intervals, unit_sums

__all__ = [
    "GROUPS",
    "TARGET_RMSE",
    "Evaluation",
    "Independence",
    "compare",
    "evaluate",
    "evaluate_dataset",
]

GROUPS = ("cell", "year", "network", "land_cover", "climate")
"""Groups that tables are made of."""

TARGET_RMSE = 0.06
"""Target in m3 m-3 (Zhu et al. 2024)."""

MORE_THAN = 15
"""Cells with more samples than this have a row of their own (Zhu et al. 2024)."""

Independence = Literal["sites", "years", "none", "not stated"]
"""What separates the samples from those of the training.

``sites``: no site of theirs was trained on. ``years``: the same sites, other years. ``none``: a
random split, whose samples have neighbours of the same sites and days in the training.
"""

IN_WORDS = {
    "sites": "sites that were not trained on",
    "years": "sites that were trained on, other years",
    "none": "random split: sites and days that were trained on",
    "not stated": "it is not stated whether these sites were trained on",
}
"""What to print of an `Independence`."""

_SITES = 5  # fewer sites cannot stand for others
_DAYS = 60
_CELL_DRAWS = 400


@dataclass(frozen=True)
class Evaluation:
    """Measures of one set of retrievals.

    Parameters
    ----------
    name : str
        What was evaluated, for people.
    samples : DataFrame
        See `xsoilsm.evaluation.tabulate`.
    overall : DataFrame
        One row: ``samples`` (with truth), ``n`` (valid pairs), ``sites``, each measure with
        ``_low`` and ``_high``, and ``interval``.
    groups : mapping of str to DataFrame
        Such rows for each cell (with more than 15 valid pairs), year, network, class of land
        cover and of climate, as far as the samples say them. The index is the group.
    independence : Independence
    simulated : bool
        Then every figure and page says so.
    level : float
        Of the intervals.
    notes : tuple of str
        What a reader must know.
    """

    name: str
    samples: pd.DataFrame
    overall: pd.DataFrame
    groups: Mapping[str, pd.DataFrame]
    independence: Independence = "not stated"
    simulated: bool = False
    level: float = 0.95
    notes: tuple[str, ...] = field(default_factory=tuple)

    def __str__(self) -> str:
        row = self.overall.iloc[0]
        kind = "SIMULATED, " if self.simulated else ""
        lines = [f"{self.name or 'evaluation'} ({kind}{IN_WORDS[self.independence]})"]
        lines.append(f"{row['n']} of {row['samples']} samples valid, {row['sites']} sites")
        for measure in MEASURES:
            low, high = row[f"{measure}_low"], row[f"{measure}_high"]
            span = f"  [{low:.3f}, {high:.3f}]" if np.isfinite(low) else ""
            lines.append(f"{measure:<15}{row[measure]:7.3f}{span}")
        lines.append(f"{100 * self.level:g} % intervals: {INTERVALS[row['interval']]}")
        return "\n".join([*lines, *self.notes])


INTERVALS = {
    "sites": "whole sites drawn with replacement; they speak of other sites of the kind",
    "days": "stretches of 60 days drawn with replacement; they speak of these sites alone",
    "none": "too few independent samples",
}
"""What to print of the column ``interval``."""


def evaluate(
    samples: pd.DataFrame | xr.Dataset,
    *,
    truth: str = "soil_moisture",
    predicted: str = "predicted",
    name: str = "",
    independence: Independence = "not stated",
    simulated: bool | None = None,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Measure retrievals by the truth: overall, and by cell, year, network, land cover, climate.

    Computes. The same samples in any order give the same measures.

    Parameters
    ----------
    samples : DataFrame or Dataset (sample)
        See `xsoilsm.evaluation.tabulate`.
    truth, predicted : str
        Names of the columns or variables, m3 m-3.
    name : str
        What is evaluated, for titles.
    independence : {"sites", "years", "none", "not stated"}
        What separates the samples from those of the training, see `Independence`.
    simulated : bool, optional
        By default what the samples say, see `xsoilsm.evaluation.is_simulated`.
    level : float, default 0.95
        Of the confidence intervals.
    draws : int, default 1000
        Of the bootstrap; cells get at most 400.
    seed : int, default 0

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        When the samples lack a column or are not in m3 m-3, or `independence` is none of these.

    Notes
    -----
    Retrievals outside 0 to 0.6 m3 m-3 are invalid: they lower the inversion rate and enter no
    other measure (Zhu et al. 2024).
    """
    if independence not in get_args(Independence):
        msg = f"independence is one of {', '.join(get_args(Independence))}; found {independence!r}"
        raise ValueError(msg)
    table = tabulate(samples, truth=truth, predicted=predicted)
    table = _canonical(table)
    units = _Units(table)
    options: dict[str, Any] = {"level": level, "seed": seed}
    everything = np.zeros(len(table), dtype=np.int64)
    overall = units.rows(everything, pd.Index(["all"]), draws=draws, **options)
    groups = {}
    for group in GROUPS:
        codes, labels = _grouping(table, group)
        if codes is None:
            continue
        fewest = MORE_THAN if group == "cell" else 0
        of_cells = min(draws, _CELL_DRAWS) if group == "cell" else draws
        rows = units.rows(codes, labels, fewest=fewest, draws=of_cells, **options)
        if group == "cell":
            rows = rows.join(_places(table))
        groups[group] = rows
    return Evaluation(
        name,
        table,
        overall,
        groups,
        independence,
        table.attrs["simulated"] if simulated is None else simulated,
        level,
        tuple(_notes(table, independence)),
    )


def evaluate_dataset(
    result: xr.Dataset,
    truth: Any = None,
    *,
    model: Any = "DenseSM-E",
    true_name: str = "truth",
    **options: Any,
) -> Evaluation:
    """Evaluate the result of a retrieval, or a cube, against stations.

    Computes.

    Parameters
    ----------
    result : Dataset
        Of `xsoilsm.retrieve`, or a cube, which is retrieved first. In map form (time, y, x) it
        needs `truth`; in sample form (sample) it holds the truth in the variable `true_name`.
    truth : Truth, DataFrame or path, optional
        Stations: of `xsoilsm.truth`, or what `xsoilsm.truth.read_stations` reads.
    model : str, Path or Ensemble, default "DenseSM-E"
        For cubes.
    true_name : str, default "truth"
    **options
        Of `evaluate`.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        When truth is missing, or none lies in the region and time of the result.
    """
    from xsoilsm.cube import is_sample_form

    kept = result
    if "soil_moisture" not in result:
        from xsoilsm.retrieval import retrieve

        result = retrieve(result, model)
    options.setdefault("name", str(result.attrs.get("ensemble", "")))
    options.setdefault("simulated", True if is_simulated(kept) else None)
    if "sample" in result.dims and is_sample_form(kept):
        if truth is not None:
            msg = f"samples hold their truth in the variable {true_name!r}; pass no other"
            raise ValueError(msg)
        result = result.merge(kept[[n for n in kept if kept[n].dims == ("sample",)]])
        return evaluate(result, truth=true_name, predicted="soil_moisture", **options)
    if truth is None:
        msg = "a map needs stations to be compared with; pass them as truth=..."
        raise ValueError(msg)
    from xsoilsm import grid
    from xsoilsm.cube import cube_geobox
    from xsoilsm.truth import Truth, read_stations

    if not isinstance(truth, Truth):
        truth = read_stations(truth)
    cells = truth.on_cells(grid.grid_of(cube_geobox(result))[0].name)
    pairs = match_days(result, cells.table)
    return evaluate(pairs, truth="truth", **options)


def compare(
    table: pd.DataFrame,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Differences of the measures of two retrievals of the same samples, `first` minus `second`.

    Computes.

    Parameters
    ----------
    table : DataFrame
        See `xsoilsm.evaluation.tabulate`; its column ``predicted`` is not looked at.
    first, second : (sample,) array_like
        Retrievals, m3 m-3.
    level, draws, seed
        As for `evaluate`.

    Returns
    -------
    DataFrame
        Index: the measure. Columns: ``difference``, ``low``, ``high``, and ``cells_higher``, the
        share of cells with more than 15 valid pairs of both in which it is higher. Both are
        drawn with the same sites, so that what they have in common cancels.
    """
    units = _Units(table)
    truth = table["truth"].to_numpy()
    sums = [unit_sums(np.asarray(x), truth, units.codes, units.count) for x in (first, second)]
    drawn = units.drawn(np.arange(units.count))
    a, b = (_merge(s, drawn.codes) for s in sums)
    intervals = bootstrap_intervals(a, level, draws=draws, seed=seed, minus=b)
    rows = [as_row(s.sum(axis=0)[None], {}) for s in sums]
    cells = [_merge(s, units.site) for s in sums]
    enough = np.minimum(cells[0][:, 1], cells[1][:, 1]) > MORE_THAN
    from xsoilsm.metrics import measures

    per_cell = [measures(c[enough]) for c in cells]
    result = {}
    for name in MEASURES:
        x, y = (p[name] for p in per_cell)
        both = np.isfinite(x) & np.isfinite(y)
        result[name] = {
            "difference": rows[0][name] - rows[1][name],
            "low": intervals[name][0],
            "high": intervals[name][1],
            "cells_higher": float((x > y)[both].mean()) if both.any() else np.nan,
        }
    found = pd.DataFrame.from_dict(result, orient="index")
    found.attrs = {"cells": int(enough.sum()), "interval": drawn.kind}
    return found


# --------------------------------------------------------------------------- units


@dataclass(frozen=True)
class _Drawn:
    codes: npt.NDArray[np.int64]
    kind: str


class _Units:
    """The finest pieces that are drawn, stretches of days of one site, and their sites."""

    def __init__(self, table: pd.DataFrame) -> None:
        site = pd.factorize(table["cell"], sort=True)[0]
        if "time" in table:
            days = table["time"].to_numpy().astype("datetime64[D]").astype(np.int64)
            stretch = days // _DAYS
        else:
            stretch = np.zeros(len(table), dtype=np.int64)
        both = pd.MultiIndex.from_arrays([site, stretch])
        self.codes, kinds = pd.factorize(both, sort=True)
        self.site = kinds.get_level_values(0).to_numpy().astype(np.int64)
        self.count = len(kinds)
        self._table = table

    def drawn(self, which: npt.NDArray[np.int64]) -> _Drawn:
        """Say what to draw of the given units, as codes from 0, and what to call it."""
        sites, codes = np.unique(self.site[which], return_inverse=True)
        if sites.size >= _SITES:
            return _Drawn(codes, "sites")
        kind = "days" if which.size >= _SITES else "none"
        return _Drawn(np.arange(which.size), kind)

    def rows(
        self,
        group: npt.NDArray[np.int64],
        labels: pd.Index[Any],
        *,
        level: float,
        draws: int,
        seed: int,
        fewest: int = 0,
    ) -> pd.DataFrame:
        """One row for each group of samples (codes from 0, -1 for none)."""
        inside = group >= 0
        both = group[inside] * self.count + self.codes[inside]
        pieces, codes = np.unique(both, return_inverse=True)
        sums = unit_sums(
            self._table["predicted"].to_numpy()[inside],
            self._table["truth"].to_numpy()[inside],
            codes,
            pieces.size,
        )
        owner, unit = np.divmod(pieces, self.count)
        starts = np.searchsorted(owner, np.arange(len(labels) + 1))
        rows, kept = [], []
        for index, label in enumerate(labels):
            part = slice(starts[index], starts[index + 1])
            if sums[part, 1].sum() <= fewest:
                continue
            drawn = self.drawn(unit[part])
            merged = _merge(sums[part], drawn.codes)
            intervals = (
                bootstrap_intervals(merged, level, draws=draws, seed=seed)
                if drawn.kind != "none"
                else {}
            )
            sites = np.unique(self.site[unit[part]]).size
            rows.append({**as_row(merged, intervals), "sites": sites, "interval": drawn.kind})
            kept.append(label)
        columns = [*as_row(np.ones((1, 7)), {}), "sites", "interval"]
        return pd.DataFrame(rows, columns=columns, index=pd.Index(kept, name=labels.name))


def _merge(sums: npt.NDArray[np.float64], codes: npt.NDArray[np.int64]) -> Any:
    merged = np.zeros((int(codes.max(initial=-1)) + 1, sums.shape[1]))
    np.add.at(merged, codes, sums)
    return merged


def _canonical(table: pd.DataFrame) -> pd.DataFrame:
    """Order samples by what they are, not by how they came, so that sums round alike."""
    keys = [k for k in ("cell", "time", "truth", "predicted") if k in table]
    attrs = table.attrs
    ordered = table.sort_values(keys, kind="stable", ignore_index=True)
    ordered.attrs = attrs
    return ordered


def _grouping(table: pd.DataFrame, group: str) -> tuple[Any, pd.Index[Any]]:
    nothing: pd.Index[Any] = pd.Index([])
    if group == "year":
        if "time" not in table:
            return None, nothing
        values = table["time"].dt.year
    elif group not in table:
        return None, nothing
    else:
        values = table[group].where(table[group] != "", None)
    codes, labels = pd.factorize(values, sort=True)
    if not len(labels):
        return None, nothing
    return codes, pd.Index(labels, name=group)


def _places(table: pd.DataFrame) -> pd.DataFrame:
    """Where a cell lies and what it is called."""
    names = [n for n in ("lat", "lon", "network", "station") if n in table]
    return table.groupby("cell", sort=True)[names].first()


def _notes(table: pd.DataFrame, independence: Independence) -> list[str]:
    notes = []
    if independence in ("none", "not stated"):
        notes.append(
            "This is no validation: it does not say how well sites are retrieved that were not "
            "trained on."
        )
    lost = table.attrs["without_truth"]
    if lost:
        notes.append(f"{lost} samples without truth were left out.")
    lacking = [g for g in GROUPS[2:] if g not in table]
    if "time" not in table:
        lacking.insert(0, "time")
    if lacking:
        notes.append(f"The samples do not say {', '.join(lacking)}.")
    return notes
