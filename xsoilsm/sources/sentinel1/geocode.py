"""Step 3 of 7 (load): where ground points lie in a Sentinel-1 GRD image.

The annotation's geolocation grid (about 10 by 21 points a slice) holds time, slant range,
longitude, latitude, height and incidence angle of points on the terrain. Line and pixel between
them do not follow from interpolating line and pixel: relief and the processor's own ground
heights, which change with every second of flight, move pixels by tens of metres. Slant range
without relief is smooth. So each point is first moved to height 0 along the vertical,

    ``R0^2 = R^2 + h^2 + 2 R h cos(theta)``  (triangle of point, foot and satellite),

time, R0 and cos(theta) are fitted by polynomials in two coordinates of a plane that touches the
ellipsoid, and a ground point at height h is found at the slant range

    ``R^2 = R0^2 + h^2 - 2 R0 h cos(theta0)``,

the exact form of the shift ``h / tan(theta)`` in ground range. The annotation's own polynomials
(`coordinateConversion`), linear in time between their updates, turn slant range into the pixel.
Lines follow from zero-Doppler time and `azimuthTimeInterval`.

On a real scene with 0-1845 m of relief this agrees with range-Doppler from the orbit within 0.04
pixel and 0.11 line rms (0.1 and 0.3 at most); linear interpolation of line and pixel with the
same shift, within 0.8 and 0.3.

Heights are above the ellipsoid; those of elevation models are not: see `geoid_grid`.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from pyproj import Transformer
from pyproj.transformer import TransformerGroup

__all__ = [
    "LIGHT",
    "GeolocationGrid",
    "GroundRange",
    "RadarImage",
    "geoid_grid",
    "scene_offset",
    "seconds_since",
]

Floats = npt.NDArray[np.float64]

LIGHT = 299792458.0
"""Speed of light in m/s."""

DEGREE = 4
"""Total degree of the polynomials over a slice."""

REACH = 1.2
"""Part of the slice, from its middle, up to which the polynomials are used."""

GEOIDS = (-107.0, 87.0)
"""Lowest and highest geoid in m (EGM2008)."""

FEW = 10
"""Number of points below which the sea is asked, too."""

_CODES = {"EGM96": "EPSG:5773", "EGM2008": "EPSG:3855"}


def seconds_since(epoch: np.datetime64, instant: str) -> float:
    """Time in s from an epoch to an instant of an annotation."""
    return float((np.datetime64(instant, "ns") - epoch) / np.timedelta64(1, "ns")) * 1e-9


def _text(root: ET.Element, path: str) -> str:
    found = root.findtext(path)
    if found is None:
        msg = f"the annotation has no {path}; expected that of a Sentinel-1 GRD product"
        raise OSError(msg)
    return found


@dataclass(frozen=True, eq=False)
class GeolocationGrid:
    """Points of the geolocation grid; all arrays (n,).

    Parameters
    ----------
    line, pixel : ndarray
    time : ndarray
        Zero-Doppler time in s after the image's first line.
    slant_range : ndarray
        m.
    lon, lat : ndarray
        Degrees, WGS 84.
    height : ndarray
        m above the ellipsoid.
    incidence : ndarray
        Degrees, on the ellipsoid.
    """

    line: Floats
    pixel: Floats
    time: Floats
    slant_range: Floats
    lon: Floats
    lat: Floats
    height: Floats
    incidence: Floats

    @classmethod
    def parse(cls, root: ET.Element) -> GeolocationGrid:
        """Read the grid of a product annotation.

        Raises
        ------
        OSError
            When there is none, or it is not complete.
        """
        first = np.datetime64(_text(root, ".//productFirstLineUtcTime"), "ns")
        points = list(root.iterfind(".//geolocationGridPoint"))
        names = (
            "line", "pixel", "slantRangeTime", "longitude", "latitude", "height", "incidenceAngle",
        )  # fmt: skip
        try:
            line, pixel, delay, lon, lat, height, angle = (
                np.array([float(point.findtext(name, "nan")) for point in points]) for name in names
            )
            time = np.array([seconds_since(first, _text(p, "azimuthTime")) for p in points])
        except ValueError as error:
            msg = f"the geolocation grid cannot be read: {error}"
            raise OSError(msg) from error
        columns = (line, pixel, time, delay * LIGHT / 2, lon, lat, height, angle)
        if len(points) < 4 or not np.isfinite(columns).all():
            msg = (
                f"the geolocation grid has {len(points)} points with {', '.join(names)}; "
                "expected at least four complete ones"
            )
            raise OSError(msg)
        return cls(*columns)

    def thinned(self, count: int) -> GeolocationGrid:
        """Take at most so many points, spread evenly."""
        taken = np.unique(np.linspace(0, self.line.size - 1, count).round().astype(np.int64))
        return GeolocationGrid(*(getattr(self, field.name)[taken] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class GroundRange:
    """The annotation's conversion from slant range to pixels.

    Parameters
    ----------
    time : (n,) ndarray
        Of the updates, in s after the image's first line.
    origin : (n,) ndarray
        Slant range in m at which the polynomial begins.
    coefficients : (n, m) ndarray
        Ground range in m, from the lowest power.
    spacing : float
        Size of a pixel in m.
    """

    time: Floats
    origin: Floats
    coefficients: Floats
    spacing: float

    @classmethod
    def parse(cls, root: ET.Element) -> GroundRange:
        """Read the conversions of a product annotation.

        Raises
        ------
        OSError
            When there are none.
        """
        first = np.datetime64(_text(root, ".//productFirstLineUtcTime"), "ns")
        updates = [u for u in root.iterfind(".//coordinateConversion") if u.find("sr0") is not None]
        if not updates:
            msg = "the annotation has no coordinateConversion; expected that of a GRD product"
            raise OSError(msg)
        time = np.array([seconds_since(first, _text(u, "azimuthTime")) for u in updates])
        order = np.argsort(time)
        origin = np.array([float(_text(u, "sr0")) for u in updates])
        rows = [np.array(_text(u, "srgrCoefficients").split(), dtype=np.float64) for u in updates]
        coefficients = np.zeros((len(rows), max(row.size for row in rows)))
        for k, row in enumerate(rows):
            coefficients[k, : row.size] = row
        spacing = float(_text(root, ".//rangePixelSpacing"))
        return cls(time[order], origin[order], coefficients[order], spacing)

    def at_updates(self, slant_range: Floats) -> Floats:
        """Pixel of slant ranges by the polynomial of every update.

        Parameters
        ----------
        slant_range : (k,) ndarray
            m.

        Returns
        -------
        (n, k) ndarray
        """
        x = slant_range[None, :] - self.origin[:, None]
        result: Floats = np.zeros_like(x)
        for column in self.coefficients.T[::-1]:
            result = result * x + column[:, None]
        return np.asarray(result / self.spacing)

    def __call__(self, time: Floats, slant_range: Floats) -> Floats:
        """Pixel of points.

        Parameters
        ----------
        time, slant_range : ndarray of one shape
            s after the first line, and m.

        Returns
        -------
        ndarray
        """
        if self.time.size == 1:
            return np.asarray(self.at_updates(np.ravel(slant_range))[0].reshape(slant_range.shape))
        inside = np.clip(time, self.time[0], self.time[-1])
        before = np.searchsorted(self.time, inside, side="right") - 1
        before = np.minimum(before, self.time.size - 2)
        share = (inside - self.time[before]) / (self.time[before + 1] - self.time[before])
        pixels = []
        for k in (before, before + 1):
            x = slant_range - self.origin[k]
            result = np.zeros_like(x)
            for column in self.coefficients.T[::-1]:
                result = result * x + column[k]
            pixels.append(result)
        return np.asarray(((1 - share) * pixels[0] + share * pixels[1]) / self.spacing)


@dataclass(frozen=True, eq=False)
class RadarImage:
    """Geometry of a GRD image.

    Parameters
    ----------
    shape : (int, int)
        Lines and pixels.
    line_interval : float
        Time in s between lines.
    grid : GeolocationGrid
    ground_range : GroundRange
    axes : (3, 3) ndarray
        Unit vectors: the ellipsoid's normal in the middle, across and along the track.
    half : (2,) ndarray
        Half the extent across and along the track, on the plane that touches a sphere of
        radius 1.
    degree : (int, int)
        Total degree, and degree along the track.
    coefficients : (3, n) ndarray
        Of time, slant range and cosine of the incidence angle at height 0.
    residual : float
        Root mean square in m of the slant range of the grid's points.
    """

    shape: tuple[int, int]
    line_interval: float
    grid: GeolocationGrid
    ground_range: GroundRange
    axes: Floats
    half: Floats
    degree: tuple[int, int]
    coefficients: Floats
    residual: float

    @classmethod
    def parse(cls, root: ET.Element) -> RadarImage:
        """Read a product annotation and fit its geolocation grid. Computes.

        Raises
        ------
        OSError
            When it is not complete, or its geolocation grid is not smooth.
        """
        information = ".//imageInformation/"
        shape = (
            int(_text(root, f"{information}numberOfLines")),
            int(_text(root, f"{information}numberOfSamples")),
        )
        interval = float(_text(root, f"{information}azimuthTimeInterval"))
        grid = GeolocationGrid.parse(root)
        axes = _axes(grid)
        across, along = _on_plane(axes, grid.lon, grid.lat)
        half = np.array([np.abs(across).max(), np.abs(along).max()])
        cosine = np.cos(np.deg2rad(grid.incidence))
        rows, columns = np.unique(grid.line).size, np.unique(grid.pixel).size
        if min(rows, columns) < 2:
            msg = f"the geolocation grid lies on {rows} lines and {columns} pixels; expected more"
            raise OSError(msg)
        degree = min(DEGREE, columns - 1), min(DEGREE, rows - 1)
        design = _powers(across / half[0], along / half[1], degree)
        far = np.sqrt(
            grid.slant_range**2 + grid.height**2 + 2 * grid.slant_range * grid.height * cosine
        )
        lifted = (grid.slant_range * cosine + grid.height) / far
        wanted = np.stack([grid.time, far, lifted], axis=-1)
        middle = wanted.mean(axis=0)
        coefficients = np.linalg.lstsq(design, wanted - middle, rcond=None)[0]
        residual = float(np.sqrt(np.mean((design @ coefficients + middle - wanted)[:, 1] ** 2)))
        if not residual < SMOOTH:
            msg = (
                f"slant ranges of the geolocation grid leave a smooth surface by {residual:.3g} m "
                f"rms; expected less than {SMOOTH} m, so the annotation is damaged"
            )
            raise OSError(msg)
        coefficients[0] += middle  # the first power is the constant
        ground_range = GroundRange.parse(root)
        return cls(
            shape, interval, grid, ground_range, axes, half, degree, coefficients.T, residual
        )

    def reference(self, lon: npt.ArrayLike, lat: npt.ArrayLike) -> Floats:
        """Line, slant range and cosine of the incidence angle of points at height 0.

        Parameters
        ----------
        lon, lat : array_like
            Degrees, WGS 84, of one shape.

        Returns
        -------
        (3, ...) ndarray
            Line of the image, m, 1. NaN far from the slice.
        """
        lon, lat = np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64)
        across, along = _on_plane(self.axes, lon.ravel(), lat.ravel())
        x, y = across / self.half[0], along / self.half[1]
        near = (np.abs(x) <= REACH) & (np.abs(y) <= REACH)
        result = np.full((3, lon.size), np.nan)
        result[:, near] = self.coefficients @ _powers(x[near], y[near], self.degree).T
        result[0] /= self.line_interval
        return result.reshape(3, *lon.shape)

    def locate(
        self, lon: npt.ArrayLike, lat: npt.ArrayLike, height: npt.ArrayLike
    ) -> tuple[Floats, Floats]:
        """Line and pixel of ground points.

        Parameters
        ----------
        lon, lat : array_like
            Degrees, WGS 84.
        height : array_like
            m above the ellipsoid.

        Returns
        -------
        line, pixel : ndarray
            Counted from 0 at the centre of the first; NaN far from the slice. Points beside
            the image have lines and pixels beyond its shape.
        """
        lon, lat, above = np.broadcast_arrays(
            np.asarray(lon, float), np.asarray(lat, float), np.asarray(height, float)
        )
        line, far, cosine = self.reference(lon, lat)
        slant_range = np.sqrt(far**2 + above**2 - 2 * far * above * cosine)
        return line, self.ground_range(line * self.line_interval, slant_range)


SMOOTH = 20.0
"""Misfit in m of slant ranges above which an annotation is refused."""


def _normals(lon: Floats, lat: Floats) -> Floats:
    """Give the unit normals of the ellipsoid, (3, n)."""
    east, north = np.deg2rad(lon), np.deg2rad(lat)
    return np.stack(
        (np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)), axis=0
    )


def _axes(grid: GeolocationGrid) -> Floats:
    """Give the normal in the middle of the grid, and directions across and along the track."""
    normals = _normals(grid.lon, grid.lat)
    middle = normals.mean(axis=1)
    middle /= np.linalg.norm(middle)
    centred = np.stack([grid.pixel, grid.line, np.ones_like(grid.line)], axis=1)
    across = np.linalg.lstsq(centred, normals.T, rcond=None)[0][0]
    across -= middle * (middle @ across)
    across /= np.linalg.norm(across)
    return np.stack([middle, across, np.cross(middle, across)])


def _on_plane(axes: Floats, lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
    """Gnomonic coordinates across and along the track; infinite on the other half of the globe."""
    up, across, along = axes @ _normals(lon, lat)
    seen = up > 0.5
    safe = np.where(seen, up, 1.0)
    return np.where(seen, across / safe, np.inf), np.where(seen, along / safe, np.inf)


def _powers(x: Floats, y: Floats, degree: tuple[int, int]) -> Floats:
    """(n, terms): products of powers up to a total degree, y up to a degree of its own."""
    total, most = degree
    terms = [x**i * y**j for j in range(most + 1) for i in range(max(total, most) + 1 - j)]
    return np.stack(terms, axis=-1)


@lru_cache(maxsize=8)
def geoid_grid(datum: str) -> Transformer | None:
    """Way from heights of a vertical datum to heights above the ellipsoid, by a geoid grid.

    Without its grid PROJ offers a "ballpark" transformation, which leaves heights as they are
    and says nothing: such a one is refused.

    Parameters
    ----------
    datum : str
        ``"EGM96"``, ``"EGM2008"``.

    Returns
    -------
    Transformer or None
        None where the datum is another or its grid is not installed.
    """
    code = _CODES.get(datum.upper())
    if code is None:
        return None
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says that the grid is missing
        group = TransformerGroup(
            f"EPSG:4326+{code.removeprefix('EPSG:')}",
            "EPSG:4979",
            always_xy=True,
            allow_ballpark=False,
        )
    if not group.best_available or not group.transformers:
        return None
    way = group.transformers[0]
    _, _, height = way.transform(0.0, 0.0, 0.0)  # 17 m in the Gulf of Guinea
    return way if np.isfinite(height) and abs(height) > 1.0 else None


def scene_offset(
    grid: GeolocationGrid, elevation: Callable[[Floats, Floats], Floats]
) -> tuple[float, int]:
    """Height in m of a scene's geoid: the annotation's own heights against an elevation model.

    Parameters
    ----------
    grid : GeolocationGrid
        Its heights are above the ellipsoid.
    elevation : callable
        Elevation in m of longitudes and latitudes; NaN where the model has none.

    Returns
    -------
    offset : float
        Median of the differences. Models leave out the sea: where fewer than `FEW` points have
        an elevation, those without one that are as low as geoids are taken for sea, too.
    count : int
        Number of points with an elevation.
    """
    difference = grid.height - elevation(grid.lon, grid.lat)
    known = np.isfinite(difference)
    count = int(known.sum())
    if count < FEW:
        low, high = GEOIDS
        sea = ~known & (grid.height > low) & (grid.height < high)
        difference = np.where(sea, grid.height, difference)
        known |= sea
    return (float(np.median(difference[known])) if known.any() else 0.0), count
