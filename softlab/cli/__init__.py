"""The command line: run studies, set reports, list the parts, fetch recorded models.

A command is one file: a function whose docstring is its help, and ``EXAMPLES`` below that help.
"""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from softlab import __version__
from softlab.cli import (
    board,
    certify,
    check,
    compare,
    docket,
    fetch,
    info,
    list,
    record,
    report,
    run,
    substitute,
    tune,
)
from softlab.cli.console import say

# Commands import what they need inside themselves, so that --help waits for none of it.
app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for name, call, examples in (
    ("run", run.run, run.EXAMPLES),
    ("report", report.report, report.EXAMPLES),
    ("compare", compare.compare, compare.EXAMPLES),
    ("board", board.board, board.EXAMPLES),
    ("certify", certify.certify, certify.EXAMPLES),
    ("check", check.check, check.EXAMPLES),
    ("substitute", substitute.substitute, substitute.EXAMPLES),
    ("list", list.catalogue, list.EXAMPLES),
    ("fetch", fetch.fetch, fetch.EXAMPLES),
    ("record", record.record, record.EXAMPLES),
    ("tune", tune.tune, tune.EXAMPLES),
    ("info", info.info, info.EXAMPLES),
):
    # A paragraph is one line, which typer folds to the terminal: it keeps the lines of a docstring.
    paragraphs = inspect.cleandoc(call.__doc__ or "").split("\n\n")
    flowing = "\n\n".join(" ".join(x.split()) for x in paragraphs)
    app.command(name, epilog=examples, help=flowing)(call)
app.add_typer(docket.app, name="docket")


def _version(asked: bool) -> None:
    if asked:
        say(f"softlab {__version__}")
        raise typer.Exit


@app.callback()
def _softlab(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print it, and leave."),
    ] = False,
) -> None:
    """The laboratory for attention approximation.

    Exit codes of every command: 0 done, 1 a finding (a law is broken, a number has changed, a case
    failed), 2 it could not be done. --json prints for programs what is otherwise said in words.
    """
