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
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from softlab import provenance
from softlab.executors import Crew, Task, blocks, measured
from softlab.executors import rows as elsewhere
from softlab.journal import FORMAT, Journal, Row, Scalar, as_csv, kinds, replace, rows_of
from softlab.locks import TakenError, owned
from softlab.study_file import load

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
    knows its columns: how they were measured, what is found in them, and its tables. ``timed``
    names the columns that measure time, which no case does beside another. ``file`` is the file
    that the study was loaded from.

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
    timed: Sequence[str] = ()
    file: Path | None = None

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
    """What a run left.

    ``rows`` of the table, of ``cases`` that the grid has; how many were ``reused``, and ``failed``.
    ``notes`` say what was amiss with an earlier run.
    """

    folder: Path
    rows: int
    reused: int
    failed: int
    cases: int
    notes: tuple[str, ...] = ()


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
    crew: Crew | None = None,
    shard: tuple[int, int] = (1, 1),
) -> Outcome:
    """Measure every case of ``study`` into ``out/<name>/table.csv`` and ``meta.json``.

    Arguments: ``device`` and ``dtype`` go to the measure; ``quick`` takes the short axes;
    ``threads`` sets torch's threads of each process; ``fresh`` discards rows of earlier runs, which
    are otherwise reused where case, device, dtype, threads, torch and the code are the same;
    ``progress`` shows a bar on standard error.

    ``crew`` measures elsewhere: ``executors.processes(4)`` with each its share of the threads, or
    anything that speaks ``concurrent.futures.Executor``. A study with ``timed`` columns has one
    case in hand at a time, all threads, and its device to itself, whatever else this user runs.
    ``shard = (i, n)`` measures the i-th of n parts of the grid, 1 to n, into a journal of its own;
    every run makes the table of all rows that it finds in its folder.

    A case that raises becomes a row with ``status = "failed"`` and the error, and is tried again by
    the next run; so does one whose worker died twice. Each finished row is durable at once
    (``rows.jsonl``). Interrupts and ``OSError`` pass through, with a note of what was kept, after
    the table has been written.

    Raises ``ValueError`` for a device that is not there, threads below 1, a shard outside 1 to n, a
    grid without cases, a journal that is corrupt or of a newer version, and a
    folder in which another run is writing.
    """
    where = provenance.usable(device)
    folder = Path(out) / study.name
    part, parts = shard
    if not 1 <= part <= parts:
        msg = f"shard is {part}/{parts}; give i/n with i from 1 to n."
        raise ValueError(msg)
    if threads is None and crew is not None and not study.timed:
        threads = max(1, torch.get_num_threads() // crew.shares)
    with provenance.threads(threads), contextlib.ExitStack() as stack:
        setting = provenance.setting(where, dtype)
        cases = {_key(case, setting): case for case in study.cases(quick=quick)}
        if not cases:
            msg = f"{study.name}: keep refuses every case of the grid; widen the axes or keep."
            raise ValueError(msg)
        meta = _meta(study, setting, quick=quick)
        label = f"rows-{part}-of-{parts}" if parts > 1 else "rows"
        rows: dict[str, Row] = {}
        journal = stack.enter_context(_journal(folder, label, meta["digest"], fresh=fresh))
        notes = _notes(journal)
        try:
            found = {} if fresh else _found(folder, meta["digest"])
            rows = {key: found[key] for key in cases if key in found}
            meta["reused"] = reused = len(rows)
            mine = [key for lot in blocks(cases, 4 * parts)[part - 1 :: parts] for key in lot]
            todo = {key: cases[key] for key in mine if key not in rows}
            tasks = {key: _task(study, case, meta, setting, dtype) for key, case in todo.items()}
            made = _made(tasks, todo, crew, alone=bool(study.timed))
            with _bar(shown=progress) as bar, contextlib.closing(made):
                for key, row in bar.track(made, len(todo), description=study.name):
                    row = flat(cases[key]) | row
                    journal.append(key, row)
                    rows[key] = row
            failed = _write(folder, cases, rows, meta)
        except (KeyboardInterrupt, OSError) as stop:
            kept = f"{len(rows)} of {len(cases)} rows are kept in {folder}"
            stop.add_note(f"{kept}; the same command resumes.")
            with contextlib.suppress(OSError):  # a full disk; the journal holds the rows
                _write(folder, cases, rows, meta)
            raise
    return Outcome(folder, len(rows), reused, failed, len(cases), notes)


def defined_in(file: Path | str) -> list[Study]:
    """The studies at the top level of ``file``; ``ValueError`` if there are none."""
    named = {id(x): x for x in vars(load(file)).values() if isinstance(x, Study)}
    if not named:
        msg = f"{file} defines no softlab.study.Study at its top level; add STUDY = Study(...)."
        raise ValueError(msg)
    return [dataclasses.replace(study, file=Path(file).absolute()) for study in named.values()]


def flat(case: Mapping[str, Any]) -> Row:
    """The columns that name a case: a dataclass gives its repr, its type, and its fields in turn.

    ``{"op": Soft(rank=64)}`` becomes ``op = "Soft(rank=64)"``, ``op.type = "Soft"``,
    ``op.rank = 64``, ``op.pinv = "NewtonRaphson(steps=20)"``, ``op.pinv.steps = 20``, ...
    """
    row: Row = {}
    for name, x in case.items():
        if isinstance(x, np.generic):
            x = x.item()
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            row |= {name: repr(x), f"{name}.type": type(x).__name__}
            row |= flat({f"{name}.{f.name}": getattr(x, f.name) for f in dataclasses.fields(x)})
        else:
            row[name] = x if isinstance(x, Scalar) else repr(x)
    return row


def _key(case: Case, setting: Row) -> str:
    return hashlib.sha256(json.dumps([flat(case), setting]).encode()).hexdigest()[:16]


def _task(
    study: Study, case: Case, meta: Mapping[str, Any], setting: Row, dtype: torch.dtype
) -> Task:
    return Task(
        measure=study.measure,
        case=case,
        dtype=dtype,
        device=str(setting["device"]),
        alone=bool(study.timed),
        file=study.file,
        digest=meta["digest"],
        setting=setting,
    )


def _made(
    tasks: Mapping[str, Task], cases: Mapping[str, Case], crew: Crew | None, *, alone: bool
) -> Generator[tuple[str, Row], None, None]:
    """The rows of the tasks as they are made, here or by a crew."""
    if crew is None:
        for key, task in tasks.items():
            yield key, measured(task)
    elif tasks:
        crew = crew.alone() if alone else crew
        yield from elsewhere(tasks, blocks(cases, crew.size()), crew)


@contextlib.contextmanager
def _journal(folder: Path, label: str, digest: str, *, fresh: bool) -> Iterator[Journal]:
    """The journal of that label, which nobody else writes meanwhile."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(owned(folder / f".{label}.lock"))
            journal = Journal(folder / f"{label}.jsonl", digest, fresh=fresh)
        except TakenError as taken:
            msg = f"{taken}: {folder}. Wait for it, or give --out another folder."
            raise ValueError(msg) from None
        except OSError as error:
            error.add_note("Nothing there is touched; give --out a folder that can be written.")
            raise
        stack.callback(journal.close)
        yield journal


def _notes(journal: Journal) -> tuple[str, ...]:
    """What was amiss with an earlier run, in sentences."""
    if journal.torn:
        return (f"The last line of {journal.path} was torn; its case is measured again.",)
    return ()


def _found(folder: Path, digest: str) -> dict[str, Row]:
    """The finished rows of all journals in the folder, a run's and its shards'."""
    found: dict[str, Row] = {}
    for path in sorted(folder.glob("rows*.jsonl"), reverse=True):  # rows.jsonl last: it prevails
        found |= {k: row for k, row in rows_of(path, digest).items() if row.get("status") == "ok"}
    return found


def _write(
    folder: Path, cases: Mapping[str, Case], rows: dict[str, Row], meta: Mapping[str, Any]
) -> int:
    """Write table and meta, each old or new but never torn, and return the number of failures.

    ``rows`` gains what other shards have found meanwhile.
    """
    with owned(folder / ".table.lock", wait=True):
        found = _found(folder, meta["digest"])
        rows |= {key: found[key] for key in cases if key not in rows and key in found}
        if not rows:
            return 0  # an early interrupt leaves the results of the run before
        table = [rows[key] for key in cases if key in rows]  # in the order of the grid
        failed = sum(row["status"] != "ok" for row in table)
        finished = datetime.now(UTC)
        meta = dict(meta) | {
            "finished": finished.isoformat(timespec="seconds"),
            "wall_seconds": (finished - datetime.fromisoformat(meta["started"])).total_seconds(),
            "rows": len(table),
            "cases": len(cases),
            "failed": failed,
            "complete": len(table) == len(cases),
            "columns": kinds(table),
        }
        replace(folder / "table.csv", as_csv(table))
        replace(folder / "meta.json", json.dumps(meta, indent=2) + "\n")
    return failed


def _meta(study: Study, setting: Row, *, quick: bool) -> dict[str, Any]:
    source = provenance.source(study.measure)
    axes = {**study.axes, **(study.quick if quick else {})}
    return {
        "format": FORMAT,
        "name": study.name,
        "title": study.title or study.name,
        "question": study.question,
        "chapter": study.chapter,
        "quick": quick,
        "reused": 0,
        "timed": list(study.timed),
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
