"""What is said about speed: the report for users, and the benchmarks, small."""

import os
from pathlib import Path

import pytest
from test_kernel import MEMBERS

from xsoilsm import _tiles, speed
from xsoilsm import engine as engine_module
from xsoilsm import kernel as kernel_module
from xsoilsm._layers import MACHINE
from xsoilsm.engine import EngineWarning
from xsoilsm.kernel import Kernel


@pytest.fixture(autouse=True)
def _fresh_ladder():
    """Ways are tried once in a process; a test that breaks one must not leave that behind."""
    yield
    Kernel.edition = 0
    engine_module.fault_of.cache_clear()
    engine_module._warn_once.cache_clear()


def test_the_report_says_what_runs_and_how_fast(monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 0.05)
    monkeypatch.setattr(speed, "PIXELS", 200)
    networks = speed.MadeUp(MEMBERS)
    found = speed.report(networks, device="cpu", threads=1)
    assert (found.way, found.threads, found.faults) == ("kernel", 1, ())
    assert found.operations == sum(speed.operations(*shape) for shape in MEMBERS)
    assert 0.05 < found.share < 2
    assert f"{MACHINE.lanes} pixels in a vector" in str(found)
    monkeypatch.setattr(_tiles, "compile_loops", None)
    monkeypatch.setattr(kernel_module, "_compiled_loops", None)
    engine_module.fault_of.cache_clear()
    with pytest.warns(EngineWarning):
        found = speed.report(networks, device="cpu", threads=2)
    assert (found.way, found.threads, found.code) == ("torch", 2, "")
    assert "kernel does not work here: TypeError" in str(found)
    if not found.gpu:
        assert str(found).endswith("no GPU on this machine: not measured")


def test_operations_are_those_of_the_published_networks():
    assert sum(speed.operations(*shape) for shape in speed.PUBLISHED) / 1e6 == pytest.approx(
        6.917, rel=0.03
    )


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    from benchmarks import bench_engine, bench_kernel, networks

    monkeypatch.setattr(bench_engine, "keep_memory", lambda: False)
    return bench_engine, bench_kernel, networks.RandomEnsemble


def test_the_benchmarks_run(benchmarks):
    bench_engine, bench_kernel, RandomEnsemble = benchmarks
    rows = bench_engine.run(False, n=300, rounds=1, networks=RandomEnsemble(MEMBERS))
    errors = [row["max error m3/m3"] for row in rows if "max error m3/m3" in row]
    assert len(errors) > 7
    assert max(errors) < 5e-6
    variants = {row["variant"] for row in rows}
    assert {"loop over modules", "torch", "onnxruntime", "OpenVINO f32"} <= variants
    assert {"kernel, 30 % masked", "kernel, two dates"} <= variants
    _, rate, lanes, way, needs_torch = bench_kernel._child(
        300, 1, {}, os.environ["NUMBA_CACHE_DIR"]
    )
    assert (lanes, way, needs_torch) == (MACHINE.lanes, "kernel", False)
    assert rate > 0
