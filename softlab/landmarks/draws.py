"""Draws of tokens one at a time, with odds that may change in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from softlab.core import Stream

Choose = Callable[[Tensor, int], Tensor]
"""From weights (..., n), at least one of them positive, and the number of the draw to a token of
positive weight, (..., 1)."""


def uniforms(seed: int, purpose: str, m: int) -> Sequence[float | Tensor]:
    """M uniform numbers in [0, 1) of the seed and its purpose alone; tensors in a compiled program.

    It can read none, and draws anew each time that it runs.
    """
    drawn = Stream(seed, purpose).uniform(m)
    return drawn.unbind() if torch.compiler.is_compiling() else drawn.tolist()


def drawn(weight: Tensor, u: float | Tensor) -> Tensor:
    """The token (..., 1) at which the running sum of weights (..., n) first exceeds u of it all."""
    cumulative = weight.cumsum(-1)
    total = cumulative[..., -1:]
    # In low precision u of it all can round to it all.
    return ((cumulative <= u * total) & (cumulative < total)).sum(-1, keepdim=True)


def by_weight(seed: int, purpose: str, m: int) -> Choose:
    """Draws with odds in proportion to the weights."""
    u = uniforms(seed, purpose, m)
    return lambda weight, i: drawn(weight, u[i])


def heaviest(weight: Tensor, i: int) -> Tensor:  # noqa: ARG001  the same at every draw
    """The first of the greatest weights."""
    return weight.argmax(-1, keepdim=True)


def open_to(weight: Tensor, free: Tensor) -> Tensor:
    """The weights of the free tokens; where they are all 0, free tokens weigh alike."""
    weight = torch.where(free, weight, 0)
    return torch.where((weight > 0).any(-1, keepdim=True), weight, free.to(weight))


def nearest_to_mean(x: Tensor) -> Tensor:
    """The token (..., 1) of x (..., n, d) nearest to the mean."""
    return (x - x.mean(-2, keepdim=True)).square().sum(-1).argmin(-1, keepdim=True)
