"""Step 7 of 7 (write): from a region and a time to files, in one call."""

from __future__ import annotations

import os
from pathlib import Path

from xsoilsm.catalog import Catalog
from xsoilsm.loading import load_cube
from xsoilsm.products import write_products
from xsoilsm.progress import task_bar
from xsoilsm.retrieval import retrieve

__all__ = ["map_region"]


def map_region(
    bbox: tuple[float, float, float, float],
    time: str | tuple[str, str],
    out: str | os.PathLike[str],
    *,
    res: str = "1km",
    catalog: str | Catalog = "planetary-computer",
    model: str = "DenseSM-E",
    overwrite: bool = False,
    progress: bool = False,
) -> list[Path]:
    """Retrieve soil moisture over a region and write it as Cloud-Optimized GeoTIFFs.

    Computes in one pass; memory is bounded by the chunks of the cube.

    Parameters
    ----------
    bbox : (west, south, east, north)
        Degrees, WGS 84.
    time : str or (start, end)
        Days in UTC, see `xsoilsm.load_cube`.
    out : path
        Folder for the files, see `xsoilsm.products.write_products`.
    res : {"9km", "1km", "500m", "100m"}, default "1km"
    catalog : str or Catalog, default "planetary-computer"
    model : str, default "DenseSM-E"
    overwrite : bool, default False
        Replace files of the same names.
    progress : bool, default False
        Show a progress bar on the terminal.

    Returns
    -------
    list of Path

    Raises
    ------
    ValueError
        For a region, time, resolution, catalog or model that cannot be used.
    WeightsError
        When the weights are not at hand.
    OSError
        When a file exists, or the folder cannot be written.
    """
    result = retrieve(load_cube(bbox, time, res=res, catalog=catalog), model)
    with task_bar(progress, f"map at {res}"):
        return write_products(result, out, overwrite=overwrite)
