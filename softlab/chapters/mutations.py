"""What the laws see of planted faults, and what they see where there is none.

Read are ``status`` and the columns of ``studies/mutations.py``: ``seed``, ``solver``, ``fault``,
``base``, ``reason``, ``laws``, ``caught``, ``law``, ``alarms``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from softlab.chapters import Cell, Table
from softlab.chapters.numbers import joined
from softlab.chapters.rows import finished

NEEDED = {"status", "seed", "solver", "fault", "base", "reason", "laws", "law"}
OF_MUTANTS, OF_RIGHT_ONES = "caught", "alarms"
KINDS = {False: "operators", True: "solvers"}


def scope(table: pd.DataFrame) -> str:
    """How many mutants and right ones, and at how many seeds."""
    mutants, right = _mutants(table), _right(table)
    if mutants.empty and right.empty:
        return ""
    return (
        f"{len(mutants)} mutants with {mutants['fault'].nunique()} faults; "
        f"{right['base'].nunique()} operators and solvers of the catalogue at "
        f"{right['seed'].nunique()} seeds."
    )


def survivors(table: pd.DataFrame) -> pd.DataFrame:
    """The mutants that keep every law."""
    mutants = _mutants(table)
    return mutants[~mutants["caught"].astype(bool)]


def findings(table: pd.DataFrame) -> list[str]:
    """The catch rate, the false alarms, and the survivors with their reasons."""
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
    if len(right):
        alarms = int(right["alarms"].sum())
        asked = int(right["laws"].sum())
        text = (
            f"The catalogue was asked {asked} times for a law ({right['base'].nunique()} operators "
            f"and solvers, {right['seed'].nunique()} seeds) and broke {alarms or 'none'}"
        )
        loud = right[right["alarms"] > 0]
        named = (f"{row.base}: {row.law} (seed {row.seed})" for row in loud.itertuples())
        said.append(f"{text}: {joined(named)}." if alarms else f"{text}.")
    left = survivors(table)
    said.extend(
        f"Survivor: {row.fault}, of {row.base}: {row.reason or 'no reason is known'}."
        for row in left.fillna({"reason": ""}).itertuples()
    )
    return said


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Every mutant with the law that broke; how many broke each law first."""
    mutants = _mutants(table)
    if mutants.empty:
        return
    for solver, mine in mutants.groupby(mutants["solver"].astype(bool)):
        body: list[list[Cell]] = []
        for fault, rows in mine.groupby("fault", sort=False):
            for i, row in enumerate(rows.fillna({"law": ""}).itertuples()):
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


def _done(table: pd.DataFrame) -> pd.DataFrame:
    """The finished rows; none of a table without the columns."""
    return finished(table, NEEDED).reindex(columns=[*NEEDED, OF_MUTANTS, OF_RIGHT_ONES])


def _mutants(table: pd.DataFrame) -> pd.DataFrame:
    done = _done(table)
    return done[done["fault"].fillna("") != ""]


def _right(table: pd.DataFrame) -> pd.DataFrame:
    done = _done(table)
    return done[done["fault"].fillna("") == ""]
