"""Clustered attention: that of the centroids of the queries, corrected on each one's top keys."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from softlab.core import (
    Cost,
    Dims,
    Knob,
    Traits,
    attention,
    budget,
    recomputed,
    value,
)
from softlab.landmarks import UniformRandom
from softlab.landmarks.lloyd import means, nearest
from softlab.operators.softmax import Softmax
from softlab.primitives.banded import HELD_ENTRIES, rows
from softlab.validation import Natural, Seed, Size, Steps


@value
class Clustered:
    """out_i = m_c sum_{j in T_c} a_ij v_j + sum_{j not in T_c} w_cj v_j, c the cluster of query i.

    w_c = softmax(z_c k^T / sqrt(d)) is the attention of z_c, the mean of the cluster's queries; T_c
    its ``top`` largest entries, m_c their sum, and a_i = softmax(q_i k_T^T / sqrt(d)) that of the
    query over these keys alone. ``clusters``: at least 1, all queries where there are fewer;
    ``top``: at least 0, which leaves out_i = sum_j w_cj v_j, as 1 does; all keys if fewer exist;
    ``iterations``: of Lloyd's k-means, at least 1; ``seed``: integer >= 0, of the ``clusters``
    queries that it starts from, drawn as ``UniformRandom`` does. A cluster that loses its queries
    keeps its centre. Clusters are found in float64, and they and T are constants of the gradient;
    the means are not. At keys that tie for T the output depends on their order. Masked keys are
    deleted: none is in T, and queries are clustered without looking at keys.

    Exact where clusters >= n, with distinct queries, or top >= l. With top = 0 it errs by no more
    than |softmax row - w_c|_2 <= |q_i - z_c|_2 |k|_2 / sqrt(d); any ``top`` errs no more than that
    in the sum of absolute differences, row by row (Propositions 1 and 2). It fails where queries
    do not cluster: the mean of a wide cluster attends like none of its members, and T holds what
    the mean sees. The work is iterations n C d, C l (d + e) and n top (d + e), C the clusters;
    memory is linear in n and l for fixed C. Reference: Vyas et al., arXiv 2007.04825, Sec. 3.2
    (clusters), 3.3 (top keys); there k-means runs on 63 sign bits of each query, with Hamming
    distances; here on the queries themselves.
    """

    family: ClassVar = "sparse"
    target: ClassVar = Softmax()
    knob: ClassVar = Knob("clusters")

    clusters: Size
    top: Natural = 32
    iterations: Steps = 10
    seed: Seed = 0

    @property
    def traits(self) -> Traits:
        """Row-stochastic, linear memory; the order of the queries decides where k-means starts."""
        return Traits(
            key_invariant=True,
            row_stochastic=True,
            nonnegative=True,
            exact_at="top",
            linear_memory=True,
        )

    def owners(self, q: Tensor) -> Tensor:
        """The cluster of each query of q (..., n, d): integers (..., n) below ``clusters``."""
        x = q.detach().double()
        x = x - x.mean(-2, keepdim=True)
        centre = UniformRandom(self.seed)(x, min(self.clusters, x.shape[-2]))
        owner = nearest(x, centre)
        for _ in range(self.iterations - 1):
            centre = means(x, owner, centre)
            owner = nearest(x, centre)
        return owner

    def cost(self, dims: Dims) -> Cost:
        """K-means, attention of C centroids to l keys, and of n queries to their top keys."""
        b, n, l = dims.batch, dims.n, dims.l
        count, top = min(self.clusters, n), min(self.top, l)
        entries = b * (count * l + n * top)
        clustering = 2 * b * self.iterations * n * count * dims.d
        return Cost(clustering + 2 * entries * (dims.d + dims.e), kernel_entries=entries)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        lead, n, l = q.shape[:-2], q.shape[-2], k.shape[-2]
        q, k, v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
        owner = self.owners(q)
        q = q / math.sqrt(q.shape[-1])
        empty = q.new_zeros(len(q), min(self.clusters, n), q.shape[-1])
        scores = means(q, owner, empty) @ k.mT
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask.reshape(-1, 1, l), -math.inf)
        weights = scores.softmax(-1)
        if self.top:
            out = self._corrected(q, k, v, owner, scores, weights)
        else:
            out = rows(weights @ v, owner)
        return out.reshape(*lead, n, v.shape[-1])

    def _corrected(
        self, q: Tensor, k: Tensor, v: Tensor, owner: Tensor, scores: Tensor, weights: Tensor
    ) -> Tensor:
        """The output with exact top keys; scores and weights (B, C, l) are those of the means."""
        # Masked keys come last, and are in T only where fewer than ``top`` others are.
        score, at = scores.detach().topk(min(self.top, k.shape[-2]), -1)
        hidden = score == -math.inf
        mass = weights.gather(-1, at).sum(-1, keepdim=True)
        rest = weights.scatter(-1, at, 0) @ v
        few_k, few_v = rows(k, at), rows(v, at)

        def part(x: Tensor, of: Tensor) -> Tensor:
            own_k, own_v = (rows(few.flatten(2), of).unflatten(-1, few.shape[2:]) for few in near)
            own = (own_k @ x.unsqueeze(-1)).squeeze(-1).masked_fill(rows(hidden, of), -math.inf)
            average: Tensor = (own.softmax(-1).unsqueeze(-2) @ own_v).squeeze(-2)
            return rows(mass, of) * average + rows(rest, of)

        near = (few_k, few_v)
        # Each query needs a copy of its top keys: a few queries at once, recomputed backwards.
        held = at.shape[-1] * (k.shape[-1] + v.shape[-1]) * len(q)
        step = max(1, max(budget(HELD_ENTRIES, q.device), q.numel()) // held)
        parts = zip(q.split(step, 1), owner.split(step, 1), strict=True)
        return torch.cat([recomputed(part, x, of) for x, of in parts], 1)
