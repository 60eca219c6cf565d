"""Failures by their causes: many laws break for one reason, at one place of the user's own code."""

from __future__ import annotations

import functools
import inspect
import re
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch

from softlab.laws.law import is_plain

if TYPE_CHECKING:
    from softlab.laws.runner import Outcome

LAWS = Path(__file__).resolve().parent
PACKAGE = LAWS.parent
LIBRARIES = tuple(
    {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}
    | {Path(torch.__file__).resolve().parent}
)
ENDS = ("raised", "ended", "gave no answer", "forked")
"""How the detail begins of a failure that is no miss."""
WRONG = {"gradients": "gradients are wrong", "honesty": "a call leaves traces"}


@dataclass(frozen=True)
class Cause:
    """A reason why laws break: in one line, at a place of the user's code, with those laws."""

    what: str
    at: str
    outcomes: tuple[Outcome, ...]

    @property
    def simplest(self) -> Outcome:
        """The failure to show: the one with the shortest counterexample."""
        shown = [one for one in self.outcomes if one.counterexample] or self.outcomes
        written = [one for one in shown if "=" in one.counterexample] or shown
        return min(written, key=lambda one: len(one.counterexample))


def causes(outcomes: Iterable[Outcome]) -> list[Cause]:
    """The failures among the outcomes, those of one cause together, in the order of the laws.

    Failures with the same error at the same line, or the same end of the process, have one cause;
    so have those that need the same choices of a situation, or more than another that fails; what
    fails in an ordinary situation goes by the family of its law.
    """
    failed = [one for one in outcomes if one.verdict == "fails"]
    least = _least([frozenset(one.situation) for one in failed if one.situation])
    groups: dict[Any, list[Outcome]] = {}
    for one in failed:
        key: Any = one.family
        if one.detail.startswith(ENDS):
            key = (re.sub(r"[\d.]+", "#", one.detail), one.at)
        elif one.situation:
            key = next(names for names in least if names <= frozenset(one.situation))
        groups.setdefault(key, []).append(one)
    return [_cause(found) for found in groups.values()]


def _least(sets: Sequence[frozenset[str]]) -> list[frozenset[str]]:
    """The sets that hold no other."""
    return sorted(
        {x for x in sets if not any(y < x for y in sets)}, key=lambda x: (len(x), sorted(x))
    )


def _cause(found: Sequence[Outcome]) -> Cause:
    """One line for failures of one cause: of the one with the fewest conditions."""
    plainest = min(found, key=lambda one: len(one.situation))
    shared = [one for one in found if frozenset(one.situation) == frozenset(plainest.situation)]
    words = min((one.condition for one in shared), key=len)
    if plainest.detail.startswith(ENDS):
        what = " ".join(filter(None, (plainest.detail, words)))
    elif plainest.situation:
        families = {one.family for one in found}
        wrong = WRONG.get(families.pop()) if len(families) == 1 else None
        what = f"{wrong or 'the output is wrong'} {words}"
    else:
        what = f"not so: {plainest.statement}"
    return Cause(what, plainest.at, tuple(found))


def raised_at(error: BaseException) -> str:
    """File and line of the user's own code that raised: the last frame that is no library's."""
    frames = [(x.filename, x.lineno) for x in traceback.extract_tb(error.__traceback__)]
    own = [x for x in frames if _theirs(x[0])]
    ours = [x for x in frames if _within(x[0], PACKAGE) and not _within(x[0], LAWS)]
    where = (own or ours)[-1:]
    return "".join(_place(name, line) for name, line in where)


def _within(name: str, folder: Path) -> bool:
    return folder in Path(name).resolve().parents


def _theirs(name: str) -> bool:
    """Whether a file is neither ours nor of a library."""
    return not name.startswith("<") and not any(_within(name, x) for x in (PACKAGE, *LIBRARIES))


def defined(subject: Any) -> str:
    """File and line of a function, or of the call of an object; empty for what has none."""
    call = subject.call if is_plain(subject) else subject
    while isinstance(call, functools.partial):
        call = call.func
    call = inspect.unwrap(call)
    if isinstance(call, torch.nn.Module):
        call = type(call).forward
    elif not inspect.isroutine(call):
        call = inspect.unwrap(type(call).__call__)
    code = getattr(inspect.unwrap(getattr(call, "__func__", call)), "__code__", None)
    return _place(code.co_filename, code.co_firstlineno) if isinstance(code, CodeType) else ""


def _place(name: str, line: int | None) -> str:
    """``mine.py:12``, from the working directory if it is under it."""
    path = Path(name)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return f"{path}:{line}"
