"""The distribution of eigenvalues or singular values, by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from softlab.core import Stream
from softlab.estimators.estimate import (
    Estimate,
    certain,
    check_confidence,
    check_count,
    check_held,
    magnitude,
    of_mean,
    student,
)
from softlab.estimators.krylov import bidiagonal, tridiagonal
from softlab.estimators.linear_map import LinearMap
from softlab.validation import MOST_STEPS, typed


@dataclass(frozen=True)
class Density:
    """One discrete measure a probe; their mean stands for the spectrum, each value 1 / ``size``.

    ``nodes`` and ``weights``: (probes, steps), weights of a probe summing to 1, 0 where the
    recursion ended early. ``size``: the number of values. The measure of k steps has the first
    2 k - 1 moments that its probe sees, which is the spectrum weighted by the probe's squared
    coefficients: repeated values come once, with their weight. Smooth functions are served well,
    and steps inside a crowded spectrum blurred.
    """

    nodes: Tensor
    weights: Tensor
    size: int

    @typed
    def sums(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """What each probe makes of the sum of f over all values, (probes,)."""
        return self.size * (self.weights * f(self.nodes)).sum(-1)

    @typed
    def sum(self, f: Callable[[Tensor], Tensor], *, confidence: float = 0.95) -> Estimate:
        """The sum of f over all values; Student's interval over the probes."""
        check_confidence(confidence)
        found = self.sums(f)
        unit = magnitude(found)
        found = found / unit
        error = float(found.std()) / math.sqrt(len(found))
        return of_mean(float(found.mean()), error, len(found) - 1, confidence).times(unit)

    @typed
    def below(self, x: Tensor) -> Tensor:
        """The share of values that are at most x (...,)."""
        if bool(x.isnan().any()):
            msg = "x holds NaN, below which there is nothing; give numbers."
            raise ValueError(msg)
        under = self.nodes.flatten() <= x.unsqueeze(-1)
        return (under * self.weights.flatten()).sum(-1) / len(self.nodes)


@typed
def eigenvalues(a: LinearMap, *, steps: int = 40, probes: int = 10, seed: int = 0) -> Density:
    """The density of the eigenvalues of a symmetric matrix (n, n).

    ``probes``, at least 2, of ``steps`` products each, one probe at a time; ``ValueError`` unless
    the map says that it is symmetric. In Wasserstein distance the error is of order
    (l_max - l_min) / steps, and one probe suffices for large n: arXiv 2105.06595, abstract.
    """
    if not a.symmetric:
        msg = "eigenvalues needs a symmetric map; ask for its singular_values instead."
        raise ValueError(msg)
    n = a.shape[0]
    _check(probes, n)
    check_count("steps", min(steps, n), 1, n, "rows")
    check_held("steps", min(steps, n), n)
    starts = Stream(seed, "estimators.eigenvalues").normal(n, probes).to(a.device).mT
    return _density([_quadrature(tridiagonal(a, start, steps)) for start in starts], n)


@typed
def singular_values(a: LinearMap, *, steps: int = 40, probes: int = 10, seed: int = 0) -> Density:
    """The density of the min(n, l) singular values of any matrix, which needs its adjoint.

    As ``eigenvalues``, of A^T A by bidiagonalisation, which never squares a singular value.
    """
    return _both(a, steps, probes, seed)[0]


def _both(a: LinearMap, steps: int, probes: int, seed: int) -> tuple[Density, Density]:
    """The density of singular values by Gauss's rule, and by Radau's, which has a node at 0."""
    short = min(a.shape)
    _check(probes, short)
    check_count("steps", min(steps, short), 1, short, "rows or columns")
    check_held("steps", min(steps, short), sum(a.shape))
    a = a if a.shape[1] == short else a.T
    gauss, radau = [], []
    starts = Stream(seed, "estimators.singular_values").normal(short, probes).to(a.device).mT
    for start in starts:
        *_, last = bidiagonal(a, start, steps)
        _, s, right = torch.linalg.svd(last.b)
        gauss.append((s, right[:, 0].square()))
        if last.rest:  # one column more, of the next vector, makes B^T B singular
            column = torch.zeros_like(last.b[:, :1])
            column[-1] = last.rest
            _, s, right = torch.linalg.svd(torch.cat((last.b, column), 1))
        nodes = torch.nn.functional.pad(s, (0, len(right) - len(s)))
        radau.append((nodes, right[:, 0].square()))
    return _density(gauss, short), _density(radau, short)


@typed
def effective_rank(
    a: LinearMap,
    *,
    steps: int = 40,
    probes: int = 10,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """exp(entropy of s / sum s) over the singular values s, from their density; 0 for A = 0.

    Sums of s and of -s log s are concave in s^2 next to 0, where few ``steps`` see least. Gauss's
    rule then gives too much and Radau's, with a node at 0, too little. The value lies in the middle
    of what the two make of it, and the interval is Student's with the jackknife over probes, on the
    logarithm, beyond both: it is wide where the steps are too few, and then more of them help.
    All three are cut to 1 and the number of singular values, between which the rank itself lies.
    Reference: Roy and Vetterli, EUSIPCO 2007.
    """
    check_confidence(confidence)
    rules = _both(a, steps, probes, seed)
    largest = float(rules[0].nodes.max())
    if largest == 0:
        return certain(0.0, confidence)
    ends = [_entropy(density, largest) for density in rules]
    middle = sum(value for value, _ in ends) / 2
    reach = [student(probes - 1, confidence) * error for _, error in ends]
    low = min(value - x for (value, _), x in zip(ends, reach, strict=True))
    high = max(value + x for (value, _), x in zip(ends, reach, strict=True))
    most = math.log(rules[0].size)
    value, low, high = (math.exp(min(max(x, 0.0), most)) for x in (middle, low, high))
    return Estimate(value, low, high, confidence)


def _entropy(density: Density, largest: float) -> tuple[float, float]:
    """The entropy of s / sum s, and its jackknife error over the probes."""
    # Of s / max s: its logarithm is small where s is large, and nothing overflows.
    total = density.sums(lambda s: s / largest)
    terms = density.sums(lambda s: torch.special.xlogy(s / largest, s / largest))
    m = len(total)

    def entropy(sums: Tensor, logs: Tensor) -> Tensor:
        return sums.log() - logs / sums

    left = entropy((total.sum() - total) / (m - 1), (terms.sum() - terms) / (m - 1))
    error = math.sqrt(float((left - left.mean()).square().sum()) * (m - 1) / m)
    return float(entropy(total.mean(), terms.mean())), error


def _quadrature(t: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss's nodes, the eigenvalues of T, and weights, squared first entries of its vectors."""
    values, vectors = torch.linalg.eigh(t)
    return values, vectors[0].square()


def _density(found: list[tuple[Tensor, Tensor]], size: int) -> Density:
    widest = max(len(nodes) for nodes, _ in found)
    # A recursion that ended early repeats its first node, at no weight.
    nodes = torch.stack([torch.cat((x, x[:1].expand(widest - len(x)))) for x, _ in found])
    weights = torch.stack([torch.nn.functional.pad(w, (0, widest - len(w))) for _, w in found])
    return Density(nodes, weights, size)


def _check(probes: int, each: int) -> None:
    if not 2 <= probes <= MOST_STEPS:
        msg = (
            f"probes is {probes!r}; give an integer of at least 2, for an error estimate, and at "
            f"most {MOST_STEPS}, each of which takes its own steps."
        )
        raise ValueError(msg)
    check_held("probes", probes, each)
