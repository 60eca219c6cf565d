"""Scatterbrain: the exact kernel on a band, its estimate by random features elsewhere."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from softlab.core import Cost, Dims, Knob, Traits, attention, budget, own_precision, value, widened
from softlab.features import Orthogonal, Weights
from softlab.operators.local import LEAST_BLOCK, Local
from softlab.operators.performer import ESTIMATORS, Performer
from softlab.operators.softmax import Softmax
from softlab.primitives.banded import HELD_ENTRIES, banded_sums, centres, ordinals, rows, widest
from softlab.primitives.causal import of_kept
from softlab.primitives.prefix_sums import sums_before
from softlab.primitives.weighted_sums import Sums
from softlab.validation import Natural, OneOf, Positive, Size, Width


@value
class Scatterbrain:
    """out_i = sum_j w_ij v_j / sum_j w_ij, w_ij = exp(s_ij) on B_i, <phi(q_i), phi(k_j)> off it.

    s = scale q k^T. B_i are the keys within ``window`` of the query on either side, at least 1, and
    the first ``sinks`` keys, at least 0, as in ``Local``; phi are the ``features`` of Performer, at
    least 1 and even for hyperbolic ones, with its ``weights`` and ``estimator``. ``scale``:
    positive; None means 1/sqrt(d). ``key_mask`` deletes keys, and the others close up as in
    ``Local``. ``causal``: B_i and the sums end at key i, as in ``Local``. float16 and bfloat16 are
    computed in float32.

    The estimate w of the kernel is unbiased, with no variance on the band and the Performer's off
    it (``kernel_variance``); its rows normalised, it is not: a ratio of means. For each draw of the
    weights w errs no more than the features alone. It errs less than the band alone, which has 0
    elsewhere, in the mean over draws where |x + y|^2 < log(1 + m) for the pairs off the band, x =
    sqrt(scale) q and y = sqrt(scale) k. Where tokens are much longer, as in trained heads, most
    estimates are far too small and the output is that of ``Local``; a rare one is far too
    large, and its key swamps the row.

    The features of the keys off the band are summed as such, those before it and those behind it,
    each by scales of their own (``prefixes``). The paper's form, a sum over all keys less the
    band's share, loses digits where an estimate on the band exceeds its score, by exp(|w|^2 / 2) /
    m for a token along a weight w; the released code clamps what is left of a row sum at 1e-24.
    Memory is linear in n and l.

    Reference: arXiv 2110.15343 (unbiased, and of lower variance than Performer), and its code,
    ``sblocal_attention.py``, which takes hyperbolic features. The paper finds the support by
    hashing; here it is the band of that code.
    """

    family: ClassVar = "hybrid"
    knob: ClassVar = Knob("window", "features")

    window: Size
    features: Width = 64
    sinks: Natural = 0
    weights: Weights = Orthogonal()
    estimator: Annotated[str, OneOf(*ESTIMATORS)] = "positive"
    scale: Positive | None = None
    causal: bool = False

    def __post_init__(self) -> None:
        _ = self._performer

    @property
    def _performer(self) -> Performer:
        return Performer(self.features, self.weights, self.estimator, self.scale)

    @property
    def _local(self) -> Local:
        return Local(self.window, sinks=self.sinks, causal=self.causal)

    @property
    def traits(self) -> Traits:
        """Averages by an unbiased estimate, in linear memory; positions matter."""
        features = self._performer.traits
        traits = Traits(
            row_stochastic=True,
            nonnegative=True,
            exact_at="window",
            unbiased=features.unbiased,
            variance=features.variance,
            linear_memory=True,
            padded=True,
        )
        return traits.made_causal() if self.causal else traits

    @property
    def target(self) -> Softmax:
        """Softmax attention of the same scale."""
        return Softmax(self.scale, self.causal)

    def cost(self, dims: Dims) -> Cost:
        """That of ``Local`` and of ``Performer``: each key's features meet its value once."""
        return self._local.cost(dims) + self._performer.cost(dims)

    def support(self, n: int, l: int) -> Tensor:
        """Which keys are in B_i, (n, l)."""
        at, line = (
            centres(n, torch.tensor([l], device="cpu")).unsqueeze(-1),
            torch.arange(l, device="cpu"),
        )
        near = ((at - line).abs() <= self.window) | (line < self.sinks)
        return near & (line <= at) if self.causal else near

    @own_precision
    def kernel_matrix(self, q: Tensor, k: Tensor) -> Tensor:
        """Return w, (..., n, l): the unbiased estimate of exp(scale <q, k>).

        Of all keys; a causal form sums the columns up to the row's own.
        """
        support = self.support(q.shape[-2], k.shape[-2]).to(q.device)
        exact = self.target.kernel(q.shape[-1]).matrix(widened(q), widened(k))
        estimate = self._performer.kernel_matrix(widened(q), widened(k))
        return torch.where(support, exact, estimate).to(q.dtype)

    @own_precision
    def kernel_variance(self, q: Tensor, k: Tensor) -> Tensor:
        """The variance of ``kernel_matrix``, (..., n, l): 0 on the band, elsewhere Performer's."""
        support = self.support(q.shape[-2], k.shape[-2]).to(q.device)
        return self._performer.kernel_variance(q, k).masked_fill(support, 0)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        if self.causal:
            return of_kept(self._by_parts, q, k, v, key_mask)
        return self._by_parts(q, k, v, key_mask)

    def _by_parts(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """A quarter of the matrices at once: features of all are larger than q and k."""
        lead, n, l = q.shape[:-2], q.shape[-2], k.shape[-2]
        q, k, v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
        numbers = budget(HELD_ENTRIES, q.device) // ((n + l) * self.features)
        some = max(1, len(q) // 4, numbers)
        masks = [None] * len(q) if key_mask is None else key_mask.reshape(-1, l).split(some)
        each = zip(q.split(some), k.split(some), v.split(some), masks, strict=False)
        out = torch.cat([self._average(*matrices) for matrices in each])
        return out.reshape(*lead, n, v.shape[-1])

    def _average(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """The output (B, n, e)."""
        n, l = q.shape[-2], k.shape[-2]
        keys, survivor = ordinals(mask, l, q.device)
        if mask is not None:
            k, v = rows(k, survivor), rows(v, survivor)
        at = centres(n, keys)
        low, high = (at - self.window).clamp_min(0), (at + self.window).minimum(keys - 1)
        a, b = self._performer.log_features(q), self._performer.log_features(k)
        line = torch.arange(l, device=q.device)
        off = (line >= self.sinks) & (line < keys)
        b = b.masked_fill(~off.unsqueeze(-1), -math.inf)
        sums = self._near(q, k, v, low, at if self.causal else high, keys)
        sums = sums.merged(sums_before(a, b, v, low, even=mask is None))
        if not self.causal:
            # Behind the band: before it, for queries and keys in reverse order.
            counts = (l - 1 - high).flip(1)
            behind = sums_before(a.flip(1), b.flip(1), v.flip(1), counts, even=mask is None)
            sums = sums.merged(Sums(*(x.flip(1) for x in behind)))
        return sums.average()

    def _near(
        self, q: Tensor, k: Tensor, v: Tensor, low: Tensor, high: Tensor, keys: Tensor
    ) -> Sums:
        """The sums over B_i."""
        n, l = q.shape[-2], k.shape[-2]
        scale = self.target.kernel(q.shape[-1]).scale or 1.0
        block = min(n, max(LEAST_BLOCK, (2 * self.window + 1) * n // l))
        line = torch.arange(min(self.sinks, l), device=q.device)
        others = torch.where(line < keys, line, -1).unsqueeze(1).expand(-1, -(-n // block), -1)
        seen = line <= high.unsqueeze(-1) if self.causal else None
        width = widest(self.window, block, n, l)
        return banded_sums(scale * q, k, v, low, high, others, block, seen, width)
