"""The atlas: what every iterative pseudo-inverse does on matrices whose spectrum is known.

Solver, scaling, spectrum, condition number and precision, with what the scalar maps predict beside
what was observed. The axis ``precision`` is the arithmetic of the iteration, whatever the run's own
dtype; everything is measured in float64. The published Nystromformer scaling is not among the
scalings: on one matrix at a time it is ``NormProduct(1.0)``. The second study follows the error of
each method step by step on a matrix of half rank.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from softlab import convergence
from softlab.engine.journal import Row
from softlab.figures import Lines
from softlab.inputs import Recorded, Tied, recorded_names
from softlab.matrices import (
    Clusters,
    Core,
    Flat,
    Geometric,
    KnownSpectrum,
    LowRank,
    Matrix,
    NearDuplicates,
    Ones,
    Polynomial,
    Spiked,
    Step,
)
from softlab.operators import Nystromformer, Soft
from softlab.pinv import (
    Chebyshev,
    Frobenius,
    Hyperpower,
    InfinityNorm,
    Iteration,
    KrylovEstimate,
    Minimax,
    NewtonRaphson,
    NormProduct,
    NystromformerCubic,
    Optimal,
    OptimalDefinite,
    PowerEstimate,
    PublishedSoftNorm,
    Scaling,
    SketchedFit,
)
from softlab.study import Study

from .columns import CHEBYSHEV, DEFAULT, DUPLICATES, GROWN, MINIMAX, NEWTON, PUBLISHED

M = 64
CONDITIONS = (1e1, 1e2, 1e3, 1e4)
TOLERANCE = {"float64": 1e-8, "float32": 1e-2}
"""Residuals that count steps; the second stays above the rounding of float32 at kappa = 1e4."""
METHODS: dict[Iteration, str] = {
    NewtonRaphson(60): NEWTON,
    Hyperpower(3, 40): "Hyperpower 3",
    Hyperpower(5, 30): "Hyperpower 5",
    NystromformerCubic(40): "Nystromformer",
    Chebyshev(40, degree=2): f"{CHEBYSHEV} 2",
    Chebyshev(30, degree=3): f"{CHEBYSHEV} 3",
    Chebyshev(24): f"{CHEBYSHEV} 5",
    Minimax(steps=24): f"{MINIMAX} 5",
    SketchedFit(40): "SketchedFit",
}
SCALINGS: dict[Scaling, str] = {
    NormProduct(1.0): "norms 1.0",
    Frobenius(): "Frobenius",
    Optimal(): "optimal",
    PowerEstimate(): "power",
    KrylovEstimate(): "Krylov",
    InfinityNorm(): "I, norm",
    OptimalDefinite(): "I, optimal",
    NormProduct(2.0): "norms 2.0",
    PublishedSoftNorm(): "SOFT-norm code",
}
BEFORE: dict[type, int] = {NewtonRaphson: 20, NystromformerCubic: 6}
"""The published numbers of steps."""


def constructed(conditions: tuple[float, ...]) -> list[Matrix]:
    """The seven spectra at these condition numbers, one of them not symmetric as well."""
    found: list[Matrix] = [Flat(M), Ones(M)]
    for k in conditions:
        found += [Geometric(M, k), Geometric(M, k, symmetric=False), Polynomial(M, k)]
        found += [Step(M, k), Clusters(M, k), Spiked(M, k), LowRank(M, M // 2, k)]
    return found


REAL = [Recorded(name) for name in recorded_names()]
CORES: list[Matrix] = [NearDuplicates(spread=spread) for spread in (0.5, 0.2, 0.1, 0.05, 0.02)]
CORES += [Core(Nystromformer(M), head) for head in REAL]
CORES += [Core(Soft(49), Tied(head)) for head in REAL]
SOLVERS = [*METHODS, *(NewtonRaphson(60, scaling) for scaling in SCALINGS)]


def keep(matrix: Matrix, solver: Iteration, precision: str) -> bool:
    """Scalings in float64 on constructed spectra; multiples of I where A is definite."""
    if solver in METHODS:
        return True
    known = isinstance(matrix, KnownSpectrum)
    skew = not isinstance(matrix, KnownSpectrum) or not matrix.symmetric
    definite = not skew and not isinstance(matrix, (LowRank, Ones))
    symmetric_only = solver.traits.definite or "Published" in repr(solver)
    return known and precision == "float64" and (definite or not symmetric_only)


def names(matrix: Matrix) -> Row:
    """What a figure groups a matrix by; ``kappa`` is the condition number asked for, if one was."""
    row: Row = {"real": isinstance(matrix, Core), "kappa": None}
    if isinstance(matrix, Core):
        source = matrix.input.input if isinstance(matrix.input, Tied) else matrix.input
        return row | {"core": type(matrix.op).__name__, "spectrum": getattr(source, "name", "")}
    if not isinstance(matrix, KnownSpectrum):
        return row | {
            "core": DUPLICATES,
            "spectrum": f"spread {getattr(matrix, 'spread', None)}",
        }
    skew = "" if matrix.symmetric else ", not symmetric"
    return row | {"spectrum": type(matrix).__name__ + skew, "kappa": matrix.condition, "core": None}


def measure(
    matrix: Matrix, seed: int, solver: Iteration, precision: str, device: torch.device
) -> Row:
    """One solver on one matrix: how it ends, predicted and observed, floor, growth and filter."""
    a = matrix(seed, dtype=getattr(torch, precision), device=device)
    row = names(matrix) | {"method": METHODS.get(solver, NEWTON), "scaling": DEFAULT}
    if solver not in METHODS:
        row["scaling"] = SCALINGS[getattr(solver, "scaling", NormProduct(1.0))]
    row |= convergence.account(solver, a, TOLERANCE[precision])
    spent = solver.cost(len(a)).work / (2 * len(a) ** 3)
    row["setup_matmuls"] = spent - solver.steps * solver.traits.products
    row |= dict.fromkeys(PUBLISHED)
    steps = BEFORE.get(type(solver))
    if solver in METHODS and steps and precision == "float64":
        seen = convergence.trace(replace(solver, steps=steps), a)  # type: ignore[type-var]
        freedom = convergence.degrees_of_freedom(solver, a, steps)
        row |= {"published_steps": steps, "published_residual": float(seen.right[-1])}
        row |= {"published_error": float(seen.error[-1]), "freedom": freedom}
        row |= {"freedom_share": freedom / seen.rank}
        row |= {"cutoff": convergence.cutoff(solver, a, steps)}
    return row


def followed(matrix: Matrix, solver: Iteration, device: torch.device) -> convergence.Trace:
    """The trace in float64, of which every step becomes a row."""
    return convergence.trace(solver, matrix(0, device=device))


def measure_step(setup: convergence.Trace, matrix: Matrix, solver: Iteration, step: int) -> Row:
    """The error at one step, that of X A X, and the declared growth from where it sets in."""
    grown, error = convergence.onset_and_growth(setup), setup.error.tolist()
    row = names(matrix) | {"method": METHODS[solver], "inverse_error": error[step]}
    row |= {"purified": float(setup.purified[step]), "shown": error[step] < 10}
    row |= dict.fromkeys((*GROWN, "declared_error"))
    if grown:
        row |= {"onset": grown.onset, "observed_growth": grown.factor}
        row |= {"declared_growth": solver.traits.growth}
        if grown.onset <= step and error[step] < 10:
            since = step - grown.onset
            row["declared_error"] = error[grown.onset] * solver.traits.growth**since
    return row


KAPPA = r"condition number $\kappa$"
MATMULS = Lines(
    x="kappa",
    y="observed_matmuls",
    group="method",
    panel="spectrum",
    where={"scaling": DEFAULT, "precision": "float64", "kappa": CONDITIONS},
    expected="predicted_matmuls",
    expected_label="predicted",
    xlabel=KAPPA,
    ylabel=r"products to a residual of $10^{-8}$",
    yscale="linear",
    name="matmuls",
    caption="Products of 64 x 64 matrices to a residual of 1e-8 on the range, in float64, against "
    "the condition number. Thin dashed: predicted by the scalar map.",
)
AFTER = Lines(
    x="step",
    y="inverse_error",
    group="method",
    where={"shown": True},
    expected="declared_error",
    expected_label="declared growth from the onset",
    xlabel="step",
    ylabel="relative error",
    xscale="linear",
    name="spoiling",
    caption="Relative error against the step on a matrix of rank 32, size 64 and condition 10, in "
    "float64. Thin dashed: the declared growth a step, from the onset.",
)

STUDY = Study(
    name="convergence",
    title="The convergence of iterative pseudo-inverses",
    question="How many matrix products does each iterative pseudo-inverse take, for which "
    "singular values, condition number and number format? How accurate is it then, and "
    "does the iteration of a single singular value predict it?",
    axes={
        "matrix": [*constructed(CONDITIONS), *CORES],
        "seed": [0],
        "precision": list(TOLERANCE),
        "solver": SOLVERS,
    },
    quick={
        "matrix": [*(one(M, k) for k in (1e1, 1e3) for one in (Geometric, Step)), *CORES[4:6]]
        + [LowRank(M, M // 2, k) for k in (1e1, 1e3)],
        "solver": [solver for solver in METHODS if solver.traits.order != 3],
    },
    measure=measure,
    keep=keep,
    figures=(
        MATMULS,
        replace(
            MATMULS,
            group="scaling",
            expected="",
            where={"method": NEWTON, "precision": "float64", "kappa": CONDITIONS},
            name="scalings",
            caption="Products of Newton's iteration to a residual of 1e-8 against the condition "
            "number, by scaling; default: norms 1.8. Multiples of I are for definite matrices. "
            "What never arrives has no point.",
        ),
        Lines(
            x="kappa",
            y="floor",
            group="spectrum",
            panel="precision",
            where={"scaling": DEFAULT, "kappa": CONDITIONS},
            guides={"eps_kappa": r"$\epsilon\,\kappa$"},
            xlabel=KAPPA,
            ylabel="least relative error",
            name="floor",
            caption="The least error that a run reaches against the condition number: medians and "
            "quartiles over the methods; grey: eps times the condition number.",
        ),
    ),
)

SPOILING = Study(
    name="spoiling",
    title="Singular matrices: what an iteration does after it has converged",
    question="What happens to the error of each iteration on a matrix of half rank after it has "
    "converged? Does one closing step X A X restore it?",
    axes={
        "matrix": [LowRank(M, M // 2, 10.0, symmetric=False)],
        "solver": list(METHODS),
        "step": range(61),
    },
    quick={"step": range(0, 61, 4)},
    measure=measure_step,
    setup=followed,
    keep=lambda solver, step: step <= solver.steps,
    figures=(
        AFTER,
        replace(
            AFTER,
            y="purified",
            expected="",
            name="purified",
            ylabel="relative error of X A X",
            caption="The same iterates, each closed by one X A X.",
        ),
    ),
)
