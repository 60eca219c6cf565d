"""Speed and memory of exact Gaussian attention and of Soft, against the forms they replace.

    python benchmarks/attention.py [--device cuda] [--threads 2] [--rounds 9] [--out FOLDER]

Rivals run in turn within each round, so that a busy machine slows them alike; a line gives the
median over rounds of the ratio of their times, and its quartiles. Before anything is timed the
rivals must agree. Writes FOLDER/attention.csv and prints it. The bounds are those that the project
set itself; the last column says whether this run met them.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch
from rivals import Call, Line, agree, main, race, ratio
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from softlab.core import Stream
from softlab.kernels import lifted_sum
from softlab.kernels.tiled import TILED_UP_TO, tiled_sum
from softlab.operators import GaussianAttention, Soft
from softlab.profiling import peak_memory

D, HEADS, LONG = 32, 4, 65_536


def exact(device: torch.device, rounds: int) -> list[Line]:
    """Exact Gaussian attention, n = 8192: against torch's softmax, and materialised."""
    q, k, v = (draw(1, 8192, device, seed) for seed in range(3))
    op = GaussianAttention()
    agree(op(q, k, v), dense(q, k, v))
    rivals = (op, scaled_dot_product_attention, dense)
    ours, softmax, matrix = race([partial(rival, q, k, v) for rival in rivals], device, rounds)
    sizes = (LONG // 4, LONG)
    tokens = (draw(1, n, device, 0) for n in sizes)
    small, large = (peak_memory(partial(op, x, x, x), device) for x in tokens)
    growth = large / small / (sizes[1] / sizes[0])
    memory = "Gaussian: peak memory at n=65536 over 4 x that at 16384"
    return [
        ratio("Gaussian n=8192: time over torch's softmax attention", ours, softmax, 1.5, True),
        ratio("Gaussian n=8192: materialised form's time over it", matrix, ours, 6),
        Line(memory, growth, growth, growth, True, 1.1),
    ]


def forms(device: torch.device, rounds: int) -> list[Line]:
    """The two forms of a Gaussian sum, at half and at twice the size where ``suits`` changes over.

    Only on a CPU, where there is a choice.
    """
    if device.type != "cpu":
        return []
    x, bandwidth = draw(HEADS, LONG // 2, device, 0)[0], D**0.25
    lines = []
    for short in (64, TILED_UP_TO // 2, 2 * TILED_UP_TO):
        y, v = (draw(HEADS, short, device, seed)[0] for seed in (1, 2))
        calls = [partial(tiled_sum, x, y, v, bandwidth**2), partial(lifted_sum, x, y, v, bandwidth)]
        agree(calls[0](), calls[1]())
        tiled, fused = race(calls, device, rounds)
        if short <= TILED_UP_TO:
            lines.append(ratio(f"{short} keys: fused form's time over tiles", fused, tiled, 1))
        else:
            lines.append(ratio(f"{short} keys: tiles' time over the fused form", tiled, fused, 1))
    return lines


def soft(device: torch.device, rounds: int) -> list[Line]:
    """Soft, n = 65,536, h = 4: against the materialised forms, and its memory."""
    q, v = draw(HEADS, LONG, device, 0), draw(HEADS, LONG, device, 1)
    lines = []
    for rank, bound in ((64, 2.5), (256, 3.5)):
        op = Soft(rank)
        calls = [partial(rival, op, q, v) for rival in (tied, dense_soft, shared_soft)]
        for call in calls[1:]:
            agree(calls[0](), call())
        ours, dense_, shared = race(calls, device, rounds)
        name = f"Soft n=65536, h=4, rank {rank}"
        lines += [
            ratio(f"{name}: materialised time over it, forward", dense_, ours, bound),
            ratio(f"{name}: one factor used twice, forward", shared, ours, 1),
        ]
        learning = [partial(rival, op) for rival in (tied, dense_soft, shared_soft)]
        calls = [partial(gradient, f, q, v) for f in learning]
        for call in calls[1:]:
            agree(calls[0](), call())
        ours, dense_, shared = race(calls, device, max(3, rounds // 2))
        size = q.numel() * q.element_size()
        peak = peak_memory(partial(op, q, q, v), device) / size
        lines += [
            ratio(f"{name}: materialised, forward and backward", dense_, ours, 1),
            ratio(f"{name}: one factor twice, forward and backward", shared, ours, 1),
            Line(f"{name}: peak extra memory over that of q", peak, peak, peak, True, 6),
        ]
    return lines


def starting(device: torch.device, rounds: int) -> list[Line]:
    """Importing every operator against ``import torch``, each in a fresh interpreter."""
    del device

    def start(module: str) -> Call:
        return lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    ours, torchs = race([start("softlab.operators"), start("torch")], torch.device("cpu"), rounds)
    return [ratio("import softlab.operators: time over import torch", ours, torchs, 1.3, True)]


def draw(heads: int, n: int, device: torch.device, seed: int) -> Tensor:
    """Standard normal float32 tokens (1, heads, n, D)."""
    return Stream(seed, "benchmarks.attention").normal(1, heads, n, D).float().to(device)


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """The n x l Gaussian kernel by one product, as a careful user would write it."""
    half_x, half_y = (z.square().sum(-1) / 2 for z in (x, y))
    scores: Tensor = x @ y.mT - half_x.unsqueeze(-1) - half_y.unsqueeze(-2)
    return (scores / math.sqrt(D)).exp()


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Gaussian attention with its matrix."""
    return kernel(q, k) @ v


def tied(op: Soft, q: Tensor, v: Tensor) -> Tensor:
    """The operator itself, keys equal to queries."""
    return op(q, q, v)


def dense_soft(op: Soft, q: Tensor, v: Tensor) -> Tensor:
    """SOFT by its formula, K(q, z) A^+ K(z, q) v, with both n x m factors."""
    z = op.landmarks(q, op.rank)
    out: Tensor = kernel(q, z) @ (op.pinv(kernel(z, z)) @ (kernel(z, q) @ v))
    return out


def shared_soft(op: Soft, q: Tensor, v: Tensor) -> Tensor:
    """The same for tied q and k alone: one n x m factor, kept and used twice."""
    z = op.landmarks(q, op.rank)
    factor = kernel(q, z)
    return factor @ (op.pinv(kernel(z, z)) @ (factor.mT @ v))


def gradient(op: Callable[[Tensor, Tensor], Tensor], q: Tensor, v: Tensor) -> Tensor:
    """The gradients of a fixed functional of op(q, v) in q and v, side by side."""
    q, v = q.detach().requires_grad_(), v.detach().requires_grad_()
    return torch.cat(torch.autograd.grad(op(q, v).square().mean(), (q, v)), dim=-1)


if __name__ == "__main__":
    main(__doc__, "attention", (exact, forms, soft, starting))
