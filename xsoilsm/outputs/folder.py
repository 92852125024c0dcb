"""Step 7 of 7 (write): all outputs of a folder of tiles, in one call.

Tiles lie as ``tiles/ACQUISITION/TILE/VARIABLE.tif`` and say in their tags what they are, so that
they can be put together without the ledger of the job that made them. Who has a ledger gives
pieces instead, and can tell failed tiles from parts that no acquisition covers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox

from xsoilsm import periods
from xsoilsm.card import EnsembleCard
from xsoilsm.outputs.mosaic import Numbers, write_mosaics
from xsoilsm.outputs.netcdf import netcdf_name, write_netcdf
from xsoilsm.outputs.pieces import Acquisition, InputItem, Piece, Place
from xsoilsm.outputs.stac import write_stac
from xsoilsm.outputs.store import write_zarr
from xsoilsm.products import safe_name

__all__ = ["FORMS", "composite_end", "find_tiles", "write_outputs"]

Form = Literal["cog", "stac", "zarr", "netcdf"]

FORMS: tuple[Form, ...] = ("cog", "stac", "zarr", "netcdf")
"""Forms of outputs; a STAC catalog describes mosaics and so brings them with it."""


def composite_end(start: np.datetime64, period: str) -> np.datetime64:
    """First instant after a composite.

    Lazy: reads nothing.

    Parameters
    ----------
    start : datetime64
    period : {"P1D", "P8D", "P1M"}
        The last 8-day period of a year has 5 or 6 days.

    Returns
    -------
    datetime64

    Raises
    ------
    ValueError
        For another period.

    Examples
    --------
    >>> composite_end(np.datetime64("2020-12-26"), "P8D")
    np.datetime64('2021-01-01')
    """
    day = start.astype("datetime64[D]")
    month = start.astype("datetime64[M]")
    ends: dict[str, np.datetime64] = {
        "P1D": day + np.timedelta64(1, "D"),
        "P1M": (month + np.timedelta64(1, "M")).astype("datetime64[D]"),
        "P8D": day + np.timedelta64(int(periods.period_length(day)), "D"),
    }
    if period in ends:
        return ends[period]
    msg = f"unknown period {period!r} of a composite; expected 'P1D', 'P8D' or 'P1M'"
    raise ValueError(msg)


def find_tiles(folder: str | os.PathLike[str]) -> list[Piece]:
    """Find the tiles below a folder.

    Reads the head of one file per tile and acquisition, no pixel.

    Parameters
    ----------
    folder : path
        That holds ``ACQUISITION/TILE/VARIABLE.tif``, usually ``OUT/tiles``.

    Returns
    -------
    list of Piece

    Raises
    ------
    OSError
        When a file cannot be read.
    ValueError
        When there is no tile, or the tiles of an acquisition say different times.
    """
    pieces: list[Piece] = []
    for home in sorted(path for path in Path(folder).glob("*") if path.is_dir()):
        boxes: dict[Path, GeoBox] = {}
        said: dict[str, set[str]] = {}
        for tile in sorted(path for path in home.glob("*") if path.is_dir()):
            files = sorted(tile.glob("[!.]*.tif"))
            if not files:
                continue
            with rasterio.open(files[0]) as file:
                for name, text in file.tags().items():
                    said.setdefault(name, set()).add(text)
                box = GeoBox(file.shape, file.transform, str(file.crs))
            boxes[tile] = Place.of(box).geobox
        if boxes:
            acquisition = _acquisition(home.name, said)
            pieces += [
                Piece(path, box, path.stem, acquisition)
                for tile, box in boxes.items()
                for path in sorted(tile.glob("[!.]*.tif"))
            ]
    if not pieces:
        msg = f"no tiles in {folder}; expected ACQUISITION/TILE/VARIABLE.tif"
        raise ValueError(msg)
    return pieces


def _acquisition(identifier: str, said: Mapping[str, set[str]]) -> Acquisition:
    """Put together what the tiles of an acquisition say of it."""
    told = {name: next(iter(texts)) for name, texts in said.items() if len(texts) == 1}
    if "time_utc" not in told:
        times = ", ".join(sorted(said.get("time_utc", {"none"})))
        msg = f"the tiles of {identifier} say the times {times} in the tag time_utc; expected one"
        raise ValueError(msg)
    start = np.datetime64(told["time_utc"])
    period = told.get("period", "")
    orbit = told.get("relative_orbit", "")
    items = {item for text in said.get("input_items", ()) for item in text.split()}
    return Acquisition(
        identifier,
        start,
        end=composite_end(start, period) if period else None,
        period=period,
        platform=told.get("platform", ""),
        orbit_state=told.get("orbit_state", ""),
        relative_orbit=int(orbit) if orbit.isdecimal() else None,
        items=tuple(InputItem(item) for item in sorted(items)),
    )


def write_outputs(
    pieces: Iterable[Piece],
    folder: str | os.PathLike[str],
    *,
    forms: Sequence[Form] = ("cog", "stac"),
    geobox: GeoBox | None = None,
    numbers: Numbers = "float32",
    attributes: Mapping[str, str] | None = None,
    card: EnsembleCard | None = None,
    overwrite: bool = False,
) -> dict[Form, list[Path]]:
    """Write the outputs of a map.

    Computes: streams the tiles. What is there already, whole and of the same tiles, is kept as far
    as mosaics go; a Zarr store goes on where it was interrupted.

    Parameters
    ----------
    pieces : iterable of Piece
        Of the job, or from `find_tiles`.
    folder : path
        Gets ``mosaics/``, ``catalog.json`` with a collection, ``NAME.zarr`` and ``netcdf/`` with
        one file per acquisition.
    forms : sequence of {"cog", "stac", "zarr", "netcdf"}, default ("cog", "stac")
    geobox : GeoBox, optional
        Cells of all outputs. By default the smallest block that holds all pieces.
    numbers : {"float32", "int16"}, default "float32"
    attributes : mapping of str to str, optional
        Of the result; by default what all tiles say in common.
    card : EnsembleCard, optional
        For the STAC catalog.
    overwrite : bool, default False
        Replace what is there of other tiles.

    Returns
    -------
    dict of str to list of Path
        What was written, by form.

    Raises
    ------
    FileExistsError
        When an output of other tiles exists and `overwrite` is false.
    OSError, ValueError
        As the functions that write them, and for an unknown form.
    """
    unknown = sorted(set(forms) - set(FORMS))
    if unknown or not forms:
        msg = f"unknown forms {', '.join(unknown) or 'none'}; expected of {', '.join(FORMS)}"
        raise ValueError(msg)
    pieces, home = list(pieces), Path(folder)
    written: dict[Form, list[Path]] = {}
    if "cog" in forms or "stac" in forms:
        mosaics = write_mosaics(
            pieces,
            home / "mosaics",
            geobox=geobox,
            numbers=numbers,
            attributes=attributes,
            overwrite=overwrite,
        )
        written["cog"] = [mosaic.path for mosaic in mosaics]
        if "stac" in forms:
            written["stac"] = [write_stac(mosaics, home, card=card, attributes=attributes)]
    if "zarr" in forms:
        name = safe_name(f"soil-moisture-{Place.of(pieces[0].geobox).resolution}")
        store = home / f"{name}.zarr"
        written["zarr"] = [
            write_zarr(
                pieces,
                store,
                geobox=geobox,
                numbers=numbers,
                attributes=attributes,
                overwrite=overwrite,
            )
        ]
    if "netcdf" in forms:
        groups: dict[str, list[Piece]] = {}
        for piece in pieces:
            groups.setdefault(piece.acquisition.id, []).append(piece)
        written["netcdf"] = [
            write_netcdf(
                group,
                home / "netcdf" / netcdf_name(group, attributes),
                geobox=geobox,
                numbers=numbers,
                attributes=attributes,
                overwrite=overwrite,
            )
            for _, group in sorted(groups.items())
        ]
    return written
