"""The law of the claimed arithmetic: what a counter sees, and how it grows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, bmm_flop, sdpa_flop_count

from softlab.core import Dims, as_matrix
from softlab.laws.law import Gap, Law, lengths, normal, rank_of

LEAST, MOST, PADDED, STEEPER = 0.8, 1.5, 24.0, 1.6
UNLIKE = 0.7, 2.1
"""Counted over claimed: at least, at most, at most where a call pads; how much steeper than claimed
the count may grow; and at least and at most where two sizes differ. Of the whole catalogue the
ratio is 0.84, where distances are summed without a product, to 1.44, where points are lifted by two
coordinates, so that a claim of half or of twice the work is out of this band whatever else is.
Padded windows spend up to 22 times. With more keys than queries those distances weigh more: 0.78.
Padding values to the width d of the keys doubles a sum at most, and two lifted coordinates add
(d + 2) / d to it: 2.05 at d = 80."""


def _distances(x: Sequence[int], y: Sequence[int], *_: Any, **__: Any) -> int:
    batch: int = math.prod(torch.broadcast_shapes(x[:-2], y[:-2]))
    return 2 * batch * x[-2] * y[-2] * x[-1]


def _accumulated(_: Sequence[int], x: Sequence[int], y: Sequence[int], **__: Any) -> int:
    flops: int = bmm_flop(x, y)
    return flops


def _fused(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    flops: int = sdpa_flop_count(q, k, v)
    return flops


def _seen() -> dict[Any, Any]:
    """How to count what torch's counter passes over: sums in place, distances, a CPU's kernel."""
    aten = torch.ops.aten
    return {
        aten.baddbmm_: _accumulated,
        aten._cdist_forward: _distances,
        aten._euclidean_dist: _distances,
        aten._scaled_dot_product_flash_attention_for_cpu: _fused,
    }


def _flops(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    m = rank_of(op)

    def both(n: int, l: int, d: int = 16, e: int = 16) -> tuple[int, int]:
        n, l = lengths(op, n, l)
        q, k, v = (normal(rng, *x, dtype=torch.float32) for x in ((n, d), (l, d), (l, e)))
        counting = FlopCounterMode(display=False, custom_mapping=_seen())
        with sdpa_kernel(SDPBackend.MATH), counting as counter, torch.no_grad():
            op(q, k, v)
        return op.cost(Dims(1, n, l, d, e)).flops, counter.get_total_flops()

    short = 8 * m + 528  # beyond which no kernel changes its form
    (claimed, counted), (more_claimed, more_counted) = both(short, short), both(*(2 * short,) * 2)
    where = f"claimed {more_claimed} flops, counted {more_counted} at {2 * short} tokens"
    yield Gap(LEAST * more_claimed, more_counted, f"too much claimed: {where}")
    traits = getattr(op, "traits", None)
    padded = traits is not None and (traits.padded or traits.causal)
    narrow = padded or (traits is not None and traits.restricted)
    most = PADDED if padded else MOST
    yield Gap(more_counted, most * more_claimed, f"too little claimed: {where}")
    growth, seen = more_claimed / max(1, claimed), more_counted / max(1, counted)
    yield Gap(seen, STEEPER * growth, f"growth for twice the tokens: {where}")
    for name, sizes in {
        "keys": (short, 3 * short), "queries": (3 * short, short),
        "the width of q and k": (short, short, 80), "the width of v": (short, short, 16, 80),
    }.items():  # fmt: skip
        wide = len(sizes) > 2
        if narrow and not wide:
            continue  # windows are cut otherwise where lengths differ
        mine, theirs = both(*sizes)
        where = f"more of {name}: claimed {mine} flops, counted {theirs}"
        if not padded:
            least, most = UNLIKE
            yield Gap(least * mine, theirs, f"too much claimed, {where}")
            yield Gap(theirs, most * mine, f"too little claimed, {where}")
        yield Gap(theirs / max(1, counted), 2 * mine / max(1, claimed), f"growth, {where}")
    if traits is not None and traits.restricted:
        yield from _entries(op, rng)
    dims = Dims(1, short, short, 16, 16)
    many = op.cost(dataclasses.replace(dims, batch=3)).flops
    yield Gap(abs(many - 3 * claimed), 0, f"three times the batch claims {many}, one {claimed}")


def _entries(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    """A claim of few entries: a score and a value each, and no more for a padded window."""
    n, l = lengths(op, rank_of(op) + 40, rank_of(op) + 64)
    d, e = 8, 24
    kept = int((as_matrix(op, normal(rng, n, d), normal(rng, l, d)) != 0).sum())
    least, claimed = 2 * kept * (d + e), op.cost(Dims(1, n, l, d, e)).flops
    where = f"{kept} entries of {n} x {l}, claimed {claimed} flops"
    yield Gap(LEAST * least, claimed, f"too little claimed: {where}")
    if op.traits.padded:
        yield Gap(claimed, MOST * least, f"too much claimed: {where}")


FLOPS: Law[Any] = Law(
    "claimed work",
    "cost(dims).flops is what torch counts of a call, grows with queries, keys and either width as "
    "that does, and is proportional to the batch",
    lambda op: hasattr(op, "cost"),
    _flops,
    family="cost",
    when="states a cost",
    allows="0.8 to 1.5 times the claim, 0.7 to 2.1 where sizes differ, or 24 where the claims say "
    "padded or causal; a growth 1.6 times as steep, 2 with one size alone: lifted widths and "
    "padding are counted, sums without a product are not",
    catches="a dense product under a linear claim; half of the work, twice of it, a thousandth; "
    "the work of one matrix for a batch; a claim blind to a width",
    examples=1,
)
