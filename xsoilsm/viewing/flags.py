"""Outside the seven steps (look): quality flags as colours.

Each bit has one colour. Where several chosen bits are set, the lowest one shows: the lower bits
say that there is no value, the higher ones that it is to be used with care.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xsoilsm.quality import MEANINGS, QualityFlag

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["COLOURS", "colour", "legend"]

_CODES = (
    "#bdbdbd #d73027 #7f7f7f #969696 #f46d43 #fdae61 #dfc27d #c2a5cf "
    "#4393c3 #d1e5f0 #2166ac #8c510a #1b7837 #bf812d #542788 #c51b7d"
)
COLOURS = dict(zip(QualityFlag, _CODES.split(), strict=True))
"""Colour of each bit."""


def legend() -> list[dict[str, Any]]:
    """Bits with their names, meanings and colours. Lazy: reads nothing.

    Returns
    -------
    list of dict
        ``bit``, ``name``, ``meaning``, ``colour``.
    """
    return [
        {
            "bit": int(flag),
            "name": str(flag.name).lower().replace("_", " "),
            "meaning": MEANINGS[flag],
            "colour": COLOURS[flag],
        }
        for flag in QualityFlag
    ]


def colour(
    values: npt.NDArray[np.integer[Any]], chosen: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Colour the cells that have one of the chosen flags, hatched. Computes.

    Parameters
    ----------
    values : (y, x) array of int
        ``quality_flag``.
    chosen : int
        Bits that are wanted.

    Returns
    -------
    rgb : (3, y, x) array of uint8
    shown : (y, x) array of bool
        Cells with a colour: two of four diagonals, so that the map below can be seen.
    """
    rgb = np.zeros((3, *values.shape), dtype=np.uint8)
    flagged = (values & np.asarray(chosen, dtype=values.dtype)) != 0
    for flag in reversed(list(QualityFlag)):
        if int(flag) & chosen:
            here = (values & np.asarray(int(flag), dtype=values.dtype)) != 0
            code = COLOURS[flag]
            for band in range(3):
                rgb[band][here] = int(code[1 + 2 * band : 3 + 2 * band], 16)
    diagonal = np.add.outer(np.arange(values.shape[0]), np.arange(values.shape[1]))
    return rgb, flagged & (diagonal % 8 < 4)
