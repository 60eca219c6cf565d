"""The vocabulary of softlab: sizes, costs, claims, and what an operator is.

Axis names, everywhere: ``b`` batch (the product of all leading dimensions), ``n`` queries,
``l`` keys, ``d`` head width, ``e`` value width, ``m`` rank.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast, dataclass_transform, runtime_checkable

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils.checkpoint import checkpoint

from softlab import validation
from softlab.hints import first_line

S = TypeVar("S")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass_transform(frozen_default=True)
def value(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen dataclass whose ``repr`` is short and evaluates to an equal object.

    The first field is always shown, every other field only where it differs from its default, so
    ``Soft(rank=64)`` names the same operator in a table, a legend and a shell. A field outside the
    range that its annotation declares (``validation.ranges``) is refused, then by what the class's
    own ``__post_init__`` says of several fields.
    """

    def name(self: Any) -> str:
        shown = [
            f"{field.name}={_plain(getattr(self, field.name))!r}"
            for position, field in enumerate(dataclasses.fields(self))
            if position == 0 or getattr(self, field.name) != default_of(field)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    own: Callable[[Any], None] | None = getattr(cls, "__post_init__", None)

    def held(self: Any) -> None:
        validation.within(self)
        if own is not None:
            own(self)

    cls.__repr__ = name  # type: ignore[method-assign]
    cls.__post_init__ = held  # type: ignore[attr-defined]
    if "target" in dir(cls) or "target" in inspect.get_annotations(cls):  # an operator
        for question in ("bound", "interval", "at_most"):
            if not hasattr(cls, question):
                setattr(cls, question, _unanswered(question))
    return dataclass(frozen=True, repr=False)(cls)


INSTEAD = (
    "softlab.estimators.output_error(op, q, k, v) gives an interval for the error of one head from "
    "a sample of exact rows"
)
"""What can be had of any operator."""


def _unanswered(question: str) -> Callable[..., Any]:
    """A method that says that the operator does not answer, and what can be had instead."""

    def refuse(self: Any, *_: Any, **__: Any) -> Any:
        why = {
            "bound": "claims no bound of its error (traits.certified is False)",
            "interval": "has no interval from draws of its own (traits.draws is empty)",
            "at_most": "claims no bound of its error, so no setting of it can be certified",
        }[question]
        if question == "at_most" and self.traits.certified:
            why = (
                "has no setting at which its certificate falls step by step, so there is no "
                "smallest one; ask op.bound(q, k, v) of it as it is"
            )
        other = ""
        if question != "interval" and self.traits.draws:
            other = "op.interval(q, k, v) says by how much each row errs, with stated odds; "
        if question == "interval" and self.traits.certified:
            other = "op.bound(q, k, v) is certain; "
        msg = f"{self!r} {why}. Instead, {other}{INSTEAD}."
        raise ValueError(msg)

    refuse.__name__ = question
    refuse.__doc__ = "Not answered by this operator: raises ``ValueError``, which says what is."
    return refuse


def _plain(held: Any) -> Any:
    """A NumPy float as the Python float that it is, so that its name evaluates anywhere."""
    return float(held) if isinstance(held, float) else held


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a dataclass field, or ``dataclasses.MISSING``."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


class Stream:
    """Random numbers of one seed for one purpose, independent of those for every other purpose.

    Torch's generator on the CPU, its own seed the first eight bytes (big-endian) of

        SHA-256("<purpose> <seed>")

    so that an input and an operator of the same seed share no number, and so that the numbers are
    the same in every process and for every device. All are float64 or int64 and on the CPU,
    whatever torch's defaults are.

    ``seed``: integer >= 0, of any size. ``purpose``: what is drawn, as "features.Orthogonal" or
    "HyperAttention, keys"; draws for another purpose need another name. ``generator`` is torch's,
    and ``number`` its seed, for what takes no generator; a program that is compiled or exported has
    none, and draws the same each time it runs. Raises ``ValueError`` for any other seed.

    That generator keeps 32 bits of its seed: two streams are the same with a chance of 2^-32.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        if not validation.is_integer(seed) or seed < 0:
            msg = f"seed is {seed!r}; give an integer of at least 0."
            raise ValueError(msg)
        self.number = _number(f"{purpose} {seed}")
        self._kinds: tuple[str, ...] = ()
        self._sizes: tuple[int, ...] = ()
        # In a program that is kept, a generator would go on from run to run.
        if not torch.compiler.is_compiling():
            self.generator = torch.Generator(device="cpu").manual_seed(self.number)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return self._draw("normal", *shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1)."""
        return self._draw("uniform", *shape)

    def integers(self, end: int, *shape: int) -> Tensor:
        """Integers from 0 to below ``end``, each as likely."""
        return self._draw("integers", end, *shape)

    def signs(self, *shape: int) -> Tensor:
        """Each 1 or -1, as likely."""
        return 2 * self.integers(2, *shape).double() - 1

    def permutation(self, n: int) -> Tensor:
        """The integers from 0 to below n in random order, each order as likely."""
        return self._draw("permutation", n)

    def _draw(self, kind: str, *sizes: int) -> Tensor:
        if hasattr(self, "generator"):
            with _apart_from_transforms():
                return _drawn(self.generator, kind, sizes)
        self._kinds, self._sizes = (*self._kinds, kind), (*self._sizes, *sizes, len(sizes))
        out: Tensor = _drawn_anew(self.number - 2**63, ",".join(self._kinds), list(self._sizes))
        return out


def _apart_from_transforms() -> contextlib.AbstractContextManager[object]:
    """Leave torch.func's transforms: vmap lets nothing be drawn, and a seed has no batch."""
    if not torch._C._are_functorch_transforms_active():
        return contextlib.nullcontext()
    from torch._functorch import pyfunctorch  # which a transform has imported

    return pyfunctorch.temporarily_clear_interpreter_stack()


def constant(call: F) -> F:
    """Mark a function of plain numbers and words: a compiler calls it, and keeps what it gives."""
    # As torch.compiler.assume_constant_result does, which would import the compiler here.
    call._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return call


@constant
def _number(words: str) -> int:
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big")


def _drawn(rng: torch.Generator, kind: str, sizes: Sequence[int]) -> Tensor:
    if kind == "normal":
        return torch.randn(sizes, generator=rng, dtype=torch.float64, device="cpu")
    if kind == "uniform":
        return torch.rand(sizes, generator=rng, dtype=torch.float64, device="cpu")
    if kind == "integers":
        return torch.randint(sizes[0], sizes[1:], generator=rng, device="cpu")
    return torch.randperm(sizes[0], generator=rng, device="cpu")


@torch.library.custom_op("softlab::drawn", mutates_args=())
def _drawn_anew(number: int, kinds: str, sizes: Sequence[int]) -> Tensor:
    """The last draw of the stream whose ``number - 2^63`` it is, after the others.

    ``sizes``: of each draw, and then how many they are.
    """
    rng = torch.Generator(device="cpu").manual_seed(number + 2**63)
    out = torch.empty(0, device="cpu")
    for kind, mine in zip(kinds.split(","), _parted(sizes), strict=True):
        out = _drawn(rng, kind, mine)
    return out


@_drawn_anew.register_fake
def _(number: int, kinds: str, sizes: Sequence[int]) -> Tensor:
    del number
    last = _parted(sizes)[-1]
    kind = kinds.rpartition(",")[2]
    if kind in {"normal", "uniform"}:
        return torch.empty(last, dtype=torch.float64, device="cpu")
    shape = last[1:] if kind == "integers" else last
    return torch.empty(shape, dtype=torch.int64, device="cpu")


def _parted(sizes: Sequence[int]) -> list[Sequence[int]]:
    """Those of each draw."""
    parts: list[Sequence[int]] = []
    end = len(sizes)
    while end:
        count = sizes[end - 1]
        parts.append(sizes[end - 1 - count : end - 1])
        end -= 1 + count
    return parts[::-1]


@dataclass(frozen=True)
class Dims:
    """The sizes that decide a cost.

    ``batch`` is the product of all leading dimensions (heads included), ``n`` the number of
    queries, ``l`` of keys, ``d`` the head width and ``e`` the value width; all at least 1.
    ``tied``: the keys are the queries, so that an operator may form once what it would form twice.
    """

    batch: int
    n: int
    l: int
    d: int
    e: int
    tied: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "n", "l", "d", "e"):
            size = getattr(self, name)
            if not validation.is_integer(size) or size < 1:
                msg = f"Dims.{name} is {size!r}; give an integer of at least 1."
                raise ValueError(msg)
        validation.in_range(self, bool, tied=self.tied)
        if self.tied and self.n != self.l:
            msg = f"Dims.tied is True, with {self.n} queries and {self.l} keys; give equal numbers."
            raise ValueError(msg)

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor) -> Dims:
        """Read the sizes off the tensors of one call."""
        batch = math.prod(torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2]))
        return cls(batch, q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1], k is q)


@dataclass(frozen=True)
class Cost:
    """What one forward call spends, counted and not timed.

    ``flops``: matrix products, two a multiply-add; equals what
    ``torch.utils.flop_counter.FlopCounterMode`` counts on the method's plain twin.
    ``kernel_entries``: exponentials of a score, i.e. entries of kernel or softmax matrices.
    ``factorization_flops``: the textbook count of dense factorisations (Cholesky, SVD), which
    that counter cannot see; zero for methods made of products alone.
    """

    flops: int
    kernel_entries: int = 0
    factorization_flops: int = 0

    @property
    def work(self) -> int:
        """All operations: those of products and those of factorisations."""
        return self.flops + self.factorization_flops

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.kernel_entries + other.kernel_entries,
            self.factorization_flops + other.factorization_flops,
        )


@dataclass(frozen=True)
class Traits:
    """What an operator claims; each claim that one makes is measured by a law in ``softlab.laws``.

    Claims about the operator's matrix M (``out = M v``) hold for finite input in exact arithmetic.
    """

    linear_in_v: bool = True
    """``op(q, k, a v + b w) == a op(q, k, v) + b op(q, k, w)``. Without it there is no one M:
    ``row_stochastic`` and ``nonnegative`` then say that each output is an average of v, and
    ``unbiased`` is about ``op.kernel_matrix(q, k, v)``; no other claim about M can be made."""
    query_equivariant: bool = False
    """Permuting the queries permutes the output alike."""
    key_invariant: bool = False
    """Permuting the keys together with their values changes nothing."""
    row_stochastic: bool = False
    """Rows of M sum to one."""
    nonnegative: bool = False
    """M has no negative entry."""
    symmetric: bool = False
    """M is symmetric where q equals k."""
    psd: bool = False
    """M is symmetric positive semidefinite where q equals k."""
    reads: str = ""
    """What of q and k M is a function of: their ``"scores"`` q k^T; their ``"relative scores"``,
    whose differences within a row alone count; the ``"distances"`` among all tokens; empty: no
    such claim."""
    reciprocal: bool = False
    """M(q, k)^T = M(k, q)."""
    below: bool = False
    """Where q equals k and the core is inverted exactly, ``op.target`` less M is positive
    semidefinite, as of every Nystrom approximation of a kernel."""
    low_rank: bool = False
    """M has at most ``op.rank`` nonzero singular values, or ``op.features`` for feature maps."""
    exact_at: str = ""
    """The field with which, once it reaches the number of keys, the operator equals ``op.target``;
    one that inverts a core, where queries are as many and its solver can invert it."""
    monotone: str = ""
    """As that field grows the error of M never does: ``"Frobenius"``, the root of the sum of its
    squares, or ``"absolute"``, the sum of its magnitudes; empty: nothing is promised."""
    optimal: bool = False
    """No matrix of that rank is nearer to the target's in the Frobenius norm."""
    lifted: bool = False
    """The rank counts landmarks among queries and keys together: the full rank is n + l."""
    exact_at_rank_one: bool = False
    """Equals ``op.target`` at any rank where all tokens are equal, so that M has rank one."""
    blind: bool = False
    """Looks at no query: a control, or a knob so small that one key is left."""
    seedless: bool = False
    """Draws nothing at these knobs, whatever seed is among the fields."""
    exact: bool = False
    """The operator is its own target."""
    replacement: bool = False
    """Exact as itself, with ``op.kernel_matrix(q, k)`` as its dense form, and aimed at no kernel
    attention: as tokens part, no row concentrates on its own. Not to be ranked by error."""
    unbiased: bool = False
    """The mean of ``op.kernel_matrix(q, k)`` over seeds is ``op.target.kernel(d).matrix(q, k)``,
    and M is that matrix, its rows normalised where the target's are. Normalised, M is biased: a
    ratio of unbiased estimates is no unbiased one."""
    variance: str = ""
    """``"equal"``: ``op.kernel_variance(q, k)`` is the variance of that matrix over seeds, entry by
    entry; ``"bounded"``: it is an upper bound; empty: nothing is claimed."""
    restricted: bool = False
    """Each row of M is that of ``op.target`` on a few keys, rescaled to the sum one. So it errs by
    at most the mass left out times the diameter of the values."""
    linear_memory: bool = False
    """Working memory grows linearly in n and l: no n x l matrix is formed."""
    padded: bool = False
    """A call spends more than the arithmetic of its cost, up to 24 times as much: windows are cut
    in blocks, or narrow points padded to wide values."""
    certified: bool = False
    """``op.bound(q, k, v)`` is an upper bound of the norm of each row of ``op(q, k, v)`` less
    ``op.target(q, k, v)``, rounding included, found without the exact output."""
    draws: str = ""
    """The field that counts the random draws, or says their share of the keys, from whose spread
    ``op.interval(q, k, v)`` says, with stated odds, by how much each row errs; empty: there is no
    such interval."""
    causal: bool = False
    """No output depends on a later token. There are as many queries as keys, token by token, and
    masked tokens are deleted whole: their rows are zero."""

    def __post_init__(self) -> None:
        validation.fields(self)

    def made_causal(self) -> Traits:
        """What is left of these claims in a causal form, which tells positions apart."""
        return dataclasses.replace(
            self,
            causal=True,
            query_equivariant=False,
            key_invariant=False,
            symmetric=False,
            psd=False,
            reciprocal=False,
            below=False,
            low_rank=False,
            unbiased=False,
            variance="",
        )


class Knob:
    """The setting m of an operator that decides what a call costs.

    At m the fields named ``fields`` are ``each`` times m, and ``others`` are as given here.
    """

    def __init__(self, *fields: str, each: int = 1, **others: Any) -> None:
        self.fields, self.each, self.others = fields, each, others

    def at(self, kind: Callable[..., T], m: int) -> T:
        """An operator of that class at the setting m, an integer of at least 1."""
        return kind(**dict.fromkeys(self.fields, self.each * m), **self.others)


@runtime_checkable
class Operator(Protocol):
    """A frozen dataclass of numbers, called on tensors.

    ``op(q, k, v, key_mask=None)`` maps queries (..., n, d), keys (..., l, d) and values
    (..., l, e) to (..., n, e), in the dtype and on the device of its input. Leading dimensions
    broadcast. ``key_mask`` is boolean and broadcasts to (..., l): True keys take part, and the
    result equals deleting the others. Causal operators ask for n = l, and delete the queries of
    masked tokens too: their rows are zero.

    Two class attributes place it beside others, in figures and studies, and either may be missing:
    ``family``, one of ``softlab.catalogue.FAMILIES`` or a new one, and ``knob``, a ``Knob``.
    """

    @property
    def traits(self) -> Traits:
        """What the operator claims."""
        ...

    @property
    def target(self) -> Operator:
        """The exact operator that it approximates; an exact one is its own target."""
        ...

    def cost(self, dims: Dims) -> Cost:
        """Arithmetic of one forward call at these sizes."""
        ...

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Apply the operator."""
        ...


def widened(x: Tensor) -> Tensor:
    """The tensor in the working precision: float32 for half precision, else its own."""
    return x.float() if x.dtype.itemsize < 4 else x


def placed(
    make: Callable[..., T], *args: Any, device: torch.device, dtype: torch.dtype | None = None
) -> T:
    """``make(*args)``, a tensor of the CPU or a tuple of such, at the device and dtype.

    For what is drawn or counted from a few numbers alone, which ``args`` must be or hold. For a
    device other than the CPU it is made and sent once, and shared: nobody may change it in place.
    """
    if device.type == "cpu":
        return cast("T", _moved(make(*args), device, dtype))
    return cast("T", _kept(make, args, device, dtype))


@functools.lru_cache(maxsize=64)
def _kept(make: Any, args: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    with torch.inference_mode(False), torch.no_grad():  # or a graph could not hold it
        return _moved(make(*args), device, dtype)


def _moved(x: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    if isinstance(x, tuple):
        return tuple(_moved(part, device, dtype) for part in x)
    return x.to(device) if dtype is None else x.to(device, dtype)


GPU_SHARE = 64
"""How many times as many numbers a GPU holds at once as a CPU, whose cache bounds them."""


def budget(entries: int, device: torch.device) -> int:
    """How many numbers to hold at once where a CPU holds ``entries``.

    On a GPU the time of a launch, and not a cache, is what a block of work has to be large against.
    """
    return entries if device.type == "cpu" else entries * GPU_SHARE


def graphed(*tensors: Tensor) -> bool:
    """Whether what is computed from them has a gradient."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def transformed() -> bool:
    """Whether a transform of ``torch.func``, or forward-mode differentiation, is at work here.

    Then only torch's own differentiable operations will do: neither knows hand-written backward
    passes, recomputation or fused attention.
    """
    if torch.compiler.is_compiling():
        return False
    functional: bool = torch._C._are_functorch_transforms_active()
    return functional or torch.autograd.forward_ad._current_level >= 0


def recomputed(call: Callable[..., S], *tensors: Any) -> S:
    """``call(*tensors)``; what it needs backwards is computed again there and not remembered."""
    if not torch.is_grad_enabled() or transformed():
        return call(*tensors)
    if not graphed(*(x for x in tensors if isinstance(x, Tensor))):
        # Not left to torch, which imports its compiler, for seconds, before it looks.
        out = call(*tensors)
        if not _has_graph(out):  # as it does where the call holds a tensor that has one
            return out
    again = checkpoint(call, *tensors, use_reentrant=False, preserve_rng_state=False)
    return cast("S", again)


def _has_graph(out: Any) -> bool:
    return any(_has_graph(x) for x in out) if isinstance(out, tuple) else bool(out.requires_grad)


def derived(fast: Callable[..., Tensor], plain: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``fast(*tensors)``, whose gradient torch cannot differentiate, with all its derivatives.

    ``plain(*tensors)``: the same in torch's differentiable operations. A first backward pass is
    that of ``fast``. Where a graph of it is made, as for second derivatives, and in transforms, all
    is that of ``plain``: a quick formula would pass for a constant there, and a derivative be wrong
    without a word.
    """
    if transformed():
        return plain(*tensors)
    out = fast(*tensors)
    if not graphed(*tensors) or torch.compiler.is_compiling():
        return out
    whole: Tensor = _Derived.apply(out, plain, *tensors)  # type: ignore[no-untyped-call]
    return whole


class _Derived(torch.autograd.Function):
    """Passes a gradient on to how ``out`` was computed, or around it where a graph is made."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, plain: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.plain = plain
        # A copy: ``fast`` may have kept ``out`` for its own backward pass, and a view of it could
        # not be changed in place.
        return out.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        make_graph, tensors = torch.is_grad_enabled(), ctx.saved_tensors
        many = torch._C._functorch.is_legacy_batchedtensor(grad)  # of a vectorised Jacobian
        if not make_graph and not many and not transformed():
            return grad, None, *(None for _ in tensors)
        wanted = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            # Aliases: tensors that are one and the same have a gradient each.
            own = [x.view_as(x) for x in tensors]
            asked = [x for x, want in zip(own, wanted, strict=True) if want]
            found = iter(torch.autograd.grad(ctx.plain(*own), asked, grad, create_graph=make_graph))
        return None, None, *(next(found) if want else None for want in wanted)


def norm(x: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """The root of the sum of squares over ``dim``, all where None; scaled, as LAPACK's norms are.

    No square overflows or vanishes: the norm is right wherever it is a number of the dtype.
    """
    dim = tuple(range(x.ndim)) if dim is None else dim
    largest = x.abs().amax(dim, keepdim=True)
    # A power of two, which rounds nothing; half of it, since 2^1024 is no number.
    half = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1)
    half = torch.where((largest > 0) & largest.isfinite(), half, 1)
    scaled: Tensor = torch.linalg.vector_norm(x / half, dim=dim, keepdim=True) * half
    return scaled.squeeze(dim)


def own_precision(call: F) -> F:
    """Run a call, and later its backward pass, with autocast off.

    It would round products to half precision. Operators, kernels and solvers choose the precision
    that they work in from their input's dtype. A generator runs each of its steps so. A compiled
    call guards its forward pass alone: call ``backward`` outside the block, as torch advises.
    """
    if inspect.isgeneratorfunction(call):

        @functools.wraps(call)
        def steps(*args: Any, **kwargs: Any) -> Iterator[Any]:
            each = call(*args, **kwargs)
            tensors = _tensors(args, kwargs)
            while (found := _alone(next, (each, _END), {}, tensors)) is not _END:
                yield found

        return cast("F", steps)

    @functools.wraps(call)
    def exact(*args: Any, **kwargs: Any) -> Any:
        return _alone(call, args, kwargs, None)

    return cast("F", exact)


_END = object()


def attention(call: F) -> F:
    """Make a method the call of an operator, by what all of them begin and end with.

    The input is checked and aligned (``validation.admit``, by the operator's own ``scale``), masked
    keys and values become zeros, autocast is off, and half precision is widened. The output comes
    back in the dtype of v. So ``call`` sees and returns the working precision alone.
    """

    @functools.wraps(call)
    def whole(
        self: Any, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, **more: Any
    ) -> Tensor:
        scale = getattr(self, "scale", None)
        q, k, v, key_mask = validation.admit(q, k, v, key_mask, scale=scale)
        out: Tensor = call(self, widened(q), widened(k), widened(v), key_mask, **more)
        return out.to(v.dtype)

    return own_precision(cast("F", whole))


class _Inside(threading.local):
    """In how many calls of ``own_precision`` a thread is; all but the first have nothing to do."""

    depth = 0


_inside = _Inside()


def nested() -> bool:
    """Whether this call of ``own_precision`` is made by another, which has checked its tensors."""
    return _inside.depth > 1


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    return [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]


def _alone(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tensors: list[Tensor] | None,
) -> Any:
    """``call(*args, **kwargs)``, a function of ``tensors`` or its arguments, with autocast off."""
    if torch.compiler.is_exporting():
        return _exported(call, args, kwargs)
    if torch.compiler.is_compiling():  # a compiled backward pass has no nodes of ours
        return _without_autocast(call, args, kwargs, _tensors(args, kwargs))
    if _inside.depth:
        _inside.depth += 1
        try:
            return call(*args, **kwargs)
        finally:
            _inside.depth -= 1
    if torch._C._is_tracing():
        msg = (
            "torch.jit.trace cannot record softlab: checks, draws and choices look at the values, "
            "and the trace would keep those of its example. Call it as it is, or torch.compile it."
        )
        raise RuntimeError(msg)
    tensors = _tensors(args, kwargs) if tensors is None else tensors
    _inside.depth = 1
    try:
        out = _without_autocast(call, args, kwargs, tensors)
    except (RuntimeError, NotImplementedError) as error:
        why = _unsupported(tensors)
        if why is None:
            raise
        msg = f"{why} (torch: {first_line(error)[:160]})"
        raise RuntimeError(msg) from error
    finally:
        _inside.depth = 0
    if torch.is_grad_enabled():
        ends = {x.grad_fn for x in tensors}
        for x in out if isinstance(out, tuple) else (out,):
            if isinstance(x, Tensor) and torch.amp.is_autocast_available(x.device.type):
                _exact_backwards(x, ends, x.device.type)
    return out


def _exported(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The call in a program that is exported, where no tensor has values."""
    try:
        return _without_autocast(call, args, kwargs, _tensors(args, kwargs))
    except Exception as error:
        msg = (
            "torch.export cannot follow this operator: values decide what is computed next, be it "
            "a check of the input, a choice or an iteration that stops. Export inside `with "
            "softlab.validation.trusted():`, which leaves checks out; where that does not help, "
            f"torch.compile it without fullgraph=True. (torch: {first_line(error)[:160]})"
        )
        raise RuntimeError(msg) from error


def _unsupported(tensors: list[Tensor]) -> str | None:
    """Where tensors have no values to look at, or torch transforms the call: what can be done."""
    if any(x.is_meta for x in tensors):
        return "this call looks at values, and a tensor on 'meta' has none. Give it real tensors."
    if any(isinstance(x, FakeTensor) for x in tensors):
        return (
            "softlab looks at values, which torch.export and FakeTensorMode do not have. Call it "
            "as it is, or compile it without fullgraph=True."
        )
    if transformed():
        return (
            "this call does not work under this transform of torch.func or in forward mode. Pass "
            "batches in leading dimensions, which are as many as you like, and differentiate by "
            "torch.autograd.grad."
        )
    return None


def _without_autocast(
    call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
) -> Any:
    device = tensors[0].device.type if tensors else "cpu"
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return call(*args, **kwargs)
    with torch.autocast(device, enabled=False):
        return call(*args, **kwargs)


def _exact_backwards(out: Tensor, ends: set[Any], device: str) -> None:
    """Turn autocast off in the backward pass from ``out`` to the nodes ``ends``.

    A backward pass inside an autocast block runs in its mode, and each of its nodes by itself. They
    are looked for when a pass comes to the first of them and needs it, so that others pay for one
    hook alone. Where the pass makes a graph, the same is done to that.
    """
    node = out.grad_fn
    if node is None or node in ends:
        return
    below = [child for child, _ in node.next_functions]  # not the node, which would hold itself

    def off(grads: Any) -> None:  # noqa: ARG001
        torch.set_autocast_enabled(device, False)  # until this node is done

    def onwards(grads: tuple[Tensor | None, ...], _: Any) -> None:
        for x in grads:
            if x is not None:
                _exact_backwards(x, ends, device)

    def enter(grads: Any) -> None:
        inside = torch.is_autocast_enabled(device)
        ahead = below.copy() if inside or torch.is_grad_enabled() else []
        if inside:
            off(grads)
        seen = set(ends)
        while ahead:
            child = ahead.pop()
            if child is not None and child not in seen:
                seen.add(child)
                child.register_prehook(off)
                child.register_hook(onwards)
                ahead += [grandchild for grandchild, _ in child.next_functions]
                below.clear()  # once is enough

    node.register_prehook(enter)
    node.register_hook(onwards)


def as_matrix(op: Operator, q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Return the matrix M with ``op(q, k, v) == M @ v``, by applying ``op`` to the identity.

    Arguments: an operator that is linear in v; q (..., n, d); k (..., l, d); optional boolean
    ``key_mask`` broadcastable to (..., l). Returns (..., n, l). Memory is that of the dense
    matrix. Raises ``ValueError`` if the operator says that it is not linear in v.
    """
    if not op.traits.linear_in_v:
        msg = f"{op!r} is not linear in v, so it has no matrix; compare its outputs instead."
        raise ValueError(msg)
    identity = torch.eye(k.shape[-2], dtype=k.dtype, device=k.device)
    return op(q, k, identity, key_mask)


def causal_form(op: Any) -> Any:
    """The operator with ``causal=True`` in itself or in its target; None where it has no such form.

    ``op``: any operator. A landmark method has none: its landmarks are made of later tokens too.
    """
    names = {field.name for field in dataclasses.fields(op)}
    if "causal" in names:
        return dataclasses.replace(op, causal=True)
    inner = causal_form(op.target) if "target" in names else None
    form = None if inner is None else dataclasses.replace(op, target=inner)
    return form if form is not None and form.traits.causal else None
