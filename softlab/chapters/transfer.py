"""Networks used at higher resolutions than they were trained at.

Read are the columns of ``studies/transfer.py``: ``status``, ``method``, ``seed``, ``side``,
``accuracy``, ``drop``, ``growth``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from softlab.chapters import Cell, Table
from softlab.chapters.headlines import Headline
from softlab.chapters.intervals import Mean, bracketed, cell, difference, headline, mean, words
from softlab.chapters.numbers import joined, short
from softlab.chapters.rows import finished

NEEDED = {"status", "method", "seed", "side", "accuracy", "drop", "growth"}
PLAIN, NORMALIZED = "Soft, none", "Soft, symmetric"
CONTROL, WHOLE = "Softmax", "Softmax, whole images"


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
        f"At {_times(done)} the resolution of its training SOFT without normalisation loses "
        "{} percentage points of accuracy more than with the symmetric one."
    )
    yield headline(text, _saved(done, PLAIN, NORMALIZED), done["seed"].nunique())


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Accuracy in training size, drops and growth at each other."""
    done = finished(table, NEEDED)
    if done.empty:
        return
    first, *others = sorted(done["side"].unique())
    body: list[list[Cell]] = []
    for method, rows in done.groupby("method", sort=False):
        by = dict(list(rows.groupby("side")))
        if first not in by:
            continue
        body.append([
            str(method), cell(mean(by[first]["accuracy"])),
            *(cell(mean(by[side]["drop"]), signed=True) if side in by else "" for side in others),
            *(short(by[side]["growth"].mean()) if side in by else "" for side in others),
        ])  # fmt: skip
    yield {
        "caption": f"Accuracy at {first} pixels and what is lost of it at other sides, in percent: "
        "means over the seeds with 95 % intervals. Last: growth of the activations, means.",
        "header": ["attention", f"at {first}", *(f"lost at {side}" for side in others),
                   *(f"growth, {side}" for side in others)],
        "rows": body,
        "left": 1,
    }  # fmt: skip


def _saved(done: pd.DataFrame, plain: str, normalized: str) -> Mean:
    """What one form loses at the largest side less what another does."""
    return difference(done[done["side"] == done["side"].max()], "drop", plain, normalized)


def exponents(done: pd.DataFrame) -> dict[str, Mean]:
    """The exponent of the growth in the number of tokens, side squared, by method."""
    ends = done[done["side"].isin([done["side"].min(), done["side"].max()])]
    steps = 2 * np.log(done["side"].max() / done["side"].min())
    found = {}
    for method, rows in ends.groupby("method", sort=False):
        largest = rows[rows["side"] == done["side"].max()]
        found[str(method)] = mean(np.log(largest["growth"]) / steps)
    return found


def _growth(done: pd.DataFrame) -> str:
    each = joined(f"{method} {bracketed(x)}" for method, x in exponents(done).items())
    return (
        f"From {done['side'].min()} to {done['side'].max()} pixels the attention's output grows "
        f"with the number of tokens to the powers, 95 % intervals in brackets: {each}."
    )


def _lost(done: pd.DataFrame) -> dict[str, Mean]:
    """The accuracy lost at the largest side, by method."""
    largest = done[done["side"] == done["side"].max()]
    return {str(m): mean(rows["drop"]) for m, rows in largest.groupby("method", sort=False)}


def _drops(done: pd.DataFrame) -> str:
    drops = _lost(done)
    ranked = sorted(drops, key=lambda m: drops[m].value)
    each = joined(f"{method} {words(drops[method], signed=True)}" for method in ranked)
    return f"At {_times(done)} the resolution of the training this much accuracy is lost: {each}."


def _verdict(done: pd.DataFrame) -> str:
    if not {PLAIN, NORMALIZED} <= set(done["method"]):
        return ""
    said = []
    for plain, normalized in ((PLAIN, NORMALIZED), (f"{PLAIN}, m grows", f"{NORMALIZED}, m grows")):
        if {plain, normalized} <= set(done["method"]):
            off = _saved(done, plain, normalized)
            verdict = {
                1: "normalisation keeps what is lost without it",
                -1: "normalisation loses more",
                0: "these seeds do not tell the two apart",
            }[off.sign]
            said.append(
                f"{plain} loses {words(off, signed=True)} more than {normalized}: {verdict}."
            )
    lost = _lost(done)
    if CONTROL in lost:
        said.append(
            f"{CONTROL} attention, which nothing of this concerns, loses "
            f"{words(lost[CONTROL], signed=True)} itself"
            + (f", and {words(lost[WHOLE], signed=True)} where it learnt from whole images alone"
               if WHOLE in lost else "")
            + ": so much comes with the size of the things in pixels."
        )  # fmt: skip
    return " ".join(said)


def _times(done: pd.DataFrame) -> str:
    return f"{done['side'].max() / done['side'].min():.3g} times"
