"""The attention layer of SOFT: one projection for queries and keys, landmarks of a grid, V's own
convolution; and the layer of any operator of the catalogue in its place.

Sources: arXiv 2110.11945, Sec. 3 and Fig. 3; fudan-zvg/SOFT, models/softmax_free_transformer.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from softlab import validation
from softlab.core import Cost, Dims, Operator
from softlab.landmarks import GridPool
from softlab.operators import Linformer, Soft

Grid = tuple[int, int]
"""Height and width of the tokens, which fill it row by row."""


class Pooling(nn.Module):
    """Landmarks z_j = mean of cell j, as ``GridPool``: the paper's average pooling.

    Either ``rank``, their number m whatever the grid, or ``stride``, the side of the square cells,
    which must divide those of the grid. Where a grid has fewer tokens than ``rank``, each is one.
    """

    def __init__(self, rank: int | None = None, stride: int | None = None) -> None:
        super().__init__()
        if (rank is None) == (stride is None):
            msg = f"Pooling takes either a rank or a stride, got rank {rank} and stride {stride}."
            raise ValueError(msg)
        for name, given in (("rank", rank), ("stride", stride)):
            if given is not None:
                validation.in_range(self, validation.Size, **{name: given})
        self.rank, self.stride = rank, stride

    def count(self, grid: Grid) -> int:
        """The number m of landmarks of a grid; ``ValueError`` where the stride does not divide."""
        if self.stride is not None:
            return cut(grid, self.stride)
        return min(self.rank or 1, grid[0] * grid[1])

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Tokens (b, h, n, d) -> landmarks (b, h, m, d)."""
        return GridPool(*grid)(x, self.count(grid))

    def cost(self, dims: Dims, grid: Grid) -> Cost:
        """Nothing that is counted."""
        return GridPool(*grid).cost(dims, self.count(grid))


class Convolution(nn.Module):
    """Landmarks z = s GELU(LayerNorm(conv(x / s))), s = d^(1/4), of the released code.

    Window and stride are ``stride``; one convolution of head width d to d, no bias, serves all
    heads. The unit s is SOFT's bandwidth: the release divides by it first, so that its landmarks,
    unlike its tokens, lie on a scale of their own. At a fixed stride the number m
    grows with the grid, m = n / stride^2, and the cost of attention with its square. ``rank``, if
    given, bounds it: more landmarks than that are pooled, cell by cell, to so many.
    """

    def __init__(self, d: int, stride: int, rank: int | None = None) -> None:
        super().__init__()
        given = {"d": d, "stride": stride} | ({} if rank is None else {"rank": rank})
        validation.in_range(self, validation.Size, **given)
        self.rank, self.stride = rank, stride
        self.weight = nn.Parameter(torch.empty(d, d, stride, stride))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as torch's Conv2d
        self.norm = nn.LayerNorm(d)

    def count(self, grid: Grid) -> int:
        """The number m of landmarks of a grid; ``ValueError`` where the stride does not divide."""
        m = cut(grid, self.stride)
        return m if self.rank is None else min(m, self.rank)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Tokens (b, h, n, d) -> landmarks (b, h, m, d)."""
        m, (high, wide) = cut(grid, self.stride), grid
        b, h, _, d = x.shape
        unit = d**0.25
        image = x.reshape(b * h, high, wide, d).permute(0, 3, 1, 2)
        z = functional.conv2d(image, self.weight, stride=self.stride)
        z = z.flatten(2).mT.unflatten(0, (b, h))
        z = unit * functional.gelu(self.norm(z / unit))
        kept = self.count(grid)
        if kept < m:
            z = GridPool(high // self.stride, wide // self.stride)(z, kept)
        return z

    def cost(self, dims: Dims, grid: Grid) -> Cost:
        """The convolution: every token meets one d x d matrix."""
        del grid
        return Cost(2 * dims.batch * dims.l * dims.d**2)


class Projection(nn.Module):
    """Linformer's learnt E and F (m, n), one pair for all heads, of one grid of n tokens.

    They start as means of m cells of the grid, which is the reduction that SOFT's paper compares.
    """

    def __init__(self, rank: int, grid: Grid) -> None:
        super().__init__()
        self.rank, self.grid = rank, grid
        means = GridPool(*grid)(torch.eye(grid[0] * grid[1]), rank)
        self.keys, self.values = (nn.Parameter(means.clone()) for _ in range(2))

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """E and F in the dtype of x; ``ValueError`` for another grid."""
        if grid != self.grid:
            msg = (
                f"Linformer's projections are learnt for a grid of {self.grid[0]} x {self.grid[1]} "
                f"tokens, got {grid[0]} x {grid[1]}. Resize the image."
            )
            raise ValueError(msg)
        return self.keys.to(x.dtype), self.values.to(x.dtype)


def cut(grid: Grid, stride: int) -> int:
    """The number of square cells; ``ValueError`` where the stride does not divide the sides."""
    if grid[0] % stride or grid[1] % stride:
        msg = (
            f"a grid of {grid[0]} x {grid[1]} tokens is not cut by a stride of {stride}: it must "
            "divide both sides. Resize the image, or give a rank instead of a stride."
        )
        raise ValueError(msg)
    return (grid[0] // stride) * (grid[1] // stride)


class Attention(nn.Module):
    """y = W_o [op(q, k, v) + c * v], with q = W_q x, v = W_v x, heads side by side.

    ``width``: of the tokens. ``heads``: a divisor of it; the head width is d = width / heads.
    ``operator``: any of the catalogue. ``landmarks``: None, or a ``Pooling`` or ``Convolution``
    that takes the place of the selector of a ``Soft``, or the ``Projection`` of a ``Linformer``.
    ``tied``: k = q, as SOFT; otherwise k = W_k x. ``depthwise``: odd side of the filter c of each
    head, which convolves v over the grid; 0 for none. No equation of the paper has it; its Fig. 3
    and the released code do.

    ``forward`` takes tokens (b, n, width), their grid and an optional boolean ``key_mask`` (b, n),
    True for tokens that take part. Masked keys and values count as zeros also in the convolutions;
    an operator with ``landmarks`` of a grid takes none, since a cell may be left without a token.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        operator: Operator,
        landmarks: Pooling | Convolution | Projection | None = None,
        *,
        tied: bool = True,
        depthwise: int = 0,
    ) -> None:
        super().__init__()
        validation.in_range(self, validation.Size, width=width, heads=heads)
        validation.in_range(self, validation.Natural, depthwise=depthwise)
        validation.in_range(self, Operator, operator=operator)
        if width % heads:
            msg = f"width {width} is not divided by {heads} heads; give a divisor."
            raise ValueError(msg)
        served = Linformer if isinstance(landmarks, Projection) else Soft
        if landmarks is not None and not isinstance(operator, served):
            msg = (
                f"landmarks serve a {served.__name__}, and operator is {operator!r}: give one or "
                "the other."
            )
            raise TypeError(msg)
        if depthwise and depthwise % 2 == 0:
            msg = f"depthwise is {depthwise}; the side of a filter must be odd, or 0 for none."
            raise ValueError(msg)
        self.heads, self.operator, self.landmarks, self.tied = heads, operator, landmarks, tied
        self.query, self.value, self.mix = (nn.Linear(width, width) for _ in range(3))
        self.key = None if tied else nn.Linear(width, width)
        self.filter = (
            nn.Conv2d(heads, heads, depthwise, padding=depthwise // 2, groups=heads, bias=False)
            if depthwise
            else None
        )

    def forward(self, x: Tensor, grid: Grid, key_mask: Tensor | None = None) -> Tensor:
        """(b, n, width) -> (b, n, width)."""
        q = self._split(self.query(x))
        k = q if self.key is None else self._split(self.key(x))
        v, mask = self.value(x), None
        if key_mask is not None:
            v, mask = torch.where(key_mask.unsqueeze(-1), v, 0), key_mask[:, None, :]
        mixed = self.mixed(q, k, self._split(v), grid, mask).transpose(1, 2).flatten(2)
        if self.filter is not None:
            mixed = mixed + self.filtered(v, grid)
        out: Tensor = self.mix(mixed)
        return out

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, mask: Tensor | None) -> Tensor:
        """What the operator makes of them, (b, h, n, d)."""
        operator: Any = self.operator
        if self.landmarks is None:
            out: Tensor = operator(q, k, v, mask)
            return out
        if isinstance(self.landmarks, Projection):
            projected: Tensor = operator(q, k, v, mask, projections=self.landmarks(k, grid))
            return projected
        if mask is not None:
            msg = (
                "landmarks of a grid take no key_mask: a cell may be left without a token. Use "
                "Soft with SegmentMeans() and landmarks=None."
            )
            raise ValueError(msg)
        through: Tensor = operator.at(self.landmarks(k, grid), q, k, v)
        return through

    def core(self, x: Tensor, grid: Grid) -> Tensor:
        """The core A = K(z, z) of a layer with landmarks, (b, h, m, m), which ``pinv`` inverts."""
        if not isinstance(self.operator, Soft) or isinstance(self.landmarks, Projection | None):
            msg = f"a layer of {self.operator!r} without landmarks of its own has no core here."
            raise TypeError(msg)
        k = self._split((self.query if self.key is None else self.key)(x))
        z = self.landmarks(k, grid)
        return self.operator.kernel(k.shape[-1]).matrix(z, z)

    def filtered(self, v: Tensor, grid: Grid) -> Tensor:
        """The depthwise convolution of v (b, n, width) over the grid, each head with its filter."""
        assert self.filter is not None
        # The channels of a token side by side, as the projection left them: nothing is copied.
        weight = self.filter.weight.repeat_interleave(v.shape[-1] // self.heads, 0)
        image, padding = v.mT.unflatten(-1, grid), weight.shape[-1] // 2
        return functional.conv2d(image, weight, padding=padding, groups=v.shape[-1]).flatten(2).mT

    def cost(self, batch: int, grid: Grid) -> Cost:
        """Projections, operator, filter."""
        width, n = self.query.in_features, grid[0] * grid[1]
        d = width // self.heads
        dims = Dims(batch * self.heads, n, n, d, d)
        total = Cost(2 * batch * n * width**2 * (3 if self.tied else 4))
        if self.landmarks is None or isinstance(self.landmarks, Projection):
            total += self.operator.cost(dims)
        else:
            m = self.landmarks.count(grid)
            plain: Any = dataclasses.replace(self.operator, rank=m, landmarks=GridPool(*grid))  # type: ignore[type-var]
            total += plain.cost(dims) + self.landmarks.cost(dims, grid)
        if self.filter is not None:
            total += Cost(2 * batch * n * width * self.filter.kernel_size[0] ** 2)
        return total

    def _split(self, x: Tensor) -> Tensor:
        """(b, n, width) -> (b, h, n, d), contiguous, which every sum over the tokens would make."""
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2).contiguous()
        return heads
