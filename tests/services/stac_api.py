"""A STAC API on PostgreSQL: what is needed for it, and how it is started."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services import keeper

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".cache" / "stac-venv" / "bin" / "python"
"""Interpreter of the API's own environment; its packages must not mix with the project's."""

LOADER = Path(__file__).with_name("stac_loader.py")

_FAST = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
    "jit": "off",
    "shared_buffers": "64MB",
    "max_connections": "24",
    "listen_addresses": "127.0.0.1",
}


@dataclass(frozen=True)
class Database:
    """Where PostgreSQL listens.

    Parameters
    ----------
    port : int
    password : str
    """

    port: int
    password: str

    @property
    def environment(self) -> dict[str, str]:
        """The process's environment, with what PostgreSQL's clients look for."""
        stated = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
            "PGPASSWORD": self.password,
            "PGDATABASE": "postgres",
        }
        return {**os.environ, **stated}


def missing() -> str:
    """Say what is missing on this machine for a STAC API; empty where nothing is."""
    if not PYTHON.exists():
        return f"{PYTHON.relative_to(ROOT)} is not there; `make test` makes it"
    programs = _programs()
    if programs is None:
        return "PostgreSQL is not installed (Debian: postgresql-15 postgresql-15-postgis-3)"
    config = subprocess.run(
        [programs / "pg_config", "--sharedir"], capture_output=True, text=True, check=True
    )
    if not (Path(config.stdout.strip()) / "extension" / "postgis.control").exists():
        return "PostGIS is not installed (Debian: postgresql-15-postgis-3)"
    if os.geteuid() == 0 and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        return "PostgreSQL does not run as root, and there is no user postgres"
    return ""


def _programs() -> Path | None:
    """Folder of PostgreSQL's server programs."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("postgres")
    if found:
        places.append(Path(found).resolve().parent)
    return next((p for p in places if (p / "initdb").exists() and (p / "pg_config").exists()), None)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _kept(argv: Iterable[str | Path], log: Path, **order: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server under a keeper."""
    order = {"signal": "SIGTERM", "user": None, "folder": None, "environment": None} | order
    environment = order.pop("environment")
    content = {"argv": [str(part) for part in argv], "log": str(log), **order}
    process = subprocess.Popen(
        [sys.executable, "-I", keeper.__file__, json.dumps(content)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the tests; the end of its input ends the server
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdout:
            process.stdout.readline()
            yield process
    finally:
        process.stdin.close()
        process.wait(20)


def _wait(ready: Any, process: subprocess.Popen[bytes], log: Path, what: str) -> None:
    end = time.monotonic() + 60
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            msg = f"{what} did not start:\n{tail}"
            raise RuntimeError(msg)
        time.sleep(0.05)


@contextmanager
def _postgres() -> Iterator[Database]:
    programs = _programs()
    assert programs is not None
    user = "postgres" if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="xsoilsm-pg-"))
    database = Database(_free_port(), secrets.token_hex(16))
    try:
        (home / "password").write_text(database.password)
        if user:
            for path in (home, home / "password"):
                shutil.chown(path, user, user)
        as_user: dict[str, Any] = {"user": user, "group": user} if user else {}
        argv: list[str | Path] = [programs / "initdb", "-D", home / "data", "-U", "postgres"]
        argv += ["-A", "scram-sha-256", "--pwfile", home / "password", "--no-sync"]
        argv += ["-E", "UTF8", "--locale", "C.UTF-8"]
        subprocess.run(
            argv,
            check=True,
            capture_output=True,
            cwd="/",
            **as_user,
        )
        settings = [f"--{name}={value}" for name, value in _FAST.items()]
        argv = [programs / "postgres", "-D", home / "data", "-p", str(database.port)]
        argv += ["-k", home, *settings]
        log = home / "postgres.log"
        end = {"signal": "SIGINT", "user": user, "folder": str(home)}  # SIGINT: at once, in order
        with _kept(argv, log, **end) as process:
            check = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(database.port)]
            _wait(lambda: subprocess.run(check, check=False).returncode == 0, process, log, "psql")
            yield database
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def stac_api(
    folder: Path, collections: Iterable[dict[str, Any]], items: Iterable[dict[str, Any]]
) -> Iterator[str]:
    """Run a STAC API on PostgreSQL as long as the block runs; gives its address.

    Parameters
    ----------
    folder : Path
        For files of the session.
    collections, items : iterable of dict
        What it serves.
    """
    files = []
    for name, content in (("collections", collections), ("items", items)):
        files.append(folder / f"{name}.ndjson")
        files[-1].write_text("".join(json.dumps(entry) + "\n" for entry in content))
    with ExitStack() as stack:
        database = stack.enter_context(_postgres())
        environment = database.environment
        subprocess.run(
            [PYTHON, "-I", LOADER, *files],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )
        port = _free_port()
        url = f"http://127.0.0.1:{port}"
        argv = [PYTHON, "-I", "-m", "uvicorn", "stac_fastapi.pgstac.app:create_app", "--factory"]
        argv += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
        log = folder / "stac-api.log"
        process = stack.enter_context(_kept(argv, log, environment=environment))
        _wait(lambda: _answers(f"{url}/_mgmt/ping"), process, log, "the STAC API")
        yield url


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError, urllib.error.URLError):
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    return False
