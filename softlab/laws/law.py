"""What a law is, and the one tolerance model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

S = TypeVar("S")


class Gap(NamedTuple):
    """By how much an identity or bound is missed, how much is allowed, and on what."""

    missed: float
    allowed: float
    where: str = ""

    @property
    def holds(self) -> bool:
        """Whether the miss is allowed; NaN never is."""
        return self.missed <= self.allowed


class BrokenLawError(AssertionError):
    """A law does not hold for a subject that it applies to."""


@dataclass(frozen=True)
class Law(Generic[S]):
    """An identity or bound with its domain and its measurement.

    ``applies`` reads a subject's claims; ``measure`` draws inputs from the generator and yields one
    ``Gap`` for each comparison.
    """

    name: str
    statement: str
    applies: Callable[[S], bool]
    measure: Callable[[S, torch.Generator], Iterator[Gap]]

    def check(self, subject: S, *, seed: int = 0) -> None:
        """Raise ``BrokenLawError`` unless the law holds for ``subject`` or does not apply to it."""
        if not self.applies(subject):
            return
        for gap in self.measure(subject, torch.Generator().manual_seed(seed)):
            if not gap.holds:
                msg = (
                    f"{subject!r} breaks '{self.name}' ({self.statement}): missed by "
                    f"{gap.missed:.3g}, allowed {gap.allowed:.3g}; {gap.where}; seed={seed}"
                )
                raise BrokenLawError(msg)


def tolerance(
    dtype: torch.dtype, n: int, *, kappa: float = 1.0, scale: float = 1.0, c: float = 10.0
) -> float:
    """The tolerance model of softlab: c * sqrt(n) * eps(dtype) * kappa * scale.

    ``n``: length of the sums involved; ``kappa``: condition number of the drawn problem;
    ``scale``: magnitude of the exact result.
    """
    return c * math.sqrt(n) * torch.finfo(dtype).eps * kappa * scale


def always(subject: object) -> bool:  # noqa: ARG001
    """Applies to every subject."""
    return True


def normal(rng: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal entries; the stream does not depend on the dtype."""
    return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)


def separated(rng: torch.Generator, n: int) -> Tensor:
    """Tokens so far apart that kernel and softmax cores are near the identity: any solver inverts.

    Rows of a scaled orthogonal matrix: |x_i|^2 = 150, so in 16 dimensions the softmax of x x^T has
    off-diagonal entries exp(-150 / 4) and every Gaussian at unit bandwidth or so underflows.
    """
    basis: Tensor = torch.linalg.qr(normal(rng, 16, 16)).Q
    return basis[:n] * math.sqrt(150)


def uniform_int(rng: torch.Generator, low: int, high: int) -> int:
    """An integer in [low, high]."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def largest(x: Tensor) -> float:
    """The largest magnitude, NaN if there is one."""
    return float(x.double().abs().max())


def rank_of(op: Any) -> int:
    """The operator's rank, or 1 for one that has none."""
    return int(getattr(op, "rank", 1))


def lengths(op: Any, n: int, l: int) -> tuple[int, int]:  # noqa: E741
    """Numbers of queries and keys to draw: n and l, or l and l where each key needs a query."""
    return (l, l) if op.traits.causal else (n, l)


def at_most(op: Any, l: int) -> Any:  # noqa: E741
    """The same operator where ``traits.exact_at`` says that it is exact, for l keys."""
    return dataclasses.replace(op, **{op.traits.exact_at: 2 * l if op.traits.lifted else l})


def steps_of(solver: object) -> int:
    """The number of steps of a solver, looked for inside wrappers; 0 for a direct one."""
    inner = getattr(solver, "solver", None)
    return steps_of(inner) if inner is not None else int(getattr(solver, "steps", 0))


def after_steps(subject: S, steps: int) -> S:
    """The same operator or solver with every inner iteration cut to ``steps``.

    A coupling between the matrices of a batch enters through scalings and stopping rules, and
    convergence hides it; two steps do not.
    """
    return _replaced(subject, "steps", steps)


def reseeded(subject: S, seed: int) -> S:
    """The same operator with every seed inside it, also those of weights, set to ``seed``."""
    return _replaced(subject, "seed", seed)


def _replaced(subject: S, name: str, held: int) -> S:
    """The same frozen dataclass with the field ``name`` set at every depth."""
    if not dataclasses.is_dataclass(subject) or isinstance(subject, type):
        return subject
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(subject):
        inner = getattr(subject, field.name)
        if field.name == name:
            changed[field.name] = held
        elif dataclasses.is_dataclass(inner):
            changed[field.name] = _replaced(inner, name, held)
    return dataclasses.replace(subject, **changed)
