"""A uniform random subset of the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from softlab.core import Cost, Dims, Stream, placed, value
from softlab.landmarks.selector import kept, of_tokens, position_of, take
from softlab.validation import Seed


@value
class UniformRandom:
    """m of the s tokens that take part, uniformly and without replacement.

    ``seed``: integer >= 0; the draw is a function of (seed, s, m) alone, so it is the same for
    every matrix with s tokens, whatever else is in the batch, and on every device. The classical
    Nystrom choice (Williams and Seeger 2001). Raises ``ValueError`` if s < m.
    """

    seed: Seed = 0

    subset = True
    means = True
    equivariant = False
    nested = True

    def cost(self, dims: Dims, m: int) -> Cost:  # noqa: ARG002  the same at all sizes
        """Nothing that is counted."""
        return Cost(0)

    @of_tokens
    def indices(self, x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor:
        """Positions (..., m) of the landmarks, increasing and distinct."""
        size = kept(x, m, key_mask)
        if key_mask is None:
            drawn = placed(_ordinals, self.seed, x.shape[-2], m, device=x.device)
            return drawn.expand(*size.shape, m)
        ordinal = torch.empty(*size.shape, m, dtype=torch.long, device=x.device)
        for s in size.unique().tolist():
            ordinal[size == s] = placed(_ordinals, self.seed, s, m, device=x.device)
        return position_of(ordinal, key_mask)

    @of_tokens
    def __call__(self, x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor:
        """Landmarks (..., m, d) of tokens x (..., n, d)."""
        return take(x, self.indices(x, m, key_mask))


def _ordinals(seed: int, s: int, m: int) -> Tensor:
    """Which m of s tokens are drawn, increasing."""
    return Stream(seed, "landmarks.UniformRandom").permutation(s)[:m].sort().values
