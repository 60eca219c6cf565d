"""A solver whose backward pass is the derivative of the pseudo-inverse at constant rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from softlab.core import Cost, value
from softlab.pinv.gradient_rule import by_rule
from softlab.pinv.solver import PinvResult, Solver, SolverTraits


@value
class GolubPereyra:
    """Forward: the solver, without a graph. Backward, once: the adjoint of the true derivative.

    With G = dL/dX: dL/dA = -X^T G X^T + (I - A X) G^T X X^T + X^T X G^T (I - X A).

    ``solver``: any solver. Right for full rank and, unlike ``ImplicitGradient``, for singular A
    along matrices of its rank; across ranks the pseudo-inverse is not even continuous. It presumes
    that the solver has converged: for an X that is no pseudo-inverse it is as wrong as the implicit
    rule, if differently. Ten products backwards, two matrices stored. Reference: Golub and Pereyra
    1973, Theorem 4.3; the formula above is the adjoint of theirs.
    """

    solver: Solver

    def __post_init__(self) -> None:
        if self.solver.traits.regularized:
            msg = (
                f"GolubPereyra.solver is {self.solver!r}, which inverts another matrix than the "
                "rule would see; wrap the other way round: Ridge(GolubPereyra(solver))."
            )
            raise ValueError(msg)

    @property
    def traits(self) -> SolverTraits:
        """The solver's, with a gradient for singular input where the solver has a result for it."""
        inner = self.solver.traits
        return dataclasses.replace(inner, implicit=True, constant_rank=inner.singular)

    def iterates(self, a: Tensor) -> Iterator[Tensor]:
        """The solver's iterates, without a graph."""
        with torch.no_grad():
            yield from self.solver.iterates(a)

    def __call__(self, a: Tensor) -> Tensor:
        """The solver's result with the gradient of the pseudo-inverse."""
        return by_rule(self.solver, golub_pereyra, a)

    def solve(self, a: Tensor) -> PinvResult:
        """The solver's result with its status."""
        return self.solver.solve(a)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """The solver's."""
        return self.solver.cost(m, batch)


def golub_pereyra(a: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    """The adjoint of dX = -X dA X + X X^T dA^T (I - A X) + (I - X A) dA^T X^T X."""
    left, right = grad.mT @ x @ x.mT, x.mT @ (x @ grad.mT)
    return left - a @ (x @ left) + right - (right @ x) @ a - x.mT @ grad @ x.mT
