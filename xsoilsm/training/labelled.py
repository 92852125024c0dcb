"""Step 5 of 7 (networks): samples with their truth, checked before anything is trained on them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from xsoilsm.contract import Contract, get_contract
from xsoilsm.cube import CubeError
from xsoilsm.features import compute_features
from xsoilsm.grid import get_grid
from xsoilsm.state import SERIES_SHAPE, SNAPSHOT_FEATURES

__all__ = ["LABEL", "Samples"]

LABEL = "soil_moisture"
"""Name of the variable with the truth in a cube in sample form."""

LARGEST = 1.0  # m3 m-3; more water than space is a unit error
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Samples:
    """Normalised inputs of the networks with, or without, their truth.

    Parameters
    ----------
    snapshot : (n, 18) ndarray of float32
    series : (n, 3, 46) ndarray of float32
        Oldest step first.
    labels : (n,) ndarray of float32, optional
        Soil moisture in m3 m-3; None for unlabelled samples.
    contract : Contract
        Under which the inputs were computed.
    resolution : {"9km", "1km", "500m", "100m"}
        Cells over which inputs were averaged.
    sites : (n,) ndarray, optional
        Cell or station of each sample, for balanced drawing.

    Raises
    ------
    ValueError
        When shapes, inputs or labels are not what a training needs; each fault is named.
    """

    snapshot: Float32
    series: Float32
    labels: Float32 | None
    contract: Contract
    resolution: str
    sites: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        n = len(self.snapshot)
        shapes = (n, SNAPSHOT_FEATURES), (n, *SERIES_SHAPE)
        if (self.snapshot.shape, self.series.shape) != shapes:
            msg = (
                f"snapshot has shape {self.snapshot.shape} and series {self.series.shape}; "
                f"expected (n, {SNAPSHOT_FEATURES}) and (n, {SERIES_SHAPE[0]}, {SERIES_SHAPE[1]})"
            )
            raise ValueError(msg)
        object.__setattr__(self, "resolution", get_grid(self.resolution).name)
        bad = ~(np.isfinite(self.snapshot).all(axis=1) & np.isfinite(self.series).all(axis=(1, 2)))
        if bad.any():
            msg = (
                f"{bad.sum()} of {n} samples lack an input (the first is sample {bad.argmax()}); "
                "leave them out before training"
            )
            raise ValueError(msg)
        if self.sites is not None and np.shape(self.sites) != (n,):
            msg = f"sites has shape {np.shape(self.sites)}; expected ({n},), one per sample"
            raise ValueError(msg)
        if self.labels is not None:
            check_labels(self.labels, n)

    def __len__(self) -> int:
        return len(self.snapshot)

    @classmethod
    def of_arrays(
        cls,
        features: xr.Dataset | tuple[npt.ArrayLike, npt.ArrayLike],
        labels: npt.ArrayLike | None,
        *,
        contract: str | Mapping[str, Any] | Contract | None = None,
        resolution: str = "1km",
        sites: npt.ArrayLike | None = None,
    ) -> Samples:
        """Make samples from features and labels.

        Computes.

        Parameters
        ----------
        features : Dataset or (snapshot, series)
            What `xsoilsm.compute_features` gives of a cube in sample form, or the arrays
            (n, 18) and (n, 3, 46).
        labels : (n,) array_like, optional
            Soil moisture in m3 m-3.
        contract : str, mapping or Contract, optional
            Of the features; needed for arrays, as a Dataset names its own.
        resolution : str, default "1km"
        sites : (n,) array_like, optional

        Returns
        -------
        Samples

        Raises
        ------
        ValueError
            When something is missing, not finite, or in other units.
        """
        if isinstance(features, xr.Dataset):
            pair: tuple[npt.ArrayLike, npt.ArrayLike] = _of_dataset(features)
            named = features.attrs.get("contract")
            contract = contract if contract is not None else named
            digest = features.attrs.get("contract_digest")
            if contract is not None and digest not in (None, get_contract(contract).digest):
                msg = (
                    f"the features were computed under the contract {named!r} with digest "
                    f"{str(digest)[:12]}, which is not that of {get_contract(contract).name!r}; "
                    "compute them again under that one, or pass the contract they were given"
                )
                raise ValueError(msg)
        else:
            pair = features
        if contract is None:
            msg = "the features do not name their contract; pass contract=, for instance 'paper'"
            raise ValueError(msg)
        snapshot, series = (np.ascontiguousarray(a, dtype=np.float32) for a in pair)
        truth = None if labels is None else _plain(labels)
        places = None if sites is None else np.asarray(sites)
        return cls(snapshot, series, truth, get_contract(contract), resolution, places)

    @classmethod
    def of_cube(
        cls,
        cube: xr.Dataset,
        contract: str | Mapping[str, Any] | Contract | None = None,
        *,
        resolution: str | None = None,
        label: str | None = LABEL,
        site: str | None = None,
    ) -> Samples:
        """Make samples from a cube in sample form, or from a table of samples.

        Computes.

        Parameters
        ----------
        cube : Dataset
            Sample form, see `xsoilsm.cube`, with the truth in `label`. Where it holds features
            already, as tables of `xsoilsm.samples` do, these are taken.
        contract : str, mapping or Contract, optional
            Default: that of the features, else ``"published-coarse"``.
        resolution : str, optional
            Default: the attribute ``resolution`` of the cube, else ``"1km"``.
        label : str, optional
            Variable with the truth in m3 m-3; None for unlabelled samples.
        site : str, optional
            Coordinate or variable that names the cell or station. Default: the cell by ``row``
            and ``column``, or ``station``, where the cube has them.

        Returns
        -------
        Samples

        Raises
        ------
        CubeError
            When the cube is not in sample form or lacks the label or the site.
        ValueError
            When values are missing, not finite or in other units.
        """
        if "sample" not in cube.dims:
            msg = f"the cube has dims {tuple(cube.dims)}; training needs the sample form"
            raise CubeError(msg)
        for name in (label, site):
            if name is not None and name not in cube:
                msg = f"the cube has no variable {name!r}; expected it along 'sample'"
                raise CubeError(msg)
        labels = None
        if label is not None:
            units = str(cube[label].attrs.get("units", "m3 m-3"))
            if units.strip() in ("%", "percent", "vol%", "vol.%"):
                msg = f"{label!r} has units {units!r}; expected m3 m-3: divide it by 100"
                raise CubeError(msg)
            labels = cube[label].values
        features = cube
        if "snapshot" not in cube:
            contract = contract or "published-coarse"
            features = compute_features(cube.drop_vars(label) if label else cube, contract)
        return cls.of_arrays(
            features,
            labels,
            contract=contract,
            resolution=resolution or str(cube.attrs.get("resolution", "1km")),
            sites=_sites(cube, site),
        )

    @classmethod
    def read(
        cls, path: str | Path, contract: str | Contract | None = None, **options: Any
    ) -> Samples:
        """Read samples from Parquet, or a cube in sample form from Zarr or NetCDF.

        Computes.

        Parameters
        ----------
        path : path
            A Parquet file or folder of `xsoilsm.samples`, or ends in ``.zarr`` or ``.nc``.
        contract : str or Contract, optional
            As for `of_cube`.
        **options
            As for `of_cube`.

        Returns
        -------
        Samples

        Raises
        ------
        CubeError
            When the file cannot be read as a cube.
        ValueError
            As for `of_cube`.
        """
        path = Path(path).expanduser()
        if path.suffix not in (".zarr", ".nc"):
            from xsoilsm.samples import read_samples

            return cls.of_cube(read_samples(path), contract, **options)
        try:
            store = path.suffix == ".zarr"
            cube = xr.open_zarr(path) if store else xr.open_dataset(path)
            with cube:
                cube.load()
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            msg = f"cannot read a cube in sample form from {path}: {reason}"
            raise CubeError(msg) from error
        return cls.of_cube(cube, contract, **options)

    def take(self, index: npt.NDArray[Any]) -> Samples:
        """Choose some of the samples.

        Parameters
        ----------
        index : (k,) ndarray of int or (n,) ndarray of bool
        """
        return Samples(
            self.snapshot[index],
            self.series[index],
            None if self.labels is None else self.labels[index],
            self.contract,
            self.resolution,
            None if self.sites is None else self.sites[index],
        )

    @property
    def digest(self) -> str:
        """SHA-256 of inputs, labels, contract and grid, for the record of a training."""
        content = hashlib.sha256(f"{self.contract.digest} {self.resolution} {len(self)}".encode())
        for array in (self.snapshot, self.series, self.labels):
            if array is not None:
                content.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
        if self.sites is not None:
            content.update(repr(np.unique(self.sites, return_inverse=True)[1].tolist()).encode())
        return content.hexdigest()


def _sites(cube: xr.Dataset, site: str | None) -> npt.NDArray[Any] | None:
    """Name the place of each sample, if the cube does."""
    if site is None and "row" in cube and "column" in cube:
        cells = np.stack([cube["row"].values, cube["column"].values], axis=1)
        return np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)
    site = site or ("station" if "station" in cube else None)
    return None if site is None else cube[site].values


def _of_dataset(features: xr.Dataset) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    for name, dims in (("snapshot", ("feature",)), ("series", ("channel", "step"))):
        if name not in features or set(features[name].dims) != {"sample", *dims}:
            found = features[name].dims if name in features else "no such variable"
            msg = (
                f"{name!r} of the features has dims {found}; expected ('sample', "
                f"{', '.join(map(repr, dims))}), as compute_features gives of the sample form"
            )
            raise CubeError(msg)
    snapshot = features["snapshot"].transpose("sample", "feature").values
    return snapshot, features["series"].transpose("sample", "channel", "step").values


def _plain(labels: npt.ArrayLike) -> Float32:
    try:
        return np.asarray(labels, dtype=np.float32)
    except (TypeError, ValueError) as error:
        msg = f"labels are not numbers ({error}); expected soil moisture in m3 m-3"
        raise ValueError(msg) from error


def check_labels(labels: Float32, n: int) -> None:
    """Refuse labels that no training should see.

    Raises
    ------
    ValueError
        When they are missing, in percent, outside 0 to 1, or all the same.
    """
    if labels.shape != (n,):
        msg = f"labels have shape {labels.shape}; expected ({n},), one per sample"
        raise ValueError(msg)
    bad = ~np.isfinite(labels)
    if bad.any():
        msg = (
            f"{bad.sum()} of {n} labels are not numbers (the first is sample {bad.argmax()}); "
            "leave these samples out before training"
        )
        raise ValueError(msg)
    if not n:
        return
    low, high = float(labels.min()), float(labels.max())
    if high > LARGEST:
        hint = "they look like percent: divide them by 100" if high <= 100 else "check their units"
        msg = f"labels reach {high:g}; expected soil moisture from 0 to 1 m3 m-3: {hint}"
        raise ValueError(msg)
    if low < 0:
        msg = (
            f"{(labels < 0).sum()} of {n} labels are negative, down to {low:g} m3 m-3; check the "
            "fill value of the truth and leave these samples out"
        )
        raise ValueError(msg)
    if n > 1 and high - low < 1e-6:
        msg = f"all {n} labels are {low:g} m3 m-3; a network learns nothing from a constant"
        raise ValueError(msg)
