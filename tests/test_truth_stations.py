from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xsoilsm.simulate.stations import Sensor, write_ismn, write_station_table
from xsoilsm.truth import read_ismn, read_stations
from xsoilsm.truth.table import drop_ambiguous, judge_values

HOURS = np.arange("2020-04-01", "2020-04-03", dtype="datetime64[h]")
RAMP = np.round(0.10 + 0.001 * np.arange(HOURS.size), 3)
FIELD = Sensor("mine", "Field 1", 41.3, -5.4, HOURS, RAMP)


def table(**columns: object) -> pd.DataFrame:
    base = {
        "station": "A",
        "lat": 41.3,
        "lon": -5.4,
        "time": ["2020-04-01T06:00Z", "2020-04-01T18:00Z", "2020-04-02T06:00Z"],
        "soil_moisture": [0.2, 0.3, 0.4],
    }
    made = pd.DataFrame(base | columns)
    return made


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_a_table_says_what_an_archive_says(tmp_path: Path, name: str) -> None:
    flags = ["G"] * 40 + ["D01,D03"] * 8
    sensors = [
        replace(FIELD, flags=flags),
        replace(FIELD, values=RAMP + 0.2, instrument="B"),
        replace(FIELD, station="Hill", lat=41.4, depth=(0.03, 0.05)),
        replace(FIELD, station="Hill", lat=41.4, depth=(0.5, 0.5)),
    ]
    mine = read_stations(write_station_table(tmp_path / name, sensors)).table
    archive = read_ismn(write_ismn(tmp_path / "a", sensors)).table
    assert set(archive.pop("land_cover")) == {"Grassland"}
    assert set(mine.pop("land_cover")) == {""}
    pd.testing.assert_frame_equal(mine, archive, check_exact=False, atol=1e-9)


def test_the_minimum_of_columns() -> None:
    truth = read_stations(table(), network="farm")
    assert truth.table["date"].tolist() == list(pd.date_range("2020-04-01", periods=2))
    np.testing.assert_allclose(truth.table["soil_moisture"], [0.25, 0.4])
    assert set(truth.table["network"]) == {"farm"}
    assert truth.report.empty
    with pytest.raises(ValueError, match=r"lacks lat \(latitude.*it has the columns station, lon"):
        read_stations(table().drop(columns="lat"))


def test_other_spellings() -> None:
    days = table(time=["2020-04-01", "2020-04-02", "2020-04-03"])
    renamed = days.rename(columns={"lat": "latitude", "lon": "longitude", "time": "date"})
    assert len(read_stations(renamed).table) == 3


def test_offsets_are_brought_to_utc() -> None:
    late = table(time=["2020-04-01T23:30-07:00", "2020-04-02T06:30Z", "2020-04-03T00:30+02:00"])
    truth = read_stations(late)
    assert truth.table["date"].tolist() == [pd.Timestamp("2020-04-02")]
    zoned = late.assign(time=pd.to_datetime(late["time"], utc=True).dt.tz_convert("Asia/Tokyo"))
    pd.testing.assert_frame_equal(read_stations(zoned).table, truth.table)


def test_units_are_not_guessed() -> None:
    with pytest.raises(ValueError, match="divide them by 100"):
        read_stations(table(soil_moisture=[20.0, 30.0, 0.9]))
    with pytest.raises(ValueError, match="where it is in cm, divide it by 100"):
        read_stations(table(depth_from=0, depth_to=[5, 5, 10]))
    with pytest.raises(ValueError, match=r"no sensor at 0\.05 m or above"):
        read_stations(table(depth_from=0.1, depth_to=0.2))
    mixed = pd.concat([table(), table(station="B", soil_moisture=[20.0, 30.0, 40.0])])
    truth = read_stations(mixed)
    assert set(truth.table["station"]) == {"A"}
    assert truth.report[["station", "left_out"]].to_numpy().tolist() == [["B", True]]


def test_depths_decide() -> None:
    truth = read_stations(table(depth_from=[0, 0.05, 0.3], depth_to=[0.05, 0.05, 0.2]))
    assert truth.table["n_sensors"].tolist() == [2]
    np.testing.assert_allclose(truth.table["soil_moisture"], [0.25])
    assert truth.report["reason"].tolist() == ["depths are missing, negative or upside down"]
    only_bottom = read_stations(table(depth_to=[0.05, 0.1, 0.05]))
    assert only_bottom.table["n_values"].tolist() == [1, 1]


def test_what_cannot_be_understood() -> None:
    with pytest.raises(ValueError, match="'wet', expected numbers"):
        read_stations(table(soil_moisture=["0.2", "wet", "0.3"]))
    with pytest.raises(ValueError, match="expected ISO 8601"):
        read_stations(table(time=["1/4/20", "2/4/20", "3/4/20"]))
    with pytest.raises(ValueError, match="holds numbers"):
        read_stations(table(time=[43922.25, 43922.75, 43923.25]))
    with pytest.raises(ValueError, match="holds no row"):
        read_stations(table().iloc[:0])
    with pytest.raises(ValueError, match="swapped"):
        read_stations(table(lat=-105.0, lon=41.0))


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a file"):
        read_stations(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    for name in ("empty.csv", "bad.parquet"):
        with pytest.raises(ValueError, match="cannot be read as a table"):
            read_stations(tmp_path / name)


def test_a_time_stamp_held_twice() -> None:
    twice = pd.concat([table(), table(soil_moisture=[0.2, 0.35, 0.4])])
    truth = read_stations(twice)
    np.testing.assert_allclose(truth.table["soil_moisture"], [0.2, 0.4])
    assert truth.report["values"].tolist() == [2, 2]
    named = read_stations(twice.assign(sensor=["x"] * 3 + ["y"] * 3))
    np.testing.assert_allclose(named.table["soil_moisture"], [0.2625, 0.4])
    assert named.report.empty


values = st.lists(
    st.one_of(st.floats(0, 1), st.just(-9999.0), st.just(float("nan")), st.floats(1.1, 60)),
    max_size=60,
)


@settings(max_examples=60)
@given(values)
def test_verdicts_account_for_every_value(found: list[float]) -> None:
    verdict = judge_values(found)
    if verdict.refused:
        assert sum(v > 1 for v in found) > 0.01 * sum(v >= 0 for v in found)
    else:
        assert int(verdict.keep.sum()) + sum(n for _, n in verdict.dropped) == len(found)
    assert all(0 <= v <= 1 for v in np.array(found)[verdict.keep])


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), max_size=20))
def test_no_time_stamp_is_left_twice(pairs: list[tuple[int, int]]) -> None:
    time = np.array([p[0] for p in pairs], "datetime64[h]").astype("datetime64[ns]")
    worth = np.array([p[1] / 10 for p in pairs])
    keep, dropped = drop_ambiguous(time, worth)
    assert keep.sum() + sum(n for _, n in dropped) == len(pairs)
    assert len(set(time[keep])) == keep.sum()
    for stamp in set(p[0] for p in pairs):
        held = {p[1] for p in pairs if p[0] == stamp}
        kept = worth[keep & (time == np.datetime64(stamp, "h"))]
        assert kept.tolist() == ([held.pop() / 10] if len(held) == 1 else [])
