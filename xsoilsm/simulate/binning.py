"""Outside the seven steps (simulate): from the land's cells to grids of other projections.

Nothing is read.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from xsoilsm.simulate.items import Json, polygon
from xsoilsm.simulate.land import Place

__all__ = ["Binning", "outline"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def outline(geobox: GeoBox, crs: str, digits: int) -> Json:
    """Outline of a grid as GeoJSON.

    Parameters
    ----------
    geobox : GeoBox
    crs : str
        Its coordinate reference system.
    digits : int
        Decimals of the degrees.

    Returns
    -------
    dict
        The polygon of the four corners.
    """
    affine, (height, width) = geobox.affine, geobox.shape
    left, right = affine.c, affine.c + affine.a * width
    bottom, top = affine.f + affine.e * height, affine.f
    to_lonlat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    lon, lat = to_lonlat.transform(
        [right, right, left, left, right], [top, bottom, bottom, top, top]
    )
    return polygon([(round(x, digits), round(y, digits)) for x, y in zip(lon, lat, strict=True)])


class Binning:
    """Means of the land's cells over pixels of another projection.

    Parameters
    ----------
    place : Place
        The cells are those of its `geobox`.
    crs : str
    size : float
        Side of a pixel in m.
    origin : (float, float)
        Easting and northing of the upper left corner of pixel (0, 0).

    Attributes
    ----------
    first : (int, int)
        Row and column of the first pixel that holds land.
    shape : (int, int)
        Rows and columns of pixels from there.

    Raises
    ------
    ValueError
        When the land cannot be projected, or a cut of the projection runs through it.
    """

    def __init__(self, place: Place, crs: str, size: float, origin: tuple[float, float]) -> None:
        rows, columns = place.geobox.shape
        affine = place.geobox.affine
        parts = max(round(affine.a / 50), 1)  # a cell's parts of some 50 m count on their own
        x = affine.c + (np.arange(columns * parts) + 0.5) / parts * affine.a
        y = affine.f + (np.arange(rows * parts) + 0.5) / parts * affine.e
        project = Transformer.from_crs("EPSG:6933", crs, always_xy=True)
        east, north = project.transform(*np.meshgrid(x, y))
        if not np.isfinite(east).all():
            msg = f"the region at {place.centre} cannot be projected to {crs}; move it"
            raise ValueError(msg)
        column = np.floor((east - origin[0]) / size).astype(np.int64)
        row = np.floor((origin[1] - north) / size).astype(np.int64)
        self.first = int(row.min()), int(column.min())
        self.shape = int(row.max()) - self.first[0] + 1, int(column.max()) - self.first[1] + 1
        if self.shape[0] * self.shape[1] > 40 * rows * columns:
            msg = f"the region at {place.centre} lies across a cut of the projection {crs}; move it"
            raise ValueError(msg)
        flat = (row - self.first[0]) * self.shape[1] + column - self.first[1]
        self._pixel = flat.reshape(rows, parts, columns, parts)
        self._size = self.shape[0] * self.shape[1]
        self._count = np.bincount(self._pixel.ravel(), minlength=self._size)

    def mean(self, values: Float32, where: npt.NDArray[np.bool_] | None = None) -> Float64:
        """Average over each pixel.

        Parameters
        ----------
        values : (y, x) ndarray
            On the land's cells.
        where : (y, x) ndarray of bool, optional
            Cells that count.

        Returns
        -------
        ndarray
            Of `shape`; NaN where no cell counts.
        """
        spread = np.broadcast_to(values[:, None, :, None], self._pixel.shape)
        pixel = self._pixel
        if where is not None:
            chosen = np.broadcast_to(where[:, None, :, None], pixel.shape)
            spread, pixel = spread[chosen], pixel[chosen]
        total = np.bincount(pixel.ravel(), spread.ravel(), self._size)
        count = self._count
        if where is not None:
            count = np.bincount(pixel.ravel(), minlength=self._size)
        with np.errstate(invalid="ignore"):
            return np.asarray(total / count).reshape(self.shape)
