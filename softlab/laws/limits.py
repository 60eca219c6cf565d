"""Limits: full rank, low rank, extreme scales, and the gradient as a limit of differences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softlab.core import Operator, as_matrix
from softlab.laws.law import (
    WIDE,
    Gap,
    Law,
    OutOfScopeError,
    always,
    at_most,
    has_target,
    is_plain,
    largest,
    lengths,
    need_gradient,
    normal,
    own_fields,
    rank_of,
    separated,
    steps_of,
    takes_mask,
    tolerance,
)
from softlab.pinv import Inverting, Status
from softlab.profiling import peak_memory

F64 = torch.float64
SPARE = 4
"""How many times as many keys as its largest knob an approximation may keep whole."""
LONGEST = 4096
"""Most keys on which an approximation is told from its target."""


def _exact_at(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    n = 12
    full = at_most(op, n)
    # Unequal lengths give unequal row sums, so that the normalisations differ.
    tokens = separated(rng, n)
    tokens = tokens * torch.linspace(0.6, 1.2, n).to(tokens)[:, None]
    # Columns of zeros change no score but its scale, which the factor undoes.
    more = WIDE - tokens.shape[-1]
    wide = torch.nn.functional.pad(tokens * (WIDE / tokens.shape[-1]) ** 0.25, (0, more))
    # At a quarter of the distance the matrix is far from the identity and still well-conditioned.
    for shrink, x in ((1.0, tokens), (0.25, tokens / 4), (0.25, wide / 4)):
        v = normal(rng, n, 3)
        if shrink < 1 and unconverged(full, x, x):
            continue
        missed = largest(full(x, x, v) - op.target(x, x, v))
        # Scores of size |x|^2 carry their rounding into every exponential.
        kappa = float(x.square().sum(-1).max())
        allowed = tolerance(F64, n, kappa=kappa, scale=largest(v))
        yield Gap(missed, allowed, f"{full!r} on {n} tokens apart")
    if hasattr(op, "pinv"):
        return
    # What inverts nothing has no excuse, on tokens of any kind.
    for sizes in ((9, 9), (14, 9)):
        n, l = lengths(op, *sizes)
        for scale in (0.3, 3.0):
            q, k, v = (
                scale * normal(rng, 2, n, 4),
                scale * normal(rng, 2, l, 4),
                normal(rng, 2, l, 3),
            )
            full = at_most(op, l)
            missed = largest(full(q, k, v) - op.target(q, k, v))
            # Of sums over l values, whose scores of size scale^2 are rounded.
            allowed = tolerance(F64, l, kappa=1 + scale**2, scale=l * largest(v))
            yield Gap(missed, allowed, f"{full!r}, n={n}, l={l}, scale {scale}")


def _monotone(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    n = 10
    q, k = normal(rng, n, 4), normal(rng, n, 4)
    exact = as_matrix(op.target, q, k)
    order = {"Frobenius": 2, "absolute": 1}[op.traits.monotone]
    before = math.inf
    for knob in range(1, n + 1):
        subject = dataclasses.replace(op, **{op.traits.exact_at: knob})
        error = float((as_matrix(subject, q, k) - exact).flatten().norm(order))
        rounding = tolerance(F64, n, scale=n)
        yield Gap(error - before, rounding, f"{subject!r}, from one less")
        stands = before < math.inf and error > rounding and error == before
        yield Gap(float(stands), 0, f"{subject!r} is what it was with one less, and errs")
        before = error


def _apart(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    n = 12
    full = at_most(op, n) if op.traits.exact_at else op
    x, v = separated(rng, n), normal(rng, n, 3)
    # What still crosses from one token to another is exp(-75) or less, below any rounding.
    allowed = tolerance(F64, n, kappa=150, scale=largest(v))
    yield Gap(largest(full(x, x, v) - v), allowed, f"{n} tokens apart")


def _replacement(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    n, l = lengths(op, 9, 7)
    q, k = normal(rng, n, 4), normal(rng, l, 4)
    dense = op.kernel_matrix(q, k)
    dense = dense.tril() if op.traits.causal else dense
    mass = dense.sum(-1, keepdim=True)
    wanted = torch.where(mass > 0, dense / torch.where(mass > 0, mass, 1), 0)
    allowed = tolerance(F64, 7, scale=1)
    yield Gap(largest(as_matrix(op, q, k) - wanted), allowed, "M and its dense form")
    # What ``_apart`` asks of an approximation: v, to rounding. Here a tenth of v must be missing.
    x, v = separated(rng, 12), normal(rng, 12, 3)
    missed = largest(op(x, x, v) - v)
    yield Gap(0.1 * largest(v), missed, "what twelve far tokens must still mix, and do")


def _identical(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    m = rank_of(op)
    n = 3 * m + 2
    x, v = normal(rng, 1, 4).expand(n, 4), normal(rng, n, 3)
    expected = op.target(x, x, v)
    growth = op.pinv.traits.growth ** steps_of(op.pinv) if isinstance(op, Inverting) else 1
    allowed = tolerance(F64, n, kappa=growth, scale=n * largest(v))
    yield Gap(largest(op(x, x, v) - expected), allowed, f"{n} equal tokens, rank {m}")


def unconverged(op: Any, q: Tensor, k: Tensor) -> bool:
    """Whether the operator's own solver says that it cannot invert this core to full precision."""
    if not isinstance(op, Inverting):
        return False
    return bool((op.pinv.solve(op.core(q, k)).status != Status.CONVERGED).any())


def _low_rank(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    m = int(getattr(op, "features", rank_of(op)))
    for sizes in ((m + 7, m + 9), (m + 1, m + 1), (2 * m + 2, 2 * m + 2)):
        n, l = lengths(op, *sizes)
        matrix = as_matrix(op, normal(rng, n, 6), normal(rng, l, 6)).double()
        s = torch.linalg.svdvals(matrix)
        rounding = tolerance(F64, n, scale=float(s[0]))
        yield Gap(float(s[m]), rounding, f"s_(m+1) at n={n}, l={l}")
        # A mass that its features give no positive estimate of makes a row of zeros.
        if min(int(matrix.any(axis).sum()) for axis in (0, 1)) >= m:
            yield Gap(rounding, float(s[m - 1]), f"rank {m} is used: s_m at n={n}, l={l}")


def _target(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    target = op.target
    yield Gap(float(not target.traits.exact), 0, f"target {target!r} is exact")
    yield Gap(float(target.target != target), 0, f"target {target!r} is its own target")
    if op.traits.exact:
        if target != op:  # as of a function that stands for it
            q, k, v = normal(rng, 9, 4), normal(rng, 9, 4), normal(rng, 9, 3)
            allowed = tolerance(F64, 9, scale=9 * largest(v))
            missed = largest(op(q, k, v) - target(q, k, v))
            yield Gap(missed, allowed, "an exact operator is its own target, or equals it")
        return
    n, _ = lengths(op, 2 * rank_of(op) + 6, 1)
    q, k = normal(rng, n, 6), normal(rng, n, 6)
    same = _same(op, q, k, rng)
    if not is_plain(op):  # a function may be its target
        longer, reach = n, SPARE * _reach(op)
        while same and longer <= reach and longer < LONGEST:  # a knob keeps all of these keys
            longer *= 2
            same = _same(op, normal(rng, longer, 6), normal(rng, longer, 6), rng)
        if same and longer <= reach:
            msg = f"it is its target on {longer} keys, and its knobs reach further"
            raise OutOfScopeError(msg)
        yield Gap(float(same), 0, "below full rank an approximation is not its target in disguise")
    if op.traits.linear_in_v and target.traits.linear_in_v and not op.traits.causal:
        x, y = 0.5 * q, 0.5 * k
        scale = _other_scale(as_matrix(op, x, y), as_matrix(target, x, y))
        yield Gap(float(bool(scale)), 0, f"M is its target {scale}")


def _same(op: Operator, q: Tensor, k: Tensor, rng: torch.Generator) -> bool:
    """Whether the operator is its target on these tokens."""
    v = normal(rng, len(k), 3)
    return largest(op(q, k, v) - op.target(q, k, v)) < 1e-9


def _reach(op: object) -> int:
    """The largest whole number among the fields, at any depth and seeds left out; 0 for none."""
    if not dataclasses.is_dataclass(op):
        return 0
    held = {own.name: getattr(op, own.name) for own in dataclasses.fields(op)}
    most = 0
    for name, x in held.items():
        if name != "seed":
            most = max(most, x if isinstance(x, int) else _reach(x))
    return most


def _other_scale(mine: Tensor, theirs: Tensor) -> str:
    """In words, where log M = c log T + b in all entries, but for the sums of rows: T rescaled."""
    if not (bool((mine > 0).all()) and bool((theirs > 0).all())):
        return ""
    logs = [x.log() for x in (mine, theirs)]
    m, t = (x - x.mean(-1, keepdim=True) for x in logs)
    factor = float((m * t).sum() / t.square().sum())
    level = float((logs[0] - factor * logs[1]).mean())
    if largest(m - factor * t) > 1e-9 * (1 + largest(t)) or not abs(factor) > 1e-6:
        return ""  # another matrix, or one that is blind to its tokens
    if abs(factor - 1) > 1e-9:
        return f"with its exponents times {factor:.12g}"
    even = largest(logs[0] - logs[1] - level) < 1e-9
    return f"times {math.exp(level):.6g}" if even and abs(level) > 1e-9 else ""


def _finite(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    m = rank_of(op)
    n, l = lengths(op, m + 4, m + 6)
    q, k, v = normal(rng, n, 4), normal(rng, l, 4), normal(rng, l, 3)
    has_bandwidth = "bandwidth" in own_fields(op)
    for dtype in (F64, torch.float32):
        for exponent in range(-6, 7):
            s = 10.0**exponent
            subject = dataclasses.replace(op, bandwidth=s) if has_bandwidth else op
            x, y = (q, k) if has_bandwidth else (q * s, k * s)
            for tied in (False, True):
                keys = x if tied else y
                out = subject(x.to(dtype), keys.to(dtype), v[: len(keys)].to(dtype))
                bad = int((~out.isfinite()).sum())
                yield Gap(bad, 0, f"scale 1e{exponent}, {dtype}, tied {tied}: entries not finite")


def _memory(op: Operator, rng: torch.Generator) -> Iterator[Gap]:
    def peak(n: int) -> int:
        x = normal(rng, n, 8, dtype=torch.float32)
        return peak_memory(lambda: op(x, x, x), x.device)

    grown = peak(4096) / peak(1024)
    # Linear: 4, or less beside what does not grow. An n x n matrix: 16, and 8 beside its like.
    yield Gap(grown, 5, "peak memory at n = 4096 over that at 1024")


def _gradient(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    m = rank_of(op)
    # Spread tokens: an implicit gradient claims to be one only where its solver converges.
    n, l = lengths(op, m, m + 2)
    q, k = 2 * normal(rng, n, 3), 2 * normal(rng, l, 3)
    x = [t.requires_grad_() for t in (q, k, normal(rng, l, 1))]
    need_gradient(op, *x)
    for key_mask in (None, torch.arange(l, device=q.device) != 1)[: 1 + takes_mask(op)]:

        def call(*tensors: Tensor, key_mask: Tensor | None = key_mask) -> Tensor:
            out: Tensor = op(*tensors, key_mask)
            return out

        agrees = torch.autograd.gradcheck(call, x, raise_exception=False)
        yield Gap(float(not agrees), 0, f"gradcheck, masked: {key_mask is not None}")


APART: Law[Operator] = Law(
    "tokens far apart",
    "as tokens part, each attends to itself alone: op(x, x, v) -> v, where op is exact",
    lambda op: (op.traits.exact and not op.traits.replacement) or bool(op.traits.exact_at),
    _apart,
    family="limits",
    when="is exact, or exact at its most, and aimed at attention",
    allows="rounding of scores",
    catches="zeros; the mean of v",
    any_dtype=True,
)
REPLACEMENT: Law[Operator] = Law(
    "replacement",
    "M is the dense quadratic form with its rows normalised, and far tokens still mix",
    lambda op: op.traits.replacement,
    _replacement,
    family="limits",
    when="claims replacement",
    allows="rounding of sums over l",
    catches="softmax in the guise of a replacement",
)
IDENTICAL: Law[Operator] = Law(
    "identical tokens",
    "where all tokens are equal M has rank one, and op = op.target at any rank",
    lambda op: op.traits.exact_at_rank_one,
    _identical,
    family="limits",
    when="claims exact_at_rank_one",
    allows="rounding of sums over n, times the growth of null-space errors",
    catches="zeros; the mean of v in place of a sum; a short block counted as a whole one",
)
LOW_RANK: Law[Operator] = Law(
    "low rank",
    "M has m nonzero singular values and no more, whatever n and l above m are",
    lambda op: op.traits.low_rank,
    _low_rank,
    family="spectral",
    when="claims low_rank",
    allows="rounding of sums over n, of the largest singular value",
    catches="full attention where the sequence is short; a rank one less; landmarks that repeat",
    any_dtype=True,
)
EXACT_AT: Law[Operator] = Law(
    "exact at its most",
    "where the knob reaches the number of keys, op = op.target; with a core, if it can be inverted",
    lambda op: bool(op.traits.exact_at),
    _exact_at,
    family="limits",
    when="claims exact_at",
    allows="rounding of scores",
    catches="zeros; the mean of v; a shifted core; a window that stops widening",
    any_dtype=True,
)
MONOTONE: Law[Operator] = Law(
    "monotone",
    "the error of M does not grow with the knob, nor stand still while there is one",
    lambda op: bool(op.traits.monotone),
    _monotone,
    family="spectral",
    when="claims monotone",
    allows="rounding of sums over n",
    catches="a window that closes as it is opened; one that is a token short",
)
TARGET: Law[Operator] = Law(
    "target",
    "op.target is exact, and an approximation is another operator: neither the target nor the "
    "target at another scale",
    has_target,
    _target,
    family="honesty",
    when="says what it approximates",
    allows="nothing",
    catches="the target in the guise of its approximation; scores over d for those over its root",
)
FINITE: Law[Operator] = Law(
    "finite",
    "finite over twelve orders of bandwidth, or of the scale of q and k, in float64 and float32",
    always,
    _finite,
    family="numerical",
    allows="nothing",
    catches="exponentials that are taken apart",
    examples=1,
)
LINEAR_MEMORY: Law[Operator] = Law(
    "linear memory",
    "four times the tokens take about four times the memory",
    lambda op: op.traits.linear_memory,
    _memory,
    family="cost",
    when="claims linear_memory",
    allows="5 times the memory for 4 times the tokens",
    catches="a matrix of all scores",
    examples=1,
)
GRADIENT: Law[Operator] = Law(
    "gradient",
    "the backward pass equals central differences in float64, with and without a mask",
    always,
    _gradient,
    family="gradients",
    allows="what gradcheck allows, in float64",
    catches="keys that are detached; an implicit gradient after three steps",
    examples=1,
)
