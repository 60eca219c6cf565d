"""Softmax attention whose scores are formed from rounded queries and keys."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from softlab import validation
from softlab.core import (
    Cost,
    Dims,
    Traits,
    attention,
    default_of,
    own_precision,
    value,
    widened,
)
from softlab.kernels import kernel_cost
from softlab.operators.softmax import Softmax
from softlab.primitives.certificates import (
    average_rounding,
    centre,
    certificate,
    chain,
    distance,
    lengths,
    score_rounding,
    unit,
)
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
            certified=self._derived,
        )
        return traits.made_causal() if self.causal else traits

    @property
    def _derived(self) -> bool:
        """Whether all but the rounding of q and k is exact, as ``bound`` supposes."""
        known = {"precision", "smoothing", "causal"}
        others = (field for field in dataclasses.fields(self) if field.name not in known)
        return all(getattr(self, field.name) == default_of(field) for field in others)

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

    @certificate
    def bound(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, out: Tensor
    ) -> Tensor:
        """At least |out_i - exact_i|, (..., n).

        Let x, y be the rounded q and k, p the weights of their scores, m = sum_j p_j v_j. The
        scores differ by t_j = (<q - x, k_j - c> + <x, k_j - y_j>) / sqrt(d) up to a number common
        to the row, for any c; here the keys' mean. The rounding is known, not bounded by its step:

            |t_j| <= tau_j = (|q - x| |k_j - c| + |x| |k_j - y_j|) / sqrt(d),  delta = max_j tau_j.

        exact = sum_j p_j exp(t_j) v_j / Z with Z = sum_j p_j exp(t_j), so that

            exact - m = sum_j p_j (exp(t_j) - 1) (v_j - m) / Z.

        With |exp(t) - 1| <= |t| (exp(delta) - 1) / delta, Cauchy and Schwarz, and Z >= exp(-T) by
        Jensen, T^2 = sum_j p_j tau_j^2,

            |exact - m| <= exp(T) (exp(delta) - 1) / delta T sigma,  sigma^2 = sum_j p_j |v_j - m|^2

        and, whatever t is, tanh(delta / 2) times the diameter. T and sigma are averages under p,
        three more columns of values; by Minkowski T is at most the same with root mean squares of
        |k_j - c| and |k_j - y_j|. It errs where single roundings cancel in a score, as they mostly
        do: the ratio to the error is that of |a| |b| to a typical <a, b>, some sqrt(d).

        Args:
            q: queries (..., n, d).
            k: keys (..., l, d).
            v: values (..., l, e).
            key_mask: boolean, broadcastable to (..., l).
            out: the output (..., n, e), if it is known.
        """
        u, root, e = unit(v), math.sqrt(q.shape[-1]), v.shape[-1]
        keys = self._smoothed(k, key_mask)
        x, y = self._round(q), self._round(keys)
        middle, radius = centre(v, key_mask)
        of_keys, reach = centre(keys, key_mask)
        of_k, of_q = lengths(keys - y), lengths(q - x)
        if key_mask is not None:
            of_k = of_k.masked_fill(~key_mask, 0)
        sizes = lengths(v - middle), distance(keys, of_keys), of_k
        ends = [x.amax(-1, keepdim=True) for x in sizes]
        ends = [radius, reach, ends[2]]
        units = [torch.where(end > 0, end, 1) for end in ends]
        columns = [(s / end).clamp_max(1).square() for s, end in zip(sizes, units, strict=True)]
        both = torch.cat((v - middle, *(c.unsqueeze(-1) for c in columns)), -1)
        means = Softmax(causal=self.causal)(x, y, both, key_mask)
        m, squares = means[..., :e], means[..., e:].clamp_min(0).unbind(-1)
        slack = score_rounding(x, y, 1 / root)
        lost = average_rounding(slack, torch.ones_like(slack), torch.ones_like(slack), k.shape[-2])
        away = lengths(m)
        spread = squares[0] - (away / units[0]).square() + (3 * lost + 8 * u)
        sigma = units[0] * spread.clamp_min(0).sqrt()
        far, off = (
            end * (square + lost).sqrt() for end, square in zip(units[1:], squares[1:], strict=True)
        )
        # Differences from the rounded tokens and from the mean are rounded, too.
        small = 4 * u * (lengths(q) * reach + lengths(x) * lengths(y).amax(-1, keepdim=True)) / root
        if self.smoothing:
            small = small + 2 * u * lengths(q) * lengths(keys).amax(-1, keepdim=True) / root
        mean = (of_q * far + lengths(x) * off) / root + small
        delta = (of_q * ends[1] + lengths(x) * ends[2]) / root + small
        tame = delta.clamp(1e-6, 30)
        first = mean * mean.clamp_max(60).exp() * torch.expm1(tame) / tame * sigma
        first = torch.where(delta <= 30, first * (1 + 16 * u), math.inf)
        second = torch.minimum(2 * torch.tanh(delta / 2) * radius, away + radius)
        moved = torch.minimum(first, second)
        own = average_rounding(slack, radius, radius, k.shape[-2])
        own = own + 4 * u * chain(e) * (lengths(middle) + radius)
        return distance(out - middle, m) + moved + own

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
