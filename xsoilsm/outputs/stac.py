"""Step 7 of 7 (write): a static STAC catalog of the mosaics of a map.

One item per acquisition or composite, with links to the items it was made of and to the model,
which is an item of its own. Links within the catalog are relative, so that the folder can be
moved or published as it is. Its bytes follow from the mosaics: no clock, no order of calls.

Specification: STAC 1.1.0, with the extensions projection 1.2.0 (``proj:code`` for new readers and
``proj:epsg`` for others), raster 1.1.0, processing 1.1.0, scientific 1.0.0, file 2.1.0, sat 1.0.0,
classification 2.0.0 and, for the model, mlm 1.4.0.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox

from xsoilsm import grid
from xsoilsm.card import EnsembleCard
from xsoilsm.outputs.model import model_item
from xsoilsm.outputs.mosaic import MosaicFile
from xsoilsm.outputs.pieces import Acquisition, Place
from xsoilsm.outputs.wording import about_file, iso_time
from xsoilsm.products import PRODUCTS, safe_name, version_of
from xsoilsm.quality import MEANINGS, QualityFlag
from xsoilsm.wholefile import write_whole

__all__ = ["plain_items", "write_stac"]

VERSION = "1.1.0"
_EXTENSIONS = "https://stac-extensions.github.io/{}/v{}/schema.json"
PROJECTION = _EXTENSIONS.format("projection", "1.2.0")
RASTER = _EXTENSIONS.format("raster", "1.1.0")
PROCESSING = _EXTENSIONS.format("processing", "1.1.0")
SCIENTIFIC = _EXTENSIONS.format("scientific", "1.0.0")
FILE = _EXTENSIONS.format("file", "2.1.0")
SAT = _EXTENSIONS.format("sat", "1.0.0")
CLASSIFICATION = _EXTENSIONS.format("classification", "2.0.0")

_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_ROLES = {
    "soil_moisture": ["data"],
    "soil_moisture_std": ["data", "uncertainty"],
    "quality_flag": ["data-mask", "metadata"],
}


def write_stac(
    mosaics: Iterable[MosaicFile],
    folder: str | os.PathLike[str],
    *,
    card: EnsembleCard | None = None,
    title: str = "Soil moisture from Sentinel-1",
    attributes: Mapping[str, str] | None = None,
) -> Path:
    """Describe mosaics in a static STAC catalog.

    Computes: reads the heads and the bytes of all files, for their checksums.

    Parameters
    ----------
    mosaics : iterable of MosaicFile
        Of one grid and ensemble, in any order, from `xsoilsm.outputs.mosaic.write_mosaics`.
    folder : path
        Gets ``catalog.json`` and a folder with a collection, its items and the model. Usually the
        folder above that of the mosaics. An older catalog in it is replaced.
    card : EnsembleCard, optional
        Card of the ensemble: its members, licence and citation go into the catalog.
    title : str
        Of the collection.
    attributes : mapping of str to str, optional
        Attributes of the result; by default those that the files hold.

    Returns
    -------
    Path
        The file ``catalog.json``, written last.

    Raises
    ------
    OSError
        When a file cannot be read, or the folder cannot be written.
    ValueError
        When there is no mosaic, or two of them are of one variable and acquisition.
    """
    root = Path(os.path.abspath(folder))
    groups = _groups(mosaics)
    first = next(iter(groups.values()))
    about = about_file(next(iter(first.values())).path) | dict(attributes or {})
    resolution = Place.of(next(iter(first.values())).geobox).resolution
    name = safe_name(f"soil-moisture-{resolution}-{about.get('ensemble', '')}".lower(), 100)
    home = root / name
    items = [
        _item(acquisition, files, home, name, about, card) for acquisition, files in groups.items()
    ]
    names = [_file_name(item["id"]) for item in items]
    if len(set(names)) < len(names):
        msg = "two acquisitions have names that make the same file name; rename one of them"
        raise ValueError(msg)
    documents: dict[Path, dict[str, Any]] = {
        home / "items" / file: item for file, item in zip(names, items, strict=True)
    }
    text = _licences(about, card)
    collection = _collection(name, title, items, names, about, card, bool(text))
    documents[home / "collection.json"] = collection
    if card is not None:
        boxes = [item["bbox"] for item in items]
        documents[root / "models" / f"{card.name}.json"] = model_item(
            card, _union(boxes), _interval(items), "../catalog.json"
        )
    documents[root / "catalog.json"] = _catalog(title, name, card)
    if text:
        _write(home / "licences.txt", text)
    if card is not None:
        _write(root / "models" / f"{card.name}.yaml", card.to_yaml())
    for path, document in documents.items():
        _write(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return root / "catalog.json"


def plain_items(
    catalog: str | os.PathLike[str], collection: str | None = None
) -> list[dict[str, Any]]:
    """Read the items of a catalog as they are written, with absolute paths to the files.

    Reads the JSON documents, no raster. For tools that take items as plain dicts: pystac brings
    items to the latest extensions when it reads them, and then drops ``proj:epsg``, without which
    stackstac does not know the place of a file.

    Parameters
    ----------
    catalog : path
        ``catalog.json`` of `write_stac`.
    collection : str, optional
        Only items of this collection; by default those of all of them. The model is none.

    Returns
    -------
    list of dict
        By time.

    Raises
    ------
    OSError
        When a document cannot be read.
    ValueError
        When the catalog has no such collection.
    """
    root = Path(os.path.abspath(catalog))
    items: list[dict[str, Any]] = []
    known: list[str] = []
    for child in _linked(root, "child"):
        known.append(str(json.loads(child.read_text(encoding="utf-8"))["id"]))
        if collection not in (None, known[-1]):
            continue
        for path in _linked(child, "item"):
            item = json.loads(path.read_text(encoding="utf-8"))
            for asset in item["assets"].values():
                asset["href"] = os.path.normpath(path.parent / asset["href"])
            items.append(item)
    if collection is not None and collection not in known:
        msg = f"{root} has no collection {collection!r}; it has {', '.join(known)}"
        raise ValueError(msg)
    return items


def _linked(path: Path, rel: str) -> list[Path]:
    """Documents that a document links to."""
    links = json.loads(path.read_text(encoding="utf-8"))["links"]
    return [path.parent / link["href"] for link in links if link["rel"] == rel]


def _groups(mosaics: Iterable[MosaicFile]) -> dict[Acquisition, dict[str, MosaicFile]]:
    """Files by acquisition (in time) and variable."""
    groups: dict[Acquisition, dict[str, MosaicFile]] = {}
    for mosaic in mosaics:
        group = groups.setdefault(mosaic.acquisition, {})
        if mosaic.variable in group:
            msg = (
                f"{mosaic.path} and {group[mosaic.variable].path} are both {mosaic.variable} of "
                f"{mosaic.acquisition.id}; give one of them"
            )
            raise ValueError(msg)
        group[mosaic.variable] = mosaic
    if not groups:
        msg = "no mosaics were given; expected at least one"
        raise ValueError(msg)
    rank = {product: number for number, product in enumerate(PRODUCTS)}
    return {
        acquisition: dict(
            sorted(groups[acquisition].items(), key=lambda x: (rank.get(x[0], len(rank)), x[0]))
        )
        for acquisition in sorted(groups, key=lambda a: (a.start, a.id))
    }


def _file_name(identifier: str) -> str:
    return f"{safe_name(identifier, 120) or 'item'}.json"


def _zulu(time: np.datetime64) -> str:
    return f"{iso_time(time)}Z"


def _bbox(geobox: GeoBox) -> list[float]:
    """West, south, east, north in degrees; the projection is cylindrical, so corners suffice."""
    left, bottom, right, top = geobox.boundingbox
    lon, lat = grid.xy_to_lonlat([left, right], [bottom, top])
    return [round(float(v), 7) for v in (lon[0], lat[0], lon[1], lat[1])]


def _item(
    acquisition: Acquisition,
    files: Mapping[str, MosaicFile],
    home: Path,
    collection: str,
    about: Mapping[str, str],
    card: EnsembleCard | None,
) -> dict[str, Any]:
    geobox = next(iter(files.values())).geobox
    west, south, east, north = bbox = _bbox(geobox)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    extensions = [PROJECTION, RASTER, PROCESSING, FILE]
    properties = _properties(acquisition, geobox, about)
    if any(name.startswith("sat:") for name in properties):
        extensions.append(SAT)
    links = [
        {"rel": "root", "href": "../../catalog.json", "type": "application/json"},
        {"rel": "parent", "href": "../collection.json", "type": "application/json"},
        {"rel": "collection", "href": "../collection.json", "type": "application/json"},
    ]
    links += [
        {"rel": "derived_from", "href": i.href, "type": "application/geo+json", "title": i.id}
        for i in sorted(acquisition.items)
        if i.href
    ]
    if card is not None:
        link = {"rel": "derived_from", "href": f"../../models/{card.name}.json"}
        links.append(link | {"type": "application/geo+json", "mlm:name": card.name})
    return {
        "type": "Feature",
        "stac_version": VERSION,
        "stac_extensions": extensions,
        "id": acquisition.id,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": bbox,
        "properties": properties,
        "links": links,
        "assets": {name: _asset(file, home / "items", geobox) for name, file in files.items()},
        "collection": collection,
    }


def _properties(
    acquisition: Acquisition, geobox: GeoBox, about: Mapping[str, str]
) -> dict[str, Any]:
    """Time, orbit, place and processing of an item."""
    properties: dict[str, Any] = {"datetime": _zulu(acquisition.start)}
    if acquisition.end is not None:
        last = acquisition.end - np.timedelta64(1, "s")
        properties |= {"start_datetime": _zulu(acquisition.start), "end_datetime": _zulu(last)}
    if acquisition.platform:
        properties["platform"] = acquisition.platform.lower()
    properties |= {"constellation": "sentinel-1", "instruments": ["c-sar"]}
    if acquisition.orbit_state.lower() in ("ascending", "descending"):
        properties["sat:orbit_state"] = acquisition.orbit_state.lower()
    if acquisition.relative_orbit:
        properties["sat:relative_orbit"] = acquisition.relative_orbit
    place = Place.of(geobox)
    properties["gsd"] = round(grid.get_grid(place.resolution).cell, 3)
    properties |= _projection(geobox)
    version = version_of(about)
    properties["processing:level"] = "L2" if acquisition.end is None else "L3"
    if version:
        properties["processing:software"] = {"xsoilsm": version}
    properties["processing:lineage"] = (
        f"Soil moisture on EASE-Grid 2.0 cells of {place.resolution}, retrieved with the ensemble "
        f"{about.get('ensemble', 'unknown')} (digest {about.get('ensemble_digest', 'unknown')})"
    )
    inputs = sorted({item.id for item in acquisition.items})
    if inputs:
        properties["xsoilsm:input_items"] = inputs
    if acquisition.period:
        properties["xsoilsm:period"] = acquisition.period
    return properties


def _projection(geobox: GeoBox) -> dict[str, Any]:
    left, bottom, right, top = geobox.boundingbox
    return {
        "proj:code": grid.CRS,
        "proj:epsg": int(grid.CRS.partition(":")[2]),
        "proj:shape": [int(n) for n in geobox.shape],
        "proj:transform": [float(v) for v in tuple(geobox.affine)[:6]],
        "proj:bbox": [float(left), float(bottom), float(right), float(top)],
    }


def _asset(mosaic: MosaicFile, folder: Path, of_item: GeoBox) -> dict[str, Any]:
    with open(mosaic.path, "rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    with rasterio.open(mosaic.path) as raster:
        band: dict[str, Any] = {"data_type": raster.dtypes[0]}
        if raster.nodata is not None:
            number = float(raster.nodata)
            band["nodata"] = "nan" if isnan(number) else int(number)
        if raster.units[0]:
            band["unit"] = raster.units[0]
        if (raster.scales[0], raster.offsets[0]) != (1.0, 0.0):
            band |= {"scale": raster.scales[0], "offset": raster.offsets[0]}
        band |= {"sampling": "area", "spatial_resolution": round(raster.transform.a, 3)}
        title = raster.tags(1).get("long_name", mosaic.variable)
    asset = {
        "href": Path(os.path.relpath(os.path.abspath(mosaic.path), folder)).as_posix(),
        "type": _COG,
        "title": title,
        "roles": _ROLES.get(mosaic.variable, ["data"]),
        "raster:bands": [band],
        "file:size": mosaic.path.stat().st_size,
        "file:checksum": f"1220{checksum}",
    }
    return asset if mosaic.geobox == of_item else asset | _projection(mosaic.geobox)


def _bitfields() -> list[dict[str, Any]]:
    """Bits of the quality flag in words of the classification extension."""
    return [
        {
            "name": str(flag.name).lower(),
            "description": MEANINGS[flag],
            "offset": int(flag).bit_length() - 1,
            "length": 1,
            "classes": [
                {"value": 0, "name": "no", "description": "not set"},
                {"value": 1, "name": "yes", "description": MEANINGS[flag]},
            ],
        }
        for flag in QualityFlag
    ]


def _collection(
    name: str,
    title: str,
    items: Sequence[Mapping[str, Any]],
    files: Sequence[str],
    about: Mapping[str, str],
    card: EnsembleCard | None,
    has_licences: bool,
) -> dict[str, Any]:
    extensions = [PROJECTION, RASTER]
    publications = []
    if card is not None:
        doi = {"doi": card.citation.doi} if card.citation.doi else {}
        publications.append({"citation": card.citation.text} | doi)
    elif about.get("references"):
        publications.append({"citation": about["references"]})
    if about.get("citation"):
        publications.append({"citation": f"Inputs: {about['citation']}"})
    scientific: dict[str, Any] = {"sci:publications": publications} if publications else {}
    extensions += [SCIENTIFIC] if publications else []
    assets: dict[str, Any] = {}
    for item in items:
        for key, asset in item["assets"].items():
            assets.setdefault(
                key, {k: asset[k] for k in ("type", "title", "roles", "raster:bands")}
            )
    if "quality_flag" in assets:
        extensions.append(CLASSIFICATION)
        assets["quality_flag"]["classification:bitfields"] = _bitfields()
    summaries = _summaries(items)
    if any(key.startswith("sat:") for key in summaries):
        extensions.append(SAT)
    links = [
        {"rel": "root", "href": "../catalog.json", "type": "application/json"},
        {"rel": "parent", "href": "../catalog.json", "type": "application/json"},
    ]
    if has_licences:
        links.append({"rel": "license", "href": "./licences.txt", "type": "text/plain"})
    if card is not None:
        link = {"rel": "derived_from", "href": f"../models/{card.name}.json"}
        links.append(link | {"type": "application/geo+json", "mlm:name": card.name})
    links += [
        {"rel": "item", "href": f"./items/{file}", "type": "application/geo+json"} for file in files
    ]
    return {
        "type": "Collection",
        "stac_version": VERSION,
        "stac_extensions": extensions,
        "id": name,
        "title": title,
        "description": (
            "Volumetric soil moisture of the top 5 cm, its spread over the networks, which is not "
            "an error, and quality flags. Licences of the inputs and of the networks apply."
        ),
        "license": "other",
        **scientific,
        "extent": {
            "spatial": {"bbox": [_union([item["bbox"] for item in items])]},
            "temporal": {"interval": [list(_interval(items))]},
        },
        "summaries": summaries,
        "item_assets": assets,
        "links": links,
    }


def _summaries(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = (
        "platform",
        "constellation",
        "gsd",
        "proj:code",
        "sat:orbit_state",
        "sat:relative_orbit",
    )
    found = {
        name: sorted({i["properties"][name] for i in items if name in i["properties"]})
        for name in names
    }
    return {name: values for name, values in found.items() if values}


def _union(boxes: Sequence[Sequence[float]]) -> list[float]:
    sides = list(zip(*boxes, strict=True))
    return [min(sides[0]), min(sides[1]), max(sides[2]), max(sides[3])]


def _interval(items: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """First and last instant of all items."""
    properties = [item["properties"] for item in items]
    ends = [p.get("end_datetime", p["datetime"]) for p in properties]
    return min(p["datetime"] for p in properties), max(ends)


def _catalog(title: str, collection: str, card: EnsembleCard | None) -> dict[str, Any]:
    links = [
        {"rel": "root", "href": "./catalog.json", "type": "application/json"},
        {"rel": "child", "href": f"./{collection}/collection.json", "type": "application/json"},
    ]
    if card is not None:
        href = f"./models/{card.name}.json"
        links.append({"rel": "item", "href": href, "type": "application/geo+json"})
    return {
        "type": "Catalog",
        "stac_version": VERSION,
        "id": f"{collection}-catalog",
        "title": title,
        "description": "Maps of soil moisture, and the model that made them.",
        "links": links,
    }


def _licences(about: Mapping[str, str], card: EnsembleCard | None) -> str:
    """Licences of inputs and networks, one paragraph each; empty where none is known."""
    parts = []
    if about.get("licence"):
        parts.append("Inputs: " + about["licence"])
    if card is not None:
        spdx = f"{card.licence.spdx}. " if card.licence.spdx else ""
        parts.append(f"Networks ({card.name}): {spdx}{card.licence.statement}")
    return "\n\n".join(parts) + "\n" if parts else ""


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
