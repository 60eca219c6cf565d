"""Block-orthogonal weights with the lengths of normal ones."""

from __future__ import annotations

import torch
from torch import Tensor

from softlab.core import Stream, value
from softlab.validation import Seed


@value
class Orthogonal:
    """W = diag(r) [Q_1; Q_2; ...] with Haar orthogonal blocks Q_i (d, d) and r_i from chi(d).

    ``seed``: integer >= 0. The last block is cut where d does not divide m. Every row alone is
    N(0, I_d), so estimates stay unbiased; rows of one block are orthogonal, which lowers the
    variance of positive features for every d, and that of trigonometric ones for large d.
    Reference: Yu et al., arXiv 1610.09072, Sec. 3; arXiv 2009.14794, Sec. 2.4 and Theorem 2.
    """

    seed: Seed = 0

    normal = True
    independent = False
    orthogonal = True

    def __call__(self, m: int, d: int) -> Tensor:
        """The matrix W, (m, d)."""
        rng = Stream(self.seed, "features.Orthogonal")
        blocks = -(-m // d)
        q, r = torch.linalg.qr(rng.normal(blocks, d, d))
        # QR fixes the signs of R in its own way; with a positive diagonal Q is Haar (Mezzadri).
        q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
        lengths = rng.normal(m, d).norm(dim=-1, keepdim=True)
        directions = q.mT.reshape(blocks * d, d)[:m]
        w: Tensor = lengths * directions
        return w
