"""Means of consecutive segments."""

from __future__ import annotations

import torch
from torch import Tensor

from softlab.core import value, widened
from softlab.landmarks.selector import Uncounted, of_tokens, taking_part


@value
class SegmentMeans(Uncounted):
    """Landmark j is the mean of the tokens r with floor(r m / s) = j, r = 0 .. s - 1.

    The s tokens that take part are cut, in order, into m consecutive segments whose lengths differ
    by at most one, so any s >= m is handled and nothing is padded. SOFT's default on a sequence
    (average pooling, arXiv 2110.11945, Sec. 3.2) and Nystromformer's (arXiv 2102.03902, Eq. 9).
    Costs one addition an entry, no product. Raises ``ValueError`` if s < m.
    """

    subset = False
    means = True
    equivariant = False
    nested = False

    @of_tokens
    def __call__(self, x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor:
        """Landmarks (..., m, d) of tokens x (..., n, d)."""
        size = taking_part(x, m, key_mask).unsqueeze(-1)
        wide = widened(x)
        n, d = x.shape[-2:]
        if key_mask is None and n % m == 0:
            return wide.reshape(*x.shape[:-2], m, n // m, d).mean(-2).to(x.dtype)
        if key_mask is None:
            segment = torch.arange(n, device=x.device).mul(m) // n
            segment = segment.expand(*x.shape[:-1])
        else:
            segment = (key_mask.cumsum(-1) - 1) * m // size
            segment = segment.masked_fill(~key_mask, m)  # one spare segment takes the dropped
        total = wide.new_zeros(*x.shape[:-2], m + 1, d)
        total = total.scatter_add(-2, segment.unsqueeze(-1).expand(x.shape), wide)[..., :m, :]
        edge = torch.arange(m + 1, device=x.device).mul(size)
        edge = (edge + m - 1).div(m, rounding_mode="floor")  # first r of segment j: ceil(j s / m)
        return (total / edge.diff(dim=-1).unsqueeze(-1)).to(x.dtype)
