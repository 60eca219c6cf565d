"""Growth of time and memory with the number of tokens, measured beside counted.

Read are ``status`` and the columns of ``studies/growth.py``: ``family``, ``method``, ``n``,
``work``, ``seconds_q1``, ``peak_bytes``, ``memory`` (peak over the bytes of q), ``exact_seconds``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from softlab.chapters import Cell, Table
from softlab.chapters.headlines import Headline, headline
from softlab.chapters.numbers import joined, number, short
from softlab.chapters.rows import finished

LIMIT = 10
"""An operator is frugal if one call takes at most so many times the bytes of q."""

SUBQUADRATIC = 1.5
"""Work of a smaller exponent counts as less than quadratic."""

APART = 0.25
"""A measured exponent differs from the claimed one by more than this and two standard errors."""

NEEDED = {
    *("status", "family", "method", "n", "work", "seconds_q1", "peak_bytes", "memory"),
    "exact_seconds",
}


def scope(table: pd.DataFrame) -> str:
    """The operators by family, and the lengths."""
    done = finished(table, NEEDED)
    if done.empty:
        return ""
    families = (
        f"{family} ({joined(rows['method'].unique())})"
        for family, rows in done.groupby("family", sort=False)
    )
    lengths = joined(sorted(done["n"].unique()))
    return f"Operators: {'; '.join(families)}. Tokens: {lengths}."


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """One row an operator of three lengths or more.

    ``claimed``: of the counted work, between the two greatest lengths, 1 for one that does no
    product; ``measured`` and ``error``: least squares of log seconds on log n over all lengths,
    with the standard error of the slope; ``last``: of the last doubling alone; ``growth``: of the
    peak memory, last doubling; ``memory``: over q, and ``seconds``, at the greatest length ``n``;
    ``from``: the least length from which on it is faster than exact attention where both were
    timed, NaN for none.
    """
    found = []
    for (family, method), rows in finished(table, NEEDED).groupby(["family", "method"], sort=False):
        rows = rows.sort_values("n")
        if len(rows) < 3:
            continue
        n, t = np.log(rows["n"].to_numpy(float)), np.log(rows["seconds_q1"].to_numpy(float))
        slope, level = np.polyfit(n, t, 1)
        left = t - slope * n - level
        error = np.sqrt((left @ left) / (len(n) - 2) / ((n - n.mean()) @ (n - n.mean())))
        end, before = rows.iloc[-1], rows.iloc[-2]
        doubling = np.log(end["n"] / before["n"])
        found.append({
            "family": family, "method": method, "n": int(end["n"]),
            "claimed": np.log(end["work"] / before["work"]) / doubling if before["work"] else 1.0,
            "measured": slope, "error": error, "last": (t[-1] - t[-2]) / (n[-1] - n[-2]),
            "growth": np.log(end["peak_bytes"] / before["peak_bytes"]) / doubling,
            "memory": end["memory"], "seconds": end["seconds_q1"], "from": _faster_from(rows),
        })  # fmt: skip
    return pd.DataFrame(found)


def findings(table: pd.DataFrame) -> list[str]:
    """Memory at the greatest length; exponents beside the claims; what beats exact attention."""
    fits = exponents(table)
    if fits.empty:
        return []
    light = fits[fits["claimed"] < SUBQUADRATIC]
    paragraphs = (_memory(light), _growth(fits, light), _crossings(light))
    return [text for text in map(" ".join, paragraphs) if text]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """How the time of methods of less than quadratic work grows."""
    fits = exponents(table)
    if fits.empty:
        return
    light = fits[fits["claimed"] < SUBQUADRATIC]
    text = "Time grows with the tokens to the power {} for operators of less than quadratic work."
    yield from headline(text, light["measured"], "operators")


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Exponents, memory and crossing of each operator."""
    fits = exponents(table)
    if fits.empty:
        return
    body: list[list[Cell]] = []
    for family, rows in fits.groupby("family", sort=False):
        for i, row in enumerate(rows.to_dict("records")):
            body.append([
                str(family) if i == 0 else "", row["method"], f"{row['claimed']:.2f}",
                [f"{row['measured']:.2f}", f"± {row['error']:.2f}"], f"{row['last']:.2f}",
                f"{row['growth']:.2f}", f"{row['n']}", short(1e3 * row["seconds"]),
                short(row["memory"]), "never" if np.isnan(row["from"]) else f"{row['from']:.0f}",
            ])  # fmt: skip
    yield {
        "caption": "Exponents in the number of tokens: claimed by the counted work, measured in "
        "time over all lengths (± one standard error) and over the last doubling, measured in peak "
        "memory over the last doubling. At the greatest length measured: milliseconds a call and "
        "peak memory over the bytes of q. Last: the least length from which on a call is faster "
        "than exact softmax attention, where both were timed.",
        "header": ["family", "operator", "claimed", "time", "last", "memory", "n", "ms",
                   "over q", "faster from"],
        "rows": body,
        "left": 2,
    }  # fmt: skip


def _faster_from(rows: pd.DataFrame) -> float:
    """The least length from which on a call takes less time than the exact one; NaN for none."""
    timed = rows[rows["exact_seconds"].notna()]
    slower = timed[~(timed["seconds_q1"] < timed["exact_seconds"])]
    faster = timed[timed["n"] > slower["n"].max()] if len(slower) else timed
    return float(faster["n"].min())


def _memory(light: pd.DataFrame) -> Iterator[str]:
    """What the operators of less than quadratic work take at the greatest length of all."""
    if light.empty:
        return
    n = light["n"].max()
    at = light[light["n"] == n]
    least, most = (at.loc[pick] for pick in (at["memory"].idxmin(), at["memory"].idxmax()))
    yield (
        f"At n = {n} the {len(at)} operators of less than quadratic work take between "
        f"{number(least['memory'])} ({least['method']}) and {number(most['memory'])} "
        f"({most['method']}) times the memory of q above what they are given."
    )
    over = at[at["memory"] > LIMIT]
    rest = joined(f"{row['method']} ({number(row['memory'])})" for _, row in over.iterrows())
    yield (
        f"More than {LIMIT} times takes {rest}." if rest else f"None takes more than {LIMIT} times."
    )
    steep = at[at["growth"] > 1.1]
    if len(steep):
        yield (
            "Over the last doubling the memory of "
            f"{joined(f'{x.method} ({x.growth:.2f})' for x in steep.itertuples())} grows faster "
            "than n^1.1."
        )


def _growth(fits: pd.DataFrame, light: pd.DataFrame) -> Iterator[str]:
    """How far measured exponents are from those of the counted work."""
    gap = fits["measured"] - fits["claimed"]
    sure = gap.abs() > np.maximum(APART, 2 * fits["error"])
    near = len(fits) - sure.sum()
    yield (
        f"The exponent of time agrees with that of the counted work within {APART:g} or two "
        f"standard errors for {near} of {len(fits)} operators; over all of less than quadratic "
        f"work its median is {number(light['measured'].median())}, the counted one "
        f"{number(light['claimed'].median())}."
    )
    for rows, side in ((fits[sure & (gap < 0)], "less"), (fits[sure & (gap > 0)], "more")):
        if len(rows):
            words = (
                f"{row.method} ({row.measured:.2f}, counted {row.claimed:.2f}, last doubling "
                f"{row.last:.2f})"
                for row in rows.itertuples()
            )
            yield f"It is clearly {side} for {joined(words)}."


def _crossings(light: pd.DataFrame) -> Iterator[str]:
    """From which length on each is faster than exact attention."""
    if light.empty:
        return
    found = light.dropna(subset=["from"])
    words = (
        f"{joined(rows['method'])} from n = {length:.0f}" for length, rows in found.groupby("from")
    )
    never = light[light["from"].isna()]["method"]
    yield "Faster than exact softmax attention at every length from here on are " + (
        f"{'; '.join(words) or 'none'}."
    )
    if len(never):
        yield f"Never at the lengths where both were timed: {joined(never)}."
