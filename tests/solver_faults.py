"""Planted faults: for every law of solvers, those that claim what they do not do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from softlab import laws
from softlab.core import Cost
from softlab.pinv import (
    SVD,
    Cholesky,
    ImplicitGradient,
    NewtonRaphson,
    NormProduct,
    NystromformerCubic,
    Ridge,
    Status,
)


def by_rank_of_the_batch(a):
    """The smallest rank of a batch is taken for that of every matrix."""
    u, s, v = torch.linalg.svd(a)
    rank = int((s > 1e-12 * s.amax(-1, keepdim=True)).sum(-1).min())
    return (v[..., :rank, :].mT / s[..., None, :rank]) @ u[..., :rank].mT


def by_the_first(a):
    """The first matrix decides whether all of a batch are inverted."""
    first = a.reshape(-1, *a.shape[-2:])[0]
    singular = int(torch.linalg.matrix_rank(first.detach())) < len(first)
    return torch.linalg.pinv(a) if singular else torch.linalg.inv_ex(a).inverse


@dataclass(frozen=True)
class Yielding(ImplicitGradient):
    """A solver with ``iterates`` and no ``begin``, and claims of its own."""

    claims: Any = None

    @property
    def traits(self):
        return dataclasses.replace(self.solver.traits, **self.claims)


@dataclass(frozen=True)
class BatchWide(NormProduct):
    """The published Nystromformer's scaling: one norm for the whole batch."""

    factor: float = 1.0

    def __call__(self, a):
        magnitude = a.abs()
        return self.factor * a.mT / (magnitude.sum(-2).max() * magnitude.sum(-1).max())


@dataclass(frozen=True)
class FlooredNorm(NormProduct):
    """Guards a norm that depends on the scale with a fixed epsilon."""

    factor: float = 1.8

    def __call__(self, a):
        norm = a.abs().sum(-2).amax(-1)[..., None, None]
        return 1.8 * a.mT / (norm.square() + 1e-6)


def gradient_of(x, factor):
    """The same values with that multiple of the gradient."""
    return x.detach() + factor * (x - x.detach())


@dataclass(frozen=True)
class FaultySolver:
    """A solver whose claims, cost, status or gradient differ from what it does."""

    solver: Any
    claims: dict[str, Any] = field(default_factory=dict)
    halved_cost: bool = False
    always_converged: bool = False
    detached: bool = False
    factor: float = 1.0

    @property
    def traits(self):
        return dataclasses.replace(self.solver.traits, **self.claims)

    @property
    def steps(self):
        return self.solver.steps

    def begin(self, a):
        return self.solver.begin(a)

    def __call__(self, a):
        return self.factor * self.solver(a.detach() if self.detached else a)

    def iterates(self, a):
        return self.solver.iterates(a)

    def solve(self, a):
        result = self.solver.solve(a)
        if self.always_converged:
            return result._replace(status=torch.full_like(result.status, Status.CONVERGED))
        return result

    def cost(self, m, batch=1):
        cost = self.solver.cost(m, batch)
        return Cost(cost.flops // 2) if self.halved_cost else cost


@dataclass(frozen=True)
class LowerTriangle(SVD):
    """Reads one triangle of a matrix that need not be symmetric."""

    def __call__(self, a):
        return super().__call__(a.tril() + a.tril(-1).mT)


@dataclass(frozen=True)
class FaultyCubic(NystromformerCubic):
    """Claims the order 4 and the stability of Newton's method."""

    @property
    def traits(self):
        return dataclasses.replace(super().traits, order=4, growth=2.0)


@dataclass(frozen=True)
class Spoilt(SVD):
    """An SVD whose result, or argument, is spoilt."""

    spoil: Callable[..., torch.Tensor] = field(default=lambda x, a: x, repr=False)

    def __call__(self, a):
        return self.spoil(super().__call__(a), a)


@dataclass(frozen=True)
class Misread(SVD):
    """An SVD of what ``read`` gives for the matrix."""

    read: Callable[..., torch.Tensor] = field(default=lambda a: a, repr=False)

    def __call__(self, a):
        return super().__call__(self.read(a))


def found_by_address():
    """The matrix that was first seen where this one lies."""
    kept = {}

    def read(a):
        key = a.data_ptr(), a.shape, a.dtype, a.requires_grad
        return kept.setdefault(key, a.detach().clone())

    return read


def of_one_buffer():
    """Each inverse lies where the last one of its shape lay."""
    kept = {}

    def spoil(x, a):
        return x if x.requires_grad else kept.setdefault(x.shape, x).copy_(x)

    return spoil


def zeros_where_singular(a):
    """The inverse, and zeros for a matrix that has none."""
    x, info = torch.linalg.inv_ex(a)
    return torch.where((info != 0)[..., None, None], 0, x)


def shifted_by_the_first():
    """A shift by the first matrix with as many rows."""
    kept = {}

    def inverse(a):
        m = a.shape[-1]
        shift = kept.setdefault(m, 1e-6 * a.detach().abs().amax().double())
        return torch.linalg.inv(a + (shift * torch.eye(m)).to(a))

    return inverse


HELD = []


def frozen_inverse(x, a):
    """Right to first order: the second derivative takes the inverse for a constant."""
    y = x.detach()
    return y - y @ (a - a.detach()) @ y


class OnceInverse(torch.autograd.Function):
    """Its backward pass is right, and can be differentiated no further."""

    @staticmethod
    def forward(ctx, a):
        ctx.x = torch.linalg.inv(a)
        return ctx.x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return -ctx.x.mT @ grad @ ctx.x.mT


def once_inverse(x, a):
    return OnceInverse.apply(a)


def of_the_diagonal(x, a):
    return torch.diag_embed(1 / a.diagonal(dim1=-2, dim2=-1))


def of_nearly_diagonal(x, a):
    """Where the rest is small it is not read."""
    diagonal = a.diagonal(dim1=-2, dim2=-1)
    rest = (a - torch.diag_embed(diagonal)).abs().amax()
    return of_the_diagonal(x, a) if rest < 1e-2 * diagonal.abs().min() else x


def right_up_to_sixteen(x, a):
    return x if a.shape[-1] <= 16 else 1.001 * x


def of_definite_matrices(x, a):
    """Squares what it should invert, which only a definite matrix forgives."""
    sign = torch.where(torch.linalg.eigvalsh((a + a.mT) / 2)[..., :1] > 0, 1.0, -1.0)
    return x * sign.unsqueeze(-1)


class TransposedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.mT


@dataclass(frozen=True)
class Lying(NewtonRaphson):
    """Its solve says something else than it found."""

    lie: Callable[..., Any] = field(default=lambda result: result, repr=False)

    def solve(self, a):
        return self.lie(super().solve(a))


def all_like_the_first(result):
    status = result.status
    return result._replace(status=status.flatten()[:1].expand(status.shape).clone())


def renamed(status, other):
    """One status given out as another."""
    return lambda result: result._replace(
        status=torch.where(result.status == status, other, result.status)
    )


@dataclass(frozen=True)
class OfAllSteps:
    """A solver that has iterates and no ``begin``, and says that it took all its steps."""

    steps: int = 24

    def __getattr__(self, name):
        if name in {"traits", "iterates", "cost"}:
            return getattr(NewtonRaphson(self.steps), name)
        raise AttributeError(name)

    def __call__(self, a):
        return NewtonRaphson(self.steps)(a)

    def solve(self, a):
        found = NewtonRaphson(self.steps).solve(a)
        return found._replace(steps=torch.full_like(found.steps, self.steps))


SOLVER_FAULTS = {
    "every size": [
        laws.adapted(lambda a: torch.linalg.pinv(a, rtol=1e-3)),
        Spoilt(spoil=of_nearly_diagonal),
        Spoilt(spoil=right_up_to_sixteen),
        Spoilt(spoil=lambda x, a: 1.01 * x if len(x) > 32 and x.dtype == torch.float32 else x),
        Spoilt(spoil=of_definite_matrices),
        Spoilt(spoil=lambda x, a: x * (1.01 if a.shape[-1] > 64 else 1)),
        Spoilt(spoil=lambda x, a: x.flip(0) if x.ndim == 4 else x),
        Spoilt(
            spoil=lambda x, a: torch.cat((x[:64], x[:-64])) if x.ndim > 2 and len(x) > 64 else x
        ),
        Spoilt(spoil=lambda x, a: x.mT if bool((a.tril(-1) == 0).all()) else x),
        laws.adapted(lambda a: torch.linalg.pinv(a, rtol=1e-8)),
        FaultySolver(Ridge(SVD(), 1e-6), {"regularized": False}),
    ],
    "leaves no trace": [
        Spoilt(spoil=lambda x, a: torch.set_printoptions(precision=3) or x),
        Spoilt(spoil=lambda x, a: torch.manual_seed(0) and x),
        Spoilt(spoil=lambda x, a: x if x.requires_grad else x.requires_grad_()),
        Spoilt(spoil=of_one_buffer()),
        Spoilt(spoil=lambda x, a: HELD.append(a) or x),
        Misread(read=lambda a: a.as_strided(a.shape, torch.empty(a.shape).stride())),
        Misread(read=lambda a: a.as_strided(a.shape, a.stride(), 0)),
        Misread(read=found_by_address()),
        laws.adapted(shifted_by_the_first()),
    ],
    "nothing is hidden": [laws.adapted(lambda a: torch.linalg.inv(a).nan_to_num())],
    "solve tells the truth": [
        Lying(24, lie=lambda result: result._replace(steps=24 + 0 * result.steps)),
        OfAllSteps(24),
        Lying(24, lie=lambda result: result._replace(residual=0 * result.residual)),
        Lying(24, lie=lambda result: result._replace(x=1.01 * result.x)),
        Lying(24, lie=all_like_the_first),
        Lying(6, lie=lambda result: result._replace(status=0 * result.status)),
        Lying(24, lie=renamed(Status.OUT_OF_STEPS, Status.STAGNATED)),
        Lying(24, lie=renamed(Status.STAGNATED, Status.CONVERGED)),
        Lying(24, lie=renamed(Status.DIVERGED, Status.STAGNATED)),
        Lying(24, lie=lambda result: result._replace(residual=result.residual.float())),
        Lying(24, lie=lambda result: result._replace(residual=result.residual.clamp_max(1e-3))),
    ],
    "gradient of any matrix": [
        Spoilt(spoil=lambda x, a: gradient_of(x, 0.5) if x.dtype == torch.float32 else x),
        Spoilt(spoil=lambda x, a: TransposedGradient.apply(x)),
        Spoilt(spoil=lambda x, a: x.detach() + (x - x.detach() + (x - x.detach()).mT) / 2),
    ],
    "shape, dtype and trace": [
        Spoilt(spoil=lambda x, a: x.double()),
        Spoilt(spoil=lambda x, a: a.copy_(x)),
        Spoilt(spoil=lambda x, a: x * (1 + 1e-9 * torch.rand(()))),
        Spoilt(spoil=lambda x, a: print("inverting") or x),  # noqa: T201
        Spoilt(spoil=lambda x, a: 2 * x if x.dtype == torch.bfloat16 else x),
    ],
    "orthogonal factors": [Spoilt(spoil=lambda x, a: x.mT), Spoilt(spoil=of_the_diagonal)],
    "inverse of the inverse": [
        FaultySolver(Ridge(SVD(), 1e-3), {"regularized": False}),
        NewtonRaphson(3),
    ],
    "second derivative": [Spoilt(spoil=frozen_inverse), Spoilt(spoil=once_inverse)],
    "Penrose identities": [
        NewtonRaphson(24, NormProduct(2.0)),  # the published alpha without its 0.9
        NewtonRaphson(3),
        FaultySolver(SVD(), factor=1 + 1e-9),
    ],
    "Penrose identities, singular": [
        laws.adapted(
            lambda a: (
                torch.linalg.pinv(a, rtol=1e-10)
                / torch.where((a == 0).all(-1).all(-1), 0, 1)[..., None, None]
            )
        ),
        laws.adapted(zeros_where_singular),
        FaultySolver(Cholesky(), {"singular": True}),
        FaultySolver(NewtonRaphson(24, NormProduct(2.0))),
    ],
    "shifted inverse": [
        FaultySolver(Ridge(SVD(), 0.01), factor=1 + 1e-6),
        FaultySolver(SVD(), {"regularized": True}, factor=2.0),
    ],
    "adjoint": [LowerTriangle()],
    "scaling": [NewtonRaphson(24, FlooredNorm())],
    "order": [FaultyCubic(14), Yielding(NewtonRaphson(steps=24), claims={"order": 3})],
    "growth": [FaultyCubic(14)],
    "batch independence": [
        NewtonRaphson(24, BatchWide(1.8)),
        NystromformerCubic(14, BatchWide()),
        laws.adapted(by_rank_of_the_batch),
        laws.adapted(by_the_first),
        # a cut-off relative to the largest entry of the whole batch
        laws.adapted(lambda a: torch.linalg.pinv(a, atol=1e-15 * float(a.detach().abs().max()))),
    ],
    "status": [FaultySolver(NewtonRaphson(24), always_converged=True)],
    "cost": [
        FaultySolver(NewtonRaphson(24), halved_cost=True),
        FaultySolver(NewtonRaphson(24), {"products": 1}),
    ],
    "gradient, singular": [FaultySolver(ImplicitGradient(SVD()), {"constant_rank": True})],
    "gradient": [
        FaultySolver(NewtonRaphson(24), detached=True),
        ImplicitGradient(NewtonRaphson(2)),
    ],
}
