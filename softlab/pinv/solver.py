"""What a solver is, what it returns, and the one loop that judges every iteration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from softlab import checks
from softlab.core import Cost, own_precision, widened


class Status(IntEnum):
    """How a solve ended, for one matrix; ``PinvResult.status`` holds these codes."""

    CONVERGED = 0
    """The relative residual reached the tolerance."""
    STAGNATED = 1
    """The residual stopped above the tolerance, at the rounding of this matrix's products, or at 1,
    where nothing is inverted: more steps change nothing."""
    OUT_OF_STEPS = 2
    """The residual was still falling when the steps ran out, or rested where rounding does not hold
    it, before small singular values are inverted: allow more steps."""
    DIVERGED = 3
    """The residual ended above 1, that of a zero matrix, or overflowed: the initial scaling is too
    large, or rounding errors in the null space outgrew the solution."""
    NON_FINITE = 4
    """NaN or inf in the matrix, or a factorisation that broke down."""


class PinvResult(NamedTuple):
    """The outcome of ``solve``, each field per matrix.

    ``x`` (..., m, m): the iterate of smallest residual (the input's NaN where it was not finite);
    ``status`` (...): codes of ``Status``; ``residual`` (...): |A X A - A|_F / |A|_F of that
    iterate, which is also meaningful on rank-deficient A; ``steps`` (...): steps taken to reach it,
    0 for the initial guess.
    """

    x: Tensor
    status: Tensor
    residual: Tensor
    steps: Tensor


@dataclass(frozen=True)
class SolverTraits:
    """What a solver claims; laws measure each claim."""

    order: int | None = None
    """Near the solution the residual R = I - A X obeys |R'| = O(|R|**order); None if direct."""
    singular: bool = True
    """On rank-deficient input the limit is the Moore-Penrose pseudo-inverse."""
    definite: bool = False
    """Requires symmetric positive (semi)definite input."""
    regularized: bool = False
    """Inverts a shifted matrix, so that A X A = A holds only approximately, by design."""
    growth: float = 1.0
    """Factor by which a rounding error in the null space of A grows each step (f'(0))."""
    implicit: bool = False
    """The gradient is -X^T G X^T, which presumes full rank and convergence."""


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


def working(a: Tensor) -> Tensor:
    """The square matrices in the precision that solvers work in."""
    checks.square(a)
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


@own_precision
def last(iterates: Iterable[Tensor], a: Tensor) -> Tensor:
    """The final iterate, in the dtype of ``a``, which must be finite."""
    checks.square(a)
    checks.finite("a", a)
    for x in iterates:
        final = x
    return final.to(a.dtype)


def relative_residual(a: Tensor, x: Tensor) -> Tensor:
    """|A X A - A|_F / |A|_F per matrix; 0 for a zero matrix with X = 0."""
    # Unit-scale factors keep the norms from overflowing or vanishing at extreme scales.
    scale = a.abs().amax((-2, -1), keepdim=True)
    b = a / torch.where(scale > 0, scale, 1)
    miss = torch.linalg.matrix_norm(b @ (x * torch.where(scale > 0, scale, 1)) @ b - b)
    residual: Tensor = miss / torch.linalg.matrix_norm(b).clamp_min(torch.finfo(a.dtype).tiny)
    return residual


@own_precision
def judge(iterates: Iterable[Tensor], a: Tensor, *, tolerance: float | None = None) -> PinvResult:
    """Run ``iterates`` on ``a`` until every matrix has converged; keep each one's best iterate.

    ``tolerance``: relative residual that counts as converged; None means 10 m eps of the working
    precision. A matrix that converges is frozen there, whatever its neighbours do.
    """
    with torch.no_grad():
        a = working(a)
        eps = torch.finfo(a.dtype).eps
        tolerance = 10 * a.shape[-1] * eps if tolerance is None else tolerance
        lead = a.shape[:-2]
        best = torch.full_like(a, math.nan)
        least = torch.full(lead, math.inf, dtype=a.dtype, device=a.device)
        steps = torch.zeros(lead, dtype=torch.long, device=a.device)
        status = torch.full(lead, Status.STAGNATED, device=a.device)
        for step, x in enumerate(iterates):
            residual = relative_residual(a, x)
            active = (status == Status.STAGNATED) | (status == Status.OUT_OF_STEPS)
            falling = active & (residual < 0.99 * least)
            better = active & (residual < least)  # false for NaN
            best = torch.where(better[..., None, None], x, best)
            least, steps = torch.where(better, residual, least), torch.where(better, step, steps)
            status = torch.where(active, Status.STAGNATED, status)
            if step:  # a direct method has one iterate and no more steps to ask for
                status = torch.where(falling, Status.OUT_OF_STEPS, status)
            lost = Status.DIVERGED if step else Status.NON_FINITE
            status = torch.where(active & ~residual.isfinite(), lost, status)
            status = torch.where(active & (least <= tolerance), Status.CONVERGED, status)
            if not bool(((status == Status.STAGNATED) | (status == Status.OUT_OF_STEPS)).any()):
                return PinvResult(best, status, least, steps)
        # |A| |X| eps is what the products A X A leave behind; a residual above it can still fall.
        rounding = tolerance * a.shape[-1] * _largest(a) * _largest(best)
        if step:
            resting = (status == Status.STAGNATED) & (least > rounding) & (least < 1)
            status = torch.where(resting, Status.OUT_OF_STEPS, status)
        grown = (residual > 1 + math.sqrt(eps)) & (status != Status.CONVERGED)
        status = torch.where(grown, Status.DIVERGED, status)
        return PinvResult(best, status, least, steps)


def _largest(a: Tensor) -> Tensor:
    """The largest magnitude in each matrix."""
    return a.abs().amax((-2, -1))
