"""Laws of pseudo-inverse solvers."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from softlab.convergence import observed_order, trace
from softlab.laws.law import (
    Gap,
    Law,
    OutOfScopeError,
    after_steps,
    always,
    as_drawn,
    is_plain,
    need_gradient,
    normal,
    refused,
    said,
    steps_of,
    tolerance,
    uniform_int,
)
from softlab.pinv import Iteration, Solver, Status

F64 = torch.float64
KAPPA = 4.0
LEAST = 1e-6
"""Times 1 / |A|, below which an answer is taken for zeros."""


def spd(rng: torch.Generator, spectrum: Tensor) -> Tensor:
    """A symmetric matrix with Haar eigenvectors and this spectrum (..., m)."""
    r = torch.linalg.qr(normal(rng, *spectrum.shape, spectrum.shape[-1], dtype=F64).cpu())
    q = r.Q * r.R.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    a: Tensor = (q * spectrum.unsqueeze(-2)) @ q.mT
    return (a + a.mT) / 2


def well_conditioned(rng: torch.Generator, m: int) -> Tensor:
    """A symmetric positive matrix of condition ``KAPPA``, as ``Draws`` has it."""
    a = spd(rng, torch.logspace(0, -math.log10(KAPPA), m, dtype=F64))
    return as_drawn(a)


def _rounding(solver: Solver, a: Tensor, kappa: float) -> float:
    """What rounding allows: the model, times the growth of null-space errors over the steps."""
    grown = solver.traits.growth ** steps_of(solver)
    if isinstance(solver, Iteration):
        _, maps = solver.begin(a)
        grown = math.prod(getattr(step, "growth", solver.traits.growth) for step in maps)
    return tolerance(F64, a.shape[-1], kappa=kappa) * grown


def relative(x: Tensor, y: Tensor) -> float:
    """|x - y|_F / |y|_F, or |x|_F for y = 0."""
    miss, size = (float(torch.linalg.matrix_norm(z.double())) for z in (x - y, y))
    return miss / size if size else miss


def _penrose_gaps(solver: Solver, a: Tensor, allowed: float, where: str) -> Iterator[Gap]:
    x, a = solver(a).double(), a.double()
    yield Gap(relative(a @ x @ a, a), allowed, f"A X A = A, {where}")
    yield Gap(relative(x @ a @ x, x), allowed, f"X A X = X, {where}")
    yield Gap(relative((a @ x).mT, a @ x), allowed, f"(A X)^T = A X, {where}")
    yield Gap(relative((x @ a).mT, x @ a), allowed, f"(X A)^T = X A, {where}")


def _penrose(solver: Solver, rng: torch.Generator) -> Iterator[Gap]:
    m = uniform_int(rng, 2, 12)
    cases = {"well-conditioned": well_conditioned(rng, m), "identity": as_drawn(torch.eye(m))}
    if not solver.traits.definite:
        left = as_drawn(torch.linalg.qr(normal(rng, m, m, dtype=F64)).Q)
        cases["not symmetric"] = well_conditioned(rng, m) @ left
    for where, a in cases.items():
        yield from _penrose_gaps(solver, a, tolerance(F64, m, kappa=KAPPA**2), f"{where}, m={m}")


def _singular(solver: Solver, rng: torch.Generator) -> Iterator[Gap]:
    m = uniform_int(rng, 5, 10)
    half = torch.linspace(1, 0.5, m, dtype=F64) * (torch.arange(m) < m // 2)
    repeated = torch.cat((torch.eye(m, dtype=F64)[:-1], torch.eye(m, dtype=F64)[m - 2 : m - 1]))
    cases = {
        "half rank": spd(rng, half),
        "all ones": torch.ones(m, m, dtype=F64),
        "repeated row": repeated,
        "zero": torch.zeros(m, m, dtype=F64),
    }
    gaps = {
        where: _penrose_gaps(solver, a, _rounding(solver, a, KAPPA), f"{where}, m={m}")
        for where, a in cases.items()
    }
    if not solver.traits.singular:
        *usual, last = gaps
        for where in usual:
            yield from _said_nothing(solver, cases[where], where)
        _need_singular(gap for where in usual for gap in gaps[where])
        gaps = {last: gaps[last]}
    for found in gaps.values():
        yield from found


def _said_nothing(solver: Solver, a: Tensor, where: str) -> Iterator[Gap]:
    """A function may refuse a singular matrix, or answer with what no inverse is: not with zeros.

    Any other answer may be that of a driver which does not promise more, as LAPACK's gelsy.
    """
    try:
        x = solver(a).double()
    except Exception:  # it is refused
        return
    size = float((x.abs().max() * a.abs().max()).nan_to_num(math.inf))
    if bool(a.any()):
        yield Gap(float(size < LEAST), 0, f"{where}: answered by zeros without a word")


def _need_singular(gaps: Iterator[Gap]) -> None:
    """Raise ``OutOfScopeError`` for a function that inverts no singular matrix."""
    try:
        missed = next((gap.said for gap in gaps if not gap.holds), "")
    except Exception as error:  # whatever it raises
        missed = said(error)
    if missed:
        msg = f"it inverts no singular matrix, and need not: {missed}"
        raise OutOfScopeError(msg)


def _shifted(solver: Solver, rng: torch.Generator) -> Iterator[Gap]:
    a = well_conditioned(rng, 6)
    # (A + r I)^-1 commutes with A, and X^-1 - A is the multiple r of the identity.
    back = torch.linalg.pinv(solver(a)) - a
    shift = back.diagonal().mean()
    missed = float((back - shift * torch.eye(6, dtype=F64)).abs().max())
    rounding = tolerance(F64, 6, kappa=KAPPA**2)
    yield Gap(missed, rounding, "X^-1 - A = r I")
    yield Gap(float(shift <= rounding), 0, f"r = {float(shift):.3g} is positive, beyond rounding")


def _adjoint(solver: Solver, rng: torch.Generator) -> Iterator[Gap]:
    a = well_conditioned(rng, 7)
    if not solver.traits.definite:
        a = a @ as_drawn(torch.linalg.qr(normal(rng, 7, 7, dtype=F64)).Q)
    allowed = tolerance(F64, 7, kappa=KAPPA**2)
    yield Gap(relative(solver(a.mT), solver(a).mT), allowed, "(A^T)^+ = (A^+)^T")


def _scaling(solver: Solver, rng: torch.Generator) -> Iterator[Gap]:
    a = well_conditioned(rng, 6)
    x = solver(a)
    for exponent in (-30, -8, 8, 30):
        for dtype, kappa in ((F64, KAPPA**2), (torch.float32, KAPPA**2)):
            try:
                scaled = solver((a * 10.0**exponent).to(dtype)).double() * 10.0**exponent
            except RuntimeError as error:
                if abs(exponent) == 30 and refused(solver, error, torch.bfloat16):
                    continue  # squares leave the numbers, and it says so
                raise
            allowed = tolerance(dtype, 6, kappa=kappa)
            yield Gap(relative(scaled, x), allowed, f"scale 1e{exponent}, {dtype}")


def _order(solver: Solver, rng: torch.Generator) -> Iterator[Gap]:
    order = solver.traits.order or 0
    if not isinstance(solver, Iteration):
        slope = _order_of_iterates(after_steps(solver, 16), rng)
        yield Gap(abs(slope - order), 0.25, f"observed order {slope:.3f}, claimed {order}")
        return
    m = 8
    a = well_conditioned(rng, m)
    eye = torch.eye(m, dtype=F64)
    # The last of many steps, from X = A^-1 (I - R) with residuals R of two sizes and many
    # eigenvalues: a method that adapts to the spectrum has then settled. The sizes are as small as
    # rounding lets the order be seen, for such a method has it in the limit alone.
    _, maps = after_steps(solver, 16).begin(a)
    *_, final = maps
    direction = spd(rng, torch.linspace(-1, 1, m, dtype=F64))
    least = min(max(1e-9 ** (1 / max(order, 1)), 0.02), 0.1)
    sizes = (2 * least, least)
    after = [
        float(torch.linalg.matrix_norm(eye - a @ final(a, torch.linalg.pinv(a) @ (eye - r)), 2))
        for r in (size * direction for size in sizes)
    ]
    slope = math.log(after[0] / after[1]) / math.log(sizes[0] / sizes[1])
    yield Gap(abs(slope - order), 0.1, f"observed order {slope:.3f}, claimed {order}")


def _order_of_iterates(solver: Solver, rng: torch.Generator) -> float:
    """The median order of what a solver without ``begin`` yields, at conditions from 1.5 to 16.

    A start is its own, so each matrix shows another part of the way.
    """
    spectra = (
        torch.logspace(0, -math.log10(x), 6, dtype=F64) for x in (1.5, 2, 3, 4, 6, 8, 12, 16)
    )
    traces = (trace(cast("Any", solver), as_drawn(spd(rng, x))) for x in spectra)
    found = [x for x in map(observed_order, traces) if x is not None]
    if not found:
        msg = "of its iterates no three in turn lie between the start and rounding"
        raise OutOfScopeError(msg)
    return statistics.median(found)


def _growth(solver: Solver, rng: torch.Generator) -> Iterator[Gap]:
    # Perturb a converged iterate inside the null space and follow it for some steps.
    a = spd(rng, torch.tensor([1.0, 0.8, 0.6, 0.0], dtype=F64))
    null = torch.linalg.eigh(a).eigenvectors[:, :1]
    size = []
    x = torch.linalg.pinv(a) + 1e-12 * null @ null.mT
    # The last steps count: a method that adapts to the spectrum changes its factor on the way.
    _, maps = after_steps(cast("Iteration", solver), 16).begin(a)
    for step in maps:
        x = step(a, x)
        size.append(float((null.mT @ x @ null).abs()))
    observed = size[-1] / size[-2]
    yield Gap(abs(observed - solver.traits.growth), 1e-3, f"observed factor {observed:.4f} a step")


def _independent(solver: Solver, rng: torch.Generator) -> Iterator[Gap]:
    m = 6
    scale = torch.tensor([1, 1e8, 1e-8], dtype=F64)[:, None, None]
    batch = torch.stack([well_conditioned(rng, m) for _ in range(3)]) * scale
    batch[1] += 5 * scale[1]  # one peaky matrix
    precision = getattr(torch, solver.traits.precision or "float64")
    for subject in (after_steps(solver, 2), solver):
        together = subject(batch)
        for i in range(3):
            missed = relative(together[i], subject(batch[i]))
            allowed = tolerance(precision, m, kappa=1e5)
            yield Gap(missed, allowed, f"{subject!r}, matrix {i} of 3")
    if not (solver.traits.singular or is_plain(solver)):
        return
    half = spd(rng, torch.linspace(1, 0.5, m, dtype=F64) * (torch.arange(m) < m // 2))
    pair = {"an invertible matrix": well_conditioned(rng, m), "one of half rank": half}
    try:
        alone = [solver(a) for a in pair.values()]
    except Exception:  # it refuses singular matrices, and may
        return
    allowed = max(tolerance(precision, m, kappa=1e5), _rounding(solver, half, 1e5))
    if relative(alone[1], torch.linalg.pinv(half)) > allowed:
        return  # it answers by something else, which rounding decides
    for order in ((0, 1), (1, 0)):
        together = solver(torch.stack([list(pair.values())[i] for i in order]))
        for i, x in zip(order, together, strict=True):
            where = f"{list(pair)[i]} beside {list(pair)[1 - i]}, as number {order.index(i)}"
            yield Gap(relative(x, alone[i]), allowed, where)


def _status(solver: Solver, rng: torch.Generator) -> Iterator[Gap]:
    m = 6
    good, bad = well_conditioned(rng, m), torch.full((m, m), math.nan, dtype=F64)
    result = solver.solve(torch.stack((good, bad)))
    codes = result.status.tolist()
    yield Gap(float(codes != [Status.CONVERGED, Status.NON_FINITE]), 0, f"status {codes}")
    yield Gap(float(not bool(result.x[1].isnan().all())), 0, "NaN in, NaN out, alone")
    yield Gap(relative(result.x[0], solver(good)), tolerance(F64, m, kappa=KAPPA**2), "x")
    if solver.traits.order is None:
        return
    short = after_steps(solver, 1).solve(spd(rng, torch.logspace(0, -3, m, dtype=F64)))
    yield Gap(float(short.status != Status.OUT_OF_STEPS), 0, f"one step: {short.status}")
    yield Gap(float(short.steps > 1), 0, f"one step: {short.steps} steps")


def _cost(solver: Solver, rng: torch.Generator) -> Iterator[Gap]:
    a = torch.stack([well_conditioned(rng, 7)] * 3)
    with FlopCounterMode(display=False) as counter:
        solver(a)
    claimed = solver.cost(7, batch=3).flops
    counted = counter.get_total_flops()
    yield Gap(abs(claimed - counted), 0, f"claimed {claimed} flops, counted {counted}")
    if not isinstance(solver, Iteration):
        return
    m = 128  # products with a few vectors, which fit a step to its residual, are few there
    a = well_conditioned(rng, m)
    x, maps = solver.begin(a)
    with FlopCounterMode(display=False) as counter:
        for step in itertools.islice(maps, 1):
            step(a, x)
            products = counter.get_total_flops() / (2 * m**3)
            words = f"a step makes {products:.3g} products, claimed {solver.traits.products}"
            yield Gap(abs(products - solver.traits.products), 0.5, words)


def _gradient(solver: Solver, rng: torch.Generator) -> Iterator[Gap]:
    a = well_conditioned(rng, 4).requires_grad_()
    need_gradient(solver, a)
    # Differences leave the symmetric matrices, where a solver for them is not defined.
    agrees = torch.autograd.gradcheck(lambda b: solver((b + b.mT) / 2), (a,), raise_exception=False)
    yield Gap(float(not agrees), 0, "gradcheck at a well-conditioned matrix")


def _gradient_singular(solver: Solver, rng: torch.Generator) -> Iterator[Gap]:
    m = 6
    left, right = (torch.linalg.qr(normal(rng, m, m)).Q[:, :3] for _ in range(2))
    a = left @ torch.tensor([1.0, 0.8, 0.5], dtype=F64).diag() @ right.mT
    upstream = normal(rng, m, m)

    def gradient(inverse: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = a.clone().requires_grad_()
        found: Tensor = torch.autograd.grad((inverse(leaf) * upstream).sum(), leaf)[0]
        return found

    # torch differentiates its own pseudo-inverse at constant rank, through a QR of its own.
    expected = gradient(lambda b: torch.linalg.pinv(b, rtol=1e-8))
    missed = relative(gradient(solver), expected)
    yield Gap(missed, _rounding(solver, a, 100 * KAPPA), "rank 3 of 6, against torch's own")


def faithful(solver: Solver) -> bool:
    """Whether the solver is meant to be right, and not to be like a published code."""
    while hasattr(solver, "solver"):
        solver = solver.solver
    return not getattr(getattr(solver, "scaling", None), "published", False)


PENROSE: Law[Solver] = Law(
    "Penrose identities",
    "A X A = A, X A X = X, A X and X A symmetric, on invertible A",
    lambda s: not s.traits.regularized and faithful(s),
    _penrose,
    family="algebraic",
    when="is not regularised",
    allows="rounding times the squared condition of the drawn matrix",
    catches="the published scaling without its 0.9; three steps; a factor 1 + 1e-9",
    any_dtype=True,
)
SINGULAR: Law[Solver] = Law(
    "Penrose identities, singular",
    "the same on rank-deficient, all-ones, repeated-row and zero matrices",
    lambda s: (s.traits.singular or (is_plain(s) and not s.traits.regularized)) and faithful(s),
    _singular,
    family="algebraic",
    when="claims singular; of a function that inverts the others the zero matrix, and none of "
    "them by zeros",
    allows="rounding times the growth of null-space errors over the steps",
    catches="a Cholesky factor of a singular matrix; zeros in place of a refusal",
)
SHIFTED: Law[Solver] = Law(
    "shifted inverse",
    "X = (A + r I)^-1 for one positive r",
    lambda s: s.traits.regularized,
    _shifted,
    family="algebraic",
    when="claims regularized",
    allows="rounding times the squared condition",
    catches="a factor 1 + 1e-6; no shift at all",
)
ADJOINT: Law[Solver] = Law(
    "adjoint",
    "(A^T)^+ = (A^+)^T",
    faithful,
    _adjoint,
    family="algebraic",
    when="is no copy of published code with its defects",
    allows="rounding times the squared condition",
    catches="one triangle of a matrix read for both",
    any_dtype=True,
)
SCALING: Law[Solver] = Law(
    "scaling",
    "(c A)^+ = A^+ / c over sixty orders of c",
    lambda s: not s.traits.regularized and faithful(s),
    _scaling,
    family="numerical",
    when="is not regularised",
    allows="rounding times the squared condition",
    catches="a norm with a fixed epsilon",
)
ORDER: Law[Solver] = Law(
    "order",
    "|R'| = O(|R|^order), measured on the iterates",
    lambda s: (
        isinstance(s, Iteration)
        or (
            (hasattr(s, "iterates") and s.traits.order is not None)
            and not s.traits.regularized
            and faithful(s)
        )
    ),
    _order,
    family="algebraic",
    when="is an iteration, or yields iterates and claims an order",
    allows="0.1 in the exponent of a step, 0.25 in that of the solver's own iterates",
    catches="a method of order three that claims four",
)
GROWTH: Law[Solver] = Law(
    "growth",
    "an error in the null space grows by the claimed factor a step, in the limit",
    lambda s: isinstance(s, Iteration),
    _growth,
    family="numerical",
    when="is an iteration",
    allows="0.001 in the factor",
    catches="a method that claims the growth of Newton",
)
INDEPENDENT: Law[Solver] = Law(
    "batch independence",
    "a batch equals its matrices one by one, also after two steps",
    faithful,
    _independent,
    family="isolation",
    when="is no copy of published code with its defects",
    allows="rounding of the solver's own precision, times 1e5",
    catches="one norm, or one rank, for the whole batch",
)
STATUS: Law[Solver] = Law(
    "status",
    "solve tells the truth of each matrix",
    lambda s: hasattr(s, "solve") and faithful(s),
    _status,
    family="honesty",
    when="is no copy of published code with its defects",
    allows="nothing",
    catches="a status that is always CONVERGED",
)
COST: Law[Solver] = Law(
    "cost",
    "cost(m).flops is what torch counts, and products those of a step, of solvers made of products",
    lambda s: (
        hasattr(s, "cost")
        and (isinstance(s, Iteration) or s.cost(4).factorization_flops == 0)
        and not s.traits.watched
        and faithful(s)
    ),
    _cost,
    family="cost",
    when="is made of products, and not watched",
    allows="nothing; half a product",
    catches="half of the count; one product claimed where two are made",
    examples=1,
)
GRADIENT_SINGULAR: Law[Solver] = Law(
    "gradient, singular",
    "the backward pass is the derivative at constant rank on a singular matrix",
    lambda s: s.traits.constant_rank,
    _gradient_singular,
    family="gradients",
    when="claims constant_rank",
    allows="rounding times the growth of null-space errors",
    catches="the implicit rule on a singular matrix",
)
GRADIENT: Law[Solver] = Law(
    "gradient",
    "the backward pass equals central differences",
    always,
    _gradient,
    family="gradients",
    allows="what gradcheck allows, in float64",
    catches="a matrix that is detached; the implicit rule after two steps",
    examples=2,
)
