"""Examples in docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import xsoilsm

MODULES = [
    module.name
    for module in pkgutil.walk_packages(xsoilsm.__path__, "xsoilsm.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    tests = [t for n in MODULES for t in finder.find(importlib.import_module(n)) if t.examples]
    assert len(tests) >= 8
