"""Laws of random estimates: the mean over seeds, and the variance about it.

An operator that claims to be unbiased offers ``kernel_matrix(q, k)``, its estimate of the target's
kernel before any normalisation, or ``kernel_matrix(q, k, v)`` where it is not linear in v, on which
its draws then depend; one that claims a variance offers ``kernel_variance(q, k)``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softlab.core import as_matrix
from softlab.laws.law import (
    Gap,
    Law,
    has_field,
    largest,
    lengths,
    normal,
    rank_of,
    reseeded,
    tolerance,
)

F64 = torch.float64
SEEDS = 1200
ERRORS = 6.0
"""Standard errors allowed: two-sided 2e-9 an entry, so a false alarm is rarer than 1e-6 a law."""


def _points(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three queries; keys of which some are equal and some opposite to queries.

    Every published estimator has no variance at one of the two, so that a wrong factor there is
    seen to rounding, whatever the number of seeds. All have length 1/2: the tails of
    exp(<w, x + y>) grow with |x + y|, and with heavy ones 600 seeds were no large sample.
    """
    q, k = (0.5 * torch.nn.functional.normalize(normal(rng, rows, 4), dim=-1) for rows in (3, 4))
    return q, torch.cat((k, q, -q))


def _estimates(op: Any, tensors: tuple[Tensor, ...], rng: torch.Generator) -> Tensor:
    first = int(torch.randint(1 << 30, (), generator=rng, device="cpu"))
    return torch.stack([reseeded(op, first + s).kernel_matrix(*tensors) for s in range(SEEDS)])


def _terms(op: Any, k: Tensor) -> int:
    """How many numbers an entry of the estimate, or a row's sum, is added up of."""
    return int(getattr(op, "features", k.shape[-2]))


def _unbiased(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    q, k = _points(rng)
    linear = op.traits.linear_in_v
    tensors = (q, k) if linear else (q, k, normal(rng, len(k), 2))
    drawn = _estimates(op, tensors, rng)
    exact = op.target.kernel(q.shape[-1]).matrix(q, k)
    rounding = tolerance(F64, _terms(op, k), scale=largest(exact))
    allowed = ERRORS * drawn.std(0) / math.sqrt(SEEDS) + rounding
    yield Gap(largest((drawn.mean(0) - exact) / allowed), 1, f"mean of {SEEDS} seeds, in intervals")
    estimate = op.kernel_matrix(*tensors)
    if largest(as_matrix(op.target, q, k) - exact) > rounding:  # its rows are normalised
        mass = estimate.sum(-1, keepdim=True)
        estimate = torch.where(mass > 0, estimate / mass, 0)
    allowed_here = tolerance(F64, _terms(op, k), c=100, scale=largest(estimate))
    if linear:
        missed = largest(as_matrix(op, q, k) - estimate)
    else:
        missed = largest(op(*tensors) - estimate @ tensors[-1]) / len(k)
    yield Gap(missed, allowed_here, "M and the kernel's estimate")


def _variance(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    q, k = _points(rng)
    drawn = _estimates(op, (q, k), rng)
    claimed = op.kernel_variance(q, k)
    away = drawn - drawn.mean(0)
    found = away.square().mean(0) * SEEDS / (SEEDS - 1)
    # The standard error of a sample's variance, relative to it, is the root of kurtosis - 1 over N.
    # Skewed samples of too low variance also show too low a kurtosis: the largest one serves all.
    rounding = tolerance(F64, _terms(op, k), scale=largest(drawn.square()))
    kurtosis = away.pow(4).mean(0) / found.square().clamp_min(rounding**2)
    spread = found * math.sqrt((float(kurtosis.max()) - 1) / SEEDS)
    over = (found - claimed) / (ERRORS * spread + rounding)
    where = f"variance over {SEEDS} seeds"
    yield Gap(float(over.max()), 1, f"{where} above the claimed, in intervals")
    # All entries at once: one number a seed, whose mean is 1 where the claim is right. It is known
    # four times as well as the variance of one entry, so that a factor of 1.3 is seen.
    some = claimed > 1e3 * rounding
    pooled = (away.square() / torch.where(some, claimed, 1)).where(some, 0).sum((-2, -1))
    pooled = pooled / some.sum().clamp_min(1)
    error = ERRORS * float(pooled.std()) / math.sqrt(SEEDS)
    excess = float(pooled.mean()) - 1 if bool(some.any()) else 0.0
    yield Gap(excess, error, f"{where} over the claimed, less one, in the mean of all entries")
    if op.traits.variance == "equal":
        yield Gap(float(-over.min()), 1, "below the claimed")
        yield Gap(-excess, error, f"{where} under the claimed, in the mean of all entries")


def seeded(op: Any) -> bool:
    """Whether a draw of the operator's own, not one of its solver, has a seed."""
    if op.traits.seedless:
        return False
    return any(has_field(getattr(op, name), "seed") for name in _random(op)) or hasattr(op, "seed")


def _random(op: Any) -> list[str]:
    fields = dataclasses.fields(op) if dataclasses.is_dataclass(op) else ()
    return [field.name for field in fields if field.name not in ("pinv", "target")]


def _seeds(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    m = rank_of(op)
    n, l = lengths(op, m + 20, m + 24)
    q, k, v = normal(rng, n, 4), normal(rng, l, 4), normal(rng, l, 3)
    first = int(torch.randint(1 << 20, (), generator=rng, device="cpu"))
    outs = [reseeded(op, first + i)(q, k, v) for i in range(5)]
    moved = max(largest(out - outs[0]) for out in outs[1:])
    yield Gap(1e-9 * largest(v), moved, "the most that four other seeds change")
    again = reseeded(reseeded(op, first + 1), first)(q, k, v)
    yield Gap(float(not torch.equal(again, outs[0])), 0, "the first seed once more")


UNBIASED: Law[Any] = Law(
    "unbiased",
    "the kernel's estimate has the target's kernel as its mean over seeds, and M is made of it",
    lambda op: op.traits.unbiased,
    _unbiased,
    family="statistical",
    when="claims unbiased",
    allows="six standard errors of the mean over 1200 seeds",
    catches="a factor 1.01; the division by m in place of its root; weights of another variance",
    examples=1,
)
VARIANCE: Law[Any] = Law(
    "variance",
    "the variance of the kernel's estimate over seeds is the published one, or below its bound",
    lambda op: bool(op.traits.variance),
    _variance,
    family="statistical",
    when="claims a variance",
    allows="six standard errors of the variance over 1200 seeds, of each entry and of their mean",
    catches="each draw used twice; 0.7 and 1.3 times the variance",
    examples=1,
)
RESEEDED: Law[Any] = Law(
    "seeds",
    "another seed gives another output, and the same seed the same bits",
    seeded,
    _seeds,
    family="statistical",
    when="has a seed among its own fields",
    allows="a billionth of the values; no bit",
    catches="a seed that is ignored",
    any_dtype=True,
)
