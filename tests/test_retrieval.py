import os
import subprocess
import sys
import warnings

import cloudpickle
import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import as_samples, golden_cube, map_cube, sample_cube

import xsoilsm
from xsoilsm.card import Citation, EnsembleCard, Licence, Member, Training
from xsoilsm.cube import CubeError, SourceFlag
from xsoilsm.ensemble import save_ensemble
from xsoilsm.quality import QualityFlag
from xsoilsm.retrieval import ResolutionWarning

coarse = pytest.mark.filterwarnings("ignore::xsoilsm.retrieval.ResolutionWarning")


@pytest.fixture(scope="module", autouse=True)
def weights(weights_dir):
    """Make the published networks available as a user would, from a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XSOILSM_WEIGHTS_DIR", str(weights_dir))
        yield


def has(result, flag):
    return (result.quality_flag.values & int(flag)) != 0


def test_golden_soil_moisture_from_physical_inputs(golden):
    result = xsoilsm.retrieve(golden_cube(golden), keep_invalid=True)
    np.testing.assert_allclose(result.soil_moisture, golden["mean"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(result.soil_moisture_std, golden["std"], rtol=0, atol=1e-6)
    outside = (golden["mean"] < 0) | (golden["mean"] > 0.6)
    assert np.array_equal(has(result, QualityFlag.OUT_OF_RANGE), outside)


@coarse
def test_result_is_described_for_people_and_programs():
    cube = map_cube().assign_attrs(provenance="items a, b")
    result = cube.sm.retrieve(model="DenseSM-E", res="1km")
    assert result.soil_moisture.dims == ("time", "y", "x")
    assert result.soil_moisture.attrs["units"] == "m3 m-3"
    assert result.soil_moisture_std.attrs["units"] == "m3 m-3"
    assert result.quality_flag.dtype == np.uint32
    masks = result.quality_flag.attrs["flag_masks"]
    assert len(masks) == len(result.quality_flag.attrs["flag_meanings"].split())
    assert result.attrs["Conventions"] == "CF-1.11"
    assert result.attrs["ensemble_digest"] == xsoilsm.get_ensemble("DenseSM-E").digest
    assert result.attrs["feature_contract"] == "published-coarse"
    assert result.attrs["provenance"] == "items a, b"
    assert xsoilsm.__version__ in result.attrs["source"]
    assert "spatial_ref" in result.coords
    assert np.isfinite(result.soil_moisture).all()


def test_using_a_coarse_ensemble_on_fine_cells_is_said_once_and_kept():
    with pytest.warns(ResolutionWarning, match=r"RMSE 0\.105.*Fine-tune") as caught:
        result = map_cube().sm.retrieve()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "trained at 9km and is used at 1km" in result.attrs["resolution_note"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "resolution_note" not in map_cube((2, 2), res="9km").sm.retrieve().attrs


@coarse
@given(st.integers(1, 7), st.integers(1, 6), st.integers(1, 4))
@settings(max_examples=5)
def test_result_does_not_depend_on_chunks(cy, cx, ct):
    cube = map_cube()
    cube["sigma0_vv"][0, 1, 1] = np.nan
    eager = cube.sm.retrieve()
    lazy = cube.chunk(y=cy, x=cx, time=ct, period=10).sm.retrieve()
    assert all(lazy[n].chunks is not None for n in lazy)
    with dask.config.set(scheduler="threads"):
        computed = lazy.compute()
    for name in eager:
        np.testing.assert_allclose(computed[name], eager[name], rtol=0, atol=1e-6)
    assert computed.attrs == eager.attrs


@coarse
def test_maps_and_samples_agree():
    cube = map_cube()
    on_map = cube.sm.retrieve()
    samples = as_samples(cube)
    table = xsoilsm.retrieve(samples, res="1km")
    assert table.soil_moisture.dims == ("sample",)
    flat = on_map.soil_moisture.values.ravel()
    np.testing.assert_allclose(table.soil_moisture, flat, rtol=0, atol=1e-6)
    lazy = xsoilsm.retrieve(samples.chunk(sample=11), res="1km")
    np.testing.assert_allclose(lazy.soil_moisture, flat, rtol=0, atol=1e-6)


@coarse
def test_a_missing_input_gives_nan_and_a_flag_there_only():
    cube = map_cube()
    cube["sigma0_vh"][0, 0, 0] = np.nan
    cube["clay"][2, 3] = np.nan
    cube["ndvi"][3, 4, 4] = np.nan
    result = cube.sm.retrieve()
    missing = np.zeros(result.soil_moisture.shape, bool)
    missing[0, 0, 0] = missing[:, 2, 3] = missing[:, 4, 4] = True
    # The fourth period is the oldest but two of the first windows; check which windows see it.
    ends = np.searchsorted(cube.period.values, cube.time.values, side="right") - 1
    missing[:, 4, 4] = ends - 45 <= 3
    assert np.array_equal(np.isnan(result.soil_moisture.values), missing)
    assert np.array_equal(np.isnan(result.soil_moisture_std.values), missing)
    assert np.array_equal(has(result, QualityFlag.NAN_INPUT), missing)


@coarse
def test_silent_attributes_are_told_once_as_information(caplog):
    from xsoilsm.retrieval import _say_once

    _say_once.cache_clear()
    with caplog.at_level("INFO", logger="xsoilsm"):
        map_cube().sm.retrieve()
        map_cube().sm.retrieve()
    said = [r.message for r in caplog.records if "taken as" in r.message]
    assert len(said) == 4
    assert any("`sigma0_vv` has no attribute 'averaging'; it is taken as dB" in s for s in said)


@coarse
def test_all_missing_is_no_exception():
    cube = map_cube()
    cube["elevation"] = cube.elevation * np.nan
    cube["elevation"].attrs["units"] = "m"
    result = cube.sm.retrieve()
    assert result.soil_moisture.isnull().all()
    assert has(result, QualityFlag.NAN_INPUT).all()


@coarse
def test_source_coverage_and_clipping_reach_the_flags():
    cube = map_cube()
    dims = cube.sigma0_vv.dims
    coverage = np.ones(cube.sigma0_vv.shape, np.float32)
    coverage[1, 2, 2] = 0.3
    source = np.zeros(coverage.shape, np.uint8)
    source[0, 0, 1], source[0, 0, 2] = SourceFlag.READ_FAILED, SourceFlag.NO_SCENE
    source[1, 1, 1], source[1, 1, 2] = SourceFlag.UNRELIABLE_SIGMA0, SourceFlag.LAYOVER_SHADOW
    cube["coverage"], cube["source_flags"] = (dims, coverage), (dims, source)
    cube["slope"][4, 4] = 60.0
    result = cube.sm.retrieve()
    for flag, where in (
        (QualityFlag.LOW_COVERAGE, (1, 2, 2)),
        (QualityFlag.READ_FAILED, (0, 0, 1)),
        (QualityFlag.NO_SCENE, (0, 0, 2)),
        (QualityFlag.LAYOVER_SHADOW, (1, 1, 2)),
    ):
        assert has(result, flag).sum() == 1
        assert has(result, flag)[where]
    steep = has(result, QualityFlag.STEEP_SLOPE)  # by the cell's slope, and by the loader's word
    assert steep[:, 4, 4].all()
    assert steep[1, 1, 1]
    assert steep.sum() == 4
    clipped = has(result, QualityFlag.INPUTS_CLIPPED)
    assert clipped[:, 4, 4].all()
    assert clipped.sum() == 3


@pytest.fixture
def wet_ensemble(tmp_path):
    """Card of an ensemble of one's own: two published members that answer 0.35 too wet."""
    published = xsoilsm.get_ensemble("DenseSM-E")
    states = [dict(s) for s in published.state_dicts()[:2]]
    for state in states:
        state["out.bias"] = state["out.bias"] + np.float32(0.35)
    members = [
        Member(depth=m.depth, width=m.width, file=m.file.replace(".pt", ".safetensors"))
        for m in published.card.members[:2]
    ]
    card = EnsembleCard(
        schema_version=1,
        name="wet",
        family="Wet",
        resolution="1km",
        contract=published.contract.to_dict(),
        members=members,
        licence=Licence(statement="for tests"),
        citation=Citation(text="none"),
        training=Training(kind="transfer"),
    )
    save_ensemble(card, states, tmp_path / "wet")
    return tmp_path / "wet"


def test_invalid_values_are_flagged_and_kept_on_request(golden, wet_ensemble):
    cube = golden_cube(golden)
    kept, dropped = (xsoilsm.retrieve(cube, wet_ensemble, keep_invalid=k) for k in (True, False))
    outside = (kept.soil_moisture.values < 0) | (kept.soil_moisture.values > 0.6)
    assert 0 < outside.sum() < 256
    assert np.isfinite(kept.soil_moisture).all()
    assert np.array_equal(np.isnan(dropped.soil_moisture), outside)
    assert np.array_equal(np.isnan(dropped.soil_moisture_std), outside)
    assert np.array_equal(has(dropped, QualityFlag.OUT_OF_RANGE), outside)
    expected = golden["members"][:2].mean(axis=0) + 0.35
    np.testing.assert_allclose(kept.soil_moisture, expected, rtol=0, atol=1e-6)


@coarse
def test_coarser_result_averages_inputs_first():
    fine = map_cube((12, 13), res="500m")
    direct = xsoilsm.aggregate(fine, "1km").sm.retrieve()
    result = fine.chunk(y=5, x=5).sm.retrieve(res="1km")
    np.testing.assert_allclose(result.soil_moisture, direct.soil_moisture, atol=1e-6)
    assert result.attrs["resolution"] == "1km"
    with pytest.raises(ValueError, match="cannot be aggregated to 100m"):
        fine.sm.retrieve(res="100m")
    partial = has(result, QualityFlag.LOW_COVERAGE)
    share = xsoilsm.aggregate(fine, "1km").coverage.values
    assert np.array_equal(partial, share < 0.5)


@coarse
def test_nothing_computes_before_it_is_asked_and_weights_stay_out_of_the_graph():
    import dask.array as da

    def never(*_args, **_kwargs):
        pytest.fail("building the graph computed a block")

    cube = map_cube().chunk(y=3, x=3)
    lazy = da.map_blocks(never, cube.ndvi.data, dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    cube["ndvi"] = (cube.ndvi.dims, lazy, cube.ndvi.attrs)
    result = cube.sm.retrieve()
    assert len(cloudpickle.dumps(result.soil_moisture.data.dask)) < 300_000
    repeat = cube.sm.retrieve()
    assert result.soil_moisture.data.name == repeat.soil_moisture.data.name


@coarse
def test_works_on_a_cluster_of_processes(weights_dir):
    from distributed import Client, LocalCluster

    expected = map_cube().sm.retrieve()
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=True,
            dashboard_address=None,
            host="127.0.0.1",
        ) as cluster,
        Client(cluster),
    ):
        result = map_cube().chunk(y=3).sm.retrieve().compute()
    np.testing.assert_allclose(result.soil_moisture, expected.soil_moisture, rtol=0, atol=1e-6)


def test_wrong_cubes_models_and_resolutions_are_named():
    with pytest.raises(CubeError, match="`clay` is missing"):
        map_cube().drop_vars("clay").sm.retrieve()
    with pytest.raises(ValueError, match=r"unknown ensemble 'SparseSM'.*DenseSM-E"):
        map_cube().sm.retrieve(model="SparseSM")
    with pytest.raises(ValueError, match="unknown resolution '3km'"):
        map_cube().sm.retrieve(res="3km")


def test_first_use_without_weights_names_the_command(tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from synthetic import sample_cube\n"
        "import xsoilsm\n"
        "try:\n    xsoilsm.retrieve(sample_cube().chunk())\n"
        "except RuntimeError as error:\n    print(type(error).__name__, error)\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "XSOILSM_WEIGHTS_DIR"}
    env["XSOILSM_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    assert done.stdout.startswith("WeightsError")
    assert "xsoilsm weights fetch" in done.stdout


def test_samples_are_lazy_too():
    lazy = xsoilsm.retrieve(sample_cube(20).chunk(sample=6))
    assert lazy.soil_moisture.chunks is not None
    xr.testing.assert_allclose(lazy.compute(), xsoilsm.retrieve(sample_cube(20)), atol=1e-6)


@pytest.fixture
def days():
    """Two acquisitions of one eight-day period, then one of the next, one acquisition a chunk."""
    cube = map_cube((9, 7))
    times = np.array(["2020-04-02T06:00", "2020-04-05T18:00", "2020-04-09T06:00"], "M8[ns]")
    assert cube.sizes["time"] == times.size
    return cube.assign_coords(time=times)


@coarse
def test_acquisitions_of_one_period_are_computed_together(days, monkeypatch):
    from xsoilsm import blocks

    seen = []
    original = blocks._retrieve_block

    def noted(*arrays, **options):
        result = original(*arrays, **options)
        seen.append(result.shape)
        return result

    chunked = days.chunk(time=1, y=5, x=7)
    alone = chunked.sm.retrieve(together=False).compute()
    monkeypatch.setattr(blocks, "_retrieve_block", noted)
    together = chunked.sm.retrieve()
    assert together.soil_moisture.chunks[0] == (2, 1)
    together = together.compute(scheduler="single-threaded")
    assert sorted(shape[0] for shape in seen) == [1, 1, 2, 2]
    xr.testing.assert_allclose(together, alone, rtol=1e-6, atol=1e-6)
    assert together.quality_flag.equals(alone.quality_flag)


@coarse
def test_chunks_of_ones_own_along_time_stay(days):
    assert days.chunk(time=3).sm.retrieve().soil_moisture.chunks[0] == (3,)
    assert days.isel(time=[0, 2]).chunk(time=1).sm.retrieve().soil_moisture.chunks[0] == (1, 1)
