"""The control that any choice of keys must beat: exact attention to a uniform sample of them."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from softlab import validation
from softlab.core import Cost, Dims, Knob, Traits, attention, value
from softlab.kernels import Exponential, kernel_cost
from softlab.landmarks import UniformRandom
from softlab.operators.softmax import Softmax
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
        )

    @property
    def target(self) -> Softmax:
        """Softmax attention."""
        return Softmax()

    def cost(self, dims: Dims) -> Cost:
        """2 n m (d + e) a matrix."""
        return kernel_cost(Dims(dims.batch, dims.n, self.rank, dims.d, dims.e), dims.e)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        validation.rank_fits(self.rank, validation.survivors(key_mask, k), "keys")
        at = UniformRandom(self.seed).indices(k, self.rank, key_mask).unsqueeze(-1)
        drawn_k, drawn_v = (x.gather(-2, at.expand(*at.shape[:-1], x.shape[-1])) for x in (k, v))
        return Exponential().average(q, drawn_k, drawn_v)
