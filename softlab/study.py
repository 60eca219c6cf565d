"""A study: a question, a grid of cases, and what is measured on each.

Data flow one way: axes -> cases -> measure -> rows -> table. Figures and reports read the table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import itertools
import json
import platform
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from softlab import provenance
from softlab.journal import Journal, Row, Scalar, as_csv, replace

Case = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A grid of cases and the function that measures one.

    ``name`` is the folder it writes to; ``title`` and ``question`` (one sentence) head its report.
    ``axes`` maps a name to its values; the cases are their product, the last axis fastest, without
    those that ``keep(**case)`` refuses. ``measure(**case, dtype=..., device=...)`` returns numbers
    and words by column name. ``quick`` replaces some axes by shorter ones for a trial run.
    ``figures`` are descriptions that ``softlab.figures`` draws, stored beside the table.
    ``chapter`` is the word that names the kind of study, a module of ``softlab.chapters``, which
    knows its columns: how they were measured, what is found in them, and its tables.

    Raises ``ValueError`` for a name that is no folder name, a chapter that is no word, an empty
    axis, a quick axis that the grid lacks, and a measure or keep whose parameters are not the axes.
    """

    name: str
    question: str
    axes: Mapping[str, Sequence[Any]]
    measure: Callable[..., Mapping[str, Scalar]]
    keep: Callable[..., bool] | None = None
    quick: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    title: str = ""
    figures: Sequence[Any] = ()
    chapter: str = "operators"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            msg = f"Study.name is {self.name!r}; it names a folder: use letters, digits, _ . -"
            raise ValueError(msg)
        if not self.chapter.isidentifier():
            msg = (
                f"{self.name}: chapter is {self.chapter!r}; it names a module of softlab.chapters."
            )
            raise ValueError(msg)
        for axis, values in (*self.axes.items(), *self.quick.items()):
            if axis not in self.axes or len(values) == 0:
                wrong = "is not one of the axes" if axis not in self.axes else "has no values"
                msg = f"{self.name}: axis {axis!r} {wrong}; the axes are {', '.join(self.axes)}."
                raise ValueError(msg)
        for function, arguments in ((self.measure, (*self.axes, "dtype", "device")),
                                    (self.keep, tuple(self.axes))):  # fmt: skip
            try:
                if function is not None:
                    inspect.signature(function).bind(**dict.fromkeys(arguments))
            except TypeError as error:
                called = getattr(function, "__name__", repr(function))
                msg = f"{self.name}: {called} must take {', '.join(arguments)}: {error}."
                raise ValueError(msg) from None

    def cases(self, *, quick: bool = False) -> Iterator[Case]:
        """Yield the cases of the grid, each a mapping from axis to value."""
        axes = {**self.axes, **(self.quick if quick else {})}
        for values in itertools.product(*axes.values()):
            case = dict(zip(axes, values, strict=True))
            if self.keep is None or self.keep(**case):
                yield case


@dataclass(frozen=True)
class Outcome:
    """What a run left: the folder, and how many rows there are, were reused, and failed."""

    folder: Path
    rows: int
    reused: int
    failed: int


def run(
    study: Study,
    out: Path | str = "reports",
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    quick: bool = False,
    threads: int | None = None,
    fresh: bool = False,
    progress: bool = False,
) -> Outcome:
    """Measure every case of ``study`` into ``out/<name>/table.csv`` and ``meta.json``.

    Arguments: ``device`` and ``dtype`` go to the measure; ``quick`` takes the short axes;
    ``threads`` sets torch's threads for the run; ``fresh`` discards rows of earlier runs, which are
    otherwise reused where case, device, dtype, threads, torch and the code are the same;
    ``progress`` shows a bar on standard error.

    A case that raises becomes a row with ``status = "failed"`` and the error, and is tried again by
    the next run. Each finished row is durable before the next begins (``rows.jsonl``). Interrupts
    and ``OSError`` pass through, with a note of what was kept, after the table has been written.

    Raises ``ValueError`` for a device that is not there, threads below 1 and a grid without cases.
    """
    where = provenance.usable(device)
    folder = Path(out) / study.name
    with provenance.threads(threads):
        setting = provenance.setting(where, dtype)
        cases = {_key(case, setting): case for case in study.cases(quick=quick)}
        if not cases:
            msg = f"{study.name}: keep refuses every case of the grid; widen the axes or keep."
            raise ValueError(msg)
        meta = _meta(study, setting, quick=quick)
        rows: dict[str, Row] = {}
        try:
            journal = Journal(folder / "rows.jsonl", meta["digest"], fresh=fresh)
            finished = {key for key, row in journal.rows.items() if row.get("status") == "ok"}
            rows = {key: journal.rows[key] for key in cases if key in finished}
            meta["reused"] = reused = len(rows)
            with _bar(shown=progress) as bar:
                todo = [key for key in cases if key not in rows]
                for key in bar.track(todo, description=study.name):
                    row = flat(cases[key]) | _measured(study, cases[key], dtype, where)
                    journal.append(key, row)
                    rows[key] = row
            # Reused rows were read first; the table keeps the order of the grid.
            table = [rows[key] for key in cases]
            failed = _write(folder, table, meta, complete=True)
        except (KeyboardInterrupt, OSError) as stop:
            kept = f"{len(rows)} of {len(cases)} rows are kept in {folder}"
            stop.add_note(f"{kept}; the same command resumes.")
            with contextlib.suppress(OSError):  # a full disk; the journal holds the rows
                _write(folder, [rows[key] for key in cases if key in rows], meta, complete=False)
            raise
    return Outcome(folder, len(rows), reused, failed)


def flat(case: Mapping[str, Any]) -> Row:
    """The columns that name a case: a dataclass gives its repr, its type, and its fields in turn.

    ``{"op": Soft(rank=64)}`` becomes ``op = "Soft(rank=64)"``, ``op.type = "Soft"``,
    ``op.rank = 64``, ``op.pinv = "NewtonRaphson(steps=20)"``, ``op.pinv.steps = 20``, ...
    """
    row: Row = {}
    for name, x in case.items():
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            row |= {name: repr(x), f"{name}.type": type(x).__name__}
            row |= flat({f"{name}.{f.name}": getattr(x, f.name) for f in dataclasses.fields(x)})
        else:
            row[name] = x if isinstance(x, Scalar) else repr(x)
    return row


def _key(case: Case, setting: Row) -> str:
    return hashlib.sha256(json.dumps([flat(case), setting]).encode()).hexdigest()[:16]


def _measured(study: Study, case: Case, dtype: torch.dtype, device: torch.device) -> Row:
    start = time.perf_counter()
    try:
        row: dict[str, Any] = {"status": "ok", "error": None}
        row |= study.measure(**case, dtype=dtype, device=device)
        for column, x in row.items():
            if not isinstance(x, Scalar):
                msg = f"{column} is a {type(x).__name__}; give a number, a word, True, False, None."
                raise TypeError(msg)  # noqa: TRY301
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
        row = {"status": "failed", "error": reason}
    return row | {"case_seconds": time.perf_counter() - start}


def _write(folder: Path, table: Sequence[Row], meta: Mapping[str, Any], *, complete: bool) -> int:
    """Write table and meta, each old or new but never torn, and return the number of failures."""
    if not table:
        return 0  # an early interrupt leaves the results of the run before
    failed = sum(row["status"] != "ok" for row in table)
    finished = datetime.now(UTC)
    meta = dict(meta) | {
        "finished": finished.isoformat(timespec="seconds"),
        "wall_seconds": (finished - datetime.fromisoformat(meta["started"])).total_seconds(),
        "rows": len(table),
        "failed": failed,
        "complete": complete,
    }
    replace(folder / "table.csv", as_csv(table))
    replace(folder / "meta.json", json.dumps(meta, indent=2) + "\n")
    return failed


def _meta(study: Study, setting: Row, *, quick: bool) -> dict[str, Any]:
    source = provenance.source(study.measure)
    axes = {**study.axes, **(study.quick if quick else {})}
    return {
        "name": study.name,
        "title": study.title or study.name,
        "question": study.question,
        "chapter": study.chapter,
        "quick": quick,
        "reused": 0,
        "seeds": list(axes.get("seed", ())),
        "axes": {name: len(values) for name, values in axes.items()},
        "figures": [dataclasses.asdict(figure) for figure in study.figures],
        **provenance.commit(Path.cwd() if source is None else source.parent),
        "digest": provenance.digest(source),
        **setting,
        "versions": provenance.versions(),
        "platform": platform.platform(),
        "started": datetime.now(UTC).isoformat(),
    }


def _bar(*, shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
