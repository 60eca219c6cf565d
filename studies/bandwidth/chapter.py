"""Bandwidths at which low rank is honest: the rank suffices where rank one does not.

Read are ``status`` and the columns of ``studies/bandwidth``: ``setting``, ``source``,
``method``, ``stretch``, ``matrix_error``, ``best_error``, ``rank_one_error``, ``effective_rank``,
``underflow``, ``row_mass``, ``core_condition``, ``core_status``, ``seed``, and ``draw``, of the
landmarks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline, headline
from softlab.report.numbers import joined, listed, number, short
from softlab.report.rows import LEFT, finished

from .columns import EXACT, OF_CORES, SOFTMAX, TIED

SUFFICES = 0.1
"""A relative error of the matrix up to this is a success."""

TRIVIAL = 0.3
"""Where a matrix of rank one errs less than this, a success proves nothing."""

NEEDED = {
    *("status", "setting", "source", "method", "stretch", "matrix_error", "best_error"),
    *("rank_one_error", "effective_rank", "underflow", "row_mass", "seed", "draw"),
    *OF_CORES,
}
OWN = 1.0
"""The stretch of the published bandwidth and temperature."""


def scope(table: pd.DataFrame) -> str:
    """The settings, methods, inputs and stretches."""
    done = finished(table, NEEDED)
    if done.empty:
        return ""
    return (
        f"Settings: {joined(done['setting'].unique())}. "
        f"Methods: {listed(done['method'].unique())}. "
        f"Inputs: {joined(done['source'].unique())}. Stretches from {done['stretch'].min():g} to "
        f"{done['stretch'].max():g}."
    )


def windows(table: pd.DataFrame) -> pd.DataFrame:
    """One row a setting, source and method: from which stretch it suffices, to which it counts.

    ``low``: beyond it the error never exceeds 0.1 again; ``high``: beyond it that of rank one is
    never again 0.3 or more; both by logarithmic interpolation, 0 where it holds from the least
    stretch on, infinite where not yet at the greatest. ``width``: high over low, honest above 1.
    """
    found = []
    for keys, rows in finished(table, NEEDED).groupby(["setting", "source", "method"], sort=False):
        rows = rows.groupby("stretch", sort=True)[["matrix_error", "rank_one_error"]].median()
        low = _last_crossing(rows["matrix_error"], SUFFICES)
        high = _last_crossing(rows["rank_one_error"], TRIVIAL)
        width = high / low if low > 0 else np.inf if high > 0 else 0.0
        width = 0.0 if np.isinf(low) else width
        found.append([*keys, low, high, width])
    columns = ["setting", "source", "method", "low", "high", "width"]
    return pd.DataFrame(found, columns=columns)


def findings(table: pd.DataFrame) -> list[str]:
    """The windows of the best matrix and of the methods; the published stretch; the extremes."""
    done, found = finished(table, NEEDED), windows(table)
    if found.empty:
        return []
    said = [_window(rows, setting) for setting, rows in found.groupby("setting", sort=False)]
    said += [_own(done), _collapse(done), _cores(done), _draws(done)]
    return [text for text in said if text]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """The published stretch: how far two published methods are from the best matrix of the rank."""
    done = finished(table, NEEDED)
    own = done[done["stretch"] == OWN]
    words = {
        "Nystromformer": "At softmax's own scale, 1/√d, the attention matrix of Nystromformer",
        "Soft": "At SOFT's own bandwidth, the fourth root of d, the attention matrix of Soft (a "
        "Gaussian kernel, keys as queries)",
    }
    for setting, method in ((SOFTMAX, "Nystromformer"), (TIED, "Soft")):
        at = own[(own["setting"] == setting) & (own["method"] == method)]
        text = f"{words[method]} errs {{}} times as much as the best matrix of the same rank"
        over = at["matrix_error"] / at["best_error"]
        yield from headline(text, over, "inputs", unit=at["source"], nested="samples", ratios=True)


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """The window of each input, and where each method's error comes below the tolerance."""
    found = windows(table)
    if found.empty:
        return
    for setting, rows in found.groupby("setting", sort=False):
        methods = [EXACT, *(m for m in rows["method"].unique() if m != EXACT)]
        body: list[list[Cell]] = []
        for source, mine in rows.groupby("source", sort=False):
            lows = mine.set_index("method")["low"].reindex(methods)
            edges = ["" if np.isnan(x) else _edge(x) for x in lows]
            body.append([str(source), _edge(mine["high"].iloc[0]), *edges])
        yield {
            "caption": f"{str(setting)[:1].upper()}{str(setting)[1:]}: stretch beyond which a "
            f"matrix of rank one errs less than {TRIVIAL:g} (trivial), and beyond which the best "
            f"matrix of the rank and each method err at most {SUFFICES:g}. Low rank is honest "
            "between the two: a method whose number is above the first never succeeds but where "
            "rank one nearly does.",
            "header": ["input", "trivial", *methods],
            "rows": body,
            "left": 1,
        }


def _last_crossing(errors: pd.Series, level: float) -> float:
    """The stretch beyond which the errors stay at or below the level."""
    above = np.flatnonzero(errors.to_numpy() > level)
    if not len(above):
        return 0.0
    i = int(above[-1])
    if i == len(errors) - 1:
        return np.inf
    x, y = np.log(errors.index[[i, i + 1]]), np.log(np.maximum(errors.iloc[[i, i + 1]], 1e-300))
    return float(
        np.exp(x[0] + (x[1] - x[0]) * (np.log(level) - y.iloc[0]) / (y.iloc[1] - y.iloc[0]))
    )


def _edge(x: float) -> str:
    return "none" if np.isinf(x) else "all" if x == 0 else short(x)


def _window(rows: pd.DataFrame, setting: object) -> str:
    """How wide the windows of one setting are, of the best matrix and of the methods."""
    best = rows[rows["method"] == EXACT]
    if best.empty:
        return ""
    open_ = best[best["width"] > 1]
    said = (
        f"{str(setting)[:1].upper()}{str(setting)[1:]}: the rank suffices where rank one does not "
        f"on {len(open_)} of {len(best)} inputs"
    )
    spans = (
        f"{r.source} ({short(r.low) if r.low else 'the least'} to "
        f"{'the greatest' if np.isinf(r.high) else short(r.high)})"
        for r in open_.itertuples()
    )
    said += f": {joined(spans)}." if len(open_) else "."
    for method, mine in rows[rows["method"] != EXACT].groupby("method", sort=False):
        held = mine[mine["width"] > 1]
        names = f" ({joined(held['source'])})" if len(held) else ""
        said += f" {method} has such stretches on {len(held)}{names}."
    return said


def _own(done: pd.DataFrame) -> str:
    """What the rank can do at the published bandwidth and temperature."""
    own = done[(done["stretch"] == OWN) & (done["method"] == EXACT)]
    words = []
    for setting, rows in own.groupby("setting", sort=False):
        errors = rows.groupby("source", sort=False)["best_error"].median()
        words.append(
            f"{setting}: above {SUFFICES:g} on {int((errors > SUFFICES).sum())} of {len(errors)} "
            f"inputs, median {number(errors.median())}"
        )
    if not words:
        return ""
    return f"At the published stretch 1 even the best matrix of the rank errs ({'; '.join(words)})."


def _collapse(done: pd.DataFrame) -> str:
    """Where narrow kernels look low in rank since hardly an entry is left."""
    rows = done[(done["method"] == EXACT) & (done["best_error"] <= SUFFICES)]
    rows = rows[(rows["row_mass"] < 0.01) & (rows["rank_one_error"] < SUFFICES)]
    if rows.empty:
        return ""
    worst = rows.loc[rows["stretch"].idxmax()]
    return (
        "At narrow bandwidths the rank can be low only because most rows have underflowed. In "
        f"{len(rows)} cases ({joined(rows['setting'].unique())}) a single rank errs at most "
        f"{SUFFICES:g} while the median row sums to less than 0.01: few rows carry the norm and "
        f"the others are lost. The widest stretch of these is {worst['stretch']:g} "
        f"({worst['source']}: median row sum {number(worst['row_mass'])}, effective rank "
        f"{number(worst['effective_rank'])}, {100 * worst['underflow']:.0f} % of the entries below "
        "float32)."
    )


def _cores(done: pd.DataFrame) -> str:
    """How many inversions did not converge, below and above the published stretch."""
    said = []
    for method, rows in done.dropna(subset=["core_status"]).groupby("method", sort=False):
        parts = [
            f"{mine['core_status'].isin(LEFT).sum()} of {len(mine)} {words} stretch 1 (condition "
            f"{number(mine['core_condition'].min())} to {number(mine['core_condition'].max())})"
            for words, mine in (
                ("below", rows[rows["stretch"] < OWN]),
                ("above", rows[rows["stretch"] > OWN]),
            )
            if len(mine)
        ]
        if parts:
            said.append(f"{method} {joined(parts)}")
    return f"Solvers stopped before they had inverted the core: {'; '.join(said)}." if said else ""


def _draws(done: pd.DataFrame) -> str:
    """What one seed, and few draws of landmarks, leave open."""
    if done["seed"].nunique() > 1:
        return ""
    drawn = done[done["draw"].notna()]
    if len(drawn) and drawn["draw"].nunique() > 1:
        return (
            f"All of this is one sample of each input. {joined(drawn['method'].unique())}: the "
            f"median of {drawn['draw'].nunique()} draws of landmarks."
        )
    return (
        "All of this is one sample of each input and, of a method that draws its landmarks, one "
        "draw of them: how another draw would do it does not say."
    )
