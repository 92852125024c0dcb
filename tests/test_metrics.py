import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytesmo.metrics import bias, pairwise, pearson_r, rmsd, ubrmsd

from xsoilsm.metrics import (
    MEASURES,
    agreement,
    analytic_intervals,
    bootstrap_intervals,
    fisher_interval,
    inversion_rate,
    measures,
    unit_sums,
    valid,
)

seeds = st.integers(0, 1000)


@given(seeds, st.integers(2, 50))
def test_measures_follow_their_definitions(seed, n):
    rng = np.random.default_rng(seed)
    x, y = rng.random(n), rng.random(n)
    found = agreement(x, y)
    assert found.n == n
    assert found.rmse**2 == pytest.approx(found.bias**2 + found.ubrmse**2)
    assert found.bias == pytest.approx(x.mean() - y.mean())
    slope = agreement(2 * x + 1, x)
    assert slope.r == pytest.approx(1)


def test_pairs_with_nan_do_not_count():
    found = agreement([0.1, np.nan, 0.3, 0.2], [0.2, 0.2, np.nan, 0.3])
    assert found.n == 2
    assert found.bias == pytest.approx(-0.1)
    assert found.ubrmse == pytest.approx(0)


def test_nothing_to_compare_is_nan_and_no_warning():
    assert np.isnan(agreement([np.nan], [0.1]).r)
    assert np.isnan(agreement([0.1, 0.1], [0.1, 0.2]).r)
    assert np.isnan(inversion_rate([]))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="same"):
        agreement([0.1], [0.1, 0.2])
    with pytest.raises(ValueError, match="same"):
        unit_sums([0.1], [0.1, 0.2], [0, 0])


def test_inversion_rate_counts_bounds_as_valid_and_nan_as_failed():
    assert valid([0, 0.6, -1e-6, 0.6001, np.nan]).tolist() == [True, True, False, False, False]
    assert inversion_rate([0, 0.6, -0.1, np.nan]) == 0.5


# --------------------------------------------------------------------------- pytesmo


@given(seeds, st.integers(4, 80), st.sampled_from([0.9, 0.95, 0.99]))
def test_measures_and_analytic_intervals_are_those_of_pytesmo(seed, n, level):
    rng = np.random.default_rng(seed)
    y = rng.uniform(0.05, 0.5, n)
    x = 0.6 * y + rng.normal(0.1, 0.05, n)
    found = agreement(x, y)
    assert found.bias == pytest.approx(bias(x, y))
    assert found.r == pytest.approx(pearson_r(x, y))
    assert found.rmse == pytest.approx(rmsd(x, y))
    assert found.ubrmse == pytest.approx(ubrmsd(x, y))
    spans = analytic_intervals(found, level)
    alpha = 1 - level
    assert spans["bias"] == pytest.approx(pairwise.bias_ci(x, y, found.bias, alpha))
    assert spans["r"] == pytest.approx(pairwise.pearson_r_ci(x, y, found.r, alpha))
    assert spans["ubrmse"] == pytest.approx(pairwise.ubrmsd_ci(x, y, found.ubrmse, alpha))


def test_intervals_of_few_pairs_are_nan():
    few = analytic_intervals(agreement([0.1, 0.2, 0.3], [0.1, 0.3, 0.2]))
    assert np.isnan(list(few.values())).all()
    assert np.isnan(fisher_interval(0.5, 3)).all()
    assert np.isnan(fisher_interval(np.nan, 30)).all()
    assert fisher_interval(1.0, 30) == (1.0, 1.0)


# --------------------------------------------------------------------------- units


@given(seeds, st.integers(1, 60), st.integers(1, 6))
def test_sums_of_units_give_the_measures_of_their_union(seed, n, units):
    rng = np.random.default_rng(seed)
    y, x = rng.uniform(0, 0.5, n), rng.uniform(-0.05, 0.7, n)
    y[rng.random(n) < 0.1] = np.nan
    x[rng.random(n) < 0.1] = np.nan
    sums = unit_sums(x, y, rng.integers(0, units, n), units)
    together = measures(sums.sum(axis=0))
    expected = agreement(np.where(valid(x), x, np.nan), y)
    assert sums[:, 1].sum() == expected.n
    for name in ("bias", "rmse", "ubrmse", "r"):
        assert together[name] == pytest.approx(getattr(expected, name), abs=1e-7, nan_ok=True)
    known = np.isfinite(y)
    rate = valid(x[known]).mean() if known.any() else np.nan
    assert together["inversion_rate"] == pytest.approx(rate, nan_ok=True)


def _world(rng, sites=30, per_site=40, site_error=0.05):
    """Pairs whose errors are mostly those of their site; the true bias is 0."""
    site = np.repeat(np.arange(sites), per_site)
    y = rng.uniform(0.15, 0.35, site.size)
    x = y + rng.normal(0, site_error, sites)[site] + rng.normal(0, 0.02, site.size)
    return x, y, site


def test_intervals_of_sites_hold_the_truth_where_those_of_samples_do_not():
    """95 % intervals of the mean error of 30 sites, 200 worlds, of which about 190 should hold."""
    by_site = by_sample = 0
    for world in range(200):
        x, y, site = _world(np.random.default_rng(world))
        low, high = bootstrap_intervals(unit_sums(x, y, site), draws=300)["bias"]
        by_site += low <= 0 <= high
        low, high = analytic_intervals(agreement(x, y))["bias"]
        by_sample += low <= 0 <= high
    assert 180 <= by_site <= 199
    assert by_sample < 100


@settings(max_examples=10)
@given(seeds)
def test_the_bootstrap_is_deterministic_and_surrounds_the_estimate(seed):
    x, y, site = _world(np.random.default_rng(seed), sites=12)
    sums = unit_sums(x, y, site)
    spans = bootstrap_intervals(sums, draws=200)
    assert spans == bootstrap_intervals(sums, draws=200)
    assert spans != bootstrap_intervals(sums, draws=200, seed=1)
    narrow = bootstrap_intervals(sums, 0.5, draws=200)
    for name in ("r", "ubrmse"):
        low, high = spans[name]
        assert low <= measures(sums.sum(axis=0))[name] <= high
        assert high - low > narrow[name][1] - narrow[name][0]


def test_paired_draws_make_intervals_of_differences_narrow():
    rng = np.random.default_rng(3)
    x, y, site = _world(rng)
    better, worse = unit_sums(x, y, site), unit_sums(x + rng.normal(0, 0.03, x.size), y, site)
    low, high = bootstrap_intervals(better, minus=worse)["rmse"]
    alone = bootstrap_intervals(better)["rmse"]
    assert low < high < 0
    assert high - low < 0.3 * (alone[1] - alone[0])
    same = bootstrap_intervals(better, minus=better)
    assert all(span == (0, 0) for span in same.values())


def test_one_unit_or_undefined_measures_have_no_interval():
    one = bootstrap_intervals(unit_sums([0.1, 0.2], [0.1, 0.3], [0, 0]))
    assert set(one) == set(MEASURES)
    assert np.isnan(list(one.values())).all()
    constant = bootstrap_intervals(unit_sums([0.1] * 4, [0.1, 0.2, 0.3, 0.4], [0, 1, 2, 3]))
    assert np.isnan(constant["r"]).all()
    assert np.isfinite(constant["rmse"]).all()
