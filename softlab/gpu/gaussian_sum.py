"""The Gaussian sum as Triton kernels: one launch forward, two backward, no n x l matrix.

    out_i = sum_j K_ij v_j,    K_ij = exp(-|q_i - k_j|^2 / (2 s^2))

With W = (g v^T) * K for the gradient g of the output, the adjoints are

    dv = K^T g,    dq = (W k - q * (W 1)) / s^2,    dk = (W^T q - k * (W^T 1)) / s^2

A program holds one block of rows and walks over the blocks of columns. A block of exponents is
one product on the matrix units, summed in float32; the squared norms are added after it, in
float32, so that half precision loses no exponent. Exponents are at most 0 up to rounding and are
clamped there, so that no running maximum is needed. The backward pass has one kernel for queries
and one for keys in place of atomic additions: a result is the same from run to run.

A sum over many keys for few queries is split over the keys, and torch adds the parts: the sums of
a kernel need no common maximum.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from softlab.gpu.kernels import sum_backward_rows, sum_forward

PROGRAMS = 264
"""Programs that fill a GPU of 132 processors twice; fewer are split over the keys."""
LEAST = 512
"""Keys below which a program is not split further."""
PRECISION = "tf32x3"
"""Of products of float32: three on the matrix units. Plain TF32 would put 1e-3 on an exponent."""


def gaussian_sum(q: Tensor, k: Tensor, v: Tensor, variance: float) -> Tensor:
    """The sum for q (B, n, d), k (B, l, d), v (B, l, e) of one dtype, float32 or half.

    ``variance``: s^2. Differentiable once.
    """
    out: Tensor = _Sum.apply(q, k, v, variance)  # type: ignore[no-untyped-call]
    return out


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, variance: float) -> Tensor:
        q, k, v = (_by_rows(x) for x in (q, k, v))
        (batch, n, d), l, e = q.shape, k.shape[1], v.shape[-1]
        size = blocks(d, e, q.dtype, compiled=q.is_cuda)
        rows = triton.cdiv(n, size["BN"])
        split = parts(rows * batch, l)
        part = triton.cdiv(triton.cdiv(l, split), size["BL"]) * size["BL"]
        dtype = v.dtype if split == 1 else torch.float32
        out = torch.empty(split, batch, n, e, dtype=dtype, device=v.device)
        sum_forward[(rows, batch, split)](
            *(q, k, v, out, n, l, d, e, math.log2(math.e) / (2 * variance), part),
            *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2]),
            PRECISION=PRECISION,
            **size,
        )
        ctx.save_for_backward(q, k, v)
        ctx.variance = variance
        return out[0] if split == 1 else out.sum(0).to(v.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        grad = _by_rows(grad)
        d, e = q.shape[-1], v.shape[-1]
        size = blocks(d, e, q.dtype, compiled=q.is_cuda, backward=True)
        scale = math.log2(math.e) / (2 * ctx.variance), 1 / ctx.variance
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        for x, y, f, g, dx, df in ((q, k, grad, v, dq, None), (k, q, v, grad, dk, dv)):
            strides = (i for z in (x, y, f, g) for i in z.stride()[:2])
            sum_backward_rows[(triton.cdiv(x.shape[1], size["BN"]), len(x))](
                *(x, y, f, g, dx, x.shape[1], y.shape[1], d, e, *scale, *strides),
                dx if df is None else df,
                WITH_F=df is not None,
                PRECISION=PRECISION,
                **size,
            )
        return dq, dk, dv, None


def blocks(
    d: int, e: int, dtype: torch.dtype, *, compiled: bool, backward: bool = False
) -> dict[str, int]:
    """Sizes of blocks, and warps and stages where the kernels are compiled.

    The largest whose registers were not spilled when compiled for compute capability 9.0: float32
    is held in three parts, and takes half of the rows.
    """
    size = {"BD": _power(d), "BE": _power(e)}
    small, half = max(size.values()) <= 64, dtype.itemsize < 4
    if not compiled:
        return size | {"BN": 64, "BL": 64}
    if backward:
        return size | {"BN": 64 if small else 32, "BL": 32, "num_warps": 4, "num_stages": 2}
    if small:
        warps = {"num_warps": 4, "num_stages": 3 if half else 2}
        return size | {"BN": 128 if half else 64, "BL": 64, **warps}
    return size | {"BN": 64, "BL": 32, "num_warps": 8, "num_stages": 2}


def _power(width: int) -> int:
    return max(16, int(triton.next_power_of_2(width)))


def parts(programs: int, l: int) -> int:
    """Into how many parts the keys are split, 1 to 16."""
    return max(1, min(PROGRAMS // programs, l // LEAST, 16))


def _by_rows(x: Tensor) -> Tensor:
    """The same with the entries of a row beside each other, as the kernels read them."""
    return x if x.stride(-1) == 1 else x.contiguous()
