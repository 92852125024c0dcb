"""Outside the seven steps (show): the whole way on the virtual landscape.

Makes the landscape where it is missing, maps it at 1 km and 100 m through the same calls that
a user makes, and compares the result with the landscape's own truth.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xsoilsm import grid
from xsoilsm.cube import cube_geobox
from xsoilsm.loading import load_cube
from xsoilsm.metrics import agreement
from xsoilsm.products import write_products
from xsoilsm.progress import share_bar, task_bar
from xsoilsm.quality import QualityFlag
from xsoilsm.regrid import area_mean
from xsoilsm.retrieval import ResolutionWarning, retrieve
from xsoilsm.simulate import landscape_folder, simulate_landscape
from xsoilsm.viewing.pictures import quicklook

__all__ = ["run_demo"]

RESOLUTIONS = ("1km", "100m")

Say = Callable[[str], object]


def run_demo(
    out: str | os.PathLike[str],
    *,
    landscape: Mapping[str, Any] | None = None,
    say: Say = print,
    progress: bool = True,
) -> pd.DataFrame:
    """Map the virtual landscape and compare the maps with its truth.

    Computes, and writes Cloud-Optimized GeoTIFFs, ``quicklook.png`` and ``summary.csv``.

    Parameters
    ----------
    out : path
        Folder for the results; files of the same names are replaced.
    landscape : mapping, optional
        Parameters of `xsoilsm.simulate.simulate_landscape` other than the defaults.
    say : callable
        Gets a line of text at each stage.
    progress : bool, default True
        Show progress bars on the terminal.

    Returns
    -------
    DataFrame
        One row per resolution and acquisition: cells, valid ones, flags, and the agreement of
        the retrieval with the simulated truth.
    """
    out = Path(out)
    folder = landscape_folder()
    say(f"virtual landscape (simulated) in {folder}")
    with share_bar(progress, "simulate") as report:
        catalog = simulate_landscape(folder, progress=report, **(landscape or {}))
    truth = _truth(catalog)
    results: list[xr.Dataset] = []
    truths: list[xr.DataArray] = []
    rows: list[dict[str, Any]] = []
    for res in RESOLUTIONS:
        cube = load_cube(_bbox(truth), _span(truth), res=res, catalog="demo")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResolutionWarning)
            lazy = retrieve(cube, "DenseSM-E")
        with task_bar(progress, f"retrieve {res}"):
            result = lazy.compute()
        files = write_products(result, out, overwrite=True)
        say(f"{res}: {len(files)} Cloud-Optimized GeoTIFFs in {out}")
        at_cells = _on_cells(truth, result)
        results.append(result)
        truths.append(at_cells)
        rows += _compare(result, at_cells)
    say(str(results[0].attrs.get("resolution_note", "")))
    shown = 1 if truth.sizes["time"] > 1 else 0
    when = results[0]["time"].values[shown].astype("datetime64[m]")
    picture = quicklook(
        [result.isel(time=shown) for result in results],
        out / "quicklook.png",
        truths=[t.isel(time=shown) for t in truths],
        title=f"SIMULATED landscape, {when} UTC: no statement about accuracy in the real world",
    )
    table = pd.DataFrame(rows)
    table.to_csv(out / "summary.csv", index=False)
    say(f"picture in {picture}, table in {out / 'summary.csv'}")
    return table


def _truth(catalog: Path) -> xr.DataArray:
    """Read the landscape's true soil moisture (time, y, x) on the 100 m grid, m3 m-3."""
    import odc.stac
    import pystac

    collection = pystac.Catalog.from_file(catalog).get_child("simulated-truth")
    if collection is None:
        msg = f"{catalog} has no collection simulated-truth; make the landscape anew"
        raise FileNotFoundError(msg)
    items = sorted(collection.get_items(recursive=True), key=lambda item: str(item.datetime))
    loaded = odc.stac.load(items, bands=["soil_moisture"], chunks={})
    truth: xr.DataArray = loaded["soil_moisture"].compute()
    return truth


def _bbox(truth: xr.DataArray) -> tuple[float, float, float, float]:
    """Centres of the outermost cells, so that snapping outward adds none."""
    (west, east), (north, south) = grid.xy_to_lonlat(
        truth["x"].values[[0, -1]], truth["y"].values[[0, -1]]
    )
    return float(west), float(south), float(east), float(north)


def _span(truth: xr.DataArray) -> tuple[str, str]:
    days = truth["time"].values.astype("datetime64[D]")
    return str(days[0]), str(days[-1])


def _on_cells(truth: xr.DataArray, result: xr.Dataset) -> xr.DataArray:
    """Average the truth over the cells of a result; cells covered by less than half are NaN."""
    if truth["x"].equals(result["x"]) and truth["y"].equals(result["y"]):
        return truth
    mean, coverage = area_mean(truth, cube_geobox(result))
    at_cells: xr.DataArray = mean.where(coverage >= 0.5).compute()
    return at_cells


def _compare(result: xr.Dataset, truth: xr.DataArray) -> list[dict[str, Any]]:
    rows = []
    for index, time in enumerate(result["time"].values):
        moisture = result["soil_moisture"].isel(time=index).values
        flags = result["quality_flag"].isel(time=index).values
        found = agreement(moisture, truth.isel(time=index).values)
        rows.append(
            {
                "res": result.attrs["resolution"],
                "time": str(time.astype("datetime64[m]")),
                "pass": str(result["orbit_state"].values[index]),
                "cells": moisture.size,
                "valid": int(np.isfinite(moisture).sum()),
                "low_coverage": int(((flags & int(QualityFlag.LOW_COVERAGE)) != 0).sum()),
                "mean": float(np.nanmean(moisture)),
                "spread": float(np.nanmean(result["soil_moisture_std"].isel(time=index))),
                "simulated_truth": float(np.nanmean(truth.isel(time=index))),
                "bias": found.bias,
                "R": found.r,
                "RMSE": found.rmse,
            }
        )
    return rows
