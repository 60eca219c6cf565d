"""BigBird: a band of neighbours, tokens that all see and that see all, and random keys."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from softlab.core import Cost, Dims, Knob, Stream, Traits, attention, placed, value
from softlab.kernels import Exponential
from softlab.operators.softmax import Softmax
from softlab.primitives.banded import (
    banded_average,
    before,
    centres,
    ordinals,
    rows,
    support_sizes,
    widest,
)
from softlab.primitives.certificates import (
    at_most,
    average_rounding,
    centre,
    certificate,
    distance,
    lengths,
    score_rounding,
)
from softlab.primitives.pages import Band, banded_bound, page_size
from softlab.validation import Amount, Natural, Seed, Size


@value
class BigBird:
    """out_i = sum_{j in B_i} exp(s_ij) v_j / sum_{j in B_i} exp(s_ij), s = q k^T / sqrt(d).

    B_i are the keys within ``window`` of the query on either side, at least 1; the first
    ``globals`` keys, at least 0; and ``random`` keys, at least 0, drawn independently and uniformly
    among all keys for each ``block`` of consecutive queries, at least 1. A key of several kinds
    counts once, so a block may see fewer random keys than ``random``. Queries that stand at one of
    the first ``globals`` keys attend to all keys. ``seed``: integer >= 0, of the draw: the same
    shares of the way from the first key to the last in every matrix.

    Where queries and keys differ in number, l keys and n queries, query i stands proportionally, at
    key floor((2 i + 1) l / (2 n)). ``key_mask`` deletes keys: the others close up, and positions,
    globals and draws count those that take part, in each matrix; a mask that drops keys of a
    self-attention also moves its queries.

    A row is the exact one on what it keeps: with kept mass c_i, the sum of the exact weights over
    B_i, |out_i - exact_i| <= (1 - c_i) max_jl |v_j - v_l|. Exact with window >= l - 1 or globals >=
    l. It fails where the mass lies on far keys: random ones catch a share of about random / l of
    it. The pattern is the same at any length; published code turns into full attention where a
    sequence is shorter than its blocks need, and stays so (transformers, issue 20031); out of
    training it draws no random blocks and counts the first block once more for each. Cost and
    memory are linear in n and l. Reference: Zaheer et al., Big Bird, arXiv 2007.14062, Sec. 2 (the
    internal construction), with blocks of queries but single keys.
    """

    family: ClassVar = "sparse"
    target: ClassVar = Softmax()
    knob: ClassVar = Knob("window", "globals", "random", block=32)

    window: Size
    globals: Natural
    random: Amount
    block: Size = 64
    seed: Seed = 0

    @property
    def traits(self) -> Traits:
        """The target restricted to few keys, in linear memory; positions matter."""
        return Traits(
            row_stochastic=True,
            nonnegative=True,
            reads="relative scores",
            restricted=True,
            exact_at="window",
            monotone="absolute",
            linear_memory=True,
            certified=True,
        )

    def shares(self, blocks: int) -> Tensor:
        """Uniform u in [0, 1), (blocks, random): of s keys a block attends to key floor(u s).

        In float64, on the CPU. More blocks do not change the numbers of the first ones.
        """
        return Stream(self.seed, "BigBird").uniform(blocks, self.random)

    def cost(self, dims: Dims) -> Cost:
        """2 (d + e) for each kept entry, at the drawn keys."""
        if self._beyond(dims.n, dims.l):
            return self._fitted(dims.n, dims.l).cost(dims)
        keys = torch.tensor([[dims.l]], device="cpu")
        at = centres(dims.n, keys)
        sizes = support_sizes(*self._interval(at, keys), self._others(dims.n, keys), self.block)
        kept = int(torch.where(at < self.globals, dims.l, sizes).sum()) * dims.batch
        return Cost(flops=2 * kept * (dims.d + dims.e), kernel_entries=kept)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        lead, n, l = q.shape[:-2], q.shape[-2], k.shape[-2]
        if self._beyond(n, l):
            return self._fitted(n, l)(q, k, v, key_mask)
        q, k, v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
        mask = None if key_mask is None else key_mask.reshape(-1, l)
        k, v, mask, band = self._banded(n, k, v, mask)
        seen = band.low, band.high, band.others, band.block
        width = widest(self.window, band.block, n, l)
        out = banded_average(q / math.sqrt(q.shape[-1]), k, v, *seen, width=width)
        first, seeing = self._seeing(n, band.keys, None if key_mask is not None else l)
        if first:
            whole = Exponential().average(q[:, :first], k, v, mask)
            whole = torch.where(seeing[:, :first, None], whole, out[:, :first])
            out = torch.cat((whole, out[:, first:]), 1)
        return out.reshape(*lead, n, v.shape[-1])

    at_most = at_most

    @certificate
    def bound(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, out: Tensor
    ) -> Tensor:
        """At least |out_i - exact_i|, (..., n).

        As of ``Local``: what a query leaves out is bounded page by page, see
        ``primitives.pages.left_out``. A random key is still counted in its page, which makes the
        bound larger by its share. Queries that see all keys are compared with the exact average,
        which costs what their call does.

        Args:
            q: queries (..., n, d).
            k: keys (..., l, d).
            v: values (..., l, e).
            key_mask: boolean, broadcastable to (..., l).
            out: the output (..., n, e), if it is known.
        """
        lead, n, l = q.shape[:-2], q.shape[-2], k.shape[-2]
        here = self._fitted(n, l) if self._beyond(n, l) else self
        q, k, v, out = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v, out))
        mask = None if key_mask is None else key_mask.reshape(-1, l)
        k, v, mask, band = here._banded(n, k, v, mask)
        size = page_size(l, 2 * here.window + 1 + here.globals + here.random)
        scaled = q / math.sqrt(q.shape[-1])
        found = banded_bound(scaled, k, v, out, band, size, here.globals)
        first, seeing = here._seeing(n, band.keys, None if key_mask is not None else l)
        if first:
            exact = Exponential().average(q[:, :first], k, v, mask)
            radius, largest = centre(v, mask)[1], lengths(v).amax(-1, keepdim=True)
            slack = score_rounding(scaled[:, :first], k, 1.0)
            near = distance(out[:, :first], exact)
            near = near + average_rounding(slack, radius, largest, l)
            near = torch.where(seeing[:, :first], near, found[:, :first])
            found = torch.cat((near, found[:, first:]), 1)
        return found.reshape(*lead, n)

    def _banded(
        self, n: int, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Band]:
        """Keys and values that take part first, their mask, and what each query sees."""
        keys, survivor = ordinals(mask, k.shape[1], k.device)
        if mask is not None:
            k, v = rows(k, survivor), rows(v, survivor)
            mask = torch.arange(k.shape[1], device=k.device) < keys
        low, high = self._interval(centres(n, keys), keys)
        return k, v, mask, Band(low, high, self._others(n, keys), self.block, None, keys)

    def _seeing(self, n: int, keys: Tensor, l: int | None) -> tuple[int, Tensor]:
        """Which queries see all keys, (B or 1, n), and before which number all of them stand.

        Queries stand in the order of the keys, so those at global ones come first. ``l``: how many
        keys there are, if all take part.
        """
        seeing = centres(n, keys) < self.globals
        if l is None:
            return int(seeing.sum(-1).max()), seeing
        return before(n, l, self.globals), seeing

    def _beyond(self, n: int, l: int) -> bool:
        """Whether a knob is larger than n queries and l keys can use."""
        return self.window > l or self.globals > l or self.block > n

    def _fitted(self, n: int, l: int) -> BigBird:
        """The same on n queries and l keys: no knob asks for memory beyond them."""
        window, kept = min(self.window, l), min(self.globals, l)
        return replace(self, window=window, globals=kept, block=min(self.block, n))

    def _interval(self, at: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The first and last key of each query's band."""
        return (at - self.window).clamp_min(0), (at + self.window).minimum(keys - 1)

    def _others(self, n: int, keys: Tensor) -> Tensor:
        """Global and random keys of each block, (B or 1, blocks, globals + random), each once."""
        shares = placed(type(self).shares, self, -(-n // self.block), device=keys.device)
        # A share just below one may round up to s.
        drawn = (shares * keys.unsqueeze(-1)).long().minimum(keys.unsqueeze(-1) - 1).sort().values
        repeated = torch.zeros_like(drawn, dtype=torch.bool)
        repeated[..., 1:] = drawn[..., 1:] == drawn[..., :-1]
        drawn = drawn.masked_fill(repeated | (drawn < self.globals), -1)
        first = torch.arange(self.globals, device=keys.device)
        first = torch.where(first < keys, first, -1).unsqueeze(1)
        return torch.cat((first.expand(-1, drawn.shape[1], -1), drawn), -1)
