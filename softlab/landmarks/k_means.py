"""Means of clusters."""

from __future__ import annotations

import torch
from torch import Tensor

from softlab.core import Cost, Dims, value, widened
from softlab.landmarks.draws import by_weight
from softlab.landmarks.farthest_point import spread
from softlab.landmarks.lloyd import means, nearest
from softlab.landmarks.selector import of_survivors, of_tokens, take
from softlab.validation import Seed, Steps


@value
class KMeans:
    """Landmark j is the mean of cluster j of k-means: seeds by k-means++, then Lloyd's steps.

    ``iterations``: Lloyd's steps, at least 1, each l m distances; the last gives the means.
    ``seed``: integer >= 0, of the m uniform numbers that draw the seeds: the first uniformly, each
    other with odds in proportion to the squared distance from those before. A cluster that loses
    its tokens stands at its seed. Who belongs to which cluster is decided in float64 and not
    differentiated, the means are. Raises ``ValueError`` if fewer than m tokens take part.
    Reference: Zhang, Tsang and Kwok (2008) for its use in Nystrom's method.
    """

    iterations: Steps = 10
    seed: Seed = 0

    subset = False
    means = True
    equivariant = False
    nested = False

    def cost(self, dims: Dims, m: int) -> Cost:
        """Distances of the seeding and of Lloyd's steps, two operations an entry."""
        return Cost(2 * dims.batch * (m - 1 + self.iterations * m) * dims.l * dims.d)

    @of_tokens
    def __call__(self, x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor:
        """Landmarks (..., m, d) of tokens x (..., n, d)."""
        return of_survivors(widened(x), m, key_mask, lambda y: self._centres(y, m)).to(x.dtype)

    def _centres(self, x: Tensor, m: int) -> Tensor:
        points = x.detach().double()
        points = points - points.mean(-2, keepdim=True)
        choose = by_weight(self.seed, "landmarks.KMeans", m)
        at = spread(points, m, choose(torch.ones_like(points[..., 0]), 0), choose).sort(-1).values
        start = centre = take(points, at)
        for step in range(self.iterations):
            owner = nearest(points, centre)
            if step < self.iterations - 1:
                centre = means(points, owner, start)
        return means(x, owner, take(x, at))
