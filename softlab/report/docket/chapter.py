"""Published claims: one line a claim, the verdict computed from the rows.

Read are the columns of ``softlab.report.claims.gathered``, and the claims among the table's
``attrs``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pandas as pd

from softlab.report.chapter import Table
from softlab.report.claims import Tried, tried
from softlab.report.headlines import Headline
from softlab.report.numbers import counted, joined
from softlab.report.rows import complete
from softlab.verdicts import NONE, VERDICTS

NEEDED = {
    *("claim", "way", "case", "place", "unstated", "decides", "seed", "contender", "value"),
    *("status", "error"),
}
TABLE_FIRST = True


def _tried(table: pd.DataFrame) -> list[Tried]:
    """The verdicts; none of a table that no docket made."""
    return tried(table) if "claims" in table.attrs and complete(table, NEEDED) else []


def scope(table: pd.DataFrame) -> str:
    """How many claims, and of whom."""
    found = _tried(table)
    if not found:
        return ""
    return f"{counted(len(found), 'claim')}: {joined(one.claim['title'] for one in found)}."


def findings(table: pd.DataFrame) -> list[str]:
    """How many claims got which verdict, then each claim with its number and verdict."""
    found = _tried(table)
    if not found:
        return []
    kinds = Counter(one.verdict.kind for one in found)
    counts = joined(f"{kinds[kind]} {kind}" for kind in (*VERDICTS, NONE) if kinds[kind])
    return [f"Of {counted(len(found), 'claim')}: {counts}.", *map(_paragraph, found)]


def _paragraph(one: Tried) -> str:
    claim = one.claim
    said = [
        f"{claim['title']} ({claim['who']}, {claim['place']}): {one.verdict.words}.",
        f"The claim: {claim['states'].rstrip('.')}. Theirs: {claim['published']}.",
        f"Ours, {one.number}, of {claim['subject']}: {one.ours}.",
    ]
    if one.controls:
        said.append(f"Controls: {one.controls}. Margin: {one.flips}.")
    if one.challenged:
        said.append(f"{one.challenged[0].upper()}{one.challenged[1:]}.")
    said.append(f"As published: {claim['setting'].rstrip('.')}. Lacking: {claim['lacking']}")
    return " ".join(said).rstrip(".") + "."


def headlines(table: pd.DataFrame) -> Iterator[Headline]:
    """How many of the claims hold without a condition."""
    found = _tried(table)
    decided = [one for one in found if one.verdict.kind != NONE]
    if decided:
        held = sum(one.verdict.kind == VERDICTS[0] for one in decided)
        yield {
            "text": f"Of {len(decided)} published claims that were tried, {{}} hold as they stand.",
            "value": str(held),
            "interval": "counted",
        }


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """One line a claim."""
    found = _tried(table)
    if not found:
        return
    yield {
        "caption": "The docket. Our number is that at the one place with its 95 % interval, or the "
        "median over the places with their range.",
        "header": ["claim", "theirs", "ours", "controls", "verdict"],
        "rows": [
            [
                [one.claim["title"], f"{one.claim['who']}, {one.claim['place']}"],
                one.claim["published"],
                one.ours,
                one.controls,
                [one.verdict.words, "; ".join(filter(None, (one.flips, one.challenged)))],
            ]
            for one in found
        ],
        "left": 5,
    }
