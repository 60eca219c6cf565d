"""Softmax attention of rounded queries, keys, values and weights."""

from __future__ import annotations

import functools
import math
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from softlab import validation
from softlab.core import (
    Cost,
    Dims,
    Stream,
    Traits,
    attention,
    norm,
    own_precision,
    value,
    widened,
)
from softlab.kernels import kernel_cost
from softlab.operators.softmax import Softmax
from softlab.primitives.causal import of_kept
from softlab.primitives.certificates import (
    at_most,
    average_rounding,
    centre,
    certificate,
    chain,
    distance,
    lengths,
    root,
    score_rounding,
    unit,
)
from softlab.validation import Integers, OneOf, Seed

FORMATS = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "int8": torch.int8,
    "int": torch.int8,
}
TURBO = ("turboquant", "turboquant-product")
SCALED = {"float8": 448.0, "float8_e5m2": 57344.0, "int8": 127.0}
"""Formats whose tokens are scaled to reach just the largest number, and that number."""
PARTS = ("qk", "q", "k", "v", "p", "kv", "pv", "qkv", "qkp", "qkpv")
GRANULARITIES = {"token": (-1,), "channel": (-2,), "tensor": (-2, -1)}
"""What shares a scale: the numbers of a token, those of a channel, all of a matrix."""
MOST_BITS = 8


@functools.cache
def lloyd_max(bits: int) -> Tensor:
    """The 2^bits centroids of least mean square error for a standard normal number, float64.

    Max's conditions: each bound lies half-way between two centroids, each centroid is the mean of
    its cell. Found by Lloyd's alternation from the companded start.
    """
    cells = 1 << bits
    shares = (2 * torch.arange(cells, dtype=torch.float64, device="cpu") + 1) / (2 * cells)
    found = math.sqrt(3) * torch.special.ndtri(shares)
    far = torch.full((1,), math.inf, dtype=torch.float64, device="cpu")
    for _ in range(4000):
        bounds = torch.cat((-far, (found[1:] + found[:-1]) / 2, far))
        density = torch.exp(-bounds.square() / 2) / math.sqrt(2 * math.pi)
        # Of cells above zero by the upper tail, and the others by symmetry.
        tail = torch.special.ndtr(-bounds.abs())
        mass = torch.where(bounds < 0, tail, 1 - tail).diff()
        found = -density.diff() / mass
        found = (found - found.flip(0)) / 2
    best: Tensor = found
    return best


@value
class Quantized:
    """out = softmax(Q(q) Q(k)^T / sqrt(d)) v, with Q rounding to a narrow format.

    ``parts``: what is rounded, ``"qk"`` unless given: the letters of queries, keys, values and of
    the weights p = exp(s - max s), each before its sum, by which the output is divided, is rounded
    to Q(S p) / S with S the format's largest number, or 1. ``precision``:

    - ``"bfloat16"``, ``"float16"``: Q(x) is x in that format, to nearest and even; beyond its
      range the largest number of x's sign, 65504 in float16.
    - ``"int8"``: Q(x) = s round(x / s) for each token, s = max|x| / 127.
    - ``"float8"``: as int8 with s = max|x| / 448 and rounding to float8_e4m3fn, of 3 digits;
      ``"float8_e5m2"``: of 2 digits, with s = max|x| / 57344.
    - ``"int"``: as int8 with ``bits`` b from 2 to 8, s = max|x| / (2^(b-1) - 1).
    - ``"turboquant"``: x / |x| turned by a random orthogonal matrix, each coordinate to the nearest
      of the 2^b centroids that are best for N(0, 1/d), turned back and times |x|; b = ``bits``, 1
      to 8. ``"turboquant-product"``: that with b - 1 bits, and for what it misses, r, one bit more:
      c |r| S^T sign(S r), so that <y, Q(x)> is unbiased over the seeds of ``sketch``:
      ``"gaussian"``, S of normal entries and c = sqrt(pi / 2) / d, or ``"orthogonal"``, S a random
      orthogonal matrix and 1 / c = d E|u_1| of a unit vector u.

    ``granularity``: what shares a scale s, ``"token"``, ``"channel"`` (one coordinate of all keys,
    queries or values) or ``"tensor"``. ``rotation``: tokens are turned by a random orthogonal
    matrix, rounded, and turned back, so that no channel stands out. ``seed``: integer >= 0, of
    these matrices, which are the same for queries, keys and every head.

    ``smoothing``: the mean of the keys that take part is taken from k first; softmax does not see
    it, and rounding does where it is large. ``causal``: query i attends to the keys 0 to i, and
    there are as many; masked tokens are deleted, queries too; not with smoothing or scales of more
    than a token, which later keys move.

    A perturbation, not a saving: numbers are rounded and products then formed in the precision of
    the input (float32 at least), so that what is measured is the rounding alone. With
    r(x) the largest rounding error of an entry, see ``rounding``, scores s err by at most

        |ds_ij| <= sum_t (r(q_it) |k_jt| + |q_it| r(k_jt) + r(q_it) r(k_jt)) / sqrt(d),

    see ``score_error``, and for delta_i = max_j |ds_ij| the output by at most

        |out_i - exact_i| <= tanh(delta_i / 2) max_jl |v_j - v_l|,

    as weights that are tilted by exp(+-delta) move by tanh(delta / 2) in total variation at most.
    for rounded q and k; with rotation all of this is about turned tokens. It fails where scores are
    large: r is relative, and delta grows with |q| |k|; in int8 with
    the largest entry of a token too, so that one channel far above the others drowns them.

    The derivative in q and k is that of rounding: zero almost everywhere, but for what int8 and
    float8 pass through s, and turboquant through |x| and |r|. Weights are rounded, and tokens
    turned, in float64.

    The mean square of what turboquant misses is 0.363, 0.117, 0.0345, 0.0095 of |x|^2 at 1 to 4
    bits in wide heads, at most sqrt(3) pi / 2 / 4^b. The unbiased form pays for its bit: a product
    with y has the variance |r|^2 (pi / 2 |y|^2 - <y, r / |r|>^2) / d by the Gaussian sketch, and
    less by the orthogonal one; softmax turns variance of scores into error of the output.

    Reference: Zhang et al., SageAttention, arXiv 2410.02367 (int8 by tokens, smoothed keys);
    Micikevicius et al., arXiv 2209.05433 (e4m3, e5m2); Shah et al., arXiv 2407.08608 (rotation, FP8
    weights); Zandieh et al., TurboQuant, arXiv 2504.19874, Algorithms 1 and 2.
    """

    family: ClassVar = "dense"

    precision: Annotated[str, OneOf(*FORMATS, *TURBO)] = "int8"
    smoothing: bool = False
    causal: bool = False
    parts: Annotated[str, OneOf(*PARTS)] = "qk"
    granularity: Annotated[str, OneOf(*GRANULARITIES)] = "token"
    rotation: bool = False
    bits: Annotated[int, Integers(1, MOST_BITS)] | None = None
    sketch: Annotated[str, OneOf("gaussian", "orthogonal")] = "gaussian"
    seed: Seed = 0

    def __post_init__(self) -> None:
        if wrong := self._wrong():
            msg = f"Quantized{wrong}."
            raise ValueError(msg)

    def _wrong(self) -> str:
        """What does not go together, in words; empty if all does."""
        turbo, shared = self.precision in TURBO, self.granularity != "token"
        if self.causal and self.smoothing:
            return (
                ".smoothing takes the mean of all keys from each, later ones included; "
                "with causal=True give smoothing=False"
            )
        if self.causal and shared:
            return (
                f".granularity is {self.granularity!r}, a scale that later tokens move; with "
                "causal=True give 'token'"
            )
        if (self.bits is None) == (turbo or self.precision == "int"):
            return (
                f".bits is {self.bits}, with precision={self.precision!r}; give bits with 'int', "
                "'turboquant' and 'turboquant-product', and none with the others"
            )
        if self.precision == "int" and self.bits == 1:
            return ".bits is 1, which leaves an integer no sign; give 2 to 8"
        if shared and (turbo or self.precision in ("bfloat16", "float16")):
            return (
                f".granularity is {self.granularity!r}, and {self.precision} has no scale to "
                "share; give 'token'"
            )
        if turbo and ("p" in self.parts or self.rotation):
            return (
                f".precision is {self.precision!r}, which turns tokens itself and rounds no "
                "weights; give rotation=False and parts without p"
            )
        return ""

    @property
    def traits(self) -> Traits:
        """All that softmax attention is, but exact, and as far as values and weights are not."""
        exact_levels = "v" not in self.parts or not (self.rotation or self.precision in TURBO)
        traits = Traits(
            linear_in_v="v" not in self.parts,
            query_equivariant=True,
            key_invariant=True,
            row_stochastic="p" not in self.parts and exact_levels,
            nonnegative=exact_levels,
            linear_memory="p" not in self.parts,
            seedless=not (self.rotation or self.precision in TURBO),
            certified=True,
        )
        return traits.made_causal() if self.causal else traits

    @property
    def target(self) -> Softmax:
        """Softmax attention."""
        return Softmax(causal=self.causal)

    def cost(self, dims: Dims) -> Cost:
        """That of exact attention, however narrow the numbers are, and turns: 4 d^2 a token."""
        turns = 2 * (self.rotation or self.precision == "turboquant")
        if self.precision == "turboquant-product":
            turns = 2 if self.bits == 1 else 4
        sizes = {"q": (dims.n, dims.d), "k": (dims.l, dims.d), "v": (dims.l, dims.e)}
        squares = sum(tokens * w**2 for part, (tokens, w) in sizes.items() if part in self.parts)
        turning = Cost(2 * turns * dims.batch * squares)
        return kernel_cost(dims, dims.e, causal=self.causal) + turning

    @own_precision
    def rounded(
        self, q: Tensor, k: Tensor, key_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Q(q) and Q(k), (..., n, d) and (..., l, d), k smoothed first where that is asked.

        What is not among ``parts`` comes as it is. In the input's dtype, or in float32 for half
        precision; of masked keys without meaning.
        """
        q, k, _, key_mask = validation.admit(q, k, k, key_mask)
        return self._part("q", widened(q)), self._part("k", self._smoothed(widened(k), key_mask))

    def rounding(self, x: Tensor) -> Tensor:
        """The most r(x) by which Q can err at each entry of tokens x (..., n, d).

        Half a step: s / 2 in int8, else max(u |x| / (1 + u), u s t) with u half the format's eps, t
        its least normal number, s its scale or 1; infinite beyond the range. Smooth the keys
        before, where ``smoothing`` does, and turn them, where ``rotation`` does. Raises
        ``ValueError`` for turboquant, which bounds a token's error and no entry's.
        """
        if self.precision in TURBO:
            msg = f"{self!r} bounds no entry's error: a token's is relative to its length."
            raise ValueError(msg)
        x = widened(x).abs()
        top = self._top
        scale = self._largest(x) / top if top else torch.ones_like(x[..., :1])
        if FORMATS[self.precision] == torch.int8:
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
        if self.rotation:
            turn = self._turn(q.shape[-1]).to(q)
            q, k = q @ turn.mT, k @ turn.mT
        of_q, of_k = (
            self.rounding(x) if part in self.parts else torch.zeros_like(x)
            for part, x in (("q", q), ("k", k))
        )
        error = of_q @ (k.abs() + of_k).mT + q.abs() @ of_k.mT
        return error / math.sqrt(q.shape[-1])

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        x, y = self._part("q", q), self._part("k", self._smoothed(k, key_mask))
        v = self._part("v", v)
        if "p" not in self.parts:
            return Softmax(causal=self.causal)(x, y, v, key_mask)
        if self.causal:
            return of_kept(self._weighted, x, y, v, key_mask)
        return self._weighted(x, y, v, key_mask)

    def _weighted(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """The average of v by rounded weights."""
        scores = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask.unsqueeze(-2), -math.inf)
        if self.causal:
            later = torch.ones_like(scores, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        kind, top = FORMATS[self.precision], self._top or 1.0
        steps = top * weights.detach()
        steps = steps.round() if kind == torch.int8 else steps.to(kind).to(weights)
        return (steps / top / weights.sum(-1, keepdim=True)).to(v.dtype) @ v

    @property
    def _top(self) -> float | None:
        """The largest number of a format with scales."""
        if self.precision == "int":
            return float((1 << ((self.bits or 2) - 1)) - 1)
        return SCALED.get(self.precision)

    def _largest(self, x: Tensor) -> Tensor:
        """The largest magnitude among what shares a scale."""
        return x.abs().amax(GRANULARITIES[self.granularity], keepdim=True)

    def _turn(self, d: int) -> Tensor:
        return _orthogonal(self.seed, "Quantized, rotation", d)

    def _part(self, part: str, x: Tensor) -> Tensor:
        """The tokens rounded, if they are among the parts that are."""
        if part not in self.parts:
            return x
        if self.precision in TURBO:
            return self._turbo(x.double()).to(x.dtype)
        if not self.rotation:
            return self._round(x)
        turn = self._turn(x.shape[-1]).to(x.device)
        return (self._round(x.double() @ turn.mT) @ turn).to(x.dtype)

    def _turbo(self, x: Tensor) -> Tensor:
        """TurboQuant's Q(x), in float64."""
        bits = self.bits or 1
        if self.precision == "turboquant":
            return self._centred(x, bits)
        near = self._centred(x, bits - 1) if bits > 1 else torch.zeros_like(x)
        missed, d = x - near, x.shape[-1]
        if self.sketch == "gaussian":
            drawn = Stream(self.seed, "Quantized, sketch").normal(d, d)
            factor = math.sqrt(math.pi / 2) / d
        else:
            drawn = _orthogonal(self.seed, "Quantized, sketch", d)
            factor = (
                math.sqrt(math.pi) / d * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
            )
        drawn = drawn.to(x.device)
        signs = torch.where(missed.detach() @ drawn.mT < 0, -1.0, 1.0).to(x)
        return near + factor * norm(missed, -1).unsqueeze(-1) * (signs @ drawn)

    def _centred(self, x: Tensor, bits: int) -> Tensor:
        """Tokens whose turned directions are rounded to the centroids, in float64."""
        turn, found = self._turn(x.shape[-1]).to(x.device), lloyd_max(bits).to(x.device)
        length, root = norm(x, -1).unsqueeze(-1), math.sqrt(x.shape[-1])
        turned = (x.detach() / length.detach().where(length > 0, 1)) @ turn.mT
        at = torch.bucketize(root * turned, (found[1:] + found[:-1]) / 2)
        return length * ((found[at] / root) @ turn)

    at_most = at_most

    @certificate
    def bound(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, out: Tensor
    ) -> Tensor:
        """At least |out_i - exact_i|, (..., n).

        Let x, y be the rounded q and k, whatever rounded them, p the exact weights of their scores,
        and m = sum_j p_j v_j. Then |out - exact| <= |out - m| + |m - exact|. The first is measured:
        what rounding of values and of weights does. For the second, the scores differ by t_j =
        (<q - x, k_j - c> + <x, k_j - y_j>) / sqrt(d) up to a number common to the row, for any c;
        here the keys' mean. The rounding is known, not bounded by its step:

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
        u, scale, e = unit(v), 1 / math.sqrt(q.shape[-1]), v.shape[-1]
        keys = self._smoothed(k, key_mask)
        x, y = self._part("q", q), self._part("k", keys)
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
        slack = score_rounding(x, y, scale)
        lost = average_rounding(slack, torch.ones_like(slack), torch.ones_like(slack), k.shape[-2])
        away = lengths(m)
        spread = squares[0] - (away / units[0]).square() + (3 * lost + 8 * u)
        sigma = units[0] * root(spread)
        far, off = (
            end * root(square + lost) for end, square in zip(units[1:], squares[1:], strict=True)
        )
        # Differences from the rounded tokens and from the mean are rounded, too.
        small = (
            4 * u * (lengths(q) * reach + lengths(x) * lengths(y).amax(-1, keepdim=True)) * scale
        )
        if self.smoothing:
            small = small + 2 * u * lengths(q) * lengths(keys).amax(-1, keepdim=True) * scale
        mean = (of_q * far + lengths(x) * off) * scale + small
        delta = (of_q * ends[1] + lengths(x) * ends[2]) * scale + small
        tame = delta.clamp(1e-6, 30)
        first = mean * mean.clamp_max(40).exp() * torch.expm1(tame) / tame * sigma
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
        top = self._top
        if top is None:
            limits = torch.finfo(FORMATS[self.precision])
            return x.detach().clamp(limits.min, limits.max).to(FORMATS[self.precision]).to(x)
        largest = self._largest(x)
        # Multiplied first: what lies half-way between two steps stays there.
        steps = top * x.detach() / torch.where(largest > 0, largest, 1).detach()
        if FORMATS[self.precision] == torch.int8:
            return steps.round() * (largest / top)
        return steps.to(FORMATS[self.precision]).to(x) * (largest / top)


def _orthogonal(seed: int, purpose: str, d: int) -> Tensor:
    """A matrix from the Haar measure of the orthogonal group, (d, d), float64, on the CPU."""
    q, r = torch.linalg.qr(Stream(seed, purpose).normal(d, d))
    turn: Tensor = q * r.diagonal().sign()
    return turn
