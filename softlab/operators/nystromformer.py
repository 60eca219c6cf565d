"""Nystromformer: three softmaxes around landmarks of queries and keys."""

from __future__ import annotations

import math

from torch import Tensor

from softlab import checks
from softlab.core import Cost, Dims, Traits, own_precision, value, widened
from softlab.kernels import Exponential, kernel_cost
from softlab.landmarks import SegmentMeans, Selector
from softlab.operators.softmax import Softmax
from softlab.pinv import NystromformerCubic, Solver, applier, applier_cost


@value
class Nystromformer:
    """out = sm(q z_k^T) sm(z_q z_k^T)^+ sm(z_q k^T) v, sm the softmax of scores over sqrt(d).

    ``rank``: number m of landmarks z_q of the queries and z_k of the keys, 1 to the smaller number
    of either. ``pinv``: how the m x m core is inverted, by default 6 steps of the paper's cubic
    iteration, scaled per matrix; they rarely converge and act as a regulariser. ``landmarks``: by
    default means of consecutive segments.

    Rows of the result do not sum to one unless the core was inverted exactly. Masked keys are as
    good as deleted; the landmarks of the queries come from all queries, so in self-attention on a
    padded batch pass ``query_mask`` as well, or the padding's queries count. The paper's optional
    depthwise convolution of v is not included. Reference: arXiv 2102.03902, Eq. 9-13, Alg. 1.
    """

    rank: int
    pinv: Solver = NystromformerCubic(steps=6)
    landmarks: Selector = SegmentMeans()

    def __post_init__(self) -> None:
        checks.positive_int(self, rank=self.rank)
        checks.is_a(self, Solver, pinv=self.pinv)
        checks.is_a(self, Selector, landmarks=self.landmarks)

    @property
    def traits(self) -> Traits:
        """Low rank, linear memory."""
        return Traits(
            low_rank=True,
            exact_at_full_rank=not self.pinv.traits.regularized,
            exact_at_rank_one=not self.pinv.traits.regularized,
            linear_memory=True,
        )

    @property
    def target(self) -> Softmax:
        """Softmax attention."""
        return Softmax()

    def core(self, q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """The core sm(z_q z_k^T), (..., m, m): what ``pinv`` must invert."""
        z_q = self.landmarks(widened(q), self.rank)
        return _core(z_q, self.landmarks(widened(k), self.rank, key_mask))

    def cost(self, dims: Dims) -> Cost:
        """Three softmaxes, the inverse of the core, and its product."""
        m = self.rank
        return (
            kernel_cost(Dims(dims.batch, m, m, dims.d, dims.e), 0)
            + applier_cost(self.pinv, m, (dims.e,), dims.batch)
            + kernel_cost(Dims(dims.batch, m, dims.l, dims.d, dims.e), dims.e)
            + kernel_cost(Dims(dims.batch, dims.n, m, dims.d, dims.e), dims.e)
        )

    @own_precision
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_mask: Tensor | None = None,
        *,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e).

        ``query_mask``: boolean, broadcastable to (..., n); the landmarks of the queries come from
        the queries that it keeps.
        """
        q, k, v, key_mask = checks.admit(q, k, v, key_mask)
        if query_mask is not None:
            query_mask = checks.admit_mask(query_mask, q, "query_mask", "query")
        checks.rank_fits(self.rank, checks.survivors(key_mask, k), "keys")
        checks.rank_fits(self.rank, checks.survivors(query_mask, q), "queries")
        dtype = v.dtype
        q, k, v = widened(q), widened(k), widened(v)
        z_q = self.landmarks(q, self.rank, query_mask)
        z_k = self.landmarks(k, self.rank, key_mask)
        inverted = applier(self.pinv, _core(z_q, z_k))
        softmax = Exponential()
        gathered = inverted(softmax.average(z_q, k, v, key_mask))
        return softmax.average(q, z_k, gathered).to(dtype)


def _core(z_q: Tensor, z_k: Tensor) -> Tensor:
    return (z_q @ z_k.mT / math.sqrt(z_q.shape[-1])).softmax(-1)
