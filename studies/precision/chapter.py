"""Iterations in each precision: the least error, from where on they fail, what wrappers mend.

Read are ``status`` and the columns of ``studies/precision``: ``family``, ``source``, ``method``,
``precision``, ``matrix.condition``, ``kappa``, ``eps``, ``eps_kappa``, ``accumulates_in``,
``floor``, ``c``, ``failure``, ``narrow_floor``, ``purified_error``, ``best_error``,
``polished_error``, ``final_error``, ``solve_status`` and ``solve_error``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline
from softlab.report.numbers import Clause, Facts, joined, number, sentence, short, span
from softlab.report.rows import finished

from .columns import LAW, SOUND

RULE = (0.01, 1.0)
"""Between these the constant of the rule of thumb, floor = c eps kappa, is expected."""

TRUSTED = 0.1
"""A run came near the pseudo-inverse if its error was at most this."""

CLOSE = 10
"""An iterate is as good as the floor if its error is at most so many times that."""

NEEDED = {
    *("status", "family", "method", "precision", "kappa", "eps", "eps_kappa", "floor", "c"),
    *("failure", "accumulates_in", "source", "matrix", "narrow_floor", "purified_error"),
    *("best_error", "polished_error", "final_error", "solve_status", "solve_error"),
}


def scope(table: pd.DataFrame) -> str:
    """The precisions with their accumulators, the methods, the matrices."""
    done = finished(table, NEEDED)
    if done.empty:
        return ""
    summed = done.groupby("precision", sort=False)["accumulates_in"].first()
    words = joined(f"{name} (summed in {how})" for name, how in summed.items())
    methods = joined(done["method"].unique())
    return f"Methods: {methods}. Precisions: {words}. Matrices: {joined(done['family'].unique())}."


def findings(table: pd.DataFrame) -> list[str]:
    """The rule for the floor, where it ends, failures, wrappers and what solve says."""
    done = finished(table, NEEDED)
    if done.empty:
        return []
    paragraphs = [
        [sentence(KEPT, rule(done))],
        *(_floors(done[done["precision"] == name]) for name in done["precision"].unique()),
        _outside(done),
        _failures(done),
        _recorded(done),
        _wrappers(done),
        [sentence(SOLVE, solved(done))],
    ]
    return [text for text in (" ".join(filter(None, said)) for said in paragraphs) if text]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """What the least error follows in float64 and in bfloat16, as far as every run comes near."""
    done = finished(table, NEEDED)
    for name in ("float64", "bfloat16"):
        rows, beyond = _reached(done[done["precision"] == name])
        if len(rows):
            unit, size = _followed(rows)
            yield {
                "text": "On log-spaced singular values the least error of an iteration in "
                f"{name} is {{}} {unit} at {_conditions(rows)}.",
                "value": span(size),
                "interval": f"range of {len(rows)} runs" + (f"; {beyond}" if beyond else ""),
            }


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """The constant of the rule; the first failures; the recorded cores."""
    done = finished(table, NEEDED)
    if done.empty:
        return
    yield _constants(done)
    yield from _first_failures(done)
    yield from _cores(done)


def _near(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["floor"] <= TRUSTED]


def _on_law(done: pd.DataFrame) -> pd.DataFrame:
    """The runs on log-spaced singular values, whose condition number is known."""
    return done[done["family"] == LAW]


def _reached(done: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The runs up to where every one comes near, and how many beyond do not.

    To look at those that came near alone would cut every floor off at ``TRUSTED``.
    """
    rows = _on_law(done)
    if rows.empty:
        return rows, ""
    far = rows[~(rows["floor"] <= TRUSTED)]
    if far.empty:
        return rows, ""
    below = rows["matrix.condition"] < far["matrix.condition"].min()
    words = (
        f"{len(part)} of {(rows['matrix.condition'] == at).sum()} at {number(at)}"
        for at, part in far.groupby("matrix.condition")
    )
    return rows[below], f"an error above {TRUSTED:g} is left by {joined(words)}"


def _followed(rows: pd.DataFrame) -> tuple[str, pd.Series]:
    """The unit in which the floors of all condition numbers are nearest to one number."""
    sizes = {"eps kappa": rows["c"], "eps": rows["floor"] / rows["eps"]}
    return min(sizes.items(), key=lambda item: item[1].max() / item[1].min())


def _conditions(rows: pd.DataFrame) -> str:
    at = rows["matrix.condition"]
    return f"condition number{'s' if at.nunique() > 1 else ''} {span(at)}"


KEPT: tuple[Clause, ...] = (
    "The rule of thumb, a least error of c eps kappa with c between "
    f"{RULE[0]:g} and {RULE[1]:g}, holds on log-spaced singular values for so many of the runs "
    f"that come within {TRUSTED:g} of the pseudo-inverse: {{each}}.",
    (
        "factor",
        " Half precision does better than the rule says, up to {factor} times better than eps "
        "kappa, while its products are summed in a wider format.",
    ),
)


def rule(done: pd.DataFrame) -> Facts:
    """How many runs on log-spaced values keep the rule; by which factor a wider sum beats it."""
    rows = _on_law(done)
    near = _near(rows)
    each = [
        f"{part['c'].between(*RULE).sum()} of {len(part)} in {name} "
        f"({(rows['precision'] == name).sum() - len(part)} more do not)"
        for name, part in near.groupby("precision", sort=False)
    ]
    wide = near[near["precision"] != near["accumulates_in"]]
    factor = (wide["eps_kappa"] / wide["floor"]).max() if len(wide) else None
    return {"each": each, "factor": factor} if each else {}


REACHED: tuple[Clause, ...] = (
    "In {precision}, summed in {summed}, all {runs} runs on log-spaced singular values at "
    f"{{conditions}} come within {TRUSTED:g} of the pseudo-inverse: c = floor / (eps kappa) lies "
    "between {least} and {most}, in {kept} of them "
    f"between {RULE[0]:g} and {RULE[1]:g}.",
    (
        "of_eps",
        " The rule does not hold: the floor follows eps rather than eps kappa and stays between "
        "{least_eps} and {most_eps} eps",
    ),
    (
        "wide",
        ", the rounding of the result itself, because a wide sum leaves the residual I - A X "
        "accurate",
    ),
    ("of_eps", "."),
    ("beyond", " {beyond}."),
)
NARROW: tuple[Clause, ...] = (
    "With the same products summed in {precision} itself {near} of {runs} runs of Newton-Raphson "
    "come as near",
    ("near", ", with c from {c}"),
    ".",
)


def reached(mine: pd.DataFrame) -> Facts:
    """One precision: the range of c and what the floor follows, as far as every run comes near."""
    rows, beyond = _reached(mine)
    if rows.empty:
        return {}
    unit, size = _followed(rows)
    of_eps = unit == "eps"
    precision, summed = mine.iloc[0][["precision", "accumulates_in"]]
    return {
        "precision": precision,
        "summed": summed,
        "runs": len(rows),
        "conditions": _conditions(rows),
        "least": rows["c"].min(),
        "most": rows["c"].max(),
        "kept": rows["c"].between(*RULE).sum(),
        "of_eps": of_eps,
        "wide": of_eps and precision != summed,
        "least_eps": size.min(),
        "most_eps": size.max(),
        "beyond": f"{beyond[:1].upper()}{beyond[1:]}",
    }


def narrow_sums(mine: pd.DataFrame) -> Facts:
    """The same runs with products summed in the precision itself."""
    rows = _on_law(mine).dropna(subset=["narrow_floor"])
    near = rows[rows["narrow_floor"] <= TRUSTED]
    if rows.empty:
        return {}
    return {
        "precision": mine.iloc[0]["precision"],
        "near": len(near),
        "runs": len(rows),
        "c": span(near["narrow_floor"] / near["eps_kappa"]),
    }


def _floors(mine: pd.DataFrame) -> Iterator[str]:
    if found := reached(mine):
        yield sentence(REACHED, found)
        yield sentence(NARROW, narrow_sums(mine))


OUTSIDE = (
    "Where products are summed in the precision itself, c is {side} {bound:g} in {outside} of the "
    f"{{near}} runs that come within {TRUSTED:g} ({{far}} more do not): {{each}}.",
)
SMALL = "Where c is small kappa is an upper bound of the difficulty and no measure of it."


def outside(done: pd.DataFrame) -> list[Facts]:
    """Where c leaves the range of the rule, in the precisions that sum in themselves."""
    own = done[done["precision"] == done["accumulates_in"]]
    near = _near(own)
    low, high = near[near["c"] < RULE[0]], near[near["c"] > RULE[1]]
    return [
        {
            "side": side,
            "bound": bound,
            "outside": len(rows),
            "near": len(near),
            "far": len(own) - len(near),
            "each": [
                f"{family} (kappa {span(part['kappa'])}, c {span(part['c'])}, {len(part)} runs)"
                for family, part in rows.groupby("family", sort=False)
            ],
        }
        for rows, side, bound in ((low, "below", RULE[0]), (high, "above", RULE[1]))
        if len(rows)
    ]


def _outside(done: pd.DataFrame) -> Iterator[str]:
    found = outside(done)
    yield from (sentence(OUTSIDE, one) for one in found)
    if any(one["side"] == "below" for one in found):
        yield SMALL


FAILS: tuple[Clause, ...] = (
    "In {precision} the condition numbers at which methods begin to fail are: {each}",
    ("never", "; never: {never}"),
    ".",
)
NONE_FAILS = (
    "In {precision} no method fails on log-spaced singular values up to kappa = {greatest}.",
)


def failures(done: pd.DataFrame) -> list[Facts]:
    """By precision: which methods fail from which condition number on, and which never do."""
    found: list[Facts] = []
    for name, mine in _on_law(done).groupby("precision", sort=False):
        firsts = _firsts(mine)
        broken = firsts.dropna()
        found.append({
            "precision": name,
            "greatest": mine["matrix.condition"].max(),
            "fail": {float(at): [*part.index] for at, part in broken.groupby(broken)},
            "never": [*firsts.index[firsts.isna()]],
        })  # fmt: skip
    return found


def _failures(done: pd.DataFrame) -> Iterator[str]:
    for one in failures(done):
        each = "; ".join(f"{joined(names)} from {number(at)}" for at, names in one["fail"].items())
        yield sentence(FAILS if each else NONE_FAILS, {**one, "each": each})


def _firsts(mine: pd.DataFrame) -> pd.Series:
    """By method, the least nominal condition number with a failed run; NaN for none."""
    bad = mine[mine["failure"] != SOUND]
    firsts = bad.groupby("method")["matrix.condition"].min()
    return firsts.reindex(mine["method"].unique())


ALL_SOUND = ("In {precision} all {runs} runs on recorded cores are sound.",)
LOST = ("In {precision} {failed} of {runs} runs on recorded cores fail; {first} fails on {where}.",)


def recorded(done: pd.DataFrame) -> list[Facts]:
    """By precision: how many runs on cores of real attention fail, and where the first method."""
    found: list[Facts] = []
    for name, mine in done[done["source"].notna()].groupby("precision", sort=False):
        bad = mine[mine["failure"] != SOUND]
        first = mine.iloc[0]["method"]
        where = [
            f"the core of {family} on {source} (kappa up to {number(part['kappa'].max())})"
            for (family, source), part in bad[bad["method"] == first].groupby(
                ["family", "source"], sort=False
            )
        ]
        found.append({
            "precision": name,
            "runs": len(mine),
            "failed": len(bad),
            "first": first,
            "where": where or "none of them",
        })  # fmt: skip
    return found


def _recorded(done: pd.DataFrame) -> Iterator[str]:
    return (sentence(LOST if one["failed"] else ALL_SOUND, one) for one in recorded(done))


POLISHED = (
    "One float64 step after {precision} brings the error below the floor in {better} of {runs} "
    "runs, to {factor} of it.",
)
WRAPPED: tuple[Clause, ...] = (
    "A closing X A X in the same precision lowers the last error in {lower} of {runs} runs and "
    "raises it in {higher}",
    ("lost", "; it mends {mended} of the {lost} runs that were lost"),
    f". The iterate that the watch of solve keeps is within {CLOSE:g} times the floor in {{close}} "
    "of {runs} runs.",
)


def wrapped(near: pd.DataFrame) -> Facts:
    """What a closing X A X and the watched iterate make of runs that came near."""
    if near.empty:
        return {}
    lost = near[near["failure"] != SOUND]
    before, after = (near[x].fillna(np.inf) for x in ("final_error", "purified_error"))
    return {
        "runs": len(near),
        "lower": (after < before).sum(),
        "higher": (after > before).sum(),
        "lost": len(lost),
        "mended": (lost["purified_error"] <= TRUSTED).sum(),
        "close": (near["best_error"] <= CLOSE * near["floor"]).sum(),
    }


def _wrappers(done: pd.DataFrame) -> Iterator[str]:
    near = _near(done)
    for name, mine in near.groupby("precision", sort=False):
        factor = (mine["polished_error"] / mine["floor"]).dropna()
        if len(factor):
            better = (factor < 1).sum()
            facts = {"precision": name, "better": better, "runs": len(mine), "factor": span(factor)}
            yield sentence(POLISHED, facts)
    yield sentence(WRAPPED, wrapped(near))


SOLVE: tuple[Clause, ...] = (
    "solve, which works in float32 for half precision, says CONVERGED in {converged} of {cases} "
    f"cases; in {{wrong}} of them its result is further than {TRUSTED:g} from the pseudo-inverse",
    (
        "wrong",
        ", at kappa from {least} to {most}: the residual A X A - A hardly sees small singular "
        "values",
    ),
    ".",
)


def solved(done: pd.DataFrame) -> Facts:
    """Whether a matrix called converged is inverted."""
    converged = done[done["solve_status"] == "CONVERGED"]
    wrong = converged[~(converged["solve_error"] <= TRUSTED)]
    return {
        "converged": len(converged),
        "cases": len(done),
        "wrong": len(wrong),
        "least": wrong["kappa"].min(),
        "most": wrong["kappa"].max(),
    }


def _constants(done: pd.DataFrame) -> Table:
    """The constant by precision and family, a column for each method: median above, range below."""
    methods = list(done["method"].unique())
    body: list[list[Cell]] = []
    for name, mine in done.groupby("precision", sort=False):
        for i, (family, part) in enumerate(_near(mine).groupby("family", sort=False)):
            found = part.groupby("method")["c"].agg(["min", "median", "max"])
            cells = [_range(found.loc[one]) if one in found.index else "" for one in methods]
            body.append([str(name) if i == 0 else "", str(family), *cells])
    return {
        "caption": "c = floor / (eps kappa) over the runs that came within one tenth of the "
        "pseudo-inverse: median, below it the least and the greatest. Empty: no run did.",
        "header": ["precision", "matrices", *map(_parted, methods)],
        "rows": body,
        "left": 2,
    }


def _parted(name: str) -> str:
    """A class's name in words, so that it can break in a narrow column."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def _range(found: pd.Series) -> Cell:
    low, high = short(found["min"], 2), short(found["max"], 2)
    return [short(found["median"], 2), f"{low}–{high}"]


def _first_failures(done: pd.DataFrame) -> Iterator[Table]:
    rows = done[done["family"] == LAW]
    if rows.empty:
        return
    methods = list(rows["method"].unique())
    body: list[list[Cell]] = []
    for name, mine in rows.groupby("precision", sort=False):
        firsts = _firsts(mine)
        cells: list[Cell] = []
        for one in methods:
            at = firsts.get(one)
            if at is None or pd.isna(at):
                cells.append("none")
                continue
            how = mine[(mine["method"] == one) & (mine["matrix.condition"] == at)]["failure"]
            cells.append([short(at), joined(how[how != SOUND].unique())])
        body.append([str(name), short(mine["matrix.condition"].max()), *cells])
    yield {
        "caption": "The least condition number at which a run failed on log-spaced singular "
        "values, and how; tried are those up to the second column.",
        "header": ["precision", "up to", *map(_parted, methods)],
        "rows": body,
        "left": 1,
    }


def _cores(done: pd.DataFrame) -> Iterator[Table]:
    """Cores of recorded attention and of near-duplicates, a column for each precision."""
    rows = done[done["source"].notna() | (done["family"] == "NearDuplicates")]
    if rows.empty:
        return
    rows = rows.assign(core=rows["source"].fillna(rows["matrix"]))
    precisions = list(rows["precision"].unique())
    body: list[list[Cell]] = []
    for family, part in rows.groupby("family", sort=False):
        for i, (core, mine) in enumerate(part.groupby("core", sort=False)):
            cells = [_failing(mine[mine["precision"] == name]) for name in precisions]
            kappa = mine.loc[mine["precision"] == precisions[0], "kappa"]
            reach = span(kappa, lambda x: short(x, 2)) if len(kappa) else ""
            body.append([str(family) if i == 0 else "", str(core), reach, *cells])
    yield {
        "caption": f"Cores: condition number in {precisions[0]} and median floor over methods and "
        "seeds in each precision; below it how many runs failed.",
        "header": ["core of", "input", "kappa", *precisions],
        "rows": body,
        "left": 3,
    }


def _failing(rows: pd.DataFrame) -> Cell:
    """The median floor of some runs, below it how many fail."""
    if rows.empty:
        return ""
    bad, floor = (rows["failure"] != SOUND).sum(), short(rows["floor"].median(), 2)
    return [floor, f"{bad} of {len(rows)} fail"] if bad else floor
