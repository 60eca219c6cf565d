"""What a landmark selector is, and what all of them share."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from softlab import checks


@runtime_checkable
class Selector(Protocol):
    """A frozen dataclass of numbers, called on tokens and a rank."""

    @property
    def subset(self) -> bool:
        """Whether every landmark is one of the tokens."""
        ...

    def __call__(self, x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor:
        """Landmarks (..., m, d) of tokens (..., n, d)."""
        ...


def kept(x: Tensor, m: int, key_mask: Tensor | None) -> Tensor:
    """How many tokens take part in each matrix, (...); raise if any has fewer than ``m``."""
    checks.rank_fits(m, checks.survivors(key_mask, x), "tokens")
    if key_mask is None:
        return torch.full(x.shape[:-2], x.shape[-2], device=x.device)
    return key_mask.sum(-1)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Rows ``indices`` (..., m) of x (..., n, d)."""
    return x.gather(-2, indices.unsqueeze(-1).expand(*indices.shape, x.shape[-1]))


def position_of(ordinal: Tensor, key_mask: Tensor | None) -> Tensor:
    """Where the ``ordinal``-th (..., m) surviving token stands among all tokens."""
    if key_mask is None:
        return ordinal
    survivors_first = (~key_mask).to(torch.uint8).argsort(dim=-1, stable=True)
    return survivors_first.gather(-1, ordinal)
