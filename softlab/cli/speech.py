"""What the commands say, and how they refuse."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

BAD_INPUT = 2
"""The exit code of a request that cannot be met; a run that something stopped exits with 1."""


def say(message: str) -> None:
    """Print a line or a paragraph; it is no markup, since messages hold brackets."""
    out.print(message, markup=False, soft_wrap=True)


def fail(message: str, code: int = BAD_INPUT) -> NoReturn:
    """Print an error and leave."""
    err.print(Text("error: ", style="bold red") + Text(message), soft_wrap=True)
    raise typer.Exit(code)
