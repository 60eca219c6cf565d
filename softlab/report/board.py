"""Result files -> a board: one static page that needs no network, a row a method and setting."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from softlab.report.html import HERE
from softlab.report.intervals import Median, by_unit
from softlab.report.intervals import median as over_units
from softlab.report.numbers import counted, number, short
from softlab.report.timings import BUSY, WIDE
from softlab.report.words import brief, safe

HEADS = ("method", "target", "budget", "error", "interval", "skill", "work", "time", "memory",
         "laws broken", "heads")  # fmt: skip
HOW = (
    "Error: relative output error, the median over the heads of a row, each the median over its "
    "samples. Interval: distribution-free, of 95 % for six heads or more, else the range; heads of "
    "one model are not independent. Skill: 1 is exact, 0 is no better than the mean of the values. "
    "Budget: the share of the exact operator's work that set the knob; empty where the setting was "
    "given. Work, time and memory: times those of exact attention, at the longest head. Rows with "
    "other heads or another target are not comparable. Press a column's name to sort by it; open a "
    "row for its heads."
)


def board(entries: Sequence[Mapping[str, Any]], refused: Sequence[str] = ()) -> str:
    """The page of entries, as ``softlab.compare.results`` reads them; ``refused`` are sentences."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    rows = sorted((_row(entry) for entry in entries), key=lambda row: row["order"])
    ends = '<input id="filter" type="search" placeholder="method, budget, head, law">'
    parts = [
        *("<!DOCTYPE html>", '<html lang="en-GB">', "<head>", '<meta charset="utf-8">'),
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<title>softlab board</title>",
        f"<style>{style}</style>",
        *("</head>", '<body class="board">', "<header>", "<h1>Approximations of attention</h1>"),
        f'<p class="soft">{counted(len(rows), "result")} of softlab compare</p>',
        *("</header>", "<main>", '<section id="board">'),
        f"<p>{escape(HOW)}</p>",
        *(f'<p class="caveat"><b>Refused:</b> {escape(safe(brief(x)))}</p>' for x in refused),
        f"<p><label>Show rows with {ends}</label></p>",
        '<div class="wide"><table class="sortable filtered"><thead><tr>',
        *(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in HEADS),
        "</tr></thead><tbody>",
        *(line for row in rows for line in _line(row)),
        *("</tbody></table></div>", "</section>", "</main>"),
        '<div id="tip" role="status" hidden></div>',
        f"<script>{script}</script>",
        *("</body>", "</html>", ""),
    ]
    return "\n".join(parts)


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    table = pd.DataFrame(
        [
            {"head": head["head"], "n": head["n"]} | {x: _number(y) for x, y in sample.items()}
            for head in entry["heads"]
            for sample in head["samples"]
        ]
    )
    error = over_units(table["output_error"], table["head"])
    skill = over_units(table["skill"], table["head"])
    longest = table[table["n"] == table["n"].max()]
    return {
        "entry": entry,
        "table": table,
        "error": error,
        "skill": skill,
        "share": float(longest["share"].astype(float).median()),
        "order": (entry["target"] != "softmax", str(entry["target"]), entry["budget"] is None,
                  entry["budget"] or 0.0, math.isnan(error.value), error.value),
    }  # fmt: skip


def _number(x: Any) -> Any:
    return math.inf if x == "inf" else -math.inf if x == "-inf" else x


def _line(row: Mapping[str, Any]) -> Iterator[str]:
    entry, laws = row["entry"], row["entry"]["laws"]
    broken = ", ".join(laws["broken"]) if laws["asked"] else "held by softlab's tests"
    mark = " (trial run)" if entry["quick"] else ""
    cells = [
        "" if entry["budget"] is None else _part(entry["budget"]),
        number(row["error"].value),
        _span(row["error"]),
        f"{row['skill'].value:.2f}",
        "not counted" if math.isnan(row["share"]) else short(row["share"], 2),
        _time(entry["time"]),
        "" if entry["memory"] is None else short(entry["memory"], 2),
        broken or "none",
        str(len(entry["heads"])),
    ]
    method = escape(safe(brief(f"{entry['method']}{mark}", 300)))
    yield f'<tr><td class="left"><details><summary>{method}</summary>'
    yield from _heads(row)
    yield "</details></td>"
    yield f'<td class="left">{escape(safe(brief(entry["target"], 300)))}</td>'
    yield "".join(f"<td>{escape(safe(brief(x, 300)))}</td>" for x in cells)
    yield "</tr>"


def _heads(row: Mapping[str, Any]) -> Iterator[str]:
    """What opens below a row: its heads, and where the numbers come from."""
    entry, table = row["entry"], row["table"]
    each = by_unit(table["output_error"], table["head"])
    skill = by_unit(table["skill"], table["head"])
    operators = table.groupby("head", sort=False)["operator"].first()
    titles = "".join(f"<th>{name}</th>" for name in ("head", "error", "skill", "operator"))
    yield f"<table><thead><tr>{titles}</tr></thead>"
    for head in each.index:
        words = (head, number(each[head]), f"{skill[head]:.2f}", str(operators[head]))
        yield "<tr>" + "".join(f"<td>{escape(safe(brief(x, 300)))}</td>" for x in words) + "</tr>"
    yield "</table>"
    versions = ", ".join(f"{name} {x}" for name, x in entry["versions"].items())
    origin = f"{entry['device']}; {versions}; code {entry['code'][:12] or 'in no file'}; "
    origin += f"measured {entry['finished']}; digest {entry['digest'][:12]}"
    yield f'<p class="soft">{escape(safe(brief(origin, 1000)))}</p>'
    if entry["laws"]["broken"]:
        said = "; ".join(f"{law}: {why}" for law, why in entry["laws"]["broken"].items())
        yield f'<p class="soft">{escape(safe(brief(said, 2000)))}</p>'


def _part(budget: float) -> str:
    whole = 1 / budget
    return f"1/{whole:.0f}" if abs(whole - round(whole)) < 1e-9 and whole > 1 else f"{budget:g}"


def _span(found: Median) -> str:
    if found.units < 2:
        return ""
    return f"{number(found.low)} to {number(found.high)}"


def _time(time: Mapping[str, Any] | None) -> str:
    if time is None:
        return ""
    if (time["time_q3"] - time["time_q1"]) > WIDE * time["time"]:
        return "noisy"
    busy = " (busy)" if time["case_cpu_share"] < BUSY else ""
    return f"{short(time['time'], 2)}{busy}"


def write(path: Path, entries: Sequence[Mapping[str, Any]], refused: Sequence[str]) -> None:
    """Write the page, and beside it ``board.json``, the entries that it shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(board(entries, refused), encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(list(entries), indent=1), encoding="utf-8")
