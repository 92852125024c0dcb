"""Outside the seven steps (simulate): the twin experiment, from nothing to samples.

A twin is a folder: ``regions/`` with one landscape each, ``ismn/`` with an archive of each network
and ``smap/`` with granules. `simulate_twin` writes it; `twin_samples` goes the way that users of
real data go: it reads archives and granules, and takes samples at 1 km and 9 km with
`xsoilsm.samples.build_samples`. Both go on where they were stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from xsoilsm.contract import get_contract
from xsoilsm.simulate.files import write_text
from xsoilsm.simulate.twin_plan import REGIONS, SIZES, Region, Size, make_place
from xsoilsm.simulate.twin_region import CATALOG_FILE, STATION_FILE, write_region
from xsoilsm.simulate.twin_truth import write_archives, write_granules
from xsoilsm.wholefile import write_whole

if TYPE_CHECKING:
    import xarray as xr

    from xsoilsm.truth.table import Truth

__all__ = ["FORMAT", "SETTINGS_FILE", "simulate_twin", "twin_samples", "twin_settings"]

FORMAT = 1
"""Raised whenever the same size and seed give another twin."""

SETTINGS_FILE, DONE_FILE = "twin.json", "complete.json"

Progress = Callable[[float | str], object]

_REGION_SHARE, _ARCHIVE_SHARE = 0.88, 0.05  # of the work


def simulate_twin(
    path: str | os.PathLike[str],
    size: str = "small",
    *,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Simulate regions, stations and SMAP of a twin experiment.

    Computes. Nothing in it is an observation. What an earlier call had finished is kept.

    Parameters
    ----------
    path : path
        Folder of the twin.
    size : {"tiny", "small", "full"}, default "small"
        See `xsoilsm.simulate.twin_plan.SIZES`.
    seed : int, default 0
        The same size and seed give the same bytes of every file, however often the work was
        interrupted and whatever `workers` is.
    workers : int, optional
        Processes; as many as there are processors where it is left out.
    progress : callable, optional
        Called with a text when a step begins, and with the share of work that is done.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        When the size is unknown or the seed negative.
    FileExistsError
        When the folder holds another twin, or anything else.
    """
    if size not in SIZES:
        msg = f"size {size!r} is unknown; expected one of {', '.join(map(repr, SIZES))}"
        raise ValueError(msg)
    if seed < 0:
        msg = f"seed is {seed}, expected 0 or more"
        raise ValueError(msg)
    folder, chosen, tell = Path(path), SIZES[size], progress or (lambda _: None)
    _agree(folder, {"format": FORMAT, "size": asdict(chosen), "seed": seed})
    if (folder / DONE_FILE).exists():
        tell(1.0)
        return folder
    regions = _regions(chosen)
    places = {one.name: folder / "regions" / one.name for one in regions}
    jobs = [(write_region, (places[one.name], one, chosen, seed)) for one in regions]
    tell(f"regions 1 to {len(regions)}")
    _each(jobs, workers, lambda share: tell(_REGION_SHARE * share))
    tell("stations")
    write_archives(
        folder / "ismn", places, seed, lambda s: tell(_REGION_SHARE + _ARCHIVE_SHARE * s)
    )
    tell("SMAP")
    done = _REGION_SHARE + _ARCHIVE_SHARE
    write_granules(folder / "smap", places, chosen, seed, lambda s: tell(done + (1 - done) * s))
    write_text(folder / "README.md", _readme(chosen, seed))
    _write_whole(folder / DONE_FILE, {"format": FORMAT})
    return folder


def _regions(size: Size) -> tuple[Region, ...]:
    return REGIONS[: size.regions]


def _agree(folder: Path, settings: dict[str, Any]) -> None:
    """Begin a twin, or go on with the same one."""
    file = folder / SETTINGS_FILE
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        if known != settings:
            other = [k for k in settings if known.get(k) != settings[k]]
            msg = (
                f"{folder} holds a twin of another {', '.join(other)}: "
                f"{known['size']['name']!r}, seed {known['seed']}; choose another folder"
            )
            raise FileExistsError(msg)
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder} exists and is no twin; choose another folder"
        raise FileExistsError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(file, settings)


def _write_whole(file: Path, content: Mapping[str, Any]) -> None:
    write_whole(file, json.dumps(content, indent=1) + "\n")


def twin_settings(path: str | os.PathLike[str]) -> tuple[Size, int]:
    """Size and seed of a twin.

    Lazy: reads its settings alone.

    Raises
    ------
    FileNotFoundError
        When the folder holds no complete twin.
    ValueError
        When another version made it.
    """
    folder = Path(path)
    if not (folder / SETTINGS_FILE).exists() or not (folder / DONE_FILE).exists():
        state = "an unfinished twin" if (folder / SETTINGS_FILE).exists() else "no twin"
        msg = f"{folder} holds {state}; make it with `xsoilsm simulate --twin SIZE {folder}`"
        raise FileNotFoundError(msg)
    known = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    if known["format"] != FORMAT:
        msg = f"{folder} has the form {known['format']}, this version reads {FORMAT}; make it anew"
        raise ValueError(msg)
    return Size(**known["size"]), int(known["seed"])


# --------------------------------------------------------------------------- samples


def twin_samples(
    path: str | os.PathLike[str],
    *,
    contract: str = "paper",
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[xr.Dataset, xr.Dataset]:
    """Take the samples of a twin from its files, or read those taken before.

    Computes: reads the archives and granules, and the cells that hold truth on the days of
    acquisitions. The samples are kept in the twin's folder; what an earlier call had finished is
    not done again.

    Parameters
    ----------
    path : path
        Folder of `simulate_twin`.
    contract : str, default "paper"
        Contract of the features.
    workers : int, optional
        Processes; as many as there are processors where it is left out.
    progress : callable, optional
        Called with a text when a step begins, and with the share of work that is done.

    Returns
    -------
    coarse : Dataset
        Samples at 9 km, labelled by SMAP; as of `xsoilsm.samples.read_samples`. `station` names
        the region.
    stations : Dataset
        Samples at 1 km, labelled by stations.

    Raises
    ------
    FileNotFoundError
        When the folder holds no complete twin.
    CatalogError
        When the contract is unknown.
    """
    from xsoilsm.samples import read_samples

    folder, tell = Path(path), progress or (lambda _: None)
    size, seed = twin_settings(folder)
    names = [one.name for one in _regions(size)]
    known = get_contract(contract)
    target = folder / "samples" / known.name
    done = {"format": FORMAT, "contract": known.digest}
    marker = target / DONE_FILE
    if not marker.exists() or json.loads(marker.read_text(encoding="utf-8")) != done:
        reports = _take(folder, target, size, seed, contract, workers, tell)
        reports.to_csv(target / "left_out.csv", index=False)
        _write_whole(marker, done)
    tell(1.0)
    coarse, fine = (
        read_samples([target / res / name for name in names if (target / res / name).exists()])
        for res in ("9km", "1km")
    )
    return coarse.assign_attrs(simulated=1), fine.assign_attrs(simulated=1)


def _take(
    folder: Path,
    target: Path,
    size: Size,
    seed: int,
    contract: str,
    workers: int | None,
    tell: Progress,
) -> pd.DataFrame:
    """Read truth, take all samples, and report what was left out."""
    from xsoilsm.truth import read_ismn, read_smap

    tell("stations")
    stations = read_ismn(sorted((folder / "ismn").glob("*.zip")))
    tell(0.05)
    tell("SMAP")
    smap = read_smap(folder / "smap", _cells(size, seed))
    tell(0.2)
    tell("samples")
    jobs = []
    for one in _regions(size):
        home = folder / "regions" / one.name
        for res, truth in (
            ("9km", _only(smap, smap.table["station"] == one.name)),
            ("1km", _only(stations, _of_region(stations.table, home))),
        ):
            if not truth.table.empty:
                place = target / res / one.name
                jobs.append((_build, (truth, place, res, home / CATALOG_FILE, contract)))
    reports = _each(jobs, workers, lambda share: tell(0.2 + 0.8 * share))
    whole = [stations.report, smap.report, *reports]
    return pd.DataFrame(pd.concat(whole, ignore_index=True))


def _cells(size: Size, seed: int) -> pd.DataFrame:
    """All 9 km cells of a twin, named by their region."""
    parts = []
    for one in _regions(size):
        row, column, count = make_place(one, size, seed).block
        rows, columns = np.meshgrid(np.arange(count) + row, np.arange(count) + column)
        part = pd.DataFrame({"row": rows.ravel(), "column": columns.ravel()})
        parts.append(part.assign(network="SMAP", station=one.name, climate=one.koppen))
    return pd.DataFrame(pd.concat(parts, ignore_index=True))


def _of_region(table: pd.DataFrame, home: Path) -> pd.Series:
    """Which rows of stations are of a region."""
    own = pd.read_csv(home / STATION_FILE)["station"]
    return table["station"].isin(own)


def _only(truth: Truth, rows: pd.Series) -> Truth:
    from xsoilsm.truth.table import Remarks, Truth

    return Truth(truth.table[rows].reset_index(drop=True), Remarks().table(), truth.max_gap)


def _build(truth: Truth, place: Path, res: str, catalog: Path, contract: str) -> pd.DataFrame:
    import dask

    from xsoilsm.samples import build_samples

    # Processes share the processors already, and parts are small.
    with dask.config.set(scheduler="synchronous"):
        built = build_samples(
            truth, place, res=res, catalog=catalog, contract=contract, together=True
        )
    return built.report


# --------------------------------------------------------------------------- processes

Job = tuple[Callable[..., Any], tuple[Any, ...]]


def _each(jobs: Iterable[Job], workers: int | None, tell: Callable[[float], object]) -> list[Any]:
    """Results of jobs in their order; one process each where there are several workers."""
    known = list(jobs)
    count = min(len(os.sched_getaffinity(0)) if workers is None else workers, len(known))
    tell(0.0)
    if count <= 1:
        results = []
        for number, (work, arguments) in enumerate(known, 1):
            results.append(work(*arguments))
            tell(number / len(known))
        return results
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(work, *arguments) for work, arguments in known]
        open_ones = set(futures)
        try:
            while open_ones:
                finished, open_ones = wait(open_ones, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                tell(1 - len(open_ones) / len(known))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _readme(size: Size, seed: int) -> str:
    """Text for people who find the folder."""
    return f"""# Twin experiment (simulated)

Simulated by xsoilsm; nothing in this folder is an observation. Size {size.name!r}, seed {seed}:
{size.regions} regions of {size.cells} x {size.cells} cells of 9 km, {size.first} to {size.last}.

* `regions/NAME/catalog.yaml`: catalog of a region for `xsoilsm.open_catalog`; `catalog.json` is
  its static STAC catalog; `truth_9km.parquet` and `truth_1km.parquet` hold the true daily soil
  moisture of the top 5 cm, `stations.csv` the places of stations.
* `ismn/NETWORK.zip`: archives in the formats of the International Soil Moisture Network.
* `smap/*.h5`: granules in the form of SPL3SMP_E.
* `samples/`: samples that `xsoilsm.simulate.twin.twin_samples` took from all of these.
"""
