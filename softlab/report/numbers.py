"""Numbers in words: three digits, medians, and lists in a sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from string import Formatter
from typing import Any

import pandas as pd

Clause = str | tuple[str, str]
"""Words with facts in braces; those of a pair are said where the fact that it names is not empty,
zero or absent."""
Facts = Mapping[str, Any]
"""What a chapter has computed, by name; nothing where the table does not tell."""

FIGURES = re.compile(r"(?<![\w.])-?\d[\d.]*(?: × 10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?")
"""Numbers in a sentence; those within a name, as of layer5, are none."""
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(x: float) -> str:
    """Three significant digits, in powers of ten where plain digits would be many."""
    if not math.isfinite(x):
        return {math.inf: "∞", -math.inf: "-∞"}.get(x, "n/a")
    if x == 0:
        return "0"
    mantissa, exponent = f"{x:.2e}".split("e")
    if -4 < int(exponent) < 4:
        return f"{float(f'{x:.2e}'):.{max(0, 2 - int(exponent))}f}"
    return f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPT)}"


class _Words(Formatter):
    """Numbers as of ``number``, lists as of ``joined``, unless the braces say otherwise.

    Of a dict: its names, each with its value in parentheses.
    """

    def format_field(self, value: Any, format_spec: str) -> str:
        if not format_spec and isinstance(value, float):
            return number(value)
        if not format_spec and isinstance(value, dict):
            value = [f"{name} ({self.format_field(x, '')})" for name, x in value.items()]
        if not format_spec and isinstance(value, list):
            return joined(value)
        return str(super().format_field(value, format_spec))


def sentence(clauses: Iterable[Clause], facts: Facts) -> str:
    """The clauses, with the facts in their places; empty where there are no facts."""
    if not facts:
        return ""
    told = (
        x if isinstance(x, str) else x[1] for x in clauses if isinstance(x, str) or facts.get(x[0])
    )
    return _Words().vformat("".join(told), (), facts)


def short(x: float, digits: int = 3) -> str:
    """As ``number``, narrow enough for a column of a table: 0.0123, 12.3, 1.23e-5, 1230."""
    if not math.isfinite(x):
        return number(x)
    if 10**digits <= abs(x) < 1e5:
        return f"{x:.0f}"
    return f"{x:#.{digits}g}".rstrip(".").replace("e-0", "e-").replace("e+0", "e")


def parted(text: str, most: int = 12) -> list[str]:
    """The paragraph cut between sentences, so that none has more numbers than a reader keeps.

    A sentence with more of them stands alone.
    """
    parts: list[str] = []
    for one in re.split(r"(?<=[.!?]) (?=[A-Z])", text):
        joint = f"{parts[-1]} {one}" if parts else one
        if parts and len(FIGURES.findall(joint)) <= most:
            parts[-1] = joint
        else:
            parts.append(one)
    return parts


def median(rows: pd.DataFrame, column: str, unit: float = 1.0) -> str:
    """The median of ``column`` over ``rows``, times ``unit``, in words."""
    return number(unit * rows[column].median())


def span(x: pd.Series, form: Callable[[float], str] = number) -> str:
    """From the least to the greatest, or one number where both are the same in print."""
    low, high = form(x.min()), form(x.max())
    return low if low == high else f"{low} to {high}"


def counted(n: int, noun: str) -> str:
    """The number and its noun: "1 case", "2 cases"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def joined(words: Iterable[object]) -> str:
    """The words in a sentence: "a", "a and b", "a, b and c"."""
    said = [str(word) for word in words]
    return ", ".join(said[:-1]) + " and " + said[-1] if len(said) > 1 else "".join(said)


def listed(names: Iterable[object]) -> str:
    """Names at the end of a sentence: as ``joined``, but "a; b, c; d" where one has a comma."""
    said = [str(name) for name in names]
    return "; ".join(said) if any("," in name for name in said) else joined(said)
