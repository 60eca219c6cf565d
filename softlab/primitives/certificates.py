"""Certificates: upper bounds of an operator's error that need no exact output.

What all of them share. An operator that claims ``certified`` defines

    @certificate
    def bound(self, q, k, v, key_mask, out): ...

which returns, in the working precision, numbers (..., n) of at least |out_i - exact_i|. The bounds
count rounding by a model: a product or a sum of n terms errs by at most ``chain(n)`` u times the
sum of the magnitudes of its terms, u half of the working precision's eps. To n = 64 that is the
theorem (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., Eq. 3.5). Beyond, 8
sqrt(n) takes the place of n: errors that are independent and of mean zero exceed it with a chance
of some 2 exp(-32) a sum (Higham and Mary, SIAM J. Sci. Comput. 41, 2019, Theorem 2.4). An
exponential errs by at most ``EXP`` u, as the approximations in fused kernels do. On a GPU this is
the arithmetic of float32 products, not that of TF32.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from softlab import validation
from softlab.core import INSTEAD, norm, own_precision, widened

F = TypeVar("F", bound=Callable[..., Any])

EXP = 40.0
"""Roundings of an exponential and of what is done to it: scaled, divided by a sum."""


def chain(n: int) -> float:
    """How many roundings a sum of n terms counts for: n, beyond 64 rather 8 sqrt(n)."""
    return min(float(n), 8 * math.sqrt(n)) + 2


def unit(x: Tensor) -> float:
    """The unit roundoff u of a tensor's precision, half of its eps."""
    return torch.finfo(x.dtype).eps / 2


def certificate(call: F) -> F:
    """Make a method the ``bound`` of an operator, by what all of them begin and end with.

    ``bound(q, k, v, key_mask=None, *, out=None)``: q (..., n, d), k (..., l, d), v (..., l, e) as
    of the call; ``out`` (..., n, e) is its output where that is known already, and is computed
    otherwise. The bound is of whatever ``out`` holds. Returns (..., n) in the dtype of v, rounded
    up; infinite where the output is not finite.

    Differentiable in q, k, v and ``out`` almost everywhere, as the call is: it is made of the same
    operations, and where two bounds meet the derivative is that of the smaller one. What is chosen
    (landmarks, pages, kept keys, rounded numbers) is fixed. Where the bound has fallen to rounding
    its derivative says nothing.

    Raises as the call does, and ``ValueError`` where the operator does not claim ``certified`` at
    its settings.
    """

    @functools.wraps(call)
    def whole(
        self: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_mask: Tensor | None = None,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        if not self.traits.certified:
            msg = f"{self!r} claims no bound of its error at these settings. Instead, {INSTEAD}."
            raise ValueError(msg)
        dtype = v.dtype if isinstance(v, Tensor) else None
        q, k, v, key_mask = validation.admit(q, k, v, key_mask, scale=getattr(self, "scale", None))
        out = self(q, k, v, key_mask) if out is None else out
        wanted = (*q.shape[:-1], v.shape[-1])
        if not isinstance(out, Tensor) or out.shape != wanted or out.dtype != dtype:
            got = (tuple(out.shape), out.dtype) if isinstance(out, Tensor) else type(out).__name__
            msg = f"out is {got}, and op(q, k, v) is {wanted}, {dtype}. Pass that, or leave it out."
            raise ValueError(msg)
        wide, size = widened(v), magnitudes(widened(v))
        found = call(self, widened(q), widened(k), wide / size, key_mask, widened(out) / size)
        found = found * size.squeeze(-1)
        sound = widened(out).isfinite().all(-1) & ~found.isnan()
        found = torch.where(sound, found, math.inf)
        return _raised(found, v.dtype)

    return cast("F", own_precision(whole))


@own_precision
def at_most(
    op: Any,
    error: float,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None = None,
) -> Any:
    """The operator at the smallest setting whose certificate is at most ``error`` on every row.

    The setting is the rank, the window or the budget; it is doubled from 1 until the largest
    ``bound`` of a row is at most ``error``, and then halved in between. Each setting costs a call
    and its bound. Where certificates do not fall with every step, as with landmarks that are
    chosen anew, a smaller setting may be certified as well.

    Args:
        op: the operator, whose method this is; its other fields stay.
        error: of a row, in the units of v, positive.
        q: queries (..., n, d).
        k: keys (..., l, d).
        v: values (..., l, e).
        key_mask: boolean, broadcastable to (..., l).

    Raises:
        ValueError: no setting is certified so far, with the best that was; or the operator has no
            setting, or claims no bound.
    """
    validation.span("error", error)
    validation.admit(q, k, v, key_mask, scale=getattr(op, "scale", None))
    knob = getattr(type(op), "knob", None)
    name = op.traits.exact_at or (knob.fields[0] if knob is not None else "")
    if not name:
        msg = f"{op!r} has no rank and no budget to choose; ask op.bound(q, k, v) of it as it is."
        raise ValueError(msg)
    most = validation.survivors(key_mask, k) + (q.shape[-2] if op.traits.lifted else 0)
    best = (math.inf, 0)

    @torch.no_grad()
    def meets(m: int) -> bool:
        nonlocal best
        found = float(dataclasses.replace(op, **{name: m}).bound(q, k, v, key_mask).max())
        best = min(best, (found, m))
        return found <= error

    high = 1
    while not meets(high):
        if high == most:
            msg = (
                f"no {name} up to {most} is certified to err by at most {error:g} on every row: "
                f"the best is {best[0]:.3g}, at {name}={best[1]}. The error itself may be smaller: "
                "softlab.certify(op, q, k, v) has a sample of it beside the certificate."
            )
            raise ValueError(msg)
        high = min(2 * high, most)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return dataclasses.replace(op, **{name: high})


def _raised(bound: Tensor, dtype: torch.dtype) -> Tensor:
    """The bound in that dtype, never smaller than it was, nor than a few last digits more."""
    info = torch.finfo(dtype)
    wide = bound.double()
    up = wide * (1 + 4 * info.eps) + info.tiny * info.eps
    return up.to(dtype)


def distance(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_i| of rows, (..., n), rounded up."""
    return lengths(x - y)


def lengths(x: Tensor) -> Tensor:
    """|x_i| of rows, (..., n), rounded up."""
    # No square may vanish or overflow: a bound of rows of 1e-30 would be 0, and of 1e30 infinite.
    found: Tensor
    if x.dtype != torch.float64:
        found = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64).to(x.dtype)
    else:
        largest = x.detach().abs().amax(-1, keepdim=True)
        largest = torch.where((largest > 0) & largest.isfinite(), largest, 1)
        found = torch.linalg.vector_norm(x / largest, dim=-1) * largest.squeeze(-1)
    return found * (1 + 2 * chain(x.shape[-1]) * unit(x))


def magnitudes(v: Tensor) -> Tensor:
    """The power of two at or below the largest magnitude of each matrix, (..., 1, 1), 1 for zeros.

    Bounds and intervals are as large as the values. Those of v over it, which rounds nothing, are
    made of squares that neither vanish nor overflow.
    """
    largest = v.detach().abs().amax((-2, -1), keepdim=True)
    half = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1)
    return torch.where(largest > 0, half, 1)


def root(x: Tensor) -> Tensor:
    """The square root of x >= 0, and 0 below; its derivative at 0 is 0 and not infinite."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


def relative(bound: Tensor, out: Tensor) -> float:
    """At least |out - exact|_F / |exact|_F, from the bounds of the rows (n,) of out (n, e).

    With B = (sum_i b_i^2)^(1/2) that is B / (|out|_F - B), and infinite where B reaches the output.
    """
    whole = float(norm(bound.detach().double())) * (1 + 1e-12 * len(bound))
    size = float(norm(out.detach().double()))
    return whole / (size - whole) if whole < size else math.inf


def centre(v: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """A point amid the values (..., 1, e), and the largest distance from it (..., 1)."""
    if key_mask is None:
        middle = v.mean(-2, keepdim=True)
        return middle, distance(v, middle).amax(-1, keepdim=True)
    counted = key_mask.unsqueeze(-1)
    middle = torch.where(counted, v, 0).sum(-2, keepdim=True) / counted.sum(-2, keepdim=True)
    away = distance(v, middle).masked_fill(~key_mask, 0)
    return middle, away.amax(-1, keepdim=True)


def score_rounding(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The most by which the logarithm of a row's softmax weights may err, (..., n).

    Scores scale <q_i, k_j> err by chain(d) u times scale |q_i| |k_j|, by Cauchy and Schwarz; their
    exponentials by ``EXP`` u.
    """
    most = lengths(k).amax(-1, keepdim=True)
    u = unit(q)
    return (chain(q.shape[-1]) + 4) * u * scale * lengths(q) * most + EXP * u


def average_rounding(slack: Tensor, radius: Tensor, largest: Tensor, l: int) -> Tensor:
    """By how much a computed softmax average may err whose log weights err by ``slack``.

    Weights w_j exp(t_j), |t_j| <= slack, differ from w_j by tanh(slack / 2) in total variation at
    most, and so the averages by that times the diameter, 2 ``radius``. The product with values of
    norms up to ``largest`` is a sum of l terms.
    """
    return torch.tanh(slack / 2) * 2 * radius + chain(l) * unit(slack) * largest
