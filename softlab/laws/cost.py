"""The law of the claimed arithmetic: what a counter sees, and how it grows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from softlab.core import Dims
from softlab.laws.law import Gap, Law, lengths, normal, rank_of

LEAST, STEEPER = 0.2, 1.6
"""Least counted over claimed: what runs fused, or by differences, the counter does not see. And how
much steeper than claimed the count may grow."""


def _flops(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    m = rank_of(op)

    def both(tokens: int) -> tuple[int, int]:
        n, l = lengths(op, tokens, tokens)  # noqa: E741
        q, k, v = (normal(rng, rows, 16, dtype=torch.float32) for rows in (n, l, l))
        plain = sdpa_kernel(SDPBackend.MATH)
        with plain, FlopCounterMode(display=False) as counter, torch.no_grad():
            op(q, k, v)
        return op.cost(Dims(1, n, l, 16, 16)).flops, counter.get_total_flops()

    short = 8 * m + 528  # beyond which no kernel changes its form
    (claimed, counted), (more_claimed, more_counted) = both(short), both(2 * short)
    where = f"claimed {more_claimed} flops, counted {more_counted} at {2 * short} tokens"
    yield Gap(LEAST * more_claimed, more_counted, f"a fifth of the claim: {where}")
    growth, seen = more_claimed / max(1, claimed), more_counted / max(1, counted)
    yield Gap(seen, STEEPER * growth, f"growth for twice the tokens: {where}")
    dims = Dims(1, short, short, 16, 16)
    many = op.cost(dataclasses.replace(dims, batch=3)).flops
    yield Gap(abs(many - 3 * claimed), 0, f"three times the batch claims {many}, one {claimed}")


FLOPS: Law[Any] = Law(
    "claimed work",
    "cost(dims).flops grows with the tokens as what torch counts of a call, is not five times as "
    "much, and is proportional to the batch",
    lambda op: hasattr(op, "cost"),
    _flops,
    family="cost",
    when="states a cost",
    allows="a growth 1.6 times as steep, since the counter sees padding and lifted widths",
    catches="a dense product under a linear claim; the work of one matrix for a batch",
    examples=1,
)
