"""Times in words: each with its noise, none that is too noisy, marked where the machine was busy.

A timed column ``x`` may have the quartiles of its repeats beside it, ``x_q1`` and ``x_q3``. A
timing is *steady* where (q3 - q1) / x is at most ``WIDE``, or where no quartiles are recorded. A
case was measured on a *busy* machine where its ``case_cpu_share``, processor seconds over seconds
of the clock, is below ``BUSY``: a process that computes and is left alone has one or more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from softlab.report import quartiles as of_quartiles
from softlab.report.chapter import Cell
from softlab.report.numbers import number, short

WIDE = 0.25
"""The widest (q3 - q1) / median of repeats of which a time is still printed."""
BUSY = 0.8
"""The least processor seconds a second of a case on a machine that nothing else used."""


class Timing(NamedTuple):
    """A time, or a ratio of two: the median over the steady of some timings, and its noise.

    ``value`` between ``low`` and ``high``, the medians of the quartiles of repeats (NaN where none
    are recorded); ``timings`` there were, of which ``noisy`` are left out and ``busy`` are marked.
    """

    value: float
    low: float
    high: float
    timings: int
    noisy: int
    busy: int

    @property
    def known(self) -> bool:
        """Whether it may be printed: at least half of the timings are steady."""
        return math.isfinite(self.value) and 2 * self.noisy <= self.timings

    def words(self, unit: str = "", scale: float = 1.0) -> str:
        """For a sentence: "2.62 ms (quartiles 2.55 to 2.70)", or why there is no number.

        ``unit`` is the word after the number, as " ms"; ``scale`` its size in units of the column.
        """
        if not self.timings:
            return "a time that was not measured"
        noisy = (
            f"{self.noisy} of {self.timings} timings noisy: quartiles wider than "
            f"{100 * WIDE:.0f} % of the median"
        )
        busy = f"{self.busy} of {self.timings} timings taken on a busy machine"
        said = [noisy] if self.noisy else []
        said += [busy] if self.busy else []
        if not self.known:
            return f"a time that is withheld ({'; '.join(said) or 'not finite'})"
        quartiles = f"quartiles {number(scale * self.low)} to {number(scale * self.high)}"
        spread = quartiles if math.isfinite(self.low) else "noise not recorded"
        return f"{number(scale * self.value)}{unit} ({'; '.join([spread, *said])})"

    def cell(self, scale: float = 1.0) -> Cell:
        """For a table: the time above its quartiles; "noisy" above them where it is withheld."""
        if not self.timings:
            return ""
        if not self.known:
            return "noisy"
        value, low, high = (scale * x for x in (self.value, self.low, self.high))
        if not math.isfinite(low):
            return short(value)
        return of_quartiles.cell({"median": value, "q1": low, "q3": high})


def noise(rows: pd.DataFrame, column: str = "seconds") -> pd.Series:
    """(q3 - q1) / median of the repeats of each row; NaN where they are not recorded.

    ``column``: a timed column, or one of its quartiles, "seconds_q1".
    """
    base = _base(column)
    if not {base, f"{base}_q1", f"{base}_q3"} <= set(rows.columns):
        return pd.Series(math.nan, rows.index)
    return (rows[f"{base}_q3"] - rows[f"{base}_q1"]) / rows[base]


def steady(rows: pd.DataFrame, column: str = "seconds") -> pd.Series:
    """Which rows have a timing that may be counted or compared; arguments as of ``noise``."""
    return rows[column].notna() & ~(noise(rows, column) > WIDE)


def busy(rows: pd.DataFrame) -> pd.Series:
    """Which rows were measured while something else used the processor."""
    if "case_cpu_share" not in rows:
        return pd.Series(data=False, index=rows.index)
    return rows["case_cpu_share"] < BUSY


def timing(rows: pd.DataFrame, column: str = "seconds") -> Timing:
    """The median time of ``rows``, or of a recorded ratio of times; arguments as of ``noise``.

    Rows without the time are no timings. Where no timing is steady the value is NaN.
    """
    rows = rows[rows[column].notna()]
    use = rows[steady(rows, column)]
    base = _base(column)
    known = len(use) and noise(use, column).notna().all()
    low, high = (
        float(use[f"{base}_{end}"].median()) if known else math.nan for end in ("q1", "q3")
    )
    value = float(use[column].median()) if len(use) else math.nan
    return Timing(value, low, high, len(rows), len(rows) - len(use), int(busy(rows).sum()))


def ratio(rows: pd.DataFrame, over: pd.DataFrame, column: str = "seconds") -> Timing:
    """The median time of ``rows`` over that of ``over``: low from q1 over q3, high from q3 over q1.

    Arguments as of ``noise``. Where a table has a ratio of interleaved repeats with its own
    quartiles, ``timing`` of that column is sharper.
    """
    a, b = timing(rows, column), timing(over, column)
    counts = (a.timings + b.timings, a.noisy + b.noisy, a.busy + b.busy)
    if not (a.known and b.known):
        return Timing(math.nan, math.nan, math.nan, *counts)
    return Timing(a.value / b.value, a.low / b.high, a.high / b.low, *counts)


def _base(column: str) -> str:
    return column.removesuffix("_q1").removesuffix("_q3")
