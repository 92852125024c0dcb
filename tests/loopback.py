"""A file server and a small STAC API on this machine, with faults on demand."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Loopback:
    """What the server serves, and what it was asked.

    Parameters
    ----------
    folder : Path
        Files below ``/files``, with ranges.
    items : list of dict
        STAC items that ``/stac`` finds.
    faults : dict of str to list of int
        Per path the next answers, instead of the file: a status, or 0 for a closed connection.
    token : str
        Where set, files are only given with ``?token=`` and this.
    """

    folder: Path
    items: list[dict[str, Any]] = field(default_factory=list)
    faults: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    token: str = ""
    asked: list[str] = field(default_factory=list)
    searches: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    world: Loopback

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

    def answer_json(self, content: Any) -> None:
        self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = parts.path
        self.world.asked.append(path)
        if self.world.faults[path]:
            status = self.world.faults[path].pop(0)
            if status == 0:
                self.close_connection = True
                return
            self.answer(status)
        elif path.rstrip("/") == "/stac":
            self.answer_json(self.landing())
        elif path.startswith("/stac/collections/"):
            name = path.rsplit("/", 1)[-1]
            found = [item for item in self.world.items if item["id"] == name]
            if found:
                self.answer_json(found[0])
            else:
                self.answer(404)
        elif path.startswith("/files/"):
            self.file(path.removeprefix("/files/"), parse_qs(parts.query))
        else:
            self.answer(404)

    def file(self, name: str, query: dict[str, list[str]]) -> None:
        path = self.world.folder / name
        if self.world.token and query.get("token") != [self.world.token]:
            self.answer(403)
        elif not path.is_file():
            self.answer(404)
        else:
            content = path.read_bytes()
            wanted = self.headers.get("Range")
            if wanted is None:
                self.answer(200, content, Accept_Ranges="bytes")
                return
            first, last = wanted.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last or len(content) - 1) + 1, len(content))
            self.answer(
                206,
                content[start:stop],
                Accept_Ranges="bytes",
                Content_Range=f"bytes {start}-{stop - 1}/{len(content)}",
            )

    def landing(self) -> dict[str, Any]:
        url = self.world.url
        core = "https://api.stacspec.org/v1.0.0"
        return {
            "type": "Catalog",
            "id": "loopback",
            "stac_version": "1.0.0",
            "description": "test",
            "conformsTo": [f"{core}/core", f"{core}/item-search"],
            "links": [
                {"rel": "root", "href": f"{url}/stac", "type": "application/json"},
                {"rel": "self", "href": f"{url}/stac", "type": "application/json"},
                {
                    "rel": "search",
                    "href": f"{url}/stac/search",
                    "type": "application/geo+json",
                    "method": "POST",
                },
            ],
        }

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        if self.world.faults[path]:
            self.answer(self.world.faults[path].pop(0))
            return
        query = json.loads(body)
        self.world.searches.append(query)
        west, south, east, north = query["bbox"]
        first, last = query["datetime"].split("/")

        def matches(item: dict[str, Any]) -> bool:
            w, s, e, n = item["bbox"]
            stated = item["properties"]
            begin = stated.get("start_datetime") or stated["datetime"]
            end = stated.get("end_datetime") or stated["datetime"]
            inside = w <= east and e >= west and s <= north and n >= south
            days = begin[:10] <= last[:10] and end[:10] >= first[:10]
            return item["collection"] in query["collections"] and inside and days

        found = [item for item in self.world.items if matches(item)]
        self.answer_json({"type": "FeatureCollection", "features": found, "links": []})


@contextmanager
def serve(folder: Path) -> Iterator[Loopback]:
    """Serve a folder at ``url/files`` and a STAC API at ``url/stac`` as long as the block runs."""
    world = Loopback(folder)
    handler = type("Handler", (_Handler,), {"world": world})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    world.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield world
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
