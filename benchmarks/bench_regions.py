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
import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.killed_runs import ENDED, ROOT, Runs, say

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
    say(f"{name}: landscape in {time.perf_counter() - begin:.0f} s" if new else f"{name}: reused")
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
        calm = _undisturbed(folder, task, storage)
        storage.reset()
        storage.lifetime(LIFETIME)
        storage.weather(SHARE, FAULTS.values(), seed=seed)
        shutil.rmtree(folder / "disturbed", ignore_errors=True)
        rough = Runs(folder / "disturbed", task, storage)
        rough.to_the_end(_moments(kills, calm["tiles"], calm["wall s"], random.Random(seed)))
        disturbed = storage.requests()
    rows = [
        {"region": name, "map": "undisturbed"} | calm,
        {"region": name, "map": "disturbed"} | rough.row(disturbed),
    ]
    rows[1]["differs"] = "; ".join(
        [*rough.faults, *compare_folders(folder / "undisturbed", rough.out)]
    )
    return rows


def _undisturbed(folder: Path, task: dict[str, Any], storage: Any) -> dict[str, Any]:
    """Map without faults, or find the map of the last time whole; its row of the table."""
    kept = folder / "undisturbed.json"
    if kept.exists():
        known = json.loads(kept.read_text())
        if known["task"] == task and Runs(folder / "undisturbed", task, storage).once() == ENDED:
            row: dict[str, Any] = known["row"]
            return row
    kept.unlink(missing_ok=True)
    shutil.rmtree(folder / "undisturbed", ignore_errors=True)
    quiet = Runs(folder / "undisturbed", task, storage)
    storage.reset()
    storage.lifetime(LIFETIME)
    quiet.to_the_end()
    row = quiet.row(storage.requests())
    kept.write_text(json.dumps({"task": task, "row": row}))
    return row


def _moments(
    kills: int, tiles: int, seconds: float, dice: random.Random
) -> list[tuple[int, float]]:
    """Draw moments of kills: tiles that are whole, and seconds after that.

    Tiles tell how far the work is whatever the speed of the machine. A kill waits for no longer
    than a tile takes and comes when three or more are open, so that it never finds the job ended.
    """
    whole = sorted(dice.randrange(max(1, tiles - 2)) for _ in range(kills))
    return [(number, dice.uniform(0, seconds / tiles)) for number in whole]


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
    half = (km / 2 - 1) / 111.195
    wide = half / math.cos(math.radians(CENTRE[1]))
    return CENTRE[0] - wide, CENTRE[1] - half, CENTRE[0] + wide, CENTRE[1] + half


def _model(folder: Path) -> str:
    from benchmarks.networks import ensemble, random_networks
    from xsoilsm.ensemble import Ensemble

    if isinstance(ensemble(), Ensemble):
        return "DenseSM-E"
    if not (folder / "random").exists():
        random_networks(folder / "random")
    return str(folder / "random")


# --------------------------------------------------------------------------- comparison


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
