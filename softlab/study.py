"""A study: a question, a grid of cases, and what is measured on each.

Data flow one way: axes -> cases -> set-up -> measure -> rows -> table. Figures and reports read the
table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import itertools
import json
import platform
import re
import signal
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePath
from typing import Any, TypeVar

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
    Rows,
    Scalar,
    as_csv,
    finished,
    kinds,
    merged,
    replace,
)
from softlab.engine.loading import at_home, load
from softlab.engine.locks import TakenError, file_lock
from softlab.engine.workers import (
    Crew,
    Task,
    blocks,
    called,
    lost,
    measured,
    release_setups,
    takes,
)
from softlab.engine.workers import rows as elsewhere

T = TypeVar("T")
Case = dict[str, Any]
EVERY = 30.0
"""Seconds between two lines that say how far a run is, where no bar can."""
FAILED: Rows = [{"status": "failed"}]
GIVEN = ("dtype", "device")
"""What a measure and a set-up may name beside the axes."""

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
    those that ``keep`` refuses. ``measure`` returns numbers and words by column name. It is called
    by keyword with what it names of the axes, ``dtype``, ``device`` and ``setup``; so are ``keep``,
    with axes, and ``setup``. ``quick`` replaces some axes by shorter ones for a trial run.

    ``setup(<some axes>, dtype, device)`` computes what cases share that agree in the axes that it
    names: an input with its exact answers, a trained model. It is called once for all of them in
    each process that measures some, and ``measure`` finds what it returned in its argument
    ``setup``, which it must leave as it is.
    ``within`` names the columns that tell the rows of one case apart, as in ``("step", "layer")``,
    where a case has many: ``measure`` then returns a list of mappings (or yields them), each with
    these columns. The rows of a case are written together and resumed together; a case that fails
    is one row.

    ``figures`` are descriptions that ``softlab.figures`` draws, stored beside the table.
    ``chapter`` names the one that knows the columns: how they were measured, what is found in them,
    and their tables. Unless given it is that of the study's own folder (``softlab.study_folders``),
    or "operators" where the study is a single file. ``timed`` names the columns that hold times:
    cases of such a study run one at a time. ``inputs`` are files or folders that the measure reads,
    named from the folder of the study's file: rows are those of their content. ``needs`` names what
    must be installed or fetched before, one of ``NEEDS``: ``softlab run --all`` leaves such a study
    out unless it is asked for it. ``file`` is the file that the study was loaded from, and
    ``module`` its name.

    Raises ``ValueError`` for a name that is no folder name, a chapter that is no word, no axis, an
    axis that is empty, a word, or has a name that softlab keeps for itself, a quick axis that the
    grid lacks, a measure, keep or set-up that needs other arguments, an axis that neither measure
    nor set-up names, a set-up that names no axis or that the measure does not take, and a column
    ``within`` that is an axis, twice there, or softlab's own.
    """

    name: str
    question: str
    axes: Mapping[str, Sequence[Any]]
    measure: Callable[..., Mapping[str, Scalar] | Iterable[Mapping[str, Scalar]]]
    keep: Callable[..., bool] | None = None
    setup: Callable[..., object] | None = None
    within: Sequence[str] = ()
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
        if wrong := self._wrong_functions() or self._wrong_within():
            msg = f"{self.name}: {wrong}."
            raise ValueError(msg)

    @property
    def shared(self) -> tuple[str, ...]:
        """The axes that the set-up names; cases that agree in them share it."""
        if self.setup is None:
            return ()
        return tuple(x for x in takes(self.setup, (*self.axes, *GIVEN)) if x in self.axes)

    def _wrong_functions(self) -> str:
        """What is wrong with the functions' arguments, in words; empty if nothing is."""
        given = GIVEN if self.setup is None else (*GIVEN, "setup")
        named: dict[str, tuple[str, ...]] = {}
        for role, function, offered in (
            ("setup", self.setup, (*self.axes, *GIVEN)),
            ("measure", self.measure, (*self.axes, *given)),
            ("keep", self.keep, tuple(self.axes)),
        ):
            if function is None:
                continue
            try:
                named[role] = takes(function, offered)
            except (TypeError, ValueError) as error:
                name = getattr(function, "__name__", repr(function))
                return f"{name} must take {', '.join(offered)}, or some of them: {error}"
        seen = {*named["measure"], *named.get("setup", ())}
        if unseen := [axis for axis in self.axes if axis not in seen]:
            return (
                f"neither measure nor setup takes {', '.join(unseen)}, an axis; name it, or "
                "leave it out of axes"
            )
        if self.setup is not None and not self.shared:
            return (
                "setup names no axis, and is the same for all cases; compute it in a function "
                "that the measure calls, or name an axis"
            )
        if self.setup is not None and "setup" not in named["measure"]:
            return (
                "measure does not take setup; give it an argument of that name, or leave out "
                "Study.setup"
            )
        return ""

    def _wrong_within(self) -> str:
        """What is wrong with the columns that tell rows apart, in words; empty if nothing is."""
        for name in self.within:
            if not isinstance(name, str) or not name:
                return f"within has {name!r}; give names of columns"
            if name in self.axes:
                return f"within has {name!r}, which is an axis: the rows of a case agree in it"
            if name in RESERVED:
                return f"within has {name!r}, which softlab fills itself: call it something else"
        twice = [name for name, times in Counter(self.within).items() if times > 1]
        return f"within has {twice[0]!r} twice; name it once" if twice else ""

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
            return self.keep is None or bool(called(self.keep, case))
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
    if axis in {*RESERVED, *GIVEN, "setup"}:
        return "has a name that softlab keeps for itself: call it something else"
    if isinstance(values, str | bytes):
        return f"is the word {values!r}: give a list of values"
    if not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        return f"is a {type(values).__name__}: give a list of values"
    return "" if len(values) else "has no values"


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    ``rows`` of the table, one or more of each of the ``measured`` cases, of ``cases`` that the grid
    has; how many cases were ``reused``, and ``failed``. ``notes`` say what was amiss. ``share`` of
    the cases fell to this run, of which ``share_failed`` failed: all, but for a shard.
    """

    folder: Path
    rows: int
    reused: int
    failed: int
    cases: int
    notes: tuple[str, ...] = ()
    share: int = 0
    share_failed: int = 0
    measured: int = 0


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

    Rows of earlier runs are reused where all that decides their numbers is the same: the case by
    value, the code that the study imports, its inputs by content, the libraries' versions, device,
    dtype, threads, and torch's flags. A case that raises, or whose worker died twice, is a row with
    ``status = "failed"`` and the error; the next run of its shard tries it again. A finished case
    is durable at once (``rows.jsonl``). Interrupts (SIGTERM and SIGHUP are such) and errors pass
    through, with a note of what was kept, after the table has been written.

    A study with ``timed`` columns has one case in hand at a time, all threads, and its device to
    itself, whatever else this user runs; its rows say how much of the time they had a processor
    (``case_cpu_share``) and the machine's load when they began (``case_load``).

    Args:
        study: What is measured.
        out: The folder of results.
        device: Given to the measure, as ``dtype`` is.
        dtype: A floating-point type.
        quick: Takes the short axes.
        threads: Of torch, in each process; None for torch's default, divided by the workers.
        fresh: Discards the rows of earlier runs.
        progress: Shows a bar on standard error, or a line now and then where none can move.
        crew: Measures elsewhere: ``workers.processes(4)``, or any that opens a
            ``concurrent.futures.Executor``.
        shard: (i, n) measures the i-th of n parts of the grid into a journal of its own; every run
            makes the table of all rows that it finds in its folder.

    Raises:
        ValueError: For a device that is not there, threads that are none or too many, a shard
            outside 1 to n, a grid without cases, two equal values on an axis, a value that cannot
            be known again, an input that cannot be read, a journal that is corrupt or of a newer
            version, and a folder in which another run is writing.
    """
    where = provenance.usable(device)
    validation.floating("dtype", dtype)
    folder = _folder_of_results(study, out)
    label = _label(*shard)
    if threads is None and crew is not None and not study.timed:
        threads = max(1, torch.get_num_threads() // crew.shares)
    with contextlib.ExitStack() as stack:
        stack.enter_context(provenance.threads(threads))
        closure = stack.enter_context(at_home(study.module))
        stack.enter_context(_stoppable())
        made = _Run.of(study, folder, closure, provenance.setting(where, dtype), dtype, quick=quick)
        journal, notes = stack.enter_context(_journal(folder, label, made.code, fresh=fresh))
        return made.outcome(journal, notes, made.share(*shard), crew, fresh=fresh, bar=progress)


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


@dataclass
class _Meta:
    """What a run says of its table in ``meta.json``; ``setting`` is spread over the file."""

    name: str
    title: str
    question: str
    chapter: str
    chapter_folder: str
    quick: bool
    timed: list[str]
    within: list[str]
    shared: list[str]
    seeds: list[Any]
    axes: dict[str, int]
    figures: list[dict[str, Any]]
    commit: str | bool | None
    dirty: str | bool | None
    digest: str
    code: dict[str, str]
    setting: Row
    versions: dict[str, str]
    platform: str
    started: str
    format: int = FORMAT
    reused: int = 0
    finished: str = ""
    wall_seconds: float = 0.0
    rows: int = 0
    cases: int = 0
    measured: int = 0
    failed: int = 0
    complete: bool = False
    columns: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(study: Study, setting: Row, code: provenance.Code, *, quick: bool) -> _Meta:
        """What is known before the first case."""
        axes = {**study.axes, **(study.quick if quick else {})}
        chapter, chapter_folder = chapter_of(study)
        made_of = provenance.commit(_folder(study))
        return _Meta(
            name=study.name,
            title=study.title or study.name,
            question=study.question,
            chapter=chapter,
            chapter_folder=chapter_folder,
            quick=quick,
            timed=[*study.timed, *(["wall_seconds"] if "seconds" in study.timed else [])],
            within=list(study.within),
            shared=list(study.shared),
            seeds=list(axes.get("seed", ())),
            axes={name: len(values) for name, values in axes.items()},
            figures=[dataclasses.asdict(figure) for figure in study.figures],
            commit=made_of["commit"],
            dirty=made_of["dirty"],
            digest=code.digest,
            code=code.parts,
            setting=setting,
            versions=provenance.versions(),
            platform=platform.platform(),
            started=datetime.now(UTC).isoformat(),
        )

    def json(self) -> str:
        """As the file holds it."""
        held = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        setting = held.pop("setting")
        return json.dumps(held | setting, indent=2) + "\n"


@dataclass
class _Run:
    """One run of a study: what is fixed before its first case, and the rows that it has.

    ``cases`` by key in the order of the grid, whether this run measures them or another shard;
    ``number`` is no other run's: what a set-up made for one serves no other.
    """

    study: Study
    folder: Path
    dtype: torch.dtype
    setting: Row
    code: provenance.Code
    cases: Mapping[str, Mapping[str, _Value]]
    meta: _Meta
    number: str
    rows: dict[str, Rows] = field(default_factory=dict)

    @staticmethod
    def of(
        study: Study,
        folder: Path,
        closure: sources.Closure,
        setting: Row,
        dtype: torch.dtype,
        *,
        quick: bool,
    ) -> _Run:
        """The run before its first case; raises ``ValueError`` for what cannot be known again."""
        grid = _grid(study, quick=quick)
        cases = _cases(study, grid, setting)
        home = study.file.parent if study.file else Path()
        functions = study.measure if study.setup is None else (study.measure, study.setup)
        code = provenance.code(functions, closure, _modules(grid), study.inputs, home)
        meta = _Meta.of(study, setting, code, quick=quick)
        return _Run(study, folder, dtype, setting, code, cases, meta, uuid.uuid4().hex)

    def share(self, part: int, parts: int) -> list[str]:
        """The keys of a shard: blocks in turn, few enough that shards share no set-up."""
        least = parts if self.study.shared else 4 * parts
        lots = self._blocks(self.cases, least)[part - 1 :: parts]
        return [key for lot in lots for key in lot]

    def outcome(
        self,
        journal: Journal,
        notes: tuple[str, ...],
        mine: Sequence[str],
        crew: Crew | None,
        *,
        fresh: bool,
        bar: bool,
    ) -> Outcome:
        """Measure what is missing of the keys that are ``mine``, and write the table."""
        try:
            known = {} if fresh else merged(self.folder, self.code.digest)
            self.rows = {key: known[key] for key in self.cases if key in known}
            self.meta.reused = sum(map(finished, self.rows.values()))
            todo = [key for key in mine if not finished(self.rows.get(key, FAILED))]
            with (
                contextlib.closing(self._measured(todo, crew)) as made,
                contextlib.closing(
                    _followed(made, len(todo), self.study.name, shown=bar)
                ) as followed,
            ):
                for key, rows in followed:
                    rows = _named(self.cases[key], rows)
                    journal.append(key, rows)
                    self.rows[key] = rows
            self._write()
        except BaseException as stop:
            what = "cases" if self.study.within else "rows"
            kept = f"{len(self.rows)} of {len(self.cases)} {what} are kept in {self.folder}"
            stop.add_note(f"{kept}; the same command resumes.")
            with contextlib.suppress(OSError):  # a full disk; the journal holds the rows
                self._write()
            raise
        if journal.renewed:
            notes += (f"{journal.path} was taken away meanwhile, and is written anew.",)
        meta = self.meta
        return Outcome(
            self.folder, meta.rows, meta.reused, meta.failed, len(self.cases), notes, len(mine),
            share_failed=sum(not finished(self.rows.get(key, FAILED)) for key in mine),
            measured=meta.measured,
        )  # fmt: skip

    def _blocks(self, keys: Iterable[str], least: int) -> list[list[str]]:
        cases = {key: {axis: x.known.digits for axis, x in self.cases[key].items()} for key in keys}
        return blocks(cases, least, self.study.shared)

    def _measured(
        self, todo: Sequence[str], crew: Crew | None
    ) -> Generator[tuple[str, Rows], None, None]:
        """The rows of the cases as they are made, here or by a crew."""
        tasks = {key: self._task(key) for key in todo}
        if crew is None:
            for lot in self._blocks(todo, 1) if self.study.shared else [todo]:
                try:
                    for key in lot:
                        yield key, measured(tasks[key])
                        if why := lost():
                            msg = f"{why}, so the run ends here"
                            raise ConnectionError(msg)
                finally:
                    release_setups()
        elif tasks:
            crew = crew.alone() if self.study.timed else crew
            yield from elsewhere(tasks, self._blocks(todo, crew.size()), crew)

    def _task(self, key: str) -> Task:
        case, study = self.cases[key], self.study
        block = [self.number, *(case[axis].known.digits for axis in study.shared)]
        return Task(
            measure=study.measure,
            case={axis: x.held for axis, x in case.items()},
            dtype=self.dtype,
            device=str(self.setting["device"]),
            alone=bool(study.timed),
            file=study.file,
            parts=self.code.parts,
            setting=self.setting,
            setup=study.setup,
            block=" ".join(block),
            within=tuple(study.within),
        )

    def _write(self) -> None:
        """Write table and meta, each old or new but never torn, with rows of other shards."""
        with file_lock(self.folder / ".table.lock", wait=True):
            others = merged(self.folder, self.code.digest)
            missing = [key for key in self.cases if key not in self.rows and key in others]
            self.rows |= {key: others[key] for key in missing}
            if not self.rows:
                return  # an early interrupt leaves the results of the run before
            found = [self.rows[key] for key in self.cases if key in self.rows]  # as the grid goes
            table = [row for rows in found for row in rows]
            now, meta = datetime.now(UTC), self.meta
            meta.finished = now.isoformat(timespec="seconds")
            meta.wall_seconds = (now - datetime.fromisoformat(meta.started)).total_seconds()
            meta.rows, meta.cases, meta.measured = len(table), len(self.cases), len(found)
            meta.failed = sum(not finished(rows) for rows in found)
            meta.complete = meta.measured == meta.cases
            meta.columns = kinds(table)
            replace(self.folder / "table.csv", as_csv(table))
            replace(self.folder / "meta.json", meta.json())


def _named(case: Mapping[str, _Value], measured: Rows) -> Rows:
    """Rows: the columns of the case, then what was measured, which may be none of these."""
    columns = {name: x for one in case.values() for name, x in one.columns.items()}
    if clash := list(dict.fromkeys(name for row in measured for name in row if name in columns)):
        msg = (
            f"ValueError: the measure returns {', '.join(clash)}, which the case has; call it "
            "something else"
        )
        timing = {name: x for name, x in measured[0].items() if name.startswith("case_")}
        return [columns | {"status": "failed", "error": msg} | timing]
    return [columns | row for row in measured]


def _folder_of_results(study: Study, out: Path | str) -> Path:
    if not str(out).strip():
        msg = "out is empty; name the folder of the results, '.' for this one."
        raise ValueError(msg)
    return Path(out) / study.name


def _label(part: int, parts: int) -> str:
    """The name of a shard's journal."""
    if not 1 <= part <= parts:
        msg = f"shard is {part}/{parts}; give i/n with i from 1 to n."
        raise ValueError(msg)
    return f"rows-{part}-of-{parts}" if parts > 1 else "rows"


@contextlib.contextmanager
def _journal(
    folder: Path, label: str, code: provenance.Code, *, fresh: bool
) -> Iterator[tuple[Journal, tuple[str, ...]]]:
    """The journal of that label, which nobody else writes meanwhile, and what is amiss."""
    with contextlib.ExitStack() as stack:
        try:
            guarded = stack.enter_context(file_lock(folder / f".{label}.lock"))
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
        for one in filter(None, (signal.SIGTERM, getattr(signal, "SIGHUP", None))):  # of POSIX
            if signal.getsignal(one) is signal.SIG_DFL:  # nohup ignores, a caller may have its own
                before[one] = signal.signal(one, stop)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _folder(study: Study) -> Path:
    """Where the study is defined; here, if it was typed at a prompt."""
    module = sys.modules.get(getattr(study.measure, "__module__", None) or "")
    file = study.file or getattr(module, "__file__", None)
    return Path(file).parent if file else Path.cwd()


def _followed(made: Iterable[T], total: int, name: str, *, shown: bool) -> Generator[T, None, None]:
    """The same, told on standard error: by a bar, or by a line now and then where none can move.

    None moves in a file, such as the log of a job, nor in a notebook without ``ipywidgets``.
    """
    console = Console(stderr=True)
    widgets = console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
    if shown and (widgets or (console.is_terminal and not console.is_jupyter)):
        columns = (
            *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
            *(TextColumn("left"), TimeRemainingColumn()),
        )
        with Progress(*columns, console=console) as bar:
            yield from bar.track(made, total, description=name)
        return
    begun = told = time.monotonic()
    for done, one in enumerate(made, 1):
        yield one
        now = time.monotonic()
        if shown and (done == total or now - told >= EVERY):
            told, spent = now, now - begun
            times = [timedelta(seconds=round(x)) for x in (spent, spent / done * (total - done))]
            left = f", about {times[1]} left" if done < total else ""
            line = f"{name}: {done} of {total} cases in {times[0]}{left}"
            print(line, file=sys.stderr, flush=True)  # noqa: T201
