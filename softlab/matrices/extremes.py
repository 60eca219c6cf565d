"""Matrices of extreme axes: the identity, all ones, and a few coordinates that carry everything.

``m``: size, at least 1. All raise ``ValueError`` or ``TypeError`` for fields outside their range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softlab.core import Stream, value
from softlab.matrices.matrix import (
    F64,
    check_condition,
    check_count,
    delivered,
    formed,
    haar,
)
from softlab.validation import Positive, Size


@value
class Flat:
    """All singular values 1: an orthogonal matrix, and exactly the identity if symmetric.

    The identity has equal row sums, |A|_1 = s_1: a scaling that only just converges fails on it.
    """

    m: Size
    symmetric: bool = True

    condition = 1.0

    def __post_init__(self) -> None:
        check_condition(self, self.m, self.condition)

    @property
    def singular_values(self) -> Tensor:
        """Ones, (m,), float64."""
        return torch.ones(self.m, dtype=F64, device="cpu")

    def __call__(
        self, seed: int = 0, *, dtype: torch.dtype = F64, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Draw U V^T of this seed, or return the identity."""
        rng = Stream(seed, "matrices.Flat")
        identity = torch.eye(self.m, dtype=F64, device="cpu")
        # Q Q^T is the identity up to rounding; here it is the identity.
        a = identity if self.symmetric else formed(haar(self.m, rng), self.singular_values, rng)
        return delivered(a, dtype, device)


@value
class Ones:
    """All entries one: rank 1, s_1 = m, and equal row sums.

    Where row sums are equal |A|_1 is the largest eigenvalue itself, and the bound that SOFT's paper
    gives for its scaling, alpha < 2 / |A|_1^2, is attained rather than kept by
    alpha = 2 / |A|_1^2: the first step yields zero, and so does every later one. Identical tokens
    make this core. The same for every seed.
    """

    m: Size

    condition = 1.0
    symmetric = True

    def __post_init__(self) -> None:
        check_condition(self, self.m, self.condition)

    @property
    def singular_values(self) -> Tensor:
        """One m and zeros, (m,), float64."""
        s = torch.zeros(self.m, dtype=F64, device="cpu")
        s[0] = self.m
        return s

    def __call__(
        self, seed: int = 0, *, dtype: torch.dtype = F64, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return the matrix; the seed changes nothing."""
        Stream(seed, "matrices.Ones")  # refuses what is no seed
        return delivered(torch.ones(self.m, self.m, dtype=F64, device="cpu"), dtype, device)


@value
class Spiked:
    """A few coordinates carry the large singular values: the highest coherence there is.

    ``spikes`` singular values are 1, with random coordinate vectors as their left singular vectors
    (and as their right ones if symmetric); the others lie log-spaced between min(1, 2/condition)
    and 1/condition, with Haar axes in the remaining coordinates. ``spikes``: 1 <= spikes <= m, and
    below m unless condition is 1.

    Uniform sampling misses such coordinates, and norms see them: if symmetric, |A|_1 is s_1 itself
    (once 1/condition is small), where Haar axes make it several times s_1. In the manner of
    RandLAPACK's "spiked" test matrix, D V^T with random entries of the diagonal D large (there half
    of them, and all others equal; here the others are spread by a factor of two, or the symmetric
    form would be diagonal).
    """

    m: Size
    condition: Positive
    spikes: int = 1
    symmetric: bool = True

    def __post_init__(self) -> None:
        check_count(self, "spikes", self.spikes, 1, self.m)
        check_condition(self, self.m, self.condition, nonzero=self.m - self.spikes + 1)

    @property
    def singular_values(self) -> Tensor:
        """``spikes`` ones, then from min(1, 2/condition) to 1/condition, (m,), float64."""
        s, bulk = torch.ones(self.m, dtype=F64, device="cpu"), self.m - self.spikes
        top = min(self.condition, 2.0)
        s[self.spikes :] = (
            top ** torch.linspace(1, 0, bulk, dtype=F64, device="cpu") / self.condition
        )
        s[-1] = 1 / self.condition  # also where the bulk is one value
        return s

    def __call__(
        self, seed: int = 0, *, dtype: torch.dtype = F64, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Draw the matrix of this seed."""
        rng = Stream(seed, "matrices.Spiked")
        place = rng.permutation(self.m)
        left = torch.eye(self.m, dtype=F64, device="cpu")
        if self.spikes < self.m:
            left[self.spikes :, self.spikes :] = haar(self.m - self.spikes, rng)
        left = left[place]
        a = formed(left, self.singular_values, None if self.symmetric else rng)
        return delivered(a, dtype, device)
