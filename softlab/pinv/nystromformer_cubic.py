"""The iteration of Nystromformer."""

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
class NystromformerCubic(Unrolled):
    """X <- X (13 I - A X (15 I - A X (7 I - A X))) / 4, order 3, four products a step.

    ``steps``: number of iterations, at least 1; Nystromformer uses 6, which rarely converge and
    act as a regulariser. ``scaling``: the initial guess, by default A^T / (|A|_1 |A|_inf) per
    matrix (the published code takes the norms over the whole batch).

    In powers of R = I - A X this is X (I + R + R^2 + R^3 / 4), cubic hyperpower with a fourth term:
    an eigenvalue r of the residual becomes (3 r^3 + r^4) / 4. So the order is 3, although a cited
    source suggests 4, at the products of order 4 or 5. On singular A a rounding error in the null
    space grows by 13/4 a step. Reference: arXiv 2102.03902, Eq. 11.
    """

    steps: Steps = 6
    scaling: Scaling = NormProduct(1.0)

    @property
    def traits(self) -> SolverTraits:
        """Order 3; null-space errors grow by 13/4."""
        definite = self.scaling.definite
        return SolverTraits(3, 4, singular=not definite, definite=definite, growth=13 / 4)

    def begin(self, a: Tensor) -> tuple[Tensor, Iterator[ResidualPolynomial]]:
        """The scaling's guess, and X (I + R + R^2 + R^3 / 4), ``steps`` times."""
        return self.scaling(a), itertools.repeat(
            ResidualPolynomial((1.0, 1.0, 1.0, 0.25)), self.steps
        )

    def cost(self, m: int, batch: int = 1) -> Cost:
        """Four products a step, and the scaling's."""
        return self.scaling.cost(m, batch) + Cost(flops=batch * self.steps * 4 * 2 * m**3)
