"""Exact softmax attention."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor

from softlab import validation
from softlab.core import Cost, Dims, Traits, own_precision, value
from softlab.kernels import Exponential, kernel_cost
from softlab.primitives.causal import of_kept
from softlab.primitives.normalization import average_of_some
from softlab.validation import Positive


@value
class Softmax:
    """out = softmax(scale q k^T) v, through torch's fused attention.

    ``scale``: factor of the scores, positive; None means 1/sqrt(d). ``causal``: query i attends to
    the keys 0 to i, and there are as many; masked tokens are deleted, queries too. Where no key
    takes part, all masked or none given, the output is zeros, as torch has it. Memory is linear
    in n and l where torch's fused kernel runs (CPU, and GPU for the usual head widths). Reference:
    Vaswani et al., arXiv 1706.03762, Eq. 1.
    """

    family: ClassVar = "dense"

    scale: Positive | None = None
    causal: bool = False

    @property
    def traits(self) -> Traits:
        """Exact, row-stochastic, equivariant."""
        traits = Traits(
            exact=True,
            query_equivariant=True,
            key_invariant=True,
            row_stochastic=True,
            nonnegative=True,
            reads="relative scores",
            linear_memory=True,
        )
        return traits.made_causal() if self.causal else traits

    @property
    def target(self) -> Softmax:
        """Itself."""
        return self

    def kernel(self, d: int) -> Exponential:
        """The kernel at head width d, whose rows are normalised."""
        return Exponential(float(d) ** -0.5 if self.scale is None else self.scale)

    def cost(self, dims: Dims) -> Cost:
        """2 n l (d + e) a matrix; causal, n (n + 1) (d + e)."""
        return kernel_cost(dims, dims.e, causal=self.causal)

    @own_precision
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        q, k, v, key_mask = validation.admit(
            q, k, v, key_mask, zeroed=self.causal, nothing=True, scale=self.scale
        )
        if not (q.numel() and k.numel()):
            return q @ k.mT @ v  # a sum over nothing
        kernel = Exponential(self.scale)
        if self.causal:
            return of_kept(partial(kernel.average, causal=True), q, k, v, key_mask)
        return average_of_some(kernel, q, k, v, key_mask)
