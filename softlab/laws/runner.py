"""An examination: every law of a subject, each with a verdict, whatever the subject does."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import FrameType
from typing import Any

import torch

from softlab import notebook, validation
from softlab.laws.adapters import claim_found, without
from softlab.laws.grouping import ENDS, defined, raised_at
from softlab.laws.law import Draws, Law, OutOfScopeError, copied, met, said
from softlab.laws.reduction import Reduced, reduced, shown
from softlab.laws.regimes import recorded

EXAMPLES, SECONDS = 5, 30.0
LONGEST = 1e6
"""Seconds that a law may take; the system's alarm counts no more than its clock."""
STUCK = 0.2
"""Share of the seconds of a law from which on a call that has not come back hangs."""
THOROUGH, THOROUGH_SECONDS = 20, 180.0
"""Seeds of each law, and the seconds that one may take, of a thorough examination."""


FORKED = "forked: a call came back a second time, in a copy of the process"


class Verdict(StrEnum):
    """What became of a law."""

    HOLDS = "holds"
    FAILS = "fails"
    SKIPPED = "does not apply"
    EXPECTED = "fails as expected"


@dataclass(frozen=True)
class Outcome:
    """One law and what became of it.

    ``detail``: by how much it was missed and on what, or why it does not apply. ``examples``: seeds
    that were drawn. Of a failure ``counterexample`` shows the tensors of a call, the simplest that
    fails, and ``reproduce`` is a line of Python that draws it again; ``at`` is the file and line
    that raised or, of what raised nothing, where the subject is defined; ``condition`` says in
    which situations alone it fails, and ``situation`` has their choices. ``drawn`` counts the calls
    in each regime, for ``laws.coverage``. ``dropped`` names a claim that nobody made: few calls of
    a callable seemed to keep it, and the law's own draws did not.
    """

    law: str
    family: str
    statement: str
    verdict: Verdict
    detail: str = ""
    examples: int = 0
    seconds: float = 0.0
    counterexample: str = ""
    reproduce: str = ""
    at: str = ""
    condition: str = ""
    situation: Mapping[str, Any] = field(default_factory=dict)
    drawn: Mapping[str, int] = field(default_factory=dict)
    dropped: str = ""

    def _repr_html_(self) -> str:
        title = f"{self.law} ({self.family}): {self.statement}"
        return notebook.table(title, ("verdict", "what was seen", "seeds", "s"), [self._row])

    @property
    def _row(self) -> tuple[object, ...]:
        """The cells of a table: verdict, and below each other what was found; seeds, seconds."""
        found = [self.detail, self.condition, self.at]
        found += [f"on {self.counterexample}"] if self.counterexample else []
        found += [f"again: {self.reproduce}"] if self.reproduce else []
        return self.verdict.value, "\n".join(filter(None, found)), self.examples, self.seconds


class Examination(list[Outcome]):
    """What became of each law, a list in the order of the laws; a notebook shows it as a table."""

    def _repr_html_(self) -> str:
        counts = {verdict: [x for x in self if x.verdict is verdict] for verdict in Verdict}
        order = (Verdict.HOLDS, Verdict.FAILS, Verdict.SKIPPED)
        held, failed, skipped = (len(counts[verdict]) for verdict in order)
        title = f"{held} hold, {failed} fail, {skipped} do not apply"
        shown = [
            counts[x] for x in (Verdict.FAILS, Verdict.EXPECTED, Verdict.HOLDS, Verdict.SKIPPED)
        ]
        rows = [(x.law, *x._row) for group in shown for x in group]
        return notebook.table(title, ("law", "verdict", "what was seen", "seeds", "s"), rows)


class TooLongError(BaseException):
    """A law took longer than it may; no ``Exception``, which a subject might catch."""


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise ``TooLongError`` inside after so long, in the main thread of a system with alarms.

    Later where a module is being imported then, or an object finalized: once that is done.
    """
    usable = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGALRM")
    if not usable:
        yield
        return

    def ring(_: int, frame: FrameType | None) -> None:
        if _deaf(frame):  # torch imports parts of itself late
            signal.setitimer(signal.ITIMER_REAL, 0.02)
        else:
            raise TooLongError

    before, start = signal.signal(signal.SIGALRM, ring), time.monotonic()
    left, every = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # another's alarm, such as that of a test, goes on
            left = max(0.001, left - (time.monotonic() - start))
            signal.setitimer(signal.ITIMER_REAL, left, every)


def _deaf(frame: FrameType | None) -> bool:
    """Whether an exception would do harm or be lost here.

    A module that is on its way in would stay broken in this process if cut short; what is raised in
    a finalizer, or in a callback of the garbage collector, is written down and dropped. Between two
    lines of ``logging`` the lock of all loggers may be held, and would never be given back: other
    threads that log, as those that read images do, would wait for ever.
    """
    if frame is not None and frame.f_code.co_filename == logging.__file__:
        return True
    callbacks = {getattr(x, "__code__", None) for x in gc.callbacks}
    while frame is not None and frame.f_code.co_filename != __file__:
        code = frame.f_code
        if code.co_filename == "<frozen importlib._bootstrap>" or code.co_name == "__del__":
            return True
        if code in callbacks:
            return True
        frame = frame.f_back
    return False


def budgeted(examples: int | None, seconds: float | None, *, thorough: bool) -> tuple[int, float]:
    """Seeds of each law and seconds for one: what is given, else the default of the two budgets."""
    usual = (THOROUGH, THOROUGH_SECONDS) if thorough else (EXAMPLES, SECONDS)
    return usual[0] if examples is None else examples, usual[1] if seconds is None else seconds


def examine(
    subject: Any,
    suite: Sequence[Law[Any]],
    *,
    examples: int = EXAMPLES,
    seconds: float = SECONDS,
    draws: Draws | None = None,
    name: str = "op",
) -> Iterator[Outcome]:
    """Ask each law of the subject in turn. Errors, output and hangs are recorded, not raised.

    ``examples``: seeds of each law; ``seconds``: the most that one law may take; ``name``: what
    stands for the subject in the lines that reproduce a failure. Raises ``TypeError`` or
    ``ValueError`` at once unless ``examples`` is an integer of at least 1 and ``seconds`` positive.
    """
    validation.count("examples", examples)
    validation.span("seconds", seconds, most=LONGEST)
    return _each(subject, suite, range(examples), seconds, draws, name)


def _each(
    subject: Any,
    suite: Sequence[Law[Any]],
    seeds: Sequence[int],
    seconds: float,
    draws: Draws | None,
    name: str,
) -> Iterator[Outcome]:
    for law in suite:
        found = outcome(subject, law, seeds=seeds, seconds=seconds, draws=draws, name=name)
        subject = without(subject, found.dropped)
        yield found


def expecting(found: Outcome, reason: str) -> Outcome:
    """The outcome of a law that is known to fail, and why: a failure is no news, anything else is.

    Args:
        found: what became of the law.
        reason: why it is expected to fail.

    Returns:
        EXPECTED in the place of FAILS; FAILS in the place of HOLDS and of SKIPPED.
    """
    if found.verdict is Verdict.FAILS:
        detail = f"{reason}: {found.detail}"
        return dataclasses.replace(found, verdict=Verdict.EXPECTED, detail=detail)
    now = "holds" if found.verdict is Verdict.HOLDS else "is not asked of such a subject"
    detail = f"it was expected to fail ({reason}), and {now}; take it out of what is expected"
    return dataclasses.replace(found, verdict=Verdict.FAILS, detail=detail)


@validation.typed
def outcome(
    subject: Any,
    law: Law[Any],
    *,
    seeds: Sequence[int] = range(EXAMPLES),
    seconds: float = SECONDS,
    draws: Draws | None = None,
    name: str = "op",
    simplest: bool = True,
) -> Outcome:
    """What becomes of one law: as ``examine``, at these seeds.

    ``simplest``: look for a simpler draw that fails, too.
    """
    validation.span("seconds", seconds, most=LONGEST)
    draws, seeds = draws or Draws(), seeds[: law.examples]
    if not seeds:
        msg = "seeds is empty, and a law holds of nothing; give one seed at least."
        raise ValueError(msg)
    for seed in seeds:
        validation.count("seed", seed, 0, math.inf)
    if draws.dtype != torch.float64 and not law.any_dtype:
        chosen = str(draws.dtype).removeprefix("torch.")
        return _of(law, Verdict.SKIPPED, f"is asked in precisions of its own, not in {chosen}")
    with recorded(subject) as record:
        trial = _asked(subject, law, seeds, seconds, draws)
    if copied():
        done = trial.outcome
        trial = _Trial(_of(law, Verdict.FAILS, FORKED, done.examples, done.seconds))
        simplest = False
    if isinstance(trial.error, TooLongError) and trial.outcome.verdict is Verdict.FAILS:
        trial = _slow(law, trial, time.monotonic() - record.begun, seconds)
    found = dataclasses.replace(
        trial.outcome, drawn={": ".join(where): n for where, n in record.counts.items()}
    )
    if found.verdict is not Verdict.FAILS:
        return found
    claim = claim_found(subject, law)
    if claim and trial.error is None and not found.detail.startswith(ENDS):
        why = f"inferred {claim}, then dropped: {found.detail}"
        return dataclasses.replace(found, verdict=Verdict.SKIPPED, detail=why, dropped=claim)
    place = raised_at(trial.error) if trial.error is not None else ""
    found = dataclasses.replace(
        found, at=place or defined(subject), reproduce=_line(law, name, trial.seed, draws)
    )
    if not simplest or isinstance(trial.error, TooLongError):
        return found
    return _simplest(found, subject, law, trial, draws, seconds, name)


def _slow(law: Law[Any], trial: _Trial, calling: float, seconds: float) -> _Trial:
    """The trial of a law that ran out of time; not asked where calls were answered until then."""
    if calling > STUCK * seconds:
        return trial
    why = f"takes longer than {seconds:g} s with calls as slow as these; give more seconds"
    return _Trial(_of(law, Verdict.SKIPPED, why, 0, trial.outcome.seconds))


@dataclass
class _Trial:
    """An outcome, and of a failure the seed, the situation's choices and what was raised."""

    outcome: Outcome
    seed: int = 0
    row: Mapping[str, Any] | None = None
    error: BaseException | None = None


def _asked(
    subject: Any, law: Law[Any], seeds: Sequence[int], seconds: float, draws: Draws
) -> _Trial:
    """Ask the law at one seed after another until it fails."""
    start, done, seed, detail = time.perf_counter(), 0, 0, ""
    caught: BaseException | None = None
    try:
        with _alone(), limit(seconds):
            if not law.applies(subject):
                return _Trial(_of(law, Verdict.SKIPPED, _why(law, subject)))
            for seed in seeds:
                missed = law.broken(subject, seed=seed, draws=draws)
                if missed is not None:
                    detail = missed.said
                    break
                done += 1
    except OutOfScopeError as reason:
        return _Trial(_of(law, Verdict.SKIPPED, str(reason)))
    except TooLongError as error:
        caught, detail = error, "" if done else f"gave no answer within {seconds:g} s"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        caught, detail = error, said(error)
    spent = time.perf_counter() - start
    if detail:
        return _Trial(_of(law, Verdict.FAILS, detail, done + 1, spent), seed, met(), caught)
    note = "" if done >= len(seeds) else f"{done} examples in {seconds:g} s"
    return _Trial(_of(law, Verdict.HOLDS, note, done, spent))


def _why(law: Law[Any], subject: Any) -> str:
    """Why a law does not apply; of a callable, by how much it misses what it might claim."""
    missed = dict(getattr(subject, "refused", ())).get(law.name)
    return f"is for what {law.when}" + (f"; on trial {missed}" if missed else "")


def _of(
    law: Law[Any], verdict: Verdict, detail: str, examples: int = 0, seconds: float = 0.0
) -> Outcome:
    return Outcome(law.name, law.family, law.statement, verdict, detail, examples, seconds)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """What the subject prints or warns of reaches nobody: the laws of honesty look themselves."""
    sink = io.StringIO()
    silent = contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink)
    with silent[0], silent[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _simplest(
    found: Outcome,
    subject: Any,
    law: Law[Any],
    trial: _Trial,
    draws: Draws,
    seconds: float,
    name: str,
) -> Outcome:
    """The failure at the simplest draw that was found in half the time that a law may take."""
    least: Reduced | None = None
    start = time.perf_counter()
    with contextlib.suppress(TooLongError), _alone(), limit(seconds / 2):
        for one in reduced(subject, law, trial.seed, draws, trial.row):
            least = one
        if least is None and trial.row is not None:
            least = next(reduced(subject, law, trial.seed, draws, None), None)
    if least is None:
        return found
    error = least.failure.error
    place = raised_at(error) if error is not None else ""
    return dataclasses.replace(
        found,
        detail=least.failure.detail,
        seconds=found.seconds + time.perf_counter() - start,
        counterexample=shown(least.failure.call),
        reproduce=_line(law, name, least.seed, least.draws),
        at=place or found.at,
        condition=least.words,
        situation=dict(least.condition),
    )


def _line(law: Law[Any], name: str, seed: int, draws: Draws) -> str:
    """A line of Python that draws the failure again."""
    usual = Draws()
    changed = [
        f"{x.name}={getattr(draws, x.name)!r}"
        for x in dataclasses.fields(Draws)
        if getattr(draws, x.name) != getattr(usual, x.name)
    ]
    how = f", draws=laws.Draws({', '.join(changed)})" if changed else ""
    imports = "import torch; " if "dtype=" in how else ""
    call = f"laws.check({name}, only={law.name!r}, seed={seed}{how})"
    return f"{imports}from softlab import laws; {call}"
