"""Growth of time and memory with the number of tokens, measured beside counted.

Read are ``status`` and the columns of ``studies/growth``: ``family``, ``method``, ``n``,
``work``, ``peak_bytes``, ``memory`` (peak over the bytes of q), ``seconds`` and ``exact_seconds``
with quartiles.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline, headline
from softlab.report.intervals import Mean, exponent, stacked
from softlab.report.numbers import joined, listed, number, short
from softlab.report.rows import finished
from softlab.report.timings import steady, timing

TIME = "seconds_q1"
"""The time of a call: the lower quartile of repeats, which other work disturbs least."""

LIMIT = 10
"""An operator is frugal if one call takes at most so many times the bytes of q."""

SUBQUADRATIC = 1.5
"""Work of a smaller exponent counts as less than quadratic."""

APART = 0.25
"""A measured exponent differs from the claimed one by more than this, and beyond its interval."""

NEEDED = {
    *("status", "family", "method", "n", "work", "peak_bytes", "memory"),
    *("seconds", "seconds_q1", "seconds_q3"),
    *("exact_seconds", "exact_seconds_q1", "exact_seconds_q3"),
}


def scope(table: pd.DataFrame) -> str:
    """The operators by family, and the lengths."""
    done = finished(table, NEEDED)
    if done.empty:
        return ""
    families = (
        f"{family} ({listed(rows['method'].unique())})"
        for family, rows in done.groupby("family", sort=False)
    )
    lengths = joined(sorted(done["n"].unique()))
    return f"Operators: {'; '.join(families)}. Tokens: {lengths}."


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """One row an operator of three lengths or more.

    ``claimed``: of the counted work, between the two greatest lengths, 1 for one that does no
    product; ``measured`` between ``low`` and ``high``: of the time over all lengths whose timing is
    steady, with Student's interval, 95 % for all operators together; ``last``: of the last doubling
    alone; ``growth``: of the peak memory, last doubling; ``memory``: over q, and ``time``, at the
    greatest length ``n``; ``from``: the least length from which on it is faster than exact
    attention where both were timed, NaN for none. NaN too where timings are too noisy.
    """
    found = []
    groups = [
        (*names, rows.sort_values("n"))
        for names, rows in finished(table, NEEDED).groupby(["family", "method"], sort=False)
        if len(rows) >= 3
    ]
    for family, method, rows in groups:
        still = rows[steady(rows, TIME)]
        fit = exponent(still["n"], still[TIME], verdicts=len(groups))
        end, before = rows.iloc[-1], rows.iloc[-2]
        doubling = np.log(end["n"] / before["n"])
        found.append({
            "family": family, "method": method, "n": int(end["n"]),
            "claimed": np.log(end["work"] / before["work"]) / doubling if before["work"] else 1.0,
            "measured": fit.value, "low": fit.low, "high": fit.high,
            "last": np.log(end[TIME] / before[TIME]) / doubling
                    if steady(rows, TIME).iloc[-2:].all() else np.nan,
            "growth": np.log(end["peak_bytes"] / before["peak_bytes"]) / doubling,
            "memory": end["memory"], "time": timing(rows[-1:], TIME), "from": _faster_from(rows),
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
    text = "Time grows with the number of tokens to the power {}"
    of = "operators of less than quadratic work"
    yield from headline(text, light["measured"], of, grid=True)


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
                "noisy" if np.isnan(row["measured"]) else
                stacked(Mean(row["measured"], row["low"], row["high"]), "{:.2f}".format),
                "noisy" if np.isnan(row["last"]) else f"{row['last']:.2f}",
                f"{row['growth']:.2f}", f"{row['n']}", row["time"].cell(1e3),
                short(row["memory"]), "never" if np.isnan(row["from"]) else f"{row['from']:.0f}",
            ])  # fmt: skip
    yield {
        "caption": "Exponents in the number of tokens: claimed by the counted work, measured in "
        "time over all lengths (below it Student's interval, 95 % for all operators together) and "
        "over the last doubling, measured in peak memory over the last doubling. At the greatest "
        "length measured: milliseconds a call (lower quartile, below it both quartiles) and peak "
        "memory over the bytes of q. Last: the least length from which on a call is faster than "
        "exact softmax attention, its upper quartile below the other's lower one, where both were "
        "timed. Noisy: quartiles too wide.",
        "header": ["family", "operator", "claimed", "time", "last", "memory", "n", "ms",
                   "over q", "faster from"],
        "rows": body,
        "left": 2,
    }  # fmt: skip


def _faster_from(rows: pd.DataFrame) -> float:
    """The least length from which on a call takes less time than the exact one; NaN for none."""
    timed = rows[rows["exact_seconds"].notna() & steady(rows, TIME) & steady(rows, "exact_seconds")]
    slower = timed[~(timed["seconds_q3"] < timed["exact_seconds"])]
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
    noisy = fits[fits["measured"].isna()]
    fits, light = fits.dropna(subset="measured"), light.dropna(subset="measured")
    gap = fits["measured"] - fits["claimed"]
    apart = (fits["low"] > fits["claimed"]) | (fits["high"] < fits["claimed"])
    apart &= gap.abs() > APART
    if len(fits):
        yield (
            f"The exponent of time agrees with that of the counted work for {(~apart).sum()} of "
            f"{len(fits)} operators, within {APART:g} or within its interval (Student's, 95 % for "
            "all operators together)."
        )
    if len(light):
        yield (
            f"In the median over the {len(light)} of less than quadratic work it is "
            f"{number(light['measured'].median())}, the counted one "
            f"{number(light['claimed'].median())}."
        )
    for rows, side in ((fits[apart & (gap < 0)], "less"), (fits[apart & (gap > 0)], "more")):
        if len(rows):
            words = (
                f"{row.method} ({row.measured:.2f}, {row.low:.2f} to {row.high:.2f}, counted "
                f"{row.claimed:.2f})"
                for row in rows.itertuples()
            )
            yield f"It is {side} than counted for {joined(words)}."
    if len(noisy):
        yield f"Too noisy for an exponent are the timings of {joined(noisy['method'])}."


def _crossings(light: pd.DataFrame) -> Iterator[str]:
    """From which length on each is faster than exact attention."""
    if light.empty:
        return
    words = (
        f"{joined(rows['method'])} from n = {length:.0f}" for length, rows in light.groupby("from")
    )
    never = light[light["from"].isna()]["method"]
    yield "Faster than exact softmax attention at every length from here on are " + (
        f"{'; '.join(words) or 'none'}."
    )
    if len(never):
        yield f"Never at the lengths where both were timed: {joined(never)}."
