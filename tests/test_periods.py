import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import dates

from xsoilsm import periods


@given(st.integers(1999, 2040))
def test_a_year_has_46_periods_that_add_up_to_its_days(year):
    starts = periods.period_starts(f"{year}-01-01", f"{year}-12-31")
    assert starts.size == 46
    assert starts[0] == np.datetime64(f"{year}-01-01")
    days = (datetime.date(year + 1, 1, 1) - datetime.date(year, 1, 1)).days
    assert periods.period_length(starts).sum() == days
    assert (periods.period_length(starts[:-1]) == 8).all()
    assert np.array_equal(np.diff(starts).astype(int), periods.period_length(starts[:-1]))


@given(dates)
def test_every_date_lies_in_its_period(date):
    start = periods.period_start(np.datetime64(date))
    offset = (np.datetime64(date) - start).astype(int)
    assert 0 <= offset < periods.period_length(start)
    assert (start.item().timetuple().tm_yday - 1) % 8 == 0
    assert periods.is_period_start(start)
    assert periods.is_period_start(np.datetime64(date)) == (offset == 0)


@given(dates, st.integers(-100, 100))
def test_stepping_back_and_forth_counts_periods(date, count):
    start = periods.period_start(np.datetime64(date))
    back = periods.preceding_period(start, count)
    assert periods.preceding_period(back, -count) == start
    low, high = min(back, start), max(back, start)
    assert periods.period_starts(low, high).size == abs(count) + 1


def test_the_window_of_new_years_day_ends_with_the_new_period():
    starts = periods.period_starts("2019-12-01", "2021-03-01")
    (end,) = periods.window_end(starts, np.array(["2021-01-01T05:40"], "datetime64[ns]"))
    window = starts[end - 45 : end + 1]
    assert window[0] == np.datetime64("2020-01-09")
    assert window[-2:].tolist() == [datetime.date(2020, 12, 26), datetime.date(2021, 1, 1)]


def test_an_acquisition_before_the_first_period_has_no_window():
    starts = periods.period_starts("2020-01-01", "2020-03-01")
    assert periods.window_end(starts, np.array(["2019-12-31"], "datetime64[D]")) == [-1]


def test_reversed_range_is_an_error():
    with pytest.raises(ValueError, match="swap"):
        periods.period_starts("2020-02-01", "2020-01-01")
