"""Causal forms: how an operator is kept from seeing any later token.

Nothing here masks by a large negative score, and no scale is shared with later tokens: what comes
later takes part in no operation, so no bit of an output depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from softlab import validation
from softlab.core import budget, recomputed
from softlab.landmarks.selector import take
from softlab.primitives.weighted_sums import Sums

HELD_NUMBERS = 1 << 20
"""Numbers that meeting blocks hold at once."""


Meet = Callable[[Sequence[Tensor], Sequence[Tensor]], Sums]
"""What queries gather from keys that all of them may see: tensors (..., s, w) of some queries and
(..., t, w) of some keys to sums of s rows."""


def by_halves(
    meet: Meet, of_queries: Sequence[Tensor], of_keys: Sequence[Tensor], held: int
) -> Sums:
    """What each query gathers from the keys up to its own position.

    Every token meets itself. Then, for s = 1, 2, 4, ..., blocks of s tokens are paired, and the
    queries of the second block of a pair meet the keys of the first, all of which come earlier: in
    ceil(log2(n)) rounds every query has met every earlier key once. A round costs what half of the
    queries and half of the keys cost without causality, in any form that ``meet`` likes, which also
    chooses its scales among keys that its queries may see. Blocks are counted from the first
    token, so what comes later changes no bit.

    Arguments: tensors (..., n, w) of the queries and of the keys, leading dimensions alike;
    ``held``, about how many numbers ``meet`` holds a token. Pairs meet a few at a time, and again
    in the backward pass, so that the memory is that of the tensors.
    """
    lead, n = of_queries[0].shape[:-2], of_queries[0].shape[-2]
    x, y = ([z.reshape(-1, n, z.shape[-1]) for z in some] for some in (of_queries, of_keys))
    found = Sums(*(z.unflatten(0, (-1, n)).squeeze(-2) for z in _apart(meet, x, y, 1, held)))
    s = 1
    while s < n:
        at = (torch.arange(n, device=x[0].device) // s % 2).nonzero().squeeze(-1)
        more = Sums(*(z.index_select(1, at) for z in found)).merged(_round(meet, x, y, s, held))
        found = Sums(*(z.index_copy(1, at, new) for z, new in zip(found, more, strict=True)))
        s *= 2
    return Sums(*(z.reshape(*lead, n, z.shape[-1]) for z in found))


def _round(meet: Meet, x: Sequence[Tensor], y: Sequence[Tensor], s: int, held: int) -> Sums:
    """What the second blocks of s tokens gather from the first, their rows in order."""
    n = x[0].shape[1]
    pairs = n // (2 * s)
    whole = 2 * s * pairs
    parts: list[Sums] = []
    if pairs:
        later, earlier = (
            [z[:, :whole].unflatten(1, (pairs, 2, s))[:, :, half] for z in some]
            for some, half in ((x, 1), (y, 0))
        )
        met = _apart(meet, later, earlier, s, held)
        parts.append(Sums(*(z.unflatten(0, (-1, pairs)).flatten(1, 2) for z in met)))
    if n - whole > s:  # the second block of the last pair is short
        later, earlier = [z[:, whole + s :] for z in x], [z[:, whole : whole + s] for z in y]
        parts.append(_apart(meet, later, earlier, s, held))
    return Sums(*(torch.cat(some, 1) for some in zip(*parts, strict=True)))


def _apart(meet: Meet, x: Sequence[Tensor], y: Sequence[Tensor], s: int, held: int) -> Sums:
    """Blocks that meet, (P, t, w) with (P, s, w), as many at once as hold ``HELD_NUMBERS``."""
    tensors = [z.reshape(-1, z.shape[-2] if s > 1 else 1, z.shape[-1]) for z in (*x, *y)]
    step = max(1, budget(HELD_NUMBERS, x[0].device) // (s * held))

    def some(*z: Tensor) -> tuple[Tensor, ...]:
        return tuple(meet(z[: len(x)], z[len(x) :]))

    split = zip(*(z.split(step) for z in tensors), strict=True)
    parts = [recomputed(some, *each) for each in split]
    return Sums(*(torch.cat(each) for each in zip(*parts, strict=True)))


def of_kept(
    call: Callable[[Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
) -> Tensor:
    """A causal ``call(q, k, v)`` with masked tokens deleted; their rows are zero.

    They are put behind the others, where no token that takes part sees them. Arguments as
    ``validation.admit`` returns them. Raises ``ValueError`` unless there is a query at every key.
    """
    validation.query_at_every_key(q, k)
    if key_mask is None:
        return call(q, k, v)
    order = (~key_mask).to(torch.uint8).argsort(dim=-1, stable=True)
    out = call(*(take(x, order) for x in (q, k, v)))
    return torch.where(key_mask.unsqueeze(-1), take(out, order.argsort(dim=-1)), 0)
