"""Step 2 of 7 (find): catalogs say where each input comes from, in which units.

A catalog is a YAML file of facts about the outside world: services, collections, assets,
units, licences, and where each fact was learnt. It is read into frozen models and checked
strictly; nothing here opens a connection. The groups of inputs (radar, ndvi, weather, terrain,
soil) each name an ordered list of sources; for every date the first source whose range of
dates holds it is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any

import platformdirs
from pydantic import Field, ValidationError, model_validator

from xsoilsm.facts import GROUPS, KINDS, OPTIONAL_GROUPS, Era5Source, Model, Service, Source

__all__ = [
    "SCHEMA_VERSION",
    "Catalog",
    "CatalogError",
    "Segment",
    "cache_dir",
    "catalogs_dir",
    "list_catalogs",
    "open_catalog",
]

SCHEMA_VERSION = 1
"""Version of the catalog files that this module reads."""

_ENDPOINT_VARIABLE = "XSOILSM_ENDPOINT_"


class CatalogError(ValueError):
    """A catalog or a card is missing, or holds something unexpected."""


def catalogs_dir() -> Path:
    """Find the folder of the catalogs and cards that come with the package.

    Returns
    -------
    Path
        ``xsoilsm/_catalogs`` in an installed package, ``catalogs`` beside the package in a
        checkout.

    Raises
    ------
    CatalogError
        When neither folder exists.
    """
    package = Path(__file__).resolve().parent
    places = (package / "_catalogs", package.parent / "catalogs")
    for place in places:
        if place.is_dir():
            return place
    msg = f"no folder of catalogs found, looked for {places[0]} and {places[1]}; reinstall xsoilsm"
    raise CatalogError(msg)


def cache_dir() -> Path:
    """Return the folder for downloaded weights, landscapes and cached layers.

    Returns
    -------
    Path
        ``$XSOILSM_CACHE_DIR`` where it is set, else the platform's cache folder. It is not
        created.
    """
    place = os.environ.get("XSOILSM_CACHE_DIR")
    if place:
        return Path(place).expanduser()
    return platformdirs.user_cache_path("xsoilsm")


class Segment(Model):
    """A stretch of days and the source that serves it.

    Parameters
    ----------
    source : Source
    start, end : date
        First and last day, UTC.
    """

    source: Source
    start: date
    end: date


class Catalog(Model):
    """A checked catalog.

    Parameters
    ----------
    version : int
        Version of the schema.
    name, title : str
    services : dict of str to Service
    sources : dict of str to tuple of Source
        Per group of variables, in order of preference. In a file, ``catalog: NAME`` stands for
        the sources of another catalog, from ``start`` to ``end`` where these are given.
    path : str
        File that it was read from.
    """

    version: int
    name: str
    title: str
    services: dict[str, Service]
    sources: dict[str, tuple[Annotated[Source, Field(discriminator="kind")], ...]]
    path: str = ""

    @model_validator(mode="after")
    def _is_whole(self) -> Catalog:
        missing = [group for group in GROUPS if not self.sources.get(group)]
        unknown = [group for group in self.sources if group not in (*GROUPS, *OPTIONAL_GROUPS)]
        if missing or unknown:
            msg = f"sources: expected the groups {', '.join(GROUPS)}, " + "; ".join(
                f"{what}: {', '.join(names)}"
                for what, names in (("missing", missing), ("unknown", unknown))
                if names
            )
            raise ValueError(msg)
        for group, sources in self.sources.items():
            for source in sources:
                if source.kind not in KINDS[group]:
                    msg = (
                        f"sources.{group}: kind '{source.kind}' does not give {group}; expected "
                        f"{', '.join(sorted(KINDS[group]))}"
                    )
                    raise ValueError(msg)
                for service in (source.service, getattr(source, "grd_service", "")):
                    if service and service not in self.services:
                        msg = (
                            f"sources.{group}: service '{service}' is not defined; the file "
                            f"defines {', '.join(self.services)}"
                        )
                        raise ValueError(msg)
                _check_stores(group, source, self.services[source.service])
        return self

    def service_of(self, source: Source) -> Service:
        """Service at which the items of a source are searched. Lazy: reads nothing."""
        return self.services[source.service]

    def segments(self, group: str, start: date, end: date) -> tuple[Segment, ...]:
        """Divide a range of days among the sources of a group.

        Lazy: reads nothing.

        Parameters
        ----------
        group : str
            One of :data:`GROUPS`.
        start, end : date
            First and last day, UTC.

        Returns
        -------
        tuple of Segment
            In order of time. Each day belongs to the first source in the list that covers it;
            days that no source covers are left out.
        """
        sources = self.sources[group]
        edges = {start}
        for source in sources:
            edges |= {d for d in (source.start,) if d is not None and start < d <= end}
            edges |= {
                source.end + timedelta(1)
                for _ in (0,)
                if source.end is not None and start < source.end + timedelta(1) <= end
            }
        begins = sorted(edges)
        found: list[Segment] = []
        for first, following in zip(begins, [*begins[1:], end + timedelta(1)], strict=True):
            chosen = next((s for s in sources if s.covers(first)), None)
            if chosen is None:
                continue
            if found and found[-1].source is chosen and found[-1].end + timedelta(1) == first:
                first = found.pop().start
            found.append(Segment(source=chosen, start=first, end=following - timedelta(1)))
        return tuple(found)

    def describe(self, group: str) -> str:
        """Tell the sources of a group with their dates, in words. Lazy: reads nothing."""
        return "; ".join(f"'{s.collection}' ({s.span})" for s in self.sources[group])


def _check_stores(group: str, source: Source, service: Service) -> None:
    """Only weather can come without items, and assets are named exactly where items are."""
    variables = (
        (source.air_temperature, source.precipitation) if isinstance(source, Era5Source) else ()
    )
    if service.kind == "zarr" and not variables:
        msg = f"sources.{group}: kind '{source.kind}' needs a STAC service, not Zarr stores"
        raise ValueError(msg)
    for variable in variables:
        if (service.kind == "zarr") == bool(variable.asset):
            msg = f"sources.{group}: weather from a service of kind '{service.kind}' names " + (
                "variables and no assets" if service.kind == "zarr" else "the assets of items"
            )
            raise ValueError(msg)


def list_catalogs() -> list[str]:
    """List the catalogs that come with the package.

    Returns
    -------
    list of str
        Names for :func:`open_catalog`.
    """
    return sorted(path.stem for path in catalogs_dir().glob("*.yaml"))


def open_catalog(
    name_or_path: str | os.PathLike[str], *, endpoints: Mapping[str, str] | None = None
) -> Catalog:
    """Read and check a catalog.

    Lazy: reads the catalog's file alone, no service is asked.

    Parameters
    ----------
    name_or_path : str or path
        Name of a catalog that comes with the package, for instance ``"planetary-computer"``,
        or the path of a YAML file.
    endpoints : mapping of str to str, optional
        Other addresses for services, by the service's name. A key with ``://`` is the beginning
        of asset links instead, and its value replaces it. The environment variable
        ``XSOILSM_ENDPOINT_<SERVICE>`` (upper case, ``_`` for ``-``) does the same for services.

    Returns
    -------
    Catalog

    Raises
    ------
    CatalogError
        When no such catalog exists, the file is not YAML, has an unknown key or another
        version, or a static catalog on this machine is absent. The message names file and key.

    Examples
    --------
    >>> open_catalog("planetary-computer").sources["radar"][0].collection
    'sentinel-1-rtc'
    """
    path = _find(name_or_path)
    content = _read(path)
    _borrow(content, path)
    _place_endpoints(content, dict(endpoints or {}), path)
    try:
        catalog = Catalog.model_validate(content | {"path": str(path)})
    except ValidationError as error:
        raise CatalogError(_explain(path, error)) from None
    for key, service in catalog.services.items():
        if service.kind == "stac-static" and service.is_local and not Path(service.href).exists():
            hint = service.missing or "correct the address"
            msg = f"{path}: services.{key}.href: {service.href} does not exist; {hint}"
            raise CatalogError(msg)
    return catalog


def _find(name_or_path: str | os.PathLike[str]) -> Path:
    text = os.fspath(name_or_path)
    looks_like_path = _looks_like_path(text)
    path = Path(text).expanduser() if looks_like_path else catalogs_dir() / f"{text}.yaml"
    if path.is_file():
        return path
    known = ", ".join(list_catalogs())
    what = f"no catalog file {path}" if looks_like_path else f"no catalog is named {text!r}"
    msg = f"{what}; known catalogs: {known}; or give the path of a YAML file"
    raise CatalogError(msg)


def _looks_like_path(text: str) -> bool:
    return text.endswith((".yaml", ".yml")) or os.sep in text


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        msg = f"{path}: cannot be read as YAML: {error}"
        raise CatalogError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path}: holds {type(content).__name__}, expected keys and values"
        raise CatalogError(msg)
    version = content.get("version")
    if version != SCHEMA_VERSION:
        msg = (
            f"{path}: version: found {version!r}, this release reads version {SCHEMA_VERSION}; "
            "update xsoilsm or the file"
        )
        raise CatalogError(msg)
    return content


class _Reference(Model):
    """Stands in a list of sources for those of the same group of another catalog."""

    catalog: str
    start: date | None = None
    end: date | None = None


def _borrow(content: dict[str, Any], path: Path) -> None:
    """Put the sources of other catalogs in the place of references to them, in place."""
    services, groups = content.get("services"), content.get("sources")
    if not isinstance(services, dict) or not isinstance(groups, dict):
        return  # the models say what is wrong
    for group in groups:
        found = _sources_of(group, content, path, ())
        if found is not None:
            groups[group] = [_adopt(source, brought, services, path) for source, brought in found]


_Borrowed = tuple[Any, tuple[str, dict[str, Any]] | None]
"""A source, and of a borrowed one its catalog and the services that it names, with content."""


def _service_keys(source: Mapping[str, Any]) -> list[str]:
    """Keys of a source that name a service."""
    return [key for key in source if key == "service" or key.endswith("_service")]


def _sources_of(
    group: str, content: dict[str, Any], path: Path, trail: tuple[Path, ...]
) -> list[_Borrowed] | None:
    """List the sources of a group with references followed; None where there is no list."""
    entries = content["sources"].get(group)
    if isinstance(entries, dict) and "catalog" in entries:
        entries = [entries]
    if not isinstance(entries, list):
        return None
    found: list[_Borrowed] = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or "catalog" not in entry:
            found.append((entry, None))
            continue
        try:
            reference = _Reference.model_validate(entry)
        except ValidationError as error:
            raise CatalogError(_explain(path, error, f"sources.{group}.{number}")) from None
        found += _referred(reference, group, path, (*trail, path.resolve()))
    return found


def _referred(
    reference: _Reference, group: str, path: Path, trail: tuple[Path, ...]
) -> list[_Borrowed]:
    other = _find(_beside(reference.catalog, path))
    if other.resolve() in trail:
        msg = f"{path}: sources.{group}: the catalogs refer to each other in a circle by {other}"
        raise CatalogError(msg)
    content = _read(other)
    services = content.get("services")
    sources = content.get("sources")
    if not isinstance(services, dict) or not isinstance(sources, dict) or group not in sources:
        msg = f"{path}: sources.{group}: the catalog {other} has no sources of {group} to take"
        raise CatalogError(msg)
    found: list[_Borrowed] = []
    for source, brought in _sources_of(group, content, other, trail) or []:
        if not isinstance(source, dict):
            found.append((source, brought))
            continue
        days = {"start": source.get("start"), "end": source.get("end")}
        for key, limit, narrower in (("start", reference.start, max), ("end", reference.end, min)):
            if limit is not None:
                given = days[key]
                days[key] = narrower(given, limit) if isinstance(given, date) else limit
        if days["start"] and days["end"] and days["start"] > days["end"]:
            continue
        if brought is None:
            brought = str(content.get("name")), _named_services(source, content, other)
        source = {k: v for k, v in (source | days).items() if k not in days or v is not None}
        found.append((source, brought))
    return found


def _named_services(source: dict[str, Any], content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Services that a source names: those of its file, else of the catalogs that it refers to."""
    found: dict[str, Any] = {}
    for name in (source[key] for key in _service_keys(source)):
        if not isinstance(name, str):
            continue  # the models say what is wrong
        if name in content["services"]:
            found[name] = _placed(content["services"][name], path)
            continue
        for entry in content["sources"].values():
            for reference in entry if isinstance(entry, list) else [entry]:
                if isinstance(reference, dict) and isinstance(reference.get("catalog"), str):
                    other = _find(_beside(reference["catalog"], path))
                    theirs = _read(other).get("services")
                    if isinstance(theirs, dict) and name in theirs:
                        found.setdefault(name, _placed(theirs[name], other))
    return found


def _beside(name: str, path: Path) -> str:
    """Name of a catalog, or its path counted from the file that refers to it."""
    return str(path.resolve().parent / Path(name).expanduser()) if _looks_like_path(name) else name


def _adopt(
    source: Any,
    brought: tuple[str, dict[str, Any]] | None,
    services: dict[str, Any],
    path: Path,
) -> Any:
    """Bring the services of a borrowed source along; under a longer name where one is taken."""
    if brought is None:
        return source
    catalog, own = brought
    names = {}
    for name, content in own.items():
        taken = name in services and _placed(services[name], path) != content
        names[name] = f"{catalog}/{name}" if taken else name
        services[names[name]] = content
    return source | {
        key: names[source[key]] for key in _service_keys(source) if source[key] in tuple(names)
    }


def _placed(service: Any, path: Path) -> Any:
    """Service whose address on this machine no longer depends on the place of its file."""
    if not isinstance(service, dict) or not isinstance(service.get("href"), str):
        return service
    # A path beside the file is what a catalog of the user's own would name.
    href = service["href"].replace("{cache}", str(cache_dir()))
    if service.get("kind") in ("stac-static", "zarr") and "://" not in href:
        href = str((path.resolve().parent / Path(href).expanduser()).absolute())
    return service | {"href": href}


def _place_endpoints(content: dict[str, Any], endpoints: dict[str, str], path: Path) -> None:
    """Put the cache folder and other endpoints into the services, in place."""
    services = content.get("services")
    if not isinstance(services, dict):
        return  # the models say what is wrong
    prefixes = {key: value for key, value in endpoints.items() if "://" in key}
    unknown = [key for key in endpoints if key not in prefixes and key not in services]
    if unknown:
        msg = (
            f"{path}: endpoints name the service {', '.join(map(repr, unknown))}; the catalog has "
            f"{', '.join(map(str, services))}"
        )
        raise CatalogError(msg)
    for name, service in services.items():
        if not isinstance(service, dict):
            continue
        variable = _ENDPOINT_VARIABLE + re.sub(r"\W", "_", str(name)).upper()
        href = endpoints.get(name) or os.environ.get(variable) or service.get("href")
        services[name] = service = _placed(service | {"href": href}, path)
        if prefixes:
            service["rewrite"] = {**(service.get("rewrite") or {}), **prefixes}


def _explain(path: Path, error: ValidationError, within: str = "") -> str:
    """Name the keys at fault, one line each."""
    lines = []
    for fault in error.errors():
        # Pydantic names the member of a union in the place of an error; users know only keys.
        place = [str(part) for part in fault["loc"] if str(part) not in _member_names()]
        where = ".".join([within, *place] if within else place) or "catalog"
        what = "unknown key" if fault["type"] == "extra_forbidden" else str(fault["msg"])
        lines.append(f"{where}: {what.removeprefix('Value error, ')}")
    return f"{path}: " + "; ".join(lines)


def _member_names() -> set[str]:
    return set().union(*KINDS.values())
