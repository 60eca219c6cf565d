"""What certificates are worth in a study: how often they say something, how far above the error.

The column ``certified_error`` is an upper bound of the relative error that needs no exact output,
infinite where the bound is as large as the output, and absent where the operator claims none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.intervals import Median, median
from softlab.report.numbers import counted, joined, number, short, span

CERTIFIED = "certified_error"


def worth(
    rows: pd.DataFrame, by: Sequence[str], *, error: str, unit: str, floor: str = ""
) -> pd.DataFrame:
    """One row for each group that has certificates, in the order of the table.

    ``cases`` with a certificate, on so many ``units``; ``told``: where it is below the output;
    ``certificates``: these; ``ratio``: of these over ``error``, the median over units, each the
    geometric mean of its cases; ``ratios``: of each case; ``broken``: how many are below ``floor``,
    the error itself unless a column is named.
    """
    known = rows[rows[CERTIFIED].notna()]
    found = []
    for names, mine in known.groupby(list(by), sort=False, dropna=False):
        some = mine[np.isfinite(mine[CERTIFIED].astype(float)) & (mine[error] > 0)]
        ratios = some[CERTIFIED].astype(float) / some[error]
        found.append({
            **dict(zip(by, names, strict=True)), "cases": len(mine), "units": mine[unit].nunique(),
            "told": int(np.isfinite(mine[CERTIFIED].astype(float)).sum()),
            "certificates": some[CERTIFIED].astype(float),
            "ratio": median(ratios, some[unit], ratios=True), "ratios": ratios,
            "broken": int((mine[CERTIFIED].astype(float) < mine[floor or error]).sum()),
        })  # fmt: skip
    return pd.DataFrame(found)


def paragraph(
    found: pd.DataFrame, names: Sequence[str], units: int, *, sampled: bool = False
) -> str:
    """What ``worth`` found, in a paragraph; empty where nothing has a certificate.

    ``names``: of its rows; ``units``: inputs of all; ``sampled``: the error is an estimate.
    """
    if found.empty:
        return ""
    cases, told = int(found["cases"].sum()), int(found["told"].sum())
    what = "sampled error" if sampled else "error"
    words = (
        f"A certificate, a bound of the error that needs no exact output, is below the output's "
        f"norm in {told} of {counted(cases, 'case')} with one, on {counted(units, 'input')}"
    )
    parts = [_part(name, row) for name, row in zip(names, found.to_dict("records"), strict=True)
             if row["told"]]  # fmt: skip
    silent = [name for name, many in zip(names, found["told"], strict=True) if not many]
    words += f"; there it is, over the {what}, {joined(parts)}." if parts else "."
    if silent:
        words += f" It says nothing of {joined(silent)}."
    broken = int(found["broken"].sum())
    than = "the lower end of the sampled interval" if sampled else "the error"
    if broken:
        why = "a bug, or the interval's odds" if sampled else "this is a bug"
        return f"{words} {broken} of {cases} are below {than}: {why}."
    return f"{words} None is below {than}." if told else words


def _part(name: str, row: dict[str, object]) -> str:
    ratio = row["ratio"]
    assert isinstance(ratio, Median)
    sure = ratio.span("inputs") or counted(ratio.units, "input")
    return f"{number(ratio.value)} for {name} ({row['told']} of {row['cases']} cases; {sure})"


def tables(
    found: pd.DataFrame, heads: Sequence[str], columns: Sequence[str], *, sampled: bool = False
) -> Iterator[Table]:
    """The same in a table: ``columns`` of ``worth`` under ``heads``, then what it found."""
    if found.empty or not found["told"].any():
        return
    body: list[list[Cell]] = []
    for _, rows in found.groupby(list(columns[:-1] or columns), sort=False):
        for i, row in enumerate(rows.to_dict("records")):
            ratios = row["ratios"]
            body.append([
                *(_cell(row[x]) if i == 0 or x == columns[-1] else "" for x in columns),
                f"{row['told']} of {row['cases']}", f"{row['units']}",
                short(row["certificates"].median()) if row["told"] else "none",
                [short(row["ratio"].value), span(ratios, short)] if len(ratios) else "none",
            ])  # fmt: skip
    what = "sampled error" if sampled else "error"
    yield {
        "caption": "Certificates, bounds of the error that need no exact output: in how many cases "
        "one is below the output's norm, on how many inputs; where it is, the certified relative "
        f"error (median) and that over the {what} (median over inputs, below it the range of the "
        "cases).",
        "header": [*heads, "below output", "inputs", "certified", f"over {what}"],
        "rows": body,
        "left": len(heads),
    }


def _cell(x: object) -> str:
    if isinstance(x, float):
        return "" if np.isnan(x) else f"{x:g}"
    return str(x)
