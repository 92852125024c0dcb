"""What the extensions of STAC ask of the fields that the catalogs of results use.

Written after the texts of the extensions, because their schemas lie on the web, which tests do
not reach. As there, a field with the prefix of an extension that the extension does not know is
an error. The core of STAC is checked with the schemas that pystac brings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft7Validator

BASE = "https://stac-extensions.github.io/"
TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
DTYPE = {"enum": ["int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "float64"]}
SHAPE = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": -1}}
ORDER = {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "^[a-z_-]+$"}}
ARRAY = {
    "type": "object",
    "required": ["shape", "dim_order", "data_type"],
    "properties": {"shape": SHAPE, "dim_order": ORDER, "data_type": DTYPE},
}
TASKS = {"type": "array", "uniqueItems": True, "items": {"enum": ["regression"]}}
DOI = {"type": "string", "pattern": r"^10\.[0-9a-zA-Z]{4,}/[^\s]+$"}


def _list(items: dict[str, Any], length: int | None = None) -> dict[str, Any]:
    size = {"minItems": 1} if length is None else {"minItems": length, "maxItems": length}
    return {"type": "array", "items": items} | size


def _closed(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required or [],
        "properties": properties,
        "additionalProperties": False,
    }


FIELDS: dict[str, dict[str, Any]] = {
    f"{BASE}projection/v1.2.0/schema.json": {
        "proj:code": {"type": "string", "pattern": "^[A-Z]+:[0-9]+$"},
        "proj:epsg": {"type": "integer"},
        "proj:shape": _list({"type": "integer"}, 2),
        "proj:transform": _list({"type": "number"}, 6),
        "proj:bbox": _list({"type": "number"}, 4),
    },
    f"{BASE}raster/v1.1.0/schema.json": {
        "raster:bands": _list(
            _closed(
                data_type=DTYPE,
                nodata={"oneOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}]},
                unit={"type": "string"},
                scale={"type": "number"},
                offset={"type": "number"},
                sampling={"enum": ["area", "point"]},
                spatial_resolution={"type": "number"},
            )
        )
    },
    f"{BASE}processing/v1.1.0/schema.json": {
        "processing:level": {"type": "string", "pattern": "^(RAW|L[0-4][A-C]?)$"},
        "processing:lineage": TEXT,
        "processing:software": {"type": "object", "additionalProperties": TEXT},
    },
    f"{BASE}scientific/v1.0.0/schema.json": {
        "sci:publications": _list(_closed(["citation"], citation=TEXT, doi=DOI)),
    },
    f"{BASE}file/v2.1.0/schema.json": {
        "file:size": COUNT,
        "file:checksum": {"type": "string", "pattern": "^1220[0-9a-f]{64}$"},
    },
    f"{BASE}sat/v1.0.0/schema.json": {
        "sat:orbit_state": {"enum": ["ascending", "descending", "geostationary"]},
        "sat:relative_orbit": {"type": "integer", "minimum": 1},
    },
    f"{BASE}classification/v2.0.0/schema.json": {
        "classification:bitfields": _list(
            _closed(
                ["offset", "length", "classes"],
                name={"type": "string", "pattern": "^[0-9A-Za-z-_]+$"},
                description=TEXT,
                offset=COUNT,
                length={"type": "integer", "minimum": 1},
                classes=_list(
                    _closed(
                        ["value"],
                        value={"type": "integer"},
                        name={"type": "string", "pattern": "^[0-9A-Za-z-_]+$"},
                        description=TEXT,
                    )
                ),
            )
        )
    },
    f"{BASE}mlm/v1.4.0/schema.json": {
        "mlm:name": {"type": "string", "pattern": r"^[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]$"},
        "mlm:architecture": TEXT,
        "mlm:tasks": TASKS,
        "mlm:framework": TEXT,
        "mlm:pretrained": {"type": "boolean"},
        "mlm:pretrained_source": {"type": ["string", "null"]},
        "mlm:accelerator": {"type": ["string", "null"]},
        "mlm:artifact_type": TEXT,
        "mlm:hyperparameters": {
            "type": "object",
            "minProperties": 1,
            "patternProperties": {"^[0-9a-zA-Z_.-]+$": {}},
            "additionalProperties": False,
        },
        "mlm:input": _list(
            _closed(
                ["name", "bands", "input"],
                name=TEXT,
                description=TEXT,
                bands={"type": "array", "maxItems": 0},
                input=ARRAY,
            )
        ),
        "mlm:output": _list(
            _closed(
                ["name", "tasks", "result"],
                name=TEXT,
                description=TEXT,
                tasks=TASKS,
                result=ARRAY,
            )
        ),
    },
}
"""By extension: its fields and what they may hold."""

FREE_PREFIXES = {"xsoilsm"}
"""Prefix of our own, which no extension has taken."""

ITEM_NEEDS = {
    "mlm": ["mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"],
}
"""Fields that an item must have where it declares an extension, by prefix."""


def broken_rules(document: dict[str, Any]) -> list[str]:
    """Everything in an item or collection that an extension does not allow."""
    declared = document.get("stac_extensions", [])
    faults = [f"unknown extension {uri}" for uri in declared if uri not in FIELDS]
    rules: dict[str, Any] = {}
    for uri in declared:
        rules |= FIELDS.get(uri, {})
    used: set[str] = set()
    for place, fields in _places(document):
        for name, value in fields.items():
            prefix = name.partition(":")[0]
            if ":" not in name or prefix in FREE_PREFIXES:
                continue
            used.add(prefix)
            if name not in rules:
                faults.append(f"{place}: {name} is in no declared extension")
            elif place != "summaries":
                errors = Draft7Validator(rules[name]).iter_errors(value)
                faults += [f"{place}: {name}: {error.message}" for error in errors]
    for uri in declared:
        prefixes = {name.partition(":")[0] for name in FIELDS.get(uri, {})}
        if not prefixes & used:
            faults.append(f"{uri} is declared and not used")
        if document["type"] == "Feature":
            for prefix in prefixes:
                needed = ITEM_NEEDS.get(prefix, [])
                faults += [f"no {n}" for n in needed if n not in document["properties"]]
    if any("/mlm/" in uri for uri in declared) and document["type"] == "Feature":
        roles = [asset.get("roles", []) for asset in document["assets"].values()]
        if not any("mlm:model" in given for given in roles):
            faults.append("no asset has the role mlm:model")
    return faults


def _places(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where fields of extensions may stand."""
    if document["type"] == "Feature":
        yield "properties", document["properties"]
    else:
        yield "collection", document
        yield "summaries", document.get("summaries", {})
    for group in ("assets", "item_assets"):
        for name, asset in document.get(group, {}).items():
            yield f"{group}/{name}", asset
