"""Nystromformer: three softmaxes around landmarks of queries and keys."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from softlab import validation
from softlab.core import Cost, Dims, Knob, Traits, own_precision, value, widened
from softlab.kernels import Exponential, kernel_cost
from softlab.landmarks import SegmentMeans, Selector
from softlab.operators.softmax import Softmax
from softlab.pinv import SVD, NystromformerCubic, Solver, applier, applier_cost
from softlab.validation import Size


@value
class Nystromformer:
    """out = sm(q z_k^T) sm(z_q z_k^T)^+ sm(z_q k^T) v, sm the softmax of scores over sqrt(d).

    ``rank``: number m of landmarks z_q of the queries and z_k of the keys, 1 to the smaller number
    of either. ``pinv``: how the m x m core is inverted, by default 6 steps of the paper's cubic
    iteration, scaled per matrix; they rarely converge and act as a regulariser. ``landmarks``: by
    default means of consecutive segments.

    Rows of the result do not sum to one unless the core was inverted exactly. Masked keys are as
    good as deleted; the landmarks of the queries come from all queries, so in self-attention on a
    padded batch pass ``query_mask`` as well, or the padding's queries count. The paper's skip
    connection, a depthwise convolution of v with learnt weights, is ``convolution`` at the call: a
    layer's part and no part of the approximation, so that traits, target and cost are those of a
    call without it.

    Packages differ. nystrom-attention and transformers start the inverse from one scale for the
    whole batch; ``NystromformerCubic(6, PublishedNystromformer())`` gives their numbers, with n a
    multiple of m. Else nystrom-attention puts zeros in front, which without a mask count as tokens,
    and masked tokens leave its segments uneven. transformers averages masked tokens into the
    landmarks, and is exact softmax attention at as many landmarks as tokens. Reference: arXiv
    2102.03902, Eq. 9-13, Alg. 1, and its skip connection of V.
    """

    family: ClassVar = "low rank"
    target: ClassVar = Softmax()
    knob: ClassVar = Knob("rank")

    rank: Size
    pinv: Solver = NystromformerCubic(steps=6)
    landmarks: Selector = SegmentMeans()

    @property
    def traits(self) -> Traits:
        """Low rank, linear memory."""
        exact = self.landmarks.means and not self.pinv.traits.regularized
        # Landmarks by position are linear in the tokens.
        linear = self.landmarks.means and not self.landmarks.equivariant
        return Traits(
            reads="relative scores" if linear else "",
            low_rank=True,
            exact_at="rank" if exact else "",
            exact_at_rank_one=exact,
            linear_memory=True,
        )

    @own_precision
    def core(self, q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """The core sm(z_q z_k^T), (..., m, m): what ``pinv`` must invert."""
        q, k, _, key_mask = validation.admit(q, k, k, key_mask)
        z_q = self.landmarks(widened(q), self.rank)
        return _core(z_q, self.landmarks(widened(k), self.rank, key_mask))

    def inverted_exactly(self) -> Nystromformer:
        """The same with the pseudo-inverse of the core."""
        return dataclasses.replace(self, pinv=SVD())

    @own_precision
    def normalized_exactly(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None
    ) -> Tensor:
        """M(q, z_k) M(z_q, z_k)^+ M(z_q, k) v with M(x, y) = exp(<x, y> / sqrt(d)) / Z(x).

        Z(x) sums over all keys, as in softmax attention; the operator's own softmaxes of q and z_q
        sum over the landmarks z_k. What is inverted is still the core A, since with D the ratio of
        the two sums at z_q, M(z_q, z_k)^-1 = A^-1 D^-1. Forms the n x l scores.
        """
        q, k, v, key_mask = validation.admit(q, k, v, key_mask)
        validation.rank_fits(self.rank, validation.survivors(key_mask, k), "keys")
        validation.rank_fits(self.rank, q.shape[-2], "queries")
        dtype = v.dtype
        q, k, v = widened(q), widened(k), widened(v)
        z_q = self.landmarks(q, self.rank)
        z_k = self.landmarks(k, self.rank, key_mask)
        ratio = _log_sums(z_q, k, key_mask) - _log_sums(z_q, z_k)
        inverted = applier(self.pinv, _core(z_q, z_k))
        gathered = inverted(ratio.exp() * Exponential().average(z_q, k, v, key_mask))
        weights = (_scores(q, z_k) - _log_sums(q, k, key_mask)).exp()
        return (weights @ gathered).to(dtype)

    def cost(self, dims: Dims) -> Cost:
        """The landmarks, three softmaxes, the inverse of the core, and its product."""
        m = self.rank
        return (
            self.landmarks.cost(dims, m)
            + self.landmarks.cost(replace(dims, l=dims.n), m)
            + kernel_cost(Dims(dims.batch, m, m, dims.d, dims.e), 0)
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
        convolution: Tensor | None = None,
    ) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e).

        ``query_mask``: boolean, broadcastable to (..., n); the landmarks of the queries come from
        the queries that it keeps. ``convolution``: weights c (..., w) in the dtype and on the
        device of v, w odd (the released code has 33), leading dimensions broadcastable; adds to
        output i the sum over j of c_j v_(i + j - (w - 1) / 2), zeros beyond the ends, at 2 n w e
        more flops a matrix. It acts on positions: n must be l, and masked values count as zeros.
        ``TypeError`` and ``ValueError`` for what does not fit.
        """
        q, k, v, key_mask = validation.admit(q, k, v, key_mask)
        if query_mask is not None:
            query_mask = validation.admit_mask(query_mask, q, "query_mask", "query")
        validation.rank_fits(self.rank, validation.survivors(key_mask, k), "keys")
        validation.rank_fits(self.rank, validation.survivors(query_mask, q), "queries")
        if convolution is not None:
            _admit_weights(convolution, q, v)
        dtype = v.dtype
        q, k, v = widened(q), widened(k), widened(v)
        z_q = self.landmarks(q, self.rank, query_mask)
        z_k = self.landmarks(k, self.rank, key_mask)
        inverted = applier(self.pinv, _core(z_q, z_k))
        softmax = Exponential()
        gathered = inverted(softmax.average(z_q, k, v, key_mask))
        out = softmax.average(q, z_k, gathered)
        if convolution is not None:
            out = out + _convolved(v, widened(convolution))
        return out.to(dtype)


def _core(z_q: Tensor, z_k: Tensor) -> Tensor:
    return _scores(z_q, z_k).softmax(-1)


def _scores(x: Tensor, y: Tensor) -> Tensor:
    return x @ y.mT / math.sqrt(x.shape[-1])


def _log_sums(x: Tensor, y: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Log Z(x) over the y that take part, (..., n, 1)."""
    scores = _scores(x, y)
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask.unsqueeze(-2), -math.inf)
    return scores.logsumexp(-1, keepdim=True)


def _convolved(v: Tensor, weights: Tensor) -> Tensor:
    """Each channel of v (..., n, e) along the sequence with weights (..., w), zeros at the ends."""
    width = weights.shape[-1]
    weights = weights.expand(*v.shape[:-2], width).reshape(-1, 1, width)
    # One group a matrix, its channels side by side: a correlation, as layers have it.
    signals = v.reshape(1, -1, *v.shape[-2:])
    out = conv2d(signals, weights.unsqueeze(-1), padding=(width // 2, 0), groups=signals.shape[1])
    return out.reshape(v.shape)


def _admit_weights(weights: Tensor, q: Tensor, v: Tensor) -> None:
    """Raise unless the weights of the convolution fit the values, and a query each value."""
    if not isinstance(weights, Tensor) or weights.dtype != v.dtype:
        got = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        msg = f"convolution must be a tensor of {v.dtype}, like v, got {got}. Convert it."
        raise TypeError(msg)
    if weights.device != v.device:
        msg = f"convolution is on {weights.device}, not {v.device}. Move it there."
        raise ValueError(msg)
    if q.shape[-2] != v.shape[-2]:
        msg = (
            f"the convolution gives query i what stands around value i, and there are "
            f"{q.shape[-2]} queries and {v.shape[-2]} values. Leave it out in cross-attention."
        )
        raise ValueError(msg)
    lead, width = v.shape[:-2], weights.shape[-1] if weights.ndim else 0
    try:
        fits = weights.ndim > 0 and torch.broadcast_shapes(weights.shape[:-1], lead) == lead
    except RuntimeError:
        fits = False
    if not fits or width % 2 == 0:
        msg = (
            f"convolution must be weights (..., w), w odd and (...) broadcastable to {tuple(lead)},"
            f" got {tuple(weights.shape)}. For a weight a head use (heads, w)."
        )
        raise ValueError(msg)
    validation.finite("convolution", weights)
