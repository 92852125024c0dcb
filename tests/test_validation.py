"""The twin's scenarios, from files to a report, in the smallest size."""

from __future__ import annotations

from pathlib import Path

import pytest

from xsoilsm.validation import STUDIES, rank_members, validate_twin


# Three epochs on sixty samples retrieve nonsense, and training says so.
@pytest.mark.filterwarnings("ignore::xsoilsm.training.TrainingWarning")
def test_a_scenario_runs_from_files_to_a_report_and_again(tmp_path: Path) -> None:
    report = validate_twin("on-site", tmp_path, "tiny", threads=1, workers=1)
    text = report.read_text()
    assert "imulated" in text
    for arm in ("transfer", "benchmark", "coarse"):
        assert arm in text
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "study").rglob("*.parquet")}
    kept |= {p: p.stat().st_mtime_ns for p in (tmp_path / "coarse").iterdir()}
    assert kept
    said: list[float | str] = []
    again = validate_twin("on-site", tmp_path, "tiny", threads=1, workers=1, progress=said.append)
    assert again == report
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert "train the coarse networks" not in said


def test_unknown_sizes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tiny, small, full"):
        validate_twin("on-site", tmp_path / "x", "huge")  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
    assert set(STUDIES) == {"tiny", "small", "full"}


def test_networks_trained_on_the_twin_rank_like_the_published_ones() -> None:
    ranks = rank_members("twin-demo")
    assert len(ranks) == 20
    assert ranks.attrs["spearman"] >= 0.7
    # Wider and deeper is better at the ends.
    assert ranks["rmse"].idxmax() == "1-8"
    assert ranks["rmse"].idxmin() in ("4-64", "5-64")
    same = rank_members("densesm-e-coarse")
    assert len(same) == 25
    assert same.attrs["spearman"] == pytest.approx(1)
