"""What the report says of every run, whatever it measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from softlab.report.chapter import Table
from softlab.report.numbers import counted
from softlab.report.timings import busy

HOW = (
    "How to read this. Error: the norm of approximate minus exact output over the norm of the "
    "exact output; an output of zeros has error 1. Baseline: each query gets the mean of the "
    "values, for which no weights are computed; its error is often below 1, so that an error "
    "below 1 can still be useless. Skill: 1 - error / error of the baseline, or of zeros where "
    "that is less; 1 is exact, 0 or less no better than these. Work: floating-point operations of "
    "products and factorisations, counted. 95 %: a confidence interval of the median over inputs, "
    "by order statistics; of fewer than six, the least and the greatest, which are no such "
    "interval. Samples and seeds of an input are first reduced to one number. Inputs are recorded "
    "heads of trained models, and made ones: heads of one model are alike, so that another model "
    "can lie outside. Findings: first the one that is farthest from no effect, by its ratio."
)


def grid(table: pd.DataFrame, meta: Mapping[str, Any]) -> str:
    """How many cases there are, and of how many values of each axis."""
    cases, all_ = _cases(table, meta), math.prod(meta["axes"].values())
    axes = ", ".join(f"{name} {count}" for name, count in meta["axes"].items())
    of = f"; the others of {all_} combinations are left out by its rule" if cases < all_ else ""
    return f"The study has {counted(cases, 'case')} (values on each axis: {axes}{of})."


def notes(table: pd.DataFrame, meta: Mapping[str, Any]) -> Iterator[str]:
    """What a reader must know before the numbers: a trial run, an interrupted one, failures."""
    if meta["quick"]:
        yield "This is a trial run on the short grid; do not quote its numbers."
    if not meta["complete"]:
        yield (
            "The run was interrupted, or other shards of it are to come; the table holds the "
            "cases that had finished."
        )
    if meta["dirty"]:
        yield "The code had changes that no commit holds."
    failed = table[table["status"] != "ok"]  # a row a case
    if len(failed):
        cases = _measured(table, meta)
        yield f"{len(failed)} of {cases} cases failed and are in no number or figure."
    if meta.get("timed"):
        where = meta["device_name"]
        yield f"Timings are those of {where}; the ranking by time may differ elsewhere."
        if disturbed := int(busy(table).sum()):
            yield f"{disturbed} of {len(table)} cases were measured while the machine was busy."
    if meta.get("lacking"):
        yield f"Its meta.json says nothing usable of {', '.join(meta['lacking'])}."


def completeness(table: pd.DataFrame, meta: Mapping[str, Any]) -> str:
    """How many of the cases were measured, how many of these failed, and why the first did."""
    failed, cases = table[table["status"] != "ok"], _measured(table, meta)
    said = [] if meta["complete"] else [unfinished(table, meta)]
    if len(failed):
        why = failed.get("error", pd.Series(index=failed.index)).iloc[0]
        reason = "no reason recorded" if pd.isna(why) else why
        said.append(f"{len(failed)} of {cases} cases failed; the first: {reason}.")
    whole = f"All {cases} cases" if cases > 1 else "The one case"
    return " ".join(said) or f"{whole} finished."


def unfinished(table: pd.DataFrame, meta: Mapping[str, Any]) -> str:
    """How many cases of a run that is not complete were measured."""
    cases = _cases(table, meta)
    done = _measured(table, meta)
    of = f"{done} of {cases} cases are" if cases > done else f"{done} cases are"
    return f"{of} measured; the run was interrupted, or other shards of it are to come."


def _cases(table: pd.DataFrame, meta: Mapping[str, Any]) -> int:
    """The cases of the grid; those of the table where a run of earlier softlab did not say."""
    cases = meta.get("cases")
    return cases if isinstance(cases, int) else _measured(table, meta)


def _measured(table: pd.DataFrame, meta: Mapping[str, Any]) -> int:
    """The cases that have rows in the table."""
    return len(_one_each(table, meta, "axes"))


def _one_each(table: pd.DataFrame, meta: Mapping[str, Any], axes: str) -> pd.DataFrame:
    """The first row of each case, or with "shared" of each set-up, in a table of many rows a case.

    Of the table itself where each case has one row.
    """
    named = [x for x in meta.get(axes, ()) if x in table]
    alone = axes == "axes" and not meta.get("within")
    return table if alone or not named else table.drop_duplicates(named)


def failures(table: pd.DataFrame) -> Iterator[Table]:
    """The failed cases by reason; no table where none failed."""
    failed = table[table["status"] != "ok"]
    if failed.empty:
        return
    reasons = failed.get("error", pd.Series(index=failed.index)).astype(object)
    counts = reasons.where(reasons.notna(), "no reason recorded").value_counts()
    yield {
        "caption": f"The {counted(len(failed), 'case')} that failed, by reason.",
        "header": ["reason", "cases"],
        "rows": [[str(reason), str(count)] for reason, count in counts.items()],
        "left": 1,
    }


def environments(runs: Sequence[tuple[pd.DataFrame, Mapping[str, Any]]]) -> dict[str, Any]:
    """The code, libraries, machine and arithmetic of runs: what they share, and the rest.

    When a table was put together, and out of what, is in its ``meta.json`` alone: equal tables are
    to make equal documents.

    ``shared``: pairs of what and which; ``header`` and ``rows``: a table of what differs, a row a
    study, and of what each has of its own.
    """
    facts = [_facts(meta) for _, meta in runs]
    common = [name for name in facts[0] if len({fact[name] for fact in facts}) == 1]
    differing = [name for name in facts[0] if name not in common]
    own = [_own(table, meta) for table, meta in runs]
    return {
        "shared": [[name, facts[0][name]] for name in common],
        "header": ["study", *differing, *own[0]],
        "rows": [
            [str(meta["name"]), *(fact[name] for name in differing), *mine.values()]
            for (_, meta), fact, mine in zip(runs, facts, own, strict=True)
        ],
    }


def _facts(meta: Mapping[str, Any]) -> dict[str, str]:
    commit = f"{meta['commit'] or 'not under git'}{', with changes' if meta['dirty'] else ''}"
    return {
        "Commit": commit,
        "Versions": ", ".join(f"{name} {version}" for name, version in meta["versions"].items()),
        "Device": f"{meta['device']}: {meta['device_name']}",
        "Arithmetic": f"{meta['dtype']}, {meta['threads']} threads",
        "Platform": meta["platform"],
    }


def _seeds(seeds: Sequence[Any]) -> str:
    """All of a few; of many whole numbers in a row the first and the last."""
    seeds = list(seeds)
    if len(seeds) > 6 and seeds == [*range(seeds[0], seeds[0] + len(seeds))]:
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds)) or "none"


def _own(table: pd.DataFrame, meta: Mapping[str, Any]) -> dict[str, str]:
    spent = sum(
        float(pd.to_numeric(_one_each(table, meta, axes)[column], errors="coerce").sum())
        for column, axes in (("case_seconds", "axes"), ("case_setup_seconds", "shared"))
        if column in table
    )
    seconds = f"{spent:.0f}" if "case_seconds" in table else ""
    return {
        "seeds": _seeds(meta["seeds"]),
        "rows": str(len(table)),
        "failed": str((table["status"] != "ok").sum()),
        "seconds": seconds,
        "code": meta["digest"][:8],
    }
