"""A small virtual landscape, a small ensemble and small jobs over them.

As a program it is where jobs are killed: ``python mapping_scene.py JOB`` imports everything, and
for each line of standard input with a number of seconds it forks a process that runs the job,
kills it after that time, and says what happened.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

BBOX = (-5.43, 41.29, -5.37, 41.30)
"""Region of 7 x 2 cells of 1 km; two tiles."""

TILES = 4
"""Tiles of products that the job has: two tiles of two acquisitions."""

TIME = "2020-04"
TILE = 4


@lru_cache
def settings() -> dict[str, str]:
    """Make landscape and ensemble, once a process; settings of processes that use them."""
    from xsoilsm.simulate import simulate_landscape

    folder = Path(tempfile.mkdtemp(prefix="xsoilsm-scene-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    landscape = folder / "cache" / "landscapes" / "demo"
    simulate_landscape(landscape, size_km=8, acquisitions=2, spacing=200)
    save_small_ensemble(folder / "small")
    return {"XSOILSM_CACHE_DIR": str(folder / "cache"), "XSOILSM_TEST_MODEL": str(folder / "small")}


@lru_cache
def undisturbed() -> tuple[Any, dict[str, bytes]]:
    """Job that was run in one go, once a process, and its files. Copy it before you change it."""
    from xsoilsm.mapping import run_job

    job = begin(Path(settings()["XSOILSM_CACHE_DIR"]).parent / "undisturbed")
    assert run_job(job, workers=2).is_complete
    files = files_of(job.folder)
    assert len(files) == 3 * TILES
    return job, files


def save_small_ensemble(folder: Path, seed: int = 0) -> None:
    """Two small networks with random parameters, for the inputs of the published ones."""
    import torch

    from xsoilsm.card import EnsembleCard
    from xsoilsm.ensemble import save_ensemble
    from xsoilsm.network import DenseSM

    card = EnsembleCard.model_validate(
        {
            "schema_version": 1,
            "name": "small",
            "family": "small",
            "resolution": "1km",
            "contract": "published-coarse",
            "simulated": True,
            "members": [
                {"depth": 1, "width": 8, "file": "1_8.safetensors"},
                {"depth": 2, "width": 8, "file": "2_8.safetensors"},
            ],
            "licence": {"spdx": "Apache-2.0", "statement": "Random numbers."},
            "citation": {"text": "None."},
            "training": {"kind": "transfer", "settings": {}},
        }
    )
    torch.manual_seed(seed)
    states = []
    for member in card.members:
        state = DenseSM(member.depth, member.width).state_dict()
        last = list(state)[-1]
        state[last] = torch.full_like(state[last], 0.25)  # most results lie in the valid range
        states.append(state)
    save_ensemble(card, states, folder)


def begin(out: Path, **changes: Any) -> Any:
    """Make a job, or find it."""
    from xsoilsm.mapping import make_job

    options = {
        "region": BBOX,
        "time": TIME,
        "catalog": "demo",
        "model": os.environ["XSOILSM_TEST_MODEL"],
        "tile_size": TILE,
    }
    return make_job(out=out, **(options | changes))


def degrees_of(tile: Any) -> tuple[float, float, float, float]:
    """Bounds of a tile: west, south, east, north."""
    from xsoilsm import grid

    box = tile.geobox.boundingbox
    (west, east), (south, north) = grid.xy_to_lonlat([box.left, box.right], [box.bottom, box.top])
    return west, south, east, north


def files_of(out: Path) -> dict[str, bytes]:
    """Everything that a job has made, by name."""
    return {
        str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("tiles/*/*/*"))
    }


def places_of(out: Path) -> dict[tuple[str, str], tuple[int, ...]]:
    """Files of the tiles that are whole, by product and tile, as numbers that a rewrite changes."""
    found = {}
    for folder in out.glob("tiles/*/*"):
        states = [path.stat() for path in sorted(folder.glob("*.tif"))]
        if len(states) >= 3:
            key = folder.parent.name, folder.name
            found[key] = tuple(n for s in states for n in (s.st_ino, s.st_mtime_ns))
    return found


class Killer:
    """Forks processes that run a job, and kills them."""

    def __init__(self, out: Path) -> None:
        import subprocess

        self._program = subprocess.Popen(
            [sys.executable, __file__, str(out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self._program.stdout is not None
        return self._program.stdout.readline().strip()

    def run(self, seconds: float = 300.0) -> tuple[int, float]:
        """Run the job for at most some seconds; status (-9 where killed) and duration."""
        assert self._program.stdin is not None
        self._program.stdin.write(f"{seconds}\n")
        self._program.stdin.flush()
        status, duration = self._answer().split()
        return int(status), float(duration)

    def close(self) -> None:
        assert self._program.stdin is not None
        self._program.communicate(timeout=60)


def _serve(out: Path) -> Iterator[str]:
    """Run the job in forked processes and kill them."""
    import numba  # noqa: F401
    import zarr  # noqa: F401

    import xsoilsm.engine  # noqa: F401
    from xsoilsm.mapping import run_job

    yield "ready"
    for line in sys.stdin:
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            status = 3
            try:
                status = 0 if run_job(out, workers=2).is_complete else 2
            finally:
                os._exit(status)
        limit = start + float(line)
        done = 0
        while not done and time.monotonic() < limit:
            done, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.005)
        if not done:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        yield f"{os.waitstatus_to_exitcode(status)} {time.monotonic() - start:.3f}"


if __name__ == "__main__":
    for answer in _serve(Path(sys.argv[1])):
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
