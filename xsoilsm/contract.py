"""Step 4 of 7 (features): the feature contract, what a network's inputs are and in which order.

A contract is data: one entry per input with its source in the cube, its units, its range and
its encoding. Contracts with a name lie in ``catalogs/contracts``; an ensemble's card names one
or carries its own, so that weights and contract never part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from xsoilsm.catalog import CatalogError, catalogs_dir
from xsoilsm.cube import VARIABLES

__all__ = ["DERIVED", "Channel", "Contract", "Input", "Series", "contract_names", "get_contract"]

DERIVED = ("row_9km", "column_9km", "day_of_year")
"""Sources that follow from a cube's coordinates instead of its variables."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Model):
    """What channels and inputs have in common.

    Parameters
    ----------
    name : str
    source : str
        Variable of the cube, or one of `DERIVED`.
    units : str
        Units after `scale`.
    scale : float
        Factor from the cube's units.
    note : str
        What the entry rests on.
    """

    name: str
    source: str
    units: str
    scale: float = 1.0
    note: str = ""


class Channel(Entry):
    """One channel of the series.

    Parameters
    ----------
    range : (float, float)
        Values that become 0 and 1; beyond them a step is clipped.
    """

    range: tuple[float, float]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.range[0] < self.range[1]:
            msg = f"range {self.range} of {self.name!r} is not ascending"
            raise ValueError(msg)
        return self


class Input(Entry):
    """One number of the snapshot.

    Exactly one of three forms: a linear variable has `range`; a cyclic one has `encoding` and
    `cycle` and becomes (sin or cos(2 pi v / cycle) + 1) / 2; a `summary` is taken from the
    normalised series of its source.
    """

    range: tuple[float, float] | None = None
    encoding: Literal["sin", "cos"] | None = None
    cycle: float | None = Field(default=None, gt=0)
    summary: Literal["mean", "last"] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = (self.range is not None, self.encoding is not None, self.summary is not None)
        if sum(forms) != 1 or (self.encoding is None) != (self.cycle is None):
            msg = (
                f"input {self.name!r} needs exactly one of `range`, `summary`, or `encoding` "
                "with `cycle`"
            )
            raise ValueError(msg)
        if self.range is not None and not self.range[0] < self.range[1]:
            msg = f"range {self.range} of {self.name!r} is not ascending"
            raise ValueError(msg)
        return self


class Series(_Model):
    """The time series: number of steps, which window of periods, and the channels in order."""

    steps: int = Field(gt=0)
    window: Literal["latest-periods"]
    channels: tuple[Channel, ...]


class Contract(_Model):
    """All inputs of a network, in order.

    Parameters
    ----------
    name, title : str
    averaging : {"dB", "power"}
        How native backscatter is averaged over a cell.
    series : Series
    snapshot : tuple of Input
    """

    schema_version: Literal[1]
    name: str
    title: str = ""
    averaging: Literal["dB", "power"]
    series: Series
    snapshot: tuple[Input, ...]

    @model_validator(mode="after")
    def _sources_exist(self) -> Self:
        known = [name for name, v in VARIABLES.items() if v.required] + list(DERIVED)
        channels = [c.source for c in self.series.channels]
        for entry in self.entries:
            if entry.source not in known:
                msg = f"{entry.name!r} has source {entry.source!r}; expected one of {known}"
                raise ValueError(msg)
        for item in self.snapshot:
            if item.summary is not None and item.source not in channels:
                msg = f"{item.name!r} sums up {item.source!r}, which is no channel of the series"
                raise ValueError(msg)
        names = [i.name for i in self.snapshot]
        if len(set(names)) != len(names):
            msg = f"names of the snapshot are not unique: {names}"
            raise ValueError(msg)
        return self

    @property
    def entries(self) -> list[Entry]:
        """Inputs of the snapshot, then channels."""
        return [*self.snapshot, *self.series.channels]

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the snapshot's inputs, in order."""
        return tuple(i.name for i in self.snapshot)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the series' channels, in order."""
        return tuple(c.name for c in self.series.channels)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides a number; titles and notes do not count."""
        content = self.model_dump(
            mode="json",
            exclude={
                "title": True,
                "snapshot": {"__all__": {"note"}},
                "series": {"channels": {"__all__": {"note"}}},
            },
        )
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the contract as plain data, as a card carries it."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def __dask_tokenize__(self) -> tuple[str, str]:
        """Identify the contract by its digest."""
        return ("xsoilsm.Contract", self.digest)


def contract_names() -> list[str]:
    """Names of the contracts that come with the package."""
    return sorted(path.stem for path in (catalogs_dir() / "contracts").glob("*.yaml"))


def get_contract(contract: str | Mapping[str, Any] | Contract) -> Contract:
    """Look up a contract by name, or validate one given as data.

    Lazy: reads one small file.

    Parameters
    ----------
    contract : str, mapping or Contract
        ``"published-coarse"``, ``"paper"``, or the content of a contract file.

    Returns
    -------
    Contract

    Raises
    ------
    CatalogError
        For an unknown name (the message lists the known ones) or invalid content.
    """
    if isinstance(contract, Contract):
        return contract
    if isinstance(contract, str):
        return _named_contract(contract)
    return _validate(contract, "the contract")


@lru_cache
def _named_contract(name: str) -> Contract:
    if name not in contract_names():
        msg = f"unknown feature contract {name!r}; expected one of {', '.join(contract_names())}"
        raise CatalogError(msg)
    path = catalogs_dir() / "contracts" / f"{name}.yaml"
    return _validate(yaml.safe_load(path.read_text(encoding="utf-8")), path.name)


def _validate(content: Any, where: str) -> Contract:
    try:
        return Contract.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'contract'}: {e['msg']}" for e in error.errors()
        )
        msg = f"{where} is not a valid feature contract: {problems}"
        raise CatalogError(msg) from None
