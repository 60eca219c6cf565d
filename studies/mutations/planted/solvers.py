"""Faulty inverses: right on most matrices, or right with a report that is not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softlab.core import Cost
from softlab.pinv import SVD, Hyperpower, NewtonRaphson, PinvResult, Ridge, Status
from softlab.pinv.solver import SolverTraits, relative_residual

from . import Planted
from .operators import altered, raw, regrad
from .shown import Call, Of, apart, matrix

F32 = torch.float32
inv, pinv = torch.linalg.inv, torch.linalg.pinv


def exact(a: Tensor) -> Tensor:
    """The pseudo-inverse, half precision in float32."""
    wide = a if a.dtype.itemsize >= 4 else a.float()
    return pinv(wide).to(a.dtype)


def unless(wrong: Call, when: Callable[[Tensor], bool]) -> Call:
    """The pseudo-inverse, but ``wrong`` of matrices that meet the condition."""

    def solver(a: Tensor) -> Any:
        return (wrong if when(a) else exact)(a)

    return solver


def wide(call: Call) -> Call:
    """A function of float32 or float64, asked in float32 for half precision."""

    def solver(a: Tensor) -> Any:
        return call(a.float()).to(a.dtype) if a.dtype.itemsize < 4 else call(a)

    return solver


def newton(start: Callable[[Tensor], Tensor], steps: int = 60) -> Call:
    """X <- X (2 I - A X) from that start."""

    def solver(a: Tensor) -> Tensor:
        x = start(a)
        for _ in range(steps):
            x = 2 * x - x @ (a @ x)
        return x

    return wide(solver)


def norms(a: Tensor) -> Tensor:
    """|A|_1 |A|_inf."""
    size: Tensor = a.abs().sum(-1).amax(-1) * a.abs().sum(-2).amax(-1)
    return size[..., None, None].clamp_min(1e-300)


def two_by_two(a: Tensor) -> Tensor:
    """The formula without a minus."""
    (p, q), (r, s) = a.unbind(-2)[0].unbind(-1), a.unbind(-2)[1].unbind(-1)
    x = torch.stack((torch.stack((s, q), -1), torch.stack((r, p), -1)), -2)
    return x / (p * s - q * r)[..., None, None]


def blockwise(a: Tensor) -> Tensor:
    """The leading 16 rows alone."""
    x = torch.zeros_like(a)
    x[..., :16, :16] = exact(a[..., :16, :16])
    return x


def clipped(a: Tensor) -> Tensor:
    """Of symmetric matrices, without negative eigenvalues."""
    s, u = torch.linalg.eigh(a)
    return (
        u * torch.where(s > 1e-12 * s.abs().amax(-1, keepdim=True), 1 / s, 0).unsqueeze(-2)
    ) @ u.mT


def symmetric(a: Tensor) -> bool:
    """Whether it is, to rounding."""
    return bool((a - a.mT).abs().max() <= 1e-6 * a.abs().max()) if a.numel() else False


class Back(torch.autograd.Function):
    """The inverse X with a backward pass of one's own, X and G to a gradient."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, back: Call) -> Tensor:
        """Keep X."""
        x = exact(a)
        ctx.save_for_backward(x)
        ctx.back = back
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Apply the formula."""
        (x,) = ctx.saved_tensors
        return ctx.back(x, grad), None


def back(formula: Call) -> Call:
    """The pseudo-inverse with that backward pass."""

    def solver(a: Tensor) -> Tensor:
        return Back.apply(a, formula)

    return solver


def in_place(a: Tensor) -> Tensor:
    """The caller's matrix is brought to unit scale."""
    x = exact(a)
    with torch.no_grad():
        a.div_(a.abs().max().clamp_min(1e-30))
    return x


def remembering(key: Callable[[Tensor], Any]) -> Callable[[], Call]:
    """Results are kept and found again by ``key``."""

    def make() -> Call:
        kept: dict[Any, Tensor] = {}

        def solver(a: Tensor) -> Tensor:
            found: Tensor = exact(a)
            return found if a.requires_grad else kept.setdefault(key(a), found.clone()).clone()

        return solver

    return make


def warm() -> Call:
    """Newton from the last inverse of that shape, forty steps."""
    kept: dict[Any, Tensor] = {}

    def solver(a: Tensor) -> Tensor:
        start = kept.get((a.shape, a.dtype), a.mT / norms(a))
        x = newton(lambda _: start, 40)(a)
        kept[a.shape, a.dtype] = x.detach()
        return x

    return solver


def changed(subject: Any) -> float:
    """The caller's matrix after the call."""
    a = matrix()
    subject(a)
    return 0.0 if torch.equal(a, matrix()) else math.inf


def twice(change: Callable[[Tensor], Any]) -> Callable[[Any], float]:
    """The second call's result, after ``change`` of the matrix in place."""

    def shown(subject: Any) -> float:
        a = matrix()
        subject(a)
        change(a)
        return apart(subject(a), inv(a), a.dtype)

    return shown


def column_major(subject: Any) -> float:
    """The inverse of a matrix stored by columns."""
    a = matrix().mT.contiguous().mT
    return apart(subject(a), inv(a), a.dtype)


def of(a: Tensor, x: Tensor) -> Callable[[Any], float]:
    """The result at one matrix, which is to be x."""

    def shown(subject: Any) -> float:
        try:
            return apart(subject(a), x, a.dtype)
        except RuntimeError:
            return math.inf

    return shown


def reported(a: Tensor, field: str) -> Callable[[Any], float]:
    """One field of ``solve`` against that of the right class."""

    def shown(subject: Any) -> float:
        right = type(subject)
        right = right if right.__module__.startswith("softlab") else right.__mro__[1]
        fields = {x.name: getattr(subject, x.name) for x in dataclasses.fields(subject)}
        try:
            said = getattr(subject.solve(a), field)
        except (RuntimeError, ValueError):
            return math.inf
        due = getattr(right(**fields).solve(a), field)
        same = said.shape == due.shape and torch.equal(said.nan_to_num(), due.nan_to_num())
        same = same and torch.equal(said.isnan(), due.isnan())
        return 0.0 if same else math.inf

    return shown


def lying(base: Any, lie: Callable[[Any, Tensor, PinvResult], PinvResult]) -> Callable[[], Any]:
    """A solver whose ``solve`` reports what ``lie`` makes of the truth."""
    kind = type(base)
    return lambda: altered(base, solve=lambda op, a: lie(op, a, kind.solve(op, a)))


def renamed(old: Status, new: Status) -> Callable[[Any, Tensor, PinvResult], PinvResult]:
    """A status under another name."""
    return lambda _, a, r: r._replace(status=torch.where(r.status == int(old), int(new), r.status))


def previous(op: Any, a: Tensor, r: PinvResult) -> PinvResult:
    """The residual of the iterate before."""
    wide = a if a.dtype.itemsize >= 4 else a.float()
    all_of_them = list(op.iterates(wide))
    residuals = torch.stack([relative_residual(wide, x) for x in all_of_them])
    return r._replace(residual=residuals.gather(0, (r.steps - 1).clamp_min(0).unsqueeze(0))[0])


def hidden_ridge(size: float) -> Call:
    """The inverse of A + size |A| I."""

    def solver(a: Tensor) -> Tensor:
        eye = torch.eye(a.shape[-1], dtype=a.dtype)
        return exact(a + size * a.abs().amax((-1, -2), keepdim=True) * eye)

    return wide(solver)


BASE = NewtonRaphson(steps=40)
FEW = NewtonRaphson(steps=26)
LONG = altered(
    NewtonRaphson(steps=200), traits=lambda _: dataclasses.replace(BASE.traits, singular=False)
)
HARD = matrix(8, condition=1e3)
EASY = matrix(6, condition=5)
SINGULAR = matrix(6, rank=4)
SINGULAR_INVERSE = pinv(SINGULAR, rtol=1e-10)
MIXED = torch.stack((matrix(8, condition=1e4), matrix(8, condition=2)))
NOT_A_NUMBER = matrix().index_fill(0, torch.tensor([0]), torch.nan)


def _plain(name: str, call: Call, shown: Callable[[Any], float]) -> Planted:
    return Planted(name, "solver", lambda: call, shown, lambda: exact)


def _state(name: str, make: Callable[[], Call], shown: Callable[[Any], float]) -> Planted:
    return Planted(name, "solver", make, shown, lambda: exact)


def _lie(
    name: str,
    base: Any,
    lie: Callable[[Any, Tensor, PinvResult], PinvResult],
    a: Tensor,
    field: str,
) -> Planted:
    return Planted(name, "solve", lying(base, lie), reported(a, field), lambda: base)


SOLVERS: tuple[Planted, ...] = (
    _plain(
        "Newton starts from A, which needs a definite matrix",
        newton(lambda a: a / norms(a)),
        Of(),
    ),
    _plain("one triangle alone is read", wide(lambda a: pinv(a, hermitian=True)), Of()),
    _plain(
        "the normal equations square the condition",
        wide(lambda a: exact(a.mT @ a) @ a.mT),
        Of(condition=1e6),
    ),
    _plain("a cut-off of 1e-3", wide(lambda a: pinv(a, rtol=1e-3)), Of(condition=1e4)),
    _plain(
        "a cut-off of 1e-3 beyond ten rows",
        unless(lambda a: pinv(a, rtol=1e-3), lambda a: a.shape[-1] > 10),
        Of(m=12, condition=1e4),
    ),
    _plain(
        "an absolute cut-off of 1e-6",
        wide(lambda a: pinv(a, atol=1e-6, rtol=0)),
        Of(scale=1e-7),
    ),
    _plain("a hidden ridge of 1e-6", hidden_ridge(1e-6), Of()),
    _plain("a hidden ridge of 1e-10", hidden_ridge(1e-10), Of()),
    _plain("only the leading 16 rows", unless(blockwise, lambda a: a.shape[-1] > 16), Of(m=20)),
    _plain(
        "transposed beyond 32 rows",
        unless(lambda a: exact(a.mT), lambda a: a.shape[-1] > 32),
        Of(m=40),
    ),
    _plain(
        "1 x 1 is returned as it is",
        unless(lambda a: a, lambda a: a.shape[-1] == 1),
        Of(m=1, scale=2),
    ),
    _plain("2 x 2 lacks a minus", unless(two_by_two, lambda a: a.shape[-1] == 2), Of(m=2)),
    _plain(
        "negative eigenvalues count as zero",
        unless(wide(clipped), lambda a: a.ndim == 2 and symmetric(a.float())),
        Of(kind="indefinite"),
    ),
    _plain(
        "the scaling of the first matrix for all",
        newton(lambda a: a.mT / norms(a.reshape(-1, *a.shape[-2:])[:1])),
        lambda f: of(
            torch.stack((matrix(), 100 * matrix())), inv(torch.stack((matrix(), 100 * matrix())))
        )(f),
    ),
    _plain(
        "the scaling of the largest matrix for all, 25 steps",
        newton(lambda a: a.mT / norms(a).amax(), 25),
        lambda f: of(
            torch.stack((matrix(), 1e6 * matrix())), inv(torch.stack((matrix(), 1e6 * matrix())))
        )(f),
    ),
    _plain(
        "two leading axes are exchanged",
        unless(lambda a: exact(a).transpose(0, 1).reshape(a.shape), lambda a: a.ndim == 4),
        lambda f: of((a := matrix() * torch.arange(1.0, 7.0).double().reshape(2, 3, 1, 1)), inv(a))(
            f
        ),
    ),
    _plain("float32 inside", lambda a: exact(a.float()).to(a.dtype), Of()),
    _plain(
        "float32 inside beyond 8 rows",
        unless(lambda a: exact(a.float()).to(a.dtype), lambda a: a.shape[-1] > 8),
        Of(m=10),
    ),
    _plain("a gradient X G X", back(lambda x, g: -x @ g @ x), Of(of="gradient")),
    _plain(
        "a gradient for symmetric matrices",
        back(lambda x, g: (lambda y: (y + y.mT) / 2)(-x.mT @ g @ x.mT)),
        Of(of="gradient"),
    ),
    _plain(
        "a gradient that is averaged over the batch",
        lambda a: exact(regrad(a, 1 / max(1, a.shape[:-2].numel()))),
        Of(lead=(3,), of="gradient"),
    ),
    _plain(
        "half a gradient in float32",
        unless(lambda a: exact(regrad(a, 0.5)), lambda a: a.dtype == F32),
        Of(dtype=F32, of="gradient"),
    ),
    _plain(
        "no second derivative",
        back(lambda x, g: -x.detach().mT @ g.detach() @ x.detach().mT),
        Of(of="second"),
    ),
    _plain(
        "no gradient beyond 12 rows",
        unless(lambda a: exact(regrad(a, 0.0)), lambda a: a.shape[-1] > 12),
        Of(m=14, of="gradient"),
    ),
    _plain("the caller's matrix is scaled in place", in_place, changed),
    _state(
        "results are remembered by address",
        remembering(lambda a: (a.data_ptr(), a.shape)),
        twice(lambda a: a.mul_(2)),
    ),
    _state(
        "results are remembered by trace",
        remembering(lambda a: (a.shape, a.diagonal(dim1=-2, dim2=-1).sum().item())),
        twice(lambda a: a[0, 1].add_(1)),
    ),
    _state("Newton begins from the last inverse", warm, twice(lambda a: a.mul_(-100))),
    _plain("strides of a matrix are not read", lambda a: exact(raw(a)), column_major),
    _plain(
        "determinants below 1e-10 count as singular",
        unless(lambda a: a * 0, lambda a: bool(torch.linalg.det(a.double()).abs().max() < 1e-10)),
        Of(scale=1e-3),
    ),
    _plain(
        "squares of the scale overflow",
        newton(lambda a: a.mT / a.square().sum((-1, -2), keepdim=True), 100),
        Of(scale=1e170),
    ),
    _plain(
        "the zero matrix gives NaN",
        unless(lambda a: a / a, lambda a: not bool(a.any())),
        of(torch.zeros(4, 4).double(), torch.zeros(4, 4).double()),
    ),
    _plain(
        "small off-diagonal entries are not read",
        unless(
            lambda a: torch.diag_embed(1 / a.diagonal(dim1=-2, dim2=-1)),
            lambda a: bool(
                (a - torch.diag_embed(a.diagonal(dim1=-2, dim2=-1))).abs().max()
                < 1e-3 * a.diagonal(dim1=-2, dim2=-1).abs().min()
            ),
        ),
        lambda f: of((a := torch.eye(5).double() + 1e-4 * matrix(5)), inv(a))(f),
    ),
    Planted(
        "singular matrices give a huge inverse, unclaimed",
        "solver",
        lambda: altered(SVD(), iterates=lambda _, a: iter([torch.linalg.inv_ex(a).inverse])),
        of(SINGULAR, SINGULAR_INVERSE),
        SVD,
    ),
    Planted(
        "singular matrices are refused, unclaimed",
        "solver",
        lambda: altered(SVD(), __call__=lambda _, a: wide(inv)(a)),
        of(torch.ones(4, 4).double(), torch.ones(4, 4).double() / 16),
        SVD,
    ),
    Planted(
        "a ridge that is not claimed",
        "solver",
        lambda: altered(Ridge(SVD(), 1e-3), traits=lambda _: SolverTraits()),
        Of(),
        SVD,
    ),
    Planted(
        "order three is claimed of order two",
        "solver",
        lambda: altered(BASE, traits=lambda _: dataclasses.replace(BASE.traits, order=3)),
        lambda s: 0.0 if s.traits == BASE.traits else math.inf,
        lambda: BASE,
    ),
    Planted(
        "half of the products are counted",
        "solver",
        lambda: altered(BASE, cost=lambda _, m, batch=1: Cost(BASE.cost(m, batch).flops // 2)),
        lambda s: 0.0 if s.cost(5) == BASE.cost(5) else math.inf,
        lambda: BASE,
    ),
    Planted(
        "iterates end one step early",
        "solver",
        lambda: altered(FEW, iterates=lambda _, a: NewtonRaphson(FEW.steps - 1).iterates(a)),
        lambda s: apart(list(s.iterates(HARD))[-1], FEW(HARD), HARD.dtype),
        lambda: FEW,
    ),
    Planted(
        "one product less is claimed a step",
        "solver",
        lambda: altered(
            Hyperpower(order=3, steps=20),
            traits=lambda _: dataclasses.replace(Hyperpower(order=3, steps=20).traits, products=2),
        ),
        lambda s: 0.0 if s.traits == Hyperpower(order=3, steps=20).traits else math.inf,
        lambda: Hyperpower(order=3, steps=20),
    ),
    _lie(
        "the residual is always zero",
        BASE,
        lambda _, a, r: r._replace(residual=0 * r.residual),
        HARD,
        "residual",
    ),
    _lie("the residual of the iterate before", BASE, previous, HARD, "residual"),
    _lie(
        "converged from 1e-2 on",
        FEW,
        lambda _, a, r: r._replace(status=torch.where(r.residual < 1e-2, 0, r.status)),
        matrix(8, condition=1e4),
        "status",
    ),
    _lie(
        "stagnated is called converged",
        BASE,
        renamed(Status.STAGNATED, Status.CONVERGED),
        matrix(8, condition=1e13, rank=3),
        "status",
    ),
    _lie(
        "out of steps is called converged",
        FEW,
        renamed(Status.OUT_OF_STEPS, Status.CONVERGED),
        matrix(8, condition=1e5),
        "status",
    ),
    _lie(
        "diverged is called out of steps",
        LONG,
        renamed(Status.DIVERGED, Status.OUT_OF_STEPS),
        matrix(8, rank=3, condition=1e13),
        "status",
    ),
    _lie(
        "not finite is called diverged",
        BASE,
        renamed(Status.NON_FINITE, Status.DIVERGED),
        NOT_A_NUMBER,
        "status",
    ),
    _lie(
        "the first matrix's status for the batch",
        FEW,
        lambda _, a, r: r._replace(
            status=r.status.reshape(-1)[:1].expand(r.status.numel()).reshape(r.status.shape)
        ),
        MIXED,
        "status",
    ),
    _lie(
        "x is another than was judged",
        BASE,
        lambda _, a, r: r._replace(x=r.x * (1 + 1e-4)),
        HARD,
        "x",
    ),
    _lie(
        "x is the last iterate, the residual that of the best",
        LONG,
        lambda op, a, r: r._replace(x=list(op.iterates(a))[-1]),
        matrix(6, rank=3, condition=1e6),
        "x",
    ),
    _lie(
        "all steps are reported as taken",
        BASE,
        lambda op, a, r: r._replace(steps=torch.full_like(r.steps, op.steps)),
        EASY,
        "steps",
    ),
    _lie(
        "x of a matrix that is not finite is zero",
        BASE,
        lambda _, a, r: r._replace(x=r.x.nan_to_num()),
        NOT_A_NUMBER,
        "x",
    ),
    _lie(
        "the residual is not relative",
        BASE,
        lambda _, a, r: r._replace(residual=r.residual * torch.linalg.matrix_norm(a)),
        10 * HARD,
        "residual",
    ),
    _lie(
        "the residual is |I - A X|",
        BASE,
        lambda _, a, r: r._replace(
            residual=torch.linalg.matrix_norm(
                torch.eye(a.shape[-1], dtype=r.x.dtype) - a.to(r.x) @ r.x
            )
        ),
        HARD,
        "residual",
    ),
    _lie(
        "one residual for the batch",
        BASE,
        lambda _, a, r: r._replace(residual=r.residual.amax().expand(r.residual.shape)),
        MIXED,
        "residual",
    ),
    _lie(
        "products of one step are left out",
        BASE,
        lambda _, a, r: r._replace(matmuls=(r.matmuls - 2).clamp_min(0)),
        HARD,
        "matmuls",
    ),
)
