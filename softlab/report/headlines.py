"""What a report says on its first page: a sentence with its number and the number's interval."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NotRequired, TypedDict

import numpy as np
import pandas as pd

from softlab.report.chapter import named, of_run
from softlab.report.intervals import by_unit, median
from softlab.report.numbers import number

EACH = 3
"""Headlines of a study, at most: all studies share the page."""

SMALL = 0.05
"""The effect of a prediction that held: worth a line of the first page, after what surprises."""
NUMBER = re.compile(r"(-?\d[\d.]*)(?: × 10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?")
PLAIN = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
CONSTANT = 2.0
"""A number is a constant of a study where no condition has another by more than this factor."""


class Headline(TypedDict):
    """A finding for the first page.

    ``text`` holds ``{}`` where its ``value`` stands; ``interval`` says how sure that is. A finding
    without a number of its own has an empty value and interval. The sentence must be true when it
    is read alone: what the number is a median of stands in it. ``effect`` says how far it is from
    what a reader would expect, as the size of the logarithm of a ratio; of ratios ``effect_of``
    finds it.
    """

    text: str
    value: str
    interval: str
    effect: NotRequired[float]


def headline(
    text: str,
    values: pd.Series,
    of: str,
    *,
    unit: pd.Series | None = None,
    nested: str = "cases",
    ratios: bool = False,
    grid: bool = False,
    holds: bool = True,
) -> Iterator[Headline]:
    """The median over independent units in a sentence, ``text`` with ``{}`` for its number.

    Appended is what it is a median of: ", in the median over 6 heads (each the median over its
    samples)". ``of`` names the units in the plural; ``unit`` tells to which one a value belongs and
    ``nested`` what varies within it, in the plural, which is said where a unit has more than one
    value; ``ratios`` are reduced by their geometric mean. ``grid``: the units are a designed grid
    (condition numbers, spreads, methods) and no population, so that the sentence says from where to
    where the values go, and no median. ``holds``: whether the study's own test of the sentence
    passes, as ``constant`` over its conditions; where it does not the sentence is not said. Nothing
    where there is no value.
    """
    values = values.dropna()
    each = values if unit is None else by_unit(values, unit, ratios=ratios).dropna()
    if each.empty or not holds:
        return
    text = text.rstrip(".")
    reduced = "geometric mean" if ratios else "median"
    of_each = f" (each the {reduced} over its {nested})" if len(values) > len(each) else ""
    found = median(each)
    if len(each) == 1:
        over, value, span = f" ({of}: 1)", number(found.value), ""
    elif grid:
        low, high = number(each.min()), number(each.max())
        over = f", over a designed grid of {len(each)} {of}{of_each}"
        value, span = (low if low == high else f"{low} to {high}"), "range over the grid"
    else:
        over = f", in the median over {len(each)} {of}{of_each}"
        value, span = number(found.value), found.span(of)
    yield {"text": f"{text}{over}.", "value": value, "interval": span}


def surprise(share: float) -> float:
    """The effect of a share of cases that go against expectation: -log(1 - share)."""
    return -math.log(max(1 - share, 1e-3))


def effect_of(found: Headline) -> float:
    """How much a finding changes for a reader, to rank the first page by.

    What the chapter says; else of a ratio r ("2.00 times") |log r|, and nothing where its interval
    holds one; of others, as much as a change by a quarter.
    """
    if "effect" in found:
        return found["effect"]
    ends = _numbers(found["value"])
    if " times" not in found["text"] or not ends or min(ends) <= 0:
        return math.log(1.25)
    span = re.search(rf"({NUMBER.pattern}) (?:to|and) ({NUMBER.pattern})", found["interval"])
    reach = [*ends, *(_numbers(span[0]) if span else [])]
    if min(reach) <= 1 <= max(reach):
        return 0.0
    return min(abs(math.log(x)) for x in ends)


def _numbers(words: str) -> list[float]:
    """The numbers in what ``numbers.number`` has written."""
    return [
        float(x[1]) * 10.0 ** int((x[2] or "0").translate(PLAIN)) for x in NUMBER.finditer(words)
    ]


def constant(values: pd.Series, along: pd.Series, factor: float = CONSTANT) -> bool:
    """Whether a number is about the same under all conditions, so that one may be said for all.

    The medians of ``values`` at the levels of ``along`` (condition numbers, lengths, kinds of
    input) are finite, of one sign and within ``factor`` of each other.
    """
    levels = values.astype(float).groupby(along).median()
    sizes = levels.abs()
    one_sign = (levels > 0).all() or (levels < 0).all()
    return bool(one_sign and np.isfinite(sizes).all() and sizes.max() <= factor * sizes.min())


def headlines(table: pd.DataFrame, meta: Mapping[str, Any], said: list[str]) -> list[Headline]:
    """The first three of the study's chapter; of one that offers none its first sentence."""
    offered = getattr(named(*of_run(meta)), "headlines", None)
    found: list[Headline] = list(islice(offered(table), EACH)) if offered else []
    if not found and said:
        first = said[0].split(". ")[0].rstrip(".").replace("{", "(").replace("}", ")")
        found = [{"text": f"{first}.", "value": "", "interval": ""}]
    return found
