"""A solver run without a graph, with a formula for its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softlab.core import own_precision, widened
from softlab.pinv.solver import Solver

Rule = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From A, X and dL/dX to dL/dA."""


def by_rule(solver: Solver, rule: Rule, a: Tensor) -> Tensor:
    """``solver(a)`` whose backward pass is ``rule``, evaluated once in the working precision.

    Stores A and X alone. A second derivative is that of ``rule`` with X as what it is, the inverse
    whose derivative is again ``rule``: right where ``rule`` is, to any order.
    """
    x: Tensor = _ByRule.apply(a, solver, rule)  # type: ignore[no-untyped-call]
    return x


class _ByRule(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, solver: Solver, rule: Rule) -> Tensor:
        del rule
        return solver(a)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Solver, Rule], output: Tensor) -> None:
        a, _, ctx.rule = inputs
        ctx.save_for_backward(a, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        a, x = ctx.saved_tensors  # X is an output, so that it comes back with its gradient
        return _evaluated(ctx.rule, widened(a), widened(x), widened(grad)).to(a.dtype), None, None


@own_precision
def _evaluated(rule: Rule, a: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    return rule(a, x, grad)
