"""Laws of consistency of gradients: with the dense form, of each matrix, in each precision.

Outputs alone are compared in ``softlab.laws.consistency``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softlab.laws.consistency import (
    AVERAGES,
    COLUMNS,
    EACH,
    MATRICES,
    PATTERNS,
    RELEASED,
    TRACES,
    ZERO_COLUMNS,
    cancelling,
    core_condition,
    dtype_kept,
    flattened,
    rounding_of,
    some_matrices,
)
from softlab.laws.dependence import FAR, condition
from softlab.laws.forms import dense_of, fades, found_form, reads_distances, unknown
from softlab.laws.law import (
    Gap,
    Law,
    OutOfScopeError,
    asked,
    at_most,
    has_core,
    largest,
    lengths,
    needs_equal,
    normal,
    rank_of,
    refused,
    tolerance,
)
from softlab.laws.situations import Situation, drawn

F64 = torch.float64
STEEP = 1e6
"""The condition of a core beyond which its gradient is rounding alone."""
TAME = 1e3
"""The condition of a core up to which its gradient in float32 has digits."""
TALL = 5.0
"""Size of tokens up to which exponentials of their coordinates keep their digits beside a one."""


def _masked_condition(op: Any, case: Situation) -> float:
    """The largest condition of the whole cores of a situation, of the tokens that masks leave."""
    most = 1.0
    for _, q, k, _, keep in case.matrices():
        kept = slice(None) if keep is None else keep
        most = max(most, condition(op, q[kept] if needs_equal(op) else q, k[kept]))
    return most


def _smooth(op: Any) -> bool:
    """Whether gradients may be compared: not of a truncated SVD, infinite where values meet."""
    return not op.traits.optimal


def _steep(op: Any, case: Situation) -> bool:
    """Whether a core is so near to singular that its gradient is rounding alone."""
    return has_core(op) and (case.q.shape[-1] < 4 or core_condition(op, case) > STEEP)


def _gradients(
    call: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    upstream: Tensor,
    which: Sequence[int] = (0, 1, 2),
) -> list[Tensor]:
    """Gradients of <upstream, call(tensors)> in ``which``; zero where one does not answer."""
    given = [x.detach().clone() for x in tensors]
    leaves = [given[i].requires_grad_() for i in which if i < len(given)]
    out = call(*given)
    if not out.requires_grad and len(which) < len(given):
        return [torch.zeros_like(x) for x in leaves]
    if not out.requires_grad:
        msg = "its output has no gradient, so there is none to compare"
        raise OutOfScopeError(msg)
    return list(torch.autograd.grad(out, leaves, upstream.to(out), materialize_grads=True))


def _gradient(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for number, case in enumerate(drawn(op, rng, EACH)):
        if _steep(op, case):
            continue
        tokens = _full(case)
        out = op(*tokens, *case.masked)
        upstream = normal(rng, *out.shape)
        kept = upstream.clone()
        whole = _gradients(lambda *x, m=case.masked: op(*x, *m), tokens, upstream)
        rounding = 100 * rounding_of(op, case, cancelled=2)
        same = torch.equal(upstream, kept)
        yield Gap(float(not same), 0, f"{case.where}; the gradient from above was changed")
        graphed = op(*(x.detach().clone().requires_grad_() for x in tokens), *case.masked)
        allowed = rounding * (largest(out) + largest(case.v))
        yield Gap(largest(graphed.detach() - out), allowed, f"{case.where}; output with a graph")
        # In one tensor alone, as of keys and values that a cache holds.
        place = number % 3
        (single,) = _gradients(lambda *x, m=case.masked: op(*x, *m), tokens, upstream, (place,))
        where = f"{case.where}; gradient in {'qkv'[place]} alone"
        allowed = rounding * (_terms(case, place) + largest(whole[place]))
        yield Gap(largest(single - whole[place]), allowed, where)
        if case.k.shape != tokens[1].shape:
            shared = _gradients(lambda *x, m=case.masked: op(*x, *m), case.tokens, upstream)
            for i, mine in enumerate(shared):
                due = whole[i].sum_to_size(mine.shape)
                where = f"{case.where}; gradient in {'qkv'[i]}, which the batch shares"
                allowed = rounding * (_terms(case, i) + largest(due)) * len(tokens[0])
                yield Gap(largest(mine - due), allowed, where)
        flat = [flattened(x) for x in whole]
        for one in some_matrices(op, case, rng):
            # Upstream gradients come in any layout.
            above = flattened(upstream)[one.number][one.rows].mT.contiguous().mT
            alone = _gradients(op, one.tokens, above)
            for i, due in enumerate(alone):
                index = one.kept if i else one.rows
                mine, where = flat[i][one.number], f"{one.where}, gradient in {'qkv'[i]}"
                allowed = rounding * (_terms(case, i) + largest(due))
                yield Gap(largest(mine[index] - due), allowed, where)
                if i and isinstance(index, Tensor) and not bool(index.all()):
                    yield Gap(largest(mine[~index]), 0, f"{where}, of masked tokens")


def _terms(case: Situation, which: int) -> float:
    """The size of the terms of a gradient, however much of them cancels.

    Of q and k they hold products <upstream, v>, sums over the width of v.
    """
    return 1.0 if which == 2 else float(case.v.shape[-1] ** 0.5)


def _full(case: Situation) -> tuple[Tensor, ...]:
    """The tokens with all leading dimensions written out, so that each matrix has its gradient."""
    lead = torch.broadcast_shapes(*(x.shape[:-2] for x in case.tokens))
    return tuple(x.expand(*lead, *x.shape[-2:]) for x in case.tokens)


def _tied(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for case in drawn(op, rng, EACH):
        if case.q.shape != case.k.shape or _steep(op, case):
            continue
        x, mask, rounding = case.k, case.masked, 100 * rounding_of(op, case, cancelled=2)
        ways: dict[str, tuple[list[int], Callable[..., Tensor]]] = {
            "q is k": ([0, 1], lambda x, v, m=mask: op(x, x, v, *m)),
            "v is k": ([1, 2], lambda x, q, m=mask: op(q, x, x, *m)),
            "all are one": ([0, 1, 2], lambda x, _, m=mask: op(x, x, x, *m)),
        }
        for where, (same, call) in ways.items():
            v = case.v if where == "q is k" else x
            upstream = normal(rng, *op(x, x, v, *mask).shape)
            apart = _gradients(lambda *y, m=mask: op(*y, *m), (x, x.clone(), v.clone()), upstream)
            (both,) = _gradients(call, (x, v.clone()), upstream, (0,))
            allowed = rounding * (_terms(case, same[0]) + largest(both))
            due = torch.stack([apart[i] for i in same]).sum(0)
            yield Gap(largest(both - due), allowed, f"{case.where}; gradient where {where}")


def _single(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for case in drawn(op, rng, EACH):
        # Singular values below the cut-off of one precision are above that of the other.
        if has_core(op) and _masked_condition(op, case) > TAME:
            continue
        if unknown(op):  # what it adds and takes off again nobody knows
            case = _within(case, 2.0)
        narrow = tuple(x.float() for x in _full(case))
        wide = tuple(x.double() for x in narrow)
        out, exact = (op(*x, *case.masked) for x in (narrow, wide))
        yield from dtype_kept(out, torch.float32, case.where)
        size = largest(exact) + largest(case.v)
        allowed = 10 * rounding_of(op, case, torch.float32) * size
        yield from _in_range(out, exact, allowed, f"{case.where}; in float32")
        upstream = normal(rng, *exact.shape).float()
        mine, due = (
            _gradients(lambda *y, m=case.masked: op(*y, *m), x, upstream) for x in (narrow, wide)
        )
        factor = 200 if unknown(op) else 20
        rounding = factor * rounding_of(op, case, torch.float32, cancelled=2)
        for name, x, y in zip("qkv", mine, due, strict=True):
            where = f"{case.where}; float32, gradient in {name}"
            allowed = rounding * (_terms(case, "qkv".index(name)) + largest(y))
            yield from _in_range(x, y, allowed, where)


def _within(case: Situation, most: float) -> Situation:
    """The same, with smaller tokens where an entry of q or k is beyond ``most``."""
    found = max(most, *(largest(x) for x in case.tokens[:2]))
    return case.mapped(partial(torch.mul, torch.tensor(most / found, dtype=F64)))


def _in_range(found: Tensor, due: Tensor, allowed: float, where: str) -> Iterator[Gap]:
    """What a narrow dtype misses; nothing where more is allowed than it holds, and inf is right."""
    if allowed < torch.finfo(found.dtype).max:
        yield Gap(largest(found.double() - due), allowed, where)


def _half(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for number, case in enumerate(drawn(op, rng, EACH // 3, long=True)):
        dtype = (torch.bfloat16, torch.float16)[number % 2]
        # Scores that half precision can tell apart, in tokens that it holds without rounding.
        most = max(largest(x) for x in case.tokens[:2])
        q, k, v = _full(case)
        factor = min(1, (6 if dtype == torch.float16 else 3) / most)
        if number == EACH // 3 + 1:  # scores whose exponentials overflow it
            dtype, factor = torch.float16, 6 / most
        if number == EACH // 3:
            # Values with a mean, over many keys of like weights: a sum in half precision stands
            # still where its terms are small beside it.
            dtype, factor, v = torch.bfloat16, factor / 10, v + 2
        narrow = tuple(x.to(dtype) for x in (q * factor, k * factor, v))
        wide = tuple(x.double() for x in narrow)
        scores = largest(wide[0] @ wide[1].mT) / case.q.shape[-1] ** 0.5
        rounding = 2 * torch.finfo(dtype).eps * (1 + scores)
        try:
            out, exact = (op(*x, *case.masked) for x in (narrow, wide))
        except RuntimeError as error:
            if refused(op, error, dtype):
                continue
            raise
        where = f"{case.where}; in {dtype}"
        yield from dtype_kept(out, dtype, where)
        allowed = rounding * (largest(exact) + largest(case.v)) * cancelling(op, case)
        yield from _in_range(out, exact, allowed, where)
        upstream = normal(rng, *exact.shape).to(dtype)
        mine, due = (
            _gradients(lambda *y, m=case.masked: op(*y, *m), x, upstream) for x in (narrow, wide)
        )
        for name, x, y in zip("qkv", mine, due, strict=True):
            allowed = 4 * rounding * (0.1 + largest(y)) * cancelling(op, case) ** 2
            yield from _in_range(x, y, allowed, f"{where}, gradient in {name}")


def _far(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    """Of what reads distances: the dense form far from the origin, which squares do not survive."""
    dense = dense_of(op)
    assert dense is not None  # as ``_form`` asks
    for n, l, d in ((5, 7, 4), (9, 9, 16)):
        n, l = lengths(op, max(n, rank_of(op)), max(l, rank_of(op)))
        away = FAR * normal(rng, d)
        q, k, v = normal(rng, n, d) + away, normal(rng, l, d) + away, normal(rng, l, 3)
        due = dense(q, k, v)
        # Differences carry the rounding of the tokens, not of their squares.
        allowed = tolerance(F64, l, kappa=10 * largest(away), scale=largest(v))
        where = f"{n} queries, {l} keys, width {d}, {FAR:g} from the origin"
        yield Gap(largest(op(q, k, v) - due), allowed, where)


def _form(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    dense = dense_of(op)
    assert dense is not None  # as ``applies`` asks
    if reads_distances(op) and not asked():  # once
        yield from _far(op, rng)
    for case in drawn(op, rng, EACH, long=True):
        if op.traits.exact_at and case.mask is not None:
            continue  # how far a knob goes depends on the keys that are left
        if fades(op):  # features as they are written vanish, and their quotients with them
            case = _within(case, TALL)
        subject = at_most(op, case.k.shape[-2]) if op.traits.exact_at else op
        out = flattened(case.call(subject))
        upstream = normal(rng, *out.shape)
        gradients, rounding = _whole_gradients(subject, case, upstream), rounding_of(op, case)
        for one in some_matrices(op, case, rng):
            due = dense(*one.tokens)
            if not bool(due.isfinite().all()):
                continue  # exponentials of large scores, taken one by one
            allowed = 10 * rounding * (largest(case.v) + largest(due))
            where = f"{one.where}, and {found_form(op) or 'its dense form'}"
            yield Gap(largest(out[one.number][one.rows] - due), allowed, where)
            if gradients is None:
                continue
            above = upstream[one.number][one.rows]
            for i, wanted in enumerate(_gradients(dense, one.tokens, above)):
                if not bool(wanted.isfinite().all()):
                    continue  # of a quotient whose sums vanish, taken as it is written
                mine = gradients[i][one.number][one.kept if i else one.rows]
                allowed = 100 * rounding * (_terms(case, i) + largest(wanted))
                yield Gap(largest(mine - wanted), allowed, f"{where}: gradient in {'qkv'[i]}")


def _whole_gradients(op: Any, case: Situation, upstream: Tensor) -> list[Tensor] | None:
    """The gradients of all matrices, or None of what gives none."""
    upstream = upstream.reshape(case.shape)
    try:
        found = _gradients(lambda *x: op(*x, *case.masked), _full(case), upstream)
    except OutOfScopeError:
        return None
    return [flattened(x) for x in found]


FORM: Law[Any] = Law(
    "same form everywhere",
    "an operator equals its dense form, outputs and gradients, in every situation: of its kernel "
    "or target, or the attention, known or said to be its target, that a function equals on few "
    "tokens; one of distances far from the origin, too",
    lambda op: dense_of(op) is not None,
    _form,
    family="limits",
    when="is exact, or exact at its most without a core, or a known attention on few tokens",
    allows="rounding of sums over l; of gradients 100 times that",
    catches="zeros beyond sixteen keys; another kernel beyond a width; the target at another "
    "scale; expanded squares far from the origin",
)
EACH_GRADIENT: Law[Any] = Law(
    "gradient of each matrix",
    "gradients of a batch, under any mask, are those of its matrices without their masked tokens; "
    "the output is the same with a graph, and a backward pass changes no gradient from above",
    _smooth,
    _gradient,
    family="gradients",
    when="has a gradient, and is no truncated SVD",
    allows="100 times the rounding of sums over l; nothing where tokens are masked",
    catches="a mean of gradients over the batch; keys detached under a mask",
)
TIED_GRADIENT: Law[Any] = Law(
    "gradient where q is k",
    "the gradient in one tensor given twice or thrice, as q, k or v, is the sum of theirs",
    _smooth,
    _tied,
    family="gradients",
    when="has a gradient, and is no truncated SVD",
    allows="100 times the rounding of sums over l",
    catches="one side detached where both are one tensor",
)
SINGLE_GRADIENT: Law[Any] = Law(
    "float32 everywhere",
    "outputs and gradients in float32 equal those in float64 of the same numbers",
    _smooth,
    _single,
    family="gradients",
    when="has a gradient, and is no truncated SVD",
    allows="20 times the rounding of sums over l, times the condition of a core; 200 of an unknown "
    "function",
    catches="a backward pass of its own for float32, or one in bfloat16",
)
HALF: Law[Any] = Law(
    "half precision everywhere",
    "outputs and gradients in bfloat16 and float16 equal those in float64 of the same numbers",
    lambda op: _smooth(op) and not has_core(op) and not unknown(op),
    _half,
    family="gradients",
    when="has a gradient, inverts no core, is no truncated SVD, and no unknown function",
    allows="2 roundings of the largest score, of gradients 8",
    catches="a backward pass of its own for half precision; exponentials that overflow in float16",
    examples=2,
)
EVERYWHERE = (
    MATRICES,
    FORM,
    COLUMNS,
    AVERAGES,
    PATTERNS,
    ZERO_COLUMNS,
    TRACES,
    RELEASED,
    EACH_GRADIENT,
    TIED_GRADIENT,
    SINGLE_GRADIENT,
    HALF,
)
"""All laws of consistency."""
