"""Step 3 of 7 (load): what a source had at a moment in the past.

In the archive mode of training every period counts whole, days after the acquisition included. An
operator has less: radar comes hours after the overpass, a composite of NDVI days after its sixteen
days are over, and weather with its producer's delay. With ``asof`` a cube is made of what had come
by then, by the latency that the catalog states for each source. Three things cannot be brought
back: versions that were replaced since (preliminary reanalysis, earlier collections), delays that
were longer or shorter than usual, and what was known of terrain, soil and land cover.

Days of weather that are missing at the end take, of temperature, the mean of the latest eight days
there are, and of precipitation, the mean of all complete periods. Scaling a few days to eight
instead would take one wet day for a wet week: on four years of daily weather of five Canadian
cities its error with one day of eight is 40 mm, that of the rule here 16 mm, with four days 15
against 11 mm (root mean square of the total of 8 days, ``tests/test_availability.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from xsoilsm import periods
from xsoilsm.catalog import CatalogError, Segment

__all__ = [
    "COMPOSITE_DAYS",
    "Asof",
    "Moment",
    "acquired_by",
    "complete_latest",
    "composed_by",
    "latency_of",
    "moment_of",
    "until",
]

COMPOSITE_DAYS = 16
"""Days that a composite of NDVI covers (MOD13 user guide, collection 6.1)."""

Asof: TypeAlias = str | date | datetime | np.datetime64
"""A moment in UTC, or a day, which stands for its end."""

Floats = npt.NDArray[np.float32]

_DAY = np.timedelta64(86400, "s")
_ONLY_DAY = re.compile(r"^\d{4}-\d{2}-\d{2}$")


class _Begun(Protocol):
    @property
    def start(self) -> np.datetime64: ...


class _Seen(Protocol):
    @property
    def time(self) -> Any: ...


Begun = TypeVar("Begun", bound=_Begun)
Seen = TypeVar("Seen", bound=_Seen)


@dataclass(frozen=True)
class Moment:
    """A moment, and what had come by then.

    Parameters
    ----------
    instant : datetime64[s]
        In UTC.
    """

    instant: np.datetime64

    @property
    def text(self) -> str:
        """ISO form in UTC, for attributes."""
        return f"{np.datetime_as_string(self.instant, unit='s')}Z"

    def has(self, end: Any, latency: float) -> npt.NDArray[np.bool_]:
        """Tell whether data had come whose time ends at `end`.

        Parameters
        ----------
        end : datetime64 or array of datetime64
            In UTC.
        latency : float
            Days from then until the provider has the data.

        Returns
        -------
        ndarray of bool
        """
        ends = np.asarray(end, "datetime64[s]")
        return np.asarray(ends + np.timedelta64(round(latency * 86400), "s") <= self.instant)

    def last_day(self, latency: float) -> date:
        """Last day in UTC that had come whole.

        Parameters
        ----------
        latency : float
            Days from the end of a day until the provider has it.
        """
        ended = self.instant - np.timedelta64(round(latency * 86400), "s")
        return date.fromisoformat(str((ended - _DAY).astype("datetime64[D]")))


def moment_of(asof: Asof) -> Moment:
    """Moment from the ways in which users write one.

    Parameters
    ----------
    asof : str, date, datetime or datetime64
        ``"2020-05-01T06:00"``, ``"2020-05-01T08:00+02:00"``, or a day, which stands for its end:
        as in a range of time, the whole day is included. Without a zone it is UTC.

    Returns
    -------
    Moment

    Raises
    ------
    ValueError
        When it cannot be understood, or is a month or a year.

    Examples
    --------
    >>> moment_of("2020-05-01").text
    '2020-05-02T00:00:00Z'
    """
    if isinstance(asof, np.datetime64):
        whole_day = np.datetime_data(asof.dtype)[0] == "D"
        text = "" if np.isnat(asof) or np.datetime_data(asof.dtype)[0] in "YM" else str(asof)
        text = text[:26]  # microseconds are the most that a datetime holds
    elif isinstance(asof, date):  # a datetime is one, too
        whole_day = not isinstance(asof, datetime)
        text = asof.isoformat()
    else:
        text = str(asof).strip()
        whole_day = bool(_ONLY_DAY.match(text))
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or not ("T" in text or " " in text or whole_day):
        msg = (
            f"cannot tell a moment from asof={asof!r}; expected for instance '2020-05-01', which "
            "stands for the end of that day, or '2020-05-01T06:00' in UTC"
        )
        raise ValueError(msg)
    if found.tzinfo is not None:
        found = found.astimezone(UTC).replace(tzinfo=None)
    instant = np.datetime64(found, "s")
    return Moment(instant + _DAY if whole_day else instant)


def latency_of(source: Any) -> float:
    """Days from the end of what data cover until the provider has them.

    Parameters
    ----------
    source : Source
        Of a catalog.

    Raises
    ------
    CatalogError
        When the catalog does not say.
    """
    latency = getattr(source, "latency", None)
    if latency is None:
        msg = (
            f"asof needs the latency of '{source.collection}', and the catalog gives none; add "
            "for instance `latency: 5` (days from the end of what data cover until the provider "
            "has them) to that source, or leave asof out"
        )
        raise CatalogError(msg)
    return float(latency)


def acquired_by(acquisitions: Iterable[Seen], latency: float, moment: Moment) -> list[Seen]:
    """Acquisitions that had come. Lazy: reads nothing.

    Parameters
    ----------
    acquisitions : iterable
        With ``time``, the instant of the overpass.
    latency : float
        Days.
    moment : Moment
    """
    return [one for one in acquisitions if moment.has(one.time, latency)]


def composed_by(composites: Iterable[Begun], latency: float, moment: Moment) -> list[Begun]:
    """Composites of NDVI that were complete and had come. Lazy: reads nothing.

    Parameters
    ----------
    composites : iterable
        With ``start``, the first of :data:`COMPOSITE_DAYS` days.
    latency : float
        Days.
    moment : Moment
    """
    length = np.timedelta64(COMPOSITE_DAYS, "D")
    return [one for one in composites if moment.has(one.start + length, latency)]


def until(segments: Iterable[Segment], moment: Moment) -> list[Segment]:
    """Stretches of days, without the days that had not come.

    Lazy: reads nothing.

    Parameters
    ----------
    segments : iterable of Segment
        Each with a source that says its latency.
    moment : Moment

    Returns
    -------
    list of Segment
        Those of which some day is left.

    Raises
    ------
    CatalogError
        When the catalog does not say a latency.
    """
    left = []
    for segment in segments:
        end = min(segment.end, moment.last_day(latency_of(segment.source)))
        if end >= segment.start:
            left.append(segment.model_copy(update={"end": end}))
    return left


def complete_latest(
    values: Floats, days: npt.NDArray[np.int64], starts: npt.NDArray[np.datetime64], *, total: bool
) -> int:
    """Stand in for the days of weather that had not come, in place. Computes.

    Only periods at the end are touched: those after the last one with all its days.

    Parameters
    ----------
    values : (period, ...) ndarray of float32
        Mean of the days there are, or their total scaled to 8 days; NaN where there is none.
    days : (period,) ndarray of int64
        Number of days there are.
    starts : (period,) ndarray of datetime64[D]
    total : bool
        Whether it is the total of 8 days: missing days take the mean of all complete periods.
        Else it is a mean, and missing days take that of the latest eight days there are.

    Returns
    -------
    int
        Number of periods that were touched; 0 where no period is complete.
    """
    length = periods.period_length(starts)
    whole = np.flatnonzero(days >= length)
    if not whole.size:
        return 0
    last = int(whole[-1])
    usual = _mean(values[whole]) if total else None
    before = values[last].astype(np.float64)
    for k in range(last + 1, len(values)):
        there = ~np.isnan(values[k])
        share = np.where(there, days[k] / length[k], 0.0)
        known = np.where(there, values[k], 0.0)
        if usual is not None:
            stand_in = usual
        else:
            # The latest eight days: those of this period, and the last ones of that before.
            stand_in = before = share * known + (1 - share) * before
        values[k] = share * known + (1 - share) * stand_in
    return len(values) - 1 - last


def _mean(values: Floats) -> npt.NDArray[np.float64]:
    """Mean along the first axis of what is there; NaN where nothing is."""
    known = ~np.isnan(values)
    mean = np.where(known, values, 0).sum(axis=0, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        mean /= known.sum(axis=0)
    return np.asarray(mean)
