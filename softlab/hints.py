"""Words that messages of errors share; imports no torch, as tables do not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def hint(got: str, known: Iterable[str]) -> str:
    """The end of a message that names the known word nearest to ``got``; empty if none is near."""
    near = difflib.get_close_matches(got, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
