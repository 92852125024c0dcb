"""The engine against a plain loop over the 25 networks and general engines, per core, in one run.

Uses the published weights where they are at hand (cache or ``XSOILSM_WEIGHTS_DIR``), else
random networks of the same shapes: the arithmetic is the same. Rates count retrieved values: a
pixel at two dates is two, a masked one none. The peak is PyTorch's product of two square
matrices, one thread; the share counts the operations of the networks as they are defined, also
where a variant does with fewer.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from benchmarks.networks import RandomEnsemble, ensemble, pixels
from benchmarks.peers import peers
from benchmarks.timing import interleave, keep_memory
from xsoilsm import speed
from xsoilsm.engine import Engine
from xsoilsm.folding import fold
from xsoilsm.plain import Plain

if TYPE_CHECKING:
    from xsoilsm.ensemble import Ensemble

PLAIN_BATCH = 1024  # the plain loop's best
SIDE = 1024  # of the matrices
CHUNK = 65536  # pixels in a call with threads, as of a chunk of a map
SAME_WEATHER = 81  # pixels of 1 km in a cell of 9 km
MASKED = 0.3
LOOP = "loop over modules"

Row = dict[str, object]
Work = tuple[int, Callable[[], np.ndarray]]
"""How many values a variant retrieves, and the call."""


def run(
    full: bool,
    n: int | None = None,
    rounds: int | None = None,
    networks: Ensemble | RandomEnsemble | None = None,
) -> list[Row]:
    n = n or (65536 if full else 8192)
    rounds = rounds or (7 if full else 5)
    networks = networks or ensemble()
    members = [fold(state) for state in networks.state_dicts()]
    operations = sum(speed.operations(member.depth, member.width) for member in members)
    snapshot, series = pixels(n)
    work = {LOOP: (n, _loop(networks, snapshot, series))}
    rows_first = np.ascontiguousarray(snapshot.T)
    series_first = np.ascontiguousarray(series.transpose(2, 0, 1))
    absent: list[Row] = []
    for name, peer in peers(networks.state_dicts()).items():
        if isinstance(peer, str):
            absent.append({"variant": name, "weights": peer})
        else:
            work[name] = n, partial(peer, rows_first, series_first)
    work |= _ours(networks, snapshot, series)

    answers: dict[str, np.ndarray] = {}

    def keep(name: str) -> None:
        answers[name] = work[name][1]()

    matrix, product = torch.rand(SIDE, SIDE), torch.empty(SIDE, SIDE)

    def multiply() -> None:
        for _ in range(8):
            torch.mm(matrix, matrix, out=product)

    contestants: dict[str, Callable[[], object]] = {name: partial(keep, name) for name in work}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        default = interleave({LOOP: contestants[LOOP]}, rounds)[LOOP]
        kept = keep_memory()
        seconds = interleave(contestants | {"peak": multiply}, rounds)
    finally:
        torch.set_num_threads(before)
    peak = 8 * 2 * SIDE**3 / seconds["peak"]

    def row(name: str, count: int, s: float, error: float) -> Row:
        return {
            "variant": name,
            "weights": networks.name,
            "pixels": n,
            "values/CPU s": round(count / s),
            "ratio to loop": seconds[LOOP] / n / (s / count),
            "share of peak": count * operations / s / peak,
            "max error m3/m3": error,
        }

    rows = [row(f"{LOOP}, allocator as it is", n, default, 0.0)] if kept else []
    common = _loop(networks, snapshot, pixels(n, SAME_WEATHER)[1])()
    for name, (count, _) in work.items():
        found = answers[name] if answers[name].ndim == 1 else answers[name][0]
        expected = common if "common weather" in name else answers[LOOP]
        error = float(np.nanmax(np.abs(found - expected)))
        rows.append(row(name, count, seconds[name], error))
    rows.append({"variant": f"peak {peak / 1e9:.0f} GFLOP/s", "share of peak": 1.0})
    return rows + absent + _threads(networks, n, rounds)


def _loop(
    networks: Ensemble | RandomEnsemble, snapshot: np.ndarray, series: np.ndarray
) -> Callable[[], np.ndarray]:
    modules = Plain(networks.state_dicts(), "cpu").modules
    rows_first = torch.from_numpy(np.ascontiguousarray(snapshot.T))
    series_first = torch.from_numpy(np.ascontiguousarray(series.transpose(2, 0, 1)))

    def loop() -> np.ndarray:
        parts = []
        with torch.inference_mode():
            for i in range(0, len(rows_first), PLAIN_BATCH):
                batch = rows_first[i : i + PLAIN_BATCH], series_first[i : i + PLAIN_BATCH]
                parts.append(torch.stack([m(*batch) for m in modules]).mean(dim=0))
        return torch.cat(parts).numpy()

    return loop


def _ours(
    networks: Ensemble | RandomEnsemble, snapshot: np.ndarray, series: np.ndarray
) -> dict[str, Work]:
    n = snapshot.shape[1]
    kernel, torch_way = _engine(networks, "kernel"), _engine(networks, "torch")
    common = pixels(n, SAME_WEATHER)[1]
    two = np.stack([snapshot, snapshot[::-1]])
    valid = np.asarray(np.random.default_rng(1).random(n) >= MASKED, np.bool_)
    left = int(np.count_nonzero(valid))
    return {
        "torch": (n, lambda: torch_way.predict(snapshot, series)[0]),
        "torch, two dates": (2 * n, lambda: torch_way.predict_many(two, series)[0]),
        "kernel": (n, lambda: kernel.predict(snapshot, series)[0]),
        "kernel, common weather": (n, lambda: kernel.predict(snapshot, common)[0]),
        "kernel, 30 % masked": (
            left, lambda: kernel.predict_many(snapshot[None], series, valid=valid)[0]
        ),
        "kernel, two dates": (2 * n, lambda: kernel.predict_many(two, series)[0]),
        "kernel, two dates, common weather": (
            2 * n, lambda: kernel.predict_many(two, common)[0]
        ),
    }  # fmt: skip


def _engine(networks: Ensemble | RandomEnsemble, way: str, threads: int = 1) -> Engine:
    before = os.environ.get("XSOILSM_ENGINE")
    os.environ["XSOILSM_ENGINE"] = way
    try:
        return Engine(cast("Ensemble", networks), "cpu", threads)
    finally:
        del os.environ["XSOILSM_ENGINE"]
        if before is not None:
            os.environ["XSOILSM_ENGINE"] = before


def _threads(networks: Ensemble | RandomEnsemble, n: int, rounds: int) -> list[Row]:
    """Two threads against one, and two processes that share nothing: the machine's own limit.

    Other work on the machine shows in the wall clock alone.
    """
    n = CHUNK if n > PLAIN_BATCH else n
    snapshot, series = pixels(n)
    engines = {threads: _engine(networks, "kernel", threads) for threads in (1, 2)}
    wall: dict[str, list[float]] = {"1 thread": [], "2 threads": [], "2 processes": []}
    connection, other = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_beside, args=(other, networks, n), daemon=True)
    process.start()
    connection.recv()

    def timed(name: str) -> None:
        if name == "2 processes":
            connection.send(None)
        start = time.perf_counter()
        engines[2 if name == "2 threads" else 1].predict(snapshot, series)
        wall[name].append(time.perf_counter() - start)
        if name == "2 processes":  # each did as much as one thread alone
            wall[name][-1] = (wall[name][-1] + connection.recv()) / 4

    cpu = interleave({name: partial(timed, name) for name in wall}, 2 * rounds)
    connection.close()
    process.join()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    medians = {name: statistics.median(times) for name, times in wall.items()}
    return [
        {
            "variant": f"kernel, {name}, load {load:.1f}",
            "pixels": n,
            "values/CPU s": round(n / cpu[name]),
            "values/s, median": round(n / medians[name]),
            "times one thread": medians["1 thread"] / medians[name],
        }
        for name in wall
    ]


def _beside(connection: Connection, networks: Ensemble | RandomEnsemble, n: int) -> None:
    """Predict whenever asked, and say how long it took."""
    snapshot, series = pixels(n)
    engine = _engine(networks, "kernel", 1)
    engine.predict(snapshot, series)
    connection.send(0.0)
    with suppress(EOFError):
        while True:
            connection.recv()
            start = time.perf_counter()
            engine.predict(snapshot, series)
            connection.send(time.perf_counter() - start)
