"""Tokens of which the approximation so far explains least."""

from __future__ import annotations

import torch
from torch import Tensor

from softlab.core import Cost, Dims, value
from softlab.kernels import kernel_cost
from softlab.landmarks.bandwidths import gaussian
from softlab.landmarks.draws import heaviest, nearest_to_mean
from softlab.landmarks.pivoting import pivots
from softlab.landmarks.selector import Picks, indices_of_survivors, of_tokens
from softlab.validation import Bandwidth


@value
class GreedyResidual(Picks):
    """Starting from the token nearest to the mean, each time the one with most left to explain.

    What is left at x is 1 - K(x, S) K(S, S)^-1 K(S, x), K the Gaussian and S the landmarks so far:
    complete pivoting of the Cholesky factorisation, or the P-greedy method. Like ``FarthestPoint``
    it sees outliers first. ``bandwidth``: of the Gaussian, positive, to be that of the operator;
    None means d**0.25.

    Costs m kernel rows and their elimination, and 8 m l bytes. Once the diagonal is used up, 4 m
    times rounding, the first tokens left fill up. Raises ``ValueError`` if fewer than m tokens take
    part.
    """

    bandwidth: Bandwidth | None = None

    equivariant = True
    nested = True

    def cost(self, dims: Dims, m: int) -> Cost:
        """The pivots' kernel rows and their elimination."""
        rows = kernel_cost(Dims(dims.batch, m, dims.l, dims.d, dims.e), 0)
        return rows + Cost(dims.batch * m * (m - 1) * dims.l)

    @of_tokens
    def indices(self, x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor:
        """Positions (..., m) of the landmarks, increasing and distinct."""
        kernel = gaussian(self.bandwidth, x)

        def pick(y: Tensor) -> Tensor:
            def choose(weight: Tensor, i: int) -> Tensor:
                return heaviest(weight, i) if i else nearest_to_mean(y)

            return torch.cat([p.at for p in pivots(y, m, kernel, choose)], -1)

        return indices_of_survivors(x, m, key_mask, pick)
