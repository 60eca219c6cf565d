"""Conjugate gradients: a Krylov method for cores too large to invert."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, own_precision, value, widened
from softlab.pinv.solver import PinvResult, SolverTraits, last, working
from softlab.pinv.stopping import judge
from softlab.validation import Steps


@value
class ConjugateGradients:
    """X B of A X = I by ``steps`` conjugate gradient steps from 0, a recursion a column.

    For symmetric positive definite A. ``applier(a)`` maps B to A^-1 B without an inverse: one
    product of A with the columns of B a step, which pays where B is thinner than A or few steps do;
    that is how operators use it. ``solver(a)`` is the same with B = I, one m x m product a step.

    The error in the A-norm falls at least by (sqrt(kappa) - 1) / (sqrt(kappa) + 1) a step, faster
    on clustered spectra; in exact arithmetic it vanishes after as many steps as A has distinct
    eigenvalues. On singular A it converges for columns in the range alone and is no
    pseudo-inverse. A column that is solved rests. The gradient is that of the unrolled recursion.
    Reference: Hestenes and Stiefel 1952.
    """

    steps: Steps = 32

    @property
    def traits(self) -> SolverTraits:
        """Definite input, linear convergence: no order."""
        return SolverTraits(products=1, singular=False, definite=True)

    def iterates(self, a: Tensor) -> Iterator[Tensor]:
        """0, X1, ..., X_steps, in the arithmetic of the dtype of ``a``."""
        validation.square(a)
        return self._columns(a, torch.eye(a.shape[-1], dtype=a.dtype, device=a.device))

    @own_precision
    def _columns(self, a: Tensor, b: Tensor) -> Iterator[Tensor]:
        # Of unit scale, so that no squared length overflows or vanishes.
        scale = a.detach().abs().amax((-2, -1), keepdim=True)
        scale = torch.where(scale > 0, scale, 1)
        unit = a / scale
        length = b.detach().abs().amax(-2, keepdim=True)
        length = torch.where(length > 0, length, 1)
        r = (b / length).expand(*a.shape[:-1], b.shape[-1])
        x = torch.zeros_like(r)
        p, size = r, r.square().sum(-2, keepdim=True)
        least = torch.finfo(a.dtype).eps ** 2 * size.detach()
        yield x
        for _ in range(self.steps):
            image = unit @ p
            curve = (p * image).sum(-2, keepdim=True)
            # A column rests once its residual is rounding; 0 / 0 would follow.
            going = (size.detach() > least) & (curve.detach() != 0)
            alpha = torch.where(going, size, 0) / torch.where(going, curve, 1)
            x = x + alpha * p / scale * length
            r = r - alpha * image
            after = r.square().sum(-2, keepdim=True)
            beta = torch.where(going, after, 0) / torch.where(going, size, 1)
            p, size = r + beta * p, torch.where(going, after, size)
            yield x

    def applier(self, a: Tensor) -> Callable[[Tensor], Tensor]:
        """The map from B (..., m, c) to A^-1 B in the dtype of ``a``, without the inverse."""
        return lambda b: last(lambda wide: self._columns(wide, widened(b)), a, self.traits)

    def applier_cost(self, m: int, columns: Sequence[int], batch: int = 1) -> Cost:
        """One product of A with all columns a step."""
        return Cost(batch * self.steps * 2 * m * m * sum(columns))

    def __call__(self, a: Tensor) -> Tensor:
        """The last iterate, with the gradient of the unrolled recursion."""
        return last(self.iterates, a, self.traits)

    def solve(self, a: Tensor) -> PinvResult:
        """The best iterate with its status."""
        return judge(self.iterates, working(a), self.traits)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """One product of A with m columns a step."""
        return self.applier_cost(m, (m,), batch)
