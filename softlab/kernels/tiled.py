"""The Gaussian sum tile by tile: sum_j exp(-|x_i - y_j|^2 / (2 s^2)) v_j, memory linear in n + l.

Nothing is kept for the backward pass but the arguments: tiles of the kernel are formed again. No
lifted copy of the points is made either, which matters where one side has few points and forming
the kernel costs little more than reading the other side.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softlab.core import budget, derived
from softlab.kernels.fused import plain_sum

TILE_ENTRIES = 1 << 20
"""Kernel entries held at once: 4 MB in float32, near the cache of two cores; more on a GPU."""

TILED_UP_TO = 512
"""On a CPU tiles serve a shorter side of at most this many points; here both forms take about as
long, at half of it tiles are faster, at twice of it fused attention is."""


def suits(x: Tensor, y: Tensor, v: Tensor) -> bool:
    """Whether tiles are the faster form here, or the only one in linear memory.

    On a CPU with a short side or very wide values: the fused form needs points and values of one
    width, so wide values widen its scores too. The bound is measured in
    ``benchmarks/attention.py``, which times both forms well to either side. On CUDA where no fused
    kernel is: in float64, and for values wider than 128 numbers, which its kernels do not hold.
    """
    short, wide = min(x.shape[-2], y.shape[-2]), v.shape[-1] > 2 * x.shape[-1]
    if x.device.type == "cuda":
        return x.dtype == torch.float64 or (wide and v.shape[-1] > 128)
    return x.device.type == "cpu" and (short <= TILED_UP_TO or wide)


def tiled_sum(x: Tensor, y: Tensor, v: Tensor, variance: float) -> Tensor:
    """``exp(-|x_i - y_j|^2 / (2 variance)) v`` for x (B, n, d), y (B, l, d), v (B, l, e).

    Exponents come from inner products, with a rounding error of eps * max|x|^2 / variance.
    """
    fast = partial(_TiledSum.apply, variance)
    plain = partial(plain_sum, scale=1 / variance, gaussian=True)
    return derived(fast, plain, x, y, v)


def one_tile(x: Tensor, y: Tensor) -> bool:
    """Whether all matrices of a batch are held at once."""
    return x.shape[0] * x.shape[1] * y.shape[1] <= budget(TILE_ENTRIES, x.device)


def formed(x: Tensor, y: Tensor, variance: float) -> Tensor:
    """The kernel (B, n, l), which must be ``one_tile``, for sums both ways; it has no graph."""
    ((*_, kernel),) = _tiles(x, y, variance)
    return kernel


class _TiledSum(torch.autograd.Function):
    """With W = (g v^T) * K: dx = (W y - x * (W 1)) / variance, dy alike, dv = K^T g."""

    @staticmethod
    def forward(ctx: Any, variance: float, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, v)
        ctx.variance = variance
        out = x.new_empty(*x.shape[:-1], v.shape[-1])
        for mats, rows, cols, kernel in _tiles(x, y, variance):
            if cols.start == 0:
                torch.bmm(kernel, v[mats, cols], out=out[mats, rows])
            else:
                out[mats, rows].baddbmm_(kernel, v[mats, cols])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, v = ctx.saved_tensors
        wanted = zip((x, y, v), ctx.needs_input_grad[1:], strict=True)
        dx, dy, dv = (torch.zeros_like(z) if want else None for z, want in wanted)
        row_sums, column_sums = (torch.zeros_like(z[..., :1]) for z in (x, y))
        for mats, rows, cols, kernel in _tiles(x, y, ctx.variance):
            g = grad[mats, rows]
            if dv is not None:
                dv[mats, cols].baddbmm_(kernel.mT, g)
            if dx is None and dy is None:
                continue
            weight = kernel.mul_(g @ v[mats, cols].mT)
            if dx is not None:
                dx[mats, rows].baddbmm_(weight, y[mats, cols])
                row_sums[mats, rows] += weight.sum(-1, keepdim=True)
            if dy is not None:
                dy[mats, cols].baddbmm_(weight.mT, x[mats, rows])
                column_sums[mats, cols] += weight.sum(-2).unsqueeze(-1)
        if dx is not None:
            dx.addcmul_(x, row_sums, value=-1).div_(ctx.variance)
        if dy is not None:
            dy.addcmul_(y, column_sums, value=-1).div_(ctx.variance)
        return None, dx, dy, dv


def _tiles(x: Tensor, y: Tensor, variance: float) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """Yield (matrices, rows, columns, kernel values) over the whole of the kernel matrix.

    Small matrices go many to a tile; a large one alone, its short side whole and its long side
    cut. Either way every slice is contiguous in memory.
    """
    batch, n, l = x.shape[0], x.shape[1], y.shape[1]
    own_x, own_y = (_exponents(z, variance) for z in (x, y))
    entries = budget(TILE_ENTRIES, x.device)
    group = max(1, entries // (n * l))
    across = max(min(l, 64), min(l, entries // min(n, l, 2048)))
    down = max(min(n, 64), min(n, entries // across))
    buffer = x.new_empty(min(group, batch) * down * across)
    for b in range(0, batch, group):
        mats = slice(b, min(b + group, batch))
        for i in range(0, n, down):
            rows = slice(i, min(i + down, n))
            for j in range(0, l, across):
                cols = slice(j, min(j + across, l))
                shape = (mats.stop - b, rows.stop - i, cols.stop - j)
                tile = buffer[: shape[0] * shape[1] * shape[2]].view(shape)
                torch.add(own_x[mats, rows, None], own_y[mats, None, cols], out=tile)
                tile.baddbmm_(x[mats, rows], y[mats, cols].mT, alpha=1 / variance)
                yield mats, rows, cols, tile.exp_()


def _exponents(x: Tensor, variance: float) -> Tensor:
    """-|x_i|^2 / (2 variance), (..., n), in one pass and without a copy of x."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return norm.square_().mul_(-0.5 / variance)
