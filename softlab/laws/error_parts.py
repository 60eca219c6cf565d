"""The law of the error budget: its parts add up, and end with their causes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from softlab.core import Operator
from softlab.error_budget import split
from softlab.landmarks import Selector
from softlab.laws.law import Gap, Law, largest, normal, rank_of, separated, tolerance
from softlab.pinv import Nystrom

F64 = torch.float64


def _budget(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    m = rank_of(op)
    q, k, v = normal(rng, m + 6, 4), normal(rng, m + 5, 4), normal(rng, m + 5, 3)
    for dtype in (F64, torch.float32):
        case = [x.to(dtype) for x in (q, k, v)]
        found = split(op, *case)
        error = op(*case).double() - op.target(*(x.double() for x in case))
        missed = error - sum(found.parts.values())
        scale = max(1.0, *(largest(part) for part in found.parts.values()))
        yield Gap(largest(missed), tolerance(F64, m, scale=scale), f"parts and whole, {dtype}")
        if dtype == F64:
            yield Gap(largest(found.parts["precision"]), 0, "precision of float64")
    found = split(op.inverted_exactly(), q, k, v)
    yield Gap(largest(found.parts["solve"]), 0, "solve of an exact inverse")
    yield from _full(op.inverted_exactly(), rng)


def _full(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    """With a landmark at every token nothing is left of an exact core, nor of its degrees."""
    selector = getattr(op, "landmarks", None)
    if isinstance(selector, Selector) and not selector.means:
        return  # has none at a token, however many
    n = 12
    full = dataclasses.replace(op, rank=2 * n if op.traits.lifted else n)
    # Unequal lengths give unequal degrees; at a quarter of the distance tokens see each other.
    tokens = separated(rng, n) * torch.linspace(0.6, 1.2, n, dtype=F64)[:, None]
    for shrink in (1.0, 0.25):
        x, v = tokens * shrink, normal(rng, n, 3)
        found = split(full, x, x, v)
        # As in the law of exactness: scores of size |x|^2 carry their rounding everywhere.
        kappa = float(x.square().sum(-1).max())
        allowed = tolerance(F64, n, kappa=kappa, scale=largest(v))
        yield Gap(largest(found.parts["landmarks"]), allowed, f"{full!r}: landmarks at every token")
        if op.traits.exact_at:
            yield Gap(largest(found.parts["normaliser"]), allowed, f"{full!r}: normaliser")


BUDGET: Law[Operator] = Law(
    "error budget",
    "the parts of the error add up to it, and each vanishes where its cause is removed",
    lambda op: isinstance(op, Nystrom),
    _budget,
    family="limits",
    when="can invert its core exactly, and normalise by its target",
    allows="rounding of sums over m, of the largest part",
    catches="a few steps that are called an exact inverse",
    examples=2,
)
