"""What the commands say, and how they refuse."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

FINDING = 1
"""The exit code of a request that was met and found something: a law broken, a number changed."""
COULD_NOT = 2
"""The exit code of a request that could not be met; 0 is that of one that was, with no finding."""


def say(message: str) -> None:
    """Print a line or a paragraph; it is no markup, since messages hold brackets."""
    out.print(message, markup=False, soft_wrap=True)


def fail(message: str, code: int = COULD_NOT) -> NoReturn:
    """Print an error and leave."""
    err.print(Text("error: ", style="bold red") + Text(message), soft_wrap=True)
    raise typer.Exit(code)
