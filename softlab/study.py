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
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from softlab import study_folders, validation
from softlab.engine import provenance, sources
from softlab.engine.identity import Identity, UnstableError, flat, identity, marked, shown
from softlab.engine.journal import (
    FORMAT,
    RESERVED,
    Journal,
    Row,
    Scalar,
    as_csv,
    kinds,
    merged,
    replace,
)
from softlab.engine.loading import at_home, load
from softlab.engine.locks import TakenError, owned
from softlab.engine.workers import Crew, Task, blocks, measured
from softlab.engine.workers import rows as elsewhere

Case = dict[str, Any]
FAILED: Row = {"status": "failed"}

NEEDS = {
    "": "nothing",
    "models": "the extra 'models' and fetched weights of trained models",
    "images": "Fashion-MNIST",
    "fidelity": "the extra 'fidelity', published packages",
}
"""What a study may need beyond softlab itself."""


@dataclass(frozen=True)
class Study:
    """A grid of cases and the function that measures one.

    ``name`` is the folder it writes to; ``title`` and ``question`` (one sentence) head its report.
    ``axes`` maps a name to its values; the cases are their product, the last axis fastest, without
    those that ``keep(**case)`` refuses. ``measure(**case, dtype=..., device=...)`` returns numbers
    and words by column name. ``quick`` replaces some axes by shorter ones for a trial run.
    ``figures`` are descriptions that ``softlab.figures`` draws, stored beside the table.
    ``chapter`` names the one that knows the columns: how they were measured, what is found in them,
    and their tables. Unless given it is that of the study's own folder (``softlab.study_folders``),
    or "operators" where the study is a single file. ``timed``
    names the columns that measure time, which no case does beside another. ``inputs`` are files or
    folders that the measure reads, named from the folder of the study's file: rows are those of
    their content. ``needs`` names what must be installed or fetched before, one of
    ``NEEDS``: ``softlab run --all`` leaves such a study out unless it is asked for it. ``file`` is
    the file that the study was loaded from, and ``module`` its name.

    Raises ``ValueError`` for a name that is no folder name, a chapter that is no word, no axis, an
    axis that is empty, a word, or has a name that softlab keeps for itself, a quick axis that the
    grid lacks, and a measure or keep whose parameters are not the axes.
    """

    name: str
    question: str
    axes: Mapping[str, Sequence[Any]]
    measure: Callable[..., Mapping[str, Scalar]]
    keep: Callable[..., bool] | None = None
    quick: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    title: str = ""
    figures: Sequence[Any] = ()
    chapter: str = ""
    timed: Sequence[str] = ()
    inputs: Sequence[Path | str] = ()
    needs: str = ""
    file: Path | None = None
    module: str = ""

    def __post_init__(self) -> None:
        validation.fields(self)
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            msg = f"Study.name is {self.name!r}; it names a folder: use letters, digits, _ . -"
            raise ValueError(msg)
        if self.chapter and not self.chapter.isidentifier():
            msg = f"{self.name}: chapter is {self.chapter!r}; it names the folder of a study."
            raise ValueError(msg)
        if self.needs not in NEEDS:
            msg = (
                f"{self.name}: needs is {self.needs!r}; it is one of {', '.join(map(repr, NEEDS))}."
            )
            raise ValueError(msg)
        if not self.axes:
            msg = f"{self.name} has no axes; give one at least, as in axes={{'seed': [0]}}."
            raise ValueError(msg)
        for axis, values in (*self.axes.items(), *self.quick.items()):
            if wrong := _wrong(axis, values, self.axes):
                msg = f"{self.name}: axis {axis!r} {wrong}; the axes are {', '.join(self.axes)}."
                raise ValueError(msg)
        for function, arguments in ((self.measure, (*self.axes, "dtype", "device")),
                                    (self.keep, tuple(self.axes))):  # fmt: skip
            try:
                if function is not None:
                    inspect.signature(function).bind(**dict.fromkeys(arguments))
            except (TypeError, ValueError) as error:
                called = getattr(function, "__name__", repr(function))
                msg = f"{self.name}: {called} must take {', '.join(arguments)}: {error}."
                raise ValueError(msg) from None

    def cases(self, *, quick: bool = False) -> Iterator[Case]:
        """Yield the cases of the grid, each a mapping from axis to value.

        Raises ``ValueError`` where ``keep`` raises.
        """
        axes = {**self.axes, **(self.quick if quick else {})}
        for values in itertools.product(*axes.values()):
            case = dict(zip(axes, values, strict=True))
            if self._keeps(case):
                yield case

    def _keeps(self, case: Case) -> bool:
        try:
            return self.keep is None or bool(self.keep(**case))
        except Exception as error:
            named = ", ".join(f"{axis}={shown(x)}" for axis, x in case.items())
            msg = f"{self.name}: keep raises {type(error).__name__} at {named}: {error}"
            raise ValueError(msg) from error


def _wrong(axis: str, values: Sequence[Any], axes: Mapping[str, Sequence[Any]]) -> str:
    """What is wrong with an axis, in words; empty if nothing is."""
    if axis not in axes:
        return "is not one of the axes"
    if not isinstance(axis, str) or not axis.isidentifier():
        return "has a name that is no name of an argument"
    if axis in {*RESERVED, "dtype", "device"}:
        return "has a name that softlab keeps for itself: call it something else"
    if isinstance(values, str | bytes):
        return f"is the word {values!r}: give a list of values"
    if not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        return f"is a {type(values).__name__}: give a list of values"
    return "" if len(values) else "has no values"


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    ``rows`` of the table, of ``cases`` that the grid has; how many were ``reused``, and ``failed``.
    ``notes`` say what was amiss. ``share`` of the cases fell to this run, of which ``share_failed``
    failed: all, but for a shard.
    """

    folder: Path
    rows: int
    reused: int
    failed: int
    cases: int
    notes: tuple[str, ...] = ()
    share: int = 0
    share_failed: int = 0


@validation.typed
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
    are otherwise reused where all that decides their numbers is the same: the case by value, the
    code that the study imports, its inputs by content, the libraries' versions, device, dtype,
    threads, and torch's flags. ``progress`` shows a bar on standard error.

    ``crew`` measures elsewhere: ``executors.processes(4)`` with each its share of the threads, or
    anything that speaks ``concurrent.futures.Executor``. A study with ``timed`` columns has one
    case in hand at a time, all threads, and its device to itself, whatever else this user runs;
    its rows say how much of the time they had a processor (``case_cpu_share``) and the machine's
    load when they began (``case_load``).
    ``shard = (i, n)`` measures the i-th of n parts of the grid, 1 to n, into a journal of its own;
    every run makes the table of all rows that it finds in its folder.

    A case that raises becomes a row with ``status = "failed"`` and the error, and is tried again by
    the next run of its shard; so does one whose worker died twice. Each finished row is durable at
    once (``rows.jsonl``). Interrupts (SIGTERM and SIGHUP are such) and errors pass through, with a
    note of what was kept, after the table has been written.

    Raises ``ValueError`` for a device that is not there, threads that are none or too many, a shard
    outside 1 to n, a grid without cases, two equal values on an axis, a value that cannot be known
    again, an input that cannot be read, a journal that is corrupt or of a newer version, and a
    folder in which another run is writing.
    """
    where = provenance.usable(device)
    validation.floating("dtype", dtype)
    if not str(out).strip():
        msg = "out is empty; name the folder of the results, '.' for this one."
        raise ValueError(msg)
    folder = Path(out) / study.name
    part, parts = shard
    if not 1 <= part <= parts:
        msg = f"shard is {part}/{parts}; give i/n with i from 1 to n."
        raise ValueError(msg)
    if threads is None and crew is not None and not study.timed:
        threads = max(1, torch.get_num_threads() // crew.shares)
    with contextlib.ExitStack() as stack:
        stack.enter_context(provenance.threads(threads))
        closure = stack.enter_context(at_home(study.module))
        stack.enter_context(_stoppable())
        setting = provenance.setting(where, dtype)
        grid = _grid(study, quick=quick)
        cases = _cases(study, grid, setting)
        home = study.file.parent if study.file else Path()
        code = provenance.code(study.measure, closure, _modules(grid), study.inputs, home)
        meta = _meta(study, setting, code, quick=quick)
        label = f"rows-{part}-of-{parts}" if parts > 1 else "rows"
        rows: dict[str, Row] = {}
        journal, notes = stack.enter_context(_journal(folder, label, code, fresh=fresh))
        try:
            known = {} if fresh else merged(folder, code.digest)
            rows = {key: known[key] for key in cases if key in known}
            named = {key: {axis: x.held for axis, x in case.items()} for key, case in cases.items()}
            mine = [key for lot in blocks(named, 4 * parts)[part - 1 :: parts] for key in lot]
            todo = {key: named[key] for key in mine if rows.get(key, FAILED)["status"] != "ok"}
            meta["reused"] = reused = sum(row["status"] == "ok" for row in rows.values())
            tasks = {key: _task(study, case, code, setting, dtype) for key, case in todo.items()}
            made = _made(tasks, todo, crew, alone=bool(study.timed))
            with _bar(shown=progress) as bar, contextlib.closing(made):
                for key, row in bar.track(made, len(todo), description=study.name):
                    row = _row(cases[key], row)
                    journal.append(key, row)
                    rows[key] = row
            failed = _write(folder, cases, rows, meta)
        except BaseException as stop:
            kept = f"{len(rows)} of {len(cases)} rows are kept in {folder}"
            stop.add_note(f"{kept}; the same command resumes.")
            with contextlib.suppress(OSError):  # a full disk; the journal holds the rows
                _write(folder, cases, rows, meta)
            raise
        if journal.renewed:
            notes += (f"{journal.path} was taken away meanwhile, and is written anew.",)
    lost = sum(rows.get(key, FAILED)["status"] != "ok" for key in mine)
    return Outcome(folder, len(rows), reused, failed, len(cases), notes, len(mine), lost)


@validation.typed
def defined_in(file: Path | str) -> list[Study]:
    """The studies at the top level of ``file``; ``ValueError`` if there are none.

    ``file`` may also be a folder that holds ``study.py``, and the name of one of softlab's own.
    """
    module = load(file)
    named = {id(x): x for x in vars(module).values() if isinstance(x, Study)}
    if not named:
        msg = f"{file} defines no softlab.study.Study at its top level; add STUDY = Study(...)."
        raise ValueError(msg)
    path, name = Path(str(module.__file__)), module.__name__
    return [dataclasses.replace(study, file=path, module=name) for study in named.values()]


def chapter_of(study: Study) -> tuple[str, str]:
    """The name of a study's chapter, and where that is, which is empty for one that softlab brings.

    The words of ``softlab.report.chapter.named``.
    """
    folder = study.file.parent if study.file and study.file.name == study_folders.STUDY else None
    if study.chapter or folder is None or not (folder / study_folders.CHAPTER).is_file():
        return study.chapter or study_folders.GENERAL, ""
    own = study_folders.built_in().get(folder.name)
    return folder.name, "" if own is not None and own.samefile(folder) else str(folder.absolute())


@dataclass(frozen=True)
class _Value:
    """One value of an axis: what is held, its identity, and the columns that name it."""

    held: Any
    known: Identity
    columns: Row


def _grid(study: Study, *, quick: bool) -> dict[str, list[_Value]]:
    """The axes with what identifies their values; ``ValueError`` for two that are equal."""
    grid = {}
    for axis, values in {**study.axes, **(study.quick if quick else {})}.items():
        grid[axis] = [_value(study, axis, x) for x in values]
        known: dict[Any, _Value] = {}
        for x in grid[axis]:  # a table takes 1, 1.0 and True for one number
            equal = known.setdefault(x.held if _number(x.held) else x.known.digits, x)
            if equal is not x:
                twice = f"{equal.columns[axis]!r} and {x.columns[axis]!r}"
                msg = (
                    f"{study.name}: axis {axis!r} has two equal values, {twice}; keep one of them."
                )
                raise ValueError(msg)
        names = Counter(str(x.columns[axis]) for x in grid[axis])
        for x in grid[axis]:
            if names[str(x.columns[axis])] > 1 and not isinstance(x.held, Scalar | np.generic):
                x.columns[axis] = marked(str(x.columns[axis]), x.held)
    return grid


def _value(study: Study, axis: str, x: Any) -> _Value:
    try:
        known = identity(x)
        if isinstance(x, PurePath) and Path(x).is_file():  # what it names decides the numbers
            digits = known.digits + sources.content(Path(x))
            known = Identity(hashlib.sha256(digits.encode()).hexdigest(), known.modules)
        return _Value(x, known, flat({axis: x}))
    except (UnstableError, ValueError, OSError) as error:
        try:
            name = repr(x)[:80]
        except Exception:
            name = f"a {type(x).__qualname__}"
        msg = (
            f"{study.name}: axis {axis!r} has a value that cannot be known again, {name}: {error}. "
            "Give a number, a word, a path, a tensor, a function, or a dataclass of such."
        )
        raise ValueError(msg) from None


def _number(x: Any) -> bool:
    """Whether a table holds it as a number, of which NaN alone is not equal to itself."""
    return isinstance(x, bool | int | float | np.number | np.bool_) and x == x


def _modules(grid: Mapping[str, Sequence[_Value]]) -> set[str]:
    """The modules that define what is on the axes."""
    return {name for values in grid.values() for x in values for name in x.known.modules}


def _cases(
    study: Study, grid: Mapping[str, Sequence[_Value]], setting: Row
) -> dict[str, dict[str, _Value]]:
    """The cases by key, which stands for their values and the setting."""
    cases = {}
    for values in itertools.product(*grid.values()):
        case = dict(zip(grid, values, strict=True))
        if study._keeps({axis: x.held for axis, x in case.items()}):
            state = json.dumps([{axis: x.known.digits for axis, x in case.items()}, setting])
            cases[hashlib.sha256(state.encode()).hexdigest()[:16]] = case
    if not cases:
        msg = f"{study.name}: keep refuses every case of the grid; widen the axes or keep."
        raise ValueError(msg)
    return cases


def _columns(case: Mapping[str, _Value]) -> Row:
    return {name: x for one in case.values() for name, x in one.columns.items()}


def _row(case: Mapping[str, _Value], measured: Row) -> Row:
    """A row: the columns of the case, then what was measured, which may be none of these."""
    columns = _columns(case)
    if clash := [name for name in measured if name in columns]:
        msg = (
            f"ValueError: the measure returns {', '.join(clash)}, which the case has; call it "
            "something else"
        )
        timing = {name: x for name, x in measured.items() if name.startswith("case_")}
        return columns | {"status": "failed", "error": msg} | timing
    return columns | measured


def _task(
    study: Study, case: Case, code: provenance.Code, setting: Row, dtype: torch.dtype
) -> Task:
    return Task(
        measure=study.measure,
        case=case,
        dtype=dtype,
        device=str(setting["device"]),
        alone=bool(study.timed),
        file=study.file,
        parts=code.parts,
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
def _journal(
    folder: Path, label: str, code: provenance.Code, *, fresh: bool
) -> Iterator[tuple[Journal, tuple[str, ...]]]:
    """The journal of that label, which nobody else writes meanwhile, and what is amiss."""
    with contextlib.ExitStack() as stack:
        try:
            guarded = stack.enter_context(owned(folder / f".{label}.lock"))
            journal = Journal(folder / f"{label}.jsonl", code.digest, fresh=fresh)
        except TakenError as taken:
            msg = f"{taken}: {folder}. Wait for it, or give --out another folder."
            raise ValueError(msg) from None
        except OSError as error:
            error.add_note("Nothing there is touched; give --out a folder that can be written.")
            raise
        stack.callback(journal.close)
        yield journal, tuple(_notes(journal, code, guarded=guarded))


def _notes(journal: Journal, code: provenance.Code, *, guarded: bool) -> Iterator[str]:
    """What is amiss with an earlier run, the folder, or the measure, in sentences."""
    if journal.torn == 1:
        yield f"The last line of {journal.path} was torn; its case is measured again."
    elif journal.torn:
        yield (
            f"The last {journal.torn} lines of {journal.path} were torn; their cases are "
            "measured again."
        )
    if not guarded:
        yield f"Locks do not work in {journal.path.parent}: start no second run there meanwhile."
    if code.unsure:
        yield (
            f"No row can be known again by a later run: {code.unsure}. Define the measure at "
            "the top level of a file."
        )


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let a polite end (SIGTERM, SIGHUP) be an interrupt, so that it too leaves a table."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for one in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(one) is signal.SIG_DFL:  # nohup ignores, a caller may have its own
                before[one] = signal.signal(one, stop)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _write(
    folder: Path, cases: Mapping[str, object], rows: dict[str, Row], meta: Mapping[str, Any]
) -> int:
    """Write table and meta, each old or new but never torn, and return the number of failures.

    ``rows`` gains what other shards have found meanwhile.
    """
    with owned(folder / ".table.lock", wait=True):
        others = merged(folder, meta["digest"])
        rows |= {key: others[key] for key in cases if key not in rows and key in others}
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


def _meta(study: Study, setting: Row, code: provenance.Code, *, quick: bool) -> dict[str, Any]:
    axes = {**study.axes, **(study.quick if quick else {})}
    return {
        "format": FORMAT,
        "name": study.name,
        "title": study.title or study.name,
        "question": study.question,
        **dict(zip(("chapter", "chapter_folder"), chapter_of(study), strict=True)),
        "quick": quick,
        "reused": 0,
        "timed": list(study.timed),
        "seeds": list(axes.get("seed", ())),
        "axes": {name: len(values) for name, values in axes.items()},
        "figures": [dataclasses.asdict(figure) for figure in study.figures],
        **provenance.commit(_folder(study)),
        "digest": code.digest,
        "code": code.parts,
        **setting,
        "versions": provenance.versions(),
        "platform": platform.platform(),
        "started": datetime.now(UTC).isoformat(),
    }


def _folder(study: Study) -> Path:
    """Where the study is defined; here, if it was typed at a prompt."""
    module = sys.modules.get(getattr(study.measure, "__module__", None) or "")
    file = study.file or getattr(module, "__file__", None)
    return Path(file).parent if file else Path.cwd()


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
