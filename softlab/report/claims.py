"""Published claims: the rows of their studies as one table, and the verdict on each.

A folder of claims holds a run folder for each claim, with ``claim.json`` beside its table, and one
for each challenge, called as the claim with ``.again`` behind. ``gathered`` makes the one table
that the report reads; ``tried`` computes the verdicts from it.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from softlab.report.folder import read
from softlab.report.numbers import number
from softlab.verdicts import BLIND, FAILS, NONE, OPEN, Entry, Rule, Verdict, decide

DESCRIBED = "claim.json"
AGAIN = ".again"
WAYS = ("first", "again")
"""How a row was measured: as the claim says, or as its challenge."""
BOUNDS = {"at_most": "claimed, at most", "at_least": "claimed, at least"}
"""Columns with the bounds of a rule that asks of values themselves, and how a figure calls them."""
LACKS = "MissingError: "
"""What the error of a case begins with whose data are not here."""
DISTANT = 1e3
"""A factor: controls further than it from what is compared are told of and not drawn."""
AT = re.compile(r" \([^()]*:\d+\)$")
"""Where an error was raised, at its end."""
SHARED = ("commit", "dirty", "device", "device_name", "dtype", "threads", "versions", "platform")

Rows = list[dict[str, Any]]


def gathered(folder: Path) -> tuple[Rows, dict[str, Any]]:
    """The rows of all claims in a folder, one a case and contender, and what ``meta.json`` says.

    Columns: ``claim``; ``way``, one of ``WAYS``; ``case``, a running number; ``place`` and
    ``unstated``, mappings of axes to words as JSON; ``panel``, the same without what is across;
    ``decides``, whether the rule decides by it; ``seed``; ``x``; ``at_least`` and ``at_most``;
    ``contender``, ``role`` and ``value``; ``status``, ``error`` and ``case_seconds``.

    Raises ``ValueError`` where no claim was run there, or a table cannot be read.
    """
    rows: Rows = []
    claims, metas = [], []
    for path in sorted(folder.glob(f"*/{DESCRIBED}")):
        claim = json.loads(path.read_text(encoding="utf-8"))
        lacking, own = [], []
        for way, place in zip(WAYS, (path.parent, Path(f"{path.parent}{AGAIN}")), strict=True):
            how = claim if way == WAYS[0] else claim["challenge"]
            if how is None or not (place / "table.csv").is_file():
                continue
            table, meta = read(place)
            own.append(meta)
            rows += _long(table, claim, how, way)
            if not meta["complete"]:
                lacking.append(f"{meta['measured']} of {meta['cases']} cases are measured")
        metas += own
        quick = any(meta["quick"] for meta in own)
        claims.append(claim | {"quick": quick, "unfinished": lacking})
    if not rows:
        msg = f"no claim was run into {folder}; try softlab docket run --quick"
        raise ValueError(msg)
    return rows, _meta(claims, metas, rows)


def _meta(claims: list[dict[str, Any]], metas: list[dict[str, Any]], rows: Rows) -> dict[str, Any]:
    """What the report needs to know of a run."""
    cases = {(row["claim"], row["way"], row["case"]): row["status"] for row in rows}
    return {key: metas[0][key] for key in SHARED} | {
        "name": "docket",
        "title": "The docket: published claims, tried",
        "question": "Which of the claims that the field publishes hold where they are measured "
        "again, with controls?",
        "chapter": "docket",
        "quick": any(claim["quick"] for claim in claims),
        "complete": all(meta["complete"] for meta in metas),
        "seeds": sorted({x for meta in metas for x in meta["seeds"] if isinstance(x, int)}),
        "axes": {"claim": len(claims)},
        "figures": [_figure(claim, rows) for claim in claims],
        "digest": "".join(meta["digest"][:2] for meta in metas),
        "claims": claims,
        "cases": len(cases),
        "measured": len(cases),
        "failed": sum(x != "ok" for x in cases.values()),
        "within": ["way", "case", "contender"],
    }


def _long(
    table: pd.DataFrame, claim: Mapping[str, Any], how: Mapping[str, Any], way: str
) -> Iterator[dict[str, Any]]:
    """The rows of one run, a row a case and contender; of a case that failed, one."""
    fixed, unstated = how["rule"]["where"], claim["unstated"]
    own = {*how["axes"], "status", "error", "case_seconds", "case_setup_seconds"}
    own |= {"case_cpu_share", "case_load"}
    contenders = [x for x in table if x not in own and not x.startswith("case_")]
    apart = [x for x in how["axes"] if x not in {"seed", *fixed, *unstated}]
    varied = [x for x in how["axes"] if table[x].astype(str).nunique() > 1]
    panel = [x for x in varied if x not in {"seed", claim["across"]}]
    for case, row in enumerate(table.to_dict("records")):
        base = {
            "claim": claim["name"],
            "way": way,
            "case": case,
            "place": _mapping({axis: _word(row[axis]) for axis in apart}),
            "unstated": _mapping({x: _word(row[x]) for x in unstated if x in row}),
            "panel": ", ".join(f"{axis} {_word(row[axis])}" for axis in panel) or " ",
            "decides": all(_same(row.get(axis), x) for axis, x in fixed.items()),
            "seed": row.get("seed"),
            "x": _float(row.get(claim["across"])),
            **{x: None if how["rule"]["of"] else how["rule"][x] for x in BOUNDS},
            "status": row["status"],
            "error": None if row["status"] == "ok" else str(row.get("error")),
            "case_seconds": row.get("case_seconds"),
        }
        held = [] if row["status"] != "ok" else [x for x in contenders if not _lost(row[x])]
        for name in held or [""]:
            kind = claim["controls"].get(name, "subject" if name == claim["subject"] else "other")
            yield base | {
                "contender": name, "role": kind if name else "", "value": row.get(name),
            }  # fmt: skip


def _mapping(held: Mapping[str, str]) -> str:
    """As JSON; a word for none, since a report parts a pair of braces."""
    return json.dumps(held) if held else "none"


def _mapped(text: str) -> dict[str, str]:
    found: dict[str, str] = {} if text == "none" else json.loads(text)
    return found


def _word(x: Any) -> str:
    return f"{x:g}" if isinstance(x, float) else str(x)


def _float(x: Any) -> float | None:
    return float(x) if isinstance(x, int | float) and not _lost(x) else None


def _lost(x: Any) -> bool:
    return x is None or (isinstance(x, float) and math.isnan(x))


def _same(x: Any, wanted: Any) -> bool:
    both = isinstance(x, int | float) and isinstance(wanted, int | float)
    return math.isclose(x, wanted, rel_tol=1e-12) if both else bool(x == wanted)


def _medians(claim: Mapping[str, Any], rows: Rows) -> dict[str, float]:
    """Of each contender of a claim, over all its cases."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if (row["claim"], row["way"]) == (claim["name"], WAYS[0]) and row["contender"]:
            values.setdefault(row["contender"], []).append(float(row["value"]))
    return {name: statistics.median(held) for name, held in values.items()}


def _off(claim: Mapping[str, Any], middle: Mapping[str, float]) -> list[str]:
    """Controls so far from all else that drawing them would leave the others in one line."""
    if claim["rule"]["scale"] != "log":
        return []
    near = {x: m for x, m in middle.items() if x not in claim["controls"] and m > 0}
    for name in claim["controls"]:
        if not near or name not in middle:
            continue
        if min(near.values()) / DISTANT <= middle[name] <= max(near.values()) * DISTANT:
            near[name] = middle[name]
    return [name for name in claim["controls"] if name in middle and name not in near]


def _figure(claim: Mapping[str, Any], rows: Rows) -> dict[str, Any]:
    """One figure of a claim, as ``softlab.figures.Lines`` has it."""
    rule = claim["rule"]
    middle = _medians(claim, rows)
    off = _off(claim, middle)
    drawn = {"contender": [name for name in middle if name not in off]} if off else {}
    beyond = "; ".join(f"{name} (median {number(middle[name])})" for name in off)
    allowed = Rule(**rule).words()
    at = ", ".join(f"{axis} {_word(x)}" for axis, x in rule["where"].items())
    roles = "; ".join(f"{name} ({kind})" for name, kind in claim["controls"].items())
    return {
        "x": "x",
        "y": "value",
        "group": "contender",
        "panel": "panel",
        "where": {"claim": claim["name"], "way": WAYS[0]} | drawn,
        "xlabel": claim["xlabel"] or claim["across"],
        "ylabel": claim["measured"],
        "xscale": "linear" if claim["across"] == "seed" else claim["xscale"],
        "yscale": rule["scale"],
        "guides": {x: word for x, word in BOUNDS.items() if not rule["of"] and rule[x] is not None},
        "name": claim["name"],
        "caption": f"{claim['title']} ({claim['who']}, {claim['place']}). The claim asks "
        f"{claim['subject']} for {allowed}{f', at {at}' if at else ''}. Controls: {roles}. "
        f"Medians and quartiles over the seeds.{f' Off the figure: {beyond}.' if off else ''}",
    }


@dataclass(frozen=True)
class Tried:
    """A claim, as ``claim.json`` describes it, with its verdict and that of its challenge."""

    claim: Mapping[str, Any]
    verdict: Verdict
    again: Verdict | None

    @property
    def contested(self) -> bool:
        """Whether the verdict says that somebody is wrong, or that a metric is."""
        return self.verdict.kind in {FAILS, BLIND}

    @property
    def confirmed(self) -> bool | None:
        """Whether the challenge reaches the same verdict; None where one has none or is unsure.

        On the same places it is the same where no place is decided otherwise, and one is alike.
        """
        if self.again is None or {NONE, OPEN} & {self.again.kind, self.verdict.kind}:
            return None
        mine, theirs = (
            {place.label: place.state for place in found.places if place.state != "open"}
            for found in (self.verdict, self.again)
        )
        places = [{place.label for place in found.places} for found in (self.verdict, self.again)]
        if places[0] != places[1] or len(places[0]) == 1:
            return self.again.kind == self.verdict.kind
        both = mine.keys() & theirs.keys()
        return bool(both) and all(mine[x] == theirs[x] for x in both)

    @property
    def number(self) -> str:
        """What our number is, in words."""
        of = self.claim["rule"]["of"]
        return f"{self.claim['measured']}{f', over that of {of}' if of else ''}"

    @property
    def ours(self) -> str:
        """Our number and its interval, in words."""
        found = self.verdict
        if math.isnan(found.value):
            return "none"
        if found.low == found.high or not found.places:
            return number(found.value)
        span = f"{number(found.low)} to {number(found.high)}"
        if len(found.places) > 1:
            return f"{number(found.value)} (range over {len(found.places)} places: {span})"
        return f"{number(found.value)} (95 % {span})"

    @property
    def flips(self) -> str:
        """The margin in words."""
        found = self.verdict
        if found.margin is None:
            return "no change of the numbers flips it"
        whose = "our numbers" if found.margin_of == "subject" else "the controls' numbers"
        if self.claim["rule"]["scale"] == "linear":
            return f"{found.margin:+.3g} on {whose} flips it"
        return f"{whose} times {number(found.margin)} flips it"

    @property
    def controls(self) -> str:
        """The controls, each with its number over the places, in words."""
        said = []
        for name, kind in self.claim["controls"].items():
            values = [place.controls[name].value for place in self.verdict.places]
            if values:
                low, high = number(min(values)), number(max(values))
                said.append(f"{name} ({kind}) {low if low == high else f'{low} to {high}'}")
        return "; ".join(said)

    @property
    def challenged(self) -> str:
        """What the challenge says of the verdict, in words; empty where there is none."""
        if self.claim["challenge"] is None:
            return "not challenged yet" if self.contested else ""
        about = self.claim["challenge"]["about"]
        if self.again is None:
            return f"the challenge ({about}) has not run"
        if self.confirmed is None or not (self.confirmed or self.contested):
            return f"in another way ({about}): {self.again.words}"
        word = "confirmed" if self.confirmed else "not confirmed"
        return f"{word} by {about}: {self.again.words}"


def tried(table: pd.DataFrame) -> list[Tried]:
    """The verdict on each claim of a table of ``gathered``, whose ``attrs`` have the claims."""
    found = []
    for claim in table.attrs["claims"]:
        rows = table[table["claim"] == claim["name"]]
        verdicts = [
            _decided(rows[rows["way"] == way], claim, how)
            for way, how in zip(WAYS, (claim, claim["challenge"]), strict=True)
            if how is not None and (rows["way"] == way).any()
        ]
        found.append(Tried(claim, verdicts[0], verdicts[1] if len(verdicts) > 1 else None))
    return found


def _decided(rows: pd.DataFrame, claim: Mapping[str, Any], how: Mapping[str, Any]) -> Verdict:
    entries = list(_entries(rows[rows["decides"].astype(bool)]))
    entries += [Entry({}, {}, missing=why) for why in claim["unfinished"]]
    return decide(Rule(**how["rule"]), claim["subject"], claim["controls"], entries)


def _entries(rows: pd.DataFrame) -> Iterator[Entry]:
    for _, case in rows.groupby("case", sort=False):
        first = case.iloc[0]
        missing = ""
        if first["status"] != "ok":
            missing = AT.sub("", str(first["error"]).removeprefix(LACKS))
        yield Entry(
            place=_mapped(first["place"]),
            values=dict(zip(case["contender"], case["value"].astype(float), strict=True)),
            seed=None if _lost(first["seed"]) else first["seed"],
            unstated=_mapped(first["unstated"]),
            missing=missing,
        )
