from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from xsoilsm import grid
from xsoilsm.simulate.stations import Sensor, write_ismn
from xsoilsm.truth import REPORT_COLUMNS, STATION_COLUMNS, Truth, read_ismn

HOURS = np.arange("2020-04-01", "2020-04-04", dtype="datetime64[h]")
RAMP = np.round(0.10 + 0.001 * np.arange(HOURS.size), 3)
FIELD = Sensor("SCAN", "Field_1", 41.3, -5.4, HOURS, RAMP)


def reasons(truth: Truth, text: str) -> pd.DataFrame:
    return truth.report[truth.report["reason"].str.contains(text, regex=False)]


def content(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize("layout", ["header", "ceop"])
@pytest.mark.parametrize("name", ["archive", "archive.zip"])
def test_both_formats_zipped_or_not(tmp_path: Path, layout: str, name: str) -> None:
    second = replace(FIELD, values=RAMP + 0.1, depth=(0.05, 0.05), instrument="Probe_B_1")
    deep = replace(FIELD, values=RAMP + 0.3, depth=(0.2, 0.2))
    other = replace(FIELD, station="Hill", lat=41.4, climate="BSk", land_cover=10)
    soil_temperature = replace(FIELD, variable="ts", values=20 + RAMP)
    path = write_ismn(
        tmp_path / name, [FIELD, second, deep, other, soil_temperature], layout=layout
    )
    before = content(tmp_path)
    truth = read_ismn(path)
    assert content(tmp_path) == before
    assert tuple(truth.table.columns) == STATION_COLUMNS
    assert tuple(truth.report.columns) == REPORT_COLUMNS
    assert truth.report.empty
    field = truth.table[truth.table["station"] == "Field_1"]
    means = RAMP.reshape(3, 24).mean(axis=1)
    np.testing.assert_allclose(field["soil_moisture"], means + 0.05, atol=1e-6)
    assert field["date"].tolist() == list(pd.date_range("2020-04-01", periods=3))
    assert field["n_sensors"].tolist() == [2, 2, 2]
    assert field["n_values"].tolist() == [48, 48, 48]
    assert set(field["depth_to"]) == {0.05}
    assert set(field["land_cover"]) == {"Grassland"}
    assert set(field["climate"]) == {"Cfa"}
    assert set(field["network"]) == {"SCAN"}
    hill = truth.table[truth.table["station"] == "Hill"]
    assert set(hill["climate"]) == {"BSk"}
    assert set(hill["land_cover"]) == {"Cropland, rainfed"}
    np.testing.assert_allclose(hill["soil_moisture"], means, atol=1e-6)
    np.testing.assert_allclose(hill[["lat", "lon"]].iloc[0], (41.4, -5.4))


@pytest.mark.parametrize("layout", ["header", "ceop"])
def test_only_flag_g_counts(tmp_path: Path, layout: str) -> None:
    flags = np.array(["G"] * HOURS.size, dtype=object)
    flags[:12] = "D01,D03"
    flags[24:36] = "D02"
    flags[36:40] = "C01,D01,D02,D03"
    flags[48:] = "M"
    values = RAMP.copy()
    values[:12] = 0.9
    values[24:40] = 0.6
    provider = "Frozen soil,OK,OK,NA" if layout == "header" else "OK,NA"
    sensor = replace(FIELD, values=values, flags=flags.tolist(), provider_flags=provider)
    truth = read_ismn(write_ismn(tmp_path / "a", [sensor], layout=layout))
    assert truth.table["n_values"].tolist() == [12, 8]
    np.testing.assert_allclose(
        truth.table["soil_moisture"], [RAMP[12:24].mean(), RAMP[40:48].mean()], atol=1e-6
    )
    (flagged,) = reasons(truth, "other flags than G").to_dict("records")
    assert flagged["values"] == 12 + 12 + 4 + 24
    assert "D01,D03 12" in flagged["reason"]
    at_least_ten = read_ismn(tmp_path / "a", min_values=10)
    assert at_least_ten.table["n_values"].tolist() == [12]


def test_days_are_those_of_utc_and_time_selects(tmp_path: Path) -> None:
    path = write_ismn(tmp_path / "a", [FIELD])
    truth = read_ismn(path, time="2020-04-02")
    assert truth.table["date"].tolist() == [pd.Timestamp("2020-04-02")]
    np.testing.assert_allclose(truth.table["soil_moisture"], RAMP[24:48].mean(), atol=1e-6)
    with pytest.raises(ValueError, match="no value with flag G"):
        read_ismn(path, time="2021")


def test_networks_are_chosen_by_name(tmp_path: Path) -> None:
    path = write_ismn(tmp_path / "a.zip", [FIELD, replace(FIELD, network="FR_Aqui")])
    assert set(read_ismn(path, networks=["FR_Aqui"]).table["network"]) == {"FR_Aqui"}
    with pytest.raises(ValueError, match=r"no network OZNET; it has FR_Aqui, SCAN"):
        read_ismn(path, networks="OZNET")


def test_percent_is_refused_and_fill_values_are_reported(tmp_path: Path) -> None:
    percent = replace(FIELD, station="Percent", values=np.round(100 * RAMP, 1))
    filled = RAMP.copy()
    filled[[3, 30]] = -9999.0
    fill = replace(FIELD, station="Fill", values=filled)
    truth = read_ismn(write_ismn(tmp_path / "a", [FIELD, percent, fill]))
    assert set(truth.table["station"]) == {"Field_1", "Fill"}
    (refused,) = reasons(truth, "not in m3 m-3").to_dict("records")
    assert refused["station"] == "Percent"
    assert refused["left_out"]
    (dropped,) = reasons(truth, "fill value (-9999)").to_dict("records")
    assert (dropped["station"], dropped["values"]) == ("Fill", 2)
    kept = truth.table[truth.table["station"] == "Fill"]
    assert kept["n_values"].tolist() == [23, 23, 24]
    assert kept["soil_moisture"].min() > 0.1


def test_a_sensor_in_percent_does_not_touch_its_neighbour(tmp_path: Path) -> None:
    percent = replace(FIELD, instrument="Probe-B", values=np.round(100 * RAMP, 1))
    truth = read_ismn(write_ismn(tmp_path / "a", [FIELD, percent]))
    assert set(truth.table["n_sensors"]) == {1}
    assert truth.table["soil_moisture"].max() < 0.2


def damage_empty(file: Path) -> None:
    file.write_text("")


def damage_first_line_only(file: Path) -> None:
    file.write_text(file.read_text().splitlines()[0] + "\n")


def damage_bytes(file: Path) -> None:
    file.write_bytes(bytes(range(256)) * 40)


def damage_header(file: Path) -> None:
    file.write_text(file.read_text().replace("41.30000", "north", 1))


@pytest.mark.parametrize(
    "damage", [damage_empty, damage_first_line_only, damage_bytes, damage_header]
)
@pytest.mark.parametrize("layout", ["header", "ceop"])
def test_damaged_files_are_left_out_and_named(tmp_path: Path, layout: str, damage) -> None:
    path = write_ismn(tmp_path / "a", [FIELD, replace(FIELD, station="Hill")], layout=layout)
    (file,) = path.glob("SCAN/Hill/*.stm")
    damage(file)
    truth = read_ismn(path)
    assert set(truth.table["station"]) == {"Field_1"}
    (remark,) = truth.report.to_dict("records")
    assert remark["station"] == "Hill"
    assert file.name in remark["source"]
    assert "cannot be read" in remark["reason"]
    assert "\n" not in remark["reason"]


def test_the_last_line_may_be_cut_off(tmp_path: Path) -> None:
    path = write_ismn(tmp_path / "a", [FIELD])
    (file,) = path.glob("SCAN/*/*.stm")
    file.write_text(file.read_text()[: -len("171 G M\n")])
    truth = read_ismn(path)
    assert truth.table["n_values"].tolist() == [24, 24, 23]
    np.testing.assert_allclose(truth.table["soil_moisture"].iloc[-1], RAMP[48:71].mean(), atol=1e-6)


def test_an_archive_cut_off_is_an_error(tmp_path: Path) -> None:
    path = write_ismn(tmp_path / "a.zip", [FIELD])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="not a whole zip archive"):
        read_ismn(path)


@pytest.mark.parametrize("zipped", [False, True])
def test_archives_inside_other_folders(tmp_path: Path, zipped: bool) -> None:
    inner = write_ismn(tmp_path / "all" / "Data_separate_files" / "more", [FIELD])
    path = tmp_path / "all"
    if zipped:
        path = tmp_path / "all.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in inner.rglob("*.*"):
                archive.write(file, file.relative_to(tmp_path / "all"))
                archive.writestr(f"__MACOSX/SCAN/Field_1/._{file.name}", b"\0\1")
    truth = read_ismn(path)
    assert len(truth.table) == 3
    assert set(truth.table["climate"]) == {"Cfa"}
    assert truth.report.empty


def test_a_damaged_member_is_left_out(tmp_path: Path) -> None:
    path = write_ismn(tmp_path / "a.zip", [FIELD, replace(FIELD, station="Hill")])
    with zipfile.ZipFile(path) as archive:
        (info,) = [i for i in archive.infolist() if "Hill" in i.filename and "_sm_" in i.filename]
    raw = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len(info.filename) + 40
    raw[start : start + 20] = bytes(20)
    path.write_bytes(bytes(raw))
    truth = read_ismn(path)
    assert set(truth.table["station"]) == {"Field_1"}
    assert reasons(truth, "cannot be read")["station"].tolist() == ["Hill"]


def test_a_blank_in_a_header_is_not_taken_for_a_position(tmp_path: Path) -> None:
    path = write_ismn(tmp_path / "a", [FIELD, replace(FIELD, station="Mill 2")])
    (file,) = path.glob("SCAN/Mill 2/*.stm")
    file.write_text(file.read_text().replace("Mill-2", "Mill 2", 1))
    truth = read_ismn(path)
    assert set(truth.table["station"]) == {"Field_1"}
    assert truth.report[["station", "left_out"]].to_numpy().tolist() == [["Mill 2", True]]


def test_depths_that_contradict_each_other_are_left_out(tmp_path: Path) -> None:
    centimetres = replace(FIELD, station="Cm", depth=(0.0, 5.0))
    path = write_ismn(tmp_path / "a", [FIELD, centimetres])
    (file,) = path.glob("SCAN/Cm/*.stm")
    file.rename(file.with_name(file.name.replace("_5.000000_", "_0.050000_")))
    truth = read_ismn(path)
    assert set(truth.table["station"]) == {"Field_1"}
    assert reasons(truth, "contradict")["station"].tolist() == ["Cm"]
    only_deep = write_ismn(tmp_path / "b", [FIELD, replace(FIELD, station="D", depth=(0.2, 0.2))])
    assert reasons(read_ismn(only_deep), "no sensor at 0.05 m")["station"].tolist() == ["D"]


def test_overlapping_archives(tmp_path: Path) -> None:
    """Equal values count once; of contradicting ones none counts."""
    first = write_ismn(tmp_path / "a.zip", [replace(FIELD, time=HOURS[:48], values=RAMP[:48])])
    again = RAMP[24:].copy()
    again[:4] += 0.2
    second = write_ismn(tmp_path / "b", [replace(FIELD, time=HOURS[24:], values=again)])
    truth = read_ismn([first, second])
    assert truth.table["n_values"].tolist() == [24, 20, 24]
    np.testing.assert_allclose(
        truth.table["soil_moisture"],
        [RAMP[:24].mean(), RAMP[28:48].mean(), RAMP[48:].mean()],
        atol=1e-6,
    )
    assert reasons(truth, "contradicting")["values"].tolist() == [8]
    assert reasons(truth, "same value")["values"].tolist() == [20]


def test_positions_in_doubt(tmp_path: Path) -> None:
    sensors = [
        FIELD,
        replace(FIELD, station="Swapped", lat=-105.4, lon=41.3),
        replace(FIELD, station="Null", lat=0.0, lon=0.0),
        replace(FIELD, station="Apart"),
        replace(FIELD, station="Apart", lat=41.5, instrument="Probe-B"),
    ]
    truth = read_ismn(write_ismn(tmp_path / "a", sensors))
    assert set(truth.table["station"]) == {"Field_1"}
    assert set(truth.report["station"]) == {"Swapped", "Null", "Apart"}


def test_without_static_variables(tmp_path: Path) -> None:
    bare = replace(FIELD, station="Bare", land_cover=0, climate="")
    path = write_ismn(tmp_path / "a", [FIELD, bare])
    (tmp_path / "a" / "SCAN" / "Field_1").joinpath(
        "SCAN_SCAN_Field-1_static_variables.csv"
    ).unlink()
    truth = read_ismn(path)
    assert set(truth.table["station"]) == {"Field_1", "Bare"}
    assert set(truth.table["land_cover"]) == {""}
    assert not truth.report["left_out"].any()
    assert set(truth.report["station"]) == {"Field_1", "Bare"}


def test_what_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_ismn(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no file of soil moisture"):
        read_ismn(tmp_path / "empty")
    deep = write_ismn(tmp_path / "deep", [replace(FIELD, depth=(0.5, 0.5))])
    with pytest.raises(ValueError, match=r"no sensor at 0\.05 m"):
        read_ismn(deep)


def test_stations_of_one_cell_count_alike(tmp_path: Path) -> None:
    near = replace(FIELD, station="Near", lat=41.3005, values=RAMP + 0.1, network="OZNET")
    twin = replace(near, instrument="Probe-B")
    far = replace(FIELD, station="Far", lat=41.5)
    truth = read_ismn(write_ismn(tmp_path / "a", [FIELD, near, twin, far])).on_cells("1km")
    assert truth.resolution == "1km"
    assert len(truth.sites) == 2
    both = truth.table[truth.table["n_stations"] == 2]
    means = RAMP.reshape(3, 24).mean(axis=1)
    np.testing.assert_allclose(both["soil_moisture"], means + 0.05, atol=1e-6)
    assert set(both["n_sensors"]) == {3}
    assert set(both["network"]) == {"OZNET+SCAN"}
    assert set(both["station"]) == {"Field_1+Near"}
    cells = grid.get_grid("1km")
    x, y = grid.lonlat_to_xy(-5.4, 41.3)
    assert (both["row"].iloc[0], both["column"].iloc[0]) == tuple(map(int, cells.index(x, y)))
    x, y = grid.lonlat_to_xy(both["lon"], both["lat"])
    np.testing.assert_array_equal(cells.index(x, y)[0], both["row"])
    assert truth.on_cells("1km") is truth
    with pytest.raises(ValueError, match="1km grid, not 9km"):
        truth.on_cells("9km")


def test_a_pole_is_on_no_grid(tmp_path: Path) -> None:
    path = write_ismn(tmp_path / "a", [FIELD, replace(FIELD, station="Pole", lat=88.0)])
    truth = read_ismn(path).on_cells("9km")
    assert set(truth.table["station"]) == {"Field_1"}
    assert reasons(truth, "outside of EASE-Grid")["station"].tolist() == ["Pole"]


def test_truth_of_one_day_cannot_be_joined_twice(tmp_path: Path) -> None:
    truth = read_ismn(write_ismn(tmp_path / "a", [FIELD]))
    other = read_ismn(write_ismn(tmp_path / "b", [replace(FIELD, station="Hill")]))
    assert len(Truth.joined([truth, other]).table) == 6
    with pytest.raises(ValueError, match="held twice"):
        Truth.joined([truth, truth])


def test_read_only_folders(tmp_path: Path) -> None:
    path = write_ismn(tmp_path / "a", [FIELD])
    folders = [path, *(p for p in path.rglob("*") if p.is_dir())]
    for folder in folders:
        os.chmod(folder, 0o555)
    try:
        assert len(read_ismn(path).table) == 3
    finally:
        for folder in folders:
            os.chmod(folder, 0o755)
