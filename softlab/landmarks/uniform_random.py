"""A uniform random subset of the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from softlab.core import Stream, placed, value
from softlab.landmarks.selector import Picks, Uncounted, of_tokens, position_of, taking_part
from softlab.validation import Seed


@value
class UniformRandom(Picks, Uncounted):
    """m of the s tokens that take part, uniformly and without replacement.

    ``seed``: integer >= 0; the draw is a function of (seed, s, m) alone, so it is the same for
    every matrix with s tokens, whatever else is in the batch, and on every device. The classical
    Nystrom choice (Williams and Seeger 2001). Raises ``ValueError`` if s < m.
    """

    seed: Seed = 0

    equivariant = False
    nested = True

    @of_tokens
    def indices(self, x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor:
        """Positions (..., m) of the landmarks, increasing and distinct."""
        size = taking_part(x, m, key_mask)
        if key_mask is None:
            drawn = placed(_ordinals, self.seed, x.shape[-2], m, device=x.device)
            return drawn.expand(*size.shape, m)
        ordinal = torch.empty(*size.shape, m, dtype=torch.long, device=x.device)
        for s in size.unique().tolist():
            ordinal[size == s] = placed(_ordinals, self.seed, s, m, device=x.device)
        return position_of(ordinal, key_mask)


def _ordinals(seed: int, s: int, m: int) -> Tensor:
    """Which m of s tokens are drawn, increasing."""
    return Stream(seed, "landmarks.UniformRandom").permutation(s)[:m].sort().values
