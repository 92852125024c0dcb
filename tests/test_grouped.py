"""The way on a GPU: few large products, fed in streams. Run on the CPU too, through the same code.

What only a GPU has (streams, graphs, pinned memory, tensor cores) is tested where there is one:
``pytest -k cuda``.
"""

import os
import pickle
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from dask.base import tokenize
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import map_cube
from test_engine import Networks
from test_kernel import close, cube, same, truth

import xsoilsm
from xsoilsm import engine as engine_module
from xsoilsm import grouped, selftest, speed, streams
from xsoilsm.engine import PRECISIONS, Engine
from xsoilsm.folding import fold
from xsoilsm.grouped import Grouped
from xsoilsm.precision import KNOWN, tensor_cores
from xsoilsm.streams import Streamed, batch_for, bytes_per_pixel, pieces

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
NAMED = pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="PyTorch is older than 2.9"
)
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
MEMBERS = [(2, 12), (1, 9), (3, 12), (2, 12)]


def streamed(networks, device="cpu", batch=64, precision="float32", **options):
    members = [fold(state) for state in networks.state_dicts()]
    return Streamed(Grouped(members, device, precision), batch, **options)


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(scope="module")
def published(weights_dir):
    order = [(d, w) for d in range(1, 6) for w in (8, 16, 32, 64, 128)]
    files = (weights_dir / f"coarse_{d}_{w}.pt" for d, w in order)
    states = (torch.load(f, weights_only=True, map_location="cpu") for f in files)
    return [fold({k: v.numpy() for k, v in state.items()}) for state in states]


def golden_inputs(golden):
    return golden["snapshot"].T[None], golden["series"].transpose(1, 2, 0), np.array([45])


# --------------------------------------------------------------------------- numbers


@given(
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40)), min_size=1, max_size=5),
    n=st.integers(0, 150),
    acquisitions=st.integers(0, 10),
    periods=st.integers(46, 48),
    batch=st.sampled_from([7, 16, 64]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15)
def test_any_ensemble_equals_the_plain_networks(
    device, shapes, n, acquisitions, periods, batch, seed
):
    networks = Networks(shapes, seed)
    snapshots, series, ends = cube(n, acquisitions, periods, seed)
    found = streamed(networks, device, batch).predict_many(snapshots, series, ends)
    if acquisitions:
        close(found, truth(networks, snapshots, series, ends))
    assert found[0].shape == found[1].shape == (acquisitions, n)


def test_golden_mean_and_spread(device, published, golden):
    mean, std = Streamed(Grouped(published, device), 128).predict_many(*golden_inputs(golden))
    np.testing.assert_allclose(mean[0], golden["mean"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(std[0], golden["std"], rtol=0, atol=1e-6)


def test_the_self_test_passes(device):
    selftest.check(Streamed(Grouped([fold(s) for s in selftest.states()], device), 64))


@given(seed=st.integers(0, 50))
@settings(max_examples=8)
def test_nan_in_gives_nan_out_and_nothing_else(device, seed):
    rng = np.random.default_rng(seed)
    snapshots, series, ends = cube(100, 2, 47, seed)
    snapshots[rng.random(snapshots.shape) < 0.005] = np.nan
    series[rng.random(series.shape) < 0.001] = np.nan
    mean, std = streamed(Networks(MEMBERS), device, 32).predict_many(snapshots, series, ends)
    for t, end in enumerate(ends):
        missing = np.isnan(snapshots[t]).any(0) | np.isnan(series[:, end - 45 : end + 1]).any(
            (0, 1)
        )
        assert np.array_equal(np.isnan(mean[t]), missing)
        assert np.array_equal(np.isnan(std[t]), missing)


def test_pixels_left_out_are_nan_and_change_nothing(device):
    runner = streamed(Networks(MEMBERS), device)
    snapshots, series, ends = cube(300, 3, 47)
    valid = np.random.default_rng(1).random((3, 300)) > 0.4
    everything = runner.predict_many(snapshots, series, ends)
    some = runner.predict_many(snapshots, series, ends, valid)
    for found, expected in zip(some, everything, strict=True):
        assert np.isnan(found[~valid]).all()
        np.testing.assert_allclose(found[valid], expected[valid], rtol=0, atol=1e-6)
    nothing = runner.predict_many(snapshots, series, ends, np.zeros(300, bool)[None].repeat(3, 0))
    assert np.isnan(nothing).all()


def test_leftovers_of_a_fuller_batch_do_not_show(device):
    runner = streamed(Networks(MEMBERS), device)
    full, few = cube(64, 2), cube(5, 1, seed=3)
    expected = runner.predict_many(*few)
    full[0][:], full[1][:] = np.nan, np.inf
    for _ in range(streams.SLOTS + 1):
        runner.predict_many(*full)
    assert same(runner.predict_many(*few), expected)


def test_more_acquisitions_than_a_slot_holds(device):
    networks = Networks([(1, 8)])
    snapshots, series, ends = cube(20, 2 * streams.DATES + 3, 46)
    found = streamed(networks, device).predict_many(snapshots, series, ends)
    close(found, truth(networks, snapshots, series, ends))


# --------------------------------------------------------------------------- precision


@pytest.mark.parametrize("precision", PRECISIONS)
def test_errors_are_within_what_is_stated(device, published, golden, precision):
    runner = Streamed(Grouped(published, device, precision), 128)
    mean, std = runner.predict_many(*golden_inputs(golden))
    worst = max(np.abs(mean[0] - golden["mean"]).max(), np.abs(std[0] - golden["std"]).max())
    assert worst < KNOWN[precision].error
    if precision in ("tf32", "bf16"):
        assert worst > 1e-5  # else nothing was computed in that precision


def test_the_names_of_precisions_are_those_that_are_known():
    assert tuple(KNOWN) == PRECISIONS


@NAMED
def test_tf32_is_allowed_for_a_launch_only():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for outside in ("tf32", "ieee"):
            matmul.fp32_precision = outside
            for allowed in (True, False):
                with tensor_cores(allowed):
                    assert (matmul.fp32_precision == "tf32") is allowed
                    with tensor_cores(not allowed):
                        assert (matmul.fp32_precision == "tf32") is not allowed
                    assert (matmul.fp32_precision == "tf32") is allowed
                assert matmul.fp32_precision == outside
        with pytest.raises(ZeroDivisionError), tensor_cores(True):
            raise ZeroDivisionError
        assert matmul.fp32_precision == "ieee"
    finally:
        matmul.fp32_precision = before


def test_settings_of_the_older_name_are_put_back():
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        for outside in (True, False):
            matmul.allow_tf32 = outside
            with tensor_cores(not outside):
                pass
            assert matmul.allow_tf32 is outside  # reading it fails where the two names disagree
    finally:
        matmul.allow_tf32 = before


@NAMED
def test_a_wider_setting_stays_in_charge():
    before = torch.backends.fp32_precision
    try:
        torch.backends.fp32_precision = "tf32"
        with tensor_cores(False):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        torch.backends.fp32_precision = "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = before


def test_an_engine_on_a_cpu_has_one_precision():
    networks = Networks([(1, 8)])
    with pytest.raises(ValueError, match="expected one of float32, tf32, bf16, split-tf32"):
        Engine(networks, "cpu", precision="float16")
    with pytest.raises(ValueError, match="'tf32' is for a GPU"):
        Engine(networks, "cpu", precision="tf32")


# --------------------------------------------------------------------------- one pass

FUSED = """
import numpy as np, torch
from xsoilsm.fused import convolve_and_pool

def check(device, kind, own_source):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2, 5, 3, 4)).astype(np.float32)
    bias = rng.normal(size=(2, 4)).astype(np.float32)
    source = rng.normal(size=(2, 8, 4, 150)).astype(np.float32)
    source[0, 4, 1, 140] = source[0, 5, 3, 9] = np.nan  # the last channel is not read
    if not own_source:
        source[1] = source[0]
    out = torch.full((2, 6, 5, 150), -1.0, device=device, dtype=kind)
    given = torch.from_numpy(source if own_source else source[0]).to(device, kind)
    arrays = (torch.from_numpy(array).to(device) for array in (weight, bias))
    convolve_and_pool(given, *arrays, out)
    out, source = out.float().cpu().numpy(), torch.from_numpy(source).to(kind).float().numpy()
    windows = [source[:, p : p + 5, :3] for p in range(4)]
    each = np.stack([np.einsum("mkcf,mkcn->mfn", weight, window) for window in windows])
    each = np.maximum(each + bias[:, :, None], 0)
    expected = (each[0::2] + each[1::2]).swapaxes(0, 1)
    assert np.isnan(expected).sum() == 8 * (1 if own_source else 2)
    close = 1e-6 if kind == torch.float32 else 1e-2
    np.testing.assert_allclose(out[:, 2:4, :4], expected, rtol=close, atol=10 * close)
    assert (out[:, [0, 1, 4, 5]] == -1).all() and (out[:, :, 4] == -1).all()

for kind in (torch.float32, torch.bfloat16):
    for own_source in (True, False):
        check(DEVICE, kind, own_source)
print("all close")
"""


def test_a_convolution_in_one_pass_equals_its_parts(device):
    """On a CPU in Triton's interpreter, which a process chooses before it imports Triton."""
    if find_spec("triton") is None:
        reason = "Triton is not installed (pip install triton)"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}, but continuous integration must have it")
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, "-c", FUSED.replace("DEVICE", repr(device))],
        env={**os.environ, "TRITON_INTERPRET": "1" if device == "cpu" else "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "all close", done.stderr


def test_without_triton_there_are_products(caplog):
    caplog.set_level("INFO", "xsoilsm")
    packed = torch.ones((2, 5, 3, 4)), torch.ones((2, 4))
    if not torch.cuda.is_available():
        assert grouped._fused(torch.device("cuda"), packed) is None
        assert "convolutions are products of matrices" in caplog.text


@GPU
def test_cuda_convolves_in_one_pass_as_by_products():
    pytest.importorskip("triton")
    networks = Networks(MEMBERS)
    members = [fold(state) for state in networks.state_dicts()]
    one, other = Grouped(members, "cuda"), Grouped(members, "cuda", fused=False)
    assert one.fused is not None
    assert other.fused is None
    inputs = cube(500, 3, 47)
    close(Streamed(one, 128).predict_many(*inputs), Streamed(other, 128).predict_many(*inputs))


# --------------------------------------------------------------------------- batches


@given(count=st.integers(0, 1000), batch=st.integers(1, 300))
def test_batches_cover_all_pixels_in_two_sizes(count, batch):
    cut = list(pieces(count, batch))
    assert [i for start, stop, _ in cut for i in range(start, stop)] == list(range(count))
    assert {size for *_, size in cut} <= {batch, max(batch // streams.SMALL, 1)}
    assert all(0 < stop - start <= size for start, stop, size in cut)


def test_batches_fit_the_free_memory():
    networks = Grouped([fold(s) for s in Networks(MEMBERS).state_dicts()], "cpu")
    needed = bytes_per_pixel(networks)
    work = networks.work(10)
    assert work.padded[0].numel() * 4 / 10 < needed
    assert batch_for(networks, 0) == streams.LEAST == streams.BATCH["cpu"]
    cuda = replace_device(networks)
    assert batch_for(cuda, 10**15) == streams.BATCH["cuda"]
    for free in (10**7, 10**8, 10**9):
        batch = batch_for(cuda, free)
        assert batch == streams.LEAST or batch * needed <= streams.SHARE * free
        assert batch == streams.BATCH["cuda"] or 2 * batch * needed > streams.SHARE * free


def replace_device(networks):
    """Networks that claim to be on a GPU."""
    other = object.__new__(Grouped)
    other.__dict__ = networks.__dict__ | {"device": torch.device("cuda", 0)}
    return other


class Lacking(Grouped):
    """Networks on a device whose memory holds batches of a limited size."""

    limit = 600

    def work(self, batch, device=None):
        if batch > self.limit and device is None:
            msg = f"batches of {batch} do not fit"
            raise torch.cuda.OutOfMemoryError(msg)
        return super().work(batch, device)


def test_too_little_memory_makes_batches_smaller(device, caplog):
    networks = Networks(MEMBERS)
    members = [fold(state) for state in networks.state_dicts()]
    snapshots, series, ends = cube(1700, 2, 47)
    runner = Streamed(Lacking(members, device), 2048)
    close(runner.predict_many(snapshots, series, ends), truth(networks, snapshots, series, ends))
    assert runner.batch == 512
    assert "batches now have 512 pixels" in caplog.text
    none = Lacking(members, device)
    none.limit = 0
    with pytest.raises(torch.cuda.OutOfMemoryError, match="do not fit"):
        Streamed(none, 2048).predict_many(snapshots, series, ends)


def test_after_an_error_all_slots_are_free(device, monkeypatch):
    runner = streamed(Networks([(1, 8)]), device)
    inputs = cube(500, 2)
    expected = runner.predict_many(*inputs)
    dense, calls = runner.networks.dense, []

    def fails(work):
        calls.append(work)
        if len(calls) == 4:
            msg = "something on the device"
            raise RuntimeError(msg)
        dense(work)

    for stage in runner._line.stages.values():
        monkeypatch.setattr(stage, "dense", lambda work=stage.work: fails(work))
    with pytest.raises(RuntimeError, match="something on the device"):
        runner.predict_many(*inputs)
    assert runner._line.free.qsize() == streams.SLOTS
    assert same(runner.predict_many(*inputs), expected)


def test_threads_share_one_device(device):
    runner = streamed(Networks(MEMBERS), device, 32)
    jobs = [cube(n, 3, 47, seed=n) for n in (10, 100, 200, 300, 90, 33)]
    expected = [runner.predict_many(*job) for job in jobs]
    found = {}

    def work(first):
        for number in [*range(first, len(jobs)), *range(first)]:
            found[first, number] = runner.predict_many(*jobs[number])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(jobs) ** 2
    assert all(same(result, expected[number]) for (_, number), result in found.items())
    assert runner._line.free.qsize() == streams.SLOTS


# --------------------------------------------------------------------------- a GPU itself


def without_a_gpu(monkeypatch, networks):
    """Engine that takes the way of a GPU, on the CPU."""
    monkeypatch.setattr(engine_module, "_device", lambda name: "cuda")
    monkeypatch.setattr(engine_module, "way_for", lambda device: "torch")

    def build(way, states, device, precision):
        return Streamed(Grouped([fold(state) for state in states], "cpu", precision))

    monkeypatch.setattr(engine_module, "build", build)
    return lambda precision: Engine(networks, "cuda", precision=precision)


def test_precision_is_part_of_what_an_engine_is(monkeypatch):
    make = without_a_gpu(monkeypatch, selftest_ensemble := _Made())
    engines = [make(precision) for precision in PRECISIONS]
    assert len({tokenize(engine) for engine in engines}) == len(PRECISIONS)
    snapshots, series, _ = cube(20)
    results = [engine.predict(snapshots[0], series)[0] for engine in engines]
    assert not np.array_equal(results[0], results[1])
    again = pickle.loads(pickle.dumps(engines[2]))
    assert again.precision == "bf16"
    assert tokenize(again) == tokenize(engines[2])
    assert selftest_ensemble.digest


class _Made:
    """Ensemble of the self-test's networks, with a digest."""

    digest = "made"

    def state_dicts(self):
        return selftest.states()


@GPU
def test_cuda_graphs_give_the_numbers_of_single_operations():
    networks = Networks(MEMBERS)
    inputs = cube(1000, 3, 47)
    recorded = streamed(networks, "cuda", 256)
    found = recorded.predict_many(*inputs)
    assert recorded._line.lanes.graphs  # else recording failed
    close(found, streamed(networks, "cuda", 256, graphs=False).predict_many(*inputs))
    assert same(found, recorded.predict_many(*inputs))


@GPU
@NAMED
def test_cuda_keeps_float32_where_the_process_allows_tf32():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    networks = Networks([(1, 8), (3, 64)])
    inputs = cube(500, 2)
    try:
        matmul.fp32_precision = "tf32"
        close(streamed(networks, "cuda").predict_many(*inputs), truth(networks, *inputs))
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


@GPU
def test_cuda_engines_are_tested_named_and_forced(monkeypatch):
    ensemble = _Made()
    assert Engine(ensemble, "cuda").way == "torch"
    assert Engine(ensemble, "cuda:0").device == "cuda:0"
    with pytest.raises(ValueError, match="this process sees"):
        Engine(ensemble, "cuda:99")
    monkeypatch.setenv("XSOILSM_ENGINE", "plain")
    with pytest.raises(ValueError, match="is one of the way 'torch'"):
        Engine(ensemble, "cuda", precision="tf32")
    monkeypatch.setenv("XSOILSM_ENGINE", "kernel")
    with pytest.raises(ValueError, match="on a CPU only"):
        Engine(ensemble, "cuda")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_cuda_devices_give_the_same_numbers():
    networks = Networks(MEMBERS)
    inputs = cube(500, 2)
    found = [streamed(networks, f"cuda:{number}").predict_many(*inputs) for number in (0, 1)]
    close(found[1], found[0])


def test_a_gpu_that_fails_the_test_is_left(monkeypatch):
    """The ladder of a device without the kernel; the device itself is not reached."""
    monkeypatch.setattr(engine_module, "fault_of", lambda way, device: {"torch": "lost"}.get(way))
    engine_module._warn_once.cache_clear()
    with pytest.warns(engine_module.EngineWarning, match=r"'torch' .* lost.*'plain' is taken"):
        assert engine_module.way_for("cuda") == "plain"
    engine_module._warn_once.cache_clear()
    monkeypatch.setenv("XSOILSM_ENGINE", "kernel")
    with pytest.raises(ValueError, match="on a CPU only"):
        engine_module.way_for("cuda")


@pytest.mark.filterwarnings("ignore::xsoilsm.retrieval.ResolutionWarning")
def test_a_retrieval_names_its_precision(weights_dir, monkeypatch):
    monkeypatch.setenv("XSOILSM_WEIGHTS_DIR", str(weights_dir))
    cube = map_cube().chunk()
    results = [xsoilsm.retrieve(cube, precision=precision) for precision in PRECISIONS]
    assert len({tokenize(result.soil_moisture.data) for result in results}) == len(PRECISIONS)
    assert [result.attrs.get("precision") for result in results] == [None, *PRECISIONS[1:]]
    results[0].compute()
    with pytest.raises(ValueError, match="'bf16' is for a GPU"):
        xsoilsm.retrieve(cube, device="cpu", precision="bf16").compute()
    with pytest.raises(ValueError, match="unknown precision 'half'"):
        xsoilsm.retrieve(cube, precision="half")


# --------------------------------------------------------------------------- what is said


@pytest.fixture
def bench_gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    from benchmarks import bench_gpu

    return bench_gpu


def test_the_benchmark_runs(device, bench_gpu, monkeypatch):
    monkeypatch.setattr(bench_gpu, "COMPARED", 20)
    monkeypatch.setattr(bench_gpu, "BATCHES", (64, 128))
    networks = speed.MadeUp([(2, 12), (1, 9)])
    rows = bench_gpu.run(False, n=300, rounds=1, networks=networks, device=device)
    worst = {row["variant"]: row["mean, worst"] for row in rows if "mean, worst" in row}
    assert worst["error, float32"] < 1e-5 < worst["error, tf32"] < worst["error, bf16"] < 0.1
    timed = {row["variant"] for row in rows if row.get("million values/s", 0) > 0}
    assert {"float32, two dates", "tf32", "float32, no graphs", "float32, batches of 64"} <= timed


def test_without_a_gpu_the_benchmark_says_so(bench_gpu, monkeypatch):
    monkeypatch.setattr(bench_gpu, "has_gpu", lambda: False)
    monkeypatch.setattr(bench_gpu, "COMPARED", 10)
    *_, last = bench_gpu.run(False, networks=speed.MadeUp([(1, 9)]))
    assert last["note"] == "no GPU on this machine: not measured"


@GPU
def test_the_report_on_cuda_gives_each_precision(monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 0.05)
    monkeypatch.setattr(speed, "GPU_PIXELS", 20_000)
    found = speed.report(speed.MadeUp([(2, 12), (1, 9)]), device="cuda")
    assert [precise.name for precise in found.precisions] == list(PRECISIONS)
    assert found.precisions[0].error < 1e-5
    assert "two dates" in str(found)
