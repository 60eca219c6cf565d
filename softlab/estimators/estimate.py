"""A number with its interval, and the three ways in which intervals are made here."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from softlab import validation
from softlab.validation import is_number


@dataclass(frozen=True)
class Estimate:
    """``value`` in ``low`` to ``high`` with probability ``confidence`` over the random draws.

    The interval is a model's, as each maker says, and holds over draws, not for one. Where nothing
    was left to chance both ends are the value, up to rounding, which no interval counts.
    """

    value: float
    low: float
    high: float
    confidence: float

    def root(self) -> Estimate:
        """The square root of an estimate that is not negative."""
        return Estimate(
            math.sqrt(self.value), math.sqrt(self.low), math.sqrt(self.high), self.confidence
        )

    def times(self, factor: float) -> Estimate:
        """The estimate of ``factor``, which is positive, times the number."""
        validation.span("factor", factor)
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.confidence)


def magnitude(x: Tensor) -> float:
    """The power of two at or below the largest magnitude in x, 1 where that is 0.

    What is made of squares is made of x over it, so that none overflows or vanishes.
    """
    largest = float(x.abs().max())
    return math.ldexp(0.5, math.frexp(largest)[1]) if largest > 0 else 1.0


def certain(value: float, confidence: float) -> Estimate:
    """A value that no draw decides."""
    return Estimate(value, value, value, confidence)


def of_mean(value: float, error: float, freedom: int, confidence: float) -> Estimate:
    """Student's interval: value +- t error, with ``freedom`` degrees of freedom."""
    reach = student(freedom, confidence) * error
    return Estimate(value, value - reach, value + reach, confidence)


def of_ratio(a: Tensor, b: Tensor, confidence: float, *, share: float = 0.0) -> Estimate:
    """The ratio of the means of a and b, pairs (m,) of numbers >= 0 that were drawn together.

    Student's interval for the logarithm, with the jackknife's standard error: the ratio is
    positive and its error skewed. ``share`` of all pairs was drawn, without replacement, which
    leaves 1 - share of the variance. 0 where a is 0, inf where b alone is.
    """
    m = len(a)
    top, bottom = float(a.sum()), float(b.sum())
    if top == 0 or bottom == 0:
        return certain(0.0 if top == 0 else math.inf, confidence)
    if share >= 1:
        return certain(top / bottom, confidence)
    # Where one pair holds all, leaving it out leaves nothing: log 0, and no upper end.
    left = ((top - a).clamp(min=0) / (bottom - b).clamp(min=0)).log()
    spread = float((left - left.mean()).square().sum()) * (m - 1) / m
    if not math.isfinite(spread):
        return Estimate(top / bottom, 0.0, math.inf, confidence)
    reach = student(m - 1, confidence) * math.sqrt((1 - share) * spread)
    return Estimate(
        top / bottom, top / bottom * math.exp(-reach), top / bottom * _exp(reach), confidence
    )


def of_squares(gram: Tensor, size: int, confidence: float) -> Estimate:
    """|A|_F^2 from the Gram matrix (q, q) of A Omega, Omega of independent normal numbers.

    |A omega|^2 is sum_i s_i^2 chi^2_1. Its mean is |A|_F^2 = tr B, B = A^T A, and it is taken as
    tr B / f times a chi^2_f with the same variance: f = (tr B)^2 / tr B^2, from 1 (rank one) to
    ``size``. Entries off the diagonal tell tr B^2: (omega_i^T B omega_j)^2. That f is itself
    estimated, from q products, widens the interval as Student's is wider than the normal one.
    """
    from scipy.special import chdtri, ndtri

    q = len(gram)
    squares = gram.diagonal()
    value = float(squares.mean())
    if value == 0:
        return certain(0.0, confidence)
    gram = gram / value
    squares = squares / value
    products = float(squares.sum() ** 2 - squares.square().sum())
    mixed = float(gram.square().sum() - squares.square().sum())
    freedom = q * min(max(products / mixed if mixed > 0 else size, 1.0), float(size))
    tail = (1 - confidence) / 2
    freedom *= (float(ndtri(1 - tail)) / student(q - 1, confidence)) ** 2
    low, high = (freedom / float(chdtri(freedom, p)) for p in (tail, 1 - tail))
    return Estimate(value, value * low, value * high, confidence)


def student(freedom: int, confidence: float) -> float:
    """The reach of Student's two-sided interval, in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


def students(freedom: Tensor, confidence: float) -> Tensor:
    """``student`` of each of several degrees of freedom."""
    from scipy.special import stdtrit

    reach = stdtrit(freedom.double().cpu().numpy(), (1 + confidence) / 2)
    return torch.as_tensor(reach).to(freedom)


def check_confidence(confidence: float) -> None:
    """Raise ``ValueError`` unless 1e-6 <= confidence <= 1 - 1e-12: beyond, quantiles round off.

    ``TypeError`` for what is no number.
    """
    number = is_number(confidence)
    if not number or not 1e-6 <= confidence <= 1 - 1e-12:
        msg = f"confidence is {confidence!r}; give a number between 0 and 1, such as 0.95."
        raise (ValueError if number else TypeError)(msg)


def check_count(what: str, got: int, least: int, most: int, of: str) -> None:
    """Raise unless ``got`` is an integer from ``least``, or all there are, to ``most``."""
    if not min(least, most) <= got <= most:
        msg = (
            f"{what} is {got}, with {most} {of}; give {min(least, most)} to {most}: fewer have no "
            "error estimate, more no new information."
        )
        raise ValueError(msg)


def check_held(what: str, got: int, each: int) -> None:
    """Raise unless so many of ``each`` numbers are at most ``checks.MOST_TOKENS`` together."""
    if got * each > validation.MOST_TOKENS:
        msg = (
            f"{what} is {got}, each of which holds {each} numbers; give at most "
            f"{validation.MOST_TOKENS // each}, so that all of them fit 8 GiB in float64."
        )
        raise ValueError(msg)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
