"""Step 7 of 7 (write): what a job is: its configuration, and the folder that it fills.

A job's folder holds ``job.json`` (configuration and its hash, and the acquisitions that were
found), ``inputs/`` (the items of the search), ``ledger.sqlite`` and ``tiles/``. The hash covers
everything that decides the numbers: region, days, grid, composites, catalog, ensemble, code,
and the way in which networks run. Files of two hashes never meet in one folder.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import date
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import shapely

from xsoilsm import grid, retrieval
from xsoilsm.catalog import Catalog, CatalogError, open_catalog
from xsoilsm.loading import load_cube
from xsoilsm.mapping.acquisitions import Acquisition, find_acquisitions
from xsoilsm.mapping.inputs import Entry, read_entries, record_inputs
from xsoilsm.mapping.lock import hold
from xsoilsm.mapping.region import Region, read_region, region_text
from xsoilsm.quality import QualityFlag, name_of
from xsoilsm.sources.access.search import lonlat_bounds
from xsoilsm.sources.availability import Asof, moment_of
from xsoilsm.sources.sentinel1.passes import find_radar
from xsoilsm.thresholds import Mask, mask_bits
from xsoilsm.timespan import Time, days_of
from xsoilsm.wholefile import write_whole

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from xsoilsm.ensemble import Ensemble

__all__ = [
    "COMPOSITES",
    "TILE_SIZE",
    "Configuration",
    "Job",
    "JobError",
    "make_job",
    "open_job",
]

FORMAT = 2
"""Version of a job's folder, and of what its configuration means: 1 mapped tiles whole."""

COMPOSITES = {"none": "", "daily": "P1D", "8day": "P8D", "monthly": "P1M"}
"""Kinds of products and the length of their periods as ISO 8601 durations."""

TILE_SIZE = {"9km": 64, "1km": 64, "500m": 128, "100m": 256}
"""Cells along the side of a tile: 58 km, but 26 km at 100 m and 577 km at 9 km."""


class JobError(ValueError):
    """A job cannot be made or continued as asked."""


@dataclass(frozen=True)
class Configuration:
    """Everything that decides the numbers of a job.

    Parameters
    ----------
    region : str
        Polygon in degrees as WKT, see `xsoilsm.mapping.region.region_text`.
    start, end : str
        First and last day of acquisitions, UTC, ISO form.
    res : str
        Grid.
    composite : str
        One of `COMPOSITES`.
    tile_size : int
        Cells along the side of a tile.
    catalog : str
        Name, for people.
    catalog_digest : str
        SHA-256 of its content.
    model : str
        Name of the ensemble, or path of its folder.
    ensemble_digest : str
        SHA-256 over name, grid, contract and files of the ensemble.
    engine, device : str
        Way and place in which networks run.
    code : str
        Version of xsoilsm.
    load, retrieve : dict
        Further options of `xsoilsm.load_cube` and `xsoilsm.retrieve`.
    """

    region: str
    start: str
    end: str
    res: str
    composite: str
    tile_size: int
    catalog: str
    catalog_digest: str
    model: str
    ensemble_digest: str
    engine: str
    device: str
    code: str
    load: dict[str, Any] = field(default_factory=dict)
    retrieve: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the configuration, 64 hexadecimal digits."""
        text = json.dumps([FORMAT, asdict(self)], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def polygon(self) -> Any:
        """Region as a shapely geometry."""
        return shapely.from_wkt(self.region)

    @property
    def geobox(self) -> GeoBox:
        """Whole cells around the region's bounds."""
        return grid.ease2_geobox(self.polygon.bounds, self.res)

    @property
    def days(self) -> tuple[date, date]:
        """First and last day of acquisitions."""
        return date.fromisoformat(self.start), date.fromisoformat(self.end)


@dataclass(frozen=True)
class Job:
    """A configuration and the folder that it fills.

    Parameters
    ----------
    folder : Path
    configuration : Configuration
    acquisitions : tuple of Acquisition
        By time.
    excluded : tuple of (str, str)
        Items of radar that were left out, with the reason.
    """

    folder: Path
    configuration: Configuration
    acquisitions: tuple[Acquisition, ...]
    excluded: tuple[tuple[str, str], ...] = ()

    @property
    def hash(self) -> str:
        """Hash of the configuration."""
        return self.configuration.hash

    @property
    def inputs(self) -> Path:
        """Folder of the items that were found."""
        return self.folder / "inputs"

    @property
    def tiles(self) -> Path:
        """Folder of the tiles."""
        return self.folder / "tiles"

    @property
    def ledger(self) -> Path:
        """File of the ledger."""
        return self.folder / "ledger.sqlite"

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Items that were found. Computes: reads them once."""
        return read_entries(self.inputs)

    def ensemble(self) -> Ensemble:
        """Ensemble of the job.

        Raises
        ------
        JobError
            When the ensemble of that name is another one now.
        """
        from xsoilsm.ensemble import get_ensemble

        configuration = self.configuration
        found = get_ensemble(configuration.model, res=configuration.res)
        if found.digest != configuration.ensemble_digest:
            msg = (
                f"the ensemble {configuration.model!r} is {found.digest[:12]} now, the job in "
                f"{self.folder} was begun with {configuration.ensemble_digest[:12]}; install "
                "that one again, or begin a new job in another folder"
            )
            raise JobError(msg)
        return found


def make_job(
    region: Region,
    time: Time,
    out: str | os.PathLike[str],
    *,
    res: str = "1km",
    catalog: str | os.PathLike[str] | Catalog = "planetary-computer",
    model: str = "DenseSM-E",
    composite: str = "none",
    tile_size: int | None = None,
    device: str = "auto",
    mask: Mask = "default",
    asof: Asof | None = None,
    load: Mapping[str, Any] | None = None,
    retrieve: Mapping[str, Any] | None = None,
) -> Job:
    """Make a job, or find the one of the same configuration that was begun in the folder.

    Computes: asks the catalog's services where the job is new; reads no pixel.

    Parameters
    ----------
    region : (west, south, east, north), path, mapping or geometry
        See `xsoilsm.mapping.region.read_region`. Cells that touch it are mapped.
    time : str, (start, end) or slice
        Days in UTC, see `xsoilsm.load_cube`.
    out : path
        Folder of the job; is made where it is missing.
    res : {"9km", "1km", "500m", "100m"}, default "1km"
    catalog : str, path or Catalog, default "planetary-computer"
    model : str, default "DenseSM-E"
        Name of an ensemble, or path of a card.
    composite : {"none", "daily", "8day", "monthly"}, default "none"
        Map each acquisition, or means over days, the 46 fixed periods of a year, or months; see
        `xsoilsm.mapping.composite`.
    tile_size : int, optional
        Cells along the side of a tile; by default `TILE_SIZE`.
    device : {"auto", "cpu", "cuda"}, default "auto"
    mask : str, iterable of str, or None, default "default"
        Cells with these quality flags are blanked, see `xsoilsm.retrieve`; None blanks nothing.
    asof : str, date, datetime or datetime64, optional
        Use only what had come by then, see `xsoilsm.load_cube`: also acquisitions that had not
        come are left out. By default everything that the archives hold now.
    load, retrieve : mapping, optional
        Further options of `xsoilsm.load_cube` and `xsoilsm.retrieve`.

    Returns
    -------
    Job

    Raises
    ------
    JobError
        When the folder holds a job of another configuration, or something else.
    CatalogError
        When a service does not answer, or there is no acquisition.
    ValueError
        For anything that cannot be understood.
    WeightsError
        When the weights are not at hand.
    """
    from xsoilsm.engine import Engine
    from xsoilsm.ensemble import get_ensemble

    start, end = days_of(time)
    cells = grid.get_grid(res)
    if composite not in COMPOSITES:
        msg = f"composite {composite!r} is unknown; expected one of {', '.join(COMPOSITES)}"
        raise ValueError(msg)
    size = TILE_SIZE[cells.name] if tile_size is None else tile_size
    if size < 1:
        msg = f"tile_size is {size}; expected at least one cell"
        raise ValueError(msg)
    polygon = read_region(region)
    opened = catalog if isinstance(catalog, Catalog) else open_catalog(catalog)
    ensemble = get_ensemble(model, res=cells.name)
    ensemble.require_weights()
    engine = Engine(ensemble, device=device, threads=1)
    configuration = Configuration(
        region=region_text(polygon),
        start=str(start),
        end=str(end),
        res=cells.name,
        composite=composite,
        tile_size=size,
        catalog=opened.name,
        catalog_digest=_digest_of(opened),
        model=_lasting_name(model, ensemble),
        ensemble_digest=ensemble.digest,
        engine=engine.way,
        device=engine.device,
        code=version("xsoilsm"),
        load=_options(load_cube, load, _asof_option(asof)),
        retrieve=_options(retrieval.retrieve, retrieve, _mask_option(mask)),
    )
    folder = Path(out)
    if (folder / "job.json").exists():
        return _same(open_job(folder), configuration)
    _begin(folder, configuration, opened)
    return open_job(folder)


def open_job(out: str | os.PathLike[str]) -> Job:
    """Open the job in a folder. Computes: reads ``job.json``.

    Raises
    ------
    JobError
        When there is none, or its description is damaged.
    """
    folder = Path(out)
    path = folder / "job.json"
    try:
        content = json.loads(path.read_text("utf-8"))
        known = {f.name for f in fields(Configuration)}
        configuration = Configuration(
            **{k: v for k, v in content["configuration"].items() if k in known}
        )
        acquisitions = tuple(
            Acquisition(**(row | {"items": tuple((name, shape) for name, shape in row["items"])}))
            for row in content["acquisitions"]
        )
        excluded = tuple((name, reason) for name, reason in content["excluded"])
        claimed, kind = content["hash"], content["format"]
    except FileNotFoundError:
        msg = f"{folder} holds no job (no {path.name}); begin one with xsoilsm map"
        raise JobError(msg) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path} is damaged ({error!r}); restore it, or begin a new job in another folder"
        raise JobError(msg) from None
    if kind != FORMAT or configuration.hash != claimed:
        msg = (
            f"{path} does not fit its own hash: it was edited, or written by another release of "
            f"xsoilsm (format {kind}, here {FORMAT}); begin a new job in another folder"
        )
        raise JobError(msg)
    return Job(folder, configuration, acquisitions, excluded)


def _lasting_name(model: str, ensemble: Ensemble) -> str:
    """Name that leads to the same ensemble later, also where another one of its family is newer."""
    from xsoilsm.ensemble import get_ensemble

    try:
        if get_ensemble(ensemble.name).digest == ensemble.digest:
            return ensemble.name
    except ValueError:
        pass
    return str(Path(model).resolve())


def _same(job: Job, wanted: Configuration) -> Job:
    """Refuse to continue a job with another configuration."""
    if job.configuration == wanted:
        return job
    known, asked = asdict(job.configuration), asdict(wanted)
    different = [
        f"{name} was {_short(known[name])} and is {_short(asked[name])}"
        for name in asked
        if known[name] != asked[name]
    ]
    msg = (
        f"{job.folder} holds a job of another configuration: {'; '.join(different)}. Jobs are "
        "never mixed: choose another folder, or the configuration of that job"
    )
    raise JobError(msg)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _digest_of(catalog: Catalog) -> str:
    content = catalog.model_dump(mode="json", exclude={"path"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _asof_option(asof: Asof | None) -> dict[str, str]:
    return {} if asof is None else {"asof": moment_of(asof).text}


def _mask_option(mask: Mask) -> dict[str, list[str] | str | None]:
    """Names of flags as a job keeps them; unknown ones are refused at once."""
    if mask is None or mask == "default":
        return {} if mask else {"mask": None}
    names = [mask] if isinstance(mask, str | QualityFlag) else list(mask)
    mask_bits(names)
    return {"mask": [name if isinstance(name, str) else name_of(name) for name in names]}


def _options(
    function: Callable[..., Any], given: Mapping[str, Any] | None, named: Mapping[str, Any]
) -> dict[str, Any]:
    """Check options for a function that is called much later.

    Raises
    ------
    ValueError
        When there is no such option, or one of those with a name of their own is given twice.
    """
    twice = sorted(set(named) & set(given or ()))
    if twice:
        msg = f"{', '.join(twice)} is given twice, also among the options of {function.__name__}"
        raise ValueError(msg)
    given = {**(given or {}), **named}
    known = inspect.signature(function).parameters
    own = {"cube", "model", "res", "device", "region", "time", "catalog", "chunks", "on_error"}
    unknown = sorted(set(given or ()) - (set(known) - own))
    if unknown:
        msg = (
            f"{function.__name__} has no option {', '.join(unknown)} for jobs; expected some of "
            f"{', '.join(sorted(set(known) - own))}"
        )
        raise ValueError(msg)
    try:
        options: dict[str, Any] = json.loads(json.dumps(dict(given or {}), sort_keys=True))
    except TypeError as error:
        msg = f"options of {function.__name__} are numbers, texts, lists and mappings: {error}"
        raise ValueError(msg) from None
    return options


def _begin(folder: Path, configuration: Configuration, catalog: Catalog) -> None:
    """Search the inputs of a new job; ``job.json`` comes last, so that it means: complete."""
    _check_empty(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with hold(folder):
            _search(folder, configuration, catalog)
    except CatalogError:
        if made:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _check_empty(folder: Path) -> None:
    """Refuse a folder with files that are no job's; what an interrupted beginning left is."""
    if not folder.is_dir():
        if folder.exists():
            msg = f"{folder} is a file; expected a folder for the job"
            raise JobError(msg)
        return
    strange = [
        path.name
        for path in folder.iterdir()
        if path.name not in (".lock", "inputs") and not path.name.startswith(".inputs-")
    ]
    if strange:
        msg = (
            f"{folder} holds {', '.join(sorted(strange)[:3])} and no job.json; choose an empty "
            "folder for the job"
        )
        raise JobError(msg)


def _search(folder: Path, configuration: Configuration, catalog: Catalog) -> None:
    for left in (*folder.glob(".inputs-*"), folder / "inputs"):
        shutil.rmtree(left, ignore_errors=True)
    scratch = Path(mkdtemp(prefix=".inputs-", dir=folder))
    scratch.chmod(0o755)
    bounds = lonlat_bounds(configuration.geobox)
    entries = record_inputs(catalog, bounds, *configuration.days, scratch)
    try:
        acquisitions, excluded = find_acquisitions(
            scratch,
            entries,
            configuration.geobox,
            configuration.days,
            configuration.polygon,
            configuration.load.get("asof"),
        )
    except CatalogError:
        # The catalog itself knows of other days, and names the nearest.
        find_radar(catalog, bounds, *configuration.days)
        raise
    content = {
        "format": FORMAT,
        "hash": configuration.hash,
        "configuration": asdict(configuration),
        "acquisitions": [
            {f.name: getattr(a, f.name) for f in fields(Acquisition)} for a in acquisitions
        ],
        "excluded": excluded,
    }
    scratch.rename(folder / "inputs")
    write_whole(folder / "job.json", json.dumps(content, indent=1))
