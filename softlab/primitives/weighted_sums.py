"""Sums of weighted values and of the weights, apart, so that those over several keys merge."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from softlab.primitives.normalization import over


class Sums(NamedTuple):
    """A weighted sum of values and the sum of its weights, both times exp(-log_scale).

    ``values`` (..., n, e), ``weights`` (..., n, 1), ``log_scale`` (..., n, 1), -inf where there is
    no weight at all. The scale keeps the others in range and has no gradient, as it cancels.
    """

    values: Tensor
    weights: Tensor
    log_scale: Tensor

    def average(self) -> Tensor:
        """Values over weights, (..., n, e), and 0 where the weight is not positive."""
        return over(self.values, self.weights)

    def merged(self, other: Sums) -> Sums:
        """The sums over the keys of both."""
        top = torch.maximum(self.log_scale, other.log_scale)
        near = torch.where(top == -math.inf, 0, top)  # or -inf - -inf where neither has a weight
        mine, theirs = ((x.log_scale - near).exp() for x in (self, other))
        return Sums(
            mine * self.values + theirs * other.values,
            mine * self.weights + theirs * other.weights,
            top,
        )
