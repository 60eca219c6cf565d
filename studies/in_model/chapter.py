"""What a substituted attention changes in a trained model, and which cheap number tells.

Read are ``status`` and the columns of the three studies of
``studies/in_model``: ``model``, ``method``, ``knob``, ``part``, ``family``, ``op``, ``layers``,
``depth``, ``matrix_error``, ``output_error``, ``lack_of_skill``, ``work``, ``change``, ``task``,
``task_loss`` and ``within``; ``layer``, ``own`` and ``accumulated``; ``tokens``, ``time`` with
quartiles, ``memory``, ``attention_share``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.intervals import of_draws
from softlab.report.numbers import (
    Clause,
    Facts,
    joined,
    listed,
    sentence,
    short,
    span,
)
from softlab.report.rows import complete, finished
from softlab.report.timings import steady, timing

from .columns import EVERYWHERE, EXACT, GREEDY, OF_SOME, THIRD

PREDICTORS = {
    "matrix_error": "matrix error",
    "output_error": "output error",
    "lack_of_skill": "1 - skill",
}
DRAWS = 300
"""Bootstrap draws of an interval."""
CHANGED = {
    *("status", "model", "method", "family", "op", "part", "layers", "depth", "within"),
    *OF_SOME,
}
GATHERED = {"status", "model", "method", "layer", "own", "accumulated"}
COSTED = {
    *("status", "model", "method", "op", "tokens", "time", "time_q1", "time_q3", "work"),
    *("memory", "attention_share"),
}
EVERY, PLACE = "all", "one place"
LEAST = 3
"""A correlation is of at least so many points, in a draw of so many methods, and of one operator
more."""
TIME = "time"
BINS = 3
"""Bins a decade."""


def scope(table: pd.DataFrame) -> str:
    """The models and the operators."""
    if not complete(table, {"model", "method"}):
        return ""
    models = joined(table["model"].unique())
    return f"Models: {models}. Operators: {listed(table['method'].unique())}."


def findings(table: pd.DataFrame) -> list[str]:
    """Which number predicts the change; what can be swapped; how errors gather; what it saves."""
    paragraphs = (
        sentence(PREDICTION, prediction(correlations(table))),
        _swaps(table),
        _gathering(table),
        sentence(SAVING, saving(table)),
    )
    return [text for text in paragraphs if text]


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Rank correlations by model and family; what can be swapped for what; costs."""
    yield from _correlation_table(table)
    yield from _swap_tables(table)
    yield from _cost_table(table)


def binned(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each row and cheap number: ``predictor``, its bin and the bin's middle."""
    done = _changes(table)
    parts = []
    for column, name in PREDICTORS.items():
        rows = done[done[column].between(0, np.inf, inclusive="neither")]
        at = np.floor(BINS * np.log10(rows[column].astype(float)))
        middle = 10 ** ((at + 0.5) / BINS)
        parts.append(rows.assign(predictor=name, bin=at, error=middle, same=middle))
    return pd.concat(parts)


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of each cheap number with the change of the output.

    One row a model, or the mean over ``"all"`` models, a group of rows, and a predictor. Groups:
    ``"one place"``, the mean over the parts of the model of the correlation among operators at that
    part, which compares like with like; ``"all"`` rows together; each family's rows. ``rho`` with
    the 95 % interval ``low`` to ``high`` of a bootstrap that draws methods, each with
    all its knobs and rows, since those of one are not independent; NaN of fewer than four methods.
    ``rows`` and ``operators`` are their numbers. Groups of fewer than four operators are left out.
    """
    done = _changes(table)
    columns = list(PREDICTORS)
    found = []
    for group in [PLACE, EVERY, *done["family"].unique()] if len(done) else []:
        rows = done if group in {PLACE, EVERY} else done[done["family"] == group]
        rows = rows.dropna(subset=[*columns, "change"])
        strata = rows["model"] + (" " + rows["part"] if group == PLACE else "")
        models = [(model, of) for model, of in rows.groupby("model", sort=False)]
        for model, of in [*models, (EVERY, rows)]:
            if of["op"].nunique() > LEAST and of.groupby("model").size().min() > LEAST:
                rho = _drawn(of, columns, strata[of.index].to_numpy())
                units = of["method"].nunique()
                for i, column in enumerate(columns):
                    low, high = of_draws(rho[1:, i], units) if units > LEAST else [np.nan] * 2
                    found.append({
                        "model": model, "family": group, "predictor": column,
                        "rho": rho[0, i], "low": low, "high": high, "rows": len(of),
                        "operators": of["op"].nunique(),
                    })  # fmt: skip
    return pd.DataFrame(found)


def _drawn(rows: pd.DataFrame, columns: list[str], strata: np.ndarray) -> np.ndarray:
    """Mean over the strata of each predictor's correlation: of the rows, then of each draw.

    (1 + draws, predictors), NaN where no stratum has enough points, of the draws methods. A draw is
    a weight for each method, how often it was drawn; a row's rank is then the weight below it and
    half its own.
    """
    names, of_row = np.unique(rows["method"].to_numpy(str), return_inverse=True)
    chosen = np.random.default_rng(0).multinomial(len(names), [1 / len(names)] * len(names), DRAWS)
    times = np.concatenate([np.ones((1, len(names))), chosen])
    weights = times[:, of_row]
    values = rows[[*columns, "change"]].to_numpy(float)
    each = []
    for stratum in dict.fromkeys(strata):
        mine = strata == stratum
        w = weights[:, mine]
        share = w / np.maximum(w.sum(1, keepdims=True), 1)
        ranks = [_ranks(x, w) for x in values[mine].T]
        centred = [r - (share * r).sum(1, keepdims=True) for r in ranks]
        spread = [np.sqrt((share * c * c).sum(1)) for c in centred]
        # The knobs of a method are other points, and in a draw no other methods.
        count = (times[:, np.unique(of_row[mine])] > 0).sum(1)
        count[0] = mine.sum()
        usable = (count >= LEAST) & (np.min(spread, axis=0) > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = [
                (share * c * centred[-1]).sum(1) / (s * spread[-1])
                for c, s in zip(centred[:-1], spread[:-1], strict=True)
            ]
        each.append(np.where(usable, found, np.nan))
    whole = np.array(each)
    known = np.isfinite(whole).sum(0)
    sums = np.nansum(whole, axis=0)
    means: np.ndarray = np.where(known > 0, sums / np.maximum(known, 1), np.nan).T
    return means


def _ranks(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Ranks of x (n,) under weights (draws, n): equal values share theirs."""
    levels, level = np.unique(x, return_inverse=True)
    held = np.zeros((len(w), len(levels)))
    np.add.at(held.T, level, w.T)
    middle = held.cumsum(1) - held / 2
    ranks: np.ndarray = middle[:, level]
    return ranks


def _changes(table: pd.DataFrame) -> pd.DataFrame:
    """The finished rows of substitutions that were made; none of another study's table."""
    done = _of(table, CHANGED)
    done = done[done["layers"] > 0]
    return done[done["change"].notna() & (done["part"] != GREEDY)]


def _of(table: pd.DataFrame, needed: set[str]) -> pd.DataFrame:
    """The finished rows if the table is of the study with these columns, and else none.

    The studies differ in their axes: parts, layers, and lengths.
    """
    own = CHANGED if "part" in table else GATHERED if "layer" in table else COSTED
    done = finished(table, own)
    return done if own is needed else pd.DataFrame(columns=sorted(needed))


PREDICTION: tuple[Clause, ...] = (
    "Rank correlation with the relative change of the model's output, among {operators} operators "
    "at one place, mean over the places of {models} models, with the 95 % interval of other "
    "methods in the same models: {place}; over all places together ({substitutions} "
    "substitutions): {together}.",
    ("verb", " So the error of the attention matrix {verb} the change of the output"),
    ("may_swap", "; operators may still change places"),
    ("verb", "."),
    ("compared", " Least of {compared} at one place of one model: {name} {least:.2f} in {model}."),
)
ONE: tuple[Clause, ...] = ("{name} {rho:.2f}", ("known", " ({low:.2f} to {high:.2f})"))


def prediction(found: pd.DataFrame) -> Facts:
    """What the pooled correlations say of each cheap number, and the least of one model alone."""
    if found.empty or not (found["model"] == EVERY).any():
        return {}
    found = found.assign(name=found["predictor"].map(PREDICTORS), known=found["low"].notna())
    pooled = found[found["model"] == EVERY]
    place, together = (pooled[pooled["family"] == group] for group in (PLACE, EVERY))
    facts: dict[str, Any] = {
        "operators": place["operators"].max(),
        "models": len({*found["model"]} - {EVERY}),
        "place": [sentence(ONE, x) for x in place.to_dict("records")],
        "substitutions": together["rows"].max(),
        "together": [sentence(ONE, x) for x in together.to_dict("records")],
    }
    matrix = place[(place["predictor"] == "matrix_error") & place["known"]]
    if len(matrix):
        low, high = matrix.iloc[0]["low"], matrix.iloc[0]["high"]
        facts["verb"] = (
            "predicts" if low > 0.5 else "orders, loosely," if low > 0 else "does not order"
        )
        facts["may_swap"] = not (low > 0.9 or high < 0)
    alone = found[(found["family"] == PLACE) & (found["model"] != EVERY)].dropna(subset="rho")
    if len(alone):
        least = alone.loc[alone["rho"].idxmin()]
        facts |= {"compared": len(alone), "least": least["rho"], **least[["name", "model"]]}
    return facts


def _whole(table: pd.DataFrame) -> pd.DataFrame:
    """For each model and method the knob that changes the output least, in all layers."""
    done = _changes(table)
    done = done[done["part"] == EVERYWHERE]
    if done.empty:
        return done
    return done.loc[done.groupby(["model", "method"], sort=False)["change"].idxmin()]


SWAPS = (
    "In all layers at once these move the output by at most {within:g}: {each}. All others belong "
    "into some layers only, or nowhere.",
)


def _swaps(table: pd.DataFrame) -> str:
    whole = _whole(table)
    if whole.empty:
        return ""
    within = whole["within"].iloc[0]
    each = []
    for model, rows in whole.groupby("model", sort=False):
        fit = rows[rows["change"] <= within].set_index("op")["change"].to_dict()
        each.append(sentence(("{model}: {fit}",), {"model": model, "fit": fit or "none"}))
    return sentence(SWAPS, {"within": within, "each": "; ".join(each)})


def _swap_tables(table: pd.DataFrame) -> Iterator[Table]:
    whole = _whole(table)
    if whole.empty:
        return
    within = whole["within"].iloc[0]
    body: list[list[Cell]] = []
    for model, rows in whole.groupby("model", sort=False):
        for i, x in enumerate(rows.sort_values("change").to_dict("records")):
            mine = table[(table["model"] == model) & (table["method"] == x["method"])]
            body.append(
                [
                    str(model) if i == 0 else "",
                    str(x["op"]),
                    short(x["work"]),
                    short(x["change"]),
                    short(x["task_loss"]) if pd.notna(x["task_loss"]) else "",
                    _where(x, mine, within),
                ]
            )
    yield {
        "caption": "What can be swapped for the model's own attention. For each method the knob "
        "that changes the output least, in all layers: work over that of exact attention (of the "
        "scores as formed, causal or not), relative change of the output, and the loss of the "
        "task: 1 minus the rank correlation of similarities (minilm), 1 minus the agreement of a "
        "probe (vit), nats a token more (smollm2, whisper). Last: where the output moves by at "
        f"most {within:g}: in all layers, in which thirds alone, and in how many layers together "
        "by the greedy search.",
        "header": ["model", "operator", "work", "change", "task", "where"],
        "rows": body,
        "left": 2,
    }


def _where(x: dict[str, object], mine: pd.DataFrame, within: float) -> Cell:
    """In which layers a method stays within the stated change."""
    if float(str(x["change"])) <= within:
        return "all layers"
    done = mine[mine["status"] == "ok"]
    alone = done[done["part"].str.endswith(THIRD) & (done["change"] <= within)]
    words = [str(part).removesuffix(f" {THIRD}") for part in alone["part"]]
    greedy = done[done["part"] == GREEDY]
    found = [f"greedy {g.layers} of {g.depth}" for g in greedy.itertuples()]
    return [", ".join(words) or "no third", *found][:2] if found else ", ".join(words) or "nowhere"


def _correlation_table(table: pd.DataFrame) -> Iterator[Table]:
    found = correlations(table)
    if found.empty:
        return
    body: list[list[Cell]] = []
    for model, rows in found.groupby("model", sort=False):
        for i, (family, of) in enumerate(rows.groupby("family", sort=False)):
            by = of.set_index("predictor")
            cells: list[Cell] = [
                _correlation(by.loc[p]) if p in by.index else "" for p in PREDICTORS
            ]
            body.append(
                [str(model) if i == 0 else "", str(family), f"{of['rows'].iloc[0]}", *cells]
            )
    yield {
        "caption": "Rank correlation (Spearman) of each cheap number with the relative change of "
        "the output; below it the 95 % interval of a bootstrap over methods, where there are four "
        "or more. One place: among operators in the same layers, mean over the parts; all: over "
        "operators, knobs and parts; then by family. Model all: the mean over the models.",
        "header": ["model", "among", "rows", *PREDICTORS.values()],
        "rows": body,
        "left": 2,
    }


def _correlation(x: Any) -> Cell:
    value = f"{x['rho']:.2f}"
    return [value, f"{x['low']:.2f} to {x['high']:.2f}"] if pd.notna(x["low"]) else value


GATHERING = (
    "At the last layer, with the operator in all of them, the attention's output has moved by so "
    "many times the operator's own error there, from the least to the greatest of the operators "
    "(in brackets how many): {each}.",
)


def gathered(table: pd.DataFrame) -> dict[str, pd.Series]:
    """By model: of each operator the move of the last layer's output, over its own error there."""
    done = _of(table, GATHERED)
    done = done[done["accumulated"].notna()]
    found = {}
    for model, rows in done.groupby("model", sort=False):
        last = rows[rows["layer"] == rows["layer"].max()]
        ratio = (last["accumulated"] / last["own"]).replace(np.inf, np.nan).dropna()
        if len(ratio):
            found[str(model)] = ratio
    return found


def _gathering(table: pd.DataFrame) -> str:
    each = [f"{model} {span(x)} ({len(x)})" for model, x in gathered(table).items()]
    return sentence(GATHERING, {"each": each} if each else {})


SAVING: tuple[Clause, ...] = (
    "At the greatest length attention's scores and sums are of the counted work: {shares}. Faster "
    "than the model as it is, then, quartiles too: {faster}.",
    ("noisy", " Too noisy to compare: {noisy}."),
    ("itself", " Exact attention substituted for itself takes {itself}."),
)


def saving(table: pd.DataFrame) -> Facts:
    """At the greatest length: attention's share of the work, and what is faster for sure."""
    done = _of(table, COSTED)
    if done.empty:
        return {}
    longest = done[done["tokens"] == done.groupby("model")["tokens"].transform("max")]
    share = longest.groupby("model", sort=False)["attention_share"].first()
    others, own = longest[longest["method"] != EXACT], longest[longest["method"] == EXACT]
    sure = others[steady(others, TIME)]
    faster = sure[sure[f"{TIME}_q3"] < 1]
    return {
        "shares": [f"{model} {100 * x:.0f} %" for model, x in share.items()],
        "faster": [
            f"{x['op']} in {x['model']} {timing(faster.loc[[i]], TIME).words()}"
            for i, x in faster.iterrows()
        ]
        or "none",
        "noisy": len(others) - len(sure),
        "itself": span(own[TIME]) if len(own) else "",
    }


def _cost_table(table: pd.DataFrame) -> Iterator[Table]:
    done = _of(table, COSTED)
    if done.empty:
        return
    body: list[list[Cell]] = []
    for (model, tokens), rows in done.groupby(["model", "tokens"], sort=False):
        for i, x in enumerate(rows.to_dict("records")):
            head: list[Cell] = [str(model), f"{tokens}"] if i == 0 else ["", ""]
            time = timing(rows[i : i + 1], TIME).cell()
            body.append([*head, str(x["op"]), f"{x['work']:.2f}", time, f"{x['memory']:.2f}"])
    yield {
        "caption": "A run of the whole model with the operator in all layers, over the model as it "
        "is: counted work, time (median and quartiles of runs in turn; noisy: quartiles too wide "
        "for a number) and peak memory.",
        "header": ["model", "tokens", "operator", "work", "time", "memory"],
        "rows": body,
        "left": 3,
    }
