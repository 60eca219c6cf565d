"""Attention through features: phi(q) (phi(k)^T v), normalised by phi(q) (phi(k)^T 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def feature_average(a: Tensor, b: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """D^-1 phi(q) (phi(k)^T v) from the logarithms a (..., n, m), b (..., l, m) of the features.

    With c_r = log sum_j exp(b_jr) this is softmax_r(a_ir + c_r) applied to softmax_j(b_jr) v: two
    averages, whose stabilisers cancel exactly and whose degrees are at least one, however large or
    small the features are. ``key_mask`` (..., l) drops keys.
    """
    if key_mask is not None:
        b = b.masked_fill(~key_mask.unsqueeze(-1), -math.inf)
    c = b.logsumexp(-2, keepdim=True)
    gathered = b.softmax(-2).mT @ v
    return (a + c).softmax(-1) @ gathered


def log_elu(x: Tensor) -> Tensor:
    """log(elu(x) + 1): log(1 + x) for x > 0, else x."""
    return torch.where(x > 0, x.clamp_min(0).log1p(), x)
