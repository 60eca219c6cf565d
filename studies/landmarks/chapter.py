"""Landmarks at equal numbers and at equal work: which selector errs least, and does k-means help?

Read are ``status`` and the columns of ``studies/landmarks``: ``setting``, ``source``, ``equal``,
``allowance``, ``selector``, ``seed``, ``fits``, ``n``, ``output_error``, ``uniform_error``,
``matrix_error``, ``best_error``, ``time`` with quartiles, ``trace_error`` and
``best_trace_error``.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline, headline
from softlab.report.intervals import median as over_units
from softlab.report.numbers import joined, listed, number, short
from softlab.report.profiles import ROUNDING, known_to, shares_within
from softlab.report.rows import finished
from softlab.report.timings import timing

from .columns import ANSWER, KMEANS, LANDMARKS, ONE_STEP, SEGMENTS, UNIFORM, WORK

NEEDED = {
    *("status", "setting", "source", "equal", "allowance", "selector", "seed", "fits", "n"),
    *ANSWER,
}
ASKED = (KMEANS, ONE_STEP)
RIVALS = (UNIFORM, SEGMENTS)
"""What k-means is held against: the classical draw, and SOFT's own choice."""

LEFT = 1e-3
"""Where the best matrix of the rank leaves less of the trace, ratios to it are of rounding."""

TAUS = 2.0 ** (np.arange(17) / 8)


def scope(table: pd.DataFrame) -> str:
    """The settings, selectors and inputs."""
    done = _done(table)
    if done.empty:
        return ""
    lengths = done.groupby("source", sort=False)["n"].first()
    inputs = ", ".join(f"{source} (n = {n:g})" for source, n in lengths.items())
    return (
        f"Settings: {joined(done['setting'].unique())}. Selectors: "
        f"{listed(done['selector'].unique())}. Inputs: {inputs}."
    )


def findings(table: pd.DataFrame) -> list[str]:
    """Whether k-means helps; who is near the best; how far that is from the bound; its time."""
    done = _done(table)
    if done.empty:
        return []
    said = [*_helps(done), _near(done), _bounds(done), _traces(done), _times(done)]
    return [text for text in said if text]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """What k-means gains over uniform draws at equal numbers, and at equal work."""
    done = _done(table)
    for setting, rows in done.groupby("setting", sort=False):
        equal, work = (
            ratios(rows[rows["equal"] == what], ASKED[0], RIVALS[0]) for what in (LANDMARKS, WORK)
        )
        beside = (
            f"and {number(work.median())} times at equal work, which counts how they are chosen "
            f"(less than once on {(work < 1).sum()} of {len(work)} inputs)"
            if len(work)
            else "not counting the work of choosing them"
        )
        text = (
            f"For {setting}, landmarks by k-means make {{}} times the output error of as many "
            f"uniform draws, {beside}"
        )
        yield from headline(text, equal, "inputs")


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """For each setting the selectors' profiles and errors, and who is best on each input."""
    done = _done(table)
    for setting, rows in done.groupby("setting", sort=False):
        yield _selector_table(str(setting), rows)
        yield _winner_table(str(setting), rows)


def profile(table: pd.DataFrame) -> pd.DataFrame:
    """Rows to draw: each selector's profile over inputs and allowances, by setting and seed."""
    found = []
    keys = ["setting", "equal", "seed"]
    for (setting, equal, seed), rows in _done(table).groupby(keys, sort=False):
        errors = rows.pivot_table("output_error", ["source", "allowance"], "selector", sort=False)
        made = shares_within(errors, TAUS)
        found.append(made.assign(setting=setting, equal=equal, seed=seed, status="ok"))
    columns = ["method", "tau", "share_within", *keys, "status"]
    rows = pd.concat(found) if found else pd.DataFrame(columns=columns)
    return rows.rename(columns={"method": "selector"})


def ratios(rows: pd.DataFrame, asked: str, rival: str) -> pd.Series:
    """The output error of one selector over another's, by source; only where both have an answer.

    The geometric mean over what is allowed of the ratio of medians over the seeds.
    """
    errors = rows.groupby(["source", "allowance", "selector"], sort=False)["output_error"].median()
    both = errors.unstack().reindex(columns=[asked, rival]).clip(lower=ROUNDING).dropna()
    return np.exp(np.log(both[asked] / both[rival]).groupby("source", sort=False).mean())


def _done(table: pd.DataFrame) -> pd.DataFrame:
    """The finished rows with an answer; none of a table without the columns."""
    done = finished(table, NEEDED)
    return done[done["fits"].eq(True) & done["output_error"].notna()]


def _words(equal: str, allowance: float) -> str:
    """64 landmarks, or 1/4 of the work."""
    if equal == LANDMARKS:
        return f"{allowance:g} landmarks"
    return f"{Fraction(allowance).limit_denominator(1024)} of the work"


def _allowances(rows: pd.DataFrame) -> list[tuple[str, float]]:
    """What is equal and how much of it, in the order of the grid."""
    pairs = rows[["equal", "allowance"]].drop_duplicates()
    return [(str(equal), float(a)) for equal, a in pairs.itertuples(index=False)]


def _within(done: pd.DataFrame, tau: float) -> pd.DataFrame:
    """The share of inputs, and of what is allowed, on which each selector errs within tau.

    By setting and what is equal. Of a selector that needs a grid: the share of the images.
    """
    errors = done.groupby(["setting", "equal", "source", "allowance", "selector"], sort=False)
    errors = errors["output_error"].median().unstack()
    best = errors.min(axis=1).clip(lower=ROUNDING)
    near = errors.div(best, axis=0).le(tau).where(_taking_part(done, errors))
    return near.groupby(["setting", "equal"], sort=False).mean()


def _taking_part(done: pd.DataFrame, errors: pd.DataFrame) -> pd.DataFrame:
    """Whether a selector is tried on the source of a row at all, answer or none."""
    tried = done.groupby(["source", "selector"]).size().unstack().notna()
    return tried.reindex(errors.index.get_level_values("source")).set_axis(errors.index)


def _helps(done: pd.DataFrame) -> Iterator[str]:
    """The error with k-means over that with each rival, at equal landmarks and at equal work."""
    found = {
        (str(setting), str(equal), asked, rival): each
        for (setting, equal), rows in done.groupby(["setting", "equal"], sort=False)
        for asked in ASKED
        for rival in RIVALS
        if len(each := ratios(rows, asked, rival))
    }
    for setting in dict.fromkeys(setting for setting, *_ in found):
        said = []
        for equal, asked in dict.fromkeys(key[1:3] for key in found if key[0] == setting):
            lead = "equally many landmarks" if equal == LANDMARKS else "equal work"
            mine = {key[3]: x for key, x in found.items() if key[:3] == (setting, equal, asked)}
            words = (_compared(each, rival, len(found)) for rival, each in mine.items())
            said.append(f"at {lead} with {asked} {joined(words)}")
        yield (
            f"{setting[:1].upper()}{setting[1:]}: the output error is, in the median over the "
            "inputs (with its interval, 95 % for all such intervals together, and on how many it "
            f"is less), {'; '.join(said)}."
        )


def _compared(each: pd.Series, rival: str, verdicts: int) -> str:
    """0.62 times that with uniform (0.5 to 0.9; less on 10 of 11)."""
    found = over_units(each, verdicts=verdicts)
    span = f"{number(found.low)} to {number(found.high)}; " if found.known else ""
    return (
        f"{number(found.value)} times that with {rival} ({span}less on {(each < 1).sum()} of "
        f"{len(each)})"
    )


def _near(done: pd.DataFrame) -> str:
    """Who is most often within a quarter of the least error."""
    shares = _within(done, 1.25)
    said = []
    for (setting, equal), mine in shares.iterrows():
        best = mine.dropna().sort_values(ascending=False, kind="stable").head(3)
        names = joined(f"{name} ({100 * x:.0f} %)" for name, x in best.items())
        said.append(f"{setting} at equal {equal}, {names}")
    sure = known_to(done["source"].nunique(), int(shares.notna().sum().sum()))
    return (
        f"Within a quarter of the least error of all selectors are most often: {'; '.join(said)} "
        f"(in parentheses: on how many of the inputs and allowances that it takes part in). So few "
        f"inputs tell little apart: {sure}."
    )


def _bounds(done: pd.DataFrame) -> str:
    """How far the matrix with the best landmarks is from the best matrix."""
    rows = done[done["equal"] == LANDMARKS]
    said = []
    for setting, mine in rows.groupby("setting", sort=False):
        keys = ["source", "allowance"]
        errors = mine.groupby([*keys, "selector"])["matrix_error"].median().groupby(keys).min()
        floor = mine.groupby(keys)["best_error"].median().clip(lower=ROUNDING)
        said.append(f"{_over_sources(errors / floor)} ({setting})")
    return (
        "With the landmarks that do best, chosen afterwards, the error of the matrix is this many "
        "times that of the best matrix of the rank, in the median over the inputs, each the "
        f"geometric mean over the ranks: {joined(said)}."
        if said
        else ""
    )


def _traces(done: pd.DataFrame) -> str:
    """The trace that is left, over the least that a matrix of the rank can leave."""
    rows = done[(done["equal"] == LANDMARKS) & done["trace_error"].notna()]
    rows = rows[rows["best_trace_error"] > LEFT]
    said = []
    for setting, mine in rows.groupby("setting", sort=False):
        over = {
            str(name): over_units(
                x["trace_error"] / x["best_trace_error"], x["source"], ratios=True
            )
            for name, x in mine.groupby("selector")
        }
        names = (
            f"{name} {number(over[name].value)}" for name in sorted(over, key=over.__getitem__)
        )
        said.append(f"{setting}: {joined(names)}")
    return (
        "Trace of the kernel that is left, over the least that any matrix of the rank leaves where "
        f"that is above {LEFT:g}, in the median over the inputs, each the geometric mean over "
        f"samples and ranks: {'; '.join(said)}."
        if said
        else ""
    )


def _over_sources(each: pd.Series) -> str:
    """The median over the inputs of ratios that have one in their index, in words."""
    source = pd.Series(each.index.get_level_values("source"), each.index)
    return number(over_units(each, source, ratios=True).value)


def _times(done: pd.DataFrame) -> str:
    """What equal counted work is in time."""
    work = done[done["equal"] == WORK]
    if work.empty:
        return ""
    allowance = sorted(work["allowance"].unique())[len(work["allowance"].unique()) // 2]
    rows = work[work["allowance"] == allowance]
    n = rows["n"].max()
    rows = rows[rows["n"] == n]
    said: list[str] = []
    for setting, mine in rows.groupby("setting", sort=False):
        times = {str(name): timing(x, "time") for name, x in mine.groupby("selector", sort=False)}
        names = joined(
            f"{name} {times[name].words()}"
            for name in sorted(times, key=lambda x: np.nan_to_num(times[x].value, nan=np.inf))
        )
        if not any(one.endswith(names) for one in said):  # settings of the same cost are timed once
            said.append(f"{setting}: {names}")
    return (
        f"At {_words(WORK, allowance)} of exact attention and n = {n:g}, the time of a call "
        f"over that of exact attention, selection included: {'; '.join(said)}. Tokens "
        "chosen in turn take a pass each, which counted work does not see."
        if said
        else ""
    )


def _selector_table(setting: str, rows: pd.DataFrame) -> Table:
    columns = _allowances(rows)
    seeds = rows.groupby(["selector", "allowance", "source"])["output_error"].median()
    errors = seeds.groupby(["selector", "allowance"]).median()
    trivial = rows["output_error"] >= rows["uniform_error"].clip(upper=1.0)
    hopeless = trivial.groupby(rows["selector"]).mean()
    near = {
        (equal, tau): _within(rows, tau).loc[(setting, equal)]
        for equal in rows["equal"].unique()
        for tau in (1.0, 1.25, 2.0)
    }
    body: list[list[Cell]] = []
    for selector in rows["selector"].unique():
        cells: list[Cell] = [selector]
        cells += [
            short(errors[selector, allowance]) if (selector, allowance) in errors.index else ""
            for _, allowance in columns
        ]
        cells += ["" if np.isnan(x[selector]) else f"{x[selector]:.2f}" for x in near.values()]
        body.append([*cells, f"{hopeless[selector]:.2f}"])
    names = [_words(*column).split(" ")[0] for column in columns]
    taus = [f"×{tau:g}" for _, tau in near]
    return {
        "caption": f"{setting[:1].upper()}{setting[1:]}: median over the inputs of the output "
        "error, itself a median over seeds, "
        "by landmarks, and by share of the work; the share of inputs and allowances on which the "
        "error is within 1, 1.25 and 2 times the least of all selectors, first at equally many "
        "landmarks, then at equal work, where that was tried; and the share of cells without "
        "skill. Selectors on grids: images alone.",
        "header": ["selector", *names, *taus, "no skill"],
        "rows": body,
        "left": 1,
    }


def _winner_table(setting: str, rows: pd.DataFrame) -> Table:
    columns = _allowances(rows)
    keys = ["source", "allowance", "selector"]
    errors = rows.groupby(keys)["output_error"].median().unstack()
    body: list[list[Cell]] = []
    for source in rows["source"].unique():
        cells: list[Cell] = [str(source)]
        for _, allowance in columns:
            if (source, allowance) not in errors.index:
                cells.append("")
                continue
            found = errors.loc[(source, allowance)]
            cells.append([str(found.idxmin()), short(found.min())])
        body.append(cells)
    return {
        "caption": f"{setting[:1].upper()}{setting[1:]}: the selector of the least output error, "
        "and that error, by input; at equally many landmarks, then within a share of the work of "
        "exact attention.",
        "header": ["input", *(_words(*column) for column in columns)],
        "rows": body,
        "left": 1,
    }
