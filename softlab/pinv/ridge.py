"""A solver applied to the shifted matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, value
from softlab.pinv.solver import (
    PinvResult,
    Solver,
    SolverTraits,
    applied,
    applier,
    applier_cost,
    deliver,
    working,
)
from softlab.validation import Positive


@value
class Ridge:
    """(A + ridge I)^-1 by any solver, the shift added before the solver's own scaling.

    ``solver``: what inverts the shifted matrix. ``ridge``: positive, in the units of A; the
    released SOFT code uses 0.01 on a core with unit diagonal. For positive semidefinite A the
    condition number is at most 1 + |A|_2 / ridge; the price is a bias of the result. ``solve``
    reports the residual on the shifted matrix.
    """

    solver: Solver
    ridge: Positive = 0.01

    @property
    def traits(self) -> SolverTraits:
        """The solver's, regularised."""
        return dataclasses.replace(
            self.solver.traits, singular=False, regularized=True, constant_rank=False
        )

    def shifted(self, a: Tensor) -> Tensor:
        """A + ridge I in the dtype of ``a``."""
        validation.square(a)
        return a + self.ridge * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)

    def iterates(self, a: Tensor) -> Iterator[Tensor]:
        """The solver's iterates on the shifted matrix."""
        return self.solver.iterates(self.shifted(a))

    def __call__(self, a: Tensor) -> Tensor:
        """The inverse of the shifted matrix."""
        return deliver(self.solver(self.shifted(working(a))), a)

    def applier(self, a: Tensor) -> Callable[[Tensor], Tensor]:
        """The solver's, of the shifted matrix, in the dtype of ``a``."""
        return applied(applier(self.solver, self.shifted(working(a))), a)

    def applier_cost(self, m: int, columns: Sequence[int], batch: int = 1) -> Cost:
        """The solver's."""
        return applier_cost(self.solver, m, columns, batch)

    def solve(self, a: Tensor) -> PinvResult:
        """The inverse of the shifted matrix with its status."""
        return self.solver.solve(self.shifted(working(a)))

    def cost(self, m: int, batch: int = 1) -> Cost:
        """The solver's; the shift is no product."""
        return self.solver.cost(m, batch)
