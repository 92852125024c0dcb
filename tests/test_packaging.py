"""What users install is whole: modules, catalogs, types and licence, from wheel and checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import xsoilsm
from xsoilsm.catalog import catalogs_dir

ROOT = Path(__file__).resolve().parents[1]


def _build(source: Path, target: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(folder).as_posix()


def test_wheel_is_whole(wheel: Path) -> None:
    names = _names(wheel)
    info = f"xsoilsm-{xsoilsm.__version__}.dist-info"
    expected = {f"xsoilsm/{name}" for name in _files(ROOT / "xsoilsm")}
    expected |= {f"xsoilsm/_catalogs/{name}" for name in _files(ROOT / "catalogs")}
    expected |= {f"{info}/licenses/LICENSE", "xsoilsm/py.typed"}
    bookkeeping = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    assert names == expected | bookkeeping
    assert any(name.startswith("xsoilsm/_catalogs/ensembles/") for name in names)


def test_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run(
        [sys.executable, "-m", "pip", *install, "--target", str(site), str(wheel)],
        check=True,
        timeout=120,
    )
    code = """
import json, xsoilsm
from xsoilsm.catalog import catalogs_dir
xsoilsm.open_catalog("planetary-computer")
print(json.dumps([xsoilsm.__file__, str(catalogs_dir()), len(xsoilsm.list_ensembles())]))
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    package, catalogs, ensembles = json.loads(run.stdout)
    assert Path(package) == site / "xsoilsm" / "__init__.py"
    assert Path(catalogs) == site / "xsoilsm" / "_catalogs"
    assert ensembles >= 1
    assert (site / "bin" / "xsoilsm").is_file()


def test_checkout_uses_its_own_catalogs() -> None:
    assert Path(xsoilsm.__file__).parents[1] == ROOT
    assert catalogs_dir() == ROOT / "catalogs"


def test_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = _build(ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / sdist.name.removesuffix(".tar.gz")
    again = _build(source, "wheel", tmp_path / "wheel")
    assert _names(again) == _names(wheel)


def test_constraints_pin_every_requirement() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==([\w.]+)", line)
            assert match, f"not a plain pin: {line}"
            pins[canonicalize_name(match[1])] = match[2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    for text in [*project["dependencies"], *(text for extra in extras for text in extra)]:
        requirement = Requirement(text)
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(pin), f"{text} excludes the pinned {pin}"


def test_contributing_points_at_files_that_exist() -> None:
    rows = (ROOT / "CONTRIBUTING.md").read_text().split("## To change X, edit Y")[1]
    table = [line for line in rows.split("\n## ")[0].splitlines() if line.startswith("| ")][1:]
    named = [name for line in table for name in re.findall(r"`([^`]+)`", line.split("|")[2])]
    assert len(named) >= len(table)
    for name in named:
        assert name.startswith("[") or list(ROOT.glob(name)), f"CONTRIBUTING.md names {name}"
