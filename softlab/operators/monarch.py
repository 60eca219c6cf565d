"""Monarch attention: softmax attention projected onto Monarch matrices, by its variational form."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from softlab import validation
from softlab.core import (
    Cost,
    Dims,
    Knob,
    Traits,
    attention,
    own_precision,
    recomputed,
    value,
    widened,
)
from softlab.operators.softmax import Softmax
from softlab.primitives.banded import HELD_ENTRIES, before, rows
from softlab.primitives.certificates import (
    average_rounding,
    centre,
    certificate,
    chain,
    distance,
    lengths,
    root,
    score_rounding,
    unit,
)
from softlab.primitives.sort_lsh import over_survivors
from softlab.validation import Size, Steps


@value
class Monarch:
    """out = A v, A_nj = L_n[x] R_xc[j], j a key of block x, c the class of query n.

    The s keys that take part are cut into blocks of ``block``, at least 1, the last one short.
    Query n stands at key floor((2 n + 1) s / (2 N)) of them, which is n itself for as many queries
    as keys; its class c is its rank among the queries that stand in its block. Within a block of
    keys, the rows of the queries of one class are multiples of one row R_xc, so that A has rank one
    there. ``steps`` times, at least 1, from L_n[x] = 1 in the query's own block and 0 elsewhere,
    each of these is set to what maximises the objective while the other is held:

        R_xc[j] = softmax_j(sum_n L_n[x] s_nj / sum_n L_n[x]), over the queries n of class c;
        L_n[x] = softmax_x(sum_j R_xc[j] s_nj - sum_j R_xc[j] log R_xc[j]), s = q k^T / sqrt(d).

    R_xc is uniform where no query of its class stands in block x at the start. The objective of a
    row is <A_n, s_n> + H(A_n), H the entropy. It is at most logsumexp(s_n), which the softmax row
    P_n reaches, and it misses that by KL(A_n || P_n) exactly, so that the sum of these never grows
    with ``steps``. By Pinsker's inequality |out_n - exact_n| <= sqrt(KL_n / 2) max_jl |v_j - v_l|,
    see ``bound``.

    Exact with block = 1, with block >= s, where all tokens are equal, and, from the second step on,
    for a single query. It minimises a divergence and no norm: the error in the Frobenius norm can
    grow while the objective rises, and on scattered scores, as of normal tokens, it is near that of
    the mean of v. It fails where queries of a class need different keys of a block. Results depend
    on the order of the tokens. The work of a step is n (block + l / block) d, least at block =
    sqrt(l), and the memory that of the tokens and of (l / block)^2 numbers. The alternation is
    differentiated as it is.

    Reference: Yaras et al., arXiv 2505.18698, Sec. 3 and its code, ``ma/ma_torch.py``. That code
    has as many queries as keys; fills the tokens up to a multiple of the block at either end; and
    leaves masked keys in their blocks, so that masking is not deletion there.
    """

    family: ClassVar = "hybrid"
    target: ClassVar = Softmax()
    knob: ClassVar = Knob("block")

    block: Size = 32
    steps: Steps = 3

    @property
    def traits(self) -> Traits:
        """Row-stochastic and non-negative; exact with one block."""
        return Traits(
            row_stochastic=True,
            nonnegative=True,
            reads="relative scores",
            exact_at="block",
            exact_at_rank_one=True,
            certified=True,
        )

    def classes(self, queries: int, keys: int) -> list[int]:
        """How many of so many queries stand in each block of so many keys."""
        block = min(self.block, keys)
        ends = [min(x, keys) for x in range(block, keys + block, block)]
        standing = [0, *(before(queries, keys, x) for x in ends)]
        return [b - a for a, b in pairwise(standing)]

    def cost(self, dims: Dims) -> Cost:
        """Scores and means of keys for each class, of block rows for each query, a step."""
        standing = self.classes(dims.n, dims.l)
        within, across = max(standing) * dims.l, dims.n * len(standing)
        products = self.steps * (2 * within + across) + (self.steps - 1) * across
        return Cost(
            flops=2 * dims.batch * (products * dims.d + (within + across) * dims.e),
            kernel_entries=dims.batch * self.steps * (within + across),
        )

    @own_precision
    def objective(self, q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Return <A_n, s_n> + H(A_n) of every query, (..., n), of q (..., n, d), k (..., l, d).

        Takes no more work than a call: with the factors as they are it is the logarithm of the sum
        by which L_n is normalised.
        """
        q, k, v, key_mask = validation.admit(q, k, k, key_mask)
        q, k = widened(q), widened(k)
        reached = over_survivors(self._objective, q, k, k[..., :1], key_mask)
        return reached.squeeze(-1).to(v.dtype)

    @own_precision
    def divergence(self, q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Return KL(A_n || P_n) of every query, (..., n), of q (..., n, d) and k (..., l, d).

        Forms all scores, as it needs their logsumexp.
        """
        q, k, _, key_mask = validation.admit(q, k, k, key_mask)
        scores = widened(q) @ widened(k).mT / math.sqrt(q.shape[-1])
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask.unsqueeze(-2), -math.inf)
        reached = self.objective(widened(q), widened(k), key_mask)
        return (scores.logsumexp(-1) - reached).to(q.dtype)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        return over_survivors(self._average, q, k, v, key_mask)

    @certificate
    def bound(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, out: Tensor
    ) -> Tensor:
        """At least |out_n - exact_n|, (..., n).

        Let A be this matrix in float64, s = A v, c the mean of the values, R their largest
        distance from it. Rows of A and of the softmax P are distributions, so that

            |out - exact| <= |out - s| + |sum_j (A_nj - P_nj) (v_j - c)| <= |out - s| + 2 R TV_n,
            TV_n <= (KL_n / 2)^(1/2),  TV_n <= (1 - exp(-KL_n))^(1/2),

        by Pinsker, and by Bretagnolle and Huber, who alone stay below 1. KL(A_n || P_n) is
        logsumexp(s_n) less the objective, without a matrix; the rounding of both is added, whose
        root is a floor of some 1e-7 R. With one block, or blocks of one, the exact average takes
        the place of s. All scores are formed for their logsumexp, a block of rows at a time: half
        of the work of the exact answer. The objective says nothing of P, and bounds of logsumexp
        that cost less, as by pages of keys, are off by so much that TV is 1.

        Args:
            q: queries (..., n, d).
            k: keys (..., l, d).
            v: values (..., l, e).
            key_mask: boolean, broadcastable to (..., l).
            out: the output (..., n, e), if it is known.
        """
        q, k, v, out = q.double(), k.double(), v.double(), out.double()
        l, scale = k.shape[-2], 1 / math.sqrt(q.shape[-1])
        radius, largest = centre(v, key_mask)[1], lengths(v).amax(-1, keepdim=True)
        slack = 4 * score_rounding(q, k, scale)
        own = average_rounding(slack, radius, largest, l)
        if self.block == 1 or self.block >= l:
            return distance(out, self.target(q, k, v, key_mask)) + own
        both = over_survivors(self._judged, q, k, pad(v, (0, 1)), key_mask)
        # Sums over a block, of scores and of entropies up to log(block), err beside the scores.
        terms = scale * lengths(q) * lengths(k).amax(-1, keepdim=True) + math.log(self.block) + 1
        gap = both[..., -1].clamp_min(0) + slack + 8 * chain(self.block) * unit(q) * terms
        moved = root(torch.minimum(gap / 2, -torch.expm1(-gap)))
        return distance(out, both[..., :-1]) + 2 * radius * moved * (1 + 16 * unit(q)) + own

    def _judged(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output and KL(A_n || P_n), (B, n, e + 1), for keys that all take part.

        The last column of v (B, l, e + 1) makes room for the divergence.
        """

        def of(weights: Tensor, log_rows: Tensor, v: Tensor) -> Tensor:
            return torch.cat((_answers(weights, log_rows, v)[..., :-1], _reached(weights)), -1)

        found, x = self._each(of, q, k, v), q / math.sqrt(q.shape[-1])
        step = max(1, HELD_ENTRIES // (len(k) * k.shape[1]))
        level = [(part @ k.mT).logsumexp(-1, keepdim=True) for part in x.split(step, 1)]
        return torch.cat((found[..., :-1], torch.cat(level, 1) - found[..., -1:]), -1)

    def _average(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output (B, n, e) for keys that all take part."""
        return self._each(_answers, q, k, v)

    def _objective(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The objective (B, n, 1) of every query."""
        return self._each(_reached, q, k, v)

    def _each(
        self, of: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        """What ``of`` makes of the factors, a row a query: (B, n, ...).

        It is given the logits of L (B, c, y, x), for queries of class c that stand in block y, the
        logarithms of R (B, x, c, block), and the values in blocks (B, x, block, e).
        """
        s, block = k.shape[1], min(self.block, k.shape[1])
        k, v = _blocks(k, block), _blocks(v, block)
        real = torch.arange(k.shape[1] * block, device=k.device).reshape(-1, 1, block) < s
        sizes = self.classes(q.shape[1], s)
        standing = torch.tensor(sizes, device=q.device)
        of_class = torch.arange(max(sizes), device=q.device).unsqueeze(-1)
        here = of_class < standing  # (c, y)
        first = standing.cumsum(0) - standing
        at = (first + of_class).clamp_max(q.shape[1] - 1)
        x = rows(q / math.sqrt(q.shape[-1]), at.unsqueeze(0))

        def part(x: Tensor, here: Tensor) -> Tensor:
            """Classes do not meet: a few of them at once, x (B, c, y, d)."""
            among = torch.where(here.unsqueeze(-1), x, 0)
            for step in range(self.steps):
                scores = (among.transpose(1, 2) @ k.mT).masked_fill(~real, -math.inf)
                log_rows = scores.log_softmax(-1)
                inside = log_rows.exp()
                entropy = -(inside * log_rows.masked_fill(~real, 0)).sum(-1)
                means = (inside @ k).transpose(1, 2)  # (B, c, x, d)
                weights = x @ means.mT + entropy.transpose(1, 2).unsqueeze(2)
                if step + 1 < self.steps:
                    # L over its sum in a class, without a quotient of what has underflowed.
                    logs = weights.log_softmax(-1).masked_fill(~here.unsqueeze(-1), -math.inf)
                    among = logs.softmax(2).mT @ x
            return of(weights, log_rows, v)

        held = len(q) * (2 * len(standing) ** 2 + 2 * s + 4 * len(standing) * q.shape[-1])
        step = max(1, max(HELD_ENTRIES, q.numel()) // held)
        parts = zip(x.split(step, 1), here.split(step), strict=True)
        out = torch.cat([recomputed(part, *each) for each in parts], 1)
        count, n = len(sizes), q.shape[1]
        y = torch.arange(count, device=q.device).repeat_interleave(standing, output_size=n)
        c = torch.arange(n, device=q.device) - first[y]
        found: Tensor = rows(out.flatten(1, 2), (c * count + y).unsqueeze(0))
        return found


def _answers(weights: Tensor, log_rows: Tensor, v: Tensor) -> Tensor:
    """The output of factors as ``Monarch._each`` gives them."""
    return weights.softmax(-1) @ (log_rows.exp() @ v).transpose(1, 2)


def _reached(weights: Tensor, *_: Tensor) -> Tensor:
    """The objective, the logarithm of the sum by which L is normalised."""
    return weights.logsumexp(-1, keepdim=True)


def _blocks(x: Tensor, block: int) -> Tensor:
    """Cut x (B, s, d) into blocks (B, x, block, d), the last one filled up with zeros."""
    return pad(x, (0, 0, 0, -x.shape[1] % block)).reshape(len(x), -1, block, x.shape[-1])
