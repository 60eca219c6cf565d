"""Laws of derivatives beyond the first: of the second, and of the target's at full rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from softlab.laws.law import (
    Gap,
    Law,
    OutOfScopeError,
    always,
    at_most,
    has_target,
    largest,
    lengths,
    normal,
    rank_of,
    separated,
    tolerance,
)
from softlab.laws.limits import unconverged

F64 = torch.float64
NONE = ("not implemented", "once_differentiable", "does not support double")
"""In the words of torch, what has no second derivative."""


def differentiable_twice(call: Callable[..., Tensor], leaves: list[Tensor]) -> None:
    """Raise ``OutOfScopeError`` where torch says that it has no second derivative."""
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    try:
        out = call(*leaves).sum().sin()
        first = torch.autograd.grad(out, leaves, create_graph=True, allow_unused=True)
        # Not by ``autograd.grad``, which passes by the error that ``once_differentiable`` plants.
        total = [x.sum() for x in first if x is not None and x.requires_grad]
        if total:
            torch.stack(total).sum().backward()
    except RuntimeError as error:
        if any(words in str(error) for words in NONE):
            msg = f"torch has no second derivative of it: {str(error).splitlines()[0][:120]}"
            raise OutOfScopeError(msg) from None
        raise


def twice(call: Callable[..., Tensor], leaves: list[Tensor], where: str) -> Gap:
    """Second derivatives against differences of the first."""
    differentiable_twice(call, leaves)
    agrees = torch.autograd.gradgradcheck(call, leaves, raise_exception=False, fast_mode=True)
    return Gap(float(not agrees), 0, where)


def _second(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    m = rank_of(op)
    n, l = lengths(op, m, m + 2)  # noqa: E741
    q, k = 2 * normal(rng, n, 3), 2 * normal(rng, l, 3)
    leaves = [x.requires_grad_() for x in (q, k, normal(rng, l, 2))]
    yield twice(lambda *x: op(*x), leaves, f"gradgradcheck, n={n}, l={l}")


def _full(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    n = 10
    full = at_most(op, n)
    tokens = 0.25 * separated(rng, n)
    inverts = hasattr(op, "pinv")
    scattered = [] if inverts else [(normal(rng, n, 4), normal(rng, n, 4))]
    apart = (tokens + 0.1 * normal(rng, n, 16), tokens)
    for q, k in (apart, *scattered):
        if inverts and unconverged(full, q, k):
            continue
        v, weights = normal(rng, n, 3), normal(rng, n, 3)
        found = []
        for op_ in (full, op.target):
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]
            total = (op_(*leaves) * weights).sum()
            found.append(torch.autograd.grad(total, leaves, materialize_grads=True))
        kappa = float(k.square().sum(-1).max())
        for name, mine, theirs in zip("qkv", *found, strict=True):
            allowed = tolerance(F64, n, kappa=1000 * (1 + kappa), scale=1 + largest(theirs))
            yield Gap(largest(mine - theirs), allowed, f"{full!r}: gradient in {name}")


SECOND: Law[Any] = Law(
    "second derivative",
    "the second derivative equals central differences of the first, where torch has one",
    always,
    _second,
    family="gradients",
    when="torch can differentiate twice",
    allows="what gradgradcheck allows, in float64",
    catches="a gradient that is a constant of the second pass",
    examples=1,
)
FULL_GRADIENT: Law[Any] = Law(
    "gradient at its most",
    "where the knob reaches the number of keys, the gradients equal those of op.target",
    lambda op: bool(op.traits.exact_at) and has_target(op),
    _full,
    family="gradients",
    when="is exact at its most",
    allows="rounding of scores, and of the products of a backward pass",
    catches="landmarks without their gradient; detached keys",
)
