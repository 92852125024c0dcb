"""Regions over a failing service: simulated, mapped undisturbed, mapped with faults and kills.

The landscape is simulated once. A STAC API on PostgreSQL and a blob storage with signatures that
expire serve it on this machine. The region is mapped first undisturbed; then a share of all
requests fails, and the process that maps is killed at random moments together with its workers and
started again until it ends. Both maps must be complete and the same, byte for byte, and no tile
that was entered as done may be made again.

``python -m benchmarks regions --size 300km --work FOLDER`` keeps landscape and maps in a folder.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CENTRE = (-5.4, 41.3)
TIME = "2020-04"
PASSES = 2

SIZES: dict[str, dict[str, Any]] = {
    "8km": {"km": 8, "spacing": 200, "land": "100m", "res": "1km", "tile": 4, "kills": 3},
    "40km": {"km": 40, "spacing": 50, "land": "100m", "res": "1km", "tile": 16, "kills": 6},
    "300km": {"km": 300, "spacing": 50, "land": "500m", "res": "1km", "tile": 64, "kills": 8},
    "60km": {"km": 60, "spacing": 10, "land": "100m", "res": "100m", "tile": 128, "kills": 12},
}
"""Parameters of `measure`."""

FAULTS: dict[str, dict[str, Any]] = {
    "500": {"kind": 500},
    "503": {"kind": 503},
    "429": {"kind": 429, "retry_after": 1},
    "expired": {"kind": 403},
    "reset": {"kind": "reset"},
    "reset midway": {"kind": "reset-midway"},
    "truncated": {"kind": "half"},
    "slow": {"kind": "slow-start", "pause": 2.0},
}
"""What befalls a request, each as often as any other."""

SHARE = 0.05
LIFETIME = 120.0
"""Seconds that signatures hold; clients renew them when they are in their last minute."""

ENDED, INCOMPLETE, NO_ANSWER = 0, 2, 3
"""Exit statuses of the process that maps."""

_STARTS = 200
_LOOK, _SUSPENDED = 0.1, 3.0
"""Seconds between looks at the processes, and from which on a pause is no waiting of theirs."""


def run(full: bool, size: str = "", work: str = "", kills: int = -1) -> list[dict[str, object]]:
    """Rows of the table: of each size the undisturbed and the disturbed map."""
    names = [size] if size else ["300km", "60km"] if full else ["8km"]
    rows: list[dict[str, object]] = []
    with ExitStack() as stack:
        for name in names:
            if name not in SIZES:
                msg = f"size {name!r} is unknown; expected one of {', '.join(SIZES)}"
                raise SystemExit(msg)
            scratch = tempfile.TemporaryDirectory(prefix="bench-regions-")
            folder = Path(work) if work else Path(stack.enter_context(scratch))
            chosen = SIZES[name] | ({"kills": kills} if kills >= 0 else {})
            rows += measure(folder / name, name, **chosen)
    return rows


def measure(
    folder: Path,
    name: str,
    *,
    km: float,
    spacing: float,
    land: str,
    res: str,
    tile: int,
    kills: int,
    seed: int = 0,
    model: str = "",
) -> list[dict[str, object]]:
    """Simulate a region, map it twice and compare; two rows.

    Parameters
    ----------
    folder : Path
        Gets ``landscape``, ``undisturbed`` and ``disturbed``. What is there is used again.
    name : str
    km, spacing : float
        Side of the region and of a radar pixel, in km and m.
    land : str
        Grid on which the land is simulated.
    res : str
        Grid of the map.
    tile : int
        Cells along the side of a tile.
    kills : int
    seed : int, default 0
        Of faults and kills; how they meet depends on the machine's speed, too.
    model : str
        Ensemble; by default the published one, or two random networks where it is not at hand.
    """
    services = _services()
    reason = services["stac_api"].missing()
    if reason:
        return [{"region": name, "left out": reason}]
    from xsoilsm.simulate import simulate_landscape

    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    landscape = folder / "landscape"
    new = not landscape.exists()
    simulate_landscape(
        landscape,
        centre=CENTRE,
        size_km=km,
        spacing=spacing,
        acquisitions=PASSES,
        seed=seed,
        land=land,
    )
    _say(f"{name}: landscape in {time.perf_counter() - begin:.0f} s" if new else f"{name}: reused")
    with ExitStack() as stack:
        storage = stack.enter_context(_serve(folder, landscape, services))
        endpoints = services["provider"].endpoints(storage.url, storage.url)
        task = {
            "region": list(_inside(km)),
            "time": TIME,
            "res": res,
            "tile": tile,
            "model": model or _model(folder),
            "endpoints": endpoints,
        }
        storage.lifetime(LIFETIME)
        quiet, calm = _undisturbed(folder, task, storage)
        storage.reset()
        storage.lifetime(LIFETIME)
        storage.weather(SHARE, FAULTS.values(), seed=seed)
        shutil.rmtree(folder / "disturbed", ignore_errors=True)
        rough = _Runs(folder / "disturbed", task, storage)
        rough.to_the_end(kills, quiet, random.Random(seed))
        disturbed = storage.requests()
    rows = [
        {"region": name, "map": "undisturbed"} | calm,
        {"region": name, "map": "disturbed"} | rough.row(disturbed),
    ]
    rows[1]["differs"] = "; ".join([*rough.faults, *compare(quiet, rough)])
    return rows


def _undisturbed(
    folder: Path, task: dict[str, Any], storage: Any
) -> tuple[_Runs, dict[str, object]]:
    """Map without faults, or take the map of the last time; and its row of the table."""
    kept = folder / "undisturbed.json"
    if kept.exists():
        quiet = _Runs(folder / "undisturbed", task, storage)
        known = json.loads(kept.read_text())
        if known["task"] == task and quiet.once() == ENDED:
            quiet.cpu, quiet.startup = known["cpu"], known["startup"]
            return quiet, known["row"]
    kept.unlink(missing_ok=True)
    shutil.rmtree(folder / "undisturbed", ignore_errors=True)
    quiet = _Runs(folder / "undisturbed", task, storage)
    storage.reset()
    storage.lifetime(LIFETIME)
    quiet.to_the_end()
    row = quiet.row(storage.requests())
    known = {"task": task, "cpu": quiet.cpu, "startup": quiet.startup, "row": row}
    kept.write_text(json.dumps(known))
    return quiet, row


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _services() -> dict[str, Any]:
    """Import the services of the tests, which lie in the checkout and in no package."""
    tests = str(ROOT / "tests")
    if tests not in sys.path:
        sys.path.insert(0, tests)
    from services import provider, stac_api
    from services.storage import blob_storage

    return {"provider": provider, "stac_api": stac_api, "blob_storage": blob_storage}


@contextmanager
def _serve(folder: Path, landscape: Path, services: dict[str, Any]) -> Iterator[Any]:
    """Serve a landscape in the forms of a provider, on the port of the last time if it is free.

    Addresses are part of a job's configuration.
    """
    provider = services["provider"]
    shared = ROOT.parent / "shared"
    models = shared if (shared / "data" / "stac").is_dir() else None
    shutil.rmtree(folder / "soil", ignore_errors=True)
    soil = provider.lay_out_soil(landscape, folder / "soil")
    last = folder / "port"
    port = int(last.read_text()) if last.exists() else 0
    with (
        services["stac_api"].stac_api(
            folder, provider.collections(models, landscape), provider.items(models, landscape)
        ) as api,
        services["blob_storage"](
            folder,
            provider.containers(landscape),
            {"soilgrids": soil},
            upstream=api,
            port=port,
        ) as storage,
    ):
        last.write_text(storage.url.rpartition(":")[2])
        yield storage


def _inside(km: float) -> tuple[float, float, float, float]:
    """Box of the landscape without its rim, in degrees."""
    import math

    half = (km / 2 - 1) / 111.195
    wide = half / math.cos(math.radians(CENTRE[1]))
    return CENTRE[0] - wide, CENTRE[1] - half, CENTRE[0] + wide, CENTRE[1] + half


def _model(folder: Path) -> str:
    from benchmarks import bench_mapping
    from benchmarks.networks import ensemble
    from xsoilsm.ensemble import Ensemble

    if isinstance(ensemble(), Ensemble):
        return "DenseSM-E"
    if not (folder / "random").exists():
        bench_mapping._random(folder / "random")
    return str(folder / "random")


# --------------------------------------------------------------------------- runs


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


class _Runs:
    """A job that is run, killed, and run again until it is complete.

    Attributes
    ----------
    faults : list of str
        What is wrong with how it went.
    elapsed : float
        Seconds of all runs, without those in which everything here was suspended.
    cpu, startup : float
        Processor seconds of all runs, and of the first until it wrote something.
    """

    def __init__(self, out: Path, task: dict[str, Any], storage: Any) -> None:
        self.out = out
        self.faults: list[str] = []
        self.elapsed = self.cpu = self.startup = 0.0
        self._task = task
        self._peak = self._together = 0.0
        self._starts, self._kills, self._no_answer, self._incomplete = 0, 0, 0, 0
        self._adopted, self._summary = 0, {}
        cache = out.with_name(f"cache-{out.name}")
        shutil.rmtree(cache, ignore_errors=True)
        self._environment = os.environ | {
            "PC_SDK_SAS_URL": storage.tokens_url,
            "XSOILSM_CACHE_DIR": str(cache),
            "PYTHONPATH": str(ROOT),
            "no_proxy": "127.0.0.1",
        }
        weights = _weights()
        if weights:
            self._environment["XSOILSM_WEIGHTS_DIR"] = weights

    def to_the_end(
        self, kills: int = 0, like: _Runs | None = None, dice: random.Random | None = None
    ) -> None:
        """Run until the job is complete.

        Kills are spread over the work of a run like another one, in processor time: how fast the
        machine is at the moment does not matter.
        """
        gaps: list[float] = []
        if like is not None and dice is not None:
            places = sorted(dice.uniform(0, like.cpu - like.startup) for _ in range(kills))
            gaps = [b - a for a, b in itertools.pairwise([0.0, *places])]
        before: dict[tuple[str, str], tuple[Any, ...]] = {}
        while True:
            limit = late = 0.0
            if dice is not None and like is not None and self._kills < kills:
                limit = like.startup * dice.uniform(0.3, 1) + gaps[self._kills]
                late = dice.uniform(0, 2)  # s; most requests are waited for without a processor
            status = self.once(limit, late)
            self._check(before)
            before = _entered(self.out)
            _say(f"{self.out.name}: run {self._starts} ended with {status}, {len(before)} done")
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

    def once(self, limit: float = 0.0, late: float = 0.0) -> int:
        """Start the process that maps, and kill it with all its workers when its time is over.

        Parameters
        ----------
        limit : float
            Processor seconds; 0 for ever.
        late : float
            Seconds after that.

        Returns
        -------
        int
            Exit status.
        """
        self._starts += 1
        argv = [sys.executable, "-m", "benchmarks.bench_regions", str(self.out)]
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
            last = time.monotonic()
            try:
                while process.poll() is None and (not limit or seen.seconds < limit):
                    seen.look(process.pid)
                    if not self.startup and (self.out / "tiles").exists():
                        self.startup = seen.seconds
                    time.sleep(_LOOK)
                    now = time.monotonic()
                    self.elapsed += min(now - last, _SUSPENDED)
                    last = now
                if process.poll() is None:
                    time.sleep(late)
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

    @staticmethod
    def _listen(process: subprocess.Popen[bytes], told: list[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            told += [text for line in lines if (text := line.decode()).startswith("{")]

    def _check(self, before: dict[tuple[str, str], tuple[Any, ...]]) -> None:
        """Look for tiles that were done and were made again."""
        after = _entered(self.out)
        again = [key for key, known in before.items() if after.get(key) != known]
        if again:
            self.faults.append(f"run {self._starts} made {len(again)} tiles again: {again[:3]}")

    def row(self, requests: list[dict[str, Any]]) -> dict[str, object]:
        """Row of the table."""
        kinds = Counter(str(r["fault"]) for r in requests if r["fault"] is not None)
        done = len(_entered(self.out))
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


def _weights() -> str:
    """Folder of the published weights, whatever the cache of a run."""
    if "XSOILSM_WEIGHTS_DIR" in os.environ:
        return os.environ["XSOILSM_WEIGHTS_DIR"]
    own = Path(os.environ.get("XSOILSM_CACHE_DIR") or Path.home() / ".cache" / "xsoilsm")
    return str(own / "weights") if (own / "weights").is_dir() else ""


def _repeated(requests: list[dict[str, Any]]) -> int:
    """Failed requests after which the same file was asked for again."""
    seen: Counter[str] = Counter()
    count = 0
    for request in reversed(requests):
        if request["fault"] is not None and request["fault"] != "slow-start":
            count += seen[request["path"]] > 0
        seen[request["path"]] += 1
    return count


def _entered(out: Path) -> dict[tuple[str, str], tuple[Any, ...]]:
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


# --------------------------------------------------------------------------- comparison


def compare(quiet: _Runs, rough: _Runs) -> list[str]:
    """Say how two maps differ; nothing where they are the same."""
    return compare_folders(quiet.out, rough.out)


def compare_folders(one: Path, other: Path) -> list[str]:
    """Say how the files of two jobs differ: inputs, tiles, mosaics, and the STAC catalog."""
    left, right = _files(one), _files(other)
    faults = []
    for text, names in (
        ("missing", left.keys() - right.keys()),
        ("too many", right.keys() - left.keys()),
        ("other bytes", {n for n in left.keys() & right.keys() if left[n] != right[n]}),
    ):
        if names:
            faults.append(f"{len(names)} files {text}: {', '.join(sorted(names)[:3])}")
    if not any(name.startswith("mosaics/") for name in left):
        faults.append(f"no mosaics in {one}")
    return faults


def _files(out: Path) -> dict[str, str]:
    """SHA-256 of everything in the folder of a job but the ledger, which has times."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and not path.name.startswith(("ledger.sqlite", ".lock")):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
            found[str(path.relative_to(out))] = digest.hexdigest()
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
