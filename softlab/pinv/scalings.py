"""Initial guesses of iterative pseudo-inverses, each matrix scaled by its own norms."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from softlab import checks
from softlab.core import value


@runtime_checkable
class Scaling(Protocol):
    """A frozen dataclass of numbers that maps A (..., m, m) to an initial guess X0 alike."""

    def __call__(self, a: Tensor) -> Tensor:
        """The initial guess."""
        ...


@value
class NormProduct:
    """X0 = factor * A^T / (|A|_1 |A|_inf).

    As sigma_1^2 <= |A|_1 |A|_inf, Newton-type iterations converge for every 0 < factor < 2. For
    symmetric A this is factor * A / |A|_1^2: SOFT's with factor 1.8 = 0.9 * 2 (arXiv 2110.11945,
    Alg. 2), the published Nystromformer's exact option with factor 1 (arXiv 2102.03902). At
    factor 2 itself, identity and all-ones matrices map to X1 = 0 and stay there. A zero matrix
    gets X0 = 0, its pseudo-inverse. Never forms a squared norm, so it scales over the whole range
    of the dtype.
    """

    factor: float

    def __post_init__(self) -> None:
        checks.positive(self, factor=self.factor)

    def __call__(self, a: Tensor) -> Tensor:
        """The initial guess, (..., m, m)."""
        magnitude = a.abs()
        one, infinity = (magnitude.sum(axis).amax(-1)[..., None, None] for axis in (-2, -1))
        one, infinity = (torch.where(norm > 0, norm, 1) for norm in (one, infinity))
        return (a.mT / one) * (self.factor / infinity)
