"""Iterations in each precision: the least error, from where on they fail, what wrappers mend.

Read are ``status`` and the columns of ``studies/precision.py``: ``family``, ``source``, ``method``,
``precision``, ``matrix.condition``, ``kappa``, ``eps``, ``eps_kappa``, ``accumulates_in``,
``floor``, ``c``, ``failure``, and where they are there ``narrow_floor``, ``purified_error``,
``best_error``, ``polished_error``, ``final_error``, ``solve_status`` and ``solve_error``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd

from softlab.chapters import Cell, Table
from softlab.chapters.headlines import Headline, headline
from softlab.chapters.numbers import joined, median, number, short
from softlab.chapters.rows import finished

RULE = (0.01, 1.0)
"""Between these the constant of the rule of thumb, floor = c eps kappa, is expected."""

TRUSTED = 0.1
"""A run came near the pseudo-inverse if its error was at most this."""

NEEDED = {
    *("status", "family", "method", "precision", "kappa", "eps", "eps_kappa", "floor", "c"),
    *("failure", "accumulates_in"),
}
LAW = "Geometric"
"""The family on which condition numbers are compared: log-spaced singular values."""


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
    """The constant of the rule for the least error, in each precision."""
    done = finished(table, NEEDED)
    if done.empty:
        return
    rows = _near(done[done["family"] == LAW])
    for name in ("float64", "bfloat16"):
        mine = rows[rows["precision"] == name]
        text = f"The least error of an iteration in {name} is {{}} eps kappa."
        yield from headline(text, mine["c"], "runs")


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """The constant of the rule; the first failures; the recorded cores."""
    done = finished(table, NEEDED)
    if done.empty:
        return
    yield _constants(done)
    if "matrix.condition" in done:
        yield from _first_failures(done)
    yield from _cores(done)


def _near(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["floor"] <= TRUSTED]


def _headline(done: pd.DataFrame) -> Iterator[str]:
    """Where the rule for the floor holds, and where not, on log-spaced singular values."""
    rows = _near(done[done["family"] == LAW])
    if rows.empty:
        return
    share = rows["c"].between(*RULE).groupby(rows["precision"], sort=False).mean()
    words = (f"{100 * part:.0f} % in {name}" for name, part in share.items())
    yield (
        f"The rule of thumb, a least error of c eps kappa with c between {RULE[0]:g} and "
        f"{RULE[1]:g}, holds on log-spaced singular values for {joined(words)} of the runs that "
        f"came within {TRUSTED:g} of the pseudo-inverse."
    )
    wide = rows[rows["precision"] != rows["accumulates_in"]]
    if len(wide):
        factor = (wide["eps_kappa"] / wide["floor"]).max()
        yield (
            f"Half precision does better than the rule says, up to {number(factor)} times better "
            "than eps kappa, while its products are summed in a wider format."
        )


def _floors(mine: pd.DataFrame) -> Iterator[str]:
    """One precision: the range of c and what the floor follows."""
    rows = _near(mine[mine["family"] == LAW])
    if rows.empty:
        return
    name, summed = mine.iloc[0][["precision", "accumulates_in"]]
    inside = rows["c"].between(*RULE).sum()
    yield (
        f"In {name}, summed in {summed}, {len(rows)} runs on log-spaced singular values came "
        f"within {TRUSTED:g} of the pseudo-inverse, at condition numbers up to "
        f"{number(rows['kappa'].max())}: c = floor / (eps kappa) lies between "
        f"{number(rows['c'].min())} and {number(rows['c'].max())}, in {inside} of them between "
        f"{RULE[0]:g} and {RULE[1]:g}."
    )
    spread = rows["floor"] / rows["eps"]
    if spread.max() < rows["kappa"].max() / 100:
        yield (
            f"The rule does not hold: the floor does not grow with kappa but stays between "
            f"{number(spread.min())} and {number(spread.max())} eps (median "
            f"{number(spread.median())}), the rounding of the result itself, because a wide sum "
            "leaves the residual I - A X accurate."
        )
    if "narrow_floor" in rows:
        narrow = rows[rows["narrow_floor"] <= TRUSTED]
        c = narrow["narrow_floor"] / narrow["eps_kappa"]
        if len(c):
            yield (
                f"With the same products summed in {name} itself, Newton-Raphson's floor does "
                f"grow: c is between {number(c.min())} and {number(c.max())}, and "
                f"{len(narrow)} of {rows['narrow_floor'].notna().sum()} of its runs that come "
                "near with wide sums do so without them."
            )


def _outside(done: pd.DataFrame) -> Iterator[str]:
    """Where c leaves the range of the rule, in the precisions that sum in themselves."""
    plain = _near(done[done["precision"] == done["accumulates_in"]])
    low, high = plain[plain["c"] < RULE[0]], plain[plain["c"] > RULE[1]]
    for rows, side, bound in ((low, "below", RULE[0]), (high, "above", RULE[1])):
        if len(rows):
            where = (
                f"{family} (kappa from {number(part['kappa'].min())} to "
                f"{number(part['kappa'].max())}, c from {number(part['c'].min())} to "
                f"{number(part['c'].max())}, {len(part)} runs)"
                for family, part in rows.groupby("family", sort=False)
            )
            yield (
                f"Where products are summed in the precision itself, c is {side} {bound:g} in "
                f"{len(rows)} of {len(plain)} runs: {joined(where)}."
            )
    if len(low):
        yield "Where c is small kappa is an upper bound of the difficulty and no measure of it."


def _failures(done: pd.DataFrame) -> Iterator[str]:
    """The first condition number at which each method fails, by precision."""
    if "matrix.condition" not in done:
        return
    for name, mine in done[done["family"] == LAW].groupby("precision", sort=False):
        firsts = _firsts(mine)
        broken = firsts.dropna().sort_values()
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
    bad = mine[mine["failure"] != "none"]
    firsts = bad.groupby("method")["matrix.condition"].min()
    return firsts.reindex(mine["method"].unique())


def _recorded(done: pd.DataFrame) -> Iterator[str]:
    """Which cores of real attention fail, in which precision, for the first method and for all."""
    real = done[done["source"].notna()] if "source" in done else done[:0]
    for name, mine in real.groupby("precision", sort=False):
        bad = mine[mine["failure"] != "none"]
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
    if "polished_error" in near and "best_error" in near and near["polished_error"].notna().any():
        for name, mine in near.dropna(subset=["polished_error"]).groupby("precision", sort=False):
            better = (mine["polished_error"] < mine["floor"]).sum()
            yield (
                f"One float64 step after {name} lowers the median error from "
                f"{median(mine, 'floor')}, the floor, to {median(mine, 'polished_error')}; it is "
                f"below the floor in {better} of {len(mine)} runs."
            )
    if "purified_error" in near and "final_error" in near:
        lost = near[near["failure"] != "none"]
        mended = (lost["purified_error"] <= TRUSTED).sum()
        ratio = (near["purified_error"] / near["final_error"]).median()
        yield (
            f"A closing X A X in the same precision changes the last error by a median factor of "
            f"{number(ratio)}"
            + (f"; it mends {mended} of the {len(lost)} runs that were lost." if len(lost) else ".")
        )
    if "best_error" in near:
        ratio = near["best_error"] / near["floor"]
        yield (
            f"The iterate that the watch of solve keeps is within ten times the floor in "
            f"{(ratio <= 10).sum()} of {len(near)} runs."
        )


def _solve(done: pd.DataFrame) -> Iterator[str]:
    """Whether a matrix called converged is inverted."""
    if not {"solve_status", "solve_error"} <= set(done.columns):
        return
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
    return [short(found["median"], 2), f"{low}–{high}"]  # noqa: RUF001


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
            cells.append([short(at), joined(how[how != "none"].unique())])
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
    if "source" not in done or "matrix" not in done:
        return
    rows = done[done["source"].notna() | (done["family"] == "NearDuplicates")]
    if rows.empty:
        return
    rows = rows.assign(core=rows["source"].fillna(rows["matrix"]))
    precisions = list(rows["precision"].unique())
    body: list[list[Cell]] = []
    for family, part in rows.groupby("family", sort=False):
        for i, (core, mine) in enumerate(part.groupby("core", sort=False)):
            cells: list[Cell] = []
            for name in precisions:
                at = mine[mine["precision"] == name]
                bad = (at["failure"] != "none").sum()
                floor = short(at["floor"].median(), 2)
                cells.append([floor, f"{bad} of {len(at)} fail"] if bad else floor)
            kappa = mine.loc[mine["precision"] == precisions[0], "kappa"]
            reach = sorted({short(kappa.min(), 2), short(kappa.max(), 2)}, key=float)
            body.append([str(family) if i == 0 else "", str(core), " to ".join(reach), *cells])
    yield {
        "caption": f"Cores: condition number in {precisions[0]} and median floor over methods and "
        "seeds in each precision; below it how many runs failed.",
        "header": ["core of", "input", "kappa", *precisions],
        "rows": body,
        "left": 3,
    }
