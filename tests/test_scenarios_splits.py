"""Splits are what they claim, whatever the samples, and say so when the samples forbid it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from field_samples import field_samples
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from xsoilsm.scenarios import Split, dependent, make_split, off_site, on_site, plan, site_folds
from xsoilsm.scenarios.splits import SIZES

SAMPLES = field_samples()


@st.composite
def tables(draw):
    """Draw samples of some networks with cells of any number of samples, in any order."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    cells = draw(st.integers(2, 12))
    count = draw(st.integers(cells, 120))
    cell = np.concatenate([np.arange(cells), rng.integers(0, cells, count - cells)])
    rng.shuffle(cell)
    days = rng.choice(2192, count, replace=False)
    return pd.DataFrame(
        {
            "truth": rng.random(count),
            "cell": [f"cell {c}" for c in cell],
            "network": np.where(cell % 2, "SCAN", "SNOTEL"),
            "station": [f"s{c}" for c in cell],
            "lat": 40 + cell / 10,
            "lon": -100 + cell / 10,
            "time": np.datetime64("2016-01-01", "ns") + days * np.timedelta64(1, "D"),
        }
    )


def _content(table, rows):
    return set(map(tuple, table.iloc[rows][["cell", "time", "truth"]].to_numpy().tolist()))


def _any_split(table, seed):
    sizes = {"dependent": 20, "on-site": 2, "off-site": 1}
    for scenario, size in sizes.items():
        try:
            yield make_split(table, scenario, size, seed, "SCAN")
        except ValueError as error:  # some tables have no such split, and say why
            if not any(w in str(error) for w in ("no cell", "others", "no samples")):
                raise


@settings(max_examples=40)
@given(tables(), st.integers(0, 9))
def test_no_row_and_no_site_is_on_both_sides(table, seed):
    for split in _any_split(table, seed):
        assert not set(split.train) & set(split.test)
        train, test = table.iloc[split.train], table.iloc[split.test]
        if split.scenario == "off-site":
            for name in ("cell", "station", "lat"):
                assert not set(train[name]) & set(test[name])
            assert set(train["network"]) | set(test["network"]) == {"SCAN"}
            assert len(train) + len(test) == (table["network"] == "SCAN").sum()
        if split.scenario == "on-site":
            assert set(train["time"].dt.year) == {2021}
            assert set(test["time"].dt.year) <= set(range(2016, 2021))
            assert set(train["cell"]) == set(test["cell"])
            assert train["cell"].value_counts().max() <= 2
        if split.scenario == "dependent":
            assert len(train) + len(test) == len(table)


@settings(max_examples=40)
@given(tables(), st.integers(0, 9), st.integers(0, 100))
def test_splits_do_not_depend_on_the_order_of_rows(table, seed, other):
    shuffled = table.sample(frac=1, random_state=other).reset_index(drop=True)
    pairs = zip(_any_split(table, seed), _any_split(shuffled, seed), strict=True)
    for a, b in pairs:
        assert _content(table, a.train) == _content(shuffled, b.train)
        assert _content(table, a.test) == _content(shuffled, b.test)


@settings(max_examples=40)
@given(tables(), st.integers(0, 9))
def test_a_larger_training_holds_the_smaller_ones(table, seed):
    for small, large in ((10, 30), (20, 50)):
        assert set(dependent(table, small, seed).train) <= set(dependent(table, large, seed).train)
    assume((table["network"] == "SCAN").any() and table["cell"].nunique() > 6)
    one, two = (off_site(table, n, seed, "SCAN") for n in (1, 2))
    assert set(one.train) < set(two.train)


@settings(max_examples=40)
@given(tables(), st.integers(0, 9), st.integers(2, 5))
def test_folds_validate_each_site_once(table, seed, folds):
    assume(table["cell"].nunique() >= folds)
    splits = list(site_folds(table, folds, seed))
    assert sorted(np.concatenate([s.test for s in splits])) == list(range(len(table)))
    for split in splits:
        assert split.independence == "sites"
        assert not set(table["cell"].iloc[split.train]) & set(table["cell"].iloc[split.test])
        assert split.train.size + split.test.size == len(table)


def test_folds_keep_cells_of_one_station_together():
    table = SAMPLES.assign(truth=SAMPLES["soil_moisture"])
    twin = table["cell"].unique()[:2]
    table.loc[table["cell"] == twin[1], ["network", "station"]] = ["SCAN", "station 0"]
    for split in site_folds(table, 4):
        inside = {c in set(table["cell"].iloc[split.test]) for c in twin}
        assert len(inside) == 1


def test_the_same_seed_gives_the_same_split_for_ever():
    """Another NumPy must not change what a published table was made with."""
    table = pd.DataFrame(
        {
            "cell": [f"c{i // 10}" for i in range(200)],
            "truth": np.arange(200) / 500,
            "network": "SCAN",
            "time": pd.date_range("2016-01-01", periods=200, freq="11D"),
        }
    )
    assert dependent(table, 10, 3).train.tolist()[:4] == [2, 5, 9, 22]
    assert sorted(set(off_site(table, 3, 3, "SCAN").train // 10)) == [0, 12, 15]
    assert not np.array_equal(dependent(table, 10, 3).train, dependent(table, 10, 4).train)


def test_sizes_are_those_of_the_paper():
    count = 187_297
    table = pd.DataFrame({"cell": np.arange(count) % 1000, "truth": np.zeros(count)})
    assert dependent(table, 0.5, 0).train.size == 936
    assert SIZES["dependent"][0] == 0.5
    assert SIZES["dependent"][-1] == 4.5
    assert len(plan("dependent")) == 9 * 10 * 3
    assert len(plan("on-site", arms=["transfer"])) == 6 * 10
    assert len(plan("off-site")) == 5 * 10 * 3 * 2
    assert len({run.key for s in SIZES for run in plan(s)}) == 270 + 180 + 300


def test_cells_with_few_samples_give_all_they_have():
    days = ["2016-05-01", "2018-05-01", "2021-03-01", "2021-04-01", "2017-01-01", "2021-07-01"]
    table = pd.DataFrame(
        {"cell": list("aaabbb"), "time": pd.to_datetime(days), "truth": np.arange(6) / 10}
    )
    split = on_site(table, 5, 0)
    assert split.train.tolist() == [2, 3, 5]
    assert split.test.tolist() == [0, 1, 4]


# --------------------------------------------------------------------------- refusals


def _table(**columns):
    return SAMPLES.assign(truth=SAMPLES["soil_moisture"], **columns)


def test_a_station_in_two_cells_is_a_leak():
    table = _table(station="the only name")
    with pytest.raises(ValueError, match=r"leaks.*station"):
        off_site(table, 3, 0, "SCAN")


def test_a_place_in_two_cells_is_a_leak():
    table = _table(lat=40.0, lon=-100.0).drop(columns="station")
    with pytest.raises(ValueError, match=r"leaks.*place"):
        off_site(table, 3, 0, "SCAN")


def test_a_split_that_lies_is_caught():
    table = _table()
    half = np.arange(len(table) // 2)
    rest = np.arange(len(table) // 2, len(table))
    with pytest.raises(ValueError, match="trains on rows"):
        Split("dependent", 1, 0, half, half).prove(table)
    with pytest.raises(ValueError, match="leaks"):
        Split("off-site", 1, 0, half[::2], half[1::2]).prove(table)
    with pytest.raises(ValueError, match=r"leaks.*2016"):
        Split("on-site", 1, 0, half, rest).prove(table)
    with pytest.raises(ValueError, match="no samples"):
        Split("dependent", 1, 0, half, half[:0]).prove(table)
    with pytest.raises(ValueError, match="do not exist"):
        Split("dependent", 1, 0, half, rest + 1).prove(table)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda t: dependent(t, 0, 0), "more than 0"),
        (lambda t: dependent(t, 100, 0), "less than 100"),
        (lambda t: on_site(t, 0, 0), "1 sample or more"),
        (lambda t: on_site(t, 1, 0, train_year=2018), "another year"),
        (lambda t: on_site(t, 1, 0, train_year=1999), "no cell has samples in 1999"),
        (lambda t: on_site(t.drop(columns="time"), 1, 0), "column 'time'"),
        (lambda t: off_site(t, 12, 0, "SCAN"), "has 12"),
        (lambda t: off_site(t, 1, 0, "NOWHERE"), "REMEDHUS, SCAN, SNOTEL"),
        (lambda t: off_site(t.drop(columns="network"), 1, 0, "SCAN"), "column 'network'"),
        (lambda t: make_split(t, "in-between", 1, 0), "unknown scenario"),
        (lambda t: list(site_folds(t, 99)), "as many sites"),
        (lambda t: plan("dependent", arms=["wizardry"]), "arms transfer"),
    ],
)
def test_impossible_splits_say_why(make, says):
    with pytest.raises(ValueError, match=says):
        make(_table())
