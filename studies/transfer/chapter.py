"""Networks used at higher resolutions than they were trained at.

Read are the columns of ``studies/transfer``: ``status``, ``method``, ``seed``, ``side``,
``accuracy``, ``drop``, ``growth``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline
from softlab.report.intervals import (
    Mean,
    bracketed,
    cell,
    difference,
    headline,
    in_common,
    mean,
    words,
)
from softlab.report.numbers import joined, short
from softlab.report.rows import finished

from .columns import CONTROL, GROWING, NORMALIZED, PLAIN, WHOLE

NEEDED = {"status", "method", "seed", "side", "accuracy", "drop", "growth"}


def scope(table: pd.DataFrame) -> str:
    """The methods and the sizes."""
    done = finished(table, NEEDED)
    if done.empty:
        return ""
    return (
        f"Attention: {'; '.join(map(str, done['method'].unique()))}. Sides: "
        f"{joined(sorted(done['side'].unique()))} pixels; seeds: {done['seed'].nunique()}."
    )


def findings(table: pd.DataFrame) -> list[str]:
    """What grows; what accuracy is lost; whether normalisation is what saves it."""
    done = finished(table, NEEDED)
    if done["side"].nunique() < 2:
        return []
    return [_growth(done), _drops(done), _verdict(done)]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """What SOFT loses at the largest size without normalisation, less what it loses with."""
    done = finished(table, NEEDED)
    if done["side"].nunique() < 2 or not {PLAIN, NORMALIZED} <= set(done["method"]):
        return
    text = (
        f"In a small pyramid on one data set, at {_times(done)} the resolution of its training, "
        "SOFT without normalisation loses {} percentage points of accuracy more than with the "
        "symmetric one."
    )
    large = _largest(done)
    found = difference(large, "drop", PLAIN, NORMALIZED)
    yield headline(text, found, in_common(large, PLAIN, NORMALIZED))


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Accuracy in training size, drops and growth at each other."""
    done = finished(table, NEEDED)
    if done.empty:
        return
    first, *others = sorted(done["side"].unique())
    body: list[list[Cell]] = []
    verdicts = done["method"].nunique()
    for method, rows in done.groupby("method", sort=False):
        by = dict(list(rows.groupby("side")))
        if first not in by:
            continue
        body.append([
            str(method), cell(mean(by[first]["accuracy"], verdicts=verdicts)),
            *(cell(mean(by[side]["drop"], verdicts=verdicts), signed=True) if side in by else ""
              for side in others),
            *(short(by[side]["growth"].mean()) if side in by else "" for side in others),
        ])  # fmt: skip
    yield {
        "caption": f"Accuracy at {first} pixels and what is lost of it at other sides, in percent: "
        "means over the seeds, and intervals of which all of a column hold together in 95 % of "
        "studies. Last: growth of the activations, means.",
        "header": [
            "attention",
            f"at {first}",
            *(f"lost at {side}" for side in others),
            *(f"growth, {side}" for side in others),
        ],
        "rows": body,
        "left": 1,
    }


def _largest(done: pd.DataFrame) -> pd.DataFrame:
    return done[done["side"] == done["side"].max()]


def exponents(done: pd.DataFrame) -> dict[str, Mean]:
    """The exponent of the growth in the number of tokens, side squared, by method.

    With intervals that hold together.
    """
    steps = 2 * np.log(done["side"].max() / done["side"].min())
    return _by_method(done, lambda rows: np.log(rows["growth"]) / steps)


def _by_method(done: pd.DataFrame, of: Callable[[pd.DataFrame], pd.Series]) -> dict[str, Mean]:
    """A mean over the seeds at the largest side for each method, with intervals together."""
    parts = dict(list(_largest(done).groupby("method", sort=False)))
    return {str(method): mean(of(rows), verdicts=len(parts)) for method, rows in parts.items()}


def _growth(done: pd.DataFrame) -> str:
    each = joined(f"{method} {bracketed(x)}" for method, x in exponents(done).items())
    return (
        f"From {done['side'].min()} to {done['side'].max()} pixels the attention's output grows "
        "with the number of tokens to the powers, in brackets intervals that hold together in 95 % "
        f"of studies: {each}."
    )


def _lost(done: pd.DataFrame) -> dict[str, Mean]:
    """The accuracy lost at the largest side, by method."""
    return _by_method(done, lambda rows: rows["drop"])


def _drops(done: pd.DataFrame) -> str:
    drops = _lost(done)
    ranked = sorted(drops, key=lambda m: drops[m].value)
    each = joined(f"{method} {words(drops[method], signed=True)}" for method in ranked)
    return f"At {_times(done)} the resolution of the training this much accuracy is lost: {each}."


def _verdict(done: pd.DataFrame) -> str:
    if not {PLAIN, NORMALIZED} <= set(done["method"]):
        return ""
    said = []
    methods = set(done["method"])
    forms = ((PLAIN, NORMALIZED), (GROWING.format(PLAIN), GROWING.format(NORMALIZED)))
    pairs = [pair for pair in forms if set(pair) <= methods]
    for plain, normalized in pairs:
        off = difference(_largest(done), "drop", plain, normalized, verdicts=len(pairs))
        verdict = {
            1: "normalisation keeps what is lost without it",
            -1: "normalisation loses more",
            0: "these seeds do not tell the two apart",
        }[off.sign]
        said.append(f"{plain} loses {words(off, signed=True)} more than {normalized}: {verdict}.")
    lost = _lost(done)
    if CONTROL in lost:
        said.append(
            f"{CONTROL} attention, which nothing of this concerns, loses "
            f"{words(lost[CONTROL], signed=True)} itself"
            + (
                f", and {words(lost[WHOLE], signed=True)} where it learnt from whole images alone"
                if WHOLE in lost
                else ""
            )
            + ": so much comes with the size of the things in pixels."
        )
    return " ".join(said)


def _times(done: pd.DataFrame) -> str:
    return f"{done['side'].max() / done['side'].min():.3g} times"
