"""Exact attention inside blocks of tokens that hash alike, and keys drawn by what they weigh."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from softlab import validation
from softlab.core import (
    Cost,
    Dims,
    Knob,
    Stream,
    Traits,
    attention,
    own_precision,
    placed,
    value,
    widened,
)
from softlab.operators.softmax import Softmax
from softlab.primitives.sort_lsh import (
    Bits,
    Blocks,
    block_average,
    block_weights,
    bounds,
    even_parts,
    gray_places,
    hyperplanes,
    over_survivors,
)
from softlab.validation import Amount, Seed, Size


@value
class KDEFormer:
    """out_i = sum_j w_ij exp(s_ij) v_j / sum_j w_ij exp(s_ij), s = q k^T / sqrt(d), w mostly 0.

    w_ij = 1 where query i and key j share a block; else c_j / (m p_j), with c_j how often key j is
    among m independent draws from p_j = (|v_j| / sum_l |v_l| + 1 / l) / 2, or p_j = 1 / l where all
    values are zero. One sample serves all queries; what of it lies in a query's own block counts
    nothing. Blocks are those of ``HyperAttention``: sortLSH, cut into ceil(l / block) even parts.

    ``block``: most keys in a block, at least 1. ``samples``: m, at least 0. ``bits``: signs of a
    hash, 1 to 62. ``seed``: integer >= 0, of hyperplanes and draws. Exact where block reaches the
    number of keys, and by no number of samples, since they repeat. Memory O((n + l) (d + e)) for
    samples of the order of block. Hashes and p are formed in float64. p depends on v, so the output
    is not linear in it, but scales with it. The gradient is that of the weights as drawn, 1 / (m p)
    included; which keys are drawn is a constant of it.

    For given values numerator and denominator are unbiased, their ratio is not. A weight is at most
    2 l / m, so the mean square of what is drawn is at most twice that of uniform draws, and less
    where the lengths of the values tell where the numerator comes from. The error falls as
    m^(-1/2). It fails as uniform draws do: a heavy key that the hash did not bring near is missed
    or counted 1 / (m p) times, and a small sample can do worse than none; where m is near l, draws
    without replacement do better. Tokens that hash alike keep their given order, so results depend
    on that order.

    Masked keys are neither hashed into a block nor drawn. The first half of p stands for the rows
    of V, the second for the columns of the kernel outside the blocks, which the released code takes
    as equally long, and which the paper estimates by kernel densities. That code draws from |x_j| /
    |X|_2^2 + 1 / l, x = [v, 1], which changes with the scale of v; it forms exp(s) without a shift,
    so that large scores overflow, takes no mask, needs lengths that block divides, and sorts by the
    Gray code of the signs instead of their place in it. Reference: Zandieh et al., arXiv
    2302.02451, and its code, ``KDEformer.py``.
    """

    family: ClassVar = "sampling"
    target: ClassVar = Softmax()
    knob: ClassVar = Knob("block", "samples")

    block: Size = 64
    samples: Amount = 64
    bits: Bits = 7
    seed: Seed = 0

    @property
    def traits(self) -> Traits:
        """Averages of v, by an unbiased kernel estimate that depends on v; linear memory."""
        return Traits(
            linear_in_v=self.samples == 0,
            row_stochastic=True,
            nonnegative=True,
            unbiased=self.samples > 0,
            exact_at="block",
            linear_memory=True,
        )

    def hyperplanes(self, d: int) -> Tensor:
        """The normals, (d, bits), float64, on the CPU."""
        return hyperplanes(d, self.bits, self.seed)

    def probabilities(self, v: Tensor) -> Tensor:
        """The distribution p (..., l) of the draws for values v (..., l, e), float64."""
        v = v.double()
        # p does not change with the scale, and the norms of what is left cannot overflow.
        largest = v.detach().abs().amax((-2, -1), keepdim=True)
        lengths = torch.linalg.vector_norm(v / torch.where(largest > 0, largest, 1), dim=-1)
        total = lengths.sum(-1, keepdim=True)
        even = torch.full_like(lengths, 1 / v.shape[-2])
        return (
            torch.where(total > 0, lengths / torch.where(total > 0, total, 1) + even, 2 * even) / 2
        )

    def drawn(self, p: Tensor) -> Tensor:
        """The sample (..., samples) of keys, by the inverse of the distribution function of p."""
        u = placed(_uniforms, self.seed, self.samples, device=p.device)
        up_to = p.detach().cumsum(-1)
        at = torch.searchsorted(up_to, (u * up_to[..., -1:]).contiguous(), right=True)
        return at.clamp_max(p.shape[-1] - 1)

    def cost(self, dims: Dims) -> Cost:
        """Hashes, 2 (n + l) d bits, and 2 (d + e) for each query and key that meet, a matrix."""
        blocks = -(-dims.l // self.block)
        q, k = (bounds(size, blocks) for size in (dims.n, dims.l))
        met = sum(
            (q[i + 1] - q[i]) * (k[i + 1] - k[i] + self.samples) for i in range(blocks)
        )  # drawn keys of the own block are computed, and then left out
        hashes = 2 * (dims.n + dims.l) * dims.d * self.bits
        return Cost(
            flops=dims.batch * (hashes + 2 * met * (dims.d + dims.e)),
            kernel_entries=dims.batch * met,
        )

    @own_precision
    def kernel_matrix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return w exp(s), (..., n, l): for these values an unbiased estimate of exp(s)."""
        q, k, v, _ = validation.admit(q, k, v)
        lead, n, l = q.shape[:-2], q.shape[-2], k.shape[-2]
        flat = [widened(x).reshape(-1, *x.shape[-2:]) for x in (q, k, v)]
        weights = block_weights(self._blocks(*flat), n, l)
        kernel = self.target.kernel(q.shape[-1]).matrix(*flat[:2])
        return (weights * kernel).to(q.dtype).reshape(*lead, n, l)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        return over_survivors(self._blockwise, q, k, v, key_mask)

    def _blockwise(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_average(q, k, v, self._blocks(q, k, v))

    def _blocks(self, q: Tensor, k: Tensor, v: Tensor) -> Blocks:
        n, l, device = q.shape[-2], k.shape[-2], q.device
        count = -(-l // self.block)
        planes = placed(type(self).hyperplanes, self, q.shape[-1], device=device)
        order_q, order_k = (gray_places(x, planes).argsort(dim=-1, stable=True) for x in (q, k))
        of_queries, real = placed(even_parts, n, count, device=device)
        inside, there = placed(even_parts, l, count, device=device)
        p = self.probabilities(v)
        sample = self.drawn(p)
        drawn_logs = -(self.samples * p.gather(-1, sample)).log()
        # A drawn key of rank r is in the block r count // l, and counts there already.
        home = order_k.argsort(dim=-1).gather(-1, sample) * count // l
        own = home.unsqueeze(-2) == torch.arange(count, device=device)[:, None]
        logs = torch.zeros_like(inside, dtype=torch.float64).masked_fill(~there, -math.inf)
        return Blocks(
            order_q,
            of_queries,
            real,
            torch.cat((order_k[:, inside], sample.unsqueeze(-2).expand(own.shape)), -1),
            torch.cat(
                (logs.expand(len(q), -1, -1), drawn_logs.unsqueeze(-2).masked_fill(own, -math.inf)),
                -1,
            ),
        )


def _uniforms(seed: int, samples: int) -> Tensor:
    return Stream(seed, "KDEFormer, keys").uniform(samples)
