"""What a report says on its first page: a sentence with its number and the number's interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

import numpy as np
import pandas as pd

from softlab.chapters import named
from softlab.chapters.numbers import number
from softlab.chapters.quartiles import interval


class Headline(TypedDict):
    """A finding for the first page, which all studies share: at most two of each.

    ``text`` holds ``{}`` where its ``value`` stands; ``interval`` says which, and of how many. A
    finding without a number of its own has an empty value and interval.
    """

    text: str
    value: str
    interval: str


def headline(text: str, values: pd.Series, of: str, unit: str = "") -> Iterator[Headline]:
    """The median of ``values`` in a sentence, with its 95 % interval, or the range of a few.

    ``of`` names what the values are, in the plural. Nothing where there is no finite value.
    """
    values = values[np.isfinite(values.astype(float))]
    if values.empty:
        return
    low, high = interval(values)
    kind = "95 %"
    if np.isinf(low) or np.isinf(high):
        low, high, kind = values.min(), values.max(), "range"
    yield {
        "text": text,
        "value": number(values.median()) + unit,
        "interval": f"{kind} {number(low)} to {number(high)}{unit}; {of}: {len(values)}",
    }


def headlines(table: pd.DataFrame, meta: Mapping[str, Any], said: list[str]) -> list[Headline]:
    """Those of the study's chapter; of one that offers none the first sentence that it says."""
    offered = getattr(named(meta["chapter"]), "headlines", None)
    found: list[Headline] = list(offered(table)) if offered else []
    if not found and said:
        first = said[0].split(". ")[0].rstrip(".").replace("{", "(").replace("}", ")")
        found = [{"text": f"{first}.", "value": "", "interval": ""}]
    return found
