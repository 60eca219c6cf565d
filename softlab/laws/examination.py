"""An examination: every law of a subject, each with a verdict, whatever the subject does."""

from __future__ import annotations

import contextlib
import io
import itertools
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from softlab import checks
from softlab.laws.law import Draws, Gap, Law, OutOfScopeError, drawing, generator, said

EXAMPLES, SECONDS = 5, 30.0
SHOWN = 36
"""Entries of a counterexample that are written out."""


class Verdict(StrEnum):
    """What became of a law."""

    HOLDS = "holds"
    FAILS = "fails"
    SKIPPED = "does not apply"


@dataclass(frozen=True)
class Outcome:
    """One law and what became of it.

    ``detail``: by how much it was missed and on what, or why it does not apply. ``examples``: seeds
    that were drawn. Of a failure ``counterexample`` shows what was drawn, the simplest draw that
    fails, and ``reproduce`` is a line of Python that draws it again.
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


class TooLongError(BaseException):
    """A law took longer than it may; no ``Exception``, which a subject might catch."""


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise ``TooLongError`` inside after so long, in the main thread of a system with alarms.

    Later where a module is being imported then: once it is there.
    """
    usable = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGALRM")
    if not usable:
        yield
        return

    def ring(_: int, frame: FrameType | None) -> None:
        if _importing(frame):  # torch imports parts of itself late
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


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is on its way in, which would stay broken in this process if cut short."""
    while frame is not None and frame.f_code.co_filename != __file__:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def examine(
    subject: Any,
    suite: Sequence[Law[Any]],
    *,
    examples: int = EXAMPLES,
    seconds: float = SECONDS,
    draws: Draws | None = None,
    name: str = "op",
) -> Iterator[Outcome]:
    """Put the subject under each law in turn; what it raises, prints or hangs at is an outcome.

    ``examples``: seeds of each law; ``seconds``: the most that one law may take; ``name``: what
    stands for the subject in the lines that reproduce a failure. Raises ``TypeError`` or
    ``ValueError`` at once unless ``examples`` is an integer of at least 1 and ``seconds`` positive.
    """
    checks.count("examples", examples)
    checks.span("seconds", seconds)
    return (
        outcome(subject, law, seeds=range(examples), seconds=seconds, draws=draws, name=name)
        for law in suite
    )


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
    start, done, missed, draws = time.perf_counter(), 0, None, draws or Draws()
    verdict, detail, seed, seeds = Verdict.HOLDS, "", 0, seeds[: law.examples]
    if draws.dtype != torch.float64 and not law.any_dtype:
        chosen = str(draws.dtype).removeprefix("torch.")
        return _outcome(law, Verdict.SKIPPED, f"is asked in precisions of its own, not in {chosen}")
    try:
        with _alone(), limit(seconds):
            if not law.applies(subject):
                return _outcome(law, Verdict.SKIPPED, _why(law, subject))
            for seed in seeds:
                missed = law.broken(subject, seed=seed, draws=draws)
                if missed is not None:
                    break
                done += 1
    except OutOfScopeError as reason:
        return _outcome(law, Verdict.SKIPPED, str(reason))
    except TooLongError:
        if not done:
            verdict, detail = Verdict.FAILS, f"gave no answer within {seconds:g} s"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        verdict, detail = Verdict.FAILS, said(error)
    if missed is None and verdict is Verdict.HOLDS:
        note = "" if done >= len(seeds) else f"{done} examples in {seconds:g} s"
        return _outcome(law, verdict, note, done, time.perf_counter() - start)
    shown, how = "", draws
    if missed is not None:
        detail = missed.said
    if simplest and not detail.startswith("gave"):
        how, seed, words, shown = _simplest(subject, law, seed, draws, seeds, seconds)
        detail = words or detail
    return Outcome(
        law.name, law.family, law.statement, Verdict.FAILS, detail, done + 1,
        time.perf_counter() - start, shown, _line(law, name, seed, how),
    )  # fmt: skip


def _why(law: Law[Any], subject: Any) -> str:
    """Why a law does not apply; of a callable, by how much it misses what it might claim."""
    missed = dict(getattr(subject, "refused", ())).get(law.name)
    return f"is for what {law.when}" + (f"; on trial {missed}" if missed else "")


def _outcome(
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
    subject: Any, law: Law[Any], seed: int, draws: Draws, seeds: Sequence[int], seconds: float
) -> tuple[Draws, int, str, str]:
    """The simplest draw that fails: small, then of one decimal; and what it shows."""
    plain = draws
    ways = itertools.product((True, False), (1, None))
    tried = [Draws(draws.dtype, draws.device, digits, small) for small, digits in ways]
    order = [(how, s) for how in tried[:-1] for s in seeds] if law.examples > 2 else []
    with contextlib.suppress(TooLongError), _alone(), limit(seconds / 2):
        for how, s in [*order, (plain, seed)]:
            found, drawn = _tried(subject, law, s, how)
            if found:
                return how, s, found, _shown(drawn)
    return plain, seed, "", ""


def _tried(subject: Any, law: Law[Any], seed: int, draws: Draws) -> tuple[str, Sequence[Tensor]]:
    with drawing(draws) as drawn:
        try:
            gaps = law.measure(subject, generator(seed))
            gap: Gap | None = next((gap for gap in gaps if not gap.holds), None)
        except OutOfScopeError:
            return "", drawn
        except (Exception, SystemExit) as error:
            return said(error), drawn
        return "" if gap is None else gap.said, drawn


def _shown(drawn: Sequence[Tensor]) -> str:
    """The tensors that were drawn, in full if they are few numbers."""
    if sum(x.numel() for x in drawn) <= SHOWN:
        return ", ".join(_written(x) for x in drawn)
    return "shapes " + ", ".join(str(tuple(x.shape)) for x in drawn[:6])


def _written(x: Tensor) -> str:
    if x.ndim == 0:
        return f"{float(x) + 0:.4g}"
    return f"[{', '.join(map(_written, x.detach()))}]"


def _line(law: Law[Any], name: str, seed: int, draws: Draws) -> str:
    """A line of Python that draws the failure again."""
    said_ = []
    if draws.dtype != torch.float64:
        said_.append(f"dtype={draws.dtype}")
    if draws.device != "cpu":
        said_.append(f"device={draws.device!r}")
    if draws.digits is not None:
        said_.append(f"digits={draws.digits}")
    if draws.small:
        said_.append("small=True")
    how = f", draws=laws.Draws({', '.join(said_)})" if said_ else ""
    imports = "import torch; " if "dtype=" in how else ""
    call = f"laws.check({name}, only={law.name!r}, seed={seed}{how})"
    return f"{imports}from softlab import laws; {call}"
