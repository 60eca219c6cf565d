"""Degrees (row sums) of attention matrices, what is divided by them, and kernels that underflow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softlab.core import budget, recomputed
from softlab.kernels import Kernel

NORMALIZATIONS = ("none", "row", "symmetric")

HELD = 1 << 20
"""Numbers held at once where the exponents of a kernel are formed apart."""


def indicator(v: Tensor, key_mask: Tensor | None) -> Tensor:
    """One column (..., l, 1) that is 1 at the keys that take part and 0 elsewhere."""
    if key_mask is None:
        return torch.ones_like(v[..., :1])
    return key_mask.unsqueeze(-1).to(v.dtype)


def average_of_some(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None
) -> Tensor:
    """``kernel.average``, and zeros in a matrix of which ``key_mask`` leaves no key."""
    if key_mask is None:
        return kernel.average(q, k, v)
    empty = ~key_mask.any(-1, keepdim=True)
    out = kernel.average(q, k, v, key_mask | empty)
    return torch.where(empty.unsqueeze(-1), 0, out)


def over(numerator: Tensor, degree: Tensor) -> Tensor:
    """Numerator / degree, and 0 where the degree is not positive or has lost digits to underflow.

    Its gradient is finite: the smallest degree that counts, tiny / eps, has a reciprocal far from
    the greatest number.
    """
    info = torch.finfo(degree.dtype)
    sound = degree > info.tiny / info.eps
    return torch.where(sound, numerator / torch.where(sound, degree, 1), 0)


def over_root(numerator: Tensor, degree: Tensor) -> Tensor:
    """Numerator / degree^(1/2), and 0 where the degree is not positive.

    The rows of an approximate kernel matrix can sum to zero or less, where D^(-1/2) does not
    exist; such a token then neither gives nor receives, and no infinity spreads from it.
    """
    sound = degree > torch.finfo(degree.dtype).tiny
    # The derivative of this quotient has no power beyond degree^(-1/2); that of a product with
    # degree^(-1/2) has degree^(-3/2), which overflows where the quotient is an ordinary number.
    return torch.where(sound, numerator / torch.where(sound, degree, 1).sqrt(), 0)


def faint(degree: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Which matrices have a degree (..., n, 1) so small that products of such underflow, (...).

    Those of keys that ``key_mask`` (..., n) drops do not count.
    """
    small = (degree.detach().abs() < torch.finfo(degree.dtype).tiny ** 0.5).squeeze(-1)
    found: Tensor = (small if key_mask is None else small & key_mask).any(-1)
    return found


def gathered(z: Tensor, k: Tensor, columns: Tensor, lift: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the keys: exp(-|z_a - k_j|^2 / 2 + lift_j) columns_j over exp(scale).

    Arguments: z (B, m, d), k (B, l, d), columns (B, l, c), lift (B, l, 1), -inf for a key that adds
    nothing; all in float64. Returns the sums (B, m, c) and the scale (B, 1, 1), which makes the
    largest term one. Neither scale nor lift has a gradient: what is made of these sums must not
    depend on them.
    """
    parts = list(zip(*(x.split(_rows(z), 1) for x in (k, columns, lift)), strict=True))
    with torch.no_grad():
        tops = [(_exponents(k, z) + lift).amax((1, 2), keepdim=True) for k, _, lift in parts]
        scale = torch.stack(tops).amax(0)
        scale = torch.where(scale == -math.inf, 0, scale)

    def block(k: Tensor, columns: Tensor, lift: Tensor) -> Tensor:
        return (_exponents(k, z) + lift - scale).exp().mT @ columns

    sums = z.new_zeros(*z.shape[:-1], columns.shape[-1])
    for part in parts:
        sums = sums + recomputed(block, *part)
    return sums, scale


def spread(x: Tensor, z: Tensor, columns: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the landmarks: exp(-|x_i - z_a|^2 / 2) columns_a over exp(scale_i).

    Arguments: x (B, n, d), z (B, m, d), columns (B, m, c), and the size (B, m, 1) of each row of
    them, 0 where it is zeros; all in float64. Returns the sums (B, n, c) and the scale (B, n, 1),
    which makes the largest term of a row one. Neither size nor scale has a gradient.
    """
    columns, lift = columns / _sound(size), size.log().mT

    def block(x: Tensor) -> tuple[Tensor, Tensor]:
        exponents = _exponents(x, z) + lift
        scale = exponents.detach().amax(-1, keepdim=True)
        scale = torch.where(scale == -math.inf, 0, scale)
        return (exponents - scale).exp() @ columns, scale

    parts = [recomputed(block, part) for part in x.split(_rows(z), 1)]
    sums, scales = zip(*parts, strict=True)
    return torch.cat(sums, 1), torch.cat(scales, 1)


def size(columns: Tensor) -> Tensor:
    """The size of each row of (..., m, c) beside the largest in a column, (..., m, 1), no graph."""
    size = columns.detach().abs()
    return (size / _sound(size.amax(-2, keepdim=True))).amax(-1, keepdim=True)


def least(dtype: torch.dtype) -> float:
    """The least size by which is divided: tiny^(2/3), 5e-26 in float32.

    Gradients divide by it, too, and multiply by the square of an inverse.
    """
    return math.pow(torch.finfo(dtype).tiny, 2 / 3)


def _exponents(x: Tensor, z: Tensor) -> Tensor:
    """-|x_i - z_a|^2 / 2, (B, n, m)."""
    centre = z.detach().mean(-2, keepdim=True)
    x, z = x - centre, z - centre
    halves = x.square().sum(-1, keepdim=True) + z.square().sum(-1, keepdim=True).mT
    return x @ z.mT - halves / 2


def _rows(z: Tensor) -> int:
    return max(1, budget(HELD, z.device) // (z.shape[0] * z.shape[1]))


def _sound(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1)
