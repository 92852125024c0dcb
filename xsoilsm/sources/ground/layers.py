"""Step 3 of 7 (load): what does not change, kept on disk for the next cube.

Terrain, soil and land cover of a chunk are the same for every date. What was read of a chunk
over the network lies under ``cache_dir()/layers`` and is found again by the digest of everything
it depends on: the records of its items (identifiers, links, scales), the cells, and the version
of the readers. Files on this machine are near enough and are not kept.

Safe for several processes: a file appears under its name only when it is complete, and what is
damaged counts as absent. Bounded: beyond the limit the files that were not used for longest go.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from xsoilsm.catalog import cache_dir

__all__ = ["LIMIT_VARIABLE", "VERSION", "clear_layers", "layers_dir", "read_layers"]

logger = logging.getLogger(__name__)

VERSION = 1
"""Raised whenever a reader gives other numbers for the same files."""

LIMIT_VARIABLE = "XSOILSM_LAYERS_MB"
"""Environment variable: megabytes that the kept layers may take."""

_LIMIT_MB = 2000.0
_KEPT = 0.8  # share of the limit that is left after tidying
_ONCE_IN = 0.05  # share of the limit after which a process tidies again

Floats = npt.NDArray[np.float32]
Reader = Callable[[tuple[Any, ...], GeoBox, str], Floats]

_written = {"bytes": float("inf")}  # by this process since it last tidied


def layers_dir() -> Path:
    """Return the folder of the kept layers. It is not created."""
    return cache_dir() / "layers"


def read_layers(
    reader: Reader,
    records: tuple[Any, ...],
    target: GeoBox,
    on_error: str = "flag",
    *,
    cache: bool = True,
) -> Floats:
    """Read layers that do not change, or find what was kept of them. Computes.

    Parameters
    ----------
    reader : callable
        Gets the records, the GeoBox and ``"flag"`` or ``"raise"``, and gives (band, y, x).
    records : tuple
        Of the items, frozen; each with an attribute ``raster``.
    target : GeoBox
        A chunk of the cube.
    on_error : {"flag", "raise"}
        Handed on to the reader.
    cache : bool, default True
        Look for kept layers, and keep what was read completely.

    Returns
    -------
    (band, y, x) ndarray of float32

    Raises
    ------
    OSError
        When a file cannot be read and `on_error` is ``"raise"``.
    """
    if not cache or not any(_is_remote(record.raster.href) for record in records):
        return reader(records, target, on_error)
    path = _path(reader, records, target)
    kept = _load(path, target)
    if kept is not None:
        return kept
    try:
        values = reader(records, target, "raise")
    except OSError:
        if on_error == "raise":
            raise
        # Known only in part: good for this cube, not for the next one.
        return reader(records, target, on_error)
    _store(path, values)
    return values


def _is_remote(href: str) -> bool:
    return "://" in href and not href.startswith("file://")


def _path(reader: Reader, records: tuple[Any, ...], target: GeoBox) -> Path:
    affine = tuple(float(v) for v in target.affine)[:6]
    name = f"{reader.__module__}.{reader.__qualname__}"
    key = repr((VERSION, name, records, tuple(target.shape), affine, str(target.crs)))
    digest = hashlib.sha256(key.encode()).hexdigest()
    return layers_dir() / digest[:2] / f"{digest[2:]}.npy"


def _load(path: Path, target: GeoBox) -> Floats | None:
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logger.info("%s is damaged and is read anew: %s", path, error)
        return None
    if values.dtype != np.float32 or values.shape[1:] != tuple(target.shape):
        return None
    with suppress(OSError):
        os.utime(path)  # used now
    kept: Floats = values
    return kept


def _store(path: Path, values: Floats) -> None:
    """Write a file that appears whole or not at all; a full disk is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=".", suffix=".partial", delete=False
        ) as file:
            try:
                np.save(file, values, allow_pickle=False)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        logger.info("cannot keep a layer in %s: %s", path.parent, error)
        return
    _written["bytes"] += values.nbytes
    limit = _limit()
    if _written["bytes"] > _ONCE_IN * limit:
        _written["bytes"] = 0.0
        _tidy(limit)


def _limit() -> float:
    """Bytes that the kept layers may take."""
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        return float(text or _LIMIT_MB) * 1e6
    except ValueError:
        logger.warning("%s=%r is not a number of megabytes", LIMIT_VARIABLE, text)
        return _LIMIT_MB * 1e6


def _tidy(limit: float) -> None:
    """Remove what was not used for longest, where there is more than the limit."""
    files: list[tuple[float, int, Path]] = []
    for path in layers_dir().glob("*/*"):
        with suppress(OSError):  # gone in the meantime
            state = path.stat()
            files.append((state.st_mtime, state.st_size, path))
    total = sum(size for _, size, _ in files)
    if total <= limit:
        return
    for _, size, path in sorted(files):
        if total <= _KEPT * limit:
            break
        with suppress(OSError):
            path.unlink()
        total -= size


def clear_layers() -> int:
    """Remove all kept layers. They are read anew when they are needed.

    Returns
    -------
    int
        Bytes that were freed.
    """
    folder = layers_dir()
    freed = sum(path.stat().st_size for path in folder.glob("*/*") if path.is_file())
    shutil.rmtree(folder, ignore_errors=True)
    return freed
