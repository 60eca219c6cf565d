"""Why Nystrom-type attention errs: landmarks, normaliser, the solve of the core, precision.

Soft stands against Gaussian attention on tied queries and keys, as its layers have them, Skyformer
against the same with queries and keys as they come, Nystromformer against softmax attention.
``precision`` is an axis of the study, so a run-level dtype changes nothing.
"""

from __future__ import annotations

import torch

from softlab import measures
from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.inputs import Clustered, Input, Normal, Recorded, Smooth, Tied, named, recorded_names
from softlab.landmarks import UniformRandom
from softlab.operators import Nystromformer, Skyformer, Soft
from softlab.pinv import SVD, NewtonRaphson, Nystrom, NystromformerCubic, Ridge
from softlab.study import Study

from .columns import CONVERGED, PUBLISHED, SHIFTED, SUBJECT, soft

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RANKS = (16, 64)
SEEDS = (0, 1)
STEPS = (1, 2, 3, 4, 6, 9, 12, 18, 24)
SMOOTH = Smooth(1024, 64, length=32.0)
REAL: list[Input] = [Recorded(name) for name in recorded_names()]
SYNTHETIC: list[Input] = [Normal(1024, 64), SMOOTH, Clustered(512, 32, clusters=32)]
INPUTS = [*REAL, *SYNTHETIC]


def operators(ranks: tuple[int, ...]) -> dict[Nystrom, tuple[str, str]]:
    """The operators, each with the name of its method and of its solve."""
    found: dict[Nystrom, tuple[str, str]] = {}
    for rank in ranks:
        for form in ("none", "row", "symmetric", "published"):
            found[Soft(rank, normalization=form)] = (soft(form), PUBLISHED)
        shifted = Ridge(NewtonRaphson(20), 0.01)
        found[Soft(rank, pinv=shifted, normalization="published")] = (soft("published"), SHIFTED)
        found[Nystromformer(rank)] = (SUBJECT, PUBLISHED)
        found[Nystromformer(rank, pinv=SVD())] = (SUBJECT, CONVERGED)
        found[Nystromformer(rank, pinv=Ridge(SVD(), 0.01))] = (SUBJECT, SHIFTED)
        for seed in SEEDS:  # other landmarks with other values: the spread is that of both
            found[Skyformer(rank, landmarks=UniformRandom(seed))] = ("Skyformer", PUBLISHED)
    for steps in STEPS:
        name = f"{steps} steps"
        found.setdefault(Nystromformer(ranks[-1], pinv=NystromformerCubic(steps)), (SUBJECT, name))
    return found


METHODS = operators(RANKS)


def keep(input: Input, seed: int, precision: str, op: Nystrom) -> bool:
    """Soft on tied inputs, the others on untied ones; other numbers of steps in float32 alone.

    Landmarks that are drawn are drawn once for each seed of the values.
    """
    if getattr(getattr(op, "landmarks", None), "seed", seed) != seed:
        return False
    swept = METHODS[op][1].endswith("steps")
    return isinstance(input, Tied) == isinstance(op, Soft) and (precision == "float32" or not swept)


def drawn(input: Input, seed: int, precision: str, device: torch.device) -> measures.Sample:
    """The input, rounded, with the exact answers that all operators are held against."""
    return measures.sample(input, seed, dtype=PRECISIONS[precision], device=device)


def measure(setup: measures.Sample, input: Input, op: Nystrom) -> Row:
    """The budget, the trivial answer's error, and how the inversion ended."""
    source, real = named(input)
    method, solver = METHODS[op]
    return {
        "method": method,
        "solver": solver,
        "source": source,
        "real": real,
        "steps": getattr(op.pinv, "steps", None),
        "uniform_error": setup.reference(op.target).uniform_error,
        **measures.error_budget(op, setup.q, setup.k, setup.v),
        **measures.inversion(op, setup.q, setup.k),
    }


AGAINST_STEPS = Lines(
    x="steps",
    y="size",
    group="part",
    panel="source",
    rows="against_steps",
    xlabel="steps of Nystromformer's inverse",
    ylabel="relative size",
    references=("mean of v",),
    name="steps",
    caption=f"Nystromformer with {RANKS[-1]} landmarks: the error, and the sizes of its parts, "
    "against the steps that invert the core. The published number is 6. Parts below 0.01 are left "
    "out. Dotted: the error of the mean of v.",
)

STUDY = Study(
    name="budget",
    title="Error budget of Nystrom-type attention",
    question="How much of the error of SOFT, Nystromformer and Skyformer comes from the "
    "landmarks, from the normaliser, from the inexact inverse of the core (the kernel "
    "of the landmarks), and from the precision? Does an inverse that has converged "
    "reduce it?",
    axes={
        "input": [*INPUTS, *map(Tied, INPUTS)],
        "seed": SEEDS,
        "precision": tuple(PRECISIONS),
        "op": list(METHODS),
    },
    quick={
        "input": [case for source in (REAL[2], SMOOTH) for case in (source, Tied(source))],
        "seed": (0,),
    },
    measure=measure,
    setup=drawn,
    keep=keep,
    figures=(AGAINST_STEPS,),
)
