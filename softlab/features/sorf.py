"""Structured orthogonal weights: products of Hadamard matrices and random signs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softlab.core import Stream, value
from softlab.validation import Seed


@value
class SORF:
    """W of blocks sqrt(D) H D_1 H D_2 H D_3, H the orthonormal Hadamard matrix, D_i random signs.

    ``seed``: integer >= 0. D is the next power of two from d; further columns than d are dropped,
    which is padding the points with zeros, and the last block is cut where D does not divide m.

    Rows have E[w w^T] = I exactly and, at d = D, length sqrt(d) and right angles in a block, but
    they are not normal: kernels are estimated with a bias that vanishes as d grows, so this claims
    no unbiased estimate. The matrix is formed here, by m D log2(D) additions, and then applied
    densely: its statistics are SORF's, its speed is not. Reference: Yu et al., arXiv 1610.09072.
    """

    seed: Seed = 0

    normal = False
    independent = False
    orthogonal = False

    def __call__(self, m: int, d: int) -> Tensor:
        """The matrix W, (m, d)."""
        width = 1 << (d - 1).bit_length()
        blocks = -(-m // width)
        drawn = Stream(self.seed, "features.SORF").signs(3, blocks, 1, width)
        rows = torch.eye(width, dtype=torch.float64, device="cpu").expand(blocks, width, width)
        for signs in drawn.unbind():  # e_i H D_1 H D_2 H D_3, row by row
            rows = _hadamard(rows) * signs
        stacked: Tensor = math.sqrt(width) * rows.reshape(blocks * width, width)
        return stacked[:m, :d].clone()


def _hadamard(x: Tensor) -> Tensor:
    """The product x H along the last axis, of a power of two, by log2 butterflies."""
    shape, width, half = x.shape, x.shape[-1], 1
    while half < width:
        pairs = x.reshape(*shape[:-1], width // (2 * half), 2, half)
        left, right = pairs.unbind(-2)
        x = torch.stack((left + right, left - right), -2).reshape(shape)
        half *= 2
    return x / math.sqrt(width)
