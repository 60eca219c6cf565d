"""Softmax attention to a weighted few of the keys, chosen by randomly pivoted Cholesky."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, Dims, Knob, Traits, attention, own_precision, value, widened
from softlab.kernels import Exponential, Gaussian, kernel_cost
from softlab.landmarks.draws import drawn, uniforms
from softlab.landmarks.pivoting import Pivots, pivots
from softlab.operators.softmax import Softmax
from softlab.pinv import Cholesky, Solver, applier, applier_cost
from softlab.primitives.certificates import EXP, at_most, centre, certificate, chain, lengths, unit
from softlab.primitives.normalization import indicator, least, over, size
from softlab.primitives.nystrom_bounds import average_apart
from softlab.validation import Positive, Seed, Size

SPREAD = 40.0
"""Spread of the keys' exponents from which float32 gives way to float64, in whose range they are
weighed: gradients multiply and divide by their weights."""

LOST = 600.0
"""Spread beyond which weights vanish in float64."""


@value
class RPCholesky:
    """out = D^-1 exp(q k_S^T / sqrt(d)) W v, W = h(k_S, k_S)^-1 h(k_S, k), D the row sums.

    h(x, y) = exp(<x, y> / (temperature^2 sqrt(d))) of the keys less their mean, which softmax does
    not see. W, the same in numerator and D, gives each kept key the weights that best stand for all
    of them in the space of h. The m keys S are pivots of a partial Cholesky factorisation of
    h(k, k), drawn in turn with probability in proportion to the diagonal that is left.

    ``rank``: m, 1 to the number of keys that take part. ``temperature``: positive; 1 weighs the
    keys by the kernel of the scores themselves, more flattens h and lets it reach across keys of
    unlike norms. The released code takes sqrt(3.946 R_k / R_q) with the largest norms of keys and
    queries, and R_k for an R_q that it is not given: 1.986. ``seed``: integer >= 0, of the m
    uniform numbers that draw the pivots, the same for every matrix. ``pinv``: inverts the core,
    h(k_S, k_S) scaled to a unit diagonal, which is a Gaussian of the keys, by default through its
    Cholesky factor; others invert small entries less well, and lose keys of small norm to large.
    Evaluates m + 1 kernel values a key, with no l x l or n x l matrix. Once the diagonal is used up
    to rounding, 4 m eps of what it was, further pivots take no part.

    W has negative entries, so rows of M sum to one but are no averages; a query whose sum comes out
    near zero is answered far worse than by the mean of v, and where it is not positive by 0. A key
    is lost where its exponent |k|^2 / (2 temperature^2 sqrt(d)) is less than the largest by 470:
    where they spread by more than 40, float32 gives way to float64, whose range that is.

    Masked keys are never drawn nor counted. The released code differs: it clips the output to the
    range of v, which is not linear; with as many keys as pivots it turns exact without a kernel;
    it draws from the global generator, and on keys that repeat it divides by a diagonal of zero.
    Reference: Schroeder and Mackey, WildCat, arXiv 2602.10056, and its code, ``compress_kv.py`` and
    ``rp_nystrom.py``; Chen, Epperly, Tropp and Webber, arXiv 2207.06503, Alg. 1 (pivots).
    """

    family: ClassVar = "low rank"
    target: ClassVar = Softmax()
    knob: ClassVar = Knob("rank")

    rank: Size
    temperature: Positive = 2.0
    seed: Seed = 0
    pinv: Solver = Cholesky()

    @property
    def traits(self) -> Traits:
        """Low rank, linear memory."""
        return Traits(
            query_equivariant=True,
            low_rank=True,
            # Other solvers err in proportion to the largest weight, and scaling brings that out.
            exact_at="rank" if isinstance(self.pinv, Cholesky) else "",
            exact_at_rank_one=not self.pinv.traits.regularized,
            linear_memory=True,
            certified=True,
        )

    def kernel(self, d: int) -> Gaussian:
        """The kernel h scaled to a unit diagonal, at head width d."""
        return Gaussian(self.temperature * float(d) ** 0.25)

    def pivots(self, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Positions (..., m) of the pivots in the order drawn, for keys k (..., l, d).

        Where fewer are left to draw, keys not drawn before fill up.
        """
        return self._chosen(_centred(widened(k), key_mask), key_mask).at

    @own_precision
    def core(self, q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The Gaussian of the pivots, (..., m, m): what ``pinv`` must invert."""
        return _core(self._chosen(_centred(widened(k), key_mask), key_mask))

    def cost(self, dims: Dims) -> Cost:
        """The pivots' kernel rows and elimination, W v and W 1, and attention to the pivots."""
        b, m, l, e = dims.batch, self.rank, dims.l, dims.e
        rows = kernel_cost(Dims(b, m, l, dims.d, e), e + 1)
        elimination = Cost(flops=b * m * (m - 1) * l, kernel_entries=b * l)
        inverse = applier_cost(self.pinv, m, (e + 1,), b)
        return rows + elimination + inverse + kernel_cost(Dims(b, dims.n, m, dims.d, e), e + 1)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        validation.rank_fits(self.rank, validation.survivors(key_mask, k), "keys")
        k = _centred(k, key_mask)
        half = self._half(k)
        out = self._applied(q, k, v, half, key_mask)
        if out.dtype != torch.float32 or validation.unseen(out):
            return out
        wide = _spread(half.detach(), key_mask) > SPREAD
        if bool(wide.any()):
            q, k, v = (x[wide].double() for x in (q, k, v))
            mask = None if key_mask is None else key_mask[wide]
            exact = self._applied(q, k, v, self._half(k), mask).float()
            flat, at = out.reshape(-1, *out.shape[-2:]), wide.flatten().nonzero()[:, 0]
            out = flat.index_copy(0, at, exact).reshape(out.shape)
        return out

    at_most = at_most

    @certificate
    def bound(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, out: Tensor
    ) -> Tensor:
        """At least |out_i - exact_i|, (..., n).

        The scores' exponential is the kernel of the keys at a longer query,

            exp(<q, y> / sqrt(d)) = h(temperature^2 q, y) = g_x G(x, y) g_y,  x = temperature^2 q,

        with G the Gaussian of the keys and g_y = exp(|y|^2 / (2 temperature^2 sqrt(d))). A factor
        g_x of a row cancels in the average, g_y is a weight of key y, and what remains is an
        average under G with landmarks among the keys: ``primitives.nystrom_bounds``. The bound is
        honest and mostly useless: x is far from all keys, where G is tiny beside the residual, so
        that it is the farthest value from the output unless almost nothing is left of the keys.
        Computed in float64.

        Args:
            q: queries (..., n, d).
            k: keys (..., l, d).
            v: values (..., l, e).
            key_mask: boolean, broadcastable to (..., l).
            out: the output (..., n, e), if it is known.
        """
        validation.rank_fits(self.rank, validation.survivors(key_mask, k), "keys")
        centred = _centred(k, key_mask)
        z = self._pivots(centred, key_mask)
        u, root = unit(k), math.sqrt(k.shape[-1])
        middle, radius = centre(v.double(), key_mask)
        x, y, z = self.temperature**2 * q.double(), centred.double(), z.double()
        half = self._half(y)
        live = half if key_mask is None else half.masked_fill(~key_mask, -math.inf)
        weight = (half - live.amax(-1, keepdim=True)).exp().unsqueeze(-1)
        weight = weight * indicator(weight, key_mask)
        away = out.double() - middle
        found = average_apart(
            self.kernel(k.shape[-1]), z, x, y, v.double() - middle, weight, away, radius
        )
        # Keys less their mean are rounded, and so are the weights.
        fine = unit(y)
        slack = 2 * u * lengths(q.double()) * lengths(y).amax(-1, keepdim=True) / root
        slack = slack + (chain(k.shape[-1]) + 8) * fine * half.amax(-1, keepdim=True) + EXP * fine
        found = found + torch.tanh(slack / 2) * 2 * radius
        hull = lengths(away) + radius
        # Beyond this spread a weight may be lost though its key is not.
        found = torch.where(_spread(half, key_mask).unsqueeze(-1) < LOST, found, hull)
        return torch.minimum(found, hull)

    def _pivots(self, k: Tensor, key_mask: Tensor | None) -> Tensor:
        """The pivots (..., m, d) of centred keys, as the call draws them."""
        at = self._chosen(k, key_mask).at
        wide = _spread(self._half(k), key_mask) > SPREAD
        if k.dtype == torch.float32 and bool(wide.any()):
            mask = None if key_mask is None else key_mask[wide]
            at = at.clone()
            at[wide] = self._chosen(k[wide].double(), mask).at
        return k.gather(-2, at.unsqueeze(-1).expand(*at.shape, k.shape[-1]))

    def _applied(
        self, q: Tensor, k: Tensor, v: Tensor, half: Tensor, key_mask: Tensor | None
    ) -> Tensor:
        """The output for centred keys, whose exponents are twice ``half``."""
        chosen = self._chosen(k, key_mask)
        # h(x, y) = exp(half_x) Gaussian(x, y) exp(half_y): only differences of halves matter.
        most = half.detach()
        if key_mask is not None:
            most = most.masked_fill(~key_mask, -math.inf)
        weight = (half - most.amax(-1, keepdim=True)).exp().unsqueeze(-1)
        columns = torch.cat((v, indicator(v, key_mask)), -1)
        gathered = torch.where(chosen.live.unsqueeze(-1), chosen.rows @ (weight * columns), 0)
        gathered = applier(self.pinv, _core(chosen))(gathered)
        # A pivot's scale joins its score, where it cannot overflow; rows of zeros take no part.
        sizes = size(gathered).squeeze(-1)
        live = sizes > least(v.dtype)
        live = live | ~live.any(-1, keepdim=True)
        sizes = torch.where(live & (sizes > 0), sizes, 1)
        at = chosen.at
        score = sizes.log() - half.gather(-1, at)
        kept = k.gather(-2, at.unsqueeze(-1).expand(*at.shape, k.shape[-1]))
        q = torch.cat((q / math.sqrt(q.shape[-1]), torch.ones_like(q[..., :1])), -1)
        kept = torch.cat((kept, score.unsqueeze(-1)), -1)
        gathered = torch.where(live.unsqueeze(-1), gathered, 0) / sizes.unsqueeze(-1)
        both = Exponential(1.0).average(q, kept, gathered, live)
        return over(both[..., :-1], both[..., -1:])

    def _half(self, k: Tensor) -> Tensor:
        """Half the exponent of h(k, k), (..., l)."""
        return k.square().sum(-1) / (2 * self.temperature**2 * math.sqrt(k.shape[-1]))

    def _chosen(self, k: Tensor, key_mask: Tensor | None) -> Pivots:
        """Draw the pivots of centred keys k (..., l, d) in the working precision."""
        kernel, u = self.kernel(k.shape[-1]), uniforms(self.seed, "RPCholesky", self.rank)
        # Factors and diagonal are those of the Gaussian; the scale of h enters the odds alone.
        odds = 2 * self._half(k.detach())

        def choose(weight: Tensor, i: int) -> Tensor:
            return drawn((odds + weight.log()).softmax(-1), u[i])

        parts = pivots(k, self.rank, kernel, choose, taking_part=key_mask)
        at, live, rows = zip(*parts, strict=True)
        return Pivots(torch.cat(at, -1), torch.cat(live, -1), torch.cat(rows, -2))


def _centred(k: Tensor, key_mask: Tensor | None) -> Tensor:
    """The keys less the mean of those that take part; the others are zeros."""
    if key_mask is None:
        return k - k.mean(-2, keepdim=True)
    counted = key_mask.unsqueeze(-1)
    mean = torch.where(counted, k, 0).sum(-2, keepdim=True) / counted.sum(-2, keepdim=True)
    return torch.where(counted, k - mean, 0)


def _spread(half: Tensor, key_mask: Tensor | None) -> Tensor:
    """The largest less the least of (..., l) among those that take part, (...)."""
    if key_mask is None:
        return half.amax(-1) - half.amin(-1)
    dropped = ~key_mask
    most = half.masked_fill(dropped, -math.inf).amax(-1)
    return most - half.masked_fill(dropped, math.inf).amin(-1)


def _core(chosen: Pivots) -> Tensor:
    """The Gaussian of the pivots; rows and columns of the identity where one does not count."""
    among = chosen.at.unsqueeze(-2).expand(*chosen.at.shape, chosen.at.shape[-1])
    core = chosen.rows.gather(-1, among)
    both = chosen.live.unsqueeze(-1) & chosen.live.unsqueeze(-2)
    return torch.where(both, core, torch.eye(core.shape[-1], dtype=core.dtype, device=core.device))
