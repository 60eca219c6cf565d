"""Laws of consistency: one function at every size, shape, mask, layout and precision.

They ask for nothing but the operator itself: what it says of a batch must be what it says of each
matrix, of wide values what it says of each column, of a masked call what it says of what is left,
of gradients the same. So they find a fault beyond a size, on a path, or between two heads, of any
operator, whatever it computes.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softlab.core import Stream
from softlab.laws.isolation import CORE_KAPPA, amplified
from softlab.laws.law import (
    Gap,
    Law,
    OutOfScopeError,
    always,
    deletes,
    has_core,
    largest,
    needs_equal,
    normal,
    tolerance,
)
from softlab.laws.situations import Situation, drawn

F64 = torch.float64
Form = Callable[[Tensor, Tensor], Tensor]
STEEP = 1e6
EACH = 13
"""Situations per seed: the five seeds of a default check meet every pair of choices."""


def _rounding(op: Any, case: Situation, scale: float, dtype: torch.dtype = F64) -> float:
    """What the order of sums may change, times the condition of a core that is inverted."""
    kappa = 1e3 if op.traits.optimal else 1.0  # of singular values that lie near each other
    if has_core(op):
        kappa = max(CORE_KAPPA, _condition(op, case))
    size = 1 + max(largest(x) for x in case.tokens[:2]) ** 2  # of scores, which are rounded
    return tolerance(dtype, case.k.shape[-2], kappa=kappa * size, scale=scale)


def _condition(op: Any, case: Situation) -> float:
    """The largest condition of the cores of a situation."""
    return max(amplified(op, q, k) for _, q, k, _, _ in case.matrices())


def _smooth(op: Any) -> bool:
    """Whether gradients may be compared: not of a truncated SVD, infinite where values meet."""
    return not op.traits.optimal


def _steep(op: Any, case: Situation) -> bool:
    """Whether a core is so near to singular that its gradient is rounding alone."""
    return has_core(op) and (case.q.shape[-1] < 4 or _condition(op, case) > STEEP)


def _alone(op: Any, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> tuple[Tensor, Any]:
    """The answer on one matrix without its masked tokens, and the rows that it is of."""
    if keep is None:
        return op(q, k, v), slice(None)
    rows: Any = keep if needs_equal(op) else slice(None)
    return op(q[rows], k[keep], v[keep]), rows


def _some(count: int, rng: torch.Generator) -> set[int]:
    """The first, the last, and one in between."""
    return {0, count - 1, int(torch.randint(count, (), generator=rng, device="cpu"))}


def _matrices(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for case in drawn(op, rng, EACH):
        out = case.call(op)
        matrices = list(case.matrices())
        flat = out.reshape(-1, *out.shape[-2:])
        if len(flat) != len(matrices):
            yield Gap(1, 0, f"{case.where}: the output is {tuple(out.shape)}")
            return
        for i in _some(len(matrices), rng):
            _, q, k, v, keep = matrices[i]
            if keep is not None and not bool(keep.all()) and not deletes(op):
                continue
            alone, rows = _alone(op, q, k, v, keep)
            allowed = 10 * _rounding(op, case, largest(alone) + largest(v))
            yield Gap(largest(flat[i][rows] - alone), allowed, f"{case.where}; matrix {i}")


def _columns(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for case in drawn(op, rng, EACH):
        width = case.v.shape[-1]
        out = case.call(op)
        for j in _some(width, rng):
            mask = () if case.mask is None else (case.mask,)
            one = op(case.q, case.k, case.v[..., j : j + 1], *mask)
            allowed = _rounding(op, case, largest(out) + largest(case.v))
            yield Gap(largest(out[..., j] - one[..., 0]), allowed, f"{case.where}; column {j}")


def _traces(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for case in drawn(op, rng, EACH):
        tensors = [*case.tokens, *([] if case.mask is None else [case.mask])]
        kept = [x.clone() for x in tensors]
        state = _state()
        out = case.call(op)
        changed = any(not torch.equal(x, y) for x, y in zip(tensors, kept, strict=True))
        yield Gap(float(changed), 0, f"{case.where}: an argument was changed")
        before = out.clone()
        case.mapped(lambda x: x.flip(-2) + 1).call(op)
        yield Gap(
            float(not torch.equal(out, before)), 0, f"{case.where}: an earlier output changed"
        )
        again = case.call(op)
        same = torch.equal(again, before)
        yield Gap(float(not same), 0, f"{case.where}: asked again after another call")
        # In another place of the memory: a cache by address would answer for what is there no more.
        moved = case.mapped(torch.clone).call(op)
        allowed = _rounding(op, case, largest(before) + largest(case.v))
        yield Gap(largest(moved - before), allowed, f"{case.where}: copies in new memory")
        case.v.copy_(case.v.flip(-2)) if case.v.is_contiguous() else None
        fresh = case.call(op)
        copied = case.mapped(torch.clone).call(op)
        yield Gap(largest(fresh - copied), allowed, f"{case.where}: other values at one address")
        yield Gap(
            float(_state() != state), 0, f"{case.where}: {_named(state)} of the process changed"
        )


def _state() -> dict[str, Any]:
    """What a call must leave alone: generators, defaults, modes."""
    return {
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "numpy's generator": repr(np.random.get_state()),
        "random's generator": repr(random.getstate()),
        "the default dtype": torch.get_default_dtype(),
        "the number of threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "the precision of products": torch.get_float32_matmul_precision(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }


def _named(before: dict[str, Any]) -> str:
    now = _state()
    return ", ".join(name for name in before if before[name] != now[name]) or "nothing"


def _gradients(
    call: Callable[..., Tensor], tensors: tuple[Tensor, ...], upstream: Tensor
) -> list[Tensor]:
    """Gradients of <upstream, call(tensors)>; zero where one does not answer."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out = call(*leaves)
    if not out.requires_grad:
        msg = "its output has no gradient, so there is none to compare"
        raise OutOfScopeError(msg)
    total = (out * upstream).sum()
    return list(torch.autograd.grad(total, leaves, materialize_grads=True))


def _gradient(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for case in drawn(op, rng, EACH):
        if _steep(op, case):
            continue
        mask = () if case.mask is None else (case.mask,)
        upstream = normal(rng, *case.call(op).shape)
        whole = _gradients(lambda q, k, v, m=mask: op(q, k, v, *m), _full(case), upstream)
        flat = [x.reshape(-1, *x.shape[-2:]) for x in whole]
        ups = upstream.reshape(-1, *upstream.shape[-2:])
        matrices = list(case.matrices())
        for i in _some(len(matrices), rng):
            _, q, k, v, keep = matrices[i]
            if keep is not None and not bool(keep.all()) and not deletes(op):
                continue
            kept = slice(None) if keep is None else keep
            rows = keep if keep is not None and needs_equal(op) else slice(None)
            alone = _gradients(op, (q[rows], k[kept], v[kept]), ups[i][rows])
            for name, mine, due, index in zip("qkv", flat, alone, (rows, kept, kept), strict=True):
                where = f"{case.where}; matrix {i}, gradient in {name}"
                allowed = 100 * _rounding(op, case, 1 + largest(due))
                yield Gap(largest(mine[i][index] - due), allowed, where)
                if keep is not None and name != "q" and not bool(keep.all()):
                    yield Gap(largest(mine[i][~keep]), 0, f"{where}, of masked tokens")


def _full(case: Situation) -> tuple[Tensor, ...]:
    """The tokens with all leading dimensions written out, so that each matrix has its gradient."""
    lead = torch.broadcast_shapes(*(x.shape[:-2] for x in case.tokens))
    return tuple(x.expand(*lead, *x.shape[-2:]) for x in case.tokens)


def _tied(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for case in drawn(op, rng, EACH):
        if case.q.shape != case.k.shape or _steep(op, case):
            continue
        x, v = case.k, case.v
        mask = () if case.mask is None else (case.mask,)
        upstream = normal(rng, *op(x, x, v, *mask).shape)
        q, k, _ = _gradients(lambda q, k, v, m=mask: op(q, k, v, *m), (x, x.clone(), v), upstream)
        (both,) = _gradients(lambda x, m=mask, v=v: op(x, x, v, *m), (x,), upstream)
        allowed = 100 * _rounding(op, case, 1 + largest(both))
        yield Gap(largest(both - q - k), allowed, f"{case.where}; gradient where q is k")


def _single(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    for case in drawn(op, rng, EACH):
        mask = () if case.mask is None else (case.mask,)
        upstream = normal(rng, *case.call(op).shape)
        narrow = tuple(x.float() for x in _full(case))
        wide = tuple(x.double() for x in narrow)
        mine = _gradients(lambda q, k, v, m=mask: op(q, k, v, *m), narrow, upstream.float())
        due = _gradients(lambda q, k, v, m=mask: op(q, k, v, *m), wide, upstream.float().double())
        for name, x, y in zip("qkv", mine, due, strict=True):
            allowed = 200 * _rounding(op, case, 1 + largest(y), torch.float32)
            yield Gap(
                largest(x.double() - y), allowed, f"{case.where}; float32, gradient in {name}"
            )


def _released(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    (case,) = drawn(op, rng, 1)
    tensors = [x.clone() for x in case.tokens]
    held = [weakref.ref(x) for x in tensors]
    out = op(*tensors)
    own = any(out is x for x in tensors)
    del tensors, out
    alive = 0 if own else sum(ref() is not None for ref in held)
    yield Gap(alive, 0, "tensors of the call are still held after it")


def _softmax(exponent: float) -> Form:
    def matrix(q: Tensor, k: Tensor) -> Tensor:
        weights: Tensor = (q @ k.mT * q.shape[-1] ** exponent).softmax(-1)
        return weights

    return matrix


def _gaussian(*, rows: bool) -> Form:
    def matrix(q: Tensor, k: Tensor) -> Tensor:
        far = (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1)
        exponents = -far / (2 * q.shape[-1] ** 0.5)
        weights: Tensor = exponents.softmax(-1) if rows else exponents.exp()
        return weights

    return matrix


def _triangular(q: Tensor, k: Tensor) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)
    weights: Tensor = scores.masked_fill(later, -torch.inf).softmax(-1)
    return weights


FORMS: dict[str, Form] = {
    "softmax attention": _softmax(-0.5),
    "softmax attention without a scale": _softmax(0.0),
    "softmax attention of scale 1/d": _softmax(-1.0),
    "causal softmax attention": _triangular,
    "row-normalised Gaussian attention": _gaussian(rows=True),
    "Gaussian attention": _gaussian(rows=False),
}
"""The attentions that a function may turn out to be, as their dense matrices in float64."""


def form_of(op: Any, seeds: range) -> str:
    """Which of ``FORMS`` a function equals on small draws of two widths; empty if none."""
    for name, matrix in FORMS.items():
        if all(_equals(op, matrix, seed) for seed in seeds):
            return name
    return ""


def _equals(op: Any, matrix: Form, seed: int) -> bool:
    rng = Stream(seed, "laws").generator
    for n, d in ((7, 4), (9, 6)):
        q, k, v = normal(rng, n, d), normal(rng, n, d), normal(rng, n, 3)
        due = matrix(q, k) @ v
        if not largest(op(q, k, v) - due) <= tolerance(F64, n, c=100, scale=1 + largest(v)):
            return False
    return True


def _form(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    matrix = FORMS[op.form]
    for case in drawn(op, rng, EACH):
        out = case.call(op)
        flat = out.reshape(-1, *out.shape[-2:])
        matrices = list(case.matrices())
        for i in _some(len(matrices), rng):
            _, q, k, v, keep = matrices[i]
            if keep is not None and not bool(keep.all()) and not deletes(op):
                continue
            kept = slice(None) if keep is None else keep
            due = matrix(q, k[kept]) @ v[kept]
            allowed = 10 * _rounding(
                op, case, largest(v) * (1 if out.numel() else 0) + largest(due)
            )
            where = f"{case.where}; matrix {i}, and {op.form}, which it is of few tokens"
            yield Gap(largest(flat[i] - due), allowed, where)


FORM: Law[Any] = Law(
    "same form everywhere",
    "a function that equals a known attention on few tokens equals it in every situation",
    lambda op: bool(getattr(op, "form", "")),
    _form,
    family="limits",
    when="is a function that equals a known attention on few tokens",
    allows="rounding of sums over l",
    catches="zeros beyond sixteen keys; another kernel beyond a width",
)
MATRICES: Law[Any] = Law(
    "each matrix alone",
    "op on any leading shape, mask and layout equals op on each matrix without its masked tokens",
    always,
    _matrices,
    family="isolation",
    allows="rounding of sums over l, times the condition of the core",
    catches="batch and heads exchanged; a fault beyond a length, a width or a batch",
)
COLUMNS: Law[Any] = Law(
    "each column alone",
    "op(q, k, v) has the columns op(q, k, v_j), at every size",
    lambda op: op.traits.linear_in_v,
    _columns,
    family="algebraic",
    when="is linear in v",
    allows="rounding of sums over l, times the condition of the core",
    catches="values beyond a width that are not read",
)
TRACES: Law[Any] = Law(
    "leaves no trace",
    "a call changes no argument, no earlier output, no later answer and no state of the process",
    always,
    _traces,
    family="honesty",
    allows="no bit; rounding where memory is laid out otherwise",
    catches="masked values zeroed in place; a cache by address; a seeded global generator",
)
RELEASED: Law[Any] = Law(
    "holds no input",
    "after a call nothing refers to its tensors",
    always,
    _released,
    family="honesty",
    allows="nothing",
    catches="the last inputs kept in a list",
    examples=1,
)
EACH_GRADIENT: Law[Any] = Law(
    "gradient of each matrix",
    "gradients of a batch, under any mask, are those of its matrices without their masked tokens",
    _smooth,
    _gradient,
    family="gradients",
    when="has a gradient, and is no truncated SVD",
    allows="100 times the rounding of sums over l; nothing where tokens are masked",
    catches="a mean of gradients over the batch; keys detached under a mask",
)
TIED_GRADIENT: Law[Any] = Law(
    "gradient where q is k",
    "the gradient in one tensor given twice is the sum of the gradients in q and in k",
    _smooth,
    _tied,
    family="gradients",
    when="has a gradient, and is no truncated SVD",
    allows="100 times the rounding of sums over l",
    catches="one side detached where both are one tensor",
)
SINGLE_GRADIENT: Law[Any] = Law(
    "gradient in float32",
    "gradients in float32 equal those in float64 of the same numbers",
    lambda op: _smooth(op) and not has_core(op),
    _single,
    family="gradients",
    when="has a gradient, inverts no core, and is no truncated SVD",
    allows="200 times the rounding of sums over l",
    catches="a backward pass of its own for float32",
)
EVERYWHERE = (
    *(MATRICES, FORM, COLUMNS, TRACES, RELEASED, EACH_GRADIENT, TIED_GRADIENT, SINGLE_GRADIENT),
)
"""All of them."""
