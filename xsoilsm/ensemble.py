"""Step 5 of 7 (networks): ensembles by name, with their contract and their weights.

An `Ensemble` is a card whose feature contract is resolved and whose files are known by their
hashes. It holds no networks, pickles in a few kilobytes and is what a Dask graph carries; arrays
are read and checked once per process. Published ensembles are cards under ``catalogs/ensembles``,
whose files are downloaded; the one that comes with the package has its files there too, and those
trained here lie in the data folder, card and files side by side.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import platformdirs

from xsoilsm.card import EnsembleCard, read_card
from xsoilsm.catalog import CatalogError, catalogs_dir
from xsoilsm.contract import Contract
from xsoilsm.grid import get_grid
from xsoilsm.state import (
    SERIES_SHAPE,
    SNAPSHOT_FEATURES,
    State,
    WeightsError,
    build_module,
    check_state,
    to_safetensors,
)
from xsoilsm.supply import require_weights
from xsoilsm.weights import count_present, load_weights, write_file

if TYPE_CHECKING:
    import pandas as pd

    from xsoilsm.network import DenseSM

__all__ = [
    "Ensemble",
    "EnsembleWarning",
    "WeightsError",
    "data_dir",
    "get_ensemble",
    "install_ensemble",
    "list_ensembles",
    "save_ensemble",
]

CARD = "card.yaml"

_log = logging.getLogger(__name__)
_loaded: dict[str, tuple[State, ...]] = {}
_loading = threading.Lock()


class EnsembleWarning(UserWarning):
    """An installed ensemble cannot be used and is passed over."""


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Weights and the contract of their inputs, by hashes; compared and tokenised by digest.

    Parameters
    ----------
    card : EnsembleCard
    contract : Contract
        Resolved feature contract.
    digest : str
        SHA-256 over name, grid, contract and files.
    folder : Path, optional
        Where a card without a source lies, with its files.
    """

    card: EnsembleCard
    contract: Contract
    digest: str
    folder: Path | None = None

    @property
    def name(self) -> str:
        """Unique name."""
        return self.card.name

    @property
    def resolution(self) -> str:
        """Grid for which the ensemble was trained, for instance ``"9km"``."""
        return self.card.resolution

    def require_weights(self) -> None:
        """Make sure that the files of all members are here, without reading them.

        Imports them from ``$XSOILSM_WEIGHTS_DIR`` where that is set and they are missing.

        Raises
        ------
        WeightsError
            When files are missing; the message names the command that helps.
        """
        require_weights(self.card, self.folder)

    def state_dicts(self) -> list[dict[str, npt.NDArray[Any]]]:
        """Parameters of all members, in the order of the card.

        Computes: reads and checks the files at the first call in a process.

        Returns
        -------
        list of dict of str to ndarray
            The arrays are shared and cannot be written to.

        Raises
        ------
        WeightsError
            When files are missing or damaged.
        """
        with _loading:
            if self.digest not in _loaded:
                self.require_weights()
                states = tuple(load_weights(self.card, self.folder))
                for state in states:
                    for array in state.values():
                        array.setflags(write=False)
                _loaded[self.digest] = states
            return [dict(state) for state in _loaded[self.digest]]

    def modules(self) -> list[DenseSM]:
        """Build new networks in evaluation mode, in the order of the card.

        Computes. The networks belong to the caller: changing them changes nothing else.

        Returns
        -------
        list of DenseSM

        Raises
        ------
        WeightsError
            When files are missing or damaged, or PyTorch is not installed.
        """
        members = zip(self.state_dicts(), self.card.members, strict=True)
        return [build_module(state, member) for state, member in members]

    def __dask_tokenize__(self) -> tuple[str, str]:
        return ("xsoilsm.Ensemble", self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ensemble) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return (
            f"<Ensemble {self.name!r}: {len(self.card.members)} members, trained at "
            f"{self.resolution}, contract {self.contract.name!r}, digest {self.digest[:12]}>"
        )


def get_ensemble(name_or_path: str | Path | Ensemble, res: str | None = None) -> Ensemble:
    """Find an ensemble by its name, the name of its family, or the path of its card.

    Lazy: reads cards; weights are read when they are first used.

    Parameters
    ----------
    name_or_path : str, Path or Ensemble
        ``"DenseSM-E"`` is a family: the ensemble of the family that is tuned for `res`, else
        the published one for 9 km. A path leads to a card or to a folder with ``card.yaml``.
    res : {"9km", "1km", "500m", "100m"}, optional
        Grid of the retrieval; decides which ensemble of a family is taken.

    Returns
    -------
    Ensemble

    Raises
    ------
    CatalogError
        For an unknown name (the message lists the known ones) or an invalid card.
    ValueError
        For an unknown `res`.

    Examples
    --------
    >>> get_ensemble("DenseSM-E", "1km").resolution
    '9km'
    """
    grid = None if res is None else get_grid(res).name
    if isinstance(name_or_path, Ensemble):
        return name_or_path
    name = str(name_or_path)
    known = list(_known_cards())
    for same in (str.__eq__, _same_letters):
        for card, folder, _ in known:
            if not isinstance(name_or_path, Path) and same(card.name, name):
                return _ensemble(card, folder)
        family = [entry for entry in known if same(entry[0].family, name)]
        if family and not isinstance(name_or_path, Path):
            card, folder, _ = _of_family(family, grid)
            return _ensemble(card, folder)
    path = Path(name).expanduser()
    if isinstance(name_or_path, Path) or path.exists() or path.suffix in (".yaml", ".yml"):
        file = path / CARD if path.is_dir() else path
        return _ensemble(read_card(file), file.parent)
    names = sorted({card.name for card, *_ in known} | {card.family for card, *_ in known})
    msg = (
        f"unknown ensemble {name!r}; expected one of {', '.join(names)}, or the path of a folder "
        f"with {CARD}"
    )
    raise CatalogError(msg)


def _same_letters(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()


_Known = tuple[EnsembleCard, Path | None, Path]


def _of_family(family: Sequence[_Known], grid: str | None) -> _Known:
    """Card that stands for its family: newest installed one for the grid, else the published.

    Ensembles trained on simulated data never stand for a family.
    """
    published = [entry for entry in family if entry[1] is None]
    installed = [e for e in family if e[1] is not None and not e[0].simulated]
    tuned = [e for e in installed if grid is not None and e[0].resolution == grid]
    if tuned:
        best = max(tuned, key=lambda entry: (entry[0].created, entry[0].name))
        if len(tuned) > 1:
            _log.info("of %d ensembles for %s, %s is the newest", len(tuned), grid, best[0].name)
        return best
    candidates = published or installed
    if not candidates:
        names = ", ".join(entry[0].name for entry in family)
        msg = (
            f"the family {family[0][0].family!r} holds only ensembles trained on simulated data; "
            f"ask for one by its name: {names}"
        )
        raise CatalogError(msg)
    same = [e for e in candidates if grid is not None and e[0].resolution == grid]
    coarse_first = sorted(candidates, key=lambda entry: get_grid(entry[0].resolution).factor)
    return (same or coarse_first)[0]


def _ensemble(card: EnsembleCard, folder: Path | None) -> Ensemble:
    """Resolve contract and hashes."""
    if card.source is not None:
        folder = None
    elif folder is not None:
        card = _with_hashes(card, folder.resolve())
        folder = folder.resolve()
    contract = card.get_contract()
    found = (len(contract.snapshot), (len(contract.series.channels), contract.series.steps))
    if found != (SNAPSHOT_FEATURES, SERIES_SHAPE):
        msg = (
            f"the contract {contract.name!r} of {card.name!r} gives {found[0]} features and a "
            f"series of {found[1]}; DenseSM reads {SNAPSHOT_FEATURES} and {SERIES_SHAPE}"
        )
        raise WeightsError(msg)
    return Ensemble(card, contract, card.digest, folder)


def _with_hashes(card: EnsembleCard, folder: Path) -> EnsembleCard:
    """Fill in hashes that a card of one's own leaves out, so that its digest covers the files."""
    members = []
    for member in card.members:
        if member.sha256 is None:
            try:
                content = (folder / member.file).read_bytes()
            except OSError as error:
                msg = f"cannot read a member of {card.name!r}: {error}"
                raise WeightsError(msg) from error
            found = hashlib.sha256(content).hexdigest()
            member = member.model_copy(update={"sha256": found})
        members.append(member)
    return card.model_copy(update={"members": tuple(members)})


def data_dir() -> Path:
    """Return the folder for what the user makes or installs, ensembles for instance.

    Returns
    -------
    Path
        ``$XSOILSM_DATA_DIR`` where it is set, else the platform's data folder. It is not
        created.
    """
    place = os.environ.get("XSOILSM_DATA_DIR")
    return Path(place).expanduser() if place else platformdirs.user_data_path("xsoilsm")


def _known_cards() -> Iterator[_Known]:
    """Cards with the folder of their files (None: the cache) and their own path."""
    names = set()
    for path in sorted((catalogs_dir() / "ensembles").glob("*.yaml")):
        card = read_card(path)
        names.add(card.name)
        yield card, None, path
    for path in sorted((catalogs_dir() / "ensembles").glob(f"*/{CARD}")):
        card = read_card(path)
        names.add(card.name)
        yield card, path.parent, path
    for path in sorted((data_dir() / "ensembles").glob(f"*/{CARD}")):
        try:
            card = read_card(path)
        except CatalogError as error:
            warnings.warn(
                f"an installed ensemble is left out: {error}", EnsembleWarning, stacklevel=3
            )
            continue
        if card.name in names:
            warnings.warn(
                f"{path} is left out: {card.name!r} exists already", EnsembleWarning, stacklevel=3
            )
            continue
        names.add(card.name)
        yield card, path.parent, path


def list_ensembles() -> pd.DataFrame:
    """Table of the ensembles that `get_ensemble` knows by name.

    Lazy: reads cards, no weights.

    Returns
    -------
    DataFrame
        name, family, resolution, members, weights (how many members are here), contract,
        licence, simulated, path (of the card).
    """
    import pandas as pd

    rows = []
    for card, folder, path in _known_cards():
        row = {
            "name": card.name,
            "family": card.family,
            "resolution": card.resolution,
            "members": len(card.members),
            "weights": count_present(card, folder),
            "contract": card.get_contract().name,
            "licence": card.licence.spdx or "none stated",
            "simulated": card.simulated,
            "path": str(path),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def save_ensemble(
    card: EnsembleCard,
    states: Sequence[Mapping[str, Any]],
    folder: str | Path | None = None,
    *,
    overwrite: bool = False,
) -> Ensemble:
    """Write an ensemble, card and safetensors side by side, whole or not at all.

    Parameters
    ----------
    card : EnsembleCard
        Without a source. Its members name ``.safetensors`` files; their hashes are filled in,
        and the contract is written out whole.
    states : sequence of mapping of str to ndarray or tensor
        State dict of each member, in the order of the card.
    folder : path, optional
        Default: the data folder, where `get_ensemble` finds the ensemble by its name.
    overwrite : bool, default False
        Replace an ensemble that is there.

    Returns
    -------
    Ensemble

    Raises
    ------
    FileExistsError
        When the folder exists and holds something.
    WeightsError
        When a state dict does not fit its member.
    CatalogError
        When the name belongs to an ensemble that comes with the package.
    """
    if folder is None:
        folder = data_dir() / "ensembles" / card.name
        known = {other.name: path for other, _, path in _known_cards()}
        if card.name in known and catalogs_dir() in known[card.name].parents:
            msg = f"{card.name!r} comes with the package; choose another name"
            raise CatalogError(msg)
    folder = Path(folder).expanduser().resolve()
    contents = _contents(card, states)
    members = tuple(
        member.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
        for member, content in zip(card.members, contents, strict=True)
    )
    contract = card.get_contract().to_dict()
    card = card.model_copy(update={"members": members, "contract": contract})
    card = EnsembleCard.model_validate(card.model_dump())
    if folder.exists() and any(folder.iterdir()):
        if not overwrite:
            msg = f"{folder} exists; choose another folder or pass overwrite=True"
            raise FileExistsError(msg)
        if not (folder / CARD).is_file():
            msg = f"{folder} holds no ensemble and is not replaced; choose another folder"
            raise FileExistsError(msg)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        for member, content in zip(card.members, contents, strict=True):
            write_file(new / member.file, content)
        write_file(new / CARD, card.to_yaml().encode())
        load_weights(read_card(new / CARD), new)
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _ensemble(card, folder)


def _contents(card: EnsembleCard, states: Sequence[Mapping[str, Any]]) -> list[bytes]:
    if card.source is not None or any(not m.file.endswith(".safetensors") for m in card.members):
        msg = f"the card {card.name!r} must have no source and name .safetensors files to be saved"
        raise WeightsError(msg)
    if len(states) != len(card.members):
        msg = f"{len(states)} state dicts given for the {len(card.members)} members on the card"
        raise WeightsError(msg)
    contents = []
    for member, state in zip(card.members, states, strict=True):
        arrays = {name: _array(value) for name, value in state.items()}
        check_state(arrays, member, f"the state dict of {member.file}")
        contents.append(to_safetensors(arrays))
    return contents


def _array(value: Any) -> npt.NDArray[Any]:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def install_ensemble(path: str | Path, *, overwrite: bool = False) -> Ensemble:
    """Copy an ensemble into the data folder, where it is found by its name and its family.

    Parameters
    ----------
    path : path
        Folder with ``card.yaml`` and the files, or the card.
    overwrite : bool, default False
        Replace an ensemble of the same name.

    Returns
    -------
    Ensemble

    Raises
    ------
    CatalogError
        When the card is invalid or its name belongs to the package.
    WeightsError
        When files are missing or damaged.
    FileExistsError
        When an ensemble of that name is installed.
    """
    ensemble = get_ensemble(Path(path))
    members = tuple(
        m.model_copy(update={"file": Path(m.file).stem + ".safetensors", "tensors_sha256": None})
        for m in ensemble.card.members
    )
    card = ensemble.card.model_copy(update={"members": members, "source": None})
    return save_ensemble(card, ensemble.state_dicts(), overwrite=overwrite)
