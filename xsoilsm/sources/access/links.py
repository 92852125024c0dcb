"""Step 3 of 7 (load): links made readable: signed, on mirrors, read with patience.

Links are signed when they are read, never before, because signatures expire within the hour;
mirrors are put in place after that. Graphs hold unsigned links alone.
"""

from __future__ import annotations

import json
import threading
import urllib.parse
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from xsoilsm.facts import Service
from xsoilsm.sources.access.transport import (
    RequestFailed,
    Span,
    fetch,
    hide_signatures,
    is_web,
    patience,
    with_retries,
)

__all__ = [
    "Access",
    "access_of",
    "ask",
    "read_bytes",
    "readable_href",
    "renew_access",
]

_MARGIN = 60.0  # s of life below which a token is not used any more, as planetary-computer does


@dataclass(frozen=True)
class Access:
    """How the links of one service are made readable.

    Parameters
    ----------
    signing : {"none", "planetary-computer", "netrc"}
    rewrite : tuple of (str, str)
        Beginnings of links and what replaces them, after signing.
    """

    signing: str = "none"
    rewrite: tuple[tuple[str, str], ...] = ()


def access_of(service: Service) -> Access:
    """Access to the assets of a service. Lazy: reads nothing."""
    return Access(service.signing, tuple(sorted(service.rewrite.items())))


def readable_href(href: str, access: Access) -> str:
    """Sign a link and put mirrors in place.

    May ask the signing service for a token, once; tokens are kept until they are about to expire.

    Parameters
    ----------
    href : str
    access : Access

    Returns
    -------
    str

    Raises
    ------
    RequestFailed
        When the signing service does not give a token.
    """
    mirror = next(((old, new) for old, new in access.rewrite if href.startswith(old)), None)
    # A signature would become part of the name of a file on this machine.
    if access.signing == "planetary-computer" and (mirror is None or is_web(mirror[1])):
        href = _signed(href)
    return href if mirror is None else mirror[1] + href.removeprefix(mirror[0])


def _signed(href: str) -> str:
    """Sign a link to a storage of the Planetary Computer; others are left as they are.

    Follows planetary-computer 1.0 (`sas.sign_url`) and shares its settings and tokens, but asks
    for a token only once at a time, and never longer than the time limit.
    """
    parts = urllib.parse.urlsplit(href)
    account, _, domain = (parts.hostname or "").partition(".")
    container = parts.path.strip("/").partition("/")[0]
    if domain != "blob.core.windows.net" or not container:
        return href
    if account == "ai4edatasetspublicassets" or "sig=" in parts.query:
        return href
    hide_signatures()
    return f"{href}?{_token(account, container)}"


_asking: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def _token(account: str, container: str) -> str:
    """Token for a container, from memory or from the signing service."""
    from planetary_computer import sas
    from planetary_computer.settings import Settings

    settings = Settings.get()
    address = f"{settings.sas_url}/{account}/{container}"
    lock = _asking[address]
    if not lock.acquire(timeout=patience().timeout):
        msg = f"waited too long for a token from {address}"
        raise RequestFailed(msg)
    try:
        token = sas.TOKEN_CACHE.get(address)
        if token is None or token.ttl() < _MARGIN:
            key = settings.subscription_key
            content = fetch(address, headers={"Ocp-Apim-Subscription-Key": key} if key else {})
            try:
                token = sas.SASToken(**json.loads(content))
            except (TypeError, ValueError):
                msg = f"{address} answers something else than a token"
                raise RequestFailed(msg) from None
            sas.TOKEN_CACHE[address] = token
        return str(token.token)
    finally:
        lock.release()


def renew_access(access: Access, link: str = "") -> bool:
    """Forget tokens, so that the next link is signed anew.

    Parameters
    ----------
    access : Access
    link : str, optional
        Signed link that was refused; without it all tokens are forgotten.

    Returns
    -------
    bool
        Whether there is a signature to renew.
    """
    if access.signing != "planetary-computer":
        return False
    from planetary_computer import sas

    for key, token in list(sas.TOKEN_CACHE.items()):
        if not link or token.token in link:
            sas.TOKEN_CACHE.pop(key, None)
    return not link or "sig=" in link


def read_bytes(href: str, access: Access, span: Span | None = None) -> bytes:
    """Read a file, or some bytes of it. Computes: reads.

    Parameters
    ----------
    href : str
        Path, or ``file:``, ``http:`` or ``https:`` link.
    access : Access
    span : (int, int or None), optional
        First byte and the one after the last; ``(-n, None)`` for the last n.

    Returns
    -------
    bytes

    Raises
    ------
    ReadFailed
        When it cannot be read.
    """
    return with_retries(lambda _: ask(href, access, span), f"reading {href}", passing=_is_passing)


def _is_passing(error: Exception) -> bool:
    return isinstance(error, RequestFailed) and error.is_passing


def ask(href: str, access: Access, span: Span | None = None) -> bytes:
    """Read a file, or some bytes of it, in one attempt; a refused signature is renewed once.

    Parameters
    ----------
    href : str
        Path, or ``file:``, ``http:`` or ``https:`` link.
    access : Access
    span : (int, int or None), optional
        First byte and the one after the last; ``(-n, None)`` for the last n.

    Returns
    -------
    bytes

    Raises
    ------
    OSError
        When it cannot be read.
    """
    link = readable_href(href, access)
    if is_web(link):
        try:
            return fetch(link, span, netrc=access.signing == "netrc")
        except RequestFailed as error:
            if error.status != 403 or not renew_access(access, link):
                raise
        return fetch(readable_href(href, access), span)  # with a fresh signature
    scheme, separator, _ = link.partition("://")
    if separator and scheme != "file":
        msg = f"cannot read {scheme}:// links"
        raise OSError(msg)
    place = urllib.request.url2pathname(urllib.parse.urlsplit(link).path) if separator else link
    with Path(place).open("rb") as file:
        content = file.read()
    return content if span is None else content[slice(*span)]
