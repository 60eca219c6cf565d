"""A layer's mask, read as the keys that take part and whether later ones are hidden."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

HIDDEN = -1e4
"""Added to a score, this or less hides a key: what models add that have no -inf in their dtype."""


class UnableError(ValueError):
    """Why a layer cannot be given what it asks for."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Keys that take part, boolean, broadcastable to (..., l), None for all; later ones hidden."""

    key_mask: Tensor | None
    causal: bool


def read(mask: Tensor | None, is_causal: bool, lead: torch.Size, n: int, l: int) -> Reading:
    """Read the mask of n queries and l keys, leading dimensions ``lead``.

    A causal mask of as many queries as keys may hide further keys from all; the rows of tokens that
    are hidden themselves do not count, as nobody looks at them. Raises ``UnableError`` for a mask
    of another shape, one that adds other numbers than 0 and at most ``HIDDEN``, and one that is
    neither.
    """
    if mask is None:
        return Reading(None, is_causal and n > 1)
    allowed = hiding(mask, lead, n, l)
    if is_causal:
        allowed = allowed & _earlier(mask, n, l)
    rows = allowed[..., :1, :]
    if allowed.shape[-2] == 1 or bool((allowed == rows).all()):
        return Reading(_some(rows.squeeze(-2)), causal=False)
    if n == l:
        keys = allowed.diagonal(dim1=-2, dim2=-1)
        as_causal = allowed == _earlier(mask, n, l) & keys.unsqueeze(-2)
        if bool((as_causal | ~keys.unsqueeze(-1)).all()):
            return Reading(_some(keys), causal=True)
    if n < l and bool((~allowed | _earlier(mask, n, l, l - n)).all()):
        msg = (
            f"its {n} queries are the last of {l} keys, as of a model that fills a cache in parts, "
            "and each sees what was before it, which the operator cannot tell. Run the whole "
            "sequence at once, without a cache, or pass a callable that takes attn_mask."
        )
        raise UnableError(msg)
    msg = (
        f"its mask {tuple(mask.shape)} hides different keys from different queries and is not "
        "causal, and the operator takes a mask of keys alone. Substitute elsewhere, or pass a "
        "callable that takes attn_mask."
    )
    raise UnableError(msg)


def hiding(mask: Tensor, lead: torch.Size, n: int, l: int) -> Tensor:
    """The mask as booleans, True where a key takes part, its last axes expanded to (n or 1, l)."""
    wanted = (*lead, n, l)
    sizes = zip(reversed(mask.shape), reversed(wanted), strict=False)
    if mask.ndim > len(wanted) or any(size not in (1, whole) for size, whole in sizes):
        msg = f"its mask is {tuple(mask.shape)}, which does not broadcast to {wanted}."
        raise UnableError(msg)
    if mask.dtype != torch.bool:
        hidden = mask.detach() <= HIDDEN
        if mask.requires_grad or not bool((hidden | (mask == 0)).all()):
            msg = (
                "its mask adds a bias to the scores (numbers other than 0 and -inf, or learned "
                "ones), which the operator has no place for. Substitute elsewhere, or pass a "
                "callable that takes attn_mask."
            )
            raise UnableError(msg)
        mask = ~hidden
    if mask.ndim < 2:
        mask = mask.reshape(1, -1)
    return mask.expand(*mask.shape[:-1], l)


def _earlier(mask: Tensor, n: int, l: int, before: int = 0) -> Tensor:
    """True where a key is no later than the query, (n, l); so many keys are before the first."""
    return torch.ones(n, l, dtype=torch.bool, device=mask.device).tril(before)


def _some(keys: Tensor) -> Tensor | None:
    """The mask of keys; None where it keeps them all."""
    return None if bool(keys.all()) else keys
