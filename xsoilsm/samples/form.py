"""Outside the seven steps (samples): the table of samples, in memory and as Parquet.

In memory samples are a Dataset with one dim ``sample``: the inputs of the networks under a
contract (``snapshot``, ``series``), the truth (``soil_moisture``), and coordinates that say of
which place, day and station they are. Where the physical inputs are kept too, they have the
names and units of a cube in sample form, and another contract can be put upon them.

In Parquet each sample is a row; vectors are lists of fixed size. The contract stands in the
file's metadata and its hash in a column of its own, so that samples and contract never part.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xsoilsm.contract import Contract, get_contract
from xsoilsm.cube import VARIABLES
from xsoilsm.features import compute_features

__all__ = [
    "FORM",
    "IDENTITY",
    "PLAN",
    "check_contract",
    "encode_samples",
    "read_metadata",
    "read_samples",
    "write_samples",
]

FORM = 1
"""Version of the form of the files."""

IDENTITY: dict[str, Any] = {
    "row": np.int64,
    "column": np.int64,
    "lat": np.float64,
    "lon": np.float64,
    "time": "datetime64[ns]",
    "network": object,
    "station": object,
    "land_cover": object,
    "climate": object,
}
"""Coordinates that every sample has, with their types; row and column are those of the cell."""

_METADATA = b"xsoilsm"
PLAN = "_plan.json"
"""File of a folder of samples that says of what they are made."""

_REENCODE = "xsoilsm.samples.encode_samples(samples, contract)"


# --------------------------------------------------------------------------- contracts


def encode_samples(samples: xr.Dataset, contract: str | Mapping[str, Any] | Contract) -> xr.Dataset:
    """Put samples under a contract.

    Computes.

    Parameters
    ----------
    samples : Dataset
        Sample form with the physical inputs, see `xsoilsm.cube`; further variables and
        coordinates along ``sample`` stay.
    contract : str, mapping or Contract

    Returns
    -------
    Dataset
        `samples` with ``snapshot``, ``series`` and ``clipped`` under the contract.

    Raises
    ------
    ValueError
        When the samples do not hold the physical inputs.
    CatalogError
        When the contract is unknown.
    """
    wanted = get_contract(contract)
    lacking = [n for n, v in VARIABLES.items() if v.required and n not in samples]
    if lacking:
        msg = (
            f"the samples hold no {', '.join(lacking)}, so they cannot be put under another "
            "contract; build them with inputs=True"
        )
        raise ValueError(msg)
    bare = samples.drop_vars(["snapshot", "series", "clipped"], errors="ignore")
    bare = bare.drop_dims([d for d in ("feature", "channel") if d in bare.dims])
    cube = bare[[n for n in VARIABLES if n in bare]]
    # As chunks: what was loaded is in the schema's units and is not to be judged by its values.
    features = compute_features(cube.chunk(), wanted).compute()
    names = ("snapshot", "series", "clipped")
    result = bare.assign({name: features[name].variable for name in names})
    result = result.assign_coords(feature=list(wanted.features), channel=list(wanted.channels))
    return result.assign_attrs(contract=wanted.name, contract_digest=wanted.digest)


def check_contract(samples: xr.Dataset, contract: str | Mapping[str, Any] | Contract) -> None:
    """Refuse samples that are under another contract than an ensemble.

    Lazy: compares hashes.

    Raises
    ------
    ValueError
        When the hashes differ.
    """
    wanted = get_contract(contract)
    found = samples.attrs.get("contract_digest")
    if found != wanted.digest:
        msg = (
            f"the samples are under the contract {samples.attrs.get('contract')!r} "
            f"({str(found)[:12]}), expected {wanted.name!r} ({wanted.digest[:12]}); put them "
            f"under it with {_REENCODE}, or build them anew"
        )
        raise ValueError(msg)


# --------------------------------------------------------------------------- files


def write_samples(samples: xr.Dataset, path: str | os.PathLike[str], **notes: Any) -> Path:
    """Write samples as one Parquet file.

    Computes. The file appears under its name when it is complete and was read back.

    Parameters
    ----------
    samples : Dataset
        With ``snapshot``, ``series``, ``soil_moisture``, the coordinates of `IDENTITY` and the
        attributes contract_digest and resolution.
    path : path
        Ends in ``.parquet``.
    **notes
        What else is to stand in the file's metadata; plain data.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ValueError
        When something is missing.
    OSError
        When the file that was written cannot be read back.
    """
    import pyarrow.parquet as pq

    target = Path(path)
    table = _to_arrow(samples, notes)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, scratch, compression="zstd", write_statistics=True)
        if pq.read_table(scratch).num_rows != table.num_rows:
            msg = f"{scratch} does not hold the {table.num_rows} samples that were written"
            raise OSError(msg)
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
    return target


def _to_arrow(samples: xr.Dataset, notes: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    lacking = [n for n in ("snapshot", "series", "soil_moisture", *IDENTITY) if n not in samples]
    lacking += [n for n in ("contract_digest", "resolution") if n not in samples.attrs]
    if lacking:
        msg = f"the samples lack {', '.join(lacking)}; make them with build_samples"
        raise ValueError(msg)
    size = samples.sizes["sample"]
    columns: dict[str, Any] = {}
    for name, data in samples.variables.items():
        if data.dims[:1] != ("sample",):
            continue
        values = data.values
        if values.ndim > 1:
            flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).ravel())
            columns[str(name)] = pa.FixedSizeListArray.from_arrays(
                flat, int(np.prod(values.shape[1:]))
            )
        elif values.dtype.kind in "OUT":
            columns[str(name)] = pa.array(values.astype(object), pa.string()).dictionary_encode()
        else:
            columns[str(name)] = pa.array(values)
    days = samples["time"].values.astype("datetime64[D]")
    columns["date"] = pa.array(days)
    digest = pa.array([samples.attrs["contract_digest"]] * size, pa.string())
    columns["contract"] = digest.dictionary_encode()
    shapes = {
        str(name): list(data.shape[1:])
        for name, data in samples.variables.items()
        if data.dims[:1] == ("sample",) and data.ndim > 1
    }
    content = {
        "form": FORM,
        "attrs": {k: v for k, v in samples.attrs.items() if isinstance(v, (str, int, float))},
        "features": [str(n) for n in samples["feature"].values],
        "channels": [str(n) for n in samples["channel"].values],
        "shapes": shapes,
        "notes": dict(notes),
    }
    table = pa.table(columns)
    return table.replace_schema_metadata({_METADATA: json.dumps(content).encode()})


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Metadata of one file of samples.

    Lazy: reads the footer.

    Raises
    ------
    ValueError
        When the file is not one of samples, or is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        stored = (pq.read_schema(path).metadata or {}).get(_METADATA)
    except (pa.ArrowException, OSError) as error:
        msg = f"{path} cannot be read as Parquet: {error}"
        raise ValueError(msg) from error
    if stored is None:
        msg = f"{path} is a Parquet file, but not one of samples; make one with build_samples"
        raise ValueError(msg)
    content: dict[str, Any] = json.loads(stored)
    if content["form"] != FORM:
        msg = f"{path} has the form {content['form']}, this version reads {FORM}; build it anew"
        raise ValueError(msg)
    return content


def read_samples(
    path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    inputs: bool = True,
    partial: bool = False,
) -> xr.Dataset:
    """Read samples.

    Computes.

    Parameters
    ----------
    path : path or iterable of paths
        Files, or folders of `build_samples`.
    inputs : bool, default True
        Read the physical inputs too, where they were kept.
    partial : bool, default False
        Read a folder whose building was interrupted.

    Returns
    -------
    Dataset
        ``snapshot`` (sample, feature), ``series`` (sample, channel, step), ``soil_moisture``
        (sample) in m3 m-3, physical inputs, and the coordinates of `IDENTITY` and more.

    Raises
    ------
    FileNotFoundError
        When there is no file.
    ValueError
        When a folder is incomplete, a file is damaged, or files are of different contracts or
        grids.
    """
    given = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    files = [file for one in given for file in _files(Path(one), partial)]
    contents = [read_metadata(file) for file in files]
    for what in ("contract_digest", "resolution"):
        found = sorted({str(content["attrs"].get(what)) for content in contents})
        if len(found) > 1:
            msg = f"samples of different {what} cannot be put together: {', '.join(found)}"
            raise ValueError(msg)
    first = contents[0]
    skipped = {"date", "contract"} | (set() if inputs else set(VARIABLES))
    parts = [_from_arrow(file, first["shapes"], skipped) for file in files]
    # A part without samples does not know all columns.
    parts = [part for part in parts if part["soil_moisture"].size] or parts[:1]
    variables: dict[str, Any] = {}
    for name in parts[0]:
        if all(name in part for part in parts):
            values = np.concatenate([part[name] for part in parts])
            variables[name] = (_dims(name, values.ndim), values, _attributes(name))
    coords: dict[str, Any] = {n: variables.pop(n) for n in list(variables) if _is_coordinate(n)}
    coords |= {
        "feature": ("feature", first["features"], {}),
        "channel": ("channel", first["channels"], {}),
    }
    samples = xr.Dataset(variables, coords, first["attrs"])
    for name in ("sigma0_vv", "sigma0_vh"):
        if name in samples and "averaging" in samples.attrs:
            samples[name].attrs["averaging"] = samples.attrs["averaging"]
    return samples


def _files(path: Path, partial: bool) -> list[Path]:
    if not path.exists():
        msg = f"{path} does not exist; expected samples in Parquet or a folder of build_samples"
        raise FileNotFoundError(msg)
    if path.is_file():
        return [path]
    files = sorted(path.glob("part-*.parquet"))
    plan = path / PLAN
    if plan.exists():
        parts = json.loads(plan.read_text(encoding="utf-8"))["parts"]
        held = {file.name for file in files}
        missing = [name for name in parts if name not in held]
        files = [path / name for name in parts if name in held]
        if missing and not partial:
            msg = (
                f"{path} holds {len(files)} of {len(parts)} parts; run build_samples again to "
                "complete it, or read what is there with partial=True"
            )
            raise ValueError(msg)
    if not files:
        msg = f"{path} holds no part-*.parquet; expected a folder of build_samples"
        raise FileNotFoundError(msg)
    return files


def _from_arrow(file: Path, shapes: Mapping[str, list[int]], skipped: set[str]) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = [n for n in pq.read_schema(file).names if n not in skipped]
        table = pq.read_table(file, columns=names)
    except (pa.ArrowException, OSError) as error:
        msg = f"{file} cannot be read as Parquet: {error}; delete it and run build_samples again"
        raise ValueError(msg) from error
    arrays: dict[str, Any] = {}
    for name in names:
        column = table[name]
        if name in shapes:
            flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
            values = np.concatenate(flat) if flat else np.empty(0, dtype=np.float32)
            arrays[name] = values.reshape(table.num_rows, *shapes[name])
        elif pa.types.is_dictionary(column.type) or pa.types.is_string(column.type):
            arrays[name] = np.array(column.to_pylist(), dtype=object)
        else:
            arrays[name] = column.to_numpy()
    return arrays


def _is_coordinate(name: str) -> bool:
    return name not in VARIABLES and name not in ("snapshot", "series", "soil_moisture", "clipped")


def _dims(name: str, ndim: int) -> tuple[str, ...]:
    if name == "snapshot":
        return ("sample", "feature")
    if name == "series":
        return ("sample", "channel", "step")
    return ("sample", "step")[:ndim]


def _attributes(name: str) -> dict[str, str]:
    if name in VARIABLES:
        return VARIABLES[name].attributes
    units = {"soil_moisture": "m3 m-3", "snapshot": "1", "series": "1", "clipped": "1"}
    return {"units": units[name]} if name in units else {}
