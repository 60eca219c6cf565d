"""Laws of temperature, the bandwidth's double: infinite, zero, and of one key alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from softlab.core import Operator, as_matrix
from softlab.laws.law import (
    Gap,
    Law,
    has_target,
    is_plain,
    largest,
    lengths,
    normal,
    own_fields,
    size,
    tolerance,
)

F64 = torch.float64


def _warm(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    n, l = lengths(op, size(6, 2), size(9, 3))
    d = size(4)
    zero = normal(rng, l, d)[:1] * 0
    matrix = as_matrix(op, zero.expand(n, d), zero.expand(l, d)).double()
    seen = torch.arange(1, l + 1, dtype=F64)[:, None] if op.traits.causal else float(l)
    wanted = torch.ones(n, l, dtype=F64) / (1.0 if _bare(op, l) else seen)
    wanted = wanted.tril() if op.traits.causal else wanted
    yield Gap(largest(matrix.cpu() - wanted), tolerance(F64, l), f"all tokens zero, n={n}, l={l}")


def _bare(op: Any, l: int) -> bool:
    """Whether the rows are those of the kernel, not normalised, by the operator's own account.

    A function that is said to be exact has the rows of its target, also where that is all it says.
    """
    claims = op.target.traits if is_plain(op) and has_target(op) else op.traits
    return not claims.row_stochastic and getattr(op, "normalization", "none") == "none" and l > 1


def _cold(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    n, l = lengths(op, size(6, 2), size(9, 2))
    q, k = normal(rng, n, size(4)), normal(rng, l, size(4))
    warm = as_matrix(op, q, k)
    # Between the two largest of a row there is a factor exp(gap), and cooling multiplies the gap.
    top = warm.double().topk(min(2, l), -1).values
    clear = (
        (top[:, 0] <= 0) | (top[:, -1] < 0.999 * top[:, 0])
        if l > 1
        else torch.ones(n, dtype=torch.bool)
    )
    cold = as_matrix(op, 300 * q, 300 * k)
    wanted = torch.nn.functional.one_hot(warm.argmax(-1), l).to(cold)
    missed = (cold - wanted)[clear.to(cold.device)]
    if missed.numel():
        yield Gap(largest(missed), tolerance(F64, l), f"tokens times 300, n={n}, l={l}")


def _one_key(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    knob = "rank" in own_fields(op) and not is_plain(op)
    subject = dataclasses.replace(op, rank=1) if knob else op
    for n in (1, 3):
        rows, _ = lengths(op, n, 1)
        # A kernel that underflows leaves a landmark method no weight at all.
        for scale in (1.0,) if hasattr(op, "pinv") else (1.0, 30.0):
            q, k, v = (scale * normal(rng, rows, 4), scale * normal(rng, 1, 4), normal(rng, 1, 3))
            wanted = v.expand(rows, 3)
            if not op.traits.row_stochastic:
                if rows != 1 or not has_target(op):  # a core needs as many queries
                    continue
                wanted = op.target(q, k, v)
            allowed = tolerance(F64, 1, kappa=1 + scale**2, scale=largest(v))
            yield Gap(largest(subject(q, k, v) - wanted), allowed, f"{rows} queries, one key")


WARM: Law[Any] = Law(
    "infinite temperature",
    "with all scores, or distances, zero every weight is equal: 1, or 1/l with normalised rows",
    lambda op: (
        op.traits.linear_in_v
        and (
            (op.traits.exact and not op.traits.replacement)
            or (
                op.traits.row_stochastic
                and op.traits.key_invariant
                and not op.traits.restricted
                # A hard maximum, or the largest few scores, are averages that treat keys alike too.
                and (not is_plain(op) or bool(op.form))
            )
        )
    ),
    _warm,
    family="limits",
    when="is exact, or an average that treats all keys alike, and no unknown function",
    allows="rounding of sums over l",
    catches="zeros; a normaliser that counts one key too many",
    any_dtype=True,
)
COLD: Law[Operator] = Law(
    "zero temperature",
    "as the tokens grow each row of M has all of its weight at its largest entry",
    lambda op: (
        op.traits.exact
        and op.traits.linear_in_v
        and op.traits.row_stochastic
        and not op.traits.replacement
    ),
    _cold,
    family="limits",
    when="is exact with rows that sum to one",
    allows="rounding of one entry",
    catches="zeros; scores that are clipped",
    any_dtype=True,
)
ONE_KEY: Law[Any] = Law(
    "one key",
    "of one key the output is its value, or what the target makes of it",
    lambda op: op.traits.row_stochastic or bool(op.traits.exact_at),
    _one_key,
    family="limits",
    when="has rows that sum to one, or is exact at its most",
    allows="rounding of one score",
    catches="zeros; an epsilon in the normaliser",
    any_dtype=True,
)
