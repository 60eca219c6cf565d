"""Linear attention with elu + 1: a replacement of softmax attention, not an approximation."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from softlab.core import Cost, Dims, Traits, attention, own_precision, value, widened
from softlab.primitives.causal import of_kept
from softlab.primitives.feature_maps import causal_feature_average, feature_average, log_elu


@value
class LinearAttention:
    """out_i = sum_j <phi(q_i), phi(k_j)> v_j / sum_j <phi(q_i), phi(k_j)>, phi(x) = elu(x) + 1.

    phi(x) is 1 + x for x > 0 and exp(x) else: positive, so rows are positive and sum to one. It has
    no knob and targets no softmax: it is exact as itself, and a replacement. Linear in n, d and e.
    ``causal``: j runs to i, and there are as many keys as queries; masked tokens are deleted,
    queries too. float16 and bfloat16 are computed in float32.

    Scores grow at most linearly, so no row concentrates on one key as softmax's do. The published
    code adds 1e-6 to each row sum, which pulls the output to 0 where features are small; here
    logarithms of features are averaged exactly, whatever their size. Reference: arXiv 2006.16236,
    Eq. 4-7 (phi in Eq. 7).
    """

    family: ClassVar = "no approximation"

    causal: bool = False

    @property
    def traits(self) -> Traits:
        """Exact as itself, a replacement; row-stochastic and non-negative."""
        traits = Traits(
            exact=True,
            replacement=True,
            query_equivariant=True,
            key_invariant=True,
            row_stochastic=True,
            nonnegative=True,
            linear_memory=True,
        )
        return traits.made_causal() if self.causal else traits

    @property
    def target(self) -> LinearAttention:
        """Itself."""
        return self

    def cost(self, dims: Dims) -> Cost:
        """2 (n + l) d e a matrix, and the exponential of each coordinate.

        Causal, as by the recurrence; by halves it is up to log2(n) / 2 times that.
        """
        tokens = dims.batch * (dims.n + dims.l)
        return Cost(flops=2 * tokens * dims.d * dims.e, kernel_entries=tokens * dims.d)

    @own_precision
    def kernel_matrix(self, q: Tensor, k: Tensor) -> Tensor:
        """Return <phi(q_i), phi(k_j)>, (..., n, l): the quadratic form, dense."""
        phi_q, phi_k = (log_elu(widened(x)).exp() for x in (q, k))
        return (phi_q @ phi_k.mT).to(q.dtype)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        if self.causal:
            return of_kept(self._causal, q, k, v, key_mask)
        a, b = log_elu(q), log_elu(k)
        return feature_average(a, b, v, key_mask)

    def _causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        a, b = log_elu(q), log_elu(k)
        return causal_feature_average(a, b, v)
