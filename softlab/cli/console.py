"""What the commands say, and how they refuse."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.status import Status
from rich.text import Text

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

FINDING = 1
"""The exit code of a request that was met and found something: a law broken, a number changed."""
COULD_NOT = 2
"""The exit code of a request that could not be met; 0 is that of one that was, with no finding."""


def say(message: str, *, error: bool = False) -> None:
    """Print a line or a paragraph; it is no markup, since messages hold brackets.

    ``error``: on standard error, beside numbers for programs.
    """
    (err if error else out).print(message, markup=False, soft_wrap=True)


EVERY = 30.0
"""Seconds between two lines of ``told`` where no status can move."""


def told(status: Status) -> Callable[[str], None]:
    """What shows how far a command is: the status line, and a line now and then in a log."""
    last = -math.inf

    def tell(words: str) -> None:
        nonlocal last
        status.update(words)
        if not err.is_terminal and time.monotonic() - last >= EVERY:
            last = time.monotonic()
            say(words, error=True)

    return tell


def say_json(value: object) -> None:
    """Print a value as JSON that any parser takes: NaN is null, the infinite are "inf" and "-inf".

    ``value``: of numbers, words, paths, dataclasses, mappings and lists of such.
    """
    print(json.dumps(_plain(value), indent=2, allow_nan=False))  # noqa: T201


def _plain(x: Any) -> Any:
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return {one.name: _plain(getattr(x, one.name)) for one in dataclasses.fields(x)}
    if isinstance(x, Mapping):
        return {str(name): _plain(one) for name, one in x.items()}
    if isinstance(x, Path):
        return str(x)
    if isinstance(x, Iterable) and not isinstance(x, str):
        return [_plain(one) for one in x]
    if isinstance(x, float) and not math.isfinite(x):
        return None if math.isnan(x) else str(float(x))
    return x


def fail(message: str, code: int = COULD_NOT) -> NoReturn:
    """Print an error and leave."""
    err.print(Text("error: ", style="bold red") + Text(message), soft_wrap=True)
    raise typer.Exit(code)
