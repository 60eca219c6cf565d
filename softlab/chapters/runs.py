"""What the report says of every run, whatever it measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from softlab.chapters import Table


def grid(table: pd.DataFrame, meta: Mapping[str, Any]) -> str:
    """How many cases there are, and of how many values of each axis."""
    axes = ", ".join(f"{count} of {name}" for name, count in meta["axes"].items())
    return f"The study has {len(table)} cases (values of its axes: {axes})."


def notes(meta: Mapping[str, Any]) -> Iterator[str]:
    """What a reader must know before the numbers: a trial run, an interrupted one."""
    if meta["quick"]:
        yield "This is the quick grid, a trial run; its numbers are few."
    if not meta["complete"]:
        yield "The run was interrupted; the table holds the cases that had finished."


def completeness(table: pd.DataFrame) -> str:
    """How many cases failed, and why the first did."""
    failed = table[table["status"] != "ok"]
    if failed.empty:
        return f"All {len(table)} cases finished."
    return f"{len(failed)} of {len(table)} cases failed; the first: {failed.iloc[0]['error']}."


def failures(table: pd.DataFrame) -> Iterator[Table]:
    """The failed cases by reason; no table where none failed."""
    failed = table[table["status"] != "ok"]
    if failed.empty:
        return
    counts = failed["error"].fillna("no reason recorded").value_counts()
    yield {
        "caption": f"The {len(failed)} cases that failed, by reason.",
        "header": ["reason", "cases"],
        "rows": [[str(reason), str(count)] for reason, count in counts.items()],
        "left": 1,
    }


def environment(meta: Mapping[str, Any]) -> list[list[str]]:
    """Pairs of what and which: the code, the libraries, the machine, the arithmetic, the time."""
    commit = f"{meta['commit'] or 'not under git'}{', with changes' if meta['dirty'] else ''}"
    libraries = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    return [
        ["Commit", commit],
        ["Code digest", meta["digest"]],
        ["Versions", libraries],
        ["Device", f"{meta['device']}: {meta['device_name']}"],
        ["Arithmetic", f"{meta['dtype']}, {meta['threads']} threads"],
        ["Platform", meta["platform"]],
        ["Seeds", ", ".join(map(str, meta["seeds"])) or "none"],
        ["Rows", f"{meta['rows']}: {meta['failed']} failed, {meta['reused']} of an earlier run"],
        ["Run", f"{meta['started'][:19]} to {meta['finished'][:19]} UTC"],
        ["Wall time", f"{meta['wall_seconds']:.0f} s"],
    ]  # fmt: skip
