"""The simplest draw on which a law fails, and what is particular about the situation it needs.

Each choice of a situation that is not ordinary is put back to the ordinary one; those that cannot
be, without the failure going away, are its condition. A size is halved down to the last one that
fails beside one that holds.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from softlab.laws.law import Draws, Law, OutOfScopeError, drawing, generator, said
from softlab.laws.regimes import recorded
from softlab.laws.situations import ORDINARY

SHOWN = 36
"""Entries of a counterexample that are written out."""
SIZES = ("keys", "width", "values")
"""Choices that are numbers, which can be halved."""
LEAST: Mapping[str, Sequence[Any]] = {
    "keys": (1, 2, 3), "values": (1,), "width": (1, 2), "queries": ("one", "equal"),
}  # fmt: skip
"""Choices that make a counterexample short, where they are no part of its condition."""


@dataclass(frozen=True)
class Failure:
    """How a law fails: by how much or with what error, and the ``call`` that it is of."""

    detail: str
    call: Mapping[str, Tensor]
    error: BaseException | None = None


@dataclass(frozen=True)
class Reduced:
    """A failure, how it is drawn again, and its condition: the choices without which it holds.

    ``beside``: of a size in the condition, the next one, at which the law holds.
    """

    failure: Failure
    draws: Draws
    seed: int
    condition: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, int] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """The condition in words, empty if there is none."""
        found = (_said(name, x, self.beside.get(name)) for name, x in self.condition.items())
        return ", ".join(found)


def reduced(
    subject: Any, law: Law[Any], seed: int, draws: Draws, row: Mapping[str, Any] | None
) -> Iterator[Reduced]:
    """Ever simpler draws that fail, the last being the simplest; none if it fails on none again.

    ``row``: the choices of the situation that failed; None for a law that draws none.
    """
    if row is None:
        yield from _plainly(subject, law, seed, draws)
        return
    search = _Search(subject, law, seed, draws)
    found = search.fails(row)
    if found is None:
        return
    yield found
    choices, beside = search.towards_ordinary(row)
    condition = {name: x for name, x in choices.items() if x != ORDINARY[name]}
    if "tied" in condition:  # needs them by itself
        condition.pop("queries", None)
    yield search.found(condition, beside)
    short, kept = dict(choices), ("queries",) * ("tied" in condition)
    for name, tries in LEAST.items():
        for choice in () if name in condition or name in kept else tries:
            if short[name] != choice and search.fails({**short, name: choice}):
                short[name] = choice
                break
    yield search.found(condition, beside)
    search.draws = dataclasses.replace(search.draws, digits=1)
    if search.fails(short):
        yield search.found(condition, beside)


class _Search:
    """Trials of one law; ``last`` is the last that failed."""

    def __init__(self, subject: Any, law: Law[Any], seed: int, draws: Draws) -> None:
        self.subject, self.law, self.seed, self.draws = subject, law, seed, draws
        self.kind: type | None = None
        self.last: Reduced | None = None

    def fails(self, choices: Mapping[str, Any]) -> Reduced | None:
        """A failure of the first's kind in this situation, at one of two seeds."""
        particular = {name: x for name, x in choices.items() if x != ORDINARY.get(name)}
        draws = dataclasses.replace(self.draws, thorough=False, situation=particular)
        for seed in (self.seed, self.seed + 1):
            failure = tried(self.subject, self.law, seed, draws)
            if failure is not None and self.kind in (None, type(failure.error)):
                self.kind = type(failure.error)
                self.last = Reduced(failure, draws, seed)
                return self.last
        return None

    def found(self, condition: Mapping[str, Any], beside: Mapping[str, int]) -> Reduced:
        """The last failure with what was found of its condition."""
        assert self.last is not None
        return dataclasses.replace(self.last, condition=condition, beside=beside)

    def towards_ordinary(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
        """The choices with as many ordinary ones as will do, and the sizes at which it holds."""
        if self.fails(ORDINARY):
            return dict(ORDINARY), {}
        choices, beside = dict(row), {}
        for name, usual in ORDINARY.items():
            for choice in ((), (2,), (2, 3)) if name == "lead" else (usual,):
                if choices[name] == choice or self.fails({**choices, name: choice}):
                    choices[name] = choice
                    break
        for name in SIZES:
            if isinstance(choices[name], int) and choices[name] != ORDINARY[name]:
                choices[name], beside[name] = self._edge(choices, name)
        self.fails(choices)
        return choices, beside

    def _edge(self, choices: Mapping[str, Any], name: str) -> tuple[int, int]:
        """A size that fails and the one beside it that holds, between a failing and an ordinary."""
        bad, good = choices[name], ORDINARY[name]
        while abs(bad - good) > 1:
            middle = (bad + good) // 2
            if self.fails({**choices, name: middle}):
                bad = middle
            else:
                good = middle
        return bad, good


def _plainly(subject: Any, law: Law[Any], seed: int, draws: Draws) -> Iterator[Reduced]:
    """Without a situation: small and of one decimal, small, of one decimal, as it was."""
    tries = (
        (dataclasses.replace(draws, digits=digits, small=small), s)
        for small, digits in ((True, 1), (True, None), (False, 1))
        for s in range(max(1, seed + 1))
    )
    for how, s in itertools.chain(tries if law.examples > 2 else (), ((draws, seed),)):
        failure = tried(subject, law, s, how)
        if failure is not None:
            yield Reduced(failure, how, s)
            return


def tried(subject: Any, law: Law[Any], seed: int, draws: Draws) -> Failure | None:
    """How the law fails on this draw, None if it holds or does not apply."""
    with drawing(draws), recorded(subject, keeps=True) as record:
        calls = record.calls
        try:
            for gap in law.measure(subject, generator(seed)):
                if not gap.holds:
                    return Failure(gap.said, next(iter(calls[1:] or calls), {}))
                del calls[:-1]
        except OutOfScopeError:
            return None
        except (Exception, SystemExit) as error:
            return Failure(said(error), calls[-1] if calls else {}, error)
    return None


def shown(call: Mapping[str, Tensor]) -> str:
    """The tensors of a call by name, in full if they are few numbers."""
    if sum(x.numel() for x in call.values()) <= SHOWN:
        return ", ".join(f"{name} = {_written(x)}" for name, x in call.items())
    return ", ".join(
        f"{name} {tuple(x.shape)}"
        + f" {str(x.dtype).removeprefix('torch.')}" * (x.dtype not in (torch.float64, torch.bool))
        for name, x in call.items()
    )


def _written(x: Tensor) -> str:
    if x.ndim == 0:
        return str(int(x)) if x.dtype == torch.bool else f"{float(x) + 0:.4g}"
    return f"[{', '.join(map(_written, x.detach()))}]"


def _said(name: str, choice: Any, beside: int | None) -> str:
    """One choice of a condition in words."""
    if isinstance(choice, int) and name in SIZES:
        of = {"keys": "with {} keys", "width": "with q and k of width {}"}
        text = of.get(name, "with values of width {}").format(choice)
        return text + ("" if beside is None else f" and not with {beside}")
    words = {
        "lead": f"with {len(choice) if name == 'lead' else 0} leading dimensions",
        "queries": {
            "one": "with one query", "equal": "with as many queries as keys",
            "more": "with more queries than keys", "many": "with some thousand queries",
        }.get(str(choice), ""),
        "mask": f"under a mask ({choice})",
        "layout": f"of tensors that are {choice} in memory",
        "size": f"with tokens of size {choice}",
        "tied": "where q is k",
        "keys of a batch": f"where keys are shared {choice}",
        "width": "as wide as there are keys",
        "values": f"with values as wide as {choice}",
    }  # fmt: skip
    return words.get(name) or f"with {name} {choice}"
