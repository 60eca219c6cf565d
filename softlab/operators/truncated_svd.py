"""The control that no rank-m method can beat: the truncated SVD of the exact matrix."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from softlab import validation
from softlab.core import (
    Cost,
    Dims,
    Operator,
    Traits,
    as_matrix,
    attention,
    derived,
    value,
)
from softlab.operators.softmax import Softmax
from softlab.validation import Size


@value
class TruncatedSVD:
    """out = M_m v with M_m the best rank-m approximation of the target's matrix M.

    ``rank``: m, 1 to min(n, keys that take part). ``target``: the exact operator, linear in v.
    By Eckart, Young and Mirsky no matrix of rank m is nearer to M in the Frobenius or the spectral
    norm; another may still err less on one particular v. Dense: O(n l) memory and a full SVD. Its
    gradient exists where singular values m and m + 1 differ, and is NaN where they are equal;
    derivatives are right up to the fourth.
    """

    family: ClassVar = "dense"

    rank: Size
    target: Operator = Softmax()

    @property
    def traits(self) -> Traits:
        """The target's symmetries, low rank, exact at full rank, dense."""
        claims = self.target.traits
        return Traits(
            query_equivariant=claims.query_equivariant,
            key_invariant=claims.key_invariant,
            symmetric=claims.symmetric,
            psd=claims.psd,
            reads=claims.reads,
            low_rank=True,
            optimal=True,
            exact_at="rank",
            monotone="Frobenius",
            exact_at_rank_one=True,
            padded=True,
        )

    def cost(self, dims: Dims) -> Cost:
        """The target on the identity, its SVD (Golub and Van Loan, Fig. 8.6.1), thin products."""
        b, n, l, m, e = dims.batch, dims.n, dims.l, self.rank, dims.e
        tall, short = max(n, l), min(n, l)
        svd = 6 * tall * short**2 + 20 * short**3  # U_1, S and V by R-SVD
        return self.target.cost(dataclasses.replace(dims, e=l)) + Cost(
            flops=2 * b * m * (l + n) * e, factorization_flops=b * svd
        )

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        validation.rank_fits(
            self.rank, min(q.shape[-2], validation.survivors(key_mask, k)), "rows or keys"
        )
        exact = as_matrix(self.target, q, k, key_mask)
        fast, plain = partial(_BestRank.apply, self.rank), partial(plain_best_rank, self.rank)
        return derived(fast, plain, exact, v)


ORDERS = 4
"""The highest derivative for which ``plain_best_rank`` is exact."""


def plain_best_rank(rank: int, exact: Tensor, v: Tensor) -> Tensor:
    """M_m v in torch's differentiable operations, whatever singular values are equal or zero.

    M_m = P M, P the projector onto the first m eigenvectors of S = M M^T, or the same of M^T where
    that is smaller. In the basis of the eigenvectors, taken as constants, the space is spanned by
    [I; X] where S_21 + S_22 X - X S_11 - X S_12 X = 0. X is 0, but its derivatives are not. Each
    pass of X <- (S_21 + (S_22 - L_2) X - X (S_11 - L_1) - X S_12 X) / (l_1 - l_2), l the
    eigenvalues as constants, makes one derivative more exact, and divides by no gaps but those
    between kept and other eigenvalues.
    """
    wide = exact.shape[-2] > exact.shape[-1]
    u, s, _ = torch.linalg.svd((exact.mT if wide else exact).detach(), full_matrices=False)
    turned = u.mT @ (exact.mT if wide else exact)
    gram, eye = turned @ turned.mT, torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    kept, other = s[..., :rank].square(), s[..., rank:].square()
    change = gram - eye * s.square().unsqueeze(-1)
    x = torch.zeros_like(gram[..., rank:, :rank])
    for _ in range(ORDERS):
        found = change[..., rank:, :rank] + change[..., rank:, rank:] @ x
        found = found - x @ (change[..., :rank, :rank] + change[..., :rank, rank:] @ x)
        x = found / (kept.unsqueeze(-2) - other.unsqueeze(-1))
    span = torch.cat((eye[:rank, :rank].expand(*x.shape[:-2], rank, rank), x), -2)
    inner = torch.linalg.inv(span.mT @ span)

    left, right = (turned.mT, u.mT @ v) if wide else (u, turned @ v)
    out: Tensor = left @ (span @ (inner @ (span.mT @ right)))
    return out


class _BestRank(torch.autograd.Function):
    """M_m v, applied as U_m (S_m (V_m^T v)), with the derivative of the truncation itself.

    In the singular basis the truncation T has the differential, for i <= m < j,
    dT_ij = s_i (s_i dM_ij + s_j dM_ji) / (s_i^2 - s_j^2), dM_ij for i, j <= m and 0 for i, j > m:
    a self-adjoint map, so the adjoint is the same formula. Autograd through the SVD would divide by
    every pair of equal singular values, the zeros of masked keys among them.
    """

    @staticmethod
    def forward(ctx: Any, rank: int, exact: Tensor, v: Tensor) -> Tensor:
        u, s, vh = torch.linalg.svd(exact, full_matrices=False)
        ctx.save_for_backward(u, s, vh, v)
        ctx.rank = rank
        thin = s[..., :rank, None] * (vh[..., :rank, :] @ v)
        out: Tensor = u[..., :rank] @ thin
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, s, vh, v = ctx.saved_tensors
        m = ctx.rank
        head = torch.arange(s.shape[-1], device=s.device) < m
        dv = vh[..., :m, :].mT @ (s[..., :m, None] * (u[..., :m].mT @ grad))
        dm = grad @ v.mT
        left, right = u.mT @ dm, dm @ vh.mT
        inner = left @ vh.mT
        # Parts of dm that leave the span of U or V meet zero singular values.
        outside = u[..., :m] @ (left[..., :m, :] - inner[..., :m, :] @ vh)
        outside = outside + (right[..., :m] - u @ inner[..., :m]) @ vh[..., :m, :]
        big, small = s[..., :, None], s[..., None, :]
        gap = torch.where(head[:, None] & ~head, big.square() - small.square(), 1)
        mixed = (big * (big * inner + small * inner.mT)) / gap
        upper = torch.where(head[:, None] & ~head, mixed, 0)
        mixed_t = (big * (big * inner.mT + small * inner)) / gap
        lower = torch.where(head[:, None] & ~head, mixed_t, 0).mT
        square = torch.where(head[:, None] & head, inner, 0)
        return None, outside + u @ (square + upper + lower) @ vh, dv
