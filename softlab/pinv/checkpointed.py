"""The unrolled gradient of an iteration, with the memory of a part of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor

from softlab.core import Cost, recomputed, value
from softlab.pinv.iteration import Iteration, Map
from softlab.pinv.solver import PinvResult, SolverTraits, last
from softlab.validation import Size


@value
class Checkpointed:
    """The same numbers and the same unrolled gradient, recomputed in the backward pass.

    ``solver``: an iteration. ``every``: steps between two stored iterates, at least 1; about the
    square root of the number of steps stores least. Backwards each part runs forwards once more,
    so a training step costs one forward pass more, and holds 1 / ``every`` of the iterates and the
    intermediate products of ``every`` steps instead of all. Reference: Griewank and Walther 2000.
    """

    solver: Iteration
    every: Size = 4

    @property
    def traits(self) -> SolverTraits:
        """The solver's."""
        return self.solver.traits

    @property
    def steps(self) -> int:
        """The solver's."""
        return self.solver.steps

    def begin(self, a: Tensor) -> tuple[Tensor, Iterator[Map]]:
        """The solver's start and steps."""
        return self.solver.begin(a)

    def iterates(self, a: Tensor) -> Iterator[Tensor]:
        """The solver's iterates."""
        return self.solver.iterates(a)

    def __call__(self, a: Tensor) -> Tensor:
        """The last iterate, which remembers only some of those before it."""
        return last(self._parts, a, self.traits)

    def _parts(self, a: Tensor) -> Iterator[Tensor]:
        x, maps = self.solver.begin(a)
        while part := tuple(itertools.islice(maps, self.every)):
            x = recomputed(_through, a, x, part)
        yield x

    def solve(self, a: Tensor) -> PinvResult:
        """The solver's result with its status."""
        return self.solver.solve(a)

    def cost(self, m: int, batch: int = 1) -> Cost:
        """The solver's, of the forward pass."""
        return self.solver.cost(m, batch)


def _through(a: Tensor, x: Tensor, maps: tuple[Map, ...]) -> Tensor:
    for step in maps:
        x = step(a, x)
    return x
