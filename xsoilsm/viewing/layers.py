"""Outside the seven steps (look): which maps a folder of results holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rasterio
from rasterio.errors import RasterioIOError
from rasterio.warp import transform_bounds

__all__ = ["VARIABLES", "Layer", "find_layers"]

VARIABLES = ("soil_moisture", "soil_moisture_std", "quality_flag")
"""Variables that are shown."""


@dataclass(frozen=True)
class Layer:
    """One file: a variable at a time.

    Parameters
    ----------
    id : str
        Path below the folder, without its ending.
    path : Path
    variable : str
        One of `VARIABLES`.
    time : str
        ISO 8601 in UTC, as the file tells it; empty where it tells none.
    res : str
        Name of the grid.
    about : str
        Platform, direction and relative orbit.
    bounds : tuple of float
        West, south, east, north in degrees.
    simulated : bool
        Whether the inputs say that they are simulated.
    """

    id: str
    path: Path
    variable: str
    time: str
    res: str
    about: str
    bounds: tuple[float, float, float, float]
    simulated: bool


def find_layers(folder: str | os.PathLike[str]) -> list[Layer]:
    """List the maps in a folder and the folders below, by time. Reads the heads of files.

    Mosaics hide the tiles that they were made of: where a folder ``mosaics`` lies in `folder`,
    only that is looked at.

    Parameters
    ----------
    folder : path

    Returns
    -------
    list of Layer

    Raises
    ------
    FileNotFoundError
        When there is no such folder, or no map in it.
    """
    root = Path(folder)
    if not root.is_dir():
        msg = f"there is no folder {root}; expected one that xsoilsm wrote results to"
        raise FileNotFoundError(msg)
    within = root / "mosaics" if (root / "mosaics").is_dir() else root
    known = [_layer(path, root) for path in sorted(within.rglob("*.tif"))]
    layers = [layer for layer in known if layer is not None]
    if not layers:
        msg = (
            f"{root} holds no map of {', '.join(VARIABLES)}; found {len(known)} other GeoTIFFs. "
            "Write results there first, for instance with 'xsoilsm map'"
        )
        raise FileNotFoundError(msg)
    return sorted(layers, key=lambda layer: (layer.res, layer.time, layer.about, layer.variable))


def _layer(path: Path, root: Path) -> Layer | None:
    """Describe a file by what it says of itself; None where that is no map of ours."""
    try:
        with rasterio.open(path) as source:
            variable = str((source.descriptions or ("",))[0])
            if variable not in VARIABLES or source.crs is None:
                return None
            tags = source.tags()
            bounds = transform_bounds(source.crs, "EPSG:4326", *source.bounds)
    except RasterioIOError:
        return None  # half a file, or none of ours
    orbit = tags.get("relative_orbit", "")
    about = (tags.get("platform", ""), tags.get("orbit_state", ""), f"orbit {orbit}" * bool(orbit))
    return Layer(
        id=path.relative_to(root).with_suffix("").as_posix(),
        path=path,
        variable=variable,
        time=tags.get("time_utc") or tags.get("time", ""),
        res=tags.get("resolution", ""),
        about=" ".join(part for part in about if part),
        bounds=bounds,
        simulated="simulated" in f"{tags.get('inputs', '')} {tags.get('title', '')}".lower(),
    )


def scenes(layers: Sequence[Layer]) -> list[dict[str, object]]:
    """Group layers by grid, time and orbit, as the page wants them. Lazy: reads nothing."""
    grouped: dict[tuple[str, str, str], dict[str, object]] = {}
    for layer in layers:
        scene = grouped.setdefault(
            (layer.res, layer.time, layer.about),
            {
                "res": layer.res,
                "time": layer.time,
                "about": layer.about,
                "bounds": layer.bounds,
                "simulated": layer.simulated,
            },
        )
        scene[layer.variable] = layer.id
    return list(grouped.values())
