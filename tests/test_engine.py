import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xsoilsm.engine import Engine
from xsoilsm.folding import fold
from xsoilsm.network import DenseSM


class Networks:
    """Random networks in place of an ensemble: batch norms far from the identity."""

    def __init__(self, members, seed=0):
        torch.manual_seed(seed)
        self.modules = [DenseSM(depth, width).eval() for depth, width in members]
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules:
            for name, tensor in module.state_dict().items():
                if name.endswith("running_var"):
                    tensor.uniform_(0.3, 2.0, generator=generator)
                elif name.endswith(("running_mean", "bias")):
                    tensor.normal_(0, 0.3, generator=generator)
                elif ".bn" in name or name.startswith("norm"):
                    if name.endswith("weight"):
                        tensor.uniform_(0.5, 1.5, generator=generator)

    def state_dicts(self):
        return [{k: v.numpy() for k, v in m.state_dict().items()} for m in self.modules]

    def plain(self, snapshot, series):
        with torch.inference_mode():
            outputs = torch.stack(
                [
                    m.double()(
                        torch.from_numpy(snapshot.T.astype(float)),
                        torch.from_numpy(series.transpose(2, 0, 1).astype(float)),
                    )
                    for m in self.modules
                ]
            ).numpy()
        for module in self.modules:
            module.float()
        return outputs.mean(axis=0), outputs.std(axis=0)


def pixels(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((18, n), np.float32), rng.random((3, 46, n), np.float32)


members = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40)), min_size=1, max_size=4)


@given(members, st.integers(0, 700), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=12)
def test_any_ensemble_any_size_equals_the_plain_networks(shapes, n, threads, seed):
    networks = Networks(shapes, seed)
    snapshot, series = pixels(n, seed)
    mean, std = Engine(networks, "cpu", threads).predict(snapshot, series)
    expected_mean, expected_std = networks.plain(snapshot, series)
    scale = max(np.abs(expected_mean).max(initial=0), 1)
    np.testing.assert_allclose(mean, expected_mean, rtol=0, atol=1e-6 * scale)
    np.testing.assert_allclose(std, expected_std, rtol=0, atol=1e-6 * scale)
    assert mean.dtype == std.dtype == np.float32


@pytest.fixture(scope="module")
def published(weights_dir):
    class Published:
        def state_dicts(self):
            order = [(d, w) for d in range(1, 6) for w in (8, 16, 32, 64, 128)]
            files = (weights_dir / f"coarse_{d}_{w}.pt" for d, w in order)
            states = (torch.load(f, weights_only=True, map_location="cpu") for f in files)
            return [{k: v.numpy() for k, v in state.items()} for state in states]

    return Engine(Published(), "cpu", 2)


def test_golden_mean_and_spread(published, golden):
    mean, std = published.predict(golden["snapshot"].T, golden["series"].transpose(1, 2, 0))
    np.testing.assert_allclose(mean, golden["mean"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(std, golden["std"], rtol=0, atol=1e-6)


def test_a_pixel_does_not_depend_on_its_neighbours_or_its_place(published, golden):
    snapshot, series = golden["snapshot"].T, golden["series"].transpose(1, 2, 0)
    mean, std = published.predict(snapshot, series)
    rng = np.random.default_rng(0)
    for size in (1, 3, 100, 256):
        some = rng.permutation(256)[:size]
        part = published.predict(snapshot[:, some], series[:, :, some])
        np.testing.assert_allclose(part[0], mean[some], rtol=0, atol=1e-7)
        np.testing.assert_allclose(part[1], std[some], rtol=0, atol=1e-7)


@given(st.integers(0, 50))
@settings(max_examples=10)
def test_nan_in_gives_nan_out_and_nothing_else(seed):
    rng = np.random.default_rng(seed)
    snapshot, series = pixels(40, seed)
    snapshot[rng.random(snapshot.shape) < 0.01] = np.nan
    series[rng.random(series.shape) < 0.002] = np.nan
    missing = np.isnan(snapshot).any(0) | np.isnan(series).any((0, 1))
    mean, std = Engine(Networks([(2, 8), (1, 16)]), "cpu", 1).predict(snapshot, series)
    assert np.array_equal(np.isnan(mean), missing)
    assert np.array_equal(np.isnan(std), missing)


def test_wrong_shapes_are_refused_before_anything_runs():
    engine = Engine(Networks([(1, 8)]), "cpu", 1)
    snapshot, series = pixels(5)
    for bad in ((snapshot.T, series), (snapshot, series[:, :45]), (snapshot[:, :4], series)):
        with pytest.raises(ValueError, match="pixels last"):
            engine.predict(*bad)


def test_unknown_devices_and_thread_counts_are_refused():
    networks = Networks([(1, 8)])
    with pytest.raises(ValueError, match="'auto', 'cpu' or 'cuda'"):
        Engine(networks, "tpu")
    with pytest.raises(ValueError, match="at least 1"):
        Engine(networks, "cpu", 0)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU"):
            Engine(networks, "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cuda_equals_cpu():
    networks = Networks([(1, 8), (5, 128)])
    snapshot, series = pixels(1000)
    on_cpu = Engine(networks, "cpu").predict(snapshot, series)
    on_gpu = Engine(networks, "cuda").predict(snapshot, series)
    np.testing.assert_allclose(on_gpu[0], on_cpu[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(on_gpu[1], on_cpu[1], rtol=0, atol=1e-6)


def test_many_callers_share_one_engine_and_leave_torch_as_it_was():
    engine = Engine(Networks([(2, 16)]), "cpu", 2)
    before = torch.get_num_threads()
    snapshot, series = pixels(600)
    expected = engine.predict(snapshot, series)[0]
    results = []
    callers = [
        threading.Thread(target=lambda: results.append(engine.predict(snapshot, series)[0]))
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 4
    assert all(np.array_equal(r, expected) for r in results)
    assert torch.get_num_threads() == before


def test_folding_keeps_depth_and_width():
    (state,) = Networks([(3, 20)]).state_dicts()
    folded = fold(state)
    assert (folded.depth, folded.width) == (3, 20)
    assert folded.head.weight.shape == (32, 30 + 3 * 20)
