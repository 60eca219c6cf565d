"""Spectra with Haar axes; each is hard for iterations in its own way.

With s the singular values in descending order and ``symmetric`` (the default) a matrix is
Q diag(s) Q^T, positive semidefinite; otherwise U diag(s) V^T. Q, U and V are independent and
Haar-distributed, so the axes say nothing, and equal seeds give equal axes whatever the spectrum.

The values are powers s = condition^-t with exponents t from 0 to 1, so s_1 = 1: log-spaced values
have equidistant t. ``m``: size, at least 1. ``condition``: s_1 over the smallest value that is not
zero, finite and at least 1; exactly 1 where the matrix has but one such value. Values below the
rounding of s_1 are lost when the matrix is formed, see ``KnownSpectrum``. All raise ``ValueError``
or ``TypeError`` for fields outside their range.
"""

from __future__ import annotations

import math
from typing import Any

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
from softlab.validation import NotNegative, Positive, Size


class _HaarAxes:
    """A matrix of its family's singular values, with the axes that every family has."""

    def __call__(
        self: Any, seed: int = 0, *, dtype: torch.dtype = F64, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Draw the matrix of this seed."""
        s, rng = self.singular_values, Stream(seed, "matrices, axes")
        a = formed(haar(len(s), rng), s, None if self.symmetric else rng)
        return delivered(a, dtype, device)


@value
class Geometric(_HaarAxes):
    """Log-spaced singular values, s_i = condition^-((i - 1) / (m - 1)): every scale alike."""

    m: Size
    condition: Positive
    symmetric: bool = True

    def __post_init__(self) -> None:
        check_condition(self, self.m, self.condition, nonzero=self.m)

    @property
    def singular_values(self) -> Tensor:
        """From 1 to 1/condition, (m,), float64."""
        return self.condition ** -torch.linspace(0, 1, self.m, dtype=F64, device="cpu")


@value
class Polynomial(_HaarAxes):
    """s_i = i^-p with p = log(condition) / log(m): few large singular values, many small ones."""

    m: Size
    condition: Positive
    symmetric: bool = True

    def __post_init__(self) -> None:
        check_condition(self, self.m, self.condition, nonzero=self.m)

    @property
    def singular_values(self) -> Tensor:
        """From 1 to 1/condition, (m,), float64."""
        log = torch.arange(1, self.m + 1, dtype=F64, device="cpu").log()
        return self.condition ** -(log / log[-1].clamp_min(math.log(2)))


@value
class Step(_HaarAxes):
    """Ones, then ``small`` values of 1/condition: two scales and nothing between.

    ``small``: 0 <= small < m, and at least 1 unless condition is 1; None means m // 2.
    """

    m: Size
    condition: Positive
    small: int | None = None
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.small is not None:
            check_count(self, "small", self.small, 0, self.m - 1)
        check_condition(self, self.m, self.condition, nonzero=self._small + 1)

    @property
    def _small(self) -> int:
        return self.m // 2 if self.small is None else self.small

    @property
    def singular_values(self) -> Tensor:
        """The m - small ones and ``small`` times 1/condition, (m,), float64."""
        s = torch.ones(self.m, dtype=F64, device="cpu")
        s[self.m - self._small :] = 1 / self.condition
        return s


@value
class Clusters(_HaarAxes):
    """Tight groups of singular values around log-spaced centres.

    ``clusters``: number of groups, 2 to m, of equal size give or take one. ``width``: largest value
    of a group over its smallest, less 1, at least 0 (equal values); within a group they are
    log-spaced. The exponents are stretched onto 0 to 1, which puts s_1 at 1 and s_m at 1/condition
    and makes the groups narrower than ``width`` by some width / log(condition) of it. Needs
    (1 + width)^(clusters - 1) < condition, or the groups would run into each other.
    """

    m: Size
    condition: Positive
    clusters: int = 3
    width: NotNegative = 0.01
    symmetric: bool = True

    def __post_init__(self) -> None:
        check_condition(self, self.m, self.condition, nonzero=self.m)
        check_count(self, "clusters", self.clusters, 2, self.m)
        apart = math.log(self.condition) / (self.clusters - 1)
        if not math.log1p(self.width) < apart:
            msg = (
                f"{self!r} has groups a factor {1 + self.width:.4g} wide at centres a factor "
                f"{math.exp(apart):.4g} apart, which must be more. Give a smaller width, fewer "
                "clusters or a larger condition."
            )
            raise ValueError(msg)

    @property
    def singular_values(self) -> Tensor:
        """From 1 to 1/condition, (m,), float64."""
        width = math.log1p(self.width) / math.log(self.condition)
        groups = torch.arange(self.m, device="cpu").tensor_split(self.clusters)
        centre = torch.linspace(0, 1, self.clusters, dtype=F64, device="cpu")
        t = torch.cat([c + width * _centred(len(g)) for c, g in zip(centre, groups, strict=True)])
        return self.condition ** -((t - t[0]) / (t[-1] - t[0]))


@value
class LowRank(_HaarAxes):
    """``rank`` log-spaced singular values from 1 to 1/condition; the others are exactly zero.

    ``rank``: 1 to m. Formed from factors m x rank, so that what rounding leaves of the others is
    about eps, whatever m. Below full rank an iteration must not amplify it.
    """

    m: Size
    rank: int
    condition: Positive
    symmetric: bool = True

    def __post_init__(self) -> None:
        check_count(self, "rank", self.rank, 1, self.m)
        check_condition(self, self.m, self.condition, nonzero=self.rank)

    @property
    def singular_values(self) -> Tensor:
        """``rank`` values from 1 to 1/condition, then zeros, (m,), float64."""
        s = torch.zeros(self.m, dtype=F64, device="cpu")
        s[: self.rank] = self.condition ** -torch.linspace(0, 1, self.rank, dtype=F64, device="cpu")
        return s


def _centred(k: int) -> Tensor:
    """Equidistant numbers, k of them, from -1/2 to 1/2; 0 for k = 1."""
    return (
        torch.linspace(-0.5, 0.5, k, dtype=F64, device="cpu")
        if k > 1
        else torch.zeros(1, dtype=F64, device="cpu")
    )
