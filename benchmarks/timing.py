"""Interleaved timing: the machine's speed drifts, so contestants take turns within one run."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping


def interleave(
    contestants: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1
) -> dict[str, float]:
    """Median CPU seconds (all threads of the process) of each contestant.

    Every round runs each contestant once, so that a slow spell hits all of them.
    """
    for _ in range(warmup):
        for contestant in contestants.values():
            contestant()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            start = time.process_time()
            contestant()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def keep_memory() -> bool:
    """Make the allocator keep what is freed, for the rest of the process; False where it cannot.

    By default glibc gives large arrays back and fetches them again, page by page, which costs a
    loop over modules up to half of its time and hardly concerns code that reuses its buffers.
    """
    trim_threshold, mmap_threshold = -1, -3  # of mallopt(3)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(mmap_threshold, 1 << 25) and mallopt(trim_threshold, (1 << 31) - 1))
