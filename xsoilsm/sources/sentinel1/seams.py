"""Step 3 of 7 (load): where slices of a pass overlap, each piece of ground counts once.

Slices hold the same echoes where they overlap: a line of pixels along the seams of
terrain-corrected images, a tenth of each burst of OPERA. The first slice in time that has a
value at the middle of a pixel keeps it. Where slices share a grid that is exact, pixel by pixel;
where they lie in two zones the seam follows the pixels of the later one, half a pixel at most
from where it should be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import shapely

from xsoilsm.sources.pixels.mesh import mesh_lonlat, spread, to_plane
from xsoilsm.sources.pixels.reading import Patch

__all__ = ["Seams"]

_ROOM = 0.02  # degrees within which a footprint follows the data

Bools = npt.NDArray[np.bool_]


class Seams:
    """Pixels that the slices of a pass hold so far, near other slices alone.

    Parameters
    ----------
    footprints : sequence of bytes
        WKB in lon/lat of the slices, in the order in which they are added.
    """

    def __init__(self, footprints: Sequence[bytes]) -> None:
        self._outlines = [shapely.from_wkb(x).buffer(_ROOM) for x in footprints]
        self._slice = -1
        self._kept: list[list[tuple[Patch, Bools]]] = []

    def begin(self) -> None:
        """Go on to the next slice."""
        self._slice += 1
        self._kept.append([])

    def held(self, patch: Patch) -> Bools | None:
        """Pixels of a window that earlier slices hold already; None where there are none.

        Parameters
        ----------
        patch : Patch
            Of the present slice.

        Returns
        -------
        (y, x) ndarray of bool or None
        """
        found: Bools | None = None
        for other, valid in (pair for kept in self._kept[: self._slice] for pair in kept):
            place = _shared(patch, other)
            if place is None:
                continue
            found = np.zeros(patch.geobox.shape, dtype=bool) if found is None else found
            if len(place) == 2:
                here, there = place
                found[here] |= valid[there]
            else:
                inside, row, column = place
                found[inside] |= valid[row, column]
        return found

    def keep(self, patch: Patch, valid: Bools) -> None:
        """Remember the pixels of a window that count, where a later slice may see them too."""
        later = self._outlines[self._slice + 1 :]
        if not later or not valid.any():
            return
        lon, lat = mesh_lonlat(patch)
        window = shapely.MultiPoint(np.stack([lon.ravel(), lat.ravel()], axis=1)).convex_hull
        if any(outline.intersects(window) for outline in later):
            self._kept[self._slice].append((patch, valid))


_Place = (
    tuple[tuple[slice, slice], tuple[slice, slice]]
    | tuple[Bools, npt.NDArray[np.intp], npt.NDArray[np.intp]]
)


def _shared(patch: Patch, other: Patch) -> _Place | None:
    """Pixels of a window whose middles lie in another one, and which pixels of that they are.

    Two pairs of slices on one grid; otherwise a mask, rows and columns.
    """
    a, b = patch.geobox.affine, other.geobox.affine
    height, width = patch.geobox.shape
    rows, columns = other.geobox.shape
    if patch.geobox.crs == other.geobox.crs and (a.a, a.b, a.d, a.e) == (b.a, b.b, b.d, b.e):
        if a.b == 0 == a.d:
            # Grids that are shifted by a part of a pixel: the pixel around the middle.
            down, across = (int(np.floor(x + 0.5)) for x in ((a.f - b.f) / a.e, (a.c - b.c) / a.a))
            top, left = max(-down, 0), max(-across, 0)
            bottom, right = min(rows - down, height), min(columns - across, width)
            if top >= bottom or left >= right:
                return None
            here = slice(top, bottom), slice(left, right)
            return here, (slice(top + down, bottom + down), slice(left + across, right + across))
    lon, lat = mesh_lonlat(patch)
    x, y = to_plane("EPSG:4326", str(other.geobox.crs)).transform(lon, lat)
    back = ~b
    column, row = back.a * x + back.b * y + back.c, back.d * x + back.e * y + back.f
    if row.max() < 0 or column.max() < 0 or row.min() >= rows or column.min() >= columns:
        return None
    at_row = np.floor(spread(row, patch)).astype(np.intp)
    at_column = np.floor(spread(column, patch)).astype(np.intp)
    inside: Bools = (at_row >= 0) & (at_row < rows) & (at_column >= 0) & (at_column < columns)
    return (inside, at_row[inside], at_column[inside]) if inside.any() else None
