"""Attention of each query to the keys of its own hash bucket, over several rounds of hashing."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from softlab.core import (
    Cost,
    Dims,
    Knob,
    Stream,
    Traits,
    attention,
    budget,
    placed,
    recomputed,
    value,
)
from softlab.operators.softmax import Softmax
from softlab.primitives.banded import HELD_ENTRIES, rows
from softlab.primitives.sort_lsh import bounds, even_parts, over_survivors, unsorted
from softlab.primitives.weighted_sums import Sums
from softlab.validation import Seed, Size, Steps, Width


class Round(NamedTuple):
    """Hash and part of each of n queries and l keys, (B, n) and (B, l), in one round.

    ``alone`` (B, n): whether a query found no key of its hash.
    """

    hash_q: Tensor
    hash_k: Tensor
    part_q: Tensor
    part_k: Tensor
    alone: Tensor


@value
class Reformer:
    """out_i = sum_{j in P_i} exp(s_ij) v_j / sum_{j in P_i} exp(s_ij), s = q k^T / sqrt(d).

    P_i is the union over the rounds of the keys that share a hash and a neighbourhood with query
    i; one found in several rounds counts once. In each round the hash of x is the index of the
    largest entry of [x R, -x R], R normal, (d, buckets / 2), the same for queries and keys: it sees
    the direction alone. Queries and keys are each sorted by hash, stably, and both orders are cut
    into ceil(l / chunk) even parts; a query meets the keys of its hash in its own part and in the
    one before, none before the first. Where none of these has its hash, it meets all of them.

    ``buckets``: even, at least 2; or 1, which hashes nothing. ``chunk``: most keys in a part, at
    least 1. ``rounds``: at least 1. ``seed``: integer >= 0, of the rotations; further rounds keep
    the first ones. With q = k this is the published method, but for two things that serve the
    target: keys are not shortened to unit length, and a token attends to itself, where that
    attends to itself only if it finds no other. Exact with buckets = 1 and chunk >= l. The hash is
    formed in float64 and is a constant of the gradient. Masked keys are neither hashed nor counted.

    A row errs by at most the mass left out times the diameter of the values. It fails where heavy
    keys point elsewhere than the query, as long ones may: a pair at the angle t hashes alike in one
    round of two buckets with probability 1 - t / pi, of more buckets less often, and opposite ones
    never. With q other than k, equal hashes can lie in parts far from each other. At the published
    buckets = 2 l / chunk a part holds two buckets on average; of fewer and larger ones, in which
    tokens keep their given order, a query meets what lies near its place. The work is
    rounds (n + l) d buckets and at most 4 rounds n chunk (d + e).

    There is no causal form: the parts of earlier tokens depend on the hashes of later ones, so that
    masking later keys does not keep them out. Reference: Kitaev et al., arXiv 2001.04451; its code
    in trax, ``LSHCausalAttention``, which takes the last part as the one before the first, and as
    configured there meets all keys of the two parts, whatever their hashes. So do the packages
    reformer-pytorch and transformers; a key found in several rounds counts in each, in the former
    by default; and the former's scores are sqrt(d) times smaller than the latter's.
    """

    family: ClassVar = "sparse"
    target: ClassVar = Softmax()
    knob: ClassVar = Knob("chunk", buckets=16, rounds=2)

    buckets: Width = 32
    chunk: Size = 64
    rounds: Steps = 4
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.buckets > 1 and self.buckets % 2:
            msg = (
                f"Reformer.buckets is {self.buckets}, and every direction has an opposite one; "
                "give an even number, or 1 for no hashing."
            )
            raise ValueError(msg)

    @property
    def traits(self) -> Traits:
        """The target restricted to few keys, in linear memory; the order of tokens matters."""
        return Traits(
            row_stochastic=True,
            nonnegative=True,
            restricted=True,
            exact_at="chunk" if self.buckets == 1 else "",
            seedless=self.buckets == 1,
            linear_memory=True,
        )

    def rotations(self, d: int) -> Tensor:
        """R of every round, (rounds, d, buckets // 2), float64, on the CPU."""
        rng = Stream(self.seed, "Reformer")
        # One at a time: a longer draw at once would change the first numbers too.
        return torch.stack([rng.normal(d, self.buckets // 2) for _ in range(self.rounds)])

    def hashes(self, x: Tensor) -> Tensor:
        """The hash of each token of x (..., n, d) in each round: (rounds, ..., n)."""
        if self.buckets == 1:
            return torch.zeros(self.rounds, *x.shape[:-1], dtype=torch.int32, device=x.device)
        x = x.detach().double()
        turns = placed(type(self).rotations, self, x.shape[-1], device=x.device)
        turned = (x @ r for r in turns)
        return torch.stack([torch.cat((y, -y), -1).argmax(-1).int() for y in turned])

    def cost(self, dims: Dims) -> Cost:
        """Hashes, and in each round 2 (d + e) for each query and key of its two parts, a matrix."""
        count = -(-dims.l // self.chunk)
        q, k = (bounds(size, count) for size in (dims.n, dims.l))
        met = sum((q[i + 1] - q[i]) * (k[i + 1] - k[max(i - 1, 0)]) for i in range(count))
        hashes = 2 * (dims.n + dims.l) * dims.d * (self.buckets // 2)
        entries = dims.batch * self.rounds * met
        return Cost(
            flops=dims.batch * self.rounds * hashes + 2 * entries * (dims.d + dims.e),
            kernel_entries=entries,
        )

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        return over_survivors(self._hashed, q, k, v, key_mask)

    def _hashed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output (B, n, e) for keys that all take part."""
        (size, n, d), l, e = q.shape, k.shape[-2], v.shape[-1]
        count = -(-l // self.chunk)
        of_queries, real = placed(even_parts, n, count, device=q.device)
        own, there = placed(even_parts, l, count, device=q.device)
        # The keys that a part meets are those of the one before it, then its own.
        of_keys = torch.cat((own.roll(1, 0), own), -1)
        before = there.roll(1, 0)
        before[0] = False
        there = torch.cat((before, there), -1)
        q = q / math.sqrt(d)
        held = size * of_keys.shape[-1] * (of_queries.shape[-1] + d + e)
        step = max(1, max(budget(HELD_ENTRIES, q.device), q.numel()) // held)
        rounds: list[Round] = []
        sums: Sums | None = None
        for hash_q, hash_k in zip(self.hashes(q), self.hashes(k), strict=True):
            order_q, order_k = (x.argsort(dim=-1, stable=True) for x in (hash_q, hash_k))
            nobody = torch.zeros_like(hash_q, dtype=torch.bool)
            now = Round(hash_q, hash_k, _part(order_q, count), _part(order_k, count), nobody)
            done, alone = [], []
            for s in (slice(b, b + step) for b in range(0, count, step)):
                i, j = order_q[:, of_queries[s]], order_k[:, of_keys[s]]
                found = _shared(now, i, j) & there[s].unsqueeze(-2)
                alone.append(~found.any(-1, keepdim=True))
                found = found | (alone[-1] & there[s].unsqueeze(-2))
                for earlier in rounds:
                    found &= ~_shared(earlier, i, j)
                done.append(recomputed(_sums, q, k, v, i, j, found))
            rounds.append(now._replace(alone=_sorted_back(alone, order_q, real).squeeze(-1)))
            new = Sums(*(_sorted_back(list(x), order_q, real) for x in zip(*done, strict=True)))
            sums = new if sums is None else sums.merged(new)
        assert sums is not None
        return sums.average()


def _part(order: Tensor, count: int) -> Tensor:
    """The part (B, n) of each token, where an order (B, n) is cut into even ones."""
    n = order.shape[-1]
    part = (torch.arange(n, device=order.device) * count // n).int().expand(order.shape)
    return torch.empty_like(part).scatter(-1, order, part)


def _shared(of: Round, i: Tensor, j: Tensor) -> Tensor:
    """Whether queries i (B, parts, Q) and keys j (B, parts, W) met in that round: (B, ., Q, W)."""
    hash_i, part_i, alone = (_at(x, i).unsqueeze(-1) for x in (of.hash_q, of.part_q, of.alone))
    hash_j, part_j = (_at(x, j).unsqueeze(-2) for x in (of.hash_k, of.part_k))
    near = (part_i - part_j) >> 1 == 0  # 0 or 1 parts ahead
    return near & (alone | (hash_i == hash_j))


def _at(x: Tensor, at: Tensor) -> Tensor:
    return rows(x.unsqueeze(-1), at).squeeze(-1)


def _sums(q: Tensor, k: Tensor, v: Tensor, i: Tensor, j: Tensor, found: Tensor) -> Sums:
    """Those of queries i over the keys j that were found, (B, parts, Q, .)."""
    scores = (rows(q, i) @ rows(k, j).mT).masked_fill(~found, -math.inf)
    # Any finite number will do for a query that found nothing new.
    top = scores.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(q.dtype).min)
    weights = (scores - top).exp()
    return Sums(weights @ rows(v, j), weights.sum(-1, keepdim=True), top)


def _sorted_back(of_parts: list[Tensor], order: Tensor, real: Tensor) -> Tensor:
    return unsorted(torch.cat(of_parts, 1), order, real)
