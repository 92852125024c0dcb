"""Studies: done once, whatever interrupts them, and reported honestly."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from field_samples import field_samples, train_ridge

from xsoilsm.scenarios import Run, Study, plan, run_scenario, write_study_report
from xsoilsm.scenarios.summary import summarise

SAMPLES = field_samples()
SMALL = {"seeds": 2, "networks": ["SCAN", "SNOTEL"]}


def _runs(*scenarios, **options):
    sizes = {"dependent": [2, 5], "on-site": [1, 3], "off-site": [1, 5]}
    return [r for s in scenarios for r in plan(s, sizes=sizes[s], **(SMALL | options))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    study = Study.create(tmp_path_factory.mktemp("study"), SAMPLES, trainer="ridge 1")
    runs = _runs("dependent", "on-site", "off-site")
    done = study.run(runs, SAMPLES, train_ridge)
    assert done == len(runs) == 2 * (6 + 6 + 12)
    return study


def _contents(study):
    return {
        r.run: (r.rows.tolist(), r.predicted.tolist(), r.spread.tolist(), r.record["split"])
        for r in study.results()
    }


def test_a_study_done_in_pieces_is_the_same_as_one_done_at_once(finished, tmp_path):
    runs = _runs("dependent", "off-site", seeds=1)
    study = Study.create(tmp_path, SAMPLES, trainer="ridge 1")
    assert study.run(runs[:4], SAMPLES, train_ridge) == 4
    again = Study.create(tmp_path, SAMPLES, trainer="ridge 1")
    assert again.run(runs, SAMPLES, train_ridge) == len(runs) - 4
    assert again.run(runs, SAMPLES, train_ridge) == 0
    whole = _contents(finished)
    assert _contents(again) == {run: whole[run] for run in runs}
    assert list((tmp_path / "scratch").iterdir()) == []


_WORKER = """
import sys
from field_samples import field_samples, train_ridge
from xsoilsm.scenarios import Study, plan
samples = field_samples()
study = Study.create(sys.argv[1], samples, trainer="ridge 1")
study.run(plan("dependent", sizes=[2, 5], seeds=2), samples, train_ridge)
"""


def _worker(folder, slow):
    here = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": str(here), "XSOILSM_TEST_SLOW": slow}
    return subprocess.Popen(
        [sys.executable, "-c", _WORKER, str(folder)],
        env=env,
        cwd=here.parent,
        text=True,
        stderr=subprocess.PIPE,
    )


def _wait_for_results(folder, count, process):
    end = time.monotonic() + 60
    while len(list(folder.glob("results/dependent*.parquet"))) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_killed_study_is_taken_up_where_it_was(finished, tmp_path):
    with _worker(tmp_path, "0.4") as process:
        _wait_for_results(tmp_path, 2, process)
        second = Study.open(tmp_path)
        with pytest.raises(OSError, match="another process"):
            second.run([], SAMPLES, train_ridge)
        process.send_signal(signal.SIGKILL)
    study = Study.create(tmp_path, SAMPLES, trainer="ridge 1")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("results/dep*.parquet")}
    assert 2 <= len(before) < 12
    (tmp_path / "results" / ".unfinished-x-some.parquet").write_bytes(b"half a fi")
    runs = plan("dependent", sizes=[2, 5], seeds=2)
    assert study.run(runs, SAMPLES, train_ridge) == len(runs) - len(before)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    whole = _contents(finished)
    assert _contents(study) == {run: whole[run] for run in runs}
    assert not list(tmp_path.glob("results/.unfinished*"))


def test_a_damaged_result_is_done_again(tmp_path):
    study = Study.create(tmp_path, SAMPLES, trainer="ridge 1")
    runs = plan("dependent", sizes=[5], seeds=1, arms=["transfer"])
    study.run(runs, SAMPLES, train_ridge)
    whole = _contents(study)
    (path,) = tmp_path.glob("results/*.parquet")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    assert study.result(runs[0]) is None
    assert study.run(runs, SAMPLES, train_ridge) == 1
    path.write_bytes(content[:100])
    assert list(study.results()) == []
    assert study.run(runs, SAMPLES, train_ridge) == 1
    assert _contents(study) == whole


def test_results_of_other_samples_or_trainers_never_mix(tmp_path):
    study = Study.create(tmp_path / "a", SAMPLES, trainer="ridge 1")
    runs = plan("dependent", sizes=[5], seeds=1, arms=["transfer"])
    study.run(runs, SAMPLES, train_ridge)
    for samples, trainer in ((field_samples(seed=1), "ridge 1"), (SAMPLES, "ridge 2")):
        with pytest.raises(ValueError, match="other samples or another trainer"):
            Study.create(tmp_path / "a", samples, trainer=trainer)
    other = Study.create(tmp_path / "b", SAMPLES, trainer="ridge 2")
    (tmp_path / "b" / "results").mkdir()
    (source,) = (tmp_path / "a").glob("results/*.parquet")
    (tmp_path / "b" / "results" / source.name).write_bytes(source.read_bytes())
    with pytest.raises(ValueError, match="another study"):
        other.run(runs, SAMPLES, train_ridge)
    with pytest.raises(ValueError, match="40 were passed"):
        study.run(runs, SAMPLES.iloc[:40], train_ridge)


def test_samples_may_be_a_dataset(tmp_path, finished):
    data = xr.Dataset({n: ("sample", SAMPLES[n].to_numpy()) for n in SAMPLES})
    data.attrs["simulated"] = True

    def train(samples, task, seed):
        ridge = train_ridge(samples.to_dataframe(), task, seed)
        return lambda some: ridge(some.to_dataframe())

    study = Study.create(tmp_path, data, trainer="ridge 1")
    runs = plan("off-site", sizes=[5], seeds=1, networks=["SCAN"])
    study.run(runs, data, train)
    for run in runs:
        np.testing.assert_array_equal(study.result(run).predicted, finished.result(run).predicted)


def test_errors_of_a_trainer_name_the_run_and_lose_nothing(tmp_path):
    study = Study.create(tmp_path, SAMPLES, trainer="fails")
    calls = []

    def train(samples, task, seed):
        calls.append(task.scratch)
        if len(calls) == 2:
            raise MemoryError("no room")
        return train_ridge(samples, task, seed)

    runs = plan("dependent", sizes=[2, 5], seeds=1, arms=["transfer"])
    with pytest.raises(MemoryError) as caught:
        study.run(runs, SAMPLES, train)
    assert runs[1].key in "".join(caught.value.__notes__)
    assert calls[1].is_dir()
    assert study.run(runs, SAMPLES, train) == 1
    assert calls[2] == calls[1]


def test_predictors_that_give_something_else_are_refused(tmp_path):
    study = Study.create(tmp_path, SAMPLES, trainer="wrong")
    runs = plan("dependent", sizes=[2], seeds=1, arms=["transfer"])
    with pytest.raises(ValueError, match="mean and spread of each"):
        study.run(runs, SAMPLES, lambda *_: lambda some: (np.zeros(3), np.zeros(3)))
    assert study.scores().empty


def test_truth_must_be_whole(tmp_path):
    broken = SAMPLES.assign(soil_moisture=SAMPLES["soil_moisture"].where(SAMPLES.index > 3))
    with pytest.raises(ValueError, match="4 of 1360 samples have no truth"):
        Study.create(tmp_path, broken, trainer="x")
    percent = SAMPLES.assign(soil_moisture=100 * SAMPLES["soil_moisture"])
    with pytest.raises(ValueError, match="divide percent by 100"):
        Study.create(tmp_path, percent, trainer="x")


# --------------------------------------------------------------------------- scores, report


def test_scores_have_the_order_that_the_world_has(finished):
    scores = finished.scores()
    means = scores.groupby(["scenario", "arm", "size"])["rmse"].mean()
    assert means["dependent", "transfer", 2] < means["dependent", "benchmark", 2]
    assert means["off-site", "transfer", 5] < means["off-site", "benchmark", 1]
    one = scores[(scores["scenario"] == "on-site") & (scores["arm"] != "coarse")].iloc[0]
    assert one["sites_trained"] == one["sites_validated"]
    trained = scores[scores["arm"] != "coarse"]
    assert trained["best_member_r"].notna().all()
    coarse = scores[(scores["arm"] == "coarse") & (scores["scenario"] == "off-site")]
    assert coarse.groupby(["network", "size", "seed"]).size().max() == 1


def test_a_run_is_evaluated_as_what_it_is(finished):
    run = Run("off-site", "SCAN", 5.0, 0, "transfer")
    found = finished.evaluation(run)
    assert found.independence == "sites"
    assert found.simulated
    row = finished.scores().set_index(["scenario", "network", "size", "seed", "arm"])
    expected = row.loc[("off-site", "SCAN", 5.0, 0, "transfer")]
    assert found.overall["r"].iloc[0] == pytest.approx(expected["r"])
    with pytest.raises(ValueError, match="not done"):
        finished.evaluation(Run("off-site", "SCAN", 9.0, 0, "transfer"))


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag == "img":
            self.images.append(attrs)
        self.addresses += [attrs[a] for a in ("src", "href", "data") if a in attrs]


def test_the_report_is_one_file_and_says_simulated_everywhere(tmp_path):
    said = []
    path = run_scenario(
        "dependent",
        SAMPLES,
        train_ridge,
        tmp_path / "study",
        trainer="ridge <1>",
        sizes={"dependent": [5], "off-site": [5]},
        seeds=1,
        networks=["SCAN"],
        progress=said.append,
    )
    assert path == tmp_path / "study" / "report.html"
    assert "off-site_SCAN_5_seed0_transfer" in said
    assert said[-1] == 1
    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    assert "ridge &lt;1&gt;" in text
    assert len(page.images) == 2 * 5
    assert all(i["alt"].startswith("Simulated data") for i in page.images)
    assert page.addresses
    assert all(a.startswith("data:image/") for a in page.addresses)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "@import" not in text
    assert "url(" not in text.split("</style>")[0]
    assert "SIMULATED DATA" in text
    section = text.split("<h2>Dependent")[1].split("<h2>")[0]
    assert section.index("off-site R<") < section.index("bias<")
    assert "no validation" in section
    with pytest.raises(FileExistsError):
        write_study_report(path.parent, path)
    markdown = write_study_report(path.parent, tmp_path / "result.md").read_text(encoding="utf-8")
    named = re.findall(
        r"!\[Simulated data: [^\]]+\]\((result/figure-\d\d\.(?:svg|png))\)", markdown
    )
    assert len(named) == len(page.images)
    assert {f"result/{p.name}" for p in (tmp_path / "result").iterdir()} == set(named)
    assert markdown.count("Simulated data: ") == 2 * len(named) + markdown.count("\n| --- |") - 1
    assert "**SIMULATED DATA" in markdown


def test_networks_that_diverged_are_reported_as_invalid(tmp_path):
    def train(samples, task, seed):
        predict = train_ridge(samples, task, seed)
        if task.arm != "benchmark":
            return predict
        return lambda given: tuple(10 * values for values in predict(given))

    sizes = {"off-site": [5]}
    study = tmp_path / "study"
    options = {"trainer": "x", "sizes": sizes, "seeds": 1, "networks": ["SCAN"]}
    path = run_scenario("off-site", SAMPLES, train, study, **options)
    assert "benchmark" in path.read_text(encoding="utf-8")
    scores = Study.open(study).scores().set_index("arm")
    assert scores["inversion_rate"]["benchmark"] < 0.5 < scores["inversion_rate"]["transfer"]


def test_a_random_split_is_never_reported_alone(tmp_path):
    study = Study.create(tmp_path / "study", SAMPLES, trainer="ridge 1")
    with pytest.raises(ValueError, match="no results yet"):
        write_study_report(study, tmp_path / "report.html")
    study.run(_runs("dependent", "on-site", seeds=1), SAMPLES, train_ridge)
    with pytest.raises(ValueError, match="no validation"):
        write_study_report(study, tmp_path / "report.html")
    study.run(_runs("off-site", seeds=1, arms=["transfer"]), SAMPLES, train_ridge)
    with pytest.raises(ValueError, match="benchmark, coarse"):
        write_study_report(study, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == [tmp_path / "study"]
    study.run(_runs("off-site", seeds=1), SAMPLES, train_ridge)
    summary = summarise(study.scores())
    assert list(dict.fromkeys(summary["scenario"])) == ["dependent", "on-site", "off-site"]
    assert list(dict.fromkeys(summary["arm"])) == ["transfer", "benchmark", "coarse"]
