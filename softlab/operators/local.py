"""Local attention: a band of neighbours, dilated or not, and the first keys as sinks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from softlab.core import Cost, Dims, Knob, Traits, attention, value
from softlab.operators.softmax import Softmax
from softlab.primitives.banded import banded_average, centres, ordinals, rows, support_sizes, widest
from softlab.primitives.causal import of_kept
from softlab.primitives.certificates import at_most, certificate
from softlab.primitives.pages import Band, banded_bound, page_size
from softlab.validation import Natural, Size

LEAST_BLOCK = 32
"""Queries that share one dense product at least: smaller ones cost more than they save."""


@value
class Local:
    """out_i = sum_{j in B_i} exp(s_ij) v_j / sum_{j in B_i} exp(s_ij), s = q k^T / sqrt(d).

    B_i are the keys j with |p_i - j| <= window * dilation and p_i - j divisible by ``dilation``,
    and the first ``sinks`` keys; one that is both counts once. ``window``: neighbours on either
    side, at least 1; ``dilation``: their distance, at least 1; ``sinks``: at least 0, all keys
    where there are fewer.

    Query i stands at key p_i = i. Where queries and keys differ in number, l keys and n queries, it
    stands proportionally, at p_i = floor((2 i + 1) l / (2 n)). ``key_mask`` deletes keys: the
    others close up, and j and l count those that take part, in each matrix. So a mask that drops
    keys of a self-attention also moves its queries; cut padding from q as well where it is to keep
    them beside their keys. ``causal``: B_i ends at key i, there are as many queries as keys, and
    masked tokens are deleted with their queries, so that all close up.

    A row is the exact one on what it keeps: with kept mass c_i, the sum of the exact weights over
    B_i, |out_i - exact_i| <= (1 - c_i) max_jl |v_j - v_l|. Exact with dilation 1 and window >= l -
    1, or sinks >= l. It fails where the mass lies elsewhere: no knob but these finds it. Keys are
    sorted by their position modulo the dilation, where B_i is an interval, and blocks of queries
    take dense products with what their intervals span: no n x l matrix, and for a dilated window no
    more work than for a dense one. The package local-attention gives the same with
    ``exact_windowsize``, else keeps whole blocks; its automatic padding counts as tokens without a
    mask, and masked keys leave gaps in its windows. Reference: Beltagy et al., Longformer, arXiv
    2004.05150, Sec. 3.1 (window, dilation); Xiao et al., arXiv 2309.17453, Sec. 3.2 (sinks).
    """

    family: ClassVar = "sparse"
    knob: ClassVar = Knob("window")

    window: Size
    dilation: Size = 1
    sinks: Natural = 0
    causal: bool = False

    @property
    def traits(self) -> Traits:
        """The target restricted to few keys, in linear memory; positions matter."""
        dense = self.dilation == 1
        traits = Traits(
            row_stochastic=True,
            nonnegative=True,
            reads="relative scores",
            restricted=True,
            exact_at="window" if dense else "",
            monotone="absolute" if dense else "",
            linear_memory=True,
            padded=True,
            certified=True,
        )
        return traits.made_causal() if self.causal else traits

    @property
    def target(self) -> Softmax:
        """Softmax attention."""
        return Softmax(causal=self.causal)

    def cost(self, dims: Dims) -> Cost:
        """2 (d + e) for each kept entry: n (2 window + 1 + sinks) of them, less at the ends."""
        if max(self.window, self.sinks) > dims.l:
            return self._fitted(dims.l).cost(dims)
        keys = torch.tensor([[dims.l]], device="cpu")
        at = centres(dims.n, keys)
        low, high = self._interval(at, keys)
        sizes = support_sizes(low, high, self._sinks(keys), dims.n, self._visible(at))
        kept = int(sizes.sum()) * dims.batch
        return Cost(flops=2 * kept * (dims.d + dims.e), kernel_entries=kept)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        if self.causal:
            return of_kept(self._average, q, k, v, key_mask)
        return self._average(q, k, v, key_mask)

    at_most = at_most

    @certificate
    def bound(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, out: Tensor
    ) -> Tensor:
        """At least |out_i - exact_i|, (..., n).

        With c_i the mass of the band in the exact softmax, |out_i - exact_i| is 1 - c_i times the
        distance of the averages inside and outside of it. What lies outside is bounded page by
        page, see ``primitives.pages.left_out`` and ``page_size``: the bound costs a few calls, and
        beyond (2 window + 1)^2 keys n l^(1/2). It is as large as the mass left out can be: of
        heads with a sink that is no key of the band, the diameter of the values.

        Args:
            q: queries (..., n, d).
            k: keys (..., l, d).
            v: values (..., l, e).
            key_mask: boolean, broadcastable to (..., l).
            out: the output (..., n, e), if it is known.
        """
        if not self.causal:
            return self._bound(q, k, v, out, key_mask)

        def of_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self._bound(q, k, v[..., :-e], v[..., -e:]).unsqueeze(-1)

        e = out.shape[-1]
        return of_kept(of_first, q, k, torch.cat((v, out), -1), key_mask).squeeze(-1)

    def _bound(
        self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, key_mask: Tensor | None = None
    ) -> Tensor:
        lead, n, l = q.shape[:-2], q.shape[-2], k.shape[-2]
        if max(self.window, self.sinks) > l:
            return self._fitted(l)._bound(q, k, v, out, key_mask)
        q, k, v, out = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v, out))
        mask = None if key_mask is None else key_mask.reshape(-1, l)
        q, k, v, band, order = self._banded(q, k, v, mask)
        out = out if order is None else rows(out, order)
        straight = self.dilation == 1
        ends = centres(n, band.keys) if self.causal else None
        band = band._replace(ends=ends, grows=straight or not self.causal)
        size = page_size(l, 2 * self.window + 1)
        found = banded_bound(q, k, v, out, band, size, self.sinks if straight else 0)
        if order is not None:
            found = rows(found.unsqueeze(-1), order.argsort(-1)).squeeze(-1)
        return found.reshape(*lead, n)

    def _average(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        lead, n, l = q.shape[:-2], q.shape[-2], k.shape[-2]
        if max(self.window, self.sinks) > l:
            return self._fitted(l)._average(q, k, v, key_mask)
        q, k, v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
        mask = None if key_mask is None else key_mask.reshape(-1, l)
        q, k, v, band, order = self._banded(q, k, v, mask)
        seen = band.low, band.high, band.others, band.block, band.visible
        width = widest(self.window, band.block, n, l) if self.dilation == 1 else l
        out = banded_average(q, k, v, *seen, width)
        if order is not None:
            out = rows(out, order.argsort(-1))
        return out.reshape(*lead, n, v.shape[-1])

    def _banded(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Band, Tensor | None]:
        """Scaled queries, keys and values in sorted order, what is seen, the queries' order."""
        n, l = q.shape[-2], k.shape[-2]
        keys, survivor = ordinals(mask, l, q.device)
        at = centres(n, keys)
        order = None
        if mask is not None or self.dilation > 1:
            line = torch.arange(l, device=q.device)
            key_order = torch.where(line < keys, self._rank(line, keys), line).argsort(-1)
            k, v = (rows(x, survivor.gather(-1, key_order)) for x in (k, v))
        if self.dilation > 1:
            order = self._rank(at, keys).argsort(-1)
            q, at = rows(q, order), at.gather(-1, order)
        low, high = self._interval(at, keys)
        # About as many queries as span a window of keys: half of each product is kept.
        block = min(n, max(LEAST_BLOCK, (2 * self.window + 1) * n // l))
        others = self._sinks(keys).expand(-1, -(-n // block), -1)
        x, seen = q / math.sqrt(q.shape[-1]), self._visible(at)
        return x, k, v, Band(low, high, others, block, seen, keys), order

    def _fitted(self, l: int) -> Local:
        """The same on l keys: no knob asks for memory beyond them."""
        return replace(self, window=min(self.window, l), sinks=min(self.sinks, l))

    def _rank(self, position: Tensor, keys: Tensor) -> Tensor:
        """Where a position among the keys stands when they are sorted by residue, then position."""
        return self._start(position % self.dilation, keys) + position // self.dilation

    def _start(self, residue: Tensor, keys: Tensor) -> Tensor:
        """How many of the keys have a smaller residue."""
        return residue * (keys // self.dilation) + residue.minimum(keys % self.dilation)

    def _interval(self, at: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The first and last key of each query's band, in sorted order."""
        rank, residue = self._rank(at, keys), at % self.dilation
        low = (rank - self.window).maximum(self._start(residue, keys))
        last = rank if self.causal else rank + self.window
        return low, last.minimum(self._start(residue + 1, keys) - 1)

    def _visible(self, at: Tensor) -> Tensor | None:
        """Which sinks each query may see, (B or 1, n, sinks); None for all."""
        if not self.causal:
            return None
        return torch.arange(self.sinks, device=at.device) <= at.unsqueeze(-1)

    def _sinks(self, keys: Tensor) -> Tensor:
        """The first keys in sorted order, (B or 1, 1, sinks); -1 where there are fewer keys."""
        first = torch.arange(self.sinks, device=keys.device)
        return torch.where(first < keys, self._rank(first, keys), -1).unsqueeze(1)
