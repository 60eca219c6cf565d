"""A matrix of a user's own, known by its numbers."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softlab import validation
from softlab.matrices.matrix import F64, delivered

DIGITS = 12


class Given:
    """A square matrix (m, m) of your own: an array of NumPy or SciPy, a DataFrame or a tensor.

    Every seed gives the same matrix. Its numbers are copied, as float64, so that later changes of
    the array change nothing. Two are equal where their numbers are, and the name holds a digest of
    these: ``Given(64 x 64, 1a2b3c4d5e6f)``. So changed data are another case of a study.

    Raises ``TypeError`` for what holds no real numbers, ``ValueError`` for what is not square, is
    empty, or has NaN or inf.
    """

    def __init__(self, array: Any) -> None:
        array = array.toarray() if hasattr(array, "toarray") else array  # sparse, of SciPy
        if not isinstance(array, Tensor | validation.Array):
            array = np.asarray(array)
        held = validation.tensor("array", array).detach()
        if not held.is_floating_point() and not held.is_complex() and held.dtype != torch.bool:
            held = held.double()
        validation.square(held, "array")
        validation.finite("array", held)
        if held.ndim > 2:
            msg = f"array has shape {tuple(held.shape)}; give one matrix (m, m), one at a time."
            raise ValueError(msg)
        self._a = held.to("cpu", F64, copy=True).contiguous()
        numbers = self._a.numpy().tobytes()
        self._content = hashlib.sha256(f"{self.m} ".encode() + numbers).hexdigest()[:DIGITS]

    @property
    def m(self) -> int:
        """The number of rows, and of columns."""
        return len(self._a)

    @validation.typed
    def __call__(
        self, seed: int = 0, *, dtype: torch.dtype = F64, device: torch.device | str = "cpu"
    ) -> Tensor:
        """The matrix, a copy, whatever the seed."""
        if seed < 0:
            msg = f"seed is {seed}; give an integer of at least 0."
            raise ValueError(msg)
        return delivered(self._a.clone(), dtype, device)

    def __repr__(self) -> str:
        return f"Given({self.m} x {self.m}, {self._content})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Given) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)
