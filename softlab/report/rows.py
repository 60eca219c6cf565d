"""The rows of a table that a chapter may read."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import pandas as pd

LEFT = ("OUT_OF_STEPS", "DIVERGED", "NON_FINITE")
"""How a solver ends that has not inverted its core: names of ``softlab.pinv.Status``.

STAGNATED is none of them: there rounding holds the residual, and no step would change it.
"""


def finished(table: pd.DataFrame, needed: AbstractSet[str]) -> pd.DataFrame:
    """The finished rows; none, but with all columns, of a table that lacks a needed one."""
    if lacking := needed - set(table.columns):
        return table[:0].reindex(columns=[*table.columns, *sorted(lacking)])
    return table[table["status"] == "ok"]
