"""Tokens far from each other."""

from __future__ import annotations

import torch
from torch import Tensor

from softlab.core import Cost, Dims, value
from softlab.landmarks.draws import Choose, heaviest, nearest_to_mean, open_to
from softlab.landmarks.selector import Picks, indices_of_survivors, of_tokens, take


@value
class FarthestPoint(Picks):
    """Starting from the token nearest to the mean, each time the one farthest from those chosen.

    No token is farther from its nearest landmark than twice what the best m landmarks would allow,
    from whatever token one starts (Gonzalez 1985). Sees outliers first, and how often a token is
    repeated not at all. Where all tokens left repeat landmarks the first of them fill up. Costs
    m - 1 distances a token. Raises ``ValueError`` if fewer than m tokens take part.
    """

    equivariant = True
    nested = True

    def cost(self, dims: Dims, m: int) -> Cost:
        """The distances, two operations an entry."""
        return Cost(2 * dims.batch * (m - 1) * dims.l * dims.d)

    @of_tokens
    def indices(self, x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor:
        """Positions (..., m) of the landmarks, increasing and distinct."""
        return indices_of_survivors(
            x, m, key_mask, lambda y: spread(y, m, nearest_to_mean(y), heaviest)
        )


def spread(x: Tensor, m: int, first: Tensor, choose: Choose) -> Tensor:
    """M tokens (..., m), after ``first`` (..., 1) chosen by squared distances from those before."""
    chosen = [first]
    away = torch.full_like(x[..., 0], torch.inf)
    free = torch.ones_like(away, dtype=torch.bool)
    for i in range(1, m):
        free = free.scatter(-1, chosen[-1], value=False)
        # By differences, so that repeated tokens are at distance 0.
        away = torch.minimum(away, (x - take(x, chosen[-1])).square().sum(-1))
        chosen.append(choose(open_to(away, free), i))
    return torch.cat(chosen, -1)
