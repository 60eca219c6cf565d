"""Whose each pixel is, by a head on the scales of a pyramid.

Read are the columns of ``studies/segmentation``: ``status``, ``method``, ``seed``, ``side``,
``miou``, ``things``, ``right``, ``blank``, ``lost``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline
from softlab.report.intervals import cell, difference, headline, in_common, mean, percent, words
from softlab.report.numbers import joined
from softlab.report.rows import finished

from .columns import EXACT, PLAIN

NEEDED = {"status", "method", "seed", "side", "miou", "things", "right", "blank", "lost"}


def scope(table: pd.DataFrame) -> str:
    """The methods and the sides."""
    done = finished(table, NEEDED)
    if done.empty:
        return ""
    return (
        f"Attention: {'; '.join(map(str, done['method'].unique()))}. Canvases of "
        f"{joined(sorted(done['side'].unique()))} pixels; seeds: {done['seed'].nunique()}."
    )


def findings(table: pd.DataFrame) -> list[str]:
    """How right each is at the training's side, and what a larger canvas costs."""
    done = finished(table, NEEDED)
    if done.empty:
        return []
    said = []
    sides, methods = done["side"].nunique(), done["method"].nunique()
    for side, rows in done.groupby("side"):
        by = {
            str(m): mean(part["miou"], verdicts=methods * sides)
            for m, part in rows.groupby("method", sort=False)
        }
        each = joined(f"{m} {words(by[m])}" for m in sorted(by, key=lambda m: -by[m].value))
        said.append(
            f"Mean intersection over union on canvases of {side} pixels: {each}. All ground would "
            f"reach {percent(rows['blank'].mean())} %."
        )
        if EXACT in by and len(by) > 1:
            off = {
                m: difference(rows, "miou", m, EXACT, verdicts=(methods - 1) * sides)
                for m in by
                if m != EXACT
            }
            each = joined(f"{m} {words(x, signed=True)}" for m, x in off.items())
            apart = joined(m for m, x in off.items() if x.sign) or "none"
            said[-1] += (
                f" Differences from softmax attention by seed: {each}; told apart from it: {apart}."
            )
    first, last = done["side"].min(), done["side"].max()
    if first < last:
        large = done[done["side"] == last]
        each = joined(
            f"{m} {words(mean(part['lost'], verdicts=methods), signed=True)}"
            for m, part in large.groupby("method", sort=False)
        )
        said.append(f"From {first} to {last} pixels this much of it is lost: {each}.")
    return said


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """SOFT less softmax attention on the largest canvas."""
    done = finished(table, NEEDED)
    if not {EXACT, PLAIN} <= set(done["method"]):
        return
    side = done["side"].max()
    rows = done[done["side"] == side]
    text = (
        f"In a small pyramid on one data set, on canvases of {side} pixels, SOFT's mean "
        "intersection over union differs from softmax attention's by {} percentage points."
    )
    off = difference(rows, "miou", PLAIN, EXACT)
    yield headline(text, off, in_common(rows, PLAIN, EXACT))


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """By method and side."""
    done = finished(table, NEEDED)
    if done.empty:
        return
    body: list[list[Cell]] = []
    verdicts = done["method"].nunique() * done["side"].nunique()
    for method, mine in done.groupby("method", sort=False):
        for i, (side, rows) in enumerate(mine.groupby("side")):
            miou, things, right, lost = (
                mean(rows[column], verdicts=verdicts)
                for column in ("miou", "things", "right", "lost")
            )
            body.append([
                str(method) if i == 0 else "", str(side), cell(miou), cell(things), cell(right),
                cell(lost, signed=True) if i else "",
            ])  # fmt: skip
    yield {
        "caption": "Mean intersection over union of all classes and of the garments alone, pixels "
        "that are right, and what is lost of the first from the training's side, in percent: means "
        "over the seeds, and intervals of which all of a column hold together in 95 % of studies.",
        "header": ["attention", "side", "mean IoU", "garments", "pixels right", "lost"],
        "rows": body,
        "left": 2,
    }
