"""Skyformer: the Gaussian kernel of queries and keys, lifted to one PSD matrix and sampled."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, Dims, Knob, Traits, attention, own_precision, value, widened
from softlab.kernels import kernel_cost
from softlab.landmarks import Selector, UniformRandom
from softlab.operators.gaussian_attention import GaussianAttention
from softlab.pinv import SVD, NystromformerCubic, Solver, applier, applier_cost
from softlab.primitives.certificates import at_most, certificate
from softlab.primitives.nystrom_bounds import apart
from softlab.validation import Bandwidth, NotNegative, Size


@value
class Skyformer:
    """out = K(q, z) D^-1/2 A^+ D^-1/2 K(z, k) v with landmarks z among the points [q; k].

    A = D^-1/2 (K(z, z) + gamma I) D^-1/2, D the row sums of K(z, z) + gamma I. The Gaussian K(q, k)
    of unequal queries and keys is no PSD matrix, but the off-diagonal block of one, K([q; k], [q;
    k]); the Nystrom approximation of that, cut to the block, is this. With A inverted exactly D
    cancels, and what remains is K(q, z) (K(z, z) + gamma I)^-1 K(z, k).

    ``rank``: number m of landmarks, 1 to the number of queries and keys that take part. ``gamma``:
    shift of the core, at least 0 in the units of a kernel whose diagonal is 1; the released code
    has 0.1. ``bandwidth``: of K, positive; None means d**0.25, the paper's exp(-|q - k|^2 / (2
    sqrt(d))). ``landmarks``: how z is chosen among the n + l points, queries first, by default
    uniformly and without replacement. ``pinv``: how A is inverted, by default 6 steps of
    Nystromformer's cubic iteration, scaled per matrix: the eigenvalues of A lie in (0, 1] where
    gamma > 0, so that it converges, in more steps where gamma is small.

    Masked keys are as good as deleted; landmarks come from all queries, so in self-attention on a
    padded batch pass ``query_mask`` as well. Landmarks are chosen by position, so the order of the
    queries matters, and an output depends on the other queries. Fails where the kernel underflows,
    as its target does, and where gamma is not small beside the eigenvalues s that matter: even at
    full rank those of the lifted matrix become s^2 / (s + gamma), so M errs by up to gamma.

    The released code differs: it draws half of the landmarks among the queries and half among the
    keys, with replacement, anew at each call; its iteration is scaled by a maximum over the batch;
    its bandwidth is 32**0.25 whatever d is; masked tokens are multiplied by 0, and so still are
    points of the kernel. Reference: Chen et al., arXiv 2111.00035 (lifting, sampling and the
    normalised core); released code, ``attention_skyformer.py`` (order of shift and scaling).
    """

    family: ClassVar = "low rank"
    knob: ClassVar = Knob("rank")

    rank: Size
    gamma: NotNegative = 0.1
    bandwidth: Bandwidth | None = None
    landmarks: Selector = UniformRandom()
    pinv: Solver = NystromformerCubic(steps=6)

    @property
    def traits(self) -> Traits:
        """Low rank, linear memory; PSD where queries and keys are tied."""
        exact = self.gamma == 0 and not self.pinv.traits.regularized and self.landmarks.means
        return Traits(
            symmetric=True,
            psd=True,
            reads="distances" if self.landmarks.means else "",
            below=True,
            low_rank=True,
            lifted=True,
            exact_at="rank" if exact else "",
            exact_at_rank_one=exact,
            linear_memory=True,
            certified=True,
        )

    @property
    def target(self) -> GaussianAttention:
        """Gaussian attention of the same bandwidth, not normalised."""
        return GaussianAttention(self.bandwidth)

    @own_precision
    def core(self, q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """The normalised core A, (..., m, m): what ``pinv`` must invert."""
        q, k, _, key_mask = validation.admit(q, k, k, key_mask)
        points, mask = _lifted(q, k, key_mask, None)
        return self._core(self.landmarks(widened(points), self.rank, mask))[0]

    def inverted_exactly(self) -> Skyformer:
        """The same with gamma = 0 and the pseudo-inverse of the core."""
        return dataclasses.replace(self, gamma=0.0, pinv=SVD())

    def normalized_exactly(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None
    ) -> Tensor:
        """The output itself: the target has no degrees, and D is the solver's preconditioner."""
        return self(q, k, v, key_mask)

    def cost(self, dims: Dims) -> Cost:
        """The landmarks, two kernel sums, the core, its inverse, and the inverse's product."""
        m, e = self.rank, dims.e
        points = dataclasses.replace(dims, l=dims.n + dims.l, tied=False)
        return (
            self.landmarks.cost(points, m)
            + kernel_cost(Dims(dims.batch, m, m, dims.d, e), 0)
            + applier_cost(self.pinv, m, (e,), dims.batch)
            + kernel_cost(Dims(dims.batch, m, dims.l, dims.d, e), e)
            + kernel_cost(Dims(dims.batch, dims.n, m, dims.d, e), e)
        )

    @attention
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

        ``query_mask``: boolean, broadcastable to (..., n); landmarks come from the queries that it
        keeps, and from the keys.
        """
        if query_mask is not None:
            query_mask = validation.admit_mask(query_mask, q, "query_mask", "query")
        points, mask = _lifted(q, k, key_mask, query_mask)
        validation.rank_fits(self.rank, validation.survivors(mask, points), "queries and keys")
        kernel = self.target.kernel(q.shape[-1])
        z = self.landmarks(points, self.rank, mask)
        core, scale = self._core(z)
        inverted = applier(self.pinv, core)
        gathered = scale * inverted(scale * kernel.apply(z, k, v))
        return kernel.apply(q, z, gathered)

    at_most = at_most

    @certificate
    def bound(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, out: Tensor
    ) -> Tensor:
        """At least |out_i - exact_i|, (..., n), for landmarks of all queries.

        As of ``Soft``, see ``primitives.nystrom_bounds``: landmarks among queries and keys are
        points of the same kernel. The shift ``gamma`` enters as what it does to the output, which
        is most of the bound where the landmarks are many.

        Args:
            q: queries (..., n, d).
            k: keys (..., l, d).
            v: values (..., l, e).
            key_mask: boolean, broadcastable to (..., l).
            out: the output (..., n, e), if it is known.
        """
        points, mask = _lifted(q, k, key_mask, None)
        validation.rank_fits(self.rank, validation.survivors(mask, points), "queries and keys")
        z = self.landmarks(points, self.rank, mask)
        return apart(self.target.kernel(q.shape[-1]), z, q, k, v, out)

    def _core(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """A and the diagonal of D^-1/2, (..., m, 1)."""
        shifted = self.target.kernel(z.shape[-1]).matrix(z, z)
        shifted = shifted + self.gamma * torch.eye(self.rank, dtype=z.dtype, device=z.device)
        scale = shifted.sum(-1, keepdim=True).rsqrt()  # of sums of at least 1
        return scale * shifted * scale.mT, scale


def _lifted(
    q: Tensor, k: Tensor, key_mask: Tensor | None, query_mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The points [q; k] (..., n + l, d) and their mask, None where all take part."""
    q, k = validation.aligned(q=q, k=k)
    points = torch.cat((q, k), -2)
    if key_mask is None and query_mask is None:
        return points, None
    masks = [
        torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        if mask is None
        else mask.expand(x.shape[:-1])
        for mask, x in ((query_mask, q), (key_mask, k))
    ]
    return points, torch.cat(masks, -1)
