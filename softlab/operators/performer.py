"""Performer: softmax attention by positive random features (FAVOR+)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from softlab.core import Cost, Dims, Knob, Traits, attention, own_precision, value, widened
from softlab.features import Orthogonal, Weights
from softlab.operators.softmax import Softmax
from softlab.primitives.causal import of_kept
from softlab.primitives.feature_maps import causal_feature_average, feature_average
from softlab.primitives.normalization import indicator
from softlab.validation import Numbers, OneOf, Positive, Width

ESTIMATORS = ("positive", "hyperbolic")


@value
class Performer:
    """out = D^-1 phi(q) (phi(k)^T v), D = phi(q) phi(k)^T 1, with E[phi(q) phi(k)^T] = exp(scores).

    With x = sqrt(scale) q, and alike for k, and W of rows from N(0, I_d):

    - ``"positive"``: phi(x) = exp(W x - |x|^2 / 2) / sqrt(m), W (m, d);
    - ``"hyperbolic"``: phi(x) = exp(-|x|^2 / 2) [exp(W x), exp(-W x)] / sqrt(m), W (m / 2, d).

    ``features``: their number m, at least 1; even for hyperbolic ones. ``weights``: how W is drawn;
    another seed redraws. ``estimator``: as above. ``scale``: of the scores, positive; None means
    1/sqrt(d). ``eps``: 0, or 1e-15 to 1, see below. ``causal``: sums over keys run to the query's
    own, and there are as many; masked tokens are deleted, queries too; not with eps, which is added
    relative to the largest of all keys. No n x l matrix is formed. float16 and bfloat16 are
    computed in float32.

    The stabilisers exp(-|q|^2 / 2) and of keys feature by feature cancel exactly, so nothing over-
    or underflows and rows sum to one. The kernel's estimate is unbiased, the normalised output is
    not: a ratio of means. The relative variance of an entry, (exp(|x + y|^2) - 1) / m, grows
    exponentially with |x + y|^2: at the norms of trained heads a few features carry each row, and
    the error can exceed that of the mean of v. Ask ``kernel_variance``.

    The package performer-pytorch adds ``eps`` = 1e-4 to exp(W x - |x|^2 / 2 - max W x), the maximum
    over a row of queries and over all keys, for its numerics; where |x|^2 / 2 is not small, eps is
    then no longer small beside the features, and the output tends to the mean of v. ``eps`` > 0
    gives those numbers (with weights alike), the maxima being of each matrix, of the keys that take
    part, and differentiated, where the package holds them constant; its early releases take one
    maximum of a whole batch. It masks values alone, so that masked keys still count in D; by eps
    and that maximum its causal form sees later keys. Its rows of W are those of a QR with arbitrary
    signs, and no uniform directions: its kernel is biased, by a fifth at d = 8 and |x + y| = 1 in
    the direction of (1, ..., 1).

    Reference: arXiv 2009.14794, Eq. 5-8, Lemma 1 (both estimators), Lemma 2 (their variances).
    """

    family: ClassVar = "features"
    knob: ClassVar = Knob("features")

    features: Width = 64
    weights: Weights = Orthogonal()
    estimator: Annotated[str, OneOf(*ESTIMATORS)] = "positive"
    scale: Positive | None = None
    eps: Annotated[
        float,
        Numbers(
            1e-15,
            1.0,
            zero=True,
            says="; its square must fit float32 and stay small beside features of 1, so give 0 or "
            "1e-15 to 1.",
        ),
    ] = 0.0
    causal: bool = False

    def __post_init__(self) -> None:
        if self.estimator == "hyperbolic" and self.features % 2:
            msg = (
                f"Performer.features is {self.features}; hyperbolic features come in pairs, so "
                f"give an even number such as {self.features + 1}, or estimator='positive'."
            )
            raise ValueError(msg)
        if self.eps and self.causal:
            msg = (
                f"Performer.eps is {self.eps}, relative to the largest feature of all keys, "
                "later ones included; with causal=True give eps=0."
            )
            raise ValueError(msg)

    @property
    def traits(self) -> Traits:
        """Row-stochastic and non-negative; unbiased before it is normalised, for normal weights."""
        unbiased = self.weights.normal and self.eps == 0
        known = "equal" if self.weights.independent else "bounded" * self.weights.orthogonal
        traits = Traits(
            query_equivariant=True,
            key_invariant=True,
            row_stochastic=True,
            nonnegative=True,
            low_rank=True,
            unbiased=unbiased,
            variance=known if unbiased else "",
            linear_memory=True,
        )
        return traits.made_causal() if self.causal else traits

    @property
    def target(self) -> Softmax:
        """Softmax attention of the same scale."""
        return Softmax(self.scale, self.causal)

    @property
    def _draws(self) -> int:
        return self.features // 2 if self.estimator == "hyperbolic" else self.features

    def cost(self, dims: Dims) -> Cost:
        """Projections and two products for each token: 2 (n + l) (draws d + m e) a matrix.

        Causal, as by the recurrence; by halves it is up to log2(n) / 2 times that.
        """
        tokens = dims.batch * (dims.n + dims.l)
        return Cost(
            flops=2 * tokens * (self._draws * dims.d + self.features * dims.e),
            kernel_entries=tokens * self.features,
        )

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """W x and -W x where it takes part, (..., n, m); and |x|^2 / 2, (..., n, 1)."""
        scale = self.target.kernel(x.shape[-1]).scale or 1.0
        w = math.sqrt(scale) * self.weights(self._draws, x.shape[-1])
        projected = x @ w.to(x).mT
        if self.estimator == "hyperbolic":
            projected = torch.cat((projected, -projected), -1)
        return projected, scale * x.square().sum(-1, keepdim=True) / 2

    def log_features(self, x: Tensor) -> Tensor:
        """Return log phi(x), (..., n, m), of queries or keys x (..., n, d), without ``eps``."""
        projected, half = self._projected(x)
        return projected - half - math.log(self.features) / 2

    @own_precision
    def feature_map(self, x: Tensor) -> Tensor:
        """Return phi(x), (..., n, m), of queries or keys x (..., n, d), without ``eps``.

        Not stabilised: over- and underflows where exp(W x - |x|^2 / 2) does.
        """
        projected, half = self._projected(widened(x))
        return ((projected - half).exp() / math.sqrt(self.features)).to(x.dtype)

    @own_precision
    def kernel_matrix(self, q: Tensor, k: Tensor) -> Tensor:
        """Return phi(q) phi(k)^T, (..., n, l): the unbiased estimate of exp(scale <q, k>)."""
        phi_q, phi_k = self.feature_map(widened(q)), self.feature_map(widened(k))
        return (phi_q @ phi_k.mT).to(q.dtype)

    @own_precision
    def kernel_variance(self, q: Tensor, k: Tensor) -> Tensor:
        """The variance of ``kernel_matrix`` over independent weights, (..., n, l).

        With z = x + y and K = exp(<x, y>): K^2 (exp(|z|^2) - 1) / m, and for hyperbolic features
        that times 1 - exp(-|z|^2). arXiv 2009.14794, Lemma 2, there in the number of draws. For
        orthogonal weights it is an upper bound: Theorem 2 and its proof, which needs no more than
        non-negative Taylor coefficients.
        """
        kernel = self.target.kernel(q.shape[-1])
        scale = kernel.scale or 1.0
        squares = scale * (q.unsqueeze(-2) + k.unsqueeze(-3)).square().sum(-1)
        out = kernel.matrix(q, k).square() * squares.expm1() / self.features
        return out * -(-squares).expm1() if self.estimator == "hyperbolic" else out

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        if self.causal:
            return of_kept(self._causal, q, k, v, key_mask)
        (a, half_q), (b, half_k) = self._projected(q), self._projected(k)
        if self.eps == 0:
            b = b - half_k
            return feature_average(a, b, v, key_mask)
        kept = indicator(v, key_mask)
        among = b if key_mask is None else b.masked_fill(~key_mask.unsqueeze(-1), -math.inf)
        phi_q = (a - half_q - a.amax(-1, keepdim=True)).exp() + self.eps
        # A masked key may lie above the maximum of the others: 0 there before exp, as after.
        log_k = (b - half_k - among.amax((-2, -1), keepdim=True)) * kept
        phi_k = (log_k.exp() + self.eps) * kept
        degree = (phi_q * phi_k.sum(-2, keepdim=True)).sum(-1, keepdim=True)
        return phi_q @ (phi_k.mT @ v) / degree

    def _causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (a, _), (b, half_k) = self._projected(q), self._projected(k)
        return causal_feature_average(a, b - half_k, v)
