"""Intervals, each for what varies: means of seeds, medians of units, exponents, shares.

What is nested is no sample: four samples of a head, the seeds of an input and the ranks tried on it
are reduced to one number a head or input (``by_unit``) before anything is said of how sure it is. A
designed grid (condition numbers, budgets, methods) is no population: it has a range and no interval
(``headlines.headline`` with ``grid``). Where a reader looks at many verdicts at once each interval
has the ``confidence`` at which all of them together hold in 95 % of studies.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest, linregress, norm, quantile_test, t, ttest_1samp

from softlab.report.chapter import Cell
from softlab.report.numbers import number

if TYPE_CHECKING:
    from softlab.report.headlines import Headline

CONFIDENCE = 0.95


class Mean(NamedTuple):
    """A mean or a slope and its interval, infinite where the numbers allow none."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return bool(np.isfinite(self.low))

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


class Median(NamedTuple):
    """The median of so many independent units.

    ``low`` to ``high`` is its interval where ``known``; else the range of the units, which are too
    few for one, or so alike that the interval would have no width in print.
    """

    value: float
    low: float
    high: float
    units: int
    known: bool

    def span(self, of: str) -> str:
        """How sure it is, in words; ``of`` names the units in the plural.

        "95 % 1.00 to 3.00", "range over 4 inputs: 1.00 to 3.00", "the same for all 4 inputs". Of
        two it gives both: "the two inputs: 1.00 and 3.00".
        """
        low, high = number(self.low), number(self.high)
        if self.units < 2:
            return ""
        if low == high:
            return f"the same for all {self.units} {of}"
        if self.units == 2:
            return f"the two {of}: {low} and {high}"
        return f"{'95 %' if self.known else f'range over {self.units} {of}:'} {low} to {high}"


def confidence(verdicts: int) -> float:
    """That of each of so many intervals for 95 % of all together, whatever ties them (Bonferroni).

    Every number that a reader could have pointed at counts: all operators of a table, not those
    that turned out to differ.
    """
    return 1 - (1 - CONFIDENCE) / max(verdicts, 1)


def mean(x: pd.Series, *, verdicts: int = 1) -> Mean:
    """Of independent numbers with one normal law, as runs with other seeds are taken to be.

    Numbers that are equal but for rounding have no spread to judge by, and no interval.
    ``verdicts``: how many such intervals are read at once.
    """
    values = x.to_numpy(float)
    value = float(values.mean()) if len(values) else np.nan
    if len(values) < 2 or np.ptp(values) <= 1e-12 * np.abs(values).max():
        return Mean(value, -np.inf, np.inf)
    found = ttest_1samp(values, 0).confidence_interval(confidence(verdicts))
    return Mean(value, float(found.low), float(found.high))


def by_unit(values: pd.Series, unit: pd.Series, *, ratios: bool = False) -> pd.Series:
    """One number a unit: the median of its values, or of ratios their geometric mean."""
    if ratios:
        return np.exp(np.log(values.astype(float)).groupby(unit, sort=False).mean())
    return values.astype(float).groupby(unit, sort=False).median()


def median(
    values: pd.Series, unit: pd.Series | None = None, *, ratios: bool = False, verdicts: int = 1
) -> Median:
    """Over independent units: each value is one, or ``unit`` tells to which a value belongs.

    ``ratios`` and ``unit`` as of ``by_unit``. ``verdicts``: how many such intervals are read at
    once. NaN, no answer, is left out; an infinite value counts as beyond all others.
    """
    each = values.astype(float) if unit is None else by_unit(values, unit, ratios=ratios)
    each = each.dropna()
    if each.empty:
        return Median(np.nan, np.nan, np.nan, 0, known=False)
    low, high = interval(each, confidence(verdicts))
    known = number(low) != number(high) and not (np.isneginf(low) and np.isposinf(high))
    if not known:
        low, high = each.min(), each.max()
    return Median(float(each.median()), float(low), float(high), len(each), known=known)


def interval(x: pd.Series, level: float = CONFIDENCE) -> tuple[float, float]:
    """That of the median, of at least this confidence whatever the distribution: order statistics.

    For independent numbers. From minus to plus infinity for few, which allow none: fewer than six
    at 95 %.
    """
    found = quantile_test(x.to_numpy(), p=0.5).confidence_interval(level)
    low, high = float(found.low), float(found.high)
    return (-np.inf if np.isnan(low) else low), (np.inf if np.isnan(high) else high)


def exponent(x: pd.Series, y: pd.Series, *, verdicts: int = 1) -> Mean:
    """The power of x with which y grows: the slope of log y on log x by least squares.

    With Student's interval, of as many degrees of freedom as there are points beyond two. NaN from
    fewer than three points and where y is not positive.
    """
    if len(x) < 3 or not (y > 0).all():
        return Mean(np.nan, np.nan, np.nan)
    fit = linregress(np.log(x.to_numpy(float)), np.log(y.to_numpy(float)))
    half = float(t.ppf((1 + confidence(verdicts)) / 2, len(x) - 2) * fit.stderr)
    return Mean(float(fit.slope), float(fit.slope) - half, float(fit.slope) + half)


def share(count: int, of: int, *, verdicts: int = 1) -> tuple[float, float]:
    """The interval of a share of independent units, ``count`` of ``of`` (Clopper and Pearson)."""
    found = binomtest(count, of).proportion_ci(confidence(verdicts))
    return float(found.low), float(found.high)


def of_draws(draws: np.ndarray, units: int) -> tuple[float, float]:
    """That of a statistic from its bootstrap draws of independent units: the expanded percentiles.

    Plain percentiles cover too little for few units, as a normal law with the biased spread does;
    these are at the levels Phi(-+ sqrt(n / (n - 1)) t) with t Student's quantile. NaN, a draw in
    which the statistic does not exist, is left out. Reference: Hesterberg, The American
    Statistician 69 (2015).
    """
    known = draws[np.isfinite(draws)]
    if units < 2 or not len(known):
        return np.nan, np.nan
    tail = norm.cdf(np.sqrt(units / (units - 1)) * t.ppf((1 - CONFIDENCE) / 2, units - 1))
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def difference(
    rows: pd.DataFrame, column: str, method: str, other: str, *, verdicts: int = 1
) -> Mean:
    """A column of one method less that of another, seed by seed: one row a method and seed.

    NaN where they have no seed in common. ``verdicts`` as of ``mean``.
    """
    by = rows.pivot_table(index="seed", columns="method", values=column)
    by = by.reindex(columns=sorted({method, other}))
    return mean((by[method] - by[other]).dropna(), verdicts=verdicts)


def in_common(rows: pd.DataFrame, method: str, other: str) -> int:
    """How many seeds two methods have in common, which is of how many their difference is."""
    seeds = (set(rows.loc[rows["method"] == name, "seed"]) for name in (method, other))
    return len(set.intersection(*seeds))


def percent(x: float, *, signed: bool = False) -> str:
    """A share in percent with one digit after the point."""
    return f"{100 * x:+.1f}" if signed else f"{100 * x:.1f}"


def words(found: Mean, *, signed: bool = False) -> str:
    """Mean and interval, for a sentence: "84.1 % (83.0 to 85.2)".

    ``signed``: of a difference of shares, in percentage points: "+1.1 points (+0.2 to +2.0)".
    """
    value = f"{percent(found.value, signed=signed)} {'points' if signed else '%'}"
    bounds = _bounds(found, partial(percent, signed=signed))
    return f"{value} ({bounds})" if bounds else value


def bracketed(found: Mean, form: Callable[[float], str] = number) -> str:
    """A number with its interval in brackets, for a sentence: "1.32 (1.10 to 1.54)"."""
    bounds = _bounds(found, form)
    return f"{form(found.value)} ({bounds})" if bounds else form(found.value)


def stacked(found: Mean, form: Callable[[float], str]) -> Cell:
    """For a table: a number above its interval."""
    bounds = _bounds(found, form)
    return [form(found.value), bounds] if bounds else form(found.value)


def cell(found: Mean, *, signed: bool = False) -> Cell:
    """Mean above its interval, in percent."""
    return stacked(found, partial(percent, signed=signed))


def headline(text: str, found: Mean, seeds: int) -> Headline:
    """A difference of shares in a sentence, in percentage points; one seed has no interval."""
    bounds = _bounds(found, partial(percent, signed=True))
    known = f"95 % {bounds}; " if bounds else ""
    return {
        "text": text,
        "value": percent(found.value, signed=True),
        "interval": f"{known}seeds: {seeds}",
    }


def _bounds(found: Mean, form: Callable[[float], str]) -> str:
    """Empty where there is no interval, or in print no width."""
    low, high = form(found.low), form(found.high)
    return f"{low} to {high}" if found.known and low != high else ""
