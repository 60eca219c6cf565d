"""Table -> matplotlib ``Figure``: medians and bands over the cases that share a point.

Nothing here measures or imports torch: a figure is redone from ``table.csv`` alone, anywhere.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.mathtext import MathTextParser
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from softlab.figures import Lines, Word
from softlab.report.numbers import counted
from softlab.report.quartiles import quartiles_of
from softlab.report.rows import of_case
from softlab.report.style import METHODS, Look
from softlab.report.style import looks as chosen
from softlab.report.words import FACES, LONGEST, brief, cut, drawn

# Inches. The width is that of the report's text.
WIDTH, BELOW, TITLE, ENTRIES = 6.3, 0.42, 0.3, 0.18

STYLE: Any = {
    "font.family": list(FACES),
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

LETTERS = 28
"""Letters that fit above one of three panels."""
LINE = 0.15
"""Inches of a second line of titles."""
GUIDES = ("-", (0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))

GROUP, PANEL, WHY, ROW = " group", " panel", " why", " row"
"""Columns of the words for a row's group and panel in legend and title, why it is not drawn, and
its number on the page."""
LABEL, FILE, NAMED = 60, 200, 5
"""Letters of a word in a legend or a title, bytes of a file's name, and groups of a note."""


@dataclass(frozen=True)
class Mark:
    """A drawn point: where it lies, in parts of the figure's width and height from its upper left
    corner, and whose case it is.

    ``y`` is the median of ``cases`` rows between the quartiles ``q1`` and ``q3``; ``case`` holds
    what these rows have in common, by axis of the study.
    """

    left: float
    top: float
    panel: str
    group: str
    x: float
    y: float
    q1: float
    q3: float
    cases: int
    case: Mapping[str, str]


class Drawing(Figure):
    """A figure that knows its points, and in sentences what of the table it does not show."""

    marks: tuple[Mark, ...] = ()
    left_out: tuple[str, ...] = ()

    def _repr_svg_(self) -> str:
        """It as a notebook shows it, whether or not ``%matplotlib inline`` was said."""
        with rc_context(STYLE), io.StringIO() as into:
            self.savefig(into, format="svg", metadata={"Date": None})
            return into.getvalue()


def pages(table: pd.DataFrame, lines: Lines) -> list[Word]:
    """The values of the page column in the rows that ``lines`` draws; one empty word without.

    Raises ``ValueError`` for a column that the table lacks, and where no row is left.
    """
    rows = rows_drawn(table, lines)
    if not lines.page:
        return [""]
    missing = rows[lines.page].isna()
    found: list[Word] = list(rows.loc[~missing, lines.page].unique())
    return [*found, None] if missing.any() and _of_case(table, lines.page) else found


def draw(table: pd.DataFrame, lines: Lines, page: Word = "") -> Drawing:
    """Draw one page of ``lines``; what it cannot show of the table is counted in ``left_out``.

    Not shown are rows that failed, rows without a page, panel or group (None on an axis of the
    study is one), and those whose x, y or place along the line is no number (missing, a word,
    True), not finite, or not positive on a logarithmic axis.

    Raises ``ValueError`` for a column that the table lacks, a page without rows, and more groups
    than can be told apart.
    """
    rows, looks, unpaged = _page(table, lines, page)
    panels = list(rows[PANEL].dropna().unique())
    labels = [*looks, *lines.references]
    labels += [*filter(None, [lines.exact]), *lines.guides.values()]
    labels += [lines.expected_label] if lines.expected else []
    columns = _legend_columns(labels)
    across, down, height, above = _frame(lines, len(panels), len(looks), len(labels) / columns)
    titles = {panel: _title(panel, across) for panel in panels}
    if any("\n" in title for title in titles.values()):
        height, above = height + LINE, above + LINE
    with rc_context(STYLE):
        figure = Drawing(figsize=(WIDTH, height))
        # Fixed margins line figures up down a page, and are set in a tenth of a layout's time.
        figure.subplots_adjust(
            left=0.62 / WIDTH,
            right=1 - 0.08 / WIDTH,
            wspace=0.1,
            hspace=0.36,
            top=1 - above / height,
            bottom=BELOW / height,
        )
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        cases = _Cases(rows, lines.by or lines.x)
        points: list[tuple[Axes, str, list[dict[str, Any]]]] = []
        entries: dict[str, Any] = {}
        for i, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
            mine = rows[rows[PANEL] == panel]
            own = _looks(mine, lines) if lines.legend == "panel" else looks
            curves, found = _panel(axes, mine, lines, own, cases)
            points += [(axes, panel, curve) for curve in curves]
            if lines.legend == "panel":
                _legend(axes, found, list(own), fontsize=6.5, loc="best", handlelength=2.2,
                        labelspacing=0.25, borderaxespad=0.2, frameon=True, framealpha=0.85,
                        edgecolor="none", fancybox=False, borderpad=0.1)  # fmt: skip
                found = {label: x for label, x in found.items() if label not in own}
            entries |= found
            # With its height given, matplotlib does not measure all ticks to find it.
            axes.set_title(titles[panel], y=1.0, parse_math=False)
            axes.tick_params(labelbottom=i + across >= len(panels))
            # Nor where its own labels, which are empty, would stand beside those of its neighbours.
            axes.xaxis.set_label_coords(0.5, 0)
            axes.yaxis.set_label_coords(0, 0.5)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        _scale(grid[0, 0], rows, lines, looks or _groups(rows, lines))
        figure.marks = tuple(mark for one in points for mark in _marks(figure, *one))
        middle = (BELOW + height - above) / 2 / height
        (xlabel, x_math), (ylabel, y_math) = _authored(lines.xlabel), _authored(lines.ylabel)
        figure.supxlabel(xlabel, fontsize=9, y=0.06 / height, va="bottom", parse_math=x_math)
        figure.supylabel(ylabel, fontsize=9, x=0.06 / WIDTH, y=middle, ha="left", parse_math=y_math)
        if lines.expected:
            entries[lines.expected_label] = Line2D([], [], color="black", **EXPECTED)
        authored = {*lines.guides.values(), lines.expected_label}
        _legend(figure, entries, labels, authored, loc="upper center", ncols=columns,
                bbox_to_anchor=(0.5, 1), borderaxespad=0.2)  # fmt: skip
    failed = int((table["status"] != "ok").sum())
    figure.left_out = tuple(_left_out(rows, lines, unpaged, failed))
    return figure


def caption(lines: Lines, page: Word = "") -> str:
    """What stands below the page: ``lines.caption``, or what is drawn and how."""
    split = _word(lines.page, page) if lines.page else ""
    if lines.caption:
        return lines.caption.replace("{page}", split)
    legend = ["medians and quartiles"]
    if lines.references:
        legend.append(f"thin black: {', '.join(lines.references)}")
    if lines.exact and lines.by:
        legend.append(f"grey vertical: {lines.exact}")
    if lines.expected:
        legend.append(f"thin dashed: {lines.expected_label}")
    subject = f"{lines.ylabel[:1].upper()}{lines.ylabel[1:]} against {lines.xlabel}"
    return f"{subject}{f', {split}' if split else ''}; {'; '.join(legend)}."


def file_name(lines: Lines, page: Word = "") -> str:
    """A name for the page's file, without ending: the figure's name, or y and x, then the page."""
    words = f"{lines.name or f'{lines.y} {lines.x}'} {page}".replace(".", "_")
    name = re.sub(r"[^\w-]+", "-", words).strip("-")
    return name.encode()[:FILE].decode(errors="ignore")


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format that the ending names; equal figures give equal bytes."""
    undated = {"Date": None} if path.suffix == ".svg" else {}
    with rc_context(STYLE):
        figure.savefig(path, metadata=undated)


EXPECTED: Any = {"linestyle": (0, (2.5, 1.5)), "lw": 0.7, "marker": ""}


def _page(
    table: pd.DataFrame, lines: Lines, page: Word
) -> tuple[pd.DataFrame, dict[str, Look], int]:
    """The labelled rows of the page, the looks of its lines, and how many rows have no page."""
    rows = rows_drawn(table, lines)
    of_page = _is(rows[lines.page], page) if lines.page else pd.Series(data=True, index=rows.index)
    if not of_page.any():
        msg = f"the table has no finished row with {lines.page} = {page!r}; nothing to draw."
        raise ValueError(msg)
    rows = rows.assign(
        **{GROUP: _labels(table, rows, lines.group), PANEL: _labels(table, rows, lines.panel)}
    )
    many = len(_groups(rows, lines)) > len(METHODS)
    named = {} if lines.legend == "panel" else _looks(rows[of_page] if many else rows, lines)
    unpaged = 0
    if lines.page and not _of_case(table, lines.page):
        unpaged = int(rows[lines.page].isna().sum())
    rows = rows[of_page]
    looks = {group: look for group, look in named.items() if group in set(rows[GROUP])}
    rows = rows.assign(**{WHY: _why_not(rows, lines)})
    numeric = {lines.x, lines.y, lines.expected, *lines.guides} - {""}
    numbered = {x: as_numbers(rows[x]) for x in numeric}
    return rows.assign(**numbered, **{ROW: np.arange(len(rows))}), looks, unpaged


def rows_drawn(table: pd.DataFrame, lines: Lines) -> pd.DataFrame:
    """The finished rows that ``where`` keeps, of a table that has all columns."""
    rows = table[table["status"] == "ok"]
    if rows.empty:
        msg = "the table has no finished row; nothing to draw."
        raise ValueError(msg)
    needed = [lines.x, lines.y, lines.group, lines.panel, lines.page, lines.by, lines.expected]
    for column in filter(None, [*needed, *lines.where, *lines.guides]):
        if column not in table:
            msg = f"the table has no column {column!r}; it has {', '.join(table.columns)}."
            raise ValueError(msg)
    for column, wanted in lines.where.items():
        values = (
            wanted if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]
        )
        kept = [_is(rows[column], value) for value in values]
        rows = rows[pd.concat(kept, axis=1).any(axis=1)]
    if rows.empty:
        said = ", ".join(f"{column} = {wanted!r}" for column, wanted in lines.where.items())
        msg = f"the table has no finished row with {said}; nothing to draw."
        raise ValueError(msg)
    return rows


def _is(column: pd.Series, value: Word) -> pd.Series:
    """Which rows have the value, of which None is one."""
    same: pd.Series = column.isna() if value is None else column == value
    return same


def _of_case(table: pd.DataFrame, column: str) -> bool:
    """Whether the column is an axis of the study or a field of one: a row begins with its case."""
    return column.partition(".")[0] in of_case(table)


def _labels(table: pd.DataFrame, rows: pd.DataFrame, column: str) -> pd.Series:
    """Words for the values of a column, no two alike; NaN for a row that is in no group of it."""
    if not column:
        return pd.Series("", rows.index)
    missing = rows[column].isna()
    values = [None if gone else x for x, gone in zip(rows[column], missing, strict=True)]
    keys = [(isinstance(x, bool | np.bool_), x) for x in values]  # True is not 1
    words = {key: _word(column, key[1]) for key in keys}
    often = Counter(words.values())
    words |= {key: f"{_last(column)} = {key[1]}" for key, x in words.items() if often[x] > 1}
    brief = cut(words.values(), LABEL)
    found = pd.Series([brief[words[key]] for key in keys], rows.index, dtype=object)
    return found if _of_case(table, column) else found.mask(missing, np.nan)


def _word(column: str, value: Word) -> str:
    """A value as a title: words as they are, others with the last part of the column's name."""
    if isinstance(value, str) and value:
        return value
    if value is None or isinstance(value, bool | np.bool_ | str):
        return f"{_last(column)} = {value!r}"
    try:
        return f"{_last(column)} = {value:g}"
    except OverflowError:  # an integer that no float holds
        return f"{_last(column)} = {value}"


def _last(column: str) -> str:
    return column.rpartition(".")[2]


def as_numbers(column: pd.Series) -> pd.Series:
    """The column in floats: NaN for words and truth values, infinity beyond all floats."""
    return column.map(_number).astype(float)


def _number(x: Any) -> float:
    try:
        return math.nan if isinstance(x, bool | np.bool_ | str) or x is None else float(x)
    except OverflowError:
        return math.inf


def _usable(numbers: pd.Series, scale: str) -> pd.Series:
    lowest = 0 if scale == "log" else -math.inf
    return numbers.between(lowest, math.inf, inclusive="neither")


def _flaw(column: pd.Series, scale: str) -> pd.Series:
    """Why an axis cannot show each of the values; an empty word where it can."""
    numbers = as_numbers(column)
    said = np.select(
        [column.isna(), numbers.isna(), np.isinf(numbers), ~_usable(numbers, scale)],
        ["missing", "no number", "not finite", "not positive"],
        "",
    )
    return pd.Series(said, column.index)


def _why_not(rows: pd.DataFrame, lines: Lines) -> pd.Series:
    """Why each row of a page is not drawn, in words; an empty word where it is.

    A line and a reference run along ``by``, a reference of which no row has one is flat, and the
    exact operator has a place on the x axis alone.
    """
    by = lines.by or lines.x
    nowhere = rows[by].isna()
    panels = [rows[PANEL], rows[GROUP]]
    flat = rows[GROUP].isin(lines.references) & nowhere.groupby(panels, dropna=False).transform(
        "all"
    )
    placed = ~flat & (rows[GROUP] != lines.exact)
    y, x = _flaw(rows[lines.y], lines.yscale), _flaw(rows[lines.x], lines.xscale)
    said = np.select(
        [rows[PANEL].isna(), rows[GROUP].isna(), y != "", ~flat & (x != ""), placed & nowhere],
        [
            f"no {lines.panel}",
            f"no {lines.group}",
            f"{lines.y} is " + y,
            f"{lines.x} is " + x,
            f"no {by}",
        ],
        "",
    )
    return pd.Series(said, rows.index)


def _left_out(rows: pd.DataFrame, lines: Lines, unpaged: int, failed: int) -> Iterable[str]:
    """What a page does not show, in sentences: how many rows, of which groups, and why."""
    lost = rows[rows[WHY] != ""]
    if len(lost):
        reasons = []
        for reason, mine in lost.groupby(WHY, sort=False):
            groups = list(mine[GROUP].dropna().unique())
            more = f" and {len(groups) - NAMED} more" if len(groups) > NAMED else ""
            whose = f": {', '.join(groups[:NAMED])}{more}" if lines.group and groups else ""
            reasons.append(f"{reason} ({len(mine)}{whose})")
        yield f"{len(lost)} of {len(rows)} rows are not drawn: {'; '.join(reasons)}."
    if unpaged:
        yield f"{unpaged} rows have no {lines.page} and are on no page."
    if failed:
        yield f"{counted(failed, 'case')} failed."
    for label in (lines.xlabel, lines.ylabel, lines.expected_label, *lines.guides.values()):
        if "$" in label and not _authored(label)[1]:
            yield f"The label {label!r} is no mathematics that can be set, and stands as written."


@cache
def _authored(label: str) -> tuple[str, bool]:
    """A label as it is set, and whether what stands between its dollar signs is mathematics."""
    label = drawn(label)
    try:
        with rc_context(STYLE):
            MathTextParser("path").parse(label)
    except ValueError:
        return label, False
    return label, True


def _legend_columns(labels: list[str]) -> int:
    """As many columns as fit the width: an entry's line and gaps, and 0.06 inches a letter."""
    longest = max(map(len, labels), default=0)
    return max(1, min(5, len(labels), int(WIDTH / (0.5 + 0.06 * longest))))


def _groups(rows: pd.DataFrame, lines: Lines) -> list[str]:
    """The groups that are drawn as lines."""
    # A group without a place on the axis, as an untimed control against seconds, is no line.
    placed = rows.loc[as_numbers(rows[lines.x]).notna(), GROUP].dropna().unique()
    return [group for group in placed if group not in {*lines.references, lines.exact}]


def _looks(rows: pd.DataFrame, lines: Lines) -> dict[str, Look]:
    """A look for each group; ``ValueError`` for more than can be told apart."""
    groups = _groups(rows, lines)
    if len(groups) > len(METHODS):
        msg = (
            f"{lines.group} has {len(groups)} values, and at most {len(METHODS)} lines can be told "
            "apart; choose some with where, or split them by panel or page and where."
        )
        raise ValueError(msg)
    return dict(zip(groups, chosen(groups), strict=True))


def _title(panel: str, across: int) -> str:
    """The panel's name, on two lines where it is wider than one of three panels."""
    title = drawn(panel)
    return title.replace(", ", ",\n", 1) if across > 2 and len(title) > LETTERS else title


def _frame(lines: Lines, panels: int, looks: int, entries: float) -> tuple[int, int, float, float]:
    """Panels across and down, and in inches the height of the figure and of what is above them."""
    across = min(3, panels)
    down = math.ceil(panels / across)
    each = 1.75 if down < 3 else 1.07  # of three rows, two figures fit a page; more fill one
    if down > 3:
        each = max(1.07, min(1.75, 7.6 / down))
    if down == 1 and (across == 1 or looks > 5):
        each = 2.4
    if lines.legend == "panel":
        each = 2.0
    above = (TITLE if lines.panel else 0.1) + ENTRIES * math.ceil(entries)
    return across, down, above + BELOW + down * each, above


def _legend(
    where: Axes | Figure,
    entries: Mapping[str, Any],
    labels: Sequence[str],
    authored: Iterable[str] = (),
    **how: Any,
) -> None:
    """A legend of those of the labels that have an entry, in their order; none without."""
    shown = [label for label in labels if label in entries]
    if not shown:
        return
    # matplotlib would leave out a label that is empty or begins with "_", so it is told no label.
    legend = where.legend([entries[label] for label in shown], ["."] * len(shown), **how)
    for text, label in zip(legend.get_texts(), shown, strict=True):
        word, mathematics = _authored(label) if label in {*authored} else (drawn(label), False)
        text.set(text=word, parse_math=mathematics)


def _curve(rows: pd.DataFrame, lines: Lines, y: str) -> dict[str, np.ndarray]:
    """The quartiles of ``y`` along the line, and the ``x`` of each point; ``place`` of each row."""
    along, place = np.unique(rows[lines.by or lines.x].to_numpy(), return_inverse=True)
    q1, median, q3 = quartiles_of(place, rows[y].to_numpy(float))
    x = quartiles_of(place, rows[lines.x].to_numpy(float))[1] if lines.by else along
    return {"x": x, "q1": q1, "median": median, "q3": q3, "place": place}


def _marks(
    figure: Figure, axes: Axes, panel: str, points: Sequence[Mapping[str, Any]]
) -> Iterable[Mark]:
    """The points of a curve, which the frame follows."""
    places = axes.transData.transform([[point["x"], point["y"]] for point in points])
    places = figure.transFigure.inverted().transform(places)
    for (left, up), point in zip(places, points, strict=True):
        yield Mark(round(float(left), 5), round(float(1 - up), 5), panel, **point)


class _Cases:
    """What rows of a page have in common, by axis of the study: a row begins with its case."""

    def __init__(self, rows: pd.DataFrame, by: str) -> None:
        self.axes = [x for x in of_case(rows) if x != by]
        self.columns = [rows[axis].to_numpy(object) for axis in self.axes]
        codes = [pd.factorize(rows[axis], use_na_sentinel=False)[0] for axis in self.axes]
        self.codes = np.array(codes, dtype=int).reshape(len(self.axes), len(rows))

    def common(self, rows: np.ndarray, place: np.ndarray) -> Iterable[tuple[int, dict[str, str]]]:
        """For each place: how many of the rows are there, and what their cases share."""
        order = np.argsort(place, kind="stable")
        counts = np.bincount(place)
        starts = counts.cumsum() - counts
        codes, first = self.codes[:, rows[order]], rows[order][starts]
        same = np.minimum.reduceat(codes, starts, 1) == np.maximum.reduceat(codes, starts, 1)
        for i, count in enumerate(counts.tolist()):
            yield (
                count,
                {axis: self._word(j, first[i]) for j, axis in enumerate(self.axes) if same[j, i]},
            )

    def _word(self, j: int, row: int) -> str:
        value = self.columns[j][row]
        return brief(str(None if pd.isna(value) else value), LONGEST)


def _panel(
    axes: Axes, rows: pd.DataFrame, lines: Lines, looks: Mapping[str, Look], cases: _Cases
) -> tuple[list[list[dict[str, Any]]], dict[str, Any]]:
    """Draw the panel; the points of each curve with what each is made of, and what has a label."""
    curves: list[list[dict[str, Any]]] = []
    bands: list[tuple[np.ndarray, Any]] = []
    entries: dict[str, Any] = {}
    axes.set(xscale=lines.xscale, yscale=lines.yscale)
    by = lines.by or lines.x
    # Each curve takes rows of a table: of these columns alone, which is much less to take.
    used = {GROUP, WHY, ROW, by, lines.x, lines.y, lines.expected, *lines.guides}
    rows = rows[[column for column in rows if column in used]]
    on_axis = _usable(rows[lines.x], lines.xscale) & rows[by].notna()
    named = rows[GROUP].isin([*looks, *lines.references])
    named |= rows[WHY].str.startswith(f"{lines.y} is ")
    if lost := int((named & (rows[WHY] != "")).sum()):
        log = "log" in {lines.xscale, lines.yscale}
        said = f"{lost} of {len(rows)} not drawn: {'not positive or ' if log else ''}not finite"
        axes.text(0.5, 0.02, said, transform=axes.transAxes, ha="center", fontsize=6.5)
    kept = rows[rows[WHY] == ""]
    for (guide, label), style in zip(
        lines.guides.items(), GUIDES * len(lines.guides), strict=False
    ):
        points = rows[on_axis & _usable(rows[guide], lines.yscale)]
        points = points.groupby(lines.x)[guide].median()
        (entries[label],) = axes.plot(
            points.index, points, label=label, color="0.6", linestyle=style, lw=0.8, zorder=1.5
        )
    for group, (marker, filled, line, colour) in looks.items():
        of_group = kept[kept[GROUP] == group]
        curve = _curve(of_group, lines, lines.y)
        if len(of_group):
            x, median = curve["x"], curve["median"]
            around = np.concatenate((curve["q1"], curve["q3"][::-1]))
            bands.append((np.column_stack((np.concatenate((x, x[::-1])), around)), colour))
            (entries[group],) = axes.plot(
                x, median, label=group, color=colour,
                linestyle=line, marker=marker, markersize=3.8, lw=1.1,
                markerfacecolor=colour if filled else "white",
                markeredgecolor="white" if filled else colour,
                markeredgewidth=0.4 if filled else 0.8,
            )  # fmt: skip
            shared = cases.common(of_group[ROW].to_numpy(), curve["place"])
            quartiles = zip(x, median, curve["q1"], curve["q3"], shared, strict=True)
            curves.append([
                {"group": group, "x": float(at), "y": float(y), "q1": float(q1), "q3": float(q3),
                 "cases": count, "case": case}
                for at, y, q1, q3, (count, case) in quartiles
            ])  # fmt: skip
        if lines.expected:
            mine = rows[
                (rows[GROUP] == group) & on_axis & _usable(rows[lines.expected], lines.yscale)
            ]
            points = _curve(mine, lines, lines.expected)
            axes.plot(points["x"], points["median"], color=colour, **EXPECTED)
    if bands:
        shapes, colours = zip(*bands, strict=True)
        axes.update_datalim(np.concatenate(shapes))
        axes.add_collection(
            PolyCollection(shapes, facecolors=colours, alpha=0.18, lw=0), autolim=False
        )
        axes.autoscale_view()
    entries |= _references(axes, kept, lines)
    return curves, entries


def _references(axes: Axes, kept: pd.DataFrame, lines: Lines) -> dict[str, Any]:
    """Draw what methods are held against; return what has a label."""
    entries: dict[str, Any] = {}
    by = lines.by or lines.x
    styles = itertools.cycle(GUIDES)
    dots = itertools.cycle([":", (0, (1, 3)), (0, (3, 1, 1, 1, 1, 1)), (0, (5, 4))])
    for reference in lines.references:
        mine = kept[kept[GROUP] == reference]
        if mine.empty:
            continue
        if mine[by].isna().all():
            flat = mine[lines.y].median()
            entries[reference] = axes.axhline(
                flat, label=reference, color="black", linestyle=next(dots), lw=1
            )
        else:
            points = _curve(mine, lines, lines.y)
            (entries[reference],) = axes.plot(
                points["x"],
                points["median"],
                label=reference,
                color="black",
                lw=0.8,
                linestyle=next(styles),
            )
    cost = kept.loc[kept[GROUP] == lines.exact, lines.x].median()
    if math.isfinite(cost):
        entries[lines.exact] = axes.axvline(cost, label=lines.exact, color="0.45", lw=0.8)
    return entries


def _scale(axes: Axes, rows: pd.DataFrame, lines: Lines, looks: Iterable[str]) -> None:
    """Limits that show the methods, and ticks in plain numbers where an axis spans little."""
    mine = rows[rows[GROUP].isin(list(looks))]
    if lines.yscale == "log":
        shown = [mine[column] for column in (lines.y, lines.expected) if column]
        # A bound far below may leave the frame.
        lowest = min(y[_usable(y, "log")].min() for y in shown) / 4
        if lowest > 0:
            axes.set_ylim(bottom=max(lowest, axes.get_ylim()[0]))
    for axis, scale, (low, high) in (
        (axes.xaxis, lines.xscale, axes.get_xlim()),
        (axes.yaxis, lines.yscale, axes.get_ylim()),
    ):
        if scale == "linear":
            continue
        axis.set_minor_locator(NullLocator())
        if high / low < 100:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        if high / low < 3000:
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    values = sorted(mine.loc[_usable(mine[lines.x], lines.xscale), lines.x].unique())
    low, high = axes.get_xlim()
    gaps = np.diff(np.log(values)) / np.log(high / low) if lines.xscale == "log" else np.zeros(1)
    plain = high / low < 3000  # beyond, only decades have words
    if lines.xscale == "log" and plain and 0 < len(values) <= 8 and (gaps > 0.08).all():
        axes.xaxis.set_major_locator(FixedLocator(values))
