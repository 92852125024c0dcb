"""Outside the seven steps (evaluation): figures in the manner of Zhu et al. (2024).

Each function gives a matplotlib figure that nothing else holds. Figures of simulated data say so
in their corner. Colours are those of Okabe and Ito, which people with colour blindness can tell
apart. Maps have no coast lines: nothing is downloaded, nothing is shipped.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from xsoilsm.evaluation.scores import TARGET_RMSE, Evaluation
from xsoilsm.metrics import valid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "ARM_COLOURS",
    "cell_boxes",
    "density_scatter",
    "gain_map",
    "group_scores",
    "image",
    "scores_by_size",
    "yearly_scores",
]

ARM_COLOURS = {
    "transfer": "#0072B2",
    "benchmark": "#D55E00",
    "coarse": "#7F7F7F",
}
"""Colours of the arms of a scenario; others take the rest of the palette in turn."""

_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_UPPER = 0.6
_INK = "0.25"
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.hashsalt": "xsoilsm",
    "svg.fonttype": "path",
}
_LABELS = {"r": "Pearson R", "rmse": "RMSE, m3 m-3", "ubrmse": "ubRMSE, m3 m-3", "bias": "bias"}


@contextmanager
def _canvas(width: float, height: float, simulated: bool) -> Iterator[Figure]:
    """Give a figure in the common style, and label it when its data are simulated."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        if simulated:
            # The layout keeps room for a title, and for nothing else that is not an axes.
            figure.suptitle(
                "SIMULATED data", x=0.995, ha="right", fontsize=8, color="#B00020", weight="bold"
            )
        yield figure


def image(figure: Figure, kind: Literal["png", "svg"] = "png", dpi: int = 130) -> bytes:
    """Give a figure as the content of a file.

    Computes. The same figure gives the same bytes.
    """
    import matplotlib as mpl

    held = io.BytesIO()
    with mpl.rc_context(_STYLE):
        if kind == "svg":
            figure.savefig(held, format="svg", metadata={"Date": None, "Creator": None})
        else:
            figure.savefig(held, format="png", dpi=dpi, metadata={"Software": None})
    return held.getvalue()


def _colour(name: str, index: int) -> str:
    return ARM_COLOURS.get(name, _PALETTE[index % len(_PALETTE)])


# --------------------------------------------------------------------------- one evaluation


def density_scatter(evaluations: Sequence[Evaluation], columns: int = 3) -> Figure:
    """Draw retrieved against true soil moisture, coloured by the number of samples.

    Computes.

    Parameters
    ----------
    evaluations : sequence of Evaluation
    columns : int, default 3

    Returns
    -------
    Figure
        With the 1:1 line and, dashed, the target RMSE to either side of it.
    """
    columns = min(columns, len(evaluations))
    rows = -(-len(evaluations) // columns)
    simulated = any(e.simulated for e in evaluations)
    with _canvas(3.7 * columns + 0.3, 3.5 * rows + 0.3, simulated) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, found in zip(grid[: len(evaluations)], evaluations, strict=True):
            _density(axes, found)
        for axes in grid[len(evaluations) :]:
            axes.set_axis_off()
    return figure


def _density(axes: Axes, found: Evaluation) -> None:
    from matplotlib.colors import LogNorm

    x = found.samples["truth"].to_numpy()
    y = found.samples["predicted"].to_numpy()
    shown = valid(y)
    x, y = x[shown], y[shown]
    bins = int(np.clip(np.sqrt(x.size) * 2, 24, 90))
    counts, edges, _ = np.histogram2d(x, y, bins=bins, range=[[0, _UPPER], [0, _UPPER]])
    peak = max(counts.max(), 2)
    mesh = axes.pcolormesh(
        edges, edges, np.where(counts > 0, counts, np.nan).T, cmap="viridis", norm=LogNorm(1, peak)
    )
    mesh.set_rasterized(True)
    axes.plot([0, _UPPER], [0, _UPPER], color=_INK, linewidth=0.9)
    for shift in (TARGET_RMSE, -TARGET_RMSE):
        ends = np.array([0, _UPPER])
        axes.plot(ends, ends + shift, color=_INK, linewidth=0.7, linestyle=(0, (4, 3)))
    axes.set(xlim=(0, _UPPER), ylim=(0, _UPPER), aspect="equal")
    axes.set_xlabel("simulated truth, m3 m-3" if found.simulated else "stations, m3 m-3")
    axes.set_ylabel("retrieved, m3 m-3")
    axes.set_title(found.name or "all samples")
    row = found.overall.iloc[0]
    text = (
        f"n {row['n']:,}\nR {row['r']:.3f}\nRMSE {row['rmse']:.3f}\n"
        f"ubRMSE {row['ubrmse']:.3f}\nbias {row['bias']:+.3f}\n"
        f"valid {100 * row['inversion_rate']:.1f} %"
    )
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 2}
    axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize=7.5, bbox=box)
    axes.figure.colorbar(mesh, ax=axes, shrink=0.8, pad=0.02, label="samples")


def group_scores(
    evaluations: Sequence[Evaluation], by: str, measures: Sequence[str] = ("r", "rmse")
) -> Figure | None:
    """Draw the measures of each group with their intervals, side by side.

    Computes.

    Parameters
    ----------
    evaluations : sequence of Evaluation
    by : {"network", "land_cover", "climate", "year"}
    measures : sequence of str, default ("r", "rmse")

    Returns
    -------
    Figure or None
        None when no evaluation has the group.
    """
    tables = {e.name: e.groups[by] for e in evaluations if by in e.groups}
    if not tables:
        return None
    counts = pd.concat([t["n"] for t in tables.values()]).groupby(level=0).max()
    labels = list(counts.sort_values(ascending=True).index)
    height = 0.32 * len(labels) * (0.6 + 0.4 * len(tables)) + 1.1
    simulated = any(e.simulated for e in evaluations)
    with _canvas(3.6 * len(measures) + 1.4, height, simulated) as figure:
        panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        for axes, measure in zip(panels, measures, strict=True):
            for index, (name, table) in enumerate(tables.items()):
                shift = 0.22 * ((len(tables) - 1) / 2 - index)
                _intervals(axes, table.reindex(labels), measure, shift, name, _colour(name, index))
            _mark_target(axes, measure, vertical=True)
            axes.set_xlabel(_LABELS[measure])
            axes.grid(visible=False, axis="y")
        panels[0].set_yticks(
            range(len(labels)), [f"{label} ({int(counts[label]):,})" for label in labels]
        )
        panels[0].set_title(f"by {by.replace('_', ' ')} (valid pairs)")
        _legend(figure, panels[0], len(tables))
    return figure


def _legend(figure: Figure, axes: Axes, entries: int) -> None:
    """Legend below all panels, where it hides nothing."""
    if entries > 1:
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8)


def _intervals(
    axes: Axes, table: pd.DataFrame, measure: str, shift: float, name: str, colour: str
) -> None:
    y = np.arange(len(table)) + shift
    axes.hlines(y, table[f"{measure}_low"], table[f"{measure}_high"], color=colour, linewidth=1.6)
    axes.plot(table[measure], y, "o", color=colour, markersize=4.5, label=name)


def _mark_target(axes: Axes, measure: str, *, vertical: bool = False) -> None:
    if measure != "rmse":
        return
    line = axes.axvline if vertical else axes.axhline
    line(TARGET_RMSE, color="#B00020", linewidth=1, linestyle=(0, (4, 3)))
    at = {"xy": (TARGET_RMSE, 1), "xytext": (3, -2)} if vertical else {"xy": (1, TARGET_RMSE)}
    where: Any = axes.get_xaxis_transform() if vertical else axes.get_yaxis_transform()
    shift = (3, -2) if vertical else (-2, 2)
    axes.annotate(
        f"target {TARGET_RMSE:g}",
        xy=at["xy"],
        xycoords=where,
        xytext=shift,
        textcoords="offset points",
        color="#B00020",
        fontsize=7,
        ha="left" if vertical else "right",
        va="top" if vertical else "bottom",
    )


def yearly_scores(evaluations: Sequence[Evaluation]) -> Figure | None:
    """Draw R and RMSE of each year, with intervals.

    Computes.

    Returns
    -------
    Figure or None
        None when no evaluation has years.
    """
    tables = {e.name: e.groups["year"] for e in evaluations if "year" in e.groups}
    if not tables:
        return None
    simulated = any(e.simulated for e in evaluations)
    with _canvas(8.2, 3.0, simulated) as figure:
        for axes, measure in zip(figure.subplots(1, 2), ("r", "rmse"), strict=True):
            for index, (name, table) in enumerate(tables.items()):
                years = table.index.to_numpy(float) + 0.08 * (index - (len(tables) - 1) / 2)
                colour = _colour(name, index)
                axes.vlines(
                    years, table[f"{measure}_low"], table[f"{measure}_high"], color=colour, lw=1.6
                )
                axes.plot(years, table[measure], "o-", color=colour, ms=4.5, lw=1, label=name)
            _mark_target(axes, measure)
            axes.set_xticks(sorted({int(y) for t in tables.values() for y in t.index}))
            axes.set_xlabel("year")
            axes.set_ylabel(_LABELS[measure])
        _legend(figure, axes, len(tables))
    return figure


# --------------------------------------------------------------------------- cells


def cell_boxes(
    tables: Mapping[str, Mapping[str, pd.DataFrame]],
    measures: Sequence[str] = ("r", "rmse"),
    *,
    simulated: bool = False,
    label: str = "",
) -> Figure:
    """Draw the distribution over cells of their measures: one group of boxes for each label.

    Computes.

    Parameters
    ----------
    tables : mapping of str to mapping of str to DataFrame
        For each label, for instance a size of the training, and each arm the rows of the cells.
    measures : sequence of str, default ("r", "rmse")
    simulated : bool, default False
    label : str
        What the labels are.

    Returns
    -------
    Figure
        Boxes from the first to the third quartile with the median, whiskers from 5 to 95 %.
    """
    arms = list(dict.fromkeys(arm for group in tables.values() for arm in group))
    width = max(5.0, 0.28 * len(tables) * (len(arms) + 1) + 1.5)
    with _canvas(width, 2.6 * len(measures) + 0.4, simulated) as figure:
        panels = figure.subplots(len(measures), 1, sharex=True, squeeze=False)[:, 0]
        for axes, measure in zip(panels, measures, strict=True):
            for index, arm in enumerate(arms):
                shown = [
                    (at, t[arm][measure].dropna().to_numpy())
                    for at, t in enumerate(tables.values())
                    if arm in t and t[arm][measure].notna().any()
                ]
                _boxes(axes, shown, (index - (len(arms) - 1) / 2) / (len(arms) + 0.6), arm, index)
            _mark_target(axes, measure)
            axes.set_ylabel(_LABELS[measure])
            axes.grid(visible=False, axis="x")
        panels[-1].set_xticks(range(len(tables)), list(tables))
        panels[-1].set_xlabel(label)
        panels[0].set_title("cell-wise, cells with more than 15 samples")
        _legend(figure, panels[0], len(arms))
    return figure


def _boxes(
    axes: Axes, shown: Sequence[tuple[int, Any]], shift: float, arm: str, index: int
) -> None:
    if not shown:
        return
    colour = _colour(arm, index)
    made = axes.boxplot(
        [values for _, values in shown],
        positions=[at + shift for at, _ in shown],
        widths=min(0.28, 0.8 * abs(shift) or 0.28),
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        medianprops={"color": "white", "linewidth": 1.6},
    )
    for part in ("boxes", "whiskers", "caps"):
        for artist in made[part]:
            artist.set(color=colour, linewidth=1)
    for box in made["boxes"]:
        box.set(facecolor=colour, alpha=0.85)
    made["boxes"][0].set_label(arm)


def gain_map(
    cells: pd.DataFrame,
    gain: str = "r_gain",
    *,
    simulated: bool = False,
    title: str = "",
) -> Figure:
    """Map the gain in R or RMSE of one retrieval over another, cell by cell.

    Computes.

    Parameters
    ----------
    cells : DataFrame
        Columns ``lat``, ``lon`` and `gain`, one row for each cell.
    gain : {"r_gain", "rmse_gain"}, default "r_gain"
        Positive is better.
    simulated : bool, default False
    title : str

    Returns
    -------
    Figure
        A map, and a histogram of the gains with their median.

    Raises
    ------
    ValueError
        When no cell has a gain.
    """
    from matplotlib.colors import TwoSlopeNorm

    known = cells[np.isfinite(cells[gain])]
    values = known[gain].to_numpy()
    if not values.size:
        msg = f"no cell has a {gain!r}, so there is nothing to map"
        raise ValueError(msg)
    reach = max(float(np.quantile(np.abs(values), 0.95)), 1e-3)
    name = "gain in R" if gain == "r_gain" else "decrease of RMSE, m3 m-3"
    with _canvas(8.6, 3.4, simulated) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[2.3, 1])
        order = np.argsort(np.abs(values))
        drawn = left.scatter(
            known["lon"].to_numpy()[order],
            known["lat"].to_numpy()[order],
            c=values[order],
            s=float(np.clip(4000 / max(values.size, 1), 9, 40)),
            cmap="RdBu",
            norm=TwoSlopeNorm(0, -reach, reach),
            edgecolor="0.35",
            linewidth=0.3,
        )
        left.set_xlabel("longitude, degrees")
        left.set_ylabel("latitude, degrees")
        left.set_title(title)
        left.margins(0.06)
        figure.colorbar(drawn, ax=left, label=name, extend="both", shrink=0.9)
        better = 100 * float(np.mean(values > 0))
        span = (
            min(0.0, float(np.quantile(values, 0.01))),
            max(0.0, float(np.quantile(values, 0.99))),
        )
        right.hist(values, bins=25, range=span, color="0.6")
        right.axvline(0, color=_INK, linewidth=0.9)
        right.axvline(float(np.median(values)), color="#0072B2", linewidth=1.6)
        right.set_xlabel(
            f"{name}\n(better in {better:.0f} % of {values.size} cells;\nline: median)", fontsize=8
        )
        right.set_ylabel("cells")
    return figure


# --------------------------------------------------------------------------- sizes


def scores_by_size(
    scores: pd.DataFrame,
    *,
    label: str,
    simulated: bool = False,
    beside: pd.DataFrame | None = None,
    beside_label: str = "",
    title: str = "",
) -> Figure:
    """Draw R and RMSE against the size of the training, with the target line.

    Computes.

    Parameters
    ----------
    scores : DataFrame
        One row for each run: ``size``, ``arm``, ``seed``, ``r``, ``rmse``.
    label : str
        What the size is.
    simulated : bool, default False
    beside : DataFrame, optional
        Runs on sites that were not trained on: their range is drawn as a band, for splits that
        cannot stand alone.
    beside_label : str
    title : str

    Returns
    -------
    Figure
        Lines are means over the seeds, bars one standard deviation to either side.
    """
    with _canvas(8.4, 3.3, simulated) as figure:
        panels = figure.subplots(1, 2)
        for axes, measure in zip(panels, ("r", "rmse"), strict=True):
            for index, (arm, rows) in enumerate(scores.groupby("arm", sort=False)):
                group = rows.groupby("size")[measure].agg(["mean", "std"])
                axes.errorbar(
                    group.index,
                    group["mean"],
                    yerr=group["std"].fillna(0),
                    color=_colour(str(arm), index),
                    marker="o",
                    ms=4.5,
                    lw=1.4,
                    capsize=2.5,
                    label=str(arm),
                    linestyle=":" if arm == "coarse" else "-",
                )
            if beside is not None:
                _band(axes, beside, measure, beside_label)
            _mark_target(axes, measure)
            axes.set_xticks(sorted(scores["size"].unique()))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_xlabel(label)
            axes.set_ylabel(_LABELS[measure])
        panels[0].set_title(title)
        _legend(figure, panels[0], 2)
    return figure


def _band(axes: Axes, beside: pd.DataFrame, measure: str, label: str) -> None:
    means = beside.groupby(["scenario", "network", "size"])[measure].mean()
    low, high = float(means.min()), float(means.max())
    axes.axhspan(low, high, color="#CC79A7", alpha=0.25, linewidth=0, label=label)
