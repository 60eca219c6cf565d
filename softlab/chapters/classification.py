"""A pyramid that classifies images, with one attention or another.

Read are the columns of ``studies/classification.py``: ``status``, ``method``; of the trainings
``m``, ``sampling``, ``seed``, ``epoch``, ``accuracy``; of the costs ``n``, ``seconds``,
``seconds_q1``, ``seconds_q3``, ``megabytes``, ``multiply_adds``, ``parameters``, ``gain``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pandas as pd

from softlab.chapters import Cell, Table
from softlab.chapters.headlines import Headline
from softlab.chapters.intervals import Mean, cell, difference, headline, mean, words
from softlab.chapters.numbers import joined, number, short
from softlab.chapters.rows import finished

TRAINED = {"status", "method", "m", "sampling", "seed", "epoch", "accuracy"}
COSTED = {
    "status", "method", "n", "seconds", "seconds_q1", "seconds_q3", "megabytes", "multiply_adds",
    "parameters", "gain",
}  # fmt: skip
SOFT, SOFTMAX, CONTROL = "Soft", "Softmax", "Uniform"
PAPER = {"Soft": 79.3, "Softmax": 79.1, "Nystromformer": 78.6, "Linformer": 78.2, "Performer": 76.1}
"""Top-1 accuracy on ImageNet in percent, arXiv 2110.11945, Table 2."""


def scope(table: pd.DataFrame) -> str:
    """The methods, and how many trainings or sizes."""
    done = _ended(table)
    if len(done):
        return (
            f"Attention: {joined(done['method'].unique())}; {len(done)} trainings of "
            f"{int(done['epoch'].max())} epochs, seeds: {done['seed'].nunique()}."
        )
    costs = finished(table, COSTED)
    if len(costs):
        tokens = joined(sorted(costs["n"].unique()))
        return f"Attention: {joined(costs['method'].unique())}; {tokens} tokens in the first stage."
    return ""


def findings(table: pd.DataFrame) -> list[str]:
    """Accuracies; differences from softmax; what the null control says; ablations; costs."""
    said = [*_accuracies(table), *_ablations(table), *_costs(table)]
    return [text for text in said if text]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """How far SOFT is from softmax attention; the greatest saving of a step."""
    usual = _usual(_ended(table))
    if {SOFT, SOFTMAX} <= set(usual["method"]):
        text = (
            "In a small pyramid SOFT's accuracy differs from softmax attention's by {} percentage "
            "points."
        )
        off = difference(usual, "accuracy", SOFT, SOFTMAX)
        yield headline(text, off, usual["seed"].nunique())
    costs = finished(table, COSTED)
    if {SOFT, SOFTMAX} <= set(costs["method"]):
        n = costs["n"].max()
        at = costs[costs["n"] == n].set_index("method")
        least = at.loc[SOFT, "seconds_q1"] / at.loc[SOFTMAX, "seconds_q3"]
        most = at.loc[SOFT, "seconds_q3"] / at.loc[SOFTMAX, "seconds_q1"]
        yield {
            "text": f"With {n} tokens in its first stage a training step of the pyramid with SOFT "
            "takes {} times as long as with softmax attention.",
            "value": number(at.loc[SOFT, "seconds"] / at.loc[SOFTMAX, "seconds"]),
            "interval": f"ratios of quartiles {number(least)} to {number(most)}",
        }


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Accuracies beside the paper's; the ablations; the costs."""
    done = _ended(table)
    usual = _usual(done)
    if len(usual):
        body: list[list[Cell]] = []
        for method, rows in usual.groupby("method", sort=False):
            off = difference(usual, "accuracy", str(method), SOFTMAX)
            body.append([
                str(method), cell(mean(rows["accuracy"])),
                "" if method == SOFTMAX else cell(off, signed=True),
                f"{PAPER[str(method)]}" if method in PAPER else "",
            ])  # fmt: skip
        yield {
            "caption": "Accuracy on test images after the last epoch in percent, and its "
            "difference from that of softmax attention with the same seed: means over the seeds "
            "with 95 % intervals. Last: the paper's accuracies on ImageNet.",
            "header": ["attention", "accuracy", "less softmax", "paper, ImageNet"],
            "rows": body,
            "left": 1,
        }
    variants = _variants(done)
    if len(variants) > 1:
        yield {
            "caption": "SOFT's ablations: accuracy in percent by the number of landmarks m and "
            "their sampling, and the difference from the first row, by seed.",
            "header": ["sampling", "m", "accuracy", "less the first"],
            "rows": [
                [str(sampling), str(m), cell(mean(rows["accuracy"])),
                 "" if i == 0 else cell(_paired(rows, variants[0][1]), signed=True)]
                for i, ((sampling, m), rows) in enumerate(variants)
            ],
            "left": 2,
        }  # fmt: skip
    costs = finished(table, COSTED)
    if len(costs):
        yield {
            "caption": "A step of training: median time and its quartiles in milliseconds, peak "
            "memory in MB, and the multiply-adds of one image's forward pass in millions. Last: "
            "the size of the first attention's output over that of its values before training.",
            "header": ["tokens", "attention", "ms", "MB", "M multiply-adds", "parameters", "gain"],
            "rows": [
                [f"{n}" if i == 0 else "", str(x.method),
                 [short(1e3 * x.seconds),
                  f"{short(1e3 * x.seconds_q1)}–{short(1e3 * x.seconds_q3)}"],  # noqa: RUF001
                 short(x.megabytes), short(x.multiply_adds / 1e6), f"{int(x.parameters)}",
                 short(x.gain)]
                for n, rows in costs.groupby("n")
                for i, x in enumerate(rows.itertuples())
            ],
            "left": 2,
        }  # fmt: skip


def agreement(usual: pd.DataFrame) -> tuple[list[str], list[str], int]:
    """The paper's pairs "better > worse" that hold here, those that are reversed, and all pairs.

    Held or reversed is what the interval of the difference says; the rest is undecided.
    """
    known = [name for name in PAPER if name in set(usual["method"])]
    held: list[str] = []
    turned: list[str] = []
    pairs = 0
    for one, other in itertools.combinations(known, 2):
        better, worse = (one, other) if PAPER[one] > PAPER[other] else (other, one)
        sign = difference(usual, "accuracy", better, worse).sign
        pairs += 1
        if sign:
            (held if sign > 0 else turned).append(f"{better} over {worse}")
    return held, turned, pairs


def _accuracies(table: pd.DataFrame) -> Iterator[str]:
    usual = _usual(_ended(table))
    if usual.empty:
        return
    by = {str(m): mean(rows["accuracy"]) for m, rows in usual.groupby("method", sort=False)}
    ranked = sorted(by, key=lambda m: -by[m].value)
    seeds = usual["seed"].nunique()
    kind = f"means of {seeds} seeds with 95 % intervals" if seeds > 1 else "one seed"
    each = joined(f"{name} {words(by[name])}" for name in ranked)
    yield f"Accuracy on test images after the last epoch, {kind}: {each}."
    if SOFTMAX in by:
        others = [name for name in ranked if name != SOFTMAX]
        off = {name: difference(usual, "accuracy", name, SOFTMAX) for name in others}
        told = [f"{name} by {words(x, signed=True)}" for name, x in off.items() if x.sign]
        rest = [name for name, x in off.items() if not x.sign]
        text = f"With the same seeds, different from softmax attention beyond doubt: {joined(told)}"
        yield (
            (f"{text}." if told else "None differs from softmax attention beyond the interval.")
            + (f" Not told apart from it: {joined(rest)}." if told and rest else "")
        )
    if CONTROL in by and len(by) > 1:
        best = next(name for name in ranked if name != CONTROL)
        gap = difference(usual, "accuracy", best, CONTROL)
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
    pooled = [(m, rows) for (sampling, m), rows in variants if sampling == "pool"]
    pooled.sort(key=lambda pair: pair[0])
    if len(pooled) > 1:
        each = joined(f"{words(mean(rows['accuracy']))} with m = {m}" for m, rows in pooled)
        pairs = list(itertools.combinations(pooled, 2))
        apart = [f"{a[0]} and {b[0]}" for a, b in pairs if _paired(a[1], b[1]).sign]
        told = f"told apart are {joined(apart)}" if apart else "no two are told apart"
        yield f"SOFT by its number of landmarks: {each}; of {len(pairs)} pairs {told}."
    found = dict(variants)
    for (sampling, m), rows in variants:
        if sampling == "conv" and ("pool", m) in found:
            off = _paired(rows, found["pool", m])
            yield (
                f"Landmarks by the released convolution, as many, reach "
                f"{words(mean(rows['accuracy']))}: {words(off, signed=True)} from pooled ones"
                f"{'' if off.sign else ', which is no difference that these seeds can see'}."
            )


def _costs(table: pd.DataFrame) -> Iterator[str]:
    costs = finished(table, COSTED)
    if SOFTMAX not in set(costs["method"]):
        return
    for n, rows in costs.groupby("n"):
        at = rows.set_index("method")
        exact = at.loc[SOFTMAX]
        each = joined(
            f"{name} {number(x.seconds / exact.seconds)} and "
            f"{number(x.megabytes / exact.megabytes)}"
            for name, x in at.iterrows()
            if name != SOFTMAX
        )
        yield (
            f"With {n} tokens in the first stage a step takes {number(1e3 * exact.seconds)} ms and "
            f"{number(exact.megabytes)} MB with softmax attention; in time and memory over that: "
            f"{each}."
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


def _paired(rows: pd.DataFrame, other: pd.DataFrame) -> Mean:
    both = rows.set_index("seed")["accuracy"] - other.set_index("seed")["accuracy"]
    return mean(both.dropna())


def _variants(done: pd.DataFrame) -> list[tuple[tuple[str, int], pd.DataFrame]]:
    """Plain SOFT by sampling and number of landmarks, the usual ones first."""
    rows = done[done["method"] == SOFT]
    usual = _usual(done)
    first = None if usual.empty else (str(usual["sampling"].iloc[0]), int(usual["m"].iloc[0]))
    found = {
        (str(sampling), int(m)): part for (sampling, m), part in rows.groupby(["sampling", "m"])
    }
    return sorted(found.items(), key=lambda item: (item[0] != first, item[0][0] != "pool", item[0]))


def _usual(done: pd.DataFrame) -> pd.DataFrame:
    """The rows at the setting that all methods share: the one that most rows have."""
    if done.empty:
        return done
    setting = done.groupby(["m", "sampling"]).size().idxmax()
    return done[(done["m"] == setting[0]) & (done["sampling"] == setting[1])]


def _ended(table: pd.DataFrame) -> pd.DataFrame:
    """Finished rows of the last epoch."""
    done = finished(table, TRAINED)
    return done[done["epoch"] == done["epoch"].max()]
