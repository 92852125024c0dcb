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

from xsoilsm.facts import GROUPS, KINDS, Model, Service, Source

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
        Per group of variables, in order of preference.
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
        unknown = [group for group in self.sources if group not in GROUPS]
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
                if source.service not in self.services:
                    msg = (
                        f"sources.{group}: service '{source.service}' is not defined; the file "
                        f"defines {', '.join(self.services)}"
                    )
                    raise ValueError(msg)
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
    version = content.get("version")
    if version != SCHEMA_VERSION:
        msg = (
            f"{path}: version: found {version!r}, this release reads version {SCHEMA_VERSION}; "
            "update xsoilsm or the file"
        )
        raise CatalogError(msg)
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
    looks_like_path = text.endswith((".yaml", ".yml")) or os.sep in text
    path = Path(text).expanduser() if looks_like_path else catalogs_dir() / f"{text}.yaml"
    if path.is_file():
        return path
    known = ", ".join(list_catalogs())
    what = f"no catalog file {path}" if looks_like_path else f"no catalog is named {text!r}"
    msg = f"{what}; known catalogs: {known}; or give the path of a YAML file"
    raise CatalogError(msg)


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
    return content


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
        if isinstance(href, str):
            # A path beside the file is what a catalog of the user's own would name.
            href = href.replace("{cache}", str(cache_dir()))
            if service.get("kind") == "stac-static" and "://" not in href:
                href = str((path.resolve().parent / Path(href).expanduser()).absolute())
            service["href"] = href
        if prefixes:
            service["rewrite"] = {**(service.get("rewrite") or {}), **prefixes}


def _explain(path: Path, error: ValidationError) -> str:
    """Name the keys at fault, one line each."""
    lines = []
    for fault in error.errors():
        # Pydantic names the member of a union in the place of an error; users know only keys.
        place = [str(part) for part in fault["loc"] if str(part) not in _member_names()]
        where = ".".join(place) or "catalog"
        what = "unknown key" if fault["type"] == "extra_forbidden" else str(fault["msg"])
        lines.append(f"{where}: {what.removeprefix('Value error, ')}")
    return f"{path}: " + "; ".join(lines)


def _member_names() -> set[str]:
    return set().union(*KINDS.values())
