"""Landmarks by a strided convolution over a grid of tokens."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from softlab.core import Cost, Dims, Stream, value, widened
from softlab.landmarks.grids import Cells, cells, sides
from softlab.landmarks.selector import of_survivors, of_tokens
from softlab.validation import Seed, Size

EPS = 1e-5
"""Of the layer norm, as in torch."""


@value
class GridConv:
    """z = GELU(LayerNorm(conv(x))), a convolution over the grid whose windows are its m cells.

    The landmarks of the released SOFT, with the weights of a layer that is not trained: uniform in
    +-1 / sqrt(fan-in), no bias, d channels to d, a layer norm of gain 1 and shift 0. ``convolved``
    takes weights that are. ``height``, ``width``: as in ``GridPool``, with the same cells; where
    they are unequal the window is the largest, and what a cell lacks counts as zeros. ``seed``:
    integer >= 0, of the weights.

    The landmarks are no means of tokens: their scale is the layer norm's whatever that of x, so far
    tokens have none near them, and Soft with as many landmarks as tokens is not exact. Costs d
    multiply-adds an entry of x. Raises ``ValueError`` as ``GridPool`` does. Reference: released
    code of arXiv 2110.11945; the paper (Sec. 3.2) has the convolution alone.
    """

    height: Size | None = None
    width: Size | None = None
    seed: Seed = 0

    subset = False
    means = False
    equivariant = False
    nested = False

    def cost(self, dims: Dims, m: int) -> Cost:
        """The convolution: m windows."""
        window = cells(*sides(dims.l, self.height, self.width), m)
        return Cost(2 * dims.batch * m * window.height * window.width * dims.d**2)

    def weight(self, window: Cells, d: int) -> Tensor:
        """The kernel (d, d, height, width) for windows of that size, in float64."""
        shape = (d, d, window.height, window.width)
        bound = 1 / math.sqrt(d * window.height * window.width)
        uniform = Stream(self.seed, "landmarks.GridConv").uniform(*shape)
        return (2 * uniform - 1) * bound

    @of_tokens
    def __call__(self, x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor:
        """Landmarks (..., m, d) of tokens x (..., n, d)."""

        def apply(y: Tensor) -> Tensor:
            window = cells(*sides(y.shape[-2], self.height, self.width), m, y.device)
            weight = self.weight(window, y.shape[-1]).to(y)
            z = convolved(y, m, window, weight)
            return functional.gelu(functional.layer_norm(z, y.shape[-1:], eps=EPS))

        return of_survivors(widened(x), m, key_mask, apply).to(x.dtype)


def convolved(x: Tensor, m: int, window: Cells, weight: Tensor) -> Tensor:
    """The convolution of tokens x (..., s, d) in m cells with ``weight`` (c, d, height, width).

    Where cells are equal this is ``torch.nn.functional.conv2d`` with the cell as stride. Returns
    (..., m, c), differentiable in both.
    """
    size = window.height * window.width
    slots = x.new_zeros(*x.shape[:-2], m * size, x.shape[-1])
    at = (window.owner * size + window.place).unsqueeze(-1).expand(x.shape)
    slots = slots.scatter(-2, at, x).unflatten(-2, (m, size))
    out: Tensor = slots.flatten(-2) @ weight.flatten(2).movedim(2, 1).flatten(1).mT
    return out
