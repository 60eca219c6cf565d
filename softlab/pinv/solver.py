"""What a solver is, what it returns, and what all of them share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, Operator, own_precision, widened
from softlab.pinv.polynomial import added


class Status(IntEnum):
    """How a solve ended, for one matrix; ``PinvResult.status`` holds these codes."""

    CONVERGED = 0
    """The relative residual reached the tolerance, and X rests; neither sees singular values that
    the precision cannot tell from zero."""
    STAGNATED = 1
    """The residual stopped above the tolerance, at the rounding of this matrix's products, or at 1,
    where nothing is inverted: more steps change nothing."""
    OUT_OF_STEPS = 2
    """The residual was still falling when the steps ran out, or rested where rounding does not hold
    it, before small singular values are inverted; or X still moved by a tenth: allow more steps."""
    DIVERGED = 3
    """The residual ended above 1, that of a zero matrix, or overflowed: the initial scaling is too
    large, or rounding errors in the null space outgrew the solution."""
    NON_FINITE = 4
    """NaN or inf in the matrix, or a factorisation that broke down."""


class PinvResult(NamedTuple):
    """The outcome of ``solve``, each field per matrix.

    ``x`` (..., m, m): the best iterate (NaN where the input was not finite); ``status`` (...):
    codes of ``Status``; ``residual`` (...): |A X A - A|_F / |A|_F of that iterate, which is also
    meaningful on rank-deficient A: the least of all iterates, unless rounding holds it; ``steps``
    (...): steps taken to reach it, 0 for the initial guess; ``matmuls`` (...): products of m x m
    matrices that those steps took, estimates of scalings and the checks of ``solve`` not counted.
    """

    x: Tensor
    status: Tensor
    residual: Tensor
    steps: Tensor
    matmuls: Tensor


@dataclass(frozen=True)
class SolverTraits:
    """What a solver claims; laws measure each claim."""

    order: int | None = None
    """Near the solution the residual R = I - A X obeys |R'| = O(|R|**order); None if direct."""
    products: int = 0
    """Products of m x m matrices a step; 0 if direct."""
    singular: bool = True
    """On rank-deficient input the limit is the Moore-Penrose pseudo-inverse."""
    definite: bool = False
    """Requires symmetric positive (semi)definite input."""
    regularized: bool = False
    """Inverts a shifted matrix, so that A X A = A holds only approximately, by design."""
    growth: float = 1.0
    """Factor by which a rounding error in the null space of A grows each step (f'(0)), in the limit
    of many steps."""
    implicit: bool = False
    """The gradient is a formula in X, which presumes convergence; the iterates have none."""
    constant_rank: bool = False
    """The gradient is right on singular input too, along matrices of its rank."""
    watched: bool = False
    """A call judges its iterates as ``solve`` does, at a cost that depends on the matrices and is
    not counted."""
    closing: bool = False
    """``solve`` judges its iterates before a last step, whose result it returns."""
    precision: str | None = None
    """The dtype in which the result is rounded on the way, where it is not that of the input."""

    def __post_init__(self) -> None:
        validation.fields(self)


@runtime_checkable
class Solver(Protocol):
    """A frozen dataclass of numbers, called on square matrices (..., m, m)."""

    @property
    def traits(self) -> SolverTraits:
        """What the solver claims."""
        ...

    def __call__(self, a: Tensor) -> Tensor:
        """The (pseudo-)inverse, differentiable; raises ``ValueError`` on NaN or inf input."""
        ...

    def iterates(self, a: Tensor) -> Iterator[Tensor]:
        """The initial guess and every iterate after it; a direct method yields its answer."""
        ...

    def solve(self, a: Tensor) -> PinvResult:
        """The best iterate with status, residual and steps per matrix; never raises on values."""
        ...

    def cost(self, m: int, batch: int = 1) -> Cost:
        """Arithmetic of one call on ``batch`` matrices m x m."""
        ...


@runtime_checkable
class Applying(Protocol):
    """A solver that applies the inverse to a few columns without forming it."""

    def applier(self, a: Tensor) -> Callable[[Tensor], Tensor]:
        """The map from B (..., m, c) to A^+ B."""
        ...

    def applier_cost(self, m: int, columns: Sequence[int], batch: int = 1) -> Cost:
        """Arithmetic of applying it to blocks of so many columns each."""
        ...


def applier(solver: Solver, a: Tensor) -> Callable[[Tensor], Tensor]:
    """The map from B to A^+ B: the solver's own, or a product with its inverse, formed once.

    In the dtype of ``a``; half precision is computed in float32.
    """
    if _applies(type(solver)):
        return cast("Applying", solver).applier(a)
    inverse = solver(working(a))
    return applied(lambda b: inverse @ b, a)


def applied(call: Callable[[Tensor], Tensor], a: Tensor) -> Callable[[Tensor], Tensor]:
    """A map of columns in the working precision as one of columns in the dtype of ``a``."""

    @own_precision
    def apply(b: Tensor) -> Tensor:
        x = call(widened(b))
        return x if x.dtype == a.dtype else deliver(x, a)

    return apply


def applier_cost(solver: Solver, m: int, columns: Sequence[int], batch: int = 1) -> Cost:
    """Arithmetic of ``applier`` on blocks of so many columns each."""
    if _applies(type(solver)):
        return cast("Applying", solver).applier_cost(m, columns, batch)
    return solver.cost(m, batch) + Cost(2 * batch * m * m * sum(columns))


@functools.cache
def _applies(kind: type) -> bool:
    """Whether solvers of that class are ``Applying``; asked anew it takes as long as two steps."""
    return issubclass(kind, Applying)


def working(a: Tensor) -> Tensor:
    """The square matrices in the precision that solvers work in."""
    validation.square(a)
    return widened(a)


@runtime_checkable
class Inverting(Protocol):
    """An operator that inverts a core, as the Nystrom-type ones do."""

    @property
    def pinv(self) -> Solver:
        """What inverts the core."""
        ...

    def core(self, q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """The matrices (..., m, m) that must be inverted for these queries and keys."""
        ...


@runtime_checkable
class Nystrom(Inverting, Operator, Protocol):
    """One that samples its target at landmarks, and whose causes of error can be taken apart."""

    def inverted_exactly(self) -> Nystrom:
        """Itself with the pseudo-inverse of its core: no step too few, no shift."""
        ...

    def normalized_exactly(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None
    ) -> Tensor:
        """Its output with the target's degrees in place of its own; its solver and core remain."""
        ...


@own_precision
def last(iterates: Callable[[Tensor], Iterable[Tensor]], a: Tensor, traits: SolverTraits) -> Tensor:
    """The final iterate, in the dtype of ``a``.

    ``iterates`` is called on ``a`` in the working precision. Raises ``ValueError`` where an entry
    of ``a`` is not finite, or one of the result, which must not pass for an answer, and where a
    solver for symmetric matrices is given another.
    """
    wide = admit(a, traits)
    for x in iterates(wide):
        final = x
    return deliver(final, a)


def admit(a: Tensor, traits: SolverTraits) -> Tensor:
    """The matrices in the working precision; ``ValueError`` for those that cannot be inverted."""
    wide = working(a)
    validation.finite("a", a)
    if traits.definite:
        validation.symmetric(a)
    return wide


def deliver(x: Tensor, a: Tensor) -> Tensor:
    """X in the dtype of ``a``; ``ValueError`` where an entry overflowed on the way."""
    x = x.to(a.dtype)
    if validation.all_finite(x):
        return x
    lost = int(validation.values_of(~x.detach().isfinite().all(-1).all(-1)).sum())
    msg = (
        f"the inverse overflowed {a.dtype} on {lost} of {max(1, a.shape[:-2].numel())} matrices: "
        "it diverged, or its entries are too large for that precision. Ask solve(a) which; a "
        "smaller scaling, BestIterate, Ridge or float64 may help."
    )
    raise ValueError(msg)


def relative_residual(a: Tensor, x: Tensor) -> Tensor:
    """|A X A - A|_F / |A|_F per matrix; 0 for a zero matrix with X = 0."""
    # A at unit scale keeps the norms from overflowing or vanishing; A X has it already.
    scale = a.abs().amax((-2, -1), keepdim=True)
    unit = a / torch.where(scale > 0, scale, 1)
    size = torch.linalg.matrix_norm(unit).clamp_min(torch.finfo(a.dtype).tiny)
    residual: Tensor = torch.linalg.matrix_norm(added(unit, a @ x, unit, own=-1.0)) / size
    return residual
