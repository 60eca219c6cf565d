"""Sums of exponentials of inner products, in memory linear in the number of points.

For points x (B, n, w), y (B, l, w) and values v (B, l, e) this module computes

    out_i = sum_j exp(<x_i, y_j>) v_j                      (``tiled_sum``, ``fused_sum``)
    out_i = sum_j exp(<x_i, y_j>) v_j / sum_j exp(<x_i, y_j>)          (``fused_average``)

without ever holding the n x l matrix. A kernel of the family in ``softlab.kernels`` is such a sum
after a lift of its points. The tiled and the fused form obey the same laws; which is faster
depends on shape and device, and ``weighted_sum`` chooses from the measurements in
``benchmarks/kernel_sums.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

TILE_ENTRIES = 1 << 20
"""Kernel entries held at once by the tiled form: 4 MB in float32, what two cores cache."""

TILED_UP_TO = 512
"""On a CPU the tiled form wins when the shorter side has at most this many points."""


def weighted_sum(x: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """Return ``exp(x y^T) v`` by whichever of the two forms is faster; all exponents <= ~80."""
    short = min(x.shape[-2], y.shape[-2])
    wide = v.shape[-1] > 2 * x.shape[-1]
    if x.device.type == "cpu" and (short <= TILED_UP_TO or wide):
        return tiled_sum(x, y, v)
    return fused_sum(x, y, v)


def fused_sum(x: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """``exp(x y^T) v`` through fused softmax attention with one sink key.

    The sink is an extra key of score 0 that carries the indicator of an extra value channel. Its
    softmax weight is 1 / (1 + sum_j exp(<x_i, y_j>)), so dividing the other channels by it undoes
    the normalisation exactly. Overflows where an exponent exceeds that of the dtype.
    """
    width = max(x.shape[-1], v.shape[-1] + 1)
    e = v.shape[-1]
    x, y = (pad(z, (0, width - z.shape[-1])) for z in (x, y))
    y = pad(y, (0, 0, 0, 1))
    indicator = torch.zeros(width, dtype=v.dtype, device=v.device)
    indicator[e] = 1
    sink = indicator.expand(v.shape[0], 1, width)
    v = torch.cat((pad(v, (0, width - e)), sink), dim=-2)
    out = _attend(x, y, v)
    return out[..., :e] / out[..., e : e + 1]


def fused_average(x: Tensor, y: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Softmax average of v with scores ``x y^T``; a boolean mask (B, l) drops keys."""
    width = max(x.shape[-1], v.shape[-1])
    e = v.shape[-1]
    x, y, v = (pad(z, (0, width - z.shape[-1])) for z in (x, y, v))
    return _attend(x, y, v, key_mask)[..., :e]


def _attend(x: Tensor, y: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    # The fused kernels want four dimensions and one width; the scale is already in the points.
    mask = None if key_mask is None else key_mask[:, None, None, :]
    return scaled_dot_product_attention(
        x.unsqueeze(1), y.unsqueeze(1), v.unsqueeze(1), attn_mask=mask, scale=1.0
    ).squeeze(1)


def tiled_sum(x: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """``exp(min(x y^T, 0)) v`` tile by tile, recomputing the tiles in the backward pass.

    Exponents are clamped at 0, which removes the rounding noise of a kernel that never exceeds 1;
    for points whose inner products may be positive use ``fused_sum``.
    """
    out: Tensor = _TiledSum.apply(x, y, v)  # type: ignore[no-untyped-call]
    return out


class _TiledSum(torch.autograd.Function):
    """Forward and backward both cost one pass over the tiles and hold one tile (two, backward)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, v)
        out = x.new_zeros(*x.shape[:-1], v.shape[-1])
        for mats, rows, cols, kernel in _tiles(x, y):
            out[mats, rows].baddbmm_(kernel, v[mats, cols])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, v = ctx.saved_tensors
        want_x, want_y, want_v = ctx.needs_input_grad
        dx = torch.zeros_like(x) if want_x else None
        dy = torch.zeros_like(y) if want_y else None
        dv = torch.zeros_like(v) if want_v else None
        for mats, rows, cols, kernel in _tiles(x, y):
            g = grad[mats, rows]
            if dv is not None:
                dv[mats, cols].baddbmm_(kernel.mT, g)
            if dx is None and dy is None:
                continue
            # d out_i / d score_ij = K_ij v_j, so the score's gradient is K * (g v^T).
            weight = kernel.mul_(g @ v[mats, cols].mT)
            if dx is not None:
                dx[mats, rows].baddbmm_(weight, y[mats, cols])
            if dy is not None:
                dy[mats, cols].baddbmm_(weight.mT, x[mats, rows])
        return dx, dy, dv


def _tiles(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """Yield (matrices, rows, columns, kernel values) over the whole of ``exp(min(x y^T, 0))``."""
    batch, n, l = x.shape[0], x.shape[1], y.shape[1]  # noqa: E741
    # Keep the short side whole and cut the long one; group matrices only if tiles stay tall.
    group = max(1, min(batch, TILE_ENTRIES // (min(n, l) * min(max(n, l), 256))))
    across = min(l, max(64, TILE_ENTRIES // (group * min(n, 256)))) if l > n else l
    down = min(n, max(64, TILE_ENTRIES // (group * across)))
    buffer = x.new_empty(group * down * across)
    for b in range(0, batch, group):
        mats = slice(b, min(b + group, batch))
        for i in range(0, n, down):
            rows = slice(i, min(i + down, n))
            for j in range(0, l, across):
                cols = slice(j, min(j + across, l))
                shape = (mats.stop - b, rows.stop - i, cols.stop - j)
                tile = buffer[: shape[0] * shape[1] * shape[2]].view(shape)
                torch.bmm(x[mats, rows], y[mats, cols].mT, out=tile)
                yield mats, rows, cols, tile.clamp_(max=0).exp_()
