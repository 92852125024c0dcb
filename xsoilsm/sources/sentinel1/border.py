"""Step 3 of 7 (load): the outer border of a pass, where fringes of noise lie.

Before 2018 the processor left faint numbers along the border of its images, which are neither
zero nor backscatter (ESA, Masking "No-value" pixels on GRD products, OI-MPC-OTH-MPCS). Pixels
within a chosen distance of a wide empty area do not count. Where one slice goes on into the next
nothing is taken away but what lies deep inside the other: there is no border between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xsoilsm.sources.pixels.mesh import MESH, mesh_lonlat, spread
from xsoilsm.sources.pixels.reading import Patch

__all__ = ["Border", "erosion"]

HOLE = 5
"""Empty areas up to twice this wide, in pixels, are holes in the image and not its border."""

TOLERANCE = 1500.0
"""Metres within which a footprint follows the data."""

Bools = npt.NDArray[np.bool_]

_METRE = 180.0 / np.pi / 6371008.8


def erosion(valid: Bools, pixels: int) -> Bools:
    """Pixels within a distance of a wide empty area.

    Parameters
    ----------
    valid : (y, x) ndarray of bool
        What lies beyond the array counts as empty.
    pixels : int
        Distance along rows and columns.

    Returns
    -------
    (y, x) ndarray of bool
        Empty ones included.
    """
    from scipy.ndimage import maximum_filter1d, minimum_filter1d

    rim = pixels + 2 * HOLE
    wide = np.pad((~valid).astype(np.uint8), rim, constant_values=1)
    for axis in (0, 1):
        wide = minimum_filter1d(wide, 2 * HOLE + 1, axis, mode="constant", cval=1)
    for axis in (0, 1):
        wide = maximum_filter1d(wide, 2 * (HOLE + pixels) + 1, axis, mode="constant", cval=0)
    near: Bools = wide[rim:-rim, rim:-rim].astype(bool)
    return near


@dataclass(frozen=True)
class Border:
    """Where the border of a slice is a border of the whole pass.

    Parameters
    ----------
    pixels : int
        Width of the erosion.
    own : bytes
        WKB of the slice's footprint in lon/lat.
    others : sequence of bytes
        Those of the other slices of the pass.
    """

    pixels: int
    own: bytes
    others: Sequence[bytes]

    @property
    def reach(self) -> int:
        """Pixels around a window that have to be read with it."""
        return self.pixels + 2 * HOLE

    def near(self, patch: Patch) -> Bools:
        """Pixels of a window near the outer border, or inside of another slice.

        Parameters
        ----------
        patch : Patch

        Returns
        -------
        (y, x) ndarray of bool
        """
        import shapely

        lon, lat = mesh_lonlat(patch)
        middle = float(np.cos(np.deg2rad(lat.mean())))
        centre = float(lon.mean())

        def metres(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            x = (points[:, 0] - centre + 180.0) % 360.0 - 180.0
            return np.stack([x * middle, points[:, 1]], axis=1) / _METRE

        def shape(footprint: bytes) -> Any:
            return shapely.transform(shapely.from_wkb(footprint), metres)

        here, others = shape(self.own), shapely.union_all([shape(x) for x in self.others])
        whole = shapely.union_all([here, others]).buffer(TOLERANCE).buffer(-TOLERANCE)
        at = metres(np.stack([lon.ravel(), lat.ravel()], axis=1))
        points = shapely.points(at)
        size = self._pixel(at, lon.shape)
        distance = shapely.distance(whole.boundary, points)
        outer = (distance <= self.reach * size + TOLERANCE) | ~shapely.contains(whole, points)
        # Deep inside another slice, where it is not near its own border.
        depth = TOLERANCE + (self.reach + MESH) * size
        shared = shapely.contains(others.buffer(-depth), points)
        found: Bools = spread((outer | shared).reshape(lon.shape).astype(np.float64), patch) > 0.25
        return found

    @staticmethod
    def _pixel(at: npt.NDArray[np.float64], shape: tuple[int, ...]) -> float:
        """Side of a pixel in m, from the distance of neighbouring points of the mesh."""
        grid = at.reshape(*shape, 2)
        return float(np.linalg.norm(grid[0, 1] - grid[0, 0])) / MESH
