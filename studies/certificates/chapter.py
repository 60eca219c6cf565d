"""How far above the error certificates are, and where they say nothing.

Read are ``status`` and the columns of ``studies/certificates``: ``setting``, ``source``,
``method``, ``share``, ``stretch``, ``work``, ``ratio``, ``ratio_low``, ``ratio_high``, ``below``,
``bound_over_output``, ``error_over_output``, ``time_ratio``, ``time_over_exact``, ``left_out``,
``known_ratio``, ``unknown``, ``condition``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline, headline
from softlab.report.numbers import counted, joined, listed, number, short, span
from softlab.report.rows import finished

from .columns import EXACT_COST, TIED

NEEDED = {
    *("status", "setting", "source", "method", "share", "stretch", "work", "ratio", "ratio_low"),
    *("ratio_high", "below", "bound_over_output", "error_over_output", "time_ratio"),
    *("time_over_exact", "left_out", "known_ratio", "unknown", "condition"),
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
        f"Methods: {listed(done['method'].unique())}. Heads: {joined(done['source'].unique())}. "
        f"Shares of the exact work: {joined(f'{x:g}' for x in sorted(done['share'].unique()))}. "
        f"Bandwidths over SOFT's own: "
        f"{joined(f'{x:g}' for x in sorted(done['stretch'].unique()))}."
    )


def findings(table: pd.DataFrame) -> list[str]:
    """Whether a bound was broken; which are sharp; where they say nothing, and why; time."""
    done = finished(table, NEEDED)
    if done.empty:
        return []
    said = (_kept, _sharp, _nothing, _left, _landmarks, _wide, _time)
    return [text for text in (say(done) for say in said) if text]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """Where certificates that save work say something, and those of rounding."""
    rows = _beside(finished(table, NEEDED))
    saving = rows[~rows["method"].isin(EXACT_COST)]
    if len(saving):
        useful = int((saving["bound_over_output"] < NOTHING).sum())
        yield {
            "text": f"At {AT:g} of the exact work a certificate is below the output itself in {{}} "
            f"cases ({counted(saving['method'].nunique(), 'method')} on "
            f"{counted(saving['source'].nunique(), 'head')}): "
            "without scores the mass that is left out, its values and what landmarks do not know "
            "are each taken at their worst.",
            "value": f"{useful} of {len(saving)}",
            "interval": "",
        }
    for method in EXACT_COST[1:]:
        own = rows[rows["method"] == method]
        text = f"The certificate of {method} is {{}} of the output"
        yield from headline(text, own["bound_over_output"], "heads", unit=own["source"])


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
            short(rows["time_over_exact"].median(), 2),
        ])  # fmt: skip
    yield {
        "caption": f"Certificates at {AT:g} of the exact work, or at what a method always costs: "
        "the bound of the median row over its error (median over heads, below it their range); "
        "the same of the rows at 10 and 90 % (least and largest over heads); error and bound "
        "beside the output, in the Frobenius norm; time of the bound over that of the call, and "
        "over that of the exact output.",
        "header": ["method", "work", "ratio", "of rows", "error", "bound", "over call",
                   "over exact"],
        "rows": body,
        "left": 1,
    }  # fmt: skip


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
    silent = shares[shares["sum"] > 0]
    if silent.empty:
        return "No bound is as large as the output."
    always = [name for name, x in silent.iterrows() if x["sum"] == x["size"]]
    some = [f"{name} ({x['sum']} of {x['size']})" for name, x in silent.iterrows()
            if x["sum"] < x["size"]]  # fmt: skip
    on_all = f" on all heads for {joined(always)}" if always else ""
    on_some = f" on some for {joined(some)}" if some else ""
    both = " and" if always and some else ""
    return f"The bound is as large as the output, and so says nothing,{on_all}{both}{on_some}."


def _left(done: pd.DataFrame) -> str:
    """Of what is exact on a few keys: the mass in the tail, and what the bound does not know."""
    rows = _beside(done).dropna(subset=["known_ratio"])
    rows = rows[~rows["method"].isin(EXACT_COST)]
    if rows.empty:
        return ""
    by = rows.groupby("method", sort=False)[["left_out", "known_ratio", "ratio"]].median()
    said = [
        f"{name} leaves out {number(x['left_out'])} of the mass, times the diameter "
        f"{number(x['known_ratio'])} times the error, its bound {number(x['ratio'])} times"
        for name, x in by.iterrows()
    ]
    return (
        "Why, where keys are left out: neither their mass is known nor where their values lie. In "
        f"the median row {'; '.join(said)}."
    )


def _landmarks(done: pd.DataFrame) -> str:
    """Of Soft: what landmarks leave of the kernel, and the condition of the core."""
    rows = done[(done["setting"] == TIED) & (done["share"] == AT)].dropna(subset=["unknown"])
    if rows.empty:
        return ""
    by = rows.groupby("stretch")[["unknown", "condition", "ratio"]].median()
    said = [
        f"{number(x['unknown'])} at {t:g} (condition {number(x['condition'])}, ratio "
        f"{number(x['ratio'])})"
        for t, x in by.iterrows()
    ]
    return (
        "Why, where landmarks stand for a kernel: of its diagonal they leave, with an exact "
        f"inverse, {joined(said)} times SOFT's bandwidth (medians); the bound adds this up over "
        "all keys, and the error cancels between them."
    )


def _wide(done: pd.DataFrame) -> str:
    rows = done[(done["setting"] == TIED) & (done["share"] == AT)]
    if rows["stretch"].nunique() < 2:
        return ""
    by = rows.groupby("stretch")["bound_over_output"].median()
    said = joined(f"{number(x)} of the output at {t:g}" for t, x in by.items())
    return f"Of Soft on tied heads the bound is {said} times SOFT's bandwidth (medians)."


def _time(done: pd.DataFrame) -> str:
    by = _beside(done).groupby("method", sort=False)[["time_ratio", "time_over_exact"]].median()
    slow = [str(name) for name, x in by["time_over_exact"].items() if x >= 1]
    said = (
        f"A bound takes {span(by['time_ratio'])} times its call, and "
        f"{span(by['time_over_exact'])} times the exact output, by method."
    )
    if not slow:
        return said
    which = "any of these bounds" if len(slow) == len(by) else f"the bound of {joined(slow)}"
    return (
        f"{said} At these lengths the exact output is had in less time than {which}: a certificate "
        "is for lengths at which there is none."
    )
