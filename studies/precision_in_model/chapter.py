"""Where an operator in a model breaks in low precision.

Read are ``status`` and the columns of ``studies/precision_in_model``: ``model``, ``method``,
``op``, ``precision``, ``change``, ``float32_change``, ``rounding_change``, ``finite``, ``refused``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.numbers import joined, number, short, span
from softlab.report.rows import complete, finished

NEEDED = {
    *("status", "model", "method", "op", "precision", "change", "float32_change"),
    "rounding_change",
}
BROKEN = 0.1
"""An operator breaks in a format where rounding alone moves the output by more than this."""


def scope(table: pd.DataFrame) -> str:
    """Models, operators, formats."""
    if not complete(table, {"model", "op", "precision"}):
        return ""
    ops = joined(table["op"].unique())
    formats = joined(table["precision"].unique())
    return f"Models: {joined(table['model'].unique())}. Operators: {ops}. Formats: {formats}."


def findings(table: pd.DataFrame) -> list[str]:
    """For each format what breaks, and what rounding alone does to the rest."""
    done = finished(table, NEEDED)
    if done.empty:
        return []
    said = []
    for precision, rows in done[done["precision"] != "float32"].groupby("precision", sort=False):
        broken = rows[~(rows["rounding_change"] <= BROKEN)]
        names = (
            f"{x.method} in {x.model} "
            + (f"({number(x.rounding_change)})" if x.rounding_change < np.inf else "(refused)")
            for x in broken.itertuples()
        )
        fine = rows[rows["rounding_change"] <= BROKEN]["rounding_change"]
        level = f" The other {len(fine)} pairs move it by {span(fine)}." if len(fine) else ""
        said.append(
            f"{precision}: rounding alone moves the output by more than {BROKEN:g} for "
            f"{joined(names) or 'none'}.{level}"
        )
    return said


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """The change by model, operator and format."""
    done = finished(table, NEEDED)
    if done.empty:
        return
    formats = list(done["precision"].unique())
    body: list[list[Cell]] = []
    for model, rows in done.groupby("model", sort=False):
        for i, (op, of) in enumerate(rows.groupby("op", sort=False)):
            by = of.set_index("precision").to_dict("index")
            cells = [_cell(by.get(precision), precision) for precision in formats]
            body.append([str(model) if i == 0 else "", str(op), *cells])
    yield {
        "caption": "Relative change of the model's output with the operator in all layers, by the "
        "format of its input; below it the change against the same operator in float32.",
        "header": ["model", "operator", *formats],
        "rows": body,
        "left": 2,
    }


def _cell(row: dict[str, float] | None, precision: str) -> Cell:
    if row is None:
        return ""
    if not np.isfinite(row["change"]):
        return "refused"
    whole = short(row["change"])
    return whole if precision == "float32" else [whole, short(row["rounding_change"], 2)]
