"""Intervals for the error of a row, from the spread of an operator's own random draws.

A row is a ratio out = N / D of two means over m draws, N = mean_r N_r and D = mean_r D_r, or a mean
alone. Of the linearised ratio, which is right where D is known well,

    out - exact = mean_r e_r + smaller terms,    e_r = (N_r - out D_r) / D,

the variance is s^2 / m, s^2 = sum_r |e_r|^2 / (m - 1), in all coordinates together. The error's
length is then below t s / sqrt(m) with the stated confidence, t the two-sided quantile of Student:
of all normal errors with that sum of variances those along a line reach far the most often (Szekely
and Bakirov, Probab. Theory Relat. Fields 126, 2003), for a confidence of 0.8 or more.

How many degrees of freedom t has, the draws say: s^2 has a relative variance of (kappa + 2) / m for
an excess kurtosis kappa, and so 2 m / (kappa + 2) degrees of freedom in the sense of Satterthwaite.
With M = (sum_r |e_r|^2)^2 / sum_r |e_r|^4, which is m / (kappa + 3) of the sample, these are

    2 / (1 / M - 1 / m).

A third of them is taken. A sample shows too small a kurtosis, and where draws are skewed the error
is large when s is small, as of squares of normal numbers, which cosines of near points are: 64 of
them miss odds of 10, 5 and 1 % with m - 1 degrees of freedom in 15, 9 and 4 % of the intervals that
would be given, and so in 8.7, 4.5 and 1.1 %.

What draws cannot tell they do not: the interval has no end where

- the draws are fewer than ``LEAST``, or M below ``SHARED``;
- D is not told from zero: |D| <= 2 t s_D / sqrt(m), where the ratio has no variance;
- m <= 25 G^2, Cochran's rule, G the skewness of the draws' weights. Weights that are exponentials
  have a tail that few draws have met, so that G is not their own: it is that of a lognormal number,
  (exp(w) + 2) (exp(w) - 1)^(1/2), w the variance of the logarithms, which have no such tail.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from softlab import validation
from softlab.core import INSTEAD, own_precision, widened
from softlab.estimators.estimate import check_confidence, students
from softlab.primitives.certificates import magnitudes

F = TypeVar("F", bound=Callable[..., Any])

LEAST = 30
"""Draws below which a spread is not known."""
SHARED = 4.0
"""Draws that make the spread, below which its degrees of freedom are not known either."""
COCHRAN = 25.0


@dataclass(frozen=True)
class Interval:
    """By how much each row errs, from 0 to ``high`` with probability ``confidence`` over the draws.

    ``high`` (..., n): infinite where the draws cannot tell; ``spread`` (..., n): the root of the
    variance that they show; ``says``: why some rows have no end, empty where all have one.
    """

    high: Tensor
    spread: Tensor
    confidence: float
    says: str = ""


def from_draws(
    squares: Tensor,
    doubt: Tensor,
    logs: Tensor | None,
    confidence: float,
    share: float = 0.0,
) -> Interval:
    """The interval of rows whose draws have the residuals |e_r|^2 ``squares`` (..., n, m).

    The others as of ``from_sums``, but one ``share`` for all rows.
    """
    whole, count = squares.sum(-1), torch.full_like(doubt, squares.shape[-1])
    shared, shares = evenly(squares, whole), torch.full_like(doubt, share)
    return from_sums(whole, shared, count, doubt, logs, shares, confidence)


def evenly(squares: Tensor, whole: Tensor) -> Tensor:
    """M, how many draws make the sum ``whole`` (..., n) of ``squares`` (..., n, m)."""
    parts = squares / torch.where(whole > 0, whole, 1).unsqueeze(-1)
    return 1 / parts.square().sum(-1).clamp_min(1 / squares.shape[-1])


def from_sums(
    whole: Tensor,
    shared: Tensor,
    m: Tensor,
    doubt: Tensor,
    logs: Tensor | None,
    share: Tensor,
    confidence: float,
) -> Interval:
    """The interval of rows from sums over their draws, each (..., n).

    ``whole``: of |e_r|^2; ``shared``: M of these, see ``evenly``; ``m``: how many there are.
    ``doubt``: s_D / (sqrt(m) |D|), 0 where nothing is divided; ``logs``: the variance of the
    logarithms of the draws' weights, None where these are bounded. ``share``: of all there is to
    draw, without replacement, which leaves 1 - share of the variance.
    """
    check_confidence(confidence)
    spread = ((1 - share).clamp_min(0) * whole / (m * (m - 1)).clamp_min(1)).sqrt()
    most = (m - 1).clamp_min(1)
    rest = 1 / shared.clamp_min(1) - 1 / m.clamp_min(1)
    freedom = (2 / 3 / torch.maximum(rest, 1 / most)).clamp_min(1)
    reach = students(freedom, confidence)
    few = m < LEAST
    uneven = (shared < SHARED) & (whole > 0) & ~few
    unsure = ~(2 * reach * doubt < 1)
    heavy = torch.zeros_like(unsure)
    if logs is not None:
        tame = logs.clamp_max(80)
        heavy = COCHRAN * (tame.exp() + 2).square() * torch.expm1(tame) >= m
    known = share >= 1
    reasons = {
        f"{int(m.min())} draws are fewer than {LEAST}": few,
        "a few draws make most of the spread": uneven,
        "the normaliser is not told from zero": unsure,
        "weights or values lie for the most part in a tail that no draw met": heavy,
    }
    reasons = {why: where & ~known for why, where in reasons.items()}
    none = torch.stack([*reasons.values()]).any(0)
    told = [f"{int(where.sum())} rows: {why}" for why, where in reasons.items() if where.any()]
    says = f"of {none.numel()} rows, without an end are " + "; ".join(told) + "." if told else ""
    high = torch.where(none, math.inf, torch.where(known, 0, reach * spread))
    return Interval(high, spread, confidence, says)


def answered(call: F) -> F:
    """Make a method the ``interval`` of an operator, by what all of them begin and end with.

    ``interval(q, k, v, key_mask=None, *, confidence=0.95)``: tensors as of the call. Raises as
    that does, and ``ValueError`` where ``traits.draws`` is empty, and for a confidence that is
    not between 0.8 and 1.
    """

    @functools.wraps(call)
    def whole(
        self: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_mask: Tensor | None = None,
        *,
        confidence: float = 0.95,
    ) -> Interval:
        if not self.traits.draws:
            msg = f"{self!r} has no interval from its draws at these settings. Instead, {INSTEAD}."
            raise ValueError(msg)
        check_confidence(confidence)
        if confidence < 0.8:
            msg = (
                f"confidence is {confidence}; give 0.8 or more, for which the interval is derived."
            )
            raise ValueError(msg)
        scale = getattr(self, "scale", None)
        q, k, v, key_mask = validation.admit(q, k, v, key_mask, scale=scale)
        wide, size = widened(v), magnitudes(widened(v))
        found: Interval = call(self, widened(q), widened(k), wide / size, key_mask, confidence)
        high, spread = ((x * size.squeeze(-1)).to(v.dtype) for x in (found.high, found.spread))
        return Interval(high, spread, confidence, found.says)

    return cast("F", torch.no_grad()(own_precision(whole)))


def residuals(p: Tensor, g: Tensor, out: Tensor) -> Tensor:
    """|e_r|^2 = m^2 p_ir^2 |g_r - out_i|^2, (..., n, m), of averages out = sum_r p_ir g_r.

    p (..., n, m) with rows that sum to one, g (..., m, e), out (..., n, e).
    """
    apart = g.square().sum(-1).unsqueeze(-2) + out.square().sum(-1, keepdim=True) - 2 * out @ g.mT
    return (p.shape[-1] * p).square() * apart.clamp_min(0)


def of_weights(p: Tensor) -> Tensor:
    """s_D / (sqrt(m) D) of the draws whose shares of D are p (..., n, m)."""
    return (p.square().sum(-1) - 1 / p.shape[-1]).clamp_min(0).sqrt()
