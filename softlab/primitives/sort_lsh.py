"""Tokens sorted by their hashes, so that those alike are neighbours, and cut into even parts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from softlab.core import Stream
from softlab.kernels.fused import fused_average
from softlab.landmarks.selector import take
from softlab.validation import Integers

Bits = Annotated[
    int,
    Integers(
        1,
        62,
        says=", and a hash must fit 64-bit integers; give 1 to 62. More than log2 of the number of "
        "tokens sort no finer.",
    ),
]
"""Of a hash."""


class Blocks(NamedTuple):
    """Who attends to whom, for B matrices of n queries and l keys that all take part.

    ``queries`` (B, n): queries in the order of their hashes. ``of_queries`` (blocks, Q): which of
    that order belong to each block, and 0 where nothing does; ``real`` (blocks, Q): whether a query
    is there. ``keys`` (B, blocks, W): the keys that a block's queries meet, any where there are
    fewer. ``log_weights`` (B or 1, blocks, W): the logarithm of what each counts for, 0 for once,
    -inf where no key is.
    """

    queries: Tensor
    of_queries: Tensor
    real: Tensor
    keys: Tensor
    log_weights: Tensor


def gray_places(x: Tensor, planes: Tensor) -> Tensor:
    """Place (..., n) of each token's signs in the reflected Gray code, 0 to 2^bits - 1.

    ``planes``: normals (d, bits), float64, to which x (..., n, d) is projected in float64.
    """
    bits = planes.shape[-1]
    projected = x.detach().double() @ planes.to(x.device)
    digits = (projected > 0).long().cumsum(-1) % 2
    return (digits << torch.arange(bits - 1, -1, -1, device=x.device)).sum(-1)


def hyperplanes(d: int, bits: int, seed: int) -> Tensor:
    """Normals (d, bits), float64, on the CPU."""
    return Stream(seed, "hashes, hyperplanes").normal(d, bits)


def bounds(size: int, count: int) -> list[int]:
    """Where even parts begin, and the end: position r belongs to part r count // size."""
    return [-(-i * size // count) for i in range(count + 1)]


def parts(of: list[int]) -> tuple[Tensor, Tensor]:
    """Positions (count, width) of the parts between bounds, and which of them count.

    They are 0 behind the end of a short part.
    """
    edges = torch.tensor(of, device="cpu")
    first, end = edges[:-1], edges[1:]
    width = max(end - first for first, end in pairwise(of))  # a compiled program can have no look
    at = first[:, None] + torch.arange(width, device="cpu")
    real = at < end[:, None]
    return at.where(real, 0), real


def even_parts(size: int, count: int) -> tuple[Tensor, Tensor]:
    """The ``parts`` of so many positions in that many even parts."""
    return parts(bounds(size, count))


def unsorted(x: Tensor, order: Tensor, real: Tensor) -> Tensor:
    """Rows x (B, parts, width, e) of tokens in an order (B, n), at their places: (B, n, e)."""
    # The r-th real row of the parts is the token of rank r.
    places = (~real.flatten()).to(torch.uint8).argsort(stable=True)[: order.shape[-1]]
    at = places[order.argsort(dim=-1)]
    return take(x.flatten(1, 2), at)


def block_average(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks) -> Tensor:
    """The averages (B, n, e) of v with weights w exp(q k^T / sqrt(d)), w those of the blocks.

    Arguments: q (B, n, d), k (B, l, d), v (B, l, e).
    """
    x, y, z = (
        take(t, at.flatten(1)).reshape(-1, at.shape[-1], t.shape[-1])
        for t, at in (
            (q, blocks.queries[:, blocks.of_queries]),
            (k, blocks.keys),
            (v, blocks.keys),
        )
    )
    # One softmax over all keys of a block is the merge of its parts by log-sum-exp.
    logs = blocks.log_weights.to(q.dtype).expand(len(q), -1, -1).flatten(0, 1)
    met = fused_average(x, y, z, logs, scale=q.shape[-1] ** -0.5)
    met = met.reshape(len(q), *blocks.of_queries.shape, v.shape[-1])
    return unsorted(met, blocks.queries, blocks.real)


def block_weights(blocks: Blocks, n: int, l: int) -> Tensor:
    """What each key counts for in each query's block, dense: (B, n, l), float64."""
    of_block = torch.zeros(
        *blocks.keys.shape[:2], l, dtype=torch.float64, device=blocks.keys.device
    )
    logs = blocks.log_weights.expand(blocks.keys.shape)
    of_block = of_block.scatter_add(-1, blocks.keys, logs.exp())
    block_of = torch.arange(n, device=logs.device) * blocks.keys.shape[1] // n
    at = torch.empty_like(blocks.queries)
    at = at.scatter(-1, blocks.queries, block_of.expand(blocks.queries.shape))
    return take(of_block, at)


def over_survivors(
    call: Callable[[Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
) -> Tensor:
    """What ``call`` returns, (..., n, e), for the keys alone that a mask (..., l) keeps.

    Leading dimensions are equal, and reach ``call`` as one. It cuts parts by the number of keys, so
    matrices that keep as many go together, with the survivors in their order.
    """
    lead = q.shape[:-2]
    q, k, v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
    if key_mask is None:
        out = call(q, k, v)
    else:
        mask = key_mask.reshape(-1, key_mask.shape[-1])
        kept = mask.sum(-1)
        first = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)
        out = v.new_zeros(*q.shape[:-1], v.shape[-1])
        for s in kept.unique().tolist():
            at = (kept == s).nonzero().squeeze(-1)
            survivors = first[at, :s]
            part = call(q[at], take(k[at], survivors), take(v[at], survivors))
            out = out.index_copy(0, at, part)
    return out.reshape(*lead, *out.shape[-2:])
