"""Retrieval over chunked cubes against the bare networks on the same pixels.

Radar, weather and terrain are drawn at random and lie in memory, in chunks as `load_cube` makes
them, so that what is measured is the way from a cube to soil moisture: encoding, networks, flags
and Dask. Rates are values per CPU second of the whole process; one thread.
"""

from __future__ import annotations

import warnings
from functools import partial

import dask
import numpy as np
import xarray as xr

import xsoilsm
from benchmarks.bench_quality import cube_of
from benchmarks.networks import ensemble
from benchmarks.timing import interleave, keep_memory
from xsoilsm.blocks import PIXELS_AT_ONCE
from xsoilsm.engine import Engine
from xsoilsm.features import Block, block_inputs

CHUNKS = (64, 128, 256)


def run(full: bool) -> list[dict[str, object]]:
    keep_memory()
    warnings.simplefilter("ignore")
    networks = ensemble()
    engine = Engine(networks, device="cpu", threads=1)
    return [
        _row(networks, engine, _cube(side, dates), side, dates)
        for side in (CHUNKS if full else CHUNKS[-1:])
        for dates in (1, 2)
    ]


def _cube(side: int, dates: int) -> xr.Dataset:
    """One chunk of acquisitions that see the same periods."""
    cube = cube_of(side, dates)
    first = np.datetime64("2020-06-02T06:00", "ns")
    return cube.assign_coords(time=first + np.arange(dates) * np.timedelta64(3, "D"))


def _row(
    networks: object, engine: Engine, cube: xr.Dataset, side: int, dates: int
) -> dict[str, object]:
    inputs = {name: data for name, (data, _) in block_inputs(cube, networks.contract).items()}
    block = Block.of(networks.contract, inputs)
    encoded = block.encode()
    chunked = cube.chunk(time=1, y=side, x=side)
    contestants = {
        "bare": partial(engine.predict_many, encoded.snapshots, encoded.series, block.ends),
        "encode": partial(_encode, block),
        "retrieve": partial(_retrieve, chunked, networks, together=True),
        "apart": partial(_retrieve, chunked, networks, together=False),
    }
    seconds = interleave(contestants, rounds=2)
    values = encoded.missing.size
    return {
        "chunk": f"{side} x {side}",
        "dates": dates,
        "values": values,
        "bare, values/s": round(values / seconds["bare"]),
        "retrieve, values/s": round(values / seconds["retrieve"]),
        "share of bare": round(seconds["bare"] / seconds["retrieve"], 3),
        "dates apart": round(seconds["bare"] / seconds["apart"], 3),
        "encoding, share": round(seconds["encode"] / seconds["bare"], 3),
    }


def _encode(block: Block) -> None:
    for start in range(0, block.pixels, PIXELS_AT_ONCE):
        block.encode(slice(start, start + PIXELS_AT_ONCE))


def _retrieve(cube: xr.Dataset, networks: object, *, together: bool) -> np.ndarray:
    result = xsoilsm.retrieve(cube, networks, together=together)
    with dask.config.set(scheduler="single-threaded"):
        return result.compute()
