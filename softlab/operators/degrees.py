"""Degrees (row sums) of attention matrices and their guarded inverses."""

from __future__ import annotations

import torch
from torch import Tensor

NORMALIZATIONS = ("none", "row", "symmetric")


def indicator(v: Tensor, key_mask: Tensor | None) -> Tensor:
    """One column (..., l, 1) that is 1 at the keys that take part and 0 elsewhere."""
    if key_mask is None:
        return torch.ones_like(v[..., :1])
    return key_mask.unsqueeze(-1).to(v.dtype)


def over(numerator: Tensor, degree: Tensor) -> Tensor:
    """Numerator / degree, and 0 where the degree is not positive."""
    sound = degree > torch.finfo(degree.dtype).tiny
    return torch.where(sound, numerator / torch.where(sound, degree, 1), 0)


def rsqrt(degree: Tensor) -> Tensor:
    """degree^(-1/2), and 0 where the degree is not positive.

    The rows of an approximate kernel matrix can sum to zero or less, where D^(-1/2) does not
    exist; such a token then neither gives nor receives, and no infinity spreads from it.
    """
    sound = degree > torch.finfo(degree.dtype).tiny
    return torch.where(sound, torch.where(sound, degree, 1).rsqrt(), 0)
