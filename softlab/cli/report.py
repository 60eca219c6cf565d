"""``softlab report``: the tables as a document, or two runs side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from softlab.cli.console import FINDING, fail, out, say, say_json

if TYPE_CHECKING:
    from softlab.report.comparison import Comparison

SHOWN = 20
"""Cases of a column that the exact mode names."""
EXAMPLES = (
    "Examples:  softlab report reports   |   softlab report --compare reports/h200 reports   |   "
    "softlab report --compare before/rank after/rank"
)


def report(
    folder: Annotated[Path, typer.Argument(help="Where the studies' folders are.")] = Path(
        "reports"
    ),
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="OLD NEW",
            help="Build nothing; say what changed between two folders beyond noise.",
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="With --compare: all but times, to the last digit.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="What changed, or where the report is, as JSON.")
    ] = False,
) -> None:
    """Build FOLDER/report.pdf and FOLDER/report.html from the tables under FOLDER.

    --compare compares the cases that two runs share. A timing counts as changed if it moved by more
    than the spread of its repeats; any other number, by more than the square root of the machine
    epsilon. With --exact times are left out, and all else differs where a digit does, or where a
    case or a column is missing on one side.

    Exit codes: 0 nothing changed, or the report is built; 1 something changed; 2 it, or a part of
    it, could not be done.
    """
    from softlab.report import report as set_report
    from softlab.report.comparison import compare as compared

    untold: list[str] = []
    if exact and compare is None:
        fail("--exact is a manner of comparing; give it with --compare OLD NEW")
    try:
        if compare is not None:
            comparisons = []
            try:
                for found in compared(*compare, exact=exact):
                    comparisons.append(found)
                    if not as_json:
                        _tell(found, exact=exact)
            finally:  # what could be compared is told, also where a part could not
                if as_json:
                    say_json([{**vars(x), "verdict": x.verdict} for x in comparisons])
            changed = any(x.changes or (exact and x.coverage) for x in comparisons)
            if not sum(found.cases for found in comparisons):
                fail("the two runs share no finished case, so that nothing was compared")
            raise typer.Exit(FINDING if changed else 0)
        path = set_report(folder, tell=untold.append)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(str(error))
    page = path.with_suffix(".html")
    if as_json:
        say_json({"pdf": path, "html": page, "left_out": untold})
    else:
        say(str(path))
        say(str(page))
    if untold:
        fail("\n".join(untold))


def _tell(found: Comparison, *, exact: bool) -> None:
    from softlab.report.numbers import number

    of, how = ("columns without times", "differ") if exact else ("columns", "changed beyond noise")
    say(
        f"{found.study}: {found.verdict}; {len(found.changes)} of {found.columns} {of} {how}, of "
        f"{found.cases} cases that both runs finished"
    )
    for line in (*found.environment, *found.coverage):
        say(f"  {line}")
    if not found.changes:
        return
    table = Table("column", "cases", "factor", "interval", "most", box=None, padding=(0, 2, 0, 0))
    for x in found.changes:
        known = not math.isnan(x.factor)
        factor = number(x.factor) if known else ""
        table.add_row(
            x.column, f"{x.changed} of {x.cases}", factor, x.span if known else "", x.most
        )
    out.print(table, "")
    for x in found.changes:
        if x.where:
            more = f"; and {len(x.where) - SHOWN} more" if len(x.where) > SHOWN else ""
            say(f"  {x.column} differs at {'; '.join(x.where[:SHOWN])}{more}")
