"""`import xsoilsm` is light, complete and quiet."""

from __future__ import annotations

import subprocess
import sys

import pytest
import xarray as xr

import xsoilsm

HEAVY = {"torch", "rasterio", "numba", "matplotlib", "distributed", "scipy", "pystac_client"}


def _imported(statement: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-W", "error", "-c", statement],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if "|" in line}


def test_import_loads_nothing_heavy() -> None:
    modules = _imported("import xsoilsm")
    assert "xsoilsm" in modules
    assert not {name.partition(".")[0] for name in modules} & HEAVY
    assert "odc.geo.xr" not in modules


def test_lists_of_heavy_modules_can_find_one() -> None:
    assert "rasterio" in _imported("import rasterio")


@pytest.mark.parametrize("name", xsoilsm.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(xsoilsm, name) is not None
    assert name in dir(xsoilsm)


def test_unknown_names_are_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = xsoilsm.no_such_name  # type: ignore[attr-defined]


def test_import_registers_the_accessor() -> None:
    assert callable(xr.Dataset().sm.retrieve)
