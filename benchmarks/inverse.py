"""Speed of iterative pseudo-inverses and of the watch that ``solve`` keeps over them.

    python benchmarks/inverse.py [--device cuda] [--threads 2] [--rounds 9] [--out FOLDER]

A batch of 1024 cores of 64 x 64 in float32, of condition number 10^2.5. Newton's 20 steps are timed
against their 40 bare products; the other solvers, as information, to the residual that those 20
steps reach. Rivals run in turn within each round; a line gives the median over rounds of the ratio
of their times, and its quartiles. Writes FOLDER/inverse.csv and prints it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from rivals import Line, agree, main, race, ratio
from torch import Tensor

from softlab.core import Stream
from softlab.matrices import haar
from softlab.pinv import (
    SVD,
    Chebyshev,
    Cholesky,
    Hyperpower,
    Minimax,
    NewtonRaphson,
    NystromformerCubic,
    SketchedFit,
    Solver,
    Status,
)

BATCH, M, STEPS = 1024, 64, 20
CONDITION = 10**2.5
NEWTON = NewtonRaphson(STEPS)
RIVALS: list[Solver] = [
    Hyperpower(3),
    NystromformerCubic(6),
    Chebyshev(),
    Minimax(),
    SketchedFit(),
]


def cores(device: torch.device) -> Tensor:
    """Symmetric positive definite matrices of log-spaced spectra, each less wide than the next.

    From 10^1 to the full condition number, so that Newton's steps suffice for some and not for all.
    """
    rng = Stream(0, "benchmarks.inverse")
    axes = torch.stack([haar(M, rng) for _ in range(BATCH)])
    exponents = torch.linspace(0.4, 1, BATCH, dtype=torch.float64)[:, None]
    spectra = CONDITION ** -(exponents * torch.linspace(0, 1, M, dtype=torch.float64))
    a = (axes * spectra[:, None, :]) @ axes.mT
    return ((a + a.mT) / 2).to(device, torch.float32)


def bare(a: Tensor) -> Tensor:
    """The products of Newton's steps, A X and X (A X) of a start X, and nothing else."""
    x = a / a.norm()
    out: Tensor = x
    for _ in range(STEPS):
        out = torch.bmm(x, torch.bmm(a, x))
    return out


def plain(a: Tensor) -> Tensor:
    """Newton's iteration as one would write it."""
    one, infinity = (a.abs().sum(axis).amax(-1)[:, None, None] for axis in (1, 2))
    x = 1.8 * a.mT / (one * infinity)
    for _ in range(STEPS):
        x = 2 * x - torch.bmm(x, torch.bmm(a, x))
    return x


def watched(device: torch.device, rounds: int) -> Iterator[Line]:
    """A call and a solve against their bare products, and against the plain loop."""
    a = cores(device)
    agree(NEWTON(a), plain(a))
    result = NEWTON.solve(a)
    ended = set(result.status.tolist())
    if not ended > {Status.CONVERGED}:
        message = f"some cores must converge and some not, got {ended}; change the spectra"
        raise RuntimeError(message)
    agree(result.x, NEWTON(a), 1e-2)
    calls = [partial(f, a) for f in (NEWTON, NEWTON.solve, bare, plain)]
    call, solve, products, loop = race(calls, device, rounds)
    name = f"NewtonRaphson({STEPS}) on {BATCH} cores of {M} x {M}"
    yield ratio(f"{name}: call over bare products", call, products, 1.2, True)
    yield ratio(f"{name}: solve over bare products", solve, products, 1.5, True)
    yield ratio(f"{name}: plain loop over call", loop, call)


def to_a_common_residual(device: torch.device, rounds: int) -> Iterator[Line]:
    """Each solver's time over Newton's, with the steps that bring it as near on every core.

    The number of steps is found first, by the largest residual |A X A - A| / |A| of the batch;
    one that needs more than 40 steps is left out. Direct solvers go as far as they do.
    """
    a = cores(device)
    goal = 1.1 * worst(a, NEWTON(a))
    solvers = [NEWTON, *filter(None, (enough(solver, a, goal) for solver in RIVALS))]
    solvers += [Cholesky(), SVD()]
    for solver in solvers:
        missed = worst(a, solver(a))
        if not missed <= goal:
            message = f"{solver!r} leaves {missed:.1e} where {goal:.1e} was asked"
            raise RuntimeError(message)
    newton, *others = race([partial(solver, a) for solver in solvers], device, rounds)
    for solver, taken in zip(solvers[1:], others, strict=True):
        yield ratio(f"{solver!r}: time over {NEWTON!r}, same residual", taken, newton)


def worst(a: Tensor, x: Tensor) -> float:
    """The largest relative residual of the batch."""
    missed = torch.linalg.matrix_norm(a @ x @ a - a) / torch.linalg.matrix_norm(a)
    return float(missed.max())


def enough(solver: Solver, a: Tensor, goal: float) -> Solver | None:
    """The solver with the fewest steps that reach the goal; None above 40."""
    longest = replace(solver, steps=40)  # type: ignore[type-var]
    for step, x in enumerate(longest.iterates(a)):
        if step and worst(a, x) <= goal:
            return replace(solver, steps=step)  # type: ignore[type-var]
    return None


if __name__ == "__main__":
    main(__doc__, "inverse", (watched, to_a_common_residual))
