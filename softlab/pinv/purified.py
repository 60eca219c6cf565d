"""A solver with one closing product that leaves the null space clean."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from softlab.core import Cost, own_precision, value
from softlab.pinv.solver import (
    PinvResult,
    Solver,
    SolverTraits,
    admit,
    deliver,
    relative_residual,
    working,
)


@value
class Purified:
    """The solver's X, closed by X <- X A X.

    A rounding error E in the null space, with A E = 0 = E A, grows in each step of every plain
    iteration. X A X annihilates it; on the range a residual r becomes 2 r - r^2, so an unconverged
    X loses by it. It is the last iterate of ``iterates``. ``solver``: any solver.
    Closing every step instead would stall the start. Two products.
    """

    solver: Solver

    @property
    def traits(self) -> SolverTraits:
        """The solver's, without the growth of null-space errors."""
        return dataclasses.replace(self.solver.traits, growth=1.0, closing=True)

    @own_precision
    def iterates(self, a: Tensor) -> Iterator[Tensor]:
        """The solver's iterates, and X A X of the last."""
        for x in self.solver.iterates(a):
            yield x
        yield x @ (a @ x)

    @own_precision
    def __call__(self, a: Tensor) -> Tensor:
        """X A X of the solver's result, with that result's gradient."""
        wide = admit(a, self.traits)
        x = self.solver(wide)
        return deliver(x @ (wide @ x), a)

    @own_precision
    def solve(self, a: Tensor) -> PinvResult:
        """X A X of the solver's best iterate, with its residual; two products more."""
        x, status, _, steps, matmuls = self.solver.solve(a)
        with torch.no_grad():
            wide = working(a)
            x = x @ (wide @ x)
            residual = relative_residual(wide, x)
        return PinvResult(x, status, residual, steps, matmuls + 2)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """The solver's and two products."""
        return self.solver.cost(m, batch) + Cost(batch * 2 * 2 * m**3)
