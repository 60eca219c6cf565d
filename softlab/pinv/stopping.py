"""The one loop that judges every iteration: which iterate is best, and how the run ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from softlab.core import Stream, own_precision
from softlab.pinv.solver import PinvResult, SolverTraits, Status, relative_residual, working


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
    neighbours do.

    The best iterate is that of the least residual, as long as residuals are above the rounding of
    their own products, eps |A| |X|, and the tolerance. Within it they tell iterates apart no more,
    and the best is the one that moved least: an X that moves again has errors in the null space,
    to which the residual is blind. Every residual is that of the whole matrix, two products; how
    far X moves is watched through one random row w, as w X - w X'.
    """
    with torch.no_grad():
        return _Judge(a, traits, tolerance).verdict(iterates(a))


class Traced(NamedTuple):
    """Iterates that are known by what is asked of them, each formed once it is wanted.

    ``residual`` (steps + 1, B): relative residuals; ``seen`` (steps + 1, B, 1, m): the judge's row
    times X; ``iterate``: the X of given step numbers (B,).
    """

    residual: Tensor
    seen: Tensor
    iterate: Callable[[Tensor], Tensor]


def judge_traced(
    trace: Callable[[Tensor, Tensor], Traced], a: Tensor, traits: SolverTraits
) -> PinvResult:
    """The verdict of ``judge`` from a trace: of the flattened matrices, and the row to watch."""
    with torch.no_grad():
        state = _Judge(a, traits, None)
        return state.verdict_of(trace(state.a, state.probe[0, 0].contiguous()))


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
        # Rows are brought to the scale of A X, so that no square overflows.
        scale = _largest(self.a)
        self.finite = scale.isfinite()
        self.scale = torch.where(scale > 0, scale, 1)[:, None, None]
        tiny = torch.finfo(self.a.dtype).tiny
        rows = Stream(0, "pinv.Judge").normal(2, 1, 1, m).to(self.a)
        w, self.probe = rows.expand(2, len(self.a), 1, m)  # one row each, for all matrices
        self.size = torch.linalg.matrix_norm(w @ self.a / self.scale).clamp_min(tiny)
        self.best = torch.empty_like(self.a)
        self.kept = torch.zeros_like(self.finite)
        self.least = torch.full_like(self.scale[:, 0, 0], math.inf)
        self.calm = self.least
        self.steps = torch.zeros_like(self.least, dtype=torch.long)
        self.active = self.finite
        self.step, self.before, self.residual = -1, self.best, self.least
        self.seen: Tensor | None = None
        self.met, self.settled, self.lost, self.falling = (
            torch.zeros_like(self.finite) for _ in range(4)
        )

    def verdict(self, iterates: Iterable[Tensor]) -> PinvResult:
        """Watch every iterate, stop when no matrix has more to gain, and say how each one ended."""
        for found in iterates:
            x = working(found).reshape(self.a.shape)
            self._watch(x, relative_residual(self.a, x), self.probe @ x)
            if not bool(self.active.any()):
                break
        self._keep(self.active & (self.steps == self.step), self.before)
        return self._result()

    def verdict_of(self, traced: Traced) -> PinvResult:
        """The same of iterates that are known by what the judge asks of them."""
        for residual, seen in zip(traced.residual, traced.seen, strict=True):
            self._watch(self.best, residual, seen)
            if not bool(self.active.any()):
                break
        self.kept |= self.active
        self.best = traced.iterate(self.steps)
        return self._result()

    def _watch(self, x: Tensor, residual: Tensor, probed: Tensor) -> None:
        """Take the next iterate into account: its residual, and rows times X."""
        self.step += 1
        seen = probed * self.scale
        move = _moved(seen, self.seen)
        # What products with an X of this size leave in the residual: eps |A|_F |X|_F, as two
        # normal rows see the norms.
        rounding = self.eps * self.size * torch.linalg.matrix_norm(seen)
        self._weigh(self.step, x, self.before, residual, move, rounding)
        self.falling = residual < torch.where(move > 0.01, 1, 0.5) * self.residual
        self.before, self.seen, self.residual = x, seen, residual

    def _weigh(
        self, step: int, x: Tensor, before: Tensor, residual: Tensor, move: Tensor, rounding: Tensor
    ) -> None:
        """Decide for each active matrix if this iterate is its best, and if it is done."""
        nearer = residual < self.least
        # A residual within rounding tells iterates apart no more; how far they moved still does.
        # One that rested above it, before small singular values were inverted, is no rival.
        # An overflow settles nothing: both sides are infinite.
        settled = (residual <= rounding.clamp_min(self.tolerance)) & residual.isfinite()
        arrived = ~self.settled & (residual <= 4 * self.least)
        calmer = (move < self.calm / 2) | (nearer & (move <= 2 * self.calm))
        better = self.active & (settled & (calmer | arrived) | nearer & ~self.settled)
        # An iterate is copied only once a later one has turned out worse.
        self._keep(self.active & ~better & (self.steps == step - 1), before)
        self.least = torch.where(better, residual, self.least)
        self.calm = torch.where(better, move, self.calm)
        self.settled = torch.where(better, settled, self.settled)
        self.steps = torch.where(better, step, self.steps)
        self.met |= better & (residual <= self.tolerance)
        # While X moves it has not arrived, whatever the residual says.
        rests = (~better & (move < MOVING)) | (move <= self.at_rest) | (residual == 0)
        done = self.active & self.met & rests
        self._keep(done & better, x)
        overflown = self.active & ~residual.isfinite()
        self.lost |= overflown
        self.active = self.active & ~(done | overflown)

    def _keep(self, which: Tensor, x: Tensor) -> None:
        rows = which.nonzero()[:, 0]
        if len(rows) == len(self.a):
            self.best.copy_(x)
        elif len(rows):
            self.best[rows] = x[rows]
        self.kept |= which

    def _result(self) -> PinvResult:
        m, step = self.a.shape[-1], self.step
        lost = ~self.kept
        if bool(lost.any()):
            self.best[lost] = math.nan
        residual = self.least
        status = torch.full_like(self.steps, Status.STAGNATED)
        if step:
            # |A| |X| eps is what the products A X A leave behind; above it a residual can fall.
            rounding = self.tolerance * m * self.scale[:, 0, 0] * _largest(self.best)
            resting = (residual > rounding) & (residual < 1)
            status = torch.where(self.falling | resting, Status.OUT_OF_STEPS, status)
        # What the last iterate is worth, which need not be the best.
        self.lost |= (residual > self.tolerance) & ~(self.residual <= 1 + math.sqrt(self.eps))
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
