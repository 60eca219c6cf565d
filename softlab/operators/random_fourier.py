"""Random Fourier features: softmax or Gaussian attention by cosines and sines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from softlab.core import Cost, Dims, Knob, Traits, attention, own_precision, placed, value, widened
from softlab.features import Orthogonal, Weights
from softlab.kernels import Gaussian
from softlab.operators.gaussian_attention import GaussianAttention
from softlab.operators.softmax import Softmax
from softlab.primitives.causal import by_halves, of_kept
from softlab.primitives.draws_intervals import Interval, answered, from_draws
from softlab.primitives.feature_maps import feature_sums
from softlab.primitives.normalization import indicator, over
from softlab.primitives.weighted_sums import Sums
from softlab.validation import Width


@value
class RandomFourier:
    """out = phi(q) (phi(k)^T v), phi(x) = [cos W x, sin W x] sqrt(2 / m), rows of W from N(0, I_d).

    phi(x) phi(y)^T = 2 / m sum_r cos <w_r, x - y> has the mean exp(-|x - y|^2 / 2). By target:

    - ``GaussianAttention(bandwidth)``: x = q / bandwidth, and the output is that sum; with
      ``normalization="row"`` it is divided by its row sums;
    - ``Softmax(scale)``: x = sqrt(scale) q and features exp(|x|^2 / 2) phi(x), whose products have
      the mean exp(<x, y>); divided by row sums. Random Feature Attention divides q and k by their
      norms before; here the factors stay, so that the target is softmax for any norms.

    ``features``: their number m, even, for m / 2 draws. ``target``: as above; symmetric
    normalisation is refused; of a causal one the sums run over the keys up to the query's own.
    ``weights``: how W is drawn. No n x l matrix is formed. float16 and bfloat16 are computed in
    float32.

    Entries and row sums can be negative; where a row sum is not positive, or underflows, the output
    is 0, so rows need not sum to one. Near such rows the output is large and wrong, which is what
    positive features (``Performer``) are for. The relative variance of an entry,
    (1 - exp(-|x - y|^2))^2 exp(|x - y|^2) / m, is small for near points and grows exponentially
    with their distance. Points are shifted by the mean of the keys that take part, or by the first
    key in a causal form, before their projection: products of features do not see it, but their
    rounding errors do.

    Reference: Rahimi and Recht, Random Features for Large-Scale Kernel Machines (2007), Alg. 1;
    arXiv 2103.02143 (RFA); arXiv 2009.14794, Lemma 2 (variance).
    """

    family: ClassVar = "features"
    knob: ClassVar = Knob("features", each=2)

    features: Width = 64
    target: Softmax | GaussianAttention = Softmax()
    weights: Weights = Orthogonal()

    def __post_init__(self) -> None:
        if self.features % 2:
            msg = (
                f"RandomFourier.features is {self.features}; a cosine and a sine are two, so give "
                f"an even number such as {self.features + 1}."
            )
            raise ValueError(msg)
        target: object = self.target
        if not isinstance(target, (Softmax, GaussianAttention)):
            msg = (
                f"RandomFourier.target is {target!r}; give a Softmax or a GaussianAttention, "
                "whose kernels have these features."
            )
            raise TypeError(msg)
        if isinstance(target, GaussianAttention) and target.normalization == "symmetric":
            msg = (
                "RandomFourier.target is normalised symmetrically, which needs positive degrees; "
                "give normalization='none' or 'row'."
            )
            raise ValueError(msg)

    @property
    def traits(self) -> Traits:
        """Unbiased before it is normalised; not normalised symmetric and PSD; can be negative."""
        plain = not self._normalized
        unbiased = self.weights.normal
        traits = Traits(
            query_equivariant=True,
            key_invariant=True,
            symmetric=plain,
            psd=plain,
            reciprocal=plain,
            low_rank=True,
            unbiased=unbiased,
            variance="equal" if unbiased and self.weights.independent else "",
            linear_memory=True,
            draws="features" if self.weights.independent or self.weights.orthogonal else "",
        )
        if self.target.causal:
            traits = dataclasses.replace(traits, draws="")
        return traits.made_causal() if self.target.causal else traits

    @property
    def _normalized(self) -> bool:
        return isinstance(self.target, Softmax) or self.target.normalization == "row"

    def _scale(self, d: int) -> float:
        """The factor of <q, k> in the exponent."""
        kernel = self.target.kernel(d)
        return kernel.bandwidth**-2 if isinstance(kernel, Gaussian) else kernel.scale or 1.0

    def _waves(self, x: Tensor) -> Tensor:
        """[cos W x, sin W x], (..., n, m)."""
        w = placed(type(self)._scaled, self, x.shape[-1], device=x.device, dtype=x.dtype)
        projected = x @ w.mT
        return torch.cat((projected.cos(), projected.sin()), -1)

    def _scaled(self, d: int) -> Tensor:
        """The weights for points whose products are to be multiplied by the scale."""
        return math.sqrt(self._scale(d)) * self.weights(self.features // 2, d)

    def _half(self, x: Tensor) -> Tensor:
        """|x|^2 / 2 for the softmax kernel, 0 for the Gaussian; (..., n, 1)."""
        if isinstance(self.target, GaussianAttention):
            return torch.zeros_like(x[..., :1])
        return self._scale(x.shape[-1]) * x.square().sum(-1, keepdim=True) / 2

    def cost(self, dims: Dims) -> Cost:
        """Projections and products, (n + l) m (d + 2 e); a factor exp(|x|^2 / 2) a token.

        Causal, as by the recurrence; by halves it is up to log2(n) / 2 times that.
        """
        tokens = dims.batch * (dims.n + dims.l)
        return Cost(
            flops=tokens * self.features * (dims.d + 2 * dims.e),
            kernel_entries=tokens if isinstance(self.target, Softmax) else 0,
        )

    @own_precision
    def kernel_matrix(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the estimate of the target's kernel, (..., n, l), before any normalisation."""
        dtype = q.dtype
        q, k = widened(q), widened(k)
        waves = self._waves(q) @ self._waves(k).mT * (2 / self.features)
        return (waves * (self._half(q) + self._half(k).mT).exp()).to(dtype)

    @own_precision
    def kernel_variance(self, q: Tensor, k: Tensor) -> Tensor:
        """The variance of ``kernel_matrix`` over independent weights, (..., n, l).

        (1 - exp(-|x - y|^2))^2 / m, times exp(|x|^2 + |y|^2) for the softmax kernel;
        arXiv 2009.14794, Lemma 2, there in the number of draws.
        """
        squares = (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1)
        of_cosines = (-self._scale(q.shape[-1]) * squares).expm1().square() / self.features
        return of_cosines * (2 * (self._half(q) + self._half(k).mT)).exp()

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        if self.target.causal:
            return of_kept(self._causal, q, k, v, key_mask)
        kept = indicator(v, key_mask)
        centre = (k.sum(-2, keepdim=True) / kept.sum(-2, keepdim=True)).detach()
        phi_q, phi_k = self._waves(q - centre), self._waves(k - centre)
        if not self._normalized:
            return (phi_q @ (phi_k.mT @ v)) * (2 / self.features)
        half = self._half(k)
        if key_mask is not None:
            half = half.masked_fill(~key_mask.unsqueeze(-1), -math.inf)
        # The factor exp(|q|^2 / 2) and the largest of the keys' cancel.
        weight = (half - half.detach().amax(-2, keepdim=True)).exp()
        degree = (phi_q * (weight * phi_k).sum(-2, keepdim=True)).sum(-1, keepdim=True)
        return over(phi_q @ (phi_k.mT @ (weight * v)), degree)

    @answered
    def interval(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, confidence: float
    ) -> Interval:
        """By how much each row errs, with stated odds over the draws of W.

        A row w_r of W is a draw, with its cosine and its sine: ``primitives.draws_intervals``.
        Where the degree is not told from zero there is no end.

        Args:
            q: queries (..., n, d).
            k: keys (..., l, d).
            v: values (..., l, e).
            key_mask: boolean, broadcastable to (..., l).
            confidence: 0.8 to below 1.
        """
        kept, m = indicator(v, key_mask), self.features // 2
        centre = k.sum(-2, keepdim=True) / kept.sum(-2, keepdim=True)
        half = self._half(k).masked_fill(kept == 0, -math.inf)
        weight = (half - half.amax(-2, keepdim=True)).exp() if self._normalized else kept
        columns = torch.cat((weight * v, weight), -1)
        of_keys = (self._waves(k - centre).mT @ columns).unflatten(-2, (2, m))
        of_queries = self._waves(q - centre).unflatten(-1, (2, m))
        (cos, sin), (c, s) = of_queries.unbind(-2), of_keys.unbind(-3)
        degree = cos * c[..., -1].unsqueeze(-2) + sin * s[..., -1].unsqueeze(-2)
        whole = degree.mean(-1, keepdim=True)
        mean = (cos @ c[..., :-1] + sin @ s[..., :-1]) / m
        if self._normalized:
            sound = whole > 0
            out = torch.where(sound, mean / torch.where(sound, whole, 1), 0)
            held, divided = degree, torch.where(sound, whole, 1)
            doubt = degree.std(-1) / math.sqrt(m) / divided.squeeze(-1)
            doubt = torch.where(sound.squeeze(-1), doubt, math.inf)
        else:
            out, held, divided = mean, torch.ones_like(degree), torch.ones_like(whole)
            doubt = torch.zeros_like(whole.squeeze(-1))
        # |cos C + sin S - held out|^2, by products of the coordinates.
        c, s = c[..., :-1], s[..., :-1]
        squares = cos.square() * c.square().sum(-1).unsqueeze(-2)
        squares = squares + sin.square() * s.square().sum(-1).unsqueeze(-2)
        squares = squares + 2 * cos * sin * (c * s).sum(-1).unsqueeze(-2)
        squares = squares - 2 * held * (cos * (out @ c.mT) + sin * (out @ s.mT))
        squares = squares + held.square() * out.square().sum(-1, keepdim=True)
        squares = squares.clamp_min(0) / divided.square()
        return from_draws(squares, doubt, None, confidence)

    def _causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        centre = k[..., :1, :].detach()
        waves = self._waves(q - centre), self._waves(k - centre)
        found = by_halves(_meet, waves[:1], (waves[1], self._half(k), v), self.features)
        if self._normalized:
            return found.average()
        return found.values * (2 / self.features)


def _meet(of_queries: Sequence[Tensor], of_keys: Sequence[Tensor]) -> Sums:
    (x,), (y, half, v) = of_queries, of_keys
    top = half.detach().amax(-2, keepdim=True)
    return feature_sums(x, y * (half - top).exp(), v, top.expand_as(x[..., :1]))
