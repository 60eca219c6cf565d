"""SOFT: softmax-free attention by a Nystrom approximation of the Gaussian kernel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, Dims, Knob, Traits, attention, own_precision, value, widened
from softlab.kernels import Gaussian, kernel_cost
from softlab.landmarks import SegmentMeans, Selector
from softlab.operators.gaussian_attention import GaussianAttention
from softlab.pinv import SVD, NewtonRaphson, Solver, applier, applier_cost
from softlab.pinv.newton_raphson import of_landmarks
from softlab.primitives.certificates import at_most, centre, certificate
from softlab.primitives.normalization import (
    NORMALIZATIONS,
    faint,
    gathered,
    indicator,
    least,
    over,
    over_root,
    size,
    spread,
)
from softlab.primitives.nystrom_bounds import apart, average_apart
from softlab.validation import Bandwidth, OneOf, Size


@value
class Soft:
    """out = K(q, z) A^+ K(z, k) v with landmarks z of the keys and core A = K(z, z).

    ``rank``: number m of landmarks, 1 to the number of keys that take part. ``bandwidth``: of the
    Gaussian K, positive; None means SOFT's d**0.25. ``landmarks``: how z is chosen, by default the
    means of consecutive segments (SOFT's average pooling on a sequence). ``pinv``: how A is
    inverted, by default 20 Newton-Raphson steps. ``normalization``, with S = K(q, z) A^+ K(z, k):

    - ``"none"``: S, the method of the conference paper;
    - ``"row"``: D^-1 S, D the row sums of S;
    - ``"symmetric"``: D^-1/2 S D^-1/2 with the same D, degrees of keys taken by the same formula;
    - ``"published"``: K(q, z) D^-1/2 A^+ D^-1/2 K(z, k) with D the row sums of A, the m x m form of
      the released code. Another matrix than ``"symmetric"``, also at full rank.

    A row sum of S can be zero or negative; there D^-1 and D^-1/2 are taken as 0, and so is a
    symmetric row that would overflow, as queries far from all keys can make it. A matrix with sums
    so small that products of them underflow is computed apart, in float64; the entries of A^+ must
    be right there beside far larger ones, as those of iterations and of Cholesky are and those of
    an SVD are not. No n x m matrix is formed. SOFT ties q = k; with q != k the landmarks still come
    from the keys, so cross-attention is defined and masking a key equals deleting it. float16 and
    bfloat16 are computed in float32.

    Fails quietly, by design of the method, where the core is ill-conditioned and the iteration
    stops early: ask ``op.pinv.solve(op.core(q, k))``. Reference: arXiv 2110.11945, Eq. 6-10,
    Alg. 1-2; arXiv 2207.03341 (normalisation, abstract and released code).
    """

    family: ClassVar = "low rank"
    knob: ClassVar = Knob("rank")

    rank: Size
    bandwidth: Bandwidth | None = None
    landmarks: Selector = SegmentMeans()
    pinv: Solver = NewtonRaphson(steps=20)
    normalization: Annotated[str, OneOf(*(*NORMALIZATIONS, "published"))] = "none"

    @property
    def traits(self) -> Traits:
        """Low rank, linear memory; symmetric and PSD unless row-normalised."""
        by_row = self.normalization == "row"
        exact = not self.pinv.traits.regularized and self.normalization != "published"
        exact = exact and self.landmarks.means
        return Traits(
            query_equivariant=True,
            key_invariant=self.landmarks.equivariant,
            row_stochastic=by_row,
            symmetric=not by_row,
            psd=not by_row,
            reads="distances" if self.landmarks.means else "",
            below=self.normalization == "none",
            low_rank=True,
            exact_at="rank" if exact else "",
            exact_at_rank_one=exact,
            linear_memory=True,
            certified=self.normalization in ("none", "row"),
        )

    @property
    def target(self) -> GaussianAttention:
        """Gaussian attention of the same bandwidth and normalisation."""
        exact = "symmetric" if self.normalization == "published" else self.normalization
        return GaussianAttention(self.bandwidth, exact)

    def kernel(self, d: int) -> Gaussian:
        """The kernel at head width d."""
        return self.target.kernel(d)

    @own_precision
    def core(self, q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The core A = K(z, z), (..., m, m), of keys k (..., l, d): what ``pinv`` must invert."""
        _, k, _, key_mask = validation.admit(k, k, k, key_mask)
        z = self.landmarks(widened(k), self.rank, key_mask)
        return self.kernel(k.shape[-1]).matrix(z, z)

    def inverted_exactly(self) -> Soft:
        """The same with the pseudo-inverse of the core."""
        return dataclasses.replace(self, pinv=SVD())

    @own_precision
    def normalized_exactly(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None
    ) -> Tensor:
        """S v under the degrees of the target: D^-1 S, or D^-1/2 S D^-1/2, D of the exact kernel.

        What ``"published"`` aims at is the latter. Of ``"none"`` the output itself.
        """
        q, k, v, key_mask = validation.admit(q, k, v, key_mask)
        bare = dataclasses.replace(self, normalization="none")
        if self.normalization == "none":
            return bare(q, k, v, key_mask)
        dtype = v.dtype
        q, k, v = widened(q), widened(k), widened(v)
        kernel, ones = self.kernel(q.shape[-1]), indicator(v, key_mask)
        degree = kernel.apply(q, k, ones)
        if self.normalization == "row":
            return over(bare(q, k, v, key_mask), degree).to(dtype)
        scaled = over_root(v, kernel.apply(k, k, ones))
        return over_root(bare(q, k, scaled, key_mask), degree).to(dtype)

    def cost(self, dims: Dims) -> Cost:
        """The landmarks, two kernel sums, the core, its inverse, and the inverse's product.

        Of tied tokens K(q, z) is formed once for all its sums; a call that cannot hold it, or
        records a graph, forms it for each.
        """
        m, e = self.rank, dims.e
        inner = Dims(dims.batch, m, m, dims.d, e)
        out_of_keys = Dims(dims.batch, m, dims.l, dims.d, e)
        to_queries = Dims(dims.batch, dims.n, m, dims.d, e)
        to_keys = Dims(dims.batch, dims.l, m, dims.d, e)
        total = self.landmarks.cost(dims, m) + kernel_cost(inner, 0)
        if dims.tied:  # all sums but the last find the kernel formed
            again = dims.batch * dims.l * m * (3 if self.normalization == "symmetric" else 1)
            total += Cost(-2 * again * dims.d, -again)
        if self.normalization == "symmetric":
            total += applier_cost(self.pinv, m, (1, e), dims.batch)
            total += kernel_cost(out_of_keys, 1) + kernel_cost(to_keys, 1)
            return total + kernel_cost(out_of_keys, e) + kernel_cost(to_queries, e + 1)
        extra = 1 if self.normalization == "row" else 0
        total += applier_cost(self.pinv, m, (e + extra,), dims.batch)
        return total + kernel_cost(out_of_keys, e + extra) + kernel_cost(to_queries, e + extra)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        validation.rank_fits(self.rank, validation.survivors(key_mask, k), "keys")
        return self._through(self.landmarks(k, self.rank, key_mask), q, k, v, key_mask)

    at_most = at_most

    @certificate
    def bound(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, out: Tensor
    ) -> Tensor:
        """At least |out_i - exact_i|, (..., n), of ``normalization`` "none" and "row".

        What the kernel keeps from its landmarks is positive semidefinite, so that its diagonal
        bounds it: sqrt(R_ii) sum_j sqrt(R_jj) |v_j| and less, see ``primitives.nystrom_bounds``
        line by line. An inverse that has not converged enters as what it does to the output, per
        matrix and row. Holds for q != k: queries, keys and landmarks are points of one kernel. With
        degrees D, the bounds of numerator and of D make one of their ratio, never above the
        farthest value. "symmetric" takes degrees of keys from the same approximation, and
        "published" aims at another matrix: for these nothing is derived.

        Args:
            q: queries (..., n, d).
            k: keys (..., l, d).
            v: values (..., l, e).
            key_mask: boolean, broadcastable to (..., l).
            out: the output (..., n, e), if it is known.
        """
        validation.rank_fits(self.rank, validation.survivors(key_mask, k), "keys")
        z, kernel = self.landmarks(k, self.rank, key_mask), self.kernel(q.shape[-1])
        if self.normalization == "none":
            return apart(kernel, z, q, k, v, out)
        middle, radius = centre(v, key_mask)
        ones = indicator(v, key_mask)
        return average_apart(kernel, z, q, k, v - middle, ones, out - middle, radius)

    @own_precision
    def at(
        self, z: Tensor, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None
    ) -> Tensor:
        """The same through given landmarks z (..., m, d), in the place of the selector's.

        They may have been learnt; ``rank`` and ``landmarks`` play no part. Differentiable in z.
        """
        q, k, v, key_mask = validation.admit(q, k, v, key_mask)
        validation.finite("z", z)
        return self._through(widened(z), q, k, v, key_mask)

    def _through(
        self, z: Tensor, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None
    ) -> Tensor:
        dtype = v.dtype
        q, k, v = widened(q), widened(k), widened(v)
        kernel = self.kernel(q.shape[-1])
        core, inverted = self._inverted(z, kernel)
        if k is q:
            to_queries, to_landmarks = kernel.both_ways(q, z)
            to_keys = to_queries
        else:
            to_queries, to_keys, to_landmarks = (
                partial(kernel.apply, *points) for points in ((q, z), (k, z), (z, k))
            )

        def gather(columns: Tensor) -> Tensor:
            """A^+ K(z, k) columns, (..., m, columns)."""
            return inverted(to_landmarks(columns))

        if self.normalization == "none":
            return to_queries(gather(v)).to(dtype)
        if self.normalization == "published":
            degree = core.sum(-1, keepdim=True)
            taken = over_root(inverted(over_root(to_landmarks(v), degree)), degree)
            return to_queries(taken).to(dtype)
        ones = indicator(v, key_mask)
        if self.normalization == "row":
            both, divide = to_queries(gather(torch.cat((v, ones), -1))), over
            small = faint(both[..., -1:])
        else:
            weights, divide = gather(ones), over_root  # K(x, z) @ weights is the degree of x
            of_keys = to_keys(weights)
            small = faint(of_keys, key_mask)
            scaled = over_root(v, torch.where(small[..., None, None], 1, of_keys))
            both = to_queries(torch.cat((gather(scaled), weights), -1))
            small = small | faint(both[..., -1:])
        # Of a matrix computed anew nothing counts here, its gradients included.
        out = divide(both[..., :-1], torch.where(small[..., None, None], 1, both[..., -1:]))
        if not validation.unseen(small) and bool(validation.values_of(small).any()):
            out = self._faint(out, small, z, q, k, v, ones)
        return out.to(dtype)

    def _inverted(self, z: Tensor, kernel: Gaussian) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The core, and the map of columns B to A^+ B."""
        both = of_landmarks(self.pinv, z, kernel.bandwidth**2)
        if both is None:
            core = kernel.matrix(z, z)
            return core, applier(self.pinv, core)
        core, inverse = both
        return core, partial(torch.matmul, inverse)

    def _faint(
        self, out: Tensor, at: Tensor, z: Tensor, q: Tensor, k: Tensor, v: Tensor, ones: Tensor
    ) -> Tensor:
        """``out`` with the matrices ``at`` computed anew, in which kernel sums underflow.

        Where all tokens are far from all landmarks the sums are tiny and their quotients are not.
        In float64, whose range the weights of landmarks need.
        """
        lead, unit = out.shape[:-2], self.kernel(q.shape[-1]).bandwidth
        z, q, k, v, ones = (x.expand(*lead, *x.shape[-2:])[at].double() for x in (z, q, k, v, ones))
        z, q, k = z / unit, q / unit, k / unit
        columns = ones if self.normalization == "symmetric" else torch.cat((v, ones), -1)
        sums, of_sums = gathered(z, k, columns, ones.log())
        floor = least(v.dtype)
        live = size(sums[..., -1:]) > floor  # a landmark with nothing near it takes no part
        inverted = applier(self.pinv, Gaussian(1.0).matrix(z, z))

        def solved(sums: Tensor) -> Tensor:
            return torch.where(live, inverted(torch.where(live, sums, 0)), 0)

        columns = solved(sums)
        # So small a weight is not known, but where it might matter the degree counts as zero.
        weight = size(columns).clamp_min(floor)
        rounding = torch.finfo(v.dtype).eps * columns[..., -1:].detach().abs().amax(-2, True)

        def weighed(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            both, scale = spread(x, z, columns, weight)
            degree = both[..., -1:]
            return both[..., :-1], torch.where(degree > rounding, degree, 0), scale

        found, degree, of_degrees = weighed(q)
        if self.normalization == "row":
            exact = over(found, degree)
        else:
            _, of_key, of_keys = weighed(k)
            lift = torch.where(of_key > 0, ones.log() - of_keys / 2, -math.inf)
            sums, of_scaled = gathered(z, k, over_root(v, of_key), lift)
            columns = solved(sums)
            both, of_queries = spread(q, z, columns, size(columns))
            back = of_queries + of_scaled - of_sums - of_degrees / 2
            kept = (degree > 0) & (back < math.log(torch.finfo(out.dtype).max) / 2)
            exact = torch.where(kept, back, -math.inf).exp() * over_root(both, degree)
        flat, rows = out.reshape(-1, *out.shape[-2:]), at.flatten().nonzero()[:, 0]
        return flat.index_copy(0, rows, exact.to(out.dtype)).reshape(out.shape)
