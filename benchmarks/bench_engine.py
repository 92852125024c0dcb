"""The engine against a plain loop over the 25 networks, per core and in one run.

Uses the published weights where they are at hand (cache or ``XSOILSM_WEIGHTS_DIR``), else
random networks of the same shapes: the arithmetic is the same.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.timing import interleave
from xsoilsm.engine import Engine
from xsoilsm.ensemble import WeightsError, get_ensemble
from xsoilsm.network import DenseSM

PLAIN_BATCH = 1024  # the plain loop's best


class _Random:
    """Networks of the published shapes with random parameters."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        widths = (8, 16, 32, 64, 128)
        self._modules = [DenseSM(d, w).eval() for d in range(1, 6) for w in widths]

    def modules(self) -> list[DenseSM]:
        return self._modules

    def state_dicts(self) -> list[dict[str, np.ndarray]]:
        return [{k: v.numpy() for k, v in m.state_dict().items()} for m in self._modules]


def run(full: bool) -> list[dict[str, object]]:
    n = 65536 if full else 8192
    try:
        ensemble = get_ensemble("DenseSM-E")
        ensemble.require_weights()
        weights = "published"
    except WeightsError:
        ensemble, weights = _Random(), "random"
    rng = np.random.default_rng(0)
    snapshot = rng.random((18, n), np.float32)
    series = rng.random((3, 46, n), np.float32)
    rows_first = torch.from_numpy(np.ascontiguousarray(snapshot.T))
    series_first = torch.from_numpy(np.ascontiguousarray(series.transpose(2, 0, 1)))
    modules = ensemble.modules()
    engine = Engine(ensemble, "cpu", threads=1)
    answers: dict[str, np.ndarray] = {}

    def plain() -> None:
        parts = []
        with torch.inference_mode():
            for i in range(0, n, PLAIN_BATCH):
                batch = rows_first[i : i + PLAIN_BATCH], series_first[i : i + PLAIN_BATCH]
                parts.append(torch.stack([m(*batch) for m in modules]).mean(dim=0))
        answers["plain"] = torch.cat(parts).numpy()

    def ours() -> None:
        answers["ours"] = engine.predict(snapshot, series)[0]

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = interleave({"plain": plain, "ours": ours}, rounds=7 if full else 5)
    finally:
        torch.set_num_threads(before)
    error = float(np.abs(answers["plain"] - answers["ours"]).max())
    return [
        {
            "variant": name,
            "weights": weights,
            "pixels": n,
            "pixels/CPU s": round(n / s),
            "ratio to plain": seconds["plain"] / s,
            "max error m3/m3": error if key == "ours" else 0.0,
        }
        for key, name in (("plain", "loop over 25 modules"), ("ours", "engine"))
        for s in [seconds[key]]
    ]
