"""Worker processes of a job: they die, cannot start, and never outlive the job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from mapping_scene import files_of

from xsoilsm.mapping import Job, run_job
from xsoilsm.mapping.processes import Processes
from xsoilsm.mapping.workers import Outcome

pytestmark = pytest.mark.usefixtures("scene")


def _running(workers: Processes) -> list[int]:
    return [pid for pid in workers.pids if Path(f"/proc/{pid}").exists()]


def test_a_worker_that_is_killed_costs_no_tile_and_is_replaced(
    fresh: Job, undisturbed: tuple[Job, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, victims, crews = Processes.wait, [], []

    def kills(workers: Processes) -> Outcome | None:
        crews.append(workers)
        if not victims and workers.pids:  # it has had a unit since it began
            victims.append(workers.pids[0])
            os.kill(victims[0], signal.SIGKILL)
        return wait(workers)

    monkeypatch.setattr(Processes, "wait", kills)
    summary = run_job(fresh, workers=2)
    assert victims
    assert summary.is_complete, summary
    assert files_of(fresh.folder) == undisturbed[1]
    assert not _running(crews[0])


def test_the_program_that_workers_are_forked_from_may_die(
    fresh: Job, undisturbed: tuple[Job, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, victims = Processes.wait, []

    def kills(workers: Processes) -> Outcome | None:
        program = workers._nursery._program
        if not victims and workers.pids and program is not None:
            victims.append(program.pid)
            program.kill()
        return wait(workers)

    monkeypatch.setattr(Processes, "wait", kills)
    assert run_job(fresh, workers=2).is_complete
    assert victims
    assert files_of(fresh.folder) == undisturbed[1]


def test_workers_end_with_the_process_that_runs_the_job(fresh: Job, tmp_path: Path) -> None:
    """Killed, so that it can tell them nothing; from a script that guards no main."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from xsoilsm.mapping import run_job\n"
        "from xsoilsm.mapping.processes import Processes\n"
        "wait = Processes.wait\n"
        "def told(workers):\n"
        "    print(*workers.pids, flush=True)\n"
        "    return wait(workers)\n"
        "Processes.wait = told\n"
        "print('begun', flush=True)\n"
        "run_job(sys.argv[1], workers=2)\n"
    )
    running = subprocess.Popen(
        [sys.executable, str(script), str(fresh.folder)], stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "begun\n"
    pids: list[str] = []
    while len(pids) < 2:
        line = running.stdout.readline()
        assert line, "it ended early"
        assert "begun" not in line, "the script ran again in a worker"
        pids = line.split()
    running.kill()
    running.communicate()
    limit = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < limit, "workers go on without a job"
        time.sleep(0.05)


def test_a_worker_runs_one_thread_of_the_networks_and_sees_the_settings(
    fresh: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GDAL_CACHEMAX", "77")
    wait, seen = Processes.wait, {}

    def looks(workers: Processes) -> Outcome | None:
        for pid in workers.pids:
            with suppress(OSError):
                text = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                seen.update(part.split(b"=", 1) for part in text if b"=" in part)
        return wait(workers)

    monkeypatch.setattr(Processes, "wait", looks)
    assert run_job(fresh, workers=2).is_complete
    assert seen[b"OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", "1").encode()
    assert seen[b"GDAL_CACHEMAX"] == b"77"


def test_worker_processes_that_cannot_start_are_told(
    fresh: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xsoilsm.mapping.processes._PROGRAM", "raise SystemExit(3)")
    with pytest.raises(ChildProcessError, match=r"cannot be started.*--threads"):
        run_job(fresh, workers=2)
