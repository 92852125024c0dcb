"""Step 3 of 7 (load): the incidence angle from the orbit, and one surface for each track.

The angle at a ground point follows from the triangle of the Earth's centre, the point and the
satellite at zero Doppler: ``cos(theta) = (Rs^2 - R^2 - Re^2) / (2 R Re)`` with the geocentric
radii Rs and Re and the slant range R. With the height of the point it equals the angle of the
annotation to 1e-6 degrees.

A satellite comes back to a relative orbit within 200 m, which is 0.01 degrees, so the angle of a
place is the same on every pass of a track. A track is cut into segments of `SEGMENT` seconds
after the ascending node; for each a polynomial in longitude and latitude and the change with
height are computed from the orbit of any annotation that sees the segment, with the direction of
look. Relief matters: 1000 m change the angle by 0.04 degrees.

Against the real annotation, at all points of its grid: the surfaces are within 0.004 degrees with
the points' own heights (0-1153 m), and within 0.033 (0.012 rms) with the mean height.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pyproj import Transformer

from xsoilsm.sources.sentinel1.annotation import IncidenceSurface
from xsoilsm.sources.sentinel1.geocode import GeolocationGrid, seconds_since

__all__ = [
    "SEGMENT",
    "Orbit",
    "TrackIncidence",
    "TrackSurface",
    "incidence_angle",
    "track_surfaces",
]

SEGMENT = 15.0
"""Length of a segment of a track in s; the ground track is some 100 km long."""

Floats = npt.NDArray[np.float64]

_BEYOND = 0.04  # part by which the surfaces reach over the swath on both sides
_HEIGHT = 1000.0  # m, over which the change with height is taken


def incidence_angle(satellite: Floats, slant_range: Floats, ground: Floats) -> Floats:
    """Incidence angle from geocentric radii and slant range.

    Parameters
    ----------
    satellite, ground : ndarray
        Distances from the Earth's centre in m.
    slant_range : ndarray
        m.

    Returns
    -------
    ndarray
        Degrees.

    Examples
    --------
    >>> float(incidence_angle(np.array(7071e3), np.array(850e3), np.array(6371e3)).round(2))
    36.67
    """
    cosine = (satellite**2 - slant_range**2 - ground**2) / (2 * slant_range * ground)
    return np.asarray(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))


@dataclass(frozen=True, eq=False)
class Orbit:
    """State vectors of an annotation, with cubic interpolation between them.

    Parameters
    ----------
    node : datetime64[ns]
        Instant (UTC) of the ascending node, from which times count.
    time : (n,) ndarray
        s.
    position, velocity : (n, 3) ndarray
        m and m/s, Earth-fixed.
    """

    node: np.datetime64
    time: Floats
    position: Floats
    velocity: Floats

    @classmethod
    def parse(cls, root: ET.Element) -> Orbit:
        """Read the orbit of a product annotation.

        Raises
        ------
        OSError
            When it is not complete.
        """
        states = list(root.iterfind(".//orbit"))
        instant = root.findtext(".//ascendingNodeTime")
        try:
            if instant is None or len(states) < 2:
                msg = f"{len(states)} state vectors and ascending node {instant}"
                raise ValueError(msg)
            node = np.datetime64(instant, "ns")
            time = np.array([seconds_since(node, state.findtext("time", "")) for state in states])
            position, velocity = (
                np.array(
                    [[float(s.findtext(f"{kind}/{axis}", "")) for axis in "xyz"] for s in states]
                )
                for kind in ("position", "velocity")
            )
        except ValueError as error:
            msg = f"the annotation's orbit cannot be read ({error}); expected that of a GRD product"
            raise OSError(msg) from error
        return cls(node, time, position, velocity)

    def state(self, time: Floats) -> tuple[Floats, Floats]:
        """Position and velocity by the cubic through two state vectors (Hermite).

        Parameters
        ----------
        time : (...) ndarray
            s after the ascending node.

        Returns
        -------
        position, velocity : (..., 3) ndarray
        """
        k = np.clip(np.searchsorted(self.time, time) - 1, 0, self.time.size - 2)
        step = (self.time[k + 1] - self.time[k])[..., None]
        x = (time - self.time[k])[..., None] / step
        p0, p1 = self.position[k], self.position[k + 1]
        v0, v1 = self.velocity[k] * step, self.velocity[k + 1] * step
        quadratic, cubic = 3 * (p1 - p0) - 2 * v0 - v1, 2 * (p0 - p1) + v0 + v1
        position = p0 + x * (v0 + x * (quadratic + x * cubic))
        velocity = (v0 + x * (2 * quadratic + 3 * x * cubic)) / step
        return position, velocity

    def incidence(self, lon: npt.ArrayLike, lat: npt.ArrayLike, height: npt.ArrayLike) -> Floats:
        """Incidence angle at ground points. Computes.

        Parameters
        ----------
        lon, lat : array_like
            Degrees, WGS 84.
        height : array_like
            m above the ellipsoid.

        Returns
        -------
        ndarray
            Degrees; NaN where the satellite is abeam outside the time of the state vectors.
        """
        lon, lat, height = np.broadcast_arrays(
            np.asarray(lon, float), np.asarray(lat, float), np.asarray(height, float)
        )
        point = np.stack(_to_earth().transform(lon, lat, height), axis=-1)
        time = np.full(lon.shape, float(self.time.mean()))
        for _ in range(8):  # the point is abeam where the line of sight is across the velocity
            position, velocity = self.state(time)
            ahead = ((point - position) * velocity).sum(axis=-1) / (velocity**2).sum(axis=-1)
            time = np.clip(time + ahead, self.time[0], self.time[-1])
        position, _ = self.state(time)
        outside = (time <= self.time[0]) | (time >= self.time[-1])
        angle = incidence_angle(
            np.linalg.norm(position, axis=-1),
            np.linalg.norm(point - position, axis=-1),
            np.linalg.norm(point, axis=-1),
        )
        return np.where(outside, np.nan, angle)

    def ground(self, time: Floats, slant_range: Floats) -> tuple[Floats, Floats]:
        """Longitude and latitude in degrees on the ellipsoid, to the right of the flight.

        Parameters
        ----------
        time : ndarray
            Zero-Doppler time in s after the ascending node.
        slant_range : ndarray
            m.
        """
        position, velocity = self.state(time)
        forward = velocity / np.linalg.norm(velocity, axis=-1, keepdims=True)
        down = (position * forward).sum(axis=-1, keepdims=True) * forward - position
        down /= np.linalg.norm(down, axis=-1, keepdims=True)
        right = np.cross(down, forward)
        far = np.linalg.norm(position, axis=-1)
        radius = np.full(far.shape, 6.371e6)
        lon = lat = np.zeros(far.shape)
        for _ in range(6):  # the ellipsoid's radius changes little from place to place
            cosine = (far**2 + slant_range**2 - radius**2) / (2 * far * slant_range)
            look = np.arccos(np.clip(cosine, -1, 1))[..., None]
            point = position + slant_range[..., None] * (np.cos(look) * down + np.sin(look) * right)
            lon, lat, height = _from_earth().transform(*np.moveaxis(point, -1, 0))
            radius = radius - np.asarray(height)
        return np.asarray(lon), np.asarray(lat)


def _to_earth() -> Transformer:
    return Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)


def _from_earth() -> Transformer:
    return Transformer.from_crs("EPSG:4978", "EPSG:4979", always_xy=True)


@dataclass(frozen=True)
class TrackSurface:
    """Incidence angle on one segment of a track.

    Parameters
    ----------
    segment : int
        Number of the segment, from the ascending node.
    surface : IncidenceSurface
        At height 0.
    per_metre : float
        Change with height in degrees per m.
    height : float
        Mean height in m of the annotation's points, used where none is given.
    outline : tuple of (float, float)
        Longitude and latitude of the segment's outline.
    look : IncidenceSurface
        Azimuth of the look on the ground in degrees, clockwise from north, within half a turn of
        its mean.
    """

    segment: int
    surface: IncidenceSurface
    per_metre: float
    height: float
    outline: tuple[tuple[float, float], ...]
    look: IncidenceSurface

    def holds(self, lon: Floats, lat: Floats) -> npt.NDArray[np.bool_]:
        """Whether points lie on the segment."""
        import shapely

        ring = np.array(self.outline)
        # Count from the segment's middle, so that 180 degrees east is no edge.
        ring[:, 0] = _around(ring[:, 0] - self.surface.centre[0])
        at = _around(np.asarray(lon) - self.surface.centre[0])
        return np.asarray(shapely.contains_xy(shapely.Polygon(ring).buffer(1e-9), at, lat))

    def __call__(self, lon: Floats, lat: Floats, height: npt.ArrayLike | None = None) -> Floats:
        """Angle in degrees at points, at `height` in m above the ellipsoid or the mean height."""
        above = self.height if height is None else np.asarray(height, dtype=np.float64)
        return np.asarray(self.surface(lon, lat) + self.per_metre * above)


def _around(degrees: Floats) -> Floats:
    return (degrees + 180.0) % 360.0 - 180.0


@dataclass(frozen=True)
class TrackIncidence:
    """Incidence angle on the known segments of a track.

    Parameters
    ----------
    surfaces : tuple of TrackSurface
    """

    surfaces: tuple[TrackSurface, ...]

    def __call__(
        self, lon: npt.ArrayLike, lat: npt.ArrayLike, height: npt.ArrayLike | None = None
    ) -> Floats:
        """Angle at points.

        Parameters
        ----------
        lon, lat : array_like
            Degrees, of one shape.
        height : array_like, optional
            m above the ellipsoid.

        Returns
        -------
        ndarray
            Degrees; NaN on segments that are not known.
        """
        lon, lat = np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64)
        angle = np.full(lon.shape, np.nan)
        for surface in self.surfaces:
            here = np.isnan(angle) & surface.holds(lon, lat)
            if here.any():
                above = None if height is None else np.broadcast_to(height, lon.shape)[here]
                angle[here] = surface(lon[here], lat[here], above)
        return angle

    def look(self, lon: npt.ArrayLike, lat: npt.ArrayLike) -> Floats:
        """Azimuth of the look at points in degrees; NaN on segments that are not known."""
        lon, lat = np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64)
        azimuth = np.full(lon.shape, np.nan)
        for surface in self.surfaces:
            here = np.isnan(azimuth) & surface.holds(lon, lat)
            azimuth[here] = surface.look(lon[here], lat[here])
        return azimuth


def track_surfaces(root: ET.Element) -> list[TrackSurface]:
    """Make the surfaces of all segments that a product sees. Computes.

    Parameters
    ----------
    root : Element
        Product annotation. Its state vectors reach a minute beyond the image, so segments are
        whole even where the image holds a part of them.

    Returns
    -------
    list of TrackSurface

    Raises
    ------
    OSError
        When the annotation is not complete.
    """
    orbit, points = Orbit.parse(root), GeolocationGrid.parse(root)
    first_line = root.findtext(".//productFirstLineUtcTime", "")
    begin = seconds_since(orbit.node, first_line)
    seen = begin + points.time.min(), begin + points.time.max()
    near, far = points.slant_range.min(), points.slant_range.max()
    room = _BEYOND * (far - near)
    height = float(points.height.mean())
    found = []
    for segment in range(int(seen[0] // SEGMENT), int(seen[1] // SEGMENT) + 1):
        start, stop = segment * SEGMENT, (segment + 1) * SEGMENT
        if start < orbit.time[0] or stop > orbit.time[-1]:
            continue
        times, ranges = np.meshgrid(
            np.linspace(start, stop, 7), np.linspace(near - room, far + room, 15), indexing="ij"
        )
        lon, lat = orbit.ground(times, ranges)
        low, high = (orbit.incidence(lon, lat, h) for h in (0.0, _HEIGHT))
        edges = (np.s_[0, :], np.s_[:, -1], np.s_[-1, ::-1], np.s_[::-1, 0])
        outline = [
            (float(x), float(y)) for at in edges for x, y in zip(lon[at], lat[at], strict=True)
        ]
        found.append(
            TrackSurface(
                segment,
                IncidenceSurface.fit(lon.ravel(), lat.ravel(), low.ravel()),
                float((high - low).mean() / _HEIGHT),
                height,
                tuple(outline),
                _look(lon, lat),
            )
        )
    return found


def _look(lon: Floats, lat: Floats) -> IncidenceSurface:
    """Azimuth from near to far range on a mesh (time, slant range) of ground points."""
    middle = np.deg2rad((lat[:, 1:] + lat[:, :-1]) / 2)
    across = _around(lon[:, 1:] - lon[:, :-1])
    azimuth = np.rad2deg(np.arctan2(across * np.cos(middle), lat[:, 1:] - lat[:, :-1]))
    first = float(azimuth[0, 0])
    azimuth = first + _around(azimuth - first)
    at = lon[:, :-1] + across / 2
    return IncidenceSurface.fit(at.ravel(), np.rad2deg(middle).ravel(), azimuth.ravel())
