"""A matrix that is known by its products alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Operator

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LinearMap:
    """A matrix A (n, l), one and not a batch: ``a @ x``, ``a.T @ y`` and ``a - b`` work.

    ``shape``: (n, l), both at least 1. ``apply``: x (l, c) to A x (n, c). ``adjoint``: y (n, c) to
    A^T y (l, c), or None where only products with A are asked for. ``symmetric``: whether A = A^T,
    which is believed; the adjoint is then ``apply``. ``dtype`` and ``device`` are those in which
    the products are formed. Products are taken and given in float64, so that what is made of them
    adds no error to theirs.

    Raises ``ValueError`` for an empty or a batched matrix, and at a product for a result of another
    shape or one that is not finite.
    """

    shape: tuple[int, int]
    apply: Product
    adjoint: Product | None = None
    symmetric: bool = False
    dtype: torch.dtype = torch.float64
    device: torch.device | str = "cpu"
    _wanted: ClassVar = "a LinearMap; LinearMap.of_matrix makes one of a matrix"

    def __post_init__(self) -> None:
        validation.fields(self)
        if min(self.shape) < 1:
            msg = f"LinearMap.shape is {self.shape!r}; give (rows, columns), both at least 1."
            raise ValueError(msg)
        validation.floating("LinearMap.dtype", self.dtype)
        if self.symmetric and self.shape[0] != self.shape[1]:
            msg = f"LinearMap.symmetric is True and shape is {self.shape}; make it square."
            raise ValueError(msg)

    @classmethod
    @validation.typed
    def of_matrix(cls, a: Tensor) -> LinearMap:
        """The matrix a (n, l) itself, finite; symmetric where it differs from a^T by rounding.

        That is by at most 100 eps max|a|: products such as k k^T are no more symmetric than that.
        """
        _one("a", a)
        largest = validation.finite("a", a)
        gap = (a - a.mT).abs().max() if a.shape[0] == a.shape[1] else math.inf
        same = bool(gap <= 100 * torch.finfo(a.dtype).eps * largest)
        shape = (a.shape[0], a.shape[1])
        return cls(shape, lambda x: a @ x, lambda y: a.mT @ y, same, a.dtype, a.device)

    @classmethod
    @validation.typed
    def of_operator(cls, op: Operator, q: Tensor, k: Tensor) -> LinearMap:
        """The matrix M of ``op(q, k, v) = M v``, for q (n, d) and k (l, d).

        M^T y is the gradient of <y, op(q, k, v)> in v, so every operator has its adjoint. Raises
        ``ValueError`` for an operator that is not linear in v, which has no matrix.
        """
        if not op.traits.linear_in_v:
            msg = f"{op!r} is not linear in v, so it has no matrix; ask for its output_error."
            raise ValueError(msg)
        for name, x in (("q", q), ("k", k)):
            _one(name, x)
            validation.finite(name, x)

        def adjoint(y: Tensor) -> Tensor:
            with torch.enable_grad():
                v = y.new_zeros(len(k), y.shape[-1]).requires_grad_()
                out = op(q, k, v)
            return torch.autograd.grad(out, v, y)[0]

        symmetric = op.traits.symmetric and torch.equal(q, k)
        return cls((len(q), len(k)), lambda x: op(q, k, x), adjoint, symmetric, q.dtype, q.device)

    @property
    def T(self) -> LinearMap:
        """A^T; ``ValueError`` where no adjoint was given."""
        if self.symmetric:
            return self
        if self.adjoint is None:
            msg = "this LinearMap has no adjoint, which is needed here; give LinearMap(adjoint=...)"
            raise ValueError(msg)
        n, l = self.shape
        return LinearMap((l, n), self.adjoint, self.apply, False, self.dtype, self.device)

    @validation.typed
    def __matmul__(self, x: Tensor) -> Tensor:
        """A x for x (l,) or (l, c), float64."""
        if x.ndim not in (1, 2) or x.shape[0] != self.shape[1]:
            got = tuple(x.shape)
            msg = f"a {self.shape} map takes a tensor ({self.shape[1]},) or that by c, got {got}."
            raise ValueError(msg)
        columns = x.unsqueeze(-1) if x.ndim == 1 else x
        with torch.no_grad():
            out = self.apply(columns.to(self.device, self.dtype)).double()
        if out.shape != (self.shape[0], columns.shape[-1]):
            msg = (
                f"a product of a {self.shape} map with {tuple(columns.shape)} gave "
                f"{tuple(out.shape)}; apply must map (l, c) to (n, c), adjoint (n, c) to (l, c)."
            )
            raise ValueError(msg)
        if not out.is_meta:
            validation.finite("a product of the map", out)
        return out.squeeze(-1) if x.ndim == 1 else out

    @validation.typed
    def __sub__(self, other: LinearMap) -> LinearMap:
        """A - B."""
        if self.shape != other.shape:
            msg = f"maps of shapes {self.shape} and {other.shape} have no difference."
            raise ValueError(msg)
        both = self.symmetric and other.symmetric
        known = None not in (self.adjoint, other.adjoint)
        adjoint = _difference(self.T, other.T) if known and not both else None
        # What both take is rounded alike, so that the difference keeps its digits.
        coarse = max(self.dtype, other.dtype, key=lambda t: torch.finfo(t).eps)
        apply = _difference(self, other)
        return LinearMap(self.shape, apply, adjoint, both, coarse, self.device)


def _difference(a: LinearMap, b: LinearMap) -> Product:
    return lambda x: a @ x - b @ x


def _one(name: str, x: Tensor) -> None:
    """Raise unless ``x`` is one matrix that is not empty."""
    if not isinstance(x, Tensor) or x.dtype not in validation.FLOATING:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        msg = f"{name} must be a floating tensor, got {got}. Convert it with .float()."
        raise TypeError(msg)
    if x.ndim != 2 or x.numel() == 0:
        msg = f"{name} must be one matrix (rows, columns), not empty, got {tuple(x.shape)}."
        raise ValueError(msg)
