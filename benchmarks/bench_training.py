"""Training all members at once against one after another, on the same processors and in one run.

An epoch of 936 samples (0.5 % of the paper's) in batches of 128. The modules are trained as
PyTorch's documentation shows it, with one thread of torch: with more, they gain little and collapse
where the processors are shared. CPU seconds compare the work, seconds by the clock the waiting;
the latter depend on what else the machine does, so that the shortest round counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.timing import keep_memory
from xsoilsm.network import DenseSM
from xsoilsm.timemajor import one_torch_thread
from xsoilsm.training import DEFAULT_SHAPES, Recipe, Samples
from xsoilsm.training.loop import _Training
from xsoilsm.training.start import random_states

SHAPES = list(DEFAULT_SHAPES)
SAMPLES, BATCH, RATE = 936, 128, 1e-5
EPOCHS = 1000


def _samples() -> Samples:
    rng = np.random.default_rng(0)
    arrays = rng.random((SAMPLES, 18), np.float32), rng.random((SAMPLES, 3, 46), np.float32)
    labels = rng.uniform(0.05, 0.45, SAMPLES).astype(np.float32)
    return Samples.of_arrays(arrays, labels, contract="paper")


def _one_after_another(data: Samples, fused: bool, device: str) -> Callable[[int], None]:
    networks = [DenseSM(*shape).to(device).train() for shape in SHAPES]
    for network, state in zip(networks, random_states(SHAPES, 0), strict=True):
        network.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    optimisers = [torch.optim.Adam(n.parameters(), lr=RATE, fused=fused) for n in networks]
    arrays = (data.snapshot, data.series, data.labels)
    snapshot, series, labels = (torch.tensor(a, device=device) for a in arrays)

    def epoch(number: int) -> None:
        order = np.random.default_rng([0, number]).permutation(SAMPLES)
        for network, optimiser in zip(networks, optimisers, strict=True):
            for start in range(0, SAMPLES, BATCH):
                index = torch.from_numpy(order[start : start + BATCH]).to(device)
                predictions = network(snapshot[index], series[index])
                loss = torch.sqrt(torch.mean((predictions - labels[index]) ** 2))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

    return epoch


def _stacked(data: Samples, threads: int, device: str) -> tuple[_Training, Callable[[int], None]]:
    recipe = Recipe.transfer(epochs=EPOCHS, batch=BATCH, learning_rate=RATE)
    states = random_states(SHAPES, 0)
    training = _Training(data, SHAPES, recipe, states, None, None, device, threads)
    return training, lambda number: training.run_epoch(number, 0.0)


def run(full: bool) -> list[dict[str, object]]:
    keep_memory()
    data = _samples()
    gpu = torch.cuda.is_available()
    contestants: dict[str, Callable[[int], None]] = {}
    open_fleets = []
    for device in ("cpu", "cuda") if gpu else ("cpu",):
        contestants[f"{device}: one after another"] = _one_after_another(data, False, device)
        contestants[f"{device}: one after another, fused Adam"] = _one_after_another(
            data, True, device
        )
        for threads in (1, 2) if device == "cpu" else (1,):
            training, epoch = _stacked(data, threads, device)
            open_fleets.append(training.fleet.__enter__())
            contestants[f"{device}: all at once, {threads} thread{'s'[: threads - 1]}"] = epoch
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    rounds = 9 if full else 4
    with one_torch_thread(torch.device("cpu")):
        for number in range(rounds + 1):
            for name, epoch in contestants.items():
                before = time.process_time(), time.perf_counter()
                epoch(number)
                if gpu:
                    torch.cuda.synchronize()
                if number:  # the first round warms up
                    cpu[name].append(time.process_time() - before[0])
                    wall[name].append(time.perf_counter() - before[1])
    for fleet in open_fleets:
        fleet.__exit__()
    rows = []
    for name in contestants:
        plain = f"{name.split(':')[0]}: one after another"
        rows.append(
            {
                "variant": name,
                "CPU s/epoch": statistics.median(cpu[name]),
                "s/epoch": min(wall[name]),
                f"min for {EPOCHS} epochs": min(wall[name]) * EPOCHS / 60,
                "less CPU": statistics.median(cpu[plain]) / statistics.median(cpu[name]),
                "faster": min(wall[plain]) / min(wall[name]),
            }
        )
    return rows
