"""Step 6 of 7 (explain): quality flags, their bits, meanings and conditions.

One integer variable, ``quality_flag``, says why a value is missing or to be used with care.
A flag marks; it never erases. Pure functions of arrays; the numbers that conditions compare with
are data, see `xsoilsm.thresholds`.

Conventions: CF-1.11, section 3.5 (``flag_masks`` and ``flag_meanings``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from enum import IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "ADVICE",
    "CONDITIONS",
    "FLAG_DTYPE",
    "MEANINGS",
    "VALID_RANGE",
    "Condition",
    "QualityFlag",
    "Term",
    "Thresholds",
    "conditions_for",
    "describe",
    "evaluate",
    "evaluation_attributes",
    "flag_attributes",
    "flag_names",
    "missing_inputs",
]

FLAG_DTYPE = np.uint32
"""Integer type of ``quality_flag``."""

VALID_RANGE = (0.0, 0.6)
"""Retrievals outside these bounds in m3 m-3 are invalid (Zhu et al. 2024, inversion rate)."""

Flags = npt.NDArray[np.uint32]
Values = Mapping[str, npt.NDArray[Any]]


class QualityFlag(IntFlag):
    """Bits of ``quality_flag``; zero is a retrieval without remark."""

    NO_SCENE = 1 << 0
    READ_FAILED = 1 << 1
    NAN_INPUT = 1 << 2
    LOW_COVERAGE = 1 << 3
    OUT_OF_RANGE = 1 << 4
    INPUTS_CLIPPED = 1 << 5
    SERIES_FILLED = 1 << 6
    APPROXIMATE_SIGMA0 = 1 << 7
    FROZEN_GROUND = 1 << 8
    SNOW = 1 << 9
    OPEN_WATER = 1 << 10
    BUILT_UP = 1 << 11
    DENSE_VEGETATION = 1 << 12
    STEEP_SLOPE = 1 << 13
    LAYOVER_SHADOW = 1 << 14
    OUT_OF_DOMAIN = 1 << 15


MEANINGS: dict[QualityFlag, str] = {
    QualityFlag.NO_SCENE: "no acquisition covers the cell",
    QualityFlag.READ_FAILED: "a source could not be read",
    QualityFlag.NAN_INPUT: "an input of the network is missing",
    QualityFlag.LOW_COVERAGE: "valid radar pixels cover too little of the cell",
    QualityFlag.OUT_OF_RANGE: "the retrieval lies outside 0 to 0.6 m3 m-3 and is invalid",
    QualityFlag.INPUTS_CLIPPED: "an input lies outside the range of training and was clipped",
    QualityFlag.SERIES_FILLED: "many steps of the vegetation series were filled",
    QualityFlag.APPROXIMATE_SIGMA0: "sigma nought was approximated on sloping ground",
    QualityFlag.FROZEN_GROUND: "the ground is frozen",
    QualityFlag.SNOW: "the ground is covered with snow",
    QualityFlag.OPEN_WATER: "open water covers part of the cell",
    QualityFlag.BUILT_UP: "buildings cover part of the cell",
    QualityFlag.DENSE_VEGETATION: "dense vegetation weakens the sensitivity to soil moisture",
    QualityFlag.STEEP_SLOPE: "the terrain is steep",
    QualityFlag.LAYOVER_SHADOW: "radar layover or shadow",
    QualityFlag.OUT_OF_DOMAIN: "the inputs lie far from those of training",
}
"""What each bit says, in words."""

ADVICE: dict[QualityFlag, str] = {
    QualityFlag.NO_SCENE: "choose other dates, or accept the gap",
    QualityFlag.READ_FAILED: "load again; on_error='raise' tells which file it is",
    QualityFlag.NAN_INPUT: "look for NaN among the inputs of the cube",
    QualityFlag.LOW_COVERAGE: "mask='low_coverage' blanks these cells",
    QualityFlag.OUT_OF_RANGE: "such values are blanked unless mask=None or keep_invalid=True",
    QualityFlag.INPUTS_CLIPPED: "xsoilsm.domain.domain_table(cube, model) names unusual inputs",
    QualityFlag.SERIES_FILLED: "look at `ndvi_filled`; late composites may have come meanwhile",
    QualityFlag.APPROXIMATE_SIGMA0: "use a source with an area factor where terrain matters",
    QualityFlag.FROZEN_GROUND: "mask='frozen_ground' blanks these cells",
    QualityFlag.SNOW: "mask='snow' blanks these cells",
    QualityFlag.OPEN_WATER: "mask='open_water' blanks these cells",
    QualityFlag.BUILT_UP: "mask='built_up' blanks these cells",
    QualityFlag.DENSE_VEGETATION: "trust changes in time less than elsewhere",
    QualityFlag.STEEP_SLOPE: "mask='steep_slope' blanks these cells",
    QualityFlag.LAYOVER_SHADOW: "mask='layover_shadow' blanks these cells",
    QualityFlag.OUT_OF_DOMAIN: "xsoilsm.domain.domain_table(cube, model) names unusual inputs",
}
"""What to do about each bit, in words."""


# --------------------------------------------------------------------------- thresholds


@dataclass(frozen=True)
class Thresholds:
    """Numbers that the conditions of the flags compare with; None switches a condition off.

    `xsoilsm.thresholds.get_thresholds` makes them from the package's own and a user's.

    Parameters
    ----------
    coverage : float or None
        Share of a cell with valid radar pixels.
    frozen_soil_temperature, frozen_air_temperature : float or None
        degC.
    snow_cover, snow_ice_fraction : float or None
        Shares of a cell.
    snow_ndvi : float or None
    snow_air_temperature : float or None
        degC.
    water_fraction, built_fraction, tree_fraction : float or None
        Shares of a cell.
    dense_ndvi : float or None
    slope : float or None
        Degrees.
    filled_steps : float or None
        Steps of the vegetation series.
    domain_distance : float or None
        See `xsoilsm.domain.distance`.

    Raises
    ------
    ValueError
        When a value is neither None nor a finite number.
    """

    coverage: float | None
    frozen_soil_temperature: float | None
    frozen_air_temperature: float | None
    snow_cover: float | None
    snow_ice_fraction: float | None
    snow_ndvi: float | None
    snow_air_temperature: float | None
    water_fraction: float | None
    built_fraction: float | None
    tree_fraction: float | None
    dense_ndvi: float | None
    slope: float | None
    filled_steps: float | None
    domain_distance: float | None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and math.isfinite(value)):
                msg = f"threshold {field.name} is {value!r}; expected a finite number, or None"
                raise ValueError(msg)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Equal thresholds give equal graphs."""
        return "xsoilsm.Thresholds", *(getattr(self, field.name) for field in fields(self))

    def get(self, name: str) -> float | None:
        """Value of the threshold called `name`."""
        value: float | None = getattr(self, name)
        return value


# --------------------------------------------------------------------------- conditions


@dataclass(frozen=True)
class Term:
    """One comparison.

    Parameters
    ----------
    variable : str
        Variable of the cube, or ``filled_steps``, which is counted from ``ndvi_filled``.
    above : bool
        Whether the value has to be above the threshold, or below it. A missing value is neither.
    threshold : str
        Name in `Thresholds`.
    """

    variable: str
    above: bool
    threshold: str

    @property
    def input(self) -> str:
        """Variable of the cube that is needed."""
        return {"filled_steps": "ndvi_filled"}.get(self.variable, self.variable)


@dataclass(frozen=True)
class Condition:
    """What sets a bit: all of the terms.

    Parameters
    ----------
    flag : QualityFlag
    terms : tuple of Term
    unless : str
        Variable whose value, where it is known, decides instead; empty for none.
    """

    flag: QualityFlag
    terms: tuple[Term, ...]
    unless: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Variables of the cube that are needed."""
        return tuple(term.input for term in self.terms)

    @property
    def is_static(self) -> bool:
        """Whether the outcome is the same for all acquisitions."""
        return _STATIC.issuperset(self.inputs)

    def text(self, thresholds: Thresholds) -> str:
        """Say the condition in words."""
        comparisons = " and ".join(
            f"{term.variable} {'>' if term.above else '<'} {thresholds.get(term.threshold):g}"
            for term in self.terms
        )
        return f"{comparisons} unless {self.unless} is known" if self.unless else comparisons


_STATIC = {"slope", "water_fraction", "built_fraction", "tree_fraction", "snow_ice_fraction"}
_COLD = Term("air_temperature", False, "snow_air_temperature")
_F = QualityFlag

CONDITIONS: tuple[Condition, ...] = (
    Condition(_F.LOW_COVERAGE, (Term("coverage", False, "coverage"),)),
    Condition(_F.SERIES_FILLED, (Term("filled_steps", True, "filled_steps"),)),
    Condition(_F.FROZEN_GROUND, (Term("soil_temperature", False, "frozen_soil_temperature"),)),
    Condition(
        _F.FROZEN_GROUND,
        (Term("air_temperature", False, "frozen_air_temperature"),),
        unless="soil_temperature",
    ),
    Condition(_F.SNOW, (Term("snow_cover", True, "snow_cover"),)),
    Condition(_F.SNOW, (Term("snow_ice_fraction", True, "snow_ice_fraction"),)),
    Condition(_F.SNOW, (Term("ndvi", False, "snow_ndvi"), _COLD), unless="snow_cover"),
    Condition(_F.OPEN_WATER, (Term("water_fraction", True, "water_fraction"),)),
    Condition(_F.BUILT_UP, (Term("built_fraction", True, "built_fraction"),)),
    Condition(_F.DENSE_VEGETATION, (Term("ndvi", True, "dense_ndvi"),)),
    Condition(_F.DENSE_VEGETATION, (Term("tree_fraction", True, "tree_fraction"),)),
    Condition(_F.STEEP_SLOPE, (Term("slope", True, "slope"),)),
)
"""What the surface and the series say; flags of the radar source come from ``source_flags``."""

ALWAYS = (_F.NAN_INPUT, _F.OUT_OF_RANGE, _F.INPUTS_CLIPPED)
"""Flags that need nothing but the inputs of the networks."""

FROM_SOURCE = (_F.NO_SCENE, _F.READ_FAILED, _F.APPROXIMATE_SIGMA0, _F.LAYOVER_SHADOW)
"""Flags that only the radar's loader can tell of, in ``source_flags``."""

LAYOVER_FORMS = ("rtc-slope", "rtc-area")
"""Values of ``sigma0_from`` whose loaders look for layover and shadow."""


def conditions_for(available: Collection[str], thresholds: Thresholds) -> tuple[Condition, ...]:
    """Conditions that can be evaluated.

    Parameters
    ----------
    available : collection of str
        Variables of the cube.
    thresholds : Thresholds

    Returns
    -------
    tuple of Condition
        Those whose inputs are all available and whose thresholds are all given.
    """
    return tuple(
        condition
        for condition in CONDITIONS
        if all(name in available for name in condition.inputs)
        and all(thresholds.get(term.threshold) is not None for term in condition.terms)
    )


def evaluate(
    conditions: Iterable[Condition], thresholds: Thresholds, values: Values, flags: Flags
) -> None:
    """Set the bits of conditions in place, for one acquisition.

    Computes.

    Parameters
    ----------
    conditions : iterable of Condition
    thresholds : Thresholds
    values : mapping of str to (pixel,) ndarray
        NaN, and a coverage of 0, are unknown values and meet no condition.
    flags : (pixel,) ndarray of uint32
    """
    for condition in conditions:
        met: npt.NDArray[np.bool_] | None = None
        for term in condition.terms:
            value, limit = values[term.variable], thresholds.get(term.threshold)
            found = value > limit if term.above else value < limit
            met = found if met is None else met & found
        if met is None or not met.any():
            continue
        if condition.unless in values:
            met &= np.isnan(values[condition.unless])
        if condition.flag == QualityFlag.LOW_COVERAGE:
            met &= values["coverage"] > 0
        mark(flags, met, condition.flag)


def mark(flags: Flags, condition: npt.NDArray[np.bool_], bit: QualityFlag) -> None:
    """Set `bit` in place wherever `condition` holds."""
    np.bitwise_or(flags, FLAG_DTYPE(bit), out=flags, where=condition)


def missing_inputs(available: Collection[str]) -> dict[str, str]:
    """Find the flags that cannot be evaluated, whatever the thresholds.

    Parameters
    ----------
    available : collection of str
        Variables of the cube.

    Returns
    -------
    dict of str to str
        Name of the flag and the variables of which one would do.
    """
    missing: dict[str, str] = {}
    for flag in QualityFlag:
        needed = [c.inputs for c in CONDITIONS if c.flag == flag]
        if flag in FROM_SOURCE:
            needed.append(("source_flags",))
        if needed and not any(all(n in available for n in names) for names in needed):
            missing[name_of(flag)] = " or ".join(" with ".join(names) for names in needed)
    return missing


# --------------------------------------------------------------------------- attributes


def name_of(flag: QualityFlag) -> str:
    """Name of one bit as in ``flag_meanings``."""
    return str(flag.name).lower()


def flag_names(bits: int) -> list[str]:
    """Names of the bits that are set, as in ``flag_meanings``.

    Examples
    --------
    >>> flag_names(24)
    ['low_coverage', 'out_of_range']
    """
    return [name_of(flag) for flag in QualityFlag if int(bits) & int(flag)]


def flag_attributes() -> dict[str, Any]:
    """CF attributes of ``quality_flag``.

    Returns
    -------
    dict
        ``standard_name``, ``flag_masks`` and ``flag_meanings``.
    """
    return {
        "long_name": "quality flags of the soil moisture retrieval",
        "standard_name": "quality_flag",
        "flag_masks": np.array([int(flag) for flag in QualityFlag], dtype=FLAG_DTYPE),
        "flag_meanings": " ".join(name_of(flag) for flag in QualityFlag),
    }


def evaluation_attributes(
    available: Collection[str], thresholds: Thresholds, sigma0_forms: Collection[str] = ()
) -> dict[str, str]:
    """Attributes that say which flags were evaluated, and by what.

    Parameters
    ----------
    available : collection of str
        Variables of the cube.
    thresholds : Thresholds
    sigma0_forms : collection of str
        Values of ``sigma0_from``, which tell whether layover and shadow are known.

    Returns
    -------
    dict of str to str
        ``flags_evaluated_from`` with the conditions, and ``flags_not_evaluated`` with names
        separated by spaces: a bit of theirs that is not set says nothing.
    """
    told: dict[QualityFlag, list[str]] = {}
    for condition in conditions_for(available, thresholds):
        told.setdefault(condition.flag, []).append(condition.text(thresholds))
    if "source_flags" in available:
        for flag in (*FROM_SOURCE, QualityFlag.STEEP_SLOPE):
            told.setdefault(flag, []).append("source_flags")
        knowing = sorted(set(sigma0_forms) & set(LAYOVER_FORMS))
        if not knowing:
            del told[QualityFlag.LAYOVER_SHADOW]
        elif len(knowing) < len(set(sigma0_forms)):
            told[QualityFlag.LAYOVER_SHADOW] = [f"source_flags of {' and '.join(knowing)} alone"]
    if "ndvi_filled" in available and thresholds.filled_steps is not None:
        told.setdefault(QualityFlag.READ_FAILED, []).append("ndvi_filled")
    if "inputs_failed" in available:
        told.setdefault(QualityFlag.READ_FAILED, []).append("inputs_failed")
    if thresholds.domain_distance is not None:
        told[QualityFlag.OUT_OF_DOMAIN] = [f"domain distance > {thresholds.domain_distance:g}"]
    known = {flag: told[flag] for flag in QualityFlag if flag in told}
    unknown = [flag for flag in QualityFlag if flag not in told and flag not in ALWAYS]
    return {
        "flags_evaluated_from": "; ".join(
            f"{name_of(flag)}: {' or '.join(texts)}" for flag, texts in known.items()
        ),
        "flags_not_evaluated": " ".join(name_of(flag) for flag in unknown),
    }


def describe(flag: int) -> list[str]:
    """Explain one value of ``quality_flag`` in words.

    Parameters
    ----------
    flag : int

    Returns
    -------
    list of str
        One sentence per bit that is set; empty for a retrieval without remark.

    Examples
    --------
    >>> describe(8)
    ['low_coverage: valid radar pixels cover too little of the cell']
    """
    return [f"{name_of(bit)}: {MEANINGS[bit]}" for bit in QualityFlag if int(flag) & int(bit)]
