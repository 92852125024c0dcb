"""The accessor ``ds.sm``: each method is one line over a function of the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from xsoilsm.checks import find_violations, violation_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from xsoilsm.ensemble import Ensemble
    from xsoilsm.evaluation import Evaluation
    from xsoilsm.finetuning import Finetuned

__all__ = ["SoilMoistureAccessor"]


@xr.register_dataset_accessor("sm")  # type: ignore[no-untyped-call]
class SoilMoistureAccessor:
    """Soil moisture methods of a Dataset.

    Parameters
    ----------
    dataset : Dataset
        A cube, or the result of a retrieval.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    def retrieve(
        self, model: str | Path | Ensemble = "DenseSM-E", res: str | None = None, **options: Any
    ) -> xr.Dataset:
        """Retrieve soil moisture, see `xsoilsm.retrieve`. Lazy on Dask-backed cubes."""
        from xsoilsm.retrieval import retrieve

        return retrieve(self._dataset, model, res, **options)

    def features(self, contract: str = "published-coarse") -> xr.Dataset:
        """Compute the networks' inputs, see `xsoilsm.compute_features`. Lazy likewise."""
        from xsoilsm.features import compute_features

        return compute_features(self._dataset, contract)

    def check(self, averaging: str = "dB") -> pd.DataFrame:
        """List every violation of the cube's schema, see `xsoilsm.check_cube`.

        Returns
        -------
        DataFrame
            Columns variable, found, expected, remedy; empty for a valid cube.
        """
        return violation_table(find_violations(self._dataset, averaging=averaging))

    def to_cog(self, path: str | Path, **options: Any) -> list[Path]:
        """Write a result as Cloud-Optimized GeoTIFFs. Computes.

        One file per variable and acquisition in the folder `path`, see
        `xsoilsm.products.write_products`.
        """
        from xsoilsm.products import write_products

        return write_products(self._dataset, path, **options)

    def evaluate(self, truth: Any = None, **options: Any) -> Evaluation:
        """Compare with truth, see `xsoilsm.evaluation.evaluate_dataset`. Computes."""
        from xsoilsm.evaluation import evaluate_dataset

        return evaluate_dataset(self._dataset, truth, **options)

    def finetune(self, stations: Any, name: str, **options: Any) -> Finetuned:
        """Tune an ensemble on stations, see `xsoilsm.finetuning.finetune`. Computes."""
        from xsoilsm.finetuning import finetune

        return finetune(self._dataset, stations, name, **options)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw a map with its flags hatched, see `xsoilsm.viewing.pictures.plot_map`. Computes."""
        from xsoilsm.viewing.pictures import plot_map

        return plot_map(self._dataset, ax)

    def explore(self, **options: Any) -> Any:
        """Show one map interactively, see `xsoilsm.viewing.pictures.explore`. Computes."""
        from xsoilsm.viewing.pictures import explore

        return explore(self._dataset, **options)
