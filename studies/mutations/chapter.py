"""What the laws see of planted faults, and what they see where there is none.

Read are ``status`` and the columns of ``studies/mutations``: ``seed``, ``solver``, ``fault``,
``base``, ``reason``, ``origin``, ``laws``, ``caught``, ``law``, ``alarms``. Of a planted fault
``base`` is its kind, and of one that is held out the name is left to the table: whoever mends laws
should not read it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.intervals import percent, share
from softlab.report.numbers import counted, joined
from softlab.report.rows import finished

from .columns import HELD_OUT, TUNED

ORIGIN = "origin"
NEEDED = {
    *("status", "seed", "solver", "fault", "base", "reason", "laws", "law", "caught", "alarms"),
    ORIGIN,
}
HALVES = {TUNED: "after which laws may be mended", HELD_OUT: "which are held out"}
KINDS = {False: "operators", True: "solvers"}


def scope(table: pd.DataFrame) -> str:
    """How many mutants and right ones, and at how many seeds."""
    mutants, right, planted = _mutants(table), _right(table), _planted(table)
    if mutants.empty and right.empty and planted.empty:
        return ""
    said = (
        f"{len(mutants)} mutants with {mutants['fault'].nunique()} faults; "
        f"{right['base'].nunique()} operators and solvers of the catalogue at "
        f"{counted(right['seed'].nunique(), 'seed')}."
    )
    if planted.empty:
        return said
    return (
        f"{said} {len(planted)} faults by a stranger to the laws; "
        f"{len(_unusual(table))} correct subjects in unusual style."
    )


def survivors(table: pd.DataFrame) -> pd.DataFrame:
    """The mutants that keep every law, and those planted faults of the tuned half."""
    planted = _planted(table)
    told = pd.concat([_mutants(table), planted[planted[ORIGIN] == TUNED]])
    return told[~told["caught"].astype(bool)]


def findings(table: pd.DataFrame) -> list[str]:
    """Power on mutants and on each half of the planted faults, false alarms, survivors."""
    mutants, right = _mutants(table), _right(table)
    said = []
    if len(mutants):
        caught = mutants["caught"].astype(bool)
        parts = (
            f"{int(mine.sum())} of {len(mine)} {KINDS[bool(solver)]}"
            for solver, mine in caught.groupby(mutants["solver"].astype(bool))
        )
        said.append(
            f"Of {len(mutants)} mutants {int(caught.sum())} break a law, "
            f"{100 * caught.mean():.1f} %: {joined(parts)}."
        )
    said.extend(_power(table))
    if len(right):
        alarms = int(right["alarms"].sum())
        asked = int(right["laws"].sum())
        text = (
            f"The catalogue was asked {asked} times for a law ({right['base'].nunique()} operators "
            f"and solvers, {counted(right['seed'].nunique(), 'seed')}) and broke {alarms or 'none'}"
        )
        loud = right[right["alarms"] > 0]
        named = (f"{row.base}: {row.law} (seed {row.seed})" for row in loud.itertuples())
        said.append(f"{text}: {joined(named)}." if alarms else f"{text}.")
    said.extend(_alarms(table))
    left = survivors(table)
    said.extend(
        f"Survivor: {row.fault}, of {row.base}: {row.reason or 'no reason is known'}."
        for row in left.itertuples()
    )
    return said


def _power(table: pd.DataFrame) -> Iterator[str]:
    """What is seen of each half, with its interval; and of those that can be seen at all."""
    planted = _planted(table)
    for half, words in HALVES.items():
        mine = planted[planted[ORIGIN] == half]
        if mine.empty:
            continue
        said = f"Of {len(mine)} faults by a stranger to the laws {words}, {_rate(mine)}"
        hidden = (mine["reason"] != "") & ~mine["caught"].astype(bool)
        if hidden.any():
            said += (
                f"; of the others, {int(hidden.sum())} cannot be seen from outside, and without "
                f"them it is {_rate(mine[~hidden])}"
            )
        yield f"{said}."


def _rate(rows: pd.DataFrame) -> str:
    count = int(rows["caught"].astype(bool).sum())
    low, high = share(count, len(rows))
    verb = "breaks" if count == 1 else "break"
    interval = f"95 % {percent(low)} to {percent(high)}"
    return f"{count} {verb} a law, {percent(count / len(rows))} % ({interval})"


def _alarms(table: pd.DataFrame) -> Iterator[str]:
    """Which correct subjects in unusual style break a law."""
    unusual = _unusual(table)
    if unusual.empty:
        return
    loud = unusual[unusual["alarms"] > 0]
    low, high = share(len(loud), len(unusual))
    said = f"Of {len(unusual)} correct subjects in unusual style {len(loud) or 'none'} "
    said += f"{'breaks' if len(loud) == 1 else 'break'} a law (95 % {percent(low)} to "
    said += f"{percent(high)} %)"
    named = (f"{row.base}: {row.law}" for row in loud.itertuples())
    yield f"{said}: {joined(named)}." if len(loud) else f"{said}."


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Planted faults by kind; every mutant with the law that broke; how many broke each first."""
    yield from _kinds(table)
    mutants = _mutants(table)
    if mutants.empty:
        return
    for solver, mine in mutants.groupby(mutants["solver"].astype(bool)):
        body: list[list[Cell]] = []
        for fault, rows in mine.groupby("fault", sort=False):
            for i, row in enumerate(rows.itertuples()):
                name = str(fault) if i == 0 else ""
                body.append([name, str(row.base), str(row.law) or "survives"])
        yield {
            "caption": f"Mutants of {KINDS[bool(solver)]}: the fault, where it was planted, and "
            "the law that broke first.",
            "header": ["fault", "planted in", "law"],
            "rows": body,
            "left": 2,
        }
    first = mutants[mutants["caught"].astype(bool)]["law"].value_counts()
    yield {
        "caption": "How many mutants broke each law first, in the order in which laws are asked.",
        "header": ["law", "mutants"],
        "rows": [[str(law), str(count)] for law, count in first.items()],
        "left": 1,
    }


def _kinds(table: pd.DataFrame) -> Iterator[Table]:
    planted = _planted(table)
    if planted.empty:
        return
    body: list[list[Cell]] = []
    for kind, mine in planted.groupby("base", sort=False):
        caught = mine["caught"].astype(bool)
        halves = (caught[mine[ORIGIN] == half] for half in HALVES)
        body.append([str(kind), *(f"{int(x.sum())} of {len(x)}" for x in halves)])
    yield {
        "caption": "Faults by a stranger to the laws: how many of each kind break a law.",
        "header": ["kind", *HALVES],
        "rows": body,
        "left": 1,
    }


def _done(table: pd.DataFrame) -> pd.DataFrame:
    """The finished rows; none of a table without the columns."""
    done = finished(table, NEEDED)
    words = ["fault", "base", "reason", "law", ORIGIN]  # a column without any is one of numbers
    return done.assign(**done[words].astype(object).fillna(""))


def _of(table: pd.DataFrame, *, faulty: bool, made: bool) -> pd.DataFrame:
    """The rows of faulty subjects or right ones, made of the catalogue or not."""
    done = _done(table)
    return done[(done["fault"] != "").eq(faulty) & (done[ORIGIN] == "").eq(made)]


def _mutants(table: pd.DataFrame) -> pd.DataFrame:
    return _of(table, faulty=True, made=True)


def _right(table: pd.DataFrame) -> pd.DataFrame:
    return _of(table, faulty=False, made=True)


def _planted(table: pd.DataFrame) -> pd.DataFrame:
    return _of(table, faulty=True, made=False)


def _unusual(table: pd.DataFrame) -> pd.DataFrame:
    return _of(table, faulty=False, made=False)
