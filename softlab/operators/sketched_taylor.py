"""Sketched Taylor attention: the exponential by a polynomial of any degree, its powers by signs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from softlab.core import (
    Cost,
    Dims,
    Knob,
    Stream,
    Traits,
    attention,
    own_precision,
    placed,
    value,
    widened,
)
from softlab.operators.softmax import Softmax
from softlab.primitives.causal import by_halves, of_kept
from softlab.primitives.feature_maps import feature_sums, polynomial_average, sizes
from softlab.primitives.weighted_sums import Sums
from softlab.validation import Integers, Positive, Seed, Width


@value
class SketchedTaylor:
    """out_i = sum_j K_ij v_j / sum_j K_ij, E[K] = p(s) = sum_{r <= p} s^r / r!, s = scale <q, k>.

    Powers of degree 0 and 1 are exact, by the features 1 and x = sqrt(scale) q. For r >= 2 the
    features are prod_{t <= r} <w_tj, x> / sqrt(r! m), j = 1, ..., m, with vectors w of independent
    signs: 1 + d + (p - 1) m features in all, where exact ones would be of the order of d^p / p!.
    Degrees share their signs, so that each needs one more product.

    ``features``: m for each degree, at least 1. ``degree``: p, 2 to 12. ``scale``: of the scores,
    positive; None means 1/sqrt(d). ``seed``: integer >= 0, of the signs. ``causal``: j runs to i,
    and there are as many keys as queries; masked tokens are deleted, queries too. Features are
    formed a block of tokens at a time. float16 and bfloat16 are computed in float32.

    Two errors add up. p is off by at most |s|^(p + 1) exp(max(s, 0)) / (p + 1)!, so a higher degree
    serves larger scores. K is off by a standard deviation of about |x|^2 |y|^2 / (2 sqrt(m)) for
    short x and y, and of up to exp(sqrt(3) |x| |y|) / sqrt(m) for long ones, however small the
    scores are (``kernel_variance``). It is good for |x| |y| of about 1, where it beats as many
    random exponentials. On this package's recorded heads, with products from 4 up, degree 4 errs
    more than the mean of v, with 256 features too. Entries and row sums can be negative; where a
    row sum is not positive, the output is 0, so rows need not sum to one, and near such rows it is
    large and wrong.

    PolySketchFormer (arXiv 2310.01655) squares sketches, which makes entries non-negative and
    biased, and aims at a power of s instead of at softmax.

    Reference: Kar and Karnick, arXiv 1201.6530 (products of signs); they draw the degree of each
    feature, here each degree has as many. The variance is derived in ``kernel_variance``.
    """

    family: ClassVar = "features"
    knob: ClassVar = Knob("features", degree=2)

    features: Width = 64
    degree: Annotated[
        int,
        Integers(
            2,
            12,
            says="; give 2 to 12: nothing is sketched below, and features beyond overflow float32.",
        ),
    ] = 4
    scale: Positive | None = None
    seed: Seed = 0
    causal: bool = False

    @property
    def traits(self) -> Traits:
        """Its kernel's variance is known; entries can be negative."""
        traits = Traits(
            query_equivariant=True, key_invariant=True, variance="equal", linear_memory=True
        )
        return traits.made_causal() if self.causal else traits

    @property
    def target(self) -> Softmax:
        """Softmax attention of the same scale."""
        return Softmax(self.scale, self.causal)

    def signs(self, d: int) -> Tensor:
        """The vectors w, (degree, features, d), of 1 and -1 in float64 on the CPU."""
        return Stream(self.seed, "SketchedTaylor").signs(self.degree, self.features, d)

    def cost(self, dims: Dims) -> Cost:
        """Products with p m vectors of signs, and two with 1 + d + (p - 1) m features, for a token.

        Causal, as by the recurrence; by halves it is up to log2(n) / 2 times that.
        """
        tokens = dims.batch * (dims.n + dims.l)
        projected = self.degree * self.features * dims.d
        return Cost(flops=2 * tokens * (projected + self._count(dims.d) * dims.e))

    @own_precision
    def kernel_matrix(self, q: Tensor, k: Tensor) -> Tensor:
        """Return K, (..., n, l): the unbiased estimate of ``polynomial(q, k)``."""
        x, y = self._scaled(widened(q)), self._scaled(widened(k))
        one = torch.ones_like(x[..., :1]), torch.ones_like(y[..., :1])
        return (self._features(x, one[0]) @ self._features(y, one[1]).mT).to(q.dtype)

    @own_precision
    def polynomial(self, q: Tensor, k: Tensor) -> Tensor:
        """Return p(s), (..., n, l), which stands for exp(s)."""
        s = self._scaled(widened(q)) @ self._scaled(widened(k)).mT
        out = torch.ones_like(s)
        for r in range(self.degree, 0, -1):
            out = 1 + out * s / r
        return out.to(q.dtype)

    @own_precision
    def kernel_variance(self, q: Tensor, k: Tensor) -> Tensor:
        """The variance of ``kernel_matrix`` over seeds, (..., n, l).

        For a vector w of signs E[<w, x> <w, y>] = s and E[<w, x>^2 <w, y>^2] = c = |x|^2 |y|^2 +
        2 (s^2 - sum_i x_i^2 y_i^2). Degrees r <= t share r vectors: their covariance over m is
        c^r s^(t - r) - s^(r + t), over r! t!.
        """
        x, y = self._scaled(q), self._scaled(k)
        s = x @ y.mT
        norms = x.square().sum(-1, keepdim=True) * y.square().sum(-1).unsqueeze(-2)
        c = norms + 2 * (s.square() - x.square() @ y.square().mT)
        out = torch.zeros_like(s)
        for r, t in product(range(2, self.degree + 1), repeat=2):
            shared = c ** min(r, t) * s ** abs(t - r) - s ** (r + t)
            out = out + shared / (math.factorial(r) * math.factorial(t))
        return out / self.features

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        if self.causal:
            return of_kept(self._causal, q, k, v, key_mask)
        x, y = self._scaled(q), self._scaled(k)
        held = self._count(q.shape[-1]) + self.degree * self.features
        return polynomial_average(self._features, x, y, v, key_mask, held)

    def _causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = self._scaled(q), self._scaled(k)
        found = by_halves(self._meet, (q,), (k, v), self._count(q.shape[-1]))
        return found.average()

    def _meet(self, of_queries: Sequence[Tensor], of_keys: Sequence[Tensor]) -> Sums:
        (q,), (k, v) = of_queries, of_keys
        a, b = sizes(q), sizes(k).amax(-2, keepdim=True)
        phi_q, phi_k = self._features(q, a), self._features(k, b.expand(*k.shape[:-1], 1))
        return feature_sums(phi_q, phi_k, v, (self.degree * b.log()).expand_as(a))

    def _count(self, d: int) -> int:
        """The number of features."""
        return 1 + d + (self.degree - 1) * self.features

    def _scaled(self, x: Tensor) -> Tensor:
        return math.sqrt(self.target.kernel(x.shape[-1]).scale or 1.0) * x

    def _features(self, x: Tensor, a: Tensor) -> Tensor:
        """The features of x (..., n, d) over a^p, without forming what overflows; a >= 1."""
        near, p = x / a, self.degree
        w = placed(type(self).signs, self, x.shape[-1], device=x.device, dtype=x.dtype)
        found = [a ** (-p), near * a ** (1 - p)]
        power = near @ w[0].mT
        for r in range(2, p + 1):
            power = power * (near @ w[r - 1].mT)
            found.append(power * a ** (r - p) / math.sqrt(math.factorial(r) * self.features))
        return torch.cat(found, -1)
