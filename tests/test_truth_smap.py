from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xsoilsm.simulate.smap import HalfDay, granule_name, write_granule
from xsoilsm.truth import Truth, download_smap, read_smap
from xsoilsm.truth.smap import interpolate_days

ROWS, COLUMNS = (a.ravel() for a in np.meshgrid(np.arange(300, 306), np.arange(800, 806)))
LEVEL = 0.10 + 0.005 * np.arange(ROWS.size)
CELLS = np.stack([ROWS, COLUMNS], axis=1)


def half(values: object = LEVEL, part: slice = slice(None), quality: object = 0) -> HalfDay:
    worth = np.broadcast_to(np.asarray(values, float), ROWS.shape)[part]
    bits = np.broadcast_to(np.asarray(quality), ROWS.shape)[part]
    return HalfDay(ROWS[part], COLUMNS[part], worth, bits)


def values_of(truth: Truth, day: str = "2020-06-01") -> pd.Series:
    table = truth.table[truth.table["date"] == day].set_index(["row", "column"])
    return table["soil_moisture"]


def at(index: int) -> tuple[int, int]:
    return int(ROWS[index]), int(COLUMNS[index])


def test_the_difference_of_the_passes_is_removed(tmp_path: Path) -> None:
    """Descending passes saw 30 cells, ascending ones 33, wetter by 0.02 on the whole."""
    noise = np.where(np.arange(36) % 2, 0.01, -0.01)
    write_granule(
        tmp_path, "2020-06-01", half(part=slice(0, 30)), half(LEVEL + 0.02 + noise, slice(3, 36))
    )
    truth = read_smap(tmp_path, CELLS)
    found = values_of(truth)
    bias = np.mean((0.02 + noise)[3:30])
    assert found[at(0)] == pytest.approx(LEVEL[0], abs=1e-6)
    assert found[at(10)] == pytest.approx(LEVEL[10] + (0.02 + noise[10] - bias) / 2, abs=1e-6)
    assert found[at(35)] == pytest.approx(LEVEL[35] + 0.02 + noise[35] - bias, abs=1e-6)
    passes = truth.table.set_index(["row", "column"])["n_sensors"]
    assert [passes[at(k)] for k in (0, 10, 35)] == [1, 2, 1]
    assert truth.resolution == "9km"
    assert truth.report.empty


def test_cells_beyond_those_asked_for_count_in_the_difference(tmp_path: Path) -> None:
    wetter = np.where(np.arange(36) < 2, 0.0, 0.036)
    write_granule(tmp_path, "2020-06-01", half(), half(LEVEL + wetter))
    found = values_of(read_smap(tmp_path, CELLS[:2]))
    assert len(found) == 2
    assert found[at(0)] == pytest.approx(LEVEL[0] - 0.034 / 2, abs=1e-6)


def test_days_stand_for_themselves(tmp_path: Path) -> None:
    write_granule(tmp_path, "2020-06-01", half(), half(LEVEL + 0.05))
    write_granule(tmp_path, "2020-06-03", half(LEVEL + 0.1), half(LEVEL))
    truth = read_smap(tmp_path, CELLS)
    np.testing.assert_allclose(values_of(truth), values_of(truth, "2020-06-03") - 0.1, atol=1e-6)
    assert set(truth.table["date"]) == {pd.Timestamp("2020-06-01"), pd.Timestamp("2020-06-03")}
    assert set(read_smap(tmp_path, CELLS, time="2020-06-03").table["date"].dt.day) == {3}


def test_quality_bits(tmp_path: Path) -> None:
    quality = np.zeros(36, int)
    quality[0], quality[1], quality[2], quality[3] = 0b0001, 0b0111, 0b1000, 0b1001
    quality[4] = 65534  # fill, whose bit 0 is clear
    write_granule(tmp_path, "2020-06-01", half(quality=quality), None)
    found = values_of(read_smap(tmp_path, CELLS))
    assert at(0) not in found.index
    assert at(1) not in found.index
    assert at(2) in found.index
    assert at(3) not in found.index
    assert at(4) not in found.index
    attempted = values_of(read_smap(tmp_path, CELLS, quality="attempted"))
    assert at(0) in attempted.index
    assert at(1) not in attempted.index


def test_few_common_cells_leave_the_ascending_passes_out(tmp_path: Path) -> None:
    write_granule(tmp_path, "2020-06-01", half(part=slice(0, 20)), half(LEVEL + 0.1, slice(10, 36)))
    truth = read_smap(tmp_path, CELLS)
    np.testing.assert_allclose(values_of(truth).sort_values(), LEVEL[:20], atol=1e-6)
    (remark,) = truth.report.to_dict("records")
    assert "share 10 cells" in remark["reason"]
    assert remark["values"] == 26
    assert len(read_smap(tmp_path, CELLS, min_overlap=10).table) == 36


def test_fill_and_nonsense_never_enter(tmp_path: Path) -> None:
    odd = LEVEL.copy()
    odd[0], odd[1], odd[2] = -9999.0, -0.3, np.nan
    path = write_granule(tmp_path, "2020-06-01", half(odd), None)
    truth = read_smap(path, CELLS)
    assert len(truth.table) == 33
    assert truth.table["soil_moisture"].min() >= LEVEL[3] - 1e-6
    (remark,) = truth.report[truth.report["left_out"]].to_dict("records")
    assert "below 0.02 m3 m-3" in remark["reason"]
    assert remark["values"] == 1
    assert remark["source"] == str(path)


def test_values_below_those_of_the_product_are_left_out(tmp_path: Path) -> None:
    dry = LEVEL.copy()
    dry[:4] = 0.02, 0.019, 0.0, -0.001
    path = write_granule(tmp_path, "2020-06-01", half(dry), None)
    truth = read_smap(path, CELLS)
    found = values_of(truth)
    assert found[at(0)] == pytest.approx(0.02)
    assert not {at(1), at(2), at(3)} & set(found.index)
    (remark,) = truth.report[truth.report["left_out"]].to_dict("records")
    assert remark["values"] == 3
    with h5py.File(path, "r+") as file:
        del file["Soil_Moisture_Retrieval_Data_AM/soil_moisture"].attrs["valid_min"]
    assert values_of(read_smap(path, CELLS)).equals(found)
    with h5py.File(path, "r+") as file:
        file["Soil_Moisture_Retrieval_Data_AM/soil_moisture"].attrs["valid_min"] = np.float32(0)
    assert set(values_of(read_smap(path, CELLS)).index) == {at(1), at(2), *found.index}


def test_dry_cells_seen_by_a_wet_ascending_pass_alone_are_not_negative(tmp_path: Path) -> None:
    ascending = LEVEL + 0.05
    ascending[34], ascending[35] = 0.03, 0.06
    write_granule(tmp_path, "2020-06-01", half(part=slice(0, 30)), half(ascending))
    truth = read_smap(tmp_path, CELLS)
    found = values_of(truth)
    assert at(34) not in found.index
    assert found[at(35)] == pytest.approx(0.01, abs=1e-6)
    (remark,) = truth.report[truth.report["left_out"]].to_dict("records")
    assert "negative daily means" in remark["reason"]
    assert "+0.050" in remark["reason"]
    assert remark["values"] == 1


def write_percent(folder: Path) -> str:
    write_granule(folder, "2020-06-02", half(LEVEL * 100), half())
    return "not in m3 m-3"


def write_foreign_units(folder: Path) -> str:
    write_granule(folder, "2020-06-02", half(), half(), units="percent")
    return "has the units 'percent'"


def write_truncated(folder: Path) -> str:
    path = write_granule(folder, "2020-06-02", half(), half())
    path.write_bytes(path.read_bytes()[:3000])
    return "cannot be read as HDF5"


def write_empty(folder: Path) -> str:
    (folder / granule_name("2020-06-02")).touch()
    return "cannot be read as HDF5"


def write_without_descending(folder: Path) -> str:
    write_granule(folder, "2020-06-02", None, half())
    return "without descending"


def write_coarse(folder: Path) -> str:
    path = folder / granule_name("2020-06-02")
    with h5py.File(path, "w") as file:
        for group, suffix in (("AM", ""), ("PM", "_pm")):
            place = file.create_group(f"Soil_Moisture_Retrieval_Data_{group}")
            place[f"soil_moisture{suffix}"] = np.full((406, 964), 0.2, "f4")
            place[f"retrieval_qual_flag{suffix}"] = np.zeros((406, 964), "u2")
    return "36 km product"


def write_without_flags(folder: Path) -> str:
    path = write_granule(folder, "2020-06-02", half(), half())
    with h5py.File(path, "a") as file:
        del file["Soil_Moisture_Retrieval_Data_AM/retrieval_qual_flag"]
    return "has no retrieval_qual_flag"


def write_wrong_name(folder: Path) -> str:
    path = write_granule(folder, "2020-06-02", half(), half())
    path.rename(folder / "SMAP_L3_SM_P_20200602_R18290_001.h5")
    return "is not named"


@pytest.mark.parametrize(
    "write",
    [
        write_percent,
        write_foreign_units,
        write_truncated,
        write_empty,
        write_without_descending,
        write_coarse,
        write_without_flags,
        write_wrong_name,
    ],
)
def test_bad_granules_are_left_out_and_named(tmp_path: Path, write) -> None:
    write_granule(tmp_path, "2020-06-01", half(), half())
    expected = write(tmp_path)
    truth = read_smap(tmp_path, CELLS)
    assert set(truth.table["date"]) == {pd.Timestamp("2020-06-01")}
    assert truth.report["left_out"].any()
    assert truth.report["reason"].str.contains(expected, regex=False).any()


def test_only_bad_granules_are_an_error(tmp_path: Path) -> None:
    write_truncated(tmp_path)
    with pytest.raises(ValueError, match=r"1 granule.*cannot be read as HDF5"):
        read_smap(tmp_path, CELLS)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_smap(tmp_path / "nowhere", CELLS)
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no file \*.h5"):
        read_smap(tmp_path / "none", CELLS)


def test_the_newest_version_of_a_day_counts(tmp_path: Path) -> None:
    write_granule(tmp_path, "2020-06-01", half(LEVEL + 0.1), None)
    write_granule(tmp_path, "2020-06-01", half(LEVEL + 0.2), None, counter=2)
    write_granule(tmp_path / "older", "2020-06-01", half(LEVEL + 0.3), None, release="R17000")
    truth = read_smap(tmp_path, CELLS)
    np.testing.assert_allclose(values_of(truth).min(), LEVEL.min() + 0.2, atol=1e-6)
    assert truth.report["reason"].str.contains("newer version").sum() == 2


def test_cells_bring_their_names(tmp_path: Path) -> None:
    write_granule(tmp_path, "2020-06-01", half(), None)
    places = pd.DataFrame(
        {"row": ROWS[:2], "column": COLUMNS[:2], "network": ["SCAN", "USCRN"], "climate": "Cfa"}
    )
    table = read_smap(tmp_path, places).table
    assert table["network"].tolist() == ["SCAN", "USCRN"]
    assert set(table["climate"]) == {"Cfa"}
    assert set(read_smap(tmp_path, CELLS).table["network"]) == {"SMAP"}
    for wrong in (np.array([[1624, 0]]), pd.DataFrame({"row": [3000], "column": [7000]})):
        with pytest.raises(ValueError, match="no cell of the 9 km grid"):
            read_smap(tmp_path, wrong)


def test_lines_between_days() -> None:
    days = np.array(["2020-06-01", "2020-06-05", "2020-06-20"], "datetime64[D]")
    asked = np.array(
        ["2020-05-31", "2020-06-01", "2020-06-02", "2020-06-05", "2020-06-10", "2020-06-21"],
        "datetime64[ns]",
    )
    found = interpolate_days(days, [0.1, 0.3, 0.2], asked, 8)
    np.testing.assert_allclose(found, [np.nan, 0.1, 0.15, 0.3, np.nan, np.nan])
    none = interpolate_days(days, [0.1, 0.3, 0.2], asked, 0)
    np.testing.assert_allclose(none, [np.nan, 0.1, np.nan, 0.3, np.nan, np.nan])
    assert np.isnan(interpolate_days(days[:0], [], asked, 8)).all()


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=12, unique=True),
    st.integers(0, 20),
    st.floats(-0.01, 0.01),
)
def test_lines_are_straight(days: list[int], gap: int, slope: float) -> None:
    known = np.array(sorted(days), "datetime64[D]")
    asked = np.arange(-5, 66).astype("datetime64[D]")
    found = interpolate_days(known, 0.3 + slope * np.array(sorted(days)), asked, gap)
    numbers = np.arange(-5, 66)
    for number, value in zip(numbers, found, strict=True):
        before = [d for d in days if d <= number]
        after = [d for d in days if d >= number]
        bridged = before and after and min(after) - max(before) <= gap
        assert np.isfinite(value) == bool(bridged or number in days)
        if np.isfinite(value):
            assert value == pytest.approx(0.3 + slope * number, abs=1e-9)


def test_fetching_needs_a_package_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "earthaccess", None)
    with pytest.raises(ImportError, match=r"earthaccess"):
        download_smap("2020-06", tmp_path)
