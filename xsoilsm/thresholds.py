"""Step 6 of 7 (explain): the thresholds of the quality flags and the masks, with their sources.

They are facts in ``catalogs/quality/thresholds.yaml``, one entry each with value, units, rule and
source. A user's own thresholds and masks take their place call by call; nothing is set globally.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from xsoilsm.catalog import CatalogError, catalogs_dir
from xsoilsm.quality import QualityFlag, Thresholds, name_of

__all__ = ["Mask", "QualityFacts", "get_thresholds", "mask_bits", "quality_facts"]

Mask: TypeAlias = str | QualityFlag | Iterable[str | QualityFlag] | None
"""Names of flags and of masks whose cells are blanked; None blanks nothing."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _known_flag(name: str) -> str:
    if name not in _FLAGS:
        msg = f"unknown quality flag {name!r}; expected one of {', '.join(_FLAGS)}"
        raise ValueError(msg)
    return name


_FLAGS = {name_of(flag): flag for flag in QualityFlag}


class ThresholdFact(_Model):
    """One threshold.

    Parameters
    ----------
    value : float or None
        None switches the condition off.
    units : str
    flag : str
        Quality flag that it decides on.
    rule : str
        What is compared, in words.
    source : str
        Where the value is from.
    """

    value: float | None
    units: str
    flag: str
    rule: str = Field(min_length=1)
    source: str = Field(min_length=1)

    @model_validator(mode="after")
    def _flag_exists(self) -> ThresholdFact:
        _known_flag(self.flag)
        return self


class MaskFact(_Model):
    """A choice of flags whose cells are blanked, and why."""

    flags: list[str]
    reason: str = Field(min_length=1)

    @model_validator(mode="after")
    def _flags_exist(self) -> MaskFact:
        for name in self.flags:
            _known_flag(name)
        return self


class QualityFacts(_Model):
    """Content of ``catalogs/quality/thresholds.yaml``.

    Parameters
    ----------
    thresholds : dict of str to ThresholdFact
        One for each field of `xsoilsm.quality.Thresholds`.
    masks : dict of str to MaskFact
        ``"default"`` among them.
    """

    schema_version: Literal[1]
    thresholds: dict[str, ThresholdFact]
    masks: dict[str, MaskFact]

    @model_validator(mode="after")
    def _is_whole(self) -> QualityFacts:
        expected = {field.name for field in fields(Thresholds)}
        missing, unknown = expected - set(self.thresholds), set(self.thresholds) - expected
        if missing or unknown:
            msg = (
                f"thresholds: missing {', '.join(sorted(missing)) or 'none'}, unknown "
                f"{', '.join(sorted(unknown)) or 'none'}"
            )
            raise ValueError(msg)
        clash = set(self.masks) & set(_FLAGS)
        if "default" not in self.masks or clash:
            msg = "masks: 'default' has to be there, and no mask may be called like a flag"
            raise ValueError(msg)
        return self


def read_facts(path: Path) -> QualityFacts:
    """Read and check a file of thresholds and masks.

    Raises
    ------
    CatalogError
        When the file cannot be read or holds something unexpected; every fault is named.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        msg = f"cannot read the quality thresholds {path}: {' '.join(str(error).split())}"
        raise CatalogError(msg) from error
    try:
        return QualityFacts.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()
        )
        msg = f"{path} does not hold valid quality thresholds: {problems}"
        raise CatalogError(msg) from None


@lru_cache(maxsize=1)
def quality_facts() -> QualityFacts:
    """Thresholds and masks that come with the package. Reads one small file, once."""
    return read_facts(catalogs_dir() / "quality" / "thresholds.yaml")


def get_thresholds(
    thresholds: Thresholds | Mapping[str, float | None] | None = None,
) -> Thresholds:
    """Thresholds of the flags: the package's own, with a user's in their place.

    Parameters
    ----------
    thresholds : Thresholds or mapping of str to float, optional
        A mapping replaces some of the package's own; None as a value switches a condition off.

    Returns
    -------
    Thresholds

    Raises
    ------
    ValueError
        For an unknown name (the message lists the known ones) or a value that is no number.

    Examples
    --------
    >>> get_thresholds({"water_fraction": 0.2}).water_fraction
    0.2
    """
    if isinstance(thresholds, Thresholds):
        return thresholds
    own: dict[str, Any] = {n: fact.value for n, fact in quality_facts().thresholds.items()}
    given = dict(thresholds or {})
    unknown = [name for name in given if name not in own]
    if unknown:
        msg = f"unknown threshold {', '.join(map(repr, unknown))}; expected of {', '.join(own)}"
        raise ValueError(msg)
    return Thresholds(**own | given)


def mask_bits(mask: Mask) -> QualityFlag:
    """Bits of the flags whose cells are to be blanked.

    Parameters
    ----------
    mask : str, QualityFlag, iterable of them, or None
        Names of flags, and ``"default"`` or ``"strict"`` for a choice of them, see
        ``catalogs/quality/thresholds.yaml``. None is no flag.

    Returns
    -------
    QualityFlag

    Raises
    ------
    ValueError
        For an unknown name; the message lists the known ones.

    Examples
    --------
    >>> from xsoilsm.quality import flag_names
    >>> flag_names(mask_bits(["default", "snow"]))
    ['out_of_range', 'snow']
    """
    bits = QualityFlag(0)
    if mask is None:
        return bits
    masks = quality_facts().masks
    for name in (mask,) if isinstance(mask, str | QualityFlag) else mask:
        if isinstance(name, QualityFlag):
            bits |= name
        elif name in _FLAGS:
            bits |= _FLAGS[name]
        elif name in masks:
            bits |= mask_bits(masks[name].flags)
        else:
            msg = (
                f"mask names {name!r}; expected quality flags ({', '.join(_FLAGS)}) or masks "
                f"({', '.join(masks)})"
            )
            raise ValueError(msg)
    return bits
