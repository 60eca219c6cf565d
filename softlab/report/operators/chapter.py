"""Operators against their exact targets: error by rank, skill, what each point costs.

Read are the columns that every study of operators writes: ``status``, ``method``, ``target``,
``source``, ``output_error``, ``uniform_error``, ``skill``, and those of ``OPTIONAL``. A table
without any error or skill is of a study of something else: ``softlab.report.groups`` says of it
what can be said of any study.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from softlab.report import certificates, groups
from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline, headline
from softlab.report.intervals import Median
from softlab.report.intervals import median as over_units
from softlab.report.numbers import joined, median, number, short
from softlab.report.quartiles import cell, summary
from softlab.report.rows import LEFT, finished
from softlab.report.timings import timing

NEEDED = {
    *("status", "method", "target", "source", "output_error", "uniform_error", "skill"),
}
_COSTS = {
    "flops": ("MFLOPs", 1e-6),
    "kernel_entries": ("10³ entries", 1e-3),
    "seconds": ("ms", 1e3),
    "peak_bytes": ("peak MB", 1e-6),
}
OPTIONAL = {
    "op.rank": "a field of operators that have a rank",
    **dict.fromkeys(
        [
            *("real", "ratio_to_bound", "row_mass", "core_status", "n"),
            *("seconds_q1", "seconds_q3", "certified_error", *_COSTS),
        ],
        "a user's study of operators need not measure it",
    ),
}
CONTROLS = ("Uniform", "TruncatedSVD")


def scope(table: pd.DataFrame) -> str:
    """The methods, each with its target, and the inputs with their lengths."""
    done = _done(table)
    if not done["op.rank"].notna().any() or "n" not in done:
        return ""
    ranked = _ranked(done).drop_duplicates(["method", "target"])
    methods = "; ".join(f"{x.method} against {x.target} attention" for x in ranked.itertuples())
    lengths = done.drop_duplicates("source")
    inputs = ", ".join(f"{x.source} (n = {x.n:g})" for x in lengths.itertuples())
    return f"Methods: {methods}. Inputs: {inputs}."


def findings(table: pd.DataFrame) -> list[str]:
    """One paragraph for each method and target."""
    if _of_something_else(table):
        return groups.findings(table)
    done = _done(table)
    paragraphs = []
    for (target, method), mine in _by_method(done):
        rows = done[done["target"] == target]
        rank = _telling(mine)
        sentences = [
            *_headline(f"{method} against {target} attention", mine, rows, rank),
            *_trend(mine),
            *_worse_than_trivial(mine),
            *_unconverged(mine),
            *_row_mass(mine),
            *_cost(mine, rows, rank),
        ]
        paragraphs.append(" ".join(sentences))
    of_certificates = [text for text in [_certificates(done)] if text]
    return [*paragraphs, *_of_unranked(table), *of_certificates]


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """The error of each method at the telling rank on real inputs."""
    for (target, method), mine in _by_method(_done(table)):
        rank = _telling(mine)
        at = _real(mine[mine["op.rank"] == rank])
        text = f"{method} of rank {rank} misses {target} attention by a relative error of {{}}"
        yield from headline(
            text, at["output_error"], _kind(at), unit=at["source"], nested="samples"
        )


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Errors by input, method and rank, a table a target; then what a call costs."""
    if _of_something_else(table):
        yield from groups.tables(table)
        return
    yield from _errors(table)
    yield from _unranked_errors(table)
    done = _done(table)
    if "certified_error" in done:
        by = ["target", "method", "op.rank"]
        found = _worth(done, by if done["op.rank"].notna().any() else by[:2])
        names = [x.removeprefix("op.") for x in found if x in by]
        yield from certificates.tables(found, names, [x for x in found if x in by])
    yield from _costs(table)


def _of_something_else(table: pd.DataFrame) -> bool:
    return not {"output_error", "uniform_error", "skill"} & set(table.columns)


def _done(table: pd.DataFrame) -> pd.DataFrame:
    """The finished rows, with a rank that is NaN where there is none; none of another study."""
    if _of_something_else(table):
        return pd.DataFrame(columns=[*sorted(NEEDED), "op.rank"])
    done = finished(table, NEEDED)
    return done if "op.rank" in done else done.assign(**{"op.rank": np.nan})


def _ranked(done: pd.DataFrame) -> pd.DataFrame:
    """The rows of methods with a rank, without the controls."""
    return done[done["op.rank"].notna() & ~done["method"].isin(CONTROLS)]


def _by_method(done: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """Each target and method, with its rows."""
    for (target, method), rows in _ranked(done).groupby(["target", "method"], sort=False):
        yield (str(target), str(method)), rows


def _unranked(table: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """Each target and method without a rank, as a study's own operator may be, with its rows."""
    done = _done(table)
    done = done[~(done["method"].isin([*CONTROLS, "exact"]) | done["op.rank"].notna())]
    for (target, method), rows in done.groupby(["target", "method"], sort=False):
        yield (str(target), str(method)), rows


def _of_unranked(table: pd.DataFrame) -> Iterator[str]:
    """What those that no figure by rank can show err."""
    for (target, method), mine in _unranked(table):
        at = _real(mine)
        found = _over_sources(at, "output_error")
        span = found.span(_kind(at))
        bad = int((~(mine["skill"] > 0)).sum())
        yield (
            f"{method} has no rank. Against {target} attention its relative output error is "
            f"{number(found.value)}, in the median over {found.units} {_kind(at)}, each the median "
            f"over its samples ({span + '; ' if span else ''}{len(at)} cases); that of the uniform "
            f"average is {_middle(at, 'uniform_error')}. It is no better than a trivial answer "
            f"(skill at most 0) in {bad} of {len(mine)} cases."
        )


def _unranked_errors(table: pd.DataFrame) -> Iterator[Table]:
    """The output errors of methods without a rank, in one table, each by its own knob if it has."""
    body: list[list[Cell]] = []
    for (target, method), mine in _unranked(table):
        knob = _knob(mine)
        mine = mine.assign(knob="" if not knob else mine[knob].map(lambda x: f"{x:g}"))
        points = summary(mine, ["source", "knob"], "output_error").to_dict("records")
        for i, x in enumerate(points):
            uniform = mine.loc[mine["source"] == x["source"], "uniform_error"].median()
            head: list[Cell] = [[method, target], x["source"]] if i == 0 else ["", x["source"]]
            setting = f"{knob.removeprefix('op.')} {x['knob']}" if knob else ""
            body.append([*head, *([setting] if _knobs(table) else []), number(uniform), cell(x)])
    if body:
        own = ["knob"] if _knobs(table) else []
        yield {
            "caption": "Methods without a rank: relative output error, the median over the seeds, "
            "below it the quartiles. Uniform: the error of the uniform average.",
            "header": ["method", "input", *own, "uniform", "error"],
            "rows": body,
            "left": 2 + len(own),
        }


def _knob(mine: pd.DataFrame) -> str:
    """The field of a method that takes several values in a study: its knob; empty if none does."""
    fields = [x for x in mine if str(x).startswith("op.") and not str(x).endswith("seed")]
    numeric = [x for x in fields if pd.api.types.is_numeric_dtype(mine[x])]
    return next((str(x) for x in numeric if mine[x].nunique() > 1), "")


def _knobs(table: pd.DataFrame) -> bool:
    """Whether any method without a rank has a knob of another name."""
    return any(_knob(mine) for _, mine in _unranked(table))


def _worth(done: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    return certificates.worth(done, by, error="output_error", unit="source")


def _certificates(done: pd.DataFrame) -> str:
    """What bounds that need no exact output are worth."""
    if "certified_error" not in done:
        return ""
    found = _worth(done, ["target", "method"])
    names = [f"{x['method']} against {x['target']} attention" for x in found.to_dict("records")]
    known = done[done["certified_error"].notna()]
    return certificates.paragraph(found, names, known["source"].nunique())


def _headline(what: str, mine: pd.DataFrame, rows: pd.DataFrame, rank: int) -> Iterator[str]:
    at = _real(mine[mine["op.rank"] == rank])
    svd = _real(rows[(rows["method"] == "TruncatedSVD") & (rows["op.rank"] == rank)])
    found = _over_sources(at, "output_error")
    bound = f", that of the truncated SVD {_middle(svd, 'output_error')}" if len(svd) else ""
    span = found.span(_kind(at))
    yield (
        f"At rank {rank} the relative output error of {what} is {number(found.value)}, in the "
        f"median over {found.units} {_kind(at)}, each the median over its samples "
        f"({span + '; ' if span else ''}{len(at)} cases); that of the uniform "
        f"average is {_middle(at, 'uniform_error')}{bound}."
    )
    if "ratio_to_bound" in at and at["ratio_to_bound"].notna().any():
        yield (
            f"Its matrix is {_middle(at, 'ratio_to_bound')} times as far from the target's, in "
            "Frobenius norm, as the best matrix of that rank."
        )


def _trend(mine: pd.DataFrame) -> Iterator[str]:
    """What rank does to the median, and where the last step of it does little or harm."""
    medians = mine.groupby(["source", "op.rank"], sort=False)["output_error"].median().unstack()
    medians = medians.sort_index(axis=1)
    low, high = medians.columns[[0, -1]]
    if low == high:
        return
    both = medians.loc[_real(mine)["source"].unique()].dropna(subset=[low, high])
    if len(both):
        first, end = (number(both[rank].median()) for rank in (low, high))
        yield f"From rank {low:g} to rank {high:g} the median goes from {first} to {end}."
    last = medians.dropna(subset=[high])
    least = last.drop(columns=high).min(axis=1)
    gain = last[high] / least
    for chosen, says in (
        (gain > 1, f"Rank {high:g} errs more than the best smaller rank on"),
        (
            (gain > 0.9) & (gain <= 1),
            f"Rank {high:g} gains less than a tenth over the best smaller rank on",
        ),
    ):
        words = (
            f"{source} ({number(least[source])} to {number(last.loc[source, high])})"
            for source in gain.index[chosen]
        )
        if chosen.any():
            yield f"{says} {joined(words)}."


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
    early = mine[mine["core_status"].isin(LEFT)]
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
        f"At n = {n} and rank {rank} a call takes {timing(at).words(' ms', 1e3)} and "
        f"{median(at, 'peak_bytes', 1e-6)} MB, the exact operator "
        f"{timing(exact).words(' ms', 1e3)} and {median(exact, 'peak_bytes', 1e-6)} MB."
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


def _kind(rows: pd.DataFrame) -> str:
    return "recorded inputs" if _is_real(rows) else "inputs"


def _over_sources(rows: pd.DataFrame, column: str) -> Median:
    """The median over the inputs, samples of an input being no inputs of their own."""
    return over_units(rows[column], rows["source"])


def _middle(rows: pd.DataFrame, column: str) -> str:
    return number(_over_sources(rows, column).value)


def _errors(table: pd.DataFrame) -> Iterator[Table]:
    """One table a target: output error by input and method, a column for each rank."""
    done = _done(table)
    for target, every in done.groupby("target", sort=False):
        rows = every[every["op.rank"].notna()]
        if rows.empty:
            continue
        rows = rows.sort_values("method", key=lambda names: names.isin(CONTROLS), kind="stable")
        ranks = sorted(rows["op.rank"].unique())
        points = summary(rows, ["source", "method", "op.rank"], "output_error")
        uniform = every.groupby("source", sort=False)["uniform_error"].median()
        body: list[list[Cell]] = []
        for source in uniform.index:
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
    done = _done(table)
    if not {"n", "seconds_q1", "seconds_q3", *_COSTS} <= set(done.columns):
        return
    done = done[done["seconds"].notna()]
    ranked = done[done["op.rank"].notna()]
    if ranked.empty:
        return
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
        "operations, thousands of kernel entries), measured time (median and quartiles of repeats; "
        "noisy where they are too wide) and measured peak memory.",
        "header": ["n", "method", "", "exact", *(f"{rank:g}" for rank in ranks)],
        "rows": body,
        "left": 3,
    }


def _cost_cell(rows: pd.DataFrame, column: str, scale: float) -> Cell:
    if rows.empty:
        return ""
    if column == "seconds":
        return timing(rows).cell(scale)
    return short(scale * rows[column].median())
