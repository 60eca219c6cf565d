"""Error, time and memory against the number of tokens, beyond the lengths of exact outputs.

Read are ``status`` and the columns of ``studies/length.py``: ``input``, ``n``, ``method``,
``target``, ``rows``, ``error`` with its interval ``low`` to ``high`` and ``error_seconds``,
``exact_error`` where it exists, ``seconds_q1``, ``peak_bytes``, ``target_seconds``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from softlab.chapters import Cell, Table
from softlab.chapters.headlines import Headline
from softlab.chapters.numbers import joined, number, short
from softlab.chapters.rows import finished

FROM = 4096
"""Exponents of time and memory are fitted from so many tokens on."""

NEEDED = {
    "status", "input", "n", "method", "target", "rows", "error", "low", "high", "error_seconds",
    "exact_error", "seconds_q1", "peak_bytes", "target_seconds",
}  # fmt: skip


def scope(table: pd.DataFrame) -> str:
    """Operators, inputs, lengths, and where the exact output ends."""
    done = finished(table, NEEDED)
    if done.empty:
        return ""
    exact = done.loc[done["exact_error"].notna(), "n"].max()
    return (
        f"Operators: {joined(done['method'].unique())}. Inputs: {joined(done['input'].unique())}. "
        f"Tokens: {done['n'].min()} to {done['n'].max()}; the exact output up to {exact:.0f}."
    )


def slope(n: pd.Series, y: pd.Series) -> tuple[float, float]:
    """The least-squares exponent of y in n and its standard error; NaN from fewer than 3 points."""
    if len(n) < 3 or not (y > 0).all():
        return np.nan, np.nan
    x, y = np.log(n.to_numpy(float)), np.log(y.to_numpy(float))
    found, level = np.polyfit(x, y, 1)
    left = y - found * x - level
    return float(found), float(np.sqrt((left @ left) / (len(x) - 2) / ((x - x.mean()) ** 2).sum()))


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """One row a method and input: ``error``, ``time`` and ``memory``, each a ``slope``."""
    found = []
    for (target, method, given), rows in finished(table, NEEDED).groupby(
        ["target", "method", "input"], sort=False
    ):
        long = rows[(rows["n"] >= FROM) & rows["seconds_q1"].notna()]
        found.append({
            "target": target, "method": method, "input": given, "lengths": len(rows),
            "last": rows.loc[rows["n"].idxmax()],
            "error": slope(rows["n"], rows["error"]),
            "time": slope(long["n"], long["seconds_q1"]),
            "memory": slope(long["n"], long["peak_bytes"]),
        })  # fmt: skip
    return pd.DataFrame(found)


def findings(table: pd.DataFrame) -> list[str]:
    """The greatest length; agreement with exact errors; exponents."""
    done = finished(table, NEEDED)
    if done.empty:
        return []
    return [text for text in (_largest(done), _agreement(done), _growth(table)) if text]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """The best error at the greatest length, with the interval of its sampled rows."""
    done = finished(table, NEEDED)
    done = done[done["method"] != "Uniform"]
    if done.empty:
        return
    at = done[done["n"] == done["n"].max()]
    best = at.loc[at["error"].idxmin()]
    yield {
        "text": f"At {best['n']} tokens {best['method']} errs least, by {{}} on {best['input']} "
        "input.",
        "value": number(best["error"]),
        "interval": f"95 % {number(best['low'])} to {number(best['high'])}; rows: {best['rows']}",
    }


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Exponents of every method on every input, and where it ended."""
    fits = exponents(table)
    if fits.empty:
        return
    fits = fits[fits["lengths"] >= 3]
    body: list[list[Cell]] = []
    for (target, method), rows in fits.groupby(["target", "method"], sort=False):
        for i, row in enumerate(rows.to_dict("records")):
            last = row["last"]
            body.append([
                f"{method} ({target})" if i == 0 else "", row["input"], _fit(row["error"]),
                _fit(row["time"]), _fit(row["memory"]), f"{last['n']}",
                [short(last["error"]), f"{short(last['low'])} to {short(last['high'])}"],
            ])  # fmt: skip
    if body:
        yield {
            "caption": "Exponents in the number of tokens, of the error over all lengths and of "
            f"time and peak memory from {FROM} on (± one standard error); at the greatest length "
            "the sampled relative output error with its 95 % interval.",
            "header": ["operator (target)", "input", "error", "time", "memory", "n", "error at n"],
            "rows": body,
            "left": 2,
        }


def _fit(found: tuple[float, float]) -> Cell:
    return "" if np.isnan(found[0]) else [f"{found[0]:.2f}", f"± {found[1]:.2f}"]


def _largest(done: pd.DataFrame) -> str:
    """Every method's error at the greatest length, and what it took to know it."""
    n = done["n"].max()
    at = done[(done["n"] == n) & (done["method"] != "Uniform")]
    if "smooth" in set(at["input"]):  # of a short grid all inputs reach the greatest length
        at = at[at["input"] == "smooth"]
    words = (
        f"{x.method} {number(x.error)} ({number(x.low)} to {number(x.high)})"
        for x in at.itertuples()
    )
    slowest = at.loc[at["error_seconds"].idxmax()]
    whole = [at["target_seconds"].min(), at["target_seconds"].max()]
    unit, size = ("hours", 3600) if whole[0] > 3600 else ("seconds", 1)
    return (
        f"At n = {n} the sampled relative output errors on {joined(at['input'].unique())} input, "
        f"with their 95 % intervals, are: {joined(words)}. The {at['rows'].max()} exact rows of a "
        f"target, which all its operators share, take at most "
        f"{number((at['target_seconds'] * at['rows']).max() / n)} seconds, and an estimate beside "
        f"them at most {number(slowest['error_seconds'])} ({slowest['method']}). The whole target "
        f"would take {number(whole[0] / size)} to {number(whole[1] / size)} {unit}."
    )


def _agreement(done: pd.DataFrame) -> str:
    """How many intervals hold the exact error, and how far the estimates are from it."""
    both = done[done["exact_error"].notna()]
    if both.empty:
        return ""
    held = (both["low"] <= both["exact_error"]) & (both["exact_error"] <= both["high"])
    off = (both["error"] / both["exact_error"] - 1).abs()
    return (
        f"Where the exact output exists too, up to n = {both['n'].max()}, {held.sum()} of "
        f"{len(both)} intervals hold the exact error ({100 * held.mean():.0f} %; cases of one "
        f"length share their rows), and the estimate is off by {number(100 * off.median())} % in "
        f"the median and {number(100 * off.max())} % at most."
    )


def _growth(table: pd.DataFrame) -> str:
    """Exponents of time and memory, and whose error grows most and least."""
    fits = exponents(table)
    fits = fits[(fits["lengths"] >= 3) & (fits["method"] != "Uniform")]
    if fits.empty:
        return ""
    timed = fits[[not np.isnan(x[0]) for x in fits["time"]]]
    said = []
    for what in ("time", "memory"):
        words = (f"{x['method']} {x[what][0]:.2f}" for _, x in timed.iterrows())
        if len(timed):
            said.append(f"From n = {FROM} on {what} grows with the exponents {joined(words)}.")
    order = fits.assign(slope=[x[0] for x in fits["error"]]).dropna(subset="slope")
    if len(order):
        for word, at in (
            ("fastest", order["slope"].idxmax()),
            ("slowest", order["slope"].idxmin()),
        ):
            row = order.loc[at]
            said.append(
                f"At a fixed knob the error grows {word} for {row['method']} on {row['input']} "
                f"input, as n^{row['slope']:.2f}."
            )
    return " ".join(said)
