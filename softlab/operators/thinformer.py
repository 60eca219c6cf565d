"""Thinformer: attention to a coreset of keys and values, thinned by kernel halving."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from softlab import validation
from softlab.core import (
    Cost,
    Dims,
    Knob,
    Stream,
    Traits,
    attention,
    budget,
    own_precision,
    placed,
    value,
)
from softlab.kernels import Exponential, kernel_cost
from softlab.operators.softmax import Softmax
from softlab.primitives.banded import HELD_ENTRIES, rows
from softlab.primitives.sort_lsh import over_survivors
from softlab.validation import Positive, Seed, Size


class Draws(NamedTuple):
    """What is random in the thinning of l keys: the same in every matrix.

    ``kept``: the keys that the halvings begin with, in their order. ``uniforms``: for each halving
    one number in (-1, 1) for each pair, float64.
    """

    kept: Tensor
    uniforms: list[Tensor]


@value
class Thinformer:
    """out = softmax(q k_S^T / sqrt(d)) v_S, S a coreset of m pairs of a key and its value.

    S is what r halvings leave of the l keys: r is the least number with m = floor(l / 2^r) <=
    ``size``, at least 1. First l - m 2^r keys, fewer than l / m, are dropped uniformly. Each
    halving then takes keys in pairs of neighbours and keeps one of each, so that in every bucket of
    consecutive pairs the kept and the dropped ones weigh alike in the kernel

        K((k, v), (k', v')) = exp(<k, k'> / sqrt(d)) (<v, v'> + w^2), w = max |v|.

    With f_i the difference of the functions K of a pair, and g_i the sum of the f_j before it,
    those negated whose second key was kept, the second key is kept where u <= <g_i, f_i> / a_i, u
    uniform in (-1, 1): a_i = ``caution`` c |f_i| max_{j <= i} |f_j|, c = log(16 r m^2 / s) + 1/2 in
    buckets of s keys. Buckets double from one halving to the next, up to 2 m, and have at least
    four keys: a halving forms about 4 m^2 entries of K. ``caution``: positive; 1 is the published
    rule, near 0 the pair decides for the smaller sum. ``seed``: integer >= 0, of what is drawn, the
    same in every matrix. S is found in float64 and is a constant of the gradient. Masked keys are
    never in S.

    Exact with size >= l, and where l = m 2^r and each 2^r neighbours are equal. Each key is in S
    with probability m / l, so that numerator and denominator are unbiased, and their ratio is not.
    The published rule is cautious enough for its proof, with c near 10: what the pairs of a bucket
    share in few directions is balanced, and in the others the walk is no better than fair coins,
    nor the error than that of m keys drawn uniformly. A ``caution`` of 0.01 takes up to a quarter
    off it on this package's recorded heads, and on short keys in three dimensions the error then
    falls nearly as 1 / m, that of a uniform draw as m^(-1/2). It fails where few keys carry the
    mass: all but m / l of them are dropped. S depends on v, so out is not linear in v, and on the
    order of the keys.

    Reference: Carrell et al., arXiv 2502.12063, and its code, ``thinformer.py``, with failure
    probability 1/2. There l is first cut to a power of four by taking one key of so many, and m is
    the root of that times a power of two.
    """

    family: ClassVar = "sampling"
    target: ClassVar = Softmax()
    knob: ClassVar = Knob("size")

    size: Size = 256
    caution: Positive = 1.0
    seed: Seed = 0

    @property
    def traits(self) -> Traits:
        """Not linear in v; no query has a part in the choice of keys."""
        return Traits(
            linear_in_v=False,
            query_equivariant=True,
            blind=self.size == 1,
            exact_at="size",
            linear_memory=True,
        )

    def halvings(self, keys: int) -> int:
        """How often so many keys are halved."""
        return next(r for r in range(keys.bit_length() + 1) if keys >> r <= self.size)

    def buckets(self, keys: int) -> list[int]:
        """How many pairs are in a bucket of each halving; the last bucket may have fewer."""
        r = self.halvings(keys)
        return [max(2, -(-(keys >> r) // (1 << (r - i)))) for i in range(1, r + 1)]

    def draws(self, keys: int) -> Draws:
        """What is drawn for so many keys."""
        r = self.halvings(keys)
        m = keys >> r
        kept = Stream(self.seed, "Thinformer, keys").permutation(keys)[: m << r].sort().values
        coins = Stream(self.seed, "Thinformer, halves")
        uniforms = [2 * coins.uniform(m << (r - i)) - 1 for i in range(1, r + 1)]
        return Draws(kept, uniforms)

    @own_precision
    def coreset(self, k: Tensor, v: Tensor) -> Tensor:
        """Return the kept keys, (..., m) in their order, of k (..., l, d) and v (..., l, e)."""
        k, _, v, _ = validation.admit(k, k, v)
        lead = k.shape[:-2]
        flat = (x.detach().double().reshape(-1, *x.shape[-2:]) for x in (k, v))
        return self._coreset(*flat).reshape(*lead, -1)

    def cost(self, dims: Dims) -> Cost:
        """Kernel entries of all buckets, 2 (d + e) each, and attention to the coreset."""
        m, r = dims.l >> self.halvings(dims.l), self.halvings(dims.l)
        entries = 0
        for i, h in enumerate(self.buckets(dims.l), 1):
            full, rest = divmod(m << (r - i), h)
            entries += 4 * (full * h**2 + rest**2)
        thinning = dims.batch * entries
        attending = kernel_cost(Dims(dims.batch, dims.n, m, dims.d, dims.e), dims.e)
        return Cost(2 * thinning * (dims.d + dims.e), kernel_entries=thinning) + attending

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        return over_survivors(self._attend, q, k, v, key_mask)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output (B, n, e) for keys that all take part."""
        if k.shape[1] > self.size:
            at = self._coreset(k.detach().double(), v.detach().double())
            k, v = rows(k, at), rows(v, at)
        return Exponential().average(q, k, v)

    def _all_draws(self, keys: int) -> tuple[Tensor, ...]:
        drawn = self.draws(keys)
        return drawn.kept, *drawn.uniforms

    def _coreset(self, k: Tensor, v: Tensor) -> Tensor:
        """The kept keys (B, m) of k (B, l, d) and v (B, l, e) in float64."""
        r = self.halvings(k.shape[1])
        m = k.shape[1] >> r
        kept, *uniforms = placed(type(self)._all_draws, self, k.shape[1], device=k.device)
        k = k / k.shape[-1] ** 0.25
        top = k.square().sum(-1).amax(-1)
        # Scales of K cancel: the largest entry of v is made 1, and the largest exponential too.
        largest = v.abs().amax((-2, -1), keepdim=True)
        v = v / largest.where(largest > 0, 1)
        at = kept.expand(len(k), -1)
        for h, drawn in zip(self.buckets(k.shape[1]), uniforms, strict=True):
            c = self.caution * (math.log(8 * r * m**2 / h) + 0.5)
            pairs = at.unflatten(-1, (-1, 2))
            held = len(k) * (5 * (2 * h) ** 2 + 2 * h * (k.shape[-1] + v.shape[-1]))
            most = max(budget(HELD_ENTRIES, k.device), k.numel() // 2)
            step = h * max(1, most // held)
            parts = zip(pairs.split(step, 1), drawn.split(step), strict=True)
            at = torch.cat([_halved(k, v, top, part, of, h, c) for part, of in parts], 1)
        return at


def _halved(
    k: Tensor, v: Tensor, top: Tensor, pairs: Tensor, u: Tensor, h: int, c: float
) -> Tensor:
    """The kept key of each of the pairs (B, p, 2), in buckets of h pairs, (B, p)."""
    p = pairs.shape[1]
    buckets = -(-p // h)
    short = buckets * h - p
    filled = pad(pairs, (0, 0, 0, short)).reshape(len(k), buckets, 2 * h)
    real = (torch.arange(buckets * h, device=k.device) < p).reshape(buckets, h)
    u = pad(u, (0, short)).reshape(buckets, h)
    x, y = rows(k, filled), rows(v, filled)
    kernel = (x @ x.mT - top[:, None, None, None]).exp_() * (y @ y.mT + 1)
    kernel = kernel.unflatten(-1, (h, 2)).unflatten(-3, (h, 2))
    by_row = kernel[..., 0, :, :] - kernel[..., 1, :, :]
    products = (by_row[..., 0] - by_row[..., 1]) * (real.unsqueeze(-1) & real.unsqueeze(-2))
    lengths = products.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    a = c * lengths * lengths.cummax(-1).values
    with_sum = torch.zeros_like(lengths)  # <g_i, f_i>, for all i to come
    # A pair of equal functions is no coin with a preference: it has probability one half.
    certain = a > 0
    a = torch.where(certain, a, 1)
    signs = []
    one = torch.ones((), dtype=k.dtype, device=k.device)
    for i in range(h):
        tilt = torch.where(certain[..., i], with_sum[..., i] / a[..., i], 0)
        signs.append(torch.where(u[:, i] <= tilt, -one, one))
        with_sum.addcmul_(signs[-1].unsqueeze(-1), products[..., i, :])
    second = torch.stack(signs, -1) < 0
    kept: Tensor = filled.unflatten(-1, (h, 2)).gather(-1, second.long().unsqueeze(-1))
    return kept.flatten(1)[:, :p]
