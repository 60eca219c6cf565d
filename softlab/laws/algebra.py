"""Algebraic laws of the operator's matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from softlab.core import Operator, as_matrix
from softlab.laws.law import (
    Gap,
    Law,
    largest,
    lengths,
    normal,
    order,
    rank_of,
    size,
    tolerance,
    uniform_int,
)

F64 = torch.float64


def _draw(op: Operator, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of two matrices, every other time as many of each."""
    n, l = (rank_of(op) + uniform_int(rng, 1, 9) for _ in range(2))
    n, l = lengths(op, l if uniform_int(rng, 0, 1) else n, l)
    b, d, e = size(2), size(4), size(3)
    return normal(rng, b, n, d), normal(rng, b, l, d), normal(rng, b, l, e)


def _tied_matrix(op: Operator, rng: torch.Generator) -> Tensor:
    x = normal(rng, size(2), rank_of(op) + uniform_int(rng, 1, 9), size(4))
    return as_matrix(op, x, x)


def _linear(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    q, k, v = _draw(op, rng)
    w = normal(rng, *v.shape)
    split = 2.5 * op(q, k, v) - 3 * op(q, k, w)
    scale = largest(as_matrix(op, q, k)) * v.shape[-2]
    allowed = tolerance(F64, v.shape[-2], scale=5 * scale)
    yield Gap(largest(op(q, k, 2.5 * v - 3 * w) - split), allowed, f"v {tuple(v.shape)}")


def _queries(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    q, k, v = _draw(op, rng)
    p = order(rng, q.shape[-2])
    out = op(q, k, v)
    allowed = tolerance(F64, k.shape[-2], c=100, scale=largest(out))
    yield Gap(largest(op(q[:, p], k, v) - out[:, p]), allowed, f"order {p.tolist()}")


def _keys(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    q, k, v = _draw(op, rng)
    p = order(rng, k.shape[-2])
    out = op(q, k, v)
    allowed = tolerance(F64, k.shape[-2], c=100, scale=largest(out))
    yield Gap(largest(op(q, k[:, p], v[:, p]) - out), allowed, f"order {p.tolist()}")


def _row_sums(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    q, k, v = _draw(op, rng)
    if op.traits.linear_in_v:
        matrix = as_matrix(op, q, k)
        allowed = tolerance(F64, k.shape[-2], scale=max(1, largest(matrix)))
        yield Gap(largest(matrix.sum(-1) - 1), allowed, "row sums")
        return
    for level in (1.0, -30.0):
        out = op(q, k, torch.full_like(v, level))
        allowed = tolerance(F64, k.shape[-2], scale=abs(level))
        yield Gap(largest(out - level), allowed, f"all values are {level:g}")


def _nonnegative(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    for spread in (1.0, 3.0):
        q, k, v = _draw(op, rng)
        q, k, where = spread * q, spread * k, f"tokens of size {spread:g}"
        if op.traits.linear_in_v:
            yield Gap(float(-as_matrix(op, q, k).detach().min()), 0, f"{where}: smallest entry")
            continue
        least = float(-op(q, k, v.abs()).detach().min())
        yield Gap(least, 0, f"{where}: smallest output of values that are not negative")


def _symmetric(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    matrix = _tied_matrix(op, rng)
    allowed = tolerance(F64, matrix.shape[-1], c=100, scale=largest(matrix))
    yield Gap(largest(matrix - matrix.mT), allowed, "M - M^T")


def _psd(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    matrix = _tied_matrix(op, rng)
    eigenvalues = torch.linalg.eigvalsh((matrix + matrix.mT).double() / 2)
    allowed = tolerance(F64, matrix.shape[-1], c=100, scale=float(eigenvalues.max()))
    yield Gap(float(-eigenvalues.min()), allowed, "smallest eigenvalue")


def _restricted(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    for sizes in ((16, 16), (9, 21), (21, 9)):
        n, l = lengths(op, *sizes)
        q, k, v = (normal(rng, rows, 4) for rows in (n, l, l))
        exact, matrix = as_matrix(op.target, q, k), as_matrix(op, q, k)
        kept = exact * (matrix != 0)
        mass = kept.sum(-1, keepdim=True)
        where = f"n={n}, l={l}"
        yield Gap(float((mass <= 0).sum()), 0, f"{where}: rows that keep nothing")
        allowed = tolerance(F64, l)
        yield Gap(largest(matrix * mass - kept), allowed, f"{where}: M and its target where kept")
        missed = (op(q, k, v) - op.target(q, k, v)).norm(dim=-1)
        over = missed - (1 - mass.squeeze(-1)) * torch.cdist(v, v).max()
        yield Gap(float(over.max()), tolerance(F64, l, scale=largest(v)), f"{where}: bound")


LINEAR_IN_V: Law[Operator] = Law(
    "linear in v",
    "op(a v + b w) = a op(v) + b op(w)",
    lambda op: op.traits.linear_in_v,
    _linear,
    family="algebraic",
    when="is linear in v",
    allows="rounding of sums over l of the largest weight times values",
    catches="an absolute value; a constant added to the output",
    any_dtype=True,
)
QUERY_EQUIVARIANT: Law[Operator] = Law(
    "query equivariance",
    "op(P q, k, v) = P op(q, k, v) for a permutation P",
    lambda op: op.traits.query_equivariant,
    _queries,
    family="algebraic",
    when="claims query_equivariant",
    allows="rounding of sums over l",
    catches="weights that depend on the position of a query",
    any_dtype=True,
)
KEY_INVARIANT: Law[Operator] = Law(
    "key invariance",
    "op(q, P k, P v) = op(q, k, v) for a permutation P",
    lambda op: op.traits.key_invariant,
    _keys,
    family="algebraic",
    when="claims key_invariant",
    allows="rounding of sums over l, of another order",
    catches="values weighted by their position",
    any_dtype=True,
)
ROW_STOCHASTIC: Law[Operator] = Law(
    "row-stochastic",
    "M 1 = 1, or equal values stay as they are",
    lambda op: op.traits.row_stochastic,
    _row_sums,
    family="algebraic",
    when="claims row_stochastic",
    allows="rounding of sums over l",
    catches="zeros; a factor 1 + 1e-9; rows that are not normalised",
    any_dtype=True,
)
NONNEGATIVE: Law[Operator] = Law(
    "non-negative",
    "M >= 0, or values >= 0 give outputs >= 0",
    lambda op: op.traits.nonnegative,
    _nonnegative,
    family="algebraic",
    when="claims nonnegative",
    allows="nothing",
    catches="a truncated SVD; a mean that is taken off",
    any_dtype=True,
)
SYMMETRIC: Law[Operator] = Law(
    "symmetric",
    "M = M^T where q = k",
    lambda op: op.traits.symmetric,
    _symmetric,
    family="algebraic",
    when="claims symmetric",
    allows="rounding of sums over n",
    catches="rows that are normalised",
    any_dtype=True,
)
PSD: Law[Operator] = Law(
    "positive semidefinite",
    "x^T M x >= 0 where q = k",
    lambda op: op.traits.psd,
    _psd,
    family="spectral",
    when="claims psd",
    allows="rounding of sums over n, times the largest eigenvalue",
    catches="a kernel less the identity",
    any_dtype=True,
)
RESTRICTED: Law[Operator] = Law(
    "restricted",
    "a row of M is the target's on its support, rescaled; it errs by the mass left out at most",
    lambda op: op.traits.restricted,
    _restricted,
    family="algebraic",
    when="claims restricted",
    allows="rounding of sums over l",
    catches="zeros; the mean of v; a key that counts twice",
)
