"""Means of the cells of a grid of tokens."""

from __future__ import annotations

from torch import Tensor

from softlab.core import value, widened
from softlab.landmarks.grids import cells, sides
from softlab.landmarks.lloyd import means
from softlab.landmarks.selector import Uncounted, of_survivors, of_tokens
from softlab.validation import Size


@value
class GridPool(Uncounted):
    """Landmark j is the mean of cell j of a grid that the tokens fill row by row.

    ``height``, ``width``: sides of the grid, positive; None: what the other leaves, and where both
    are None the squarest grid of as many tokens, of one row where their number is prime. The grid
    is cut into m cells as square as may be, none empty: m = a b makes a bands of b where such
    cells are at most twice as long as wide, and where it divides the sides this is average pooling
    (SOFT's default on images, arXiv 2110.11945, Sec. 3.2).

    The tokens that ``key_mask`` keeps, in order, are the grid. Costs one addition an entry, no
    product. Raises ``ValueError`` if the sides do not multiply to their number, or if they are
    fewer than m.
    """

    height: Size | None = None
    width: Size | None = None

    subset = False
    means = True
    equivariant = False
    nested = False

    @of_tokens
    def __call__(self, x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor:
        """Landmarks (..., m, d) of tokens x (..., n, d)."""
        return of_survivors(widened(x), m, key_mask, lambda y: self._pooled(y, m)).to(x.dtype)

    def _pooled(self, x: Tensor, m: int) -> Tensor:
        owner = cells(*sides(x.shape[-2], self.height, self.width), m, x.device).owner
        return means(x, owner.expand(x.shape[:-1]), x.new_zeros(len(x), m, x.shape[-1]))
