"""A band of softmax attention for near keys, blended with linear attention for far ones."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from torch import Tensor
from torch.nn.functional import softplus

from softlab.core import Cost, Dims, Knob, Traits, attention, value
from softlab.operators.linear_attention import LinearAttention
from softlab.operators.local import Local
from softlab.operators.softmax import Softmax
from softlab.primitives.causal import of_kept
from softlab.primitives.feature_maps import causal_feature_average, feature_average, log_elu
from softlab.validation import Integers, Share, Size


@value
class BandLowRank:
    """out = blend * near + (1 - blend) * far, both averages of v, their weights fixed.

    near_i = sum_{j in B_i} exp(s_ij) v_j / sum_{j in B_i} exp(s_ij), s = q k^T / sqrt(d), over the
    keys within ``window`` of the query on either side, at least 1, as in ``Local``. far is the mean
    of ``kernels`` linear attentions, 1 to 3 of them, each normalised by itself, sum_j <phi(q_i),
    phi(k_j)> v_j / sum_j <phi(q_i), phi(k_j)>, with phi(x) = elu(x) + 1, elu(-x) + 1, tanh(x) + 1
    in this order. ``blend``: share of the band, 0 to 1; 1 is ``Local(window)``, and 0 with one
    kernel ``LinearAttention()``. ``causal``: both sums over keys run to the query's own, and there
    are as many; masked tokens are deleted, queries too.

    It promises no error. The far field covers the keys of the band too, no feature map estimates
    the exponential, and nothing ties the shares to the mass that the target puts on near and far
    keys: a row on one far key is missed, and with blend < 1 so is a row on its own key. The paper
    learns the weights; at the fixed ones trained layers have to be trained again. Memory is linear
    in n and l. float16 and bfloat16 are computed in float32.

    The published code learns a weight for each channel, of the band from 0 and of each kernel from
    1 / kernels, so rows need not sum to one. It divides each phi(k_j) by the sum of its entries,
    which is another kernel, and adds 1e-6 to each row sum; here logarithms of features are averaged
    exactly. Reference: arXiv 2108.02347 (FMMformer) and its code, ``causal_fmm_attention``.
    """

    family: ClassVar = "hybrid"
    knob: ClassVar = Knob("window")

    window: Size
    kernels: Annotated[int, Integers(1, 3, says=", and there are three; give 1 to 3.")] = 1
    blend: Share = 0.5
    causal: bool = False

    @property
    def traits(self) -> Traits:
        """Averages of v in linear memory; positions matter."""
        traits = Traits(
            row_stochastic=True,
            nonnegative=True,
            exact_at="window" if self.blend == 1 else "",
            linear_memory=True,
            padded=True,
        )
        return traits.made_causal() if self.causal else traits

    @property
    def target(self) -> Softmax:
        """Softmax attention."""
        return Softmax(causal=self.causal)

    def cost(self, dims: Dims) -> Cost:
        """That of ``Local``, and of ``LinearAttention`` for each kernel."""
        far = [LinearAttention(self.causal).cost(dims)] * self.kernels
        return sum(far, self._local.cost(dims))

    @property
    def _local(self) -> Local:
        return Local(self.window, causal=self.causal)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        if self.causal:
            return of_kept(self._blend, q, k, v, key_mask)
        return self._blend(q, k, v, key_mask)

    def _blend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        out = self.blend * self._local(q, k, v, key_mask)
        weight = (1 - self.blend) / self.kernels
        for log_phi in (log_elu, _log_mirrored, _log_tanh)[: self.kernels]:
            a, b = log_phi(q), log_phi(k)
            if self.causal:
                far = causal_feature_average(a, b, v)
            else:
                far = feature_average(a, b, v, key_mask)
            out = out + weight * far
        return out


def _log_mirrored(x: Tensor) -> Tensor:
    """log(elu(-x) + 1)."""
    return log_elu(-x)


def _log_tanh(x: Tensor) -> Tensor:
    """log(tanh(x) + 1), where tanh(x) + 1 = 2 / (1 + exp(-2 x)) keeps its digits for x << 0."""
    return math.log(2) - softplus(-2 * x)
