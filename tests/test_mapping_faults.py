"""What can happen to a job while it runs: each fault is brought about for real.

``MAPPING_KILLS=200 pytest tests/test_mapping_faults.py -k random -o faulthandler_timeout=0`` kills
it 200 times.
"""

from __future__ import annotations

import ctypes
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mapping_scene import TILES, Killer, begin, files_of, places_of

from xsoilsm.mapping import InterruptedJobError, Job, JobBusyError, open_job, run_job, verify_job
from xsoilsm.mapping.plan import Plan
from xsoilsm.mapping.tile import Made
from xsoilsm.mapping.workers import Outcome

pytestmark = pytest.mark.usefixtures("scene")
KILLS = int(os.environ.get("MAPPING_KILLS") or (20 if os.environ.get("CI") else 5))


# --------------------------------------------------------------------------- kills


def test_killed_at_random_moments_a_job_ends_the_same(
    fresh: Job, undisturbed: tuple[Job, dict[str, bytes]]
) -> None:
    _, files = undisturbed
    draw = random.Random(os.environ.get("MAPPING_SEED"))
    killer = Killer(fresh.folder)
    kills, remade, whole = 0, [], 3.0
    try:
        while kills < KILLS:
            shutil.rmtree(fresh.tiles, ignore_errors=True)
            fresh.ledger.unlink(missing_ok=True)
            spent, status = 0.0, -signal.SIGKILL
            while status == -signal.SIGKILL:
                before = places_of(fresh.folder)
                last = kills >= KILLS
                status, took = killer.run(300 if last else draw.uniform(0.05, whole))
                kills += status == -signal.SIGKILL
                spent += took
                after = places_of(fresh.folder)
                remade += [key for key in before if after.get(key) != before[key]]
            assert status == 0
            assert files_of(fresh.folder) == files
            whole = max(spent / 2, 1.0)  # so that kills hit all of a run, however slow the machine
    finally:
        killer.close()
    assert not remade, "tiles were computed again that were whole"
    summary, damaged = verify_job(fresh)
    assert summary.is_complete
    assert not damaged


def test_what_a_killed_process_left_is_found_and_what_it_left_half_is_removed(
    finished: Job, undisturbed: tuple[Job, dict[str, bytes]]
) -> None:
    """Killed between the last rename and the entry in the ledger, and amid a file."""
    (product, tile), (other, place) = list(Plan(finished).rows())[:2]
    with sqlite3.connect(finished.ledger) as ledger:
        ledger.execute("UPDATE tiles SET state = 'pending', files = '{}'")
    ledger.close()
    scratch = finished.tiles / product / tile / ".quality_flag.tif-abc"
    scratch.mkdir()
    (scratch / "stage.tif").write_bytes(b"half")
    (finished.tiles / other / place / "soil_moisture.tif").unlink()
    before = places_of(finished.folder)
    summary = run_job(finished, workers=1)
    assert summary.made == 1
    assert not scratch.exists()
    assert files_of(finished.folder) == undisturbed[1]
    after = places_of(finished.folder)
    assert all(after[key] == before[key] for key in before)


def test_tiles_of_another_job_are_not_taken_for_finished(
    finished: Job, undisturbed: tuple[Job, dict[str, bytes]], tmp_path: Path
) -> None:
    other = begin(tmp_path / "other", retrieve={"keep_invalid": True})
    shutil.copytree(finished.tiles, other.tiles)
    assert verify_job(other)[0].done == 0


# --------------------------------------------------------------------------- the ledger


@pytest.mark.parametrize("damage", ["deleted", "empty", "truncated", "garbage", "other"])
def test_a_lost_ledger_is_made_from_the_files(
    finished: Job, undisturbed: tuple[Job, dict[str, bytes]], damage: str
) -> None:
    content = finished.ledger.read_bytes()
    if damage == "deleted":
        finished.ledger.unlink()
        # What a dead process may have left, and what must not be played back.
        finished.ledger.with_name("ledger.sqlite-journal").write_bytes(b"\xd9\xd5\x05\xf9 left")
    elif damage == "other":
        with sqlite3.connect(finished.ledger) as ledger:
            ledger.execute("UPDATE about SET value = 'another' WHERE key = 'job'")
        ledger.close()
    else:
        cut = {"empty": b"", "truncated": content[:5000], "garbage": content[:100] + b"x" * 9000}
        finished.ledger.write_bytes(cut[damage])
    shutil.rmtree(next(iter(sorted(finished.tiles.glob("*/*")))))
    before = places_of(finished.folder)
    summary = run_job(finished, workers=1)
    assert (summary.made, summary.is_complete) == (1, True)
    assert files_of(finished.folder) == undisturbed[1]
    after = places_of(finished.folder)
    assert all(after[key] == before[key] for key in before)


def test_a_clock_that_jumps_decides_nothing(
    fresh: Job, undisturbed: tuple[Job, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every question for the time of day gets another year, back and forth."""
    draw = random.Random(1)
    monkeypatch.setattr(time, "time", lambda: draw.uniform(0, 4e9))
    monkeypatch.setattr(time, "time_ns", lambda: int(draw.uniform(0, 4e18)))
    assert run_job(fresh, workers=1).is_complete
    with sqlite3.connect(fresh.ledger) as ledger:
        rows = ledger.execute("SELECT entry, seconds FROM tiles").fetchall()
    ledger.close()
    assert sorted(entry for entry, _ in rows) == list(range(1, TILES + 1))
    assert all(0 < seconds < 300 for _, seconds in rows)
    for path in fresh.folder.glob("tiles/*/*/*.tif"):  # times of files go astray, too
        os.utime(path, (draw.uniform(0, 4e9),) * 2)
    assert run_job(fresh).made == 0
    assert files_of(fresh.folder) == undisturbed[1]


# --------------------------------------------------------------------------- two at once


def test_a_second_run_is_refused_while_the_first_is_alive(fresh: Job) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from xsoilsm.mapping.lock import hold\n"
        "with hold(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(300)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(fresh.folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for action in (run_job, verify_job):
            with pytest.raises(JobBusyError, match=rf"process {holder.pid} on .* is working"):
                action(fresh)
        assert not fresh.ledger.exists()
    finally:
        holder.kill()
        holder.communicate()
    # The lock ended with its holder, though the file still names it.
    assert f"process {holder.pid}" in (fresh.folder / ".lock").read_text()
    assert verify_job(fresh)[0].pending == TILES


def test_two_threads_of_one_process_do_not_share_a_job(fresh: Job) -> None:
    from xsoilsm.mapping.lock import hold

    with hold(fresh.folder), pytest.raises(JobBusyError, match=f"process {os.getpid()} "):
        run_job(fresh)


# --------------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_finishes_the_tiles_in_hand_and_says_how_to_go_on(
    fresh: Job, undisturbed: tuple[Job, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from xsoilsm.mapping.ledger import Ledger

    enter, entered, told = Ledger.enter, [], []

    def interrupt(ledger: Ledger, made: Any) -> None:
        enter(ledger, made)
        if not entered:
            signal.raise_signal(signal.SIGINT)
        entered.append(1)

    # The signal comes at a known place: just after the first entry.
    monkeypatch.setattr(Ledger, "enter", interrupt)
    with pytest.raises(InterruptedJobError) as caught:
        run_job(fresh, workers=1, tell=told.append)
    assert "go on with: xsoilsm map retry" in str(caught.value)
    monkeypatch.undo()
    done = verify_job(fresh)[0].done
    assert 1 <= done < TILES
    assert told == ["finishing the tiles in hand; Ctrl-C again leaves at once"]
    assert not list(fresh.tiles.glob("*/*/.*"))
    before = places_of(fresh.folder)
    summary = run_job(fresh, workers=2)
    assert summary.made == TILES - done
    assert files_of(fresh.folder) == undisturbed[1]
    after = places_of(fresh.folder)
    assert all(after[key] == before[key] for key in before)


def test_ctrl_c_twice_leaves_at_once(fresh: Job, undisturbed: tuple[Job, dict[str, bytes]]) -> None:
    program = (
        "import sys\n"
        "from xsoilsm.mapping import InterruptedJobError, run_job\n"
        "try:\n"
        "    run_job(sys.argv[1], workers=1, tell=lambda text: print(text, flush=True))\n"
        "except InterruptedJobError as stop:\n"
        "    sys.exit(str(stop))\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program, str(fresh.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _await(lambda: any(fresh.tiles.glob("*/*/*.tif")), running)
    running.send_signal(signal.SIGINT)
    assert running.stdout is not None
    assert "finishing the tiles in hand" in running.stdout.readline()
    running.send_signal(signal.SIGINT)  # it need not be waited for
    _, error = running.communicate(timeout=120)
    assert running.returncode == 1
    assert "go on with: xsoilsm map retry" in error
    assert "Traceback" not in error
    run_job(fresh, workers=2)
    assert files_of(fresh.folder) == undisturbed[1]


def _await(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "nothing happened"
        time.sleep(0.01)


# --------------------------------------------------------------------------- disks


def _without_privileges(action: Any, uid: int = 65534) -> str:
    """Do something in a child process that may not do everything; its error or empty text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            text = "no error"
            try:
                action()
            except OSError as error:
                text = f"{type(error).__name__}: {error}"
            os.write(writing, text.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


def test_a_folder_that_may_not_be_written_is_named(
    finished: Job, undisturbed: tuple[Job, dict[str, bytes]]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can work as another user here")
    place = Path(tempfile.mkdtemp())
    try:
        place.chmod(0o755)
        job = open_job(shutil.copytree(finished.folder, place / "job"))
        text = _without_privileges(lambda: verify_job(job))
        assert text.startswith("PermissionError")
        assert str(job.folder) in text
    finally:
        shutil.rmtree(place)


@contextmanager
def _disk(place: Path, *, read_only: bool = False) -> Iterator[Path]:
    """File system of twenty megabytes in memory."""
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(place), b"tmpfs", int(read_only), b"size=20m") != 0:
        pytest.skip(f"no file system can be mounted here: {os.strerror(ctypes.get_errno())}")
    try:
        yield place
    finally:
        libc.umount2(bytes(place), 2)


def test_a_disk_that_is_read_only_stops_the_job_before_a_second_tile(
    fresh: Job,
) -> None:
    with _disk(fresh.tiles, read_only=True), pytest.raises(OSError, match="Read-only") as caught:
        run_job(fresh, workers=1)
    assert str(fresh.tiles) in str(caught.value)
    assert "Run the job again" in str(caught.value)
    assert verify_job(fresh)[0].pending == TILES


def test_a_full_disk_stops_the_job_and_room_lets_it_go_on(
    fresh: Job, undisturbed: tuple[Job, dict[str, bytes]], tmp_path: Path
) -> None:
    _, files = undisturbed
    with _disk(tmp_path / "disk") as disk:
        job = open_job(shutil.copytree(fresh.folder, disk / "job"))
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * (shutil.disk_usage(disk).free - 2_500_000))
        with pytest.raises(OSError, match=r"No space|full|has room|are needed there") as caught:
            run_job(job, workers=2)
        assert "run the job again" in str(caught.value).lower()
        assert all(files[name] == content for name, content in files_of(job.folder).items())
        ballast.unlink()
        assert run_job(job, workers=2).is_complete
        assert files_of(job.folder) == files


def test_a_limit_on_files_stops_the_job(fresh: Job) -> None:
    """The same without the right to mount: no file may grow beyond some kilobytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    held = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    verify_job(fresh)  # makes the ledger, which is larger than what follows
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        with pytest.raises(OSError, match=r"(?i)file too large|cannot write"):
            run_job(fresh, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, held)
    assert not files_of(fresh.folder)
    assert verify_job(fresh)[0].pending == TILES


# --------------------------------------------------------------------------- errors of units


def test_a_tile_that_fails_harms_no_other_and_is_tried_again(
    fresh: Job, undisturbed: tuple[Job, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from xsoilsm.mapping import tile as module

    retrieve, calls, guard = module.retrieve, [], threading.Lock()

    def fails_at_third(*arguments: Any, **options: Any) -> Any:
        with guard:
            calls.append(1)
            if len(calls) in fatal:
                raise MemoryError("no room for an array")
        return retrieve(*arguments, **options)

    monkeypatch.setattr(module, "retrieve", fails_at_third)
    fatal = {3}
    summary = run_job(fresh, workers=2, threads=True, attempts=1)
    assert (summary.done, summary.failed) == (TILES - 1, 1)
    assert "MemoryError: no room for an array" in str(summary)
    fatal = {len(calls) + 1}
    assert run_job(fresh, workers=2, threads=True, attempts=2).is_complete
    assert files_of(fresh.folder) == undisturbed[1]


def test_entries_of_the_ledger_are_whole_or_not_there(fresh: Job) -> None:
    from xsoilsm.mapping.verify import open_ledger

    plan = Plan(fresh)
    rows = list(plan.rows())
    with open_ledger(fresh, plan) as ledger:

        def breaks() -> Iterator[Made]:
            yield Made(*rows[0], state="done")
            raise RuntimeError("amid")

        with pytest.raises(RuntimeError, match="amid"):
            ledger.enter(breaks())
        assert ledger.counts() == {"pending": TILES}
        ledger.enter([Made(*rows[0], state="failed", error="why")])
        assert next(ledger.rows("failed")).error == "why"
        assert ledger.counts() == {"pending": TILES - 1, "failed": 1}


def test_a_machine_refuses_what_it_cannot_do_right(
    undisturbed: tuple[Job, dict[str, bytes]], tmp_path: Path
) -> None:
    from dataclasses import replace

    from xsoilsm.mapping.tile import make_unit

    job, _ = undisturbed
    unit = next(Plan(job).units(lambda *_: True, job.ensemble()))
    older = replace(unit.configuration, code="0.0.1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "job.json").write_text('{"hash": "another"}')
    for wrong, words in (
        ({"folder": str(tmp_path / "absent")}, "does not see the job's folder"),
        ({"folder": str(tmp_path / "other")}, "is the folder of another job"),
        ({"configuration": older}, "the job was begun with 0.0.1; install that one"),
    ):
        with pytest.raises(RuntimeError, match=words):
            make_unit(replace(unit, **wrong))


class _Losing:
    """Workers that die with every unit."""

    window = 1
    abreast = 1

    def __init__(self) -> None:
        self.taken: list[Any] = []

    def submit(self, unit: Any) -> None:
        self.taken.append(unit)

    def wait(self) -> Any:
        return Outcome(self.taken[-1], over=True, lost=True)

    def finish(self) -> None:
        pass

    def close(self, *, wait: bool) -> None:
        assert wait


def test_a_unit_that_kills_its_workers_is_given_up(
    fresh: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = _Losing()
    monkeypatch.setattr("xsoilsm.mapping.run._crew", lambda *_: crew)
    summary = run_job(fresh, attempts=1)
    assert summary.failed == summary.total == TILES
    assert "lost 3 times with its worker" in str(summary)
    assert [unit.tile for unit in crew.taken] == sorted(u.tile for u in crew.taken)
    assert len(crew.taken) == 6, "three times each of two units"
