"""Laws of isolation: what must not reach an output: other matrices, masked keys, later tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softlab.core import Operator
from softlab.laws.law import (
    Gap,
    Law,
    deletes,
    has_core,
    is_plain,
    largest,
    lengths,
    needs_equal,
    normal,
    order,
    rank_of,
    takes_mask,
    tolerance,
)
from softlab.pinv import Inverting

F64 = torch.float64
CORE_KAPPA = 1e5
"""Condition of the drawn cores on their range: how far rounding may carry."""


def amplified(op: Operator, q: Tensor, k: Tensor) -> float:
    """The condition of the core, as far as it is inverted: on its range, where there is a cut-off.

    Products of a batch may be rounded otherwise than those of one matrix. 1 without an inverse.
    """
    if not isinstance(op, Inverting):
        return 1.0
    s = torch.linalg.svdvals(op.core(q, k))
    kept = s[s > len(s) * torch.finfo(s.dtype).eps * s[0]] if op.pinv.traits.singular else s
    return float(s[0] / kept[-1])


def _mask(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    m = rank_of(op)
    n, l = lengths(op, m + 5, m + 7)
    q, k, v = normal(rng, 2, n, 4), normal(rng, 2, l, 4), normal(rng, 2, l, 3)
    for dropped in (1, 4, 7):
        yield from _dropped(op, rng, (q, k, v), dropped, 1.0)
    if not has_core(op):
        # Scores of about -1e5, which a mask of a large negative score would overcome.
        one = normal(rng, 4)
        far = 300 * (one + 0.1 * q), -300 * (one + 0.1 * k), v
        yield from _dropped(op, rng, far, 4, 1 + largest(far[0]) ** 2)


def _dropped(
    op: Operator,
    rng: torch.Generator,
    tokens: tuple[Tensor, Tensor, Tensor],
    dropped: int,
    kappa: float,
) -> Iterator[Gap]:
    """Masks that drop so many keys, against the call without them."""
    q, k, v = tokens
    l = k.shape[-2]
    key_mask = torch.ones(2, l, dtype=torch.bool, device=k.device)
    for row in key_mask:
        row[order(rng, l)[:dropped]] = False
    masked = op(q, k, v, key_mask)
    for i in range(2):
        keep = key_mask[i]
        out, queries, where = masked[i], q[i], f"{dropped} of {l} keys masked"
        if op.traits.causal and not is_plain(op):
            yield Gap(largest(out[~keep]), 0, f"{where}: rows of deleted tokens")
        if needs_equal(op):  # the query of a deleted key is deleted with it
            out, queries = out[keep], queries[keep]
        deleted = op(queries, k[i][keep], v[i][keep])
        allowed = tolerance(F64, l, kappa=kappa, c=1000, scale=largest(deleted))
        yield Gap(largest(out - deleted), allowed, where)


def _padding(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    m = rank_of(op)
    n, l = lengths(op, m + 4, m + 6)
    q, k, v = normal(rng, n, 4), normal(rng, l, 4), normal(rng, l, 3)
    key_mask = torch.arange(l, device=k.device) < m + 3
    clean = op(q, k, v, key_mask)
    due = _gradients(op, (q, k, v), key_mask)
    for held in (1e6, math.nan, math.inf):
        k2, v2 = (torch.where(key_mask[:, None], x, held) for x in (k, v))
        missed = largest(op(q, k2, v2, key_mask) - clean)
        if is_plain(op) and missed != 0 and not math.isfinite(held):
            return  # as torch's own attention, which lets 0 times NaN through, and inf backwards
        yield Gap(missed, 0, f"padding holds {held}")
        for name, x, y in zip("qkv", _gradients(op, (q, k2, v2), key_mask), due, strict=True):
            allowed = tolerance(F64, l, c=1000, scale=1 + largest(y))
            yield Gap(largest(x - y), allowed, f"padding holds {held}: gradient in {name}")


def _gradients(op: Any, tokens: tuple[Tensor, ...], key_mask: Tensor) -> list[Tensor]:
    """Of the sum of the output's squares; zeros where it has no gradient."""
    leaves = [x.clone().requires_grad_() for x in tokens]
    out = op(*leaves, key_mask)
    if not out.requires_grad:
        return [torch.zeros_like(x) for x in leaves]
    return list(torch.autograd.grad(out.square().sum(), leaves, materialize_grads=True))


def _causal(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    n = rank_of(op) + 20
    for dtype in (F64, torch.float32):
        tokens = [normal(rng, 2, n, width, dtype=dtype) for width in (4, 4, 3)]
        out = op(*tokens)
        for seen in (1, 7, n - 1):
            # Of any size: a scale that all tokens share would drown the others, or round them.
            for scale in (1.0, 1e-6, 1e3, 1e6):
                later = [scale * normal(rng, *x.shape, dtype=dtype)[:, seen:] for x in tokens]
                changed = [
                    torch.cat((x[:, :seen], y), 1) for x, y in zip(tokens, later, strict=True)
                ]
                leak = largest(op(*changed)[:, :seen] - out[:, :seen])
                yield Gap(leak, 0, f"{dtype}, tokens from {seen} on changed to size {scale:g}")
    leaves = [x.requires_grad_() for x in tokens]
    early = op(*leaves)[:, :7].square().sum()
    for x in torch.autograd.grad(early, leaves, materialize_grads=True):
        yield Gap(largest(x[:, 7:]), 0, "gradient of the first 7 rows in later tokens")
    if is_plain(op):
        return
    q, k, v = tokens
    try:
        op(q[:, :-1], k, v)
    except Exception:  # whatever it raises, it is not taken in silence
        return
    yield Gap(1, 0, "fewer queries than keys were taken")


MASK_IS_DELETION: Law[Operator] = Law(
    "mask is deletion",
    "op(q, k, v, mask) = op(q, k[mask], v[mask]); causal, of queries too, and their rows are zero",
    deletes,
    _mask,
    family="isolation",
    when="takes a mask, and, of a function, does not tell the places of keys apart",
    allows="rounding of sums over l",
    catches="a mask that is ignored, or multiplied; landmarks of padding; a mask of -1e4",
)
PADDING_IS_IGNORED: Law[Operator] = Law(
    "padding is ignored",
    "what masked keys and values hold changes no bit of the output, and no gradient; NaN included, "
    "for an operator and for a function whose output heeds none",
    takes_mask,
    _padding,
    family="isolation",
    when="takes a mask",
    allows="no bit; of gradients rounding",
    catches="a mask by multiplication, through which NaN spreads, forwards or backwards",
)
CAUSAL: Law[Operator] = Law(
    "causal",
    "later tokens, of any size, change no bit of an output, and get no gradient from it",
    lambda op: op.traits.causal,
    _causal,
    family="isolation",
    when="claims causal",
    allows="no bit",
    catches="one later token; a large negative score; a scale that all tokens share",
    examples=2,
)
