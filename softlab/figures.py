"""Table -> matplotlib ``Figure``: medians and bands over the seeds, one panel an input.

Nothing here measures or imports torch: a figure is redone from ``table.csv`` alone, anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

# Inches. The width is that of the report's text.
WIDTH, BELOW, TITLE, ENTRIES = 6.3, 0.42, 0.3, 0.18

STYLE: Any = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 9,
    "axes.titlesize": 8.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 8.5,
    "axes.linewidth": 0.5,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.grid.which": "major",
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "softlab",  # equal figures become equal files
}

# Marker, line and a colour whose grey differs from its neighbours', so that each alone suffices.
METHODS = (
    ("o", "-", "#123f8c"),
    ("s", "--", "#e0762a"),
    ("^", "-.", "#2d7f5e"),
    ("D", (0, (5, 1, 1, 1, 1, 1)), "#b59ad6"),
    ("v", (0, (1, 1)), "#7a1f3d"),
    ("P", (0, (3, 1)), "#c9a227"),
)


@dataclass(frozen=True)
class Lines:
    """Median of ``y`` against ``x``, log-log, a line for each ``group`` and a panel for each input.

    Every field but the labels names a column. ``by`` runs along a line (``x`` unless given), and
    the rows that agree in page, panel, group and ``by`` are summarised by their median; the shaded
    band runs from the first to the third quartile. ``page`` splits into one figure a value: errors
    against different targets are not comparable and never share one. ``references`` are groups
    drawn thin and black, dotted and flat where they have no ``by``; ``exact``, a group drawn as a
    vertical line at its ``x``.
    """

    x: str
    y: str
    group: str
    panel: str
    page: str
    xlabel: str
    ylabel: str
    by: str = ""
    references: Sequence[str] = ()
    exact: str = ""


def draw(table: pd.DataFrame, lines: Lines, page: str) -> Figure:
    """Draw one page of ``lines``; rows that failed are left out, unusable points are counted.

    Raises ``ValueError`` for a column that the table lacks and a page without rows.
    """
    by = lines.by or lines.x
    for column in (lines.x, lines.y, lines.group, lines.panel, lines.page, by):
        if column not in table:
            msg = f"the table has no column {column!r}; it has {', '.join(table.columns)}."
            raise ValueError(msg)
    rows = table[(table["status"] == "ok") & (table[lines.page] == page)]
    if rows.empty:
        msg = f"the table has no finished row with {lines.page} = {page!r}; nothing to draw."
        raise ValueError(msg)
    panels = list(rows[lines.panel].unique())
    # A group without a place on the axis, as an untimed control against seconds, is no line.
    placed = rows.loc[rows[lines.x].notna(), lines.group].unique()
    methods = [group for group in placed if group not in {*lines.references, lines.exact}]
    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    each = 1.75 if down < 3 else 1.07  # of three rows, two figures fit a page
    above = TITLE + ENTRIES * math.ceil((len(methods) + len(lines.references) + 1) / 5)
    height = above + BELOW + down * each
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        # Fixed margins line figures up down a page, and are set in a tenth of a layout's time.
        figure.subplots_adjust(
            left=0.62 / WIDTH, right=1 - 0.08 / WIDTH, wspace=0.1, hspace=0.36,
            top=1 - above / height, bottom=BELOW / height,
        )  # fmt: skip
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for i, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
            _panel(axes, rows[rows[lines.panel] == panel], lines, methods)
            axes.set_title(panel)
            axes.tick_params(labelbottom=i + across >= len(panels))
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        _scale(grid[0, 0], rows, lines, methods)
        middle = (BELOW + height - above) / 2 / height
        figure.supxlabel(lines.xlabel, fontsize=9, y=0.06 / height, va="bottom")
        figure.supylabel(lines.ylabel, fontsize=9, x=0.06 / WIDTH, y=middle, ha="left")
        entries: dict[str, Any] = {}
        for axes in figure.axes:
            entries |= {
                label: handle
                for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
            }
        figure.legend(
            entries.values(),
            entries.keys(),
            loc="upper center",
            ncols=min(5, len(entries)),
            bbox_to_anchor=(0.5, 1),
            borderaxespad=0.2,
        )
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format that the ending names; equal figures give equal bytes."""
    undated = {"Date": None} if path.suffix == ".svg" else {}
    with rc_context(STYLE):
        figure.savefig(path, metadata=undated)


def summary(rows: pd.DataFrame, keys: list[str], column: str) -> pd.DataFrame:
    """Quartiles of ``column`` over the rows that agree in ``keys``: columns q1, median, q3."""
    quartiles = rows.groupby(keys, sort=False)[column].quantile([0.25, 0.5, 0.75]).unstack()
    return quartiles.set_axis(["q1", "median", "q3"], axis=1).reset_index()


def _panel(axes: Axes, rows: pd.DataFrame, lines: Lines, methods: list[str]) -> None:
    by = lines.by or lines.x
    axes.set(xscale="log", yscale="log")
    usable = rows[lines.y].between(0, math.inf, inclusive="neither")
    if not usable.all():
        lost = f"{(~usable).sum()} of {len(rows)} not drawn: zero or not finite"
        axes.text(0.5, 0.02, lost, transform=axes.transAxes, ha="center", fontsize=6.5)
    rows = rows[usable]
    for method, (marker, line, colour) in zip(methods, METHODS * len(methods), strict=False):
        mine = rows[rows[lines.group] == method]
        if mine.empty:
            continue
        points = summary(mine, [by], lines.y)
        x = summary(mine, [by], lines.x)["median"] if by != lines.x else points[by]
        points = points.assign(x=x).sort_values(by)
        axes.fill_between(points["x"], points["q1"], points["q3"], color=colour, alpha=0.18, lw=0)
        axes.plot(
            points["x"], points["median"], label=method, color=colour, linestyle=line,
            marker=marker, markersize=3.8, markeredgecolor="white", markeredgewidth=0.4, lw=1.1,
        )  # fmt: skip
    for reference in lines.references:
        mine = rows[rows[lines.group] == reference]
        if mine.empty:
            continue
        if mine[by].isna().all():
            axes.axhline(
                mine[lines.y].median(), label=reference, color="black", linestyle=":", lw=1
            )
        else:
            points = summary(mine, [by], lines.y)
            axes.plot(points[by], points["median"], label=reference, color="black", lw=0.8)
    cost = rows.loc[rows[lines.group] == lines.exact, lines.x].median()
    if math.isfinite(cost):
        axes.axvline(cost, label=lines.exact, color="0.45", lw=0.8)


def _scale(axes: Axes, rows: pd.DataFrame, lines: Lines, methods: list[str]) -> None:
    """Limits that show the methods, and ticks in plain numbers where an axis spans little."""
    y = rows[lines.y].where(rows[lines.y].between(0, math.inf, inclusive="neither"))
    lowest = y[rows[lines.group].isin(methods)].min() / 4  # a bound far below may leave the frame
    if lowest > 0:
        axes.set_ylim(bottom=max(lowest, axes.get_ylim()[0]))
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        axis.set_minor_locator(NullLocator())
        if high / low < 100:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        if high / low < 3000:
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    values = sorted(rows.loc[rows[lines.group].isin(methods), lines.x].dropna().unique())
    if len(values) <= 8:
        axes.xaxis.set_major_locator(FixedLocator(values))
