"""Settings of the whole test session; they are in place before anything else is imported.

* No test reaches the outside world: sockets lead to this machine only, and GDAL, curl and
  other libraries that bring sockets of their own find a proxy at which nobody answers.
* No test touches the user's files: the home folder and all caches lie in a temporary folder.
* Ctrl-C interrupts, in this process and in those that tests start, even where the session is a
  background job of a shell, which has it ignored.
* Real sample data lie in ``shared`` beside the checkout. Tests that need them are skipped
  where the folder is absent, and fail where the variable ``CI`` says that it must be there.
"""

from __future__ import annotations

import atexit
import ipaddress
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
"""Root of the checkout."""


def _isolate() -> None:
    """Point every folder and every connection of this process away from the user's own."""
    home = Path(tempfile.mkdtemp(prefix="xsoilsm-tests-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "PC_SDK_", "XSOILSM_", "XDG_", "GDAL_")):
            del os.environ[name]
    dead_proxy = "http://127.0.0.1:9"
    for name in ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy"):
        os.environ[name] = os.environ[name.upper()] = dead_proxy
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost,::1"
    os.environ.update(
        HOME=str(home),
        XDG_CACHE_HOME=str(home / ".cache"),
        XDG_CONFIG_HOME=str(home / ".config"),
        XDG_DATA_HOME=str(home / ".local" / "share"),
        XSOILSM_CACHE_DIR=str(home / "cache"),
        XSOILSM_DATA_DIR=str(home / "data"),
        AWS_EC2_METADATA_DISABLED="true",
        GDAL_HTTP_CONNECTTIMEOUT="5",
        GDAL_HTTP_TIMEOUT="20",
        PROJ_NETWORK="OFF",
        # Compiled kernels and the font list are costly and the same every time: keep them.
        NUMBA_CACHE_DIR=str(ROOT / ".cache" / "numba"),
        MPLCONFIGDIR=str(ROOT / ".cache" / "matplotlib"),
        MPLBACKEND="Agg",
        # Two threads of a shared machine lose more by waiting than they win.
        OMP_NUM_THREADS="1",
    )


def _is_local(host: object) -> bool:
    if host is None or host in ("", b"", "localhost", b"localhost"):
        return True
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _stay_local(event: str, args: tuple[Any, ...]) -> None:
    """Audit hook that refuses addresses and names of other machines.

    The interpreter calls it for every socket, however it was made, also in threads and in
    fixtures. Unix sockets have a path instead of an address and pass.
    """
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        outside = isinstance(address, tuple) and not _is_local(address[0])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        address = args[0]
        outside = not _is_local(address)
    else:
        return
    if outside:
        msg = f"tests stay on this machine: {event} to {address!r} was refused"
        raise PermissionError(msg)


_isolate()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.addaudithook(_stay_local)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

pytest_plugins = ["services.fixtures", "mapping_fixtures"]

# Speed on a shared machine says nothing about a property, so it is no part of any verdict.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("here"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the shared data, so that ``-m "not shared"`` leaves them out."""
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.shared)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real sample data, published weights and golden files; read only."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        reason = "the folder ../shared with real sample data is not beside the checkout"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}, but continuous integration must have it")
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """Program of a browser without a window."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        reason = "Chromium is not installed (Debian's package chromium)"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}, but continuous integration must have it")
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def weights_dir(shared: Path) -> Path:
    """Folder of the 25 published coarse networks, as pickled state dicts."""
    return shared / "weights"


@pytest.fixture(scope="session")
def golden(shared: Path) -> dict[str, np.ndarray]:
    """Artificial samples with their features and outputs by an independent implementation."""
    with np.load(shared / "golden" / "published_coarse.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    for array in arrays.values():
        array.setflags(write=False)
    return arrays
