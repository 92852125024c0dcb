"""Outside the seven steps (evaluation): reports, as one HTML file or as Markdown with figures.

A random split puts neighbours of the validated samples, of the same site and week, into the
training. Its figures are no validation, and no report here shows them without those of sites
that were not trained on.
"""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from xsoilsm.evaluation import figures
from xsoilsm.evaluation.scores import IN_WORDS, INTERVALS, Evaluation
from xsoilsm.metrics import MEASURES
from xsoilsm.wholefile import whole_file, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Page", "require_independent", "write_report"]

_SIMULATED = "SIMULATED DATA: no statement about accuracy in the real world."

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.2rem;margin-top:2.2rem;
border-bottom:1px solid #ddd;padding-bottom:.2rem}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;margin:.6rem 0}
th,td{padding:.22rem .6rem;text-align:right;border-bottom:1px solid #eee;
white-space:nowrap}
th{background:#f5f5f5;font-weight:600;white-space:normal}th:first-child,td:first-child{text-align:left}
figure{margin:1rem 0}figure img{max-width:100%}figcaption,caption{color:#555;font-size:.85rem;
text-align:left;white-space:nowrap}
figcaption{white-space:normal}
.simulated{background:#B00020;color:#fff;padding:.5rem .8rem;font-weight:600}
.warning{background:#FFF3CD;padding:.5rem .8rem}.wide{overflow-x:auto}
.meta{color:#666;font-size:.85rem}
"""


class Page:
    """A page of text, tables and figures.

    Parameters
    ----------
    title : str
    simulated : bool
        Says so above everything else, and below every figure and table.
    """

    def __init__(self, title: str, *, simulated: bool) -> None:
        self.title, self.simulated = title, simulated
        self._parts: list[_Part] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(_Part(f"<h2>{html.escape(text)}</h2>", f"## {text}"))

    def text(self, text: str, kind: Literal["", "warning", "meta"] = "") -> None:
        """Add a paragraph."""
        self._parts.append(
            _Part(
                f'<p class="{kind}">{html.escape(text)}</p>',
                f"**{text}**" if kind == "warning" else text,
            )
        )

    def table(self, table: pd.DataFrame, caption: str, *, real: bool = False) -> None:
        """Add a table with its index as the first column; numbers get three decimals.

        On a simulated page, `real` says that this one is not.
        """
        label = caption if real else self._label(caption)
        names = ["" if table.index.name is None else str(table.index.name), *table.columns]
        rows = [
            [_shown(value) for value in (index, *row)]
            for index, row in zip(table.index, table.itertuples(index=False), strict=True)
        ]
        head = "".join(f"<th>{html.escape(str(name))}</th>" for name in names)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(value)}</td>' for value in row)}</tr>" for row in rows
        )
        lines = [names, ["---", *["---:"] * len(table.columns)], *rows]
        self._parts.append(
            _Part(
                f'<div class="wide"><table><caption>{html.escape(label)}</caption>'
                f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>",
                f"*{label}*\n\n" + "\n".join(f"| {' | '.join(map(str, row))} |" for row in lines),
            )
        )

    def figure(
        self, figure: Figure | None, caption: str, kind: Literal["png", "svg"] = "svg"
    ) -> None:
        """Add a figure; None adds nothing."""
        if figure is None:
            return
        label, picture = self._label(caption), figures.image(figure, kind)
        mime = {"png": "image/png", "svg": "image/svg+xml"}[kind]
        data = f"data:{mime};base64,{base64.b64encode(picture).decode('ascii')}"
        number = 1 + sum(part.picture is not None for part in self._parts)
        name = f"figure-{number:02d}.{kind}"
        shown = html.escape(label)
        self._parts.append(
            _Part(
                f'<figure><img src="{data}" alt="{shown}">'
                f"<figcaption>{shown}</figcaption></figure>",
                f"![{label}]({{folder}}/{name})\n\n*{label}*",
                (name, picture),
            )
        )

    def _label(self, caption: str) -> str:
        return f"Simulated data: {caption}" if self.simulated else caption

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the page. It appears under its name when it is complete.

        A path that ends in ``.md`` gets Markdown, with its figures in a folder of the same name
        without the ending; any other gets one HTML file that needs no other.

        Raises
        ------
        FileExistsError
            When `path` exists and `overwrite` is false.
        """
        target = Path(path)
        with whole_file(target, overwrite=overwrite) as scratch:
            if target.suffix == ".md":
                scratch.write_text(self._markdown(target.with_suffix("")), encoding="utf-8")
            else:
                scratch.write_text(self._html(), encoding="utf-8")
        return target

    def _html(self) -> str:
        banner = f'<p class="simulated">{_SIMULATED}</p>' if self.simulated else ""
        name = html.escape(self.title)
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>{name}</title><style>{_STYLE}</style></head><body>"
            f'<h1>{name}</h1><p class="meta">xsoilsm {version("xsoilsm")}</p>{banner}'
            + "\n".join(part.html for part in self._parts)
            + "</body></html>\n"
        )

    def _markdown(self, folder: Path) -> str:
        """Write the figures, and give the text that shows them."""
        pictures = [part.picture for part in self._parts if part.picture is not None]
        if pictures:
            folder.mkdir(exist_ok=True)
        for name, picture in pictures:
            write_whole(folder / name, picture)
        parts = [f"# {self.title}", *([f"**{_SIMULATED}**"] if self.simulated else [])]
        parts += [part.markdown.replace("{folder}", folder.name) for part in self._parts]
        return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class _Part:
    """A part of a page in both forms; a picture has a name and its bytes."""

    html: str
    markdown: str
    picture: tuple[str, bytes] | None = None


def _shown(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.3f}"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(value)
    return str(value)


def require_independent(evaluations: Sequence[Evaluation]) -> None:
    """Refuse figures of a random split that stand alone.

    Parameters
    ----------
    evaluations : sequence of Evaluation

    Raises
    ------
    ValueError
        When one is of a random split (`independence` "none") and none of them is of sites that
        were not trained on ("sites").
    """
    random = [e.name or "evaluation" for e in evaluations if e.independence == "none"]
    if random and not any(e.independence == "sites" for e in evaluations):
        msg = (
            f"{', '.join(random)}: a random split is no validation, because its samples have "
            "neighbours of the same site and week in the training. Add the evaluation of sites "
            "that were not trained on (independence='sites'), for instance of the off-site "
            "scenario or of xsoilsm.scenarios.site_folds"
        )
        raise ValueError(msg)


def write_report(
    evaluations: Evaluation | Sequence[Evaluation],
    path: str | os.PathLike[str],
    *,
    title: str = "Evaluation of soil moisture",
    overwrite: bool = False,
) -> Path:
    """Write the measures and figures of one or more evaluations.

    Computes.

    Parameters
    ----------
    evaluations : Evaluation or sequence of Evaluation
        With different names.
    path : path
        HTML, or Markdown where it ends in ``.md``; see `Page.write`.
    title : str
    overwrite : bool, default False

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        See `require_independent`; also when names are not unique.
    FileExistsError
        When `path` exists and `overwrite` is false.
    """
    found = [evaluations] if isinstance(evaluations, Evaluation) else list(evaluations)
    if not found or len({e.name for e in found}) != len(found):
        msg = "a report needs one evaluation or more, and each a name of its own"
        raise ValueError(msg)
    require_independent(found)
    page = Page(title, simulated=any(e.simulated for e in found))
    _overall(page, found)
    for group in ("network", "land_cover", "climate"):
        tables = {e.name: e.groups[group] for e in found if group in e.groups}
        if not tables:
            continue
        words = group.replace("_", " ")
        page.heading(f"By {words}")
        page.figure(figures.group_scores(found, group), f"measures by {words} with their intervals")
        for name, table in tables.items():
            page.table(short_table(table), f"{name or 'all samples'}, by {words}")
    if any("year" in e.groups for e in found):
        page.heading("By year")
        page.figure(figures.yearly_scores(found), "R and RMSE of each year with their intervals")
    _cells(page, found)
    return page.write(path, overwrite=overwrite)


def _overall(page: Page, found: Sequence[Evaluation]) -> None:
    page.heading("All samples")
    rows = pd.concat([short_table(e.overall.set_axis([e.name or "all samples"])) for e in found])
    rows.insert(0, "trained on", [IN_WORDS[e.independence] for e in found])
    page.table(rows, "measures with their intervals in brackets")
    for kind in dict.fromkeys(str(e.overall["interval"].iloc[0]) for e in found):
        page.text(f"{100 * found[0].level:g} % intervals: {INTERVALS[kind]}.", "meta")
    page.text(
        "Bias is retrieved minus true. Retrievals outside 0 to 0.6 m3 m-3 are invalid; the "
        "inversion rate is the share of valid ones, and only those enter the other measures.",
        "meta",
    )
    for note in dict.fromkeys(note for e in found for note in e.notes):
        page.text(note, "warning")
    page.figure(
        figures.density_scatter(found),
        "retrieved against true soil moisture; line 1:1, dashed the target of 0.06 m3 m-3 off it",
        "png",
    )


def _cells(page: Page, found: Sequence[Evaluation]) -> None:
    with_cells = {e.name: {e.name: e.groups["cell"]} for e in found if len(e.groups["cell"])}
    if not with_cells:
        return
    page.heading("By cell")
    page.figure(
        figures.cell_boxes(with_cells, simulated=page.simulated),
        "cells with more than 15 samples: quartiles, median and 5 to 95 %",
    )
    summary = {
        e.name or "all samples": cell_summary(e.groups["cell"])
        for e in found
        if len(e.groups["cell"])
    }
    page.table(pd.DataFrame(summary).T, "medians over cells; shares of cells")


def cell_summary(cells: pd.DataFrame) -> Mapping[str, float]:
    """Medians over the rows of cells, and the share of cells that reach the target."""
    from xsoilsm.evaluation.scores import TARGET_RMSE

    medians = {f"median {name}": float(cells[name].dropna().median()) for name in MEASURES[:4]}
    reached = float((cells["rmse"] <= TARGET_RMSE).mean())
    return {"cells": str(len(cells)), **medians, "share at target": reached}  # type: ignore[dict-item]


def short_table(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of an evaluation for people: each measure with its interval in one column."""
    shown = table[["samples", "n", "sites"]].copy()
    for name in MEASURES:
        shown[name] = [
            f"{value:.3f} [{low:.3f}, {high:.3f}]" if np.isfinite(low) else _shown(float(value))
            for value, low, high in zip(
                table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True
            )
        ]
    return shown
