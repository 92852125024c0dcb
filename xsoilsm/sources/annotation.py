"""Step 3 of 7 (load): the incidence angle from the annotation of a Sentinel-1 GRD product.

The annotation holds the incidence angle on the ellipsoid at the points of a geolocation grid
(about 10 by 21 a slice); it is what Earth Engine serves as ``angle`` and what the networks were
trained with. A cubic polynomial in longitude and latitude, fitted to the points of a slice,
follows it within 0.03 degrees at points that were left out of the fit; what remains is relief.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from xsoilsm.sources.search import Access, read_bytes

__all__ = ["IncidenceSurface", "annotation_href", "read_incidence"]

DEGREE = 3
"""Degree of the polynomial in longitude and latitude."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class IncidenceSurface:
    """Incidence angle of one slice as a polynomial in longitude and latitude.

    Parameters
    ----------
    centre : (float, float)
        Longitude and latitude in degrees of the middle of the slice.
    scale : (float, float)
        Half the extent of the slice in degrees.
    degree : int
    coefficients : tuple of float
        In degrees.
    """

    centre: tuple[float, float]
    scale: tuple[float, float]
    degree: int
    coefficients: tuple[float, ...]

    @classmethod
    def fit(cls, lon: Floats, lat: Floats, angle: Floats) -> IncidenceSurface:
        """Fit the polynomial to points by least squares.

        Parameters
        ----------
        lon, lat, angle : (n,) ndarray of float
            In degrees.

        Returns
        -------
        IncidenceSurface
        """
        centre = _middle(lon), float((lat.min() + lat.max()) / 2)
        x, y = _wrapped(lon - centre[0]), lat - centre[1]
        scale = max(float(np.abs(x).max()), 1e-6), max(float(np.abs(y).max()), 1e-6)
        degree = DEGREE
        while degree > 0 and (degree + 1) * (degree + 2) // 2 > angle.size:
            degree -= 1
        design = _powers(x / scale[0], y / scale[1], degree)
        coefficients = np.linalg.lstsq(design, angle, rcond=None)[0]
        return cls(centre, scale, degree, tuple(coefficients.tolist()))

    def __call__(self, lon: npt.ArrayLike, lat: npt.ArrayLike) -> Floats:
        """Evaluate the angle at points.

        Parameters
        ----------
        lon, lat : array_like
            In degrees, of one shape.

        Returns
        -------
        ndarray of float64
            In degrees.
        """
        x = _wrapped(np.asarray(lon, dtype=np.float64) - self.centre[0]) / self.scale[0]
        y = (np.asarray(lat, dtype=np.float64) - self.centre[1]) / self.scale[1]
        design = _powers(x.ravel(), y.ravel(), self.degree)
        return np.asarray(design @ np.array(self.coefficients)).reshape(x.shape)


def _wrapped(degrees: Floats) -> Floats:
    return (degrees + 180.0) % 360.0 - 180.0


def _middle(lon: Floats) -> float:
    around = _wrapped(lon - lon[0])
    return float(lon[0] + (around.min() + around.max()) / 2)


def _powers(x: Floats, y: Floats, degree: int) -> Floats:
    terms = [x**i * y**j for i in range(degree + 1) for j in range(degree + 1 - i)]
    return np.stack(terms, axis=-1)


def annotation_href(measurement: str) -> str:
    """Address of the annotation that belongs to a GRD measurement.

    The path follows from the measurement's own: the asset that items call the product schema
    can be the annotation of radio frequency interference instead.

    Parameters
    ----------
    measurement : str
        For instance ``.../measurement/iw-vv.tiff``.

    Returns
    -------
    str
        For instance ``.../annotation/iw-vv.xml``.

    Raises
    ------
    ValueError
        When the address does not have that form.

    Examples
    --------
    >>> annotation_href("https://host/S1A_IW/measurement/iw-vv.tiff")
    'https://host/S1A_IW/annotation/iw-vv.xml'
    """
    folder, separator, name = measurement.rpartition("/measurement/")
    stem, dot, suffix = name.rpartition(".")
    if not separator or not dot or suffix.lower() not in ("tif", "tiff") or "/" in name:
        msg = (
            f"cannot tell where the annotation of {measurement} lies; expected "
            "<product>/measurement/<name>.tiff"
        )
        raise ValueError(msg)
    return f"{folder}/annotation/{stem}.xml"


@lru_cache(maxsize=256)
def read_incidence(href: str, access: Access) -> IncidenceSurface:
    """Read an annotation and fit its incidence angle. Computes: reads the file, once a process.

    Parameters
    ----------
    href : str
        Of the annotation's XML.
    access : Access

    Returns
    -------
    IncidenceSurface

    Raises
    ------
    OSError
        When the file cannot be read or holds no geolocation grid.
    """
    content = read_bytes(href, access)
    try:
        root = ET.fromstring(content)
        points = list(root.iterfind(".//geolocationGridPoint"))
        columns = [
            np.array([float(point.findtext(name, "nan")) for point in points])
            for name in ("longitude", "latitude", "incidenceAngle")
        ]
    except (ET.ParseError, ValueError) as error:
        msg = f"{href} is not a Sentinel-1 annotation: {error}"
        raise OSError(msg) from error
    if not points or not np.isfinite(columns).all():
        msg = (
            f"{href} holds no geolocation grid with longitude, latitude and incidenceAngle; "
            "expected the annotation of a GRD product"
        )
        raise OSError(msg)
    lon, lat, angle = columns
    return IncidenceSurface.fit(lon, lat, angle)
