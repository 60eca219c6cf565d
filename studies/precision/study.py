"""How accurate each iteration gets in each precision, and what becomes of it with more steps.

What is inverted is the rounded matrix, ``matrix(seed).to(dtype)``. Iterates run in native products
of that dtype; their errors are taken in float64 against the rounded matrix's own pseudo-inverse.
``precision`` is an axis of the study, so a run-level dtype changes nothing. tfloat32 is float32 on
a CUDA device that may round factors; such a case on a CPU fails and says so.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.inputs import Recorded, Tied, named, recorded_names
from softlab.matrices import Clusters, Core, Geometric, Matrix, NearDuplicates, Spiked
from softlab.operators import Nystromformer, Soft
from softlab.pinv import (
    Chebyshev,
    Hyperpower,
    Iteration,
    Minimax,
    NewtonRaphson,
    NystromformerCubic,
    Polished,
    SketchedFit,
    Status,
)
from softlab.pinv.stopping import judge
from softlab.profiling import accumulation
from softlab.study import Study

from .columns import LAW, SOUND

PRECISIONS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "tfloat32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
HALF = ("bfloat16", "float16")
# Enough steps for a condition number of 1e8, and at 1e4 as many again in which to lose it.
SOLVERS: list[Iteration] = [
    NewtonRaphson(64),
    Hyperpower(3, 42),
    NystromformerCubic(42),
    Chebyshev(30),
    Minimax(1e4, 30),
    SketchedFit(42),
]
KAPPAS = (1.0, 3.0, 10.0, 30.0, 1e2, 1e3, 1e4, 1e6, 1e8)
MATRICES: list[Matrix] = [
    *(Geometric(64, kappa, symmetric=False) for kappa in KAPPAS),
    *(Clusters(64, kappa, symmetric=False) for kappa in KAPPAS[4::2]),
    *(Spiked(64, kappa, symmetric=False) for kappa in KAPPAS[4::2]),
    *(NearDuplicates(spread=spread) for spread in (0.05, 0.1, 0.2, 0.4)),
    *(Core(Soft(49), Tied(Recorded(name))) for name in recorded_names()),
    *(Core(Nystromformer(49), Recorded(name)) for name in recorded_names()),
]
CONVERGED, WORSE = 0.1, 10.0
"""An error below the first counts as an inverse, one that grew by the second as lost again."""


def keep(matrix: Matrix, seed: int, precision: str) -> bool:
    """tfloat32 where there is CUDA; condition numbers beyond 1e4 in float64 alone.

    Of the matrices that only accompany the log-spaced ones and the cores, one seed.
    """
    there = precision != "tfloat32" or torch.cuda.is_available()
    there = there and (seed == 0 or isinstance(matrix, (Geometric, Core)))
    return there and (precision == "float64" or getattr(matrix, "condition", 1) <= 1e4)


class Problem(NamedTuple):
    """The rounded matrix, its float64 pseudo-inverse, and its condition number on the range.

    ``sums``: what products of its precision are summed in.
    """

    a: Tensor
    inverse: Tensor
    kappa: float
    sums: str


def problem(matrix: Matrix, seed: int, precision: str, device: torch.device) -> Problem:
    """What every solver meets at this point of the grid."""
    a = matrix(seed, dtype=PRECISIONS[precision])
    u, s, vh = torch.linalg.svd(a.double())
    kept = s > len(s) * torch.finfo(s.dtype).eps * s[0]
    inverse: Tensor = (vh[kept].mT / s[kept]) @ u[:, kept].mT
    if bool(kept.all()):
        # The SVD's own error is that of float64 iterates: refine it in longer numbers, if any.
        exact, x = (y.numpy().astype(np.longdouble) for y in (a.double(), inverse))
        inverse = torch.from_numpy((x + x @ (np.eye(len(s)) - exact @ x)).astype(np.float64))
    with rounding_factors(precision == "tfloat32"):
        sums = accumulation(PRECISIONS[precision], device)
    return Problem(a.to(device), inverse.to(device), float(s[0] / s[kept][-1]), sums)


@contextlib.contextmanager
def rounding_factors(allowed: bool) -> Iterator[None]:
    """Let CUDA round the factors of float32 products to tfloat32, or forbid it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def narrow(a: Tensor, b: Tensor) -> Tensor:
    """A B summed in the dtype itself, term by term: what no device here does in half precision."""
    total = torch.zeros_like(a)
    for k in range(a.shape[-1]):
        total = torch.addcmul(total, a[:, k, None], b[k])
    return total


def narrow_newton(a: Tensor, x: Tensor, steps: int) -> Iterator[Tensor]:
    """Newton's iterates in such products."""
    yield x
    for _ in range(steps):
        x = 2 * x - narrow(x, narrow(a, x))
        yield x


def measure(
    setup: Problem, matrix: Matrix, precision: str, solver: Iteration, device: torch.device
) -> Row:
    """The least error of the run, its last, those of the wrappers, and what ``solve`` says."""
    if precision == "tfloat32" and device.type != "cuda":
        msg = "tfloat32 products exist on CUDA devices alone; run with --device cuda."
        raise ValueError(msg)
    a, inverse, kappa, sums = setup
    eps = 2**-10 if precision == "tfloat32" else torch.finfo(a.dtype).eps

    def errors(x: Tensor) -> Tensor:
        missed = torch.linalg.matrix_norm(x.double() - inverse)
        relative: Tensor = missed / torch.linalg.matrix_norm(inverse)
        return relative.nan_to_num(math.inf, math.inf)

    with rounding_factors(precision == "tfloat32"), torch.no_grad():
        xs = torch.stack(list(solver.iterates(a)))
        purified = xs[-1] @ (a @ xs[-1])
        best = judge(lambda _: iter(xs), a, solver.traits).x
        solved = solver.solve(a)
        polished = None
        if precision in {"float32", *HALF}:
            polished = number(errors(Polished(solver, precision).solve(a.double()).x))
        control = None
        if precision in HALF and (type(matrix), type(solver)) == (Geometric, NewtonRaphson):
            control = number(errors(torch.stack(list(narrow_newton(a, xs[0], 64)))).min())
    error = errors(xs)
    missed = (a.double() @ (inverse - xs.double())).nan_to_num(math.inf, math.inf, math.inf)
    sizes = torch.linalg.matrix_norm(missed)
    floor, final = float(error.min()), float(error[-1])
    return {
        **names(matrix),
        "method": type(solver).__name__,
        "kappa": kappa,
        "eps": eps,
        "eps_kappa": eps * kappa,
        "accumulates_in": sums,
        "floor": floor,
        "c": floor / (eps * kappa),
        "floor_in_eps": floor / eps,
        "final_in_eps": None if math.isinf(final) else final / eps,
        "floor_step": int(error.argmin()),
        "floor_residual": float(torch.linalg.matrix_norm(missed[sizes.argmin()], 2)),
        "narrow_floor": control,
        "narrow_in_eps": None if control is None else control / eps,
        "final_error": number(error[-1]),
        "overflowed": not bool(xs.isfinite().all()),
        "failure": failure(floor, final, eps),
        "purified_error": number(errors(purified)),
        "best_error": number(errors(best)),
        "polished_error": polished,
        "solve_status": Status(int(solved.status)).name,
        "solve_error": number(errors(solved.x)),
    }


def names(matrix: Matrix) -> Row:
    """The family of a matrix, and the head that a core is recorded of."""
    return {
        "family": type(matrix.op if isinstance(matrix, Core) else matrix).__name__,
        "source": named(matrix.input)[0] if isinstance(matrix, Core) else None,
    }


def failure(floor: float, final: float, eps: float) -> str:
    """How a run fails, by its least error and its last."""
    if floor > CONVERGED:
        return "never converged"
    if final > WORSE * max(floor, eps):
        return "diverged after converging" if math.isfinite(final) else "overflow"
    return SOUND


def number(error: Tensor) -> float | None:
    """An error, or None where it overflowed."""
    return float(error) if bool(error.isfinite()) else None


AGAINST_KAPPA = Lines(
    x="kappa",
    by="matrix.condition",
    y="floor_in_eps",
    group="method",
    panel="precision",
    where={"family": LAW},
    xlabel=r"condition number $\kappa$ of the rounded matrix",
    ylabel=r"least relative error, in $\varepsilon$",
    guides={"kappa": r"$\kappa$, the rule with $c = 1$"},
    name="floor",
    caption="Least relative error that each iteration reaches, in units of each precision's "
    "epsilon, against the condition number, on matrices with log-spaced singular values. The "
    "error is 1, nothing inverted, at 128 units of bfloat16 and 1024 of float16.",
)

STUDY = Study(
    name="precision",
    title="Iterative inverses in low precision: least error, and failures",
    question="How near does each iteration come to the pseudo-inverse in float64, float32 and "
    "half precision? From which condition number on does it fail? How do a closing "
    "product, the best iterate and a float64 step change the result?",
    axes={
        "matrix": MATRICES,
        "seed": (0, 1),
        "precision": tuple(PRECISIONS),
        "solver": SOLVERS,
    },
    quick={
        "matrix": [*(Geometric(64, k, symmetric=False) for k in (3.0, 1e2, 1e4)), MATRICES[-6]],
        "seed": (0,),
    },
    measure=measure,
    setup=problem,
    keep=keep,
    figures=(
        AGAINST_KAPPA,
        replace(
            AGAINST_KAPPA,
            y="final_in_eps",
            ylabel=r"relative error of the last iterate, in $\varepsilon$",
            name="final",
            caption="Relative error after all steps (128 products for Newton-Raphson, about as "
            "many for the others) against the condition number, on the same matrices, in the same "
            "units. Runs that are not drawn overflowed.",
        ),
        replace(
            AGAINST_KAPPA,
            where={"family": LAW, "method": "NewtonRaphson", "precision": HALF},
            expected="narrow_in_eps",
            expected_label="summed in the precision itself",
            name="accumulation",
            caption="Newton-Raphson's least error with the device's own products, and (thin "
            "dashed) with products summed in the half precision itself, term by term.",
        ),
        replace(
            AGAINST_KAPPA,
            y="polished_error",
            ylabel="relative error after one float64 step",
            where={"family": LAW, "precision": ("float32", *HALF)},
            expected="best_error",
            expected_label="before that step",
            guides={},
            name="polished",
            caption="Relative error of Polished, one float64 Newton step after the low precision, "
            "against the condition number; thin dashed: the iterate that solve's watch keeps in "
            "that precision, from which the step starts.",
        ),
    ),
)
