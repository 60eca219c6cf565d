"""``softlab report``: the tables as a document, or two runs side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from softlab.cli.console import FINDING, fail, out, say

if TYPE_CHECKING:
    from softlab.report.comparison import Comparison

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
            help="Set nothing; say what changed between two folders beyond noise.",
        ),
    ] = None,
) -> None:
    """Set FOLDER/report.pdf and FOLDER/report.html from the tables under FOLDER.

    --compare holds the cases that two runs share against each other. Noise is, of a time, the
    spread of repeated calls; of all else the square root of the rounding unit. Exit codes: 0
    nothing changed or all is set, 1 something changed, 2 it, or a part of it, could not be done.
    """
    from softlab.report import report as set_report
    from softlab.report.comparison import compare as compared

    untold: list[str] = []
    try:
        if compare is not None:
            changed, cases = False, 0
            for found in compared(*compare):
                _tell(found)
                changed, cases = changed or bool(found.changes), cases + found.cases
            if not cases:
                fail("the two runs share no finished case, so that nothing was compared")
            raise typer.Exit(FINDING if changed else 0)
        path = set_report(folder, tell=untold.append)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(str(error))
    say(str(path))
    say(str(path.with_suffix(".html")))
    if untold:
        fail("\n".join(untold))


def _tell(found: Comparison) -> None:
    from softlab.report.numbers import number

    say(f"{found.study}: {len(found.changes)} of {found.columns} columns changed beyond noise, "
        f"of {found.cases} cases that both runs finished")  # fmt: skip
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
