"""Step 7 of 7 (write): one unit of a job, from the search to verified files.

`make_unit` has plain arguments and plain results and knows of no ledger, so that it runs in any
thread of any machine that sees the job's folder. What a unit's products share is loaded once.
Each tile of a product is written under a temporary name, read back, compared and renamed.

A source that cannot be read for good makes the tile ``partial``: cells without it are flagged, and
the tile is made anew when the job is run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import shapely
import xarray as xr

from xsoilsm.catalog import Catalog
from xsoilsm.cog import write_cogs
from xsoilsm.loading import load_cube
from xsoilsm.mapping.acquisitions import Acquisition
from xsoilsm.mapping.composite import Composite
from xsoilsm.mapping.inputs import narrowed
from xsoilsm.mapping.plan import Product, Unit
from xsoilsm.mapping.region import cells_of
from xsoilsm.quality import QualityFlag
from xsoilsm.retrieval import retrieve
from xsoilsm.sources.access.search import lonlat_bounds
from xsoilsm.sources.series.shared import sharing

if TYPE_CHECKING:
    from xsoilsm.ensemble import Ensemble

__all__ = [
    "INCOMPLETE_TAG",
    "JOB_TAG",
    "PRODUCT_TAG",
    "TILE_TAG",
    "CannotWriteError",
    "Made",
    "check_machine",
    "digest_of",
    "folder_of",
    "make_unit",
]

JOB_TAG, PRODUCT_TAG, TILE_TAG = "job", "product", "tile"
"""Tags of a tile's files: hash of the job's configuration, names of product and tile."""

INCOMPLETE_TAG = "incomplete"
"""Tag of the files of a partial tile: what could not be read."""

AT_ONCE = 8
"""Acquisitions whose radar is loaded together; they share what the terrain does to it."""

_SAME_PASS = np.timedelta64(2, "h")
_NOT_TAGS = ("input_items", "excluded_items")  # of the whole unit; the ledger has the tile's own

State = Literal["done", "partial", "failed"]
OnError = Literal["flag", "raise"]


class CannotWriteError(OSError):
    """The job's folder cannot be written, so that no further tile can succeed."""


@dataclass(frozen=True)
class Made:
    """What became of one tile of a product.

    Parameters
    ----------
    product, tile : str
    state : {"done", "partial", "failed"}
    error : str
        What went wrong; empty where nothing did.
    files : dict of str to str
        SHA-256 of each file, by its name.
    items : tuple of str
        Identifiers of the inputs.
    seconds : float
        Share of the time that the unit took.
    bytes_read : int
        Share of the bytes that the unit read from files on this machine and, where that can be
        told, over the network; -1 where it cannot be told.
    """

    product: str
    tile: str
    state: State
    error: str = ""
    files: dict[str, str] = field(default_factory=dict)
    items: tuple[str, ...] = ()
    seconds: float = 0.0
    bytes_read: int = -1


def folder_of(job: str | os.PathLike[str], product: str, tile: str) -> Path:
    """Folder of the files of one tile of a product. Lazy: reads nothing."""
    return Path(job, "tiles", product, tile)


def make_unit(
    unit: Unit,
    report: Callable[[Made], object] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[Made]:
    """Make what is wanted of a unit.

    Computes, in the calling thread alone, and writes.

    Parameters
    ----------
    unit : Unit
    report : callable, optional
        Is called with each tile as soon as it is made.
    stop : callable, optional
        Is asked before each product whether to leave the rest.

    Returns
    -------
    list of Made
        One for each product that is wanted, in order of time; without those that were left.

    Raises
    ------
    CannotWriteError
        When the job's folder cannot be written.
    RuntimeError
        When this machine does not see the job, or runs another release or way of networks.
    """
    check_machine(unit)
    made: list[Made] = []
    meter = _Meter()
    region = lonlat_bounds(unit.configuration.geobox)
    with narrowed(Path(unit.folder, "inputs"), unit.items) as catalog, sharing(region):
        loaded = _Loaded(unit, catalog)
        for product in unit.products:
            if product.id not in unit.wanted:
                continue
            if stop is not None and stop():
                break
            entry = _make(loaded, product, meter)
            made.append(entry)
            if report is not None:
                report(entry)
    return made


def _make(loaded: _Loaded, product: Product, meter: _Meter) -> Made:
    """Make one product of a unit, or say why that failed."""
    unit = loaded.unit
    files: dict[str, str] = {}
    items: tuple[str, ...] = ()
    state: State
    try:
        result = _map(loaded, product)
        items = loaded.items(product)
        state, error = ("partial", loaded.fault) if loaded.fault else ("done", "")
        if error:
            result.attrs[INCOMPLETE_TAG] = error[:500]
        files = _write(unit, product, result)
    except CannotWriteError:
        raise
    except Exception as found:  # whatever went wrong, the other tiles go on
        state, error = "failed", f"{type(found).__name__}: {found}"
    return Made(
        product=product.id,
        tile=unit.tile,
        state=state,
        error=error[:2000],
        files=files,
        items=items,
        seconds=meter.seconds(),
        bytes_read=loaded.take_bytes(),
    )


@lru_cache(maxsize=8)
def _machine_fault(folder: str, job_hash: str, engine: str, code: str, ensemble: Ensemble) -> str:
    """Say why this machine cannot work on a job; tried once in a process."""
    from xsoilsm.engine import way_for

    here = socket.gethostname()
    own = version("xsoilsm")
    if own != code:
        return f"{here} runs xsoilsm {own}, the job was begun with {code}; install that one"
    try:
        found = json.loads(Path(folder, "job.json").read_text("utf-8"))["hash"]
    except (OSError, ValueError, KeyError) as error:
        return f"{here} does not see the job's folder {folder} ({error}); mount it there"
    if found != job_hash:
        return f"{folder} on {here} is the folder of another job; mount the right one there"
    ensemble.require_weights()
    way, _, device = engine.partition(" on ")
    have = way_for(device)
    if have != way:
        return (
            f"{here} runs networks in the way {have!r}, the job was begun with {way!r}; set "
            f"XSOILSM_ENGINE={way} there"
        )
    return ""


def check_machine(unit: Unit) -> None:
    """Refuse to work where the numbers would be others, or the files be lost.

    Computes: reads ``job.json`` and the weights, once in a process.

    Raises
    ------
    RuntimeError
        When this machine does not see the job, or runs another release or way of networks.
    """
    chosen = unit.configuration
    engine = f"{chosen.engine} on {chosen.device}"
    fault = _machine_fault(unit.folder, unit.job_hash, engine, chosen.code, unit.ensemble)
    if fault:
        raise RuntimeError(fault)


class _Meter:
    """Seconds since it was last asked; of a clock that nobody sets."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def seconds(self) -> float:
        now = time.monotonic()
        passed, self._since = now - self._since, now
        return passed


# --------------------------------------------------------------------------- inputs


class _Loaded:
    """Inputs of a unit, loaded as they are needed.

    Attributes
    ----------
    fault : str
        What could not be read of the inputs of the product that was last mapped.
    inside : (y, x) ndarray of bool
        Cells of the region.
    """

    def __init__(self, unit: Unit, catalog: Catalog) -> None:
        self.unit = unit
        self.fault = ""
        self._catalog = catalog
        self._shared: xr.Dataset | None = None
        self._shared_fault = ""
        self._cubes: dict[str, xr.Dataset] = {}
        self._places: dict[str, int] = {}
        self._radar: dict[str, tuple[xr.Dataset, str]] = {}
        self._bytes = 0
        self.inside = cells_of(unit.configuration.polygon, unit.geobox)

    def cube(self, acquisition: Acquisition) -> xr.Dataset:
        """Cube of one acquisition, in one chunk each variable. Computes."""
        if self._shared is None:
            self._shared, self._shared_fault = self._guarded(self._load_shared)
        if acquisition.id not in self._radar:
            self._load_radar(acquisition)
        radar, fault = self._radar.pop(acquisition.id)
        self.fault = "; ".join(dict.fromkeys(filter(None, (self.fault, self._shared_fault, fault))))
        if not self.inside.all():  # without radar nothing is computed there
            bands = [name for name in radar.data_vars if str(name).startswith("sigma0_")]
            radar = radar.assign({n: radar[n].where(self.inside) for n in bands})
        whole = self._shared.assign_coords(radar.coords).assign(radar.data_vars)
        # In one chunk each, so that networks run in this thread alone. Coordinates stay as they
        # are: asking for their values would ask a cluster's scheduler.
        return whole.assign({n: data.variable.chunk() for n, data in whole.data_vars.items()})

    def items(self, product: Product) -> tuple[str, ...]:
        """Name the inputs of a product."""
        place = shapely.box(*lonlat_bounds(self.unit.geobox))
        names = [name for a in product.acquisitions for name in a.items_over(place)]
        if self._shared is not None:
            for variable in self._shared.data_vars.values():
                names += str(variable.attrs.get("items", "")).split()
        return tuple(dict.fromkeys(names))

    def take_bytes(self) -> int:
        """Bytes that were read since this was last asked; -1 where that cannot be told."""
        taken, self._bytes = self._bytes, 0
        return taken

    def _lazy(self, on_error: OnError) -> xr.Dataset:
        if on_error in self._cubes:
            return self._cubes[on_error]
        unit = self.unit
        cube = self._cubes[on_error] = load_cube(
            unit.geobox,
            tuple(map(str, unit.days)),
            catalog=self._catalog,
            chunks=(unit.geobox.shape[0], unit.geobox.shape[1]),
            on_error=on_error,
            **unit.configuration.load,
        )
        self._places = _places(cube, unit)
        return cube

    def _guarded(self, load: Callable[[OnError], xr.Dataset]) -> tuple[xr.Dataset, str]:
        """Load whole; what cannot be read is flagged in a second attempt, and named."""
        before = bytes_read()
        try:
            return load("raise"), ""
        except OSError as error:
            return load("flag"), str(error)
        finally:
            self._count(before)

    def _count(self, before: int) -> None:
        self._bytes = self._bytes + bytes_read() - before if before >= 0 else -1

    def _load_shared(self, on_error: OnError) -> xr.Dataset:
        cube = self._lazy(on_error)
        names = [name for name, data in cube.data_vars.items() if "time" in data.dims]
        return cube.drop_vars(names).drop_dims("time").compute(scheduler="synchronous")

    def _load_radar(self, first: Acquisition) -> None:
        """Load an acquisition, and with it those that will be asked for next."""
        unit = self.unit
        coming = [a for p in unit.products if p.id in unit.wanted for a in p.acquisitions]
        begin = [a.id for a in coming].index(first.id)
        self._lazy("raise")
        if first.id not in self._places:
            msg = f"the inputs that were found do not give {first.id} at {unit.tile}"
            raise LookupError(msg)
        chosen = [a for a in coming[begin:] if a.id in self._places][:AT_ONCE]
        before = bytes_read()
        try:
            whole = self._radar_of(chosen, "raise")
        except OSError:
            for one in chosen:  # some cannot be read: find out which
                self._radar[one.id] = self._guarded(partial(self._radar_of, [one]))
            return
        self._count(before)
        for k, one in enumerate(chosen):
            self._radar[one.id] = whole.isel(time=slice(k, k + 1)), ""

    def _radar_of(self, chosen: Sequence[Acquisition], on_error: OnError) -> xr.Dataset:
        cube = self._lazy(on_error)
        names = [name for name, data in cube.data_vars.items() if "time" in data.dims]
        places = [self._places[a.id] for a in chosen]
        return cube[names].isel(time=places).compute(scheduler="synchronous")


def _places(cube: xr.Dataset, unit: Unit) -> dict[str, int]:
    """Place of each acquisition along the time of a cube.

    The cube knows the time of the slices over the tile, the job that of the whole pass.
    """
    along = ("relative_orbit", "orbit_state", "platform")
    tracks = list(zip(*(cube[name].values.tolist() for name in along), strict=True))
    found = {}
    for one in (a for p in unit.products for a in p.acquisitions):
        track = one.relative_orbit, one.orbit_state, one.platform
        away = np.abs(cube["time"].values - np.datetime64(one.time, "ns"))
        near = [k for k, t in enumerate(tracks) if t == track and away[k] < _SAME_PASS]
        if near:
            found[one.id] = min(near, key=lambda k: away[k])
    return found


def bytes_read() -> int:
    """Bytes that this thread has read from files; -1 where the system does not tell."""
    try:
        text = Path("/proc/thread-self/io").read_text("ascii")
        return int(text.split("rchar:")[1].split()[0])
    except (OSError, IndexError, ValueError):
        return -1


# --------------------------------------------------------------------------- results


def _map(loaded: _Loaded, product: Product) -> xr.Dataset:
    """Retrieve one product, variables (y, x) in memory."""
    unit = loaded.unit
    loaded.fault = ""
    composite = Composite()
    for one in product.acquisitions:
        cube = loaded.cube(one)
        options = {"device": unit.configuration.device, **unit.configuration.retrieve}
        result = retrieve(cube, unit.ensemble, **options).compute(scheduler="synchronous")
        single = result.isel(time=0)
        time_ns = np.datetime64(one.time, "ns")
        single = single.assign_coords(time=single["time"].copy(data=time_ns))
        if not product.period:
            return _told(_clipped(single, loaded.inside), unit, product)
        composite.add(single)
    return _told(_clipped(composite.finish(), loaded.inside), unit, product)


def _clipped(result: xr.Dataset, inside: npt.NDArray[np.bool_]) -> xr.Dataset:
    """Leave out cells beyond the region; they look like those of tiles that are not made."""
    if inside.all():
        return result
    empty = {"quality_flag": int(QualityFlag.NO_SCENE)}
    changed = {}
    for name, data in result.data_vars.items():
        if {"y", "x"} <= set(data.dims):
            nothing = np.nan if data.dtype.kind == "f" else empty.get(str(name), 0)
            values = np.where(inside, data.values, np.asarray(nothing, data.dtype))
            changed[name] = data.copy(data=values)
    return result.assign(changed)


def _told(result: xr.Dataset, unit: Unit, product: Product) -> xr.Dataset:
    """Let a result say what it is part of, and nothing of the rest of its unit."""
    place = shapely.box(*lonlat_bounds(unit.geobox))
    names = [name for a in product.acquisitions for name in a.items_over(place)]
    attributes = {k: v for k, v in result.attrs.items() if k not in _NOT_TAGS}
    attributes |= {JOB_TAG: unit.job_hash, PRODUCT_TAG: product.id, TILE_TAG: unit.tile}
    attributes["time_utc"] = product.time
    attributes["input_items"] = " ".join(names)
    if product.period:
        attributes["period"] = product.period
        attributes["acquisitions"] = " ".join(a.id for a in product.acquisitions)
    told = result.copy()
    told.attrs = attributes
    return told


def _write(unit: Unit, product: Product, result: xr.Dataset) -> dict[str, str]:
    """Write a tile of a product; gives the SHA-256 of each file."""
    about = {k: v for k, v in result.attrs.items() if isinstance(v, str)}
    folder = folder_of(unit.folder, product.id, unit.tile)
    layers = {
        folder / f"{name}.tif": data.assign_attrs(about | data.attrs)
        for name, data in result.data_vars.items()
        if {"y", "x"} <= set(data.dims)
    }
    try:
        written = write_cogs(layers, overwrite=True)
        return {path.name: digest_of(path) for path in written}
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise CannotWriteError(error.errno, f"{error.strerror or error}{where}") from error


def digest_of(path: Path) -> str:
    """SHA-256 of a file. Computes: reads it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
