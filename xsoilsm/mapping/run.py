"""Step 7 of 7 (write): run a job until everything is there, or say how to go on.

The process that runs a job holds its lock and is the only one that writes its ledger. It gives
units to workers, a bounded number at a time, and enters what comes back. Whenever it ends, and
however, the next run goes on with what is missing.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from xsoilsm.mapping.job import Job, open_job
from xsoilsm.mapping.ledger import OPEN, Ledger
from xsoilsm.mapping.lock import hold
from xsoilsm.mapping.plan import Plan, Unit
from xsoilsm.mapping.processes import Processes
from xsoilsm.mapping.tile import CannotWriteError, Made
from xsoilsm.mapping.verify import check_files, open_ledger, remove_scratch
from xsoilsm.mapping.workers import Cluster, Outcome, Threads, Workers
from xsoilsm.retrieval import ResolutionWarning

if TYPE_CHECKING:
    import distributed

    from xsoilsm.ensemble import Ensemble

__all__ = ["InterruptedJobError", "Summary", "run_job", "verify_job"]

LOST = 3
"""How often in a row a unit may be lost with its worker before that counts as its fault."""

_LOST_TEXT = (
    f"lost {LOST} times with its worker, which may have had too little memory: take fewer workers "
    "(--workers) or smaller tiles"
)

Tell = Callable[[str], object]


class InterruptedJobError(KeyboardInterrupt):
    """The user stopped a job; the message says how to go on."""


@dataclass(frozen=True)
class Summary:
    """How a job stands.

    Parameters
    ----------
    folder : Path
    done, partial, failed, pending : int
        Tiles of products. Damaged ones count as pending.
    made : int
        Those that this run made.
    errors : tuple of str
        Of partial and failed tiles, the most frequent first, with their numbers.
    """

    folder: Path
    done: int
    partial: int
    failed: int
    pending: int
    made: int = 0
    errors: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """All tiles of all products."""
        return self.done + self.partial + self.failed + self.pending

    @property
    def is_complete(self) -> bool:
        """Whether everything is done."""
        return self.done == self.total

    def __str__(self) -> str:
        """Tell people."""
        parts = [f"{self.done} of {self.total} tiles are done"]
        names = ("partial", "failed", "pending")
        parts += [f"{getattr(self, name)} {name}" for name in names if getattr(self, name)]
        lines = [f"{self.folder}: {', '.join(parts)}"]
        lines += [f"  {error}" for error in self.errors]
        if not self.is_complete:
            lines.append(f"go on with: xsoilsm map retry {self.folder}")
        return "\n".join(lines)


def run_job(
    job: Job | str | os.PathLike[str],
    *,
    workers: int | None = None,
    threads: bool = False,
    client: distributed.Client | str | None = None,
    window: int | None = None,
    attempts: int = 2,
    units: int | None = None,
    progress: bool = False,
    tell: Tell | None = None,
) -> Summary:
    """Make everything of a job that is not done and verified.

    Computes and writes.

    Parameters
    ----------
    job : Job or path
        Or its folder.
    workers : int, optional
        Processes of this machine that each have one unit in hand (`xsoilsm.mapping.processes`);
        by default one for each processor that this one may use, and never more than there are
        units. A single one is a thread of this process, and so are all of them on systems other
        than Linux, where a `distributed.LocalCluster` as `client` has processes.
    threads : bool, default False
        Let all workers be threads of this process. Small tiles are then made one by one, as
        they are mostly Python's own work.
    client : distributed.Client or str, optional
        Work on this Dask cluster, or on that of the scheduler at this address, instead. Its
        workers see the job's folder under the same path and have the same release of xsoilsm,
        and the weights.
    window : int, optional
        Units that the scheduler has at a time; by default two for each thread of the workers.
    attempts : int, default 2
        How often what fails is tried in this run.
    units : int, optional
        Stop after so many units (`xsoilsm.mapping.plan`), for a trial.
    progress : bool, default False
        Show a progress bar on the terminal.
    tell : callable, optional
        Gets a line of text where the user should know something.

    Returns
    -------
    Summary

    Raises
    ------
    JobBusyError
        When another process works on the job.
    JobError
        When there is no job, or its ensemble is another one now.
    OSError
        When the folder cannot be written or its disk is full; what was made is kept.
    ConnectionError
        When the cluster is gone for long.
    ChildProcessError
        When worker processes cannot be started.
    InterruptedJobError
        After Ctrl-C. The tiles that were being made are finished first; a second Ctrl-C leaves
        at once. In both cases nothing is half written.
    """
    chosen = job if isinstance(job, Job) else open_job(job)
    ensemble = chosen.ensemble()
    ensemble.require_weights()
    plan = Plan(chosen)
    with _held(chosen, plan) as ledger, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResolutionWarning)
        todo = _open_tiles(ledger)
        if not todo:
            return _summary(chosen, ledger, 0)
        first = plan.units(lambda product, tile: (product, tile) in todo, ensemble)
        crew = _crew(workers, threads, client, window, itertools.islice(first, units))
        run = _Run(chosen, plan, ensemble, ledger, crew, tell or (lambda _: None))
        made = 0
        try:
            for _ in range(max(attempts, 1)):
                with _bar(progress, ledger) as advance:
                    made += run.through(todo, advance, units)
                todo = _open_tiles(ledger)
                if not todo or units is not None:
                    break
        finally:
            crew.close(wait=run.patient)
            remove_scratch(chosen)  # of workers that died meanwhile
        return _summary(chosen, ledger, made)


def _open_tiles(ledger: Ledger) -> set[tuple[str, str]]:
    return {(row.product, row.tile) for row in ledger.rows(*OPEN)}


def verify_job(job: Job | str | os.PathLike[str]) -> tuple[Summary, list[tuple[str, str, str]]]:
    """Read every file of a job; what is damaged is made anew by the next run.

    Computes.

    Returns
    -------
    Summary
    list of (product, tile, fault)

    Raises
    ------
    JobBusyError, JobError, OSError
        As `run_job`.
    """
    chosen = job if isinstance(job, Job) else open_job(job)
    with _held(chosen, Plan(chosen)) as ledger:
        damaged = check_files(chosen, ledger)
        return _summary(chosen, ledger, 0), damaged


@contextmanager
def _held(job: Job, plan: Plan) -> Iterator[Ledger]:
    with hold(job.folder), open_ledger(job, plan) as ledger:
        yield ledger


def _summary(job: Job, ledger: Ledger, made: int) -> Summary:
    counts = ledger.counts()
    causes = Counter(row.error.splitlines()[0][:300] for row in ledger.rows(*OPEN) if row.error)
    return Summary(
        job.folder,
        counts["done"],
        counts["partial"],
        counts["failed"],
        counts["pending"] + counts["damaged"],
        made,
        tuple(f"{number} x {text}" for text, number in causes.most_common(5)),
    )


def _crew(
    workers: int | None,
    threads: bool,
    client: distributed.Client | str | None,
    window: int | None,
    units: Iterable[Unit],
) -> Workers:
    """Whoever makes units; of these only as many are looked at as could be made at once."""
    if client is not None:
        return Cluster(client, window)
    if workers is not None and workers < 1:
        msg = f"workers is {workers}; expected at least 1"
        raise ValueError(msg)
    affinity = getattr(os, "sched_getaffinity", None)
    here = len(affinity(0)) if affinity else os.cpu_count() or 1
    count = sum(1 for _ in itertools.islice(units, workers or here))
    # Elsewhere libraries may not survive the fork of a process that uses them.
    alone = threads or count == 1 or sys.platform != "linux"
    return Threads(count) if alone else Processes(count)


class _Run:
    """Passes over everything that is to be made.

    Attributes
    ----------
    patient : bool
        Whether what is in hand may be waited for.
    """

    def __init__(
        self,
        job: Job,
        plan: Plan,
        ensemble: Ensemble,
        ledger: Ledger,
        crew: Workers,
        tell: Tell,
    ) -> None:
        self._job = job
        self._plan = plan
        self._ensemble = ensemble
        self._ledger = ledger
        self._crew = crew
        self._tell = tell
        self.patient = True
        self._feeding = True
        self._out = 0
        self._entered: dict[tuple[str, str], set[str]] = {}
        self._lost: Counter[tuple[str, str]] = Counter()
        self._again: list[Unit] = []

    def through(
        self, todo: set[tuple[str, str]], advance: Callable[[int], None], most: int | None
    ) -> int:
        """Make what is to be made, or the first units of it; gives the number of tiles."""
        every = self._plan.units(
            lambda product, tile: (product, tile) in todo, self._ensemble, self._crew.abreast
        )
        units = itertools.islice(every, most)
        made = 0
        self._entered.clear()
        self._lost.clear()
        try:
            with _asked_to_stop() as asked:
                while self._feed(units) or self._out:
                    if self._feeding and asked():
                        self._feeding = False
                        self._crew.finish()
                        self._tell("finishing the tiles in hand; Ctrl-C again leaves at once")
                    outcome = self._crew.wait()
                    if outcome is not None:
                        count = self._take(outcome)
                        made += count
                        advance(count)
        except KeyboardInterrupt:
            self._feeding = self.patient = False
        if not self._feeding:
            raise InterruptedJobError(str(_summary(self._job, self._ledger, made)))
        return made

    def _feed(self, units: Iterator[Unit]) -> bool:
        """Fill the window; tells whether there is more to give out."""
        while self._feeding and self._out < self._crew.window:
            unit = self._again.pop() if self._again else next(units, None)
            if unit is None:
                return False
            self._crew.submit(unit)
            self._out += 1
        return self._feeding

    def _take(self, outcome: Outcome) -> int:
        """Enter what became of a unit; gives the number of tiles that are new."""
        unit, error = outcome.unit, outcome.error
        key = unit.tile, unit.products[0].id
        if outcome.made:
            self._ledger.enter(outcome.made)
            self._entered.setdefault(key, set()).update(one.product for one in outcome.made)
        if outcome.over:
            self._out -= 1
        if isinstance(error, CannotWriteError):
            msg = f"{error.strerror}. Run the job again then: what is done is kept"
            raise OSError(error.errno, msg) from error
        left = tuple(p for p in unit.wanted if p not in self._entered.get(key, ()))
        if outcome.lost and self._feeding and left:
            self._lost[key] += 1
            if self._lost[key] < LOST:
                self._again.append(replace(unit, wanted=left))
                return 0
            error = error or ConnectionError(_LOST_TEXT)
        if error is not None and not (outcome.lost and not self._feeding):
            text = f"{type(error).__name__}: {error}"[:2000]
            self._ledger.enter(Made(p, unit.tile, "failed", text) for p in left)
        if outcome.over:
            self._entered.pop(key, None)
        return sum(one.state == "done" for one in outcome.made)


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C only be asked for, so that it breaks into nothing; the second raises."""
    pressed: list[int] = []

    def press(number: int, _: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    usual = signal.getsignal(signal.SIGINT)
    if (
        usual is not signal.default_int_handler
        or threading.current_thread() is not threading.main_thread()
    ):
        yield lambda: False
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, usual)


@contextmanager
def _bar(show: bool, ledger: Ledger) -> Iterator[Callable[[int], None]]:
    """Progress on the terminal: tiles that are done of all."""
    if not show:
        yield lambda _: None
        return
    from tqdm import tqdm

    counts = ledger.counts()
    with tqdm(total=counts.total(), initial=counts["done"], desc="tiles", unit="tile") as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance
