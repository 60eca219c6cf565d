"""The iteration of Nystromformer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from softlab import checks
from softlab.core import Cost, value
from softlab.pinv.scalings import NormProduct, Scaling
from softlab.pinv.solver import PinvResult, SolverTraits, judge, last, working


@value
class NystromformerCubic:
    """X <- X (13 I - A X (15 I - A X (7 I - A X))) / 4, order 3, four products a step.

    ``steps``: number of iterations, at least 1; Nystromformer uses 6, which rarely converge and
    act as a regulariser. ``scaling``: the initial guess, by default A^T / (|A|_1 |A|_inf) per
    matrix (the published code takes the norms over the whole batch).

    An eigenvalue r of the residual I - A X becomes (3 r^3 + r^4) / 4: order 3, although a cited
    source suggests 4. On singular A a rounding error in the null space grows by 13/4 a step.
    Reference: arXiv 2102.03902, Eq. 11.
    """

    steps: int = 6
    scaling: Scaling = NormProduct(1.0)

    def __post_init__(self) -> None:
        checks.positive_int(self, steps=self.steps)
        checks.is_a(self, Scaling, scaling=self.scaling)

    @property
    def traits(self) -> SolverTraits:
        """Order 3; null-space errors grow by 13/4."""
        return SolverTraits(order=3, growth=13 / 4)

    def iterates(self, a: Tensor) -> Iterator[Tensor]:
        """X0, X1, ..., X_steps."""
        a = working(a)
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        x = self.scaling(a)
        yield x
        for _ in range(self.steps):
            ax = a @ x
            x = x @ (13 * eye - ax @ (15 * eye - ax @ (7 * eye - ax))) / 4
            yield x

    def __call__(self, a: Tensor) -> Tensor:
        """The last iterate, with the gradient of the unrolled loop."""
        return last(self.iterates(a), a)

    def solve(self, a: Tensor) -> PinvResult:
        """The best iterate with its status."""
        return judge(self.iterates(a), a)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """Four products a step."""
        return Cost(flops=batch * self.steps * 4 * 2 * m**3)
