"""``softlab compare``: one's own operator beside others, on real heads."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softlab.cli.console import FINDING, err, fail, out, say, say_json, told

if TYPE_CHECKING:
    from softlab.compare import Comparison

EXAMPLES = (
    "Examples:  softlab compare mine.py:attend 'Nystromformer(rank=64)' Performer   |   "
    "softlab compare Soft --inputs qkv.pt --budget 1/4 --out results   |   "
    "softlab compare mine.py:attend --inputs heads/ --inputs recorded --json"
)
WIDTH = 48
"""Columns of the figure on a terminal."""


def compare(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OPERATOR...",
            help="'Nystromformer(rank=64)'; a class, as Performer, whose knob the budget sets; "
            "your own, as mine.py:attend or package.module:name.",
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every approximation of the catalogue, too.")
    ] = False,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            help="recorded, a recorded name, 'Normal(512, 32)', a file of q, k and v, or a folder "
            "of such; again for more."
        ),
    ] = None,
    budget: Annotated[
        str, typer.Option(help="Share of the exact operator's work that a class may spend.")
    ] = "1/8",
    target: Annotated[
        str | None, typer.Option(help="What a function of yours approximates: 'Softmax()'.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two samples a head: a trial run.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Write report.pdf, report.html and the table here.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Write a result file a method here, for softlab board.")
    ] = None,
    laws: Annotated[
        str, typer.Option(help="Whose laws to ask: yours, all, none. Softlab's are tested.")
    ] = "yours",
    as_json: Annotated[
        bool, typer.Option("--json", help="The table and all rows as JSON.")
    ] = False,
) -> None:
    """Compare operators on the same heads: error, skill, work, time, memory, laws broken.

    Each method stands beside three controls: the mean of the values, the best matrix of the rank,
    and the heaviest keys of each query. A class is given the greatest setting that the budget
    affords; an operator with its numbers is taken as it is. About a minute.

    Exit codes: 0 done, 1 a law is broken or a method failed on a head, 2 it could not be done, as
    where a method failed on all heads.
    """
    from softlab.compare import compare as compared
    from softlab.compare.subjects import catalogue, subject

    try:
        with err.status("starting") as status:
            found = compared(
                *(subjects or ()), *(catalogue() if every else ()),
                inputs=inputs or ["recorded"], budget=_share(budget), quick=quick,
                target=None if target is None else subject(target).at(1.0, 0, _no_dims()),
                laws=laws, tell=told(status),
            )  # fmt: skip
        paths = [] if results is None else found.results(results)
        report = None if folder is None else found.save(folder)
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        fail(str(error))
    rows = found.summary()
    if as_json:
        say_json({"summary": rows, "rows": found.rows, "pdf": report, "results": paths})
    else:
        _tell(found, rows, [*([report] if report else []), *paths])
    methods = [row for row in rows if row["kind"] == "method"]
    if lost := _without_answer(methods, named=not every):
        fail(f"{' and '.join(lost)} gave no answer on any head.")
    if any(row["laws_broken"] or row["failed"] for row in methods):
        raise typer.Exit(FINDING)


def _without_answer(methods: list[dict[str, Any]], *, named: bool) -> list[str]:
    """Methods that no head has an answer of; of the catalogue not those too dear for the budget."""
    from softlab.report.compare.chapter import too_dear

    lost = [row for row in methods if not row["error"].units]
    return [str(row["method"]) for row in lost if named or not too_dear(row)]


def _share(words: str) -> float:
    try:
        return float(Fraction(words))
    except (ValueError, ZeroDivisionError):
        fail(f"--budget is {words!r}; give a share of the exact work, as 1/8 or 0.125.")


def _no_dims() -> Any:
    from softlab.core import Dims

    return Dims(1, 1, 1, 1, 1)


def _tell(found: Comparison, rows: list[dict[str, Any]], paths: list[Path]) -> None:
    """The table, the figure, what is found, and what was written."""
    from rich.table import Table

    from softlab.report.compare.chapter import HEADER, about, cells, findings

    table = Table(box=None, padding=(0, 2, 0, 0))
    for i, title in enumerate(HEADER):
        table.add_column(title, overflow="fold", no_wrap=i == 0)
    for name, *line in cells(found.table):
        table.add_row(name, *(cell.replace(" (", "\n(") for cell in line))
    out.print(table)
    say(f"\n{about(found.table)}\n")
    say("\n".join(_figure(found, rows)))
    for paragraph in findings(found.table):
        say(f"\n{paragraph}")
    if found.meta["quick"]:
        say("\nThis is a trial run of few samples; do not quote its numbers.")
    for name, verdicts in found.laws.items():
        for law, detail in verdicts.broken:
            say(f"\n{name} breaks the law {law!r}: {detail}")
        if verdicts.late:
            say(f"\n{name}: no answer in time of {', '.join(verdicts.late)}")
    for path in paths:
        say(str(path))


def _figure(found: Comparison, rows: list[dict[str, Any]]) -> list[str]:
    """Errors of the heads on a logarithmic axis, a line a method: each head a dot, the median ●."""
    table = found.table
    good = table[table["asked"] & (table["status"] == "ok") & table["output_error"].notna()]
    by = good.groupby(["target", "method", "source"])["output_error"].median()
    finite = [x for x in by if 0 < x < math.inf]
    if not finite:
        return []
    low, high = math.floor(math.log10(max(min(finite), 1e-9))), math.log10(max(finite))
    high = max(high, low + 1)

    def column(x: float) -> int:
        at = (math.log10(min(max(x, 10.0**low), 10.0**high)) - low) / (high - low)
        return round(at * (WIDTH - 1))

    longest = max(18, *(len(str(row["method"])) for row in rows))
    ticks = {column(10.0**power): f"{10.0**power:g}" for power in range(low, math.floor(high) + 1)}
    axis = [" "] * (WIDTH + 6)
    for at, word in ticks.items():
        axis[at : at + len(word)] = word
    drawn = [f"{'error on each head'.ljust(longest)}  {''.join(axis).rstrip()}"]
    for row in rows:
        if not row["error"].units:
            continue
        strip = ["┊" if i in ticks else " " for i in range(WIDTH)]
        for error in by.loc[row["target"], row["method"]]:
            strip[column(error)] = "∘"
        strip[column(row["error"].value)] = "●"
        drawn.append(f"{str(row['method']).ljust(longest)}  {''.join(strip).rstrip()}")
    return drawn
