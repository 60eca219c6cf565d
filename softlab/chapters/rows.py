"""The rows of a table that a chapter may read."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import pandas as pd


def finished(table: pd.DataFrame, needed: AbstractSet[str]) -> pd.DataFrame:
    """The finished rows; none, but with all columns, of a table that lacks a needed one."""
    if lacking := needed - set(table.columns):
        return table[:0].reindex(columns=[*table.columns, *sorted(lacking)])
    return table[table["status"] == "ok"]
