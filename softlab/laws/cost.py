"""The law of the claimed arithmetic: what a counter sees, and how it grows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, bmm_flop

from softlab.core import Dims
from softlab.laws.law import Gap, Law, lengths, normal, rank_of

LEAST, MOST, PADDED, STEEPER = 0.8, 1.5, 24.0, 1.6
"""Counted over claimed: at least, at most, at most where a call pads; and how much steeper than
claimed the count may grow. Of the whole catalogue the ratio is 0.84, where distances are summed
without a product, to 1.44, where points are lifted by two coordinates, so that a claim of half or
of twice the work is out of this band whatever else is. Padded windows spend up to 22 times."""


def _distances(x: Sequence[int], y: Sequence[int], *_: Any, **__: Any) -> int:
    batch: int = math.prod(torch.broadcast_shapes(x[:-2], y[:-2]))
    return 2 * batch * x[-2] * y[-2] * x[-1]


def _accumulated(_: Sequence[int], x: Sequence[int], y: Sequence[int], **__: Any) -> int:
    flops: int = bmm_flop(x, y)
    return flops


def _seen() -> dict[Any, Any]:
    """How to count what torch's counter passes over: sums in place, and distances."""
    aten = torch.ops.aten
    return {
        aten.baddbmm_: _accumulated,
        aten._cdist_forward: _distances,
        aten._euclidean_dist: _distances,
    }


def _flops(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    m = rank_of(op)

    def both(tokens: int) -> tuple[int, int]:
        n, l = lengths(op, tokens, tokens)  # noqa: E741
        q, k, v = (normal(rng, rows, 16, dtype=torch.float32) for rows in (n, l, l))
        counting = FlopCounterMode(display=False, custom_mapping=_seen())
        with sdpa_kernel(SDPBackend.MATH), counting as counter, torch.no_grad():
            op(q, k, v)
        return op.cost(Dims(1, n, l, 16, 16)).flops, counter.get_total_flops()

    short = 8 * m + 528  # beyond which no kernel changes its form
    (claimed, counted), (more_claimed, more_counted) = both(short), both(2 * short)
    where = f"claimed {more_claimed} flops, counted {more_counted} at {2 * short} tokens"
    yield Gap(LEAST * more_claimed, more_counted, f"too much claimed: {where}")
    traits = getattr(op, "traits", None)
    padded = traits is not None and (traits.padded or traits.causal)
    most = PADDED if padded else MOST
    yield Gap(more_counted, most * more_claimed, f"too little claimed: {where}")
    growth, seen = more_claimed / max(1, claimed), more_counted / max(1, counted)
    yield Gap(seen, STEEPER * growth, f"growth for twice the tokens: {where}")
    dims = Dims(1, short, short, 16, 16)
    many = op.cost(dataclasses.replace(dims, batch=3)).flops
    yield Gap(abs(many - 3 * claimed), 0, f"three times the batch claims {many}, one {claimed}")


FLOPS: Law[Any] = Law(
    "claimed work",
    "cost(dims).flops is what torch counts of a call, grows with the tokens as that does, and is "
    "proportional to the batch",
    lambda op: hasattr(op, "cost"),
    _flops,
    family="cost",
    when="states a cost",
    allows="0.8 to 1.5 times the claim, or 24 where the claims say padded or causal; a growth 1.6 "
    "times as steep: lifted widths and padding are counted, sums without a product are not",
    catches="a dense product under a linear claim; half of the work, twice of it, a thousandth; "
    "the work of one matrix for a batch",
    examples=1,
)
