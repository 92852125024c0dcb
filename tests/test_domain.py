"""Domain of applicability: distance from the training set, and calibrated uncertainty."""

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError
from synthetic import golden_cube, map_cube

import xsoilsm
from xsoilsm.calibration import Calibration, fit_calibration, share_within, uncertainty
from xsoilsm.domain import distance, domain_table, standard_scores, statistics_of
from xsoilsm.ensemble import Ensemble
from xsoilsm.quality import QualityFlag

pytestmark = pytest.mark.filterwarnings("ignore::xsoilsm.retrieval.ResolutionWarning")


@pytest.fixture(scope="module", autouse=True)
def weights(weights_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XSOILSM_WEIGHTS_DIR", str(weights_dir))
        yield


@pytest.fixture(scope="module")
def ensemble(weights):
    return xsoilsm.get_ensemble("DenseSM-E")


@pytest.fixture(scope="module")
def statistics(ensemble):
    return statistics_of(ensemble)


def test_statistics_are_those_that_the_networks_keep(ensemble, statistics):
    physical = dict(zip(statistics.features, statistics.mean, strict=True))
    assert physical["sigma0_vv"] * 35 - 30 == pytest.approx(-12.0, abs=0.1)
    assert physical["elevation"] * 5500 == pytest.approx(1342, abs=2)
    spread = dict(zip(statistics.features, statistics.std, strict=True))
    assert spread["sigma0_vv"] * 35 == pytest.approx(2.4, abs=0.05)
    assert spread["air_temperature_mean"] * 45 == pytest.approx(6.0, abs=0.1)
    # The second cosine of the day of the year tells nothing new.
    left_out = set(range(18)) - set(statistics.distinct)
    assert [statistics.features[i] for i in left_out] == ["day_of_year_cos_again"]


def test_distance_is_the_formula(golden, ensemble, statistics):
    states = ensemble.state_dicts()
    mean = np.mean([s["norm.running_mean"][:18] for s in states], axis=0, dtype=np.float64)
    within = np.mean([s["norm.running_var"][:18] for s in states], axis=0, dtype=np.float64)
    between = np.var([s["norm.running_mean"][:18] for s in states], axis=0, dtype=np.float64)
    scores = (golden["snapshot"] - mean) / np.sqrt(within + between)
    scores = np.delete(scores, 14, axis=1)
    found = distance(statistics, golden["snapshot"].T)
    np.testing.assert_allclose(found, np.sqrt((scores**2).mean(axis=1)), rtol=1e-4)


def test_the_mean_square_is_one_over_samples_like_the_training(statistics):
    rng = np.random.default_rng(0)
    shape = (18, 20_000)
    like = statistics.mean[:, None] + statistics.std[:, None] * rng.standard_normal(shape)
    squares = distance(statistics, like.astype(np.float32)) ** 2
    assert squares.mean() == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(standard_scores(statistics, like).std(axis=1), 1, atol=0.03)


@given(hnp.arrays(np.float32, (18, 9), elements=st.floats(0, 1, width=32)), st.integers(1, 8))
@settings(max_examples=20)
def test_pixels_do_not_depend_on_each_other(statistics, snapshot, cut):
    whole = distance(statistics, snapshot)
    parts = [distance(statistics, snapshot[:, :cut]), distance(statistics, snapshot[:, cut:])]
    assert np.array_equal(whole, np.concatenate(parts))
    snapshot = snapshot.copy()
    snapshot[3, 0] = np.nan
    assert np.isnan(distance(statistics, snapshot)[0])
    assert np.array_equal(distance(statistics, snapshot)[1:], whole[1:])


def test_layers_and_flag(golden, statistics):
    cube = golden_cube(golden).copy(deep=True)
    cube["sigma0_vv"][5] = np.nan
    plain = xsoilsm.retrieve(cube)
    assert set(plain.data_vars) == {"soil_moisture", "soil_moisture_std", "quality_flag"}
    result = xsoilsm.retrieve(cube, domain=True)
    assert result.soil_moisture.identical(plain.soil_moisture) is False  # ancillary_variables
    assert np.array_equal(result.soil_moisture, plain.soil_moisture, equal_nan=True)
    assert np.array_equal(result.quality_flag, plain.quality_flag)
    apart = distance(statistics, golden["snapshot"].T)
    apart[5] = np.nan
    np.testing.assert_allclose(result.domain_distance, apart, rtol=2e-3)
    flagged = (result.quality_flag.values & int(QualityFlag.OUT_OF_DOMAIN)) != 0
    assert np.array_equal(flagged, result.domain_distance.values > 2.5)
    assert 0 < flagged.sum() < 40
    expected = xsoilsm.compute_features(cube).clipped
    assert np.array_equal(result.clipped_inputs, expected)
    clipped = (result.quality_flag.values & int(QualityFlag.INPUTS_CLIPPED)) != 0
    assert np.array_equal(clipped[np.arange(256) != 5], expected.values[np.arange(256) != 5] > 0)
    assert "no error estimate" in result.domain_distance.attrs["comment"]
    wide = xsoilsm.retrieve(cube, thresholds={"domain_distance": 10})
    assert not (wide.quality_flag.values & int(QualityFlag.OUT_OF_DOMAIN)).any()


def test_members_disagree_more_far_from_the_training_set(golden, statistics):
    apart = distance(statistics, golden["snapshot"].T)
    near, far = golden["std"][apart < 1.25], golden["std"][apart > 2.5]
    assert np.median(far) > 1.3 * np.median(near)


def test_real_backscatter_lies_within_the_domain_and_water_at_its_rim(shared, statistics):
    with rasterio.open(shared / "data/sar/Sen1Floods11_Spain_7370579_S1Hand.tif") as file:
        bands = file.read()[:, :510, :510].astype(np.float64)
    vv, vh = bands.reshape(2, 51, 10, 51, 10).mean(axis=(2, 4)).reshape(2, -1)
    snapshot = np.repeat((statistics.mean + statistics.std)[:, None], vv.size, axis=1)
    snapshot[0], snapshot[1] = (vv + 30) / 35, (vh + 35) / 35
    apart = distance(statistics, snapshot.astype(np.float32))
    assert np.nanquantile(apart, 0.99) < 2
    water = vv < -20
    assert water.sum() > 10
    assert np.median(apart[water]) > 1.3 * np.nanmedian(apart[~water])


def test_the_table_puts_the_most_unusual_input_first():
    cube = map_cube()
    cube["clay"] = (cube.clay * 0 + 95).assign_attrs(units="percent")
    table = domain_table(cube)
    assert len(table) == 17
    assert table.iloc[0].input == "clay"
    assert table.iloc[0].cube_mean == pytest.approx(95, abs=0.1)
    assert table.iloc[0].trained_mean == pytest.approx(20.3, abs=0.1)
    assert table.iloc[0].far == 1
    assert table.distance.is_monotonic_decreasing
    rain = table.set_index("input").loc["precipitation_mean"]
    assert rain.units == "m"
    assert rain.trained_mean == pytest.approx(0.0207, abs=1e-4)
    cube["clay"] = (cube.clay * np.nan).assign_attrs(units="percent")
    with pytest.raises(ValueError, match="no cell of the cube has all inputs"):
        domain_table(cube)


# --------------------------------------------------------------------------- calibration


def errors(floor, factor, n=40_000, seed=0):
    rng = np.random.default_rng(seed)
    spread = rng.gamma(4, 0.01, n)
    return spread, np.hypot(floor, factor * spread) * rng.standard_normal(n)


@pytest.mark.parametrize(("floor", "factor"), [(0.04, 1.5), (0.08, 0.3), (0.01, 2.0)])
def test_a_calibration_is_recovered(floor, factor):
    found = fit_calibration(*errors(floor, factor))
    assert found == pytest.approx((floor, factor), rel=0.1, abs=0.01)


CALIBRATION = Calibration(
    floor=0.05,
    factor=1.5,
    resolution="1km",
    truth="stations of a test",
    truth_sha256="0" * 64,
    samples=500,
    within=0.66,
)


def test_a_calibrated_uncertainty_covers_what_it_should():
    spread, error = errors(CALIBRATION.floor, CALIBRATION.factor, seed=1)
    spread[0] = np.nan
    found = uncertainty(CALIBRATION, spread)
    assert np.isnan(found[0])
    assert share_within(error, found) == pytest.approx(0.683, abs=0.01)
    with pytest.raises(ValueError, match=r"99 pairs .* expected at least 100"):
        fit_calibration(spread[:100], error[:100])
    with pytest.raises(ValueError, match="nothing can be counted"):
        share_within(error[:1], found[:1])
    with pytest.raises(ValidationError, match="floor"):
        Calibration(**CALIBRATION.model_dump() | {"floor": -1.0})


def test_uncertainty_exists_only_with_a_calibration_for_the_grid(ensemble):
    card = ensemble.card.model_copy(update={"calibration": CALIBRATION})
    calibrated = Ensemble(card, ensemble.contract, ensemble.digest, ensemble.folder)
    cube = map_cube()
    assert "soil_moisture_uncertainty" not in cube.sm.retrieve(ensemble)
    result = cube.sm.retrieve(calibrated)
    np.testing.assert_allclose(
        result.soil_moisture_uncertainty,
        np.hypot(0.05, 1.5 * result.soil_moisture_std),
        rtol=1e-5,
    )
    assert "66% of truths" in result.soil_moisture_uncertainty.attrs["comment"]
    assert "soil_moisture_uncertainty" in result.soil_moisture.attrs["ancillary_variables"]
    lazy = cube.chunk(y=2).sm.retrieve(calibrated).compute()
    np.testing.assert_allclose(
        lazy.soil_moisture_uncertainty, result.soil_moisture_uncertainty, rtol=1e-4
    )
    coarse = map_cube((2, 2), res="9km").sm.retrieve(calibrated)
    assert "soil_moisture_uncertainty" not in coarse
