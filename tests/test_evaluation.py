"""Evaluations: from samples, maps and cubes to tables, figures, pages and QA4SM's files."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from field_samples import field_samples
from hypothesis import given, settings
from hypothesis import strategies as st
from pytesmo.validation_framework.metric_calculators import PairwiseIntercomparisonMetrics
from synthetic import map_cube

from xsoilsm.evaluation import (
    compare,
    evaluate,
    evaluate_dataset,
    evaluate_file,
    figures,
    qa4sm_dataset,
    require_independent,
    tabulate,
    write_qa4sm,
    write_report,
)
from xsoilsm.metrics import MEASURES, agreement, valid


def _samples(seed=0, **columns):
    """Make retrievals with errors of sites and of samples, some outside the valid range."""
    samples = field_samples(seed=seed)
    rng = np.random.default_rng(seed)
    site = pd.factorize(samples["cell"])[0]
    y = samples["soil_moisture"].to_numpy()
    x = 0.7 * y + 0.07 + rng.normal(0, 0.03, site.max() + 1)[site] + rng.normal(0, 0.04, y.size)
    x[::50] = np.nan
    x[7::60] = -0.01
    found = samples.assign(predicted=x, **columns)
    found.attrs = {}
    return found


SAMPLES = _samples()


@pytest.fixture(scope="module")
def found():
    return evaluate(SAMPLES, name="retrieval", independence="sites", draws=200)


# --------------------------------------------------------------------------- tables


def test_every_row_is_the_agreement_of_its_samples(found):
    samples = SAMPLES.assign(year=SAMPLES["time"].dt.year)
    assert set(found.groups) == {"cell", "year", "network", "land_cover", "climate"}
    for group, table in {"all": found.overall, **found.groups}.items():
        parts = [("all", samples)] if group == "all" else samples.groupby(group)
        rows = 0
        for label, part in parts:
            usable = np.where(valid(part["predicted"]), part["predicted"], np.nan)
            expected = agreement(usable, part["soil_moisture"])
            row = table.loc[label]
            assert (row["n"], row["samples"]) == (expected.n, len(part))
            for name in ("bias", "r", "rmse", "ubrmse"):
                assert row[name] == pytest.approx(getattr(expected, name))
            assert row["inversion_rate"] == pytest.approx(expected.n / len(part))
            assert row["rmse_low"] < row["rmse"] < row["rmse_high"]
            rows += 1
        assert rows == len(table)


def test_intervals_say_what_was_drawn(found):
    assert found.overall["interval"].tolist() == ["sites"]
    assert set(found.groups["network"]["interval"]) == {"sites"}
    assert set(found.groups["cell"]["interval"]) == {"days"}
    few = evaluate(SAMPLES[SAMPLES["cell"].isin(SAMPLES["cell"].unique()[:3])])
    assert few.overall["interval"].tolist() == ["days"]
    once = evaluate(SAMPLES.assign(time="2020-01-01", cell="one"))
    assert once.overall["interval"].tolist() == ["none"]
    assert np.isnan(once.overall["r_low"].iloc[0])


def test_cells_need_more_than_15_valid_pairs():
    cells = SAMPLES["cell"].unique()
    part = pd.concat(
        [
            SAMPLES[SAMPLES["cell"] == cells[0]].iloc[1:17].assign(predicted=0.2),
            SAMPLES[SAMPLES["cell"] == cells[1]].iloc[1:16].assign(predicted=0.2),
        ]
    )
    assert evaluate(part).groups["cell"].index.tolist() == [cells[0]]
    nothing = evaluate(part.iloc[16:])
    assert nothing.groups["cell"].empty
    assert nothing.groups["year"]["n"].sum() == 15


@settings(max_examples=10)
@given(st.integers(0, 100))
def test_the_order_of_samples_plays_no_part(seed):
    some = SAMPLES.iloc[:120]
    shuffled = some.sample(frac=1, random_state=seed)
    a, b = (evaluate(s, draws=50) for s in (some, shuffled))
    pd.testing.assert_frame_equal(a.overall, b.overall, check_exact=True)
    for group in a.groups:
        pd.testing.assert_frame_equal(a.groups[group], b.groups[group], check_exact=True)


def test_a_dataset_gives_what_a_table_gives(found):
    data = xr.Dataset({n: ("sample", SAMPLES[n].to_numpy()) for n in SAMPLES})
    data["series"] = ("sample", "step"), np.zeros((len(SAMPLES), 3))
    same = evaluate(data, name="retrieval", independence="sites", draws=200)
    pd.testing.assert_frame_equal(same.overall, found.overall)


def test_what_is_not_known_is_said_and_left_away():
    bare = SAMPLES[["soil_moisture", "predicted", "cell"]].copy()
    bare.loc[:9, "soil_moisture"] = np.nan
    result = evaluate(bare)
    assert set(result.groups) == {"cell"}
    text = str(result)
    for words in (
        "10 samples without truth",
        "do not say time, network, land_cover, climate",
        "not stated",
        "no validation",
    ):
        assert words in text
    assert "no validation" not in str(evaluate(SAMPLES, independence="sites"))


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        (SAMPLES.drop(columns="predicted"), "no column 'predicted'"),
        (SAMPLES.drop(columns="soil_moisture"), "Pass its name as truth"),
        (SAMPLES.assign(soil_moisture=20.0), "divide percent by 100"),
        (SAMPLES.assign(predicted=20.0), "'predicted' lie above 1"),
        (SAMPLES.assign(soil_moisture=np.nan), "no sample has a truth"),
        (SAMPLES[["soil_moisture", "predicted"]], "tells the sites"),
        (SAMPLES.assign(cell=None), "empty for some samples"),
        (xr.Dataset({"soil_moisture": (("y", "x"), np.zeros((2, 2)))}), "evaluate_dataset"),
    ],
)
def test_samples_that_cannot_be_measured_say_why(samples, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        evaluate(samples)


def test_unknown_independence_is_refused():
    with pytest.raises(ValueError, match="one of sites, years, none"):
        evaluate(SAMPLES, independence="validated")


@pytest.mark.parametrize("columns", [["row", "column"], ["network", "station"], ["lat", "lon"]])
def test_sites_are_told_apart_by_what_there_is(columns):
    table = SAMPLES.assign(row=pd.factorize(SAMPLES["cell"])[0], column=5)
    kept = tabulate(table[["soil_moisture", "predicted", *columns]])
    assert kept["cell"].nunique() == 34


def test_compare_finds_what_was_added(found):
    table = found.samples
    x = table["predicted"].to_numpy()
    noise = np.random.default_rng(1).normal(0, 0.05, x.size)
    gain = compare(table, x, x + noise, draws=200)
    assert gain.loc["rmse", "high"] < 0 < gain.loc["r", "low"]
    assert gain.loc["r", "cells_higher"] > 0.9
    assert gain.loc["bias", "low"] < 0.005
    none = compare(table, x, x, draws=50)
    assert (none["difference"] == 0).all()


# --------------------------------------------------------------------------- maps and cubes


def _result(cube):
    rng = np.random.default_rng(2)
    shape = cube["sigma0_vv"].shape
    data = {
        "soil_moisture": (("time", "y", "x"), rng.uniform(0.1, 0.4, shape).astype(np.float32)),
        "soil_moisture_std": (("time", "y", "x"), np.full(shape, 0.02, np.float32)),
    }
    return xr.Dataset(data, coords={n: cube[n] for n in ("time", "y", "x", "spatial_ref")})


def test_a_map_is_compared_with_stations_of_the_same_cell_and_day():
    from xsoilsm import grid

    result = _result(map_cube())
    lon, lat = grid.xy_to_lonlat(result.x.to_numpy()[[0, 3]], result.y.to_numpy()[[1, 4]])
    stations = pd.DataFrame(
        [
            {
                "network": "N",
                "station": f"s{i}",
                "lat": lat[i],
                "lon": lon[i],
                "time": day,
                "soil_moisture": 0.1 + 0.1 * i,
            }
            for i in (0, 1)
            for day in ("2020-04-02", "2020-04-03", "2020-04-09")
        ]
    )
    found = evaluate_dataset(result.chunk({"time": 1}), stations, name="map")
    assert found.overall["n"].tolist() == [4]
    pairs = found.samples.set_index(["station", "time"])["predicted"]
    for i, (row, column) in enumerate([(1, 0), (4, 3)]):
        for t in (0, 1):
            expected = result["soil_moisture"].values[t, row, column]
            assert pairs[f"s{i}", result.time.values[t]] == pytest.approx(expected)
    assert found.samples["spread"].tolist() == pytest.approx([0.02] * 4)
    late = stations.assign(time="2021-01-01")
    with pytest.raises(ValueError, match="2 lie in its 6 x 5 cells"):
        evaluate_dataset(result, late)
    with pytest.raises(ValueError, match="needs stations"):
        evaluate_dataset(result)


def test_samples_of_a_retrieval_hold_their_truth():
    data = xr.Dataset(
        {
            "soil_moisture": ("sample", SAMPLES["predicted"].to_numpy()),
            "truth": ("sample", SAMPLES["soil_moisture"].to_numpy()),
            "cell": ("sample", SAMPLES["cell"].to_numpy()),
        },
        coords={n: ("sample", SAMPLES[n].to_numpy()) for n in ("lat", "lon", "time")},
        attrs={"simulated": True, "ensemble": "some"},
    )
    found = evaluate_dataset(data)
    assert found.name == "some"
    assert found.simulated
    assert found.overall["n"].iloc[0] == valid(SAMPLES["predicted"]).sum()


@pytest.mark.parametrize(
    ("attrs", "columns", "expected"),
    [
        ({}, {}, False),
        ({"simulated": True}, {}, True),
        ({"simulated": "false"}, {}, False),
        ({"source": "catalog 'demo' (Virtual landscape (simulated))"}, {}, True),
        ({"inputs": "catalog 'planetary-computer'"}, {}, False),
        ({}, {"simulated": np.arange(len(SAMPLES)) == 3}, True),
        ({}, {"simulated": False}, False),
    ],
)
def test_samples_say_whether_they_are_simulated(attrs, columns, expected):
    table = SAMPLES.assign(**columns)
    table.attrs = attrs
    assert evaluate(table, draws=5).simulated is expected
    data = xr.Dataset({n: ("sample", table[n].to_numpy()) for n in table}, attrs=attrs)
    assert evaluate(data, draws=5).simulated is expected
    assert evaluate(data, draws=5, simulated=True).simulated


@pytest.mark.parametrize("name", ["samples.parquet", "samples.csv.gz", "samples.nc"])
def test_a_file_becomes_measures_report_and_qa4sm_file(found, tmp_path, name):
    path = tmp_path / name
    if name.endswith("parquet"):
        SAMPLES.to_parquet(path)
    elif name.endswith("nc"):
        xr.Dataset({n: ("sample", SAMPLES[n].to_numpy()) for n in SAMPLES}).to_netcdf(path)
    else:
        SAMPLES.to_csv(path)
    report = tmp_path / "report.html" if name.endswith("parquet") else None
    same = evaluate_file(path, report=report, qa4sm=tmp_path / "q.nc", independence="sites")
    assert same.name == name.partition(".")[0] or name.endswith("gz")
    assert same.overall["r"].iloc[0] == pytest.approx(found.overall["r"].iloc[0])
    assert (tmp_path / "q.nc").is_file()
    assert report is None or report.is_file()
    with pytest.raises(ValueError, match="no validation"):
        evaluate_file(path, report=tmp_path / "other.html", independence="none")
    assert not (tmp_path / "other.html").exists()


def test_files_that_are_no_samples_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        evaluate_file(tmp_path / "absent.csv")
    for name, says in (("x.txt", "none of"), ("x.parquet", "cannot be read"), ("x.nc", "be read")):
        (tmp_path / name).write_bytes(b"something else")
        with pytest.raises(ValueError, match=says):
            evaluate_file(tmp_path / name)


# --------------------------------------------------------------------------- figures, pages


def _figures(found):
    cells = found.groups["cell"].assign(r_gain=lambda t: t["r"] - 0.5)
    boxes = {"1": {"transfer": cells, "coarse": cells}}
    runs = pd.DataFrame(
        {
            "size": [1, 3, 1, 3],
            "arm": ["transfer"] * 2 + ["coarse"] * 2,
            "seed": 0,
            "r": 0.7,
            "rmse": 0.07,
        }
    )
    simulated = found.simulated
    return {
        "density_scatter": figures.density_scatter([found, replace(found, name="b")]),
        "group_scores": figures.group_scores([found], "network"),
        "yearly_scores": figures.yearly_scores([found]),
        "cell_boxes": figures.cell_boxes(boxes, simulated=simulated),
        "gain_map": figures.gain_map(cells, simulated=simulated),
        "scores_by_size": figures.scores_by_size(runs, label="size", simulated=simulated),
    }


def test_figures_of_simulated_data_say_so_and_others_do_not(found):
    drawn = _figures(replace(found, simulated=True))
    assert set(drawn) == set(figures.__all__) - {"ARM_COLOURS", "image"}
    for name, figure in drawn.items():
        assert "SIMULATED" in figure.get_suptitle(), name
    for name, figure in _figures(found).items():
        assert figure.get_suptitle() == "", name


def test_images_are_whole_and_the_same_every_time(found):
    first, second = (figures.yearly_scores([found]) for _ in range(2))
    svg = figures.image(first, "svg")
    assert svg == figures.image(second, "svg")
    assert svg.rstrip().endswith(b"</svg>")
    assert figures.image(first).startswith(b"\x89PNG")


def test_a_map_of_nothing_is_refused(found):
    with pytest.raises(ValueError, match="nothing to map"):
        figures.gain_map(found.groups["cell"].assign(r_gain=np.nan))
    assert figures.group_scores([replace(found, groups={})], "network") is None


def test_a_report_holds_the_measures(found, tmp_path):
    worse = evaluate(SAMPLES.assign(predicted=0.25), name="a <constant>", independence="none")
    path = write_report([found, worse], tmp_path / "deep" / "report.html")
    text = path.read_text(encoding="utf-8")
    row = found.overall.iloc[0]
    assert f"{row['r']:.3f} [{row['r_low']:.3f}, {row['r_high']:.3f}]" in text
    assert "a &lt;constant&gt;" in text
    assert "random split: sites and days that were trained on" in text
    assert "REMEDHUS" in text
    assert "SIMULATED DATA" not in text
    assert "Simulated data" not in text
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    with pytest.raises(FileExistsError):
        write_report([found, worse], path)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_random_split_alone_is_refused(found, tmp_path):
    random = replace(found, independence="none", name="random")
    for others in (
        [],
        [replace(found, independence="years")],
        [replace(found, independence="not stated")],
    ):
        with pytest.raises(ValueError, match="random: a random split is no validation"):
            write_report([random, *others], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
    require_independent([random, found])
    with pytest.raises(ValueError, match="a name of its own"):
        write_report([found, found], tmp_path / "report.html")


def test_a_report_that_cannot_be_written_leaves_nothing(found, tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_qa4sm(found, tmp_path / "x.nc")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- QA4SM


def test_the_file_for_qa4sm_holds_what_pytesmo_computes(found, tmp_path):
    path = write_qa4sm(found, tmp_path / "qa4sm.nc", reference="ISMN", version_name="v1")
    with xr.open_dataset(path) as data:
        assert dict(data.sizes) == {"loc": 34, "tsw": 1}
        assert data.tsw.values.tolist() == ["bulk"]
        assert set(data["R_between_0-ISMN_and_1-xsoilsm"].dims) == {"loc", "tsw"}
        assert data.attrs["val_ref"] == "val_dc_dataset0"
        assert data.attrs["val_dc_dataset0"] == "ISMN"
        assert data.attrs["val_dc_dataset1"] == "xsoilsm"
        assert set(data.network.values) == {"REMEDHUS", "SCAN", "SNOTEL"}
        calculator = PairwiseIntercomparisonMetrics(analytical_cis=True)
        groups = found.samples.groupby("cell", sort=True)
        for place, (_, group) in zip(range(34), groups, strict=True):
            pairs = group[["truth", "predicted"]].copy()  # the reference comes first
            pairs["predicted"] = pairs["predicted"].where(valid(pairs["predicted"]))
            expected = calculator.calc_metrics(pairs, (place, 0.0, 0.0))
            for metric in ("R", "p_R", "RMSD", "BIAS", "urmsd", "mse", "RSS", "status"):
                name = f"{metric}_between_0-ISMN_and_1-xsoilsm"
                here = float(data[name].values[place, 0])
                assert here == pytest.approx(float(expected[metric][0]), rel=1e-4, abs=1e-7), name
            for metric in ("R", "BIAS", "urmsd"):
                for bound in ("lower", "upper"):
                    name = f"{metric}_ci_{bound}_between_0-ISMN_and_1-xsoilsm"
                    here = float(data[name].values[place, 0])
                    there = float(expected[f"{metric}_ci_{bound}"][0])
                    assert here == pytest.approx(there, rel=1e-4, abs=1e-7), name
            assert data["n_obs"].values[place, 0] == expected["n_obs"][0]
    with pytest.raises(FileExistsError):
        write_qa4sm(found, path)


def test_sites_with_few_pairs_have_a_status_instead_of_measures():
    few = qa4sm_dataset(evaluate(SAMPLES.groupby("cell").head(9), simulated=True))
    pair = "_between_0-ISMN_and_1-xsoilsm"
    assert (few[f"status{pair}"] == 1).all()
    assert np.isnan(few[f"R{pair}"]).all()
    assert few.attrs["title"].startswith("SIMULATED")


def test_names_that_would_break_those_of_variables_are_refused(found):
    for name in ("my-product", "a_and_b", "two words", ""):
        with pytest.raises(ValueError, match="letters and digits"):
            qa4sm_dataset(found, name=name)
    with pytest.raises(ValueError, match="columns 'lat' and 'lon'"):
        qa4sm_dataset(evaluate(SAMPLES.drop(columns=["lat", "lon"])))


def test_measures_are_in_every_table(found):
    for table in (found.overall, *found.groups.values()):
        assert {f"{m}{end}" for m in MEASURES for end in ("", "_low", "_high")} <= set(table)
