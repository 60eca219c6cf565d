"""What a solver is, what it returns, and the one loop that judges every iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    meaningful on rank-deficient A; ``steps`` (...): steps taken to reach it, 0 for the initial
    guess; ``matmuls`` (...): products of m x m matrices that those steps took, estimates of
    scalings and the checks of ``solve`` not counted.
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
    """The gradient is -X^T G X^T, which presumes full rank and convergence."""
    constant_rank: bool = False
    """The gradient is right on singular input too, along matrices of its rank."""
    watched: bool = False
    """A call judges its iterates as ``solve`` does, at a cost that depends on the matrices and is
    not counted."""
    precision: str | None = None
    """The dtype in which the result is rounded on the way, where it is not that of the input."""


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


Map = Callable[[Tensor, Tensor], Tensor]
"""One step: from A and X to the next X."""


@runtime_checkable
class Iteration(Solver, Protocol):
    """A solver that is a start and a sequence of maps: what ``iterates`` yields, taken apart.

    A map that is a ``ResidualPolynomial`` also tells what becomes of each eigenvalue of the
    residual, so that a run can be predicted from a spectrum.
    """

    @property
    def steps(self) -> int:
        """The number of maps."""
        ...

    def begin(self, a: Tensor) -> tuple[Tensor, Iterator[Map]]:
        """The initial guess X0, in the dtype of A, and the steps in turn."""
        ...


def run(iteration: Iteration, a: Tensor) -> Iterator[Tensor]:
    """X0, X1, ..., X_steps, in the arithmetic of the dtype of ``a``."""
    checks.square(a)
    x, maps = iteration.begin(a)
    yield x
    for step in maps:
        x = step(a, x)
        yield x


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
    """The map from B to A^+ B: the solver's own, or a product with its inverse, formed once."""
    if isinstance(solver, Applying):
        return solver.applier(a)
    inverse = solver(a)
    return lambda b: inverse @ b


def applier_cost(solver: Solver, m: int, columns: Sequence[int], batch: int = 1) -> Cost:
    """Arithmetic of ``applier`` on blocks of so many columns each."""
    if isinstance(solver, Applying):
        return solver.applier_cost(m, columns, batch)
    return solver.cost(m, batch) + Cost(2 * batch * m * m * sum(columns))


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
    checks.finite("a", a)
    if traits.definite:
        checks.symmetric(a)
    return wide


def deliver(x: Tensor, a: Tensor) -> Tensor:
    """X in the dtype of ``a``; ``ValueError`` where an entry overflowed on the way."""
    x = x.to(a.dtype)
    if x.is_meta or bool(torch.stack(torch.aminmax(x.detach())).isfinite().all()):
        return x
    lost = int((~x.detach().isfinite().all(-1).all(-1)).sum())
    msg = (
        f"the inverse overflowed {a.dtype} on {lost} of {max(1, a.shape[:-2].numel())} matrices: "
        "it diverged, or its entries are too large for that precision. Ask solve(a) which; a "
        "smaller scaling, BestIterate, Ridge or float64 may help."
    )
    raise ValueError(msg)


def relative_residual(a: Tensor, x: Tensor) -> Tensor:
    """|A X A - A|_F / |A|_F per matrix; 0 for a zero matrix with X = 0."""
    # Unit-scale factors keep the norms from overflowing or vanishing at extreme scales.
    scale = a.abs().amax((-2, -1), keepdim=True)
    b = a / torch.where(scale > 0, scale, 1)
    miss = torch.linalg.matrix_norm(b @ (x * torch.where(scale > 0, scale, 1)) @ b - b)
    residual: Tensor = miss / torch.linalg.matrix_norm(b).clamp_min(torch.finfo(a.dtype).tiny)
    return residual


@own_precision
def judge(
    iterates: Callable[[Tensor], Iterable[Tensor]],
    a: Tensor,
    traits: SolverTraits,
    *,
    tolerance: float | None = None,
) -> PinvResult:
    """Run ``iterates`` on ``a`` until every matrix is done; keep each one's best iterate.

    ``a`` in the dtype to compute in; residuals are taken in the working precision. ``tolerance``:
    relative residual that counts as converged; None means 10 m eps of the dtype of ``a``, at most
    sqrt(eps). A matrix that reaches it goes on until X rests or moves more than before, since the
    residual hardly sees the small singular values that dominate X, and is then frozen, whatever its
    neighbours do. An iterate whose step grew again is no better than the one before it: that is how
    null-space errors show, to which the residual is blind.

    Every step is watched through one random row w each: the residual as w A X A - w A, the step as
    w X - w X', which cost little beside the step itself. No matrix is called converged, and no
    residual is returned, but by the whole of it.
    """
    with torch.no_grad():
        return _Judge(a, traits, tolerance).verdict(iterates(a))


MOVING = 0.1
"""Relative steps from which X counts as moving: it is on its way, or rounding carries it off."""


class _Judge:
    """The state of one ``judge``: tensors (count,) over the matrices of a flattened batch."""

    def __init__(self, a: Tensor, traits: SolverTraits, tolerance: float | None) -> None:
        self.lead, m = a.shape[:-2], a.shape[-1]
        self.a = working(a).reshape(-1, m, m)
        self.traits = traits
        # The arithmetic of the iterates, which residuals are taken above.
        self.eps = eps = torch.finfo(a.dtype).eps
        self.tolerance = min(10 * m * eps, math.sqrt(eps)) if tolerance is None else tolerance
        # A step this small leaves an error of eps behind it, the order being what it is.
        self.at_rest = eps ** (1 / (traits.order or 1))
        # Residuals are of A at unit scale and X scaled against it, so that no square overflows.
        scale = _largest(self.a)
        self.finite = scale.isfinite()
        self.scale = torch.where(scale > 0, scale, 1)[:, None, None]
        self.unit = self.a / self.scale
        self.size = torch.linalg.matrix_norm(self.unit).clamp_min(torch.finfo(self.a.dtype).tiny)
        rng = torch.Generator().manual_seed(0)
        rows = torch.randn(2, 1, 1, m, generator=rng, dtype=torch.float64).to(self.a)
        # One row at a time is a matrix-vector product, three times as fast as two rows at once.
        w, self.probe = rows.expand(2, len(self.a), 1, m)
        self.target = w @ self.unit
        self.target_size = torch.linalg.matrix_norm(self.target).clamp_min(
            torch.finfo(self.a.dtype).tiny
        )
        self.best = torch.full_like(self.a, math.nan)
        self.least = torch.full_like(self.scale[:, 0, 0], math.inf)
        self.calm, self.residual = self.least, self.least.clone()
        self.steps = torch.zeros_like(self.least, dtype=torch.long)
        self.measured = self.steps - 1
        self.active = self.finite
        self.met, self.settled, self.lost, self.falling = (
            torch.zeros_like(self.finite) for _ in range(4)
        )

    def verdict(self, iterates: Iterable[Tensor]) -> PinvResult:
        """Watch every iterate, stop when no matrix has more to gain, and say how each one ended."""
        before, seen_before, step, residual_before = self.best, None, 0, self.least
        for step, found in enumerate(iterates):
            x = working(found).reshape(self.a.shape)
            # A row is scaled here, which costs less than to scale A or X.
            missed = ((self.target @ x) * self.scale) @ self.unit - self.target
            residual = torch.linalg.matrix_norm(missed) / self.target_size
            seen = (self.probe @ x) * self.scale
            move = _moved(seen, seen_before)
            # What products with an X of this size leave in the residual: eps |A|_F |X|_F.
            rounding = self.eps * self.size * torch.linalg.matrix_norm(seen)
            self._weigh(step, x, before, residual, move, rounding)
            self.falling = residual < torch.where(move > 0.01, 1, 0.5) * residual_before
            before, seen_before, residual_before = x, seen, residual
            if not bool(self.active.any()):
                break
        self._keep(self.active & (self.steps == step), before)
        return self._result(step, before)

    def _weigh(
        self, step: int, x: Tensor, before: Tensor, residual: Tensor, move: Tensor, rounding: Tensor
    ) -> None:
        """Decide for each active matrix if this iterate is its best, and if it is done."""
        # Where X hardly moves, residuals differ by rounding, and a small fall means nothing.
        nearer = residual < torch.where(move > 0.01, 1, 0.9) * self.least
        nearer &= (move <= 2 * self.calm) | (residual < 0.1 * self.least)
        # A residual within rounding tells iterates apart no more; how far they moved still does.
        # One that rested above it, before small singular values were inverted, is no rival.
        settled = residual <= rounding.clamp_min(self.tolerance)
        arrived = ~self.settled & (residual <= 4 * self.least)
        better = self.active & (settled & ((move < self.calm / 2) | arrived) | nearer & ~self.met)
        # An iterate is copied only once a later one has turned out worse.
        self._keep(self.active & ~better & (self.steps == step - 1), before)
        self.least = torch.where(better, residual, self.least)
        self.calm = torch.where(better, move, self.calm)
        self.settled = torch.where(better, settled, self.settled)
        self.steps = torch.where(better, step, self.steps)
        rows = (better & ~self.met & (residual <= self.tolerance)).nonzero()[:, 0]
        if len(rows):
            self._measure(x, rows)
            self.met[rows] = self.residual[rows] <= self.tolerance
            self.measured[rows] = step
        overflown = self.active & ~residual.isfinite()
        # While X moves it has not arrived, whatever the residual says.
        done = self.met & ((~better & (move < MOVING)) | (move <= self.at_rest) | (residual == 0))
        self._keep(done & better, x)
        self.lost |= overflown
        self.active = self.active & ~(done | overflown)

    def _residual(self, x: Tensor, rows: Tensor) -> Tensor:
        """|A X A - A|_F / |A|_F of these matrices of the batch."""
        every = len(rows) == len(self.a)
        a, unit, size, x = (y if every else y[rows] for y in (self.a, self.unit, self.size, x))
        residual: Tensor = torch.linalg.matrix_norm(torch.baddbmm(unit, a @ x, unit, beta=-1))
        return residual / size

    def _measure(self, x: Tensor, rows: Tensor) -> None:
        self.residual[rows] = self._residual(x, rows).nan_to_num(math.inf, math.inf)

    def _keep(self, which: Tensor, x: Tensor) -> None:
        rows = which.nonzero()[:, 0]
        if len(rows) == len(self.a):
            self.best = x.clone()
        elif len(rows):
            self.best[rows] = x[rows]

    def _result(self, step: int, final: Tensor) -> PinvResult:
        m = self.a.shape[-1]
        self._measure(self.best, (self.measured != self.steps).nonzero()[:, 0])
        residual = self.residual
        status = torch.full_like(self.steps, Status.STAGNATED)
        if step:
            # |A| |X| eps is what the products A X A leave behind; above it a residual can fall.
            rounding = self.tolerance * m * self.scale[:, 0, 0] * _largest(self.best)
            resting = (residual > rounding) & (residual < 1)
            status = torch.where(self.falling | resting, Status.OUT_OF_STEPS, status)
        # What the last iterate is worth, where it is not the best.
        doubt = ~self.lost & (residual > self.tolerance)
        self.lost |= doubt & (self.steps == step) & (residual > 1 + math.sqrt(self.eps))
        rows = (doubt & (self.steps != step)).nonzero()[:, 0]
        if len(rows):
            self.lost[rows] = ~(self._residual(final, rows) <= 1 + math.sqrt(self.eps))
        status = torch.where(self.lost, Status.DIVERGED if step else Status.NON_FINITE, status)
        moving = (self.calm >= MOVING) & (residual > 0) if step else torch.zeros_like(self.lost)
        near = residual <= self.tolerance
        status = torch.where(near & moving, Status.OUT_OF_STEPS, status)
        status = torch.where(near & ~moving, Status.CONVERGED, status)
        status = torch.where(self.finite, status, Status.NON_FINITE)
        fields = (status, residual, self.steps, self.steps * self.traits.products)
        x = self.best.reshape(*self.lead, m, m)
        return PinvResult(x, *(y.reshape(self.lead) for y in fields))


def _moved(x: Tensor, before: Tensor | None) -> Tensor:
    """|X - X'| / |X| in the largest entry; 0 where both are 0, and inf for the first X."""
    size = _largest(x)
    if before is None:
        return torch.full_like(size, math.inf)
    return _largest(x - before) / torch.where(size > 0, size, 1)


def _largest(a: Tensor) -> Tensor:
    """The largest magnitude in each matrix; NaN if an entry is."""
    return a.abs().amax((-2, -1))
