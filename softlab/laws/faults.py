"""Planted faults: ordinary mistakes in writing attention or an inverse, put into any subject.

A fault is a function that stands for a call: of the right subject and the tensors it makes a wrong
output. ``planted`` makes of a subject one that claims the same and calls the fault instead. The
tests plant them into subjects of each law, the study ``mutations`` into the catalogue, and
``laws.power`` into a subject of the user's, to see which laws would notice.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from softlab.core import Stream, as_matrix
from softlab.laws import cost
from softlab.laws.adapters import is_solver, without
from softlab.laws.law import Draws, Law, guarded, takes_mask
from softlab.laws.purity import choose_determinism
from softlab.laws.runner import EXAMPLES, SECONDS, Outcome, Verdict, outcome

Wrong = Callable[..., Any]
"""Of the right subject and a call's tensors, q, k, v and a mask or None, or a: the wrong output."""

FAMILY = "power"
"""The family of outcomes that tell of faults instead of laws."""
STATEMENT = "a planted fault that a law sees"


class Right:
    """A subject as it is without its fault: its own call, and all else that it has."""

    def __init__(self, subject: Any, kind: type) -> None:
        self._subject, self._kind = subject, kind

    def __call__(self, *tensors: Any) -> Any:
        """Call as the right subject does."""
        call: Any = self._kind.__call__
        return call(self._subject, *tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subject, name)


def planted(subject: Any, wrong: Wrong, **members: Any) -> Any:
    """A subject that claims what ``subject`` claims, with another call.

    Args:
        subject: an operator or a solver, as ``laws.adapted`` returns it.
        wrong: the fault.
        members: other methods or properties of the class that are spoilt.

    Returns:
        An object of a subclass with the same fields, so that ``dataclasses.replace`` keeps it.
    """
    kind = type(subject)
    solves = is_solver(subject)

    def operator(self: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Any = None) -> Any:
        return wrong(Right(self, kind), q, k, v, key_mask)

    def solver(self: Any, a: Tensor) -> Any:
        return wrong(Right(self, kind), a)

    call = solver if solves else operator
    spoilt: Any = type(kind.__name__, (kind,), {"__call__": call, **members})
    if dataclasses.is_dataclass(subject):
        given = {x.name: getattr(subject, x.name) for x in dataclasses.fields(subject) if x.init}
        return spoilt(**given)
    made = copy.copy(subject)
    object.__setattr__(made, "__class__", spoilt)
    return made


@dataclass(frozen=True)
class Fault:
    """A mistake with its name.

    ``make``: a new function each time, since some keep state. ``shows``: the output, or a gradient,
    of some call is another, so that a fault that changes none in a subject is none there; a
    side effect or a claim is one in every subject. ``needs``: whether it can be planted in a
    subject. ``members``: other members of the subject's class that are spoilt, of that class.
    """

    name: str
    make: Callable[[], Wrong] = field(repr=False)
    shows: bool = True
    needs: Callable[[Any], bool] = field(default=callable, repr=False)
    members: Callable[[type], Mapping[str, Any]] = field(default=lambda _: {}, repr=False)

    def plant(self, subject: Any) -> Any:
        """A subject with this fault, and with a state of its own."""
        return planted(subject, self.make(), **self.members(type(subject)))


# What faults are made of.


def output(change: Callable[[Any], Any]) -> Wrong:
    """Spoil the right output."""
    return lambda right, *tensors: change(right(*tensors))


def inputs(change: Callable[..., tuple[Tensor, ...]]) -> Wrong:
    """Spoil q, k and v."""
    return lambda right, q, k, v, mask: right(*change(q, k, v), mask)


def instead(other: Any) -> Wrong:
    """Be another subject."""
    return lambda right, *tensors: other(*tensors)


def dense(scores: Callable[[Tensor, Tensor], Tensor]) -> Wrong:
    """Weights from scores, plainly."""

    def wrong(right: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Any:
        weights = scores(q, k)
        return (weights if mask is None else weights * mask.unsqueeze(-2)) @ v

    return wrong


def exact_if(short: Callable[[Any, Tensor, Any], bool]) -> Wrong:
    """The target in silence, where ``short(op, q, mask)``."""

    def wrong(right: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Any:
        return (right.target if short(right, q, mask) else right)(q, k, v, mask)

    return wrong


def beyond(size: int, change: Callable[[Tensor], Tensor]) -> Wrong:
    """Right for few keys, or a small matrix, and spoilt where there are more than ``size``."""

    def wrong(right: Any, *tensors: Any) -> Any:
        out = right(*tensors)
        return change(out) if tensors[-3 if len(tensors) > 1 else 0].shape[-2] > size else out

    return wrong


def zeros(right: Any, *tensors: Any) -> Any:
    """Nothing."""
    return 0 * right(*tensors)


def mean_of_values(right: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Any:
    """The mean of the values, whatever queries and keys say."""
    if mask is None:
        return v.mean(-2, keepdim=True) + 0 * (q @ k.mT).sum(-1, keepdim=True)
    kept = torch.where(mask.unsqueeze(-1), v, 0)
    mean = kept.sum(-2, keepdim=True) / mask.sum(-1)[..., None, None].clamp_min(1)
    return mean + 0 * q[..., :1]


def last_key_left_out(right: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Any:
    """All keys but the last."""
    if k.shape[-2] == 1:
        return right(q, k, v, mask)
    return right(q, k[..., :-1, :], v[..., :-1, :], None if mask is None else mask[..., :-1])


def by_largest_query(right: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Any:
    """Scales queries by the largest of the whole batch."""
    return right(q / q.abs().max(), k, v, mask)


def unmasked(right: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Any:
    """No mask."""
    return right(q, k, v)


def mask_by_zeros(right: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Any:
    """Masked keys and values are zero, and still take part."""
    if mask is None:
        return right(q, k, v)
    return right(q, *(torch.where(mask.unsqueeze(-1), x, 0) for x in (k, v)))


def mask_inverted(right: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Any:
    """True hides a key."""
    return right(q, k, v, mask if mask is None or mask.all() else ~mask)


def first_mask_for_all(right: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Any:
    """The mask of the first matrix for all of them."""
    if mask is not None and mask.ndim > 1:
        mask = mask.flatten(0, -2)[0]
    return right(q, k, v, mask)


def zeroed_in_place(right: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Any:
    """Masked values become zero where the caller holds them."""
    if mask is not None and v.is_contiguous() and not v.requires_grad:
        v[~mask.expand(v.shape[:-1])] = 0
    return right(q, k, v, mask)


def detached_under_mask(right: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Any:
    """Keys without a gradient, where there is a mask."""
    return right(q, k if mask is None else k.detach(), v, mask)


def later_token(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values of one token later."""
    return q, k.roll(-1, -2), v.roll(-1, -2)


def by_value_width(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores over the root of the value's width."""
    return q * (q.shape[-1] / v.shape[-1]) ** 0.5, k, v


def temperature_by_head(right: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Any:
    """Each head has another temperature, which a single matrix does not show."""
    if q.ndim > 3:
        q = q * torch.linspace(1, 2, q.shape[-3]).to(q)[:, None, None]
    return right(q, k, v, mask)


def in_half(right: Any, *tensors: Any) -> Any:
    """Summed in float16, but where the input is float64."""
    dtype = tensors[0].dtype
    if dtype == torch.float64:
        return right(*tensors)
    floats = [x.half() if x is not None and x.is_floating_point() else x for x in tensors]
    return right(*floats).to(dtype)


def seeding(right: Any, *tensors: Any) -> Any:
    """Seeds the generator of all."""
    torch.manual_seed(0)
    return right(*tensors)


def talking(right: Any, *tensors: Any) -> Any:
    """A line for each call."""
    print("called")  # noqa: T201
    return right(*tensors)


def noisy(right: Any, *tensors: Any) -> Any:
    """A breath of the global generator."""
    out = right(*tensors)
    return out * (1 + 1e-9 * torch.randn(()).to(out))


def in_place(right: Any, *tensors: Any) -> Any:
    """The caller's first tensor is scaled."""
    first, *rest = tensors
    with torch.no_grad():
        first.mul_(1.5)
    return right(first / 1.5, *rest)


def double_default(right: Any, *tensors: Any) -> Any:
    """Leaves another default dtype behind."""
    torch.set_default_dtype(torch.float64)
    return right(*tensors)


def as_contiguous(right: Any, *tensors: Any) -> Any:
    """Reads the last tensor as if it were contiguous: the values, or the matrix."""
    at = 2 if len(tensors) > 1 else 0
    read = tensors[at]
    plain = read.as_strided(read.shape, torch.empty(read.shape).stride())
    return right(*tensors[:at], plain, *tensors[at + 1 :])


def remembering() -> Wrong:
    """The first call's largest number is the scale of all."""
    seen: list[Tensor] = []

    def wrong(right: Any, first: Tensor, *rest: Any) -> Any:
        seen.append(first.detach().abs().max())
        return right(first / seen[0].to(first), *rest)

    return wrong


def keeping() -> Wrong:
    """The first result of each shape is that of all."""
    kept: dict[Any, Tensor] = {}

    def wrong(right: Any, *tensors: Any) -> Any:
        key = tuple(None if x is None else (*x.shape, x.dtype) for x in tensors)
        return kept.setdefault(key, right(*tensors).detach())

    return wrong


def keeping_by_length(of: int = 0) -> Wrong:
    """A factor by the width is kept by how many rows the tensor ``of`` that number has."""
    kept: dict[int, int] = {}

    def wrong(right: Any, *tensors: Any) -> Any:
        first, *rest = tensors
        width = first.shape[-1]
        factor = kept.setdefault(tensors[of].shape[-2], width) / width
        return right(first * factor**0.5, *rest)

    return wrong


def kept_alive() -> Wrong:
    """The last call's tensors stay in memory."""
    held: list[Any] = []

    def wrong(right: Any, *tensors: Any) -> Any:
        held[:] = tensors
        return right(*tensors)

    return wrong


class Regraded(torch.autograd.Function):
    """The identity, whose gradient is a function of the right one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:
        """Keep the function."""
        ctx.back = back
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Apply it."""
        return ctx.back(grad), None


class Once(torch.autograd.Function):
    """The identity, whose gradient is a constant to whoever differentiates it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Copy."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Cut the graph of the gradient."""
        return grad.detach()


def applied(function: Any, *given: Any) -> Any:
    """A function of torch, whose methods have no types."""
    return function.apply(*given)


def regraded(back: Callable[[Tensor], Tensor]) -> Wrong:
    """The right output with a gradient that ``back`` has spoilt."""
    return output(lambda x: applied(Regraded, x, back))


def mean_over_batch(grad: Tensor) -> Tensor:
    """A mean over the first axis of a batch."""
    return grad.mean(0, keepdim=True).expand_as(grad) if grad.ndim > 2 else grad


def constant_in_second(right: Any, first: Tensor, *rest: Any) -> Any:
    """Right to first order; a second derivative takes the gradient for a constant."""
    return right(applied(Once, first), *rest)


def through_matrix(right: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Any:
    """The whole matrix of the target, formed."""
    return as_matrix(right.target, q, k, mask) @ v


def approximates(subject: Any) -> bool:
    """Whether its target is another operator, of which the fault can make use in silence."""
    target = getattr(subject, "target", None)
    return target is not None and type(target) is not type(subject)


def causal(subject: Any) -> bool:
    """Whether later tokens are hidden."""
    return bool(subject.traits.causal)


def _now(name: str, wrong: Wrong, **more: Any) -> Fault:
    return Fault(name, lambda: wrong, **more)


def as_it_is(right: Any, *tensors: Any) -> Any:
    """The right call, of what is spoilt elsewhere."""
    return right(*tensors)


def claims_of_cost(factor: float) -> Callable[[Any], Mapping[str, Any]]:
    """A multiple of the work is claimed."""

    def members(kind: Any) -> Mapping[str, Any]:
        def claimed(self: Any, *sizes: Any, **named: Any) -> Any:
            right = kind.cost(self, *sizes, **named)
            return dataclasses.replace(right, flops=int(factor * right.flops))

        return {"cost": claimed}

    return members


def claims_work(subject: Any) -> bool:
    """Whether it says how much work it does."""
    return hasattr(subject, "cost")


EVERYWHERE: tuple[Fault, ...] = (
    _now("zeros", zeros),
    _now("a factor 1 + 1e-7", output(lambda x: x * (1 + 1e-7))),
    _now("zeros beyond 16", beyond(16, torch.zeros_like)),
    _now("a factor 1.01 beyond 64", beyond(64, lambda x: 1.01 * x)),
    _now("matrices of a batch exchanged", output(lambda x: x.flip(0) if x.ndim > 2 else x)),
    _now("matrices of a head exchanged", output(lambda x: x.flip(-3) if x.ndim > 3 else x)),
    _now("a result transposed", output(lambda x: x.mT)),
    _now("a result of another dtype", output(
        lambda x: x.float() if x.dtype == torch.float64 else x.double())),
    _now("sums in float16", in_half),
    _now("NaN replaced by zero", output(lambda x: x.nan_to_num())),
    _now("memory taken for contiguous", as_contiguous),
    _now("no gradient", output(lambda x: x.detach())),
    _now("half of the gradient", regraded(lambda grad: grad / 2)),
    _now("half of the gradient in float32", regraded(
        lambda grad: grad / 2 if grad.dtype == torch.float32 else grad)),
    _now("the gradient's mean over the batch", regraded(mean_over_batch)),
    _now("a gradient that is a constant", constant_in_second),
    Fault("scaled by what was seen first", remembering),
    Fault("the first result of each shape kept", keeping),
    Fault("tensors kept alive", kept_alive, shows=False),
    _now("an argument changed in place", in_place, shows=False),
    _now("a print", talking, shows=False),
    _now("noise of the global generator", noisy, shows=False),
    _now("the global generator seeded", seeding, shows=False),
    _now("another default dtype", double_default, shows=False),
    _now("four times the work claimed", as_it_is, shows=False, needs=claims_work,
         members=claims_of_cost(4.0)),
    _now("a quarter of the work claimed", as_it_is, shows=False, needs=claims_work,
         members=claims_of_cost(0.25)),
)  # fmt: skip
"""Faults of operators and of solvers."""

OPERATORS: tuple[Fault, ...] = (
    *EVERYWHERE,
    _now("the mean of v", mean_of_values),
    Fault("a scale kept by the number of queries", keeping_by_length),
    _now("scores times 1.1", inputs(lambda q, k, v: (1.1 * q, k, v))),
    _now("scores over the root of the value's width", inputs(by_value_width)),
    _now("scores unscaled beyond a width of 64", inputs(
        lambda q, k, v: (1.1 * q if q.shape[-1] > 64 else q, k, v))),
    _now("a maximum over the batch", by_largest_query),
    _now("a temperature of each head's own", temperature_by_head),
    _now("queries off by one", output(lambda x: x.roll(1, -2))),
    _now("values off by one", inputs(lambda q, k, v: (q, k, v.roll(1, -2)))),
    _now("the last key left out", last_key_left_out),
    _now("queries and keys exchanged", lambda right, q, k, v, mask: (
        right(k, q, v, mask) if q.shape == k.shape else right(q, k, v, mask))),
    _now("magnitudes of the output", output(torch.abs)),
    _now("a mask that is ignored", unmasked, needs=takes_mask),
    _now("masked keys as zeros", mask_by_zeros, needs=takes_mask),
    _now("a mask inverted", mask_inverted, needs=takes_mask),
    _now("the first mask for all", first_mask_for_all, needs=takes_mask),
    _now("masked values zeroed in place", zeroed_in_place, shows=False, needs=takes_mask),
    _now("queries without a gradient", inputs(lambda q, k, v: (q.detach(), k, v))),
    _now("keys without a gradient", inputs(lambda q, k, v: (q, k.detach(), v))),
    _now("values without a gradient", inputs(lambda q, k, v: (q, k, v.detach()))),
    _now("keys without a gradient under a mask", detached_under_mask, needs=takes_mask),
    _now("one later token", inputs(later_token), needs=causal),
    _now("keys centred over all tokens", inputs(
        lambda q, k, v: (q, k - k.mean(-2, keepdim=True), v)), needs=causal),
    _now("exact where short", exact_if(lambda op, q, mask: q.shape[-2] <= 16), needs=approximates),
    _now("exact where masked", exact_if(lambda op, q, mask: mask is not None),
         needs=lambda op: approximates(op) and takes_mask(op)),
    _now("exact without a graph", exact_if(lambda op, q, mask: not torch.is_grad_enabled()),
         needs=approximates),
    _now("a dense matrix under a linear claim", through_matrix,
         needs=lambda op: approximates(op) and cost.FLOPS.applies(op)),
)  # fmt: skip
"""Faults that can be planted in any operator, or in those that ``needs`` says."""


def diagonal(right: Any, a: Tensor) -> Any:
    """The inverse of the diagonal."""
    return torch.diag_embed(1 / a.diagonal(dim1=-2, dim2=-1))


def wrong_sign(right: Any, a: Tensor) -> Any:
    """An implicit gradient with the sign forgotten."""
    x = right(a).detach()
    return x + x @ (a - a.detach()) @ x


def shifted(right: Any, a: Tensor) -> Any:
    """A shift that is not claimed."""
    return right(a + 1e-6 * torch.eye(a.shape[-1]).to(a))


def all_like_the_first(result: Any) -> Any:
    """The first matrix's status for the batch."""
    status = result.status
    return result._replace(status=status.flatten()[:1].expand(status.shape).clone())


def _lie(name: str, lie: Callable[[Any], Any]) -> Fault:
    """A solver whose ``solve`` says something else than it found."""

    def members(kind: Any) -> Mapping[str, Any]:
        return {"solve": lambda self, a: lie(kind.solve(self, a))}

    return Fault(name, lambda: as_it_is, False, lambda subject: hasattr(subject, "solve"), members)


SOLVERS: tuple[Fault, ...] = (
    *EVERYWHERE,
    _now("the identity", lambda right, a: 0 * a + torch.eye(a.shape[-1]).to(a)),
    _now("the inverse of the diagonal", diagonal),
    _now("one triangle for both", lambda right, a: right(a.tril() + a.tril(-1).mT)),
    _now("the symmetric part alone", lambda right, a: right((a + a.mT) / 2)),
    _now("a shift that is not claimed", shifted),
    _now("a gradient of the wrong sign", wrong_sign),
    _now("a gradient transposed", regraded(lambda grad: grad.mT)),
    _lie("always converged", lambda found: found._replace(status=0 * found.status)),
    _lie("the first matrix's status for all", all_like_the_first),
    _lie("a residual of zero", lambda found: found._replace(residual=0 * found.residual)),
    _lie("another x than was judged", lambda found: found._replace(x=1.01 * found.x)),
)  # fmt: skip
"""Faults that can be planted in any solver."""


def faults(subject: Any) -> tuple[Fault, ...]:
    """Those that can be planted in a subject."""
    every = SOLVERS if is_solver(subject) else OPERATORS
    return tuple(fault for fault in every if fault.needs(subject))


def _ignored(name: str) -> None:
    """Nobody asks."""


def power(
    subject: Any,
    suite: Sequence[Law[Any]],
    *,
    examples: int = EXAMPLES,
    seconds: float = SECONDS,
    draws: Draws | None = None,
    thorough: bool = False,
    done: Collection[str] = (),
    asking: Callable[[str], None] = _ignored,
) -> Iterator[Outcome]:
    """The laws of a suite that a subject breaks itself, then what becomes of each planted fault.

    Args:
        subject: as ``laws.adapted`` returns it.
        suite: laws; those that the subject keeps are asked of faults, as ``seen`` does.
        examples: seeds of each law.
        seconds: the most that a law may take.
        draws: dtype and device of the inputs.
        thorough: ask every law of each fault, instead of up to the first that breaks.
        done: names of laws that are known to be broken, and of faults that have been asked.
        asking: is called with the name of the law, or of the fault, that is asked next.

    Yields:
        Outcomes; those of faults are of the family ``FAMILY``.
    """
    kept = []
    for law in suite:
        if law.name in done:
            continue
        asking(law.name)
        found = outcome(subject, law, seeds=range(examples), seconds=seconds, draws=draws)
        subject = without(subject, found.dropped)
        if found.verdict is Verdict.HOLDS:
            kept.append(law)
        elif found.verdict is Verdict.FAILS:
            yield found
    for fault in faults(subject):
        if fault.name not in done:
            yield seen(
                subject,
                fault,
                kept,
                examples=examples,
                seconds=seconds,
                draws=draws,
                thorough=thorough,
                asking=asking,
            )


def seen(
    subject: Any,
    fault: Fault,
    suite: Sequence[Law[Any]],
    *,
    examples: int = EXAMPLES,
    seconds: float = SECONDS,
    draws: Draws | None = None,
    thorough: bool = False,
    asking: Callable[[str], None] = _ignored,
) -> Outcome:
    """Which of these laws see a fault that is planted in a subject which keeps them.

    Args:
        subject: as ``laws.adapted`` returns it.
        fault: one of ``faults(subject)``.
        suite: laws that the subject keeps.
        examples: seeds of each law.
        seconds: the most that a law may take.
        draws: dtype and device of the inputs.
        thorough: ask every law, instead of up to the first that breaks.
        asking: is called with the fault's name before each law.

    Returns:
        An outcome under the fault's name: HOLDS if a law breaks, and ``detail`` says which; FAILS
        if none does; SKIPPED if the fault changes no output and no gradient of this subject.
    """
    laws, spent = [], 0.0
    # What takes long comes last.
    for law in sorted(suite, key=lambda law: law.examples < 3):
        asking(fault.name)
        with undisturbed():
            asked = outcome(
                fault.plant(subject),
                law,
                seeds=range(examples),
                seconds=seconds,
                draws=draws,
                simplest=False,
            )
        spent += asked.seconds
        if asked.verdict is Verdict.FAILS:
            laws.append(asked.law)
            if not thorough:
                break
    verdict, detail = Verdict.HOLDS, "; ".join(laws)
    if not laws:
        verdict, detail = Verdict.FAILS, "no law sees it"
        with undisturbed():
            none = fault.shows and not changes(subject, fault.plant(subject))
        if none:
            verdict, detail = Verdict.SKIPPED, "changes no output and no gradient of this subject"
    return Outcome(fault.name, FAMILY, STATEMENT, verdict, detail, examples, spent)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever a subject does to what all share is undone."""
    dtype, threads, graph = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )
    deterministic, drawn = torch.are_deterministic_algorithms_enabled(), random.getstate()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(graph)
        choose_determinism(deterministic)
        random.setstate(drawn)


PROBES: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "operator": (
        *((5, 5, 4, 3), (2, 3, 4, 6, 5, 2), (2, 130, 130, 8, 4), (2, 9, 9, 80, 80)),
        (9, 9, 8, 3),  # as many tokens as before, of another width
    ),
    "solver": ((3,), (2, 3, 5), (1, 2, 70)),
}
"""Leading sizes, then n, l, d, e, or m, of the calls that compare a subject with a planted one."""


def changes(subject: Any, spoilt: Any) -> bool:
    """Whether an output, a first or a second derivative of some call is another, to the last bit.

    A call at which both raise the same is no difference.
    """
    for dtype in (torch.float64, torch.float32, torch.float16):
        for tensors in _probes(subject, dtype):
            for view in (lambda x: x, lambda x: x.mT.contiguous().mT):
                given = tuple(map(view, tensors))
                if _answers(subject, given) != _answers(spoilt, given):
                    return True
    return False


def _probes(subject: Any, dtype: torch.dtype) -> Iterator[tuple[Tensor, ...]]:
    rng = Stream(0, "laws").generator  # the calls are the same for both

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

    if is_solver(subject):
        for *lead, m in PROBES["solver"]:
            a = draw(*lead, m, m) + 3 * m**0.5 * torch.eye(m, dtype=dtype)
            yield (a,)
            yield (a / a.new_zeros(()),)
        return
    for *lead, n, l, d, e in PROBES["operator"]:
        tensors = draw(*lead, n, d), draw(*lead, l, d), draw(*lead, l, e)
        yield tensors
        yield tuple(x[..., : min(n, l), :] for x in tensors)
        yield tensors[0], tensors[1], tensors[2] / tensors[2].new_zeros(())


def _answers(subject: Any, tensors: tuple[Tensor, ...]) -> list[Any]:
    """The output with and without masks, and derivatives, as bytes, or what was raised."""
    masks: list[Any] = [()]
    if not is_solver(subject):
        keep = torch.ones(*tensors[1].shape[:-1], dtype=torch.bool)
        keep[..., 1::3] = False
        keep.view(-1, keep.shape[-1])[1:, 1:] = True  # masks differ
        masks.append((keep,))
    answers: list[Any] = []
    for mask in masks:
        leaves = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in tensors]
        try:
            with torch.no_grad():
                answers.append(_bytes(guarded(subject, *tensors, *mask)))
            out = guarded(subject, *leaves, *mask)
            answers.append(_bytes(out))
            once = torch.autograd.grad(
                out.square().sum(), leaves, create_graph=True, allow_unused=True
            )
            answers += map(_bytes, once)
            again = [x.square().sum() for x in once if x is not None and x.requires_grad]
            whole = torch.stack(again).sum()
            twice = torch.autograd.grad(whole, leaves, allow_unused=True)
            answers += map(_bytes, twice)
        except Exception as error:
            answers.append(repr(error))
    return answers


def _bytes(x: Tensor | None) -> Any:
    return None if x is None else (x.shape, x.dtype, x.detach().cpu().double().numpy().tobytes())
