"""Start the blob storage and steer it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services import blob_server


class BlobStorage:
    """A running blob storage.

    Parameters
    ----------
    url : str
        Its root.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def tokens_url(self) -> str:
        """Address for ``PC_SDK_SAS_URL``."""
        return self.url + blob_server.TOKENS.rstrip("/")

    def _order(self, order: dict[str, Any]) -> None:
        request = urllib.request.Request(
            self.url + blob_server.CONTROL, json.dumps(order).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()

    def reset(self) -> None:
        """Forget faults, requests and the clock."""
        self._order({"reset": True})

    def advance(self, seconds: float) -> None:
        """Be ahead of the true time, so that tokens have expired."""
        self._order({"clock": seconds})

    def lifetime(self, seconds: float) -> None:
        """Set for how long new tokens hold."""
        self._order({"lifetime": seconds})

    def fail(
        self,
        pattern: str,
        kind: int | str,
        *,
        count: int | None = None,
        skip: int = 0,
        **details: Any,
    ) -> None:
        """Fail requests whose path matches; see `blob_server`."""
        fault = {"pattern": pattern, "kind": kind, "count": count, "skip": skip, **details}
        self._order({"fault": fault})

    def weather(self, share: float, faults: Iterable[Mapping[str, Any]], *, seed: int = 0) -> None:
        """Fail a share of all requests at random, each by one of the faults."""
        drawn = [dict(fault) for fault in faults]
        self._order({"weather": {"share": share, "faults": drawn, "seed": seed}})

    def requests(self, pattern: str = "") -> list[dict[str, Any]]:
        """List the requests since the last reset whose path matches."""
        with urllib.request.urlopen(self.url + blob_server.CONTROL, timeout=60) as answer:
            log: list[dict[str, Any]] = json.load(answer)
        return [entry for entry in log if re.search(pattern, entry["path"])]


@contextmanager
def blob_storage(
    folder: Path,
    containers: Mapping[str, Path],
    public: Mapping[str, Path],
    *,
    upstream: str = "",
    port: int = 0,
) -> Iterator[BlobStorage]:
    """Run a blob storage in a process of its own as long as the block runs.

    Parameters
    ----------
    folder : Path
        For the configuration.
    containers : mapping of str to Path
        Folder of each ``account/container``.
    public : mapping of str to Path
        Folder of each first part of a path that needs no signature.
    upstream : str
        STAC API whose requests are passed on; the storage's address is that of the API then.
    port : int
        Taken if it is free.
    """
    file = folder / "blob-storage.json"
    content = {
        "containers": {name: str(path) for name, path in containers.items()},
        "public": {name: str(path) for name, path in public.items()},
        "upstream": upstream,
        "port": port,
    }
    file.write_text(json.dumps(content))
    process = subprocess.Popen(
        [sys.executable, "-I", blob_server.__file__, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the tests; the end of its input ends the server
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdout as lines:
            address = json.loads(lines.readline())["url"]
            yield BlobStorage(address)
    finally:
        process.stdin.close()
        process.wait(10)
