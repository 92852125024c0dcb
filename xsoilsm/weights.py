"""Step 5 of 7 (networks): weights on the disk, kept as safetensors and compared at every load.

Files of a card with a source lie in the cache, beside an index with the hash of what was
downloaded and of what lies there. A file is written under a temporary name, read back, and only
then takes its final name. Files of any other card lie beside the card.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

from xsoilsm.card import EnsembleCard, Member
from xsoilsm.catalog import cache_dir
from xsoilsm.state import (
    State,
    WeightsError,
    checked,
    read_member,
    read_safetensors,
    tensors_digest,
    to_safetensors,
)

__all__ = [
    "MemberState",
    "count_present",
    "examine",
    "explain",
    "load_weights",
    "sole_writer",
    "store",
    "weights_folder",
    "write_file",
]

INDEX = "index.json"

_log = logging.getLogger(__name__)


class MemberState(NamedTuple):
    """What was found of one member: its arrays, or why there are none."""

    member: Member
    state: Literal["ok", "missing", "damaged"]
    reason: str
    arrays: State | None


def weights_folder(card: EnsembleCard) -> Path:
    """Folder in the cache for the converted files of a card with a source."""
    return cache_dir() / "weights" / card.name


def examine(
    card: EnsembleCard, folder: Path | None = None, members: Sequence[Member] | None = None
) -> list[MemberState]:
    """Read and check files of members.

    Computes: reads every file whole.

    Parameters
    ----------
    card : EnsembleCard
    folder : Path, optional
        Where a card without a source lies; its files are beside it. Default: the cache.
    members : sequence of Member, optional
        Default: all.

    Returns
    -------
    list of MemberState
    """
    members = card.members if members is None else members
    if folder is not None:
        return [_examine_local(folder, member) for member in members]
    cache = weights_folder(card)
    index = _read_index(cache)
    return [_examine_cached(cache, index.get(member.file), member) for member in members]


def _examine_local(folder: Path, member: Member) -> MemberState:
    path = folder / member.file
    try:
        return MemberState(member, "ok", "", read_member(path.read_bytes(), member, str(path)))
    except FileNotFoundError:
        return MemberState(member, "missing", f"{path} does not exist", None)
    except (OSError, WeightsError) as error:
        return MemberState(member, "damaged", str(error), None)


def _examine_cached(cache: Path, entry: dict[str, str] | None, member: Member) -> MemberState:
    path = cache / _cached_name(member)
    if entry is None or entry["sha256"] != member.sha256:
        return MemberState(member, "missing", "not downloaded or imported yet", None)
    try:
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != entry["safetensors_sha256"]:
            expected = entry["safetensors_sha256"]
            reason = f"{path} has sha256 {found}, the index beside it expects {expected}"
            return MemberState(member, "damaged", reason, None)
        state = checked(read_safetensors(content, str(path)), member, str(path))
        return MemberState(member, "ok", "", state)
    except FileNotFoundError:
        return MemberState(member, "missing", f"{path} does not exist", None)
    except (OSError, WeightsError) as error:
        return MemberState(member, "damaged", str(error), None)


def count_present(card: EnsembleCard, folder: Path | None = None) -> int:
    """Count members whose files exist, without reading them.

    Parameters
    ----------
    card : EnsembleCard
    folder : Path, optional
        As for `examine`.

    Returns
    -------
    int
    """
    if folder is not None:
        return sum((folder / member.file).is_file() for member in card.members)
    cache = weights_folder(card)
    index = _read_index(cache)
    return sum(
        index.get(member.file, {}).get("sha256") == member.sha256
        and (cache / _cached_name(member)).is_file()
        for member in card.members
    )


def load_weights(card: EnsembleCard, folder: Path | None = None) -> list[State]:
    """Read and check the arrays of all members.

    Computes: reads every file whole.

    Parameters
    ----------
    card : EnsembleCard
    folder : Path, optional
        As for `examine`.

    Returns
    -------
    list of mapping of str to ndarray
        In the order of the card.

    Raises
    ------
    WeightsError
        When a member is missing or damaged; the message names the command that helps.
    """
    states = examine(card, folder)
    bad = [s for s in states if s.arrays is None]
    if bad:
        raise WeightsError(explain(card, folder, bad))
    return [s.arrays for s in states if s.arrays is not None]


def explain(card: EnsembleCard, folder: Path | None, bad: Sequence[MemberState]) -> str:
    """Say which members are missing or damaged, and which command helps.

    Parameters
    ----------
    card : EnsembleCard
    folder : Path, optional
        As for `examine`.
    bad : sequence of MemberState

    Returns
    -------
    str
        One line.
    """
    damaged = [s for s in bad if s.state == "damaged"]
    place = weights_folder(card) if folder is None else folder
    count = f"{len(bad)} of the {len(card.members)} members"
    if damaged:
        what = f"{count} of {card.name!r} are damaged or missing in {place}: {damaged[0].reason}"
    else:
        what = f"the weights of {card.name!r} are not here: {count} are missing in {place}"
    if folder is not None:
        return f"{what}; copy the ensemble's folder again"
    return (
        f"{what}; download them with `xsoilsm weights fetch {card.name}` or import a copy with "
        f"`xsoilsm weights import PATH {card.name}`"
    )


def _cached_name(member: Member) -> str:
    return Path(member.file).stem + ".safetensors"


def _read_index(cache: Path) -> dict[str, dict[str, str]]:
    """Entries by published file name; an index that cannot be read counts as empty."""
    path = cache / INDEX
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(file): {key: str(entry[key]) for key in ("sha256", "safetensors_sha256")}
            for file, entry in content["members"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("the index %s cannot be read and counts as empty: %s", path, error)
        return {}


@contextmanager
def sole_writer(cache: Path) -> Iterator[None]:
    """Let one process or thread at a time change the folder.

    The lock is the system's and ends with its process. Where a file system knows no locks,
    writes are still whole, only work may be done twice.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        handle = (cache / ".lock").open("ab")
    except OSError as error:
        msg = f"cannot write to the cache {cache}: {error}; set XSOILSM_CACHE_DIR to another place"
        raise WeightsError(msg) from error
    with handle:
        try:
            from fcntl import LOCK_EX, flock

            flock(handle, LOCK_EX)
        except (ImportError, OSError) as error:
            _log.debug("no lock on %s: %s", cache, error)
        else:
            for left in cache.glob(".part-*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        yield


def store(cache: Path, states: Sequence[tuple[Member, State]]) -> None:
    """Put converted members into the cache: write, read back, rename, then the index.

    Parameters
    ----------
    cache : Path
        Existing folder, held with `sole_writer`.
    states : sequence of (Member, mapping of str to ndarray)

    Raises
    ------
    WeightsError
        When the cache cannot be written, or reads back something else.
    """
    index = _read_index(cache)
    try:
        with TemporaryDirectory(prefix=".part-", dir=cache) as temporary:
            for member, state in states:
                content = to_safetensors(state)
                path = Path(temporary) / _cached_name(member)
                write_file(path, content)
                back = path.read_bytes()
                if tensors_digest(read_safetensors(back, str(path))) != tensors_digest(state):
                    msg = f"{path} reads back other values than were written; check the disk"
                    raise WeightsError(msg)
                index[member.file] = {
                    "sha256": str(member.sha256),
                    "safetensors_sha256": hashlib.sha256(content).hexdigest(),
                }
            text = json.dumps({"schema_version": 1, "members": index}, indent=1, sort_keys=True)
            write_file(Path(temporary) / INDEX, text.encode())
            for name in (*(_cached_name(member) for member, _ in states), INDEX):
                (Path(temporary) / name).replace(cache / name)
    except OSError as error:
        msg = f"cannot write to the cache {cache}: {error}"
        raise WeightsError(msg) from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
