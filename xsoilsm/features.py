"""Step 4 of 7 (features): a cube in physical units becomes normalised inputs under a contract.

Pure and free of torch. The core works on raster layout, (feature, pixel) and
(channel, step, pixel) in float32, so that maps need no transpose; `compute_features` puts
dims around it. Maps, training samples and retrieval all go through the same two functions.

Source of the encodings: the contract (see `xsoilsm.contract`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from xsoilsm import grid, periods
from xsoilsm.checks import check_cube
from xsoilsm.contract import Contract, get_contract
from xsoilsm.cube import VARIABLES, is_sample_form

__all__ = [
    "Block",
    "Encoded",
    "block_inputs",
    "compute_features",
    "encode_series",
    "encode_snapshot",
    "required",
]

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Counts = npt.NDArray[np.uint8]
Inputs = dict[str, tuple[Any, str]]

_SAMPLE_LETTERS = {"sample": "n", "step": "s"}
_PER_ACQUISITION = {"day_of_year"} | {n for n, v in VARIABLES.items() if "time" in v.dims}
_MAP_LETTERS = {"time": "t", "period": "p", "y": "y", "x": "x"}


# --------------------------------------------------------------------------- the core


def encode_series(contract: Contract, values: Mapping[str, Array]) -> tuple[Float32, Counts]:
    """Normalise the series to [0, 1] and count what was clipped.

    Computes.

    Parameters
    ----------
    contract : Contract
    values : mapping of str to (step, pixel) ndarray
        Sources of the channels in the cube's units; any number of steps.

    Returns
    -------
    series : (channel, step, pixel) ndarray of float32
        NaN stays NaN.
    clipped : (step, pixel) ndarray of uint8
        Number of channels outside their range.
    """
    channels = contract.series.channels
    shape = values[channels[0].source].shape
    series = np.empty((len(channels), *shape), dtype=np.float32)
    clipped = np.zeros(shape, dtype=np.uint8)
    for target, channel in zip(series, channels, strict=True):
        low, high = channel.range
        _normalise(values[channel.source], channel.scale, low, high, target, clipped)
    return series, clipped


def encode_snapshot(
    contract: Contract,
    values: Mapping[str, Array],
    series: Float32,
    out: Float32 | None = None,
) -> tuple[Float32, Counts]:
    """Encode the snapshot inputs and count what was clipped.

    Computes.

    Parameters
    ----------
    contract : Contract
    values : mapping of str to (pixel,) ndarray or scalar
        Sources of the inputs in the cube's units; ``row_9km``, ``column_9km`` and
        ``day_of_year`` among them.
    series : (channel, 46, pixel) ndarray of float32
        The normalised series of the window, for the summaries.
    out : (feature, pixel) ndarray of float32, optional
        Where to write.

    Returns
    -------
    snapshot : (feature, pixel) ndarray of float32
    clipped : (pixel,) ndarray of uint8
        Number of inputs outside their range.
    """
    size = series.shape[-1]
    snapshot = np.empty((len(contract.snapshot), size), np.float32) if out is None else out
    clipped = np.zeros(size, dtype=np.uint8)
    order = [channel.source for channel in contract.series.channels]
    for target, item in zip(snapshot, contract.snapshot, strict=True):
        if item.summary == "mean":
            np.mean(series[order.index(item.source)], axis=0, dtype=np.float64, out=target)
        elif item.summary == "last":
            target[...] = series[order.index(item.source)][-1]
        elif item.range is not None:
            _normalise(values[item.source], item.scale, *item.range, target, clipped)
        elif item.cycle is not None:
            angle = np.asarray(values[item.source], np.float64) * (2 * np.pi / item.cycle)
            wave = np.sin(angle) if item.encoding == "sin" else np.cos(angle)
            target[...] = (wave + 1) / 2
    return snapshot, clipped


def _normalise(
    values: Array, scale: float, low: float, high: float, out: Float32, clipped: Counts
) -> None:
    """Write (scale * values - low) / (high - low), clipped to [0, 1], and count the clipped."""
    if np.asarray(values).dtype == np.float32:
        np.multiply(values, np.float32(scale), out=out)
        out -= np.float32(low)
        out /= np.float32(high - low)
    else:
        # Bring the value near zero in its own precision before it is rounded to float32.
        out[...] = (np.asarray(values, np.float64) * scale - low) / (high - low)
    clipped += (out < 0) | (out > 1)
    np.clip(out, 0, 1, out=out)


# --------------------------------------------------------------------------- blocks of a cube


def required(contract: Contract) -> list[str]:
    """Variables of the cube that a contract reads, in the schema's order."""
    used = {entry.source for entry in contract.entries}
    return [name for name in VARIABLES if name in used]


def block_inputs(cube: xr.Dataset, contract: Contract, extras: Sequence[str] = ()) -> Inputs:
    """Arrays of a cube with their index letters, ready for one call per block.

    Lazy: reads nothing of Dask-backed variables.

    Parameters
    ----------
    cube : Dataset
        Map or sample form.
    contract : Contract
    extras : sequence of str, optional
        Further variables of the cube to take along where it has them.

    Returns
    -------
    dict of str to (array, letters)
        The variables that the contract reads and the sources derived from coordinates;
        ``window_end`` is the index of each acquisition's latest period. Letters are t, p, y, x
        (map) or n, s (sample). All arrays are Dask arrays, with periods and steps in one chunk,
        as soon as one variable is; else all are NumPy arrays.
    """
    sample = is_sample_form(cube)
    letters = _SAMPLE_LETTERS if sample else _MAP_LETTERS
    inputs: Inputs = {}
    for name in (*required(contract), *(e for e in extras if e in cube)):
        dims = VARIABLES[name].sample_dims if sample else VARIABLES[name].dims
        inputs[name] = (cube[name].transpose(*dims).data, "".join(letters[d] for d in dims))
    time = cube["time"].values
    day = (time.astype("datetime64[D]") - time.astype("datetime64[Y]")).astype(np.int64) + 1
    axis = "n" if sample else "t"
    inputs["day_of_year"] = (day, axis)
    if sample:
        x, y = grid.lonlat_to_xy(cube["lon"].values, cube["lat"].values)
        row, column = grid.get_grid("9km").index(x, y)
        inputs["row_9km"], inputs["column_9km"] = (row, "n"), (column, "n")
    else:
        cells = grid.get_grid("9km")
        inputs["row_9km"] = (cells.index(0.0, cube["y"].values)[0], "y")
        inputs["column_9km"] = (cells.index(cube["x"].values, 0.0)[1], "x")
        inputs["window_end"] = (periods.window_end(cube["period"].values, time), "t")
    return _unify(inputs)


def _unify(inputs: Inputs) -> Inputs:
    import dask.array as da

    lazy = [(data, letters) for data, letters in inputs.values() if isinstance(data, da.Array)]
    if not lazy:
        return inputs
    whole = {"p": -1, "s": -1}
    lazy = [
        (data.rechunk({i: -1 for i, c in enumerate(letters) if c in whole}), letters)
        for data, letters in lazy
    ]
    chunks, _ = da.core.unify_chunks(*(part for pair in lazy for part in pair))
    unified: Inputs = {}
    for name, (data, letters) in inputs.items():
        wanted = {i: chunks[c] if c in chunks else -1 for i, c in enumerate(letters)}
        if isinstance(data, da.Array):
            unified[name] = (data.rechunk(wanted), letters)
        else:
            unified[name] = (da.from_array(data, chunks=tuple(wanted.values())), letters)
    return unified


class Encoded(NamedTuple):
    """Inputs of the networks for all acquisitions over some pixels.

    Parameters
    ----------
    snapshots : (acquisition, feature, pixel) ndarray of float32
    series : (channel, period, pixel) ndarray of float32
        Each acquisition sees a window of it, which ends at its latest period.
    clipped : (acquisition, pixel) ndarray of uint8
        Number of values outside their range.
    missing : (acquisition, pixel) ndarray of bool
        Whether an input is NaN.
    """

    snapshots: Float32
    series: Float32
    clipped: Counts
    missing: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Block:
    """The inputs of one block of a cube in raster layout, pixels last.

    Parameters
    ----------
    contract : Contract
    values : dict of str to ndarray
        (pixel,) for what does not change, (period, pixel) for series, (acquisition, pixel) for
        radar, (acquisition,) or (1, pixel) for ``day_of_year``.
    ends : (acquisition,) ndarray of int64
        Index of the latest period of each acquisition.
    shape : tuple of int
        (time, y, x) or (sample,).
    """

    contract: Contract
    values: dict[str, Array]
    ends: npt.NDArray[np.int64]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, contract: Contract, arrays: Mapping[str, Array]) -> Block:
        """Lay out the arrays of `block_inputs`, or of one block of them."""
        values: dict[str, Array] = {}
        if "window_end" not in arrays:
            for name, array in arrays.items():
                values[name] = array.T if array.ndim == 2 else array
                if name in _PER_ACQUISITION:
                    values[name] = array[None]
            ends = np.array([contract.series.steps - 1])
            return cls(contract, values, ends, (arrays["row_9km"].size,))
        rows, columns = arrays["row_9km"], arrays["column_9km"]
        for name, array in arrays.items():
            values[name] = array.reshape(*array.shape[:-2], -1) if array.ndim > 1 else array
        values["row_9km"] = np.repeat(rows, columns.size)
        values["column_9km"] = np.tile(columns, rows.size)
        ends = values.pop("window_end")
        return cls(contract, values, ends, (ends.size, rows.size, columns.size))

    @property
    def pixels(self) -> int:
        """Number of pixels of one acquisition."""
        return int(self.values["row_9km"].size)

    def window(self, index: int) -> slice:
        """Periods that an acquisition sees."""
        end = int(self.ends[index])
        return slice(end + 1 - self.contract.series.steps, end + 1)

    def encode(self, part: slice = slice(None)) -> Encoded:
        """Encode some pixels; their series are normalised once for all acquisitions."""
        values = {n: v[..., part] if n != "day_of_year" else v for n, v in self.values.items()}
        series, clipped_steps = encode_series(self.contract, values)
        gaps = np.isnan(series.sum(axis=0))
        pixels = series.shape[-1]
        shape = self.ends.size, len(self.contract.snapshot), pixels
        snapshots = np.empty(shape, np.float32)
        clipped = np.empty((self.ends.size, pixels), np.uint8)
        missing = np.empty((self.ends.size, pixels), np.bool_)
        for index in range(self.ends.size):
            window = self.window(index)
            now = {n: v[index] if n in _PER_ACQUISITION else v for n, v in values.items()}
            if np.ndim(now["day_of_year"]):
                now["day_of_year"] = now["day_of_year"][part]
            snapshot, count = encode_snapshot(
                self.contract, now, series[:, window], out=snapshots[index]
            )
            clipped[index] = count + clipped_steps[window].sum(axis=0, dtype=np.uint8)
            missing[index] = gaps[window].any(axis=0) | np.isnan(snapshot).any(axis=0)
        return Encoded(snapshots, series, clipped, missing)


# --------------------------------------------------------------------------- compute_features


def compute_features(
    cube: xr.Dataset, contract: str | Mapping[str, Any] | Contract = "published-coarse"
) -> xr.Dataset:
    """Turn a cube into the normalised inputs of the networks.

    Lazy on Dask-backed cubes: reads nothing.

    Parameters
    ----------
    cube : Dataset
        Map or sample form, see `xsoilsm.cube`.
    contract : str, mapping or Contract, default "published-coarse"

    Returns
    -------
    Dataset
        ``snapshot`` (..., feature), ``series`` (..., channel, step) in float32 from 0 to 1, and
        ``clipped`` (...), the number of values outside their range (of 18 snapshot inputs less
        the summaries, and of 3 x 46 steps). "..." is (time, y, x) or (sample). Attributes name
        the contract and its digest.

    Raises
    ------
    CubeError
        When the Dataset is not a cube.
    CatalogError
        When the contract is unknown.
    """
    contract = get_contract(contract)
    check_cube(cube, averaging=contract.averaging)
    inputs = block_inputs(cube, contract)
    dims = ("sample",) if is_sample_form(cube) else ("time", "y", "x")
    core = "n" if is_sample_form(cube) else "tyx"
    features = {"f": len(contract.snapshot)}
    steps = {"c": len(contract.series.channels), "s": contract.series.steps}
    snapshot = _apply(inputs, contract, "snapshot", core + "f", features)
    series = _apply(inputs, contract, "series", core + "cs", steps)
    clipped = _apply(inputs, contract, "clipped", core, {})
    coords = {n: c for n, c in cube.coords.items() if set(c.dims) <= set(dims)}
    return xr.Dataset(
        {
            "snapshot": ((*dims, "feature"), snapshot, {"units": "1"}),
            "series": ((*dims, "channel", "step"), series, {"units": "1"}),
            "clipped": (dims, clipped, {"units": "1", "long_name": "number of clipped values"}),
        },
        coords={
            **coords,
            "feature": list(contract.features),
            "channel": list(contract.channels),
        },
        attrs={"contract": contract.name, "contract_digest": contract.digest},
    )


def _apply(
    inputs: Inputs,
    contract: Contract,
    which: Literal["snapshot", "series", "clipped"],
    out: str,
    new_axes: dict[str, int],
) -> Any:
    import dask.array as da

    names = list(inputs)
    if not any(isinstance(data, da.Array) for data, _ in inputs.values()):
        return _encode_block(
            *(data for data, _ in inputs.values()), names=names, contract=contract, which=which
        )
    # Steps of the input are one chunk that a call consumes, so they are no axis of the output.
    pairs = [
        part.replace("s", "r") if isinstance(part, str) else part
        for pair in inputs.values()
        for part in pair
    ]
    dtype = np.uint8 if which == "clipped" else np.float32
    return da.blockwise(
        _encode_block,
        out,
        *pairs,
        names=names,
        contract=contract,
        which=which,
        new_axes=new_axes,
        concatenate=True,
        dtype=dtype,
        meta=np.empty((0,) * len(out), dtype),
    )


def _encode_block(*arrays: Array, names: list[str], contract: Contract, which: str) -> Array:
    block = Block.of(contract, dict(zip(names, arrays, strict=True)))
    encoded = block.encode()
    # Pixels come first in a Dataset: dims are (..., feature), not raster layout.
    if which == "series":
        windows = [encoded.series[:, block.window(index)] for index in range(block.ends.size)]
        stacked = np.stack([np.moveaxis(window, -1, 0) for window in windows])
    else:
        found: Array = encoded.snapshots if which == "snapshot" else encoded.clipped
        stacked = np.moveaxis(found, -1, 1)
    return stacked.reshape(*block.shape, *stacked.shape[2:])
