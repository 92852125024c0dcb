"""Step 3 of 7 (load): heights above the ellipsoid of any points, from elevation models.

A radar image is located with heights above the ellipsoid. Elevation models give heights above a
geoid; the geoid comes from the catalog where that states one number, else from a PROJ grid where
one is installed on the machine that sets up the cube, else from the scene: the median difference
between the annotation's own ellipsoidal heights and the model. Which was used is recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from xsoilsm.sources.ground.elevation import DemTile, Elevations
from xsoilsm.sources.pixels.mesh import to_plane
from xsoilsm.sources.sentinel1.geocode import GeolocationGrid, geoid_grid, scene_offset

__all__ = ["HeightSource", "height_source"]

Floats = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

_POINTS = 70  # of a geolocation grid at which the model is read; each needs a read of its own


@dataclass(frozen=True)
class HeightSource:
    """Elevation models, as they travel in a graph.

    Parameters
    ----------
    tiles : tuple of DemTile
    datum : str
        Vertical datum: ``"EGM96"``, ``"EGM2008"``, ``"ellipsoid"``, or anything else for unknown.
    geoid : {"constant", "grid", "scene"}
        Where the geoid comes from: `constant`, a PROJ grid, or the scene's annotation.
    constant : float
        Height in m of the datum above the ellipsoid.
    """

    tiles: tuple[DemTile, ...]
    datum: str
    geoid: Literal["constant", "grid", "scene"]
    constant: float = 0.0

    @property
    def record(self) -> str:
        """What was done, in words."""
        if self.geoid == "constant":
            return f"elevation model and geoid {self.constant:g} m above the ellipsoid"
        if self.geoid == "grid":
            return f"elevation model and geoid {self.datum} of a PROJ grid"
        return "elevation model and geoid of the scene (median of annotated heights minus model)"

    def offset(self, grid: GeolocationGrid) -> float:
        """Height in m to add to the models' own; 0 where a PROJ grid adds the geoid.

        Computes: reads the models at points of the geolocation grid of a slice.

        Parameters
        ----------
        grid : GeolocationGrid

        Raises
        ------
        OSError
            When a tile cannot be read.
        """
        if self.geoid == "constant":
            return self.constant
        # A worker may lack the grid that the machine which set up the cube has.
        if self.geoid == "grid" and geoid_grid(self.datum) is not None:
            return 0.0
        return scene_offset(grid.thinned(_POINTS), self._one_by_one)[0]

    def _one_by_one(self, lon: Floats, lat: Floats) -> Floats:
        """Elevations of points that lie far apart; NaN where there is none."""
        pairs = zip(lon, lat, strict=True)
        return np.array([self.elevations(np.array([x]), np.array([y]))[0][0] for x, y in pairs])

    def heights(self, lon: Floats, lat: Floats, offset: float) -> Float32:
        """Heights above the ellipsoid of points that lie together. Computes: reads around them.

        Points outside of all tiles lie on the sea; where tiles hold no value, points take the
        median of those around.

        Parameters
        ----------
        lon, lat : ndarray of one shape
            Degrees.
        offset : float
            From `offset`.

        Returns
        -------
        ndarray of float32
            m.

        Raises
        ------
        OSError
            When a tile cannot be read.
        """
        found, covered = self.elevations(lon, lat)
        void = covered & np.isnan(found)
        if void.any():
            known = found[~np.isnan(found)]
            found[void] = np.median(known) if known.size else 0.0
        found[~covered] = 0.0
        way = geoid_grid(self.datum) if self.geoid == "grid" else None
        if way is not None:
            found = np.asarray(way.transform(lon, lat, found)[2])
        return np.asarray(found + offset, dtype=np.float32)

    def elevations(self, lon: Floats, lat: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Elevations of points above the models' own zero. Computes: reads around them.

        Parameters
        ----------
        lon, lat : ndarray of one shape
            Degrees.

        Returns
        -------
        elevations : ndarray
            m; NaN where no model has a value.
        covered : ndarray of bool
            Whether a point lies in a tile.
        """
        bounds = float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())
        models = Elevations(self.tiles, bounds, "raise")
        found = np.full(lon.shape, np.nan)
        covered = np.zeros(lon.shape, dtype=bool)
        for rank in models.ranks:
            if not np.isnan(found).any():
                break
            for lattice in models.lattices(rank):
                missing = np.isnan(found)
                plane = to_plane("EPSG:4326", str(lattice.first.crs))
                x, y = (np.asarray(v) for v in plane.transform(lon[missing], lat[missing]))
                found[missing] = lattice.sample(x, y, _give_up)
                covered[missing] |= lattice.covers(x, y)
        return found, covered


def _give_up(error: OSError) -> None:
    """Let no tile be missing: without heights nothing can be located."""
    raise error


def height_source(
    tiles: tuple[DemTile, ...], datum: str, constant: float | None = None
) -> HeightSource:
    """Make a source of heights, and decide where its geoid comes from.

    Lazy: reads no tile.

    Parameters
    ----------
    tiles : tuple of DemTile
    datum : str
    constant : float, optional
        Height in m of the datum above the ellipsoid.

    Returns
    -------
    HeightSource
    """
    if datum.lower() == "ellipsoid":
        constant = 0.0
    if constant is not None:
        return HeightSource(tiles, datum, "constant", constant)
    return HeightSource(tiles, datum, "grid" if geoid_grid(datum) is not None else "scene")
