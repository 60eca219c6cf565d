"""MRA: exact scores in the blocks that weigh most, one score a block elsewhere."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from softlab.core import (
    Cost,
    Dims,
    Knob,
    Traits,
    attention,
    budget,
    recomputed,
    value,
)
from softlab.operators.softmax import Softmax
from softlab.primitives.banded import HELD_ENTRIES, ordinals, rows
from softlab.validation import Size


@value
class MRA:
    """out_i = sum_j w_ij v_j / sum_j w_ij, w_ij = exp(s_ij) in refined blocks, exp(t_xy) in others.

    s = q k^T / sqrt(d); x and y are the blocks of query i and key j, ``block`` consecutive tokens
    each, at least 1, the last one short; t_xy is the mean of s over both blocks, which is the
    product of the blocks' mean query and mean key. For each block of queries the ``refined`` blocks
    of keys of the largest t are refined, at least 1, all where there are fewer; at ties the earlier
    ones. ``sparse`` leaves the others out: w_ij = 0 there (MRA-2-s; else MRA-2). ``key_mask``
    deletes keys: the others close up, and blocks and means are of those that take part, in each
    matrix. The choice is a constant of the gradient, the means are not.

    Exact with refined >= l / block; without ``sparse`` also with block = 1, and where the tokens of
    a block are equal. By the arithmetic and the geometric mean no block weighs more than it does in
    the target. With r_i the most by which s_ij and t_xy differ outside refined blocks, |out_i -
    exact_i| <= tanh(r_i / 2) max_jl |v_j - v_l|; with ``sparse`` the error is at most the mass left
    out times that diameter. It fails where scores vary inside blocks: one large score among many
    small ones is lost in their mean, and its block is not even refined. Results depend on the order
    of the tokens. The work is (n / block) (l / block) (d + e) and n refined block (d + e), so it is
    quadratic in n with a small factor; the memory is linear, since coarse scores are formed for a
    few blocks of queries at once.

    Reference: Zeng et al., arXiv 2207.10284, and its code, ``mra2_kernel/attention.py``. That code
    has one number of refined blocks for the matrix, spent where t less the row's maximum is
    largest, so that the rows share them unevenly; wants lengths divisible by the block; and adds
    1e-6 to the normaliser. The package transformers has that code, and returns zeros where its CUDA
    kernels are not loaded.
    """

    family: ClassVar = "hybrid"
    target: ClassVar = Softmax()
    knob: ClassVar = Knob("refined", block=16)

    block: Size = 32
    refined: Size = 4
    sparse: bool = False

    @property
    def traits(self) -> Traits:
        """Row-stochastic in linear memory; the target restricted to few keys if sparse."""
        return Traits(
            row_stochastic=True,
            nonnegative=True,
            reads="scores",
            restricted=self.sparse,
            exact_at_rank_one=not self.sparse,
            exact_at="refined",
            linear_memory=True,
        )

    def cost(self, dims: Dims) -> Cost:
        """Scores and averages of blocks, and of each query with refined blocks, a short one whole.

        Which blocks are refined depends on the data; a short block is counted as a whole one.
        """
        blocks = -(-dims.n // self.block) * -(-dims.l // self.block)
        fine = dims.n * min(self.refined * self.block, dims.l)
        coarse_width = dims.d if self.sparse else dims.d + dims.e
        return Cost(
            flops=2 * dims.batch * (blocks * coarse_width + fine * (dims.d + dims.e)),
            kernel_entries=dims.batch * (fine if self.sparse else fine + blocks),
        )

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        lead, n, l = q.shape[:-2], q.shape[-2], k.shape[-2]
        if self.block > max(n, l):  # one block, and no memory beyond the tokens
            return replace(self, block=max(n, l))(q, k, v, key_mask)
        q, k, v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
        mask = None if key_mask is None else key_mask.reshape(-1, l)
        keys, survivor = ordinals(mask, l, q.device)
        if mask is not None:
            k, v = rows(k, survivor), rows(v, survivor)
        k, v = self._blocks(k), self._blocks(v)
        q = self._blocks(q / math.sqrt(q.shape[-1]))
        of_queries = self._sizes(torch.full((1, 1), n, device=q.device), q.shape[1])
        of_keys = self._sizes(keys, k.shape[1])
        mean_q, mean_k, mean_v = _means(q, of_queries), _means(k, of_keys), _means(v, of_keys)
        refined = min(self.refined, k.shape[1])
        width = refined * self.block

        def part(x: Tensor, mean_x: Tensor) -> Tensor:
            """The output (B, c, block, e) of a few blocks of queries."""
            coarse = mean_x @ mean_k.mT
            ranked = coarse.detach().masked_fill(of_keys.unsqueeze(1) == 0, -math.inf)
            at = ranked.argsort(dim=-1, descending=True, stable=True)[..., :refined]
            inside = torch.arange(self.block, device=x.device)
            places = (at.unsqueeze(-1) * self.block + inside).flatten(-2)
            near_k, near_v = (rows(y.flatten(1, 2), places) for y in (k, v))
            missing = places >= keys.unsqueeze(-1)
            fine = (x @ near_k.mT).masked_fill(missing.unsqueeze(-2), -math.inf)
            if self.sparse:
                return fine.softmax(-1) @ near_v
            coarse = (coarse + of_keys.to(coarse).log().unsqueeze(1)).scatter(-1, at, -math.inf)
            # Each maximum is a constant: it cancels in the quotient. No coarse block may be left.
            highest = coarse.detach().amax(-1, keepdim=True)
            top = torch.maximum(fine.detach().amax(-1, keepdim=True), highest.unsqueeze(-1))
            fine = (fine - top).exp()
            coarse = (coarse - highest.masked_fill(highest == -math.inf, 0)).exp()
            shared = (highest.unsqueeze(-1) - top).exp()
            total = fine @ near_v + shared * (coarse @ mean_v).unsqueeze(-2)
            mass = fine.sum(-1, keepdim=True) + shared * coarse.sum(-1)[..., None, None]
            return total / mass

        # A block of queries needs its refined keys and values, and scores with them and all blocks.
        held = width * (k.shape[-1] + v.shape[-1] + 2 * self.block) + 3 * k.shape[1]
        step = max(1, max(budget(HELD_ENTRIES, q.device), q.numel()) // (len(q) * held))
        parts = zip(q.split(step, 1), mean_q.split(step, 1), strict=True)
        out = torch.cat([recomputed(part, *pair) for pair in parts], 1)
        return out.flatten(1, 2)[:, :n].reshape(*lead, n, v.shape[-1])

    def _blocks(self, x: Tensor) -> Tensor:
        """Cut x (B, n, d) into blocks (B, blocks, block, d), the last one filled up with zeros."""
        filled = pad(x, (0, 0, 0, -x.shape[1] % self.block))
        return filled.reshape(len(x), -1, self.block, x.shape[-1])

    def _sizes(self, tokens: Tensor, blocks: int) -> Tensor:
        """How many of the tokens (B or 1, 1) are in each block, (B or 1, blocks)."""
        first = self.block * torch.arange(blocks, device=tokens.device)
        return (tokens - first).clamp(0, self.block)


def _means(x: Tensor, sizes: Tensor) -> Tensor:
    """The mean of each block's tokens, (B, blocks, d); zero where it has none."""
    return x.sum(-2) / sizes.clamp_min(1).unsqueeze(-1)
