"""Outside the seven steps (simulate): the radar image of a pass over the land.

Renders terrain-flattened gamma nought on a UTM grid, strip by strip, from the terrain, the
surface at 100 m and the geometry of the pass; and tells which pixels each slice holds. Nothing is
read.

Noise: the collection `sentinel-1-rtc` describes calibration, orthorectification and terrain
flattening, and no subtraction of noise; so the noise of the instrument is part of the image.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from xsoilsm.grid import grid_of, lonlat_to_xy
from xsoilsm.simulate import backscatter
from xsoilsm.simulate.annotation import Slice
from xsoilsm.simulate.backscatter import Polarisation
from xsoilsm.simulate.land import BUILT, FOREST, WATER, Land, Place
from xsoilsm.simulate.noise import generator
from xsoilsm.simulate.orbit import Overpass

__all__ = [
    "GEOID",
    "NODATA",
    "Image",
    "Surface",
    "cut_slice",
    "image_geobox",
    "make_surface",
    "render",
    "shorten",
    "time_range",
]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

NODATA = -32768.0
"""Value of pixels without data in `sentinel-1-rtc`."""

GEOID = 50.0
"""Height in m of the landscape's geoid above the ellipsoid, the same everywhere."""

STRIP = 256
"""Rows that are rendered, and whose speckle is drawn, together."""

FRINGE_M = 300.0
"""Width of the strip of zeros around the data of a slice."""

_MARGIN_M = 1000.0
_NODE_M = 2000.0  # distance of the nodes between which geometry is interpolated
_POSTS = 3600  # terrain posts per degree
_KEPT_BITS = 12  # of the mantissa: 0.001 dB, and half the size of the files


@dataclass(frozen=True)
class Surface:
    """What the radar sees on one day, on the 100 m cells; all (y, x).

    Parameters
    ----------
    soil : dict of ndarray
        Angle-independent factor of the ground's backscatter by polarisation.
    vegetation : ndarray
        NDVI, not negative.
    density : ndarray
        Factor on the vegetation's scattering; above 1 in forest.
    """

    soil: dict[Polarisation, Float32]
    vegetation: Float32
    density: Float32


_LEVELS: dict[Polarisation, tuple[float, float]] = {"vv": (-20.0, -5.0), "vh": (-28.0, -13.0)}
"""Typical backscatter in dB at 38 degrees of calm water and of built-up ground."""


def make_surface(land: Land, moisture: Float32, greenness: Float32) -> Surface:
    """Turn soil moisture and NDVI into what the radar sees.

    Parameters
    ----------
    land : Land
    moisture : (y, x) ndarray
        m3 m-3.
    greenness : (y, x) ndarray
        NDVI.

    Returns
    -------
    Surface
    """
    soil: dict[Polarisation, Float32] = {}
    reference = np.array([np.cos(np.deg2rad(38.0))], dtype=np.float32)
    for polarisation, (water, built) in _LEVELS.items():
        factor = backscatter.soil_factor(
            np.nan_to_num(moisture, nan=0.1), land.roughness, polarisation
        )
        unit = float(backscatter.angle_factor(reference, polarisation)[0])
        factor[land.cover == WATER] = 10 ** (water / 10) / unit
        factor[land.cover == BUILT] = 10 ** (built / 10) / unit
        soil[polarisation] = factor
    bare = (land.cover == WATER) | (land.cover == BUILT)
    return Surface(
        soil=soil,
        vegetation=np.where(bare, 0, np.maximum(greenness, 0)).astype(np.float32),
        density=np.where(land.cover == FOREST, 1.3, 1.0).astype(np.float32),
    )


def image_geobox(place: Place, overpass: Overpass, spacing: float) -> GeoBox:
    """UTM grid of a pass over the region.

    Parameters
    ----------
    place : Place
    overpass : Overpass
        The zone is that of the middle of its swath.
    spacing : float
        Side of a pixel in m.

    Returns
    -------
    GeoBox
        The region and 1 km around it, corners on multiples of `spacing`.
    """
    geometry = overpass.geometry
    lon, lat = geometry.ground(geometry.centre_time, geometry.samples / 2, 0.0)
    zone = int((float(lon) + 180) // 6) % 60 + 1
    crs = f"EPSG:{(32600 if float(lat) >= 0 else 32700) + zone}"
    west, south, east, north = place.box()
    to_utm = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    left, bottom, right, top = to_utm.transform_bounds(west, south, east, north, densify_pts=21)
    x0, y0 = (np.floor((edge - _MARGIN_M) / spacing) * spacing for edge in (left, bottom))
    x1, y1 = (np.ceil((edge + _MARGIN_M) / spacing) * spacing for edge in (right, top))
    shape = round((y1 - y0) / spacing), round((x1 - x0) / spacing)
    return GeoBox(shape, Affine(spacing, 0, float(x0), 0, -spacing, float(y1)), crs)


class _Nodes:
    """Geometry of a pass on nodes some 2 km apart, interpolated between them."""

    def __init__(self, place: Place, overpass: Overpass, geobox: GeoBox) -> None:
        spacing = float(geobox.affine.a)
        self._step = max(round(_NODE_M / spacing), 1)
        height, width = geobox.shape
        rows, columns = (np.arange(-(-size // self._step) + 1) for size in (height, width))
        x = geobox.affine.c + columns * self._step * spacing
        y = geobox.affine.f - rows * self._step * spacing
        to_lonlat = Transformer.from_crs(str(geobox.crs), "EPSG:4326", always_xy=True)
        lon, lat = to_lonlat.transform(*np.meshgrid(x, y))
        ground = place.elevation_at(lat, lon) + GEOID
        seen = overpass.geometry.locate(lon, lat, ground)
        grid, land_rows, land_columns = grid_of(place.geobox)
        east, north = lonlat_to_xy(lon, lat)
        self._values = {
            "lon": lon,
            "lat": lat,
            "row": (float(grid.top(land_rows[0])) - north) / grid.cell - 0.5,
            "column": (east - float(grid.left(land_columns[0]))) / grid.cell - 0.5,
            "time": seen.time - overpass.geometry.centre_time,
            "pixel": seen.pixel,
            "incidence": seen.incidence,
            "azimuth": seen.azimuth,
        }
        self.times = float(seen.time.min()), float(seen.time.max())
        self._width = width

    def rows(self, first: int, last: int) -> dict[str, Float64]:
        """All quantities at the pixel centres of some rows."""
        at_row = (np.arange(first, last) + 0.5) / self._step
        at_column = (np.arange(self._width) + 0.5) / self._step
        row, column = at_row.astype(int), at_column.astype(int)
        down, right = (at_row - row)[:, None], at_column - column
        result = {}
        for name, nodes in self._values.items():
            lines = nodes[row] * (1 - down) + nodes[row + 1] * down
            result[name] = lines[:, column] * (1 - right) + lines[:, column + 1] * right
        return result


class _Sampler:
    """Bilinear interpolation of fields of one grid at many points; clamped at the edges."""

    def __init__(self, shape: tuple[int, int], row: Float64, column: Float64) -> None:
        rows, columns = shape
        row, column = np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)
        top = np.minimum(row.astype(np.int64), rows - 2)
        left = np.minimum(column.astype(np.int64), columns - 2)
        self._first = top * columns + left
        self._columns = columns
        self._down = (row - top).astype(np.float32)
        self._right = (column - left).astype(np.float32)

    def __call__(self, field: Float32) -> Float32:
        flat = np.ravel(field)
        upper, lower = (
            flat[start] + self._right * (flat[start + 1] - flat[start])
            for start in (self._first, self._first + self._columns)
        )
        return np.asarray(upper + self._down * (lower - upper), dtype=np.float32)


def _slopes(place: Place, lat: Float64, lon: Float64) -> tuple[Float32, Float32]:
    """Rise per m to the east and to the north at points, from terrain posts of one second."""
    pad = 2
    north, south = np.ceil(lat.max() * _POSTS) + pad, np.floor(lat.min() * _POSTS) - pad
    west, east = np.floor(lon.min() * _POSTS) - pad, np.ceil(lon.max() * _POSTS) + pad
    post_lat = np.arange(north, south - 1, -1) / _POSTS
    post_lon = np.arange(west, east + 1) / _POSTS
    height = place.elevation(post_lat, post_lon)
    metre = np.deg2rad(1 / _POSTS) * 6371008.8
    to_south, to_east = np.gradient(height)
    sample = _Sampler(height.shape, north - lat * _POSTS, lon * _POSTS - west)
    across = (to_east / (metre * np.cos(np.deg2rad(post_lat)))[:, None]).astype(np.float32)
    return sample(across), sample((-to_south / metre).astype(np.float32))


@dataclass(frozen=True)
class Image:
    """A pass over the region.

    Parameters
    ----------
    geobox : GeoBox
        UTM grid.
    gamma0 : dict of (y, x) ndarray of float32
        Terrain-flattened gamma nought as power, by polarisation; NaN off the land or the swath.
    time : (y, x) ndarray of float32
        Zero-Doppler time in s, relative to the passage of the region's middle.
    pixel : (y, x) ndarray of float32
        Ground-range sample.
    incidence : (y, x) ndarray of float32
        Incidence angle in degrees.
    """

    geobox: GeoBox
    gamma0: dict[Polarisation, Float32]
    time: Float32
    pixel: Float32
    incidence: Float32


def time_range(place: Place, overpass: Overpass, geobox: GeoBox) -> tuple[float, float]:
    """First and last time, in s after the node, at which a pass sees a grid."""
    return _Nodes(place, overpass, geobox).times


def shorten(values: Float32) -> Float32:
    """Round float32 to fewer bits of mantissa, so that files compress."""
    drop = 23 - _KEPT_BITS
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + np.uint32(1 << (drop - 1))) & np.uint32(~((1 << drop) - 1) & 0xFFFFFFFF)).view(
        np.float32
    )


def render(
    place: Place,
    overpass: Overpass,
    geobox: GeoBox,
    surface: Surface,
    *,
    number: int,
    threads: int = 1,
) -> Image:
    """Compute the image of a pass.

    Parameters
    ----------
    place : Place
    overpass : Overpass
    geobox : GeoBox
        From `image_geobox`.
    surface : Surface
        On `Place.geobox`.
    number : int
        Number of the acquisition, for its speckle.
    threads : int, default 1
        Strips rendered at once; the result does not depend on it.

    Returns
    -------
    Image
    """
    nodes = _Nodes(place, overpass, geobox)
    shape = tuple(geobox.shape)
    image = Image(
        geobox=geobox,
        gamma0={"vv": np.empty(shape, np.float32), "vh": np.empty(shape, np.float32)},
        time=np.empty(shape, np.float32),
        pixel=np.empty(shape, np.float32),
        incidence=np.empty(shape, np.float32),
    )
    samples = overpass.geometry.samples
    land_rows, land_columns = place.geobox.shape

    def strip(first: int) -> None:
        last = min(first + STRIP, shape[0])
        at = nodes.rows(first, last)
        angle = np.deg2rad(at["incidence"]).astype(np.float32)
        cosine, sine = np.cos(angle), np.sin(angle)
        look = np.deg2rad(at["azimuth"]).astype(np.float32)
        east, north = _slopes(place, at["lat"], at["lon"])
        local = backscatter.local_incidence(cosine, sine, (np.sin(look), np.cos(look)), east, north)
        sample = _Sampler((land_rows, land_columns), at["row"], at["column"])
        vegetation, density = sample(surface.vegetation), sample(surface.density)
        noise = backscatter.noise_equivalent((at["pixel"] / samples).astype(np.float32))
        outside = (at["pixel"] < 0) | (at["pixel"] > samples - 1)
        outside |= (at["row"] < 0) | (at["row"] > land_rows - 1)
        outside |= (at["column"] < 0) | (at["column"] > land_columns - 1)
        rng = generator(place.seed, "speckle", number, first // STRIP)
        for polarisation, target in image.gamma0.items():
            above, passed = backscatter.cloud(local, vegetation, polarisation)
            ground = sample(surface.soil[polarisation])
            ground *= backscatter.angle_factor(local, polarisation)
            sigma0 = (density * above + passed * ground).astype(np.float32)
            power = backscatter.terrain_flattened(sigma0, local) + noise / cosine
            power *= backscatter.speckle(rng, power.shape)
            seen = shorten(np.maximum(power, 1e-7).astype(np.float32))
            seen[outside] = np.nan
            target[first:last] = seen
        image.time[first:last] = at["time"]
        image.pixel[first:last] = at["pixel"]
        image.incidence[first:last] = at["incidence"]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(strip, range(0, shape[0], STRIP)))
    return image


def cut_slice(image: Image, part: Slice) -> tuple[GeoBox, dict[Polarisation, Float32]] | None:
    """Cut out the part of a pass that one slice holds.

    Parameters
    ----------
    image : Image
    part : Slice

    Returns
    -------
    (GeoBox, dict of (y, x) ndarray of float32), or None
        The slice's own window, with zeros in a fringe around its data and `NODATA` beyond; None
        where the slice holds nothing of the region.
    """
    geometry = part.geometry
    start, last = part.start - geometry.centre_time, part.last - geometry.centre_time
    beyond = np.maximum(start - image.time, image.time - last) / geometry.line_interval
    aside = np.maximum(-image.pixel, image.pixel - (geometry.samples - 1))
    off = np.maximum(beyond, aside) * np.float32(geometry.spacing)  # m outside the slice
    if not (off <= 0).any():
        return None
    near = off <= FRINGE_M
    rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    window = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    cut: dict[Polarisation, Float32] = {}
    for polarisation, gamma0 in image.gamma0.items():
        data = gamma0[window]
        data = np.where(np.isnan(data), np.float32(NODATA), data)
        data[off[window] > 0] = 0
        data[~near[window]] = NODATA
        cut[polarisation] = data
    return image.geobox[window], cut
