"""Step 3 of 7 (load): Zarr stores over HTTP, each key signed and read with patience.

Libraries of remote storage bring retries, time limits and messages of their own, which neither
end in bounded time nor keep signatures to themselves. A Zarr store is a folder of small files,
so the requests of all other reads serve it as well. Blob storage of Azure is read over HTTPS.

To Zarr, an absent chunk is full of the fill value. Where that would not come out as NaN but as a
number, for instance as no rain, an absent chunk is an error here.
"""

from __future__ import annotations

import asyncio
import json
import urllib.parse
from collections.abc import AsyncIterator, Iterable
from typing import Any

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from xsoilsm.sources.access.links import Access, read_bytes, readable_href
from xsoilsm.sources.access.transport import ReadFailed, Span, is_web

__all__ = ["WebStore", "web_address"]


def web_address(href: str, access: Access, account: str = "") -> str:
    """Unsigned address at which a store is read over HTTP; empty where it is not.

    Lazy: reads nothing.

    Parameters
    ----------
    href : str
    access : Access
    account : str
        Storage account of ``abfs://container/path`` links.

    Returns
    -------
    str

    Examples
    --------
    >>> web_address("abfs://era5/2020/12/t2m.zarr", Access(), "cpdataeuwest")
    'https://cpdataeuwest.blob.core.windows.net/era5/2020/12/t2m.zarr'
    """
    if is_web(href):
        return href
    link = readable_href(href, Access(rewrite=access.rewrite))
    parts = urllib.parse.urlsplit(link)
    if parts.scheme in ("abfs", "abfss", "az"):
        container, _, host = parts.netloc.partition("@")
        account = host.partition(".")[0] or account
        if account:
            return f"https://{account}.blob.core.windows.net/{container}{parts.path}"
    return link if is_web(link) else ""


class WebStore(Store):
    """A folder of keys that is read over HTTP; it cannot be listed or written.

    Parameters
    ----------
    root : str
        Unsigned address of the folder.
    access : Access
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    def __init__(self, root: str, access: Access) -> None:
        super().__init__(read_only=True)
        self.root = root.rstrip("/")
        self.access = access
        self._must_be_there: dict[str, bool] = {}  # by array: an absent chunk is an error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WebStore) and (self.root, self.access) == (
            other.root,
            other.access,
        )

    def __hash__(self) -> int:
        return hash((self.root, self.access))

    def __repr__(self) -> str:
        return f"WebStore({self.root!r})"

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a key, or some of its bytes; None where it is absent. Computes: reads."""
        content = await asyncio.to_thread(self._read, key, _span(byte_range))
        return None if content is None else prototype.buffer.from_bytes(content)

    def _read(self, key: str, span: Span | None) -> bytes | None:
        try:
            content = read_bytes(f"{self.root}/{key}", self.access, span)
        except ReadFailed as error:
            if error.status != 404 or self._must_be_there.get(_array_of(key), False):
                raise
            return None
        if key.endswith(_DESCRIPTIONS):
            self._learn(key, json.loads(content))
        return content

    def _learn(self, key: str, content: dict[str, Any]) -> None:
        """Take from a description which arrays have a fill value that comes out as a number."""
        folder = key.rpartition("/")[0]
        described = {f"{folder}/.zarray" if folder else ".zarray": content}
        if key.endswith(".zmetadata"):
            described = content.get("metadata", {})
        elif key.endswith("zarr.json"):
            inner = (content.get("consolidated_metadata") or {}).get("metadata", {})
            described = {folder: content, **{f"{folder}/{k}".strip("/"): inner[k] for k in inner}}
        for name, node in described.items():
            if "fill_value" not in node:
                continue
            fill = node["fill_value"]
            # xarray masks the fill value of version 2 wherever there is one, that of version 3
            # where the attribute says so.
            masked = fill is not None if node.get("zarr_format") == 2 else False
            masked = masked or "_FillValue" in node.get("attributes", {})
            self._must_be_there[name.removesuffix(".zarray").strip("/")] = (
                fill != "NaN" and not masked
            )

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read several keys, or some of their bytes. Computes: reads."""
        return await asyncio.gather(*(self.get(key, prototype, span) for key, span in key_ranges))

    async def exists(self, key: str) -> bool:
        """Whether a key is there. Computes: asks for a byte of it."""
        return await asyncio.to_thread(self._read, key, (0, 1)) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse to write."""
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        """Refuse to delete."""
        raise NotImplementedError

    def list(self) -> AsyncIterator[str]:
        """Refuse to list."""
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Refuse to list."""
        raise NotImplementedError

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Refuse to list."""
        raise NotImplementedError


_DESCRIPTIONS = (".zmetadata", ".zarray", "zarr.json")


def _array_of(key: str) -> str:
    """Path of the array that a key of a chunk belongs to; no array for other keys."""
    folder, _, name = key.rpartition("/")
    if name.startswith((".z", "zarr.json")):
        return "-"
    return folder.partition("/c/")[0].removesuffix("/c")


def _span(request: ByteRequest | None) -> Span | None:
    """Bytes that Zarr wants, as first and end; counted from the end where negative."""
    if isinstance(request, RangeByteRequest):
        return request.start, request.end
    if isinstance(request, OffsetByteRequest):
        return request.offset, None
    if isinstance(request, SuffixByteRequest):
        return -request.suffix, None
    return None
