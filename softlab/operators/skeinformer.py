"""Skeinformer: columns drawn by what pilot rows say of them, and one entry for all the others."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, Dims, Knob, Stream, Traits, attention, own_precision, value
from softlab.operators.softmax import Softmax
from softlab.primitives.banded import rows
from softlab.primitives.sort_lsh import over_survivors
from softlab.validation import Seed, Size


class Draws(NamedTuple):
    """What is random for n queries and l keys: the same in every matrix.

    ``pilots``: the ``rank`` queries whose rows are exact, drawn with replacement. ``races``: one
    number from the exponential distribution for each key, float64.
    """

    pilots: Tensor
    races: Tensor


@value
class Skeinformer:
    """out_i = (sum_S a_ij v_j + g_i sum_{not S} v_j) / (sum_S a_ij + (l - m) g_i).

    Sums are over keys j, a_ij = exp(s_ij), s = q k^T / sqrt(d), and g_i is the geometric mean of
    a_ij over S, which stands for every entry that is not formed. S are m = ``rank`` keys, 1 to
    those that take part, drawn without replacement with probabilities proportional to

        (sum_{i in J} P_ij^2)^(1/2) |v_j|, P = softmax(s),

    J the pilots: as many queries as ``rank``, drawn uniformly with replacement. Their rows are
    formed whole for this, and returned exactly. ``seed``: integer >= 0, of both draws. Keys are
    drawn by exponential races, key j first where E_j over its probability is least. S is found in
    float64, and is a constant of the gradient.

    Exact with rank at the number of keys, at the pilots, and where all tokens are equal. The sums
    are those of a sample that knows the pilots and the lengths of the values alone: a key that is
    heavy for no pilot is found by chance. The fill-in is no estimate of what it stands for: the
    geometric mean lies below the arithmetic one, and S is drawn from the heavy keys, so where few
    keys carry the mass it is too high, and draws outputs to the mean of v. The published error
    bound is that of a sample without it, as its authors say in Sec. 4.2. S depends on v, so out is
    not linear in v, and on the order of queries and keys.

    Reference: Chen et al., arXiv 2112.05359, Algorithm 1, and its code,
    ``models/attention_skeinformer.py``, which forms exp(s) without a shift, so that large scores
    overflow, and draws at most one key less than there are.
    """

    family: ClassVar = "sampling"
    target: ClassVar = Softmax()
    knob: ClassVar = Knob("rank")

    rank: Size
    seed: Seed = 0

    @property
    def traits(self) -> Traits:
        """Averages of v that depend on v; exact where all keys are drawn; linear memory."""
        return Traits(
            linear_in_v=False,
            row_stochastic=True,
            nonnegative=True,
            exact_at="rank",
            exact_at_rank_one=True,
            linear_memory=True,
        )

    def draws(self, queries: int, keys: int) -> Draws:
        """What is drawn for so many queries and keys."""
        pilots = Stream(self.seed, "Skeinformer, pilots").integers(queries, self.rank)
        u = Stream(self.seed, "Skeinformer, keys").uniform(keys)
        return Draws(pilots, -(-u).log1p())

    def cost(self, dims: Dims) -> Cost:
        """Whole rows of the pilots, and columns of the drawn keys: 2 m (n + l) (d + e) a matrix."""
        met = dims.batch * self.rank * (dims.n + dims.l)
        return Cost(
            flops=2 * met * (dims.d + dims.e),
            kernel_entries=met + dims.batch * dims.n,
        )

    @own_precision
    def keys(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return S, (..., m) in the order of the keys, of q (..., n, d), k and v (..., l, e)."""
        q, k, v, _ = validation.admit(q, k, v)
        validation.rank_fits(self.rank, k.shape[-2], "keys")
        flat = (x.detach().reshape(-1, *x.shape[-2:]) for x in (q, k, v))
        _, at = self._drawn(*flat)
        return at.reshape(*q.shape[:-2], self.rank)

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        validation.rank_fits(self.rank, validation.survivors(key_mask, k), "keys")
        return over_survivors(self._filled, q, k, v, key_mask)

    def _drawn(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The rows P_J (B, m, l) of the pilots, and S (B, m), in float64."""
        draws = self.draws(q.shape[1], k.shape[1])
        # Scaled before the product: these rows are the largest tensors of a call.
        x = q.index_select(1, draws.pilots.to(q.device)).double() / math.sqrt(q.shape[-1])
        whole = (x @ k.double().mT).softmax(-1)
        # The scale of the values does not matter, and their squares must not overflow.
        largest = v.detach().double().abs().amax((-2, -1), keepdim=True)
        lengths = torch.linalg.vector_norm(
            v.detach().double() / largest.where(largest > 0, 1), dim=-1
        )
        weight = torch.linalg.vector_norm(whole.detach(), dim=1) * lengths
        # The least E / weight, as logarithms: a key of no weight comes last.
        late = draws.races.to(q.device).clamp_min(1e-300).log() - weight.log()
        at = late.argsort(dim=-1, stable=True)[:, : self.rank].sort(dim=-1).values
        return whole, at

    def _filled(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output (B, n, e) for keys that all take part."""
        whole, at = self._drawn(q, k, v)
        exact = whole.to(v.dtype) @ v
        del whole  # in float64, as large as what follows
        drawn_k, drawn_v = rows(k, at), rows(v, at)
        scores = q @ drawn_k.mT / math.sqrt(q.shape[-1])
        left = k.shape[1] - self.rank
        others = (v.sum(1, keepdim=True) - drawn_v.sum(1, keepdim=True)) / max(1, left)
        level = scores.mean(-1, keepdim=True) + (math.log(left) if left else -math.inf)
        weights = torch.cat((scores, level), -1).softmax(-1)
        out = weights[..., :-1] @ drawn_v + weights[..., -1:] * others
        # A query that is drawn twice has one row.
        first = torch.full((q.shape[1],), -1, device="cpu")
        pilots = self.draws(q.shape[1], k.shape[1]).pilots.tolist()
        for row, query in reversed([*enumerate(pilots)]):
            first[query] = row
        known = (first >= 0).to(q.device).unsqueeze(-1)
        return torch.where(known, exact.index_select(1, first.clamp_min(0).to(q.device)), out)
