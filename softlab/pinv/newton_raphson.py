"""The Newton-Raphson (Newton-Schulz) iteration, as SOFT uses it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor

from softlab.core import Cost, value
from softlab.pinv.iteration import Unrolled
from softlab.pinv.polynomial import ResidualPolynomial
from softlab.pinv.scalings import NormProduct, Scaling
from softlab.pinv.solver import SolverTraits
from softlab.validation import Steps


@value
class NewtonRaphson(Unrolled):
    """X <- 2 X - X A X, order 2, two products a step.

    ``steps``: number of iterations, at least 1; SOFT uses 20. ``scaling``: the initial guess,
    by default SOFT's 0.9 * 2 / |A|_1^2 per matrix (for general A, 1.8 A^T / (|A|_1 |A|_inf)).

    After k steps from alpha A^T the singular value s has been inverted up to the factor
    1 - (1 - alpha s^2)^(2^k): too few steps are a spectral filter, not an inverse. On singular A a
    rounding error in the null space doubles every step. ``solve`` says which of these happened.
    Reference: arXiv 2110.11945, Alg. 2 and Eq. 10; Ben-Israel and Cohen 1966.
    """

    steps: Steps = 20
    scaling: Scaling = NormProduct(1.8)

    @property
    def traits(self) -> SolverTraits:
        """Order 2; null-space errors double."""
        definite = self.scaling.definite
        return SolverTraits(2, 2, singular=not definite, definite=definite, growth=2.0)

    def begin(self, a: Tensor) -> tuple[Tensor, Iterator[ResidualPolynomial]]:
        """The scaling's guess, and X (I + R), ``steps`` times."""
        return self.scaling(a), itertools.repeat(ResidualPolynomial((1.0, 1.0)), self.steps)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """Two products a step, and the scaling's."""
        return self.scaling.cost(m, batch) + Cost(flops=batch * self.steps * 2 * 2 * m**3)
