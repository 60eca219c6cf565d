"""Pivots of a randomly pivoted Cholesky factorisation."""

from __future__ import annotations

import torch
from torch import Tensor

from softlab.core import Cost, Dims, value
from softlab.kernels import kernel_cost
from softlab.landmarks.bandwidths import gaussian
from softlab.landmarks.draws import by_weight
from softlab.landmarks.pivoting import pivots
from softlab.landmarks.selector import Picks, indices_of_survivors, of_tokens
from softlab.validation import Bandwidth, Seed, Size


@value
class RPCholeskyPivots(Picks):
    """Tokens drawn in turn with odds in proportion to what is left of the Gaussian's diagonal.

    What is left at x is 1 - K(x, S) K(S, S)^-1 K(S, x), S the landmarks so far: the error that
    Nystrom's approximation makes on the diagonal. So repeated tokens are drawn once, and a small
    cluster as soon as it weighs. ``block``: how many are drawn, without repeats, before the
    diagonal is brought up to date; more make fewer and larger products, and waste draws on tokens
    of one cluster. ``bandwidth``: of the Gaussian, positive, to be that of the operator; None means
    d**0.25. ``seed``: integer >= 0, of the m uniform numbers, the same for every matrix.

    Costs m kernel rows and their elimination, and 8 m l bytes. Once the diagonal is used up, 4 m
    times rounding, what fills up is drawn uniformly. Raises ``ValueError`` if fewer than m tokens
    take part. Reference: Chen, Epperly, Tropp and Webber, arXiv 2207.06503; its block form draws
    with repeats and drops them.
    """

    block: Size = 1
    bandwidth: Bandwidth | None = None
    seed: Seed = 0

    equivariant = False
    nested = True

    def cost(self, dims: Dims, m: int) -> Cost:
        """The pivots' kernel rows and their elimination."""
        rows = kernel_cost(Dims(dims.batch, m, dims.l, dims.d, dims.e), 0)
        return rows + Cost(dims.batch * m * (m - 1) * dims.l)

    @of_tokens
    def indices(self, x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor:
        """Positions (..., m) of the landmarks, increasing and distinct."""
        kernel = gaussian(self.bandwidth, x)
        choose = by_weight(self.seed, "landmarks.RPCholeskyPivots", m)

        def pick(y: Tensor) -> Tensor:
            return torch.cat([p.at for p in pivots(y, m, kernel, choose, block=self.block)], -1)

        return indices_of_survivors(x, m, key_mask, pick)
