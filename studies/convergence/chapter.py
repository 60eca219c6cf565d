"""Iterative pseudo-inverses: products, predictions, limiting accuracy, spoiling and filters.

Read are the columns of ``studies/convergence``: of the atlas ``status``, ``method``,
``scaling``, ``precision``, ``spectrum``, ``core``, ``kappa``, ``condition``, ``rank``,
``observed_steps``, ``predicted_steps``, ``observed_matmuls``, ``declared_order``,
``observed_order``, ``declared_growth``, ``observed_growth``, ``c``, ``c_purified``,
``eps_kappa``, ``solve_status``, ``tolerance``, ``setup_matmuls``, and of the published step counts
``published_steps``, ``published_residual``, ``published_error``, ``freedom``, ``freedom_share``,
``cutoff``; of the study of spoiling ``method``, ``step``, ``error``, ``purified``, ``onset`` and
growth.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.headlines import SMALL, Headline, surprise
from softlab.report.numbers import Clause, Facts, joined, listed, number, sentence, short, span
from softlab.report.rows import complete, finished

from .columns import CHEBYSHEV, DEFAULT, DUPLICATES, GROWN, MINIMAX, NEWTON, PUBLISHED

ATLAS = {
    *("method", "scaling", "precision", "spectrum", "core", "kappa", "condition", "rank"),
    *("observed_steps", "predicted_steps", "observed_matmuls", "setup_matmuls", "declared_order"),
    *("observed_order", "declared_growth", "observed_growth", "c", "c_purified", "eps_kappa"),
    *("solve_status", "tolerance"),
    *PUBLISHED,
}
SPOILING = {"method", "step", "inverse_error", "purified", *GROWN}
INVERTED = 0.1
"""The residual on the range above which a core does not count as inverted: some singular value is
then a tenth short."""
USUAL = 1000.0
"""The condition number of the sentences, where the table has it."""
SHARE = 0.6
"""Of Newton's products: what the polynomials that know their interval are to take at most."""
NEAR = 0.1
"""How near an observed order is to the declared one."""
CONSTANT = (0.01, 1.0)
"""Between these the constant of the rule of thumb, least error = c eps kappa, is expected."""


def scope(table: pd.DataFrame) -> str:
    """The methods, and the matrices by kind."""
    if not complete(table, {"method", "spectrum", "core"}):
        return ""
    said = f"Methods: {listed(table['method'].dropna().unique())}."
    known = table.loc[table["core"].isna(), "spectrum"].dropna().unique()
    said += f" Constructed spectra: {joined(known)}." if len(known) else ""
    cores = table.loc[table["core"].notna(), ["core", "spectrum"]].drop_duplicates()
    if len(cores):
        counts = cores.groupby("core", sort=False).size().items()
        said += " Cores of attention: " + joined(f"{n} of {core}" for core, n in counts) + "."
    return said


def findings(table: pd.DataFrame) -> list[str]:
    """Paragraphs on cost, predictions, orders, limiting accuracy, published counts, spoiling."""
    done = _done(table)
    if done.empty:
        return []
    if _of_spoiling(table):
        paragraphs = [[*_spoiling(done)]]
    else:
        own = done[done["scaling"] == DEFAULT]
        paragraphs = [
            [*_products(own)],
            [*_scalings(done)],
            [*_predictions(done), *_orders(own)],
            [*_limits(own)],
            [*_published(own)],
            [*_growth(own), *_blind(own)],
        ]
    return [" ".join(sentences) for sentences in paragraphs if sentences]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """How well the scalar maps predict the steps; how near the growth is to the declared one."""
    done = _done(table)
    if not _of_spoiling(table):
        gap, lost = _gaps(done), _lost(done)
        if len(gap):
            yield {
                "text": "Where an iteration reaches its tolerance its scalar map predicts the "
                "number of steps exactly in {} runs.",
                "value": f"{(gap == 0).sum()} of {len(gap)}",
                "interval": f"worst difference {gap.max():g}; {len(lost)} more runs never reach "
                "what their map says that they reach",
                "effect": surprise(float((gap != 0).mean())) + SMALL,
            }
    else:
        risen = _risen(done)
        if len(risen):
            factors = risen.groupby("declared_growth").groups.items()
            each = "; ".join(f"{number(x)} of {joined(names)}" for x, names in factors)
            yield {
                "text": "After convergence on a matrix of half rank an iteration multiplies its "
                "error at each step by the factor that it declares, to a relative {}.",
                "value": number(
                    (risen["observed_growth"] / risen["declared_growth"] - 1).abs().max()
                ),
                "interval": f"worst of {len(risen)} methods; declared are {each}",
                "effect": SMALL,
            }


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Products by method and scaling, limiting accuracy, published counts; growth a step."""
    done = _done(table)
    if done.empty:
        return
    if _of_spoiling(table):
        yield _spoiling_table(done)
    else:
        yield from _products_table(done)
        yield from _limits_table(done)
        yield from _published_tables(done)


def _of_spoiling(table: pd.DataFrame) -> bool:
    """Whether it is the table of the second study, which has an axis that the atlas has not."""
    return "step" in table


def _done(table: pd.DataFrame) -> pd.DataFrame:
    """The finished rows of either study."""
    return finished(table, SPOILING if _of_spoiling(table) else ATLAS)


def _constructed(rows: pd.DataFrame, precision: str = "float64") -> pd.DataFrame:
    """Rows on known spectra with a condition number to speak of."""
    kept = rows["core"].isna() & (rows["kappa"] > 1) & (rows["precision"] == precision)
    return rows[kept]


def _at_condition(rows: pd.DataFrame) -> tuple[float, pd.DataFrame]:
    """The condition number of the sentences, and the rows at it."""
    kappa = USUAL if (rows["kappa"] == USUAL).any() else float(rows["kappa"].max())
    return kappa, rows[rows["kappa"] == kappa]


def _shared(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows on spectra that every value of ``column`` is tried on: others are no comparison."""
    tried = rows.groupby("spectrum")[column].transform("nunique")
    return rows[tried == rows[column].nunique()]


def _needed(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Products by spectrum, a column for each value of ``column``: infinite where none suffice."""
    found = rows["observed_matmuls"].fillna(np.inf).groupby([rows["spectrum"], rows[column]]).max()
    return found.unstack()


def _ranges(needed: pd.DataFrame) -> str:
    """From the least to the greatest number of products of each column, the smallest first."""
    said = []
    for name in needed.max().sort_values(kind="stable").index:
        never = needed.index[np.isinf(needed[name])]
        arrived = needed[name].drop(never)
        words = [f"{span(arrived, '{:g}'.format)} ({name})"] if len(arrived) else []
        if len(never):
            words.append(f"never on {joined(never)}" + ("" if words else f" ({name})"))
        said.append(", ".join(words))
    return "; ".join(said)


def _products(own: pd.DataFrame) -> Iterator[str]:
    rows = _constructed(own)
    if rows.empty:
        return
    kappa, at = _at_condition(rows)
    at = _shared(at, "method")
    needed = _needed(at, "method")
    if NEWTON not in needed:
        return
    yield (
        f"At condition number {kappa:g} a residual of {number(at['tolerance'].iloc[0])} in float64 "
        f"takes so many products, from the least to the greatest of {len(needed)} spectra: "
        f"{_ranges(needed)}."
    )
    dear = needed + at.pivot_table(index="spectrum", columns="method", values="setup_matmuls")
    for method in (name for name in needed if str(name).startswith((CHEBYSHEV, MINIMAX))):
        yield (
            f"{method} takes of Newton's products {_verdict(needed, method)}; with what the bounds "
            f"and scalings cost {_verdict(dear, method)}."
        )
    for minimax in (name for name in needed if str(name).startswith(MINIMAX)):
        rival = f"{CHEBYSHEV} {str(minimax).split()[-1]}"
        if rival in needed:
            over = needed.index[needed[minimax] > needed[rival]]
            more = (
                f"more than {rival} on {joined(over)}" if len(over) else f"never more than {rival}"
            )
            yield f"{minimax} takes {more}."


def _verdict(needed: pd.DataFrame, method: str) -> str:
    """A method's share of Newton's products, where Newton arrives."""
    ratio = needed[method] / needed[NEWTON].replace(np.inf, np.nan)
    over = ratio.index[ratio > SHARE]
    where = f"above {SHARE:g} on {joined(over)}" if len(over) else f"at most {SHARE:g} everywhere"
    return f"{span(ratio)}, {where}"


def _scalings(done: pd.DataFrame) -> Iterator[str]:
    newton = _constructed(done[done["method"] == NEWTON])
    if newton.empty or newton["scaling"].nunique() < 2:
        return
    kappa, at = _at_condition(newton)
    needed = _needed(_shared(at, "scaling"), "scaling")
    if len(needed):
        yield (
            "By its scaling Newton's iteration takes so many products, from the least to the "
            f"greatest of the {len(needed)} spectra of condition number {kappa:g} that every "
            f"scaling is tried on: {_ranges(needed)}."
        )
    never = done[(done["method"] == NEWTON) & done["observed_steps"].isna() & done["core"].isna()]
    never = never[never["precision"] == "float64"]
    for scaling, lost in never.groupby("scaling", sort=False):
        ways = joined(f"{n} {status}" for status, n in lost["solve_status"].value_counts().items())
        yield (
            f"Under {scaling} it never arrives in {len(lost)} cases, on "
            f"{joined(lost['spectrum'].unique())}; solve says {ways}."
        )


def _gaps(done: pd.DataFrame) -> pd.Series:
    """Predicted less observed steps, of the runs that arrive."""
    return (done["predicted_steps"] - done["observed_steps"]).abs().dropna()


def _lost(done: pd.DataFrame) -> pd.DataFrame:
    """The runs that do not arrive where their map says that they do."""
    return done[done["predicted_steps"].notna() & done["observed_steps"].isna()]


def _predictions(done: pd.DataFrame) -> Iterator[str]:
    for precision, rows in done.groupby("precision", sort=False):
        gap, lost = _gaps(rows), _lost(rows)
        if len(gap):
            yield (
                f"In {precision} the scalar maps predict the observed number of steps exactly in "
                f"{(gap == 0).sum()} of the {len(gap)} runs that arrive; the worst difference is "
                f"{gap.max():g}."
            )
        if len(lost):
            yield (
                f"In {precision} {len(lost)} more runs never reach the tolerance of "
                f"{number(lost['tolerance'].iloc[0])} that the map says they reach, on "
                f"{joined(lost['spectrum'].unique())}: eps kappa there is "
                f"{span(lost['eps_kappa'])}."
            )


def _orders(own: pd.DataFrame) -> Iterator[str]:
    rows = own[own["observed_order"].notna() & (own["precision"] == "float64")]
    if rows.empty:
        return
    far = (rows["observed_order"] - rows["declared_order"]).abs() > NEAR
    yield (
        f"The observed order, where float64 resolves it, is within {NEAR:g} of the declared one in "
        f"{(~far).sum()} of {len(rows)} runs."
    )
    if far.any():
        each = joined(
            f"{len(mine)} of {method}, {span(mine['observed_order'])}"
            f" for {number(mine['declared_order'].iloc[0])}"
            for method, mine in rows[far].groupby("method", sort=False)
        )
        yield f"The others are {each}."


LIMIT: tuple[Clause, ...] = (
    "In {precision}, at full rank, the least error of the {arrived} of {runs} runs that arrive is "
    "c eps kappa with c from {least} to {most}",
    ("outside", f"; outside {CONSTANT[0]:g} to {CONSTANT[1]:g} it is in {{outside}}, on {{where}}"),
    ("one_large_value", ", where one large value makes kappa and the others the error"),
    ".",
)
SINGULAR = (
    "On rank-deficient matrices c is {least} to {most} in float64: errors in the null space have "
    "grown since the first step, and the floor is where they meet the falling error. Closed by "
    "X A X, the least error has c from {closed_least} to {closed_most}. The largest c is that of "
    "{worst} at condition number {at}.",
)
LEFT: tuple[Clause, ...] = (
    "The {steps} steps of {core} leave {left} of {cores} recorded cores with a residual above "
    f"{INVERTED:g}",
    ("left", ": {each}"),
    ".",
)
ONE = (
    "{spectrum} (condition {condition}, residual {residual}, {freedom} of {rank:g} degrees of "
    "freedom)",
)
NEAR_DUPLICATES: tuple[Clause, ...] = (
    "On near-duplicate landmarks:",
    ("good", " up to {good} they invert,"),
    " from condition number {bad} the residual is {residual} or more, and {freedom} of the degrees "
    "of freedom are left at {greatest}.",
)


def limits(own: pd.DataFrame) -> Iterator[Facts]:
    """By precision: the constant of the rule of thumb at full rank, and where it is outside."""
    for precision in own["precision"].unique():
        rows = _constructed(own, precision)
        rows = rows[rows["rank"] == rows["rank"].max()]
        known = rows.dropna(subset="c")
        if len(known):
            where = known.loc[~known["c"].between(*CONSTANT), "spectrum"]
            yield {
                "precision": precision,
                "arrived": len(known),
                "runs": len(rows),
                "least": known["c"].min(),
                "most": known["c"].max(),
                "outside": len(where),
                "where": list(where.unique()),
                "one_large_value": set(where) == {"Spiked"},
            }


def singular_limits(own: pd.DataFrame) -> Facts:
    """The least error on matrices short of full rank."""
    rows = _constructed(own)
    rows = rows[rows["c"].notna() & (rows["rank"] < rows["rank"].max())]
    if rows.empty:
        return {}
    worst = rows.loc[rows["c"].idxmax()]
    return {
        "least": rows["c"].min(),
        "most": rows["c"].max(),
        "closed_least": rows["c_purified"].min(),
        "closed_most": rows["c_purified"].max(),
        "worst": worst["method"],
        "at": worst["kappa"],
    }


def _limits(own: pd.DataFrame) -> Iterator[str]:
    yield from (sentence(LIMIT, found) for found in limits(own))
    yield from filter(None, [sentence(SINGULAR, singular_limits(own))])


def inverted(method: str, mine: pd.DataFrame) -> Facts:
    """What the published steps of a method leave of the cores that it is published for."""
    core = "Soft" if method == NEWTON else "Nystromformer"
    real = mine[mine["core"] == core]
    if real.empty:
        return {}
    left = real[real["published_residual"] > INVERTED].sort_values("condition")
    named = left.rename(columns={"published_residual": "residual"}).to_dict("records")
    return {
        "steps": int(mine["published_steps"].iloc[0]),
        "core": core,
        "left": len(left),
        "cores": len(real),
        "each": "; ".join(sentence(ONE, one) for one in named),
    }


def near_duplicates(mine: pd.DataFrame) -> Facts:
    """To which condition number the published steps invert near-duplicate landmarks."""
    near = mine[mine["core"] == DUPLICATES].sort_values("condition")
    bad = near[near["published_residual"] > INVERTED]
    if bad.empty:
        return {}
    good = near.loc[near["condition"] < bad["condition"].min(), "condition"]
    return {
        "good": good.max() if len(good) else None,
        "bad": bad["condition"].min(),
        "residual": bad["published_residual"].min(),
        "freedom": bad["freedom_share"].iloc[-1],
        "greatest": bad["condition"].max(),
    }


def _published(own: pd.DataFrame) -> Iterator[str]:
    rows = own[own["core"].notna() & own["published_steps"].notna()]
    for method, mine in rows.groupby("method", sort=False):
        said = sentence(LEFT, inverted(str(method), mine))
        yield from filter(None, [said, sentence(NEAR_DUPLICATES, near_duplicates(mine))])


def _growth(own: pd.DataFrame) -> Iterator[str]:
    rows = own[own["observed_growth"].notna() & own["core"].isna()]
    rows = rows[rows["precision"] == "float64"]
    if rows.empty:
        return
    parts = [
        f"{span(mine['observed_growth'])} ({method}, declared "
        f"{number(mine['declared_growth'].iloc[0])})"
        for method, mine in rows.groupby("method", sort=False)
    ]
    worst = (rows["observed_growth"] / rows["declared_growth"] - 1).abs().max()
    yield (
        f"After convergence the error grows a step by {joined(parts)}; the worst of {len(rows)} "
        f"runs is off by a relative {number(worst)}."
    )


def _blind(own: pd.DataFrame) -> Iterator[str]:
    rows = own[own["observed_steps"].isna() & (own["solve_status"] == "CONVERGED")]
    if len(rows):
        yield (
            f"In {len(rows)} runs ({joined(rows['precision'].unique())}) solve calls "
            "converged what never reaches the tolerance here: its residual, relative to A, does "
            "not see singular values below it."
        )


def _risen(done: pd.DataFrame) -> pd.DataFrame:
    """A row a method whose error grows after its floor; onset and growth stand in each of its."""
    first = done.drop_duplicates("method").set_index("method")
    return first[first["observed_growth"].notna()]


def _spoiling(done: pd.DataFrame) -> Iterator[str]:
    risen = _risen(done)
    if risen.empty:
        return
    yield (
        f"{len(risen)} of {done['method'].nunique()} plain iterations lose what they have gained: "
        "the error leaves its floor for good at "
        + joined(
            f"step {one.onset:g} ({method}, then {number(one.observed_growth)} times a step, "
            f"declared {number(one.declared_growth)})"
            for method, one in risen.iterrows()
        )
        + "."
    )
    small = done[done["inverse_error"] < 1e-2]
    after = small[small["step"] >= small["onset"]]
    if len(after):
        yield (
            f"While it is below 0.01, one X A X brings it from at most "
            f"{number(after['inverse_error'].max())} back to at most "
            f"{number(after['purified'].max())}."
        )


def _products_table(done: pd.DataFrame) -> Iterator[Table]:
    rows = _constructed(done)
    conditions = sorted(rows["kappa"].unique())
    for column, label, mine in (
        ("method", "Method", rows[rows["scaling"] == DEFAULT]),
        ("scaling", "Scaling of Newton", rows[rows["method"] == NEWTON]),
    ):
        if mine[column].nunique() < 2:
            continue
        shared = _shared(mine, column)
        lines: list[list[Cell]] = []
        for name, group in shared.groupby(column, sort=False):
            found = (group.loc[group["kappa"] == k, "observed_matmuls"] for k in conditions)
            lines.append([str(name), *map(_spread, found)])
        yield {
            "caption": f"Products to the tolerance in float64 by {column} and condition number: "
            f"median over the {shared['spectrum'].nunique()} constructed spectra that each is "
            "tried on, where never counts as more than any number, and the range of those that "
            "arrive. A dash: it never arrives; in brackets, how many of the spectra are not "
            "reached.",
            "header": [label, *(f"{kappa:g}" for kappa in conditions)],
            "rows": lines,
            "left": 1,
        }


def _spread(found: pd.Series) -> Cell:
    """Median over the range; how many are missing."""
    known = found.dropna()
    lost = f" [{len(found) - len(known)}]" if len(known) < len(found) else ""
    if known.empty:
        return f"–{lost}" if len(found) else ""
    median = found.fillna(np.inf).median()
    middle = f"{median:g}" if np.isfinite(median) else "–"
    return [f"{middle}{lost}", f"{known.min():g}–{known.max():g}"]


def _limits_table(done: pd.DataFrame) -> Iterator[Table]:
    rows = done[(done["scaling"] == DEFAULT) & done["core"].isna() & (done["kappa"] > 1)]
    rows = rows[rows["c"].notna()]
    if rows.empty:
        return
    precisions = list(rows["precision"].unique())
    lines: list[list[Cell]] = []
    for spectrum, mine in rows.groupby("spectrum", sort=False):
        line: list[Cell] = [str(spectrum)]
        for precision in precisions:
            at = mine[mine["precision"] == precision]
            line += [_range(at["c"]), _range(at["c_purified"])]
        lines.append(line)
    header = [word for p in precisions for word in (f"c, {p}", "of X A X")]
    yield {
        "caption": "The constant c of the least error c eps kappa: median over methods and "
        "condition numbers, and the range; beside it that of the iterates closed by X A X.",
        "header": ["Spectrum", *header],
        "rows": lines,
        "left": 1,
    }


def _range(values: pd.Series) -> Cell:
    if values.empty:
        return "–"
    low, high = short(values.min(), 2), short(values.max(), 2)
    return [short(values.median(), 2), f"{low}–{high}"]


def _published_tables(done: pd.DataFrame) -> Iterator[Table]:
    rows = done[done["core"].notna() & done["published_steps"].notna()]
    for method, mine in rows.groupby("method", sort=False):
        steps = int(mine["published_steps"].iloc[0])
        lines: list[list[Cell]] = []
        for core, group in mine.groupby("core", sort=False):
            for i, one in enumerate(group.sort_values("condition").itertuples()):
                needed = "–" if pd.isna(one.observed_steps) else f"{one.observed_steps:g}"
                lines.append(
                    [
                        str(core) if i == 0 else "",
                        str(one.spectrum),
                        short(one.condition),
                        short(one.published_residual),
                        short(one.published_error),
                        short(one.cutoff),
                        f"{one.freedom:.1f} of {one.rank:g}",
                        needed,
                    ]
                )
        if lines:
            yield {
                "caption": f"{method} at its published {steps} steps on cores of attention, in "
                "float64: residual on the range, relative error, cut-off relative to the largest "
                "singular value, degrees of freedom, and the steps that the tolerance takes.",
                "header": ["Core", "Input", "condition", "residual", "error", "cut-off",
                           "freedom", "needed"],
                "rows": lines,
                "left": 2,
            }  # fmt: skip


def _spoiling_table(done: pd.DataFrame) -> Table:
    lines: list[list[Cell]] = []
    for method, mine in done.groupby("method", sort=False):
        best = mine.loc[mine["inverse_error"].idxmin()]
        first = mine.iloc[0]
        lines.append(
            [
                str(method),
                f"{best['step']:g}",
                short(best["inverse_error"]),
                "–" if pd.isna(first["onset"]) else f"{first['onset']:g}",
                short(first["observed_growth"], 4),
                short(first["declared_growth"], 4),
                short(mine["purified"].min()),
            ]
        )
    return {
        "caption": "The least error and its step, the step from which it rises for good, the "
        "growth a step, and the least error of X A X.",
        "header": ["Method", "step", "least error", "onset", "growth", "declared", "X A X"],
        "rows": lines,
        "left": 1,
    }
