"""Step 3 of 7 (load): the fringe of noise along the border of old Sentinel-1 GRD images.

Until the processor's version 2.90 (March 2018) the border of GRD images holds small numbers
above zero where there was no echo (Ali et al. 2018, doi 10.1109/JSTARS.2017.2787650, describe
it). Every echo comes with thermal noise, so where the mean of DN squared around a pixel stays
below the noise that the product's own table states there was none. From each edge inward pixels
are dropped as far as that holds, and some more because the fringe fades in gradually.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter

__all__ = ["REACH", "WINDOW", "fringe"]

REACH = 500
"""Distance in pixels from the image's edge up to which a fringe is looked for."""

WINDOW = 9
"""Side in pixels of the window over which DN squared is averaged."""

_SHARE = 0.5  # of the stated noise; speckle of the mean over a window is about a tenth
_LEAST = 9.0  # DN squared, where a product states no noise
_MORE = 12  # pixels dropped beyond the last that is too dark

Bools = npt.NDArray[np.bool_]


def fringe(
    numbers: npt.NDArray[np.generic],
    noise: npt.NDArray[np.float32],
    first: tuple[int, int],
    image: tuple[int, int],
) -> Bools:
    """Find the pixels of a window that belong to the fringe. Computes.

    Parameters
    ----------
    numbers : (line, pixel) ndarray
        Digital numbers.
    noise : (line, pixel) ndarray of float32
        Thermal noise as the square of a digital number.
    first : (int, int)
        Line and pixel of the window's first pixel.
    image : (int, int)
        Lines and pixels of the image. A window that comes within `REACH` of an edge has to
        reach up to it.

    Returns
    -------
    (line, pixel) ndarray of bool

    Raises
    ------
    ValueError
        When the window comes near an edge and does not reach it.
    """
    height, width = numbers.shape
    drop = np.zeros((height, width), dtype=bool)
    beyond = image[0] - first[0] - height, image[1] - first[1] - width
    sides = (
        (first[1], numbers, noise, drop),
        (beyond[1], numbers[:, ::-1], noise[:, ::-1], drop[:, ::-1]),
        (first[0], numbers.T, noise.T, drop.T),
        (beyond[0], numbers[::-1].T, noise[::-1].T, drop[::-1].T),
    )
    for distance, values, level, target in sides:
        if distance >= REACH:
            continue
        if distance > 0:
            msg = (
                f"the window begins {distance} pixels from the edge of the image; within {REACH} "
                "it has to begin at the edge"
            )
            raise ValueError(msg)
        _drop(values[:, :REACH], level[:, :REACH], target[:, :REACH])
    return drop


def _drop(numbers: npt.NDArray[np.generic], noise: npt.NDArray[np.float32], drop: Bools) -> None:
    """Mark what lies between the left edge and the first echo of each row."""
    power = numbers.astype(np.float32)
    np.multiply(power, power, out=power)
    mean = uniform_filter(power, WINDOW, mode="nearest")
    echo = (mean > np.maximum(_SHARE * noise, _LEAST)) & (power > 0)
    begin = np.where(echo.any(axis=1), echo.argmax(axis=1), echo.shape[1])
    reach = np.where(begin > 0, begin + _MORE, 0)
    drop |= np.arange(echo.shape[1]) < reach[:, None]
