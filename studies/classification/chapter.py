"""A pyramid that classifies images, with one attention or another.

Read are the columns of ``studies/classification``: ``status``, ``method``; of the trainings
``m``, ``sampling``, ``seed``, ``epoch``, ``accuracy``; of the costs ``n``, ``seconds``,
``seconds_q1``, ``seconds_q3``, ``megabytes``, ``multiply_adds``, ``parameters``, ``gain``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline
from softlab.report.intervals import (
    CONFIDENCE,
    Mean,
    cell,
    difference,
    headline,
    in_common,
    mean,
    words,
)
from softlab.report.numbers import joined, listed, number, short
from softlab.report.rows import finished
from softlab.report.timings import ratio, timing

from .columns import CONTROL, CONV, LINFORMER, NYSTROMFORMER, PERFORMER, POOL, SOFT, SOFTMAX

TRAINED = {"status", "method", "m", "sampling", "seed", "epoch", "accuracy"}
COSTED = {
    *("status", "method", "n", "seconds", "seconds_q1", "seconds_q3", "megabytes", "multiply_adds"),
    *("parameters", "gain"),
}
PAPER = {SOFT: 79.3, SOFTMAX: 79.1, NYSTROMFORMER: 78.6, LINFORMER: 78.2, PERFORMER: 76.1}
"""Top-1 accuracy on ImageNet in percent, arXiv 2110.11945, Table 2."""


def scope(table: pd.DataFrame) -> str:
    """The methods, and how many trainings or sizes."""
    done = _ended(table)
    if len(done):
        return (
            f"Attention: {listed(done['method'].unique())}; {len(done)} trainings of "
            f"{int(done['epoch'].max())} epochs, seeds: {done['seed'].nunique()}."
        )
    costs = _of_costs(table)
    if len(costs):
        tokens = joined(sorted(costs["n"].unique()))
        return f"Attention: {listed(costs['method'].unique())}; {tokens} tokens in the first stage."
    return ""


def findings(table: pd.DataFrame) -> list[str]:
    """Accuracies; differences from softmax; what the null control says; ablations; costs."""
    said = [*_accuracies(table), *_ablations(table), *_costs(table)]
    return [text for text in said if text]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """How far SOFT is from softmax attention; what a step takes at the greatest size."""
    usual = _usual(_ended(table))
    if {SOFT, SOFTMAX} <= set(usual["method"]):
        text = (
            "In a small pyramid on one data set SOFT's accuracy differs from softmax attention's by"
            " {} percentage points."
        )
        off = difference(usual, "accuracy", SOFT, SOFTMAX)
        yield headline(text, off, in_common(usual, SOFT, SOFTMAX))
    costs = _of_costs(table)
    if {SOFT, SOFTMAX} <= set(costs["method"]):
        n = costs["n"].max()
        soft, softmax = (costs[(costs["n"] == n) & (costs["method"] == m)] for m in (SOFT, SOFTMAX))
        times = ratio(soft, softmax)
        if times.known:
            yield {
                "text": f"With {n} tokens in its first stage a training step of the pyramid with "
                "SOFT takes {} times as long as with softmax attention.",
                "value": number(times.value),
                "interval": f"ratios of quartiles {number(times.low)} to {number(times.high)}",
            }


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Accuracies beside the paper's; the ablations; the costs."""
    done = _ended(table)
    usual, variants, costs = _usual(done), _variants(done), _of_costs(table)
    if len(usual):
        yield _accuracy_table(usual)
    if len(variants) > 1:
        yield _ablation_table(variants)
    if len(costs):
        yield _cost_table(costs)


def _accuracy_table(usual: pd.DataFrame) -> Table:
    means, off = _means(usual), _from_softmax(usual)
    return {
        "caption": "Accuracy on test images after the last epoch in percent, and its "
        "difference from that of softmax attention with the same seed: means over the seeds, "
        "and intervals of which all of a column hold together in 95 % of studies. Last: the "
        "paper's accuracies on ImageNet.",
        "header": ["attention", "accuracy", "less softmax", "paper, ImageNet"],
        "rows": [
            [method, cell(means[method]),
             cell(off[method], signed=True) if method in off else "", f"{PAPER.get(method, '')}"]
            for method in means
        ],
        "left": 1,
    }  # fmt: skip


def _ablation_table(variants: list[tuple[tuple[str, int], pd.DataFrame]]) -> Table:
    first = variants[0][1]
    body: list[list[Cell]] = []
    for (sampling, m), rows in variants:
        less = "" if rows is first else cell(_paired(rows, first, len(variants) - 1), signed=True)
        accuracy = cell(mean(rows["accuracy"], verdicts=len(variants)))
        body.append([sampling, f"{m}", accuracy, less])
    return {
        "caption": "SOFT's ablations: accuracy in percent by the number of landmarks m and "
        "their sampling, and the difference from the first row, by seed; all intervals of a "
        "column hold together in 95 % of studies.",
        "header": ["sampling", "m", "accuracy", "less the first"],
        "rows": body,
        "left": 2,
    }


def _cost_table(costs: pd.DataFrame) -> Table:
    return {
        "caption": "A step of training: median time and its quartiles in milliseconds (noisy: "
        "quartiles too wide for a number), peak "
        "memory in MB, and the multiply-adds of one image's forward pass in millions. Last: "
        "the size of the first attention's output over that of its values before training.",
        "header": ["tokens", "attention", "ms", "MB", "M multiply-adds", "parameters", "gain"],
        "rows": [
            [f"{n}" if i == 0 else "", str(x.method), timing(rows[i : i + 1]).cell(1e3),
             short(x.megabytes), short(x.multiply_adds / 1e6), f"{int(x.parameters)}",
             short(x.gain)]
            for n, rows in costs.groupby("n")
            for i, x in enumerate(rows.itertuples())
        ],
        "left": 2,
    }  # fmt: skip


def agreement(usual: pd.DataFrame) -> tuple[list[str], list[str], int]:
    """The paper's pairs "better > worse" that hold here, those that are reversed, and all pairs.

    Held or reversed is what the intervals of all differences together say; the rest is undecided.
    """
    known = [name for name in PAPER if name in set(usual["method"])]
    pairs = list(itertools.combinations(sorted(known, key=lambda name: -PAPER[name]), 2))
    signs = {
        f"{a} over {b}": difference(usual, "accuracy", a, b, verdicts=len(pairs)).sign
        for a, b in pairs
    }
    held, turned = ([name for name, sign in signs.items() if sign == due] for due in (1, -1))
    return held, turned, len(pairs)


def _means(usual: pd.DataFrame) -> dict[str, Mean]:
    """The accuracy by method, with intervals that hold together."""
    by = dict(list(usual.groupby("method", sort=False)["accuracy"]))
    return {str(method): mean(found, verdicts=len(by)) for method, found in by.items()}


def _from_softmax(usual: pd.DataFrame) -> dict[str, Mean]:
    """The difference from softmax attention by seed of each other method, which hold together."""
    others = [str(method) for method in usual["method"].unique() if method != SOFTMAX]
    if len(others) == usual["method"].nunique():
        return {}
    return {
        name: difference(usual, "accuracy", name, SOFTMAX, verdicts=len(others)) for name in others
    }


def _accuracies(table: pd.DataFrame) -> Iterator[str]:
    usual = _usual(_ended(table))
    if usual.empty:
        return
    by, off = _means(usual), _from_softmax(usual)
    ranked = sorted(by, key=lambda m: -by[m].value)
    seeds = usual["seed"].nunique()
    together = f", with intervals that hold together in {100 * CONFIDENCE:g} % of studies"
    kind = f"means of {seeds} seeds{together}" if seeds > 1 else "one seed"
    each = joined(f"{name} {words(by[name])}" for name in ranked)
    yield f"Accuracy on test images after the last epoch, {kind}: {each}."
    if off:
        told = [f"{n} by {words(off[n], signed=True)}" for n in ranked if n in off and off[n].sign]
        rest = [name for name in ranked if name in off and not off[name].sign]
        text = f"With the same seeds these differ from softmax attention{together}: {joined(told)}"
        yield (
            (f"{text}." if told else "None differs from softmax attention beyond the interval.")
            + (f" Not told apart from it: {joined(rest)}." if told and rest else "")
        )
    if CONTROL in by and len(by) > 1:
        best = next(name for name in ranked if name != CONTROL)
        # The best of several is chosen by the same numbers: as many verdicts as there were rivals.
        gap = difference(usual, "accuracy", best, CONTROL, verdicts=len(by) - 1)
        yield (
            f"The null control, in which every token receives the mean of all, reaches "
            f"{words(by[CONTROL])}; the best attention, {best}, is {words(gap, signed=True)} away. "
            "So much, of which convolutions and perceptrons know nothing, attention can add here."
        )
    held, turned, pairs = agreement(usual)
    if pairs:
        yield (
            f"Of the paper's {pairs} orders of two methods on ImageNet this miniature confirms "
            f"{len(held)}{_list(held)} and reverses {len(turned)}{_list(turned)}; the other "
            f"{pairs - len(held) - len(turned)} lie within the intervals of so few seeds."
        )


def _ablations(table: pd.DataFrame) -> Iterator[str]:
    variants = _variants(_ended(table))
    pooled = [(m, rows) for (sampling, m), rows in variants if sampling == POOL]
    pooled.sort(key=lambda pair: pair[0])
    count = len(variants)
    if len(pooled) > 1:
        each = joined(
            f"{words(mean(rows['accuracy'], verdicts=count))} with m = {m}" for m, rows in pooled
        )
        pairs = list(itertools.combinations(pooled, 2))
        apart = [f"{a[0]} and {b[0]}" for a, b in pairs if _paired(a[1], b[1], len(pairs)).sign]
        told = f"told apart are {joined(apart)}" if apart else "no two are told apart"
        yield f"SOFT by its number of landmarks: {each}; of {len(pairs)} pairs {told}."
    found = dict(variants)
    convolved = [m for sampling, m in found if sampling == CONV and (POOL, m) in found]
    for m in convolved:
        rows = found[CONV, m]
        off = _paired(rows, found[POOL, m], len(convolved))
        yield (
            f"Landmarks by the released convolution, as many, reach "
            f"{words(mean(rows['accuracy'], verdicts=count))}: {words(off, signed=True)} from "
            f"pooled ones{'' if off.sign else ', which is no difference that these seeds can see'}."
        )


def _costs(table: pd.DataFrame) -> Iterator[str]:
    costs = _of_costs(table)
    if SOFTMAX not in set(costs["method"]):
        return
    for n, rows in costs.groupby("n"):
        exact = rows[rows["method"] == SOFTMAX]
        if exact.empty:  # it failed at this size
            continue
        each = "; ".join(
            f"{method} {ratio(mine, exact).words()} and "
            f"{number(mine['megabytes'].iloc[0] / exact['megabytes'].iloc[0])}"
            for method, mine in rows.groupby("method", sort=False)
            if method != SOFTMAX
        )
        yield (
            f"With {n} tokens in the first stage a step takes {timing(exact).words(' ms', 1e3)} and"
            f" {number(exact['megabytes'].iloc[0])} MB with softmax attention; in time and memory "
            f"over that: {each}."
        )
    ends = [costs[costs["n"] == n].set_index("method")["gain"] for n in sorted({*costs["n"]})]
    grown = joined(
        f"{name} {' and '.join(number(gains[name]) for gains in (ends[0], ends[-1]))}"
        for name in ends[0].index
        if name in ends[-1]
    )
    if len(ends) > 1:
        yield (
            "Before training the first attention's output is so many times the size of its values, "
            f"with {costs['n'].min()} and {costs['n'].max()} tokens: {grown}. The sum of branch "
            "and residual is normed, so that a branch that is far larger hides which token is "
            "which."
        )


def _list(names: list[str]) -> str:
    return f" ({joined(names)})" if names else ""


def _paired(rows: pd.DataFrame, other: pd.DataFrame, verdicts: int) -> Mean:
    both = rows.set_index("seed")["accuracy"] - other.set_index("seed")["accuracy"]
    return mean(both.dropna(), verdicts=verdicts)


def _variants(done: pd.DataFrame) -> list[tuple[tuple[str, int], pd.DataFrame]]:
    """Plain SOFT by sampling and number of landmarks, the usual ones first."""
    rows = done[done["method"] == SOFT]
    usual = _usual(done)
    first = None if usual.empty else (str(usual["sampling"].iloc[0]), int(usual["m"].iloc[0]))
    found = {
        (str(sampling), int(m)): part for (sampling, m), part in rows.groupby(["sampling", "m"])
    }
    return sorted(found.items(), key=lambda item: (item[0] != first, item[0][0] != POOL, item[0]))


def _usual(done: pd.DataFrame) -> pd.DataFrame:
    """The rows at the setting that all methods share: the one that most rows have."""
    if done.empty:
        return done
    setting = done.groupby(["m", "sampling"]).size().idxmax()
    return done[(done["m"] == setting[0]) & (done["sampling"] == setting[1])]


def _ended(table: pd.DataFrame) -> pd.DataFrame:
    """Finished rows of the last epoch."""
    if not _of_trainings(table):
        return pd.DataFrame(columns=sorted(TRAINED))
    done = finished(table, TRAINED)
    return done[done["epoch"] == done["epoch"].max()]


def _of_trainings(table: pd.DataFrame) -> bool:
    """Whether it is the table of the first study: rows of the second belong to no epoch."""
    return "epoch" in table


def _of_costs(table: pd.DataFrame) -> pd.DataFrame:
    """The finished rows of the second study; none of the first's table."""
    return pd.DataFrame(columns=sorted(COSTED)) if _of_trainings(table) else finished(table, COSTED)
