"""Peak memory against the number of tokens, at the shape of SOFT's Fig. 1: 12 layers of width 384
and 12 heads, one image, 784 p tokens, with materialised softmax and fused, and with SOFT, m = 49.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from softlab.core import Stream
from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.models.pyramid import Block
from softlab.models.soft_attention import Attention, Grid, Pooling
from softlab.operators import Soft, Softmax
from softlab.pinv import ImplicitGradient, NewtonRaphson
from softlab.profiling import peak_memory
from softlab.study import Study

from .columns import FUSED, IMPLICIT, TRAINING

LAYERS, WIDTH, HEADS, LANDMARKS, SIDE = 12, 384, 12, 49, 28
MULTIPLES = (1, 2, 3, 4, 6, 8)
UNROLLED, DENSE = "SOFT (unrolled)", "materialised softmax"
METHODS = (DENSE, FUSED, UNROLLED, IMPLICIT)
MODES = ("inference", TRAINING)


class Stack(nn.Module):
    """Layers of one width on one grid."""

    def __init__(self, method: str) -> None:
        super().__init__()
        newton = NewtonRaphson(steps=20)
        soft = Soft(LANDMARKS, pinv=ImplicitGradient(newton) if method == IMPLICIT else newton)
        self.blocks = nn.ModuleList()
        for _ in range(LAYERS):
            attention = (
                Attention(WIDTH, HEADS, soft, Pooling(rank=LANDMARKS))
                if method in (UNROLLED, IMPLICIT)
                else Attention(WIDTH, HEADS, Softmax(), tied=False)
            )
            self.blocks.append(Block(attention, WIDTH, nn.Identity(), before=True))

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """(1, n, width) -> (1, n, width)."""
        for block in self.blocks:
            x = block(x, grid)
        return x


def keep(method: str, mode: str, p: float) -> bool:
    """Materialised softmax where it takes less than about 5 GB; training to 3136 tokens."""
    if method == DENSE:
        return p <= (4 if mode == "inference" else 3)
    return mode == "inference" or p <= 4


def once(stack: Stack, x: Tensor, grid: Grid, *, training: bool) -> None:
    """One forward pass, and in training the backward pass into all weights."""
    stack.zero_grad(set_to_none=True)
    with contextlib.nullcontext() if training else torch.inference_mode():
        out = stack(x, grid)
    if training:
        out.square().mean().backward()


def measure(method: str, mode: str, p: float, *, dtype: torch.dtype, device: torch.device) -> Row:
    """Peak memory above the weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Stream(0, "memory, weights").number)
        stack = Stack(method).to(device, dtype)
    grid = (round(SIDE * p), SIDE)
    x = Stream(0, "memory, tokens").normal(1, grid[0] * grid[1], WIDTH).to(device, dtype)
    call: Callable[[], None] = partial(once, stack, x, grid, training=mode != MODES[0])
    plain = sdpa_kernel(SDPBackend.MATH) if method == DENSE else contextlib.nullcontext()
    with plain:
        peak = peak_memory(call, device)
        return {
            "n": x.shape[1],
            "peak_bytes": peak,
            "megabytes": peak / 1e6,
        }


FIGURE = Lines(
    x="n",
    y="megabytes",
    group="method",
    panel="mode",
    xlabel="tokens",
    ylabel="peak memory above the weights, MB",
    name="megabytes",
    caption="Peak memory of one image in a stack of 12 layers of width 384 and 12 heads against "
    "the number of tokens, in inference and in training. The shape is that of Fig. 1 of the paper.",
)

STUDY = Study(
    name="memory",
    title="Memory and the longest sequence",
    question="How much memory do 12 layers take, of softmax attention with its matrix stored, of "
    "fused softmax attention, and of SOFT, against the number of tokens? How long a "
    "sequence fits into 16 GB?",
    axes={"method": METHODS, "mode": MODES, "p": MULTIPLES},
    quick={"p": (0.5, 1)},
    measure=measure,
    keep=keep,
    figures=(FIGURE,),
)
