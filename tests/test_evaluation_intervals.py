"""Intervals of cells hold the truth although neighbouring days are alike."""

from __future__ import annotations

import numpy as np
import pandas as pd

from xsoilsm.evaluation import evaluate
from xsoilsm.metrics import agreement, analytic_intervals


def _remembering(rng, days, memory, spread):
    """Noise whose correlation falls by 1/e in `memory` days, at irregular days."""
    noise = rng.normal(size=days.size)
    for i in range(1, days.size):
        kept = np.exp(-(days[i] - days[i - 1]) / memory)
        noise[i] = kept * noise[i - 1] + np.sqrt(1 - kept**2) * noise[i]
    return spread * noise


def test_intervals_of_one_site_allow_for_its_memory():
    """Errors that last 20 days, 60 samples in two years, true bias 0; 120 worlds in one table."""
    parts = []
    for world in range(120):
        rng = np.random.default_rng(world)
        days = np.sort(rng.choice(720, 60, replace=False))
        y = 0.25 + _remembering(rng, days, 20, 0.05)
        x = y + _remembering(rng, days, 20, 0.03)
        when = np.datetime64("2018-01-01", "ns") + days * np.timedelta64(1, "D")
        parts.append(
            pd.DataFrame({"soil_moisture": y, "predicted": x, "cell": world, "time": when})
        )
    samples = pd.concat(parts, ignore_index=True)
    cells = evaluate(samples).groups["cell"]
    held = ((cells["bias_low"] <= 0) & (cells["bias_high"] >= 0)).mean()
    naive = 0
    for _, part in samples.groupby("cell"):
        low, high = analytic_intervals(agreement(part["predicted"], part["soil_moisture"]))["bias"]
        naive += low <= 0 <= high
    assert 0.88 <= held <= 0.99
    assert naive / 120 < 0.8
