"""Outside the seven steps (simulate): the annotation XML of a simulated Sentinel-1 product.

Same elements, order and number formats as the product annotation of real IW GRDH scenes, as far
as geocoding and incidence angles need them: header, orbit, image geometry, geolocation grid,
conversion between slant and ground range, limits of the sub-swaths. The product's pixels,
calibration and noise are not simulated here; they would follow from the same `Slice`.
Nothing is read.

Source: Sentinel-1 Product Specification (S1-RS-MDA-52-7441), level 1 product annotations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt

from xsoilsm.simulate.backscatter import Polarisation
from xsoilsm.simulate.orbit import LIGHT, Geometry, Overpass

__all__ = ["SIMULATED", "Grid", "Slice", "annotation_xml", "rfi_xml"]

Float64 = npt.NDArray[np.float64]

SIMULATED = "Simulated by xsoilsm; not an observation."
"""What every file and item of a landscape says."""

GRID_LINES, GRID_PIXELS = 10, 21
"""Points of the geolocation grid along and across the track, as in real products."""


@dataclass(frozen=True)
class Grid:
    """The geolocation grid of a slice; all arrays (line, pixel).

    Parameters
    ----------
    line, pixel : ndarray of int64
    time : ndarray
        s after the ascending node.
    slant_range : ndarray
        m.
    lon, lat, height : ndarray
        Degrees, and m above the ellipsoid.
    incidence, elevation : ndarray
        Degrees.
    """

    line: npt.NDArray[np.int64]
    pixel: npt.NDArray[np.int64]
    time: Float64
    slant_range: Float64
    lon: Float64
    lat: Float64
    height: Float64
    incidence: Float64
    elevation: Float64


@dataclass(frozen=True)
class Slice:
    """One product: a stretch of a pass.

    Parameters
    ----------
    overpass : Overpass
    start, stop : float
        First and last line, in s after the ascending node.
    number, total : int
        Which of the slices of the data take.
    ellipsoid_height : callable
        Height in m above the ellipsoid of longitudes and latitudes in degrees.
    """

    overpass: Overpass
    start: float
    stop: float
    number: int
    total: int
    ellipsoid_height: Callable[[Float64, Float64], Float64]

    @property
    def geometry(self) -> Geometry:
        """The imaging geometry."""
        return self.overpass.geometry

    @property
    def lines(self) -> int:
        """Number of lines."""
        return int((self.stop - self.start) / self.geometry.line_interval) + 1

    @property
    def datatake(self) -> int:
        """Number of the data take, of the size that real ones have."""
        number = self.overpass.absolute_orbit
        return (
            int(302867 + 8.847 * (number - 39156)) if self.overpass.platform == "A" else number * 8
        )

    @property
    def last(self) -> float:
        """Time of the last line in s after the ascending node."""
        return self.start + (self.lines - 1) * self.geometry.line_interval

    @cached_property
    def name(self) -> str:
        """Identifier of the product, without its checksum."""
        first, last = (
            str(self.overpass.utc(t).astype("datetime64[s]")).replace("-", "").replace(":", "")
            for t in (self.start, self.last)
        )
        return (
            f"S1{self.overpass.platform}_IW_GRDH_1SDV_{first}_{last}_"
            f"{self.overpass.absolute_orbit:06d}_{self.datatake:06X}"
        )

    @cached_property
    def grid(self) -> Grid:
        """The geolocation grid, on the terrain."""
        geometry = self.geometry
        lines = np.linspace(0, self.lines - 1, GRID_LINES).astype(np.int64)
        pixels = np.linspace(0, geometry.samples - 1, GRID_PIXELS).astype(np.int64)
        line, pixel = np.meshgrid(lines, pixels, indexing="ij")
        time = np.asarray(self.start + line * geometry.line_interval, dtype=np.float64)
        height = np.full(line.shape, 500.0)
        for _ in range(6):  # the terrain under a line of sight: a fixed point
            lon, lat = geometry.ground(time, pixel, height)
            height = self.ellipsoid_height(lon, lat)
        lon, lat = geometry.ground(time, pixel, height)
        seen = geometry.locate(lon, lat, height)
        return Grid(
            line, pixel, time, geometry.slant_range(pixel), lon, lat, height,
            seen.incidence, seen.elevation,
        )  # fmt: skip

    def outline(self) -> list[tuple[float, float]]:
        """Corners of the image as longitude and latitude, closed."""
        lon, lat = self.grid.lon, self.grid.lat
        corners = ((0, -1), (0, 0), (-1, 0), (-1, -1), (0, -1))
        return [(float(lon[at]), float(lat[at])) for at in corners]


def _add(parent: ET.Element, **values: object) -> None:
    """Append one element per value."""
    for tag, value in values.items():
        if isinstance(value, np.datetime64):
            text = str(value.astype("datetime64[us]"))
        elif isinstance(value, float | np.floating):
            text = f"{value:.15e}"
        elif isinstance(value, np.ndarray):
            text = " ".join(f"{one:.15e}" for one in value)
        else:
            text = str(value)
        element = ET.SubElement(parent, tag)
        element.text = text
        if isinstance(value, np.ndarray):
            element.set("count", str(value.size))


def _header(root: ET.Element, part: Slice, polarisation: Polarisation) -> None:
    header = ET.SubElement(root, "adsHeader")
    over = part.overpass
    _add(
        header,
        missionId=f"S1{over.platform}",
        productType="GRD",
        polarisation=polarisation.upper(),
        mode="IW",
        swath="IW",
        startTime=over.utc(part.start),
        stopTime=over.utc(part.last),
        absoluteOrbitNumber=over.absolute_orbit,
        missionDataTakeId=part.datatake,
        imageNumber="001" if polarisation == "vv" else "002",
    )


def _general(root: ET.Element, part: Slice) -> None:
    over, geometry = part.overpass, part.geometry
    general = ET.SubElement(root, "generalAnnotation")
    first, last = part.grid.lat[0].mean(), part.grid.lat[-1].mean()
    east = np.cos(np.deg2rad((first + last) / 2)) * (part.grid.lon[-1] - part.grid.lon[0]).mean()
    _add(
        ET.SubElement(general, "productInformation"),
        **{"pass": over.orbit_state.capitalize()},
        timelinessCategory="Fast-24h",
        platformHeading=float(np.rad2deg(np.arctan2(east, last - first))),
        projection="Ground Range",
        rangeSamplingRate=6.434523812571428e07,
        radarFrequency=5.405000454334350e09,
        azimuthSteeringRate=1.590368784000000,
    )
    begin = over.utc(part.start).astype("datetime64[s]") - np.timedelta64(60, "s")
    orbits = ET.SubElement(general, "orbitList", count="16")
    for k in range(16):
        time = begin.astype("datetime64[us]") + np.timedelta64(10 * k, "s")
        position, velocity, _ = geometry.state((time - over.node_time) / np.timedelta64(1, "s"))
        orbit = ET.SubElement(orbits, "orbit")
        _add(orbit, time=time, frame="Earth Fixed")
        for tag, vector in (("position", position), ("velocity", velocity)):
            _add(
                ET.SubElement(orbit, tag),
                x=float(vector[0]),
                y=float(vector[1]),
                z=float(vector[2]),
            )
    heights = ET.SubElement(general, "terrainHeightList", count=str(GRID_LINES))
    for time, height in zip(part.grid.time[:, 0], part.grid.height.mean(axis=1), strict=True):
        _add(
            ET.SubElement(heights, "terrainHeight"), azimuthTime=over.utc(time), value=float(height)
        )


def _image(root: ET.Element, part: Slice) -> None:
    over, geometry = part.overpass, part.geometry
    image = ET.SubElement(root, "imageAnnotation")
    _add(
        ET.SubElement(image, "imageInformation"),
        productFirstLineUtcTime=over.utc(part.start),
        productLastLineUtcTime=over.utc(part.last),
        ascendingNodeTime=over.node_time,
        anchorTime=over.utc(part.start),
        productComposition="Slice",
        sliceNumber=part.number,
        slantRangeTime=2 * float(geometry.slant_range(0)) / LIGHT,
        pixelValue="Detected",
        outputPixels="16 bit Unsigned Integer",
        rangePixelSpacing=float(geometry.spacing),
        azimuthPixelSpacing=float(geometry.spacing),
        azimuthTimeInterval=geometry.line_interval,
        azimuthFrequency=4.864863102995529e02,
        numberOfSamples=geometry.samples,
        numberOfLines=part.lines,
        incidenceAngleMidSwath=float(part.grid.incidence[:, GRID_PIXELS // 2].mean()),
    )
    _add(
        ET.SubElement(image, "processingInformation"),
        srgrConversionApplied="true",
        detectionPerformed="true",
        thermalNoiseCorrectionPerformed="false",
        ellipsoidName="WGS84",
        ellipsoidSemiMajorAxis=6.378137e06,
        ellipsoidSemiMinorAxis=6.356752314245e06,
        orbitSource="Auxiliary",
    )


def _geolocation(root: ET.Element, part: Slice) -> None:
    grid = part.grid
    outer = ET.SubElement(root, "geolocationGrid")
    points = ET.SubElement(outer, "geolocationGridPointList", count=str(grid.line.size))
    for at in np.ndindex(grid.line.shape):
        _add(
            ET.SubElement(points, "geolocationGridPoint"),
            azimuthTime=part.overpass.utc(float(grid.time[at])),
            slantRangeTime=2 * float(grid.slant_range[at]) / LIGHT,
            line=grid.line[at],
            pixel=grid.pixel[at],
            latitude=float(grid.lat[at]),
            longitude=float(grid.lon[at]),
            height=float(grid.height[at]),
            incidenceAngle=float(grid.incidence[at]),
            elevationAngle=float(grid.elevation[at]),
        )


def _conversion(root: ET.Element, part: Slice) -> None:
    """Polynomials between slant range and ground range; constant along a slice."""
    geometry = part.geometry
    pixel = np.linspace(0, geometry.samples - 1, 400)
    ground = pixel * geometry.spacing
    slant = geometry.slant_range(pixel)

    def fit(x: Float64, y: Float64) -> Float64:
        scale = x.max()
        return np.asarray(np.polynomial.polynomial.polyfit(x / scale, y, 8) / scale ** np.arange(9))

    outer = ET.SubElement(root, "coordinateConversion")
    conversions = ET.SubElement(outer, "coordinateConversionList", count="2")
    for time in (part.start - 1, part.last + 1):
        _add(
            ET.SubElement(conversions, "coordinateConversion"),
            azimuthTime=part.overpass.utc(time),
            slantRangeTime=2 * float(slant[0]) / LIGHT,
            sr0=float(slant[0]),
            srgrCoefficients=fit(slant - slant[0], ground),
            gr0=0.0,
            grsrCoefficients=fit(ground, slant),
        )


def _merging(root: ET.Element, part: Slice) -> None:
    bounds = np.linspace(0, part.geometry.samples, 4).astype(int)
    merges = ET.SubElement(ET.SubElement(root, "swathMerging"), "swathMergeList", count="3")
    for k in range(3):
        merge = ET.SubElement(merges, "swathMerge")
        _add(merge, swath=f"IW{k + 1}")
        _add(
            ET.SubElement(ET.SubElement(merge, "swathBoundsList", count="1"), "swathBounds"),
            azimuthTime=part.overpass.utc(part.start),
            firstAzimuthLine=0,
            firstRangeSample=bounds[k],
            lastAzimuthLine=part.lines - 1,
            lastRangeSample=bounds[k + 1] - 1,
        )


def _text(root: ET.Element) -> str:
    root.insert(0, ET.Comment(f" {SIMULATED} "))
    ET.indent(root)
    body = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def annotation_xml(part: Slice, polarisation: Polarisation) -> str:
    """Product annotation of one polarisation of a slice.

    Parameters
    ----------
    part : Slice
    polarisation : {"vv", "vh"}

    Returns
    -------
    str
        XML; a comment says that it is simulated.
    """
    root = ET.Element("product")
    _header(root, part, polarisation)
    _general(root, part)
    _image(root, part)
    timing = ET.SubElement(root, "swathTiming")
    _add(timing, linesPerBurst=0, samplesPerBurst=0)
    ET.SubElement(timing, "burstList", count="0")
    _geolocation(root, part)
    _conversion(root, part)
    _merging(root, part)
    return _text(root)


def rfi_xml(part: Slice, polarisation: Polarisation) -> str:
    """Annotation of radio interference, which the item's product asset points at instead.

    Parameters
    ----------
    part : Slice
    polarisation : {"vv", "vh"}

    Returns
    -------
    str
        XML without any geometry, as in real products.
    """
    root = ET.Element("rfi")
    _header(root, part, polarisation)
    ET.SubElement(root, "rfiMitigationApplied").text = "Never"
    return _text(root)
