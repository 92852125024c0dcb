"""The virtual landscape in the forms of the Planetary Computer.

Each item is a real item of the collection, with the place, time, orbit and grid of a simulated
one: what the provider adds and leaves out stays as it is. Links lead to the provider's own
storage accounts, whose containers the landscape's folders stand for.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]

ACCOUNTS = {
    "sentinel1-grd-rtc": "sentinel1euwestrtc",
    "s1-grd": "sentinel1euwest",
    "modis-061-cogs": "modiseuwest",
    "nasadem-cog": "nasademeuwest",
    "esa-worldcover": "ai4edataeuwest",
    "era5": "cpdataeuwest",
}
"""Storage account of each container, as at the provider."""

COLLECTIONS = ("sentinel-1-rtc", "sentinel-1-grd", "modis-13Q1-061", "era5-pds", "nasadem")
"""Collections of which real items are at hand."""

SIMULATED = ("esa-worldcover",)
"""Collections whose items have no real model at hand; the landscape's own are served."""

API = "https://planetarycomputer.microsoft.com/api/stac/v1"

SOIL = "https://files.isric.org/soilgrids/latest/data"
"""Where the package's own catalog of SoilGrids finds the layers; they need no signature."""


def containers(landscape: Path) -> dict[str, Path]:
    """Folder of each ``account/container``."""
    return {f"{account}/{name}": landscape / "data" / name for name, account in ACCOUNTS.items()}


def endpoints(api: str, storage: str) -> dict[str, str]:
    """Tell what a user gives to :func:`xsoilsm.open_catalog` to reach the services here."""
    hosts = {
        f"https://{account}.blob.core.windows.net/": f"{storage}/{account}/"
        for account in ACCOUNTS.values()
    }
    return {"planetary-computer": api, f"{SOIL}/": f"{storage}/soilgrids/", **hosts}


def collections(shared: Path | None, landscape: Path) -> list[Json]:
    """Read the real collections, and the landscape's where there is no real one."""
    files = [_collection_file(shared, landscape, name) for name in COLLECTIONS]
    files += [landscape / "stac" / name / "collection.json" for name in SIMULATED]
    found: list[Json] = [json.loads(file.read_text()) for file in files]
    for collection in found:
        collection["links"] = [link for link in collection["links"] if "://" in link["href"]]
    return found


def _collection_file(shared: Path | None, landscape: Path, name: str) -> Path:
    if shared is None:
        return landscape / "stac" / name / "collection.json"
    return shared / "data" / "stac" / f"pc_{name}_collection.json"


def real_item(shared: Path, collection: str) -> Json:
    """Read an item as the provider served it."""
    file = shared / "data" / "stac" / f"pc_{collection}_item.json"
    content: Json = json.loads(file.read_text())
    return content


def items(shared: Path | None, landscape: Path) -> list[Json]:
    """Put the landscape's items into the provider's forms; without real items into its own."""
    return [
        _adapted(real_item(shared, name) if shared and name in COLLECTIONS else _own(item), item)
        for name in (*COLLECTIONS, *SIMULATED)
        for item in _simulated(landscape, name)
    ]


def _simulated(landscape: Path, collection: str) -> Iterator[Json]:
    for file in sorted((landscape / "stac" / collection).glob("*.json")):
        if file.name != "collection.json":
            yield json.loads(file.read_text())


def _own(item: Json) -> Json:
    """Take an item as its own model, without the links that hold in its folder only."""
    kept = [copy.deepcopy(link) for link in item["links"] if link["rel"] == "derived_from"]
    return item | {"links": kept}


def _adapted(real: Json, simulated: Json) -> Json:
    """Give a real item the content of a simulated one."""
    item = copy.deepcopy(real)
    for key in ("id", "bbox", "geometry"):
        item[key] = simulated[key]
    own = simulated["properties"]
    item["properties"] |= {key: own[key] for key in real["properties"] if key in own}
    if "era5:kind" in own:
        item["properties"]["cube:variables"] = own["cube:variables"]
        template = next(iter(real["assets"].values()))
        item["assets"] = {key: copy.deepcopy(template) for key in simulated["assets"]}
    for key, asset in simulated["assets"].items():
        if key in item["assets"]:
            item["assets"][key]["href"] = _href(asset["href"])
    original = next((x for x in simulated["links"] if x["rel"] == "derived_from"), None)
    for link in item["links"]:
        link["href"] = link["href"].replace(real["id"], item["id"])
        if link["rel"] == "derived_from" and original is not None:
            name = original["href"].rsplit("/", 1)[-1].removesuffix(".json")
            link["href"] = f"{API}/collections/sentinel-1-grd/items/{name}"
    return item


def _href(relative: str) -> str:
    """Address in the provider's storage of a file of the landscape."""
    path = re.sub(r"^(\.\./)*data/", "", relative)
    container, _, blob = path.partition("/")
    if container == "era5":
        return f"abfs://era5/{blob}"
    return f"https://{ACCOUNTS[container]}.blob.core.windows.net/{container}/{blob}"


def lay_out_soil(landscape: Path, folder: Path) -> Path:
    """Lay the soil layers out as at ISRIC: a virtual raster beside its tiles."""
    import rasterio
    import rasterio.shutil

    for file in _soil_files(landscape):
        name = file.stem
        place = folder / name.partition("_")[0]
        tiles = place / name
        tiles.mkdir(parents=True)
        tile = tiles / "tile.tif"
        tile.write_bytes(file.read_bytes())
        with rasterio.open(tile) as source:
            rasterio.shutil.copy(source, place / f"{name}.vrt", driver="VRT")
        text = (place / f"{name}.vrt").read_text()
        relative = re.sub(
            r'<SourceFilename relativeToVRT="\d">[^<]*</SourceFilename>',
            f'<SourceFilename relativeToVRT="1">{name}/tile.tif</SourceFilename>',
            text,
        )
        (place / f"{name}.vrt").write_text(relative)
    return folder


def _soil_files(landscape: Path) -> Iterator[Path]:
    yield from sorted((landscape / "data" / "soilgrids").glob("*.tif"))
