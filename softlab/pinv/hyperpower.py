"""The hyperpower iterations: Newton's to any order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor

from softlab import validation
from softlab.core import Cost, value
from softlab.pinv.iteration import Unrolled
from softlab.pinv.polynomial import ResidualPolynomial, products
from softlab.pinv.scalings import NormProduct, Scaling
from softlab.pinv.solver import SolverTraits
from softlab.validation import Steps


@value
class Hyperpower(Unrolled):
    """X <- X (I + R + ... + R^(p-1)) with R = I - A X, order p.

    ``order``: p, at least 2; 2 is Newton's iteration. Products a step: 2, 3, 4, 4, 5, 5, 6 for p
    from 2 to 8, so p = 3 is the cheapest for its order among Horner's forms, and p = 5 and 7 are
    cheaper still by Paterson and Stockmeyer's. ``steps``: at least 1. ``scaling``: the initial
    guess, as of ``NewtonRaphson``.

    After k steps from alpha A^T the singular value s has been inverted up to the factor
    1 - (1 - alpha s^2)^(p^k). On singular A a rounding error in the null space grows p times a
    step. Reference: Altman 1960; Ben-Israel and Cohen 1966; Pan, Soleymani and Zhao,
    arXiv 1604.07893.
    """

    order: Steps = 3
    steps: Steps = 13
    scaling: Scaling = NormProduct(1.8)

    def __post_init__(self) -> None:
        validation.above_one(self, order=self.order)

    @property
    def traits(self) -> SolverTraits:
        """Order p; null-space errors grow p times."""
        definite = self.scaling.definite
        return SolverTraits(
            self.order,
            products(self.order - 1),
            singular=not definite,
            definite=definite,
            growth=float(self.order),
        )

    def begin(self, a: Tensor) -> tuple[Tensor, Iterator[ResidualPolynomial]]:
        """The scaling's guess, and X (I + R + ... + R^(p-1)), ``steps`` times."""
        return self.scaling(a), itertools.repeat(
            ResidualPolynomial((1.0,) * self.order), self.steps
        )

    def cost(self, m: int, batch: int = 1) -> Cost:
        """The products of the steps, and the scaling's."""
        flops = batch * self.steps * self.traits.products * 2 * m**3
        return self.scaling.cost(m, batch) + Cost(flops)
