"""Step 3 of 7 (load): the incidence angle of a slice whose own annotation is not to be had.

A satellite sees a place from the same direction on every pass of a track, so the annotation of
any other pass serves (see :mod:`xsoilsm.sources.sentinel1.incidence`). What was made of one is
kept under ``cache_dir()/incidence``, a small file for each segment of a track.

Against the annotation the angle is within 0.04 degrees: 0.033 from relief about the mean height
of the scene, 0.01 from the orbit, which comes back to its track within 200 m.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xsoilsm.catalog import cache_dir
from xsoilsm.sources.access.links import Access, read_bytes
from xsoilsm.sources.access.search import Bounds
from xsoilsm.sources.sentinel1.annotation import IncidenceSurface
from xsoilsm.sources.sentinel1.incidence import (
    SEGMENT,
    TrackIncidence,
    TrackSurface,
    track_surfaces,
)

__all__ = ["Track", "is_known", "near", "read_track", "track_incidence", "write_track"]

logger = logging.getLogger(__name__)

FORMAT = 2
"""Raised whenever files of another format would be misread."""

_NO_ACCESS = Access()
_ROOM = 0.3  # degrees around a region at which the angle is sampled too
_SAMPLES = 33  # along each side


@dataclass(frozen=True)
class Track:
    """Where the angle on a part of a track comes from, as it travels in a graph.

    Parameters
    ----------
    relative_orbit : int
    orbit_state : {"ascending", "descending"}
    bounds : (west, south, east, north)
        In degrees, where the angle is wanted.
    footprint : bytes
        WKB in lon/lat of the slice; beyond it nothing is wanted.
    donors : tuple of str
        Unsigned links of annotations of other passes.
    access : Access
        How they are read.
    surfaces : tuple of TrackSurface
        Given in place of donors where the track was known when the graph was made.
    """

    relative_orbit: int
    orbit_state: str
    bounds: Bounds
    footprint: bytes
    donors: tuple[str, ...] = ()
    access: Access = _NO_ACCESS
    surfaces: tuple[TrackSurface, ...] = ()

    def incidence(self) -> IncidenceSurface:
        """Incidence angle in degrees. Computes: reads small files, once a process.

        Raises
        ------
        OSError
            When no donor can be read.
        """
        return _surfaces_of(self)[0]

    def look(self) -> IncidenceSurface:
        """Azimuth of the look in degrees; as `incidence` in all else."""
        return _surfaces_of(self)[1]


@lru_cache(maxsize=256)
def _surfaces_of(track: Track) -> tuple[IncidenceSurface, IncidenceSurface]:
    """Angle and look as one polynomial each, over the part of the slice that is wanted."""
    import shapely

    known = TrackIncidence(track.surfaces)
    if not track.surfaces:
        known = track_incidence(
            track.relative_orbit,
            track.orbit_state,
            track.bounds,
            track.footprint,
            [(href, track.access) for href in track.donors],
        )
    lon, lat = _samples(track.bounds)
    angle, look = known(lon, lat), known.look(lon, lat)
    near = shapely.contains_xy(shapely.from_wkb(track.footprint).buffer(_ROOM), lon, lat)
    held = near & np.isfinite(angle)
    lon, lat, angle, look = (values[held] for values in (lon, lat, angle, look))
    # Azimuths of two segments may be a whole turn apart.
    look = look[0] + (look - look[0] + 180.0) % 360.0 - 180.0
    return IncidenceSurface.fit(lon, lat, angle), IncidenceSurface.fit(lon, lat, look)


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
            found.append(
                TrackSurface(
                    int(content["segment"]),
                    _surface(content["surface"]),
                    float(content["per_metre"]),
                    float(content["height"]),
                    tuple((float(x), float(y)) for x, y in content["outline"]),
                    _surface(content["look"]),
                )
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return TrackIncidence(tuple(found))


def near(track: TrackIncidence, bounds: Bounds) -> tuple[TrackSurface, ...]:
    """Segments of a track that a region and what lies around it see."""
    lon, lat = _samples(bounds)
    return tuple(surface for surface in track.surfaces if surface.holds(lon, lat).any())


def _samples(bounds: Bounds) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Longitudes and latitudes of points in and around a region."""
    west, south, east, north = bounds
    lon, lat = np.meshgrid(
        np.linspace(west - _ROOM, east + _ROOM, _SAMPLES),
        np.linspace(south - _ROOM, north + _ROOM, _SAMPLES),
    )
    return lon, lat


def _surface(content: dict[str, Any]) -> IncidenceSurface:
    return IncidenceSurface(
        tuple(content["centre"]),
        tuple(content["scale"]),
        int(content["degree"]),
        tuple(content["coefficients"]),
    )


def track_incidence(
    relative_orbit: int,
    orbit_state: str,
    bounds: Bounds,
    footprint: bytes,
    donors: Sequence[tuple[str, Access]] = (),
) -> TrackIncidence:
    """Give the angle on a track, from disk where it is known there.

    Computes: reads small files, and annotations only while segments are not known; these are
    then kept.

    Parameters
    ----------
    relative_orbit : int
    orbit_state : {"ascending", "descending"}
    bounds : (west, south, east, north)
        In degrees, where the angle is wanted.
    footprint : bytes
        WKB in lon/lat of the slice; beyond it nothing is wanted.
    donors : sequence of (str, Access)
        Unsigned links of annotations of the track, and how they are read.

    Returns
    -------
    TrackIncidence

    Raises
    ------
    OSError
        When segments are not known and no annotation that can be read tells them.
    """
    known = read_track(relative_orbit, orbit_state)
    fault: OSError | None = None
    for href, access in donors:
        if is_known(known, bounds, footprint):
            break
        try:
            made = track_surfaces(ET.fromstring(read_bytes(href, access)))
        except ET.ParseError as error:
            fault = OSError(f"{href} is not a Sentinel-1 annotation: {error}")
            continue
        except OSError as error:
            fault = error
            continue
        have = {surface.segment for surface in known.surfaces}
        new = [surface for surface in made if surface.segment not in have]
        _keep(relative_orbit, orbit_state, new)
        known = TrackIncidence((*known.surfaces, *new))
    if is_known(known, bounds, footprint):
        return known
    if fault is not None:
        raise fault
    msg = (
        f"the incidence angle on the {orbit_state} relative orbit {relative_orbit} at {bounds} "
        "is not known yet; load an acquisition of that track with its annotation once"
    )
    raise OSError(msg)


def _keep(relative_orbit: int, orbit_state: str, surfaces: Sequence[TrackSurface]) -> None:
    """Keep surfaces where that is possible; a full or closed disk is no error."""
    try:
        write_track(relative_orbit, orbit_state, surfaces)
    except OSError as error:
        logger.info("cannot keep the angles of a track: %s", error)


def is_known(track: TrackIncidence, bounds: Bounds, footprint: bytes) -> bool:
    """Whether the angle is known at all probes inside bounds and footprint."""
    import shapely

    west, south, east, north = bounds
    outline = shapely.from_wkb(footprint)
    lon, lat = np.meshgrid(np.linspace(west, east, 9), np.linspace(south, north, 9))
    # Outlines follow the data within some 0.02 degrees.
    wanted = shapely.contains_xy(outline.buffer(-0.02), lon, lat)
    if not wanted.any():
        middle = shapely.intersection(outline, shapely.box(*bounds)).centroid
        if middle.is_empty:
            return bool(track.surfaces)
        return bool(np.isfinite(track(middle.x, middle.y)))
    return bool(np.isfinite(track(lon[wanted], lat[wanted])).all())
