"""Published packages under the laws: what each keeps and breaks, and what it claimed.

Read are ``status`` and the columns of ``studies/peers``: ``package``, ``version``, ``layer``,
``law``, ``claimed``, ``verdict``, ``detail``, ``counterexample``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from softlab.report.chapter import Cell, Table
from softlab.report.numbers import joined
from softlab.report.rows import finished

NEEDED = {
    *("status", "package", "version", "layer", "law", "claimed", "verdict", "detail"),
    "counterexample",
}
LAYER = ["package", "version", "layer"]
HOLDS, FAILS = "holds", "fails"
LONG = 110
"""Letters of a counterexample that the table shows; table.csv has all."""


def scope(table: pd.DataFrame) -> str:
    """The packages with their versions, and the layers."""
    done = finished(table, NEEDED)
    if done.empty:
        return ""
    named = (f"{package} {version}" for package, version in _pairs(done))
    return f"Packages: {joined(named)}; {_layers(done)} layers."


def findings(table: pd.DataFrame) -> list[str]:
    """Layer by layer: how many laws it keeps, which it breaks, and which of those it claims."""
    done = finished(table, NEEDED)
    broken = done[(done["verdict"] == FAILS) & done["claimed"].astype(bool)]
    if done.empty:
        return []
    said = [
        f"Of {_layers(done)} layers {_layers(broken)} break a law that they claim, most often "
        f"{_most(broken)}."
        if len(broken)
        else f"Of {_layers(done)} layers none breaks a law that it claims."
    ]
    for (package, version, layer), rows in done.groupby(LAYER, sort=False):
        kept, broken = (rows[rows["verdict"] == verdict] for verdict in (HOLDS, FAILS))
        claimed = broken["claimed"].astype(bool)
        text = f"{package} {version}, {layer}, keeps {len(kept)} of {len(kept) + len(broken)} laws"
        mine, others = (joined(broken[chosen]["law"]) for chosen in (claimed, ~claimed))
        text += f"; breaks of what it claims: {mine}" if mine else "; breaks none that it claims"
        said.append(text + (f"; and of what it never claimed: {others}." if others else "."))
    return said


def tables(table: pd.DataFrame) -> Iterator[Table]:
    """Each law that a layer breaks, with its counterexample, and whether it was claimed."""
    body: list[list[Cell]] = []
    done = finished(table, NEEDED)
    for (package, version, layer), rows in done[done["verdict"] == FAILS].groupby(
        LAYER, sort=False
    ):
        shown = rows.fillna({"detail": "", "counterexample": ""})
        for i, row in enumerate(shown.sort_values("claimed", ascending=False).itertuples()):
            name: Cell = [str(layer), f"{package} {version}"] if i == 0 else ""
            how = str(row.counterexample)
            how = how if len(how) <= LONG else f"{how[:LONG]} ..."
            claim = "claimed" if row.claimed else "never claimed"
            body.append([name, [str(row.law), claim], [str(row.detail), how]])
    if body:
        yield {
            "caption": "Laws that break: by how much and on what; the numbers are the simplest "
            "draw that was found to break the law, in the order drawn, mostly q, k, v.",
            "header": ["layer", "law", "counterexample"],
            "rows": body,
            "left": 2,
        }


def _layers(rows: pd.DataFrame) -> int:
    """How many: two packages may each have one of the same name."""
    return len(rows[LAYER].drop_duplicates())


def _most(broken: pd.DataFrame) -> str:
    """The laws that most layers break, with how many do."""
    counts = broken["law"].value_counts()
    return joined(f"{law} ({n})" for law, n in counts[counts == counts.max()].items())


def _pairs(done: pd.DataFrame) -> Iterator[tuple[str, str]]:
    for package, version in done.groupby(["package", "version"], sort=False).groups:
        yield str(package), str(version)
