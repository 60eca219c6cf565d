"""The Newton-Raphson (Newton-Schulz) iteration, as SOFT uses it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softlab import gpu
from softlab.core import Cost, derived, graphed, own_precision, value
from softlab.kernels.fused import plain_matrix
from softlab.pinv.iteration import Unrolled
from softlab.pinv.polynomial import ResidualPolynomial
from softlab.pinv.scalings import NormProduct, Scaling
from softlab.pinv.solver import PinvResult, Solver, SolverTraits, admit, deliver, working
from softlab.pinv.stopping import Traced, judge_traced
from softlab.validation import Steps

STEP = ResidualPolynomial((1.0, 1.0))
"""X (I + R), which is 2 X - X A X."""


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
        return self.scaling(a), itertools.repeat(STEP, self.steps)

    def __call__(self, a: Tensor) -> Tensor:
        """The last iterate, with the gradient of the unrolled loop."""
        plain = partial(super().__call__, a)
        return gpu.attempt("newton_raphson", plain, self._fused, a) if _fits(a) else plain()

    def solve(self, a: Tensor) -> PinvResult:
        """The best iterate with its status."""
        plain = partial(super().solve, a)
        if not _fits(a):
            return plain()
        return gpu.attempt(
            "newton_raphson", plain, judge_traced, self._traced, working(a), self.traits
        )

    @own_precision
    def _fused(self, a: Tensor) -> Tensor:
        flat = admit(a, self.traits).reshape(-1, *a.shape[-2:])
        steps = gpu.kernel("newton_raphson", "newton_raphson")
        fast, plain = partial(steps, steps=self.steps), partial(_loop, steps=self.steps)
        return deliver(derived(fast, plain, flat, self.scaling(flat)).reshape(a.shape), a)

    @own_precision
    def _traced(self, a: Tensor, row: Tensor) -> Traced:
        x = self.scaling(a)
        residual, seen = gpu.kernel("newton_raphson", "traced")(a, x, row, self.steps)
        return Traced(residual, seen, partial(gpu.kernel("newton_raphson", "stepped"), a, x))

    def cost(self, m: int, batch: int = 1) -> Cost:
        """Two products a step, and the scaling's."""
        return self.scaling.cost(m, batch) + Cost(flops=batch * self.steps * 2 * 2 * m**3)


def of_landmarks(solver: Solver, z: Tensor, variance: float) -> tuple[Tensor, Tensor] | None:
    """The core exp(-|z_i - z_j|^2 / (2 variance)) and ``solver`` of it, where one launch does both.

    ``z`` (..., m, d). None for other solvers and wherever no kernel serves.
    """
    if not isinstance(solver, NewtonRaphson) or type(solver.scaling) is not NormProduct:
        return None
    most = gpu.LARGEST if graphed(z) else gpu.LARGEST_LANDMARKS
    if z.shape[-2] > most or not gpu.serves("newton_raphson", z):
        return None
    steps, factor = solver.steps, solver.scaling.factor

    def plain(z: Tensor) -> Tensor:
        core = plain_matrix(z, z, variance)
        return torch.stack((core, _loop(core, solver.scaling(core), steps=steps)))

    def fused() -> tuple[Tensor, Tensor] | None:
        flat = z.reshape(-1, *z.shape[-2:])
        fast = partial(
            gpu.kernel("newton_raphson", "landmark_inverse"),
            variance=variance, steps=steps, factor=factor,
        )  # fmt: skip
        core, inverse = derived(fast, plain, flat).reshape(2, *z.shape[:-1], z.shape[-2]).unbind()
        return core, deliver(inverse, core)

    return gpu.attempt("newton_raphson", lambda: None, fused)


def _fits(a: Any) -> bool:
    """Whether one launch takes all steps of these matrices."""
    if not isinstance(a, Tensor):  # refused with a sentence where tensors are looked at
        return False
    small = a.ndim >= 2 and a.shape[-1] == a.shape[-2] <= gpu.LARGEST
    return small and gpu.serves("newton_raphson", a)


def _loop(a: Tensor, x: Tensor, *, steps: int) -> Tensor:
    for _ in range(steps):
        x = STEP(a, x)
    return x
