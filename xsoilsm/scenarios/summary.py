"""Outside the seven steps (scenarios): from samples to one report, beside the paper's numbers.

The dependent scenario is a random split. Its figures appear only where the same arms were also
run off-site, and the off-site figures stand beside them in the same table and the same plot.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from xsoilsm.evaluation import Evaluation, Page, compare, figures
from xsoilsm.evaluation.scores import IN_WORDS
from xsoilsm.scenarios.plan import ARMS, SEEDS, Arm, Run, Trainer, plan
from xsoilsm.scenarios.splits import INDEPENDENCE, NETWORKS, SCENARIOS, Scenario
from xsoilsm.scenarios.study import Result, Samples, Study, cell_measures

__all__ = ["PUBLISHED", "require_off_site", "run_scenario", "summarise", "write_study_report"]

PUBLISHED = (
    ("coarse, used at 1 km", "coarse", "", np.nan, "0.47 or less", "0.105"),
    ("dependent", "transfer", "", 0.5, "0.71", "0.076"),
    ("dependent", "transfer", "", 3.0, "0.83", "0.060"),
    ("on-site", "transfer", "", 5, "0.75", "0.07"),
    ("on-site", "transfer", "", 11, "", "0.068"),
    ("off-site", "transfer", "SCAN", 1, "0.653", "0.102"),
    ("off-site", "transfer", "SCAN", 17, "0.767", "0.078"),
    ("off-site", "transfer", "SNOTEL", 1, "0.271", "0.126"),
    ("off-site", "transfer", "SNOTEL", 17, "0.509", "0.098"),
)
"""Scenario, arm, network, size, R and RMSE at 1 km as Zhu et al. (2024) report them."""

SIZE_LABELS = {
    "dependent": "training samples, % of all",
    "on-site": "training samples of each cell",
    "off-site": "training cells",
}


def run_scenario(
    scenario: Scenario,
    samples: Samples,
    train: Trainer,
    folder: str | os.PathLike[str],
    *,
    trainer: str,
    truth: str = "soil_moisture",
    sizes: Mapping[str, Sequence[float]] | None = None,
    seeds: int | Sequence[int] = SEEDS,
    arms: Sequence[Arm] = ARMS,
    networks: Sequence[str] = NETWORKS,
    report: str | os.PathLike[str] | None = None,
    progress: Callable[[float | str], None] | None = None,
) -> Path:
    """Run a scenario, or what is missing of it, and write its report.

    Computes. May be interrupted at any time, and called again.

    Parameters
    ----------
    scenario : {"dependent", "on-site", "off-site"}
        ``dependent`` runs off-site as well, because it is not reported alone.
    samples : DataFrame or Dataset (sample)
        With truth, inputs, and what `xsoilsm.evaluation.COLUMNS` names.
    train : Trainer
    folder : path
        Of the study. Several scenarios may share one.
    trainer : str
        See `Study.create`.
    truth : str, default "soil_moisture"
    sizes : mapping of str to sequence of float, optional
        For each scenario; by default those of Zhu et al. (2024), also where one is missing.
    seeds, arms, networks
        See `xsoilsm.scenarios.plan`.
    report : path, optional
        By default ``report.html`` in `folder`; see `write_study_report`.
    progress : callable, optional
        Takes shares from 0 to 1, and texts.

    Returns
    -------
    Path
        The report, of everything that the study holds.

    Raises
    ------
    ValueError
        See `Study.create`, `plan` and `make_split`.
    """
    chosen = ("dependent", "off-site") if scenario == "dependent" else (scenario,)
    held = sizes or {}
    runs = [
        run
        for one in chosen
        for run in plan(
            cast("Scenario", one), sizes=held.get(one), seeds=seeds, arms=arms, networks=networks
        )
    ]
    study = Study.create(folder, samples, trainer=trainer, truth=truth)
    study.run(runs, samples, train, progress=progress)
    return write_study_report(study, report or study.folder / "report.html", overwrite=True)


def require_off_site(scores: pd.DataFrame) -> None:
    """Refuse results of the dependent scenario without those of the off-site scenario.

    Parameters
    ----------
    scores : DataFrame
        Of `Study.scores`.

    Raises
    ------
    ValueError
        When an arm has dependent results and no off-site ones.
    """
    arms = {
        name: set(scores.loc[scores["scenario"] == name, "arm"])
        for name in ("dependent", "off-site")
    }
    alone = arms["dependent"] - arms["off-site"]
    if alone:
        msg = (
            f"the dependent scenario ({', '.join(sorted(alone))}) is a random split and no "
            "validation; it is not reported without sites that were not trained on. Run the "
            "off-site scenario of the same arms in this study first"
        )
        raise ValueError(msg)


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds of each scenario, network, size and arm.

    Computes.

    Parameters
    ----------
    scores : DataFrame
        Of `Study.scores`.

    Returns
    -------
    DataFrame
        scenario, network, size, arm, seeds, samples_trained, and mean and ``_sd`` of r, rmse,
        ubrmse, bias, inversion_rate, cell_r, cell_rmse.

    Raises
    ------
    ValueError
        See `require_off_site`.
    """
    require_off_site(scores)
    keys = ["scenario", "network", "size", "arm"]
    names = ["r", "rmse", "ubrmse", "bias", "inversion_rate", "cell_r", "cell_rmse"]
    grouped = scores.groupby(keys, sort=False)
    summary = grouped[names].mean().join(grouped[names].std().add_suffix("_sd"))
    summary.insert(0, "seeds", grouped.size())
    summary.insert(1, "samples_trained", grouped["samples_trained"].mean())
    order = {name: number for number, name in enumerate((*SCENARIOS, *ARMS))}
    return summary.reset_index().sort_values(
        keys,
        key=lambda column: column.map(order) if column.name in ("scenario", "arm") else column,
        kind="stable",
        ignore_index=True,
    )


def write_study_report(
    study: Study | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    title: str = "Three scenarios",
    overwrite: bool = False,
) -> Path:
    """Write all results of a study.

    Computes.

    Parameters
    ----------
    study : Study or path
    path : path
        HTML, or Markdown where it ends in ``.md``; see `xsoilsm.evaluation.Page.write`.
    title : str
    overwrite : bool, default False

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        When no run is done, or see `require_off_site`.
    FileExistsError
        When `path` exists and `overwrite` is false.
    """
    if not isinstance(study, Study):
        study = Study.open(study)
    scores = study.scores()
    if scores.empty:
        msg = f"the study in {study.folder} has no results yet"
        raise ValueError(msg)
    require_off_site(scores)
    page = Page(title, simulated=study.simulated)
    page.text(
        f"{len(study.samples):,} samples of {study.samples['cell'].nunique()} cells; "
        f"{len(scores)} runs, seeds: {scores['seed'].nunique()}; trainer: {study.trainer}.",
        "meta",
    )
    loaded = _Loaded(study)
    off_site = scores[scores["scenario"] == "off-site"]
    for scenario in SCENARIOS:
        for network, rows in scores[scores["scenario"] == scenario].groupby("network"):
            _section(page, loaded, scenario, str(network), rows, off_site)
    page.heading("Zhu et al. (2024), 1 km, for comparison")
    if study.simulated:
        page.text("Those are real stations, the rest of this page is simulated.", "meta")
    columns = ["scenario", "arm", "network", "size", "R", "RMSE"]
    published = pd.DataFrame(PUBLISHED, columns=columns).astype({"size": object})
    published["size"] = ["" if np.isnan(s) else f"{s:g}" for s in published["size"]]
    source = "Real stations: Remote Sensing of Environment 301, 113944"
    page.table(published.set_index("scenario"), source, real=True)
    return page.write(path, overwrite=overwrite)


class _Loaded:
    """A study with what is needed of its samples again and again."""

    def __init__(self, study: Study) -> None:
        self.study = study

    @cached_property
    def truth(self) -> npt.NDArray[np.float64]:
        return self.study.samples["truth"].to_numpy(float)

    @cached_property
    def cell(self) -> npt.NDArray[np.int64]:
        return pd.factorize(self.study.samples["cell"])[0].astype(np.int64)

    def result(self, run: Run) -> Result | None:
        return self.study.result(run)

    def cells(self, run: Run) -> pd.DataFrame | None:
        result = self.study.result(run)
        return None if result is None else cell_measures(result, self.truth, self.cell)


def _section(
    page: Page,
    loaded: _Loaded,
    scenario: Any,
    network: str,
    rows: pd.DataFrame,
    off_site: pd.DataFrame,
) -> None:
    name = f"{scenario} {network}".strip()
    page.heading(f"{name[0].upper()}{name[1:]}: {IN_WORDS[INDEPENDENCE[scenario]]}")
    random = scenario == "dependent"
    if random:
        page.text(
            "A random split is no validation: its samples have neighbours of the same site and "
            "week in the training. Read the off-site columns and the band beside it.",
            "warning",
        )
    page.figure(
        figures.scores_by_size(
            rows,
            label=SIZE_LABELS[scenario],
            simulated=page.simulated,
            beside=off_site[off_site["arm"] == "transfer"] if random else None,
            beside_label="off-site, transfer",
            title=name,
        ),
        f"{name}: R and RMSE against the size of the training; mean and standard deviation over "
        f"seeds ({rows['seed'].nunique()})",
    )
    page.table(_table(rows, off_site if random else None), f"{name}, means over seeds")
    seed = int(rows["seed"].min())
    sizes = sorted(rows["size"].unique())
    runs = {
        size: [
            Run(scenario, network, size, seed, arm)
            for arm in ARMS
            if ((rows["size"] == size) & (rows["arm"] == arm) & (rows["seed"] == seed)).any()
        ]
        for size in sizes
    }
    boxes: dict[str, dict[str, pd.DataFrame]] = {
        f"{size:g}": {run.arm: table for run in of if (table := loaded.cells(run)) is not None}
        for size, of in runs.items()
    }
    boxes = {size: {a: t for a, t in of.items() if len(t)} for size, of in boxes.items()}
    if any(boxes.values()):
        page.figure(
            figures.cell_boxes(boxes, simulated=page.simulated, label=SIZE_LABELS[scenario]),
            f"{name}: distributions over cells, seed {seed}",
        )
    _at_smallest(page, loaded, name, runs[sizes[0]])


def _table(rows: pd.DataFrame, off_site: pd.DataFrame | None) -> pd.DataFrame:
    table = []
    for (size, arm), group in rows.groupby(["size", "arm"], sort=False):
        said: dict[str, Any] = {
            "size": f"{size:g}",
            "arm": str(arm),
            "R": _spread(group["r"]),
            "RMSE": _spread(group["rmse"]),
        }
        if off_site is not None:
            beside = off_site[off_site["arm"] == arm].groupby(["network", "size"])
            for column, label in (("r", "R"), ("rmse", "RMSE")):
                means = beside[column].mean()
                said[f"off-site {label}"] = f"{means.min():.3f} to {means.max():.3f}"
        said |= {
            "ubRMSE": _spread(group["ubrmse"]),
            "bias": float(group["bias"].mean()),
            "valid": float(group["inversion_rate"].mean()),
            "median R of cells": _spread(group["cell_r"]),
            "best member R": float(group["best_member_r"].mean()),
            "trained on": "" if arm == "coarse" else f"{group['samples_trained'].mean():.0f}",
            "seeds": len(group),
        }
        table.append(said)
    return pd.DataFrame(table).set_index("size").dropna(axis="columns", how="all")


def _spread(values: pd.Series) -> str:
    spread = f" ± {values.std():.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread}"


def _at_smallest(page: Page, loaded: _Loaded, name: str, runs: list[Run]) -> None:
    """Scatter plots, years and gains of the smallest training, where transfer matters most."""
    study = loaded.study
    found: list[Evaluation] = [study.evaluation(run) for run in runs]
    label = f"{name}, size {runs[0].size:g}, seed {runs[0].seed}"
    short = [replace(e, name=run.arm) for e, run in zip(found, runs, strict=True)]
    page.figure(figures.density_scatter(short), f"{label}: retrieved against true", "png")
    page.figure(figures.yearly_scores(short), f"{label}: by year, with intervals")
    by_arm = {run.arm: run for run in runs}
    for other in ("benchmark", "coarse"):
        if "transfer" not in by_arm or other not in by_arm:
            continue
        _gain(page, loaded, by_arm["transfer"], by_arm[other], label)


def _gain(page: Page, loaded: _Loaded, first: Run, second: Run, label: str) -> None:
    a, b = loaded.result(first), loaded.result(second)
    if a is None or b is None or not np.array_equal(a.rows, b.rows):
        return
    table = loaded.study.samples.iloc[a.rows].reset_index(drop=True)
    gain = compare(table.assign(predicted=np.nan), a.predicted, b.predicted)
    page.table(
        gain.rename(columns={"cells_higher": "share of cells higher"}),
        f"{label}: {first.arm} minus {second.arm}, with 95 % intervals of paired draws of "
        f"{gain.attrs['interval']}; {gain.attrs['cells']} cells",
    )
    if second.arm != "benchmark" or "lat" not in table or "lon" not in table:
        return
    cells = [cell_measures(r, loaded.truth, loaded.cell) for r in (a, b)]
    both = cells[0].join(cells[1], rsuffix="_other", how="inner")
    if both.empty:
        return
    names = pd.factorize(loaded.study.samples["cell"])[0]
    places = loaded.study.samples[["lat", "lon"]].groupby(names).first()
    both = both.join(places).assign(r_gain=both["r"] - both["r_other"])
    if both["r_gain"].notna().any():
        page.figure(
            figures.gain_map(
                both,
                simulated=page.simulated,
                title=f"{first.arm} minus {second.arm}",
            ),
            f"{label}: gain in R of each cell, {first.arm} over {second.arm}",
        )
