"""The two Lanczos recursions, every new vector orthogonalised twice against all before it.

Without that, rounding brings back directions that have converged, and each comes as a further,
false copy of its eigenvalue. Both stop early where the space that the start can reach is exhausted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from softlab.core import norm
from softlab.estimators.linear_map import LinearMap


def tridiagonal(a: LinearMap, start: Tensor, steps: int) -> Tensor:
    """T (k, k) = V^T A V of a symmetric A, V an orthonormal basis of its Krylov space; k <= steps.

    ``start``: (n,), not zero.
    """
    steps = min(steps, a.shape[0])
    basis = start.new_zeros(steps, len(start))
    t = start.new_zeros(steps, steps)
    v, size = start / norm(start), 0.0
    for j in range(steps):
        basis[j] = v
        w = a @ v
        size = max(size, float(norm(w)))
        t[j, j] = v @ w
        w = _cleared(w, basis[: j + 1])
        beta = float(norm(w))
        if beta <= _negligible(a) * size:
            return t[: j + 1, : j + 1]
        if j + 1 < steps:
            t[j, j + 1] = t[j + 1, j] = beta
            v = w / beta
    return t


@dataclass(frozen=True)
class Bidiagonal:
    """A V = U B, A^T U = V B^T + r e_k^T, B (k, k) upper bidiagonal: Golub and Kahan's recursion.

    ``right``: V^T (k, l). ``left``: U^T (k, n). ``b``: B. ``rest``: |r|, the norm of the
    residual. If it is zero the Krylov space is invariant, and every singular value of B is one of
    A.
    """

    right: Tensor
    left: Tensor
    b: Tensor
    rest: float


def bidiagonal(a: LinearMap, start: Tensor, steps: int) -> Iterator[Bidiagonal]:
    """Yield the recursion after each step, from ``start`` (l,), cut to the steps taken.

    Raises ``ValueError`` where A has no adjoint.
    """
    adjoint, steps = a.T, min(steps, *a.shape)
    right, left = (start.new_zeros(steps, size) for size in (len(start), a.shape[0]))
    b = start.new_zeros(steps, steps)
    v, size = start / norm(start), 0.0
    for j in range(steps):
        right[j] = v
        u = a @ v
        size = max(size, float(norm(u)))
        u = _cleared(u, left[:j])
        alpha = float(norm(u))
        beta = 0.0
        if alpha > _negligible(a) * size:  # else A v lies in the span of the left vectors
            b[j, j] = alpha
            left[j] = u / alpha
            w = _cleared(adjoint @ left[j], right[: j + 1])
            beta = float(norm(w))
        if beta <= _negligible(a) * size:
            beta = 0.0
        yield Bidiagonal(right[: j + 1], left[: j + 1], b[: j + 1, : j + 1], beta)
        if beta == 0:
            return
        b[j, j + 1 : j + 2] = beta  # of the next step, if there is one
        v = w / beta


def _cleared(w: Tensor, basis: Tensor) -> Tensor:
    for _ in range(2):
        w = w - basis.mT @ (basis @ w)
    return w


def _negligible(a: LinearMap) -> float:
    """What the rounding of a product leaves of a vector that should vanish."""
    return 10 * torch.finfo(a.dtype).eps
