"""Program of a blob storage with signatures that expire, byte ranges and faults on demand.

Usage: ``python blob_server.py CONFIGURATION``. Prints its address as one line of JSON and serves
until its standard input is closed, so it never outlives the process that started it.

The configuration is a JSON file: ``containers`` gives a folder for each ``account/container``,
``public`` a folder for each first part of a path that needs no signature. ``upstream``, where
given, is the address of a STAC API whose requests are passed on, so that they fail, too; ``port``
asks for a port (0, or one that is taken: any).

``/api/sas/v1/token/ACCOUNT/CONTAINER``
    A token for the container, in the form in which the Planetary Computer gives it.
``/ACCOUNT/CONTAINER/BLOB?TOKEN``
    A blob. 403 without a signature, with one for another container, or after its expiry.
    ``/~ANYTHING`` before it is ignored: another address for clients that remember.
``/_control``
    POST of JSON: ``{"reset": true}``, ``{"clock": seconds}`` to be ahead of the true time,
    ``{"lifetime": seconds}`` of new tokens, ``{"fault": {...}}``, or ``{"weather": {...}}``. GET
    gives the requests.

A fault has ``pattern`` (regular expression, searched in the path), ``kind``, ``count`` (how many
times; null for always) and ``skip`` (how many requests pass first). Kinds: a status as a number
with ``retry_after``; ``reset`` of the connection before the answer or ``reset-midway``;
``slow-start`` and ``slow`` (one byte each ``pause`` s); ``half`` (of the announced bytes, then
the end); ``short-file`` (as if the upload had broken off halfway); ``whole`` (the range is
ignored); ``wrong-range`` (other bytes than asked for).

Weather is faults at random: a ``share`` of all requests has one of the ``faults``, drawn with
``seed``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import random
import re
import secrets
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

TOKENS = "/api/sas/v1/token/"
CONTROL = "/_control"
_FORM = "%Y-%m-%dT%H:%M:%SZ"
_OF_THE_API = ("", "search", "collections", "conformance", "queryables")


@dataclass
class Storage:
    """What is served, and how it is to fail."""

    containers: dict[str, Path]
    public: dict[str, Path]
    upstream: str = ""
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    clock: float = 0.0
    lifetime: float = 2700.0
    faults: list[dict[str, Any]] = field(default_factory=list)
    weather: dict[str, Any] = field(default_factory=dict)
    dice: random.Random = field(default_factory=random.Random)
    log: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> float:
        return time.time() + self.clock

    def signature(self, container: str, start: str, expiry: str) -> str:
        text = f"{container}\n{start}\n{expiry}".encode()
        return base64.b64encode(hmac.digest(self.secret, text, hashlib.sha256)).decode()

    def token(self, container: str) -> dict[str, str]:
        start = datetime.fromtimestamp(self.now() - 60, UTC).strftime(_FORM)
        expiry = datetime.fromtimestamp(self.now() + self.lifetime, UTC).strftime(_FORM)
        signature = self.signature(container, start, expiry)
        parts = {"st": start, "se": expiry, "sp": "rl", "sv": "2024-05-04", "sr": "c"}
        text = "&".join(f"{k}={quote(v, safe='')}" for k, v in {**parts, "sig": signature}.items())
        return {"msft:expiry": expiry, "token": text}

    def refusal(self, container: str, query: str) -> str:
        """Why a request is not authorized; empty where it is."""
        stated = dict(parse_qsl(query))
        if "sig" not in stated:
            return "unsigned"
        expected = self.signature(container, stated.get("st", ""), stated.get("se", ""))
        if not hmac.compare_digest(expected, stated["sig"]):
            return "wrong signature"
        end = datetime.strptime(stated["se"], _FORM).replace(tzinfo=UTC).timestamp()
        return "expired" if end <= self.now() else ""

    def fault_of(self, path: str) -> dict[str, Any] | None:
        with self.lock:
            for fault in self.faults:
                if fault["count"] == 0 or not re.search(fault["pattern"], path):
                    continue
                if fault["skip"]:
                    fault["skip"] -= 1
                    continue
                if fault["count"] is not None:
                    fault["count"] -= 1
                return fault
            if self.weather and self.dice.random() < self.weather["share"]:
                drawn: dict[str, Any] = self.dice.choice(self.weather["faults"])
                return drawn
        return None

    def control(self, order: dict[str, Any]) -> None:
        with self.lock:
            if order.get("reset"):
                self.clock, self.lifetime = 0.0, 2700.0
                self.faults.clear()
                self.weather = {}
                self.log.clear()
            self.clock = order.get("clock", self.clock)
            self.lifetime = order.get("lifetime", self.lifetime)
            if "fault" in order:
                self.faults.append({"count": None, "skip": 0} | order["fault"])
            if "weather" in order:
                self.weather = order["weather"]
                self.dice = random.Random(self.weather.get("seed", 0))

    def file_of(self, path: str) -> Path | None:
        first, _, rest = path.strip("/").partition("/")
        if first.startswith("~"):
            first, _, rest = rest.partition("/")
        second, _, blob = rest.partition("/")
        folder, name = self.containers.get(f"{first}/{second}"), blob
        if first in self.public:
            folder, name = self.public[first], rest
        if folder is None or ".." in name.split("/"):
            return None
        file = folder / name
        return file if file.is_file() else None


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave together
    storage: Storage

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.entry["status"] = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.entry["bytes"] = len(body)
        self.wfile.flush()

    def answer_json(self, content: Any) -> None:
        self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def refuse(self, status: int, code: str, **headers: str) -> None:
        body = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code></Error>'
        self.answer(status, body.encode(), Content_Type="application/xml", **headers)

    def do_POST(self) -> None:
        self.entry: dict[str, Any] = {}
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        if path == CONTROL:
            self.storage.control(json.loads(body))
            self.answer_json({})
        elif self.is_of_the_api(path):
            self.respond(path, body)
        else:
            self.answer(405)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        if path == CONTROL:
            self.entry = {}
            with self.storage.lock:
                body = json.dumps(self.storage.log).encode()
            self.answer(200, body)
            return
        self.respond(path)

    def is_of_the_api(self, path: str) -> bool:
        first = path.strip("/").partition("/")[0]
        return bool(self.storage.upstream) and first in _OF_THE_API

    def respond(self, path: str, body: bytes | None = None) -> None:
        self.entry = {
            "time": time.time(),
            "method": self.command,
            "path": path,
            "range": self.headers.get("Range", ""),
            "status": None,
            "bytes": 0,
        }
        with self.storage.lock:
            self.storage.log.append(self.entry)
        fault = self.storage.fault_of(path) or {}
        self.entry["fault"] = kind = fault.get("kind")
        if isinstance(kind, int):
            after = {"Retry_After": str(fault["retry_after"])} if "retry_after" in fault else {}
            self.refuse(kind, "Fault", **after)
        elif kind == "reset":
            self.reset()
        elif path.startswith(TOKENS):
            self.give_token(path.removeprefix(TOKENS), fault)
        elif self.is_of_the_api(path):
            self.pass_on(body, fault)
        else:
            self.give_blob(path, urlsplit(self.path).query, fault)

    def pass_on(self, body: bytes | None, fault: dict[str, Any]) -> None:
        """Ask the STAC API, which takes this address for its own and puts it into links."""
        connection = http.client.HTTPConnection(urlsplit(self.storage.upstream).netloc, timeout=60)
        kept = ("Host", "Accept", "Content-Type")
        headers = {name: self.headers[name] for name in kept if name in self.headers}
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        kind = {"Content-Type": answer.headers.get("Content-Type", "application/json")}
        self.give_bytes(answer.status, content, kind, fault)

    def give_token(self, container: str, fault: dict[str, Any]) -> None:
        if fault.get("kind") == "slow-start":
            time.sleep(fault["pause"])
        if container in self.storage.containers:
            self.answer_json(self.storage.token(container))
        else:
            self.refuse(404, "ContainerNotFound")

    def give_blob(self, path: str, query: str, fault: dict[str, Any]) -> None:
        account, _, rest = path.strip("/").partition("/")
        if account.startswith("~"):
            account, _, rest = rest.partition("/")
        container = f"{account}/{rest.partition('/')[0]}"
        if account not in self.storage.public:
            refusal = self.storage.refusal(container, query)
            if refusal:
                self.entry["refusal"] = refusal
                self.refuse(403, "AuthenticationFailed")
                return
        file = self.storage.file_of(path)
        if file is None:
            self.refuse(404, "BlobNotFound")
            return
        size = file.stat().st_size
        kind = fault.get("kind")
        if kind == "short-file":
            size //= 2
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or kind == "whole":
            self.give_bytes(200, _part(file, 0, size), {}, fault)
            return
        start = int(wanted[1]) + (1 if kind == "wrong-range" else 0)
        stop = min(int(wanted[2] or size - 1) + 1, size)
        if start >= stop:
            self.answer(416, Content_Range=f"bytes */{size}")
            return
        stated = {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        self.give_bytes(206, _part(file, start, stop), stated, fault)

    def give_bytes(
        self, status: int, body: bytes, headers: dict[str, str], fault: dict[str, Any]
    ) -> None:
        kind = fault.get("kind")
        if kind == "slow-start":
            time.sleep(fault["pause"])
        self.entry["status"] = status
        self.send_response(status)
        stated = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        for name, value in (stated | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.flush()
        if self.command == "HEAD":
            return
        self.entry["bytes"] = len(body) // (2 if kind in ("half", "reset-midway") else 1)
        if kind == "slow":
            for k in range(len(body)):
                self.wfile.write(body[k : k + 1])
                self.wfile.flush()
                time.sleep(fault["pause"])
        elif kind in ("half", "reset-midway"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if kind == "reset-midway":
                self.reset()
            self.close_connection = True
        else:
            self.wfile.write(body)
            self.wfile.flush()

    def reset(self) -> None:
        """Close so that the client gets a reset instead of an end."""
        self.entry["status"] = "reset"
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()


def _part(file: Path, start: int, stop: int) -> bytes:
    with file.open("rb") as source:
        source.seek(start)
        return source.read(stop - start)


class Server(ThreadingHTTPServer):
    """Forgets clients that hang up."""

    daemon_threads = True
    request_queue_size = 128

    def shutdown_request(self, request: Any) -> None:
        try:
            super().shutdown_request(request)
        except OSError:
            pass

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | ValueError | OSError):
            super().handle_error(request, client_address)


def main() -> None:
    content = json.loads(Path(sys.argv[1]).read_text())
    storage = Storage(
        {name: Path(folder) for name, folder in content["containers"].items()},
        {name: Path(folder) for name, folder in content["public"].items()},
        content.get("upstream", ""),
    )
    bound = type("Bound", (Handler,), {"storage": storage})
    try:
        server = Server(("127.0.0.1", content.get("port", 0)), bound)
    except OSError:
        server = Server(("127.0.0.1", 0), bound)
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    sys.stdout.write(json.dumps({"url": f"http://127.0.0.1:{server.server_port}"}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()  # ends with the process that holds the other end


if __name__ == "__main__":
    main()
