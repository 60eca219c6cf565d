"""What a study found, in sentences computed from its table.

Read are the columns that every study of operators writes: ``status``, ``method``, ``target``,
``source``, ``op.rank``, ``output_error``, ``uniform_error``, ``skill``, and where they are there
``real``, ``ratio_to_bound``, ``row_mass``, ``n``, ``seconds`` and ``peak_bytes``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import pandas as pd

CONTROLS = ("Uniform", "TruncatedSVD")
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def findings(table: pd.DataFrame) -> list[str]:
    """One paragraph on how complete the table is, and one for each method and target in it."""
    paragraphs = [_completeness(table)]
    needed = {"method", "target", "source", "op.rank", "output_error", "uniform_error", "skill"}
    if needed <= set(table.columns):
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


def number(x: float) -> str:
    """Three significant digits, in powers of ten where plain digits would be many."""
    if not math.isfinite(x):
        return {math.inf: "∞", -math.inf: "-∞"}.get(x, "n/a")
    if x == 0:
        return "0"
    mantissa, exponent = f"{x:.2e}".split("e")
    if -4 < int(exponent) < 4:
        return f"{float(f'{x:.2e}'):.{max(0, 2 - int(exponent))}f}"
    return f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPT)}"  # noqa: RUF001


def _completeness(table: pd.DataFrame) -> str:
    failed = table[table["status"] != "ok"]
    if failed.empty:
        return f"All {len(table)} cases finished."
    return f"{len(failed)} of {len(table)} cases failed; the first: {failed.iloc[0]['error']}."


def _headline(mine: pd.DataFrame, rows: pd.DataFrame, rank: int) -> Iterator[str]:
    method, target = mine.iloc[0][["method", "target"]]
    at = _real(mine[mine["op.rank"] == rank])
    svd = _real(rows[(rows["method"] == "TruncatedSVD") & (rows["op.rank"] == rank)])
    kind = "real inputs" if _is_real(at) else "inputs"
    bound = f", that of the truncated SVD {_median(svd, 'output_error')}" if len(svd) else ""
    yield (
        f"At rank {rank} the median relative output error of {method} against {target} attention "
        f"over {at['source'].nunique()} {kind} ({len(at)} cases) is {_median(at, 'output_error')}; "
        f"that of the uniform average is {_median(at, 'uniform_error')}{bound}."
    )
    if "ratio_to_bound" in at and at["ratio_to_bound"].notna().any():
        yield (
            f"Its matrix is {_median(at, 'ratio_to_bound')} times as far from the target's, in "
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
            f"Rank {high} gains less than a tenth over the best smaller rank on {_join(stuck)}: "
            "there more rank does not help."
        )


def _worse_than_trivial(mine: pd.DataFrame) -> Iterator[str]:
    bad = mine[~(mine["skill"] > 0)]
    if len(bad):
        ranks = _join(sorted(int(rank) for rank in bad["op.rank"].unique()))
        yield (
            f"It is no better than a trivial answer (skill at most 0) in {len(bad)} of {len(mine)} "
            f"cases: at rank {ranks}, on {_join(bad['source'].unique())}."
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
        f"At n = {n} and rank {rank} a call takes {_median(at, 'seconds', 1e3)} ms and "
        f"{_median(at, 'peak_bytes', 1e-6)} MB, the exact operator "
        f"{_median(exact, 'seconds', 1e3)} ms and {_median(exact, 'peak_bytes', 1e-6)} MB."
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


def _median(rows: pd.DataFrame, column: str, unit: float = 1.0) -> str:
    return number(unit * rows[column].median())


def _join(names: Iterable[object]) -> str:
    words = [str(name) for name in names]
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)
