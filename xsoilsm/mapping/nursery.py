"""Step 7 of 7 (write): the program that worker processes of a job are forked from.

It imports once what units need, waits, and forks a worker for each socket that it is handed. So
workers start in milliseconds, also in place of one that died, and share the memory of libraries.
It is started as a program of its own, never as a copy of the caller's: nothing of a user's
script or notebook runs again, and no thread of theirs is lost in a fork.

When the process that runs the job ends, in whatever way, its workers end at once: on Linux by the
kernel, elsewhere as soon as they see that nobody is there.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xsoilsm.mapping.plan import Unit

__all__ = ["main"]

_IMPORTS = (
    "xsoilsm.mapping.tile",
    "xsoilsm.engine",
    "xsoilsm.kernel",
    "distributed",
    "numba",
    "pystac",
    "rio_cogeo.cogeo",
    "zarr",
)
"""What the first unit of a process would import."""

_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def main() -> None:
    """Fork a worker for each socket that arrives, until the other side is closed.

    Arguments on the command line: descriptor of a Unix socket, identifier of the process that
    runs the job.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    _die_with(int(sys.argv[2]))
    # Ctrl-C is for the process that runs the job, which tells its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    for name in _IMPORTS:
        with suppress(ImportError):
            importlib.import_module(name)
    own = os.getpid()
    while True:
        data, handles, _, _ = socket.recv_fds(control, 1, 1)
        if not data:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads of allocators
            child = os.fork()
        if child == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _die_with(own)
            _work(Connection(handles[0]))
        os.close(handles[0])


def _die_with(parent: int) -> None:
    """End with another process, where the kernel can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _work(connection: Connection) -> None:
    """Make units in a thread, and listen in this one; never returns."""
    from xsoilsm.retrieval import ResolutionWarning

    warnings.filterwarnings("ignore", category=ResolutionWarning)
    units: queue.SimpleQueue[Unit] = queue.SimpleQueue()
    stop = threading.Event()
    connection.send(os.getpid())
    # A thread that is not the main one leaves the division of work to whoever started it: the
    # networks run in it alone.
    threading.Thread(target=_make_all, args=(connection, units, stop), daemon=True).start()
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        if message is None:
            stop.set()
        else:
            units.put(message)


def _make_all(
    connection: Connection, units: queue.SimpleQueue[Unit], stop: threading.Event
) -> None:
    from xsoilsm.mapping.tile import make_unit

    try:
        while True:
            unit, error = units.get(), None
            try:
                make_unit(unit, lambda made: connection.send((made, None)), stop.is_set)
            except Exception as found:
                error = _portable(found)
            connection.send((None, error))
    finally:
        os._exit(1)  # nobody is there, or this process is broken


def _portable(error: Exception) -> Exception:
    """Error that can be sent to another process, without what caused it."""
    error.__cause__ = error.__context__ = error.__traceback__ = None
    try:
        copied: Any = pickle.loads(pickle.dumps(error))
    except Exception:  # classes of libraries fail in many ways
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error if type(copied) is type(error) else RuntimeError(str(error))
