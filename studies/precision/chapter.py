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
from softlab.report.numbers import joined, number, short, span
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
        _headline(done),
        *(_floors(done[done["precision"] == name]) for name in done["precision"].unique()),
        _outside(done),
        _failures(done),
        _recorded(done),
        _wrappers(done),
        _solve(done),
    ]
    return [text for text in map(" ".join, paragraphs) if text]


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


def _headline(done: pd.DataFrame) -> Iterator[str]:
    """Where the rule for the floor holds, and where not, on log-spaced singular values."""
    rows = _on_law(done)
    near = _near(rows)
    if near.empty:
        return
    words = (
        f"{part['c'].between(*RULE).sum()} of {len(part)} in {name} "
        f"({(rows['precision'] == name).sum() - len(part)} more do not)"
        for name, part in near.groupby("precision", sort=False)
    )
    yield (
        f"The rule of thumb, a least error of c eps kappa with c between {RULE[0]:g} and "
        f"{RULE[1]:g}, holds on log-spaced singular values for so many of the runs that come "
        f"within {TRUSTED:g} of the pseudo-inverse: {joined(words)}."
    )
    wide = near[near["precision"] != near["accumulates_in"]]
    if len(wide):
        factor = (wide["eps_kappa"] / wide["floor"]).max()
        yield (
            f"Half precision does better than the rule says, up to {number(factor)} times better "
            "than eps kappa, while its products are summed in a wider format."
        )


def _floors(mine: pd.DataFrame) -> Iterator[str]:
    """One precision: the range of c and what the floor follows, as far as every run comes near."""
    rows, beyond = _reached(mine)
    if rows.empty:
        return
    name, summed = mine.iloc[0][["precision", "accumulates_in"]]
    yield (
        f"In {name}, summed in {summed}, all {len(rows)} runs on log-spaced singular values at "
        f"{_conditions(rows)} come within {TRUSTED:g} of the pseudo-inverse: c = floor / "
        f"(eps kappa) lies between {number(rows['c'].min())} and {number(rows['c'].max())}, in "
        f"{rows['c'].between(*RULE).sum()} of them between {RULE[0]:g} and {RULE[1]:g}."
    )
    unit, size = _followed(rows)
    if unit == "eps":
        yield (
            "The rule does not hold: the floor follows eps rather than eps kappa and stays between "
            f"{number(size.min())} and {number(size.max())} eps"
            + (
                "."
                if name == summed
                else ", the rounding of the result itself, because a wide sum leaves the residual "
                "I - A X accurate."
            )
        )
    if beyond:
        yield f"{beyond[:1].upper()}{beyond[1:]}."
    narrow = _on_law(mine).dropna(subset=["narrow_floor"])
    near = narrow[narrow["narrow_floor"] <= TRUSTED]
    if len(narrow):
        c = near["narrow_floor"] / near["eps_kappa"]
        yield (
            f"With the same products summed in {name} itself {len(near)} of {len(narrow)} runs "
            "of Newton-Raphson come as near" + (f", with c from {span(c)}." if len(near) else ".")
        )


def _outside(done: pd.DataFrame) -> Iterator[str]:
    """Where c leaves the range of the rule, in the precisions that sum in themselves."""
    own = done[done["precision"] == done["accumulates_in"]]
    plain = _near(own)
    low, high = plain[plain["c"] < RULE[0]], plain[plain["c"] > RULE[1]]
    for rows, side, bound in ((low, "below", RULE[0]), (high, "above", RULE[1])):
        if len(rows):
            where = (
                f"{family} (kappa {span(part['kappa'])}, c {span(part['c'])}, {len(part)} runs)"
                for family, part in rows.groupby("family", sort=False)
            )
            yield (
                f"Where products are summed in the precision itself, c is {side} {bound:g} in "
                f"{len(rows)} of the {len(plain)} runs that come within {TRUSTED:g} "
                f"({len(own) - len(plain)} more do not): {joined(where)}."
            )
    if len(low):
        yield "Where c is small kappa is an upper bound of the difficulty and no measure of it."


def _failures(done: pd.DataFrame) -> Iterator[str]:
    """The first condition number at which each method fails, by precision."""
    for name, mine in _on_law(done).groupby("precision", sort=False):
        firsts = _firsts(mine)
        broken = firsts.dropna()
        if broken.empty:
            yield (
                f"In {name} no method fails on log-spaced singular values up to kappa = "
                f"{number(mine['matrix.condition'].max())}."
            )
            continue
        words = (f"{joined(part.index)} from {number(at)}" for at, part in broken.groupby(broken))
        rest = joined(firsts.index[firsts.isna()])
        yield (
            f"In {name} the condition numbers at which methods begin to fail are: "
            f"{'; '.join(words)}{f'; never: {rest}' if rest else ''}."
        )


def _firsts(mine: pd.DataFrame) -> pd.Series:
    """By method, the least nominal condition number with a failed run; NaN for none."""
    bad = mine[mine["failure"] != SOUND]
    firsts = bad.groupby("method")["matrix.condition"].min()
    return firsts.reindex(mine["method"].unique())


def _recorded(done: pd.DataFrame) -> Iterator[str]:
    """Which cores of real attention fail, in which precision, for the first method and for all."""
    real = done[done["source"].notna()]
    for name, mine in real.groupby("precision", sort=False):
        bad = mine[mine["failure"] != SOUND]
        if bad.empty:
            yield f"In {name} all {len(mine)} runs on recorded cores are sound."
            continue
        first = mine.iloc[0]["method"]
        words = joined(
            f"the core of {family} on {source} (kappa up to {number(part['kappa'].max())})"
            for (family, source), part in bad[bad["method"] == first].groupby(
                ["family", "source"], sort=False
            )
        )
        yield (
            f"In {name} {len(bad)} of {len(mine)} runs on recorded cores fail; {first} fails on "
            f"{words or 'none of them'}."
        )


def _wrappers(done: pd.DataFrame) -> Iterator[str]:
    """What Polished, Purified and the watched iterate make of a run."""
    near = _near(done)
    for name, mine in near.groupby("precision", sort=False):
        factor = (mine["polished_error"] / mine["floor"]).dropna()
        if len(factor):
            yield (
                f"One float64 step after {name} brings the error below the floor in "
                f"{(factor < 1).sum()} of {len(mine)} runs, to {span(factor)} of it."
            )
    if near.empty:
        return
    lost = near[near["failure"] != SOUND]
    mended = (lost["purified_error"] <= TRUSTED).sum()
    before, after = (near[x].fillna(np.inf) for x in ("final_error", "purified_error"))
    yield (
        "A closing X A X in the same precision lowers the last error in "
        f"{(after < before).sum()} of {len(near)} runs and raises it in {(after > before).sum()}"
        + (f"; it mends {mended} of the {len(lost)} runs that were lost." if len(lost) else ".")
    )
    yield (
        f"The iterate that the watch of solve keeps is within {CLOSE:g} times the floor in "
        f"{(near['best_error'] <= CLOSE * near['floor']).sum()} of {len(near)} runs."
    )


def _solve(done: pd.DataFrame) -> Iterator[str]:
    """Whether a matrix called converged is inverted."""
    said = done[done["solve_status"] == "CONVERGED"]
    wrong = said[~(said["solve_error"] <= TRUSTED)]
    yield (
        f"solve, which works in float32 for half precision, says CONVERGED in {len(said)} of "
        f"{len(done)} cases; in {len(wrong)} of them its result is further than {TRUSTED:g} from "
        "the pseudo-inverse"
    ) + (
        f", at kappa from {number(wrong['kappa'].min())} to {number(wrong['kappa'].max())}: the "
        "residual A X A - A hardly sees small singular values."
        if len(wrong)
        else "."
    )


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
