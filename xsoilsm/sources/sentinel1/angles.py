"""Step 3 of 7 (load): angle and slope of an acquisition whose pixels were loaded elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xsoilsm.catalog import CatalogError
from xsoilsm.sources.access.search import cell_lonlat, lonlat_bounds
from xsoilsm.sources.ground.elevation import DemTile, Elevations
from xsoilsm.sources.sentinel1.acquisitions import Acquisition
from xsoilsm.sources.sentinel1.annotation import (
    IncidenceSurface,
    annotation_href,
    read_incidence,
    read_look,
)
from xsoilsm.sources.sentinel1.flattening import Slopes, flat_decibels
from xsoilsm.sources.sentinel1.grd import GrdAcquisition

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

__all__ = ["BANDS", "angles_of", "read_angles"]

BANDS = ("incidence_angle", "decibels", "beyond")
"""Order of the bands that :func:`read_angles` gives."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Angles:
    """Angles of one slice, read when they are called."""

    footprint: bytes
    incidence: Callable[[], IncidenceSurface]
    look: Callable[[], IncidenceSurface]


def angles_of(acquisition: Acquisition | GrdAcquisition) -> list[_Angles]:
    """Where the angles of each slice come from. Lazy: reads nothing.

    Raises
    ------
    CatalogError
        When the source of the acquisition has none.
    """
    if isinstance(acquisition, GrdAcquisition):
        found = []
        for slice_ in acquisition.slices:
            link = annotation_href(slice_.vv.href), slice_.vv.access
            found.append(
                _Angles(slice_.footprint, partial(read_incidence, *link), partial(read_look, *link))
            )
        return found
    bare = [piece.id for piece in acquisition.slices if not piece.has_angles]
    if bare:
        msg = (
            f"the catalog knows no annotation of item '{bare[0]}', which would hold the incidence "
            "angle; pass incidence_angle, or take a catalog with Sentinel-1 GRD"
        )
        raise CatalogError(msg)
    return [
        _Angles(piece.footprint, piece.read_incidence, piece.read_look)
        for piece in acquisition.slices
    ]


def read_angles(
    acquisition: Acquisition | GrdAcquisition,
    target: GeoBox,
    sloped: bool,
    dem: tuple[DemTile, ...] = (),
    on_error: str = "flag",
) -> Floats:
    """Read what turns gamma nought of cells into sigma nought. Computes: reads annotations.

    Where slices meet, each cell takes the angle of the slice that holds it, or is nearest.

    Parameters
    ----------
    acquisition : Acquisition or GrdAcquisition
    target : GeoBox
        A chunk of the cube.
    sloped : bool
        Use the slope of the terrain; reads the elevation models too.
    dem : tuple of DemTile
    on_error : {"flag", "raise"}
        Where a file cannot be read, the cells are NaN, or an error is raised.

    Returns
    -------
    (3, 1, y, x) ndarray of float32
        The bands of :data:`BANDS`: degrees, decibels to add to gamma nought, share of the cell
        in or near layover or shadow.

    Raises
    ------
    OSError
        When a file cannot be read and `on_error` is ``"raise"``.
    """
    import shapely

    lon, lat = np.meshgrid(*cell_lonlat(target))
    result = np.full((len(BANDS), *target.shape), np.nan, dtype=np.float32)
    known = angles_of(acquisition)
    points = shapely.points(np.stack([lon.ravel(), lat.ravel()], axis=1))
    distance = [shapely.distance(shapely.from_wkb(x.footprint), points) for x in known]
    nearest = np.argmin(distance, axis=0).reshape(lon.shape)
    models = Elevations(dem, lonlat_bounds(target), on_error) if sloped else None
    for number, angles in enumerate(known):
        here = nearest == number
        if not here.any():
            continue
        try:
            surface = angles.incidence()
            theta = surface(lon, lat)
            if models is None:
                decibels: npt.NDArray[Any] = flat_decibels(theta)
                beyond: npt.NDArray[Any] = np.zeros_like(theta)
            else:
                decibels, beyond = Slopes(models, surface, angles.look()).cells(target)
        except OSError:
            if on_error == "raise":
                raise
            continue
        result[:, here] = np.stack([theta, decibels, beyond])[:, here]
    return result[:, None]
