"""High-resolution soil moisture from Sentinel-1, on xarray, Dask and STAC.

A catalog names sources, sources become a cube on an EASE-Grid 2.0 GeoBox, a cube becomes
features, an ensemble turns features into soil moisture. Importing the package registers the
accessor ``ds.sm``; heavy libraries are imported when they are needed.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import xsoilsm.accessor  # noqa: F401  (registers ds.sm)
from xsoilsm.catalog import open_catalog
from xsoilsm.checks import check_cube
from xsoilsm.cube import aggregate
from xsoilsm.grid import ease2_geobox

if TYPE_CHECKING:
    from xsoilsm.cog import write_cog
    from xsoilsm.ensemble import get_ensemble, list_ensembles
    from xsoilsm.features import compute_features
    from xsoilsm.inventory import search
    from xsoilsm.loading import load_cube
    from xsoilsm.retrieval import retrieve
    from xsoilsm.stack import cube_from_stack

__version__ = version("xsoilsm")

__all__ = [
    "__version__",
    "aggregate",
    "check_cube",
    "compute_features",
    "cube_from_stack",
    "ease2_geobox",
    "get_ensemble",
    "list_ensembles",
    "load_cube",
    "open_catalog",
    "retrieve",
    "search",
    "write_cog",
]

_LAZY = {
    "compute_features": "features",
    "cube_from_stack": "stack",
    "get_ensemble": "ensemble",
    "list_ensembles": "ensemble",
    "load_cube": "loading",
    "retrieve": "retrieval",
    "search": "inventory",
    "write_cog": "cog",
}


def __getattr__(name: str) -> Any:
    """Import the heavier public functions at first use."""
    if name in _LAZY:
        return getattr(import_module(f"xsoilsm.{_LAZY[name]}"), name)
    msg = f"module 'xsoilsm' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    """Names for tab completion."""
    return sorted(__all__)
