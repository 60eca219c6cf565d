"""The pyramid of SOFT: four stages of tokens on ever coarser grids, an image classifier.

Sources: arXiv 2110.11945, Sec. 3 and Table 1; fudan-zvg/SOFT, models/ (master, d3febc3).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from softlab import validation
from softlab.core import Cost, Operator, Stream, value
from softlab.models import published
from softlab.models.soft_attention import Attention, Convolution, Grid, Pooling, Projection
from softlab.operators import Linformer, Soft, Softmax
from softlab.pinv import (
    ImplicitGradient,
    NewtonRaphson,
    PublishedSoft,
    PublishedSoftNorm,
    Ridge,
    Solver,
)
from softlab.validation import Size

STAGES = 4
VARIANTS = ("paper", "released")
SAMPLINGS = ("pool", "conv")


@value
class Design:
    """The sizes of a pyramid, a number for each stage, with defaults of SOFT-Tiny's.

    ``depths``: blocks. ``widths``: of the tokens. ``heads``: divisors of those. ``strides``: by
    which each stage coarsens its grid; the stem's, the first, is 1, 2 or 4, the others 1 or 2.
    ``windows``: sides of the cells of landmarks, for the three first stages, where their number is
    not fixed. ``rank``: their number where it is. ``filters``: sides of the depthwise filters of v
    there, odd, or 0. ``stem``: channels inside it. ``image``: side of the image in pixels that the
    tables of positions are made for, a multiple of the product of the strides.
    """

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int] = (64, 128, 320, 512)
    heads: tuple[int, int, int, int] = (2, 4, 10, 16)
    strides: tuple[int, int, int, int] = (4, 2, 2, 2)
    windows: tuple[int, int, int] = (8, 4, 2)
    rank: Size = 49
    filters: tuple[int, int, int] = (9, 5, 3)
    stem: Size = 32
    image: Size = 224

    def __post_init__(self) -> None:
        for name in ("depths", "widths", "heads", "strides", "windows", "filters"):
            held, due = getattr(self, name), 3 if name in ("windows", "filters") else STAGES
            if not isinstance(held, tuple) or len(held) != due:
                msg = f"Design.{name} is {held!r}; give a tuple of {due} integers, one a stage."
                raise ValueError(msg)
            for number in held:
                wanted = validation.Natural if name == "filters" else validation.Size
                validation.in_range(self, wanted, **{name: number})
        if self.strides[0] not in (1, 2, 4) or any(s not in (1, 2) for s in self.strides[1:]):
            msg = f"Design.strides is {self.strides}; give 1, 2 or 4, then 1 or 2 three times."
            raise ValueError(msg)
        if self.image % self.stride:
            msg = f"Design.image is {self.image}; give a multiple of the strides' {self.stride}."
            raise ValueError(msg)

    @property
    def stride(self) -> int:
        """Pixels on a side of a token of the last stage: the product of the strides."""
        return math.prod(self.strides)

    def grids(self, height: int, width: int) -> Iterator[Grid]:
        """The grid of each stage for an image of these sides."""
        for stride in self.strides:
            height, width = height // stride, width // stride
            yield height, width


Layer = Callable[[int, Grid], Attention]
"""Makes the attention of one block: of its stage, and the grid of that."""


class Pyramid(nn.Module):
    """Images (b, channels, H, W) -> logits (b, num_classes), or features (b, widths[3]) for 0.

    ``design``: the sizes. ``variant``: ``"paper"``, whose landmarks are means of cells, as many
    whatever the image (``design.rank``, or all tokens of a smaller stage), their core inverted as
    it is by 20 Newton-Raphson steps, unrolled; ``"released"``, as in the repository: a convolution
    with LayerNorm and GELU at fixed windows, so that their number grows with the image, 0.01 added
    to the core after the iteration has been scaled, and the implicit gradient. ``normalization``:
    of ``Soft``, ``"none"``, ``"row"``, ``"symmetric"`` or ``"published"``. The last, released, is
    the repository's Norm model: unrolled, no ridge, and one scale of the iteration for the whole
    batch, so that a sample's output depends on its neighbours; give ``pinv`` to have it otherwise.

    ``num_classes``: >= 0. ``channels``: of the image. ``sampling``: ``"pool"`` or ``"conv"``, and
    ``fixed``: whether the number of landmarks is (else the windows are); None: the variant's.
    ``pinv``: any solver in the place of the variant's. ``operator``: None for Soft, else one of the
    catalogue for the three first stages, or a sequence of three; it has keys of its own unless
    ``tied``, by default those of Gaussian kernels alone are. A ``Linformer`` learns its projections
    and so serves images of ``design.image`` pixels alone. ``last``: the operator of the fourth
    stage, softmax in the released code and, by its count of parameters, in the paper's models.
    ``drop_path``: share in [0, 1) of residual branches that are dropped in training, growing
    linearly with the depth; the released code drops single entries in the first three stages.
    ``seed``: integer >= 0, of the initial weights, which leave torch's own generator as it was.

    Blocks of the first three stages are normed after the sum, the fourth's before the branch, as
    released; the paper does not say. Its norm models start their linear weights from torch's
    default by an oversight; here all start from a normal of deviation 0.02, cut at 2.
    """

    def __init__(
        self,
        design: Design,
        variant: str = "paper",
        normalization: str = "none",
        num_classes: int = 1000,
        *,
        channels: int = 3,
        sampling: str | None = None,
        fixed: bool | None = None,
        pinv: Solver | None = None,
        operator: Operator | Sequence[Operator] | None = None,
        tied: bool | None = None,
        last: Operator = Softmax(),  # noqa: B008  a frozen dataclass
        drop_path: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        validation.in_range(self, validation.OneOf(*VARIANTS), variant=variant)
        validation.in_range(self, validation.Natural, num_classes=num_classes)
        validation.in_range(self, validation.Seed, seed=seed)
        validation.in_range(self, validation.Size, channels=channels)
        validation.in_range(self, validation.Fraction, drop_path=drop_path)
        released = variant == "released"
        sampling = sampling or ("conv" if released else "pool")
        validation.in_range(self, validation.OneOf(*SAMPLINGS), sampling=sampling)
        self.design, self.variant = design, variant
        self.num_classes, self.channels = num_classes, channels
        fixed = not released if fixed is None else fixed
        own = pinv or solver(variant, normalization)
        soft = Soft(design.rank, pinv=own, normalization=normalization)
        attention = _own(design, soft, sampling, fixed=fixed)
        if operator is not None:
            attention = _of_catalogue(design, _three(operator), tied=tied)
        last_block = max(1, sum(design.depths) - 1)
        drops = (drop_path * block / last_block for block in itertools.count())
        into = (channels, *design.widths)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(Stream(seed, "models.Pyramid").number)
            stages = []
            for i, grid in enumerate(design.grids(design.image, design.image)):
                width, first = design.widths[i], i < STAGES - 1
                blocks = []
                for p in itertools.islice(drops, design.depths[i]):
                    layer = (
                        attention(i, grid)
                        if first
                        else Attention(width, design.heads[i], last, tied=False)
                    )
                    drop = nn.Dropout(p) if released and first else DropPath(p)
                    blocks.append(Block(layer, width, drop, before=not first))
                embed = _stem(channels, design) if i == 0 else _join(into[i], width, design, i)
                stages.append(Stage(embed, blocks, width, grid, extra=0 if first else 1))
            self.stages = nn.ModuleList(stages)
            self.cls = nn.Parameter(torch.zeros(1, 1, design.widths[-1]))
            self.norm = nn.LayerNorm(design.widths[-1], eps=1e-6)
            self.head = nn.Linear(design.widths[-1], num_classes) if num_classes else nn.Identity()
            self.apply(_start)
            for table in (self.cls, *(stage.positions for stage in stages)):
                nn.init.trunc_normal_(table, std=0.02, a=-0.04, b=0.04)

    def forward(self, image: Tensor) -> Tensor:
        """Classify; sides of the image are any multiples of ``design.stride``."""
        *_, tokens = self._scales(image)
        out: Tensor = self.head(tokens[0][:, 0])
        return out

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """What the four stages make of the image, (b, widths[i], rows, columns), finest first.

        For dense prediction. The last is normed and has no class token.
        """
        maps = []
        for i, (tokens, grid) in enumerate(self._scales(image)):
            maps.append((tokens[:, 1:] if i == STAGES - 1 else tokens).mT.unflatten(-1, grid))
        return tuple(maps)

    def load_published(self, state: Mapping[str, Tensor]) -> published.Loaded:
        """Take weights by the released repository's names, in place; see ``published.load``."""
        return published.load(self, state)

    def published_state_dict(self) -> dict[str, Tensor]:
        """All weights by the released repository's names, in its shapes."""
        return published.published_of(self.state_dict())

    def cost(self, height: int, width: int, batch: int = 1) -> Cost:
        """Convolutions, products and attention of one call; ``flops`` is two a multiply-add."""
        self._check_sides(height, width)
        total, high, wide = Cost(0), height, width
        for i, stage in enumerate(self.stages):
            assert isinstance(stage, Stage)
            for layer in stage.embed:
                if isinstance(layer, nn.Conv2d):
                    high, wide = high // layer.stride[0], wide // layer.stride[1]
                    total += Cost(2 * batch * high * wide * layer.weight.numel())
            grid = (high, wide) if i < STAGES - 1 else (1, high * wide + 1)
            for block in stage.blocks:
                assert isinstance(block, Block)
                total += block.cost(batch, grid)
        if self.num_classes:
            total += Cost(2 * batch * self.design.widths[-1] * self.num_classes)
        return total

    def _scales(self, image: Tensor) -> Iterator[tuple[Tensor, Grid]]:
        """The tokens (b, n, width) and grid of each stage."""
        self._check(image)
        x = image
        for i, stage in enumerate(self.stages):
            assert isinstance(stage, Stage)
            if i < STAGES - 1:
                tokens, grid = stage(x)
                x = tokens.mT.unflatten(-1, grid)
            else:
                tokens, grid = stage(x, self.cls)
                tokens = self.norm(tokens)
            yield tokens, grid

    def _check(self, image: Tensor) -> None:
        due = f"(b, {self.channels}, H, W), floating"
        if not isinstance(image, Tensor) or image.ndim != 4 or not image.is_floating_point():
            got = f"{tuple(image.shape)}, {image.dtype}" if isinstance(image, Tensor) else image
            msg = f"image must be {due}, got {got}. Divide bytes by 255 and add a batch axis."
            raise ValueError(msg)
        if image.shape[1] != self.channels:
            msg = (
                f"image must be {due}, got {tuple(image.shape)}: {image.shape[1]} channels. Repeat "
                f"or drop channels, or build the model with channels={image.shape[1]}."
            )
            raise ValueError(msg)
        self._check_sides(*image.shape[-2:])
        validation.finite("image", image)

    def _check_sides(self, height: int, width: int) -> None:
        s = self.design.stride
        if height < s or width < s or height % s or width % s:
            near = " x ".join(str(max(s, round(side / s) * s)) for side in (height, width))
            msg = (
                f"an image of {height} x {width} pixels is not divided by the strides, whose "
                f"product is {s}. Resize or pad it, to {near} for example."
            )
            raise ValueError(msg)


class Stage(nn.Module):
    """A coarser grid, positions, blocks: (b, c, H, W) -> tokens (b, n, width) and their grid.

    ``extra``: tokens before those of the grid, 0 or 1; their positions come first in the table.
    """

    def __init__(
        self, embed: nn.Sequential, blocks: list[Block], width: int, grid: Grid, extra: int
    ) -> None:
        super().__init__()
        self.embed, self.grid, self.extra = embed, grid, extra
        self.positions = nn.Parameter(torch.zeros(1, extra + grid[0] * grid[1], width))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, image: Tensor, first: Tensor | None = None) -> tuple[Tensor, Grid]:
        """Tokens of the image, ``first`` (1, 1, width) before them if given, and their grid."""
        x = self.embed(image)
        high, wide = x.shape[-2:]
        x = x.flatten(2).mT
        if first is not None:
            x = torch.cat((first.expand(len(x), -1, -1).to(x.dtype), x), 1)
        x = x + self.positions_for((high, wide))
        for block in self.blocks:
            x = block(x, (high, wide))
        return x, (high, wide)

    def positions_for(self, grid: Grid) -> Tensor:
        """The table of positions, interpolated bilinearly to this grid: (1, extra + n, width)."""
        if grid == self.grid:
            return self.positions
        table = self.positions[:, self.extra :].mT.unflatten(-1, self.grid)
        table = functional.interpolate(table, size=grid, mode="bilinear", align_corners=False)
        return torch.cat((self.positions[:, : self.extra], table.flatten(2).mT), 1)


class Block(nn.Module):
    """Attention and a perceptron of four times the width, each with a residual and a LayerNorm.

    ``before``: the norm comes before the branch, x + f(norm(x)), with GELU; otherwise after the
    sum, norm(x + f(x)), with GELU's approximation by tanh. ``drop``: on each branch.
    """

    def __init__(self, attention: Attention, width: int, drop: nn.Module, *, before: bool) -> None:
        super().__init__()
        self.attention, self.drop, self.before = attention, drop, before
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        eps = 1e-6 if before else 1e-5  # as released
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=eps) for _ in range(2))

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """(b, n, width) -> (b, n, width)."""
        if self.before:
            x = x + self.drop(self.attention(self.norm1(x), grid))
            x = x + self.drop(self.perceptron(self.norm2(x)))
        else:
            x = self.norm1(x + self.drop(self.attention(x, grid)))
            x = self.norm2(x + self.drop(self.perceptron(x)))
        return x

    def perceptron(self, x: Tensor) -> Tensor:
        """Up, GELU, down."""
        out: Tensor = self.down(
            functional.gelu(self.up(x), approximate="none" if self.before else "tanh")
        )
        return out

    def cost(self, batch: int, grid: Grid) -> Cost:
        """Attention and two linear maps."""
        tokens = batch * grid[0] * grid[1]
        return self.attention.cost(batch, grid) + Cost(2 * tokens * 2 * self.up.weight.numel())


class DropPath(nn.Module):
    """Stochastic depth: in training a sample's branch is 0 with probability p, else / (1 - p).

    Source: Huang et al. 2016 (arXiv 1603.09382).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole samples of (b, ...)."""
        if not self.training or self.p == 0:
            return x
        kept = torch.rand(len(x), *(1,) * (x.ndim - 1), device=x.device) >= self.p
        return x * kept.to(x.dtype) / (1 - self.p)


def solver(variant: str, normalization: str) -> Solver:
    """How a variant inverts the core of its landmarks."""
    if variant == "paper":
        return NewtonRaphson(steps=20)
    if normalization == "published":
        return NewtonRaphson(steps=20, scaling=PublishedSoftNorm())
    return Ridge(ImplicitGradient(NewtonRaphson(steps=20, scaling=PublishedSoft())))


def _own(design: Design, soft: Soft, sampling: str, *, fixed: bool) -> Layer:
    """SOFT's attention of a stage, with landmarks by convolutions or by means of cells."""

    def layer(stage: int, grid: Grid) -> Attention:  # noqa: ARG001  a Layer
        width, heads = design.widths[stage], design.heads[stage]
        rank, window = design.rank if fixed else None, design.windows[stage]
        landmarks = (
            Convolution(width // heads, window, rank)
            if sampling == "conv"
            else Pooling(rank, None if fixed else window)
        )
        return Attention(width, heads, soft, landmarks, depthwise=design.filters[stage])

    return layer


def _of_catalogue(design: Design, operators: Sequence[Operator], *, tied: bool | None) -> Layer:
    """The attention of a stage with the operator that was given for it."""

    def layer(stage: int, grid: Grid) -> Attention:
        op, width, heads = operators[stage], design.widths[stage], design.heads[stage]
        own = isinstance(op, Soft) if tied is None else tied
        learnt = Projection(op.rank, grid) if isinstance(op, Linformer) else None
        return Attention(width, heads, op, learnt, tied=own, depthwise=design.filters[stage])

    return layer


def _three(operator: Operator | Sequence[Operator]) -> Sequence[Operator]:
    if isinstance(operator, Operator):
        return [operator] * (STAGES - 1)
    if len(operator) != STAGES - 1:
        msg = f"operator has {len(operator)} entries; give one, or one for each of three stages."
        raise ValueError(msg)
    return operator


def _stem(channels: int, design: Design) -> nn.Sequential:
    first, third = (2 if design.strides[0] >= 2 else 1), (2 if design.strides[0] == 4 else 1)
    layers = []
    for into, out, stride in (
        (channels, design.stem, first),
        (design.stem, design.stem, 1),
        (design.stem, design.widths[0], third),
    ):
        layers += _coarsened(into, out, stride)
    return nn.Sequential(*layers)


def _join(into: int, width: int, design: Design, stage: int) -> nn.Sequential:
    return nn.Sequential(*_coarsened(into, width, design.strides[stage]))


def _coarsened(into: int, out: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(into, out, 3, stride, padding=1), nn.BatchNorm2d(out), nn.ReLU()]


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
