"""Step 5 of 7 (networks): where weights come from, a download or a copy at hand.

Each file is compared with the card's SHA-256 before anything reads it, converted, and stored in
the cache by `xsoilsm.weights.store`. A refused file leaves the cache as it was.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from xsoilsm.card import EnsembleCard, Member, Source
from xsoilsm.state import State, WeightsError, build_module, one_line, read_member
from xsoilsm.weights import (
    count_present,
    examine,
    explain,
    sole_writer,
    store,
    weights_folder,
)

__all__ = ["fetch_weights", "import_weights", "require_weights", "select_members"]

LARGEST_FILE = 64 * 2**20
"""Files beyond this size in bytes are passed over when a folder or archive is imported."""

TIMEOUT = 30.0
"""Seconds after which a silent server counts as gone."""

_log = logging.getLogger(__name__)


def select_members(card: EnsembleCard, labels: Sequence[str] = ()) -> tuple[Member, ...]:
    """Members by label.

    Parameters
    ----------
    card : EnsembleCard
    labels : sequence of str
        Depth and width, for instance ``"5-128"``; empty means all.

    Returns
    -------
    tuple of Member

    Raises
    ------
    ValueError
        For a label that the card does not hold.
    """
    known = [member.label for member in card.members]
    for label in labels:
        if label not in known:
            msg = f"{card.name!r} has no member {label!r}; expected one of {', '.join(known)}"
            raise ValueError(msg)
    return tuple(m for m in card.members if not labels or m.label in labels)


def require_weights(card: EnsembleCard, folder: Path | None = None) -> None:
    """Make sure that the files of all members exist; does not read them.

    Where members are missing from the cache and ``$XSOILSM_WEIGHTS_DIR`` names a folder or
    archive with the published files, they are imported from there first.

    Parameters
    ----------
    card : EnsembleCard
    folder : Path, optional
        Where a card without a source lies; its files are beside it. Default: the cache.

    Raises
    ------
    WeightsError
        When members are missing; the message names the command that helps.
    """
    if count_present(card, folder) == len(card.members):
        return
    place = os.environ.get("XSOILSM_WEIGHTS_DIR")
    missing = [s for s in examine(card, folder) if s.state == "missing"]
    if folder is None and place:
        try:
            _log.info("importing the weights of %s from XSOILSM_WEIGHTS_DIR=%s", card.name, place)
            import_weights(card, Path(place), [s.member for s in missing])
        except WeightsError as error:
            msg = f"{explain(card, folder, missing)} (XSOILSM_WEIGHTS_DIR did not help: {error})"
            raise WeightsError(msg) from error
    elif missing:
        raise WeightsError(explain(card, folder, missing))


def fetch_weights(
    card: EnsembleCard,
    members: Sequence[Member] | None = None,
    *,
    progress: bool = True,
    retries: int = 2,
    notify: Callable[[str], None] = _log.warning,
) -> list[Member]:
    """Download members that are not in the cache yet, check them and convert them.

    Each member is checked and stored on its own, so an interrupted download goes on where it
    stopped. ``$XSOILSM_WEIGHTS_URL`` replaces the card's address up to the file's name.

    Parameters
    ----------
    card : EnsembleCard
    members : sequence of Member, optional
        Default: all.
    progress : bool, default True
        Show progress bars on a terminal.
    retries : int, default 2
        How often a failed transfer is tried again.
    notify : callable
        Gets the statement about the licence before the first download.

    Returns
    -------
    list of Member
        Those that were downloaded.

    Raises
    ------
    WeightsError
        When a download fails or a file is not what the card says; what was verified before
        stays in the cache.
    """
    from tqdm.auto import tqdm

    source = _source(card)
    cache = weights_folder(card)
    base = os.environ.get("XSOILSM_WEIGHTS_URL", "").rstrip("/")
    fetched: list[Member] = []
    chosen = card.members if members is None else members
    quiet = None if progress else True
    with tqdm(chosen, desc=card.name, unit="file", disable=quiet) as bar:
        for member in bar:
            if _is_there(card, member):
                continue
            if not fetched:
                notify(f"{card.licence.statement} Paper: {_paper(card)}")
            address = f"{base}/{member.file}" if base else source.address(member.file)
            with sole_writer(cache):
                if _is_there(card, member):  # another process was faster
                    continue
                with TemporaryDirectory(prefix=".part-", dir=cache) as temporary:
                    path = _download(address, member, Path(temporary), quiet, retries)
                    content = path.read_bytes()
                store(cache, [(member, _converted(content, member, address))])
            fetched.append(member)
    return fetched


def _is_there(card: EnsembleCard, member: Member) -> bool:
    return examine(card, None, [member])[0].state == "ok"


def _paper(card: EnsembleCard) -> str:
    doi = f" https://doi.org/{card.citation.doi}" if card.citation.doi else ""
    return card.citation.text + doi


def _source(card: EnsembleCard) -> Source:
    if card.source is None:
        msg = f"the card {card.name!r} has no source; its files belong beside it"
        raise WeightsError(msg)
    return card.source


def _converted(content: bytes, member: Member, where: str) -> State:
    """Arrays of a published file that has the card's hash and loads strictly."""
    state = read_member(content, member, where)
    build_module(state, member)
    return state


def _download(address: str, member: Member, folder: Path, quiet: bool | None, retries: int) -> Path:
    import pooch
    import requests

    advice = (
        "what was verified before is kept; check the connection and run the same command again, "
        "or import a copy with `xsoilsm weights import PATH`"
    )
    pup = pooch.create(
        path=folder,
        base_url="",
        registry={member.file: f"sha256:{member.sha256}"},
        urls={member.file: address},
        retry_if_failed=retries,
    )
    try:
        with _quiet_pooch():
            return Path(pup.fetch(member.file, downloader=_Transfer(member.file, quiet)))
    except requests.RequestException as error:
        msg = f"cannot download {address}: {one_line(error)}; {advice}"
    except ValueError as error:
        msg = (
            f"{address} does not have the sha256 that the card lists and was refused "
            f"({one_line(error)}); {advice}"
        )
    except OSError as error:
        msg = f"cannot save {address} in the cache: {one_line(error)}"
    raise WeightsError(msg)


@contextmanager
def _quiet_pooch() -> Iterator[None]:
    """Keep pooch from writing about each file; the progress bar does."""
    import pooch

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Transfer:
    """Downloader for pooch with a progress bar, which does not repeat what cannot succeed."""

    def __init__(self, file: str, quiet: bool | None) -> None:
        self.file, self.quiet = file, quiet

    def __call__(self, url: str, output_file: str, pup: Any) -> None:
        import requests
        from pooch import HTTPDownloader
        from tqdm.auto import tqdm

        with tqdm(
            total=1, desc=self.file, unit="B", unit_scale=True, leave=False, disable=self.quiet
        ) as bar:
            transfer = HTTPDownloader(progressbar=bar, chunk_size=2**16, timeout=TIMEOUT)
            try:
                transfer(url, output_file, pup)
            except requests.HTTPError as error:
                status = 0
                if error.response is not None:
                    error.response.close()
                    status = error.response.status_code
                if 400 <= status < 500 and status not in (408, 425, 429):
                    msg = (
                        f"cannot download {url}: the server answers {status}, so the file is not "
                        "there or not public; import a copy with `xsoilsm weights import PATH`"
                    )
                    raise WeightsError(msg) from error
                raise


def import_weights(
    card: EnsembleCard, path: str | Path, members: Sequence[Member] | None = None
) -> list[Member]:
    """Take published files from a folder or zip archive into the cache.

    Files are found by their name or by their hash, at any depth. All of them are checked before
    the first one enters the cache. An archive is read in place, nothing is unpacked.

    Parameters
    ----------
    card : EnsembleCard
    path : path
        Folder or zip archive.
    members : sequence of Member, optional
        Default: all.

    Returns
    -------
    list of Member
        Those that were imported; members that were in the cache already are checked only.

    Raises
    ------
    WeightsError
        When a file is missing or is not what the card says.
    """
    _source(card)
    path = Path(path).expanduser()
    chosen = card.members if members is None else members
    cache = weights_folder(card)
    with _candidates(path, {member.file for member in chosen}) as files:
        found = [(member, _find(member, files, path)) for member in chosen]
        missing = [member.file for member, file in found if file is None]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            msg = f"{path} lacks {', '.join(missing[:3])}{more}, by name and by sha256"
            raise WeightsError(msg)
        states = [
            (member, _converted(file.content, member, file.name))
            for member, file in found
            if file is not None
        ]
    with sole_writer(cache):
        absent = [(m, state) for m, state in states if not _is_there(card, m)]
        if absent:
            store(cache, absent)
    return [member for member, _ in absent]


class _File:
    """A file in a folder or archive, read once at most."""

    def __init__(self, name: str, read: Callable[[], bytes]) -> None:
        self.name, self._read = name, read

    @cached_property
    def content(self) -> bytes:
        try:
            return self._read()
        except Exception as error:  # whatever a broken archive brings about
            msg = f"cannot read {self.name}: {one_line(error)}"
            raise WeightsError(msg) from error

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def _find(member: Member, files: dict[str, list[_File]], path: Path) -> _File | None:
    """File of a member: by name and hash, else by hash; refused where only the name agrees."""
    named = files.get(member.file, [])
    others = (file for name, group in files.items() if name != member.file for file in group)
    for group in (named, others):
        for file in group:
            if file.sha256 == member.sha256:
                return file
    if named:
        msg = (
            f"{named[0].name} has sha256 {named[0].sha256}, the card expects {member.sha256}: the "
            "file is damaged, incomplete or another one; nothing was imported"
        )
        raise WeightsError(msg)
    return None


@contextmanager
def _candidates(path: Path, names: set[str]) -> Iterator[dict[str, list[_File]]]:
    """Files by their bare name that may hold weights."""
    files: dict[str, list[_File]] = {}

    def add(name: str, where: str, size: int, read: Callable[[], bytes]) -> None:
        if size <= LARGEST_FILE and (name in names or name.endswith((".pt", ".pth"))):
            files.setdefault(name, []).append(_File(where, read))

    if path.is_dir():
        for folder, _, entries in os.walk(path):
            for entry in sorted(entries):
                file = Path(folder, entry)
                if file.is_file():
                    add(entry, str(file), file.stat().st_size, file.read_bytes)
        yield files
    elif path.is_file():
        try:
            archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            msg = f"{path} is neither a folder nor a zip archive: {one_line(error)}"
            raise WeightsError(msg) from error
        with archive:
            for info in archive.infolist():
                name = PurePosixPath(info.filename).name
                where = f"{path}:{info.filename}"
                add(name, where, info.file_size, partial(_unzip, archive, info))
            yield files
    else:
        msg = f"{path} does not exist; expected a folder or zip archive with the published files"
        raise WeightsError(msg)


def _unzip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Content of an entry, never more than it declares."""
    with archive.open(info) as file:
        return file.read(LARGEST_FILE)
