"""The kernel's first call, and its rate with the vectors of older processors.

Each row is a process of its own with an empty cache of compiled code, run twice. Rates compare
with the first row only; times are CPU seconds from the start of the import to the first result,
those of importing NumPy left out.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

PROCESSORS = {
    "this processor": {},
    "AVX2": {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+64bit,+avx,+avx2,+bmi,+bmi2,+cmov,+f16c,+fma,+popcnt,+sse4.2",
    },
    "SSE2": {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+64bit,+sse,+sse2"},
}

CHILD = """
import json, sys, time
import numpy as np
from benchmarks.networks import RandomEnsemble, pixels
start = time.process_time()
from xsoilsm.engine import Engine
engine = Engine(RandomEnsemble(), "cpu", 1)
snapshot, series = pixels({n})
engine.predict(snapshot[:, :1], series[..., :1])
first = time.process_time() - start
seconds = []
for _ in range({rounds}):
    start = time.process_time()
    engine.predict(snapshot, series)
    seconds.append(time.process_time() - start)
from xsoilsm._layers import MACHINE
rate = {n} / np.median(seconds)
print(json.dumps([first, rate, MACHINE.lanes, engine.way, "torch" in sys.modules]))
"""


def run(full: bool, n: int | None = None, rounds: int | None = None) -> list[dict[str, object]]:
    n, rounds = n or (19200 if full else 4800), rounds or 5
    rows: list[dict[str, object]] = []
    x86 = platform.machine() in ("x86_64", "AMD64")
    for name, environment in PROCESSORS.items():
        if environment and not x86:
            continue
        with tempfile.TemporaryDirectory() as cache:
            cold, *_ = _child(n, 1, environment, cache)
            cached, rate, lanes, way, torch = _child(n, rounds, environment, cache)
        rows.append(
            {
                "code for": name,
                "lanes": lanes,
                "way": way,
                "pixels/CPU s": round(rate),
                "ratio": 1.0,
                "first call, cold, s": cold,
                "first call, cached, s": cached,
                "needs torch": torch,
            }
        )
        rows[-1]["ratio"] = rate / float(str(rows[0]["pixels/CPU s"]))
    return rows


def _child(
    n: int, rounds: int, environment: dict[str, str], cache: str
) -> tuple[float, float, int, str, bool]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(n=n, rounds=rounds)],
        env={**os.environ, **environment, "NUMBA_CACHE_DIR": cache},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    first, rate, lanes, way, torch = json.loads(done.stdout)
    return first, rate, lanes, way, torch
