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
from softlab.report.intervals import Median
from softlab.report.intervals import median as over_units
from softlab.report.numbers import Clause, Facts, joined, listed, number, sentence, short
from softlab.report.profiles import ROUNDING, known_to, shares_within
from softlab.report.rows import finished
from softlab.report.timings import Timing, timing

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
    paragraphs = [*_helps(done), _near(done), _bounds(done), _traces(done), _times(done)]
    return [text for text in paragraphs if text]


GAIN: tuple[Clause, ...] = (
    "For {setting}, landmarks by k-means make {{}} times the output error of as many uniform "
    "draws, ",
    (
        "inputs",
        "and {work} times at equal work, which counts how they are chosen (less error on {less} of "
        "{inputs} inputs)",
    ),
    ("by_number_alone", "not counting the work of choosing them"),
)


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """What k-means gains over uniform draws at equal numbers, and at equal work."""
    done = _done(table)
    for setting, rows in done.groupby("setting", sort=False):
        equal, work = (
            ratios(rows[rows["equal"] == what], ASKED[0], RIVALS[0]) for what in (LANDMARKS, WORK)
        )
        text = sentence(GAIN, {
            "setting": setting,
            "work": work.median(),
            "less": (work < 1).sum(),
            "inputs": len(work),
            "by_number_alone": work.empty,
        })  # fmt: skip
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


AT = {LANDMARKS: "equally many landmarks", WORK: "equal work"}
HELPS = (
    "{setting}: the output error is, in the median over the inputs (with its interval, 95 % for "
    "all such intervals together, and on how many it is less), {each}.",
)
COMPARED: tuple[Clause, ...] = (
    "{value} times that with {rival} (",
    ("known", "{low} to {high}; "),
    "less on {less} of {units})",
)


def comparisons(done: pd.DataFrame) -> pd.DataFrame:
    """The error with k-means over that with each rival, at equal landmarks and at equal work.

    A row each: the median over the inputs with its interval, and on how many it is less than one.
    """
    each = {
        (setting, equal, asked, rival): of
        for (setting, equal), rows in done.groupby(["setting", "equal"], sort=False)
        for asked in ASKED
        for rival in RIVALS
        if len(of := ratios(rows, asked, rival))
    }
    return pd.DataFrame([
        {
            **dict(zip(("setting", "equal", "asked", "rival"), key, strict=True)),
            **over_units(of, verdicts=len(each))._asdict(),
            "less": (of < 1).sum(),
        }
        for key, of in each.items()
    ], columns=["setting", "equal", "asked", "rival", *Median._fields, "less"])  # fmt: skip


def _helps(done: pd.DataFrame) -> Iterator[str]:
    for setting, mine in comparisons(done).groupby("setting", sort=False):
        each = []
        for (equal, asked), rows in mine.groupby(["equal", "asked"], sort=False):
            words = joined(sentence(COMPARED, x) for x in rows.to_dict("records"))
            each.append(f"at {AT[equal]} with {asked} {words}")
        yield sentence(HELPS, {"setting": _capital(setting), "each": "; ".join(each)})


def _capital(setting: object) -> str:
    return f"{str(setting)[:1].upper()}{str(setting)[1:]}"


NEAR = (
    "Within a quarter of the least error of all selectors are most often: {each} (in parentheses: "
    "on how many of the inputs and allowances that it takes part in). So few inputs tell little "
    "apart: {sure}.",
)


def _near(done: pd.DataFrame) -> str:
    shares = _within(done, 1.25)
    each = []
    for (setting, equal), mine in shares.iterrows():
        best = mine.dropna().sort_values(ascending=False, kind="stable").head(3)
        names = joined(f"{name} ({100 * x:.0f} %)" for name, x in best.items())
        each.append(f"{setting} at equal {equal}, {names}")
    sure = known_to(done["source"].nunique(), int(shares.notna().sum().sum()))
    return sentence(NEAR, {"each": "; ".join(each), "sure": sure})


BOUNDS = (
    "With the landmarks that do best, chosen afterwards, the error of the matrix is this many "
    "times that of the best matrix of the rank, in the median over the inputs, each the geometric "
    "mean over the ranks: {each}.",
)


def bounds(done: pd.DataFrame) -> dict[str, float]:
    """By setting: the error with the best landmarks over that of the best matrix of the rank."""
    found = {}
    for setting, mine in done[done["equal"] == LANDMARKS].groupby("setting", sort=False):
        keys = ["source", "allowance"]
        errors = mine.groupby([*keys, "selector"])["matrix_error"].median().groupby(keys).min()
        over = errors / mine.groupby(keys)["best_error"].median().clip(lower=ROUNDING)
        source = pd.Series(over.index.get_level_values("source"), over.index)
        found[str(setting)] = over_units(over, source, ratios=True).value
    return found


def _bounds(done: pd.DataFrame) -> str:
    each = [f"{number(x)} ({setting})" for setting, x in bounds(done).items()]
    return sentence(BOUNDS, {"each": each} if each else {})


TRACES = (
    "Trace of the kernel that is left, over the least that any matrix of the rank leaves where "
    f"that is above {LEFT:g}, in the median over the inputs, each the geometric mean over samples "
    "and ranks: {each}.",
)


def traces(done: pd.DataFrame) -> dict[str, dict[str, Median]]:
    """By setting and selector, least first: the trace left over the least that can be left."""
    rows = done[(done["equal"] == LANDMARKS) & done["trace_error"].notna()]
    rows = rows[rows["best_trace_error"] > LEFT]
    found: dict[str, dict[str, Median]] = {}
    for setting, mine in rows.groupby("setting", sort=False):
        each = {
            str(name): over_units(
                x["trace_error"] / x["best_trace_error"], x["source"], ratios=True
            )
            for name, x in mine.groupby("selector")
        }
        found[str(setting)] = dict(sorted(each.items(), key=lambda item: item[1]))
    return found


def _traces(done: pd.DataFrame) -> str:
    each = [
        f"{setting}: {joined(f'{name} {number(x.value)}' for name, x in mine.items())}"
        for setting, mine in traces(done).items()
    ]
    return sentence(TRACES, {"each": "; ".join(each)} if each else {})


TIMES = (
    "At {work} of exact attention and n = {n:g}, the time of a call over that of exact attention, "
    "selection included: {each}. Tokens chosen in turn take a pass each, which counted work does "
    "not see.",
)


def times(done: pd.DataFrame) -> Facts:
    """At the middle share of the work and the greatest length: each selector's time, by setting."""
    work = done[done["equal"] == WORK]
    if work.empty:
        return {}
    shares = sorted(work["allowance"].unique())
    share = shares[len(shares) // 2]
    rows = work[work["allowance"] == share]
    rows = rows[rows["n"] == rows["n"].max()]
    each = {
        str(setting): {str(x): timing(of, "time") for x, of in mine.groupby("selector", sort=False)}
        for setting, mine in rows.groupby("setting", sort=False)
    }
    return {"work": _words(WORK, share), "n": rows["n"].max(), "times": each}


def _times(done: pd.DataFrame) -> str:
    found = times(done)
    each: list[str] = []
    for setting, of in found.get("times", {}).items():
        names = joined(
            f"{name} {of[name].words()}" for name in sorted(of, key=lambda x: _slow(of[x]))
        )
        if not any(one.endswith(names) for one in each):  # settings of the same cost are timed once
            each.append(f"{setting}: {names}")
    return sentence(TIMES, {**found, "each": "; ".join(each)} if each else {})


def _slow(of: Timing) -> float:
    """Its place in the order: after all others where it is withheld."""
    return float(np.nan_to_num(of.value, nan=np.inf))


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
        "caption": f"{_capital(setting)}: median over the inputs of the output "
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
        "caption": f"{_capital(setting)}: the selector of the least output error, "
        "and that error, by input; at equally many landmarks, then within a share of the work of "
        "exact attention.",
        "header": ["input", *(_words(*column) for column in columns)],
        "rows": body,
        "left": 1,
    }
