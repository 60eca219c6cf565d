"""cosFormer: linear attention with a cosine of distance; a replacement, not an approximation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from softlab.core import Cost, Dims, Traits, attention, own_precision, value, widened
from softlab.primitives.causal import by_halves, of_kept
from softlab.primitives.feature_maps import feature_sums
from softlab.primitives.normalization import indicator, over
from softlab.primitives.weighted_sums import Sums


@value
class CosFormer:
    """out_i = sum_j A_ij v_j / sum_j A_ij, A_ij = <relu q_i, relu k_j> cos(pi (i - j) / (2 M)).

    M = max(n, l). The cosine of a difference is cos cos + sin sin of positions, so phi(x_i) =
    [relu(x_i) cos(pi i / 2 M), relu(x_i) sin(pi i / 2 M)] and the cost is linear in n. No knob; it
    targets no softmax: it is exact as itself, and a replacement. Positions matter, so permuting
    tokens changes the output. Where ``key_mask`` drops keys the others close up: position j and the
    number l count the keys that take part, in each matrix, so that masking equals deletion. float16
    and bfloat16 are computed in float32.

    Fails where a query has no positive coordinate, or shares none with any key: its row of A is
    zero and so is its output. The published code clamps row sums to at least 1e-6, which also
    shrinks the output of small q and k; here the common factors of each query and of all keys
    cancel. ``causal``: j runs to i, and there are as many keys as queries; masked tokens are
    deleted, queries too. M is still the number of all tokens, the one thing that an output knows of
    later ones. Reference: arXiv 2202.08791.
    """

    family: ClassVar = "no approximation"

    causal: bool = False

    @property
    def traits(self) -> Traits:
        """Exact as itself, a replacement; non-negative; rows sum to one or to zero."""
        traits = Traits(exact=True, replacement=True, nonnegative=True, linear_memory=True)
        return traits.made_causal() if self.causal else traits

    @property
    def target(self) -> CosFormer:
        """Itself."""
        return self

    def cost(self, dims: Dims) -> Cost:
        """Two products with 2 d features for each token; no exponential.

        Causal, as by the recurrence; by halves it is up to log2(n) / 2 times that.
        """
        return Cost(flops=4 * dims.batch * (dims.n + dims.l) * dims.d * dims.e)

    @own_precision
    def kernel_matrix(self, q: Tensor, k: Tensor) -> Tensor:
        """Return A, (..., n, l): the quadratic form, dense."""
        n, l = q.shape[-2], k.shape[-2]
        i, j = (torch.arange(x, device=q.device) for x in (n, l))
        apart = i[:, None] - j
        decay = (math.pi / 2 / max(n, l) * apart.double()).cos()
        scores = widened(q).relu() @ widened(k).relu().mT
        return (scores * decay.to(scores.dtype)).to(q.dtype)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        if self.causal:
            longest = indicator(v, key_mask).sum(-2, keepdim=True)
            return of_kept(partial(_causal, longest=longest), q, k, v, key_mask)
        q, k = q.relu(), k.relu()
        # The size of a query and of all keys cancels: divided out, nothing over- or underflows.
        q = q / _positive(q.detach().amax(-1, keepdim=True))
        k = k / _positive(k.detach().amax((-2, -1), keepdim=True))
        kept = indicator(v, key_mask)
        ordinal = kept.cumsum(-2) - kept
        longest = kept.sum(-2, keepdim=True).clamp_min(q.shape[-2])
        at = torch.arange(q.shape[-2], device=q.device).to(q).unsqueeze(-1)
        phi_q, phi_k = _turned(q, at / longest), _turned(k, ordinal / longest) * kept
        degree = (phi_q * phi_k.sum(-2, keepdim=True)).sum(-1, keepdim=True)
        return over(phi_q @ (phi_k.mT @ v), degree)


def _causal(q: Tensor, k: Tensor, v: Tensor, longest: Tensor) -> Tensor:
    x, y = q.relu(), k.relu()
    x = x / _positive(x.detach().amax(-1, keepdim=True))
    at = torch.arange(q.shape[-2], device=q.device).to(x).unsqueeze(-1) / longest
    return by_halves(_meet, (x, at), (y, at, v), 2 * x.shape[-1]).average()


def _meet(of_queries: Sequence[Tensor], of_keys: Sequence[Tensor]) -> Sums:
    (x, at), (y, of_key, v) = of_queries, of_keys
    size = _positive(y.detach().amax((-2, -1), keepdim=True))
    log_scale = size.log().expand_as(x[..., :1])
    return feature_sums(_turned(x, at), _turned(y / size, of_key), v, log_scale)


def _turned(x: Tensor, share: Tensor) -> Tensor:
    """[x cos, x sin] of a right angle's share."""
    angle = math.pi / 2 * share
    return torch.cat((x * angle.cos(), x * angle.sin()), -1)


def _positive(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1)
