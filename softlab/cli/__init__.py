"""The command line: run studies, set reports, list the parts, fetch recorded models.

A command is one file: a function whose docstring is its help, and ``EXAMPLES`` below that help.
"""

from __future__ import annotations

import typer

from softlab.cli import check, fetch, list, report, run, substitute

# Commands import what they need inside themselves, so that --help waits for none of it.
app = typer.Typer(
    help="The laboratory for attention approximation.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command(epilog=run.EXAMPLES)(run.run)
app.command(epilog=report.EXAMPLES)(report.report)
app.command(epilog=check.EXAMPLES)(check.check)
app.command(epilog=substitute.EXAMPLES)(substitute.substitute)
app.command("list", epilog=list.EXAMPLES)(list.catalogue)
app.command(epilog=fetch.EXAMPLES)(fetch.fetch)
