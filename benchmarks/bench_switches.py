"""What each switch of a recipe does to sites of which there are no samples; SIMULATED data.

Wants the folder of a study on the twin, which holds samples and networks at 9 km:

    xsoilsm evaluate --scenario off-site --data twin --out my-study
    XSOILSM_STUDY=my-study python -m benchmarks switches

Networks at 9 km are tuned with the samples of one site, and of five, of a network of stations, and
retrieve all other sites of it. Sites are drawn several times; every recipe sees the same draws, so
that differences are taken draw by draw. Samples that are not labelled, which some switches want,
are those of the other sites: maps always have them. A draw that is done is kept in
``my-study/switches``, and taken up again.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from xsoilsm.calibration import fit_calibration, share_within
from xsoilsm.ensemble import get_ensemble
from xsoilsm.evaluation import tabulate
from xsoilsm.metrics import agreement, inversion_rate, valid
from xsoilsm.scenarios.splits import off_site
from xsoilsm.simulate.twin import twin_samples
from xsoilsm.timemajor import one_torch_thread
from xsoilsm.training import Recipe, Samples, predict_members, train_members
from xsoilsm.training.loop import _Training
from xsoilsm.validation import STUDIES
from xsoilsm.wholefile import write_whole

NETWORKS = ("TWIN-WIDE", "TWIN-SNOW")
DRAWS = {1: 4, 5: 3}
CALIBRATED = 1
"""Draws of five sites for which the spread is calibrated, each site held out in turn."""

PLAIN, UNTOUCHED = "transfer", "9 km networks, untouched"
TRANSFER = Recipe.transfer(epochs=100, learning_rate=1e-4, coarse_share=1.0)
RECIPES = {
    "benchmark, from nothing": Recipe.benchmark(epochs=100),
    PLAIN: TRANSFER,
    "learning_rate=0, statistics alone": replace(TRANSFER, epochs=30, learning_rate=0.0),
    "coarse_share=0": replace(TRANSFER, coarse_share=0.0),
    "batch_norm=frozen": replace(TRANSFER, batch_norm="frozen"),
    "batch_norm=frozen, coarse_share=0": replace(TRANSFER, batch_norm="frozen", coarse_share=0.0),
    "match_quantiles": replace(TRANSFER, match_quantiles=True),
    "balance=site": replace(TRANSFER, balance="site"),
    "alpha=0.5": replace(TRANSFER, alpha=0.5),
    "distance=coral": replace(TRANSFER, distance="coral"),
    "distance=mmd": replace(TRANSFER, distance="mmd"),
    "Recipe.adaptation()": Recipe.adaptation(),
}
"""Recipes by what is switched; 9 km samples are mixed in where nothing else is said."""

ENDINGS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "correct_bias": {"correct_bias": True},
    "batch_norm=target": {"batch_norm": "target"},
    "batch_norm=target, correct_bias": {"batch_norm": "target", "correct_bias": True},
}
"""What differs from the plain transfer once all epochs are done: trained once for all of them."""


class World:
    """Samples and networks of a study."""

    def __init__(self, folder: Path) -> None:
        coarse, stations = twin_samples(folder / "twin")
        self.coarse, self.fine = Samples.of_cube(coarse), Samples.of_cube(stations)
        count = len(self.fine)
        self.table = tabulate(stations.assign(predicted=("sample", np.full(count, np.nan))))
        base = get_ensemble(folder / "coarse")
        known = [(m.depth, m.width) for m in base.card.members]
        self.shapes = [shape for shape in STUDIES["small"].shapes if shape in known]
        self.states = [base.state_dicts()[known.index(shape)] for shape in self.shapes]

    def unlabelled(self, rows: np.ndarray) -> Samples:
        return replace(self.fine.take(rows), labels=None, sites=None)

    def tune(self, recipe: Recipe, rows: np.ndarray, others: np.ndarray) -> list[Any]:
        """Networks tuned on some samples; `others` are seen without labels."""
        fine = self.fine.take(rows)
        recipe = replace(recipe, batch=min(recipe.batch, len(fine)))
        return train_members(
            fine,
            self.shapes,
            recipe,
            initial=self.states if recipe.from_base else None,
            coarse=self.coarse if recipe.needs_coarse else None,
            target=self.unlabelled(others) if recipe.needs_target else None,
            threads=1,
        ).states

    def tune_once(self, seed: int, rows: np.ndarray, others: np.ndarray) -> dict[str, list[Any]]:
        """Plain transfer with each of `ENDINGS`."""
        fine = self.fine.take(rows)
        recipe = replace(TRANSFER, batch_norm="target", seed=seed)
        recipe = replace(recipe, batch=min(recipe.batch, len(fine)))
        unlabelled = self.unlabelled(others)
        training = _Training(
            fine, self.shapes, recipe, self.states, self.coarse, unlabelled, "cpu", 1
        )
        made = {}
        with one_torch_thread(training.fleet.device), training.fleet:
            for epoch in range(recipe.epochs):
                training.run_epoch(epoch, 0.0)
            for name, ending in ENDINGS.items():
                training.recipe = replace(recipe, **{"batch_norm": "batch", **ending})
                made[name] = training.finish(0.0).states
        return made

    def retrieve(self, states: list[Any], rows: np.ndarray) -> np.ndarray:
        return predict_members(states, self.fine.take(rows), threads=1)

    def measure(self, each: np.ndarray, rows: np.ndarray) -> dict[str, float]:
        mean = each.mean(axis=0)
        found = agreement(np.where(valid(mean), mean, np.nan), self.fine.labels[rows])
        return {
            "R": found.r,
            "RMSE": found.rmse,
            "ubRMSE": found.ubrmse,
            "bias": found.bias,
            "valid": inversion_rate(mean),
        }


@cache
def _world(folder: Path) -> World:
    return World(folder)


def draw(folder: Path, network: str, sites: int, seed: int) -> dict[str, Any]:
    """All recipes with one draw of sites."""
    path = folder / "switches" / f"{network}_{sites}_{seed}.json"
    settings = {name: asdict(recipe) for name, recipe in RECIPES.items()}
    if path.is_file():
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if known["settings"] == json.loads(json.dumps(settings)):
            return known
    world = _world(folder)
    split = off_site(world.table, sites, seed, network)
    train, test = split.train, split.test
    at_sites, found = (
        {UNTOUCHED: world.measure(world.retrieve(world.states, rows), rows)}
        for rows in (train, test)
    )
    spread: dict[str, float] = {}
    made = world.tune_once(seed, train, test)
    for name in _names()[1:]:
        if name in made:
            states = made[name]
        else:
            states = world.tune(replace(RECIPES[name], seed=seed), train, test)
        each = world.retrieve(states, test)
        found[name] = world.measure(each, test)
        at_sites[name] = world.measure(world.retrieve(states, train), train)
        if name == PLAIN and sites >= 5 and seed < CALIBRATED:
            spread = _calibrated(world, replace(TRANSFER, seed=seed), train, test, each)
    result = {
        "network": network,
        "sites": sites,
        "seed": seed,
        "samples": int(train.size),
        "settings": settings,
        "found": found,
        "at the sites of training": at_sites,
        "spread": spread,
    }
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps(result, indent=1))
    return result


def _calibrated(
    world: World, recipe: Recipe, train: np.ndarray, test: np.ndarray, each: np.ndarray
) -> dict[str, float]:
    """Share of truths within one spread, and within one uncertainty fitted to sites left out."""
    cells = world.table["cell"].to_numpy()[train]
    mean, spread = np.empty(train.size), np.empty(train.size)
    for cell in np.unique(cells):
        out = cells == cell
        held = world.retrieve(world.tune(recipe, train[~out], test), train[out])
        mean[out], spread[out] = held.mean(axis=0), held.std(axis=0)
    known = valid(mean)
    floor, factor = fit_calibration(spread[known], (mean - world.fine.labels[train])[known])
    error, wide = each.mean(axis=0) - world.fine.labels[test], each.std(axis=0)
    calibrated = np.sqrt(floor**2 + (factor * wide) ** 2)
    return {
        "within the spread": share_within(error, wide),
        "within the uncertainty": share_within(error, calibrated),
        "uncertainty": float(np.sqrt(np.mean(calibrated**2))),
        "error": float(np.sqrt(np.mean(error**2))),
    }


def run(full: bool) -> list[dict[str, object]]:
    place = os.environ.get("XSOILSM_STUDY")
    if not place:
        print("switches: set XSOILSM_STUDY to the folder of a study on the twin; left out")
        return []
    folder = Path(place).resolve()
    jobs = [
        (folder, network, sites, seed)
        for sites, draws in DRAWS.items()
        for seed in range(draws * (3 if full else 1))
        for network in NETWORKS
    ]
    jobs.sort(key=lambda job: (job[3], -job[2]))  # stopped early, it is a smaller study
    workers = min(len(os.sched_getaffinity(0)), len(jobs))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        done = list(pool.map(draw, *zip(*jobs, strict=True)))
    rows: list[dict[str, object]] = []
    for sites in DRAWS:
        rows += _summary([one for one in done if one["sites"] == sites], sites)
    rows += _spreads([one["spread"] for one in done if one["spread"]])
    return rows


def _names() -> list[str]:
    """List what is compared, in the order of the table."""
    first, *others = (name for name in RECIPES if name != PLAIN)
    return [UNTOUCHED, first, *ENDINGS, *others]


def _summary(done: list[dict[str, Any]], sites: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name in _names():
        mine = {key: _each(done, name, key) for key in ("R", "RMSE", "ubRMSE", "bias", "valid")}
        row: dict[str, object] = {"sites": sites, "draws": len(done), "recipe": name}
        row |= {key: f"{np.nanmean(mine[key]):.3f}" for key in ("R", "RMSE", "ubRMSE")}
        row["|bias|"] = f"{np.nanmean(np.abs(mine['bias'])):.3f}"
        row["valid"] = f"{np.mean(mine['valid']):.0%}"
        for other, words in ((PLAIN, "transfer"), (UNTOUCHED, "untouched")):
            for key in ("RMSE", "R"):
                row[f"{key} - {words}"] = _interval(mine[key] - _each(done, other, key))
        row["|bias| at the sites"] = f"{np.nanmean(np.abs(_each(done, name, 'bias', True))):.3f}"
        rows.append(row)
    return rows


def _each(done: list[dict[str, Any]], name: str, key: str, inside: bool = False) -> np.ndarray:
    where = "at the sites of training" if inside else "found"
    return np.array([one[where][name][key] for one in done])


def _interval(difference: np.ndarray) -> str:
    """Mean and 95 % confidence interval over draws (Student's t) that left any valid retrieval."""
    difference = difference[np.isfinite(difference)]
    if not difference.any():
        return "0"
    mean, count = difference.mean(), difference.size
    half = student.ppf(0.975, count - 1) * difference.std(ddof=1) / np.sqrt(count)
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def _spreads(found: list[dict[str, float]]) -> list[dict[str, object]]:
    if not found:
        return []
    mean = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
    return [
        {
            "sites": 5,
            "draws": len(found),
            "recipe": f"{PLAIN}, spread as it is",
            "RMSE": f"{mean['error']:.3f}",
            "truths within one": f"{mean['within the spread']:.0%}",
        },
        {
            "sites": 5,
            "draws": len(found),
            "recipe": f"{PLAIN}, spread calibrated",
            "RMSE": f"{mean['error']:.3f}",
            "truths within one": f"{mean['within the uncertainty']:.0%}",
            "mean uncertainty": f"{mean['uncertainty']:.3f}",
        },
    ]
