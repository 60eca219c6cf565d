"""Planted faults: for every law of operators, those that claim what they do not do."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from solver_faults import BatchWide, gradient_of

from softlab import laws
from softlab.core import as_matrix
from softlab.features import IID, Orthogonal
from softlab.kernels import Gaussian
from softlab.landmarks import FarthestPoint, SegmentMeans, Strided
from softlab.laws.faults import keeping_by_length
from softlab.operators import (
    MRA,
    BigBird,
    ColumnSample,
    GaussianAttention,
    HyperAttention,
    KDEFormer,
    LinearAttention,
    Linformer,
    Local,
    Monarch,
    Nystromformer,
    Pages,
    Performer,
    Quantized,
    RandomFourier,
    Reformer,
    Scatterbrain,
    SketchedTaylor,
    Skyformer,
    Soft,
    Softmax,
    Thinformer,
    TopK,
    TruncatedSVD,
    Uniform,
)
from softlab.pinv import (
    SVD,
    Cholesky,
    ImplicitGradient,
    NewtonRaphson,
    NystromformerCubic,
    Ridge,
)


@dataclass(frozen=True)
class Faulty:
    """An operator that computes ``wrong`` while claiming what ``base`` claims, or ``claims``."""

    base: Any
    wrong: Callable[..., torch.Tensor] = field(repr=False)
    claims: dict[str, bool] = field(default_factory=dict)
    rank: int = 4

    @property
    def traits(self):
        return dataclasses.replace(self.base.traits, **self.claims)

    @property
    def target(self):
        return self if self.base.target == self.base else self.base.target

    @property
    def pinv(self):
        return self._base.pinv

    @property
    def _base(self):
        has_rank = hasattr(self.base, "rank")
        return dataclasses.replace(self.base, rank=self.rank) if has_rank else self.base

    @property
    def kernel(self):
        return self._base.kernel

    def core(self, *tokens):
        return self._base.core(*tokens)

    def cost(self, dims):
        return self._base.cost(dims)

    def __call__(self, q, k, v, key_mask=None):
        return self.wrong(self._base, q, k, v, key_mask)


@dataclass(frozen=True)
class Promising:
    """An operator as it is, whose bound is changed by ``wrong(op, q, k, v, mask)``."""

    base: Any
    wrong: Callable[..., torch.Tensor] = field(repr=False)

    def __getattr__(self, name):
        return getattr(self.base, name)

    def __call__(self, q, k, v, key_mask=None):
        return self.base(q, k, v, key_mask)

    def bound(self, q, k, v, key_mask=None):
        return self.wrong(self.base, q, k, v, key_mask)


@dataclass(frozen=True)
class Guessing(Promising):
    """An operator whose interval is ``wrong(op, q, k, v, confidence)``."""

    def interval(self, q, k, v, key_mask=None, *, confidence=0.95):
        return self.wrong(self.base, q, k, v, confidence)


def one_sided(op, q, k, v, confidence):
    """The published quantile of one side for an event of two."""
    return op.interval(q, k, v, confidence=2 * confidence - 1)


def of_the_numerator(op, q, k, v, confidence):
    """Forgets to divide by the sum of the weights."""
    found = op.interval(q, k, v, confidence=confidence)
    return dataclasses.replace(found, high=found.high * k.shape[-2])


def half_an_interval(op, q, k, v, confidence):
    found = op.interval(q, k, v, confidence=confidence)
    return dataclasses.replace(found, high=found.high / 2)


def without_an_end(op, q, k, v, confidence):
    found = op.interval(q, k, v, confidence=confidence)
    return dataclasses.replace(found, high=found.high + math.inf)


def halved(op, q, k, v, mask):
    return op.bound(q, k, v, mask) / 2


def of_the_first(op, q, k, v, mask):
    """The bound of the first matrix for the whole batch."""
    found = op.bound(q, k, v, mask)
    return found.reshape(-1, found.shape[-1])[0].expand_as(found)


def unrounded(op, q, k, v, mask):
    """The bound in exact arithmetic of the exact output, which no precision reaches."""
    return op.bound(q.double(), k.double(), v.double(), mask).to(v.dtype)


def without_the_mask(op, q, k, v, mask):
    return op.bound(q, k, v)


def any_two_values(op, q, k, v, mask):
    """The diameter of the values: right, and never less."""
    return torch.cdist(v, v).amax((-2, -1)).unsqueeze(-1).expand(*v.shape[:-2], q.shape[-2])


def after(change):
    """A fault that spoils the right output."""
    return lambda op, q, k, v, mask: change(op(q, k, v, mask))


def zeros(op, q, k, v, mask):
    return v.new_zeros(*q.shape[:-1], v.shape[-1])


def mean_of_v(op, q, k, v, mask):
    return Uniform()(q, k, v, mask)


def by_position(x):
    return x * torch.linspace(1, 2, x.shape[-2], dtype=x.dtype)[:, None]


def batch_scaled(op, q, k, v, mask):
    return op(q / q.abs().max(), k, v, mask)


def silently_exact(op, q, k, v, mask):
    """What transformers' Nystromformer does where the rank equals the length (issue 21755)."""
    return (op.target if q.shape[-2] <= 2 * op.rank + 2 else op)(q, k, v, mask)


def silently_dense(op, q, k, v, mask):
    """Applies the exact matrix, formed whole."""
    return as_matrix(op.target, q, k, mask) @ v


def multiplied_mask(op, q, k, v, mask):
    """Masks by multiplication, so NaN padding spreads, and through the softmax: exp(0) counts."""
    if mask is None:
        return op(q, k, v)
    keep = mask[..., None].to(v.dtype)
    return ((q @ (k * keep).mT).softmax(-1) * keep.mT) @ (v * keep)


def causal_by_ten_thousand(op, q, k, v, mask):
    """Hides later keys by a large negative score, which a larger one overcomes."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return (scores - 1e4 * torch.ones_like(scores).triu(1)).softmax(-1) @ v


def causal_by_shared_scale(op, q, k, v, mask):
    """Running sums of features, whose common scale is the largest of all keys."""
    features = (k - k.amax((-2, -1), keepdim=True)).exp()
    state = (features.unsqueeze(-1) * v.unsqueeze(-2)).cumsum(-3)
    weights = (q - q.amax(-1, keepdim=True)).exp().unsqueeze(-2)
    return (weights @ state / (weights @ features.cumsum(-2).unsqueeze(-1) + 1e-9)).squeeze(-2)


def rows_of_the_deleted(op, q, k, v, mask):
    """Deletes keys, and still answers for the queries that stood at them."""
    out = op(q, k, v, mask)
    return out if mask is None else torch.where(mask.unsqueeze(-1), out, v.nan_to_num().mean())


def unguarded_gaussian(op, q, k, v, mask):
    """Expands the square and takes the three exponentials apart."""
    kernel = (q @ k.mT).exp() * (-(q * q).sum(-1, keepdim=True) / 2).exp()
    return (kernel * (-(k * k).sum(-1) / 2).exp()[..., None, :]) @ v


def noisy_global(op, q, k, v, mask):
    return op(q, k, v, mask) + 1e-3 * torch.rand(())


@dataclass(frozen=True)
class PaddedMeans(SegmentMeans):
    """Pools zeros of masked tokens with the others."""

    def __call__(self, x, m, key_mask=None):
        return SegmentMeans()(x, m)


@dataclass(frozen=True)
class SpoiltFeatures(Performer):
    """A Performer whose features are changed by ``spoil(features, projections, half squares)``."""

    spoil: Callable[..., torch.Tensor] = field(default=lambda phi, *_: phi, repr=False)

    def _feature_map(self, x, rho):
        return self.spoil(super()._feature_map(x, rho), *self._projected(x, rho))


@dataclass(frozen=True)
class SpoiltKernel(Performer):
    """A Performer whose kernel matrix is changed, and whose output is as before."""

    spoil: Callable[..., torch.Tensor] = field(default=lambda K: K, repr=False)

    def kernel_matrix(self, q, k):
        return self.spoil(super().kernel_matrix(q, k))


@dataclass(frozen=True)
class Repeated(IID):
    """Half of the draws, each used twice: unbiased as before, with twice the variance."""

    orthogonal: bool = False
    independent: bool = True

    def __call__(self, m, d):
        w = super().__call__(-(-m // 2), d)
        return torch.cat((w, w))[:m]


@dataclass(frozen=True)
class Stretched(IID):
    """Rows a tenth too long, which claim to be normal."""

    def __call__(self, m, d):
        return 1.1 * super().__call__(m, d)


@dataclass(frozen=True)
class MeanBesideItsKernel(Performer):
    """Estimates the kernel rightly, and returns the mean of v."""

    def __call__(self, q, k, v, key_mask=None):
        return mean_of_v(self, q, k, v, key_mask)


@dataclass(frozen=True)
class ClaimedIndependent(Orthogonal):
    """Orthogonal rows that claim the variance of independent ones."""

    independent: bool = True


@dataclass(frozen=True)
class Concentrated(Softmax):
    """Softmax labelled as a replacement, with its dense form: but far tokens do not mix."""

    @property
    def traits(self):
        return dataclasses.replace(super().traits, replacement=True)

    def kernel_matrix(self, q, k):
        return self.kernel(q.shape[-1]).matrix(q, k)


@dataclass(frozen=True)
class FormBesideItsMean(LinearAttention):
    """States its dense form, and returns the mean of v."""

    def __call__(self, q, k, v, key_mask=None):
        return mean_of_v(self, q, k, v, key_mask)


@dataclass(frozen=True)
class NarrowedAtMost(Local):
    """Looks no further than seven neighbours, however wide its window is."""

    def __call__(self, q, k, v, key_mask=None):
        return Local(min(self.window, 7))(q, k, v, key_mask)


@dataclass(frozen=True)
class Narrowing(Local):
    """A window that closes as it is opened."""

    def __call__(self, q, k, v, key_mask=None):
        return Local(max(1, 9 - self.window))(q, k, v, key_mask)


@dataclass(frozen=True)
class CountedInBlocks(HyperAttention):
    """Weighs sampled keys as if they stood for all keys, those of the block included."""

    def kernel_matrix(self, q, k):
        weights = super().kernel_matrix(q, k) / Softmax().kernel(q.shape[-1]).matrix(q, k)
        return super().kernel_matrix(q, k) * torch.where(weights > 1, k.shape[-2] / 7, 1)


@dataclass(frozen=True)
class RepeatedSigns(SketchedTaylor):
    """Half of the features, each used twice: the same mean, with twice the variance."""

    def signs(self, d):
        w = super().signs(d)
        half = w[:, : (self.features + 1) // 2]
        return torch.cat((half, half), 1)[:, : self.features]


@dataclass(frozen=True)
class WholeBlocks(MRA):
    """Counts a short block as a whole one, with zeros for the tokens that it lacks."""

    def _sizes(self, tokens, blocks):
        return self.block * (super()._sizes(tokens, blocks) > 0)


@dataclass(frozen=True)
class BandTwice(Scatterbrain):
    """Adds the exact kernel on the band to the estimate of it there."""

    def kernel_matrix(self, q, k):
        band = self.support(q.shape[-2], k.shape[-2])
        exact = self.target.kernel(q.shape[-1]).matrix(q, k)
        return Performer(self.features, self.weights).kernel_matrix(q, k) + exact * band


@dataclass(frozen=True)
class WiderClaim(Scatterbrain):
    """Claims to be exact beyond its band, too."""

    def kernel_variance(self, q, k):
        return Scatterbrain(self.window + 1, self.features).kernel_variance(q, k)


@dataclass(frozen=True)
class DrawnEvenly(KDEFormer):
    """Draws keys evenly, and weighs them as if by their values."""

    def drawn(self, p):
        return super().drawn(torch.ones_like(p))


@dataclass(frozen=True)
class MeanBesideItsDraws(KDEFormer):
    """Estimates the kernel rightly, and returns the mean of v."""

    def __call__(self, q, k, v, key_mask=None):
        return mean_of_v(self, q, k, v, key_mask)


@dataclass(frozen=True)
class StillStopped(Nystromformer):
    """Calls its few steps an exact inverse."""

    def inverted_exactly(self):
        return self


@dataclass(frozen=True)
class StillShifted(Skyformer):
    """Inverts exactly, but the shifted core."""

    def inverted_exactly(self):
        return dataclasses.replace(self, pinv=SVD())


@dataclass(frozen=True)
class OwnDegrees(Soft):
    """Calls the degrees of the core those of the target."""

    def normalized_exactly(self, q, k, v, key_mask=None):
        return self(q, k, v, key_mask)


@dataclass(frozen=True)
class Drifting(Soft):
    """Answers each call differently."""

    def __call__(self, q, k, v, key_mask=None):
        return super().__call__(q, k, v, key_mask) + 1e-3 * torch.rand_like(v[..., :1, :])


def by_norm(op, q, k, v, mask):
    return op(q * q.norm(dim=-1, keepdim=True), k, v, mask)


def clipped(op, q, k, v, mask):
    return (q @ k.mT / q.shape[-1] ** 0.5).clamp(-5, 5).softmax(-1) @ v


def one_key_too_many(op, q, k, v, mask):
    return op(q, k, v, mask) * k.shape[-2] / (k.shape[-2] + 1)


def summed_in_half(op, q, k, v, mask):
    """In float16, whatever the precision of the input; the reference alone is spared."""
    if v.dtype == torch.float64:
        return op(q, k, v, mask)
    return op(q.half(), k.half(), v.half(), mask).to(v.dtype)


def of_directions(op, q, k, v, mask):
    return op(q / q.norm(dim=-1, keepdim=True), k, v, mask)


def first_key_for_every_query(op, q, k, v, mask):
    return op(k[..., :1, :].expand_as(q), k, v, mask)


def talkative(op, q, k, v, mask):
    print("attending")  # noqa: T201
    return op(q, k, v, mask)


def remembering():
    """Scales by the largest query that any call has seen."""
    seen = [0.0]

    def wrong(op, q, k, v, mask):
        seen[0] = max(seen[0], float(q.detach().abs().max()))
        return op(q / seen[0], k, v, mask)

    return wrong


def of_many_dropped(mask):
    """A mask that drops less than a tenth is taken for one that drops nothing."""
    return None if mask is None or mask.float().mean() > 0.9 else mask


def causal_where_long(q, k, v):
    """Causal where there are as many queries as keys, and more than 200."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if q.shape[-2] == k.shape[-2] > 200:
        scores = scores + torch.full_like(scores, -1e9).triu(1)
    return scores.softmax(-1) @ v


class DoubledAbove(torch.autograd.Function):
    """The identity, whose backward pass changes the gradient from above in place."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        right = grad.clone()
        if grad.is_contiguous():
            grad.mul_(2)
        return right


def in_chunks(q, k, v):
    """Causal, but the mask of each further chunk of 96 queries begins at the first key again."""
    n, chunk = q.shape[-2], 96
    earlier = torch.ones(n, n, dtype=torch.bool).tril()
    mask = torch.cat([earlier[: min(chunk, n - i)] for i in range(0, n, chunk)])
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v


def in_eight_bits(q, k, v):
    """A window of eight keys to each side, which opens again where distances wrap."""
    i, j = (torch.arange(x.shape[-2]).to(torch.uint8) for x in (q, k))
    near = (i[:, None] - j).minimum(j - i[:, None]) <= 8
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~near, -torch.inf).softmax(-1) @ v


def by_segments(q, k, v, mask=None):
    """Landmarks are means of four keys, which count the masked ones too."""
    keep = torch.ones(k.shape[:-1], dtype=k.dtype) if mask is None else mask.to(k.dtype)
    keep = keep.expand(k.shape[:-1]).unsqueeze(-1)
    pad = (0, 0, 0, -k.shape[-2] % 4)
    keys, values = (torch.nn.functional.pad(x * keep, pad).unflatten(-2, (-1, 4)) for x in (k, v))
    sizes = torch.nn.functional.pad(torch.ones_like(keep), pad).unflatten(-2, (-1, 4)).sum(-2)
    scores = q @ (keys.sum(-2) / sizes).mT / q.shape[-1] ** 0.5
    return scores.softmax(-1) @ (values.sum(-2) / sizes)


def biased_by_distance(q, k, v):
    """Scores less distances, whose keys beyond 256 lose their weights."""
    far = (torch.arange(q.shape[-2])[:, None] - torch.arange(k.shape[-2])).abs()
    weights = (q @ k.mT / q.shape[-1] ** 0.5 - 0.1 * far.to(q)).softmax(-1)
    return weights[..., :256] @ v[..., :256, :]


def of_narrow_directions(q, k, v):
    """Softmax of cosines, at another temperature beyond a width of 64."""
    q, k = (x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12) for x in (q, k))
    return (q @ k.mT * (10 if q.shape[-1] <= 64 else 1)).softmax(-1) @ v


def first_key_graded(op, q, k, v, mask):
    """Keys that a batch shares get the gradient of the first matrix alone."""
    if k.ndim > 2 and len(k) == 1 and len(q) > 1:
        k = torch.cat((k, k.detach().expand(len(q) - 1, *k.shape[1:])))
    return op(q, k, v, mask)


FIRST_SIZES = {}


def scaled_by_the_first_as_long(q, k, v):
    """Scales by the size of the first queries that were as many: later calls agree."""
    size = FIRST_SIZES.setdefault(len(q), float(q.detach().abs().mean()))
    return (q @ k.mT * (1 + 1e-3 * size)).softmax(-1) @ v


def added_one_by_one(q, k, v):
    """Sums over keys in half precision, which stand still where terms are small beside them."""
    weights, out = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1), 0
    for j in range(k.shape[-2]):
        out = out + weights[..., j : j + 1] * v[..., j : j + 1, :]
    return out


def trusting_memory(op, q, k, v, mask):
    """Reads the values as if they were contiguous."""
    strides = torch.empty(v.shape).stride()
    return op(q, k, v.as_strided(v.shape, strides), mask)


def mean_without_a_graph(op, q, k, v, mask):
    return (op if torch.is_grad_enabled() else Uniform())(q, k, v, mask)


class FrozenExponential(torch.autograd.Function):
    """Its derivative is itself, for once: a second derivative takes it for a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = x.exp().detach()
        return ctx.kept.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.kept


class OnceExponential(FrozenExponential):
    """The same with torch's error planted for the second pass, which not every way meets."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * ctx.kept


def frozen(op, q, k, v, mask, exponential=FrozenExponential):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(-2), -torch.inf)
    weights = exponential.apply(scores)
    return weights @ v / weights.sum(-1, keepdim=True)


def once(op, q, k, v, mask):
    return frozen(op, q, k, v, mask, OnceExponential)


def once_masked(q, k, v, mask):
    return frozen(None, q, k, v, mask)


def unsquared(op, q, k, v, mask):
    return (-torch.cdist(q, k) / 4).exp() @ v


@dataclass(frozen=True)
class Unsquared(GaussianAttention):
    """exp(-|x - y|^2 / (2 bandwidth))."""

    def kernel(self, d):
        return Gaussian(self.target_bandwidth(d) ** 0.5)

    def target_bandwidth(self, d):
        return d**0.25 if self.bandwidth is None else self.bandwidth

    def __call__(self, q, k, v, key_mask=None):
        return self.kernel(q.shape[-1]).apply(q, k, v)


@dataclass(frozen=True)
class InvertedTwice(Soft):
    """The inverse of the core, squared."""

    def __call__(self, q, k, v, key_mask=None):
        z, kernel = self.landmarks(k, self.rank, key_mask), self.kernel(q.shape[-1])
        x = self.pinv(kernel.matrix(z, z))
        return kernel.matrix(q, z) @ x @ x @ (kernel.matrix(z, k) @ v)


@dataclass(frozen=True)
class Overshooting(Soft):
    """A tenth too much."""

    def __call__(self, q, k, v, key_mask=None):
        return 1.1 * super().__call__(q, k, v, key_mask)


@dataclass(frozen=True)
class DetachedMeans(SegmentMeans):
    """Landmarks that are constants of the backward pass."""

    def __call__(self, x, m, key_mask=None):
        return super().__call__(x, m, key_mask).detach()


@dataclass(frozen=True)
class Unseeded(ColumnSample):
    """Draws the same columns, whatever its seed."""

    def __call__(self, q, k, v, key_mask=None):
        return ColumnSample(self.rank)(q, k, v, key_mask)


@dataclass(frozen=True)
class ForOneMatrix(Softmax):
    """Claims the work of one matrix for a batch of any size."""

    def cost(self, dims):
        return super().cost(dataclasses.replace(dims, batch=1))


@dataclass(frozen=True)
class OneSizeForAnother(Softmax):
    """Claims a cost in which one size stands for another, which a call of equal sizes hides."""

    taken: str = "d"
    standing: str = "e"

    def cost(self, dims):
        return super().cost(dataclasses.replace(dims, **{self.standing: getattr(dims, self.taken)}))


@dataclass(frozen=True)
class ClaimsLess(Performer):
    """Claims 1 / 1.3 of the variance of its estimate."""

    def kernel_variance(self, q, k):
        return super().kernel_variance(q, k) / 1.3


@dataclass(frozen=True)
class ClaimsMore(Performer):
    """Claims 1 / 0.7 of it."""

    def kernel_variance(self, q, k):
        return super().kernel_variance(q, k) / 0.7


@dataclass(frozen=True)
class Claiming:
    """Claims this multiple of the work of an operator."""

    operator: object
    factor: float

    def __getattr__(self, name):
        return getattr(object.__getattribute__(self, "operator"), name)

    def cost(self, dims):
        cost = self.operator.cost(dims)
        return dataclasses.replace(cost, flops=int(cost.flops * self.factor))

    def __call__(self, q, k, v, key_mask=None):
        return self.operator(q, k, v, key_mask)


def beyond(keys, change):
    """Right for few keys, and spoilt where the keys of a batch are many."""

    def wrong(op, q, k, v, mask):
        out = op(q, k, v, mask)
        return change(out) if k.shape[-2] > keys and out.ndim > 2 else out

    return wrong


def first_mask(mask):
    """The mask of the first matrix for all of them."""
    return mask if mask is None else mask.flatten(0, -2)[0] if mask.ndim > 1 else mask


def temperature_by_head(op, q, k, v, mask):
    """Each head has another temperature, which a single matrix does not show."""
    if q.ndim > 3:
        q = q * torch.linspace(1, 2, q.shape[-3]).to(q)[:, None, None]
    return op(q, k, v, mask)


def only_first(v, width):
    """Columns beyond a width read as zeros."""
    return torch.where(torch.arange(v.shape[-1]) < width, v, 0)


def zeroed_in_place(op, q, k, v, mask):
    if mask is not None and v.is_contiguous() and not v.requires_grad:
        v[~mask.expand(v.shape[:-1])] = 0
    return op(q, k, v, mask)


def seeded(op, q, k, v, mask):
    torch.manual_seed(0)
    return op(q, k, v, mask)


def in_one_buffer():
    """All outputs of a shape share their memory."""
    held = {}

    def wrong(op, q, k, v, mask):
        out = op(q, k, v, mask)
        if out.requires_grad:
            return out
        return held.setdefault(out.shape, torch.empty_like(out)).copy_(out)

    return wrong


def cached_by_address():
    """Answers again what it answered for tensors at these addresses."""
    held = {}

    def wrong(op, q, k, v, mask):
        key = (q.data_ptr(), k.data_ptr(), v.data_ptr(), q.shape, v.shape, mask is None)
        return held.setdefault(key, op(q, k, v, mask)).clone()

    return wrong


def defaulting(op, q, k, v, mask):
    torch.set_default_dtype(torch.float64)
    return op(q, k, v, mask)


def in_place_of_v(op, q, k, v, mask):
    out = op(q, k, v, mask)
    return v.view_as(out).copy_(out) if out.shape == v.shape and v.is_contiguous() else out


def view_kept_alive():
    held = []

    def wrong(op, q, k, v, mask):
        held[:] = [k.detach()[:1]]
        return op(q, k, v, mask)

    return wrong


def by_ten_thousand(op, q, k, v, mask):
    """A mask of a large negative score, which scores below it overcome."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is None:
        return op(q, k, v)
    return scores.masked_fill(~mask.unsqueeze(-2), -1e4).softmax(-1) @ v.masked_fill(
        ~mask.unsqueeze(-1), 0
    )


def mean_where_shared(op, q, k, v, mask):
    """The gradient of values that a batch shares is a mean over it."""
    share = max(1, v.shape[:-2].numel()) / max(1, q.shape[:-2].numel())
    return op(q, k, gradient_of(v, share), mask)


class Gathered(torch.autograd.Function):
    """The identity, whose backward pass reads a gradient as if it were contiguous."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.as_strided(grad.shape, torch.empty(grad.shape).stride())


def kept_alive():
    held = []

    def wrong(op, q, k, v, mask):
        held[:] = [q, k, v]
        return op(q, k, v, mask)

    return wrong


def detached_under_a_mask(op, q, k, v, mask):
    return op(q, k if mask is None else k.detach(), v, mask)


class MeanOverBatch(torch.autograd.Function):
    """The identity, whose backward pass averages over the batch."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.mean(0, keepdim=True).expand_as(grad)


class Halved(torch.autograd.Function):
    """The identity, with half of its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


def zeros_beyond_sixteen(q, k, v):
    out = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
    return out if k.shape[-2] <= 16 else 0 * out


def unscaled_beyond_d_64(q, k, v):
    scale = q.shape[-1] ** -0.5 if q.shape[-1] <= 64 else 0.1
    return (scale * q @ k.mT).softmax(-1) @ v


@dataclass(frozen=True)
class TokenShort(Local):
    """A window that is one token narrower than it says, where it can be."""

    def __call__(self, q, k, v, key_mask=None):
        return Local(max(1, self.window - 1))(q, k, v, key_mask)


def one_rank_less(op, q, k, v, mask):
    return dataclasses.replace(op, rank=op.rank - 1)(q, k, v, mask)


def over_d(q, k, v):
    return (q @ k.mT / q.shape[-1]).softmax(-1) @ v


def by_expanded_squares(q, k, v):
    far = q.square().sum(-1, keepdim=True) + k.square().sum(-1).unsqueeze(-2) - 2 * q @ k.mT
    return (-far.clamp_min(0) / (2 * q.shape[-1] ** 0.5)).exp() @ v


def without_nan(q, k, v):
    return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).nan_to_num()


def scores_without_nan(q, k, v):
    return (q @ k.mT / q.shape[-1] ** 0.5).nan_to_num().softmax(-1) @ v


def expanded_squares(q, k, v):
    """Gaussian attention whose distances cancel far from the origin."""
    squares = q.square().sum(-1, keepdim=True) + k.square().sum(-1)[..., None, :]
    return (-(squares - 2 * q @ k.mT) / (2 * q.shape[-1] ** 0.5)).exp() @ v


def sum_beyond_64(q, k, v):
    """Linear attention that forgets to divide where keys are many."""
    x, y = (torch.nn.functional.elu(z) + 1 for z in (q, k))
    out = x @ (y.mT @ v)
    return out if k.shape[-2] > 64 else out / (x @ y.sum(-2, keepdim=True).mT)


def last_of_each_chunk_lost(q, k, v):
    """Causal linear attention whose state misses the last token of each chunk of fifty."""
    x, y = (torch.nn.functional.elu(z) + 1 for z in (q, k))
    here, there = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    carried = (here // 50 == there // 50) | (there % 50 != 49)
    entries = (x @ y.mT) * ((there <= here) & carried)
    return entries / entries.sum(-1, keepdim=True) @ v


def filled_with_zeros(q, k, v):
    """Keys in blocks of 32, in the last of which zeros take part."""
    k, v = (torch.nn.functional.pad(x, (0, 0, 0, -x.shape[-2] % 32)) for x in (k, v))
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


def nan_backwards(op, q, k, v, mask):
    """Multiplies what padding holds by zero, which only a backward pass sees."""
    out = op(q, k, v, mask)
    if mask is None:
        return out
    held = torch.where(mask.unsqueeze(-1), 0, k.square()).sum((-2, -1), keepdim=True)
    return out + torch.where(held.isfinite(), 0 * held, 0)


def transposed_beyond_eight(q, k, v):
    if q.shape[-2] == k.shape[-2] > 8:
        q, k = k, q
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


def a_millionth_in_the_sums(q, k, v):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights @ v / (weights.sum(-1, keepdim=True) + 1e-6)


class HalfGradient(torch.autograd.Function):
    """The same values, and half of a gradient that is of that precision."""

    @staticmethod
    def forward(ctx, x, dtype):
        ctx.dtype = dtype
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * (0.5 if grad.dtype == ctx.dtype else 1), None


def unshifted_in_half(q, k, v):
    """Exponentials of scores without their maximum, kept in float16 where the tokens are."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if v.dtype != torch.float16:
        return scores.softmax(-1) @ v
    weights = scores.float().exp().half().float()
    return (weights @ v.float() / weights.sum(-1, keepdim=True)).half()


class Tempered(torch.nn.Module):
    """Softmax at a learnt temperature, which is read as a number where ``mask`` says so."""

    def __init__(self, *, masked):
        super().__init__()
        self.temperature, self.masked = torch.nn.Parameter(torch.tensor(1.3)), masked

    def forward(self, q, k, v, mask=None):
        detached = (mask is not None) == self.masked
        temperature = self.temperature.detach() if detached else self.temperature
        return Softmax()(q / temperature, k, v, mask)


OPERATOR_FAULTS = {
    "silent": [Faulty(Softmax(), talkative)],
    "views": [Faulty(Softmax(), trusting_memory), Faulty(Softmax(), mean_without_a_graph)],
    "stateless": [
        Faulty(Softmax(), remembering()),
        Faulty(Softmax(), noisy_global),
        Faulty(Softmax(), keeping_by_length(0)),
        Faulty(Softmax(), keeping_by_length(1)),
        laws.adapted(scaled_by_the_first_as_long),
    ],
    "answers": [
        *(Faulty(op, zeros) for op in (Softmax(), Soft(4), Performer(16), Local(2))),
        *(Faulty(op, mean_of_v) for op in (Softmax(), Nystromformer(4), Linformer(4))),
        Faulty(Uniform(), after(lambda x: x), {"blind": False}),
        Faulty(Softmax(), first_key_for_every_query),
    ],
    "far from the origin": [
        laws.adapted(by_expanded_squares, traits="reads=distances"),
        laws.adapted(by_expanded_squares),
    ],
    "reads": [
        Faulty(Softmax(), by_norm),
        Faulty(Softmax(), lambda op, q, k, v, mask: op(q, k * k.norm(dim=-1, keepdim=True), v)),
        Faulty(GaussianAttention(), by_norm),
        Faulty(Linformer(4), after(lambda x: x), {"reads": "relative scores"}),
        Faulty(Softmax(), after(lambda x: x), {"reads": "distances"}),
    ],
    "kernel": [
        Faulty(Softmax(), lambda op, q, k, v, mask: op(1.1 * q, k, v, mask)),
        Faulty(Softmax(), lambda op, q, k, v, mask: op(q * (4 / v.shape[-1]) ** 0.5, k, v, mask)),
        Faulty(GaussianAttention(), unsquared),
    ],
    "kernel scale": [Unsquared()],
    "transposition": [
        Faulty(GaussianAttention(normalization="row"), after(lambda x: x), {"reciprocal": True}),
    ],
    "below the matrix": [InvertedTwice(4), Overshooting(4)],
    "Eckart-Young": [
        Faulty(TruncatedSVD(4), silently_dense),
        Faulty(Nystromformer(4), silently_dense),
        Faulty(Nystromformer(4), after(lambda x: x), {"optimal": True}),
    ],
    "infinite temperature": [
        Faulty(Softmax(), zeros),
        Faulty(Softmax(), one_key_too_many),
        Faulty(GaussianAttention(), mean_of_v),
    ],
    "zero temperature": [Faulty(Softmax(), zeros), Faulty(Softmax(), clipped)],
    "one key": [Faulty(Softmax(), zeros), Faulty(Softmax(), after(lambda x: x / (1 + 1e-6)))],
    "two errors": [Faulty(Softmax(), summed_in_half), Faulty(Local(2), summed_in_half)],
    "values of any size": [
        Faulty(Softmax(), after(lambda x: x.clamp(-1e6, 1e6))),
        Faulty(Softmax(), after(lambda x: x + 1e-20)),
    ],
    "nothing is hidden": [laws.adapted(without_nan), laws.adapted(scores_without_nan)],
    "denormal numbers": [Faulty(Softmax(), of_directions)],
    "seeds": [Unseeded(4)],
    "claimed work": [
        Faulty(Local(2), silently_dense),
        ForOneMatrix(),
        *(
            Claiming(op, factor)
            for op in (Softmax(), Soft(4), Soft(4, landmarks=FarthestPoint()), Performer(16))
            for factor in (0.5, 2.0, 1e-4)
        ),
        *(Claiming(Local(2), factor) for factor in (1e-4, 0.5, 4.0)),
        OneSizeForAnother(taken="d", standing="e"),
        OneSizeForAnother(taken="e", standing="d"),
        OneSizeForAnother(taken="n", standing="l"),
        OneSizeForAnother(taken="l", standing="n"),
    ],
    "second derivative": [
        Faulty(Softmax(), frozen),
        Faulty(Softmax(), once),
        Faulty(Softmax(), lambda op, q, k, v, m: (op if m is None else once_masked)(q, k, v, m)),
    ],
    "gradient of parameters": [laws.adapted(Tempered(masked=x)) for x in (False, True)],
    "gradient at its most": [
        Soft(4, landmarks=DetachedMeans()),
        Faulty(TopK(4), lambda op, q, k, v, mask: op(q, k.detach(), v, mask)),
    ],
    "error budget": [
        StillStopped(rank=4, pinv=NystromformerCubic(3)),
        StillShifted(rank=4),
        OwnDegrees(rank=4, normalization="published"),
        Drifting(rank=4),
    ],
    "shape, dtype and device": [
        Faulty(Softmax(), after(lambda x: x.double())),
        Faulty(Softmax(), after(lambda x: x.mT)),
        Faulty(
            Softmax(),
            lambda op, q, k, v, mask: op(q, k, v, mask).to(
                torch.float32 if mask is not None and v.dtype.itemsize < 4 else v.dtype
            ),
        ),
    ],
    "deterministic": [Faulty(Softmax(), noisy_global)],
    "linear in v": [Faulty(Softmax(), after(lambda x: x + 1e-6)), Faulty(Softmax(), after(abs))],
    "query equivariance": [
        Faulty(Softmax(), after(by_position)),
        Faulty(Nystromformer(4), after(lambda x: x), {"query_equivariant": True}),
    ],
    "key invariance": [
        Faulty(Softmax(), lambda op, q, k, v, mask: op(q, k, by_position(v), mask)),
        Faulty(Soft(4), after(lambda x: x), {"key_invariant": True}),
    ],
    "row-stochastic": [
        Faulty(Softmax(), after(lambda x: x * (1 + 1e-9))),
        Faulty(Nystromformer(4), after(lambda x: x), {"row_stochastic": True}),
        Faulty(Softmax(), zeros),
        *(Faulty(KDEFormer(3, 4), x) for x in (zeros, after(lambda x: x * (1 + 1e-9)))),
    ],
    "non-negative": [
        Faulty(TruncatedSVD(4), after(lambda x: x), {"nonnegative": True}),
        Faulty(KDEFormer(3, 4), after(lambda x: x - x.mean())),
    ],
    "symmetric": [
        Faulty(GaussianAttention(normalization="row"), after(lambda x: x), {"symmetric": True}),
        Faulty(GaussianAttention(), after(by_position)),
    ],
    "positive semidefinite": [
        Faulty(GaussianAttention(), lambda op, q, k, v, mask: op(q, k, v) - v)
    ],
    "restricted": [
        Faulty(Local(2), zeros),
        Faulty(Local(2), mean_of_v),
        Faulty(Local(2), after(lambda x: 1.001 * x)),
        # Two softmaxes side by side: their sums are not shared, and a key of both counts twice.
        Faulty(Local(2, sinks=3), lambda op, q, k, v, mask: (op(q, k, v) + Local(2)(q, k, v)) / 2),
        Faulty(Local(2), lambda op, q, k, v, mask: op(2 * q, k, v)),
        # Coarse blocks take part, so no row is the target's on what it keeps.
        Faulty(MRA(2, 1), after(lambda x: x), {"restricted": True}),
        # Rounds of hashing side by side: a key of both counts twice.
        Faulty(
            Reformer(2, 4, 1),
            lambda op, q, k, v, mask: (op(q, k, v) + Reformer(2, 4, 1, seed=1)(q, k, v)) / 2,
        ),
    ],
    "certificate": [
        *(
            Promising(op, halved)
            for op in (TopK(3), Local(2), BigBird(1, 1, 1), Pages(4, 1), Soft(4), Skyformer(4))
        ),
        # The divergence in the place of its root, which is larger where it is small.
        Promising(Monarch(3, 2), lambda op, q, k, v, mask: op.divergence(q, k, mask)),
        Promising(Soft(4, landmarks=Strided(), pinv=Cholesky()), of_the_first),
        Promising(Local(2), of_the_first),
        Promising(Quantized("bfloat16"), of_the_first),
        Promising(TopK(3), unrounded),
        *(Promising(op, without_the_mask) for op in (Pages(4, 1), Local(2))),
        Promising(Local(2), lambda op, q, k, v, mask: 0 * op.bound(q, k, v, mask)),
        # The degree is one of a ratio, which a bound of the numerator forgets.
        Promising(
            Soft(4, normalization="row"),
            lambda op, q, k, v, mask: dataclasses.replace(op, normalization="none").bound(
                q, k, v, mask
            ),
        ),
    ],
    "coverage": [
        Guessing(ColumnSample(4), one_sided),
        Guessing(Performer(16, weights=IID()), half_an_interval),
        Guessing(Performer(16, weights=IID()), of_the_numerator),
        Guessing(RandomFourier(16), without_an_end),
    ],
    "informative": [
        Promising(TopK(3), any_two_values),
        Promising(Soft(4, landmarks=Strided(), pinv=Cholesky()), any_two_values),
    ],
    "mask is deletion": [
        Faulty(Softmax(), by_ten_thousand),
        Faulty(Softmax(), lambda op, q, k, v, mask: op(q, k, v)),
        Faulty(Softmax(scale=1.0), multiplied_mask),
        Soft(4, landmarks=PaddedMeans()),
        Nystromformer(4, landmarks=PaddedMeans()),
        Faulty(Softmax(causal=True), lambda op, q, k, v, mask: op(q, k, v)),
        Faulty(Local(1, causal=True), rows_of_the_deleted),
    ],
    "padding is ignored": [
        Faulty(Softmax(scale=1.0), multiplied_mask),
        Faulty(Softmax(), nan_backwards),
    ],
    "causal": [
        Faulty(Softmax(), after(lambda x: x), {"causal": True}),
        Faulty(Softmax(causal=True), lambda op, q, k, v, mask: op(q, k, v.roll(-1, -2), mask)),
        Faulty(Softmax(causal=True), causal_by_ten_thousand),
        Faulty(LinearAttention(causal=True), causal_by_shared_scale),
        Faulty(Softmax(causal=True), lambda op, q, k, v, mask: op(q, k, v - v.mean(-2, True))),
        # Landmarks are means over later tokens too.
        Faulty(Nystromformer(4), after(lambda x: x), {"causal": True}),
        # Right, but for too few queries, which it pads in silence.
        Faulty(
            Softmax(causal=True),
            lambda op, q, k, v, mask: op(torch.cat((q, k), -2)[..., : k.shape[-2], :], k, v, mask),
        ),
    ],
    "tokens far apart": [
        *(Faulty(op, zeros) for op in (Softmax(), GaussianAttention(), Soft(4), Nystromformer(4))),
        *(
            Faulty(op, mean_of_v)
            for op in (Softmax(), GaussianAttention(), Soft(4), TruncatedSVD(4))
        ),
    ],
    "identical tokens": [
        Faulty(Soft(4), zeros),
        Faulty(Soft(4), mean_of_v),
        Faulty(TruncatedSVD(4), zeros),
        # A sample of the keys has their mean only in expectation.
        Faulty(ColumnSample(4), after(lambda x: x), {"exact_at_rank_one": True}),
        WholeBlocks(2, 1),
    ],
    "low rank": [
        Faulty(Nystromformer(4), one_rank_less),
        Faulty(Soft(4), silently_exact),
        Faulty(Nystromformer(4), silently_exact),
        Faulty(TruncatedSVD(4), silently_exact),
    ],
    "exact at its most": [
        *(Faulty(op, zeros) for op in (Soft(4), Nystromformer(4), TruncatedSVD(4))),
        *(Faulty(op, mean_of_v) for op in (Soft(4), Nystromformer(4), TruncatedSVD(4))),
        Faulty(Soft(4, pinv=Ridge(SVD(), 1e-6)), after(lambda x: x), {"exact_at": "rank"}),
        Faulty(Skyformer(4), after(lambda x: x), {"exact_at": "rank"}),
        *(Faulty(Skyformer(4, gamma=0.0, pinv=SVD()), x) for x in (zeros, mean_of_v)),
        Faulty(Soft(4, normalization="published"), after(lambda x: x), {"exact_at": "rank"}),
        NarrowedAtMost(2),
        Faulty(ColumnSample(4), mean_of_v),
        Faulty(Linformer(4), after(lambda x: x), {"exact_at": "rank"}),
    ],
    "monotone": [
        TokenShort(4),
        Narrowing(2),
        # More landmarks need not be the better ones.
        Faulty(Nystromformer(4), after(lambda x: x), {"monotone": "Frobenius"}),
        Faulty(TruncatedSVD(4), lambda op, q, k, v, mask: TruncatedSVD(11 - op.rank)(q, k, v)),
    ],
    "target": [
        laws.adapted(over_d, traits="", target=Softmax()),
        Faulty(Soft(4), lambda op, q, k, v, mask: op.target(q, k, v, mask)),
        Faulty(Thinformer(3), lambda op, q, k, v, mask: op.target(q, k, v, mask)),
        Faulty(Thinformer(256), lambda op, q, k, v, mask: op.target(q, k, v, mask)),
        Faulty(KDEFormer(3, 4), lambda op, q, k, v, mask: op.target(q, k, v, mask)),
    ],
    "finite": [Faulty(GaussianAttention(), unguarded_gaussian)],
    "batch independence": [
        Faulty(Softmax(), batch_scaled),
        Soft(4, pinv=NewtonRaphson(20, BatchWide(1.8))),
        Nystromformer(4, pinv=NystromformerCubic(6, BatchWide())),
        Faulty(Softmax(), after(lambda x: x.roll(1, -3) if x.ndim > 3 else x)),
        Faulty(Softmax(), lambda op, q, k, v, mask: op(q, k, v, first_mask(mask))),
        Faulty(Softmax(), beyond(64, lambda x: 1.01 * x)),
        Faulty(Softmax(), beyond(512, lambda x: 1.01 * x)),
        Faulty(Softmax(), temperature_by_head),
        Faulty(Softmax(), lambda op, q, k, v, mask: op(q, k, v, of_many_dropped(mask))),
        Faulty(Softmax(), after(lambda x: torch.cat((x[:64], x[:-64])) if len(x) > 64 else x)),
        Faulty(Softmax(), after(lambda x: x.squeeze(0) if x.ndim == 3 else x)),
        Faulty(Softmax(), lambda op, q, k, v, m: op(q, k, v[:, :1] if v.ndim > 4 else v, m)),
        Faulty(
            Softmax(),
            lambda op, q, k, v, m: op(
                q, k, v, None if m is not None and m.ndim < v.ndim - 1 else m
            ),
        ),
        Faulty(Local(2), after(lambda x: x + 1e-3 * (x.ndim > 2 and len(x) > 8))),
    ],
    "same pattern everywhere": [laws.adapted(in_chunks), laws.adapted(in_eight_bits)],
    "averages everywhere": [
        laws.adapted(by_segments),
        laws.adapted(biased_by_distance),
        Faulty(Softmax(), beyond(512, lambda x: 1.01 * x)),
    ],
    "columns of zeros": [
        laws.adapted(of_narrow_directions),
        Faulty(
            Softmax(),
            lambda op, q, k, v, mask: op(q * (1.1 if q.shape[-1] > 96 else 1), k, v, mask),
        ),
    ],
    "each column alone": [
        Faulty(Softmax(), lambda op, q, k, v, mask: op(q, k, only_first(v, 32), mask)),
        Faulty(Local(2), after(lambda x: x.mean(-1, True).expand_as(x))),
    ],
    "leaves no trace": [
        Faulty(Softmax(), zeroed_in_place),
        Faulty(Softmax(), seeded),
        Faulty(Softmax(), defaulting),
        Faulty(Softmax(), after(lambda x: torch.set_printoptions(precision=3) or x)),
        Faulty(Softmax(), after(lambda x: warnings.simplefilter("ignore") or x)),
        Faulty(Softmax(), after(lambda x: torch.set_default_device("cpu") or x)),
        Faulty(Softmax(), after(lambda x: x if x.requires_grad else x.requires_grad_())),
        Faulty(Softmax(), in_place_of_v),
        Faulty(Softmax(), in_one_buffer()),
        Faulty(Softmax(), cached_by_address()),
    ],
    "holds no input": [Faulty(Softmax(), kept_alive()), Faulty(Softmax(), view_kept_alive())],
    "gradient of each matrix": [
        Faulty(Softmax(), first_key_graded),
        Faulty(Softmax(), after(lambda x: DoubledAbove.apply(x))),
        Faulty(Softmax(), after(lambda x: x * (1.01 if x.requires_grad and len(x) > 64 else 1))),
        Faulty(Softmax(), after(lambda x: MeanOverBatch.apply(x) if x.ndim > 2 else x)),
        Faulty(Softmax(), detached_under_a_mask),
        Faulty(Softmax(), mean_where_shared),
        Faulty(Softmax(), after(Gathered.apply)),
        Faulty(
            Softmax(),
            lambda op, q, k, v, mask: op(q if k.requires_grad else q.detach(), k, v, mask),
        ),
    ],
    "half precision everywhere": [
        Faulty(Softmax(), after(lambda x: HalfGradient.apply(x, torch.bfloat16))),
        Faulty(Softmax(), after(lambda x: HalfGradient.apply(x, torch.float16))),
        laws.adapted(unshifted_in_half),
        laws.adapted(added_one_by_one),
    ],
    "gradient where q is k": [
        Faulty(
            Softmax(),
            lambda op, q, k, v, mask: op(q, k, v.detach() if v is k else v, mask),
        ),
        Faulty(
            Softmax(),
            lambda op, q, k, v, mask: op(q, k.detach() if k is q else k, v, mask),
        ),
    ],
    "float32 everywhere": [
        Faulty(
            Softmax(),
            lambda op, q, k, v, mask: (
                op(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask).to(v)
                if v.dtype == torch.float32 and k.shape[-2] > 64
                else op(q, k, v, mask)
            ),
        ),
        Faulty(Softmax(), after(lambda x: Halved.apply(x) if x.dtype == torch.float32 else x)),
    ],
    "same form everywhere": [
        laws.adapted(zeros_beyond_sixteen),
        laws.adapted(unscaled_beyond_d_64),
        laws.adapted(transposed_beyond_eight),
        laws.adapted(causal_where_long),
        Faulty(Softmax(), after(lambda x: x if x.shape[-2] < 1024 else x.flip(-2))),
        laws.adapted(a_millionth_in_the_sums),
        laws.adapted(expanded_squares),
        laws.adapted(sum_beyond_64, target=LinearAttention()),
        laws.adapted(sum_beyond_64),
        laws.adapted(last_of_each_chunk_lost),
        laws.adapted(filled_with_zeros),
        Faulty(
            Softmax(), lambda op, q, k, v, mask: op(q, k[..., :1024, :], v[..., :1024, :], mask)
        ),
        Faulty(
            Softmax(),
            lambda op, q, k, v, mask: op(
                gradient_of(q, 2.0 if k.shape[-2] > 64 else 1), k, v, mask
            ),
        ),
        Faulty(TopK(4), lambda op, q, k, v, mask: TopK(min(op.k, 64))(q, k, v, mask)),
    ],
    "unbiased": [
        SpoiltFeatures(16, spoil=lambda phi, *_: 1.01 * phi),
        SpoiltFeatures(16, spoil=lambda phi, logs, half: (logs + half).exp() / 4),
        SpoiltFeatures(16, spoil=lambda phi, *_: phi / 4),  # by m instead of sqrt(m)
        # The factor a^(d / 4) of bounded features left out, a = 4 / 3 in four dimensions.
        SpoiltFeatures(16, estimator="optimal", rho=0.6, spoil=lambda phi, *_: phi / (4 / 3)),
        SpoiltKernel(16, spoil=lambda K: 0 * K),
        SpoiltKernel(16, spoil=lambda K: K.mean() + 0 * K),
        SpoiltKernel(16, spoil=lambda K: K + 1e-9 * torch.arange(K.shape[-1])),
        MeanBesideItsKernel(16),
        CountedInBlocks(block=3, samples=6),
        BandTwice(1, 16),
        DrawnEvenly(block=3, samples=6),
        MeanBesideItsDraws(block=3, samples=6),
        Performer(16, weights=Stretched()),
        RandomFourier(16, weights=Stretched()),
        RandomFourier(16, target=GaussianAttention(), weights=Stretched()),
    ],
    "variance": [
        Performer(16, weights=Repeated()),
        WiderClaim(1, 16),
        RandomFourier(16, weights=Repeated()),
        Performer(16, weights=Repeated(orthogonal=True, independent=False)),
        RepeatedSigns(64),
        Performer(16, weights=ClaimedIndependent(), estimator="hyperbolic"),
        *(
            kind(16, **fields)
            for fields in (
                {"weights": IID(), "estimator": "hyperbolic"},
                {"weights": IID(), "scale": 0.3},
                {"weights": IID(), "estimator": "optimal"},
            )
            for kind in (ClaimsLess, ClaimsMore)
        ),
    ],
    "replacement": [
        Concentrated(),
        FormBesideItsMean(),
    ],
    "linear memory": [
        Faulty(Softmax(), lambda op, q, k, v, mask: (q @ k.mT).softmax(-1) @ v),
        Faulty(TruncatedSVD(4), silently_dense, {"linear_memory": True}),
    ],
    "gradient": [
        Faulty(Softmax(), lambda op, q, k, v, mask: op(q, k.detach(), v, mask)),
        Soft(4, pinv=ImplicitGradient(NewtonRaphson(steps=3))),
    ],
}
