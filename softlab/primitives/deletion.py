"""Masked keys taken out, for operators of which their number decides how the others are treated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from softlab.primitives.banded import rows


def of_survivors(
    call: Callable[[Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
) -> Tensor:
    """``call(q, k, v)`` of tensors (B, n, d), (B, s, d), (B, s, e) whose keys all take part.

    Arguments as ``validation.admit`` returns them, with any leading dimensions. Matrices that keep
    as many keys go together. Returns (..., n, e).
    """
    lead, l = q.shape[:-2], k.shape[-2]
    q, k, v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
    if key_mask is None:
        out = call(q, k, v)
    else:
        mask = key_mask.reshape(-1, l)
        kept = mask.sum(-1)
        first = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)
        out = v.new_zeros(*q.shape[:-1], v.shape[-1])
        for s in kept.unique().tolist():
            at = (kept == s).nonzero().squeeze(-1)
            alive = first[at, :s]
            part = call(q[at], rows(k[at], alive), rows(v[at], alive))
            out = out.index_copy(0, at, part)
    return out.reshape(*lead, *out.shape[-2:])
