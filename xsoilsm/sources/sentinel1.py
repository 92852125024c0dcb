"""Step 3 of 7 (load): Sentinel-1 acquisitions as sigma nought in dB.

Native gamma nought becomes sigma nought with the incidence angle of the annotation, sigma
nought becomes dB, and only then the area mean is taken, as in the data that the networks were
trained with. Flat-ground form: ``sigma0 = gamma0 * cos(theta)``, from the definitions of both
(gamma nought is the backscatter per area perpendicular to the line of sight, Small 2011,
doi 10.1109/TGRS.2011.2120616).

Items of one absolute orbit and one direction are slices of one acquisition. Numbers that are
not above zero are no data and never enter a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pyproj import Transformer

from xsoilsm.catalog import Catalog, CatalogError, Segment
from xsoilsm.cube import SourceFlag
from xsoilsm.facts import Sentinel1RtcSource, Service
from xsoilsm.sources.annotation import IncidenceSurface, annotation_href, read_incidence
from xsoilsm.sources.reading import CellSums, NativeReader, Patch, Raster, native_windows
from xsoilsm.sources.search import (
    Access,
    Bounds,
    access_of,
    cell_lonlat,
    find_item,
    find_items,
    footprint_of,
    item_span,
    lonlat_bounds,
    overlaps,
    utc_naive,
)

if TYPE_CHECKING:
    import pystac
    from odc.geo.geobox import GeoBox

__all__ = ["BANDS", "Acquisition", "Excluded", "Slice", "find_acquisitions", "read_acquisition"]

BANDS = ("sigma0_vv", "sigma0_vh", "incidence_angle", "coverage", "source_flags")
"""Order of the bands that :func:`read_acquisition` gives."""

MESH = 64
"""Distance in native pixels of the points at which the angle is evaluated."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Slice:
    """One item of an acquisition, as it travels in a graph.

    Parameters
    ----------
    id : str
    vv, vh : Raster
    nodata : float or None
        Stored number of no data, from the catalog.
    annotation : str
        Unsigned link of the annotation's XML.
    annotation_access : Access
    footprint : bytes
        WKB in lon/lat.
    """

    id: str
    vv: Raster
    vh: Raster
    nodata: float | None
    annotation: str
    annotation_access: Access
    footprint: bytes


@dataclass(frozen=True)
class Acquisition:
    """One pass over the region.

    Parameters
    ----------
    time : datetime64[ns]
        Overpass in UTC: the mean of the middle times of the slices over the region, within
        some seconds of the pass at any of its cells.
    platform : str
    relative_orbit : int
    orbit_state : str
        ``"ascending"`` or ``"descending"``.
    absolute_orbit : int
    sigma0_from : str
        How sigma nought is obtained.
    slices : tuple of Slice
    """

    time: np.datetime64
    platform: str
    relative_orbit: int
    orbit_state: str
    absolute_orbit: int
    sigma0_from: str
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Excluded:
    """An item that was left out, and why."""

    id: str
    reason: str


def find_acquisitions(
    catalog: Catalog, segment: Segment, bounds: Bounds
) -> tuple[list[Acquisition], list[Excluded]]:
    """Search the acquisitions of a region. Asks the services; reads no pixel.

    Parameters
    ----------
    catalog : Catalog
    segment : Segment
        A source of radar and its days.
    bounds : (west, south, east, north)
        In degrees.

    Returns
    -------
    acquisitions : list of Acquisition
        By time.
    excluded : list of Excluded
        Items that were left out: single polarisation, or known to be wrong.

    Raises
    ------
    CatalogError
        When an item lacks what is needed, for instance a GRD item with its annotation.
    """
    source = segment.source
    if not isinstance(source, Sentinel1RtcSource):
        msg = f"source of kind '{source.kind}' is not Sentinel-1"
        raise CatalogError(msg)
    service = catalog.service_of(source)
    excluded: list[Excluded] = []
    passes: dict[tuple[str, int, str], list[pystac.Item]] = {}
    items = find_items(service, source.collection, bounds, segment.start, segment.end)
    for item in items:
        reason = _reason_to_exclude(item, source)
        if reason:
            excluded.append(Excluded(item.id, reason))
        else:
            passes.setdefault(_pass_of(item), []).append(item)
    if not passes:
        return [], excluded
    originals = {
        item.id: item
        for item in find_items(service, source.grd_collection, bounds, segment.start, segment.end)
    }
    acquisitions = [
        _acquisition(key, slices, source, service, originals) for key, slices in passes.items()
    ]
    return sorted(acquisitions, key=lambda a: (a.time, a.absolute_orbit)), excluded


def _reason_to_exclude(item: pystac.Item, source: Sentinel1RtcSource) -> str:
    polarisations = {str(p).upper() for p in item.properties.get("sar:polarizations", ())}
    if not {"VV", "VH"} <= polarisations:
        return f"polarisations {', '.join(sorted(polarisations)) or 'unknown'}, not VV and VH"
    absent = [key for key in (source.vv.asset, source.vh.asset) if key not in item.assets]
    if absent:
        return f"no asset {', '.join(absent)}"
    day = item_span(item)[0].date()
    platform = str(item.properties.get("platform", ""))
    return next((rule.reason for rule in source.exclude if rule.matches(day, platform)), "")


def _pass_of(item: pystac.Item) -> tuple[str, int, str]:
    """Key of the acquisition: an absolute orbit has an ascending and a descending half."""
    try:
        orbit = int(item.properties["sat:absolute_orbit"])
        state = str(item.properties["sat:orbit_state"])
    except (KeyError, TypeError, ValueError):
        msg = (
            f"item '{item.id}' has no sat:absolute_orbit and sat:orbit_state; they are needed to "
            "merge the slices of a pass"
        )
        raise CatalogError(msg) from None
    return str(item.properties.get("platform", "")), orbit, state


def _acquisition(
    key: tuple[str, int, str],
    items: Sequence[pystac.Item],
    source: Sentinel1RtcSource,
    service: Service,
    originals: dict[str, pystac.Item],
) -> Acquisition:
    platform, absolute_orbit, state = key
    middles = [_middle(item).timestamp() for item in items]
    when = datetime.fromtimestamp(sum(middles) / len(middles), tz=_middle(items[0]).tzinfo)
    relative = items[0].properties.get("sat:relative_orbit")
    if relative is None:
        msg = f"item '{items[0].id}' has no sat:relative_orbit"
        raise CatalogError(msg)
    access = access_of(service)
    slices = tuple(
        Slice(
            id=item.id,
            vv=Raster(_href(item, source.vv.asset), access),
            vh=Raster(_href(item, source.vh.asset), access),
            nodata=source.vv.nodata,
            annotation=_annotation(item, source, service, originals),
            annotation_access=access,
            footprint=footprint_of(item),
        )
        for item in items
    )
    return Acquisition(
        time=utc_naive(when),
        platform=platform,
        relative_orbit=int(relative),
        orbit_state=state,
        absolute_orbit=absolute_orbit,
        sigma0_from=source.sigma0_from,
        slices=slices,
    )


def _middle(item: pystac.Item) -> datetime:
    begin, finish = item_span(item)
    return begin + (finish - begin) / 2


def _href(item: pystac.Item, asset: str) -> str:
    return item.assets[asset].get_absolute_href() or item.assets[asset].href


def _annotation(
    item: pystac.Item,
    source: Sentinel1RtcSource,
    service: Service,
    originals: dict[str, pystac.Item],
) -> str:
    """Link of the annotation of the GRD item that an RTC item was made from."""
    link = item.get_single_link("derived_from")
    name = "" if link is None else str(link.target).rstrip("/").split("/")[-1]
    original = originals.get(name.removesuffix(".json"))
    if original is None:
        original = find_item(service, source.grd_collection, item, "derived_from")
    if original is None or source.grd_asset not in original.assets:
        where = f"'derived_from' leads to {name!r}" if name else "it has no link 'derived_from'"
        msg = (
            f"item '{item.id}' has no matching item in '{source.grd_collection}' with the asset "
            f"'{source.grd_asset}', whose annotation holds the incidence angle ({where}); leave "
            "its date out of the time range, or exclude it in the catalog"
        )
        raise CatalogError(msg)
    try:
        return annotation_href(_href(original, source.grd_asset))
    except ValueError as error:
        msg = f"item '{original.id}': {error}"
        raise CatalogError(msg) from None


def read_acquisition(acquisition: Acquisition, target: GeoBox, on_error: str = "flag") -> Floats:
    """Read one acquisition on a GeoBox. Computes: reads the pixels that the GeoBox needs.

    Parameters
    ----------
    acquisition : Acquisition
    target : GeoBox
        A chunk of the cube.
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
    """
    sums = CellSums(3, target)
    marks = _Marks(target)
    bounds = lonlat_bounds(target)
    for piece in acquisition.slices:
        if not overlaps(piece.footprint, bounds, margin=0.01):
            continue
        try:
            _add_slice(piece, sums, marks, on_error)
        except OSError:
            if on_error == "raise":
                raise
            marks.fail_footprint(piece.footprint)
    mean, shares = sums.finish()
    coverage = shares[0]
    zero, failed = marks.finish()
    flags = np.zeros(target.shape, dtype=np.uint8)
    flags[(coverage == 0) & ~zero & ~failed] |= SourceFlag.NO_SCENE
    flags[failed] |= SourceFlag.READ_FAILED
    partial = coverage < 1 - _WHOLE
    flags[zero & partial] |= SourceFlag.ZERO_FILLED
    flags[(coverage > 0) & partial] |= SourceFlag.BORDER
    # A mean over the part of a cell that could be read would pass for the whole.
    mean[:, failed] = np.nan
    coverage[failed] = 0
    return np.concatenate([mean, coverage[None], flags[None].astype(np.float32)])[:, None]


_WHOLE = 1e-3  # missing share below which a cell counts as wholly covered


def _add_slice(piece: Slice, sums: CellSums, marks: _Marks, on_error: str) -> None:
    surface = read_incidence(piece.annotation, piece.annotation_access)
    with NativeReader((piece.vv, piece.vh)) as reader:
        fills = {piece.nodata, *reader.nodata} - {None}
        for patch in native_windows(reader.geobox, sums.target):
            try:
                vv, vh = reader.read(patch)
            except OSError:
                if on_error == "raise":
                    raise
                marks.add("failed", np.ones((1, *patch.geobox.shape), np.float32), patch)
                continue
            valid = (vv > 0) & (vh > 0)
            if 0 not in fills:
                zero = (vv == 0) | (vh == 0)
                if zero.any():
                    marks.add(
                        "zero", np.where(zero, np.float32(1), np.float32(np.nan))[None], patch
                    )
            if valid.any():
                sums.add(_to_sigma0(vv, vh, valid, surface, patch), patch)


def _to_sigma0(
    vv: npt.NDArray[np.float32],
    vh: npt.NDArray[np.float32],
    valid: npt.NDArray[np.bool_],
    surface: IncidenceSurface,
    patch: Patch,
) -> Floats:
    """Gamma nought as power to sigma nought in dB (flat ground), and the angle."""
    theta = _angle_mesh(surface, patch)
    values = np.full((3, *valid.shape), np.nan, dtype=np.float32)
    decibels = _spread(10.0 * np.log10(np.cos(np.deg2rad(theta))), patch)
    for band, power in enumerate((vv, vh)):
        np.log10(power, out=values[band], where=valid)
        values[band] *= 10.0
        values[band] += decibels
    np.copyto(values[2], _spread(theta, patch), where=valid)
    return values


def _mesh_lines(first: int, count: int) -> npt.NDArray[np.int64]:
    """Pixel edges at multiples of :data:`MESH` that enclose the centres of a window."""
    return np.arange(first // MESH, (first + count - 1) // MESH + 2) * MESH


def _angle_mesh(surface: IncidenceSurface, patch: Patch) -> npt.NDArray[np.float64]:
    """Angle in degrees at the mesh points of a window; the mesh is the file's own."""
    height, width = patch.geobox.shape
    rows = _mesh_lines(patch.row, height) - patch.row
    columns = _mesh_lines(patch.column, width) - patch.column
    column, row = np.meshgrid(columns + 0.5, rows + 0.5)
    affine = patch.geobox.affine
    x = affine.a * column + affine.b * row + affine.c
    y = affine.d * column + affine.e * row + affine.f
    lon, lat = _to_lonlat(str(patch.geobox.crs), x, y)
    return surface(lon, lat)


def _to_lonlat(
    crs: str, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    lon, lat = _transformer(crs).transform(x, y)
    return np.asarray(lon), np.asarray(lat)


@lru_cache(maxsize=64)
def _transformer(crs: str) -> Transformer:
    return Transformer.from_crs(crs, "EPSG:4326", always_xy=True)


def _spread(mesh: npt.NDArray[np.float64], patch: Patch) -> Floats:
    """Interpolate linearly from the mesh to the pixels of a window."""
    height, width = patch.geobox.shape
    rows = _weights(patch.row, height)
    columns = _weights(patch.column, width)
    # Float32 keeps 4e-6 degrees of an angle of 46, at half the cost.
    return rows @ mesh.astype(np.float32) @ columns.T


def _weights(first: int, count: int) -> Floats:
    """(count, mesh) matrix of linear interpolation along one axis."""
    pixel = first + np.arange(count)
    lines = _mesh_lines(first, count)
    index = pixel // MESH - lines[0] // MESH
    share = pixel / MESH - pixel // MESH
    matrix = np.zeros((count, lines.size), dtype=np.float32)
    matrix[np.arange(count), index] = 1 - share
    matrix[np.arange(count), index + 1] += share
    return matrix


class _Marks:
    """Cells that hold zero fill, or that could not be read."""

    def __init__(self, target: GeoBox) -> None:
        self._target = target
        self._sums: dict[str, CellSums] = {}
        self._failed = np.zeros(target.shape, dtype=bool)

    def add(self, what: str, values: Floats, patch: Patch) -> None:
        """Mark the cells that the values other than NaN touch."""
        self._sums.setdefault(what, CellSums(1, self._target)).add(values, patch)

    def fail_footprint(self, footprint: bytes) -> None:
        """Mark the cells of a slice of which nothing could be read."""
        import shapely

        lon, lat = cell_lonlat(self._target)
        reach = max(float(np.abs(np.diff(axis)).max(initial=0.0)) for axis in (lon, lat))
        # A cell is touched where its centre lies within half a cell of the footprint.
        area = shapely.from_wkb(footprint).buffer(0.5 * max(reach, 1e-3), join_style="mitre")
        self._failed |= shapely.contains_xy(area, *np.meshgrid(lon, lat))

    def finish(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Cells with zero fill, and cells that could not be read."""
        zero, failed = (
            self._sums[what].finish()[1][0] > 0
            if what in self._sums
            else np.zeros(self._target.shape, dtype=bool)
            for what in ("zero", "failed")
        )
        return zero, failed | self._failed
