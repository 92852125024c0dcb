"""Step 1 of 7 (where and when): the 46 eight-day periods of a year.

MODIS composites of Terra and Aqua, interleaved, start every eight days and begin anew on
1 January of every year, so a year has 46 periods and the last one has five days (six in a leap
year). Vegetation and weather share this calendar. Everything here is exact calendar
arithmetic on ``datetime64[D]``; nothing is read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = [
    "DAYS_PER_PERIOD",
    "PERIODS_PER_YEAR",
    "is_period_start",
    "period_length",
    "period_start",
    "period_starts",
    "preceding_period",
    "utc_date",
    "window_end",
]

PERIODS_PER_YEAR = 46
"""Number of periods in a calendar year, and of steps in a network's series."""

DAYS_PER_PERIOD = 8
"""Length in days of every period but the last of a year."""

Dates = npt.NDArray[np.datetime64]
DateLike = str | np.datetime64 | npt.NDArray[np.datetime64] | Sequence[np.datetime64]


def utc_date(time: DateLike) -> Dates:
    """Calendar date (UTC) of each instant.

    Parameters
    ----------
    time : datetime64 or array of datetime64
        Instants in UTC.

    Returns
    -------
    ndarray of datetime64[D]
    """
    return np.asarray(time, dtype="datetime64").astype("datetime64[D]")


def period_start(time: DateLike) -> Dates:
    """Start of the period in which each instant lies.

    Parameters
    ----------
    time : datetime64 or array of datetime64
        Instants in UTC.

    Returns
    -------
    ndarray of datetime64[D]
        A date with day of year 1, 9, ..., 361.
    """
    return _start_of(_serial(utc_date(time)))


def is_period_start(time: DateLike) -> npt.NDArray[np.bool_]:
    """Tell which instants are exactly the start of a period.

    Parameters
    ----------
    time : datetime64 or array of datetime64
        Instants in UTC.

    Returns
    -------
    ndarray of bool
    """
    values = np.asarray(time, dtype="datetime64")
    return np.asarray(period_start(values) == values)


def period_length(start: DateLike) -> npt.NDArray[np.int64]:
    """Length in days of the periods that begin at `start`.

    Parameters
    ----------
    start : datetime64 or array of datetime64
        Starts of periods.

    Returns
    -------
    ndarray of int64
        8, or 5 or 6 for the last period of a year.
    """
    date = utc_date(start)
    following = (date.astype("datetime64[Y]") + 1).astype("datetime64[D]")
    left = (following - date).astype(np.int64)
    return np.minimum(left, DAYS_PER_PERIOD)


def period_starts(first: DateLike, last: DateLike) -> Dates:
    """List the starts of all periods from the one of `first` to the one of `last`, inclusive.

    Parameters
    ----------
    first, last : datetime64
        Instants in UTC.

    Returns
    -------
    ndarray of datetime64[D]

    Raises
    ------
    ValueError
        When `last` lies before `first`.

    Examples
    --------
    >>> period_starts("2020-12-20", "2021-01-02").astype(str).tolist()
    ['2020-12-18', '2020-12-26', '2021-01-01']
    """
    begin, end = period_start(first), period_start(last)
    if end < begin:
        msg = f"the last date {last} lies before the first {first}; swap them"
        raise ValueError(msg)
    return _start_of(np.arange(int(_serial(begin)), int(_serial(end)) + 1))


def preceding_period(time: DateLike, count: int) -> Dates:
    """Start of the period that lies `count` periods before the period of `time`.

    Parameters
    ----------
    time : datetime64 or array of datetime64
        Instants in UTC.
    count : int
        Number of periods to step back (negative steps forward).

    Returns
    -------
    ndarray of datetime64[D]
    """
    return _start_of(_serial(utc_date(time)) - count)


def _serial(date: Dates) -> npt.NDArray[np.int64]:
    """Count periods from the first of 1970."""
    year = date.astype("datetime64[Y]")
    slot = (date - year.astype("datetime64[D]")).astype(np.int64) // DAYS_PER_PERIOD
    return np.asarray(year.astype(np.int64) * PERIODS_PER_YEAR + slot, dtype=np.int64)


def _start_of(serial: npt.NDArray[np.int64]) -> Dates:
    """Start of the periods with these numbers."""
    year, slot = np.divmod(serial, PERIODS_PER_YEAR)
    first = np.asarray(year).astype("datetime64[Y]").astype("datetime64[D]")
    days = (np.asarray(slot) * DAYS_PER_PERIOD).astype("timedelta64[D]")
    starts: Dates = first + days
    return starts


def window_end(starts: DateLike, time: DateLike) -> npt.NDArray[np.int64]:
    """Index of the latest period that starts on or before the date of each acquisition.

    The series that a network sees is the 46 periods that end there (archive mode: the period
    counts whole, days after the acquisition included).

    Parameters
    ----------
    starts : (period,) datetime64
        Ascending starts of periods.
    time : (time,) datetime64
        Acquisition instants in UTC.

    Returns
    -------
    (time,) ndarray of int64
        -1 where every period starts after the acquisition.
    """
    position = np.searchsorted(utc_date(starts), utc_date(time), side="right")
    return np.asarray(position - 1, dtype=np.int64)
