"""The oracle of sparse attention: each query attends to the keys of its largest weights alone."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, Dims, Traits, attention, own_precision, value, widened
from softlab.kernels import kernel_cost
from softlab.operators.softmax import Softmax
from softlab.primitives.causal import of_kept
from softlab.primitives.certificates import (
    at_most,
    average_rounding,
    centre,
    certificate,
    distance,
    lengths,
    score_rounding,
)
from softlab.validation import Numbers, Size

NO_MASS = ", a mass that no row has; give a number in (0, 1]."


@value
class TopK:
    """out_i = sum_{j in T_i} p_ij v_j / sum_{j in T_i} p_ij, p = softmax(q k^T / sqrt(d)).

    Give one of ``k``, an integer of at least 1: T_i are the keys of the k largest weights of the
    row, all of them where fewer take part; or ``p`` in (0, 1]: T_i is the least set of the largest
    weights whose sum reaches p. Keys of the same score as the last one in T_i are in T_i too, so
    that no result depends on the order of the keys.

    What sparse methods try to guess at less cost is read off the exact weights here: the whole n x
    l matrix is formed, and its cost is that of exact attention. With kept mass c_i, the sum of p
    over T_i, the error of a row is (1 - c_i) times the difference of two averages of v, so at most
    (1 - c_i) times the diameter of the values: |out_i - exact_i| <= (1 - c_i) max_jl |v_j - v_l|.
    Exact with k at the number of keys, or p = 1. ``causal``: T_i is chosen among the keys 0 to i,
    and there are as many as queries; masked tokens are deleted, queries too. The output jumps, and
    its gradient is one-sided, where a key enters T_i. Reference: Gupta et al., Memory-efficient
    Transformers via Top-k Attention, arXiv 2106.06899; the least set as in nucleus sampling,
    Holtzman et al., arXiv 1904.09751, Sec. 3.1.
    """

    family: ClassVar = "dense"

    k: Size | None = None
    p: Annotated[float, Numbers(most=1, says=NO_MASS)] | None = None
    causal: bool = False

    def __post_init__(self) -> None:
        if (self.k is None) == (self.p is None):
            msg = (
                f"TopK has k={self.k!r} and p={self.p!r}; give one of them: k, how many keys a "
                "query keeps, or p, the mass that they must reach."
            )
            raise ValueError(msg)

    @property
    def traits(self) -> Traits:
        """Equivariant and row-stochastic, dense."""
        traits = Traits(
            query_equivariant=True,
            key_invariant=True,
            row_stochastic=True,
            nonnegative=True,
            reads="relative scores",
            restricted=True,
            exact_at="k" if self.k is not None else "",
            monotone="absolute" if self.k is not None else "",
            certified=True,
        )
        return traits.made_causal() if self.causal else traits

    @property
    def target(self) -> Softmax:
        """Softmax attention."""
        return Softmax(causal=self.causal)

    @own_precision
    def kept_mass(self, q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """The mass c (..., n) that each query's kept keys have in the exact softmax."""
        q, k, v, key_mask = validation.admit(q, k, k[..., :1], key_mask)
        if not self.causal:
            return self._kept(widened(q), widened(k), key_mask).sum(-1).to(q.dtype)

        def mass(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG001
            return self._kept(widened(q), widened(k), None).sum(-1, keepdim=True).to(q.dtype)

        return of_kept(mass, q, k, v, key_mask).squeeze(-1)

    def cost(self, dims: Dims) -> Cost:
        """That of exact attention, 2 n l (d + e) a matrix; the sorting is no product."""
        return kernel_cost(dims, dims.e, causal=self.causal)

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

        A row forms all n l weights, so nothing is left to be bounded: the exact average s is had at
        the cost of the call, and |out - exact| <= |out - s| + |s - exact|, the last of them the
        rounding of s alone. So the certificate is the error, and saves nothing.

        Args:
            q: queries (..., n, d).
            k: keys (..., l, d).
            v: values (..., l, e).
            key_mask: boolean, broadcastable to (..., l).
            out: the output (..., n, e), if it is known.
        """
        scale = 1 / math.sqrt(q.shape[-1])
        _, radius = centre(v, key_mask)
        exact = self.target(q, k, v, key_mask)
        slack = score_rounding(q, k, scale)
        largest = lengths(v).amax(-1, keepdim=True)
        return distance(out, exact) + average_rounding(slack, radius, largest, k.shape[-2])

    def _average(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        kept = self._kept(q, k, key_mask)
        return kept / kept.sum(-1, keepdim=True) @ v

    def _kept(self, q: Tensor, k: Tensor, key_mask: Tensor | None) -> Tensor:
        """The weights p (..., n, l), 0 outside T."""
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask.unsqueeze(-2), -math.inf)
        if self.causal:
            later = torch.ones_like(scores[..., :, :], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        weights = scores.softmax(-1)
        # Chosen by the scores: weights that underflow to zero would all tie.
        ranked, order = scores.detach().sort(-1, descending=True)
        if self.p is None:
            last = ranked[..., min(self.k or 1, k.shape[-2]) - 1, None]
        else:
            reached = weights.detach().gather(-1, order).cumsum(-1) >= self.p
            # The first that reaches p; all keys where rounding keeps their sum below it.
            reached[..., -1] = True
            first = reached.to(torch.uint8).argmax(-1, keepdim=True)
            last = ranked.gather(-1, first)
        return weights.where(scores >= last, 0)
