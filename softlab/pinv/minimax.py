"""Polynomial steps for one interval that is known beforehand."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from softlab import validation
from softlab.core import Cost, value
from softlab.pinv.iteration import Map, Unrolled
from softlab.pinv.polynomial import cushion, equioscillation, products
from softlab.pinv.scalings import KrylovEstimate, Scaling
from softlab.pinv.solver import SolverTraits
from softlab.validation import Positive, Steps

MARGIN = 1.15
"""By how much the scaling may overestimate sigma_1 before small singular values fall behind."""


@value
class Minimax(Unrolled):
    """The steps that are best for every matrix of one condition number at once.

    Each step X <- X g(R) is the minimax approximation of 1 / x in the relative error |1 - x q(x)|
    over the interval that the step before it left: what a Remez exchange finds, and by Chebyshev's
    theorem T_p in closed form. The coefficients are numbers, fixed before any matrix is seen, as
    PolarExpress has them for the polar factor (arXiv 2505.16932); ``Chebyshev`` adapts them.

    ``condition``: the sigma_1 / sigma_r to be ready for, at least 1; smaller singular values are
    only slower, and a smaller condition number gains nothing. ``degree``: p >= 2; 5 takes four
    products and 7 five, which beats the three of p = 3 for their gain. ``steps``: at least 1, by
    default enough for the default condition in float64. ``scaling``: a guess with
    eigenvalues of A X0 in (0, 1], and not beyond, where the steps may diverge; a multiple of I
    needs only condition, not its square.

    The interval is never wider than the dtype can tell apart (``cushion``). On singular A a
    rounding error in the null space grows by up to p^2 a step, p in the end.
    """

    condition: Positive = 1e3
    steps: Steps = 7
    degree: Steps = 5
    scaling: Scaling = KrylovEstimate()

    def __post_init__(self) -> None:
        if self.condition < 1:
            msg = f"Minimax.condition is {self.condition}; give a number of at least 1."
            raise ValueError(msg)
        validation.above_one(self, degree=self.degree)

    @property
    def traits(self) -> SolverTraits:
        """Order p in the limit, where null-space errors grow p times."""
        definite = self.scaling.definite
        return SolverTraits(
            self.degree,
            products(self.degree - 1),
            singular=not definite,
            definite=definite,
            growth=float(self.degree),
        )

    def begin(self, a: Tensor) -> tuple[Tensor, Iterator[Map]]:
        """The scaling's guess moved to the middle of the interval, and the steps."""
        ratio = (MARGIN * self.condition) ** -(1.0 if self.scaling.definite else 2.0)
        ratio = max(ratio, cushion(a.dtype, a.shape[-1]))
        start = 2 / (1 + ratio) * self.scaling(a)
        return start, equioscillation(ratio, self.degree, self.steps)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """The products of the steps, and the scaling's."""
        flops = batch * self.steps * self.traits.products * 2 * m**3
        return self.scaling.cost(m, batch) + Cost(flops)
