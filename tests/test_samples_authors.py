"""Tables in the form that the method's authors pass around, made from the golden samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from xsoilsm.contract import get_contract
from xsoilsm.samples import check_contract, read_author_samples, read_samples, write_samples
from xsoilsm.samples.authors import STATISTICS

SCRIPT = [0, 1, 2, None, 13, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
"""Columns of the training order from which those of the script's order come."""


def day_angle(golden: dict[str, np.ndarray]) -> np.ndarray:
    date = golden["in_date"].astype("datetime64[D]")
    return 2 * np.pi * ((date - date.astype("datetime64[Y]")).astype(int) + 1) / 365


def training_table(golden: dict[str, np.ndarray], rows: Any = slice(None)) -> pd.DataFrame:
    n = golden["row"].size
    values = np.concatenate(
        [golden["snapshot"][:, :15], golden["series"].reshape(n, -1)], axis=1
    ).astype(float)
    table = pd.DataFrame(values, columns=[str(k) for k in range(153)])
    days = golden["in_date"].astype("datetime64[D]") - np.datetime64("1899-12-30")
    more = pd.DataFrame(
        {
            "gt": np.clip(golden["mean"], 0.01, 0.6),
            "network": "SCAN",
            "station": [f"s{k}" for k in range(n)],
            "r": golden["row"],
            "c": golden["col"],
            "edate": days.astype(int),
            "lc": 130,
        }
    )
    return pd.concat([table, more], axis=1).iloc[rows].reset_index(drop=True)


def script_table(golden: dict[str, np.ndarray], rows: Any = slice(None)) -> pd.DataFrame:
    """Order and scalings of the script: row from -1 on, precipitation as a mean of 8 days."""
    table = training_table(golden)
    made = table.copy()
    for k, source in enumerate(SCRIPT):
        made[str(k)] = (np.sin(day_angle(golden)) + 1) / 2 if source is None else table[str(source)]
    made["12"] = (made["12"] + 1) / 2
    rain = [str(k) for k in range(107, 153)]
    made[rain] = table[rain] / 8
    return made.iloc[rows].reset_index(drop=True)


@pytest.mark.parametrize("make", [training_table, script_table])
def test_both_orders_give_what_the_networks_saw(
    golden: dict[str, np.ndarray], make: Any, tmp_path: Path
) -> None:
    samples, report = read_author_samples(make(golden), resolution="1km")
    assert samples.attrs["column_order"] == make.__name__.removesuffix("_table")
    assert report.empty
    np.testing.assert_allclose(samples.snapshot, golden["snapshot"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(samples.series, golden["series"], rtol=0, atol=2e-6)
    dates = samples.time.values.astype("datetime64[D]")
    np.testing.assert_array_equal(dates, golden["in_date"].astype("datetime64[D]"))
    assert samples.row.values.tolist() == golden["row"].tolist()
    assert set(samples.network.values) == {"SCAN"}
    assert set(samples.land_cover.values) == {"130"}
    check_contract(samples, "published-coarse")
    kept = read_samples(write_samples(samples, tmp_path / "a.parquet"))
    np.testing.assert_array_equal(kept.snapshot, samples.snapshot)


@pytest.mark.parametrize("make", [training_table, script_table])
def test_the_contract_of_the_paper(golden: dict[str, np.ndarray], make: Any) -> None:
    samples, _ = read_author_samples(make(golden), resolution="1km", contract="paper")
    paper = get_contract("paper")
    values = dict(zip(paper.features, samples.snapshot.values.T, strict=True))
    sine = (np.sin(day_angle(golden)) + 1) / 2
    np.testing.assert_allclose(values["day_of_year_sin"], sine, atol=1e-5)
    np.testing.assert_allclose(values["day_of_year_cos"], golden["snapshot"][:, 13], atol=1e-5)
    np.testing.assert_allclose(values["ndvi_last"], golden["series"][:, 0, -1], atol=1e-5)
    np.testing.assert_allclose(samples.series[:, 2], golden["series"][:, 2] / 8, atol=1e-5)


def test_files_with_smap_as_truth(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    table = training_table(golden).rename(columns={"gt": "SMAP"}).drop(columns=["network"])
    for name in ("t.csv", "t.parquet"):
        path = tmp_path / name
        table.to_csv(path) if name.endswith("csv") else table.to_parquet(path)
        samples, _ = read_author_samples(path)
        assert samples.attrs["resolution"] == "9km"
        assert set(samples.network.values) == {"SMAP"}
        np.testing.assert_allclose(samples.soil_moisture, table["SMAP"], atol=1e-9)


@pytest.mark.parametrize("make", [training_table, script_table])
def test_an_unknown_order_is_refused(golden: dict[str, np.ndarray], make: Any) -> None:
    table = make(golden)
    for shift in range(1, 15):
        shuffled = table.rename(columns={str(k): str((k + shift) % 15) for k in range(15)})
        with pytest.raises(ValueError, match="fit no known order"):
            read_author_samples(shuffled, resolution="1km")


def test_means_unlike_those_of_training_are_refused(golden: dict[str, np.ndarray]) -> None:
    odd = training_table(golden).assign(**{k: 1.0 for k in ("0", "1", "4", "8", "9")})
    with pytest.raises(ValueError, match=r"order 'training', means lie \d\.\d+ standard dev"):
        read_author_samples(odd, resolution="1km")
    samples, _ = read_author_samples(odd, resolution="1km", order="training")
    assert samples.attrs["column_order"] == "training"


def test_what_holds_exactly_is_checked_of_a_named_order(golden: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"order 'script', sine .* not of one angle"):
        read_author_samples(training_table(golden), resolution="1km", order="script")
    with pytest.raises(ValueError, match=r"order 'training', .*not that of `r`"):
        read_author_samples(script_table(golden), resolution="1km", order="training")
    with pytest.raises(ValueError, match="order 'mine' is unknown"):
        read_author_samples(script_table(golden), resolution="1km", order="mine")


def order_of(table: pd.DataFrame) -> str:
    try:
        samples, _ = read_author_samples(table, resolution="1km")
    except ValueError:
        return "refused"
    return str(samples.attrs["column_order"])


@pytest.mark.parametrize("make", [training_table, script_table])
def test_the_wrong_order_is_never_taken(golden: dict[str, np.ndarray], make: Any) -> None:
    """Means of a single site are far from those of training; some are refused, none mistaken."""
    found = [order_of(make(golden, slice(k, k + 1))) for k in range(0, 256, 6)]
    name = make.__name__.removesuffix("_table")
    assert set(found) <= {name, "refused"}
    assert found.count(name) > 0.8 * len(found)


def test_statistics_are_those_of_the_networks(weights_dir: Path) -> None:
    torch = pytest.importorskip("torch")
    means, spreads = [], []
    for file in weights_dir.glob("*.pt"):
        state = torch.load(file, map_location="cpu", weights_only=True)
        means.append(state["norm.running_mean"].numpy()[:14])
        spreads.append(np.sqrt(state["norm.running_var"].numpy()[:14]))
    np.testing.assert_allclose(STATISTICS.means, np.mean(means, axis=0), atol=6e-4)
    np.testing.assert_allclose(STATISTICS.deviations, np.mean(spreads, axis=0), atol=6e-4)


def broken_percent(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(gt=table["gt"] * 100)


def broken_missing(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns=["152", "edate"])


def broken_physical(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{"0": -12.0})


def broken_dates(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(edate=table["edate"] + 693960)


def broken_day(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(edate=table["edate"] + 90)


def broken_cell(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(c=(table["c"] + 40) % 3856)


def broken_empty(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(gt=np.nan)


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (broken_percent, "not in m3 m-3"),
        (broken_missing, "lacks the columns 152, edate"),
        (broken_physical, "column 0 runs from -12 to -12, expected 0 to 1"),
        (broken_dates, "as spreadsheets count them"),
        (broken_day, "not that of `edate`"),
        (broken_cell, "not those of `c`"),
        (broken_empty, "holds no complete row"),
    ],
)
def test_what_is_wrong_is_named(golden: dict[str, np.ndarray], break_it: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_author_samples(break_it(training_table(golden)), resolution="1km")


def test_rows_with_gaps_are_left_out_and_told(golden: dict[str, np.ndarray]) -> None:
    table = training_table(golden)
    table.loc[3, "40"] = np.nan
    table.loc[5, "gt"] = -9999
    samples, report = read_author_samples(table, resolution="1km")
    assert samples.sizes["sample"] == len(table) - 2
    assert report["values"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="does not say of which grid"):
        read_author_samples(table)
    with pytest.raises(FileNotFoundError):
        read_author_samples("none.csv")
