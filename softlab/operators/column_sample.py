"""The control that any choice of keys must beat: exact attention to a uniform sample of them."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, Dims, Knob, Traits, attention, value
from softlab.kernels import Exponential, kernel_cost
from softlab.landmarks import UniformRandom
from softlab.operators.softmax import Softmax
from softlab.primitives.draws_intervals import Interval, answered, from_draws, of_weights, residuals
from softlab.primitives.normalization import indicator
from softlab.validation import Seed, Size


@value
class ColumnSample:
    """out_i = sum_{j in S} exp(s_ij) v_j / sum_{j in S} exp(s_ij), s = q k^T / sqrt(d).

    ``rank``: number m of keys in S, drawn uniformly and without replacement, 1 to the number of
    keys that take part; with all of them it is the target. ``seed``: integer >= 0. The draw is that
    of ``UniformRandom``, a function of (seed, keys that take part, m) alone: one S for every query.

    Self-normalised importance sampling of the softmax average with a uniform proposal: consistent,
    biased by O(1/m), and unbiased with the variance of sampling without replacement,
    (1/m - 1/l) var(v), where all scores are equal. It fails where few keys carry the mass: one that
    is not drawn is not seen. Reference: Owen, Monte Carlo Theory, Methods and Examples, Ch. 9 (the
    ratio estimator); Cochran, Sampling Techniques, 3rd ed., Theorem 2.2 (its variance).
    """

    family: ClassVar = "sampling"
    target: ClassVar = Softmax()
    knob: ClassVar = Knob("rank")

    rank: Size
    seed: Seed = 0

    @property
    def traits(self) -> Traits:
        """Low rank, row-stochastic, linear memory."""
        return Traits(
            query_equivariant=True,
            row_stochastic=True,
            nonnegative=True,
            low_rank=True,
            restricted=True,
            exact_at="rank",
            monotone="absolute",
            linear_memory=True,
            draws="rank",
        )

    def cost(self, dims: Dims) -> Cost:
        """2 n m (d + e) a matrix."""
        return kernel_cost(Dims(dims.batch, dims.n, self.rank, dims.d, dims.e), dims.e)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        validation.rank_fits(self.rank, validation.survivors(key_mask, k), "keys")
        return Exponential().average(q, *self._drawn(k, v, key_mask))

    @answered
    def interval(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, confidence: float
    ) -> Interval:
        """By how much each row errs, with stated odds over the draw of keys.

        The drawn keys' weights and values are the draws of ``primitives.draws_intervals``, of a
        finite population. A key that was not drawn and holds most of a row is not seen: the odds
        are over draws, and rows where scores spread far have no end. Values are known, so none has
        an end where all of them have twice the variance of the drawn ones, or more.

        Args:
            q: queries (..., n, d).
            k: keys (..., l, d).
            v: values (..., l, e).
            key_mask: boolean, broadcastable to (..., l).
            confidence: 0.8 to below 1.
        """
        left = validation.survivors(key_mask, k)
        validation.rank_fits(self.rank, left, "keys")
        some_k, some_v = self._drawn(k, v, key_mask)
        scores = q @ some_k.mT / math.sqrt(q.shape[-1])
        p = scores.softmax(-1)
        share = (
            self.rank / k.shape[-2] if key_mask is None else self.rank / int(key_mask.sum(-1).max())
        )
        squares = residuals(p, some_v, p @ some_v)
        doubt = math.sqrt(max(0.0, 1 - share)) * of_weights(p)
        logs = scores.var(-1) if self.rank > 1 else torch.zeros_like(doubt)
        found = from_draws(squares, doubt, logs, confidence, share)
        weight = indicator(v, key_mask)
        count = weight.sum(-2, keepdim=True)
        middle = (weight * v).sum(-2, keepdim=True) / count
        whole = (weight * (v - middle).square()).sum((-2, -1)) / count.squeeze((-2, -1))
        unmet = whole > 2 * (some_v - middle).square().sum(-1).mean(-1)
        if not bool(unmet.any()):
            return found
        says = f"{found.says} In {int(unmet.sum())} matrices values spread further than any drawn."
        high = torch.where(unmet.unsqueeze(-1), math.inf, found.high)
        return dataclasses.replace(found, high=high, says=says.strip())

    def _drawn(self, k: Tensor, v: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The drawn keys (..., m, d) and their values."""
        at = UniformRandom(self.seed).indices(k, self.rank, key_mask).unsqueeze(-1)
        some_k, some_v = (x.gather(-2, at.expand(*at.shape[:-1], x.shape[-1])) for x in (k, v))
        return some_k, some_v
