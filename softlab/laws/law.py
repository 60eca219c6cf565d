"""What a law is, and the one tolerance model."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from softlab import validation
from softlab.core import Stream

WIDE = 80
"""A width of tokens beyond the usual 64."""
S = TypeVar("S")


class Gap(NamedTuple):
    """By how much an identity or bound is missed, how much is allowed, and on what."""

    missed: float
    allowed: float
    where: str = ""

    @property
    def holds(self) -> bool:
        """Whether the miss is allowed; NaN never is."""
        return self.missed <= self.allowed

    @property
    def said(self) -> str:
        """The gap in words."""
        return f"missed by {self.missed:.3g}, allowed {self.allowed:.3g}; {self.where}"


class BrokenLawError(AssertionError):
    """A law does not hold for a subject that it applies to."""


class OutOfScopeError(Exception):
    """Raised by a measurement that finds that its law does not apply; the message says why."""


@dataclass(frozen=True)
class Draws:
    """How the inputs of a law are drawn.

    ``dtype``, ``device``: of what is drawn, for the laws that name none themselves. ``digits``:
    entries are rounded to so many decimals, None keeps them as they are. ``small``: batches, widths
    and lengths are the least that the law has a use for. The last two make counterexamples short.
    ``thorough``: many more sizes, up to some thousand keys. ``situation``: the one situation to
    draw, by its choices of ``softlab.laws.situations.DESIGN``; ordinary ones where it names none.
    """

    dtype: torch.dtype = torch.float64
    device: str = "cpu"
    digits: int | None = None
    small: bool = False
    thorough: bool = False
    situation: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        validation.fields(self)
        validation.floating("Draws.dtype", self.dtype)
        if self.digits is not None:
            validation.count("Draws.digits", self.digits, 0, 15)


_draws: ContextVar[Draws] = ContextVar("draws", default=Draws())  # noqa: B039  frozen
_seed: ContextVar[int] = ContextVar("seed", default=0)
_drawn: ContextVar[list[Tensor] | None] = ContextVar("drawn", default=None)
_copies = mmap.mmap(-1, 1)
"""A byte that a process shares with its copies."""
_met: ContextVar[Mapping[str, Any] | None] = ContextVar("met", default=None)


@contextlib.contextmanager
def drawing(draws: Draws) -> Iterator[list[Tensor]]:
    """Draw like this inside; gives the list of what ``normal`` has drawn."""
    drawn: list[Tensor] = []
    before, kept = _draws.set(draws), _drawn.set(drawn)
    try:
        yield drawn
    finally:
        _draws.reset(before)
        _drawn.reset(kept)


@dataclass(frozen=True)
class Law(Generic[S]):
    """An identity or bound with its domain and its measurement.

    ``statement``: the identity or bound. ``applies`` reads a subject's claims; ``measure`` draws
    inputs from the generator and yields one ``Gap`` for each comparison, or raises
    ``OutOfScopeError``. In words: ``family``; ``when``, the end of "holds for a subject that ...";
    ``allows``, its tolerance; ``catches``, the fault planted in the tests of this repository that
    breaks it. ``any_dtype``: whether it can be asked in other precisions than its own.
    ``examples``: the most seeds that are worth drawing; one where a law asks for many itself.
    """

    name: str
    statement: str
    applies: Callable[[S], bool]
    measure: Callable[[S, torch.Generator], Iterator[Gap]]
    family: str = "own"
    when: str = "is any"
    allows: str = ""
    catches: str = ""
    any_dtype: bool = False
    examples: int = field(default=1_000_000, repr=False)

    def broken(self, subject: S, *, seed: int = 0, draws: Draws | None = None) -> Gap | None:
        """The first gap that is not allowed; None if the law holds, or does not apply.

        Raises ``OutOfScopeError`` where that shows only in the measurement, and what the subject
        raises.
        """
        if not self.applies(subject):
            return None
        with drawing(draws or _draws.get()):
            gaps = self.measure(subject, generator(seed))
            return next((gap for gap in gaps if not gap.holds), None)

    @validation.typed
    def check(self, subject: S, *, seed: int = 0, draws: Draws | None = None) -> None:
        """Raise ``BrokenLawError`` unless the law holds for ``subject`` or does not apply to it.

        ``seed``, ``draws``: of the inputs. A subject that raises breaks the law, too.
        """
        validation.count("seed", seed, 0, math.inf)
        try:
            gap = self.broken(subject, seed=seed, draws=draws)
        except OutOfScopeError:
            return
        except Exception as error:
            msg = f"{subject!r} breaks '{self.name}' ({self.statement}): {said(error)}; seed={seed}"
            raise BrokenLawError(msg) from error
        if gap is not None:
            msg = f"{subject!r} breaks '{self.name}' ({self.statement}): {gap.said}; seed={seed}"
            raise BrokenLawError(msg)


def generator(seed: int) -> torch.Generator:
    """The random numbers of a law at this seed, which ``asked`` tells while they are drawn."""
    _seed.set(seed)
    meet(None)
    return Stream(seed, "laws").generator


def asked() -> int:
    """The seed that the law in hand is asked at."""
    return _seed.get()


def guarded(call: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """The answer of a call; a copy of the process that it makes by a fork ends where it returns."""
    process = os.getpid()
    try:
        return call(*given, **named)
    finally:
        if os.getpid() != process:
            _copies[0] = 1
            os._exit(0)


def copied() -> bool:
    """Whether a copy has come back from a ``guarded`` call since this was asked last."""
    found = bool(_copies[0])
    _copies[0] = 0
    return found


def draws_now() -> Draws:
    """How inputs are drawn at the moment."""
    return _draws.get()


def meet(row: Mapping[str, Any] | None) -> None:
    """Note the choices of the situation that is drawn next; ``met`` tells them."""
    _met.set(row)


def met() -> Mapping[str, Any] | None:
    """The choices of the situation drawn last, None for a law that draws none."""
    return _met.get()


def said(error: BaseException) -> str:
    """An exception in one line."""
    first = str(error).strip().splitlines()[:1]
    return f"raised {type(error).__name__}" + "".join(f": {line}" for line in first)


def tolerance(
    dtype: torch.dtype, n: int, *, kappa: float = 1.0, scale: float = 1.0, c: float = 10.0
) -> float:
    """The tolerance model of softlab: c * sqrt(n) * eps(dtype) * kappa * scale.

    ``dtype``: of the arithmetic, and no finer than the one that a law's inputs are drawn in;
    ``n``: length of the sums involved; ``kappa``: condition number of the drawn problem;
    ``scale``: magnitude of the exact result.
    """
    eps = max(torch.finfo(x).eps for x in (dtype, _draws.get().dtype))
    return c * math.sqrt(n) * eps * kappa * scale


def always(subject: object) -> bool:  # noqa: ARG001
    """Applies to every subject."""
    return True


def normal(rng: torch.Generator, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Standard normal entries as ``Draws`` has them; the stream does not depend on the dtype."""
    how = _draws.get()
    x = torch.randn(shape, generator=rng, dtype=torch.float64, device="cpu")
    if how.digits is not None:
        x = x.round(decimals=how.digits)
    x = x.to(how.device, dtype or how.dtype)
    drawn = _drawn.get()
    if drawn is not None:
        drawn.append(x)
    return x


def as_drawn(x: Tensor) -> Tensor:
    """A tensor in the dtype and on the device of what is drawn."""
    how = _draws.get()
    return x.to(how.device, how.dtype)


def size(usual: int, least: int = 1) -> int:
    """A size that decides nothing, or the least that will do where ``Draws`` wants small ones."""
    return least if _draws.get().small else usual


def separated(rng: torch.Generator, n: int) -> Tensor:
    """Tokens so far apart that kernel and softmax cores are near the identity: any solver inverts.

    Rows of a scaled orthogonal matrix: |x_i|^2 = 150, so in 16 dimensions the softmax of x x^T has
    off-diagonal entries exp(-150 / 4) and every Gaussian at unit bandwidth or so underflows.
    """
    square = normal(rng, 16, 16, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(square).Q
    return as_drawn(basis[:n] * math.sqrt(150))


def uniform_int(rng: torch.Generator, low: int, high: int) -> int:
    """An integer in [low, high], and low where ``Draws`` wants small ones."""
    drawn = int(torch.randint(low, high + 1, (), generator=rng, device="cpu"))
    return low if _draws.get().small else drawn


def order(rng: torch.Generator, n: int) -> Tensor:
    """A random order of n tokens."""
    return torch.randperm(n, generator=rng, device="cpu").to(_draws.get().device)


def largest(x: Tensor) -> float:
    """The largest magnitude, NaN if there is one."""
    return float(x.detach().double().abs().max())


def rank_of(op: Any) -> int:
    """The operator's rank, or 1 for one that has none."""
    return int(getattr(op, "rank", 1))


def needs_equal(op: Any) -> bool:
    """Whether each key needs a query."""
    return bool(op.traits.causal or getattr(op, "equal_lengths", False))


def lengths(op: Any, n: int, l: int) -> tuple[int, int]:
    """Numbers of queries and keys to draw: n and l, or l and l where each key needs a query.

    A function that needs lengths with a divisor gets the next ones that have it.
    """
    step = int(getattr(op, "multiple", 1))
    n, l = (-(-x // step) * step for x in (n, l))
    return (l, l) if needs_equal(op) else (n, l)


def is_plain(op: Any) -> bool:
    """Whether it is a function of tensors alone, with neither knobs nor the manners of ours."""
    return bool(getattr(op, "plain", False))


def has_core(op: Any) -> bool:
    """Whether the operator inverts a matrix of landmarks, whose condition multiplies rounding."""
    return hasattr(op, "pinv")


def deletes(op: Any) -> bool:
    """Whether masking keys is deleting them: not of a function that knows the places of tokens."""
    return takes_mask(op) and (not is_plain(op) or op.traits.key_invariant)


def refused(op: Any, error: Exception, dtype: torch.dtype) -> bool:
    """Whether a function of others refuses a precision in torch's own words, as torch's do.

    Or calls a matrix singular, whose inverse it found too far off in that precision.
    """
    words = (
        "not implemented for",
        "Low precision dtypes not supported",
        "expected scalar type",
        "doesn't handle types",
    )
    named = str(dtype).removeprefix("torch.").lower() in str(error).lower() or "Half" in str(error)
    low = any(word in str(error) for word in words) or "BFloat16" in str(error)
    singular = "LinAlgError" in type(error).__name__  # torch's, SciPy's or NumPy's
    return is_plain(op) and dtype.itemsize < 4 and (named or low or singular)


def need_gradient(subject: Any, *leaves: Tensor) -> None:
    """Raise ``OutOfScopeError`` where a function gives no gradient in any of its tensors."""
    asked_for = [x.detach().clone().requires_grad_() for x in leaves]
    if is_plain(subject) and not subject(*asked_for).requires_grad:
        msg = "its output has no gradient: it leaves torch, or takes none by design"
        raise OutOfScopeError(msg)


def takes_mask(op: Any) -> bool:
    """Whether the operator takes a key mask; a plain function need not."""
    return bool(getattr(op, "masked", True))


def has_target(op: Any) -> bool:
    """Whether it is known what the operator approximates; of a plain function it need not be."""
    return getattr(op, "target", None) is not None


def at_most(op: Any, l: int) -> Any:
    """The same operator where ``traits.exact_at`` says that it is exact, for l keys."""
    return dataclasses.replace(op, **{op.traits.exact_at: 2 * l if op.traits.lifted else l})


def steps_of(solver: object) -> int:
    """The number of steps of a solver, looked for inside wrappers; 0 for a direct one."""
    inner = getattr(solver, "solver", None)
    return steps_of(inner) if inner is not None else int(getattr(solver, "steps", 0))


def after_steps(subject: S, steps: int) -> S:
    """The same operator or solver with every inner iteration cut to ``steps``.

    A coupling between the matrices of a batch enters through scalings and stopping rules, and
    convergence hides it; two steps do not.
    """
    return refielded(subject, "steps", steps)


def reseeded(subject: S, seed: int) -> S:
    """The same operator with every seed inside it, also those of weights, set to ``seed``."""
    return refielded(subject, "seed", seed)


def own_fields(subject: object) -> set[str]:
    """The names of the fields of a frozen dataclass, none of anything else."""
    if not dataclasses.is_dataclass(subject):
        return set()
    return {own.name for own in dataclasses.fields(subject)}


def has_field(subject: object, name: str) -> bool:
    """Whether a field of that name is in the operator or solver, at any depth."""
    if not dataclasses.is_dataclass(subject) or isinstance(subject, type):
        return False
    inner = ((own.name, getattr(subject, own.name)) for own in dataclasses.fields(subject))
    return any(found == name or has_field(held, name) for found, held in inner)


def refielded(subject: S, name: str, held: Any) -> S:
    """The same frozen dataclass with the field ``name`` set at every depth."""
    if not dataclasses.is_dataclass(subject) or isinstance(subject, type):
        return subject
    changed: dict[str, Any] = {}
    for own in dataclasses.fields(subject):
        inner = getattr(subject, own.name)
        if own.name == name:
            changed[own.name] = held
        elif dataclasses.is_dataclass(inner):
            changed[own.name] = refielded(inner, name, held)
    return dataclasses.replace(subject, **changed)
