"""Any study: every group of its cases in a table, the best marked, and what is left out counted.

A chapter that knows the columns says more. This one knows an axis from a measure, and of a few
words in the name of a measure which end of it is good.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.numbers import counted, joined, number, short
from softlab.report.quartiles import summary
from softlab.report.rows import of_case

ROWS, COLUMNS, VARIED = 60, 6, 3
"""Groups and measures that a table has at most, and axes that tell groups apart."""
NESTED = ("seed", "sample", "draw", "repeat")
"""Axes that are summarised and tell no groups apart."""
LEAST = ("error", "loss", "seconds", "time", "bytes", "memory", "flops", "residual", "work", "bias")
GREATEST = ("skill", "accuracy", "cosine", "score", "r2")


def axes_of(table: pd.DataFrame) -> list[str]:
    """The axes of the study, as far as they are known; of a bare table its columns of words."""
    return [x for x in table.attrs.get("axes", ()) if x in table] or of_case(table)


def measures_of(table: pd.DataFrame) -> list[str]:
    """The columns of numbers that the study measured."""
    axes = axes_of(table)
    own = {*axes, "status", "error"}
    done = table[table["status"] == "ok"]
    return [
        str(x)
        for x in table
        if x not in own
        and x not in NESTED
        and "." not in str(x)
        and not str(x).startswith("case_")
        and pd.api.types.is_numeric_dtype(done[x])
        and not pd.api.types.is_bool_dtype(done[x])
        and done[x].notna().any()
    ]


def keys_of(table: pd.DataFrame) -> list[str]:
    """The axes of more than one value by which groups are told apart, words before numbers."""
    varied = [x for x in axes_of(table) if x not in NESTED and table[x].astype(str).nunique() > 1]
    words = [x for x in varied if not pd.api.types.is_numeric_dtype(table[x])]
    found = [*words, *(x for x in varied if x not in words)]
    spoken = [
        str(x)
        for x in table
        if x not in {*axes_of(table), "status", "error"}
        and "." not in str(x)
        and pd.api.types.infer_dtype(table[x], skipna=True) == "string"
        and 1 < table[x].nunique() <= ROWS
    ]
    return (found or spoken)[:VARIED] or axes_of(table)[:1]


def good_end(measure: str) -> str:
    """Which end of a measure its name tells to be good, "least" or "greatest"; else empty."""
    name = measure.lower()
    if any(word in name for word in GREATEST):
        return "greatest"
    return "least" if any(word in name for word in LEAST) else ""


def groups(table: pd.DataFrame) -> pd.DataFrame:
    """A row a group: its keys in words, medians of the measures, cases and failures."""
    keys, measures = keys_of(table), measures_of(table)
    named = table.assign(**{key: table[key].astype(str) for key in keys})
    by = named.groupby(keys, sort=False)
    found = pd.DataFrame({"cases": by.size()})
    found["failed"] = by["status"].agg(lambda x: int((x != "ok").sum()))
    done = named[named["status"] == "ok"]
    for measure in measures:
        found[measure] = (
            done.assign(**{measure: done[measure].astype(float)}).groupby(keys)[measure].median()
        )
    return found.reset_index()


def findings(table: pd.DataFrame) -> list[str]:
    """Where each measure has its best, and groups without an answer, by name."""
    if table.empty or not measures_of(table):
        return []
    rows, keys = groups(table), keys_of(table)
    said = [f"The cases fall into {counted(len(rows), 'group')}, told apart by {joined(keys)}."]
    for measure in measures_of(table)[:COLUMNS]:
        known = rows[rows[measure].notna()]
        end = good_end(measure)
        low, high = known.loc[known[measure].idxmin()], known.loc[known[measure].idxmax()]
        if end and len(known) > 1:
            best = low if end == "least" else high
            said.append(f"The {end} median {measure} is {number(best[measure])}, of "
                        f"{_name(best, keys)}.")  # fmt: skip
        elif number(low[measure]) == number(high[measure]):
            said.append(f"The median {measure} is {number(low[measure])} in every group.")
        else:
            said.append(
                f"The median {measure} goes from {number(low[measure])} ({_name(low, keys)}) to "
                f"{number(high[measure])} ({_name(high, keys)})."
            )
    lost = rows[rows["cases"] == rows["failed"]]
    if len(lost):
        names = [_name(row, keys) for _, row in lost.head(COLUMNS).iterrows()]
        more = f" and {len(lost) - COLUMNS} more" if len(lost) > COLUMNS else ""
        said.append(f"Of {joined(names)}{more} no case finished.")
    return [" ".join(said)]


def _name(row: pd.Series, keys: Sequence[str]) -> str:
    return ", ".join(str(row[key]) for key in keys)


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Every group with the medians of its measures, below them the quartiles; the best marked."""
    measures, keys = measures_of(table), keys_of(table)
    if table.empty or not measures:
        return
    shown = measures[:COLUMNS]
    rows = groups(table)
    named = table[table["status"] == "ok"]
    named = named.assign(**{key: named[key].astype(str) for key in keys})
    named = named.assign(**{x: named[x].astype(float) for x in shown})
    spread = {x: summary(named, keys, x).set_index(keys) for x in shown}
    best = {x: rows[x].min() if good_end(x) == "least" else rows[x].max() for x in shown}
    body: list[list[Cell]] = []
    for _, row in rows.head(ROWS).iterrows():
        line: list[Cell] = [str(row[key]) for key in keys]
        at = tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]]
        for x in shown:
            if pd.isna(row[x]):
                line.append("failed" if row["failed"] else "")
                continue
            mark = " (best)" if good_end(x) and len(rows) > 1 and row[x] == best[x] else ""
            ends = [short(float(spread[x].loc[at, end]), 2) for end in ("q1", "q3")]
            word = f"{short(row[x])}{mark}"
            line.append(word if ends[0] == ends[1] else [word, f"{ends[0]}–{ends[1]}"])
        body.append([*line, str(row["cases"])])
    notes = []
    if len(rows) > ROWS:
        notes.append(f"{len(rows) - ROWS} more groups are in table.csv.")
    if len(measures) > COLUMNS:
        notes.append(f"Not shown: {', '.join(measures[COLUMNS:])}.")
    yield {
        "caption": " ".join(
            ["Every group: the medians of what was measured, below them the quartiles.", *notes]
        ),
        "header": [*keys, *shown, "cases"],
        "rows": body,
        "left": len(keys),
    }
