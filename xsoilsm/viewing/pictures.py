"""Outside the seven steps (look): pictures of results, for people.

Soil moisture has one scale everywhere, 0 to 0.45 m3 m-3, so that pictures compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xsoilsm.metrics import agreement
from xsoilsm.quality import QualityFlag
from xsoilsm.viewing.flags import COLOURS, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["explore", "plot_map", "quicklook"]

_MOISTURE: dict[str, Any] = {"cmap": "YlGnBu", "vmin": 0.0, "vmax": 0.45}
_SPREAD: dict[str, Any] = {"cmap": "magma_r", "vmin": 0.0, "vmax": 0.08}


def plot_map(result: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Draw soil moisture with flagged cells hatched in the colours of their flags.

    Computes.

    Parameters
    ----------
    result : Dataset
        Of `xsoilsm.retrieve` in map form, with a scalar ``time`` or one time.
    ax : matplotlib Axes, optional
        A new figure by default.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        For several times, or a dataset without ``soil_moisture``.
    """
    one = _one(result, "plot")
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(figsize=(6.4, 5.2), layout="constrained")
    _map(ax, one["soil_moisture"], _title(one), _MOISTURE)
    if "quality_flag" in one:
        _hatch(ax, one["quality_flag"])
    ax.set_ylabel("y, km (EPSG:6933)")
    return ax


def explore(result: xr.Dataset, **options: Any) -> Any:
    """Show soil moisture, its spread and its flags on an interactive Leaflet map.

    Computes.

    Parameters
    ----------
    result : Dataset
        Of `xsoilsm.retrieve` in map form, with a scalar ``time`` or one time.
    **options
        For `folium.Map`, for instance ``tiles=None``: no base map, which would come from a
        server.

    Returns
    -------
    folium.Map
        To be shown by a notebook, or written with ``.save("map.html")``.

    Raises
    ------
    ModuleNotFoundError
        When folium, of the extra ``view``, is not installed.
    ValueError
        For several times, or a dataset without ``soil_moisture``.
    """
    import odc.geo.xr  # noqa: F401  (registers .odc)

    try:
        import folium
    except ModuleNotFoundError as error:
        msg = "exploring needs folium; install it with: pip install 'xsoilsm[view]'"
        raise ModuleNotFoundError(msg, name="folium") from error
    one = _one(result, "explore").compute()
    made = folium.Map(**{"attr": "OpenStreetMap contributors", **options})
    layers = {
        "soil moisture": ("soil_moisture", _MOISTURE),
        "spread": ("soil_moisture_std", _SPREAD),
    }
    for name, (variable, style) in layers.items():
        if variable in one:
            shown = {"show": False} if name == "spread" else {}
            label = f"{name} {_when(one)}{_demonstration(one, ', ')}"
            one[variable].odc.add_to(made, name=label, **style, **shown)
    if "quality_flag" in one:
        flags = one["quality_flag"]
        rgb, shown_cells = colour(flags.values.astype(np.int64), sum(map(int, QualityFlag)))
        rgba = np.concatenate([rgb, np.where(shown_cells, 255, 0).astype(np.uint8)[None]])
        picture = xr.DataArray(
            rgba.transpose(1, 2, 0),
            coords={k: flags.coords[k] for k in ("y", "x")} | {"band": ["r", "g", "b", "a"]},
            dims=("y", "x", "band"),
        ).odc.assign_crs(flags.odc.crs or "EPSG:6933")
        picture.odc.add_to(made, name="quality flags", show=False)
    made.fit_bounds(_corners(one["soil_moisture"]))
    folium.LayerControl(collapsed=False).add_to(made)
    return made


def _corners(data: xr.DataArray) -> list[list[float]]:
    """South-west and north-east corner in degrees (latitude first)."""
    west, south, east, north = data.odc.geobox.extent.to_crs("EPSG:4326").boundingbox
    return [[south, west], [north, east]]


def _one(result: xr.Dataset, what: str) -> xr.Dataset:
    """Take the one map of a result."""
    if "soil_moisture" not in result:
        found = ", ".join(map(str, result.data_vars)) or "none"
        msg = f"cannot {what} a dataset without soil_moisture (variables: {found}); retrieve first"
        raise ValueError(msg)
    times = result.sizes.get("time", 1)
    if times > 1:
        msg = f"cannot {what} {times} times at once; select one, for instance .isel(time=0)"
        raise ValueError(msg)
    return result.squeeze("time") if "time" in result.dims else result


def _when(one: xr.Dataset) -> str:
    return str(np.datetime_as_string(one["time"].values, unit="m")) if "time" in one.coords else ""


def _title(one: xr.Dataset) -> str:
    simulated = " (simulated)" if "simulated" in str(one.attrs.get("inputs", "")) else ""
    res = one.attrs.get("resolution", "")
    return f"Soil moisture{simulated} {res} {_when(one)}, m3 m-3" + _demonstration(one, "\n")


def _demonstration(one: xr.Dataset, before: str) -> str:
    """Say that networks were trained on simulated data, where the title of the result does."""
    said = "demonstration networks trained on simulated data"
    return before + said if said in str(one.attrs.get("title", "")) else ""


def _hatch(axes: Axes, flags: xr.DataArray) -> None:
    """Hatch flagged cells, and name the flags that occur."""
    from matplotlib.patches import Patch

    values = flags.values.astype(np.int64)
    rgb, shown = colour(np.kron(values, np.ones((4, 4), np.int64)), sum(map(int, QualityFlag)))
    rgba = np.concatenate([rgb, np.where(shown, 255, 0).astype(np.uint8)[None]])
    axes.imshow(rgba.transpose(1, 2, 0), extent=_extent(flags), interpolation="nearest")
    handles = [
        Patch(facecolor=COLOURS[flag], label=_share(_words(flag), (values & int(flag)) != 0))
        for flag in QualityFlag
        if (values & int(flag)).any()
    ]
    if handles:
        axes.legend(handles=handles, fontsize=7, loc="upper left", framealpha=0.9)


def _words(flag: QualityFlag) -> str:
    return str(flag.name).lower().replace("_", " ")


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
        True soil moisture in m3 m-3 on the cells of each result: adds a scatter plot of the
        cells without a flag.
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
            _map(row[1], result["soil_moisture_std"], "Spread of the members, m3 m-3", _SPREAD)
            _flags(row[2], result["quality_flag"])
        for row, result, truth in zip(grid, results, truths or (), strict=False):
            plain = result["soil_moisture"].where(result["quality_flag"] == 0)
            _scatter(row[3], plain, truth)
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
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    values = flags.values.astype(np.int64)
    picture = np.ones((*values.shape, 3))
    handles = [Patch(facecolor="white", edgecolor="0.5", label=_share("none", values == 0))]
    for bit in reversed(list(QualityFlag)):
        here = (values & int(bit)) != 0
        if here.any():
            picture[here] = to_rgb(COLOURS[bit])
            handles.append(Patch(facecolor=COLOURS[bit], label=_share(_words(bit), here)))
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
    axes.set_title(
        f"unflagged: n {found.n}, R {found.r:.2f}, RMSE {found.rmse:.3f}, bias {found.bias:+.3f}",
        fontsize=9,
    )
    axes.set_xlabel("simulated truth, m3 m-3")
    axes.set_ylabel("retrieved, m3 m-3")
    axes.set_aspect("equal")
