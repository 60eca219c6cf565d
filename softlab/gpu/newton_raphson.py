"""Newton-Raphson on many small matrices in one launch; a program keeps one matrix and its inverse.

    X <- 2 X - X (A X)

Products of float32 are three of TF32 on the matrix units, which keeps all but the last bits.
Products without these units spill thousands of registers at m = 64, as Triton 3.7 compiles them for
compute capability 9.0. There the steps at m = 128 ask for 256 KB of shared memory, more than the
227 KB of an H100, so that larger matrices take the plain loop; the launch that also forms the
kernel does not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from softlab.gpu import kernels

PRECISION = "tf32x3"


def newton_raphson(a: Tensor, x: Tensor, steps: int) -> Tensor:
    """The iterate after ``steps`` steps on A (B, m, m) from X (B, m, m), float32.

    Differentiable in A and X, as the unrolled loop is, once.
    """
    out: Tensor = _Steps.apply(a, x, steps)  # type: ignore[no-untyped-call]
    return out


def stepped(a: Tensor, x: Tensor, steps: Tensor) -> Tensor:
    """The iterates after steps (B,), a number for each matrix, without a gradient."""
    a, x = a.contiguous(), x.clone(memory_format=torch.contiguous_format)
    batch, m = a.shape[:2]
    kernels.newton_raphson[(batch,)](
        *(a, x, steps.to(torch.int32), x, x, x, m, 0, batch),
        TRACED=False,
        **_how(m, compiled=a.is_cuda),
    )
    return x


def traced(a: Tensor, x: Tensor, row: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """What ``solve`` judges of X and of the ``steps`` iterates after it.

    Relative residuals (steps + 1, B), and ``row`` (m,) times each X, (steps + 1, B, 1, m).
    """
    a, x = a.contiguous(), x.contiguous()
    batch, m = a.shape[:2]
    residual, seen = a.new_empty(steps + 1, batch), a.new_empty(steps + 1, batch, 1, m)
    kernels.newton_raphson[(batch,)](
        *(a, x, x, residual, seen, row, m, steps, batch),
        TRACED=True,
        **_how(m, compiled=a.is_cuda),
    )
    return residual, seen


def landmark_inverse(z: Tensor, variance: float, steps: int, factor: float) -> Tensor:
    """(2, B, m, m): A = exp(-|z_i - z_j|^2 / (2 variance)) and its last iterate, z (B, m, d).

    From factor A^T / (|A|_1 |A|_inf). Differentiable in z, as the unrolled loop is, once.
    """
    out: Tensor = _Landmarks.apply(z, variance, steps, factor)  # type: ignore[no-untyped-call]
    return out


def _guess(a: Tensor, factor: float) -> Tensor:
    """The first X of a matrix of positive entries."""
    one, infinity = (a.sum(i, keepdim=True).amax(-3 - i, keepdim=True) for i in (-2, -1))
    return (a.mT / one) * (factor / infinity)


def _how(m: int, *, compiled: bool) -> dict[str, Any]:
    size: dict[str, Any] = {"BM": max(16, int(triton.next_power_of_2(m))), "PRECISION": PRECISION}
    return size | {"num_warps": 4 if m <= 64 else 8} if compiled else size


def _adjoint(a: Tensor, x: Tensor, grad: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The gradients of A and of the first X from that of the last."""
    a, grad = a.contiguous(), grad.clone(memory_format=torch.contiguous_format)
    batch, m = a.shape[:2]
    iterates, of_a = a.new_empty(steps, batch, m, m), torch.empty_like(a)
    iterates[0] = x
    kernels.newton_raphson_backward[(batch,)](
        *(a, iterates, grad, of_a, m, steps, batch), **_how(m, compiled=a.is_cuda)
    )
    return of_a, grad


class _Steps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, x: Tensor, steps: int) -> Tensor:
        ctx.save_for_backward(a, x)
        ctx.steps = steps
        return stepped(a, x, torch.full((len(a),), steps, device=a.device))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, x = ctx.saved_tensors
        return *_adjoint(a, x, grad, ctx.steps), None


class _Landmarks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, variance: float, steps: int, factor: float) -> Tensor:
        z = z.contiguous()
        batch, m, d = z.shape
        out = torch.empty(2, batch, m, m, dtype=torch.float32, device=z.device)
        kernels.landmark_inverse[(batch,)](
            *(z, *out.unbind(), m, d, math.log2(math.e) / (2 * variance), factor, steps),
            *z.stride()[:2],
            **_how(m, compiled=z.is_cuda),
        )
        ctx.save_for_backward(z, out[0])
        ctx.how = variance, steps, factor
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, a = ctx.saved_tensors
        variance, steps, factor = ctx.how
        with torch.enable_grad():
            leaf = a.detach().requires_grad_()
            x = _guess(leaf, factor)
        of_a, of_x = _adjoint(a, x.detach(), grad[1], steps)
        (through_x,) = torch.autograd.grad(x, leaf, of_x)
        weight = (grad[0] + of_a + through_x) * a
        weight = weight + weight.mT  # z is both the rows and the columns
        wide = z.float()
        dz = (weight @ wide - wide * weight.sum(-1, keepdim=True)) / variance
        return dz.to(z.dtype), None, None, None
