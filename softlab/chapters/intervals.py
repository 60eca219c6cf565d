"""Means over a few seeds, with the interval of Student's t."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from softlab.chapters import Cell
from softlab.chapters.headlines import Headline


class Mean(NamedTuple):
    """The mean of some numbers and its 95 % interval, infinite for a single number."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def mean(x: pd.Series) -> Mean:
    """Of independent numbers with one normal law, as runs with other seeds are taken to be."""
    values = x.to_numpy(float)
    if len(values) < 2 or np.ptp(values) <= 1e-12 * np.abs(values).max():  # equal but for rounding
        spread = 0.0 if len(values) > 1 else np.inf
        value = float(values.mean()) if len(values) else np.nan
        return Mean(value, value - spread, value + spread)
    found = ttest_1samp(values, 0).confidence_interval(0.95)
    return Mean(float(values.mean()), float(found.low), float(found.high))


def difference(rows: pd.DataFrame, column: str, method: str, other: str) -> Mean:
    """A column of one method less that of another, seed by seed: one row a method and seed.

    NaN where they have no seed in common.
    """
    by = rows.pivot_table(index="seed", columns="method", values=column)
    by = by.reindex(columns=sorted({method, other}))
    return mean((by[method] - by[other]).dropna())


def percent(x: float, *, signed: bool = False) -> str:
    """A share in percent with one digit after the point."""
    return f"{100 * x:+.1f}" if signed else f"{100 * x:.1f}"


def words(found: Mean, *, signed: bool = False) -> str:
    """Mean and interval, for a sentence: "84.1 % (83.0 to 85.2)".

    ``signed``: of a difference of shares, in percentage points: "+1.1 points (+0.2 to +2.0)".
    """
    value = f"{percent(found.value, signed=signed)} {'points' if signed else '%'}"
    return f"{value} ({_bounds(found, signed=signed)})" if np.isfinite(found.low) else value


def cell(found: Mean, *, signed: bool = False) -> Cell:
    """Mean above its interval, in percent."""
    value = percent(found.value, signed=signed)
    return [value, _bounds(found, signed=signed)] if np.isfinite(found.low) else value


def headline(text: str, found: Mean, seeds: int) -> Headline:
    """A difference of shares in a sentence, in percentage points; one seed has no interval."""
    known = f"95 % {_bounds(found, signed=True)}; " if np.isfinite(found.low) else ""
    return {
        "text": text,
        "value": percent(found.value, signed=True),
        "interval": f"{known}seeds: {seeds}",
    }


def _bounds(found: Mean, *, signed: bool) -> str:
    return " to ".join(percent(x, signed=signed) for x in (found.low, found.high))
