"""Range-Doppler geometry from the orbit of a Sentinel-1 annotation, for tests.

Written on its own: state vectors, the zero-Doppler condition and the annotation's polynomials.
It shares no code with the package, which works from the geolocation grid.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from pyproj import Transformer
from scipy.interpolate import CubicHermiteSpline

LIGHT = 299792458.0
TO_EARTH = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
FROM_EARTH = Transformer.from_crs("EPSG:4978", "EPSG:4979", always_xy=True)


class RangeDoppler:
    """Geometry of one image.

    Parameters
    ----------
    annotation : Path
    """

    def __init__(self, annotation: Path) -> None:
        root = ET.parse(annotation).getroot()
        self._epoch = np.datetime64(str(root.findtext(".//productFirstLineUtcTime")), "ns")
        self._interval = float(str(root.findtext(".//azimuthTimeInterval")))
        self.shape = (
            int(str(root.findtext(".//numberOfLines"))),
            int(str(root.findtext(".//numberOfSamples"))),
        )
        states = list(root.iter("orbit"))
        position, velocity = (
            np.array([[float(str(s.findtext(f"{kind}/{axis}"))) for axis in "xyz"] for s in states])
            for kind in ("position", "velocity")
        )
        self._position = CubicHermiteSpline(
            np.array([self._seconds(str(s.findtext("time"))) for s in states]), position, velocity
        )
        self._velocity = self._position.derivative()
        self._acceleration = self._position.derivative(2)
        updates = [u for u in root.iter("coordinateConversion") if u.find("sr0") is not None]
        self._update = np.array([self._seconds(str(u.findtext("azimuthTime"))) for u in updates])
        self._origin = np.array([float(str(u.findtext("sr0"))) for u in updates])
        self._srgr, self._grsr = (
            np.array([np.array(str(u.findtext(name)).split(), float) for u in updates])
            for name in ("srgrCoefficients", "grsrCoefficients")
        )

    def _seconds(self, instant: str) -> float:
        return float((np.datetime64(instant, "ns") - self._epoch) / np.timedelta64(1, "ns")) * 1e-9

    def _polynomial(self, coefficients: Any, time: Any, x: Any) -> Any:
        """Polynomials of the two updates around a time, linear in time between them."""
        k = np.clip(np.searchsorted(self._update, time) - 1, 0, self._update.size - 2)
        share = (time - self._update[k]) / (self._update[k + 1] - self._update[k])
        powers = np.arange(coefficients.shape[1])
        low, high = ((coefficients[j] * x(j)[..., None] ** powers).sum(-1) for j in (k, k + 1))
        return (1 - share) * low + share * high

    def _zero_doppler(self, point: Any) -> Any:
        time = np.full(point.shape[:-1], 12.0)
        for _ in range(7):
            line = point - self._position(time)
            velocity = self._velocity(time)
            slope = (line * self._acceleration(time)).sum(-1) - (velocity**2).sum(-1)
            time = time - (line * velocity).sum(-1) / slope
        return time

    def locate(self, lon: Any, lat: Any, height: Any) -> tuple[Any, Any, Any]:
        """Line, pixel and incidence angle in degrees of ground points."""
        point = np.stack(TO_EARTH.transform(*np.broadcast_arrays(lon, lat, height)), axis=-1)
        time = self._zero_doppler(point)
        satellite = self._position(time)
        slant = np.linalg.norm(point - satellite, axis=-1)
        pixel = self._polynomial(self._srgr, time, lambda k: slant - self._origin[k]) / 10
        up = point / np.linalg.norm(point, axis=-1, keepdims=True)
        cosine = ((satellite - point) * up).sum(-1) / slant
        return time / self._interval, pixel, np.rad2deg(np.arccos(cosine))

    def ground(self, line: Any, pixel: Any, height_of: Any) -> tuple[Any, Any]:
        """Longitude and latitude of image points on a terrain: the inverse of `locate`."""
        line, pixel = np.broadcast_arrays(np.asarray(line, float), np.asarray(pixel, float))
        time = line * self._interval
        slant = self._polynomial(self._grsr, time, lambda k: pixel * 10)
        satellite, velocity = self._position(time), self._velocity(time)
        forward = velocity / np.linalg.norm(velocity, axis=-1, keepdims=True)
        down = -satellite + (satellite * forward).sum(-1, keepdims=True) * forward
        down /= np.linalg.norm(down, axis=-1, keepdims=True)
        right = np.cross(forward, -down)
        look = np.full(line.shape, np.deg2rad(34.0))
        height = np.full(line.shape, 500.0)
        for _ in range(12):
            across = np.cos(look)[..., None] * down + np.sin(look)[..., None] * right
            point = satellite + slant[..., None] * across
            lon, lat, found = FROM_EARTH.transform(*np.moveaxis(point, -1, 0))
            height = height_of(np.asarray(lon), np.asarray(lat))
            rise = slant * np.linalg.norm(satellite, axis=-1) * np.sin(look)
            look = look + (height - found) * np.linalg.norm(point, axis=-1) / rise
        return np.asarray(lon), np.asarray(lat)
