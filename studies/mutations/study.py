"""How much the laws see: faulty operators and solvers made of the catalogue, and the catalogue.

A mutant is a subclass of an operator or a solver with one fault, and claims what the right one
claims. Laws are asked in turn until one breaks; a mutant that keeps them all survives. The right
ones are asked every law, at two seeds, and none may break. Laws draw in precisions of their own,
so a run-level dtype changes nothing.

Mutants were planted by those who wrote the laws. The faults of ``planted`` were not: half of them
are held out, so that no law is ever mended after one, and measure what a check of a stranger's
subject is worth. They are asked as ``laws.examine`` asks, as are correct subjects in unusual style.
"""

# ruff: noqa: ARG001, ARG005  signatures are kept where their calls are spoilt

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softlab import laws, operators, pinv
from softlab.core import Cost, as_matrix, causal_form
from softlab.engine.journal import Row
from softlab.features import IID
from softlab.landmarks import SegmentMeans, UniformRandom
from softlab.laws.adapters import is_solver
from softlab.operators import (
    ColumnSample,
    GaussianAttention,
    LinearAttention,
    Linformer,
    Local,
    Nystromformer,
    Performer,
    RandomFourier,
    Soft,
    Softmax,
    TopK,
    TruncatedSVD,
    Uniform,
)
from softlab.pinv import (
    SVD,
    Cholesky,
    GolubPereyra,
    ImplicitGradient,
    NewtonRaphson,
    NormProduct,
    NystromformerCubic,
    Ridge,
)
from softlab.study import Study

from .columns import HELD_OUT, TUNED
from .planted import UNSEEN, Planted, Sound, tuned
from .planted import operators as planted_operators
from .planted import solvers as planted_solvers
from .planted.correct import CORRECT
from .planted.shown import undisturbed

SEEDS = 2
MUTANT_SEEDS = 2
PATIENCE = 150.0
"""Seconds for a law, so that a busy machine is not taken for a fault."""

Wrong = Callable[..., Any]
"""From the right call, the operator, q, k, v and the mask to the wrong output."""


@dataclass(frozen=True)
class Specimen:
    """A subject with the fault that was planted in it, or none.

    ``reason``: why no law can be expected to see the fault. ``origin``: empty for what is made of
    the catalogue; "tuned" and "held out" of planted faults, "unusual" of correct subjects, whose
    ``subject`` is made anew for the laws. A worker is sent its name, by which it finds its own: a
    class that is made here cannot be sent.
    """

    fault: str
    base: str
    subject: Any = field(repr=False)
    reason: str = ""
    origin: str = ""

    def __reduce__(self) -> tuple[Callable[[str, str], Specimen], tuple[str, str]]:
        return named, (self.fault, self.base)


def mutant(fault: str, base: Any, wrong: Wrong, reason: str = "", **members: Any) -> Specimen:
    """``base`` with another ``__call__``, and other members if need be."""
    kind = type(base)

    def call(self: Any, *tensors: Any, **named: Any) -> Any:
        return wrong(partial(kind.__call__, self), self, *tensors, **named)

    spoilt = type(kind.__name__, (kind,), {"__call__": call, **members})
    fields = {x.name: getattr(base, x.name) for x in dataclasses.fields(base)}
    return Specimen(fault, repr(base), spoilt(**fields), reason)


def output(change: Callable[[Tensor], Tensor]) -> Wrong:
    """Spoil the right output."""
    return lambda right, op, q, k, v, key_mask=None: change(right(q, k, v, key_mask))


def inputs(change: Callable[..., tuple[Tensor, ...]]) -> Wrong:
    """Spoil q, k and v."""
    return lambda right, op, q, k, v, key_mask=None: right(*change(q, k, v), key_mask)


def other(instead: Any) -> Wrong:
    """Be another operator."""
    return lambda right, op, q, k, v, key_mask=None: instead(q, k, v, key_mask)


def each(*bases: Any) -> tuple[Any, ...]:
    """Operators of several kinds."""
    return bases


def zeros(right: Any, op: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Any = None) -> Any:
    """Nothing."""
    return v.new_zeros(*right(q, k, v, key_mask).shape)


def dense(scores: Callable[[Tensor, Tensor], Tensor]) -> Wrong:
    """Weights from scores, plainly."""

    def wrong(right: Any, op: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Any = None) -> Any:
        weights = scores(q, k)
        if key_mask is not None:
            weights = weights * key_mask.unsqueeze(-2)
        return weights @ v

    return wrong


def unmasked(right: Any, op: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Any = None) -> Any:
    """No mask."""
    return right(q, k, v)


def mask_by_zeros(
    right: Any, op: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Any = None
) -> Any:
    """Masked keys and values are zero, and still take part."""
    if key_mask is None:
        return right(q, k, v)
    return right(q, *(torch.where(key_mask.unsqueeze(-1), x, 0) for x in (k, v)))


def mask_inverted(
    right: Any, op: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Any = None
) -> Any:
    """True hides a key."""
    return right(q, k, v, key_mask if key_mask is None or key_mask.all() else ~key_mask)


def exact_if(short: Callable[[Any, Tensor, Any], bool]) -> Wrong:
    """The target in silence, where ``short(op, q, mask)``."""

    def wrong(right: Any, op: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Any = None) -> Any:
        return (op.target if short(op, q, key_mask) else right)(q, k, v, key_mask)

    return wrong


def in_half(right: Any, op: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Any = None) -> Any:
    """Summed in float16, but where the input is float64."""
    if v.dtype == torch.float64:
        return right(q, k, v, key_mask)
    return right(q.half(), k.half(), v.half(), key_mask).to(v.dtype)


def remembering() -> Wrong:
    """The first call's largest query is the scale of all."""
    seen: list[Tensor] = []

    def wrong(right: Any, op: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Any = None) -> Any:
        seen.append(q.detach().abs().max())
        return right(q / seen[0].to(q), k, v, key_mask)

    return wrong


def in_place(right: Any, op: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Any = None) -> Any:
    """The caller's queries are scaled."""
    with torch.no_grad():
        q.mul_(1.5)
    return right(q / 1.5, k, v, key_mask)


def talking(right: Any, op: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Any = None) -> Any:
    """A line for each call."""
    print(type(op).__name__)  # noqa: T201
    return right(q, k, v, key_mask)


def noisy(right: Any, op: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Any = None) -> Any:
    """A breath of the global generator."""
    return right(q, k, v, key_mask) * (1 + 1e-9 * torch.randn(()).to(v))


def wide_scale(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores over the root of the value's width."""
    return q * (q.shape[-1] / v.shape[-1]) ** 0.5, k, v


SMALL_SOFT, SMALL_NYSTROM, SMALL_PERFORMER = Soft(4), Nystromformer(4), Performer(16)


def operators_mutated() -> Iterator[Specimen]:
    """The faults of operators."""
    yield from of_scores()
    yield from of_tokens()
    yield from of_masks_and_gradients()
    yield from of_manners()
    yield from landmarks_mutated()


def of_scores() -> Iterator[Specimen]:
    """Wrong weights."""
    for base in each(
        Softmax(),
        GaussianAttention(),
        SMALL_SOFT,
        SMALL_NYSTROM,
        SMALL_PERFORMER,
        Local(2),
        TopK(3),
    ):
        yield mutant("zeros", base, zeros)
    for base in each(
        Softmax(), SMALL_SOFT, SMALL_NYSTROM, SMALL_PERFORMER, Linformer(4), TruncatedSVD(3)
    ):
        yield mutant("the mean of v", base, other(Uniform()))
    for base in each(Softmax(), GaussianAttention(), SMALL_NYSTROM, Local(2), SMALL_PERFORMER):
        yield mutant("scores times 1.1", base, inputs(lambda q, k, v: (1.1 * q, k, v)))
    for base in each(Softmax(), SMALL_NYSTROM):
        yield mutant("scores over the root of the value's width", base, inputs(wide_scale))
    unsquared = dense(lambda q, k: (-torch.cdist(q, k) / 4).exp())
    yield mutant("a distance without its square", GaussianAttention(), unsquared)
    no_half = inputs(lambda q, k, v: (2**0.5 * q, 2**0.5 * k, v))
    yield mutant("an exponent without its half", GaussianAttention(), no_half)
    yield mutant("an exponent without its half", SMALL_SOFT, no_half)
    columns = dense(lambda q, k: (q @ k.mT / q.shape[-1] ** 0.5).softmax(-2))
    yield mutant("a softmax over the queries", Softmax(), columns)
    bare = dense(lambda q, k: (q @ k.mT / q.shape[-1] ** 0.5).exp())
    yield mutant("rows that are not normalised", Softmax(), bare)

    def flattened(q: Tensor, k: Tensor) -> Any:
        w = (q @ k.mT / q.shape[-1] ** 0.5 - 8).exp()
        return w / (w.sum(-1, keepdim=True) + 1e-6)

    yield mutant("an epsilon in the normaliser", Softmax(), dense(flattened))
    clipped = dense(lambda q, k: (q @ k.mT / q.shape[-1] ** 0.5).clamp(-5, 5).softmax(-1))
    yield mutant("clipped scores", Softmax(), clipped)


def of_tokens() -> Iterator[Specimen]:
    """Numbers of the wrong tokens or matrices, and outputs off by little."""
    for base in each(Softmax(), SMALL_SOFT, SMALL_PERFORMER):
        largest = inputs(lambda q, k, v: (q / q.abs().max(), k, v))
        yield mutant("a maximum over the batch", base, largest)
    yield mutant("a mean over the batch", Local(2), output(lambda x: x + 1e-4 * x.mean()))
    swapped = output(lambda x: x.flip(0) if x.ndim > 2 else x)
    yield mutant("matrices of a batch exchanged", TopK(3), swapped)
    yield mutant("queries off by one", Softmax(), output(lambda x: x.roll(1, -2)))
    shifted = inputs(lambda q, k, v: (q, k, v.roll(1, -2)))
    for base in each(Softmax(), SMALL_NYSTROM, Local(2)):
        yield mutant("values off by one", base, shifted)

    def shorter(right: Any, op: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Any:
        mask = None if mask is None else mask[..., :-1]
        return right(q, k[..., :-1, :], v[..., :-1, :], mask)

    yield mutant("the last key left out", Softmax(), shorter)
    for base in each(Softmax(), SMALL_SOFT):
        yield mutant("a factor 1 + 1e-7", base, output(lambda x: x * (1 + 1e-7)))
    yield mutant("a constant added", GaussianAttention(), output(lambda x: x + 1e-7))
    yield mutant("magnitudes of the output", SMALL_PERFORMER, output(torch.abs))
    for base in each(Softmax(causal=True), Local(2, causal=True), LinearAttention(causal=True)):
        ahead = inputs(lambda q, k, v: (q, k.roll(-1, -2), v.roll(-1, -2)))
        yield mutant("one later token", base, ahead)
    centred = inputs(lambda q, k, v: (q, k - k.mean(-2, keepdim=True), v))
    yield mutant("keys centred over all tokens", LinearAttention(causal=True), centred)

    def hiding(right: Any, op: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Any:
        tied = q.shape[-2] == k.shape[-2] and mask is None
        return Softmax(causal=True)(q, k, v) if tied else right(q, k, v, mask)

    yield mutant("causal where it can be", Softmax(), hiding)


def of_masks_and_gradients() -> Iterator[Specimen]:
    """Masks, gradients, precision, and exact answers in disguise."""
    for base in each(Softmax(), SMALL_SOFT, Linformer(4)):
        yield mutant("a mask that is ignored", base, unmasked)
    for base in each(Softmax(), SMALL_NYSTROM, SMALL_PERFORMER):
        yield mutant("masked keys as zeros", base, mask_by_zeros)
    yield mutant("a mask inverted", Softmax(), mask_inverted)
    for name, detached in {
        "queries": lambda q, k, v: (q.detach(), k, v),
        "keys": lambda q, k, v: (q, k.detach(), v),
        "values": lambda q, k, v: (q, k, v.detach()),
    }.items():
        for base in each(Softmax(), SMALL_SOFT):
            yield mutant(f"{name} without a gradient", base, inputs(detached))
    halved = inputs(lambda q, k, v: (0.5 * q + 0.5 * q.detach(), k, v))
    yield mutant("half of a gradient", SMALL_NYSTROM, halved)
    for base in each(Softmax(), Local(2), SMALL_PERFORMER):
        yield mutant("sums in float16", base, in_half)
    short = exact_if(lambda op, q, mask: q.shape[-2] <= 2 * op.rank + 2)
    for base in each(SMALL_SOFT, SMALL_NYSTROM, TruncatedSVD(3)):
        yield mutant("exact where short", base, short)
    masked = exact_if(lambda op, q, mask: mask is not None)
    yield mutant("exact where masked", SMALL_NYSTROM, masked)
    yield mutant("exact always", SMALL_SOFT, other(GaussianAttention()))
    graphless = exact_if(lambda op, q, mask: not torch.is_grad_enabled())
    yield mutant("exact without a graph", SMALL_NYSTROM, graphless)


def of_manners() -> Iterator[Specimen]:
    """Side effects, results of another kind, and claims of cost."""
    for base in each(Softmax(), SMALL_SOFT):
        yield mutant("state between calls", base, remembering())
        yield mutant("an argument changed in place", base, in_place)
        yield mutant("a print", base, talking)
        yield mutant("noise of the global generator", base, noisy)
    yield mutant("a result in float32", Softmax(), output(lambda x: x.float()))
    yield mutant("a result transposed", Softmax(), output(lambda x: x.mT))
    for base in each(ColumnSample(4), Linformer(4), Soft(4, landmarks=UniformRandom())):
        right = base

        def unseeded(_: Any, op: Any, *tensors: Any, base: Any = right, **named: Any) -> Any:
            return base(*tensors, **named)

        yield mutant("a seed that is ignored", base, unseeded)

    def through_all(
        right: Any, op: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Any = None
    ) -> Any:
        return as_matrix(op.target, q, k, key_mask) @ v

    yield mutant("a dense matrix under a linear claim", Performer(16), through_all)
    free: dict[str, Any] = {"cost": lambda self, dims: Cost(0)}
    yield mutant("work that is not claimed", SMALL_NYSTROM, output(lambda x: x), **free)
    half: dict[str, Any] = {"cost": lambda self, dims: Cost(Softmax().cost(dims).flops // 2)}
    why = "the counter sees nothing of fused kernels, so half of a claim is within the law's range"
    yield mutant("half of the work claimed", Softmax(), output(lambda x: x), why, **half)


def landmarks_mutated() -> Iterator[Specimen]:
    """The faults of what a Nystrom-type operator is made of."""

    def part(fault: str, subject: Any) -> Specimen:
        return Specimen(fault, type(subject).__name__, subject)

    def selector(wrong: Callable[..., Tensor]) -> Any:
        kind = type(
            "SegmentMeans",
            (SegmentMeans,),
            {
                "__call__": lambda self, x, m, key_mask=None: wrong(SegmentMeans(), x, m, key_mask),
            },
        )
        return kind()

    spoilt = {
        "landmarks without a gradient": lambda s, x, m, mask: s(x, m, mask).detach(),
        "landmarks of padding": lambda s, x, m, mask: s(x, m),
        "landmarks off by one token": lambda s, x, m, mask: s(x.roll(1, -2), m, mask),
        "one landmark for all": lambda s, x, m, mask: s(x, m, mask)[..., :1, :].expand(
            *x.shape[:-2], m, x.shape[-1]
        ),
    }
    for name, wrong in spoilt.items():
        yield part(name, Soft(4, landmarks=selector(wrong)))
    yield part(
        "landmarks of padding", Nystromformer(4, landmarks=selector(spoilt["landmarks of padding"]))
    )
    solvers = {specimen.fault: specimen.subject for specimen in solvers_mutated()}
    for name in (
        "one scaling for the batch",
        "a scaling kept",
        "an implicit gradient of the wrong sign",
        "three steps",
    ):
        yield part(f"its solver: {name}", Soft(4, pinv=solvers[name]))
    same = "the core is symmetric, and so is its inverse: the same operator"
    transposed = Soft(4, pinv=solvers["the transpose of the inverse"])
    yield Specimen("its solver: the transpose of the inverse", "Soft", transposed, same)
    yield part(
        "its solver: the transpose of the inverse",
        Nystromformer(4, pinv=solvers["the transpose of the inverse"]),
    )
    cubic = NystromformerCubic(6, solvers["one scaling for the batch"].scaling)
    yield part("its solver: one scaling for the batch", Nystromformer(4, pinv=cubic))
    yield part("a factor of the scores in its weights", Performer(16, weights=stretched()))
    yield part("a factor of the scores in its weights", RandomFourier(16, weights=stretched()))


def stretched() -> Any:
    """Weights a tenth too long."""
    kind = type("IID", (IID,), {"__call__": lambda self, m, d: 1.1 * IID(self.seed)(m, d)})
    return kind()


def solver(fault: str, base: Any, wrong: Callable[[Any, Tensor], Any], **rest: Any) -> Specimen:
    """A solver whose call is ``wrong(right, a)``."""
    return mutant(fault, base, lambda right, self, a: wrong(right, a), **rest)


def scaling(wrong: Callable[[Any, Tensor], Tensor]) -> Any:
    """SOFT's initial guess, spoilt."""
    kind = type(
        "NormProduct",
        (NormProduct,),
        {
            "__call__": lambda self, a: wrong(NormProduct(1.8), a),
        },
    )
    return kind(1.8)


def solvers_mutated() -> Iterator[Specimen]:
    """The faults of solvers."""
    yield from of_starts()
    yield from of_inverses()
    yield from of_solvers_gradients()
    yield from of_solvers_manners()


def of_starts() -> Iterator[Specimen]:
    """Wrong initial guesses, and too few steps."""

    def iteration(fault: str, subject: Any) -> Specimen:
        return Specimen(fault, "NewtonRaphson", subject)

    def shared(_: Any, a: Tensor) -> Tensor:
        return 1.8 * a.mT / (a.abs().sum(-2).max() * a.abs().sum(-1).max())

    kept: list[Tensor] = []

    def stale(right: Any, a: Tensor) -> Any:
        guess = right(a)
        kept.append((guess.norm() / a.norm()).detach())
        return a.mT * kept[0].to(a)

    def floored(_: Any, a: Tensor) -> Tensor:
        return 1.8 * a.mT / (a.abs().sum(-2).amax(-1)[..., None, None] ** 2 + 1e-6)

    yield iteration("one scaling for the batch", NewtonRaphson(24, scaling(shared)))
    yield iteration("a scaling kept", NewtonRaphson(24, scaling(stale)))
    yield iteration("a scaling with an epsilon", NewtonRaphson(24, scaling(floored)))
    yield iteration("a scaling at its limit", NewtonRaphson(24, NormProduct(2.0)))
    yield iteration("three steps", NewtonRaphson(3))


def of_inverses() -> Iterator[Specimen]:
    """Wrong inverses."""
    yield solver("the transpose of the inverse", SVD(), lambda right, a: right(a).mT)
    yield solver("a factor 1 + 1e-9", SVD(), lambda right, a: right(a) * (1 + 1e-9))
    yield solver("zeros", SVD(), lambda right, a: 0 * right(a))
    yield solver("the identity", Cholesky(), lambda right, a: 0 * a + torch.eye(a.shape[-1]).to(a))
    diagonal = solver(
        "the inverse of the diagonal",
        SVD(),
        lambda right, a: torch.diag_embed(1 / a.diagonal(dim1=-2, dim2=-1)),
    )
    yield diagonal
    yield solver("one triangle for both", SVD(), lambda right, a: right(a.tril() + a.tril(-1).mT))
    yield solver(
        "a shift that is not claimed",
        SVD(),
        lambda right, a: right(a + 1e-6 * torch.eye(a.shape[-1]).to(a)),
    )


def of_solvers_gradients() -> Iterator[Specimen]:
    """Right inverses with a wrong gradient."""
    yield solver(
        "a matrix without a gradient", NewtonRaphson(24), lambda right, a: right(a.detach())
    )

    def wrong_sign(right: Any, a: Tensor) -> Any:
        x = right(a).detach()
        return x + x @ (a - a.detach()) @ x

    yield solver(
        "an implicit gradient of the wrong sign", ImplicitGradient(NewtonRaphson(24)), wrong_sign
    )
    yield solver(
        "half of a gradient",
        GolubPereyra(SVD()),
        lambda right, a: 0.5 * right(a) + 0.5 * right(a).detach(),
    )
    yield solver(
        "a gradient after two steps", ImplicitGradient(NewtonRaphson(2)), lambda right, a: right(a)
    )


def of_solvers_manners() -> Iterator[Specimen]:
    """Precision, side effects, and claims."""
    yield solver("sums in float16", NewtonRaphson(24), lambda right, a: right(a.half()).to(a.dtype))
    yield solver("a result in float64", SVD(), lambda right, a: right(a).double())
    yield solver("an argument changed in place", SVD(), lambda right, a: a.copy_(right(a)))
    yield solver(
        "noise of the global generator",
        SVD(),
        lambda right, a: right(a) * (1 + 1e-9 * torch.randn(()).to(a)),
    )
    yield solver("a print", SVD(), lambda right, a: print("inverting") or right(a))  # noqa: T201
    yield solver("the first result kept", SVD(), keeping())
    converged = {
        "solve": lambda self, a: NewtonRaphson.solve(self, a)._replace(
            status=torch.zeros(a.shape[:-2], dtype=torch.long)
        )
    }
    yield solver("always converged", NewtonRaphson(24), lambda right, a: right(a), **converged)
    half = {"cost": lambda self, m, batch=1: Cost(NewtonRaphson(12).cost(m, batch).flops)}
    yield solver("half of the work claimed", NewtonRaphson(24), lambda right, a: right(a), **half)
    claims = dataclasses.replace(NystromformerCubic(14).traits, order=4, growth=2.0)
    yield solver(
        "an order that it has not",
        NystromformerCubic(14),
        lambda right, a: right(a),
        traits=property(lambda self: claims),
    )
    singular = dataclasses.replace(Cholesky().traits, singular=True)
    yield solver(
        "singular matrices that it cannot",
        Cholesky(),
        lambda right, a: right(a),
        traits=property(lambda self: singular),
    )


def keeping() -> Callable[[Any, Tensor], Tensor]:
    """The first inverse of each size is that of all."""
    kept: dict[tuple[int, ...], Tensor] = {}
    return lambda right, a: kept.setdefault(tuple(a.shape), right(a).detach()).to(a)


def catalogue() -> Iterator[Specimen]:
    """Every operator with small knobs, its causal form if it has one, and every solver."""
    small = {"rank": 4, "features": 16, "k": 3, "clusters": 3, "window": 2, "block": 2, "size": 3}
    small |= {
        "globals": 1,
        "random": 1,
        "buckets": 4,
        "chunk": 3,
        "samples": 2,
        "refined": 1,
        "top": 2,
    }
    for name in operators.__all__:
        part: Any = getattr(operators, name)
        knobs = {x: small[x] for x in getattr(part, "__dataclass_fields__", ()) if x in small}
        op = part(**knobs)
        forms = [op, causal_form(op)]
        yield from (Specimen("", repr(form), form) for form in forms if form is not None)
    inverse = NewtonRaphson(26)
    solvers = [
        SVD(), Cholesky(), inverse, pinv.Hyperpower(3, 16), NystromformerCubic(14),
        pinv.Chebyshev(14), pinv.Minimax(1e3), pinv.SketchedFit(14), pinv.ConjugateGradients(40),
        Ridge(SVD(), 0.01), pinv.Purified(inverse), pinv.BestIterate(inverse),
        pinv.Polished(NewtonRaphson(30), steps=2), ImplicitGradient(inverse), GolubPereyra(inverse),
        pinv.Checkpointed(inverse),
    ]  # fmt: skip
    yield from (Specimen("", repr(one), one) for one in solvers)


def planted(one: Planted) -> Specimen:
    """A fault of the half that its name is in; planted in its kind."""
    half = TUNED if tuned(one.name) else HELD_OUT
    return Specimen(one.name, one.kind, one.make, UNSEEN.get(one.name, ""), half)


def unusual(one: Sound) -> Specimen:
    """A correct subject."""
    return Specimen("", one.name, one.make, origin="unusual")


MUTANTS = [*operators_mutated(), *solvers_mutated()]
CATALOGUE = list(catalogue())
PLANTED = [planted(x) for x in (*planted_operators.OPERATORS, *planted_solvers.SOLVERS)]
UNUSUAL = [unusual(x) for x in CORRECT]


def named(fault: str, base: str) -> Specimen:
    """The specimen of that fault in that part; no fault of the catalogue."""
    all_of_them = (*MUTANTS, *CATALOGUE, *PLANTED, *UNUSUAL)
    return next(one for one in all_of_them if (one.fault, one.base) == (fault, base))


def keep(specimen: Specimen, seed: int) -> bool:
    """What is not of the catalogue is asked once, at seeds in turn."""
    return not (specimen.fault or specimen.origin) or seed == 0


def measure(specimen: Specimen, seed: int, *, dtype: torch.dtype, device: torch.device) -> Row:
    """Of a faulty one the first law that breaks; of a right one how many were asked, and broke."""
    if not specimen.origin:
        seeds = range(MUTANT_SEEDS) if specimen.fault else (seed,)
        return _row(specimen, specimen.subject, seeds)
    with undisturbed():
        return _row(specimen, laws.adapted(specimen.subject()), range(laws.EXAMPLES))


def _row(specimen: Specimen, subject: Any, seeds: Sequence[int]) -> Row:
    suite = [law for law in laws.suite(subject) if law.applies(subject)]
    row: Row = {
        "solver": is_solver(subject),
        "fault": specimen.fault,
        "base": specimen.base,
        "reason": specimen.reason,
        "origin": specimen.origin,
        "laws": len(suite),
    }
    if specimen.fault:
        law, gap = _caught(subject, suite, seeds) or ("", "")
        return row | {"caught": bool(law), "alarms": None, "law": law, "gap": gap}
    broken = [law.name for law in suite if _breaks(law, subject, seeds)]
    return row | {"caught": None, "alarms": len(broken), "law": ", ".join(broken)}


def _caught(subject: Any, suite: list[Any], seeds: Sequence[int]) -> tuple[str, str] | None:
    # What takes long comes last.
    for law in sorted(suite, key=lambda law: law.examples < 3):
        said = _breaks(law, subject, seeds)
        if said:
            return law.name, said
    return None


def _breaks(law: Any, subject: Any, seeds: Sequence[int]) -> str:
    one = laws.outcome(subject, law, seeds=seeds, seconds=PATIENCE, simplest=False)
    return one.detail or "broken" if one.verdict is laws.Verdict.FAILS else ""


STUDY = Study(
    name="mutations",
    title="The power of the laws",
    question="Of faulty operators and solvers, made of the catalogue or by a stranger to the laws, "
    "how many break a law, and does anything right break any?",
    axes={
        "specimen": [*MUTANTS, *CATALOGUE, *PLANTED, *UNUSUAL],
        "seed": tuple(range(SEEDS)),
    },
    quick={
        "specimen": [*MUTANTS[::9], *CATALOGUE[::9], *PLANTED[::24], *UNUSUAL[::19]],
        "seed": (0, 1),
    },
    measure=measure,
    keep=keep,
)
