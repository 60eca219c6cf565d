"""Performer: softmax attention by positive random features (FAVOR+)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, Dims, Knob, Traits, attention, own_precision, placed, value, widened
from softlab.features import Orthogonal, Weights
from softlab.operators.softmax import Softmax
from softlab.primitives.causal import of_kept
from softlab.primitives.draws_intervals import Interval, answered, from_draws, of_weights, residuals
from softlab.primitives.feature_maps import causal_feature_average, feature_average
from softlab.primitives.normalization import indicator
from softlab.validation import Numbers, OneOf, Positive, Width

ESTIMATORS = ("positive", "hyperbolic")
LEAST_RHO = 1e-6


@value
class Performer:
    """out = D^-1 phi(q) (phi(k)^T v), D = phi(q) phi(k)^T 1, with E[phi(q) phi(k)^T] = exp(scores).

    With x = sqrt(scale) q, and alike for k, and W of rows from N(0, I_d):

    - ``"positive"``: phi(x) = exp(W x - |x|^2 / 2) / sqrt(m), W (m, d);
    - ``"hyperbolic"``: phi(x) = exp(-|x|^2 / 2) [exp(W x), exp(-W x)] / sqrt(m), W (m / 2, d);
    - ``"optimal"``: phi(x) = a^(d/4) exp(A |w|^2 + sqrt(a) W x - |x|^2 / 2) / sqrt(m), W (m, d), w
      its rows, A = (1 - 1 / rho) / 8 and a = 1 - 4 A.

    ``features``: their number m, at least 1; even for hyperbolic ones. ``weights``: how W is drawn;
    another seed redraws. ``estimator``: as above. ``scale``: of the scores, positive; None means
    1/sqrt(d). ``eps``: 0, or 1e-15 to 1, see below. ``causal``: sums over keys run to the query's
    own, and there are as many; masked tokens are deleted, queries too; not with eps, which is added
    relative to the largest of all keys. ``rho``: of the optimal estimator, 1e-6 to 1; None takes
    the best one for the tokens of each matrix, see ``best_rho``, of which later ones are a part, so
    that with causal a number is wanted. No n x l matrix is formed. float16 and bfloat16 are
    computed in float32.

    The stabilisers exp(-|q|^2 / 2) and of keys feature by feature cancel exactly, so nothing over-
    or underflows and rows sum to one. The kernel's estimate is unbiased, the normalised output is
    not: a ratio of means. The relative variance of an entry, (exp(|x + y|^2) - 1) / m, grows
    exponentially with |x + y|^2: at the norms of trained heads a few features carry each row, and
    the error can exceed that of the mean of v. Ask ``kernel_variance``. Of the optimal estimator
    (FAVOR++) it is ((1 + rho)^2 / (4 rho))^(d/2) exp(rho |x + y|^2) - 1 over m: positive features
    are those of rho = 1, smaller values give bounded features. With the best rho the mean over all
    pairs of the logarithm of the second moment is never above that of rho = 1; single entries of
    small |x + y| are worse, at x = -y without bound as rho falls. What it gains are orders of
    magnitude at long tokens, and what is left there grows exponentially still.

    The package performer-pytorch adds ``eps`` = 1e-4 to exp(W x - |x|^2 / 2 - max W x), the maximum
    over a row of queries and over all keys, for its numerics; where |x|^2 / 2 is not small, eps is
    then no longer small beside the features, and the output tends to the mean of v. ``eps`` > 0
    gives those numbers (with weights alike), the maxima being of each matrix, of the keys that take
    part, and differentiated, where the package holds them constant; its early releases take one
    maximum of a whole batch. It masks values alone, so that masked keys still count in D; by eps
    and that maximum its causal form sees later keys. Its rows of W are those of a QR with arbitrary
    signs, and no uniform directions: its kernel is biased, by a fifth at d = 8 and |x + y| = 1 in
    the direction of (1, ..., 1).

    Reference: arXiv 2009.14794, Eq. 5-8, Lemma 1 (both estimators), Lemma 2 (their variances);
    Likhosherstov et al., arXiv 2205.15317 (the optimal one).
    """

    family: ClassVar = "features"
    knob: ClassVar = Knob("features")

    features: Width = 64
    weights: Weights = Orthogonal()
    estimator: Annotated[str, OneOf(*ESTIMATORS, "optimal")] = "positive"
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
    rho: (
        Annotated[float, Numbers(LEAST_RHO, 1.0, says="; give a number from 1e-6 to 1.")] | None
    ) = None

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
        optimal = self.estimator == "optimal"
        if self.rho is not None and not optimal:
            msg = (
                f"Performer.rho is {self.rho}, and belongs to estimator='optimal'; with "
                f"{self.estimator!r} give rho=None."
            )
            raise ValueError(msg)
        if optimal and self.eps:
            msg = (
                f"Performer.eps is {self.eps}, of the package performer-pytorch, which has no "
                "optimal features; with estimator='optimal' give eps=0."
            )
            raise ValueError(msg)
        if optimal and self.causal and self.rho is None:
            msg = (
                "Performer.rho is None, the best for all tokens, later ones included; with "
                "causal=True give a number, such as best_rho says for tokens like yours."
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
            draws="features" if self._counted else "",
        )
        return traits.made_causal() if self.causal else traits

    @property
    def target(self) -> Softmax:
        """Softmax attention of the same scale."""
        return Softmax(self.scale, self.causal)

    @property
    def _counted(self) -> bool:
        """Whether each feature is a draw by itself, or correlates so that the mean errs less."""
        apart = self.weights.independent or self.weights.orthogonal
        return self.estimator == "positive" and self.eps == 0 and not self.causal and apart

    @answered
    def interval(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, confidence: float
    ) -> Interval:
        """By how much each row errs, with stated odds over the draws of W; positive features.

        A feature r is a draw with D_r = phi_r(q) sum_j phi_r(k_j) and the value g_r, the average of
        v under phi_r(k): ``primitives.draws_intervals``. Features are lognormal: at the norms of
        trained heads most rows have no end, since no number of draws that one can afford meets the
        tail that holds their mean. Orthogonal features err less than independent ones, of which
        the interval is.

        Args:
            q: queries (..., n, d).
            k: keys (..., l, d).
            v: values (..., l, e).
            key_mask: boolean, broadcastable to (..., l).
            confidence: 0.8 to below 1.
        """
        a, (b, half) = self._projected(q, None)[0], self._projected(k, None)
        b = b - half
        if key_mask is not None:
            b = b.masked_fill(~key_mask.unsqueeze(-1), -math.inf)
        logs = a + b.logsumexp(-2, keepdim=True)
        p, g = logs.softmax(-1), b.softmax(-2).mT @ v
        spread = logs.var(-1) if self.features > 1 else torch.zeros_like(logs[..., 0])
        return from_draws(residuals(p, g, p @ g), of_weights(p), spread, confidence)

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

    @own_precision
    def best_rho(self, q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Return the rho of the least mean logarithm of a second moment, (..., 1, 1).

        Of all pairs of q (..., n, d) and k (..., l, d), with f the mean of |x + y|^2 over them:
        rho = (sqrt((2 f + d)^2 + 8 f d) - 2 f - d) / (4 f), and 1 for f = 0. Takes no pair apart.
        """
        q, k, _, key_mask = validation.admit(q, k, k, key_mask, scale=self.scale)
        return self._best_rho(widened(q), widened(k), key_mask).to(q.dtype)

    def _best_rho(self, q: Tensor, k: Tensor, key_mask: Tensor | None) -> Tensor:
        scale = self.target.kernel(q.shape[-1]).scale or 1.0
        weight = indicator(k, key_mask)
        weight = weight / weight.sum(-2, keepdim=True)
        both = (q.mean(-2, keepdim=True) * (weight * k).sum(-2, keepdim=True)).sum(-1, keepdim=True)
        squares = q.square().mean(-2, keepdim=True) + (weight * k.square()).sum(-2, keepdim=True)
        f = scale * (squares.mean(-1, keepdim=True) + 2 * both / q.shape[-1])  # over d
        # The quadratic formula without a difference of like numbers, nor a square of f.
        inner, root = 2 * f + 3, math.sqrt(8)
        return 2 / ((inner - root).sqrt() * (inner + root).sqrt() + 2 * f + 1)

    def _rho(self, q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor | None:
        """The rho of the features; None where they are no optimal ones."""
        if self.estimator != "optimal":
            return None
        if self.rho is None:
            return self._best_rho(q, k, key_mask)
        return torch.full_like(q[..., :1, :1], self.rho)

    def _projected(self, x: Tensor, rho: Tensor | None) -> tuple[Tensor, Tensor]:
        """The logarithms of sqrt(m) phi(x), (..., n, m), plus |x|^2 / 2; and that, (..., n, 1)."""
        scale = self.target.kernel(x.shape[-1]).scale or 1.0
        w = placed(type(self)._scaled, self, x.shape[-1], device=x.device, dtype=x.dtype)
        projected = x @ w.mT
        if self.estimator == "hyperbolic":
            projected = torch.cat((projected, -projected), -1)
        elif rho is not None:
            a = (1 + 1 / rho) / 2
            drawn = self.weights, self._draws, x.shape[-1]
            squares = placed(_squares, *drawn, device=x.device, dtype=x.dtype)
            shift = a.log() * (x.shape[-1] / 4) - (1 / rho - 1) / 8 * squares
            projected = a.sqrt() * projected + shift
        return projected, scale * x.square().sum(-1, keepdim=True) / 2

    def _alone(self, x: Tensor) -> Tensor | None:
        """The rho of features of some tokens, of which the others are not known."""
        if self.estimator == "optimal" and self.rho is None:
            msg = (
                f"{self!r} has the rho that is best for queries and keys together, so that either "
                "alone has no features; give rho a number, or ask kernel_matrix(q, k)."
            )
            raise ValueError(msg)
        return self._rho(x, x)

    def _scaled(self, d: int) -> Tensor:
        """The weights for points whose products are to be multiplied by the scale."""
        return math.sqrt(self.target.kernel(d).scale or 1.0) * self.weights(self._draws, d)

    def log_features(self, x: Tensor) -> Tensor:
        """Return log phi(x), (..., n, m), of queries or keys x (..., n, d), without ``eps``."""
        return self._log_features(x, self._alone(x))

    def _log_features(self, x: Tensor, rho: Tensor | None) -> Tensor:
        projected, half = self._projected(x, rho)
        return projected - half - math.log(self.features) / 2

    @own_precision
    def feature_map(self, x: Tensor) -> Tensor:
        """Return phi(x), (..., n, m), of queries or keys x (..., n, d), without ``eps``.

        Not stabilised: over- and underflows where exp(W x - |x|^2 / 2) does. Raises ``ValueError``
        for the optimal estimator without a number for rho.
        """
        wide = widened(x)
        return self._feature_map(wide, self._alone(wide)).to(x.dtype)

    def _feature_map(self, x: Tensor, rho: Tensor | None) -> Tensor:
        projected, half = self._projected(x, rho)
        return (projected - half).exp() / math.sqrt(self.features)

    @own_precision
    def kernel_matrix(self, q: Tensor, k: Tensor) -> Tensor:
        """Return phi(q) phi(k)^T, (..., n, l): the unbiased estimate of exp(scale <q, k>)."""
        x, y = widened(q), widened(k)
        rho = self._rho(x, y)
        return (self._feature_map(x, rho) @ self._feature_map(y, rho).mT).to(q.dtype)

    @own_precision
    def kernel_variance(self, q: Tensor, k: Tensor) -> Tensor:
        """The variance of ``kernel_matrix`` over independent weights, (..., n, l).

        With z = x + y and K = exp(<x, y>): K^2 (exp(|z|^2) - 1) / m, and for hyperbolic features
        that times 1 - exp(-|z|^2). arXiv 2009.14794, Lemma 2, there in the number of draws. For
        optimal features K^2 (((1 + rho)^2 / (4 rho))^(d/2) exp(rho |z|^2) - 1) / m. For orthogonal
        weights it is an upper bound: Theorem 2 and its proof, which needs no more than non-negative
        Taylor coefficients in the directions.
        """
        kernel = self.target.kernel(q.shape[-1])
        scale = kernel.scale or 1.0
        squares = scale * (q.unsqueeze(-2) + k.unsqueeze(-3)).square().sum(-1)
        rho = self._rho(q, k)
        if rho is not None:
            squares = rho * squares + q.shape[-1] / 2 * ((1 + rho).square() / (4 * rho)).log()
        out = kernel.matrix(q, k).square() * squares.expm1() / self.features
        return out * -(-squares).expm1() if self.estimator == "hyperbolic" else out

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        if self.causal:
            return of_kept(self._causal, q, k, v, key_mask)
        rho = self._rho(q, k, key_mask)
        (a, half_q), (b, half_k) = self._projected(q, rho), self._projected(k, rho)
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
        rho = self._rho(q, k)
        (a, _), (b, half_k) = self._projected(q, rho), self._projected(k, rho)
        return causal_feature_average(a, b - half_k, v)


def _squares(weights: Weights, m: int, d: int) -> Tensor:
    """The squared length of each of the weights, (m,)."""
    return weights(m, d).square().sum(-1)
