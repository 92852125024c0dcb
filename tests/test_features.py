import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import as_samples, golden_cube, map_cube, sample_cube

import xsoilsm
from xsoilsm.catalog import CatalogError
from xsoilsm.contract import contract_names, get_contract


def test_golden_features_from_physical_inputs(golden):
    features = xsoilsm.compute_features(golden_cube(golden))
    np.testing.assert_allclose(features.snapshot, golden["snapshot"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(features.series, golden["series"], rtol=0, atol=1e-6)
    # Among the golden dates is the 366th day of a leap year.
    assert "2020-12-31" in golden["in_date"]


@given(st.integers(0, 5), st.sampled_from(["published-coarse", "paper"]))
@settings(max_examples=10)
def test_map_and_sample_form_agree(seed, contract):
    cube = map_cube((3, 4), seed=seed)
    on_map = xsoilsm.compute_features(cube, contract)
    as_table = xsoilsm.compute_features(as_samples(cube), contract)
    for name in ("snapshot", "series", "clipped"):
        flat = on_map[name].values.reshape(-1, *on_map[name].shape[3:])
        np.testing.assert_allclose(flat, as_table[name].values, rtol=0, atol=1e-6)


@given(st.integers(1, 7), st.integers(1, 6), st.integers(1, 3))
@settings(max_examples=8)
def test_lazy_features_equal_eager_ones_for_any_chunks(cy, cx, ct):
    cube = map_cube()
    eager = xsoilsm.compute_features(cube)
    lazy = xsoilsm.compute_features(cube.chunk(y=cy, x=cx, time=ct, period=9))
    assert all(lazy[n].chunks is not None for n in lazy)
    xr.testing.assert_identical(lazy.compute(), eager)
    samples = sample_cube()
    xr.testing.assert_identical(
        xsoilsm.compute_features(samples.chunk(sample=cy)).compute(),
        xsoilsm.compute_features(samples),
    )


def test_the_window_of_each_acquisition_is_its_own():
    cube = map_cube(times=("2020-04-02", "2020-04-14", "2020-12-31", "2021-01-01"))
    index = np.arange(cube.sizes["period"], dtype=np.float32) / 1000
    cube["ndvi"] = (cube.ndvi.dims, np.broadcast_to(index[:, None, None], cube.ndvi.shape).copy())
    cube.ndvi.attrs["units"] = "1"
    series = xsoilsm.compute_features(cube).series.sel(channel="ndvi").isel(y=0, x=0)
    last = np.round((series.values[:, -1] * 1.2 - 0.2) * 1000).astype(int)
    starts = cube.period.values.astype("datetime64[D]")[last].astype(str).tolist()
    assert starts == ["2020-03-29", "2020-04-14", "2020-12-26", "2021-01-01"] or starts == [
        "2020-03-29",
        "2020-04-06",
        "2020-12-26",
        "2021-01-01",
    ]
    assert np.allclose(np.diff(series.values, axis=1) * 1.2 * 1000, 1, atol=1e-2)


def test_published_contract_repeats_the_cosine_and_paper_does_not():
    cube = sample_cube(50)
    published = xsoilsm.compute_features(cube, "published-coarse").snapshot.values
    paper = xsoilsm.compute_features(cube, "paper")
    assert np.array_equal(published[:, 13], published[:, 14])
    angle = 2 * np.pi * cube.time.dt.dayofyear.values / 365
    np.testing.assert_allclose(published[:, 13], (np.cos(angle) + 1) / 2, atol=1e-6)
    np.testing.assert_allclose(paper.snapshot[:, 13], (np.sin(angle) + 1) / 2, atol=1e-6)
    np.testing.assert_allclose(paper.snapshot[:, 14], (np.cos(angle) + 1) / 2, atol=1e-6)
    np.testing.assert_allclose(
        paper.snapshot[:, 15:18], paper.series.isel(step=-1).values, atol=1e-7
    )
    rain = cube.precipitation.values / 8 / 0.3
    np.testing.assert_allclose(paper.series.sel(channel="precipitation"), rain, atol=1e-6)


def test_clipped_values_are_counted_per_pixel():
    cube = sample_cube(3)
    assert xsoilsm.compute_features(cube).clipped.values.tolist() == [0, 0, 0]
    cube["sigma0_vv"][0] = 9.0
    cube["elevation"][1] = -30.0
    cube["slope"][1] = 55.0
    cube["precipitation"][2, 10:15] = 0.5
    assert xsoilsm.compute_features(cube).clipped.values.tolist() == [1, 2, 5]


@given(st.integers(0, 1000))
@settings(max_examples=15)
def test_features_are_normalised_and_nan_stays_nan(seed):
    rng = np.random.default_rng(seed)
    cube = sample_cube(5, seed=seed)
    for name in cube.data_vars:
        wild = rng.normal(0, 1e4, cube[name].shape)
        cube[name] = cube[name].copy(data=np.where(rng.random(wild.shape) < 0.1, np.nan, wild))
    from xsoilsm.features import Block, block_inputs

    contract = get_contract("published-coarse")
    inputs = {n: data for n, (data, _) in block_inputs(cube, contract).items()}
    encoded = Block.of(contract, inputs).encode()
    (snapshot,) = encoded.snapshots
    for values in (snapshot, encoded.series):
        finite = values[np.isfinite(values)]
        assert finite.min() >= 0
        assert finite.max() <= 1
    assert np.array_equal(np.isnan(snapshot[0]), np.isnan(cube.sigma0_vv.values))
    assert np.array_equal(np.isnan(encoded.series[0]), np.isnan(cube.ndvi.values.T))
    gaps = np.isnan(snapshot).any(axis=0) | np.isnan(encoded.series).any(axis=(0, 1))
    assert np.array_equal(encoded.missing[0], gaps)


def test_contracts_with_names_are_complete_and_differ():
    assert set(contract_names()) >= {"published-coarse", "paper"}
    published, paper = get_contract("published-coarse"), get_contract("paper")
    assert len(published.features) == len(paper.features) == 18
    assert published.channels == ("ndvi", "air_temperature", "precipitation")
    assert published.digest != paper.digest
    assert get_contract(published.to_dict()).digest == published.digest


def test_the_digest_follows_numbers_and_not_notes():
    content = get_contract("paper").to_dict()
    noted = {**content, "title": "another title"}
    noted["snapshot"] = [{**i, "note": "a note"} for i in content["snapshot"]]
    assert get_contract(noted).digest == get_contract("paper").digest
    moved = {**content, "snapshot": content["snapshot"][::-1]}
    assert get_contract(moved).digest != get_contract("paper").digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": "blue"}, "colour: Extra inputs are not permitted"),
        ({"averaging": "median"}, "averaging"),
        ({"snapshot": [{"name": "a", "source": "moon", "units": "1", "range": [0, 1]}]}, "'moon'"),
        (
            {"snapshot": [{"name": "a", "source": "sand", "units": "1", "range": [1, 0]}]},
            "not ascending",
        ),
        ({"snapshot": [{"name": "a", "source": "sand", "units": "1"}]}, "exactly one"),
        (
            {"snapshot": [{"name": "a", "source": "sand", "units": "1", "summary": "mean"}]},
            "no channel",
        ),
    ],
)
def test_invalid_contracts_are_refused(change, words):
    with pytest.raises(CatalogError, match=words):
        get_contract({**get_contract("paper").to_dict(), **change})


def test_unknown_contract_lists_the_known_ones():
    with pytest.raises(CatalogError, match="paper, published-coarse"):
        xsoilsm.compute_features(sample_cube(), "unheard-of")
