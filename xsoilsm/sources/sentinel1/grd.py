"""Step 3 of 7 (load): Sentinel-1 GRD images as sigma nought in dB.

Digital numbers in radar geometry become sigma nought with the product's own tables, are located
on the terrain with its own geolocation grid, and are averaged in dB over the cells. This is how
the data came about with which the networks were trained, so nothing is approximate about the
form: the incidence angle is the annotation's, and terrain is not flattened.

Work goes block by block of cells: heights, the window of the image, calibration, samples. Memory
depends on the block alone.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from xsoilsm import grid
from xsoilsm.cube import SourceFlag
from xsoilsm.sources.access.links import Access, read_bytes
from xsoilsm.sources.access.search import cell_lonlat, lonlat_bounds, overlaps
from xsoilsm.sources.pixels.reading import NativeReader, Patch, Raster
from xsoilsm.sources.sentinel1.annotation import IncidenceSurface, annotation_href
from xsoilsm.sources.sentinel1.calibration import Calibration, calibrate, to_decibel
from xsoilsm.sources.sentinel1.fringe import REACH, WINDOW, fringe
from xsoilsm.sources.sentinel1.geocode import GeolocationGrid, RadarImage
from xsoilsm.sources.sentinel1.heights import HeightSource
from xsoilsm.sources.sentinel1.rtc import BANDS
from xsoilsm.sources.sentinel1.sampling import (
    Lattice,
    Samples,
    add_samples,
    lattices_of,
    spacing_of,
)

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

__all__ = [
    "BANDS",
    "GrdAcquisition",
    "GrdSlice",
    "Product",
    "calibration_hrefs",
    "read_grd_acquisition",
    "read_product",
]

BLOCK_M = 16000.0
"""Longest side in m of a block of cells that is read at once, in the plane of the grid."""

RADAR_CRS = 'LOCAL_CS["radar image",UNIT["pixel",1],AXIS["pixel",EAST],AXIS["line",SOUTH]]'
"""Stands for the coordinates of an image that has none on the Earth."""

_MARGIN = WINDOW  # pixels read around the samples
_WHOLE = 1e-3  # missing share below which a cell counts as wholly covered

Float64 = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class GrdSlice:
    """One GRD item of an acquisition, as it travels in a graph.

    Parameters
    ----------
    id : str
    vv, vh : Raster
        Measurements; the links of the annotations follow from theirs.
    footprint : bytes
        WKB in lon/lat.
    has_fringe : bool
        Whether noise lies along the border of the image.
    """

    id: str
    vv: Raster
    vh: Raster
    footprint: bytes
    has_fringe: bool = False


@dataclass(frozen=True)
class GrdAcquisition:
    """One pass over the region, in radar geometry.

    Parameters
    ----------
    time : datetime64[ns]
        Overpass in UTC: the mean of the middle times of the slices over the region.
    platform : str
    relative_orbit : int
    orbit_state : str
        ``"ascending"`` or ``"descending"``.
    absolute_orbit : int
        0 where the source does not tell it.
    slices : tuple of GrdSlice
    heights : HeightSource
        Elevation models around the slices.
    resampling : {"bilinear", "nearest"}
        Power between pixels, or native pixels as they are.
    sigma0_from : {"grd"}
        How sigma nought is obtained.
    incidence_from : {"annotation"}
        Where the incidence angle comes from.
    """

    time: np.datetime64
    platform: str
    relative_orbit: int
    orbit_state: str
    absolute_orbit: int
    slices: tuple[GrdSlice, ...]
    heights: HeightSource
    resampling: Literal["bilinear", "nearest"] = "bilinear"
    sigma0_from: str = "grd"
    incidence_from: str = "annotation"


@dataclass(frozen=True, eq=False)
class Product:
    """What the annotations of a slice say.

    Parameters
    ----------
    image : RadarImage
    calibrations : (Calibration, Calibration)
        Of VV and VH.
    incidence : IncidenceSurface
    """

    image: RadarImage
    calibrations: tuple[Calibration, Calibration]
    incidence: IncidenceSurface


def calibration_hrefs(measurement: str) -> tuple[str, str]:
    """Addresses of the calibration and of the noise that belong to a GRD measurement.

    Parameters
    ----------
    measurement : str
        For instance ``.../measurement/iw-vv.tiff``.

    Returns
    -------
    calibration, noise : str

    Raises
    ------
    ValueError
        When the address does not have that form.

    Examples
    --------
    >>> calibration_hrefs("https://host/S1A_IW/measurement/iw-vv.tiff")[1]
    'https://host/S1A_IW/annotation/calibration/noise-iw-vv.xml'
    """
    folder, _, name = annotation_href(measurement).rpartition("/")
    return f"{folder}/calibration/calibration-{name}", f"{folder}/calibration/noise-{name}"


@lru_cache(maxsize=64)
def read_product(vv: str, vh: str, access: Access) -> Product:
    """Read the annotations of a slice. Computes: reads five files, once a process.

    Parameters
    ----------
    vv, vh : str
        Unsigned links of the measurements.
    access : Access

    Returns
    -------
    Product

    Raises
    ------
    OSError
        When a file cannot be read or is not what it should be.
    """
    href = annotation_href(vv)
    try:
        root = ET.fromstring(read_bytes(href, access))
        image = RadarImage.parse(root)
    except (ET.ParseError, OSError, ValueError) as error:
        msg = f"{href}: {error}"
        raise OSError(msg) from error
    # The processor can remove the noise itself; removing it twice would darken VH by decibels.
    removed = root.findtext(".//thermalNoiseCorrectionPerformed", "false").strip() == "true"
    calibrations = []
    for measurement in (vv, vh):
        hrefs = calibration_hrefs(measurement)
        noise = None if removed else read_bytes(hrefs[1], access)
        calibrations.append(Calibration.parse(read_bytes(hrefs[0], access), noise, hrefs))
    points = image.grid
    incidence = IncidenceSurface.fit(points.lon, points.lat, points.incidence)
    return Product(image, (calibrations[0], calibrations[1]), incidence)


@lru_cache(maxsize=256)
def _offset(heights: HeightSource, vv: str, vh: str, access: Access) -> float:
    """Height of the geoid of a slice in m, once a process."""
    points: GeolocationGrid = read_product(vv, vh, access).image.grid
    return heights.offset(points)


def read_grd_acquisition(
    acquisition: GrdAcquisition, target: GeoBox, on_error: str = "flag"
) -> Floats:
    """Read one acquisition on a GeoBox. Computes: reads the pixels that the GeoBox needs.

    Parameters
    ----------
    acquisition : GrdAcquisition
    target : GeoBox
        A chunk of the cube, on an EASE-Grid 2.0 grid.
    on_error : {"flag", "raise"}
        What to do where a file cannot be read.

    Returns
    -------
    (5, 1, y, x) ndarray of float32
        The bands of :data:`BANDS`: sigma nought VV and VH in dB (mean of dB), incidence angle
        in degrees, share of the cell with valid pixels, bits of
        :class:`~xsoilsm.cube.SourceFlag`.

    Raises
    ------
    OSError
        When a file cannot be read and `on_error` is ``"raise"``.
    ValueError
        When the GeoBox is on no EASE-Grid 2.0 grid.
    """
    cells, rows, columns = grid.grid_of(target)
    sums = Samples.zeros(2, (target.height, target.width))
    angle = np.zeros(target.shape)
    failed = np.zeros(target.shape, dtype=bool)
    bounds = lonlat_bounds(target)
    lon, lat = cell_lonlat(target)
    for piece in acquisition.slices:
        if not overlaps(piece.footprint, bounds, margin=0.01):
            continue
        before = sums.count.copy()
        try:
            reader = _SliceReader(acquisition, piece, on_error)
            failed |= reader.add_to(sums, cells, rows, columns)
        except OSError:
            if on_error == "raise":
                raise
            failed |= _touched(piece.footprint, target)
            continue
        angle += (sums.count - before) * reader.product.incidence.on_grid(lon, lat)
    spacing = spacing_of(cells, acquisition.resampling)
    samples = np.zeros(target.shape)
    for lattice in lattices_of(cells, rows, columns, spacing):
        samples[slice(*(row - rows[0] for row in lattice.rows))] = lattice.down * lattice.across
    return _finish(sums, angle, samples, failed)


def _finish(sums: Samples, angle: Float64, samples: Float64, failed: Bools) -> Floats:
    """Divide sums, and say what is wrong with cells."""
    seen = sums.count > 0
    bands = np.full((len(BANDS), 1, *seen.shape), np.nan, dtype=np.float32)
    for band, total in zip(bands[:3, 0], (*sums.total, angle), strict=True):
        band[seen] = total[seen] / sums.count[seen]
    coverage = np.minimum(sums.count / samples, 1.0).astype(np.float32)
    empty = sums.empty > 0
    partial = coverage < 1 - _WHOLE
    flags = np.zeros(seen.shape, dtype=np.uint8)
    flags[~seen & ~empty & ~failed] |= SourceFlag.NO_SCENE
    flags[empty & partial] |= SourceFlag.ZERO_FILLED
    flags[seen & partial] |= SourceFlag.BORDER
    flags[failed] |= SourceFlag.READ_FAILED
    # A mean over the part of a cell that could be read would pass for the whole.
    bands[:3, 0, failed] = np.nan
    coverage[failed] = 0
    bands[3, 0], bands[4, 0] = coverage, flags
    return bands


def _touched(footprint: bytes, target: GeoBox) -> Bools:
    """Cells whose middle lies within half a cell of a footprint."""
    import shapely

    lon, lat = cell_lonlat(target)
    reach = max(float(np.abs(np.diff(axis)).max(initial=1e-3)) for axis in (lon, lat))
    area = shapely.from_wkb(footprint).buffer(reach / 2, join_style="mitre")
    return np.asarray(shapely.contains_xy(area, *np.meshgrid(lon, lat)))


def _blocks(
    cells: grid.Ease2Grid, rows: tuple[int, int], columns: tuple[int, int], spacing: float
) -> Iterator[Lattice]:
    """Cut cells into blocks of bounded size."""
    side = max(int(BLOCK_M / cells.cell), 1)
    for top in range(rows[0], rows[1], side):
        for left in range(columns[0], columns[1], side):
            part = (top, min(top + side, rows[1])), (left, min(left + side, columns[1]))
            yield from lattices_of(cells, *part, spacing)


class _SliceReader:
    """Reads one slice block by block of cells."""

    def __init__(self, acquisition: GrdAcquisition, piece: GrdSlice, on_error: str) -> None:
        self._piece = piece
        self._heights = acquisition.heights
        self._resampling = acquisition.resampling
        self._on_error = on_error
        hrefs = piece.vv.href, piece.vh.href, piece.vv.access
        self.product = read_product(*hrefs)
        self._image = self.product.image
        self._offset = _offset(acquisition.heights, *hrefs)

    def add_to(
        self,
        sums: Samples,
        cells: grid.Ease2Grid,
        rows: tuple[int, int],
        columns: tuple[int, int],
    ) -> Bools:
        """Add all samples of the slice; return the cells that could not be read.

        Raises
        ------
        OSError
            When the measurements cannot be opened, or do not have the annotation's shape.
        """
        failed = np.zeros(sums.count.shape, dtype=bool)
        rasters = tuple(replace(r, crs=RADAR_CRS) for r in (self._piece.vv, self._piece.vh))
        with NativeReader(rasters) as reader:
            if tuple(reader.geobox.shape) != self._image.shape:
                msg = (
                    f"{self._piece.vv.href} has {reader.geobox.shape[0]} lines of "
                    f"{reader.geobox.shape[1]} pixels, its annotation says {self._image.shape[0]} "
                    f"of {self._image.shape[1]}; measurement and annotation do not fit"
                )
                raise OSError(msg)
            for lattice in _blocks(cells, rows, columns, spacing_of(cells, self._resampling)):
                where = (
                    slice(lattice.rows[0] - rows[0], lattice.rows[1] - rows[0]),
                    slice(lattice.columns[0] - columns[0], lattice.columns[1] - columns[0]),
                )
                lon, lat, offset = lattice.points(*lattice.node_steps)
                nodes = self._image.reference(lon, lat)
                if not self._may_touch(nodes):
                    continue
                try:
                    self._add_block(reader, lattice, (nodes, offset), sums.part(*where))
                except OSError:
                    if self._on_error == "raise":
                        raise
                    failed[where] |= self._inside(lattice)
        return failed

    def _may_touch(self, nodes: Float64, heights: tuple[float, float] = (-500.0, 9000.0)) -> bool:
        return self._window(nodes, heights) is not None

    def _window(self, nodes: Float64, heights: tuple[float, float]) -> tuple[slice, slice] | None:
        """Lines and pixels that ground points between two heights can need."""
        line, far, cosine = (part[np.isfinite(nodes[0])] for part in nodes)
        if line.size == 0:
            return None
        pixels = [
            self._image.ground_range(
                line * self._image.line_interval,
                np.sqrt(far**2 + height**2 - 2 * far * height * cosine),
            )
            for height in heights
        ]
        window = []
        for low, high, size in (
            (line.min(), line.max(), self._image.shape[0]),
            (np.min(pixels), np.max(pixels), self._image.shape[1]),
        ):
            start = max(int(np.floor(low)) - _MARGIN, 0)
            stop = min(int(np.ceil(high)) + _MARGIN + 1, size)
            if self._piece.has_fringe:
                start = 0 if start < REACH else start
                stop = size if size - stop < REACH else stop
            if start >= stop:
                return None
            window.append(slice(start, stop))
        return window[0], window[1]

    def _add_block(
        self,
        reader: NativeReader,
        lattice: Lattice,
        nodes: tuple[Float64, tuple[int, int]],
        sums: Samples,
    ) -> None:
        lon, lat, offset = lattice.points(*lattice.height_steps)
        heights = self._heights.heights(lon, lat, self._offset)
        window = self._window(nodes[0], (float(heights.min()), float(heights.max())))
        if window is None:
            return
        values = self._read(reader, window)
        first = window[0].start, window[1].start
        add_samples(
            lattice,
            nodes,
            (heights, offset),
            self._image,
            values,
            first,
            bilinear=(self._resampling == "bilinear"),
            sums=sums,
        )

    def _read(self, reader: NativeReader, window: tuple[slice, slice]) -> Floats:
        """Power, or dB, of a window; NaN where a polarisation has none."""
        line, pixel = window[0].start, window[1].start
        both = reader.read(Patch(line, pixel, reader.geobox[window]))
        values = np.empty((2, *both[0].shape), dtype=np.float32)
        for band, numbers, calibration in zip(values, both, self.product.calibrations, strict=True):
            sigma0, quantum = calibrate(numbers, calibration, line, pixel)
            if self._resampling == "bilinear":
                np.maximum(sigma0, quantum, out=band)
            else:
                band[:] = to_decibel(sigma0, quantum)
        if self._piece.has_fringe:
            noise = self.product.calibrations[0].noise(line, pixel, both[0].shape)
            values[:, fringe(both[0], noise, (line, pixel), self._image.shape)] = np.nan
        return values

    def _inside(self, lattice: Lattice) -> Bools:
        """Cells of a block that touch the image."""
        (top, bottom), (left, right) = lattice.rows, lattice.columns
        corners = np.zeros((bottom - top + 1, right - left + 1), dtype=bool)
        lon, lat, _ = lattice.points(lattice.down, lattice.across)
        line, pixel = self._image.locate(lon, lat, 0.0)
        room = 2.0 * _MARGIN
        corners |= (line > -room) & (line < self._image.shape[0] + room)
        corners &= (pixel > -room) & (pixel < self._image.shape[1] + room)
        return corners[:-1, :-1] | corners[1:, :-1] | corners[:-1, 1:] | corners[1:, 1:]
