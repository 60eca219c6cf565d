"""The two steps of Lloyd's algorithm."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(x: Tensor, centre: Tensor) -> Tensor:
    """The nearest centre of each row: |x - c|^2 without |x|^2, which is the same for all."""
    squares = centre.square().sum(-1).unsqueeze(-2)
    # Half as many distances at once as the rows have entries.
    parts = x.split(max(1, x.shape[-2] * x.shape[-1] // (2 * centre.shape[-2])), -2)
    return torch.cat([(squares - 2 * (part @ centre.mT)).argmin(-1) for part in parts], -1)


def means(x: Tensor, owner: Tensor, empty: Tensor) -> Tensor:
    """The mean of the rows of x (..., n, d) of each owner, or its row of ``empty`` (..., C, d)."""
    total = torch.zeros_like(empty).scatter_add(-2, owner.unsqueeze(-1).expand(x.shape), x)
    size = torch.zeros_like(empty[..., 0]).scatter_add(-1, owner, torch.ones_like(x[..., 0]))
    return torch.where(size.unsqueeze(-1) > 0, total / size.clamp_min(1).unsqueeze(-1), empty)
