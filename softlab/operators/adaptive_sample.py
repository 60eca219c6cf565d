"""Heavy keys exactly, and of the others as many drawn as a stated error asks for (vAttention)."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from softlab import validation
from softlab.core import (
    Cost,
    Dims,
    Knob,
    Stream,
    Traits,
    attention,
    constant,
    own_precision,
    value,
)
from softlab.kernels import kernel_cost
from softlab.operators.softmax import Softmax
from softlab.primitives.draws_intervals import Interval, answered, from_sums
from softlab.primitives.sort_lsh import over_survivors
from softlab.validation import Natural, Numbers, OneOf, Seed, Share

FORMS = ("corrected", "published")
Probability = Annotated[float, Numbers(1e-12, 0.5, says="; give a probability from 1e-12 to 0.5.")]
Tolerance = Annotated[float, Numbers(1e-6, 1.0, says="; give a relative error from 1e-6 to 1.")]


class Draws(NamedTuple):
    """Which of r light keys are drawn, by their place among them: the same for every query.

    ``base``: of the sample that tells how many are needed. ``main``: of the sample itself, of which
    each query takes as many from the start as it needs.
    """

    base: Tensor
    main: Tensor


class _Found(NamedTuple):
    """Scores, logarithms of the weights, and how often keys are drawn, (B, n, l); how many draws
    there are, (B, n, 1), of how many light keys.
    """

    scores: Tensor
    logs: Tensor
    times: Tensor
    budget: Tensor
    light: int


@value
class AdaptiveSample:
    """out_i = sum_j w_ij e^s_ij v_j / sum_j w_ij e^s_ij, s = q k^T / sqrt(d), w mostly 0.

    The ``top`` keys of the largest scores, at least 0, at ties the earlier ones, have w_ij = 1. Of
    the r others b_i are drawn uniformly, and have r / b_i each time. With D_i the sum of e^s_ij,

        b_i = (z s_i r / (eps D'_i))^2, at least as many as the base sample has, and at most r,

    s_i the standard deviation of e^s_ij in a base sample of max(2, ``base`` r) of the r keys, D'_i
    what that sample says of D_i, and z a quantile, so that the estimate of D_i should err by more
    than ``eps`` D_i with probability ``delta`` at most. ``eps``: 1e-6 to 1; ``delta``: 1e-12 to
    0.5; ``base``: a share from 0 to 1; ``seed``: integer >= 0. Both samples are the same for every
    query and in every matrix. ``form``:

    - ``"published"``: z = Phi^-1(1 - delta), which leaves delta on either side, and draws with
      replacement, so that b_i = r is not exact;
    - ``"corrected"``: z = t^-1(1 - delta / 2), Student's with a degree of freedom less than the
      base sample has keys, since s_i is estimated (Stein's two stages); draws without replacement,
      and b_i / (1 + b_i / r) of them, rounded up (Cochran's correction), so that b_i = r is exact.

    Numerator and denominator are unbiased, their ratio is not. Nothing is promised of the output,
    nor of the numerator: the statement is about D_i alone. For that the corrected form keeps delta
    where the light keys' weights are near normal or the draws many; where they are skewed, as
    without heavy keys at large scores, a small base sample misses the few that count, and both
    forms miss more often than they say. Exact with top at the number of keys. The heavy keys and
    what is drawn are found from all scores, so that its cost is that of exact attention: the
    operator says what the rule is worth, and ``budgets`` what it would save. Decided in float64;
    the gradient is that of the weights as drawn.

    Reference: Desai et al., arXiv 2510.05688, and its code, ``adaptive_sampling.py`` of
    sparse-attention-hub, which also keeps the first and the last keys, and rounds b_i down.
    """

    family: ClassVar = "sampling"
    target: ClassVar = Softmax()
    knob: ClassVar = Knob("top")

    eps: Tolerance = 0.1
    delta: Probability = 0.1
    top: Natural = 16
    base: Share = 0.02
    form: Annotated[str, OneOf(*FORMS)] = "corrected"
    seed: Seed = 0

    @property
    def traits(self) -> Traits:
        """Averages by an unbiased estimate; exact where all keys are heavy."""
        return Traits(
            query_equivariant=True,
            row_stochastic=True,
            nonnegative=True,
            unbiased=True,
            exact_at="top",
            draws="base",
        )

    def draws(self, light: int) -> Draws:
        """What is drawn of so many light keys, at least 2."""
        size = min(light, max(2, int(self.base * light)))
        base, main = (Stream(self.seed, f"AdaptiveSample, {x}") for x in ("base", "main"))
        if self.form == "published":
            return Draws(base.integers(light, size), main.integers(light, light))
        return Draws(base.permutation(light)[:size], main.permutation(light))

    def quantile(self, size: int) -> float:
        """The factor z for a base sample of so many keys, at least 2."""
        if self.form == "published":
            return NormalDist().inv_cdf(1 - self.delta)
        return _students(size - 1, self.delta / 2)

    def cost(self, dims: Dims) -> Cost:
        """That of exact attention, 2 n l (d + e) a matrix; the sorting is no product."""
        return kernel_cost(dims, dims.e)

    @own_precision
    def budgets(self, q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Return how many draws each query takes, (..., n), of q (..., n, d) and k (..., l, d)."""
        return self._of_rows(lambda found: found.budget, q, k, key_mask).long()

    @own_precision
    def denominators(self, q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Return the estimate of D_i over D_i, (..., n): within ``eps`` of 1, or a miss."""

        def ratio(found: _Found) -> Tensor:
            weighted = (found.scores + found.logs).logsumexp(-1, keepdim=True)
            return (weighted - found.scores.logsumexp(-1, keepdim=True)).exp()

        return self._of_rows(ratio, q, k, key_mask)

    @own_precision
    def kernel_matrix(self, q: Tensor, k: Tensor) -> Tensor:
        """Return w exp(s), (..., n, l): the unbiased estimate of exp(s)."""
        q, k, _, _ = validation.admit(q, k, k)
        lead = q.shape[:-2]
        found = self._found(*(x.reshape(-1, *x.shape[-2:]) for x in (q, k)))
        return (
            (found.scores + found.logs).exp().to(q.dtype).reshape(*lead, *found.scores.shape[-2:])
        )

    @attention
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply to q (..., n, d), k (..., l, d), v (..., l, e)."""
        return over_survivors(self._average, q, k, v, key_mask)

    @answered
    def interval(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, confidence: float
    ) -> Interval:
        """By how much each row errs, with stated odds over the draws of light keys.

        What ``eps`` and ``delta`` do not speak of: the output. The b_i light keys that were drawn
        are the draws of ``primitives.draws_intervals``. With p_ij the shares of keys in the
        estimate of D_i, t_ij times each, a draw has the residual

            e_j = b_i p_ij / t_ij (v_j - out_i) - sum_{light j'} p_ij' (v_j' - out_i),

        for the heavy keys are no draws. Without replacement 1 - b_i / r of the variance is left,
        and nothing where all are drawn. Rows whose light scores spread far have no end: ``top``
        takes the tail off, and it is not supposed that it took all of it. Nor have rows one where
        values that were not drawn have twice the variance of the drawn ones, or more.

        Args:
            q: queries (..., n, d).
            k: keys (..., l, d).
            v: values (..., l, e).
            key_mask: boolean, broadcastable to (..., l).
            confidence: 0.8 to below 1.
        """
        sums = over_survivors(self._spread, q, k, pad(v.double(), (0, 6)), key_mask)[..., -6:]
        whole, shared, many, doubt, logs, share = sums.unbind(-1)
        return from_sums(whole, shared, many, doubt, logs, share, confidence)

    def _spread(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What ``from_sums`` asks of each row, in the six last columns of (B, n, e + 6)."""
        found, v = self._found(q, k), v[..., :-6]
        p, times, many = (found.scores + found.logs).softmax(-1), found.times, found.budget
        out, light = p @ v, torch.where(times > 0, p, 0)
        mass = light.sum(-1, keepdim=True)
        mean = light @ v - mass * out
        each = many * light / times.clamp_min(1)
        apart = v.square().sum(-1).unsqueeze(-2) + out.square().sum(-1, keepdim=True)
        apart = apart - 2 * out @ v.mT
        # Values are known: those that no draw met may spread further than those that one did.
        unmet = ((times == 0) & (p == 0)).to(p)
        rest = (unmet * apart).sum(-1, keepdim=True) / unmet.sum(-1, keepdim=True).clamp_min(1)
        met = (times * apart).sum(-1, keepdim=True) / many.clamp_min(1)
        squares = each.square() * apart
        squares = squares - 2 * each * (mean @ v.mT - (mean * out).sum(-1, keepdim=True))
        squares = (squares + mean.square().sum(-1, keepdim=True)).clamp_min(0)
        whole = (times * squares).sum(-1, keepdim=True)
        parts = squares / torch.where(whole > 0, whole, 1)
        shared = 1 / (times * parts.square()).sum(-1, keepdim=True).clamp_min(1e-300)
        share = many / max(1, found.light) if self.form == "corrected" else torch.zeros_like(many)
        share = torch.ones_like(share) if found.light < 2 else share
        above = (times * each.square()).sum(-1, keepdim=True) - many * mass.square()
        left = (1 - share).clamp_min(0) / (many * (many - 1)).clamp_min(1)
        doubt = (left * above.clamp_min(0)).sqrt()
        of_scores = (times * found.scores).sum(-1, keepdim=True) / many.clamp_min(1)
        logs = (times * (found.scores - of_scores).square()).sum(-1, keepdim=True)
        logs = logs / (many - 1).clamp_min(1)
        logs = torch.where(rest > 2 * met + 1e-12 * v.square().sum(-1).amax(), math.inf, logs)
        return torch.cat((torch.zeros_like(out), whole, shared, many, doubt, logs, share), -1)

    def _average(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = self._found(q, k)
        return (found.scores + found.logs).softmax(-1).to(v.dtype) @ v

    def _of_rows(
        self, of: Callable[[_Found], Tensor], q: Tensor, k: Tensor, key_mask: Tensor | None
    ) -> Tensor:
        """A number of each query, (..., n), float64."""
        q, k, _, key_mask = validation.admit(q, k, k, key_mask)

        def rows(q: Tensor, k: Tensor, _: Tensor) -> Tensor:
            return of(self._found(q, k)).double()

        return over_survivors(rows, q, k, k[..., :1].double(), key_mask).squeeze(-1)

    def _found(self, q: Tensor, k: Tensor) -> _Found:
        """Scores (B, n, l) of q (B, n, d) and k (B, l, d), and the logarithms of w, in float64."""
        scores = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
        heavy = min(self.top, k.shape[1])
        light = k.shape[1] - heavy
        if light < 2:
            none = torch.zeros_like(scores[..., :1])
            times = torch.zeros_like(scores)
            return _Found(scores, torch.zeros_like(scores), times, none + light, light)
        order = scores.detach().argsort(dim=-1, descending=True, stable=True)
        # The light keys in the order of the keys: place p among them is key at[..., p].
        at = order[..., heavy:].sort(dim=-1).values
        shifted = (scores.detach() - scores.detach().amax(-1, keepdim=True)).exp()
        draws = Draws(*(x.to(q.device) for x in self.draws(light)))
        sample = shifted.gather(-1, at[..., draws.base])
        known = shifted.gather(-1, order[..., :heavy]).sum(-1, keepdim=True)
        level = known + light * sample.mean(-1, keepdim=True)
        wanted = self.quantile(len(draws.base)) * light / self.eps * sample.std(-1, keepdim=True)
        # Where the base sample sees no mass at all it says nothing, and all are drawn.
        many = (
            (wanted / torch.where(level > 0, level, 1)).square().masked_fill(level <= 0, math.inf)
        )
        if self.form == "published":
            budget = many.clamp(1, light).floor().clamp_min(len(draws.base))
        else:
            budget = (1 / (1 / many + 1 / light)).ceil().clamp(len(draws.base), light)
        often = _times(draws.main, budget, light)
        logs, times = torch.zeros_like(scores), torch.zeros_like(scores)
        logs = logs.scatter(-1, at, often.log() + (light / budget).log())
        return _Found(scores, logs, times.scatter(-1, at, often), budget, light)


@constant
def _students(freedom: int, tail: float) -> float:
    """Student's t that is exceeded with this probability."""
    from scipy.special import stdtrit

    # By the lower tail, where small probabilities have all their digits.
    return -float(stdtrit(freedom, tail))


def _times(main: Tensor, budget: Tensor, light: int) -> Tensor:
    """How often each place is among the first ``budget`` draws, (B, n, light), float64."""
    place = torch.arange(light, device=main.device)
    # Sorted by place, then by when they are drawn: those of a place lie together.
    when = torch.arange(len(main), device=main.device)
    drawn = (main * (light + 1) + when).sort().values
    first = place * (light + 1)
    until = (first + budget.long()).contiguous()
    return (torch.searchsorted(drawn, until) - torch.searchsorted(drawn, first)).double()
