"""A Sentinel-1 GRD product with simulated pixels on the geometry of the real annotation.

Annotation, calibration and noise are the real files; a small part of the image is filled with
digital numbers of a known sigma nought on a known terrain, and the rest of it is empty.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import rasterio
from affine import Affine
from range_doppler import RangeDoppler
from rasterio.control import GroundControlPoint
from rasterio.windows import Window
from scipy.interpolate import RegularGridInterpolator

from xsoilsm.facts import Band
from xsoilsm.sources.access.links import Access
from xsoilsm.sources.ground.elevation import DemTile
from xsoilsm.sources.pixels.reading import Raster
from xsoilsm.sources.sentinel1.grd import GrdAcquisition, GrdSlice
from xsoilsm.sources.sentinel1.heights import HeightSource

POLARISATIONS = ("vv", "vh")
LEVEL = {"vv": -10.0, "vh": -17.0}
"""Middle of sigma nought in dB."""

CORNER = (8400, 8500)
"""First line and pixel of the filled part: sub-swaths IW1 and IW2 meet in it."""

FILLED = (640, 640)
"""Lines and pixels of the filled part."""

ACCESS = Access()


def real_files(shared: Path) -> dict[str, Path]:
    """Find the real XML files by the names that they have on the Planetary Computer."""
    (safe,) = (shared / "data" / "s1_annotation").glob("*.SAFE")
    found = {}
    for polarisation in POLARISATIONS:
        name = f"iw-{polarisation}.xml"
        (found[name],) = safe.glob(f"annotation/s1a-iw-grd-{polarisation}-*.xml")
        for kind in ("calibration", "noise"):
            (file,) = safe.glob(f"annotation/calibration/{kind}-s1a-iw-grd-{polarisation}-*.xml")
            found[f"calibration/{kind}-{name}"] = file
    return found


def sigma_nought_table(path: Path) -> RegularGridInterpolator:
    """Table of the calibration, by an independent library."""
    return _table(path, "calibrationVector", "sigmaNought")


def range_noise_table(path: Path) -> RegularGridInterpolator:
    """Table of the noise along range, by an independent library."""
    return _table(path, "noiseRangeVector", "noiseRangeLut")


def _table(path: Path, vector: str, value: str) -> RegularGridInterpolator:
    vectors = list(ET.parse(path).getroot().iter(vector))
    lines = [int(str(v.findtext("line"))) for v in vectors]
    (pixels,) = {str(v.findtext("pixel")) for v in vectors}  # the real files repeat them
    values = [np.array(str(v.findtext(value)).split(), float) for v in vectors]
    at = np.array(pixels.split(), float)
    return RegularGridInterpolator((lines, at), np.array(values), bounds_error=True)


def noise_power(path: Path, line: Any, pixel: Any) -> Any:
    """Noise of the newer format at points, one block after the other."""
    factor = np.ones(np.broadcast_shapes(line.shape, pixel.shape))
    for block in ET.parse(path).getroot().iter("noiseAzimuthVector"):
        top, bottom, left, right = (
            int(str(block.findtext(name)))
            for name in (
                "firstAzimuthLine", "lastAzimuthLine", "firstRangeSample", "lastRangeSample",
            )
        )  # fmt: skip
        at = np.array(str(block.findtext("line")).split(), float)
        lut = np.array(str(block.findtext("noiseAzimuthLut")).split(), float)
        inside = (line >= top) & (line <= bottom) & (pixel >= left) & (pixel <= right)
        factor = np.where(inside, np.interp(line, at, lut), factor)
    return range_noise_table(path)((line, pixel)) * factor


def relief(lon: Any, lat: Any) -> Any:
    """Ellipsoidal height in m: hills of some 300 m over 3 km."""
    x, y = np.asarray(lon) * 78e3, np.asarray(lat) * 111.2e3
    return 700 + 180 * np.sin(x / 700) * np.cos(y / 900) + 60 * np.sin(y / 400)


def field(lon: Any, lat: Any) -> Any:
    """Sigma nought in dB above its level: a pattern that shows displacements."""
    x, y = np.asarray(lon) * 78e3, np.asarray(lat) * 111.2e3
    return 2.5 * np.sin(x / 260) + 2.0 * np.cos(y / 210)


def write_dem(
    path: Path, bounds: Any, height_of: Any, step: float = 1 / 3600, geoid: float = 0.0
) -> DemTile:
    """Elevation model on a grid of degrees, `geoid` m below the ellipsoidal heights."""
    import shapely

    west, south, east, north = bounds
    shape = round((north - south) / step), round((east - west) / step)
    lon, lat = np.meshgrid(
        west + step * (np.arange(shape[1]) + 0.5), north - step * (np.arange(shape[0]) + 0.5)
    )
    profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "crs": "EPSG:4326"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        height=shape[0],
        width=shape[1],
        transform=Affine(step, 0, west, 0, -step, north),
        **profile,
    ) as file:
        file.write((height_of(lon, lat) - geoid).astype(np.float32), 1)
    band = Band(asset="elevation", units="m")
    return DemTile(path.stem, Raster(str(path), ACCESS), band, shapely.box(*bounds).wkb)


class GrdScene:
    """One product in a folder.

    Parameters
    ----------
    shared : Path
        Folder with the real annotation.
    folder : Path
        Of the product.
    corner : (int, int)
        First line and pixel of the filled part.
    filled : (int, int)
        Its lines and pixels.
    """

    def __init__(
        self,
        shared: Path,
        folder: Path,
        corner: tuple[int, int] = CORNER,
        filled: tuple[int, int] = FILLED,
    ) -> None:
        self.folder = folder
        self.corner, self.filled = corner, filled
        for name, file in real_files(shared).items():
            target = folder / "annotation" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        self.geometry = RangeDoppler(folder / "annotation" / "iw-vv.xml")
        line, pixel = (np.arange(0, size + 1, 4) for size in filled)
        lon, lat = self.geometry.ground(
            (corner[0] + line)[:, None], (corner[1] + pixel)[None, :], relief
        )
        whole = np.meshgrid(np.arange(filled[0]), np.arange(filled[1]), indexing="ij")
        self.lon, self.lat = (
            RegularGridInterpolator((line, pixel), v)(tuple(whole)) for v in (lon, lat)
        )
        self.line, self.pixel = corner[0] + whole[0], corner[1] + whole[1]
        margin = 0.02
        self.bounds = (
            self.lon.min() - margin, self.lat.min() - margin,
            self.lon.max() + margin, self.lat.max() + margin,
        )  # fmt: skip

    @property
    def middle(self) -> tuple[float, float]:
        """Longitude and latitude of the middle of the filled part."""
        return float(self.lon.mean()), float(self.lat.mean())

    def power(self, polarisation: str) -> Any:
        """Digital number squared of the known sigma nought, noise included."""
        name = f"iw-{polarisation}.xml"
        folder = self.folder / "annotation" / "calibration"
        scale = sigma_nought_table(folder / f"calibration-{name}")((self.line, self.pixel))
        noise = noise_power(folder / f"noise-{name}", self.line, self.pixel)
        sigma0 = 10 ** ((LEVEL[polarisation] + field(self.lon, self.lat)) / 10)
        return sigma0 * scale**2 + noise

    def write(self, numbers: dict[str, Any]) -> None:
        """Write the measurements; what is not filled is 0."""
        gcps = [GroundControlPoint(0, 0, *self.middle, 0.0)]
        profile = {
            "driver": "GTiff", "count": 1, "dtype": "uint16", "tiled": True, "blockxsize": 512,
            "blockysize": 512, "compress": "deflate", "SPARSE_OK": True,
        }  # fmt: skip
        height, width = self.geometry.shape
        for polarisation, values in numbers.items():
            path = self.folder / "measurement" / f"iw-{polarisation}.tiff"
            path.parent.mkdir(parents=True, exist_ok=True)
            with rasterio.open(
                path, "w", height=height, width=width, gcps=gcps, crs="EPSG:4326", **profile
            ) as file:
                file.write(values, 1, window=Window(*self.corner[::-1], *values.shape[::-1]))

    def write_known(self) -> None:
        """Write digital numbers without speckle."""
        self.write({p: np.sqrt(self.power(p)).round().astype(np.uint16) for p in POLARISATIONS})

    def acquisition(self, **changes: Any) -> GrdAcquisition:
        """Record of the product, with an ellipsoidal elevation model unless another is given."""
        import shapely

        settings = dict(changes)
        if "heights" not in settings:
            dem = write_dem(self.folder / "dem" / "around.tif", self.bounds, relief)
            settings["heights"] = HeightSource((dem,), "ellipsoid", "constant")
        vv, vh = (
            Raster(str(self.folder / "measurement" / f"iw-{p}.tiff"), ACCESS) for p in POLARISATIONS
        )
        fringe = bool(settings.pop("has_fringe", False))
        piece = GrdSlice("S1A_SLICE", vv, vh, shapely.box(1.5, 44.5, 5.2, 46.5).wkb, fringe)
        return GrdAcquisition(
            time=np.datetime64("2021-08-09T17:40:05", "ns"),
            platform="SENTINEL-1A",
            relative_orbit=59,
            orbit_state="ascending",
            absolute_orbit=39156,
            slices=(piece,),
            **settings,
        )
