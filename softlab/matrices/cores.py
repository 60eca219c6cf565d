"""Cores of attention: the matrices that Nystrom-type operators really have to invert."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from softlab.core import Stream, value
from softlab.inputs import Input
from softlab.kernels import Gaussian
from softlab.matrices.matrix import F64, delivered
from softlab.pinv import Inverting
from softlab.validation import Positive, Size, tensor_fits


@runtime_checkable
class _Ranked(Inverting, Protocol):
    """An operator that inverts a core of the size of its rank."""

    @property
    def rank(self) -> int:
        """The number of landmarks."""
        ...


@value
class NearDuplicates:
    """The core K(z, z) of SOFT for m landmarks that are nearly one: exp(-|z_i - z_j|^2 / 2).

    ``m``: number of landmarks, by default SOFT's 49. ``spread``: standard deviation of each
    coordinate of z, in bandwidths, positive; the exponents have mean -d spread^2. ``d``: width of
    the heads.

    Positive definite with all entries near 1, one eigenvalue near m, up to d others that fall with
    spread^2 and, where m - 1 > d, the rest with spread^4. K is the kernel of bandwidth d**0.25 at
    points scaled by it, as ``Soft(m)`` has it, so these are the numbers that SOFT inverts.
    """

    m: Size = 49
    spread: Positive = 0.05
    d: Size = 32

    def __post_init__(self) -> None:
        tensor_fits(self, self.m, max(self.m, self.d))

    def __call__(
        self, seed: int = 0, *, dtype: torch.dtype = F64, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Draw the core of this seed."""
        points = Stream(seed, "matrices.NearDuplicates").normal(self.m, self.d)
        bandwidth = self.d**0.25
        z = bandwidth * self.spread * points
        return delivered(Gaussian(bandwidth).matrix(z, z), dtype, device)


@value
class Core:
    """The core that ``op`` has to invert on ``input``: op.core(q, k), computed in float64.

    ``op``: an operator with a core and a rank, such as ``Soft(49)`` or ``Nystromformer(64)``.
    ``input``: whose queries and keys; seeds are the input's, so a ``Recorded`` has few of them.
    Raises ``TypeError`` for an operator that inverts nothing, and when called what the input and
    the operator raise: ``ValueError`` for a seed beyond the samples and for a rank above the number
    of tokens.
    """

    op: _Ranked
    input: Input

    @property
    def m(self) -> int:
        """The operator's rank."""
        return self.op.rank

    def __call__(
        self, seed: int = 0, *, dtype: torch.dtype = F64, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Compute the core on the input's case of this seed."""
        q, k, _ = self.input(seed, dtype=F64)
        return delivered(self.op.core(q, k), dtype, device)
