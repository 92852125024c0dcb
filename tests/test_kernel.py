"""The compiled kernel: exact for any ensemble, any pixels, any processor; refused if it is not."""

import multiprocessing
import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
from dask.base import tokenize
from dask.system import CPU_COUNT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import Networks

from xsoilsm import engine as engine_module
from xsoilsm import kernel as kernel_module
from xsoilsm._layers import MACHINE, PANEL
from xsoilsm._tiles import TILE
from xsoilsm.engine import WAYS, Engine
from xsoilsm.folding import fold
from xsoilsm.kernel import Kernel

MEMBERS = [(2, 12), (1, 9)]


def cube(n, acquisitions=1, periods=46, seed=0, run=1):
    """Random inputs; neighbours within `run` pixels have the same weather."""
    rng = np.random.default_rng(seed)
    snapshots = rng.random((acquisitions, 18, n), np.float32)
    series = rng.random((3, periods, n), np.float32)
    series[1:] = series[1:][:, :, np.arange(n) // run * run]
    return snapshots, series, rng.integers(45, periods, acquisitions)


def truth(networks, snapshots, series, ends):
    pairs = [
        networks.plain(snapshot, series[:, end - 45 : end + 1])
        for snapshot, end in zip(snapshots, ends, strict=True)
    ]
    return tuple(np.array(part) for part in zip(*pairs, strict=True))


def close(result, expected):
    for found, true in zip(result, expected, strict=True):
        scale = max(np.nanmax(np.abs(expected[0]), initial=0), 1)
        np.testing.assert_allclose(found, true, rtol=0, atol=1e-6 * scale)
        assert found.dtype == np.float32


def same(one, other):
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True))


@given(
    shapes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 40)), min_size=1, max_size=3),
    n=st.one_of(st.integers(0, 3), st.integers(0, 2 * TILE + PANEL)),
    acquisitions=st.integers(0, 10),
    periods=st.integers(46, 49),
    run=st.sampled_from([1, 7, 40, 300, 2000]),
    threads=st.integers(1, 3),
    gaps=st.sampled_from([0, 0.001, 0.03]),
    seed=st.integers(0, 99),
)
@settings(max_examples=20)
def test_any_ensemble_any_pixels_any_gaps(
    shapes, n, acquisitions, periods, run, threads, gaps, seed
):
    networks = Networks(shapes, seed)
    snapshots, series, ends = cube(n, acquisitions, periods, seed, run)
    rng = np.random.default_rng(seed)
    snapshots[rng.random(snapshots.shape) < gaps] = np.nan
    series[rng.random(series.shape) < gaps / 10] = np.nan
    members = [fold(state) for state in networks.state_dicts()]
    result = Kernel(members).predict_many(snapshots, series, ends, threads=threads)
    assert result[0].shape == (acquisitions, n)
    if acquisitions:
        close(result, truth(networks, snapshots, series, ends))


def test_a_pixel_gets_the_same_bits_whatever_is_computed_beside_it():
    n = kernel_module.BLOCK + 77
    snapshots, series, ends = cube(n, 3, 47, run=37)
    kernel = Kernel([fold(state) for state in Networks(MEMBERS).state_dicts()])
    expected = kernel.predict_many(snapshots, series, ends)
    rng = np.random.default_rng(1)
    for size in (1, 2, 100, 700):
        some = rng.permutation(n)[:size]
        part = kernel.predict_many(snapshots[..., some], series[..., some], ends)
        assert same(part, [x[:, some] for x in expected])
    assert same(kernel.predict_many(snapshots, series, ends, threads=3), expected)
    alone = [
        kernel.predict_many(s[None], series, e[None]) for s, e in zip(snapshots, ends, strict=True)
    ]
    assert same([np.concatenate(x) for x in zip(*alone, strict=True)], expected)


def test_reuse_computes_the_convolutions_once_for_a_window(monkeypatch):
    snapshots, series, _ = cube(50, 20, 47)
    kernel = Kernel([fold(state) for state in Networks(MEMBERS).state_dicts()])
    calls = []
    run = kernel._run
    monkeypatch.setattr(kernel, "_run", lambda *args: calls.append(args[2:6]) or run(*args))
    kernel.predict_many(snapshots, series, np.array([46, 45] * 10))
    assert [(np.array_equal(s[..., :50], series[:, :46]), len(x)) for s, _, _, x in calls] == [
        (True, 8), (True, 2), (False, 8), (False, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("run", [100, 1000])
def test_weather_is_convolved_once_for_the_pixels_that_share_it(run, monkeypatch):
    snapshots, series, ends = cube(1000, run=run)
    kernel = Kernel([fold(state) for state in Networks(MEMBERS).state_dicts()])
    owners = []
    inner = kernel._run
    monkeypatch.setattr(kernel, "_run", lambda *args: owners.extend(args[3]) or inner(*args))
    mixed = np.random.default_rng(0).permutation(1000)
    kernel.predict_many(snapshots[..., mixed], series[..., mixed], ends)
    assert np.count_nonzero(np.array(owners) >= 0) >= 1000 // MACHINE.lanes - 1000 // run


def test_masked_pixels_are_left_out(monkeypatch):
    snapshots, series, ends = cube(500, 2)
    snapshots[:, 0, 100:200] = np.nan
    snapshots[1, 0, :50] = np.nan
    series[0, 3, 300:] = np.nan
    kernel = Kernel([fold(state) for state in Networks(MEMBERS).state_dicts()])
    seen = []
    run = kernel._run
    monkeypatch.setattr(kernel, "_run", lambda *args: seen.append(args) or run(*args))
    mean, _ = kernel.predict_many(snapshots, series, ends)
    ((_, _, taken, *_, counts, _, _, _),) = seen
    left = [*range(100), *range(200, 300)]
    assert np.array_equal(taken[..., :200], series[:, :46, left])
    assert taken.shape[-1] < 200 + MACHINE.lanes
    assert counts.sum(axis=1).tolist() == [200, 150]
    assert np.array_equal(np.flatnonzero(~np.isnan(mean[0])), left)
    assert np.array_equal(np.flatnonzero(~np.isnan(mean[1])), left[50:])


def test_pixels_with_equal_weather_become_neighbours_only_where_many_have():
    _, series, _ = cube(960)
    everywhere = np.arange(960)
    order, shared = kernel_module._by_weather(series[1:], everywhere)
    assert np.array_equal(order, everywhere)
    assert not shared
    order, shared = kernel_module._by_weather(series[1:][:, :, everywhere % 5], everywhere)
    assert shared
    assert np.count_nonzero(np.diff(order % 5)) == 4
    assert np.array_equal(np.sort(order), everywhere)


def test_inputs_of_any_layout_and_type():
    snapshots, series, ends = cube(130, 2, 47)
    engine = Engine(Networks(MEMBERS), "cpu", 1)
    expected = engine.predict_many(snapshots, series, ends)
    strided = np.empty((2, 18, 260), np.float32)[..., ::2]
    strided[...] = snapshots
    raw = np.zeros(series.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(series.shape)
    raw[...] = series
    frozen = snapshots.copy()
    frozen.setflags(write=False)
    turned = np.ascontiguousarray(series[..., ::-1])[..., ::-1]
    for variant in (
        (strided, series, ends),
        (np.asfortranarray(snapshots), np.asfortranarray(series), ends.astype(np.int32)),
        (frozen, raw, list(ends)),
        (snapshots.astype(float), series.astype(">f4"), ends),
        (snapshots, turned, ends),
    ):
        assert same(engine.predict_many(*variant), expected)
    one = np.broadcast_to(snapshots[..., :1], (2, 18, 130))
    constant = engine.predict_many(one, np.broadcast_to(series[..., :1], (3, 47, 130)), ends)
    assert same(constant, [np.repeat(x[:, :1], 130, axis=1) for x in expected])


def test_wrong_shapes_and_windows_are_refused_before_anything_runs():
    snapshots, series, ends = cube(5, 2, 47)
    engine = Engine(Networks(MEMBERS), "cpu", 1)
    for bad in (
        (snapshots[0], series, ends), (snapshots[..., :4], series, ends),
        (snapshots, series[:2], ends), (snapshots, series[0], ends),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="pixels last"):
            engine.predict_many(*bad)
    for bad_ends, words in (
        ([45], "expected \\(2,\\) integers"), ([45.0, 46.0], "expected \\(2,\\) integers"),
        ([44, 46], "expected 45 to 46"), ([45, 47], "expected 45 to 46"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            engine.predict_many(snapshots, series, np.array(bad_ends))
    with pytest.raises(ValueError, match="no members"):
        Engine(Networks([]), "cpu", 1)


@pytest.mark.parametrize("way", WAYS)
def test_pixels_that_are_not_valid_are_left_out(way, monkeypatch):
    monkeypatch.setenv("XSOILSM_ENGINE", way)
    engine = Engine(Networks(MEMBERS), "cpu", 2)
    snapshots, series, _ = cube(600, 2)
    expected = engine.predict_many(snapshots, series)
    rng = np.random.default_rng(0)
    series[:, :, :9] = np.inf
    for valid in (rng.random(600) < 0.5, rng.random((2, 600)) < 0.5, np.zeros(600, bool)):
        valid[..., :9] = False
        found = engine.predict_many(snapshots, series, valid=valid)
        everywhere = np.broadcast_to(valid, (2, 600))
        for one, other in zip(found, expected, strict=True):
            assert np.isnan(one[~everywhere]).all()
            np.testing.assert_allclose(one[everywhere], other[everywhere], rtol=0, atol=1e-6)


def test_wrong_masks_are_refused():
    snapshots, series, _ = cube(5, 2)
    engine = Engine(Networks(MEMBERS), "cpu", 1)
    for valid in (np.ones(4, bool), np.ones((3, 5), bool), np.ones(5, int), np.ones((5, 2), bool)):
        with pytest.raises(ValueError, match=r"expected \(5,\) or \(2, 5\) of bool"):
            engine.predict_many(snapshots, series, valid=valid)
    with pytest.raises(ValueError, match="has 45 periods; expected 46"):
        engine.predict_many(snapshots, series[:, :45])


def test_networks_whose_layers_do_not_fit_are_refused():
    (folded,) = [fold(state) for state in Networks([(2, 12)]).state_dicts()]
    head = replace(folded.head, weight=folded.head.weight[:, :-1])
    with pytest.raises(ValueError, match=r"expected .*\(32, 54\)"):
        Kernel([replace(folded, head=head)])
    with pytest.raises(ValueError, match="expected"):
        Kernel([replace(folded, out=replace(folded.out, bias=folded.out.bias[:0]))])


def test_only_a_main_thread_takes_all_processors():
    found = [engine_module.default_threads()]
    for task in (lambda: found.append(engine_module.default_threads()),):
        thread = threading.Thread(target=task)
        thread.start()
        thread.join()
    assert found == [CPU_COUNT, 1]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(engine_module.default_threads) == 1


def test_the_number_of_threads_is_decided_by_the_call(monkeypatch):
    monkeypatch.setattr(engine_module, "default_threads", lambda: 7)
    monkeypatch.setenv("XSOILSM_ENGINE", "kernel")
    snapshots, series, _ = cube(3)
    for threads, expected in ((None, 7), (2, 2)):
        engine = Engine(Networks(MEMBERS), "cpu", threads)
        seen = []
        runner = engine._runner
        monkeypatch.setattr(
            runner, "predict_many", lambda *a, seen=seen: seen.append(a[-1]) or (a[0][:, 0],) * 2
        )
        engine.predict_many(snapshots, series)
        assert seen == [expected]


def test_dask_sees_the_name_of_the_weights_only_and_workers_build_their_own():
    networks = Networks(MEMBERS)
    one, other = Engine(networks, "cpu", 1), Engine(networks, "cpu", 1)
    assert tokenize(one) == tokenize(one) != tokenize(other)
    networks.digest = "abc"
    assert tokenize(Engine(networks, "cpu", 1)) == tokenize(Engine(networks, "cpu", 1))
    snapshots, series, _ = cube(20)
    again = pickle.loads(pickle.dumps(one))
    assert same(again.predict_many(snapshots, series), one.predict_many(snapshots, series))
    assert (again.threads, again.device) == (1, "cpu")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70_000), st.integers(1, 8))
def test_blocks_cover_all_pixels_and_threads_end_together(pixels, threads):
    parts = kernel_module._divide(pixels, threads)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == pixels
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) <= kernel_module.BLOCK
    assert all(size % PANEL == 0 for size in sizes[:-1])
    # Each block goes to the thread that is free first.
    loads = [0] * threads
    for size in sizes:
        loads[loads.index(min(loads))] += size
    if threads > 1:
        assert max(loads) - min(loads) <= TILE + PANEL


def test_threads_are_respected_and_buffers_reused(monkeypatch):
    snapshots, series, ends = cube(3 * TILE)
    kernel = Kernel([fold(state) for state in Networks(MEMBERS).state_dicts()])
    used = set()
    run = kernel._run
    monkeypatch.setattr(
        kernel, "_run", lambda *args: used.add(threading.current_thread().name) or run(*args)
    )
    here = threading.current_thread().name
    for _ in range(3):
        kernel.predict_many(snapshots, series, ends)
    assert used == {here}
    assert len(kernel._spare) == 1
    for _ in range(3):
        kernel.predict_many(snapshots, series, ends, threads=2)
    assert used - {here} <= {"xsoilsm-kernel_0", "xsoilsm-kernel_1"}
    assert len(used) > 1
    assert len(kernel._spare) <= 2


def test_many_callers_at_once():
    engine = Engine(Networks(MEMBERS), "cpu", 2)
    inputs = [cube(400 + 100 * i, 2, 47, seed=i, run=50) for i in range(4)]
    expected = [engine.predict_many(*arrays) for arrays in inputs]
    results = {}

    def call(i):
        results[i] = [engine.predict_many(*inputs[i]) for _ in range(3)]

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for i, found in results.items():
        assert all(same(result, expected[i]) for result in found)
    assert len(results) == 4
