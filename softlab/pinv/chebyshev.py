"""Steps that are best for the interval in which the spectrum lies."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, value, widened
from softlab.pinv.golub_kahan import interval_cost
from softlab.pinv.iteration import Map, Unrolled
from softlab.pinv.polynomial import cushion, equioscillation, products, sent
from softlab.pinv.scalings import KrylovEstimate
from softlab.pinv.solver import SolverTraits
from softlab.validation import Seed, Steps


@value
class Chebyshev(Unrolled):
    """X <- X g(R) whose residual is the Chebyshev polynomial of the interval of the spectrum.

    If the eigenvalues of A X lie in [1 - t, 1 + t], no polynomial step of degree p leaves a smaller
    residual than T_p(r / t) / T_p(1 / t), whose largest value, 1 / T_p(1 / t), is the next t. For
    ``degree`` p = 2 the step is X <- 2 / (2 - t^2) (2 X - X A X). It starts from
    X0 = 2 A^T / (u^2 + l^2), and with that from the least t, where [l, u] holds the non-zero
    singular values. A small singular value grows by p^2 and not p a step at first: about half the
    products of Newton's iteration, which it becomes as t vanishes (Hyperpower for p > 2).
    ``steps``: at least 1. Products a step as of ``Hyperpower``, which is why ``degree`` is 5.

    ``bounds``: (l, u) in the units of A, 0 < l <= u; None estimates them per matrix by ``sweeps``
    steps of Golub-Kahan bidiagonalisation from ``seed``, u widened by a tenth but never above
    sqrt(|A|_1 |A|_inf). Singular values below l are only slower; one above sqrt(u^2 + l^2) makes
    the iteration diverge. ``definite``: A is symmetric positive definite, and X0 = 2 I / (u + l),
    whose t starts from kappa instead of kappa^2; not for singular A. The interval is never wider
    than the dtype can tell apart (``cushion``).

    On singular A a rounding error in the null space grows by up to p^2 a step, p in the end. The
    bounds are constants of the backward pass. Reference: Pan and Schreiber 1991; the polynomials by
    Chebyshev's theorem.
    """

    steps: Steps = 12
    degree: Steps = 5
    bounds: tuple[float, float] | None = None
    definite: bool = False
    sweeps: Steps = 24
    seed: Seed = 0

    def __post_init__(self) -> None:
        validation.above_one(self, degree=self.degree)
        if self.bounds is not None:
            pair: object = self.bounds
            if not isinstance(pair, tuple) or len(pair) != 2:
                msg = f"Chebyshev.bounds is {pair!r}; give (lower, upper), lower <= upper."
                raise TypeError(msg)
            low, high = self.bounds
            validation.in_range(self, validation.Positive, bounds=low)
            validation.in_range(self, validation.Positive, bounds=high)
            if low > high:
                msg = f"Chebyshev.bounds is {self.bounds}; give (lower, upper), lower <= upper."
                raise ValueError(msg)

    @property
    def traits(self) -> SolverTraits:
        """Order p in the limit, where null-space errors grow p times."""
        return SolverTraits(
            self.degree,
            products(self.degree - 1),
            singular=not self.definite,
            definite=self.definite,
            growth=float(self.degree),
        )

    def interval(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds l and u (..., 1, 1), given or estimated, in the working precision."""
        wide = widened(a).detach()
        if self.bounds is not None:
            low, high = (torch.full_like(wide[..., :1, :1], x) for x in self.bounds)
            return low, high
        return KrylovEstimate(self.sweeps, seed=self.seed).interval(wide)

    def begin(self, a: Tensor) -> tuple[Tensor, Iterator[Map]]:
        """2 A^T / (u^2 + l^2), or 2 I / (u + l), and the steps with the t of each matrix."""
        low, high = self.interval(a)
        some, high = high > 0, torch.where(high > 0, high, 1)
        ratio = low / high if self.definite else (low / high).square()
        ratio = ratio.clamp_min(cushion(a.dtype, a.shape[-1]))
        if self.definite:
            eye = torch.eye(a.shape[-1], dtype=high.dtype, device=a.device)
            # A zero matrix gets 0, its pseudo-inverse, as every multiple of A^T does.
            x = torch.where(some, 2 * eye / (high * (1 + ratio)), 0)
        else:
            x = (widened(a).mT / high) * (2 / (1 + ratio) / high)
        ratio = ratio.double()
        if a.device.type != "cuda":
            return x.to(a.dtype), equioscillation(ratio, self.degree, self.steps)
        # There a hundred launches a step would make a few numbers for each matrix.
        maps = equioscillation(ratio.cpu(), self.degree, self.steps)
        return x.to(a.dtype), sent(maps, a.device)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """The products of the steps, and the estimate of the interval."""
        estimate = Cost(0) if self.bounds is not None else interval_cost(m, self.sweeps, batch)
        return estimate + Cost(batch * self.steps * self.traits.products * 2 * m**3)
