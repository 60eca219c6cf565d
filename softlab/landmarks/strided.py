"""Equally spaced tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from softlab.core import Cost, Dims, value
from softlab.landmarks.selector import kept, of_tokens, position_of, take


@value
class Strided:
    """Landmark j is token floor(j s / m) of the s tokens that take part, in order.

    With s a multiple of m this is plain striding. Costs nothing but the copy. Raises
    ``ValueError`` if s < m.
    """

    subset = True
    means = True
    equivariant = False
    nested = False

    def cost(self, dims: Dims, m: int) -> Cost:  # noqa: ARG002  the same at all sizes
        """Nothing that is counted."""
        return Cost(0)

    @of_tokens
    def indices(self, x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor:
        """Positions (..., m) of the landmarks, increasing and distinct."""
        size = kept(x, m, key_mask).unsqueeze(-1)
        ordinal = torch.arange(m, device=x.device) * size // m
        return position_of(ordinal, key_mask)

    @of_tokens
    def __call__(self, x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor:
        """Landmarks (..., m, d) of tokens x (..., n, d)."""
        return take(x, self.indices(x, m, key_mask))
