"""The spectral and the Frobenius norm of a matrix that is known by its products."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from softlab import validation
from softlab.core import Stream, norm
from softlab.estimators.estimate import (
    Estimate,
    certain,
    check_confidence,
    check_count,
    check_held,
    magnitude,
    of_squares,
)
from softlab.estimators.krylov import bidiagonal
from softlab.estimators.linear_map import LinearMap


@dataclass(frozen=True)
class SpectralNorm:
    """The largest singular value found, and how far it can be from the largest.

    ``value``: |A v| for a unit vector v, hence never above |A|_2 but by rounding. ``residual``:
    the larger of |A v - s u| and |A^T u - s v| for the pair found, formed anew: a singular value of
    A lies within it of ``value``. ``high``: |A|_2 is below it with probability ``confidence``
    whatever the spectrum. ``steps`` taken; ``converged``: whether residual <= tolerance * value.
    """

    value: float
    residual: float
    high: float
    confidence: float
    steps: int
    converged: bool


@validation.typed
def spectral_norm(
    a: LinearMap,
    *,
    steps: int = 100,
    tolerance: float = 1e-6,
    confidence: float = 0.95,
    seed: int = 0,
) -> SpectralNorm:
    """|A|_2 by Golub and Kahan's bidiagonalisation from a normal start, fully reorthogonalised.

    ``steps``: the most taken, two products each and n + l numbers held; cut to the shorter side.
    ``tolerance``: of the residual, relative; no smaller than the rounding of the map's products.

    ``high`` is value / sqrt(1 - x), x = (ln(1.648 sqrt(m) / (1 - confidence)) / (2 k - 1))^2 after
    k steps, m the shorter side, infinite for x >= 1: the failure of Lanczos with a random start,
    Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13 (1992). It holds for repeated and for
    crowded singular values, and the pair found says more where the largest stands apart. The value
    itself where the recursion ended by exhausting its space.

    Raises ``ValueError`` where A has no adjoint, and for steps, confidence or seed out of range.
    """
    check_confidence(confidence)
    if not 0 <= tolerance < 1:
        msg = f"tolerance is {tolerance}, relative to the norm; give a number from 0 to below 1."
        raise ValueError(msg)
    short = min(a.shape)
    check_count("steps", min(steps, short), 1, short, "rows or columns")
    check_held("steps", min(steps, short), sum(a.shape))
    a = a if a.shape[1] == short else a.T
    start = Stream(seed, "estimators.spectral_norm").normal(short).to(a.device)
    for count, found in enumerate(bidiagonal(a, start, steps), start=1):  # noqa: B007
        left, s, right = torch.linalg.svd(found.b)
        value = float(s[0])
        if found.rest * abs(float(left[-1, 0])) <= tolerance * value:
            break
    u, v = left[:, 0] @ found.left, right[0] @ found.right
    residual = float(torch.maximum(norm(a @ v - value * u), norm(a.T @ u - value * v)))
    high = value
    if found.rest > 0 and count < short:
        x = (math.log(1.648 * math.sqrt(short) / (1 - confidence)) / (2 * count - 1)) ** 2
        high = value / math.sqrt(1 - x) if x < 1 else math.inf
    floor = 100 * torch.finfo(a.dtype).eps
    return SpectralNorm(
        value, residual, high, confidence, count, residual <= max(tolerance, floor) * value
    )


@validation.typed
def frobenius_norm(
    a: LinearMap, *, probes: int = 32, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """|A|_F from |A omega|^2, whose mean over normal omega is |A|_F^2.

    ``probes``: 2 to l; with l of them the columns are read, and nothing is estimated. The interval
    is a chi-square's whose degrees of freedom are estimated from the same products. Spread
    of the square: sqrt(2 |A^T A|_F^2 / probes).
    """
    check_confidence(confidence)
    check_count("probes", probes, 2, a.shape[1], "columns")
    check_held("probes", probes, max(a.shape))
    if probes == a.shape[1]:
        eye = torch.eye(probes, dtype=torch.float64, device=a.device)
        return certain(float(norm(a @ eye)), confidence)
    omega = Stream(seed, "estimators.frobenius_norm").normal(a.shape[1], probes)
    found = a @ omega.to(a.device)
    unit = magnitude(found)
    found = found / unit
    return of_squares((found.mT @ found).cpu(), min(a.shape), confidence).root().times(unit)
