"""Step 3 of 7 (load): Sentinel-1 acquisitions as sigma nought in dB.

Native gamma nought becomes sigma nought in the form that the catalog names (see
:mod:`xsoilsm.sources.sentinel1.flattening`), sigma nought becomes dB, and only then the area mean
is taken, as in the data that the networks were trained with. The incidence angle is that at the
middle of a cell, or the mean of a layer where the source has one on its pixels.

Numbers that are not above zero are no data and never enter a mean; nor does the outer border of
old passes, where the catalog names its width (see :mod:`xsoilsm.sources.sentinel1.border`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xsoilsm.cube import SourceFlag
from xsoilsm.sources.access.search import cell_lonlat, lonlat_bounds, overlaps
from xsoilsm.sources.ground.elevation import DemTile, Elevations
from xsoilsm.sources.pixels.mesh import mesh_lonlat, scale, scale_by_mesh, spread
from xsoilsm.sources.pixels.reading import (
    CellSums,
    NativeReader,
    Patch,
    native_windows,
    to_physical,
)
from xsoilsm.sources.sentinel1.acquisitions import (
    Acquisition,
    Slice,
)
from xsoilsm.sources.sentinel1.annotation import IncidenceSurface
from xsoilsm.sources.sentinel1.border import Border, erosion
from xsoilsm.sources.sentinel1.flattening import Slopes
from xsoilsm.sources.sentinel1.seams import Seams

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

__all__ = ["BANDS", "read_acquisition"]

BANDS = ("sigma0_vv", "sigma0_vh", "incidence_angle", "coverage", "source_flags")
"""Order of the bands that :func:`read_acquisition` gives."""

MASKED = 0.05
"""Share of a cell in layover or shadow from which it is flagged."""

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_WHOLE = 1e-3  # missing share below which a cell counts as wholly covered


def read_acquisition(
    acquisition: Acquisition,
    target: GeoBox,
    on_error: str = "flag",
    dem: tuple[DemTile, ...] = (),
) -> Floats:
    """Read one acquisition on a GeoBox. Computes: reads the pixels that the GeoBox needs.

    Parameters
    ----------
    acquisition : Acquisition
    target : GeoBox
        A chunk of the cube.
    on_error : {"flag", "raise"}
        What to do where a file cannot be read.
    dem : tuple of DemTile
        Elevation models around the region; read where the form is ``rtc-slope``.

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
        When the form is ``rtc-slope`` and no elevation model is given.
    """
    if acquisition.sigma0_from == "rtc-slope" and not dem:
        msg = "sigma nought from the slope of the terrain needs tiles of an elevation model"
        raise ValueError(msg)
    sums = CellSums(3, target)
    marks = _Marks(target)
    bounds = lonlat_bounds(target)
    models = Elevations(dem, bounds, on_error) if dem else None
    near = [x for x in acquisition.slices if overlaps(x.footprint, bounds, margin=0.01)]
    seams = Seams([piece.footprint for piece in near])
    for piece in near:
        seams.begin()
        try:
            _Reader(acquisition, piece, models, on_error).add_to(sums, marks, seams)
        except OSError:
            if on_error == "raise":
                raise
            marks.fail_footprint(piece.footprint)
    mean, shares = sums.finish()
    coverage = shares[0]
    flags = marks.flags(coverage)
    # A mean over the part of a cell that could be read would pass for the whole.
    failed = (flags & SourceFlag.READ_FAILED) > 0
    mean[:, failed] = np.nan
    coverage[failed] = 0
    return np.concatenate([mean, coverage[None], flags[None].astype(np.float32)])[:, None]


@dataclass(frozen=True)
class _Reader:
    """Reads one slice in windows."""

    acquisition: Acquisition
    piece: Slice
    models: Elevations | None
    on_error: str

    def add_to(self, sums: CellSums, marks: _Marks, seams: Seams) -> None:
        """Add what no earlier slice holds to the sums and marks of the cells."""
        piece = self.piece
        roles = {"area": piece.area, "incidence": piece.incidence, "mask": piece.mask}
        layers = {role: layer for role, layer in roles.items() if layer is not None}
        rasters = piece.vv, piece.vh, *(layer.raster for layer in layers.values())
        convert, border = self._conversion(), self._border()
        before = sums.weight(0)
        room = np.empty(0, dtype=np.float32)  # used again and again: new memory costs time
        with NativeReader(rasters) as reader:
            fills = {piece.nodata, *reader.nodata[:2]} - {None}
            declared = dict(zip(layers, reader.nodata[2:], strict=True))
            for patch in native_windows(reader.geobox, sums.target):
                try:
                    (vv, vh, *others), outermost = _read_window(reader, patch, border)
                    physical = {
                        role: to_physical(stored, layer.band, declared[role])
                        for (role, layer), stored in zip(layers.items(), others, strict=True)
                    }
                    valid = (vv > 0) & (vh > 0)
                    held = seams.held(patch)
                    if held is not None:
                        valid &= ~held
                    if room.size < 2 * valid.size:
                        room = np.empty(2 * valid.size, dtype=np.float32)
                    sigma0 = room[: 2 * valid.size].reshape(2, *valid.shape)
                    some = bool(valid.any())
                    beyond = convert(patch, (vv, vh), valid, physical, sigma0) if some else None
                except OSError:
                    if self.on_error == "raise":
                        raise
                    marks.add("failed", np.ones(patch.geobox.shape, dtype=bool), patch)
                    continue
                if 0 not in fills and not valid.all():
                    marks.add("zero", (vv == 0) | (vh == 0), patch)
                if outermost is not None:
                    marks.add("border", valid & outermost, patch)
                    valid &= ~outermost
                if "mask" in physical:
                    masked = ~np.isin(physical["mask"], self.acquisition.mask_valid)
                    marks.add("masked", masked & ~np.isnan(physical["mask"]) & valid, patch)
                if some:
                    # An area or angle that is missing leaves nothing to convert with.
                    if physical:
                        valid &= np.isfinite(sigma0[0])
                    if outermost is not None:
                        sigma0[:, outermost] = 0
                    if beyond is not None:
                        marks.add("masked", beyond & valid, patch)
                    sums.add(sigma0, patch, slice(0, 2), transform="db")
                    if "incidence" in physical:
                        theta = np.where(valid, physical["incidence"], np.float32(np.nan))
                        sums.add(theta[None], patch, slice(2, 3))
                    seams.keep(patch, valid)
        if piece.incidence is None:
            share = sums.weight(0) - before
            sums.add_cells(2, convert.angles(sums.target), share)

    def _conversion(self) -> _Conversion:
        piece = self.piece
        if not piece.has_angles:
            return _Conversion(None, None)
        surface = piece.read_incidence()
        if self.acquisition.sigma0_from != "rtc-slope" or self.models is None:
            return _Conversion(surface, None)
        return _Conversion(surface, Slopes(self.models, surface, piece.read_look()))

    def _border(self) -> Border | None:
        if not self.acquisition.border_pixels:
            return None
        others = [x.footprint for x in self.acquisition.slices if x is not self.piece]
        return Border(self.acquisition.border_pixels, self.piece.footprint, others)


def _read_window(
    reader: NativeReader, patch: Patch, border: Border | None
) -> tuple[list[npt.NDArray[Any]], Bools | None]:
    """Read a window, and find its pixels on the outer border (None: there are none)."""
    near = None if border is None else border.near(patch)
    if border is None or near is None or not near.any():
        return reader.read(patch), None
    reach = border.reach
    height, width = patch.geobox.shape
    rows = max(patch.row - reach, 0), min(patch.row + height + reach, reader.geobox.shape[0])
    columns = (
        max(patch.column - reach, 0),
        min(patch.column + width + reach, reader.geobox.shape[1]),
    )
    part = reader.geobox[rows[0] : rows[1], columns[0] : columns[1]]
    bands = reader.read(Patch(rows[0], columns[0], part))
    top, left = patch.row - rows[0], patch.column - columns[0]
    inner = np.s_[top : top + height, left : left + width]
    # Beyond the file all is empty.
    valid = np.zeros((height + 2 * reach, width + 2 * reach), dtype=bool)
    place = np.s_[
        reach - top : reach - top + part.shape[0], reach - left : reach - left + part.shape[1]
    ]
    valid[place] = (bands[0] > 0) & (bands[1] > 0)
    near &= erosion(valid, border.pixels)[reach : reach + height, reach : reach + width]
    return [values[inner] for values in bands], near


@dataclass(frozen=True)
class _Conversion:
    """What leads from gamma nought to sigma nought at the pixels of a window.

    Parameters
    ----------
    surface : IncidenceSurface or None
        None where the slice holds the angle itself.
    slopes : Slopes or None
        Given for the form ``rtc-slope``.
    """

    surface: IncidenceSurface | None
    slopes: Slopes | None

    def __call__(
        self,
        patch: Patch,
        powers: tuple[npt.NDArray[Any], npt.NDArray[Any]],
        valid: Bools,
        layers: dict[str, Floats],
        sigma0: Floats,
    ) -> Bools | None:
        """Fill in sigma nought as power; return pixels in or near layover or shadow.

        Pixels that are not valid are 0, and NaN where a layer leaves nothing to convert with.
        """
        beyond = None
        if self.slopes is None and not layers.keys() & {"area", "incidence"}:
            factors = np.cos(np.deg2rad(self.angle_at(*mesh_lonlat(patch))))
            for band, power in zip(sigma0, powers, strict=True):
                scale_by_mesh(power, valid, factors, patch, band)
            return None
        if self.slopes is not None:
            factor, beyond = self.slopes.factors(patch)
        else:
            theta = layers.get("incidence")
            if theta is None:
                theta = spread(self.angle_at(*mesh_lonlat(patch)), patch)
            angle = np.deg2rad(theta)
            factor = layers["area"] * np.sin(angle) if "area" in layers else np.cos(angle)
            factor = np.where(factor > 0, factor, np.float32(np.nan))
        for band, power in zip(sigma0, powers, strict=True):
            scale(power, valid, factor, band)
        return beyond

    def angle_at(
        self, lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Incidence angle in degrees at points; NaN where only the pixels know it."""
        return np.full(lon.shape, np.nan) if self.surface is None else self.surface(lon, lat)

    def angles(self, target: GeoBox) -> npt.NDArray[np.float64]:
        """Incidence angle in degrees at the middle of each cell."""
        if self.surface is None:
            return np.full(target.shape, np.nan)
        return self.surface.on_grid(*cell_lonlat(target))


class _Marks:
    """Cells in which something is to be told of the pixels."""

    def __init__(self, target: GeoBox) -> None:
        self._target = target
        self._sums: dict[str, CellSums] = {}
        self._failed = np.zeros(target.shape, dtype=bool)

    def add(self, what: str, where: Bools, patch: Patch) -> None:
        """Mark the cells that some pixels touch."""
        if where.any():
            values = np.where(where, np.float32(1), np.float32(np.nan))[None]
            self._sums.setdefault(what, CellSums(1, self._target)).add(values, patch)

    def fail_footprint(self, footprint: bytes) -> None:
        """Mark the cells of a slice of which nothing could be read."""
        import shapely

        lon, lat = cell_lonlat(self._target)
        reach = max(float(np.abs(np.diff(axis)).max(initial=0.0)) for axis in (lon, lat))
        # A cell is touched where its centre lies within half a cell of the footprint.
        area = shapely.from_wkb(footprint).buffer(0.5 * max(reach, 1e-3), join_style="mitre")
        self._failed |= shapely.contains_xy(area, *np.meshgrid(lon, lat))

    def _share(self, what: str) -> Floats:
        if what not in self._sums:
            return np.zeros(self._target.shape, dtype=np.float32)
        share: Floats = self._sums[what].finish()[1][0]
        return share

    def flags(self, coverage: Floats) -> npt.NDArray[np.uint8]:
        """Bits of :class:`~xsoilsm.cube.SourceFlag` of cells with a coverage."""
        zero, border = self._share("zero") > 0, self._share("border") > 0
        failed = self._failed | (self._share("failed") > 0)
        partial = coverage < 1 - _WHOLE
        flags = np.zeros(coverage.shape, dtype=np.uint8)
        flags[(coverage == 0) & ~zero & ~failed & ~border] |= SourceFlag.NO_SCENE
        flags[failed] |= SourceFlag.READ_FAILED
        flags[zero & partial] |= SourceFlag.ZERO_FILLED
        flags[((coverage > 0) | border) & partial] |= SourceFlag.BORDER
        flags[self._share("masked") > MASKED * coverage] |= SourceFlag.LAYOVER_SHADOW
        return flags
