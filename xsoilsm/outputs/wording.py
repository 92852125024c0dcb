"""Step 7 of 7 (write): what outputs say of themselves: names, tags and CF attributes.

All of it follows from the acquisitions and from what the files of the tiles say, never from a
clock, so that the same tiles give the same bytes.

Conventions: CF-1.11; ACDD-1.3 for ``license`` and ``history``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from xsoilsm.outputs.pieces import Acquisition, Header
from xsoilsm.products import Naming, version_of
from xsoilsm.quality import flag_attributes

__all__ = [
    "about_file",
    "about_tiles",
    "global_attributes",
    "iso_time",
    "naming",
    "strings",
    "tags",
    "variable_attributes",
]

_OF_VARIABLES = {
    "ancillary_variables",
    "cell_methods",
    "comment",
    "flags_evaluated_from",
    "flags_not_evaluated",
    "flag_masks",
    "flag_meanings",
    "flag_values",
    "long_name",
    "standard_name",
    "units",
}
_OF_ONE_FILE = {
    "acquisition",
    "grid_mapping",
    "orbit_state",
    "platform",
    "quantization_comment",
    "relative_orbit",
    "spatial_ref",
    "tile",
    "period",
    "time",
    "time_end_utc",
    "time_utc",
}
_OF_GDAL = re.compile(r"^(AREA_OR_POINT|TIFFTAG_|OVR_|STATISTICS_|[A-Z0-9]+_(CRC32|SHA256)$)")

_DEFAULTS: dict[str, dict[str, Any]] = {
    "soil_moisture": {
        "units": "m3 m-3",
        "standard_name": "volume_fraction_of_condensed_water_in_soil",
        "long_name": "volumetric soil moisture of the top 5 cm",
        "ancillary_variables": "soil_moisture_std quality_flag",
    },
    "soil_moisture_std": {
        "units": "m3 m-3",
        "long_name": "spread (population standard deviation) of the members",
        "comment": "the spread of the networks is not an error estimate",
    },
    "quality_flag": flag_attributes(),
}


def about_tiles(headers: Iterable[Header | None]) -> tuple[dict[str, str], dict[str, str]]:
    """Find what all files of tiles say in common: of the result, and of the variable.

    Parameters
    ----------
    headers : iterable of Header or None
        In any order.

    Returns
    -------
    result, variable : dict of str to str
        ``input_items`` of the result names the items of all tiles.
    """
    known = [header for header in headers if header is not None]
    items = sorted({i for h in known for i in dict(h.tags).get("input_items", "").split()})
    shared = set.intersection(*(set(h.tags + h.band_tags) for h in known)) if known else set()
    common = dict(sorted(shared, reverse=True))
    result = {
        name: text
        for name, text in sorted(common.items())
        if name not in _OF_VARIABLES | _OF_ONE_FILE and not _OF_GDAL.match(name)
    }
    if items:
        result["input_items"] = " ".join(items)
    return result, {name: text for name, text in common.items() if name in _OF_VARIABLES}


def about_file(path: Path) -> dict[str, str]:
    """Read what a mosaic's file says of the result, nothing of its variable or acquisition."""
    with rasterio.open(path) as file:
        said = file.tags()
    return {
        name: text
        for name, text in sorted(said.items())
        if name not in _OF_VARIABLES | _OF_ONE_FILE and not _OF_GDAL.match(name)
    }


def variable_attributes(variable: str, told: Mapping[str, str]) -> dict[str, Any]:
    """CF attributes of a variable.

    Parameters
    ----------
    variable : str
    told : mapping of str to str
        What the tiles say of it.

    Returns
    -------
    dict
        Numbers of flags as uint32.
    """
    attributes: dict[str, Any] = {**_DEFAULTS.get(variable, {}), **told}
    for name in ("flag_masks", "flag_values"):
        if isinstance(attributes.get(name), str):
            attributes[name] = np.array(attributes[name].split(), dtype=np.int64)
    if variable == "quality_flag":
        attributes |= {k: v for k, v in flag_attributes().items() if k.startswith("flag_")}
    return attributes


def strings(attributes: Mapping[Any, Any]) -> dict[str, str]:
    """Those attributes of a result that are text."""
    return {str(name): text for name, text in attributes.items() if isinstance(text, str)}


def iso_time(time: np.datetime64) -> str:
    """Time in ISO form, whole seconds, without a zone."""
    return str(np.datetime_as_string(np.asarray(time, "datetime64[s]")[()]))


def naming(
    acquisition: Acquisition, product: str, resolution: str, about: Mapping[str, str]
) -> Naming:
    """Parts of the name of a file of one acquisition; of all of a map's without a product."""
    orbit = acquisition.relative_orbit
    return Naming(
        product=product,
        resolution=resolution,
        time=iso_time(acquisition.start),
        period=acquisition.period,
        platform=acquisition.platform,
        orbit_state=acquisition.orbit_state,
        relative_orbit="" if orbit is None else str(orbit),
        model=about.get("ensemble", ""),
        version=version_of(about),
    )


def tags(acquisition: Acquisition, about: Mapping[str, str]) -> dict[str, str]:
    """Tags of a file of one acquisition: what the result says, and time, orbit and inputs."""
    orbit = acquisition.relative_orbit
    own = {
        "acquisition": acquisition.id,
        "time_utc": iso_time(acquisition.start),
        "time_end_utc": "" if acquisition.end is None else iso_time(acquisition.end),
        "period": acquisition.period,
        "platform": acquisition.platform,
        "orbit_state": acquisition.orbit_state,
        "relative_orbit": "" if orbit is None else str(orbit),
        "input_items": " ".join(dict.fromkeys(item.id for item in acquisition.items))
        or about.get("input_items", ""),
    }
    return dict(about) | {name: text for name, text in own.items() if text}


def global_attributes(about: Mapping[str, str]) -> dict[str, str]:
    """CF attributes of a file of several acquisitions.

    Parameters
    ----------
    about : mapping of str to str
        What the tiles say in common, or what the user gives.

    Returns
    -------
    dict of str to str
        With ``title``, ``source``, ``history``, ``references`` and ``comment``; ``license`` where
        the licences of the inputs are known. ``history`` names no time of writing.
    """
    version = version_of(about)
    said = {
        name: text
        for name, text in about.items()
        if text and name not in ("input_items", "licence")
    }
    if about.get("licence"):
        said["license"] = about["licence"]
    own = {
        "title": "Soil moisture from Sentinel-1",
        "source": "xsoilsm",
        "history": f"mosaic of the tiles of a map by xsoilsm {version}".strip(),
        "comment": (
            "soil_moisture_std is the spread of the networks and not an error; read quality_flag "
            "with every value"
        ),
    }
    return own | said | {"Conventions": "CF-1.11"}
