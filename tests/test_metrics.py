import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsoilsm.metrics import agreement


@given(st.integers(0, 1000), st.integers(2, 50))
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


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="same"):
        agreement([0.1], [0.1, 0.2])
