"""Kernels of attention: as a matrix, as a sum, and as an average, the last two in linear memory.

Each kernel is a positive function K(x, y) = exp(<lift(x), lift(y)>) of two points and offers

    matrix(x, y)            (..., n, d), (..., l, d)               -> (..., n, l)
    apply(x, y, v)          = matrix(x, y) @ v                     -> (..., n, e)
    average(x, y, v, mask)  = diag(1 / row sums) matrix(x, y) @ v  -> (..., n, e)

With ``causal`` the sums run over the keys up to the query's own position: row i of the matrix ends
at column i, and there are as many x as y. Leading dimensions broadcast. All three are
differentiable in every argument, any number of times, but for a Gaussian average whose points are
spread so far that it needs differences: torch refuses a second derivative of it. float16 and
bfloat16 input is computed in float32, where squared norms keep their digits, and returned as it
came. On CUDA, sums and averages of it run on the units of half precision where no gradient is
wanted, and Gaussian sums by the kernels of ``softlab.gpu`` in any case: exponents are rounded as in
float32, weights to the dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from softlab import gpu, validation
from softlab.core import (
    Cost,
    Dims,
    budget,
    derived,
    graphed,
    own_precision,
    recomputed,
    transformed,
    value,
    widened,
)
from softlab.kernels.fused import (
    fused_average,
    fused_gaussian_sum,
    fused_sum,
    half_sum,
    half_units,
    lifted,
    norms,
    plain_matrix,
    plain_sum,
)
from softlab.kernels.tiled import formed, one_tile, suits, tiled_sum
from softlab.validation import Bandwidth, Positive

Sum = Callable[[Tensor], Tensor]
"""A kernel matrix as a linear map of columns, (..., l, e) -> (..., n, e)."""

CAREFUL_ENTRIES = 1 << 20
"""Kernel entries held at once where distances are formed by differences."""

WIDEST_HALF = 1e3
"""The bandwidth up to which points that are not ``_rough`` have norms below 65536."""


class Kernel(Protocol):
    """What the operators need of a kernel."""

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        """All kernel values, (..., n, l)."""
        ...

    def apply(self, x: Tensor, y: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
        """``matrix(x, y) @ v`` in memory linear in n + l."""
        ...

    def average(
        self,
        x: Tensor,
        y: Tensor,
        v: Tensor,
        key_mask: Tensor | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """The kernel-weighted average of v, rows summing to one, in memory linear in n + l."""
        ...


def kernel_cost(dims: Dims, widths: int, *, causal: bool = False) -> Cost:
    """Cost of one kernel matrix n x l, or its lower triangle, and its product with some columns."""
    entries = dims.batch * (dims.n * (dims.n + 1) // 2 if causal else dims.n * dims.l)
    return Cost(flops=2 * entries * (dims.d + widths), kernel_entries=entries)


@value
class Gaussian:
    """The Gaussian kernel, exp(-|x - y|^2 / (2 bandwidth^2)).

    ``bandwidth``: standard deviation of the bell, in the units of x; 1e-15 to 1e15. SOFT's
    own is d**0.25 (arXiv 2110.11945, Eq. 4-5).

    ``matrix`` forms distances by differences: entries lie in [0, 1], the diagonal of
    ``matrix(x, x)`` is exactly 1, near-duplicates keep their digits. ``apply`` and ``average`` use
    inner products, tile by tile or through fused attention with the squared norms of y as a bias;
    the sum is the average times the sum of its weights. Exponents carry a rounding error of about
    eps * max|x|^2 / bandwidth^2; points far off the origin are centred first, and a matrix for
    which the error would still cost half of the digits takes the slower way by differences.
    """

    bandwidth: Bandwidth

    @own_precision
    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        """Return exp(-|x_i - y_j|^2 / (2 bandwidth^2)), (..., n, l)."""
        x, y, lead, dtype = _flatten(x, y)
        out = _matrix(x, y, self.bandwidth)
        return out.reshape(*lead, *out.shape[-2:]).to(dtype)

    @own_precision
    def apply(self, x: Tensor, y: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
        """Return ``matrix(x, y) @ v`` without the matrix."""
        return self._reduce(x, y, v, None, average=False, causal=causal)

    @own_precision
    def both_ways(self, x: Tensor, y: Tensor) -> tuple[Sum, Sum]:
        """The maps v -> ``apply(x, y, v)`` and w -> ``apply(y, x, w)``.

        A matrix that fits one tile is formed once for them, where no gradient is asked.
        """
        flat_x, flat_y, lead, dtype = _flatten(x, y)
        points = flat_x, flat_y
        # Asked before the points are looked at, which the sums do again.
        if (
            dtype.itemsize >= 4
            and suits(*points, flat_x)
            and one_tile(*points)
            and not graphed(x, y)
            and not transformed()
        ):
            near_x, near_y, rough = _centred(*points, self.bandwidth)
            if rough is None:
                kernel = formed(near_x, near_y, self.bandwidth**2)
                kernel = kernel.reshape(*lead, *kernel.shape[-2:])
                return partial(torch.matmul, kernel), partial(torch.matmul, kernel.mT)
        return partial(self.apply, x, y), partial(self.apply, y, x)

    @own_precision
    def average(
        self,
        x: Tensor,
        y: Tensor,
        v: Tensor,
        key_mask: Tensor | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """Return the kernel-weighted mean of v over the keys that ``key_mask`` (..., l) keeps.

        Computed as a softmax, so it stays exact where every kernel value underflows.
        """
        return self._reduce(x, y, v, key_mask, average=True, causal=causal)

    def _reduce(
        self,
        x: Tensor,
        y: Tensor,
        v: Tensor,
        key_mask: Tensor | None,
        *,
        average: bool,
        causal: bool,
    ) -> Tensor:
        _one_or_other(key_mask, causal)
        narrow = self._narrow(x, y, v, key_mask, average=average, causal=causal)
        if narrow is not None:
            return narrow
        x, y, v, lead, dtype = _flatten(x, y, v)
        if causal:
            out = self._causal(x, y, v, average=average)
            return out.reshape(*lead, *out.shape[-2:]).to(dtype)
        mask = _flat_mask(key_mask, lead, y.shape[-2])
        x_near, y_near, rough = _centred(x, y, self.bandwidth)
        if rough is None:
            out = _by_products(x_near, y_near, v, mask, average=average, bandwidth=self.bandwidth)
        else:
            # Each matrix takes the way that its own points need, whatever its neighbours are.
            # Differences are taken of the points as given: centring spread points rounds them.
            out = v.new_zeros(*x.shape[:-1], v.shape[-1])
            ways = ((_by_products, (x_near, y_near), ~rough), (_by_differences, (x, y), rough))
            for way, (x, y), chosen in ways:
                at = chosen.nonzero().squeeze(-1)
                if len(at):
                    masked = None if mask is None else mask[at]
                    part = way(
                        x[at], y[at], v[at], masked, average=average, bandwidth=self.bandwidth
                    )
                    out = out.index_copy(0, at, part)
        return out.reshape(*lead, *out.shape[-2:]).to(dtype)

    def _narrow(
        self,
        x: Tensor,
        y: Tensor,
        v: Tensor,
        key_mask: Tensor | None,
        *,
        average: bool,
        causal: bool,
    ) -> Tensor | None:
        """The result on the units of half precision, or None where float32 has to do it.

        The points go as they are, since a shift would round them. So they may not be far off the
        origin either, nor may a bandwidth allow norms that float16 does not reach.
        """
        if x.dtype.itemsize >= 4 or (x.dtype == torch.float16 and self.bandwidth > WIDEST_HALF):
            return None
        units, widest = half_units(x, y, v), max(x.shape[-1], v.shape[-1])
        kernel = not (average or causal) and widest <= gpu.WIDEST
        kernel = kernel and gpu.serves("gaussian_sum", x, y, v)
        if not (units or kernel):
            return None
        x, y, v, lead, _ = _flatten(x, y, v, wide=False)
        looked = not validation.unseen(x)
        if looked and validation.values_of(_rough(_radius(x, y), self.bandwidth)).any():
            return None
        variance, out = self.bandwidth**2, None
        how: dict[str, Any] = {"scale": 1 / variance, "causal": causal}
        if kernel:
            out = gpu.attempt("gaussian_sum", lambda: None, _by_kernel, x, y, v, variance)
        if out is None and units and average:
            mask = _flat_mask(key_mask, lead, y.shape[-2])
            out = fused_average(*lifted(x, y), v, mask, **how)
        elif out is None and units:
            out = half_sum(x, y, v, gaussian=True, **how)
        return None if out is None else out.reshape(*lead, *out.shape[-2:])

    def _causal(self, x: Tensor, y: Tensor, v: Tensor, *, average: bool) -> Tensor:
        """Each row takes the way that the points up to its own need, whatever comes later."""
        near = [z - y[:, :1].detach() for z in (x, y)]
        how: dict[str, Any] = {"average": average, "causal": True, "bandwidth": self.bandwidth}
        if validation.unseen(x):
            return _by_products(near[0], near[1], v, None, **how)
        radius = torch.maximum(*(_lengths(z) for z in near)).cummax(-1).values
        rough = _rough(radius, self.bandwidth).unsqueeze(-1)
        # No row that keeps this result sees a point that is blanked, so none can overflow here.
        x_near, y_near = (
            (z.masked_fill(rough, 0) for z in near) if validation.values_of(rough).any() else near
        )
        out = _by_products(x_near, y_near, v, None, **how)
        if not validation.values_of(rough).any():
            return out
        at = rough.any(1).squeeze(-1).nonzero().squeeze(-1)
        careful = _by_differences(x[at], y[at], v[at], None, **how)
        return out.index_copy(0, at, torch.where(rough[at], careful, out[at]))


@value
class Exponential:
    """The kernel of softmax attention, exp(scale <x, y>).

    ``scale``: factor of the inner product, positive and finite; None means 1/sqrt(d), the scale of
    Vaswani et al. (arXiv 1706.03762, Eq. 1).

    ``matrix`` and ``apply`` overflow, as the kernel itself does, where a score exceeds the
    logarithm of the dtype's maximum (88 in float32); ``average`` never does.
    """

    scale: Positive | None = None

    @own_precision
    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        """Return exp(scale <x_i, y_j>), (..., n, l)."""
        x, y, lead, dtype = _flatten(x, y)
        out = (self._scale(x.shape[-1]) * x @ y.mT).exp()
        return out.reshape(*lead, *out.shape[-2:]).to(dtype)

    @own_precision
    def apply(self, x: Tensor, y: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
        """Return ``matrix(x, y) @ v`` without the matrix."""
        narrow, scale = half_units(x, y, v), self._scale(x.shape[-1])
        x, y, v, lead, dtype = _flatten(x, y, v, wide=not narrow)
        if narrow:
            out = half_sum(x, y, v, scale, gaussian=False, causal=causal)
        else:
            out = fused_sum(scale * x, y, v, causal=causal)
        return out.reshape(*lead, *out.shape[-2:]).to(dtype)

    @own_precision
    def average(
        self,
        x: Tensor,
        y: Tensor,
        v: Tensor,
        key_mask: Tensor | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """Return softmax(scale x y^T) v over the keys that ``key_mask`` (..., l) keeps."""
        _one_or_other(key_mask, causal)
        alike = x.shape[:2] == y.shape[:2] == v.shape[:2] and x.shape[-1] == y.shape[-1]
        narrow = half_units(x, y, v)
        if x.ndim == y.ndim == v.ndim == 4 and (narrow or x.dtype.itemsize >= 4) and alike:
            # A batch of heads goes as it lies in memory: flattened it would often be copied.
            lead, dtype = x.shape[:2], x.dtype
            mask = None if key_mask is None else key_mask.expand(*lead, y.shape[-2])
        else:
            x, y, v, lead, dtype = _flatten(x, y, v, wide=not narrow)
            mask = _flat_mask(key_mask, lead, y.shape[-2])
        scale = self._scale(x.shape[-1])
        out = fused_average(x, y, v, mask, scale=scale, causal=causal)
        return out.reshape(*lead, *out.shape[-2:]).to(dtype)

    def _scale(self, d: int) -> float:
        return 1 / math.sqrt(d) if self.scale is None else self.scale


def _flatten(x: Tensor, y: Tensor, *values: Tensor, wide: bool = True) -> Any:
    """Broadcast and flatten leading dimensions; ``wide``: half precision becomes float32."""
    if x.shape[-1] != y.shape[-1]:
        got = f"{tuple(x.shape)} and {tuple(y.shape)}"
        msg = f"x and y must have the same width, got {got}. Project both to one width."
        raise ValueError(msg)
    points = validation.aligned(**dict(zip("xyv", (x, y, *values), strict=False)))
    flat = ((widened(z) if wide else z).reshape(-1, *z.shape[-2:]) for z in points)
    return *flat, points[0].shape[:-2], x.dtype


def _one_or_other(key_mask: Tensor | None, causal: bool) -> None:
    if causal and key_mask is not None:
        msg = (
            "a causal average takes no key_mask; put the masked tokens last, where none sees them."
        )
        raise ValueError(msg)


def _flat_mask(key_mask: Tensor | None, lead: torch.Size, keys: int) -> Tensor | None:
    return None if key_mask is None else key_mask.expand(*lead, keys).reshape(-1, keys)


def _lengths(z: Tensor) -> Tensor:
    """The norms of the points, (B, n), without a graph."""
    return norms(z.detach())


def _centred(x: Tensor, y: Tensor, bandwidth: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Shift the points by the mean of y in the matrices where it is a large part of them.

    The Gaussian does not see the shift, its rounding errors do. Elsewhere the copy is not worth it.
    Returns the points and which matrices are ``_rough`` even so, (B,), or None where none is.
    """
    centre = y.detach().mean(-2, keepdim=True)
    if validation.unseen(x):  # no shift is wrong, and none is chosen without a look
        return x - centre, y - centre, None
    radius = _radius(x, y)
    far = torch.linalg.vector_norm(centre, dim=(-2, -1)) > radius / 2
    rough = _rough(radius, bandwidth)
    if not validation.values_of(far | rough).any():
        return x, y, None
    if validation.values_of(far).any():
        centre = torch.where(far[:, None, None], centre, 0)
        x, y = x - centre, y - centre
        rough = _rough(_radius(x, y), bandwidth)
    return x, y, rough if validation.values_of(rough).any() else None


def _radius(x: Tensor, y: Tensor) -> Tensor:
    """The largest norm among the points of each matrix, (B,)."""
    return torch.maximum(_lengths(x).amax(-1), _lengths(y).amax(-1))


def _rough(radius: Tensor, bandwidth: float) -> Tensor:
    """Per matrix: would exponents formed by inner products lose more than half of the digits?"""
    limit: float = bandwidth * torch.finfo(radius.dtype).eps ** -0.25
    return ~(radius <= limit)


def _by_products(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    average: bool,
    bandwidth: float,
    causal: bool = False,
) -> Tensor:
    """Sum or average over ``exp(-|x - y|^2 / (2 bandwidth^2))`` by inner products."""
    if average:
        x, y = x / bandwidth, y / bandwidth
        half_y = y.square().sum(-1, keepdim=True) / 2
        # The factor exp(-|x|^2 / 2) is common to a row and cancels.
        x = torch.cat((x, torch.ones_like(x[..., :1])), -1)
        return fused_average(x, torch.cat((y, -half_y), -1), v, mask, causal=causal)
    plain = partial(_sum, x, y, v, bandwidth, causal=causal)
    if causal or max(x.shape[-1], v.shape[-1]) > gpu.WIDEST:
        return plain()
    if not gpu.serves("gaussian_sum", x, y, v):
        return plain()
    return gpu.attempt("gaussian_sum", plain, _by_kernel, x, y, v, bandwidth**2)


def _by_kernel(x: Tensor, y: Tensor, v: Tensor, variance: float) -> Tensor:
    fast = partial(gpu.kernel("gaussian_sum", "gaussian_sum"), variance=variance)

    def plain(*tensors: Tensor) -> Tensor:
        wide = (widened(z) for z in tensors)
        return plain_sum(*wide, scale=1 / variance, gaussian=True).to(v.dtype)

    return derived(fast, plain, x, y, v)


def _sum(x: Tensor, y: Tensor, v: Tensor, bandwidth: float, *, causal: bool) -> Tensor:
    if suits(x, y, v) and not causal:
        return tiled_sum(x, y, v, bandwidth**2)
    return lifted_sum(x, y, v, bandwidth, causal=causal)


def lifted_sum(
    x: Tensor, y: Tensor, v: Tensor, bandwidth: float, *, causal: bool = False
) -> Tensor:
    """The Gaussian sum through fused attention, whatever form ``Gaussian.apply`` would choose."""
    return fused_gaussian_sum(x, y, v, bandwidth**2, causal=causal)


def _by_differences(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    average: bool,
    bandwidth: float,
    causal: bool = False,
) -> Tensor:
    """The same by explicit differences, a block of rows at a time, recomputed backwards."""
    rows = max(1, budget(CAREFUL_ENTRIES, x.device) // (x.shape[0] * y.shape[1]))
    column = torch.arange(y.shape[1], device=y.device)

    def block(z: Tensor, row: Tensor) -> Tensor:
        hidden = None if mask is None else ~mask[:, None, :]
        if causal:
            hidden = column > row[:, None]
        if not average:
            out = _matrix(z, y, bandwidth)
            return (out if hidden is None else out.masked_fill(hidden, 0)) @ v
        distance = _distances(z, y) / bandwidth
        # What is hidden, or beyond the dtype, has no weight, and no gradient of 0 times infinity.
        gone = distance.isinf() if hidden is None else distance.isinf() | hidden
        distance = distance.masked_fill(gone, math.inf)
        # Squares relative to the nearest key: their difference cannot be inf - inf.
        nearest = distance.detach().amin(-1, keepdim=True)
        exponents = -(distance - nearest) * (distance + nearest) / 2
        return exponents.softmax(-1) @ v

    each = zip(x.split(rows, 1), torch.arange(x.shape[1], device=x.device).split(rows), strict=True)
    return torch.cat([recomputed(block, *some) for some in each], dim=1)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|, (B, n, l), by differences.

    CUDA's ``cdist`` starts a block of 256 threads for every one of them.
    """
    if x.device.type != "cuda":
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    rows = max(1, budget(CAREFUL_ENTRIES, x.device) // y.numel())
    parts = (part.unsqueeze(-2) - y.unsqueeze(-3) for part in x.split(rows, -2))
    return torch.cat([torch.linalg.vector_norm(part, dim=-1) for part in parts], -2)


def _matrix(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    if transformed():
        return plain_matrix(x, y, bandwidth**2)
    out: Tensor = _GaussianMatrix.apply(x, y, bandwidth)  # type: ignore[no-untyped-call]
    return out


class _GaussianMatrix(torch.autograd.Function):
    """exp(-|x - y|^2 / (2 s^2)) from differences; its gradient is two products.

    With W = G * K the adjoint is dx = (W y - x * (W 1)) / s^2, and alike for y; written with
    differentiable operations, so second derivatives exist, which ``torch.cdist`` lacks.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
        kernel = _distances(x, y).div_(bandwidth).square_().div_(-2).exp_()
        ctx.save_for_backward(x, y, kernel)
        ctx.bandwidth = bandwidth
        return kernel

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, kernel = ctx.saved_tensors
        weight = grad * kernel
        centre = y.detach().mean(-2, keepdim=True)
        x, y = x - centre, y - centre
        dx = (weight @ y - x * weight.sum(-1, keepdim=True)) / ctx.bandwidth**2
        dy = (weight.mT @ x - y * weight.sum(-2).unsqueeze(-1)) / ctx.bandwidth**2
        return dx, dy, None
