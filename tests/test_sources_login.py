"""Services behind a login: the netrc file opens them, and keeps its secrets.

The server behaves as Earthdata Login does: files send to a login page on another host, which
asks for name and password, sets a cookie and sends back.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
from affine import Affine
from sources_world import write_tiff

from xsoilsm.catalog import open_catalog
from xsoilsm.facts import Sentinel1RtcSource
from xsoilsm.sources.access.links import Access, read_bytes
from xsoilsm.sources.pixels.reading import NativeReader, Patch, Raster
from xsoilsm.sources.sentinel1.acquisitions import complete, passes_of

NETRC = Access("netrc")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    logins: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        path, _, wanted = self.path.partition("?")
        if path == "/login":
            expected = "Basic " + base64.b64encode(b"me:secret").decode()
            self.logins.append(self.headers.get("Authorization", ""))
            if self.logins[-1] == expected:
                here = f"http://127.0.0.1:{port}/back?{wanted}"
                self.answer(302, Location=here, Set_Cookie="known=1; Path=/")
            else:
                self.answer(401, WWW_Authenticate='Basic realm="login"')
        elif path == "/back":
            self.answer(302, Location=wanted, Set_Cookie="session=1; Path=/")
        elif "session=1" not in (self.headers.get("Cookie") or ""):
            self.answer(302, Location=f"http://localhost:{port}/login?{self.path}")
        else:
            self.file(self.folder / path.lstrip("/"))

    def file(self, path: Path) -> None:
        content = path.read_bytes()
        wanted = self.headers.get("Range")
        if wanted is None:
            self.answer(200, content, Accept_Ranges="bytes")
            return
        first, last = wanted.removeprefix("bytes=").split("-")
        start, stop = int(first), min(int(last) + 1, len(content))
        span = f"bytes {start}-{stop - 1}/{len(content)}"
        self.answer(206, content[start:stop], Accept_Ranges="bytes", Content_Range=span)


@pytest.fixture
def login(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    logins: list[str] = []
    handler = type("Handler", (_Handler,), {"folder": tmp_path, "logins": logins})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", logins
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture(params=["$NETRC", "~/.netrc"])
def netrc(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XSOILSM_HTTP_TRIES", "1")
    if request.param == "$NETRC":
        path = tmp_path / "my-netrc"
        monkeypatch.setenv("NETRC", str(path))
    else:
        path = tmp_path / ".netrc"
        monkeypatch.setenv("HOME", str(tmp_path))
    path.write_text("machine localhost login me password secret\n")
    path.chmod(0o600)
    return path


def test_files_behind_a_login_are_read(
    login: tuple[str, list[str]], netrc: Path, tmp_path: Path
) -> None:
    url, logins = login
    values = np.random.default_rng(1).random((300, 300)).astype(np.float32)
    write_tiff(tmp_path / "burst.tif", values, Affine(30, 0, 6e5, 0, -30, 5e6), "EPSG:32631")
    (tmp_path / "annotation.xml").write_text("<product/>")
    before = {path for path in tmp_path.rglob("*")}
    with NativeReader((Raster(f"{url}/burst.tif", NETRC),)) as reader:
        (found,) = reader.read(Patch(0, 0, reader.geobox))
    np.testing.assert_array_equal(found, values)
    assert read_bytes(f"{url}/annotation.xml", NETRC) == b"<product/>"
    assert logins
    # Cookies stay in memory.
    assert {path for path in tmp_path.rglob("*")} == before
    assert not any("secret" in value for value in os.environ.values())


def test_a_wrong_password_is_an_error_that_does_not_tell_it(
    login: tuple[str, list[str]], netrc: Path, tmp_path: Path
) -> None:
    url, _ = login
    zeros = np.zeros((9, 9), np.float32)
    write_tiff(tmp_path / "b.tif", zeros, Affine(30, 0, 6e5, 0, -30, 5e6), "EPSG:32631")
    netrc.write_text("machine localhost login me password forgotten\n")
    with (
        pytest.raises(OSError, match="opening") as raised,
        NativeReader((Raster(f"{url}/b.tif", NETRC),)),
    ):
        pass
    assert "forgotten" not in str(raised.value)


# -- what OPERA's items do not state -----------------------------------------------------


def real_items(shared: Path) -> list[pystac.Item]:
    folder = shared / "data" / "stac"
    several = json.loads((folder / "sentinel-1-rtc-pc.json").read_text())
    one = [
        json.loads((folder / f"pc_sentinel-1-{kind}_item.json").read_text())
        for kind in ("rtc", "grd")
    ]
    features = several["features"] if isinstance(several, dict) else several
    return [pystac.Item.from_dict(item) for item in (*features, *one)]


def test_the_direction_of_a_pass_follows_from_its_hour(shared: Path) -> None:
    (source, *_) = open_catalog("opera").sources["radar"]
    assert isinstance(source, Sentinel1RtcSource)
    items = real_items(shared)
    assert len(items) >= 6
    for item in items:
        stated = item.properties.pop("sat:orbit_state")
        assert item.properties["sat:relative_orbit"]
        complete([item], source)
        assert item.properties["sat:orbit_state"] == stated


@pytest.mark.parametrize(
    ("time", "longitude", "state"),
    [
        ("2021-08-09T17:39:53Z", 12.0, "ascending"),  # Italy
        ("2019-09-17T06:10:00Z", -1.0, "descending"),  # Spain
        ("2024-01-13T02:08:16Z", -115.0, "ascending"),  # Nevada
        ("2024-01-13T13:50:00Z", -112.0, "descending"),  # Utah
        ("2024-01-13T08:20:00Z", 146.0, "ascending"),  # Victoria
    ],
)
def test_bursts_are_grouped_by_track_and_pass(time: str, longitude: float, state: str) -> None:
    (source, *_) = open_catalog("opera").sources["radar"]
    assert isinstance(source, Sentinel1RtcSource)
    stamp = time.replace("-", "").replace(":", "")
    items = [
        pystac.Item.from_dict(
            {
                "type": "Feature",
                "stac_version": "1.0.0",
                "id": f"OPERA_L2_RTC-S1_T{track}-{burst}-IW2_{stamp}_20240113T113128Z_S1A_30_v1.0",
                "bbox": [longitude, 40, longitude + 1, 41],
                "geometry": None,
                "properties": {"datetime": time},
                "assets": {},
                "links": [],
            }
        )
        for track, burst in (("035", "073251"), ("035", "073252"), ("137", "292318"))
    ]
    complete(items, source)
    assert {item.properties["platform"] for item in items} == {"S1A"}
    passes = [[i.properties["sat:relative_orbit"] for i in slices] for slices in passes_of(items)]
    assert sorted(passes) == [[35, 35], [137]]
    assert {item.properties["sat:orbit_state"] for item in items} == {state}
