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
    as_json: Annotated[
        bool, typer.Option("--json", help="What changed, or where the report is, as JSON.")
    ] = False,
) -> None:
    """Set FOLDER/report.pdf and FOLDER/report.html from the tables under FOLDER.

    --compare holds the cases that two runs share against each other. Noise is, of a time, the
    spread of repeated calls; of all else the square root of the rounding unit.

    Exit codes: 0 nothing changed or all is set, 1 something changed, 2 it, or a part of it, could
    not be done.
    """
    from softlab.report import report as set_report
    from softlab.report.comparison import compare as compared

    untold: list[str] = []
    try:
        if compare is not None:
            comparisons = []
            try:
                for found in compared(*compare):
                    comparisons.append(found)
                    if not as_json:
                        _tell(found)
            finally:  # what could be compared is told, also where a part could not
                if as_json:
                    say_json(comparisons)
            changed = any(found.changes for found in comparisons)
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
