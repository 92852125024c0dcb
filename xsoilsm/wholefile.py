"""Outside the seven steps (files): files that appear under their name when they are whole."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["UNFINISHED", "whole_file", "write_whole"]

UNFINISHED = ".unfinished-"
"""Beginning of the names of files that are being written."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a small file, replacing one of that name; the folder must be there.

    What a killed process left behind has one name, and the next call replaces it.

    Parameters
    ----------
    path : Path
    content : str or bytes
        Text is written as UTF-8.
    """
    scratch = path.with_name(f".{path.name}.partial")
    with scratch.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


@contextmanager
def whole_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Context with a temporary path, which becomes `path` when the block ends without error.

    Parameters
    ----------
    path : path
        Missing folders are made.
    overwrite : bool, default False

    Yields
    ------
    Path
        In the folder of `path`. Whatever happens, nothing stays there under this name.

    Raises
    ------
    FileExistsError
        When `path` exists and `overwrite` is false.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        msg = f"{target} exists; choose another name or overwrite it (overwrite=True)"
        raise FileExistsError(errno.EEXIST, msg)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=UNFINISHED, suffix=f"-{target.name}", dir=target.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        with open(scratch, "rb") as file:
            os.fsync(file.fileno())
        scratch.chmod(0o666 & ~_umask())
        os.replace(scratch, target)
    finally:
        with suppress(FileNotFoundError):
            scratch.unlink()


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
