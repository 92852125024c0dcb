"""The walls around the tests hold: they stay on this machine and off the user's files."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.errors import RasterioIOError

OUTSIDE = "192.0.2.1"  # a documentation address (RFC 5737): nobody's machine


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Address of a server of one small GeoTIFF.

    It is a process of its own: GDAL holds the interpreter's lock during some requests, and a
    server in a thread could not answer them.
    """
    with rasterio.open(
        tmp_path / "a.tif",
        "w",
        driver="GTiff",
        width=8,
        height=8,
        count=1,
        dtype="uint8",
        crs="EPSG:6933",
        transform=rasterio.Affine(10, 0, 0, 0, -10, 0),
    ) as file:
        file.write(np.arange(64, dtype="uint8").reshape(8, 8), 1)
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().partition(" port ")[2].split()[0]
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_sockets_to_other_machines_are_refused(method: str) -> None:
    with (
        socket.socket() as one,
        pytest.raises(PermissionError, match="stay on this machine"),
    ):
        getattr(one, method)((OUTSIDE, 80))


def test_datagrams_and_names_of_other_machines_are_refused() -> None:
    with (
        socket.socket(type=socket.SOCK_DGRAM) as one,
        pytest.raises(PermissionError, match="stay on this machine"),
    ):
        one.sendto(b"x", (OUTSIDE, 53))
    with pytest.raises(PermissionError, match=r"example\.com"):
        socket.getaddrinfo("example.com", 443)
    with pytest.raises(PermissionError, match=r"example\.com"):
        socket.create_connection(("example.com", 443))


def test_loopback_and_unix_sockets_work(tmp_path: Path) -> None:
    with socket.create_server(("localhost", 0)) as server:
        with socket.create_connection(server.getsockname(), timeout=5) as one:
            assert one.getpeername() == server.getsockname()
        server.accept()[0].close()
    path = str(tmp_path / "s")
    with (
        socket.socket(socket.AF_UNIX) as server,
        socket.socket(socket.AF_UNIX) as one,
    ):
        server.bind(path)
        server.listen()
        one.connect(path)


def test_gdal_reads_from_loopback(served: str) -> None:
    with rasterio.open(f"/vsicurl/{served}/a.tif") as file:
        assert file.read(1).sum() == np.arange(64).sum()


def test_gdal_fails_fast_outside() -> None:
    start = time.perf_counter()
    with pytest.raises(RasterioIOError):
        rasterio.open(f"/vsicurl/http://{OUTSIDE}/a.tif")
    assert time.perf_counter() - start < 4


def test_subprocesses_find_a_dead_proxy(served: str) -> None:
    code = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=10).read()"
    run = partial(subprocess.run, capture_output=True, text=True, timeout=60, check=False)
    assert run([sys.executable, "-c", code, f"{served}/a.tif"]).returncode == 0
    outside = run([sys.executable, "-c", code, f"http://{OUTSIDE}/a.tif"])
    assert "Connection refused" in outside.stderr
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"http://{OUTSIDE}/a.tif", timeout=10)


def test_proj_asks_no_server() -> None:
    import pyproj

    assert not pyproj.network.is_network_enabled()


def test_folders_are_temporary() -> None:
    home = Path.home()
    assert home.name.startswith("xsoilsm-tests-")
    for name in ("XDG_CACHE_HOME", "XSOILSM_CACHE_DIR", "XSOILSM_DATA_DIR"):
        assert Path(os.environ[name]).is_relative_to(home)
    assert not any(name.startswith("AWS_ACCESS") for name in os.environ)
