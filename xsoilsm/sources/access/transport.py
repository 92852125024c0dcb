"""Step 3 of 7 (load): requests over HTTP that neither give up early nor hang.

A read is tried again after faults that may pass: a refusal, a busy or broken server, a broken
connection, half an answer. Pauses double, and a server that names its own pause is obeyed.
No request takes longer than its limit, and no attempt begins after that of the read. Signatures
stay out of messages and logs.

How patient reads are is set by the environment, also on the workers of a cluster:

======================== ======= ==============================================================
variable                 default meaning
======================== ======= ==============================================================
XSOILSM_HTTP_TRIES       4       attempts before a read counts as failed
XSOILSM_HTTP_WAIT        0.5     pause in s before the second attempt; it doubles each time
XSOILSM_HTTP_TIMEOUT     60      longest time in s for one request
XSOILSM_HTTP_LIMIT       300     time in s after which no further attempt of a read begins
======================== ======= ==============================================================
"""

from __future__ import annotations

import email.utils
import logging
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import requests

__all__ = [
    "Patience",
    "ReadFailed",
    "RequestFailed",
    "Span",
    "fetch",
    "hide_signatures",
    "is_web",
    "patience",
    "redacted",
    "with_retries",
]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_PIECE = 1 << 20  # bytes that are taken from a connection at once


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Parameters
    ----------
    tries : int
        Attempts before a read counts as failed.
    wait : float
        Pause in s before the second attempt; it doubles from one to the next.
    timeout : float
        Longest time in s for one request.
    limit : float
        Time in s after which no further attempt of a read begins.
    """

    tries: int = 4
    wait: float = 0.5
    timeout: float = 60.0
    limit: float = 300.0


def patience() -> Patience:
    """Read from the environment how long to try.

    Returns
    -------
    Patience

    Raises
    ------
    ValueError
        When a variable is not a positive number.
    """
    chosen: dict[str, Any] = {}
    for field in fields(Patience):
        name = f"XSOILSM_HTTP_{field.name.upper()}"
        text = os.environ.get(name)
        if text is None:
            continue
        try:
            value = int(text) if field.name == "tries" else float(text)
        except ValueError:
            value = -1
        if not value > 0:
            msg = f"{name} is {text!r}, expected a number above 0"
            raise ValueError(msg)
        chosen[field.name] = value
    return Patience(**chosen)


class RequestFailed(OSError):
    """One request failed.

    Parameters
    ----------
    message : str
    status : int
        HTTP status; 0 where there was no answer.
    retry_after : float
        Pause in s that the server asks for.
    """

    def __init__(self, message: str, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after

    @property
    def is_passing(self) -> bool:
        """Whether another attempt may succeed; providers answer 403 and 429 under load."""
        return not 400 <= self.status < 500 or self.status in (403, 408, 425, 429)


class ReadFailed(OSError):
    """A read failed for good, after all its attempts.

    Parameters
    ----------
    message : str
    status : int
        HTTP status of the last answer; 0 where there was none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def is_web(link: str) -> bool:
    """Whether a link is read over HTTP."""
    return link.startswith(("http://", "https://"))


_SIGNATURE = re.compile(r"\?[^\s'\"`<>|]*\bsig=[^\s'\"`<>|,]*")


def redacted(text: str) -> str:
    """Take signatures out of a text.

    Examples
    --------
    >>> redacted("404 for https://host/a.tif?se=2020&sig=x%3D, twice")
    '404 for https://host/a.tif?(signature), twice'
    """
    return _SIGNATURE.sub("?(signature)", text)


class _Redaction(logging.Filter):
    """Takes signatures out of records."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "sig=" in text:
            record.msg, record.args = redacted(text), None
        return True


@lru_cache(maxsize=1)
def hide_signatures() -> None:
    """Keep signatures out of the logs of the libraries that get signed links."""
    hiding = _Redaction()
    for name in (
        "rasterio",
        *(f"rasterio.{part}" for part in ("_base", "_env", "_err", "_io", "_path", "env")),
        "urllib3.connectionpool",
        "urllib3.util.retry",
    ):
        logging.getLogger(name).addFilter(hiding)


def with_retries(
    action: Callable[[int], _T],
    what: str,
    *,
    passing: Callable[[Exception], bool],
    before: Callable[[], object] | None = None,
) -> _T:
    """Do something, and try again after faults that may pass.

    Parameters
    ----------
    action : callable
        Gets the number of the attempt, from 0.
    what : str
        What is being done, for messages.
    passing : callable
        Tells whether an exception may be gone the next time.
    before : callable, optional
        Called before another attempt.

    Returns
    -------
    object
        What `action` returns.

    Raises
    ------
    ReadFailed
        When the last attempt failed, or at once for a fault that lasts. The fault is its cause,
        unless it holds a signature.
    """
    chosen = patience()
    begin = time.monotonic()
    what = redacted(what)
    for attempt in range(chosen.tries):
        try:
            return action(attempt)
        except ReadFailed:
            raise  # a read within this one, after all its own attempts
        except Exception as error:
            reason = redacted(str(error)) or type(error).__name__
            status = getattr(error, "status", 0)
            after = getattr(error, "retry_after", 0.0)
            again = attempt < chosen.tries - 1 and passing(error)
            cause = None if _holds_signature(error) else error
        # Spread over half to the whole pause, so that tasks do not return all at once.
        pause = after + chosen.wait * 2**attempt * random.uniform(0.5, 1.0)
        if again and time.monotonic() - begin + pause > chosen.limit:
            reason += f"; another attempt would pass the limit of {chosen.limit:g} s"
            again = False
        if not again:
            break
        logger.info("%s: attempt %d failed: %s", what, attempt + 1, reason)
        time.sleep(pause)
        if before is not None:
            before()
    # Raised here, where the fault is no context: its own text may hold a signature.
    msg = f"{what} failed after {attempt + 1} attempt(s): {reason}"
    raise ReadFailed(msg, status) from cause


def _holds_signature(error: BaseException) -> bool:
    """Whether an exception, or one behind it, tells a signature."""
    link: BaseException | None = error
    while link is not None:
        if "sig=" in str(link):
            return True
        link = link.__cause__ or link.__context__
    return False


Span = tuple[int, int | None]
"""First byte and the one after the last, None for the end; negative counts from the end."""


def fetch(
    link: str,
    span: Span | None = None,
    headers: dict[str, str] | None = None,
    *,
    netrc: bool = False,
) -> bytes:
    """Make one request and check that its answer is complete. Computes: reads.

    Parameters
    ----------
    link : str
    span : (int, int or None), optional
        First byte and the one after the last; ``(-n, None)`` for the last n.
    headers : dict of str to str, optional
    netrc : bool, default False
        Authorise the request with the user's netrc file.

    Returns
    -------
    bytes

    Raises
    ------
    RequestFailed
        When there is no answer, an error, other bytes than asked for, too few, or not in time.
    """
    import requests
    import urllib3

    timeout = patience().timeout
    deadline = time.monotonic() + timeout
    asked = {"Accept-Encoding": "identity", **(headers or {})}
    if span is not None:
        asked["Range"] = f"bytes={_stated(span)}"
    auth = None if netrc else _without_change  # with None, requests looks into the netrc file
    bare = link.partition("?")[0]
    try:
        with _session(os.getpid()).get(
            link, headers=asked, stream=True, timeout=timeout, auth=auth
        ) as answer:
            if answer.status_code not in (200, 206):
                msg = f"{bare} answers {answer.status_code} {answer.reason}"
                raise RequestFailed(msg, answer.status_code, _retry_after(answer))
            return _body(answer, bare, span, deadline)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        reason = redacted(str(error))
    msg = f"{bare}: {reason}"
    raise RequestFailed(msg)


def _without_change(request: _T) -> _T:
    return request


def _stated(span: Span) -> str:
    first, end = span
    if first < 0:
        return str(first)
    return f"{first}-" if end is None else f"{first}-{end - 1}"


@lru_cache(maxsize=4)
def _session(process: int) -> requests.Session:
    """Keep the connections of a process; a fork must not use those of its parent."""
    import requests
    from requests.adapters import HTTPAdapter

    del process
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=32))
    return session


def _body(answer: requests.Response, bare: str, span: Span | None, deadline: float) -> bytes:
    """Read an answer until it is complete, or its time is over."""
    first, end = span or (0, None)
    if answer.status_code == 206:
        stated = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if stated is None or (first >= 0 and int(stated[1]) != first):
            msg = f"{bare} answers with other bytes than those that were asked for"
            raise RequestFailed(msg)
        first, end = 0, None if end is None else end - first
    expected = int(answer.headers.get("Content-Length", -1))
    parts, length = [], 0
    while part := answer.raw.read1(_PIECE):
        parts.append(part)
        length += len(part)
        if end is not None and length >= end:
            break  # a server that ignores the range need not send more than what is wanted
        if time.monotonic() > deadline:
            msg = f"{bare} sent {length} of {expected} bytes in the time of a request"
            raise RequestFailed(msg)
    else:
        if 0 <= expected != length:
            msg = f"{bare} broke off after {length} of {expected} bytes"
            raise RequestFailed(msg)
    return b"".join(parts)[first:end]


def _retry_after(answer: requests.Response) -> float:
    """Pause in s that a server asks for: a number, or the time of its end."""
    text = answer.headers.get("Retry-After", "")
    try:
        return max(float(text), 0.0)
    except ValueError:
        pass
    try:
        end = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    end = end if end.tzinfo else end.replace(tzinfo=UTC)
    return max((end - datetime.now(UTC)).total_seconds(), 0.0)
