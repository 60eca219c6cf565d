"""Attention Matching: a few keys, with weights and new values, that answer sample queries."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Cost, Dims, Knob, Traits, attention, own_precision, placed, value
from softlab.operators.softmax import Softmax
from softlab.primitives.banded import rows
from softlab.primitives.sort_lsh import over_survivors
from softlab.validation import Numbers, OneOf, Size

CHOICES = ("pursuit", "attention")
Ridge = Annotated[float, Numbers(1e-8, 1e8)]
NEGLIGIBLE = 1e-12
"""Of the largest number: less is rounding; also the ridge with which keys are looked for."""
FLAT = 1e-10
"""Of the steepest slope that there can be: beyond it no key lessens what is left."""
ATTEMPTS = 3
"""Keys that the search takes up at most, for each that is kept: some are let go again."""
ROUNDS = 10
"""Changes of sides an entry, of which each usually takes one or two."""
LEAST = 1e-100
"""Of a level of rows that see none of the kept keys: their weights are then 1."""


class Compact(NamedTuple):
    """What stands for all keys and values of a matrix, in float64.

    ``at``: the kept keys (..., m), in their order; ``logs``: log w (..., m), -inf where a key has
    no weight; ``values``: V_C (..., m, e).
    """

    at: Tensor
    logs: Tensor
    values: Tensor


@value
class AttentionMatching:
    """out = softmax(q k_C^T / sqrt(d) + log w) V_C, C being m of the keys.

    With r reference queries, P their rows of softmax(q k^T / sqrt(d)), r x l, and P_C its columns
    at the kept keys, the weights match the sums of exponentials, each over its size, and the values
    the outputs:

        w   = argmin_{w >= 0} |P_C w - 1|^2 + a |w - 1|^2,
        V_C = argmin_V |X V - P v|^2 + b |V - v_C|^2,   X = softmax(q k_C^T / sqrt(d) + log w),

    a = ``ridge`` |P_C|^2 / m, b = ``ridge`` |X|^2 / m, norms Frobenius. So much ridge that nothing
    is matched leaves softmax over the kept keys, as where others are evicted; little of it matches
    the references and, where keys are as many as they, misses others. ``ridge``: 1e-8 to 1e8.
    ``rank``: m, 1 to the number of keys that take part. ``references``: r at least 1, of the call's
    own queries, evenly spaced; all of them where they are fewer, padding among them too.
    ``choice`` of the keys:

    - ``"pursuit"``: in turn the key along whose column |P_C w - 1|^2 falls the most steeply, with w
      fitted again after each. A key whose weight becomes 0 is let go. This is the active-set method
      of Lawson and Hanson for all keys, stopped at m of them.
    - ``"attention"``: those with the largest root mean square of P over the references. They also
      fill up what the pursuit leaves empty.

    Rows of M sum to one; entries are negative where a value is no average of those it stands for.
    Linear in v, since no value has a part in C or w. Exact with rank at the number of keys: w = 1
    and V = v miss nothing. At the references, as the ridge goes to 0, "pursuit" with rank >= r
    keeps the sums: w = 1 on all keys attains them, so that the method ends there, with at most r
    keys of independent columns (Caratheodory). It keeps the outputs too where r of the kept columns
    are independent, since X V = P v has then a solution. Nothing is promised of other queries. It
    fails where each query has keys of its own: what no reference sees is not kept.

    C is found in float64 and is a constant of the gradient, as is the set of keys of no weight; w
    and V are differentiated. The queries answer for each other, so there is no causal form: compact
    a prompt, and let later queries attend to what ``compact`` returns.

    Reference: Zweiger et al., arXiv 2602.16284, Sec. 3, which matches sums less a common factor of
    a row instead of relative ones, bounds the weights in its code, and has queries of a prompt that
    asks to repeat the context.
    """

    family: ClassVar = "low rank"
    target: ClassVar = Softmax()
    knob: ClassVar = Knob("rank")

    rank: Size
    references: Size = 128
    choice: Annotated[str, OneOf(*CHOICES)] = "pursuit"
    ridge: Ridge = 0.01

    @property
    def traits(self) -> Traits:
        """Rows that sum to one, of low rank, by scores alone; linear memory."""
        return Traits(
            row_stochastic=True,
            reads="relative scores",
            low_rank=True,
            exact_at="rank",
            linear_memory=True,
        )

    def places(self, queries: int) -> list[int]:
        """Which of so many queries are references."""
        r = min(self.references, queries)
        return [(2 * i + 1) * queries // (2 * r) for i in range(r)]

    def cost(self, dims: Dims) -> Cost:
        """Whole rows of the references, a pass over them for each key found, and m keys a query.

        Two least squares of r rows by normal equations, and one factorisation for each key found.
        """
        b, m, r = dims.batch, self.rank, min(self.references, dims.n)
        searches = min(m, r) if self.choice == "pursuit" else 0
        products = r * dims.l * (dims.d + dims.e + searches)
        products += r * m * dims.e + dims.n * m * (dims.d + dims.e)
        solved = (searches + 2) * (m**3 // 3) + 4 * r * m**2 + 2 * m * (r + m) * dims.e
        return Cost(2 * b * products, b * (r * (dims.l + m) + dims.n * m), b * solved)

    @own_precision
    def compact(self, q: Tensor, k: Tensor, v: Tensor) -> Compact:
        """Return what stands for keys k (..., l, d) and values v (..., l, e), in float64.

        A named tuple: ``at``, the kept keys (..., m), ``logs``, their log weights (..., m), and
        ``values`` (..., m, e).
        The references are taken from q (..., n, d). Any query attends to it by
        ``softmax(q k[at]^T / sqrt(d) + logs) values``.
        """
        q, k, v, _ = validation.admit(q, k, v)
        validation.rank_fits(self.rank, k.shape[-2], "keys")
        lead = q.shape[:-2]
        found = self._compact(*(x.reshape(-1, *x.shape[-2:]) for x in (q, k, v)))
        return Compact(*(x.reshape(*lead, *x.shape[1:]) for x in found))

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        validation.rank_fits(self.rank, validation.survivors(key_mask, k), "keys")
        return over_survivors(self._attend, q, k, v, key_mask)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output (B, n, e) for keys that all take part."""
        at, logs, values = self._compact(q, k, v)
        scores = q @ rows(k, at).mT / math.sqrt(q.shape[-1]) + logs.to(q.dtype).unsqueeze(1)
        return scores.softmax(-1) @ values.to(v.dtype)

    def _compact(self, q: Tensor, k: Tensor, v: Tensor) -> Compact:
        places = placed(self._places, q.shape[1], device=q.device)
        x = q.index_select(1, places).double() / math.sqrt(q.shape[-1])
        scores = x @ k.double().mT
        whole = scores.softmax(-1)
        seen = whole.detach()
        worth = seen.square().sum(1)
        if self.choice == "pursuit":
            most = min(self.rank, seen.shape[1])  # as many keys as rows match their sums
            worth = torch.where(pursued(seen, most) > 0, math.inf, worth)
        order = worth.argsort(dim=-1, descending=True, stable=True)
        at = order[:, : self.rank].sort(dim=-1).values
        return matched(scores, whole, v.double(), at, self.ridge)

    def _places(self, queries: int) -> Tensor:
        return torch.tensor(self.places(queries), device="cpu")


def matched(scores: Tensor, whole: Tensor, v: Tensor, at: Tensor, ridge: float) -> Compact:
    """What the kept keys ``at`` (B, m) need to stand for all of them before the references.

    In float64: the references' ``scores`` (B, r, l), ``whole``, their softmax, and v (B, l, e).
    """
    among = at.unsqueeze(1).expand(-1, scores.shape[1], -1)
    few, seen, own = scores.gather(-1, among), whole.gather(-1, among), rows(v, at)
    gram = _gram(seen, ridge)
    with torch.no_grad():
        missed = seen.mT @ (1 - seen.sum(-1, keepdim=True))
        live = nonnegative(gram, (gram.sum(-1, keepdim=True) + missed).squeeze(-1)) > 0
    # Both fits are of what is added, to 1 and to v_C: with all keys that is nothing.
    weighed = torch.where(live.unsqueeze(1), seen, 0)
    added = _solved(gram, weighed.mT @ (1 - weighed.sum(-1, keepdim=True)), live).squeeze(-1)
    logs = torch.where(live, 1 + added, 1).log().masked_fill(~live, -math.inf)
    x = (few + logs.unsqueeze(1)).softmax(-1)
    left = whole @ v - x @ own
    return Compact(at, logs, own + _solved(_gram(x, ridge), x.mT @ left))


def pursued(whole: Tensor, m: int) -> Tensor:
    """Weights (B, l) >= 0, at most m of them positive, with which rows ``whole`` nearly sum to 1.

    The active-set method of Lawson and Hanson for |whole w - 1|^2, one key after another, until
    m are in use or no key lessens it: then w is optimal among all weights. ``whole``: (B, r, l).
    """
    b, r, l = whole.shape
    at, live = whole.new_zeros(b, m, dtype=torch.long), whole.new_zeros(b, m, dtype=torch.bool)
    columns, gram = whole.new_zeros(b, r, m), whole.new_zeros(b, m, m)
    weights, w = whole.new_zeros(b, l), whole.new_zeros(b, m)
    slots = torch.arange(m, device=whole.device)
    for _ in range(ATTEMPTS * m):
        left = 1 - columns @ w.unsqueeze(-1)
        slope = (left.mT @ whole).squeeze(1).masked_fill(weights > 0, -1)
        steepest, key = slope.max(-1)
        free = ~live
        goes_on = free.any(-1) & (steepest > r * FLAT)
        if not bool(goes_on.any()):
            break
        new = (slots == free.to(torch.uint8).argmax(-1, keepdim=True)) & goes_on.unsqueeze(-1)
        at = torch.where(new, key.unsqueeze(-1), at)
        column = whole.gather(-1, key[:, None, None].expand(-1, r, 1))
        columns = torch.where(new.unsqueeze(1), column, columns)
        products = columns.mT @ column  # (B, m, 1)
        gram = torch.where(new.unsqueeze(1), products, gram)
        gram = torch.where(new.unsqueeze(2), products.mT, gram)
        live = live | new
        w = nonnegative(_shifted(gram, NEGLIGIBLE), columns.sum(1), live)
        live = w > 0
        weights = torch.zeros_like(weights).scatter_add(-1, at, w)
    return weights


def nonnegative(h: Tensor, b: Tensor, among: Tensor | None = None) -> Tensor:
    """Where w^T h w / 2 - b^T w is least for w >= 0, (B, m), h (B, m, m) positive definite.

    Only entries ``among`` (B, m) may differ from 0. By block principal pivoting: all entries of
    the wrong sign, of w where it is free and of the slope where it is 0, change sides at once, and
    after three times without fewer of them the last one alone. That rule of Murty's ends after
    finitely many steps for every positive definite h, so that the method does (Judice and Pires
    1994); w is then exact but for the rounding of a Cholesky solve. Where rounding decides signs
    the rule could go in circles: it is stopped after ``ROUNDS`` changes an entry.
    """
    among = torch.ones_like(b, dtype=torch.bool) if among is None else among
    free, m = among, b.shape[-1]
    fewest, patience = torch.full_like(b[:, :1], m + 1), torch.full_like(b[:, :1], 3)
    places = torch.arange(m, device=b.device)
    for _ in range(ROUNDS * (m + 1)):
        w = _solved(h, torch.where(free, b, 0).unsqueeze(-1), free)
        slope = (h @ w - b.unsqueeze(-1)).squeeze(-1)
        w = w.squeeze(-1)
        # A list: torch.compile cannot leave a generator behind where it breaks its graph below.
        least, flat = [NEGLIGIBLE * x.abs().amax(-1, keepdim=True) for x in (w, b)]
        wrong = torch.where(free, w < -least, (slope < -flat) & among)
        count = wrong.sum(-1, keepdim=True).to(b.dtype)
        if not bool(wrong.any()):
            break
        fewer = count < fewest
        patience = torch.where(fewer, 3, patience - 1)
        fewest = torch.minimum(fewest, count)
        last = torch.where(wrong, places, -1).amax(-1, keepdim=True)
        free = free ^ (wrong & ((patience >= 0) | (places == last)))
    return w.clamp_min(0)


def _gram(x: Tensor, ridge: float) -> Tensor:
    """The matrix x^T x + ridge |x|^2 / m, (B, m, m), of x (B, r, m)."""
    return _shifted(x.mT @ x, ridge)


def _shifted(gram: Tensor, ridge: float) -> Tensor:
    """The same with ``ridge`` times the mean of its diagonal added there; never singular."""
    level = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(LEAST)
    shift = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return gram + ridge * level[:, None, None] * shift


def _solved(gram: Tensor, right: Tensor, live: Tensor | None = None) -> Tensor:
    """gram^-1 right, (B, m, e), in the ``live`` entries alone, the others 0."""
    if live is not None:
        both = live.unsqueeze(-1) & live.unsqueeze(-2)
        alone = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        gram = torch.where(both, gram, alone)
        right = torch.where(live.unsqueeze(-1), right, 0)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))
