"""Figures as data: what a study wants drawn of its table.

``softlab.report.drawing`` draws them. This module imports nothing, so that a worker that holds a
description needs no library for drawing.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Word = str | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Median of ``y`` against ``x``, a line for each ``group``, a panel for each ``panel``.

    Columns: ``x``, ``y`` and ``group`` are always needed. ``by`` runs along a line (``x`` unless
    given), and the rows that agree in page, panel, group and ``by`` are summarised by their median;
    the shaded band runs from the first to the third quartile. ``panel`` splits a figure into
    panels, and ``page`` into one figure a value: errors against different targets are not
    comparable and never share one. Without them there is one panel, one figure. None on an axis of
    the study is a value like others, "scale = None". ``expected`` is a
    second ``y``, drawn thin, dashed and without markers in the colour of its group: what was
    predicted beside what was observed.

    Rows: ``where`` maps columns to the value, or to the list of values, that a drawn row has there.
    ``rows`` names a function of the study's chapter that makes the rows to draw of the table, such
    as a front or a profile, which no single case knows; the table itself where it is empty.

    Groups: those in ``references`` are drawn thin and black, dotted and flat where they have no
    ``by``; ``exact`` is one drawn as a vertical line at its ``x``. A group keeps its look on all
    pages, where all pages together have no more groups than can be told apart. ``legend`` is
    "figure", or "panel": each panel then names its own groups, and looks begin anew in each.
    ``guides`` maps columns to labels: each is drawn once a panel as a thin grey line, its
    median at each ``x`` over all groups, as for a bound.

    Axes: ``xscale`` and ``yscale`` are "log" or "linear". The frame follows the methods and what is
    expected of them; references and guides may leave it below.

    Words: ``xlabel``, ``ylabel``, ``expected_label`` (for the legend) and the guides' labels may
    hold mathematics between dollar signs; group and panel names are set as they are, and so are all
    words in captions. ``caption`` replaces the automatic caption, which quotes the labels;
    ``{page}`` in it stands for the page. ``name`` begins the file name, in place of the columns y
    and x. All of it survives JSON.

    Raises ``ValueError`` for a scale or a legend that is neither of the two.
    """

    x: str
    y: str
    group: str
    xlabel: str
    ylabel: str
    panel: str = ""
    page: str = ""
    by: str = ""
    where: Mapping[str, Word | Sequence[Word]] = field(default_factory=dict)
    references: Sequence[str] = ()
    exact: str = ""
    expected: str = ""
    expected_label: str = "expected"
    guides: Mapping[str, str] = field(default_factory=dict)
    xscale: str = "log"
    yscale: str = "log"
    caption: str = ""
    name: str = ""
    rows: str = ""
    legend: str = "figure"

    def __post_init__(self) -> None:
        for axis, scale in (("xscale", self.xscale), ("yscale", self.yscale)):
            if scale not in {"log", "linear"}:
                msg = f"Lines.{axis} is {scale!r}; use 'log' or 'linear'."
                raise ValueError(msg)
        if self.legend not in {"figure", "panel"}:
            msg = f"Lines.legend is {self.legend!r}; use 'figure' or 'panel'."
            raise ValueError(msg)


def __getattr__(name: str) -> Any:
    """What was defined here until 0.1: it is in ``softlab.report.drawing``."""
    if name not in {"Drawing", "Mark", "caption", "draw", "file_name", "pages", "save"}:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from softlab.report import drawing

    where = f"softlab.report.drawing.{name}"
    warnings.warn(f"softlab.figures.{name} is now {where}", DeprecationWarning, stacklevel=2)
    return getattr(drawing, name)
