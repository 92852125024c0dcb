"""Step 3 of 7 (load): the incidence angle from the orbit, and one surface for each track.

The angle at a ground point follows from the triangle of the Earth's centre, the point and the
satellite at zero Doppler: ``cos(theta) = (Rs^2 - R^2 - Re^2) / (2 R Re)`` with the geocentric
radii Rs and Re and the slant range R. With the height of the point it equals the angle of the
annotation to 1e-6 degrees.

A satellite comes back to a relative orbit within 200 m, which is 0.01 degrees, so the angle of a
place is the same on every pass of a track. A track is cut into segments of `SEGMENT` seconds
after the ascending node; for each a polynomial in longitude and latitude and the change with
height are computed once from the orbit of any annotation that sees the segment, and kept on
disk. Relief matters: 1000 m change the angle by 0.04 degrees.

Against the real annotation, at all points of its grid: the surfaces are within 0.004 degrees with
the points' own heights (0-1153 m), and within 0.033 (0.012 rms) with the mean height.
"""

from __future__ import annotations

import json
import os
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pyproj import Transformer

from xsoilsm.catalog import cache_dir
from xsoilsm.sources.access.links import Access, read_bytes
from xsoilsm.sources.access.search import Bounds
from xsoilsm.sources.sentinel1.annotation import IncidenceSurface
from xsoilsm.sources.sentinel1.geocode import GeolocationGrid, seconds_since

__all__ = [
    "SEGMENT",
    "Orbit",
    "TrackIncidence",
    "TrackSurface",
    "incidence_angle",
    "read_track",
    "track_incidence",
    "track_surfaces",
    "write_track",
]

SEGMENT = 15.0
"""Length of a segment of a track in s; the ground track is some 100 km long."""

FORMAT = 1
"""Raised whenever files of another format would be misread."""

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
    """

    segment: int
    surface: IncidenceSurface
    per_metre: float
    height: float
    outline: tuple[tuple[float, float], ...]

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
            )
        )
    return found


def _folder(relative_orbit: int, orbit_state: str) -> Path:
    return cache_dir() / "incidence" / f"{orbit_state}-{relative_orbit:03d}"


def write_track(
    relative_orbit: int, orbit_state: str, surfaces: Sequence[TrackSurface]
) -> list[Path]:
    """Keep surfaces on disk, each in a file of its own that appears whole or not at all.

    Parameters
    ----------
    relative_orbit : int
    orbit_state : {"ascending", "descending"}
    surfaces : sequence of TrackSurface

    Returns
    -------
    list of Path
    """
    folder = _folder(relative_orbit, orbit_state)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for surface in surfaces:
        content: dict[str, Any] = {
            "format": FORMAT,
            "relative_orbit": relative_orbit,
            "orbit_state": orbit_state,
            "segment_s": SEGMENT,
            **asdict(surface),
        }
        path = folder / f"{surface.segment:03d}.json"
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(content, file)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
        written.append(path)
    return written


def read_track(relative_orbit: int, orbit_state: str) -> TrackIncidence:
    """Read what is kept of a track. Computes: reads small files.

    Parameters
    ----------
    relative_orbit : int
    orbit_state : {"ascending", "descending"}

    Returns
    -------
    TrackIncidence
        Of the segments that are kept; files that cannot be understood are left out, so that
        they are made anew.
    """
    found = []
    for path in sorted(_folder(relative_orbit, orbit_state).glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT or content["segment_s"] != SEGMENT:
                continue
            surface = content["surface"]
            found.append(
                TrackSurface(
                    int(content["segment"]),
                    IncidenceSurface(
                        tuple(surface["centre"]),
                        tuple(surface["scale"]),
                        int(surface["degree"]),
                        tuple(surface["coefficients"]),
                    ),
                    float(content["per_metre"]),
                    float(content["height"]),
                    tuple((float(x), float(y)) for x, y in content["outline"]),
                )
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return TrackIncidence(tuple(found))


def track_incidence(
    relative_orbit: int,
    orbit_state: str,
    bounds: Bounds,
    footprint: bytes,
    annotation: tuple[str, Access] | None = None,
) -> TrackIncidence:
    """Give the angle on a track, from disk where it is known there.

    Computes: reads small files, and the annotation of a slice only where its segments are not
    known yet; these are then kept.

    Parameters
    ----------
    relative_orbit : int
    orbit_state : {"ascending", "descending"}
    bounds : (west, south, east, north)
        In degrees, where the angle is wanted.
    footprint : bytes
        WKB in lon/lat of the slice; beyond it nothing is wanted.
    annotation : (str, Access), optional
        Unsigned link of the slice's annotation, and how it is read.

    Returns
    -------
    TrackIncidence

    Raises
    ------
    OSError
        When segments are not known and there is no annotation, or it cannot be read.
    """
    known = read_track(relative_orbit, orbit_state)
    if _missing(known, bounds, footprint) == 0:
        return known
    if annotation is None:
        msg = (
            f"the incidence angle on the {orbit_state} relative orbit {relative_orbit} at {bounds} "
            "is not known yet; load an acquisition of that track with its annotation once"
        )
        raise OSError(msg)
    href, access = annotation
    try:
        made = track_surfaces(ET.fromstring(read_bytes(href, access)))
    except ET.ParseError as error:
        msg = f"{href} is not a Sentinel-1 annotation: {error}"
        raise OSError(msg) from error
    have = {surface.segment for surface in known.surfaces}
    new = [surface for surface in made if surface.segment not in have]
    write_track(relative_orbit, orbit_state, new)
    return TrackIncidence((*known.surfaces, *new))


def _missing(track: TrackIncidence, bounds: Bounds, footprint: bytes) -> int:
    """Count the probes inside bounds and footprint at which the angle is not known."""
    import shapely

    west, south, east, north = bounds
    lon, lat = np.meshgrid(np.linspace(west, east, 9), np.linspace(south, north, 9))
    wanted = shapely.contains_xy(shapely.from_wkb(footprint).buffer(-0.02), lon, lat)
    return int(np.isnan(track(lon[wanted], lat[wanted])).sum())
