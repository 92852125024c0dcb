"""Samples of an invented world of stations, and a regression that stands in for the networks.

Sites have biases of their own that a model can learn for sites that it knows, so random splits
flatter, as they do in the real world.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xsoilsm.scenarios import Task

NETWORKS = {"SCAN": 12, "SNOTEL": 14, "REMEDHUS": 8}


def field_samples(per_site: int = 40, seed: int = 0) -> pd.DataFrame:
    """Make samples of 34 cells in three networks, 2016 to 2021, with inputs ``x0`` to ``x3``."""
    rng = np.random.default_rng(seed)
    parts = []
    for network, count in NETWORKS.items():
        for number in range(count):
            days = np.sort(rng.choice(2192, per_site, replace=False))
            when = np.datetime64("2016-01-01T06:00", "ns") + days * np.timedelta64(1, "D")
            season = np.cos(2 * np.pi * (days % 365 - 60) / 365)
            wet = np.clip(0.2 + 0.08 * season + rng.normal(0, 0.04, per_site), 0.01, 0.55)
            soil = rng.normal()
            radar = (wet + 0.03 * soil - 0.22) / 0.08 + rng.normal(0, 0.4, per_site)
            parts.append(
                pd.DataFrame(
                    {
                        "soil_moisture": wet,
                        "x0": radar,
                        "x1": season,
                        "x2": soil,
                        "x3": rng.normal(size=per_site),
                        "cell": f"1km {1000 + number} {len(network) * 100 + number}",
                        "network": network,
                        "station": f"station {number}",
                        "land_cover": ("crop", "grass", "tree")[number % 3],
                        "climate": "Cfa" if network == "SCAN" else "Dfb",
                        "lat": 30 + len(network) + 0.3 * number,
                        "lon": -110 + 3.0 * number,
                        "time": when,
                    }
                )
            )
    samples = pd.concat(parts, ignore_index=True)
    samples.attrs["simulated"] = True
    return samples


def train_ridge(samples: pd.DataFrame, task: Task, seed: int) -> Any:
    """Fit some ridge regressions; with transfer they lean on the coarse one.

    XSOILSM_TEST_SLOW gives the seconds that each training takes.
    """
    slow = os.environ.get("XSOILSM_TEST_SLOW")
    if slow:
        time.sleep(float(slow))
    coarse = np.array([0.22, 0.03, 0.02, 0.0, 0.0])
    towards = coarse if task.arm == "transfer" else np.array([0.22, 0, 0, 0, 0])
    rng = np.random.default_rng(seed)
    weights = []
    for _ in range(3):
        if task.arm == "coarse":
            weights.append(coarse)
            continue
        x, y = inputs(samples), samples["soil_moisture"].to_numpy()
        keep = rng.random(len(y)) < 0.8
        keep[0] = True
        x, y = x[keep], y[keep]
        square = x.T @ x + 5.0 * np.eye(5)
        weights.append(towards + np.linalg.solve(square, x.T @ (y - x @ towards)))
    (Path(task.scratch) / "checkpoint").write_text("half way", encoding="utf-8")
    return Ridge(np.array(weights))


class Ridge:
    """Mean and spread of some linear models."""

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights

    def members(self, samples: pd.DataFrame) -> np.ndarray:
        return self.weights @ inputs(samples).T

    def __call__(self, samples: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        each = self.members(samples)
        return each.mean(axis=0), each.std(axis=0)


def inputs(samples: pd.DataFrame) -> np.ndarray:
    columns = samples[["x0", "x1", "x2", "x3"]].to_numpy()
    return np.column_stack([np.ones(len(samples)), columns])
