"""Training a small attention layer with rules for the gradient of its inverse.

Read are the columns of the study ``training``: ``status``, ``task``, ``newton``, ``steps``,
``rule``, ``seed``, ``step``, ``loss``, ``cosine``, ``residual``, ``spread``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from softlab.chapters import Cell, Table
from softlab.chapters.headlines import Headline, headline
from softlab.chapters.numbers import joined, median, number, short
from softlab.chapters.rows import finished

NEEDED = {
    "task", "newton", "steps", "rule", "seed", "step", "loss", "cosine", "residual", "spread",
}  # fmt: skip
TRUE = "unrolled"
ALIKE = 0.1
"""Losses within a tenth of each other are called alike."""


def scope(table: pd.DataFrame) -> str:
    """The rules, the tasks and the length of the training."""
    if not {"task", "rule", "step"} <= set(table.columns):
        return ""
    return (
        f"Rules: {'; '.join(map(str, table['rule'].unique()))}. Tasks: "
        f"{'; '.join(map(str, table['task'].unique()))}; {int(table['step'].max())} steps of Adam."
    )


def findings(table: pd.DataFrame) -> list[str]:
    """A verdict over all tasks, then a paragraph for each."""
    done = finished(table, {"status", *NEEDED})
    if done.empty or TRUE not in set(done["rule"]):
        return []
    paragraphs = [" ".join(_verdict(done))]
    for (task, newton), mine in done.groupby(["task", "newton"], sort=False):
        paragraphs.append(" ".join(_task(str(task), str(newton), mine)))
    return [text for text in paragraphs if text]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """The final loss with SOFT's gradient over that with the true one."""
    done = finished(table, {"status", *NEEDED})
    if done.empty or TRUE not in set(done["rule"]):
        return
    found = []
    for _, mine in done.groupby(["task", "newton"], sort=False):
        ends = _ends(mine)
        if {"implicit", TRUE} <= set(ends.index):
            found.append(ends["implicit"] / ends[TRUE])
    text = "Training with SOFT's backward formula ends at {} times the loss of the true gradient."
    yield from headline(text, pd.Series(found, dtype=float), "settings")


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """By task and rule: losses on the way, and how true the gradient was."""
    done = finished(table, {"status", *NEEDED})
    if done.empty:
        return
    last = int(done["step"].max())
    marks = sorted({int(s) for s in done["step"]} & {0, last // 4, last // 2, last})
    body: list[list[Cell]] = []
    before = None
    for (task, newton, rule), mine in done.groupby(["task", "newton", "rule"], sort=False):
        at = mine[mine["step"] == last]
        head: list[Cell] = [
            [str(task), str(newton)] if (task, newton) != before else "", str(rule),
        ]  # fmt: skip
        losses: list[Cell] = [short(mine.loc[mine["step"] == s, "loss"].median()) for s in marks]
        by_step = mine.groupby("step")["cosine"].median()
        body.append(
            [*head, *losses, short(by_step.min(), 2), short(by_step.median(), 2),
             short(at["residual"].median(), 2), short(at["spread"].median(), 2)]
        )  # fmt: skip
        before = (task, newton)
    yield {
        "caption": "Loss at some training steps; least and median cosine over the training, of "
        "medians over the seeds; the worst core's residual and the landmarks' spread, in "
        "bandwidths, at the end.",
        "header": ["task", "rule", *(f"loss, {s}" for s in marks), "least cosine",
                   "median cosine", "residual", "spread"],
        "rows": body,
        "left": 2,
    }  # fmt: skip


def _ends(rows: pd.DataFrame) -> pd.Series:
    """The loss in the last fifth of the training, where Adam still bounces: a median, by rule."""
    late = rows[rows["step"] >= 0.8 * rows["step"].max()]
    return late.groupby("rule", sort=False)["loss"].median()


def _verdict(done: pd.DataFrame) -> Iterator[str]:
    """Whether training cares, over all tasks."""
    matters, total, turned, exact = [], 0, [], []
    for (task, newton), mine in done.groupby(["task", "newton"], sort=False):
        ends = _ends(mine)
        if not {"implicit", TRUE} <= set(ends.index):
            continue
        total += 1
        if abs(ends["implicit"] / ends[TRUE] - 1) > ALIKE:
            matters.append(f"{task}, {newton} ({number(ends['implicit'] / ends[TRUE])})")
        if "exact" in ends and abs(ends["exact"] / ends[TRUE] - 1) > ALIKE:
            exact.append(f"{task}, {newton} ({number(ends['exact'] / ends[TRUE])})")
        cosine = mine[mine["rule"] == "implicit"].groupby("step")["cosine"].median().min()
        if cosine < 0.5:
            turned.append(f"{task}, {newton} ({number(cosine)})")
    if not total:
        return
    if matters:
        yield (
            f"The implicit rule ends with a loss that differs by more than a tenth from that of "
            f"the true gradient in {len(matters)} of {total} settings (their ratio: "
            f"{joined(matters)})."
        )
    else:
        yield (
            f"In none of {total} settings does the implicit rule end with a loss that differs by "
            "more than a tenth from that of the true gradient: this training does not care."
        )
    if turned:
        yield f"Its cosine with the true gradient falls below a half in {joined(turned)}."
    if exact:
        yield (
            "To invert exactly, and differentiate that, changes the loss by more than a tenth in "
            f"{joined(exact)}."
        )
    yield "Losses are medians over the seeds and the last fifth of the steps."


def _task(task: str, newton: str, mine: pd.DataFrame) -> Iterator[str]:
    ends = _ends(mine)
    if TRUE not in ends:
        return
    others = [
        f"{rule} {number(ends[rule])} ({number(ends[rule] / ends[TRUE])} times)"
        for rule in ends.index
        if rule != TRUE
    ]
    first = mine[mine["step"] == mine["step"].min()]
    yield (
        f"{task[:1].upper()}{task[1:]}, {newton}: from {median(first, 'loss')} the loss falls to "
        f"{number(ends[TRUE])} with the true gradient; {joined(others)}."
    )
    implicit = mine[mine["rule"] == "implicit"]
    if len(implicit):
        by_step = implicit.groupby("step")[["cosine", "residual", "spread"]].median()
        yield (
            f"Under the implicit rule the worst core's residual goes from "
            f"{number(by_step['residual'].iloc[0])} to {number(by_step['residual'].iloc[-1])}, the "
            f"spread of the landmarks from {number(by_step['spread'].iloc[0])} to "
            f"{number(by_step['spread'].iloc[-1])}, and the cosine is "
            f"{number(by_step['cosine'].min())} at least."
        )
