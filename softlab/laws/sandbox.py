"""An examination in a process of its own, which a subject may hang, end or break.

The child examines law after law and reports each through a pipe. One that is silent for too long
is killed, one that ends is noted, and another goes on with the laws that are left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from softlab.laws import adapters, faults
from softlab.laws.grouping import defined, raised_at
from softlab.laws.law import Draws, Law, is_plain, said
from softlab.laws.runner import (
    EXAMPLES,
    SECONDS,
    Outcome,
    TooLongError,
    Verdict,
    expecting,
    limit,
    outcome,
)

MEMORY = 8 << 30
"""Most bytes that the child may hold on a CPU; the laws need less than one of these eight GiB."""
STARTING = 120.0
"""Seconds that the child may take to start and to import the subject."""


@dataclass(frozen=True)
class Request:
    """What to examine: a spec as ``laws.load`` takes it, and how.

    ``examples``, ``seconds``, ``dtype``, ``device``: as of ``laws.examine``. ``only``: names of
    laws, empty for all. ``thorough``: many more sizes. ``power``: plant faults, as ``laws.power``.
    ``expected``: laws that are known to fail, with the reasons. ``adapter``: as of ``laws.load``.
    """

    spec: str
    traits: str | None = None
    target: str | None = None
    examples: int = EXAMPLES
    seconds: float = SECONDS
    dtype: str = "float64"
    device: str = "cpu"
    only: tuple[str, ...] = ()
    thorough: bool = False
    requires: str | None = None
    power: bool = False
    expected: tuple[tuple[str, str], ...] = ()
    adapter: str | None = None

    @property
    def name(self) -> str:
        """The line of Python that loads the subject."""
        given = ((key, getattr(self, key)) for key in ("traits", "target", "requires", "adapter"))
        more = "".join(f", {key}={held!r}" for key, held in given if held is not None)
        return f"laws.load({self.spec!r}{more})"


def examined(request: Request) -> Iterator[Outcome]:
    """The outcome of every law; first whether there is a subject at all."""
    done: list[str] = []
    places: list[str] = []
    while True:
        child = _Child(request, done, places)
        try:
            finished = yield from child.reports(done)
        finally:
            child.end()
        if finished:
            return


class _Child:
    def __init__(self, request: Request, done: Sequence[str], places: list[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.request, self.places = request, places
        self.pipe, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_serve, args=(theirs, request, tuple(done)))
        self.process.start()
        theirs.close()

    def reports(self, done: list[str]) -> Generator[Outcome, None, bool]:
        """Yield outcomes, note the laws in ``done``; return whether all is said."""
        running, patience = "", STARTING
        while True:
            try:
                heard = self.pipe.recv() if self.pipe.poll(patience) else None
            except EOFError:
                self.process.join(5)
                heard = f"ended the process, code {self.process.exitcode}"
            if isinstance(heard, Outcome):
                if heard.law != SUBJECT or SUBJECT not in done:
                    self.places.append(heard.at)
                    yield heard
                    done.append(heard.law)
                if heard.law == SUBJECT and heard.verdict is Verdict.FAILS:
                    return True
            elif isinstance(heard, tuple):
                running, patience = heard[0], 1.5 * self.request.seconds + 5
                if not running:
                    return True
            else:
                detail = heard or f"gave no answer within {self.request.seconds:g} s, nor stopped"
                law, family, statement = _known(running)
                place = self.places[0] if self.places else ""
                # A fault that ends or hangs the process is seen.
                seen = family == faults.FAMILY
                verdict = Verdict.HOLDS if seen else Verdict.FAILS
                found = Outcome(law, family, statement, verdict, detail, 1, at=place)
                reason = dict(self.request.expected).get(law)
                yield found if reason is None else expecting(found, reason)
                done.append(law)
                return law == SUBJECT

    def end(self) -> None:
        """Kill it, if it is there, and what it has started."""
        if self.process.is_alive():
            self.process.kill()
        if hasattr(os, "killpg") and self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        self.pipe.close()


SUBJECT = "subject"


def _subject(verdict: Verdict, detail: str, at: str = "") -> Outcome:
    return Outcome(SUBJECT, "interface", "can be imported and called", verdict, detail, 1, at=at)


def _known(name: str) -> tuple[str, str, str]:
    from softlab import laws

    everything: tuple[Law[Any], ...] = (*laws.OPERATOR_LAWS, *laws.SOLVER_LAWS)
    for law in everything:
        if law.name == name:
            return law.name, law.family, law.statement
    if name in {fault.name for fault in (*faults.OPERATORS, *faults.SOLVERS)}:
        return name, faults.FAMILY, faults.STATEMENT
    return SUBJECT, "interface", "can be imported and called"


def _serve(pipe: Connection, request: Request, done: tuple[str, ...]) -> None:
    """The child: what the subject prints goes nowhere, and its memory has an end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    if hasattr(os, "setsid"):
        os.setsid()  # so that its own children can be ended with it
    if request.device == "cpu":
        _bound_memory()
    report(pipe, request, done)


def _bound_memory() -> None:
    """Let an allocation beyond ``MEMORY``, or half of the machine's, raise where systems can."""
    try:
        import resource

        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = min(MEMORY, machine // 2)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    except (ImportError, OSError, ValueError):
        return  # a system without limits


def report(pipe: Connection, request: Request, done: tuple[str, ...]) -> None:
    """Examine the laws that are not done; send each one's name, then its outcome, and ``("",)``."""
    from softlab import laws

    try:
        target = None if request.target is None else adapters.found(request.target)
        given, name = adapters.found(request.spec), request.spec.rpartition(":")[2]
        given = adapters.through(request.adapter, given)
        with limit(3 * request.seconds):  # it is called, to see what it takes
            subject = laws.adapted(
                given, traits=request.traits, target=target, name=name, requires=request.requires
            )
    except TooLongError:
        detail = f"gave no answer within {3 * request.seconds:g} s"
        pipe.send(_subject(Verdict.FAILS, detail))
        return
    except BaseException as error:
        text = str(error) if isinstance(error, ValueError) else said(error)
        place = raised_at(error)
        text += f" ({place})" if place and not isinstance(error, ValueError) else ""
        pipe.send(_subject(Verdict.FAILS, text))
        return
    words = _described(subject, said=request.traits is not None)
    pipe.send(_subject(Verdict.HOLDS, words, defined(subject)))
    draws = Draws(getattr(torch, request.dtype), request.device, thorough=request.thorough)
    suite = [law for law in laws.suite(subject) if not request.only or law.name in request.only]
    if request.power:
        for found in faults.power(
            subject, suite, examples=request.examples, seconds=request.seconds, draws=draws,
            thorough=request.thorough, done=done, asking=lambda name: pipe.send((name,)),
        ):  # fmt: skip
            pipe.send(found)
        suite = []
    for law in suite:
        if law.name in done:
            continue
        pipe.send((law.name,))
        found = outcome(
            subject, law, seeds=range(request.examples), seconds=request.seconds, draws=draws,
            name=request.name,
        )  # fmt: skip
        subject = adapters.without(subject, found.dropped)
        reason = dict(request.expected).get(law.name)
        pipe.send(found if reason is None else expecting(found, reason))
    pipe.send(("",))


def _described(subject: Any, *, said: bool) -> str:
    """The subject's name and, of a callable, what it claims or was found to keep."""
    if not is_plain(subject):
        return repr(subject)
    claims = dataclasses.asdict(subject.traits)  # growth of 1 is no claim
    held = {name: x for name, x in claims.items() if x and name != "growth"}
    words = [name if x is True else f"{name} {x}" for name, x in held.items()]
    how = "said" if said or not hasattr(subject, "inferred") else "found"
    needs = getattr(subject, "needs", "")
    text = f"{subject!r}, {how} to be: {', '.join(words) or 'nothing in particular'}"
    text += f"; it {needs}" if needs else ""
    given = getattr(subject, "given", "")
    return f"{text}\ncalled with {given}" if given else text
