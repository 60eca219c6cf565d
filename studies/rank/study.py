"""How the error of low-rank attention falls with the rank, on real attention inputs.

Each method stands against its own exact target: Nystromformer against softmax attention; Soft
against Gaussian attention, unnormalised and row-normalised, on inputs with tied queries and keys,
as its layers have them. Beside each target stand the uniform average and the truncated SVD.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from softlab import measures
from softlab.core import Dims, Operator
from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.inputs import Clustered, Input, Normal, Recorded, Smooth, Tied, named, recorded_names
from softlab.operators import (
    GaussianAttention,
    Nystromformer,
    Soft,
    Softmax,
    TruncatedSVD,
    Uniform,
)
from softlab.profiling import Numbers
from softlab.study import Study

RANKS = (4, 8, 16, 32, 64, 128, 256)
SEEDS = range(4)
REAL: list[Input] = [Recorded(name) for name in recorded_names()]
SYNTHETIC: list[Input] = [
    Normal(512, 32),
    Clustered(512, 32, clusters=32),
    Smooth(512, 32, length=32.0),
]
TARGETS: dict[Operator, str] = {
    Softmax(): "softmax",
    GaussianAttention(): "Gaussian",
    GaussianAttention(normalization="row"): "row-normalised Gaussian",
}


def operators(ranks: tuple[int, ...]) -> list[Operator]:
    """The exact operators, the controls of each, and the methods at each rank."""
    found: list[Operator] = []
    for target in TARGETS:
        found += [target, Uniform(target=target)]
    for rank in ranks:
        found += [TruncatedSVD(rank, target=target) for target in TARGETS]
        found += [Nystromformer(rank), Soft(rank), Soft(rank, normalization="row")]
    return found


def keep(input: Input, op: Operator) -> bool:
    """Gaussian targets on tied inputs, softmax on untied ones; no rank beyond the length."""
    tied = isinstance(input, Tied)
    return isinstance(op.target, GaussianAttention) == tied and getattr(op, "rank", 1) <= input.n


@cache  # a cost belongs to sizes, which inputs of several set-ups share
def paid(op: Any, dims: Dims, tied: bool, dtype: torch.dtype, device: torch.device) -> Numbers:
    """Work, time and memory of one call, of its sizes: on normal tokens, once a size."""
    tokens: Input = Normal(dims.n, dims.d)
    q, k, v = (Tied(tokens) if tied else tokens)(0, dtype=dtype, device=device)
    return measures.expense(op, q, k, v, budget=0.02)


def measure(
    setup: measures.Sample, input: Input, op: Operator, dtype: torch.dtype, device: torch.device
) -> Row:
    """Errors against the target, the controls' too, how the inversion ended, and the cost."""
    reference = setup.reference(op.target)
    source, real = named(input)
    row: Row = {
        "method": "exact" if op == op.target else type(op).__name__,
        "target": TARGETS[op.target],
        "source": source,
        "real": real,
        "n": len(setup.q),
        "certified_error": None,
    }
    if isinstance(op, TruncatedSVD):  # a control: one decomposition serves every rank, untimed
        return row | measures.best_of_rank(op.rank, reference)
    qkv = setup.q, setup.k, setup.v
    row |= measures.accuracy(op, *qkv, reference)
    row |= measures.certified_error(op, *qkv)
    row |= measures.inversion(op, setup.q, setup.k)
    same: Any = op  # equal ones are one for the cache
    return {**row, **paid(same, Dims.of(*qkv), isinstance(input, Tied), dtype, device)}


SHOWN = "for {page} attention. Medians and quartiles; dotted: the uniform average"
BOUND = "thin black: the truncated SVD"

AGAINST_RANK = Lines(
    x="op.rank",
    y="output_error",
    group="method",
    panel="source",
    page="target",
    xlabel="rank",
    ylabel="relative output error",
    references=("Uniform", "TruncatedSVD"),
    exact="exact",
    caption=f"Relative output error against rank, {SHOWN}; {BOUND}.",
)

INPUTS = [*REAL, *SYNTHETIC]

STUDY = Study(
    name="rank",
    title="Error of low-rank attention against the rank",
    question="How does the error of low-rank attention fall with the rank on the inputs of real "
    "models, compared with the mean of the values and with the best matrix of the rank? "
    "What does each point cost?",
    axes={"input": [*INPUTS, *map(Tied, INPUTS)], "seed": SEEDS, "op": operators(RANKS)},
    quick={
        "input": [case for real in REAL[:2] for case in (real, Tied(real))],
        "seed": [0, 1],
        "op": operators((8, 32, 128)),
    },
    measure=measure,
    setup=measures.sample,
    timed=("seconds", "seconds_q1", "seconds_q3", "repeats"),
    keep=keep,
    figures=(
        AGAINST_RANK,
        replace(
            AGAINST_RANK,
            y="spectral_error",
            ylabel="relative spectral error of the matrix",
            caption=f"Relative spectral error of the matrix against rank, {SHOWN}; {BOUND}.",
        ),
        replace(
            AGAINST_RANK,
            x="seconds",
            xlabel="seconds a call",
            by="op.rank",
            references=("Uniform",),
            caption=f"Relative output error against seconds a call, {SHOWN}; "
            "grey vertical: the exact operator. Seconds are of a call on normal tokens of the "
            "input's sizes.",
        ),
    ),
)
