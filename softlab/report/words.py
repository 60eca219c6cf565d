"""Words from elsewhere as they can be set: cut where long, spelled out where no font has them.

Nothing here changes what is counted: ``table.csv`` keeps every letter, and two words that differ
stay two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import pandas as pd
from matplotlib import __version_info__ as drawn_by
from matplotlib import font_manager, ft2font

LONGEST = 300
"""Letters of a word of a table that a report sets."""
SENTENCE = 20_000
"""Letters of a paragraph, a title or a cell that a report sets, whatever it is made of."""

FACES = ("STIXGeneral", "DejaVu Sans")
"""The fonts of figures; matplotlib brings them."""

UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""What no document may hold: control characters, reordering ones, halves of surrogate pairs."""

SET = re.compile(
    "[\t\n -~\xa0-\u04ff\u05d0-\u05ea\u0621-\u063a\u0640-\u064a\u1e00-\u1fff\u2000-\u2029"
    "\u2030-\u2040\u2054-\u2060\u2070-\u211e\u2126-\u2151\u2153-\u2184\u2190-\u23ff\u2460-\u2606\u27b1-\u2bff"
    "\ufb00-\ufb06\ufffd\U0001d400-\U0001d7ff]"
)
"""Letters that the fonts within typst 0.15 have."""

LETTER = re.compile(".[\u0300-\u036f\u1dc0-\u1dff\u20d0-\u20ff]*", re.DOTALL)
"""A letter with its accents, which are of one font or not set."""

SHAPED = re.compile("[\u0590-\u08ff]")
"""Scripts from right to left, which matplotlib orders and joins since 3.11."""


def safe(word: str) -> str:
    r"""The word with what no document may hold as its code point, a NUL as ``\x00``."""
    return UNSAFE.sub(_code, word)


def spelled(word: str) -> str:
    r"""The word for print: letters that its fonts lack stand as their code points, ``\u8aa4``."""
    return "".join(x if _has(x) else "".join(map(_code, x)) for x in LETTER.findall(word))


def drawn(word: str) -> str:
    """The word for a line of a figure: as ``spelled``, on one line."""
    word = spelled(" ".join(word.split()))
    return word if drawn_by >= (3, 11) else SHAPED.sub(_code, word)


def brief(text: str, longest: int = SENTENCE) -> str:
    """The text, or of a longer one its beginning and its length."""
    return cut([text], longest)[text]


def cut(words: Iterable[str], longest: int = LONGEST) -> dict[str, str]:
    """Each word, or of a longer one its beginning and its length; no two become one.

    "aaaa... (20000 letters)"; the second of the same beginning and length: "(20000 letters, 2)".
    """
    found: dict[str, str] = {}
    taken: dict[str, int] = {}
    for word in dict.fromkeys(words):
        if len(word) <= longest:
            found[word] = word
            continue
        short = f"{word[:longest]}\u2026 ({len(word)} letters"
        taken[short] = taken.get(short, 0) + 1
        found[word] = f"{short}, {taken[short]})" if taken[short] > 1 else f"{short})"
    return found


def legible(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The table with its long words cut, for chapters to speak of, and how many were.

    A pair of braces, which in a headline holds a number's place, is parted by no width.
    """
    changed: dict[str, pd.Series] = {}
    count = 0
    for column in table.columns:
        words = [x for x in table[column].unique() if isinstance(x, str)]
        new = {old: x.replace("{}", "{\u200b}") for old, x in cut(words).items()}
        count += sum(len(x) > LONGEST for x in words)
        new = {old: x for old, x in new.items() if x != old}
        if new:
            changed[column] = table[column].map(
                lambda x, new=new: new.get(x, x) if isinstance(x, str) else x
            )
    made = table.assign(**changed)
    made.attrs = dict(table.attrs)
    return made, count


def every(data: Any, change: Callable[[str], str]) -> Any:
    """Mappings and lists of words with each word changed; what is no word stays."""
    if isinstance(data, str):
        return change(data)
    if isinstance(data, dict):
        return {change(name): every(x, change) for name, x in data.items()}
    if isinstance(data, list | tuple):
        return [every(x, change) for x in data]
    return data


def _code(letter: str | re.Match[str]) -> str:
    letter = letter if isinstance(letter, str) else letter[0]
    return letter if " " <= letter <= "~" else ascii(letter)[1:-1]


@cache
def _has(letter: str) -> bool:
    """Whether the fonts of document and figures have the letter with its accents."""
    if UNSAFE.search(letter) or not all(map(SET.match, letter)):
        return False
    return letter.isspace() or any({*map(ord, letter)} <= face for face in _faces())


@cache
def _faces() -> list[set[int]]:
    return [set(ft2font.FT2Font(font_manager.findfont(face)).get_charmap()) for face in FACES]
