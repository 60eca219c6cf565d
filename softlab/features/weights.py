"""What the weights of random features are."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Weights(Protocol):
    """A frozen dataclass with a ``seed``, called on the sizes of the matrix that it draws."""

    @property
    def seed(self) -> int:
        """Which draw; an integer of at least 0."""
        ...

    @property
    def normal(self) -> bool:
        """Whether each row alone is N(0, I_d): then every mean over features is unbiased."""
        ...

    @property
    def independent(self) -> bool:
        """Whether the rows are independent: then a variance falls as 1 / m."""
        ...

    @property
    def orthogonal(self) -> bool:
        """Whether the rows of each block of d are orthogonal, of directions drawn uniformly."""
        ...

    def __call__(self, m: int, d: int) -> Tensor:
        """The matrix W, (m, d), float64, on the CPU."""
        ...
