"""Error against cost: who is best within a budget, who is on a front, and how far the others are.

Read are ``status`` and the columns of ``studies/frontier``: ``family``, ``method``, ``target``,
``source``, ``real``, ``n``, ``seed``, ``budget``, ``fits``, ``share``, ``output_error``, ``skill``,
``uniform_error``, of all but the oracles ``time`` and ``memory``, and ``certified_error``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np
import pandas as pd

from softlab.figures import Lines
from softlab.report import certificates
from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline, headline, surprise
from softlab.report.numbers import (
    Clause,
    Facts,
    counted,
    joined,
    listed,
    number,
    sentence,
    short,
)
from softlab.report.profiles import ROUNDING, known_to, shares_within
from softlab.report.rows import finished
from softlab.report.timings import steady

from .columns import ANSWER, BEST, EXACT, ORACLE, UNIFORM

NEEDED = {
    *("status", "family", "method", "target", "source", "real", "n", "seed", "budget", "fits"),
    "certified_error",
    *ANSWER,
}
COSTS = {"share": "W", "time": "T", "memory": "M"}
"""The costs that a front is taken in, and their letters in the table."""

TAUS = 2.0 ** (np.arange(17) / 4)
SHOWN = 10
"""Most methods that a figure can tell apart."""

MOST = 3.0
"""The greatest error over that of the mean of the values that the first page tells apart."""
NAMED = 2
"""Winners that the first page names."""

LEAD = Lines(
    x="share",
    y="over_mean",
    group="method",
    panel="family",
    by="budget",
    rows="pooled",
    references=("best matrix of the rank",),
    guides={"mean": "mean of the values"},
    xlabel="counted work over that of exact attention",
    ylabel="error over that of the mean of the values",
    legend="panel",
    name="abstract",
    caption="Methods for softmax attention by family: the error of the output over that of the "
    "mean of the values, against counted work; medians over the recorded heads (of MiniLM, a text "
    "encoder, and of a vision transformer), of each the median over its samples; shaded, from the "
    "first to the third quartile of the heads. A method above 1, "
    "the grey line, is no better than the mean of the values, for which no weights are computed; "
    f"errors beyond {MOST:g} are drawn at {MOST:g}. Black: the best matrix of the same rank, found "
    "from the exact attention matrix itself; methods that are not of low rank can err less.",
)
"""The figure of the report's first page."""


def scope(table: pd.DataFrame) -> str:
    """The methods by target, and the inputs with their lengths."""
    rows = _methods(_done(table))
    words = [f"{target}: {listed(mine['method'].unique())}" for target, mine in _by_target(rows)]
    if not words:
        return ""
    lengths = rows.drop_duplicates("source")
    inputs = ", ".join(f"{x.source} (n = {x.n:g})" for x in lengths.itertuples())
    return f"Methods for {'; for '.join(words)}. Inputs: {inputs}."


def findings(table: pd.DataFrame) -> list[str]:
    """For each target: winners, fronts, profile, cells without skill, time and memory, oracles."""
    done = _done(table)
    profiles = _profiles(done)
    paragraphs = []
    for target, rows in _by_target(done):
        points = _points(rows)
        mine = profiles[profiles["target"] == target]
        told: tuple[Iterable[tuple[Iterable[Clause], Facts]], ...] = (
            ((WINNERS, winners(points)),),
            (*((ON_FRONT, x) for x in on_fronts(points)), (LEFT_OUT, left_out(points))),
            (*((TWICE, x) for x in within_twice(mine)), (FEW, few(mine, points))),
            ((WITHOUT_SKILL, without_skill(points)),),
            ((SAVED, x) for x in against_exact(points)),
            ((ORACLES, x) for x in oracles(points)),
        )
        for pairs in told:
            said = (sentence(words, {"target": target, **x}) for words, x in pairs if x)
            paragraphs.append(" ".join(said))
        paragraphs.append(_certificates(target, rows))
    return [text for text in paragraphs if text]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """The least error within the middle budget, and what the saved work saves in time."""
    done = _done(table)
    for target, rows in [*_by_target(done)][:1]:  # softmax, where the grid has it
        points = _points(rows)
        budget = _telling(points)
        best = _best(points, budget)
        wins = best["method"].value_counts(sort=True)
        named = [f"{name} on {counted(count, 'input')}" for name, count in wins[:NAMED].items()]
        if rest := int(wins[NAMED:].sum()):
            named.append(f"others on {rest}")
        text = (
            f"Within {_part(budget)} of the work of exact {target} attention the best of "
            f"{len(_swept(points))} methods for each input ({joined(named)}) errs by {{}}"
        )
        one = _best_everywhere(points, budget)
        alone = (
            f"; the best one method for all of them, {one[0]}, by {number(one[1])}" if one else ""
        )
        for line in headline(text, best["output_error"], "inputs"):
            whole = f"{line['text'].rstrip('.')}{alone}."
            yield {**line, "text": whole, "effect": surprise(float(best["skill"].median()))}
        found = without_skill(points)
        if found["bad"]:
            yield {
                "text": "In {} settings (an input, a method and a budget that it can meet) an "
                f"approximation of {target} attention errs no less than the mean of the values "
                "does, for which no weights are computed.",
                "value": f"{found['bad']} of {found['cells']}",
                "interval": "a count of settings that were chosen, not a frequency",
                "effect": surprise(found["bad"] / found["cells"]),
            }
        for saved in [*against_exact(points)][-1:]:
            yield {
                "text": f"At n = {saved['n']:g}, of {saved['settings']} settings with at most a "
                f"quarter of the work of exact {target} attention {{}} take less time.",
                "value": str(saved["fast"]),
                "interval": "a count of the study's methods and budgets, which are no sample",
                "effect": surprise((saved["settings"] - saved["fast"]) / saved["settings"]),
            }


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Winners by budget; the methods' profiles and skill; who is on which front; pooled errors."""
    done = _done(table)
    profiles = _profiles(done)
    for target, rows in _by_target(done):
        points = _points(rows)
        yield _winner_table(target, points)
        yield _profile_table(target, points, profiles[profiles["target"] == target])
        yield _front_table(target, points)
        yield _error_table(target, points)
        yield from certificates.tables(_worth(rows), ["method"], ["method"])


def _worth(rows: pd.DataFrame) -> pd.DataFrame:
    return certificates.worth(rows, ["method"], error="output_error", unit="source")


def _certificates(target: str, rows: pd.DataFrame) -> str:
    """What bounds that need no exact output are worth, for the methods that have one."""
    found = _worth(rows)
    known = rows[rows["certified_error"].notna()]
    text = certificates.paragraph(
        found, [] if found.empty else [*found["method"]], known["source"].nunique()
    )
    return f"For {target} attention: {text[0].lower()}{text[1:]}" if text else ""


def leading(table: pd.DataFrame) -> pd.DataFrame:
    """Rows to draw against work: the methods most often on a front, the oracles, the front."""
    return _drawn(table, "share")


def leading_in_time(table: pd.DataFrame) -> pd.DataFrame:
    """Rows to draw against measured time."""
    return _drawn(table, "time")


def by_family(table: pd.DataFrame) -> pd.DataFrame:
    """Rows to draw against work, a page a family, each with the oracles and the front."""
    done = _done(table)
    rows = _methods(done)
    pages = rows.loc[rows["budget"] < 1, "family"].unique()
    shared = pd.concat([_front_rows(done, "share"), done[done["family"] == ORACLE]])
    copies = [shared.assign(family=family) for family in pages]
    return _stepped(pd.concat([rows[rows["family"].isin(pages)], *copies]))


def pooled(table: pd.DataFrame) -> pd.DataFrame:
    """Rows to draw: one a method, budget and recorded head of softmax, the median over its samples.

    ``over_mean`` is the error over that of the mean of the values, of each head, at most ``MOST``.
    """
    done = _done(table)
    done = done[(done["target"] == "softmax") & (done["family"] != EXACT) & (done["share"] < 1)]
    done = done[done["real"].astype(bool)] if done["real"].astype(bool).any() else done
    keys = ["family", "method", "budget"]
    done = done.assign(over_mean=done["output_error"] / done["uniform_error"])
    columns = ["share", "over_mean"]
    rows = done.groupby([*keys, "source"], sort=False)[columns].median().reset_index()
    rows = rows.assign(over_mean=rows["over_mean"].clip(upper=MOST), mean=1.0)
    oracles = rows[(rows["family"] == ORACLE) & rows["method"].isin(LEAD.references)]
    kept = rows[rows["family"] != ORACLE]
    copies = [oracles.assign(family=family) for family in kept["family"].unique()]
    return pd.concat([kept, *copies]).assign(status="ok")


def profile(table: pd.DataFrame) -> pd.DataFrame:
    """Rows to draw: the profiles of the ten methods of the greatest area a target, and controls."""
    found = _profiles(_done(table))
    area = found[found["method"] != UNIFORM].groupby(["target", "method"])["share_within"].mean()
    kept = area.sort_values(ascending=False, kind="stable").groupby("target").head(SHOWN).index
    pairs = pd.MultiIndex.from_frame(found[["target", "method"]])
    shown = found[pairs.isin(kept) | (found["method"] == UNIFORM)]
    shown = shown[shown["budget"].isin(_middle(found["budget"].unique()))]
    names = shown["budget"].map(lambda budget: f"{_part(budget)} of the work")
    return shown.assign(status="ok", budget_name=names)


def _done(table: pd.DataFrame) -> pd.DataFrame:
    """The finished rows with an answer; none of a table without the columns.

    ``time`` is NaN where it is too noisy to compare.
    """
    done = finished(table, NEEDED)
    done = done[done["fits"].eq(True) & done["output_error"].notna()]
    still = steady(done, "time")
    return done.assign(time=done["time"].where(still), noisy=done["time"].notna() & ~still)


def _methods(done: pd.DataFrame) -> pd.DataFrame:
    """Without the oracles, which no one can run."""
    return done[done["family"] != ORACLE]


def _by_target(done: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each target for which a method has a knob, with all rows of it."""
    for target, rows in done.groupby("target", sort=False):
        if _swept(rows):
            yield str(target), rows


def _points(rows: pd.DataFrame) -> pd.DataFrame:
    """Medians over the seeds: one row an input, method and budget."""
    keys = ["target", "source", "family", "method", "budget"]
    columns = [
        *("real", "n", "share", "time", "noisy", "memory"),
        *("output_error", "skill", "uniform_error"),
    ]
    return rows.groupby(keys, sort=False)[columns].median().reset_index()


def front(points: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The points of one input that no other dominates: none costs at most as much and errs less."""
    ordered = points.dropna(subset=[cost]).sort_values([cost, "output_error"])
    before = ordered["output_error"].cummin().shift(fill_value=np.inf)
    return ordered[ordered["output_error"] < before]


def _fronts(points: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The fronts of all inputs and targets: a trivial answer dominates whatever has no skill."""
    able = _methods(points)
    groups = able[able["skill"] > 0].groupby(["target", "source"], sort=False)
    found = [front(rows, cost) for _, rows in groups]
    return pd.concat(found) if found else points[:0]


def _best(points: pd.DataFrame, budget: float) -> pd.DataFrame:
    """The point of least error within the budget, one an input."""
    within = _methods(points)
    within = within[within["share"] <= budget]
    return within.loc[within.groupby("source", sort=False)["output_error"].idxmin()]


def _best_everywhere(points: pd.DataFrame, budget: float) -> tuple[str, float] | None:
    """The method of the least median over the inputs, of those that fit all of them.

    None where there is one input, whose best method it would be.
    """
    within = _methods(points)
    within = within[within["share"] <= budget]
    errors = within.groupby(["method", "source"])["output_error"].min().unstack().dropna()
    if errors.empty or errors.shape[1] < 2:
        return None
    medians = errors.median(axis=1)
    return str(medians.idxmin()), float(medians.min())


def _budgets(points: pd.DataFrame) -> list[float]:
    found = points["budget"].unique()
    return sorted(float(budget) for budget in found if budget < 1)


def _middle(budgets: np.ndarray) -> list[float]:
    """At most three of the budgets, without the outermost where there are more."""
    found = sorted(float(budget) for budget in budgets)
    return found if len(found) <= 3 else found[1:-1][:3]


def _telling(points: pd.DataFrame) -> float:
    """The middle budget: an eighth of the full grid."""
    budgets = _budgets(points)
    return budgets[len(budgets) // 2]


def _part(budget: float) -> str:
    """0.125 as 1/8."""
    return str(Fraction(budget).limit_denominator(1024))


def _profiles(done: pd.DataFrame) -> pd.DataFrame:
    """``share_within`` by target, seed, budget, method and tau: the share of inputs within tau."""
    found = []
    for (target, seed), rows in done.groupby(["target", "seed"], sort=False):
        if not _swept(rows):
            continue
        trivial = rows.groupby("source")["uniform_error"].first()
        for budget in _budgets(rows):
            within = _methods(rows)
            within = within[within["share"] <= budget]
            least = within.groupby(["source", "method"])["output_error"].min().unstack()
            least = least.reindex(index=trivial.index, columns=_swept(rows))
            made = shares_within(least, TAUS, trivial.to_frame(UNIFORM))
            found.append(made.assign(target=target, seed=seed, budget=budget))
    columns = ["target", "seed", "budget", "method", "tau", "share_within"]
    return pd.concat(found)[columns] if found else pd.DataFrame(columns=columns)


def _swept(rows: pd.DataFrame) -> list[str]:
    """The methods with a knob, in the order of the grid."""
    own = _methods(rows)
    return list(own.loc[own["budget"] < 1, "method"].unique())


def _within(profiles: pd.DataFrame, budget: float, tau: float) -> pd.Series:
    """Median over the seeds of the share of inputs within tau of the best, by method."""
    at = profiles[(profiles["budget"] == budget) & np.isclose(profiles["tau"], tau)]
    return at.groupby("method", sort=False)["share_within"].median()


def _stepped(rows: pd.DataFrame) -> pd.DataFrame:
    """With ``step``, along which a line runs: the budget where it is no vertex of a front."""
    step = rows["step"] if "step" in rows else pd.Series(np.nan, rows.index)
    return rows.assign(step=step.fillna(rows["budget"]))


def _front_rows(done: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The vertices of the staircase that is each input's front, as rows of a method of its own."""
    fronts = _fronts(_points(done), cost)
    found = []
    for (target, source), rows in fronts.groupby(["target", "source"], sort=False):
        x, y = rows[cost].to_numpy(), rows["output_error"].to_numpy()
        corners = pd.DataFrame({cost: np.repeat(x, 2)[1:], "output_error": np.repeat(y, 2)[:-1]})
        found.append(
            corners.assign(
                target=target, source=source, method=BEST, step=np.arange(len(corners)), status="ok"
            )
        )
    return pd.concat(found, ignore_index=True) if found else done[:0]


def _drawn(table: pd.DataFrame, cost: str) -> pd.DataFrame:
    done = _done(table)
    rows = _methods(done)
    kept = []
    for target, mine in _by_target(_fronts(_points(done), cost)):
        inputs = mine.groupby("method")["source"].nunique().drop(_exact(mine), errors="ignore")
        best = inputs.sort_values(ascending=False, kind="stable").index[:SHOWN]
        kept.append(rows[(rows["target"] == target) & rows["method"].isin(best)])
    oracles = done[done["family"] == ORACLE]
    return _stepped(pd.concat([*kept, oracles, _front_rows(done, cost)]))


def _exact(rows: pd.DataFrame) -> list[str]:
    return list(rows.loc[rows["family"] == EXACT, "method"].unique())


WINNERS: tuple[Clause, ...] = (
    "Within {part} of the work of exact {target} attention ",
    ("several", "no method of {methods} is best everywhere"),
    ("alone", "{alone} is best on every input"),
    ": the least error is had by {each} of {inputs} inputs. It lies between {low} ({low_input}) "
    "and {high} ({high_input}, where the uniform average errs by {uniform}).",
    ("hopeless", " On {hopeless} even that has no skill."),
    " Over all budgets {somewhere} methods are best somewhere",
    ("never", "; never: {never}"),
    ".",
)


def winners(points: pd.DataFrame) -> Facts:
    """Who errs least at the middle budget, and how many do at any."""
    budget = _telling(points)
    best = _best(points, budget)
    counts = best["method"].value_counts()
    low, high = (
        best.loc[pick] for pick in (best["output_error"].idxmin(), best["output_error"].idxmax())
    )
    everywhere = pd.concat([_best(points, x) for x in _budgets(points)])["method"]
    return {
        "part": _part(budget),
        "several": len(counts) > 1,
        "alone": counts.index[0] if len(counts) == 1 else "",
        "methods": len(_swept(points)),
        "each": {name: f"on {count}" for name, count in counts.items()},
        "inputs": points["source"].nunique(),
        "low": low["output_error"],
        "low_input": low["source"],
        "high": high["output_error"],
        "high_input": high["source"],
        "uniform": high["uniform_error"],
        "hopeless": [*best.loc[~(best["skill"] > 0), "source"]],
        "somewhere": everywhere.nunique(),
        "never": [name for name in _swept(points) if name not in {*everywhere}],
    }


TWICE = (
    "Within {part} of the work, the error is at most twice the least of all methods with a knob on "
    "{first}; the uniform average does as well on {uniform:.0f} %.",
)
FEW = ("So few inputs tell little apart: {sure}.",)


def within_twice(profiles: pd.DataFrame) -> Iterator[Facts]:
    """The profile read at two: who is seldom far from the best, by budget."""
    for budget in _middle(profiles["budget"].unique()):
        shares = 100 * _within(profiles, budget, 2.0).sort_values(ascending=False, kind="stable")
        first = shares.drop(UNIFORM).head(3)
        yield {
            "part": _part(budget),
            "first": [f"{x:.0f} % of inputs for {name}" for name, x in first.items()],
            "uniform": shares[UNIFORM],
        }


def few(profiles: pd.DataFrame, points: pd.DataFrame) -> Facts:
    """How little so few inputs tell apart, where a profile is read."""
    read = len(_middle(profiles["budget"].unique())) * profiles["method"].nunique()
    return {"sure": known_to(points["source"].nunique(), read)} if read else {}


ON_FRONT = (
    "On the fronts of {target} attention in {cost} stand, beside the exact operator, {counts} (in "
    "parentheses: on how many of {inputs} inputs).",
)
LEFT_OUT = ("Timings of {noisy} of {timed} settings are too noisy to compare, and left out.",)


def on_fronts(points: pd.DataFrame) -> Iterator[Facts]:
    """How often each method is on the front in work, and in time."""
    for cost, word in (("share", "work"), ("time", "time")):
        if points[cost].notna().any():
            found = _fronts(points, cost)
            found = found[found["family"] != EXACT]
            counts = found.groupby("method")["source"].nunique().sort_values(ascending=False)
            inputs = points["source"].nunique()
            yield {"cost": word, "counts": counts.to_dict() or "none", "inputs": inputs}


def left_out(points: pd.DataFrame) -> Facts:
    """How many timings are in no comparison."""
    timed = points[points["time"].notna() | (points["noisy"] > 0)]
    timed = timed.drop_duplicates(["n", "method", "budget"])
    noisy = int((timed["noisy"] > 0).sum())
    return {"noisy": noisy, "timed": len(timed)} if noisy else {}


WITHOUT_SKILL: tuple[Clause, ...] = (
    "Of {cells} cells of {target} attention (an input, a method and a budget) {bad} are without "
    "skill, no better than a trivial answer: {worst}.",
    ("sound", " With skill in every cell: {sound}."),
)


def without_skill(points: pd.DataFrame) -> Facts:
    """Cells in which a method does no better than a trivial answer."""
    cells = _methods(points)
    cells = cells[cells["budget"] < 1]
    bad = ~(cells["skill"] > 0)
    counts = bad.groupby(cells["method"], sort=False).agg(["sum", "size"])
    worst = counts[counts["sum"] > 0].sort_values("sum", ascending=False)
    return {
        "cells": len(cells),
        "bad": bad.sum(),
        "worst": {name: f"{x['sum']} of {x['size']}" for name, x in worst.iterrows()} or "none",
        "sound": [*counts.index[counts["sum"] == 0]],
    }


def _settings(points: pd.DataFrame) -> pd.DataFrame:
    """One row a length, method and budget of at most a quarter of the work, where it was timed."""
    cells = _methods(points)
    cells = cells[(cells["budget"] <= 0.25) & cells["time"].notna()]
    keys = ["n", "method", "budget"]
    return cells.groupby(keys, sort=False)[["time", "memory"]].median().reset_index()


SAVED = (
    "At n = {n:g}, of {settings} settings with at most a quarter of the work of exact {target} "
    "attention, {fast} take less time and {light} less memory.",
)


def against_exact(points: pd.DataFrame) -> Iterator[Facts]:
    """How much of the saved work is saved time and memory, by length."""
    for n, rows in _settings(points).groupby("n"):
        fast, light = (rows["time"] < 1).sum(), (rows["memory"] < 1).sum()
        yield {"n": n, "settings": len(rows), "fast": fast, "light": light}


ORACLES: tuple[Clause, ...] = (
    "At {part} of the work of exact {target} attention the least error of any method is, in the "
    "median over the inputs, {median} times that with the {oracle} known for free ({least} to "
    "{most}).",
    ("beaten", " On {beaten} of {inputs} inputs a method errs less."),
)


def oracles(points: pd.DataFrame) -> Iterator[Facts]:
    """What knowing the best matrix or the heaviest keys would be worth."""
    budget = _telling(points)
    best = _best(points, budget).set_index("source")["output_error"]
    own = points[(points["family"] == ORACLE) & (points["budget"] == budget)]
    for name, rows in own.groupby("method", sort=False):
        ratio = (best / rows.set_index("source")["output_error"].clip(lower=ROUNDING)).dropna()
        yield {
            "part": _part(budget),
            "oracle": name,
            "median": ratio.median(),
            "least": ratio.min(),
            "most": ratio.max(),
            "beaten": (ratio < 1).sum(),
            "inputs": len(ratio),
        }


def _winner_table(target: str, points: pd.DataFrame) -> Table:
    budgets = _budgets(points)
    best = {budget: _best(points, budget).set_index("source") for budget in budgets}
    body: list[list[Cell]] = []
    for source in points["source"].unique():
        cells: list[Cell] = [str(source)]
        for budget in budgets:
            if source not in best[budget].index:
                cells.append("")
                continue
            row = best[budget].loc[source]
            cells.append([str(row["method"]), f"{short(row['output_error'])}, {row['skill']:.2f}"])
        body.append(cells)
    return {
        "caption": f"{target.capitalize()} attention: the method of the least error within a share "
        "of the work of exact attention; below it its median error and its skill.",
        "header": ["input", *map(_part, budgets)],
        "rows": body,
        "left": 1,
    }


def _profile_table(target: str, points: pd.DataFrame, profiles: pd.DataFrame) -> Table:
    budgets = _middle(profiles["budget"].unique())
    cells = _methods(points)
    cells = cells[cells["budget"] < 1]
    families = cells.groupby("method", sort=False)["family"].first()
    possible = len(_budgets(points)) * points["source"].nunique()
    body: list[list[Cell]] = []
    for family in families.unique():
        for i, method in enumerate(families.index[families == family]):
            mine = cells[cells["method"] == method]
            row: list[Cell] = [family if i == 0 else "", method, f"{len(mine)} of {possible}"]
            row.append(f"{(~(mine['skill'] > 0)).sum()}")
            for budget in budgets:
                row += [f"{_within(profiles, budget, tau)[method]:.2f}" for tau in (1, 2, 4)]
            body.append(row)
    row = ["control", UNIFORM, "", ""]
    for budget in budgets:
        row += [f"{_within(profiles, budget, tau)[UNIFORM]:.2f}" for tau in (1, 2, 4)]
    names = [f"{_part(x)}: 1" if tau == 1 else str(tau) for x in budgets for tau in (1, 2, 4)]
    return {
        "caption": f"{target.capitalize()} attention: in how many cells (an input and a budget) "
        "the method has a setting at all, and in how many of these no skill; and its performance "
        "profile, the share of inputs on which it errs at most 1, 2 and 4 times as much as the "
        "best method, at three budgets.",
        "header": ["family", "method", "settings", "no skill", *names],
        "rows": [*body, row],
        "left": 2,
    }


def _front_table(target: str, points: pd.DataFrame) -> Table:
    sources = list(points["source"].unique())
    letters: dict[tuple[str, str], str] = {}
    for cost, letter in COSTS.items():
        for row in _fronts(points, cost)[["method", "source"]].drop_duplicates().itertuples():
            letters[row.method, row.source] = letters.get((row.method, row.source), "") + letter
    rows = _methods(points)
    body: list[list[Cell]] = []
    for family, mine in rows.groupby("family", sort=False):
        for i, method in enumerate(mine["method"].unique()):
            marks = [letters.get((method, source), "·") for source in sources]
            body.append([str(family) if i == 0 else "", method, *marks])
    return {
        "caption": f"{target.capitalize()} attention: who is non-dominated where. W, on the front "
        "of the input in work; T, in time; M, in peak memory: it has skill, and no other of "
        "the settings costs at most as much and errs less.",
        "header": ["family", "method", *map(_brief, sources)],
        "rows": body,
        "left": 2,
    }


def _brief(source: str) -> str:
    """minilm.layer0.head0 as minilm 0.0, and long words with a place to break a narrow column."""
    name = re.sub(r"^(\w+)\.layer(\d+)\.head(\d+)$", r"\1 \2.\3", source)
    return re.sub(r"(\w{5})(\w{2,})", "\\1\u00ad\\2", name)


def _error_table(target: str, points: pd.DataFrame) -> Table:
    real = points[points["real"] > 0]
    points = real if len(real) else points
    budgets = sorted(points["budget"].unique())
    kind = "recorded inputs" if len(real) else "inputs"
    body: list[list[Cell]] = []
    for family, rows in points.groupby("family", sort=False):
        for i, (method, mine) in enumerate(rows.groupby("method", sort=False)):
            cells: list[Cell] = [str(family) if i == 0 else "", str(method)]
            for budget in budgets:
                at = mine[mine["budget"] == budget]
                cells.append(
                    [short(at["output_error"].median()), f"{at['skill'].median():.2f}"]
                    if len(at)
                    else ""
                )
            body.append(cells)
    return {
        "caption": f"{target.capitalize()} attention: median relative output error over the "
        f"{points['source'].nunique()} {kind} by budget, below it the median skill. At 1 stand "
        "the methods without a knob, at what they spend.",
        "header": ["family", "method", *map(_part, budgets)],
        "rows": body,
        "left": 2,
    }
