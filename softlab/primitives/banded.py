"""Softmax averages over bands: an interval of the keys for each query, and a few keys besides."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from softlab.core import budget
from softlab.landmarks.selector import position_of
from softlab.primitives.weighted_sums import Sums

HELD_ENTRIES = 1 << 18
"""Scores, keys and values held at once, at least; more where the queries themselves are more."""


def centres(n: int, keys: Tensor) -> Tensor:
    """Where n queries stand among s keys: p_i = floor((2 i + 1) s / (2 n)), (..., n).

    ``keys``: integers s >= 1, (..., 1). The key whose cell holds the middle of the query's cell
    where both lines of cells are equally long: i itself where n = s, and in 0 to s - 1 always.
    """
    return (2 * torch.arange(n, device=keys.device) + 1) * keys // (2 * n)


def before(n: int, l: int, key: int) -> int:
    """How many of n queries stand before that key of l: (2 i + 1) l < 2 n key, see ``centres``."""
    return min(n, max(0, -(-(2 * n * key - l) // (2 * l))))


def ordinals(key_mask: Tensor | None, l: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many keys take part, (B, 1), and where the survivors stand, first to last, (B, l).

    B is 1 without a mask; positions beyond the survivors are those of masked keys.
    """
    line = torch.arange(l, device=device).unsqueeze(0)
    if key_mask is None:
        return torch.full((1, 1), l, device=device), line
    return key_mask.sum(-1, keepdim=True), position_of(line.expand(key_mask.shape), key_mask)


def widest(window: int, block: int, n: int, l: int) -> int:
    """How many keys ``block`` neighbouring queries see at most, p_i - window to p_i + window each.

    That is p_last - p_first + 2 window + 1, of ``centres`` p among at most l keys.
    """
    return min(l, 2 * window + 1 - (-(block - 1) * l // n))


def rows(x: Tensor, at: Tensor) -> Tensor:
    """Rows ``at`` (B or 1, ...) of x (B, l, d): (B, ..., d)."""
    if len(at) == 1:
        taken = x.index_select(1, at.flatten())
    else:
        taken = x.gather(1, at.flatten(1).unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    return taken.reshape(len(x), *at.shape[1:], x.shape[-1])


def support_sizes(
    low: Tensor, high: Tensor, others: Tensor, block: int, visible: Tensor | None = None
) -> Tensor:
    """How many keys each query attends to in ``banded_average``, (..., n)."""
    of_query = others.repeat_interleave(block, -2)[..., : low.shape[-1], :]
    inside = (of_query >= low.unsqueeze(-1)) & (of_query <= high.unsqueeze(-1))
    beside = (of_query >= 0) & ~inside
    return high - low + 1 + (beside if visible is None else beside & visible).sum(-1)


def banded_average(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    low: Tensor,
    high: Tensor,
    others: Tensor,
    block: int,
    visible: Tensor | None = None,
    width: int | None = None,
) -> Tensor:
    """The average of v with weights softmax(q k^T), each row over its own few keys.

    Query i attends to the keys low_i, ..., high_i and to those among ``others`` of its block that
    lie outside: no key counts twice. Arguments: q (B, n, d), scaled; k (B, l, d); v (B, l, e);
    ``low`` and ``high`` (B or 1, n), positions that do not decrease with i, low_i <= high_i;
    ``block``, the number b >= 1 of neighbouring queries that share their others; ``others``
    (B or 1, ceil(n / b), c), distinct positions, -1 for none; ``visible`` (B or 1, n, c), which of
    them each query may see, or None for all; ``width``, at most so many keys are from the first to
    the last of a block, where that is known: a compiled program can have no look.

    A block is one dense product over all keys from its first interval to its last, so the work is
    n (b + w) for intervals of w keys where n = l. As many blocks as hold about the entries of q are
    computed at once: the memory is linear, and the number of such parts does not grow with n.
    """
    return _by_blocks(_average, q, k, v, low, high, others, block, visible, width)


def banded_sums(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    low: Tensor,
    high: Tensor,
    others: Tensor,
    block: int,
    visible: Tensor | None = None,
    width: int | None = None,
) -> Sums:
    """The sums of v with weights exp(q k^T), and of the weights, over the same keys."""
    v = torch.cat((v, torch.ones_like(v[..., :1])), -1)
    out = _by_blocks(_sums, q, k, v, low, high, others, block, visible, width)
    return Sums(out[..., :-2], out[..., -2:-1], out[..., -1:].detach())


def _by_blocks(
    reduce: Callable[[Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    low: Tensor,
    high: Tensor,
    others: Tensor,
    block: int,
    visible: Tensor | None,
    width: int | None,
) -> Tensor:
    """``reduce`` of each block's scores, -inf where a query does not see a key, and values."""
    (lead, n, d), e = q.shape, v.shape[-1]
    blocks = -(-n // block)
    at = torch.arange(blocks * block, device=q.device).clamp_max(n - 1)
    q, low, high = (x[:, at].unflatten(1, (blocks, block)) for x in (q, low, high))
    first = low[..., :1]
    if width is None or not torch.compiler.is_compiling():
        width = int((high[..., -1:] - first).max()) + 1
    reach = first + torch.arange(width, device=q.device)
    held = lead * (width + others.shape[-1]) * (block + d + e)
    step = max(1, max(budget(HELD_ENTRIES, q.device), q.numel()) // held)
    seen = None if visible is None else visible[:, at].unflatten(1, (blocks, block))
    parts = [
        reduce(
            *_seen(
                q[:, s],
                k,
                v,
                low[:, s],
                high[:, s],
                reach[:, s],
                others[:, s],
                None if seen is None else seen[:, s],
            )
        )
        for s in (slice(i, i + step) for i in range(0, blocks, step))
    ]
    return torch.cat(parts, 1).flatten(1, 2)[:, :n]


def _average(scores: Tensor, v: Tensor) -> Tensor:
    return scores.softmax(-1) @ v


def _sums(scores: Tensor, v: Tensor) -> Tensor:
    """Sums of v, and the logarithm of their scale as a last column."""
    top = scores.detach().amax(-1, keepdim=True)
    return torch.cat(((scores - top).exp() @ v, top), -1)


def _seen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    low: Tensor,
    high: Tensor,
    reach: Tensor,
    others: Tensor,
    seen: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Scores and values of some blocks, q (B, blocks, b, d), over keys ``reach`` and others."""
    width = reach.shape[-1]
    keys = torch.cat((reach, others.expand(*reach.shape[:-1], -1)), -1)
    between = keys.unsqueeze(-2)
    member = (between >= low.unsqueeze(-1)) & (between <= high.unsqueeze(-1))
    member[..., width:] = ~member[..., width:] & (others >= 0).unsqueeze(-2)
    if seen is not None:
        member[..., width:] &= seen
    at = keys.clamp(0, k.shape[-2] - 1)
    return (q @ rows(k, at).mT).masked_fill(~member, -math.inf), rows(v, at)
