"""Attention through features: phi(q) (phi(k)^T v), normalised by phi(q) (phi(k)^T 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from softlab.core import budget, recomputed
from softlab.primitives.causal import HELD_NUMBERS, by_halves
from softlab.primitives.normalization import indicator, over
from softlab.primitives.weighted_sums import Sums


def feature_average(a: Tensor, b: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """D^-1 phi(q) (phi(k)^T v) from the logarithms a (..., n, m), b (..., l, m) of the features.

    With c_r = log sum_j exp(b_jr) this is softmax_r(a_ir + c_r) applied to softmax_j(b_jr) v: two
    averages, whose stabilisers cancel exactly and whose degrees are at least one, however large or
    small the features are. ``key_mask`` (..., l) drops keys.
    """
    if key_mask is not None:
        b = b.masked_fill(~key_mask.unsqueeze(-1), -math.inf)
    c = b.logsumexp(-2, keepdim=True)
    gathered = b.softmax(-2).mT @ v
    return (a + c).softmax(-1) @ gathered


def causal_feature_average(a: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """The same over the keys up to each query's own, n = l; finite for any finite logarithms."""
    return by_halves(_meet_logarithms, (a,), (b, v), a.shape[-1]).average()


def _meet_logarithms(of_queries: Sequence[Tensor], of_keys: Sequence[Tensor]) -> Sums:
    (a,), (b, v) = of_queries, of_keys
    # Largest features of these keys, and of each query beside them: the largest term is one.
    top = b.detach().amax(-2, keepdim=True)
    largest = (a.detach() + top).amax(-1, keepdim=True)
    return feature_sums((a + top - largest).exp(), (b - top).exp(), v, largest)


def feature_sums(x: Tensor, y: Tensor, v: Tensor, log_scale: Tensor) -> Sums:
    """Give x y^T v and x y^T 1 for features x (..., s, m), y (..., t, m), the shorter way round.

    A matrix s x t where it is smaller than the sums over keys, m x e: few tokens meet.
    """
    m, e = x.shape[-1], v.shape[-1]
    if y.shape[-2] ** 2 <= m * e:
        scores = x @ y.mT
        return Sums(scores @ v, scores.sum(-1, keepdim=True), log_scale)
    degree = (x * y.sum(-2, keepdim=True)).sum(-1, keepdim=True)
    return Sums(x @ (y.mT @ v), degree, log_scale)


def polynomial_average(
    features: Callable[[Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    held: int,
) -> Tensor:
    """D^-1 phi(q) (phi(k)^T v) for polynomial features, which overflow where tokens are long.

    ``features(x, a)``: those of x (..., s, d) over a^p, p the degree, for any a (..., s, 1) of at
    least 1. a is the length of a query, and of keys the greatest: in the average both cancel.
    ``held``: about how many numbers that takes a token. A block of tokens is formed at a time, and
    again in the backward pass. Where a row sum is not positive, the output is 0.
    """
    of_keys = sizes(k)
    b = of_keys.amax(-2, keepdim=True).expand_as(of_keys)
    # The row sums are one more column of v: their rounding errors are those of the others.
    v = torch.cat((v, indicator(v, key_mask)), -1)

    def gather(k: Tensor, b: Tensor, v: Tensor) -> Tensor:
        """phi(k)^T [v, 1] of a block of keys; masked ones are rows of zeros in [v, 1]."""
        return features(k, b).mT @ v

    def spread(q: Tensor, a: Tensor) -> Tensor:
        """The output of a block of queries."""
        both = features(q, a) @ gathered
        return over(both[..., :-1], both[..., -1:])

    rows = max(1, budget(HELD_NUMBERS, q.device) // (q.shape[:-2].numel() * held))
    gathered = v.new_zeros(())
    for block in zip(*(x.split(rows, -2) for x in (k, b, v)), strict=True):
        gathered = gathered + recomputed(gather, *block)
    pairs = zip(q.split(rows, -2), sizes(q).split(rows, -2), strict=True)
    return torch.cat([recomputed(spread, *pair) for pair in pairs], -2)


def sizes(x: Tensor) -> Tensor:
    """|x| of each token, at least 1, (..., n, 1)."""
    size: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return size.detach().clamp_min(1)


def log_elu(x: Tensor) -> Tensor:
    """log(elu(x) + 1): log(1 + x) for x > 0, else x."""
    return torch.where(x > 0, x.clamp_min(0).log1p(), x)
