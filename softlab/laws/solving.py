"""Laws of solvers at every size and kind of matrix, and of what ``solve`` says of its result."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softlab.laws.consistency import collecting, still_held
from softlab.laws.inverse import KAPPA, faithful, relative, spd
from softlab.laws.law import (
    Gap,
    Law,
    after_steps,
    asked,
    need_gradient,
    normal,
    steps_of,
    tolerance,
)
from softlab.laws.purity import process
from softlab.laws.situations import laid
from softlab.laws.twins import twin
from softlab.pinv import Iteration, PinvResult, Solver, Status
from softlab.pinv.stopping import judge

F64 = torch.float64
SIZES_DRAWN = (1, 2, 3, 7, 16, 17, 33, 64)
LARGE = (200, 130, 100, 257, 128)
"""Rows of one more draw of each seed in turn."""
MANY = 70
"""Matrices of the largest batch, which has three rows in each."""
SCALES = (1.0, 3.0, 0.25, 2.0, 5.0, 0.5)
"""Factors of the matrices of a batch."""
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
    general = kinds["definite"] @ turn
    iterates = solver.traits.order is not None
    if iterates and general.abs().sum(-2).max() < general.abs().sum(-1).max():
        general = general.mT.contiguous()  # a start from |A|_1 presumes sigma_1 <= |A|_1
    kinds |= {
        "indefinite": spd(rng, spectrum * signs),
        "negative definite": -spd(rng, spectrum),
        "not symmetric": general,
    }
    if iterates:
        return kinds
    upper = torch.linalg.qr(general).R
    return kinds | {
        "upper triangular": upper,
        "lower triangular": upper.mT.contiguous(),
        "no diagonal": spectrum.diag().roll(1, -1),  # and no singular value twice
    }


def _sizes(solver: Any, rng: torch.Generator) -> Iterator[Gap]:
    precision = _precision(solver)
    for m in (*SIZES_DRAWN, LARGE[asked() % len(LARGE)]):
        kinds = _kinds(solver, m, KAPPA, rng)
        if m > max(SIZES_DRAWN):  # one symmetric matrix and one that is not
            kinds = {
                where: kinds[where] for where in ("definite", "not symmetric") if where in kinds
            }
        alone = {where: solver(a).double() for where, a in kinds.items()}
        eye, allowed = torch.eye(m, dtype=F64), tolerance(precision, m, kappa=KAPPA**2)
        for where, a in kinds.items():
            yield Gap(relative(a @ alone[where], eye), allowed, f"A X = I, {where}, m={m}")
            single = relative(solver(a.float()), alone[where])
            most = tolerance(torch.float32, m, kappa=KAPPA**2)
            yield Gap(single, most, f"in float32 as in float64, {where}, m={m}")
        # More than eight matrices, of which no two are equal.
        most = MANY if m == 3 else 16 if m <= max(SIZES_DRAWN) else 2
        scales = itertools.islice(itertools.cycle(SCALES), -(-most // len(kinds)))
        many = [(where, c) for c in scales for where in kinds]
        batch = torch.stack([kinds[where] * c for where, c in many])
        for lead in ((2, 1, -1), (-1,), (2, -1))[: 1 if m > 7 else 3]:
            together = solver(batch.reshape(*lead, m, m)).reshape(-1, m, m).double()
            for i, (where, c) in enumerate(many):
                where_ = f"{where}, m={m}, matrix {i} of {len(many)}, {len(lead)} dimensions lead"
                yield Gap(relative(together[i] * c, alone[where]), allowed, where_)
    yield from _kept(solver, rng)


def _kept(solver: Any, rng: torch.Generator) -> Iterator[Gap]:
    """Whether A X projects, where A is invertible: small singular values are taken for zero."""
    m = 6
    # A float32 inside has no more digits than the first two ask for.
    for kappa in (1e3, 1e5, 1e7, 1e9)[: 4 if _precision(solver) == F64 else 2]:
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
        fields = (result.residual, result.status, result.steps, result.matmuls)
        shapes = [tuple(x.shape) for x in fields]
        wrong = shapes != [(len(batch),)] * 4 or result.residual.dtype != batch.dtype
        yield Gap(float(wrong), 0, f"m={m}: {result.residual.dtype}, shapes {shapes}")
        for i, (kind, a) in enumerate(cases.items()):
            where = f"{kind}, m={m}, condition {kappa:g}"
            status = Status(int(result.status[i]))
            true, floor = _residual(a, result.x[i], eps)
            yield from _said(float(result.residual[i]), true, floor, where)
            if status is Status.CONVERGED:
                allowed = math.sqrt(eps) + floor
                yield Gap(true, allowed, f"{where}: called converged, residual of x")
            if status is Status.DIVERGED:
                yield Gap(0.5, max(true, 0.0) if true == true else 1.0, f"{where}: called diverged")
            alone = solver.solve(a)
            same = int(alone.status) == int(status) or floor > math.sqrt(eps)
            if not same:  # a product of a batch rounds otherwise; where that decides both are right
                nudges = (1 + 2 * eps * normal(rng, 12, m, m, dtype=F64).to(a)).unbind()
                same = int(status) in {int(solver.solve(a * nudge).status) for nudge in nudges}
            yield Gap(
                float(not same), 0, f"{where}: alone {alone.status}, in a batch {int(status)}"
            )
    if not asked():  # once
        yield from _judged(solver, rng)
    if steps_of(solver) == 0 or solver.traits.order is None:
        return
    a = spd(rng, torch.logspace(0, -4, 12, dtype=F64))
    for steps in (1, 2, 3):
        short = after_steps(solver, steps).solve(a)
        true = relative(a @ short.x.double() @ a, a)
        lied = int(short.status) == Status.CONVERGED and true > math.sqrt(eps)
        yield Gap(float(lied), 0, f"{steps} steps at condition 1e4: converged, residual {true:.3g}")


def _residual(a: Tensor, x: Tensor, eps: float) -> tuple[float, float]:
    """|A X A - A|_F / |A|_F, and how much of it the rounding of its products may be."""
    a, x = a.double(), x.double()
    # Products of |A| |X| |A| leave so much, whoever multiplies.
    floor = 10 * eps * len(a) ** 2 * float(x.abs().amax() * a.abs().amax())
    return relative(a @ x @ a, a), floor


def _said(said: float, true: float, floor: float, where: str) -> Iterator[Gap]:
    """A residual that ``solve`` reports against that of its x."""
    if not math.isnan(true):
        words = f"{where}: residual said {said:.3g}, is {true:.3g}"
        yield Gap(abs(said - true), HONEST * true + floor, words)


def _judged(solver: Any, rng: torch.Generator) -> Iterator[Gap]:
    """Status and residual against the iterates', on matrices that end in every way.

    Where a larger tolerance, or rows and columns in another order, give another status, rounding
    decides, and nothing is asked of it.
    """
    if not hasattr(solver, "iterates") or solver.traits.closing:
        return
    m, own = 8, steps_of(solver)
    hard, soft = _ends(m, rng), _ends(m, rng, easy=True)
    for dtype, steps, batch in (
        *((F64, x, soft) for x in {own, *(min(own, y) for y in (6, 9))}),
        *((F64, x, hard) for x in {own, min(own, 3), 100 if own else 0}),
        (torch.float32, 60 if own else 0, hard),
    ):
        subject = after_steps(solver, steps)
        a = batch.to(dtype)
        result = subject.solve(a)
        yield from _steps(subject, a, result)
        eps = max(torch.finfo(x).eps for x in (dtype, _precision(solver)))
        for i, said in enumerate(result.residual.tolist()):
            measured = _residual(a[i], result.x[i], eps)
            yield from _said(said, *measured, f"matrix {i}, {dtype}, {steps} steps")
        try:
            due = judge(subject.iterates, a, subject.traits).status
        except Exception:  # a call may refuse what ``solve`` judges: a singular matrix
            continue
        if torch.equal(result.status, due):
            continue
        wide = math.sqrt(torch.finfo(dtype).eps) / 10
        order = torch.randperm(m, generator=rng, device="cpu")
        others = ((a, wide), (a[:, order][:, :, order], None))
        sure = torch.stack([
            judge(subject.iterates, b, subject.traits, tolerance=tolerance).status == due
            for b, tolerance in others
        ]).all(0)  # fmt: skip
        for i in sure.nonzero()[:, 0].tolist():
            said, found = (Status(int(x[i])) for x in (result.status, due))
            where = f"matrix {i}, {dtype}, {steps} steps: {said.name}, its iterates {found.name}"
            yield Gap(float(said != found), 0, where)


def _ends(m: int, rng: torch.Generator, *, easy: bool = False) -> Tensor:
    """Matrices on which iterations converge, stop, run out of steps or diverge; or none does."""

    def made(kappa: float, rank: int) -> Tensor:
        spectrum = torch.zeros(m, dtype=F64)
        spectrum[:rank] = torch.logspace(0, -math.log10(kappa), rank, dtype=F64)
        return spd(rng, spectrum)

    if easy:
        return torch.stack([made(kappa, m) for kappa in torch.logspace(0.3, 3, 12).tolist()])
    full = [made(kappa, m) for kappa in (4.0, 1e2, 1e4, 1e8, 1e12, 1e16)]
    short = [made(kappa, m - 2) for kappa in (4.0, 1e6, 1e9)]
    zero, ones = torch.zeros(m, m, dtype=F64), torch.ones(m, m, dtype=F64)
    return torch.stack([*full, *short, zero, ones])


def _steps(solver: Any, batch: Tensor, result: PinvResult) -> Iterator[Gap]:
    """The iterate that the steps name is the x that is returned, and took so many products."""
    if not hasattr(solver, "iterates") or solver.traits.closing:
        return
    given, iterates = [], []
    for x in solver.iterates(batch):
        given.append(x)
        iterates.append(x.to(torch.float64, copy=True))
    changed = sum(
        not torch.equal(x.to(torch.float64).nan_to_num(), y.nan_to_num())
        for x, y in zip(given, iterates, strict=True)
    )
    yield Gap(changed, 0, f"{changed} of {len(given)} iterates changed after they were given")
    for i, steps in enumerate(result.steps.tolist()):
        where = f"m={batch.shape[-1]}, matrix {i}: x is the iterate of step {steps}"
        yield Gap(float(not 0 <= steps < len(iterates)), 0, where)
        if not bool(result.x[i].isfinite().all()):
            continue
        missed = relative(iterates[steps][i], result.x[i].double())
        yield Gap(missed, HONEST, where)
        if isinstance(solver, Iteration):
            products = steps * solver.traits.products
            yield Gap(abs(int(result.matmuls[i]) - products), 0, f"{steps} steps, products")


def _gradient(solver: Any, rng: torch.Generator) -> Iterator[Gap]:
    if solver.traits.definite or solver.traits.regularized:
        return
    for m, lead in ((1, ()), (2, ()), (5, ()), (17, ()), (3, (2, -1)), (33, (-1,))):
        kinds = _kinds(solver, m, KAPPA, rng)
        cases = {f"{kind}, m={m}": a for kind, a in kinds.items()}
        if lead:
            batch = torch.stack([a * c for c in SCALES[:2] for a in kinds.values()])
            cases = {f"a batch of {len(batch)}, m={m}": batch.reshape(*lead, m, m)}
        # Each step's backward products round.
        steps = 1 + steps_of(solver)
        for where, a in cases.items():
            upstream = normal(rng, *a.shape, dtype=F64).cpu()
            need_gradient(solver, a.clone().requires_grad_())
            x = torch.linalg.inv(a)
            due = -x.mT @ upstream @ x.mT  # d<G, A^-1> = -<A^-T G A^-T, dA>
            for dtype in (F64, torch.float32):
                leaf = a.clone().to(dtype).requires_grad_()
                (mine,) = torch.autograd.grad((solver(leaf) * upstream.to(dtype)).sum(), leaf)
                precision = _precision(solver) if dtype == F64 else dtype
                allowed = tolerance(precision, m, kappa=KAPPA**4) * steps
                allowed = allowed if dtype == F64 else min(allowed, 0.1)
                missed = float(_relative(mine, _along(a, mine, due)).max())
                yield Gap(missed, allowed, f"{dtype}, -A^-T G A^-T, {where}")


def _along(a: Tensor, mine: Tensor, due: Tensor) -> Tensor:
    """The gradient that is due; its symmetric part where matrix and gradient are symmetric.

    That is the gradient among symmetric matrices, as torch's own of a Cholesky factor.
    """
    alike = [
        torch.equal(a, a.mT),
        float(_relative(mine, mine.mT.double()).max()) < math.sqrt(torch.finfo(mine.dtype).eps),
    ]
    return (due + due.mT) / 2 if all(alike) else due


def _relative(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|_F / |y|_F of each matrix."""
    miss: Tensor = torch.linalg.matrix_norm(x.double() - y) / torch.linalg.matrix_norm(y)
    return miss


def _traces(solver: Any, rng: torch.Generator) -> Iterator[Gap]:
    for which in (0, 1):
        for where, a in _kinds(solver, 4 + which, KAPPA, rng).items():
            with process(which):  # what a first call imports or compiles has settings of its own
                solver(a)
            for how, given in {"": a, "transposed in memory": a.mT.contiguous().mT}.items():
                kept = given.clone()
                with process(which) as changed:
                    x = solver(given)
                    named = changed()
                said = f"{where} {how}"
                yield Gap(float(bool(named)), 0, f"{said}: {named} of the process changed")
                same = torch.equal(given, kept)
                yield Gap(float(not same), 0, f"{said}: the caller's matrix was changed")
                shared = x.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
                yield Gap(float(shared), 0, f"{said}: the inverse lies in the matrix's memory")
                yield Gap(float(x.requires_grad), 0, f"{said}: a gradient that nobody asked for")
    yield from _remembered(solver, rng)
    with collecting():
        for graph in (False, True):
            alive = still_held(solver, [_kinds(solver, 5, KAPPA, rng)["definite"]], graph=graph)
            yield Gap(alive, 0, f"the matrix is still held after the call, graph: {graph}")


LAYOUTS = ("transposed", "offset", "strided", "expanded")


def _remembered(solver: Any, rng: torch.Generator) -> Iterator[Gap]:
    """What memory holds changes no answer: other layouts, other values there, earlier calls."""
    m = 6
    allowed = tolerance(_precision(solver), m, kappa=KAPPA**2)
    kinds = _kinds(solver, m, KAPPA, rng)
    twins = twin(solver), twin(solver)
    for where, a in kinds.items():
        x = solver(a)
        before = x.clone()
        for layout in LAYOUTS:
            for count in (1, 3):
                given = laid(layout, torch.stack([a] * count) if count > 1 else a)
                missed = max(relative(y, before) for y in solver(given).reshape(-1, m, m))
                yield Gap(missed, allowed, f"{where}, {count} of them {layout} in memory")
        given = a.clone()
        solver(given)
        given *= 3  # a cache by address, or by shape, would answer for what is there no more
        missed = relative(solver(given), solver(given.clone()))
        yield Gap(missed, allowed, f"{where}, tripled where it lies")
        same = torch.equal(x, before)
        yield Gap(float(not same), 0, f"{where}: an earlier inverse changed")
        leaf = a.clone().requires_grad_()
        missed = relative(solver(leaf).detach(), before)
        yield Gap(missed, allowed, f"{where}, with a graph")
    # Of a size that nothing draws, what is kept is kept of the first.
    first, *_, last = _kinds(solver, 43, KAPPA, rng).values()
    twins[0](3 * first)
    missed = relative(twins[0](last), twins[1](last))
    yield Gap(missed, allowed, "a matrix of 43 rows, after another as large")


def _not_finite(solver: Any, rng: torch.Generator) -> Iterator[Gap]:
    for where, a in _kinds(solver, 5, KAPPA, rng).items():
        for place in ((0, 0), (3, 1)):
            given = a.clone()
            given[place] = given[place[::-1]] = math.nan
            try:
                hidden = bool(solver(given).isfinite().all())
            except Exception:  # a refusal hides nothing
                continue
            yield Gap(float(hidden), 0, f"{where}, NaN at {place}: all of the inverse is finite")


TRACES: Law[Solver] = Law(
    "leaves no trace",
    "a call changes neither the matrix, an earlier inverse nor any setting of the process, holds "
    "no matrix, asks no gradient itself, and answers alike in any layout and after any calls",
    faithful,
    _traces,
    family="honesty",
    when="is no copy of published code with its defects",
    allows="nothing; rounding where memory is laid out otherwise",
    catches="a default dtype that is set; a seeded global generator; a cache by address; memory "
    "read as it lies",
    examples=1,
)
SHOWN: Law[Solver] = Law(
    "nothing is hidden",
    "NaN in a matrix is refused, or seen in the inverse",
    faithful,
    _not_finite,
    family="numerical",
    when="is no copy of published code with its defects",
    allows="nothing",
    catches="matrices through nan_to_num",
    examples=1,
)
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
