"""Exact Gaussian attention, the target of SOFT."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, Dims, Traits, own_precision, value, widened
from softlab.kernels import Gaussian, kernel_cost
from softlab.primitives.causal import of_kept
from softlab.primitives.normalization import NORMALIZATIONS, average_of_some, indicator, over_root
from softlab.validation import Bandwidth, OneOf


@value
class GaussianAttention:
    """out = S v with S_ij = exp(-|q_i - k_j|^2 / (2 bandwidth^2)), normalised or not.

    ``bandwidth``: positive; None means SOFT's d**0.25, so that bandwidth^2 = sqrt(d).
    ``normalization``: ``"none"`` S; ``"row"`` D^-1 S; ``"symmetric"`` D^-1/2 S D^-1/2 with D the
    row sums. The degree of a point, query or key, is its kernel sum over the keys that take part,
    which for q = k is the row sum, and gives cross-attention and masks a meaning. Where a degree
    underflows to zero its D^-1/2 is taken as 0. ``causal``: query i attends to the keys 0 to i, and
    there are as many; masked tokens are deleted, queries too. Where no key takes part, all masked
    or none given, the output is zeros. ``causal`` is not for symmetric normalisation, where the
    degree of a key would be another one for every query.

    Exact in memory linear in n and l. With untied q and k the kernel can underflow, or concentrate
    on one key: look at the row sums. Reference: arXiv 2110.11945, Eq. 4-5; symmetric
    normalisation: abstract of arXiv 2207.03341.
    """

    family: ClassVar = "dense"

    bandwidth: Bandwidth | None = None
    normalization: Annotated[str, OneOf(*NORMALIZATIONS)] = "none"
    causal: bool = False

    def __post_init__(self) -> None:
        if self.causal and self.normalization == "symmetric":
            msg = (
                "GaussianAttention.normalization is 'symmetric', whose key degrees depend on later "
                "tokens; with causal=True give 'none' or 'row'."
            )
            raise ValueError(msg)

    @property
    def traits(self) -> Traits:
        """Exact and non-negative; symmetric and PSD unless row-normalised."""
        by_row = self.normalization == "row"
        traits = Traits(
            exact=True,
            query_equivariant=True,
            key_invariant=True,
            row_stochastic=by_row,
            nonnegative=True,
            symmetric=not by_row,
            psd=not by_row,
            reads="distances",
            reciprocal=self.normalization == "none",
            linear_memory=True,
        )
        return traits.made_causal() if self.causal else traits

    @property
    def target(self) -> GaussianAttention:
        """Itself."""
        return self

    def kernel(self, d: int) -> Gaussian:
        """The kernel at head width d."""
        return Gaussian(float(d) ** 0.25 if self.bandwidth is None else self.bandwidth)

    def cost(self, dims: Dims) -> Cost:
        """2 n l (d + e) a matrix; symmetric: one more column, and the degrees of the keys."""
        if self.normalization != "symmetric":
            return kernel_cost(dims, dims.e, causal=self.causal)
        among_keys = dataclasses.replace(dims, n=dims.l)
        return kernel_cost(dims, dims.e + 1) + kernel_cost(among_keys, 1)

    @own_precision
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        q, k, v, key_mask = validation.admit(q, k, v, key_mask, nothing=True)
        if not (q.numel() and k.numel()):
            return q @ k.mT @ v  # a sum over nothing
        kernel = self.kernel(q.shape[-1])
        if self.causal:
            call = kernel.average if self.normalization == "row" else kernel.apply
            return of_kept(partial(call, causal=True), q, k, v, key_mask)
        if self.normalization == "none":
            return kernel.apply(q, k, v)  # masked values are zero, so masked keys add nothing
        if self.normalization == "row":
            return average_of_some(kernel, q, k, v, key_mask)
        dtype = v.dtype
        q, k, v = widened(q), widened(k), widened(v)  # or the degrees are rounded on the way
        ones = indicator(v, key_mask)
        # A masked key, which adds nothing, may be far from all others: its degree is nobody's.
        scaled = over_root(v, torch.where(ones > 0, kernel.apply(k, k, ones), 1))
        both = kernel.apply(q, k, torch.cat((scaled, ones), -1))
        return over_root(both[..., :-1], both[..., -1:]).to(dtype)
