"""Step 7 of 7 (write): what the commands ``xsoilsm map ...`` say.

Each function does one thing and gives the text for the terminal, so that the command line parses,
calls and prints.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from xsoilsm.mapping.estimate import estimate_job
from xsoilsm.mapping.explain import explain
from xsoilsm.mapping.job import make_job, open_job
from xsoilsm.mapping.ledger import OPEN, read_rows
from xsoilsm.mapping.plan import Plan
from xsoilsm.mapping.run import Summary, run_job, verify_job

__all__ = ["explain_cell", "map_job", "retry", "status", "verify"]

Say = Callable[[str], object]


def map_job(
    *,
    out: Path,
    say: Say,
    bbox: tuple[float, float, float, float] | None = None,
    region: Path | None = None,
    estimate: bool = False,
    workers: int | None = None,
    threads: bool = False,
    scheduler: str | None = None,
    progress: bool = False,
    **options: Any,
) -> Summary | None:
    """Make a job, or find it, and run it.

    Computes and writes.

    Parameters
    ----------
    out : Path
        Folder of the job.
    say : callable
        Gets lines of text.
    bbox : (west, south, east, north), optional
    region : Path, optional
        File with the region; one of both is given.
    estimate : bool, default False
        Say what the job takes instead of running it; makes one unit.
    workers : int, optional
        Processes of this machine.
    threads : bool, default False
        Let workers be threads of this process.
    scheduler : str, optional
        Address of a Dask scheduler.
    progress : bool, default False
    **options
        Of `xsoilsm.mapping.make_job`.

    Returns
    -------
    Summary or None
        None where only the estimate was asked for.

    Raises
    ------
    ValueError
        When not exactly one of `bbox` and `region` is given, and as `make_job` and `run_job`.
    """
    if (bbox is None) == (region is None):
        msg = "name the region by --bbox or by --region, one of both"
        raise ValueError(msg)
    job = make_job(bbox if region is None else region, out=out, **options)
    plan = Plan(job)
    say(f"{len(plan.tiles)} tiles, {len(plan.products)} products, job {job.hash[:12]} in {out}")
    if estimate:
        say(str(estimate_job(job, tell=say)))
        return None
    chosen: dict[str, Any] = {"workers": workers, "threads": threads, "client": scheduler}
    return run_job(job, **chosen, progress=progress, tell=say)


def retry(
    out: Path,
    *,
    say: Say,
    workers: int | None = None,
    threads: bool = False,
    scheduler: str | None = None,
    progress: bool = False,
) -> Summary:
    """Run a job again, from its folder alone: what is missing, failed or damaged is made.

    Computes and writes; parameters as of `map_job`.
    """
    chosen: dict[str, Any] = {"workers": workers, "threads": threads, "client": scheduler}
    return run_job(out, **chosen, progress=progress, tell=say)


def verify(out: Path) -> tuple[Summary, list[str]]:
    """Read every file of a job. Computes; gives the summary, and a line for each damaged tile."""
    summary, damaged = verify_job(out)
    return summary, [f"{product} {tile}: {fault}" for product, tile, fault in damaged]


def status(out: Path, *, errors: int = 20) -> str:
    """Say how a job stands, also while it runs.

    Computes: reads the ledger.

    Parameters
    ----------
    out : Path
        Folder of the job.
    errors : int, default 20
        Tiles whose errors are told.

    Returns
    -------
    str
    """
    job = open_job(out)
    chosen = job.configuration
    with read_rows(job.ledger) as (counts, rows):
        total = counts.total()
        told: list[str] = []
        seconds, known, read = 0.0, 0, 0
        for row in rows:
            if row.error and row.state in OPEN and len(told) < errors:
                told.append(f"  {row.product} {row.tile} {row.state}: {row.error.splitlines()[0]}")
            if row.seconds is not None:
                known, seconds = known + 1, seconds + row.seconds
                read += max(row.bytes_read or 0, 0)
    states = ", ".join(f"{counts[name]} {name}" for name in ("done", *OPEN) if counts[name])
    lines = [
        f"job {job.hash[:12]}: {chosen.res}, {chosen.start} to {chosen.end}, composite "
        f"{chosen.composite}, catalog {chosen.catalog}, ensemble {chosen.model}",
        f"{total} tiles: {states}",
        *told,
    ]
    if known:
        lines.append(
            f"measured on {known} tiles: {seconds / known:.2f} s and {read / known / 1e6:.2f} MB "
            "from files, each"
        )
    return "\n".join(lines)


def explain_cell(out: Path, lon: float, lat: float, day: str) -> str:
    """Say why a pixel is empty or flagged. Computes, see `xsoilsm.mapping.explain`."""
    return "\n".join(str(one) for one in explain(out, lon, lat, day))
