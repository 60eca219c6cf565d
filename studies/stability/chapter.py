"""A pyramid trained through an iterative inverse, its cores and gradients along the way.

Read are the columns of ``studies/stability``: ``status``, ``rule``, ``seed``, ``step``,
``layer``, ``loss``, ``worst_condition``, ``worst_residual``, ``unconverged``, ``cosine``,
``gradient_error``, and ``broke``, the step at which a training ended early.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline, surprise
from softlab.report.intervals import Mean, bracketed, mean
from softlab.report.numbers import joined, number, short, span
from softlab.report.rows import finished

from .columns import IMPLICIT, RIDGED, UNROLLED

NEEDED = {
    *("status", "rule", "seed", "step", "layer", "loss", "worst_condition", "worst_residual"),
    *("unconverged", "cosine", "gradient_error", "broke"),
}
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
    losses = " ".join([*_losses(done), *_broken(done)])
    said = [" ".join(_cores(done)), " ".join(_gradients(done)), losses]
    return [text for text in said if text]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """How much of a training is unconverged, and how far off SOFT's gradient is there."""
    rows = finished(table, NEEDED)
    rows = rows[rows["rule"] == IMPLICIT]
    if rows.empty:
        return
    wrong = rows["gradient_error"] > WRONG
    yield {
        "text": f"In {rows['seed'].nunique()} trainings of a pyramid through 20 Newton steps "
        f"{100 * rows['unconverged'].mean():.0f} % of the inverses are not converged, and SOFT's "
        "gradient is off by more than a half in {} places (a step and a layer of a training each).",
        "value": f"{wrong.sum()} of {len(rows)}",
        "interval": f"{_by_seed(wrong, rows)} of the places of a training",
        "effect": surprise(float(wrong.mean())),
    }


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """By rule and layer over the whole training."""
    done = finished(table, NEEDED)
    if done.empty:
        return
    body: list[list[Cell]] = []
    for rule, mine in done.groupby("rule", sort=False):
        for i, (layer, rows) in enumerate(mine.groupby("layer")):
            body.append(
                [
                    str(rule) if i == 0 else "",
                    str(layer),
                    short(rows["worst_condition"].median(), 2),
                    f"{100 * rows['unconverged'].mean():.0f}",
                    short(rows["gradient_error"].median(), 2),
                    short(rows["gradient_error"].max(), 2),
                    short(rows["cosine"].min(), 2),
                    f"{100 * (rows['cosine'] < 0).mean():.0f}",
                ]
            )
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


def _by_seed(values: pd.Series, rows: pd.DataFrame) -> str:
    """The mean in percent of each seed, from the least to the greatest."""
    return f"{span(100 * values.groupby(rows['seed']).mean(), '{:.0f}'.format)} %"


def _cores(done: pd.DataFrame) -> Iterator[str]:
    for rule, rows in done.groupby("rule", sort=False):
        if rule not in (IMPLICIT, RIDGED):
            continue
        first, last = (
            rows[rows["step"] == end].groupby("layer")["worst_condition"]
            for end in (rows["step"].min(), rows["step"].max())
        )
        each = joined(
            f"layer {layer} {span(before)} and {span(last.get_group(layer))}"
            for layer, before in first
            if layer in last.groups
        )
        shares = joined(
            f"{100 * part['unconverged'].mean():.0f} % ({_by_seed(part['unconverged'], part)})"
            for _, part in rows.groupby("layer")
        )
        yield (
            f"Under {rule} the largest condition number of a core before training and after it is, "
            f"over {rows['seed'].nunique()} seeds: {each}. The inverse is not converged in {shares}"
            " of the cores of these layers along the training, in brackets seed by seed."
        )


def _gradients(done: pd.DataFrame) -> Iterator[str]:
    for rule, rows in done.groupby("rule", sort=False):
        wrong, turned = rows["gradient_error"] > WRONG, rows["cosine"] < 0
        yield (
            f"The gradient of {rule} is off by {number(rows['gradient_error'].max())} at most, by "
            f"more than a half in {wrong.sum()} of {len(rows)} places (a step, layer and seed each;"
            f" seed by seed {_by_seed(wrong, rows)}), with the wrong sign in {turned.sum()}."
        )


def _losses(done: pd.DataFrame) -> Iterator[str]:
    late = ends(done)
    if UNROLLED not in late:
        return
    each = joined(f"{rule} {number(x)}" for rule, x in late.mean().items())
    yield f"Training loss over the last quarter of the steps, means of the seeds: {each}."
    if len(late) < 2:
        return
    rules = [rule for rule in late if rule != UNROLLED]
    others = {
        str(rule): mean((late[rule] / late[UNROLLED] - 1).dropna(), verdicts=len(rules))
        for rule in rules
    }
    told = [f"{rule} {_change(x)}" for rule, x in others.items()]
    differ = [rule for rule, x in others.items() if x.sign]
    yield (
        f"Relative to {UNROLLED} steps with the same seed, with intervals that hold together in "
        f"95 % of studies: {joined(told)}. "
        + (
            f"Beyond the interval differ {joined(differ)}."
            if differ
            else "None differs beyond its interval."
        )
    )


def _broken(done: pd.DataFrame) -> Iterator[str]:
    """Which trainings ended before their time."""
    rows = done.dropna(subset="broke").drop_duplicates(["rule", "seed"])
    if len(rows):
        each = joined(f"{x.rule}, seed {x.seed}, at step {x.broke:g}" for x in rows.itertuples())
        yield f"Trainings whose loss was no longer finite end there: {each}."


def _change(x: Mean) -> str:
    return bracketed(x, lambda y: f"{100 * y:+.1f} %")
