"""Laws of certificates: a bound is never below the error, and falls to rounding at full rank.

An operator that claims ``certified`` offers ``bound(q, k, v, key_mask=None)``, (..., n); one that
claims ``draws`` offers ``interval(q, k, v, key_mask=None, confidence=...)``, whose ``high`` is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softlab.laws.law import (
    Gap,
    Law,
    asked,
    at_most,
    largest,
    lengths,
    needs_equal,
    normal,
    rank_of,
    refielded,
    reseeded,
    separated,
    takes_mask,
    tolerance,
)
from softlab.laws.limits import unconverged
from softlab.laws.situations import Situation, drawn

F64 = torch.float64
DTYPES = (F64, torch.float32, torch.bfloat16, torch.float16)
GEOMETRIES = ("runs", "normal", "spectral", "clustered", "identical", "apart", "one beyond")
DRAWN = 128
"""Draws of an operator whose intervals are asked."""
TRIALS = 600
CONFIDENCE, ALARM = 0.9, 1e-7
"""Of the intervals, and the chance of a false alarm in one run of the law."""
WIDEST = 4.0
"""How many times the ideal width an interval may have in one dimension."""
SITUATIONS = 2
"""Situations of a seed, beside one case of each geometry."""


def tokens(op: Any, geometry: str, rng: torch.Generator, scale: float, many: int = 2) -> Situation:
    """A batch of so many unlike cases of that geometry, in every second draw with tied keys.

    ``"runs"``: the first half of the tokens is one, the second its opposite, and so are the values,
    so that what is left out weighs as much as it can; ``"one beyond"``: one key more than the rank,
    so that the residual is as good as known; the others as of ``laws.strategies.Tokens``.
    """
    d, least = 5, rank_of(op)
    n, l = lengths(op, least + 10, 2 * least + 17)
    if geometry == "one beyond":
        n = l = lengths(op, least + 1, least + 1)[1]
    tied = bool(torch.randint(2, (), generator=rng, device="cpu")) or geometry == "one beyond"
    n = l if tied else n

    def points(count: int) -> Tensor:
        if geometry == "runs":
            sign = torch.where(torch.arange(count) < (count + 1) // 2, 1.0, -1.0)
            return sign.unsqueeze(-1).double() * torch.ones(many, count, d, dtype=F64)
        if geometry == "clustered":
            own = centres[:, torch.arange(count) % 3]
            return own + 1e-3 * normal(rng, many, count, d, dtype=F64)
        if geometry == "identical":
            return centres[:, :1].expand(many, count, d)
        if geometry == "spectral":
            basis = normal(rng, many, count, d, dtype=F64)
            return basis * 10.0 ** -torch.arange(d, dtype=F64)
        if geometry == "apart":
            return 12 * centres[:, torch.arange(count) % 3]
        return normal(rng, many, count, d, dtype=F64)

    centres = normal(rng, many, 3, d, dtype=F64)
    unlike = torch.linspace(1, 2.5, many, dtype=F64).view(many, 1, 1) * scale
    q = points(n).cpu() * unlike
    k = q if tied else points(l).cpu() * unlike
    v = normal(rng, many, l, 1 if geometry in ("runs", "one beyond") else 3, dtype=F64).cpu()
    if geometry == "runs":
        v = torch.where(torch.arange(l) < (l + 1) // 2, 1.0, -1.0).double().view(1, l, 1)
        v = v.expand(many, l, 1)
    mask = None
    if takes_mask(op) and geometry == "normal":
        mask = torch.rand(many, l, generator=rng, device="cpu") < 0.8
        mask = mask | (torch.arange(l) < least)
    return Situation(q, k, v, mask, f"{geometry}, scale {scale:g}, {n} x {l}, tied {tied}")


def missed(op: Any, case: Situation, dtype: torch.dtype) -> Gap:
    """By how much the bound of a case in that precision is below the error against float64."""
    q, k, v = (x.to(dtype) for x in case.tokens)
    k = q if case.k is case.q else k
    where = f"{case.where}, {str(dtype).removeprefix('torch.')}"
    out, bound = op(q, k, v, *case.masked), op.bound(q, k, v, *case.masked)
    if bound.shape != out.shape[:-1] or bound.dtype != out.dtype:
        said = f"bound is {tuple(bound.shape)}, {bound.dtype}"
        return Gap(math.inf, 0, f"{said}, and an output {tuple(out.shape)}, {out.dtype}; {where}")
    wide = [x.double() for x in (q, k, v)]
    wide[1] = wide[0] if k is q else wide[1]
    exact = op.target(*wide, *case.masked)
    error = (out.double() - exact).norm(dim=-1)
    over = torch.where(bound == math.inf, -math.inf, error - bound.double())
    # The reference is rounded in its scores, which are as large as |q| |k|, and in its sums.
    l = k.shape[-2]
    size = 1 + largest(wide[0].norm(dim=-1)) * largest(wide[1].norm(dim=-1))
    scale = largest(v) * (1 if op.target.traits.row_stochastic else l)
    row = int(over.flatten().argmax())
    where += f"; row {row}: error {float(error.flatten()[row]):.3g}"
    return Gap(float(over.max()), tolerance(F64, l, kappa=size, scale=scale), where)


def cases(op: Any, rng: torch.Generator) -> Iterator[tuple[Situation, torch.dtype]]:
    """What the certificate is asked at a seed: every geometry, and some situations."""
    turn = asked()
    for i, geometry in enumerate(GEOMETRIES):
        scale = (1.0, 0.3, 3.0, 1e-3, 30.0)[(turn + i) % 5]
        case = tokens(op, geometry, rng, scale)
        if geometry == "normal" and turn % 2:  # values whose squares are 0 in float32
            small = f"{case.where}, values of 1e-25"
            case = dataclasses.replace(case, v=1e-25 * case.v, where=small)
        yield case, DTYPES[(turn // 5 + i) % len(DTYPES)]
    for i, case in enumerate(drawn(op, rng, SITUATIONS)):
        yield case, DTYPES[(turn + i) % 2]


def _certificate(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for case, dtype in cases(op, rng):
        yield missed(op, case, dtype)


def _informative(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    if hasattr(op, "pinv"):
        x = separated(rng, 12) / 4
        full = at_most(op, 12)
        if unconverged(full, x, x):
            return
        sets = [(x, x, normal(rng, 12, 3))]
    else:
        n, l = lengths(op, 14, 9)
        full = at_most(op, l)
        sets = [
            (s * normal(rng, n, 4), s * normal(rng, l, 4), normal(rng, l, 3)) for s in (0.3, 1.0)
        ]
    for q, k, v in sets:
        bound = largest(full.bound(q, k, v))
        kappa = 1 + float(q.norm(dim=-1).max() * k.norm(dim=-1).max())
        allowed = tolerance(F64, len(k), c=1e3, kappa=kappa, scale=len(k) * largest(v))
        yield Gap(bound, allowed, f"{full!r} on {len(k)} keys: the largest bound")


def _coverage(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    """Misses of the stated odds in many draws, one row of each, against the binomial law."""
    l = 12 if op.traits.draws == "features" else 4 * DRAWN
    share = isinstance(getattr(op, op.traits.draws, None), float)
    many = refielded(op, op.traits.draws, DRAWN / l if share else DRAWN)
    n = l if needs_equal(op) else 1
    q, k, v = 0.15 * normal(rng, n, 4), 0.15 * normal(rng, l, 4), normal(rng, l, 1)
    exact = many.target(q, k, v)[0]
    first = int(torch.randint(1 << 30, (), generator=rng, device="cpu"))
    missed, asked_of, errors, ends = 0, 0, 0.0, 0.0
    for seed in range(first, first + TRIALS):
        one = reseeded(many, seed)
        high = float(one.interval(q, k, v, confidence=CONFIDENCE).high[0])
        error = float((one(q, k, v)[0] - exact).norm())
        if high == math.inf:
            continue
        asked_of, missed = asked_of + 1, missed + (error > high)
        errors, ends = errors + error**2, ends + high
    # The odds are those of an interval that is given: a row without an end is no hit.
    where = f"{missed} misses in {TRIALS} draws, {asked_of} with an end, at {CONFIDENCE}"
    yield Gap(float(asked_of == 0), 0, f"{where}: no interval has an end on tame tokens")
    yield Gap(missed, _most_misses(asked_of), where)
    ideal = math.sqrt(errors / max(1, asked_of)) * 1.645
    width = ends / max(1, asked_of) / ideal if ideal > 0 else 1.0
    yield Gap(width, WIDEST, f"width over the ideal one; {where}")


def _most_misses(trials: int) -> int:
    """The most misses that a binomial number exceeds with a chance below ``ALARM``."""
    miss = 1 - CONFIDENCE
    chance, most = (1 - miss) ** trials, 0
    below = chance
    while 1 - below > ALARM and most < trials:
        chance *= (trials - most) / (most + 1) * miss / (1 - miss)
        most += 1
        below += chance
    return most


CERTIFICATE: Law[Any] = Law(
    "certificate",
    "op.bound(q, k, v) is at least the norm of each row of op(q, k, v) less op.target(q, k, v) in "
    "float64, on every geometry, scale, mask and precision",
    lambda op: op.traits.certified,
    _certificate,
    family="honesty",
    when="claims certified",
    allows="the rounding of the reference in float64",
    catches="half of the bound; the bound of one matrix for a batch; a bound blind to a mask; a "
    "bound without rounding",
)
INFORMATIVE: Law[Any] = Law(
    "informative",
    "where the knob reaches the number of keys op.bound(q, k, v) falls to rounding",
    lambda op: op.traits.certified and bool(op.traits.exact_at),
    _informative,
    family="limits",
    when="claims certified and exact_at",
    allows="1000 roundings of the sum of all values",
    catches="the diameter of the values as the bound of any error",
)
COVERAGE: Law[Any] = Law(
    "coverage",
    "of the draws for which op.interval(q, k, v, confidence).high has an end, no larger share than "
    "stated errs by more, and the interval is no more than 4 times as wide as the errors are",
    lambda op: bool(op.traits.draws),
    _coverage,
    family="statistical",
    when="claims draws",
    allows="as many misses as a binomial number exceeds once in ten million runs",
    catches="a one-sided quantile; a spread that forgets the normaliser; half of the interval; an "
    "interval of any two values",
    examples=1,
)
