"""Step 3 of 7 (load): native pixels in bounded windows, and their exact means on a GeoBox.

Files are read on their own grid at full resolution (overviews are never touched), window by
window, inside the task that needs them. The file's georeference counts, not what an item says
of it. Each window is added to sums on the target GeoBox; the division comes last, so tiles,
slices and zones fuse exactly and memory depends on the window and the chunk alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError
from rasterio.windows import Window

from xsoilsm import regrid
from xsoilsm.facts import Band
from xsoilsm.sources.access.links import Access, ask, readable_href
from xsoilsm.sources.access.transport import RequestFailed, is_web, patience, with_retries
from xsoilsm.sources.pixels.edges import identity, read_window

__all__ = [
    "BLOCK",
    "CellSums",
    "NativeReader",
    "Patch",
    "Raster",
    "native_windows",
    "split_window",
    "to_physical",
]

BLOCK = 2048
"""Longest side in native pixels of a window that is read at once."""

Floats = npt.NDArray[np.float32]

_GDAL = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_CONNECTTIMEOUT": "15",
    # Attempts are counted in one place; GDAL's own would come on top, without regard to the
    # pause that a server asks for, and they write signed links into the log.
    "GDAL_HTTP_MAX_RETRY": "0",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    "VSI_CACHE": "TRUE",
}
"""GDAL's settings while a file is read, unless the environment says otherwise."""

_LASTING = re.compile(r"HTTP response code: (400|401|404|410|416)\b")


@dataclass(frozen=True)
class Raster:
    """A file with one band, as it travels in a graph.

    Parameters
    ----------
    href : str
        Unsigned link or path.
    access : Access
    crs : str
        Used where the file has no CRS.
    """

    href: str
    access: Access
    crs: str = ""


@dataclass(frozen=True)
class Patch:
    """A window of a native file.

    Parameters
    ----------
    row, column : int
        First pixel of the window in the file.
    geobox : GeoBox
        Of the window.
    """

    row: int
    column: int
    geobox: GeoBox

    @property
    def window(self) -> Window:
        """The same for rasterio."""
        height, width = self.geobox.shape
        return Window(self.column, self.row, width, height)


class NativeReader:
    """Files of one item that share a grid, opened for reading window by window.

    Use as a context manager. Faults that may pass are retried with a fresh link.

    Parameters
    ----------
    rasters : sequence of Raster

    Attributes
    ----------
    geobox : GeoBox
        Grid of the files.
    nodata : tuple of float or None
        What each file declares.

    Raises
    ------
    OSError
        When a file cannot be opened or the files' grids differ.
    """

    geobox: GeoBox
    nodata: tuple[float | None, ...]

    def __init__(self, rasters: Sequence[Raster]) -> None:
        self._rasters = tuple(rasters)
        self._stack = ExitStack()
        self._files: list[Any] = []
        self._known: list[Hashable] = []

    def __enter__(self) -> NativeReader:
        with_retries(self._open, f"opening {self._rasters[0].href}", passing=self._is_passing)
        grids = [_geobox_of(file, raster) for file, raster in self._pairs()]
        if any(grid != grids[0] for grid in grids):
            self.close()
            names = ", ".join(raster.href for raster in self._rasters)
            msg = f"the grids of {names} differ; expected bands of one item to share a grid"
            raise OSError(msg)
        self.geobox = grids[0]
        self.nodata = tuple(file.nodata for file in self._files)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._stack.close()
        self._files, self._known = [], []

    def read(self, patch: Patch) -> list[npt.NDArray[Any]]:
        """Read a window of each file. Computes.

        Parameters
        ----------
        patch : Patch

        Returns
        -------
        list of (y, x) ndarray
            Stored numbers.

        Raises
        ------
        OSError
            When reading failed for good.
        """

        def read(attempt: int) -> list[npt.NDArray[Any]]:
            if attempt:
                self._open(attempt)
            with rasterio.Env(**_settings(attempt, self._rasters)):
                files = zip(self._files, self._known, strict=True)
                return [read_window(file, known, patch.window) for file, known in files]

        what = f"reading {self._rasters[0].href} at row {patch.row}, column {patch.column}"
        return with_retries(read, what, passing=self._is_passing)

    def _open(self, attempt: int) -> None:
        self.close()
        if attempt:
            # GDAL does not tell what a server answered. Ask it for a byte: that renews a
            # signature, obeys a pause that the server names, and tells a fault that lasts.
            for raster in self._rasters:
                if is_web(readable_href(raster.href, raster.access)):
                    ask(raster.href, raster.access, (0, 1))
        with rasterio.Env(**_settings(attempt, self._rasters)):
            for raster in self._rasters:
                link = readable_href(raster.href, raster.access)
                self._known.append(identity(raster.href, link))
                # sharing=False: GDAL would hand a broken handle to the next attempt.
                self._files.append(self._stack.enter_context(rasterio.open(link, sharing=False)))

    def _pairs(self) -> Iterator[tuple[Any, Raster]]:
        return zip(self._files, self._rasters, strict=True)

    def _is_passing(self, error: Exception) -> bool:
        """Remote faults may pass; a file on this machine does not change by waiting."""
        if isinstance(error, RequestFailed):
            return error.is_passing
        remote = any("://" in raster.href for raster in self._rasters)
        lasting = _LASTING.search(str(error)) is not None
        return remote and isinstance(error, RasterioError | OSError) and not lasting


def _settings(attempt: int, rasters: Sequence[Raster]) -> dict[str, str]:
    settings = {name: value for name, value in _GDAL.items() if name not in os.environ}
    if "XSOILSM_HTTP_TIMEOUT" in os.environ or "GDAL_HTTP_TIMEOUT" not in os.environ:
        settings["GDAL_HTTP_TIMEOUT"] = f"{patience().timeout:g}"
    if any(raster.access.signing == "netrc" for raster in rasters):
        # A login answers with cookies; they stay in memory. GDAL finds ~/.netrc by itself.
        settings["GDAL_HTTP_COOKIEFILE"] = ""
        if "NETRC" in os.environ:
            settings["GDAL_HTTP_NETRC_FILE"] = os.environ["NETRC"]
    if attempt and any("://" in raster.href for raster in rasters):
        # GDAL remembers a failed request as a missing file: go around its cache.
        settings["CPL_VSIL_CURL_NON_CACHED"] = "/vsicurl/"
    return settings


def _geobox_of(file: Any, raster: Raster) -> GeoBox:
    crs = file.crs.to_wkt() if file.crs else raster.crs
    if not crs:
        msg = f"{raster.href} has no CRS; name one in the catalog"
        raise OSError(msg)
    return GeoBox((file.height, file.width), file.transform, crs)


def native_windows(source: GeoBox, target: GeoBox, block: int = BLOCK) -> Iterator[Patch]:
    """Windows of a native file that a GeoBox needs, at most `block` pixels wide and high.

    Lazy: reads nothing. Windows break at multiples of `block`, so that they are the same
    whatever the chunks.

    Parameters
    ----------
    source : GeoBox
        Of the whole file.
    target : GeoBox
    block : int

    Yields
    ------
    Patch
    """
    for window in regrid.source_windows(source, target):
        yield from split_window(source, window, block)


def split_window(source: GeoBox, window: regrid.Window, block: int = BLOCK) -> Iterator[Patch]:
    """Cut a window of a native file at multiples of `block`.

    Parameters
    ----------
    source : GeoBox
        Of the whole file.
    window : (rows, columns)
        Slices.
    block : int

    Yields
    ------
    Patch
    """
    for row, rows in _pieces(window[0].start, window[0].stop, block):
        for column, columns in _pieces(window[1].start, window[1].stop, block):
            yield Patch(row, column, source[row : row + rows, column : column + columns])


def _pieces(start: int, stop: int, block: int) -> Iterator[tuple[int, int]]:
    while start < stop:
        end = min((start // block + 1) * block, stop)
        yield start, end - start
        start = end


def to_physical(stored: npt.NDArray[Any], band: Band, declared: float | None) -> Floats:
    """Scale stored numbers, with NaN where there is no value.

    Parameters
    ----------
    stored : ndarray
    band : Band
        Scale, offset, nodata and valid range.
    declared : float or None
        Nodata that the file declares.

    Returns
    -------
    ndarray of float32
        ``stored * scale + offset``.
    """
    invalid = np.zeros(stored.shape, dtype=bool)
    for nodata in {band.nodata, declared} - {None}:
        invalid |= stored == nodata  # comparing with NaN marks nothing, and NaN stays NaN
    if band.valid is not None:
        low, high = band.valid
        invalid |= (stored < low) | (stored > high)
    values = stored.astype(np.float32)
    if band.scale != 1.0:
        values *= np.float32(band.scale)
    if band.offset != 0.0:
        values += np.float32(band.offset)
    values[invalid] = np.nan
    return values


class CellSums:
    """Sums of weights and of weighted values on a GeoBox; the mean is taken last.

    Parameters
    ----------
    bands : int
    target : GeoBox
    """

    def __init__(self, bands: int, target: GeoBox) -> None:
        self.target = target
        self._total = np.zeros((bands, *target.shape), dtype=np.float64)
        self._weight = np.zeros_like(self._total)

    def add(
        self,
        values: Floats,
        patch: Patch,
        bands: slice = slice(None),
        transform: str | None = None,
    ) -> None:
        """Add a window.

        Parameters
        ----------
        values : (band, y, x) ndarray of float32
            NaN has no weight.
        patch : Patch
        bands : slice
            Which of the sums the values belong to.
        transform : {None, "db"}
            ``"db"`` averages 10 log10 of the values; those not above zero have no weight.
        """
        regrid.accumulate(
            values,
            patch.geobox,
            self.target,
            self._total[bands],
            self._weight[bands],
            transform=transform,
            anchor=(patch.row, patch.column),
        )

    def weight(self, band: int) -> npt.NDArray[np.float64]:
        """Sum of the weights of a band so far, as a copy."""
        copied: npt.NDArray[np.float64] = self._weight[band].copy()
        return copied

    def add_cells(
        self, band: int, values: npt.NDArray[np.float64], weight: npt.NDArray[np.float64]
    ) -> None:
        """Add values of whole cells with a weight.

        Parameters
        ----------
        band : int
        values, weight : (y, x) ndarray of float64
        """
        self._total[band] += values * weight
        self._weight[band] += weight

    def finish(self) -> tuple[Floats, Floats]:
        """Mean and covered share of each cell.

        Returns
        -------
        mean : (band, y, x) ndarray of float32
            NaN where nothing was added.
        coverage : (band, y, x) ndarray of float32
            From 0 to 1; where sources overlap it stays at 1.
        """
        return regrid.finish(self._total, self._weight)
