"""Outside the seven steps (simulate): coarse radar images of the twin.

Where an acquisition takes a second at 10 m, six years of several regions need large pixels. One
pixel stands for many of 10 m: their power is averaged, speckle has the looks of its area, and
the angles come as a layer that all passes of a track share, so that no annotation is needed.
Geometry is worked out once a track. Writes; reads nothing.

Sources: those of `backscatter`; looks by area from the resolution of 20 x 22 m of IW GRD and 4.4
looks (product specification); the radiometric stability of Sentinel-1, 0.5 dB at three standard
deviations, as an error of each pass and polarisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from scipy.ndimage import map_coordinates

from xsoilsm.grid import grid_of, lonlat_to_xy
from xsoilsm.simulate import backscatter
from xsoilsm.simulate.annotation import Slice
from xsoilsm.simulate.backscatter import Polarisation
from xsoilsm.simulate.files import write_cog
from xsoilsm.simulate.items import Catalogue, rtc_item
from xsoilsm.simulate.land import Land, Place
from xsoilsm.simulate.noise import generator
from xsoilsm.simulate.orbit import SLICE_S, Overpass
from xsoilsm.simulate.scene import GEOID, NODATA, Surface, image_geobox, shorten

__all__ = ["Track", "write_coarse_pass"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_LOOK_AREA = 20.0 * 22.0 / backscatter.LOOKS  # m2 of one look
_STABILITY_DB = 0.5 / 3


@dataclass(frozen=True)
class Track:
    """One relative orbit over a place: what does not change from pass to pass.

    Parameters
    ----------
    place : Place
    land : Land
        On `Place.geobox`; its elevation gives the slopes.
    overpass : Overpass
        Any of the track.
    """

    place: Place
    land: Land
    overpass: Overpass

    @cached_property
    def geobox(self) -> GeoBox:
        """UTM grid of the images."""
        return image_geobox(self.place, self.overpass, self.overpass.geometry.spacing)

    @cached_property
    def _lonlat(self) -> tuple[Float64, Float64]:
        affine, (height, width) = self.geobox.affine, self.geobox.shape
        x = affine.c + affine.a * (np.arange(width) + 0.5)
        y = affine.f + affine.e * (np.arange(height) + 0.5)
        to_lonlat = Transformer.from_crs(str(self.geobox.crs), "EPSG:4326", always_xy=True)
        lon, lat = to_lonlat.transform(*np.meshgrid(x, y))
        return np.asarray(lon), np.asarray(lat)

    @cached_property
    def _at(self) -> Float64:
        """Row and column of the land's cells at the pixels, (2, y, x)."""
        cells, rows, columns = grid_of(self.place.geobox)
        east, north = lonlat_to_xy(*self._lonlat)
        row = (float(cells.top(rows[0])) - north) / cells.cell - 0.5
        column = (east - float(cells.left(columns[0]))) / cells.cell - 0.5
        return np.stack([row, column])

    def sample(self, field: Float32) -> Float32:
        """Bring a field of the land to the pixels, between the middles of cells linearly."""
        return np.asarray(map_coordinates(field, self._at, order=1, mode="nearest"))

    @cached_property
    def outside(self) -> npt.NDArray[np.bool_]:
        """Pixels beyond the land, (y, x)."""
        height, width = self.place.geobox.shape
        row, column = self._at
        beyond = (row < 0) | (row > height - 1) | (column < 0) | (column > width - 1)
        return np.asarray(beyond, dtype=np.bool_)

    @cached_property
    def _angles(self) -> tuple[Float32, Float32]:
        """Incidence angle in degrees, and cosine of that on the slope."""
        heights = self.sample(self.land.elevation)
        seen = self.overpass.geometry.locate(*self._lonlat, heights + GEOID)
        angle = np.deg2rad(seen.incidence).astype(np.float32)
        look = np.deg2rad(seen.azimuth).astype(np.float32)
        metre = np.deg2rad(1.0) * 6371008.8
        lat, lon = self.place.axes
        north = np.gradient(self.land.elevation, lat * metre, axis=0)
        east = np.gradient(self.land.elevation, lon * metre, axis=1)
        east = east / np.cos(np.deg2rad(lat))[:, None]
        local = backscatter.local_incidence(
            np.cos(angle),
            np.sin(angle),
            (np.sin(look), np.cos(look)),
            self.sample(east.astype(np.float32)),
            self.sample(north.astype(np.float32)),
        )
        return seen.incidence.astype(np.float32), local

    @property
    def incidence(self) -> Float32:
        """Incidence angle on the ellipsoid in degrees, (y, x)."""
        return self._angles[0]

    def image(self, surface: Surface, number: int) -> dict[Polarisation, Float32]:
        """Terrain-flattened gamma nought as power, by polarisation; no data beyond the land.

        Parameters
        ----------
        surface : Surface
            On `Place.geobox`.
        number : int
            Of the acquisition, for its speckle and the error of its calibration.
        """
        rng = generator(self.place.seed, "coarse pass", number)
        local = self._angles[1]
        vegetation, density = self.sample(surface.vegetation), self.sample(surface.density)
        looks = float(self.geobox.affine.a) ** 2 / _LOOK_AREA
        result: dict[Polarisation, Float32] = {}
        for polarisation in ("vv", "vh"):
            above, passed = backscatter.cloud(local, vegetation, polarisation)
            ground = self.sample(surface.soil[polarisation])
            ground = ground * backscatter.angle_factor(local, polarisation)
            sigma0 = (density * above + passed * ground).astype(np.float32)
            power = backscatter.terrain_flattened(sigma0, local)
            power = power * backscatter.speckle(rng, power.shape, looks)
            power = power * np.float32(10 ** (_STABILITY_DB * rng.standard_normal() / 10))
            seen = shorten(np.maximum(power, 1e-7).astype(np.float32))
            seen[self.outside] = NODATA
            result[polarisation] = seen
        return result


def write_coarse_pass(
    catalogue: Catalogue, track: Track, one: Overpass, surface: Surface, *, number: int
) -> None:
    """Render a pass and write its files and its `sentinel-1-rtc` item.

    Parameters
    ----------
    catalogue : Catalogue
    track : Track
        Of the pass.
    one : Overpass
    surface : Surface
        What the radar sees, on `Place.geobox`.
    number : int
        Number of the acquisition.
    """
    centre, half = one.geometry.centre_time, SLICE_S / 2
    part = Slice(one, centre - half, centre + half, 1, 1, _level)
    geobox = track.geobox
    data = catalogue.root / "data" / "sentinel1-grd-rtc"
    place = geobox.affine, str(geobox.crs)
    angle = data / f"incidence-{one.relative_orbit:03d}.tif"
    if not angle.exists():
        write_cog(angle, track.incidence, *place, predictor="FLOATING_POINT")
    files: dict[str, Path] = {}
    for key, values in track.image(surface, number).items():
        files[key] = data / part.name / f"iw-{key}.rtc.tiff"
        write_cog(files[key], values, *place, nodata=NODATA, predictor="FLOATING_POINT", level=1)
    ring = _ring(geobox)
    rtc_item(catalogue, part, geobox, ring, files, angle=angle)


def _level(lon: Float64, lat: Float64) -> Float64:
    return np.zeros(np.broadcast(lon, lat).shape)


def _ring(geobox: GeoBox) -> list[tuple[float, float]]:
    """Corners of a grid as longitude and latitude, closed."""
    box = geobox.boundingbox
    x = [box.right, box.right, box.left, box.left, box.right]
    y = [box.bottom, box.top, box.top, box.bottom, box.bottom]
    to_lonlat = Transformer.from_crs(str(geobox.crs), "EPSG:4326", always_xy=True)
    lon, lat = to_lonlat.transform(x, y)
    return [(round(float(a), 6), round(float(b), 6)) for a, b in zip(lon, lat, strict=True)]
