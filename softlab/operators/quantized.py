"""Softmax attention whose scores are formed from rounded queries and keys."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, Dims, Traits, attention, own_precision, value, widened
from softlab.kernels import kernel_cost
from softlab.operators.softmax import Softmax
from softlab.validation import OneOf

FORMATS = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8": torch.float8_e4m3fn,
    "int8": torch.int8,
}
SCALED = {"float8": 448.0, "int8": 127.0}
"""Formats whose tokens are scaled to reach just the largest number, and that number."""


@value
class Quantized:
    """out = softmax(Q(q) Q(k)^T / sqrt(d)) v, with Q rounding to a narrow format.

    ``precision``:

    - ``"bfloat16"``, ``"float16"``: Q(x) is x in that format, to nearest and even; beyond its
      range the largest number of x's sign, 65504 in float16.
    - ``"int8"``: Q(x) = s round(x / s) for each token, s = max|x| / 127.
    - ``"float8"``: as int8 with s = max|x| / 448 and rounding to float8_e4m3fn, of 3 digits.

    ``smoothing``: the mean of the keys that take part is taken from k first; softmax does not see
    it, and rounding does where it is large. ``causal``: query i attends to the keys 0 to i, and
    there are as many; masked tokens are deleted, queries too; not with smoothing, whose mean later
    keys move.

    A perturbation, not a saving: numbers are rounded and products then formed in the precision of
    the input (float32 at least), so that what is measured is the rounding of q and k alone. With
    r(x) the largest rounding error of an entry, see ``rounding``, scores s err by at most

        |ds_ij| <= sum_t (r(q_it) |k_jt| + |q_it| r(k_jt) + r(q_it) r(k_jt)) / sqrt(d),

    see ``score_error``, and for delta_i = max_j |ds_ij| the output by at most

        |out_i - exact_i| <= tanh(delta_i / 2) max_jl |v_j - v_l|,

    as weights that are tilted by exp(+-delta) move by tanh(delta / 2) in total variation at most.
    So it fails where scores are large: r is relative, and delta grows with |q| |k|; in int8 with
    the largest entry of a token too, so that one channel far above the others drowns them.

    The derivative in q and k is that of rounding: zero almost everywhere, but for what int8 and
    float8 pass through s. The weights and v are not rounded, as they are in the published kernels.
    Reference: Zhang et al., SageAttention, arXiv 2410.02367 (int8 by tokens, smoothed keys);
    Micikevicius et al., arXiv 2209.05433 (e4m3).
    """

    family: ClassVar = "dense"

    precision: Annotated[str, OneOf(*FORMATS)] = "int8"
    smoothing: bool = False
    causal: bool = False

    def __post_init__(self) -> None:
        if self.causal and self.smoothing:
            msg = (
                "Quantized.smoothing takes the mean of all keys from each, later ones included; "
                "with causal=True give smoothing=False."
            )
            raise ValueError(msg)

    @property
    def traits(self) -> Traits:
        """All that softmax attention is, but exact."""
        traits = Traits(
            query_equivariant=True,
            key_invariant=True,
            row_stochastic=True,
            nonnegative=True,
            linear_memory=True,
        )
        return traits.made_causal() if self.causal else traits

    @property
    def target(self) -> Softmax:
        """Softmax attention."""
        return Softmax(causal=self.causal)

    def cost(self, dims: Dims) -> Cost:
        """That of exact attention, 2 n l (d + e) a matrix, however narrow the numbers are."""
        return kernel_cost(dims, dims.e, causal=self.causal)

    @own_precision
    def rounded(
        self, q: Tensor, k: Tensor, key_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Q(q) and Q(k), (..., n, d) and (..., l, d), k smoothed first where that is asked.

        In the input's dtype, or in float32 for half precision; of masked keys without meaning.
        """
        q, k, _, key_mask = validation.admit(q, k, k, key_mask)
        return self._round(widened(q)), self._round(self._smoothed(widened(k), key_mask))

    def rounding(self, x: Tensor) -> Tensor:
        """The most r(x) by which Q can err at each entry of tokens x (..., n, d).

        Half a step: s / 2 in int8, else max(u |x| / (1 + u), u s t) with u half the format's eps, t
        its least normal number, s its scale or 1; infinite beyond the range. Smooth the keys
        before, where ``smoothing`` does.
        """
        x = widened(x).abs()
        top = SCALED.get(self.precision)
        scale = x.amax(-1, keepdim=True) / top if top else torch.ones_like(x[..., :1])
        if self.precision == "int8":
            return (scale / 2).expand_as(x)
        limits = torch.finfo(FORMATS[self.precision])
        u = limits.eps / 2
        error = torch.maximum(u / (1 + u) * x, u * limits.tiny * scale)
        error = error + 2**-24 * x  # float64 is rounded to float32 on the way
        return error.masked_fill(x > limits.max * scale * (1 + 1e-6), math.inf)

    @own_precision
    def score_error(self, q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """The bound on |ds|, (..., n, l); with smoothing of scores less their common part."""
        q, k, _, key_mask = validation.admit(q, k, k, key_mask)
        q, k = widened(q), self._smoothed(widened(k), key_mask)
        of_q, of_k = self.rounding(q), self.rounding(k)
        error = of_q @ (k.abs() + of_k).mT + q.abs() @ of_k.mT
        return error / math.sqrt(q.shape[-1])

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        x, y = self._round(q), self._round(self._smoothed(k, key_mask))
        exact = Softmax(causal=self.causal)
        return exact(x, y, v, key_mask)

    def _smoothed(self, k: Tensor, key_mask: Tensor | None) -> Tensor:
        if not self.smoothing:
            return k
        if key_mask is None:
            return k - k.mean(-2, keepdim=True)
        counted = key_mask.unsqueeze(-1)  # masked keys come as zeros
        return torch.where(counted, k - k.sum(-2, keepdim=True) / counted.sum(-2, keepdim=True), 0)

    def _round(self, x: Tensor) -> Tensor:
        top = SCALED.get(self.precision)
        if top is None:
            limits = torch.finfo(FORMATS[self.precision])
            return x.detach().clamp(limits.min, limits.max).to(FORMATS[self.precision]).to(x)
        largest = x.abs().amax(-1, keepdim=True)
        # Multiplied first: what lies half-way between two steps stays there.
        steps = top * x.detach() / torch.where(largest > 0, largest, 1).detach()
        if self.precision == "int8":
            return steps.round() * (largest / top)
        return steps.to(FORMATS[self.precision]).to(x) * (largest / top)
