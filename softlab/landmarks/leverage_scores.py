"""Tokens drawn by their ridge leverage."""

from __future__ import annotations

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, Dims, Stream, budget, value
from softlab.kernels import kernel_cost
from softlab.landmarks.bandwidths import gaussian
from softlab.landmarks.draws import by_weight, open_to
from softlab.landmarks.selector import Picks, indices_of_survivors, of_tokens
from softlab.validation import Bandwidth, Positive, Seed, Size

HELD_ENTRIES = 1 << 20
"""Kernel entries held at once."""


@value
class LeverageScores(Picks):
    """m distinct tokens, drawn in turn with odds in proportion to their ridge leverage scores.

    The score of token i is (K (K + c I)^-1)_ii, K the Gaussian of the tokens and c > 0: near 1 for
    a token that others do not explain, 1 / (r + c) for each of r copies. It is estimated from p of
    the tokens, drawn uniformly: (1 - K(x, S) (K(S, S) + c p / s I)^-1 K(S, x)) / c, exact where S
    is all s of them.

    ``ridge``: positive; c = ridge s / m, so that it is the share of K's trace that the
    approximation is expected to leave. ``sample``: p / m, at least 1; p is at most s.
    ``bandwidth``: of the Gaussian, positive, to be that of the operator; None means d**0.25.
    ``seed``: integer >= 0, of the p tokens and the m draws.

    Costs p kernel rows, a factorisation of size p and p^2 operations a token. Raises ``ValueError``
    if fewer than m tokens take part. Reference: Alaoui and Mahoney, arXiv 1411.0306 (the scores);
    Musco and Musco, arXiv 1605.07583, whose recursion draws S by its own estimates instead.
    """

    ridge: Positive = 0.1
    sample: Size = 2
    bandwidth: Bandwidth | None = None
    seed: Seed = 0

    equivariant = False
    nested = False

    def cost(self, dims: Dims, m: int) -> Cost:
        """The kernel of the sample and its rows, the factorisation and the solves."""
        p = min(self.sample * m, dims.l)
        rows = kernel_cost(Dims(dims.batch, p, p + dims.l, dims.d, dims.e), 0)
        return rows + Cost(0, factorization_flops=dims.batch * (p**3 // 3 + p**2 * dims.l))

    @of_tokens
    def indices(self, x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor:
        """Positions (..., m) of the landmarks, increasing and distinct."""

        def pick(y: Tensor) -> Tensor:
            weight, free = self._scores(y, m), torch.ones_like(y[..., 0], dtype=torch.bool)
            choose, chosen = by_weight(self.seed, "landmarks.LeverageScores, landmarks", m), []
            for i in range(m):
                chosen.append(choose(open_to(weight, free), i))
                free = free.scatter(-1, chosen[-1], value=False)
            return torch.cat(chosen, -1)

        return indices_of_survivors(x, m, key_mask, pick)

    def scores(self, x: Tensor, m: int) -> Tensor:
        """The estimated scores (..., n) of tokens x (..., n, d) at the ridge of rank m."""
        validation.tokens(x, m)
        validation.rank_fits(m, x.shape[-2], "tokens")
        return self._scores(x.detach().double(), m)

    def _scores(self, x: Tensor, m: int) -> Tensor:
        s = x.shape[-2]
        p, c = min(self.sample * m, s), self.ridge * s / m
        rng = Stream(self.seed, "landmarks.LeverageScores, sample")
        drawn = rng.permutation(s)[:p].sort().values.to(x.device)
        some, kernel = x[..., drawn, :], gaussian(self.bandwidth, x)
        shift = c * p / s * torch.eye(p, dtype=x.dtype, device=x.device)
        factor = torch.linalg.cholesky(kernel.matrix(some, some) + shift)
        left = []
        rows = max(1, budget(HELD_ENTRIES, x.device) // (p * x[..., 0, 0].numel()))
        for part in x.split(rows, -2):
            half = torch.linalg.solve_triangular(factor, kernel.matrix(some, part), upper=False)
            left.append(1 - half.square().sum(-2))
        return (torch.cat(left, -1) / c).clamp_min(torch.finfo(x.dtype).eps)
