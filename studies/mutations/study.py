"""How much the laws see: faulty operators and solvers made of the catalogue, and the catalogue.

A mutant is a subclass of an operator or a solver with one fault, and claims what the right one
claims. Laws are asked in turn until one breaks; a mutant that keeps them all survives. The right
ones are asked every law, at two seeds, and none may break. Laws draw in precisions of their own,
so a run-level dtype changes nothing.

Mutants were planted by those who wrote the laws. The faults of ``planted`` were not: half of them
are held out, so that no law is ever mended after one, and measure what a check of a stranger's
subject is worth. They are asked as ``laws.examine`` asks, as are correct subjects in unusual style.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from softlab import laws, operators, pinv
from softlab.core import Cost, causal_form
from softlab.engine.journal import Row
from softlab.features import IID
from softlab.landmarks import SegmentMeans, UniformRandom
from softlab.laws.adapters import is_solver
from softlab.laws.faults import (
    Wrong,
    as_it_is,
    by_value_width,
    dense,
    diagonal,
    exact_if,
    in_half,
    in_place,
    inputs,
    instead,
    last_key_left_out,
    later_token,
    mask_by_zeros,
    mask_inverted,
    noisy,
    output,
    planted,
    remembering,
    talking,
    through_matrix,
    undisturbed,
    unmasked,
    wrong_sign,
    zeros,
)
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

SEEDS = 2
MUTANT_SEEDS = 2
PATIENCE = 150.0
"""Seconds for a law, so that a busy machine is not taken for a fault."""


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
    return Specimen(fault, repr(base), planted(base, wrong, **members), reason)


def each(*bases: Any) -> tuple[Any, ...]:
    """Operators of several kinds."""
    return bases


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
        yield mutant("the mean of v", base, instead(Uniform()))
    for base in each(Softmax(), GaussianAttention(), SMALL_NYSTROM, Local(2), SMALL_PERFORMER):
        yield mutant("scores times 1.1", base, inputs(lambda q, k, v: (1.1 * q, k, v)))
    for base in each(Softmax(), SMALL_NYSTROM):
        yield mutant("scores over the root of the value's width", base, inputs(by_value_width))
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
    for base in each(Softmax(), SMALL_NYSTROM, Local(2)):
        yield mutant("values off by one", base, inputs(lambda q, k, v: (q, k, v.roll(1, -2))))
    yield mutant("the last key left out", Softmax(), last_key_left_out)
    for base in each(Softmax(), SMALL_SOFT):
        yield mutant("a factor 1 + 1e-7", base, output(lambda x: x * (1 + 1e-7)))
    yield mutant("a constant added", GaussianAttention(), output(lambda x: x + 1e-7))
    yield mutant("magnitudes of the output", SMALL_PERFORMER, output(torch.abs))
    for base in each(Softmax(causal=True), Local(2, causal=True), LinearAttention(causal=True)):
        yield mutant("one later token", base, inputs(later_token))
    centred = inputs(lambda q, k, v: (q, k - k.mean(-2, keepdim=True), v))
    yield mutant("keys centred over all tokens", LinearAttention(causal=True), centred)

    def hiding(right: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Any:
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
    yield mutant("exact always", SMALL_SOFT, instead(GaussianAttention()))
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
        yield mutant("a seed that is ignored", base, instead(base))
    yield mutant("a dense matrix under a linear claim", Performer(16), through_matrix)
    free: dict[str, Any] = {"cost": lambda self, dims: Cost(0)}
    yield mutant("work that is not claimed", SMALL_NYSTROM, as_it_is, **free)
    half: dict[str, Any] = {"cost": lambda self, dims: Cost(Softmax().cost(dims).flops // 2)}
    why = "the counter sees nothing of fused kernels, so half of a claim is within the law's range"
    yield mutant("half of the work claimed", Softmax(), as_it_is, why, **half)


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
    yield mutant("the transpose of the inverse", SVD(), lambda right, a: right(a).mT)
    yield mutant("a factor 1 + 1e-9", SVD(), lambda right, a: right(a) * (1 + 1e-9))
    yield mutant("zeros", SVD(), lambda right, a: 0 * right(a))
    yield mutant("the identity", Cholesky(), lambda right, a: 0 * a + torch.eye(a.shape[-1]).to(a))
    yield mutant("the inverse of the diagonal", SVD(), diagonal)
    yield mutant("one triangle for both", SVD(), lambda right, a: right(a.tril() + a.tril(-1).mT))
    yield mutant(
        "a shift that is not claimed",
        SVD(),
        lambda right, a: right(a + 1e-6 * torch.eye(a.shape[-1]).to(a)),
    )


def of_solvers_gradients() -> Iterator[Specimen]:
    """Right inverses with a wrong gradient."""
    yield mutant(
        "a matrix without a gradient", NewtonRaphson(24), lambda right, a: right(a.detach())
    )
    yield mutant(
        "an implicit gradient of the wrong sign", ImplicitGradient(NewtonRaphson(24)), wrong_sign
    )
    yield mutant(
        "half of a gradient",
        GolubPereyra(SVD()),
        lambda right, a: 0.5 * right(a) + 0.5 * right(a).detach(),
    )
    yield mutant("a gradient after two steps", ImplicitGradient(NewtonRaphson(2)), as_it_is)


def of_solvers_manners() -> Iterator[Specimen]:
    """Precision, side effects, and claims."""
    yield mutant("sums in float16", NewtonRaphson(24), in_half)
    yield mutant("a result in float64", SVD(), lambda right, a: right(a).double())
    yield mutant("an argument changed in place", SVD(), lambda right, a: a.copy_(right(a)))
    yield mutant(
        "noise of the global generator",
        SVD(),
        lambda right, a: right(a) * (1 + 1e-9 * torch.randn(()).to(a)),
    )
    yield mutant("a print", SVD(), lambda right, a: print("inverting") or right(a))  # noqa: T201
    yield mutant("the first result kept", SVD(), keeping())
    converged: dict[str, Any] = {
        "solve": lambda self, a: NewtonRaphson.solve(self, a)._replace(
            status=torch.zeros(a.shape[:-2], dtype=torch.long)
        )
    }
    yield mutant("always converged", NewtonRaphson(24), as_it_is, **converged)
    half: dict[str, Any] = {
        "cost": lambda self, m, batch=1: Cost(NewtonRaphson(12).cost(m, batch).flops)
    }
    yield mutant("half of the work claimed", NewtonRaphson(24), as_it_is, **half)
    claims = dataclasses.replace(NystromformerCubic(14).traits, order=4, growth=2.0)
    yield mutant(
        "an order that it has not",
        NystromformerCubic(14),
        as_it_is,
        traits=property(lambda self: claims),
    )
    singular = dataclasses.replace(Cholesky().traits, singular=True)
    yield mutant(
        "singular matrices that it cannot",
        Cholesky(),
        as_it_is,
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


def unseen(one: Planted) -> Specimen:
    """A fault of the half that its name is in; planted in its kind."""
    half = TUNED if tuned(one.name) else HELD_OUT
    return Specimen(one.name, one.kind, one.make, UNSEEN.get(one.name, ""), half)


def unusual(one: Sound) -> Specimen:
    """A correct subject."""
    return Specimen("", one.name, one.make, origin="unusual")


MUTANTS = [*operators_mutated(), *solvers_mutated()]
CATALOGUE = list(catalogue())
PLANTED = [unseen(x) for x in (*planted_operators.OPERATORS, *planted_solvers.SOLVERS)]
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
    title="Which faulty operators and solvers break a law",
    question="Faults are planted into operators and solvers, by us and by someone who did not "
    "know the laws. How many of them break a law, and does anything that is right break "
    "one?",
    axes={
        "specimen": [*MUTANTS, *CATALOGUE, *PLANTED, *UNUSUAL],
        "seed": tuple(range(SEEDS)),
    },
    quick={
        "specimen": [*MUTANTS[::9], *CATALOGUE[::18], *PLANTED[::24], *UNUSUAL[::38]],
        "seed": (0,),
    },
    measure=measure,
    keep=keep,
)
