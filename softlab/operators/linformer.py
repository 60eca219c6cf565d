"""Linformer: keys and values projected along the sequence to a few."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from torch import Tensor

from softlab import validation
from softlab.core import Cost, Dims, Knob, Stream, Traits, own_precision, placed, value, widened
from softlab.kernels import Exponential, kernel_cost
from softlab.operators.softmax import Softmax
from softlab.validation import OneOf, Seed, Size

SHARINGS = ("none", "key-value")


@value
class Linformer:
    """out = softmax(q (E k)^T / sqrt(d)) (F v) with E and F of m rows and a column a key.

    ``rank``: m, 1 to the number of keys that take part. ``seed``: integer >= 0, of E and F with
    independent normal entries of variance 1/m, so that E^T E is the identity in expectation.
    ``sharing``: ``"none"``, E and F drawn apart, or ``"key-value"``, E = F. The draw is a function
    of (seed, keys that take part, m) alone: one for every head, and for masked keys as if they had
    been deleted. Learnt projections are given at the call; the seed is then idle.

    No approximation of softmax attention as drawn: the exponential is taken after the projection
    and does not commute with it. With equal scores each output is a mean of rows of F v, which is
    zero in expectation, where softmax attention returns the mean of v; only training makes more of
    it. Code that builds E for one length and takes no mask counts padding as tokens; this does not.
    The package linformer accepts a mask and ignores it. linformer-pytorch adds a bias to E k and F
    v, which is one more token of ones, and its causal mask hides mixtures of all tokens, so that
    the future comes through. Reference: Wang et al., arXiv 2006.04768 (form and sharing).
    """

    family: ClassVar = "low rank"
    target: ClassVar = Softmax()
    knob: ClassVar = Knob("rank")

    rank: Size
    seed: Seed = 0
    sharing: Annotated[str, OneOf(*SHARINGS)] = "none"

    @property
    def traits(self) -> Traits:
        """Low rank, linear memory."""
        return Traits(query_equivariant=True, reads="scores", low_rank=True, linear_memory=True)

    def projections(self, keys: int) -> tuple[Tensor, Tensor]:
        """E and F, each (m, keys), as drawn for so many keys: float64, on the CPU."""
        both = Stream(self.seed, "Linformer").normal(2, self.rank, keys)
        e, f = both / math.sqrt(self.rank)
        return e, e if self.sharing == "key-value" else f

    def cost(self, dims: Dims) -> Cost:
        """E k and F v, 2 m l (d + e), and attention to what they leave, 2 n m (d + e)."""
        projected = Cost(2 * dims.batch * self.rank * dims.l * (dims.d + dims.e))
        return projected + kernel_cost(Dims(dims.batch, dims.n, self.rank, dims.d, dims.e), dims.e)

    @own_precision
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_mask: Tensor | None = None,
        *,
        projections: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e).

        ``projections``: E and F to use instead of the drawn ones, each (..., m, l) in the dtype and
        on the device of k, leading dimensions broadcastable; columns of masked keys are dropped.
        ``TypeError`` and ``ValueError`` for what does not fit.
        """
        q, k, v, key_mask = validation.admit(q, k, v, key_mask)
        validation.rank_fits(self.rank, validation.survivors(key_mask, k), "keys")
        if projections is not None:
            self._admit(projections, k)
        dtype = v.dtype
        q, k, v = widened(q), widened(k), widened(v)
        if projections is not None:
            # Masked keys and values are zeros here, which drops their columns.
            few_k, few_v = (widened(p) @ x for p, x in zip(projections, (k, v), strict=True))
        else:
            few_k, few_v = self._projected(k, v, key_mask)
        return Exponential().average(q, few_k, few_v).to(dtype)

    def _projected(self, k: Tensor, v: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """E k (..., m, d) and F v (..., m, e)."""
        if key_mask is None:
            draw = type(self).projections, self, k.shape[-2]
            e, f = placed(*draw, device=k.device, dtype=k.dtype)
            return e @ k, f @ v
        few = [x.new_zeros(*x.shape[:-2], self.rank, x.shape[-1]) for x in (k, v)]
        size = key_mask.sum(-1)
        for s in size.unique().tolist():
            same = size == s
            mask = key_mask[same]
            for projected, p, x in zip(few, self.projections(s), (k, v), strict=True):
                kept = x[same][mask].reshape(-1, s, x.shape[-1])
                projected[same] = p.to(x) @ kept
        return few[0], few[1]

    def _admit(self, projections: tuple[Tensor, Tensor], k: Tensor) -> None:
        """Raise unless E and F fit the rank and the keys."""
        for name, p in zip("EF", projections, strict=True):
            if not isinstance(p, Tensor) or p.dtype != k.dtype:
                got = p.dtype if isinstance(p, Tensor) else type(p).__name__
                msg = f"projection {name} must be a tensor of {k.dtype}, got {got}. Convert it."
                raise TypeError(msg)
            if p.device != k.device:
                msg = f"projection {name} is on {p.device}, not {k.device}. Move it there."
                raise ValueError(msg)
            if p.shape[-2:] != (self.rank, k.shape[-2]):
                msg = (
                    f"projection {name} must be (..., {self.rank}, {k.shape[-2]}), a row a rank "
                    f"and a column a key, got {tuple(p.shape)}. Set rank to its rows, or cut its "
                    "columns to the keys."
                )
                raise ValueError(msg)
            validation.finite(f"projection {name}", p)
