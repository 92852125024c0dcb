"""Ways to run the networks: equal, tested before use, and left when they fail."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from test_engine import Networks
from test_kernel import MEMBERS, close, cube, truth

from xsoilsm import _tiles, selftest
from xsoilsm import engine as engine_module
from xsoilsm import kernel as kernel_module
from xsoilsm._layers import MACHINE
from xsoilsm.engine import WAYS, Engine, EngineWarning
from xsoilsm.folding import fold
from xsoilsm.kernel import Kernel


@pytest.fixture(autouse=True)
def _fresh_ladder():
    """Ways are tried once in a process; a test that breaks one must not leave that behind."""
    yield
    Kernel.edition = 0
    engine_module.fault_of.cache_clear()
    engine_module._warn_once.cache_clear()


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_numbers(way, monkeypatch):
    monkeypatch.setenv("XSOILSM_ENGINE", way)
    networks = Networks([(2, 12), (1, 9), (3, 40)])
    snapshots, series, ends = cube(1100, 3, 47, run=100)
    snapshots[1, 4, 7] = series[2, 3, 9] = np.nan
    engine = Engine(networks, "cpu", 2)
    assert engine.way == way
    close(engine.predict_many(snapshots, series, ends), truth(networks, snapshots, series, ends))
    mean, std = engine.predict(snapshots[1], series[:, :46])
    close((mean[None], std[None]), truth(networks, snapshots[1:2], series, [45]))


def test_the_known_outcome_is_that_of_the_networks_in_double_precision():
    snapshots, series, ends = selftest.inputs()
    networks = Networks(selftest.MEMBERS)
    for module, state in zip(networks.modules, selftest.states(), strict=True):
        module.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    found = selftest.summary(*truth(networks, snapshots, series, ends))
    np.testing.assert_allclose(found, selftest.KNOWN, rtol=0, atol=1e-9)


class Broken:
    """A kernel whose results are spoilt."""

    def __init__(self, spoil):
        self.kernel = Kernel([fold(state) for state in selftest.states()])
        self.spoil = spoil

    def predict_many(self, snapshots, series, ends, valid=None, threads=1):
        mean, std = self.kernel.predict_many(snapshots, series, ends)
        self.spoil(mean, std)
        return mean, std


def _one_lane(mean, std):
    mean[0, 5 :: MACHINE.lanes] += 0.02


def _one_nan(mean, std):
    std[1, 300] = np.nan


def _spread_of_another(mean, std):
    std[2] = std[1]


def _nan_swallowed(mean, std):
    mean[np.isnan(mean)] = 0.2


@pytest.mark.parametrize("spoil", [_one_lane, _one_nan, _spread_of_another, _nan_swallowed])
def test_the_self_test_notices_what_miscompiled_code_does(spoil):
    selftest.check(Broken(lambda mean, std: None))
    with pytest.raises(selftest.SelfTestError):
        selftest.check(Broken(spoil))


@pytest.fixture
def miscompiled(monkeypatch):
    """Compiled loops that forget the last acquisition."""
    run = kernel_module._compiled_loops(0)

    def loops(edition):
        def wrong(*args):
            run(*args)
            args[8][-1] = 0.25

        return wrong

    engine_module.fault_of.cache_clear()
    monkeypatch.setattr(kernel_module, "_compiled_loops", loops)


@pytest.mark.usefixtures("miscompiled")
def test_a_miscompiled_kernel_is_refused_with_one_warning():
    with pytest.warns(EngineWarning, match=r"'kernel' .* does not work here: .*'torch' is taken"):
        engine = Engine(Networks(MEMBERS), "cpu", 1)
    assert engine.way == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Engine(Networks(MEMBERS), "cpu", 1).way == "torch"


@pytest.mark.usefixtures("miscompiled")
def test_a_forced_way_is_not_replaced(monkeypatch):
    monkeypatch.setenv("XSOILSM_ENGINE", "kernel")
    with pytest.raises(RuntimeError, match="'kernel' of running networks does not work here"):
        Engine(Networks(MEMBERS), "cpu", 1)
    monkeypatch.setenv("XSOILSM_ENGINE", "fast")
    with pytest.raises(ValueError, match="expected one of kernel, torch, plain"):
        Engine(Networks(MEMBERS), "cpu", 1)


def test_a_kernel_that_is_wrong_once_is_compiled_again(monkeypatch, caplog):
    right = kernel_module._compiled_loops

    def loops(edition):
        if edition:
            return right(0)
        return lambda *args: None

    engine_module.fault_of.cache_clear()
    monkeypatch.setattr(kernel_module, "_compiled_loops", loops)
    assert Engine(Networks(MEMBERS), "cpu", 1).way == "kernel"
    assert "compiled again" in caplog.text


@pytest.fixture
def small_loops(monkeypatch, tmp_path):
    """Something that compiles faster than the real loops, cached in an empty folder."""

    def loops(fingerprint):
        def run(x):
            return x + fingerprint

        return run

    monkeypatch.setattr(_tiles, "_loops", loops)
    monkeypatch.setattr(_tiles, "_signature", lambda: numba.int64(numba.int64))
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def test_compiled_code_is_kept_for_the_same_vector_code_only(small_loops, monkeypatch):
    assert _tiles.compile_loops()(1) == _tiles.FINGERPRINT + 1
    again = _tiles.compile_loops()
    assert again(1) == _tiles.FINGERPRINT + 1
    assert sum(again.stats.cache_hits.values()) == 1
    monkeypatch.setattr(_tiles, "FINGERPRINT", 5)
    other = _tiles.compile_loops()
    assert other(1) == 6
    assert not other.stats.cache_hits


def test_a_damaged_cache_is_done_without(small_loops):
    _tiles.compile_loops()
    for suffix in ("nbc", "nbi"):
        for file in small_loops.rglob(f"*.{suffix}"):
            file.write_bytes(file.read_bytes()[:-20])
        assert _tiles.compile_loops()(1) == _tiles.FINGERPRINT + 1


@pytest.mark.usefixtures("small_loops")
def test_no_cache_is_done_without(monkeypatch):
    monkeypatch.setattr(numba.core.caching.CompileResultCacheImpl, "_locator_classes", [])
    assert _tiles.compile_loops()(1) == _tiles.FINGERPRINT + 1


# --------------------------------------------------------------------------- processes


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SELF_TEST = """
from xsoilsm import selftest
from xsoilsm.engine import Engine

class Ensemble:
    def state_dicts(self):
        return selftest.states()

engine = Engine(Ensemble(), threads=1)
selftest.check(engine)
"""


def test_neither_torch_nor_a_gpu_is_looked_for_where_the_kernel_runs():
    code = "import sys\n" + SELF_TEST + "print(engine.way, engine.device, 'torch' in sys.modules)"
    if not torch.cuda.is_available():
        assert python(code) == "kernel cpu False"
    assert python("import sys, xsoilsm.engine; print('numba' in sys.modules)") == "False"


def test_without_numba_or_torch_what_is_left_is_taken():
    hide = "import sys, warnings\nwarnings.simplefilter('ignore')\nsys.modules['{}'] = None\n"
    assert python(hide.format("numba") + SELF_TEST + "print(engine.way)") == "torch"
    assert python(hide.format("torch") + SELF_TEST + "print(engine.way)") == "kernel"


VECTOR_CODE = re.compile(rb"\x62(.)(.)[\x40\x48]\x5c", re.DOTALL)
"""Beginning of machine code that subtracts 16 numbers; with 0x58 at its end it adds them."""


def damage(files):
    """Turn subtractions in compiled code on the disk into additions."""
    total = 0

    def add(found):
        nonlocal total
        if found[1][0] & 0x0F != 1 or found[2][0] & 0x87 != 4:  # something else
            return found[0]
        total += 1
        return found[0][:-1] + b"\x58"

    for file in files:
        file.write_bytes(VECTOR_CODE.sub(add, file.read_bytes()))
    if not total:
        pytest.skip("the compiled code holds no subtraction of 16 numbers")


def test_damaged_machine_code_is_refused(tmp_path):
    shown = "print(engine.way, len(caught))"
    code = "import warnings\nwith warnings.catch_warnings(record=True) as caught:\n"
    code += "    warnings.simplefilter('always')\n"
    code += "    " + SELF_TEST.strip().replace("\n", "\n    ")
    code += "\n    Engine(Ensemble(), threads=1)\n" + shown
    cache = Path(os.environ["NUMBA_CACHE_DIR"])
    kernel_module._compiled_loops(0)
    for file in cache.rglob("_tiles.*"):
        copy = tmp_path / file.relative_to(cache)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    before = set(tmp_path.rglob("*.nbc"))
    damage(before)
    assert python(code, NUMBA_CACHE_DIR=str(tmp_path)) == "kernel 0"  # compiled again
    damage(set(tmp_path.rglob("*.nbc")) - before)
    assert python(code, NUMBA_CACHE_DIR=str(tmp_path)) == "torch 1"
