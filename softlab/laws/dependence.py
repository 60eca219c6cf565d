"""Laws of what a matrix reads of its tokens: scores, differences of scores, or distances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softlab.core import Operator, as_matrix
from softlab.laws.law import (
    WIDE,
    Gap,
    Law,
    has_field,
    is_plain,
    largest,
    lengths,
    normal,
    rank_of,
    refielded,
    size,
    tolerance,
)
from softlab.pinv import Inverting

F64 = torch.float64
FAR = 1e5
"""How far from the origin tokens are shifted whose distances alone are read."""
KINDS = ("scores", "relative scores", "distances")


def _draw(op: Operator, rng: torch.Generator, usual: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    m = rank_of(op)
    n, l = lengths(op, m + size(5), m + size(7))
    d = size(usual, 2)
    return normal(rng, n, d), normal(rng, l, d), normal(rng, l, size(3))


def condition(op: Operator, q: Tensor, k: Tensor) -> float:
    """The condition of the core that the operator inverts, or 1: how far rounding may carry."""
    if not isinstance(op, Inverting):
        return 1.0
    return float(torch.linalg.cond(op.core(q, k).double()).max())


def _moves(op: Operator, q: Tensor, k: Tensor, rng: torch.Generator) -> dict[str, Any]:
    """Tokens from which the matrix must come out as from q and k."""
    d = q.shape[-1]
    turn = torch.linalg.qr(normal(rng, d, d, dtype=F64) + 2 * torch.eye(d, dtype=F64)).Q.to(q)
    shift = normal(rng, 1, d)
    if op.traits.reads == "distances":
        return {"turned": (q @ turn, k @ turn), "shifted": (q + shift, k + shift)}
    stretch = torch.linspace(0.5, 2, d, dtype=F64).to(q)
    moves = {"q B, k B^-T": (q @ (turn * stretch), k @ (turn / stretch))}
    if op.traits.reads == "relative scores":
        moves["keys shifted"] = (q, k + shift)
    return moves


def _reads(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    yield Gap(float(op.traits.reads not in KINDS), 0, f"reads is one of {', '.join(KINDS)}")
    for d in (4, WIDE):
        q, k, v = _draw(op, rng, d)
        out = op(q, k, v)
        kappa = 10 * max(10.0, condition(op, q, k))
        for how, (q_, k_) in _moves(op, q, k, rng).items():
            allowed = tolerance(F64, len(k), kappa=kappa, scale=largest(v))
            where = f"{how}, n={len(q)}, l={len(k)}, d={q.shape[-1]}"
            yield Gap(largest(op(q_, k_, v) - out), allowed, where)


def _far(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    for d in (4, WIDE):
        q, k, v = _draw(op, rng, d)
        out = op(q, k, v)
        kappa = 10 * max(10.0, condition(op, q, k))
        for away in (FAR / 100, FAR):
            shift = away * normal(rng, 1, q.shape[-1])
            # Tokens far from the origin are rounded by its distance, their squares by its square.
            allowed = tolerance(F64, len(k), kappa=kappa * away, scale=largest(v))
            where = f"shifted by {away:g}, n={len(q)}, l={len(k)}, d={q.shape[-1]}"
            yield Gap(largest(op(q + shift, k + shift, v) - out), allowed, where)


def _scale(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    q, k, v = _draw(op, rng)
    # Powers of two, which no rounding sees.
    for c in (2.0, 0.5, 2.0**20):
        if has_field(op, "bandwidth"):
            one, other = (refielded(op, "bandwidth", b) for b in (1.3, 1.3 * c))
        else:
            one, other = (refielded(op, "scale", s) for s in (0.7, 0.7 / c**2))
        out = one(q, k, v)
        allowed = tolerance(F64, len(k), kappa=10 * condition(one, q, k), scale=largest(v))
        yield Gap(largest(other(c * q, c * k, v) - out), allowed, f"{other!r} on tokens times {c}")


def _reciprocal(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    q, k, _ = _draw(op, rng)
    there, back = as_matrix(op, q, k), as_matrix(op, k, q)
    allowed = tolerance(F64, len(k), scale=largest(there))
    yield Gap(largest(there - back.mT), allowed, f"n={len(q)}, l={len(k)}")


def _kernel(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    q, k, _ = _draw(op, rng)
    for queries in (q, normal(rng, *k.shape)):  # and as many as keys
        wanted = normalised(op, queries, k)
        allowed = tolerance(F64, len(k), kappa=10, scale=largest(wanted))
        missed = largest(as_matrix(op, queries, k) - wanted)
        yield Gap(missed, allowed, f"n={len(queries)}, l={len(k)}")


def normalised(op: Any, q: Tensor, k: Tensor) -> Tensor:
    """The matrix of the operator's kernel, normalised as it says."""
    kernel = op.kernel(q.shape[-1])
    matrix: Tensor = kernel.matrix(q, k)
    if op.traits.causal:
        matrix = matrix.tril()
    if op.traits.row_stochastic:
        return matrix / matrix.sum(-1, keepdim=True)
    if getattr(op, "normalization", "none") != "symmetric":
        return matrix
    degrees: Tensor = matrix.sum(-1, keepdim=True) * kernel.matrix(k, k).sum(-1)
    return matrix / degrees.sqrt()


KERNEL: Law[Any] = Law(
    "kernel",
    "M is the matrix of the kernel that the operator names, its rows normalised or both sides as "
    "it says",
    lambda op: op.traits.exact and not op.traits.replacement and hasattr(op, "kernel"),
    _kernel,
    family="algebraic",
    when="is exact and names its kernel",
    allows="rounding of sums over l",
    catches="another factor of the scores; a distance without its square",
    any_dtype=True,
)
READS: Law[Operator] = Law(
    "reads",
    "M is the same of q B and k B^-T where it reads scores q k^T; also of k + 1 c^T where it reads "
    "their differences in a row; of q R + 1 c^T and k R + 1 c^T, R a rotation, where distances",
    lambda op: bool(op.traits.reads),
    _reads,
    family="algebraic",
    when="says in traits.reads what M depends on",
    allows="rounding of sums over l, times the condition of a core",
    catches="lengths of q or k in the scores",
    any_dtype=True,
)
FAR_AWAY: Law[Operator] = Law(
    "far from the origin",
    "M is the same of tokens that are all shifted far, up to their own rounding, where it reads "
    "distances",
    lambda op: op.traits.reads == "distances",
    _far,
    family="numerical",
    when="reads distances, as it says or as was found close to the origin",
    allows="rounding of sums over l and of the shifted tokens, times the condition of a core",
    catches="expanded squares",
)
SCALE: Law[Any] = Law(
    "kernel scale",
    "c times the bandwidth, or 1/c^2 times the factor of the scores, on c q and c k changes "
    "nothing",
    lambda op: (
        not is_plain(op)
        and (
            (has_field(op, "bandwidth") and op.traits.reads == "distances")
            or (has_field(op, "scale") and op.traits.reads.endswith("scores"))
        )
    ),
    _scale,
    family="algebraic",
    when="has a field bandwidth and reads distances, or a field scale and reads scores",
    allows="rounding of sums over l, times the condition of a core",
    catches="a bandwidth without its square",
    any_dtype=True,
)
RECIPROCAL: Law[Operator] = Law(
    "transposition",
    "M(q, k)^T = M(k, q)",
    lambda op: op.traits.reciprocal,
    _reciprocal,
    family="algebraic",
    when="claims reciprocal",
    allows="rounding of sums over l",
    catches="rows that are normalised beside a claim that none are",
    any_dtype=True,
)
