"""Steps whose polynomial is fitted to a sketch of the residual."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from softlab.core import Cost, Stream, value
from softlab.pinv.iteration import Map, Unrolled
from softlab.pinv.polynomial import ResidualPolynomial, residual
from softlab.pinv.scalings import NormProduct, Scaling
from softlab.pinv.solver import SolverTraits
from softlab.validation import Seed, Steps, Width

LARGEST = 4.0
"""With c in [1, 4] the map r -> r^2 (1 - c + c r) sends [-1/4, 1] into itself: no step can diverge,
whatever the sketch missed."""


@value
class SketchedFit(Unrolled):
    """X <- X (I + R + c R^2), c fitted each step to the residual that is there.

    The next residual is R^2 (1 - c) + c R^3; c in [1, 4] minimises its norm on ``columns`` normal
    vectors w from ``seed``, from R w, R^2 w and R^3 w. c = 1 is the cubic hyperpower, to which the
    fit falls back as R vanishes: order 3. A larger c lifts small singular values faster, up to six
    times a step, without any bound of the spectrum; three products of m x m and three of m x
    ``columns`` a step.

    ``steps``: at least 1. ``scaling``: a guess with eigenvalues of A X0 in (0, 5/4], by default
    A^T / (|A|_1 |A|_inf). On singular A a rounding error in the null space grows by 2 + c a step,
    3 in the end. The fit is a constant of the backward pass. In the manner of PRISM
    (arXiv 2601.22137), which fits the last coefficient of iterations for roots and polar factors.
    """

    steps: Steps = 14
    columns: Width = 8
    seed: Seed = 0
    scaling: Scaling = NormProduct(1.0)

    @property
    def traits(self) -> SolverTraits:
        """Order 3 in the limit, where null-space errors grow three times."""
        definite = self.scaling.definite
        return SolverTraits(3, 3, singular=not definite, definite=definite, growth=3.0)

    def begin(self, a: Tensor) -> tuple[Tensor, Iterator[Map]]:
        """The scaling's guess, and steps that look at the residual they meet."""
        sketch = Stream(self.seed, "pinv.SketchedFit").normal(a.shape[-1], self.columns)
        return self.scaling(a), itertools.repeat(_Fitted(sketch.to(a)), self.steps)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """Three products and three thin ones a step, and the scaling's."""
        flops = batch * self.steps * 3 * 2 * m * m * (m + self.columns)
        return self.scaling.cost(m, batch) + Cost(flops)


@dataclass(frozen=True)
class _Fitted:
    sketch: Tensor

    def __call__(self, a: Tensor, x: Tensor) -> Tensor:
        r = residual(a, x)
        return ResidualPolynomial((1.0, 1.0, self.coefficient(r.detach()))).of(x, r)

    def coefficient(self, r: Tensor) -> Tensor:
        """The fit c (..., 1, 1) in [1, 4]; 1 where all that is left of R is its null space."""
        w = r @ (r @ self.sketch)
        change = w - r @ w
        top = (w * change).sum((-2, -1), keepdim=True)
        size = change.square().sum((-2, -1), keepdim=True)
        # On the null space of A the residual stays I, and R^2 - R^3 is rounding alone.
        rounding = (10 * r.shape[-1] * torch.finfo(r.dtype).eps) ** 2
        sound = size > rounding * w.square().sum((-2, -1), keepdim=True)
        fit = torch.where(sound, top / torch.where(sound, size, 1), 1)
        return fit.clamp(1, LARGEST)
