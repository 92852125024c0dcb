"""Outside the seven steps (simulate): STAC collections and items like those of the providers.

Collections, identifiers, asset keys, properties and extensions are those of the Planetary
Computer (SoilGrids and the truth have no such model). Every collection and item carries a sentence
that says it is simulated. Links are relative; nothing is read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xsoilsm.simulate.annotation import SIMULATED, Slice
from xsoilsm.simulate.files import checksum, write_json

__all__ = ["COG", "Catalogue", "grd_item", "projection", "rtc_item"]

Json = dict[str, Any]

COG = "image/tiff; application=geotiff; profile=cloud-optimized"
STAC_VERSION = "1.0.0"
_SCHEMA = "https://stac-extensions.github.io"
EXTENSIONS = {
    "sar": f"{_SCHEMA}/sar/v1.0.0/schema.json",
    "sat": f"{_SCHEMA}/sat/v1.0.0/schema.json",
    "projection": f"{_SCHEMA}/projection/v1.1.0/schema.json",
    "projection-1.0": f"{_SCHEMA}/projection/v1.0.0/schema.json",
    "file": f"{_SCHEMA}/file/v2.0.0/schema.json",
    "grid": f"{_SCHEMA}/grid/v1.1.0/schema.json",
    "raster": f"{_SCHEMA}/raster/v1.1.0/schema.json",
    "classification": f"{_SCHEMA}/classification/v1.0.0/schema.json",
    "datacube": f"{_SCHEMA}/datacube/v2.0.0/schema.json",
}
_KEYWORDS = ("simulated", "virtual landscape")


@dataclass
class Catalogue:
    """A static STAC catalog that is being written.

    Parameters
    ----------
    root : Path
        Folder of ``catalog.json``.
    items : dict of list
        Items by collection, filled by `add`.
    """

    root: Path
    items: dict[str, list[Json]] = field(default_factory=dict)

    def href(self, path: Path) -> str:
        """Refer from an item to a file of the landscape."""
        return Path(os.path.relpath(path, self.root / "stac" / "collection")).as_posix()

    def add(
        self,
        collection: str,
        identifier: str,
        *,
        geometry: Json,
        properties: Json,
        assets: Json,
        extensions: tuple[str, ...] = (),
        links: tuple[Json, ...] = (),
    ) -> None:
        """Write an item.

        Parameters
        ----------
        collection, identifier : str
        geometry : dict
            GeoJSON.
        properties, assets : dict
        extensions : tuple of str
            Keys of `EXTENSIONS`.
        links : tuple of dict
            Beyond those to the root and the collection.
        """
        corners = np.array(geometry["coordinates"][0])
        low, high = corners.min(axis=0), corners.max(axis=0)
        own = {"rel": "collection", "type": "application/json", "href": "./collection.json"}
        item = {
            "type": "Feature",
            "stac_version": STAC_VERSION,
            "stac_extensions": [EXTENSIONS[key] for key in extensions],
            "id": identifier,
            "collection": collection,
            "bbox": [float(v) for v in (*low, *high)],
            "geometry": geometry,
            "properties": {**properties, "description": SIMULATED, "xsoilsm:simulated": True},
            "links": [
                own,
                {**own, "rel": "parent"},
                {"rel": "root", "type": "application/json", "href": "../../catalog.json"},
                *links,
            ],
            "assets": assets,
        }
        self.items.setdefault(collection, []).append(item)
        write_json(self.root / "stac" / collection / f"{identifier}.json", item)

    def finish(self, title: str, configuration: Json) -> Path:
        """Write the collections and the catalog that holds them.

        Parameters
        ----------
        title : str
        configuration : dict
            What the landscape was made from.

        Returns
        -------
        Path
            ``catalog.json``.
        """
        children = []
        for name in sorted(self.items):
            self._collection(name, self.items[name])
            children.append(
                {
                    "rel": "child",
                    "type": "application/json",
                    "href": f"./stac/{name}/collection.json",
                    "title": f"{name} (simulated)",
                }
            )
        path = self.root / "catalog.json"
        write_json(
            path,
            {
                "type": "Catalog",
                "stac_version": STAC_VERSION,
                "id": "xsoilsm-virtual-landscape",
                "title": title,
                "description": f"{SIMULATED} A virtual landscape in the forms of real providers.",
                "xsoilsm:simulated": True,
                "xsoilsm:configuration": configuration,
                "links": [
                    {"rel": "root", "type": "application/json", "href": "./catalog.json"},
                    *children,
                ],
            },
        )
        return path

    def _collection(self, name: str, items: list[Json]) -> None:
        boxes = np.array([item["bbox"] for item in items])
        box = [*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)]
        times: list[str] = []
        for item in items:
            properties = item["properties"]
            times.extend(
                properties[key].replace(" ", "T").replace("+00:00", "Z")
                for key in ("start_datetime", "datetime", "end_datetime")
                if properties.get(key)
            )
        assets = {
            key: {
                part: value
                for part, value in asset.items()
                if not part.startswith(("href", "file:"))
            }
            for key, asset in items[0]["assets"].items()
        }
        root = {"rel": "root", "type": "application/json", "href": "../../catalog.json"}
        links = [
            {"rel": "item", "type": "application/geo+json", "href": f"./{item['id']}.json"}
            for item in items
        ]
        write_json(
            self.root / "stac" / name / "collection.json",
            {
                "type": "Collection",
                "stac_version": STAC_VERSION,
                "stac_extensions": [f"{_SCHEMA}/item-assets/v1.0.0/schema.json"],
                "id": name,
                "title": f"{name} (simulated)",
                "description": f"{SIMULATED} Has the form of the collection {name}.",
                "license": "Apache-2.0",
                "keywords": list(_KEYWORDS),
                "providers": [{"name": "xsoilsm", "roles": ["producer", "host"]}],
                "extent": {
                    "spatial": {"bbox": [[float(v) for v in box]]},
                    "temporal": {"interval": [[min(times), max(times)]]},
                },
                "item_assets": assets,
                "xsoilsm:simulated": True,
                "links": [root, {**root, "rel": "parent"}, *links],
            },
        )


def projection(geobox: Any, *, full: bool = True) -> Json:
    """``proj:`` properties of a file's grid.

    Parameters
    ----------
    geobox : GeoBox
    full : bool, default True
        Give the transform as nine numbers, else as six.

    Returns
    -------
    dict
        Transform, shape and bounding box; the code is the caller's.
    """
    affine, (height, width) = geobox.affine, geobox.shape
    transform = [float(v) for v in affine[:6]] + ([0.0, 0.0, 1.0] if full else [])
    left, top = affine.c, affine.f
    return {
        "proj:bbox": [
            float(v) for v in (left, top + affine.e * height, left + affine.a * width, top)
        ],
        "proj:shape": [int(height), int(width)],
        "proj:transform": transform,
    }


def polygon(ring: list[tuple[float, float]]) -> Json:
    """GeoJSON polygon of a closed ring of longitudes and latitudes."""
    return {"type": "Polygon", "coordinates": [[[float(x), float(y)] for x, y in ring]]}


def _instant(time: np.datetime64) -> str:
    return str(time.astype("datetime64[us]"))


_SPOKEN = {"vv": "vertical", "vh": "horizontal"}


def _radar_title(key: str) -> str:
    return f"{key.upper()}: vertical transmit, {_SPOKEN[key]} receive"


def _radar_properties(part: Slice, shape: tuple[int, int]) -> Json:
    """Properties that the two Sentinel-1 collections share; `shape` is columns and rows."""
    over, spacing = part.overpass, part.geometry.spacing
    start, stop = over.utc(part.start), over.utc(part.last)
    step = int(spacing) if spacing == int(spacing) else spacing
    return {
        "datetime": _instant(start + (stop - start) / 2) + "Z",
        "platform": f"SENTINEL-1{over.platform}",
        "s1:shape": [int(v) for v in shape],
        "end_datetime": _instant(stop).replace("T", " ") + "+00:00",
        "constellation": "Sentinel-1",
        "s1:resolution": "high",
        "s1:datatake_id": str(part.datatake),
        "start_datetime": _instant(start).replace("T", " ") + "+00:00",
        "s1:orbit_source": "RESORB",
        "s1:slice_number": str(part.number),
        "s1:total_slices": str(part.total),
        "sar:looks_range": 5,
        "sat:orbit_state": over.orbit_state,
        "sar:product_type": "GRD",
        "sar:looks_azimuth": 1,
        "sar:polarizations": ["VV", "VH"],
        "sar:frequency_band": "C",
        "sat:absolute_orbit": over.absolute_orbit,
        "sat:relative_orbit": over.relative_orbit,
        "s1:processing_level": "1",
        "sar:instrument_mode": "IW",
        "sar:center_frequency": 5.405,
        "sar:resolution_range": 20,
        "s1:product_timeliness": "Fast-24h",
        "sar:resolution_azimuth": 22,
        "sar:pixel_spacing_range": step,
        "sar:observation_direction": "right",
        "sar:pixel_spacing_azimuth": step,
        "sar:looks_equivalent_number": 4.4,
        "s1:instrument_configuration_ID": "6",
        "sat:platform_international_designator": {"A": "2014-016A", "B": "2016-025A"}[
            over.platform
        ],
    }


def grd_item(catalogue: Catalogue, part: Slice, folder: Path, *, with_pixels: bool = False) -> None:
    """Write the `sentinel-1-grd` item of a slice.

    Parameters
    ----------
    catalogue : Catalogue
    part : Slice
    folder : Path
        Folder of the product, with ``annotation`` and, with pixels, ``measurement`` inside.
    with_pixels : bool, default False
        Measurement, calibration and noise are written too.
    """
    here = catalogue.href(folder)
    absent = "" if with_pixels else "; the file is not part of this landscape"
    unwritten = "" if with_pixels else "; not written"
    assets: Json = {}
    for key in ("vh", "vv"):
        received = "vertically" if key == "vv" else "horizontally"
        assets[key] = {
            "href": f"{here}/measurement/iw-{key}.tiff",
            "type": COG,
            "roles": ["data"],
            "title": _radar_title(key),
            "description": f"Amplitude of the signal sent vertically and received {received} "
            f"polarised, in radar geometry{absent}.",
        }
    for kind, title, place, text in (
        ("noise", "Noise Schema", "calibration/noise-iw", f"Thermal noise{unwritten}"),
        ("product", "Product Schema", "rfi/rfi-iw", "Radio interference, as in real items"),
        (
            "calibration",
            "Calibration Schema",
            "calibration/calibration-iw",
            "Tables from digital numbers to backscatter" if with_pixels else "Not written",
        ),
    ):
        for key in ("vh", "vv"):
            assets[f"schema-{kind}-{key}"] = {
                "href": f"{here}/annotation/{place}-{key}.xml",
                "type": "application/xml",
                "roles": ["metadata"],
                "title": title,
                "description": f"{text}.",
            }
    ring = [(round(x, 6), round(y, 6)) for x, y in part.outline()]
    catalogue.add(
        "sentinel-1-grd",
        part.name,
        geometry=polygon(ring),
        properties=_radar_properties(part, (part.geometry.samples, part.lines)),
        assets=assets,
        extensions=("sar", "sat"),
    )


def rtc_item(
    catalogue: Catalogue,
    part: Slice,
    geobox: Any,
    ring: list[tuple[float, float]],
    files: dict[str, Path],
    *,
    angle: Path | None = None,
) -> None:
    """Write the `sentinel-1-rtc` item of a slice.

    Parameters
    ----------
    catalogue : Catalogue
    part : Slice
    geobox : GeoBox
        Grid of the files.
    ring : list of (float, float)
        Outline of the data as longitude and latitude, closed.
    files : dict of Path
        Files by polarisation; their size and checksum are taken.
    angle : Path, optional
        Incidence angle on the ellipsoid in degrees on the same pixels. Such an item has no GRD
        item to be derived from.
    """
    height, width = geobox.shape
    properties = {
        **_radar_properties(part, (width, height)),
        **projection(geobox),
        "proj:epsg": geobox.crs.epsg,
    }
    assets = {
        key: {
            "href": catalogue.href(path),
            "file:size": path.stat().st_size,
            "file:checksum": checksum(path),
            "type": COG,
            "roles": ["data"],
            "title": _radar_title(key),
            "description": "Terrain-flattened gamma nought, linear power.",
            "raster:bands": [
                {
                    "nodata": -32768,
                    "data_type": "float32",
                    "spatial_resolution": float(geobox.affine.a),
                }
            ],
        }
        for key, path in sorted(files.items())
    }
    source = {
        "rel": "derived_from",
        "href": f"../sentinel-1-grd/{part.name}.json",
        "type": "application/json",
        "title": "Sentinel 1 GRD Item",
    }
    if angle is not None:
        assets["angle"] = {
            "href": catalogue.href(angle),
            "type": COG,
            "roles": ["data"],
            "title": "Incidence angle on the ellipsoid in degrees",
            "raster:bands": [{"data_type": "float32", "unit": "degree"}],
        }
    catalogue.add(
        "sentinel-1-rtc",
        f"{part.name}_rtc",
        geometry=polygon(ring),
        properties=properties,
        assets=assets,
        extensions=("sar", "sat", "projection", "file", "raster"),
        links=(source,) if angle is None else (),
    )
