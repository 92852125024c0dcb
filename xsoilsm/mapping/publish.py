"""Step 7 of 7 (write): the mosaics of a job, and what else is made of its tiles.

The ledger knows which tiles failed: their cells say so, where a folder of tiles alone could only
tell that nothing is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from xsoilsm.mapping.inputs import read_catalog
from xsoilsm.mapping.job import Job, JobError, open_job
from xsoilsm.mapping.ledger import read_rows
from xsoilsm.mapping.plan import Plan, Product
from xsoilsm.outputs.folder import Form, composite_end, write_outputs
from xsoilsm.outputs.mosaic import Numbers
from xsoilsm.outputs.pieces import Acquisition, InputItem, Piece
from xsoilsm.outputs.provenance import item_address

__all__ = ["pieces_of", "publish"]


def publish(
    job: Job | str | os.PathLike[str],
    *,
    forms: Sequence[Form] = ("cog", "stac"),
    numbers: Numbers = "float32",
    overwrite: bool = True,
) -> dict[Form, list[Path]]:
    """Put the tiles of a job together, in the job's folder.

    Computes: streams the tiles. What is there already, whole and of the same tiles, is kept.

    Parameters
    ----------
    job : Job or path
        Complete or not: cells of tiles that are not made are missing, with the flag "read
        failed".
    forms : sequence of {"cog", "stac", "zarr", "netcdf"}, default ("cog", "stac")
    numbers : {"float32", "int16"}, default "float32"
        In steps of 0.0001 m3 m-3 as integers.
    overwrite : bool, default True
        Replace what was made of other tiles, as after a retry.

    Returns
    -------
    dict of str to list of Path
        What was written, by form.

    Raises
    ------
    JobError
        When no tile is made yet, or there is no job.
    OSError
        When a tile cannot be read or a file not be written.
    """
    job = job if isinstance(job, Job) else open_job(job)
    pieces = list(pieces_of(job))
    if not any(piece.path for piece in pieces):
        msg = f"no tile of the job in {job.folder} is made yet; run it first"
        raise JobError(msg)
    return write_outputs(
        pieces,
        job.folder,
        forms=forms,
        geobox=job.configuration.geobox,
        numbers=numbers,
        card=job.ensemble().card,
        overwrite=overwrite,
    )


def pieces_of(job: Job) -> Iterator[Piece]:
    """Describe the tiles of a job, made or not. Computes: reads the ledger, no tile.

    Parameters
    ----------
    job : Job

    Yields
    ------
    Piece
        One for each variable of each tile of each product.
    """
    plan = Plan(job)
    acquisitions = dict(_acquisitions(job, plan.products))
    with read_rows(job.ledger) as (_, found):
        rows = list(found)
    names = sorted({name for row in rows for name in row.files if name.endswith(".tif")})
    for row in rows:
        box = plan.tiles[row.tile].geobox
        made = row.state in ("done", "partial")
        for name in names:
            path = job.tiles / row.product / row.tile / name if made else None
            yield Piece(path, box, Path(name).stem, acquisitions[row.product])


def _acquisitions(job: Job, products: Sequence[Product]) -> Iterator[tuple[str, Acquisition]]:
    catalog = read_catalog(job.inputs)
    items = {
        entry.id: InputItem(
            entry.id,
            item_address(catalog, entry.service, entry.collection, entry.id),
            entry.collection,
        )
        for entry in job.entries
        if entry.role == "radar"
    }
    for product in products:
        start = np.datetime64(product.time)
        one = product.acquisitions[0] if not product.period else None
        seen = {name: None for a in product.acquisitions for name, _ in a.items}
        yield (
            product.id,
            Acquisition(
                product.id,
                start,
                end=composite_end(start, product.period) if product.period else None,
                period=product.period,
                platform=one.platform if one else "",
                orbit_state=one.orbit_state if one else "",
                relative_orbit=one.relative_orbit if one else None,
                items=tuple(items.get(name, InputItem(name)) for name in seen),
            ),
        )
