"""Step 7 of 7 (write): processes of this machine that make units, each at one.

Small tiles are mostly Python's own work, which threads of one process do by turns; processes do it
side by side. They are forked from a program that has imported everything
(`xsoilsm.mapping.nursery`), and talk with the process that runs the job through sockets. One that
dies costs the product that it was at, and is replaced.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import cast

from xsoilsm.mapping.plan import Unit
from xsoilsm.mapping.workers import Outcome

__all__ = ["Processes"]

SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GDAL_CACHEMAX": "128",
}
"""Environment of workers, unless it is set already: one thread each, and MB of GDAL's cache, which
by default is a twentieth of the machine's memory in each of them."""

PATIENCE = 10.0
"""Seconds that processes have to end when they are told to."""

_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[3:]; from xsoilsm.mapping.nursery import main; main()"
)


class Processes:
    """Processes of this machine, each at one unit.

    Parameters
    ----------
    count : int
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._nursery = _Nursery()
        self._idle: list[Connection] = []
        self._busy: dict[Connection, Unit] = {}
        self._news: deque[Outcome] = deque()
        self._pids: dict[Connection, int] = {}

    @property
    def window(self) -> int:
        """One unit for each process."""
        return self._count

    @property
    def abreast(self) -> int:
        """Processes share nothing that they read: a row of tiles for each."""
        return self._count

    @property
    def pids(self) -> tuple[int, ...]:
        """Identifiers of the processes that have begun, for those who watch them."""
        return tuple(self._pids.values())

    def submit(self, unit: Unit) -> None:
        """Give a unit to a process that is free, or to a new one."""
        connection = self._idle.pop() if self._idle else self._nursery.worker()
        self._busy[connection] = unit
        # Where it has died meanwhile, waiting tells.
        with suppress(OSError):
            connection.send(unit)

    def wait(self) -> Outcome | None:
        """Wait a second for the next news."""
        if not self._news:
            ready = wait(list(self._busy), timeout=1.0)
            heard = (self._hear(cast("Connection", one)) for one in ready)
            self._news.extend(news for news in heard if news is not None)
        return self._news.popleft() if self._news else None

    def finish(self) -> None:
        """Stop units after the product that they are at."""
        for connection in self._busy:
            with suppress(OSError):
                connection.send(None)

    def close(self, *, wait: bool) -> None:
        """Let the processes end after the product that they are at, or at once."""
        if wait:
            self.finish()
            while self._busy:
                self.wait()
                self._news.clear()
        else:
            self._nursery.kill()
            limit = time.monotonic() + PATIENCE
            while self._busy and time.monotonic() < limit:
                self.wait()
                self._news.clear()
        for connection in (*self._idle, *self._busy):
            connection.close()
        for held in (self._idle, self._busy, self._pids):
            held.clear()
        self._nursery.close()

    def _hear(self, connection: Connection) -> Outcome | None:
        unit = self._busy[connection]
        try:
            message = connection.recv()
        except (EOFError, OSError):
            del self._busy[connection]
            self._pids.pop(connection, None)
            connection.close()
            return Outcome(unit, over=True, lost=True)
        if isinstance(message, int):
            self._pids[connection] = message
            return None
        made, error = message
        if made is not None:
            return Outcome(unit, (made,))
        del self._busy[connection]
        self._idle.append(connection)
        return Outcome(unit, over=True, error=error)


class _Nursery:
    """The program that forks workers; started when the first one is needed, and again if it died.

    Raises
    ------
    ChildProcessError
        When it cannot be started.
    """

    def __init__(self) -> None:
        self._program: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._failures = 0

    def worker(self) -> Connection:
        """Start a worker, and give the connection to it."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            while True:
                control = self._started()
                with suppress(OSError):
                    socket.send_fds(control, [b"+"], [theirs.fileno()])
                    break
            return Connection(ours.detach())

    def kill(self) -> None:
        """End it and its workers at once."""
        if self._program is not None:
            self._program.kill()

    def close(self) -> None:
        """End it; workers are gone before."""
        if self._control is not None:
            self._control.close()
        if self._program is not None:
            try:
                self._program.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._program.kill()
                self._program.wait()
        self._control = self._program = None

    def _started(self) -> socket.socket:
        if self._program is not None and self._program.poll() is not None:
            self._failures += self._program.returncode != -9
            if self._failures > 2:
                msg = (
                    f"worker processes cannot be started (status {self._program.returncode}; see "
                    "the messages above); work on threads instead (--threads, threads=True)"
                )
                raise ChildProcessError(msg)
            self.close()
        if self._control is None:
            self._control, theirs = socket.socketpair()
            with theirs:
                number = theirs.fileno()
                program = [sys.executable, "-c", _PROGRAM, str(number), str(os.getpid())]
                # A group of its own: Ctrl-C on the terminal is for this process alone.
                self._program = subprocess.Popen(
                    [*program, *(path or os.getcwd() for path in sys.path)],
                    stdin=subprocess.DEVNULL,
                    env=SETTINGS | dict(os.environ),
                    pass_fds=[number],
                    process_group=0,
                )
        return self._control
