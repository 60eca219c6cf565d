"""Exact attention inside blocks of tokens that hash alike, and a sample of the other keys."""

from __future__ import annotations

import math
from itertools import pairwise
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
    gray_places,
    hyperplanes,
    over_survivors,
    parts,
)
from softlab.validation import Natural, Seed, Size


@value
class HyperAttention:
    """out_i = sum_j w_ij exp(s_ij) v_j / sum_j w_ij exp(s_ij), s = q k^T / sqrt(d), w mostly 0.

    w_ij = 1 where query i and key j share a block; (l - K) / m for m of the l - K keys outside it,
    K the keys in the block, drawn uniformly and without replacement; else 0. Blocks are those of
    sortLSH: queries and keys are each sorted by the signs of ``bits`` random projections, read as a
    Gray code, so that neighbours in the order differ in one sign; both orders are then cut into
    ceil(l / block) even parts, and equal parts belong together, whatever n is.

    ``block``: most keys in a block, at least 1. ``samples``: m, at least 0, and all outside keys
    where they are fewer. ``bits``: 1 to 62. ``seed``: integer >= 0, of hyperplanes and sample.
    Equals the target where block reaches the number of keys, or samples that outside every block.
    Memory O((n + l) (d + e)) for samples of the order of block. The hash is formed in float64, so
    that no block depends on the dtype.

    Numerator and denominator are unbiased, their ratio is not. The error falls as m^(-1/2), the
    slower the more unevenly the keys outside the block weigh: a heavy one that the hash did not
    bring near, as of a great norm in another direction, is missed or counted (l - K) / m times.
    A small sample can so do worse than none. Tokens that hash alike keep their given order, so
    results depend on that order. No causal form: the published recursion over halves sorts the
    queries of a half together, so that a later query can push an earlier one into another block.

    Masked keys are neither hashed into a block nor drawn. The released code differs: one sample
    serves all blocks, so that fewer than m of it, at times none, lie outside a given block, and
    are weighted as m (here the sample is counted on from the end of each block); on CUDA it counts
    drawn keys of the block twice and cuts the gradient of the merge's weights; it sorts by the Gray
    code of the signs, not by their place in that code, and so puts signs side by side that differ
    in two. Reference: Han et al., arXiv 2310.05869, Alg. 1 (sortLSH) and 3, and its code,
    ``hyper_attn.py`` and ``angular_lsh.py``.
    """

    family: ClassVar = "sampling"
    target: ClassVar = Softmax()
    knob: ClassVar = Knob("block", "samples")

    block: Size = 64
    samples: Natural = 64
    bits: Bits = 7
    seed: Seed = 0

    @property
    def traits(self) -> Traits:
        """Row-stochastic averages by an unbiased kernel estimate, in linear memory."""
        return Traits(
            row_stochastic=True,
            nonnegative=True,
            unbiased=self.samples > 0,
            exact_at="block",
            linear_memory=True,
        )

    def hyperplanes(self, d: int) -> Tensor:
        """The normals, (d, bits), float64, on the CPU."""
        return hyperplanes(d, self.bits, self.seed)

    def offsets(self, outside: int) -> Tensor:
        """The sample of ``outside`` keys: how far each is from the end of the block, from 0.

        Keys are counted in the order of their hashes, from the last one on to the first.
        """
        return Stream(self.seed, "HyperAttention, keys").permutation(outside)[: self.samples]

    def places(self, x: Tensor) -> Tensor:
        """Place (..., n) of each token's signs in the reflected Gray code, 0 to 2^bits - 1."""
        return gray_places(x, self.hyperplanes(x.shape[-1]))

    def cost(self, dims: Dims) -> Cost:
        """Hashes, 2 (n + l) d bits, and 2 (d + e) for each query and key that meet, a matrix."""
        blocks = -(-dims.l // self.block)
        q, k = (bounds(size, blocks) for size in (dims.n, dims.l))
        met = 0
        for i in range(blocks):
            keys = k[i + 1] - k[i]
            met += (q[i + 1] - q[i]) * (keys + min(self.samples, dims.l - keys))
        hashes = 2 * (dims.n + dims.l) * dims.d * self.bits
        return Cost(
            flops=dims.batch * (hashes + 2 * met * (dims.d + dims.e)),
            kernel_entries=dims.batch * met,
        )

    @own_precision
    def kernel_matrix(self, q: Tensor, k: Tensor) -> Tensor:
        """Return w exp(s), (..., n, l): the unbiased estimate of exp(q k^T / sqrt(d))."""
        q, k, _, _ = validation.admit(q, k, k)
        lead, n, l = q.shape[:-2], q.shape[-2], k.shape[-2]
        flat_q, flat_k = (x.reshape(-1, *x.shape[-2:]) for x in (widened(q), widened(k)))
        weights = block_weights(self._blocks(flat_q, flat_k), n, l)
        kernel = self.target.kernel(q.shape[-1]).matrix(flat_q, flat_k)
        return (weights * kernel).reshape(*lead, n, l).to(q.dtype)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        return over_survivors(self._blockwise, q, k, v, key_mask)

    def _blockwise(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_average(q, k, v, self._blocks(q, k))

    def _blocks(self, q: Tensor, k: Tensor) -> Blocks:
        drawn = placed(type(self)._layout, self, q.shape[-2], k.shape[-2], device=q.device)
        of_queries, real, of_keys, logs = drawn
        planes = placed(type(self).hyperplanes, self, q.shape[-1], device=q.device)
        order_q, order_k = (gray_places(x, planes).argsort(dim=-1, stable=True) for x in (q, k))
        return Blocks(order_q, of_queries, real, order_k[:, of_keys], logs)

    def _layout(self, n: int, l: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Who meets whom, in the orders of their hashes; of ``Blocks`` all but the first."""
        count = -(-l // self.block)
        of_queries, real = parts(bounds(n, count))
        cuts = bounds(l, count)
        inside, there = parts(cuts)
        logs = torch.zeros_like(inside, dtype=torch.float64).masked_fill(~there, -math.inf)
        sizes = [end - first for first, end in pairwise(cuts)]
        # Sizes differ by one at most: two draws, the shorter filled up.
        drawn = {size: self.offsets(l - size) for size in set(sizes)}
        width = max(len(of) for of in drawn.values())
        sample = torch.zeros(count, width, dtype=torch.long, device="cpu")
        sample_logs = torch.full_like(sample, -math.inf, dtype=torch.float64)
        for i, size in enumerate(sizes):
            m = len(drawn[size])
            sample[i, :m] = (cuts[i + 1] + drawn[size]) % l
            sample_logs[i, :m] = math.log((l - size) / m) if m else 0
        of_keys = torch.cat((inside, sample), -1)
        return of_queries, real, of_keys, torch.cat((logs, sample_logs), -1).unsqueeze(0)
