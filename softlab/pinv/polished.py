"""A solver run in low precision, and Newton steps in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, own_precision, value
from softlab.pinv.polynomial import ResidualPolynomial
from softlab.pinv.solver import PinvResult, Solver, SolverTraits, admit, deliver, working
from softlab.pinv.stopping import judge
from softlab.validation import OneOf, Steps

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@value
class Polished:
    """The solver's best iterate in ``precision``, then ``steps`` Newton steps in float64.

    Newton's iteration corrects itself on the range: if the low precision reached a residual r < 1,
    the steps leave r^2, r^4, ... It cannot mend r >= 1, as where eps * kappa of the low precision
    is not small; ``solve`` then says so. ``solver``: an iteration, run in the arithmetic of
    ``precision`` ("float32", "bfloat16" or "float16"), with the accumulation that the device has.
    ``steps``: at least 1. A is brought to unit scale first, for float16's sake.

    Null-space errors of the low precision double in each step: for singular A wrap the whole in
    ``Purified``. The low-precision result is a constant of the backward pass, through which one
    step has the implicit gradient, -X^T G X^T.
    """

    solver: Solver
    precision: Annotated[str, OneOf(*PRECISIONS)] = "float32"
    steps: Steps = 1

    @property
    def traits(self) -> SolverTraits:
        """As direct as its steps are fixed; the implicit gradient."""
        inner = self.solver.traits
        return dataclasses.replace(
            inner,
            order=None,
            products=2,
            singular=False,
            implicit=True,
            constant_rank=False,
            watched=True,
            precision=self.precision,
        )

    @own_precision
    def iterates(self, a: Tensor) -> Iterator[Tensor]:
        """The low-precision result and each polished one, in the dtype of ``a``."""
        start, exact = self._rough(a)
        x = start
        yield x.to(a.dtype)
        newton = ResidualPolynomial((1.0, 1.0))
        for _ in range(self.steps):
            x = newton(exact, x)
            yield x.to(a.dtype)

    @torch.no_grad()
    def _low(self, a: Tensor) -> Tensor:
        low = a.to(PRECISIONS[self.precision])
        return judge(self.solver.iterates, low, self.solver.traits).x

    def _rough(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The low-precision inverse and A, both in float64."""
        validation.square(a)
        exact = a.double()
        # A power of two: the entries are rounded once, to the low precision, and not before.
        _, exponent = torch.frexp(exact.detach().abs().amax((-2, -1), keepdim=True))
        scale = torch.ldexp(torch.ones_like(exact[..., :1, :1]), exponent)
        return self._low(exact.detach() / scale).double() / scale, exact

    @own_precision
    def __call__(self, a: Tensor) -> Tensor:
        """The polished inverse, in the dtype of ``a``."""
        wide = admit(a, self.traits)
        for x in self.iterates(wide):
            final = x
        return deliver(final, a)

    def solve(self, a: Tensor) -> PinvResult:
        """The best of the low-precision result and the polished ones, with its status."""
        return judge(self.iterates, working(a), self.traits)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """The solver's and two products a step."""
        return self.solver.cost(m, batch) + Cost(batch * self.steps * 2 * 2 * m**3)
