"""Selectors of landmarks at equal numbers of them, and at equal work: does k-means help?

SOFT approximates Gaussian attention on tied tokens, at its own bandwidth and at twice that, where
low rank is more honest; Nystromformer softmax attention on tokens as they come. Cores are inverted
exactly, so that what differs is where the landmarks stand; that of Nystromformer, which can be
singular for all purposes, also by its six steps. Selectors on grids take part where tokens are the
patches of an image; the class token is left out there, for all.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch

from softlab import measures
from softlab.core import Dims, Operator
from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.inputs import (
    Clustered,
    Decaying,
    Input,
    Normal,
    Patches,
    Recorded,
    Sink,
    Smooth,
    Tied,
    named,
    recorded_names,
)
from softlab.landmarks import (
    FarthestPoint,
    GreedyResidual,
    GridConv,
    GridPool,
    KMeans,
    LeverageScores,
    RPCholeskyPivots,
    SegmentMeans,
    Selector,
    Strided,
    UniformRandom,
)
from softlab.operators import Nystromformer, Soft
from softlab.pinv import SVD
from softlab.profiling import ENOUGH, Numbers, in_turn
from softlab.study import Study

from .columns import ANSWER, KMEANS, LANDMARKS, ONE_STEP, SEGMENTS, UNIFORM, WORK

RANKS = (16, 64, 128)
BUDGETS = (1 / 8, 1 / 4, 1 / 2)
SEEDS = range(2)
SELECTORS: dict[str, Callable[[int, float | None], Selector]] = {
    SEGMENTS: lambda _, __: SegmentMeans(),
    "strided": lambda _, __: Strided(),
    UNIFORM: lambda seed, _: UniformRandom(seed),
    KMEANS: lambda seed, _: KMeans(seed=seed),
    ONE_STEP: lambda seed, _: KMeans(1, seed),
    "farthest point": lambda _, __: FarthestPoint(),
    "RPCholesky": lambda seed, b: RPCholeskyPivots(bandwidth=b, seed=seed),
    "RPCholesky, blocks of 8": lambda seed, b: RPCholeskyPivots(8, b, seed),
    "greedy residual": lambda _, b: GreedyResidual(b),
    "leverage scores": lambda seed, b: LeverageScores(bandwidth=b, seed=seed),
    "grid means": lambda _, __: GridPool(),
    "grid convolution": lambda seed, _: GridConv(seed=seed),
}
"""Of a seed and the bandwidth of the kernel, None for SOFT's own."""
ON_GRIDS = ("grid means", "grid convolution")
STRETCHES = {"Gaussian": 1.0, "wide Gaussian": 2.0}
"""Of SOFT's own bandwidth."""
SETTINGS = ("softmax", "softmax, exact inverse", *STRETCHES)
INPUTS: list[Input] = [
    *(Patches(Recorded(name)) if "vit" in name else Recorded(name) for name in recorded_names()),
    Normal(512, 32),
    Clustered(512, 32, clusters=32),
    Decaying(512, 32, rate=0.8),
    Sink(512, 32),
    Smooth(512, 32, length=32.0),
]


def keep(input: Input, setting: str, allowance: float, selector: str) -> bool:
    """Softmax on inputs as they are, the Gaussian on tied ones; grids where there is an image.

    The exact inverse of Nystromformer's core, a control, at equal numbers alone.
    """
    tied = isinstance(input, Tied)
    image = isinstance(input.input if isinstance(input, Tied) else input, Patches)
    if setting == "softmax, exact inverse" and allowance < 1:
        return False
    return tied == (setting in STRETCHES) and (image or selector not in ON_GRIDS)


def operator(setting: str, rank: int, selector: str, seed: int, d: int) -> Soft | Nystromformer:
    """The operator of the setting with these landmarks."""
    if setting in STRETCHES:
        bandwidth = STRETCHES[setting] * d**0.25
        return Soft(rank, bandwidth, SELECTORS[selector](seed, bandwidth), SVD())
    chosen = SELECTORS[selector](seed, None)
    if setting == "softmax":
        return Nystromformer(rank, landmarks=chosen)
    return Nystromformer(rank, SVD(), chosen)


def work(op: Operator, dims: Dims) -> int:
    """Counted arithmetic of one call, factorisations included."""
    return op.cost(dims).work


def rank_of(setting: str, allowance: float, selector: str, dims: Dims) -> int:
    """The rank that is given, or the greatest whose work is within the share of exact attention's.

    0 where no rank is.
    """

    def spent(rank: int) -> int:
        return work(operator(setting, rank, selector, 0, dims.d), dims)

    if allowance >= 1:
        return int(allowance)
    most = allowance * work(operator(setting, 1, selector, 0, dims.d).target, dims)
    return bisect.bisect_right(range(1, dims.l + 1), most, key=spent)


@cache  # a time belongs to sizes, which inputs of several set-ups share
def timed(
    setting: str, rank: int, selector: str, dims: Dims, dtype: torch.dtype, device: torch.device
) -> Numbers:
    """Time of a call over that of its target, of sizes alone: on normal tokens, once a size."""
    q, k, v = Normal(dims.n, dims.d)(0, dtype=dtype, device=device)
    op = operator(setting, rank, selector, 0, dims.d)
    mine, exact = (lambda: op(q, k, v)), (lambda: op.target(q, k, v))
    return in_turn(mine, exact, device, repeats=8, budget=ENOUGH)


def measure(
    setup: measures.Sample,
    input: Input,
    seed: int,
    setting: str,
    allowance: float,
    selector: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Row:
    """Errors with these landmarks beside the best of the rank, and costs over the exact ones."""
    q, k, v = setup.q, setup.k, setup.v
    dims = Dims.of(q, k, v)
    source, real = named(input)
    rank = rank_of(setting, allowance, selector, dims)
    row: Row = {
        "source": source,
        "real": real,
        "equal": LANDMARKS if allowance >= 1 else WORK,
        "n": dims.n,
        "rank": rank,
        "fits": rank > 0,
        **dict.fromkeys(ANSWER),
    }
    if rank == 0:
        return row
    op = operator(setting, rank, selector, seed, dims.d)
    reference = setup.reference(op.target)
    # One choice of landmarks for both, the output and the matrix.
    columns = torch.cat((v, torch.eye(dims.l, dtype=v.dtype, device=v.device)), -1)
    out, matrix = op(q, k, columns).double().split((dims.e, dims.l), -1)
    exact, matrix = reference.matrix.cpu(), matrix.cpu()
    best = reference.least(rank)
    row |= {
        "op": repr(op),
        "share": work(op, dims) / work(op.target, dims),
        **timed(setting.removeprefix("wide "), rank, selector, dims, dtype, device),
        "uniform_error": reference.uniform_error,
        "output_error": measures.relative(out - reference.output, reference.output),
        "matrix_error": measures.relative(matrix - exact, exact),
        "best_error": float(best.frobenius),
    }
    if isinstance(op, Soft):
        row |= {
            "trace_error": 1 - float(matrix.trace() / exact.trace()),
            "best_trace_error": float(best.trace),
        }
    return row


SHOWN = [name for name in SELECTORS if name not in {ONE_STEP, "grid convolution"}]
ERROR = Lines(
    x="rank",
    y="matrix_error",
    group="selector",
    panel="source",
    page="setting",
    where={
        "equal": LANDMARKS,
        "setting": [name for name in SETTINGS if "exact" not in name],
        "selector": [name for name in SHOWN if "blocks" not in name],
    },
    guides={"best_error": "best of the rank"},
    xlabel="landmarks",
    ylabel="relative error of the matrix",
    name="error",
    caption="Relative Frobenius error of the matrix against the number of landmarks, {page}. "
    "Medians and quartiles over samples and seeds. Grey: the best matrix of the rank.",
)
PROFILE = Lines(
    x="tau",
    y="share_within",
    group="selector",
    panel="setting",
    page="equal",
    by="tau",
    rows="profile",
    where={"selector": [name for name in SELECTORS if name not in ON_GRIDS]},
    xlabel=r"ratio $\tau$ to the least error of all",
    ylabel="share within",
    yscale="linear",
    name="profile",
    caption="Performance profiles at equal {page}: the share of inputs and allowances on which the "
    "output errs at most tau times as much as with the best selector there. Medians and quartiles "
    "over the seeds. Selectors on grids set marks too, on images, and are not drawn.",
)

STUDY = Study(
    name="landmarks",
    title="Landmarks: how to choose them",
    question="Which landmarks give the least error, at an equal number of them and at equal "
    "work, which counts their choice? How far are they from the best matrix of the "
    "rank, and does k-means help?",
    axes={
        "input": [*INPUTS, *map(Tied, INPUTS)],
        "seed": SEEDS,
        "setting": SETTINGS,
        "allowance": [*RANKS, *BUDGETS],
        "selector": list(SELECTORS),
    },
    quick={
        "input": [INPUTS[1], INPUTS[-1], Tied(INPUTS[1]), Tied(INPUTS[-4])],
        "seed": [0],
        "setting": ["softmax", "Gaussian", "wide Gaussian"],
        "allowance": [16, 64, 1 / 4],
    },
    measure=measure,
    setup=measures.sample,
    timed=("time", "time_q1", "time_q3"),
    keep=keep,
    figures=(
        PROFILE,
        ERROR,
        replace(
            ERROR,
            x="share",
            y="output_error",
            by="allowance",
            where={**ERROR.where, "equal": WORK},
            guides={"uniform_error": "uniform average"},
            xlabel="work over that of exact attention, selection included",
            ylabel="relative output error",
            name="work",
            caption="Relative output error against counted work, {page}. Medians and quartiles. "
            "Grey: the uniform average.",
        ),
    ),
)
