"""Step 7 of 7 (write): which items a cube was made of, and where these are described.

Cubes name their items by identifier. The catalog knows the services that gave them, and so the
address of an item's document where the service is a STAC API.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import xarray as xr

from xsoilsm.catalog import Catalog
from xsoilsm.facts import Source
from xsoilsm.outputs.pieces import InputItem

__all__ = ["input_items", "item_address"]

_GROUP_OF = {
    "sigma0_vv": "radar",
    "sigma0_vh": "radar",
    "incidence_angle": "radar",
    "ndvi": "ndvi",
    "air_temperature": "weather",
    "precipitation": "weather",
    "elevation": "terrain",
    "slope": "terrain",
    "sand": "soil",
    "clay": "soil",
    "bulk_density": "soil",
    "water_fraction": "landcover",
    "built_fraction": "landcover",
    "tree_fraction": "landcover",
}


def item_address(catalog: Catalog, service: str, collection: str, item: str) -> str:
    """Address of an item's JSON document.

    Lazy: reads nothing.

    Parameters
    ----------
    catalog : Catalog
    service, collection, item : str

    Returns
    -------
    str
        Empty where the service is no STAC API, whose documents have addresses of one form.

    Raises
    ------
    ValueError
        When the catalog has no such service.
    """
    known = catalog.services.get(service)
    if known is None:
        msg = f"no service {service!r} in the catalog; expected {', '.join(catalog.services)}"
        raise ValueError(msg)
    if known.kind != "stac-api":
        return ""
    place = f"collections/{quote(collection, safe='')}/items/{quote(item, safe='')}"
    return f"{known.href.rstrip('/')}/{place}"


def input_items(cube: xr.Dataset, catalog: Catalog) -> tuple[InputItem, ...]:
    """Items that a cube was made of.

    Lazy: reads nothing.

    Parameters
    ----------
    cube : Dataset
        Of `xsoilsm.load_cube`, whose variables name their items in the attribute ``items``.
    catalog : Catalog
        From which the cube was loaded.

    Returns
    -------
    tuple of InputItem
        In order. The address and collection are empty where several collections gave a group of
        variables, so that it is not known which of them an item belongs to.
    """
    found: dict[str, InputItem] = {}
    for name, variable in cube.variables.items():
        sources = _sources(cube.attrs, catalog, _GROUP_OF.get(str(name), ""))
        for item in str(variable.attrs.get("items", "")).split():
            if item in found and found[item].collection:
                continue
            found[item] = InputItem(item)
            if len(sources) == 1:
                (source,) = sources
                href = item_address(catalog, source.service, source.collection, item)
                found[item] = InputItem(item, href, source.collection)
    return tuple(sorted(found.values()))


def _sources(attributes: Mapping[object, object], catalog: Catalog, group: str) -> list[Source]:
    """Find the sources of a group behind a cube, whose licence names their collections."""
    parts = f"; {attributes.get('licence', '')}"
    return [s for s in catalog.sources.get(group, ()) if f"; {s.collection}: " in parts]
