"""How far above the error a certificate is: by family, head, share of the work, and bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from softlab.core import Dims, Operator
from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.inputs import Input, Recorded, Tied, named, recorded_names
from softlab.landmarks import Strided
from softlab.operators import (
    BigBird,
    Local,
    Pages,
    Quantized,
    RPCholesky,
    Skyformer,
    Soft,
    TopK,
)
from softlab.pinv import Cholesky
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
    return share == 0.25 or (method not in EXACT_COST[1:] and stretch == 1.0)


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
    error = (out.double() - op.target(q.double(), k.double(), v.double())).norm(dim=-1)
    ratio = bound / error.clamp_min(torch.finfo(torch.double).tiny)
    times = [
        once(lambda: op.bound(q, k, v, out=out), device)[1]
        / max(1e-9, once(lambda: op(q, k, v), device)[1])
        for _ in range(REPEATS)
    ]
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
        "time_ratio": median(times),
    }


STUDY = Study(
    name="certificates",
    title="Certificates: how far above the error they are",
    question="How many times the error is a bound that needs no exact output, by family, head, "
    "share of the exact work and bandwidth, where does it say nothing, and what does it cost?",
    axes={
        "input": [*HEADS, *(Tied(head) for head in HEADS)],
        "seed": [0],
        "method": list(METHODS),
        "share": SHARES,
        "stretch": STRETCHES,
    },
    quick={"input": [HEADS[0], Tied(HEADS[0])], "share": (0.25,)},
    measure=measure,
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
    ),
)
