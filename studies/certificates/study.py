"""How far above the error a certificate is: by family, head, share of the work, and bandwidth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from softlab.core import Dims, Operator, as_matrix
from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.inputs import Input, Recorded, Tied, named, recorded_names
from softlab.landmarks import Strided
from softlab.operators import (
    BigBird,
    Local,
    Monarch,
    Pages,
    Quantized,
    RPCholesky,
    Skyformer,
    Soft,
    TopK,
)
from softlab.pinv import SVD, Cholesky
from softlab.profiling import once
from softlab.study import Study

from .columns import EXACT_COST, PLAIN, TIED

HEADS: list[Input] = [Recorded(name) for name in recorded_names()]
SHARES = (0.125, 0.25, 0.5)
STRETCHES = (1.0, 3.0, 10.0)
REPEATS = 3

METHODS: dict[str, Callable[[int, float, int], Operator]] = {
    "TopK": lambda m, _, l: TopK(k=max(1, m * l // 64)),
    "Quantized int8": lambda *_: Quantized("int8", smoothing=True),
    "Quantized bfloat16": lambda *_: Quantized("bfloat16"),
    "Local": lambda m, *_: Local(window=m),
    "BigBird": lambda m, *_: BigBird(m, m, m, block=32),
    "Pages of 4": lambda m, *_: Pages(4, m),
    "Pages of 16": lambda m, *_: Pages(16, m),
    "Monarch": lambda m, *_: Monarch(m),
    "Skyformer": lambda m, s, l: Skyformer(m, bandwidth=s),  # noqa: ARG005
    "RPCholesky": lambda m, *_: RPCholesky(m),
    "Soft": lambda m, s, l: Soft(m, bandwidth=s),  # noqa: ARG005
    "Soft, tokens and Cholesky": lambda m, s, l: Soft(  # noqa: ARG005
        m, bandwidth=s, landmarks=Strided(), pinv=Cholesky()
    ),
    "Soft, rows": lambda m, s, l: Soft(  # noqa: ARG005
        m, bandwidth=s, landmarks=Strided(), pinv=Cholesky(), normalization="row"
    ),
}
"""By the setting of the knob, the bandwidth and the number of keys."""


def affordable(method: str, bandwidth: float, dims: Dims, share: float) -> Operator:
    """The method with the largest setting up to half of the keys within that share of the work."""
    make = METHODS[method]
    if method == "TopK":
        return make(int(64 * share), bandwidth, dims.l)
    if method == "Monarch":  # its work is least near the root, and no other block has less
        return make(round(dims.l**0.5), bandwidth, dims.l)
    low, high = 1, max(2, dims.l // 2)
    while high - low > 1:
        m = (low + high) // 2
        op = make(m, bandwidth, dims.l)
        within = op.cost(dims).work <= share * op.target.cost(dims).work
        low, high = (m, high) if within else (low, m)
    return make(low, bandwidth, dims.l)


def keep(input: Input, method: str, share: float, stretch: float) -> bool:
    """``Soft`` on tied heads, at all bandwidths; the others untied, at one; one share of some."""
    soft = method.startswith("Soft")
    if isinstance(input, Tied) != soft or (stretch != 1.0 and not soft):
        return False
    fixed = (*EXACT_COST[1:], "Monarch")
    return share == 0.25 or (method not in fixed and stretch == 1.0)


def causes(op: Any, q: Tensor, k: Tensor, v: Tensor, error: Tensor) -> Row:
    """What a bound does not know, of float64 tensors, and how far it would be if it did.

    ``left_out``: the softmax mass of the keys that the median row leaves out; ``known_ratio``: that
    mass times the diameter of the values over the error, of the median row. ``unknown``: of the
    kernel's diagonal the mean share that the landmarks leave, with an exact inverse;
    ``condition``: of the core.
    """
    found: Row = dict.fromkeys(("left_out", "known_ratio", "unknown", "condition"))
    if op.traits.restricted:
        left = torch.where(as_matrix(op, q, k) > 0, 0, as_matrix(op.target, q, k)).sum(-1)
        known = left * torch.cdist(v, v).max() / error.clamp_min(torch.finfo(error.dtype).tiny)
        found |= {"left_out": float(left.median()), "known_ratio": float(known.median())}
    if isinstance(op, Soft):
        bare = dataclasses.replace(op, normalization="none", pinv=SVD())
        found["unknown"] = 1 - float(as_matrix(bare, k, k).diagonal().mean())
    if hasattr(op, "core"):
        found["condition"] = float(torch.linalg.cond(op.core(q, k)))
    return found


def measure(
    input: Input,
    seed: int,
    method: str,
    share: float,
    stretch: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Row:
    """The bound of each row over its error; the whole bound beside the output; the bound's time."""
    q, k, v = input(seed, dtype=dtype, device=device)
    dims = Dims.of(q, k, v)
    op: Any = affordable(method, stretch * dims.d**0.25, dims, share)
    out = op(q, k, v)
    bound = op.bound(q, k, v, out=out).double()
    x, y, z = q.double(), k.double(), v.double()
    error = (out.double() - op.target(x, y, z)).norm(dim=-1)
    ratio = bound / error.clamp_min(torch.finfo(torch.double).tiny)
    calls = (partial(op.bound, out=out), op, op.target)
    times = [[once(partial(f, q, k, v), device)[1] for f in calls] for _ in range(REPEATS)]
    return {
        "setting": TIED if isinstance(input, Tied) else PLAIN,
        "source": named(input)[0],
        "n": len(q),
        "operator": repr(op),
        "work": op.cost(dims).work / op.target.cost(dims).work,
        "ratio": float(ratio.median()),
        "ratio_low": float(ratio.quantile(0.1)),
        "ratio_high": float(ratio.quantile(0.9)),
        "below": int((bound < error).sum()),
        "bound_over_output": float(bound.norm() / out.double().norm()),
        "error_over_output": float(error.norm() / out.double().norm()),
        "time_ratio": median(of / max(1e-9, call) for of, call, _ in times),
        "time_over_exact": median(of / max(1e-9, exact) for of, _, exact in times),
        **causes(op, x, y, z, error),
    }


STUDY = Study(
    name="certificates",
    title="Certified error bounds: how loose they are",
    question="Some bounds of the error need no exact output. How many times the error are they, "
    "by family, head, share of the exact work and bandwidth? When are they useless, and "
    "what do they cost?",
    axes={
        "input": [*HEADS, *(Tied(head) for head in HEADS)],
        "seed": [0],
        "method": list(METHODS),
        "share": SHARES,
        "stretch": STRETCHES,
    },
    quick={"input": [HEADS[0], Tied(HEADS[0])], "share": (0.25,)},
    measure=measure,
    timed=("time_ratio", "time_over_exact"),
    keep=keep,
    figures=(
        Lines(
            x="share",
            y="ratio",
            group="method",
            panel="source",
            page="setting",
            where={"stretch": 1.0},
            xlabel="share of the exact work",
            ylabel="bound over error, median row",
            caption="The bound of the median row over its error, {page}; 1 is as sharp as can be.",
            name="ratio",
        ),
        Lines(
            x="stretch",
            y="bound_over_output",
            group="method",
            panel="source",
            where={"share": 0.25, "setting": TIED},
            xlabel="bandwidth over SOFT's own",
            ylabel="bound over output",
            caption="The whole bound over the output, by the bandwidth of the Gaussian, at a "
            "quarter of the exact work; at 1 and above it says nothing.",
            name="bandwidth",
        ),
    ),
)
