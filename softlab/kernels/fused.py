"""Sums and averages over exponentials of inner products, through torch's fused attention.

For points x (B, n, w), y (B, l, w) and values v (B, l, e)

    out_i = sum_j exp(<x_i, y_j>) v_j                                        (``fused_sum``)
    out_i = sum_j exp(<x_i, y_j>) v_j / sum_j exp(<x_i, y_j>)                (``fused_average``)

in memory linear in n + l, on every device. ``causal`` lets j run to i alone, where n = l. A kernel
of ``softlab.kernels`` is such a sum after a lift of its points.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from softlab.core import derived, graphed, recomputed

HELD_ENTRIES = 1 << 20
"""Weights held at once where they are formed."""


def fused_sum(x: Tensor, y: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """``exp(x y^T) v`` through fused softmax attention with one sink key.

    The sink is an extra key of score 0 that carries the indicator of an extra value channel. Its
    softmax weight is 1 / (1 + sum_j exp(<x_i, y_j>)), so dividing the other channels by it undoes
    the normalisation exactly. Overflows where an exponent exceeds that of the dtype.

    Causal: the sink is the first key, and a query of no use before the others lets all see it.
    """
    width = max(x.shape[-1], v.shape[-1] + 1)
    e = v.shape[-1]
    x, y = (_of_width(z, width) for z in (x, y))
    x, y = pad(x, (0, 0, int(causal), 0)), pad(y, (0, 0, 1, 0))
    indicator = torch.zeros(width, dtype=v.dtype, device=v.device)
    indicator[e] = 1
    sink = indicator.expand(v.shape[0], 1, width)
    v = torch.cat((sink, _of_width(v, width)), dim=-2)
    out = _attend(x, y, v, causal=causal)[:, int(causal) :]
    return out[..., :e] / out[..., e : e + 1]


def fused_average(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    key_mask: Tensor | None = None,
    *,
    scale: float = 1.0,
    causal: bool = False,
) -> Tensor:
    """Softmax average of v with scores ``scale x y^T``; a boolean mask (B, l) drops keys.

    A floating ``key_mask`` is added to the scores: logarithms of what each key counts for. Two
    leading dimensions in the place of B are taken as they lie in memory, which a view of one may
    not be.
    """
    width = max(x.shape[-1], v.shape[-1])
    e = v.shape[-1]
    if graphed(x, y, v, *(() if key_mask is None else (key_mask,))):
        # The backward pass of torch's kernels rounds a score that they scale, and the logarithm of
        # the sum, apart: gradients of huge scores come out infinite.
        x, scale = x * scale, 1.0
    x, y, v = (_of_width(z, width) for z in (x, y, v))
    return _attend(x, y, v, key_mask, scale=scale, causal=causal)[..., :e]


def _of_width(z: Tensor, width: int) -> Tensor:
    """With zeros up to that width; itself where it has it, since ``pad`` would copy."""
    return z if z.shape[-1] == width else pad(z, (0, width - z.shape[-1]))


def _attend(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    key_mask: Tensor | None = None,
    *,
    scale: float = 1.0,
    causal: bool,
) -> Tensor:
    fast, plain = (partial(f, scale=scale, causal=causal) for f in (_fused, plain_average))
    return derived(fast, plain, x, y, v, *(() if key_mask is None else (key_mask,)))


def _fused(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    key_mask: Tensor | None = None,
    *,
    scale: float,
    causal: bool,
) -> Tensor:
    # The fused kernels want four dimensions and one width.
    mask = None if key_mask is None else key_mask.unsqueeze(-2)
    flat = x.ndim == 3
    if flat:
        x, y, v = (z.unsqueeze(1) for z in (x, y, v))
        mask = None if mask is None else mask.unsqueeze(1)
    out = scaled_dot_product_attention(x, y, v, attn_mask=mask, scale=scale, is_causal=causal)
    return out.squeeze(1) if flat else out


def plain_average(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    key_mask: Tensor | None = None,
    *,
    scale: float = 1.0,
    causal: bool = False,
) -> Tensor:
    """The average in torch's differentiable operations, a block of rows at a time."""
    rows = max(1, HELD_ENTRIES // y[..., 0].numel())
    at = torch.arange(y.shape[-2], device=y.device)

    def block(x: Tensor, here: Tensor) -> Tensor:
        scores = scale * x @ y.mT
        if causal:
            scores = scores.masked_fill(at > here.unsqueeze(-1), -math.inf)
        if key_mask is not None and key_mask.dtype == torch.bool:
            scores = scores.masked_fill(~key_mask.unsqueeze(-2), -math.inf)
        elif key_mask is not None:
            scores = scores + key_mask.unsqueeze(-2)
        return scores.softmax(-1) @ v

    here = torch.arange(x.shape[-2], device=x.device)
    each = zip(x.split(rows, -2), here.split(rows), strict=True)
    return torch.cat([recomputed(block, *some) for some in each], -2)
