"""The control that does nothing clever: every output is the mean of the values."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from softlab.core import Cost, Dims, Operator, Traits, attention, value
from softlab.operators.softmax import Softmax
from softlab.primitives.causal import of_kept
from softlab.primitives.normalization import indicator


@value
class Uniform:
    """out_i = mean of v over the keys that take part; the floor of skill for every method.

    ``target``: the exact operator that it stands beside; beside a causal one the mean is over the
    keys 0 to i, and else it does not change the output.
    """

    family: ClassVar = "no approximation"

    target: Operator = Softmax()

    @property
    def traits(self) -> Traits:
        """Equivariant and row-stochastic, and nothing learnt from q and k."""
        traits = Traits(
            query_equivariant=True,
            key_invariant=True,
            row_stochastic=True,
            nonnegative=True,
            symmetric=True,
            psd=True,
            blind=True,
            linear_memory=True,
        )
        return traits.made_causal() if self.target.traits.causal else traits

    def cost(self, dims: Dims) -> Cost:  # noqa: ARG002  the protocol's signature
        """No product and no kernel."""
        return Cost(flops=0)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        if self.target.traits.causal:
            return of_kept(_running_mean, q, k, v, key_mask)
        mean = v.sum(-2, keepdim=True) / indicator(v, key_mask).sum(-2, keepdim=True)
        return mean.expand(*q.shape[:-1], v.shape[-1]).clone()


def _running_mean(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG001  as ``of_kept`` calls
    """The mean of v_0 to v_i, (..., n, e)."""
    counts = torch.arange(1, v.shape[-2] + 1, device=v.device).unsqueeze(-1)
    return v.cumsum(-2) / counts.to(v)
