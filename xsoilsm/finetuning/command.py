"""Step 5 of 7 (networks): from files to an ensemble; what ``xsoilsm finetune`` calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from xsoilsm.catalog import Catalog
from xsoilsm.cube import CubeError
from xsoilsm.finetuning.folds import portion
from xsoilsm.finetuning.gather import Stations, read_truth, truth_digest
from xsoilsm.finetuning.local import Finetuned, finetune, tune
from xsoilsm.finetuning.settings import Settings, workplace
from xsoilsm.samples import build_samples, read_samples
from xsoilsm.timespan import Time
from xsoilsm.training import Recipe

__all__ = ["finetune_files"]


def finetune_files(
    stations: Stations,
    name: str,
    *,
    cube: str | os.PathLike[str] | None = None,
    catalog: str | os.PathLike[str] | Catalog = "planetary-computer",
    res: str | None = None,
    time: Time | None = None,
    min_coverage: float = 0.5,
    together: bool = False,
    members: Sequence[str] = (),
    settings: Sequence[str] = (),
    restart: bool = False,
    progress: Callable[[float | str], None] | None = None,
    **options: Any,
) -> Finetuned:
    """Fine-tune from files: stations, and a cube on disk or what a catalog has for them.

    Computes. With a catalog it reads the cells that hold stations on the days that have truth,
    see `xsoilsm.samples.build_samples`. An interrupted call goes on when it is made again.

    Parameters
    ----------
    stations : Truth, DataFrame, path or sequence of paths
        See `xsoilsm.finetuning.read_truth`.
    name : str
    cube : path, optional
        Cube in map form, ``.zarr`` or ``.nc``; takes the place of the catalog.
    catalog : str, path or Catalog, default "planetary-computer"
    res : {"9km", "1km", "500m", "100m"}, optional
        Grid; ``"1km"`` by default, for a cube its own.
    time : str, (start, end) or slice, optional
        Days; all that have truth by default.
    min_coverage, together
        See `xsoilsm.samples.build_samples`.
    members : sequence of str
        ``"depth-width"``; default all of the base.
    settings : sequence of str
        ``"name=value"`` of `xsoilsm.training.Recipe.transfer`.
    restart, progress, **options
        See `xsoilsm.finetuning.finetune`.

    Returns
    -------
    Finetuned

    Raises
    ------
    CubeError
        When the cube cannot be read.
    ValueError, FileExistsError, WeightsError, TrainingError
        See `xsoilsm.finetuning.finetune`.
    """
    from xsoilsm.training.command import read_settings, read_shape

    if settings:
        options["recipe"] = Recipe.transfer(**read_settings(settings))
    if members:
        options["shapes"] = [read_shape(label) for label in members]
    common: dict[str, Any] = {"min_coverage": min_coverage, "restart": restart}
    if cube is not None:
        with _opened(cube) as opened:
            chosen = opened if time is None else opened.sel(time=_days(time))
            return finetune(chosen, stations, name, res=res, progress=progress, **common, **options)
    wanted = Settings(name, **options)
    start = wanted.prepare()
    truth = read_truth(stations)
    if wanted.simulated is None:
        wanted = Settings(name, **{**options, "simulated": _is_landscape(catalog)})
    first, rest = portion(progress, 0.0, 0.5), portion(progress, 0.5, 1.0)
    with workplace(name, restart) as folder:
        built = build_samples(
            truth,
            folder / "samples",
            res=res,
            time=time,
            catalog=catalog,
            contract=start.base.contract,
            min_coverage=min_coverage,
            inputs=False,
            together=together,
            progress=None if first is None else lambda done, of: first(done / max(of, 1)),
        )
        samples = read_samples(built.path)
        digest = truth_digest(truth)
        return tune(samples, built.report, wanted, start, folder, digest=digest, progress=rest)


def _opened(path: str | os.PathLike[str]) -> xr.Dataset:
    place = Path(path).expanduser()
    if place.suffix not in (".zarr", ".nc"):
        msg = f"{place} is no cube on disk; expected a name that ends in .zarr or .nc"
        raise CubeError(msg)
    try:
        if place.suffix == ".zarr":
            options: dict[str, Any] = {"engine": "zarr", "consolidated": False}
        else:
            options = {}
        return xr.open_dataset(place, chunks={}, decode_coords="all", **options)
    except (OSError, ValueError, KeyError) as error:
        told = " ".join(str(error).split())[:300]
        msg = f"cannot read a cube from {place}: {told}"
        raise CubeError(msg) from error


def _days(time: Time) -> slice:
    from xsoilsm.timespan import days_of

    start, end = days_of(time)
    return slice(str(start), str(end))


def _is_landscape(catalog: str | os.PathLike[str] | Catalog) -> bool | None:
    """Whether a catalog says that its data are simulated; None where it does not say."""
    from xsoilsm.catalog import open_catalog

    found = catalog if isinstance(catalog, Catalog) else open_catalog(catalog)
    return True if "simulated" in f"{found.name} {found.title}".lower() else None
