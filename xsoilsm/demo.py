"""Outside the seven steps (show): the whole way on the virtual landscape.

Makes the landscape where it is missing, maps it at 1 km and 100 m through the same calls that
a user makes, and compares the result with the landscape's own truth. Where the published networks
are not at hand, those that come with the package take their place: `train_demo_networks` made
them, from simulated data. Nothing is downloaded.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from xsoilsm import grid
from xsoilsm.cube import cube_geobox
from xsoilsm.ensemble import WeightsError, get_ensemble
from xsoilsm.loading import load_cube
from xsoilsm.metrics import agreement
from xsoilsm.products import write_products
from xsoilsm.progress import share_bar, task_bar
from xsoilsm.regrid import area_mean
from xsoilsm.retrieval import ResolutionWarning, retrieve
from xsoilsm.simulate import landscape_folder, simulate_landscape
from xsoilsm.simulate.twin import SETTINGS_FILE, simulate_twin, twin_samples
from xsoilsm.viewing.pictures import quicklook

if TYPE_CHECKING:
    from xsoilsm.ensemble import Ensemble

__all__ = ["DEMO_SHAPES", "run_demo", "train_demo_networks"]

PUBLISHED = "densesm-e-coarse"
SHIPPED = "twin-demo"
"""Name of the ensemble that comes with the package."""

DEMONSTRATION = "demonstration networks trained on simulated data"

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

    Computes, and writes Cloud-Optimized GeoTIFFs, ``quicklook.png`` and ``summary.csv``. Opens no
    connection: takes the published networks where their weights are at hand, in the cache or in
    ``$XSOILSM_WEIGHTS_DIR``, else those that come with the package.

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
        One row per resolution and acquisition: networks, cells, valid ones, those without any
        flag, and the agreement of the retrieval with the simulated truth in these.
    """
    out = Path(out)
    folder = landscape_folder()
    say(f"virtual landscape (simulated) in {folder}")
    with share_bar(progress, "simulate") as report:
        catalog = simulate_landscape(folder, progress=report, **(landscape or {}))
    model, networks = _networks(say)
    truth = _truth(catalog)
    results: list[xr.Dataset] = []
    truths: list[xr.DataArray] = []
    rows: list[dict[str, Any]] = []
    for res in RESOLUTIONS:
        cube = load_cube(_bbox(truth), _span(truth), res=res, catalog="demo")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResolutionWarning)
            lazy = retrieve(cube, model)
        with task_bar(progress, f"retrieve {res}"):
            result = lazy.compute()
        files = write_products(result, out, overwrite=True)
        say(f"{res}: {len(files)} Cloud-Optimized GeoTIFFs in {out}")
        at_cells = _on_cells(truth, result)
        results.append(result)
        truths.append(at_cells)
        rows += [{"networks": networks, **row} for row in _compare(result, at_cells)]
    say(str(results[0].attrs.get("resolution_note", "")))
    shown = 1 if truth.sizes["time"] > 1 else 0
    when = results[0]["time"].values[shown].astype("datetime64[m]")
    picture = quicklook(
        [result.isel(time=shown) for result in results],
        out / "quicklook.png",
        truths=[t.isel(time=shown) for t in truths],
        title=(
            f"SIMULATED landscape, {networks}, {when} UTC: no statement about accuracy in the real "
            "world"
        ),
    )
    table = pd.DataFrame(rows)
    table.to_csv(out / "summary.csv", index=False)
    say(f"picture in {picture}, table in {out / 'summary.csv'}")
    return table


def _networks(say: Say) -> tuple[str, str]:
    """Name of the ensemble to retrieve with, and what to call its networks."""
    try:
        get_ensemble(PUBLISHED).require_weights()
    except WeightsError as error:
        say(f"the published networks are not at hand: {error}")
        say(f"instead {SHIPPED!r}, {DEMONSTRATION}, which come with the package")
        return SHIPPED, DEMONSTRATION
    return PUBLISHED, "published networks"


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
        plain = (flags == 0) & np.isfinite(moisture)
        found = agreement(np.where(plain, moisture, np.nan), truth.isel(time=index).values)
        rows.append(
            {
                "res": result.attrs["resolution"],
                "time": str(time.astype("datetime64[m]")),
                "pass": str(result["orbit_state"].values[index]),
                "cells": moisture.size,
                "valid": int(np.isfinite(moisture).sum()),
                "unflagged": int(plain.sum()),
                "mean": float(np.nanmean(moisture)),
                "spread": float(np.nanmean(result["soil_moisture_std"].isel(time=index))),
                "simulated_truth": float(np.nanmean(truth.isel(time=index))),
                "bias": found.bias,
                "R": found.r,
                "RMSE": found.rmse,
            }
        )
    return rows


# --------------------------------------------------------------------------- networks

DEMO_SHAPES = tuple((depth, width) for depth in range(1, 6) for width in (8, 16, 32, 64))
"""Depth and width of the networks that come with the package: those of DenseSM-E but the widest."""

_NOTE = (
    "For demonstration only: trained on a simulated twin, and says nothing of the Earth. Twin of "
    "the size {size!r} with seed {seed}, settings with SHA-256 {digest}; all its 9 km samples "
    "under the contract 'paper'. Random parameters by the seed; {threads} threads, torch {torch}."
)


def train_demo_networks(
    twin: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    size: str = "small",
    epochs: int = 30,
    batch: int = 128,
    threads: int = 2,
    workers: int | None = None,
    progress: Callable[[float | str], None] | None = None,
) -> Ensemble:
    """Train the networks that come with the package as ``twin-demo``, from nothing.

    Computes: simulates the twin and takes its samples where they are missing. May be interrupted
    at any time, and called again. The same version of torch, kind of processor and number of
    threads give the same parameters.

    Parameters
    ----------
    twin : path
        Folder of the twin, see `xsoilsm.simulate.twin.simulate_twin`.
    folder : path
        Of the new ensemble; the checkpoint and the log are written beside it.
    size : {"tiny", "small", "full"}, default "small"
        Of the twin.
    epochs, batch : int, default 30, 128
        Else the settings are those of `xsoilsm.training.Recipe.coarse`.
    threads : int, default 2
        How many networks train at a time; decides the order of sums, and so the last digits.
    workers : int, optional
        Processes that simulate and take samples.
    progress : callable, optional
        Takes shares from 0 to 1, and texts.

    Returns
    -------
    Ensemble

    Raises
    ------
    FileExistsError
        When `folder` holds an ensemble, or `twin` another twin.
    """
    import hashlib

    import torch

    from xsoilsm.training import Recipe, Samples, train_ensemble

    seed = 0
    place = simulate_twin(twin, size, seed=seed, workers=workers, progress=progress)
    coarse, _ = twin_samples(place, contract="paper", workers=workers, progress=progress)
    days = np.sort(coarse["time"].values.astype("datetime64[D]"))
    settings = hashlib.sha256((place / SETTINGS_FILE).read_bytes()).hexdigest()
    home = Path(folder)
    return train_ensemble(
        Samples.of_cube(coarse),
        SHIPPED,
        Recipe.coarse(epochs=epochs, batch=batch),
        shapes=DEMO_SHAPES,
        family=SHIPPED,
        title="SIMULATED, for demonstration only: DenseSM networks of the twin at 9km",
        truth="simulated retrievals of SMAP at 9 km, of the virtual landscapes of the twin",
        period=f"{days[0]}/{days[-1]} (simulated)",
        licence="Apache-2.0",
        statement="Apache-2.0, as the package: it was trained on data that the package simulates.",
        note=_NOTE.format(
            size=size, seed=seed, digest=settings, threads=threads, torch=torch.__version__
        ),
        simulated=True,
        folder=home,
        checkpoint=home.with_name(f"{home.name}-checkpoint.safetensors"),
        log=home.with_name(f"{home.name}.csv"),
        device="cpu",
        threads=threads,
        progress=progress,
    )
