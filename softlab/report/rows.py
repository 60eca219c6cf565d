"""The rows of a table that a chapter may read."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import pandas as pd

from softlab.hints import hint

LEFT = ("OUT_OF_STEPS", "DIVERGED", "NON_FINITE")
"""How a solver ends that has not inverted its core: names of ``softlab.pinv.Status``.

STAGNATED is none of them: there rounding holds the residual, and no step would change it.
"""


class ColumnError(KeyError):
    """A table lacks a column that its chapter reads."""

    def __str__(self) -> str:
        return str(self.args[0])


def complete(table: pd.DataFrame, needed: AbstractSet[str]) -> bool:
    """Whether the table has the columns; where no case finished it need not have them.

    Raises ``ColumnError`` for a column that is missing beside finished rows.
    """
    lacking = sorted(needed - set(table.columns))
    if lacking and (table["status"] == "ok").any():
        near = hint(lacking[0], map(str, table.columns))
        msg = (
            f"the table of the study {table.attrs.get('name', 'at hand')} has no column "
            f"{lacking[0]!r}, which its chapter reads.{near} Run the study again with the softlab "
            "that reports on it."
        )
        raise ColumnError(msg)
    return not lacking


def of_case(table: pd.DataFrame) -> list[str]:
    """The columns of the case, with which a row begins: those before ``status``, no fields."""
    names = [*table.columns]
    end = names.index("status") if "status" in names else len(names)
    return [x for x in names[:end] if "." not in x]


def finished(table: pd.DataFrame, needed: AbstractSet[str]) -> pd.DataFrame:
    """The finished rows; raises ``ColumnError`` where one is there and a needed column is not."""
    if complete(table, needed):
        return table[table["status"] == "ok"]
    return table[:0].reindex(columns=[*table.columns, *sorted(needed - set(table.columns))])
