"""A solver that returns the best of its iterates instead of the last."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from softlab.core import Cost, graphed, own_precision, value
from softlab.pinv.solver import PinvResult, Solver, SolverTraits, admit, deliver


@value
class BestIterate:
    """Per matrix the iterate that ``solve`` of the solver finds best.

    For iterations that spoil their result once they have converged, on singular input or in low
    precision: more steps than needed do no harm. ``solver``: any solver. The forward pass stops
    early where all matrices are done; ``cost`` counts all steps, and the check of each, two
    products, is not counted. The gradient is that of the iterates returned, unrolled.
    """

    solver: Solver

    def __post_init__(self) -> None:
        if self.solver.traits.implicit:
            msg = (
                f"BestIterate.solver is {self.solver!r}, whose iterates have no gradient; wrap the "
                "other way round, as in ImplicitGradient(BestIterate(NewtonRaphson()))."
            )
            raise ValueError(msg)

    @property
    def traits(self) -> SolverTraits:
        """The solver's, watched."""
        return dataclasses.replace(self.solver.traits, watched=True)

    def iterates(self, a: Tensor) -> Iterator[Tensor]:
        """The solver's iterates."""
        return self.solver.iterates(a)

    @own_precision
    def __call__(self, a: Tensor) -> Tensor:
        """The best iterate of each matrix; raises ``ValueError`` where ``a`` is not finite."""
        wide = admit(a, self.traits)
        result = self.solver.solve(a)
        if not graphed(a):
            return deliver(result.x, a)
        steps = result.steps[..., None, None]
        best = torch.zeros_like(result.x)
        for step, x in enumerate(self.solver.iterates(wide)):
            best = torch.where(steps == step, x, best)
            if step >= int(steps.max()):
                break
        return deliver(best, a)

    def solve(self, a: Tensor) -> PinvResult:
        """The solver's result with its status."""
        return self.solver.solve(a)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """The solver's."""
        return self.solver.cost(m, batch)
