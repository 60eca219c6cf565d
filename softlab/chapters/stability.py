"""A pyramid trained through an iterative inverse, its cores and gradients along the way.

Read are the columns of ``studies/stability.py``: ``status``, ``rule``, ``seed``, ``step``,
``layer``, ``loss``, ``worst_condition``, ``worst_residual``, ``unconverged``, ``cosine``,
``gradient_error``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from softlab.chapters import Cell, Table
from softlab.chapters.headlines import Headline
from softlab.chapters.intervals import Mean, bracketed, mean
from softlab.chapters.numbers import joined, number, short
from softlab.chapters.rows import finished

NEEDED = {
    "status", "rule", "seed", "step", "layer", "loss", "worst_condition", "worst_residual",
    "unconverged", "cosine", "gradient_error",
}  # fmt: skip
TRUE, SOFT = "unrolled", "implicit"
WRONG = 0.5
"""A gradient that is off by more than half is called wrong."""


def scope(table: pd.DataFrame) -> str:
    """The rules and the length of the training."""
    done = finished(table, NEEDED)
    if done.empty:
        return ""
    return (
        f"Rules: {'; '.join(map(str, done['rule'].unique()))}; {done['seed'].nunique()} seeds, "
        f"{int(done['step'].max())} steps, {done['layer'].nunique()} layers."
    )


def findings(table: pd.DataFrame) -> list[str]:
    """Whether the inverse converges; whether the gradient is right; whether the loss cares."""
    done = finished(table, NEEDED)
    if done.empty:
        return []
    said = [" ".join(_cores(done)), " ".join(_gradients(done)), " ".join(_losses(done))]
    return [text for text in said if text]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """How much of a training is unconverged, and how far off SOFT's gradient is there."""
    rows = finished(table, NEEDED)
    rows = rows[rows["rule"] == SOFT]
    if rows.empty:
        return
    low, high = rows["gradient_error"].quantile([0.05, 0.95])
    yield {
        "text": "In the training of a pyramid through 20 Newton steps "
        f"{100 * rows['unconverged'].mean():.0f} % of the inverses are not converged; SOFT's "
        "gradient is then off by {}, in the median.",
        "value": number(rows["gradient_error"].median()),
        "interval": f"90 % of {len(rows)} gradients between {number(low)} and {number(high)}",
    }


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """By rule and layer over the whole training."""
    done = finished(table, NEEDED)
    if done.empty:
        return
    body: list[list[Cell]] = []
    for rule, mine in done.groupby("rule", sort=False):
        for i, (layer, rows) in enumerate(mine.groupby("layer")):
            body.append([
                str(rule) if i == 0 else "", str(layer),
                short(rows["worst_condition"].median(), 2),
                f"{100 * rows['unconverged'].mean():.0f}",
                short(rows["gradient_error"].median(), 2), short(rows["gradient_error"].max(), 2),
                short(rows["cosine"].min(), 2), f"{100 * (rows['cosine'] < 0).mean():.0f}",
            ])  # fmt: skip
    yield {
        "caption": "Over all steps and seeds: the median of the largest condition number; the "
        "share of cores whose inverse is not converged, in percent; the gradient's error, median "
        "and largest; its least cosine with the true one, and the share of negative ones in "
        "percent.",
        "header": ["rule", "layer", "condition", "unconverged", "error", "largest", "cosine",
                   "sign wrong"],
        "rows": body,
        "left": 2,
    }  # fmt: skip


def ends(done: pd.DataFrame) -> pd.DataFrame:
    """The loss over the last quarter of the training, a row a seed and a column a rule."""
    late = done[(done["layer"] == done["layer"].min()) & (done["step"] > 0.75 * done["step"].max())]
    return late.groupby(["seed", "rule"], sort=False)["loss"].mean().unstack()


def _cores(done: pd.DataFrame) -> Iterator[str]:
    for rule, rows in done.groupby("rule", sort=False):
        if rule not in (SOFT, f"{SOFT}, ridge"):
            continue
        by_layer = rows.groupby("layer")
        first = rows[rows["step"] == rows["step"].min()].groupby("layer")["worst_condition"]
        last = rows[rows["step"] == rows["step"].max()].groupby("layer")["worst_condition"]
        each = joined(
            f"layer {layer} {number(a)} and {number(b)}"
            for (layer, a), b in zip(first.median().items(), last.median(), strict=True)
        )
        shares = joined(f"{100 * x:.0f} %" for x in by_layer["unconverged"].mean())
        yield (
            f"Under {rule} the largest condition number of a core before training and after it is: "
            f"{each}. The inverse is not converged in {shares} of the cores of these layers along "
            "the training."
        )


def _gradients(done: pd.DataFrame) -> Iterator[str]:
    for rule, rows in done.groupby("rule", sort=False):
        wrong, turned = (rows["gradient_error"] > WRONG).sum(), (rows["cosine"] < 0).sum()
        yield (
            f"The gradient of {rule} is off by {number(rows['gradient_error'].median())} in the "
            f"median and {number(rows['gradient_error'].max())} at most, by more than a half in "
            f"{wrong} of {len(rows)} places (a step, layer and seed each), with the wrong sign in "
            f"{turned}."
        )


def _losses(done: pd.DataFrame) -> Iterator[str]:
    late = ends(done)
    if TRUE not in late:
        return
    each = joined(f"{rule} {number(x)}" for rule, x in late.mean().items())
    yield f"Training loss over the last quarter of the steps, means of the seeds: {each}."
    others = {
        str(rule): mean((late[rule] / late[TRUE] - 1).dropna()) for rule in late if rule != TRUE
    }
    if len(late) < 2:
        return
    told = [f"{rule} {_change(x)}" for rule, x in others.items()]
    differ = [rule for rule, x in others.items() if x.sign]
    yield (
        f"Relative to {TRUE} steps with the same seed: {joined(told)}. "
        + (
            f"Beyond the interval differ {joined(differ)}."
            if differ
            else "None differs beyond its interval: this training does not care."
        )
    )


def _change(x: Mean) -> str:
    return bracketed(x, lambda y: f"{100 * y:+.1f} %")
