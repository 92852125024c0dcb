"""Mapping jobs: memory against area, tasks in flight, overhead, one worker against two.

Each job runs in a process of its own, over a virtual landscape that is made once. The networks
are the published ones where they are at hand, else two small ones with random parameters.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

CENTRE = (-5.4, 41.3)
TIME = "2020-04"


SMALL, USUAL = 16, 64
"""Cells along the side of small tiles, and of those that jobs have by default at 1 km."""


def run(full: bool) -> list[dict[str, object]]:
    """Rows of the table."""
    small, spacing, passes = (SMALL, 50.0, 3) if full else (5, 100.0, 2)
    usual = USUAL if full else SMALL
    with tempfile.TemporaryDirectory(prefix="bench-mapping-") as scratch:
        folder = Path(scratch)
        # A swath is 250 km wide: larger regions have tiles without an acquisition.
        settings = _settings(folder, max(small * 4, usual * 3) + 12.0, spacing, passes)
        one, many = (_region(small * side, small) for side in (1, 4))
        usual_one, usual_many = (_region(usual * side, usual) for side in (1, 3))
        few, more = {"tile": small, "region": many}, {"tile": usual, "region": usual_many}
        jobs: dict[str, dict[str, Any]] = {
            f"1 tile of {small}": {"tile": small, "region": one, "workers": 1},
            f"16 tiles of {small}": few | {"workers": 1},
            f"16 tiles of {small}, 2 threads": few | {"workers": 2, "threads": True},
            f"16 tiles of {small}, 2 processes": few | {"workers": 2},
            f"16 tiles of {small}, 2 Dask workers": few | {"cluster": 2},
            f"1 tile of {usual}": {"tile": usual, "region": usual_one, "workers": 1},
            f"9 tiles of {usual}": more | {"workers": 1},
            f"9 tiles of {usual}, 2 processes": more | {"workers": 2},
        }
        if full:  # long enough that the start of processes weighs little
            longer = {"tile": small, "region": _region(small * 7, small)}
            jobs[f"49 tiles of {small}"] = longer | {"workers": 1}
            jobs[f"49 tiles of {small}, 2 processes"] = longer | {"workers": 2}
        # Compiling belongs to the first process alone, and takes memory.
        _apart(_job, settings, folder / "first", tile=small, region=one, workers=1)
        rows = [
            {"job": name} | _apart(_job, settings, folder / name, **job)
            for name, job in jobs.items()
        ]
        by_name = {row["job"]: row for row in rows}
        for size, count, region in ((small, 16, many), (usual, 9, usual_many), (small, 49, None)):
            first, alone = by_name[f"1 tile of {size}"], by_name.get(f"{count} tiles of {size}")
            if alone is None:
                continue
            for row in rows:
                if row["job"].startswith(f"{count} tiles of {size}"):
                    row["memory, x 1 tile"] = row["peak MB"] / first["peak MB"]
                    row["speed-up"] = alone["wall s"] / row["wall s"]
                    if "steady s" in row:
                        row["speed-up, steady"] = alone["steady s"] / row["steady s"]
            if region is not None:
                plain = _apart(_plain, settings, region, tile=size)
                alone["overhead"] = alone["cpu s"] / plain["cpu s"] - 1
                rows.append({"job": f"{count} tiles of {size}, no job and no files"} | plain)
    return rows


def _settings(folder: Path, size_km: float, spacing: float, passes: int) -> dict[str, str]:
    """Make landscape and networks."""
    from benchmarks.networks import bring_weights, ensemble, random_networks
    from xsoilsm.ensemble import Ensemble
    from xsoilsm.simulate import simulate_landscape

    landscape = folder / "cache" / "landscapes" / "demo"
    simulate_landscape(
        landscape, centre=CENTRE, size_km=size_km, spacing=spacing, acquisitions=passes
    )
    settings = {"XSOILSM_CACHE_DIR": str(folder / "cache"), "BENCH_MODEL": "DenseSM-E"}
    if not isinstance(ensemble(), Ensemble):
        settings["BENCH_MODEL"] = str(folder / "random")
        random_networks(folder / "random")
    else:
        bring_weights(folder / "cache")
    return settings


def _region(cells: int, tile: int) -> tuple[float, float, float, float]:
    """Box of so many cells of 1 km, on the lattice of tiles, in degrees."""
    from xsoilsm import grid

    x, y = grid.lonlat_to_xy(*CENTRE)
    km = grid.get_grid("1km")
    row, column = (int(n) for n in km.index(x, y))
    row, column = ((n - cells // 2) // tile * tile for n in (row, column))
    box = km.geobox((row, row + cells), (column, column + cells)).boundingbox
    inset = km.cell / 100
    (west, east), (south, north) = grid.xy_to_lonlat(
        [box.left + inset, box.right - inset], [box.bottom + inset, box.top - inset]
    )
    return float(west), float(south), float(east), float(north)


def _apart(action: Callable[..., Any], settings: dict[str, str], *args: Any, **options: Any) -> Any:
    """Call a function in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _enter, (settings,)) as pool:
        return pool.submit(action, *args, **options).result()


def _enter(settings: dict[str, str]) -> None:
    os.environ.update(settings)
    warnings.simplefilter("ignore")


def _job(
    out: Path,
    *,
    region: Any,
    tile: int,
    workers: int | None = None,
    threads: bool = False,
    cluster: int = 0,
) -> dict[str, Any]:
    from xsoilsm.mapping import make_job, run_job
    from xsoilsm.mapping.plan import Plan
    from xsoilsm.mapping.tile import make_unit
    from xsoilsm.mapping.workers import Threads

    model = os.environ["BENCH_MODEL"]
    job = make_job(region, TIME, out, catalog="demo", model=model, tile_size=tile)
    # What is loaded once in a process is no part of the comparison.
    warm = make_job(_region(1, 1), TIME, f"{out}-warm", catalog="demo", model=model, tile_size=tile)
    make_unit(next(Plan(warm).units(lambda *_: True, warm.ensemble())))
    if cluster:
        return _on_cluster(job, cluster)
    if workers != 1 and not threads:
        return _on_processes(job, workers)
    before = _forget_peak()
    starts: list[float] = []
    wait = Threads.wait

    def watched(crew: Threads) -> Any:
        news = wait(crew)
        if news is not None and news.over:
            starts.append(time.perf_counter())
        return news

    Threads.wait = watched
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        summary = run_job(job, workers=workers, threads=threads)
    finally:
        Threads.wait = wait
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if not summary.is_complete:
        raise RuntimeError(str(summary))
    count = workers or 1
    # As for processes: what the first units read for all others is told apart.
    steady = len(starts) > count
    share = len(starts) / (len(starts) - count) if steady else 1.0
    return {
        "steady s": (starts[-1] - starts[count - 1]) * share if steady else wall,
        "tiles made": summary.made,
        "wall s": wall,
        "cpu s": cpu,
        "before MB": before,
        "peak MB": _memory(),
        "load": os.getloadavg()[0],
    }


def _on_processes(job: Any, workers: int | None) -> dict[str, Any]:
    """Run a job on processes.

    Their start is in the wall time, and not in the steady one, which begins when each has made a
    unit and is scaled to all units.
    """
    from xsoilsm.mapping import run_job
    from xsoilsm.mapping.processes import Processes

    wait = Processes.wait
    peaks: dict[int, float] = {}
    marks: list[tuple[float, float, int]] = []  # time, CPU seconds and units that are over
    over = [0]
    begin = time.perf_counter()

    def watched(crew: Processes) -> Any:
        news = wait(crew)
        if news is not None and news.over:
            over[0] += 1
            marks.append((time.perf_counter(), sum(map(_cpu_of, crew.pids)), over[0]))
            peaks.update((pid, _memory(pid)) for pid in crew.pids)
        return news

    Processes.wait = watched
    try:
        summary = run_job(job, workers=workers)
    finally:
        Processes.wait = wait
    if not summary.is_complete:
        raise RuntimeError(str(summary))
    count = workers or os.cpu_count() or 1
    (first, cpu, done), (last, cpu_last, whole) = marks[count - 1], marks[-1]
    share = whole / (whole - done)
    return {
        "steady s": (last - first) * share,
        "tiles made": summary.made,
        "wall s": last - begin,
        "cpu s": (cpu_last - cpu) * share,
        "start s": marks[0][0] - begin,
        "peak MB": max(peaks.values()),
        "load": os.getloadavg()[0],
    }


def _cpu_of(pid: int) -> float:
    """CPU seconds of a process."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _forget_peak() -> float:
    """Begin to watch the peak of memory anew where the system can; MB that are in use now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _memory()


def _memory(pid: int | str = "self") -> float:
    """Peak of memory of a process in MB."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _on_cluster(job: Any, workers: int) -> dict[str, Any]:
    import distributed

    from xsoilsm.mapping import run_job

    def tasks(dask_scheduler: Any) -> int:
        return len(dask_scheduler.tasks)

    seen = [0]
    over = threading.Event()
    with (
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):

        def watch() -> None:
            while not over.wait(0.05):
                seen.append(client.run_on_scheduler(tasks))

        client.run(_prepare_worker)
        watcher = threading.Thread(target=watch)
        watcher.start()
        wall = time.perf_counter()
        summary = run_job(job, client=client, window=2 * workers)
        wall = time.perf_counter() - wall
        over.set()
        watcher.join()
        peak = max(client.run(_memory).values())
    if not summary.is_complete:
        raise RuntimeError(str(summary))
    return {
        "tiles made": summary.made,
        "wall s": wall,
        "peak MB": peak,
        "tasks in flight": max(seen),
        "load": os.getloadavg()[0],
    }


def _prepare_worker() -> float:
    import xsoilsm.mapping  # noqa: F401

    return _forget_peak()


def _plain(region: Any, *, tile: int) -> dict[str, Any]:
    """Load and retrieve the same tiles in one thread, without a job and without files."""
    import xsoilsm
    from xsoilsm.grid import tiles

    def once(box: Any) -> None:
        cube = xsoilsm.load_cube(box, TIME, catalog="demo")
        xsoilsm.retrieve(cube, os.environ["BENCH_MODEL"]).compute(scheduler="synchronous")

    boxes = [one.geobox for one in tiles(xsoilsm.ease2_geobox(region, "1km"), tile)]
    once(boxes[len(boxes) // 2][:1, :1])
    _forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    for box in boxes:
        once(box)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall s": wall, "cpu s": cpu, "peak MB": _memory(), "load": os.getloadavg()[0]}
