"""Many cases at one point: the median and the quartiles between which half of them lie."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from softlab.report.chapter import Cell
from softlab.report.numbers import short


def summary(rows: pd.DataFrame, keys: list[str], column: str) -> pd.DataFrame:
    """Quartiles of ``column`` over the rows that agree in ``keys``: columns q1, median, q3."""
    fractions = [0.25, 0.5, 0.75]
    quartiles = rows.groupby(keys, sort=False)[column].quantile(fractions).unstack()
    quartiles = quartiles.reindex(columns=fractions)  # without rows there would be no columns
    return quartiles.set_axis(["q1", "median", "q3"], axis=1).reset_index()


def quartiles_of(places: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Quartiles of the numbers at each place 0, 1, ...: an array (3, places).

    As ``summary`` has them, in a hundredth of its time: for a line of a figure. Between two
    numbers they are interpolated linearly. Every place has a number, and none is NaN.
    """
    ordered = numbers[np.lexsort((numbers, places))]
    counts = np.bincount(places)
    starts = counts.cumsum() - counts
    at = np.array([[0.25], [0.5], [0.75]]) * (counts - 1)
    below = at.astype(int)
    low, high = ordered[starts + below], ordered[starts + np.minimum(below + 1, counts - 1)]
    found: np.ndarray = low + (high - low) * (at - below)
    return found


def cell(point: Mapping[str, float] | None) -> Cell:
    """A median above its quartiles; only the median where they agree in print; empty for None."""
    if point is None:
        return ""
    q1, q3 = (short(point[name], 2).removeprefix("0") for name in ("q1", "q3"))
    median = short(point["median"])
    return median if q1 == q3 else [median, f"{q1}–{q3}"]
