"""Causal forms: how an operator is kept from seeing any later token.

Nothing here masks by a large negative score, and no scale is shared with later tokens: what comes
later takes part in no operation, so no bit of an output depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softlab import checks
from softlab.landmarks.selector import take
from softlab.operators.degrees import over


class Sums(NamedTuple):
    """A weighted sum of values and the sum of its weights, both times exp(-log_scale).

    ``values`` (..., n, e), ``weights`` (..., n, 1), ``log_scale`` (..., n, 1), -inf where there is
    no weight at all. The scale keeps the others in range and has no gradient, as it cancels.
    """

    values: Tensor
    weights: Tensor
    log_scale: Tensor

    def average(self) -> Tensor:
        """Values over weights, (..., n, e), and 0 where the weight is not positive."""
        return over(self.values, self.weights)

    def merged(self, other: Sums) -> Sums:
        """The sums over the keys of both."""
        top = torch.maximum(self.log_scale, other.log_scale)
        near = torch.where(top == -math.inf, 0, top)  # or -inf - -inf where neither has a weight
        mine, theirs = ((x.log_scale - near).exp() for x in (self, other))
        return Sums(
            mine * self.values + theirs * other.values,
            mine * self.weights + theirs * other.weights,
            top,
        )


Meet = Callable[[Sequence[Tensor], Sequence[Tensor]], Sums]
"""What queries gather from keys that all of them may see: tensors (..., s, w) of some queries and
(..., t, w) of some keys to sums of s rows."""


def by_halves(meet: Meet, of_queries: Sequence[Tensor], of_keys: Sequence[Tensor]) -> Sums:
    """What each query gathers from the keys up to its own position.

    Every token meets itself. Then, for s = 1, 2, 4, ..., blocks of s tokens are paired, and the
    queries of the second block of a pair meet the keys of the first, all of which come earlier: in
    ceil(log2(n)) rounds every query has met every earlier key once. A round costs what half of the
    queries and half of the keys cost without causality, in any form that ``meet`` likes, which also
    chooses its scales among keys that its queries may see. Blocks are counted from the first
    token, so what comes later changes no bit.

    Arguments: tensors (..., n, w) of the queries and of the keys, leading dimensions alike.
    """
    n = of_queries[0].shape[-2]
    alone = [[x.unsqueeze(-2) for x in some] for some in (of_queries, of_keys)]
    found = Sums(*(x.squeeze(-2) for x in meet(*alone)))
    s = 1
    while s < n:
        found = found.merged(_round(meet, of_queries, of_keys, s))
        s *= 2
    return found


def _round(meet: Meet, of_queries: Sequence[Tensor], of_keys: Sequence[Tensor], s: int) -> Sums:
    """What the second blocks of s tokens gather from the first blocks; nothing for the first."""
    n = of_queries[0].shape[-2]
    whole = n // (2 * s) * 2 * s
    parts: list[Sums] = []
    if whole:
        later, earlier = (
            [x[..., :whole, :].unflatten(-2, (-1, 2, s))[..., half, :, :] for x in some]
            for some, half in ((of_queries, 1), (of_keys, 0))
        )
        met = meet(later, earlier)
        parts.append(Sums(*(_behind(x, s, fill).flatten(-3, -2) for x, fill in _filled(met))))
    if n - whole > s:
        later = [x[..., whole + s :, :] for x in of_queries]
        earlier = [x[..., whole : whole + s, :] for x in of_keys]
        met = meet(later, earlier)
        parts.append(Sums(*(_behind(x, s, fill) for x, fill in _filled(met))))
    elif n > whole:
        like = parts[0]
        parts.append(
            Sums(
                *(
                    x.new_full((*x.shape[:-2], n - whole, x.shape[-1]), fill)
                    for x, fill in _filled(like)
                )
            )
        )
    return Sums(*(torch.cat(some, -2) for some in zip(*parts, strict=True)))


def _filled(sums: Sums) -> list[tuple[Tensor, float]]:
    """The three tensors, each with what stands for no key at all."""
    return list(zip(sums, (0.0, 0.0, -math.inf), strict=True))


def _behind(x: Tensor, s: int, fill: float) -> Tensor:
    """X (..., t, w) behind s rows of ``fill``, (..., s + t, w)."""
    return torch.cat((x.new_full((*x.shape[:-2], s, x.shape[-1]), fill), x), -2)


def of_kept(
    call: Callable[[Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
) -> Tensor:
    """A causal ``call(q, k, v)`` with masked tokens deleted; their rows are zero.

    They are put behind the others, where no token that takes part sees them. Arguments as
    ``checks.admit`` returns them. Raises ``ValueError`` unless there is a query at every key.
    """
    checks.query_at_every_key(q, k)
    if key_mask is None:
        return call(q, k, v)
    order = (~key_mask).to(torch.uint8).argsort(dim=-1, stable=True)
    out = call(*(take(x, order) for x in (q, k, v)))
    return torch.where(key_mask.unsqueeze(-1), take(out, order.argsort(dim=-1)), 0)
