"""A mapping job in a process that is killed at random moments, and started again until it ends.

``python -m benchmarks.killed_runs OUT TASK`` is that process.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

ENDED, INCOMPLETE, NO_ANSWER = 0, 2, 3
"""Exit statuses of the process that maps."""

_STARTS = 200
_LOOK, _SUSPENDED = 0.1, 3.0
"""Seconds between looks at the processes, and from which on a pause is no waiting of theirs."""


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


@dataclass
class _Watched:
    """What the processes of one run took, as far as it was seen."""

    cpu: dict[int, float] = field(default_factory=dict)
    peak: dict[int, float] = field(default_factory=dict)
    together: float = 0.0

    @property
    def seconds(self) -> float:
        """Processor seconds of all processes."""
        return sum(list(self.cpu.values()))

    def look(self, session: int) -> None:
        """Look at all processes of a session."""
        total = 0.0
        ticks = os.sysconf("SC_CLK_TCK")
        for process in _members(session):
            try:
                stat = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                status = Path(f"/proc/{process}/status").read_text()
            except OSError:
                continue
            self.cpu[process] = (int(stat[11]) + int(stat[12])) / ticks
            found = dict(re.findall(r"(VmHWM|VmRSS):\s+(\d+)", status))
            self.peak[process] = int(found.get("VmHWM", 0)) / 1024
            total += int(found.get("VmRSS", 0)) / 1024
        self.together = max(self.together, total)


def _members(session: int) -> list[int]:
    """List the processes of a session that are not over."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                stat = (place / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(stat[3]) == session and stat[0] != "Z":
                found.append(int(place.name))
    return found


class Runs:
    """A job that is run, killed, and run again until it is complete.

    Attributes
    ----------
    faults : list of str
        What is wrong with how it went.
    elapsed : float
        Seconds of all runs, without those in which everything here was suspended.
    cpu : float
        Processor seconds of all runs.
    """

    def __init__(self, out: Path, task: dict[str, Any], storage: Any) -> None:
        self.out = out
        self.faults: list[str] = []
        self.elapsed = self.cpu = 0.0
        self._task = task
        self._peak = self._together = 0.0
        self._starts, self._kills, self._no_answer, self._incomplete = 0, 0, 0, 0
        self._summary: dict[str, Any] = {}
        from benchmarks.networks import bring_weights

        cache = out.with_name(f"cache-{out.name}")
        shutil.rmtree(cache, ignore_errors=True)
        self._environment = os.environ | {
            "PC_SDK_SAS_URL": storage.tokens_url,
            "XSOILSM_CACHE_DIR": str(cache),
            "PYTHONPATH": str(ROOT),
            "no_proxy": "127.0.0.1",
        }
        bring_weights(cache)

    def to_the_end(self, kills: Sequence[tuple[int, float]] = ()) -> None:
        """Run until the job is complete.

        Parameters
        ----------
        kills : sequence of (int, float)
            Moments to kill a run at, one after another: so many tiles are whole, and so many
            seconds have passed since.
        """
        before: dict[tuple[str, str], tuple[Any, ...]] = {}
        while True:
            status = self.once(*kills[self._kills : self._kills + 1])
            self._check(before)
            before = entered(self.out)
            say(f"{self.out.name}: run {self._starts} ended with {status}, {len(before)} done")
            if status == ENDED:
                return
            if status == -signal.SIGKILL:
                self._kills += 1
            elif status == NO_ANSWER:
                self._no_answer += 1
            elif status == INCOMPLETE:
                self._incomplete += 1
            else:
                msg = f"the process that maps ended with {status}; see {self._log}"
                raise RuntimeError(msg)
            if self._starts >= _STARTS:
                msg = f"the job is not complete after {_STARTS} runs; see {self._log}"
                raise RuntimeError(msg)

    @property
    def _log(self) -> Path:
        return self.out.with_name(f"{self.out.name}.log")

    def once(self, kill: tuple[int, float] | None = None) -> int:
        """Start the process that maps, and kill it with all its workers when its time is over.

        Parameters
        ----------
        kill : (int, float), optional
            Tiles that are whole, and seconds after that; by default never.

        Returns
        -------
        int
            Exit status.
        """
        self._starts += 1
        argv = [sys.executable, "-m", "benchmarks.killed_runs", str(self.out)]
        argv.append(json.dumps(self._task))
        seen = _Watched()
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                argv,
                env=self._environment,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
            told: list[str] = []
            reader = threading.Thread(target=self._listen, args=(process, told))
            reader.start()
            last, moment = time.monotonic(), math.inf
            try:
                while process.poll() is None and last < moment:
                    seen.look(process.pid)
                    if kill and moment == math.inf and self._whole() >= kill[0]:
                        moment = last + kill[1]
                    time.sleep(_LOOK)
                    now = time.monotonic()
                    self.elapsed += min(now - last, _SUSPENDED)
                    last = now
            finally:
                _kill(process.pid)
                status = process.wait()
                reader.join()
        self.cpu += seen.seconds
        self._peak = max(self._peak, *seen.peak.values(), 0.0)
        self._together = max(self._together, seen.together)
        if told:
            self._summary = json.loads(told[-1])
        return status

    def _whole(self) -> int:
        return sum(1 for _ in self.out.glob("tiles/*/*/soil_moisture.tif"))

    @staticmethod
    def _listen(process: subprocess.Popen[bytes], told: list[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            told += [text for line in lines if (text := line.decode()).startswith("{")]

    def _check(self, before: dict[tuple[str, str], tuple[Any, ...]]) -> None:
        """Look for tiles that were done and were made again."""
        after = entered(self.out)
        again = [key for key, known in before.items() if after.get(key) != known]
        if again:
            self.faults.append(f"run {self._starts} made {len(again)} tiles again: {again[:3]}")

    def row(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        """Row of the table."""
        kinds = Counter(str(r["fault"]) for r in requests if r["fault"] is not None)
        done = len(entered(self.out))
        cells = self._summary.get("cells", 0)
        size = {"9km": 9.0, "1km": 1.0, "500m": 0.5, "100m": 0.1}[self._task["res"]]
        return {
            "model": self._summary.get("model", ""),
            "tiles": done,
            "values": self._summary.get("values", 0),
            "requests": len(requests),
            "faults": kinds.total(),
            "asked again": _repeated(requests),
            "signatures refused": sum(r.get("refusal") == "expired" for r in requests),
            "kills": self._kills,
            "runs": self._starts,
            "ended early": self._no_answer + self._incomplete,
            "found whole": self._summary.get("adopted", 0),
            "wall s": self.elapsed,
            "cpu s": self.cpu,
            "peak MB": self._peak,
            "all processes MB": self._together,
            "read MB": sum(r["bytes"] for r in requests) / 1e6,
            "cells/s": cells / self.elapsed,
            "km2/s": cells * size**2 / self.elapsed,
            "by fault": dict(sorted(kinds.items())),
        }


def _kill(session: int) -> None:
    """Kill a process and its workers at one blow, and whoever was born meanwhile."""
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)
    while members := _members(session):
        for member in members:
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        time.sleep(0.02)


def _repeated(requests: list[dict[str, Any]]) -> int:
    """Failed requests after which the same file was asked for again."""
    seen: Counter[str] = Counter()
    count = 0
    for request in reversed(requests):
        if request["fault"] is not None and request["fault"] != "slow-start":
            count += seen[request["path"]] > 0
        seen[request["path"]] += 1
    return count


def entered(out: Path) -> dict[tuple[str, str], tuple[Any, ...]]:
    """Tiles that the ledger has as done: number of the entry, and files as a rewrite shows."""
    ledger = out / "ledger.sqlite"
    if not ledger.exists():
        return {}
    # For writing, so that what a killed process had not finished is rolled back.
    address = f"{ledger.resolve().as_uri()}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=60)) as connection:
        rows = connection.execute(
            "SELECT product, tile, entry FROM tiles WHERE state = 'done'"
        ).fetchall()
    found: dict[tuple[str, str], tuple[Any, ...]] = {}
    for product, tile, entry in rows:
        files = sorted((out / "tiles" / product / tile).glob("*.tif"))
        states = [path.stat() for path in files]
        found[product, tile] = (entry, *(n for s in states for n in (s.st_ino, s.st_mtime_ns)))
    return found


# --------------------------------------------------------------------------- the process that maps


def _map(out: Path, task: dict[str, Any]) -> int:
    """Make or continue a job, and its mosaics; the process that is killed."""
    import warnings

    import numpy as np
    import rasterio

    from xsoilsm import open_catalog
    from xsoilsm.catalog import CatalogError
    from xsoilsm.mapping import make_job, run_job
    from xsoilsm.mapping.publish import publish

    warnings.simplefilter("ignore")
    catalog = open_catalog("planetary-computer", endpoints=task["endpoints"])
    try:
        job = make_job(
            tuple(task["region"]),
            task["time"],
            out,
            res=task["res"],
            catalog=catalog,
            model=task["model"],
            tile_size=task["tile"],
        )
    except CatalogError as error:
        print(error, file=sys.stderr, flush=True)
        return NO_ANSWER
    summary = run_job(job)
    print(summary, file=sys.stderr, flush=True)
    if not summary.is_complete:
        return INCOMPLETE
    publish(job)
    values = 0
    for path in sorted((out / "mosaics").rglob("soil_moisture_[0-9]*.tif")):
        with rasterio.open(path) as file:
            for _, window in file.block_windows(1):
                values += int(np.isfinite(file.read(1, window=window)).sum())
    with closing(sqlite3.connect(job.ledger)) as ledger:
        adopted = ledger.execute("SELECT count(*) FROM tiles WHERE attempts = 0").fetchone()[0]
    height, width = job.configuration.geobox.shape
    told = {
        "model": job.configuration.model,
        "values": values,
        "adopted": adopted,
        "cells": height * width * len(job.acquisitions),
    }
    print(json.dumps(told), flush=True)
    return ENDED


if __name__ == "__main__":
    sys.exit(_map(Path(sys.argv[1]), json.loads(sys.argv[2])))
