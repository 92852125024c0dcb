"""Outside the seven steps (simulate): orbits, tracks and the side-looking geometry of Sentinel-1.

A circular orbit over a rotating Earth repeats after 175 revolutions in 12 days, so a ground
point is seen under the same angles by every pass of one relative orbit. Places on the ground and
in the image follow from one another by range and zero Doppler on the WGS 84 ellipsoid. Nothing
is read.

Sources: orbit of ESA's Sentinel-1 (inclination 98.18 degrees, 12 days, 175 revolutions); one
ascending node each of Sentinel-1A and 1B in 2021, from which all others are counted; range-Doppler
equations (Curlander and McDonough 1991); incidence and elevation angle from the triangle of
geocentric radii and slant range, which is what the annotation of the real products holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from pyproj import Transformer

__all__ = [
    "AZIMUTH_INTERVAL",
    "SWATH_M",
    "Geometry",
    "Located",
    "Overpass",
    "find_tracks",
    "node_longitude",
    "node_time",
    "overpasses",
    "relative_orbit",
    "scene_slices",
]

Float64 = npt.NDArray[np.float64]

REPEAT_ORBITS, REPEAT_DAYS = 175, 12
PERIOD = REPEAT_DAYS * 86400.0 / REPEAT_ORBITS
"""Time in s from one ascending node to the next."""

RADIUS = 7_070_000.0
"""Radius of the orbit in m."""

INCLINATION = np.deg2rad(98.1813)
_EARTH_RATE = 2 * np.pi / 86400.0  # relative to the orbital plane, which keeps to the sun

_NODE_LONGITUDE, _NODE_ORBIT = 8.356, 59
"""Longitude in degrees of the ascending node of one relative orbit."""

_FLEET = {
    "A": (np.datetime64("2021-08-09T17:27:46.470", "us"), 39156, 73),
    "B": (np.datetime64("2021-08-15T17:27:46.470", "us"), 28260, 27),
}
"""An ascending node of that orbit: time, absolute orbit, and the offset of relative orbits."""

_SERVICE = {
    "A": (np.datetime64("2014-10-03"), np.datetime64("2100-01-01")),
    "B": (np.datetime64("2016-09-26"), np.datetime64("2021-12-23")),
}
"""First and last day of service."""

_APART = np.timedelta64(2, "D")

LIGHT = 299792458.0
SWATH_M = 250_000.0
"""Width of the interferometric wide swath on the ground in m."""

_NEAR_LOOK = np.deg2rad(27.0)  # angle from nadir, at the satellite, of the swath's near edge
AZIMUTH_INTERVAL = 1.4992e-3
"""Time in s between lines that are 10 m apart."""

SLICE_S = 25.0
SLICE_OVERLAP_S = 0.5
"""Duration of a slice and, of that, what it shares with each neighbour: about 3.4 km."""


@dataclass(frozen=True)
class Located:
    """Where ground points lie in an image; arrays of one shape.

    Parameters
    ----------
    time : ndarray
        Zero-Doppler time in s after the ascending node.
    slant_range : ndarray
        m.
    pixel : ndarray
        Ground-range sample, 0 at the near edge.
    incidence, elevation : ndarray
        Angles in degrees at the ground from the vertical and at the satellite from nadir.
    azimuth : ndarray
        Direction from the ground to the satellite in degrees, clockwise from north.
    """

    time: Float64
    slant_range: Float64
    pixel: Float64
    incidence: Float64
    elevation: Float64
    azimuth: Float64


@dataclass(frozen=True)
class Geometry:
    """The imaging geometry of one pass, in seconds after its ascending node.

    Parameters
    ----------
    node_longitude : float
        Degrees.
    centre_time : float
        When the satellite passes the middle of the region.
    earth_radius : float
        Geocentric radius in m of the ellipsoid there: ground range is measured on this sphere.
    spacing : float
        Distance of samples and of lines in m.
    """

    node_longitude: float
    centre_time: float
    earth_radius: float
    spacing: float

    @property
    def line_interval(self) -> float:
        """Time in s between lines."""
        return AZIMUTH_INTERVAL * self.spacing / 10

    @property
    def samples(self) -> int:
        """Number of samples across the swath."""
        return round(SWATH_M / self.spacing)

    def state(self, time: npt.ArrayLike) -> tuple[Float64, Float64, Float64]:
        """Position in m, velocity in m/s and acceleration, Earth-fixed, dims (..., 3)."""
        t = np.asarray(time, float)
        rate = 2 * np.pi / PERIOD
        u = rate * t
        ci, si = np.cos(INCLINATION), np.sin(INCLINATION)
        plane = np.stack((np.cos(u), ci * np.sin(u), si * np.sin(u)), axis=-1)
        along = np.stack((-np.sin(u), ci * np.cos(u), si * np.cos(u)), axis=-1)
        node = np.deg2rad(self.node_longitude) - _EARTH_RATE * t

        def turn(vector: Float64) -> Float64:
            x, y, z = np.moveaxis(vector, -1, 0)
            c, s = np.cos(node), np.sin(node)
            return np.stack((c * x - s * y, s * x + c * y, z), axis=-1)

        def spin(vector: Float64) -> Float64:
            """Cross product of the Earth's apparent rotation and a vector."""
            x, y, z = np.moveaxis(vector, -1, 0)
            return np.stack((_EARTH_RATE * y, -_EARTH_RATE * x, 0 * z), axis=-1)

        position = RADIUS * turn(plane)
        forward = RADIUS * rate * turn(along)
        velocity = forward + spin(position)
        acceleration = -(rate**2) * position + 2 * spin(forward) + spin(spin(position))
        return position, velocity, acceleration

    @cached_property
    def _near_angle(self) -> float:
        """Angle at the Earth's centre between nadir and the swath's near edge."""
        incidence = np.arcsin(np.sin(_NEAR_LOOK) * RADIUS / self.earth_radius)
        return float(incidence - _NEAR_LOOK)

    def slant_range(self, pixel: npt.ArrayLike) -> Float64:
        """Slant range in m of ground-range samples."""
        angle = self._near_angle + np.asarray(pixel, float) * self.spacing / self.earth_radius
        square = RADIUS**2 + self.earth_radius**2
        return np.asarray(np.sqrt(square - 2 * RADIUS * self.earth_radius * np.cos(angle)))

    def pixel(self, slant_range: npt.ArrayLike) -> Float64:
        """Ground-range sample of slant ranges in m."""
        square = RADIUS**2 + self.earth_radius**2 - np.asarray(slant_range, float) ** 2
        angle = np.arccos(np.clip(square / (2 * RADIUS * self.earth_radius), -1, 1))
        return np.asarray((angle - self._near_angle) * self.earth_radius / self.spacing)

    def _zero_doppler(self, point: Float64) -> tuple[Float64, Float64, Float64]:
        """Time at which each point is abeam, and the satellite's position and velocity then."""
        time = np.full(point.shape[:-1], self.centre_time)
        for _ in range(7):
            position, velocity, acceleration = self.state(time)
            line = point - position
            slope = (line * acceleration).sum(-1) - (velocity**2).sum(-1)
            time = time - (line * velocity).sum(-1) / slope
        position, velocity, _ = self.state(time)
        return time, position, velocity

    def locate(self, lon: npt.ArrayLike, lat: npt.ArrayLike, height: npt.ArrayLike) -> Located:
        """Find ground points in the image.

        Parameters
        ----------
        lon, lat : array_like
            Degrees, WGS 84.
        height : array_like
            Above the ellipsoid in m.

        Returns
        -------
        Located
            Times before or after a slice and pixels beyond the swath are the caller's to judge.
        """
        lon, lat, height = np.broadcast_arrays(
            np.asarray(lon, float), np.asarray(lat, float), np.asarray(height, float)
        )
        to_earth = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
        point = np.stack(to_earth.transform(lon, lat, height), axis=-1)
        time, satellite, _ = self._zero_doppler(point)
        look = satellite - point
        distance = np.linalg.norm(look, axis=-1)
        ground = np.linalg.norm(point, axis=-1)
        incidence = (RADIUS**2 - distance**2 - ground**2) / (2 * distance * ground)
        elevation = (RADIUS**2 + distance**2 - ground**2) / (2 * distance * RADIUS)
        lam, phi = np.deg2rad(lon), np.deg2rad(lat)
        x, y, z = np.moveaxis(look, -1, 0)
        east = -np.sin(lam) * x + np.cos(lam) * y
        north = np.cos(phi) * z - np.sin(phi) * (np.cos(lam) * x + np.sin(lam) * y)
        return Located(
            time=time,
            slant_range=distance,
            pixel=self.pixel(distance),
            incidence=np.rad2deg(np.arccos(incidence)),
            elevation=np.rad2deg(np.arccos(elevation)),
            azimuth=np.rad2deg(np.arctan2(east, north)),
        )

    def ground(
        self, time: npt.ArrayLike, pixel: npt.ArrayLike, height: npt.ArrayLike
    ) -> tuple[Float64, Float64]:
        """Longitude and latitude of image points at given heights: the inverse of `locate`.

        Parameters
        ----------
        time : array_like
            s after the ascending node.
        pixel : array_like
            Ground-range sample.
        height : array_like
            Above the ellipsoid in m.

        Returns
        -------
        lon, lat : ndarray
            Degrees.
        """
        time, pixel, height = np.broadcast_arrays(
            np.asarray(time, float), np.asarray(pixel, float), np.asarray(height, float)
        )
        from_earth = Transformer.from_crs("EPSG:4978", "EPSG:4979", always_xy=True)
        position, velocity, _ = self.state(time)
        forward = velocity / np.linalg.norm(velocity, axis=-1, keepdims=True)
        down = (position * forward).sum(-1, keepdims=True) * forward - position
        down /= np.linalg.norm(down, axis=-1, keepdims=True)
        right = np.cross(forward, -down)
        distance = self.slant_range(pixel)
        radius = self.earth_radius
        look = np.arccos((RADIUS**2 + distance**2 - radius**2) / (2 * RADIUS * distance))
        for _ in range(8):
            across = np.cos(look)[..., None] * down + np.sin(look)[..., None] * right
            point = position + distance[..., None] * across
            lon, lat, found = from_earth.transform(*np.moveaxis(point, -1, 0))
            rise = distance * RADIUS / np.linalg.norm(point, axis=-1) * np.sin(look)
            look = look + (height - found) / rise
        return np.asarray(lon), np.asarray(lat)


@dataclass(frozen=True)
class Overpass:
    """One pass of one satellite over the region.

    Parameters
    ----------
    platform : {"A", "B"}
    absolute_orbit, relative_orbit : int
    orbit_state : {"ascending", "descending"}
    node_time : datetime64[us]
        Time (UTC) of the ascending node.
    geometry : Geometry
    """

    platform: str
    absolute_orbit: int
    relative_orbit: int
    orbit_state: str
    node_time: np.datetime64
    geometry: Geometry

    def utc(self, seconds: float) -> np.datetime64:
        """Instant (UTC, to the microsecond) of a time in s after the ascending node."""
        return self.node_time + np.timedelta64(round(seconds * 1e6), "us")

    @property
    def time(self) -> np.datetime64:
        """Instant (UTC) at which the satellite passes the middle of the region."""
        return self.utc(self.geometry.centre_time)


def _geocentric_radius(lon: float, lat: float) -> float:
    to_earth = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
    return float(np.linalg.norm(to_earth.transform(lon, lat, 0.0)))


def node_longitude(relative_orbit: int) -> float:
    """Longitude in degrees at which a relative orbit crosses the equator northward."""
    turned = (relative_orbit - _NODE_ORBIT) * 360 * REPEAT_DAYS / REPEAT_ORBITS
    return (_NODE_LONGITUDE - turned + 180) % 360 - 180


def relative_orbit(platform: str, absolute_orbit: int) -> int:
    """Relative orbit, 1 to 175, of an absolute orbit of Sentinel-1A or 1B."""
    return (absolute_orbit - _FLEET[platform][2]) % REPEAT_ORBITS + 1


def node_time(platform: str, absolute_orbit: int) -> np.datetime64:
    """Instant (UTC) of the ascending node at which an absolute orbit begins."""
    epoch, number, _ = _FLEET[platform]
    return epoch + np.timedelta64(round((absolute_orbit - number) * PERIOD * 1e6), "us")


def find_tracks(centre: tuple[float, float], spacing: float) -> dict[str, tuple[int, Geometry]]:
    """Relative orbits that see a place nearest to the middle of their swath.

    Parameters
    ----------
    centre : (float, float)
        Longitude and latitude in degrees.
    spacing : float
        Distance of samples in m.

    Returns
    -------
    dict
        For ``"ascending"`` and ``"descending"`` the relative orbit and its geometry.
    """
    lon, lat = centre
    radius = _geocentric_radius(lon, lat)
    to_earth = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
    point = np.array(to_earth.transform(lon, lat, 0.0))
    times = np.linspace(0, PERIOD, 241)
    best: dict[str, tuple[float, int, Geometry]] = {}
    for orbit in range(1, REPEAT_ORBITS + 1):
        node = node_longitude(orbit)
        coarse = Geometry(node, 0.0, radius, spacing)
        position, velocity, _ = coarse.state(times)
        line = point - position
        abeam = (line * velocity).sum(-1)
        right = (line * np.cross(velocity, position)).sum(-1) > 0
        near = np.linalg.norm(line, axis=-1) < 1.3e6
        for k in np.flatnonzero((abeam[:-1] > 0) & (abeam[1:] <= 0) & near[:-1] & right[:-1]):
            guess = Geometry(node, float(times[k]), radius, spacing)
            seen = guess.locate(lon, lat, 0.0)
            share = float(seen.pixel) / guess.samples
            state = "ascending" if velocity[k, 2] > 0 else "descending"
            off = abs(share - 0.5)
            if off < 0.5 and (state not in best or off < best[state][0]):
                exact = Geometry(node, float(seen.time), radius, spacing)
                best[state] = (off, orbit, exact)
    return {state: found[1:] for state, found in best.items()}


def overpasses(
    centre: tuple[float, float], start: np.datetime64, count: int, spacing: float
) -> list[Overpass]:
    """Choose passes over a place, by turns on an ascending and on a descending track.

    Parameters
    ----------
    centre : (float, float)
        Longitude and latitude in degrees.
    start : datetime64
        Earliest instant (UTC).
    count : int
    spacing : float
        Distance of samples in m.

    Returns
    -------
    list of Overpass
        In order of time and at least two days apart; both satellites fly, as far as they were
        in service.

    Raises
    ------
    ValueError
        When no track sees the place, or too few passes fall into the years of service.
    """
    tracks = find_tracks(centre, spacing)
    if not tracks:
        msg = f"no Sentinel-1 track sees {centre}; choose a place between 80 S and 80 N"
        raise ValueError(msg)
    found: list[Overpass] = []
    cycle = np.timedelta64(REPEAT_DAYS, "D")
    for platform, (first, last) in _SERVICE.items():
        for state, (orbit, geometry) in sorted(tracks.items()):
            number = _FLEET[platform][1] + (orbit - _NODE_ORBIT) % REPEAT_ORBITS
            middle = np.timedelta64(round(geometry.centre_time * 1e6), "us")
            wait = start.astype("datetime64[us]") - node_time(platform, number) - middle
            number += int(np.ceil(wait / cycle)) * REPEAT_ORBITS
            for absolute in range(number, number + (2 * count + 1) * REPEAT_ORBITS, REPEAT_ORBITS):
                when = node_time(platform, absolute)
                if first <= when.astype("datetime64[D]") <= last:
                    found.append(Overpass(platform, absolute, orbit, state, when, geometry))
    found.sort(key=lambda one: one.time)
    chosen = found[:1]
    for one in found:
        other = len(tracks) == 1 or one.orbit_state != chosen[-1].orbit_state
        if other and one.time - chosen[-1].time >= _APART:
            chosen.append(one)
    if len(chosen) < count:
        msg = (
            f"only {len(chosen)} passes of Sentinel-1 from {start} on were in service, expected "
            f"{count}; choose a start after 2014-10"
        )
        raise ValueError(msg)
    return chosen[:count]


def scene_slices(
    geometry: Geometry, first: float, last: float, *, cut: bool
) -> list[tuple[float, float]]:
    """Cut a stretch of a pass into slices.

    Parameters
    ----------
    geometry : Geometry
    first, last : float
        Times in s after the ascending node that must be covered.
    cut : bool
        Put a boundary of slices on the middle of the region; else the middle of a slice.

    Returns
    -------
    list of (float, float)
        Start and stop of each slice; neighbours overlap by about 3.4 km.
    """
    length = SLICE_S - SLICE_OVERLAP_S
    origin = geometry.centre_time - (0.0 if cut else length / 2)
    numbers = range(
        int(np.floor((first - origin) / length)), int(np.ceil((last - origin) / length))
    )
    half = SLICE_OVERLAP_S / 2
    return [(origin + k * length - half, origin + (k + 1) * length + half) for k in numbers]
