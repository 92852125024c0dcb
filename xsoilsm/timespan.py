"""Step 3 of 7 (load): days from the ways in which users write a time."""

from __future__ import annotations

import calendar
import re
from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np

__all__ = ["Time", "days_of"]

Time = str | date | np.datetime64 | Sequence[Any] | slice
"""A day, month or year, two of them, or a slice."""

_DAY = re.compile(r"^(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?$")


def days_of(time: Time) -> tuple[date, date]:
    """First and last day of a time range, both included.

    Parameters
    ----------
    time : str, date, datetime64, (start, end) or slice
        ``"2020"``, ``"2020-04"``, ``"2020-04-15"``, ``"2020-04-01/2020-05-15"``, or two dates;
        in UTC.

    Returns
    -------
    start, end : date

    Raises
    ------
    ValueError
        When a day cannot be understood or the range is empty.

    Examples
    --------
    >>> days_of("2020-02")
    (datetime.date(2020, 2, 1), datetime.date(2020, 2, 29))
    """
    ends: tuple[Any, Any] = (time, time)
    if isinstance(time, slice):
        ends = (time.start, time.stop)
    elif isinstance(time, str):
        first, separator, last = time.partition("/")
        ends = (first.strip(), last.strip()) if separator else (time, time)
    elif isinstance(time, Sequence) and len(time) == 2:
        ends = (time[0], time[1])
    start, end = _day(ends[0], last=False), _day(ends[1], last=True)
    if end < start:
        msg = f"time {time!r} is empty: it ends on {end}, before it starts on {start}; swap them"
        raise ValueError(msg)
    return start, end


def _day(value: Any, *, last: bool) -> date:
    """Day of a value; of a month or year the first or last one."""
    match = _DAY.match(value) if isinstance(value, str) else None
    try:
        if match is None:
            return date.fromisoformat(str(np.datetime64(value, "D")))
        year, month, day = (int(part) if part else 0 for part in match.groups())
        month = month or (12 if last else 1)
        return date(year, month, day or (calendar.monthrange(year, month)[1] if last else 1))
    except (TypeError, ValueError):
        msg = (
            f"cannot tell a day from {value!r}; expected for instance '2020-04-15', '2020-04', "
            "'2020-04-01/2020-04-30' or two dates"
        )
        raise ValueError(msg) from None
