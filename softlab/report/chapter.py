"""Chapters of the report: what turns the table of a kind of study into words and tables.

A chapter lies in the folder of its study (``softlab.study_folders``): ``chapter.py`` with the three
functions of ``Chapter``, and ``method.typ`` with how its numbers were measured. It sees tables
only: nothing in it measures or imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypedDict, cast

import pandas as pd

from softlab import study_folders

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

    Each function is given the whole table, failed rows too (``status`` other than "ok"). A study
    whose cases all failed has only its axes; of any other a column that is not there is an error
    (``softlab.report.rows.finished``), so that no renamed one shortens a chapter in silence. Those
    that a table may lack stand, each with the reason, in ``OPTIONAL``, a mapping of the module.
    Where the first table answers the question, and not the first figure, ``TABLE_FIRST`` is true.
    """

    def scope(self, table: pd.DataFrame) -> str:
        """What was compared and on what, in a sentence or two; empty where the table is silent."""

    def findings(self, table: pd.DataFrame) -> list[str]:
        """Paragraphs computed from the table; how complete it is the report says itself."""

    def tables(self, table: pd.DataFrame) -> Iterator[Table]:
        """The tables behind the figures; failures and environment the report adds itself."""


def known() -> list[str]:
    """The names of the chapters that softlab brings."""
    return sorted(study_folders.chapters())


def of_run(meta: Mapping[str, Any]) -> tuple[str, str]:
    """The chapter of a run, in the words of ``named`` and ``fragment``."""
    return meta["chapter"], meta.get("chapter_folder", "")


def named(name: str, recorded: str = "") -> Chapter:
    """The chapter of that name, of the folder ``recorded`` where that is not empty.

    Raises ``ValueError``, which names the known ones, where there is none, and where its file
    cannot be read.
    """
    folder = study_folders.chapter_folder(name, recorded)
    try:
        return cast(Chapter, study_folders.chapter_module(folder))
    except Exception as error:  # it may be anybody's
        path = folder / study_folders.CHAPTER
        msg = f"the chapter {path} cannot be loaded: {type(error).__name__}: {error}"
        raise ValueError(msg) from error


def fragment(name: str, recorded: str = "") -> bytes:
    """How the numbers of the chapter were measured, in Typst: body text and equations.

    A fragment is read as markup, so it holds nothing from a table. All fragments share a document:
    its labels begin with the chapter's name, as in ``<operators-error>``, and it has no headings of
    the first two levels. It is empty where the folder holds none.
    """
    path = study_folders.chapter_folder(name, recorded) / study_folders.METHOD
    return path.read_bytes() if path.is_file() else b""
