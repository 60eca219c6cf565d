"""Where the singular values of a matrix lie, from a few products with vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from softlab.core import Cost, Stream, placed, widened

DOUBT = 8
"""The most by which a lower estimate that has not converged is lowered."""


def singular_interval(a: Tensor, sweeps: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Estimates of the smallest non-zero and the largest singular value, (..., 1, 1) each.

    The extreme singular values of a Golub-Kahan bidiagonalisation of ``sweeps`` steps, with full
    reorthogonalisation, from A^T w for one normal vector w: exact after as many steps as A has
    distinct singular values, and inside the true interval before. The smaller is lowered by its own
    residual, at most to an eighth. Values below m eps of the largest count as zero. Both are 0 for
    a zero matrix and NaN for one that is not finite; neither has a gradient. Reference: Golub and
    Kahan 1965.
    """
    wide = widened(a).detach()
    finite = wide.isfinite().all(-1).all(-1)[..., None, None]
    scale = wide.abs().amax((-2, -1), keepdim=True)
    unit = torch.where(finite, wide, 0) / torch.where(finite & (scale > 0), scale, 1)
    m = a.shape[-1]
    k = min(sweeps, m)
    # From within the range of A^T: on singular A, Ritz values would enter the gap above zero.
    v = unit.mT @ placed(_start, seed, m, device=unit.device, dtype=unit.dtype)
    size = torch.linalg.matrix_norm(v, keepdim=True)
    v = v / torch.where(size > 0, size, 1)
    left, right = (unit.new_zeros(*a.shape[:-2], m, k) for _ in range(2))
    bidiagonal = unit.new_zeros(*a.shape[:-2], k, k)
    u, beta = torch.zeros_like(v), v.new_zeros(*a.shape[:-2], 1, 1)
    for i in range(k):
        right[..., i : i + 1] = v
        u, alpha = _orthogonal(unit @ v - beta * u, left)
        left[..., i : i + 1] = u
        bidiagonal[..., i : i + 1, i : i + 1] = alpha
        v, beta = _orthogonal(unit.mT @ u - alpha * v, right)
        if i + 1 < k:
            bidiagonal[..., i : i + 1, i + 1 : i + 2] = beta
    p, s, _ = torch.linalg.svd(bidiagonal)
    top = s[..., :1]
    kept = s > m * torch.finfo(s.dtype).eps * top
    # Some singular value of A lies within |beta p_k| of each Ritz value.
    sure = torch.maximum(s - (beta * p[..., -1:, :].abs())[..., 0, :], s / DOUBT)
    least = torch.where(kept, sure, torch.inf).amin(-1, keepdim=True)
    least = torch.where(top > 0, least, 0)
    low, high = (torch.where(finite, y[..., None] * scale, torch.nan) for y in (least, top))
    return low, high


def _start(seed: int, m: int) -> Tensor:
    return Stream(seed, "pinv.singular_interval").normal(m, 1)


def interval_cost(m: int, sweeps: int, batch: int = 1) -> Cost:
    """Two products with A and two passes of reorthogonalisation a sweep; the small SVD."""
    k = min(sweeps, m)
    flops = batch * (2 * m * m + k * 2 * (2 * m * m + 2 * 2 * 2 * m * k))
    return Cost(flops, factorization_flops=batch * 21 * k**3)


def _orthogonal(w: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The unit vector of w orthogonal to the basis, and its length; 0 and 0 where none is left."""
    before = torch.linalg.matrix_norm(w, keepdim=True)
    for _ in range(2):  # twice is enough (Kahan and Parlett)
        w = w - basis @ (basis.mT @ w)
    size = torch.linalg.matrix_norm(w, keepdim=True)
    eps = torch.finfo(w.dtype).eps
    sound = size > 10 * eps * torch.maximum(before, torch.ones_like(before))
    return torch.where(sound, w / torch.where(sound, size, 1), 0), torch.where(sound, size, 0)
