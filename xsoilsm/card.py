"""Step 5 of 7 (networks): the card of an ensemble, its facts in one YAML file.

A card says which networks belong together, for which grid and with which feature contract they
were trained, where their files come from, how those files are recognised, and under which terms
they may be used. Weights and contract never part: both are in the card's digest. Nothing here
opens a connection.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from xsoilsm.calibration import Calibration
from xsoilsm.catalog import CatalogError
from xsoilsm.contract import Contract, get_contract
from xsoilsm.grid import get_grid

__all__ = ["Citation", "EnsembleCard", "Licence", "Member", "Source", "Training", "read_card"]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Member(_Model):
    """One network of the ensemble.

    Parameters
    ----------
    depth, width : int
        Number of dense blocks and of units of their layers.
    file : str
        Name of the file, without a folder. ``.pt`` is a pickled state dict, which is converted
        before use.
    sha256 : str, optional
        SHA-256 of the file. A card with a source must have it.
    tensors_sha256 : str, optional
        SHA-256 of the names, types, shapes and values in the file, whatever its format: what
        lies in the cache after conversion is compared with it.
    rmse : float, optional
        Validation RMSE in m3 m-3.
    """

    depth: Count
    width: Count
    file: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*\.(pt|safetensors)$")
    sha256: Sha256 | None = None
    tensors_sha256: Sha256 | None = None
    rmse: float | None = Field(default=None, ge=0)

    @property
    def label(self) -> str:
        """Depth and width as users write them, for instance ``"5-128"``."""
        return f"{self.depth}-{self.width}"


class Source(_Model):
    """The public place of the files.

    Parameters
    ----------
    repository, commit, folder : str
    url : str
        Address of a file, with ``{repository}``, ``{commit}``, ``{folder}`` and ``{file}``.
    note : str
    """

    repository: str
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    folder: str
    url: str = Field(pattern=r"^https://.*\{file\}")
    note: str = ""

    @field_validator("url")
    @classmethod
    def _known_fields(cls, url: str) -> str:
        try:
            url.format(repository="", commit="", folder="", file="")
        except (KeyError, IndexError, ValueError) as error:
            msg = f"{url!r} may hold {{repository}}, {{commit}}, {{folder}} and {{file}} only"
            raise ValueError(msg) from error
        return url

    def address(self, file: str) -> str:
        """URL of a file."""
        return self.url.format(
            repository=self.repository, commit=self.commit, folder=self.folder, file=file
        )


class Licence(_Model):
    """Terms of use: an SPDX name where there is one, and a statement in words."""

    spdx: str | None = None
    statement: str


class Citation(_Model):
    """What to cite."""

    text: str
    doi: str | None = None


class Training(_Model):
    """How the members were trained.

    Parameters
    ----------
    kind : {"coarse", "transfer", "benchmark", "adaptation"}
    truth, period, validation, note : str
    samples : int, optional
    base : str, optional
        Digest of the ensemble from which training started.
    settings : dict
        Loss, optimiser, learning rate and the like.
    data : dict of str to str
        Digest of each set of samples, for instance ``samples`` and ``coarse``.
    metrics : dict of str to float
        What was measured at the end of the training, in m3 m-3.
    """

    kind: Literal["coarse", "transfer", "benchmark", "adaptation"]
    truth: str = ""
    period: str = ""
    samples: Count | None = None
    base: Sha256 | None = None
    validation: str = ""
    settings: dict[str, str | int | float | bool] = Field(default_factory=dict)
    data: dict[str, Sha256] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    note: str = ""


class EnsembleCard(_Model):
    """All facts about one ensemble.

    Parameters
    ----------
    schema_version : 1
    name : str
        Unique name in lower case, also of the folder in the cache.
    family : str
        Common name of ensembles for different grids, for instance ``"DenseSM-E"``.
    title : str
    resolution : {"9km", "1km", "500m", "100m"}
        Grid for which the ensemble was trained.
    contract : str or dict
        Name of a feature contract, or a whole contract.
    members : tuple of Member
    source : Source, optional
        Where the files are downloaded from. Without it they lie beside the card.
    licence : Licence
    citation : Citation
    training : Training
    calibration : Calibration, optional
        How the spread of the members becomes an uncertainty; from sites held out of training.
    simulated : bool, default False
        Trained on simulated data: such an ensemble is used only where it is asked for by its
        own name or path.
    created : str
        Date in ISO form; of two ensembles for one grid the newer one stands for the family.
    """

    schema_version: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    family: str = Field(min_length=1)
    title: str = ""
    resolution: str
    contract: str | dict[str, Any]
    members: tuple[Member, ...] = Field(min_length=1, strict=False)
    source: Source | None = None
    licence: Licence
    citation: Citation
    training: Training
    calibration: Calibration | None = None
    simulated: bool = False
    created: str = Field(default="", pattern=r"^(\d{4}-\d{2}-\d{2})?$")

    @field_validator("resolution")
    @classmethod
    def _known_grid(cls, resolution: str) -> str:
        return get_grid(resolution).name

    @model_validator(mode="after")
    def _files(self) -> Self:
        stems = [member.file.rsplit(".", 1)[0] for member in self.members]
        twice = sorted({stem for stem in stems if stems.count(stem) > 1})
        if twice:
            msg = f"files of two members share a name: {', '.join(twice)}"
            raise ValueError(msg)
        unknown = [member.file for member in self.members if member.sha256 is None]
        if self.source is not None and unknown:
            msg = f"`source` is given, so these members need `sha256`: {', '.join(unknown)}"
            raise ValueError(msg)
        return self

    def get_contract(self) -> Contract:
        """Look up or validate the feature contract.

        Raises
        ------
        CatalogError
            For an unknown name or invalid content.
        """
        return get_contract(self.contract)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides a number: name, grid, contract, files and calibration.

        Raises
        ------
        CatalogError
            When a member's file has no ``sha256`` or the contract is unknown.
        """
        unknown = [member.file for member in self.members if member.sha256 is None]
        if unknown:
            msg = f"the card {self.name!r} has no sha256 of {', '.join(unknown)}"
            raise CatalogError(msg)
        content = {
            "schema_version": self.schema_version,
            "name": self.name,
            "resolution": self.resolution,
            "contract": self.get_contract().digest,
            "members": [[m.depth, m.width, m.sha256] for m in self.members],
        }
        if self.calibration is not None:
            content["calibration"] = self.calibration.model_dump()
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self) -> str:
        """Text of the card's file."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def read_card(path: Path) -> EnsembleCard:
    """Read and check a card.

    Lazy: reads one small file, no weights.

    Parameters
    ----------
    path : Path

    Returns
    -------
    EnsembleCard

    Raises
    ------
    CatalogError
        When the file cannot be read or is not a valid card; every fault is named.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        msg = f"cannot read the ensemble card {path}: {reason}"
        raise CatalogError(msg) from error
    try:
        card = EnsembleCard.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'card'}: {e['msg']}" for e in error.errors()
        )
        msg = f"{path} is not a valid ensemble card: {problems}"
        raise CatalogError(msg) from None
    return card
