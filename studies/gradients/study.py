"""What the formulas for the gradient of an iterative inverse are worth as its residual falls.

The implicit, the Golub-Pereyra and the unrolled gradient, beside that of the pseudo-inverse and
that of the computed map. The axis ``precision`` overrides the run's dtype: float64 shows orders,
float32 stands beside it at SOFT's 20 steps. What training makes of it is in ``training.py``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softlab import spectra
from softlab.core import Stream
from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.gradients import RULES, bias
from softlab.inputs import Recorded, Saved, Tied, recorded_names
from softlab.matrices import Core, Geometric, LowRank, Matrix, NearDuplicates
from softlab.operators import Soft
from softlab.pinv import (
    NewtonRaphson,
    Status,
)
from softlab.study import Study

from .columns import (
    DUPLICATES as NEAR,
)
from .columns import (
    GOLUB_PEREYRA,
    IMPLICIT,
    LOW_RANK,
    RANDOM,
    RECORDED,
    SOFTS,
    UNROLLED,
)

F64 = torch.float64
RANK = 49
SPREADS = (0.5, 0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05, 0.02)
HEADS: list[Matrix] = [Core(Soft(RANK), Tied(Recorded(name))) for name in recorded_names()]
DUPLICATES: list[Matrix] = [NearDuplicates(RANK, spread) for spread in SPREADS]
STEPS = (8, 12, 14, 16, 18, SOFTS, 22, 26, 40)
REGRESSED = (12, 16, SOFTS, 26, 40)
CONSTRUCTED: list[Matrix] = [
    *(Geometric(48, condition) for condition in (10.0, 100.0, 1e3, 1e4)),
    LowRank(48, rank=24, condition=30.0),
]

MATRICES: list[Any] = [*CONSTRUCTED, *DUPLICATES, *HEADS]


def keep(
    matrix: Matrix,
    ridge: float,
    loss: str,
    precision: str,
    seed: int,
    steps: int,
) -> bool:
    """Ridges on cores alone, losses of attention on heads alone, float32 at SOFT's 20 steps.

    Every sample of a head stands at SOFT's steps, two of each elsewhere.
    """
    head = isinstance(matrix, Core)
    if seed >= (3 if not head else 4 if steps == SOFTS else 2):
        return False
    if loss != RANDOM and not (head and steps in REGRESSED):
        return False
    if ridge and not (head or (isinstance(matrix, NearDuplicates) and steps == SOFTS)):
        return False
    return precision == "float64" or steps == SOFTS


def named(matrix: Matrix) -> tuple[str, str]:
    """What kind of matrix it is, and which."""
    match matrix:
        case Core(input=Tied(input=(Recorded() | Saved()) as head)):
            return RECORDED, head.name
        case NearDuplicates():
            return NEAR, f"near duplicates, spread {matrix.spread:g}"
        case LowRank():
            return LOW_RANK, f"rank {matrix.rank} of {matrix.m}, condition {matrix.condition:g}"
        case Geometric():
            return "geometric", f"geometric, condition {matrix.condition:g}"
    return "other", repr(matrix)


def drawn(matrix: Any, loss: str, seed: int) -> tuple[Tensor, Tensor]:
    """A, exactly symmetric, and G = dL/dX, in float64: random, or of the head's own regression."""
    a = matrix(seed)
    if loss == RANDOM:
        return (a + a.mT) / 2, Stream(seed, "gradients, loss").normal(*a.shape)
    q, k, v = matrix.input(seed, dtype=F64)
    z = matrix.op.landmarks(k, matrix.op.rank)
    kernel = matrix.op.kernel(q.shape[-1])
    # L = |out - exact|^2 / 2 for out = K(q, z) X K(z, k) v.
    error = matrix.op(q, k, v) - matrix.op.target(q, k, v)
    return (a + a.mT) / 2, kernel.apply(z, q, error) @ kernel.apply(z, k, v).mT


def setting(a: Tensor, steps: int) -> Row:
    """What all rules share: the condition number, and how the iteration itself ended."""
    ended = NewtonRaphson(steps).solve(a)
    return {
        "condition": float(spectra.condition_on_range(a.double())),
        "solve_status": Status(int(ended.status)).name,
        "solve_residual": float(ended.residual),
    }


def shifted(a: Tensor, ridge: float) -> Tensor:
    """A + ridge I."""
    return a + ridge * torch.eye(len(a), dtype=a.dtype, device=a.device)


def measure(
    setup: tuple[Tensor, Tensor],
    matrix: Any,
    ridge: float,
    precision: str,
    steps: int,
    rule: str,
    device: torch.device,
) -> Row:
    """Bias of the symmetrised gradient against both references, with the residual."""
    own: torch.dtype = getattr(torch, precision)
    kind, source = named(matrix)
    a, g = (x.to(device, own) for x in setup)
    # The shift is added here, as Ridge would: its gradient is that of the shifted matrix.
    found = bias(RULES[rule](NewtonRaphson(steps)), shifted(a, ridge), g, symmetric=True)
    r = float(found.residual)
    row: Row = {"kind": kind, "source": source, "residual": r, "one_eigenvalue": _single(r)}
    for name, departed in (("inverse", found.inverse), ("map", found.map)):
        row |= {
            f"{name}_error": float(departed.error),
            f"{name}_cosine": float(departed.cosine),
            f"{name}_angle": float(departed.angle),
        }
    row |= {"order_one": 2 * r, "ridged": f"ridge {ridge:g}" if ridge else "no ridge"}
    return row | setting(shifted(setup[0], ridge).to(own), steps)


def _single(r: float) -> float | None:
    """The implicit rule's error on the computed map, for one eigenvalue of residual r.

    With f = (1 - r) / l and r = exp(-c l^2), l^2 f' = 2 r log(1/r) - (1 - r), where the rule has
    -(1 - r)^2. None near r = 0.285, where f' = 0, and beyond.
    """
    if not 0 < r < 0.2:
        return None
    slope = 2 * r * math.log(1 / r) - (1 - r)
    return abs(-((1 - r) ** 2) - slope) / abs(slope)


SHOWN = [
    named(matrix)[1] for matrix in (CONSTRUCTED[1], CONSTRUCTED[2], CONSTRUCTED[4], DUPLICATES[5])
] + ["minilm.layer5.head2", "vit.layer11.head4"]
PLAIN = {"precision": "float64", "loss": RANDOM}

AGAINST_RESIDUAL = Lines(
    x="residual",
    y="map_error",
    group="rule",
    panel="source",
    by="steps",
    where={**PLAIN, "ridge": 0.0, "source": SHOWN, "rule": [IMPLICIT, GOLUB_PEREYRA]},
    xlabel="residual $|P - A X|_2$",
    ylabel="error against the computed map",
    guides={"order_one": "$2 r$", "one_eigenvalue": "one eigenvalue"},
    caption="Relative error of the gradient against that of the computed map, by the residual that "
    "8 to 40 Newton steps leave (each point the median of the seeds, with quartiles). Grey: "
    "twice the residual r, and the implicit rule on one eigenvalue of residual r.",
    name="map-residual",
)

STUDY = Study(
    name="gradients",
    title="The gradient of an iterative inverse",
    question="How wrong are the formulas that stand for the gradient of an iterative inverse, as a "
    "function of the residual that the iteration leaves, and do real attention heads come to "
    "where they are wrong?",
    axes={
        "matrix": MATRICES,
        "ridge": (0.0, 0.01),
        "loss": (RANDOM, "regression"),
        "precision": ("float64", "float32"),
        "seed": range(4),
        "steps": STEPS,
        "rule": (IMPLICIT, GOLUB_PEREYRA, UNROLLED),
    },
    quick={
        "matrix": [DUPLICATES[0], DUPLICATES[5], HEADS[2]],
        "seed": [0],
        "steps": (12, SOFTS, 26),
    },
    measure=measure,
    setup=drawn,
    keep=keep,
    figures=(
        AGAINST_RESIDUAL,
        replace(
            AGAINST_RESIDUAL,
            y="inverse_error",
            where={**PLAIN, "ridge": 0.0, "source": SHOWN},
            ylabel="error against the pseudo-inverse",
            guides={"order_one": "$2 r$"},
            caption="The same against the gradient of the pseudo-inverse: the rules are of first "
            "order in the residual, and nearer to it than the unrolled loop.",
            name="inverse-residual",
        ),
        Lines(
            x="matrix.spread",
            y="map_error",
            group="rule",
            panel="ridged",
            where={**PLAIN, "kind": NEAR, "steps": SOFTS, "rule": [IMPLICIT, GOLUB_PEREYRA]},
            xlabel="spread of 49 landmarks, in bandwidths",
            ylabel="error against the computed map",
            caption="Error of the rules after SOFT's 20 steps against the spread of the landmarks; "
            "medians and quartiles. One is an error as large as the gradient itself.",
            name="map-spread",
        ),
        Lines(
            x="steps",
            y="map_error",
            group="source",
            panel="ridged",
            page="loss",
            where={"kind": RECORDED, "precision": "float64", "rule": IMPLICIT},
            xlabel="Newton steps",
            ylabel="error against the computed map",
            xscale="linear",
            caption="Error of the implicit rule on the cores of recorded heads by Newton steps, "
            "{page} G; SOFT takes 20.",
            name="heads-steps",
        ),
    ),
)
