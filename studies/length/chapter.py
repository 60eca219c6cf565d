"""Error, time and memory against the number of tokens, beyond the lengths of exact outputs.

Read are ``status`` and the columns of ``studies/length``: ``input``, ``n``, ``method``,
``target``, ``rows``, ``sampled_error`` with its interval ``low`` to ``high`` and ``error_seconds``,
``exact_error`` where it exists, ``certified_error``, ``seconds`` with quartiles, ``peak_bytes`` and
``target_seconds``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from softlab.report import certificates
from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline
from softlab.report.intervals import Mean, bracketed, exponent, stacked
from softlab.report.numbers import counted, joined, listed, number, short
from softlab.report.rows import finished
from softlab.report.timings import steady

from .columns import OF_SOME, SMOOTH, UNIFORM

FROM = 4096
"""Exponents of time and memory are fitted from so many tokens on."""

SURE = "In brackets: Student's intervals, 95 % for all of a kind together."
NEEDED = {
    *("status", "input", "n", "method", "target", "rows", "sampled_error", "low", "high"),
    *("error_seconds", "target_seconds", "certified_error"),
    *OF_SOME,
}


def scope(table: pd.DataFrame) -> str:
    """Operators, inputs, lengths, and where the exact output ends."""
    done = finished(table, NEEDED)
    if done.empty:
        return ""
    exact = done.loc[done["exact_error"].notna(), "n"].max()
    return (
        f"Operators: {listed(done['method'].unique())}. Inputs: {joined(done['input'].unique())}. "
        f"Tokens: {done['n'].min()} to {done['n'].max()}; the exact output up to {exact:.0f}."
    )


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """One row a method and input of three lengths or more: ``error``, ``time`` and ``memory``.

    Each is an exponent in the number of tokens with Student's interval, 95 % for all exponents of
    its kind together. ``last``: the row of the greatest length.
    """
    done = finished(table, NEEDED)
    groups = [
        (*names, rows)
        for names, rows in done.groupby(["target", "method", "input"], sort=False)
        if len(rows) >= 3
    ]
    timed = [_timed(rows) for *_, rows in groups]
    fitted = sum(len(rows) >= 3 for rows in timed)
    found = []
    for (target, method, given, rows), long in zip(groups, timed, strict=True):
        found.append(
            {
                "target": target,
                "method": method,
                "input": given,
                "last": rows.loc[rows["n"].idxmax()],
                "error": exponent(rows["n"], rows["sampled_error"], verdicts=len(groups)),
                "time": exponent(long["n"], long["seconds_q1"], verdicts=fitted),
                "memory": exponent(long["n"], long["peak_bytes"], verdicts=fitted),
            }
        )
    return pd.DataFrame(found)


def _timed(rows: pd.DataFrame) -> pd.DataFrame:
    """The long calls whose timing may be compared."""
    return rows[(rows["n"] >= FROM) & steady(rows, "seconds_q1")]


def findings(table: pd.DataFrame) -> list[str]:
    """The greatest length; agreement with exact errors and certificates; exponents."""
    done = finished(table, NEEDED)
    if done.empty:
        return []
    return [
        text
        for text in (_largest(done), _agreement(done), _certified(done), _growth(table))
        if text
    ]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """The error at the greatest length of each target's first method, with its interval.

    No winner: methods differ in work, whatever their knobs, and in their targets.
    """
    done = finished(table, NEEDED)
    done = done[done["method"] != UNIFORM]
    for _, rows in done[done["n"] == done["n"].max()].groupby("target", sort=False):
        row = rows.iloc[0]
        yield {
            "text": f"At {row['n']} tokens {row['method']} errs by {{}} on {row['input']} input, "
            f"by {row['rows']} of its rows.",
            "value": number(row["sampled_error"]),
            "interval": f"95 % {number(row['low'])} to {number(row['high'])}",
        }


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Exponents of every method on every input, and where it ended; what certificates are worth."""
    fits = exponents(table)
    if fits.empty:
        return
    body: list[list[Cell]] = []
    for (target, method), rows in fits.groupby(["target", "method"], sort=False):
        for i, row in enumerate(rows.to_dict("records")):
            last = row["last"]
            body.append([
                f"{method} ({target})" if i == 0 else "", row["input"], _fit(row["error"]),
                _fit(row["time"]), _fit(row["memory"]), f"{last['n']}",
                [short(last["sampled_error"]), f"{short(last['low'])} to {short(last['high'])}"],
            ])  # fmt: skip
    yield {
        "caption": "Exponents in the number of tokens, of the error over all lengths and of time "
        f"and peak memory from {FROM} on (below them Student's interval, 95 % for all exponents of "
        "a column together); at the greatest length the sampled relative output error with its "
        "95 % interval.",
        "header": ["operator (target)", "input", "error", "time", "memory", "n", "error at n"],
        "rows": body,
        "left": 2,
    }
    by = ["method", "input"]
    found = _worth(finished(table, NEEDED), by)
    yield from certificates.tables(found, by, by, sampled=True)


def _fit(found: Mean) -> Cell:
    return "" if np.isnan(found.value) else stacked(found, "{:.2f}".format)


def _largest(done: pd.DataFrame) -> str:
    """Every error at the greatest length, target by target, and what it took to know it."""
    n = done["n"].max()
    at = done[(done["n"] == n) & (done["method"] != UNIFORM)]
    if at.empty:
        return ""
    if SMOOTH in set(at["input"]):  # of a short grid all inputs reach the greatest length
        at = at[at["input"] == SMOOTH]
    said = []
    for target, rows in at.groupby("target", sort=False):
        words = (
            f"{x.method} {number(x.sampled_error)} ({number(x.low)} to {number(x.high)})"
            for x in rows.itertuples()
        )
        said.append(f"against {target}, {joined(words)}")
    slowest = at.loc[at["error_seconds"].idxmax()]
    whole = [at["target_seconds"].min(), at["target_seconds"].max()]
    unit, size = ("hours", 3600) if whole[0] > 3600 else ("seconds", 1)
    return (
        f"At n = {n} the sampled relative output errors on {joined(at['input'].unique())} input, "
        f"with their 95 % intervals, are: {'; '.join(said)}. Errors against different targets are "
        "not comparable, nor those of methods of different work. The "
        f"{at['rows'].max()} exact rows of a target, which all its operators share, took at most "
        f"{number((at['target_seconds'] * at['rows']).max() / n)} seconds, and an estimate beside "
        f"them at most {number(slowest['error_seconds'])} ({slowest['method']}), each timed once. "
        f"The whole target would take {number(whole[0] / size)} to {number(whole[1] / size)} "
        f"{unit}."
    )


def _agreement(done: pd.DataFrame) -> str:
    """How many intervals hold the exact error, and how far the estimates are from it."""
    both = done[done["exact_error"].notna()]
    if both.empty:
        return ""
    held = (both["low"] <= both["exact_error"]) & (both["exact_error"] <= both["high"])
    off = (both["sampled_error"] / both["exact_error"] - 1).abs()
    return (
        f"Where the exact output exists too, up to n = {both['n'].max()}, {held.sum()} of "
        f"{len(both)} intervals hold the exact error ({100 * held.mean():.0f} %; cases of one "
        f"length share their rows), and the estimate is off by {number(100 * off.median())} % in "
        f"the median and {number(100 * off.max())} % at most."
    )


def _certified(done: pd.DataFrame) -> str:
    """What certificates are worth, and whether they and the sampled intervals agree."""
    found = _worth(done, ["method"])
    known = done[done["certified_error"].notna()]
    if known.empty:
        return ""
    text = certificates.paragraph(found, [*found["method"]], known["input"].nunique(), sampled=True)
    beyond = known[known["exact_error"].isna()]
    if beyond.empty:
        return text
    told = beyond[np.isfinite(beyond["certified_error"])]
    words = (
        f"Where there is no exact output, up to n = {beyond['n'].max()}, it is below the output in "
        f"{len(told)} of {counted(len(beyond), 'case')}"
    )
    if told.empty:
        return f"{text} {words}: the sampled interval stands alone."
    last = told.loc[told["n"].idxmax()]
    held = int((told["certified_error"] >= told["low"]).sum())
    return (
        f"{text} {words}. There it and the sampled interval check each other: {held} of "
        f"{len(told)} certificates lie above its lower end. At n = {last['n']} "
        f"{last['method']} on {last['input']} input is certified to err by at most "
        f"{number(last['certified_error'])}, and its sampled error is "
        f"{number(last['sampled_error'])} ({number(last['low'])} to {number(last['high'])})."
    )


def _worth(done: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    return certificates.worth(done, by, error="sampled_error", unit="input", floor="low")


def _growth(table: pd.DataFrame) -> str:
    """Exponents of time and memory, and how the error grows, with intervals."""
    fits = exponents(table)
    if fits.empty:
        return ""
    fits = fits[fits["method"] != UNIFORM]
    said = []
    for what in ("time", "memory"):
        words = [
            f"{x['method']} {_power(x[what])}"
            for _, x in fits.iterrows()
            if not np.isnan(x[what].value)
        ]
        if words:
            said.append(f"From n = {FROM} on {what} grows with the exponents {joined(words)}.")
    order = fits.assign(slope=[x.value for x in fits["error"]]).dropna(subset="slope")
    for word, rank in (("greatest", order["slope"].idxmax), ("least", order["slope"].idxmin)):
        if len(order):
            row = order.loc[rank()]
            said.append(
                f"The {word} of {len(order)} exponents of the error, at a fixed knob, is that of "
                f"{row['method']} on {row['input']} input: n to the {_power(row['error'])}."
            )
    return " ".join([*said, SURE] if said else said)


def _power(found: Mean) -> str:
    """An exponent with its interval: "0.57 (0.31 to 0.83)"; empty where there is none."""
    return "" if np.isnan(found.value) else bracketed(found, "{:.2f}".format)
