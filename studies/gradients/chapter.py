"""The gradient of an iterative inverse: bias by residual, by spread of landmarks, by head.

Read are the columns of the study ``gradients``: ``status``, ``kind``, ``source``, ``ridge``,
``loss``, ``precision``, ``steps``, ``rule``, ``residual``, ``condition``, ``solve_status``, the
errors ``map_error`` and ``inverse_error``, ``map_cosine``, and ``matrix.spread``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline, headline, surprise
from softlab.report.numbers import joined, median, number, short, span
from softlab.report.rows import complete, finished

from .columns import (
    DUPLICATES,
    GOLUB_PEREYRA,
    IMPLICIT,
    LOW_RANK,
    RANDOM,
    RECORDED,
    SOFTS,
    UNROLLED,
)

WRONG = 0.5
"""An error of half the gradient."""
TURNING = 0.9
"""A cosine below this is counted as a gradient that begins to turn away."""
SMALL = (1e-9, 1e-2)
"""Residuals between rounding and where the iteration leaves something uninverted."""
NEEDED = {
    *("kind", "source", "ridge", "loss", "precision", "steps", "rule", "residual", "condition"),
    *("solve_status", "map_error", "inverse_error", "map_cosine", "seed"),
}
READINGS = (
    (IMPLICIT, "map_error", "implicit, map"),
    (GOLUB_PEREYRA, "map_error", "G.-P., map"),
    (IMPLICIT, "inverse_error", "implicit, inverse"),
    (GOLUB_PEREYRA, "inverse_error", "G.-P., inverse"),
    (UNROLLED, "inverse_error", "unrolled, inverse"),
)


def scope(table: pd.DataFrame) -> str:
    """The rules, the matrices and the steps."""
    if not complete(table, {"rule", "source", "kind", "steps"}):
        return ""
    named = table.dropna(subset=["source"])
    kinds = "; ".join(
        f"{kind} ({rows['source'].nunique()})" for kind, rows in named.groupby("kind", sort=False)
    )
    steps = joined(sorted(int(step) for step in table["steps"].unique()))
    return (
        f"Rules: {joined(table['rule'].unique())}, on Newton's iteration after {steps} steps. "
        f"Matrices: {kinds}."
    )


def findings(table: pd.DataFrame) -> list[str]:
    """Where SOFT's backward pass is wrong, on what heads, and what law the bias follows."""
    done = finished(table, NEEDED)
    if done.empty:
        return []
    fine = done[done["precision"] == "float64"]
    implicit = fine[fine["rule"] == IMPLICIT]
    paragraphs = (
        _landmarks(implicit[implicit["steps"] == SOFTS]),
        _heads(implicit[implicit["steps"] == SOFTS]),
        _residuals(implicit[implicit["kind"] != LOW_RANK]),
        _two_truths(fine[fine["kind"] != LOW_RANK]),
        _singular(fine[fine["kind"] == LOW_RANK]),
        _single_precision(done[done["steps"] == SOFTS]),
    )
    return [text for text in (" ".join(sentences) for sentences in paragraphs) if text]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """The cosine of SOFT's backward formula with the true gradient, on real heads and on grids."""
    done = finished(table, NEEDED)
    mine = done[(done["rule"] == IMPLICIT) & (done["steps"] == SOFTS)]
    mine = mine[mine["precision"] == "float64"]
    real = mine[mine["kind"] == RECORDED]
    text = (
        f"SOFT's backward formula after {SOFTS} steps has a cosine of {{}} with the gradient of "
        "what was computed"
    )
    nested = "samples, losses and ridges"
    cosine = real["map_cosine"]
    for line in headline(text, cosine, "recorded heads", unit=real["source"], nested=nested):
        counts = (
            f"negative in {(cosine < 0).sum()} and below {TURNING:g} in "
            f"{(cosine < TURNING).sum()} of {len(cosine)} cases"
        )
        yield {**line, "interval": "; ".join(filter(None, (line["interval"], counts)))}
    made = mine[mine["kind"] != RECORDED]
    if len(made):
        each = joined(
            f"{(rows['map_cosine'] < 0).sum()} of {len(rows)} ({kind})"
            for kind, rows in made.groupby("kind", sort=False)
        )
        yield {
            "text": "Over designed grids of matrices SOFT's backward formula after "
            f"{SOFTS} steps has a negative cosine with the true gradient in {{}} cases.",
            "value": each,
            "interval": f"cosine: {span(made['map_cosine'])}",
            "effect": surprise(float((made["map_cosine"] < 0).mean())),
        }


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Every matrix at SOFT's steps: the constructed ones and landmarks, then the heads."""
    done = finished(table, NEEDED)
    if done.empty:
        return
    rows = done[(done["steps"] == SOFTS) & (done["precision"] == "float64")]
    real = rows["kind"] == RECORDED
    for which, chosen in (
        ("Constructed matrices and near-duplicate landmarks", ~real),
        ("Cores of recorded heads", real),
    ):
        if not chosen.any():
            continue
        body: list[list[Cell]] = []
        groups = rows[chosen].groupby(["source", "loss", "ridge"], sort=False)
        before = None
        for (source, loss, ridge), mine in groups:
            head: list[Cell] = [str(source) if source != before else "", str(loss), f"{ridge:g}"]
            cells = [short(mine["condition"].median()), short(mine["residual"].median(), 2)]
            for rule, column, _ in READINGS:
                cells.append(short(mine.loc[mine["rule"] == rule, column].median(), 2))
            ended = mine["solve_status"].mode().iloc[0].lower().replace("_", " ")
            body.append([*head, str(ended), *cells])
            before = source
        yield {
            "caption": f"{which} after {SOFTS} Newton steps, medians of the seeds: how the "
            "iteration ended, condition number, residual, and relative error of each rule against "
            "the gradient of the computed map and against that of the pseudo-inverse.",
            "header": ["matrix", "G", "ridge", "ended", "condition", "residual",
                       *(label for *_, label in READINGS)],
            "rows": body,
            "left": 4,
        }  # fmt: skip


def _landmarks(rows: pd.DataFrame) -> Iterator[str]:
    """The spread at which the implicit rule begins to be wrong."""
    mine = rows[rows["kind"] == DUPLICATES]
    if mine.empty:
        return
    for ridge, of_ridge in mine.groupby("ridge"):
        points = of_ridge.groupby("matrix.spread")[
            ["map_error", "residual", "condition", "map_cosine"]
        ].median()
        wrong = points["map_error"] > WRONG
        shift = f"With a ridge of {ridge:g}" if ridge else "Without a ridge"
        if not wrong.any():
            yield (
                f"{shift} it is in the median of the seeds nowhere wrong by more than half on "
                "near-duplicate landmarks."
            )
            continue
        at = points.index[wrong].max()
        says = (
            f"{shift} SOFT's backward pass, the implicit rule after {SOFTS} steps, is in the median"
            f" of the seeds wrong by more than half on landmarks of spread {_down(wrong)} (at "
            f"{at:g} bandwidths: {_point(points.loc[at])})"
        )
        right = points[points.index > at]
        if len(right):
            says += f"; at {right.index[0]:g} there is {_point(right.iloc[0])}"
        turned = points["map_cosine"] < 0
        yield says + (f"; it points uphill at {_down(turned)}." if turned.any() else ".")


def _down(chosen: pd.Series) -> str:
    """The chosen spreads: from the largest down, where all smaller are chosen too."""
    at = chosen.index[chosen]
    return f"{at.max():g} and below" if chosen[: at.max()].all() else joined(f"{x:g}" for x in at)


def _point(at: pd.Series) -> str:
    return (
        f"error {number(at['map_error'])}, residual {number(at['residual'])}, condition "
        f"{number(at['condition'])}"
    )


def _heads(rows: pd.DataFrame) -> Iterator[str]:
    """Which recorded heads are there."""
    mine = rows[rows["kind"] == RECORDED]
    for (loss, ridge), at in mine.groupby(["loss", "ridge"], sort=False):
        names = [
            f"{source} ({(of['map_error'] > WRONG).sum()} of {len(of)} samples, error up to "
            f"{number(of['map_error'].max())}, least cosine {number(of['map_cosine'].min())})"
            for source, of in at.groupby("source", sort=False)
            if (of["map_error"] > WRONG).any()
        ]
        what = "a random G" if loss == RANDOM else "the G of the head's own regression"
        shift = f"a ridge of {ridge:g}" if ridge else "no ridge"
        worst = at.loc[at["map_error"].idxmax()]
        says = (
            f"With {what} and {shift}, {len(names)} of {at['source'].nunique()} recorded heads "
            f"{'has' if len(names) == 1 else 'have'} in some sample an error above half after "
            f"{SOFTS} steps"
        )
        says += (
            f": {joined(names)}."
            if names
            else (f"; the worst is {worst['source']} with {number(worst['map_error'])}.")
        )
        yield says


def _residuals(rows: pd.DataFrame) -> Iterator[str]:
    """Between which residuals it turns wrong, and of what order the bias is."""
    rows = rows[rows["loss"] == RANDOM]
    wrong = rows["map_error"] > WRONG
    if wrong.any() and not wrong.all():
        yield (
            "With a random G on matrices of full rank the least residual with an error above half "
            f"is {number(rows.loc[wrong, 'residual'].min())}, the largest with one below "
            f"{number(rows.loc[~wrong, 'residual'].max())}."
        )
    turned = rows[rows["map_cosine"] < 0]
    if len(turned):
        yield (
            f"The cosine is negative in {len(turned)} of {len(rows)} cases, from a residual of "
            f"{number(turned['residual'].min())} on; one eigenvalue alone turns at 0.285."
        )
    between = rows[rows["residual"].between(*SMALL)]
    if between["residual"].nunique() > 3:
        slopes = [
            np.polyfit(np.log(between["residual"]), np.log(between[column]), 1)[0]
            for column in ("inverse_error", "map_error")
        ]
        yield (
            f"Between residuals of 10⁻⁹ and 0.01 the error grows as the residual to the power "
            f"{number(slopes[0])} against the pseudo-inverse and {number(slopes[1])} against the "
            f"computed map, by one line through {len(between)} cases of "
            f"{between['source'].nunique()} matrices; theory has 1, and 1 less a logarithm."
        )


def _two_truths(rows: pd.DataFrame) -> Iterator[str]:
    """How much farther from the pseudo-inverse's gradient the unrolled one is."""
    between = rows[rows["residual"].between(*SMALL)]
    errors = between.pivot_table(
        index=["source", "ridge", "loss", "seed", "steps"], columns="rule", values="inverse_error"
    )
    if not {IMPLICIT, UNROLLED} <= set(errors):
        return
    errors = errors.dropna(subset=[IMPLICIT, UNROLLED])
    if errors.empty:
        return
    ratio = errors[UNROLLED] / errors[IMPLICIT]
    yield (
        "From the gradient of the pseudo-inverse the unrolled one is farther than the implicit "
        f"rule in {(ratio > 1).sum()} of {len(ratio)} cases at residuals of 10⁻⁹ to 0.01, "
        f"{span(ratio)} times as far."
    )
    if GOLUB_PEREYRA in errors:
        ends = errors[[IMPLICIT, UNROLLED]]
        inside = errors[GOLUB_PEREYRA].between(ends.min(axis=1), ends.max(axis=1))
        factor = errors[GOLUB_PEREYRA] / errors[IMPLICIT]
        yield (
            f"Golub and Pereyra's lies between the two in {inside.sum()} cases, {span(factor)} "
            "times as far as the implicit rule."
        )


def _singular(rows: pd.DataFrame) -> Iterator[str]:
    """What the rules make of a matrix that is exactly singular."""
    at = rows[rows["steps"] == SOFTS]
    rules = dict(iter(at.groupby("rule")))
    if not {IMPLICIT, GOLUB_PEREYRA, UNROLLED} <= set(rules):
        return
    error = {rule: median(mine, "inverse_error") for rule, mine in rules.items()}
    yield (
        f"On singular input ({rules[IMPLICIT]['source'].iloc[0]}) the iteration converges, to a "
        f"residual of {median(at, 'residual')}, and the rules part: against the pseudo-inverse at "
        f"its rank the error is {error[IMPLICIT]} for the implicit rule, "
        f"{error[GOLUB_PEREYRA]} for Golub and Pereyra's, and {error[UNROLLED]} for the "
        "unrolled loop, whose slope across the rank doubles each step."
    )


def _single_precision(rows: pd.DataFrame) -> Iterator[str]:
    """Whether training's precision changes the picture."""
    keys = ["source", "ridge", "loss", "seed", "rule"]
    both = rows[rows["kind"] != LOW_RANK].pivot_table(
        index=keys, columns="precision", values="map_error"
    )
    if not {"float32", "float64"} <= set(both):
        return
    both = both.dropna().reset_index()
    ruled = both[both["rule"] != UNROLLED]
    apart = (ruled["float32"] - ruled["float64"]).abs().max()
    own = both.loc[both["rule"] == UNROLLED, "float32"].max()
    if math.isfinite(apart) and math.isfinite(own):
        yield (
            f"float32 moves no error of a rule at {SOFTS} steps by more than {number(apart)} on "
            f"matrices of full rank; the unrolled gradient itself loses up to {number(own)} to it."
        )
