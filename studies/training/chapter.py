"""Training a small attention layer with rules for the gradient of its inverse.

Read are the columns of the study ``training``: ``status``, ``task``, ``newton``, ``rule``,
``seed``, ``step``, ``loss``, ``cosine``, ``residual``, ``spread``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline
from softlab.report.numbers import joined, number, short, span
from softlab.report.rows import complete, finished

from .columns import EXACT, IMPLICIT, UNROLLED

NEEDED = {
    *("task", "newton", "rule", "seed", "step", "loss", "cosine", "residual", "spread"),
}
ALIKE = 0.1
"""Losses within a tenth of each other are called alike."""
LATE = 0.8
"""From this share of the steps on, losses are those at the end."""
TURNED = 0.5
"""A cosine below this is no gradient to follow."""


def scope(table: pd.DataFrame) -> str:
    """The rules, the tasks and the length of the training."""
    if not complete(table, {"task", "rule", "step"}):
        return ""
    return (
        f"Rules: {'; '.join(map(str, table['rule'].unique()))}. Tasks: "
        f"{'; '.join(map(str, table['task'].unique()))}; {int(table['step'].max())} steps of Adam."
    )


def findings(table: pd.DataFrame) -> list[str]:
    """A verdict over all tasks, then a paragraph for each."""
    done = finished(table, NEEDED)
    if done.empty or UNROLLED not in set(done["rule"]):
        return []
    paragraphs = [" ".join(_verdict(done))]
    paragraphs += [" ".join(_task(key, mine)) for key, mine in _settings(done)]
    return [text for text in paragraphs if text]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """The final loss with SOFT's gradient over that with the true one."""
    done = finished(table, NEEDED)
    if done.empty or UNROLLED not in set(done["rule"]):
        return
    found = _over(done, IMPLICIT)
    if found:
        ratios = pd.concat(found.values())
        yield {
            "text": "Training with SOFT's backward formula ends at {} times the loss that the true "
            "gradient ends at with the same seed.",
            "value": span(ratios),
            "interval": f"range of {len(ratios)} pairs of trainings in {len(found)} settings",
        }


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """By task and rule: losses on the way, and how true the gradient was."""
    done = finished(table, NEEDED)
    if done.empty:
        return
    last = int(done["step"].max())
    marks = sorted({int(s) for s in done["step"]} & {0, last // 4, last // 2, last})
    body: list[list[Cell]] = []
    before = None
    for (task, newton, rule), mine in done.groupby(["task", "newton", "rule"], sort=False):
        at = mine[mine["step"] == last]
        head: list[Cell] = [
            [str(task), str(newton)] if (task, newton) != before else "",
            str(rule),
        ]
        losses: list[Cell] = [short(mine.loc[mine["step"] == s, "loss"].median()) for s in marks]
        body.append(
            [*head, *losses, short(mine["cosine"].min(), 2), short(mine["cosine"].median(), 2),
             short(at["residual"].median(), 2), short(at["spread"].median(), 2)]
        )  # fmt: skip
        before = (task, newton)
    yield {
        "caption": "Loss at some training steps, median over the seeds; least and median cosine "
        "over all steps and seeds; the worst core's residual and the landmarks' spread, in "
        "bandwidths, at the end, medians over the seeds.",
        "header": ["task", "rule", *(f"loss, {s}" for s in marks), "least cosine",
                   "median cosine", "residual", "spread"],
        "rows": body,
        "left": 2,
    }  # fmt: skip


def _settings(done: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each task and number of Newton steps, by name."""
    for (task, newton), mine in done.groupby(["task", "newton"], sort=False):
        yield f"{task}, {newton}", mine


def _ends(rows: pd.DataFrame) -> pd.DataFrame:
    """The median loss in the last fifth, where Adam still bounces: by seed, a column a rule."""
    late = rows[rows["step"] >= LATE * rows["step"].max()]
    return late.groupby(["seed", "rule"], sort=False)["loss"].median().unstack()


def _over(done: pd.DataFrame, rule: str) -> dict[str, pd.Series]:
    """By setting: a rule's last loss over that of the true gradient with the same seed."""
    found = {}
    for key, mine in _settings(done):
        ends = _ends(mine).reindex(columns=[rule, UNROLLED])
        ratios = (ends[rule] / ends[UNROLLED]).dropna()
        if len(ratios):
            found[key] = ratios
    return found


def _apart(ratios: pd.Series) -> tuple[bool, bool]:
    """Whether some seed's losses are not alike; whether all are not, and on one side."""
    more, less = ratios > 1 + ALIKE, ratios < 1 - ALIKE
    return bool((more | less).any()), bool(more.all() or less.all())


def _verdict(done: pd.DataFrame) -> Iterator[str]:
    """Whether training cares, over all tasks."""
    found = _over(done, IMPLICIT)
    if not found:
        return
    told = {key: _apart(ratios) for key, ratios in found.items()}
    every = [f"{key} ({span(found[key])})" for key, (_, all_seeds) in told.items() if all_seeds]
    some = [
        f"{key} ({span(found[key])})"
        for key, (one_seed, all_seeds) in told.items()
        if one_seed and not all_seeds
    ]
    says = (
        f"The implicit rule ends with a loss more than a tenth off that of the true gradient in "
        f"{len(every)} of {len(found)} settings"
    )
    says += f", in every seed and on one side (their ratio: {joined(every)})" if every else ""
    yield says + (f"; in some seed in {joined(some)}." if some else ".")
    if not every and not some:
        yield "This training does not care."
    cosines = done[done["rule"] == IMPLICIT]
    turned = [
        f"{key} ({number(mine['cosine'].min())})"
        for key, mine in _settings(cosines)
        if mine["cosine"].min() < TURNED
    ]
    if turned:
        yield (
            "Its cosine with the true gradient falls, in some step and seed, below a half in "
            f"{joined(turned)}."
        )
    exact = _over(done, EXACT).items()
    changed = [f"{key} ({span(ratios)})" for key, ratios in exact if _apart(ratios)[1]]
    if changed:
        yield (
            "To invert exactly, and differentiate that, changes the loss by more than a tenth in "
            f"every seed, on one side, in {joined(changed)}."
        )
    yield "Losses are medians over the last fifth of the steps, and ratios are taken seed by seed."


def _task(key: str, mine: pd.DataFrame) -> Iterator[str]:
    ends = _ends(mine)
    if UNROLLED not in ends:
        return
    others = [f"{rule} {span(ends[rule] / ends[UNROLLED])}" for rule in ends if rule != UNROLLED]
    first, last = (mine[mine["step"] == end] for end in (mine["step"].min(), mine["step"].max()))
    yield (
        f"{key[:1].upper()}{key[1:]}: with the true gradient the loss is "
        f"{span(first.loc[first['rule'] == UNROLLED, 'loss'])} at the start and "
        f"{span(ends[UNROLLED])} at the end ({ends[UNROLLED].count()} seeds); over that end, seed "
        f"by seed: {joined(others) or 'no others'}."
    )
    first, last = (at[at["rule"] == IMPLICIT] for at in (first, last))
    if len(first):
        yield (
            f"Under the implicit rule the worst core's residual is {span(first['residual'])} at the"
            f" start and {span(last['residual'])} at the end, the spread of the landmarks "
            f"{span(first['spread'])} and {span(last['spread'])}, and the cosine is "
            f"{number(mine.loc[mine['rule'] == IMPLICIT, 'cosine'].min())} at least."
        )
