"""Pages of keys: bounds of what a query's softmax holds in keys that it does not look at.

A page is ``size`` consecutive keys. Of each page a query knows the box of the keys, their mean and
spread, and so bounds of the sum of its exponentials, at the cost of a few keys a page.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from softlab.core import norm
from softlab.primitives.banded import banded_sums
from softlab.primitives.certificates import (
    average_rounding,
    chain,
    distance,
    lengths,
    root,
    score_rounding,
    unit,
)

HELD_ENTRIES = 1 << 20
"""Numbers of queries by pages held at once."""

LEAST_PAGE = 4
"""Keys in a page at least, of which a bound knows a box, a mean and a spread."""

NEWTON = 3
"""Newton steps towards the worst case of the pages' sums."""


class Pages(NamedTuple):
    """Pages of keys k (B, l, d), of which the first ``keys`` (B or 1, 1) take part.

    ``counts`` (B or 1, P): keys in each page; ``low``, ``high`` (B, P, d): their box; ``mean``
    (B, P, d); ``radius`` (B, P): the largest distance from the mean; ``spread`` (B, P): at least
    the largest eigenvalue of their covariance. Of pages without keys all are 0.
    """

    counts: Tensor
    low: Tensor
    high: Tensor
    mean: Tensor
    radius: Tensor
    spread: Tensor

    def most(self, q: Tensor) -> Tensor:
        """At least every score <q_i, k_j> of a page, (B, n, P), for q (B, n, d).

        sum_t max(q_t low_t, q_t high_t): each coordinate at its worst.
        """
        return q.clamp_min(0) @ self.high.mT + q.clamp_max(0) @ self.low.mT


def page_size(l: int, seen: int) -> int:
    """Keys in a page where a query sees ``seen`` of l keys, so that the bound costs a few calls.

    A query's work is that of all pages and of the one or two that its band touches at an end, which
    are seen whole. Up to seen^2 keys there are no more pages than keys that it sees; beyond, both
    are about l^(1/2), where an even share would make pages of l / seen keys.
    """
    return max(LEAST_PAGE, min(-(-l // seen), math.isqrt(l)))


def boxes(k: Tensor, keys: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The keys in pages (B, P, size, d), which take part (B or 1, P, size), and their boxes."""
    count = -(-k.shape[1] // size)
    paged = pad(k, (0, 0, 0, count * size - k.shape[1])).unflatten(1, (count, size))
    held = torch.arange(count * size, device=k.device).view(count, size) < keys.unsqueeze(-1)
    some = held.any(-1, keepdim=True)
    inside = held.unsqueeze(-1)
    low, high = (
        torch.where(some, end, 0)
        for end in (
            paged.masked_fill(~inside, math.inf).amin(2),
            paged.masked_fill(~inside, -math.inf).amax(2),
        )
    )
    return paged, held, low, high


def pages(k: Tensor, keys: Tensor, size: int) -> Pages:
    """What is known of the pages of k (B, l, d)."""
    paged, held, low, high = boxes(k, keys, size)
    count = held.sum(-1).to(k.dtype)
    inside = held.unsqueeze(-1)
    mean = torch.where(inside, paged, 0).sum(2) / count.clamp_min(1).unsqueeze(-1)
    away = torch.where(inside, paged - mean.unsqueeze(2), 0)
    radius = lengths(away).amax(-1)
    # The eigenvalues of the covariance are those of the smaller Gram matrix. A row sum of
    # magnitudes bounds the largest, and takes no decomposition.
    gram = away @ away.mT if size <= k.shape[-1] else away.mT @ away
    largest = gram.abs().sum(-1).amax(-1)
    frobenius = norm(gram, (-2, -1))
    spread = torch.minimum(largest, frobenius) / count.clamp_min(1)
    return Pages(count, low, high, mean, radius, spread * (1 + 4 * chain(size) * unit(k)))


def left_out(
    q: Tensor,
    pages: Pages,
    values: Pages,
    seen: Tensor,
    log_seen: Tensor,
    slack: Tensor,
    left: Callable[[slice], tuple[Tensor, Tensor]],
) -> Tensor:
    """By how much an average over some keys can differ from that over all, (B, n).

    Let a query have seen keys with the weights' sum D and average o. The pages p that it left hold
    weights W_p and averages m'_p, and the average over all keys is

        exact = (D o + sum_p W_p m'_p) / (D + sum_p W_p),                                    so
        |o - exact| <= F(W) = sum_p W_p a_p / (D + sum_p W_p),   a_p >= |m'_p - o|.

    m'_p is a mean of values within ``radius_p`` of their mean m_p: a_p = |m_p - o| + radius_p.
    W_p is the sum of c exponentials of scores whose mean mu = <q, mean_p> is known, as is that they
    are at most mu + b and of variance s^2 at most. Then, by Jensen and by Bennett,

        c exp(mu) <= W_p <= c exp(mu) (s^2 exp(b) + b^2 exp(-s^2 / b)) / (s^2 + b^2),

    with b the least of the box's and of |q| radius_p, and s^2 the least of |q|^2 spread_p and
    b b' (Bhatia and Davis), -b' being the same bound from below. F is largest over this box of W at
    W_p = U_p, the upper end, where a_p > F, and at L_p elsewhere: its maximum is the root of

        g(f) = sum_p (U_p max(a_p - f, 0) - L_p max(f - a_p, 0)) - D f,

    which is convex and falls by D + sum_p L_p at least. Newton's steps reach the root from below,
    and f + g(f) / (D + sum_p L_p) is not below it; nor is the largest a_p.

    Arguments: q (B, n, d) scaled; ``pages`` of keys and of values; ``seen`` o (B, n, e);
    ``log_seen`` log D (B, n); ``slack`` (B, n), by how much scores are off: U grows by exp(2 slack)
    and L, D shrink so. ``left``: of a slice of queries which pages are left (B or 1, s, P), and
    which of those are left whole, without which L_p is 0.
    """
    batch, n = q.shape[:2]
    step = max(1, HELD_ENTRIES // (batch * pages.counts.shape[-1]))
    found = [
        worst(q[:, s], pages, values, seen[:, s], log_seen[:, s], slack[:, s], *left(s))
        for s in (slice(i, min(i + step, n)) for i in range(0, n, step))
    ]
    return torch.cat(found, 1)


class Band(NamedTuple):
    """What each query sees, as of ``banded_average``: arguments of that, and the keys there are.

    ``keys`` (B or 1, 1): how many of the keys take part, the first ones. ``ends`` (B or 1, n): the
    last key that the target lets a query see, None where that is all. ``grows``: whether intervals
    may be rounded to whole pages: not where keys beyond an end of them are none of the target's.
    """

    low: Tensor
    high: Tensor
    others: Tensor
    block: int
    visible: Tensor | None
    keys: Tensor
    ends: Tensor | None = None
    grows: bool = True


def banded_bound(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, band: Band, size: int, first: int = 0
) -> Tensor:
    """At least |out_i - exact_i| for an average over bands, (B, n).

    The band is widened to whole pages of ``size`` keys, on which the average o is exact; then

        |out - exact| <= |out - o| + |o - exact|,

    the first measured and the second at most what the pages without any key of the band can move
    it, see ``left_out``. The first ``first`` keys are seen by all queries; where they are among
    ``band.others``, their pages are completed too. A key among the others that lies alone counts in
    its page once more: the bound is larger for it, and holds. q (B, n, d) scaled, k (B, l, d),
    v (B, l, e), out (B, n, e).
    """
    l = k.shape[1]
    middle = v.mean(1, keepdim=True)
    lost = 2 * unit(v) * (lengths(v).amax(-1, keepdim=True) + lengths(middle))
    v, out = v - middle, out - middle
    radius = lengths(v).masked_fill(~_taking(l, band.keys), 0).amax(-1, keepdim=True)
    of_keys, of_values = pages(k, band.keys, size), pages(v, band.keys, size)
    ends = band.keys - 1 if band.ends is None else band.ends
    wide = _widened(band, ends, size, first)
    sums = banded_sums(q, k, v, *wide)
    seen = sums.average()
    log_seen = (sums.weights.log() + sums.log_scale).squeeze(-1)
    slack = score_rounding(q, k, 1.0)
    slack = slack + chain(size) * unit(q) * lengths(q) * lengths(k).amax(-1, keepdim=True)
    starts = torch.arange(of_keys.counts.shape[-1], device=k.device) * size
    stops = starts + size - 1
    touched = starts.new_zeros(*band.others.shape[:2], len(starts))
    among, hit = (band.others // size).clamp_min(0), (band.others >= 0).long()
    touched = touched.scatter_add(-1, among, hit) > 0

    def left(at: slice) -> tuple[Tensor, Tensor]:
        low, high = wide[0][:, at, None], wide[1][:, at, None]
        end = ends[:, at, None] if ends.shape[-1] > 1 else ends.unsqueeze(-1)
        if not band.grows:
            out_of = ~((starts >= low) & (stops <= high))
            return out_of, torch.zeros_like(out_of)
        out_of = ~((starts >= low) & (stops.minimum(end) <= high)) & (starts <= end)
        out_of = out_of & (starts >= first)
        block = torch.arange(at.start, at.stop, device=k.device) // band.block
        return out_of, out_of & ~touched[:, block]

    found = left_out(q, of_keys, of_values, seen, log_seen, slack, left)
    own = average_rounding(slack, radius, radius, l)
    return distance(out, seen) + found + own + lost


def _widened(
    band: Band, ends: Tensor, size: int, first: int
) -> tuple[Tensor, Tensor, Tensor, int, Tensor | None]:
    """The arguments of ``banded_sums`` with whole pages in the place of parts of them."""
    low, high, others, visible = band.low, band.high, band.others, band.visible
    if not band.grows:
        return low, high, others, band.block, visible
    low, high = low // size * size, (high // size * size + (size - 1)).minimum(ends)
    more = torch.arange(first, -(-first // size) * size, device=low.device)
    if first and len(more):
        # A key that is among the others by itself must not count twice.
        others = others.masked_fill((others >= first) & (others <= int(more[-1])), -1)
        more = torch.where(more < band.keys, more, -1).unsqueeze(1)
        lead = max(len(others), len(more))
        if band.ends is not None:
            shown = (more <= ends.unsqueeze(-1)).expand(lead, -1, -1)
            known = shown.new_ones(()) if visible is None else visible
            known = known.expand(lead, shown.shape[1], others.shape[-1])
            visible = torch.cat((known, shown), -1)
        some = (x.expand(lead, others.shape[1], -1) for x in (others, more))
        others = torch.cat(list(some), -1)
    return low, high, others, band.block, visible


def _taking(l: int, keys: Tensor) -> Tensor:
    return torch.arange(l, device=keys.device) < keys


def worst(
    q: Tensor,
    pages: Pages,
    values: Pages,
    seen: Tensor,
    log_seen: Tensor,
    slack: Tensor,
    left: Tensor,
    whole: Tensor,
) -> Tensor:
    """``left_out`` of a few queries, whose pages ``left`` and ``whole`` are at hand."""
    size = lengths(q).unsqueeze(-1)
    middle = q @ pages.mean.mT
    ball = size * pages.radius.unsqueeze(-2)
    above = torch.minimum(pages.most(q) - middle, ball).clamp_min(0)
    below = torch.minimum(middle + pages.most(-q), ball).clamp_min(0)
    variance = torch.minimum(size.square() * pages.spread.unsqueeze(-2), above * below)
    ahead = above > 0
    some = torch.where(ahead, above, 1)
    share = torch.where(ahead, variance / (variance + some.square()), 1)
    fall = torch.where(ahead, -variance / some - above, 0)
    # log of Bennett's factor, less b: nothing overflows.
    log_factor = above + (share + (1 - share) * fall.exp()).log()
    log_count = pages.counts.clamp_min(1).log().unsqueeze(-2)
    off = 2 * slack.unsqueeze(-1)
    upper = log_count + middle + log_factor + off
    lower = log_count + middle - off
    taking = left & (pages.counts > 0).unsqueeze(-2)
    upper = upper.masked_fill(~taking, -math.inf)
    lower = lower.masked_fill(~(taking & whole), -math.inf)
    log_seen = log_seen.unsqueeze(-1) - off / 2
    # Relative to what there is at least. A page that may outweigh that by 1/u^2 may as well be all.
    top = torch.maximum(log_seen, lower.amax(-1, keepdim=True))
    most = (upper - top).clamp_max(-2 * math.log(unit(q))).exp()
    least, held = (lower - top).exp(), (log_seen - top).exp()
    taking = taking.expand_as(most)
    away = _apart(seen, values.mean) + values.radius.unsqueeze(-2)
    farthest = torch.where(taking, away, 0).amax(-1)
    found = _root(most, torch.minimum(least, most), held.squeeze(-1), away)
    return torch.minimum(found, farthest)


def _root(most: Tensor, least: Tensor, held: Tensor, away: Tensor) -> Tensor:
    """At least the largest of sum W a / (held + sum W) over least <= W <= most, (B, n)."""
    slope = held + least.sum(-1)
    f = torch.zeros_like(held)
    for _ in range(NEWTON):
        worst = torch.where(away > f.unsqueeze(-1), most, least)
        whole = held + worst.sum(-1)
        f = (worst * away).sum(-1) / torch.where(whole > 0, whole, 1)
    over = away - f.unsqueeze(-1)
    excess = (most * over.clamp_min(0) - least * (-over).clamp_min(0)).sum(-1) - held * f
    # Rounding of sums of terms up to their magnitudes.
    u, terms = unit(away), chain(away.shape[-1]) + 8
    size = (most * over.clamp_min(0) + least * (-over).clamp_min(0)).sum(-1) + held * f
    return f + (excess.clamp_min(0) + terms * u * size) / torch.where(slope > 0, slope, 1)


def _apart(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_p|, (B, n, P), by products and rounded up by what these can lose."""
    of_x, of_y = lengths(x).unsqueeze(-1), lengths(y).unsqueeze(-2)
    squares = of_x.square() + of_y.square() - 2 * x @ y.mT
    lost = 2 * (chain(x.shape[-1]) + 4) * unit(x) * (of_x + of_y).square()
    return root(squares.clamp_min(0) + lost)
