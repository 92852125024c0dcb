"""The way on a GPU: rates with transfers, by precision, batch and number of calling threads.

Numbers start in the host's memory and end there. Without a GPU nothing is timed; the errors of
the precisions are then those that the CPU finds by imitating tensor cores, at their worst, and
say so. Errors are the largest differences of mean and spread from the networks in double
precision; where the published weights are at hand (cache or ``XSOILSM_WEIGHTS_DIR``) they are
theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.networks import RandomEnsemble, ensemble, pixels
from xsoilsm import speed
from xsoilsm.engine import PRECISIONS, has_gpu
from xsoilsm.folding import fold
from xsoilsm.grouped import Grouped
from xsoilsm.plain import Plain
from xsoilsm.precision import tensor_cores
from xsoilsm.streams import Streamed, bytes_per_pixel

if TYPE_CHECKING:
    from xsoilsm.ensemble import Ensemble

PIXELS = 1 << 20
COMPARED = 512
FULL_COMPARED = 8192
BATCHES = (2048, 4096, 8192, 16384, 32768, 65536)
BLOCK = 16384
"""Pixels of a call inside Dask."""

Row = dict[str, object]


def run(
    full: bool,
    n: int | None = None,
    rounds: int | None = None,
    networks: Ensemble | RandomEnsemble | None = None,
    device: str | None = None,
) -> list[Row]:
    networks = networks or ensemble()
    device = device or ("cuda" if has_gpu() else "cpu")
    rows = errors(networks, device, FULL_COMPARED if full else COMPARED)
    if device == "cpu" and n is None:
        return [*rows, {"variant": "rates", "note": speed.NO_GPU}]
    return rows + rates(networks, device, n or (8 * PIXELS if full else PIXELS), rounds or 5)


def errors(networks: Ensemble | RandomEnsemble, device: str, n: int) -> list[Row]:
    """Errors of each precision, on random pixels."""
    states = networks.state_dicts()
    members = [fold(state) for state in states]
    snapshot, series = pixels(n)
    true = _in_double(networks, snapshot, series)
    rows: list[Row] = []
    for precision in PRECISIONS:
        runner = Streamed(Grouped(members, device, precision))
        found = runner.predict_many(snapshot[None], series, np.array([45]))
        each = [np.abs(f[0] - t) for f, t in zip(found, true, strict=True)]
        rows.append(
            {
                "variant": f"error, {precision}",
                "device": _name(device) if device != "cpu" else "imitated on the CPU",
                "weights": networks.name,
                "pixels": n,
                "mean, worst": float(each[0].max()),
                "mean, RMS": float(np.sqrt((each[0] ** 2).mean())),
                "spread, worst": float(each[1].max()),
            }
        )
    return rows


def rates(networks: Ensemble | RandomEnsemble, device: str, n: int, rounds: int) -> list[Row]:
    """Rates of calls over n pixels, each the median of some rounds."""
    members = [fold(state) for state in networks.state_dicts()]
    operations = sum(speed.operations(member.depth, member.width) for member in members)
    snapshot, series = pixels(n)
    two = np.stack([snapshot, snapshot[::-1]])
    rows: list[Row] = []

    def row(variant: str, values: int, seconds: float, peak: float, **more: object) -> None:
        rows.append(
            {
                "variant": variant,
                "device": _name(device),
                "weights": networks.name,
                "pixels": n,
                "million values/s": values / seconds / 1e6,
                "TFLOP/s": values * operations / seconds / 1e12,
                "share of peak": values * operations / seconds / peak,
                **more,
            }
        )

    def runner(
        precision: str = "float32",
        *,
        batch: int | None = None,
        graphs: bool = True,
        fused: bool = True,
    ) -> Streamed:
        networks = Grouped(members, device, precision, fused=fused)
        return Streamed(networks, batch, graphs=graphs)

    def timed(line: Streamed, snapshots: np.ndarray) -> float:
        ends = np.full(snapshots.shape[0], 45)
        return _timed(lambda: line.predict_many(snapshots, series, ends), rounds)

    peak = np.nan
    for precision in PRECISIONS:
        peak = speed.gpu_peak(device, precision) if device != "cpu" else np.nan
        line = runner(precision)
        row(precision, n, timed(line, two[:1]), peak, batch=line.batch)
        row(f"{precision}, two dates", 2 * n, timed(line, two), peak, batch=line.batch)
        batch = line.batch or 0
        row(
            f"{precision}, numbers on the device",
            batch,
            _resident(line.networks, batch, rounds),
            peak,
            batch=batch,
        )
        del line
    peak = speed.gpu_peak(device) if device != "cpu" else np.nan
    line = runner(graphs=False)
    row("float32, no graphs", n, timed(line, two[:1]), peak, batch=line.batch)
    line = runner(fused=False)
    row("float32, products alone", n, timed(line, two[:1]), peak, batch=line.batch)
    for batch in BATCHES if device != "cpu" else (64, 128):
        line = runner(batch=batch)
        memory = batch * bytes_per_pixel(line.networks) / 1e9
        seconds = timed(line, two[:1])
        row(f"float32, batches of {batch}", n, seconds, peak, batch=batch, GB=memory)
    shared = runner()
    parts = [slice(i, i + BLOCK) for i in range(0, n, BLOCK)]

    def block(part: slice) -> None:
        shared.predict_many(two[:1, :, part], series[..., part], np.array([45]))

    for threads in (1, 2, 4, 8):
        with ThreadPoolExecutor(threads) as pool:
            seconds = _timed(partial(_all, pool, block, parts), rounds)
        row(f"float32, calls of {BLOCK} by {threads} threads", n, seconds, peak)
    return rows


def _all(pool: ThreadPoolExecutor, block: Callable[[slice], None], parts: Sequence[slice]) -> None:
    list(pool.map(block, parts))


def _timed(call: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call whose results are on the host, after one that is not counted."""
    call()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def _resident(networks: Grouped, batch: int, rounds: int) -> float:
    """Seconds of one batch without transfers, operations one by one."""
    on_gpu = networks.device.type == "cuda"
    with torch.inference_mode(), tensor_cores(networks.precision.tf32):
        work = networks.work(batch)
        work.series.uniform_()
        work.snapshot.uniform_()

        def once() -> None:
            for _ in range(10 if on_gpu else 1):
                networks.convolve(work)
                networks.dense(work)
            if on_gpu:
                torch.cuda.synchronize(networks.device)

        return _timed(once, rounds) / (10 if on_gpu else 1)


def _in_double(
    networks: Ensemble | RandomEnsemble, snapshot: np.ndarray, series: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    modules = [module.double() for module in Plain(networks.state_dicts(), "cpu").modules]
    inputs = (
        torch.from_numpy(snapshot.T.astype(np.float64)),
        torch.from_numpy(series.transpose(2, 0, 1).astype(np.float64)),
    )
    with torch.inference_mode():
        each = torch.stack([module(*inputs) for module in modules]).numpy()
    return each.mean(axis=0), each.std(axis=0)


def _name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device != "cpu" else "cpu"
