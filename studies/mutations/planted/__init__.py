"""Faults written by somebody who had not read the laws, and right subjects in unusual style."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from softlab.core import Stream

SPLIT = 16
"""The seed that tells the tuned half from the one held out."""

UNSEEN = {
    "a bias by position stops at 100 keys": "nothing is said of it, and a bias that stops growing "
    "is one, too",
}
"""Faults that nobody can see from outside, and why."""


def tuned(name: str) -> bool:
    """Whether the laws may be mended after a fault of that name; the others measure them alone.

    A coin a name, of the seed ``SPLIT``: it was tossed before any law was asked, and a fault that
    is added later moves no other.
    """
    return bool(Stream(SPLIT, f"planted, {name}").integers(2))


class Planted(NamedTuple):
    """A faulty subject.

    ``name``: what is wrong with it. ``kind``: which sort of mistake. ``make``: the subject, anew.
    ``shown``: of a subject, how far it is from the right one on some valid input, over what
    rounding allows; at most one of ``right``.
    """

    name: str
    kind: str
    make: Callable[[], Any]
    shown: Callable[[Any], float]
    right: Callable[[], Any]


class Sound(NamedTuple):
    """A correct subject in an unusual style; ``shown`` as of ``Planted``, at most one."""

    name: str
    make: Callable[[], Any]
    shown: Callable[[Any], float]
