"""The gradient meter: what a solver's backward pass gives, beside what it should give.

Of L = <G, X> with X = solver(A) and G = dL/dX, two gradients dL/dA are true, of two functions:

- that of the pseudo-inverse, which the solver means to compute (``reference_gradient``);
- that of the map which it did compute: its steps, all of them (``unrolled``, in float64).

They agree where the solver converged. Where it stopped early the first is the gradient of another
function than the one that the loss saw, and the second the one that descends. A rule that puts a
formula in the place of the loop (``ImplicitGradient``, ``GolubPereyra``) may miss both.
``bias`` measures by how much, as a function of the residual.

For symmetric A with eigenvalues l_i, an iteration from a multiple of A applies a filter f to them,
and its gradient, in the eigenbasis, is that of G times (f(l_i) - f(l_j)) / (l_i - l_j) (Daleckii
and Krein 1965), plus that of the multiple. The implicit rule multiplies by -f(l_i) f(l_j). These
are one for f = 1 / l. Below the cut-off of the filter f rises with l, and the rule has it fall:
the wrong sign.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from softlab import validation
from softlab.core import norm
from softlab.pinv import (
    Checkpointed,
    Cholesky,
    GolubPereyra,
    ImplicitGradient,
    NewtonRaphson,
    Ridge,
    Solver,
)
from softlab.validation import Matrix

RULES: dict[str, Callable[[NewtonRaphson], Solver]] = {
    "implicit": ImplicitGradient,
    "Golub-Pereyra": GolubPereyra,
    "unrolled": lambda solver: solver,
}
"""What stands for the gradient of an iterative inverse, by name."""


class Departure(NamedTuple):
    """How far one gradient is from another, per matrix.

    ``error`` (...): |found - true|_F / |true|_F; infinite where a true gradient of zero is missed.
    ``cosine`` (...): <found, true> / (|found| |true|), below 0 where a step along the found one
    raises the loss; 1 where both are zero, 0 where one is.
    """

    error: Tensor
    cosine: Tensor

    @property
    def angle(self) -> Tensor:
        """The angle between them, in degrees, 0 to 180."""
        return self.cosine.clamp(-1, 1).acos() * (180 / math.pi)


class Bias(NamedTuple):
    """What a solver's gradient is worth; tensors (...), float64, one number a matrix.

    ``inverse``: departure from the gradient of the pseudo-inverse. ``map``: from that of the
    computed map. ``residual``: |P - A X|_2, P the projector on the range of A: the largest part of
    an axis of A that X has left uninverted, 0 for the pseudo-inverse and 1 for X = 0.
    """

    inverse: Departure
    map: Departure
    residual: Tensor


@validation.arrays
def reference_gradient(a: Matrix, g: Matrix, *, rank: int | None = None) -> Tensor:
    """dL/dA of L = <G, A^+> in closed form, in float64.

    With A = U diag(s) V^T, H = V^T G U and t_i = 1/s_i, or 0 beyond the rank, the gradient is
    U M V^T with

        M_ij = -t_i H_ij t_j + (t_i^2 [j > rank] + [i > rank] t_j^2) H_ji,

    the adjoint of the derivative along matrices of the rank of A (Golub and Pereyra 1973, Theorem
    4.3) in the axes of A, where no two large numbers are subtracted. Across ranks A^+ is not
    continuous and has no gradient.

    ``a``, ``g``: (..., m, m), alike in shape. ``rank``: that of every matrix, 0 to m; None counts
    the singular values above m eps s_1 of each. Values beyond the rank are taken as zero.

    Raises ``TypeError`` and ``ValueError`` for what is no such pair of finite matrices, and
    ``ValueError`` for a rank that is out of range or that a matrix does not reach.
    """
    a, g = _admitted(a, g)
    a, g = a.detach().double(), g.detach().double()
    m = a.shape[-1]
    u, s, vh = torch.linalg.svd(a)
    kept = _above_rounding(s)
    if rank is not None:
        reached = int(kept.sum(-1).min())
        if not 0 <= rank <= reached:
            msg = (
                f"rank is {rank!r}; give an integer of 0 to {reached}, the singular values above "
                f"rounding in the poorest of the matrices ({m} x {m}), or None to count them."
            )
            raise ValueError(msg)
        kept = kept & (torch.arange(m, device=a.device) < rank)
    t = torch.where(kept, 1 / torch.where(kept, s, 1), 0)
    row, column = t.unsqueeze(-1), t.unsqueeze(-2)
    lost = (~kept).double()
    h = vh @ g @ u
    across = row.square() * lost.unsqueeze(-2) + lost.unsqueeze(-1) * column.square()
    out: Tensor = u @ (across * h.mT - row * h * column) @ vh
    return out


@validation.arrays
def gradient(solver: Solver, a: Matrix, g: Matrix) -> Tensor:
    """What the backward pass of ``solver(a)`` makes of G = dL/dX, (..., m, m), in a's dtype.

    ``a``, ``g``: (..., m, m), alike in shape. Raises as ``reference_gradient`` does for bad
    matrices, what the solver raises, and ``ValueError`` where an entry of the gradient is not
    finite: a backward pass that overflowed.
    """
    a, g = _admitted(a, g)
    leaf = a.detach().clone().requires_grad_()
    with torch.enable_grad():
        x = solver(leaf)
    (found,) = torch.autograd.grad(x, leaf, g.detach().to(x.dtype))
    if not bool(found.isfinite().all()):
        lost = int((~found.isfinite().all(-1).all(-1)).sum())
        msg = (
            f"the gradient of {solver!r} overflowed {a.dtype} on {lost} of "
            f"{max(1, a.shape[:-2].numel())} matrices. Use fewer steps, Ridge or float64."
        )
        raise ValueError(msg)
    return found


@validation.arrays
def bias(solver: Solver, a: Matrix, g: Matrix, *, symmetric: bool = False) -> Bias:
    """How far the gradient of ``solver`` at A is from the two true ones, and the residual.

    ``solver``: computed in the dtype of ``a``; the references are of the same, already rounded A
    in float64. A ``Ridge`` stands for its solver on the shifted matrix, whose pseudo-inverse is
    then the first reference. ``a``, ``g``: (..., m, m), alike in shape. ``symmetric``: A is
    symmetric by construction, and only ``symmetrized`` gradients are compared.

    Raises as ``gradient`` does, and ``ValueError`` for ``symmetric`` with an A that is not, up to
    m eps of its largest entry.
    """
    a, g = _admitted(a, g)
    if symmetric:
        _check_symmetric(a)
    wide, wide_g = a.detach().double(), g.detach().double()
    inverted = _inverted(solver, wide)
    found = gradient(solver, a, g).double()
    of_inverse = reference_gradient(inverted, wide_g)
    of_map = gradient(unrolled(solver), wide, wide_g)
    if symmetric:
        found, of_inverse, of_map = (symmetrized(x) for x in (found, of_inverse, of_map))
    with torch.no_grad():
        x = solver(a).double()
    return Bias(departure(found, of_inverse), departure(found, of_map), range_residual(inverted, x))


@validation.arrays
def departure(found: Matrix, true: Matrix) -> Departure:
    """Relative error and cosine of one gradient against another, both (..., m, m)."""
    found, true = _pair(found=found, true=true)
    size, own, missed = (norm(x, (-2, -1)) for x in (true, found, found - true))
    # Each is divided by its own norm first: the product of two small norms would vanish.
    unit, own_unit = (x / _or_one(n)[..., None, None] for x, n in ((true, size), (found, own)))
    cosine = (unit * own_unit).sum((-2, -1))
    nothing = (size == 0) & (own == 0)
    error = torch.where(size > 0, missed / _or_one(size), torch.where(nothing, 0.0, math.inf))
    return Departure(error, torch.where(nothing, 1.0, cosine))


@validation.arrays
def range_residual(a: Matrix, x: Matrix) -> Tensor:
    """|P - A X|_2 with P the projector on the range of A (at its numerical rank), (...)."""
    a, x = _pair(a=a, x=x)
    u, s, _ = torch.linalg.svd(a)
    kept = _above_rounding(s).to(a.dtype)
    projector = (u * kept.unsqueeze(-2)) @ u.mT
    out: Tensor = torch.linalg.matrix_norm(projector - a @ x, 2)
    return out


@validation.arrays
def symmetrized(grad: Matrix) -> Tensor:
    """(grad + grad^T) / 2, all that reaches what a symmetric A is made of.

    Along A = A^T the loss changes by <grad, dA> = <symmetrized(grad), dA>: gradients that differ by
    an antisymmetric matrix are the same gradient there. ``grad``: (..., m, m).
    """
    grad = validation.tensor("grad", grad)
    validation.square(grad, "grad")
    validation.finite("grad", grad)
    return (grad + grad.mT) / 2


@validation.arrays
def by_rule(rule: str, steps: int) -> Solver:
    """The solver of a name: one of ``RULES`` on so many Newton steps, or ``"exact"``.

    A rule followed by ``", ridge"`` inverts A + 0.01 I, as SOFT's released code. Raises
    ``ValueError`` for another name.
    """
    if rule == "exact":
        return Ridge(Cholesky(), 1e-6)  # no more than float32 needs to factor it
    plain, ridged, _ = rule.partition(", ridge")
    if plain not in RULES:
        msg = (
            f"rule is {rule!r}; give exact, or one of {', '.join(RULES)}, alone or with ', ridge'."
        )
        raise ValueError(msg)
    solver = RULES[plain](NewtonRaphson(steps))
    return Ridge(solver) if ridged else solver


@validation.arrays
def unrolled(solver: Solver) -> Solver:
    """The same map with the gradient of all its steps: every rule for the gradient taken off."""
    if isinstance(solver, ImplicitGradient | GolubPereyra | Checkpointed):
        return unrolled(solver.solver)
    inner = getattr(solver, "solver", None)
    if inner is None:
        return solver
    return cast(Solver, dataclasses.replace(cast(Any, solver), solver=unrolled(inner)))


def _inverted(solver: Solver, a: Tensor) -> Tensor:
    """The matrix of which the solver means to give the pseudo-inverse: A, shifted by each ridge."""
    if isinstance(solver, Ridge):
        a = solver.shifted(a)
    inner = getattr(solver, "solver", None)
    return a if inner is None else _inverted(inner, a)


def _above_rounding(s: Tensor) -> Tensor:
    """Which singular values (..., m), descending, are above m eps s_1."""
    return s > s.shape[-1] * torch.finfo(s.dtype).eps * s[..., :1]


def _check_symmetric(a: Tensor) -> None:
    gap, size = (x.detach().abs().amax((-2, -1)) for x in (a - a.mT, a))
    if bool((gap > a.shape[-1] * torch.finfo(a.dtype).eps * size).any()):
        msg = (
            f"a must equal its transpose for symmetric=True, and differs by {float(gap.max()):.3g}."
            " Leave symmetric out, or pass (a + a.mT) / 2."
        )
        raise ValueError(msg)


def _pair(**given: Matrix) -> tuple[Tensor, Tensor]:
    """Both as tensors; raise unless they are square, finite and alike in shape and dtype."""
    matrices = {name: validation.tensor(name, x) for name, x in given.items()}
    for name, x in matrices.items():
        validation.square(x, name)
        validation.finite(name, x)
    (one, x), (other, y) = matrices.items()
    if x.shape != y.shape or x.dtype != y.dtype:
        msg = (
            f"{one} and {other} must be alike, got {tuple(x.shape)} {x.dtype} and "
            f"{tuple(y.shape)} {y.dtype}. Convert one of them with .to(dtype), or expand it."
        )
        raise ValueError(msg)
    return x, y


def _or_one(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 1)


def _admitted(a: Matrix, g: Matrix) -> tuple[Tensor, Tensor]:
    a, g = validation.tensor("a", a), validation.tensor("g", g)
    validation.square(a)
    validation.square(g)
    if a.shape != g.shape:
        msg = (
            f"g is dL/dX for X = solver(a) and must have the shape of a, {tuple(a.shape)}; got "
            f"{tuple(g.shape)}. Expand it, or sum over the batch yourself."
        )
        raise ValueError(msg)
    validation.finite("a", a)
    validation.finite("g", g)
    return a, g
