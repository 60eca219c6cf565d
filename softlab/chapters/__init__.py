"""Chapters of the report: one module a kind of study, which turns its table into words and tables.

``Study.chapter`` names the module. A new chapter is two files in this folder: ``<name>.py`` with
the three functions of ``Chapter``, and ``<name>.typ`` with how its numbers were measured. They see
tables only: nothing here measures or imports torch.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypedDict, cast

import pandas as pd

Cell = str | list[str]
"""What stands in a table: a word, or two of which the second is set small below the first."""


class Table(TypedDict):
    """A table of the report: words only, set as they are and never read as markup.

    ``left`` counts the columns that are aligned left and kept narrow; the others share the rest of
    the width and are aligned right. A row whose first cell is filled opens a group, with a line
    above it. Every row has as many cells as the header.
    """

    caption: str
    header: list[str]
    rows: list[list[Cell]]
    left: int


class Chapter(Protocol):
    """What the module of a chapter offers.

    Each function is given the whole table, failed rows too (``status`` other than "ok"), and must
    do without columns that are not there: a study whose cases all failed has only its axes. What it
    cannot say it leaves out.
    """

    def scope(self, table: pd.DataFrame) -> str:
        """What was compared and on what, in a sentence or two; empty where the table is silent."""

    def findings(self, table: pd.DataFrame) -> list[str]:
        """Paragraphs computed from the table; how complete it is the report says itself."""

    def tables(self, table: pd.DataFrame) -> Iterator[Table]:
        """The tables behind the figures; failures and environment the report adds itself."""


def known() -> list[str]:
    """The chapters: the names of the Typst fragments in this folder."""
    return sorted(path.stem for folder in __path__ for path in Path(folder).glob("*.typ"))


def named(name: str) -> Chapter:
    """The chapter of that name; ``ValueError`` names the known ones."""
    if name not in known():
        near = difflib.get_close_matches(str(name), known(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        msg = f"there is no chapter {name!r}; the chapters are {', '.join(known())}.{hint}"
        raise ValueError(msg)
    return cast(Chapter, importlib.import_module(f"{__name__}.{name}"))


def fragment(name: str) -> bytes:
    """How the numbers of the chapter were measured, in Typst: body text and equations.

    A fragment is read as markup, so it holds nothing from a table. All fragments share a document:
    its labels begin with the chapter's name, as in ``<operators-error>``, and it has no headings of
    the first two levels.
    """
    (path,) = (path for folder in __path__ for path in Path(folder).glob(f"{name}.typ"))
    return path.read_bytes()
