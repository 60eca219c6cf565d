"""Exact softmax attention."""

from __future__ import annotations

from torch import Tensor

from softlab import checks
from softlab.core import Cost, Dims, Traits, own_precision, value
from softlab.kernels import Exponential, kernel_cost


@value
class Softmax:
    """out = softmax(scale q k^T) v, through torch's fused attention.

    ``scale``: factor of the scores, positive; None means 1/sqrt(d). Memory is linear in n and l
    where torch's fused kernel runs (CPU, and GPU for the usual head widths). Reference: Vaswani et
    al., arXiv 1706.03762, Eq. 1.
    """

    scale: float | None = None

    def __post_init__(self) -> None:
        Exponential(self.scale)

    @property
    def traits(self) -> Traits:
        """Exact, row-stochastic, equivariant."""
        return Traits(
            exact=True,
            query_equivariant=True,
            key_invariant=True,
            row_stochastic=True,
            nonnegative=True,
            linear_memory=True,
        )

    @property
    def target(self) -> Softmax:
        """Itself."""
        return self

    def kernel(self, d: int) -> Exponential:
        """The kernel at head width d, whose rows are normalised."""
        return Exponential(float(d) ** -0.5 if self.scale is None else self.scale)

    def cost(self, dims: Dims) -> Cost:
        """2 n l (d + e) a matrix."""
        return kernel_cost(dims, dims.e)

    @own_precision
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        q, k, v, key_mask = checks.admit(q, k, v, key_mask)
        return Exponential(self.scale).average(q, k, v, key_mask)
