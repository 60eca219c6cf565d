"""Sums and averages over exponentials of inner products, through torch's fused attention.

For points x (B, n, d), y (B, l, d) and values v (B, l, e)

    out_i = sum_j exp(s <x_i, y_j>) v_j                                          (``fused_sum``)
    out_i = sum_j exp(-s |x_i - y_j|^2 / 2) v_j                         (``fused_gaussian_sum``)
    out_i = sum_j exp(s <x_i, y_j>) v_j / sum_j exp(s <x_i, y_j>)            (``fused_average``)

in memory linear in n + l, on every device: where torch has no fused kernel, as for float64 on CUDA,
a block of rows is formed at a time. ``causal`` lets j run to i alone, where n = l.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from softlab.core import budget, derived, graphed, recomputed, transformed

HELD_ENTRIES = 1 << 20
"""Weights held at once where they are formed; more on a GPU (``core.budget``)."""

MATRICES = 1 << 15
"""Matrices to a call on CUDA, whose kernels count them by a number of 16 bits."""

HIDDEN = -math.inf
"""The bias of a key that is there for alignment alone."""

STEPS = 2.0**15, 2.0**4, 2.0**-7
"""Units of the three numbers in half precision that make a squared norm: 11 binary digits apart, as
many as float16 has, whose greatest number is 65504."""

_ATEN: Any = torch.ops.aten


def fused_sum(x: Tensor, y: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """``exp(x y^T) v``; overflows where an exponent exceeds that of the dtype."""
    return _sum(x, y, v, 1.0, gaussian=False, causal=causal)


def fused_gaussian_sum(
    x: Tensor, y: Tensor, v: Tensor, variance: float, *, causal: bool = False
) -> Tensor:
    """``exp(-|x_i - y_j|^2 / (2 variance)) v``, its exponents from inner products.

    They carry a rounding error of about eps * max|x|^2 / variance. The points are taken as they
    are: the scale is applied to their products, and the squared norms stand beside them.
    """
    return _sum(x, y, v, 1 / variance, gaussian=True, causal=causal)


def _sum(x: Tensor, y: Tensor, v: Tensor, scale: float, *, gaussian: bool, causal: bool) -> Tensor:
    plain = partial(plain_sum, scale=scale, gaussian=gaussian, causal=causal)
    if not _has_kernel(x):
        return plain(x, y, v)
    if x.device.type == "cuda" and len(x) > MATRICES:
        return _in_parts(partial(_sum, scale=scale, gaussian=gaussian, causal=causal), x, y, v)
    return derived(partial(_Sum.apply, scale, gaussian, causal), plain, x, y, v)


def _in_parts(call: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """The call of so many matrices at a time as CUDA's kernels take."""
    each = zip(*(z.split(MATRICES) for z in tensors), strict=True)
    return torch.cat([call(*some) for some in each])


def plain_sum(
    x: Tensor, y: Tensor, v: Tensor, *, scale: float, gaussian: bool, causal: bool = False
) -> Tensor:
    """The sums in torch's differentiable operations, a block of rows at a time."""
    rows = max(1, budget(HELD_ENTRIES, x.device) // (y.numel() if gaussian else y[..., 0].numel()))
    at = torch.arange(y.shape[-2], device=y.device)

    def block(x: Tensor, here: Tensor) -> Tensor:
        kernel = plain_matrix(x, y, 1 / scale) if gaussian else (scale * x @ y.mT).exp()
        return (kernel.masked_fill(at > here.unsqueeze(-1), 0) if causal else kernel) @ v

    return _by_rows(block, x, rows)


def plain_matrix(x: Tensor, y: Tensor, variance: float) -> Tensor:
    """The kernel (B, n, l) in torch's differentiable operations, by differences, of any order."""
    square = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
    return (square * (-0.5 / variance)).exp()


class _Softmax(NamedTuple):
    """A softmax average, and what its backward pass needs."""

    out: Tensor
    lse: Tensor
    more: tuple[Tensor, ...]


class _Sum(torch.autograd.Function):
    """The average times exp(lse - s |x|^2 / 2), lse the logarithm of the sum of the weights.

    The squared norms of y are a bias on the scores. Backwards torch's kernel is told that the
    average is zero, and so leaves the part of the normaliser out: with W = (g v^T) * K it gives
    s W y, s W^T x and K^T g, the row sums of W are <g, out> and its column sums <v, dv>.
    """

    @staticmethod
    def forward(
        ctx: Any, scale: float, gaussian: bool, causal: bool, x: Tensor, y: Tensor, v: Tensor
    ) -> Tensor:
        bias = _half_norms(y, scale) if gaussian else y.new_zeros(y.shape[:-1])
        found = _softmax(x, y, v, bias, scale, causal)
        lse = found.lse[:, : x.shape[1]].to(x.dtype)
        factor = (lse + _half_norms(x, scale) if gaussian else lse).exp().unsqueeze(-1)
        out = found.out * factor
        ctx.save_for_backward(x, y, v, bias, factor, out, found.lse, *found.more)
        ctx.how = scale, gaussian, causal
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, v, bias, factor, out, lse, *more = ctx.saved_tensors
        scale, gaussian, causal = ctx.how
        state = _Softmax(out, lse, tuple(more))
        dx, dy, dv = _pulled(grad * factor, x, y, v, bias, state, scale, causal)
        if gaussian:
            dx = dx.addcmul(x, (grad * out).sum(-1, keepdim=True), value=-scale)
            dy = dy.addcmul(y, (v * dv).sum(-1, keepdim=True), value=-scale)
        wanted = zip((dx, dy, dv), ctx.needs_input_grad[3:], strict=True)
        return None, None, None, *(z if want else None for z, want in wanted)


def _half_norms(z: Tensor, scale: float) -> Tensor:
    """-s |z|^2 / 2, (B, n), in one pass and without a copy of z; in float32 of half precision."""
    return norms(z).square_().mul_(-scale / 2)


def norms(z: Tensor) -> Tensor:
    """The norms of the points, (B, n), in float32 of half precision."""
    dtype = torch.float32 if z.dtype.itemsize < 4 else z.dtype
    found: Tensor = torch.linalg.vector_norm(z, dim=-1, dtype=dtype)
    return found


def half_units(*tensors: Tensor) -> bool:
    """Whether a sum or an average of these can run on the units of half precision, as they are.

    On CUDA, where no gradient is wanted: torch rounds the gradient of a score, and that of a
    Gaussian is a difference of two such sums, which would lose it.
    """
    first = tensors[0]
    half = first.dtype in {torch.float16, torch.bfloat16} and first.device.type == "cuda"
    alike = all(x.dtype == first.dtype for x in tensors)
    return half and alike and not graphed(*tensors) and not transformed()


def half_sum(
    x: Tensor, y: Tensor, v: Tensor, scale: float, *, gaussian: bool, causal: bool = False
) -> Tensor:
    """``fused_sum`` of s <x, y>, or ``fused_gaussian_sum``, of half precision on its own units.

    An exponent is rounded as in float32: products of two such numbers are exact in the float32 that
    they are summed in, and norms are spread over columns (``lifted``). Weights are rounded to the
    dtype, and the average of the values. No gradient.
    """
    if len(x) > MATRICES:
        return _in_parts(partial(half_sum, scale=scale, gaussian=gaussian, causal=causal), x, y, v)
    long_x, long_y = lifted(x, y) if gaussian else (x, y)
    found = _softmax(long_x, long_y, v, None, scale, causal)
    lse = found.lse[:, : x.shape[1]]
    factor = (lse + _half_norms(x, scale) if gaussian else lse).exp().unsqueeze(-1)
    return (found.out.float() * factor).to(v.dtype)


def lifted(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Points in half precision, three columns wider, whose products are <x, y> - |y|^2 / 2."""
    rest, columns = _half_norms(y, 1.0), []
    for step in STEPS:
        columns.append((rest / step).to(y.dtype))
        rest = rest - step * columns[-1].float()
    steps = (x.new_full((*x.shape[:-1], 1), step) for step in STEPS)
    return torch.cat((x, *steps), -1), torch.cat((y, torch.stack(columns, -1)), -1)


def _softmax(
    x: Tensor, y: Tensor, v: Tensor, bias: Tensor | None, scale: float, causal: bool
) -> _Softmax:
    """The average with scores ``scale x y^T + bias``, and the logarithm of its denominator."""
    q, k, w, row = _shaped(x, y, v, bias)
    if x.device.type == "cuda":
        call = _ATEN._scaled_dot_product_efficient_attention
        out, lse, *more = call(q, k, w, row, True, 0.0, causal, scale=scale)
    else:
        call = _ATEN._scaled_dot_product_flash_attention_for_cpu
        out, lse, *more = call(q, k, w, 0.0, causal, attn_mask=row, scale=scale)
    return _Softmax(out[:, 0, :, : v.shape[-1]], lse[:, 0], tuple(more))


def _pulled(
    grad: Tensor, x: Tensor, y: Tensor, v: Tensor, bias: Tensor, state: _Softmax, scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What the gradient of a softmax average would be if the average were zero."""
    q, k, w, row = _shaped(x, y, v, bias)
    grad = _of_width(grad, w.shape[-1]).unsqueeze(1).contiguous()
    zero, lse = torch.zeros_like(grad), state.lse.unsqueeze(1)
    if x.device.type == "cuda":
        call, asked = _ATEN._scaled_dot_product_efficient_attention_backward, (True,) * 3 + (False,)
        how = (0.0, asked, causal)
        dq, dk, dv, _ = call(grad, q, k, w, row, zero, lse, *state.more, *how, scale=scale)
    else:
        call = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward
        dq, dk, dv = call(grad, q, k, w, zero, lse, 0.0, causal, attn_mask=row, scale=scale)
    l, d, e = y.shape[1], x.shape[-1], v.shape[-1]
    return dq[:, 0, :, :d], dk[:, 0, :l, :d], dv[:, 0, :l, :e]


def _has_kernel(x: Tensor) -> bool:
    """Whether torch has a fused kernel that also tells the logarithm of the sum."""
    return x.device.type == "cpu" or (x.device.type == "cuda" and x.dtype == torch.float32)


def _shaped(
    x: Tensor, y: Tensor, v: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As ``_fitted``, with the bias as a row that every query sees."""
    q, k, w, row = _fitted(x, y, v, bias)
    return q, k, w, None if row is None else row.expand(-1, -1, q.shape[-2], -1)


def _fitted(
    x: Tensor, y: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As the fused kernels want them: four dimensions, and the widths that they take.

    The CPU's want one width. CUDA's want rows of a multiple of 16 bytes, and where there is a mask
    over a number of keys that is no multiple of 16, torch would form it for every query: the keys
    that are added here are hidden.
    """
    d, e, l = x.shape[-1], v.shape[-1], y.shape[-2]
    if x.device.type == "cuda":
        step = 16 // x.dtype.itemsize
        x, y = (_aligned(_of_width(z, -(-d // step) * step), step) for z in (x, y))
        v = _aligned(_of_width(v, -(-e // step) * step), step)
        if mask is not None and (more := -l % 16):
            y, v = (pad(z, (0, 0, 0, more)) for z in (y, v))
            mask = pad(mask, (0, more), value=0 if mask.dtype == torch.bool else HIDDEN)
    else:
        # The kernel takes the entries of a row for neighbours, and says nothing where they are not.
        x, y, v = (_aligned(_of_width(z, max(d, e)), 1) for z in (x, y, v))
    mask = None if mask is None else mask.unsqueeze(-2)
    if x.ndim == 3:
        x, y, v = (z.unsqueeze(1) for z in (x, y, v))
        mask = None if mask is None else mask.unsqueeze(1)
    return x, y, v, mask


def _of_width(z: Tensor, width: int) -> Tensor:
    """With zeros up to that width; itself where it has it, since ``pad`` would copy."""
    return z if z.shape[-1] == width else pad(z, (0, width - z.shape[-1]))


def _aligned(z: Tensor, step: int) -> Tensor:
    """The same with every row at a multiple of ``step``, a copy only where one is not.

    A program that is compiled knows no offset in memory, and copies.
    """
    sound = z.stride(-1) == 1 and not any(x % step for x in z.stride()[:-1])
    if step > 1:
        sound = sound and not torch.compiler.is_compiling() and not z.storage_offset() % step
    return z if sound else z.clone(memory_format=torch.contiguous_format)


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
    if graphed(x, y, v, *(() if key_mask is None else (key_mask,))):
        # The backward pass of torch's kernels rounds a score that they scale, and the logarithm of
        # the sum, apart: gradients of huge scores come out infinite.
        x, scale = x * scale, 1.0
    fast, plain = (partial(f, scale=scale, causal=causal) for f in (_fused, plain_average))
    masks = () if key_mask is None else (key_mask,)
    if x.device.type == "cuda" and x.dtype == torch.float64:  # torch would form the whole matrix
        return plain(x, y, v, *masks)
    return derived(fast, plain, x, y, v, *masks)


def _fused(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    key_mask: Tensor | None = None,
    *,
    scale: float,
    causal: bool,
) -> Tensor:
    if x.device.type == "cuda" and len(x) > MATRICES:
        masks = () if key_mask is None else (key_mask,)
        return _in_parts(partial(_fused, scale=scale, causal=causal), x, y, v, *masks)
    q, k, w, mask = _fitted(x, y, v, key_mask)
    out = scaled_dot_product_attention(q, k, w, attn_mask=mask, scale=scale, is_causal=causal)
    return (out.squeeze(1) if x.ndim == 3 else out)[..., : v.shape[-1]]


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
    rows = max(1, budget(HELD_ENTRIES, x.device) // y[..., 0].numel())
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

    return _by_rows(block, x, rows)


def _by_rows(block: Callable[[Tensor, Tensor], Tensor], x: Tensor, rows: int) -> Tensor:
    """``block`` of so many rows of x (..., n, d) and of their positions at a time."""
    here = torch.arange(x.shape[-2], device=x.device)
    each = zip(x.split(rows, -2), here.split(rows), strict=True)
    return torch.cat([recomputed(block, *some) for some in each], -2)
