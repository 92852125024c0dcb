"""Step 6 of 7 (explain): quality flags, their bits and their meanings.

One integer variable, ``quality_flag``, says why a value is missing or to be used with care.
A flag marks; it never erases. Pure functions of arrays.

Conventions: CF-1.11, section 3.5 (``flag_masks`` and ``flag_meanings``).
"""

from __future__ import annotations

from enum import IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FLAG_DTYPE", "VALID_RANGE", "QualityFlag", "describe", "flag_attributes"]

FLAG_DTYPE = np.uint32
"""Integer type of ``quality_flag``."""

VALID_RANGE = (0.0, 0.6)
"""Retrievals outside these bounds in m3 m-3 are invalid (Zhu et al. 2024, inversion rate)."""


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
    QualityFlag.LOW_COVERAGE: "valid pixels cover less than half of the cell",
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
        "flag_meanings": " ".join(str(flag.name).lower() for flag in QualityFlag),
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
    ['low_coverage: valid pixels cover less than half of the cell']
    """
    return [
        f"{str(bit.name).lower()}: {MEANINGS[bit]}" for bit in QualityFlag if int(flag) & int(bit)
    ]


def mark(flags: npt.NDArray[np.uint32], condition: npt.NDArray[np.bool_], bit: QualityFlag) -> None:
    """Set `bit` in place wherever `condition` holds."""
    np.bitwise_or(flags, FLAG_DTYPE(bit), out=flags, where=condition)
