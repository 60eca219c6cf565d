"""Pages: each query attends to the few pages of keys whose scores may be the largest (Quest)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from softlab.core import Cost, Dims, Knob, Traits, attention, budget, value
from softlab.kernels import Exponential
from softlab.operators.softmax import Softmax
from softlab.primitives import pages as paging
from softlab.primitives.banded import ordinals, rows
from softlab.primitives.certificates import (
    at_most,
    average_rounding,
    centre,
    certificate,
    chain,
    distance,
    lengths,
    score_rounding,
    unit,
)
from softlab.validation import Size

HELD_NUMBERS = 1 << 20
"""Numbers of gathered keys and values held at once; more on a GPU (``core.budget``)."""


@value
class Pages:
    """out_i = sum_{j in P_i} exp(s_ij) v_j / sum_{j in P_i} exp(s_ij), s = q k^T / sqrt(d).

    Pages are ``block`` consecutive keys, at least 1, by default 16; the last may be shorter. Of a
    page p only the box is looked at, the least and the largest of each coordinate of its keys, and

        u_ip = sum_t max(q_it low_pt, q_it high_pt) / sqrt(d)

    is at least every score of the page. P_i are the keys of the ``budget`` pages with the largest
    u_ip, at least 1, by default 4; all pages where there are fewer. ``key_mask`` deletes keys: the
    others close up, in each matrix.

    Exact on what it keeps, and so with budget * block >= l. The pages are chosen by bounds, which
    are sharp where the keys of a page are alike, as of neighbouring tokens; elsewhere a page with
    one large coordinate is kept for nothing. No n x l matrix is formed, but n l / block bounds of
    scores: the work is quadratic with a small factor. Unlike the published code it keeps no first
    layers dense, and it scores a whole batch of queries, where Quest decodes one at a time.
    Reference: Tang et al., Quest, arXiv 2406.10774, Sec. 3.3 and Alg. 1 (the bound, the choice).
    """

    family: ClassVar = "sparse"
    target: ClassVar = Softmax()
    knob: ClassVar = Knob("budget", block=16)

    block: Size = 16
    budget: Size = 4

    @property
    def traits(self) -> Traits:
        """The target restricted to few keys, in linear memory; positions of keys matter."""
        return Traits(
            query_equivariant=True,
            row_stochastic=True,
            nonnegative=True,
            restricted=True,
            exact_at="budget",
            monotone="absolute",
            linear_memory=True,
            certified=True,
        )

    def cost(self, dims: Dims) -> Cost:
        """4 d for the bound of each page, and 2 (d + e) for each key of those kept."""
        count = -(-dims.l // self.block)
        rows = dims.batch * dims.n
        kept = min(self.budget * self.block, dims.l)
        bounds = 4 * rows * count * dims.d if self.budget < count else 0
        return Cost(bounds + 2 * rows * kept * (dims.d + dims.e), rows * kept)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        if self.budget * self.block >= k.shape[-2]:
            return Exponential().average(q, k, v, key_mask)
        lead, n = q.shape[:-2], q.shape[-2]
        x, k, v, keys = self._compact(q, k, v, key_mask)
        (of_k, held, low, high), (of_v, *_) = (paging.boxes(y, keys, self.block) for y in (k, v))
        ends = low.mT, high.mT
        out = [self._average(part, of_k, of_v, held, ends)[0] for part in self._parts(x, v)]
        return torch.cat(out, 1).reshape(*lead, n, v.shape[-1])

    at_most = at_most

    @certificate
    def bound(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, out: Tensor
    ) -> Tensor:
        """At least |out_i - exact_i|, (..., n).

        The kept pages are looked at again, for the sum of their weights; those left out are bounded
        by their boxes, means and spreads, see ``primitives.pages.left_out``. So it costs a call and
        three more products of queries with pages.

        Args:
            q: queries (..., n, d).
            k: keys (..., l, d).
            v: values (..., l, e).
            key_mask: boolean, broadcastable to (..., l).
            out: the output (..., n, e), if it is known.
        """
        lead, n, l = q.shape[:-2], q.shape[-2], k.shape[-2]
        if self.budget * self.block >= l:
            exact = Exponential().average(q, k, v, key_mask)
            radius, largest = centre(v, key_mask)[1], lengths(v).amax(-1, keepdim=True)
            slack = score_rounding(q, k, 1 / math.sqrt(q.shape[-1]))
            return distance(out, exact) + average_rounding(slack, radius, largest, l)
        q, k, v, keys = self._compact(q, k, v, key_mask)
        out = out.reshape(-1, *out.shape[-2:])
        middle = v.sum(1, keepdim=True) / keys.unsqueeze(-1)
        lost = 2 * unit(v) * (lengths(v).amax(-1, keepdim=True) + lengths(middle))
        live = torch.arange(l, device=k.device) < keys
        v, out = v - middle, out - middle
        radius = lengths(v).masked_fill(~live, 0).amax(-1, keepdim=True)
        of_keys, of_values = (paging.pages(y, keys, self.block) for y in (k, v))
        slack = score_rounding(q, k, 1.0)
        slack = slack + chain(self.block) * unit(q) * lengths(q) * lengths(k).amax(-1, keepdim=True)
        (of_k, held, low, high), (of_v, *_) = (paging.boxes(y, keys, self.block) for y in (k, v))
        found, start, ends = [], 0, (low.mT, high.mT)
        for part in self._parts(q, v):
            seen, log_seen, chosen = self._average(part, of_k, of_v, held, ends)
            at = slice(start, start + part.shape[1])
            left = torch.ones(*chosen.shape[:2], held.shape[-2], dtype=torch.bool, device=k.device)
            left = left.scatter(-1, chosen, value=False)
            found.append(
                distance(out[:, at], seen)
                + paging.worst(part, of_keys, of_values, seen, log_seen, slack[:, at], left, left)
            )
            start = at.stop
        own = average_rounding(slack, radius, radius, l)
        return (torch.cat(found, 1) + own + lost).reshape(*lead, n)

    def _compact(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values (B, ...) with those that take part first; their number.

        Boxes do not widen by masked keys, which come last.
        """
        l = k.shape[-2]
        q, k, v = (x.reshape(-1, *x.shape[-2:]) for x in (q / math.sqrt(q.shape[-1]), k, v))
        mask = None if key_mask is None else key_mask.reshape(-1, l)
        keys, survivor = ordinals(mask, l, q.device)
        if mask is not None:
            k, v = rows(k, survivor), rows(v, survivor)
        return q, k, v, keys

    def _parts(self, q: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """The queries, a few at a time."""
        count = -(-v.shape[1] // self.block)
        held = min(self.budget, count) * self.block * (q.shape[-1] + v.shape[-1]) + count
        step = max(1, max(budget(HELD_NUMBERS, q.device), q.numel()) // (len(q) * held))
        parts: tuple[Tensor, ...] = q.split(step, 1)
        return parts

    def _average(
        self, q: Tensor, k: Tensor, v: Tensor, held: Tensor, ends: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The average over the kept keys, the logarithm of their weights' sum, and the pages.

        q (B, s, d); k (B, P, block, d) and v in pages; ``held`` (B or 1, P, block), which keys
        there are; ``ends``, (B, d, P) each, the boxes.
        """
        low, high = ends
        most = q.clamp_min(0) @ high + q.clamp_max(0) @ low
        most = most.masked_fill(~held.any(-1).unsqueeze(-2), -math.inf)
        chosen = most.topk(self.budget, -1, sorted=False).indices
        batch = torch.arange(len(k), device=k.device)[:, None, None]
        some_k, some_v = (x[batch, chosen].flatten(2, 3) for x in (k, v))
        live = held.expand(len(k), -1, -1)[batch, chosen].flatten(2, 3)
        scores = (q.unsqueeze(-2) @ some_k.mT).masked_fill(~live.unsqueeze(-2), -math.inf)
        out = (scores.softmax(-1) @ some_v).squeeze(-2)
        return out, scores.logsumexp(-1).squeeze(-1), chosen
