"""Step 7 of 7 (write): one process at a time writes a job.

The lock is the kernel's (``flock``) on a file in the job's folder, so it ends with the process
that holds it, however that ends. What the file says of its holder is for people only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["LOCK", "JobBusyError", "hold"]

LOCK = ".lock"
"""Name of the file in the job's folder."""


class JobBusyError(OSError):
    """Another process works on the job."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep every other process from writing a job, as long as the block runs.

    Parameters
    ----------
    folder : Path
        Of the job.

    Raises
    ------
    JobBusyError
        When another process holds it; the message names process and host.
    OSError
        When the folder cannot be written, or its file system has no locks.
    """
    path = folder / LOCK
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                msg = (
                    f"the file system of {folder} does not lock files ({error.strerror}); choose "
                    "a folder on another disk"
                )
                raise OSError(error.errno, msg) from error
            holder = os.read(handle, 500).decode("utf-8", "replace").strip() or "another process"
            msg = (
                f"{holder} is working on the job in {folder}; wait until it has ended, or stop "
                "it, and start again"
            )
            raise JobBusyError(errno.EBUSY, msg) from None
        os.truncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
        os.truncate(handle, 0)
    finally:
        os.close(handle)
