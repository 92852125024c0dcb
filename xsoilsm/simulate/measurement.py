"""Outside the seven steps (simulate): the pixels of a Sentinel-1 GRD product, and their tables.

Digital numbers in radar geometry, calibration and noise, in the forms of the real products, by
their definition: ``DN^2 = (sigma0 + noise) * sigmaNought^2``. The image of a pass is flattened
gamma nought; a slope `a` in the direction of look turns it into sigma nought on the ellipsoid,
``gamma0 sin(theta) cot(theta - a)`` (Small 2011, doi 10.1109/TGRS.2011.2120616, on a plane). Only
the part of a slice over the region is filled; the rest is 0. Writes; reads nothing.

Source: Sentinel-1 Product Specification (S1-RS-MDA-52-7441), calibration and noise annotations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt
import rasterio
from pyproj import Transformer
from rasterio.control import GroundControlPoint
from rasterio.windows import Window
from scipy.ndimage import map_coordinates

from xsoilsm.simulate.annotation import SIMULATED, Slice
from xsoilsm.simulate.backscatter import noise_equivalent
from xsoilsm.simulate.files import write_text
from xsoilsm.simulate.land import Place
from xsoilsm.simulate.scene import GEOID, Image

__all__ = ["write_measurement"]

Float64 = npt.NDArray[np.float64]

_BETA = 474.0  # betaNought of real products since 2021, constant across the swath
_STEP = 40  # pixels between values of the tables, as in real products
_STRIP = 512  # lines that are filled together
_ROUNDS = 8
_NODE_M, _RISE = 1000.0, 1000.0
_POSTS = 3600  # of the terrain per degree


def write_measurement(folder: Path, place: Place, image: Image, part: Slice) -> None:
    """Write measurements, calibration and noise of a slice.

    Parameters
    ----------
    folder : Path
        Of the product; ``measurement`` and ``annotation/calibration`` are made inside.
    place : Place
    image : Image
        The pass.
    part : Slice
    """
    samples = part.geometry.samples
    pixel = np.unique(np.append(np.arange(0, samples, _STEP), samples - 1))
    angle = np.interp(pixel, part.grid.pixel[0], part.grid.incidence.mean(axis=0))
    scale = np.round(_BETA / np.sqrt(np.sin(np.deg2rad(angle))), 4)
    noise = np.round(noise_equivalent((pixel / samples).astype(np.float32)) * scale**2, 3)
    (folder / "measurement").mkdir(parents=True, exist_ok=True)
    points = zip(
        *(np.ravel(getattr(part.grid, name)) for name in ("line", "pixel", "lon", "lat", "height")),
        strict=True,
    )
    profile = {
        "driver": "GTiff", "count": 1, "dtype": "uint16", "tiled": True, "blockxsize": 512,
        "blockysize": 512, "compress": "deflate", "zlevel": 1, "SPARSE_OK": True,
        "height": part.lines, "width": samples, "crs": "EPSG:4326",
        "gcps": [GroundControlPoint(*point) for point in points],
    }  # fmt: skip
    with ExitStack() as stack:
        files = {}
        for key in image.gamma0:
            path = folder / "measurement" / f"iw-{key}.tiff"
            files[key] = stack.enter_context(rasterio.open(path, "w", **profile))
            for kind, values in (("calibration", scale), ("noise", noise)):
                name = f"annotation/calibration/{kind}-iw-{key}.xml"
                write_text(folder / name, _table(part, kind, key, pixel, values))
        maps, unflattened = _located(place, image, part)
        for window, row, column in _places(maps, image, part):
            inside = (row >= 0) & (row < image.geobox.height)
            inside &= (column >= 0) & (column < image.geobox.width)
            at = np.where(inside, row, 0), np.where(inside, column, 0)
            across = np.arange(window.col_off, window.col_off + window.width)
            factor = np.interp(across, pixel, scale) ** 2 * unflattened[at]
            for key, file in files.items():
                power = np.where(inside, image.gamma0[key][at], np.nan) * factor
                numbers = np.nan_to_num(np.sqrt(power).round().clip(1, 65535))
                file.write(numbers.astype(np.uint16), 1, window=window)


def _places(
    maps: Float64, image: Image, part: Slice
) -> Iterator[tuple[Window, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Row and column in the image of a pass of all pixels of a slice over the region.

    The inverse of `maps` follows by iteration from the best linear one.
    """
    known = np.stack(np.nonzero(np.isfinite(image.gamma0["vv"])))
    known = known[:, :: max(known.shape[1] // 1_000_000, 1)]
    if known.size == 0:
        return
    seen = maps[:, known[0], known[1]]
    centre, middle = known.mean(axis=1), seen.mean(axis=1)
    forward = np.linalg.lstsq((known.T - centre), (seen.T - middle), rcond=None)[0].T
    inverse = np.linalg.inv(forward)
    sizes = part.lines, part.geometry.samples
    low = [max(int(values.min()) - 1, 0) for values in seen]
    high = [min(int(v.max()) + 2, size) for v, size in zip(seen, sizes, strict=True)]
    for first in range(low[0], high[0], _STRIP):
        last = min(first + _STRIP, high[0])
        axes = np.arange(first, last), np.arange(low[1], high[1])
        wanted = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float64)
        offset = wanted - middle[:, None, None]
        at = centre[:, None, None] + np.tensordot(inverse, offset, axes=1)
        for _ in range(_ROUNDS):
            found = [map_coordinates(values, at, order=1, mode="nearest") for values in maps]
            beyond = [(x < 0) | (x > n - 1) for x, n in zip(at, maps.shape[1:], strict=True)]
            step = np.tensordot(inverse, wanted - np.stack(found), axes=1)
            at += np.where(beyond[0] | beyond[1], 0, step)
        row, column = at.round().astype(np.int64)
        yield Window(low[1], first, high[1] - low[1], last - first), row, column


def _located(place: Place, image: Image, part: Slice) -> tuple[Float64, Float64]:
    """Line and pixel, (2, y, x), of the image's pixels, and sigma nought over gamma nought.

    From nodes 1 km apart; pixels are linear in height to a tenth of a pixel.
    """
    step = max(round(_NODE_M / part.geometry.spacing), 1)
    affine, shape = image.geobox.affine, image.geobox.shape
    y, x = (np.arange(0, size + step, step) + 0.5 for size in shape)
    to_lonlat = Transformer.from_crs(str(image.geobox.crs), "EPSG:4326", always_xy=True)
    lon, lat = to_lonlat.transform(*np.meshgrid(affine.c + affine.a * x, affine.f + affine.e * y))
    low, high = (part.geometry.locate(lon, lat, height) for height in (0.0, _RISE))
    at = np.meshgrid(*(np.arange(size) / step for size in shape), indexing="ij")
    lon, lat, time, pixel, lifted, angle, azimuth = (
        map_coordinates(values, at, order=1)
        for values in (lon, lat, low.time, low.pixel, high.pixel, low.incidence, low.azimuth)
    )
    north, west = np.ceil(lat.max() * _POSTS) + 1, np.floor(lon.min() * _POSTS) - 1
    post_lat = np.arange(north, np.floor(lat.min() * _POSTS) - 2, -1) / _POSTS
    post_lon = np.arange(west, np.ceil(lon.max() * _POSTS) + 2) / _POSTS
    heights = place.elevation(post_lat, post_lon).astype(np.float64)
    metres = np.deg2rad(1 / _POSTS) * 6371008.8
    down, east = np.gradient(heights, metres)
    east /= np.cos(np.deg2rad(post_lat))[:, None]
    posts = north - lat * _POSTS, lon * _POSTS - west
    height, east, down = (map_coordinates(v, posts, order=1) for v in (heights, east, down))
    pixel += (lifted - pixel) * ((height + GEOID) / _RISE)
    # The satellite lies at `azimuth`; ground that rises away from it faces it.
    look = np.deg2rad(azimuth)
    facing = np.rad2deg(np.arctan(np.cos(look) * down - np.sin(look) * east))
    local = np.deg2rad(np.clip(angle - facing, 10, 80))
    maps = np.stack([(time - part.start) / part.geometry.line_interval, pixel])
    return maps, np.sin(np.deg2rad(angle)) / np.tan(local)


def _table(part: Slice, kind: str, key: str, pixel: npt.NDArray[np.int64], values: Float64) -> str:
    """Calibration or noise annotation: the same vector every second, blocks without effect."""
    root = ET.Element(kind)
    root.append(ET.Comment(f" {SIMULATED} "))
    header = ET.SubElement(root, "adsHeader")
    ET.SubElement(header, "polarisation").text = key.upper()
    ET.SubElement(header, "startTime").text = str(part.overpass.utc(part.start))
    name, tag = {
        "calibration": ("calibrationVector", "sigmaNought"),
        "noise": ("noiseRangeVector", "noiseRangeLut"),
    }[kind]
    vectors = ET.SubElement(root, f"{name}List")
    interval = part.geometry.line_interval
    for line in range(0, part.lines, max(round(1.0 / interval), 1)):
        vector = ET.SubElement(vectors, name)
        ET.SubElement(vector, "azimuthTime").text = str(
            part.overpass.utc(part.start + line * interval)
        )
        ET.SubElement(vector, "line").text = str(line)
        ET.SubElement(vector, "pixel").text = " ".join(map(str, pixel.tolist()))
        ET.SubElement(vector, tag).text = " ".join(f"{value:.6e}" for value in values)
    bounds = np.linspace(0, part.geometry.samples, 4).astype(int).tolist()
    blocks = ET.SubElement(root, "noiseAzimuthVectorList") if kind == "noise" else None
    for k in range(3 if blocks is not None else 0):
        block = ET.SubElement(blocks if blocks is not None else root, "noiseAzimuthVector")
        for tag, value in (
            ("firstAzimuthLine", 0), ("firstRangeSample", bounds[k]),
            ("lastAzimuthLine", part.lines - 1), ("lastRangeSample", bounds[k + 1] - 1),
            ("line", f"0 {part.lines - 1}"), ("noiseAzimuthLut", "1.0 1.0"),
        ):  # fmt: skip
            ET.SubElement(block, tag).text = str(value)
    ET.indent(root)
    body = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'
