"""Step 7 of 7 (write): what has become of every tile of a job.

An SQLite file in the job's folder that one process writes, which holds the job's lock; workers
never open it. It keeps the rollback journal: a write-ahead log needs memory that is shared by
processes, which network disks do not give, and saves nothing at one small transaction a unit.
Each transaction is on the disk before the next begins, so a killed process loses what it had not
yet entered, and that is found again in the verified files. Losing the whole file loses timings
and error texts, no tile. Entries are numbered in order; no clock decides anything.
"""

from __future__ import annotations

import errno
import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from xsoilsm.mapping.job import JobError
from xsoilsm.mapping.tile import Made

__all__ = ["OPEN", "Ledger", "LedgerDamagedError", "Row", "read_rows"]

OPEN = ("pending", "partial", "failed", "damaged")
"""States of tiles that the next run makes (anew); the only other one is ``done``."""

_LAYOUT = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE inputs (digest TEXT PRIMARY KEY, items TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE tiles (
  product TEXT NOT NULL, tile TEXT NOT NULL, state TEXT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '',
  files TEXT NOT NULL DEFAULT '{}', inputs TEXT NOT NULL DEFAULT '',
  seconds REAL, bytes_read INTEGER, entry INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (product, tile)
) WITHOUT ROWID;
CREATE INDEX by_state ON tiles (state);
"""


class LedgerDamagedError(ValueError):
    """A ledger is absent, damaged or of another job; it can be made anew from the files."""


@dataclass(frozen=True)
class Row:
    """What is known of one tile of a product.

    Parameters
    ----------
    product, tile : str
    state : {"done", "pending", "partial", "failed", "damaged"}
    attempts : int
        How often it was worked on.
    error : str
    files : dict of str to str
        SHA-256 of each file, by its name.
    seconds : float or None
        None where it is not known.
    bytes_read : int or None
    """

    product: str
    tile: str
    state: str
    attempts: int
    error: str
    files: dict[str, str]
    seconds: float | None
    bytes_read: int | None


class Ledger:
    """The ledger of a job, open for writing. Use as a context manager, with the job's lock held.

    Parameters
    ----------
    path : Path
    job_hash : str

    Raises
    ------
    LedgerDamagedError
        When it is absent, damaged, or of another job.
    """

    def __init__(self, path: Path, job_hash: str) -> None:
        self._path = path
        self._connection = _connect(path, job_hash)
        last = self._connection.execute("SELECT coalesce(max(entry), 0) FROM tiles").fetchone()
        self._entry = int(last[0])

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()

    @classmethod
    def create(
        cls, path: Path, job_hash: str, about: dict[str, str], rows: Iterable[tuple[str, str]]
    ) -> Ledger:
        """Make a new ledger in which everything is pending; an old one is set aside.

        Parameters
        ----------
        path : Path
        job_hash : str
        about : dict of str to str
            What holds for all tiles, such as the digest of the ensemble.
        rows : iterable of (product, tile)

        Returns
        -------
        Ledger
        """
        scratch = path.with_name(f".{path.name}.partial")
        for name in (scratch, _journal(scratch)):
            name.unlink(missing_ok=True)
        with _explained(path), closing(sqlite3.connect(scratch, isolation_level=None)) as made:
            made.executescript(_LAYOUT)
            with _transaction(made):
                facts = about | {"job": job_hash}
                made.executemany("INSERT INTO about VALUES (?, ?)", sorted(facts.items()))
                made.executemany(
                    "INSERT INTO tiles (product, tile, state) VALUES (?, ?, 'pending')", rows
                )
        if path.exists():
            path.replace(path.with_name(f"{path.name}.damaged"))
        # The journal of a file that is gone would be played back into the new one.
        for suffix in ("-journal", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        scratch.replace(path)
        return cls(path, job_hash)

    def enter(self, made: Iterable[Made]) -> None:
        """Enter what became of tiles; on the disk when this returns."""
        with _explained(self._path), _transaction(self._connection):
            for one in made:
                self._entry += 1
                self._connection.execute(
                    "UPDATE tiles SET state = ?, attempts = attempts + 1, error = ?, files = ?, "
                    "inputs = ?, seconds = ?, bytes_read = ?, entry = ? "
                    "WHERE product = ? AND tile = ?",
                    (
                        one.state,
                        one.error,
                        json.dumps(one.files, sort_keys=True),
                        self._inputs(one.items),
                        one.seconds,
                        one.bytes_read,
                        self._entry,
                        one.product,
                        one.tile,
                    ),
                )

    def adopt(self, product: str, tile: str, files: dict[str, str]) -> None:
        """Enter a tile as done whose files were found verified."""
        self._set(product, tile, "done", "", files)

    def mark(self, product: str, tile: str, state: str, error: str) -> None:
        """Enter a tile as in need of work, and why; what its files should be stays known."""
        self._set(product, tile, state, error, None)

    def rows(self, *states: str) -> Iterator[Row]:
        """Tiles in some states, or all, by tile and product."""
        return _rows(self._connection, states)

    def counts(self) -> Counter[str]:
        """Count the tiles in each state."""
        return _counts(self._connection)

    def _set(
        self, product: str, tile: str, state: str, error: str, files: dict[str, str] | None
    ) -> None:
        self._entry += 1
        known = None if files is None else json.dumps(files, sort_keys=True)
        with _explained(self._path), _transaction(self._connection):
            self._connection.execute(
                "UPDATE tiles SET state = ?, error = ?, files = coalesce(?, files), entry = ? "
                "WHERE product = ? AND tile = ?",
                (state, error, known, self._entry, product, tile),
            )

    def _inputs(self, items: tuple[str, ...]) -> str:
        """Keep a list of inputs once; many tiles share theirs."""
        if not items:
            return ""
        text = " ".join(items)
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._connection.execute("INSERT OR IGNORE INTO inputs VALUES (?, ?)", (digest, text))
        return digest


@contextmanager
def read_rows(path: Path, tile: str = "") -> Iterator[tuple[Counter[str], Iterator[Row]]]:
    """Read a ledger, also while another process writes it. Computes.

    Parameters
    ----------
    path : Path
    tile : str
        Only rows of this tile; by default all.

    Yields
    ------
    counts : Counter
        Number of tiles in each state.
    rows : iterator of Row
        By tile and product.

    Raises
    ------
    JobError
        When it is absent or damaged.
    """
    if not path.is_file():
        msg = f"there is no {path}; run the job again, which makes it from the verified tiles"
        raise JobError(msg)
    try:
        with closing(_open(path, "ro")) as connection:
            yield _counts(connection), _rows(connection, (), tile)
    except sqlite3.DatabaseError as error:
        msg = f"{path} cannot be read ({error}); run the job again, which mends it"
        raise JobError(msg) from None


def _open(path: Path, mode: str) -> sqlite3.Connection:
    address = f"{path.resolve().as_uri()}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=60, isolation_level=None)


def _connect(path: Path, job_hash: str) -> sqlite3.Connection:
    if not path.is_file():
        msg = f"there is no {path}"
        raise LedgerDamagedError(msg)
    connection = _open(path, "rw")
    try:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = FULL")
        found = connection.execute("PRAGMA quick_check").fetchone()[0]
        if found != "ok":
            msg = f"{path} is damaged: {found}"
            raise LedgerDamagedError(msg)
        row = connection.execute("SELECT value FROM about WHERE key = 'job'").fetchone()
        if row is None or row[0] != job_hash:
            msg = f"{path} is of another job"
            raise LedgerDamagedError(msg)
    except sqlite3.OperationalError as error:
        connection.close()
        if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_READONLY", "SQLITE_IOERR")):
            msg = f"cannot write {path}: {error}; check the folder and its disk"
            raise OSError(errno.EROFS, msg) from None
        msg = f"{path} is damaged: {error}"
        raise LedgerDamagedError(msg) from None
    except (sqlite3.DatabaseError, LedgerDamagedError) as error:
        connection.close()
        msg = f"{path} is damaged: {error}"
        raise LedgerDamagedError(msg) from None
    return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say of errors in writing what they mean."""
    try:
        yield
    except sqlite3.OperationalError as error:
        full = "full" in str(error)
        msg = (
            f"cannot write {path}: {error}. What was made so far is kept; make room or mend the "
            "folder, and run the job again"
        )
        raise OSError(errno.ENOSPC if full else errno.EIO, msg) from error


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}-journal")


def _rows(connection: sqlite3.Connection, states: tuple[str, ...], tile: str = "") -> Iterator[Row]:
    chosen = f"WHERE state IN ({', '.join('?' * len(states))})" if states else ""
    chosen = "WHERE tile = ?" if tile else chosen
    query = (
        "SELECT product, tile, state, attempts, error, files, seconds, bytes_read FROM tiles "
        f"{chosen} ORDER BY tile, product"
    )
    for row in connection.execute(query, (tile,) if tile else states):
        product, tile, state, attempts, error, files, seconds, read = row
        yield Row(product, tile, state, attempts, error, json.loads(files), seconds, read)


def _counts(connection: sqlite3.Connection) -> Counter[str]:
    return Counter(dict(connection.execute("SELECT state, count(*) FROM tiles GROUP BY state")))
