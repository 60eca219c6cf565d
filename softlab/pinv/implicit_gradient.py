"""A solver whose backward pass uses the inverse instead of the iteration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from softlab.core import Cost, value
from softlab.pinv.gradient_rule import by_rule
from softlab.pinv.solver import PinvResult, Solver, SolverTraits


@value
class ImplicitGradient:
    """Forward: the solver, without a graph. Backward, once: dL/dA = -X^T (dL/dX) X^T.

    ``solver``: any solver. The rule differentiates A X = I, so it is right only where A has full
    rank and the solver has converged; elsewhere it can have the wrong sign. Check with
    ``solve(a).residual`` on the matrices at hand, or measure with ``softlab.gradients``. Costs two
    products backwards and stores one matrix. Derivatives of the rule take X for the inverse of A,
    and are right where it is. Source: the released SOFT code (July 2022); abstract of arXiv
    2207.03341.
    """

    solver: Solver

    @property
    def traits(self) -> SolverTraits:
        """The solver's, with an implicit gradient."""
        return dataclasses.replace(self.solver.traits, implicit=True, constant_rank=False)

    def iterates(self, a: Tensor) -> Iterator[Tensor]:
        """The solver's iterates, without a graph."""
        with torch.no_grad():
            yield from self.solver.iterates(a)

    def __call__(self, a: Tensor) -> Tensor:
        """The solver's result with the implicit gradient."""
        return by_rule(self.solver, implicit, a)

    def solve(self, a: Tensor) -> PinvResult:
        """The solver's result with its status."""
        return self.solver.solve(a)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """The solver's."""
        return self.solver.cost(m, batch)


def implicit(a: Tensor, x: Tensor, grad: Tensor) -> Tensor:  # noqa: ARG001
    """-X^T (dL/dX) X^T."""
    return -x.mT @ grad @ x.mT
