"""Laws of derivatives beyond those of tokens: second ones, of parameters, at full rank."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from softlab.laws.law import (
    Gap,
    Law,
    OutOfScopeError,
    always,
    at_most,
    has_core,
    has_target,
    largest,
    lengths,
    need_gradient,
    normal,
    rank_of,
    separated,
    takes_mask,
    tolerance,
)
from softlab.laws.limits import unconverged

F64 = torch.float64
NONE = ("not implemented", "once_differentiable", "does not support double")
"""In the words of torch, what has no second derivative."""


STEP = 1e-6
"""Of the central differences, along a direction of length one."""
NUDGE = 1e-3
"""Of those of parameters, which may be in float32, relative to the largest."""


def twice(call: Callable[..., Tensor], leaves: list[Tensor], rng: torch.Generator) -> Iterator[Gap]:
    """The gradient of a loss with a gradient penalty, against differences of first gradients.

    The loss is linear in the output and not, and the gradient comes by ``backward`` and by ``grad``
    of torch: a backward pass that takes something for a constant may err in one alone, and an error
    that is planted for the second pass may show in one alone. Raises ``OutOfScopeError`` where
    torch refuses every one of them.
    """
    leaves = [x.detach() for x in leaves]
    weights = normal(rng, *call(*leaves).shape)
    along = [normal(rng, *x.shape) for x in leaves]
    length = torch.stack([x.square().sum() for x in along]).sum().sqrt()
    along = [x / length for x in along]
    refused: list[str] = []
    asked = tuple(itertools.product((False, True), (True, False)))
    differences = functools.cache(functools.partial(_differences, call, leaves, along, weights))
    for curved, by_backward in asked:
        here = _moved(leaves, along, 0)
        total = _penalized(call, here, weights, curved=curved)
        try:
            found = _gradient(total, here, by_backward=by_backward)
        except RuntimeError as error:
            if not any(words in str(error) for words in NONE):
                raise
            refused.append(str(error).splitlines()[0][:120])
            continue
        expected, wider = differences(curved=curved)
        slope = sum(float((x * d).sum()) for x, d in zip(found, along, strict=True))
        size = 1 + abs(total.item())
        allowed = 1e-4 * abs(expected) + 1000 * torch.finfo(F64).eps / STEP * size
        # A central difference errs by c STEP^2, one of twice the step by four times that.
        allowed += abs(wider - expected)
        how = f"{'sine of the output' if curved else 'linear loss'} and gradient penalty"
        yield Gap(abs(slope - expected), allowed, f"{how}, {'backward' if by_backward else 'grad'}")
    if len(refused) == len(asked):
        msg = f"torch has no second derivative of it: {refused[0]}"
        raise OutOfScopeError(msg)


def _differences(
    call: Callable[..., Tensor],
    leaves: list[Tensor],
    along: list[Tensor],
    weights: Tensor,
    *,
    curved: bool,
) -> tuple[float, float]:
    """The central differences of the loss over one step and over two."""
    at = {
        s: _penalized(call, _moved(leaves, along, s * STEP), weights, curved=curved).item()
        for s in (1, -1, 2, -2)
    }
    return (at[1] - at[-1]) / (2 * STEP), (at[2] - at[-2]) / (4 * STEP)


def _moved(leaves: list[Tensor], along: list[Tensor], step: float) -> list[Tensor]:
    return [(x + step * d).requires_grad_() for x, d in zip(leaves, along, strict=True)]


def _penalized(
    call: Callable[..., Tensor], leaves: list[Tensor], weights: Tensor, *, curved: bool
) -> Tensor:
    out = call(*leaves) * weights
    loss = out.sin().sum() if curved else out.sum()
    first = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
    return loss + torch.stack([x.square().sum() for x in first]).sum()


def _gradient(total: Tensor, leaves: list[Tensor], *, by_backward: bool) -> list[Tensor]:
    if not by_backward:
        return list(torch.autograd.grad(total, leaves, materialize_grads=True))
    total.backward()
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]


def _second(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    m = rank_of(op)
    n, l = lengths(op, m, m + 2)
    leaves = [2 * normal(rng, n, 3), 2 * normal(rng, l, 3), normal(rng, l, 2)]
    need_gradient(op, *leaves)
    yield from twice(lambda *x: op(*x), leaves, rng)
    size = 2.0
    if not has_core(op):  # more tokens, nearer to each other: no row is that of one key
        n, l = lengths(op, n + 3, l + 3)
        size = 1.0
    batch = [size * normal(rng, 2, n, 3), size * normal(rng, 2, l, 3), normal(rng, 2, l, 2)]
    masked = takes_mask(op) and l > m
    mask = (torch.arange(l, device=leaves[0].device) != 1,) if masked else ()
    yield from twice(lambda *x: op(*x, *mask), batch, rng)


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


def _learnt(op: Any) -> dict[str, nn.Parameter]:
    """The parameters of a module of torch that want a gradient; of anything else none."""
    module = getattr(op, "call", op)
    for name in ("__wrapped__", "__self__"):  # given by name; a method of it
        module = getattr(module, name, module)
    if not isinstance(module, nn.Module):
        return {}
    return {name: x for name, x in module.named_parameters() if x.requires_grad}


def _parameters(op: Any, rng: torch.Generator) -> Iterator[Gap]:
    m = rank_of(op)
    n, l = lengths(op, m + 5, m + 7)
    tokens = normal(rng, 2, n, 4), normal(rng, 2, l, 4), normal(rng, 2, l, 3)
    weights = normal(rng, 2, n, 3)
    mask = torch.arange(l, device=weights.device) != 1
    for masked in ((), (mask,))[: 1 + takes_mask(op)]:
        for name, parameter in _learnt(op).items():
            where = f"{name} {tuple(parameter.shape)}, masked: {bool(masked)}"
            call = functools.partial(op, *tokens, *masked)
            yield _nudged(call, weights, parameter, where)


def _nudged(
    call: Callable[[], Tensor], weights: Tensor, parameter: nn.Parameter, where: str
) -> Gap:
    """The slope along a parameter, by its gradient and by differences of one step and of two."""
    held, terms = parameter.detach().clone(), call() * weights
    step = torch.where(torch.arange(held.numel()).view(held.shape) % 2 == 0, NUDGE, -0.7 * NUDGE)
    step = step.to(held) * (float(held.abs().max()) or 1.0)
    slope = torch.zeros_like(held)
    if terms.requires_grad:
        (slope,) = torch.autograd.grad(terms.sum(), parameter, materialize_grads=True)

    def at(steps: int) -> tuple[float, Tensor]:
        with torch.no_grad():
            parameter.copy_(held + steps * step)
            return float((call() * weights).double().sum()), parameter.double().clone()

    try:
        (up, there), (down, back), (far_up, _), (far_down, _) = map(at, (1, -1, 2, -2))
    finally:
        with torch.no_grad():
            parameter.copy_(held)
    due = float((slope.double() * (there - back)).sum())
    eps = max(torch.finfo(x.dtype).eps for x in (terms, held))
    allowed = 0.01 * abs(due) + 2 * abs((far_up - far_down) / 2 - (up - down))
    allowed += 100 * eps * float(terms.detach().abs().sum())
    return Gap(abs(up - down - due), allowed, where)


SECOND: Law[Any] = Law(
    "second derivative",
    "the gradient of a loss with a gradient penalty equals central differences, by backward and by "
    "grad, for a loss that is linear in the output and one that is not, of a matrix and of a batch "
    "under a mask; or torch refuses it",
    always,
    _second,
    family="gradients",
    when="torch can differentiate twice",
    allows="1e-4 of the difference, and rounding over the step, in float64",
    catches="a gradient that is a constant of the second pass, also where an error is planted for "
    "it, which not every way meets",
    examples=1,
)
PARAMETERS: Law[Any] = Law(
    "gradient of parameters",
    "the gradient in each parameter of a module equals central differences, with and without a "
    "mask",
    lambda op: bool(_learnt(op)),
    _parameters,
    family="gradients",
    when="is a module of torch with parameters that want a gradient",
    allows="a hundredth of the slope, its change over the step, and rounding",
    catches="a temperature that is read as a number",
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
