"""Methods on the same heads: who errs least, at what cost, and which laws are broken.

Read are the columns that ``softlab.compare`` writes: a row a method, head and sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.headlines import Headline, headline
from softlab.report.intervals import Median
from softlab.report.intervals import median as over_units
from softlab.report.numbers import counted, joined, number, short
from softlab.report.rows import complete
from softlab.report.timings import BUSY, Timing, timing

NEEDED = {
    *("status", "method", "kind", "target", "source", "sample", "budget", "asked", "fits"),
    *("share", "output_error", "uniform_error", "skill", "laws_held", "laws_broken", "own"),
}
COSTS = {"n", "time", "time_q1", "time_q3", "memory", "case_cpu_share"}
OPTIONAL = dict.fromkeys(COSTS, "no timing was possible")
PANELS, LINES = 12, 8
"""Heads and methods that a figure shows at most."""
HEADER = ("method", "error", "skill", "work", "time", "memory", "laws broken")


def summary(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a method and target, the least error first, the controls last.

    Keys: ``method``, ``kind``, ``target``, ``error`` and ``skill`` (``Median`` over heads),
    ``heads``, ``failed``, ``share``, ``time`` (``Timing``), ``memory``, ``laws_held``,
    ``laws_broken`` (None where they were not asked), ``op``.
    """
    if not complete(table, NEEDED):
        return []
    table = table.reindex(columns=[*table.columns, *sorted(COSTS - set(table.columns))])
    found = []
    for (target, method), mine in table[table["asked"]].groupby(["target", "method"], sort=False):
        good = mine[(mine["status"] == "ok") & mine["output_error"].notna()]
        largest = good[good["n"] == good["n"].max()]
        broken = mine["laws_broken"].dropna()
        held = mine["laws_held"].dropna()
        memory, share = largest["memory"].astype(float), largest["share"].astype(float)
        found.append(
            {
                "method": method,
                "kind": mine["kind"].iloc[0],
                "target": target,
                "error": over_units(good["output_error"], good["source"]),
                "skill": over_units(good["skill"], good["source"]),
                "heads": int(mine["source"].nunique()),
                "failed": int((mine["status"] != "ok").sum()),
                "unfit": int((~mine["fits"].astype(bool)).sum()),
                "share": float(share.median()),
                "time": timing(_once(largest), "time"),
                "memory": float(memory.median()),
                "laws_held": int(held.iloc[0]) if len(held) else None,
                "laws_broken": _words(broken.iloc[0]) if len(broken) else None,
                "own": bool(mine["own"].iloc[0]),
                "op": str(largest["op"].iloc[0]) if len(largest) else "",
            }
        )
    order = {target: i for i, target in enumerate(table["target"].unique())}

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        error = row["error"].value
        return order[row["target"]], row["kind"] != "method", math.isnan(error), error

    return sorted(found, key=place)


def _once(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a measured time: samples and heads of one size share it."""
    numeric = rows.assign(**{x: rows[x].astype(float) for x in ("time", "time_q1", "time_q3")})
    return numeric.drop_duplicates(["time"])


def _words(broken: str) -> list[str]:
    return [] if broken == "none" else str(broken).split("; ")


def cells(table: pd.DataFrame) -> list[list[str]]:
    """The summary in words, by ``HEADER``."""
    rows = summary(table)
    many = len({row["target"] for row in rows}) > 1
    return [
        [
            f"{row['method']} ({row['target']})" if many else str(row["method"]),
            "none fits" if too_dear(row) else _with_span(row["error"]),
            "" if math.isnan(row["skill"].value) else f"{row['skill'].value:.2f}",
            "" if too_dear(row) else _work(row["share"]),
            _time(row["time"]),
            _plain(row["memory"], 2),
            laws_in_words(row),
        ]
        for row in rows
    ]


def laws_in_words(row: dict[str, Any]) -> str:
    """For a table: which laws are broken, "none of 34", or why that is not known."""
    if row["kind"] == "control":
        return ""
    if row["laws_broken"] is None:
        return "held by tests" if row["own"] else "not asked"
    return ", ".join(row["laws_broken"]) or f"none of {row['laws_held'] or 0}"


def too_dear(row: dict[str, Any]) -> bool:
    """Whether no setting of a method fits into the budget, on any head."""
    return not row["error"].units and not row["failed"] and row["unfit"] > 0


def _with_span(found: Median) -> str:
    if not found.units:
        return "failed"
    if number(found.low) == number(found.high):
        return short(found.value)
    return f"{short(found.value)} ({short(found.low, 2)} to {short(found.high, 2)})"


def _plain(x: float, digits: int) -> str:
    return "" if math.isnan(x) else short(x, digits)


def _work(share: float) -> str:
    return "not counted" if math.isnan(share) else "0" if share == 0 else short(share, 2)


def _time(found: Timing) -> str:
    if not found.timings:
        return ""
    if not found.known:
        return "noisy"
    busy = ", busy" if found.busy else ""
    return f"{short(found.value, 2)} ({short(found.low, 2)} to {short(found.high, 2)}{busy})"


def lines(table: pd.DataFrame) -> str:
    """The table in plain text."""
    body = [list(HEADER), *cells(table)]
    widths = [max(len(row[i]) for row in body) for i in range(len(HEADER))]
    return "\n".join(
        "  ".join(x.ljust(width) for x, width in zip(row, widths, strict=True)).rstrip()
        for row in body
    )


def about(table: pd.DataFrame) -> str:
    """What the columns are, in a paragraph that stands below the table."""
    rows = table[table["status"] == "ok"]
    heads = table["source"].nunique()
    enough = "95 % interval" if heads > 5 else "range (too few heads for an interval)"
    samples = rows.groupby("source")["sample"].nunique().max() if len(rows) else 0
    text = (
        f"Error: relative, the median over {counted(heads, 'head')} (each the median over "
        f"{counted(int(samples), 'sample')}), in brackets the {enough}. All zeros have error 1. "
        "Skill: 1 is exact, 0 is no better than the mean of the values. Work, time, memory: "
        "times those of exact attention"
    )
    if "n" in rows and rows["n"].notna().any():
        text += f" at n = {rows['n'].max():g}; of time the quartiles"
    if rows["target"].nunique() > 1:
        text += ". Errors against different targets are not comparable"
    if "case_cpu_share" in rows and (rows["case_cpu_share"].astype(float) < BUSY).any():
        text += ". Busy: the machine did other work while this was timed, so do not compare it"
    return f"{text}."


def scope(table: pd.DataFrame) -> str:
    """The methods and the heads."""
    if not complete(table, NEEDED) or table.empty:
        return ""
    methods = table.loc[table["kind"] == "method", "method"].unique()
    return f"Methods: {'; '.join(methods)}. Heads: {'; '.join(table['source'].unique())}."


def findings(table: pd.DataFrame) -> list[str]:
    """Who errs least; the first method against the others; trivial, failed and unlawful ones."""
    rows = [row for row in summary(table) if row["kind"] == "method"]
    found: list[str] = []
    for target in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == target and row["error"].units]
        if mine:
            found.append(" ".join([_least(mine, str(target)), *_pairs(table, mine, str(target))]))
    found += filter(None, [_trivial(rows), _unlawful(rows), _lost(table, rows), _left_out(table)])
    return found


def _least(mine: list[dict[str, Any]], target: str) -> str:
    best = mine[0]
    span = best["error"].span("heads")
    work_ = "" if math.isnan(best["share"]) else f", at {short(best['share'], 2)} of the work"
    among = f"Of {len(mine)} methods {best['method']} errs least" if len(mine) > 1 else (
        f"{best['method']} errs"
    )  # fmt: skip
    return (
        f"{among} against {target} attention: its relative output error is "
        f"{number(best['error'].value)} in the median over {counted(best['error'].units, 'head')}"
        f"{f' ({span})' if span else ''}{work_}."
    )


def _pairs(table: pd.DataFrame, mine: list[dict[str, Any]], target: str) -> Iterator[str]:
    """The method that was named first against each other, head by head."""
    rows = table[table["asked"] & (table["target"] == target) & table["output_error"].notna()]
    by = rows.groupby(["source", "method"])["output_error"].median().unstack()
    named = [x for x in table["method"].unique() if x in {row["method"] for row in mine}]
    if len(named) < 2:
        return
    first, *others = named
    words = []
    for other in others:
        both = by[[first, other]].dropna()
        words.append(f"{other} on {(both[first] < both[other]).sum()} of {len(both)}")
    yield f"Head by head {first} errs less than {joined(words)} heads."


def _trivial(rows: list[dict[str, Any]]) -> str:
    bad = [str(row["method"]) for row in rows if row["skill"].units and row["skill"].value <= 0]
    if not bad:
        return ""
    verb = "is" if len(bad) == 1 else "are"
    return f"{joined(bad)} {verb} no better than a trivial answer in the median over the heads."


def _unlawful(rows: list[dict[str, Any]]) -> str:
    return " ".join(
        f"{row['method']} breaks {counted(len(row['laws_broken']), 'law')}: "
        f"{joined(row['laws_broken'])}."
        for row in rows
        if row["laws_broken"]
    )


def _lost(table: pd.DataFrame, rows: list[dict[str, Any]]) -> str:
    """Methods that failed, or that no setting of fits into the budget, are named and counted."""
    said = []
    for row in rows:
        if row["failed"]:
            mine = table[(table["method"] == row["method"]) & (table["status"] != "ok")]
            said.append(
                f"{row['method']} failed on {counted(row['failed'], 'sample')}; the first: "
                f"{mine['error'].iloc[0]}."
            )
        if row["unfit"]:
            said.append(
                f"No setting of {row['method']} fits into the budget on "
                f"{counted(row['unfit'], 'sample')}."
            )
    return " ".join(said)


def _left_out(table: pd.DataFrame) -> str:
    """What the figure has no room for."""
    if not complete(table, NEEDED) or table.empty:
        return ""
    heads = table["source"].nunique()
    rows = [row for row in summary(table) if row["kind"] == "method" and row["error"].units]
    said = []
    if heads > PANELS:
        said.append(f"The figure shows {PANELS} of {heads} heads; the table is of all.")
    if len(rows) > LINES:
        rest = joined(str(row["method"]) for row in rows[LINES:])
        said.append(f"The figure shows {LINES} of {len(rows)} methods, and not {rest}.")
    if bare := [str(row["method"]) for row in rows if math.isnan(row["share"])]:
        said.append(f"No work is counted of {joined(bare)}, so that the figure cannot place it.")
    return " ".join(said)


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """The least error of each target."""
    rows = [row for row in summary(table) if row["kind"] == "method" and row["error"].units]
    for target in dict.fromkeys(row["target"] for row in rows):
        best = next(row for row in rows if row["target"] == target)
        at = table[table["asked"] & (table["method"] == best["method"])]
        text = f"Of the methods compared {best['method']} misses {target} attention least, by a "
        text += "relative error of {}"
        yield from headline(
            text, at["output_error"].astype(float), "heads", unit=at["source"], nested="samples"
        )


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """The summary; then the error of each method on each head."""
    body = cells(table)
    if not body:
        return
    yield {"caption": about(table), "header": list(HEADER), "rows": [[*row] for row in body],
           "left": 1}  # fmt: skip
    good = table[table["asked"] & table["output_error"].notna()]
    by = good.groupby(["source", "target", "method"], sort=False)["output_error"].median()
    rows: list[list[Cell]] = []
    for (source, target), mine in by.groupby(level=[0, 1], sort=False):
        best = mine[[m not in CONTROLS for m in mine.index.get_level_values(2)]].min()
        for i, (key, error) in enumerate(mine.items()):
            mark = " (least)" if error == best and key[2] not in CONTROLS else ""
            head = [str(source), str(target)] if i == 0 else ["", ""]
            rows.append([*head, f"{key[2]}{mark}", number(error)])
    yield {
        "caption": "Relative output error by head, the median over its samples; of a class, at the "
        "budget.",
        "header": ["head", "target", "method", "error"],
        "rows": rows,
        "left": 3,
    }


CONTROLS = ("uniform average", "best matrix of the rank", "heaviest keys")


def drawn(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the figure: at most twelve heads, and the eight methods of the least error."""
    keep = [row["method"] for row in summary(table) if row["kind"] == "method"][:LINES]
    sources = list(table["source"].unique()[:PANELS])
    good = table["output_error"].notna() & table["fits"].astype(bool)
    rows = table[good & table["source"].isin(sources)]
    rows = rows[rows["method"].isin([*keep, *CONTROLS[1:]])]
    rows = rows.assign(step=rows["budget"], target_name=rows["target"].astype(str) + " attention")
    return pd.concat([rows, table[table["status"] != "ok"]])
