"""Partial Cholesky factorisation of a kernel matrix with pivots chosen by what is left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from softlab.kernels import Kernel
from softlab.landmarks.draws import Choose, open_to
from softlab.landmarks.selector import take


class Pivots(NamedTuple):
    """Some pivots: positions (..., b); whether each counts (..., b), or nothing was left to
    explain at it; their rows of the kernel matrix (..., b, l), differentiable.
    """

    at: Tensor
    live: Tensor
    rows: Tensor


def pivots(
    x: Tensor,
    m: int,
    kernel: Kernel,
    choose: Choose,
    *,
    taking_part: Tensor | None = None,
    block: int = 1,
) -> Iterator[Pivots]:
    """Choose m pivots of the kernel of x (..., l, d), whose diagonal is 1, ``block`` at once.

    ``choose`` sees the diagonal that is left; a block is chosen, without repeats, before any of it
    is eliminated. Once the diagonal is used up to rounding, 4 m eps, pivots are tokens not chosen
    before, and do not count. ``taking_part``: boolean (..., l), all where None, at least m.
    Evaluates m kernel rows, and spends m (m - 1) l operations on the elimination.
    """
    free = x.new_ones(x.shape[:-1], dtype=torch.bool) if taking_part is None else taking_part
    spent = 4 * m * torch.finfo(x.dtype).eps
    left = free.to(x.dtype)
    factor = x.new_zeros(*x.shape[:-2], m, x.shape[-2])
    for start in range(0, m, block):
        stop = min(start + block, m)
        chosen, weight = [], torch.where(left > spent, left, 0)
        for i in range(start, stop):
            chosen.append(choose(open_to(weight, free), i))
            free = free.scatter(-1, chosen[-1], value=False)
        at = torch.cat(chosen, -1)
        rows = kernel.matrix(take(x, at), x)
        live = []
        for i, pivot in enumerate(chosen, start):
            alive = left.gather(-1, pivot) > spent
            live.append(alive)
            with torch.no_grad():
                done = factor[..., :i, :]
                known = done.gather(-1, pivot.unsqueeze(-2).expand(*done.shape[:-1], 1))
                row = rows[..., i - start, :] - (known.mT @ done).squeeze(-2)
                row = torch.where(alive & (left > 0), row / left.gather(-1, pivot).sqrt(), 0)
                factor[..., i, :] = row
                left = (left - row.square()).clamp_min(0).scatter(-1, pivot, 0)
        yield Pivots(at, torch.cat(live, -1), rows)
