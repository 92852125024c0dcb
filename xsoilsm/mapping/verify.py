"""Step 7 of 7 (write): prove what lies in a job's folder, and bring the ledger in line with it.

The files are the truth, the ledger is a record of it. Each file says in its tags of which job,
product and tile it is, and proves its pixels by checksums (`xsoilsm.cog.verify_cog`), so a ledger
can be made from the files alone, and a tile that was finished just before a process was killed
is found and not made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import rasterio

from xsoilsm.cog import verify_cog
from xsoilsm.mapping.job import Configuration, Job
from xsoilsm.mapping.ledger import Ledger, LedgerDamagedError
from xsoilsm.mapping.plan import Plan
from xsoilsm.mapping.tile import (
    INCOMPLETE_TAG,
    JOB_TAG,
    PRODUCT_TAG,
    TILE_TAG,
    digest_of,
    folder_of,
)
from xsoilsm.products import PRODUCTS

__all__ = ["check_files", "open_ledger", "remove_scratch", "variables_of"]

_THREADS = 4


def variables_of(configuration: Configuration) -> tuple[str, ...]:
    """Variables of which each tile has a file. Lazy: reads nothing."""
    if configuration.composite != "none":
        return (*PRODUCTS, "observations")
    domain = ("domain_distance", "clipped_inputs") if configuration.retrieve.get("domain") else ()
    return (*PRODUCTS, *domain)


def open_ledger(job: Job, plan: Plan) -> Ledger:
    """Open a job's ledger, made anew where it is lost, with finished tiles entered.

    Computes: verifies the files of tiles that the ledger does not know as done. The job's lock
    must be held.

    Parameters
    ----------
    job : Job
    plan : Plan

    Returns
    -------
    Ledger
        Everything in it that is done has its files.
    """
    remove_scratch(job)
    try:
        ledger = Ledger(job.ledger, job.hash)
    except LedgerDamagedError:
        chosen = job.configuration
        about = {
            "configuration": job.hash,
            "ensemble": chosen.ensemble_digest,
            "catalog": chosen.catalog_digest,
            "code": chosen.code,
            "engine": f"{chosen.engine} on {chosen.device}",
        }
        ledger = Ledger.create(job.ledger, job.hash, about, plan.rows())
    present = _present(job)
    for row in ledger.rows("done"):
        if not set(row.files) <= present.get((row.product, row.tile), frozenset()):
            ledger.mark(row.product, row.tile, "damaged", "files are gone")
    stated = {
        (row.product, row.tile): row.files
        for row in ledger.rows("pending", "failed", "damaged")
        if (row.product, row.tile) in present
    }
    for found in _check(job, stated):
        if found.incomplete:
            ledger.mark(found.product, found.tile, "partial", found.incomplete)
        elif not found.fault and stated[found.product, found.tile] in ({}, found.files):
            ledger.adopt(found.product, found.tile, found.files)
    return ledger


def check_files(job: Job, ledger: Ledger) -> list[tuple[str, str, str]]:
    """Read every file of every finished tile, and enter those that are damaged.

    Computes. The job's lock must be held.

    Parameters
    ----------
    job : Job
    ledger : Ledger

    Returns
    -------
    list of (product, tile, fault)
        What is damaged; the next run makes it anew.
    """
    known = {(row.product, row.tile): row.files for row in ledger.rows("done")}
    damaged = []
    for found in _check(job, known):
        key = found.product, found.tile
        other = [n for n, digest in found.files.items() if known[key].get(n, digest) != digest]
        fault = found.fault or found.incomplete
        if not fault and other:
            fault = f"{', '.join(other)}: not the bytes that were written"
        if fault:
            ledger.mark(*key, "damaged", fault)
            damaged.append((*key, fault))
    return damaged


@dataclass(frozen=True)
class _Found:
    """What lies in the folder of one tile of a product."""

    product: str
    tile: str
    files: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    incomplete: str = ""


def _present(job: Job) -> dict[tuple[str, str], frozenset[str]]:
    """Names of the files of each tile of a product, as they lie in the folder."""
    found: dict[tuple[str, str], frozenset[str]] = {}
    for folder in job.tiles.glob("*/*"):
        files = frozenset(path.name for path in folder.glob("*.tif"))
        if files:
            found[folder.parent.name, folder.name] = files
    return found


def _check(job: Job, tiles: Iterable[tuple[str, str]]) -> Iterator[_Found]:
    """Read all files of some tiles."""
    names = [f"{name}.tif" for name in variables_of(job.configuration)]

    def check(key: tuple[str, str]) -> _Found:
        product, tile = key
        folder = folder_of(job.folder, product, tile)
        expected = {JOB_TAG: job.hash, PRODUCT_TAG: product, TILE_TAG: tile}
        files: dict[str, str] = {}
        incomplete = ""
        try:
            for name in names:
                verify_cog(folder / name)
                with rasterio.open(folder / name) as file:
                    tags = file.tags()
                if any(tags.get(key) != value for key, value in expected.items()):
                    fault = f"{name} is of another job, product or tile"
                    return _Found(product, tile, fault=fault)
                incomplete = incomplete or tags.get(INCOMPLETE_TAG, "")
                files[name] = digest_of(folder / name)
        except OSError as error:
            return _Found(product, tile, fault=error.strerror or str(error))
        return _Found(product, tile, files, incomplete=incomplete)

    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(check, tiles)


def remove_scratch(job: Job) -> None:
    """Remove what processes that were killed left half written."""
    for folder in job.tiles.glob("*/*/.*.tif-*"):
        shutil.rmtree(folder, ignore_errors=True)
