"""Step 7 of 7 (write): who makes units: threads of this process, or the workers of a cluster.

Processes of this machine are in `xsoilsm.mapping.processes`. All take one unit at a time and give
back what became of it. Never more units are out than the window allows, so neither the memory of
this process nor the scheduler of a cluster ever sees the whole job.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from xsoilsm.mapping.plan import Unit
from xsoilsm.mapping.tile import Made, make_unit

if TYPE_CHECKING:
    import distributed

__all__ = ["Cluster", "Outcome", "Threads", "Workers"]

RECONNECT = 300.0
"""Seconds that a job waits for a scheduler that went away, and for a first worker."""


@dataclass(frozen=True)
class Outcome:
    """What became of a unit.

    Parameters
    ----------
    unit : Unit
    made : tuple of Made
        Tiles that are made; more may come until `over`.
    over : bool
        Whether the unit needs no more waiting for.
    error : Exception or None
        What ended the unit early.
    lost : bool
        Whether the unit was lost with its worker or scheduler, by no fault of its own.
    """

    unit: Unit
    made: tuple[Made, ...] = ()
    over: bool = False
    error: BaseException | None = None
    lost: bool = False


class Workers(Protocol):
    """Somebody who makes units."""

    @property
    def window(self) -> int:
        """Units that may be out at a time."""

    @property
    def abreast(self) -> int:
        """Rows of tiles to go along side by side (`xsoilsm.mapping.plan.Plan.units`)."""

    def submit(self, unit: Unit) -> None:
        """Give a unit out."""

    def wait(self) -> Outcome | None:
        """Wait a little for the next news; None where there are none yet."""

    def finish(self) -> None:
        """Let the units that are out end soon."""

    def close(self, *, wait: bool) -> None:
        """Leave; what is out is stopped as soon as can be, and waited for or abandoned."""


class Threads:
    """Threads of this process, each at one unit.

    Parameters
    ----------
    count : int
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._todo: queue.SimpleQueue[Unit | None] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._stop = threading.Event()
        # Daemons: a second Ctrl-C leaves at once, and files are whole or not there.
        self._threads = [
            threading.Thread(target=self._work, name=f"tile-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def window(self) -> int:
        """One unit for each thread."""
        return self._count

    @property
    def abreast(self) -> int:
        """Threads share what they read."""
        return 1

    def submit(self, unit: Unit) -> None:
        """Give a unit to the next thread that is free."""
        self._todo.put(unit)

    def wait(self) -> Outcome | None:
        """Wait a second for the next news."""
        try:
            return self._news.get(timeout=1.0)
        except queue.Empty:
            return None

    def finish(self) -> None:
        """Stop units after the product that they are at."""
        self._stop.set()

    def close(self, *, wait: bool) -> None:
        """Let the threads end after the product that they are at."""
        self._stop.set()
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _work(self) -> None:
        while (unit := self._todo.get()) is not None:
            error: BaseException | None = None
            try:
                make_unit(unit, self._reporter(unit), self._stop.is_set)
            except Exception as found:
                error = found
            self._news.put(Outcome(unit, over=True, error=error))

    def _reporter(self, unit: Unit) -> Callable[[Made], None]:
        return lambda made: self._news.put(Outcome(unit, (made,)))


class Cluster:
    """Workers of a Dask cluster.

    Parameters
    ----------
    client : distributed.Client or str
        Or the address of a scheduler.
    window : int, optional
        Units that may be out at a time; by default two for each thread of the workers that are
        there, so that none waits for the next.
    reconnect : float
        Seconds to wait for a scheduler or worker that is not there.

    Raises
    ------
    OSError
        When the scheduler cannot be reached.
    """

    def __init__(
        self,
        client: distributed.Client | str,
        window: int | None = None,
        reconnect: float = RECONNECT,
    ) -> None:
        import distributed

        self._address = client if isinstance(client, str) else ""
        self._own = isinstance(client, str)
        self._client = (
            distributed.Client(client, set_as_default=False) if isinstance(client, str) else client
        )
        self._window = window
        self._reconnect = reconnect
        self._out: dict[Any, Unit] = {}
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._count = 0
        self._absent_since: float | None = None

    @property
    def window(self) -> int:
        """Twice the threads of the workers that are there, or what was asked for."""
        if not self._is_there():
            return 0
        return self._window or max(2 * sum(self._client.nthreads().values()), 2)

    @property
    def abreast(self) -> int:
        """Which worker takes a tile is the scheduler's choice."""
        return 1

    def submit(self, unit: Unit) -> None:
        """Send a unit to the scheduler."""
        self._count += 1
        key = f"xsoilsm-tile-{unit.job_hash[:8]}-{unit.tile}-{self._count}"
        future = self._client.submit(_make_there, unit, key=key, pure=False, retries=0)
        self._out[future] = unit
        future.add_done_callback(lambda _: self._news.put(None))

    def wait(self) -> Outcome | None:
        """Wait a second for the next unit that is over."""
        import distributed

        if not self._is_there():
            return self._absent()
        with suppress(queue.Empty):
            self._news.get(timeout=1.0)
        future = next((future for future in self._out if future.done()), None)
        if future is None:
            return None
        unit = self._out.pop(future)
        try:
            if future.cancelled() or future.status == "lost":
                return Outcome(unit, over=True, lost=True)
            return Outcome(unit, tuple(future.result(timeout=60)), over=True)
        except (distributed.KilledWorker, distributed.CancelledError) as error:
            return Outcome(unit, over=True, error=error, lost=True)
        except Exception as error:
            return Outcome(unit, over=True, error=error)
        finally:
            future.release()

    def finish(self) -> None:
        """Take back what is out; a unit that is being made ends, and its files are found later."""
        waiting = [future for future in self._out if not future.done()]
        if waiting and self._is_there():
            self._client.cancel(waiting)

    def close(self, *, wait: bool) -> None:
        """Take back what is out; close the connection if it was made here."""
        if self._is_there():
            self._client.cancel(list(self._out))
        self._out.clear()
        if self._own:
            self._client.close()

    def _is_there(self) -> bool:
        return self._client.status == "running"

    def _absent(self) -> Outcome | None:
        """Give back what was out, and look for the scheduler for a while."""
        import distributed

        if self._out:
            _, unit = self._out.popitem()
            return Outcome(unit, over=True, lost=True)
        now = time.monotonic()
        self._absent_since = self._absent_since or now
        address = self._address or str(getattr(self._client.scheduler, "address", ""))
        if self._client.status == "closed" and address:
            try:
                self._client = distributed.Client(address, set_as_default=False, timeout=10)
            except OSError:
                pass
            else:
                self._own, self._address = True, address
        if self._is_there():
            self._absent_since = None
        elif now - self._absent_since > self._reconnect:
            msg = (
                f"the scheduler {address} has not answered for {self._reconnect:.0f} s; start it "
                "again, and run the job again"
            )
            raise ConnectionError(msg)
        else:
            time.sleep(0.5)
        return None


def _make_there(unit: Unit) -> list[Made]:
    """Make a unit on a worker, whose settings are its own."""
    import warnings

    from xsoilsm.retrieval import ResolutionWarning

    warnings.filterwarnings("ignore", category=ResolutionWarning)
    return make_unit(unit)
