"""Spectral laws: what no approximation of its kind can be better than, or beyond."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from softlab.core import Operator, as_matrix
from softlab.laws.law import (
    Gap,
    Law,
    has_target,
    largest,
    lengths,
    normal,
    rank_of,
    size,
    tolerance,
)

F64 = torch.float64


def _below(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    m = rank_of(op)
    exact = op.inverted_exactly()
    for spread in (1.0, 2.5):
        x = spread * normal(rng, m + size(8, 1), 4)
        left = (as_matrix(op.target, x, x) - as_matrix(exact, x, x)).double()
        least = float(torch.linalg.eigvalsh((left + left.mT) / 2)[0])
        # An inverse of condition kappa leaves its rounding in what is subtracted.
        kappa = min(1e6, float(torch.linalg.cond(exact.core(x, x).double()).max()))
        yield Gap(-least, tolerance(F64, len(x), kappa=kappa, scale=len(x)), f"spread {spread:g}")


def _eckart_young(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    m = int(getattr(op, "features", rank_of(op)))
    n, l = lengths(op, m + size(6, 1), m + size(7, 1))
    q, k = 2 * normal(rng, n, 8), 2 * normal(rng, l, 8)
    target, matrix = as_matrix(op.target, q, k).double(), as_matrix(op, q, k).double()
    s = torch.linalg.svdvals(target)
    tail, error = (float(x.norm()) for x in (s[m:], target - matrix))
    allowed = tolerance(F64, n, scale=float(s[0]))
    yield Gap(tail - error, allowed, f"tail {tail:.3g}, error {error:.3g}, n={n}, l={l}")
    if op.traits.optimal:
        yield Gap(error - tail, allowed, f"claims the least: tail {tail:.3g}, error {error:.3g}")
    yield Gap(largest(matrix - target), 1e3 * (1 + largest(target)), "within sight of the target")


BELOW: Law[Any] = Law(
    "below the matrix",
    "where q = k and the core is inverted exactly, target - M is positive semidefinite",
    lambda op: op.traits.below,
    _below,
    family="spectral",
    when="claims below",
    allows="rounding of a sum of n entries, times the condition of the core",
    catches="an inverse applied twice; a tenth too much",
)
ECKART_YOUNG: Law[Operator] = Law(
    "Eckart-Young",
    "|target - M|_F is at least the tail of the target's singular values beyond the rank, and "
    "equals it where that is claimed",
    lambda op: op.traits.low_rank and op.traits.linear_in_v and has_target(op),
    _eckart_young,
    family="spectral",
    when="claims low_rank",
    allows="rounding of sums over n, times the largest singular value",
    catches="the exact matrix in the guise of one of low rank; a claim to be the best of its rank",
)
