"""Fixtures of all tests of mapping jobs; the jobs themselves are those of `mapping_scene`."""

from __future__ import annotations

import shutil
from pathlib import Path

import mapping_scene
import pytest

from xsoilsm.mapping import Job, open_job


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Put the settings under which the small landscape is found into the environment."""
    for name, value in mapping_scene.settings().items():
        monkeypatch.setenv(name, value)
    return mapping_scene.settings()


@pytest.fixture
def undisturbed(scene: dict[str, str]) -> tuple[Job, dict[str, bytes]]:
    """Job that was run in one go, and its files; copy it before you change it."""
    return mapping_scene.undisturbed()


@pytest.fixture
def fresh(undisturbed: tuple[Job, dict[str, bytes]], tmp_path: Path) -> Job:
    """Job of the same configuration of which nothing is made."""
    job, _ = undisturbed
    ignore = shutil.ignore_patterns("tiles", "ledger.sqlite*")
    return open_job(shutil.copytree(job.folder, tmp_path / "job", ignore=ignore))


@pytest.fixture
def finished(undisturbed: tuple[Job, dict[str, bytes]], tmp_path: Path) -> Job:
    """Job of which everything is made, and that may be damaged."""
    job, _ = undisturbed
    return open_job(shutil.copytree(job.folder, tmp_path / "job"))
