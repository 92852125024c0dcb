"""What had come by a moment: radar, composites, weather, and what stands in for the rest."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from xsoilsm import periods
from xsoilsm.catalog import CatalogError, open_catalog
from xsoilsm.sources.availability import (
    acquired_by,
    complete_latest,
    composed_by,
    latency_of,
    moment_of,
    until,
)


@pytest.mark.parametrize(
    ("asof", "text"),
    [
        ("2020-05-01", "2020-05-02T00:00:00Z"),
        (date(2020, 5, 1), "2020-05-02T00:00:00Z"),
        (np.datetime64("2020-05-01"), "2020-05-02T00:00:00Z"),
        ("2020-05-01T06:30", "2020-05-01T06:30:00Z"),
        ("2020-05-01T06:30Z", "2020-05-01T06:30:00Z"),
        ("2020-05-01T08:30+02:00", "2020-05-01T06:30:00Z"),
        (datetime(2020, 5, 1, 6, 30), "2020-05-01T06:30:00Z"),
        (datetime(2020, 5, 1, 6, 30, tzinfo=timezone(timedelta(hours=2))), "2020-05-01T04:30:00Z"),
        (np.datetime64("2020-05-01T06:30:00.123456789"), "2020-05-01T06:30:00Z"),
        (pd.Timestamp("2020-05-01T06:30"), "2020-05-01T06:30:00Z"),
    ],
)
def test_a_moment_is_understood(asof, text):
    assert moment_of(asof).text == text


@pytest.mark.parametrize("asof", ["2020", "2020-05", "soon", "", np.datetime64("2020"), None])
def test_what_is_no_moment_is_refused(asof):
    with pytest.raises(ValueError, match=r"cannot tell a moment from asof=.*end of that day"):
        moment_of(asof)


@dataclass(frozen=True)
class Piece:
    time: np.datetime64
    start: np.datetime64


def pieces(*texts):
    return [Piece(np.datetime64(t, "ns"), np.datetime64(t[:10], "D")) for t in texts]


def test_an_acquisition_had_come_once_its_latency_was_over():
    known = pieces("2020-05-01T06:00", "2020-05-02T06:00")
    assert acquired_by(known, 1.0, moment_of("2020-05-02T06:00")) == known[:1]
    assert acquired_by(known, 1.0, moment_of("2020-05-02T05:59:59")) == []
    assert acquired_by(known, 0.0, moment_of("2020-05-02")) == known


def test_a_composite_had_come_when_it_was_complete_and_delivered():
    # The composite of 18 February 2025 was complete with 5 March, and produced on the 11th.
    known = pieces("2025-02-10", "2025-02-18", "2025-02-26")
    assert composed_by(known, 6.0, moment_of("2025-03-11")) == known[:2]
    assert composed_by(known, 6.0, moment_of("2025-03-10")) == known[:1]
    assert composed_by(known, 0.0, moment_of("2025-03-05")) == known[:2]


@given(
    st.datetimes(datetime(1990, 1, 1), datetime(2040, 1, 1)),
    st.floats(0, 120, allow_nan=False),
)
def test_the_last_day_is_the_last_that_had_ended_in_time(asof, latency):
    moment = moment_of(asof)
    last = np.datetime64(moment.last_day(latency), "D")
    assert moment.has(last + 1, latency)
    assert not moment.has(last + 2, latency)


def segments_with(latency, *spans):
    source = SimpleNamespace(collection="weather", latency=latency)

    @dataclass(frozen=True)
    class Stretch:
        source: object
        start: date
        end: date

        def model_copy(self, update):
            return Stretch(self.source, self.start, update["end"])

    return [Stretch(source, *map(date.fromisoformat, span)) for span in spans]


def test_stretches_of_days_end_with_what_had_come():
    whole = segments_with(7, ("2020-01-01", "2020-04-30"), ("2020-05-01", "2020-06-30"))
    left = until(whole, moment_of("2020-05-10"))
    assert [s.end for s in left] == [date(2020, 4, 30), date(2020, 5, 3)]
    assert [s.end for s in until(whole, moment_of("2020-05-07"))] == [date(2020, 4, 30)]
    assert until(whole, moment_of("2019-12-31")) == []
    assert until(whole, moment_of("2021-01-01")) == whole


def test_a_source_without_latency_is_named():
    source = SimpleNamespace(collection="era5-pds", latency=None)
    with pytest.raises(CatalogError, match=r"latency of 'era5-pds'.*latency: 5.*leave asof out"):
        latency_of(source)


def test_real_segments_are_cut():
    segments = open_catalog("planetary-computer").segments(
        "weather", date(2020, 1, 1), date(2020, 4, 30)
    )
    try:
        latency = latency_of(segments[0].source)
    except CatalogError:
        pytest.skip("the catalog states no latencies")
    (cut,) = until(segments, moment_of("2020-04-20"))
    assert cut.source == segments[0].source
    assert cut.end == date(2020, 4, 20) - timedelta(latency)
    assert until(segments, moment_of("2040-01-01")) == list(segments)


# --------------------------------------------------------------------------- stand-ins


STARTS = periods.period_starts("2020-11-24", "2021-01-09")


def test_only_incomplete_periods_at_the_end_are_touched():
    length = periods.period_length(STARTS)
    days = length.copy()
    days[1] = 3  # a hole amid the series stays as it is
    values = np.arange(STARTS.size, dtype=np.float32)[:, None]
    before = values.copy()
    assert complete_latest(values, days, STARTS, total=False) == 0
    assert np.array_equal(values, before)
    days[-2:] = 2, 0
    values[-1] = np.nan
    assert complete_latest(values, days, STARTS, total=False) == 2
    assert np.array_equal(values[:-2], before[:-2])
    assert np.isfinite(values).all()
    assert complete_latest(values, np.zeros_like(days), STARTS, total=True) == 0


def test_stand_ins_are_the_latest_days_and_the_usual_rain():
    length = periods.period_length(STARTS)
    days = length.copy()
    days[-1] = 2
    warm = np.full((STARTS.size, 2), 10, np.float32)
    warm[-1] = 18
    complete_latest(warm, days, STARTS, total=False)
    latest_eight = 2 / 8 * 18 + 6 / 8 * 10
    np.testing.assert_allclose(warm[-1], 2 / 8 * 18 + 6 / 8 * latest_eight)
    rain = np.tile(np.float32([0.0, 0.02]), STARTS.size)[: STARTS.size, None].copy()
    usual = rain[:-1].mean()
    rain[-1] = 0.08  # two wet days, scaled to eight
    complete_latest(rain, days, STARTS, total=True)
    np.testing.assert_allclose(rain[-1], 0.02 + 6 / 8 * usual, rtol=1e-5)
    empty = rain.copy()
    empty[-1] = np.nan
    days[-1] = 0
    complete_latest(empty, days, STARTS, total=True)
    np.testing.assert_allclose(empty[-1], usual, rtol=1e-5)
    sea = np.full((STARTS.size, 3), np.nan, np.float32)
    for total in (True, False):
        complete_latest(sea, days, STARTS, total=total)
        assert np.isnan(sea[:-1]).all()


def test_stand_ins_err_less_than_scaling_on_real_weather(shared):
    path = shared / "data/era5/xclim_ERA5_daily_surface_cancities_1990-1993.nc"
    with xr.open_dataset(path) as data:
        daily = data[["pr", "tas"]].transpose("time", ...).load()
    rain = daily.pr.values.astype(np.float64) * 86400 / 1000  # kg m-2 s-1 to m a day
    celsius = daily.tas.values.astype(np.float64) - 273.15
    starts = periods.period_starts("1990-01-09", "1991-01-01")  # all but the last but one of 8 days
    errors = {n: [] for n in (0, 1, 4)}
    for first in range(0, rain.shape[0] - 46 * 8, 8):
        window = slice(first, first + 46 * 8)
        blocks = [v[window].reshape(46, 8, -1) for v in (rain, celsius)]
        for n, found in errors.items():
            days = periods.period_length(starts).copy()
            days[-1] = n * days[-1] // 8
            share = days[-1] / periods.period_length(starts)[-1]
            row = []
            for block, total in zip(blocks, (True, False), strict=True):
                factor = 8 if total else 1
                values = (block.mean(axis=1) * factor).astype(np.float32)
                truth = values[-1].copy()
                part = block[-1, : round(8 * share)]
                scaled = part.mean(axis=0) * factor if len(part) else np.full(5, np.nan)
                values[-1] = scaled
                complete_latest(values, days, starts, total=total)
                row += [values[-1] - truth, scaled - truth]
            found.append(row)
    rms = {n: np.sqrt(np.mean(np.square(found), axis=(0, 2))) for n, found in errors.items()}
    assert rms[1][0] < 0.6 * rms[1][1]  # rain, one day of eight
    assert rms[4][0] < 0.9 * rms[4][1]
    assert rms[1][2] < rms[1][3]  # temperature
    assert rms[0][0] < 0.025  # the spread of totals itself is 0.021 m
