"""What a matrix is: a frozen value that draws one square matrix a seed."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from softlab.core import Stream
from softlab.validation import (
    count,
    is_integer,
    placed,
    tensor_fits,
    typed,
)

F64 = torch.float64


@runtime_checkable
class Matrix(Protocol):
    """A frozen dataclass of numbers; calling it draws one matrix (m, m).

    ``matrix(seed, dtype=..., device=...)``: equal seeds give equal matrices. The numbers are drawn
    in float64 on the CPU and then converted, so a matrix is the same, up to rounding, in every
    dtype and on every device. Raises ``ValueError`` for a seed that is no integer of at least 0,
    ``TypeError`` for a dtype that is not floating point.
    """

    @property
    def m(self) -> int:
        """The number of rows, and of columns."""
        ...

    def __call__(
        self,
        seed: int = 0,
        *,
        dtype: torch.dtype = F64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw the matrix of this seed."""
        ...


@runtime_checkable
class KnownSpectrum(Matrix, Protocol):
    """A matrix whose singular values are known before it is drawn.

    They hold for the drawn matrix up to rounding *of the largest*: in a dtype of precision eps,
    singular values below some eps sigma_1 are lost, so that a ``condition`` beyond 1/eps makes the
    matrix numerically singular there.
    """

    @property
    def singular_values(self) -> Tensor:
        """All m of them, (m,), float64, descending; exact zeros beyond the rank."""
        ...

    @property
    def condition(self) -> float:
        """sigma_1 / sigma_r, the largest over the smallest that is not zero; at least 1."""
        ...

    @property
    def symmetric(self) -> bool:
        """Whether it is symmetric positive semidefinite, then exactly symmetric in every dtype."""
        ...


@typed
def haar(m: int, rng: Stream) -> Tensor:
    """An orthogonal matrix (m, m), float64, uniformly distributed (Haar measure).

    The Q of a QR factorisation of normal numbers, with the signs that make R's diagonal positive.
    Without them Q follows the signs that the factorisation happens to choose, and is not uniform
    (Mezzadri 2007, arXiv math-ph/0609050, section 5).
    """
    count("m", m, most=1 << 15)
    q, r = torch.linalg.qr(rng.normal(m, m))
    out: Tensor = q * r.diagonal().sign()
    return out


def delivered(a: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Convert a drawn matrix; raise as ``checks.placed``."""
    return placed("a matrix", (a,), dtype, device)[0]


def formed(left: Tensor, s: Tensor, rng: Stream | None) -> Tensor:
    """The product left diag(s) left^T, or left diag(s) V^T with V of Haar measure from ``rng``."""
    kept = s > 0
    if rng is not None:
        return (left[:, kept] * s[kept]) @ haar(len(s), rng)[:, kept].mT
    # A Gram matrix, formed of its nonzero part alone: semidefinite up to the rounding of one
    # product, which BLAS does not promise to round symmetrically.
    root = left[:, kept] * s[kept].sqrt()
    a = root @ root.mT
    return (a + a.mT) / 2


def check_count(owner: object, name: str, got: int, low: int, high: int) -> None:
    """Raise unless the field ``name`` is an integer from ``low`` to ``high``."""
    if not is_integer(got):
        msg = f"{type(owner).__name__}.{name} is {got!r}; give an integer of at least {low}."
        raise TypeError(msg)
    if not low <= got <= high:
        required = f"give {low} to {high}" if low <= high else f"m must be at least {low} for it"
        msg = f"{owner!r} has {name} = {got}; {required}."
        raise ValueError(msg)


def check_condition(owner: object, m: int, condition: float, *, nonzero: int = 1) -> None:
    """Check size and condition; ``nonzero`` tells how many values the condition can spread over."""
    tensor_fits(owner, m, m)
    name = type(owner).__name__
    if condition < 1:
        msg = f"{name}.condition is {condition}; it is s_1 / s_r, so give a number of at least 1."
        raise ValueError(msg)
    if nonzero < 2 and condition != 1:
        msg = (
            f"{owner!r} has nonzero singular values of one size only, so its condition is 1 and "
            "not that. Give condition=1, or leave room for a smaller value."
        )
        raise ValueError(msg)
