"""Tokens on a grid, in rows, cut into cells."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Cells(NamedTuple):
    """To which cell each token belongs (s,), where in the cell it stands, row by row (s,), and the
    height and width of the largest cell.
    """

    owner: Tensor
    place: Tensor
    height: int
    width: int


def sides(s: int, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width of the grid of s tokens; where both are open, of the squarest."""
    if height is None and width is None:
        height = next(side for side in range(math.isqrt(s), 0, -1) if s % side == 0)
    high = height if height is not None else s // (width or 1)
    wide = width if width is not None else s // high
    if high * wide != s:
        got = " x ".join("?" if side is None else str(side) for side in (height, width))
        msg = (
            f"a grid of {got} does not hold the {s} tokens that take part: its sides must multiply "
            "to their number. Give other sides, or none for the squarest grid."
        )
        raise ValueError(msg)
    return high, wide


def cells(high: int, wide: int, m: int, device: torch.device | None = None) -> Cells:
    """M cells of a grid, none empty, as square as may be: bands of rows, each cut into columns.

    Band i of r is the rows a with floor(a r / high) = i, and has floor((i + 1) m / r) - floor(i m /
    r) cells, cut alike. Their number r divides m wherever cells then are at most twice as long in
    one direction as in the other. So m = high wide gives single tokens, in order.
    """
    r = min(range(-(-m // wide), min(high, m) + 1), key=lambda r: _ill_cut(high, wide, m, r))
    first = torch.arange(r + 1, device=device) * m // r
    row = torch.arange(high, device=device)
    column = torch.arange(wide, device=device)
    band = row * r // high
    count = first.diff()[band][:, None]
    cell = column * count // wide
    top, left = -(-band * high // r)[:, None], -(-cell * wide // count)
    height, width = -(-high // r), -(-wide // (m // r))
    place = (row[:, None] - top) * width + column - left
    return Cells((first[band][:, None] + cell).flatten(), place.flatten(), height, width)


def _ill_cut(high: int, wide: int, m: int, r: int) -> tuple[bool, bool, float]:
    """Oblong cells, then unequal bands, then how oblong."""
    oblong = abs(math.log(high * m / (wide * r * r)))
    return oblong > math.log(2) + 1e-9, m % r != 0, oblong
