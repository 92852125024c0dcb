"""Examples in docstrings run and print what they say."""

import doctest
import importlib
import importlib.util
import pkgutil

import pytest

import xsoilsm

NEEDS = {"xsoilsm.fused": "triton"}
"""Modules that import what only some machines have."""

MODULES = [
    module.name
    for module in pkgutil.walk_packages(xsoilsm.__path__, "xsoilsm.")
    if not module.name.endswith("__main__")
]


def _absent(name):
    return name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name):
    if _absent(name):
        pytest.skip(f"{NEEDS[name]} is not installed")
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    modules = [importlib.import_module(name) for name in MODULES if not _absent(name)]
    assert sum(bool(t.examples) for module in modules for t in finder.find(module)) >= 8
