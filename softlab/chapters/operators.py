"""Operators against their exact targets: error by rank, skill, what each point costs.

Read are the columns that every study of operators writes: ``status``, ``method``, ``target``,
``source``, ``op.rank``, ``output_error``, ``uniform_error``, ``skill``, and where they are there
``real``, ``ratio_to_bound``, ``row_mass``, ``core_status``, ``core_residual``, ``n``, and the costs
``flops``, ``kernel_entries``, ``seconds`` with its quartiles and ``peak_bytes``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from softlab.chapters import Cell, Table
from softlab.chapters.headlines import Headline, headline
from softlab.chapters.numbers import joined, median, number, short
from softlab.chapters.quartiles import cell, summary

CONTROLS = ("Uniform", "TruncatedSVD")


def scope(table: pd.DataFrame) -> str:
    """The methods, each with its target, and the inputs with their lengths."""
    if not {"source", "method", "target", "n", "op.rank"} <= set(table.columns):
        return ""
    ranked = table[table["op.rank"].notna() & ~table["method"].isin(CONTROLS)]
    pairs = ranked[["method", "target"]].dropna().drop_duplicates().itertuples(index=False)
    methods = "; ".join(f"{pair.method} against {pair.target} attention" for pair in pairs)
    lengths = table.dropna(subset=["source"]).groupby("source", sort=False)["n"].first()
    inputs = ", ".join(f"{source} (n = {n:g})" for source, n in lengths.items())
    return f"Methods: {methods}. Inputs: {inputs}."


def findings(table: pd.DataFrame) -> list[str]:
    """One paragraph for each method and target."""
    needed = {"method", "target", "source", "op.rank", "output_error", "uniform_error", "skill"}
    if not needed <= set(table.columns):
        return []
    paragraphs = []
    done = table[table["status"] == "ok"]
    for target in done["target"].unique():
        rows = done[done["target"] == target]
        ranked = rows.loc[rows["op.rank"].notna(), "method"].unique()
        for method in (name for name in ranked if name not in CONTROLS):
            mine = rows[rows["method"] == method]
            rank = _telling(mine)
            sentences = [
                *_headline(mine, rows, rank),
                *_trend(mine),
                *_worse_than_trivial(mine),
                *_unconverged(mine),
                *_row_mass(mine),
                *_cost(mine, rows, rank),
            ]
            paragraphs.append(" ".join(sentences))
    return paragraphs


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """The error of each method at the telling rank on real inputs."""
    if not {"method", "target", "source", "op.rank", "output_error"} <= set(table.columns):
        return
    done = table[table["status"] == "ok"]
    ranked = done[done["op.rank"].notna() & ~done["method"].isin(CONTROLS)]
    for (target, method), mine in [*ranked.groupby(["target", "method"], sort=False)][:2]:
        rank = _telling(mine)
        at = _real(mine[mine["op.rank"] == rank])
        text = f"{method} of rank {rank} misses {target} attention by a relative error of {{}}."
        yield from headline(text, at["output_error"], "heads and samples")


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Errors by input, method and rank, a table a target; then what a call costs."""
    yield from _errors(table)
    yield from _costs(table)


def _headline(mine: pd.DataFrame, rows: pd.DataFrame, rank: int) -> Iterator[str]:
    method, target = mine.iloc[0][["method", "target"]]
    at = _real(mine[mine["op.rank"] == rank])
    svd = _real(rows[(rows["method"] == "TruncatedSVD") & (rows["op.rank"] == rank)])
    kind = "real inputs" if _is_real(at) else "inputs"
    bound = f", that of the truncated SVD {median(svd, 'output_error')}" if len(svd) else ""
    yield (
        f"At rank {rank} the median relative output error of {method} against {target} attention "
        f"over {at['source'].nunique()} {kind} ({len(at)} cases) is {median(at, 'output_error')}; "
        f"that of the uniform average is {median(at, 'uniform_error')}{bound}."
    )
    if "ratio_to_bound" in at and at["ratio_to_bound"].notna().any():
        yield (
            f"Its matrix is {median(at, 'ratio_to_bound')} times as far from the target's, in "
            "Frobenius norm, as the best matrix of that rank."
        )


def _trend(mine: pd.DataFrame) -> Iterator[str]:
    real = _real(mine)
    over = real.groupby("op.rank")["output_error"].median()
    if len(over) < 2:
        return
    low, high = int(over.index[0]), int(over.index[-1])
    yield f"From rank {low} to rank {high} the median goes from {number(over.iloc[0])} to " + (
        f"{number(over.iloc[-1])}."
    )
    medians = mine.groupby(["source", "op.rank"], sort=False)["output_error"].median().unstack()
    medians = medians.sort_index(axis=1).dropna(subset=[high])
    stuck = medians.index[medians[high] > 0.9 * medians.drop(columns=high).min(axis=1)]
    if len(stuck):
        yield (
            f"Rank {high} gains less than a tenth over the best smaller rank on {joined(stuck)}: "
            "there more rank does not help."
        )


def _worse_than_trivial(mine: pd.DataFrame) -> Iterator[str]:
    bad = mine[~(mine["skill"] > 0)]
    if len(bad):
        ranks = joined(sorted(int(rank) for rank in bad["op.rank"].unique()))
        yield (
            f"It is no better than a trivial answer (skill at most 0) in {len(bad)} of {len(mine)} "
            f"cases: at rank {ranks}, on {joined(bad['source'].unique())}."
        )


def _unconverged(mine: pd.DataFrame) -> Iterator[str]:
    if "core_status" not in mine or mine["core_status"].isna().all():
        return
    early = mine[mine["core_status"].isin(["OUT_OF_STEPS", "DIVERGED", "NON_FINITE"])]
    worst = (
        f", relative residual up to {number(early['core_residual'].max())}" if len(early) else ""
    )
    yield (
        f"Its solver stopped before it had inverted the core in {len(early)} of {len(mine)} "
        f"cases{worst}."
    )


def _row_mass(mine: pd.DataFrame) -> Iterator[str]:
    if "row_mass" not in mine:
        return
    mass = mine.groupby("source", sort=False)["row_mass"].median()
    if not mass.between(0.99, 1.01).all():
        yield (
            f"The mean row sum of the target's matrix lies between {number(mass.min())} "
            f"({mass.idxmin()}) and {number(mass.max())} ({mass.idxmax()})."
        )


def _cost(mine: pd.DataFrame, rows: pd.DataFrame, rank: int) -> Iterator[str]:
    exact = rows[rows["method"] == "exact"]
    if exact.empty or not {"n", "seconds", "peak_bytes"} <= set(rows.columns):
        return
    n = int(exact["n"].max())
    at = mine[(mine["op.rank"] == rank) & (mine["n"] == n)]
    exact = exact[exact["n"] == n]
    yield (
        f"At n = {n} and rank {rank} a call takes {median(at, 'seconds', 1e3)} ms and "
        f"{median(at, 'peak_bytes', 1e-6)} MB, the exact operator "
        f"{median(exact, 'seconds', 1e3)} ms and {median(exact, 'peak_bytes', 1e-6)} MB."
    )


def _telling(rows: pd.DataFrame) -> int:
    """Rank 64 if the table has it, else the middle of its ranks."""
    ranks = sorted(int(rank) for rank in rows["op.rank"].unique())
    return 64 if 64 in ranks else ranks[len(ranks) // 2]


def _is_real(rows: pd.DataFrame) -> bool:
    return "real" in rows and bool(rows["real"].astype(bool).any())


def _real(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows on recorded inputs, or all where none is recorded."""
    return rows[rows["real"].astype(bool)] if _is_real(rows) else rows


def _errors(table: pd.DataFrame) -> Iterator[Table]:
    """One table a target: output error by input and method, a column for each rank."""
    if not {"target", "source", "method", "op.rank", "output_error"} <= set(table.columns):
        return
    done = table[table["status"] == "ok"]
    for target in done["target"].unique():
        rows = done[(done["target"] == target) & done["op.rank"].notna()]
        rows = rows.sort_values("method", key=lambda names: names.isin(CONTROLS), kind="stable")
        ranks = sorted(rows["op.rank"].unique())
        points = summary(rows, ["source", "method", "op.rank"], "output_error")
        sources = done.loc[done["target"] == target, "source"].unique()
        uniform = done[done["target"] == target].groupby("source")["uniform_error"].median()
        body: list[list[Cell]] = []
        for source in sources:
            mine = points[points["source"] == source]
            for i, (method, line) in enumerate(mine.groupby("method", sort=False)):
                head = [str(source), number(uniform[source])] if i == 0 else ["", ""]
                by_rank = line.set_index("op.rank").to_dict("index")
                body.append([*head, str(method), *(cell(by_rank.get(rank)) for rank in ranks)])
        yield {
            "caption": f"Relative output error against {target} attention by rank: the median over "
            "the seeds, below it the quartiles. Uniform: the error of the uniform average.",
            "header": ["input", "uniform", "method", *(f"{rank:g}" for rank in ranks)],
            "rows": body,
            "left": 3,
        }


def _costs(table: pd.DataFrame) -> Iterator[Table]:
    """What a call costs, by length and method, a column for the exact operator and each rank."""
    needed = {"target", "method", "op.rank", "n", "seconds_q1", "seconds_q3", *_COSTS}
    if not needed <= set(table.columns):
        return
    done = table[(table["status"] == "ok") & table["seconds"].notna()]
    ranked = done[done["op.rank"].notna()]
    ranks = sorted(ranked["op.rank"].unique())
    body: list[list[Cell]] = []
    for (n, target, method), mine in ranked.groupby(["n", "target", "method"]):
        same = (done["n"] == n) & (done["target"] == target)
        points = [done[same & (done["method"] == "exact")]]
        points += [mine[mine["op.rank"] == rank] for rank in ranks]
        for i, (column, (unit, scale)) in enumerate(_COSTS.items()):
            head: list[Cell] = [f"{n:g}", [str(method), str(target)]] if i == 0 else ["", ""]
            body.append([*head, unit, *(_cost_cell(at, column, scale) for at in points)])
    yield {
        "caption": "What one forward call costs: counted arithmetic (millions of floating point "
        "operations, thousands of kernel entries), measured time (median and quartiles) and "
        "measured peak memory.",
        "header": ["n", "method", "", "exact", *(f"{rank:g}" for rank in ranks)],
        "rows": body,
        "left": 3,
    }


_COSTS = {
    "flops": ("MFLOPs", 1e-6),
    "kernel_entries": ("10³ entries", 1e-3),
    "seconds": ("ms", 1e3),
    "peak_bytes": ("peak MB", 1e-6),
}


def _cost_cell(rows: pd.DataFrame, column: str, scale: float) -> Cell:
    if rows.empty:
        return ""
    middle = scale * rows[column].median()
    if column != "seconds":
        return short(middle)
    q1, q3 = (scale * rows[f"seconds_{q}"].median() for q in ("q1", "q3"))
    return cell({"median": middle, "q1": q1, "q3": q3})
