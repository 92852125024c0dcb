"""Outside the seven steps (scenarios): which samples train, and which validate.

Every split is a function of the samples and the seed alone: the order of rows plays no part, and
neither does the version of NumPy (raw bits of PCG64, whose stream is fixed). Draws are nested:
with one seed, a larger training holds every smaller one. Before a split is handed out it proves
what it claims, see `Split.prove`.

Sizes are those of Zhu et al. (2024), Remote Sensing of Environment 301, 113944.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from xsoilsm.evaluation import Independence
from xsoilsm.evaluation.table import site_keys

__all__ = [
    "SCENARIOS",
    "SIZES",
    "Scenario",
    "Split",
    "dependent",
    "make_split",
    "off_site",
    "on_site",
    "site_folds",
]

Scenario = Literal["dependent", "on-site", "off-site"]
SCENARIOS: tuple[Scenario, ...] = ("dependent", "on-site", "off-site")

SIZES: dict[Scenario, tuple[float, ...]] = {
    "dependent": (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5),
    "on-site": (1, 3, 5, 7, 9, 11),
    "off-site": (1, 5, 9, 13, 17),
}
"""Percent of all samples; samples of each cell; cells of a network."""

NETWORKS = ("SCAN", "SNOTEL")
"""Networks of the off-site scenario."""

TRAINING_YEAR = 2021
VALIDATION_YEARS = (2016, 2017, 2018, 2019, 2020)

INDEPENDENCE: dict[str, Independence] = {
    "dependent": "none",
    "on-site": "years",
    "off-site": "sites",
    "folds": "sites",
}
"""What separates training and validation in each scenario."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of a table that train, and rows that validate.

    Parameters
    ----------
    scenario : str
    size : float
        As in `SIZES`.
    seed : int
    train, test : (row,) ndarray of int
        Positions of rows, ascending.
    network : str
        Of the off-site scenario; else empty.
    """

    scenario: str
    size: float
    seed: int
    train: Indices
    test: Indices
    network: str = ""

    @property
    def independence(self) -> Independence:
        """What separates training and validation."""
        return INDEPENDENCE[self.scenario]

    @property
    def digest(self) -> str:
        """Short name of this choice of rows."""
        held = zlib.crc32(self.train.astype("<i8").tobytes())
        return f"{zlib.crc32(self.test.astype('<i8').tobytes(), held):08x}"

    def prove(self, table: pd.DataFrame) -> None:
        """Check that the split is what its scenario says.

        Computes.

        Parameters
        ----------
        table : DataFrame
            The samples, with ``cell``; ``time`` on-site; network, station, lat and lon as far
            as they are known.

        Raises
        ------
        ValueError
            When a row trains and validates, one side is empty, sites leak (off-site: by cell,
            station or place), or days leak (on-site).
        """
        where = f"the {self.scenario} split of size {self.size:g}, seed {self.seed}"
        for rows, name in ((self.train, "training"), (self.test, "validation")):
            if not rows.size:
                msg = f"{where} has no samples for {name}"
                raise ValueError(msg)
            if np.unique(rows).size != rows.size or rows.min() < 0 or rows.max() >= len(table):
                msg = f"{where} names rows for {name} twice, or rows that do not exist"
                raise ValueError(msg)
        if np.intersect1d(self.train, self.test).size:
            msg = f"{where} trains on rows that it validates on"
            raise ValueError(msg)
        if self.independence == "sites":
            self._prove_sites(table, where)
        elif self.independence == "years":
            self._prove_years(table, where)

    def _prove_sites(self, table: pd.DataFrame, where: str) -> None:
        for name, codes in site_keys(table).items():
            shared = np.intersect1d(codes[self.train], codes[self.test])
            shared = shared[shared >= 0]
            if shared.size:
                row = table.iloc[int(np.flatnonzero(codes == shared[0])[0])]
                said = ", ".join(
                    f"{c} {row[c]}"
                    for c in ("cell", "network", "station", "lat", "lon")
                    if c in row
                )
                msg = (
                    f"{where} leaks: {shared.size} sites are on both sides by their {name}, for "
                    f"instance {said}. Give samples of one station one cell, and stations names "
                    "of their own"
                )
                raise ValueError(msg)

    def _prove_years(self, table: pd.DataFrame, where: str) -> None:
        years = table["time"].dt.year.to_numpy()
        shared = np.intersect1d(years[self.train], years[self.test])
        if shared.size:
            msg = f"{where} leaks: it trains and validates on {', '.join(map(str, shared))}"
            raise ValueError(msg)
        cells = table["cell"].to_numpy()
        strange = np.setxor1d(np.unique(cells[self.train]), np.unique(cells[self.test]))
        if strange.size:
            msg = f"{where}: {strange.size} cells are on one side only, for instance {strange[0]}"
            raise ValueError(msg)


# --------------------------------------------------------------------------- scenarios


def dependent(table: pd.DataFrame, percent: float, seed: int) -> Split:
    """Train on random samples, validate on all others, their neighbours in space and time.

    Computes. This is no validation, and reports refuse to show it alone.

    Parameters
    ----------
    table : DataFrame
        With ``cell``.
    percent : float
        Of all samples, between 0 and 100; rounded down, at least one sample.
    seed : int

    Returns
    -------
    Split

    Raises
    ------
    ValueError
        When `percent` is out of range or a side is empty.
    """
    if not 0 < percent < 100:
        msg = f"the dependent scenario trains on more than 0 and less than 100 %; found {percent:g}"
        raise ValueError(msg)
    count = max(1, int(len(table) * percent / 100 + 1e-9))
    train = _shuffled(table, seed, "dependent")[:count]
    return _proven(table, "dependent", percent, seed, train, _others(len(table), train))


def on_site(
    table: pd.DataFrame,
    per_cell: int,
    seed: int,
    *,
    train_year: int = TRAINING_YEAR,
    test_years: Sequence[int] = VALIDATION_YEARS,
) -> Split:
    """Train on some samples of each cell in one year, validate on the same cells in others.

    Computes.

    Parameters
    ----------
    table : DataFrame
        With ``cell`` and ``time``.
    per_cell : int
        Samples of each cell that train; cells with fewer in that year give all they have.
    seed : int
    train_year : int, default 2021
    test_years : sequence of int, default 2016 to 2020

    Returns
    -------
    Split
        Cells with samples in `train_year` and in one of `test_years`, at every `per_cell` the
        same.

    Raises
    ------
    ValueError
        When there are no such cells, or the years overlap.
    """
    if per_cell < 1 or train_year in test_years:
        msg = (
            f"the on-site scenario trains on 1 sample or more of each cell, in another year than "
            f"it validates on; found {per_cell:g} of {train_year}, validated on {list(test_years)}"
        )
        raise ValueError(msg)
    if "time" not in table:
        msg = "the on-site scenario needs the column 'time'"
        raise ValueError(msg)
    years = table["time"].dt.year.to_numpy()
    cells = pd.factorize(table["cell"])[0]
    early = np.isin(years, list(test_years))
    both = np.intersect1d(cells[years == train_year], cells[early])
    if not both.size:
        msg = (
            f"no cell has samples in {train_year} and in {', '.join(map(str, test_years))}; the "
            f"samples are of {years.min()} to {years.max()}. Choose other years"
        )
        raise ValueError(msg)
    usable = np.isin(cells, both)
    order = _shuffled(table, seed, "on-site")
    order = order[usable[order] & (years[order] == train_year)]
    rank = pd.Series(cells[order]).groupby(cells[order]).cumcount().to_numpy()
    train = order[rank < per_cell]
    return _proven(table, "on-site", per_cell, seed, train, np.flatnonzero(usable & early))


def off_site(table: pd.DataFrame, cells: int, seed: int, network: str) -> Split:
    """Train on all samples of some random cells of a network, validate on its other cells.

    Computes.

    Parameters
    ----------
    table : DataFrame
        With ``cell`` and ``network``.
    cells : int
    seed : int
    network : str

    Returns
    -------
    Split

    Raises
    ------
    ValueError
        When the network is unknown or has too few cells, or a site leaks.
    """
    if "network" not in table:
        msg = "the off-site scenario needs the column 'network'"
        raise ValueError(msg)
    inside = np.flatnonzero((table["network"] == network).to_numpy())
    sites = np.unique(table["cell"].to_numpy()[inside].astype(str))
    if cells < 1 or sites.size <= cells:
        known = ", ".join(sorted(set(map(str, table["network"]))))
        msg = (
            f"the off-site scenario trains on 1 cell or more of a network and leaves others; "
            f"{network!r} has {sites.size}, {cells:g} were asked for. Networks here: {known}"
        )
        raise ValueError(msg)
    chosen = sites[_permutation(sites.size, seed, f"off-site {network}")[: int(cells)]]
    trains = np.isin(table["cell"].to_numpy()[inside].astype(str), chosen)
    return _proven(table, "off-site", cells, seed, inside[trains], inside[~trains], network)


def make_split(
    table: pd.DataFrame, scenario: str, size: float, seed: int, network: str = ""
) -> Split:
    """Make the split of a scenario by its name.

    Computes.

    Raises
    ------
    ValueError
        For an unknown scenario, and what the scenarios raise.
    """
    if scenario == "dependent":
        return dependent(table, size, seed)
    if scenario == "on-site":
        return on_site(table, int(size), seed)
    if scenario == "off-site":
        return off_site(table, int(size), seed, network)
    msg = f"unknown scenario {scenario!r}; there are {', '.join(SCENARIOS)}"
    raise ValueError(msg)


def site_folds(table: pd.DataFrame, folds: int = 5, seed: int = 0) -> Iterator[Split]:
    """Cross-validate by sites: each validates once, and never trains in that fold.

    Computes.

    Parameters
    ----------
    table : DataFrame
        With ``cell``; samples whose cell, station or place is the same stay together.
    folds : int, default 5
    seed : int, default 0

    Yields
    ------
    Split
        Scenario "folds"; `Split.size` is the number of the fold. Folds have about equal
        numbers of samples.

    Raises
    ------
    ValueError
        When there are fewer sites than folds.
    """
    site = _joined_sites(table)
    names = pd.Series(table["cell"].astype(str).to_numpy()).groupby(site).min()
    if folds < 2 or len(names) < folds:
        msg = f"{folds} folds need as many sites at least; there are {len(names)}"
        raise ValueError(msg)
    canonical = np.argsort(names.to_numpy(), kind="stable")
    order = canonical[_permutation(len(names), seed, "folds")]
    counts = np.bincount(site)
    # The site with most samples first, each into the fold that has fewest: even sizes.
    order = order[np.argsort(-counts[order], kind="stable")]
    fold_of, filled = np.zeros(len(names), dtype=np.int64), np.zeros(folds)
    for one in order:
        fold_of[one] = int(np.argmin(filled))
        filled[fold_of[one]] += counts[one]
    for fold in range(folds):
        test = np.flatnonzero(fold_of[site] == fold)
        yield _proven(table, "folds", fold, seed, _others(len(table), test), test)


# --------------------------------------------------------------------------- draws


def _proven(
    table: pd.DataFrame,
    scenario: str,
    size: float,
    seed: int,
    train: Indices,
    test: Indices,
    network: str = "",
) -> Split:
    split = Split(scenario, size, seed, np.sort(train), np.sort(test), network)
    split.prove(table)
    return split


def _others(count: int, rows: Indices) -> Indices:
    kept = np.ones(count, dtype=np.bool_)
    kept[rows] = False
    return np.flatnonzero(kept)


def _permutation(count: int, seed: int, purpose: str) -> Indices:
    entropy = [seed, zlib.crc32(purpose.encode())]
    bits = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(count)
    return np.argsort(bits, kind="stable")


def _shuffled(table: pd.DataFrame, seed: int, purpose: str) -> Indices:
    """Shuffle all rows; the order depends on what they are, not on where they stand."""
    keys: list[Any] = [
        table[name].to_numpy() for name in ("predicted", "truth", "time") if name in table
    ]
    keys.append(pd.factorize(table["cell"].astype(str), sort=True)[0])
    canonical = np.lexsort(keys)
    return canonical[_permutation(len(table), seed, purpose)]


def _joined_sites(table: pd.DataFrame) -> Indices:
    """Give sites numbers; rows that share cell, station or place are of one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(table)
    rows, columns, first = [], [], count
    for codes in site_keys(table).values():
        known = np.flatnonzero(codes >= 0)
        rows.append(known)
        columns.append(codes[known] + first)
        first += int(codes.max(initial=-1)) + 1
    at = (np.concatenate(rows), np.concatenate(columns))
    graph = coo_matrix((np.ones(at[0].size, np.int8), at), shape=(first, first))
    site: Indices = connected_components(graph, directed=False)[1][:count]
    return np.unique(site, return_inverse=True)[1].astype(np.int64)
