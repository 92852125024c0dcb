"""Step 7 of 7 (write): a Zarr store of all acquisitions, for analysis.

Format 3, in shards, with consolidated metadata and CF attributes. The store grows shard by shard
in a folder beside its place and moves there in one step when it is whole. A journal says which
shards are written and compared, so that an interrupted call goes on where it was.

Format: Zarr core specification 3, codec ``sharding_indexed``. Consolidated metadata are not part
of the specification; zarr-python writes them into the root's ``zarr.json`` as a member that other
readers may ignore (``must_understand: false``), and reading without them gives the same.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from xsoilsm.outputs.dataset import TIME_ENCODING, Layout
from xsoilsm.outputs.mosaic import Numbers
from xsoilsm.outputs.pieces import Piece

__all__ = ["Blocks", "write_zarr"]

_FORMAT = 1  # raise it when the same tiles are to give other stores


@dataclass(frozen=True)
class Blocks:
    """Sizes of the blocks of a store, each (time, y, x).

    Parameters
    ----------
    chunk : (int, int, int)
        What a reader decompresses at a time.
    shard : (int, int, int)
        What lies in one file, in whole chunks. Memory holds one shard.
    """

    chunk: tuple[int, int, int] = (16, 128, 128)
    shard: tuple[int, int, int] = (16, 512, 512)

    def fit(self, shape: tuple[int, int, int]) -> Blocks:
        """Shrink the blocks to an array of `shape`.

        Raises
        ------
        ValueError
            When a size is not positive, or a shard is not made of whole chunks.
        """
        whole = all(c > 0 and s % c == 0 and s for c, s in zip(self.chunk, self.shard, strict=True))
        if not whole:
            msg = f"shards of {self.shard} are not made of whole chunks of {self.chunk}"
            raise ValueError(msg)
        chunk = tuple(min(c, n) for c, n in zip(self.chunk, shape, strict=True))
        shard = tuple(
            c * min(s // k, -(-n // c))
            for c, k, s, n in zip(chunk, self.chunk, self.shard, shape, strict=True)
        )
        return Blocks((chunk[0], chunk[1], chunk[2]), (shard[0], shard[1], shard[2]))


def write_zarr(
    pieces: Iterable[Piece],
    path: str | os.PathLike[str],
    *,
    geobox: GeoBox | None = None,
    numbers: Numbers = "float32",
    attributes: Mapping[str, str] | None = None,
    blocks: Blocks | None = None,
    overwrite: bool = False,
) -> Path:
    """Write tiles as one Zarr store (format 3) with all acquisitions along time.

    Computes: streams the tiles; memory holds one shard. Interrupted, the same call goes on where
    it was; a call with other tiles begins anew.

    Parameters
    ----------
    pieces : iterable of Piece
        Tiles of one or more acquisitions, or of composites.
    path : path
        Folder of the store, usually ending in ``.zarr``.
    geobox : GeoBox, optional
        Cells of the store. By default the smallest block that holds all pieces.
    numbers : {"float32", "int16"}, default "float32"
        ``"int16"`` packs soil moisture and its spread in steps of 0.0001 m3 m-3.
    attributes : mapping of str to str, optional
        Attributes of the result; by default what all tiles say in common.
    blocks : Blocks, optional
        Sizes of chunks and shards.
    overwrite : bool, default False
        Replace an existing store, at the very end.

    Returns
    -------
    Path
        The store, complete; every shard was compared with its tiles.

    Raises
    ------
    FileExistsError
        When `path` exists and `overwrite` is false.
    OSError
        When a tile is missing or damaged, or the folder cannot be written. What is done is kept
        in a folder ``.NAME-partial`` beside `path`.
    ValueError
        When tiles do not fit together, or blocks do not.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        msg = f"{target} exists; choose another name or pass overwrite=True"
        raise FileExistsError(errno.EEXIST, msg)
    layout = Layout.of(pieces, geobox, numbers, attributes)
    sizes = (blocks or Blocks()).fit(layout.shape)
    partial = target.with_name(f".{target.name}-partial")
    journal = _Journal(partial / "journal", _digest(layout, sizes))
    growing = partial / "store"
    if not journal.is_of_this() or not growing.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        growing.mkdir(parents=True)
        _create(layout, sizes, growing)
        journal.begin()
    _fill(layout, sizes, growing, journal)
    if target.exists():
        retired = partial / "replaced"
        os.replace(target, retired)
    os.replace(growing, target)
    shutil.rmtree(partial, ignore_errors=True)
    return target


class _Journal:
    """What is done of a store, one line per shard, safe against a kill at any moment.

    Parameters
    ----------
    path : Path
    digest : str
        SHA-256 of what the store is to hold.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self.path = path
        self.digest = digest

    def lines(self) -> list[str]:
        """Whole lines; the last one may have been cut."""
        if not self.path.is_file():
            return []
        return self.path.read_text(encoding="utf-8").split("\n")[:-1]

    def is_of_this(self) -> bool:
        """Whether the journal was begun for the same tiles and settings."""
        return self.lines()[:1] == [self.digest]

    def begin(self) -> None:
        """Start over."""
        self._append(self.digest, "w")

    def add(self, shard: str) -> None:
        """Note that a shard is done."""
        self._append(shard, "a")

    def _append(self, line: str, mode: str) -> None:
        start = "\n" if mode == "a" and not self._ends_whole() else ""
        with open(self.path, mode, encoding="utf-8") as file:
            file.write(f"{start}{line}\n")
            file.flush()
            os.fsync(file.fileno())

    def _ends_whole(self) -> bool:
        return self.path.read_bytes().endswith(b"\n")


def _digest(layout: Layout, sizes: Blocks) -> str:
    """SHA-256 of everything that decides the bytes of a store."""
    content = [
        _FORMAT,
        [sizes.chunk, sizes.shard],
        sorted(layout.attributes.items()),
        [
            [a.id, str(a.start), str(a.end), a.platform, a.orbit_state, a.relative_orbit]
            for a in layout.acquisitions
        ],
        {
            name: [None if mosaic is None else mosaic.digest for mosaic in mosaics]
            for name, mosaics in layout.mosaics.items()
        },
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _create(layout: Layout, sizes: Blocks, folder: Path) -> None:
    """Make a store with everything but the pixels."""
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    data: dict[str, xr.Variable] = {}
    encoding: dict[str, dict[str, Any]] = {}
    for name in layout.mosaics:
        packing = layout.packing(name)
        # Never computed: it tells xarray the shape, and one chunk makes no graph to speak of.
        empty = da.zeros(layout.shape, chunks=-1, dtype=packing.dtype)
        packed: dict[str, Any] = {
            k: v for k, v in packing.attributes.items() if k in ("scale_factor", "_FillValue")
        }
        if packing.masked and not packed:
            packed = {"_FillValue": packing.dtype.type(np.nan)}
        data[name] = xr.Variable(("time", "y", "x"), empty, layout.variable_attributes(name))
        encoding[name] = {
            "dtype": packing.dtype,
            "fill_value": packing.dtype.type(packing.fill),
            "grid_mapping": "spatial_ref",
            "chunks": sizes.chunk,
            "shards": sizes.shard,
            "compressors": [
                BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
                Crc32cCodec(),  # tells a damaged chunk from a good one
            ],
            **packed,
        }
    coords = layout.coords()
    encoding["time"] = {**TIME_ENCODING, "dtype": np.dtype(np.float64)}
    bounds = layout.time_bounds()
    if bounds is not None:
        coords["time_bounds"] = bounds
        coords["time"].attrs["bounds"] = "time_bounds"
        encoding["time_bounds"] = dict(encoding["time"])
    for name, coordinate in coords.items():
        if coordinate.ndim:
            encoding.setdefault(name, {})["chunks"] = coordinate.shape
    template = xr.Dataset(data, coords, layout.attributes)
    template.to_zarr(
        folder, mode="w", zarr_format=3, compute=False, consolidated=False, encoding=encoding
    )
    with warnings.catch_warnings():
        # zarr-python warns that the specification does not know them; see this module's head.
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        zarr.consolidate_metadata(str(folder), zarr_format=3)


def _shards(layout: Layout, sizes: Blocks) -> Iterator[tuple[str, tuple[slice, slice, slice]]]:
    """Names and regions of all shards of a variable, in order."""
    ranges = (range(0, n, s) for n, s in zip(layout.shape, sizes.shard, strict=True))
    for corner in product(*ranges):
        t, y, x = (
            slice(start, min(start + s, n))
            for start, s, n in zip(corner, sizes.shard, layout.shape, strict=True)
        )
        yield ".".join(str(start) for start in corner), (t, y, x)


def _fill(layout: Layout, sizes: Blocks, folder: Path, journal: _Journal) -> None:
    """Write the shards that are missing, each compared with what it is to hold."""
    import zarr

    done = set(journal.lines()[1:])
    group = zarr.open_group(str(folder), mode="r+", use_consolidated=False)
    for name in layout.mosaics:
        array: Any = group[name]
        for shard, region in _shards(layout, sizes):
            if f"{name} {shard}" in done:
                continue
            pixels = _pixels(layout, name, region)
            array[region] = pixels
            found = np.ascontiguousarray(array[region])
            if zlib.crc32(found.data) != zlib.crc32(pixels.data):
                msg = f"cannot write {folder}: {name} {shard} reads back differently"
                raise OSError(errno.EIO, msg)
            _sync(folder / name / "c", region, sizes)
            journal.add(f"{name} {shard}")


def _sync(folder: Path, region: tuple[slice, slice, slice], sizes: Blocks) -> None:
    """Wait until a shard has reached the disk; one of nothing but missing values has no file."""
    numbers = (part.start // size for part, size in zip(region, sizes.shard, strict=True))
    path = folder.joinpath(*map(str, numbers))
    if path.is_file():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _pixels(layout: Layout, name: str, region: tuple[slice, slice, slice]) -> npt.NDArray[Any]:
    times, rows, columns = region
    packing = layout.packing(name)
    shape = [part.stop - part.start for part in region]
    out = np.full(shape, packing.fill, packing.dtype)
    for layer, mosaic in zip(out, layout.mosaics[name][times], strict=True):
        if mosaic is not None:
            layer[:] = mosaic.read((rows.start, rows.stop), (columns.start, columns.stop))
    return out
