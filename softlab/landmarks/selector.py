"""What a landmark selector is, and what all of them share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, Dims, nested, own_precision

F = TypeVar("F", bound=Callable[..., Any])


@runtime_checkable
class Selector(Protocol):
    """A frozen dataclass of numbers, called on tokens and a rank."""

    @property
    def subset(self) -> bool:
        """Whether every landmark is one of the tokens."""
        ...

    @property
    def means(self) -> bool:
        """Whether every landmark is a token or a mean of tokens, and as many landmarks as tokens
        are the tokens: so those of equal tokens equal them.
        """
        ...

    @property
    def equivariant(self) -> bool:
        """Whether tokens in another order, none of them tied, have the same set of landmarks."""
        ...

    @property
    def nested(self) -> bool:
        """Whether the landmarks of one rank are among those of every larger one."""
        ...

    def cost(self, dims: Dims, m: int) -> Cost:
        """Of finding m landmarks of ``dims.l`` tokens of width ``dims.d``."""
        ...

    def __call__(self, x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor:
        """Landmarks (..., m, d) of tokens (..., n, d)."""
        ...


def of_tokens(call: F) -> F:
    """Run a selector's method of (x, m, key_mask) in its own precision, its arguments checked.

    They are checked once: neither in a call of its own, nor in that of an operator, which has.
    """

    @own_precision
    @functools.wraps(call)
    def checked(self: Any, x: Tensor, m: int, key_mask: Tensor | None = None) -> Any:
        return call(self, x, m, key_mask if nested() else validation.tokens(x, m, key_mask))

    return cast("F", checked)


def taking_part(x: Tensor, m: int, key_mask: Tensor | None) -> Tensor:
    """How many tokens take part in each matrix, (...); raise if any has fewer than ``m``."""
    validation.rank_fits(m, validation.survivors(key_mask, x), "tokens")
    if key_mask is None:
        return torch.full(x.shape[:-2], x.shape[-2], device=x.device)
    return key_mask.sum(-1)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Rows ``indices`` (..., m) of x (..., n, d)."""
    return x.gather(-2, indices.unsqueeze(-1).expand(*indices.shape, x.shape[-1]))


class Picks:
    """A selector whose landmarks are tokens: those at ``indices``."""

    subset = True
    means = True

    @of_tokens
    def __call__(self: Any, x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor:
        """Landmarks (..., m, d) of tokens x (..., n, d)."""
        return take(x, self.indices(x, m, key_mask))


class Uncounted:
    """A selector that forms no product."""

    def cost(self, dims: Dims, m: int) -> Cost:  # noqa: ARG002  the same at all sizes
        """Nothing that is counted."""
        return Cost(0)


def position_of(ordinal: Tensor, key_mask: Tensor | None) -> Tensor:
    """Where the ``ordinal``-th (..., m) surviving token stands among all tokens."""
    if key_mask is None:
        return ordinal
    survivors_first = (~key_mask).to(torch.uint8).argsort(dim=-1, stable=True)
    return survivors_first.gather(-1, ordinal)


def of_survivors(
    x: Tensor, m: int, key_mask: Tensor | None, choose: Callable[[Tensor], Tensor]
) -> Tensor:
    """``choose`` applied to the tokens that take part alone: (b, s, d) -> (b, m, ...).

    Matrices with equally many of them are treated together. Returns (..., m, ...).
    """
    size, lead = taking_part(x, m, key_mask).reshape(-1), x.shape[:-2]
    flat = x.reshape(-1, *x.shape[-2:])
    if key_mask is None:
        return choose(flat).unflatten(0, lead) if lead else choose(flat).squeeze(0)
    order = (~key_mask).to(torch.uint8).argsort(dim=-1, stable=True).reshape(len(flat), -1)
    rows, parts = [], []
    for s in size.unique().tolist():
        mine = (size == s).nonzero().squeeze(-1)
        rows.append(mine)
        parts.append(choose(take(flat[mine], order[mine, :s])))
    out = torch.cat(parts)[torch.cat(rows).argsort()]
    return out.unflatten(0, lead) if lead else out.squeeze(0)


def indices_of_survivors(
    x: Tensor, m: int, key_mask: Tensor | None, choose: Callable[[Tensor], Tensor]
) -> Tensor:
    """Increasing positions (..., m) of what ``choose`` picks, (b, s, d) -> (b, m).

    It sees the tokens that take part, detached and in float64: the choice is discrete, and
    should not hang on the precision.
    """
    picked = of_survivors(x.detach().double(), m, key_mask, choose)
    return position_of(picked.sort(-1).values, key_mask)
