"""Step 5 of 7 (networks): what a fine-tuning is asked for, checked before anything is read."""

from __future__ import annotations

import errno
import fcntl
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xsoilsm.catalog import CatalogError
from xsoilsm.ensemble import CARD, Ensemble, data_dir, get_ensemble, list_ensembles
from xsoilsm.finetuning.folds import Fleet
from xsoilsm.grid import get_grid
from xsoilsm.training import Recipe, Samples
from xsoilsm.wholefile import whole_file

if TYPE_CHECKING:
    from xsoilsm.card import EnsembleCard

__all__ = ["Settings", "Start", "agree", "workplace"]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class Settings:
    """Everything that may be asked of `xsoilsm.finetuning.finetune`.

    Parameters
    ----------
    name : str
        Of the new ensemble, in lower case.
    base : str, Path or Ensemble, default "DenseSM-E"
        What to start from: for 9 km, or for the grid of the cube.
    recipe : Recipe, optional
        Default: `Recipe.transfer`, 1000 epochs at 1e-5. Its seed also deals the folds.
    epochs : int, optional
        Of the default recipe.
    shapes : sequence of (int, int), optional
        Depth and width of the members to tune; all of the base by default.
    validation : {"sites", None}, default "sites"
        Cross-validation by site, or none: then nothing is said about errors, and there is no
        calibration.
    folds : int, default 5
        At most one for each site.
    block : {"9km", "1km", "500m"}, optional
        Sites in one cell of this grid are held out together; for dense networks, whose cells
        have the weather and often the field in common.
    coarse, target : Samples, optional
        9 km and unlabelled samples, where the recipe asks for them.
    title, statement, note : str
    licence : str, optional
        SPDX name of the terms.
    simulated : bool, optional
        The data are simulated; by default what the cube says.
    report : path, optional
        HTML file. Default: ``training/NAME.html`` in the data folder.
    folder : path, optional
        Of the ensemble; by default where it is found by its name.
    overwrite : bool, default False
        Replace an ensemble and a report of this name.
    device : {"auto", "cpu", "cuda"}
    threads : int, optional
    checkpoint_seconds : float, default 60
        Least time between checkpoints.
    """

    name: str
    base: str | Path | Ensemble = "DenseSM-E"
    recipe: Recipe | None = None
    epochs: int | None = None
    shapes: Sequence[tuple[int, int]] | None = None
    validation: str | None = "sites"
    folds: int = 5
    block: str | None = None
    coarse: Samples | None = None
    target: Samples | None = None
    title: str = ""
    licence: str | None = None
    statement: str = ""
    note: str = ""
    simulated: bool | None = None
    report: str | Path | None = None
    folder: str | Path | None = None
    overwrite: bool = False
    device: str = "auto"
    threads: int | None = None
    checkpoint_seconds: float = 60.0

    @property
    def report_folder(self) -> Path:
        """Folder of reports and logs."""
        return data_dir() / "training"

    @property
    def report_path(self) -> Path:
        """File of the report."""
        if self.report is None:
            return self.report_folder / f"{self.name}.html"
        return Path(self.report).expanduser()

    @property
    def place(self) -> Path:
        """Folder of the ensemble."""
        if self.folder is None:
            return data_dir() / "ensembles" / self.name
        return Path(self.folder).expanduser()

    def prepare(self) -> Start:
        """Refuse what cannot end well, before anything is read.

        Lazy: reads cards; makes sure that the weights of the base are there.

        Raises
        ------
        ValueError
            When a random split is to be called validation, the recipe starts from nothing or
            lacks samples, or the base has no such member.
        CatalogError
            When the name or the base is not known or not allowed.
        WeightsError
            When the weights of the base are not at hand.
        FileExistsError
            When there is an ensemble or a report of this name.
        """
        if self.validation not in ("sites", None):
            msg = (
                f"validation is {self.validation!r}; expected 'sites' or None. A random split is "
                "no validation: neighbours of its samples, of the same site and week, are in the "
                "training, so it says how well gaps are filled and not what to expect elsewhere"
            )
            raise ValueError(msg)
        if self.folds < 2:
            msg = f"folds is {self.folds}; expected 2 or more"
            raise ValueError(msg)
        recipe = self._recipe()
        self._check_place()
        base = get_ensemble(self.base, "9km")
        base.require_weights()
        members = {(m.depth, m.width): i for i, m in enumerate(base.card.members)}
        shapes = list(members if self.shapes is None else self.shapes)
        lacking = [f"{depth}-{width}" for depth, width in shapes if (depth, width) not in members]
        if lacking or not shapes:
            known = ", ".join(m.label for m in base.card.members)
            msg = f"{base.name!r} has no member {', '.join(lacking)}; expected of {known}"
            raise ValueError(msg)
        if self.block is not None:
            get_grid(self.block)
        return Start(base, recipe, shapes, [members[shape] for shape in shapes], self.place)

    def _recipe(self) -> Recipe:
        if self.recipe is not None and self.epochs is not None:
            msg = "epochs is a setting of the default recipe; set it in the recipe"
            raise ValueError(msg)
        changes = {} if self.epochs is None else {"epochs": self.epochs}
        recipe = self.recipe or Recipe.transfer(**changes)
        if not recipe.from_base:
            msg = f"a recipe of kind {recipe.kind!r} starts from nothing; expected Recipe.transfer"
            raise ValueError(msg)
        if recipe.validation:
            msg = (
                f"the recipe holds back {recipe.validation:.0%} of the samples at random, which is "
                "no validation and takes them from the training; leave it at 0"
            )
            raise ValueError(msg)
        for what, given, needed in (
            ("coarse", self.coarse, recipe.needs_coarse),
            ("target", self.target, recipe.needs_target),
        ):
            if needed and given is None:
                msg = f"the recipe needs {what} samples; pass {what}="
                raise ValueError(msg)
        return recipe

    def _check_place(self) -> None:
        if not _NAME.fullmatch(self.name):
            msg = (
                f"{self.name!r} is no name for an ensemble; expected lower case letters, digits, "
                "'.', '_' and '-'"
            )
            raise CatalogError(msg)
        known = list_ensembles().set_index("name")
        inside = data_dir() / "ensembles"
        if (
            self.name in known.index
            and inside not in Path(str(known.loc[self.name, "path"])).parents
        ):
            msg = f"{self.name!r} comes with the package; choose another name"
            raise CatalogError(msg)
        # What an interrupted call of this name put there is its own.
        ours = (_folder(self.name) / "report.html").exists()
        saved = (_folder(self.name) / "ensemble" / CARD).exists()
        for path, own in ((self.place, saved), (self.report_path, ours)):
            taken = path.is_file() or (path.is_dir() and any(path.iterdir()))
            if taken and not self.overwrite and not own:
                msg = f"{path} exists; choose another name or pass overwrite=True"
                raise FileExistsError(errno.EEXIST, msg)


@dataclass(frozen=True, eq=False)
class Start:
    """What the tuning starts from."""

    base: Ensemble
    recipe: Recipe
    shapes: list[tuple[int, int]]
    members: list[int]
    place: Path

    def check(self, samples: Samples) -> None:
        """Refuse samples of another grid than that of a base which is tuned already."""
        if self.base.resolution not in ("9km", samples.resolution):
            msg = (
                f"the ensemble {self.base.name!r} was tuned at {self.base.resolution}, the samples "
                f"are at {samples.resolution}; start from an ensemble for 9km or for "
                f"{samples.resolution}"
            )
            raise ValueError(msg)

    def fleet(self, settings: Settings) -> Fleet:
        """Read the weights of the members. Computes."""
        states = self.base.state_dicts()
        return Fleet(
            self.shapes,
            [states[index] for index in self.members],
            self.base.digest,
            self.recipe,
            settings.coarse if self.recipe.needs_coarse else None,
            settings.target if self.recipe.needs_target else None,
            settings.device,
            settings.threads,
            settings.checkpoint_seconds,
        )

    def is_saved(self, card: EnsembleCard) -> bool:
        """Whether the ensemble of an interrupted call is in its place already."""
        if not (self.place / CARD).is_file():
            return False
        there = get_ensemble(self.place).card.members
        return [m.sha256 for m in there] == [m.sha256 for m in card.members]


# --------------------------------------------------------------------------- what is under way


def _folder(name: str) -> Path:
    return data_dir() / "training" / f"{name}.unfinished"


@contextmanager
def workplace(name: str, restart: bool = False) -> Iterator[Path]:
    """Folder of what is done of a fine-tuning; one process at a time works in it.

    Raises
    ------
    OSError
        When another process works on this name.
    """
    folder = _folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            msg = f"another process makes the ensemble {name!r}; wait until it ends"
            raise OSError(error.errno or errno.EBUSY, msg) from error
        if restart:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def agree(folder: Path, identity: Mapping[str, Any], file: str = "data.json") -> None:
    """Begin, or go on with what was begun with the same data.

    Raises
    ------
    ValueError
        When the folder holds work on other data or with other settings.
    """
    plan = folder / file
    try:
        earlier = json.loads(plan.read_text(encoding="utf-8"))
    except FileNotFoundError:
        with whole_file(plan) as scratch:
            scratch.write_text(json.dumps(dict(identity), indent=1), encoding="utf-8")
        return
    other = [key for key in identity if earlier.get(key) != identity[key]]
    if other:
        msg = (
            f"an unfinished fine-tuning in {folder} was begun with another {', '.join(other)}; "
            "make that call again to go on with it, or pass restart=True to begin anew"
        )
        raise ValueError(msg)
