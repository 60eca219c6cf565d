"""Equally spaced tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from softlab.core import value
from softlab.landmarks.selector import Picks, Uncounted, of_tokens, position_of, taking_part


@value
class Strided(Picks, Uncounted):
    """Landmark j is token floor(j s / m) of the s tokens that take part, in order.

    With s a multiple of m this is plain striding. Costs nothing but the copy. Raises
    ``ValueError`` if s < m.
    """

    equivariant = False
    nested = False

    @of_tokens
    def indices(self, x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor:
        """Positions (..., m) of the landmarks, increasing and distinct."""
        size = taking_part(x, m, key_mask).unsqueeze(-1)
        ordinal = torch.arange(m, device=x.device) * size // m
        return position_of(ordinal, key_mask)
