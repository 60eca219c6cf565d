"""What an iteration is: a start and a sequence of maps, from which all else follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from torch import Tensor

from softlab import validation
from softlab.core import own_precision
from softlab.pinv.solver import PinvResult, Solver, last, working
from softlab.pinv.stopping import judge

Map = Callable[[Tensor, Tensor], Tensor]
"""One step: from A and X to the next X."""


@runtime_checkable
class Iteration(Solver, Protocol):
    """A solver that is a start and a sequence of maps: what ``iterates`` yields, taken apart.

    A map that is a ``ResidualPolynomial`` also tells what becomes of each eigenvalue of the
    residual, so that a run can be predicted from a spectrum.
    """

    @property
    def steps(self) -> int:
        """The number of maps."""
        ...

    def begin(self, a: Tensor) -> tuple[Tensor, Iterator[Map]]:
        """The initial guess X0, in the dtype of A, and the steps in turn."""
        ...


class Unrolled:
    """The calls of an iteration, from its ``begin`` and its ``traits``."""

    @own_precision
    def iterates(self: Iteration, a: Tensor) -> Iterator[Tensor]:
        """X0, X1, ..., X_steps, in the arithmetic of the dtype of ``a``."""
        validation.square(a)
        x, maps = self.begin(a)
        yield x
        for step in maps:
            x = step(a, x)
            yield x

    def __call__(self: Iteration, a: Tensor) -> Tensor:
        """The last iterate, with the gradient of the unrolled loop."""
        validation.square(a)
        # In one batch dimension, so that no product of the loop has to make it anew.
        flat = a.reshape(-1, *a.shape[-2:]) if a.ndim > 3 else a
        return last(self.iterates, flat, self.traits).reshape(a.shape)

    def solve(self: Iteration, a: Tensor) -> PinvResult:
        """The best iterate with its status."""
        return judge(self.iterates, working(a), self.traits)
