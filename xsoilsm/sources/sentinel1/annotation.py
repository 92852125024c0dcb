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

from xsoilsm.sources.access.links import Access, read_bytes

__all__ = ["IncidenceSurface", "annotation_href", "read_incidence", "read_look"]

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

    def on_grid(self, lon: Floats, lat: Floats) -> Floats:
        """Evaluate the angle on meridians and parallels, which costs little.

        Parameters
        ----------
        lon : (x,) ndarray
        lat : (y,) ndarray
            In degrees.

        Returns
        -------
        (y, x) ndarray of float64
            In degrees.
        """
        x = _wrapped(lon - self.centre[0]) / self.scale[0]
        y = (lat - self.centre[1]) / self.scale[1]
        table = np.zeros((self.degree + 1, self.degree + 1))
        table[_exponents(self.degree)] = self.coefficients
        along, down = (np.vander(v, self.degree + 1, increasing=True) for v in (x, y))
        return np.asarray(down @ table.T @ along.T)


def _wrapped(degrees: Floats) -> Floats:
    return (degrees + 180.0) % 360.0 - 180.0


def _middle(lon: Floats) -> float:
    around = _wrapped(lon - lon[0])
    return float(lon[0] + (around.min() + around.max()) / 2)


def _powers(x: Floats, y: Floats, degree: int) -> Floats:
    return np.stack([x**i * y**j for i, j in zip(*_exponents(degree), strict=True)], axis=-1)


def _exponents(degree: int) -> tuple[list[int], list[int]]:
    """Exponents of x and y in the order of the coefficients."""
    pairs = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]
    return [i for i, _ in pairs], [j for _, j in pairs]


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
    lon, lat, angle = _points(href, access, ("longitude", "latitude", "incidenceAngle"))
    return IncidenceSurface.fit(lon, lat, angle)


@lru_cache(maxsize=256)
def read_look(href: str, access: Access) -> IncidenceSurface:
    """Read an annotation and fit the direction of look. Computes: reads the file, once a process.

    The direction is that on the ground from near to far range, from one point of the
    geolocation grid to the next of the same line. Heights of the points move them along that
    direction only, so they do not disturb it. It is within 0.3 degrees of the direction from the
    satellite; the heading of the platform is 3 to 6 degrees off, because meridians converge on
    the way from below the satellite to the swath.

    Parameters
    ----------
    href : str
        Of the annotation's XML.
    access : Access

    Returns
    -------
    IncidenceSurface
        Azimuth of the look in degrees, clockwise from north, as a function of place; within
        half a turn of its mean, so not wrapped to 0-360.

    Raises
    ------
    OSError
        When the file cannot be read or holds no geolocation grid.
    """
    names = ("longitude", "latitude", "incidenceAngle", "line", "pixel")
    lon, lat, angle, line, pixel = _points(href, access, names)
    order = np.lexsort((pixel, line))
    lon, lat, angle, line = (values[order] for values in (lon, lat, angle, line))
    pairs = np.flatnonzero(line[1:] == line[:-1])
    if not pairs.size:
        msg = f"{href}: its geolocation grid has no line of several points"
        raise OSError(msg)
    middle = (lat[pairs] + lat[pairs + 1]) / 2
    # Far range is where the incidence angle is larger, whichever way pixels are counted.
    sign = np.sign(angle[pairs + 1] - angle[pairs])
    east = sign * _wrapped(lon[pairs + 1] - lon[pairs]) * np.cos(np.deg2rad(middle))
    north = sign * (lat[pairs + 1] - lat[pairs])
    centre = np.rad2deg(np.arctan2(east.mean(), north.mean()))
    azimuth = centre + _wrapped(np.rad2deg(np.arctan2(east, north)) - centre)
    at_lon = lon[pairs] + _wrapped(lon[pairs + 1] - lon[pairs]) / 2
    return IncidenceSurface.fit(at_lon, middle, azimuth)


def _points(href: str, access: Access, names: tuple[str, ...]) -> list[Floats]:
    """Columns of the geolocation grid of an annotation."""
    content = read_bytes(href, access)
    try:
        root = ET.fromstring(content)
        points = list(root.iterfind(".//geolocationGridPoint"))
        columns = [
            np.array([float(point.findtext(name, "nan")) for point in points]) for name in names
        ]
    except (ET.ParseError, ValueError) as error:
        msg = f"{href} is not a Sentinel-1 annotation: {error}"
        raise OSError(msg) from error
    if not points or not np.isfinite(columns).all():
        msg = (
            f"{href} holds no geolocation grid with {', '.join(names)}; expected the annotation "
            "of a GRD product"
        )
        raise OSError(msg)
    return columns
