"""Laws of solvers at every size and kind of matrix, and of what ``solve`` says of its result."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softlab.laws.inverse import KAPPA, faithful, relative, spd
from softlab.laws.law import Gap, Law, after_steps, need_gradient, normal, steps_of, tolerance
from softlab.pinv import Iteration, PinvResult, Solver, Status

F64 = torch.float64
SIZES_DRAWN = (1, 2, 3, 7, 16, 17, 33, 64)
PROJECTS = 1e-6
"""How near A X is to its own square where it is a projection."""
HONEST = 0.1
"""How far, relatively, a reported residual may be from that of the x that is returned."""


def _precision(solver: Any) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, solver.traits.precision or "float64")
    return dtype


def _kinds(solver: Any, m: int, kappa: float, rng: torch.Generator) -> dict[str, Tensor]:
    """Invertible m x m matrices of that condition, of each kind that the solver is meant for."""
    spectrum = torch.logspace(0, -math.log10(kappa), m, dtype=F64)
    noise = normal(rng, m, m, dtype=F64).cpu()
    near = spectrum.diag() + 1e-4 * float(spectrum[-1]) * (noise + noise.mT)
    kinds = {"definite": spd(rng, spectrum), "nearly diagonal": near}
    if solver.traits.definite or solver.traits.regularized:
        return kinds
    signs = torch.where(torch.arange(m) % 2 == 0, 1.0, -1.0).to(F64)
    turn = torch.linalg.qr(normal(rng, m, m, dtype=F64)).Q.cpu()
    return {
        **kinds,
        "indefinite": spd(rng, spectrum * signs),
        "not symmetric": kinds["definite"] @ turn,
    }


def _sizes(solver: Any, rng: torch.Generator) -> Iterator[Gap]:
    precision = _precision(solver)
    for m in SIZES_DRAWN:
        kinds = _kinds(solver, m, KAPPA, rng)
        batch = torch.stack(list(kinds.values()) * 4)  # more than eight matrices
        together = solver(batch.reshape(2, -1, m, m)).reshape(-1, m, m).double()
        for i, (where, a) in enumerate(kinds.items()):
            allowed = tolerance(precision, m, kappa=KAPPA**2)
            x = solver(a).double()
            yield Gap(relative(a @ x, torch.eye(m, dtype=F64)), allowed, f"A X = I, {where}, m={m}")
            for place in (i, i + len(batch) - len(kinds)):
                where_ = f"{where}, m={m}, matrix {place} of {len(batch)}"
                yield Gap(relative(together[place], x), allowed, where_)
    yield from _kept(solver, rng)


def _kept(solver: Any, rng: torch.Generator) -> Iterator[Gap]:
    """Whether A X projects, where A is invertible: small singular values are taken for zero."""
    m = 6
    for kappa in (1e3, 1e5):
        a = spd(rng, torch.logspace(0, -math.log10(kappa), m, dtype=F64))
        p = a @ solver(a).double()
        # What has not converged is no projection.
        cut = relative(p @ p, p) < PROJECTS and float(p.trace()) < m - 0.5
        yield Gap(float(cut), 0, f"condition {kappa:g}: singular values are cut off")


def _solve(solver: Any, rng: torch.Generator) -> Iterator[Gap]:
    eps = torch.finfo(_precision(solver)).eps
    for m, kappa in ((1, 1.0), (2, 3.0), (6, 10.0), (17, 1e3), (33, 1e6)):
        cases = _kinds(solver, m, kappa, rng)
        if m > 2 and solver.traits.singular and not solver.traits.definite:
            cases["singular"] = spd(
                rng, torch.linspace(1, 0.5, m, dtype=F64) * (torch.arange(m) < m - 2)
            )
        batch = torch.stack(list(cases.values()))
        result = solver.solve(batch)
        yield from _steps(solver, batch, result)
        for i, (kind, a) in enumerate(cases.items()):
            where = f"{kind}, m={m}, condition {kappa:g}"
            x, said = result.x[i].double(), float(result.residual[i])
            status = Status(int(result.status[i]))
            true = relative(a @ x @ a, a)
            # Products of |A| |X| |A| leave so much, whoever multiplies.
            floor = 10 * m * eps * float(x.abs().amax() * a.abs().amax() * m)
            if not math.isnan(true):
                off = abs(said - true)
                yield Gap(
                    off, HONEST * true + floor, f"{where}: residual said {said:.3g}, is {true:.3g}"
                )
            if status is Status.CONVERGED:
                allowed = math.sqrt(eps) + floor
                yield Gap(true, allowed, f"{where}: called converged, residual of x")
            if status is Status.DIVERGED:
                yield Gap(0.5, max(true, 0.0) if true == true else 1.0, f"{where}: called diverged")
            alone = solver.solve(a)
            same = int(alone.status) == int(status) or floor > math.sqrt(eps)
            yield Gap(
                float(not same), 0, f"{where}: alone {alone.status}, in a batch {int(status)}"
            )
    if steps_of(solver) == 0 or solver.traits.order is None:
        return
    a = spd(rng, torch.logspace(0, -4, 12, dtype=F64))
    for steps in (1, 2, 3):
        short = after_steps(solver, steps).solve(a)
        true = relative(a @ short.x.double() @ a, a)
        lied = int(short.status) == Status.CONVERGED and true > math.sqrt(eps)
        yield Gap(float(lied), 0, f"{steps} steps at condition 1e4: converged, residual {true:.3g}")


def _steps(solver: Any, batch: Tensor, result: PinvResult) -> Iterator[Gap]:
    """The iterate that the steps name is the x that is returned, and took so many products."""
    if not isinstance(solver, Iteration):
        return
    iterates = [x.double() for x in solver.iterates(batch)]
    for i, steps in enumerate(result.steps.tolist()):
        where = f"m={batch.shape[-1]}, matrix {i}: x is the iterate of step {steps}"
        yield Gap(float(not 0 <= steps < len(iterates)), 0, where)
        missed = relative(iterates[steps][i], result.x[i].double())
        yield Gap(missed, HONEST, where)
        products = steps * solver.traits.products
        yield Gap(abs(int(result.matmuls[i]) - products), 0, f"{steps} steps, products")


def _gradient(solver: Any, rng: torch.Generator) -> Iterator[Gap]:
    for m in (1, 2, 5, 17):
        for kind, a in _kinds(solver, m, KAPPA, rng).items():
            if solver.traits.definite or solver.traits.regularized:
                continue
            upstream = normal(rng, m, m, dtype=F64).cpu()
            leaf = a.clone().requires_grad_()
            need_gradient(solver, leaf)
            (mine,) = torch.autograd.grad((solver(leaf) * upstream).sum(), leaf)
            single = a.float().requires_grad_()
            (narrow,) = torch.autograd.grad((solver(single) * upstream.float()).sum(), single)
            x = torch.linalg.inv(a)
            due = -x.mT @ upstream @ x.mT  # d<G, A^-1> = -<A^-T G A^-T, dA>
            # Each step's backward products round.
            allowed = tolerance(_precision(solver), m, kappa=KAPPA**4) * (1 + steps_of(solver))
            yield Gap(relative(mine, due), allowed, f"-A^-T G A^-T, {kind}, m={m}")
            allowed = tolerance(torch.float32, m, kappa=KAPPA**4) * (1 + steps_of(solver))
            allowed = min(allowed, 0.1)
            yield Gap(relative(narrow, due), allowed, f"float32, -A^-T G A^-T, {kind}, m={m}")


SIZES: Law[Solver] = Law(
    "every size",
    "A X = I on definite, indefinite and other matrices of 1 to 64 rows, alone and in a batch",
    lambda s: not s.traits.regularized and faithful(s),
    _sizes,
    family="algebraic",
    when="is not regularised",
    allows="rounding times the squared condition of the drawn matrix",
    catches="right up to sixteen rows; right for definite matrices alone; a hidden ridge",
    examples=2,
)
SOLVE: Law[Solver] = Law(
    "solve tells the truth",
    "status and residual are those of the x that solve returns, of each matrix for itself",
    lambda s: hasattr(s, "solve") and faithful(s) and not s.traits.regularized,
    _solve,
    family="honesty",
    when="has solve, is not regularised, and no copy of published code with its defects",
    allows="a tenth of the residual, and the rounding of A X A",
    catches="a residual that is always zero; the status of the first matrix for all",
    examples=2,
)
FULL_GRADIENT: Law[Solver] = Law(
    "gradient of any matrix",
    "the gradient of <G, A^-1> is -A^-T G A^-T, also of matrices that are not symmetric",
    lambda s: not s.traits.regularized and faithful(s),
    _gradient,
    family="gradients",
    when="is not regularised",
    allows="rounding times the fourth power of the condition, a step",
    catches="a gradient that is transposed, or made symmetric",
    examples=2,
)
