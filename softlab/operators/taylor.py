"""Taylor attention: the exponential of a score by its polynomial of degree two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from softlab.core import Cost, Dims, Traits, attention, own_precision, value, widened
from softlab.operators.softmax import Softmax
from softlab.primitives.causal import by_halves, of_kept
from softlab.primitives.feature_maps import feature_sums, polynomial_average, sizes
from softlab.primitives.weighted_sums import Sums
from softlab.validation import Positive


@value
class Taylor:
    """out_i = sum_j p(s_ij) v_j / sum_j p(s_ij), p(s) = 1 + s + s^2 / 2, s = scale <q, k>.

    ``scale``: of the scores, positive; None means 1/sqrt(d). p(s) = ((1 + s)^2 + 1) / 2 >= 1/2, so
    rows are positive and sum to one. With x = sqrt(scale) q, p(s) = <phi(x), phi(y)> for the
    features [1, x_i, x_i x_j (i < j), x_i^2 / sqrt(2)]: 1 + d + d (d + 1) / 2 of them, formed a
    block of tokens at a time. Based lists x_i x_j twice, 1 + d + d^2 features of the same products.
    Cheaper than exact attention where n exceeds about d^2 / 2. ``causal``: j runs to i, and there
    are as many keys as queries; masked tokens are deleted, queries too. float16 and bfloat16 are
    computed in float32.

    The kernel is off by at most |s|^3 exp(|s|) / 6: a good approximation of softmax for |s| below
    1, and none beyond about 2, where p is flat beside the exponential and grows for negative
    scores. Features carry a rounding error of eps |x|^2 |y|^2 where the products of scores cancel;
    where a row sum is lost in it and is not positive, the output is 0.

    Reference: arXiv 2402.18668 (Based), whose feature map is of width d', after a projection.
    """

    family: ClassVar = "features"

    scale: Positive | None = None
    causal: bool = False

    @property
    def traits(self) -> Traits:
        """Row-stochastic and positive."""
        traits = Traits(
            query_equivariant=True,
            key_invariant=True,
            row_stochastic=True,
            nonnegative=True,
            reads="scores",
            linear_memory=True,
        )
        return traits.made_causal() if self.causal else traits

    @property
    def target(self) -> Softmax:
        """Softmax attention of the same scale."""
        return Softmax(self.scale, self.causal)

    def cost(self, dims: Dims) -> Cost:
        """Two products with 1 + d + d (d + 1) / 2 features for each token; no exponential.

        Causal, as by the recurrence; by halves it is up to log2(n) / 2 times that.
        """
        features = _count(dims.d)
        return Cost(flops=2 * dims.batch * (dims.n + dims.l) * features * dims.e)

    @own_precision
    def kernel_matrix(self, q: Tensor, k: Tensor) -> Tensor:
        """Return p(s), (..., n, l), which stands for exp(s); the dense matrix."""
        s = (self.target.kernel(q.shape[-1]).scale or 1.0) * (widened(q) @ widened(k).mT)
        return (1 + s + s.square() / 2).to(q.dtype)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        if self.causal:
            return of_kept(self._causal, q, k, v, key_mask)
        root = math.sqrt(self.target.kernel(q.shape[-1]).scale or 1.0)
        x, y = root * q, root * k
        return polynomial_average(_features, x, y, v, key_mask, _count(x.shape[-1]))

    def _causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        root = math.sqrt(self.target.kernel(q.shape[-1]).scale or 1.0)
        x, y = root * q, root * k
        return by_halves(_meet, (x,), (y, v), _count(x.shape[-1])).average()


def _meet(of_queries: Sequence[Tensor], of_keys: Sequence[Tensor]) -> Sums:
    (q,), (k, v) = of_queries, of_keys
    a, b = sizes(q), sizes(k).amax(-2, keepdim=True)
    log_scale = (2 * b.log()).expand_as(a)
    if k.shape[-2] <= _count(q.shape[-1]):  # scores are fewer than features
        s = (q / a) @ (k / b).mT
        kernel = (1 / a / b).square() + s / a / b + s.square() / 2
        return Sums(kernel @ v, kernel.sum(-1, keepdim=True), log_scale)
    x, y = _features(q, a), _features(k, b.expand(*k.shape[:-1], 1))
    return feature_sums(x, y, v, log_scale)


def _count(d: int) -> int:
    """The number of features."""
    return 1 + d + d * (d + 1) // 2


def _features(x: Tensor, a: Tensor) -> Tensor:
    """[1, x_i, x_i x_j (i < j), x_i^2 / sqrt(2)] / a^2, without forming what overflows."""
    d = x.shape[-1]
    i, j = torch.triu_indices(d, d, device=x.device)
    near = x / a
    factor = torch.ones_like(x[..., :1, i]).masked_fill(i == j, math.sqrt(0.5))
    return torch.cat((1 / a / a, near / a, near[..., i] * near[..., j] * factor), -1)
