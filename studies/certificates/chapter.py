"""How far above the error certificates are, and where they say nothing.

Read are ``status`` and the columns of ``studies/certificates``: ``setting``, ``source``,
``method``, ``share``, ``stretch``, ``work``, ``ratio``, ``ratio_low``, ``ratio_high``, ``below``,
``bound_over_output``, ``error_over_output``, ``time_ratio``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.numbers import counted, joined, number, short, span
from softlab.report.rows import finished

from .columns import EXACT_COST, TIED

NEEDED = {
    *("status", "setting", "source", "method", "share", "stretch", "work", "ratio", "ratio_low"),
    *("ratio_high", "below", "bound_over_output", "error_over_output", "time_ratio"),
}
AT = 0.25
"""The share of the exact work at which families stand beside each other."""
SHARP = 3.0
"""A ratio up to which a bound is called sharp."""
NOTHING = 1.0
"""A bound that is as large as the output says nothing."""


def scope(table: pd.DataFrame) -> str:
    """Methods, heads, shares and bandwidths."""
    done = finished(table, NEEDED)
    if done.empty:
        return ""
    return (
        f"Methods: {joined(done['method'].unique())}. Heads: {joined(done['source'].unique())}. "
        f"Shares of the exact work: {joined(f'{x:g}' for x in sorted(done['share'].unique()))}. "
        f"Bandwidths over SOFT's own: "
        f"{joined(f'{x:g}' for x in sorted(done['stretch'].unique()))}."
    )


def findings(table: pd.DataFrame) -> list[str]:
    """Whether a bound was broken; which are sharp; where they say nothing; bandwidth; time."""
    done = finished(table, NEEDED)
    if done.empty:
        return []
    return [text for text in (_kept(done), _sharp(done), _nothing(done), _wide(done), _time(done))
            if text]  # fmt: skip


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """One row a method: ratios over heads, the whole bound beside the output, the time."""
    done = _beside(finished(table, NEEDED))
    if done.empty:
        return
    body: list[list[Cell]] = []
    for method, rows in done.groupby("method", sort=False):
        body.append([
            str(method), short(rows["work"].median(), 2),
            [short(rows["ratio"].median()), span(rows["ratio"], short)],
            [short(rows["ratio_low"].min()), f"to {short(rows['ratio_high'].max())}"],
            short(rows["error_over_output"].median(), 2),
            short(rows["bound_over_output"].median(), 2), short(rows["time_ratio"].median(), 2),
        ])  # fmt: skip
    yield {
        "caption": f"Certificates at {AT:g} of the exact work, or at what a method always costs: "
        "the bound of the median row over its error (median over heads, below it their range); "
        "the same of the rows at 10 and 90 % (least and largest over heads); error and bound "
        "beside the output, in the Frobenius norm; time of the bound over that of the call.",
        "header": ["method", "work", "ratio", "of rows", "error", "bound", "time"],
        "rows": body,
        "left": 1,
    }


def _beside(done: pd.DataFrame) -> pd.DataFrame:
    return done[(done["share"] == AT) & (done["stretch"] == 1.0)]


def _kept(done: pd.DataFrame) -> str:
    broken = int(done["below"].sum())
    if broken:
        return f"{counted(broken, 'row')} err by more than their bound: this is a bug."
    return f"No row of {counted(len(done), 'case')} errs by more than its bound."


def _sharp(done: pd.DataFrame) -> str:
    by = _beside(done).groupby("method", sort=False)["ratio"].median()
    sharp = [f"{name} ({number(x)})" for name, x in by.items() if x <= SHARP]
    loose = [f"{name} ({number(x)})" for name, x in by.items() if x > SHARP]
    costly = [name for name in by.index if name in EXACT_COST]
    own = f" A call of {joined(costly)} costs what the exact answer does." if costly else ""
    return (
        f"At {AT:g} of the exact work the bound of the median row is at most {SHARP:g} times its "
        f"error for {joined(sharp) or 'none'}, and more for {joined(loose) or 'none'}.{own}"
    )


def _nothing(done: pd.DataFrame) -> str:
    rows = _beside(done)
    by = rows.assign(none=rows["bound_over_output"] >= NOTHING).groupby("method", sort=False)
    shares = by["none"].agg(["sum", "size"])
    silent = [f"{name} on {x['sum']} of {x['size']}" for name, x in shares.iterrows() if x["sum"]]
    if not silent:
        return "No bound is as large as the output."
    return f"The bound is as large as the output, and so says nothing, for {joined(silent)} heads."


def _wide(done: pd.DataFrame) -> str:
    rows = done[(done["setting"] == TIED) & (done["share"] == AT)]
    if rows["stretch"].nunique() < 2:
        return ""
    by = rows.groupby("stretch")["bound_over_output"].median()
    said = joined(f"{number(x)} of the output at {t:g}" for t, x in by.items())
    return f"Of Soft on tied heads the bound is {said} times SOFT's bandwidth (medians)."


def _time(done: pd.DataFrame) -> str:
    by = done.groupby("method", sort=False)["time_ratio"].median()
    return f"A bound takes {span(by)} times its call, by method."
