"""Error budgets: which cause dominates, what convergence does, what precision costs.

Read are the columns of ``studies/budget``: ``status``, ``method``, ``solver``, ``source``,
``precision``, ``op.rank``, ``steps``, ``uniform_error``, and those of ``measures.error_budget``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline, headline
from softlab.report.numbers import Clause, Facts, joined, listed, number, sentence, short
from softlab.report.rows import finished

from .columns import CONVERGED, PUBLISHED, SHIFTED, SUBJECT, soft

PARTS = ("landmarks", "normaliser", "solve", "precision")
NOTABLE = 0.01
"""A change of the error by less than this part of it is called none."""
BEYOND = f" by more than {100 * NOTABLE:g} %"
SIZES = [f"{part}_error" for part in (*PARTS, "interaction", "converged", "budget")]
DRAWN = 0.01
APART = 0.1
"""A part of the precision beyond this makes the inverse in float32 another."""
NEEDED = {
    *("status", "method", "solver", "source", "precision", "op.rank", "steps", "uniform_error"),
    *(f"{part}_share" for part in PARTS),
    *SIZES,
}


def scope(table: pd.DataFrame) -> str:
    """The methods, the inputs, ranks and precisions."""
    done = finished(table, NEEDED)
    if done.empty:
        return ""
    ranks = joined(sorted(int(rank) for rank in done["op.rank"].unique()))
    return (
        f"Methods: {listed(done['method'].unique())}, with {ranks} landmarks. Inputs: "
        f"{joined(done['source'].unique())}. Precisions: {joined(done['precision'].unique())}."
    )


def findings(table: pd.DataFrame) -> list[str]:
    """What convergence does, where errors come from, the normalisers, and precision."""
    done = finished(table, NEEDED)
    if done.empty:
        return []
    points = _points(done)
    paragraphs = (
        filter(None, (sentence(WORDS[name], found) for name, found in facts(table).items())),
        [*_dominant(points), *_normalisers(points), *_softs_solve(points)],
        [*_precision(points), *_interaction(points)],
    )
    return [text for text in map(" ".join, paragraphs) if text]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """What an exact inverse of the core would change, of two published methods."""
    done = finished(table, NEEDED)
    if done.empty:
        return
    points = _points(done)
    points = points[(points["solver"] == PUBLISHED) & (points["precision"] == "float32")]
    for method in (SUBJECT, soft("none")):
        rows = points[points["method"] == method]
        text = (
            f"With its core, the kernel of the landmarks, inverted exactly {method} errs {{}} "
            "times as much as with its published number of steps"
        )
        change = rows["converged_error"] / rows["budget_error"]
        yield from headline(
            text, change, "inputs", unit=rows["source"], nested="ranks", ratios=True
        )


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """The budget of each method; Nystromformer's inverse on each input."""
    done = finished(table, NEEDED)
    if done.empty:
        return
    points = _most(_points(done))
    points = points[~_swept(points)]
    body: list[list[Cell]] = []
    before = None
    for (method, solver), mine in points.groupby(["method", "solver"], sort=False):
        wide = mine[mine["precision"] == "float32"]
        half = mine[mine["precision"] == "bfloat16"]
        cells = [short(wide[column].median(), 2) for column in SIZES]
        cells.insert(4, short(half["precision_error"].median(), 2))
        body.append([str(method) if method != before else "", str(solver), *cells])
        before = method
    yield {
        "caption": f"Relative sizes of the parts with {points['op.rank'].max():g} landmarks, "
        "medians over the inputs, of runs in float32; below float32 and bfloat16 the part of that "
        "precision. Converged: the error with the core inverted exactly, in float64. Parts can "
        "cancel.",
        "header": ["method", "inverse", "land- marks", "norma- liser", "solve", "float32",
                   "bfloat16", "inter- action", "con- verged", "error"],
        "rows": body,
        "left": 2,
    }  # fmt: skip
    yield from _by_input(points)


def against_steps(table: pd.DataFrame) -> pd.DataFrame:
    """Rows to draw: the error and its parts at each number of steps, and the mean of v.

    Parts below ``DRAWN`` are left out: those of a converged inverse would hide the others.
    """
    done = finished(table, NEEDED)
    rows = done[_of(done, SUBJECT) & (done["precision"] == "float32")]
    rows = _most(rows[_swept(rows) | (rows["solver"] == PUBLISHED)])
    drawn = {part: f"{part}_error" for part in PARTS[:3]}
    made = [
        rows.assign(part=name, size=rows[column])
        for name, column in ({"error": "budget_error"} | drawn).items()
    ]
    made = [part[part["size"] >= DRAWN] for part in made]
    mean = rows.assign(part="mean of v", size=rows["uniform_error"], steps=None)
    return pd.concat([*made, mean.astype({"steps": float})])


def _points(done: pd.DataFrame) -> pd.DataFrame:
    """Medians over the seeds: one row a method, solver, rank, input and precision."""
    keys = ["method", "solver", "op.rank", "source", "precision"]
    columns = ["steps", "uniform_error", *(f"{part}_share" for part in PARTS), *SIZES]
    return done.groupby(keys, sort=False)[columns].median().reset_index()


def _swept(rows: pd.DataFrame) -> pd.Series:
    return rows["solver"].str.endswith("steps")


def _of(rows: pd.DataFrame, method: str, solver: str = "") -> pd.Series:
    chosen = rows["method"] == method
    return chosen & (rows["solver"] == solver) if solver else chosen


def _most(rows: pd.DataFrame) -> pd.DataFrame:
    """Those of the largest rank."""
    return rows[rows["op.rank"] == rows["op.rank"].max()]


def _single(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["precision"] == "float32"]


def facts(table: pd.DataFrame) -> dict[str, Facts]:
    """What the first paragraph says of Nystromformer's inverse at the greatest rank, in float32."""
    done = finished(table, NEEDED)
    if done.empty:
        return {}
    points = _points(done)
    rows = _most(_single(points[_of(points, SUBJECT)]))
    return {
        "inverted": _inverted(_most(_single(points[_of(points, SUBJECT, PUBLISHED)]))),
        "steps": _along(_most(_single(rows[_swept(rows) | (rows["solver"] == PUBLISHED)]))),
        "cut-off": _cut_off(_most(_single(points[_of(points, SUBJECT, CONVERGED)]))),
        "ridge": _ridge(rows),
    }


WORDS: dict[str, tuple[Clause, ...]] = {
    "inverted": (
        "Inverting Nystromformer's core exactly instead of by its published steps, with {rank} "
        f"landmarks, makes the error larger{BEYOND} on {{worse}} of {{inputs}} inputs",
        ("worse", ", "),
        ("worst_of_several", "most on "),
        ("worse", "{worst} from {worst_before} to {worst_after}"),
        ("lost", "; on {lost} of them it turns an answer that beats the mean of v into one that "
                 "does not"),
        ". It makes it smaller on {better}",
        ("better", ", "),
        ("best_of_several", "most on "),
        ("better", "{best} from {best_before} to {best_after}"),
        ".",
    ),
    "steps": (
        "Along the steps, from {first:g} to {last:g}, the error falls and rises again"
        f"{BEYOND} on {{turned}} of {{inputs}} inputs",
        ("turned", ", with its least at {least:g} to {most:g} steps: the number of steps is a "
                   "regulariser"),
        ".",
    ),
    "cut-off": (
        "On {apart} inputs the exact inverse in float32 is another than in float64, by more than "
        f"{APART:g} of the target: the cut-off of small singular values lies higher and "
        "regularises too, most on {most}, where the error is {float64} in float64 and {float32} in "
        "float32.",
    ),
    "ridge": (
        f"With a ridge of 0.01 and an exact inverse of that the error is larger{BEYOND} than with "
        "the published steps on {worse} of {inputs} inputs and smaller on {better}.",
    ),
}  # fmt: skip


def _example(name: str, rows: pd.DataFrame, before: str, after: str) -> Facts:
    """The input of the greatest change."""
    if rows.empty:
        return {}
    ratio = rows[after] / rows[before]
    most = rows.loc[(ratio if ratio.median() > 1 else 1 / ratio).idxmax()]
    said = {"": most["source"], "_before": most[before], "_after": most[after]}
    return {f"{name}{x}": y for x, y in said.items()} | {f"{name}_of_several": len(rows) > 1}


def _inverted(rows: pd.DataFrame) -> Facts:
    """On how many inputs an exact inverse is worse than the published six steps, and better."""
    if rows.empty:
        return {}
    before, after = "budget_error", "converged_error"
    change = rows[after] / rows[before]
    worse, better = rows[change > 1 + NOTABLE], rows[change < 1 - NOTABLE]
    trivial = worse["uniform_error"]
    return {
        "rank": int(rows["op.rank"].max()),
        "inputs": len(rows),
        "worse": len(worse),
        "lost": int(((worse[after] > trivial) & (worse[before] < trivial)).sum()),
        "better": len(better),
        **_example("worst", worse, before, after),
        **_example("best", better, before, after),
    }


def _along(rows: pd.DataFrame) -> Facts:
    """Where the error is least along the steps."""
    steps = rows["steps"]
    if steps.nunique() < 2:
        return {}
    best = rows.loc[rows.groupby("source", sort=False)["budget_error"].idxmin()]
    last = rows[steps == steps.max()].set_index("source")["budget_error"]
    rises = best["source"].map(last) > (1 + NOTABLE) * best["budget_error"]
    turned = best[rises & (best["steps"] > steps.min())]
    return {
        "first": steps.min(),
        "last": steps.max(),
        "inputs": len(best),
        "turned": len(turned),
        "least": turned["steps"].min(),
        "most": turned["steps"].max(),
    }


def _cut_off(rows: pd.DataFrame) -> Facts:
    """The exact inverse in float32, whose cut-off regularises."""
    apart = rows[rows["precision_error"] > APART]
    if apart.empty:
        return {}
    most = apart.loc[(apart["converged_error"] / apart["budget_error"]).idxmax()]
    return {
        "apart": len(apart),
        "most": most["source"],
        "float64": most["converged_error"],
        "float32": most["budget_error"],
    }


def _ridge(rows: pd.DataFrame) -> Facts:
    """A ridge beside the published steps."""
    errors = rows.pivot_table("budget_error", "source", "solver")
    errors = errors.reindex(columns=[PUBLISHED, SHIFTED]).dropna()
    if errors.empty:
        return {}
    change = errors[SHIFTED] / errors[PUBLISHED]
    return {
        "inputs": len(errors),
        "worse": int((change > 1 + NOTABLE).sum()),
        "better": int((change < 1 - NOTABLE).sum()),
    }


def _dominant(points: pd.DataFrame) -> Iterator[str]:
    """Which cause raises the squared error most, method by method."""
    rows = _single(points[points["solver"] == PUBLISHED])
    if rows.empty:
        return
    shares = rows[[f"{part}_share" for part in PARTS]].set_axis(list(PARTS), axis=1)
    largest = shares.idxmax(axis=1)
    words = []
    for method, names in largest.groupby(rows["method"], sort=False):
        counts = names.value_counts()
        words.append(
            f"{method} " + joined(f"the {name} on {count}" for name, count in counts.items())
        )
    each = len(rows) // rows["method"].nunique()
    yield (
        f"What raises the squared error most, on {each} pairs of an input and a rank, each method "
        f"as published: for {'; for '.join(words)}."
    )
    less = rows[rows["solve_share"] < -NOTABLE]
    if len(less):
        of = less["method"].value_counts()
        yield (
            f"The unfinished solve makes the squared error smaller{BEYOND} on {len(less)} of all "
            f"{len(rows)}: "
            f"{joined(f'{count} of {method}' for method, count in of.items())}."
        )


def _normalisers(points: pd.DataFrame) -> Iterator[str]:
    """Soft's symmetric form beside the published one; own degrees beside the target's."""
    rows = _most(_single(points[points["solver"] == PUBLISHED]))
    sizes = rows.groupby("method")["normaliser_error"].median()
    pair = (soft("symmetric"), soft("published"))
    if set(pair) <= set(sizes.index):
        yield (
            f"Soft's published normaliser, the degrees of the core, contributes a part of "
            f"{number(sizes[pair[1]])} in the median, the symmetric form's own degrees one of "
            f"{number(sizes[pair[0]])}."
        )
    helped = rows[(rows["normaliser_share"] < -NOTABLE)]
    if len(helped):
        of = helped["method"].value_counts()
        yield (
            "The error of a method's own row sums cancels part of the error of its landmarks: "
            "with exact row sums the error would be larger for "
            f"{joined(f'{method} on {count} of the inputs' for method, count in of.items())}."
        )


def _softs_solve(points: pd.DataFrame) -> Iterator[str]:
    """Whether SOFT's twenty steps leave an error that matters."""
    rows = points[points["method"].str.startswith("Soft") & (points["solver"] == PUBLISHED)]
    rows = _single(rows)
    if rows.empty:
        return
    part = rows["solve_error"] / rows["budget_error"]
    yield (
        f"SOFT's twenty Newton steps leave a part of median {number(part.median())} of its error, "
        f"at most {number(part.max())} ({rows.loc[part.idxmax(), 'source']})."
    )


def _precision(points: pd.DataFrame) -> Iterator[str]:
    """What float32 and bfloat16 cost, the exact inverse apart."""
    rows = points[(points["solver"] != CONVERGED) & ~_swept(points)]
    for name, mine in rows.groupby("precision", sort=False):
        yield (
            f"In {name} rounding contributes {number(mine['precision_error'].median())} (median) "
            "of the size of the output, and at most "
            f"{number((mine['precision_error'] / mine['budget_error']).max())} of the error"
            + (
                ", the rounding of the output: half precision is computed in float32."
                if name == "bfloat16"
                else "."
            )
        )


def _interaction(points: pd.DataFrame) -> Iterator[str]:
    """How far causes alone fail to account for the error."""
    rows = _single(points[points["solver"] == PUBLISHED])
    if rows.empty:
        return
    ratio = (rows["interaction_error"] / rows["budget_error"]).groupby(rows["method"], sort=False)
    words = (f"{number(size)} for {method}" for method, size in ratio.median().items())
    yield (
        "Causes do not act alone: what solve and precision do by themselves, on exact degrees, "
        f"leaves unexplained, as a share of the error (medians), {joined(words)}."
    )


def _by_input(points: pd.DataFrame) -> Iterator[Table]:
    """Nystromformer's error by input, as published, converged and shifted."""
    rows = _single(points[_of(points, SUBJECT)])
    errors = rows.pivot_table("budget_error", "source", "solver", sort=False)
    if PUBLISHED not in errors:
        return
    exact = rows[rows["solver"] == PUBLISHED].set_index("source")
    body: list[list[Cell]] = []
    for source, row in errors.iterrows():
        here = exact.loc[source]
        columns = ("landmarks_error", "normaliser_error", "solve_error")
        cells = [short(here[column], 2) for column in columns]
        cells += [short(here["budget_error"], 2), short(here["converged_error"], 2)]
        cells += [short(row.get(name, float("nan")), 2) for name in (CONVERGED, SHIFTED)]
        body.append([str(source), *cells, short(here["uniform_error"], 2)])
    yield {
        "caption": f"Nystromformer with {rows['op.rank'].max():g} landmarks, medians of the seeds: "
        "the parts as published, and the error as published, with an exact inverse in float64 and "
        "in float32, and with a ridge; beside them that of the mean of v.",
        "header": ["input", "land- marks", "norma- liser", "solve", "published", "exact, float64",
                   "exact, float32", "ridge 0.01", "mean of v"],
        "rows": body,
        "left": 1,
    }  # fmt: skip
