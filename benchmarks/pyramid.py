"""Speed and memory of SOFT's pyramid, against the formulation that was released, and softmax.

    python benchmarks/pyramid.py [--device cuda] [--threads 2] [--rounds 9] [--out FOLDER]

The rivals are one network on the same weights, with the attention of its three first stages written
otherwise; they run in turn within each round. Before anything is timed they must agree. Writes
FOLDER/pyramid.csv and prints it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rivals import Line, agree, main, race, ratio
from torch import Tensor
from torch.nn import functional

from softlab.core import Stream
from softlab.models import Pyramid, soft_tiny
from softlab.models.soft_attention import Attention, Convolution, Grid
from softlab.profiling import peak_memory

Mixed = Callable[[Attention, Tensor, Tensor, Tensor, Grid, Tensor | None], Tensor]
Filtered = Callable[[Attention, Tensor, Grid], Tensor]


def speed(device: torch.device, rounds: int) -> list[Line]:
    """Inference of Tiny at 224 pixels, one image and eight, and a step of training on eight."""
    model = soft_tiny("released").to(device).eval()
    other = written(model, released, released_filter)
    lines = []
    for b in (1, 8):
        calls = [partial(infer, net, images(b, 224, device)) for net in (model, other)]
        agree(calls[0](), calls[1]())
        ours, theirs = race(calls, device, rounds)
        what = f"Tiny, 224 pixels, batch {b}: time over the released form"
        lines.append(ratio(what, ours, theirs, 1.0, True))
    paper = soft_tiny("paper").to(device).eval()
    ours, theirs = race(
        [partial(infer, net, images(1, 224, device)) for net in (paper, other)], device, rounds
    )
    lines.append(ratio("Tiny as in the paper, batch 1: time over the released form", ours, theirs))
    learning = [partial(learn, net.train(), images(8, 224, device)) for net in (model, other)]
    ours, theirs = race(learning, device, max(3, rounds // 3))
    what = "Tiny, forward and backward, batch 8: time over the released form"
    lines.append(ratio(what, ours, theirs))
    return lines


def memory(device: torch.device, rounds: int) -> list[Line]:
    """Peak memory at 448 pixels, where the first stage has 12,544 tokens."""
    del rounds
    tokens, grid = torch.randn(1, 12_544, 64, device=device), (112, 112)
    image = images(1, 448, device)
    lines = []
    for variant in ("paper", "released"):
        model = soft_tiny(variant).to(device).eval()
        dense = written(model, softmax)
        layers = (first_layer(net) for net in (model, dense))
        ours, theirs = (peak_memory(partial(infer, x, tokens, grid), device) for x in layers)
        whole = [peak_memory(partial(infer, net, image), device) for net in (model, dense)]
        for what, share in (
            (f"Layer ({variant}), 12,544 tokens", ours / theirs),
            (f"Tiny ({variant}), 448 pixels", whole[0] / whole[1]),
        ):
            name = f"{what}: peak memory over materialised softmax"
            lines.append(Line(name, share, share, share, True, 0.25))
    return lines


def first_layer(model: Pyramid) -> Attention:
    """The attention of the first block."""
    return next(module for module in model.modules() if isinstance(module, Attention))


def images(b: int, side: int, device: torch.device) -> Tensor:
    """Standard normal images."""
    return Stream(0, "benchmarks.pyramid").normal(b, 3, side, side).float().to(device)


def infer(net: torch.nn.Module, *inputs: object) -> Tensor:
    """The output, without a graph."""
    with torch.inference_mode():
        out: Tensor = net(*inputs)
    return out


def learn(net: torch.nn.Module, image: Tensor) -> None:
    """The gradient of a fixed functional in all weights."""
    net.zero_grad()
    net(image).square().mean().backward()


def written(model: Pyramid, mixed: Mixed, filtered: Filtered | None = None) -> Pyramid:
    """The same network whose first three stages mix their tokens, and filter v, otherwise."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, Attention) and module.tied:
            module.mixed = partial(mixed, module)  # type: ignore[method-assign]
            if filtered is not None:
                module.filtered = partial(filtered, module)  # type: ignore[method-assign]
    return other


def released(
    layer: Attention, q: Tensor, k: Tensor, v: Tensor, grid: Grid, mask: Tensor | None
) -> Tensor:
    """As the repository's torch code has it, its constants made on the device of the tokens."""
    del k, mask
    landmarks = layer.landmarks
    assert isinstance(landmarks, Convolution)
    b, h, _, d = q.shape
    q = q / math.sqrt(math.sqrt(d))
    image = q.reshape(b * h, *grid, d).permute(0, 3, 1, 2)
    z = functional.conv2d(image, landmarks.weight, stride=landmarks.stride)
    z = functional.gelu(landmarks.norm(z.flatten(2).transpose(1, 2).reshape(b, h, -1, d)))
    side = torch.exp(-squared(q, z.transpose(-1, -2).contiguous()) / 2)
    core = torch.exp(-squared(z, z.transpose(-1, -2).contiguous()) / 2)
    inverse = Implicit.apply(core)  # type: ignore[no-untyped-call]
    out: Tensor = torch.matmul(torch.matmul(side, inverse), torch.matmul(side.mT, v))
    return out


def released_filter(layer: Attention, v: Tensor, grid: Grid) -> Tensor:
    """Channels in the place of the batch, a filter a head."""
    b, n, width = v.shape
    h, d = layer.heads, width // layer.heads
    assert layer.filter is not None
    image = v.reshape(b, *grid, h, d).permute(0, 4, 3, 1, 2).reshape(b * d, h, *grid)
    out: Tensor = layer.filter(image)
    return out.reshape(b, d, h, n).permute(0, 3, 2, 1).reshape(b, n, width)


def squared(q: Tensor, k: Tensor) -> Tensor:
    """|q_i - k_j|^2 for k (..., d, l), squares summed by products with ones."""
    own = q**2.0 @ torch.ones(k.shape[-2:], device=k.device)
    other = torch.ones(q.shape[-2:], device=q.device) @ k**2.0
    out: Tensor = own + other - 2.0 * (q @ k)
    return out


class Implicit(torch.autograd.Function):
    """20 steps, and the gradient by formula."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        """The last iterate, from alpha of the core before the ridge."""
        alpha = 0.9 * 2 / torch.max(torch.sum(a, dim=-1), -1)[0] ** 2
        a = a + 0.01 * torch.eye(a.shape[-1], device=a.device)
        x = alpha[..., None, None] * a
        for _ in range(20):
            x = 2 * x - x @ a @ x
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """-X^T G X^T."""
        (x,) = ctx.saved_tensors
        out: Tensor = -x.mT @ grad @ x.mT
        return out


def softmax(
    layer: Attention, q: Tensor, k: Tensor, v: Tensor, grid: Grid, mask: Tensor | None
) -> Tensor:
    """Softmax attention with its matrix."""
    del layer, grid, mask
    out: Tensor = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v
    return out


if __name__ == "__main__":
    main(__doc__, "pyramid", (memory, speed))
