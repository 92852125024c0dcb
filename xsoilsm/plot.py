"""Outside the seven steps (look): pictures of results, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xsoilsm.metrics import agreement
from xsoilsm.quality import QualityFlag

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["quicklook"]

_MOISTURE = {"cmap": "YlGnBu", "vmin": 0.0, "vmax": 0.45}


def quicklook(
    results: Sequence[xr.Dataset],
    path: str | Path,
    *,
    truths: Sequence[xr.DataArray] | None = None,
    title: str = "",
) -> Path:
    """Draw one acquisition at one or more resolutions, one row each, as a PNG.

    Computes.

    Parameters
    ----------
    results : sequence of Dataset
        Of `xsoilsm.retrieve` in map form with a scalar ``time`` each.
    path : path
        File to write.
    truths : sequence of DataArray (y, x), optional
        True soil moisture in m3 m-3 on the cells of each result: adds a scatter plot.
    title : str
        Printed on top; says whether data are simulated or real.

    Returns
    -------
    Path
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 4 if truths is not None else 3
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(4.1 * columns, 3.9 * len(results) + 0.5), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(results), columns, squeeze=False)
        figure.suptitle(title, fontsize=11)
        for row, result in zip(grid, results, strict=True):
            res = result.attrs.get("resolution", "")
            _map(row[0], result["soil_moisture"], f"Soil moisture at {res}, m3 m-3", _MOISTURE)
            spread: dict[str, Any] = {"cmap": "magma_r", "vmin": 0.0, "vmax": 0.08}
            _map(row[1], result["soil_moisture_std"], "Spread of the members, m3 m-3", spread)
            _flags(row[2], result["quality_flag"])
        for row, result, truth in zip(grid, results, truths or (), strict=False):
            _scatter(row[3], result["soil_moisture"], truth)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, format="png", metadata={"Software": None})
    return path


def _map(axes: Axes, data: xr.DataArray, title: str, style: Mapping[str, Any]) -> None:
    extent = _extent(data)
    image = axes.imshow(data.values, extent=extent, interpolation="nearest", **style)
    axes.set_title(title)
    axes.set_xlabel("x, km (EPSG:6933)")
    axes.set_facecolor("0.85")
    axes.figure.colorbar(image, ax=axes, shrink=0.85)


def _extent(data: xr.DataArray) -> tuple[float, float, float, float]:
    x, y = data["x"].values / 1000, data["y"].values / 1000
    half = (x[1] - x[0]) / 2 if x.size > 1 else 0.5
    return float(x[0] - half), float(x[-1] + half), float(y[-1] - half), float(y[0] + half)


def _flags(axes: Axes, flags: xr.DataArray) -> None:
    """Colour each cell by its first flag; the legend gives the share of cells with each."""
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    values = flags.values.astype(np.int64)
    colours = colormaps["tab20"]
    picture = np.ones((*values.shape, 3))
    handles = [Patch(facecolor="white", edgecolor="0.5", label=_share("none", values == 0))]
    for number, bit in reversed(list(enumerate(QualityFlag))):
        here = (values & int(bit)) != 0
        if here.any():
            colour = colours(number % 20)
            picture[here] = colour[:3]
            name = str(bit.name).lower().replace("_", " ")
            handles.append(Patch(facecolor=colour, label=_share(name, here)))
    axes.imshow(picture, extent=_extent(flags), interpolation="nearest")
    axes.set_title("Quality flags")
    axes.set_xlabel("x, km (EPSG:6933)")
    axes.legend(handles=handles, fontsize=7, loc="upper right", framealpha=0.9)


def _share(name: str, here: Any) -> str:
    return f"{name} ({100 * np.mean(here):.1f} %)"


def _scatter(axes: Axes, retrieved: xr.DataArray, truth: xr.DataArray) -> None:
    x, y = truth.values.ravel(), retrieved.values.ravel()
    both = np.isfinite(x) & np.isfinite(y)
    axes.hexbin(x[both], y[both], gridsize=45, extent=(0, 0.6, 0, 0.6), mincnt=1, cmap="viridis")
    axes.plot([0, 0.6], [0, 0.6], color="0.4", linewidth=0.8)
    found = agreement(y, x)
    axes.set_title(f"n {found.n}, R {found.r:.2f}, RMSE {found.rmse:.3f}, bias {found.bias:+.3f}")
    axes.set_xlabel("simulated truth, m3 m-3")
    axes.set_ylabel("retrieved, m3 m-3")
    axes.set_aspect("equal")
