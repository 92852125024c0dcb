"""Step 7 of 7 (write): what a job will take, from what a part of it took.

Numbers of tiles and units follow from the plan. Time and bytes are measured: one unit is made for
the purpose where nothing is made yet, and is kept like any other.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xsoilsm.mapping.job import Job, open_job
from xsoilsm.mapping.ledger import read_rows
from xsoilsm.mapping.plan import Plan
from xsoilsm.mapping.run import run_job

__all__ = ["Estimate", "estimate_job"]


@dataclass(frozen=True)
class Estimate:
    """What a job takes.

    Parameters
    ----------
    tiles, products, tiles_of_products, units : int
        Of the whole job.
    left : int
        Tiles of products that are not done.
    reads : int
        Items that are opened, counted once for each unit that is left.
    measured : int
        Tiles of products whose time and size are known.
    seconds : float
        Time of one thread for all that is left.
    bytes_read : float
        From files on this machine, for all that is left.
    bytes_received : float
        By this machine over its network while a unit was made for the purpose, whoever received
        them, times what is left; NaN where no unit was made or the system does not tell.
    bytes_written : float
        Of the tiles of the whole job.
    """

    tiles: int
    products: int
    tiles_of_products: int
    units: int
    left: int
    reads: int
    measured: int
    seconds: float
    bytes_read: float
    bytes_received: float
    bytes_written: float

    def __str__(self) -> str:
        """Tell people."""
        received = ""
        if self.bytes_received == self.bytes_received:
            received = f", {_size(self.bytes_received)} over the network"
        return (
            f"{self.tiles} tiles x {self.products} products: {self.tiles_of_products} to make in "
            f"{self.units} units, {self.left} left\n"
            f"reads: {self.reads} items, {_size(self.bytes_read)} from files{received}\n"
            f"writes: {_size(self.bytes_written)} of tiles\n"
            f"time: {_duration(self.seconds)} of one thread, measured on {self.measured} tiles; "
            "divide by the number of workers"
        )


def estimate_job(
    job: Job | str | os.PathLike[str],
    *,
    probe: bool = True,
    tell: Callable[[str], object] | None = None,
) -> Estimate:
    """Estimate what a job takes.

    Computes: where nothing of the job is done, makes its first unit in one thread.

    Parameters
    ----------
    job : Job or path
        Or its folder.
    probe : bool, default True
        Make a unit where nothing is measured yet.
    tell : callable, optional
        Gets a line of text when a unit is made.

    Returns
    -------
    Estimate
        Times and bytes are NaN where nothing is measured.

    Raises
    ------
    JobBusyError, JobError, OSError
        As `xsoilsm.mapping.run_job`.
    """
    chosen = job if isinstance(job, Job) else open_job(job)
    received = float("nan")
    if probe and not (chosen.ledger.is_file() and _measured(chosen)[0]):
        (tell or (lambda _: None))("making one unit to measure it; it is kept")
        before = _received()
        run_job(chosen, workers=1, units=1, attempts=1)
        received = _received() - before
    plan = Plan(chosen)
    states: dict[tuple[str, str], str] = {}
    if chosen.ledger.is_file():
        with read_rows(chosen.ledger) as (_, rows):
            states = {(row.product, row.tile): row.state for row in rows}
    ensemble = chosen.ensemble()
    whole = list(plan.rows())
    left = sum(states.get(row) != "done" for row in whole)
    rest = list(plan.units(lambda p, t: states.get((p, t)) != "done", ensemble))
    count, seconds, read, written = _measured(chosen) if states else (0, 0.0, 0, 0)
    share = left / count if count else float("nan")
    return Estimate(
        tiles=len(plan.tiles),
        products=len(plan.products),
        tiles_of_products=len(whole),
        units=sum(1 for _ in plan.units(lambda *_: True, ensemble)),
        left=left,
        reads=sum(len(unit.items) for unit in rest),
        measured=count,
        seconds=seconds * share,
        bytes_read=read * share,
        bytes_received=received * share,
        bytes_written=written * len(whole) / count if count else float("nan"),
    )


def _measured(job: Job) -> tuple[int, float, int, int]:
    """Sum up number, seconds, bytes read and bytes written of the tiles that are known."""
    count, seconds, read, written = 0, 0.0, 0, 0
    with read_rows(job.ledger) as (_, rows):
        for row in rows:
            if row.state == "done" and row.seconds is not None:
                count += 1
                seconds += row.seconds
                read += max(row.bytes_read or 0, 0)
                folder = job.tiles / row.product / row.tile
                written += sum(path.stat().st_size for path in folder.glob("*.tif"))
    return count, seconds, read, written


def _received() -> float:
    """Bytes that this machine has received over all its networks; NaN where it does not tell."""
    try:
        lines = Path("/proc/net/dev").read_text("ascii").splitlines()[2:]
        return float(sum(int(line.split(":")[1].split()[0]) for line in lines))
    except (OSError, IndexError, ValueError):
        return float("nan")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
