"""Iterative pseudo-inverses: products, predictions, limiting accuracy, spoiling and filters.

Read are the columns of ``studies/convergence.py``: of the atlas ``status``, ``method``,
``scaling``, ``precision``, ``spectrum``, ``core``, ``kappa``, ``condition``, ``rank``,
``observed_steps``, ``predicted_steps``, ``observed_matmuls``, ``declared_order``,
``observed_order``, ``declared_growth``, ``observed_growth``, ``c``, ``c_purified``,
``eps_kappa``, ``solve_status``, ``tolerance``, and of the published step counts
``published_steps``, ``published_residual``, ``published_error``, ``freedom``, ``freedom_share``,
``cutoff``; of the study of spoiling ``method``, ``step``, ``error``, ``purified``, ``onset`` and
growth.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from softlab.chapters import Table
from softlab.chapters.headlines import Headline, headline
from softlab.chapters.numbers import joined, number, short

ATLAS = {
    "method", "scaling", "precision", "spectrum", "core", "kappa", "condition", "rank",
    "observed_steps", "predicted_steps", "observed_matmuls", "declared_order", "observed_order",
    "declared_growth", "observed_growth", "c", "c_purified", "eps_kappa", "solve_status",
    "tolerance",
}  # fmt: skip
PUBLISHED = {
    "published_steps", "published_residual", "published_error", "freedom", "freedom_share",
    "cutoff",
}  # fmt: skip
SPOILING = {"method", "step", "error", "purified", "onset", "observed_growth", "declared_growth"}
INVERTED = 0.1
"""The residual on the range above which a core does not count as inverted: some singular value is
then a tenth short."""


def scope(table: pd.DataFrame) -> str:
    """The methods, and the matrices by kind."""
    if not ({"method", "spectrum"} <= set(table.columns)):
        return ""
    said = f"Methods: {joined(table['method'].dropna().unique())}."
    if "core" in table:
        known = table.loc[table["core"].isna(), "spectrum"].dropna().unique()
        said += f" Constructed spectra: {joined(known)}." if len(known) else ""
        cores = table.loc[table["core"].notna(), ["core", "spectrum"]].drop_duplicates()
        if len(cores):
            counts = cores.groupby("core", sort=False).size().items()
            said += " Cores of attention: " + joined(f"{n} of {core}" for core, n in counts) + "."
    return said


def findings(table: pd.DataFrame) -> list[str]:
    """Paragraphs on cost, predictions, orders, limiting accuracy, published counts, spoiling."""
    columns = set(table.columns)
    done = table[table["status"] == "ok"]
    if done.empty:
        return []
    paragraphs: list[list[str]] = []
    if columns >= ATLAS:
        own = done[done["scaling"] == "default"]
        paragraphs += [
            [*_products(own)],
            [*_scalings(done)],
            [*_predictions(done), *_orders(own)],
            [*_limits(own)],
        ]
        if columns >= PUBLISHED:
            paragraphs.append([*_published(own)])
        paragraphs.append([*_growth(own), *_blind(own)])
    elif columns >= SPOILING:
        paragraphs.append([*_spoiling(done)])
    return [" ".join(sentences) for sentences in paragraphs if sentences]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """How well the scalar maps predict the steps; what a closing X A X is worth."""
    done = table[table["status"] == "ok"]
    if set(table.columns) >= ATLAS:
        both = done.dropna(subset=["predicted_steps", "observed_steps"])
        text = "An iteration takes {} times the steps that its scalar map predicts."
        yield from headline(text, both["observed_steps"] / both["predicted_steps"], "runs")
    elif set(table.columns) >= SPOILING:
        last = done.sort_values("step").groupby("method", sort=False).tail(1)
        text = (
            "After convergence on a matrix of half rank an iteration multiplies its error by {} at "
            "each step."
        )
        yield from headline(text, last["observed_growth"], "methods")


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Products by method and scaling, limiting accuracy, published counts; growth a step."""
    columns = set(table.columns)
    done = table[table["status"] == "ok"]
    if done.empty:
        return
    if columns >= ATLAS:
        yield from _products_table(done)
        yield from _limits_table(done)
        if columns >= PUBLISHED:
            yield from _published_tables(done)
    elif columns >= SPOILING:
        yield _spoiling_table(done)


def _constructed(rows: pd.DataFrame, precision: str = "float64") -> pd.DataFrame:
    """Rows on known spectra with a condition number to speak of."""
    kept = rows["core"].isna() & (rows["kappa"] > 1) & (rows["precision"] == precision)
    return rows[kept]


def _products(own: pd.DataFrame) -> Iterator[str]:
    rows = _constructed(own)
    if rows.empty:
        return
    kappa = 1000.0 if (rows["kappa"] == 1000).any() else float(rows["kappa"].max())
    at = rows[rows["kappa"] == kappa]
    needed = at.pivot_table(index="spectrum", columns="method", values="observed_matmuls")
    if "Newton" not in needed:
        return
    tolerance = number(at["tolerance"].iloc[0])
    medians = needed.median().sort_values()
    yield (
        f"At condition number {kappa:g}, to a residual of {tolerance} in float64, the median over "
        f"{len(needed)} spectra is "
        + joined(f"{n:g} products for {method}" for method, n in medians.items())
        + "."
    )
    ratio = needed.div(needed["Newton"], axis=0)
    for method in (name for name in ratio if str(name).startswith(("Chebyshev", "Minimax"))):
        low, high = ratio[method].min(), ratio[method].max()
        verdict = (
            "at most 0.6 everywhere" if high <= 0.6 else f"above 0.6 on {_where(ratio[method])}"
        )
        yield f"{method} takes {number(low)} to {number(high)} of Newton's: {verdict}."
    chebyshev = [name for name in needed if str(name).startswith("Chebyshev")]
    for minimax in (name for name in needed if str(name).startswith("Minimax")):
        degree = str(minimax).split()[-1]
        rival = f"Chebyshev {degree}"
        if rival in chebyshev:
            over = needed.index[needed[minimax] > needed[rival]]
            more = (
                f"more than {rival} on {joined(over)}" if len(over) else f"never more than {rival}"
            )
            yield f"{minimax} takes {more}."


def _where(ratio: pd.Series) -> str:
    return joined(ratio.index[ratio > 0.6])


def _scalings(done: pd.DataFrame) -> Iterator[str]:
    rows = _constructed(done[done["method"] == "Newton"])
    if rows.empty or rows["scaling"].nunique() < 2:
        return
    kappa = 1000.0 if (rows["kappa"] == 1000).any() else float(rows["kappa"].max())
    at = rows[rows["kappa"] == kappa].groupby("scaling", sort=False)["observed_matmuls"].median()
    at = at.dropna().sort_values()
    yield (
        f"By its scaling Newton's iteration takes, in the median at condition number {kappa:g}, "
        + joined(f"{n:g} ({scaling})" for scaling, n in at.items())
        + " products."
    )
    never = done[(done["method"] == "Newton") & done["observed_steps"].isna() & done["core"].isna()]
    never = never[never["precision"] == "float64"]
    for scaling, lost in never.groupby("scaling", sort=False):
        ways = joined(f"{n} {status}" for status, n in lost["solve_status"].value_counts().items())
        yield (
            f"Under {scaling} it never arrives in {len(lost)} cases, on "
            f"{joined(lost['spectrum'].unique())}; solve says {ways}."
        )


def _predictions(done: pd.DataFrame) -> Iterator[str]:
    both = done.dropna(subset=["predicted_steps", "observed_steps"])
    if both.empty:
        return
    for precision, rows in both.groupby("precision", sort=False):
        gap = (rows["predicted_steps"] - rows["observed_steps"]).abs()
        yield (
            f"In {precision} the scalar maps predict the observed number of steps exactly in "
            f"{int((gap == 0).sum())} of {len(rows)} runs; the worst difference is {gap.max():g}."
        )
    lost = done[done["predicted_steps"].notna() & done["observed_steps"].isna()]
    if len(lost):
        least = lost["eps_kappa"].median()
        ways = joined(f"{n} in {p}" for p, n in lost["precision"].value_counts().items())
        yield (
            f"In {len(lost)} runs ({ways}) rounding keeps them from a tolerance that the map "
            f"reaches: the median of eps kappa there is {number(least)}."
        )


def _orders(own: pd.DataFrame) -> Iterator[str]:
    rows = own[own["observed_order"].notna() & (own["precision"] == "float64")]
    if rows.empty:
        return
    gap = (rows["observed_order"] - rows["declared_order"]).abs()
    close = gap <= 0.1
    yield (
        f"The observed order, where float64 resolves it, is within 0.1 of the declared one in "
        f"{int(close.sum())} of {len(rows)} runs."
    )
    if not close.all():
        counts = rows.loc[~close, "method"].value_counts().items()
        yield (
            f"The others are {joined(f'{n} of {method}' for method, n in counts)}, whose constant "
            "has not settled in three steps."
        )


def _limits(own: pd.DataFrame) -> Iterator[str]:
    for precision in own["precision"].unique():
        rows = _constructed(own, precision)
        rows = rows[rows["c"].notna() & (rows["rank"] == rows["rank"].max())]
        if rows.empty:
            continue
        outside = rows[~rows["c"].between(0.01, 1)]
        alone = set(outside["spectrum"]) == {"Spiked"}
        yield (
            f"In {precision}, at full rank, the least error is c eps kappa with c from "
            f"{number(rows['c'].min())} to {number(rows['c'].max())}, median "
            f"{number(rows['c'].median())}"
            + (
                "."
                if outside.empty
                else f"; outside 0.01 to 1 it is in {len(outside)} of {len(rows)} runs, on "
                f"{joined(outside['spectrum'].unique())}"
                + (
                    ", where one large value makes kappa and the others the error."
                    if alone
                    else "."
                )
            )
        )
    short_of = _constructed(own)
    short_of = short_of[short_of["c"].notna() & (short_of["rank"] < short_of["rank"].max())]
    if len(short_of):
        worst = short_of.loc[short_of["c"].idxmax()]
        yield (
            f"On rank-deficient matrices c is {number(short_of['c'].min())} to "
            f"{number(short_of['c'].max())} in float64: errors in the null space have grown since "
            "the first step, and the floor is where they meet the falling error. Closed by X A X, "
            f"the least error has c from {number(short_of['c_purified'].min())} to "
            f"{number(short_of['c_purified'].max())}. The largest c is that of {worst['method']} "
            f"at condition number {number(worst['kappa'])}."
        )


def _published(own: pd.DataFrame) -> Iterator[str]:
    rows = own[own["core"].notna() & own["published_steps"].notna()]
    for method, mine in rows.groupby("method", sort=False):
        # Each method on the cores that it is published for, and on near-duplicates.
        core = "Soft" if method == "Newton" else "Nystromformer"
        real = mine[mine["core"] == core]
        steps = int(mine["published_steps"].iloc[0])
        if len(real):
            left = real[real["published_residual"] > INVERTED].sort_values("condition")
            yield (
                f"The {steps} steps of {core} leave {len(left)} of {len(real)} recorded cores with "
                f"a residual above {INVERTED:g}"
                + (": " if len(left) else ".")
                + "; ".join(
                    f"{one.spectrum} (condition {number(one.condition)}, residual "
                    f"{number(one.published_residual)}, {number(one.freedom)} of {one.rank:g} "
                    "degrees of freedom)"
                    for one in left.itertuples()
                )
                + ("." if len(left) else "")
            )
        near = mine[(mine["core"] == "near-duplicates")].sort_values("condition")
        bad = near[near["published_residual"] > INVERTED]
        if len(bad):
            good = near[near["published_residual"] <= INVERTED]
            last = f" up to {number(good['condition'].max())} they invert," if len(good) else ""
            first = bad.iloc[0]
            yield (
                f"On near-duplicate landmarks:{last} from condition number "
                f"{number(first['condition'])} the residual is "
                f"{number(first['published_residual'])} or more, and "
                f"{number(bad['freedom_share'].min())} of the degrees of freedom are left at "
                f"{number(bad['condition'].max())}."
            )


def _growth(own: pd.DataFrame) -> Iterator[str]:
    rows = own[own["observed_growth"].notna() & own["core"].isna()]
    rows = rows[rows["precision"] == "float64"]
    if rows.empty:
        return
    parts = [
        f"{number(mine['observed_growth'].median())} ({method}, declared "
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


def _spoiling(done: pd.DataFrame) -> Iterator[str]:
    last = done.sort_values("step").groupby("method", sort=False).tail(1).set_index("method")
    last = last.loc[list(dict.fromkeys(done["method"]))]
    risen = last[last["observed_growth"].notna()]
    if risen.empty:
        return
    yield (
        "Every plain iteration loses what it has gained: the error leaves its floor for good at "
        + joined(
            f"step {one.onset:g} ({method}, then {number(one.observed_growth)} times a step, "
            f"declared {number(one.declared_growth)})"
            for method, one in risen.iterrows()
        )
        + "."
    )
    small = done[done["error"] < 1e-2]
    after = small[small["step"] >= small["onset"]]
    if len(after):
        yield (
            f"While it is below 0.01, one X A X brings it from at most "
            f"{number(after['error'].max())} back to at most {number(after['purified'].max())}."
        )


def _products_table(done: pd.DataFrame) -> Iterator[Table]:
    rows = _constructed(done)
    conditions = sorted(rows["kappa"].unique())
    for column, label, mine in (
        ("method", "Method", rows[rows["scaling"] == "default"]),
        ("scaling", "Scaling of Newton", rows[rows["method"] == "Newton"]),
    ):
        if mine[column].nunique() < 2:
            continue
        lines: list[list[str | list[str]]] = []
        for name, group in mine.groupby(column, sort=False):
            line: list[str | list[str]] = [str(name)]
            for kappa in conditions:
                found = group.loc[group["kappa"] == kappa, "observed_matmuls"]
                line.append(_spread(found))
            lines.append(line)
        yield {
            "caption": f"Products to the tolerance in float64 by {column} and condition number: "
            "median over the constructed spectra, and the range. A dash: it never arrives; in "
            "brackets, how many of the spectra are not reached.",
            "header": [label, *(f"{kappa:g}" for kappa in conditions)],
            "rows": lines,
            "left": 1,
        }


def _spread(found: pd.Series) -> str | list[str]:
    """Median over the range; how many are missing."""
    known = found.dropna()
    lost = f" [{len(found) - len(known)}]" if len(known) < len(found) else ""
    if known.empty:
        return f"–{lost}" if len(found) else ""  # noqa: RUF001
    return [f"{known.median():g}{lost}", f"{known.min():g}–{known.max():g}"]  # noqa: RUF001


def _limits_table(done: pd.DataFrame) -> Iterator[Table]:
    rows = done[(done["scaling"] == "default") & done["core"].isna() & (done["kappa"] > 1)]
    rows = rows[rows["c"].notna()]
    if rows.empty:
        return
    precisions = list(rows["precision"].unique())
    lines: list[list[str | list[str]]] = []
    for spectrum, mine in rows.groupby("spectrum", sort=False):
        line: list[str | list[str]] = [str(spectrum)]
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


def _range(values: pd.Series) -> str | list[str]:
    if values.empty:
        return "–"  # noqa: RUF001
    low, high = short(values.min(), 2), short(values.max(), 2)
    return [short(values.median(), 2), f"{low}–{high}"]  # noqa: RUF001


def _published_tables(done: pd.DataFrame) -> Iterator[Table]:
    rows = done[done["core"].notna() & done["published_steps"].notna()]
    for method, mine in rows.groupby("method", sort=False):
        steps = int(mine["published_steps"].iloc[0])
        lines: list[list[str | list[str]]] = []
        for core, group in mine.groupby("core", sort=False):
            for i, one in enumerate(group.sort_values("condition").itertuples()):
                needed = "–" if pd.isna(one.observed_steps) else f"{one.observed_steps:g}"  # noqa: RUF001
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
    lines: list[list[str | list[str]]] = []
    for method, mine in done.groupby("method", sort=False):
        best = mine.loc[mine["error"].idxmin()]
        last = mine.sort_values("step").iloc[-1]
        lines.append(
            [
                str(method),
                f"{best['step']:g}",
                short(best["error"]),
                "–" if pd.isna(last["onset"]) else f"{last['onset']:g}",  # noqa: RUF001
                short(last["observed_growth"], 4),
                short(last["declared_growth"], 4),
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
