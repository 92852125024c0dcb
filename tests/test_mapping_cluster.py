"""Jobs on the workers of a Dask cluster, which come and go."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mapping_scene
import pytest
from mapping_scene import files_of, places_of

from xsoilsm.mapping import Job, run_job
from xsoilsm.mapping.workers import Cluster, Outcome

distributed = pytest.importorskip("distributed")


pytestmark = pytest.mark.usefixtures("scene")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in mapping_scene.settings().items():
            patch.setenv(name, value)  # workers inherit it
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as made:
            yield made


def _when(condition: Callable[[], bool], action: Callable[[], object]) -> threading.Thread:
    """Do something as soon as something is so, beside the test."""

    def watch() -> None:
        limit = time.monotonic() + 120
        while not condition() and time.monotonic() < limit:
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_two_workers_make_the_same_files_and_one_of_them_dies(
    fresh: Job, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, files = mapping_scene.undisturbed()
    seen = []
    wait = Cluster.wait

    def watched(workers: Cluster) -> Outcome | None:
        seen.append(len(workers._out))
        return wait(workers)

    monkeypatch.setattr(Cluster, "wait", watched)
    with distributed.Client(cluster) as client:
        victim = next(iter(client.run(os.getpid).values()))
        watcher = _when(
            lambda: any(fresh.tiles.glob("*/*/*.tif")), lambda: os.kill(victim, signal.SIGKILL)
        )
        summary = run_job(fresh, client=client, window=3)
        watcher.join()
        assert summary.is_complete, summary
        assert files_of(fresh.folder) == files
        assert max(seen) <= 3, "the scheduler saw more than the window"
        before = places_of(fresh.folder)
        assert run_job(fresh, client=client).made == 0
        assert places_of(fresh.folder) == before
        assert client.status == "running", "a client that was lent is not closed"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class _Programs:
    """A scheduler and a worker as programs of their own."""

    def __init__(self, port: int, folder: Path) -> None:
        self.address = f"tcp://127.0.0.1:{port}"
        self._folder = folder
        self._port = port
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        dask = [sys.executable, "-m", "dask"]
        options = ["--no-dashboard", "--host", "127.0.0.1"]
        scheduler = [*dask, "scheduler", "--port", str(self._port), *options]
        worker = [*dask, "worker", self.address, "--nthreads", "1", "--no-nanny", *options]
        for program in (scheduler, worker):
            self._running.append(
                subprocess.Popen(
                    program,
                    cwd=self._folder,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )

    def kill(self) -> None:
        for program in self._running:
            program.kill()
            program.wait()
        self._running.clear()

    def restart(self) -> None:
        self.kill()
        self.start()


def test_a_scheduler_that_is_killed_and_started_again(fresh: Job, tmp_path: Path) -> None:
    _, files = mapping_scene.undisturbed()
    programs = _Programs(_free_port(), tmp_path)
    programs.start()
    try:
        watcher = _when(lambda: any(fresh.tiles.glob("*/*/*.tif")), programs.restart)
        summary = run_job(fresh, client=programs.address)
        watcher.join()
    finally:
        programs.kill()
    assert summary.is_complete, summary
    assert files_of(fresh.folder) == files


def _force(way: str) -> None:
    os.environ["XSOILSM_ENGINE"] = way


def test_a_machine_that_would_give_other_numbers_refuses(fresh: Job, cluster: Any) -> None:
    with distributed.Client(cluster) as client:
        client.run(_force, "plain")
        try:
            summary = run_job(fresh, client=client, attempts=1)
        finally:
            client.run(_force, "")
    way = fresh.configuration.engine
    assert summary.failed == summary.total == mapping_scene.TILES
    assert f"runs networks in the way 'plain', the job was begun with '{way}'" in str(summary)
    assert not files_of(fresh.folder)


def test_no_scheduler_at_all_is_said(fresh: Job) -> None:
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(OSError, match=r"(?i)timed out|connect"),
    ):
        run_job(fresh, client=f"tcp://127.0.0.1:{_free_port()}")
