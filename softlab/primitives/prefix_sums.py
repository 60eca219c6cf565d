"""Sums over the first keys of each query by feature maps, in linear time and memory.

For logarithms of features a (B, n, m) of queries and b (B, l, m) of keys, query i gathers

    sum_{j < t_i} <exp(a_i), exp(b_j)> v_j

from its first t_i keys, where t does not decrease. Every stabiliser is taken over keys that the
query gathers, so no other key, however large its features, reaches a bit of the result or makes
what it gathers underflow; differences of long sums, which cancel, are not taken either.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from softlab.core import budget
from softlab.primitives.banded import HELD_ENTRIES, rows
from softlab.primitives.weighted_sums import Sums

BLOCK = 32
"""Neighbouring queries that share the sum over the keys before the first one's last."""


def sums_before(a: Tensor, b: Tensor, v: Tensor, counts: Tensor, *, even: bool = False) -> Sums:
    """The sums over the first t_i keys of query i, t the ``counts`` (B or 1, n), 0 to l.

    a, b and v (B, l, e) as above; a row of b that is -inf drops its key. ``even``: from 0 on t
    rises by c l / n at most over c queries, rounded up, which a compiled program cannot see.

    Blocks of queries share the sum over the keys that all of them gather, an m x e matrix with a
    scale for each feature; those of all blocks are found by doubling. The remaining keys of a
    query, few where n = l, are intervals of binary lengths: see ``_remainder``.
    """
    n, l = a.shape[-2], b.shape[-2]
    v = torch.cat((v, torch.ones_like(v[..., :1])), -1)
    block = min(n, BLOCK)
    blocks = -(-n // block)
    at = torch.arange(blocks * block, device=a.device).clamp_max(n - 1)
    a, counts = (x[:, at].unflatten(1, (blocks, block)) for x in (a, counts))
    shared = counts[..., 0]
    begins = pad(shared[:, :-1], (1, 0))
    known = even and torch.compiler.is_compiling()
    width = -(-(block - 1) * l // n) if known else int((counts[..., -1] - shared).max())
    width = max(1, width)
    width = 1 << (width - 1).bit_length()
    held = len(a) * (width + block) * (a.shape[-1] + v.shape[-1])
    step = max(1, budget(HELD_ENTRIES, a.device) // held)
    slices = [slice(i, i + step) for i in range(0, blocks, step)]
    longest = -(-block * l // n) if known else None
    segments = [_of_segments(b, v, begins[:, s], shared[:, s], longest) for s in slices]
    states = _running(Sums(*(torch.cat(x, 1) for x in zip(*segments, strict=True))))
    reach = shared.unsqueeze(-1) + torch.arange(width, device=a.device)
    reach = reach.clamp_max(l - 1)
    parts = []
    for s in slices:
        common = _common(a[:, s], Sums(*(x[:, s] for x in states)))
        keys, values = rows(b, reach[:, s]), rows(v, reach[:, s])
        left = counts[:, s] - shared[:, s, None]
        parts.append(common.merged(_remainder(a[:, s], keys, values, left)))
    return Sums(*(torch.cat(x, 1).flatten(1, 2)[:, :n] for x in zip(*parts, strict=True)))


def _split(sums: Tensor, log_scale: Tensor) -> Sums:
    """Sums of values and, in the last column, of weights."""
    return Sums(sums[..., :-1], sums[..., -1:], log_scale)


def _finite(log_scale: Tensor) -> Tensor:
    """The scale, and 0 where it is -inf, so that exp(-inf - scale) is 0 there too."""
    return torch.where(log_scale == -math.inf, 0, log_scale)


def _of_segments(b: Tensor, v: Tensor, begins: Tensor, ends: Tensor, longest: int | None) -> Sums:
    """sum_j exp(b_j) v_j, begin <= j < end of each block: (B, blocks, m, e)."""
    width = max(1, int((ends - begins).max()) if longest is None else longest)
    reach = begins.unsqueeze(-1) + torch.arange(width, device=b.device)
    inside = (reach < ends.unsqueeze(-1)).unsqueeze(-1)
    at = reach.clamp_max(b.shape[-2] - 1)
    logs = rows(b, at).masked_fill(~inside, -math.inf)
    scale = logs.detach().amax(-2, keepdim=True)
    return _split((logs - _finite(scale)).exp().mT @ rows(v, at), scale.mT)


def _running(states: Sums) -> Sums:
    """The sums over each block's segment and those before, (B, blocks, ...)."""
    shift = 1
    while shift < states.values.shape[1]:
        nothing = (0.0, 0.0, -math.inf)
        earlier = (
            pad(x[:, :-shift], (0, 0, 0, 0, shift, 0), value=fill)
            for x, fill in zip(states, nothing, strict=True)
        )
        states = states.merged(Sums(*earlier))
        shift *= 2
    return states


def _common(a: Tensor, states: Sums) -> Sums:
    """What queries (B, blocks, b, m) gather from the sums (B, blocks, m, e) of their block."""
    logs = a + states.log_scale.mT
    scale = logs.detach().amax(-1, keepdim=True)
    return _split((logs - _finite(scale)).exp() @ torch.cat(states[:2], -1), scale)


def _remainder(a: Tensor, b: Tensor, v: Tensor, counts: Tensor) -> Sums:
    """What queries (B, blocks, b, m) gather from the first t keys of those in their block's reach.

    With t in binary, they are one aligned group of s keys for each power s that t holds, the
    largest first. Where t holds s, the query meets group t // s - 1 of the groups of s keys, at the
    scales of that group: a dense product of all in the block, of which its group is kept.
    """
    line = torch.arange(b.shape[-2], device=b.device)
    found = _split(
        a.new_zeros(*a.shape[:-1], v.shape[-1]), a.new_full((*a.shape[:-1], 1), -math.inf)
    )
    s = 1
    while s <= len(line):
        scales = b.detach().unflatten(-2, (-1, s)).amax(-2)
        phi_k = (b - _finite(scales).repeat_interleave(s, -2)).exp()
        group = (counts // s - 1).unsqueeze(-1)
        holds = counts.unsqueeze(-1) // s % 2 == 1
        logs = a + scales.gather(-2, group.clamp_min(0).expand(a.shape))
        logs = logs.masked_fill(~holds, -math.inf)
        scale = logs.detach().amax(-1, keepdim=True)
        weights = (logs - _finite(scale)).exp() @ phi_k.mT
        met = weights.masked_fill(line // s != group, 0) @ v
        found = found.merged(_split(met, scale))
        s *= 2
    return found
